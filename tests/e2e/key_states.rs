//! Keys change their states, and what each state still allows; with the clock moved where days pass.

use serde_json::{Value, json};
use strongroom::store::sled_store::{Settings, SledStore};
use strongroom::store::{Store, Table};

use crate::acts::{decrypt, encrypt, expect_plaintext, put_secret, reveal, step, trail_lines};
use crate::appliance::{Appliance, Reply, wait_until};
use crate::raw_store::{KEY, KEY_VERSION, Raw};

/// The versions' states of a key, oldest first.
fn states(appliance: &Appliance, key: &str) -> Vec<String> {
    let view = appliance.get(&format!("/v1/keys/{key}")).expect_status(200).json();
    let versions = view["versions"].as_array().expect("versions").clone();
    versions.iter().map(|version| version["state"].as_str().unwrap().to_owned()).collect()
}

fn destroy(appliance: &Appliance, key: &str, body: &Value) -> Reply {
    appliance.delete(&format!("/v1/keys/{key}"), body)
}

fn seconds(text: &Value) -> i64 {
    text.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second()
}

fn loaded_keys(appliance: &Appliance) -> u64 {
    appliance.get("/v1/status").json()["loaded_keys"].as_u64().expect("unlocked")
}

#[test]
fn a_rotated_key_protects_with_the_new_version_and_opens_with_both() {
    let appliance = Appliance::new();
    appliance.create_key("k");
    let old = encrypt(&appliance, "k", "of the first");
    put_secret(&appliance, "old", "k", "stored before").expect_status(201);
    let rotated = step(&appliance, "k", "rotate", json!({})).expect_status(200).json();
    assert_eq!(rotated["current_version"], 2);
    assert_ne!(rotated["versions"][0]["kid"], rotated["versions"][1]["kid"]);
    let new = encrypt(&appliance, "k", "of the second");
    expect_plaintext(&decrypt(&appliance, "k", &new, None), "of the second");
    expect_plaintext(&decrypt(&appliance, "k", &old, Some(1)), "of the first");
    let by_kid = json!({ "ciphertext": old, "kid": rotated["versions"][0]["kid"] });
    expect_plaintext(&appliance.post("/v1/keys/k/decrypt", &by_kid), "of the first");
    decrypt(&appliance, "k", &old, None).expect_problem(422, "decryption-failed");
    decrypt(&appliance, "k", &old, Some(3)).expect_problem(404, "no-such-version");
    expect_plaintext(&reveal(&appliance, "old"), "stored before");
    step(&appliance, "k", "rotate", json!({ "version": 1 })).expect_problem(400, "invalid");

    // The first version halts, and comes back; the second goes on meanwhile.
    step(&appliance, "k", "suspend", json!({ "version": 1 })).expect_status(200);
    assert_eq!(states(&appliance, "k"), ["suspended", "active"]);
    decrypt(&appliance, "k", &old, Some(1)).expect_problem(409, "key-state");
    reveal(&appliance, "old").expect_problem(409, "key-state");
    expect_plaintext(&decrypt(&appliance, "k", &new, None), "of the second");
    step(&appliance, "k", "suspend", json!({ "version": 1 })).expect_problem(409, "key-state");
    step(&appliance, "k", "resume", json!({ "version": 2 })).expect_problem(409, "key-state");
    step(&appliance, "k", "resume", json!({ "version": 1 })).expect_status(200);
    expect_plaintext(&decrypt(&appliance, "k", &old, Some(1)), "of the first");

    // Suspended as a whole, it neither protects nor opens nor rotates.
    step(&appliance, "k", "suspend", json!({})).expect_status(200);
    assert_eq!(states(&appliance, "k"), ["suspended", "suspended"]);
    put_secret(&appliance, "new", "k", "x").expect_problem(409, "key-state");
    decrypt(&appliance, "k", &new, None).expect_problem(409, "key-state");
    step(&appliance, "k", "rotate", json!({})).expect_problem(409, "key-state");
    step(&appliance, "k", "resume", json!({})).expect_status(200);

    // Its time over, the first opens nothing more; that is for good.
    step(&appliance, "k", "deactivate", json!({ "version": 1 })).expect_status(200);
    assert_eq!(states(&appliance, "k"), ["deactivated", "active"]);
    decrypt(&appliance, "k", &old, Some(1)).expect_problem(409, "key-state");
    step(&appliance, "k", "resume", json!({ "version": 1 })).expect_problem(409, "key-state");
    step(&appliance, "k", "suspend", json!({ "version": 9 }))
        .expect_problem(404, "no-such-version");
    step(&appliance, "none", "suspend", json!({})).expect_problem(404, "not-found");

    // The trail names the version that changed, not another one.
    let lines = trail_lines(&appliance.trail());
    let told = |action: &str| -> Vec<Value> {
        let of = lines.iter().filter(|line| line["action"] == action && line["kind"] == "outcome");
        of.filter(|line| line["result"] == "done").map(|line| line["version"].clone()).collect()
    };
    assert_eq!(told("key:deactivate"), [1]);
    assert_eq!(told("key:rotate"), [2]);
    assert_eq!(told("key:suspend"), [json!(1), Value::Null]);
}

