//! The PINs that the token refused, and where the configured one comes from: none is tried twice by itself,
//! for every wrong try brings the token nearer to its lock; and the right one is known again.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::pin_budget::{PinBudget, PinFile, Withheld};
use super::protocol::{Fault, Outage, Reason};
use crate::secret::{Pin, SecretBytes, on_locked_stack};
use crate::token::pkcs11::{BeforeLogin, Pkcs11Token};
use crate::token::{self, Token, TokenError};

/// In locked memory, until one is right.
#[derive(Default)]
struct Known {
    /// The newest PIN of either kind that the token refused.
    refused_configured: Option<Pin>,
    refused_given: Option<Pin>,
    /// What the right PIN is known by: a salt, and SHA-256 of the salt and the PIN.
    right: Option<SecretBytes>,
}

/// What is known of PINs in this process, and over its end.
pub struct Pins {
    source: String,
    file: Option<PathBuf>,
    known: Mutex<Known>,
    budget: PinBudget,
}

const SALT: usize = 32;

impl Pins {
    pub fn of(settings: &token::Settings, budget: PinBudget) -> Self {
        let file = settings.pin_file.clone().filter(|_| settings.pin_credential.is_none());
        Self { source: source(settings), file, known: Mutex::default(), budget }
    }

    /// Opens the token with a PIN: one that somebody gave, or the configured one, read by `configured`.
    pub fn open(
        &self,
        settings: &token::Settings,
        given: Option<Pin>,
        configured: impl FnOnce() -> Result<Pin, Fault>,
    ) -> Result<Arc<dyn Token>, Fault> {
        match given {
            Some(pin) => self.open_with_given(settings, pin),
            None => self.open_with_configured(settings, configured()?),
        }
    }

    fn open_with_given(
        &self,
        settings: &token::Settings,
        pin: Pin,
    ) -> Result<Arc<dyn Token>, Fault> {
        let (is_counted, uncounted) = (Cell::new(false), Uncounted::default());
        let opened = Pkcs11Token::open_if(settings, &pin, |before| {
            self.budget.spend(before, now()).map_err(|why| uncounted.note(why))?;
            is_counted.set(true);
            Ok(())
        });
        match opened {
            Ok(opened) if opened.pin_was_checked => {
                self.budget.given_was_right();
                self.is_right(&pin)?;
                Ok(Arc::new(opened.token))
            }
            Err(error @ TokenError::PinIncorrect(_)) => {
                self.known().refused_given = Some(pin);
                Err(Fault::PinRefused(format!("{error}; {}", self.budget.left(now()))))
            }
            other => {
                if is_counted.get() {
                    self.budget.take_back();
                }
                let unchecked = || {
                    let why = "the token was logged in already, so the PIN was not looked at; custody \
                               starts anew";
                    Fault::TokenUnavailable(Outage::new(Reason::TokenFailed, why))
                };
                other.map_err(|error| uncounted.or(error)).and_then(|_| Err(unchecked()))
            }
        }
    }

    fn open_with_configured(
        &self,
        settings: &token::Settings,
        pin: Pin,
    ) -> Result<Arc<dyn Token>, Fault> {
        let is_another = self.is_another(&pin)?;
        let file = self.file.as_deref().and_then(PinFile::of);
        let uncounted = Uncounted::default();
        let may_try = |before| match is_another {
            true => Ok(()),
            false => self
                .budget
                .may_try_configured(file, before, now())
                .map_err(|why| format!("{}; {}", uncounted.note(why), self.source)),
        };
        match Pkcs11Token::open_if(settings, &pin, may_try) {
            Ok(opened) => {
                self.budget.configured_was_right();
                self.is_right(&pin)?;
                Ok(Arc::new(opened.token))
            }
            Err(error @ TokenError::PinIncorrect(_)) => {
                self.budget.configured_was_refused(file, now());
                self.known().refused_configured = Some(pin);
                Err(Fault::PinRefused(format!("{error}; {}", self.source)))
            }
            Err(error) => Err(uncounted.or(error)),
        }
    }

    /// Whether the configured PIN is seen to be another than the one that was refused in this process.
    ///
    /// # Errors
    /// It is one that was refused.
    fn is_another(&self, configured: &Pin) -> Result<bool, Fault> {
        let known = self.known();
        let is_same =
            |known: &Pin| verify_slices_are_equal(known.expose(), configured.expose()).is_ok();
        if [&known.refused_configured, &known.refused_given].into_iter().flatten().any(is_same) {
            return Err(Fault::PinRefused(format!(
                "it is still the one that was refused, so it was not tried again; {}. Should the token \
                 take it by now, `strongroom unlock --pin-file -` tries what is typed",
                self.source
            )));
        }
        Ok(known.refused_configured.is_some())
    }

    /// Whether a given PIN is the one that the token was opened with. It counts like one that is tried.
    ///
    /// # Errors
    /// It is not, or there were too many that were not.
    pub fn prove(&self, given: &Pin) -> Result<(), Fault> {
        self.budget.spend(BeforeLogin::default(), now())?;
        let is_right = match self.known().right.as_ref() {
            Some(right) => {
                let (salt, digest) = right.expose().split_at(SALT);
                let same = |_: &_| verify_slices_are_equal(&digest_of(salt, given), digest).is_ok();
                on_locked_stack(same).map_err(|_| Fault::ArenaFull)?
            }
            None => false,
        };
        if is_right {
            self.budget.given_was_right();
            return Ok(());
        }
        let left = self.budget.left(now());
        Err(Fault::PinRefused(format!("it is not the token's PIN; {left}")))
    }

    fn is_right(&self, pin: &Pin) -> Result<(), Fault> {
        let mut right = SecretBytes::zeroed(2 * SALT).map_err(|_| Fault::ArenaFull)?;
        let (salt, digest) = right.expose_mut().split_at_mut(SALT);
        aws_lc_rs::rand::fill(salt).map_err(|_| Fault::Busy)?;
        on_locked_stack(|_| digest.copy_from_slice(&digest_of(salt, pin)))
            .map_err(|_| Fault::ArenaFull)?;
        *self.known() = Known { right: Some(right), ..Known::default() };
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// That tries could not be counted, on its way past the token, which knows of no such thing.
#[derive(Default)]
struct Uncounted(RefCell<Option<Fault>>);

impl Uncounted {
    /// What is said to the token.
    fn note(&self, why: Withheld) -> String {
        let text = why.to_string();
        *self.0.borrow_mut() = Some(Fault::from(why)).filter(|it| matches!(it, Fault::State(_)));
        text
    }

    /// What came of it.
    fn or(&self, error: TokenError) -> Fault {
        self.0.take().unwrap_or_else(|| error.into())
    }
}

/// To be called on a locked stack: its frames hold the PIN.
fn digest_of(salt: &[u8], pin: &Pin) -> [u8; 32] {
    Sha256::new().chain_update(salt).chain_update(pin.expose()).finalize().into()
}

/// Seconds of Unix time.
pub fn now() -> i64 {
    Timestamp::now().as_second()
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
