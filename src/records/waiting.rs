//! Which keys wait for a destruction, kept in memory: a look for what is due opens none of the others.
//!
//! All keys are looked at once, past the cache, so that keys in use stay in it. From then on every write
//! of a key says here how that key waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::{KeyRecord, RecordError, Records};
use crate::key::Name;

/// What is known of the waiting; a key that is not there waits for nothing.
#[derive(Default)]
pub struct Waiting {
    known: Mutex<HashMap<String, Wait>>,
}

struct Wait {
    /// Of the key, when this was so.
    revision: u64,
    /// When the next of it falls due.
    due: Timestamp,
}

impl Waiting {
    /// A key of this revision waits until then, or for nothing.
    pub fn note(&self, name: &str, revision: u64, due: Option<Timestamp>) {
        let mut known = self.known();
        if known.get(name).is_some_and(|wait| wait.revision > revision) {
            return;
        }
        match due {
            Some(due) => drop(known.insert(name.to_owned(), Wait { revision, due })),
            None => drop(known.remove(name)),
        }
    }

    /// Nobody knows how this key waits: it has to be looked at.
    pub fn doubt(&self, name: &str) {
        let mut known = self.known();
        let revision = known.get(name).map_or(0, |wait| wait.revision);
        known.insert(name.to_owned(), Wait { revision, due: Timestamp::MIN });
    }

    fn due(&self, now: Timestamp) -> Vec<String> {
        let known = self.known();
        let due = known.iter().filter(|(_, wait)| wait.due <= now);
        due.map(|(name, _)| name.clone()).collect()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Wait>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records {
    /// The names of keys that have something due at `now`, or of which that is not known.
    pub fn due_keys(&self, now: Timestamp) -> Vec<String> {
        self.waiting.due(now)
    }

    /// Has a key looked at again whenever it is asked what is due.
    pub fn doubt_waiting(&self, name: &str) {
        self.waiting.doubt(name);
    }

    /// The key of this name as it is stored, kept nowhere, after it was noted how it waits.
    pub async fn look_at_waiting(
        &self,
        name: &Name,
    ) -> Result<Option<Arc<KeyRecord>>, RecordError> {
        let key = self.stored_key(name).await?;
        match &key {
            Some(key) => self.waiting.note(name.as_str(), key.revision, key.meta.next_due()),
            None => self.waiting.note(name.as_str(), 0, None),
        }
        Ok(key.map(Arc::new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_newer_stays() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let waiting = Waiting::default();
        waiting.note("k", 2, Some(at(10)));
        waiting.note("k", 1, None);
        assert_eq!(waiting.due(at(10)), ["k"], "a slow look at an older record");
        assert!(waiting.due(at(9)).is_empty());
        waiting.note("k", 3, None);
        assert!(waiting.due(at(10)).is_empty());
        waiting.note("k", 4, Some(at(20)));
        waiting.doubt("k");
        assert_eq!(waiting.due(at(0)), ["k"]);
        waiting.note("k", 4, Some(at(20)));
        assert!(waiting.due(at(19)).is_empty(), "it was looked at");
    }
}
