//! The records of a store without its token: opened with the private half of the recovery key, proved,
//! and put under the master key of another token.

mod begin;
mod reseal;

use std::collections::HashMap;
use std::sync::Arc;

use super::home::read_home;
use super::key_form::key_with;
use super::reach::{REACH, ReachRecord};
use super::recovery::read_store_key_recovery;
use super::state::state_store_key;
use super::{HomeRecord, KeyRecord, RecordError, VersionRecord, address};
use crate::custody::protocol::{Fault, KeyAddress, StoreKey};
use crate::custody::rsa::KeyError;
use crate::custody::{CustodyError, RecoveredStoreKey, Recoverer, store_key_of};
use crate::key::Name;
use crate::store::{Parts, StateCheck, Store, StoreError, Stored, Table};
use crate::token::TokenError;

pub use begin::Planned;
pub use reseal::Resealed;

/// Why a store could not be recovered.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error("the private key: {0}")]
    PrivateKey(#[from] KeyError),
    #[error("{0} has no recovery wrap: it was made before a recovery key was set")]
    NoWrap(String),
    #[error("{0}: its recovery wrap was changed outside Strongroom")]
    Changed(String),
    #[error("{what}: {fault}")]
    NotOpened { what: String, fault: Fault },
    #[error(
        "the records of the store do not add up to what the last change left: some were changed, put \
         back or taken away outside Strongroom, or the key that they were counted with cannot be \
         recovered. Where this copy is to be used all the same, set [audit] on_break = \"record\" and \
         call it again"
    )]
    Edited,
    #[error("{0}")]
    Record(#[from] RecordError),
    #[error("{0}")]
    Token(#[from] TokenError),
    #[error(
        "the token holds a master or signing key of generation {0} that no reseal of this store made, and \
         that does not open it: it is another appliance's, or an older copy of this one's"
    )]
    TokenInUse(u32),
    #[error(
        "the token opens this store: its master key of generation {0} is there, so nothing is lost that \
         would have to be recovered"
    )]
    TokenOpens(u32),
}

impl From<StoreError> for OfflineError {
    fn from(error: StoreError) -> Self {
        OfflineError::Record(error.into())
    }
}

impl OfflineError {
    /// Whether it is about what was to be recovered alone: all else can be, all the same.
    fn is_of_one(&self) -> bool {
        match self {
            OfflineError::NoWrap(_) | OfflineError::Changed(_) => true,
            OfflineError::Record(RecordError::Broken(_)) => true,
            OfflineError::NotOpened { fault, .. } => {
                matches!(fault, Fault::SealBroken | Fault::Recovery(_) | Fault::BadKey(_))
            }
            _ => false,
        }
    }
}

/// A store whose store keys were opened with the recovery key.
pub struct Offline {
    store: Arc<dyn Store>,
    home: HomeRecord,
    recoverer: Recoverer,
    store_keys: HashMap<u32, RecoveredStoreKey>,
    /// The store keys that could not be, and why.
    lost: Vec<String>,
}

impl Offline {
    /// Opens every store key. The locked arena must have been started.
    ///
    /// # Errors
    /// Where not one opens, or another reason is to be seen than that one of them is broken.
    pub fn open(store: Arc<dyn Store>, private: &[u8]) -> Result<Self, OfflineError> {
        let home = read_home(store.as_ref())?.ok_or(RecordError::NotInitialised)?;
        let recoverer = Recoverer::new(private, &home.appliance)?;
        let (mut store_keys, mut lost) = (HashMap::new(), Vec::new());
        for store_key in &home.store_keys {
            match open_store_key(store.as_ref(), &recoverer, store_key) {
                Ok(opened) => _ = store_keys.insert(store_key.id, opened),
                Err(error) if error.is_of_one() => lost.push(error),
                Err(error) => return Err(error),
            }
        }
        if store_keys.is_empty() {
            return Err(lost.into_iter().next().unwrap_or(RecordError::NotInitialised.into()));
        }
        let lost = lost.iter().map(ToString::to_string).collect();
        Ok(Self { store, home, recoverer, store_keys, lost })
    }

    /// Compares the store with its own record of its state, after which it can be changed; with `adopt`, whatever it
    /// has counts. Returns the parts that are not what was last written.
    ///
    /// # Errors
    /// [`OfflineError::Edited`] where the appliance's own records are not.
    pub(super) async fn check_state(&self, adopt: bool) -> Result<Parts, OfflineError> {
        let recorded = self.store.state_key()?;
        let reach = match self.of_appliance::<ReachRecord>(REACH) {
            Err(RecordError::Broken(_)) => None,
            reach => reach?,
        };
        if recorded.is_none() && reach.is_some_and(|(_, reach)| reach.state) && !adopt {
            return Err(OfflineError::Edited);
        }
        let adopt = adopt || recorded.is_none();
        let store_key = state_store_key(&self.home, recorded).map(|key| key.id);
        let opened = store_key.and_then(|id| self.store_keys.get(&id));
        let opened = match (opened, adopt) {
            (None, true) => self.store_keys.values().max_by_key(|key| key.id()),
            (opened, _) => opened,
        };
        let Some(opened) = opened else { return Err(OfflineError::Edited) };
        let what = "the key of the store's state".to_owned();
        let key = opened.state_key();
        let key = key.map_err(|fault| OfflineError::NotOpened { what, fault })?;
        match self.store.check_state(key, opened.id(), adopt).await? {
            StateCheck::Differs(parts) if !adopt && parts.have_appliance() => {
                Err(OfflineError::Edited)
            }
            StateCheck::Differs(parts) if !adopt => Ok(parts),
            _ => Ok(Parts::default()),
        }
    }

