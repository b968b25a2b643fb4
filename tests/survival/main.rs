//! What was acknowledged survives: processes killed at any moment, power that goes, disks that fill.
//!
//! Rounds are few here and many in `scripts/nightly`; each run prints the seed that its random moments
//! come from.

#[path = "../support/appliance.rs"]
#[allow(dead_code)] // each test binary uses another part of it
mod appliance;
#[path = "../support/token.rs"]
mod token;

mod clock;
mod device;
mod dice;
mod disk;
mod frozen;
mod kills;
mod mounts;
mod object;
mod power;
mod unsynced;
mod wire;
mod witness;
mod worker;
