//! `strongroom audit …`: the trail, as the daemon shows it.

use std::collections::VecDeque;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueHint};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::Session;
use super::audit_export::Export;
use super::audit_rows::{self, Rows};
use super::audit_verify::Verify;
use super::client;
use super::house;
use super::output::Output;
use super::problem::Failure;
use super::{users, when};
use crate::audit::Head;
use crate::policy::{Action, Resource};

/// Lines asked for at a time.
pub const PAGE: u64 = 500;

/// How many of the last operations, or lines for programs, are shown where nothing else is asked for.
const LAST: usize = 50;

/// How many lines an operation has at most.
const LINES_EACH: usize = 2;

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

/// Show the audit log, one row per operation: the last 50, or those that are asked for
///
/// A row joins the intent and the outcome of an operation; SEQ has the numbers of both lines. An event or a
/// refusal has one line.
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom audit show                  the last 50 operations
  strongroom audit show --all            the whole audit log
  strongroom audit show --since 2h --user alice
  strongroom audit show --since yesterday --until today
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
    /// At most this many operations (lines, with --output json), from the beginning or from --after on
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    window: Window,
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
    pub action: Option<String>,
    /// Only this caller: unix:1000
    #[arg(long, value_name = "CALLER", value_parser = caller)]
    pub caller: Option<String>,
    /// Only this user, by name or uid
    #[arg(long, value_name = "USER", value_parser = users::user, conflicts_with = "caller")]
    #[arg(value_hint = ValueHint::Username)]
    pub user: Option<String>,
    /// Only this resource: key/payments
    #[arg(long, value_name = "RESOURCE", value_parser = house::resource)]
    pub resource: Option<Resource>,
}

impl Filter {
    /// Whether every line passes.
    fn is_open(&self) -> bool {
        matches!(self, Self { action: None, caller: None, user: None, resource: None })
    }
}

/// From when to when; see [`when`].
#[derive(Args, Default, Clone, Copy)]
pub struct Window {
    /// Only what was written at this time or later: RFC 3339, a local date or time, today, yesterday, 2h, 3d
    #[arg(long, value_name = "TIME", value_parser = when::when)]
    pub since: Option<Timestamp>,
    /// Only what was written at this time or earlier
    #[arg(long, value_name = "TIME", value_parser = when::when)]
    pub until: Option<Timestamp>,
}

impl Window {
    pub fn is_open(&self) -> bool {
        self.since.is_none() && self.until.is_none()
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
        let Self { all, after, limit, filter, window } = &self;
        let is_open = filter.is_open() && window.is_open();
        if !all && after.is_none() && limit.is_none() && is_open {
            return self.last(session);
        }
        let mut left = self.limit.unwrap_or(u64::MAX);
        let mut after = Some(self.after.unwrap_or(0));
        let (mut rows, mut headings) = (Rows::default(), true);
        while let Some(from) = after.filter(|_| left > 0) {
            let wanted = if session.out.is_json() { left.min(PAGE) } else { PAGE };
            let (page, _) = page(session, from, wanted, (filter, *window))?;
            after = page.next.filter(|&next| next > from);
            if session.out.is_json() {
                exact(&session.out, &page.lines)?;
                left = left.saturating_sub(page.lines.len() as u64);
                continue;
            }
            page.lines.iter().for_each(|line| rows.take(value(line)));
            let mut ready = rows.ready();
            if after.is_none() {
                ready.extend(rows.rest());
            }
            ready.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left = left.saturating_sub(ready.len() as u64);
            session.out.text(&audit_rows::text(&ready, std::mem::take(&mut headings)))?;
        }
        Ok(())
    }

    fn last(&self, session: &Session) -> Result<(), Failure> {
        let lines = if session.out.is_json() { LAST } else { LAST * LINES_EACH };
        let (last, _) = last_lines(session, &mut Ours::default(), lines, &self.filter)?;
        let mut is_all =
            last.first().and_then(|line| sequence(line)).is_none_or(|first| first <= 1);
        if session.out.is_json() {
            exact(&session.out, &last)?;
        } else {
            let mut rows = Rows::default();
            last.iter().for_each(|line| rows.take(value(line)));
            let rows = rows.rest();
            let from = rows.len().saturating_sub(LAST);
            is_all &= from == 0;
            session.out.text(&audit_rows::text(rows.get(from..).unwrap_or_default(), true))?;
        }
        if !is_all {
            session.out.note(&format!("the last {LAST} operations; --all shows all of them"));
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
            let (page, id) = match page(session, after, PAGE, (&self.filter, Window::default())) {
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
        let (page, id) = page(session, from, PAGE, (filter, Window::default()))?;
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
    (filter, window): (&Filter, Window),
) -> Result<(Page, Option<String>), Failure> {
    let mut path = format!("/v1/audit?after={after}&limit={limit}");
    let resource = filter.resource.as_ref().map(Resource::path);
    let [since, until] = [window.since, window.until].map(|time| time.map(|time| time.to_string()));
    let caller = filter.caller.clone().or_else(|| filter.user.clone());
    for (name, value) in [
        ("action", &filter.action),
        ("caller", &caller),
        ("resource", &resource),
        ("since", &since),
        ("until", &until),
    ] {
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

pub(super) fn sequence(line: &RawValue) -> Option<u64> {
    let value: Value = serde_json::from_str(line.get()).ok()?;
    value.get("seq")?.as_u64()
}

/// Prints lines as they are for programs, each in columns for people.
fn print(out: &Output, lines: &[Box<RawValue>], headings: bool) -> Result<(), Failure> {
    if out.is_json() {
        return exact(out, lines);
    }
    let rows: Vec<Vec<String>> =
        lines.iter().flat_map(|line| audit_rows::single(value(line))).collect();
    out.text(&audit_rows::text(&rows, headings))
}

fn exact(out: &Output, lines: &[Box<RawValue>]) -> Result<(), Failure> {
    let text: String = lines.iter().map(|line| format!("{}\n", line.get())).collect();
    out.exact(&text)
}

fn value(line: &RawValue) -> Value {
    serde_json::from_str(line.get()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

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
