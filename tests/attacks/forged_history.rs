//! Somebody who can write the disk, and has neither token nor custody, changes the past while the daemon is
//! stopped; or has the front's place, and asks custody to sign another one. Neither is countersigned.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use strongroom::custody::Mark;
use strongroom::custody::protocol::{Fault, Reply, Verb};

use crate::acts::{events, put_secret, reveal, trail_lines, trail_texts};
use crate::appliance::{Appliance, wait_until};
use crate::custody_verbs::Conquered;
use crate::raw_store::{APPLIANCE, Raw};

/// An appliance that has revealed a secret and stopped in order.
fn stopped() -> Appliance {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    put_secret(&appliance, "s", "k", "value").expect_status(201);
    reveal(&appliance, "s").expect_status(200);
    appliance.stop();
    appliance
}

pub fn lines(appliance: &Appliance) -> Vec<String> {
    trail_texts(&appliance.trail()).concat().lines().map(str::to_owned).collect()
}

/// Writes these lines as the whole audit log, each naming the one before it, numbered from 1.
pub fn write(appliance: &Appliance, lines: &[String]) -> Vec<String> {
    let mut chained: Vec<String> = Vec::new();
    for line in lines {
        let prev = match chained.last() {
            Some(before) => hash(before),
            None => field(line, "prev"),
        };
        let rest = line.split_once(',').expect("members").1;
        let numbered = format!("{{\"seq\":{},{rest}", chained.len() + 1);
        chained.push(numbered.replace(&field(line, "prev"), &prev));
    }
    let directory = appliance.trail();
    for entry in std::fs::read_dir(&directory).expect("a directory").flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "jsonl") {
            std::fs::remove_file(entry.path()).expect("removed");
        }
    }
    let text = chained.join("\n") + "\n";
    std::fs::write(directory.join("trail-00000000000000000001.jsonl"), text).expect("written");
    chained
}

fn hash(line: &str) -> String {
    Sha256::digest(line).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn field(line: &str, name: &str) -> String {
    let value: Value = serde_json::from_str(line).expect("JSON");
    value[name].as_str().expect("a text").to_owned()
}

/// Has the store name this line as the newest that it knows.
pub fn patch_kept_head(appliance: &Appliance, lines: &[String]) {
    let head = format!("{}:{}", lines.len(), hash(lines.last().expect("lines")));
    let raw = Raw::open(appliance);
    let bytes = raw.bytes(APPLIANCE, "head");
    raw.put(APPLIANCE, "head", [&bytes[..8], json!(head).to_string().as_bytes()].concat());
}

/// It starts, says why, serves nothing, and signs nothing.
#[track_caller]
fn expect_held(appliance: &mut Appliance, why: &str) {
    let before = lines(appliance);
    appliance.spawn();
    appliance.wait_for_state("store-rolled-back");
    let status = appliance.get("/v1/status").json();
    assert!(status["detail"].as_str().expect("why").contains(why), "{status}");
    reveal(appliance, "s").expect_problem(503, "store-rolled-back");
    appliance.stop();
    assert_eq!(lines(appliance), before, "no line, and no signature, is added to it");
}

#[test]
fn a_history_rewritten_without_its_checkpoints_is_not_countersigned() {
    let mut appliance = stopped();
    let honest = lines(&appliance);
    let uid = nix::unistd::getuid().as_raw();
    let blamed: Vec<String> = honest
        .iter()
        .filter(|line| !line.contains("\"kind\":\"checkpoint\""))
        .map(|line| {
            line.replace(&format!("\"caller\":\"unix:{uid}\""), "\"caller\":\"unix:31337\"")
        })
        .collect();
    assert!(blamed.len() < honest.len() && blamed.iter().any(|line| line.contains("31337")));
    let forged = write(&appliance, &blamed);
    patch_kept_head(&appliance, &forged);
    expect_held(&mut appliance, "custody has signed checkpoint");
}

#[test]
fn lines_appended_after_an_orderly_end_are_not_countersigned() {
    let mut appliance = stopped();
    let mut forged = lines(&appliance);
    let event = forged.iter().rfind(|line| line.contains("\"event\":\"stop\"")).cloned();
    forged.push(event.expect("it stopped").replace("\"stop\"", "\"locked\""));
    let forged = write(&appliance, &forged);
    patch_kept_head(&appliance, &forged);
    expect_held(&mut appliance, "it was closed with line");
}

#[test]
fn a_tail_that_was_cut_off_with_its_checkpoint_is_missed() {
    let mut appliance = stopped();
    let mut cut = lines(&appliance);
    let first = cut.iter().position(|line| line.contains("\"kind\":\"checkpoint\""));
    cut.truncate(first.expect("init signs one") + 1);
    let forged = write(&appliance, &cut);
    patch_kept_head(&appliance, &forged);
    expect_held(&mut appliance, "custody has signed checkpoint");
}

#[test]
fn a_last_checkpoint_that_a_crash_kept_from_the_disk_is_given_again() {
    let mut appliance = stopped();
    let mut cut = lines(&appliance);
    let last = cut.pop().expect("lines");
    assert!(last.contains("\"kind\":\"checkpoint\""), "{last}");
    let forged = write(&appliance, &cut);
    patch_kept_head(&appliance, &forged);
    appliance.start();
    appliance.wait_for_state("ready");
    let number = serde_json::from_str::<Value>(&last).expect("JSON")["number"].clone();
    wait_until("the same checkpoint", || {
        let is_it = |line: &Value| line["kind"] == "checkpoint" && line["number"] == number;
        trail_lines(&appliance.trail()).iter().any(is_it)
    });
    reveal(&appliance, "s").expect_status(200);
}

#[test]
fn lines_that_a_crash_has_left_unsigned_are_named_by_an_event() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    appliance.kill();
    appliance.start();
    appliance.wait_for_state("ready");
    wait_until("the event", || events(&appliance.trail()).contains(&"lines-adopted".into()));
    let adopted = trail_lines(&appliance.trail());
    let adopted = adopted.iter().find(|line| line["event"] == "lines-adopted").expect("there");
    assert!(
        adopted["line"].as_u64() > Some(1) && adopted["count"].as_u64() >= Some(2),
        "{adopted}"
    );
    appliance.restart();
    let count = events(&appliance.trail()).iter().filter(|name| *name == "lines-adopted").count();
    assert_eq!(count, 1, "an orderly end leaves none");
}

