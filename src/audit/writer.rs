//! The one thread that writes: it takes every line that waits, chains them, writes and syncs once, and
//! then answers all who wait.
//!
//! When a write fails, the file is cut back to its last good length, the chain to its last good line,
//! and every new intent is refused. What has happened already and still owes its line (outcomes,
//! events) is kept and written first as soon as writing works again; each new intent is a new try.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::entry::{EventNote, Intent, Outcome, Subject};
use super::fill::Texts;
use super::gather::Shared;
use super::line::{Hash, Head, Kind, Line, plain};
use super::reserve::Reserve;
use super::segment::{Claim, Segment};
use super::trail::Entry;
use super::{AuditError, Event};
use crate::custody::{Checkpoint, Mark};
use crate::turns::Turns;

type Reply<T> = oneshot::Sender<Result<T, AuditError>>;

/// A line that is to be written, and who waits for it.
pub(super) enum Job {
    /// `owed`: it goes ahead whether the line can be written or not, and so the line is kept until it can.
    Begin {
        intent: Intent,
        owed: bool,
        reply: Reply<Entry>,
    },
    Close {
        of: u64,
        subject: Subject,
        outcome: Outcome,
        reply: Option<Reply<()>>,
    },
    Refuse {
        intent: Box<Intent>,
        outcome: Outcome,
        reply: Reply<()>,
    },
    Event {
        note: EventNote,
        reply: Option<Reply<()>>,
    },
    Checkpoint {
        signed: Signed,
        reply: Reply<()>,
    },
    /// Answers whether no deed is open and nothing more is taken but a last checkpoint.
    Seal {
        reply: Reply<bool>,
    },
    Stop,
}

/// A checkpoint whose signature is there.
pub(super) struct Signed {
    pub checkpoint: Checkpoint,
    /// How many lines other than checkpoints it covers.
    pub others: u64,
}

impl Job {
    /// Answers that it was not written. What `send` returns only says that nobody waits.
    pub(super) fn refuse(self, error: &AuditError) {
        match self {
            Job::Begin { reply, .. } => drop(reply.send(Err(error.clone()))),
            Job::Refuse { reply, .. } | Job::Checkpoint { reply, .. } => {
                drop(reply.send(Err(error.clone())));
            }
            Job::Close { reply, .. } | Job::Event { reply, .. } => {
                drop(reply.map(|reply| reply.send(Err(error.clone()))));
            }
            Job::Seal { reply } => drop(reply.send(Err(error.clone()))),
            Job::Stop => {}
        }
    }

    /// Whose line it is, where it is a principal's.
    pub(super) fn principal(&self) -> Option<&str> {
        match self {
            Job::Begin { intent, .. } => Some(&intent.subject.caller),
            Job::Refuse { intent, .. } => Some(&intent.subject.caller),
            Job::Close { subject, .. } => Some(&subject.caller),
            Job::Event { .. } | Job::Checkpoint { .. } | Job::Seal { .. } | Job::Stop => None,
        }
    }

    fn fill<'a>(&'a self, line: Line<'a>, texts: &'a mut Texts) -> Option<Line<'a>> {
        match self {
            Job::Begin { intent, .. } => Some(intent.fill(line, texts)),
            Job::Close { of, subject, outcome, .. } => {
                Some(outcome.fill(Some(*of), subject, line, texts))
            }
            Job::Refuse { intent, outcome, .. } => {
                Some(outcome.fill(None, &intent.subject, line, texts))
            }
            Job::Event { note, .. } => Some(note.fill(line, texts)),
            Job::Checkpoint { signed, .. } => Some(signed.fill(line, texts)),
            Job::Seal { .. } | Job::Stop => None,
        }
    }
}

impl Signed {
    fn fill<'a>(&'a self, line: Line<'a>, texts: &'a mut Texts) -> Line<'a> {
        let Checkpoint { mark, at, generation, .. } = &self.checkpoint;
        let (head, signature, previous) = texts.checkpoint(&self.checkpoint);
        Line {
            kind: Kind::Checkpoint,
            covers: Some(mark.covers),
            head: Some(head),
            at: Some(plain(at)),
            number: Some(mark.number),
            previous: Some(previous),
            signer: Some(*generation),
            signature: Some(signature),
            ..line
        }
    }
}

