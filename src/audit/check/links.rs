//! What each line says of the lines before it: the hash of the last one, and the signatures of checkpoints.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Checker;
use crate::audit::line::{Hash, Head, Line, checkpoint_message};
use crate::audit::recent::REMEMBERED;
use crate::audit::report::{FindingKind, ReplacedCheckpoints};
use crate::custody::{Mark, checkpoint};

impl Checker<'_> {
    pub(super) fn chain(&mut self, line: &Line<'_>) {
        let before = line.seq.saturating_sub(1);
        let fits = self.hash_of(before).map(|hash| hash.hex().as_str() == line.prev);
        match (self.suspect, fits) {
            (Some(suspect), Some(fits)) if suspect == before => {
                self.suspect = None;
                self.blame(if fits { suspect.saturating_sub(1) } else { suspect });
            }
            _ => self.resolve(false),
        }
        if fits == Some(false) && !self.blamed.contains(&before) {
            self.suspect = Some(line.seq);
        }
    }

    /// Ends a suspicion that no next line decides: `itself` where it is known that the line before stands.
    pub(super) fn resolve(&mut self, itself: bool) {
        let Some(suspect) = self.suspect.take() else { return };
        let before = suspect.saturating_sub(1);
        let known = |seq| {
            let known = self.expectations.known.iter().find(|known| known.seq == seq)?;
            Some(self.hash_of(seq) == Some(known.hash))
        };
        match (itself, known(suspect), known(before)) {
            (true, ..) | (_, Some(false), _) | (_, _, Some(true)) => self.blame(suspect),
            (_, Some(true), _) | (_, _, Some(false)) => self.blame(before),
            // There is no line before: what it follows from is known.
            _ if before == 0 => self.blame(suspect),
            _ => {
                self.blamed.insert(suspect);
                let spot = self.recent.spot(suspect);
                self.find_at(suspect, FindingKind::Unlinked, spot);
            }
        }
    }

    /// Line `seq` was changed; where that is the start of the chain, its first line was.
    fn blame(&mut self, seq: u64) {
        let seq = seq.max(1);
        if self.blamed.insert(seq) {
            let spot = self.recent.spot(seq);
            self.find_at(seq, FindingKind::Flipped, spot);
        }
    }

    pub(super) fn checkpoint(&mut self, line: &Line<'_>) {
        let parts = line.covers.zip(line.head.and_then(|text| text.parse::<Hash>().ok()));
        let Some((covers, hash)) = parts else {
            return self.find(line.seq, FindingKind::BadCheckpoint);
        };
        let at = line.at.unwrap_or_default();
        let mark = Mark { number: line.number.unwrap_or(0), covers, head: hash.0 };
        let previous = line.previous.map(|text| text.parse::<Mark>());
        let message = match (line.number, previous) {
            (None, None) => checkpoint_message(&self.trail, &Head { seq: covers, hash }, at),
            (Some(_), Some(Ok(previous))) => checkpoint::message(&self.trail, &mark, &previous, at),
            _ => return self.find(line.seq, FindingKind::BadCheckpoint),
        };
        let signature = STANDARD.decode(line.signature.unwrap_or_default()).unwrap_or_default();
        if !self.keys.iter().any(|key| key.verifies(&message, &signature)) {
            return self.find(line.seq, FindingKind::BadSignature);
        }
        self.report.checkpoints += 1;
        self.link(line.seq, mark, previous.and_then(Result::ok));
        let missing = self.gaps.iter().any(|gap| gap.from <= covers && covers <= gap.to)
            || self.lost.iter().any(|(from, to)| *from <= covers && covers <= *to)
            || self.report.first.is_some_and(|first| covers < first);
        match self.hash_of(covers).filter(|_| covers < line.seq) {
            Some(found) if found == hash => {
                self.report.covered = self.report.covered.max(covers);
                if self.suspect.is_some_and(|suspect| covers.checked_add(1) == Some(suspect)) {
                    self.resolve(true);
                }
            }
            Some(_) => match self.suspect {
                // The line before the checkpoint, and the checkpoint knows what it was.
                Some(suspect) if covers.checked_add(1) == Some(suspect) => {
                    self.suspect = None;
                    self.blame(covers);
                }
                _ if self.blamed.contains(&covers) => {}
                _ => self.find(line.seq, FindingKind::Rewritten { covers }),
            },
            None if missing => {}
            // Signed while many lines were written: the next one covers those, too.
            None if covers < line.seq.saturating_sub(REMEMBERED as u64) => {}
            None => self.find(line.seq, FindingKind::BadCheckpoint),
        }
    }

    /// Holds a checkpoint's place in the chain against the one before it.
    fn link(&mut self, seq: u64, mark: Mark, previous: Option<Mark>) {
        let before = self.mark.replace(mark);
        self.report.number = self.report.number.max(mark.number);
        // What else is wrong says where the others are.
        let is_whole = self.report.findings.is_empty()
            && self.gaps.is_empty()
            && self.lost.is_empty()
            && self.blamed.is_empty()
            && self.suspect.is_none();
        let genesis = Mark { number: 0, covers: 0, head: Hash::genesis(&self.trail).0 };
        let Some(previous) = previous else {
            // Since they are numbered, none is signed without a number.
            if before.is_some_and(|before| before.number > 0) {
                self.find(seq, FindingKind::BadCheckpoint);
            }
            return;
        };
        let fits = match before {
            Some(before) => before == previous,
            None => self.expectations.partial || previous == genesis,
        };
        if mark.number <= previous.number {
            self.find(seq, FindingKind::BadCheckpoint);
        } else if !fits && is_whole {
            let number = before.map_or(0, |before| before.number);
            self.find(seq, FindingKind::CheckpointUnlinked { number, previous: previous.number });
        } else if mark.number > previous.number + 1 {
            let (from, to) = (previous.number + 1, mark.number - 1);
            self.report.replaced.push(ReplacedCheckpoints { line: seq, from, to });
        }
    }
}
