//! Whether the listening socket lies where callers look for it.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::custody::protocol::{Check, Verdict};

/// What is known of the socket's path since the start.
#[derive(Default)]
pub struct SocketState(Mutex<Known>);

#[derive(Default)]
struct Known {
    missing: Option<String>,
    made_again: Option<(Timestamp, String)>,
}

/// What happened to the listening socket.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SocketView {
    /// Whether new connections reach the daemon.
    pub reachable: bool,
    pub detail: String,
}

impl SocketState {
    /// The socket lies at its path.
    pub fn is_in_place(&self) {
        self.known().missing = None;
    }

    /// It was gone or replaced, and was made again.
    pub fn was_made_again(&self, fault: &str) {
        let mut known = self.known();
        known.missing = None;
        known.made_again = Some((Timestamp::now(), fault.to_owned()));
    }

    /// It is gone or replaced, and cannot be made again; true where that is new.
    pub fn is_missing(&self, what: &str) -> bool {
        self.known().missing.replace(what.to_owned()).is_none()
    }

    /// For status: absent where nothing has happened to the socket.
    pub(super) fn view(&self) -> Option<SocketView> {
        let known = self.known();
        match (&known.missing, &known.made_again) {
            (Some(what), _) => Some(SocketView { reachable: false, detail: what.clone() }),
            (None, Some((at, fault))) => {
                let detail = format!("{fault}, and was made again at {at:.0}");
                Some(SocketView { reachable: true, detail })
            }
            (None, None) => None,
        }
    }

    pub(super) fn check(&self) -> Check {
        let (verdict, found, remedy) = match self.view() {
            None => (Verdict::Ok, "lies at its path".to_owned(), ""),
            Some(view) if view.reachable => (
                Verdict::Warn,
                view.detail,
                "what removes files there: a cleaner of temporary files, a second daemon, a script",
            ),
            Some(view) => (Verdict::Fail, view.detail, "[listen] socket"),
        };
        Check { name: "socket".to_owned(), verdict, found, remedy: remedy.to_owned() }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
