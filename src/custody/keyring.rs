//! The keys under an open token: store keys, opened private keys, and what is done with them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::cache::{self, Hit, KeyCache};
use super::custodian::Quick;
use super::generations::Generations;
use super::pins::now;
use super::protocol::{
    Answer, Fault, Home, KeyAddress, Passing, RecordAddress, Reply, SignerFacts, StoreKey,
    TokenFacts, Verb,
};
use super::rsa::{DecryptError, KeyError, PrivateKey};
use super::state_key::state_key;
use super::{checkpoint, masters, seal, sealed};
use crate::key::Mgf1Hash;
use crate::secret::{DataKey, Pkcs8Der};
use crate::token::{Token, WrappedKey};

/// Loads of different keys rarely share a stripe; loads of one key always do.
const STRIPES: usize = 16;

/// How many store keys are kept open.
const MOST_STORE_KEYS: usize = 16;

/// An open token with everything that custody keeps under it.
pub struct Keyring {
    pub token: Arc<dyn Token>,
    pub facts: TokenFacts,
    pub home: Option<Home>,
    /// The home was made by this very process, and may not be kept anywhere yet.
    pub is_founded: bool,
    pub cache: Arc<KeyCache>,
    pub(super) generations: Arc<Generations>,
    /// By all that its wrap is bound to: one that is open is no other one's.
    store_keys: Mutex<HashMap<StoreKeyPlace, Arc<DataKey>>>,
    loading: [Mutex<()>; STRIPES],
}

/// Number, oldest number that counts beside it, and wrapped form.
type StoreKeyPlace = (u32, u32, Vec<u8>);

/// A request to decrypt, as custody sees it.
struct Decryption<'a> {
    address: &'a KeyAddress,
    sealed: &'a [u8],
    mgf1_hash: Mgf1Hash,
    ciphertext: &'a [u8],
    label: &'a [u8],
    allowance: Duration,
}

impl Keyring {
    pub fn new(
        token: Arc<dyn Token>,
        facts: TokenFacts,
        home: Option<Home>,
        settings: cache::Settings,
        generations: Arc<Generations>,
    ) -> Self {
        Self {
            token,
            facts,
            home,
            is_founded: false,
            cache: Arc::new(KeyCache::new(settings)),
            generations,
            store_keys: Mutex::new(HashMap::new()),
            loading: std::array::from_fn(|_| Mutex::new(())),
        }
    }

    /// The same token and the same opened keys, for an appliance that became something else.
    pub fn with_home(&self, home: Home) -> Self {
        Self {
            token: Arc::clone(&self.token),
            facts: self.facts.clone(),
            home: Some(home),
            is_founded: false,
            cache: Arc::clone(&self.cache),
            generations: Arc::clone(&self.generations),
            store_keys: Mutex::new(HashMap::new()),
            loading: std::array::from_fn(|_| Mutex::new(())),
        }
    }

    /// The same for an appliance that was just made.
    pub fn founded(&self, home: Home) -> Self {
        Self { is_founded: true, ..self.with_home(home) }
    }

    /// The answer to whoever wants it unlocked.
    pub fn is_unlocked(&self) -> Reply {
        let signer = self.home.as_ref().map(|home| SignerFacts {
            generation: home.signer_generation,
            public_point: home.signer_point.clone(),
        });
        Reply::Unlocked { token: self.facts.clone(), signer }
    }

