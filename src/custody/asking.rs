//! The verbs as the front calls them: plain data in, plain data out.

use std::time::Duration;

use super::client::{Client, CustodyError};
use super::protocol::{
    Begun, Check, Checkpoint, Home, KeyAddress, Mark, MasterFacts, Newest, Noted, Passing,
    RecordAddress, Reply, StoreKey, Verb,
};
use crate::key::{Algorithm, Mgf1Hash};
use crate::secret::{Pin, Pkcs8Der, Plaintext, StateKey};

/// A key that custody made or took in: the sealed private key and the public one.
pub struct NewKey {
    pub algorithm: Algorithm,
    /// The sealed key, of no use without the token.
    pub sealed: Vec<u8>,
    /// SubjectPublicKeyInfo, DER.
    pub public: Vec<u8>,
}

/// A key to decrypt with, as its record has it.
pub struct SealedKey {
    pub address: KeyAddress,
    pub sealed: Vec<u8>,
    pub mgf1_hash: Mgf1Hash,
    /// For how many seconds of an outage the opened key may serve without the token.
    pub allowance: u32,
}

/// What was decrypted.
pub struct Opened {
    pub plaintext: Plaintext,
    /// Whether an opened key served, the token being away.
    pub without_token: bool,
}

/// What init came to.
pub struct Initialised {
    /// In words, what was generated in the token and not found there.
    pub created: Vec<String>,
    /// What has to be kept of it.
    pub home: Home,
}

/// Unpacks the one reply that fits, else says that custody is confused.
macro_rules! expect {
    ($reply:expr, $pattern:pat => $value:expr) => {
        match $reply {
            $pattern => Ok($value),
            _ => Err(CustodyError::Confused),
        }
    };
}

impl Client {
    /// How long a request may wait for custody.
    pub fn deadline(&self) -> Duration {
        self.shared.settings.deadline
    }

    /// The most seconds of an outage that custody lets a key serve.
    pub fn max_outage_grace_seconds(&self) -> u32 {
        self.shared.settings.max_outage_grace_seconds
    }

    /// The checks that only custody can make, locked or not.
    pub async fn checks(&self) -> Result<Vec<Check>, CustodyError> {
        expect!(self.ask_any(&Verb::Doctor).await?, Reply::Checks(checks) => checks)
    }

    /// Generates master key and signing key of the first generation in the token, and a store key.
    pub async fn init(&self, appliance: &str, resume: bool) -> Result<Initialised, CustodyError> {
        let verb = Verb::Init { appliance: appliance.to_owned(), resume };
        expect!(
            self.ask(verb).await?,
            Reply::Initialised { created, home } => Initialised { created, home }
        )
    }

    /// A further store key, wrapped in the token.
    pub async fn new_store_key(&self, id: u32, first: u32) -> Result<StoreKey, CustodyError> {
        expect!(self.ask(Verb::NewStoreKey { id, first }).await?, Reply::StoreKey(key) => key)
    }

    /// How the master keys of these generations stand in the token.
    pub async fn masters(&self, generations: Vec<u32>) -> Result<Vec<MasterFacts>, CustodyError> {
        expect!(self.ask(Verb::Masters { generations }).await?, Reply::Masters(facts) => facts)
    }

    /// Makes the master key of a generation in the token, unless it is there.
    pub async fn make_master(&self, generation: u32) -> Result<(), CustodyError> {
        expect!(self.ask(Verb::MakeMaster { generation }).await?, Reply::Done => ())
    }

    /// Has custody work with what the appliance has become, now and whenever it comes back.
    pub async fn use_home(&self, home: Home) -> Result<(), CustodyError> {
        self.keep_home(&home);
        expect!(self.ask(Verb::UseHome { home }).await?, Reply::Done => ())
    }

    /// Destroys the master key of a generation in the token; done, too, where there is none. With the token's
    /// PIN it does not have to wait.
    pub async fn destroy_master(
        &self,
        generation: u32,
        pin: Option<Pin>,
    ) -> Result<(), CustodyError> {
        let pin = pin.map(Passing::new);
        expect!(self.ask(Verb::DestroyMaster { generation, pin }).await?, Reply::Done => ())
    }

