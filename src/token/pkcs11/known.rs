//! Which keys were found and checked, and when that is believed.

use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard, PoisonError},
};

use cryptoki::object::ObjectHandle;

use super::{
    Pkcs11Token,
    failure::Failure,
    keys::{self, Canary, Master, Signer},
};
use crate::{
    secret::DataKey,
    token::{KeyName, TokenError, WrappedKey},
};

/// Keys that were found and checked, by generation.
#[derive(Default)]
pub(super) struct Known {
    masters: HashMap<u32, Arc<Master>>,
    signers: HashMap<u32, Signer>,
}

impl Pkcs11Token {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The master of a generation, from memory or found and checked now.
    pub(super) fn use_master(&self, generation: u32) -> Result<Arc<Master>, Failure> {
        let known = self.known().masters.get(&generation).cloned();
        match known {
            Some(master) => Ok(master),
            None => self
                .check_master(generation)?
                .ok_or_else(|| self.missing(KeyName::Master(generation))),
        }
    }

    /// Finds the master in the token and checks all that can be checked; makes its canary the first time.
    pub(super) fn check_master(&self, generation: u32) -> Result<Option<Arc<Master>>, Failure> {
        let found = self
            .sessions
            .run(|session| keys::find_master(&self.calls, session, &self.place, generation))?;
        let before = self.known().masters.get(&generation).cloned();
        let Some((handle, info)) = found else {
            return self.believe_absent(KeyName::Master(generation), before.is_some());
        };
        let canary = match before {
            Some(before) if before.info.check_value != info.check_value => {
                let why = "it is another key than before (its check value differs)".to_owned();
                let key = KeyName::Master(generation);
                return Err(TokenError::KeyUnfit { key, place: self.place.clone(), why }.into());
            }
            Some(before) if before.handle == handle => return Ok(Some(before)),
            Some(before) => before.canary.clone(),
            None => Arc::new(self.new_canary(generation, handle)?),
        };
        let master = Arc::new(Master { handle, info, canary });
        self.known().masters.insert(generation, master.clone());
        Ok(Some(master))
    }

    /// Believes from now on that there is no such master: it was destroyed here.
    pub(super) fn forget_master(&self, generation: u32) {
        self.known().masters.remove(&generation);
    }

    fn new_canary(&self, generation: u32, handle: ObjectHandle) -> Result<Canary, Failure> {
        let key = DataKey::generate()?;
        let wrapped = self.sessions.run(|session| {
            keys::encrypt(&self.calls, session, handle, generation, Canary::AAD, &key)
        })?;
        let canary = Canary { key, wrapped };
        self.try_canary(handle, &canary)?;
        Ok(canary)
    }

    pub(super) fn try_canary(&self, handle: ObjectHandle, canary: &Canary) -> Result<(), Failure> {
        let opened = self.sessions.run(|session| {
            keys::decrypt(&self.calls, session, handle, Canary::AAD, &canary.wrapped)
        })?;
        if opened.same_as(&canary.key) {
            Ok(())
        } else {
            Err(Failure::answer("C_Decrypt", "the canary opens to something else"))
        }
    }

    /// Runs `work` with the master; where its handle turns out to be dead, finds it again, once.
    pub(super) fn with_master<T>(
        &self,
        generation: u32,
        work: impl Fn(&Master) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match work(&*self.use_master(generation)?) {
            Err(failure) if failure.is_stale_handle() => {
                let master = self.check_master(generation)?;
                work(&*master.ok_or_else(|| self.missing(KeyName::Master(generation)))?)
            }
            result => result,
        }
    }

    pub(super) fn open_wrapped(
        &self,
        master: &Master,
        aad: &[u8],
        wrapped: &WrappedKey,
    ) -> Result<DataKey, Failure> {
        let open = || {
            self.sessions
                .run(|session| keys::decrypt(&self.calls, session, master.handle, aad, wrapped))
        };
        let failure = match open() {
            Err(failure) if failure.is_vague() => failure,
            Err(failure) if failure.is_data() => return Err(TokenError::Rejected.into()),
            result => return result,
        };
        // Is it the wrapped key, or the token? A blob that is known to be good tells; and if that one
        // opens, one more try tells a bad moment from a bad blob.
        if self.try_canary(master.handle, &master.canary).is_err() {
            return Err(failure);
        }
        match open() {
            Err(again) if again.is_vague() || again.is_data() => Err(TokenError::Rejected.into()),
            result => result,
        }
    }

    pub(super) fn use_signer(&self, generation: u32) -> Result<Signer, Failure> {
        let known = self.known().signers.get(&generation).copied();
        match known {
            Some(signer) => Ok(signer),
            None => self
                .check_signer(generation)?
                .ok_or_else(|| self.missing(KeyName::Signer(generation))),
        }
    }

    pub(super) fn check_signer(&self, generation: u32) -> Result<Option<Signer>, Failure> {
        let found =
            self.sessions.run(|session| keys::find_signer(session, &self.place, generation))?;
        let mut known = self.known();
        let Some(signer) = found else {
            let before = known.signers.contains_key(&generation);
            drop(known);
            return self.believe_absent(KeyName::Signer(generation), before);
        };
        known.signers.insert(generation, signer);
        Ok(Some(signer))
    }

    /// A logged-in session found no such key: is that so, or is the token not what it was?
    ///
    /// SoftHSM whose directory is gone finds nothing and says that it is logged in, but fails to
    /// describe the token; when the directory is back, it describes the token and finds nothing still.
    /// So a key that was seen in this process and is not found is a token that went away.
    fn believe_absent<T>(&self, key: KeyName, seen_before: bool) -> Result<Option<T>, Failure> {
        let info = self.module.get_token_info(self.slot)?;
        if seen_before || info.serial_number() != self.serial {
            return Err(Failure::Lost(key));
        }
        Ok(None)
    }

    pub(super) fn missing(&self, key: KeyName) -> Failure {
        TokenError::KeyMissing { key, place: self.place.clone() }.into()
    }
}
