//! The recovery key that an operator has set, sealed like every record, and the store keys' wraps to it.
//! These lie open beside the store keys, for they are read where nothing can be unsealed; with each lies
//! its hash, sealed under the store key itself, so that custody can tell whether it is still the one.

use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::home::{encode, plain};
use super::{At, PassRecord, RecordError, Records, address};
use crate::custody::protocol::{Fault, RecordAddress, StoreKey};
use crate::custody::{CustodyError, Fingerprint, RecoveredStoreKey, generation_of, recovery_of};
use crate::store::{Batch, Expect, Store, Table};

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

/// The record, or that there is none.
type Set = Option<Arc<RecoveryRecord>>;

/// What is known of it, once it was read.
#[derive(Default)]
pub(super) struct Known {
    set: RwLock<Option<Set>>,
    /// The store keys that have not the wrap that they should have.
    unproved: RwLock<Option<Arc<Vec<u32>>>>,
}

impl Records {
    /// The recovery key that is set.
    pub async fn recovery(&self) -> Result<Option<Arc<RecoveryRecord>>, RecordError> {
        if let Some(known) = &*self.recovery.set.read().unwrap_or_else(PoisonError::into_inner) {
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
            Some(pass) => self.with_pass(batch, pass).await?,
            None => batch,
        };
        // Should it be open whether it was kept, it is read again.
        self.know_recovery(None);
        if begins.is_some() {
            self.know_pass(None);
        }
        self.commit(batch).await?;
        self.know_recovery(Some(set.map(Arc::new)));
        if let Some(pass) = begins {
            self.know_pass(Some(Some(pass.clone())));
        }
        Ok(())
    }

    fn know_recovery(&self, known: Option<Set>) {
        *self.recovery.set.write().unwrap_or_else(PoisonError::into_inner) = known;
        *self.recovery.unproved.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Which recovery key a store key is wrapped to; `None` where it is to none.
    ///
    /// # Errors
    /// [`RecordError::Broken`] where the wrap is not the one that was kept.
    pub(super) async fn store_key_recovery(
        &self,
        store_key: &StoreKey,
    ) -> Result<Option<Fingerprint>, RecordError> {
        let at = at(store_key.id);
        let broken = || RecordError::Broken(format!("appliance/{at}"));
        let Some(stored) = self.store.get(Table::Appliance, &at)? else { return Ok(None) };
        let StoredWrap { wrap, proof } =
            serde_json::from_slice(&stored.value).map_err(|_| broken())?;
        let address = address(Table::Appliance, &at, stored.revision);
        match self.custody.open_record(store_key, address, proof).await {
            Ok(hash) if hash == digest(&wrap) => recovery_of(&wrap).map(Some).ok_or_else(broken),
            Ok(_) | Err(CustodyError::Fault(Fault::SealBroken)) => Err(broken()),
            Err(error) => Err(error.into()),
        }
    }

    /// The store keys that have not the wrap to the recovery key that is set, or another one than was
    /// kept. Those that are gone themselves do not count.
    pub async fn unproved_store_keys(&self) -> Result<Arc<Vec<u32>>, RecordError> {
        let known = self.recovery.unproved.read().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(known) => Ok(known),
            None => self.prove_store_keys().await,
        }
    }

    /// Looks for them anew.
    pub(super) async fn prove_store_keys(&self) -> Result<Arc<Vec<u32>>, RecordError> {
        let home = self.home().ok_or(RecordError::NotInitialised)?;
        let set = self.recovery().await?.map(|set| set.fingerprint);
        let mut unproved = Vec::new();
        for store_key in &home.store_keys {
            if home.is_gone(generation_of(&store_key.wrapped)) {
                continue;
            }
            match self.store_key_recovery(store_key).await {
                Ok(found) if found == set => {}
                Ok(_) | Err(RecordError::Broken(_)) => unproved.push(store_key.id),
                Err(error) => return Err(error),
            }
        }
        let unproved = Arc::new(unproved);
        let mut known = self.recovery.unproved.write().unwrap_or_else(PoisonError::into_inner);
        *known = Some(Arc::clone(&unproved));
        Ok(unproved)
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
        drop(_no_new_store_key);
        self.prove_store_keys().await.map(drop)
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
