//! How HTTP clients behave: they pool connections, write a whole body before they read, ask for formats.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::appliance::{Appliance, PATIENCE, Reply, User, wait_until};

const GET: &[u8] = b"GET /v1/health HTTP/1.1\r\nhost: strongroom\r\n\r\n";

fn connect(appliance: &Appliance) -> UnixStream {
    let stream = UnixStream::connect(appliance.socket()).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream
}

/// One answer of a connection that stays open; `None` where it was closed without one.
fn answer(stream: &mut UnixStream) -> Option<Reply> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = stream.read(&mut piece).ok().filter(|&read| read > 0)?;
        bytes.extend_from_slice(&piece[..read]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let reply = Reply::parse(&bytes);
        let length: usize = reply.header("content-length")?.parse().ok()?;
        if bytes.len() >= end + 4 + length {
            return Some(reply);
        }
    }
}

#[test]
fn how_long_an_idle_connection_is_kept_is_announced_and_a_request_that_raced_its_end_is_answered() {
    let appliance = Appliance::configured(|config| {
        config.insert("limits".into(), toml::toml! { header_timeout_ms = 2000 }.into());
    });
    let mut first = connect(&appliance);
    first.write_all(GET).expect("written");
    let reply = answer(&mut first).expect("an answer");
    assert_eq!(reply.header("keep-alive").as_deref(), Some("timeout=1"), "{}", reply.head);
    assert_eq!(appliance.get("/v1/health").header("keep-alive"), None, "it was to be closed");
    std::thread::sleep(Duration::from_millis(1100));
    first.write_all(GET).expect("written");
    answer(&mut first).expect("announced, and a little longer");

    // Around the end: what could be written is answered, and what could not was refused at once.
    let results: Vec<(bool, bool)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..160_u64)
            .map(|at| {
                let appliance = &appliance;
                scope.spawn(move || {
                    let mut stream = connect(appliance);
                    stream.write_all(GET).expect("written");
                    answer(&mut stream).expect("an answer");
                    std::thread::sleep(Duration::from_micros(1_990_000 + at * 250));
                    let is_written = stream.write_all(GET).is_ok();
                    (is_written, is_written && answer(&mut stream).is_some())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("ended")).collect()
    });
    let lost = results.iter().filter(|&&(written, answered)| written && !answered).count();
    let refused = results.iter().filter(|(written, _)| !written).count();
    assert_eq!(lost, 0, "requests were taken and not answered; {refused} of 160 were refused");
    assert!(refused > 0, "all came before the end: this test missed it");
}

#[test]
fn a_client_that_writes_its_whole_body_first_reads_why_it_was_refused() {
    let appliance = Appliance::new();
    let length = 6 << 20;
    let body = vec![b'x'; length];
    let json = "content-type: application/json\r\n";
    for (head, status) in [
        (
            format!(
                "PUT /v1/secrets/s HTTP/1.1\r\nhost: s\r\ncontent-length: {length}\r\n{json}\r\n"
            ),
            413,
        ),
        (
            format!("POST /nowhere HTTP/1.1\r\nhost: s\r\ncontent-length: {length}\r\n{json}\r\n"),
            404,
        ),
        (format!("POST /v1/keys HTTP/1.1\r\ncontent-length: {length}\r\n{json}\r\n"), 400),
        (
            format!(
                "POST /v1/keys HTTP/1.1\r\nhost: s\r\ntransfer-encoding: chunked\r\n{json}\r\n{length:x}\r\n"
            ),
            413,
        ),
    ] {
        let mut stream = connect(&appliance);
        stream.write_all(head.as_bytes()).expect("written");
        stream.write_all(&body).unwrap_or_else(|error| panic!("{status}: {error}"));
        let reply = answer(&mut stream).unwrap_or_else(|| panic!("{status}: no answer"));
        assert_eq!(reply.status, status, "{}", reply.text());
        assert_eq!(reply.header("connection").as_deref(), Some("close"));
    }
    // Bounded: who goes on for ever is cut off.
    let mut stream = connect(&appliance);
    let head = format!(
        "PUT /v1/secrets/s HTTP/1.1\r\nhost: s\r\ncontent-length: {}\r\n{json}\r\n",
        u32::MAX
    );
    stream.write_all(head.as_bytes()).expect("written");
    let (began, mut sent) = (Instant::now(), 0);
    while let Ok(more) = stream.write(&body) {
        sent += more;
        assert!(sent < 64 << 20 && began.elapsed() < PATIENCE, "{sent} bytes were taken");
    }
    // And who says nothing more keeps its connection for a moment only.
    let mut stream = connect(&appliance);
    stream.write_all(head.as_bytes()).expect("written");
    let began = Instant::now();
    stream.read_to_end(&mut Vec::new()).expect("its end");
    wait_until("the end of the connection", || stream.write_all(b"x").is_err());
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn metrics_come_in_the_format_that_is_asked_for() {
    let appliance = Appliance::new();
    let get =
        |accept: &str| appliance.request("GET", "/metrics", &format!("accept: {accept}\r\n"), b"");
    let kind = |reply: &Reply| reply.expect_status(200).header("content-type").expect("a type");
    let open =
        get("application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5");
    assert!(kind(&open).starts_with("application/openmetrics-text"));
    assert!(open.text().ends_with("# EOF\n"));
    for accept in ["text/plain", "text/plain;version=0.0.4;q=1,*/*;q=0.1"] {
        let text = get(accept);
        assert_eq!(kind(&text), "text/plain; version=0.0.4; charset=utf-8");
        let page = text.text();
        assert!(page.contains("# TYPE strongroom_requests_total counter\n"), "{page}");
        assert!(page.contains("# TYPE strongroom_uptime_seconds gauge\n"), "{page}");
        assert!(!page.contains("EOF") && !page.contains("# UNIT"), "{page}");
        // Each sample follows the type of its own name.
        let mut named = "";
        for line in page.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(line) => named = line.split(' ').next().expect("a name"),
                None if line.starts_with('#') => {}
                None => assert!(line.starts_with(named), "{named}: {line}"),
            }
        }
    }
    get("application/json").expect_problem(406, "not-acceptable");
    assert!(kind(&appliance.get("/metrics")).starts_with("application/openmetrics-text"));
}

