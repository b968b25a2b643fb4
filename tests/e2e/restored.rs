//! What a restore ends: the time between the backup and it, whose records open nowhere any more.

use std::process::Command;

use serde_json::{Value, json};

use crate::acts::{decrypt, encrypt, expect_plaintext, put_secret, reveal, step, trail_lines};
use crate::appliance::{Appliance, wait_until};
use crate::backup::{
    backup, command, expect_done, expect_refused, made, move_away, restored_over, text,
};
use crate::raw_store::{APPLIANCE, KEY, KEY_VERSION, Picture, Raw, SECRET};
use crate::recovery::offline;
use crate::reseal::{prepared, reseal, set_recovery};

const NEW_STORE_KEY: &str = "store-key/0000000002";

/// An appliance that was put back to its backup, after a key and a secret were changed several times; what
/// lay in its store before that, and a ciphertext of the key.
fn put_back() -> (Appliance, Picture, String) {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "hello");
    appliance.create_key("other");
    put_secret(&appliance, "s", "other", "of the backup").expect_status(201);
    let file = made(&appliance);
    for seconds in [10, 20, 30, 0] {
        let update = json!({ "serve_without_token_seconds": seconds });
        appliance.post("/v1/keys/k/update", &update).expect_status(200);
        put_secret(&appliance, "s", "other", "of the time after it").expect_status(200);
    }
    appliance.stop();
    let abandoned = Raw::open(&appliance).picture();
    expect_done(&restored_over(&appliance, &file));
    appliance.start();
    appliance.wait_for_state("ready");
    (appliance, abandoned, ciphertext)
}

#[test]
fn records_of_a_time_that_a_restore_ended_are_taken_for_nothing() {
    let (mut appliance, abandoned, ciphertext) = put_back();
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "hello");
    expect_plaintext(&reveal(&appliance, "s"), "of the backup");
    wait_until("the trail to be told", || {
        let lines = trail_lines(&appliance.trail());
        lines.iter().any(|line| line["event"] == "restored" && line["store_key"] == 2)
    });
    // Revisions go on where the backup was.
    let put = put_secret(&appliance, "s", "other", "after the restore").expect_status(200).json();
    assert_eq!(put["revision"], 2);
    step(&appliance, "k", "compromise", json!({})).expect_status(200);
    assert!(decrypt(&appliance, "k", &ciphertext, None).status >= 400);
    appliance.stop();
    let since = Raw::open(&appliance).picture();
    let raw = Raw::open(&appliance);
    raw.put_back(&abandoned, KEY, "k");
    raw.put_back(&abandoned, KEY_VERSION, "k/0000000001");
    raw.put_back(&abandoned, SECRET, "s");
    drop(raw);
    appliance.start();
    appliance.wait_for_state("ready");
    decrypt(&appliance, "k", &ciphertext, None).expect_problem(500, "record-broken");
    reveal(&appliance, "s").expect_problem(500, "record-broken");
    appliance.stop();

    // Nor where the store key is made to count from the first one on, or goes back to what it was.
    let raw = Raw::open(&appliance);
    let whole = raw.bytes(APPLIANCE, NEW_STORE_KEY);
    let mut stored: Value = serde_json::from_slice(&whole[8..]).expect("JSON");
    stored["first"] = json!(0);
    raw.put(APPLIANCE, NEW_STORE_KEY, [&whole[..8], stored.to_string().as_bytes()].concat());
    drop(raw);
    appliance.start();
    assert!(decrypt(&appliance, "k", &ciphertext, None).status >= 400);
    assert!(reveal(&appliance, "s").status >= 400);
    appliance.stop();

    // Nor the whole store of that time, with all that lies open in the store as it has to be.
    let raw = Raw::open(&appliance);
    raw.restore(&abandoned);
    raw.put_back(&since, APPLIANCE, "head");
    raw.put_back(&since, APPLIANCE, "changes");
    drop(raw);
    appliance.start();
    // Its record of how far the store reaches does not open under the store key of that time, either.
    appliance.wait_for_state("store-rolled-back");
    decrypt(&appliance, "k", &ciphertext, None).expect_problem(503, "store-rolled-back");
    let why =
        "of the trail tells of a restore, and the store is one from before it: it was put back";
    assert!(appliance.log().contains(why), "{}", appliance.log());
    appliance.stop();
    Raw::open(&appliance).restore(&since);
    appliance.start();
    appliance.wait_for_state("ready");
    expect_plaintext(&reveal(&appliance, "s"), "after the restore");
    assert_eq!(appliance.get("/v1/keys/k").json()["state"], "compromised");
}

