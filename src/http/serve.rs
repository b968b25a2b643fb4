//! Accepts connections and serves each within its limits, until it is told to stop.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONNECTION, HeaderName, HeaderValue};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1::{self, Parts};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;
use uuid::Uuid;

use super::door::{Accepting, Admitted, Door};
use super::framing;
use super::linger::{Unread, linger};
use super::listen::Listener;
use super::perform::{Front, Guest, NothingToForget};
use super::problem::Problem;
use super::routes::router;
use super::share::{Place, Shares};
use super::wire::Wire;
use crate::identity::Caller;
use crate::service::{Appliance, Call};

/// The `[limits]` part of the configuration: what a caller may cost before it is known what it wants.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections at the same time.
    pub connections: usize,
    /// Connections of one user at the same time.
    pub connections_per_uid: usize,
    /// Requests of one user: a second in the long run, and at once after a rest.
    pub requests_per_second_per_uid: u32,
    pub requests_burst_per_uid: u32,
    /// Requests of one user under way at the same time, while nobody else asks; more of them wait.
    pub requests_at_once_per_uid: usize,
    /// Refused requests of one user that get a line of their own in the trail, a minute.
    pub refusals_per_minute_per_uid: u32,
    /// Keys, versions of keys and secrets that one user may store, new or in the place of others, a day; all of
    /// them at once after a rest. 0: no bound.
    pub records_per_day_per_uid: u64,
    /// The longest body, in bytes.
    pub body_bytes: usize,
    /// Milliseconds that a connection may take to send its headers.
    pub header_timeout_ms: u64,
    /// Milliseconds that a body may take to come.
    pub body_timeout_ms: u64,
    /// Milliseconds that a caller may take to take an answer.
    pub answer_timeout_ms: u64,
    /// How deep the JSON of a body may be nested.
    pub json_depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_uid: 256,
            requests_per_second_per_uid: 20_000,
            requests_burst_per_uid: 20_000,
            requests_at_once_per_uid: 64,
            refusals_per_minute_per_uid: 120,
            records_per_day_per_uid: 100_000,
            body_bytes: 1024 * 1024,
            header_timeout_ms: 5_000,
            body_timeout_ms: 10_000,
            answer_timeout_ms: 30_000,
            json_depth: 16,
        }
    }
}

/// The most headers of a request, and the most bytes of all of them.
const HEADERS: usize = 64;
const HEADER_BYTES: usize = 16 * 1024;

/// How long the answer to a request that is one too many is held back: whoever asks again at once asks
/// no more often than that.
const HOLD: Duration = Duration::from_millis(100);

/// Serves the API on a listening socket.
pub struct Server {
    admitted: mpsc::UnboundedReceiver<Admitted>,
    accepting: Accepting,
    stop: watch::Receiver<bool>,
    router: Router,
    limits: Arc<Limits>,
    open: oneshot::Sender<()>,
}

impl Server {
    /// Takes over a listening socket; from now on callers are let in, until `stop` turns true. What comes
    /// second resolves as soon as nobody is, for whatever reason.
    pub fn new(
        listener: Listener,
        appliance: Arc<Appliance>,
        limits: Limits,
        stop: watch::Receiver<bool>,
    ) -> std::io::Result<(Self, oneshot::Receiver<()>)> {
        let limits = Arc::new(limits);
        let (open, closed) = oneshot::channel();
        let front = Front { appliance: Arc::clone(&appliance), limits: Arc::clone(&limits) };
        let shares = Arc::new(Shares::new(Arc::clone(&limits)));
        let accepting = Accepting::begin();
        let door = Door::new(accepting.clone(), appliance, shares, &limits);
        let admitted = door.open(listener, stop.clone())?;
        Ok((Self { admitted, accepting, stop, router: router(front), limits, open }, closed))
    }

    /// Whether connections can be accepted.
    pub fn accepting(&self) -> Accepting {
        self.accepting.clone()
    }

