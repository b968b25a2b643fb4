//! Front and custody as two processes that nobody but a supervisor ties together, and what they do to
//! each other: one that returns, one that hangs, one that is flooded.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::appliance::{Appliance, wait_until};

/// Custody started by hand, as systemd would.
pub struct Custody(Child);

impl Custody {
    pub fn start(appliance: &Appliance) -> Self {
        let (name, conf) = appliance.token().environment();
        let child = Command::new(env!("CARGO_BIN_EXE_strongroom"))
            .args(["custody", "--config"])
            .arg(appliance.config_file())
            .env(name, conf)
            .envs(appliance.environment())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("custody starts"))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Custody {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An initialised appliance whose custody is not its front's child.
pub fn apart() -> (Appliance, Custody) {
    apart_with(|_| {})
}

/// The same, with a configuration that `change` has changed.
pub fn apart_with(change: impl FnOnce(&mut toml::Table)) -> (Appliance, Custody) {
    let mut appliance = Appliance::prepared(|config| {
        let custody = config["custody"].as_table_mut().expect("a table");
        custody.insert("spawn".to_owned(), "never".into());
        change(config);
    });
    let custody = Custody::start(&appliance);
    appliance.spawn();
    appliance.wait_for_state("not-initialised");
    appliance.post("/v1/init", &json!({})).expect_status(201);
    (appliance, custody)
}

#[test]
fn a_front_that_starts_again_finds_its_living_custody_ready() {
    let (mut appliance, _custody) = apart();
    appliance.create_key("payments");
    let body = json!({ "key": "payments", "plaintext": BASE64_STANDARD.encode("kept") });
    appliance.put("/v1/secrets/s", &body).expect_status(201);
    for round in 0..3 {
        if round == 1 {
            appliance.kill();
        } else {
            appliance.stop();
        }
        appliance.spawn();
        appliance.wait_for_state("ready");
        appliance.post("/v1/secrets/s/reveal", &json!({})).expect_status(200);
    }
}

/// Makes a process stand still, as a module that never returns would; waits until it does.
fn hang(pid: Pid) {
    kill(pid, Signal::SIGSTOP).expect("stopped");
    wait_until("a process that stands still", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it is there");
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    });
}

/// When the token was last logged in to, or tried: SoftHSM writes `token.object` then.
fn last_login(appliance: &Appliance) -> std::time::SystemTime {
    let tokens = std::fs::read_dir(appliance.token().tokens()).expect("a directory");
    let token = tokens.flatten().map(|entry| entry.path().join("token.object")).next();
    let found = std::fs::metadata(token.expect("a token")).expect("a token");
    found.modified().expect("a time")
}

#[test]
fn a_refused_pin_is_tried_once_however_often_the_front_starts() {
    let (mut appliance, _custody) = apart();
    let pin = appliance.token().pin_file();
    let right = std::fs::read_to_string(&pin).expect("readable");
    std::fs::write(&pin, "000000").expect("written");
    let mut tried = Vec::new();
    for _ in 0..3 {
        appliance.stop();
        appliance.spawn();
        appliance.wait_for_state("pin-refused");
        tried.push(last_login(&appliance));
    }
    assert!(tried.windows(2).all(|pair| pair[0] == pair[1]), "the PIN was tried again: {tried:?}");
    std::fs::write(&pin, right).expect("written");
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    appliance.wait_for_state("ready");
}

#[test]
fn a_custody_that_hangs_keeps_nobody_waiting_and_is_replaced() {
    let appliance = Appliance::new();
    appliance.create_key("payments");
    let custody = Pid::from_raw(appliance.custody_pid() as i32);
    hang(custody);
    let asked = Instant::now();
    let body = json!({ "ciphertext": BASE64_STANDARD.encode([1; 256]) });
    appliance.post("/v1/keys/payments/decrypt", &body).expect_problem(503, "token-unavailable");
    wait_until("a health that tells", || appliance.get("/v1/health").status == 503);
    assert!(asked.elapsed() < Duration::from_secs(20), "somebody waited too long");
    appliance.wait_for_state("ready");
    assert_ne!(appliance.custody_pid(), custody.as_raw() as u32);
    appliance.post("/v1/keys/payments/decrypt", &body).expect_problem(422, "decryption-failed");
}

#[test]
fn a_hung_custody_does_not_keep_the_appliance_from_being_locked() {
    let appliance = Appliance::new();
    hang(Pid::from_raw(appliance.custody_pid() as i32));
    let locked = appliance.post("/v1/lock", &json!({ "reason": "key-compromise" }));
    assert_eq!(locked.expect_status(200).json()["state"], "locked");
}

#[test]
fn a_locked_appliance_encrypts_and_lists_nothing() {
    let appliance = Appliance::new();
    appliance.create_key("payments");
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    let body = json!({ "plaintext": "aGVsbG8=" });
    appliance.post("/v1/keys/payments/encrypt", &body).expect_problem(503, "locked");
    for path in ["/v1/keys", "/v1/keys/payments", "/v1/keys/payments/public", "/v1/jwks.json"] {
        appliance.get(path).expect_problem(503, "locked");
    }
}

#[test]
fn many_large_batches_at_once_are_answered_and_leave_it_working() {
    let appliance = Appliance::new();
    appliance.create_key("payments");
    let value = BASE64_STANDARD.encode([7; 190]);
    let encrypted = appliance.post("/v1/keys/payments/encrypt", &json!({ "plaintext": value }));
    let ciphertext = encrypted.expect_status(200).json()["ciphertext"].clone();
    let items: Vec<Value> = vec![json!({ "ciphertext": ciphertext }); 256];
    let batch = json!({ "items": items });
    let large = json!({ "plaintext": BASE64_STANDARD.encode(vec![0; 500_000]) });
    std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                let reply = appliance.post("/v1/keys/payments/decrypt", &batch);
                assert!([200, 503].contains(&reply.status), "{}", reply.text());
            });
            scope.spawn(|| {
                let reply = appliance.post("/v1/keys/payments/encrypt", &large);
                reply.expect_problem(422, "plaintext-too-long");
            });
        }
    });
    let opened = appliance.post("/v1/keys/payments/decrypt", &json!({ "ciphertext": ciphertext }));
    assert_eq!(opened.expect_status(200).json()["plaintext"], value);
}
