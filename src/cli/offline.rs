//! Encrypting with a public key, here: no daemon sees the plaintext.

use clap::{Args, ValueHint};
use serde_json::{Value, json};

use super::Session;
use super::input::{self, Source};
use super::output::Output;
use super::problem::Failure;
use crate::key::{EncryptError, Mgf1Hash, Name, PublicKey};

/// Encrypt with a public key, offline; prints the ciphertext as base64
///
/// RSAES-OAEP with SHA-256. What comes out is opened by `key decrypt`, or stored with
/// `secret put --ciphertext`.
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom key public payments > payments.jwk
  printf %s \"$TOKEN\" | strongroom encrypt --public-key payments.jwk > token.b64
  strongroom secret put stripe --key payments --ciphertext token.b64
Every byte counts: `echo` adds a newline to the value, `printf %s` does not.")]
pub struct Encrypt {
    /// The public key: JWK, or PEM of an SPKI or PKCS#1 key
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    public_key: std::path::PathBuf,
    /// Where to read the plaintext from; `-` is stdin
    #[arg(long = "in", value_name = "FILE", default_value = "-", value_parser = Source::of)]
    #[arg(value_hint = ValueHint::FilePath)]
    input: Source,
    #[command(flatten)]
    mgf1: Mgf1,
    /// An OAEP label, which the ciphertext can be opened with only
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    oaep_label: String,
    /// Print the ciphertext as bytes
    #[arg(long)]
    raw: bool,
}

/// The hash inside MGF1, where it is not what the key says or SHA-256.
#[derive(Args)]
pub struct Mgf1 {
    /// The hash inside MGF1, as it is set on the key
    #[arg(long, value_name = "HASH", value_parser = ["SHA-256", "SHA-1"])]
    mgf1_hash: Option<String>,
}

impl Mgf1 {
    /// What was asked for, if anything was.
    pub fn hash(&self) -> Option<Mgf1Hash> {
        let asked = self.mgf1_hash.as_deref()?;
        [Mgf1Hash::Sha256, Mgf1Hash::Sha1].into_iter().find(|hash| hash.as_str() == asked)
    }
}

impl Encrypt {
    pub(super) fn run(self, out: &Output) -> Result<(), Failure> {
        let file = Source::File(self.public_key.clone()).bytes()?;
        let key = PublicKey::from_any(&file).map_err(|error| {
            Failure::failed(
                format!("{}: {error}", self.public_key.display()),
                "fetch it with `strongroom key public NAME`",
            )
        })?;
        let plaintext = self.input.secret(Some("Value to encrypt"))?;
        let hash = self.mgf1.hash().unwrap_or_default();
        let ciphertext = key
            .encrypt(hash, plaintext.expose(), self.oaep_label.as_bytes())
            .map_err(not_encrypted)?;
        if self.raw && !out.is_json() {
            return out.bytes(&ciphertext);
        }
        let ciphertext = input::base64(&ciphertext);
        if out.is_json() {
            return out.document(&json!({ "ciphertext": *ciphertext, "kid": key.kid() }));
        }
        out.text(&format!("{}\n", *ciphertext))
    }
}

/// The current public key of a key at the daemon, and how to encrypt for it.
pub struct Recipient {
    key: PublicKey,
    hash: Mgf1Hash,
}

impl Recipient {
    /// Asks the daemon. A JWK without `alg` belongs to a key with another hash inside MGF1: the key's
    /// own document says which, unless it was told here.
    pub(super) fn fetch(session: &Session, name: &Name, mgf1: &Mgf1) -> Result<Self, Failure> {
        let reply = session.client.get(&format!("/v1/keys/{name}/public?format=jwk"))?;
        let key = PublicKey::from_any(&reply.body).map_err(|error| {
            Failure::failed(
                format!("the daemon's public key of {name} cannot be used: {error}"),
                "check that daemon and command are of one version",
            )
        })?;
        let has_algorithm = reply.value()?.get("alg").is_some();
        let hash = match mgf1.hash() {
            Some(hash) => hash,
            None if has_algorithm => Mgf1Hash::Sha256,
            None => {
                let reply = session.client.get(&format!("/v1/keys/{name}"))?;
                let hash = reply.value()?.get("mgf1_hash").map(Value::to_owned);
                let hash: Option<Mgf1Hash> = hash.and_then(|h| serde_json::from_value(h).ok());
                hash.ok_or_else(|| {
                    Failure::failed(
                        format!("the daemon does not say which hash key {name} has inside MGF1"),
                        "say it with --mgf1-hash",
                    )
                })?
            }
        };
        Ok(Self { key, hash })
    }

    /// Which version it is, by its thumbprint.
    pub fn kid(&self) -> String {
        self.key.kid()
    }

    pub fn encrypt(&self, plaintext: &[u8]) -> Result<Vec<u8>, Failure> {
        self.key.encrypt(self.hash, plaintext, b"").map_err(not_encrypted)
    }
}

fn not_encrypted(error: EncryptError) -> Failure {
    let next = match error {
        EncryptError::TooLong { .. } => {
            "encrypt the value with a symmetric key and keep that key here, or use a longer RSA key"
        }
        EncryptError::Failed => "check the public key",
    };
    Failure::failed(error.to_string(), next)
}
