//! What the front and custody say to each other: verbs in, replies or faults out.
//!
//! One message is one packet of a `SOCK_SEQPACKET` Unix socket: an 8-byte little-endian request id,
//! then the postcard form of a [`Verb`] or an [`Answer`]. Answers come in any order. The first packet
//! each way is a [`Hello`]; a version that differs ends the connection. No packet is longer than
//! [`MAX_PACKET`].

use std::num::NonZeroUsize;

use serde::{Deserialize, Deserializer, Serialize};

pub use super::checkpoint::{Checkpoint, Mark};
pub use super::outage::{Outage, Reason};
pub use super::passing::{Passable, Passing};
use crate::key::{Algorithm, Mgf1Hash};
use crate::secret::{Pin, Pkcs8Der, Plaintext, StateKey};

/// The version of this protocol; both ends come from one binary, so only equal versions talk.
pub const VERSION: u16 = 6;

/// The longest packet, in bytes: below the kernel's default socket buffer.
pub const MAX_PACKET: NonZeroUsize = NonZeroUsize::new(96 * 1024).expect("not zero");

/// First words of both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub magic: [u8; 10],
    pub version: u16,
}

impl Hello {
    /// What this binary says.
    pub const OURS: Hello = Hello { magic: *b"strongroom", version: VERSION };
}

/// Where a key version lives: part of every AAD of its sealed form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyAddress {
    #[serde(deserialize_with = "field")]
    pub name: String,
    pub version: u32,
}

/// Where a record lives, and as which revision of it: the AAD of its sealed form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordAddress {
    #[serde(deserialize_with = "field")]
    pub table: String,
    #[serde(deserialize_with = "field")]
    pub key: String,
    pub revision: u64,
}

/// The store key as it lies in the store: its number, the oldest one whose seals count beside its own, and
/// its wrapped form, to which both are bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreKey {
    pub id: u32,
    /// What older ones sealed belongs to a time that a restore has ended; 0 where there was none.
    #[serde(default)]
    pub first: u32,
    pub wrapped: Vec<u8>,
}

