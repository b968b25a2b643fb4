//! The command line: what can be typed, and the commands that ask a running daemon or need none.
//!
//! [`Cli::work`] sorts what was typed: a [`House`] command starts or inspects the daemon's own parts and
//! is acted on by the floor above; everything else is an [`Errand`], done by [`run`].

mod appliance;
mod audit;
mod audit_export;
mod audit_rows;
mod audit_verify;
mod backup;
mod client;
mod dry_run;
mod escape;
mod explain;
mod failing;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod house;
mod input;
mod key;
mod key_state;
mod line;
mod master;
mod names;
mod offline;
mod output;
mod owner;
mod pages;
mod paint;
mod problem;
mod progress;
mod recovery;
mod report;
mod secret;
mod terminal;
mod usage;
mod users;
mod when;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueHint};
use serde::Deserialize;
use serde_json::Value;

pub use appliance::doctors_lines;
pub use backup::{By, Created, Made};
pub use dry_run::text as dry_run_text;
pub use escape::plain;
pub use failing::{LONGEST as LONGEST_FAILURE, file_of as failure_file};
pub use house::{
    AcceptDestruction, AcceptRollback, Backup, Config, CreateBackup, Custody, Doctor, Explain,
    House, Policy, PolicyFrom, Reload, Restore, Serve, Verify,
};
pub use input::Source as RecoverySource;
pub use output::Format;
pub use problem::{Failure, Message};
pub use progress::Progress;
pub use recovery::{Drill, OfflineRecovery, Reseal};
pub use report::{Report, note, told};
pub use terminal::Refusal;

use crate::secret as secret_memory;
use client::{Client, Reply};
use output::Output;
use paint::Color;

/// Where the daemon listens unless it is said.
const DEFAULT_SOCKET: &str = "/run/strongroom/strongroom.sock";

/// The variable by which a shell asks for completions, as its script sets it.
const COMPLETE: &str = "STRONGROOM_COMPLETE";

/// How many items are asked for at a time.
const PAGE: u32 = 200;

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  refused or failed; stderr says what happened and what to do next
  2  wrong use of the command line
  3  the daemon cannot be reached, or its answer did not come

Secrets are never arguments. They are read from stdin or from a file (--in FILE, `-` is stdin), byte \
for byte, and written to stdout alone. On a terminal they are asked for without being shown.

Examples:
  strongroom init
  strongroom key create payments
  printf %s \"$TOKEN\" | strongroom secret put stripe --key payments
  strongroom secret reveal stripe
  strongroom audit verify --dir /var/lib/strongroom/trail --public-key trail.pem --in-use";

/// An HSM-backed key-management appliance.
///
/// RSA private keys lie sealed under a master key that never leaves its PKCS#11 token. `strongroom serve`
/// runs the daemon; the other commands ask it over its Unix socket, or work offline where they say so.
#[derive(Parser)]
#[command(name = "strongroom", version, after_help = AFTER_HELP, arg_required_else_help = true)]
#[command(max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Args, Clone)]
pub struct Global {
    /// The daemon's Unix socket
    #[arg(long, global = true, env = "STRONGROOM_SOCKET", value_name = "PATH")]
    #[arg(default_value = DEFAULT_SOCKET, value_hint = ValueHint::FilePath)]
    #[arg(help_heading = "Global options")]
    pub socket: PathBuf,

    /// Output for people or for programs; with json, errors on stderr are JSON too
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    #[arg(help_heading = "Global options")]
    pub output: Format,

    /// How long to wait for an answer
    #[arg(long, global = true, default_value_t = 60, value_name = "SECONDS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600), help_heading = "Global options")]
    pub timeout: u64,

    /// Colours in the output; NO_COLOR is honoured
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    #[arg(help_heading = "Global options")]
    pub color: Color,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Errand(Errand),
    #[command(flatten)]
    House(House),
}

