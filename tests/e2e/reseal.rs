//! What a reseal leaves behind: keys that could not be recovered, and passes that had not ended.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use crate::acts::{decrypt, expect_plaintext, put_secret, reveal, trail_lines};
use crate::appliance::{Appliance, wait_until};
use crate::raw_store::{APPLIANCE, KEY, KEY_VERSION, Raw};
use crate::recovery::{offline, pair, text, trust};
use crate::rotation::{import_keys, master, wait_for_rotation};
use crate::token::TestToken;

/// An appliance whose custody knows of a recovery key; none is set. The files of the two halves.
pub fn prepared(seals_per_store_key: Option<u32>) -> (Appliance, PathBuf, PathBuf) {
    let mut appliance = Appliance::prepared(|config| {
        if let Some(seals) = seals_per_store_key {
            let records = toml::toml! { seals_per_store_key = seals };
            config.insert("records".to_owned(), records.into());
        }
    });
    let (private, public) = pair(&appliance.path(""), "recovery", 4096);
    trust(&mut appliance, &public);
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    (appliance, private, public)
}

pub fn set_recovery(appliance: &Appliance, public: &Path) {
    let said = appliance.cli(&["recovery", "set", public.to_str().expect("text")]);
    assert!(said.status.success(), "{}", text(&said));
    // The trail says which key it was.
    let lines = trail_lines(&appliance.trail());
    let set = |line: &&Value| line["action"] == "recovery:set" && line["kind"] == "intent";
    let intent = lines.iter().rfind(set).expect("an intent");
    let view = appliance.get("/v1/recovery").json();
    assert_eq!(intent["digest"], view["fingerprint"], "{intent}");
}

/// The token is lost and the store goes under a new one.
pub fn reseal(appliance: &mut Appliance, private: &Path) -> (Output, TestToken) {
    std::fs::remove_dir_all(appliance.token().tokens()).expect("removed");
    reseal_under_another(appliance, private)
}

fn reseal_under_another(appliance: &mut Appliance, private: &Path) -> (Output, TestToken) {
    let new_token = TestToken::new();
    appliance.change_config(|config| {
        let token = config["token"].as_table_mut().expect("a table");
        token.insert("label".to_owned(), new_token.label().into());
        token.insert("pin_file".to_owned(), new_token.pin_file().display().to_string().into());
    });
    let (config, private) = (appliance.config_file(), private.display().to_string());
    let config = config.display().to_string();
    let arguments = ["recovery", "reseal", "--config", &config, "--private-key", &private, "--yes"];
    let resealed = offline(appliance, &new_token, &arguments);
    let (name, conf) = new_token.environment();
    appliance.set_environment(name, conf.to_str().expect("text"));
    (resealed, new_token)
}

#[test]
fn what_cannot_be_recovered_keeps_nothing_else_from_it() {
    let (mut appliance, private, public) = prepared(None);
    let ciphertext = import_keys(&appliance, 4);
    put_secret(&appliance, "s", "k0", "a secret").expect_status(201);
    appliance.stop();
    let before = Raw::open(&appliance).picture();
    appliance.start();
    set_recovery(&appliance, &public);
    appliance.stop();
    // One from before there was a recovery key, and one that somebody damaged.
    let raw = Raw::open(&appliance);
    raw.put_back(&before, KEY, "k3");
    raw.put_back(&before, KEY_VERSION, "k3/0000000001");
    raw.damage(KEY_VERSION, "k1/0000000001");
    drop(raw);

    let (resealed, _token) = reseal(&mut appliance, &private);
    let said = text(&resealed);
    assert_eq!(resealed.status.code(), Some(1), "{said}");
    for named in ["NOT recovered: key/k1: ", "NOT recovered: key/k3: it, or a key beside it"] {
        assert!(said.contains(named), "{named}: {said}");
    }
    assert_eq!(said.matches("NOT recovered").count(), 2, "{said}");
    appliance.start();
    appliance.wait_for_state("ready");
    let only_those = |appliance: &Appliance| {
        for key in ["k0", "k2"] {
            expect_plaintext(&decrypt(appliance, key, &ciphertext, None), "kept");
        }
        for key in ["k1", "k3"] {
            assert!(decrypt(appliance, key, &ciphertext, None).status >= 400, "{key}");
        }
        expect_plaintext(&reveal(appliance, "s"), "a secret");
        assert_eq!(appliance.get("/v1/status").json()["state"], "ready");
    };
    only_those(&appliance);
    let told = || trail_lines(&appliance.trail()).into_iter().find(|it| it["event"] == "resealed");
    wait_until("the trail to be told", || told().is_some());
    let line = told().expect("told");
    assert_eq!(
        (&line["generation"], &line["items"], &line["failed_items"]),
        (&json!(2), &json!(4), &json!(2))
    );
    assert!(line["digest"].is_string(), "{line}");
    let status = appliance.get("/v1/status").json();
    let sentence = status["without_the_token"].as_str().expect("a sentence");
    assert!(sentence.contains("not everything"), "{sentence}");
    // Nor do they keep a rotation from its end.
    appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
    wait_for_rotation(&appliance);
    assert_eq!(master(&appliance)["rotation"]["broken"], 2);
    appliance.restart();
    appliance.wait_for_state("ready");
    only_those(&appliance);
}

