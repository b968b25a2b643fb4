//! Which store key seals, and how often it has: AES-GCM with random IVs stays safe only for a bounded
//! number of seals under one key (2^32, NIST SP 800-38D §8.3), so a new one comes long before.
//!
//! The count lies open in the store, for it is written where sealing begins. Whoever takes it back has a
//! store key seal as much again, at most, as it was to: a quarter of the bound, each time, and that many
//! seals in between. A higher one brings the next store key early, and nothing else.
//!
//! Seals are counted ahead, in blocks that are durable before the first of them is used. What was
//! reserved and not used when the process ended counts as used.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::home::{encode, plain, put_store_key};
use super::{HomeRecord, RecordError, Records};
use crate::custody::protocol::{Fault, Outage, Reason, StoreKey};
use crate::custody::{CustodyError, generation_of};
use crate::store::{Batch, Expect, Store, Table};

const SEALS: &str = "seals";

/// Seals that are reserved at once.
const BLOCK: u64 = 65_536;

/// How the newest store key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Reserved {
    store_key: u32,
    seals: u64,
}

/// The count in memory: what is used of what is reserved.
#[derive(Debug, Default)]
pub struct Count {
    store_key: u32,
    used: u64,
    reserved: u64,
}

impl Count {
    /// Goes on behind everything that was reserved before.
    pub(super) fn read(store: &dyn Store) -> Result<Self, RecordError> {
        let reserved: Option<Reserved> = plain(store, SEALS)?;
        Ok(reserved.map_or_else(Self::default, |Reserved { store_key, seals }| Self {
            store_key,
            used: seals,
            reserved: seals,
        }))
    }
}

/// Counts `seals` more under the newest store key, in the batch that they are for: where nobody else
/// works with the store.
pub(super) fn seals_after(
    store: &dyn Store,
    store_key: u32,
    seals: u64,
) -> Result<impl FnOnce(Batch) -> Result<Batch, RecordError>, RecordError> {
    let known: Option<Reserved> = plain(store, SEALS)?;
    let before = known.filter(|known| known.store_key == store_key).map_or(0, |known| known.seals);
    let value = encode(SEALS, &Reserved { store_key, seals: before.saturating_add(seals) });
    Ok(move |batch: Batch| Ok(batch.put(Table::Appliance, SEALS, Expect::Any, value?)))
}

fn busy() -> RecordError {
    CustodyError::Fault(Fault::Busy).into()
}

impl Records {
    /// The store key for one more seal, counted. Whoever comes while the store keys change waits no longer
    /// than for custody itself.
    pub(super) async fn key_to_seal(&self) -> Result<StoreKey, RecordError> {
        self.counted_key(true).await
    }

    /// The same for a pass over all keys, which waits for no other store key: it may be what brings a
    /// token or a recovery key with which one can be made. Its seals count, and go a little over the bound
    /// of one store key.
    pub(super) async fn key_for_pass(&self) -> Result<StoreKey, RecordError> {
        self.counted_key(false).await
    }

    async fn counted_key(&self, may_be_next: bool) -> Result<StoreKey, RecordError> {
        let until = Instant::now() + self.custody.deadline();
        let mut count = timeout_at(until, self.count.lock()).await.map_err(|_| busy())?;
        let mut home = self.home().ok_or(RecordError::NotInitialised)?;
        let is_full = count.used >= self.seals_per_store_key;
        if may_be_next && count.store_key == home.newest_store_key().id && is_full {
            home = self.next_store_key(&home, until).await?;
        }
        let newest = home.newest_store_key();
        if count.store_key != newest.id {
            *count = Count { store_key: newest.id, used: 0, reserved: 0 };
        }
        if count.used >= count.reserved {
            let most = self.seals_per_store_key.max(count.used.saturating_add(1));
            let seals = count.reserved.saturating_add(BLOCK).min(most);
            let value = encode(SEALS, &Reserved { store_key: newest.id, seals })?;
            // One small record in 65 536 seals: what closes something is sealed whatever room there is.
            let batch = Batch::new().put(Table::Appliance, SEALS, Expect::Any, value);
            self.store.commit(batch.from_reserve()).await?;
            count.reserved = seals;
        }
        count.used = count.used.saturating_add(1);
        Ok(newest.clone())
    }

    /// The store key that a sealed record names.
    pub(super) fn key_to_open(&self, id: u32) -> Result<StoreKey, RecordError> {
        let home = self.home().ok_or(RecordError::NotInitialised)?;
        let counts = id >= home.first_store_key();
        let found = home.store_keys.iter().find(|key| key.id == id && counts);
        // One that was not recovered when its token was lost opens nothing any more.
        let found = found.filter(|key| !home.is_gone(generation_of(&key.wrapped))).cloned();
        found.ok_or_else(|| RecordError::Broken(format!("sealed under store key {id}")))
    }

    /// Makes a new store key and keeps it beside the old ones, which go on opening.
    async fn next_store_key(
        &self,
        home: &HomeRecord,
        until: Instant,
    ) -> Result<Arc<HomeRecord>, RecordError> {
        let id = home.newest_store_key().id + 1;
        let made = async {
            let store_key = self.custody.new_store_key(id, home.first_store_key()).await?;
            // Custody has not heard of the generation in use yet.
            if !home.is_under(&store_key) {
                return Err(busy());
            }
            let batch = put_store_key(Batch::new(), &store_key)?;
            let recovery = self.recovery().await?.map(|set| set.fingerprint);
            let batch = self.put_store_key_recovery(batch, &store_key, recovery).await?;
            Ok((batch, store_key))
        };
        let why = "custody did not answer in time";
        let too_late = |_| CustodyError::Away(Outage::new(Reason::CustodySilent, why));
        let (batch, store_key) = timeout_at(until, made).await.map_err(too_late)??;
        self.keep_store_key(home, batch, store_key).await
    }

    /// Keeps a store key that was made. Where an earlier one was kept, and it was not known that it was,
    /// that one seals from now on.
    pub(super) async fn keep_store_key(
        &self,
        home: &HomeRecord,
        batch: Batch,
        store_key: StoreKey,
    ) -> Result<Arc<HomeRecord>, RecordError> {
        let id = store_key.id;
        let home = match self.store.commit(batch).await {
            Ok(()) => {
                let mut next = home.clone();
                next.store_keys.push(store_key);
                self.replace_home(next)
            }
            // After a failure of the disk it is open whether it was done.
            Err(error) => match self.read_home_again() {
                Ok(Some(found)) if found.newest_store_key().id >= id => found,
                _ => return Err(error.into()),
            },
        };
        let id = home.newest_store_key().id;
        tracing::info!(id, "a new store key seals records from now on");
        Ok(home)
    }
}
