//! Somebody who edits the disk patches the small records: takes a lock away, names another newest line, another
//! count of changes. Each is sealed, or remembered by custody; a crash alone is no finding.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use super::forged_history::{lines, patch_kept_head, write};
use super::rolled_back_together::Snapshot;
use crate::acts::{
    accept_rollback, decrypt, encrypt, events, expect_plaintext, put_secret, reveal,
};
use crate::appliance::{Appliance, wait_until};
use crate::raw_store::{APPLIANCE, Raw};

/// Keeps its newest line every second.
fn appliance() -> Appliance {
    let mut appliance = Appliance::prepared(|config| {
        let audit = config["audit"].as_table_mut().expect("a table");
        audit.insert("head_seconds".to_owned(), 1.into());
    });
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance
}

/// Cuts off every line behind the newest checkpoint, which no signature covers, and has the store say so.
fn cut_to_the_newest_checkpoint(appliance: &Appliance) {
    let mut honest = lines(appliance);
    let checkpoint = honest.iter().rposition(|line| line.contains("\"kind\":\"checkpoint\""));
    let kept = checkpoint.expect("init signs one") + 1;
    assert!(kept < honest.len(), "there are lines behind it");
    honest.truncate(kept);
    let forged = write(appliance, &honest);
    patch_kept_head(appliance, &forged);
}

/// It starts, says why, and serves nothing.
#[track_caller]
fn expect_held(appliance: &mut Appliance, why: &str) -> Value {
    appliance.spawn();
    appliance.wait_for_state("store-rolled-back");
    let status = appliance.get("/v1/status").json();
    assert!(status["detail"].as_str().expect("why").contains(why), "{status}");
    reveal(appliance, "s").expect_problem(503, "store-rolled-back");
    status
}

/// Root has it taken as it is, which leaves one event.
#[track_caller]
fn accept(appliance: &mut Appliance, status: &Value) {
    let argument = status["detail"].as_str().expect("why").split_whitespace().last();
    let config = appliance.config_file();
    let config = config.to_str().expect("a path");
    let accepted =
        appliance.cli(&["accept-rollback", "--config", config, argument.expect("a word")]);
    assert!(accepted.status.success(), "{}", String::from_utf8_lossy(&accepted.stderr));
    appliance.wait_for_state("ready");
    let count = |appliance: &Appliance| {
        events(&appliance.trail()).iter().filter(|event| *event == "rollback-accepted").count()
    };
    wait_until("the event", || count(appliance) == 1);
    // Custody's end, and that of all, add none.
    appliance.kill();
    appliance.start();
    appliance.wait_for_state("ready");
    appliance.restart();
    appliance.wait_for_state("ready");
    assert_eq!(count(appliance), 1);
}

#[test]
fn a_lock_that_is_edited_out_of_store_and_audit_log_still_holds() {
    let mut appliance = appliance();
    appliance.create_key("k");
    let sealed = encrypt(&appliance, "k", "value");
    for ends in [Appliance::kill, |appliance: &mut Appliance| _ = appliance.stop()] {
        appliance.post("/v1/lock", &json!({})).expect_status(200);
        ends(&mut appliance);
        let is_orderly = lines(&appliance).last().is_some_and(|line| line.contains("\"stop\""));
        Raw::open(&appliance).remove(APPLIANCE, "locked");
        cut_to_the_newest_checkpoint(&appliance);
        if is_orderly {
            // Custody noted the last line, so the cut is noticed. Root's word for it is none for the lock.
            appliance.spawn();
            accept_rollback(&appliance);
            appliance.wait_for_state("locked");
            appliance.stop();
        }
        // However often it is started.
        for _ in 0..2 {
            appliance.spawn();
            appliance.wait_for_state("locked");
            decrypt(&appliance, "k", &sealed, None).expect_problem(503, "locked");
            appliance.stop();
        }
        let why = "custody remembers that an operator locked it, and the store does not";
        assert!(appliance.log().contains(why), "{}", appliance.log());
        appliance.start();
        appliance.post("/v1/unlock", &json!({})).expect_status(200);
        appliance.wait_for_state("ready");
        expect_plaintext(&decrypt(&appliance, "k", &sealed, None), "value");
        appliance.restart();
        appliance.wait_for_state("ready");
    }
}

