//! Bytes that are no proper requests: floods, slowness, broken chunks, other protocols, too many callers.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::json;

use crate::appliance::{Appliance, PATIENCE, Reply, wait_until};
use crate::callers::{User, open_to_all};
use crate::checks::{b64, expect_headers, seen};

fn impatient() -> Appliance {
    let appliance = Appliance::configured(|config| {
        let limits = "header_timeout_ms = 300\nbody_timeout_ms = 300\nconnections_per_uid = 32\n";
        let limits: toml::Table = limits.parse().expect("TOML");
        config.insert("limits".to_owned(), limits.into());
    });
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_key("there");
    appliance
}

fn connect(appliance: &Appliance) -> UnixStream {
    let stream = UnixStream::connect(appliance.socket()).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream
}

/// Reads to the end; a connection that is cut is at its end, too.
fn rest(mut stream: &UnixStream) -> String {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "it was not closed: {error}");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends bytes and keeps its own side open: it is the daemon that has to end this.
fn send(appliance: &Appliance, bytes: &[u8]) -> String {
    let mut stream = connect(appliance);
    let _ = stream.write_all(bytes);
    rest(&stream)
}

fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()
}

/// Still serves, has not panicked, and nothing is changed.
fn unharmed(appliance: &Appliance, before: &(serde_json::Value, serde_json::Value)) {
    assert_eq!(&seen(appliance), before);
    let log = appliance.log();
    assert!(!log.contains("panicked") && !log.contains("CANARY"), "{log}");
}

const HOST: &str = "host: strongroom\r\n";
const TYPE: &str = "content-type: application/json\r\n";

#[test]
fn what_is_no_request_is_refused_or_cut() {
    let appliance = impatient();
    let before = seen(&appliance);
    let many: String = (0..100).map(|at| format!("x-{at}: CANARY\r\n")).collect();
    let long = format!("x-long: {}\r\n", "CANARY".repeat(20_000));
    let body = r#"{"name":"new","algorithm":"RSA-2048"}"#;
    let length = body.len();
    let chunked =
        format!("POST /v1/keys HTTP/1.1\r\n{HOST}{TYPE}transfer-encoding: chunked\r\n\r\n");
    let refused = [
        (vec![431], format!("GET /v1/keys HTTP/1.1\r\n{HOST}{many}\r\n")),
        (vec![431], format!("GET /v1/keys HTTP/1.1\r\n{HOST}{long}\r\n")),
        (
            vec![414, 431],
            format!("GET /v1/keys?{} HTTP/1.1\r\n{HOST}\r\n", "CANARY".repeat(20_000)),
        ),
        (vec![400], format!("GET /v1/ke\0ys HTTP/1.1\r\n{HOST}\r\n")),
        (vec![400], format!("GET /v1/keys HTTP/1.1\r\nbad header: x\r\n{HOST}\r\n")),
        (vec![400], format!("GET /v1/keys HTTP/1.1\r\n{HOST} folded: CANARY\r\n\r\n")),
        (vec![400], format!("GET /v1/keys HTTP/7.3\r\n{HOST}\r\n")),
        (vec![400], "GET /v1/keys\r\n\r\n".to_owned()),
        (
            vec![400],
            format!("POST /v1/keys HTTP/1.1\r\n{HOST}{TYPE}content-length: -1\r\n\r\n{body}"),
        ),
        (
            vec![400],
            format!("POST /v1/keys HTTP/1.1\r\n{HOST}{TYPE}content-length: CANARY\r\n\r\n{body}"),
        ),
        (
            vec![400],
            format!(
                "POST /v1/keys HTTP/1.1\r\n{HOST}{TYPE}content-length: 1\r\ncontent-length: {length}\r\n\r\n{body}"
            ),
        ),
        (
            vec![400],
            format!("POST /v1/keys HTTP/1.1\r\n{HOST}{TYPE}transfer-encoding: gzip\r\n\r\n{body}"),
        ),
        (
            vec![400],
            format!("{}, chunked\r\n\r\n0\r\n\r\n", chunked.replace(" chunked\r\n\r\n", " gzip")),
        ),
        (vec![400], format!("GET /v1/keys HTTP/1.1\r\n{HOST}{HOST}\r\n")),
        (vec![400], format!("GET /v1/keys HTTP/1.1\r\n{HOST}host: CANARY\r\n\r\n")),
        (vec![400], "GET /v1/keys HTTP/1.1\r\n\r\n".to_owned()),
        (
            vec![413],
            format!(
                "POST /v1/keys HTTP/1.1\r\n{HOST}{TYPE}content-length: 4294967296\r\n\r\n{body}"
            ),
        ),
        (vec![400], format!("{chunked}CANARY\r\n{body}\r\n0\r\n\r\n")),
        (vec![400], format!("{chunked}-5\r\n{body}\r\n0\r\n\r\n")),
        (vec![400], format!("{chunked}ffffffffffffffffff\r\n{body}\r\n0\r\n\r\n")),
        (vec![400], format!("{chunked}2\r\n{{}}CANARY\r\n0\r\n\r\n")),
        (
            vec![413],
            format!(
                "{chunked}{}0\r\n\r\n",
                format!("8000\r\n{}\r\n", " ".repeat(0x8000)).repeat(40)
            ),
        ),
        (vec![400, 404, 405], format!("CONNECT strongroom:443 HTTP/1.1\r\n{HOST}\r\n")),
        (vec![400, 404, 405], format!("OPTIONS * HTTP/1.1\r\n{HOST}connection: close\r\n\r\n")),
        (
            vec![404],
            format!("GET http://elsewhere/CANARY HTTP/1.1\r\n{HOST}connection: close\r\n\r\n"),
        ),
    ];
    for (expected, request) in refused {
        let answer = send(&appliance, request.as_bytes());
        let label = format!("{request:.120}\n{answer:.400}");
        assert!(status(&answer).is_some_and(|status| expected.contains(&status)), "{label}");
        assert!(!answer.contains("CANARY"), "{label}");
        let document = &answer[answer.find("\r\n\r\n").expect("a head") + 4..];
        let document: serde_json::Value = serde_json::from_str(document).expect(&label);
        assert_eq!(document["status"].as_u64(), status(&answer).map(u64::from), "{label}");
        assert!(answer.contains("content-type: application/problem+json"), "{label}");
        assert!(answer.contains(document["request_id"].as_str().expect("an id")), "{label}");
    }
    let mut noise = vec![0_u8; 4096];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    noise.iter_mut().for_each(|byte| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 33) as u8;
    });
    let tls = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &noise[..256]].concat();
    for garbage in
        [&noise[..], &tls, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n\r\n\r\n\0\0\0", b"\0"]
    {
        let answer = send(&appliance, garbage);
        let clean = answer.is_empty() || status(&answer).is_some_and(|s| (400..500).contains(&s));
        assert!(clean, "{answer}");
    }
    unharmed(&appliance, &before);
}

