//! What a master rotation leaves in the store: how far it is, so that it goes on after any end of the
//! process, and the one change that puts the new generation in use.
//!
//! ```text
//! making     the next generation is on record; the token may hold its key or not
//!   │  one commit: the home record names it, and all store keys lie under it
//! rewrapping key by key, in the order of the names; `after` is the last one that is done
//!   │  one commit
//! done       stays, so that it can be told how it went
//! ```

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::home::{encode, put_home, read_home, store_key_at};
use super::{
    At, Destroying, HomeRecord, KeyRecord, MasterRecord, RecordError, Records, Retirement,
    VersionRecord, behind,
};
use crate::custody::protocol::KeyAddress;
use crate::custody::{Fingerprint, generation_of, recovery_of};
use crate::key::Name;
use crate::store::{Batch, Expect, Table};

pub(super) const ROTATION: &str = "rotation";

/// A rotation that has begun and has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassRecord {
    /// The generation that everything is to lie under.
    pub generation: u32,
    #[serde(default)]
    pub purpose: Purpose,
    pub stage: Stage,
    pub started_at: Timestamp,
    /// Who asked for it: `unix:1000`.
    pub by: String,
    /// The last key that is done.
    pub after: Option<String>,
    /// Keys there were when it began, keys that are done, and versions that were rewrapped.
    pub keys: u64,
    pub keys_done: u64,
    pub rewrapped: u64,
    /// Keys whose records do not open.
    pub broken: u64,
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// What the trail is still to be told of it, in this order.
    #[serde(default)]
    pub owes: Vec<Line>,
    /// Whether the recovery key was set or taken away while it ran: it brings every key to that, too.
    #[serde(default)]
    pub with_recovery: bool,
}

impl PassRecord {
    /// Whether nothing of it is left to be done or told, so that another may begin.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Done && self.owes.is_empty()
    }
}

/// A line of the trail about a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// The generation is in use.
    InUse,
    /// Every key is as the recovery key has it, which was set or taken away while the generation changed.
    Wrapped,
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    Making,
    Rewrapping,
    Done,
}

/// Why there is a pass over all keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    #[default]
    Rotation,
    /// The recovery key was set or taken away.
    Recovery,
}

impl PassRecord {
    /// Whether it can be one of this appliance: a generation is made after all that there were, and what
    /// is rewrapped lies under the one in use. An older record that was put back is not taken for one.
    fn fits(&self, home: &HomeRecord) -> bool {
        match self.stage {
            Stage::Making => home.masters().iter().all(|known| known.generation < self.generation),
            Stage::Rewrapping => self.generation == home.generation,
            // A reseal since puts another generation in use, with a signing key of its own.
            Stage::Done => {
                let resealed = home.signer_generation == home.generation;
                self.generation == home.generation || self.generation < home.generation && resealed
            }
        }
    }
}

impl Records {
    /// The rotation that is under way, or the last one.
    ///
    /// # Errors
    /// [`RecordError::Broken`] where it is none that was kept, or does not fit what the appliance is.
    pub async fn rotation(&self) -> Result<Option<At<PassRecord>>, RecordError> {
        self.must_not_be_behind(Table::Appliance, ROTATION)?;
        loop {
            let stored = self.store.get(Table::Appliance, ROTATION)?;
            let Some(stored) = stored else { return Ok(None) };
            if let Some(known) = self.pass.of(&stored) {
                return Ok(Some(known.as_ref().clone()));
            }
            let at = self.open_value(Table::Appliance, ROTATION, stored.clone()).await?;
            let home = read_home(self.store.as_ref())?.ok_or(RecordError::NotInitialised)?;
            if PassRecord::fits(&at.record, &home) {
                return Ok(Some(self.pass.keep(stored, at).as_ref().clone()));
            }
            // What the appliance is may have changed together with it since it was read.
            if self.store.get(Table::Appliance, ROTATION)? == Some(stored) {
                return Err(RecordError::Broken(format!("appliance/{ROTATION}")));
            }
        }
    }

    /// Begins one where none is under way; there is one caller at a time. Returns its revision.
    pub async fn begin_rotation(&self, record: &PassRecord) -> Result<u64, RecordError> {
        let revision = self.store.next_revision(Table::Appliance, ROTATION)?;
        let batch = self.with_pass(Batch::new(), None, record).await?;
        self.commit(batch).await?;
        self.release(&[behind::ROTATION]);
        Ok(revision)
    }