/// A command that asks the daemon, or that needs none.
#[derive(Subcommand)]
pub enum Errand {
    Init(appliance::Init),
    Status(appliance::Status),
    Lock(appliance::Lock),
    Unlock(appliance::Unlock),
    ConfirmClock(appliance::ConfirmClock),
    #[command(subcommand)]
    Key(key::Key),
    #[command(subcommand)]
    Secret(secret::Secret),
    #[command(subcommand)]
    Master(master::Master),
    #[command(subcommand)]
    Recovery(recovery::Recovery),
    #[command(subcommand)]
    Audit(audit::Audit),
    Encrypt(offline::Encrypt),
    Completions(pages::Completions),
    Man(pages::Man),
}

/// What was typed, sorted by who acts on it.
pub enum Work {
    /// For the floor above: the daemon, custody, configuration and policy.
    House(House),
    /// For the floor above, too: a recovery without a daemon.
    Recovery(OfflineRecovery),
    /// For [`run`].
    Errand(Errand),
}

impl Cli {
    /// Splits what was typed into the global options and the work.
    pub fn work(self) -> (Global, Work) {
        paint::choose(self.global.color);
        let work = match self.command {
            Command::Errand(Errand::Recovery(recovery)) => match recovery.offline() {
                Ok(offline) => Work::Recovery(offline),
                Err(asking) => Work::Errand(Errand::Recovery(asking)),
            },
            Command::Errand(errand) => Work::Errand(errand),
            Command::House(house) => Work::House(house),
        };
        (self.global, work)
    }
}

/// Reads the process's arguments; wrong use ends the process with code 2, `--help` with 0.
pub fn parse() -> Cli {
    // A shell that completes a line asks by a variable, and gets its answer here.
    clap_complete::CompleteEnv::with_factory(command).var(COMPLETE).complete();
    Cli::try_parse().unwrap_or_else(|error| usage::leave(&error))
}

/// The whole command line as clap sees it, for completions and man pages.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Does an errand; what goes wrong is told on stderr. Secrets may pass through from here on: the process
/// leaves no core file and is closed to debuggers.
pub fn run(global: &Global, errand: Errand) -> ExitCode {
    let hardened = secret_memory::harden_process().map_err(|error| {
        Failure::failed(error.to_string(), "run it where the process may set its own limits")
    });
    finish(global, hardened.and_then(|()| perform(&Session::of(global), errand)))
}

/// Asks the daemon to examine itself: `strongroom doctor` without `--config`.
pub fn doctor(global: &Global) -> ExitCode {
    finish(global, appliance::doctor(&Session::of(global)))
}

/// Asks the daemon for a decision of its policy: `strongroom policy explain` without `--config`.
pub fn explain(global: &Global, asked: &Explain) -> ExitCode {
    finish(global, explain::explain(&Session::of(global), asked))
}

/// Has the daemon make a backup: the first half of `strongroom backup create`. Where there is none, the
/// code to end with.
pub fn create_backup(global: &Global, create: &CreateBackup) -> Result<Made, ExitCode> {
    create.run(&Session::of(global)).map_err(|failure| finish(global, Err(failure)))
}

/// Tells a failure in the chosen format and turns it into its exit code.
pub fn finish(global: &Global, result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell(global.output);
            ExitCode::from(failure.code())
        }
    }
}

/// What an errand works with.
struct Session {
    client: Client,
    out: Output,
}

impl Session {
    fn of(global: &Global) -> Self {
        let client = Client::new(global.socket.clone(), Duration::from_secs(global.timeout));
        Self { client, out: Output::new(global.output) }
    }
}

/// What an opened secret comes as; borrowed, so that no second copy is made of it.
#[derive(Deserialize)]
struct Opened<'a> {
    #[serde(borrow)]
    plaintext: &'a str,
}

impl Session {
    /// Everything that a paged list holds, in order; `member` is its name in the document. Where the daemon
    /// was started again meanwhile, its cursors are gone and the list is begun again, once.
    fn pages(&self, path: &str, member: &str) -> Result<Vec<Value>, Failure> {
        match self.pages_once(path, member) {
            Err(failure) if failure.is("invalid-cursor") => self.pages_once(path, member),
            result => result,
        }
    }

