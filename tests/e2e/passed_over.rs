//! Nothing in a request that changes its meaning is passed over in silence: it is done, or refused by its name.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::appliance::{Appliance, Reply};

#[test]
fn a_page_is_as_long_as_it_was_asked_for_or_refused() {
    let appliance = Appliance::new();
    for path in ["/v1/keys", "/v1/secrets", "/v1/audit", "/v1/jwks.json"] {
        for limit in ["0", "1001", "100000"] {
            let reply = appliance.get(&format!("{path}?limit={limit}"));
            let problem = reply.expect_problem(400, "invalid").json();
            assert_eq!(problem["pointer"], "/limit", "{path}: {problem}");
            assert!(problem["detail"].as_str().expect("a text").contains("1 to 1000"), "{problem}");
        }
        appliance.get(&format!("{path}?limit=1000")).expect_status(200);
    }
}

#[test]
fn credentials_that_are_not_read_are_refused() {
    let appliance = Appliance::new();
    for header in ["authorization: Bearer x", "proxy-authorization: Basic eA==", "x-api-key: x"] {
        for path in ["/v1/keys", "/v1/health"] {
            let reply = appliance.request("GET", path, &format!("{header}\r\n"), b"");
            let problem = reply.expect_problem(400, "unsupported-header").json();
            let detail = problem["detail"].as_str().expect("a text");
            assert!(detail.contains("the Unix user that connects"), "{detail}");
        }
    }
}

/// A client that writes all of its request before it reads the answer gets that all the same.
#[test]
fn who_is_turned_away_at_the_door_can_read_why() {
    let appliance = Appliance::configured(|config| {
        let limits = "connections_per_uid = 2\nheader_timeout_ms = 60000";
        let limits: toml::Table = limits.parse().expect("TOML");
        config.insert("limits".to_owned(), limits.into());
    });
    let connect = || UnixStream::connect(appliance.socket()).expect("accepted by the kernel");
    // A connection of the harness's own may still count; whoever is turned away for it tries again.
    let hold = || loop {
        let stream = connect();
        std::thread::sleep(Duration::from_millis(100));
        stream.set_nonblocking(true).expect("settable");
        let read = (&stream).read(&mut [0]);
        if read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
            return stream;
        }
    };
    let held = [hold(), hold()];
    let body = vec![b' '; 512 * 1024];
    let head = format!(
        "POST /v1/init HTTP/1.1\r\nhost: strongroom\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    for _ in 0..4 {
        let mut stream = connect();
        stream.write_all(head.as_bytes()).expect("taken");
        stream.write_all(&body).expect("all of it is taken");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the answer is there");
        Reply::parse(&answer).expect_problem(503, "too-many-connections");
    }
    drop(held);
}
