//! The trail as those who act see it: begin, close, refuse, tell, stop.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::end::End;
use super::entry::{Code, EventNote, Intent, Outcome, Subject, Verdict};
use super::gather::Shared;
use super::line::{Hash, Head};
use super::recover::recover;
use super::tend::{HeadKeeper, Kept, Signer};
use super::writer::Job;
use super::{AuditError, Event, Settings};
use crate::custody::Mark;
use crate::identity::Caller;

/// The trail of one appliance, open for writing.
pub struct Trail {
    pub(super) id: String,
    pub(super) settings: Settings,
    pub(super) shared: Arc<Shared>,
    pub(super) signer: Arc<dyn Signer>,
    pub(super) keeper: Arc<dyn HeadKeeper>,
    /// The newest checkpoint; held while one is made.
    pub(super) newest: tokio::sync::Mutex<Mark>,
    /// How it ended when it was opened.
    pub(super) end: End,
    /// It was begun with; and custody's lost state has its line.
    pub(super) begun: AtomicBool,
    pub(super) told_of_state: AtomicBool,
    /// What the newest event says that an operator has replaced.
    pub(super) told_of_replaced: Mutex<Option<(u64, Hash)>>,
    known_changes: Option<u64>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// How the trail is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Which trail it is: 16 hex digits.
    pub trail: String,
    pub head: Head,
    /// Up to where a checkpoint of this run covers it.
    pub checkpoint: Option<Head>,
    /// Lines that no checkpoint covers yet.
    pub uncovered: u64,
    /// Why nothing can be written just now.
    pub failure: Option<AuditError>,
}

impl Trail {
    /// Opens the trail in its directory, makes it if there is none, and mends what a crash has left:
    /// a half line at the end that no answer rested on, and intents without an outcome.
    ///
    /// `known_head` is the newest head that was kept elsewhere. A trail that does not hold it was cut
    /// or rolled back and is refused, unless the settings say that this is to be recorded.
    pub fn open(
        settings: &Settings,
        known_head: Option<Head>,
        signer: Arc<dyn Signer>,
        keeper: Arc<dyn HeadKeeper>,
    ) -> Result<Self, AuditError> {
        Self::opened(settings, known_head, (signer, keeper), false)
    }

    /// The same; nothing is written before [`Trail::begin_history`] has found that it fits.
    pub fn open_held(
        settings: &Settings,
        known_head: Option<Head>,
        signer: Arc<dyn Signer>,
        keeper: Arc<dyn HeadKeeper>,
    ) -> Result<Self, AuditError> {
        Self::opened(settings, known_head, (signer, keeper), true)
    }

    fn opened(
        settings: &Settings,
        known_head: Option<Head>,
        (signer, keeper): (Arc<dyn Signer>, Arc<dyn HeadKeeper>),
        held: bool,
    ) -> Result<Self, AuditError> {
        let (writer, end) = recover(settings, known_head)?;
        writer.shared.hold(held);
        let (id, shared) = (writer.trail.clone(), Arc::clone(&writer.shared));
        let known_changes = writer.changes;
        let thread = std::thread::Builder::new()
            .name("trail-writer".into())
            .spawn(move || writer.run())
            .map_err(|error| AuditError::Io { during: "starting a thread", kind: error.kind() })?;
        let trail = Self {
            id,
            settings: settings.clone(),
            shared,
            signer,
            keeper,
            newest: tokio::sync::Mutex::new(end.newest),
            end,
            begun: AtomicBool::new(false),
            told_of_state: AtomicBool::new(false),
            told_of_replaced: Mutex::default(),
            known_changes,
            writer: Mutex::new(Some(thread)),
        };
        Ok(trail)
    }

    /// Hands in an intent. The deed may run meanwhile; it must not show before the entry is there.
    pub fn begin(&self, intent: Intent) -> PendingEntry {
        PendingEntry(self.hand_in(|reply| Job::Begin { intent, owed: false, reply }))
    }

    /// The same for a deed that nothing holds up: its line is owed until it can be written.
    pub fn begin_owed(&self, intent: Intent) -> OwedEntry {
        let (reply, answer) = oneshot::channel();
        self.shared.push(Job::Begin { intent, owed: true, reply }, true, false);
        OwedEntry { answer, shared: Arc::clone(&self.shared) }
    }

    /// Whether this principal may cause more lines today; else after how many seconds it may.
    pub fn check_budget(&self, caller: &Caller) -> Result<(), u32> {
        match caller {
            Caller::Unix(_) => self.shared.budgets.check(&caller.name()),
            Caller::System(_) => Ok(()),
        }
    }

    /// Hands in what became of a deed.
    pub fn close(&self, entry: Entry, outcome: Outcome) -> Closing {
        let (reply, answer) = oneshot::channel();
        entry.end(outcome, Some(reply));
        let answer = Answer { answer, until: self.deadline() };
        Closing { answer, shared: Arc::clone(&self.shared) }
    }

    /// Somebody asked and may not, or asked for what cannot be: one line, durable when this returns.
    pub async fn refuse(&self, intent: Intent, code: Code) -> Result<(), AuditError> {
        let (intent, outcome) = (Box::new(intent), Outcome::refused(code));
        self.hand_in(|reply| Job::Refuse { intent, outcome, reply }).durable().await
    }

    /// Something happened to the appliance. The line is durable when this returns `Ok`; after an
    /// error it is written when writing works again.
    pub async fn event(&self, note: EventNote) -> Result<(), AuditError> {
        let (reply, answer) = oneshot::channel();
        self.shared.push(Job::Event { note, reply: Some(reply) }, true, false);
        Answer { answer, until: self.deadline() }.durable().await
    }