#[test]
fn a_store_key_that_cannot_be_recovered_takes_only_what_it_sealed() {
    let (mut appliance, private, public) = prepared(Some(5));
    let ciphertext = import_keys(&appliance, 4);
    set_recovery(&appliance, &public);
    for number in 0..7 {
        put_secret(&appliance, &format!("s{number}"), "k0", "a secret").expect_status(201);
    }
    let store_keys = master(&appliance)["generations"][0]["store_keys"].as_u64().expect("a number");
    appliance.stop();
    // Whatever is changed in it, and where nothing is left of it, it is named alike.
    let at = format!("recovery-store-key/{store_keys:010}");
    let whole = Raw::open(&appliance).bytes(APPLIANCE, &at);
    let text_of = String::from_utf8_lossy(&whole[8..]).into_owned();
    let first_number = text_of.find("\"wrap\":[").expect("it is there") + 8 + 8;
    let (digit, comma) =
        (300..600).fold((0, 0), |(digit, comma), at| match whole[first_number + at] {
            b',' => (digit, first_number + at),
            b'0'..=b'8' => (first_number + at, comma),
            _ => (digit, comma),
        });
    for place in [digit, comma] {
        let raw = Raw::open(&appliance);
        raw.flip(APPLIANCE, &at, place);
        drop(raw);
        let (store, private) = (appliance.path("store"), private.display().to_string());
        let store = store.display().to_string();
        let arguments = ["recovery", "drill", "--store", &store, "--private-key", &private];
        let drilled = text(&offline(&appliance, appliance.token(), &arguments));
        let named =
            format!("CANNOT be recovered: store key {store_keys}: its recovery wrap was changed");
        assert!(drilled.contains(&named), "{drilled}");
        Raw::open(&appliance).put(APPLIANCE, &at, whole.clone());
    }
    // The newest one: without it nothing could be sealed.
    Raw::open(&appliance).remove(APPLIANCE, &at);
    let (resealed, _token) = reseal(&mut appliance, &private);
    let said = text(&resealed);
    assert_eq!(resealed.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("NOT recovered: store key {store_keys}")), "{said}");
    appliance.start();
    appliance.wait_for_state("ready");
    expect_plaintext(&decrypt(&appliance, "k0", &ciphertext, None), "kept");
    expect_plaintext(&reveal(&appliance, "s0"), "a secret");
    assert!(reveal(&appliance, "s6").status >= 400);
    put_secret(&appliance, "new", "k0", "another").expect_status(201);
    appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
    wait_for_rotation(&appliance);
    appliance.restart();
    appliance.wait_for_state("ready");
    expect_plaintext(&reveal(&appliance, "new"), "another");
    expect_plaintext(&reveal(&appliance, "s0"), "a secret");
    assert_eq!(appliance.get("/v1/status").json()["state"], "ready");
}

/// Has a rotation that did not end when the appliance was locked: before its new master was in use, or
/// after that.
fn cut_off(appliance: &Appliance, in_use: bool) {
    for _ in 0..20 {
        let from = appliance.log().len();
        let said = |words: &str| appliance.log()[from..].contains(words);
        appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
        let (changed_over, ended) = ("a new master key is in use", "all keys are done");
        if in_use {
            wait_until("the change-over", || said(changed_over));
        }
        appliance.post("/v1/lock", &json!({})).expect_status(200);
        wait_until("the pass to wait or end", || {
            said("the rotation of the master key waits") || said(ended)
        });
        if said(changed_over) == in_use && !said(ended) {
            return;
        }
        appliance.post("/v1/unlock", &json!({})).expect_status(200);
        wait_for_rotation(appliance);
    }
    panic!("it never was cut off there");
}

