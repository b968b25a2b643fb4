//! The recovery key: set, taken away and looked at by asking the daemon; used offline, without one.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use serde_json::{Value, json};

use super::Session;
use super::client::Condition;
use super::dry_run::{self, DryRun};
use super::input::Source;
use super::master::follow;
use super::output::facts;
use super::problem::Failure;
use super::terminal::{self, Refusal};

/// Be able to open every key without the token: a second wrap to a key that lies offline
#[derive(Subcommand)]
pub enum Recovery {
    Set(Set),
    Forget(Forget),
    /// Show whether this appliance can be recovered without its token, and count what can
    Status,
    Drill(Drill),
    Reseal(Reseal),
}

/// Wrap every key to a recovery key, too: those that there are, and every new one
///
/// The file holds the public half, RSA-4096. It must be the one that `[custody] recovery_key` of the
/// configuration names: custody wraps to that one alone, and only once it was set here. The private half
/// belongs in a safe and never near this machine.
#[derive(Args)]
#[command(after_help = "Examples, the first two on a machine without a network:
  openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:4096 -aes256 -out recovery.key
  openssl pkey -in recovery.key -pubout -out recovery.pem
  strongroom recovery set /etc/strongroom/recovery.pem
  strongroom recovery status")]
pub struct Set {
    /// The public key, PEM
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    public_key: PathBuf,
    /// Do not wait until every key is wrapped
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    dry: DryRun,
}

/// Wrap nothing to the recovery key any more, and take its wraps away; backups keep theirs
#[derive(Args)]
pub struct Forget {
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    dry: DryRun,
}

/// Prove that a copy of the store can be recovered: offline, with the private half and nothing else
///
/// Opens every wrapped key with it, opens what each seals, and holds it against its public key. No
/// record is changed. Works on a copy (of a backup, or of a stopped appliance); do it on a
/// machine without a network.
#[derive(Args)]
#[command(after_help = "Example:
  openssl pkey -in recovery.key | strongroom recovery drill --store ./copy --private-key -")]
pub struct Drill {
    /// The directory of the copied store
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub store: PathBuf,
    /// The private half, unencrypted PEM; `-` is stdin
    #[arg(long, value_name = "FILE", value_parser = Source::of, value_hint = ValueHint::FilePath)]
    pub private_key: Source,
}

/// Put a store under a new token, where the old one is lost: offline, with the private half
///
/// Makes a new master key and a new signing key in the token that the configuration names, and wraps every
/// key of its store under it; the daemon must be stopped. Make a copy of the store first. The token must be
/// empty: one that still opens the store is refused, for nothing is lost then, and so is another
/// appliance's. Says what it will do and asks, at the terminal. Cut off, it is run again.
#[derive(Args)]
#[command(after_help = "Example:
  systemctl stop strongroom.socket strongroom-custody.socket strongroom strongroom-custody
  openssl pkey -in recovery.key | strongroom recovery reseal \\
      --config /etc/strongroom/strongroom.toml --private-key -
  systemctl start strongroom

As root, it works on the store as the owner of the store's directory, and with the token as custody's user:
[custody] custody_user of the configuration, or the store's owner.")]
pub struct Reseal {
    /// The configuration: its `[store]` and its `[token]`, which is the new one
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// The private half, unencrypted PEM; `-` is stdin
    #[arg(long, value_name = "FILE", value_parser = Source::of, value_hint = ValueHint::FilePath)]
    pub private_key: Source,
    /// Where to read the token's PIN from, in place of what the configuration says
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub pin_file: Option<PathBuf>,
    /// Also where the token still opens the store: a new master key in the same token
    #[arg(long)]
    pub same_token: bool,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    #[command(flatten)]
    pub dry: DryRun,
}

/// What is done with the private half, without a daemon.
pub enum OfflineRecovery {
    Drill(Drill),
    Reseal(Reseal),
}

impl Reseal {
    /// Has somebody at the terminal agree to what it will do. The key may come through stdin, so it asks
    /// at the terminal itself.
    ///
    /// # Errors
    /// What is said then, and what to do next.
    pub fn agree(&self, what: &str) -> Result<(), Refusal> {
        if self.yes { Ok(()) } else { terminal::confirm_at_terminal(what) }
    }
}

impl Recovery {
    /// Splits off what the floor above does.
    pub(super) fn offline(self) -> Result<OfflineRecovery, Self> {
        match self {
            Recovery::Drill(drill) => Ok(OfflineRecovery::Drill(drill)),
            Recovery::Reseal(reseal) => Ok(OfflineRecovery::Reseal(reseal)),
            other => Err(other),
        }
    }

    pub(super) fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Recovery::Set(set) => set.run(session),
            Recovery::Forget(forget) => forget.run(session),
            Recovery::Status | Recovery::Drill(_) | Recovery::Reseal(_) => show(session),
        }
    }
}

fn show(session: &Session) -> Result<(), Failure> {
    session.out.reply(&session.client.get("/v1/recovery?counts=true")?, facts)
}

/// How many versions of keys and store keys there are.
fn wrapped(session: &Session) -> Result<(u64, u64), Failure> {
    let view = session.document_at("/v1/recovery?counts=true")?;
    let count = |name: &str| view.pointer(&format!("/counted/{name}")).and_then(Value::as_u64);
    Ok((count("key_versions").unwrap_or(0), count("store_keys").unwrap_or(0)))
}

impl Set {
    fn run(self, session: &Session) -> Result<(), Failure> {
        let file = Source::File(self.public_key.clone()).bytes()?;
        let text = String::from_utf8_lossy(&file);
        if self.dry.dry_run {
            let (versions, store_keys) = wrapped(session)?;
            let changes = [
                format!("set the recovery key from {}", self.public_key.display()),
                format!(
                    "wrap {versions} versions of keys and {store_keys} store keys to it, too, and every new one"
                ),
            ];
            return dry_run::print(session, &changes);
        }
        let reply =
            session.client.put("/v1/recovery", &json!({ "public_key": text }), Condition::Any)?;
        if self.no_wait {
            return session.out.reply(&reply, facts);
        }
        follow(session, "/v1/recovery", "pass")?;
        show(session)
    }
}

impl Forget {
    fn run(self, session: &Session) -> Result<(), Failure> {
        if self.dry.dry_run {
            let (versions, store_keys) = wrapped(session)?;
            let changes = [
                "forget the recovery key: nothing can be recovered without the token after that"
                    .to_owned(),
                format!(
                    "take its wraps from {versions} versions of keys and {store_keys} store keys; backups keep theirs"
                ),
            ];
            return dry_run::print(session, &changes);
        }
        let question =
            "forget the recovery key. Nothing can be recovered without the token after that.";
        terminal::agree(self.yes, question)?;
        session.client.delete("/v1/recovery", None::<&Value>, Condition::Any)?;
        follow(session, "/v1/recovery", "pass")?;
        show(session)
    }
}
