//! How the appliance stands: counts for metrics, and the settings that acts look at.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::cause::Cause;
use super::error::Error;
use super::socket::SocketState;
use crate::key::WaitingPeriod;
use crate::policy::Action;
use crate::records::LockRecord;

/// The `[keys]` part of the configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Days between the request to destroy a key and its destruction, 1 to 365.
    pub destroy_wait_days: WaitingPeriod,
    /// Seconds between two looks for destructions that fell due.
    pub sweep_seconds: u64,
    /// Hours that the clock may be ahead of the time that has passed, or the machine have been off,
    /// before destructions wait for an operator who confirms the clock.
    pub clock_doubt_hours: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            destroy_wait_days: WaitingPeriod::default(),
            sweep_seconds: 60,
            clock_doubt_hours: 6,
        }
    }
}

/// The `[secrets]` part of the configuration.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecretSettings {
    /// Whether a secret is overwritten only by a request with `if-match` or `if-none-match`.
    pub require_precondition: bool,
}

/// Whether the trail is the one that custody remembers, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum History {
    /// Custody, or its token, was not asked yet.
    Unknown,
    Fits,
    /// Custody cannot read or write what it remembers; why, for an operator.
    Unreadable(String),
    /// Nothing is done; why, for an operator.
    RolledBack(String),
}

/// What is counted since the start.
pub struct Standing {
    started: Instant,
    counts: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    /// Findings of an edited store that the trail was told of.
    pub(super) edits_told: AtomicU64,
    /// Why the record of what the appliance is cannot be the newest one, where that is known.
    pub(super) home_behind: OnceLock<String>,
    /// Whether store and trail end as custody remembers.
    pub(super) history: watch::Sender<History>,
    /// Why the newest unlock since the last lock failed, where that was the PIN.
    unlock_failed: Mutex<Option<(Cause, String)>>,
    /// The record of a lock that the store could not be told of yet.
    owed_lock: Mutex<Option<LockRecord>>,
    pub(super) socket: SocketState,
}

impl Standing {
    pub(super) fn new() -> Self {
        let edits_told = AtomicU64::new(0);
        let (counts, home_behind) = (Mutex::new(BTreeMap::new()), OnceLock::new());
        let (unlock_failed, owed_lock) = (Mutex::default(), Mutex::default());
        let started = Instant::now();
        let socket = SocketState::default();
        let history = watch::Sender::new(History::Unknown);
        Self { started, counts, edits_told, home_behind, history, unlock_failed, owed_lock, socket }
    }

    /// An unlock came to this: what was wrong with the PIN stays known while the appliance is locked.
    pub(super) fn unlock_failed(&self, error: &Error) {
        if let (Error::PinRefused { .. } | Error::PinUnavailable { .. }, Some(cause)) =
            (error, error.cause())
        {
            let failed = Some((cause, error.to_string()));
            *self.unlock_failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
        }
    }

    /// A lock is a new beginning.
    pub(super) fn forget_unlock(&self) {
        *self.unlock_failed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Why the newest unlock failed, if it was the PIN.
    pub(super) fn failed_unlock(&self) -> Option<(Cause, String)> {
        self.unlock_failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn owe_lock(&self, record: Option<LockRecord>) {
        *self.owed_lock.lock().unwrap_or_else(PoisonError::into_inner) = record;
    }

    pub(super) fn owed_lock(&self) -> Option<LockRecord> {
        self.owed_lock.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn count(&self, action: Action, result: &'static str) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((action.as_str(), result)).or_default() += 1;
    }

    /// Requests by action and result (`done` or the code of the error).
    pub fn counts(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Seconds since the start.
    pub fn uptime_seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}
