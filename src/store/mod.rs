//! Touches disk: a few verbs over addresses (a table and a key), durable and conditional.
//!
//! Every address counts its changes: the **revision**. It starts at 1, grows by one with every put
//! and every delete, and never starts again: a deleted address keeps its last revision, so that a
//! value sealed for revision 3 can never be put back as revision 3 of a later life.

mod batch;
#[cfg(test)]
mod conformance;
mod copy;
mod durable;
mod engine;
mod look;
pub mod memory;
mod served;
pub mod sled_store;
mod state;
mod watch;

use std::path::PathBuf;
use std::pin::Pin;

use serde::{Deserialize, Serialize};

use crate::secret::StateKey;

pub use batch::{Batch, Expect};
pub use copy::{Copied, Filling, Take};
pub use durable::sync_data;
pub use look::Look;
pub use served::{Served, serve};
use state::store_key_of_state;
pub use state::{Parts, StateCheck};
pub use watch::{Change, Watch, WatchEvent};

/// The kinds of records. Names and tags are part of what is on disk and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Table {
    /// What there is once: master and store key state, the trail's newest head.
    Appliance,
    /// One per key: name, labels, current version.
    Key,
    /// One per version of a key, with its sealed private key.
    KeyVersion,
    /// One per secret.
    Secret,
}

impl Table {
    /// All of them.
    pub const ALL: [Table; 4] = [Table::Appliance, Table::Key, Table::KeyVersion, Table::Secret];

    /// The name of the table, as sealed forms are bound to it.
    pub fn as_str(self) -> &'static str {
        match self {
            Table::Appliance => "appliance",
            Table::Key => "key",
            Table::KeyVersion => "key-version",
            Table::Secret => "secret",
        }
    }

    /// The first byte of an address on disk; 0 is for the marks of deleted addresses.
    pub fn tag(self) -> u8 {
        match self {
            Table::Appliance => 1,
            Table::Key => 2,
            Table::KeyVersion => 3,
            Table::Secret => 4,
        }
    }

    /// The table of this tag.
    pub fn of_tag(tag: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.tag() == tag)
    }
}

/// A value and how often its address has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    pub revision: u64,
    pub value: Vec<u8>,
}

/// The longest key, in bytes.
pub const MAX_KEY: usize = 255;

/// The longest value, in bytes. It keeps every page of sled inside its log file: a page beyond half a
/// MiB would go to a file of its own, which no sync of ours covers.
pub const MAX_VALUE: usize = 16 * 1024;

/// The answer to a commit: it is durable when this resolves to `Ok`. The commit is under way when the
/// future is made, and dropping the future does not stop it.
pub type CommitFuture = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

/// The answer to a check of the store's state.
pub type StateFuture = Pin<Box<dyn Future<Output = Result<StateCheck, StoreError>> + Send>>;

/// How much room there is on the store's file system, and how much of it has to stay free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub free_bytes: u64,
    pub reserve_bytes: u64,
}

impl Room {
    /// What sled needs to write anything at all, in bytes: two segments of its file, and a snapshot.
    const LEAST: u64 = 2 << 20;

    /// Whether there is so little that even what must not wait is refused.
    pub fn is_spent(&self) -> bool {
        self.free_bytes < Self::LEAST.min(self.reserve_bytes)
    }

    /// Whether there is so little that changes are refused.
    pub fn is_scarce(&self) -> bool {
        self.free_bytes < self.reserve_bytes
    }
}

impl std::fmt::Display for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { free_bytes, reserve_bytes } = self;
        write!(
            f,
            "less than {reserve_bytes} bytes are free on the store's file system ({free_bytes} free), so \
             changes are refused: free some, or set [store] reserve_bytes lower"
        )
    }
}