/// A proxy that goes by the length passes all of it on as one request; by the coding it is two.
#[test]
fn nothing_is_smuggled_behind_a_body() {
    let appliance = impatient();
    let smuggled = format!("GET /v1/keys/there HTTP/1.1\r\n{HOST}\r\n");
    let body = format!("0\r\n\r\n{smuggled}");
    let length = format!("content-length: {}\r\n", body.len());
    let coding = "transfer-encoding: chunked\r\n";
    for headers in [format!("{length}{coding}"), format!("{coding}{length}"), coding.to_owned()] {
        let request = format!("GET /v1/keys/there HTTP/1.1\r\n{HOST}{headers}\r\n{body}");
        let answer = send(&appliance, request.as_bytes());
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{headers}{answer}");
        assert!(answer.contains("connection: close\r\n"), "{headers}{answer}");
    }
    let twice = send(&appliance, smuggled.replace(HOST, &HOST.repeat(2)).repeat(2).as_bytes());
    assert!(twice.matches("x-request-id").count() == 1 && status(&twice) == Some(400), "{twice}");
}

#[test]
fn slowness_has_an_end() {
    let appliance = impatient();
    let before = seen(&appliance);
    for beginning in ["", "G", "GET /v1/keys HTTP/1.1\r\n", "GET /v1/keys HTTP/1.1\r\nx-a: CANARY"]
    {
        let answer = send(&appliance, beginning.as_bytes());
        if beginning.is_empty() {
            assert!(answer.is_empty(), "nothing was asked: {answer}");
        } else {
            assert_eq!(status(&answer), Some(408), "{beginning}: {answer}");
            assert!(answer.contains("\"headers-too-slow\"") && !answer.contains("CANARY"));
        }
    }
    let head = format!("POST /v1/keys HTTP/1.1\r\n{HOST}{TYPE}");
    for unfinished in [
        format!("{head}content-length: 38\r\n\r\n{{\"name\":\"CANARY"),
        format!("{head}content-length: 38\r\n\r\n"),
        format!("{head}transfer-encoding: chunked\r\n\r\n5\r\n{{\"na"),
        format!("{head}transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n"),
    ] {
        let answer = send(&appliance, unfinished.as_bytes());
        assert_eq!(status(&answer), Some(408), "{unfinished}: {answer}");
        assert!(answer.contains("\"body-too-slow\"") && !answer.contains("CANARY"), "{answer}");
    }
    // One that goes away in the middle of its body.
    for _ in 0..8 {
        let mut stream = connect(&appliance);
        stream
            .write_all(format!("{head}content-length: 38\r\n\r\n{{\"name\":").as_bytes())
            .expect("sent");
        drop(stream);
    }
    unharmed(&appliance, &before);
}