#[test]
fn a_tail_of_the_trail_goes_on_after_a_restart_of_the_daemon() {
    let mut appliance = Appliance::new();
    let mut tail = Command::new(env!("CARGO_BIN_EXE_strongroom"))
        .args(["audit", "tail", "--every", "1", "--output", "json"])
        .env("STRONGROOM_SOCKET", appliance.socket())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let (tell, lines) = std::sync::mpsc::channel();
    let stdout = tail.stdout.take().expect("piped");
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = tell.send(line);
        }
    });
    let sees = |what: &str| {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if lines.recv_timeout(Duration::from_millis(100)).is_ok_and(|line| line.contains(what))
            {
                return true;
            }
        }
        false
    };
    appliance.create_key("before");
    assert!(sees("key/before"));
    appliance.stop();
    std::thread::sleep(Duration::from_millis(2500));
    assert!(tail.try_wait().expect("asked").is_none(), "it ended with the daemon");
    appliance.start();
    appliance.wait_for_state("ready");
    appliance
        .post("/v1/keys", &json!({"name": "after", "algorithm": "RSA-2048"}))
        .expect_status(201);
    let went_on = sees("key/after");
    let _ = tail.kill();
    let _ = tail.wait();
    assert!(went_on);
}

/// What the daemon says where it does not start.
fn said_at_the_end(mut appliance: Appliance) -> String {
    appliance.spawn();
    assert!(!appliance.wait_for_end().success());
    appliance.log()
}

/// As a container runtime does that is older than clone3: EPERM, where glibc waits for ENOSYS.
fn forbid_clone3() -> std::io::Result<()> {
    use seccompiler::{SeccompAction, SeccompFilter, TargetArch};
    let arch = TargetArch::try_from(std::env::consts::ARCH).expect("a known machine");
    let rules = std::collections::BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).expect("a filter");
    let program: seccompiler::BpfProgram = filter.try_into().expect("a program");
    seccompiler::apply_filter(&program).map_err(std::io::Error::other)
}

#[test]
fn what_a_container_runtime_forbids_is_named() {
    let mut appliance = Appliance::prepared(|_| {});
    appliance.before_exec(forbid_clone3);
    let log = said_at_the_end(appliance);
    assert!(log.contains("clone3 is forbidden") && log.contains("container runtime"), "{log}");
}

#[test]
fn a_group_that_the_socket_cannot_be_given_to_is_named() {
    let user = User { uid: 64_123, lockable_bytes: 8 << 20 };
    let appliance = Appliance::of_user(user);
    appliance.change_config(|config| {
        config["listen"]
            .as_table_mut()
            .expect("a table")
            .insert("group".into(), 5.to_string().into());
    });
    let log = said_at_the_end(appliance);
    assert!(log.contains("[listen] group") && log.contains("not in"), "{log}");
    assert!(log.contains("usermod -aG"), "{log}");
}
