//! The way out where the token is lost: a second wrap of every data key and store key, to an RSA public
//! key whose private half lies offline, in a safe.
//!
//! Custody wraps to the one key of its own configuration and to nothing else: the front names it by its
//! fingerprint and cannot bring another. The private half never comes near the daemon; what opens with
//! it is an offline command ([`Recoverer`]).

use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::keyring::{Keyring, open_store_key};
use super::protocol::{Answer, Fault, KeyAddress, RecordAddress, Reply, StoreKey};
use super::rsa::{KeyError, PrivateKey};
use super::state_key::state_key;
use super::{seal, sealed};
use crate::key::{Algorithm, Mgf1Hash, PublicKey};
use crate::sandbox::{Untrusted, trusted};
use crate::secret::{DataKey, OnLockedStack, Pkcs8Der, SecretBytes, StateKey, on_locked_stack};
use crate::token::{Token, TokenError, WrappedKey};

/// SHA-256 of a recovery key's SubjectPublicKeyInfo in DER.
pub type Fingerprint = [u8; 32];

/// The longest file of a public key that is read, in bytes.
const LONGEST: u64 = 64 * 1024;

/// The public half, as custody has it.
pub struct RecoveryKey {
    key: PublicKey,
    fingerprint: Fingerprint,
}

/// The fingerprint of a public key that may be a recovery key: RSA-4096.
///
/// # Errors
/// Why it may not, in words.
pub fn fingerprint_of(public: &[u8]) -> Result<Fingerprint, String> {
    Ok(RecoveryKey::of(public)?.fingerprint)
}

/// The fingerprint of the recovery key in a file, as custody reads it.
///
/// # Errors
/// Why it is none, in words that name setting and file.
pub fn recovery_key_of(path: &Path) -> Result<Fingerprint, String> {
    Ok(RecoveryKey::read(path)?.fingerprint)
}

impl RecoveryKey {
    /// Reads the key of a file; a text says why there is none.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let named = |error: String| format!("[custody] recovery_key {}: {error}", path.display());
        let file = trusted::open(path);
        let mut bytes = Vec::new();
        let read = file.map_err(|error| match error {
            Untrusted::Unreadable { error, .. } => error.to_string(),
            error => error.to_string(),
        });
        read.and_then(|file| {
            file.take(LONGEST).read_to_end(&mut bytes).map_err(|error| error.to_string())
        })
        .map_err(named)?;
        Self::of(&bytes).map_err(named)
    }

    fn of(bytes: &[u8]) -> Result<Self, String> {
        let key = PublicKey::from_any(bytes).map_err(|error| error.to_string())?;
        if key.algorithm() != Algorithm::Rsa4096 {
            return Err(format!(
                "a recovery key must be an RSA key of 4096 bits; this one has {}: make one with `openssl \
                 genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:4096 -aes256 -out recovery.key` and `openssl \
                 pkey -in recovery.key -pubout -out recovery.pem`",
                key.algorithm().bits()
            ));
        }
        let fingerprint = Sha256::digest(key.spki_der()).into();
        Ok(Self { key, fingerprint })
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Wraps a key, bound to where it belongs by the label of OAEP.
    fn wrap(&self, label: &[u8], key: &DataKey) -> Result<Vec<u8>, Fault> {
        // The padded key passes through the frames of the arithmetic.
        let encrypt = |_: &OnLockedStack| self.key.encrypt(Mgf1Hash::Sha256, key.expose(), label);
        let wrapped = on_locked_stack(encrypt).map_err(|_| Fault::ArenaFull)?;
        let wrapped = wrapped.map_err(|error| Fault::Recovery(error.to_string()))?;
        Ok(sealed::write_recovery(&self.fingerprint, &wrapped))
    }
}

