//! `strongroom audit verify`: the files of a trail and a public key, and nothing else.

use std::fs::File;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueHint};
use serde::Serialize;

use super::input::Source;
use super::output::Output;
use super::problem::Failure;
use crate::audit::{
    Expectations, FindingKind, Head, Judgement, Report, VerifyError, VerifyKey, verify,
    verify_opened,
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
  strongroom audit verify trail.jsonl --public-key trail.pem --head 4711:9f86…")]
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
        let report = match &self.dir {
            Some(dir) => {
                become_owner(dir)?;
                shut_in(vec![dir.clone()])?;
                verify(dir, &keys, &expectations)
            }
            None => {
                let files = open_as_owners(&self.files)?;
                shut_in(Vec::new())?;
                verify_opened(files, &keys, &expectations)
            }
        };
        let report = report.map_err(|error: VerifyError| {
            Failure::failed(error.to_string(), "check the path and who may read it")
        })?;
        tell(out, &report)?;
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

/// A report and what it comes to, for programs.
#[derive(Serialize)]
struct Told<'a> {
    verdict: Judgement,
    #[serde(flatten)]
    report: &'a Report,
}

fn tell(out: &Output, report: &Report) -> Result<(), Failure> {
    if out.is_json() {
        let verdict = report.judgement();
        return out.document(&serde_json::json!(Told { verdict, report }));
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
