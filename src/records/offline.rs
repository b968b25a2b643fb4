//! The records of a store without its token: opened with the private half of the recovery key, proved,
//! and put under the master key of another token.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::home::{HOME, counted, encode, plain, read_home, store_key_at};
use super::keys::{key_with, stored_parts, version_key};
use super::recovery::read_store_key_recovery;
use super::sealing::seals_after;
use super::{HomeRecord, KeyRecord, MasterRecord, RecordError, VersionRecord, address};
use crate::custody::protocol::{Fault, KeyAddress};
use crate::custody::rsa::KeyError;
use crate::custody::{CustodyError, RecoveredStoreKey, Recoverer, generation_of, store_key_of};
use crate::key::Name;
use crate::store::{Batch, Expect, Store, StoreError, Stored, Table};
use crate::token::{Token, TokenError};

/// Where a reseal that has begun says which generation it makes.
const RESEAL: &str = "reseal";

/// Why a store could not be recovered.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error("the private key: {0}")]
    PrivateKey(#[from] KeyError),
    #[error("{0} has no recovery wrap: it was made before a recovery key was set")]
    NoWrap(String),
    #[error("{what}: {fault}")]
    NotOpened { what: String, fault: Fault },
    #[error("{0}")]
    Record(#[from] RecordError),
    #[error("{0}")]
    Token(#[from] TokenError),
    #[error(
        "this token holds a master key of generation {0} that no reseal made: use an empty token"
    )]
    TokenInUse(u32),
}

impl From<StoreError> for OfflineError {
    fn from(error: StoreError) -> Self {
        OfflineError::Record(error.into())
    }
}

/// A reseal that has begun.
#[derive(Serialize, Deserialize)]
struct Reseal {
    generation: u32,
}

/// A store whose store keys were opened with the recovery key.
pub struct Offline {
    store: Arc<dyn Store>,
    home: HomeRecord,
    recoverer: Recoverer,
    store_keys: HashMap<u32, RecoveredStoreKey>,
}

impl Offline {
    /// Opens every store key. The locked arena must have been started.
    pub fn open(store: Arc<dyn Store>, private: &[u8]) -> Result<Self, OfflineError> {
        let home = read_home(store.as_ref())?.ok_or(RecordError::NotInitialised)?;
        let recoverer = Recoverer::new(private, &home.appliance)?;
        let mut store_keys = HashMap::new();
        for store_key in &home.store_keys {
            let what = || format!("store key {}", store_key.id);
            let wrap = read_store_key_recovery(store.as_ref(), store_key.id)?;
            if wrap.is_empty() {
                return Err(OfflineError::NoWrap(what()));
            }
            let opened = recoverer.store_key(store_key.id, &wrap);
            let opened = opened.map_err(|fault| OfflineError::NotOpened { what: what(), fault })?;
            store_keys.insert(store_key.id, opened);
        }
        Ok(Self { store, home, recoverer, store_keys })
    }

    /// What the appliance is.
    pub fn home(&self) -> &HomeRecord {
        &self.home
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
        let store_key = self.store_keys.get(&id).ok_or_else(broken)?;
        let opened = store_key.open(&address(table, key, stored.revision), &stored.value);
        opened.map_err(|fault| match fault {
            Fault::SealBroken => broken(),
            other => RecordError::Custody(CustodyError::Fault(other)),
        })
    }

    /// Makes a master key and a signing key in `token` and puts everything under them. Goes on where an
    /// earlier call was cut off. `told` hears of every key that is done.
    pub async fn reseal(
        &self,
        token: &dyn Token,
        now: jiff::Timestamp,
        mut told: impl FnMut(u64),
    ) -> Result<u32, OfflineError> {
        let generation = self.begin_reseal(token).await?;
        let (mut after, mut done) = (None::<String>, 0);
        loop {
            let names = self.names(Table::Key, after.as_deref())?;
            for name in &names {
                self.reseal_key(token, generation, name).await?;
                done += 1;
                told(done);
            }
            match names.last() {
                Some(last) => after = Some(last.clone()),
                None => break,
            }
        }
        self.end_reseal(token, generation, now).await?;
        Ok(generation)
    }

