//! The single map from what went wrong to the wire: problem documents (RFC 9457).
//!
//! `code` is stable and made for programs, `next` says what to do. Of the appliance's own troubles a
//! caller is told the kind alone.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::meaning;
use super::turn::NoTurn;
use crate::service::Error;

/// Why a request was not done.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    next: &'static str,
    retry_after: Option<u32>,
    /// The member at fault.
    pointer: Option<String>,
}

/// The document on the wire.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct Document<'a> {
    /// Always `about:blank`: `code` tells problems apart.
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    /// Stable; made for programs.
    code: &'static str,
    /// The member of the body that is at fault, as a JSON pointer (RFC 6901).
    #[serde(skip_serializing_if = "Option::is_none")]
    pointer: Option<&'a str>,
    /// What to do about it.
    #[serde(skip_serializing_if = "str::is_empty")]
    next: &'static str,
    /// The same as in the `x-request-id` header, the trail and the journal.
    request_id: String,
}

impl Problem {
    fn new(
        status: StatusCode,
        code: &'static str,
        detail: impl Into<String>,
        next: &'static str,
    ) -> Self {
        Self { status, code, detail: detail.into(), next, retry_after: None, pointer: None }
    }

    /// The body, the query or a header is not what the route takes.
    pub fn malformed(detail: impl Into<String>) -> Self {
        let next = "see GET /v1/openapi.json for what this route takes";
        Self::new(StatusCode::BAD_REQUEST, "malformed", detail, next)
    }

    /// A member of the body, by its pointer, is not what the route takes; an empty pointer is the body.
    pub fn member(pointer: &str, what: &str) -> Self {
        match pointer {
            "" => Self::malformed(format!("the body: {what}")),
            _ => Self {
                pointer: Some(pointer.to_owned()),
                ..Self::malformed(format!("{pointer}: {what}"))
            },
        }
    }

    pub fn invalid_name() -> Self {
        let detail = "a name is 1 to 63 characters of a-z, 0-9, '.', '_' and '-', and starts with a \
                      letter or digit";
        Self::new(StatusCode::BAD_REQUEST, "invalid-name", detail, "use such a name")
    }

    pub fn no_route() -> Self {
        let next = "see GET /v1/openapi.json for all routes";
        Self::new(StatusCode::NOT_FOUND, "no-route", "there is no such route", next)
    }

