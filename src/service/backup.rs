//! A backup is made: a copy of store and trail, of one moment, as a stream.
//!
//! The moment is a pause of the store between two groups of commits. The trail's newest durable line is
//! read in that pause, so that the lines up to it hold the intent of every change that the copy has, and
//! the outcome of none that it has not.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::error::Error;
use super::gate::{Appliance, Request, Trace, Traced};
use crate::audit::{AuditError, Details, Head, Trail};
use crate::backup::{Facts, TrailPart, Writer};
use crate::custody::{Client, CustodyError, Outage, Reason};
use crate::policy::{Action, Permit, Resource};
use crate::records::{HomeRecord, MasterRecord, RecordError, read_home};
use crate::store::Store;

/// Make a backup and hand it out piece by piece. It is whole only if performing it comes to a reply.
pub struct CreateBackup {
    to: mpsc::Sender<Bytes>,
}

/// A backup that was handed out.
#[derive(Debug, Clone, Copy)]
pub struct BackupMade {
    pub bytes: u64,
}

/// Pieces that may wait to be taken; nothing more is read until they are.
const WAITING: usize = 4;

/// The size of a piece.
const PIECE: usize = 256 * 1024;

impl CreateBackup {
    /// The request, and where its pieces come out.
    pub fn new() -> (Self, mpsc::Receiver<Bytes>) {
        let (to, pieces) = mpsc::channel(WAITING);
        (Self { to }, pieces)
    }
}

impl Request for CreateBackup {
    const ACTION: Action = Action::BackupCreate;
    const TRACE: Trace = Trace::Before;
    // The audit log is in it as it is, readable by whoever has the backup.
    type Reply = BackupMade;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, _permit: Permit, appliance: &Appliance) -> Result<BackupMade, Error> {
        appliance.records.home().ok_or(Error::NotInitialised)?;
        // So that all but the last few lines are covered by a signature of their own, too.
        appliance.trail.checkpoint().await.map_err(unsigned)?;
        let making = Making {
            trail: Arc::clone(&appliance.trail),
            store: Arc::clone(&appliance.store),
            custody: appliance.custody.clone(),
            runtime: Handle::current(),
        };
        let made = tokio::task::spawn_blocking(move || making.write(self.to));
        made.await.map_err(|_| Error::Abandoned)?
    }
}

impl Traced for BackupMade {
    fn details(&self) -> Details {
        Details { output_bytes: Some(self.bytes), ..Details::default() }
    }
}

/// What it takes to make one, on a thread that may block.
struct Making {
    trail: Arc<Trail>,
    store: Arc<dyn Store>,
    custody: Client,
    runtime: Handle,
}

impl Making {
    fn write(self, to: mpsc::Sender<Bytes>) -> Result<BackupMade, Error> {
        let pieces = Pieces { to, filling: Vec::with_capacity(PIECE), bytes: 0 };
        let mut writer = Writer::new(pieces);
        let Moment { head, created_at, home } = self.write_store(&mut writer)?;
        for file in self.trail.files_up_to(head)? {
            let file = file?;
            writer.trail(&file.name, file.bytes, file.file).map_err(gone)?;
        }
        let facts = Facts {
            generations: generations(&home),
            appliance: home.appliance,
            created_at,
            trail: TrailPart { id: self.trail.status().trail, head: head.to_string() },
        };
        let unsigned = writer.manifest(facts).map_err(gone)?;
        let signed = self.runtime.block_on(self.custody.sign_backup(unsigned.message.clone()));
        let signature: [u8; 64] = signed?.try_into().map_err(|_| CustodyError::Confused)?;
        let mut pieces = unsigned.finish(&signature).map_err(gone)?;
        pieces.flush().map_err(gone)?;
        Ok(BackupMade { bytes: pieces.bytes })
    }

    /// Writes the store; which moment that is.
    fn write_store(&self, writer: &mut Writer<Pieces>) -> Result<Moment, Error> {
        let mut at = None;
        let mut written = Ok(());
        let copied = self.store.copy(
            &mut || at = Some((self.trail.head(), Timestamp::now(), read_home(&*self.store))),
            &mut |page| {
                written = writer.store(&page);
                if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            },
        );
        written.map_err(gone)?;
        copied.map_err(|error| Error::Record(RecordError::from(error)))?;
        let (head, created_at, home) = at.ok_or(Error::Abandoned)?;
        Ok(Moment { head, created_at, home: home?.ok_or(Error::NotInitialised)? })
    }
}

/// The moment of a copy: the trail's newest line, the time, and what the appliance was.
struct Moment {
    head: Head,
    created_at: Timestamp,
    home: HomeRecord,
}

/// The master generations that a restored appliance may need.
fn generations(home: &HomeRecord) -> Vec<u32> {
    let kept = |master: &MasterRecord| master.retired_at.is_none();
    home.masters().into_iter().filter(kept).map(|master| master.generation).collect()
}

/// Writing fails where nobody takes the pieces any more, or where a file of the trail does not hold what
/// it held a moment ago.
fn gone(error: io::Error) -> Error {
    tracing::warn!(%error, "a backup was given up");
    Error::Abandoned
}

/// Without the token there is no signature, and the trail is not to blame.
fn unsigned(error: AuditError) -> Error {
    match error {
        AuditError::NotSigned(why) => {
            let outage = Outage::new(Reason::TokenFailed, why.to_string());
            CustodyError::Away(outage).into()
        }
        other => other.into(),
    }
}

/// Cuts a stream into pieces and hands them on.
struct Pieces {
    to: mpsc::Sender<Bytes>,
    filling: Vec<u8>,
    bytes: u64,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (some, _) = bytes.split_at(bytes.len().min(PIECE - self.filling.len()));
        self.filling.extend_from_slice(some);
        if self.filling.len() == PIECE {
            self.flush()?;
        }
        Ok(some.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.filling.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.filling, Vec::with_capacity(PIECE));
        self.bytes += piece.len() as u64;
        self.to.blocking_send(piece.into()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
