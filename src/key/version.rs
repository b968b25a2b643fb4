//! One version of a key: its state, and what every step of SP 800-57 makes of it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{State, Transition, TransitionError};

/// One version of a key: its state, its public name and when what happened to it.
/// What is stored of it only grows: new members are optional, so older records stay readable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionMeta {
    pub(super) version: u32,
    state: State,
    pub(super) kid: String,
    created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    activated_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    suspended_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deactivated_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compromised_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    destroy_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    destroyed_at: Option<Timestamp>,
    /// Not there where it was made before this was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) origin: Option<Origin>,
}

/// Where a private key comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Custody made it, and it was never in the clear elsewhere.
    Generated,
    /// It was made elsewhere, where there may be copies.
    Imported,
}

impl VersionMeta {
    /// A version that is active from the start.
    pub(super) fn active(version: u32, kid: String, now: Timestamp) -> Self {
        Self {
            version,
            state: State::Active,
            kid,
            created_at: now,
            activated_at: Some(now),
            suspended_at: None,
            deactivated_at: None,
            compromised_at: None,
            destroy_at: None,
            destroyed_at: None,
            origin: None,
        }
    }

    /// Where its private key comes from; `None` where that was not noted.
    pub fn origin(&self) -> Option<Origin> {
        self.origin
    }

    /// The number, counted from 1.
    pub fn version(&self) -> u32 {
        self.version
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// RFC 7638 thumbprint of the public key.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    pub fn created_at(&self) -> Timestamp {
        self.created_at
    }

    pub fn activated_at(&self) -> Option<Timestamp> {
        self.activated_at
    }

    /// Since when it is suspended; `None` when it is not.
    pub fn suspended_at(&self) -> Option<Timestamp> {
        self.suspended_at
    }

    pub fn deactivated_at(&self) -> Option<Timestamp> {
        self.deactivated_at
    }

    pub fn compromised_at(&self) -> Option<Timestamp> {
        self.compromised_at
    }

    /// When a scheduled destruction falls due; `None` when none is scheduled.
    pub fn destroy_at(&self) -> Option<Timestamp> {
        self.destroy_at
    }

    pub fn destroyed_at(&self) -> Option<Timestamp> {
        self.destroyed_at
    }

    /// Active, and no destruction waits.
    pub(super) fn is_usable(&self) -> bool {
        self.state == State::Active && self.destroy_at.is_none()
    }

    /// This version after `transition` at the time `now`, or why that step is not allowed.
    pub fn after(&self, transition: Transition, now: Timestamp) -> Result<Self, TransitionError> {
        let version = self.version;
        match (transition, self.destroy_at) {
            _ if self.state == State::Destroyed => Err(TransitionError::Destroyed { version }),
            (Transition::Compromise, _) if self.state == State::Compromised => {
                Err(TransitionError::AlreadyCompromised { version })
            }
            (Transition::Compromise, _) => Ok(self.compromised(now)),
            (Transition::Restore | Transition::Destroy, None) => {
                Err(TransitionError::NotScheduled { version })
            }
            (Transition::Restore, Some(at)) if now >= at => {
                Err(TransitionError::WaitIsOver { version, at })
            }
            (Transition::Restore, Some(_)) => Ok(Self { destroy_at: None, ..self.clone() }),
            (Transition::Destroy, Some(at)) if now < at => {
                Err(TransitionError::NotDue { version, at })
            }
            (Transition::Destroy, Some(_)) => Ok(self.destroyed(now)),
            (_, Some(at)) => Err(TransitionError::Scheduled { version, at }),
            (Transition::ScheduleDestruction(period), None) => {
                Ok(Self { destroy_at: Some(period.end(now)), ..self.clone() })
            }
            (Transition::Activate, None) => self.activated(now),
            (Transition::Suspend, None) => self.suspended(now),
            (Transition::Resume, None) => self.resumed(),
            (Transition::Deactivate, None) => self.deactivated(now),
        }
    }

    fn activated(&self, now: Timestamp) -> Result<Self, TransitionError> {
        self.must_be(&[State::PreActive], Transition::Activate, "pre-active")?;
        Ok(Self { state: State::Active, activated_at: Some(now), ..self.clone() })
    }

    fn suspended(&self, now: Timestamp) -> Result<Self, TransitionError> {
        self.must_be(&[State::Active], Transition::Suspend, "active")?;
        Ok(Self { state: State::Suspended, suspended_at: Some(now), ..self.clone() })
    }

    fn resumed(&self) -> Result<Self, TransitionError> {
        self.must_be(&[State::Suspended], Transition::Resume, "suspended")?;
        Ok(Self { state: State::Active, suspended_at: None, ..self.clone() })
    }

