//! The store on disk: sled 0.34, made durable.
//!
//! sled's own flush asks the kernel to start writing and never issues a sync. So one thread does all
//! commits: it takes every batch that waits, applies each as one atomic sled batch, flushes once,
//! syncs sled's log file once, and only then answers. As that thread is the only writer, what a batch
//! expects is checked without a transaction.
//!
//! After a failure of the disk the same thread opens sled anew, so that nobody who reads waits for that.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::batch::check_key;
use super::copy::{self, Held, Notes, Pause};
use super::engine::{Engine, lock, make_directory, of_io};
use super::look::Groups;
use super::state::{StateCheck, Tally};
use super::watch::Watchers;
use super::{
    Batch, CommitFuture, Look, Room, StateFuture, Store, StoreError, Stored, Table, Take, Watch,
};
use crate::secret::StateKey;

/// Where the store lies and what it may take.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Directory of the store; made with mode 0700 if it is not there.
    pub path: PathBuf,
    /// Memory for sled's page cache, in bytes.
    pub cache_bytes: u64,
    /// Commits are refused while the disk has less room than this, in bytes: sled does not mend itself
    /// well once a write of its own has failed.
    pub reserve_bytes: u64,
    /// Most batches that share one sync.
    pub group_limit: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            path: PathBuf::from("/var/lib/strongroom/store"),
            cache_bytes: 8 * 1024 * 1024,
            reserve_bytes: 8 * 1024 * 1024,
            group_limit: 512,
        }
    }
}

/// The store; dropping it finishes what was handed in and closes it.
pub struct SledStore {
    shared: Arc<Shared>,
    jobs: Option<mpsc::Sender<Job>>,
    committer: Option<JoinHandle<()>>,
}

struct Shared {
    settings: Settings,
    state: RwLock<State>,
    groups: Arc<Groups>,
    watchers: Watchers,
    notes: Notes,
    /// What the store adds up to; none until it was checked.
    tally: Mutex<Option<Tally>>,
    /// Held for as long as the store is: it keeps a second process out.
    _lock: File,
}

enum State {
    Open(Engine),
    /// Something failed; another try is made from `retry` on, or never.
    Failed {
        error: StoreError,
        retry: Option<Instant>,
        /// What failed, until the committing thread closes it.
        spent: Option<Engine>,
    },
}

enum Job {
    Commit(Commit),
    /// Compare the store with the record of its state.
    Check(Box<Check>),
    /// A reader met a failure: look after it.
    Mend,
    /// Commit nothing until the other side lets go.
    Pause(Pause),
}

struct Commit {
    batch: Batch,
    reply: oneshot::Sender<Result<(), StoreError>>,
}

struct Check {
    tally: Tally,
    adopt: bool,
    reply: oneshot::Sender<Result<StateCheck, StoreError>>,
}

/// How long to wait before a failed store is opened again.
const RETRY: Duration = Duration::from_millis(250);

impl SledStore {
    /// Opens the store, makes it if there is none, and brings an older schema up to date.
    pub fn open(settings: &Settings) -> Result<Self, StoreError> {
        make_directory(&settings.path)?;
        let lock = lock(&settings.path)?;
        let engine = Engine::open(settings)?;
        let shared = Arc::new(Shared {
            settings: settings.clone(),
            state: RwLock::new(State::Open(engine)),
            groups: Groups::new(),
            watchers: Watchers::new(),
            notes: Notes::default(),
            tally: Mutex::default(),
            _lock: lock,
        });
        let (jobs, waiting) = mpsc::channel();
        let of_thread = Arc::clone(&shared);
        let committer = std::thread::Builder::new()
            .name("store-commit".into())
            .spawn(move || {
                let _ends = of_thread.groups.ends_with_this();
                of_thread.commit_all(&waiting);
            })
            .map_err(|error| of_io("starting a thread", &error))?;
        Ok(Self { shared, jobs: Some(jobs), committer: Some(committer) })
    }

    /// Runs `work`; a failure that it meets is left to the committing thread.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (result, failed) = self.shared.with_engine(work);
        if failed && let Some(jobs) = &self.jobs {
            // Without a receiver there is nothing to mend any more.
            let _ = jobs.send(Job::Mend);
        }
        result
    }
}

/// Keeps every daemon away from a store that is there, for as long as the result is held.
pub fn claim(path: &std::path::Path) -> Result<File, StoreError> {
    lock(path)
}

impl Drop for SledStore {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(committer) = self.committer.take() {
            // A panic of that thread has answered every waiter already.
            let _ = committer.join();
        }
    }
}

impl Store for SledStore {
    fn get(&self, table: Table, key: &str) -> Result<Option<Stored>, StoreError> {
        check_key(key)?;
        self.read(|engine| engine.value(table, key))
    }

    fn next_revision(&self, table: Table, key: &str) -> Result<u64, StoreError> {
        check_key(key)?;
        self.read(|engine| Ok(engine.slot(table, key)?.last + 1))
    }

