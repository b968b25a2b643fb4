//! What was done to the store without a daemon: left for the next start, which tells the trail and takes it
//! away. Sealed, so that nobody else can have the trail told of what never was.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{RecordError, Records};
use crate::custody::Fingerprint;
use crate::store::{Batch, Expect, Table};

pub(super) const RESTORED: &str = "restored";
pub(super) const RESEALED: &str = "resealed";

/// Left by a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredRecord {
    /// SHA-256 of the backup's manifest.
    pub digest: [u8; 32],
    /// The moment that the backup shows.
    pub created_at: Timestamp,
    /// The backup's last line of the trail: a text that the trail understands.
    pub head: String,
    /// The last line of the trail that was in this one's place, if there was one.
    pub left_behind: Option<String>,
    /// The oldest store key whose seals count since; not there in older records.
    #[serde(default)]
    pub store_key: Option<u32>,
}

/// Left by a reseal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResealedRecord {
    /// The generation that it made, in the token that is in use since.
    pub generation: u32,
    /// The recovery key that it was done with.
    pub fingerprint: Fingerprint,
    /// Keys that there were, and what could not be recovered.
    pub keys: u64,
    pub left: u64,
}

/// A note of one of the two kinds.
pub trait Note: Serialize + DeserializeOwned {
    #[doc(hidden)]
    const AT: &'static str;
}

impl Note for RestoredRecord {
    const AT: &'static str = RESTORED;
}

impl Note for ResealedRecord {
    const AT: &'static str = RESEALED;
}

impl Records {
    /// The note of this kind that the trail was not told of yet.
    ///
    /// # Errors
    /// [`RecordError::Broken`] where it is none that Strongroom left.
    pub async fn note<T: Note>(&self) -> Result<Option<T>, RecordError> {
        Ok(self.load::<T>(Table::Appliance, T::AT).await?.map(|at| at.record))
    }

    /// Leaves a note for the next start.
    pub async fn leave_note<T: Note>(&self, note: &T) -> Result<(), RecordError> {
        let known = self.store.get(Table::Appliance, T::AT)?.map(|stored| stored.revision);
        let at = (Table::Appliance, T::AT, known);
        // Without waiting for the next store key: here may be no recovery key to wrap one to.
        let store_key = self.key_for_pass().await?;
        let batch = self.put_sealed_under(&store_key, Batch::new(), at, note).await?;
        Ok(self.store.commit(batch).await?)
    }

    /// The trail has been told, or it is none.
    pub async fn take_note_away<T: Note>(&self) -> Result<(), RecordError> {
        let batch = Batch::new().delete(Table::Appliance, T::AT, Expect::Any);
        Ok(self.store.commit(batch).await?)
    }
}
