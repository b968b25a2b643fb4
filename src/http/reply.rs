//! How each reply goes out: status, entity tag, body; and what OpenAPI says of that.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use http::header::{CONTENT_TYPE, ETAG, HeaderValue};
use serde::Serialize;
use utoipa::ToSchema;

use super::{body, metrics};
use crate::service::{
    AuditPage, DecryptReply, DoctorView, Encrypted, InitView, JwksView, KeyPage, KeyView,
    MetricsView, PublicKeyPem, PublicKeyReply, PutReply, Revealed, SecretPage, SecretView,
    StatusView,
};

/// A reply that a route gives.
pub trait IntoReply {
    /// What OpenAPI calls the body; `None` where there is none of ours.
    type Shown: ToSchema;

    fn into_reply(self, created: bool) -> Response;
}

/// For replies without a body.
#[derive(Serialize, ToSchema)]
pub struct Empty {}

/// JSON in memory that is wiped once it was sent.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match body::write(value) {
        Ok(bytes) => {
            let mut response = Response::new(Body::from(bytes));
            *response.status_mut() = status;
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, json);
            response
        }
        Err(_) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}

/// Text of another type than JSON.
fn text(kind: &'static str, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

macro_rules! as_json {
    ($($reply:ty),* $(,)?) => {$(
        impl IntoReply for $reply {
            type Shown = Self;
            fn into_reply(self, created: bool) -> Response {
                json(if created { StatusCode::CREATED } else { StatusCode::OK }, &self)
            }
        }
    )*};
}

as_json!(
    AuditPage,
    DecryptReply,
    DoctorView,
    Encrypted,
    InitView,
    JwksView,
    KeyPage,
    KeyView,
    SecretPage,
    StatusView,
);

fn tagged(mut response: Response, revision: u64) -> Response {
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{revision}\"")) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

impl IntoReply for SecretView {
    type Shown = Self;
    fn into_reply(self, _created: bool) -> Response {
        tagged(json(StatusCode::OK, &self), self.revision)
    }
}

impl IntoReply for Revealed {
    type Shown = Self;
    fn into_reply(self, _created: bool) -> Response {
        tagged(json(StatusCode::OK, &self), self.secret.revision)
    }
}

impl IntoReply for PutReply {
    type Shown = SecretView;
    fn into_reply(self, _created: bool) -> Response {
        let status = if self.created { StatusCode::CREATED } else { StatusCode::OK };
        tagged(json(status, &self.secret), self.secret.revision)
    }
}

impl IntoReply for PublicKeyReply {
    type Shown = Empty;
    fn into_reply(self, _created: bool) -> Response {
        match self {
            PublicKeyReply::Jwk { jwk, .. } => json(StatusCode::OK, &jwk),
            PublicKeyReply::Pem { pem, .. } => text("application/x-pem-file", pem),
        }
    }
}

impl IntoReply for PublicKeyPem {
    type Shown = Empty;
    fn into_reply(self, _created: bool) -> Response {
        text("application/x-pem-file", self.0)
    }
}

impl IntoReply for MetricsView {
    type Shown = Empty;
    fn into_reply(self, _created: bool) -> Response {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        text(kind, metrics::render(&self))
    }
}

impl IntoReply for () {
    type Shown = Empty;
    fn into_reply(self, _created: bool) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    }
}
