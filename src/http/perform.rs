//! The one handler: a request struct from the wire, performed, its reply back on the wire.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::response::Response;

use super::body::{self, Bounds};
use super::problem::Problem;
use super::reply::IntoReply;
use super::serve::Limits;
use super::shape::{FromWire, Incoming};
use crate::service::{Appliance, Call, Error, Request};

/// What handlers work with.
#[derive(Clone)]
pub struct Front {
    pub appliance: Arc<Appliance>,
    pub limits: Arc<Limits>,
}

/// On a response: the request's body was not meant to hold a secret, the connection may stay open.
#[derive(Debug, Clone, Copy)]
pub struct NothingToForget;

/// Handles a route of `R`. `CREATED` says that its success is a 201.
pub async fn perform<R, const CREATED: bool>(
    State(front): State<Front>,
    Extension(call): Extension<Call>,
    request: http::Request<axum::body::Body>,
) -> Response
where
    R: FromWire,
    R::Reply: IntoReply,
{
    let request_id = call.request_id;
    let mut response = match answer::<R>(front, call, request).await {
        Ok(reply) => reply.into_reply(CREATED),
        Err(problem) => problem.reply(request_id),
    };
    if !R::SECRET {
        response.extensions_mut().insert(NothingToForget);
    }
    response
}

/// Handles a route that anybody may have, and that takes nothing and tells nothing of anybody.
pub async fn open(
    front: Front,
    call: Call,
    request: http::Request<axum::body::Body>,
    reply: impl FnOnce(&Appliance) -> Result<Response, Problem>,
) -> Response {
    let taken = take(&front, request, |incoming: &Incoming<'_>| incoming.nothing()).await;
    taken.and_then(|()| reply(&front.appliance)).unwrap_or_else(|p| p.reply(call.request_id))
}

async fn answer<R: FromWire>(
    front: Front,
    call: Call,
    request: http::Request<axum::body::Body>,
) -> Result<R::Reply, Problem> {
    let asked = take(&front, request, R::from_wire).await?;
    Ok(undisturbed(front.appliance, call, asked).await?)
}

/// Reads a request within its limits and has it parsed.
async fn take<T>(
    front: &Front,
    request: http::Request<axum::body::Body>,
    parse: impl FnOnce(&Incoming<'_>) -> Result<T, Problem>,
) -> Result<T, Problem> {
    let (head, body) = request.into_parts();
    let bounds = Bounds {
        bytes: front.limits.body_bytes,
        time: Duration::from_millis(front.limits.body_timeout_ms),
        depth: front.limits.json_depth,
    };
    let bytes = body::read(&head.headers, body, bounds).await?;
    parse(&Incoming { uri: &head.uri, headers: &head.headers, body: &bytes, depth: bounds.depth })
}

/// Performs it in a task of its own: a client that hangs up does not stop a deed half-way.
async fn undisturbed<R: Request>(
    appliance: Arc<Appliance>,
    call: Call,
    request: R,
) -> Result<R::Reply, Error> {
    let task = tokio::spawn(async move { appliance.perform(call, request).await });
    task.await.unwrap_or(Err(Error::Abandoned))
}
