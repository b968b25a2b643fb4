//! How each reply goes out: status, entity tag, body; and what OpenAPI says of that.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use http::header::{CONTENT_TYPE, ETAG, HeaderValue};
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::Problem;
use super::{body, metrics};
use crate::key::Jwk;
use crate::policy::Explanation;
use crate::service::{
    AuditPage, DecryptReply, Deleted, DoctorView, Encrypted, InitView, JwksView, KeyPage, KeyView,
    MasterView, MetricsView, PublicKeyPem, PublicKeyReply, PutReply, RecoveryView, Revealed,
    SecretPage, SecretView, StatusView,
};

/// A reply that a route gives.
pub trait IntoReply: Sized {
    /// What OpenAPI calls the body where it is JSON.
    type Shown: ToSchema;

    /// What else OpenAPI says of it, on a route whose success is a 201 if `created`.
    fn outline(created: bool) -> Outline;

    fn into_reply(self, created: bool) -> Response;

    /// The same in the form that the `accept` header asks for, where there are several.
    ///
    /// # Errors
    /// None of them is asked for.
    fn in_form(self, created: bool, _accept: Option<&str>) -> Result<Response, Problem> {
        Ok(self.into_reply(created))
    }
}

/// The statuses and media types that a reply can have.
pub struct Outline {
    pub statuses: &'static [&'static str],
    /// None where there is no body.
    pub media: &'static [&'static str],
    /// Whether it has an entity tag.
    pub tagged: bool,
}

impl Outline {
    const fn json(statuses: &'static [&'static str], tagged: bool) -> Self {
        Self { statuses, media: &[JSON], tagged }
    }
}

pub const JSON: &str = "application/json";
const PEM: &str = "application/x-pem-file";

/// For replies without JSON.
#[derive(Serialize, ToSchema)]
pub struct Empty {}

/// JSON in memory that is wiped once it was sent.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match body::write(value) {
        Ok(bytes) => {
            let mut response = Response::new(Body::from(bytes));
            *response.status_mut() = status;
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
            response
        }
        Err(_) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}

/// A text that is there already.
pub fn text(kind: &'static str, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

macro_rules! as_json {
    ($($reply:ty),* $(,)?) => {$(
        impl IntoReply for $reply {
            type Shown = Self;
            fn outline(created: bool) -> Outline {
                Outline::json(if created { &["201"] } else { &["200"] }, false)
            }
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
    Explanation,
    InitView,
    JwksView,
    KeyPage,
    MasterView,
    SecretPage,
    StatusView,
);

fn tagged(mut response: Response, revision: u64) -> Response {
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{revision}\"")) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

impl IntoReply for KeyView {
    type Shown = Self;
    fn outline(created: bool) -> Outline {
        Outline::json(if created { &["201"] } else { &["200"] }, true)
    }
    fn into_reply(self, created: bool) -> Response {
        let status = if created { StatusCode::CREATED } else { StatusCode::OK };
        tagged(json(status, &self), self.revision)
    }
}

impl IntoReply for RecoveryView {
    type Shown = Self;
    fn outline(_created: bool) -> Outline {
        Outline::json(&["200"], true)
    }
    fn into_reply(self, _created: bool) -> Response {
        let reply = json(StatusCode::OK, &self);
        match self.revision {
            Some(revision) => tagged(reply, revision),
            None => reply,
        }
    }
}

impl IntoReply for SecretView {
    type Shown = Self;
    fn outline(_created: bool) -> Outline {
        Outline::json(&["200"], true)
    }
    fn into_reply(self, _created: bool) -> Response {
        tagged(json(StatusCode::OK, &self), self.revision)
    }
}

impl IntoReply for Revealed {
    type Shown = Self;
    fn outline(_created: bool) -> Outline {
        Outline::json(&["200"], true)
    }
    fn into_reply(self, _created: bool) -> Response {
        tagged(json(StatusCode::OK, &self), self.secret.revision)
    }
}

impl IntoReply for PutReply {
    type Shown = SecretView;
    fn outline(_created: bool) -> Outline {
        Outline::json(&["200", "201"], true)
    }
    fn into_reply(self, _created: bool) -> Response {
        let status = if self.created { StatusCode::CREATED } else { StatusCode::OK };
        tagged(json(status, &self.secret), self.secret.revision)
    }
}

impl IntoReply for PublicKeyReply {
    type Shown = Jwk;
    fn outline(_created: bool) -> Outline {
        Outline { statuses: &["200"], media: &[JSON, PEM], tagged: false }
    }
    fn into_reply(self, _created: bool) -> Response {
        match self {
            PublicKeyReply::Jwk { jwk, .. } => json(StatusCode::OK, &jwk),
            PublicKeyReply::Pem { pem, .. } => text(PEM, pem),
        }
    }
}

impl IntoReply for PublicKeyPem {
    type Shown = Empty;
    fn outline(_created: bool) -> Outline {
        Outline { statuses: &["200"], media: &[PEM], tagged: false }
    }
    fn into_reply(self, _created: bool) -> Response {
        text(PEM, self.0)
    }
}

impl IntoReply for MetricsView {
    type Shown = Empty;
    fn outline(_created: bool) -> Outline {
        Outline { statuses: &["200"], media: &[metrics::OPENMETRICS, metrics::TEXT], tagged: false }
    }
    fn into_reply(self, _created: bool) -> Response {
        text(metrics::OPENMETRICS, metrics::render(&self))
    }
    fn in_form(self, created: bool, accept: Option<&str>) -> Result<Response, Problem> {
        match metrics::format(accept) {
            Some(metrics::TEXT) => {
                Ok(text(metrics::TEXT, metrics::as_text(&metrics::render(&self))))
            }
            Some(_) => Ok(self.into_reply(created)),
            None => Err(Problem::not_acceptable()),
        }
    }
}

impl IntoReply for Deleted {
    type Shown = Empty;
    fn outline(_created: bool) -> Outline {
        Outline { statuses: &["204"], media: &[], tagged: false }
    }
    fn into_reply(self, _created: bool) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    }
}