#[test]
fn a_lock_outlives_a_kill_right_after_it_and_without_its_record() {
    let mut appliance = appliance();
    appliance.create_key("k");
    let sealed = encrypt(&appliance, "k", "value");
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    appliance.kill();
    // As if the store had never been told.
    let raw = Raw::open(&appliance);
    raw.remove(APPLIANCE, "locked");
    drop(raw);
    appliance.spawn();
    appliance.wait_for_state("locked");
    decrypt(&appliance, "k", &sealed, None).expect_problem(503, "locked");
}

#[test]
fn lines_cut_off_behind_the_newest_signature_are_missed_however_the_open_head_is_patched() {
    let mut appliance = appliance();
    appliance.create_key("k");
    put_secret(&appliance, "s", "k", "value").expect_status(201);
    let before = appliance.log().len();
    reveal(&appliance, "s").expect_status(200);
    // The newest line is sealed every second; a second later this one is.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(!appliance.log()[before..].contains("could not be kept"), "{}", appliance.log());
    appliance.kill();
    cut_to_the_newest_checkpoint(&appliance);
    let status = expect_held(&mut appliance, "which the audit log does not have");
    accept(&mut appliance, &status);
    reveal(&appliance, "s").expect_status(200);
}

#[test]
fn an_older_store_is_noticed_however_its_count_of_changes_is_patched() {
    let mut appliance = appliance();
    appliance.create_key("k");
    put_secret(&appliance, "s", "k", "value").expect_status(201);
    appliance.stop();
    let older = Snapshot::of(vec![appliance.path("store")]);
    appliance.start();
    put_secret(&appliance, "later", "k", "value").expect_status(201);
    appliance.delete("/v1/secrets/later", &json!({})).expect_status(204);
    appliance.stop();
    let newest = Snapshot::of(vec![appliance.path("store")]);
    let raw = Raw::open(&appliance);
    let (count, head) = (raw.bytes(APPLIANCE, "changes"), raw.bytes(APPLIANCE, "head"));
    drop(raw);
    older.put_back();
    let raw = Raw::open(&appliance);
    raw.put(APPLIANCE, "changes", count);
    raw.put(APPLIANCE, "head", head);
    drop(raw);
    expect_held(&mut appliance, "is an older copy");
    appliance.stop();
    // The newest one is served, and nothing was said of it.
    newest.put_back();
    appliance.start();
    appliance.wait_for_state("ready");
    reveal(&appliance, "s").expect_status(200);
    appliance.stop();
    // The newest record of how far it reaches does not help an older count.
    let raw = Raw::open(&appliance);
    let (reach, head) = (raw.bytes(APPLIANCE, "reach"), raw.bytes(APPLIANCE, "head"));
    drop(raw);
    older.put_back();
    let raw = Raw::open(&appliance);
    raw.put(APPLIANCE, "reach", reach);
    raw.put(APPLIANCE, "head", head);
    drop(raw);
    appliance.spawn();
    assert!(!appliance.wait_for_end().success(), "the audit log tells of more changes");
}

/// What is done to the store.
type Edit<'a> = &'a dyn Fn(&Raw);

