//! `strongroom secret …`: values kept as ciphertexts under a key.

use clap::{Args, Subcommand, ValueHint};
use clap_complete::ArgValueCompleter;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Session;
use super::client::{Condition, Reply};
use super::input::{self, Source};
use super::key::MadeFor;
use super::names;
use super::offline::{Mgf1, Recipient};
use super::output::{columns, facts};
use super::owner::Transfer;
use super::problem::Failure;
use super::terminal;
use crate::key::Name;
use crate::secret::SecretBytes;

/// Store, list, show, reveal, delete and transfer secrets
#[derive(Subcommand)]
pub enum Secret {
    Put(Put),
    List(List),
    Show(Show),
    Reveal(Reveal),
    Delete(Delete),
    /// Give a secret another owner, who uses it from then on
    Transfer(Transfer),
}

/// Store a secret
///
/// The value is encrypted here with the key's public key, so that it leaves this process as a ciphertext
/// only. It may also come as a ciphertext that a client made (--ciphertext), or go to the daemon to be
/// encrypted there (--by-daemon). The daemon opens a ciphertext once on trial, so that one made for another
/// key is refused now and not when the value is needed.
///
/// A secret that is there under the name is replaced only after a yes at the terminal, with --yes, or with
/// --if-match.
#[derive(Args)]
#[command(after_help = "Examples:
  printf %s \"$TOKEN\" | strongroom secret put stripe --key payments
  strongroom secret put stripe --key payments --ciphertext token.b64 --version 1
Every byte counts: `echo` adds a newline to the value, `printf %s` does not.")]
pub struct Put {
    /// The name it gets
    #[arg(add = ArgValueCompleter::new(names::secrets))]
    name: Name,
    /// The key that it is kept under
    #[arg(long, value_name = "KEY", add = ArgValueCompleter::new(names::keys))]
    key: Name,
    /// Where to read the value from; `-` is stdin
    #[arg(long = "in", value_name = "FILE", default_value = "-", value_parser = Source::of)]
    #[arg(value_hint = ValueHint::FilePath)]
    input: Source,
    /// Store this ciphertext instead: raw or base64; `-` is stdin
    #[arg(long, value_name = "FILE", value_parser = Source::of)]
    #[arg(conflicts_with_all = ["input", "mgf1_hash"])]
    #[arg(value_hint = ValueHint::FilePath)]
    ciphertext: Option<Source>,
    #[command(flatten)]
    made_for: MadeFor,
    /// Only where the secret still has this revision
    #[arg(long, value_name = "REVISION")]
    if_match: Option<u64>,
    /// Only where there is no secret of this name: nothing is replaced
    #[arg(long, conflicts_with = "if_match")]
    create_only: bool,
    /// Replace what is there without asking
    #[arg(long, short, conflicts_with_all = ["create_only", "if_match"])]
    yes: bool,
    /// Store a value of no bytes; refused otherwise
    #[arg(long, conflicts_with = "ciphertext")]
    allow_empty: bool,
    /// Send the value to the daemon, which encrypts it
    #[arg(long, conflicts_with_all = ["ciphertext", "version", "kid", "mgf1_hash", "no_verify"])]
    by_daemon: bool,
    #[command(flatten)]
    mgf1: Mgf1,
    /// Do not have the daemon open the ciphertext on trial, which needs the permission to decrypt
    #[arg(long)]
    no_verify: bool,
}

#[derive(Serialize)]
struct PlaintextBody<'a> {
    key: &'a Name,
    plaintext: &'a str,
}

/// List the secrets: what is known of each, never a value
#[derive(Args)]
pub struct List {}

/// Show what is known of a secret, never its value
#[derive(Args)]
pub struct Show {
    /// The secret
    #[arg(add = ArgValueCompleter::new(names::secrets))]
    name: Name,
}

/// Write a secret's value to stdout, byte for byte
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom secret reveal stripe
  TOKEN=$(strongroom secret reveal stripe)
With --output json the value is base64 in the member `plaintext`.")]
pub struct Reveal {
    /// The secret
    #[arg(add = ArgValueCompleter::new(names::secrets))]
    name: Name,
}

/// Delete a secret
#[derive(Args)]
pub struct Delete {
    /// The secret
    #[arg(add = ArgValueCompleter::new(names::secrets))]
    name: Name,
    /// Only where the secret still has this revision
    #[arg(long, value_name = "REVISION")]
    if_match: Option<u64>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

impl Secret {
    pub(super) fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Secret::Put(put) => put.run(session),
            Secret::List(_) => list(session),
            Secret::Show(show) => {
                let reply = session.client.get(&format!("/v1/secrets/{}", show.name))?;
                session.out.reply(&reply, facts)
            }
            Secret::Reveal(reveal) => {
                let path = format!("/v1/secrets/{}/reveal", reveal.name);
                session.opened(&session.client.post(&path, &json!({}))?)
            }
            Secret::Delete(delete) => delete.run(session),
            Secret::Transfer(transfer) => transfer.run(session, "secrets"),
        }
    }
}

