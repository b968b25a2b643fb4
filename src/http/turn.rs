//! Turns: what a request takes of what its user may have under way, and how long it waits for that.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A request under way. Goes with the deed, not with its caller.
#[must_use = "the turn ends with it"]
pub struct Turn(#[allow(dead_code)] Option<OwnedSemaphorePermit>); // held, never looked at

impl Turn {
    /// One that takes nothing.
    pub const FREE: Self = Self(None);
}

/// Its own user's requests have been under way for too long before it.
#[derive(Debug)]
pub struct NoTurn;

/// How long a request waits for its user's turn.
const PATIENCE: Duration = Duration::from_secs(2);

/// Takes so many of the turns, waiting for them if need be; takes none once it is `waived`.
pub async fn take(
    turns: &Arc<Semaphore>,
    weight: u32,
    waived: impl Future<Output = ()>,
) -> Result<Turn, NoTurn> {
    if let Ok(turn) = Arc::clone(turns).try_acquire_many_owned(weight) {
        return Ok(Turn(Some(turn)));
    }
    tokio::select! {
        turn = Arc::clone(turns).acquire_many_owned(weight) => {
            turn.map(|turn| Turn(Some(turn))).map_err(|_| NoTurn)
        }
        () = waived => Ok(Turn::FREE),
        () = tokio::time::sleep(PATIENCE) => Err(NoTurn),
    }
}
