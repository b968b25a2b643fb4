//! The appliance as a whole: init, status, lock, unlock, doctor.

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Session;
use super::dry_run::{self, DryRun};
use super::input::{self, Source};
use super::key_state::Why;
use super::output::{cell, facts, plain};
use super::problem::Failure;
use crate::service::CheckView;
use crate::token::pin_in;

/// Make the master key and the trail's signing key in the token, and the store key
///
/// Done once in the life of an appliance. Where something is there already it refuses and changes nothing.
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom init
  strongroom init --resume     finish one that was cut off")]
pub struct Init {
    /// Finish an initialisation that was cut off; makes only what is missing of it
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    dry: DryRun,
}

/// Where the token has a key under the name that the new one is to have, and it cannot be used.
const UNFIT: &str = "the token holds a master key already that cannot be used; why, the journal says \
     (journalctl -u strongroom-custody). Give an empty token, or remove that key with the token's own tools";

impl Init {
    pub(super) fn run(self, session: &Session) -> Result<(), Failure> {
        if self.dry.dry_run {
            return dry_run::print(session, &init_plan(session)?);
        }
        let reply = session.client.post("/v1/init", &json!({ "resume": self.resume }));
        let reply = reply.map_err(|failure| match failure.is("master-key") {
            true => failure.advised(UNFIT.to_owned()),
            false => failure,
        })?;
        session.out.reply(&reply, |value| format!("initialised\n{}", facts_or_nothing(value)))
    }
}

/// Show how the daemon is: version, state, token, keys, trail
#[derive(Args)]
pub struct Status {}

impl Status {
    pub(super) fn run(self, session: &Session) -> Result<(), Failure> {
        let reply = session.client.get("/v1/status")?;
        session.out.reply(&reply, |status| format!("{}\n{}", summary(status), facts(status)))
    }
}

/// Close the appliance: opened keys and the PIN are forgotten, and nothing is opened until `unlock`
#[derive(Args)]
pub struct Lock {
    #[command(flatten)]
    why: Why,
    #[command(flatten)]
    dry: DryRun,
}

impl Lock {
    pub(super) fn run(self, session: &Session) -> Result<(), Failure> {
        if self.dry.dry_run {
            return dry_run::print(session, &lock_plan(session)?);
        }
        let body = match self.why.reason {
            Some(reason) => json!({ "reason": reason }),
            None => json!({}),
        };
        let reply = session.client.post("/v1/lock", &body)?;
        session.out.reply(&reply, |value| standing("locked", value))
    }
}

/// Open the appliance after `lock`
///
/// The daemon uses its own credential for the token unless a PIN is given here. A wrong PIN is tried once
/// only, and two since the last right one: tokens lock themselves after a few. The error says from when on
/// the next is tried; `max_wrong_pins` under `[custody]` of the configuration allows more.
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom unlock                      with the PIN that the daemon was given
  strongroom unlock --pin-file -         asks for the PIN on a terminal, or reads it from stdin
  strongroom unlock --pin-file /run/pin  a line end is not part of the PIN")]
pub struct Unlock {
    /// Where to read the token's PIN from; `-` is stdin
    #[arg(long, value_name = "FILE", value_parser = Source::of, value_hint = clap::ValueHint::FilePath)]
    pin_file: Option<Source>,
}

#[derive(Serialize)]
struct UnlockBody<'a> {
    /// Base64, like all binary fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pin: Option<&'a str>,
}

impl Unlock {
    pub(super) fn run(self, session: &Session) -> Result<(), Failure> {
        let pin = self.pin_file.map(|source| pin(&source)).transpose()?;
        let body = UnlockBody { pin: pin.as_ref().map(|pin| pin.as_str()) };
        let reply = session.client.post("/v1/unlock", &body)?;
        session.out.reply(&reply, |value| standing("unlocked", value))
    }
}

/// Say that the daemon's clock is right, where `status` says that it is ahead or behind
///
/// A clock that is further on than time has passed holds destructions back, so that none is early. After
/// this they go by the clock: look at `key list` first, what is due by it is destroyed at once.
#[derive(Args)]
pub struct ConfirmClock {
    #[command(flatten)]
    dry: DryRun,
}

impl ConfirmClock {
    pub(super) fn run(self, session: &Session) -> Result<(), Failure> {
        if self.dry.dry_run {
            return dry_run::print(session, &clock_plan(session)?);
        }
        let reply = session.client.post("/v1/clock/confirm", &json!({}))?;
        let done = "confirmed: destructions go by the clock again";
        session.out.reply(&reply, |value| standing(done, value))
    }
}

