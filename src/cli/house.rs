//! What can be typed for the daemon's own parts; the floor above acts on it.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueHint};

pub use super::backup::{Backup, Create as CreateBackup, Restore, Verify};
use crate::custody::{Mark, checkpoint};
use crate::key::Name;
use crate::policy::{Action, Resource, ResourceError};

/// A command that starts or inspects the daemon's own parts.
#[derive(Subcommand)]
pub enum House {
    Serve(Serve),
    Custody(Custody),
    Reload(Reload),
    Doctor(Doctor),
    AcceptRollback(AcceptRollback),
    AcceptDestruction(AcceptDestruction),
    #[command(subcommand)]
    Backup(Backup),
    #[command(subcommand)]
    Policy(Policy),
    #[command(subcommand)]
    Config(Config),
}

/// Run the daemon: listeners, policy, records and trail
///
/// Starts `strongroom custody` as its child where systemd does not run it. SIGHUP reloads configuration
/// and policy (a bad file keeps the old); SIGTERM finishes what is under way and leaves.
#[derive(Args)]
#[command(after_help = "Example:\n  strongroom serve --config /etc/strongroom/strongroom.toml")]
pub struct Serve {
    /// The configuration
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
}

/// Run the cryptographic boundary: the process that talks to the token and holds opened keys
///
/// Without --listen or --listen-fd it takes its socket from systemd, or else the one that the
/// configuration names.
#[derive(Args)]
#[command(after_help = "Example:\n  strongroom custody --config /etc/strongroom/strongroom.toml")]
pub struct Custody {
    /// The configuration
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// The Unix socket to make and listen on
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, conflicts_with = "listen_fd")]
    pub listen: Option<PathBuf>,
    /// A descriptor that was handed in and is connected or listening already
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(3..))]
    pub listen_fd: Option<i32>,
    /// The one process that may connect, by its number; else every process of the front's user may
    #[arg(long, value_name = "PID", hide = true)]
    pub front_pid: Option<i32>,
}

/// Have the running daemon read configuration and policy again, and report what came of it
///
/// Sends SIGHUP and waits for the verdict. Exits with 1 where the daemon refuses its files, and what was in force
/// stays in force; or where it takes them and its next start would be refused all the same. For root and the
/// daemon's own user, like the signal; `systemctl reload strongroom` runs it.
#[derive(Args)]
#[command(after_help = "Example:\n  strongroom reload --config /etc/strongroom/strongroom.toml")]
pub struct Reload {
    /// The configuration that the daemon runs with
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// The daemon's process, where it must be this one
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Option<i32>,
}

/// Accept a store and an audit log that do not end as custody remembers
///
/// For root, where the state is "store-rolled-back" and this copy is to be used all the same: what was done
/// after it is lost, keys that were compromised or destroyed since are as they were. `strongroom status`
/// writes out the whole command. The running daemon goes on by itself; the audit log tells of it
/// (`rollback-accepted`), and its next checkpoint shows which ones it replaces.
#[derive(Args)]
#[command(after_help = "Example:
  strongroom accept-rollback --config /etc/strongroom/strongroom.toml 0123456789abcdef:17:4711:9f86…")]
pub struct AcceptRollback {
    /// The configuration, which names custody's state directory
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// The audit log and its newest checkpoint, as `strongroom status` writes them
    #[arg(value_name = "LOG:NUMBER:SEQ:HASH", value_parser = accepted)]
    pub newest: (String, Mark),
}

/// Let an old master key be destroyed before its waiting period is over
///
/// For root. Custody follows it once, within a day: have an operator type `strongroom master retire GENERATION
/// --pin-file -` then. Nothing is destroyed that is in use or that anything known lies under; backups that were
/// made under it open no more.
#[derive(Args)]
#[command(after_help = "Example:
  strongroom accept-destruction 1 --config /etc/strongroom/strongroom.toml")]
pub struct AcceptDestruction {
    /// The configuration, which names custody's state directory
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// The generation of the master key, as `strongroom master show` has it
    #[arg(value_name = "GENERATION", value_parser = clap::value_parser!(u32).range(1..))]
    pub generation: u32,
}

fn accepted(text: &str) -> Result<(String, Mark), String> {
    let wrong = || "copy it from `strongroom status`: LOG:NUMBER:SEQ:HASH".to_owned();
    let (trail, mark) = text.split_once(':').ok_or_else(wrong)?;
    let mark = mark.parse().map_err(|_| wrong())?;
    if checkpoint::is_trail(trail) { Ok((trail.to_owned(), mark)) } else { Err(wrong()) }
}

