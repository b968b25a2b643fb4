//! Clients of the socket: one thread with so many connections, each with one request under way.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::resource::UsageWho;
use serde_json::json;

use crate::ahead::ahead;
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

/// Whether clients run ahead of everything else, as on other machines; see [`ahead`].
pub fn may_run_ahead() -> bool {
    // SAFETY: 0 names the calling thread.
    ahead(|| unsafe { libc::sched_getscheduler(0) } == libc::SCHED_FIFO)
}

/// Latencies at half of what the appliance can do, on eight connections: requests fall due at even
/// distances, whether or not earlier ones are answered, and are timed from when they were due.
pub fn run_paced(socket: &Path, request: &[u8], per_second: f64, time: Duration) -> (f64, f64) {
    let connect = || UnixStream::connect(socket).expect("connects");
    let streams: Vec<UnixStream> = (0..8).map(|_| connect()).collect();
    percentiles(&mut paced(&streams, request, Duration::from_secs_f64(1.0 / per_second), time))
}

/// Latencies of an unrelated request, every few milliseconds, while eight connections decrypt.
pub fn run_beside(socket: &Path, request: &[u8], time: Duration) -> (f64, f64) {
    let mut own = UnixStream::connect(socket).expect("connects");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let streams: Vec<UnixStream> =
            (0..8).map(|_| UnixStream::connect(socket).expect("connects")).collect();
        let probe = || {
            let mut latencies = Vec::new();
            while !stop.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(3));
                let started = Instant::now();
                own.write_all(STATUS).expect("sent");
                let mut buffer = [0; 4096];
                let length = own.read(&mut buffer).expect("received");
                latencies.push(started.elapsed().as_nanos() as u32);
                assert!(buffer[..length].starts_with(b"HTTP/1.1 200 "), "status is answered");
            }
            percentiles(&mut latencies)
        };
        let probe = scope.spawn(|| ahead(probe));
        drive(&streams, request, time);
        stop.store(true, Ordering::Release);
        probe.join().expect("it probes")
    })
}

const STATUS: &[u8] = b"GET /v1/status HTTP/1.1\r\nhost: strongroom\r\n\r\n";

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
    ahead(|| drive_here(streams, request, time))
}

fn drive_here(streams: &[UnixStream], request: &[u8], time: Duration) -> Vec<u32> {
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

/// Sends a request each `distance` on whichever stream is free; see [`run_paced`].
fn paced(streams: &[UnixStream], request: &[u8], distance: Duration, time: Duration) -> Vec<u32> {
    ahead(|| paced_here(streams, request, distance, time))
}

fn paced_here(
    streams: &[UnixStream],
    request: &[u8],
    distance: Duration,
    time: Duration,
) -> Vec<u32> {
    let mut polled: Vec<PollFd<'_>> =
        streams.iter().map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN)).collect();
    let mut latencies = Vec::with_capacity(100_000);
    let mut under_way: Vec<Option<Instant>> = vec![None; streams.len()];
    let start = Instant::now();
    let (mut due, end) = (start, start + time);
    while due < end || under_way.iter().any(Option::is_some) {
        let now = Instant::now();
        while due <= now && due < end {
            let Some(free) = under_way.iter().position(Option::is_none) else { break };
            let mut stream = &streams[free];
            stream.write_all(request).expect("sent");
            under_way[free] = Some(due);
            due += distance;
        }
        let all_taken = under_way.iter().all(Option::is_some);
        let wait =
            if all_taken || due >= end { distance } else { due.saturating_duration_since(now) };
        ppoll(&mut polled, Some(wait.into()), None).expect("polled");
        for (at, mut stream) in streams.iter().enumerate() {
            if polled[at].revents().is_none_or(|events| events.is_empty()) {
                continue;
            }
            let mut buffer = [0; 4096];
            let length = stream.read(&mut buffer).expect("received");
            expect_whole(&buffer[..length]);
            let due = under_way[at].take().expect("one answer for a request");
            latencies.push(due.elapsed().as_nanos() as u32);
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
