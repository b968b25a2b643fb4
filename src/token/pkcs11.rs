//! A PKCS#11 token: opened once, logged in once, used from many threads.
//!
//! What modules do that one would not guess:
//! - **A module is never finalised, unloaded or initialised twice.** `C_Finalize` under load crashed
//!   SoftHSM; a token directory that went away comes back only with a new process. So a
//!   [`Pkcs11Token`] that is dropped closes its sessions (which ends the login) and no more, and what
//!   cannot be mended here is [`TokenError::Fatal`]: custody ends and is started anew.
//! - **A login ends silently.** When anyone logs out, handles of private keys die
//!   (`CKR_KEY_HANDLE_INVALID`) and finding them gives nothing, without an error. Handles are looked
//!   up again once, and "nothing" is believed only in a session that says it is logged in.
//! - **A token that is gone may look empty**: see `believe_absent`.
//! - **A forged ciphertext may look like a dead token**: SoftHSM returns `CKR_GENERAL_ERROR` for both,
//!   kryoptic `CKR_ENCRYPTED_DATA_INVALID` for the first. Where the value is vague, the canary decides.
//! - **SoftHSM takes IVs of any length and tags of any length**: the lengths are ours to enforce.
//! - **kryoptic has no `CKA_CHECK_VALUE`**: the check value is computed there instead.
//! - **SoftHSM writes when a login fails**: its token directory must be writable.

mod calls;
mod failure;
mod keys;
mod known;
mod memory;
mod pool;
mod sessions;
mod slot;
mod template;

use std::{
    mem,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    object::ObjectHandle,
    slot::{Limit, Slot},
};
use cryptoki_sys::{CKR_FUNCTION_FAILED, CKR_USER_ALREADY_LOGGED_IN, CKR_USER_NOT_LOGGED_IN};

use super::{
    KeyName, MasterInfo, Place, Settings, SignerInfo, Token, TokenError, TokenInfo, WrappedKey,
};
use crate::secret::{DataKey, Pin};
use calls::Calls;
use failure::Failure;
use keys::Signer;
use known::Known;
use sessions::Sessions;

/// The token behind a PKCS#11 module.
pub struct Pkcs11Token {
    sessions: Sessions,
    calls: Calls,
    module: Pkcs11,
    module_path: String,
    slot: Slot,
    serial: String,
    place: Place,
    known: Mutex<Known>,
    /// Held while a key is made, so that two callers cannot both find none.
    making: Mutex<()>,
}

/// A token that was opened, and what that says of the PIN.
pub struct OpenedToken {
    pub token: Pkcs11Token,
    /// False where the module was logged in already: it looked at no PIN then.
    pub pin_was_checked: bool,
}

/// What a token tells whoever is not logged in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BeforeLogin {
    /// It counts a wrong PIN since the last login.
    pub count_low: bool,
    /// Custody has worked with it.
    pub was_used: bool,
}

impl Pkcs11Token {
    /// Loads the module, finds the token by label or serial, and logs in with `pin`: one try.
    ///
    /// The PIN is not kept.
    pub fn open(settings: &Settings, pin: &Pin) -> Result<Self, TokenError> {
        Self::open_if(settings, pin, |_| Ok(())).map(|opened| opened.token)
    }

    /// The same, where `may_try` does not say why the PIN is not to be tried. It is asked right before the
    /// try.
    pub fn open_if(
        settings: &Settings,
        pin: &Pin,
        may_try: impl FnOnce(BeforeLogin) -> Result<(), String>,
    ) -> Result<OpenedToken, TokenError> {
        let module_path = settings.module.display().to_string();
        let module = load(&settings.module)?;
        let (slot, info) = slot::select(&module, settings)
            .map_err(|failure| failure.at(&Place::module(&module_path)))?;
        let place = Place::new(info.label(), slot.id(), info.serial_number(), &module_path);
        let calls = Calls::of(&settings.module).map_err(|failure| failure.at(&place))?;
        slot::may_try_pin(&info, &place)?;
        let before =
            BeforeLogin { count_low: info.user_pin_count_low(), was_used: was_used(&module, slot) };
        may_try(before).map_err(TokenError::PinWithheld)?;
        let mut pin_was_checked = true;
        let size = sessions::pool_size(settings.pool_size, limit(info.max_session_count()));
        let wait = Duration::from_millis(settings.wait_ms);
        let login = |anchor: &_| match calls.login(anchor, pin) {
            Err(failure) if failure.code() == Some(CKR_USER_ALREADY_LOGGED_IN) => {
                pin_was_checked = false;
                Ok(())
            }
            result => result,
        };
        let sessions = Sessions::open(module.clone(), slot, place.clone(), size, wait, login)
            .map_err(|failure| failure.at(&place))?;
        let token = Self {
            sessions,
            calls,
            module,
            module_path,
            slot,
            serial: info.serial_number().to_owned(),
            place,
            known: Mutex::default(),
            making: Mutex::default(),
        };
        Ok(OpenedToken { token, pin_was_checked })
    }

