//! What goes to stdout: aligned tables and facts for people, JSON for programs, secrets as raw bytes.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;

use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::client::Reply;
use super::escape::{drives, plain_json, plain_lines};
use super::problem::Failure;
use super::{paint, users};
use crate::service::{size, span};

pub use super::escape::plain;

/// For whom the output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// For programs: the daemon's own documents
    Json,
}

/// stdout in the chosen format.
pub struct Output {
    format: Format,
}

impl Output {
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes lines of text for people: whatever they were made of, they do not drive a terminal.
    pub fn text(&self, text: &str) -> Result<(), Failure> {
        let harmless = plain_lines(text);
        match paint::is_wanted(&std::io::stdout()) {
            true => self.bytes(paint::painted(&harmless).as_bytes()),
            false => self.bytes(harmless.as_bytes()),
        }
    }

    /// Writes JSON whose very bytes count, such as lines that are hashed; a terminal gets it in a form that
    /// does not drive it.
    pub fn exact(&self, text: &str) -> Result<(), Failure> {
        match std::io::stdout().is_terminal() {
            true => self.bytes(plain_json(text).as_bytes()),
            false => self.bytes(text.as_bytes()),
        }
    }

    /// Writes one JSON document and a newline.
    pub fn document(&self, value: &Value) -> Result<(), Failure> {
        self.bytes(plain_json(&format!("{value:#}\n")).as_bytes())
    }

    /// A reply in the chosen format: the document itself, or what `text` makes of it.
    pub fn reply(&self, reply: &Reply, text: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
        let value = reply.value()?;
        if self.is_json() { self.document(&value) } else { self.text(&text(&value)) }
    }

    /// Writes secret bytes to stdout, unbuffered and exactly; a terminal gets a line's end after them, and
    /// what would drive it as an escape.
    pub fn secret(&self, bytes: &[u8]) -> Result<(), Failure> {
        let stdout = std::io::stdout();
        let mut copy = Zeroizing::new(Vec::with_capacity(bytes.len() + 1));
        if stdout.is_terminal() {
            // Six bytes stand for one at most: it never moves, so no copy of it stays behind.
            copy.reserve_exact(bytes.len() * 10 + 1);
            let escaped = escape_secret(bytes, &mut copy);
            if !bytes.ends_with(b"\n") {
                copy.push(b'\n');
            }
            if escaped {
                self.note("it holds bytes that would drive the terminal, shown as escapes: redirect it to have them exactly");
            }
        } else {
            copy.extend_from_slice(bytes);
        }
        let descriptor = stdout.as_fd().try_clone_to_owned().map_err(Failure::Output)?;
        File::from(descriptor).write_all(&copy).map_err(Failure::Output)
    }

    /// Writes bytes that are no secret, as they are.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Failure::Output)
    }

    /// Writes a JSON document with a secret in it as it came.
    pub fn secret_document(&self, document: &[u8]) -> Result<(), Failure> {
        let mut line = Zeroizing::new(Vec::with_capacity(document.len() + 1));
        line.extend_from_slice(document);
        line.push(b'\n');
        self.secret(&line)
    }

    /// A remark for people, on stderr; a program hears nothing of it.
    pub fn note(&self, text: &str) {
        if !self.is_json() {
            let _ = writeln!(std::io::stderr(), "{}", plain(text));
        }
    }
}

/// Text of a secret as a terminal may have it; says whether that is another one.
fn escape_secret(bytes: &[u8], to: &mut Vec<u8>) -> bool {
    let mut escaped = false;
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if drives(character) && !matches!(character, '\n' | '\t') {
                escaped = true;
                let escape = character.escape_default();
                to.extend(escape.map(|character| character as u8));
            } else {
                to.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        for byte in chunk.invalid() {
            escaped = true;
            to.extend(std::ascii::escape_default(*byte));
        }
    }
    escaped
}

/// Rows under headings, each column as wide as its widest cell.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|heading| heading.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut out = line(&mut headings.iter().copied());
    for row in rows {
        out += &line(&mut row.iter().map(String::as_str));
    }
    out
}

/// The members of an object, one a line; objects inside are indented, lists of objects are tables.
pub fn facts(value: &Value) -> String {
    let Value::Object(members) = value else { return format!("{}\n", cell("", value)) };
    let now = Timestamp::now();
    let headings = members.iter().map(|(name, value)| heading(name, value).chars().count());
    let width = headings.max().unwrap_or(0) + 2;
    let mut out = String::new();
    for (name, value) in members {
        let heading = heading(name, value);
        let inner = match value {
            Value::Object(object) if !object.is_empty() => facts(value),
            Value::Array(rows) if rows.iter().any(Value::is_object) => rows_of(rows),
            _ => {
                let text = humane(name, value, now).unwrap_or_else(|| cell(name, value));
                out += &format!("{heading:width$}{text}\n");
                continue;
            }
        };
        out += &format!("{heading}\n");
        for line in inner.lines() {
            out += &format!("  {line}\n");
        }
    }
    out
}

