//! Checkpoints and heads: what is signed, and what is kept outside the trail, so that a cut tail or a
//! rewritten past can be seen.

use std::pin::Pin;
use std::time::{Duration, Instant};

use super::begin::head_of;
use super::entry::EventNote;
use super::gather::Durable;
use super::line::Head;
use super::writer::{Job, Signed};
use super::{AuditError, Event, Trail};
use crate::custody::protocol::{Begun, Newest, Noted};
use crate::custody::{Checkpoint, Mark};

/// What is to be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToSign {
    pub trail: String,
    pub head: Head,
    /// The newest checkpoint that the trail holds.
    pub before: Mark,
    /// The trail ends with it in order.
    pub closes: bool,
    /// The head is sealed in the store.
    pub stored: bool,
}

/// A checkpoint that was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    pub checkpoint: Checkpoint,
    /// Custody remembered none, and believed which one was the newest.
    pub adopted: bool,
}

/// Why there is no signature now. Lines are written nevertheless, and it is tried again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The appliance has no signing key yet, or is locked.
    #[error("there is no signing key to use")]
    NotReady,
    /// The token or the way to it does not work now.
    #[error("the signing key cannot be reached")]
    Unavailable,
    /// The newest checkpoint that custody remembers is another one than the trail has.
    #[error("{0}")]
    NotNewest(String),
    /// Custody cannot write its own state, and signs nothing that it could not remember.
    #[error("{0}")]
    Unremembered(String),
}

/// A future that borrows nothing.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Signs checkpoints in a chain, and remembers the newest one.
pub trait Signer: Send + Sync {
    /// Signs the next one; what was asked before and not answered is given again.
    fn sign(&self, wanted: ToSign) -> BoxFuture<Result<Signature, SignError>>;

    /// What is remembered.
    fn newest(&self) -> BoxFuture<Result<Newest, SignError>>;

    /// A trail is gone on with whose newest checkpoint is this one; what it was accepted in the place of, and
    /// how far the store must reach. `holds`: whether lines stand behind its orderly end, and the noted line,
    /// where it has that.
    fn begin(
        &self,
        trail: String,
        newest: Mark,
        holds: (bool, Option<Noted>),
    ) -> BoxFuture<Result<Begun, SignError>>;

    /// Notes the newest line where it cannot be signed; the trail must hold it at the next start.
    fn note(&self, trail: String, head: Head, closes: bool) -> BoxFuture<Result<(), SignError>>;
}

/// How the newest line is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// By a checkpoint over this line.
    Signed(Head),
    /// By custody alone: nothing can be signed now.
    Noted,
}

/// Keeps heads of the trail somewhere else; the newest one is handed to [`Trail::open`] next time.
pub trait HeadKeeper: Send + Sync {
    /// `head` is durable in the trail. `signed` says that a checkpoint covers it. A keeper that fails
    /// says so in its own log; the trail goes on. Returns whether it is kept where nobody else can write it.
    fn keep(&self, trail: &str, head: Head, signed: bool) -> BoxFuture<bool>;
}

impl Trail {
    /// Signs the newest head, if anything came since the last checkpoint, and returns what is covered
    /// when the checkpoint is durable. One is made at a time.
    pub async fn checkpoint(&self) -> Result<Head, AuditError> {
        self.sign_head(false).await
    }

    /// The same; where nothing can be signed, custody notes the newest line.
    pub(super) async fn keep_head(&self, closes: bool) -> Result<Kept, AuditError> {
        let error = match self.sign_head(closes).await {
            Err(error @ AuditError::NotSigned(SignError::NotReady | SignError::Unavailable)) => {
                error
            }
            signed => return signed.map(Kept::Signed),
        };
        // No checkpoint is made meanwhile.
        let _newest = self.newest.lock().await;
        let head = self.shared.durable().head;
        let noted = self.signer.note(self.id.clone(), head, closes).await;
        noted.map(|()| Kept::Noted).map_err(|why| {
            tracing::debug!(%why, %head, "custody does not note the newest line now");
            error
        })
    }

