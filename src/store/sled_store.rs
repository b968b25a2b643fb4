//! The store on disk: sled 0.34, made durable.
//!
//! sled's own flush asks the kernel to start writing and never issues a sync. So one thread does all
//! commits: it takes every batch that waits, applies each as one atomic sled batch, flushes once,
//! syncs sled's log file once, and only then answers. As that thread is the only writer, what a batch
//! expects is checked without a transaction.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::batch::check_key;
use super::engine::{Engine, SYNC_FAILED, lock, make_directory, of_io};
use super::watch::Watchers;
use super::{Batch, CommitFuture, Store, StoreError, Stored, Table, Watch};

/// Where the store lies and what it may take.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Directory of the store; made with mode 0700 if it is not there.
    pub path: PathBuf,
    /// Memory for sled's page cache, in bytes.
    pub cache_bytes: u64,
    /// Commits are refused as "full" while the disk has less room than this, in bytes: sled does not
    /// mend itself well once a write of its own has failed.
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
    watchers: Watchers,
    /// Held for as long as the store is: it keeps a second process out.
    _lock: File,
}

enum State {
    Open(Engine),
    /// Something failed; another try is made from `retry` on, or never.
    Failed {
        error: StoreError,
        retry: Option<Instant>,
    },
}

struct Job {
    batch: Batch,
    reply: oneshot::Sender<Result<(), StoreError>>,
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
            watchers: Watchers::new(),
            _lock: lock,
        });
        let (jobs, waiting) = mpsc::channel();
        let of_thread = Arc::clone(&shared);
        let committer = std::thread::Builder::new()
            .name("store-commit".into())
            .spawn(move || of_thread.commit_all(&waiting))
            .map_err(|error| of_io("starting a thread", &error))?;
        Ok(Self { shared, jobs: Some(jobs), committer: Some(committer) })
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(committer) = self.committer.take() {
            // A panic of that thread has answered every waiter with `Closed` already.
            let _ = committer.join();
        }
    }
}

impl Store for SledStore {
    fn get(&self, table: Table, key: &str) -> Result<Option<Stored>, StoreError> {
        check_key(key)?;
        self.shared.with_engine(|engine| engine.value(table, key))
    }

    fn next_revision(&self, table: Table, key: &str) -> Result<u64, StoreError> {
        check_key(key)?;
        self.shared.with_engine(|engine| Ok(engine.slot(table, key)?.last + 1))
    }

    fn scan(
        &self,
        table: Table,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Stored)>, StoreError> {
        self.shared.with_engine(|engine| engine.page(table, prefix, after, limit))
    }

    fn commit(&self, batch: Batch) -> CommitFuture {
        let (reply, answer) = oneshot::channel();
        if let Some(jobs) = &self.jobs {
            // Without a receiver the job is dropped, and `answer` says so.
            let _ = jobs.send(Job { batch, reply });
        }
        Box::pin(async move { answer.await.unwrap_or(Err(StoreError::Closed)) })
    }

    fn watch(&self, table: Table, prefix: &str) -> Watch {
        self.shared.watchers.watch(table, prefix)
    }
}

impl Shared {
    /// The committing thread: ends when the store is dropped and nothing waits any more.
    fn commit_all(&self, waiting: &mpsc::Receiver<Job>) {
        let mut group = Vec::new();
        while let Ok(first) = waiting.recv() {
            group.push(first);
            while group.len() < self.settings.group_limit.max(1) {
                match waiting.try_recv() {
                    Ok(job) => group.push(job),
                    Err(_) => break,
                }
            }
            self.commit_group(group.drain(..));
        }
    }

    /// Applies each batch, makes them durable together and answers each.
    fn commit_group(&self, group: impl Iterator<Item = Job>) {
        let mut applied = Vec::new();
        let mut ready = self.check_room();
        for Job { batch, reply } in group {
            let result = match &ready {
                Ok(()) => self.with_engine(|engine| {
                    let planned = batch.plan(|table, key| engine.slot(table, key))?;
                    engine.apply(planned)
                }),
                Err(error) => Err(error.clone()),
            };
            match result {
                Ok(changes) => applied.push((reply, changes)),
                Err(error) => {
                    if error.is_of_disk() {
                        ready = Err(error.clone());
                    }
                    // An error only says that nobody waits for the answer.
                    let _ = reply.send(Err(error));
                }
            }
        }
        if applied.is_empty() {
            return;
        }
        let durable = ready.and_then(|()| self.with_engine(Engine::make_durable));
        for (reply, changes) in applied {
            if durable.is_ok() {
                changes.into_iter().for_each(|change| self.watchers.tell(change));
            }
            let _ = reply.send(durable.clone());
        }
    }

    fn check_room(&self) -> Result<(), StoreError> {
        let room = rustix::fs::statvfs(&self.settings.path)
            .map_err(|error| of_io("asking for the room", &error.into()))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        if free < self.settings.reserve_bytes { Err(StoreError::Full) } else { Ok(()) }
    }

    /// Runs `work`; a failure of the disk closes sled, and a later call opens it anew.
    fn with_engine<T>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.reopen_if_due()?;
        let result = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            match &*state {
                State::Open(engine) => work(engine),
                State::Failed { error, .. } => return Err(error.clone()),
            }
        };
        if let Err(error) = &result
            && error.is_of_disk()
        {
            self.fail(error);
        }
        result
    }

    fn fail(&self, error: &StoreError) {
        let retry = (*error != SYNC_FAILED).then(|| Instant::now() + RETRY);
        tracing::error!(%error, retried = retry.is_some(), "the store failed");
        let failed = State::Failed { error: error.clone(), retry };
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = failed;
    }

    fn reopen_if_due(&self) -> Result<(), StoreError> {
        let due = |state: &State| matches!(state, State::Failed { retry: Some(at), .. } if *at <= Instant::now());
        if !due(&self.state.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if !due(&state) {
            return Ok(());
        }
        match self.check_room().and_then(|()| Engine::open(&self.settings)) {
            Ok(engine) => {
                tracing::info!("the store works again");
                *state = State::Open(engine);
                Ok(())
            }
            Err(error) => {
                let retry = Some(Instant::now() + RETRY);
                *state = State::Failed { error: error.clone(), retry };
                Err(error)
            }
        }
    }
}

impl StoreError {
    /// Whether it says something about the disk, not about the batch.
    fn is_of_disk(&self) -> bool {
        matches!(
            self,
            StoreError::Full
                | StoreError::ReadOnly
                | StoreError::Corrupt { .. }
                | StoreError::Io { .. }
        )
    }
}