    fn deactivated(&self, now: Timestamp) -> Result<Self, TransitionError> {
        let from = [State::Active, State::Suspended];
        self.must_be(&from, Transition::Deactivate, "active or suspended")?;
        Ok(Self {
            state: State::Deactivated,
            deactivated_at: Some(now),
            suspended_at: None,
            ..self.clone()
        })
    }

    fn compromised(&self, now: Timestamp) -> Self {
        Self {
            state: State::Compromised,
            compromised_at: Some(now),
            suspended_at: None,
            ..self.clone()
        }
    }

    fn destroyed(&self, now: Timestamp) -> Self {
        Self {
            state: State::Destroyed,
            destroyed_at: Some(now),
            destroy_at: None,
            suspended_at: None,
            ..self.clone()
        }
    }

    fn must_be(
        &self,
        allowed: &[State],
        step: Transition,
        needed: &'static str,
    ) -> Result<(), TransitionError> {
        if allowed.contains(&self.state) {
            return Ok(());
        }
        Err(TransitionError::WrongState {
            version: self.version,
            state: self.state,
            step: step.as_str(),
            needed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::WaitingPeriod;
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn in_state(state: State) -> VersionMeta {
        VersionMeta { state, ..VersionMeta::active(1, "kid".to_owned(), at(0)) }
    }

    fn schedule() -> Transition {
        Transition::ScheduleDestruction(WaitingPeriod::default())
    }

    #[test]
    fn every_step_from_every_state() {
        use State::*;
        use Transition::*;
        let allowed = [
            (PreActive, Activate, Active),
            (Active, Suspend, Suspended),
            (Suspended, Resume, Active),
            (Active, Transition::Deactivate, Deactivated),
            (Suspended, Transition::Deactivate, Deactivated),
            (PreActive, Compromise, Compromised),
            (Active, Compromise, Compromised),
            (Suspended, Compromise, Compromised),
            (Deactivated, Compromise, Compromised),
            (PreActive, schedule(), PreActive),
            (Active, schedule(), Active),
            (Suspended, schedule(), Suspended),
            (Deactivated, schedule(), Deactivated),
            (Compromised, schedule(), Compromised),
        ];
        let steps =
            [Activate, Suspend, Resume, Deactivate, Compromise, schedule(), Restore, Destroy];
        for state in State::ALL {
            for step in steps {
                let result = in_state(state).after(step, at(5)).map(|version| version.state);
                let expected = allowed.iter().find(|(from, by, _)| (*from, *by) == (state, step));
                match expected {
                    Some((_, _, to)) => assert_eq!(result, Ok(*to), "{state} {step:?}"),
                    None => assert!(result.is_err(), "{state} {step:?} gave {result:?}"),
                }
            }
        }
    }

    #[test]
    fn destruction_waits_its_period_and_not_a_second_less() {
        let day = 24 * 3600;
        let one_day = Transition::ScheduleDestruction(WaitingPeriod::of_days(1).unwrap());
        let waiting = in_state(State::Suspended).after(one_day, at(0)).unwrap();
        assert_eq!(waiting.destroy_at(), Some(at(day)));
        let early = waiting.after(Transition::Destroy, at(day - 1)).unwrap_err();
        assert_eq!(early, TransitionError::NotDue { version: 1, at: at(day) });
        let restored = waiting.after(Transition::Restore, at(day - 1)).unwrap();
        assert_eq!((restored.state(), restored.destroy_at()), (State::Suspended, None));
        let late = waiting.after(Transition::Restore, at(day)).unwrap_err();
        assert_eq!(late, TransitionError::WaitIsOver { version: 1, at: at(day) });
        let gone = waiting.after(Transition::Destroy, at(day)).unwrap();
        assert_eq!((gone.state(), gone.destroyed_at()), (State::Destroyed, Some(at(day))));
    }

    #[test]
    fn a_version_that_waits_takes_no_step_but_compromise() {
        let waiting = in_state(State::Active).after(schedule(), at(0)).unwrap();
        for step in [Transition::Suspend, Transition::Deactivate, schedule()] {
            let error = waiting.after(step, at(1)).unwrap_err();
            assert!(error.to_string().ends_with("restore it first"), "{error}");
        }
        let compromised = waiting.after(Transition::Compromise, at(1)).unwrap();
        assert_eq!(compromised.state(), State::Compromised);
        assert_eq!(compromised.destroy_at(), waiting.destroy_at());
    }

    #[test]
    fn errors_say_where_it_is_and_what_is_needed() {
        let error = in_state(State::Deactivated).after(Transition::Resume, at(0)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "version 1 is deactivated; to resume it, it must be suspended"
        );
    }
}
