//! How far store and audit log reach, sealed: the newest line of the audit log and the number of changes.
//!
//! It is written before a checkpoint is signed, so custody knows that it was there, and which line it reached: a
//! store whose record does not reach the newest checkpoint is an older copy, or was edited. To seal it with every
//! commit would hold no more: a copy of the store of any moment is sealed as well, and what tells an old one from
//! the newest is custody's memory, which moves with the checkpoints.
//!
//! The head lies open beside it, as in 0.1.0. That copy is read before custody is there, has a damaged audit log
//! refused early, and proves nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::home::{HEAD, encode};
use super::{RecordError, Records};
use crate::store::{Batch, Expect, Table};

pub(super) const REACH: &str = "reach";

/// What the record holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReachRecord {
    /// Which audit log: 16 hex digits.
    pub trail: String,
    /// Its newest line then, and the text that it has there: `seq:hash`.
    pub line: u64,
    pub head: String,
    /// How many changes of records the store held, at least.
    pub changes: u64,
    /// Whether the store has a record of its state.
    #[serde(default)]
    pub state: bool,
}

/// What is known of it in this process.
#[derive(Default)]
pub(super) struct Reach {
    /// What lay there at the start was compared, so that it may be replaced.
    is_checked: AtomicBool,
    /// The newest line that was sealed, and of which audit log; held while one is written.
    newest: tokio::sync::Mutex<Option<(String, u64)>>,
}

impl Records {
    /// The record as it lies there.
    ///
    /// # Errors
    /// [`RecordError::Broken`] where it is none that Strongroom sealed there.
    pub async fn reach(&self) -> Result<Option<ReachRecord>, RecordError> {
        Ok(self.load::<ReachRecord>(Table::Appliance, REACH).await?.map(|at| at.record))
    }

    /// Whether what lay there at the start was compared.
    pub fn reach_is_checked(&self) -> bool {
        self.reach.is_checked.load(Ordering::Acquire)
    }

    /// It was: it may be replaced from here on.
    pub fn reach_was_checked(&self) {
        self.reach.is_checked.store(true, Ordering::Release);
    }

    /// Keeps the newest line of the audit log, durably, whatever room there is; sealed where `may_seal` and
    /// custody does it. Returns whether a sealed record reaches this line.
    pub async fn keep_reach(
        &self,
        trail: &str,
        (line, head): (u64, &str),
        may_seal: bool,
    ) -> Result<bool, RecordError> {
        let mut newest = self.reach.newest.lock().await;
        if newest.as_ref().is_some_and(|(of, known)| of == trail && *known >= line) {
            return Ok(true);
        }
        let value = encode(HEAD, &head)?;
        let open = || {
            let batch = Batch::new().put(Table::Appliance, HEAD, Expect::Any, value.clone());
            batch.from_reserve()
        };
        if may_seal && self.home().is_some() && self.reach_is_checked() {
            let record = ReachRecord {
                trail: trail.to_owned(),
                line,
                head: head.to_owned(),
                changes: self.changes(),
                state: self.store.state_key()?.is_some(),
            };
            match self.put_reach(open(), &record).await {
                Ok(batch) => {
                    self.store.commit(batch).await?;
                    *newest = Some((record.trail, line));
                    return Ok(true);
                }
                Err(error) => tracing::debug!(%error, "the newest line is kept unsealed"),
            }
        }
        self.store.commit(open()).await?;
        Ok(false)
    }

    async fn put_reach(&self, batch: Batch, record: &ReachRecord) -> Result<Batch, RecordError> {
        let known = self.store.get(Table::Appliance, REACH)?.map(|stored| stored.revision);
        // Without waiting for the next store key: it is one seal in five seconds at most.
        let store_key = self.key_for_pass().await?;
        let at = (Table::Appliance, REACH, known);
        self.put_sealed_under(&store_key, batch, at, record).await
    }
}
