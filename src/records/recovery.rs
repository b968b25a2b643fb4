//! The recovery key that an operator has set, sealed like every record, and the store keys' wraps to it.
//! These lie open beside the store keys, for they are read where nothing can be unsealed; with each lies
//! its hash, sealed under the store key itself, so that custody can tell whether it is still the one.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::home::{HomeRecord, encode, plain};
use super::memo::Memo;
use super::rotation::ROTATION;
use super::{At, PassRecord, RecordError, Records, address, behind};
use crate::custody::protocol::{Fault, RecordAddress, StoreKey};
use crate::custody::{CustodyError, Fingerprint, RecoveredStoreKey, generation_of, recovery_of};
use crate::store::{Batch, Expect, Store, Stored, Table};

pub(super) const RECOVERY: &str = "recovery";
const STORE_KEY: &str = "recovery-store-key/";

/// The recovery wrap of a store key as it lies in the store.
#[derive(Serialize, Deserialize)]
struct StoredWrap {
    wrap: Vec<u8>,
    /// SHA-256 of it, sealed under the store key that it wraps. One more seal under that key, which is not
    /// counted: there are a few in its life.
    proof: Vec<u8>,
}

/// Which recovery key every key is to be wrapped to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryRecord {
    pub fingerprint: Fingerprint,
    pub set_at: Timestamp,
    /// Who set it: `unix:1000`.
    pub by: String,
    /// Since when every key is; new ones are from the start.
    pub complete_at: Option<Timestamp>,
}

/// What is known of it, once it was opened.
#[derive(Default)]
pub(super) struct Known {
    set: Memo<Stored, At<RecoveryRecord>>,
    /// The store keys that have not the wrap that they should have.
    unproved: Memo<Proved, Vec<u32>>,
}

/// What the wraps of the store keys were held against: while that is the same, so is what came of it.
#[derive(PartialEq)]
struct Proved {
    home: Arc<HomeRecord>,
    set: Option<Fingerprint>,
    /// By store key.
    wraps: Vec<Option<Stored>>,
}

impl Records {
    /// The recovery key that is set.
    pub async fn recovery(&self) -> Result<Option<RecoveryRecord>, RecordError> {
        let known = self.remembered(&self.recovery.set, RECOVERY).await?;
        Ok(known.map(|at| at.record.clone()))
    }

    /// The same with its revision.
    pub async fn recovery_at(&self) -> Result<Option<Arc<At<RecoveryRecord>>>, RecordError> {
        self.remembered(&self.recovery.set, RECOVERY).await
    }

    /// Sets the recovery key, or none, and begins the pass that brings every key to it, in one commit:
    /// in place of the pass that was kept at the revision `over`, or of none. Returns the revisions of both
    /// records, of the recovery key's first.
    ///
    /// # Errors
    /// [`RecordError::Conflict`] where that pass went on meanwhile.
    pub async fn set_recovery(
        &self,
        set: Option<&RecoveryRecord>,
        begins: &PassRecord,
        over: Option<u64>,
    ) -> Result<(u64, u64), RecordError> {
        let next = |at| self.store.next_revision(Table::Appliance, at);
        // Where there is none, none is deleted.
        let changes = set.is_some() || self.store.get(Table::Appliance, RECOVERY)?.is_some();
        let recovery = next(RECOVERY)? - u64::from(!changes);
        let pass = next(ROTATION)?;
        let batch = match set {
            // Whatever is there, and whether it opens or not.
            Some(record) => {
                let known = self.store.get(Table::Appliance, RECOVERY)?;
                self.put_recovery(known.map(|stored| stored.revision), record).await?
            }
            None => Batch::new().delete(Table::Appliance, RECOVERY, Expect::Any),
        };
        let batch = self.with_pass(batch, over, begins).await?;
        self.commit(batch).await?;
        self.release(&[behind::RECOVERY, behind::ROTATION]);
        Ok((recovery, pass))
    }

    /// Notes that every key is wrapped to the recovery key that was set as `set`.
    ///
    /// # Errors
    /// [`RecordError::Conflict`] where it is another one now.
    pub async fn complete_recovery(
        &self,
        set: &RecoveryRecord,
        now: Timestamp,
    ) -> Result<(), RecordError> {
        let known = self.remembered(&self.recovery.set, RECOVERY).await?;
        let known = known.filter(|at| at.record == *set).ok_or(RecordError::Conflict)?;
        let complete = RecoveryRecord { complete_at: Some(now), ..set.clone() };
        let batch = self.put_recovery(Some(known.revision), &complete).await?;
        self.commit(batch).await
    }

    /// Under the store key that there is: it may be what lets another one be made.
    async fn put_recovery(
        &self,
        known: Option<u64>,
        record: &RecoveryRecord,
    ) -> Result<Batch, RecordError> {
        let store_key = self.key_for_pass().await?;
        let at = (Table::Appliance, RECOVERY, known);
        self.put_sealed_under(&store_key, Batch::new(), at, record).await
    }

    /// Which recovery key a store key is wrapped to; `None` where it is to none.
    ///
    /// # Errors
    /// [`RecordError::Broken`] where the wrap is not the one that was kept.
    pub(super) async fn store_key_recovery(
        &self,
        store_key: &StoreKey,
    ) -> Result<Option<Fingerprint>, RecordError> {
        match self.store.get(Table::Appliance, &at(store_key.id))? {
            Some(stored) => self.recovery_by(store_key, stored).await.map(Some),
            None => Ok(None),
        }
    }

