//! Clients of the socket: one thread with so many connections, each with one request under way.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::UsageWho;
use serde_json::json;

use crate::appliance::Appliance;
use crate::bare::cpu_of;
use crate::machine::{self, Threads};
use crate::report::{Figures, percentiles};

/// What a run has measured.
pub struct Run {
    pub connections: usize,
    pub figures: Figures,
    /// Processor time per decryption of the clients themselves.
    pub clients_cpu_ms: f64,
    /// Processors that were busy with something else, on average.
    pub others_busy: f64,
    /// Processor time per decryption of each kind of thread of the appliance.
    pub threads_ms: Vec<(String, f64)>,
}

/// A request to decrypt 32 bytes, whole.
pub fn decrypt_request(appliance: &Appliance, key: &str) -> Vec<u8> {
    let plaintext = json!({ "plaintext": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=" });
    let encrypted = appliance.post(&format!("/v1/keys/{key}/encrypt"), &plaintext);
    let ciphertext = &encrypted.expect_status(200).json()["ciphertext"];
    let body = json!({ "ciphertext": ciphertext }).to_string();
    let length = body.len();
    format!(
        "POST /v1/keys/{key}/decrypt HTTP/1.1\r\nhost: strongroom\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Keeps `connections` requests under way for `time` and takes the CPU of the processes `pids`.
pub fn run(socket: &Path, request: &[u8], connections: usize, time: Duration, pids: &[u32]) -> Run {
    let streams: Vec<UnixStream> =
        (0..connections).map(|_| UnixStream::connect(socket).expect("connects")).collect();
    drive(&streams, request, time / 10);
    let (threads, clients) = (Threads::of(pids), cpu_of(UsageWho::RUSAGE_SELF));
    let (busy, processes) = (machine::busy(), machine::cpu(pids));
    let started = Instant::now();
    let mut latencies = drive(&streams, request, time);
    let took = started.elapsed();
    let processes = machine::cpu(pids) - processes;
    let busy = machine::busy() - busy;
    let clients = cpu_of(UsageWho::RUSAGE_SELF) - clients;
    let count = latencies.len() as f64;
    let (p50_ms, p99_ms) = percentiles(&mut latencies);
    let each_ms = |time: Duration| time.as_secs_f64() * 1e3 / count;
    Run {
        connections,
        figures: Figures {
            per_second: count / took.as_secs_f64(),
            p50_ms,
            p99_ms,
            cpu_ms: each_ms(processes),
        },
        clients_cpu_ms: each_ms(clients),
        others_busy: busy.saturating_sub(processes + clients).as_secs_f64() / took.as_secs_f64(),
        threads_ms: threads.since(pids, each_ms),
    }
}

/// One request after the other on every stream; returns the nanoseconds that each took. All are
/// answered when it returns.
fn drive(streams: &[UnixStream], request: &[u8], time: Duration) -> Vec<u32> {
    let mut polled: Vec<PollFd<'_>> =
        streams.iter().map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN)).collect();
    let mut latencies = Vec::with_capacity(100_000);
    let start = Instant::now();
    let send = |mut stream: &UnixStream| {
        stream.write_all(request).expect("sent");
        Instant::now()
    };
    let mut sent: Vec<Option<Instant>> = streams.iter().map(|stream| Some(send(stream))).collect();
    let mut under_way = streams.len();
    let mut buffer = [0; 4096];
    while under_way > 0 {
        poll(&mut polled, PollTimeout::from(10_000_u16)).expect("polled");
        for (at, mut stream) in streams.iter().enumerate() {
            if polled[at].revents().is_none_or(|events| events.is_empty()) {
                continue;
            }
            let length = stream.read(&mut buffer).expect("received");
            expect_whole(&buffer[..length]);
            let asked = sent[at].take().expect("one answer for a request");
            latencies.push(asked.elapsed().as_nanos() as u32);
            if start.elapsed() < time {
                sent[at] = Some(send(stream));
            } else {
                under_way -= 1;
            }
        }
    }
    latencies
}

/// An answer is short and comes in one piece: status, headers, the plaintext.
fn expect_whole(answer: &[u8]) {
    let whole = answer.starts_with(b"HTTP/1.1 200 ")
        && answer.ends_with(b"}")
        && answer.windows(16).any(|window| window == b"\"plaintext\":\"Bwc");
    assert!(whole, "{}", String::from_utf8_lossy(answer));
}
