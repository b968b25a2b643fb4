//! The way to the daemon: one HTTP/1.1 exchange per call over its Unix socket, with a deadline.
//!
//! Bodies may hold secrets: they lie in buffers that are wiped when they go, both ways.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use zeroize::{Zeroize, Zeroizing};

use super::failing;
use super::line::Line;
use super::problem::{Failure, Problem};

/// The longest answer that is read, in bytes; lists come in pages far below it.
const MAX_ANSWER: usize = 16 << 20;

/// The mode bits that let a group connect to a socket, and pass a directory (unix(7), path_resolution(7)).
const GROUP_WRITES: u32 = 0o020;
const GROUP_PASSES: u32 = 0o010;

/// After so long without an answer it does not matter whether the request was read.
const LONG_WAIT: Duration = Duration::from_secs(2);

/// When a request that nobody has read is looked into first, how often until when, and as seldom after that.
const FIRST_LOOK: Duration = Duration::from_millis(1500);
const OFTEN: Duration = Duration::from_millis(100);
const OFTEN_UNTIL: Duration = Duration::from_millis(2800);

/// Where the daemon listens and how long to wait for it.
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
    /// The connection of the request that is under way.
    connection: RefCell<Option<OwnedFd>>,
}

/// Which revision the resource has to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Whatever it is.
    Any,
    Revision(u64),
    /// Only where it does not exist.
    Absent,
}

impl Condition {
    /// From what was typed; clap sees to it that not both are.
    pub fn of(if_match: Option<u64>, create_only: bool) -> Self {
        match (if_match, create_only) {
            (Some(revision), _) => Condition::Revision(revision),
            (None, true) => Condition::Absent,
            (None, false) => Condition::Any,
        }
    }
}

/// What the daemon answered to something that it did.
pub struct Reply {
    /// The name of the exchange in trail and journal.
    pub request_id: Option<String>,
    pub body: Zeroizing<Vec<u8>>,
}

impl Reply {
    /// Reads the body as `T`; what is no such thing did not come from Strongroom.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|_| unfamiliar())
    }

    /// The body as a JSON value, `null` where there is none; not for bodies with secrets in them.
    pub fn value(&self) -> Result<serde_json::Value, Failure> {
        if self.body.is_empty() { Ok(serde_json::Value::Null) } else { self.parse() }
    }
}

impl Client {
    pub fn new(socket: PathBuf, timeout: Duration) -> Self {
        Self { socket, timeout, connection: RefCell::new(None) }
    }

    /// `GET path`; the path carries its query.
    pub fn get(&self, path: &str) -> Result<Reply, Failure> {
        self.send(Method::GET, path, None, Condition::Any)
    }

    /// `POST path` with `body` as JSON.
    pub fn post(&self, path: &str, body: &impl Serialize) -> Result<Reply, Failure> {
        self.send(Method::POST, path, Some(json(body)?), Condition::Any)
    }

    /// `PUT path`, under a condition.
    pub fn put(
        &self,
        path: &str,
        body: &impl Serialize,
        condition: Condition,
    ) -> Result<Reply, Failure> {
        self.send(Method::PUT, path, Some(json(body)?), condition)
    }

    /// `DELETE path`, with `body` as JSON where there is one, under a condition.
    pub fn delete(
        &self,
        path: &str,
        body: Option<&impl Serialize>,
        condition: Condition,
    ) -> Result<Reply, Failure> {
        self.send(Method::DELETE, path, body.map(json).transpose()?, condition)
    }

    /// `POST path` and hands its answer to `take`, piece by piece, however long it is; the time to wait is
    /// that for each next piece.
    pub fn download(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let request =
            request(Method::POST, path, Some(json(&serde_json::json!({}))?), Condition::Any)?;
        runtime()?.block_on(async {
            let (_sender, answer) = self.in_time(self.begin(request)).await?;
            if !answer.status().is_success() {
                return Err(self.in_time(refusal(answer)).await?);
            }
            let mut body = answer.into_body();
            let next = async |body: &mut hyper::body::Incoming| Ok(body.frame().await);
            while let Some(frame) = self.in_time(next(&mut body)).await? {
                if let Ok(piece) = frame.map_err(|_| cut_off())?.into_data() {
                    take(&piece)?;
                }
            }
            Ok(())
        })
    }