/// A table of a list of objects: a column for every member that one of them has.
fn rows_of(rows: &[Value]) -> String {
    let objects: Vec<&Map<String, Value>> = rows.iter().filter_map(Value::as_object).collect();
    let mut names: Vec<&str> = Vec::new();
    for name in objects.iter().flat_map(|object| object.keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    columns(&names, rows)
}

/// A table of the named members of a list of objects; what an object does not have stays empty.
pub fn columns(names: &[&str], rows: &[Value]) -> String {
    let numbers = |name: &str| {
        let value = rows.iter().find_map(|row| row.get(name).filter(|value| !value.is_null()));
        value.cloned().unwrap_or_default()
    };
    let headings: Vec<String> =
        names.iter().map(|name| heading(name, &numbers(name)).to_uppercase()).collect();
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let shown = |name: &str, value: &Value| {
                measure(name, value).unwrap_or_else(|| cell(name, value))
            };
            names
                .iter()
                .map(move |name| row.get(name).map_or(String::new(), |value| shown(name, value)))
        })
        .map(Iterator::collect)
        .collect();
    table(&headings, &rows)
}

/// One value in one cell. Times are in UTC without fractions.
pub fn cell(name: &str, value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => match time(name, text) {
            Some(time) => time.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            None => users::with_name(text).as_deref().map_or_else(|| plain(text), plain),
        },
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| cell("", item)).collect();
            items.join(", ")
        }
        Value::Object(members) => {
            let members: Vec<String> = members
                .iter()
                .map(|(name, value)| format!("{}={}", plain(name), cell(name, value)))
                .collect();
            members.join(" ")
        }
        Value::Number(number) => number.to_string(),
    }
}

/// The name of a member as a heading; of a measure, without its unit.
fn heading(name: &str, value: &Value) -> String {
    let unit = ["_seconds", "_bytes"].into_iter().find(|unit| name.ends_with(unit));
    let name = match (unit, measure(name, value)) {
        (Some(unit), Some(_)) => name.strip_suffix(unit).unwrap_or(name),
        _ => name,
    };
    plain(&name.replace('_', " "))
}

/// A span of time or a size in words.
fn measure(name: &str, value: &Value) -> Option<String> {
    match value.as_u64()? {
        seconds if name.ends_with("_seconds") => Some(span(seconds)),
        bytes if name.ends_with("_bytes") => Some(size(bytes)),
        _ => None,
    }
}

/// A time and how far from now it is, or a measure.
fn humane(name: &str, value: &Value, now: Timestamp) -> Option<String> {
    if let Some(measure) = measure(name, value) {
        return Some(measure);
    }
    let time = time(name, value.as_str()?)?;
    Some(format!("{} ({})", cell(name, value), distance(time, now)))
}

/// Members that hold a time end in `_at` or are called `time`.
fn time(name: &str, text: &str) -> Option<Timestamp> {
    if name == "time" || name.ends_with("_at") { text.parse().ok() } else { None }
}

/// "3 days ago", "in 2 hours", "now".
fn distance(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second() - time.as_second();
    let (count, unit) = match seconds.abs() {
        0..=1 => return "now".to_owned(),
        s @ 2..=119 => (s, "second"),
        s @ 120..=7199 => (s / 60, "minute"),
        s @ 7200..=172_799 => (s / 3600, "hour"),
        s => (s / 86_400, "day"),
    };
    let unit = if count == 1 { unit.to_owned() } else { format!("{unit}s") };
    if seconds > 0 { format!("{count} {unit} ago") } else { format!("in {count} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_secret_does_not_drive_the_terminal_that_it_is_shown_on() {
        let mut shown = Vec::new();
        assert!(!escape_secret("p\u{e4}ss\n\tword".as_bytes(), &mut shown));
        assert_eq!(shown, "p\u{e4}ss\n\tword".as_bytes());
        shown.clear();
        assert!(escape_secret(b"a\x1b]0;x\x07\xffb", &mut shown));
        assert_eq!(shown, b"a\\u{1b}]0;x\\u{7}\\xffb");
    }

    #[test]
    fn columns_are_aligned_and_harmless() {
        let rows = [json!({"name": "a", "n": 1}), json!({"name": "long\u{1b}[1m", "x": 2})];
        let text = columns(&["name", "n"], &rows);
        assert_eq!(text, "NAME           N\na              1\nlong\\u{1b}[1m\n");
    }

    #[test]
    fn facts_show_what_is_nested() {
        let text = facts(&json!({
            "name": "k", "current_version": 2, "labels": {}, "none": null,
            "versions": [{"version": 1, "created_at": "2026-01-02T03:04:05.6Z"}],
            "store": {"open": true},
        }));
        let expected = "\
name             k
current version  2
labels           
none             
versions
  VERSION  CREATED AT
  1        2026-01-02 03:04:05Z
store
  open  yes
";
        assert_eq!(text, expected);
    }

    #[test]
    fn measures_are_for_people() {
        let text = facts(&json!({"uptime_seconds": 31_536_000, "store": {"free_bytes": 3 << 20}}));
        assert_eq!(
            text,
            "uptime  365 days\nstore   \n  free  3.0 MiB\n".replace("store   ", "store")
        );
        let table = columns(&["name", "wait_seconds"], &[json!({"name": "a", "wait_seconds": 90})]);
        assert_eq!(table, "NAME  WAIT\na     1 minute 30 seconds\n");
    }

    #[test]
    fn distances_read_well() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let at = |text: &str| distance(text.parse().unwrap(), now);
        assert_eq!(at("2026-01-02T00:00:00Z"), "now");
        assert_eq!(at("2026-01-01T23:59:00Z"), "60 seconds ago");
        assert_eq!(at("2026-01-01T00:00:00Z"), "24 hours ago");
        assert_eq!(at("2026-02-01T00:00:00Z"), "in 30 days");
    }
}