/// Everything that custody can be asked. Sealed forms go in, results come out; no verb returns a key.
///
/// Beside each stands what a front can reach with it that lies. What holds for all: every text and packet
/// has a longest length, what waits is bounded in number and in bytes for each connection, and a request that
/// is none ends its connection. What a lying front can do in any case, as long as custody is unlocked: use every
/// key whose sealed form it has, read and write every record, and stop service.
#[derive(Serialize, Deserialize)]
pub enum Verb {
    /// What the token, the arena and the cache are like.
    ///
    /// If the front lies: there is nothing to lie about.
    Status,
    /// Opens the token and logs in: with this PIN, else with the configured one.
    ///
    /// If the front lies: a home whose master key, newest store key or signing key are not the token's is
    /// refused. Custody counts wrong PINs itself, over its end. Whoever may send this opens what an operator
    /// locked, with the configured PIN, by saying that an operator asks; and may use up the tries of PINs, after
    /// which root has to raise their number.
    Unlock {
        appliance: Option<Home>,
        pin: Option<Passing<Pin>>,
        /// Whether an operator asks, and not the link. It decides which of two answers an open custody gives,
        /// and whether one that remembers a lock is opened: no PIN is tried for it.
        by_operator: bool,
        /// It was away: it is looked for from outside this process before it is opened in it. Leaving it out
        /// costs this process where the token is away, and the next one starts.
        look_first: bool,
    },
    /// Wipes everything, remembers the lock, and ends the process; the next one starts locked, and stays so until
    /// an operator unlocks it.
    ///
    /// If the front lies: service stops until an operator unlocks. Whoever may send this may stop service in any
    /// case, so it is not bounded.
    Lock,
    /// Generates what an appliance needs in the token, and a store key; with `resume`, keeps what the
    /// token holds already.
    ///
    /// If the front lies: no key in the token is replaced or destroyed; keys of a later generation refuse it.
    /// As another appliance, custody opens nothing of the one before.
    Init {
        #[serde(deserialize_with = "field")]
        appliance: String,
        resume: bool,
    },
    /// A further store key, wrapped: there is a bound to how often one may seal.
    ///
    /// If the front lies: both numbers are bound into the wrap. Whoever may seal records may seal too many,
    /// or none under the new key; that is the front's to lose.
    NewStoreKey { id: u32, first: u32 },
    /// The key of the digest over the store's records, derived from a store key.
    ///
    /// If the front lies: it opens nothing. Whoever has it can have an edited store pass for the one that was
    /// written, which the front can do in any case.
    StateKey { store_key: StoreKey },
    /// If the front lies: a record is what the front says it is. The address is bound into the seal.
    SealRecord {
        store_key: StoreKey,
        address: RecordAddress,
        #[serde(with = "whole")]
        value: Vec<u8>,
    },
    /// If the front lies: what does not lie at this address, as this revision, under this store key of this
    /// appliance, does not open. That an older record is put back is for the front to notice.
    OpenRecord {
        store_key: StoreKey,
        address: RecordAddress,
        #[serde(with = "whole")]
        sealed: Vec<u8>,
    },
    /// If the front lies: a further key for an address that has one is another sealed form, and the one
    /// before still opens. Keys are made one at a time.
    GenerateKey { address: KeyAddress, algorithm: Algorithm },
    /// If the front lies: the same; and a key is checked before it is taken in, whoever brings it.
    ImportKey { address: KeyAddress, private_key: Passing<Pkcs8Der> },
    /// If the front lies: a sealed key opens at its own address alone. The key's state and the caller's right
    /// are the front's to judge. Another hash than the key's fails like any wrong ciphertext.
    Decrypt {
        address: KeyAddress,
        #[serde(with = "whole")]
        sealed: Vec<u8>,
        mgf1_hash: Mgf1Hash,
        #[serde(with = "whole")]
        ciphertext: Vec<u8>,
        #[serde(with = "whole")]
        label: Vec<u8>,
        /// For how many seconds of an outage the opened key may serve without the token. Custody takes no more
        /// than `[custody] max_outage_grace_seconds`, and while the token is away no more than was said before.
        allowance: u32,
    },
    /// Opens a sealed key and says whether it belongs to this public key; nothing is kept of it.
    ///
    /// If the front lies: it learns whether two things belong together that it has.
    CheckKey {
        address: KeyAddress,
        #[serde(with = "whole")]
        sealed: Vec<u8>,
        /// SubjectPublicKeyInfo, DER.
        #[serde(with = "whole")]
        public: Vec<u8>,
    },
    /// Forgets opened keys: one, or all of a name, or all.
    ///
    /// If the front lies: they are opened again when they are needed, while the token is there.
    DropKeys { name: Option<String>, version: Option<u32> },
    /// For how many seconds of an outage the opened keys of a name may serve from now on.
    ///
    /// If the front lies: see [`Verb::Decrypt`]; the same bounds hold.
    Allow { name: String, allowance: u32 },
    /// Signs the next checkpoint of the audit log's chain: `before` is the newest one that the log holds, and
    /// custody signs only where that is the newest one that it remembers. Number and time are custody's own.
    ///
    /// If the front lies: it may have a head signed that its lines do not have. That is remembered, so the next
    /// start finds that they do not fit, and holds service.
    SignCheckpoint {
        #[serde(deserialize_with = "field")]
        trail: String,
        covers: u64,
        head: [u8; 32],
        before: Mark,
        /// The log is closed with it: nothing is to be written after.
        closes: bool,
        /// The store has the head in its sealed record.
        stored: bool,
    },
    /// Which checkpoint is the newest that custody signed.
    ///
    /// If the front lies: there is nothing to lie about.
    NewestCheckpoint,
    /// An audit log is opened whose newest checkpoint is this one; it must be the newest, or what root said
    /// to be the newest.
    ///
    /// If the front lies: an older one is refused without an order of root's; of the newest one nothing changes.
    BeginTrail {
        #[serde(deserialize_with = "field")]
        trail: String,
        newest: Mark,
        /// Lines stand behind an orderly end.
        behind_end: bool,
        /// The noted line, where the log has it.
        holds: Option<Noted>,
    },
    /// Notes the newest line of the audit log while nothing can be signed; locked or not.
    ///
    /// If the front lies: a line that the log does not have holds service at the next start, as a checkpoint over
    /// such a line does. No line before the noted one is noted or signed any more.
    NoteLine {
        #[serde(deserialize_with = "field")]
        trail: String,
        noted: Noted,
        /// The log ends with it.
        closes: bool,
    },
    /// Remembers a lock of an operator's that came while custody could not be told.
    ///
    /// If the front lies: custody stays locked until an operator unlocks it, as after [`Verb::Lock`].
    StayLocked,
    /// Signs SHA-256 of what names a backup's manifest, in its one form.
    ///
    /// If the front lies: any manifest is signed, for only its hash is seen, but nothing that is not the hash of
    /// one, and not many. What is in a backup is compared with its own seals and with its audit log, whose
    /// checkpoints are signed one after another: a manifest that was signed for a lie says which log it is of, and
    /// does not make one. Each signature is in custody's journal, with the hash.
    SignBackup { message: Vec<u8> },
    /// The checks that only this process can make.
    ///
    /// If the front lies: there is nothing to lie about; no PIN is tried for it.
    Doctor,
    /// Which of these generations the token holds, and whether their keys are fit.
    ///
    /// If the front lies: it may name so many and no more, so that the token is not searched for minutes.
    Masters { generations: Vec<u32> },
    /// Generates the master key of a further generation; one that is there already is kept, if it is fit.
    ///
    /// If the front lies: custody makes the next generation that the token has room for and no other, and only
    /// few that are not in use.
    MakeMaster { generation: u32 },
    /// Works with what the appliance has become: another generation in use.
    ///
    /// If the front lies: the token must hold that master key and the appliance's own store and signing key,
    /// and no earlier generation comes back into use.
    UseHome { home: Home },
    /// Destroys the master key of a generation that is not in use.
    ///
    /// If the front lies: not while the store key that custody works with lies under it, and not before it
    /// has been out of use for `[custody] master_destroy_wait_days` by what custody itself has seen, unless root
    /// has left an order beside custody's state. A PIN in the request counts as in [`Verb::Unlock`].
    DestroyMaster { generation: u32, pin: Option<Passing<Pin>> },
    /// The same data key, wrapped under another generation; the private key stays as it is sealed.
    ///
    /// If the front lies: it goes under the generation in use or a later one, never back under an older one.
    /// The form that was handed in still opens.
    RewrapKey {
        address: KeyAddress,
        #[serde(with = "whole")]
        sealed: Vec<u8>,
        generation: u32,
    },
    /// The same store key, wrapped under another generation.
    ///
    /// If the front lies: the same holds.
    RewrapStoreKey { store_key: StoreKey, generation: u32 },
    /// The fingerprint of the recovery key that custody has.
    ///
    /// If the front lies: there is nothing to lie about.
    RecoveryKey,
    /// The data key of a sealed key, wrapped to the recovery key of this fingerprint, which custody must
    /// have in its own configuration.
    ///
    /// If the front lies: it cannot name another key than root has configured.
    WrapKeyForRecovery {
        address: KeyAddress,
        #[serde(with = "whole")]
        sealed: Vec<u8>,
        fingerprint: [u8; 32],
    },
    /// The same for a store key.
    ///
    /// If the front lies: the same holds.
    WrapStoreKeyForRecovery { store_key: StoreKey, fingerprint: [u8; 32] },
}

