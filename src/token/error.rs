//! What can go wrong with a token, in variants that a caller can act on.

use std::{fmt, path::PathBuf, sync::Arc};

use super::ckr::Ckr;
use crate::secret::ArenaError;

/// Why a token did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It may work again: try later, or with a new process.
    #[error("{0}")]
    Unavailable(Box<Fault>),
    /// It will not work again in this process: custody ends and is started anew.
    #[error("{0}")]
    Fatal(Box<Fault>),
    /// Somebody has to do something; the text says what.
    #[error("{0}")]
    Operator(Box<Fault>),
    /// This module or token cannot do it at all.
    #[error("{0}")]
    Unsupported(Box<Fault>),
    /// The module is no PKCS#11 library that can be loaded.
    #[error(
        "the PKCS#11 module {} cannot be loaded ({why}): install it or set token.module", path.display()
    )]
    Module { path: PathBuf, why: String },
    /// No token, or several, are what the settings ask for.
    #[error("{0}")]
    Slot(SlotError),
    /// Tried once and not again.
    #[error(
        "{0} refused the PIN; it was tried once and will not be tried again: correct the PIN file or \
         credential before the next start, for a further wrong PIN may lock the token"
    )]
    PinIncorrect(Place),
    /// Not tried: the token says that the PIN is locked.
    #[error("the user PIN of {0} is locked: its security officer has to set a new one")]
    PinLocked(Place),
    /// Not tried: a wrong PIN now would lock the token.
    #[error(
        "{0} allows one more try of the user PIN before it locks, and Strongroom leaves that one to you: \
         log in by hand with the right PIN (`pkcs11-tool --login --test`), which resets the count"
    )]
    PinFinalTry(Place),
    /// Not tried: whoever opens the token has a rule against it.
    #[error("{0}")]
    PinWithheld(String),
    /// The token is logged in and has no such key.
    #[error("{place} has no key \"{key}\"")]
    KeyMissing { key: KeyName, place: Place },
    /// Nothing was generated.
    #[error("{place} has a key \"{key}\" already; nothing was changed")]
    KeyExists { key: KeyName, place: Place },
    /// The key would let itself be used or taken out in ways it must not.
    #[error(
        "the key \"{key}\" of {place} is unfit: {why}; restore the right key or make a new generation"
    )]
    KeyUnfit { key: KeyName, place: Place, why: String },
    /// Which one is meant cannot be known.
    #[error("{place} has {count} keys \"{key}\": remove those that do not belong there")]
    KeyAmbiguous { key: KeyName, place: Place, count: usize },
    /// The wrapped key, or the place it is said to belong to, is not what was wrapped.
    #[error(
        "the wrapped key does not open: it was changed, or belongs elsewhere, or to another master key"
    )]
    Rejected,
    /// No session became free in time.
    #[error("all sessions of {place} were busy for {waited_ms} ms")]
    Busy { place: Place, waited_ms: u64 },
    /// A wrapped key must say where it belongs.
    #[error("a key cannot be wrapped without additional authenticated data")]
    EmptyAad,
    /// No locked memory.
    #[error(transparent)]
    Arena(#[from] ArenaError),
}

/// No token fits, or more than one does. The text lists what is there.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The settings name neither label nor serial.
    #[error("set token.label or token.serial; {module} has {found}")]
    Unnamed { module: String, found: String },
    /// Nothing fits.
    #[error(
        "no token with {wanted} in {module}, which has {found}; correct token.label or token.serial"
    )]
    None { wanted: String, module: String, found: String },
    /// Several fit.
    #[error(
        "{count} tokens with {wanted} in {module}, which has {found}; set token.serial as well"
    )]
    Several { count: usize, wanted: String, module: String, found: String },
}

/// A token in the words of an error: label, slot, serial and module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(Arc<str>);

impl Place {
    pub(super) fn new(label: &str, slot: u64, serial: &str, module: &str) -> Self {
        Self(format!("token \"{label}\" (slot {slot}, serial {serial}, module {module})").into())
    }

    /// Before a token is chosen.
    pub(super) fn module(module: &str) -> Self {
        Self(format!("module {module}").into())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key in the token; shown as its `CKA_ID` and `CKA_LABEL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyName {
    /// `strongroom master/<generation>`
    Master(u32),
    /// `strongroom audit/<generation>`
    Signer(u32),
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Master(generation) => write!(f, "strongroom master/{generation}"),
            Self::Signer(generation) => write!(f, "strongroom audit/{generation}"),
        }
    }
}

/// One call that failed: where, what it returned, what that means and what to do.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// The function's name in PKCS#11.
    pub call: String,
    /// The value it returned, or the words for a failure without one.
    pub cause: Cause,
}

/// What a failed call came back with.
#[derive(Clone, Debug)]
pub enum Cause {
    /// A value of PKCS#11; the row of [`super::ckr`] it was looked up in, and the value itself.
    Code(&'static Ckr, u64),
    /// An answer that cannot be used.
    Answer(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, call, cause } = self;
        match cause {
            Cause::Code(row, code) => write!(
                f,
                "{place}: {call} returned {} (0x{code:x}): {}; {}",
                row.name, row.meaning, row.next
            ),
            Cause::Answer(what) => write!(f, "{place}: {call}: {what}; see the module's own log"),
        }
    }
}