/// The end of the chain: number and hash of the newest line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chain {
    pub head: Head,
    /// Lines other than checkpoints.
    pub others: u64,
}

impl Chain {
    /// Appends `line` to `buffer` as the next of the chain; its number and predecessor are set here.
    pub fn append(&mut self, buffer: &mut Vec<u8>, line: Line<'_>) -> u64 {
        let start = buffer.len();
        let prev = self.head.hash.hex();
        let seq = self.head.seq + 1;
        let line = Line { seq, prev: prev.as_str(), ..line };
        line.encode(buffer);
        let text = buffer.get(start..buffer.len().saturating_sub(1)).unwrap_or_default();
        self.head = Head { seq, hash: Hash::of_line(text) };
        self.others += u64::from(line.kind != Kind::Checkpoint);
        seq
    }
}

/// Which room a group may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// All but the reserve.
    Any,
    Reserve,
}

/// The state of the writing thread.
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub directory: PathBuf,
    pub segment_bytes: u64,
    pub reserve: Reserve,
    pub linger: Duration,
    pub checkpoint_lines: u64,
    pub trail: String,
    pub chain: Chain,
    pub segment: Option<Segment>,
    /// Intents whose outcome has not been written.
    pub open: BTreeSet<u64>,
    /// What the newest outcome said of the store's changes.
    pub changes: Option<u64>,
    /// Lines that must be written although a write has failed.
    pub owed: Vec<Job>,
    pub buffer: Vec<u8>,
    /// Held for as long as this trail is written.
    pub claim: Claim,
}

/// How often the files are looked for where nothing is written.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// Everybody waits for this thread, which mostly waits for the disk.
const TURN: Duration = Duration::from_micros(100);

/// After a failure, how long to wait before what is owed is tried again without a new intent.
const RETRY: Duration = Duration::from_secs(1);

impl Writer {
    /// The thread: ends after a stop was handed in and everything before it was dealt with.
    pub fn run(mut self) {
        Turns::of(TURN);
        let mut jobs = Vec::new();
        if !self.owed.is_empty() {
            self.write_group(&mut jobs);
        }
        loop {
            let pause = if self.owed.is_empty() { self.linger } else { RETRY };
            let open = self.open.len() + self.owed.len();
            self.shared.take(&mut jobs, open, pause);
            if jobs.is_empty() && self.owed.is_empty() {
                self.look();
                continue;
            }
            let stop = jobs.iter().any(|job| matches!(job, Job::Stop));
            self.write_group(&mut jobs);
            if stop {
                return self.finish(&mut jobs);
            }
        }
    }

    /// Takes no more; of what still came, only what has happened already is written.
    fn finish(&mut self, jobs: &mut Vec<Job>) {
        for job in self.shared.close() {
            match job {
                Job::Close { .. } | Job::Event { .. } => jobs.push(job),
                job => job.refuse(&AuditError::Closed),
            }
        }
        if !jobs.is_empty() || !self.owed.is_empty() {
            self.write_group(jobs);
        }
    }

    /// Writes what is owed and `jobs`, which is empty afterwards.
    fn write_group(&mut self, jobs: &mut Vec<Job>) {
        let before = self.chain;
        let mut group = std::mem::take(&mut self.owed);
        group.append(jobs);
        if self.shared.is_held() {
            return self.keep_or_refuse(group.drain(..), &AuditError::Held);
        }
        match self.append_group(&group, Room::Any) {
            Ok(numbers) => {
                self.has_recovered();
                self.settle(group.drain(..).zip(numbers));
            }
            Err(AuditError::Full) if self.reserve.bytes > 0 => {
                self.chain = before;
                self.write_in_reserve(&mut group);
            }
            Err(error) => {
                self.chain = before;
                self.give_up(group.drain(..), &error);
            }
        }
        // The larger of the two allocations goes round once more.
        if self.owed.is_empty() && group.capacity() > jobs.capacity() {
            *jobs = group;
        }
    }

