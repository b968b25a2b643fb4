//! The way under another token: what can be recovered is put under its master key, what cannot be is named
//! and left as it is.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::super::home::{counted, encode, put_home, store_key_at};
use super::super::key_form::{stored_parts, version_key};
use super::super::notes::{RESEALED, RESTORED};
use super::super::reach::REACH;
use super::super::recovery::RECOVERY;
use super::super::rotation::{PassRecord, ROTATION, Stage};
use super::super::sealing::seals_after;
use super::super::{
    HomeRecord, MasterRecord, ReachRecord, RecordError, RecoveryRecord, ResealedRecord,
    RestoredRecord, VersionRecord, address,
};
use super::begin::RESEAL;
use super::{Offline, OfflineError};
use crate::custody::generation_of;
use crate::custody::protocol::KeyAddress;
use crate::store::{Batch, Expect, Table};
use crate::token::Token;

/// What came of a reseal.
#[derive(Debug)]
pub struct Resealed {
    /// The generation that everything lies under now, save what was left.
    pub generation: u32,
    /// What could not be recovered, and why. It stays as it is, and nobody can use it.
    pub left: Vec<String>,
    /// Versions that an earlier reseal had put under another token's master, and that were done anew.
    pub anew: u64,
    /// What is not known any more of how the appliance was set up, and what was done about it.
    pub renewed: Vec<String>,
    /// Whether the record of how far the store reaches can still be opened, if there is one.
    pub reach_opens: bool,
}

/// Why a key is left whose part of the store is not what was last written.
const DIFFERS: &str = "it, or a key beside it in the store, was changed, put back or taken away outside \
    Strongroom; with [audit] on_break = \"record\" it counts as it is";

/// What a key's versions came to.
#[derive(Default)]
struct OfKey {
    left: Vec<String>,
    anew: u64,
}

impl Offline {
    /// Makes a master key and a signing key in `token` and puts everything under them that can be
    /// recovered. Goes on where an earlier call was cut off. With `adopt` the store counts as it is, also where
    /// it was changed outside Strongroom. `told` hears of every key that is done.
    ///
    /// # Errors
    /// Where store or token do not work; it is to be called again then.
    pub async fn reseal(
        &mut self,
        token: &dyn Token,
        now: jiff::Timestamp,
        adopt: bool,
        mut told: impl FnMut(u64),
    ) -> Result<Resealed, OfflineError> {
        let differ = self.check_state(adopt).await?;
        let generation = self.begin_reseal(token).await?;
        let (mut left, mut anew) = (self.lost.clone(), 0);
        let (mut after, mut done) = (None::<String>, 0);
        loop {
            let names = self.names(Table::Key, after.as_deref())?;
            for name in &names {
                let of_it = match differ.have(Table::Key, name) {
                    true => Ok(OfKey { left: vec![format!("key/{name}: {DIFFERS}")], anew: 0 }),
                    false => self.reseal_key(token, generation, name).await,
                };
                match of_it {
                    Ok(of_it) => {
                        left.extend(of_it.left);
                        anew += of_it.anew;
                    }
                    Err(error) if error.is_of_one() => left.push(format!("key/{name}: {error}")),
                    Err(error) => return Err(error),
                }
                done += 1;
                told(done);
            }
            match names.last() {
                Some(last) => after = Some(last.clone()),
                None => break,
            }
        }
        let renewed = self.end_reseal(token, generation, now, (done, &left)).await?;
        let reach_opens = match self.of_appliance::<ReachRecord>(REACH) {
            Err(RecordError::Broken(_)) => false,
            found => found.map(|_| true)?,
        };
        Ok(Resealed { generation, left, anew, renewed, reach_opens })
    }

    /// Puts a key under the new generation. A number of a generation says nothing of the token that made
    /// it: what lies under it already has to open in this one.
    async fn reseal_key(
        &self,
        token: &dyn Token,
        generation: u32,
        name: &str,
    ) -> Result<OfKey, OfflineError> {
        let mut key = self.key(name)?;
        let (mut changed, mut done) = (Vec::new(), OfKey::default());
        for (version, slot) in (1_u32..).zip(&mut key.versions) {
            let was_done = generation_of(&slot.sealed) == Some(generation);
            if slot.sealed.is_empty() || was_done && self.opens(token, (name, version), slot)? {
                continue;
            }
            let sealed = match self.resealed(token, generation, (name, version), slot) {
                Ok(sealed) => sealed,
                Err(error) if error.is_of_one() => {
                    done.left.push(error.to_string());
                    continue;
                }
                Err(error) => return Err(error),
            };
            done.anew += u64::from(was_done);
            let revision = slot.revision;
            changed.push((version, revision));
            *slot =
                Arc::new(VersionRecord { sealed, revision: revision + 1, ..slot.as_ref().clone() });
        }
        if changed.is_empty() {
            return Ok(done);
        }
        let (own, versions) = stored_parts(&key)?;
        let parsed = key.meta.name();
        let known = Some(key.revision);
        let mut batch = self.put(Batch::new(), Table::Key, name, known, &own)?;
        for (version, revision) in &changed {
            let at = version_key(parsed, *version);
            let value = versions.get(*version as usize - 1).map_or(&[][..], Vec::as_slice);
            batch = self.put(batch, Table::KeyVersion, &at, Some(*revision), value)?;
        }
        let batch = self.with_seals(batch, changed.len() as u64 + 1)?;
        self.store.commit(counted(batch)).await?;
        Ok(done)
    }

