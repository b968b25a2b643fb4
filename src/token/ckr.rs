//! Every return value of PKCS#11 v3.0 (and the few of v3.2): what kind it is, what it means, what to do.
//!
//! The one place where a `CKR_*` value is judged. Values from OASIS PKCS#11 v3.0 §5.1 and pkcs11t.h.

use std::sync::OnceLock;

use cryptoki::error::{Rv, RvError};
use cryptoki_sys::CK_RV;

/// Who or what can make a failed call succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The same call may succeed later, in a new session or a new process.
    Transient,
    /// A person has to do something first.
    Operator,
    /// The data handed in are at fault; the token is well.
    Data,
    /// The module or token will never do this.
    Permanent,
}

impl Class {
    /// The word for it: `transient`.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Transient => "transient",
            Class::Operator => "operator",
            Class::Data => "data",
            Class::Permanent => "permanent",
        }
    }
}

/// One return value.
#[derive(Debug, PartialEq, Eq)]
pub struct Ckr {
    /// The value.
    pub code: CK_RV,
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub class: Class,
    /// Whether only a new process can get over it (a module is never initialised twice in one).
    pub restart: bool,
    /// What it means, in one line.
    pub meaning: &'static str,
    /// What to do, in one line.
    pub next: &'static str,
}

/// The row of a value; vendors' own and unknown values share one row each.
pub fn row(code: CK_RV) -> &'static Ckr {
    match TABLE.binary_search_by_key(&code, |row| row.code) {
        Ok(at) => &TABLE[at],
        Err(_) if code >= cryptoki_sys::CKR_VENDOR_DEFINED => &VENDOR,
        Err(_) => &UNKNOWN,
    }
}

/// All rows, by value.
pub fn rows() -> &'static [Ckr] {
    TABLE
}

/// The whole table in words, a row a line, for people.
pub fn in_words() -> String {
    let line = |row: &Ckr| {
        let (name, kind, again) = (
            row.name,
            row.class.as_str(),
            if row.restart { " (this process ends and a new one takes over)" } else { "" },
        );
        format!("0x{:08x}  {name:<38}  {kind:<9}  {}; {}{again}\n", row.code, row.meaning, row.next)
    };
    let kinds = "transient: the same call may succeed later\noperator: a person has to do something first\n\
                 data: what was handed in is at fault, the token is well\npermanent: module or token will never do it\n\n";
    TABLE.iter().chain([&VENDOR]).map(line).fold(kinds.to_owned(), |text, line| text + &line)
}

/// The value behind cryptoki's name for it.
pub fn code(error: RvError) -> CK_RV {
    static NAMES: OnceLock<Vec<(Rv, CK_RV)>> = OnceLock::new();
    match error {
        RvError::UnknownErrorCode(code) | RvError::VendorDefined(code) => code,
        error => NAMES
            .get_or_init(|| TABLE.iter().map(|row| (Rv::from(row.code), row.code)).collect())
            .iter()
            .find(|(rv, _)| *rv == Rv::Error(error))
            .map_or(cryptoki_sys::CKR_FUNCTION_FAILED, |(_, code)| *code),
    }
}

const VENDOR: Ckr = Ckr {
    code: cryptoki_sys::CKR_VENDOR_DEFINED,
    name: "CKR_VENDOR_DEFINED",
    class: Class::Transient,
    restart: false,
    meaning: "an error of the vendor's own",
    next: "look the value up in the vendor's manual",
};

const UNKNOWN: Ckr = Ckr {
    code: CK_RV::MAX,
    name: "an unknown value",
    class: Class::Transient,
    restart: false,
    meaning: "no such value is known to PKCS#11 v3.2",
    next: "look the value up in the vendor's manual",
};

const AGAIN: &str = "it is tried again";
const DEVICE: &str = "check the device, its cable, network and power";
const MEMORY: &str = "give the machine or the process more memory";
const REPORT: &str = "this is a fault in Strongroom or in the module: report it with both versions";
const RESTART: &str = "custody is started anew";
const PIN: &str = "correct the PIN file or credential";
const OFFICER: &str = "the token's security officer has to act";
const OTHER_TOKEN: &str = "use a token and a module that support it";
const SEALED: &str = "restore the record it was read from";
const KEY: &str = "check the token's keys with `strongroom doctor`";

