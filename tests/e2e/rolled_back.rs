//! Somebody puts back what the appliance is, which recovery key it has, how far a pass is, or a key from
//! before a pass: each authentic, and older than what the trail or another record knows.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::acts::{decrypt, encrypt, expect_plaintext, trail_lines};
use crate::appliance::{Appliance, wait_until};
use crate::backup::backup;
use crate::raw_store::{APPLIANCE, KEY, KEY_VERSION, Raw};
use crate::recovery::text;
use crate::reseal::{prepared, set_recovery};
use crate::rotation::{import_keys, master, wait_for_rotation};

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
    raw.remove_masters();
    raw.put_back(&before, APPLIANCE, "store-key/0000000001");
    drop(raw);
    appliance.start();
    appliance.wait_for_state("store-edited");
    let status = appliance.get("/v1/status").json();
    let detail = status["detail"].as_str().expect("a text");
    assert!(detail.contains("master generation 2 is in use"), "{status}");
    assert!(edits(&appliance).contains(&json!("home-behind")), "{:?}", edits(&appliance));
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
    let bytes = raw.bytes(APPLIANCE, "master/0000000002");
    let mut record: Value = serde_json::from_slice(&bytes[8..]).expect("JSON");
    record["retired_at"] = json!("2026-01-02T03:04:05Z");
    raw.put(APPLIANCE, "master/0000000002", [&bytes[..8], record.to_string().as_bytes()].concat());
    drop(raw);
    let from = appliance.log().len();
    appliance.spawn();
    assert!(appliance.settled(), "it started");
    assert!(appliance.log()[from..].contains("appliance/home was changed outside"));
}

/// An appliance that runs, with a recovery key that is set, and the file of its public half.
fn with_recovery() -> (Appliance, PathBuf) {
    let (appliance, _, public) = prepared(None);
    appliance.create_key("k");
    set_recovery(&appliance, &public);
    (appliance, public)
}

fn sentence(appliance: &Appliance) -> String {
    appliance.get("/v1/status").json()["without_the_token"].as_str().unwrap_or("").to_owned()
}

#[test]
fn a_recovery_key_that_was_forgotten_does_not_come_back_by_an_edit() {
    let (mut appliance, public) = with_recovery();
    appliance.stop();
    let before = Raw::open(&appliance).picture();
    appliance.start();
    appliance.wait_for_state("ready");
    appliance.request("DELETE", "/v1/recovery", "", b"").expect_status(200);
    wait_for_rotation(&appliance);
    appliance.stop();
    let raw = Raw::open(&appliance);
    raw.put_back(&before, APPLIANCE, "recovery");
    raw.put_back(&before, APPLIANCE, "recovery-store-key/0000000001");
    drop(raw);
    appliance.start();
    appliance.wait_for_state("ready");
    assert!(edits(&appliance).contains(&json!("record-behind")), "{:?}", edits(&appliance));
    wait_until("the sentence", || sentence(&appliance).starts_with("it is not known"));
    // No key is wrapped to it.
    let create = json!({ "name": "new", "algorithm": "RSA-2048" });
    appliance.post("/v1/keys", &create).expect_problem(409, "recovery-key");
    // What an operator says anew is so, from then on.
    set_recovery(&appliance, &public);
    appliance.create_key("new");
    let told = edits(&appliance);
    for _ in 0..2 {
        assert!(sentence(&appliance).starts_with("every key can be"), "{}", sentence(&appliance));
        appliance.restart();
        appliance.wait_for_state("ready");
        wait_until("the sentence", || !sentence(&appliance).is_empty());
    }
    assert_eq!(edits(&appliance), told);
}

#[test]
fn an_older_record_of_a_pass_does_not_end_one_unseen() {
    let (mut appliance, _) = with_recovery();
    appliance.stop();
    let done = Raw::open(&appliance).picture();
    appliance.start();
    appliance.wait_for_state("ready");
    appliance.request("DELETE", "/v1/recovery", "", b"").expect_status(200);
    appliance.kill();
    let raw = Raw::open(&appliance);
    raw.put_back(&done, APPLIANCE, "rotation");
    drop(raw);
    appliance.start();
    appliance.wait_for_state("ready");
    let told = |code: &str| edits(&appliance).iter().filter(|told| *told == code).count();
    wait_until("the trail to be told", || told("record-behind") == 1 && told("rotation") == 1);
    // It is done by the next one.
    appliance.request("DELETE", "/v1/recovery", "", b"").expect_status(200);
    wait_for_rotation(&appliance);
    appliance.restart();
    appliance.wait_for_state("ready");
    assert_eq!(master(&appliance)["rotation"]["stage"], "done");
    let told = |code: &str| edits(&appliance).iter().filter(|told| *told == code).count();
    assert_eq!((told("record-behind"), told("rotation")), (1, 1));
}