    /// Notes how far it is.
    ///
    /// # Errors
    /// [`RecordError::Conflict`] where another one took its place.
    pub async fn keep_rotation(&self, at: &mut At<PassRecord>) -> Result<(), RecordError> {
        let batch = self.with_pass(Batch::new(), Some(at.revision), &at.record).await?;
        self.commit(batch).await?;
        at.revision += 1;
        Ok(())
    }

    /// Notes how far a pass is, in the batch of what goes with it: where it was kept at the revision
    /// `known`, or in place of what is there.
    pub(super) async fn with_pass(
        &self,
        batch: Batch,
        known: Option<u64>,
        record: &PassRecord,
    ) -> Result<Batch, RecordError> {
        let known = match known {
            Some(known) => Some(known),
            None => self.store.get(Table::Appliance, ROTATION)?.map(|stored| stored.revision),
        };
        let store_key = self.key_for_pass().await?;
        self.put_sealed_under(&store_key, batch, (Table::Appliance, ROTATION, known), record).await
    }

    /// Puts a generation in use whose master key the token holds, here and in custody: rewraps all store
    /// keys and names it in the home record, in one commit with the pass. No store key is made and nothing
    /// is sealed meanwhile.
    pub async fn put_in_use(
        &self,
        at: &mut At<PassRecord>,
        now: Timestamp,
    ) -> Result<(), RecordError> {
        let record = &at.record;
        // Sealed before nothing more is.
        let batch = self.with_pass(Batch::new(), Some(at.revision), record).await?;
        let _no_new_store_key = self.count.lock().await;
        let home = self.home().ok_or(RecordError::NotInitialised)?;
        let mut next = HomeRecord { generation: record.generation, ..home.as_ref().clone() };
        next.generations = home.masters();
        next.generations.push(MasterRecord::made(record.generation, now));
        let batch = put_home(batch, &home, &mut next)?;
        let (batch, _) = self.rewrap_store_keys(batch, &mut next).await?;
        self.work_with(batch, next).await?;
        at.revision += 1;
        Ok(())
    }

    /// Rewraps the store keys that lie under another generation than the one in use, as none should;
    /// returns how many they were.
    pub async fn gather_store_keys(&self) -> Result<usize, RecordError> {
        let is_any = |home: &HomeRecord| home.store_keys.iter().any(|key| home.is_astray(key));
        if !self.home().is_some_and(|home| is_any(&home)) {
            return Ok(0);
        }
        let _no_new_store_key = self.count.lock().await;
        let mut next = self.home().ok_or(RecordError::NotInitialised)?.as_ref().clone();
        let (batch, rewrapped) = self.rewrap_store_keys(Batch::new(), &mut next).await?;
        self.work_with(batch, next).await?;
        Ok(rewrapped)
    }

    /// Rewraps what does not lie under the generation that `next` names.
    async fn rewrap_store_keys(
        &self,
        mut batch: Batch,
        next: &mut HomeRecord,
    ) -> Result<(Batch, usize), RecordError> {
        let (home, mut rewrapped) = (next.clone(), 0);
        let generation = home.generation;
        for store_key in next.store_keys.iter_mut().filter(|key| home.is_astray(key)) {
            *store_key = self.custody.rewrap_store_key(store_key.clone(), generation).await?;
            let at = store_key_at(store_key.id);
            batch = batch.put(Table::Appliance, &at, Expect::Any, encode(&at, store_key)?);
            rewrapped += 1;
        }
        Ok((batch, rewrapped))
    }

    /// Keeps what the appliance becomes and has custody work with it, before another store key is made:
    /// custody wraps one under the generation that it knows.
    async fn work_with(&self, batch: Batch, next: HomeRecord) -> Result<(), RecordError> {
        self.commit(batch).await?;
        let home = self.replace_home(next);
        Ok(self.custody.use_home(home.for_custody()).await?)
    }

    /// Notes that the master key of a generation is destroyed.
    pub async fn note_retired(&self, generation: u32, now: Timestamp) -> Result<(), RecordError> {
        // It is done in the token, and is written down whatever room there is.
        let batch = Batch::new().from_reserve();
        self.note_of_master(batch, generation, |known| known.retired_at = Some(now)).await
    }

