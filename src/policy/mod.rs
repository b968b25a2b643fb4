//! Judges: who may do what, decided by Cedar over the files of the policy directory.

mod action;

pub use action::{Action, Resource};
