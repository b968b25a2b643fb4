//! Strongroom: an HSM-backed key-management appliance.
//!
//! A master AES-256 key stays in a PKCS#11 token; RSA private keys lie sealed under it and are opened
//! on demand in locked memory only. Two processes run this library: the *front* speaks (listeners,
//! identity, policy, records, trail) and holds no key, no PIN and no PKCS#11 module; *custody* is the
//! cryptographic boundary and has no network, no store and no opinion.
//!
//! A module names only floors below its own (`tests/floors.rs` checks it):
//!
//! ```text
//! 7  main · daemon              puts the parts together
//! 6  http · cli                 speaks: routes and problem documents; the commands
//! 5  service                    acts: one struct per request; the one way in
//! 4  audit · records · backup   remembers: the trail · keeps: sealed records · brings away
//! 3  custody                    the cryptographic boundary
//! 2  token · store · policy     touches hardware · touches disk · judges
//! 1  identity · key             knows: who asks · what a key is and may do
//! 0  secret · sandbox · turns   holds bytes that must not be seen · shuts the process in · shares processors
//! ```

#![deny(unsafe_code)]

pub mod audit;
pub mod backup;
pub mod cli;
pub mod custody;
pub mod daemon;
pub mod http;
pub mod identity;
pub mod key;
pub mod policy;
pub mod records;
pub mod sandbox;
pub mod secret;
pub mod service;
pub mod store;
pub mod token;
pub mod turns;

#[cfg(test)]
#[path = "../fuzz/targets.rs"]
mod fuzz_targets;