#[test]
fn a_front_that_has_another_history_signed_is_found_out_by_the_next_one() {
    let mut conquered = Conquered::new();
    let mut intruder = conquered.connect();
    conquered.unlock(&mut intruder);
    let Reply::Newest(newest) = intruder.done(&Verb::NewestCheckpoint) else { panic!("another") };
    let known = newest.known.expect("init signs one");
    // No order of root's: an older one is not begun with, so nothing is signed anew.
    let older = Mark { number: 0, covers: 0, head: [0; 32] };
    let begin = Verb::BeginTrail {
        trail: known.trail.clone(),
        newest: older,
        behind_end: false,
        holds: None,
    };
    assert!(matches!(intruder.refused("an older history", &begin), Fault::NotNewest(_)));
    let sign = Verb::SignCheckpoint {
        trail: known.trail.clone(),
        covers: known.mark.covers + 1,
        head: [7; 32],
        before: known.mark,
        closes: false,
        stored: false,
    };
    let Reply::Checkpoint { checkpoint, .. } = intruder.done(&sign) else { panic!("another") };
    let age = jiff::Timestamp::now().duration_since(checkpoint.at.parse().expect("a time"));
    assert!(age.as_secs() < 60, "the time is custody's own");
    drop(intruder);
    let appliance = &mut conquered.appliance;
    appliance.spawn();
    appliance.wait_for_state("store-rolled-back");
    reveal(appliance, "s").expect_problem(503, "store-rolled-back");
}

/// Whatever the daemon would sign by itself, in time and at its end, it signs none of it.
#[test]
fn lines_behind_an_orderly_end_stay_unsigned_however_often_it_starts() {
    let mut appliance = stopped();
    appliance.change_config(|config| {
        let audit = config["audit"].as_table_mut().expect("a table");
        audit.insert("checkpoint_seconds".to_owned(), 1.into());
    });
    let mut forged = lines(&appliance);
    let event = forged.iter().rfind(|line| line.contains("\"event\":\"policy-loaded\"")).cloned();
    forged.push(event.expect("a policy was loaded"));
    let forged = write(&appliance, &forged);
    patch_kept_head(&appliance, &forged);
    for _ in 0..2 {
        let before = lines(&appliance);
        appliance.spawn();
        appliance.wait_for_state("store-rolled-back");
        std::thread::sleep(std::time::Duration::from_secs(3));
        let status = appliance.get("/v1/status").json();
        assert_eq!(status["state"], "store-rolled-back", "{status}");
        appliance.stop();
        assert_eq!(lines(&appliance), before);
    }
}
