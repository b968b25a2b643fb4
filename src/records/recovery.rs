//! The recovery key that an operator has set, sealed like every record, and the store keys' wraps to it,
//! which prove themselves and lie beside the store keys.

use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::home::{encode, plain};
use super::rotation::put_pass;
use super::{At, PassRecord, RecordError, Records};
use crate::custody::protocol::StoreKey;
use crate::custody::{Fingerprint, RecoveredStoreKey, generation_of, recovery_of};
use crate::store::{Batch, Expect, Store, Table};

pub(super) const RECOVERY: &str = "recovery";
const STORE_KEY: &str = "recovery-store-key/";

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

/// What is known of the record, once it was read.
pub(super) type Known = Option<Option<Arc<RecoveryRecord>>>;

impl Records {
    /// The recovery key that is set.
    pub async fn recovery(&self) -> Result<Option<Arc<RecoveryRecord>>, RecordError> {
        if let Some(known) = &*self.recovery.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(known.clone());
        }
        let read = self.load::<RecoveryRecord>(Table::Appliance, RECOVERY).await?;
        let read = read.map(|at| Arc::new(at.record));
        self.know_recovery(Some(read.clone()));
        Ok(read)
    }

    /// Sets the recovery key, or none, and begins the pass that brings every key to it, in one commit.
    /// There is one caller at a time.
    pub async fn set_recovery(
        &self,
        set: Option<RecoveryRecord>,
        begins: Option<&PassRecord>,
    ) -> Result<(), RecordError> {
        let known = self.load::<RecoveryRecord>(Table::Appliance, RECOVERY).await?;
        let known = known.map(|At { revision, .. }| revision);
        let batch = Batch::new();
        let batch = match &set {
            Some(record) => {
                self.sealed_put(batch, Table::Appliance, RECOVERY, known, record).await?
            }
            None => batch.delete(Table::Appliance, RECOVERY, Expect::Any),
        };
        let batch = match begins {
            Some(pass) => put_pass(batch, pass)?,
            None => batch,
        };
        // Should it be open whether it was kept, it is read again.
        self.know_recovery(None);
        self.commit(batch).await?;
        self.know_recovery(Some(set.map(Arc::new)));
        Ok(())
    }

    fn know_recovery(&self, known: Known) {
        *self.recovery.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// The recovery wrap of a store key; empty where it has none.
    pub fn store_key_recovery(&self, id: u32) -> Result<Vec<u8>, RecordError> {
        read_store_key_recovery(self.store.as_ref(), id)
    }

    /// Gives every store key the recovery wrap that is set, or takes it away.
    pub async fn wrap_store_keys(&self, key: Option<Fingerprint>) -> Result<(), RecordError> {
        let _no_new_store_key = self.count.lock().await;
        let home = self.home().ok_or(RecordError::NotInitialised)?;
        let mut batch = Batch::new();
        let mut changed = false;
        for store_key in &home.store_keys {
            let is_gone = home.is_gone(generation_of(&store_key.wrapped));
            if is_gone || recovery_of(&self.store_key_recovery(store_key.id)?) == key {
                continue;
            }
            changed = true;
            batch = match key {
                Some(_) => self.put_store_key_recovery(batch, store_key, key).await?,
                None => batch.delete(Table::Appliance, &at(store_key.id), Expect::Any),
            };
        }
        if changed { self.commit(batch).await } else { Ok(()) }
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
        let at = at(store_key.id);
        let value = encode(&at, &wrap)?;
        Ok(batch.put(Table::Appliance, &at, Expect::Any, value))
    }
}

/// Adds the recovery wrap of a store key that was made without custody.
pub(super) fn put_recovered_store_key(
    batch: Batch,
    store_key: &RecoveredStoreKey,
    wrap: &[u8],
) -> Result<Batch, RecordError> {
    let at = at(store_key.id());
    let value = encode(&at, wrap)?;
    Ok(batch.put(Table::Appliance, &at, Expect::Any, value))
}

/// Where the recovery wrap of a store key lies.
fn at(id: u32) -> String {
    format!("{STORE_KEY}{id:010}")
}

/// The recovery wrap of a store key, from a store; empty where it has none.
pub(super) fn read_store_key_recovery(store: &dyn Store, id: u32) -> Result<Vec<u8>, RecordError> {
    Ok(plain(store, &at(id))?.unwrap_or_default())
}
