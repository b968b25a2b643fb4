//! Somebody who can put back store and audit log undoes an operator's lock, or cuts off what was recorded while
//! the appliance was locked: nothing could be signed then. Custody remembers both.

use std::time::Duration;

use serde_json::json;

use super::forged_history::{lines, patch_kept_head, write};
use super::rolled_back_together::Snapshot;
use crate::acts::{accept_rollback, base64, decrypt, encrypt, events, expect_plaintext};
use crate::appliance::{Appliance, wait_until};

#[test]
fn a_snapshot_from_before_a_lock_does_not_undo_it() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let sealed = encrypt(&appliance, "k", "value");
    appliance.restart();
    appliance.wait_for_state("ready");
    expect_plaintext(&decrypt(&appliance, "k", &sealed, None), "value");
    // Until all lines are signed.
    std::thread::sleep(Duration::from_secs(7));
    let snapshot = Snapshot::of(vec![appliance.path("store"), appliance.trail()]);
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    appliance.stop();
    appliance.spawn();
    appliance.wait_for_state("locked");
    appliance.stop();
    snapshot.put_back();
    for _ in 0..2 {
        appliance.spawn();
        appliance.wait_for_state("store-rolled-back");
        let detail = appliance.get("/v1/status").json()["detail"].to_string();
        assert!(detail.contains("while nothing could be signed"), "{detail}");
        assert_eq!(decrypt(&appliance, "k", &sealed, None).status, 503);
        appliance.stop();
    }
    // Root's word for the copy is none for the lock.
    appliance.spawn();
    accept_rollback(&appliance);
    appliance.wait_for_state("locked");
    decrypt(&appliance, "k", &sealed, None).expect_problem(503, "locked");
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    appliance.wait_for_state("ready");
    wait_until("the event", || events(&appliance.trail()).contains(&"rollback-accepted".into()));
    expect_plaintext(&decrypt(&appliance, "k", &sealed, None), "value");
}

#[test]
fn what_was_recorded_while_it_was_locked_is_not_cut_off() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let sealed = encrypt(&appliance, "k", "value");
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    for _ in 0..3 {
        decrypt(&appliance, "k", &sealed, None).expect_problem(503, "locked");
    }
    let wrong = json!({ "pin": base64("909090") });
    appliance.post("/v1/unlock", &wrong).expect_problem(503, "pin-refused");
    appliance.stop();
    let whole = lines(&appliance);
    let locked = whole.iter().rposition(|line| line.contains("\"event\":\"locked\""));
    let kept = locked.expect("the lock has its event") + 2;
    assert!(whole.len() >= kept + 5, "refusals, the wrong PIN, the end");
    let cut = write(&appliance, &whole[..kept]);
    patch_kept_head(&appliance, &cut);
    appliance.spawn();
    appliance.wait_for_state("store-rolled-back");
    appliance.stop();
    assert_eq!(lines(&appliance), cut, "nothing is added to it");
    // The very lines fit, and so does a kill.
    let honest = write(&appliance, &whole);
    assert_eq!(honest, whole);
    patch_kept_head(&appliance, &honest);
    appliance.spawn();
    appliance.wait_for_state("locked");
    appliance.kill();
    appliance.spawn();
    appliance.wait_for_state("locked");
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    appliance.wait_for_state("ready");
    expect_plaintext(&decrypt(&appliance, "k", &sealed, None), "value");
    appliance.restart();
    appliance.wait_for_state("ready");
}

#[test]
fn lines_behind_the_end_of_a_locked_appliance_are_damage() {
    let mut appliance = Appliance::new();
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    appliance.stop();
    let mut forged = lines(&appliance);
    let event = forged.iter().rfind(|line| line.contains("\"event\":\"stop\"")).cloned();
    forged.push(event.expect("it stopped").replace("\"stop\"", "\"unlocked\""));
    let forged = write(&appliance, &forged);
    patch_kept_head(&appliance, &forged);
    appliance.spawn();
    appliance.wait_for_state("store-rolled-back");
    let detail = appliance.get("/v1/status").json()["detail"].to_string();
    assert!(detail.contains("lines stand behind it"), "{detail}");
}
