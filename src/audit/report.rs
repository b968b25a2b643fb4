//! What a verification says: for people by `Display`, for programs by `Serialize`.

use std::fmt;

use serde::Serialize;

use super::line::Head;

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The number of the line that it is about; for something missing, the first missing line.
    pub line: u64,
    /// The file, and the line within it (from 1), where it stands; of something missing,
    /// the line behind it; at the end of all files, none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    #[serde(flatten)]
    pub kind: FindingKind,
}

/// Where a line stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    pub file: String,
    pub row: u64,
}

/// The kinds of damage that can be told apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "kebab-case")]
pub enum FindingKind {
    /// The line's bytes are not those that the next line vouches for: it was changed.
    Flipped,
    /// It is not a line of a trail in its one form: changed, or not written by Strongroom.
    Unreadable,
    /// Lines are missing in the middle, up to and with `to`.
    Dropped { to: u64 },
    /// Lines up to and with `to` are missing between two files: whole files, or the end of the one `behind`
    /// which they belong.
    MissingFile {
        to: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        behind: Option<String>,
    },
    /// The line does not follow from the one before it, and nothing says which of the two was changed.
    Unlinked,
    /// The line stands after a later one.
    Reordered,
    /// A line with this number has been there already.
    Repeated,
    /// The line belongs to another trail.
    Spliced { trail: String },
    /// The trail ends before a line that is known: its tail was cut, or an older copy was put back.
    Truncated { last: u64 },
    /// The last line has no end.
    Torn,
    /// There is another line where a known one was: an older copy was put back and went on, or
    /// everything from some line before it on was written anew.
    RolledBack,
    /// A checkpoint, signed by the trail's key, names another hash for line `covers` than the line has:
    /// something between the checkpoint before and `covers` was written anew.
    Rewritten { covers: u64 },
    /// The checkpoint's signature was not made by any of the given keys over what it says.
    BadSignature,
    /// The checkpoint covers a line that is not there, not before it, or too far away to be compared.
    BadCheckpoint,
    /// Something was to be done, and what became of it is not there.
    IntentWithoutOutcome,
    /// Nothing vouches for any line: there is no checkpoint that a given key made, and no known head.
    Unproven,
    /// The checkpoint says that it follows number `previous`, and number `number` is the one before it here:
    /// others were taken away, and the lines that they covered may be other ones.
    CheckpointUnlinked { number: u64, previous: u64 },
    /// An outcome names an intent (`of`) that is not there, or had its outcome already.
    OutcomeWithoutIntent { of: u64 },
}

/// The result of a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Which trail it is; `None` where there is no line at all.
    pub trail: Option<String>,
    pub lines: u64,
    pub files: u64,
    pub first: Option<u64>,
    pub last: Option<Head>,
    /// Checkpoints with a good signature, and the line up to which the last of them covers.
    pub checkpoints: u64,
    pub covered: u64,
    /// Lines after it: chained, and not yet covered by a signature. Whoever can write the files could
    /// have written these anew; only a head that is kept elsewhere tells.
    pub uncovered: u64,
    /// The last line that a signature or a known head vouches for.
    pub proven: u64,
    /// The number of the newest checkpoint; 0 where none has one.
    pub number: u64,
    /// Checkpoints that an operator replaced by what stands here: `rollback-accepted` in the trail.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<ReplacedCheckpoints>,
    /// More lines than may be stand behind the last that a signature or a known head vouches for.
    pub unsigned_tail: bool,
    /// Intents at the end whose deed may still be under way (only where the trail is in use).
    pub under_way: u64,
    pub findings: Vec<Finding>,
    /// Findings beyond the first thousand, which are not listed.
    pub further_findings: u64,
    /// How long it took.
    pub milliseconds: u64,
}

/// Numbers of checkpoints that were signed and are not here, although the next one follows: custody signed
/// over them because an operator had accepted an older trail, as after a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ReplacedCheckpoints {
    /// The line of the checkpoint that goes on.
    pub line: u64,
    pub from: u64,
    pub to: u64,
}

/// What a verification comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judgement {
    /// Nothing is wrong, and all but the last few lines are signed.
    Sound,
    /// Nothing is wrong with what is signed, and more lines than may be stand behind it: those may be forged.
    UnsignedTail,
    NotSound,
}

impl Report {
    /// Most findings that are listed one by one.
    pub(super) const LISTED: usize = 1000;

    /// What it comes to.
    pub fn judgement(&self) -> Judgement {
        match (self.findings.is_empty(), self.unsigned_tail) {
            (false, _) => Judgement::NotSound,
            (true, true) => Judgement::UnsignedTail,
            (true, false) => Judgement::Sound,
        }
    }

    /// Whether nothing is wrong, and all but the last few lines are signed.
    pub fn is_sound(&self) -> bool {
        self.judgement() == Judgement::Sound
    }
}

