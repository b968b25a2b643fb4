//! The end of a connection whose request was answered before all of it was read: a client that writes its
//! whole body before it reads the answer would find the connection closed, and never see why.

use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt};
use zeroize::Zeroize;

/// How long such a client may take for what is left.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often the longest body it may still send.
const BODIES: usize = 16;

/// Reads on and forgets what comes, up to the end, `BODIES` times `body_bytes` or [`PATIENCE`].
pub async fn linger(mut stream: impl AsyncRead + Unpin, body_bytes: usize) {
    let forget = async {
        let mut left = body_bytes.saturating_mul(BODIES);
        let mut buffer = vec![0; 16 * 1024];
        while left > 0 {
            match stream.read(&mut buffer).await {
                Ok(0) => return,
                Ok(read) => {
                    // It may be a secret.
                    buffer.get_mut(..read).unwrap_or_default().zeroize();
                    left = left.saturating_sub(read);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(PATIENCE, forget).await;
}

/// Whether a part of a connection's newest request was not read.
#[derive(Clone, Default)]
pub struct Unread(Arc<AtomicBool>);

impl Unread {
    pub fn is_left(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// The body of the request that has begun; it is unread until its end was seen.
    pub fn watch(&self, body: Incoming) -> Watched {
        self.0.store(!body.is_end_stream(), Ordering::Release);
        Watched { body, unread: self.clone() }
    }
}

/// A request's body that notes when it was read to its end.
pub struct Watched {
    body: Incoming,
    unread: Unread,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.unread.0.store(false, Ordering::Release);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn what_is_left_is_read_within_bounds() {
        // To its end.
        let (mut client, server) = tokio::io::duplex(64);
        let lingering = tokio::spawn(linger(server, 1024));
        client.write_all(&[7; 4096]).await.expect("taken");
        drop(client);
        lingering.await.expect("it ends");
        // No more than so much.
        let (mut client, server) = tokio::io::duplex(64);
        let lingering = tokio::spawn(linger(server, 1024));
        let written = client.write_all(&[7; 64 * 1024]).await;
        assert!(written.is_err(), "it takes all that comes");
        lingering.await.expect("it ends");
        // No longer than so long.
        let (_client, server) = tokio::io::duplex(64);
        let began = std::time::Instant::now();
        linger(server, 1024).await;
        assert!(began.elapsed() >= PATIENCE);
    }
}
