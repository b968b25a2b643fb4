//! Opening a trail: checks its newest file and what is known of it, and mends what a crash leaves.
//!
//! A crash can leave two things. Bytes at the end that no answer ever rested on: half a line, or, after
//! a power cut, pages of zeros; they are set aside in a `.torn` file and cut off. And intents without
//! an outcome: each gets one that says `interrupted`. Everything else that does not hold together is
//! not a crash, and is refused by name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::budget::Budgets;
use super::end::End;
use super::entry::{Code, EventNote, Outcome, Subject, Verdict};
use super::gather::{Durable, Shared};
use super::line::{Hash, Head, Kind, Line};
use super::read::{hash_of, last_line, next_line};
use super::reserve::Reserve;
use super::segment::{self, Segment, SegmentFile, of_io, of_opening};
use super::writer::{Chain, Job, Writer};
use super::{AuditError, Event, OnBreak, Settings};
use crate::sandbox::{Open, open_plain};

/// Makes the writer that goes on where the files end.
pub(super) fn recover(
    settings: &Settings,
    known_head: Option<Head>,
) -> Result<(Writer, End), AuditError> {
    let directory = &settings.directory;
    let claim = segment::claim(directory)?;
    let found = Found::look(directory)
        .map_err(|error| of_opening("reading the newest file", directory, &error))?;
    let mut owed = Vec::new();
    let mut breaks = Vec::new();
    if let Some(damage) = &found.damaged {
        breaks.push(damage.clone());
    }
    if let Some(known) = known_head {
        breaks.extend(check_known(directory, &found.head, &known)?);
    }
    for broken in &breaks {
        if settings.on_break == OnBreak::Refuse {
            return Err(broken.clone());
        }
        tracing::error!(%broken, "the trail is broken; going on, as the settings say");
        owed.push(event(note_of(broken)));
    }
    for file in &found.hollow {
        put_away(file).map_err(|error| of_io("putting a file without a line away", &error))?;
    }
    if !found.hollow.is_empty() {
        segment::sync_directory(directory)?;
    }
    if found.torn > 0 {
        tracing::warn!(bytes = found.torn, "a torn end of the trail was cut off");
        owed.push(event(EventNote { bytes: Some(found.torn), ..EventNote::new(Event::TailCut) }));
    }
    owed.extend(found.open.iter().map(|(seq, line)| interrupted(*seq, line)));
    let end = End::find(directory, &found.trail, found.head)?;
    let chain = Chain { head: found.head, others: found.uncovered };
    let durable = Durable {
        head: found.head,
        others: found.uncovered,
        covered_others: 0,
        checkpoint: None,
        failure: None,
    };
    let writer = Writer {
        shared: Arc::new(Shared::new(
            durable,
            settings.backlog,
            Budgets::new(settings.bytes_per_day_per_principal),
        )),
        directory: directory.clone(),
        reserve: Reserve::new(settings.reserve_bytes),
        segment_bytes: settings.segment_bytes,
        linger: Duration::from_millis(settings.linger_ms.max(1)),
        checkpoint_lines: settings.checkpoint_lines,
        trail: found.trail,
        chain,
        // A damaged file is left as it is, for those who look into it.
        segment: found.segment.filter(|_| found.damaged.is_none()),
        open: found.open.into_keys().collect(),
        changes: found.changes,
        owed,
        buffer: Vec::new(),
        claim,
    };
    Ok((writer, end))
}

/// What the trail's files hold.
struct Found {
    trail: String,
    head: Head,
    segment: Option<Segment>,
    /// The newest files, as far as not one line can be read in them: a crash at the first line of a file
    /// leaves such a one.
    hollow: Vec<SegmentFile>,
    /// Intents without an outcome, by their numbers, as they were written.
    open: BTreeMap<u64, Vec<u8>>,
    /// Lines other than checkpoints that no checkpoint in the newest file covers.
    uncovered: u64,
    /// What the last line that says so says of the store's changes.
    changes: Option<u64>,
    /// Bytes at the end that were cut off.
    torn: u64,
    damaged: Option<AuditError>,
}