#[test]
fn a_compromise_stops_a_loaded_key_at_once() {
    let appliance = Appliance::new();
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
    assert_eq!(loaded_keys(&appliance), 1, "custody holds it open");
    let body = json!({ "reason": "key-compromise" });
    step(&appliance, "k", "compromise", body).expect_status(200);
    assert_eq!(loaded_keys(&appliance), 0, "custody forgot it");
    for version in [None, Some(1)] {
        decrypt(&appliance, "k", &ciphertext, version).expect_problem(409, "key-state");
    }
    let body = json!({ "plaintext": "eA==" });
    appliance.post("/v1/keys/k/encrypt", &body).expect_problem(409, "key-state");
    step(&appliance, "k", "compromise", json!({})).expect_problem(409, "key-state");
    step(&appliance, "k", "resume", json!({})).expect_problem(409, "key-state");
    let lines = trail_lines(&appliance.trail());
    let intent = lines.iter().find(|line| line["action"] == "key:compromise").unwrap();
    assert_eq!(intent["reason"], "key-compromise");

    // A new version makes the key whole again.
    step(&appliance, "k", "rotate", json!({})).expect_status(200);
    assert_eq!(states(&appliance, "k"), ["compromised", "active"]);
    let new = encrypt(&appliance, "k", "y");
    expect_plaintext(&decrypt(&appliance, "k", &new, None), "y");
}

#[test]
fn a_compromised_version_opens_only_for_who_may_recover() {
    let appliance = Appliance::configured(|_| {});
    appliance.post("/v1/init", &json!({})).expect_status(201);
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/config/policy");
    let directory = appliance.path("policy");
    std::fs::create_dir(&directory).unwrap();
    for entry in std::fs::read_dir(shipped).unwrap().flatten() {
        std::fs::copy(entry.path(), directory.join(entry.file_name())).unwrap();
    }
    let text = directory.display().to_string();
    appliance.change_config(|config| config["policy"]["directory"] = text.into());
    let mut opened = Vec::new();
    for key in ["payments", "other"] {
        appliance.create_key(key);
        opened.push(encrypt(&appliance, key, key));
        step(&appliance, key, "compromise", json!({})).expect_status(200);
    }
    let uid = nix::unistd::getuid();
    let recovery = format!(
        "@id(\"recover\") permit (principal == User::\"unix:{uid}\",\n\
         action in [Action::\"key:decrypt\", Action::\"key:recover\"],\n\
         resource == Key::\"payments\");\n"
    );
    let reload = || {
        let from = appliance.log().len();
        appliance.signal(nix::sys::signal::Signal::SIGHUP);
        appliance.wait_for_log(from, "loaded anew");
    };
    std::fs::write(directory.join("mine.cedar"), recovery).unwrap();
    reload();
    expect_plaintext(&decrypt(&appliance, "payments", &opened[0], Some(1)), "payments");
    decrypt(&appliance, "other", &opened[1], Some(1)).expect_problem(409, "key-state");
    let body = json!({ "plaintext": "eA==" });
    appliance.post("/v1/keys/payments/encrypt", &body).expect_problem(409, "key-state");
    std::fs::remove_file(directory.join("mine.cedar")).unwrap();
    reload();
    decrypt(&appliance, "payments", &opened[0], Some(1)).expect_problem(409, "key-state");
}

/// An appliance whose destructions wait for a day, the shortest time that can be set.
fn waiting_a_day() -> Appliance {
    let appliance = Appliance::configured(|config| {
        config.insert("keys".to_owned(), toml::toml! { destroy_wait_days = 1 }.into());
    });
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance
}

