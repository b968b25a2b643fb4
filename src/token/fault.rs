//! A token that keeps its keys in memory and fails when it is told to: for tests, never configured.
//!
//! It passes the same conformance suite as the real one, so what is built over [`Token`] can be
//! tested against every way in which a token fails, without one.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use aes_gcm::{
    Aes256Gcm, Nonce,
    aead::{Aead, KeyInit, Payload},
};
use aws_lc_rs::{
    digest::{Digest, SHA256},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use zeroize::Zeroize;

use super::{
    Fault, KeyName, MasterInfo, Place, SignerInfo, Token, TokenError, TokenInfo, WrappedKey, ckr,
    error::Cause,
};
use crate::secret::{DataKey, SecretBytes};

/// The verbs of [`Token`], as places where a fault can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// [`Token::info`]
    Info,
    /// [`Token::create_master`]
    CreateMaster,
    /// [`Token::master`]
    Master,
    /// [`Token::destroy_master`]
    DestroyMaster,
    /// [`Token::wrap`]
    Wrap,
    /// [`Token::unwrap`]
    Unwrap,
    /// [`Token::create_signer`]
    CreateSigner,
    /// [`Token::signer`]
    Signer,
    /// [`Token::sign`]
    Sign,
    /// [`Token::remembered`]
    Remembered,
    /// [`Token::remember`]
    Remember,
    /// [`Token::canary`]
    Canary,
}

/// A way to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// [`TokenError::Unavailable`]: the device reports an error.
    Unavailable,
    /// [`TokenError::Fatal`]: the login was lost.
    Fatal,
    /// [`TokenError::Busy`]: no session in time.
    Busy,
    /// [`TokenError::Rejected`], whatever the data are.
    Rejected,
    /// [`TokenError::Operator`]: the token is write-protected.
    Operator,
    /// Not a failure: the answer comes this much later.
    Slow(Duration),
}

/// How often a mishap happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// This many times, and then no more.
    Next(u32),
    /// Until [`FaultToken::heal`].
    Always,
}

/// A token in memory.
#[derive(Default)]
pub struct FaultToken {
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    masters: HashMap<u32, DataKey>,
    unfit: HashMap<KeyName, String>,
    signers: HashMap<u32, EcdsaKeyPair>,
    memory: Option<Vec<u8>>,
    plans: HashMap<Verb, (Mishap, Times)>,
    calls: HashMap<Verb, u64>,
}

impl FaultToken {
    /// An empty token that works.
    pub fn new() -> Self {
        Self::default()
    }

    /// Plants a mishap; a verb has one at a time.
    pub fn plan(&self, verb: Verb, mishap: Mishap, times: Times) {
        self.inside().plans.insert(verb, (mishap, times));
    }

    /// Ends all mishaps.
    pub fn heal(&self) {
        self.inside().plans.clear();
    }

    /// How often a verb was called.
    pub fn calls(&self, verb: Verb) -> u64 {
        self.inside().calls.get(&verb).copied().unwrap_or_default()
    }

    /// Makes a key unfit from now on, as if its template were not what it must be.
    pub fn spoil(&self, key: KeyName, why: &str) {
        self.inside().unfit.insert(key, why.to_owned());
    }

    /// Takes the master of a generation away, as a re-initialised token would.
    pub fn lose_master(&self, generation: u32) {
        self.inside().masters.remove(&generation);
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call and lets the planned mishap happen, outside the lock.
    fn enter(&self, verb: Verb) -> Result<MutexGuard<'_, Inside>, TokenError> {
        let mut inside = self.inside();
        *inside.calls.entry(verb).or_default() += 1;
        let mishap = match inside.plans.get_mut(&verb) {
            None | Some((_, Times::Next(0))) => return Ok(inside),
            Some((mishap, Times::Always)) => *mishap,
            Some((mishap, Times::Next(left))) => {
                *left -= 1;
                *mishap
            }
        };
        let code = |code| -> Box<Fault> {
            let cause = Cause::Code(ckr::row(code), code);
            Box::new(Fault { place: place(), call: format!("{verb:?}"), cause })
        };
        match mishap {
            Mishap::Unavailable => {
                Err(TokenError::Unavailable(code(cryptoki_sys::CKR_DEVICE_ERROR)))
            }
            Mishap::Fatal => Err(TokenError::Fatal(code(cryptoki_sys::CKR_USER_NOT_LOGGED_IN))),
            Mishap::Operator => {
                Err(TokenError::Operator(code(cryptoki_sys::CKR_TOKEN_WRITE_PROTECTED)))
            }
            Mishap::Busy => Err(TokenError::Busy { place: place(), waited_ms: 0 }),
            Mishap::Rejected => Err(TokenError::Rejected),
            Mishap::Slow(delay) => {
                drop(inside);
                thread::sleep(delay);
                Ok(self.inside())
            }
        }
    }
}

impl Inside {
    fn require_fit(&self, key: KeyName) -> Result<(), TokenError> {
        match self.unfit.get(&key) {
            None => Ok(()),
            Some(why) => Err(TokenError::KeyUnfit { key, place: place(), why: why.clone() }),
        }
    }

    fn master(&self, generation: u32) -> Result<&DataKey, TokenError> {
        let key = KeyName::Master(generation);
        self.require_fit(key)?;
        self.masters.get(&generation).ok_or(TokenError::KeyMissing { key, place: place() })
    }

    fn master_info(&self, generation: u32) -> Result<MasterInfo, TokenError> {
        let key = self.master(generation)?;
        let payload = Payload { msg: &[0; 16], aad: b"check value" };
        let tag =
            gcm(key).encrypt(&Nonce::from([0; 12]), payload).map_err(|_| TokenError::Rejected)?;
        Ok(MasterInfo { generation, check_value: [tag[16], tag[17], tag[18]] })
    }

