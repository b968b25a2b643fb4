//! Holds bytes that must not be seen: the locked arena and a type for each role a secret plays.
//!
//! Nothing here implements Debug, Display, Serialize or Clone; everything is wiped when it goes.

pub mod arena;
mod bytes;
mod heap;
mod hook;
mod io_buffer;
mod locked_stack;
mod mapping;
mod process;
mod roles;
mod stack;
mod wiping;

pub use arena::{ArenaError, ArenaKind, ArenaReport, ArenaUsage, Settings, Use, start, usage};
pub use bytes::SecretBytes;
pub use hook::{hook_self_test, take_refusal};
pub use io_buffer::IoBuffer;
pub use locked_stack::{
    OnLockedStack, STACK_SIZE, StackReport, on_locked_stack, reserve_stacks, stacks,
};
pub use process::{HardenError, harden_process};
pub use roles::{DataKey, Pin, Pkcs8Der, Plaintext, StateKey};
pub use stack::{clear_registers, with_wiped_stack};
pub use wiping::WipingHeap;