    /// Notes that the destruction of a master key in the token begins, or that it has not been done.
    pub async fn note_destroying(
        &self,
        generation: u32,
        destroying: Option<Destroying>,
    ) -> Result<(), RecordError> {
        let note = |known: &mut MasterRecord| known.destroying = destroying;
        self.note_of_master(Batch::new(), generation, note).await
    }

    /// Notes that the master key of a generation is to be destroyed, or no longer is.
    pub async fn note_retirement(
        &self,
        generation: u32,
        retirement: Option<Retirement>,
    ) -> Result<(), RecordError> {
        let note = |known: &mut MasterRecord| {
            known.retirement = retirement;
            known.destroying = None;
        };
        self.note_of_master(Batch::new(), generation, note).await
    }

    async fn note_of_master(
        &self,
        batch: Batch,
        generation: u32,
        note: impl FnOnce(&mut MasterRecord),
    ) -> Result<(), RecordError> {
        let _no_other_change = self.count.lock().await;
        let home = self.home().ok_or(RecordError::NotInitialised)?;
        let mut next = HomeRecord { generations: home.masters(), ..home.as_ref().clone() };
        let known = next.generations.iter_mut().find(|known| known.generation == generation);
        if let Some(known) = known {
            note(known);
        }
        let batch = put_home(batch, &home, &mut next)?;
        self.commit(batch).await?;
        self.replace_home(next);
        Ok(())
    }

    /// Rewraps the versions of a key that do not lie under `generation`, or have not the recovery wrap
    /// that is set; keeps them and reads them back. Returns how many they were.
    ///
    /// # Errors
    /// [`RecordError::Conflict`] where the key was changed meanwhile: it is to be tried again.
    /// [`RecordError::Broken`] where a version's master key is gone; the others are rewrapped then.
    pub async fn rewrap(
        &self,
        name: &Name,
        generation: u32,
        recovery: Option<Fingerprint>,
    ) -> Result<u64, RecordError> {
        let Some(old) = self.key(name).await? else { return Ok(0) };
        let mut new = KeyRecord::clone(&old);
        let home = self.home().ok_or(RecordError::NotInitialised)?;
        let (mut rewrapped, mut lost) = (Vec::new(), None);
        for (version, slot) in (1_u32..).zip(&mut new.versions) {
            if home.is_gone(generation_of(&slot.sealed)) {
                lost = Some(RecordError::Broken(format!("key/{name} version {version}")));
                continue;
            }
            let address = KeyAddress { name: name.to_string(), version };
            if let Some(record) = self.rewrapped(address, slot, generation, recovery).await? {
                *slot = Arc::new(record);
                rewrapped.push((version, Arc::clone(slot)));
            }
        }
        if rewrapped.is_empty() {
            return lost.map_or(Ok(0), Err);
        }
        let kept = self.change_key(&old, new).await?;
        let stored = self.stored_key(name).await?.ok_or(RecordError::Conflict)?;
        if stored.revision != kept.revision {
            return Err(RecordError::Conflict);
        }
        let is_there = |(version, wanted): &(u32, Arc<VersionRecord>)| {
            stored.version(*version).is_some_and(|found| {
                found.sealed == wanted.sealed && found.recovery == wanted.recovery
            })
        };
        match rewrapped.iter().all(is_there) {
            true => lost.map_or(Ok(rewrapped.len() as u64), Err),
            false => Err(RecordError::Broken(format!("key/{name}"))),
        }
    }

    /// A version with both wraps as they should be; `None` where they are.
    async fn rewrapped(
        &self,
        address: KeyAddress,
        old: &VersionRecord,
        generation: u32,
        recovery: Option<Fingerprint>,
    ) -> Result<Option<VersionRecord>, RecordError> {
        let mut new = old.clone();
        if old.sealed.is_empty() {
            return Ok(None);
        }
        if generation_of(&old.sealed) != Some(generation) {
            let sealed = old.sealed.clone();
            new.sealed = self.custody.rewrap_key(address.clone(), sealed, generation).await?;
        }
        if recovery_of(&old.recovery) != recovery {
            new.recovery = match recovery {
                Some(key) => {
                    self.custody.wrap_key_for_recovery(address, new.sealed.clone(), key).await?
                }
                None => Vec::new(),
            };
        }
        Ok((new != *old).then_some(new))
    }
}
