//! The one handler: a request struct from the wire, performed, its reply back on the wire.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::response::Response;
use http::StatusCode;
use http::header::{ACCEPT, CONTENT_TYPE};

use super::body::{self, Bounds};
use super::meaning;
use super::problem::Problem;
use super::reply::IntoReply;
use super::serve::Limits;
use super::shape::{FromWire, Incoming};
use super::share::Place;
use super::turn::Turn;
use crate::policy::Action;
use crate::service::{Appliance, Call, Error, Preconditions, Request};

/// What handlers work with.
#[derive(Clone)]
pub struct Front {
    pub appliance: Arc<Appliance>,
    pub limits: Arc<Limits>,
}

/// A request's caller, and the place that its connection has.
#[derive(Clone)]
pub struct Guest {
    pub call: Call,
    pub place: Arc<Place>,
}

/// On a response: the request's body was not meant to hold a secret, the connection may stay open.
#[derive(Debug, Clone, Copy)]
pub struct NothingToForget;

/// Handles a route of `R`. `CREATED` says that its success is a 201.
pub async fn perform<R, const CREATED: bool>(
    State(front): State<Front>,
    Extension(guest): Extension<Guest>,
    request: http::Request<axum::body::Body>,
) -> Response
where
    R: FromWire,
    R::Reply: IntoReply,
{
    let request_id = guest.call.request_id;
    // What changes something holds them against the revision that it changes.
    let of_read = match R::TAGGED && request.method().is_safe() {
        true => meaning::preconditions(request.headers()),
        false => Ok(Preconditions::default()),
    };
    let done = match of_read {
        Ok(conditions) => {
            let accept = request.headers().get(ACCEPT).cloned();
            let accept = accept.as_ref().and_then(|accept| accept.to_str().ok());
            let done = answer::<R>(front, guest, request).await;
            let reply = done.and_then(|reply| reply.in_form(CREATED, accept));
            reply.and_then(|reply| conditional(reply, &conditions))
        }
        Err(problem) => Err(problem),
    };
    let mut response = done.unwrap_or_else(|problem| problem.reply(request_id));
    if !R::SECRET {
        response.extensions_mut().insert(NothingToForget);
    }
    response
}

/// Handles a route that anybody may have, and that takes nothing and tells nothing of anybody.
pub async fn open(
    front: Front,
    guest: Guest,
    request: http::Request<axum::body::Body>,
    reply: impl FnOnce(&Appliance) -> Result<Response, Problem>,
) -> Response {
    let taken = async {
        let (_nothing, _room) =
            take(&front, &guest.place, request, |incoming| incoming.nothing_at_all()).await?;
        Ok(guest.place.glance().await?)
    };
    let replied = taken.await.and_then(|_turn| reply(&front.appliance));
    replied.unwrap_or_else(|problem| problem.reply(guest.call.request_id))
}

/// Answers what has no route.
pub async fn astray(guest: Guest, problem: Problem) -> Response {
    let turn = guest.place.glance().await;
    turn.map_or_else(Problem::from, |_turn| problem).reply(guest.call.request_id)
}

/// The answer to a read, held against its conditions.
fn conditional(reply: Response, conditions: &Preconditions) -> Result<Response, Problem> {
    match meaning::of_read(conditions, reply.headers()) {
        None => Ok(reply),
        Some(StatusCode::NOT_MODIFIED) => {
            let (mut head, _body) = reply.into_parts();
            head.status = StatusCode::NOT_MODIFIED;
            head.headers.remove(CONTENT_TYPE);
            Ok(Response::from_parts(head, axum::body::Body::empty()))
        }
        Some(_) => Err(Problem::not_matched()),
    }
}

async fn answer<R: FromWire>(
    front: Front,
    guest: Guest,
    request: http::Request<axum::body::Body>,
) -> Result<R::Reply, Problem> {
    let (asked, room) = take(&front, &guest.place, request, parse::<R>).await?;
    let turn = match R::ACTION {
        // Asked for when nothing else comes through.
        Action::StatusRead | Action::MetricsRead => guest.place.glance().await?,
        _ => guest.place.turn(front.appliance.custody_is_away()).await?,
    };
    let request_id = guest.call.request_id;
    let done = undisturbed(Arc::clone(&front.appliance), guest.call, asked, (turn, room)).await;
    done.map_err(|error| {
        let problem = Problem::from(&error);
        if problem.is_our_trouble()
            && let Some(left_out) = front.appliance.quiet().troubles.now()
        {
            let code = error.code();
            tracing::warn!(%request_id, code, %error, left_out, "a request could not be done");
        }
        problem
    })
}

fn parse<R: FromWire>(incoming: &Incoming<'_>) -> Result<R, Problem> {
    if !R::TAGGED {
        meaning::no_preconditions(incoming.headers)?;
    }
    R::from_wire(incoming)
}

/// Reads a request within its limits and has it parsed. What comes second goes with the request: the
/// room that its body takes.
pub async fn take<T>(
    front: &Front,
    place: &Place,
    request: http::Request<axum::body::Body>,
    parse: impl FnOnce(&Incoming<'_>) -> Result<T, Problem>,
) -> Result<(T, Turn), Problem> {
    let (head, body) = request.into_parts();
    let bounds = Bounds {
        bytes: front.limits.body_bytes,
        time: Duration::from_millis(front.limits.body_timeout_ms),
        depth: front.limits.json_depth,
    };
    let room = place.room_for(body::length(&body, bounds.bytes)).await?;
    let bytes = body::read(&head.headers, body, bounds).await?;
    if let Some(problem) = meaning::fault(&head.headers) {
        return Err(problem);
    }
    let (uri, headers, depth) = (&head.uri, &head.headers, bounds.depth);
    Ok((parse(&Incoming { uri, headers, body: &bytes, depth })?, room))
}

/// Performs it in a task of its own: a client that hangs up does not stop a deed half-way.
async fn undisturbed<R: Request>(
    appliance: Arc<Appliance>,
    call: Call,
    request: R,
    held: (Turn, Turn),
) -> Result<R::Reply, Error> {
    let task = tokio::spawn(async move {
        let done = appliance.perform(call, request).await;
        drop(held);
        done
    });
    task.await.unwrap_or(Err(Error::Abandoned))
}