impl Report {
    /// Each on a line; signatures that no given key made are counted, for all of one key's are found at once.
    fn fmt_findings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_bad = |finding: &&Finding| finding.kind == FindingKind::BadSignature;
        let bad: Vec<&Finding> = self.findings.iter().filter(is_bad).collect();
        for finding in &self.findings {
            match bad.as_slice() {
                [first, .., last] if is_bad(&finding) => {
                    if std::ptr::eq(*first, finding) {
                        let (count, from, to) = (bad.len(), first.line, last.line);
                        writeln!(
                            f,
                            "FOUND       {count} checkpoints from line {from} to line {to} have a signature \
                             that is not good"
                        )?;
                    }
                }
                _ => writeln!(f, "FOUND       {finding}")?,
            }
        }
        if !bad.is_empty() {
            writeln!(
                f,
                "next        after `recovery reseal` (`resealed` in the trail) another key signs: give the \
                 public key of every generation, --public-key OLD.pem --public-key NEW.pem"
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line;
        match &self.kind {
            FindingKind::Flipped => write!(f, "line {line} was changed")?,
            FindingKind::Unreadable => write!(f, "line {line} is not a line of a trail")?,
            FindingKind::Dropped { to } if *to == line => write!(f, "line {line} is missing")?,
            FindingKind::Dropped { to } => write!(f, "lines {line} to {to} are missing")?,
            FindingKind::MissingFile { to, behind: None } => {
                write!(f, "the file or files with lines {line} to {to} are missing")?;
            }
            FindingKind::MissingFile { to, behind: Some(file) } => write!(
                f,
                "lines {line} to {to} are missing: whole files, or the end of {}",
                file.escape_debug()
            )?,
            FindingKind::Unlinked => write!(
                f,
                "line {line} does not follow from the one before it: line {} or line {line} was changed",
                line.saturating_sub(1)
            )?,
            FindingKind::Reordered => write!(f, "line {line} stands in the wrong place")?,
            FindingKind::Repeated => write!(f, "line {line} is there more than once")?,
            FindingKind::Spliced { trail } => {
                write!(
                    f,
                    "line {line} was brought in from another trail ({})",
                    trail.escape_debug()
                )?;
            }
            FindingKind::Truncated { last } => write!(
                f,
                "the trail ends at line {last}, but line {line} is known: its end was cut off, or an older copy put back, perhaps by `backup restore` of a backup from before (`restored` and `left-behind` in the trail say so)"
            )?,
            FindingKind::Torn => write!(f, "line {line} has no end")?,
            FindingKind::RolledBack => write!(
                f,
                "line {line} is not the one that is known: an older copy went on, or it was written anew"
            )?,
            FindingKind::Rewritten { covers } => write!(
                f,
                "the checkpoint in line {line} vouches for another line {covers}: lines before it were written anew"
            )?,
            FindingKind::BadSignature => {
                write!(f, "the signature of the checkpoint in line {line} is not good")?;
            }
            FindingKind::BadCheckpoint => {
                write!(f, "the checkpoint in line {line} covers no line that is there")?;
            }
            FindingKind::IntentWithoutOutcome => {
                write!(f, "the intent in line {line} has no outcome")?;
            }
            FindingKind::Unproven => write!(
                f,
                "no checkpoint is signed by the given key, and no known head was given: all of it may be forged"
            )?,
            FindingKind::CheckpointUnlinked { number, previous } => write!(
                f,
                "the checkpoint in line {line} follows number {previous}, and the one before it here is number \
                 {number}: signed ones were taken away, and lines before it may have been written anew"
            )?,
            FindingKind::OutcomeWithoutIntent { of } => {
                write!(f, "the outcome in line {line} is of line {of}, which is no open intent")?;
            }
        }
        match &self.place {
            Some(Place { file, row }) => {
                let is_missing = matches!(
                    self.kind,
                    FindingKind::Dropped { .. } | FindingKind::MissingFile { .. }
                );
                let before = if is_missing { "before " } else { "" };
                write!(f, " ({}, {before}row {row})", file.escape_debug())
            }
            None => Ok(()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "trail       {}", self.trail.as_deref().unwrap_or("-").escape_debug())?;
        writeln!(f, "lines       {} in {} files", self.lines, self.files)?;
        if let Some(last) = &self.last {
            writeln!(f, "head        {last}")?;
        }
        writeln!(f, "checkpoints {}, covering up to line {}", self.checkpoints, self.covered)?;
        if self.uncovered > 0 {
            writeln!(f, "not yet covered by a signature: {} lines", self.uncovered)?;
        }
        if self.under_way > 0 {
            writeln!(f, "under way   {} deeds", self.under_way)?;
        }
        self.fmt_findings(f)?;
        if self.further_findings > 0 {
            writeln!(f, "FOUND       {} more", self.further_findings)?;
        }
        for ReplacedCheckpoints { line, from, to } in &self.replaced {
            writeln!(
                f,
                "accepted    checkpoints {from} to {to} were replaced by what stands before line {line}: an \
                 operator accepted an older trail (`rollback-accepted`)"
            )?;
        }
        let behind = self.last.map_or(0, |last| last.seq).saturating_sub(self.proven);
        match (self.judgement(), behind) {
            (Judgement::NotSound, _) => writeln!(f, "NOT SOUND"),
            (Judgement::UnsignedTail, _) => writeln!(
                f,
                "UNSIGNED TAIL: sound up to line {}; the {behind} lines behind it have no signature and may be \
                 forged",
                self.proven
            ),
            (Judgement::Sound, 0) => writeln!(f, "sound"),
            (Judgement::Sound, _) => writeln!(
                f,
                "sound up to line {}; the {behind} lines behind it are chained, and not proved",
                self.proven
            ),
        }
    }
}
