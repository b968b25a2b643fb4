//! What the appliance is: its id, its master generation, its wrapped store key; and whether an
//! operator locked it. These lie open in the store, for they are read before custody is unlocked:
//! the wrapped store key proves itself, the rest decides nothing that custody does not check. A lock is
//! remembered by custody, too, so that whoever takes this record away unlocks nothing.

use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};

use super::{RecordError, Records};
use crate::custody::generation_of;
use crate::custody::protocol::{Home, StoreKey};
use crate::key::Name;
use crate::store::{Batch, Expect, Store, Table};

pub(super) const HOME: &str = "home";
/// Each store key has a record of its own behind this, so that they may become many.
const STORE_KEY: &str = "store-key/";
/// And each master key one behind this.
const MASTER: &str = "master/";
const LOCKED: &str = "locked";
pub(super) const HEAD: &str = "head";
/// Put with every change, so that its revision counts them; how far it was is in a sealed record, too.
const CHANGES: &str = "changes";

/// The one record without which nothing else opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeRecord {
    /// 32 hex digits, drawn at init.
    pub appliance: String,
    /// The master generation that new keys are wrapped under.
    pub generation: u32,
    /// The store keys, wrapped, oldest first: the newest seals, all of them open.
    #[serde(skip)]
    pub store_keys: Vec<StoreKey>,
    /// Public point of the trail's signing key (SEC 1, uncompressed).
    pub signer_point: Vec<u8>,
    pub signer_generation: u32,
    pub created_at: jiff::Timestamp,
    /// The master keys of this appliance, oldest first; read it with [`HomeRecord::masters`]. Each has a record
    /// of its own. Until 0.1.0 they were written here, which ends at the longest value that the store takes.
    #[serde(default, skip_serializing)]
    pub generations: Vec<MasterRecord>,
    /// Whether they have records of their own already.
    #[serde(skip)]
    pub masters_apart: bool,
}

/// A master key that this appliance made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterRecord {
    pub generation: u32,
    pub created_at: jiff::Timestamp,
    /// Since when it is destroyed.
    #[serde(default)]
    pub retired_at: Option<jiff::Timestamp>,
    /// That it is to be destroyed, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retirement: Option<Retirement>,
    /// That its destruction in the token was begun: the token alone knows whether it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroying: Option<Destroying>,
}

/// A destruction of a master key that was begun, and of which the end is not on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destroying {
    pub since: jiff::Timestamp,
    /// By which principal: `unix:1000`, or `system:sweep`.
    pub by: String,
    /// Whether the token's PIN took the place of the waiting period.
    pub with_pin: bool,
}

/// A destruction of a master key that waits, as an operator asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retirement {
    pub destroy_at: jiff::Timestamp,
    /// Keys whose records do not open, and which may be lost with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leave: Vec<Name>,
}

impl MasterRecord {
    /// One that was made at this time.
    pub(super) fn made(generation: u32, created_at: jiff::Timestamp) -> Self {
        Self { generation, created_at, retired_at: None, retirement: None, destroying: None }
    }

    /// Its destruction, while it waits.
    pub fn waits(&self) -> Option<&Retirement> {
        self.retirement.as_ref().filter(|_| self.retired_at.is_none())
    }

    /// Its destruction, while it is not on record whether it was done.
    pub fn is_destroying(&self) -> Option<&Destroying> {
        self.destroying.as_ref().filter(|_| self.retired_at.is_none())
    }
}

/// Left by an operator's `lock`, taken away by `unlock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRecord {
    pub since: jiff::Timestamp,
    pub by: String,
}

impl HomeRecord {
    /// The store key that seals.
    pub(super) fn newest_store_key(&self) -> &StoreKey {
        self.store_keys.last().expect("an appliance is founded with a store key")
    }

    /// The oldest store key whose seals count: what older ones sealed belongs to a time that a restore has
    /// ended. No store key opens under another `first` than it was made with, and nothing that counts was
    /// sealed by one that was made before the restore.
    pub fn first_store_key(&self) -> u32 {
        self.store_keys.iter().map(|key| key.first).max().unwrap_or(0)
    }

    /// Whether a store key lies under the generation in use.
    pub(super) fn is_under(&self, store_key: &StoreKey) -> bool {
        generation_of(&store_key.wrapped) == Some(self.generation)
    }

    /// Whether a store key still lies under an older generation, and its master key is there to change it.
    pub(super) fn is_astray(&self, store_key: &StoreKey) -> bool {
        !self.is_under(store_key) && !self.is_gone(generation_of(&store_key.wrapped))
    }

    /// The master keys of this appliance, oldest first; the one in use is always among them.
    pub fn masters(&self) -> Vec<MasterRecord> {
        match self.generations.is_empty() {
            // Written before there could be more than one.
            true => vec![MasterRecord::made(self.generation, self.created_at)],
            false => self.generations.clone(),
        }
    }