#[test]
fn a_destruction_waits_and_can_be_cancelled() {
    let appliance = Appliance::new();
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    for days in [0, 366] {
        let body = json!({ "waiting_period_days": days });
        destroy(&appliance, "k", &body).expect_problem(400, "invalid");
    }
    step(&appliance, "k", "restore", json!({})).expect_problem(409, "key-state");
    let now = jiff::Timestamp::now().as_second();
    for (body, days) in [(json!({}), 30), (json!({ "waiting_period_days": 40 }), 40)] {
        let view = destroy(&appliance, "k", &body).expect_status(200).json();
        let waits = seconds(&view["versions"][0]["destroy_at"]) - now;
        assert!((0..120).contains(&(waits - days * 86_400)), "{waits} s are not {days} days");
        // It is said wherever the key is shown.
        let listed = appliance.get("/v1/keys").json()["keys"][0].clone();
        for shown in [&view, &listed, &appliance.get("/v1/keys/k").json()] {
            assert_eq!(shown["state"], "destruction-pending", "{shown}");
            assert_eq!(shown["destroy_at"], view["versions"][0]["destroy_at"], "{shown}");
        }
        let text = String::from_utf8(appliance.cli(&["key", "list"]).stdout).unwrap();
        assert!(text.contains("DESTROY AT") && text.contains("destruction-pending"), "{text}");
        decrypt(&appliance, "k", &ciphertext, None).expect_problem(409, "key-state");
        destroy(&appliance, "k", &body).expect_problem(409, "key-state");
        step(&appliance, "k", "restore", json!({})).expect_status(200);
        expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
        let view = appliance.get("/v1/keys/k").json();
        assert!(view["state"] == "active" && view.get("destroy_at").is_none(), "{view}");
    }
}

#[test]
fn a_destruction_that_fell_due_while_the_daemon_was_down_is_carried_out() {
    let mut appliance = waiting_a_day();
    appliance.create_key("k");
    step(&appliance, "k", "rotate", json!({})).expect_status(200);
    let old = json!({ "version": 1, "waiting_period_days": 1 });
    let ciphertext = encrypt(&appliance, "k", "kept");
    destroy(&appliance, "k", &old).expect_status(200);
    appliance.stop();
    let path = appliance.path("store");
    let sealed = |version: u32| {
        let store = SledStore::open(&Settings { path: path.clone(), ..Settings::default() });
        let at = format!("k/{version:010}");
        store.unwrap().get(Table::KeyVersion, &at).unwrap().expect("a record").value.len()
    };
    let (before, other) = (sealed(1), sealed(2));
    appliance.move_clock("+2d");
    appliance.start();
    appliance.post("/v1/clock/confirm", &json!({})).expect_status(200);
    wait_until("the destruction", || states(&appliance, "k")[0] == "destroyed");
    assert_eq!(states(&appliance, "k"), ["destroyed", "active"]);
    decrypt(&appliance, "k", &ciphertext, Some(1)).expect_problem(409, "key-state");
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "kept");
    step(&appliance, "k", "restore", json!({ "version": 1 })).expect_problem(409, "key-state");
    let lines = trail_lines(&appliance.trail());
    let swept: Vec<_> = lines.iter().filter(|line| line["caller"] == "system:sweep").collect();
    assert_eq!(swept.len(), 2, "an intent and its outcome: {swept:?}");
    assert_eq!((&swept[1]["result"], &swept[1]["version"]), (&json!("done"), &json!(1)));

    // The sealed key (PKCS#8 of RSA-2048 has some 1200 bytes) is gone from its record.
    appliance.stop();
    assert!(before > sealed(1) + 1200, "{before} bytes before, {} after", sealed(1));
    assert_eq!(other, sealed(2), "the other version is as it was");
}

#[test]
fn a_broken_record_does_not_keep_others_from_their_destruction() {
    let mut appliance = waiting_a_day();
    for key in ["a", "b", "c"] {
        appliance.create_key(key);
        destroy(&appliance, key, &json!({ "waiting_period_days": 1 })).expect_status(200);
    }
    appliance.stop();
    let raw = Raw::open(&appliance);
    raw.damage(KEY_VERSION, "a/0000000001");
    raw.damage(KEY, "b");
    drop(raw);
    appliance.move_clock("+2d");
    appliance.start();
    appliance.post("/v1/clock/confirm", &json!({})).expect_status(200);
    wait_until("the destruction", || states(&appliance, "c") == ["destroyed"]);
    for key in ["a", "b"] {
        let named = format!("the sweep passes this key over key=\"{key}\"");
        assert!(appliance.log().contains(&named), "{}", appliance.log());
        appliance.get(&format!("/v1/keys/{key}")).expect_problem(500, "record-broken");
    }
}

#[test]
fn a_destruction_that_falls_due_while_locked_is_carried_out_after_the_unlock() {
    let mut appliance = waiting_a_day();
    appliance.create_key("k");
    destroy(&appliance, "k", &json!({ "waiting_period_days": 1 })).expect_status(200);
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    appliance.stop();
    appliance.move_clock("+25h");
    appliance.start();
    appliance.post("/v1/clock/confirm", &json!({})).expect_status(200);
    appliance.get("/v1/keys/k").expect_problem(503, "locked");
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    wait_until("the destruction", || states(&appliance, "k") == ["destroyed"]);
    step(&appliance, "k", "rotate", json!({})).expect_problem(409, "key-state");
}