    fn exists(&self, key: KeyName) -> Failure {
        TokenError::KeyExists { key, place: self.place.clone() }.into()
    }

    /// Takes back what was just made and is unfit; why it is unfit is what the caller is told.
    fn unmake(&self, key: KeyName, made: &[ObjectHandle]) {
        if let Err(failure) = self.sessions.run_writing(|session| keys::unmake(session, made)) {
            let error = failure.at(&self.place);
            tracing::warn!(%key, %error, "an unfit key was made and could not be removed");
        }
    }

    /// In full words; and where the module is vague, with the login looked at: kryoptic returns
    /// `CKR_GENERAL_ERROR` for a handle that died with it.
    fn say<T>(&self, result: Result<T, Failure>) -> Result<T, TokenError> {
        result.map_err(|failure| {
            let gone = |again: &Failure| again.code() == Some(CKR_USER_NOT_LOGGED_IN);
            let login = failure.is_transient().then(|| self.sessions.run(sessions::require_login));
            match login {
                Some(Err(again)) if gone(&again) => again.at(&self.place),
                _ => failure.at(&self.place),
            }
        })
    }
}

impl Token for Pkcs11Token {
    fn info(&self) -> Result<TokenInfo, TokenError> {
        let info = self.say(self.module.get_token_info(self.slot).map_err(Failure::from))?;
        let firmware = info.firmware_version();
        Ok(TokenInfo {
            label: info.label().to_owned(),
            serial: info.serial_number().to_owned(),
            manufacturer: info.manufacturer_id().to_owned(),
            model: info.model().to_owned(),
            firmware: format!("{}.{}", firmware.major(), firmware.minor()),
            module: self.module_path.clone(),
            sessions_open: info.session_count(),
            sessions_max: limit(info.max_session_count()),
            pool_size: self.sessions.size(),
        })
    }

    fn create_master(&self, generation: u32) -> Result<MasterInfo, TokenError> {
        let _one_at_a_time = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let key = KeyName::Master(generation);
        self.say((|| {
            if self.check_master(generation)?.is_some() {
                return Err(self.exists(key));
            }
            let made = self.sessions.run_writing(|session| keys::make_master(session, key))?;
            match self.check_master(generation) {
                Ok(Some(master)) => Ok(master.info),
                bad => {
                    self.unmake(key, &[made]);
                    Err(bad.err().unwrap_or_else(|| vanished("C_GenerateKey")))
                }
            }
        })())
    }

    fn master(&self, generation: u32) -> Result<Option<MasterInfo>, TokenError> {
        let master = self.say(self.check_master(generation))?;
        Ok(master.map(|master| master.info))
    }

    fn destroy_master(&self, generation: u32) -> Result<(), TokenError> {
        let _one_at_a_time = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let key = KeyName::Master(generation);
        self.say((|| {
            let master = self.check_master(generation)?.ok_or_else(|| self.missing(key))?;
            // Not before it is gone: a destruction that fails leaves a key that is known and in use.
            self.sessions.run_writing(|session| keys::unmake(session, &[master.handle]))?;
            self.forget_master(generation);
            match self.check_master(generation)? {
                None => Ok(()),
                Some(_) => Err(Failure::answer("C_DestroyObject", "the key is still there")),
            }
        })())
    }

    fn wrap(&self, generation: u32, aad: &[u8], key: &DataKey) -> Result<WrappedKey, TokenError> {
        if aad.is_empty() {
            return Err(TokenError::EmptyAad);
        }
        self.say(self.with_master(generation, |master| {
            let handle = master.handle;
            let (wrapped, opened) = self.sessions.run(|session| {
                let wrapped = keys::encrypt(&self.calls, session, handle, generation, aad, key)?;
                let opened = keys::decrypt(&self.calls, session, handle, aad, &wrapped)?;
                Ok((wrapped, opened))
            })?;
            if opened.same_as(key) {
                Ok(wrapped)
            } else {
                Err(Failure::answer("C_Decrypt", "a key opened to something else than was wrapped"))
            }
        }))
    }

    fn unwrap(
        &self,
        generation: u32,
        aad: &[u8],
        wrapped: &WrappedKey,
    ) -> Result<DataKey, TokenError> {
        if aad.is_empty() {
            return Err(TokenError::EmptyAad);
        }
        let whole = wrapped.ciphertext.len() == WrappedKey::CIPHERTEXT_LEN;
        if !whole || wrapped.generation != generation {
            return Err(TokenError::Rejected);
        }
        self.say(self.with_master(generation, |master| self.open_wrapped(master, aad, wrapped)))
    }