fn list(session: &Session) -> Result<(), Failure> {
    let secrets = session.pages("/v1/secrets", "secrets")?;
    if session.out.is_json() {
        return session.out.document(&json!({ "secrets": secrets }));
    }
    let shown = ["name", "key", "version", "revision", "owner", "created_at", "updated_at"];
    session.out.text(&columns(&shown, &secrets))
}

impl Put {
    fn run(self, session: &Session) -> Result<(), Failure> {
        if self.made_for.is_said() && self.ciphertext.is_none() {
            return Err(Failure::wrong_use(
                "--version and --kid say what a ciphertext was made for, and there is none",
                "give --ciphertext FILE, or leave them out: the current version is used",
            ));
        }
        let (reply, how) = self.stored(session).map_err(|failure| {
            let key = &self.key;
            let next = format!(
                "`strongroom key list` shows the keys; `strongroom key create {key}` makes this one"
            );
            if failure.is("not-found") { failure.advised(next) } else { failure }
        })?;
        session.out.note(&format!("stored {}: {how}", self.name));
        session.out.reply(&reply, facts)
    }

    /// The daemon's answer, and who encrypted it how.
    fn stored(&self, session: &Session) -> Result<(Reply, String), Failure> {
        Ok(if self.by_daemon {
            let secret = self.value()?;
            let plaintext = input::base64(secret.expose());
            let body = PlaintextBody { key: &self.key, plaintext: &plaintext };
            (self.put(session, &body)?, "encrypted by the daemon".to_owned())
        } else {
            let (mut body, how) = self.encrypted(session)?;
            body.insert("key".to_owned(), json!(self.key));
            body.insert("verify".to_owned(), json!(!self.no_verify));
            (self.put(session, &body)?, how)
        })
    }

    /// Stores it where there is nothing yet; what is there is replaced once somebody has agreed.
    fn put(&self, session: &Session, body: &impl Serialize) -> Result<Reply, Failure> {
        let path = format!("/v1/secrets/{}", self.name);
        if self.yes {
            return session.client.put(&path, body, Condition::Any);
        }
        let condition = match Condition::of(self.if_match, self.create_only) {
            Condition::Any => Condition::Absent,
            asked => return session.client.put(&path, body, asked),
        };
        let first = session.client.put(&path, body, condition);
        let Err(failure) = first else { return first };
        if !failure.is("precondition-failed") {
            return Err(failure);
        }
        let question = format!(
            "replace secret {}, which is there already (--if-match REVISION replaces that revision only). Its \
             value cannot be had back.",
            self.name
        );
        terminal::agree_beside_stdin(false, &question)?;
        session.client.put(&path, body, Condition::Any)
    }

    /// The value. One of no bytes is mostly a mishap upstream, and would replace what is there.
    fn value(&self) -> Result<SecretBytes, Failure> {
        let secret = self.input.secret(Some("Value of the secret"))?;
        if secret.expose().is_empty() && !self.allow_empty {
            return Err(Failure::wrong_use(
                "the value is empty, and nothing was stored",
                "see what came in; --allow-empty stores a value of no bytes",
            ));
        }
        Ok(secret)
    }

    /// The ciphertext and which version it is for, as members of the body; and where it was made.
    fn encrypted(&self, session: &Session) -> Result<(Map<String, Value>, String), Failure> {
        let (ciphertext, mut body, how) = match &self.ciphertext {
            Some(source) => {
                let ciphertext = input::ciphertext(&source.bytes()?);
                (ciphertext, self.made_for.body(), "the ciphertext as it was given".to_owned())
            }
            None => {
                let recipient = Recipient::fetch(session, &self.key, &self.mgf1)?;
                let secret = self.value()?;
                let kid = recipient.kid();
                let how = format!("encrypted here with key {} ({kid})", self.key);
                let body = Map::from_iter([("kid".to_owned(), json!(kid))]);
                (recipient.encrypt(secret.expose())?, body, how)
            }
        };
        body.insert("ciphertext".to_owned(), json!(*input::base64(&ciphertext)));
        Ok((body, how))
    }
}

impl Delete {
    fn run(self, session: &Session) -> Result<(), Failure> {
        let question = format!(
            "delete secret {}. Whoever reads it gets an error from then on, and it cannot be had back.",
            self.name
        );
        terminal::agree(self.yes, &question)?;
        let path = format!("/v1/secrets/{}", self.name);
        let condition = Condition::of(self.if_match, false);
        session.client.delete(&path, None::<&Value>, condition)?;
        session.out.note(&format!("deleted secret {}", self.name));
        Ok(())
    }
}