    /// A sealed key with its data key wrapped under another generation.
    pub async fn rewrap_key(
        &self,
        address: KeyAddress,
        sealed: Vec<u8>,
        generation: u32,
    ) -> Result<Vec<u8>, CustodyError> {
        let verb = Verb::RewrapKey { address, sealed, generation };
        expect!(self.ask(verb).await?, Reply::Sealed(sealed) => sealed)
    }

    /// A store key wrapped under another generation.
    pub async fn rewrap_store_key(
        &self,
        store_key: StoreKey,
        generation: u32,
    ) -> Result<StoreKey, CustodyError> {
        let verb = Verb::RewrapStoreKey { store_key, generation };
        expect!(self.ask(verb).await?, Reply::StoreKey(key) => key)
    }

    /// The fingerprint of the recovery key that custody has.
    pub async fn recovery_key(&self) -> Result<Option<[u8; 32]>, CustodyError> {
        let reply = self.ask(Verb::RecoveryKey).await?;
        expect!(reply, Reply::RecoveryKey(fingerprint) => fingerprint)
    }

    /// The data key of a sealed key, wrapped to the recovery key.
    pub async fn wrap_key_for_recovery(
        &self,
        address: KeyAddress,
        sealed: Vec<u8>,
        fingerprint: [u8; 32],
    ) -> Result<Vec<u8>, CustodyError> {
        let verb = Verb::WrapKeyForRecovery { address, sealed, fingerprint };
        expect!(self.ask(verb).await?, Reply::Sealed(wrap) => wrap)
    }

    /// A store key, wrapped to the recovery key.
    pub async fn wrap_store_key_for_recovery(
        &self,
        store_key: StoreKey,
        fingerprint: [u8; 32],
    ) -> Result<Vec<u8>, CustodyError> {
        let verb = Verb::WrapStoreKeyForRecovery { store_key, fingerprint };
        expect!(self.ask(verb).await?, Reply::Sealed(wrap) => wrap)
    }

    /// The key of the digest over the store's records.
    pub async fn state_key(&self, store_key: &StoreKey) -> Result<StateKey, CustodyError> {
        let verb = Verb::StateKey { store_key: store_key.clone() };
        let passed = expect!(self.ask(verb).await?, Reply::StateKey(key) => key)?;
        passed.taken().map_err(CustodyError::Fault)
    }

    /// Seals a record's value under its address.
    pub async fn seal_record(
        &self,
        store_key: &StoreKey,
        address: RecordAddress,
        value: Vec<u8>,
    ) -> Result<Vec<u8>, CustodyError> {
        let verb = Verb::SealRecord { store_key: store_key.clone(), address, value };
        expect!(self.ask(verb).await?, Reply::Sealed(sealed) => sealed)
    }

    /// Opens a record's value; it must have been sealed under this very address.
    pub async fn open_record(
        &self,
        store_key: &StoreKey,
        address: RecordAddress,
        sealed: Vec<u8>,
    ) -> Result<Vec<u8>, CustodyError> {
        let verb = Verb::OpenRecord { store_key: store_key.clone(), address, sealed };
        expect!(self.ask(verb).await?, Reply::Opened(value) => value)
    }

    /// Generates a private key and seals it under its address.
    pub async fn generate_key(
        &self,
        address: KeyAddress,
        algorithm: Algorithm,
    ) -> Result<NewKey, CustodyError> {
        let reply = self.ask(Verb::GenerateKey { address, algorithm }).await?;
        expect!(reply, Reply::Key { algorithm, sealed, public } => NewKey { algorithm, sealed, public })
    }

    /// Takes in a private key that was made elsewhere and seals it under its address.
    pub async fn import_key(
        &self,
        address: KeyAddress,
        private_key: Pkcs8Der,
    ) -> Result<NewKey, CustodyError> {
        let verb = Verb::ImportKey { address, private_key: Passing::new(private_key) };
        let reply = self.ask(verb).await?;
        expect!(reply, Reply::Key { algorithm, sealed, public } => NewKey { algorithm, sealed, public })
    }

