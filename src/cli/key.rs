//! `strongroom key …`: keys, their versions and states, and what is done with them.

use clap::{Args, Subcommand, ValueHint};
use clap_complete::ArgValueCompleter;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Session;
use super::input::{self, Source};
use super::key_state::{Change, Destroy, Rotate, Update, seconds};
use super::names;
use super::output::{cell, columns, facts};
use super::owner::{Transfer, owner};
use super::problem::Failure;
use crate::key::{Labels, Name, Owner, pem};

/// Create, import, show and use keys, and change their states
#[derive(Subcommand)]
pub enum Key {
    Create(Create),
    Import(Import),
    List(List),
    Show(Show),
    Public(Public),
    Encrypt(Encrypt),
    Decrypt(Decrypt),
    Update(Update),
    /// Make a new version that protects from now on; older ones still open what they protected
    Rotate(Rotate),
    /// Stop using a key or a version until `resume`
    Suspend(Change),
    /// Use a suspended key or version again
    Resume(Change),
    /// End using a key or a version for good
    ///
    /// It protects nothing any more, and what it protected opens only for who has the permission
    /// `key:recover` besides `key:decrypt`. Nobody has it as shipped.
    Deactivate(Change),
    /// Mark a key or a version as compromised: it stops at once, for good
    ///
    /// What it protected opens only for who has the permission `key:recover` besides `key:decrypt`.
    /// Nobody has it as shipped.
    Compromise(Change),
    Destroy(Destroy),
    /// Cancel a destruction that is still waiting
    Restore(Change),
    /// Give a key another owner, who uses it from then on
    Transfer(Transfer),
}

/// Create an RSA key; its private part is made and kept under the master key
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom key create payments --owner deploy        for the service that runs as this user
  strongroom key create common --label shared=services  for all services, as policy is shipped
  strongroom key create payments --algorithm RSA-4096 --label team=billing")]
pub struct Create {
    /// The key's name: a-z, 0-9, '.', '_' and '-', 63 at most
    name: Name,
    /// The size of the key
    #[arg(long, default_value = "RSA-2048", value_name = "ALGORITHM")]
    #[arg(value_parser = ["RSA-2048", "RSA-3072", "RSA-4096"])]
    algorithm: String,
    #[command(flatten)]
    traits: Traits,
}

/// Import an RSA private key: PKCS#8 or PKCS#1, PEM or DER; or a JWK
///
/// The file you import from still holds the key in the clear afterwards: destroy it.
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom key import legacy --in key.pem
  openssl pkey -in encrypted.pem -outform DER | strongroom key import legacy")]
pub struct Import {
    /// The name that the key gets
    name: Name,
    /// Where to read the private key from; `-` is stdin
    #[arg(long = "in", value_name = "FILE", default_value = "-", value_parser = Source::of)]
    #[arg(value_hint = ValueHint::FilePath)]
    input: Source,
    #[command(flatten)]
    traits: Traits,
}

/// What a new key is given.
#[derive(Args)]
struct Traits {
    /// The hash inside MGF1; SHA-1 is for clients whose library cannot do otherwise
    #[arg(long, value_name = "HASH", value_parser = ["SHA-256", "SHA-1"])]
    mgf1_hash: Option<String>,
    /// A label to find the key by; may be given several times
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// For how long of an outage of the token the opened key may go on serving: 90s, 15m, 12h, 7d at
    /// most; not at all unless said
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    serve_without_token: Option<u32>,
    /// Whom it is to belong to: a user by name or number, or an id like unix:1000; you unless said
    #[arg(long, value_name = "OWNER", value_parser = owner, value_hint = ValueHint::Username)]
    owner: Option<Owner>,
}

/// List the keys
#[derive(Args)]
pub struct List {}

/// Show a key and its versions
#[derive(Args)]
pub struct Show {
    /// The key
    #[arg(add = ArgValueCompleter::new(names::keys))]
    name: Name,
}

/// Print the public key, for clients that encrypt by themselves
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom key public payments > payments.jwk
  strongroom key public payments --format spki-pem > payments.pem
  printf %s \"$TOKEN\" | openssl pkeyutl -encrypt -pubin -inkey payments.pem \\
      -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256")]
pub struct Public {
    /// The key
    #[arg(add = ArgValueCompleter::new(names::keys))]
    name: Name,
    /// A version; the current one otherwise
    #[arg(long, value_name = "N")]
    version: Option<u32>,
    /// The form
    #[arg(long, default_value = "jwk", value_parser = ["jwk", "pkcs1-pem", "spki-pem"])]
    format: String,
}

