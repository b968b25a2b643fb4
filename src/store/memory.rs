//! A store in memory that fails on demand: for tests of what stands above, and the second
//! implementation that the conformance suite is held against.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::batch::{Planned, Slot, check_key};
use super::state::{STATE, StateCheck, Step, Tally, is_counted, is_state};
use super::watch::Watchers;
use super::{
    Batch, Change, CommitFuture, Copied, Look, Room, StateFuture, Store, StoreError, Stored, Table,
    Take, Watch,
};
use crate::secret::StateKey;

/// Nothing of it outlives the process.
pub struct MemoryStore {
    inner: Mutex<Inner>,
    /// Held by whoever commits, or has nobody commit.
    commits: Mutex<()>,
    watchers: Watchers,
}

#[derive(Default)]
struct Inner {
    slots: BTreeMap<(Table, String), Kept>,
    tally: Option<Tally>,
    fail_reads: Option<StoreError>,
    fail_commits: Option<StoreError>,
}

struct Kept {
    revision: u64,
    /// `None` marks a deleted address.
    value: Option<Vec<u8>>,
}

impl Kept {
    fn copied(&self, (table, key): &(Table, String)) -> Copied {
        let value = self.value.clone();
        Copied { table: *table, key: key.clone(), revision: self.revision, value }
    }

    fn stored(&self) -> Option<Stored> {
        Some(Stored { revision: self.revision, value: self.value.clone()? })
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    pub fn new() -> Self {
        Self { inner: Mutex::default(), commits: Mutex::default(), watchers: Watchers::new() }
    }

    /// Every read answers this error from now on, until it is set to `None`.
    pub fn fail_reads(&self, error: Option<StoreError>) {
        self.lock().fail_reads = error;
    }

    /// Every commit answers this error from now on and changes nothing, until it is set to `None`.
    pub fn fail_commits(&self, error: Option<StoreError>) {
        self.lock().fail_commits = error;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reading(&self) -> Result<MutexGuard<'_, Inner>, StoreError> {
        let inner = self.lock();
        match &inner.fail_reads {
            Some(error) => Err(error.clone()),
            None => Ok(inner),
        }
    }

    fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        let _one_at_a_time = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        let mut inner = self.lock();
        if let Some(error) = &inner.fail_commits {
            return Err(error.clone());
        }
        let mut planned = batch.plan(|table, key| Ok(inner.slot(table, key)))?;
        inner.count(&mut planned)?;
        for planned in planned {
            let change = Change {
                table: planned.table,
                key: planned.key.clone(),
                revision: planned.revision,
                deleted: planned.value.is_none(),
            };
            let kept = Kept { revision: planned.revision, value: planned.value };
            inner.slots.insert((planned.table, planned.key), kept);
            self.watchers.tell(change);
        }
        Ok(())
    }
}

impl Inner {
    /// Adds the record of the state after these changes.
    fn count(&mut self, planned: &mut Vec<Planned>) -> Result<(), StoreError> {
        let Some(tally) = &self.tally else {
            let counts = planned.iter().any(|one| is_counted(one.table, &one.key));
            let is_recorded = self.slot(Table::Appliance, STATE).live;
            return if counts && is_recorded { Err(StoreError::Unchecked) } else { Ok(()) };
        };
        let before = |table, key: &str| Ok(self.copied(table, key).into_iter().collect());
        if let Some(step) = tally.step(planned, before)? {
            planned.push(self.state_record(tally, Some(&step)));
            if let Some(tally) = &mut self.tally {
                tally.take(&step);
            }
        }
        Ok(())
    }

    fn state_record(&self, tally: &Tally, step: Option<&Step>) -> Planned {
        let revision = self.slot(Table::Appliance, STATE).last + 1;
        let value = Some(tally.record(revision, step));
        Planned { table: Table::Appliance, key: STATE.to_owned(), revision, value }
    }

    fn copied(&self, table: Table, key: &str) -> Option<Copied> {
        let key = (table, key.to_owned());
        self.slots.get(&key).map(|kept| kept.copied(&key))
    }

    fn check_state(&mut self, mut tally: Tally, adopt: bool) -> Result<StateCheck, StoreError> {
        let mut all = Some(self.slots.iter().map(|(key, kept)| kept.copied(key)).collect());
        tally.scan(|| Ok::<_, StoreError>(all.take()))?;
        let recorded = self.slots.get(&(Table::Appliance, STATE.to_owned()));
        let recorded = recorded.and_then(Kept::stored);
        let found = tally.compare(recorded.as_ref().map(|it| (it.revision, it.value.as_slice())));
        if adopt && found != StateCheck::Fits {
            tally.adopt();
            let Planned { table, key, revision, value } = self.state_record(&tally, None);
            self.slots.insert((table, key), Kept { revision, value });
        }
        self.tally = (adopt || found.goes_on()).then_some(tally);
        Ok(found)
    }

    fn slot(&self, table: Table, key: &str) -> Slot {
        match self.slots.get(&(table, key.to_owned())) {
            Some(kept) => Slot { last: kept.revision, live: kept.value.is_some() },
            None => Slot { last: 0, live: false },
        }
    }
}

impl Store for MemoryStore {
    fn get(&self, table: Table, key: &str) -> Result<Option<Stored>, StoreError> {
        check_key(key)?;
        let inner = self.reading()?;
        Ok(inner.slots.get(&(table, key.to_owned())).and_then(Kept::stored))
    }

    fn next_revision(&self, table: Table, key: &str) -> Result<u64, StoreError> {
        check_key(key)?;
        Ok(self.reading()?.slot(table, key).last + 1)
    }

    fn scan(
        &self,
        table: Table,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Stored)>, StoreError> {
        let inner = self.reading()?;
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded((table, after.to_owned())),
            _ => Bound::Included((table, prefix.to_owned())),
        };
        Ok(inner
            .slots
            .range((start, Bound::Unbounded))
            .take_while(|((of, key), _)| *of == table && key.starts_with(prefix))
            .filter_map(|((_, key), kept)| Some((key.clone(), kept.stored()?)))
            .take(limit)
            .collect())
    }

    fn look(&self) -> Look {
        Look::at_once()
    }

    fn is_durable(&self, _: Table, _: &str) -> bool {
        true
    }

    fn commit(&self, batch: Batch) -> CommitFuture {
        let result = self.apply(batch);
        Box::pin(std::future::ready(result))
    }

    fn health(&self) -> Result<(), StoreError> {
        let inner = self.lock();
        let failing = inner.fail_commits.as_ref().or(inner.fail_reads.as_ref());
        failing.map_or(Ok(()), |error| Err(error.clone()))
    }

    fn room(&self) -> Option<Room> {
        None
    }

    fn watch(&self, table: Table, prefix: &str) -> Watch {
        self.watchers.watch(table, prefix)
    }

    fn check_state(&self, key: StateKey, store_key: u32, adopt: bool) -> StateFuture {
        let found = self.lock().check_state(Tally::new(key, store_key), adopt);
        Box::pin(std::future::ready(found))
    }

    fn copy(&self, cut: &mut dyn FnMut(), take: Take<'_>) -> Result<(), StoreError> {
        let _nobody_commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = self.reading()?;
        let all = inner.slots.iter().filter(|((table, key), _)| !is_state(*table, key));
        let all = all.map(|(key, kept)| kept.copied(key)).collect();
        drop(inner);
        cut();
        // Whether it wants more makes no difference: there is none.
        let _ = take(all);
        Ok(())
    }
}
