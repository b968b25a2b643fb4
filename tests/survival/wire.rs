//! A connection that may be lost at any moment: what a caller has who outlives the daemon.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::appliance::{PATIENCE, Reply};

/// One caller's way to the daemon: a connection that is kept, and made anew where it was closed.
pub struct Wire {
    socket: PathBuf,
    stream: Option<UnixStream>,
}

impl Wire {
    pub fn to(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), stream: None }
    }

    /// Sends a request and reads the whole reply. After an error it is open whether it was done.
    pub fn ask(&mut self, method: &str, path: &str, body: &Value) -> io::Result<Reply> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: strongroom\r\ncontent-length: {}\r\n{kind}\r\n{body}",
            body.len()
        );
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = UnixStream::connect(&self.socket)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream
            }
        };
        stream.write_all(request.as_bytes())?;
        let bytes = read_reply(&mut stream)?;
        let reply = Reply::parse(&bytes);
        if reply.header("connection").as_deref() != Some("close") {
            self.stream = Some(stream);
        }
        Ok(reply)
    }
}

fn read_reply(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 8192]);
    let mut whole = None;
    while whole.is_none_or(|whole| bytes.len() < whole) {
        match stream.read(&mut chunk)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => bytes.extend_from_slice(&chunk[..n]),
        }
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        if let (None, Some(end)) = (whole, end) {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.map_or(0, |text| text.trim().parse().expect("a length"));
            whole = Some(end + 4 + length);
        }
    }
    Ok(bytes)
}