    /// Which recovery key this wrap of a store key is to.
    async fn recovery_by(
        &self,
        store_key: &StoreKey,
        stored: Stored,
    ) -> Result<Fingerprint, RecordError> {
        let at = at(store_key.id);
        let broken = || RecordError::Broken(format!("appliance/{at}"));
        let StoredWrap { wrap, proof } =
            serde_json::from_slice(&stored.value).map_err(|_| broken())?;
        let address = address(Table::Appliance, &at, stored.revision);
        match self.custody.open_record(store_key, address, proof).await {
            Ok(hash) if hash == digest(&wrap) => recovery_of(&wrap).ok_or_else(broken),
            Ok(_) | Err(CustodyError::Fault(Fault::SealBroken)) => Err(broken()),
            Err(error) => Err(error.into()),
        }
    }

    /// The store keys that have not the wrap to the recovery key that is set, or another one than was
    /// kept. Those that are gone themselves do not count.
    pub async fn unproved_store_keys(&self) -> Result<Arc<Vec<u32>>, RecordError> {
        let home = self.home().ok_or(RecordError::NotInitialised)?;
        let set = self.recovery().await?.map(|set| set.fingerprint);
        let wrap = |store_key: &StoreKey| self.store.get(Table::Appliance, &at(store_key.id));
        let wraps = home.store_keys.iter().map(wrap).collect::<Result<_, _>>()?;
        let by = Proved { home, set, wraps };
        if let Some(known) = self.recovery.unproved.of(&by) {
            return Ok(known);
        }
        let mut unproved = Vec::new();
        for (store_key, wrap) in by.home.store_keys.iter().zip(&by.wraps) {
            if by.home.is_gone(generation_of(&store_key.wrapped)) {
                continue;
            }
            let found = match wrap.clone() {
                Some(stored) => self.recovery_by(store_key, stored).await.map(Some),
                None => Ok(None),
            };
            match found {
                Ok(found) if found == set => {}
                Ok(_) | Err(RecordError::Broken(_)) => unproved.push(store_key.id),
                Err(error) => return Err(error),
            }
        }
        Ok(self.recovery.unproved.keep(by, unproved))
    }

    /// Gives every store key the recovery wrap that is set, or takes it away.
    pub async fn wrap_store_keys(&self, key: Option<Fingerprint>) -> Result<(), RecordError> {
        let _no_new_store_key = self.count.lock().await;
        let home = self.home().ok_or(RecordError::NotInitialised)?;
        let mut batch = Batch::new();
        let mut changed = false;
        for store_key in &home.store_keys {
            if home.is_gone(generation_of(&store_key.wrapped)) {
                continue;
            }
            match self.store_key_recovery(store_key).await {
                Ok(found) if found == key => continue,
                // One that was changed outside is made anew.
                Ok(_) | Err(RecordError::Broken(_)) => {}
                Err(error) => return Err(error),
            }
            changed = true;
            batch = match key {
                Some(_) => self.put_store_key_recovery(batch, store_key, key).await?,
                None => batch.delete(Table::Appliance, &at(store_key.id), Expect::Any),
            };
        }
        if changed {
            self.commit(batch).await?;
        }
        Ok(())
    }

    /// Adds the recovery wrap of a store key to `batch`, where a recovery key is set.
    pub(super) async fn put_store_key_recovery(
        &self,
        batch: Batch,
        store_key: &StoreKey,
        key: Option<Fingerprint>,
    ) -> Result<Batch, RecordError> {
        let Some(key) = key else { return Ok(batch) };
        let wrap = self.custody.wrap_store_key_for_recovery(store_key.clone(), key).await?;
        let (at, address, expect) = next_wrap(self.store.as_ref(), store_key.id)?;
        let proof = self.custody.seal_record(store_key, address, digest(&wrap).to_vec()).await?;
        let value = encode(&at, &StoredWrap { wrap, proof })?;
        Ok(batch.put(Table::Appliance, &at, expect, value))
    }
}

fn digest(wrap: &[u8]) -> [u8; 32] {
    Sha256::digest(wrap).into()
}

/// Where the next wrap of a store key goes: its place, its address, and what is expected there.
fn next_wrap(store: &dyn Store, id: u32) -> Result<(String, RecordAddress, Expect), RecordError> {
    let at = at(id);
    let revision = store.next_revision(Table::Appliance, &at)?;
    let expect = match store.get(Table::Appliance, &at)? {
        Some(stored) => Expect::Revision(stored.revision),
        None => Expect::AbsentAt(revision),
    };
    let address = address(Table::Appliance, &at, revision);
    Ok((at, address, expect))
}

/// Adds the recovery wrap of a store key that was made without custody.
pub(super) fn put_recovered_store_key(
    store: &dyn Store,
    batch: Batch,
    store_key: &RecoveredStoreKey,
    wrap: Vec<u8>,
) -> Result<Batch, RecordError> {
    let (at, address, expect) = next_wrap(store, store_key.id())?;
    let proof = store_key.seal(&address, &digest(&wrap)).map_err(CustodyError::Fault)?;
    let value = encode(&at, &StoredWrap { wrap, proof })?;
    Ok(batch.put(Table::Appliance, &at, expect, value))
}

/// Where the recovery wrap of a store key lies.
pub(super) fn at(id: u32) -> String {
    format!("{STORE_KEY}{id:010}")
}

/// The recovery wrap of a store key, from a store; empty where it has none.
pub(super) fn read_store_key_recovery(store: &dyn Store, id: u32) -> Result<Vec<u8>, RecordError> {
    let stored: Option<StoredWrap> = plain(store, &at(id))?;
    Ok(stored.map(|stored| stored.wrap).unwrap_or_default())
}