    /// Whether the master key of a generation is gone for good, and what still lies under it with it.
    pub(super) fn is_gone(&self, generation: Option<u32>) -> bool {
        let mut retired = self.generations.iter().filter(|known| known.retired_at.is_some());
        retired.any(|known| Some(known.generation) == generation)
    }

    /// What custody has to know of it.
    pub fn for_custody(&self) -> Home {
        Home {
            appliance: self.appliance.clone(),
            generation: self.generation,
            store_key: self.newest_store_key().clone(),
            signer_point: self.signer_point.clone(),
            signer_generation: self.signer_generation,
        }
    }
}

/// Whether an operator locked the appliance, and who.
pub fn read_locked(store: &dyn Store) -> Result<Option<LockRecord>, RecordError> {
    plain(store, LOCKED)
}

/// The newest head of the trail that was kept here: a text that the trail understands.
pub fn read_head(store: &dyn Store) -> Result<Option<String>, RecordError> {
    plain(store, HEAD)
}

/// Reads the appliance's record from a store that may be new.
pub fn read_home(store: &dyn Store) -> Result<Option<HomeRecord>, RecordError> {
    let Some(mut home) = plain::<HomeRecord>(store, HOME)? else {
        return must_be_new(store).map(|()| None);
    };
    let masters = read_masters(store)?;
    if !masters.is_empty() {
        (home.generations, home.masters_apart) = (masters, true);
    }
    // The newest master key is the one in use, and that one is there.
    let newest = home.masters().pop();
    if !newest.is_some_and(|it| it.generation == home.generation && it.retired_at.is_none()) {
        return Err(RecordError::Broken(format!("appliance/{HOME}")));
    }
    let mut after: Option<String> = None;
    loop {
        let page = store.scan(Table::Appliance, STORE_KEY, after.as_deref(), PAGE)?;
        let broken = |key: &str| RecordError::Broken(format!("appliance/{key}"));
        for (key, stored) in &page {
            let store_key: StoreKey =
                serde_json::from_slice(&stored.value).map_err(|_| broken(key))?;
            // One that is missing would make all that it sealed look broken.
            let next = home.store_keys.len() as u64 + 1;
            if u64::from(store_key.id) != next || store_key_at(store_key.id) != *key {
                return Err(broken(key));
            }
            home.store_keys.push(store_key);
        }
        match page.last() {
            Some((key, _)) if page.len() == PAGE => after = Some(key.clone()),
            _ if home.store_keys.is_empty() => return Err(broken(HOME)),
            _ => return Ok(Some(home)),
        }
    }
}

/// The master keys that have records of their own, oldest first.
fn read_masters(store: &dyn Store) -> Result<Vec<MasterRecord>, RecordError> {
    let (mut masters, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = store.scan(Table::Appliance, MASTER, after.as_deref(), PAGE)?;
        for (key, stored) in &page {
            let broken = || RecordError::Broken(format!("appliance/{key}"));
            let master: MasterRecord =
                serde_json::from_slice(&stored.value).map_err(|_| broken())?;
            if master_at(master.generation) != *key {
                return Err(broken());
            }
            masters.push(master);
        }
        match page.last() {
            Some((key, _)) if page.len() == PAGE => after = Some(key.clone()),
            _ => return Ok(masters),
        }
    }
}

/// Where a master key's record lies; they are found in the order of their generations.
fn master_at(generation: u32) -> String {
    format!("{MASTER}{generation:010}")
}

/// Adds to `batch` what the appliance becomes: its home record, and those of master keys that are not as `old`
/// has them.
pub(super) fn put_home(
    mut batch: Batch,
    old: &HomeRecord,
    next: &mut HomeRecord,
) -> Result<Batch, RecordError> {
    let before = if old.masters_apart { old.generations.as_slice() } else { &[] };
    for master in next.generations.iter().filter(|master| !before.contains(master)) {
        let at = master_at(master.generation);
        batch = batch.put(Table::Appliance, &at, Expect::Any, encode(&at, master)?);
    }
    next.masters_apart |= !next.generations.is_empty();
    Ok(batch.put(Table::Appliance, HOME, Expect::Any, encode(HOME, next)?))
}

/// Without a home there is nothing that could have been sealed: what lies there lost its home.
fn must_be_new(store: &dyn Store) -> Result<(), RecordError> {
    let sealed = [Table::Key, Table::KeyVersion, Table::Secret].map(|table| (table, ""));
    let open = [STORE_KEY, MASTER].map(|prefix| (Table::Appliance, prefix));
    for (table, prefix) in open.into_iter().chain(sealed) {
        if !store.scan(table, prefix, None, 1)?.is_empty() {
            return Err(RecordError::Broken(format!("appliance/{HOME}")));
        }
    }
    Ok(())
}

/// How many store keys are read at once.
const PAGE: usize = 100;

/// Where a store key lies; they are found in the order of their ids.
pub(super) fn store_key_at(id: u32) -> String {
    format!("{STORE_KEY}{id:010}")
}

