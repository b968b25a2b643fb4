//! What one user may have: requests a second, refusals in the trail, lines in the log; and what peers
//! that keep to no rule are answered.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::acts::{encrypt, trail_lines};
use crate::appliance::{Appliance, PATIENCE, Reply, wait_until};
use crate::callers::{User, open_to_all};

const STRANGER: User = User::new(60_021);
const OTHER: User = User::new(60_022);

fn limited(limits: &str) -> Appliance {
    let appliance = Appliance::configured(|config| {
        let limits: toml::Table = limits.parse().expect("TOML");
        config.insert("limits".to_owned(), limits.into());
    });
    open_to_all(&appliance);
    // Looking whether it has started may have used up what its own user may ask.
    wait_until("init", || appliance.post("/v1/init", &json!({})).status == 201);
    appliance
}

#[test]
fn a_user_that_asks_too_often_waits_and_no_other_does() {
    let appliance = limited("requests_per_second_per_uid = 1\nrequests_burst_per_uid = 5");
    let ask = |user: User| user.does(|| appliance.get("/v1/health"));
    let first: Vec<Reply> = (0..6).map(|_| ask(STRANGER)).collect();
    let served = first.iter().filter(|reply| reply.status == 200).count();
    assert!((5..=6).contains(&served), "{served}");
    wait_until("an answer that it is too often", || {
        let reply = ask(STRANGER);
        if reply.status == 429 {
            reply.expect_problem(429, "too-many-requests");
            assert_eq!(reply.header("retry-after").as_deref(), Some("1"));
        }
        reply.status == 429
    });
    ask(OTHER).expect_status(200);
    wait_until("that it is served again", || ask(STRANGER).status == 200);
}

#[test]
fn refusals_beyond_a_number_are_counted_and_change_nothing_for_others() {
    let mut appliance = limited("refusals_per_minute_per_uid = 4");
    let ask = |appliance: &Appliance, user: User| {
        user.asks(appliance, "POST", "/v1/keys/x/decrypt", Some(&json!({"ciphertext": "AAAA"})))
    };
    for _ in 0..4 {
        ask(&appliance, STRANGER).expect_problem(403, "denied");
    }
    for _ in 0..50 {
        let reply = ask(&appliance, STRANGER);
        reply.expect_problem(429, "too-many-refusals");
        let wait: u32 = reply.header("retry-after").expect("a time").parse().expect("seconds");
        assert!((1..=60).contains(&wait), "{wait}");
    }
    ask(&appliance, OTHER).expect_problem(403, "denied");
    let told = |appliance: &Appliance| {
        let lines = trail_lines(&appliance.trail());
        let of_it = lines.iter().filter(|line| line["event"] == "refusals-left-out");
        assert!(of_it.clone().all(|line| line["caller"] == "unix:60021"), "{lines:?}");
        let counts = of_it.map(|line| line["count"].as_u64().expect("a number"));
        counts.collect::<Vec<_>>()
    };
    wait_until("a first number in the trail", || !told(&appliance).is_empty());
    let refused = |uid: u32| {
        let lines = trail_lines(&appliance.trail());
        lines.iter().filter(|line| line["uid"] == uid && line["result"] == "refused").count()
    };
    assert_eq!((refused(60_021), refused(60_022)), (4, 1));
    // What was counted since comes at the stop.
    appliance.stop();
    assert_eq!(told(&appliance).iter().sum::<u64>(), 50);
    let log = appliance.log();
    let lines = log.lines().filter(|line| line.contains("not permitted")).count();
    assert!((1..=40).contains(&lines), "{lines} lines for 55 refusals");
    let ids =
        log.lines().filter(|line| line.contains("not permitted") && line.contains("request_id="));
    assert_eq!(ids.count(), lines);
    appliance.start();
    let verified = appliance.cli(&["audit", "show", "--limit", "1"]);
    assert!(verified.status.success(), "{verified:?}");
}

#[test]
fn connections_that_are_turned_away_do_not_fill_the_log() {
    let appliance = limited("connections_per_uid = 2\nheader_timeout_ms = 60000");
    let begin = Instant::now();
    let connect = || UnixStream::connect(appliance.socket()).expect("connects");
    let held = STRANGER.does(|| {
        let held = [connect(), connect()];
        for _ in 0..300 {
            let mut answer = String::new();
            let _ = connect().read_to_string(&mut answer);
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        }
        held
    });
    wait_until("the number of the rest", || {
        appliance.log().contains("further callers were turned")
    });
    let seconds = begin.elapsed().as_secs() as usize + 1;
    let log = appliance.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("turned away")).collect();
    assert!(lines.len() <= 2 * seconds, "{} lines in {seconds} s", lines.len());
    let told: usize = lines.len()
        + lines
            .iter()
            .filter_map(|line| {
                line.split("left_out=").nth(1)?.split(' ').next()?.parse::<usize>().ok()
            })
            .sum::<usize>();
    assert!(told >= 300, "{told}: {lines:?}");
    drop(held);
}

#[test]
fn who_has_said_everything_may_hang_up_one_side_and_is_answered() {
    let appliance = limited("");
    for request in
        ["GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n", "GET /v1/keys HTTP/1.1\r\nhost: x\r\n\r\n"]
    {
        let mut stream = UnixStream::connect(appliance.socket()).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.write_all(request.as_bytes()).expect("sent");
        stream.shutdown(Shutdown::Write).expect("half closed");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("ended by the daemon");
        Reply::parse(&answer).expect_status(200);
    }
    let mut silent = UnixStream::connect(appliance.socket()).expect("connects");
    silent.shutdown(Shutdown::Write).expect("half closed");
    assert_eq!(silent.read_to_end(&mut Vec::new()).expect("closed"), 0);
}