    /// Answers with what is open already; hands on what needs the token.
    pub fn quick(&self, verb: Verb) -> Quick {
        match &verb {
            Verb::Decrypt { address, sealed, mgf1_hash, ciphertext, label, allowance } => {
                let (mgf1_hash, allowance) = (*mgf1_hash, seconds(*allowance));
                let wanted =
                    Decryption { address, sealed, mgf1_hash, ciphertext, label, allowance };
                match self.decrypt_open(&wanted) {
                    Some(answer) => Quick::Answered(answer),
                    None => Quick::Token(verb),
                }
            }
            Verb::SealRecord { store_key, .. } | Verb::OpenRecord { store_key, .. } => {
                match self.known_store_key(store_key) {
                    Some(key) => Quick::Answered(self.record(&key, verb)),
                    None => Quick::Token(verb),
                }
            }
            Verb::StateKey { store_key } => match self.known_store_key(store_key) {
                Some(key) => Quick::Answered(self.state_key(store_key.id, &key)),
                None => Quick::Token(verb),
            },
            Verb::DropKeys { name, version } => {
                self.cache.forget(name.as_deref(), *version);
                Quick::Answered(Ok(Reply::Done))
            }
            Verb::Allow { name, allowance } => {
                self.cache.allow(name, seconds(*allowance), Instant::now());
                Quick::Answered(Ok(Reply::Done))
            }
            // Before it waits: there is room for the numbers that may be asked for.
            Verb::Masters { generations } if generations.len() > masters::MOST_ASKED => {
                Quick::Answered(Err(masters::too_many()))
            }
            Verb::Lock => Quick::Answered(Ok(Reply::Done)),
            Verb::GenerateKey { .. } | Verb::ImportKey { .. } => Quick::Generation(verb),
            _ => Quick::Token(verb),
        }
    }

    /// Carries out what needs the token.
    pub fn slow(&self, verb: Verb) -> Answer {
        match verb {
            Verb::Decrypt { address, sealed, mgf1_hash, ciphertext, label, allowance } => self
                .decrypt(&Decryption {
                    allowance: seconds(allowance),
                    address: &address,
                    sealed: &sealed,
                    mgf1_hash,
                    ciphertext: &ciphertext,
                    label: &label,
                }),
            Verb::SealRecord { ref store_key, .. } | Verb::OpenRecord { ref store_key, .. } => {
                let key = self.store_key(store_key)?;
                self.record(&key, verb)
            }
            Verb::StateKey { store_key } => {
                let key = self.store_key(&store_key)?;
                self.state_key(store_key.id, &key)
            }
            Verb::GenerateKey { address, algorithm } => {
                let key = PrivateKey::generate(algorithm).map_err(of_key)?;
                self.seal_key(&address, &key)
            }
            Verb::ImportKey { address, private_key } => {
                let text = private_key.taken()?;
                let key = PrivateKey::import(text.expose()).map_err(of_key)?;
                self.seal_key(&address, &key)
            }
            Verb::CheckKey { address, sealed, public } => {
                let key = self.open_key(&address, &sealed)?;
                let same = key.public().map_err(of_key)? == public;
                if same { Ok(Reply::Done) } else { Err(Fault::SealBroken) }
            }
            Verb::NewStoreKey { id, first } => {
                let home = self.home()?;
                let (token, appliance) = (self.token.as_ref(), &home.appliance);
                let made = new_store_key(token, appliance, home.generation, (id, first));
                made.map(Reply::StoreKey)
            }
            Verb::Masters { generations } => self.masters(&generations),
            Verb::RewrapKey { address, sealed, generation } => {
                self.rewrap_key(&address, &sealed, generation)
            }
            Verb::RewrapStoreKey { store_key, generation } => {
                self.rewrap_store_key(&store_key, generation)
            }
            _ => Err(Fault::Protocol("not a verb for an open token".to_owned())),
        }
    }

    pub(super) fn home(&self) -> Result<&Home, Fault> {
        self.home.as_ref().ok_or(Fault::NotInitialised)
    }

    /// With a key that is open already; `None` where it is not.
    fn decrypt_open(&self, wanted: &Decryption<'_>) -> Option<Answer> {
        let (_, seal) = sealed::read_key(wanted.sealed).ok()?;
        let hit = self.cache.hit(wanted.address, seal.iv, wanted.allowance, Instant::now())?;
        Some(decrypt_with(&hit, wanted))
    }

