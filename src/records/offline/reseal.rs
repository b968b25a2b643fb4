//! The way under another token: what can be recovered is put under its master key, what cannot be is named
//! and left as it is.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::home::{HOME, counted, encode, plain, store_key_at};
use super::super::keys::{stored_parts, version_key};
use super::super::notes::RESEALED;
use super::super::recovery::{RECOVERY, put_recovered_store_key};
use super::super::rotation::{PassRecord, ROTATION, Stage};
use super::super::sealing::seals_after;
use super::super::{
    HomeRecord, MasterRecord, RecordError, RecoveryRecord, ResealedRecord, VersionRecord, address,
};
use super::{Offline, OfflineError};
use crate::custody::protocol::KeyAddress;
use crate::custody::{generation_of, token_opens};
use crate::store::{Batch, Expect, Table};
use crate::token::Token;

/// Where a reseal that has begun says which generation it makes.
const RESEAL: &str = "reseal";

/// A reseal that has begun.
#[derive(Serialize, Deserialize)]
struct Reseal {
    generation: u32,
}

/// What came of a reseal.
#[derive(Debug)]
pub struct Resealed {
    /// The generation that everything lies under now, save what was left.
    pub generation: u32,
    /// What could not be recovered, and why. It stays as it is, and nobody can use it.
    pub left: Vec<String>,
}

