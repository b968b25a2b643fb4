//! The records of secrets: what a client encrypted, for which version of which key.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{At, Listed, RecordError, Records};
use crate::key::{Name, Owner};
use crate::store::{Batch, Expect, Stored, Table};

/// A stored secret: a ciphertext, never a plaintext.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRecord {
    pub name: Name,
    pub key: Name,
    /// The key's version that the ciphertext was made for.
    pub version: u32,
    /// RFC 7638 thumbprint of that version.
    pub kid: String,
    /// RSAES-OAEP ciphertext, base64.
    pub ciphertext: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Who stored it last: `unix:1000`.
    pub updated_by: String,
    /// Who made it, or whom it was transferred to; none where it was made before there were owners.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

/// Who owns secrets, by the revision that said so: to be asked before each use of one, without opening its
/// record twice.
#[derive(Default)]
pub(super) struct Owners(Mutex<HashMap<Name, (u64, Option<Owner>)>>);

impl Owners {
    /// The most that are remembered.
    const MOST: usize = 10_000;

    fn of(&self, name: &Name, revision: u64) -> Option<Option<Owner>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).filter(|(at, _)| *at == revision).map(|(_, owner)| owner.clone())
    }

    fn remember(&self, name: &Name, revision: u64, owner: Option<Owner>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= Self::MOST {
            known.clear();
        }
        known.insert(name.clone(), (revision, owner));
    }
}

impl Records {
    /// The secret of this name.
    pub async fn secret(&self, name: &Name) -> Result<Option<At<SecretRecord>>, RecordError> {
        self.must_not_be_behind(Table::Secret, name.as_str())?;
        match self.store.get(Table::Secret, name.as_str())? {
            Some(stored) => Ok(Some(self.open_secret(name, stored).await?)),
            None => Ok(None),
        }
    }

    /// Who owns the secret of this name, if anybody; `None` where there is no such secret.
    pub async fn secret_owner(&self, name: &Name) -> Result<Option<Option<Owner>>, RecordError> {
        self.must_not_be_behind(Table::Secret, name.as_str())?;
        let Some(stored) = self.store.get(Table::Secret, name.as_str())? else { return Ok(None) };
        if let Some(owner) = self.owners.of(name, stored.revision) {
            return Ok(Some(owner));
        }
        let At { revision, record } = self.open_secret(name, stored).await?;
        self.owners.remember(name, revision, record.owner.clone());
        Ok(Some(record.owner))
    }

    pub(super) async fn open_secret(
        &self,
        name: &Name,
        stored: Stored,
    ) -> Result<At<SecretRecord>, RecordError> {
        let at: At<SecretRecord> = self.open_value(Table::Secret, name.as_str(), stored).await?;
        if at.record.name != *name {
            return Err(RecordError::Broken(format!("secret/{name}")));
        }
        Ok(at)
    }

    /// Up to `limit` secrets whose names begin so, in the order of their names, after `after`, with those
    /// told apart that are broken.
    pub async fn list_secrets(
        &self,
        prefix: &str,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Listed<At<SecretRecord>>, RecordError> {
        let names = self.named(Table::Secret, prefix, after, limit)?;
        let mut secrets = Listed::of(&names, limit);
        for (name, stored) in names {
            let result = self.open_secret(&name, stored).await;
            secrets.take(name, result.map(Some))?;
        }
        Ok(secrets)
    }

    /// Stores a secret: a new one where `known` is `None`, else the next revision of what is there.
    /// Returns its revision.
    ///
    /// # Errors
    /// [`RecordError::Conflict`] where what is stored is not what `known` says.
    pub async fn put_secret(
        &self,
        known: Option<u64>,
        record: &SecretRecord,
    ) -> Result<u64, RecordError> {
        let name = record.name.as_str();
        let batch = self.sealed_put(Batch::new(), Table::Secret, name, known, record).await?;
        let revision = match known {
            Some(known) => known + 1,
            None => self.store.next_revision(Table::Secret, name)?,
        };
        self.commit(batch).await?;
        Ok(revision)
    }

    /// Deletes a secret at the revision it was seen.
    pub async fn delete_secret(&self, name: &Name, known: u64) -> Result<(), RecordError> {
        let expect = Expect::Revision(known);
        self.commit(Batch::new().delete(Table::Secret, name.as_str(), expect)).await
    }
}