    /// How many changes the store is known to hold, as the newest outcome said when this was opened.
    pub fn known_changes(&self) -> Option<u64> {
        self.known_changes
    }

    /// The newest durable line.
    pub fn head(&self) -> Head {
        self.shared.durable().head
    }

    /// How many bytes are free on the trail's file system, where it says.
    pub fn free_bytes(&self) -> Option<u64> {
        let found = rustix::fs::statvfs(&self.settings.directory).ok()?;
        Some(found.f_bavail.saturating_mul(found.f_frsize))
    }

    pub fn status(&self) -> Status {
        let durable = self.shared.durable();
        Status {
            trail: self.id.clone(),
            head: durable.head,
            checkpoint: durable.checkpoint,
            uncovered: durable.uncovered(),
            failure: durable.failure,
        }
    }

    /// Writes the stop event and a last checkpoint over it, and takes no more lines. A checkpoint that
    /// cannot be signed does not hold it up for longer than the deadline.
    pub async fn stop(&self) -> Result<(), AuditError> {
        self.stop_within(Duration::from_millis(self.settings.deadline_ms)).await
    }

    /// The same, with another bound on how long signing may take.
    pub async fn stop_within(&self, patience: Duration) -> Result<(), AuditError> {
        let told = self.event(EventNote::new(Event::Stop)).await;
        // With nothing open, the last checkpoint says that nothing comes after it.
        let sealed = self.hand_in(|reply| Job::Seal { reply }).durable().await.unwrap_or(false);
        match tokio::time::timeout(patience, self.keep_head(sealed)).await {
            Ok(Ok(Kept::Signed(_))) => {}
            Ok(Ok(Kept::Noted)) => {
                tracing::info!("nothing can be signed now; custody remembers the last line");
            }
            Ok(Err(error)) => tracing::warn!(%error, "stopping without a last checkpoint"),
            Err(_) => tracing::warn!("stopping without a last checkpoint: signing takes too long"),
        }
        self.shared.push(Job::Stop, true, false);
        told
    }

    pub(super) fn hand_in<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, AuditError>>) -> Job,
    ) -> Answer<T> {
        let (reply, answer) = oneshot::channel();
        self.shared.push(job(reply), true, true);
        Answer { answer, until: self.deadline() }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.settings.deadline_ms)
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        self.shared.push(Job::Stop, true, false);
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A writer that panicked has answered everybody with `Closed` by dropping their senders.
        drop(writer.map(JoinHandle::join));
    }
}

/// An answer of the writer that must come in time.
pub(super) struct Answer<T> {
    answer: oneshot::Receiver<Result<T, AuditError>>,
    until: Instant,
}

impl<T> Answer<T> {
    pub async fn durable(self) -> Result<T, AuditError> {
        match tokio::time::timeout_at(self.until, self.answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(AuditError::Closed),
            Err(_) => Err(AuditError::Deadline),
        }
    }
}

/// An intent that has been handed in. Dropped without waiting, it is recorded as interrupted.
#[must_use = "nothing may be shown before the line is durable"]
pub struct PendingEntry(Answer<Entry>);

impl PendingEntry {
    /// Waits until the line is on disk, at most for the deadline of the settings. Without an entry the
    /// deed must not show.
    pub async fn durable(self) -> Result<Entry, AuditError> {
        self.0.durable().await
    }
}

/// An intent whose deed goes ahead of it.
#[must_use = "its deed needs an outcome"]
pub struct OwedEntry {
    answer: oneshot::Receiver<Result<Entry, AuditError>>,
    shared: Arc<Shared>,
}

impl OwedEntry {
    /// Writes the outcome behind the intent. Returns when both are on disk, or after `patience`: then they are
    /// written when writing works again, in this order.
    pub async fn close_within(self, outcome: Outcome, patience: Duration) {
        let Self { answer, shared } = self;
        let both = tokio::spawn(async move {
            // Without an entry the writer has ended, or owes more than it can keep.
            let Ok(Ok(entry)) = answer.await else { return };
            let (reply, written) = oneshot::channel();
            entry.end(outcome, Some(reply));
            shared.hurry();
            let _ = written.await;
        });
        if tokio::time::timeout(patience, both).await.is_err() {
            tracing::warn!("the entries of what was done are owed to the audit log");
        }
    }
}

/// The proof that a deed has its line. It goes back with the outcome; one that is dropped instead (a
/// panic, a task that was given up) is recorded as interrupted.
#[must_use = "a deed that has begun needs an outcome"]
pub struct Entry {
    seq: u64,
    subject: Option<Subject>,
    shared: Arc<Shared>,
}

impl Entry {
    pub(super) fn new(seq: u64, subject: Subject, shared: Arc<Shared>) -> Self {
        Self { seq, subject: Some(subject), shared }
    }

    /// The number of the intent's line.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    fn end(mut self, outcome: Outcome, reply: Option<oneshot::Sender<Result<(), AuditError>>>) {
        if let Some(subject) = self.subject.take() {
            let job = Job::Close { of: self.seq, subject, outcome, reply };
            self.shared.push(job, false, false);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(subject) = self.subject.take() {
            let verdict = Verdict::Interrupted(Code("abandoned"));
            let outcome = Outcome { verdict, details: Default::default() };
            let job = Job::Close { of: self.seq, subject, outcome, reply: None };
            self.shared.push(job, false, false);
        }
    }
}

/// An outcome that has been handed in. It is written soon, whether anybody waits or not.
pub struct Closing {
    answer: Answer<()>,
    shared: Arc<Shared>,
}

impl Closing {
    /// Waits until the outcome is on disk: for changes, whose outcome must not be lost. After an error
    /// it is written when writing works again.
    pub async fn durable(self) -> Result<(), AuditError> {
        self.shared.hurry();
        self.answer.durable().await
    }
}
