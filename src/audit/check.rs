//! Holds lines against each other, one after the other, and names what does not fit.
//!
//! Which line is to blame when `prev` of line n is not the hash of line n-1? If line n+1 names line n
//! as it stands, then n is as it was written and n-1 was changed; if not, n itself was changed.

mod links;

use std::collections::{HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};

use super::line::{Hash, Head, Kind, Line};
use super::recent::{Recent, Spot};
use super::report::{Finding, FindingKind, Place, Report};
use super::verify::{Expectations, VerifyKey};
use crate::custody::Mark;

/// In a trail that is in use, an intent may be without outcome for as long: far longer than any deed
/// takes, and what a crash has left open is closed by the next start.
const UNDER_WAY: SignedDuration = SignedDuration::from_mins(5);

/// Line numbers that were passed over, and where that was noticed.
struct Gap {
    from: u64,
    to: u64,
    spot: Spot,
}

pub(super) struct Checker<'k> {
    keys: &'k [VerifyKey],
    expectations: &'k Expectations,
    report: Report,
    files: Vec<String>,
    row: u64,
    trail: String,
    /// The number that the next line should have; 0 before the first line of a part.
    expected: u64,
    recent: Recent,
    gaps: Vec<Gap>,
    /// Lines since the last one of this trail that could be read: each may stand for a number.
    strangers: u64,
    stranger: Option<String>,
    /// A line whose `prev` is not the hash of the line before; the next line decides which one was changed.
    suspect: Option<u64>,
    blamed: HashSet<u64>,
    /// Intents without an outcome so far: where they stand, and when they were written.
    open: HashMap<u64, (Spot, Box<str>)>,
    /// When the line that was read last was written.
    time: String,
    orphans: Vec<(u64, u64, Spot)>,
    /// Numbers whose lines could not be read or were replaced.
    lost: Vec<(u64, u64)>,
    seen_known: HashMap<u64, (Hash, Spot)>,
    /// The number of the line that an older file ends within.
    torn: Option<u64>,
    /// The newest checkpoint with a good signature; number 0 where it has none.
    mark: Option<Mark>,
    scratch: Vec<u8>,
}

impl<'k> Checker<'k> {
    pub fn new(keys: &'k [VerifyKey], expectations: &'k Expectations) -> Self {
        Self {
            keys,
            expectations,
            report: Report::default(),
            files: Vec::new(),
            row: 0,
            trail: String::new(),
            expected: u64::from(!expectations.partial),
            recent: Recent::new(),
            gaps: Vec::new(),
            strangers: 0,
            stranger: None,
            suspect: None,
            blamed: HashSet::new(),
            open: HashMap::new(),
            time: String::new(),
            orphans: Vec::new(),
            lost: Vec::new(),
            seen_known: HashMap::new(),
            torn: None,
            mark: None,
            scratch: Vec::new(),
        }
    }

    /// Which trail it is, where the lines at its beginning agree on one.
    pub fn is_of(&mut self, trail: Option<String>) {
        if self.trail.is_empty() {
            self.trail = trail.unwrap_or_default();
        }
    }

    pub fn begin_file(&mut self, name: &str) {
        self.files.push(name.to_owned());
        self.report.files += 1;
        self.row = 0;
    }

    /// The next line, without its newline.
    pub fn line(&mut self, bytes: &[u8]) {
        self.row += 1;
        self.report.lines += 1;
        let mut scratch = std::mem::take(&mut self.scratch);
        // Lines count from 1, and no trail comes near the last number there is.
        let line =
            Line::parse(bytes, &mut scratch).filter(|line| (1..u64::MAX).contains(&line.seq));
        match line {
            Some(line) => self.take(&line, Hash::of_line(bytes)),
            None => {
                self.find(self.expected.saturating_add(self.strangers), FindingKind::Unreadable);
                self.stranger = None;
                self.strangers = self.strangers.saturating_add(1);
            }
        }
        self.scratch = scratch;
    }

    /// The file ends within a line.
    pub fn torn(&mut self) {
        self.row += 1;
        self.torn = Some(self.expected);
        if !self.expectations.in_use {
            self.find(self.expected.saturating_add(self.strangers), FindingKind::Torn);
        }
    }

