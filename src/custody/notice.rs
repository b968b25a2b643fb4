//! What custody tells the front unasked: that its token is away, and why.
//!
//! A notice is an answer to request 0, which nobody asks.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::protocol::Answer;
use super::wire::{Packet, WireError};

/// The request id of notices.
pub const UNASKED: u64 = 0;

/// The way to the front, while one is connected.
#[derive(Default)]
pub struct Notices {
    front: Mutex<Option<Arc<OwnedFd>>>,
}

impl Notices {
    /// Whom to tell from now on.
    pub fn go_to(&self, front: Option<Arc<OwnedFd>>) {
        *self.front.lock().unwrap_or_else(PoisonError::into_inner) = front;
    }

    /// Tells the front, if it listens; never waits for it.
    pub fn tell(&self, answer: &Answer) {
        let front = self.front.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(front) = front else { return };
        let told = Packet::new().and_then(|mut packet| {
            let sent = packet.send_at_once(front.as_fd(), UNASKED, answer);
            sent.or_else(
                |error| if matches!(error, WireError::Closed) { Ok(()) } else { Err(error) },
            )
        });
        if let Err(error) = told {
            tracing::warn!(%error, "the front could not be told why the token is away");
        }
    }
}
