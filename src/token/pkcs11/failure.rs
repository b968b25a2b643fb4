//! A failed call on its way up: kept small inside, told in full outside.

use cryptoki_sys::{
    CK_RV, CKR_FUNCTION_FAILED, CKR_GENERAL_ERROR, CKR_KEY_HANDLE_INVALID,
    CKR_OBJECT_HANDLE_INVALID, CKR_PIN_INCORRECT, CKR_PIN_LOCKED, CKR_USER_NOT_LOGGED_IN,
};

use crate::{
    secret::ArenaError,
    token::{
        Fault, KeyName, Place, TokenError,
        ckr::{self, Class},
        error::Cause,
    },
};

/// Why a piece of work in a session came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// A function returned a value other than `CKR_OK`.
    Call { call: String, code: CK_RV },
    /// A function returned `CKR_OK` and something that cannot be used.
    Answer { call: String, what: String },
    /// A key that was found before is not found any more.
    Lost(KeyName),
    /// Something that has its words already.
    Token(TokenError),
}

impl Failure {
    pub(super) fn call(call: &str, code: CK_RV) -> Self {
        Self::Call { call: call.to_owned(), code }
    }

    pub(super) fn answer(call: &str, what: impl Into<String>) -> Self {
        Self::Answer { call: call.to_owned(), what: what.into() }
    }

    pub(super) fn not_logged_in() -> Self {
        Self::call("C_GetSessionInfo", CKR_USER_NOT_LOGGED_IN)
    }

    /// The value returned, where there is one.
    pub(super) fn code(&self) -> Option<CK_RV> {
        match self {
            Self::Call { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the session it happened in is as good as before. Opening a new one is cheap, so only
    /// what is certainly about the data, or found out by ourselves, leaves a session in use.
    pub(super) fn spares_session(&self) -> bool {
        match self {
            // Only a decryption is over in a single call; others may still be under way in the session.
            Self::Call { call, .. } => call == "C_Decrypt" && self.is_data(),
            Self::Answer { .. } | Self::Lost(_) => false,
            Self::Token(_) => true,
        }
    }

    /// The module says that the data are at fault.
    pub(super) fn is_data(&self) -> bool {
        self.code().is_some_and(|code| ckr::row(code).class == Class::Data)
    }

    /// The module says that something failed and no more. SoftHSM says this of forged ciphertexts
    /// and of a token directory that is gone alike.
    pub(super) fn is_vague(&self) -> bool {
        matches!(self.code(), Some(CKR_GENERAL_ERROR | CKR_FUNCTION_FAILED))
    }

    /// The module says that the same call may succeed another time.
    pub(super) fn is_transient(&self) -> bool {
        self.code().is_some_and(|code| ckr::row(code).class == Class::Transient)
    }

    /// A handle from earlier means nothing any more: the key has to be found again.
    pub(super) fn is_stale_handle(&self) -> bool {
        matches!(self.code(), Some(CKR_KEY_HANDLE_INVALID | CKR_OBJECT_HANDLE_INVALID))
    }

    /// In full words, for the caller of the token.
    pub(super) fn at(self, place: &Place) -> TokenError {
        match self {
            Self::Token(error) => error,
            Self::Answer { call, what } => TokenError::Unsupported(Box::new(Fault {
                place: place.clone(),
                call,
                cause: Cause::Answer(what),
            })),
            Self::Lost(key) => TokenError::Fatal(Box::new(Fault {
                place: place.clone(),
                call: "C_FindObjects".to_owned(),
                cause: Cause::Answer(format!(
                    "the key \"{key}\" was there and is not found any more"
                )),
            })),
            Self::Call { code: CKR_PIN_INCORRECT, .. } => TokenError::PinIncorrect(place.clone()),
            Self::Call { code: CKR_PIN_LOCKED, .. } => TokenError::PinLocked(place.clone()),
            Self::Call { call, code } => {
                let row = ckr::row(code);
                let fault =
                    Box::new(Fault { place: place.clone(), call, cause: Cause::Code(row, code) });
                match row.class {
                    _ if row.restart => TokenError::Fatal(fault),
                    Class::Transient => TokenError::Unavailable(fault),
                    Class::Operator => TokenError::Operator(fault),
                    // `unwrap` takes its own data errors before; elsewhere the data are ours.
                    Class::Data | Class::Permanent => TokenError::Unsupported(fault),
                }
            }
        }
    }
}

impl From<cryptoki::error::Error> for Failure {
    fn from(error: cryptoki::error::Error) -> Self {
        match error {
            cryptoki::error::Error::Pkcs11(error, function) => {
                Self::Call { call: format!("C_{function:?}"), code: ckr::code(error) }
            }
            other => Self::answer("the module", other.to_string()),
        }
    }
}

impl From<TokenError> for Failure {
    fn from(error: TokenError) -> Self {
        Self::Token(error)
    }
}

impl From<ArenaError> for Failure {
    fn from(error: ArenaError) -> Self {
        Self::Token(error.into())
    }
}
