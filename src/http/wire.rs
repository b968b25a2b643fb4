//! A caller's socket as hyper sees it: an answer has to be taken in time, and what hyper answers to
//! broken HTTP gets the body that every refusal has.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use std::os::fd::AsRawFd;

use http::StatusCode;
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::Sleep;
use uuid::Uuid;

use super::problem::Problem;

/// One connection's socket.
pub struct Wire {
    stream: UnixStream,
    patience: Duration,
    /// Set while an answer waits for the caller to take it.
    stuck: Option<Pin<Box<Sleep>>>,
    /// What goes out in place of an answer of hyper's own.
    farewell: Vec<u8>,
    sent: usize,
}

impl Wire {
    /// `patience` is how long a caller may take to take an answer.
    pub fn new(stream: UnixStream, patience: Duration) -> Self {
        Self { stream, patience, stuck: None, farewell: Vec::new(), sent: 0 }
    }

    /// Takes nothing more from the caller; the connection again, where something had come by then. What the
    /// caller writes later fails at once, so it knows that it was not read.
    pub fn raced(self) -> Option<Self> {
        let fd = self.stream.as_raw_fd();
        shutdown(fd, Shutdown::Read).ok()?;
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(fd, &mut [0], flags) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(self),
        }
    }

    /// Says why nothing more is answered, unless something like it was said.
    pub fn part(self, problem: &Problem, request_id: Uuid) {
        if self.farewell.is_empty() && self.stuck.is_none() {
            let _ = self.stream.try_write(&problem.farewell(request_id));
        }
    }

    /// Passes on what a write came to; one that has to wait does so for no longer than the patience.
    fn in_time<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_pending() {
            let patience = self.patience;
            let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
            ready!(stuck.as_mut().poll(cx));
            return Poll::Ready(Err(ErrorKind::TimedOut.into()));
        }
        poll
    }

    /// Takes an answer that hyper made by itself for its own; the other one goes out with the next flush.
    fn replaces(&mut self, bytes: &[u8]) -> bool {
        let Some(problem) = answer_of_hyper(bytes) else { return false };
        if self.farewell.is_empty() {
            let request_id = Uuid::now_v7();
            tracing::debug!(%request_id, "what came is no request");
            self.farewell = problem.farewell(request_id);
        }
        true
    }

    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.farewell.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let written = Pin::new(&mut self.stream).poll_write(cx, rest);
            let written = match written {
                Poll::Ready(written) => written?,
                Poll::Pending => {
                    ready!(self.in_time::<()>(cx, Poll::Pending))?;
                    return Poll::Pending;
                }
            };
            self.sent += written;
        }
        Poll::Ready(Ok(()))
    }
}

/// What an answer of hyper's own means: a head of a 4xx without the request id that all of ours carry.
/// It stands alone: the answer before it was flushed before the next request was read.
fn answer_of_hyper(bytes: &[u8]) -> Option<Problem> {
    const ID: &[u8] = b"x-request-id:";
    let code = bytes.strip_prefix(b"HTTP/1.1 4").or(bytes.strip_prefix(b"HTTP/1.0 4"))?;
    if !bytes.ends_with(b"\r\n\r\n") || bytes.windows(ID.len()).any(|window| window == ID) {
        return None;
    }
    Some(match code.get(..2)? {
        b"14" => Problem::broken(StatusCode::URI_TOO_LONG),
        b"31" => Problem::broken(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        _ => Problem::broken(StatusCode::BAD_REQUEST),
    })
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.replaces(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let poll = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.in_time(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = slices
            && self.replaces(only)
        {
            return Poll::Ready(Ok(only.len()));
        }
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.in_time(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes once all of an answer is written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_farewell(cx))?;
        self.stuck = None;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_farewell(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
