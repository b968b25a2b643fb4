//! A log that is not read stops no one: neither requests, nor `lock`, nor the end of the process.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::libc::O_NONBLOCK;
use nix::sys::stat::Mode;
use serde_json::json;

use crate::appliance::{Appliance, wait_until};

/// An appliance whose stderr is a pipe, and the end of it that may be read.
fn with_a_pipe_as_log() -> (Appliance, File) {
    let mut appliance = Appliance::prepared(|config| {
        let log = config["log"].as_table_mut().expect("a table");
        log.insert("level".to_owned(), "trace".into());
    });
    let path = appliance.path("log");
    nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).expect("a pipe");
    let mut options = File::options();
    let pipe = options.read(true).write(true).custom_flags(O_NONBLOCK).open(path).expect("opened");
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    (appliance, pipe)
}

/// Makes the daemon log more than pipe and queue hold.
fn log_much(appliance: &Appliance) {
    for _ in 0..3000 {
        appliance.raw(b"no request\r\n\r\n");
    }
}

#[test]
fn nothing_waits_for_a_log_that_is_not_read() {
    let (mut appliance, _never_read) = with_a_pipe_as_log();
    log_much(&appliance);
    appliance.get("/v1/status").expect_status(200);
    appliance.get("/v1/health").expect_status(200);
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    let took = appliance.stop();
    assert!(took < Duration::from_secs(5), "it ended after {took:?}");
}

#[test]
fn what_was_dropped_is_counted_in_the_log() {
    let (mut appliance, mut pipe) = with_a_pipe_as_log();
    log_much(&appliance);
    let mut text = String::new();
    wait_until("the count of dropped lines", || {
        let mut bytes = vec![0; 64 * 1024];
        let length = pipe.read(&mut bytes).unwrap_or(0);
        text.push_str(&String::from_utf8_lossy(&bytes[..length]));
        text.contains("log lines were dropped")
    });
    appliance.stop();
}