/// Why the store did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// An address was not as the batch expected; nothing of the batch was done.
    #[error("{}/{key} was changed by somebody else", table.as_str())]
    Conflict { table: Table, key: String },
    /// A batch named the same address twice; nothing of it was done.
    #[error("a batch names {}/{key} twice", table.as_str())]
    Twice { table: Table, key: String },
    /// A key is empty or longer than [`MAX_KEY`], or a value longer than [`MAX_VALUE`].
    #[error("a key or a value has a size that the store does not take")]
    Size,
    /// No room on the disk. What was committed is unharmed; commits work again when there is room.
    #[error("the disk of the store is full")]
    Full,
    /// Less room than is kept free for the store itself. Nothing was tried; works again when there is room.
    #[error("{0}")]
    Scarce(Room),
    /// The file system or its permissions do not allow writing.
    #[error("the store cannot be written: read-only or not permitted")]
    ReadOnly,
    /// What is written is no longer what lies at that path; works again by itself when it is.
    #[error(
        "{} is not the store that is open any more: it was removed, moved or replaced. Put back the very \
         directory, by moving it, and it goes on by itself; if that cannot be, stop the front and put \
         the store back from a copy",
        path.display()
    )]
    Misplaced { path: PathBuf },
    /// Another process has the store open.
    #[error("another process has the store open")]
    InUse,
    /// Others than the owner could get at the directory.
    #[error("the directory of the store has mode {mode:03o}; it must be 700")]
    Mode { mode: u32 },
    /// Who owns a directory says what becomes of every file in it.
    #[error("the directory of the store, {}, belongs to uid {owner}; this is uid {own}", path.display())]
    Owner { path: PathBuf, owner: u32, own: u32 },
    /// Something lies there that is no file of the store's, and may lead elsewhere.
    #[error("in the store's directory, {why}")]
    Odd { why: String },
    /// Records were to be changed before the store was checked against the record of its state.
    #[error("the store was not compared with its own record of its state yet")]
    Unchecked,
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
    /// What lies on disk is not what was written.
    #[error("the store is damaged: {what}")]
    Corrupt { what: &'static str },
    /// One record is none that was written here; all others are as good as ever.
    #[error("{place} was changed outside Strongroom, or belongs elsewhere")]
    Strange { place: String },
    /// What the process said that has it open.
    #[error("{what}")]
    Served { what: String },
    /// A newer Strongroom wrote it.
    #[error(
        "the store has schema version {found}, this program knows up to {supported}: use the newer program"
    )]
    Newer { found: u32, supported: u32 },
    /// A sync failed. The store stays closed for good, until the process starts anew: what the kernel
    /// holds and what the disk holds may differ, and no later sync would tell.
    #[error("the disk of the store failed to sync what was written: the store is closed for good")]
    NotSynced,
    /// The store failed while a batch was done: all of it is done, or nothing, and that shows when the
    /// store works again.
    #[error("the store failed while it was changed, and it is open whether it is: {0}")]
    Unsettled(Box<StoreError>),
    /// Any other failure of the disk.
    #[error("the disk of the store failed while {during}: {kind}")]
    Io { during: &'static str, kind: std::io::ErrorKind },
}

impl StoreError {
    /// Whether it says something about the disk, not about the batch.
    fn is_of_disk(&self) -> bool {
        matches!(
            self,
            StoreError::Full
                | StoreError::Scarce(_)
                | StoreError::ReadOnly
                | StoreError::Corrupt { .. }
                | StoreError::NotSynced
                | StoreError::Io { .. }
        )
    }
}

/// Records at addresses. Reading may touch the disk but takes well under a millisecond as a rule.
///
/// A read may see a batch that is applied and not yet durable. Who tells others what was read makes a
/// [`Look`] before, and waits for it after.
pub trait Store: Send + Sync {
    /// The value at an address, if one is there.
    fn get(&self, table: Table, key: &str) -> Result<Option<Stored>, StoreError>;

    /// The revision that the next put at this address will get: 1 where nothing ever was, else the
    /// last one plus 1, also after a delete. What must be sealed for its revision asks here and then
    /// commits with [`Expect::AbsentAt`] or [`Expect::Revision`], which make it hold.
    fn next_revision(&self, table: Table, key: &str) -> Result<u64, StoreError>;

    /// Up to `limit` values in the order of their keys (bytewise): keys that start with `prefix` and
    /// come after `after`. Costs the page, not the table.
    fn scan(
        &self,
        table: Table,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Stored)>, StoreError>;

    /// To be made before something is read that is to leave.
    fn look(&self) -> Look;

    /// Whether what a read at an address has just seen is durable: what is kept in memory has to be.
    fn is_durable(&self, table: Table, key: &str) -> bool;

    /// Does all of a batch or nothing of it. After [`StoreError::Unsettled`] it is open which, after any
    /// other error nothing was done.
    fn commit(&self, batch: Batch) -> CommitFuture;

    /// Whether it works, as far as is known without touching the disk.
    ///
    /// # Errors
    /// What it failed with last. [`StoreError::NotSynced`] stays; after any other it tries to work again
    /// by itself.
    fn health(&self) -> Result<(), StoreError>;

    /// How much room there is for changes; they are refused while it is scarce. `None` where there is no
    /// disk, or it does not say.
    fn room(&self) -> Option<Room>;

    /// Tells of every durable change at keys of `table` that start with `prefix`, from now on.
    fn watch(&self, table: Table, prefix: &str) -> Watch;

    /// Adds up all that the store has under `key`, which comes from the store key of this id, and compares it with
    /// what the last commit recorded; with `adopt` the record is made to fit. Every later commit goes on with it,
    /// unless there is no record, or the appliance's own records differ: then none is changed any more
    /// ([`StoreError::Unchecked`]). Nothing is committed while it runs.
    fn check_state(&self, key: StateKey, store_key: u32, adopt: bool) -> StateFuture;

    /// Where the record of the state is, or `None`: the id of the store key that its key comes from.
    fn state_key(&self) -> Result<Option<u32>, StoreError> {
        let stored = self.get(Table::Appliance, state::STATE)?;
        Ok(stored.map(|stored| store_key_of_state(&stored.value).unwrap_or(0)))
    }

    /// Hands all that the store holds to `take`, as it is at one moment, while others go on writing. Of
    /// an address that comes twice the last counts. `cut` is called at that moment: nothing is committed
    /// while it runs, and what was committed before is durable. Blocks until all is taken.
    ///
    /// # Errors
    /// Also where the store failed meanwhile, or is not there any more; there is no copy then.
    fn copy(&self, cut: &mut dyn FnMut(), take: Take<'_>) -> Result<(), StoreError>;
}