/// Has root take the store as it is, which leaves an event.
pub fn accept_records(appliance: &mut Appliance) {
    let on_break = |appliance: &Appliance, word: &str| {
        appliance.change_config(|config| {
            let audit = config["audit"].as_table_mut().expect("a table");
            audit.insert("on_break".to_owned(), word.into());
        });
    };
    appliance.stop();
    on_break(appliance, "record");
    appliance.start();
    appliance.wait_for_state("ready");
    let lines = trail_lines(&appliance.trail());
    let told = lines.iter().rfind(|line| line["event"] == "break-recorded").expect("told");
    assert_eq!(told["code"], "records-behind");
    appliance.stop();
    on_break(appliance, "refuse");
    appliance.start();
    appliance.wait_for_state("ready");
}

#[test]
fn a_key_from_before_a_pass_is_not_served() {
    let (mut appliance, _, public) = prepared(None);
    let sealed = import_keys(&appliance, 3);
    // Between the two passes, and before both.
    let put_back = |appliance: &mut Appliance, pass: &dyn Fn(&Appliance)| {
        appliance.stop();
        let before = Raw::open(appliance).picture();
        appliance.start();
        appliance.wait_for_state("ready");
        pass(appliance);
        wait_for_rotation(appliance);
        appliance.restart();
        appliance.wait_for_state("ready");
        for key in ["k0", "k1"] {
            expect_plaintext(&decrypt(appliance, key, &sealed, None), "kept");
        }
        assert!(edits(appliance).is_empty(), "{:?}", edits(appliance));
        appliance.stop();
        let raw = Raw::open(appliance);
        raw.put_back(&before, KEY, "k0");
        raw.put_back(&before, KEY_VERSION, "k0/0000000001");
        drop(raw);
        appliance.start();
        appliance.wait_for_state("ready");
        decrypt(appliance, "k0", &sealed, None).expect_problem(500, "record-broken");
        expect_plaintext(&decrypt(appliance, "k1", &sealed, None), "kept");
    };
    put_back(&mut appliance, &|appliance| set_recovery(appliance, &public));
    // Also one that nobody asks for is found.
    wait_until("the trail to be told", || edits(&appliance) == ["state-differs"]);
    assert_eq!(appliance.get("/v1/master?counts=true").json()["broken"], json!(["key/k0"]));
    // Who believes it has it accepted by root, and wrapped anew.
    decrypt(&appliance, "k0", &sealed, None).expect_problem(500, "record-broken");
    accept_records(&mut appliance);
    wait_until("the trail to be told", || {
        edits(&appliance).last().is_some_and(|code| code == "key-before-pass")
    });
    let lines = trail_lines(&appliance.trail());
    let told = lines.iter().rfind(|line| line["event"] == "store-edited").expect("told");
    assert_eq!(told["key"], "k0");
    assert!(sentence(&appliance).starts_with("not everything"), "{}", sentence(&appliance));
    assert_eq!(appliance.get("/v1/master?counts=true").json()["broken"], json!(["key/k0"]));
    let file = appliance.path("x.backup");
    let made = backup(&appliance, &["create", "--verify", "--to", file.to_str().expect("text")]);
    let said = text(&made);
    assert!(!made.status.success() && said.contains("key/k0"), "{said}");
    set_recovery(&appliance, &public);
    expect_plaintext(&decrypt(&appliance, "k0", &sealed, None), "kept");
    assert!(sentence(&appliance).starts_with("every key can be"), "{}", sentence(&appliance));
}

#[test]
fn a_key_from_under_an_older_master_is_not_served() {
    let mut appliance = Appliance::new();
    for key in ["k", "other"] {
        appliance.create_key(key);
    }
    let sealed = encrypt(&appliance, "k", "kept");
    appliance.stop();
    let before = Raw::open(&appliance).picture();
    appliance.start();
    appliance.post("/v1/master/rotate", &json!({})).expect_status(200);
    wait_for_rotation(&appliance);
    appliance.stop();
    let raw = Raw::open(&appliance);
    raw.put_back(&before, KEY, "k");
    raw.put_back(&before, KEY_VERSION, "k/0000000001");
    drop(raw);
    appliance.start();
    appliance.wait_for_state("ready");
    // Nobody has asked for it.
    wait_until("the trail to be told", || edits(&appliance) == ["state-differs"]);
    decrypt(&appliance, "k", &sealed, None).expect_problem(500, "record-broken");
    accept_records(&mut appliance);
    wait_until("the trail to be told", || edits(&appliance).len() == 2);
    assert_eq!(edits(&appliance)[1], "key-before-pass");
    decrypt(&appliance, "k", &sealed, None).expect_problem(500, "record-broken");
    let retire = appliance.post("/v1/master/retire", &json!({ "generation": 1 }));
    retire.expect_problem(409, "master-needed");
    appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
    wait_until("the rotation", || master(&appliance)["generation"] == 3);
    wait_for_rotation(&appliance);
    expect_plaintext(&decrypt(&appliance, "k", &sealed, None), "kept");
}
