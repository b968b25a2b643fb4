//! `strongroom audit …`: the trail, as the daemon shows it.

use std::collections::VecDeque;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::Session;
use super::audit_export::Export;
use super::audit_verify::Verify;
use super::client;
use super::house;
use super::output::{Output, cell, plain, table};
use super::problem::Failure;
use crate::audit::Head;
use crate::policy::{Action, Resource};

/// Lines asked for at a time.
pub const PAGE: u64 = 500;

/// How many of the last lines are shown where nothing else is asked for.
const LAST: usize = 50;

/// Show, follow, export and verify the trail
#[derive(Subcommand)]
pub enum Audit {
    Show(Show),
    Tail(Tail),
    Export(Export),
    /// Print the public key of the trail's signatures, PEM
    PublicKey,
    Verify(Verify),
}

/// Show lines of the trail: the last 50, or those that are asked for
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom audit show                  the last 50 lines
  strongroom audit show --all            the whole trail
  strongroom audit show --resource key/payments --action key:decrypt
  strongroom audit show --after 1000 --limit 50 --output json
With --output json each line is one line of JSON, byte for byte as it stands in the trail.")]
pub struct Show {
    /// The whole trail; so it is with any of the options below, too, unless they say otherwise
    #[arg(long)]
    all: bool,
    /// Only lines after this one
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,
    /// At most this many, from the beginning or from --after on
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    #[command(flatten)]
    filter: Filter,
}

/// Follow the trail until ctrl-C
#[derive(Args)]
#[command(after_help = "Example:
  strongroom audit tail --resource secret/stripe
Lines about the asking itself are left out.")]
pub struct Tail {
    /// Begin after this line instead of with the last ones
    #[arg(long, value_name = "SEQ", conflicts_with = "lines")]
    after: Option<u64>,
    /// How many of the last lines to begin with
    #[arg(long, short = 'n', value_name = "N", default_value_t = 10)]
    lines: usize,
    /// How often to ask
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
    #[command(flatten)]
    filter: Filter,
}

/// Which lines.
#[derive(Args, Default)]
pub struct Filter {
    /// Only this action: key:decrypt
    #[arg(long, value_name = "ACTION")]
    #[arg(value_parser = PossibleValuesParser::new(Action::ALL.map(Action::as_str)))]
    action: Option<String>,
    /// Only this caller: unix:1000
    #[arg(long, value_name = "CALLER", value_parser = caller)]
    caller: Option<String>,
    /// Only this resource: key/payments
    #[arg(long, value_name = "RESOURCE", value_parser = house::resource)]
    resource: Option<Resource>,
}

impl Filter {
    /// Whether every line passes.
    fn is_open(&self) -> bool {
        matches!(self, Self { action: None, caller: None, resource: None })
    }
}

/// One page of the trail; a line stays the text it is, because its bytes are what is hashed.
#[derive(Deserialize)]
pub struct Page {
    pub lines: Vec<Box<RawValue>>,
    pub next: Option<u64>,
}

impl Audit {
    pub(super) fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Audit::Show(show) => show.run(session),
            Audit::Tail(tail) => tail.run(session),
            Audit::Export(export) => export.run(session),
            Audit::PublicKey => public_key(session),
            Audit::Verify(verify) => verify.run(&session.out),
        }
    }
}

fn public_key(session: &Session) -> Result<(), Failure> {
    let reply = session.client.get("/v1/audit/public-key")?;
    if session.out.is_json() {
        let pem = String::from_utf8_lossy(&reply.body);
        return session.out.document(&serde_json::json!({ "public_key": pem }));
    }
    session.out.text(&String::from_utf8_lossy(&reply.body))
}

impl Show {
    fn run(self, session: &Session) -> Result<(), Failure> {
        let Self { all, after, limit, filter } = &self;
        if !all && after.is_none() && limit.is_none() && filter.is_open() {
            let (last, _) = last_lines(session, &mut Ours::default(), LAST, filter)?;
            print(&session.out, &last, true)?;
            if last.first().and_then(|line| sequence(line)).is_some_and(|first| first > 1) {
                session.out.note(&format!("the last {LAST} lines; --all shows all of them"));
            }
            return Ok(());
        }
        let mut left = self.limit.unwrap_or(u64::MAX);
        let mut after = Some(self.after.unwrap_or(0));
        let mut first = true;
        while let Some(from) = after.filter(|_| left > 0) {
            let (page, _) = page(session, from, left.min(PAGE), &self.filter)?;
            print(&session.out, &page.lines, first)?;
            first = false;
            left = left.saturating_sub(page.lines.len() as u64);
            after = page.next.filter(|&next| next > from);
        }
        Ok(())
    }
}

