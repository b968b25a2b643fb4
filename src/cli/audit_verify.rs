//! `strongroom audit verify`: the files of a trail and a public key, and nothing else.

use std::fs::File;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueHint};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::audit::Window;
use super::audit_rows::{self, Rows};
use super::input::Source;
use super::output::Output;
use super::problem::Failure;
use super::users;
use crate::audit::{
    Expectations, Filter, FindingKind, Head, Judgement, Line, Report, VerifyError, VerifyKey,
    verify_opened, verify_seen,
};
use crate::sandbox::{self, Needs, User, trusted};

/// Verify a trail offline, from its files and the public key of its signatures
///
/// Names what was flipped, dropped, reordered, cut off, rolled back or brought in from elsewhere, checkpoints
/// that were taken away, and intents without an outcome; exits with 1 when there is any of it, or where
/// nothing at all is proved. Lines after the last checkpoint are proved only by a head that was kept elsewhere
/// (--head): `strongroom status` shows the newest. Where more than --most-unproven lines stand there, the
/// verdict is "unsigned-tail" and the exit code 4: what stands before them is sound, and they may be forged.
#[derive(Args)]
#[command(group = ArgGroup::new("trail").required(true).args(["dir", "files"]))]
#[command(after_help = "Examples:
  strongroom audit verify --dir /var/lib/strongroom/trail --public-key trail.pem --in-use
  strongroom audit verify trail.jsonl --public-key trail.pem --head 4711:9f86…
  strongroom audit verify --dir copy --public-key trail.pem --user alice --since 2d
The first two verify all lines that are given. --user, --since and --until verify them all, too, and show those of one
user or time as `audit show` does.")]
pub struct Verify {
    /// The files of the trail, or of an export, in their order
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    files: Vec<PathBuf>,
    /// The directory of the trail
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// The public key of the trail's signatures, PEM; one for each generation
    #[arg(long, value_name = "FILE", required = true, value_hint = ValueHint::FilePath)]
    public_key: Vec<PathBuf>,
    /// A line and its hash that are known from elsewhere; may be given several times
    #[arg(long, value_name = "SEQ:HASH")]
    head: Vec<Head>,
    /// The trail was in use when it was read: deeds of its last five minutes may still be under way
    #[arg(long)]
    in_use: bool,
    /// It need not begin with line 1: older files were put away
    #[arg(long)]
    partial: bool,
    /// So many lines may stand at the end without a signature or known head behind them, for the trail to be
    /// called sound
    #[arg(long, value_name = "LINES", default_value_t = Expectations::MOST_UNPROVEN)]
    most_unproven: u64,
    /// Show the operations of this user, by name or uid, besides: the whole audit log is verified
    #[arg(long, value_name = "USER", value_parser = users::user, value_hint = ValueHint::Username)]
    user: Option<String>,
    /// Show the operations of this time: as `audit show` does, and the whole audit log is verified
    #[command(flatten)]
    window: Window,
}

impl Verify {
    pub(super) fn run(self, out: &Output) -> Result<(), Failure> {
        let keys: Vec<VerifyKey> =
            self.public_key.iter().map(|path| key(path)).collect::<Result<_, _>>()?;
        let expectations = Expectations {
            known: self.head,
            in_use: self.in_use,
            partial: self.partial,
            most_unproven: self.most_unproven,
        };
        let mut selected = Selected::of(self.user, self.window);
        // Nothing can be looked up once the process is shut in.
        users::remember();
        let report = match &self.dir {
            Some(dir) => {
                become_owner(dir)?;
                shut_in(vec![dir.clone()])?;
                verify_seen(dir, &keys, &expectations, &mut |line| selected.see(line))
            }
            None => {
                let files = open_as_owners(&self.files)?;
                shut_in(Vec::new())?;
                verify_opened(files, &keys, &expectations, &mut |line| selected.see(line))
            }
        };
        let report = report.map_err(|error: VerifyError| {
            let next = match error {
                VerifyError::Compressed { .. } => "with -k the compressed file stays beside it",
                _ => "check the path and who may read it",
            };
            Failure::failed(error.to_string(), next)
        })?;
        tell(out, &report, &selected)?;
        let only_open = report.findings.iter().all(|finding| {
            matches!(finding.kind, FindingKind::IntentWithoutOutcome | FindingKind::Torn)
        });
        if report.judgement() == Judgement::UnsignedTail {
            out.note(
                "in use: verify again once a checkpoint is written (within [audit] checkpoint_seconds), or \
                 give the newest head that is known from elsewhere with --head",
            );
        }
        if report.judgement() == Judgement::NotSound && only_open && !self.in_use {
            out.note(
                "if the trail was in use when it was read, --in-use allows for deeds under way",
            );
        }
        match report.judgement() {
            Judgement::Sound => Ok(()),
            Judgement::UnsignedTail => Err(Failure::ToldInPart),
            Judgement::NotSound => Err(Failure::Told),
        }
    }
}

/// Root reads a lesser user's directory as that user, who can lead it nowhere else then.
fn become_owner(path: &Path) -> Result<(), Failure> {
    let user = trusted::user_of(path).map_err(unfit)?;
    user.assume().map_err(unfit)
}

