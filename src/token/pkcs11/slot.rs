//! Finds the one slot whose token has the wanted label or serial, and looks at its PIN's state.

use cryptoki::{
    context::Pkcs11,
    slot::{Slot, TokenInfo},
};

use super::failure::Failure;
use crate::token::{Place, Settings, TokenError, error::SlotError};

/// The slot that `settings` describe, with what its token says of itself.
pub(super) fn select(module: &Pkcs11, settings: &Settings) -> Result<(Slot, TokenInfo), Failure> {
    let name = || settings.module.display().to_string();
    let mut present = Vec::new();
    for slot in module.get_slots_with_token()? {
        // A slot whose token cannot be read is none of ours; the error lists those that can.
        if let Ok(info) = module.get_token_info(slot)
            && info.token_initialized()
        {
            present.push((slot, info));
        }
    }
    let found = list(&present);
    let (label, serial) = (settings.label.as_deref(), settings.serial.as_deref());
    let wanted = match (label, serial) {
        (None, None) => return Err(slot_error(SlotError::Unnamed { module: name(), found })),
        (Some(label), None) => format!("label \"{label}\""),
        (None, Some(serial)) => format!("serial {serial}"),
        (Some(label), Some(serial)) => format!("label \"{label}\" and serial {serial}"),
    };
    present.retain(|(_, info)| {
        label.is_none_or(|label| label == info.label())
            && serial.is_none_or(|serial| serial == info.serial_number())
    });
    match present.len() {
        1 => present.pop().ok_or_else(Failure::not_logged_in),
        0 => Err(slot_error(SlotError::None { wanted, module: name(), found })),
        count => Err(slot_error(SlotError::Several { count, wanted, module: name(), found })),
    }
}

/// Refuses to try a PIN where a try could not succeed, or could be the one that locks the token.
pub(super) fn may_try_pin(info: &TokenInfo, place: &Place) -> Result<(), TokenError> {
    if info.user_pin_locked() {
        return Err(TokenError::PinLocked(place.clone()));
    }
    if info.user_pin_final_try() {
        return Err(TokenError::PinFinalTry(place.clone()));
    }
    if info.user_pin_count_low() {
        tracing::warn!(%place, "a wrong PIN was tried on the token since the last login");
    }
    Ok(())
}

/// What the token says of wrong PINs.
pub(super) fn wrong_pin(info: &TokenInfo) -> Option<&'static str> {
    if info.user_pin_locked() {
        Some("its user PIN is locked")
    } else if info.user_pin_final_try() {
        Some("one more wrong PIN locks it")
    } else if info.user_pin_count_low() {
        Some("a wrong PIN was tried since the last login")
    } else {
        None
    }
}

fn list(present: &[(Slot, TokenInfo)]) -> String {
    if present.is_empty() {
        return "no initialised token".to_owned();
    }
    let each = |(slot, info): &(Slot, TokenInfo)| {
        format!("\"{}\" (slot {}, serial {})", info.label(), slot.id(), info.serial_number())
    };
    present.iter().map(each).collect::<Vec<_>>().join(", ")
}

fn slot_error(error: SlotError) -> Failure {
    TokenError::Slot(error).into()
}
