//! `strongroom audit export`: the trail in one file, in the bytes that are hashed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::Session;
use super::audit::{Filter, PAGE, Window, page, sequence};
use super::problem::Failure;
use super::users;

/// Write the whole trail into a file, for an auditor who has no daemon
#[derive(Args)]
#[command(after_help = "Example:
  strongroom audit export --to trail.jsonl --public-key trail.pem
  strongroom audit verify trail.jsonl --public-key trail.pem --in-use
The export ends where its own asking begins; --in-use says that others' deeds were under way meanwhile.
Check the public key by another way than the one the trail came.
With --since or --until it has the lines of that time and those up to the next checkpoint, which signs them: verify it
with --partial --in-use. With --user it has that user's lines alone, which prove nothing without the others.")]
pub struct Export {
    /// The file to write, or a directory to write trail.jsonl into; nothing is overwritten
    #[arg(long, value_name = "FILE|DIR", value_hint = ValueHint::AnyPath)]
    to: PathBuf,
    /// Write the public key of the trail's signatures here
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    public_key: Option<PathBuf>,
    /// Only this user's lines, by name or uid: a list to read, which cannot be verified
    #[arg(long, value_name = "USER", value_parser = users::user, value_hint = ValueHint::Username)]
    user: Option<String>,
    #[command(flatten)]
    window: Window,
}

impl Export {
    pub(super) fn run(self, session: &Session) -> Result<(), Failure> {
        let path = if self.to.is_dir() { self.to.join("trail.jsonl") } else { self.to };
        let mut file = BufWriter::new(create(&path)?);
        let mut written = Written::default();
        let filter = Filter { user: self.user.clone(), ..Filter::default() };
        // Of one user's lines the file has just these; else what is in it must be a chain.
        let window = if self.user.is_some() { self.window } else { Window::default() };
        let mut end = End::at(self.window.until.filter(|_| self.user.is_none()));
        let mut after = match self.window.since {
            Some(_) if self.user.is_none() => before_the_first(session, self.window)?,
            _ => Some(0),
        };
        while let Some(from) = after.filter(|_| !end.is_reached) {
            let (page, id) = page(session, from, PAGE, (&filter, window))?;
            written.ours.extend(id);
            for line in &page.lines {
                if !end.has(line) {
                    break;
                }
                written.note(line);
                file.write_all(line.get().as_bytes())
                    .and_then(|()| file.write_all(b"\n"))
                    .map_err(|error| unwritable(&path, &error))?;
            }
            after = page.next.filter(|&next| next > from);
        }
        let (lines, bytes) = written.settled();
        file.into_inner()
            .map_err(|error| error.into_error())
            .and_then(|file| file.set_len(bytes).and_then(|()| file.sync_all()))
            .map_err(|error| unwritable(&path, &error))?;
        session.out.note(&format!("{lines} lines in {}", path.display()));
        if let Some(path) = &self.public_key {
            let reply = session.client.get("/v1/audit/public-key")?;
            create(path)?.write_all(&reply.body).map_err(|error| unwritable(path, &error))?;
            session.out.note(&format!("the public key in {}", path.display()));
        }
        match session.out.is_json() {
            true => session.out.document(&document(&path, lines, self.public_key.as_deref())),
            false => Ok(()),
        }
    }
}

/// The number of the line before the first one of this time; `None` where there is none of it.
fn before_the_first(session: &Session, window: Window) -> Result<Option<u64>, Failure> {
    let mut after = Some(0);
    while let Some(from) = after {
        let (page, _) = page(session, from, 1, (&Filter::default(), window))?;
        if let Some(first) = page.lines.first().and_then(|line| sequence(line)) {
            return Ok(Some(first.saturating_sub(1)));
        }
        after = page.next.filter(|&next| next > from);
    }
    Ok(None)
}

/// Where a part ends: with the first checkpoint that covers the last line of its time.
struct End {
    until: Option<Timestamp>,
    /// The last line of that time, once a later one was seen.
    last: Option<u64>,
    seen: u64,
    is_reached: bool,
}