    fn pages_once(&self, path: &str, member: &str) -> Result<Vec<Value>, Failure> {
        let mut all = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = match &after {
                None => self.client.get(&format!("{path}?limit={PAGE}"))?,
                Some(after) => {
                    let after = client::query(after);
                    self.client.get(&format!("{path}?limit={PAGE}&after={after}"))?
                }
            };
            let mut page: Value = page.parse()?;
            if let Some(Value::Array(items)) = page.get_mut(member).map(Value::take) {
                all.extend(items);
            }
            if let Some(Value::Array(broken)) = page.get("broken") {
                let names: Vec<&str> = broken.iter().filter_map(Value::as_str).collect();
                let names = names.join(", ");
                self.out.note(&format!("left out, for their records are broken: {names}"));
            }
            match page.get("next").and_then(Value::as_str) {
                // A server that points back would keep us here for ever.
                Some(next) if Some(next) != after.as_deref() => after = Some(next.to_owned()),
                _ => return Ok(all),
            }
        }
    }

    /// Writes what was opened: bytes for people, the document for programs.
    fn opened(&self, reply: &Reply) -> Result<(), Failure> {
        if self.out.is_json() {
            return self.out.secret_document(&reply.body);
        }
        let opened: Opened =
            serde_json::from_slice(&reply.body).map_err(|_| client::unfamiliar())?;
        self.out.secret(input::unbase64(opened.plaintext)?.expose())
    }
}

fn perform(session: &Session, errand: Errand) -> Result<(), Failure> {
    match errand {
        Errand::Init(init) => init.run(session),
        Errand::Status(status) => status.run(session),
        Errand::Lock(lock) => lock.run(session),
        Errand::Unlock(unlock) => unlock.run(session),
        Errand::ConfirmClock(confirm) => confirm.run(session),
        Errand::Key(key) => key.run(session),
        Errand::Secret(secret) => secret.run(session),
        Errand::Master(master) => master.run(session),
        Errand::Recovery(recovery) => recovery.run(session),
        Errand::Audit(audit) => audit.run(session),
        Errand::Encrypt(encrypt) => encrypt.run(&session.out),
        Errand::Completions(completions) => completions.run(&session.out),
        Errand::Man(man) => man.run(&session.out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(line: &[&str]) -> i32 {
        match Cli::try_parse_from(std::iter::once(&"strongroom").chain(line)) {
            Ok(_) => 0,
            Err(error) => error.exit_code(),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn wrong_use_is_code_two() {
        let wrong: [&[&str]; 13] = [
            &[],
            &["nonsense"],
            &["key", "create"],
            &["key", "create", "Not A Name"],
            &["key", "create", "../etc"],
            &["key", "create", "a", "--algorithm", "RSA-1024"],
            &["key", "destroy", "a", "--after", "0d"],
            &["key", "destroy", "a", "--after", "soon"],
            &["key", "decrypt", "a", "--version", "1", "--kid", "x"],
            &["secret", "put", "a"],
            &["serve"],
            &["master", "retire"],
            &["policy", "explain", "--config", "c", "--user", "u", "--action", "key:steal"],
        ];
        for line in wrong {
            assert_eq!(code(line), 2, "{line:?}");
        }
    }

    #[test]
    fn right_use_parses() {
        let right: [&[&str]; 10] = [
            &["--help"],
            &["status", "--socket", "/tmp/s", "--output", "json"],
            &["--socket", "/tmp/s", "key", "create", "a", "--algorithm", "RSA-4096"],
            &["key", "destroy", "a", "--after", "2w", "--yes"],
            &["secret", "put", "a", "--key", "k", "--in", "-"],
            &["master", "retire", "1", "--yes"],
            &["custody", "--config", "c", "--listen-fd", "3"],
            &["policy", "check", "--dir", "d"],
            &["config", "show"],
            &["doctor"],
        ];
        for line in right {
            assert_eq!(code(line), 0, "{line:?}");
        }
    }

    #[test]
    fn the_daemons_commands_go_upstairs() {
        let cli = Cli::try_parse_from(["strongroom", "serve", "--config", "x.toml"]).unwrap();
        let (_, work) = cli.work();
        assert!(
            matches!(work, Work::House(House::Serve(serve)) if serve.config.as_os_str() == "x.toml")
        );
    }
}