    /// Opens the key first; only one thread at a time opens the same key.
    fn decrypt(&self, wanted: &Decryption<'_>) -> Answer {
        let mut hasher = DefaultHasher::new();
        wanted.address.hash(&mut hasher);
        let stripe = &self.loading[hasher.finish() as usize % STRIPES];
        let loading = stripe.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = self.decrypt_open(wanted) {
            return answer;
        }
        let began = self.cache.moment();
        let key = Arc::new(self.open_key(wanted.address, wanted.sealed)?);
        let (_, seal) = sealed::read_key(wanted.sealed)?;
        let (address, opened) = (wanted.address.clone(), Arc::clone(&key));
        self.cache.keep(began, address, *seal.iv, opened, wanted.allowance, Instant::now());
        drop(loading);
        decrypt_with(&Hit { key, without_token: false }, wanted)
    }

    /// Unwraps a data key, and notes that its generation is of use.
    pub(super) fn unwrap(&self, aad: &[u8], wrapped: &WrappedKey) -> Result<DataKey, Fault> {
        let key = self.token.unwrap(wrapped.generation, aad, wrapped)?;
        self.note_use(wrapped.generation);
        Ok(key)
    }

    fn note_use(&self, generation: u32) {
        if self.home.as_ref().is_some_and(|home| home.generation != generation) {
            self.generations.used(generation, now());
        }
    }

    fn open_key(&self, address: &KeyAddress, bytes: &[u8]) -> Result<PrivateKey, Fault> {
        let home = self.home()?;
        let (wrapped, seal) = sealed::read_key(bytes)?;
        let aad = sealed::data_key_aad(&home.appliance, wrapped.generation, address);
        let data_key = self.unwrap(&aad, &wrapped)?;
        let open = || {
            seal::open(&data_key, &sealed::pkcs8_aad(&home.appliance, address), seal)
                .map(Pkcs8Der::new)
        };
        let pkcs8 = match open() {
            Err(Fault::ArenaFull) if self.cache.shed() => open(),
            other => other,
        }?;
        PrivateKey::from_pkcs8(pkcs8.expose()).map_err(|error| match error {
            KeyError::Arena(_) => Fault::ArenaFull,
            _ => Fault::SealBroken,
        })
    }

    /// Seals a private key under a data key of its own, and opens it again before it is handed out.
    fn seal_key(&self, address: &KeyAddress, key: &PrivateKey) -> Answer {
        let home = self.home()?;
        let data_key = DataKey::generate().map_err(|_| Fault::ArenaFull)?;
        let pkcs8 = key.to_pkcs8().map_err(of_key)?;
        let aad = sealed::pkcs8_aad(&home.appliance, address);
        let (iv, ciphertext) = seal::seal(&data_key, &aad, pkcs8.expose())?;
        let aad = sealed::data_key_aad(&home.appliance, home.generation, address);
        let wrapped = self.token.wrap(home.generation, &aad, &data_key)?;
        let bytes = sealed::write_key(&wrapped, &iv, &ciphertext);
        self.open_key(address, &bytes)?;
        Ok(Reply::Key {
            algorithm: key.algorithm(),
            sealed: bytes,
            public: key.public().map_err(of_key)?,
        })
    }

