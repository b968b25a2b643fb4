//! Checkpoints and heads: what is signed, and what is kept outside the trail, so that a cut tail or a
//! rewritten past can be seen.

use std::pin::Pin;
use std::time::{Duration, Instant};

use super::line::{Head, checkpoint_message};
use super::writer::{Job, Signed};
use super::{AuditError, Trail};

/// A signature of the trail's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// Which generation of the key made it.
    pub generation: u32,
    /// ECDSA over P-256: r ‖ s, 32 bytes each, big endian.
    pub bytes: [u8; 64],
}

/// Why there is no signature now. Lines are written nevertheless, and it is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The appliance has no signing key yet, or is locked.
    #[error("there is no signing key to use")]
    NotReady,
    /// The token or the way to it does not work now.
    #[error("the signing key cannot be reached")]
    Unavailable,
}

/// A future that borrows nothing.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Signs checkpoints: ECDSA P-256 with SHA-256 over the message as it is.
pub trait Signer: Send + Sync {
    fn sign(&self, message: Vec<u8>) -> BoxFuture<Result<Signature, SignError>>;
}

/// Keeps heads of the trail somewhere else; the newest one is handed to [`Trail::open`] next time.
pub trait HeadKeeper: Send + Sync {
    /// `head` is durable in the trail. `signed` says that a checkpoint covers it. A keeper that fails
    /// says so in its own log; the trail goes on.
    fn keep(&self, head: Head, signed: bool) -> BoxFuture<()>;
}

/// A signature that is older than this many lines when it arrives is not used: `verify` keeps the
/// hashes of four times as many.
const MAX_BEHIND: u64 = 16 * 1024;

impl Trail {
    /// Signs the newest head, if anything came since the last checkpoint, and returns what is covered
    /// when the checkpoint is durable. One is made at a time.
    pub async fn checkpoint(&self) -> Result<Head, AuditError> {
        let _one = self.signing.lock().await;
        let durable = self.shared.durable();
        if let Some(covered) = durable.checkpoint.filter(|_| durable.uncovered() == 0) {
            return Ok(covered);
        }
        let (head, at) = (durable.head, format!("{:.6}", jiff::Timestamp::now()));
        let signature = self.signer.sign(checkpoint_message(&self.id, &head, &at)).await?;
        if self.head().seq - head.seq > MAX_BEHIND {
            return Err(AuditError::Deadline);
        }
        let signed = Signed { head, at, signature, others: durable.others };
        self.hand_in(|reply| Job::Checkpoint { signed, reply }).durable().await?;
        self.keeper.keep(head, true).await;
        tracing::info!(target: "strongroom::audit", trail = %self.id, %head, "checkpoint");
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
                let result = self.checkpoint().await;
                match &result {
                    Ok(head) => {
                        last = Instant::now();
                        kept = (*head, last);
                    }
                    Err(AuditError::Closed) => return,
                    Err(error) if !silent => {
                        tracing::warn!(%error, "no checkpoint now; it is tried again");
                    }
                    Err(_) => {}
                }
                silent = result.is_err();
                if asked && silent {
                    // `checkpoint_due` is told with every group; failing must not be busy.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            let head = self.head();
            if head.seq > kept.0.seq && kept.1.elapsed().as_secs() >= self.settings.head_seconds {
                self.keeper.keep(head, false).await;
                tracing::debug!(target: "strongroom::audit", trail = %self.id, %head, "head");
                kept = (head, Instant::now());
            }
        }
    }
}