impl Found {
    fn look(directory: &Path) -> io::Result<Self> {
        let mut files = segment::list(directory)?;
        let (mut hollow, mut torn, mut damaged) = (Vec::new(), 0, None);
        while let Some((newest, older)) = files.split_last() {
            let mut scan = Scan::of(newest, older)?;
            let rest = rest_of(newest, scan.good)?;
            if scan.is_damage(&rest) {
                let after = scan.head.seq;
                damaged.get_or_insert(AuditError::Damaged { segment: newest.name(), after });
                scan.go_past(&rest);
            } else if !rest.is_empty() {
                torn += rest.len() as u64;
            }
            if scan.lines == 0 {
                // Not one line in it: the trail ends with the file before, if there is one.
                hollow.extend(files.pop());
                continue;
            }
            if damaged.is_none()
                && !rest.is_empty()
                && let Err(error) = set_aside(newest, &rest)
            {
                tracing::warn!(%error, "the torn end of the trail could not be set aside");
            }
            scan.look_back(older)?;
            let segment = Segment::resume(newest, scan.good).map_err(|error| match error {
                AuditError::Odd { why, .. } => io::Error::new(io::ErrorKind::InvalidInput, why),
                _ => io::ErrorKind::Other.into(),
            })?;
            return Ok(Self {
                trail: scan.trail,
                head: scan.head,
                segment: Some(segment),
                hollow,
                open: scan.open,
                uncovered: scan.uncovered.len() as u64,
                changes: scan.changes,
                torn,
                damaged,
            });
        }
        Ok(Self { hollow, torn, damaged, ..Self::nothing()? })
    }

    /// A new trail, with a name of its own.
    fn nothing() -> io::Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|_| io::Error::other("no random numbers"))?;
        let trail: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            head: Head { seq: 0, hash: Hash::genesis(&trail) },
            trail,
            segment: None,
            hollow: Vec::new(),
            open: BTreeMap::new(),
            uncovered: 0,
            changes: None,
            torn: 0,
            damaged: None,
        })
    }
}

/// No trail gets this far: a line with a greater number was not written by Strongroom, and is damage.
const LAST: u64 = u64::MAX / 2;

/// Goes through the newest file line by line.
struct Scan {
    /// The trail's name, from the file before or from the first line; empty until there is one.
    trail: String,
    head: Head,
    /// The hash that the next line must name; unknown only before a file whose predecessor is gone.
    prev: Option<Hash>,
    good: u64,
    /// How many lines were taken.
    lines: u64,
    open: BTreeMap<u64, Vec<u8>>,
    open_from: Option<u64>,
    /// Intents of older files whose outcome is in this one.
    closed_before: BTreeSet<u64>,
    first: u64,
    uncovered: VecDeque<u64>,
    changes: Option<u64>,
}

impl Scan {
    /// Goes through `newest` as far as its lines fit, and what stands before it in `older`.
    fn of(newest: &SegmentFile, older: &[SegmentFile]) -> io::Result<Self> {
        let before = older.last().map(last_line).transpose()?.flatten();
        let trail = before.as_deref().and_then(Line::read).map(|line| line.trail.to_owned());
        let prev = before.as_deref().map(Hash::of_line);
        let mut scan = Self::new(newest.first, trail.unwrap_or_default(), prev);
        let mut reader =
            BufReader::with_capacity(256 * 1024, open_plain(&newest.path, Open::Read)?);
        let mut bytes = Vec::new();
        while next_line(&mut reader, &mut bytes)? && scan.take(&bytes) {}
        Ok(scan)
    }

    fn new(first: u64, trail: String, prev: Option<Hash>) -> Self {
        let seq = first.saturating_sub(1);
        let hash = prev.unwrap_or(Hash([0; 32]));
        Self {
            trail,
            head: Head { seq, hash },
            prev,
            good: 0,
            lines: 0,
            open: BTreeMap::new(),
            open_from: None,
            closed_before: BTreeSet::new(),
            first,
            uncovered: VecDeque::new(),
            changes: None,
        }
    }

