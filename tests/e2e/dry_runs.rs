//! `--dry-run` of every command that changes more than one thing: it says what would change, and nothing does.

use std::process::Output;

use serde_json::{Value, json};

use crate::acts::put_secret;
use crate::appliance::Appliance;
use crate::backup::{backup, made, move_away, said};
use crate::recovery::pair;

/// What must be the same afterwards.
fn everything(appliance: &Appliance) -> Value {
    let get = |path: &str| appliance.get(path).json();
    let status = get("/v1/status");
    json!({
        "state": status["state"], "generation": status["generation"],
        "keys": get("/v1/keys"), "key": get("/v1/keys/k"), "secrets": get("/v1/secrets"),
        "master": get("/v1/master?counts=true"), "recovery": get("/v1/recovery"),
    })
}

#[track_caller]
fn expect(output: &Output, parts: &[&str]) {
    assert!(output.status.success(), "{}", said(output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("Dry run, nothing was changed. It would:"), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_dry_run_says_what_would_change_and_changes_nothing() {
    let appliance = Appliance::new();
    appliance.create_key("k");
    appliance.create_key("other");
    put_secret(&appliance, "mail", "k", "x").expect_status(201);
    put_secret(&appliance, "stripe", "k", "y").expect_status(201);
    put_secret(&appliance, "elsewhere", "other", "z").expect_status(201);
    let (_, public) = pair(&appliance.path(""), "recovery", 4096);
    let public = public.to_str().expect("text").to_owned();
    let before = everything(&appliance);
    let two = "2 secrets (mail, stripe)";
    let cases: [(&[&str], &[&str]); 13] = [
        (&["init"], &["refused", "is initialised"]),
        (&["lock"], &["2 keys (k, other)", "3 secrets", "strongroom unlock"]),
        (&["confirm-clock"], &["no keys"]),
        (&["key", "compromise", "k"], &["compromise version 1", two, "key:recover"]),
        (&["key", "deactivate", "k"], &["deactivate version 1", two]),
        (&["key", "suspend", "k", "--version", "1"], &["suspend version 1", two]),
        (&["key", "suspend", "k", "--version", "7"], &["be refused"]),
        (&["key", "destroy", "k"], &["destroy version 1", two, "lost for good"]),
        (&["key", "rotate", "k"], &["make version 2 of key k", "version 1"]),
        (&["master", "rotate"], &["generation 2", "rewrap 2 versions", "generation 1"]),
        (&["master", "retire", "1"], &["be refused", "in-use"]),
        (&["recovery", "set", &public], &["2 versions"]),
        (&["recovery", "forget"], &["nothing can be recovered"]),
    ];
    for (command, parts) in cases {
        let output = appliance.cli(&[command, &["--dry-run"]].concat());
        expect(&output, parts);
        assert_eq!(everything(&appliance), before, "{command:?}");
    }
    let programs = appliance.cli(&["key", "compromise", "k", "--dry-run", "--output", "json"]);
    let document: Value = serde_json::from_slice(&programs.stdout).expect("JSON");
    assert_eq!(document["dry_run"], true);
    assert_eq!(document["would_change"].as_array().map(Vec::len), Some(2), "{document}");
    let unknown = appliance.cli(&["key", "compromise", "absent", "--dry-run"]);
    assert_eq!(unknown.status.code(), Some(1), "{}", said(&unknown));
}

#[test]
fn an_init_is_told_before_it_is_done() {
    let appliance = Appliance::uninitialised();
    expect(
        &appliance.cli(&["init", "--dry-run"]),
        &["master key of generation 1", "signs the audit log"],
    );
    assert_eq!(appliance.get("/v1/status").json()["state"], "not-initialised");
}

#[test]
fn a_restore_is_told_before_it_is_done() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let file = made(&appliance);
    let file = file.to_str().expect("text");
    appliance.stop();
    let there = backup(&appliance, &["restore", file, "--dry-run"]);
    assert!(!there.status.success() && said(&there).contains("not empty"), "{}", said(&there));
    move_away(&appliance);
    expect(
        &backup(&appliance, &["restore", file, "--dry-run"]),
        &["addresses into", "lines of the audit log"],
    );
    assert!(!appliance.path("store").exists() && !appliance.trail().exists());
    let restored = backup(&appliance, &["restore", file]);
    assert!(restored.status.success(), "{}", said(&restored));
}
