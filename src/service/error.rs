//! Why a request was not done: what lies below, wrapped; `http::problem` alone turns it into codes.

use jiff::Timestamp;

use super::cause::Cause;
use crate::audit::AuditError;
use crate::custody::protocol::Fault;
use crate::custody::{CustodyError, Reason};
use crate::key::{LabelsError, RotateError, TransitionError, UseError, WaitingPeriodError};
use crate::policy::Denied;
use crate::records::RecordError;
use crate::secret::ArenaError;
use crate::store::StoreError;

/// The outcome of a request that was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("policy does not permit this")]
    Denied(Denied),
    /// Denied as well, and too often to be recorded one by one.
    #[error("policy does not permit this, and this user was refused too often in this minute")]
    TooManyRefusals { seconds: u32 },
    #[error("this user has caused as many bytes of the audit log as one may in a day")]
    AuditBudget { seconds: u32 },
    #[error("this user has stored as many records as one may in a day")]
    RecordBudget { seconds: u32 },
    #[error("there is no {0} of this name")]
    NotFound(&'static str),
    #[error("there is a {0} of this name already")]
    Exists(&'static str),
    /// `if-match` names another revision than the one that is there.
    #[error("it has changed since: it is at revision {current}")]
    Changed { current: u64 },
    #[error("it does not exist, so it has no revision that could match")]
    NothingToMatch,
    /// `if-none-match` names the revision that is there, or any.
    #[error("if-none-match: it exists, at revision {current}")]
    Present { current: u64 },
    /// It would be overwritten, and nothing says that its revision was seen.
    #[error("it exists, and is overwritten only by a request that names its revision")]
    NoPrecondition,
    #[error("another request changed it at the same time; look again and repeat")]
    Conflict,
    #[error("{0}")]
    Use(#[from] UseError),
    #[error("{0}")]
    Transition(#[from] TransitionError),
    #[error("{0}")]
    Rotate(#[from] RotateError),
    #[error("{0}")]
    Labels(#[from] LabelsError),
    #[error("{0}")]
    WaitingPeriod(#[from] WaitingPeriodError),
    #[error("the plaintext has {found} bytes; a key of {algorithm} holds at most {most}")]
    TooLong { algorithm: &'static str, found: usize, most: usize },
    /// Says nothing of what was wrong, on purpose: the text is the same for every failure of a key.
    #[error(
        "decryption failed; this key opens RSA-OAEP ({algorithm}) with SHA-256 and MGF1 with {mgf1_hash}"
    )]
    DecryptionFailed { algorithm: &'static str, mgf1_hash: &'static str },
    #[error("not a private key that can be imported: {0}")]
    BadKey(String),
    /// A member is there, or missing, or has a value that this route does not take.
    #[error("/{member}: {rule}")]
    Invalid { member: &'static str, rule: String },
    #[error("after: not a cursor of this list, or one from before the daemon was started last")]
    Cursor,
    #[error("this appliance is not initialised")]
    NotInitialised,
    #[error("this appliance is initialised already: {0}")]
    AlreadyInitialised(String),
    #[error("the appliance is locked")]
    Locked,
    #[error("the store is older than the trail knows it")]
    Edited,
    #[error("store and audit log do not end as custody remembers")]
    RolledBack,
    #[error("the appliance is not locked")]
    NotLocked,
    /// Only who asked for an unlock is told why.
    #[error("the token refused the PIN: {why}")]
    PinRefused { why: String, told: bool },
    /// No PIN was tried. Only who asked for an unlock is told why.
    #[error("there is no PIN: {why}")]
    PinUnavailable { why: String, told: bool },
    #[error("the master key is not usable: {0}")]
    Master(String),
    /// There is one rotation of the master key at a time.
    #[error("a pass over all keys, to master generation {0}, is under way")]
    Rotating(u32),
    #[error(
        "the last rotation ended at {at:.0}, less than an hour after which none is begun: generation \
         {generation} is in use, and no key was made"
    )]
    RotatedRecently { generation: u32, at: Timestamp },
    #[error("this appliance has no master key of generation {0}")]
    NoGeneration(u32),
    #[error("master generation {generation} is to be destroyed at {at:.0} already")]
    Retiring { generation: u32, at: Timestamp },
    #[error("master generation {0} does not wait for its destruction")]
    NotRetiring(u32),
    #[error("the master key of generation {0} is destroyed already")]
    Retired(u32),
    /// The token was asked to destroy it, and has not said what came of it.
    #[error(
        "the destruction of the master key of generation {0} was begun, and it is not known yet whether the token \
         has done it"
    )]
    Destroying(u32),
    #[error("{count} master keys are not retired, and no more than {most} may be")]
    TooManyMasters { count: usize, most: usize },
    #[error("{count} master keys were made within a day, in which no more are made")]
    RotatedOften { count: usize, seconds: u32 },
    /// Something still lies under the generation that was to be retired, or might.
    #[error("master generation {generation} is still needed: {what}")]
    StillNeeded { generation: u32, what: String },
    /// The recovery key that is set, or is to be set, is not one that custody has.
    #[error("the recovery key: {0}")]
    Recovery(String),
    /// Custody's own rules are against it.
    #[error("custody refuses: {0}")]
    Refused(String),
    #[error("the clock is {0} of the time that has passed, so no destruction is scheduled by it")]
    ClockDoubted(&'static str),
    #[error("there is too much to do at the moment")]
    Busy,
    #[error("the trail cannot be written: {0}")]
    Audit(#[from] AuditError),
    /// The act is done; only its outcome's line is still owed.
    #[error("it is done, and the trail could not be told of its outcome yet: {0}")]
    OutcomeOwed(AuditError),
    #[error("{0}")]
    Record(RecordError),
    #[error("{0}")]
    Custody(CustodyError),
    #[error("locked memory: {0}")]
    Arena(#[from] ArenaError),
    /// The request's own task was lost.
    #[error("the request was abandoned")]
    Abandoned,
}

impl From<RecordError> for Error {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::NotInitialised => Error::NotInitialised,
            RecordError::Conflict => Error::Conflict,
            RecordError::Custody(error) => error.into(),
            other => Error::Record(other),
        }
    }
}

impl From<CustodyError> for Error {
    fn from(error: CustodyError) -> Self {
        match error {
            CustodyError::Fault(Fault::Locked) => Error::Locked,
            CustodyError::Fault(Fault::NotInitialised) => Error::NotInitialised,
            CustodyError::Fault(Fault::PinRefused(why)) => Error::PinRefused { why, told: false },
            CustodyError::Fault(Fault::PinUnavailable(why)) => {
                Error::PinUnavailable { why, told: false }
            }
            CustodyError::Fault(Fault::Master(why)) => Error::Master(why),
            CustodyError::Fault(Fault::BadKey(why)) => Error::BadKey(why),
            CustodyError::Fault(Fault::Exists(what)) => Error::AlreadyInitialised(what),
            CustodyError::Fault(Fault::Busy | Fault::ArenaFull) => Error::Busy,
            CustodyError::Fault(Fault::Recovery(why)) => Error::Recovery(why),
            CustodyError::Fault(Fault::Refused(why)) => Error::Refused(why),
            other => Error::Custody(other),
        }
    }
}

impl Error {
    /// What keeps the appliance from doing it, where it is the appliance.
    pub fn cause(&self) -> Option<Cause> {
        Some(match self {
            Error::NotInitialised => Cause::NotInitialised,
            Error::Locked => Cause::Locked,
            Error::Edited => Cause::Edited,
            Error::RolledBack => Cause::RolledBack,
            Error::PinRefused { .. } => Cause::Token(Reason::PinRefused),
            Error::PinUnavailable { .. } => Cause::Token(Reason::PinUnavailable),
            Error::Master(_) => Cause::Token(Reason::MasterUnfit),
            Error::Audit(_) => Cause::Trail,
            Error::Record(RecordError::Broken(_)) => return None,
            Error::Record(RecordError::Store(StoreError::Unsettled(_))) => return None,
            Error::Record(RecordError::Store(StoreError::Scarce(_) | StoreError::Full)) => {
                Cause::Room
            }
            Error::Record(_) => Cause::Store,
            Error::Custody(
                CustodyError::Away(outage)
                | CustodyError::Fault(
                    Fault::TokenUnavailable(outage)
                    | Fault::TokenAbsent(outage)
                    | Fault::BrownOut(outage),
                ),
            ) => Cause::Token(outage.reason),
            Error::Custody(CustodyError::Gone) => Cause::Token(Reason::CustodyGone),
            Error::Custody(CustodyError::Fault(Fault::State(_))) => {
                Cause::Token(Reason::CustodyState)
            }
            Error::Custody(CustodyError::Fault(Fault::TokenCall(_))) => {
                Cause::Token(Reason::TokenFailed)
            }
            _ => return None,
        })
    }

    /// The stable code of the wire and the trail.
    pub fn code(&self) -> &'static str {
        if let Some(cause) = self.cause() {
            return cause.row().code;
        }
        match self {
            Error::Denied(_) => "denied",
            Error::TooManyRefusals { .. } => "too-many-refusals",
            Error::AuditBudget { .. } => "audit-budget",
            Error::RecordBudget { .. } => "record-budget",
            Error::NotFound(_) | Error::NoGeneration(_) => "not-found",
            Error::Exists(_) => "exists",
            Error::Changed { .. } | Error::NothingToMatch => "revision-mismatch",
            Error::Present { .. } => "precondition-failed",
            Error::NoPrecondition => "precondition-required",
            Error::Conflict => "conflict",
            Error::Use(UseError::NoVersion { .. } | UseError::NoKid) => "no-such-version",
            Error::Use(_) => "key-state",
            Error::Transition(TransitionError::NoVersion { .. }) => "no-such-version",
            Error::Transition(_) | Error::Rotate(_) => "key-state",
            Error::Labels(_) | Error::WaitingPeriod(_) | Error::Invalid { .. } => "invalid",
            Error::Cursor => "invalid-cursor",
            Error::TooLong { .. } => "plaintext-too-long",
            Error::DecryptionFailed { .. } => "decryption-failed",
            Error::BadKey(_) => "bad-key",
            Error::AlreadyInitialised(_) => "already-initialised",
            Error::NotLocked => "not-locked",
            Error::Recovery(_) => "recovery-key",
            Error::Refused(_) => "custody-refused",
            Error::Rotating(_) => "rotation-running",
            Error::RotatedRecently { .. } => "rotated-recently",
            Error::RotatedOften { .. } => "rotated-often",
            Error::TooManyMasters { .. } => "too-many-masters",
            Error::StillNeeded { .. } => "master-needed",
            Error::Retiring { .. } | Error::NotRetiring(_) | Error::Retired(_) => "master-state",
            Error::ClockDoubted(_) => "clock-doubted",
            Error::Busy | Error::Arena(ArenaError::Full) => "busy",
            Error::OutcomeOwed(_) => "outcome-unrecorded",
            _ if self.is_open() => "outcome-unknown",
            Error::Record(_) | Error::Custody(CustodyError::Fault(Fault::SealBroken)) => {
                "record-broken"
            }
            _ => "internal",
        }
    }

    /// What a caller is told: all of it where the caller can act on it, and of the appliance's own
    /// troubles only their kind.
    pub fn public_text(&self) -> String {
        match (self, self.cause()) {
            (Error::Record(RecordError::Store(error @ StoreError::Scarce(_))), _) => {
                error.to_string()
            }
            (
                Error::PinUnavailable { told: true, .. } | Error::PinRefused { told: true, .. },
                _,
            ) => self.to_string(),
            (_, Some(cause)) => cause.row().text.to_owned(),
            (Error::OutcomeOwed(_), _) => {
                "it is done; the audit trail could not be told of its outcome \
                                           yet, and is told as soon as it can be written"
                    .to_owned()
            }
            (Error::Destroying(_), _) => self.to_string(),
            _ if self.is_open() => {
                "the store failed while this was done: it is done, or it is not, which shows when the \
                 store works again"
                    .to_owned()
            }
            (Error::Record(_), _) => {
                "a stored record does not hold together; it is not served".to_owned()
            }
            (Error::Custody(_) | Error::Arena(_) | Error::Abandoned, _) => {
                "internal error".to_owned()
            }
            (other, _) => other.to_string(),
        }
    }

    /// Whether nobody knows yet if it was done.
    pub fn is_open(&self) -> bool {
        matches!(
            self,
            Error::Record(RecordError::Store(StoreError::Unsettled(_))) | Error::Destroying(_)
        )
    }

    /// Whether it was refused (by rule) rather than failed (by circumstance).
    pub fn is_refusal(&self) -> bool {
        matches!(self, Error::Denied(_))
    }
}