    /// Sends a request on a connection of its own and waits for the head of its answer. The sender keeps
    /// the connection.
    async fn begin(
        &self,
        request: http::Request<Full<Bytes>>,
    ) -> Result<(http1::SendRequest<Full<Bytes>>, http::Response<hyper::body::Incoming>), Failure>
    {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(Line::new(stream))).await.map_err(|_| cut_off())?;
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|_| cut_off())?;
        Ok((sender, answer))
    }

    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let mut work = pin!(work);
        let begin = Instant::now();
        let mut pause = FIRST_LOOK;
        loop {
            let left = self.timeout.saturating_sub(begin.elapsed());
            if let Ok(result) = tokio::time::timeout(left.min(pause), &mut work).await {
                return result;
            }
            if begin.elapsed() >= self.timeout {
                return Err(Failure::unreachable(
                    format!("no answer within {} s", self.timeout.as_secs()),
                    "whether it was done is in the trail (strongroom audit show); \
                     --timeout waits longer",
                ));
            }
            // A daemon that serves leaves no reason.
            if (self.is_untaken() || begin.elapsed() >= LONG_WAIT)
                && let Some(why) = failing::reason(&self.socket)
            {
                return Err(Failure::Unreachable(why));
            }
            // A unit that is started again and again says so only between its starts.
            pause = if begin.elapsed() < OFTEN_UNTIL { OFTEN } else { FIRST_LOOK };
        }
    }

    async fn connect(&self) -> Result<UnixStream, Failure> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| no_connection(&self.socket, &error))?;
        *self.connection.borrow_mut() = stream.as_fd().try_clone_to_owned().ok();
        Ok(stream)
    }

    /// Whether nobody has read the request yet: whoever holds the socket does not serve it.
    #[allow(unsafe_code)] // ioctl(2)
    fn is_untaken(&self) -> bool {
        let connection = self.connection.borrow();
        let Some(connection) = connection.as_ref() else { return false };
        let mut unread: libc::c_int = 0;
        // SAFETY: the descriptor is open, and the kernel writes one int (unix(7), SIOCOUTQ).
        let asked = unsafe { libc::ioctl(connection.as_raw_fd(), libc::TIOCOUTQ, &mut unread) };
        asked == 0 && unread > 0
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Zeroizing<Vec<u8>>>,
        condition: Condition,
    ) -> Result<Reply, Failure> {
        let request = request(method, path, body, condition)?;
        runtime()?.block_on(self.in_time(self.exchange(request)))
    }

    async fn exchange(&self, request: http::Request<Full<Bytes>>) -> Result<Reply, Failure> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(Line::new(stream))).await.map_err(|_| cut_off())?;
        let driver = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|_| cut_off())?;
        let status = answer.status();
        let request_id = answer.headers().get("x-request-id");
        let request_id = request_id.and_then(|id| id.to_str().ok()).map(str::to_owned);
        let pieces = collect(answer.into_body()).await?;
        // Head and connection share memory with the pieces: they have to go before it can be wiped.
        drop(sender);
        driver.abort();
        let _ = driver.await;
        let body = joined(pieces);

        if status.is_success() {
            return Ok(Reply { request_id, body });
        }
        Err(problem(status, request_id, &body)?)
    }
}

/// Reads the problem document of an answer.
async fn refusal(answer: http::Response<hyper::body::Incoming>) -> Result<Failure, Failure> {
    let status = answer.status();
    let body = joined(collect(answer.into_body()).await?);
    problem(status, None, &body)
}

fn problem(
    status: http::StatusCode,
    request_id: Option<String>,
    body: &[u8],
) -> Result<Failure, Failure> {
    let mut problem: Problem = serde_json::from_slice(body).map_err(|_| unfamiliar())?;
    problem.status = status.as_u16();
    problem.body = String::from_utf8_lossy(body).into_owned();
    if problem.request_id.is_empty() {
        problem.request_id = request_id.unwrap_or_default();
    }
    Ok(Failure::Refused(Box::new(problem)))
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|error| Failure::failed(error.to_string(), "check the limits of open files"))
}

/// Writes `value` for a query: everything but letters, digits and a few marks as `%XX` (RFC 3986 §2).
pub fn query(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for &byte in value.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

fn request(
    method: Method,
    path: &str,
    body: Option<Zeroizing<Vec<u8>>>,
    condition: Condition,
) -> Result<http::Request<Full<Bytes>>, Failure> {
    let mut builder = http::Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "strongroom")
        .header(header::ACCEPT, "application/json, application/problem+json, */*");
    if body.is_some() {
        builder = builder.header(header::CONTENT_TYPE, "application/json");
    }
    builder = match condition {
        Condition::Any => builder,
        Condition::Revision(revision) => {
            builder.header(header::IF_MATCH, format!("\"{revision}\""))
        }
        Condition::Absent => builder.header(header::IF_NONE_MATCH, "*"),
    };
    let body = body.map(Bytes::from_owner).unwrap_or_default();
    builder
        .body(Full::new(body))
        .map_err(|error| Failure::wrong_use(error.to_string(), "see --help of the command"))
}

/// Writes JSON into a buffer of exactly its length, so that growing leaves no copies behind.
fn json(body: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, Failure> {
    struct Counter(usize);
    impl std::io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let cannot = |error: serde_json::Error| {
        Failure::failed(format!("the request cannot be written: {error}"), "report this")
    };
    let mut counter = Counter(0);
    serde_json::to_writer(&mut counter, body).map_err(cannot)?;
    let mut buffer = Zeroizing::new(Vec::with_capacity(counter.0));
    serde_json::to_writer(&mut *buffer, body).map_err(cannot)?;
    Ok(buffer)
}

/// Reads the body, bounded.
async fn collect(body: hyper::body::Incoming) -> Result<Vec<Bytes>, Failure> {
    let mut body = Limited::new(body, MAX_ANSWER);
    let mut pieces = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() { unfamiliar() } else { cut_off() }
        })?;
        if let Ok(piece) = frame.into_data() {
            pieces.push(piece);
        }
    }
    Ok(pieces)
}