#[test]
fn a_pass_that_had_not_ended_ends_under_the_new_token() {
    for in_use in [false, true] {
        let (mut appliance, private, public) = prepared(None);
        let ciphertext = import_keys(&appliance, 60);
        set_recovery(&appliance, &public);
        cut_off(&appliance, in_use);
        appliance.stop();
        let (resealed, _token) = reseal(&mut appliance, &private);
        assert!(resealed.status.success(), "{}", text(&resealed));
        appliance.start();
        appliance.post("/v1/unlock", &json!({})).expect_status(200);
        appliance.wait_for_state("ready");
        wait_for_rotation(&appliance);
        let view = master(&appliance);
        assert_eq!(view["rotation"]["generation"], view["generation"], "{view}");
        expect_plaintext(&decrypt(&appliance, "k59", &ciphertext, None), "kept");
        // Nothing is in the way of the next one.
        set_recovery(&appliance, &public);
        appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
        wait_for_rotation(&appliance);
        expect_plaintext(&decrypt(&appliance, "k7", &ciphertext, None), "kept");
    }
}

#[test]
fn an_edited_recovery_wrap_of_a_store_key_is_noticed_before_it_is_needed() {
    let (mut appliance, private, public) = prepared(None);
    let ciphertext = import_keys(&appliance, 2);
    set_recovery(&appliance, &public);
    let sentence = |appliance: &Appliance| {
        let status = appliance.get("/v1/status").json();
        status["without_the_token"].as_str().expect("a sentence").to_owned()
    };
    assert!(sentence(&appliance).contains("every key can be recovered"));
    let backup = |appliance: &Appliance, name: &str| {
        let (file, config) = (appliance.path(name), appliance.config_file());
        let (file, config) = (file.display().to_string(), config.display().to_string());
        let create = ["backup", "create", "--to", &file, "--verify", "--config", &config];
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_strongroom"));
        command.args(create).env("STRONGROOM_SOCKET", appliance.socket());
        command.envs([appliance.token().environment()]).output().expect("it starts")
    };
    let good = backup(&appliance, "good.backup");
    assert!(good.status.success(), "{}", text(&good));
    appliance.stop();

    // Behind the fingerprint: one number of the wrap, which stays a wrap to this key.
    const WRAP: &str = "recovery-store-key/0000000001";
    let raw = Raw::open(&appliance);
    let bytes = raw.bytes(APPLIANCE, WRAP);
    let mut stored: Value = serde_json::from_slice(&bytes[8..]).expect("JSON");
    let number = stored["wrap"][100].as_u64().expect("a byte");
    stored["wrap"][100] = json!(number ^ 1);
    raw.put(APPLIANCE, WRAP, [&bytes[..8], stored.to_string().as_bytes()].concat());
    drop(raw);
    for round in 0..2 {
        appliance.start();
        appliance.wait_for_state("ready");
        if round == 1 {
            break;
        }
        assert!(sentence(&appliance).contains("not everything"), "{}", sentence(&appliance));
        let view = appliance.get("/v1/recovery?counts=true").json();
        assert_eq!(view["counted"]["store_keys_recoverable"], 0, "{view}");
        let told =
            || trail_lines(&appliance.trail()).iter().any(|it| it["code"] == "recovery-wrap");
        wait_until("the trail to be told", told);
        let bad = backup(&appliance, "bad.backup");
        assert!(!bad.status.success(), "{}", text(&bad));
        assert!(text(&bad).contains(&format!("BAD        appliance/{WRAP}")), "{}", text(&bad));
        // It is made anew, and holds.
        set_recovery(&appliance, &public);
        assert!(sentence(&appliance).contains("every key can be recovered"));
        appliance.stop();
    }
    assert!(sentence(&appliance).contains("every key can be recovered"));
    appliance.stop();
    let (resealed, _token) = reseal(&mut appliance, &private);
    assert!(resealed.status.success(), "{}", text(&resealed));
    appliance.start();
    appliance.wait_for_state("ready");
    expect_plaintext(&decrypt(&appliance, "k1", &ciphertext, None), "kept");
    assert!(sentence(&appliance).contains("every key can be recovered"));
}