    fn known_store_key(&self, wanted: &StoreKey) -> Option<Arc<DataKey>> {
        let known = self.store_keys.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&place_of(wanted)).cloned()
    }

    fn store_key(&self, wanted: &StoreKey) -> Result<Arc<DataKey>, Fault> {
        let home = self.home()?;
        let key = Arc::new(open_store_key(self.token.as_ref(), &home.appliance, wanted)?);
        if let Some(generation) = sealed::generation_of(&wanted.wrapped) {
            self.note_use(generation);
        }
        let mut known = self.store_keys.lock().unwrap_or_else(PoisonError::into_inner);
        // There are a few in the life of an appliance; whoever asks for more does not fill the arena.
        if known.len() >= MOST_STORE_KEYS {
            known.clear();
        }
        known.insert(place_of(wanted), Arc::clone(&key));
        Ok(key)
    }

    fn state_key(&self, id: u32, store_key: &DataKey) -> Answer {
        let key = state_key(&self.home()?.appliance, id, store_key)?;
        Ok(Reply::StateKey(Passing::new(key)))
    }

    fn record(&self, key: &DataKey, verb: Verb) -> Answer {
        let home = self.home()?;
        let aad =
            |id: u32, address: &RecordAddress| sealed::record_aad(&home.appliance, id, address);
        match verb {
            Verb::SealRecord { store_key, address, value } => {
                let (iv, ciphertext) = seal::seal(key, &aad(store_key.id, &address), &value)?;
                Ok(Reply::Sealed(sealed::write_record(store_key.id, &iv, &ciphertext)))
            }
            Verb::OpenRecord { store_key, address, sealed } => {
                let (id, seal) = sealed::read_record(&sealed)?;
                let opened = seal::open(key, &aad(store_key.id, &address), seal)?;
                if id == store_key.id {
                    Ok(Reply::Opened(opened.expose().to_vec()))
                } else {
                    Err(Fault::SealBroken)
                }
            }
            _ => Err(Fault::Protocol("not a record's verb".to_owned())),
        }
    }

    pub(super) fn sign_backup(&self, message: &[u8]) -> Answer {
        let home = self.home()?;
        if !checkpoint::is_backup(message) {
            let why = "only what names a backup is signed";
            return Err(Fault::Protocol(why.to_owned()));
        }
        let digest: [u8; 32] = Sha256::digest(message).into();
        let generation = home.signer_generation;
        let signature = self.token.sign(generation, &digest)?;
        Ok(Reply::Signature { generation, signature: signature.to_vec() })
    }
}

/// A fresh store key, wrapped under a master generation for one appliance.
pub fn new_store_key(
    token: &dyn Token,
    appliance: &str,
    generation: u32,
    (id, first): (u32, u32),
) -> Result<StoreKey, Fault> {
    let key = DataKey::generate().map_err(|_| Fault::ArenaFull)?;
    let aad = sealed::store_key_aad(appliance, generation, (id, first));
    let wrapped = sealed::write_wrapped(&token.wrap(generation, &aad, &key)?);
    Ok(StoreKey { id, first, wrapped })
}

/// Unwraps a store key of an appliance; [`Fault::SealBroken`] where it is not of this one and its master.
pub fn open_store_key(
    token: &dyn Token,
    appliance: &str,
    key: &StoreKey,
) -> Result<DataKey, Fault> {
    let wrapped = sealed::read_wrapped(&key.wrapped)?;
    let aad = sealed::store_key_aad(appliance, wrapped.generation, (key.id, key.first));
    Ok(token.unwrap(wrapped.generation, &aad, &wrapped)?)
}

fn decrypt_with(hit: &Hit, wanted: &Decryption<'_>) -> Answer {
    let without_token = hit.without_token;
    hit.key
        .decrypt_oaep(wanted.mgf1_hash, wanted.ciphertext, wanted.label)
        .map(|plaintext| Reply::Plaintext { plaintext: Passing::new(plaintext), without_token })
        .map_err(|error| match error {
            DecryptError::Failed => Fault::DecryptionFailed,
            DecryptError::Arena(_) => Fault::ArenaFull,
        })
}

fn place_of(key: &StoreKey) -> StoreKeyPlace {
    (key.id, key.first, key.wrapped.clone())
}

fn seconds(allowance: u32) -> Duration {
    Duration::from_secs(u64::from(allowance))
}

fn of_key(error: KeyError) -> Fault {
    match error {
        KeyError::Arena(_) => Fault::ArenaFull,
        other => Fault::BadKey(other.to_string()),
    }
}