    /// Whether the token opens a version's data key.
    fn opens(
        &self,
        token: &dyn Token,
        (name, version): (&str, u32),
        record: &VersionRecord,
    ) -> Result<bool, OfflineError> {
        let address = KeyAddress { name: name.to_owned(), version };
        Ok(self.recoverer.opens(token, &address, &record.sealed)?)
    }

    /// A version's sealed key, its data key under the new master.
    fn resealed(
        &self,
        token: &dyn Token,
        generation: u32,
        (name, version): (&str, u32),
        record: &VersionRecord,
    ) -> Result<Vec<u8>, OfflineError> {
        let what = || format!("key/{name} version {version}");
        if record.recovery.is_empty() {
            return Err(OfflineError::NoWrap(what()));
        }
        let address = KeyAddress { name: name.to_owned(), version };
        let (sealed, recovery) = (&record.sealed, &record.recovery);
        let resealed = self.recoverer.reseal(token, generation, &address, sealed, recovery);
        resealed.map_err(|fault| OfflineError::NotOpened { what: what(), fault })
    }

    /// Adds a record to `batch`, sealed under the newest store key: its next revision where it is `known`.
    fn put(
        &self,
        batch: Batch,
        table: Table,
        key: &str,
        known: Option<u64>,
        value: &[u8],
    ) -> Result<Batch, OfflineError> {
        let newest = self.home.newest_store_key().id;
        let what = || format!("{}/{key}", table.as_str());
        let store_key = self.store_keys.get(&newest).ok_or_else(|| RecordError::Broken(what()))?;
        let (revision, expect) = match known {
            Some(known) => (known + 1, Expect::Revision(known)),
            None => {
                let next = self.store.next_revision(table, key)?;
                (next, Expect::AbsentAt(next))
            }
        };
        let sealed = store_key.seal(&address(table, key, revision), value);
        let sealed = sealed.map_err(|fault| OfflineError::NotOpened { what: what(), fault })?;
        Ok(batch.put(table, key, expect, sealed))
    }

    fn with_seals(&self, batch: Batch, seals: u64) -> Result<Batch, OfflineError> {
        let newest = self.home.newest_store_key().id;
        Ok(seals_after(self.store.as_ref(), newest, seals)?(batch)?)
    }

    /// Puts the new generation in use, with its signing key; all in one commit. Returns what was renewed.
    async fn end_reseal(
        &self,
        token: &dyn Token,
        generation: u32,
        now: jiff::Timestamp,
        (keys, left): (u64, &[String]),
    ) -> Result<Vec<String>, OfflineError> {
        let mut home = self.home_under(token, generation, now)?;
        let mut batch = put_home(Batch::new(), &self.home, &mut home)?.delete(
            Table::Appliance,
            RESEAL,
            Expect::Any,
        );
        for store_key in self.store_keys.values() {
            let what = "a store key".to_owned();
            let resealed = store_key.reseal(token, generation);
            let resealed = resealed.map_err(|fault| OfflineError::NotOpened { what, fault })?;
            let at = store_key_at(resealed.id);
            batch = batch.put(Table::Appliance, &at, Expect::Any, encode(&at, &resealed)?);
        }
        let mut renewed = Vec::new();
        let batch = self.go_over_all_again(batch, generation, &mut renewed)?;
        let batch = self.not_complete(batch, left, now, &mut renewed)?;
        let batch = self.without_strange_note(batch, &mut renewed)?;
        let note = ResealedRecord {
            generation,
            fingerprint: self.recoverer.fingerprint(),
            keys,
            left: left.len() as u64,
        };
        let known = self.store.get(Table::Appliance, RESEALED)?.map(|stored| stored.revision);
        let note = encode(RESEALED, &note)?;
        let batch = self.put(batch, Table::Appliance, RESEALED, known, &note)?;
        let batch = self.with_seals(batch, 3)?;
        self.store.commit(counted(batch)).await?;
        Ok(renewed)
    }

