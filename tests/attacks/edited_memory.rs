//! Somebody has custody's own state directory as well as store and audit log, and edits what custody remembers. The
//! token is compared with it, and is believed.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use strongroom::custody::Mark;

use super::forged_history::{lines, patch_kept_head, write};
use super::rolled_back_together::Snapshot;
use crate::acts::{base64, decrypt, encrypt, events, expect_plaintext, put_secret, reveal};
use crate::appliance::{Appliance, wait_until};
use crate::shim::Shim;

fn file(appliance: &Appliance, name: &str) -> PathBuf {
    appliance.token().state_directory().join(format!("{name}.json"))
}

/// What custody remembers of checkpoints.
fn memory(appliance: &Appliance) -> Value {
    let bytes = std::fs::read(file(appliance, "checkpoints")).expect("custody's state");
    let form: Value = serde_json::from_slice(&bytes).expect("JSON");
    form["value"].clone()
}

/// Writes it with its digest, which needs no key.
fn forge(appliance: &Appliance, memory: &Value) {
    let value = memory.to_string();
    let digest: String = Sha256::digest(&value).iter().map(|byte| format!("{byte:02x}")).collect();
    let form = format!(
        "{{\"version\":1,\"section\":\"checkpoints\",\"sha256\":\"{digest}\",\"value\":{value}}}"
    );
    std::fs::write(file(appliance, "checkpoints"), form).expect("written");
}

/// An appliance with a key and a secret, stopped, and what was sealed with the key.
fn stopped() -> (Appliance, String) {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let sealed = encrypt(&appliance, "k", "value");
    put_secret(&appliance, "s", "k", "secret").expect_status(201);
    appliance.stop();
    (appliance, sealed)
}

#[track_caller]
fn expect_held(appliance: &mut Appliance, sealed: &str) {
    appliance.spawn();
    appliance.wait_for_state("store-rolled-back");
    decrypt(appliance, "k", sealed, None).expect_problem(503, "store-rolled-back");
    reveal(appliance, "s").expect_problem(503, "store-rolled-back");
}

#[test]
fn an_older_state_with_the_newest_number_is_not_believed() {
    let (mut appliance, sealed) = stopped();
    let snapshot = Snapshot::of(vec![appliance.path("store"), appliance.trail()]);
    let mut older = memory(&appliance);
    appliance.start();
    appliance.wait_for_state("ready");
    appliance.delete("/v1/secrets/s", &json!({})).expect_status(204);
    appliance.post("/v1/keys/k/compromise", &json!({})).expect_status(200);
    appliance.stop();
    older["highest"] = memory(&appliance)["highest"].clone();
    snapshot.put_back();
    forge(&appliance, &older);
    expect_held(&mut appliance, &sealed);
}

#[test]
fn a_state_without_a_checkpoint_has_no_other_history_signed() {
    let (mut appliance, sealed) = stopped();
    let uid = nix::unistd::getuid().as_raw();
    let blamed: Vec<String> = lines(&appliance)
        .iter()
        .filter(|line| !line.contains("\"kind\":\"checkpoint\""))
        .map(|line| line.replace(&format!("unix:{uid}\""), "unix:31337\""))
        .collect();
    let forged = write(&appliance, &blamed);
    patch_kept_head(&appliance, &forged);
    let mut emptied = memory(&appliance);
    (emptied["newest"], emptied["closed"], emptied["stored"]) =
        (Value::Null, false.into(), 0.into());
    forge(&appliance, &emptied);
    expect_held(&mut appliance, &sealed);
    appliance.stop();
    let signed = lines(&appliance);
    assert!(signed.iter().all(|line| !line.contains("\"kind\":\"checkpoint\"")), "{signed:#?}");
}

#[test]
fn numbers_that_are_used_up_keep_nothing_from_being_signed() {
    for highest in [u64::MAX, 1 << 62] {
        let (mut appliance, sealed) = stopped();
        let mut raised = memory(&appliance);
        raised["highest"] = highest.into();
        forge(&appliance, &raised);
        let signed = |appliance: &Appliance| {
            lines(appliance).iter().filter(|line| line.contains("\"kind\":\"checkpoint\"")).count()
        };
        let before = signed(&appliance);
        appliance.start();
        appliance.wait_for_state("ready");
        wait_until("the event", || {
            events(&appliance.trail()).contains(&"custody-state-lost".into())
        });
        expect_plaintext(&decrypt(&appliance, "k", &sealed, None), "value");
        appliance.restart();
        appliance.wait_for_state("ready");
        expect_plaintext(&decrypt(&appliance, "k", &sealed, None), "value");
        assert!(signed(&appliance) > before, "{highest}");
        let newest = memory(&appliance)["newest"]["mark"].clone();
        let newest: Mark = newest.as_str().expect("a mark").parse().expect("a mark");
        assert!(newest.number < 100, "{newest}");
    }
}

#[test]
fn a_lock_is_remembered_by_the_token_where_custody_s_state_was_put_back_too() {
    let (mut appliance, sealed) = stopped();
    appliance.start();
    appliance.wait_for_state("ready");
    expect_plaintext(&decrypt(&appliance, "k", &sealed, None), "value");
    // Until all lines are signed.
    std::thread::sleep(Duration::from_secs(7));
    let all = vec![appliance.path("store"), appliance.trail(), appliance.token().state_directory()];
    let snapshot = Snapshot::of(all);
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    appliance.stop();
    snapshot.put_back();
    for _ in 0..2 {
        appliance.spawn();
        wait_until("its socket", || UnixStream::connect(appliance.socket()).is_ok());
        wait_until("a closed appliance", || {
            let state = appliance.get("/v1/status").json()["state"].clone();
            state == "locked" || state == "store-rolled-back"
        });
        std::thread::sleep(Duration::from_secs(1));
        let refused = decrypt(&appliance, "k", &sealed, None);
        assert_eq!(refused.status, 503, "{}", refused.text());
        appliance.kill();
    }
}

#[test]
fn a_count_of_wrong_pins_that_is_taken_away_was_used_up() {
    let (mut appliance, shim) = Shim::appliance(|_| {});
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    let before = shim.calls("C_Login");
    for (number, whole) in [false, false, true].into_iter().enumerate() {
        appliance.stop();
        match whole {
            false => std::fs::remove_file(file(&appliance, "pin-tries")).expect("a count"),
            true => std::fs::remove_dir_all(appliance.token().state_directory()).expect("a state"),
        }
        appliance.spawn();
        appliance.wait_for_state("locked");
        let refused =
            appliance.post("/v1/unlock", &json!({ "pin": base64(format!("90909{number}")) }));
        refused.expect_problem(503, "pin-refused");
        assert!(refused.text().contains("was lost"), "{}", refused.text());
    }
    assert_eq!(shim.calls("C_Login"), before, "no PIN was tried");
    // Root allows one more.
    appliance.stop();
    appliance.change_config(|config| {
        let custody = config["custody"].as_table_mut().expect("a table");
        custody.insert("max_wrong_pins".to_owned(), 3.into());
    });
    appliance.spawn();
    appliance.wait_for_state("locked");
    let right = base64(crate::token::PIN);
    appliance.post("/v1/unlock", &json!({ "pin": right })).expect_status(200);
    appliance.wait_for_state("ready");
}