    /// The same; with `closes`, it is the last one of a trail that ends in order.
    pub(super) async fn sign_head(&self, closes: bool) -> Result<Head, AuditError> {
        let mut newest = self.newest.lock().await;
        if self.shared.is_held() {
            return Err(AuditError::Held);
        }
        let durable = self.shared.durable();
        if let Some(covered) = durable.checkpoint.filter(|_| durable.uncovered() == 0) {
            return Ok(covered);
        }
        let ends = (closes, self.keeper.keep(&self.id, durable.head, false).await);
        let signed = match self.signer.sign(self.to_sign(*newest, &durable, ends)).await {
            Err(SignError::NotNewest(why)) => {
                // It may have signed one whose answer was lost: then that one comes first.
                let known = self.signer.newest().await?;
                let Some(checkpoint) = self.missing(&known, *newest)? else {
                    return Err(SignError::NotNewest(why).into());
                };
                self.write_checkpoint(&mut newest, checkpoint, None).await?;
                self.signer.sign(self.to_sign(*newest, &durable, ends)).await?
            }
            signed => signed?,
        };
        let Signature { checkpoint, adopted } = signed;
        let head = self.write_checkpoint(&mut newest, checkpoint, Some(durable.others)).await?;
        if adopted {
            self.event(EventNote::new(Event::CheckpointAdopted).about_line(head.seq)).await?;
        }
        Ok(head)
    }

    fn to_sign(&self, before: Mark, durable: &Durable, (closes, stored): (bool, bool)) -> ToSign {
        ToSign { trail: self.id.clone(), head: durable.head, before, closes, stored }
    }

    /// Writes the next checkpoint; `others` lines that are none are covered by it, where that is known.
    pub(super) async fn write_checkpoint(
        &self,
        newest: &mut Mark,
        checkpoint: Checkpoint,
        others: Option<u64>,
    ) -> Result<Head, AuditError> {
        let (mark, head) = (checkpoint.mark, head_of(&checkpoint.mark));
        let signed = Signed { checkpoint, others: others.unwrap_or(0) };
        self.hand_in(|reply| Job::Checkpoint { signed, reply }).durable().await?;
        *newest = mark;
        self.keeper.keep(&self.id, head, true).await;
        tracing::info!(target: "strongroom::audit", trail = %self.id, %head, number = mark.number, "checkpoint");
        Ok(head)
    }

    /// Makes checkpoints when they are due and keeps heads between them, for as long as it is polled.
    /// Run it beside everything else; it ends with the trail.
    pub async fn tend(&self) {
        let mut kept = (self.shared.durable().head, Instant::now());
        let mut last = Instant::now();
        let mut silent = false;
        loop {
            let tick = tokio::time::sleep(Duration::from_secs(1));
            let asked = tokio::select! {
                () = self.shared.checkpoint_due.notified() => true,
                () = tick => false,
            };
            let durable = self.shared.durable();
            let many = durable.uncovered() >= self.settings.checkpoint_lines;
            let long = last.elapsed() >= Duration::from_secs(self.settings.checkpoint_seconds);
            if (many || long) && durable.uncovered() > 0 {
                let result = self.keep_head(false).await;
                match &result {
                    Ok(Kept::Signed(head)) => {
                        last = Instant::now();
                        kept = (*head, last);
                    }
                    Ok(Kept::Noted) => last = Instant::now(),
                    Err(AuditError::Closed) => return,
                    Err(error) if !silent => {
                        tracing::warn!(%error, "no checkpoint now; it is tried again");
                    }
                    Err(_) => {}
                }
                silent = result.is_err();
                if asked && !matches!(result, Ok(Kept::Signed(_))) {
                    // `checkpoint_due` is told with every group; failing must not be busy.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            let head = self.head();
            if head.seq > kept.0.seq && kept.1.elapsed().as_secs() >= self.settings.head_seconds {
                self.keeper.keep(&self.id, head, false).await;
                tracing::debug!(target: "strongroom::audit", trail = %self.id, %head, "head");
                kept = (head, Instant::now());
            }
        }
    }
}