#[test]
fn a_reseal_that_goes_on_with_another_token_does_all_of_it_anew() {
    let (mut appliance, private, public) = prepared(None);
    let ciphertext = import_keys(&appliance, 6);
    set_recovery(&appliance, &public);
    appliance.stop();
    let before = Raw::open(&appliance).picture();
    let (resealed, first) = reseal(&mut appliance, &private);
    assert!(resealed.status.success(), "{}", text(&resealed));
    // As it would be, had it been cut off after three keys. Then that token fails, too.
    let raw = Raw::open(&appliance);
    for kept in ["home", "store-key/0000000001"] {
        raw.put_back(&before, APPLIANCE, kept);
    }
    raw.remove_masters();
    for key in ["k3", "k4", "k5"] {
        raw.put_back(&before, KEY, key);
        raw.put_back(&before, KEY_VERSION, &format!("{key}/0000000001"));
    }
    raw.remove(APPLIANCE, "resealed");
    let mark = json!({ "generation": 2 }).to_string();
    raw.put(APPLIANCE, "reseal", [&1_u64.to_be_bytes(), mark.as_bytes()].concat());
    drop(raw);
    drop(first);
    let on_break = |appliance: &Appliance, word: &str| {
        appliance.change_config(|config| {
            let audit = config["audit"].as_table_mut().expect("a table");
            audit.insert("on_break".to_owned(), word.into());
        });
    };
    on_break(&appliance, "record");
    let (resealed, _second) = reseal_under_another(&mut appliance, &private);
    on_break(&appliance, "refuse");
    let said = text(&resealed);
    assert!(resealed.status.success(), "{said}");
    assert!(
        said.contains("done anew: 3 versions that an earlier reseal put under another"),
        "{said}"
    );
    appliance.start();
    appliance.wait_for_state("ready");
    for key in 0..6 {
        expect_plaintext(&decrypt(&appliance, &format!("k{key}"), &ciphertext, None), "kept");
    }
    let status = appliance.get("/v1/status").json();
    assert!(status["without_the_token"].as_str().expect("text").contains("every key can be"));
}

#[test]
fn what_says_how_it_was_set_up_can_be_lost_and_keeps_nobody_from_setting_it() {
    let (mut appliance, private, public) = prepared(Some(24));
    let ciphertext = import_keys(&appliance, 1);
    set_recovery(&appliance, &public);
    let store_keys = |appliance: &Appliance| {
        master(appliance)["generations"][0]["store_keys"].as_u64().expect("a number")
    };
    let fill = |appliance: &Appliance, up_to: u64| {
        for number in 0.. {
            if store_keys(appliance) == up_to {
                return;
            }
            assert!(number < 100);
            put_secret(appliance, &format!("s{number}"), "k0", "x");
        }
    };
    fill(&appliance, 2);
    // Sealed under the newest store key, whose wrap is lost.
    set_recovery(&appliance, &public);
    appliance.stop();
    Raw::open(&appliance).remove(APPLIANCE, "recovery-store-key/0000000002");
    let (resealed, _token) = reseal(&mut appliance, &private);
    let said = text(&resealed);
    assert_eq!(resealed.status.code(), Some(1), "{said}");
    for lost in ["recovery", "rotation"] {
        assert!(said.contains(&format!("LOST: the record appliance/{lost} ")), "{said}");
    }
    appliance.start();
    appliance.wait_for_state("ready");
    expect_plaintext(&decrypt(&appliance, "k0", &ciphertext, None), "kept");
    appliance.create_key("new");
    let sentence = appliance.get("/v1/status").json()["without_the_token"].clone();
    assert!(sentence.as_str().expect("text").contains("not everything"), "{sentence}");
    set_recovery(&appliance, &public);
    appliance.request("DELETE", "/v1/recovery", "", b"").expect_status(200);
    wait_for_pass(&appliance);
    set_recovery(&appliance, &public);
    for number in 0..30 {
        put_secret(&appliance, &format!("t{number}"), "new", "x").expect_status(201);
    }
}

fn wait_for_pass(appliance: &Appliance) {
    let over = || appliance.get("/v1/recovery").json()["pass"]["stage"] == "done";
    wait_until("the end of the pass", over);
}