/// Have the daemon encrypt; prints the ciphertext as base64
///
/// The public key is enough to encrypt: `strongroom encrypt --public-key` does it without a daemon.
#[derive(Args)]
#[command(after_help = "Example:
  printf %s \"$TOKEN\" | strongroom key encrypt payments > token.b64")]
pub struct Encrypt {
    /// The key
    #[arg(add = ArgValueCompleter::new(names::keys))]
    name: Name,
    /// Where to read the plaintext from; `-` is stdin
    #[arg(long = "in", value_name = "FILE", default_value = "-", value_parser = Source::of)]
    #[arg(value_hint = ValueHint::FilePath)]
    input: Source,
    /// The OAEP label, which the ciphertext can be opened with only
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    oaep_label: Option<String>,
    /// Print the ciphertext as bytes
    #[arg(long)]
    raw: bool,
}

/// Open a ciphertext; writes the plaintext to stdout, byte for byte
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom key decrypt payments --in token.b64
  strongroom key decrypt payments --version 1 < token.bin
The ciphertext is raw or base64 of any alphabet.")]
pub struct Decrypt {
    /// The key
    #[arg(add = ArgValueCompleter::new(names::keys))]
    name: Name,
    /// Where to read the ciphertext from; `-` is stdin
    #[arg(long = "in", value_name = "FILE", default_value = "-", value_parser = Source::of)]
    #[arg(value_hint = ValueHint::FilePath)]
    input: Source,
    #[command(flatten)]
    made_for: MadeFor,
    /// The OAEP label that it was made with
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    oaep_label: Option<String>,
}

/// Which version a ciphertext was made for; the current one where nothing is said.
#[derive(Args)]
pub struct MadeFor {
    /// The version that it was made for
    #[arg(long, value_name = "N", conflicts_with = "kid")]
    version: Option<u32>,
    /// The key id (RFC 7638 thumbprint) that it was made for
    #[arg(long, value_name = "KID", allow_hyphen_values = true)]
    kid: Option<String>,
}

#[derive(Serialize)]
struct PlaintextBody<'a> {
    plaintext: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
}

#[derive(Serialize)]
struct ImportBody<'a> {
    private_key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mgf1_hash: Option<String>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    labels: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serve_without_token_seconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<Owner>,
}

impl Key {
    pub(super) fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Key::Create(create) => create.run(session),
            Key::Import(import) => import.run(session),
            Key::List(list) => list.run(session),
            Key::Show(show) => show.run(session),
            Key::Public(public) => public.run(session),
            Key::Encrypt(encrypt) => encrypt.run(session),
            Key::Decrypt(decrypt) => decrypt.run(session),
            Key::Update(update) => update.run(session),
            Key::Rotate(rotate) => rotate.run(session),
            Key::Suspend(change) => change.run(session, "suspend", None),
            Key::Resume(change) => change.run(session, "resume", None),
            Key::Deactivate(change) => change.run(
                session,
                "deactivate",
                Some("It will never encrypt again; what it encrypted still opens."),
            ),
            Key::Compromise(change) => change.run(
                session,
                "compromise",
                Some("It stops at once and for good: nothing that it encrypted opens any more."),
            ),
            Key::Destroy(destroy) => destroy.run(session),
            Key::Restore(change) => change.run(session, "restore", None),
            Key::Transfer(transfer) => transfer.run(session, "keys"),
        }
    }
}

impl Create {
    fn run(self, session: &Session) -> Result<(), Failure> {
        let without_token = self.traits.serve_without_token;
        let owner = self.traits.owner.clone();
        let (mgf1_hash, labels) = self.traits.parts();
        let mut body = Map::new();
        body.insert("name".to_owned(), json!(self.name));
        body.insert("algorithm".to_owned(), json!(self.algorithm));
        if let Some(hash) = mgf1_hash {
            body.insert("mgf1_hash".to_owned(), json!(hash));
        }
        if !labels.is_empty() {
            body.insert("labels".to_owned(), Value::Object(labels));
        }
        if let Some(seconds) = without_token {
            body.insert("serve_without_token_seconds".to_owned(), json!(seconds));
        }
        if let Some(owner) = owner {
            body.insert("owner".to_owned(), json!(owner));
        }
        session.out.reply(&session.client.post("/v1/keys", &body)?, |key| made("created", key))
    }
}

impl Import {
    fn run(self, session: &Session) -> Result<(), Failure> {
        let secret = self.input.secret(None)?;
        // PEM and JWK go as the text they are, everything else as base64 of DER.
        let pem = std::str::from_utf8(secret.expose()).ok().filter(|text| is_text(text.as_bytes()));
        let encoded = match pem {
            Some(_) => None,
            None => Some(input::base64(secret.expose())),
        };
        let private_key = pem.or(encoded.as_ref().map(|text| text.as_str())).unwrap_or_default();
        let serve_without_token_seconds = self.traits.serve_without_token;
        let owner = self.traits.owner.clone();
        let (mgf1_hash, labels) = self.traits.parts();
        let body =
            ImportBody { private_key, mgf1_hash, labels, serve_without_token_seconds, owner };
        let reply = session.client.post(&format!("/v1/keys/{}/import", self.name), &body)?;
        session.out.reply(&reply, |key| made("imported", key))
    }
}

