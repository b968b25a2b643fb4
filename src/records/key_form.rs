//! The records of a key as they lie in the store, below their seal, and how a key is put together of them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{KeyRecord, RecordError, VersionRecord};
use crate::key::{KeyMeta, Name, State, VersionMeta};
use crate::store::{Store, Stored, Table};

/// The version's record as it lies in the store.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredVersion {
    meta: VersionMeta,
    sealed: String,
    /// Not there in records from before there were recovery keys.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    recovery: String,
    public: String,
}

/// The key's own record as it lies in the store: its meta data without the versions.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredKey {
    pub meta: Value,
    /// At which revision the record of each version is, from version 1 on.
    pub version_revisions: Vec<u64>,
}

/// The meta data of a key from those of its own record and of its versions; `None` where they do not
/// make one of this name.
pub(super) fn whole_meta(name: &Name, mut own: Value, versions: Vec<Value>) -> Option<KeyMeta> {
    own.as_object_mut()?.insert("versions".to_owned(), Value::Array(versions));
    let meta: KeyMeta = serde_json::from_value(own).ok()?;
    (meta.name() == name).then_some(meta)
}

/// Where a version's record lies. No name has a slash, so no two addresses meet.
pub(super) fn version_key(name: &Name, version: u32) -> String {
    format!("{name}/{version:010}")
}

impl StoredKey {
    /// The record of a key whose versions have the revisions that they will be stored at.
    pub fn of(key: &KeyRecord) -> Result<Self, RecordError> {
        let broken = || RecordError::Broken(format!("key/{}", key.meta.name()));
        let mut meta = serde_json::to_value(&key.meta).map_err(|_| broken())?;
        meta.as_object_mut().ok_or_else(broken)?.remove("versions");
        let version_revisions = key.versions.iter().map(|record| record.revision).collect();
        Ok(Self { meta, version_revisions })
    }
}

impl StoredVersion {
    pub fn of(meta: VersionMeta, record: &VersionRecord) -> Self {
        use base64::prelude::{BASE64_STANDARD, Engine};
        // The shredding of a destroyed version: neither wrap of its data key is written again.
        let unless_destroyed = |bytes: &[u8]| match meta.state() {
            State::Destroyed => String::new(),
            _ => BASE64_STANDARD.encode(bytes),
        };
        let sealed = unless_destroyed(&record.sealed);
        let recovery = unless_destroyed(&record.recovery);
        Self { meta, sealed, recovery, public: BASE64_STANDARD.encode(&record.public) }
    }

    pub fn taken_apart(self, revision: u64) -> Option<(VersionMeta, VersionRecord)> {
        use base64::prelude::{BASE64_STANDARD, Engine};
        let sealed = BASE64_STANDARD.decode(self.sealed).ok()?;
        let recovery = BASE64_STANDARD.decode(self.recovery).ok()?;
        let public = BASE64_STANDARD.decode(self.public).ok()?;
        Some((self.meta, VersionRecord { revision, sealed, recovery, public }))
    }
}

/// Reads a key from a store whose records `open` opens: without custody, and so without waiting.
pub(super) fn key_with(
    store: &dyn Store,
    name: &Name,
    open: impl Fn(Table, &str, Stored) -> Result<Vec<u8>, RecordError>,
) -> Result<Option<KeyRecord>, RecordError> {
    let broken = || RecordError::Broken(format!("key/{name}"));
    let Some(stored) = store.get(Table::Key, name.as_str())? else { return Ok(None) };
    let revision = stored.revision;
    let own = open(Table::Key, name.as_str(), stored)?;
    let StoredKey { meta, version_revisions } =
        serde_json::from_slice(&own).map_err(|_| broken())?;
    let (mut metas, mut versions) = (Vec::new(), Vec::new());
    for (version, expected) in (1..).zip(version_revisions) {
        let at = version_key(name, version);
        let stored = store.get(Table::KeyVersion, &at)?.ok_or_else(broken)?;
        if stored.revision != expected {
            return Err(RecordError::Broken(format!("key-version/{at}")));
        }
        let value = open(Table::KeyVersion, &at, stored)?;
        let stored: StoredVersion = serde_json::from_slice(&value).map_err(|_| broken())?;
        let (meta, record) = stored.taken_apart(expected).ok_or_else(broken)?;
        metas.push(serde_json::to_value(&meta).map_err(|_| broken())?);
        versions.push(Arc::new(record));
    }
    let meta = whole_meta(name, meta, metas).ok_or_else(broken)?;
    Ok(Some(KeyRecord { revision, meta, versions }))
}

