//! What the newest lines of a trail say of the store, read backwards: who edits the store alone does not
//! know of them.
//!
//! A revision never goes back, not even by a delete. So the store has every address at the revision that
//! any line tells, or at a later one; where it has not, an older copy was put back, or it was taken away.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::AuditError;
use super::line::{Kind, Line};
use super::segment::{self, SegmentFile, of_io};
use crate::policy::Action;
use crate::sandbox::{Open, open_plain};

/// Something that a line says of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told<'a> {
    /// A record was at this revision: `key/payments`, `secret/stripe`.
    Revision { resource: &'a str, revision: u64 },
    /// An operator locked the appliance, or unlocked it.
    Locked(bool),
    /// A master key of this generation was in use.
    Generation(u32),
    /// A restore began another time, in which nothing counts that an older store key sealed.
    FirstStoreKey(u32),
    /// A pass over all keys was begun: the revision of its own record, and where the recovery key was set or
    /// taken away with it, that of this one's.
    Begun { pass: u64, recovery: Option<u64> },
    /// Everything before it that the store does not hold was accepted by an operator.
    Accepted,
}

/// A way back through a trail, block by block.
pub struct LookBack {
    /// Oldest first; what was read to its beginning is gone.
    files: Vec<SegmentFile>,
    /// Up to where the last of `files` is not read yet; none before it was opened.
    end: Option<u64>,
    /// The beginning of the block that was read last, up to its first newline.
    rest: Vec<u8>,
}

/// Bytes that are read at once.
const BLOCK: u64 = 256 * 1024;

/// A line that is longer was not written by Strongroom.
const LONGEST: usize = 64 * 1024;

impl LookBack {
    /// Begins at the end of the trail in a directory; there may be none yet.
    pub fn from_end(directory: &Path) -> Result<Self, AuditError> {
        let files = match segment::list(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            files => files.map_err(|error| of_io("looking back", &error))?,
        };
        Ok(Self { files, end: None, rest: Vec::new() })
    }

