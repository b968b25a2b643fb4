//! Headers that change what a request means. Preconditions (RFC 9110 §13) are read; what Strongroom does
//! not do is refused, for a client that asked for it would take the answer for something else.

use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, ETAG, EXPECT, HeaderName, HeaderValue, IF_MATCH,
    IF_NONE_MATCH,
};
use http::{HeaderMap, StatusCode};

use super::problem::Problem;
use crate::service::{Preconditions, Tags};

/// Why credentials are refused: whoever sends them would take the answer for one that they gave.
const NO_CREDENTIALS: &str = "on this socket the caller is the Unix user that connects, as the kernel says; credentials are not read";

/// What a request must not carry, and why not.
const REFUSED: [(&str, &str); 15] = [
    ("authorization", NO_CREDENTIALS),
    ("proxy-authorization", NO_CREDENTIALS),
    ("x-api-key", NO_CREDENTIALS),
    ("range", "an answer is always whole; there are no ranges of it"),
    ("if-range", "an answer is always whole; there are no ranges of it"),
    ("content-range", "a resource is put whole, never a part of it"),
    ("if-modified-since", "resources are told apart by entity tags: use if-none-match"),
    ("if-unmodified-since", "resources are told apart by entity tags: use if-match"),
    ("if", "resources are told apart by entity tags: use if-match or if-none-match"),
    ("prefer", "there are no preferences to choose from"),
    (
        "idempotency-key",
        "requests are not remembered: if-match or if-none-match makes a repetition safe",
    ),
    ("accept-datetime", "there are no older states to answer with"),
    ("x-http-method-override", "the method is that of the request line"),
    ("x-http-method", "the method is that of the request line"),
    ("x-method-override", "the method is that of the request line"),
];

/// The first header that asks for what is not done.
pub fn fault(headers: &HeaderMap) -> Option<Problem> {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    if codings.any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity")) {
        return Some(Problem::encoded());
    }
    let mut expected = headers.get_all(EXPECT).iter();
    let continues = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if !expected.all(continues) {
        return Some(Problem::expectation());
    }
    let refused = REFUSED.iter().find(|(name, _)| headers.contains_key(*name));
    refused.map(|(name, why)| Problem::unsupported_header(name, why))
}

/// The conditions in `if-match` and `if-none-match`.
pub fn preconditions(headers: &HeaderMap) -> Result<Preconditions, Problem> {
    Ok(Preconditions {
        if_match: tags(headers, &IF_MATCH)?,
        if_none_match: tags(headers, &IF_NONE_MATCH)?,
    })
}

/// For resources without entity tags: a condition cannot hold there, so none is taken.
pub fn no_preconditions(headers: &HeaderMap) -> Result<(), Problem> {
    for name in ["if-match", "if-none-match"] {
        if headers.contains_key(name) {
            let why = "this route has no entity tag that it could be held against";
            return Err(Problem::unsupported_header(name, why));
        }
    }
    Ok(())
}

/// One condition: `*`, or revisions as strong entity tags. A tag that is not one of ours is refused, not
/// taken for one that differs.
fn tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, Problem> {
    let mut given = headers.get_all(name).iter();
    let Some(value) = given.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|_| given.next().is_none()).map(str::trim);
    let tags = match text {
        Some("*") => Some(Tags::Any),
        Some(text) => text.split(',').map(revision).collect::<Option<_>>().map(Tags::Of),
        None => None,
    };
    let unfit =
        || Problem::malformed(format!("{name} has to be *, or revisions like \"3\", \"4\""));
    tags.map(Some).ok_or_else(unfit)
}

/// A revision as a strong entity tag: `"3"`.
fn revision(tag: &str) -> Option<u64> {
    let digits = tag.trim().strip_prefix('"')?.strip_suffix('"')?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok())?
}

/// What a read comes to: a resource that the client has already is a 304, one that is not the wanted
/// one a 412 (RFC 9110 §13.2.2).
pub fn of_read(conditions: &Preconditions, reply: &HeaderMap) -> Option<StatusCode> {
    let current = reply.get(ETAG).and_then(|tag| tag.to_str().ok()).and_then(revision);
    let includes = |tags: &Option<Tags>| tags.as_ref().map(|tags| tags.include(current));
    match (includes(&conditions.if_match), includes(&conditions.if_none_match)) {
        (Some(false), _) => Some(StatusCode::PRECONDITION_FAILED),
        (_, Some(true)) => Some(StatusCode::NOT_MODIFIED),
        _ => None,
    }
}

/// What a 415 for a coding says of those that are taken (RFC 9110 §12.5.3).
pub fn codings(headers: &mut HeaderMap) {
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_done_is_refused() {
        let refused = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            fault(&headers).is_some()
        };
        for (name, _) in REFUSED {
            assert!(refused(name, "x"), "{name}");
        }
        assert!(refused("content-encoding", "gzip") && !refused("content-encoding", "Identity"));
        assert!(refused("expect", "202-ok") && !refused("expect", "100-Continue"));
        // Sent by clients that change nothing by it.
        for name in ["upgrade", "http2-settings", "accept-encoding", "x-request-id", "te"] {
            assert!(!refused(name, "x"), "{name}");
        }
    }

    #[test]
    fn tags_are_revisions() {
        let read = |value: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(IF_MATCH, HeaderValue::from_bytes(value).unwrap());
            preconditions(&headers).map(|conditions| conditions.if_match.unwrap()).ok()
        };
        assert_eq!(read(b"*"), Some(Tags::Any));
        assert_eq!(read(b"\"3\" ,\"4\""), Some(Tags::Of(vec![3, 4])));
        for unfit in [
            &b"3"[..],
            b"W/\"3\"",
            b"\"+3\"",
            b"\"\"",
            b"\"a\"",
            b"",
            b"\"3\",",
            b"*, \"3\"",
            b"\xff",
        ] {
            assert_eq!(read(unfit), None, "{unfit:?}");
        }
    }
}
