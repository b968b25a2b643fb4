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
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_bytes: 2 * 1024 * 1024, idle_seconds: 300, absolute_seconds: 3600 }
    }
}

/// How many threads are taken to use one key at the same time, when its place in the arena is counted.
const SHARERS: usize = 4;

/// The cache; all times are handed in.
pub struct KeyCache {
    settings: Settings,
    entries: Mutex<HashMap<KeyAddress, Entry>>,
    /// Grows whenever keys are to be forgotten; a key whose opening began before is not kept.
    forgotten: AtomicU64,
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
}

impl KeyCache {
    pub fn new(settings: Settings) -> Self {
        Self { settings, entries: Mutex::new(HashMap::new()), forgotten: AtomicU64::new(0) }
    }

    /// The opened key of exactly this sealed form, if it is here and young enough.
    pub fn hit(
        &self,
        address: &KeyAddress,
        iv: &[u8; 12],
        now: Instant,
    ) -> Option<Arc<PrivateKey>> {
        let mut entries = self.entries();
        let entry = entries.get_mut(address)?;
        if entry.iv != *iv || !self.settings.allow(entry, now) {
            entries.remove(address);
            return None;
        }
        entry.used = now;
        Some(Arc::clone(&entry.key))
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
        now: Instant,
    ) {
        let cost = key.arena_bytes(SHARERS);
        if self.settings.keeps_none() || cost > self.settings.max_bytes {
            return;
        }
        let mut entries = self.entries();
        if self.moment() != began {
            return;
        }
        entries.insert(address, Entry { key, iv, cost, loaded: now, used: now });
        let mut total: usize = entries.values().map(|entry| entry.cost).sum();
        while total > self.settings.max_bytes {
            total -= remove_oldest(&mut entries);
        }
    }

    /// Forgets the key of one version, or of all versions of a name, or all.
    pub fn forget(&self, name: Option<&str>, version: Option<u32>) {
        let mut entries = self.entries();
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        entries.retain(|address, _| {
            let named = name.is_none_or(|name| name == address.name);
            let versioned = version.is_none_or(|version| version == address.version);
            !(named && versioned)
        });
    }

    /// Wipes what has been idle or kept too long.
    pub fn expire(&self, now: Instant) {
        self.entries().retain(|_, entry| self.settings.allow(entry, now));
    }

    /// Makes room in the arena: wipes the least recently used key. False where there is none.
    pub fn shed(&self) -> bool {
        remove_oldest(&mut self.entries()) > 0
    }

    /// How many keys are open.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<KeyAddress, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settings {
    fn keeps_none(&self) -> bool {
        self.idle_seconds == 0 || self.absolute_seconds == 0
    }

    fn allow(&self, entry: &Entry, now: Instant) -> bool {
        now.duration_since(entry.used) < Duration::from_secs(self.idle_seconds)
            && now.duration_since(entry.loaded) < Duration::from_secs(self.absolute_seconds)
    }
}

fn remove_oldest(entries: &mut HashMap<KeyAddress, Entry>) -> usize {
    let oldest = entries.iter().min_by_key(|(_, entry)| entry.used).map(|(at, _)| at.clone());
    oldest.and_then(|at| entries.remove(&at)).map_or(0, |entry| entry.cost)
}
