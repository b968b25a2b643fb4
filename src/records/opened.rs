//! Keys that were opened, kept in memory up to a number of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::KeyRecord;
use crate::key::Name;

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

    /// Keeps a record, unless a newer one is there.
    pub fn keep(&self, record: &Arc<KeyRecord>) {
        let mut kept = self.kept();
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