    /// Notes which generation is to be made, and makes it.
    async fn begin_reseal(&self, token: &dyn Token) -> Result<u32, OfflineError> {
        let begun = plain::<Reseal>(self.store.as_ref(), RESEAL)?;
        let newest = self.home.masters().iter().map(|known| known.generation).max().unwrap_or(0);
        let generation = newest.max(self.home.generation) + 1;
        let was_begun = begun.is_some_and(|begun| begun.generation == generation);
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
        Ok(generation)
    }

    async fn reseal_key(
        &self,
        token: &dyn Token,
        generation: u32,
        name: &str,
    ) -> Result<(), OfflineError> {
        let mut key = self.key(name)?;
        let mut changed = Vec::new();
        for (version, slot) in (1_u32..).zip(&mut key.versions) {
            if slot.sealed.is_empty() || generation_of(&slot.sealed) == Some(generation) {
                continue;
            }
            let address = KeyAddress { name: name.to_owned(), version };
            let VersionRecord { sealed, recovery, revision, .. } = slot.as_ref();
            let what = || format!("key/{name} version {version}");
            let resealed = self.recoverer.reseal(token, generation, &address, sealed, recovery);
            let sealed =
                resealed.map_err(|fault| OfflineError::NotOpened { what: what(), fault })?;
            changed.push((version, *revision));
            *slot =
                Arc::new(VersionRecord { sealed, revision: revision + 1, ..slot.as_ref().clone() });
        }
        if changed.is_empty() {
            return Ok(());
        }
        let (own, versions) = stored_parts(&key)?;
        let parsed = key.meta.name();
        let mut batch = self.put(Batch::new(), Table::Key, name, key.revision, &own)?;
        for (version, revision) in &changed {
            let at = version_key(parsed, *version);
            let value = versions.get(*version as usize - 1).map_or(&[][..], Vec::as_slice);
            batch = self.put(batch, Table::KeyVersion, &at, *revision, value)?;
        }
        let newest = self.home.newest_store_key().id;
        let seals = seals_after(self.store.as_ref(), newest, changed.len() as u64 + 1)?;
        Ok(self.store.commit(counted(seals(batch)?)).await?)
    }

    /// Adds the next revision of a record to `batch`, sealed under the newest store key.
    fn put(
        &self,
        batch: Batch,
        table: Table,
        key: &str,
        known: u64,
        value: &[u8],
    ) -> Result<Batch, OfflineError> {
        let newest = self.home.newest_store_key().id;
        let what = || format!("{}/{key}", table.as_str());
        let store_key = self.store_keys.get(&newest).ok_or_else(|| RecordError::Broken(what()))?;
        let sealed = store_key.seal(&address(table, key, known + 1), value);
        let sealed = sealed.map_err(|fault| OfflineError::NotOpened { what: what(), fault })?;
        Ok(batch.put(table, key, Expect::Revision(known), sealed))
    }

    /// Puts the new generation in use, with its signing key; all in one commit.
    async fn end_reseal(
        &self,
        token: &dyn Token,
        generation: u32,
        now: jiff::Timestamp,
    ) -> Result<(), OfflineError> {
        let missing = || RecordError::Broken("the new signing key".to_owned());
        let signer = token.signer(generation)?.ok_or_else(missing)?;
        let mut home = self.home.clone();
        home.generations = home.masters();
        home.generations.push(MasterRecord { generation, created_at: now, retired_at: None });
        home.generation = generation;
        home.signer_generation = generation;
        home.signer_point = signer.public_point.to_vec();
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
        Ok(self.store.commit(counted(batch)).await?)
    }
}
