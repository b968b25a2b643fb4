//! Changes of a key's state: of the whole key, or of one of its versions.

use clap::Args;
use clap_complete::ArgValueCompleter;
use serde_json::{Map, Value, json};

use super::Session;
use super::client::Condition;
use super::dry_run::{self, DryRun};
use super::names;
use super::output::{cell, facts};
use super::problem::Failure;
use super::terminal;
use crate::key::{KeyMeta, Name, WaitingPeriod};

/// The reasons that the daemon knows.
const REASONS: [&str; 8] = [
    "unspecified",
    "key-compromise",
    "suspected-compromise",
    "superseded",
    "cessation-of-operation",
    "cryptoperiod",
    "maintenance",
    "mistake",
];

/// Why something is done.
#[derive(Args)]
pub struct Why {
    /// Why
    #[arg(long, value_name = "REASON", value_parser = REASONS)]
    pub(super) reason: Option<String>,
}

/// A rotation.
#[derive(Args)]
pub struct Rotate {
    /// The key
    #[arg(add = ArgValueCompleter::new(names::keys))]
    name: Name,
    #[command(flatten)]
    why: Why,
    #[command(flatten)]
    dry: DryRun,
}

impl Rotate {
    pub(super) fn run(self, session: &Session) -> Result<(), Failure> {
        let Self { name, why, dry } = self;
        let change = Change { name, version: None, why, yes: true, dry };
        change.run(session, "rotate", None)
    }
}

/// Change what may be changed of a key
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom key update payments --serve-without-token 15m
  strongroom key update payments --serve-without-token 0s")]
pub struct Update {
    /// The key
    #[arg(add = ArgValueCompleter::new(names::keys))]
    name: Name,
    /// For how long of an outage of the token the opened key may go on serving: 90s, 15m, 12h, 7d at
    /// most; 0s is not at all
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    serve_without_token: u32,
}

impl Update {
    pub(super) fn run(self, session: &Session) -> Result<(), Failure> {
        let path = format!("/v1/keys/{}/update", self.name);
        let body = json!({ "serve_without_token_seconds": self.serve_without_token });
        session.out.reply(&session.client.post(&path, &body)?, facts)
    }
}

/// A time in seconds, minutes, hours or days: 90s, 15m, 12h, 7d.
pub(super) fn seconds(text: &str) -> Result<u32, String> {
    let rule = || {
        let most = KeyMeta::LONGEST_WITHOUT_TOKEN / 86_400;
        format!("a time is a number with s, m, h or d behind it, {most}d at most")
    };
    let unit = text.chars().last().ok_or_else(rule)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(rule()),
    };
    let number: u32 = text.trim_end_matches(unit).parse().map_err(|_| rule())?;
    let seconds = number.checked_mul(factor).ok_or_else(rule)?;
    if seconds <= KeyMeta::LONGEST_WITHOUT_TOKEN { Ok(seconds) } else { Err(rule()) }
}

/// A change of state, of the whole key or of one version.
#[derive(Args)]
pub struct Change {
    /// The key
    #[arg(add = ArgValueCompleter::new(names::keys))]
    name: Name,
    /// One version only
    #[arg(long, value_name = "N")]
    version: Option<u32>,
    #[command(flatten)]
    why: Why,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    dry: DryRun,
}

/// Destroy a key or a version after a waiting period; what it protected is lost then
///
/// Until the period is over, `key restore` cancels it. On a terminal it asks first; elsewhere it needs
/// --yes.
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom key destroy payments --version 1
  strongroom key destroy payments --after 60d --reason superseded --yes")]
pub struct Destroy {
    #[command(flatten)]
    change: Change,
    /// How long it waits, in days or weeks: 30d, 2w; not less than the configuration says, which waits
    /// otherwise
    #[arg(long, value_name = "PERIOD", value_parser = days)]
    after: Option<WaitingPeriod>,
}

impl Change {
    pub(super) fn run(
        self,
        session: &Session,
        verb: &str,
        final_word: Option<&str>,
    ) -> Result<(), Failure> {
        if self.dry.dry_run {
            return dry_run::print(session, &self.plan(session, verb)?);
        }
        if let Some(word) = final_word {
            terminal::agree(self.yes, &format!("{verb} {}. {word}", self.what()))?;
        }
        let path = format!("/v1/keys/{}/{verb}", self.name);
        session.out.reply(&session.client.post(&path, &self.body())?, facts)
    }

