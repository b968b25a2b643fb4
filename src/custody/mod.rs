//! The cryptographic boundary: the one process that loads the PKCS#11 module, knows the PIN and ever
//! holds a key in the clear; and the front's way to it.
//!
//! It answers two dozen verbs over a private Unix socket ([`protocol`]), from plain data: sealed
//! forms in, results out. It keeps a cache, and a small durable [`state`] that no front can write, so it can be
//! ended and started at any moment.

mod asking;
mod backup_rate;
mod breaker;
mod brown_out;
mod cache;
pub mod checkpoint;
mod client;
mod connection;
mod custodian;
mod dial;
mod doctor;
mod fair_queue;
mod faults;
mod fronts;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod generations;
mod hang;
pub mod history;
mod housekeeping;
mod keyring;
mod link;
mod link_state;
mod lock_memory;
mod masters;
mod needs;
mod notice;
mod opening;
mod outage;
mod passing;
mod pin_budget;
mod pins;
mod probe;
mod process;
pub mod protocol;
mod recovery;
pub mod rsa;
mod seal;
mod sealed;
mod start;
pub mod state;
mod state_key;
mod turning;
mod wire;

pub use asking::{Initialised, NewKey, Opened, SealedKey};
pub use breaker::Turn;
pub use cache::Settings as CacheSettings;
pub use checkpoint::{BACKUP_TAG, CHECKPOINT_TAG, Checkpoint, Mark};
pub use client::{Client, CustodyError, LinkSettings, Wanted};
pub use dial::{Dialer, OwnSocket};
pub use doctor::{examine_locked, sandboxed};
pub use generations::Destroy;
pub use link_state::LinkState;
pub use needs::{
    Settings as SandboxSettings, Surroundings, needs, private_files, softhsm_configuration,
};
pub use outage::{Outage, Reason};
pub use pin_budget::may_try_offline;
pub use probe::Probe;
pub use process::{Settings, Spawn, StartError};
pub use recovery::{
    Fingerprint, RecoveredStoreKey, Recoverer, fingerprint_of, recovery_key_of, token_opens,
};
pub use sealed::{generation_of, recovery_of, store_key_of};
pub use start::{Ready, resolve};
pub use turning::Locks;