/// The values of a key's own record and of its versions, as they are sealed.
pub(super) fn stored_parts(key: &KeyRecord) -> Result<(Vec<u8>, Vec<Vec<u8>>), RecordError> {
    let broken = |_| RecordError::Broken(format!("key/{}", key.meta.name()));
    let own = serde_json::to_vec(&StoredKey::of(key)?).map_err(broken)?;
    let versions = key.meta.versions().iter().zip(&key.versions).map(|(meta, record)| {
        serde_json::to_vec(&StoredVersion::of(meta.clone(), record)).map_err(broken)
    });
    Ok((own, versions.collect::<Result<_, _>>()?))
}

/// The record of a key and those of its versions, a line each: what makes a key is written and read
/// again as the same.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn read_again(lines: &[u8]) {
    let mut lines = lines.split(|&byte| byte == b'\n');
    let name = Name::parse("payments").expect("a name");
    let Some(key) = read(&name, &mut lines) else { return };
    let mut written =
        vec![serde_json::to_vec(&StoredKey::of(&key).expect("a form")).expect("JSON")];
    for (meta, record) in key.meta.versions().iter().zip(&key.versions) {
        let stored = StoredVersion::of(meta.clone(), record);
        written.push(serde_json::to_vec(&stored).expect("JSON"));
    }
    let mut written = written.iter().map(Vec::as_slice);
    let again = read(&name, &mut written).expect("its own form");
    assert_eq!(again.meta, key.meta);
    for (again, record) in again.versions.iter().zip(&key.versions) {
        assert_eq!(again.public, record.public);
        assert!(again.sealed == record.sealed || again.sealed.is_empty());
    }
}

#[cfg(any(test, feature = "fuzzing"))]
fn read<'a>(name: &Name, lines: &mut impl Iterator<Item = &'a [u8]>) -> Option<KeyRecord> {
    let StoredKey { meta, version_revisions } = serde_json::from_slice(lines.next()?).ok()?;
    let (mut metas, mut versions) = (Vec::new(), Vec::new());
    for revision in version_revisions.into_iter().take(64) {
        let stored: StoredVersion = serde_json::from_slice(lines.next()?).ok()?;
        let (meta, record) = stored.taken_apart(revision)?;
        metas.push(serde_json::to_value(&meta).ok()?);
        versions.push(Arc::new(record));
    }
    Some(KeyRecord { revision: 1, meta: whole_meta(name, meta, metas)?, versions })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Algorithm, Labels, Mgf1Hash};

    #[test]
    fn a_key_with_all_its_versions_and_the_longest_labels_has_room() {
        let (now, mut labels) = (jiff::Timestamp::now(), Labels::default());
        for label in 0..Labels::MAX {
            let name = format!("{label:x}{}", "l".repeat(62));
            labels.insert(&name, &"\u{1F511}".repeat(Labels::MAX_VALUE)).unwrap();
        }
        let name = Name::parse(&"n".repeat(63)).unwrap();
        let hash = Mgf1Hash::default();
        let mut meta = KeyMeta::new(name, Algorithm::Rsa4096, hash, labels, "0".to_owned(), now);
        for version in 1..KeyMeta::MAX_VERSIONS {
            meta.rotate(version.to_string(), now).unwrap();
        }
        meta.rotate("more".to_owned(), now).unwrap_err();
        let version = VersionRecord {
            revision: 99_999,
            sealed: Vec::new(),
            recovery: Vec::new(),
            public: Vec::new(),
        };
        let version = Arc::new(version);
        let versions = vec![version; KeyMeta::MAX_VERSIONS];
        let stored = StoredKey::of(&KeyRecord { revision: 1, meta, versions }).unwrap();
        let length = serde_json::to_vec(&stored).unwrap().len();
        // What its seal adds is less than this.
        assert!(length + 256 <= crate::store::MAX_VALUE, "{length}");
    }
}