impl Tail {
    fn run(self, session: &Session) -> Result<(), Failure> {
        let mut ours = Ours::default();
        let mut after = match self.after {
            Some(after) => after,
            None => {
                let (last, seen) = last_lines(session, &mut ours, self.lines, &self.filter)?;
                print(&session.out, &last, true)?;
                seen
            }
        };
        // A daemon that is started again goes on with the same trail.
        let mut is_away = false;
        loop {
            let (page, id) = match page(session, after, PAGE, &self.filter) {
                Err(failure) if failure.may_pass() => {
                    if !std::mem::replace(&mut is_away, true) {
                        session.out.note("the daemon does not answer; waiting for it");
                    }
                    std::thread::sleep(Duration::from_secs(self.every.max(1)));
                    continue;
                }
                other => other?,
            };
            if std::mem::take(&mut is_away) {
                session.out.note("the daemon answers again");
            }
            ours.remember(id);
            after = page.lines.iter().filter_map(|line| sequence(line)).fold(after, u64::max);
            after = page.next.map_or(after, |next| after.max(next));
            print(&session.out, &ours.without(page.lines), false)?;
            if page.next.is_none() {
                std::thread::sleep(Duration::from_secs(self.every));
            }
        }
    }
}

/// The last lines that pass the filter, and the number of the very last of the trail.
fn last_lines(
    session: &Session,
    ours: &mut Ours,
    lines: usize,
    filter: &Filter,
) -> Result<(Vec<Box<RawValue>>, u64), Failure> {
    let mut last: VecDeque<Box<RawValue>> = VecDeque::new();
    let mut seen = near_the_end(session, ours, lines, filter);
    let mut after = Some(seen);
    while let Some(from) = after {
        let (page, id) = page(session, from, PAGE, filter)?;
        ours.remember(id);
        seen = page.lines.iter().filter_map(|line| sequence(line)).fold(seen, u64::max);
        seen = page.next.map_or(seen, |next| seen.max(next));
        last.extend(ours.without(page.lines));
        while last.len() > lines {
            last.pop_front();
        }
        after = page.next.filter(|&next| next > from);
    }
    Ok((last.into(), seen))
}

/// From where to look for the last lines: near the head where every line counts, else, and where the head
/// is not told, from the beginning.
fn near_the_end(session: &Session, ours: &mut Ours, lines: usize, filter: &Filter) -> u64 {
    if !filter.is_open() {
        return 0;
    }
    let Ok(reply) = session.client.get("/v1/status") else { return 0 };
    ours.remember(reply.request_id.clone());
    let status = reply.value().unwrap_or_default();
    let head = status.pointer("/trail/head").and_then(|head| head.as_str()?.parse().ok());
    head.map_or(0, |head: Head| head.seq.saturating_sub(lines as u64))
}

/// Exchanges of our own: every one of them leaves lines in the trail.
#[derive(Default)]
struct Ours(VecDeque<String>);

impl Ours {
    fn remember(&mut self, id: Option<String>) {
        self.0.extend(id);
        while self.0.len() > 1000 {
            self.0.pop_front();
        }
    }

    fn without(&self, lines: Vec<Box<RawValue>>) -> Vec<Box<RawValue>> {
        let is_ours = |line: &RawValue| {
            #[derive(Deserialize)]
            struct Of {
                request: Option<String>,
            }
            let of: Option<Of> = serde_json::from_str(line.get()).ok();
            of.and_then(|of| of.request).is_some_and(|id| self.0.contains(&id))
        };
        lines.into_iter().filter(|line| !is_ours(line)).collect()
    }
}