    pub fn method_not_allowed() -> Self {
        let detail = "the route does not take this method";
        let next = "see GET /v1/openapi.json for the methods of each route";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail, next)
    }

    pub fn too_large(most: usize) -> Self {
        let detail = format!("the body is longer than {most} bytes");
        let next = "send less at a time";
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", detail, next)
    }

    pub fn too_slow() -> Self {
        let detail = "the body did not come in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, "body-too-slow", detail, "send it again, faster")
    }

    pub fn not_json() -> Self {
        let detail = "a body has to be application/json";
        let next = "send the header content-type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", detail, next)
    }

    /// The body is compressed, or coded in another way.
    pub fn encoded() -> Self {
        let detail = "content-encoding: a body is taken as it is, without a coding";
        let next = "send it uncompressed, without the header content-encoding";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-encoding", detail, next)
    }

    pub fn not_acceptable() -> Self {
        let detail = "accept: it is there as application/openmetrics-text and as text/plain";
        let next = "ask for one of them, or leave the header out";
        Self::new(StatusCode::NOT_ACCEPTABLE, "not-acceptable", detail, next)
    }

    pub fn expectation() -> Self {
        let detail = "expect: the one expectation that is met is 100-continue";
        let next = "leave the header expect out";
        Self::new(StatusCode::EXPECTATION_FAILED, "expectation-failed", detail, next)
    }

    /// A header asks for what is not done, so that the answer would be taken for another than it is.
    pub fn unsupported_header(name: &'static str, why: &'static str) -> Self {
        let next = "leave the header out, or do as the detail says";
        let detail = format!("{name}: {why}");
        Self::new(StatusCode::BAD_REQUEST, "unsupported-header", detail, next)
    }

    /// A read under `if-match` of what has another revision.
    pub fn not_matched() -> Self {
        let detail = "if-match: it has another revision";
        let next = "leave if-match out to see which one it has";
        Self::new(StatusCode::PRECONDITION_FAILED, "revision-mismatch", detail, next)
    }

    pub fn crowded() -> Self {
        let detail = "this user, or all together, have as many connections as are served";
        let next = "close connections that are not used, or keep one and use it again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-connections", detail, next).retry(1)
    }

    /// `wait` is how long the caller should.
    pub fn too_many_requests(wait: Duration) -> Self {
        let detail = "this user asks more often than one user may";
        let next = "ask more rarely, several things at once where the route takes them; an operator \
                    finds the bound in [limits] of the configuration";
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", detail, next);
        problem.retry(u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1))
    }

    /// HTTP itself is broken, so that there is no request to speak of.
    pub fn broken(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::URI_TOO_LONG => ("uri-too-long", "the request's target is too long"),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                ("headers-too-large", "the request has too many headers, or too long ones")
            }
            _ => ("not-http", "what came is no request of HTTP/1.1"),
        };
        Self::new(status, code, detail, "look at the client: it does not speak HTTP as it should")
    }

    /// A proxy might take it for another request than it is.
    pub fn misframed(detail: &'static str) -> Self {
        let next = "look at the client: it does not speak HTTP as it should";
        Self::new(StatusCode::BAD_REQUEST, "not-http", detail, next)
    }

    pub fn headers_too_slow() -> Self {
        let detail = "the headers did not come in time";
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "headers-too-slow",
            detail,
            "send them again, faster",
        )
    }

    /// Whether it is for an operator to look at, not for the caller.
    pub fn is_our_trouble(&self) -> bool {
        self.status.is_server_error()
    }

    pub fn not_ready(state: &'static str) -> Self {
        let next = "an operator sees why with `strongroom status`";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", state, next).retry(1)
    }

    fn retry(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The reply; `request_id` is the one that trail and journal have.
    pub fn reply(&self, request_id: Uuid) -> Response {
        let mut response = Response::new(Body::from(self.document(request_id)));
        *response.status_mut() = self.status;
        self.headers(response.headers_mut());
        response
    }

    /// The same as bytes of HTTP/1.1, for a caller that is turned away before it said anything.
    pub fn farewell(&self, request_id: Uuid) -> Vec<u8> {
        let body = self.document(request_id);
        let retry = self.retry_after.map(|seconds| format!("retry-after: {seconds}\r\n"));
        let retry = retry.unwrap_or_default();
        let mut bytes = format!(
            "HTTP/1.1 {}\r\ncontent-type: application/problem+json\r\n{retry}\
             cache-control: no-store\r\nx-request-id: {request_id}\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n",
            self.status,
            body.len()
        )
        .into_bytes();
        bytes.extend_from_slice(&body);
        bytes
    }

    fn document(&self, request_id: Uuid) -> Vec<u8> {
        let document = Document {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or("error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            pointer: self.pointer.as_deref(),
            next: self.next,
            request_id: request_id.to_string(),
        };
        serde_json::to_vec(&document).unwrap_or_default()
    }

    fn headers(&self, headers: &mut HeaderMap) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.code == "content-encoding" {
            meaning::codings(headers);
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
    }
}

/// Seconds after which to ask again where an operator has to act before.
const NEEDS_OPERATOR: u32 = 10;

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        let (status, next) = status_and_next(error);
        let problem = Self::new(status, error.code(), error.public_text(), next);
        match error {
            Error::Invalid { member, .. } => {
                Self { pointer: Some(format!("/{member}")), ..problem }
            }
            Error::TooManyRefusals { seconds }
            | Error::AuditBudget { seconds }
            | Error::RotatedOften { seconds, .. }
            | Error::RecordBudget { seconds } => problem.retry(*seconds),
            // It may be over soon, or needs somebody who acts.
            _ if status == StatusCode::SERVICE_UNAVAILABLE => {
                let passes = error.cause().is_none_or(|cause| cause.row().passes);
                problem.retry(if passes { 1 } else { NEEDS_OPERATOR })
            }
            _ => problem,
        }
    }
}

impl From<NoTurn> for Problem {
    fn from(_: NoTurn) -> Self {
        let detail = "this user's requests that came before take too long";
        let next = "try again in a moment, with fewer at the same time";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail, next).retry(1)
    }
}

