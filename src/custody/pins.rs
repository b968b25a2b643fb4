//! The PINs that the token refused, and where the configured one comes from: none is tried twice by itself,
//! for every wrong try brings the token nearer to its lock.

use std::sync::{Mutex, PoisonError};

use aws_lc_rs::constant_time::verify_slices_are_equal;

use super::protocol::Fault;
use crate::secret::Pin;
use crate::token::{self, TokenError};

/// The newest PIN of either kind that the token refused, in locked memory, until one is right.
#[derive(Default)]
struct Refused {
    configured: Option<Pin>,
    given: Option<Pin>,
}

/// What is known of PINs in this process.
pub struct Pins {
    source: String,
    refused: Mutex<Refused>,
}

impl Pins {
    pub fn of(settings: &token::Settings) -> Self {
        Self { source: source(settings), refused: Mutex::default() }
    }

    /// Whether the configured PIN may be tried.
    ///
    /// # Errors
    /// It is one that was refused; the text says where it comes from.
    pub fn may_try(&self, configured: &Pin) -> Result<(), Fault> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same =
            |known: &Pin| verify_slices_are_equal(known.expose(), configured.expose()).is_ok();
        if [&refused.configured, &refused.given].into_iter().flatten().any(is_same) {
            return Err(Fault::PinRefused(format!(
                "it is still the one that was refused, so it was not tried again; {}. Should the token \
                 take it by now, `strongroom unlock --pin-file -` tries what is typed",
                self.source
            )));
        }
        Ok(())
    }

    /// What came of a try. A token that did not try the PIN says nothing against it.
    pub fn tried<T>(
        &self,
        pin: Pin,
        is_configured: bool,
        result: Result<T, TokenError>,
    ) -> Result<T, Fault> {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(opened) => {
                *refused = Refused::default();
                Ok(opened)
            }
            Err(error @ TokenError::PinIncorrect(_)) if is_configured => {
                refused.configured = Some(pin);
                Err(Fault::PinRefused(format!("{error}; {}", self.source)))
            }
            Err(error) => {
                if matches!(error, TokenError::PinIncorrect(_)) {
                    refused.given = Some(pin);
                }
                Err(error.into())
            }
        }
    }
}

/// Where the configured PIN comes from, and when another one there is seen.
fn source(settings: &token::Settings) -> String {
    match (&settings.pin_credential, &settings.pin_file) {
        (Some(name), _) => format!(
            "the PIN is the credential \"{name}\", which systemd copies for custody when that starts: once \
             it is changed, `systemctl restart strongroom-custody`, then `strongroom unlock`"
        ),
        (None, Some(path)) => format!("the PIN is in {}", path.display()),
        (None, None) => "no place of the PIN is configured".to_owned(),
    }
}
