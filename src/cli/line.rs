//! The client's end of the connection, for a daemon that answers before it was asked, and closes: one that
//! has too many callers already. Its answer is to be read, whatever becomes of the question.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// A stream on which a question that cannot be written any more is let go of, and nothing is read before
/// there was one: HTTP takes no answer before its question.
pub struct Line {
    stream: UnixStream,
    has_asked: bool,
    waits: Option<Waker>,
}

impl Line {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, has_asked: false, waits: None }
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.has_asked {
            self.waits = Some(context.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        self.has_asked = true;
        if let Some(waits) = self.waits.take() {
            waits.wake();
        }
        Poll::Ready(match written {
            Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset) => Ok(bytes.len()),
            written => written,
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