#[test]
fn other_ways_to_ask_properly_are_served() {
    let appliance = impatient();
    let one = format!("GET /v1/keys/there HTTP/1.1\r\n{HOST}\r\n");
    let last = format!("GET /v1/keys/nobody HTTP/1.1\r\n{HOST}connection: close\r\n\r\n");
    let answer = send(&appliance, format!("{one}{one}{one}{last}").as_bytes());
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3, "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 404 Not Found").count(), 1, "{answer}");
    let ids: std::collections::BTreeSet<&str> =
        answer.lines().filter_map(|line| line.strip_prefix("x-request-id: ")).collect();
    assert_eq!(ids.len(), 4, "each request has its own number");

    let body = format!(r#"{{"plaintext":"{}"}}"#, b64("x"));
    let head = format!("POST /v1/keys/there/encrypt HTTP/1.1\r\n{HOST}{TYPE}connection: close\r\n");
    let chunks: String = body.chars().map(|c| format!("1;extension=x\r\n{c}\r\n")).collect();
    let answer = send(
        &appliance,
        format!("{head}transfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n").as_bytes(),
    );
    assert_eq!(status(&answer), Some(200), "{answer}");
    let answer = send(&appliance, b"GET /v1/keys/there HTTP/1.0\r\n\r\n");
    assert_eq!(status(&answer), Some(200), "{answer}");
    let head = format!("HEAD /v1/keys/there HTTP/1.1\r\n{HOST}connection: close\r\n\r\n");
    let answer = send(&appliance, head.as_bytes());
    assert!(status(&answer) == Some(200) && answer.ends_with("\r\n\r\n"), "{answer}");
    // A body that announces itself is asked for, or refused before it was sent.
    let expect = |length: usize| {
        format!(
            "POST /v1/keys/there/encrypt HTTP/1.1\r\n{HOST}{TYPE}expect: 100-continue\r\n\
                 connection: close\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let mut stream = connect(&appliance);
    stream.write_all(expect(body.len()).as_bytes()).expect("sent");
    let mut asked = [0; 25];
    stream.read_exact(&mut asked).expect("asked for it");
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body.as_bytes()).expect("sent");
    assert_eq!(status(&rest(&stream)), Some(200));
    assert_eq!(status(&send(&appliance, expect(2_000_000).as_bytes())), Some(413));
}

#[test]
fn one_user_cannot_take_all_connections() {
    const GREEDY: User = User::new(60_011);
    const OTHER: User = User::new(60_012);
    let appliance = Appliance::configured(|config| {
        let limits = "connections_per_uid = 4\nconnections = 12\nheader_timeout_ms = 60000";
        let limits: toml::Table = limits.parse().expect("TOML");
        config.insert("limits".to_owned(), limits.into());
    });
    open_to_all(&appliance);
    let take = |user: User, many: usize| -> Vec<UnixStream> {
        user.does(|| (0..many).map(|_| connect(&appliance)).collect())
    };
    let health = |user: User| user.does(|| appliance.get("/v1/health"));
    // Not initialised: what answers with its own 503 is being served.
    let served = |user: User| health(user).json()["code"] == "not-ready";
    let turned_away = |reply: Reply| {
        expect_headers(&reply);
        reply.expect_problem(503, "too-many-connections");
        assert_eq!(reply.header("retry-after").as_deref(), Some("1"));
    };
    let mut held = take(GREEDY, 4);
    turned_away(health(GREEDY));
    assert!(served(OTHER), "another user is not touched by it");
    held.pop();
    wait_until("a place that has become free", || served(GREEDY));
    drop(held);

    let mut crowd = Vec::new();
    wait_until("all places to be taken", || {
        crowd.extend(take(User::new(60_100 + crowd.len() as u32), 1));
        health(OTHER).json()["code"] == "too-many-connections"
    });
    assert!(crowd.len() <= 13, "{}", crowd.len());
    turned_away(health(OTHER));
    drop(crowd);
    wait_until("free places again", || served(OTHER) && served(GREEDY));
}
