//! Store and audit log are put back together, as a snapshot of their volume does: they agree with each other,
//! and bring back a compromised key and a deleted secret. Custody and its token remember.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::acts::{decrypt, encrypt, events, expect_plaintext, put_secret, reveal, trail_lines};
use crate::appliance::{Appliance, wait_until};

/// Copies of directories, to be put back.
pub struct Snapshot {
    kept: tempfile::TempDir,
    places: Vec<PathBuf>,
}

impl Snapshot {
    /// Of an appliance that does not run.
    pub fn of(places: Vec<PathBuf>) -> Self {
        let kept = tempfile::tempdir().expect("a directory");
        for (number, place) in places.iter().enumerate() {
            copy(place, &kept.path().join(number.to_string()));
        }
        Self { kept, places }
    }

    pub fn put_back(&self) {
        for (number, place) in self.places.iter().enumerate() {
            std::fs::remove_dir_all(place).expect("removed");
            copy(&self.kept.path().join(number.to_string()), place);
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(status.expect("cp runs").success());
}

/// An appliance with a key that is then compromised and a secret that is then deleted, stopped after both,
/// and what was sealed with the key; `places` besides store and audit log are put back as they were before.
fn rolled_back(places: impl FnOnce(&Appliance) -> Vec<PathBuf>) -> (Appliance, String) {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let sealed = encrypt(&appliance, "k", "value");
    put_secret(&appliance, "s", "k", "secret").expect_status(201);
    appliance.stop();
    let mut all = vec![appliance.path("store"), appliance.trail()];
    all.extend(places(&appliance));
    let snapshot = Snapshot::of(all);
    appliance.start();
    appliance.wait_for_state("ready");
    appliance.delete("/v1/secrets/s", &json!({})).expect_status(204);
    appliance.post("/v1/keys/k/compromise", &json!({})).expect_status(200);
    appliance.stop();
    snapshot.put_back();
    (appliance, sealed)
}

fn state(appliance: &Appliance) -> Value {
    appliance.get("/v1/status").json()
}

/// Nothing is served, nothing is written, and an operator is told what to do.
#[track_caller]
fn expect_held(appliance: &Appliance, sealed: &str) -> Value {
    appliance.wait_for_state("store-rolled-back");
    let before = trail_lines(&appliance.trail());
    decrypt(appliance, "k", sealed, None).expect_problem(503, "store-rolled-back");
    reveal(appliance, "s").expect_problem(503, "store-rolled-back");
    let create = json!({ "name": "new", "algorithm": "RSA-2048" });
    appliance.post("/v1/keys", &create).expect_problem(503, "store-rolled-back");
    appliance.get("/v1/keys").expect_problem(503, "store-rolled-back");
    assert_eq!(appliance.get("/v1/health").status, 503);
    assert_eq!(trail_lines(&appliance.trail()), before, "nothing is added to it");
    let status = state(appliance);
    assert!(status["detail"].as_str().expect("why").contains("custody has signed checkpoint"));
    assert!(status["next"].as_str().expect("a step").contains("accept-rollback"), "{status}");
    let doctor = appliance.get("/v1/doctor").json().to_string();
    assert!(doctor.contains("store-rolled-back"), "{doctor}");
    status
}

/// The command that the status writes out.
fn accept(appliance: &Appliance, status: &Value) -> Output {
    let detail = status["detail"].as_str().expect("why");
    let argument = detail.split_whitespace().last().expect("a word");
    appliance.cli(&[
        "accept-rollback",
        "--config",
        appliance.config_file().to_str().expect("a path"),
        argument,
    ])
}

fn verify(appliance: &Appliance) -> (i32, Value) {
    let key = appliance.path("audit.pem");
    let pem = appliance.get("/v1/audit/public-key").expect_status(200).text();
    std::fs::write(&key, pem).expect("written");
    let trail = appliance.trail();
    let (trail, key) = (trail.to_str().expect("a path"), key.to_str().expect("a path"));
    let arguments =
        ["audit", "verify", "--in-use", "--output", "json", "--dir", trail, "--public-key", key];
    let output = appliance.cli(&arguments);
    let said = serde_json::from_slice(&output.stdout).expect("JSON");
    (output.status.code().expect("an exit"), said)
}

#[test]
fn a_store_and_an_audit_log_put_back_are_not_served_until_root_accepts_them() {
    let (mut appliance, sealed) = rolled_back(|_| Vec::new());
    appliance.spawn();
    expect_held(&appliance, &sealed);
    // A restart changes nothing.
    appliance.stop();
    appliance.spawn();
    let status = expect_held(&appliance, &sealed);
    let accepted = accept(&appliance, &status);
    assert!(accepted.status.success(), "{}", String::from_utf8_lossy(&accepted.stderr));
    appliance.wait_for_state("ready");
    wait_until("the event", || events(&appliance.trail()).contains(&"rollback-accepted".into()));
    expect_plaintext(&decrypt(&appliance, "k", &sealed, None), "value");
    appliance.restart();
    appliance.wait_for_state("ready");
    // The numbers tell which checkpoints were replaced, and no number was used twice.
    let (code, said) = verify(&appliance);
    assert_eq!((code, &said["verdict"]), (0, &json!("sound")), "{said}");
    let replaced = &said["replaced"][0];
    assert!(replaced["from"].as_u64() <= replaced["to"].as_u64(), "{said}");
}

#[test]
fn the_token_remembers_where_custody_s_own_state_was_put_back_too() {
    let (mut appliance, sealed) =
        rolled_back(|appliance| vec![appliance.token().state_directory()]);
    appliance.spawn();
    expect_held(&appliance, &sealed);
    appliance.stop();
    // Root's word for another history than the one that is there is none.
    let other = format!("0123456789abcdef:1:2:{}", "0".repeat(64));
    let config = appliance.config_file();
    let ordered =
        appliance.cli(&["accept-rollback", "--config", config.to_str().expect("a path"), &other]);
    assert!(ordered.status.success());
    appliance.spawn();
    expect_held(&appliance, &sealed);
}

#[test]
fn a_state_that_was_lost_is_noticed_by_the_token_and_service_goes_on() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    appliance.stop();
    std::fs::remove_dir_all(appliance.token().state_directory()).expect("removed");
    appliance.start();
    appliance.wait_for_state("ready");
    wait_until("the event", || events(&appliance.trail()).contains(&"custody-state-lost".into()));
    let doctor = appliance.get("/v1/doctor").json().to_string();
    assert!(doctor.contains("older than the token remembers"), "{doctor}");
    appliance.restart();
    appliance.wait_for_state("ready");
    assert_eq!(verify(&appliance).0, 0);
}

/// What no memory of this machine can notice; `docs/security.md` says so.
#[test]
fn what_was_put_back_with_the_token_itself_is_not_noticed() {
    let (mut appliance, sealed) = rolled_back(|appliance| {
        vec![appliance.token().state_directory(), appliance.token().tokens()]
    });
    appliance.start();
    appliance.wait_for_state("ready");
    expect_plaintext(&decrypt(&appliance, "k", &sealed, None), "value");
}