impl End {
    fn at(until: Option<Timestamp>) -> Self {
        Self { until, last: None, seen: 0, is_reached: false }
    }

    /// Whether the line still belongs to it.
    fn has(&mut self, line: &RawValue) -> bool {
        #[derive(Deserialize)]
        struct Of {
            seq: u64,
            time: Timestamp,
            covers: Option<u64>,
        }
        let Some(until) = self.until else { return true };
        if self.is_reached {
            return false;
        }
        let Ok(Of { seq, time, covers }) = serde_json::from_str(line.get()) else { return true };
        if self.last.is_none() && time > until {
            self.last = Some(self.seen);
        }
        self.seen = seq;
        self.is_reached = self.last.is_some_and(|last| covers.is_some_and(|covers| covers >= last));
        true
    }
}

/// What was written, for programs.
fn document(path: &Path, lines: u64, public_key: Option<&Path>) -> Value {
    let mut document = json!({ "file": path, "lines": lines });
    if let Some(public_key) = public_key {
        document["public_key"] = json!(public_key);
    }
    document
}

/// What has been written, and the marks that this export left in the trail itself: its last request is
/// still under way while it reads, and would look like a deed without an outcome.
#[derive(Default)]
struct Written {
    ours: BTreeSet<String>,
    lines: u64,
    bytes: u64,
    marks: Vec<Mark>,
}

/// A line of one of our own requests, and what had been written before it.
struct Mark {
    request: String,
    is_intent: bool,
    lines: u64,
    bytes: u64,
}

impl Written {
    fn note(&mut self, line: &RawValue) {
        #[derive(Deserialize)]
        struct Of {
            kind: String,
            request: Option<String>,
        }
        let of: Option<Of> = serde_json::from_str(line.get()).ok();
        if let Some(Of { kind, request: Some(request) }) = of
            && self.ours.contains(&request)
        {
            let is_intent = kind == "intent";
            let (lines, bytes) = (self.lines, self.bytes);
            self.marks.push(Mark { request, is_intent, lines, bytes });
        }
        self.lines += 1;
        self.bytes += line.get().len() as u64 + 1;
    }

    /// The longest beginning, in lines and bytes, in which each of our own requests has its outcome.
    fn settled(&self) -> (u64, u64) {
        let (mut lines, mut bytes) = (self.lines, self.bytes);
        loop {
            let within = || self.marks.iter().filter(|mark| mark.lines < lines);
            let is_open = |intent: &&Mark| {
                intent.is_intent
                    && !within().any(|mark| !mark.is_intent && mark.request == intent.request)
            };
            match within().find(is_open) {
                Some(open) => (lines, bytes) = (open.lines, open.bytes),
                None => return (lines, bytes),
            }
        }
    }
}

/// A new file, private to this user; what is there is never overwritten.
fn create(path: &Path) -> Result<File, Failure> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(
        format!("{} cannot be written: {error}", path.display()),
        "choose a path that is free and that this user may write",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(lines: &[(&str, &str)]) -> u64 {
        let mut written = Written::default();
        written.ours.extend(["a".to_owned(), "b".to_owned()]);
        for (kind, request) in lines {
            let line = format!(r#"{{"kind":"{kind}","request":"{request}"}}"#);
            written.note(&RawValue::from_string(line).unwrap());
        }
        let (lines, bytes) = written.settled();
        assert_eq!(lines == written.lines, bytes == written.bytes);
        lines
    }

    #[test]
    fn an_export_ends_before_its_own_open_request() {
        let (intent, outcome) = ("intent", "outcome");
        assert_eq!(settled(&[(intent, "a"), (outcome, "a"), (intent, "b"), (intent, "x")]), 2);
        assert_eq!(settled(&[(intent, "x"), (intent, "a"), (intent, "b"), (outcome, "a")]), 1);
        assert_eq!(settled(&[(intent, "a"), (intent, "b"), (outcome, "a"), (outcome, "b")]), 4);
    }

    #[test]
    fn deeds_of_others_are_never_cut_off_for_being_open() {
        assert_eq!(settled(&[("intent", "x"), ("event", "y"), ("intent", "z")]), 3);
    }
}