    /// Serves until it is time to stop; then takes nothing new, and lets what is under way finish.
    pub async fn run(mut self) {
        let mut connections = JoinSet::new();
        loop {
            let admitted = tokio::select! {
                admitted = self.admitted.recv() => admitted,
                () = stopped(&mut self.stop) => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            let Some(Admitted { stream, caller, place }) = admitted else { break };
            match UnixStream::from_std(stream) {
                Ok(stream) => {
                    let place = Arc::new(place);
                    let task = self.serve(stream, caller, Arc::clone(&place));
                    place.served_by(connections.spawn(task));
                }
                Err(error) => tracing::warn!(%error, "a connection could not be served"),
            }
        }
        drop(self.open);
        while connections.join_next().await.is_some() {}
    }

    /// Serves one connection to its end.
    fn serve(
        &self,
        stream: UnixStream,
        caller: Caller,
        place: Arc<Place>,
    ) -> impl Future<Output = ()> + use<> {
        let (router, limits) = (self.router.clone(), Arc::clone(&self.limits));
        let mut stop = self.stop.clone();
        async move {
            // The parser and its buffers come with the first byte: who only waits costs a socket.
            let patience = Duration::from_millis(limits.header_timeout_ms);
            let has_begun = tokio::select! {
                begun = tokio::time::timeout(patience, stream.readable()) => begun.is_ok(),
                () = stopped(&mut stop) => false,
            };
            if has_begun {
                let start = place.start().await;
                let talk = converse(stream, caller, place, router, limits, stop);
                let mut talk = Box::pin(talk);
                let begun = std::future::poll_fn(|cx| Poll::Ready(talk.as_mut().poll(cx))).await;
                drop(start);
                if begun.is_pending() {
                    talk.await;
                }
            }
        }
    }
}

async fn converse(
    stream: UnixStream,
    caller: Caller,
    place: Arc<Place>,
    router: Router,
    limits: Arc<Limits>,
    mut stop: watch::Receiver<bool>,
) {
    let mut wire = Wire::new(stream, Duration::from_millis(limits.answer_timeout_ms));
    loop {
        let guest = |request_id| Guest {
            call: Call { caller: caller.clone(), request_id },
            place: Arc::clone(&place),
        };
        let idle = talk(wire, guest, router.clone(), &limits, &mut stop).await;
        // A request that came while the connection was about to be closed is answered; the connection takes
        // no other, so it ends after that.
        match idle.and_then(Wire::raced) {
            Some(raced) => wire = raced,
            None => return,
        }
    }
}

/// Serves the requests of a connection; returns it where it was closed because it was idle.
async fn talk(
    wire: Wire,
    guest: impl Fn(Uuid) -> Guest,
    router: Router,
    limits: &Limits,
    stop: &mut watch::Receiver<bool>,
) -> Option<Wire> {
    let unread = Unread::default();
    let keep_alive = keep_alive(limits);
    let service = service_fn(|request: hyper::Request<Incoming>| {
        answer(router.clone(), guest(Uuid::now_v7()), request, unread.clone(), keep_alive.clone())
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.header_timeout_ms))
        .max_headers(HEADERS)
        .max_buf_size(HEADER_BYTES)
        // Who has said everything may say so, and is answered all the same.
        .half_close(true)
        .serve_connection(TokioIo::new(wire), service);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stopped(stop) => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    let Parts { io, read_buf, .. } = connection.into_parts();
    let (mut wire, is_silent) = (io.into_inner(), read_buf.is_empty());
    // It may hold a secret, and what follows takes its time.
    drop(read_buf);
    let Err(error) = ended else {
        if unread.is_left() {
            tokio::select! {
                () = linger(&mut wire, limits.body_bytes) => {}
                () = stopped(stop) => {}
            }
        }
        return None;
    };
    let request_id = Uuid::now_v7();
    tracing::debug!(%request_id, %error, "a connection ended early");
    let problem = match error.is_timeout() {
        true if is_silent => return Some(wire),
        true => Problem::headers_too_slow(),
        false if error.is_parse() => Problem::broken(StatusCode::BAD_REQUEST),
        false => return None,
    };
    wire.part(&problem, request_id);
    None
}

/// How long an idle connection is kept at least, as it is announced: a second less than it is, so that
/// clients give it up before it is closed. `None` where that is no whole second.
fn keep_alive(limits: &Limits) -> Option<HeaderValue> {
    let seconds = limits.header_timeout_ms.saturating_sub(1000) / 1000;
    let announced = || HeaderValue::from_str(&format!("timeout={seconds}")).ok();
    if seconds > 0 { announced() } else { None }
}

/// Resolves once it is time to stop, or nobody is left who could say so.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// One request: the router's answer, with the headers that every answer has.
async fn answer(
    router: Router,
    guest: Guest,
    request: hyper::Request<Incoming>,
    unread: Unread,
    keep_alive: Option<HeaderValue>,
) -> Result<Response, Infallible> {
    let (request_id, place) = (guest.call.request_id, Arc::clone(&guest.place));
    let has_body = !request.body().is_end_stream();
    let misframed = framing::fault(&request);
    let is_last = misframed.is_some() || framing::is_coded(request.headers());
    let keep_alive = keep_alive.filter(|_| !framing::ends_connection(&request));
    let mut request = request.map(|body| Body::new(unread.watch(body)));
    // No name needs an escape, so a path that has one is a trick.
    let mut response = if let Err(wait) = place.asks() {
        tokio::time::sleep(HOLD).await;
        Problem::too_many_requests(wait).reply(request_id)
    } else if let Some(problem) = misframed {
        problem.reply(request_id)
    } else if request.uri().path().contains('%') {
        Problem::invalid_name().reply(request_id)
    } else {
        request.extensions_mut().insert(guest);
        router.oneshot(request).await?
    };
    place.is_answered();
    // The read buffer goes with the connection, and is wiped as it goes.
    let forget = has_body && response.extensions().get::<NothingToForget>().is_none();
    let headers = response.headers_mut();
    if forget || is_last || place.is_leaving() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    } else if let Some(keep_alive) = keep_alive {
        headers.insert(HeaderName::from_static("keep-alive"), keep_alive);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(value) = HeaderValue::from_str(&request_id.to_string()) {
        headers.insert(HeaderName::from_static("x-request-id"), value);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_that_nobody_asked_for_is_told() {
        for panics in [false, true] {
            let (inside, admitted) = mpsc::unbounded_channel();
            let (_go_on, stop) = watch::channel(false);
            let (open, closed) = oneshot::channel();
            let limits = Arc::new(Limits::default());
            let accepting = Accepting::begin();
            let server = Server { admitted, accepting, stop, router: Router::new(), limits, open };
            let serving = tokio::spawn(server.run());
            if panics {
                serving.abort();
            } else {
                drop(inside);
            }
            assert!(closed.await.is_err());
        }
    }
}
