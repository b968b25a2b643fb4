//! Keys that were opened, kept in memory up to a number of them.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{KeyRecord, RecordError};
use crate::key::Name;

/// What [`Settings::seals_per_store_key`] may be: no more than the bound of NIST SP 800-38D §8.3, and so
/// many that store keys stay few beside what they seal.
pub const SEALS_PER_STORE_KEY: RangeInclusive<u64> = 5..=1 << 32;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How many opened key records are kept in memory.
    pub kept_keys: usize,
    /// After how many records sealed under one store key the next one is made.
    pub seals_per_store_key: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { kept_keys: 10_000, seals_per_store_key: 1 << 30 }
    }
}

/// A bounded map with the clock algorithm: what was used since the hand came by stays.
pub struct Opened {
    bound: usize,
    kept: Mutex<HashMap<Name, Kept>>,
}

struct Kept {
    record: Arc<KeyRecord>,
    used: bool,
}

impl Opened {
    pub fn new(settings: &Settings) -> Self {
        Self { bound: settings.kept_keys.max(1), kept: Mutex::new(HashMap::new()) }
    }

    pub fn key(&self, name: &Name) -> Option<Arc<KeyRecord>> {
        let mut kept = self.kept();
        let found = kept.get_mut(name)?;
        found.used = true;
        Some(Arc::clone(&found.record))
    }

    /// Keeps what was read or just stored, if it `is_current` still, unless a newer one is there. A writer
    /// keeps its record after it is stored, and nobody keeps or forgets anything while this is asked:
    /// either the answer is no, or who makes it no comes later.
    pub fn keep_if(
        &self,
        record: &Arc<KeyRecord>,
        is_current: impl FnOnce() -> Result<bool, RecordError>,
    ) -> Result<(), RecordError> {
        let mut kept = self.kept();
        if is_current()? {
            self.put(&mut kept, record);
        }
        Ok(())
    }

    fn put(&self, kept: &mut HashMap<Name, Kept>, record: &Arc<KeyRecord>) {
        let name = record.meta.name();
        if kept.get(name).is_some_and(|known| known.record.revision > record.revision) {
            return;
        }
        if kept.len() >= self.bound && !kept.contains_key(name) {
            let unused = |(name, entry): (&Name, &mut Kept)| {
                (!std::mem::take(&mut entry.used)).then(|| name.clone())
            };
            let many = self.bound.div_ceil(16);
            let goes: Vec<Name> = kept.iter_mut().filter_map(unused).take(many).collect();
            for name in &goes {
                kept.remove(name);
            }
        }
        kept.insert(name.clone(), Kept { record: Arc::clone(record), used: true });
    }

    pub fn forget(&self, name: &Name) {
        self.kept().remove(name);
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<Name, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Algorithm, KeyMeta, Labels, Mgf1Hash};

    fn record(revision: u64) -> Arc<KeyRecord> {
        let name = Name::parse("k").unwrap();
        let now = jiff::Timestamp::UNIX_EPOCH;
        let (size, hash) = (Algorithm::Rsa2048, Mgf1Hash::default());
        let meta = KeyMeta::new(name, size, hash, Labels::default(), "kid".to_owned(), now);
        Arc::new(KeyRecord { revision, meta, versions: Vec::new() })
    }

    #[test]
    fn an_older_record_never_takes_the_place_of_a_newer_one() {
        let name = Name::parse("k").unwrap();
        let opened = Opened::new(&Settings::default());
        let kept = || opened.key(&name).map(|record| record.revision);
        opened.keep_if(&record(2), || Ok(true)).unwrap();
        opened.keep_if(&record(1), || Ok(true)).unwrap();
        assert_eq!(kept(), Some(2), "a slower writer");
        opened.forget(&name);
        // A reader that began before the change and ends after the newer record was evicted.
        opened.keep_if(&record(1), || Ok(false)).unwrap();
        assert_eq!(kept(), None);
        let failed = opened.keep_if(&record(2), || Err(RecordError::NotInitialised));
        assert!(failed.is_err() && kept().is_none());
        opened.keep_if(&record(2), || Ok(true)).unwrap();
        assert_eq!(kept(), Some(2));
    }
}
