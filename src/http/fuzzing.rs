//! What must hold for any request that comes in: parsed or refused, and no refusal repeats it.

use http::header::IF_MATCH;
use http::{HeaderMap, HeaderValue, Uri};
use serde_json::Value;

use super::body::is_deeper;
use super::shape::{FromWire, Incoming};
use crate::secret::{self, Use};
use crate::service::{
    Binary, Compromise, CreateKey, Deactivate, DecryptBody, DeleteSecret, DestroyBody, Doctor,
    EncryptBody, ImportBody, Init, Jwks, ListKeys, ListSecrets, Lock, Named, PublicKeyQuery,
    PutBody, ReadAudit, ReadMetrics, ReadPublicKey, Restore, Resume, RevealSecret, Rotate,
    SecretBinary, ShowKey, ShowSecret, Status, Suspend, Unlock,
};

/// Each request struct that a route takes.
const SHAPES: &[fn(&Incoming<'_>)] = &[
    taken::<Init>,
    taken::<Status>,
    taken::<Doctor>,
    taken::<Lock>,
    taken::<Unlock>,
    taken::<CreateKey>,
    taken::<Named<ImportBody>>,
    taken::<ListKeys>,
    taken::<ShowKey>,
    taken::<Jwks>,
    taken::<Named<PublicKeyQuery>>,
    taken::<Named<EncryptBody>>,
    taken::<Named<DecryptBody>>,
    taken::<Rotate>,
    taken::<Suspend>,
    taken::<Resume>,
    taken::<Deactivate>,
    taken::<Compromise>,
    taken::<Restore>,
    taken::<Named<DestroyBody>>,
    taken::<ListSecrets>,
    taken::<ShowSecret>,
    taken::<RevealSecret>,
    taken::<ReadAudit>,
    taken::<ReadPublicKey>,
    taken::<ReadMetrics>,
    taken::<Named<PutBody>>,
    taken::<DeleteSecret>,
];

const DEPTH: usize = 8;

/// What no answer may repeat.
const CANARY: &str = "CANARY";

fn arena() {
    static STARTED: std::sync::Once = std::sync::Once::new();
    STARTED.call_once(|| {
        secret::start(&secret::Settings::default(), Use::Front).expect("an arena");
    });
}

/// A whole request: one byte for the route, then path and query, `if-match`, and body, a line each.
pub fn request(data: &[u8]) {
    arena();
    let Some((route, rest)) = data.split_first() else { return };
    let mut parts = rest.splitn(3, |&byte| byte == b'\n');
    let mut next = || parts.next().unwrap_or_default();
    let (path, tag, body) = (next(), next(), next());
    let Ok(uri) = Uri::try_from(path) else { return };
    let mut headers = HeaderMap::new();
    match HeaderValue::from_bytes(tag) {
        Ok(value) if !tag.is_empty() => drop(headers.insert(IF_MATCH, value)),
        _ => {}
    }
    let incoming = Incoming { uri: &uri, headers: &headers, body, depth: DEPTH };
    if let Some(shape) = SHAPES.get(usize::from(*route) % SHAPES.len()) {
        shape(&incoming);
    }
}

fn taken<R: FromWire>(incoming: &Incoming<'_>) {
    let body: Result<Value, _> = serde_json::from_slice(incoming.body);
    match R::from_wire(incoming) {
        Ok(request) => {
            // Both go into the trail.
            let path = request.resource().path();
            assert!(path.bytes().all(|byte| byte.is_ascii_graphic()), "{path:?}");
            let _ = request.details();
            if !incoming.body.trim_ascii().is_empty() {
                let body = body.expect("a body that is no JSON was taken");
                assert!(body.is_object() && depth(&body) <= DEPTH, "{body}");
            }
        }
        Err(problem) => assert!(!format!("{problem:?}").contains(CANARY), "{problem:?}"),
    }
    if let Ok(body) = serde_json::from_slice::<Value>(incoming.body) {
        assert_eq!(is_deeper(incoming.body, DEPTH), depth(&body) > DEPTH);
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// A binary field: both kinds read the same bytes from the same texts, and what goes out comes in.
pub fn binary(data: &[u8]) {
    arena();
    let Ok(text) = std::str::from_utf8(data) else { return };
    let json = Value::from(text).to_string();
    let (plain, secret) =
        (serde_json::from_str::<Binary>(&json), serde_json::from_str::<SecretBinary>(&json));
    assert_eq!(plain.is_ok(), secret.is_ok(), "two opinions of {text:?}");
    let (Ok(plain), Ok(secret)) = (plain, secret) else { return };
    assert_eq!(plain.0.len(), secret.len());
    if let Ok(held) = secret.plaintext() {
        assert_eq!(held.expose(), plain.0);
    }
    let out = serde_json::to_string(&plain).expect("bytes have a form");
    assert_eq!(serde_json::from_str::<Binary>(&out).expect("its own form"), plain);
}