impl Keyring {
    /// The data key of a sealed key, wrapped to the recovery key.
    pub(super) fn wrap_key_for(
        &self,
        recovery: &RecoveryKey,
        address: &KeyAddress,
        bytes: &[u8],
    ) -> Answer {
        let appliance = &self.home()?.appliance;
        let (wrapped, _) = sealed::read_key(bytes)?;
        let aad = sealed::data_key_aad(appliance, wrapped.generation, address);
        let key = self.token.unwrap(wrapped.generation, &aad, &wrapped)?;
        let label = sealed::recovery_key_label(appliance, address);
        recovery.wrap(&label, &key).map(Reply::Sealed)
    }

    /// A store key, wrapped to the recovery key.
    pub(super) fn wrap_store_key_for(
        &self,
        recovery: &RecoveryKey,
        store_key: &StoreKey,
    ) -> Answer {
        let appliance = &self.home()?.appliance;
        let key = open_store_key(self.token.as_ref(), appliance, store_key)?;
        let label = sealed::recovery_store_key_label(appliance, (store_key.id, store_key.first));
        recovery.wrap(&label, &key).map(Reply::Sealed)
    }
}

/// The private half at work, offline: opens what was wrapped to it.
pub struct Recoverer {
    key: PrivateKey,
    fingerprint: Fingerprint,
    appliance: String,
}

/// A store key that was opened with the private half.
pub struct RecoveredStoreKey {
    id: u32,
    first: u32,
    key: DataKey,
    appliance: String,
}

impl Recoverer {
    /// Takes the private key, as PEM or DER, for one appliance. The locked arena must have been started.
    ///
    /// # Errors
    /// Why it is no key that could be one.
    pub fn new(private: &[u8], appliance: &str) -> Result<Self, KeyError> {
        let key = PrivateKey::import(private)?;
        let fingerprint = Sha256::digest(key.public()?).into();
        Ok(Self { key, fingerprint, appliance: appliance.to_owned() })
    }

    /// Which key it is.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Opens the wrap of a store key.
    pub fn store_key(
        &self,
        (id, first): (u32, u32),
        wrap: &[u8],
    ) -> Result<RecoveredStoreKey, Fault> {
        let label = sealed::recovery_store_key_label(&self.appliance, (id, first));
        let key = self.unwrap(&label, wrap)?;
        Ok(RecoveredStoreKey { id, first, key, appliance: self.appliance.clone() })
    }

    /// Another store key, and its wrap to this recovery key.
    pub fn new_store_key(
        &self,
        (id, first): (u32, u32),
    ) -> Result<(RecoveredStoreKey, Vec<u8>), Fault> {
        let failed = |error: KeyError| Fault::Recovery(error.to_string());
        let public = RecoveryKey::of(&self.key.public().map_err(failed)?);
        let key = DataKey::generate().map_err(|_| Fault::ArenaFull)?;
        let label = sealed::recovery_store_key_label(&self.appliance, (id, first));
        let wrap = public.map_err(Fault::Recovery)?.wrap(&label, &key)?;
        Ok((RecoveredStoreKey { id, first, key, appliance: self.appliance.clone() }, wrap))
    }

    /// Proves that a sealed key can be recovered: its data key comes out of the wrap, the private key
    /// out of its seal, and the public key is that private key's.
    pub fn prove(
        &self,
        address: &KeyAddress,
        bytes: &[u8],
        wrap: &[u8],
        public: &[u8],
    ) -> Result<(), Fault> {
        let data_key = self.data_key(address, wrap)?;
        let (_, seal) = sealed::read_key(bytes)?;
        let aad = sealed::pkcs8_aad(&self.appliance, address);
        let pkcs8 = Pkcs8Der::new(seal::open(&data_key, &aad, seal)?);
        let key = PrivateKey::from_pkcs8(pkcs8.expose()).map_err(|_| Fault::SealBroken)?;
        let its_public = key.public().map_err(|_| Fault::SealBroken)?;
        if its_public == public { Ok(()) } else { Err(Fault::SealBroken) }
    }