/// One page, and the name of the exchange that brought it.
pub(super) fn page(
    session: &Session,
    after: u64,
    limit: u64,
    filter: &Filter,
) -> Result<(Page, Option<String>), Failure> {
    let mut path = format!("/v1/audit?after={after}&limit={limit}");
    let resource = filter.resource.as_ref().map(Resource::path);
    for (name, value) in
        [("action", &filter.action), ("caller", &filter.caller), ("resource", &resource)]
    {
        if let Some(value) = value {
            path += &format!("&{name}={}", client::query(value));
        }
    }
    let reply = session.client.get(&path)?;
    Ok((reply.parse()?, reply.request_id))
}

/// A caller as the trail names it: a namespace and a name within it; users are numbers there.
fn caller(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some(("unix", uid)) if uid.parse::<u32>().is_ok() => Ok(text.to_owned()),
        Some((space, name)) if !matches!(space, "" | "unix") && !name.is_empty() => {
            Ok(text.to_owned())
        }
        _ => Err("a caller is `unix:UID` (a number) or `system:PART`".to_owned()),
    }
}

fn sequence(line: &RawValue) -> Option<u64> {
    let value: Value = serde_json::from_str(line.get()).ok()?;
    value.get("seq")?.as_u64()
}

/// As wide as what mostly stands below them, so that the pages of a long trail line up.
const HEADINGS: [&str; 7] = [
    "SEQ     ",
    "TIME                ",
    "WHAT       ",
    "CALLER      ",
    "ACTION          ",
    "RESOURCE                ",
    "MORE",
];

/// Prints lines: as they are for programs, in columns for people.
fn print(out: &Output, lines: &[Box<RawValue>], headings: bool) -> Result<(), Failure> {
    if out.is_json() {
        let text: String = lines.iter().map(|line| format!("{}\n", line.get())).collect();
        return out.exact(&text);
    }
    let rows: Vec<Vec<String>> = lines
        .iter()
        .filter_map(|line| serde_json::from_str(line.get()).ok())
        .map(|line: Value| row(&line))
        .collect();
    let text = table(&HEADINGS, &rows);
    match text.split_once('\n') {
        Some((_, without)) if !headings => out.text(without),
        _ => out.text(&text),
    }
}

/// A line in columns; what has no column of its own stands in the last one.
fn row(line: &Value) -> Vec<String> {
    // Of use to a verifier or said in another column.
    const LEFT_OUT: [&str; 17] = [
        "seq",
        "time",
        "kind",
        "caller",
        "action",
        "resource",
        "result",
        "event",
        "prev",
        "trail",
        "request",
        "uid",
        "gid",
        "head",
        "at",
        "signer",
        "signature",
    ];
    let member = |name: &str| line.get(name).map(|value| cell(name, value));
    let what = member("result").or_else(|| member("event")).or_else(|| member("kind"));
    let more: Vec<String> = line
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| !LEFT_OUT.contains(&name.as_str()) && !value.is_null())
        .map(|(name, value)| format!("{}={}", plain(name), cell(name, value)))
        .collect();
    let columns = [
        member("seq"),
        member("time"),
        what,
        member("caller"),
        member("action"),
        member("resource"),
        Some(more.join(" ")),
    ];
    columns.into_iter().map(Option::unwrap_or_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_says_what_became_of_it() {
        let outcome = json!({"seq": 7, "time": "2026-01-02T03:04:05.000006Z", "prev": "00",
            "kind": "outcome", "of": 6, "caller": "unix:0", "action": "key:decrypt",
            "resource": "key/k", "result": "failed", "code": "decryption-failed"});
        let expected = [
            "7",
            "2026-01-02 03:04:05Z",
            "failed",
            "unix:0",
            "key:decrypt",
            "key/k",
            "of=6 code=decryption-failed",
        ];
        assert_eq!(row(&outcome), expected);
        assert_eq!(
            row(&json!({"kind": "event", "event": "start"})).get(2),
            Some(&"start".to_owned())
        );
        assert_eq!(row(&json!({"kind": "intent"})).get(2), Some(&"intent".to_owned()));
    }

    #[test]
    fn a_tail_leaves_out_its_own_asking() {
        let line = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        let mut ours = Ours::default();
        ours.remember(Some("rq-1".to_owned()));
        let lines = vec![line(r#"{"request":"rq-1"}"#), line(r#"{"request":"rq-2"}"#), line("{}")];
        let left: Vec<String> =
            ours.without(lines).iter().map(|line| line.get().to_owned()).collect();
        assert_eq!(left, [r#"{"request":"rq-2"}"#, "{}"]);
    }
}