    /// Reads one block further back and shows what its lines say, newest first, with their numbers.
    /// Returns how many bytes it has read; 0 where there are no more, or `show` wanted no more.
    pub fn step(
        &mut self,
        show: &mut impl FnMut(u64, Told<'_>) -> ControlFlow<()>,
    ) -> Result<u64, AuditError> {
        self.step_by_line(&mut |line| match read(line) {
            Some((seq, told)) => show(seq, told),
            None => ControlFlow::Continue(()),
        })
    }

    /// The same, of the lines themselves.
    pub(super) fn step_by_line(
        &mut self,
        show: &mut impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<u64, AuditError> {
        self.read_block(show).map_err(|error| of_io("looking back", &error))
    }

    fn read_block(&mut self, show: &mut impl FnMut(&[u8]) -> ControlFlow<()>) -> io::Result<u64> {
        let Some(newest) = self.files.last() else { return Ok(0) };
        let file = open_plain(&newest.path, Open::Read)?;
        let end = match self.end {
            Some(end) => end,
            None => file.metadata()?.len(),
        };
        let start = end.saturating_sub(BLOCK);
        let mut block = vec![0; usize::try_from(end - start).unwrap_or(0)];
        file.read_exact_at(&mut block, start)?;
        block.append(&mut self.rest);
        let mut lines = block.as_slice();
        if start > 0 {
            let first =
                lines.iter().position(|&byte| byte == b'\n').map_or(lines.len(), |at| at + 1);
            let (rest, whole) = lines.split_at(first);
            self.rest = if rest.len() <= LONGEST { rest.to_vec() } else { Vec::new() };
            lines = whole;
            self.end = Some(start);
        } else {
            self.end = None;
            self.files.pop();
        }
        for line in lines.split(|&byte| byte == b'\n').rev() {
            if show(line).is_break() {
                self.files.clear();
                return Ok(0);
            }
        }
        Ok((end - start).max(1))
    }
}

/// Whether it is an action that changes no record: what it saw may not have been on disk yet.
fn is_read(action: Option<&str>) -> bool {
    [Action::SecretShow, Action::SecretReveal].iter().any(|read| action == Some(read.as_str()))
}

/// Events that name the generation in use.
const OF_MASTER: [&str; 5] =
    ["master-in-use", "rewrapped", "rotation-done", "recovery-wrapped", "resealed"];

/// What a line says of the store. Most say nothing of it, and are passed over without a parser.
fn read(line: &[u8]) -> Option<(u64, Told<'_>)> {
    let text = std::str::from_utf8(line).ok()?;
    let members = ["\"revision\":", "\"pass\":", "\"event\":"];
    if !members.iter().any(|member| text.contains(member)) {
        return None;
    }
    let line = Line::read(line)?;
    let told = match (line.kind, line.event) {
        (Kind::Outcome, _) if line.pass.is_some() && line.result == Some("done") => {
            Told::Begun { pass: line.pass?, recovery: line.revision }
        }
        (Kind::Outcome, _) if line.result == Some("done") && !is_read(line.action) => {
            Told::Revision { resource: line.resource?, revision: line.revision? }
        }
        (Kind::Event, Some(event)) if OF_MASTER.contains(&event) => {
            Told::Generation(line.generation?)
        }
        (Kind::Event, Some("restored")) => Told::FirstStoreKey(line.store_key?),
        (Kind::Event, Some("locked")) => Told::Locked(true),
        (Kind::Event, Some("unlocked" | "initialised")) => Told::Locked(false),
        (Kind::Event, Some("break-recorded")) => match line.code {
            Some("store-behind" | "records-behind") => Told::Accepted,
            _ => return None,
        },
        _ => return None,
    };
    Some((line.seq, told))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(directory: &Path) -> Vec<(u64, String)> {
        let mut seen = Vec::new();
        let mut back = LookBack::from_end(directory).unwrap();
        let mut show = |seq, told: Told<'_>| {
            seen.push((seq, format!("{told:?}")));
            ControlFlow::Continue(())
        };
        while back.step(&mut show).unwrap() > 0 {}
        seen
    }

    fn outcome(seq: u64, revision: u64) -> Vec<u8> {
        outcome_of("secret:put", seq, revision)
    }

    fn outcome_of(action: &str, seq: u64, revision: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (kind, resource, result) = (Kind::Outcome, Some("secret/s"), Some("done"));
        let (action, revision) = (Some(action), Some(revision));
        let line = Line { seq, kind, action, resource, result, revision, ..Line::default() };
        line.encode(&mut bytes);
        bytes
    }

    #[test]
    fn every_line_is_shown_once_and_the_newest_first_across_blocks_and_files() {
        let directory = tempfile::tempdir().unwrap();
        assert!(told(&directory.path().join("none")).is_empty());
        let count = 9000;
        let mut files = [Vec::new(), Vec::new(), Vec::new()];
        for seq in 1..=count {
            let file = &mut files[if seq <= 4000 { 0 } else { 2 }];
            file.extend(outcome(seq, seq * 2));
        }
        files[2].extend(b"{\"seq\":9001,\"revision\":7,\"ti");
        for (first, bytes) in [1, 4000, 4001].into_iter().zip(&files) {
            std::fs::write(SegmentFile::at(directory.path(), first).path, bytes).unwrap();
        }
        assert!(files[0].len() as u64 > BLOCK);
        let expected = |seq: u64| {
            let told = Told::Revision { resource: "secret/s", revision: seq * 2 };
            (seq, format!("{told:?}"))
        };
        assert_eq!(told(directory.path()), (1..=count).rev().map(expected).collect::<Vec<_>>());
    }

    #[test]
    fn it_ends_where_it_is_told_to_and_passes_over_all_else() {
        let directory = tempfile::tempdir().unwrap();
        let event = |seq, event, code| {
            let mut bytes = Vec::new();
            Line { seq, kind: Kind::Event, event, code, ..Line::default() }.encode(&mut bytes);
            bytes
        };
        let lines = [
            outcome(1, 5),
            event(2, Some("break-recorded"), Some("records-behind")),
            event(3, Some("break-recorded"), Some("cut-tail")),
            event(4, Some("locked"), None),
            b"nonsense with \"revision\":\n".to_vec(),
            vec![b'x'; 300_000],
            b"\n".to_vec(),
            outcome(5, 6),
            outcome_of("secret:reveal", 6, 7),
            outcome_of("secret:show", 7, 7),
        ];
        std::fs::write(SegmentFile::at(directory.path(), 1).path, lines.concat()).unwrap();
        let seen: Vec<u64> = told(directory.path()).into_iter().map(|(seq, _)| seq).collect();
        assert_eq!(seen, [5, 4, 2, 1]);
        let mut back = LookBack::from_end(directory.path()).unwrap();
        let mut seen = Vec::new();
        let mut show = |seq, told: Told<'_>| {
            seen.push(seq);
            if told == Told::Accepted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        while back.step(&mut show).unwrap() > 0 {}
        assert_eq!(seen, [5, 4, 2]);
    }
}