/// Examine the appliance: token, master key, locked memory, directories, clock, limits
///
/// The daemon does it under its own conditions. With --config the checks run in this process instead,
/// as the user who typed it, for a daemon that does not start. No PIN is tried then without --login.
/// Exits with 1 when a check fails.
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom doctor
  strongroom doctor --config /etc/strongroom/strongroom.toml
  strongroom doctor --config /etc/strongroom/strongroom.toml --login --pin-file /etc/strongroom/pin")]
pub struct Doctor {
    /// Check here, without a daemon, what this configuration says
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Log in to the token, with one try of the PIN, and examine the master key; not where a wrong PIN
    /// was tried before
    #[arg(long, requires = "config")]
    pub login: bool,
    /// Where to read the token's PIN from, in place of what the configuration says
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "config")]
    pub pin_file: Option<PathBuf>,
    /// Print every return value of PKCS#11: its kind, what it means, what to do
    #[arg(long, conflicts_with = "config")]
    pub pkcs11_return_values: bool,
}

/// Check policy files, or explain a decision
#[derive(Subcommand)]
pub enum Policy {
    Check(PolicyFrom),
    Explain(Explain),
}

/// Read and validate the policy files as the daemon would; exits with 1 when they are not sound
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom policy check --config /etc/strongroom/strongroom.toml
  strongroom policy check --dir ./policy")]
#[group(id = "policy_from", required = true, multiple = false)]
pub struct PolicyFrom {
    /// The configuration that names the policy directory
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, group = "policy_from")]
    pub config: Option<PathBuf>,
    /// The directory with the policy files
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, group = "policy_from")]
    pub dir: Option<PathBuf>,
}

/// Say whether a user may do something, and which policies decide it
///
/// All permissions that such a request needs are asked for, as the daemon asks for them. Without --config the daemon
/// is asked, by whoever has `policy:explain` (operators and auditors as shipped); it knows labels, owner and a
/// secret's key of what the caller may see. With --config the files say it, without a daemon.
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom policy explain --user deploy --action secret:reveal --resource secret/mail
  strongroom policy explain --config /etc/strongroom/strongroom.toml \\
      --user deploy --action key:decrypt --resource key/payments --label team=billing

Exits with 0 when the answer is yes and with 1 when it is no.")]
pub struct Explain {
    /// Ask no daemon: the configuration that names the policy directory and binds roles
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// The Unix user who would ask, by name or number
    #[arg(long, value_name = "NAME", value_hint = ValueHint::Username)]
    pub user: String,
    /// What would be asked for
    #[arg(long, value_parser = PossibleValuesParser::new(Action::ALL.map(Action::as_str)))]
    pub action: String,
    /// On what: `appliance`, `key/NAME` or `secret/NAME`
    #[arg(long, value_parser = resource, default_value = "appliance")]
    pub resource: Resource,
    /// The key that a secret is encrypted for, which revealing or putting one needs permissions on, too
    #[arg(long, value_name = "NAME")]
    pub key: Option<Name>,
    /// A label that the key has, for policies that look at them; may be given several times
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = super::key::label)]
    pub labels: Vec<(String, String)>,
    /// Who owns it, for policies that look at that: a user by name or number, or an id like unix:1000
    #[arg(long, value_name = "OWNER", value_hint = ValueHint::Username)]
    pub owner: Option<String>,
    /// A label of the key of --key; may be given several times
    #[arg(long = "key-label", value_name = "NAME=VALUE", value_parser = super::key::label)]
    #[arg(requires_all = ["key", "config"])]
    pub key_labels: Vec<(String, String)>,
    /// Who owns the key of --key
    #[arg(long, value_name = "OWNER", value_hint = ValueHint::Username)]
    #[arg(requires_all = ["key", "config"])]
    pub key_owner: Option<String>,
}

/// Check a configuration, or show what is in force
#[derive(Subcommand)]
pub enum Config {
    /// Read and validate a configuration; exits with 1 when it is not sound
    Check {
        /// The configuration
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        config: PathBuf,
    },
    /// Show every setting with the value that is in force
    Show {
        /// The configuration; without it, the defaults are shown
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        config: Option<PathBuf>,
    },
}

impl Explain {
    /// The action that was named.
    pub fn action(&self) -> Option<Action> {
        Action::ALL.into_iter().find(|action| action.as_str() == self.action)
    }
}

/// `appliance`, `key/NAME` or `secret/NAME`, as the trail writes them.
pub(super) fn resource(text: &str) -> Result<Resource, String> {
    text.parse().map_err(|error: ResourceError| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_named_as_in_the_trail() {
        for text in ["appliance", "key/payments", "secret/stripe"] {
            assert_eq!(resource(text).unwrap().path(), text);
        }
        for bad in ["", "keys/a", "key/", "key/A", "key", "key/a/b", "appliance/"] {
            assert!(resource(bad).is_err(), "{bad}");
        }
    }
}
