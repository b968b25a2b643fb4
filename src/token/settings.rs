//! Which token, which PIN, how many sessions.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The `[token]` part of the configuration.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The PKCS#11 library (`.so`) of the token.
    pub module: PathBuf,
    /// The token's label. Label or serial must be set; with both, both must match.
    pub label: Option<String>,
    /// The token's serial number. Slots are never taken by their number: it changes.
    pub serial: Option<String>,
    /// A file with the user PIN, mode 0600 or less, owned by root or by custody's user; or root's, mode 0440
    /// and of a group of custody's.
    pub pin_file: Option<PathBuf>,
    /// The name of a systemd credential with the user PIN; goes before `pin_file`.
    pub pin_credential: Option<String>,
    /// Whose the PIN file may be besides root's, for root's own tools: custody's user. From `[custody]`.
    #[serde(skip)]
    pub custody_user: Option<u32>,
    /// Sessions used at once, at most; the token's own limit lowers it.
    pub pool_size: usize,
    /// How long a call waits for a free session before it is refused as busy, in milliseconds.
    pub wait_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            module: PathBuf::from("/usr/lib/softhsm/libsofthsm2.so"),
            label: None,
            serial: None,
            pin_file: None,
            pin_credential: None,
            custody_user: None,
            pool_size: 4,
            wait_ms: 2000,
        }
    }
}
