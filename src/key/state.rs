//! The life of one version of a key: the states of SP 800-57 part 1 rev. 5 §7 and the steps between them.
//!
//! ```text
//! pre-active ─activate─▶ active ◀─resume─ suspended        compromise: from every state but destroyed, at once
//!                          │ └──suspend──▶    │            schedule-destruction: from every state but destroyed;
//!                          └──deactivate──────┴▶ deactivated     the state stays beside `destroy_at`
//!                                                          restore: takes `destroy_at` away until it falls due
//! destroyed ◀─destroy─ whatever was scheduled and is due   destroyed: the end
//! ```
//!
//! While a destruction waits the version serves nobody: the waiting is there to show who still needs it.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// A state of SP 800-57 part 1 rev. 5 §7.1 to §7.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Made, but not yet for use.
    PreActive,
    /// The newest one protects; all of them process.
    Active,
    /// Halted, may come back.
    Suspended,
    /// Its time is over: protects nothing, processes only what policy allows for recovery.
    Deactivated,
    /// Known or believed to be known to somebody else: like deactivated, and for good.
    Compromised,
    /// The key bytes are gone; the record stays.
    Destroyed,
}

impl State {
    pub const ALL: [State; 6] = [
        State::PreActive,
        State::Active,
        State::Suspended,
        State::Deactivated,
        State::Compromised,
        State::Destroyed,
    ];

    /// The name on the wire and in the trail: `pre-active`.
    pub fn as_str(self) -> &'static str {
        match self {
            State::PreActive => "pre-active",
            State::Active => "active",
            State::Suspended => "suspended",
            State::Deactivated => "deactivated",
            State::Compromised => "compromised",
            State::Destroyed => "destroyed",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A step from one state to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    Activate,
    Suspend,
    Resume,
    Deactivate,
    Compromise,
    /// Destroy when this long has passed, unless restored before.
    ScheduleDestruction(WaitingPeriod),
    /// Cancel a scheduled destruction.
    Restore,
    /// Carry out a scheduled destruction that is due.
    Destroy,
}

impl Transition {
    /// Whether a key does less after it than before.
    pub fn restricts(self) -> bool {
        match self {
            Transition::Activate | Transition::Resume | Transition::Restore => false,
            Transition::Suspend
            | Transition::Deactivate
            | Transition::Compromise
            | Transition::ScheduleDestruction(_)
            | Transition::Destroy => true,
        }
    }

    /// The word for it in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Transition::Activate => "activate",
            Transition::Suspend => "suspend",
            Transition::Resume => "resume",
            Transition::Deactivate => "deactivate",
            Transition::Compromise => "compromise",
            Transition::ScheduleDestruction(_) => "schedule the destruction of",
            Transition::Restore => "restore",
            Transition::Destroy => "destroy",
        }
    }
}

/// How long a destruction waits, in whole days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct WaitingPeriod(u16);

/// Not a waiting period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a destruction waits {MIN} to {MAX} days, not {days}", MIN = WaitingPeriod::MIN_DAYS, MAX = WaitingPeriod::MAX_DAYS)]
pub struct WaitingPeriodError {
    days: u16,
}

impl WaitingPeriod {
    pub const MIN_DAYS: u16 = 1;
    pub const MAX_DAYS: u16 = 365;

    /// Checks `days` against the least and the most.
    pub fn of_days(days: u16) -> Result<Self, WaitingPeriodError> {
        if (Self::MIN_DAYS..=Self::MAX_DAYS).contains(&days) {
            Ok(Self(days))
        } else {
            Err(WaitingPeriodError { days })
        }
    }

    pub fn days(self) -> u16 {
        self.0
    }

    /// When a destruction that is asked for at `now` falls due; a day is 24 hours.
    pub(super) fn end(self, now: Timestamp) -> Timestamp {
        let wait = SignedDuration::from_hours(24 * i64::from(self.0));
        now.checked_add(wait).unwrap_or(Timestamp::MAX)
    }
}

/// 30 days.
impl Default for WaitingPeriod {
    fn default() -> Self {
        Self(30)
    }
}

impl TryFrom<u16> for WaitingPeriod {
    type Error = WaitingPeriodError;
    fn try_from(days: u16) -> Result<Self, WaitingPeriodError> {
        Self::of_days(days)
    }
}

impl From<WaitingPeriod> for u16 {
    fn from(period: WaitingPeriod) -> u16 {
        period.0
    }
}

/// The step is not allowed from here; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransitionError {
    #[error("the key has no version {version}; its newest is {newest}")]
    NoVersion { version: u32, newest: u32 },
    #[error("version {version} is {state}; to {step} it, it must be {needed}")]
    WrongState { version: u32, state: State, step: &'static str, needed: &'static str },
    #[error("version {version} is compromised already")]
    AlreadyCompromised { version: u32 },
    #[error("version {version} is to be destroyed at {at}; restore it first")]
    Scheduled { version: u32, at: Timestamp },
    #[error("no destruction of version {version} is scheduled")]
    NotScheduled { version: u32 },
    #[error("the destruction of version {version} fell due at {at} and can no longer be cancelled")]
    WaitIsOver { version: u32, at: Timestamp },
    #[error("the destruction of version {version} is not due before {at}")]
    NotDue { version: u32, at: Timestamp },
    #[error("version {version} is destroyed; nothing brings it back")]
    Destroyed { version: u32 },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_period_has_a_least_and_a_most() {
        assert!(serde_json::from_str::<WaitingPeriod>("0").is_err());
        assert!(serde_json::from_str::<WaitingPeriod>("366").is_err());
        assert_eq!(serde_json::from_str::<WaitingPeriod>("1").unwrap().days(), 1);
        assert_eq!(WaitingPeriod::default().days(), 30);
    }

    #[test]
    fn the_names_of_the_states_are_the_same_in_json() {
        for state in State::ALL {
            let json = serde_json::to_string(&state).unwrap();
            assert_eq!(json, format!("\"{state}\""));
        }
    }
}
