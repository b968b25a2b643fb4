//! Keeps: typed records over the store, each sealed by custody under its own address and revision.
//!
//! [`Records`] opens and seals; what it opened it keeps in memory, so that a key in use costs neither
//! disk nor custody. The front is the store's only writer, so what is kept is what is stored.

mod anew;
mod behind;
mod census;
mod check;
mod clock;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod home;
#[cfg(test)]
mod in_memory_tests;
mod key_form;
mod keys;
mod memo;
mod notes;
mod offline;
mod opened;
mod reach;
mod recovery;
mod rotation;
mod sealing;
mod secrets;
mod state;
mod waiting;
mod wraps;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::custody::protocol::{RecordAddress, StoreKey};
use crate::custody::store_key_of;
use crate::custody::{Client, CustodyError};
use crate::key::Name;
use crate::store::{Batch, Expect, Store, StoreError, Stored, Table};

pub use behind::{RECOVERY, ROTATION};
pub use census::{Census, Dependents};
pub use check::Checked;
pub use clock::{ClockRecord, keep_clock, read_clock};
pub use home::{
    Destroying, HomeRecord, LockRecord, MasterRecord, Retirement, read_head, read_home, read_locked,
};
pub use keys::{KeyRecord, VersionRecord};
pub use notes::{Note, ResealedRecord, RestoredRecord};
pub use offline::{Offline, OfflineError, Planned, Resealed};
pub use opened::{SEALS_PER_STORE_KEY, Settings};
pub use reach::ReachRecord;
pub use recovery::RecoveryRecord;
pub use rotation::{Line, PassRecord, Purpose, Stage};
pub use secrets::SecretRecord;

use behind::Behind;
use memo::Memo;
use opened::Opened;
use sealing::Count;
use waiting::Waiting;

/// Why a record was not read or kept.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Nothing was initialised here: there is no store key to open records with.
    #[error("this appliance is not initialised")]
    NotInitialised,
    /// Somebody else changed the record in between, or it is there already.
    #[error("the record was changed by somebody else meanwhile")]
    Conflict,
    /// A record did not open under its address, or does not hold what belongs there.
    #[error("the record {0} was changed outside Strongroom, or belongs elsewhere")]
    Broken(String),
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    Custody(#[from] CustodyError),
}

impl From<StoreError> for RecordError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict { .. } => RecordError::Conflict,
            StoreError::Strange { place } => RecordError::Broken(place),
            other => RecordError::Store(other),
        }
    }
}

/// The records of one appliance.
pub struct Records {
    store: Arc<dyn Store>,
    custody: Client,
    home: RwLock<Option<Arc<HomeRecord>>>,
    opened: Opened,
    behind: Behind,
    waiting: Waiting,
    wraps: wraps::Odd,
    count: tokio::sync::Mutex<Count>,
    seals_per_store_key: u64,
    changes: AtomicU64,
    recovery: recovery::Known,
    pass: Memo<Stored, At<PassRecord>>,
    owners: secrets::Owners,
    reach: reach::Reach,
    state: state::State,
}

/// A record and the revision it was read at: what a change has to expect.
#[derive(Debug, Clone)]
pub struct At<T> {
    pub revision: u64,
    pub record: T,
}

/// Records in the order of their names.
#[derive(Debug)]
pub struct Listed<T> {
    pub found: Vec<T>,
    /// Those that do not open, or do not hold what belongs there. The journal says what is wrong.
    pub broken: Vec<Name>,
    /// The last name of this page, unless it is the last page.
    pub next: Option<Name>,
}

impl Records {
    /// Reads what the appliance is; it may not be initialised yet.
    pub fn open(
        store: Arc<dyn Store>,
        custody: Client,
        settings: &Settings,
    ) -> Result<Self, RecordError> {
        let home = home::read_home(store.as_ref())?.map(Arc::new);
        let count = tokio::sync::Mutex::new(Count::read(store.as_ref())?);
        let changes = AtomicU64::new(home::read_changes(store.as_ref())?);
        let (opened, seals_per_store_key) = (Opened::new(settings), settings.seals_per_store_key);
        let home = RwLock::new(home);
        let (behind, recovery) = (Behind::default(), recovery::Known::default());
        let waiting = Waiting::default();
        Ok(Self {
            store,
            custody,
            home,
            opened,
            behind,
            waiting,
            wraps: wraps::Odd::default(),
            count,
            seals_per_store_key,
            changes,
            recovery,
            pass: Memo::default(),
            owners: secrets::Owners::default(),
            reach: reach::Reach::default(),
            state: state::State::default(),
        })
    }