    fn scan(
        &self,
        table: Table,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Stored)>, StoreError> {
        self.read(|engine| engine.page(table, prefix, after, limit))
    }

    fn look(&self) -> Look {
        self.shared.groups.look()
    }

    fn is_durable(&self, table: Table, key: &str) -> bool {
        self.shared.groups.is_durable(table, key)
    }

    fn commit(&self, batch: Batch) -> CommitFuture {
        let (reply, answer) = oneshot::channel();
        if let Some(jobs) = &self.jobs {
            // Without a receiver the job is dropped, and `answer` says so.
            let _ = jobs.send(Job::Commit(Commit { batch, reply }));
        }
        Box::pin(async move { answer.await.unwrap_or_else(|_| unsettled(StoreError::Closed)) })
    }

    fn health(&self) -> Result<(), StoreError> {
        match &*self.shared.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Open(engine) => engine.in_place(&self.shared.settings.path),
            State::Failed { error, .. } => Err(error.clone()),
        }
    }

    fn room(&self) -> Option<Room> {
        self.shared.room().ok()
    }

    fn watch(&self, table: Table, prefix: &str) -> Watch {
        self.shared.watchers.watch(table, prefix)
    }

    fn check_state(&self, key: StateKey, store_key: u32, adopt: bool) -> StateFuture {
        let (reply, answer) = oneshot::channel();
        if let Some(jobs) = &self.jobs {
            // Without a receiver the job is dropped, and `answer` says so.
            let _ = jobs.send(Job::Check(Box::new(Check {
                tally: Tally::new(key, store_key),
                adopt,
                reply,
            })));
        }
        Box::pin(async move { answer.await.unwrap_or(Err(StoreError::Closed)) })
    }

    fn copy(&self, cut: &mut dyn FnMut(), take: Take<'_>) -> Result<(), StoreError> {
        copy::copy_sled(self, &self.shared.notes, cut, take)
    }
}

/// What is said of a batch that was tried.
fn unsettled(error: StoreError) -> Result<(), StoreError> {
    Err(StoreError::Unsettled(Box::new(error)))
}

impl SledStore {
    /// Holds the committing thread between two groups until the result is dropped.
    pub(super) fn pause(&self) -> Result<Held, StoreError> {
        let (pause, held) = Pause::new();
        if let Some(jobs) = &self.jobs {
            // Without a receiver the job is dropped, and so is the pause.
            let _ = jobs.send(Job::Pause(pause));
        }
        held.reached()
    }
}

impl Shared {
    /// The committing thread: ends when the store is dropped and nothing waits any more.
    fn commit_all(&self, waiting: &mpsc::Receiver<Job>) {
        let mut group = Vec::new();
        loop {
            let first = match self.until_retry() {
                Some(pause) => waiting.recv_timeout(pause),
                None => waiting.recv().map_err(mpsc::RecvTimeoutError::from),
            };
            if matches!(first, Err(mpsc::RecvTimeoutError::Disconnected)) {
                return;
            }
            self.mend();
            let rest = std::iter::from_fn(|| waiting.try_recv().ok());
            let rest = first.into_iter().chain(rest).take(self.settings.group_limit.max(1));
            let (mut pauses, mut checks) = (Vec::new(), Vec::new());
            group.extend(rest.filter_map(|job| match job {
                Job::Commit(commit) => Some(commit),
                Job::Check(check) => {
                    checks.push(check);
                    None
                }
                Job::Pause(pause) => {
                    pauses.push(pause);
                    None
                }
                Job::Mend => None,
            }));
            if !group.is_empty() {
                self.commit_group(group.drain(..));
            }
            checks.into_iter().for_each(|check| self.check_state(*check));
            pauses.into_iter().for_each(Pause::hold);
        }
    }

    /// Applies each batch, makes them durable together and answers each.
    fn commit_group(&self, group: impl Iterator<Item = Commit>) {
        let mut applied = Vec::new();
        let path = &self.settings.path;
        let mut ready = self.with_engine(|engine| engine.in_place(path)).0;
        let room = self.check_room();
        let begun = ready.is_ok();
        if begun {
            self.groups.begin();
        }
        for Commit { batch, reply } in group {
            let roomy = match &room {
                Err(StoreError::Scarce(room)) if batch.is_urgent() && !room.is_spent() => Ok(()),
                room => room.clone(),
            };
            let plan = |engine: &Engine| batch.plan(|table, key| engine.slot(table, key));
            let planned = ready.clone().and(roomy).and_then(|()| self.with_engine(plan).0);
            // An error of `send` only says that nobody waits for the answer.
            let planned = match planned {
                Ok(planned) => planned,
                Err(error) => {
                    let _ = reply.send(Err(error));
                    continue;
                }
            };
            self.groups.touch(&planned);
            let mut tally = self.tally();
            let apply = |engine: &Engine| engine.apply_counted(planned, tally.as_mut());
            match self.with_engine(apply).0 {
                Ok(changes) => applied.push((reply, changes)),
                Err(StoreError::Unchecked) => _ = reply.send(Err(StoreError::Unchecked)),
                Err(error) => {
                    let _ = reply.send(unsettled(error.clone()));
                    ready = Err(error);
                }
            }
        }
        let durable = match applied.is_empty() {
            true => ready,
            false => ready.and_then(|()| self.with_engine(Engine::make_durable).0),
        };
        if begun {
            self.groups.end(&durable);
        }
        for (reply, changes) in applied {
            if durable.is_ok() {
                for change in changes {
                    self.notes.tell(&change);
                    self.watchers.tell(change);
                }
            }
            let _ = reply.send(durable.clone().or_else(unsettled));
        }
    }

