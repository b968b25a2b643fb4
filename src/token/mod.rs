//! Touches hardware: the master key and the trail's signing key, which never leave their token.
//!
//! [`Token`] is the joint: [`pkcs11::Pkcs11Token`] is the real one, [`fault::FaultToken`] holds its
//! keys in memory and fails on demand, for tests. Only here is a slot, a session or a handle known.
//!
//! Calls block and belong on custody's own threads.

pub mod ckr;
mod error;
pub mod fault;
mod module;
mod pin;
pub mod pkcs11;
mod settings;

use serde::{Deserialize, Serialize};

use crate::secret::DataKey;

pub use error::{Cause, Fault, KeyName, Place, TokenError};
pub use module::{ModuleFault, check_module, look_at_module, refuse_loose_module};
pub use pin::{PinError, check_pin_file, pin_in, read_pin};
pub use settings::Settings;

/// The keys of one token, by generation (1 is the first).
///
/// A wrapped key is AES-256-GCM under the master of its generation:
///
/// ```text
/// ciphertext (32 B) || tag (16 B) = AES-GCM(master/<generation>, iv (12 B, random), data key (32 B), aad)
/// ```
///
/// The AAD is the caller's and is never empty: it says where the wrapped key belongs.
pub trait Token: Send + Sync {
    /// What the token says of itself, asked anew at every call.
    fn info(&self) -> Result<TokenInfo, TokenError>;

    /// Generates the master key of `generation` in the token, non-extractable, for AES-GCM alone.
    /// [`TokenError::KeyExists`] if it is there already: nothing is changed then.
    fn create_master(&self, generation: u32) -> Result<MasterInfo, TokenError>;

    /// Finds the master key and checks its template, at every call; `None` only where the token is
    /// logged in and has no such key. Never generates one.
    fn master(&self, generation: u32) -> Result<Option<MasterInfo>, TokenError>;

    /// Destroys the master key of `generation` in the token, for good: what lies wrapped under it opens
    /// nowhere any more. [`TokenError::KeyMissing`] if it is not there.
    fn destroy_master(&self, generation: u32) -> Result<(), TokenError>;

    /// Wraps a data key. What comes back was unwrapped again and compared before.
    fn wrap(&self, generation: u32, aad: &[u8], key: &DataKey) -> Result<WrappedKey, TokenError>;

    /// Unwraps into the arena. [`TokenError::Rejected`] if `aad` or `wrapped` are not what was wrapped,
    /// or `wrapped` names another generation.
    fn unwrap(
        &self,
        generation: u32,
        aad: &[u8],
        wrapped: &WrappedKey,
    ) -> Result<DataKey, TokenError>;

    /// Generates the P-256 pair that signs the trail's checkpoints; refuses where one is there.
    fn create_signer(&self, generation: u32) -> Result<SignerInfo, TokenError>;

    /// Finds the signing pair, checks its template and that both halves belong together.
    fn signer(&self, generation: u32) -> Result<Option<SignerInfo>, TokenError>;

    /// ECDSA on P-256 over a SHA-256 digest: r || s, 32 bytes each, big-endian.
    fn sign(&self, generation: u32, sha256: &[u8; 32]) -> Result<[u8; 64], TokenError>;

    /// What was given to [`Token::remember`] last; a crash within that may leave the one before beside it.
    /// [`TokenError::Unsupported`] where the token keeps no data objects.
    fn remembered(&self) -> Result<Vec<Vec<u8>>, TokenError>;

    /// Keeps a few bytes in the token, private to who is logged in, in the place of those that it kept
    /// before; `None` keeps nothing.
    fn remember(&self, bytes: Option<&[u8]>) -> Result<(), TokenError>;

    /// Unwraps a blob that is known to be good: does the token still do its work with this master?
    fn canary(&self, generation: u32) -> Result<(), TokenError>;
}

/// A token as it describes itself.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// The label given when the token was initialised.
    pub label: String,
    /// The serial number, unique per manufacturer.
    pub serial: String,
    /// Who made it.
    pub manufacturer: String,
    /// The model.
    pub model: String,
    /// The firmware's version, `major.minor`.
    pub firmware: String,
    /// The PKCS#11 library it is reached through.
    pub module: String,
    /// Sessions open now, where the token counts them.
    pub sessions_open: Option<u64>,
    /// The most sessions it allows, where there is such a limit.
    pub sessions_max: Option<u64>,
    /// How many sessions Strongroom uses at once.
    pub pool_size: usize,
}

/// A master key that was found and whose template is as it must be.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct MasterInfo {
    /// Which generation.
    pub generation: u32,
    /// Three bytes that differ between keys: `CKA_CHECK_VALUE` where the token keeps one (the first
    /// bytes of an ECB encryption of zeros), else the first of an AES-GCM tag, see
    /// [`pkcs11::Pkcs11Token`]. To be compared with what was recorded when the key was made.
    pub check_value: [u8; 3],
}

/// A signing pair that was found, with its public half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignerInfo {
    /// Which generation.
    pub generation: u32,
    /// The public point, uncompressed SEC1: `04 || x || y`.
    pub public_point: [u8; 65],
}

/// A data key wrapped under a master key; of no use without the token.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// The master's generation.
    pub generation: u32,
    /// The IV, drawn in the token.
    pub iv: [u8; 12],
    /// 32 bytes of ciphertext and 16 of tag; any other length is rejected.
    pub ciphertext: Vec<u8>,
}

impl WrappedKey {
    /// Length of [`WrappedKey::ciphertext`]: the key and a 128-bit tag.
    pub const CIPHERTEXT_LEN: usize = DataKey::LEN + 16;
}