/// The appliance that a token's keys serve: bound into every AAD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// Identifier made at init: 32 hex digits.
    #[serde(deserialize_with = "field")]
    pub appliance: String,
    /// Master generation in use.
    pub generation: u32,
    /// Wrapped under the master at init: that it opens shows that the master is still the same.
    pub store_key: StoreKey,
    /// Public point of the trail's signing key (SEC 1, uncompressed), and its generation.
    pub signer_point: Vec<u8>,
    pub signer_generation: u32,
}

/// What a verb comes to.
pub type Answer = Result<Reply, Fault>;

#[derive(Serialize, Deserialize)]
pub enum Reply {
    Done,
    Status(Status),
    Unlocked {
        token: TokenFacts,
        signer: Option<SignerFacts>,
    },
    Initialised {
        created: Vec<String>,
        home: Home,
    },
    StoreKey(StoreKey),
    Sealed(#[serde(with = "whole")] Vec<u8>),
    Opened(#[serde(with = "whole")] Vec<u8>),
    Key {
        algorithm: Algorithm,
        sealed: Vec<u8>,
        public: Vec<u8>,
    },
    /// What was decrypted, and whether the token was away meanwhile.
    Plaintext {
        plaintext: Passing<Plaintext>,
        without_token: bool,
    },
    /// Unasked: the token is away, and opened keys that may serve without it go on.
    BrownOut(Outage),
    Signature {
        generation: u32,
        signature: Vec<u8>,
    },
    /// A checkpoint, and whether custody had remembered none and believed what it follows.
    Checkpoint {
        checkpoint: Checkpoint,
        adopted: bool,
    },
    Newest(Box<Newest>),
    /// The audit log may be gone on with; what it was accepted in the place of, until that is signed over.
    Begun(Begun),
    StateKey(Passing<StateKey>),
    Checks(Vec<Check>),
    Masters(Vec<MasterFacts>),
    RecoveryKey(Option<[u8; 32]>),
}

/// What custody is like at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub unlocked: bool,
    pub token: Option<TokenFacts>,
    /// In words: which kind of locked memory, and how large.
    pub arena: String,
    pub arena_size_bytes: u64,
    /// In words: what the process has shut itself in with.
    pub sandbox: String,
    pub arena_used_bytes: u64,
    pub loaded_keys: u64,
}

/// The token in words, for status and doctor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenFacts {
    pub label: String,
    pub serial: String,
    pub manufacturer: String,
    pub model: String,
}