    /// The store keys that cannot be recovered, and what they sealed with them.
    pub fn lost(&self) -> &[String] {
        &self.lost
    }

    /// How many store keys can be recovered.
    pub fn store_keys(&self) -> usize {
        self.store_keys.len()
    }

    /// What the appliance is.
    pub fn home(&self) -> &HomeRecord {
        &self.home
    }

    /// How many names a table has.
    pub fn count(&self, table: Table) -> Result<u64, OfflineError> {
        let (mut count, mut after) = (0, None::<String>);
        loop {
            let names = self.names(table, after.as_deref())?;
            count += names.len() as u64;
            match names.last() {
                Some(last) => after = Some(last.clone()),
                None => return Ok(count),
            }
        }
    }

    /// Up to 1000 names of a table after `after`, as they stand in the store.
    pub fn names(&self, table: Table, after: Option<&str>) -> Result<Vec<String>, OfflineError> {
        let page = self.store.scan(table, "", after, 1000)?;
        Ok(page.into_iter().map(|(name, _)| name).collect())
    }

    /// Opens a secret's record: what it holds is a ciphertext still.
    pub fn prove_secret(&self, name: &str) -> Result<(), OfflineError> {
        let stored = self.store.get(Table::Secret, name)?;
        let stored = stored.ok_or_else(|| RecordError::Broken(format!("secret/{name}")))?;
        self.open_value(Table::Secret, name, stored).map(drop).map_err(OfflineError::from)
    }

    /// Proves that every version of a key can be recovered; returns how many there are.
    pub fn prove_key(&self, name: &str) -> Result<u64, OfflineError> {
        let record = self.key(name)?;
        let mut proved = 0;
        for (version, slot) in (1..).zip(&record.versions) {
            if slot.sealed.is_empty() {
                continue;
            }
            let what = format!("key/{name} version {version}");
            if slot.recovery.is_empty() {
                return Err(OfflineError::NoWrap(what));
            }
            let address = KeyAddress { name: name.to_owned(), version };
            let VersionRecord { sealed, recovery, public, .. } = slot.as_ref();
            let done = self.recoverer.prove(&address, sealed, recovery, public);
            done.map_err(|fault| OfflineError::NotOpened { what, fault })?;
            proved += 1;
        }
        Ok(proved)
    }

    fn key(&self, name: &str) -> Result<KeyRecord, RecordError> {
        let broken = || RecordError::Broken(format!("key/{name}"));
        let parsed = Name::parse(name).map_err(|_| broken())?;
        let open = |table, key: &str, stored| self.open_value(table, key, stored);
        key_with(self.store.as_ref(), &parsed, open)?.ok_or_else(broken)
    }

    fn open_value(&self, table: Table, key: &str, stored: Stored) -> Result<Vec<u8>, RecordError> {
        let broken = || RecordError::Broken(format!("{}/{key}", table.as_str()));
        let id = store_key_of(&stored.value).ok_or_else(broken)?;
        let counts = id >= self.home.first_store_key();
        let store_key = self.store_keys.get(&id).filter(|_| counts).ok_or_else(broken)?;
        let opened = store_key.open(&address(table, key, stored.revision), &stored.value);
        opened.map_err(|fault| match fault {
            Fault::SealBroken => broken(),
            other => RecordError::Custody(CustodyError::Fault(other)),
        })
    }
}

fn open_store_key(
    store: &dyn Store,
    recoverer: &Recoverer,
    store_key: &StoreKey,
) -> Result<RecoveredStoreKey, OfflineError> {
    let (id, first) = (store_key.id, store_key.first);
    let what = || format!("store key {id}");
    let wrap = match read_store_key_recovery(store, id) {
        Err(RecordError::Broken(_)) => return Err(OfflineError::Changed(what())),
        found => found?,
    };
    if wrap.is_empty() {
        return Err(OfflineError::NoWrap(what()));
    }
    recoverer.store_key((id, first), &wrap).map_err(|fault| match fault {
        Fault::SealBroken => OfflineError::Changed(what()),
        fault => OfflineError::NotOpened { what: what(), fault },
    })
}
