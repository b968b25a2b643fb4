//! The master key: its generations, a rotation to the next one, and the end of an old one.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Session;
use super::appliance::pin;
use super::client::Reply;
use super::dry_run::{self, DryRun};
use super::input::Source;
use super::key_state::days;
use super::output::{cell, columns, facts, plain};
use super::problem::Failure;
use super::progress::Progress;
use super::terminal;
use crate::key::WaitingPeriod;

/// Look at the master key's generations, rotate it, retire old ones, cancel that
#[derive(Subcommand)]
pub enum Master {
    Rotate(Rotate),
    /// Show the generations, how they stand in the token, and what lies under each
    Status,
    Retire(Retire),
    CancelRetirement(CancelRetirement),
}

/// Make a new master key in the token and rewrap everything under it, while service goes on
///
/// No private key is opened for it. It goes on by itself after a restart; run again, this command follows
/// the rotation that is under way. The old master key stays until it is retired.
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom master rotate              begins it and follows it to its end
  strongroom master rotate --no-wait    begins it; `strongroom master status` says how far it is")]
pub struct Rotate {
    /// Do not wait for its end
    #[arg(long)]
    no_wait: bool,
    /// Also within an hour after the last rotation, which is refused otherwise
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    dry: DryRun,
}

/// Have an old master key destroyed in the token, for good, after a waiting period
///
/// Until the period is over, `master cancel-retirement` keeps it; `master status` and `status` show when that is.
/// With the token's PIN it does not wait for that; custody has a waiting period of its own
/// (`master_destroy_wait_days` under `[custody]`), from the day on that the key went out of use, unless root types
/// `strongroom accept-destruction` first.
/// Refused while anything lies under it, or may: of a key whose record is broken that is not known. Such
/// keys are put back from a backup, or left: each of them, named. Backups that were made before the rotation ended open only with
/// it: make a new backup first, and keep the token (or its clone) that opens the old ones if they are
/// still wanted.
#[derive(Args)]
#[command(after_help = "Example:
  strongroom master status
  strongroom master retire 1
  strongroom master retire 1 --pin-file -            without that period; asks for the PIN, or reads it from stdin
  strongroom master retire 1 --leave payments-old    the record of that key is broken; it is lost then")]
pub struct Retire {
    /// The generation
    generation: u32,
    /// A key whose record does not open, and which may be lost; once for each
    #[arg(long, value_name = "NAME")]
    leave: Vec<String>,
    /// How long it waits, in days or weeks: 30d, 2w; not less than the configuration says, which waits
    /// otherwise
    #[arg(long, value_name = "PERIOD", value_parser = days)]
    after: Option<WaitingPeriod>,
    /// Destroy it as soon as custody does, with the token's PIN, read from here; `-` is stdin
    #[arg(long, value_name = "FILE", value_parser = Source::of, value_hint = clap::ValueHint::FilePath,
        conflicts_with = "after")]
    pin_file: Option<Source>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    dry: DryRun,
}

/// Keep a master key that waits for its destruction
#[derive(Args)]
pub struct CancelRetirement {
    /// The generation
    generation: u32,
}

/// Between two looks at a rotation.
const PAUSE: Duration = Duration::from_millis(200);

impl Master {
    pub(super) fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Master::Rotate(rotate) => rotate.run(session),
            Master::Status => {
                session.out.reply(&session.client.get("/v1/master?counts=true")?, told)
            }
            Master::Retire(retire) => retire.run(session),
            Master::CancelRetirement(CancelRetirement { generation }) => {
                let body = json!({ "generation": generation });
                session
                    .out
                    .reply(&session.client.post("/v1/master/cancel-retirement", &body)?, told)
            }
        }
    }
}

impl Rotate {
    /// What a rotation would make and rewrap.
    fn plan(session: &Session) -> Result<Vec<String>, Failure> {
        let view = session.document_at("/v1/master?counts=true")?;
        let of = |generation: &Value, name: &str| {
            generation.get(name).and_then(Value::as_u64).unwrap_or(0)
        };
        let generations =
            view.get("generations").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let in_use = of(&view, "generation");
        let next = generations.iter().map(|row| of(row, "generation")).max().unwrap_or(in_use) + 1;
        let sum = |name: &str| generations.iter().map(|row| of(row, name)).sum::<u64>();
        let mut changes = vec![
            format!("make the master key of generation {next} in the token"),
            format!(
                "rewrap {} versions of keys and {} store keys under it, while service goes on",
                sum("key_versions"),
                sum("store_keys")
            ),
            format!(
                "take generation {in_use} out of use; it stays in the token until `strongroom master retire {in_use}`"
            ),
        ];
        if let Some(broken) = view.get("broken") {
            changes.push(format!("leave what cannot be read: {}", cell("broken", broken)));
        }
        Ok(changes)
    }

    fn run(self, session: &Session) -> Result<(), Failure> {
        if self.dry.dry_run {
            return dry_run::print(session, &Self::plan(session)?);
        }
        match session.client.post("/v1/master/rotate", &json!({ "force": self.force })) {
            Ok(reply) if self.no_wait => return session.out.reply(&reply, told),
            Ok(_) => {}
            Err(failure) if failure.is("rotation-running") && !self.no_wait => {
                session.out.note("a rotation is under way; following it");
            }
            Err(failure) => return Err(failure),
        }
        let (reply, rotation) = follow(session, "/v1/master", "rotation")?;
        session.out.reply(&reply, told)?;
        match rotation.get("broken").and_then(Value::as_u64) {
            Some(0) | None => Ok(()),
            Some(_) => Err(some_are_left(&rotation)),
        }
    }
}