    /// Reads a record's plain value and opens it.
    async fn open_value<T: DeserializeOwned>(
        &self,
        table: Table,
        key: &str,
        stored: Stored,
    ) -> Result<At<T>, RecordError> {
        self.must_not_be_behind(table, key)?;
        let address = address(table, key, stored.revision);
        let broken = || RecordError::Broken(format!("{}/{key}", table.as_str()));
        let id = store_key_of(&stored.value).ok_or_else(broken)?;
        let store_key = self.key_to_open(id)?;
        let value = match self.custody.open_record(&store_key, address, stored.value).await {
            Err(CustodyError::Fault(crate::custody::protocol::Fault::SealBroken)) => {
                return Err(broken());
            }
            other => other?,
        };
        let record = serde_json::from_slice(&value).map_err(|_| broken())?;
        Ok(At { revision: stored.revision, record })
    }

    async fn load<T: DeserializeOwned>(
        &self,
        table: Table,
        key: &str,
    ) -> Result<Option<At<T>>, RecordError> {
        self.must_not_be_behind(table, key)?;
        match self.store.get(table, key)? {
            Some(stored) => Ok(Some(self.open_value(table, key, stored).await?)),
            None => Ok(None),
        }
    }

    /// What lies at an address of the appliance's own, opened once for as long as it lies there.
    async fn remembered<T: DeserializeOwned>(
        &self,
        memo: &Memo<Stored, At<T>>,
        key: &str,
    ) -> Result<Option<Arc<At<T>>>, RecordError> {
        self.must_not_be_behind(Table::Appliance, key)?;
        let Some(stored) = self.store.get(Table::Appliance, key)? else { return Ok(None) };
        if let Some(known) = memo.of(&stored) {
            return Ok(Some(known));
        }
        let at = self.open_value(Table::Appliance, key, stored.clone()).await?;
        Ok(Some(memo.keep(stored, at)))
    }

    /// Up to `limit` names that begin so, with what is stored under them, after `after`. What lies under no name that
    /// could be asked for is passed over.
    fn named(
        &self,
        table: Table,
        prefix: &str,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<(Name, Stored)>, RecordError> {
        let mut after = after.map(Name::to_string);
        let mut found = Vec::new();
        while found.len() < limit {
            let wanted = limit - found.len();
            let page = self.store.scan(table, prefix, after.as_deref(), wanted)?;
            let is_last = page.len() < wanted;
            after = page.last().map(|(key, _)| key.clone());
            for (key, stored) in page {
                match Name::parse(&key) {
                    Ok(name) => found.push((name, stored)),
                    Err(_) => {
                        tracing::error!(table = table.as_str(), ?key, "a record has no name");
                    }
                }
            }
            if is_last {
                break;
            }
        }
        Ok(found)
    }

    /// Adds a sealed put to `batch`: a new record where `known` is `None`, else its next revision.
    async fn sealed_put<T: Serialize>(
        &self,
        batch: Batch,
        table: Table,
        key: &str,
        known: Option<u64>,
        record: &T,
    ) -> Result<Batch, RecordError> {
        let store_key = self.key_to_seal().await?;
        self.put_sealed_under(&store_key, batch, (table, key, known), record).await
    }

    async fn put_sealed_under<T: Serialize>(
        &self,
        store_key: &StoreKey,
        batch: Batch,
        (table, key, known): (Table, &str, Option<u64>),
        record: &T,
    ) -> Result<Batch, RecordError> {
        // The appliance's own records are made anew whatever is there.
        if table != Table::Appliance {
            self.must_not_be_behind(table, key)?;
        }
        let (revision, expect) = match known {
            Some(known) => (known + 1, Expect::Revision(known)),
            None => {
                let next = self.store.next_revision(table, key)?;
                (next, Expect::AbsentAt(next))
            }
        };
        let value = serde_json::to_vec(record)
            .map_err(|_| RecordError::Broken(format!("{}/{key}", table.as_str())))?;
        let address = address(table, key, revision);
        let sealed = self.custody.seal_record(store_key, address, value).await?;
        Ok(batch.put(table, key, expect, sealed))
    }

    /// How many changes of records are known to be durable: never more than the store holds. Kept
    /// elsewhere, it tells of a store that lost its end or is an older copy.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    async fn commit(&self, batch: Batch) -> Result<(), RecordError> {
        self.store.commit(home::counted(batch)).await?;
        self.changes.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}

impl<T> Listed<T> {
    /// A page of these names, with nothing found yet.
    fn of(names: &[(Name, Stored)], limit: usize) -> Self {
        let next = names.last().filter(|_| names.len() == limit).map(|(name, _)| name.clone());
        Self { found: Vec::with_capacity(names.len()), broken: Vec::new(), next }
    }

    /// Takes in what came of a name. What is broken is no reason to end the list.
    fn take(
        &mut self,
        name: Name,
        result: Result<Option<T>, RecordError>,
    ) -> Result<(), RecordError> {
        match result {
            Ok(found) => self.found.extend(found),
            Err(error @ RecordError::Broken(_)) => {
                tracing::error!(%name, %error, "a list goes on without it");
                self.broken.push(name);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn address(table: Table, key: &str, revision: u64) -> RecordAddress {
    RecordAddress { table: table.as_str().to_owned(), key: key.to_owned(), revision }
}
