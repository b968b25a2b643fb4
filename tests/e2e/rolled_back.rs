//! Somebody puts back what the appliance is, which recovery key it has, how far a pass is, or a key from
//! before a pass: each authentic, and older than what the trail or another record knows.

use serde_json::{Value, json};

use crate::acts::{decrypt, encrypt, expect_plaintext, trail_lines};
use crate::appliance::{Appliance, wait_until};
use crate::raw_store::{APPLIANCE, Raw};
use crate::rotation::{master, wait_for_rotation};

/// The codes of the events that tell of an edit.
fn edits(appliance: &Appliance) -> Vec<Value> {
    let lines = trail_lines(&appliance.trail());
    let told = lines.iter().filter(|line| line["event"] == "store-edited");
    told.map(|line| line["code"].clone()).collect()
}

fn on_break(appliance: &Appliance, word: &str) {
    appliance.change_config(|config| {
        let audit = config["audit"].as_table_mut().expect("a table");
        audit.insert("on_break".to_owned(), word.into());
    });
}

#[test]
fn an_older_master_key_is_not_put_in_use_by_an_edit() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let sealed = encrypt(&appliance, "k", "kept");
    appliance.stop();
    let before = Raw::open(&appliance).picture();
    appliance.start();
    appliance.post("/v1/master/rotate", &json!({})).expect_status(200);
    wait_for_rotation(&appliance);
    wait_until("the trail to be told", || {
        trail_lines(&appliance.trail()).iter().any(|line| line["event"] == "rotation-done")
    });
    appliance.stop();
    let raw = Raw::open(&appliance);
    raw.put_back(&before, APPLIANCE, "home");
    raw.put_back(&before, APPLIANCE, "store-key/0000000001");
    drop(raw);
    appliance.start();
    appliance.wait_for_state("store-edited");
    let status = appliance.get("/v1/status").json();
    let detail = status["detail"].as_str().expect("a text");
    assert!(detail.contains("master generation 2 is in use"), "{status}");
    assert_eq!(edits(&appliance), ["home-behind"]);
    let create = json!({ "name": "new", "algorithm": "RSA-2048" });
    appliance.post("/v1/keys", &create).expect_problem(503, "store-edited");
    decrypt(&appliance, "k", &sealed, None).expect_problem(503, "store-edited");
    appliance.post("/v1/master/rotate", &json!({})).expect_problem(503, "store-edited");
    appliance.stop();
    // An operator may accept it, and then it is so.
    on_break(&appliance, "record");
    appliance.start();
    appliance.wait_for_state("ready");
    appliance.stop();
    on_break(&appliance, "refuse");
    appliance.start();
    appliance.wait_for_state("ready");
    expect_plaintext(&decrypt(&appliance, "k", &sealed, None), "kept");
    assert_eq!(master(&appliance)["generation"], 1);
}

#[test]
fn the_master_key_in_use_is_not_retired_by_an_edit() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    appliance.post("/v1/master/rotate", &json!({})).expect_status(200);
    wait_for_rotation(&appliance);
    appliance.stop();
    let raw = Raw::open(&appliance);
    let bytes = raw.bytes(APPLIANCE, "home");
    let mut record: Value = serde_json::from_slice(&bytes[8..]).expect("JSON");
    record["generations"][1]["retired_at"] = json!("2026-01-02T03:04:05Z");
    raw.put(APPLIANCE, "home", [&bytes[..8], record.to_string().as_bytes()].concat());
    drop(raw);
    let from = appliance.log().len();
    appliance.spawn();
    assert!(appliance.settled(), "it started");
    assert!(appliance.log()[from..].contains("appliance/home was changed outside"));
}