    fn create_signer(&self, generation: u32) -> Result<SignerInfo, TokenError> {
        let _one_at_a_time = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let key = KeyName::Signer(generation);
        self.say((|| {
            if self.check_signer(generation)?.is_some() {
                return Err(self.exists(key));
            }
            let made = self.sessions.run_writing(|session| {
                keys::clear_public_halves(session, key)?;
                keys::make_signer(session, key)
            })?;
            match self.check_signer(generation) {
                Ok(Some(signer)) => Ok(signer.info),
                bad => {
                    self.unmake(key, &made);
                    Err(bad.err().unwrap_or_else(|| vanished("C_GenerateKeyPair")))
                }
            }
        })())
    }

    fn signer(&self, generation: u32) -> Result<Option<SignerInfo>, TokenError> {
        let signer = self.say(self.check_signer(generation))?;
        Ok(signer.map(|signer| signer.info))
    }

    fn sign(&self, generation: u32, sha256: &[u8; 32]) -> Result<[u8; 64], TokenError> {
        let sign = |signer: Signer| {
            self.sessions.run(|session| keys::sign(session, signer.private, sha256))
        };
        self.say(match self.use_signer(generation).and_then(sign) {
            Err(failure) if failure.is_stale_handle() => self
                .check_signer(generation)
                .and_then(|signer| signer.ok_or_else(|| self.missing(KeyName::Signer(generation))))
                .and_then(sign),
            result => result,
        })
    }

    fn remembered(&self) -> Result<Vec<Vec<u8>>, TokenError> {
        self.say(self.sessions.run(memory::read))
    }

    fn remember(&self, bytes: Option<&[u8]>) -> Result<(), TokenError> {
        let _one_at_a_time = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        self.say(self.sessions.run_writing(|session| memory::replace(session, bytes)))
    }

    fn canary(&self, generation: u32) -> Result<(), TokenError> {
        self.say(self.with_master(generation, |master| {
            let tried = self.try_canary(master.handle, &master.canary);
            tried.map_err(|failure| match failure {
                // The blob is good, so this is never about the data.
                failure if failure.is_data() => Failure::call("C_Decrypt", CKR_FUNCTION_FAILED),
                failure => failure,
            })
        }))
    }
}

/// A token that was found, and nobody logged in to.
pub struct Seen {
    pub place: Place,
    /// What it says of wrong PINs since the last right one, if there were any.
    pub wrong_pin: Option<&'static str>,
}

/// Loads the module and looks for the token, without a login: for a process of its own.
pub fn look(settings: &Settings) -> Result<Seen, TokenError> {
    let path = settings.module.display().to_string();
    let module = load(&settings.module)?;
    let (slot, info) =
        slot::select(&module, settings).map_err(|failure| failure.at(&Place::module(&path)))?;
    let place = Place::new(info.label(), slot.id(), info.serial_number(), &path);
    let opened = module.open_ro_session(slot);
    drop(opened.map_err(|error| Failure::from(error).at(&place))?);
    Ok(Seen { place, wrong_pin: slot::wrong_pin(&info) })
}

/// Whether custody has worked with this token; one that does not say counts as new.
fn was_used(module: &Pkcs11, slot: Slot) -> bool {
    let found = module.open_ro_session(slot).map_err(Failure::from);
    let found = found.and_then(|session| memory::was_used(&session));
    found.unwrap_or_else(|failure| {
        tracing::debug!(?failure, "the token does not tell whether it was used");
        false
    })
}

fn vanished(call: &str) -> Failure {
    Failure::answer(call, "the key that was just made is not there")
}

/// Loads and initialises a module, for the life of the process.
fn load(path: &Path) -> Result<Pkcs11, TokenError> {
    let bad = |error: Error| TokenError::Module { path: path.into(), why: error.to_string() };
    let unfit = |fault: super::ModuleFault| TokenError::Module {
        path: path.into(),
        why: fault.to_string(),
    };
    super::check_module(path).map_err(unfit)?;
    let module = Pkcs11::new(path).map_err(bad)?;
    // Unloading a library that was not finalised would pull the ground from under its threads.
    mem::forget(module.clone());
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(module),
        Err(error @ Error::Pkcs11(..)) => {
            Err(Failure::from(error).at(&Place::module(&path.display().to_string())))
        }
        Err(error) => Err(bad(error)),
    }
}

fn limit(limit: Limit) -> Option<u64> {
    limit.into()
}