#[test]
fn the_sealed_record_itself_is_not_patched_replaced_or_taken_away() {
    let mut appliance = appliance();
    appliance.create_key("k");
    put_secret(&appliance, "s", "k", "value").expect_status(201);
    appliance.stop();
    let older = Raw::open(&appliance).bytes(APPLIANCE, "reach");
    appliance.start();
    appliance.wait_for_state("ready");
    appliance.stop();
    let newest = Raw::open(&appliance).bytes(APPLIANCE, "reach");
    assert_ne!(older, newest);
    let open = json!({ "trail": "0123456789abcdef", "line": 1, "head": "1:0", "changes": 1 });
    let open = [&newest[..8], open.to_string().as_bytes()].concat();
    let edits: [(&str, Edit<'_>); 4] = [
        ("was changed outside Strongroom", &|raw| raw.damage(APPLIANCE, "reach")),
        ("was changed outside Strongroom", &|raw| raw.put(APPLIANCE, "reach", open.clone())),
        ("is an older copy", &|raw| raw.put(APPLIANCE, "reach", older.clone())),
        ("was taken away", &|raw| raw.remove(APPLIANCE, "reach")),
    ];
    for (why, edit) in edits {
        edit(&Raw::open(&appliance));
        expect_held(&mut appliance, why);
        appliance.stop();
        Raw::open(&appliance).put(APPLIANCE, "reach", newest.clone());
    }
    appliance.spawn();
    appliance.wait_for_state("ready");
    appliance.stop();
    Raw::open(&appliance).remove(APPLIANCE, "reach");
    let status = expect_held(&mut appliance, "was taken away");
    accept(&mut appliance, &status);
}

#[test]
fn a_crash_is_no_finding() {
    let mut appliance = appliance();
    appliance.create_key("k");
    put_secret(&appliance, "s", "k", "value").expect_status(201);
    for pause in [0, 300, 1100, 1700] {
        put_secret(&appliance, "t", "k", "value");
        reveal(&appliance, "s").expect_status(200);
        std::thread::sleep(std::time::Duration::from_millis(pause));
        appliance.kill();
        appliance.start();
        appliance.wait_for_state("ready");
        reveal(&appliance, "s").expect_status(200);
    }
    assert!(!events(&appliance.trail()).contains(&"rollback-accepted".into()));
}

#[test]
fn a_custody_that_cannot_write_its_state_says_so_and_goes_on_when_it_can() {
    let mut appliance = appliance();
    appliance.create_key("k");
    put_secret(&appliance, "s", "k", "value").expect_status(201);
    appliance.stop();
    // Nothing can be put in the place of a directory.
    let blocked = appliance.token().state_directory().join("locked.new");
    std::fs::create_dir(&blocked).expect("made");
    appliance.spawn();
    appliance.wait_for_state("custody-state-unavailable");
    reveal(&appliance, "s").expect_problem(503, "custody-state-unavailable");
    let status = appliance.get("/v1/status").json();
    assert!(status["detail"].as_str().expect("why").contains("locked.json"), "{status}");
    assert!(status["next"].as_str().expect("a step").contains("state_directory"), "{status}");
    let doctor = appliance.get("/v1/doctor").json().to_string();
    assert!(doctor.contains("custody's state") && doctor.contains("state_directory"), "{doctor}");
    std::thread::sleep(std::time::Duration::from_secs(1));
    let said = appliance.log().matches("custody's state cannot be written").count();
    assert_eq!(said, 1, "{}", appliance.log());
    std::fs::remove_dir(&blocked).expect("removed");
    appliance.wait_for_state("ready");
    reveal(&appliance, "s").expect_status(200);
}

#[test]
fn an_order_that_others_may_read_is_named_and_not_followed() {
    let mut appliance = appliance();
    appliance.create_key("k");
    put_secret(&appliance, "s", "k", "value").expect_status(201);
    appliance.stop();
    let order = appliance.token().state_directory().join("accept.json");
    let mode = |mode| std::fs::set_permissions(&order, Permissions::from_mode(mode)).expect("mode");
    std::fs::write(&order, "{}").expect("written");
    mode(0o644);
    appliance.spawn();
    appliance.wait_for_state("custody-state-unavailable");
    reveal(&appliance, "s").expect_problem(503, "custody-state-unavailable");
    let status = appliance.get("/v1/status").json();
    assert!(status["detail"].as_str().expect("why").contains("accept.json"), "{status}");
    assert!(status["next"].as_str().expect("a step").contains("state_directory"), "{status}");
    std::thread::sleep(std::time::Duration::from_secs(1));
    let log = appliance.log();
    let told: Vec<&str> =
        log.lines().filter(|line| line.contains("cannot tell which checkpoint")).collect();
    assert!(
        told.len() == 1 && told[0].contains("ERROR") && told[0].contains("accept.json"),
        "{log}"
    );
    mode(0o600);
    appliance.wait_for_state("ready");
    reveal(&appliance, "s").expect_status(200);
}
