//! Keys that may serve while the token is away: those alone, for their time, told by every reply and line.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::acts::{decrypt, encrypt, expect_plaintext, put_secret, reveal, step, trail_lines};
use crate::appliance::{Appliance, Reply, wait_until};
use crate::outages::{tells_its_state, turns};
use crate::shim::Shim;

/// An appliance with a key for each allowance, all of them open, and ciphertexts of `x`.
fn with_keys(allowances: &[(&str, u32)]) -> (Appliance, Vec<String>) {
    let appliance = Appliance::configured(|config| {
        let custody = config["custody"].as_table_mut().expect("a table");
        custody.insert("canary_seconds".to_owned(), 1.into());
        custody.insert("deadline_ms".to_owned(), 500.into());
        // What is allowed counts from the outage on, and not from the last use.
        let cache = toml::toml! { idle_seconds = 4 };
        custody.insert("cache".to_owned(), cache.into());
    });
    appliance.post("/v1/init", &json!({})).expect_status(201);
    let ciphertexts = allowances.iter().map(|(name, seconds)| {
        let body = json!({
            "name": name, "algorithm": "RSA-2048", "serve_without_token_seconds": seconds,
        });
        let view = appliance.post("/v1/keys", &body).expect_status(201).json();
        assert_eq!(view["serve_without_token_seconds"], *seconds);
        encrypt(&appliance, name, "x")
    });
    let ciphertexts: Vec<_> = ciphertexts.collect();
    for ((name, _), ciphertext) in allowances.iter().zip(&ciphertexts) {
        let reply = decrypt(&appliance, name, ciphertext, None);
        expect_plaintext(&reply, "x");
        assert_eq!(reply.json().get("without_token"), None);
    }
    (appliance, ciphertexts)
}

fn move_away(appliance: &Appliance) -> PathBuf {
    let away = appliance.token().tokens().with_extension("away");
    std::fs::rename(appliance.token().tokens(), &away).expect("moved");
    away
}

fn served_alone(reply: &Reply) {
    expect_plaintext(reply, "x");
    assert_eq!(reply.json()["without_token"], true);
}

#[test]
fn keys_serve_without_the_token_as_long_as_they_may_and_others_not_at_all() {
    let (appliance, texts) = with_keys(&[("long", 14), ("short", 5), ("stopped", 14), ("none", 0)]);
    let [long, short, stopped, none] = &texts[..] else { panic!("four") };
    let before = turns(&appliance).len();
    let away = move_away(&appliance);
    appliance.wait_for_state("brown-out");
    served_alone(&decrypt(&appliance, "long", long, None));
    served_alone(&decrypt(&appliance, "short", short, None));
    let batch = json!({ "items": [{ "ciphertext": long }, { "ciphertext": "AAAA" }] });
    let reply = appliance.post("/v1/keys/long/decrypt", &batch).expect_status(200).json();
    assert_eq!(reply["items"][0]["without_token"], true, "{reply}");
    // What needs the token waits, and is refused; what tells of keys goes on.
    let refused = decrypt(&appliance, "none", none, None);
    refused.expect_problem(503, "token-unavailable");
    assert!(refused.header("retry-after").is_some());
    let create = json!({ "name": "new", "algorithm": "RSA-2048" });
    appliance.post("/v1/keys", &create).expect_problem(503, "token-unavailable");
    appliance.get("/v1/keys/none").expect_status(200);
    // It is told, and not hidden.
    let status = appliance.get("/v1/status").expect_status(200).json();
    assert_eq!(status["state"], "brown-out");
    assert_eq!(status["token_away"]["reason"], "token-absent", "{status}");
    assert!(status["token_away"]["since"].is_string(), "{status}");
    let health = appliance.get("/v1/health").expect_status(200).json();
    assert_eq!(health, json!({ "ready": true, "degraded": true, "brown_out": true }));
    let metrics = appliance.get("/metrics").expect_status(200).text();
    assert!(metrics.contains("state=\"brown-out\"} 1"), "{metrics}");
    assert!(!metrics.contains("token_away_seconds 0"), "{metrics}");
    let doctor = appliance.get("/v1/doctor").expect_status(200).text();
    assert!(doctor.contains("brown-out"), "{doctor}");
    // Every use looks at the state of the key; and a key that was stopped is not opened again.
    step(&appliance, "stopped", "suspend", json!({})).expect_status(200);
    decrypt(&appliance, "stopped", stopped, None).expect_problem(409, "key-state");
    step(&appliance, "stopped", "resume", json!({})).expect_status(200);
    decrypt(&appliance, "stopped", stopped, None).expect_problem(503, "token-unavailable");
    // The short one's time is over, the long one's is not.
    wait_until("the end of a short allowance", || {
        decrypt(&appliance, "short", short, None).status == 503
    });
    served_alone(&decrypt(&appliance, "long", long, None));
    appliance.wait_for_state("token-unavailable");
    decrypt(&appliance, "long", long, None).expect_problem(503, "token-unavailable");
    tells_its_state(&appliance, "token-unavailable");

    std::fs::rename(away, appliance.token().tokens()).expect("moved back");
    appliance.wait_for_state("ready");
    for (name, text) in [("long", long), ("short", short), ("stopped", stopped), ("none", none)] {
        let reply = decrypt(&appliance, name, text, None);
        expect_plaintext(&reply, "x");
        assert_eq!(reply.json().get("without_token"), None);
    }
    wait_until("the trail's account of it", || turns(&appliance).len() >= before + 2);
    let turns = turns(&appliance);
    let [lost, back] = &turns[before..] else { panic!("one outage: {turns:?}") };
    assert!(lost == "token-lost token-absent" && back == "token-back", "{turns:?}");
    told_in_the_trail(&appliance);
    is_sound(&appliance);
}