/// Joins the pieces in one buffer and wipes those whose memory is nobody else's.
fn joined(pieces: Vec<Bytes>) -> Zeroizing<Vec<u8>> {
    let mut whole = Zeroizing::new(Vec::with_capacity(pieces.iter().map(Bytes::len).sum()));
    for piece in pieces {
        whole.extend_from_slice(&piece);
        if let Ok(mut piece) = piece.try_into_mut() {
            piece.as_mut().zeroize();
        }
    }
    whole
}

fn cut_off() -> Failure {
    Failure::unreachable(
        "the connection ended before the answer came",
        "whether it was done is in the trail (strongroom audit show); \
         systemctl status strongroom says how the daemon is",
    )
}

/// What answers is no Strongroom, or one of another age.
pub fn unfamiliar() -> Failure {
    Failure::failed(
        "what listens on the socket does not answer like Strongroom",
        "check --socket and STRONGROOM_SOCKET, and that daemon and command are of one version",
    )
}

/// Why the socket could not be reached, in words that lead on.
fn no_connection(socket: &Path, error: &std::io::Error) -> Failure {
    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
        && let Some(why) = failing::reason(socket)
    {
        return Failure::Unreachable(why);
    }
    let path = socket.display();
    let running = "is it running? systemctl status strongroom; \
                   --socket or STRONGROOM_SOCKET names another socket";
    match error.kind() {
        ErrorKind::NotFound => Failure::unreachable(format!("there is no socket {path}"), running),
        ErrorKind::ConnectionRefused => {
            Failure::unreachable(format!("nobody listens on {path}"), running)
        }
        ErrorKind::PermissionDenied => {
            Failure::unreachable(format!("this user may not use {path}"), who_may_use(socket))
        }
        ErrorKind::WouldBlock => Failure::unreachable(
            format!("{path} has more callers than it takes"),
            "try again in a moment",
        ),
        ErrorKind::InvalidInput => Failure::wrong_use(
            format!("{path} cannot be the path of a socket"),
            "a socket's path has at most 107 bytes",
        ),
        _ => Failure::unreachable(format!("{path} cannot be reached: {error}"), running),
    }
}

/// Who may use the socket, or pass its directory where that is what stands in the way. The group of root
/// is nobody's way in.
fn who_may_use(socket: &Path) -> String {
    let own = std::fs::metadata(socket).ok().map(|metadata| (metadata, GROUP_WRITES));
    let directory = || Some((std::fs::metadata(socket.parent()?).ok()?, GROUP_PASSES));
    let operator = "ask an operator, who sets `mode` and `group` under [listen]";
    let Some((metadata, bit)) = own.or_else(directory) else { return operator.to_owned() };
    if metadata.mode() & bit != 0 && metadata.gid() != 0 {
        let group = nix::unistd::Group::from_gid(metadata.gid().into()).ok().flatten();
        if let Some(group) = group.map(|group| group.name) {
            return format!("the group `{group}` may use it: usermod -aG {group} USER");
        }
    }
    let owner = nix::unistd::User::from_uid(metadata.uid().into()).ok().flatten();
    let owner = owner.map_or_else(|| metadata.uid().to_string(), |user| user.name);
    format!("run it as the socket's owner, `{owner}`, or {operator}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_quoted() {
        assert_eq!(query("key/payments"), "key/payments");
        assert_eq!(query("a&b=c d#ä"), "a%26b%3Dc%20d%23%C3%A4");
    }

    #[test]
    fn a_body_fills_its_buffer_exactly() {
        let body = json(&serde_json::json!({"plaintext": "QUJD"})).ok().unwrap();
        assert_eq!(&body[..], br#"{"plaintext":"QUJD"}"#);
        assert_eq!(body.capacity(), body.len());
    }

    #[test]
    fn a_group_is_a_way_in_only_where_the_mode_lets_it_in() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let gid = std::fs::metadata(&socket).unwrap().gid();
        for (mode, lets_in) in [(0o600, false), (0o640, false), (0o660, gid != 0)] {
            std::fs::set_permissions(&socket, PermissionsExt::from_mode(mode)).unwrap();
            let said = who_may_use(&socket);
            assert_eq!(said.contains("usermod"), lets_in, "{mode:o}: {said}");
            assert_eq!(said.contains("owner") && said.contains("[listen]"), !lets_in, "{said}");
        }
    }

    #[test]
    fn no_socket_is_unreachable() {
        let client = Client::new("/nonexistent/s.sock".into(), Duration::from_secs(5));
        let failure = client.get("/v1/status").err().unwrap();
        assert_eq!(failure.code(), 3);
    }
}
