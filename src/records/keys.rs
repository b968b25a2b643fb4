//! The records of a key: one with what the whole key is, one per version with its sealed private key.
//!
//! A key is read and kept as one [`KeyRecord`]; a change writes the key's own record, always, and of
//! the versions those that changed. The key's revision is thus the lock of the whole, and as the key's
//! record names the revision of each version's, an older copy of one of these does not pass.

use std::sync::Arc;

use super::key_form::{StoredKey, StoredVersion, version_key, whole_meta};
use super::{At, Listed, RecordError, Records};
use crate::key::{KeyMeta, Name, State};
use crate::store::{Batch, Stored, Table};

/// A key as it is stored: its versions' states, and what each version needs to work.
#[derive(Debug, Clone)]
pub struct KeyRecord {
    /// Revision of the key's own record.
    pub revision: u64,
    pub meta: KeyMeta,
    /// By version, from 1; as many as `meta` has.
    pub versions: Vec<Arc<VersionRecord>>,
}

/// What a version needs to work. After destruction the sealed key is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRecord {
    /// Revision of the version's record; 0 while it is not stored yet.
    pub revision: u64,
    /// The sealed key; empty once the version was destroyed.
    pub sealed: Vec<u8>,
    /// The data key, wrapped to the recovery key; empty where there is none, or once it was destroyed.
    pub recovery: Vec<u8>,
    /// SubjectPublicKeyInfo, DER.
    pub public: Vec<u8>,
}

impl KeyRecord {
    /// The record of a version; `None` where the key has no such version.
    pub fn version(&self, version: u32) -> Option<&Arc<VersionRecord>> {
        self.versions.get(usize::try_from(version).ok()?.checked_sub(1)?)
    }
}

impl Records {
    /// The key of this name, from memory or from the store.
    pub async fn key(&self, name: &Name) -> Result<Option<Arc<KeyRecord>>, RecordError> {
        if let Some(known) = self.opened.key(name) {
            return Ok(Some(known));
        }
        let Some(record) = self.stored_key(name).await?.map(Arc::new) else { return Ok(None) };
        let is_kept = || {
            let served = self.is_served_at(name, record.revision)?;
            Ok(served && self.store.is_durable(Table::Key, name.as_str()))
        };
        self.opened.keep_if(&record, is_kept)?;
        Ok(Some(record))
    }

    /// The key of this name, read from the store and kept nowhere.
    pub(super) async fn stored_key(&self, name: &Name) -> Result<Option<KeyRecord>, RecordError> {
        loop {
            let Some(at) = self.load::<StoredKey>(Table::Key, name.as_str()).await? else {
                return Ok(None);
            };
            let read_at = at.revision;
            let mut result = self.assemble(name, at).await;
            let mut is_odd = false;
            if let Ok(key) = &result
                && let Err(error) = self.must_be_rewrapped(key).await
            {
                (result, is_odd) = (Err(error), true);
            }
            // A change that came between the reads of several records would look like damage.
            if matches!(result, Err(RecordError::Broken(_))) && !self.is_at(name, read_at)? {
                continue;
            }
            if is_odd && matches!(result, Err(RecordError::Broken(_))) {
                self.note_odd(name);
            }
            return result.map(Some);
        }
    }

    /// Whether a key is stored at this revision now, and was not held back meanwhile.
    pub(super) fn is_served_at(&self, name: &Name, revision: u64) -> Result<bool, RecordError> {
        self.must_not_be_behind(Table::Key, name.as_str())?;
        self.is_at(name, revision)
    }

    /// Whether a key is stored at this revision now.
    fn is_at(&self, name: &Name, revision: u64) -> Result<bool, RecordError> {
        let stored = self.store.get(Table::Key, name.as_str())?;
        Ok(stored.is_some_and(|stored| stored.revision == revision))
    }

