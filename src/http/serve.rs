//! Accepts connections and serves each within its limits, until it is told to stop.

use std::collections::HashMap;
use std::convert::Infallible;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::header::{CACHE_CONTROL, CONNECTION, HeaderName, HeaderValue};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::ServiceExt;
use uuid::Uuid;

use super::perform::{Front, NothingToForget};
use super::problem::Problem;
use super::routes::router;
use crate::identity::{Caller, UnixPeer};
use crate::service::{Appliance, Call};

/// The `[limits]` part of the configuration: what a caller may cost before it is known what it wants.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections at the same time.
    pub connections: usize,
    /// Connections of one user at the same time.
    pub connections_per_uid: usize,
    /// The longest body, in bytes.
    pub body_bytes: usize,
    /// Milliseconds that a connection may take to send its headers.
    pub header_timeout_ms: u64,
    /// Milliseconds that a body may take to come.
    pub body_timeout_ms: u64,
    /// How deep the JSON of a body may be nested.
    pub json_depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_uid: 256,
            body_bytes: 1024 * 1024,
            header_timeout_ms: 5_000,
            body_timeout_ms: 10_000,
            json_depth: 16,
        }
    }
}

/// The most headers of a request, and the most bytes of all of them.
const HEADERS: usize = 64;
const HEADER_BYTES: usize = 16 * 1024;

/// Serves the API on a listening socket.
pub struct Server {
    listener: UnixListener,
    router: Router,
    limits: Arc<Limits>,
    connected: Arc<Connected>,
}

/// How many connections there are, and whose.
#[derive(Default)]
struct Connected {
    by_uid: Mutex<HashMap<u32, usize>>,
}

/// A connection that counts as long as this lives.
struct Place {
    connected: Arc<Connected>,
    uid: u32,
}

impl Server {
    /// Takes over a listening socket. Needs a tokio runtime around it.
    pub fn new(
        listener: StdListener,
        appliance: Arc<Appliance>,
        limits: Limits,
    ) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        let limits = Arc::new(limits);
        let front = Front { appliance, limits: Arc::clone(&limits) };
        Ok(Self {
            listener: UnixListener::from_std(listener)?,
            router: router(front),
            limits,
            connected: Arc::default(),
        })
    }

    /// Serves until `stop` turns true; then takes nothing new, and lets what is under way finish.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stopped(&mut stop) => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            match accepted {
                Ok((stream, _)) => {
                    if let Some((caller, place)) = self.admit(&stream) {
                        let task = serve_connection(
                            stream,
                            caller,
                            self.router.clone(),
                            Arc::clone(&self.limits),
                            stop.clone(),
                        );
                        connections.spawn(async move {
                            task.await;
                            drop(place);
                        });
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        while connections.join_next().await.is_some() {}
    }

    /// Who it is, and a place among those that are served; `None` where there is none.
    fn admit(&self, stream: &UnixStream) -> Option<(Caller, Place)> {
        let peer = match UnixPeer::of(stream) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "a caller that cannot be identified was turned away");
                return None;
            }
        };
        let place = self.connected.take(peer.uid, &self.limits);
        if place.is_none() {
            tracing::warn!(uid = peer.uid, "too many connections; one was turned away");
            let _ = stream.try_write(&Problem::crowded().farewell(Uuid::now_v7()));
        }
        Some((Caller::Unix(peer), place?))
    }
}

impl Connected {
    fn take(self: &Arc<Self>, uid: u32, limits: &Limits) -> Option<Place> {
        let mut by_uid = self.by_uid.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = by_uid.values().sum();
        let own = by_uid.entry(uid).or_default();
        if all >= limits.connections || *own >= limits.connections_per_uid {
            return None;
        }
        *own += 1;
        Some(Place { connected: Arc::clone(self), uid })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_uid = self.connected.by_uid.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = by_uid.get_mut(&self.uid) {
            *own -= 1;
            if *own == 0 {
                by_uid.remove(&self.uid);
            }
        }
    }
}

async fn serve_connection(
    stream: UnixStream,
    caller: Caller,
    router: Router,
    limits: Arc<Limits>,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let call = Call { caller: caller.clone(), request_id: Uuid::now_v7() };
        answer(router.clone(), call, request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.header_timeout_ms))
        .max_headers(HEADERS)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Resolves once it is time to stop, or nobody is left who could say so.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// One request: the router's answer, with the headers that every answer has.
async fn answer(
    router: Router,
    call: Call,
    request: hyper::Request<Incoming>,
) -> Result<Response, Infallible> {
    let request_id = call.request_id;
    let has_body = !request.body().is_end_stream();
    let mut request = request.map(Body::new);
    // No name needs an escape, so a path that has one is a trick.
    let mut response = if request.uri().path().contains('%') {
        Problem::invalid_name().reply(request_id)
    } else {
        request.extensions_mut().insert(call);
        router.oneshot(request).await?
    };
    // The read buffer goes with the connection, and is wiped as it goes.
    let forget = has_body && response.extensions().get::<NothingToForget>().is_none();
    let headers = response.headers_mut();
    if forget {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(value) = HeaderValue::from_str(&request_id.to_string()) {
        headers.insert(HeaderName::from_static("x-request-id"), value);
    }
    Ok(response)
}