    /// Writes of a group what may use the room in reserve, and refuses the rest.
    fn write_in_reserve(&mut self, group: &mut Vec<Job>) {
        let (urgent, rest): (Vec<_>, Vec<_>) =
            group.drain(..).partition(|job| self.reserve.is_for(job));
        self.give_up(rest.into_iter(), &AuditError::Full);
        let before = self.chain;
        match self.append_group(&urgent, Room::Reserve) {
            Ok(numbers) => self.settle(urgent.into_iter().zip(numbers)),
            Err(error) => {
                self.chain = before;
                self.give_up(urgent.into_iter(), &error);
            }
        }
    }

    /// Makes all lines and has them on disk when it returns; the result is their numbers.
    fn append_group(&mut self, group: &[Job], room: Room) -> Result<Vec<u64>, AuditError> {
        if group.is_empty() {
            return Ok(Vec::new());
        }
        self.in_place()?;
        let time = format!("{:.6}", jiff::Timestamp::now());
        self.buffer.clear();
        self.next_segment(room)?;
        let segment = self.segment.as_mut().ok_or(AuditError::Closed)?;
        let line = Line { time: &time, trail: &self.trail, ..Line::default() };
        if segment.len() == 0 {
            let open_from = self.open.first().copied();
            let changes = self.changes;
            let note = EventNote { open_from, changes, ..EventNote::new(Event::Segment) };
            self.chain.append(&mut self.buffer, note.fill(line, &mut Texts::new()));
        }
        let mut numbers = Vec::with_capacity(group.len());
        let mut ends = Vec::with_capacity(group.len());
        for job in group {
            let mut texts = Texts::new();
            let number = job.fill(line, &mut texts);
            numbers.push(number.map_or(0, |line| self.chain.append(&mut self.buffer, line)));
            ends.push(self.buffer.len());
        }
        if room == Room::Any {
            segment.hold(self.buffer.len() as u64, self.reserve.bytes)?;
        }
        segment.append(&self.buffer)?;
        let mut begin = 0;
        for (job, end) in group.iter().zip(ends) {
            if let Some(principal) = job.principal() {
                self.shared.budgets.spend(principal, end - begin);
            }
            if room == Room::Reserve {
                self.reserve.use_up(job, end - begin);
            }
            begin = end;
        }
        Ok(numbers)
    }

    /// Begins another file where there is none or it is full. Without room for one, what uses the reserve goes
    /// on in the full one, which has it.
    fn next_segment(&mut self, room: Room) -> Result<(), AuditError> {
        let reserve = self.reserve.bytes;
        if let Some(segment) = &mut self.segment {
            if segment.len() < self.segment_bytes {
                return Ok(());
            }
            match (segment.leaves_room_for_another(reserve), room) {
                (true, _) => {}
                (false, Room::Reserve) => return Ok(()),
                (false, Room::Any) => return Err(AuditError::Full),
            }
            // What a crash has left behind its last line must not stay behind in an older file.
            segment.finish()?;
        }
        self.segment = None;
        self.segment = Some(Segment::create(&self.directory, self.chain.head.seq + 1)?);
        Ok(())
    }

    /// Lines must not go where nobody will find them.
    fn in_place(&self) -> Result<(), AuditError> {
        match &self.segment {
            Some(segment) => segment.in_place(),
            None => self.claim.in_place(),
        }
    }

    /// Sees to it that a trail that has gone is noticed without a line, and so when it is back.
    fn look(&mut self) {
        let failure = self.shared.lock_durable().failure.clone();
        match (self.in_place(), failure) {
            (Err(error), None) => self.give_up(std::iter::empty(), &error),
            (Ok(()), Some(AuditError::Misplaced { .. } | AuditError::Resized { .. })) => {
                self.has_recovered();
            }
            (Ok(()), Some(_)) if self.try_out().is_ok() => self.has_recovered(),
            _ => {}
        }
    }

