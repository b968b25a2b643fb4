//! Where lines wait for the thread that writes them: taken one by one from those who hand them in, given
//! to the thread in groups; and how far the trail is safely on disk.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::AuditError;
use super::budget::Budgets;
use super::line::Head;
use super::writer::{Job, LOOK};

/// What the thread and those who hand in lines share.
pub(super) struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    durable: Mutex<Durable>,
    /// Told when enough lines for a checkpoint have come.
    pub checkpoint_due: Notify,
    pub backlog: usize,
    /// Nothing is written yet.
    held: AtomicBool,
    pub budgets: Budgets,
    /// Deeds that can be worked on at the same time.
    processors: usize,
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    /// Somebody waits: do not linger.
    urgent: bool,
    /// A stop was handed in: nothing new is begun.
    stopping: bool,
    /// Nothing is taken any more but a last checkpoint.
    sealed: bool,
    /// The writer has ended.
    closed: bool,
}

/// For each deed that goes before: less than half of what a private operation of RSA-2048 takes. At
/// most for so many of them.
const PAUSE: Duration = Duration::from_micros(100);
const LONGEST: u32 = 10;

/// How far the trail is safely on disk.
#[derive(Debug, Clone)]
pub(super) struct Durable {
    pub head: Head,
    /// Lines other than checkpoints: all, and those that a checkpoint covers.
    pub others: u64,
    pub covered_others: u64,
    pub checkpoint: Option<Head>,
    pub failure: Option<AuditError>,
}

impl Durable {
    /// Lines that no checkpoint covers yet, not counting checkpoints themselves.
    pub fn uncovered(&self) -> u64 {
        self.others.saturating_sub(self.covered_others)
    }
}

impl Queue {
    /// How many deeds are neither done nor refused, where `open` of those written have no outcome yet.
    fn under_way(&self, open: usize) -> usize {
        let count = |is: fn(&Job) -> bool| self.jobs.iter().filter(|job| is(job)).count();
        let begun = count(|job| matches!(job, Job::Begin { .. }));
        let closed = count(|job| matches!(job, Job::Close { .. }));
        (open + begun).saturating_sub(closed)
    }
}

impl Shared {
    pub fn new(durable: Durable, backlog: usize, budgets: Budgets) -> Self {
        Self {
            queue: Mutex::default(),
            wake: Condvar::new(),
            durable: Mutex::new(durable),
            checkpoint_due: Notify::new(),
            backlog,
            held: AtomicBool::new(false),
            budgets,
            processors: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Whether lines wait until it is said that they may be written.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Release);
        self.hurry();
    }

    /// Takes nothing more but a checkpoint, unless something waits already: whether it is so.
    pub fn seal(&self) -> bool {
        let mut queue = self.lock();
        queue.sealed |= queue.jobs.is_empty();
        queue.sealed
    }

    /// Hands in a line. With `urgent`, the writer is woken; else it comes by soon. Work that has not
    /// happened yet is `refusable`: it is turned away when too much waits.
    pub fn push(&self, job: Job, urgent: bool, refusable: bool) {
        let mut queue = self.lock();
        let is_last = matches!(job, Job::Checkpoint { .. } | Job::Stop);
        let error = if queue.closed || (refusable && queue.stopping) || (queue.sealed && !is_last) {
            Some(AuditError::Closed)
        } else {
            (refusable && queue.jobs.len() >= self.backlog).then_some(AuditError::Busy)
        };
        if let Some(error) = error {
            drop(queue);
            return job.refuse(&error);
        }
        queue.stopping |= matches!(job, Job::Stop);
        queue.jobs.push(job);
        if urgent && !queue.urgent {
            queue.urgent = true;
            drop(queue);
            self.wake.notify_one();
        }
    }

    /// Somebody waits for a line that was handed in without haste.
    pub fn hurry(&self) {
        self.lock().urgent = true;
        self.wake.notify_one();
    }

    pub fn durable(&self) -> Durable {
        self.lock_durable().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn lock_durable(&self) -> MutexGuard<'_, Durable> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all that waits into `jobs`, which is empty. `open` deeds have no outcome yet; outcomes
    /// come without waking anybody.
    pub fn take(&self, jobs: &mut Vec<Job>, open: usize, linger: Duration) {
        let mut queue = self.lock();
        if !queue.urgent {
            queue = if open > 0 || !queue.jobs.is_empty() {
                let waited = self.wake.wait_timeout(queue, linger);
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                let waited = self.wake.wait_timeout(queue, LOOK);
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
        }
        let pause = self.company(queue.under_way(open));
        if queue.urgent && !pause.is_zero() {
            drop(queue);
            std::thread::sleep(pause);
            queue = self.lock();
        }
        queue.urgent = false;
        std::mem::swap(&mut queue.jobs, jobs);
    }

    /// How long to wait for more lines before what has come is synced: a part of the time that so many
    /// deeds wait for a processor anyway. Nothing where each has its own.
    fn company(&self, under_way: usize) -> Duration {
        let before_it = under_way.saturating_sub(1) / self.processors;
        PAUSE * u32::try_from(before_it).unwrap_or(LONGEST).min(LONGEST)
    }

    pub fn close(&self) -> Vec<Job> {
        let mut queue = self.lock();
        queue.closed = true;
        std::mem::take(&mut queue.jobs)
    }
}