/// Follows the pass over all keys that stands under `member` of the document at `path` to its end;
/// returns the last document, and the pass.
pub(super) fn follow(
    session: &Session,
    path: &str,
    member: &str,
) -> Result<(Reply, Value), Failure> {
    let mut progress = Progress::new(!session.out.is_json());
    loop {
        match session.client.get(path) {
            Err(failure) if failure.passes() => progress.waiting("the daemon to be ready"),
            Err(failure) => return Err(failure),
            Ok(reply) => {
                let pass = reply.value()?.get(member).cloned().unwrap_or_default();
                let number = |name: &str| pass.get(name).and_then(Value::as_u64).unwrap_or(0);
                let word = |name: &str| pass.get(name).and_then(Value::as_str);
                match (word("stage"), word("waits_for")) {
                    (Some("done") | None, _) => {
                        progress.finish();
                        return Ok((reply, pass));
                    }
                    (_, Some(waits_for)) => progress.waiting(waits_for),
                    (Some("making"), None) => {
                        progress.waiting("the token to make the new master key");
                    }
                    _ => progress.show(number("keys_done"), number("keys")),
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
}

fn some_are_left(rotation: &Value) -> Failure {
    let broken = rotation.get("broken").and_then(Value::as_u64).unwrap_or(0);
    Failure::failed(
        format!("{broken} keys were left, for their records are broken"),
        "`strongroom master status` names them; restore them from a backup and rotate again",
    )
}

#[derive(Serialize)]
struct RetireBody<'a> {
    generation: u32,
    leave: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_period_days: Option<u16>,
    /// Base64, like all binary fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pin: Option<&'a str>,
}

impl Retire {
    /// What would be destroyed, and what keeps it from that.
    fn plan(&self, session: &Session, wait: &str) -> Result<Vec<String>, Failure> {
        let view = session.document_at("/v1/master?counts=true")?;
        let is_it = |row: &&Value| row.get("generation") == Some(&json!(self.generation));
        let rows = view.get("generations").and_then(Value::as_array);
        let Some(row) = rows.and_then(|rows| rows.iter().find(is_it)) else {
            return Ok(vec![format!("be refused: there is no generation {}", self.generation)]);
        };
        let count = |name: &str| row.get(name).and_then(Value::as_u64).unwrap_or(0);
        let state = row.get("state").and_then(Value::as_str).unwrap_or_default();
        let under = count("key_versions") + count("store_keys");
        if state != "old" || under > 0 {
            return Ok(vec![format!(
                "be refused: generation {} is {}, and {under} keys lie under it",
                self.generation,
                plain(state)
            )]);
        }
        let mut changes = vec![
            format!(
                "destroy the master key of generation {} in the token {wait}, for good",
                self.generation
            ),
            "make backups from before the last rotation useless, unless another token has that key"
                .to_owned(),
        ];
        changes.extend(
            self.leave.iter().map(|name| format!("give up key {name}, whose record is broken")),
        );
        Ok(changes)
    }

    fn run(self, session: &Session) -> Result<(), Failure> {
        let generation = self.generation;
        let lost = match self.leave.as_slice() {
            [] => String::new(),
            names => format!(" Lost with it: {}.", names.join(", ")),
        };
        let wait = match (self.after, &self.pin_file) {
            (_, Some(_)) => "now".to_owned(),
            (Some(period), None) => format!("in {} days", period.days()),
            (None, None) => "after the configured waiting period".to_owned(),
        };
        if self.dry.dry_run {
            return dry_run::print(session, &self.plan(session, &wait)?);
        }
        let question = format!(
            "destroy the master key of generation {generation} in the token {wait}, for good. Backups from \
             before the rotation ended open only with it.{lost}"
        );
        terminal::agree(self.yes, &question)?;
        let pin = self.pin_file.map(|source| pin(&source)).transpose()?;
        let body = RetireBody {
            generation,
            leave: &self.leave,
            waiting_period_days: self.after.map(|period| period.days()),
            pin: pin.as_ref().map(|pin| pin.as_str()),
        };
        let reply = session.client.post("/v1/master/retire", &body)?;
        session.out.reply(&reply, told)
    }
}

/// A table of the generations, then what else there is to say.
fn told(view: &Value) -> String {
    let mut names = vec!["generation", "state", "token", "created_at"];
    let generations = view.get("generations").and_then(Value::as_array);
    let rows = generations.map_or(&[][..], Vec::as_slice);
    let names_one = |name: &&str| rows.iter().any(|row| row.get(name).is_some());
    names.extend(
        ["destroy_at", "waits_for", "key_versions", "store_keys", "retired_at"]
            .iter()
            .filter(|name| names_one(name)),
    );
    let mut rest = Map::new();
    for name in ["broken", "rotation"] {
        if let Some(value) = view.get(name) {
            rest.insert(name.to_owned(), value.clone());
        }
    }
    let rest = if rest.is_empty() { String::new() } else { facts(&Value::Object(rest)) };
    columns(&names, rows) + &rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_are_a_table() {
        let view = json!({ "generation": 2, "generations": [
            { "generation": 1, "state": "retired", "token": "missing",
              "created_at": "2026-01-02T03:04:05Z", "retired_at": "2026-01-03T03:04:05Z" },
            { "generation": 2, "state": "in-use", "token": "fit",
              "created_at": "2026-01-02T03:04:05Z" } ] });
        let text = told(&view);
        assert!(text.starts_with("GENERATION  STATE    TOKEN    CREATED AT"), "{text}");
        assert!(!text.contains("KEY VERSIONS") && text.contains("RETIRED AT"), "{text}");
    }
}
