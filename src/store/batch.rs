//! What a commit does: puts and deletes, each with what it expects to find.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{MAX_KEY, MAX_VALUE, StoreError, Table};

/// What must be at an address for a batch to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// Anything or nothing.
    Any,
    /// Nothing; whatever may have been there before.
    Absent,
    /// Nothing, and a put gets exactly this revision (as `next_revision` said).
    AbsentAt(u64),
    /// A value of exactly this revision; a put or delete gets the next one.
    Revision(u64),
}

/// Puts, deletes and checks that are done together or not at all.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Batch {
    operations: Vec<Operation>,
    urgent: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Operation {
    table: Table,
    key: String,
    expect: Expect,
    deed: Deed,
}

#[derive(Debug, Serialize, Deserialize)]
enum Deed {
    Put(Vec<u8>),
    /// At the revision that it has.
    PutAgain(Vec<u8>),
    Delete,
    Check,
}

/// How an address is: its last revision (0 = never written) and whether a value is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub last: u64,
    pub live: bool,
}

/// A change that is allowed and only has to be written. `value` is `None` where it deletes.
#[derive(Debug)]
pub(super) struct Planned {
    pub table: Table,
    pub key: String,
    pub revision: u64,
    pub value: Option<Vec<u8>>,
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes `value`, whatever is bound to its revision being up to `expect`.
    pub fn put(mut self, table: Table, key: &str, expect: Expect, value: Vec<u8>) -> Self {
        self.add(table, key, expect, Deed::Put(value));
        self
    }

    /// Writes the value of `revision` in another form, which is bound to the same revision: as it is not
    /// another value, it does not count as a change.
    pub fn put_again(mut self, table: Table, key: &str, revision: u64, value: Vec<u8>) -> Self {
        self.add(table, key, Expect::Revision(revision), Deed::PutAgain(value));
        self
    }

    /// Removes the value. Where none is there and `expect` allows that, nothing changes.
    pub fn delete(mut self, table: Table, key: &str, expect: Expect) -> Self {
        self.add(table, key, expect, Deed::Delete);
        self
    }

    /// Changes nothing here, but the whole batch is done only if this holds.
    pub fn check(mut self, table: Table, key: &str, expect: Expect) -> Self {
        self.add(table, key, expect, Deed::Check);
        self
    }

    /// Has it done although there is less room than is kept in reserve: it closes something, is small, and
    /// must not wait for a disk.
    pub fn from_reserve(mut self) -> Self {
        self.urgent = true;
        self
    }

    pub(super) fn is_urgent(&self) -> bool {
        self.urgent
    }

    fn add(&mut self, table: Table, key: &str, expect: Expect, deed: Deed) {
        self.operations.push(Operation { table, key: key.to_owned(), expect, deed });
    }

    /// Holds every operation against what is there now; the result is what to write.
    pub(super) fn plan(
        self,
        slot_of: impl Fn(Table, &str) -> Result<Slot, StoreError>,
    ) -> Result<Vec<Planned>, StoreError> {
        self.check_shape()?;
        let mut planned = Vec::with_capacity(self.operations.len());
        for Operation { table, key, expect, deed } in self.operations {
            let slot = slot_of(table, &key)?;
            if !expect.holds(slot) {
                return Err(StoreError::Conflict { table, key });
            }
            let revision = slot.last + 1;
            match deed {
                Deed::Put(value) => {
                    planned.push(Planned { table, key, revision, value: Some(value) });
                }
                Deed::PutAgain(value) => {
                    let revision = slot.last;
                    planned.push(Planned { table, key, revision, value: Some(value) });
                }
                Deed::Delete if slot.live => {
                    planned.push(Planned { table, key, revision, value: None });
                }
                Deed::Delete | Deed::Check => {}
            }
        }
        Ok(planned)
    }

    fn check_shape(&self) -> Result<(), StoreError> {
        let mut seen = HashSet::with_capacity(self.operations.len());
        for Operation { table, key, deed, .. } in &self.operations {
            check_key(key)?;
            if matches!(deed, Deed::Put(value) | Deed::PutAgain(value) if value.len() > MAX_VALUE) {
                return Err(StoreError::Size);
            }
            if !seen.insert((*table, key.as_str())) {
                return Err(StoreError::Twice { table: *table, key: key.clone() });
            }
        }
        Ok(())
    }
}

pub(super) fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > MAX_KEY { Err(StoreError::Size) } else { Ok(()) }
}

impl Expect {
    fn holds(self, slot: Slot) -> bool {
        match self {
            Expect::Any => true,
            Expect::Absent => !slot.live,
            Expect::AbsentAt(next) => !slot.live && slot.last.checked_add(1) == Some(next),
            Expect::Revision(revision) => slot.live && slot.last == revision,
        }
    }
}
