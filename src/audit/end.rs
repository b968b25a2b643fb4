//! Where a trail ended when it was opened: its newest checkpoint, and what stands behind it.

use std::ops::ControlFlow;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::line::{Hash, Head, Kind, Line, checkpoint_message};
use super::look_back::LookBack;
use super::read::last_head;
use super::segment::of_io;
use super::verify::VerifyKey;
use super::{AuditError, Event};
use crate::custody::{Mark, checkpoint};

/// The end of a trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    /// The last line.
    pub head: Head,
    /// The newest checkpoint: number 0 where it has none, and line 0 where there is none.
    pub newest: Mark,
    /// The first line that it does not cover, and how many there are, not counting checkpoints.
    pub behind: Option<(u64, u64)>,
    /// What events behind it say that an operator has replaced: the line, and its hash.
    pub accepted: Vec<(u64, Hash)>,
    signed: Option<Signed>,
}

/// Which trail lies in a directory that nobody writes now, and its newest checkpoint; `None` where there is
/// no line that can be read.
pub fn newest_checkpoint(directory: &Path) -> Result<Option<(String, Mark)>, AuditError> {
    let found = last_head(directory).map_err(|error| of_io("reading its end", &error))?;
    let Some((trail, head)) = found else { return Ok(None) };
    let newest = End::find(directory, &trail, head)?.newest;
    Ok(Some((trail, newest)))
}

/// The newest checkpoint's signature and what it is made over.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Signed {
    message: Vec<u8>,
    signature: Vec<u8>,
    generation: u32,
}

impl End {
    /// Reads the files back from line `head` to the newest checkpoint.
    pub fn find(directory: &Path, trail: &str, head: Head) -> Result<Self, AuditError> {
        let start = Mark { number: 0, covers: 0, head: Hash::genesis(trail).0 };
        let mut end =
            Self { head, newest: start, behind: None, accepted: Vec::new(), signed: None };
        let mut found = false;
        let mut back = LookBack::from_end(directory)?;
        let mut show = |bytes: &[u8]| {
            let Some(line) = Line::read(bytes).filter(|line| line.seq <= head.seq) else {
                return ControlFlow::Continue(());
            };
            if found && line.seq <= end.newest.covers {
                return ControlFlow::Break(());
            }
            match line.kind {
                Kind::Checkpoint if !found => {
                    found = true;
                    end.take(trail, &line);
                }
                Kind::Checkpoint => {}
                _ => {
                    end.behind = Some((line.seq, end.behind.map_or(1, |(_, count)| count + 1)));
                    end.accepted.extend(replaced_by(&line));
                }
            }
            ControlFlow::Continue(())
        };
        while back.step_by_line(&mut show)? > 0 {}
        Ok(end)
    }

    fn take(&mut self, trail: &str, line: &Line<'_>) {
        let hash = line.head.and_then(|text| text.parse::<Hash>().ok()).unwrap_or(Hash([0; 32]));
        let (covers, at) = (line.covers.unwrap_or(0), line.at.unwrap_or_default());
        let mark = Mark { number: line.number.unwrap_or(0), covers, head: hash.0 };
        let message = match line.previous.and_then(|text| text.parse::<Mark>().ok()) {
            Some(before) => checkpoint::message(trail, &mark, &before, at),
            None => checkpoint_message(trail, &Head { seq: covers, hash }, at),
        };
        let signature = STANDARD.decode(line.signature.unwrap_or_default()).unwrap_or_default();
        let generation = line.signer.unwrap_or(0);
        self.newest = mark;
        self.signed = Some(Signed { message, signature, generation });
    }

    /// Whether this key has signed the newest checkpoint, if there is one.
    pub fn is_signed_by(&self, generation: u32, key: &VerifyKey) -> bool {
        self.signed.as_ref().is_none_or(|signed| {
            signed.generation == generation && key.verifies(&signed.message, &signed.signature)
        })
    }
}

/// What a `rollback-accepted` event is about.
fn replaced_by(line: &Line<'_>) -> Option<(u64, Hash)> {
    let is_accepted = line.event == Some(Event::RollbackAccepted.as_str());
    let hash = line.digest.filter(|_| is_accepted)?.parse().ok()?;
    Some((line.line?, hash))
}
