//! What is to be done once after a start, as soon as custody can open records.

use std::time::Duration;

use super::error::Error;
use super::gate::Appliance;
use crate::audit::{Code, Event, EventNote};
use crate::records::{Note, RecordError, ResealedRecord, RestoredRecord};

/// Until it is tried again.
const PAUSE: Duration = Duration::from_millis(200);

impl Appliance {
    /// Waits until the appliance is ready, and does it. Ends when all is done.
    pub async fn after_start(&self) {
        let mut told = None;
        loop {
            if self.state().0 == "ready" {
                let Err(error) = self.do_after_start().await else { return };
                let why = error.to_string();
                if self.state().0 == "ready" && told.as_ref() != Some(&why) {
                    tracing::warn!(why, "what follows a start waits");
                    told = Some(why);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn do_after_start(&self) -> Result<(), Error> {
        self.tell_of_restore().await?;
        self.tell_of_reseal().await?;
        self.check_recovery().await
    }

    /// Tells the trail that store and trail were put back from a backup, if they were.
    async fn tell_of_restore(&self) -> Result<(), Error> {
        let Some(restored) = self.noted::<RestoredRecord>("restored").await? else { return Ok(()) };
        let broken = |_| Error::Record(RecordError::Broken("appliance/restored".to_owned()));
        let head = restored.head.parse().map_err(broken)?;
        let RestoredRecord { digest, created_at, store_key, .. } = restored;
        let line = EventNote::restored(head, digest, created_at, store_key);
        self.trail.event(line).await?;
        if let Some(left_behind) = &restored.left_behind {
            let head = left_behind.parse().map_err(broken)?;
            self.trail.event(EventNote::left_behind(head)).await?;
        }
        tracing::warn!(%head, at = %restored.created_at, "store and trail come from a backup");
        Ok(self.records.take_note_away::<RestoredRecord>().await?)
    }

    /// Tells the trail that the store was put under another token, if it was.
    async fn tell_of_reseal(&self) -> Result<(), Error> {
        let Some(resealed) = self.noted::<ResealedRecord>("resealed").await? else { return Ok(()) };
        let ResealedRecord { generation, fingerprint, keys, left } = resealed;
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let line = EventNote::about(Event::Resealed, generation).counting(count(keys), count(left));
        self.trail.event(line.with_digest(fingerprint)).await?;
        tracing::warn!(
            generation,
            keys,
            left,
            "the store was put under this token with its recovery key"
        );
        Ok(self.records.take_note_away::<ResealedRecord>().await?)
    }

    /// The note of this kind. One that is not Strongroom's is told as such, and goes.
    async fn noted<T: Note>(&self, code: &'static str) -> Result<Option<T>, Error> {
        match self.records.note::<T>().await {
            Err(RecordError::Broken(what)) => {
                tracing::error!(
                    what,
                    "somebody put it there, or changed it: what it tells is not believed"
                );
                self.tell(EventNote::because(Event::StoreEdited, Code(code))).await;
                self.records.take_note_away::<T>().await?;
                Ok(None)
            }
            found => Ok(found?),
        }
    }
}
