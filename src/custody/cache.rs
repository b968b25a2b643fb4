//! Opened private keys, kept a while: bounded in bytes of arena, by idle time and by age.
//!
//! A hit must name the same sealed form that was opened (its seal's IV, drawn fresh for every seal),
//! so a rewritten record never meets the key of an older one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::protocol::KeyAddress;
use super::rsa::PrivateKey;

/// How long and how much custody keeps open.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Bytes of arena that opened keys may take together.
    pub max_bytes: usize,
    /// Seconds without use after which a key is wiped; 0 keeps none.
    pub idle_seconds: u64,
    /// Seconds after which a key is wiped whatever its use; 0 keeps none.
    pub absolute_seconds: u64,
    /// What custody allows of an outage, whatever it is told; see `[custody] max_outage_grace_seconds`.
    #[serde(skip)]
    pub longest_grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let longest_grace = Duration::ZERO;
        Self {
            max_bytes: 2 * 1024 * 1024,
            idle_seconds: 300,
            absolute_seconds: 3600,
            longest_grace,
        }
    }
}

/// How many threads are taken to use one key at the same time, when its place in the arena is counted.
const SHARERS: usize = 4;

/// The cache; all times are handed in.
pub struct KeyCache {
    settings: Settings,
    kept: Mutex<Kept>,
    /// Grows whenever keys are to be forgotten; a key whose opening began before is not kept.
    forgotten: AtomicU64,
}

#[derive(Default)]
struct Kept {
    entries: HashMap<KeyAddress, Entry>,
    /// Since when the token is away, if it is. From then on a key's own allowance counts, and nothing
    /// else: what is wiped now cannot be opened again.
    away_since: Option<Instant>,
}

/// An opened key that may be used now.
pub struct Hit {
    pub key: Arc<PrivateKey>,
    /// Whether it serves by its allowance, the token being away.
    pub without_token: bool,
}

/// A point in the life of a cache; see [`KeyCache::moment`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(u64);

struct Entry {
    key: Arc<PrivateKey>,
    iv: [u8; 12],
    cost: usize,
    loaded: Instant,
    used: Instant,
    /// How long it may serve without the token, as the key's record said last.
    allowance: Duration,
}

impl KeyCache {
    pub fn new(settings: Settings) -> Self {
        Self { settings, kept: Mutex::default(), forgotten: AtomicU64::new(0) }
    }

    /// The opened key of exactly this sealed form, if it is here and young enough, or allowed to serve
    /// while the token is away.
    pub fn hit(
        &self,
        address: &KeyAddress,
        iv: &[u8; 12],
        allowance: Duration,
        now: Instant,
    ) -> Option<Hit> {
        let mut kept = self.kept();
        let away_since = kept.away_since;
        let entry = kept.entries.get_mut(address)?;
        entry.allowance = self.settings.believed(entry, allowance, away_since);
        if entry.iv != *iv || !self.settings.allow(entry, away_since, now) {
            kept.entries.remove(address);
            return None;
        }
        entry.used = now;
        Some(Hit { key: Arc::clone(&entry.key), without_token: away_since.is_some() })
    }

    /// The token is away since `now`: wipes what may not serve without it, and returns how many keys may.
    pub fn lose_token(&self, now: Instant) -> usize {
        let mut kept = self.kept();
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        kept.away_since = Some(now);
        kept.entries.retain(|_, entry| self.settings.allow(entry, Some(now), now));
        kept.entries.len()
    }

    /// How many keys could serve without the token.
    pub fn allowed(&self) -> usize {
        self.kept().entries.values().filter(|entry| !entry.allowance.is_zero()).count()
    }

    /// To be asked before a key is opened, and given to [`KeyCache::keep`] after.
    pub fn moment(&self) -> Moment {
        Moment(self.forgotten.load(Ordering::Acquire))
    }

    /// Keeps an opened key, and lets go of the least recently used where the bound is passed. A key
    /// that was to be forgotten while it was opened is not kept.
    pub fn keep(
        &self,
        began: Moment,
        address: KeyAddress,
        iv: [u8; 12],
        key: Arc<PrivateKey>,
        allowance: Duration,
        now: Instant,
    ) {
        let cost = key.arena_bytes(SHARERS);
        if self.settings.keeps_none() || cost > self.settings.max_bytes {
            return;
        }
        let allowance = allowance.min(self.settings.longest_grace);
        let entries = &mut self.kept().entries;
        if self.moment() != began {
            return;
        }
        entries.insert(address, Entry { key, iv, cost, loaded: now, used: now, allowance });
        let mut total: usize = entries.values().map(|entry| entry.cost).sum();
        while total > self.settings.max_bytes {
            total -= remove_oldest(entries);
        }
    }

    /// Forgets the key of one version, or of all versions of a name, or all.
    pub fn forget(&self, name: Option<&str>, version: Option<u32>) {
        let entries = &mut self.kept().entries;
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        entries.retain(|address, _| {
            let named = name.is_none_or(|name| name == address.name);
            let versioned = version.is_none_or(|version| version == address.version);
            !(named && versioned)
        });
    }

    /// From now on the opened keys of a name may serve so long without the token: those that may not even
    /// now are wiped.
    pub fn allow(&self, name: &str, allowance: Duration, now: Instant) {
        let mut kept = self.kept();
        let away_since = kept.away_since;
        kept.entries.retain(|address, entry| {
            if address.name != name {
                return true;
            }
            entry.allowance = self.settings.believed(entry, allowance, away_since);
            self.settings.allow(entry, away_since, now)
        });
    }

    /// Wipes what has been idle or kept too long.
    pub fn expire(&self, now: Instant) {
        let mut kept = self.kept();
        let away_since = kept.away_since;
        kept.entries.retain(|_, entry| self.settings.allow(entry, away_since, now));
    }

    /// Makes room in the arena: wipes the least recently used key. False where there is none.
    pub fn shed(&self) -> bool {
        remove_oldest(&mut self.kept().entries) > 0
    }

    /// How many keys are open.
    pub fn len(&self) -> usize {
        self.kept().entries.len()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settings {
    fn keeps_none(&self) -> bool {
        self.idle_seconds == 0 || self.absolute_seconds == 0
    }

    /// Of the allowance that the front names: no more than custody's own configuration has, and while the token
    /// is away no more than was said while it was there.
    fn believed(&self, entry: &Entry, named: Duration, away_since: Option<Instant>) -> Duration {
        let known = if away_since.is_some() { entry.allowance } else { self.longest_grace };
        named.min(known).min(self.longest_grace)
    }

    fn allow(&self, entry: &Entry, away_since: Option<Instant>, now: Instant) -> bool {
        if let Some(began) = away_since {
            return now.duration_since(began) < entry.allowance;
        }
        now.duration_since(entry.used) < Duration::from_secs(self.idle_seconds)
            && now.duration_since(entry.loaded) < Duration::from_secs(self.absolute_seconds)
    }
}

fn remove_oldest(entries: &mut HashMap<KeyAddress, Entry>) -> usize {
    let oldest = entries.iter().min_by_key(|(_, entry)| entry.used).map(|(at, _)| at.clone());
    oldest.and_then(|at| entries.remove(&at)).map_or(0, |entry| entry.cost)
}