macro_rules! table {
    ($($name:ident $class:ident $($restart:ident)? : $meaning:literal, $next:ident;)*) => {
        /// All rows, by value.
        const TABLE: &[Ckr] = &[$(Ckr {
            code: cryptoki_sys::$name,
            name: stringify!($name),
            class: Class::$class,
            restart: table!(@ $($restart)?),
            meaning: $meaning,
            next: $next,
        }),*];
    };
    (@ restart) => { true };
    (@) => { false };
}

table! {
    CKR_CANCEL Transient: "the call was cancelled", AGAIN;
    CKR_HOST_MEMORY Transient: "the module could not get memory", MEMORY;
    CKR_SLOT_ID_INVALID Transient restart: "the slot is gone", RESTART;
    CKR_GENERAL_ERROR Transient: "something failed and the module does not say what", DEVICE;
    CKR_FUNCTION_FAILED Transient: "the call failed and the module does not say why", DEVICE;
    CKR_ARGUMENTS_BAD Permanent: "the module does not accept the arguments", REPORT;
    CKR_NO_EVENT Transient: "no slot event is waiting", AGAIN;
    CKR_NEED_TO_CREATE_THREADS Permanent: "the module needs threads of its own", REPORT;
    CKR_CANT_LOCK Permanent: "the module cannot be used by several threads", OTHER_TOKEN;
    CKR_ATTRIBUTE_READ_ONLY Permanent: "an attribute of the template cannot be set", OTHER_TOKEN;
    CKR_ATTRIBUTE_SENSITIVE Permanent: "the attribute cannot be revealed", REPORT;
    CKR_ATTRIBUTE_TYPE_INVALID Permanent: "the token does not know an attribute of the template", OTHER_TOKEN;
    CKR_ATTRIBUTE_VALUE_INVALID Permanent: "the token does not accept a value of the template", OTHER_TOKEN;
    CKR_ACTION_PROHIBITED Permanent: "the object or the token's policy forbids it", OFFICER;
    CKR_DATA_INVALID Data: "the data do not fit the operation", SEALED;
    CKR_DATA_LEN_RANGE Data: "the data have a wrong length", SEALED;
    CKR_DEVICE_ERROR Transient: "the device reports an error", DEVICE;
    CKR_DEVICE_MEMORY Operator: "the device is full", OFFICER;
    CKR_DEVICE_REMOVED Transient restart: "the device was removed", DEVICE;
    CKR_ENCRYPTED_DATA_INVALID Data: "the ciphertext does not authenticate", SEALED;
    CKR_ENCRYPTED_DATA_LEN_RANGE Data: "the ciphertext has a wrong length", SEALED;
    CKR_AEAD_DECRYPT_FAILED Data: "the ciphertext does not authenticate", SEALED;
    CKR_FUNCTION_CANCELED Transient: "the call was cancelled under way", AGAIN;
    CKR_FUNCTION_NOT_PARALLEL Permanent: "no parallel function runs in the session", REPORT;
    CKR_FUNCTION_NOT_SUPPORTED Permanent: "the module does not have this function", OTHER_TOKEN;
    CKR_KEY_HANDLE_INVALID Transient: "the handle is no key's (any more)", AGAIN;
    CKR_KEY_SIZE_RANGE Permanent: "the token does not do this key size", OTHER_TOKEN;
    CKR_KEY_TYPE_INCONSISTENT Permanent: "the key is of another type than the mechanism needs", KEY;
    CKR_KEY_NOT_NEEDED Permanent: "a key was given where none belongs", REPORT;
    CKR_KEY_CHANGED Permanent: "the key is not the one of the saved state", REPORT;
    CKR_KEY_NEEDED Permanent: "a key is missing for the saved state", REPORT;
    CKR_KEY_INDIGESTIBLE Permanent: "the key cannot be digested", REPORT;
    CKR_KEY_FUNCTION_NOT_PERMITTED Permanent: "the key's attributes forbid this use", KEY;
    CKR_KEY_NOT_WRAPPABLE Permanent: "the key cannot be wrapped", KEY;
    CKR_KEY_UNEXTRACTABLE Permanent: "the key cannot leave the token", KEY;
    CKR_MECHANISM_INVALID Permanent: "the token, or the key, does not do this mechanism", OTHER_TOKEN;
    CKR_MECHANISM_PARAM_INVALID Permanent: "the token does not accept the mechanism's parameter", OTHER_TOKEN;
    CKR_OBJECT_HANDLE_INVALID Transient: "the object is not there (any more)", AGAIN;
    CKR_OPERATION_ACTIVE Transient: "an operation is under way in the session", AGAIN;
    CKR_OPERATION_NOT_INITIALIZED Transient: "no operation is under way in the session", AGAIN;
    CKR_PIN_INCORRECT Operator: "the PIN is wrong", PIN;
    CKR_PIN_INVALID Operator: "the PIN has characters the token does not take", PIN;
    CKR_PIN_LEN_RANGE Operator: "the PIN is too short or too long for the token", PIN;
    CKR_PIN_EXPIRED Operator: "the PIN has expired: set a new one on the token", PIN;
    CKR_PIN_LOCKED Operator: "the PIN is locked after too many wrong ones", OFFICER;
    CKR_SESSION_CLOSED Transient: "the session was closed under way", AGAIN;
    CKR_SESSION_COUNT Transient: "the token has no session to give", AGAIN;
    CKR_SESSION_HANDLE_INVALID Transient: "the session does not exist (any more)", AGAIN;
    CKR_SESSION_PARALLEL_NOT_SUPPORTED Permanent: "parallel sessions do not exist", REPORT;
    CKR_SESSION_READ_ONLY Permanent: "the session may not write", REPORT;
    CKR_SESSION_EXISTS Transient: "a session is open that is in the way", AGAIN;
    CKR_SESSION_READ_ONLY_EXISTS Transient: "a read-only session is open, so the officer cannot log in", AGAIN;
    CKR_SESSION_READ_WRITE_SO_EXISTS Operator: "the security officer is logged in: end that session", OFFICER;
    CKR_SIGNATURE_INVALID Data: "the signature, or the tag, is wrong", SEALED;
    CKR_SIGNATURE_LEN_RANGE Data: "the signature has a wrong length", SEALED;
    CKR_TEMPLATE_INCOMPLETE Permanent: "the token asks for more attributes in the template", OTHER_TOKEN;
    CKR_TEMPLATE_INCONSISTENT Permanent: "the token finds the template contradictory", OTHER_TOKEN;
    CKR_TOKEN_NOT_PRESENT Transient restart: "the token is not in its slot", DEVICE;
    CKR_TOKEN_NOT_RECOGNIZED Operator: "the module does not know the token in the slot", OTHER_TOKEN;
    CKR_TOKEN_WRITE_PROTECTED Operator: "the token is write-protected: lift it to make keys", OFFICER;
    CKR_UNWRAPPING_KEY_HANDLE_INVALID Transient: "the unwrapping key is not there (any more)", AGAIN;
    CKR_UNWRAPPING_KEY_SIZE_RANGE Permanent: "the unwrapping key has a wrong size", KEY;
    CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT Permanent: "the unwrapping key is of another type", KEY;
    CKR_USER_ALREADY_LOGGED_IN Transient: "the user is logged in already", AGAIN;
    CKR_USER_NOT_LOGGED_IN Transient restart: "the login was lost", RESTART;
    CKR_USER_PIN_NOT_INITIALIZED Operator: "the token has no user PIN yet", OFFICER;
    CKR_USER_TYPE_INVALID Permanent: "the token has no such user", REPORT;
    CKR_USER_ANOTHER_ALREADY_LOGGED_IN Operator: "somebody else is logged in: end that session", OFFICER;
    CKR_USER_TOO_MANY_TYPES Operator: "too many kinds of users are logged in", OFFICER;
    CKR_WRAPPED_KEY_INVALID Data: "the wrapped key does not authenticate", SEALED;
    CKR_WRAPPED_KEY_LEN_RANGE Data: "the wrapped key has a wrong length", SEALED;
    CKR_WRAPPING_KEY_HANDLE_INVALID Transient: "the wrapping key is not there (any more)", AGAIN;
    CKR_WRAPPING_KEY_SIZE_RANGE Permanent: "the wrapping key has a wrong size", KEY;
    CKR_WRAPPING_KEY_TYPE_INCONSISTENT Permanent: "the wrapping key is of another type", KEY;
    CKR_RANDOM_SEED_NOT_SUPPORTED Permanent: "the random generator takes no seed", REPORT;
    CKR_RANDOM_NO_RNG Permanent: "the token has no random generator", OTHER_TOKEN;
    CKR_DOMAIN_PARAMS_INVALID Permanent: "the token does not know the curve", OTHER_TOKEN;
    CKR_CURVE_NOT_SUPPORTED Permanent: "the token does not do this curve", OTHER_TOKEN;
    CKR_BUFFER_TOO_SMALL Permanent: "the module wants more room for its answer", REPORT;
    CKR_SAVED_STATE_INVALID Permanent: "the saved state is of no use", REPORT;
    CKR_INFORMATION_SENSITIVE Permanent: "the information cannot be revealed", REPORT;
    CKR_STATE_UNSAVEABLE Permanent: "the state cannot be saved", REPORT;
    CKR_CRYPTOKI_NOT_INITIALIZED Transient restart: "the module was finalised or never initialised", RESTART;
    CKR_CRYPTOKI_ALREADY_INITIALIZED Transient: "the module is initialised already", AGAIN;
    CKR_MUTEX_BAD Transient restart: "the module's lock is broken", RESTART;
    CKR_MUTEX_NOT_LOCKED Transient restart: "the module's lock is not held", RESTART;
    CKR_NEW_PIN_MODE Operator: "the token wants a new PIN", OFFICER;
    CKR_NEXT_OTP Operator: "the token wants the next one-time password", OFFICER;
    CKR_EXCEEDED_MAX_ITERATIONS Transient: "generating a key took too many tries", AGAIN;
    CKR_FIPS_SELF_TEST_FAILED Operator: "the token's self-test failed: it is out of service", OFFICER;
    CKR_LIBRARY_LOAD_FAILED Operator: "the module cannot load a library it needs: install it", OTHER_TOKEN;
    CKR_PIN_TOO_WEAK Operator: "the token finds the PIN too weak", PIN;
    CKR_PUBLIC_KEY_INVALID Permanent: "the public key is not valid", KEY;
    CKR_FUNCTION_REJECTED Operator: "somebody refused the operation at the device", OFFICER;
    CKR_TOKEN_RESOURCE_EXCEEDED Transient: "the token is out of some resource", AGAIN;
    CKR_OPERATION_CANCEL_FAILED Transient: "the operation cannot be cancelled", AGAIN;
    CKR_KEY_EXHAUSTED Operator: "the key was used as often as it may: rotate the master key", OFFICER;
    CKR_PENDING Transient: "the operation is still running", AGAIN;
    CKR_SESSION_ASYNC_NOT_SUPPORTED Permanent: "the session does nothing asynchronously", REPORT;
    CKR_SEED_RANDOM_REQUIRED Operator: "the random generator has to be seeded first", OFFICER;
    CKR_OPERATION_NOT_VALIDATED Permanent: "the operation is outside the token's validation", OTHER_TOKEN;
    CKR_TOKEN_NOT_INITIALIZED Operator: "the token has not been initialised", OFFICER;
    CKR_PARAMETER_SET_NOT_SUPPORTED Permanent: "the token does not do this parameter set", OTHER_TOKEN;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_ascend_and_are_found() {
        assert!(TABLE.windows(2).all(|pair| pair[0].code < pair[1].code));
        for expected in TABLE {
            assert_eq!(row(expected.code), expected);
        }
        assert_eq!(row(0x8000_0001), &VENDOR);
        assert_eq!(row(0x4321), &UNKNOWN);
    }

    #[test]
    fn the_documented_table_is_this_one() {
        let documented = include_str!("return-values.txt");
        assert!(
            documented == in_words(),
            "strongroom doctor --pkcs11-return-values > src/token/return-values.txt"
        );
    }

    #[test]
    fn every_value_goes_through_cryptoki_and_back() {
        for expected in TABLE {
            match Rv::from(expected.code) {
                Rv::Error(error) => assert_eq!(code(error), expected.code, "{}", expected.name),
                Rv::Ok => panic!("{} is not a success", expected.name),
            }
        }
        assert_eq!(code(RvError::VendorDefined(0x8000_0001)), 0x8000_0001);
    }

    #[test]
    fn a_forgery_never_looks_like_a_failing_token_where_the_module_is_precise() {
        for code in [0x40, 0x41, 0x42, 0x110, 0x112] {
            assert_eq!(row(code).class, Class::Data);
        }
        for code in [0x05, 0x06, 0x30, 0x32, 0xE0, 0x190] {
            assert_eq!(row(code).class, Class::Transient);
        }
    }
}