    fn take(&mut self, line: &Line<'_>, hash: Hash) {
        if self.trail.is_empty() {
            line.trail.clone_into(&mut self.trail);
        }
        if line.trail != self.trail {
            return self.meet_stranger(line);
        }
        self.report.trail.get_or_insert_with(|| line.trail.to_owned());
        self.stranger = None;
        if self.expected == 0 {
            self.expected = line.seq;
        }
        if self.is_renumbered(line) {
            return;
        }
        self.report.first.get_or_insert(line.seq);
        if !self.place(line.seq) {
            return;
        }
        line.time.clone_into(&mut self.time);
        self.remember(Head { seq: line.seq, hash });
        self.chain(line);
        self.pair(line);
        if line.kind == Kind::Checkpoint {
            self.checkpoint(line);
        }
    }

    /// A line of another trail; a run of them is one finding.
    fn meet_stranger(&mut self, line: &Line<'_>) {
        if self.stranger.as_deref() != Some(line.trail) {
            let trail = line.trail.to_owned();
            self.find(line.seq, FindingKind::Spliced { trail: trail.clone() });
            self.stranger = Some(trail);
        }
        self.strangers = self.strangers.saturating_add(1);
    }

    /// Whether the line follows from the one before it under another number than its own: that was changed,
    /// and the line counts as the one that belongs there.
    fn is_renumbered(&mut self, line: &Line<'_>) -> bool {
        let follows = line.seq != self.expected
            && self.strangers == 0
            && self
                .hash_of(self.expected.saturating_sub(1))
                .is_some_and(|hash| hash.hex().as_str() == line.prev);
        if follows {
            let seq = self.expected;
            self.resolve(false);
            self.blamed.insert(seq);
            self.find(seq, FindingKind::Flipped);
            self.lost.push((seq, seq));
            self.report.first.get_or_insert(seq);
            self.expected = seq.saturating_add(1);
        }
        follows
    }

    /// Holds the number against the one expected. `false` for a line that has been there already.
    fn place(&mut self, seq: u64) -> bool {
        let ahead = seq.saturating_sub(self.expected).min(self.strangers);
        if ahead > 0 {
            let next = self.expected.saturating_add(ahead);
            self.lost.push((self.expected, next.saturating_sub(1)));
            self.expected = next;
        }
        self.strangers = 0;
        if seq < self.expected {
            let Some(index) = self.gaps.iter().position(|gap| gap.from <= seq && seq <= gap.to)
            else {
                self.find(seq, FindingKind::Repeated);
                return false;
            };
            let Gap { from, to, spot } = self.gaps.swap_remove(index);
            let parts = [(from, seq.saturating_sub(1)), (seq.saturating_add(1), to)];
            let parts = parts.into_iter().filter(|(from, to)| from <= to);
            self.gaps.extend(parts.map(|(from, to)| Gap { from, to, spot }));
            self.find(seq, FindingKind::Reordered);
            return true;
        }
        if seq > self.expected {
            let spot = self.spot();
            self.gaps.push(Gap { from: self.expected, to: seq.saturating_sub(1), spot });
        }
        self.expected = seq.saturating_add(1);
        true
    }

    fn remember(&mut self, head: Head) {
        if self.report.last.is_none_or(|last| last.seq < head.seq) {
            self.report.last = Some(head);
        }
        self.recent.put(head, self.spot());
        if self.expectations.known.iter().any(|known| known.seq == head.seq) {
            self.seen_known.insert(head.seq, (head.hash, self.spot()));
        }
    }

    fn hash_of(&self, seq: u64) -> Option<Hash> {
        if seq == 0 {
            return Some(Hash::genesis(&self.trail));
        }
        self.recent.hash(seq)
    }

    fn pair(&mut self, line: &Line<'_>) {
        match (line.kind, line.of) {
            (Kind::Intent, _) => {
                self.open.insert(line.seq, (self.spot(), line.time.into()));
            }
            (Kind::Outcome, Some(of)) => {
                let before_this_part = self.report.first.is_some_and(|first| of < first);
                if self.open.remove(&of).is_none()
                    && !before_this_part
                    && self.orphans.len() < Report::LISTED
                {
                    self.orphans.push((line.seq, of, self.spot()));
                }
            }
            _ => {}
        }
    }