/// Adds a new store key to `batch`.
pub(super) fn put_store_key(batch: Batch, store_key: &StoreKey) -> Result<Batch, RecordError> {
    let at = store_key_at(store_key.id);
    let value = encode(&at, store_key)?;
    Ok(batch.put(Table::Appliance, &at, Expect::Absent, value))
}

/// Counts a change of records along with it.
pub(super) fn counted(batch: Batch) -> Batch {
    batch.put(Table::Appliance, CHANGES, Expect::Any, Vec::new())
}

/// How many changes of records the store holds.
pub(super) fn read_changes(store: &dyn Store) -> Result<u64, RecordError> {
    Ok(store.get(Table::Appliance, CHANGES)?.map_or(0, |stored| stored.revision))
}

pub(super) fn plain<T: serde::de::DeserializeOwned>(
    store: &dyn Store,
    key: &str,
) -> Result<Option<T>, RecordError> {
    let broken = || RecordError::Broken(format!("{}/{key}", Table::Appliance.as_str()));
    store
        .get(Table::Appliance, key)?
        .map(|stored| serde_json::from_slice(&stored.value).map_err(|_| broken()))
        .transpose()
}

impl Records {
    /// What this appliance is, once it was initialised.
    pub fn home(&self) -> Option<Arc<HomeRecord>> {
        self.home.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps the record that makes this an initialised appliance. There can be only one.
    pub async fn found(&self, record: HomeRecord) -> Result<(), RecordError> {
        let value = encode(HOME, &record)?;
        let mut batch = Batch::new().put(Table::Appliance, HOME, Expect::Absent, value);
        for store_key in &record.store_keys {
            batch = put_store_key(batch, store_key)?;
        }
        self.commit(batch).await?;
        self.replace_home(record);
        Ok(())
    }

    /// Reads anew what the appliance is: after a commit of which it is open whether it was done.
    pub async fn reload_home(&self) -> Result<(), RecordError> {
        let _no_other_change = self.count.lock().await;
        self.read_home_again().map(drop)
    }

    /// The same, for who changes it.
    pub(super) fn read_home_again(&self) -> Result<Option<Arc<HomeRecord>>, RecordError> {
        Ok(read_home(self.store.as_ref())?.map(|home| self.replace_home(home)))
    }

    pub(super) fn replace_home(&self, next: HomeRecord) -> Arc<HomeRecord> {
        let next = Arc::new(next);
        *self.home.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&next));
        next
    }

    /// Notes that the appliance is locked, or that it no longer is, whatever room there is.
    pub async fn set_locked(&self, record: Option<LockRecord>) -> Result<(), RecordError> {
        let batch = match record {
            Some(record) => {
                let value = encode(LOCKED, &record)?;
                Batch::new().put(Table::Appliance, LOCKED, Expect::Any, value)
            }
            None => Batch::new().delete(Table::Appliance, LOCKED, Expect::Any),
        };
        self.commit(batch.from_reserve()).await
    }
}

pub(super) fn encode<T: Serialize + ?Sized>(key: &str, record: &T) -> Result<Vec<u8>, RecordError> {
    serde_json::to_vec(record).map_err(|_| RecordError::Broken(format!("appliance/{key}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    fn home(generations: Vec<MasterRecord>) -> HomeRecord {
        HomeRecord {
            appliance: "0".repeat(32),
            generation: generations.last().map_or(1, |newest| newest.generation),
            store_keys: vec![StoreKey { id: 1, first: 1, wrapped: vec![1] }],
            signer_point: vec![4; 65],
            signer_generation: 1,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            generations,
            masters_apart: false,
        }
    }

    #[tokio::test]
    async fn there_may_be_any_number_of_generations_also_after_an_older_form() {
        let store = MemoryStore::default();
        let at = jiff::Timestamp::now();
        let old: Vec<MasterRecord> = (1..=150).map(|it| MasterRecord::made(it, at)).collect();
        let first = home(old.clone());
        // As it was written until 0.1.0.
        let mut written = serde_json::to_value(&first).unwrap();
        written["generations"] = serde_json::to_value(&old).unwrap();
        let batch = Batch::new().put(
            Table::Appliance,
            HOME,
            Expect::Any,
            serde_json::to_vec(&written).unwrap(),
        );
        let batch = put_store_key(batch, &first.store_keys[0]).unwrap();
        store.commit(batch).await.unwrap();
        for generation in 151..=1000 {
            let known = read_home(&store).unwrap().unwrap();
            let mut next = HomeRecord { generation, ..known.clone() };
            next.generations.push(MasterRecord::made(generation, at));
            next.generations[0].retired_at = Some(at);
            store.commit(put_home(Batch::new(), &known, &mut next).unwrap()).await.unwrap();
        }
        let now = read_home(&store).unwrap().unwrap();
        assert_eq!(now.masters().len(), 1000);
        assert!(now.is_gone(Some(1)) && !now.is_gone(Some(2)));
        assert!(encode(HOME, &now).unwrap().len() < 1000);
    }
}
