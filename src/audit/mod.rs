//! Remembers: the trail, a signed chain of lines that says who did what, before it is done.
//!
//! A deed takes two lines. [`Trail::begin`] hands in the intent; once [`PendingEntry::durable`] gives an
//! [`Entry`], the line is on disk and the deed may show. [`Trail::close`] takes the entry back with the
//! outcome. Where the intent cannot be written there is no entry, and so no deed.
//!
//! [`verify()`] reads the files alone, with nothing but the public key.

mod begin;
mod budget;
mod check;
mod compressed;
mod end;
mod entry;
mod fill;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod gather;
mod line;
mod look_back;
mod place;
mod read;
mod recent;
mod recover;
mod report;
mod reserve;
mod segment;
mod tend;
mod trail;
mod verify;
mod writer;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use begin::{Fits, SigningKey};
pub use budget::Budgets;
pub use compressed::Compression;
pub use end::newest_checkpoint;
pub use entry::{Code, Details, Event, EventNote, Intent, Outcome, Verdict, Versions, Words};
pub use line::{Hash, Head, HeadError, Kind, Line, checkpoint_message};
pub use look_back::{LookBack, Told};
pub use read::{Filter, Page, TrailFile, last_head};
pub use report::{Finding, FindingKind, Judgement, ReplacedCheckpoints, Report};
pub use segment::{Claim, claim};
pub use tend::{BoxFuture, HeadKeeper, SignError, Signature, Signer, ToSign};
pub use trail::{Closing, Entry, PendingEntry, Status, Trail};
pub use verify::{
    Expectations, PublicKeyError, VerifyError, VerifyKey, verify, verify_files, verify_opened,
    verify_seen,
};

/// Where the trail lies and how it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Directory of the trail; made with mode 0700 if it is not there.
    pub directory: PathBuf,
    /// A new file is begun once one has this many bytes.
    pub segment_bytes: u64,
    /// Room that is kept for the lines of what closes something (lock, suspend, compromise …): so many bytes
    /// belong to the newest file, and all else is refused while the disk has fewer left besides.
    pub reserve_bytes: u64,
    /// How many bytes of lines one principal may cause a day; all of them at once after a rest. 0: no bound.
    pub bytes_per_day_per_principal: u64,
    /// How long a deed waits for its line before it is refused, in milliseconds.
    pub deadline_ms: u64,
    /// How long an outcome that nobody waits for may wait for company, in milliseconds.
    pub linger_ms: u64,
    /// How many lines may wait to be written before further deeds are refused at once.
    pub backlog: usize,
    /// A checkpoint is signed after this many lines …
    pub checkpoint_lines: u64,
    /// … or after this many seconds, if there were any lines.
    pub checkpoint_seconds: u64,
    /// How often the newest head is kept outside the trail between checkpoints, in seconds.
    pub head_seconds: u64,
    /// What to do where the trail does not hold what is known of it, or the store less than the trail
    /// knows of.
    pub on_break: OnBreak,
    /// How far back from its end the trail is held against the store at a start, in bytes: a record that
    /// is older than a line tells is not served. The newest part comes before anybody is served.
    pub look_back_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("/var/lib/strongroom/trail"),
            segment_bytes: 16 * 1024 * 1024,
            reserve_bytes: 3 * 1024 * 1024,
            bytes_per_day_per_principal: 8 * 1024 * 1024 * 1024,
            deadline_ms: 2000,
            linger_ms: 20,
            backlog: 8192,
            checkpoint_lines: 10_000,
            checkpoint_seconds: 60,
            head_seconds: 5,
            on_break: OnBreak::Refuse,
            look_back_bytes: 1024 * 1024 * 1024,
        }
    }
}

/// What an operator wants done with a trail that was cut, rolled back or damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBreak {
    /// Do not start.
    Refuse,
    /// Start, and say so in an event line. `verify` goes on naming the break.
    Record,
}

/// Why the trail did not take a line, or could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// No room on the disk; works again by itself when there is.
    #[error("the disk of the trail is full")]
    Full,
    /// The file system or its permissions do not allow writing.
    #[error("the trail cannot be written: read-only or not permitted")]
    ReadOnly,
    /// What is written is no longer what lies at that path; works again by itself when it is.
    #[error(
        "{} is not the file that is written any more: it, or the directory above it, was removed, moved \
         or replaced. Put back the very directory, by moving it, and it goes on by itself; if that \
         cannot be, stop the front and put the trail back from a copy",
        path.display()
    )]
    Misplaced { path: PathBuf },
    /// Something else truncated the file that is written, or wrote to it; works again by itself when it has its
    /// content again.
    #[error(
        "{} has {found} bytes instead of {expected}: another process truncated it or wrote to it, as \
         logrotate does with copytruncate. Take the audit log out of that process's configuration; then \
         put the copy's bytes back into the same file (`cat COPY > FILE`), and it goes on by itself",
        path.display()
    )]
    Resized { path: PathBuf, expected: u64, found: u64 },
    /// Any other failure of the disk.
    #[error("the disk of the trail failed while {during}: {kind}")]
    Io { during: &'static str, kind: std::io::ErrorKind },
    /// The line was not durable in time.
    #[error("the trail did not take the line in time")]
    Deadline,
    /// Nothing is written before it is known that this is the trail that custody remembers.
    #[error("the trail is not written before custody has said which checkpoint is the newest")]
    Held,
    /// Too many lines wait.
    #[error("too many lines wait for the trail")]
    Busy,
    /// The trail has been stopped.
    #[error("the trail is closed")]
    Closed,
    /// The checkpoint could not be signed now.
    #[error("the checkpoint could not be signed: {0}")]
    NotSigned(#[from] SignError),
    /// Another process writes this trail.
    #[error("another process has the trail open")]
    InUse,
    /// Others than the owner could get at the directory.
    #[error("the directory of the trail has mode {mode:03o}; it must be 700")]
    Mode { mode: u32 },
    /// Who owns a directory says what becomes of every file in it.
    #[error("the directory of the trail, {}, belongs to uid {owner}; this is uid {own}", path.display())]
    Owner { path: PathBuf, owner: u32, own: u32 },
    /// Something lies there that is no file of the trail's, and may lead elsewhere.
    #[error("{}: {why}", path.display())]
    Odd { path: PathBuf, why: String },
    /// The trail ends before a line that is known to have been written: its tail was cut off, or an
    /// older copy was put back.
    #[error("the trail ends at line {last}, but line {known} is known to have been written")]
    CutTail { last: u64, known: u64 },
    /// The trail holds another line where a known one was: an older copy was put back and went on, or
    /// it is another trail.
    #[error("line {seq} of the trail is not the one that is known: rolled back or replaced")]
    RolledBack { seq: u64 },
    /// The newest file of the trail does not hold together, and not as a crash would leave it.
    #[error("the trail is damaged after line {after}, in {segment}")]
    Damaged { segment: String, after: u64 },
}