    /// Up to `limit` keys in the order of their names, after `after`.
    ///
    /// # Errors
    /// [`RecordError::Broken`] where one of them is.
    pub async fn keys(
        &self,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<Arc<KeyRecord>>, RecordError> {
        let Listed { found, broken, .. } = self.list_keys("", after, limit).await?;
        match broken.first() {
            Some(name) => Err(RecordError::Broken(format!("key/{name}"))),
            None => Ok(found),
        }
    }

    /// Up to `limit` keys whose names begin so, in the order of their names, after `after`, with those told
    /// apart that are broken.
    pub async fn list_keys(
        &self,
        prefix: &str,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Listed<Arc<KeyRecord>>, RecordError> {
        let names = self.named(Table::Key, prefix, after, limit)?;
        let mut keys = Listed::of(&names, limit);
        for (name, _) in names {
            let result = self.key(&name).await;
            keys.take(name, result)?;
        }
        Ok(keys)
    }

    /// Up to `limit` names of keys in their order, after `after`, as they stand in the store: no record
    /// is opened, so that a broken one hides no other.
    pub fn key_names(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, RecordError> {
        let page = self.store.scan(Table::Key, "", after, limit)?;
        Ok(page.into_iter().map(|(name, _)| name).collect())
    }

    /// Stores a new key.
    ///
    /// # Errors
    /// [`RecordError::Conflict`] where one of this name is there.
    pub async fn add_key(
        &self,
        meta: KeyMeta,
        first: VersionRecord,
    ) -> Result<Arc<KeyRecord>, RecordError> {
        let record = KeyRecord { revision: 0, meta, versions: vec![Arc::new(first)] };
        self.write(Batch::new(), None, record).await
    }

    /// Replaces `old` by `new`: its key record, and of its versions those that are not the same.
    ///
    /// # Errors
    /// [`RecordError::Conflict`] where `old` is not what is stored any more.
    pub async fn change_key(
        &self,
        old: &KeyRecord,
        new: KeyRecord,
    ) -> Result<Arc<KeyRecord>, RecordError> {
        self.write(Batch::new(), Some(old), new).await
    }

    /// The same for a change after which the key does less: it may take of the room in reserve.
    pub async fn restrict_key(
        &self,
        old: &KeyRecord,
        new: KeyRecord,
    ) -> Result<Arc<KeyRecord>, RecordError> {
        self.write(Batch::new().from_reserve(), Some(old), new).await
    }

    /// Adds the record to `batch`, which is empty, and commits it.
    async fn write(
        &self,
        mut batch: Batch,
        old: Option<&KeyRecord>,
        mut new: KeyRecord,
    ) -> Result<Arc<KeyRecord>, RecordError> {
        let name = new.meta.name().clone();
        let known = old.map(|old| old.revision);
        for (meta, record) in new.meta.versions().iter().zip(&mut new.versions) {
            let version = meta.version();
            let before = old.and_then(|old| old.meta.version(version).zip(old.version(version)));
            if before.is_some_and(|(old_meta, old_record)| {
                old_meta == meta && old_record.as_ref() == record.as_ref()
            }) {
                continue;
            }
            let known = before.map(|(_, record)| record.revision);
            let address = version_key(&name, version);
            let stored = StoredVersion::of(meta.clone(), record);
            batch = self.sealed_put(batch, Table::KeyVersion, &address, known, &stored).await?;
            let revision = self.revision_after(Table::KeyVersion, &address, known)?;
            *record = Arc::new(VersionRecord { revision, ..record.as_ref().clone() });
        }
        let stored = StoredKey::of(&new)?;
        batch = self.sealed_put(batch, Table::Key, name.as_str(), known, &stored).await?;
        new.revision = self.revision_after(Table::Key, name.as_str(), known)?;
        if let Err(error) = self.commit(batch).await {
            // It is open what is stored now: the next reader looks for itself.
            self.opened.forget(&name);
            self.waiting.doubt(name.as_str());
            return Err(error);
        }
        self.waiting.note(name.as_str(), new.revision, new.meta.next_due());
        let new = Arc::new(new);
        // It is done, whatever comes of this: only what is held back is not kept here.
        let is_served = || self.must_not_be_behind(Table::Key, name.as_str()).map(|()| true);
        let _ = self.opened.keep_if(&new, is_served);
        Ok(new)
    }

    fn revision_after(
        &self,
        table: Table,
        key: &str,
        known: Option<u64>,
    ) -> Result<u64, RecordError> {
        Ok(match known {
            Some(known) => known + 1,
            None => self.store.next_revision(table, key)?,
        })
    }

    /// How many versions a key should have, after its record and all of theirs were read.
    pub(super) async fn check_whole(
        &self,
        name: &Name,
        stored: Stored,
    ) -> Result<usize, RecordError> {
        let at = self.open_value::<StoredKey>(Table::Key, name.as_str(), stored).await?;
        let key = self.assemble(name, at).await?;
        self.must_be_rewrapped(&key).await?;
        Ok(key.versions.len())
    }

    /// What is sealed in the record of a version and which public key belongs to it; `None` where the
    /// version was destroyed.
    pub(super) async fn check_version(
        &self,
        address: &str,
        stored: Stored,
    ) -> Result<Option<(Vec<u8>, Vec<u8>)>, RecordError> {
        let broken = || RecordError::Broken(format!("key-version/{address}"));
        let At { revision, record } =
            self.open_value::<StoredVersion>(Table::KeyVersion, address, stored).await?;
        let (meta, record) = record.taken_apart(revision).ok_or_else(broken)?;
        let destroyed = meta.state() == State::Destroyed;
        Ok((!destroyed).then_some((record.sealed, record.public)))
    }

    /// Reads all versions of a key and puts the whole together.
    async fn assemble(&self, name: &Name, at: At<StoredKey>) -> Result<KeyRecord, RecordError> {
        let broken = || RecordError::Broken(format!("key/{name}"));
        let StoredKey { meta: whole, version_revisions } = at.record;
        let (mut metas, mut versions) = (Vec::new(), Vec::new());
        for (version, expected) in (1..).zip(version_revisions) {
            let address = version_key(name, version);
            let stored = self.load::<StoredVersion>(Table::KeyVersion, &address).await?;
            let At { revision, record } = stored.ok_or_else(broken)?;
            if revision != expected {
                return Err(RecordError::Broken(format!("key-version/{address}")));
            }
            let (meta, record) = record.taken_apart(revision).ok_or_else(broken)?;
            metas.push(serde_json::to_value(&meta).map_err(|_| broken())?);
            versions.push(Arc::new(record));
        }
        let meta = whole_meta(name, whole, metas).ok_or_else(broken)?;
        Ok(KeyRecord { revision: at.revision, meta, versions })
    }
}
