//! Holds bytes that must not be seen: the locked arena and a type for each role a secret plays.
//!
//! Nothing here implements Debug, Display, Serialize or Clone; everything is wiped when it goes.

pub mod arena;
mod roles;

pub use arena::{ArenaError, SecretBytes};
pub use roles::{DataKey, Pin, Pkcs8Der, Plaintext};