    /// Whether lines could be written again, where nobody asks for one: who goes by the status would send
    /// nobody for as long as it says no.
    fn try_out(&mut self) -> Result<(), AuditError> {
        let reserve = self.reserve.bytes;
        match &mut self.segment {
            Some(segment) => segment.try_out(reserve),
            None => {
                let first = self.chain.head.seq + 1;
                self.segment.insert(Segment::create(&self.directory, first)?).try_out(reserve)
            }
        }
    }

    /// Whatever is asked for can be written.
    fn has_recovered(&mut self) {
        let recovered = self.shared.lock_durable().failure.take().is_some();
        if recovered {
            self.reserve.refill();
            tracing::info!(line = self.chain.head.seq, "the trail can be written again");
        }
    }

    /// The lines are durable: says so to all who wait.
    fn settle(&mut self, group: impl Iterator<Item = (Job, u64)>) {
        {
            let mut durable = self.shared.lock_durable();
            durable.head = self.chain.head;
            durable.others = self.chain.others;
        }
        let mut seals = Vec::new();
        for (job, seq) in group {
            match job {
                Job::Begin { intent, reply, .. } => {
                    self.open.insert(seq);
                    let entry = Entry::new(seq, intent.subject, Arc::clone(&self.shared));
                    // An entry that nobody waits for any more closes itself.
                    drop(reply.send(Ok(entry)));
                }
                Job::Close { of, outcome, reply, .. } => {
                    self.open.remove(&of);
                    self.changes = outcome.details.changes.or(self.changes);
                    drop(reply.map(|reply| reply.send(Ok(()))));
                }
                Job::Refuse { reply, .. } => drop(reply.send(Ok(()))),
                Job::Event { reply, .. } => drop(reply.map(|reply| reply.send(Ok(())))),
                Job::Checkpoint { signed, reply } => {
                    let mut durable = self.shared.lock_durable();
                    durable.covered_others = durable.covered_others.max(signed.others);
                    let Mark { covers, head, .. } = signed.checkpoint.mark;
                    durable.checkpoint = Some(Head { seq: covers, hash: Hash(head) });
                    drop(durable);
                    drop(reply.send(Ok(())));
                }
                Job::Seal { reply } => seals.push(reply),
                Job::Stop => {}
            }
        }
        for reply in seals {
            let nothing_is_open = self.open.is_empty() && self.owed.is_empty();
            drop(reply.send(Ok(nothing_is_open && self.shared.seal())));
        }
        if self.shared.lock_durable().uncovered() >= self.checkpoint_lines {
            self.shared.checkpoint_due.notify_one();
        }
    }

    /// Nothing was written: refuses what has not happened yet, and keeps the rest.
    fn give_up(&mut self, group: impl Iterator<Item = Job>, error: &AuditError) {
        let first = self.shared.lock_durable().failure.replace(error.clone()).is_none();
        if first {
            tracing::error!(
                %error,
                "the trail cannot be written; every deed is refused but a lock, and on a full disk what closes \
                 something"
            );
        }
        self.keep_or_refuse(group, error);
    }

    /// Refuses what has not happened yet, and keeps the rest.
    fn keep_or_refuse(&mut self, group: impl Iterator<Item = Job>, error: &AuditError) {
        for job in group {
            match job {
                Job::Close { of, subject, outcome, reply } => {
                    drop(reply.map(|reply| reply.send(Err(error.clone()))));
                    self.owed.push(Job::Close { of, subject, outcome, reply: None });
                }
                Job::Event { note, reply } => {
                    drop(reply.map(|reply| reply.send(Err(error.clone()))));
                    if self.owed.len() < self.shared.backlog {
                        self.owed.push(Job::Event { note, reply: None });
                    }
                }
                job @ Job::Begin { owed: true, .. } if self.owed.len() < self.shared.backlog => {
                    self.owed.push(job);
                }
                job => job.refuse(error),
            }
        }
    }
}