/// Opens files that may be several users': first those that are this process's own to read, then, as their
/// owner, those of one other.
fn open_as_owners(paths: &[PathBuf]) -> Result<Vec<(PathBuf, File)>, Failure> {
    let users: Vec<User> =
        paths.iter().map(|path| trusted::user_of(path).map_err(unfit)).collect::<Result<_, _>>()?;
    let mut opened: Vec<Option<File>> = Vec::new();
    for (path, user) in paths.iter().zip(&users) {
        opened.push(if user.is_current() { Some(open(path)?) } else { None });
    }
    if let Some(user) = users.iter().find(|user| !user.is_current()) {
        user.assume().map_err(unfit)?;
    }
    let files = paths.iter().zip(opened).map(|(path, file)| {
        let file = match file {
            Some(file) => file,
            None => open(path)?,
        };
        Ok((path.clone(), file))
    });
    files.collect()
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|error| {
        let what = format!("{} cannot be read: {error}", path.display());
        Failure::failed(what, "check the path and who may read it")
    })
}

/// What is read may be anybody's work: this process opens nothing else any more.
fn shut_in(read: Vec<PathBuf>) -> Result<(), Failure> {
    let needs = Needs { read, ..Needs::default() };
    sandbox::enter(&sandbox::Settings::default(), &needs).map_err(unfit)?;
    Ok(())
}

fn unfit(error: impl std::fmt::Display) -> Failure {
    Failure::failed(
        error.to_string(),
        "mend what it names, or run it as the user whose files they are",
    )
}

/// Lines that are to be shown besides.
struct Selected {
    user: Option<String>,
    window: Window,
    lines: Vec<Box<RawValue>>,
    left_out: u64,
}

impl Selected {
    /// So many are shown at most.
    const MOST: usize = 100_000;

    fn of(user: Option<String>, window: Window) -> Self {
        Self { user, window, lines: Vec::new(), left_out: 0 }
    }

    fn is_wanted(&self) -> bool {
        self.user.is_some() || !self.window.is_open()
    }

    fn see(&mut self, line: &[u8]) {
        if !self.is_wanted() {
            return;
        }
        let filter = Filter {
            caller: self.user.clone(),
            since: self.window.since,
            until: self.window.until,
            ..Filter::default()
        };
        let text = Line::read(line)
            .filter(|line| filter.takes(line))
            .and_then(|_| RawValue::from_string(std::str::from_utf8(line).ok()?.to_owned()).ok());
        match text {
            Some(text) if self.lines.len() < Self::MOST => self.lines.push(text),
            Some(_) => self.left_out += 1,
            None => {}
        }
    }

    /// One row per operation.
    fn text(&self) -> String {
        let mut rows = Rows::default();
        for line in &self.lines {
            rows.take(serde_json::from_str(line.get()).unwrap_or_default());
        }
        let rows = rows.rest();
        let mut text = audit_rows::text(&rows, true);
        if self.left_out > 0 {
            text += &format!("{} more lines: narrow it with --since and --until\n", self.left_out);
        }
        text + "\n"
    }
}

/// A report and what it comes to, for programs.
#[derive(Serialize)]
struct Told<'a> {
    verdict: Judgement,
    #[serde(flatten)]
    report: &'a Report,
    /// The lines that were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    selected: Option<Vec<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    selected_left_out: Option<u64>,
}

fn tell(out: &Output, report: &Report, selected: &Selected) -> Result<(), Failure> {
    if out.is_json() {
        let verdict = report.judgement();
        let lines = || {
            let lines = selected.lines.iter().map(|line| serde_json::from_str(line.get()));
            lines.map(Result::unwrap_or_default).collect()
        };
        let is_wanted = selected.is_wanted();
        let (selected, selected_left_out) = match is_wanted {
            true => (Some(lines()), Some(selected.left_out)),
            false => (None, None),
        };
        return out.document(&serde_json::json!(Told {
            verdict,
            report,
            selected,
            selected_left_out
        }));
    }
    if selected.is_wanted() {
        out.text(&selected.text())?;
    }
    let text = match &report.last {
        Some(_) => report.to_string(),
        None => without_lines(report),
    };
    out.text(&text)
}

/// What is said of a trail without a single sound line: what was found instead of it.
fn without_lines(report: &Report) -> String {
    let mut text = "no lines\n".to_owned();
    for finding in &report.findings {
        text += &format!("FOUND       {finding}\n");
    }
    if report.further_findings > 0 {
        text += &format!("FOUND       {} more\n", report.further_findings);
    }
    text + if report.is_sound() { "sound\n" } else { "NOT SOUND\n" }
}

fn key(path: &Path) -> Result<VerifyKey, Failure> {
    let bytes = Source::File(path.to_owned()).bytes()?;
    let pem = std::str::from_utf8(&bytes).unwrap_or_default();
    VerifyKey::from_pem(pem).map_err(|error| {
        Failure::failed(
            format!("{}: {error}", path.display()),
            "fetch it with `strongroom audit public-key`, and compare it with the one you kept",
        )
    })
}