    /// No more lines: names what is missing.
    pub fn finish(mut self) -> Report {
        self.resolve(false);
        for Gap { from, to, spot } in std::mem::take(&mut self.gaps) {
            let (file, row) = spot;
            let kind = match row == 1 && self.torn != Some(from) {
                true => {
                    let before = file.checked_sub(1).and_then(|file| self.files.get(file));
                    FindingKind::MissingFile { to, behind: before.cloned() }
                }
                false => FindingKind::Dropped { to },
            };
            self.find_at(from, kind, Some(spot));
            self.lost.push((from, to));
        }
        for (seq, of, spot) in std::mem::take(&mut self.orphans) {
            if !self.lost.iter().any(|(from, to)| *from <= of && of <= *to) {
                self.find_at(seq, FindingKind::OutcomeWithoutIntent { of }, Some(spot));
            }
        }
        for (seq, (spot, time)) in std::mem::take(&mut self.open) {
            if self.expectations.in_use && self.is_recent(&time) {
                self.report.under_way += 1;
            } else {
                self.find_at(seq, FindingKind::IntentWithoutOutcome, Some(spot));
            }
        }
        self.compare_known();
        let last = self.report.last.map_or(0, |last| last.seq);
        self.report.uncovered = last.saturating_sub(self.report.covered);
        self.demand_proof(last);
        self.report.findings.sort_by_key(|finding| finding.line);
        self.report
    }

    /// A chain of hashes alone proves nothing: whoever can write the files can write a new one. Only a
    /// signature, or a head from elsewhere, vouches for what stands before it.
    fn demand_proof(&mut self, last: u64) {
        let held = |known: &&Head| {
            self.seen_known.get(&known.seq).is_some_and(|seen| seen.0 == known.hash)
        };
        let known = self.expectations.known.iter().filter(held).map(|known| known.seq).max();
        let proven = self.report.covered.max(known.unwrap_or(0));
        self.report.proven = proven;
        let unproven = last.saturating_sub(proven);
        if proven == 0 {
            self.find_at(self.report.first.unwrap_or(0), FindingKind::Unproven, None);
        } else if unproven > self.expectations.most_unproven {
            self.report.unsigned_tail = true;
        }
    }

    /// Whether a line of this time may be of a deed that was under way when the last line was written.
    fn is_recent(&self, time: &str) -> bool {
        let times = time.parse::<Timestamp>().ok().zip(self.time.parse::<Timestamp>().ok());
        times.is_some_and(|(time, last)| last.duration_since(time) <= UNDER_WAY)
    }

    fn compare_known(&mut self) {
        let last = self.report.last.map_or(0, |last| last.seq);
        for known in &self.expectations.known {
            let lost = self.lost.iter().any(|(from, to)| *from <= known.seq && known.seq <= *to);
            match self.seen_known.get(&known.seq) {
                _ if known.seq > last => {
                    self.find_at(known.seq, FindingKind::Truncated { last }, None);
                }
                Some(&(hash, spot)) if hash != known.hash && !self.blamed.contains(&known.seq) => {
                    self.find_at(known.seq, FindingKind::RolledBack, Some(spot));
                }
                None if !lost && self.report.first.is_some_and(|first| first <= known.seq) => {
                    self.find_at(known.seq, FindingKind::RolledBack, None);
                }
                _ => {}
            }
        }
    }

    fn spot(&self) -> Spot {
        (self.files.len().saturating_sub(1), self.row)
    }

    fn find(&mut self, line: u64, kind: FindingKind) {
        self.find_at(line, kind, Some(self.spot()));
    }

    fn find_at(&mut self, line: u64, kind: FindingKind, spot: Option<Spot>) {
        if self.report.findings.len() >= Report::LISTED {
            self.report.further_findings += 1;
            return;
        }
        let place = spot.map(|(file, row)| Place {
            file: self.files.get(file).cloned().unwrap_or_default(),
            row,
        });
        self.report.findings.push(Finding { line, place, kind });
    }
}