fn init_plan(session: &Session) -> Result<Vec<String>, Failure> {
    let status = session.document_at("/v1/status")?;
    let word = |path: &str| status.pointer(path).and_then(Value::as_str);
    if let Some(appliance) = word("/appliance") {
        return Ok(vec![format!("be refused: appliance {} is initialised", plain(appliance))]);
    }
    let token = match (word("/token/label"), word("/token/serial")) {
        (Some(label), Some(serial)) => {
            format!("the token {} (serial {})", plain(label), plain(serial))
        }
        _ => "the token".to_owned(),
    };
    Ok(vec![
        format!("make the master key of generation 1, AES-256, in {token}"),
        format!("make the key that signs the audit log, P-256, in {token}"),
        "make a store key, and store the appliance's record".to_owned(),
    ])
}

fn lock_plan(session: &Session) -> Result<Vec<String>, Failure> {
    let status = session.document_at("/v1/status")?;
    let opened = status.get("loaded_keys").and_then(Value::as_u64).unwrap_or(0);
    let keys = dry_run::names(session.pages("/v1/keys", "keys")?.iter());
    let secrets = dry_run::names(session.pages("/v1/secrets", "secrets")?.iter());
    Ok(vec![
        format!("wipe {opened} opened keys and the PIN from memory"),
        format!("stop serving until `strongroom unlock`: {}", dry_run::counted(&keys, "key")),
        format!("stop revealing until then: {}", dry_run::counted(&secrets, "secret")),
        "stay locked over a restart".to_owned(),
    ])
}

/// What is due by the clock as it is.
fn clock_plan(session: &Session) -> Result<Vec<String>, Failure> {
    let now = Timestamp::now();
    let is_due = |document: &&Value| {
        let at = document.get("destroy_at").and_then(Value::as_str);
        at.and_then(|at| at.parse::<Timestamp>().ok()).is_some_and(|at| at <= now)
    };
    let keys = session.pages("/v1/keys", "keys")?;
    let due = dry_run::names(keys.iter().filter(is_due));
    let status = session.document_at("/v1/status")?;
    let masters = status.get("masters_to_be_destroyed").and_then(Value::as_array);
    let masters = masters.into_iter().flatten().filter(is_due).count();
    Ok(vec![
        format!("go by the clock, which says {}", now.strftime("%Y-%m-%d %H:%M:%SZ")),
        format!(
            "destroy at once what is due by it: {} (or versions of them)",
            dry_run::counted(&due, "key")
        ),
        format!("destroy at once {masters} master keys that are due by it"),
    ])
}

/// Reads a PIN; a line end at its end belongs to the file, not to the PIN.
pub(super) fn pin(source: &Source) -> Result<Zeroizing<String>, Failure> {
    let secret = source.secret(Some("PIN of the token"))?;
    let pin = pin_in(secret.expose()).map_err(|found| {
        let what = format!("no PIN was tried: what was given {found}");
        Failure::wrong_use(what, "give the PIN alone, as plain text")
    })?;
    if pin.is_empty() {
        return Err(Failure::wrong_use("the PIN is empty", "give the PIN on stdin or in the file"));
    }
    Ok(input::base64(pin))
}

/// Asks the daemon to examine itself; a check that fails makes the exit code 1.
pub(super) fn doctor(session: &Session) -> Result<(), Failure> {
    let reply = session.client.get("/v1/doctor")?;
    let report = reply.value()?;
    let checks = report.get("checks").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if session.out.is_json() {
        session.out.document(&report)?;
    } else {
        session.out.text(&checks_text(checks))?;
    }
    if checks.iter().any(|check| mark(check) == "FAIL") { Err(Failure::Told) } else { Ok(()) }
}

/// The lines of a doctor's report, for people.
pub fn doctors_lines(checks: &[CheckView]) -> String {
    let values: Vec<Value> = checks.iter().map(|check| json!(check)).collect();
    checks_text(&values)
}