    /// Takes a line that fits; `false` for any other.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let Some(line) = Line::read(bytes).filter(|line| line.seq <= LAST) else { return false };
        if self.trail.is_empty() {
            self.trail = line.trail.to_owned();
        }
        if self.good == 0 && self.first == 1 {
            self.prev = Some(Hash::genesis(&self.trail));
        }
        let chained = self.prev.is_none_or(|prev| prev.hex().as_str() == line.prev);
        if Some(line.seq) != self.head.seq.checked_add(1) || line.trail != self.trail || !chained {
            return false;
        }
        self.account(&line, bytes);
        self.good += bytes.len() as u64 + 1;
        true
    }

    /// Whether what follows the lines that fit is more than a crash can leave. A crash leaves half a
    /// line, or pages of zeros with whole lines after them; but a first line that can be read and does
    /// not fit was put there.
    fn is_damage(&self, rest: &[u8]) -> bool {
        let mut parts = rest.splitn(2, |&byte| byte == b'\n');
        let (first, whole) = (parts.next().unwrap_or_default(), parts.next().is_some());
        whole && (!rest.contains(&0) || (self.good == 0 && Line::read(first).is_some()))
    }

    fn account(&mut self, line: &Line<'_>, bytes: &[u8]) {
        self.lines += 1;
        let hash = Hash::of_line(bytes);
        self.head = Head { seq: line.seq, hash };
        self.prev = Some(hash);
        if line.seq == self.first {
            self.open_from = line.open_from;
        }
        self.changes = line.changes.or(self.changes);
        pair(&mut self.open, line, bytes);
        if let Some(of) = line.of.filter(|of| *of < self.first) {
            self.closed_before.insert(of);
        }
        if line.kind == Kind::Checkpoint {
            let covers = line.covers.unwrap_or(0);
            while self.uncovered.front().is_some_and(|seq| *seq <= covers) {
                self.uncovered.pop_front();
            }
        } else {
            self.uncovered.push_back(line.seq);
        }
    }

    /// The file is damaged: goes on after whatever line is the last that can be read.
    fn go_past(&mut self, rest: &[u8]) {
        for bytes in rest.split(|&byte| byte == b'\n') {
            let later = |line: &Line<'_>| self.head.seq < line.seq && line.seq <= LAST;
            if let Some(line) = Line::read(bytes).filter(later) {
                if self.trail.is_empty() {
                    self.trail = line.trail.to_owned();
                }
                self.account(&line, bytes);
            }
        }
    }

    /// Finds the intents of older files that were open when the newest one began.
    fn look_back(&mut self, older: &[SegmentFile]) -> io::Result<()> {
        let Some(from) = self.open_from else { return Ok(()) };
        let mut open = BTreeMap::new();
        let start = older.iter().rposition(|file| file.first <= from).unwrap_or(0);
        let mut bytes = Vec::new();
        for file in older.iter().skip(start) {
            let mut reader =
                BufReader::with_capacity(256 * 1024, open_plain(&file.path, Open::Read)?);
            while next_line(&mut reader, &mut bytes)? {
                if let Some(line) = Line::read(&bytes).filter(|line| line.seq >= from) {
                    pair(&mut open, &line, &bytes);
                }
            }
        }
        open.retain(|seq, _| !self.closed_before.contains(seq));
        self.open.append(&mut open);
        Ok(())
    }
}

/// Keeps `open` up to date with one line.
fn pair(open: &mut BTreeMap<u64, Vec<u8>>, line: &Line<'_>, bytes: &[u8]) {
    match (line.kind, line.of) {
        (Kind::Intent, _) => drop(open.insert(line.seq, bytes.to_vec())),
        (Kind::Outcome, Some(of)) => drop(open.remove(&of)),
        _ => {}
    }
}

/// Compares what is known with what is there.
fn check_known(
    directory: &Path,
    head: &Head,
    known: &Head,
) -> Result<Option<AuditError>, AuditError> {
    if known.seq > head.seq {
        return Ok(Some(AuditError::CutTail { last: head.seq, known: known.seq }));
    }
    let holds = if known.seq == head.seq {
        Some(head.hash)
    } else {
        hash_of(directory, known.seq)
            .map_err(|error| of_io("looking for the known line", &error))?
    };
    let broken = AuditError::RolledBack { seq: known.seq };
    Ok((holds != Some(known.hash)).then_some(broken))
}

fn event(note: EventNote) -> Job {
    Job::Event { note, reply: None }
}

/// The event line that records a break.
fn note_of(broken: &AuditError) -> EventNote {
    let (code, line) = match broken {
        AuditError::CutTail { known, .. } => ("cut-tail", Some(*known)),
        AuditError::RolledBack { seq } => ("rolled-back", Some(*seq)),
        AuditError::Damaged { after, .. } => ("damaged", Some(*after)),
        _ => ("broken", None),
    };
    EventNote { line, ..EventNote::because(Event::BreakRecorded, Code(code)) }
}

/// The outcome of an intent that a crash has left open.
fn interrupted(seq: u64, intent: &[u8]) -> Job {
    let line = Line::read(intent).unwrap_or_default();
    let verdict = Verdict::Interrupted(Code("crash"));
    Job::Close {
        of: seq,
        subject: Subject::of_line(&line),
        outcome: Outcome { verdict, details: Default::default() },
        reply: None,
    }
}

/// All that a file holds from `offset` on.
fn rest_of(file: &SegmentFile, offset: u64) -> io::Result<Vec<u8>> {
    let mut reader = open_plain(&file.path, Open::Read)?;
    reader.seek(SeekFrom::Start(offset))?;
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest)?;
    Ok(rest)
}

/// Appends `bytes` to the file's `.torn` companion.
fn set_aside(file: &SegmentFile, bytes: &[u8]) -> io::Result<()> {
    let path = file.path.with_extension("jsonl.torn");
    let mut torn = open_plain(&path, Open::MakeAppend)?;
    torn.write_all(bytes)?;
    torn.sync_all()
}

/// Makes the file its own `.torn` companion, or adds it to the one that is there.
fn put_away(file: &SegmentFile) -> io::Result<()> {
    let path = file.path.with_extension("jsonl.torn");
    if file.path.symlink_metadata()?.len() == 0 {
        std::fs::remove_file(&file.path)
    } else if path.symlink_metadata().is_ok() {
        set_aside(file, &rest_of(file, 0)?)?;
        std::fs::remove_file(&file.path)
    } else {
        std::fs::rename(&file.path, path)
    }
}
