//! JSON Web Keys (RFC 7517) of RSA public keys for encryption: what we write, and a strict reader.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Origin;

/// RSAES-OAEP with SHA-256 and MGF1-SHA-256 (RFC 7518 §4.3).
pub(super) const RSA_OAEP_256: &str = "RSA-OAEP-256";

/// A public key as others read it. `n` and `e` are base64url without padding (RFC 7518 §6.3.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Jwk {
    pub kty: &'static str,
    #[serde(rename = "use")]
    pub public_key_use: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alg: Option<&'static str>,
    pub kid: String,
    pub n: String,
    pub e: String,
    /// Where its private key comes from, where that is on record: `generated` in custody, or `imported`, so that
    /// there may be copies elsewhere. No member of RFC 7517.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub origin: Option<Origin>,
}

impl Jwk {
    pub fn of_origin(self, origin: Option<Origin>) -> Self {
        Self { origin, ..self }
    }
}

/// Not a JWK that can be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwkError {
    #[error("the JWK is not a JSON object of the right members: {0}")]
    Json(String),
    #[error("the JWK is a private key; give the public one, and keep this out of sight")]
    Private,
    #[error("the JWK's kty must be \"RSA\"")]
    Type,
    #[error("the JWK's use must be \"enc\"")]
    Use,
    #[error("the JWK's alg must be \"RSA-OAEP-256\"")]
    Algorithm,
    #[error("the JWK's key_ops must allow \"encrypt\" or \"wrapKey\"")]
    Operations,
    #[error("the JWK's {0} must be base64url without padding and without leading zeros")]
    Number(&'static str),
}

/// Every member that matters. serde refuses a member that stands there twice.
#[derive(Deserialize)]
struct Members {
    kty: String,
    n: String,
    e: String,
    #[serde(rename = "use")]
    public_key_use: Option<String>,
    alg: Option<String>,
    key_ops: Option<Vec<String>>,
    d: Option<Private>,
    p: Option<Private>,
    q: Option<Private>,
    dp: Option<Private>,
    dq: Option<Private>,
    qi: Option<Private>,
    oth: Option<Private>,
}

/// A member of a private key (RFC 7518 §6.3.2): noticed, never kept.
type Private = serde::de::IgnoredAny;

/// Answers the modulus and the exponent, big-endian.
pub(super) fn parse(json: &str) -> Result<(Vec<u8>, Vec<u8>), JwkError> {
    let members: Members =
        serde_json::from_str(json).map_err(|error| JwkError::Json(place_of(&error)))?;
    let Members { d, p, q, dp, dq, qi, oth, .. } = &members;
    if [d, p, q, dp, dq, qi, oth].into_iter().any(Option::is_some) {
        return Err(JwkError::Private);
    }
    if members.kty != "RSA" {
        return Err(JwkError::Type);
    }
    if members.public_key_use.is_some_and(|value| value != "enc") {
        return Err(JwkError::Use);
    }
    if members.alg.is_some_and(|value| value != RSA_OAEP_256) {
        return Err(JwkError::Algorithm);
    }
    let encrypts = |operation: &String| operation == "encrypt" || operation == "wrapKey";
    if members.key_ops.is_some_and(|operations| !operations.iter().any(encrypts)) {
        return Err(JwkError::Operations);
    }
    Ok((number("n", &members.n)?, number("e", &members.e)?))
}

/// Where the JSON broke and how, without its text: a private key may stand in it.
fn place_of(error: &serde_json::Error) -> String {
    let kind = match error.classify() {
        serde_json::error::Category::Data => "a member is missing, doubled or of another type",
        serde_json::error::Category::Eof => "it ends too early",
        _ => "a syntax error",
    };
    format!("{kind} at line {} column {}", error.line(), error.column())
}

fn number(member: &'static str, text: &str) -> Result<Vec<u8>, JwkError> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| JwkError::Number(member))?;
    match bytes.first() {
        Some(0) | None => Err(JwkError::Number(member)),
        Some(_) => Ok(bytes),
    }
}