    /// What the change would do to the versions and to the secrets under them.
    fn plan(&self, session: &Session, verb: &str) -> Result<Vec<String>, Failure> {
        let key = session.document_at(&format!("/v1/keys/{}", self.name))?;
        let number = |version: &Value| version.get("version").and_then(Value::as_u64);
        let versions = key.get("versions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let current = key.get("current_version").and_then(Value::as_u64);
        if verb == "rotate" {
            let next = versions.iter().filter_map(number).max().unwrap_or(0) + 1;
            let mut changes = vec![format!(
                "make version {next} of key {}, which encrypts from then on",
                self.name
            )];
            changes.extend(
                current.map(|old| {
                    format!("deactivate version {old} for encryption; it still decrypts")
                }),
            );
            return Ok(changes);
        }
        let is_meant = |version: &&Value| {
            self.version.is_none_or(|wanted| number(version) == Some(u64::from(wanted)))
        };
        let mut changes: Vec<String> = versions
            .iter()
            .filter(is_meant)
            .map(|version| {
                let state =
                    version.get("state").map_or(String::new(), |state| cell("state", state));
                format!(
                    "{verb} version {} of key {}, which is {state}",
                    number(version).unwrap_or(0),
                    self.name
                )
            })
            .collect();
        if changes.is_empty() {
            changes.push(format!("be refused: there is no {}", self.what()));
            return Ok(changes);
        }
        let secrets = session.secrets_under(self.name.as_str(), self.version)?;
        let effect = match verb {
            "suspend" => "not be revealed until `resume`",
            "resume" | "restore" => "be revealed again, where nothing else keeps them from it",
            "destroy" => "be lost for good, once the destruction is done",
            _ => "be revealed only with the permission key:recover",
        };
        let secrets = dry_run::counted(&secrets, "secret");
        changes.push(format!("have this effect on what lies under it: {secrets}, as far as you may see them, would {effect}"));
        Ok(changes)
    }

    fn body(&self) -> Map<String, Value> {
        let version = self.version.map(|version| ("version".to_owned(), json!(version)));
        let reason = self.why.reason.as_ref().map(|reason| ("reason".to_owned(), json!(reason)));
        version.into_iter().chain(reason).collect()
    }

    fn what(&self) -> String {
        match self.version {
            Some(version) => format!("version {version} of key {}", self.name),
            None => format!("key {} with all its versions", self.name),
        }
    }
}

impl Destroy {
    pub(super) fn run(self, session: &Session) -> Result<(), Failure> {
        let change = &self.change;
        if change.dry.dry_run {
            return dry_run::print(session, &change.plan(session, "destroy")?);
        }
        let wait = match self.after {
            Some(period) => format!("in {} days", period.days()),
            None => "after the configured waiting period".to_owned(),
        };
        let what = change.what();
        let question =
            format!("destroy {what} {wait}. What it protected cannot be opened after that.");
        terminal::agree(change.yes, &question)?;
        let mut body = change.body();
        if let Some(period) = self.after {
            body.insert("waiting_period_days".to_owned(), json!(period.days()));
        }
        let reply = session.client.delete(
            &format!("/v1/keys/{}", change.name),
            Some(&body),
            Condition::Any,
        )?;
        session.out.reply(&reply, facts)
    }
}

/// `30d`, `2w` or a bare number of days.
pub(super) fn days(text: &str) -> Result<WaitingPeriod, String> {
    let (number, each) = match text.strip_suffix('w') {
        Some(weeks) => (weeks, 7),
        None => (text.strip_suffix('d').unwrap_or(text), 1),
    };
    let count: u16 = number.parse().map_err(|_| "a period is days or weeks, like 30d or 2w")?;
    WaitingPeriod::of_days(count.saturating_mul(each)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Reason;

    #[test]
    fn the_daemon_knows_every_reason() {
        for reason in REASONS {
            assert!(serde_json::from_value::<Reason>(json!(reason)).is_ok(), "{reason}");
        }
    }

    #[test]
    fn periods() {
        for (text, expected) in [("30d", 30), ("2w", 14), ("1", 1)] {
            assert_eq!(days(text).map(WaitingPeriod::days), Ok(expected));
        }
        for bad in ["", "0d", "d", "-1d", "1h", "1.5d", "366d", "65535w", "99999999999d"] {
            assert!(days(bad).is_err(), "{bad}");
        }
    }
}