impl Offline {
    /// Makes a master key and a signing key in `token` and puts everything under them that can be
    /// recovered. Goes on where an earlier call was cut off. `told` hears of every key that is done.
    ///
    /// # Errors
    /// Where store or token do not work; it is to be called again then.
    pub async fn reseal(
        &mut self,
        token: &dyn Token,
        now: jiff::Timestamp,
        mut told: impl FnMut(u64),
    ) -> Result<Resealed, OfflineError> {
        let generation = self.begin_reseal(token).await?;
        let mut left = self.lost.clone();
        let (mut after, mut done) = (None::<String>, 0);
        loop {
            let names = self.names(Table::Key, after.as_deref())?;
            for name in &names {
                match self.reseal_key(token, generation, name).await {
                    Ok(of_it) => left.extend(of_it),
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
        self.end_reseal(token, generation, now, (done, &left)).await?;
        Ok(Resealed { generation, left })
    }

    /// Looks whether this is a token for a reseal, and changes nothing: one that is empty, or that an
    /// earlier call began with; returns the generation that it makes. `same_token`: also the one that the
    /// store lies under.
    ///
    /// # Errors
    /// [`OfflineError::TokenOpens`] where it opens the store, [`OfflineError::TokenInUse`] where it is
    /// another appliance's.
    pub fn plan(&self, token: &dyn Token, same_token: bool) -> Result<u32, OfflineError> {
        /// Generations that a token is searched for behind the newest that is known.
        const BEHIND: u32 = 16;
        let generation = self.next_generation();
        let was_begun = self.was_begun(generation)?;
        let mut opens = None;
        let in_use = self.home.generation;
        if token.master(in_use)?.is_some() {
            for store_key in self.home.store_keys.iter().rev() {
                let lies_there = generation_of(&store_key.wrapped) == Some(in_use);
                if lies_there && token_opens(token, &self.home.appliance, store_key)? {
                    opens = Some(in_use);
                    break;
                }
            }
        }
        match opens {
            Some(in_use) if !same_token => return Err(OfflineError::TokenOpens(in_use)),
            _ => {}
        }
        for place in 1..=generation + BEHIND {
            let is_ours = opens.is_some() && place < generation || was_begun && place == generation;
            if !is_ours && (token.master(place)?.is_some() || token.signer(place)?.is_some()) {
                return Err(OfflineError::TokenInUse(place));
            }
        }
        Ok(generation)
    }

    fn next_generation(&self) -> u32 {
        let newest = self.home.masters().iter().map(|known| known.generation).max().unwrap_or(0);
        newest.max(self.home.generation) + 1
    }

    fn was_begun(&self, generation: u32) -> Result<bool, OfflineError> {
        let begun = plain::<Reseal>(self.store.as_ref(), RESEAL)?;
        Ok(begun.is_some_and(|begun| begun.generation == generation))
    }

    /// Notes which generation is to be made, and makes it.
    async fn begin_reseal(&mut self, token: &dyn Token) -> Result<u32, OfflineError> {
        let generation = self.next_generation();
        let was_begun = self.was_begun(generation)?;
        let (master, signer) = (token.master(generation)?, token.signer(generation)?);
        if !was_begun {
            if master.is_some() || signer.is_some() {
                return Err(OfflineError::TokenInUse(generation));
            }
            let value = encode(RESEAL, &Reseal { generation })?;
            self.store
                .commit(Batch::new().put(Table::Appliance, RESEAL, Expect::Any, value))
                .await?;
        }
        if master.is_none() {
            token.create_master(generation)?;
        }
        if signer.is_none() {
            token.create_signer(generation)?;
        }
        token.canary(generation)?;
        self.have_a_store_key_that_seals(token, generation).await?;
        Ok(generation)
    }

    /// Where the newest store key is lost, another one takes its place: nothing could be sealed.
    async fn have_a_store_key_that_seals(
        &mut self,
        token: &dyn Token,
        generation: u32,
    ) -> Result<(), OfflineError> {
        let newest = self.home.newest_store_key().id;
        if self.store_keys.contains_key(&newest) {
            return Ok(());
        }
        let id = newest + 1;
        let what = || format!("store key {id}");
        let failed = |fault| OfflineError::NotOpened { what: what(), fault };
        let (made, wrap) = self.recoverer.new_store_key(id).map_err(failed)?;
        let stored = made.reseal(token, generation).map_err(failed)?;
        let at = store_key_at(id);
        let value = encode(&at, &stored)?;
        let batch = Batch::new().put(Table::Appliance, &at, Expect::Absent, value);
        let batch = put_recovered_store_key(self.store.as_ref(), batch, &made, wrap)?;
        self.store.commit(counted(batch)).await?;
        self.home.store_keys.push(stored);
        self.store_keys.insert(id, made);
        Ok(())
    }

    /// Puts a key under the new generation; returns which of its versions could not be.
    async fn reseal_key(
        &self,
        token: &dyn Token,
        generation: u32,
        name: &str,
    ) -> Result<Vec<String>, OfflineError> {
        let mut key = self.key(name)?;
        let (mut changed, mut left) = (Vec::new(), Vec::new());
        for (version, slot) in (1_u32..).zip(&mut key.versions) {
            if slot.sealed.is_empty() || generation_of(&slot.sealed) == Some(generation) {
                continue;
            }
            let sealed = match self.resealed(token, generation, (name, version), slot) {
                Ok(sealed) => sealed,
                Err(error) if error.is_of_one() => {
                    left.push(error.to_string());
                    continue;
                }
                Err(error) => return Err(error),
            };
            let revision = slot.revision;
            changed.push((version, revision));
            *slot =
                Arc::new(VersionRecord { sealed, revision: revision + 1, ..slot.as_ref().clone() });
        }
        if changed.is_empty() {
            return Ok(left);
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
        Ok(left)
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

    /// Puts the new generation in use, with its signing key; all in one commit.
    async fn end_reseal(
        &self,
        token: &dyn Token,
        generation: u32,
        now: jiff::Timestamp,
        (keys, left): (u64, &[String]),
    ) -> Result<(), OfflineError> {
        let home = self.home_under(token, generation, now)?;
        let mut batch = Batch::new()
            .put(Table::Appliance, HOME, Expect::Any, encode(HOME, &home)?)
            .delete(Table::Appliance, RESEAL, Expect::Any);
        for store_key in self.store_keys.values() {
            let what = "a store key".to_owned();
            let resealed = store_key.reseal(token, generation);
            let resealed = resealed.map_err(|fault| OfflineError::NotOpened { what, fault })?;
            let at = store_key_at(resealed.id);
            batch = batch.put(Table::Appliance, &at, Expect::Any, encode(&at, &resealed)?);
        }
        let batch = self.go_over_all_again(batch, generation)?;
        let batch = self.not_complete(batch, left)?;
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
        Ok(self.store.commit(counted(batch)).await?)
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
        home.generations.push(MasterRecord { generation, created_at: now, retired_at: None });
        home.generation = generation;
        home.signer_generation = generation;
        home.signer_point = signer.public_point.to_vec();
        Ok(home)
    }

    /// A pass that had not ended goes over all keys from the first, for the generation that is in use now:
    /// the one that it was for is not in this token.
    fn go_over_all_again(&self, batch: Batch, generation: u32) -> Result<Batch, OfflineError> {
        let Some(stored) = self.store.get(Table::Appliance, ROTATION)? else { return Ok(batch) };
        let revision = stored.revision;
        let opened = self.open_value(Table::Appliance, ROTATION, stored).ok();
        let pass = opened.and_then(|value| serde_json::from_slice::<PassRecord>(&value).ok());
        let Some(pass) = pass.filter(|pass| pass.stage != Stage::Done) else { return Ok(batch) };
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

    /// Where something was left, not every key can be recovered, and it is not said any more.
    fn not_complete(&self, batch: Batch, left: &[String]) -> Result<Batch, OfflineError> {
        let Some(stored) = self.store.get(Table::Appliance, RECOVERY)? else { return Ok(batch) };
        if left.is_empty() {
            return Ok(batch);
        }
        let revision = stored.revision;
        let opened = self.open_value(Table::Appliance, RECOVERY, stored).ok();
        let set = opened.and_then(|value| serde_json::from_slice::<RecoveryRecord>(&value).ok());
        let Some(set) = set else { return Ok(batch) };
        let value = encode(RECOVERY, &RecoveryRecord { complete_at: None, ..set })?;
        self.put(batch, Table::Appliance, RECOVERY, Some(revision), &value)
    }
}