/// The lines of a doctor's report from `{name, result, detail, setting, file}` objects: one for what is well, and
/// for all else what was found and what to do on lines of their own.
fn checks_text(checks: &[Value]) -> String {
    let text = |check: &Value, name: &str| check.get(name).map_or(String::new(), |v| cell(name, v));
    let width = checks.iter().map(|check| text(check, "name").chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for check in checks {
        let (mark, name, found) = (mark(check), text(check, "name"), text(check, "detail"));
        if mark == "ok" {
            let line = format!("{mark:4}  {name:width$}  {found}");
            out += &format!("{}\n", line.trim_end());
            continue;
        }
        out += &format!("{mark:4}  {name}\n");
        if !found.is_empty() {
            out += &format!("      found: {found}\n");
        }
        match (text(check, "setting"), text(check, "file")) {
            (setting, _) if setting.is_empty() => {}
            (setting, file) if file.is_empty() => out += &format!("      do:    {setting}\n"),
            (setting, file) => out += &format!("      do:    in {file}: {setting}\n"),
        }
    }
    out
}

fn mark(check: &Value) -> &'static str {
    match check.get("result").and_then(Value::as_str) {
        Some("ok") => "ok",
        Some("warn") => "warn",
        _ => "FAIL",
    }
}

/// How the appliance is in a sentence, and the next step on a line of its own.
fn summary(status: &Value) -> String {
    let word = |name: &str| status.get(name).and_then(Value::as_str).unwrap_or_default();
    let (state, detail, next) = (word("state"), word("detail"), word("next"));
    let sentence = match (state, detail) {
        ("ready", "") => "Strongroom is ready: keys and secrets are served.".to_owned(),
        (state, "") => format!("Strongroom is {}.", plain(state)),
        (state, detail) => {
            format!("Strongroom is {}: {}.", plain(state), plain(detail.trim_end_matches('.')))
        }
    };
    let next = match (state, detail, next) {
        ("ready", "", "") => "nothing",
        (_, _, "") => "strongroom doctor",
        (_, _, next) => next,
    };
    format!("{sentence}\n  next: {}\n", plain(next))
}

/// What was done, and how the appliance stands after it: one line, or two where something is to be done.
fn standing(done: &str, status: &Value) -> String {
    let word = |name: &str| status.get(name).and_then(Value::as_str).unwrap_or_default();
    match (word("state"), word("detail"), word("next")) {
        ("", ..) => format!("{done}\n"),
        ("ready", ..) => format!("{done}; state ready: keys and secrets are served\n"),
        ("locked", ..) if done == "locked" => {
            format!("{done}: nothing is opened until `strongroom unlock`\n")
        }
        (state, detail, next) => {
            let mut text = format!("{done}; state {}: {}\n", plain(state), plain(detail));
            if !next.is_empty() {
                text += &format!("  next: {}\n", plain(next));
            }
            text
        }
    }
}

fn facts_or_nothing(value: &Value) -> String {
    match value {
        Value::Object(members) if !members.is_empty() => facts(value),
        Value::String(text) => format!("{}\n", plain(text)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_state_is_told_in_a_line_or_two() {
        let status = |state: &str, detail: &str, next: &str| json!({ "state": state, "detail": detail, "next": next, "version": "1", "uptime_seconds": 2 });
        let locked = standing("locked", &status("locked", "an operator locked it", "unlock it"));
        assert_eq!(locked, "locked: nothing is opened until `strongroom unlock`\n");
        let ready = standing("unlocked", &status("ready", "", ""));
        assert_eq!(ready, "unlocked; state ready: keys and secrets are served\n");
        let away = standing("unlocked", &status("token-unavailable", "no token", "look at it"));
        assert_eq!(away, "unlocked; state token-unavailable: no token\n  next: look at it\n");
        assert_eq!(standing("unlocked", &json!({})), "unlocked\n");
    }

    #[test]
    fn a_status_begins_with_a_sentence_and_its_next_step() {
        let ready = summary(&json!({ "state": "ready" }));
        assert_eq!(ready, "Strongroom is ready: keys and secrets are served.\n  next: nothing\n");
        let locked = json!({ "state": "locked", "detail": "an operator locked it", "next": "strongroom unlock" });
        let expected = "Strongroom is locked: an operator locked it.\n  next: strongroom unlock\n";
        assert_eq!(summary(&locked), expected);
    }

    #[test]
    fn a_doctors_line_says_what_mends_it() {
        let checks = [
            json!({"name": "token", "result": "ok", "detail": "SoftHSM"}),
            json!({"name": "memory", "result": "fail", "detail": "64 KiB",
                   "setting": "LimitMEMLOCK in strongroom.service"}),
            json!({"name": "clock"}),
        ];
        let text = checks_text(&checks);
        let expected = "\
ok    token   SoftHSM
FAIL  memory
      found: 64 KiB
      do:    LimitMEMLOCK in strongroom.service
FAIL  clock
";
        assert_eq!(text, expected);
        assert!(text.contains("FAIL  clock"), "a check without a result is not ok");
    }
}