#[test]
fn who_never_reads_is_cut_off_and_costs_no_more_than_its_buffers() {
    let appliance = limited("answer_timeout_ms = 500");
    let before = descriptors(&appliance);
    let request = "GET /v1/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(400);
    let mut stream = UnixStream::connect(appliance.socket()).expect("connects");
    stream.set_write_timeout(Some(Duration::from_secs(2))).expect("set");
    let memory = resident_kib(&appliance);
    let _ = stream.write_all(request.as_bytes());
    wait_until("the end of the connection", || descriptors(&appliance) <= before);
    let grown = resident_kib(&appliance).saturating_sub(memory);
    assert!(grown < 8 * 1024, "400 answers of a large document were kept: {grown} KiB");
    appliance.get("/v1/health").expect_status(200);
}

/// How many files the front has open.
pub fn descriptors(appliance: &Appliance) -> usize {
    let fds = format!("/proc/{}/fd", appliance.front_pid());
    std::fs::read_dir(fds).expect("it runs").count()
}

/// Resident memory of the front.
pub fn resident_kib(appliance: &Appliance) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", appliance.front_pid()));
    let status = status.expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("a number")
}

#[test]
fn a_place_is_found_for_a_user_that_has_none() {
    let appliance =
        limited("connections = 20\nconnections_per_uid = 20\nheader_timeout_ms = 60000");
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    let connect = || UnixStream::connect(appliance.socket()).expect("connects");
    let held: Vec<UnixStream> = STRANGER.does(|| (0..30).map(|_| connect()).collect());
    // Whoever is there without a request gives its place to one that comes with one.
    for _ in 0..10 {
        let body = json!({ "ciphertext": ciphertext });
        appliance.post("/v1/keys/k/decrypt", &body).expect_status(200);
    }
    OTHER.asks(&appliance, "GET", "/v1/health", None).expect_status(200);
    drop(held);
}

/// Many requests of two users wait for a token that is away, which is neither of them asking too often.
#[test]
fn requests_that_wait_for_the_token_keep_no_other_from_its_answer() {
    let appliance = limited("");
    let mut config = appliance.config();
    let users = config["policy"]["roles"]["service"]["users"].as_array_mut().expect("users");
    users.push(i64::from(OTHER.uid).into());
    appliance.write_config(&config);
    let from = appliance.log().len();
    appliance.signal(nix::sys::signal::Signal::SIGHUP);
    appliance.wait_for_log(from, "are loaded anew");
    appliance.create_shared_key("k");
    let body = json!({ "ciphertext": encrypt(&appliance, "k", "x") });
    let tokens = appliance.token().tokens();
    std::fs::rename(&tokens, tokens.with_extension("away")).expect("moved");
    kill_custody(&appliance);
    appliance.wait_for_state("token-unavailable");
    let (appliance, body) = (&appliance, &body);
    std::thread::scope(|scope| {
        let decrypt = move || appliance.post("/v1/keys/k/decrypt", body);
        let mut waiting = Vec::new();
        for _ in 0..100 {
            waiting.push(scope.spawn(decrypt));
        }
        for _ in 0..50 {
            waiting.push(scope.spawn(move || OTHER.does(decrypt)));
        }
        for path in ["/v1/status", "/metrics", "/v1/health"].repeat(3) {
            let begin = Instant::now();
            let reply = appliance.get(path);
            assert_eq!(reply.status, if path == "/v1/health" { 503 } else { 200 }, "{path}");
            let took = begin.elapsed();
            assert!(took < Duration::from_millis(1000), "{path} took {took:?}");
        }
        for reply in waiting {
            reply.join().expect("answered").expect_problem(503, "token-unavailable");
        }
    });
}

fn kill_custody(appliance: &Appliance) {
    let custody = nix::unistd::Pid::from_raw(appliance.custody_pid() as i32);
    nix::sys::signal::kill(custody, nix::sys::signal::Signal::SIGKILL).expect("killed");
}

#[test]
fn bodies_of_one_user_take_no_more_memory_than_is_theirs() {
    let appliance = limited("body_bytes = 100000\nbody_timeout_ms = 60000");
    let ask = |user: User| {
        let body = json!({ "ciphertext": "A".repeat(90_000) });
        user.asks(&appliance, "POST", "/v1/keys/k/decrypt", Some(&body))
    };
    let begun = STRANGER.does(|| {
        let begin = |_| {
            let mut stream = UnixStream::connect(appliance.socket()).expect("connects");
            let head =
                "POST /v1/keys/k/decrypt HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n";
            stream.write_all(head.as_bytes()).expect("sent");
            stream
        };
        (0..40).map(begin).collect::<Vec<_>>()
    });
    wait_until("no more room", || ask(STRANGER).status == 503);
    let busy = ask(STRANGER);
    busy.expect_problem(503, "busy");
    assert!(busy.header("retry-after").is_some());
    ask(OTHER).expect_problem(403, "denied");
    STRANGER.asks(&appliance, "GET", "/v1/health", None).expect_status(200);
    drop(begun);
    wait_until("room again", || ask(STRANGER).status == 403);
}