    fn signer_info(&self, generation: u32) -> Result<Option<SignerInfo>, TokenError> {
        self.require_fit(KeyName::Signer(generation))?;
        let point = self.signers.get(&generation).map(|pair| pair.public_key().as_ref().try_into());
        Ok(point
            .transpose()
            .map_err(broken)?
            .map(|public_point| SignerInfo { generation, public_point }))
    }
}

impl Token for FaultToken {
    fn info(&self) -> Result<TokenInfo, TokenError> {
        drop(self.enter(Verb::Info)?);
        Ok(TokenInfo {
            label: "in memory".into(),
            serial: "0".into(),
            manufacturer: "Strongroom".into(),
            model: "for tests".into(),
            firmware: "0.0".into(),
            module: "none".into(),
            sessions_open: None,
            sessions_max: None,
            pool_size: 1,
        })
    }

    fn create_master(&self, generation: u32) -> Result<MasterInfo, TokenError> {
        let mut inside = self.enter(Verb::CreateMaster)?;
        let key = KeyName::Master(generation);
        inside.require_fit(key)?;
        if inside.masters.contains_key(&generation) {
            return Err(TokenError::KeyExists { key, place: place() });
        }
        inside.masters.insert(generation, DataKey::generate()?);
        inside.master_info(generation)
    }

    fn master(&self, generation: u32) -> Result<Option<MasterInfo>, TokenError> {
        let inside = self.enter(Verb::Master)?;
        match inside.master_info(generation) {
            Err(TokenError::KeyMissing { .. }) => Ok(None),
            result => result.map(Some),
        }
    }

    fn destroy_master(&self, generation: u32) -> Result<(), TokenError> {
        let mut inside = self.enter(Verb::DestroyMaster)?;
        let key = KeyName::Master(generation);
        let gone = inside.masters.remove(&generation);
        gone.map(drop).ok_or(TokenError::KeyMissing { key, place: place() })
    }

    fn wrap(&self, generation: u32, aad: &[u8], key: &DataKey) -> Result<WrappedKey, TokenError> {
        if aad.is_empty() {
            return Err(TokenError::EmptyAad);
        }
        let inside = self.enter(Verb::Wrap)?;
        let mut iv = [0; 12];
        getrandom::fill(&mut iv).map_err(|_| crate::secret::ArenaError::Random)?;
        let payload = Payload { msg: key.expose(), aad };
        let ciphertext =
            gcm(inside.master(generation)?).encrypt(&Nonce::from(iv), payload).map_err(broken)?;
        Ok(WrappedKey { generation, iv, ciphertext })
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
        let inside = self.enter(Verb::Unwrap)?;
        let whole = wrapped.ciphertext.len() == WrappedKey::CIPHERTEXT_LEN;
        if !whole || wrapped.generation != generation {
            return Err(TokenError::Rejected);
        }
        let payload = Payload { msg: &wrapped.ciphertext, aad };
        let mut opened = gcm(inside.master(generation)?)
            .decrypt(&Nonce::from(wrapped.iv), payload)
            .map_err(|_| TokenError::Rejected)?;
        let bytes = SecretBytes::copy_from(&opened);
        opened.zeroize();
        DataKey::from_bytes(bytes?).ok_or(TokenError::Rejected)
    }

    fn create_signer(&self, generation: u32) -> Result<SignerInfo, TokenError> {
        let mut inside = self.enter(Verb::CreateSigner)?;
        let key = KeyName::Signer(generation);
        if inside.signer_info(generation)?.is_some() {
            return Err(TokenError::KeyExists { key, place: place() });
        }
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(broken)?;
        inside.signers.insert(generation, pair);
        inside.signer_info(generation)?.ok_or(TokenError::KeyMissing { key, place: place() })
    }

    fn signer(&self, generation: u32) -> Result<Option<SignerInfo>, TokenError> {
        self.enter(Verb::Signer)?.signer_info(generation)
    }

    fn sign(&self, generation: u32, sha256: &[u8; 32]) -> Result<[u8; 64], TokenError> {
        let inside = self.enter(Verb::Sign)?;
        let key = KeyName::Signer(generation);
        inside.require_fit(key)?;
        let pair = inside
            .signers
            .get(&generation)
            .ok_or(TokenError::KeyMissing { key, place: place() })?;
        let digest = Digest::import_less_safe(sha256, &SHA256).map_err(broken)?;
        pair.sign_digest(&digest).map_err(broken)?.as_ref().try_into().map_err(broken)
    }

    fn remembered(&self) -> Result<Vec<Vec<u8>>, TokenError> {
        Ok(self.enter(Verb::Remembered)?.memory.iter().cloned().collect())
    }

    fn remember(&self, bytes: Option<&[u8]>) -> Result<(), TokenError> {
        self.enter(Verb::Remember)?.memory = bytes.map(<[u8]>::to_vec);
        Ok(())
    }

    fn canary(&self, generation: u32) -> Result<(), TokenError> {
        let inside = self.enter(Verb::Canary)?;
        inside.master(generation).map(|_| ())
    }
}

fn gcm(key: &DataKey) -> Aes256Gcm {
    Aes256Gcm::new(key.expose().into())
}

fn place() -> Place {
    Place::new("in memory", 0, "0", "none")
}

/// A library failed where it has no reason to.
fn broken<E: std::fmt::Debug>(error: E) -> TokenError {
    TokenError::Unsupported(Box::new(Fault {
        place: place(),
        call: "cryptography in memory".into(),
        cause: Cause::Answer(format!("{error:?}")),
    }))
}