    /// The same sealed key with its data key under a master of another token.
    pub fn reseal(
        &self,
        token: &dyn Token,
        generation: u32,
        address: &KeyAddress,
        bytes: &[u8],
        wrap: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        let data_key = self.data_key(address, wrap)?;
        let aad = sealed::data_key_aad(&self.appliance, generation, address);
        sealed::with_wrap(bytes, &token.wrap(generation, &aad, &data_key)?)
    }

    /// Whether `token` opens a sealed key's data key.
    pub fn opens(
        &self,
        token: &dyn Token,
        address: &KeyAddress,
        bytes: &[u8],
    ) -> Result<bool, TokenError> {
        let Ok((wrapped, _)) = sealed::read_key(bytes) else { return Ok(false) };
        let aad = sealed::data_key_aad(&self.appliance, wrapped.generation, address);
        unwraps(token, &aad, &wrapped)
    }

    fn data_key(&self, address: &KeyAddress, wrap: &[u8]) -> Result<DataKey, Fault> {
        self.unwrap(&sealed::recovery_key_label(&self.appliance, address), wrap)
    }

    fn unwrap(&self, label: &[u8], wrap: &[u8]) -> Result<DataKey, Fault> {
        let (fingerprint, ciphertext) = sealed::read_recovery(wrap)?;
        if fingerprint != self.fingerprint {
            return Err(Fault::Recovery("it is wrapped to another recovery key".to_owned()));
        }
        let opened = self.key.decrypt_oaep(Mgf1Hash::Sha256, ciphertext, label);
        let opened = opened.map_err(|_| Fault::SealBroken)?;
        let bytes = SecretBytes::copy_from(opened.expose()).map_err(|_| Fault::ArenaFull)?;
        DataKey::from_bytes(bytes).ok_or(Fault::SealBroken)
    }
}

/// Whether `token` opens a store key as it lies in the store: whether what is to be recovered from is not
/// lost.
pub fn token_opens(
    token: &dyn Token,
    appliance: &str,
    store_key: &StoreKey,
) -> Result<bool, TokenError> {
    let Ok(wrapped) = sealed::read_wrapped(&store_key.wrapped) else { return Ok(false) };
    let generation = wrapped.generation;
    let aad = sealed::store_key_aad(appliance, generation, (store_key.id, store_key.first));
    unwraps(token, &aad, &wrapped)
}

fn unwraps(token: &dyn Token, aad: &[u8], wrapped: &WrappedKey) -> Result<bool, TokenError> {
    match token.unwrap(wrapped.generation, aad, wrapped) {
        Ok(_) => Ok(true),
        Err(TokenError::Rejected) => Ok(false),
        Err(error) => Err(error),
    }
}

impl RecoveredStoreKey {
    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Opens a record that it sealed.
    pub fn open(&self, address: &RecordAddress, bytes: &[u8]) -> Result<Vec<u8>, Fault> {
        let (id, seal) = sealed::read_record(bytes)?;
        if id != self.id {
            return Err(Fault::SealBroken);
        }
        let aad = sealed::record_aad(&self.appliance, id, address);
        Ok(seal::open(&self.key, &aad, seal)?.expose().to_vec())
    }

    /// The key of the digest over the store's records.
    pub fn state_key(&self) -> Result<StateKey, Fault> {
        state_key(&self.appliance, self.id, &self.key)
    }

    /// Seals a record.
    pub fn seal(&self, address: &RecordAddress, value: &[u8]) -> Result<Vec<u8>, Fault> {
        let aad = sealed::record_aad(&self.appliance, self.id, address);
        let (iv, ciphertext) = seal::seal(&self.key, &aad, value)?;
        Ok(sealed::write_record(self.id, &iv, &ciphertext))
    }

    /// The same store key under a master of another token.
    pub fn reseal(&self, token: &dyn Token, generation: u32) -> Result<StoreKey, Fault> {
        let (id, first) = (self.id, self.first);
        let aad = sealed::store_key_aad(&self.appliance, generation, (id, first));
        let wrapped = sealed::write_wrapped(&token.wrap(generation, &aad, &self.key)?);
        Ok(StoreKey { id, first, wrapped })
    }
}