    /// RSAES-OAEP decryption with a sealed key (RFC 8017 §7.1.2).
    pub async fn decrypt(
        &self,
        key: SealedKey,
        ciphertext: Vec<u8>,
        label: Vec<u8>,
    ) -> Result<Opened, CustodyError> {
        let SealedKey { address, sealed, mgf1_hash, allowance } = key;
        let verb = Verb::Decrypt { address, sealed, mgf1_hash, ciphertext, label, allowance };
        let (plaintext, without_token) = expect!(
            self.ask(verb).await?,
            Reply::Plaintext { plaintext, without_token } => (plaintext, without_token)
        )?;
        Ok(Opened { plaintext: plaintext.taken()?, without_token })
    }

    /// Makes custody forget opened keys: of one version, of a name, or all.
    pub async fn drop_keys(
        &self,
        name: Option<&str>,
        version: Option<u32>,
    ) -> Result<(), CustodyError> {
        let verb = Verb::DropKeys { name: name.map(str::to_owned), version };
        expect!(self.ask(verb).await?, Reply::Done => ())
    }

    /// Tells custody for how many seconds of an outage the opened keys of a name may serve.
    pub async fn allow(&self, name: &str, allowance: u32) -> Result<(), CustodyError> {
        let verb = Verb::Allow { name: name.to_owned(), allowance };
        expect!(self.ask(verb).await?, Reply::Done => ())
    }

    /// Opens a sealed key on trial, and holds it against its public key.
    ///
    /// # Errors
    /// `Fault::SealBroken` where it does not open at its address or belongs to another public key.
    pub async fn check_key(
        &self,
        address: KeyAddress,
        sealed: Vec<u8>,
        public: Vec<u8>,
    ) -> Result<(), CustodyError> {
        let verb = Verb::CheckKey { address, sealed, public };
        expect!(self.ask(verb).await?, Reply::Done => ())
    }

    /// Has the token sign the next checkpoint of the audit log; whether custody remembered none before.
    pub async fn sign_checkpoint(
        &self,
        trail: &str,
        mark: (u64, [u8; 32]),
        before: Mark,
        (closes, stored): (bool, bool),
    ) -> Result<(Checkpoint, bool), CustodyError> {
        let (covers, head) = mark;
        let trail = trail.to_owned();
        let verb = Verb::SignCheckpoint { trail, covers, head, before, closes, stored };
        expect!(
            self.ask(verb).await?,
            Reply::Checkpoint { checkpoint, adopted } => (checkpoint, adopted)
        )
    }

    /// Has the token sign what names a backup: r ‖ s.
    pub async fn sign_backup(&self, message: Vec<u8>) -> Result<Vec<u8>, CustodyError> {
        let reply = self.ask(Verb::SignBackup { message }).await?;
        expect!(reply, Reply::Signature { signature, .. } => signature)
    }

    /// Which checkpoint is the newest that custody signed; unlocked or not.
    pub async fn newest_checkpoint(&self) -> Result<Newest, CustodyError> {
        expect!(self.ask_any(&Verb::NewestCheckpoint).await?, Reply::Newest(newest) => *newest)
    }

    /// Has custody note the newest line of the audit log, where it can sign none. Unlocked or not.
    pub async fn note_line(
        &self,
        trail: &str,
        noted: Noted,
        closes: bool,
    ) -> Result<(), CustodyError> {
        let verb = Verb::NoteLine { trail: trail.to_owned(), noted, closes };
        expect!(self.ask_any(&verb).await?, Reply::Done => ())
    }

    /// Begins with an audit log; what it was accepted in the place of. Unlocked or not.
    pub async fn begin_trail(
        &self,
        trail: &str,
        newest: Mark,
        (behind_end, holds): (bool, Option<Noted>),
    ) -> Result<Begun, CustodyError> {
        let verb = Verb::BeginTrail { trail: trail.to_owned(), newest, behind_end, holds };
        expect!(self.ask_any(&verb).await?, Reply::Begun(begun) => begun)
    }
}
