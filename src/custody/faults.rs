//! What a token's errors are to custody: faults for the front, and which of them end this process.

use super::protocol::{Fault, Outage, Reason};
use crate::token::{Cause, TokenError};

impl From<TokenError> for Fault {
    fn from(error: TokenError) -> Self {
        let text = error.to_string();
        match error {
            TokenError::PinIncorrect(_)
            | TokenError::PinLocked(_)
            | TokenError::PinFinalTry(_)
            | TokenError::PinWithheld(_) => Fault::PinRefused(text),
            TokenError::KeyMissing { .. }
            | TokenError::KeyUnfit { .. }
            | TokenError::KeyAmbiguous { .. } => Fault::Master(text),
            TokenError::KeyExists { .. } => Fault::Exists(text),
            TokenError::Rejected => Fault::SealBroken,
            TokenError::Busy { .. } => Fault::Busy,
            TokenError::Arena(_) => Fault::ArenaFull,
            TokenError::EmptyAad => Fault::Protocol(text),
            TokenError::Fatal(fault) => {
                Fault::TokenUnavailable(Outage::new(reason_of(&fault.cause), text))
            }
            TokenError::Module { .. } => {
                Fault::TokenUnavailable(Outage::new(Reason::ModuleFailed, text))
            }
            TokenError::Slot(_) => Fault::TokenUnavailable(Outage::new(Reason::TokenAbsent, text)),
            TokenError::Unavailable(_) | TokenError::Operator(_) | TokenError::Unsupported(_) => {
                Fault::TokenCall(text)
            }
        }
    }
}

/// The outage that a fault amounts to.
pub fn outage_of(fault: &Fault) -> Outage {
    match fault {
        Fault::TokenUnavailable(outage) | Fault::TokenAbsent(outage) => outage.clone(),
        Fault::Master(why) => Outage::new(Reason::MasterUnfit, why.clone()),
        Fault::PinRefused(why) => Outage::new(Reason::PinRefused, why.clone()),
        Fault::PinUnavailable(why) => Outage::new(Reason::PinUnavailable, why.clone()),
        Fault::State(why) => Outage::new(Reason::CustodyState, why.clone()),
        other => Outage::new(Reason::TokenFailed, other.to_string()),
    }
}

/// What a fault that only a new process gets over is about.
fn reason_of(cause: &Cause) -> Reason {
    match cause {
        // A key that was there is not found any more.
        Cause::Answer(_) => Reason::MasterUnfit,
        Cause::Code(row, _) => match row.name {
            "CKR_USER_NOT_LOGGED_IN" => Reason::LoginLost,
            "CKR_TOKEN_NOT_PRESENT" | "CKR_DEVICE_REMOVED" | "CKR_SLOT_ID_INVALID" => {
                Reason::TokenAbsent
            }
            "CKR_CRYPTOKI_NOT_INITIALIZED" => Reason::ModuleFailed,
            _ => Reason::TokenFailed,
        },
    }
}