fn status_and_next(error: &Error) -> (StatusCode, &'static str) {
    use StatusCode as S;
    if let Some(cause) = error.cause() {
        return (S::SERVICE_UNAVAILABLE, cause.row().next);
    }
    match error.code() {
        "denied" => (
            S::FORBIDDEN,
            "an operator sees why with `strongroom policy explain`, and grants it in the policy \
             directory or the roles of the configuration",
        ),
        "too-many-refusals" => (
            S::TOO_MANY_REQUESTS,
            "stop asking for this; an operator sees why it is refused with `strongroom policy explain`",
        ),
        "record-budget" => (
            S::TOO_MANY_REQUESTS,
            "store less; an operator finds the bound in [limits] records_per_day_per_uid of the configuration",
        ),
        "audit-budget" => (
            S::TOO_MANY_REQUESTS,
            "ask for less, or several things at once where the route takes them; an operator finds the \
             bound in [audit] bytes_per_day_per_principal of the configuration",
        ),
        "not-found" => (S::NOT_FOUND, "list what is there, or create it"),
        "no-such-version" => (S::NOT_FOUND, "show the key to see its versions"),
        "exists" => (S::CONFLICT, "use another name"),
        "revision-mismatch" => (S::PRECONDITION_FAILED, "show it, and repeat with its revision"),
        "precondition-failed" => (
            S::PRECONDITION_FAILED,
            "it exists; show it, and repeat with if-match and its revision if it is to be replaced",
        ),
        "precondition-required" => (
            S::PRECONDITION_REQUIRED,
            "show it, and repeat with if-match and its revision (secret put --if-match); if-none-match: * \
             (--create-only) never replaces anything",
        ),
        "conflict" => (S::CONFLICT, "look again and repeat the request"),
        "key-state" => (S::CONFLICT, "show the key to see the states of its versions"),
        "already-initialised" => (
            S::CONFLICT,
            "nothing is made anew: `strongroom status` says how it stands, and what mends it",
        ),
        "recovery-key" => (
            S::CONFLICT,
            "an operator brings [custody] recovery_key of the configuration and `strongroom recovery \
             set` to the same key, and restarts custody",
        ),
        "custody-refused" => {
            (S::CONFLICT, "the detail says which rule of custody is against it, and what mends it")
        }
        "rotation-running" => (S::CONFLICT, "GET /v1/master says how far it is"),
        "rotated-recently" => (
            S::CONFLICT,
            "nothing has to be done; `strongroom master rotate --force`, or \"force\": true, makes another \
             one all the same",
        ),
        "rotated-often" => {
            (S::TOO_MANY_REQUESTS, "no more master keys are needed in a day; rotate again tomorrow")
        }
        "too-many-masters" => (
            S::CONFLICT,
            "retire those that nothing needs: `strongroom master status` shows what lies under each, \
             `strongroom master retire GENERATION` has one destroyed",
        ),
        "master-needed" => (S::CONFLICT, "rotate first, or wait for the rotation to end"),
        "master-state" => (
            S::CONFLICT,
            "`strongroom master status` shows which generation waits for its destruction, and until when; \
             `strongroom master cancel-retirement GENERATION` keeps it",
        ),
        "not-locked" => (S::CONFLICT, "nothing has to be done"),
        "clock-doubted" => (
            S::CONFLICT,
            "an operator sets the clock right, or says that it is: `strongroom confirm-clock`",
        ),
        "invalid" => (S::BAD_REQUEST, "see GET /v1/openapi.json for what this route takes"),
        "invalid-cursor" => (
            S::BAD_REQUEST,
            "begin the list again, without `after`; then give what each page has as `next`, with the same \
             prefix",
        ),
        "plaintext-too-long" => (
            S::UNPROCESSABLE_ENTITY,
            "encrypt a symmetric key with this one, and the data with that; or use a larger key",
        ),
        "decryption-failed" => (
            S::UNPROCESSABLE_ENTITY,
            "check that it was made for this key and version, with these hashes (Java's default is MGF1 with \
             SHA-1) and the same label, and not changed",
        ),
        "bad-key" => (
            S::UNPROCESSABLE_ENTITY,
            "give an RSA private key of 2048, 3072 or 4096 bits, converted as the detail says; a new one: \
             openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out key.pem",
        ),
        "outcome-unrecorded" => (
            S::INTERNAL_SERVER_ERROR,
            "do not repeat it; show what it was about to see it as it is now",
        ),
        "outcome-unknown" if matches!(error, Error::Destroying(_)) => (
            S::INTERNAL_SERVER_ERROR,
            "the token is asked again within minutes: `strongroom master status` shows the generation as retired \
             then, or as it was before",
        ),
        "outcome-unknown" => (
            S::INTERNAL_SERVER_ERROR,
            "once the store works again, show what it was about, and repeat it only if it is not done; an \
             operator sees with `strongroom status` how the store is",
        ),
        "busy" => (S::SERVICE_UNAVAILABLE, "try again in a moment"),
        _ => (S::INTERNAL_SERVER_ERROR, "an operator finds the cause in the journal by request_id"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::AuditError;

    #[test]
    fn a_caller_is_not_asked_to_repeat_what_is_done() {
        let problem = Problem::from(&Error::OutcomeOwed(AuditError::Full));
        assert_eq!(problem.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!((problem.code, problem.retry_after), ("outcome-unrecorded", None));
        assert!(problem.next.starts_with("do not repeat"), "{}", problem.next);
        let refused = Problem::from(&Error::Audit(AuditError::Full));
        assert_eq!(refused.retry_after, Some(1), "nothing was done: that may be repeated");
    }
}
