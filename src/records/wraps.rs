//! What a pass over all keys leaves each of them with: a wrap under the generation in use, and one to the
//! recovery key that is set or to none. A key that has others was put back from before the pass: rewraps
//! have no lines in the trail, so this is what tells.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{At, KeyRecord, PassRecord, RecordError, Records, RecoveryRecord, Stage};
use crate::custody::{Fingerprint, generation_of, recovery_of};
use crate::key::Name;

/// The keys that were found to have other wraps, and whether somebody was told of each.
#[derive(Default)]
pub(super) struct Odd(Mutex<BTreeMap<Name, bool>>);

/// What every key has to have; what is not known of it is not asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wraps {
    generation: Option<u32>,
    recovery: Option<Option<Fingerprint>>,
}

impl Odd {
    fn known(&self) -> MutexGuard<'_, BTreeMap<Name, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wraps {
    /// What the last pass, which is over, left everything with. One that passed a key over, and one from
    /// before a reseal, say nothing of all keys.
    fn after(
        pass: Option<&PassRecord>,
        generation: u32,
        set: Option<&Option<RecoveryRecord>>,
    ) -> Self {
        let fingerprint = |set: &RecoveryRecord| set.fingerprint;
        if pass.is_some_and(|pass| pass.generation == generation && pass.broken == 0) {
            let recovery = set.map(|set| set.as_ref().map(fingerprint));
            return Self { generation: Some(generation), recovery };
        }
        let complete = set.and_then(Option::as_ref).filter(|set| set.complete_at.is_some());
        Self { generation: None, recovery: complete.map(|set| Some(set.fingerprint)) }
    }

    fn fit(&self, key: &KeyRecord) -> bool {
        let mut kept = key.versions.iter().filter(|version| !version.sealed.is_empty());
        kept.all(|version| {
            self.generation.is_none_or(|wanted| generation_of(&version.sealed) == Some(wanted))
                && self.recovery.is_none_or(|wanted| recovery_of(&version.recovery) == wanted)
        })
    }
}

impl Records {
    /// Refuses a key that is not as the last pass left it. While one is open, that is not known.
    ///
    /// # Errors
    /// [`RecordError::Broken`]; whoever read the key before it was changed has to read it again.
    pub(super) async fn must_be_rewrapped(&self, key: &KeyRecord) -> Result<(), RecordError> {
        let name = key.meta.name();
        let wraps = loop {
            let before = known(self.rotation().await)?.flatten();
            if before.as_ref().is_some_and(|at| at.record.stage != Stage::Done) {
                self.wraps.known().remove(name);
                return Ok(());
            }
            let set = known(self.recovery().await)?;
            let home = self.home().ok_or(RecordError::NotInitialised)?;
            let after = known(self.rotation().await)?.flatten();
            // No pass has begun in between, so all of this is of one moment.
            let of = |at: &Option<At<PassRecord>>| at.as_ref().map(|at| at.revision);
            if of(&before) == of(&after) {
                let pass = after.map(|at| at.record);
                break Wraps::after(pass.as_ref(), home.generation, set.as_ref());
            }
        };
        if wraps.fit(key) {
            self.wraps.known().remove(name);
            return Ok(());
        }
        Err(RecordError::Broken(format!("key/{name}")))
    }

    /// Takes note of a key that [`Records::must_be_rewrapped`] refused.
    pub(super) fn note_odd(&self, name: &Name) {
        self.wraps.known().entry(name.clone()).or_insert(false);
    }

    /// How many keys were found that are not as the last pass left them.
    pub fn odd_keys(&self) -> usize {
        self.wraps.known().len()
    }

    /// Those of them that this was not asked about before.
    pub fn newly_odd_keys(&self) -> Vec<Name> {
        let mut known = self.wraps.known();
        let new = |(name, told): (&Name, &mut bool)| {
            (!std::mem::replace(told, true)).then(|| name.clone())
        };
        known.iter_mut().filter_map(new).collect()
    }
}

/// What can be said of a record that is broken: nothing, and that is for others to tell.
fn known<T>(read: Result<T, RecordError>) -> Result<Option<T>, RecordError> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(RecordError::Broken(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