/// A new key in a line.
fn made(done: &str, key: &Value) -> String {
    let said = |name: &str| key.get(name).map_or(String::new(), |value| cell(name, value));
    let mut line = format!("{done} key {}: {}", said("name"), said("algorithm"));
    for (name, before) in [("owner", ", owner "), ("labels", ", labels "), ("kid", ", kid ")] {
        let value = said(name);
        if !value.is_empty() {
            line += before;
            line += &value;
        }
    }
    line + "\n"
}

/// Whether it is PEM or a JWK.
fn is_text(key: &[u8]) -> bool {
    pem::is_pem(key) || pem::bare(key).first() == Some(&b'{')
}

impl Traits {
    fn parts(self) -> (Option<String>, Map<String, Value>) {
        let labels =
            self.labels.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
        (self.mgf1_hash, labels)
    }
}

impl List {
    fn run(self, session: &Session) -> Result<(), Failure> {
        let keys = session.pages("/v1/keys", "keys")?;
        if session.out.is_json() {
            return session.out.document(&json!({ "keys": keys }));
        }
        let mut names =
            vec!["name", "algorithm", "state", "current_version", "created_at", "owner", "labels"];
        if keys.iter().any(|key| key.get("destroy_at").is_some()) {
            names.insert(3, "destroy_at");
        }
        session.out.text(&columns(&names, &keys))
    }
}

impl Show {
    fn run(self, session: &Session) -> Result<(), Failure> {
        session.out.reply(&session.client.get(&format!("/v1/keys/{}", self.name))?, facts)
    }
}

impl Public {
    fn run(self, session: &Session) -> Result<(), Failure> {
        let mut path = format!("/v1/keys/{}/public?format={}", self.name, self.format);
        if let Some(version) = self.version {
            path += &format!("&version={version}");
        }
        let reply = session.client.get(&path)?;
        if self.format == "jwk" {
            return session.out.document(&reply.value()?);
        }
        let text = String::from_utf8_lossy(&reply.body);
        if session.out.is_json() {
            let document = json!({ "format": self.format, "public_key": text });
            return session.out.document(&document);
        }
        session.out.text(&text)
    }
}

impl Encrypt {
    fn run(self, session: &Session) -> Result<(), Failure> {
        let plaintext = self.input.secret(Some("Value to encrypt"))?;
        let plaintext = input::base64(plaintext.expose());
        let label = self.oaep_label.map(|label| input::base64(label.as_bytes()).to_string());
        let body = PlaintextBody { plaintext: &plaintext, label };
        let reply = session.client.post(&format!("/v1/keys/{}/encrypt", self.name), &body)?;
        let value = reply.value()?;
        let ciphertext = value.get("ciphertext").and_then(Value::as_str).unwrap_or_default();
        if session.out.is_json() {
            session.out.document(&value)
        } else if self.raw {
            session.out.bytes(&input::ciphertext(ciphertext.as_bytes()))
        } else {
            session.out.text(&format!("{ciphertext}\n"))
        }
    }
}

impl Decrypt {
    fn run(self, session: &Session) -> Result<(), Failure> {
        let ciphertext = input::ciphertext(&self.input.bytes()?);
        let mut body = self.made_for.body();
        body.insert("ciphertext".to_owned(), json!(*input::base64(&ciphertext)));
        if let Some(label) = self.oaep_label {
            body.insert("label".to_owned(), json!(*input::base64(label.as_bytes())));
        }
        let reply = session.client.post(&format!("/v1/keys/{}/decrypt", self.name), &body)?;
        session.opened(&reply)
    }
}

impl MadeFor {
    /// Whether anything was said.
    pub fn is_said(&self) -> bool {
        self.version.is_some() || self.kid.is_some()
    }

    pub fn body(&self) -> Map<String, Value> {
        let version = self.version.map(|version| ("version".to_owned(), json!(version)));
        let kid = self.kid.as_ref().map(|kid| ("kid".to_owned(), json!(kid)));
        version.into_iter().chain(kid).collect()
    }
}

/// `NAME=VALUE`, under the rules for labels.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a label is NAME=VALUE")?;
    Labels::default().insert(name, value).map_err(|error| error.to_string())?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        assert_eq!(label("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(label("=b").is_err() && label("a").is_err() && label("a=x\n").is_err());
    }
}
