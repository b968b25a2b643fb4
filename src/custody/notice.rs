//! What custody tells the front unasked: that its token is away, and why.
//!
//! A notice is an answer to request 0, which nobody asks.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::fronts::Fronts;
use super::protocol::Answer;
use super::wire::{Packet, WireError};

/// The request id of notices.
pub const UNASKED: u64 = 0;

/// The way to all who are connected.
#[derive(Default)]
pub struct Notices {
    pub fronts: Arc<Fronts>,
}

impl Notices {
    /// Tells everybody who listens; never waits for anybody.
    pub fn tell(&self, answer: &Answer) {
        for front in self.fronts.all() {
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
}