/// Each outcome between the two turns that gave something out says that the token was away, and no other.
fn told_in_the_trail(appliance: &Appliance) {
    let lines = trail_lines(&appliance.trail());
    let done = |line: &&Value| line["kind"] == "outcome" && line["action"] == "key:decrypt";
    let alone = lines.iter().filter(done).filter(|line| line["without_token"] == true);
    assert!(alone.clone().count() >= 4, "{lines:#?}");
    assert!(alone.clone().all(|line| line["result"] == "done"));
    let at = |event: &str| lines.iter().rposition(|line| line["event"] == event).expect("told");
    let (lost, back) = (at("token-lost"), at("token-back"));
    let alone: Vec<_> = (0..lines.len()).filter(|at| lines[*at]["without_token"] == true).collect();
    assert!(alone.iter().all(|at| *at > lost - 4 && *at < back), "{lost} {alone:?} {back}");
}

/// The trail that went on unsigned meanwhile is signed again, and holds.
fn is_sound(appliance: &Appliance) {
    let (trail, key) = (appliance.path("out.jsonl"), appliance.path("out.pem"));
    let (trail, key) = (trail.to_str().unwrap(), key.to_str().unwrap());
    let export = ["audit", "export", "--to", trail, "--public-key", key];
    let output = appliance.cli(&export);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = appliance.cli(&["audit", "verify", trail, "--public-key", key, "--in-use"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn the_token_s_return_ends_a_brown_out_at_once() {
    let (appliance, texts) = with_keys(&[("long", 3600), ("none", 0)]);
    put_secret(&appliance, "s", "long", "x").expect_status(201);
    let away = move_away(&appliance);
    appliance.wait_for_state("brown-out");
    // A stored secret is a record and a ciphertext: both open.
    let reply = reveal(&appliance, "s");
    served_alone(&reply);
    // Longer than an opened key is kept without use.
    std::thread::sleep(Duration::from_secs(5));
    served_alone(&decrypt(&appliance, "long", &texts[0], None));
    let custody = appliance.custody_pid();
    std::fs::rename(away, appliance.token().tokens()).expect("moved back");
    appliance.wait_for_state("ready");
    assert_ne!(appliance.custody_pid(), custody);
    expect_plaintext(&decrypt(&appliance, "none", &texts[1], None), "x");
    let reply = decrypt(&appliance, "long", &texts[0], None);
    assert_eq!(reply.expect_status(200).json().get("without_token"), None);
    is_sound(&appliance);
}

/// An appliance over a module that hangs from now on, with an open key that may serve on for `seconds`.
fn hanging(seconds: u32) -> (Appliance, Shim, String) {
    let (appliance, shim) = Shim::appliance(|config| {
        let cache = toml::toml! { idle_seconds = 300 };
        config["custody"].as_table_mut().expect("a table").insert("cache".to_owned(), cache.into());
    });
    let body = json!({
        "name": "k", "algorithm": "RSA-2048", "serve_without_token_seconds": seconds,
    });
    appliance.post("/v1/keys", &body).expect_status(201);
    let ciphertext = encrypt(&appliance, "k", "x");
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
    shim.order("* hang");
    appliance.wait_for_state("brown-out");
    served_alone(&decrypt(&appliance, "k", &ciphertext, None));
    (appliance, shim, ciphertext)
}

#[test]
fn a_brown_out_after_a_module_that_hung_ends_with_the_allowance() {
    let (appliance, shim, ciphertext) = hanging(15);
    let custody = appliance.custody_pid();
    appliance.wait_for_state("token-unavailable");
    wait_until("another custody", || appliance.custody_pid() != custody);
    decrypt(&appliance, "k", &ciphertext, None).expect_problem(503, "token-unavailable");
    shim.lift();
    appliance.wait_for_state("ready");
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
}

#[test]
fn a_brown_out_after_a_module_that_hung_ends_when_it_works_again() {
    let (appliance, shim, ciphertext) = hanging(3600);
    let custody = appliance.custody_pid();
    shim.lift();
    appliance.wait_for_state("ready");
    assert_ne!(appliance.custody_pid(), custody);
    let reply = decrypt(&appliance, "k", &ciphertext, None);
    assert_eq!(reply.expect_status(200).json().get("without_token"), None);
}

#[test]
fn an_allowance_is_changed_and_bounded() {
    let (appliance, texts) = with_keys(&[("k", 0)]);
    let update = |seconds: Value| {
        appliance.post("/v1/keys/k/update", &json!({ "serve_without_token_seconds": seconds }))
    };
    update(json!(604_801)).expect_problem(400, "invalid");
    appliance.post("/v1/keys/k/update", &json!({})).expect_problem(400, "invalid");
    let body = json!({
        "name": "n", "algorithm": "RSA-2048", "serve_without_token_seconds": 604_801,
    });
    appliance.post("/v1/keys", &body).expect_problem(400, "invalid");
    let output = appliance.cli(&["key", "update", "k", "--serve-without-token", "2h"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let view = appliance.get("/v1/keys/k").json();
    assert_eq!(view["serve_without_token_seconds"], 7200, "{view}");
    let output = appliance.cli(&["key", "update", "k", "--serve-without-token", "8d"]);
    assert_eq!(output.status.code(), Some(2));

    // It holds for the key as it is open already. Taken back while the token is away, it ends at once.
    let away = move_away(&appliance);
    appliance.wait_for_state("brown-out");
    served_alone(&decrypt(&appliance, "k", &texts[0], None));
    update(json!(0)).expect_status(200);
    decrypt(&appliance, "k", &texts[0], None).expect_problem(503, "token-unavailable");
    appliance.wait_for_state("token-unavailable");
    std::fs::rename(away, appliance.token().tokens()).expect("moved back");
    appliance.wait_for_state("ready");
}

#[test]
fn neither_a_stop_nor_a_lock_leaves_a_brown_out_behind() {
    let (mut appliance, texts) = with_keys(&[("k", 3600)]);
    let away = move_away(&appliance);
    appliance.wait_for_state("brown-out");
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    decrypt(&appliance, "k", &texts[0], None).expect_problem(503, "locked");
    std::fs::rename(&away, appliance.token().tokens()).expect("moved back");
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    expect_plaintext(&decrypt(&appliance, "k", &texts[0], None), "x");
    let away = move_away(&appliance);
    appliance.wait_for_state("brown-out");
    let custody = appliance.custody_pid();
    assert!(appliance.stop() < Duration::from_secs(5));
    wait_until("custody's end", || !std::path::Path::new(&format!("/proc/{custody}")).exists());
    std::fs::rename(away, appliance.token().tokens()).expect("moved back");
    appliance.start();
    expect_plaintext(&decrypt(&appliance, "k", &texts[0], None), "x");
}

#[test]
fn a_probe_that_was_killed_takes_no_brown_out_away() {
    let (appliance, texts) = with_keys(&[("long", 60)]);
    let (custody, probe) = (appliance.custody_pid(), appliance.probe_pid().expect("a probe"));
    let probe = i32::try_from(probe).expect("a pid");
    kill(Pid::from_raw(probe), Signal::SIGKILL).expect("it runs");
    wait_until("another custody, and its probe", || {
        appliance.custody_pid() != custody && appliance.probe_pid().is_some()
    });
    assert!(appliance.log().contains("the process that looks for the token has ended"));
    appliance.wait_for_state("ready");
    let doctor = appliance.get("/v1/doctor").json();
    let checks = doctor["checks"].as_array().expect("checks");
    assert!(checks.iter().any(|check| check["name"] == "probe" && check["result"] == "ok"));
    expect_plaintext(&decrypt(&appliance, "long", &texts[0], None), "x");
    let away = move_away(&appliance);
    appliance.wait_for_state("brown-out");
    served_alone(&decrypt(&appliance, "long", &texts[0], None));
    std::fs::rename(away, appliance.token().tokens()).expect("moved back");
    appliance.wait_for_state("ready");
}