    /// Adds the store up; from then on commits go on with it.
    fn check_state(&self, check: Check) {
        let Check { mut tally, adopt, reply } = check;
        let found = self.with_engine(|engine| engine.check_state(&mut tally, adopt)).0;
        let goes_on = found.as_ref().is_ok_and(|found| adopt || found.goes_on());
        *self.tally() = goes_on.then_some(tally);
        // Whether somebody still waits for it makes no difference.
        let _ = reply.send(found);
    }

    fn tally(&self) -> MutexGuard<'_, Option<Tally>> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds up again what was opened again: of what failed it is open whether it was done.
    fn resume_tally(&self, engine: &Engine) -> Result<(), StoreError> {
        let mut tally = self.tally();
        let Some(known) = tally.as_mut() else { return Ok(()) };
        let before = known.differing();
        match engine.check_state(known, false)? {
            StateCheck::Fits => Ok(()),
            StateCheck::Differs(parts) if parts == before => Ok(()),
            _ => Err(StoreError::Corrupt { what: "its records do not add up to what was written" }),
        }
    }

    fn room(&self) -> Result<Room, StoreError> {
        let found = rustix::fs::statvfs(&self.settings.path)
            .map_err(|error| of_io("asking for the room", &error.into()))?;
        let free_bytes = found.f_bavail.saturating_mul(found.f_frsize);
        Ok(Room { free_bytes, reserve_bytes: self.settings.reserve_bytes })
    }

    fn check_room(&self) -> Result<(), StoreError> {
        let room = self.room()?;
        if room.is_scarce() { Err(StoreError::Scarce(room)) } else { Ok(()) }
    }

    /// Runs `work`; a failure of the disk ends the use of sled as it is open now. Says whether this was
    /// one.
    fn with_engine<T>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T, StoreError>,
    ) -> (Result<T, StoreError>, bool) {
        let result = match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Open(engine) => work(engine),
            State::Failed { error, .. } => return (Err(error.clone()), false),
        };
        let failure = result.as_ref().err().filter(|error| error.is_of_disk());
        if let Some(error) = failure {
            self.fail(error);
        }
        let failed = failure.is_some();
        (result, failed)
    }

    fn fail(&self, error: &StoreError) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        // A sync that failed weighs more than what failed beside it.
        if matches!(&*state, State::Failed { error, .. } if *error == StoreError::NotSynced) {
            return;
        }
        self.notes.fail(error);
        let retry = (*error != StoreError::NotSynced).then(|| Instant::now() + RETRY);
        tracing::error!(%error, retried = retry.is_some(), "the store failed");
        let failed = State::Failed { error: error.clone(), retry, spent: None };
        let spent = match std::mem::replace(&mut *state, failed) {
            State::Open(engine) => Some(engine),
            State::Failed { spent, .. } => spent,
        };
        if let State::Failed { spent: place, .. } = &mut *state {
            *place = spent;
        }
    }

    /// How long until a failed store is to be opened again; `None` where it is not to be.
    fn until_retry(&self) -> Option<Duration> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Failed { retry: Some(at), .. } => {
                Some(at.saturating_duration_since(Instant::now()))
            }
            _ => None,
        }
    }

    /// Closes what failed, and opens it anew when it is time. Only the committing thread comes here, and
    /// nobody has to wait for the state meanwhile.
    fn mend(&self) {
        let spent = match &mut *self.state.write().unwrap_or_else(PoisonError::into_inner) {
            State::Open(_) => return,
            State::Failed { spent, .. } => spent.take(),
        };
        drop(spent);
        if self.until_retry().is_none_or(|pause| !pause.is_zero()) {
            return;
        }
        let enough = match self.check_room() {
            Err(StoreError::Scarce(room)) if !room.is_spent() => Ok(()),
            found => found,
        };
        let opened = enough.and_then(|()| Engine::open(&self.settings));
        let resumed = opened.and_then(|engine| self.resume_tally(&engine).map(|()| engine));
        let next = match resumed {
            Ok(engine) => {
                tracing::info!("the store works again");
                self.groups.reopened();
                State::Open(engine)
            }
            Err(error) => State::Failed { error, retry: Some(Instant::now() + RETRY), spent: None },
        };
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = next;
    }
}

#[cfg(test)]
#[path = "sled_store_tests.rs"]
mod tests;
