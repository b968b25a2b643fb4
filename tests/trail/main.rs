//! The trail as its users meet it: written by the real writer, signed by a real P-256 key, mutated by
//! hand, killed, starved of room, and verified offline.

mod crafted;
mod mutations;
mod numbered;
mod places;
mod proof;
mod recovery;
mod tools;
mod writing;