    /// The home record with the new generation in use. Master keys that the token does not hold are gone.
    fn home_under(
        &self,
        token: &dyn Token,
        generation: u32,
        now: jiff::Timestamp,
    ) -> Result<HomeRecord, OfflineError> {
        let missing = || RecordError::Broken("the new signing key".to_owned());
        let signer = token.signer(generation)?.ok_or_else(missing)?;
        let mut home = self.home.clone();
        home.generations = home.masters();
        for known in home.generations.iter_mut().filter(|known| known.retired_at.is_none()) {
            if matches!(token.master(known.generation), Ok(None)) {
                known.retired_at = Some(now);
            }
        }
        home.generations.push(MasterRecord::made(generation, now));
        home.generation = generation;
        home.signer_generation = generation;
        home.signer_point = signer.public_point.to_vec();
        Ok(home)
    }

    /// A record of the appliance and its revision; an error where nobody can open it any more.
    pub(super) fn of_appliance<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<(u64, T)>, RecordError> {
        let Some(stored) = self.store.get(Table::Appliance, key)? else { return Ok(None) };
        let revision = stored.revision;
        let value = self.open_value(Table::Appliance, key, stored)?;
        let record = serde_json::from_slice(&value);
        let record = record.map_err(|_| RecordError::Broken(format!("appliance/{key}")))?;
        Ok(Some((revision, record)))
    }

    /// A pass that had not ended goes over all keys from the first, for the generation that is in use now:
    /// the one that it was for is not in this token. Where nobody knows any more what it was, it is over.
    fn go_over_all_again(
        &self,
        batch: Batch,
        generation: u32,
        renewed: &mut Vec<String>,
    ) -> Result<Batch, OfflineError> {
        let (revision, pass) = match self.of_appliance::<PassRecord>(ROTATION) {
            Err(RecordError::Broken(at)) => {
                renewed.push(format!(
                    "the record {at} does not open: a pass that had not ended is over"
                ));
                return Ok(batch.delete(Table::Appliance, ROTATION, Expect::Any));
            }
            found => match found?.filter(|(_, pass)| pass.stage != Stage::Done) {
                Some(found) => found,
                None => return Ok(batch),
            },
        };
        let pass = PassRecord {
            generation,
            stage: Stage::Rewrapping,
            after: None,
            keys_done: 0,
            rewrapped: 0,
            broken: 0,
            ..pass
        };
        let value = encode(ROTATION, &pass)?;
        self.put(batch, Table::Appliance, ROTATION, Some(revision), &value)
    }

    /// Where something was left, not every key can be recovered, and it is not said any more. Where nobody
    /// knows any more which recovery key was set, it is the one that this is done with.
    fn not_complete(
        &self,
        batch: Batch,
        left: &[String],
        now: jiff::Timestamp,
        renewed: &mut Vec<String>,
    ) -> Result<Batch, OfflineError> {
        let (revision, set) = match self.of_appliance::<RecoveryRecord>(RECOVERY) {
            Err(RecordError::Broken(at)) => {
                renewed.push(format!(
                    "the record {at} does not open: the recovery key that this was done with is set; `strongroom                      recovery set` brings every key to it"
                ));
                let revision = self.store.next_revision(Table::Appliance, RECOVERY)? - 1;
                let (fingerprint, by) = (self.recoverer.fingerprint(), "reseal".to_owned());
                (revision, RecoveryRecord { fingerprint, set_at: now, by, complete_at: None })
            }
            found => match found?.filter(|_| !left.is_empty()) {
                Some((revision, set)) => (revision, RecoveryRecord { complete_at: None, ..set }),
                None => return Ok(batch),
            },
        };
        let value = encode(RECOVERY, &set)?;
        self.put(batch, Table::Appliance, RECOVERY, Some(revision), &value)
    }

    /// What a restore left for the trail and nobody can open goes: it would be taken for a forged one.
    fn without_strange_note(
        &self,
        batch: Batch,
        renewed: &mut Vec<String>,
    ) -> Result<Batch, OfflineError> {
        match self.of_appliance::<RestoredRecord>(RESTORED) {
            Err(RecordError::Broken(at)) => {
                renewed.push(format!(
                    "the record {at} does not open: the trail is not told of that restore"
                ));
                Ok(batch.delete(Table::Appliance, RESTORED, Expect::Any))
            }
            found => Ok(found.map(|_| batch)?),
        }
    }
}