#[test]
fn what_was_restored_can_be_backed_up_rotated_and_recovered() {
    let (mut appliance, private, public) = prepared(Some(5));
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "hello");
    set_recovery(&appliance, &public);
    let file = made(&appliance);
    appliance.stop();
    expect_done(&restored_over(&appliance, &file));
    appliance.start();
    appliance.wait_for_state("ready");
    let sentence = |appliance: &Appliance| {
        let status = appliance.get("/v1/status").json();
        status["without_the_token"].as_str().expect("a sentence").to_owned()
    };
    assert!(sentence(&appliance).contains("every key can be"), "{}", sentence(&appliance));
    for number in 0..7 {
        put_secret(&appliance, &format!("s{number}"), "k", "x").expect_status(201);
    }
    appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
    crate::rotation::wait_for_rotation(&appliance);
    let again = appliance.path("again.backup");
    expect_done(&backup(&appliance, &["create", "--to", text(&again), "--verify"]));
    appliance.stop();
    // Where custody has no recovery key, a restore is none the worse, and says what is missing.
    let configured = std::fs::read_to_string(appliance.config_file()).expect("readable");
    appliance.change_config(|config| {
        config["custody"].as_table_mut().expect("a table").remove("recovery_key");
    });
    expect_done(&restored_over(&appliance, &again));
    std::fs::write(appliance.config_file(), configured).expect("written");
    appliance.start();
    appliance.wait_for_state("ready");
    assert!(sentence(&appliance).contains("not everything"), "{}", sentence(&appliance));
    set_recovery(&appliance, &public);
    assert!(sentence(&appliance).contains("every key can be"), "{}", sentence(&appliance));
    appliance.stop();
    let (store, key) = (appliance.path("store"), private.display().to_string());
    let drill = ["recovery", "drill", "--store", text(&store), "--private-key", &key];
    expect_done(&offline(&appliance, appliance.token(), &drill));
    let (resealed, _token) = reseal(&mut appliance, &private);
    expect_done(&resealed);
    appliance.start();
    appliance.wait_for_state("ready");
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "hello");
    expect_plaintext(&reveal(&appliance, "s3"), "x");
}

/// Runs a command where this directory is mounted over itself, which nobody else sees.
fn over_a_mount(directory: &std::path::Path, command: &Command) -> std::process::Output {
    let mount = "mount --bind \"$0\" \"$0\" && exec \"$@\"";
    let mut apart = Command::new("unshare");
    apart.args(["--mount", "--propagation", "private", "sh", "-c", mount]);
    apart.arg(directory).arg(command.get_program()).args(command.get_args());
    apart.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    apart.output().expect("unshare runs")
}

#[test]
fn a_restore_goes_into_mount_points_and_one_that_was_cut_off_is_deleted_and_done_again() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let file = made(&appliance);
    appliance.create_key("later");
    appliance.stop();
    let restore = command(&appliance, &["restore", text(&file)]);
    let [store, trail] = ["store", "trail"].map(|name| appliance.path(name));
    for mounted in [&store, &trail] {
        move_away(&appliance);
        std::fs::create_dir(mounted).expect("made");
        std::fs::set_permissions(mounted, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .expect("changed");
        // As the root of a file system of its own has it.
        std::fs::create_dir(mounted.join("lost+found")).expect("made");
        expect_done(&over_a_mount(mounted, &restore));
        assert!(mounted.join("lost+found").exists());
    }
    appliance.start();
    appliance.get("/v1/keys/later").expect_problem(404, "not-found");
    appliance.stop();

    // Cut off at its very end: one mark is left, in one of the two.
    for marked in [&store, &trail] {
        let mark = marked.join("unfinished-restore");
        std::fs::write(&mark, "").expect("written");
        appliance.spawn();
        assert!(appliance.settled(), "it was started from half a restore");
        assert!(appliance.log().contains("was cut off"), "{}", appliance.log());
        expect_refused(&backup(&appliance, &["restore", text(&file)]), "was cut off");
        let config = appliance.config_file().display().to_string();
        let checked = appliance.cli(&["config", "check", "--config", &config]);
        let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.contains("was cut off") && checked.contains("rm -rf"), "{checked}");
        std::fs::remove_file(&mark).expect("removed");
    }
    appliance.start();
}