/// The pair that signs checkpoints: its generation and its public point (SEC 1 §2.3.3, 65 bytes).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignerFacts {
    pub generation: u32,
    pub public_point: Vec<u8>,
}

/// How the master key of a generation stands in the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterFacts {
    pub generation: u32,
    pub found: MasterFound,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MasterFound {
    Fit,
    Missing,
    /// What is wrong with it.
    Unfit(String),
}

/// The newest checkpoint as custody remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    pub trail: String,
    pub mark: Mark,
    /// The checkpoint itself; not there where only its place is known: from the token, or from an operator.
    pub signed: Option<Checkpoint>,
}

/// What custody remembers of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newest {
    pub known: Option<Known>,
    /// The log was closed with it, or with the noted line.
    pub closed: bool,
    /// The newest line behind it, where nothing could be signed.
    pub noted: Option<Noted>,
    /// The key that signs, as the token proved it last.
    pub signer: Option<SignerFacts>,
    /// The token was asked, too, as far as it remembers.
    pub with_token: bool,
    /// The token remembered more than custody's own state.
    pub state_lost: bool,
}

/// A line of the audit log and its hash, noted while nothing could be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noted {
    pub covers: u64,
    pub head: [u8; 32],
}

/// What an operator accepted another audit log in the place of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replaced {
    pub trail: String,
    pub mark: Mark,
}

/// What custody says of an audit log that is gone on with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// What an operator accepted it in the place of, until that is signed over.
    pub replaced: Option<Replaced>,
    /// Root's order was that this is the newest, until the next checkpoint is signed.
    pub ordered: bool,
    /// The line that the store's sealed record must reach; 0 where it need not be there.
    pub stored: u64,
}

/// One line of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// Which setting of which file mends it; empty where nothing is wrong.
    pub remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// Why custody did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Fault {
    /// Whatever was wrong with ciphertext, label or key: always this, and nothing more.
    #[error("decryption failed")]
    DecryptionFailed,
    /// A sealed form did not open under its address: edited, swapped, or of another appliance.
    #[error("a sealed form does not belong where it lies, or was changed")]
    SealBroken,
    #[error("custody is locked")]
    Locked,
    /// The token is open, and init has not been done: there is no master key to work with.
    #[error("this appliance is not initialised")]
    NotInitialised,
    #[error("custody is unlocked already")]
    Unlocked,
    /// The token, its module or its login is past use in this process, which ends.
    #[error("the token is not usable: {0}")]
    TokenUnavailable(Outage),
    /// It was looked for and is not there; nothing was opened, and this process is as good as before.
    #[error("the token is not there: {0}")]
    TokenAbsent(Outage),
    /// The token is away, opened keys serve without it, and this needs it.
    #[error("the token is away: {0}")]
    BrownOut(Outage),
    /// One call failed, and the token does its work all the same: a known blob still opens.
    #[error("a call to the token failed: {0}")]
    TokenCall(String),
    #[error("the token refused the PIN: {0}")]
    PinRefused(String),
    /// The configured PIN cannot be read, so none was tried.
    #[error("there is no PIN: {0}")]
    PinUnavailable(String),
    /// The token answers, and its master key is missing, doubtful or not fit.
    #[error("the master key is not usable: {0}")]
    Master(String),
    #[error("already there: {0}")]
    Exists(String),
    #[error("not a private key that can be imported: {0}")]
    BadKey(String),
    #[error("custody has too much to do")]
    Busy,
    #[error("the locked arena is full")]
    ArenaFull,
    #[error("custody did not understand: {0}")]
    Protocol(String),
    /// A checkpoint that does not follow the newest one, or an audit log that does not end with it.
    #[error("{0}")]
    NotNewest(String),
    /// What custody has to remember could not be written or read.
    #[error("custody cannot keep what it has to remember: {0}")]
    State(String),
    /// Custody has not the recovery key that it is asked for.
    #[error("the recovery key: {0}")]
    Recovery(String),
    /// Custody's own rules are against it, whatever the front says.
    #[error("custody refuses: {0}")]
    Refused(String),
}

/// The longest field of an address, in bytes.
const LONGEST_FIELD: usize = 255;

/// A text that becomes a field of an AAD: one with a zero byte would pass for two. A long one is none of the
/// front's names, and would have to be kept for as long as its key is.
fn field<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = <&str>::deserialize(deserializer)?;
    if text.contains('\0') || text.len() > LONGEST_FIELD {
        return Err(serde::de::Error::custom("a zero byte in an address, or a long one"));
    }
    Ok(text.to_owned())
}

/// Bytes that are written and read in one go; by itself serde takes a `Vec` apart, byte by byte.
mod whole {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        <&[u8]>::deserialize(deserializer).map(<[u8]>::to_vec)
    }
}
