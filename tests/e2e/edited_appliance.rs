//! Somebody edits what lies open in the store: what the appliance is, that it is locked, how far the trail
//! and the records have come. None of it lets anything be opened that would not be.

use serde_json::{Value, json};

use crate::acts::{encrypt, expect_plaintext, put_secret, reveal, trail_lines};
use crate::appliance::{Appliance, wait_until};
use crate::raw_store::{APPLIANCE, Picture, Raw};
use crate::rotation::wait_for_rotation;

/// What an edit comes to.
enum Comes<'a> {
    /// It does not start, and says so in these words.
    Refused(&'a str),
    /// It starts in this state.
    State(&'a str),
}

struct Scene {
    appliance: Appliance,
    whole: Picture,
}

impl Scene {
    fn new() -> Self {
        let mut appliance = Appliance::new();
        appliance.create_key("k");
        put_secret(&appliance, "s", "k", "kept").expect_status(201);
        appliance.stop();
        let whole = Raw::open(&appliance).picture();
        Self { appliance, whole }
    }

    fn round(&mut self, what: &str, edit: impl FnOnce(&Raw), comes: Comes<'_>) {
        let raw = Raw::open(&self.appliance);
        raw.restore(&self.whole);
        edit(&raw);
        drop(raw);
        let from = self.appliance.log().len();
        self.appliance.spawn();
        let refused = self.appliance.settled();
        let log = self.appliance.log()[from..].to_owned();
        match comes {
            Comes::Refused(words) => {
                assert!(refused, "{what}: it started");
                assert!(log.contains(words), "{what}: {log}");
            }
            Comes::State(state) => {
                assert!(!refused, "{what}: {log}");
                let status = self.appliance.get("/v1/status").json();
                assert_eq!(status["state"], state, "{what}: {status}");
                match state {
                    "ready" => expect_plaintext(&reveal(&self.appliance, "s"), "kept"),
                    _ => assert_eq!(reveal(&self.appliance, "s").status, 503, "{what}"),
                }
                self.appliance.stop();
            }
        }
    }

    /// Changes a member of a record that is JSON.
    fn member(&mut self, key: &str, member: &str, value: Value, comes: Comes<'_>) {
        let what = format!("{key}: {member}");
        let edit = |raw: &Raw| {
            let bytes = raw.bytes(APPLIANCE, key);
            let mut record: Value = serde_json::from_slice(&bytes[8..]).expect("JSON");
            assert!(record.get(member).is_some(), "{what}: {record}");
            record[member] = value;
            let value = serde_json::to_vec(&record).expect("JSON");
            raw.put(APPLIANCE, key, [&bytes[..8], &value].concat());
        };
        self.round(&what, edit, comes);
    }
}

const STORE_KEY: &str = "store-key/0000000001";

#[test]
fn what_the_appliance_is_cannot_be_told_otherwise() {
    let mut scene = Scene::new();
    let garbage = |key: &'static str| {
        move |raw: &Raw| raw.put(APPLIANCE, key, [&[0; 8][..], b"nothing"].concat())
    };
    for key in ["home", STORE_KEY, "seals", "head", "locked"] {
        let words = format!("appliance/{key} was changed outside");
        scene.round(key, garbage(key), Comes::Refused(&words));
    }
    let home = "appliance/home was changed outside";
    scene.round("home taken away", |raw| raw.remove(APPLIANCE, "home"), Comes::Refused(home));
    let taken = |raw: &Raw| raw.remove(APPLIANCE, STORE_KEY);
    scene.round("store key taken away", taken, Comes::Refused(home));
    let swap = |raw: &Raw| raw.swap((APPLIANCE, "home"), (APPLIANCE, STORE_KEY));
    scene.round("home and store key swapped", swap, Comes::Refused(home));
    let twice = |raw: &Raw| {
        raw.put(APPLIANCE, "store-key/0000000002", raw.bytes(APPLIANCE, STORE_KEY));
    };
    let second = "appliance/store-key/0000000002 was changed outside";
    scene.round("store key twice", twice, Comes::Refused(second));

    let unfit = || Comes::State("master-unfit");
    scene.member("home", "appliance", json!("0".repeat(32)), unfit());
    scene.member("home", "generation", json!(2), unfit());
    let point: Vec<u8> = [4].into_iter().chain([7; 64]).collect();
    scene.member("home", "signer_point", json!(point), unfit());
    scene.member(STORE_KEY, "wrapped", json!(vec![1; 66]), unfit());
    let broken = format!("appliance/{STORE_KEY} was changed outside");
    scene.member(STORE_KEY, "id", json!(2), Comes::Refused(&broken));
    scene.round("nothing", |_| {}, Comes::State("ready"));
}

#[test]
fn neither_the_trails_end_nor_a_count_is_forgotten_for_an_edit() {
    let mut scene = Scene::new();
    let value = |raw: &Raw, key: &str, text: &str| {
        raw.put(APPLIANCE, key, [&raw.bytes(APPLIANCE, key)[..8], text.as_bytes()].concat());
    };
    let other = format!("\"2:{}\"", "0".repeat(64));
    let replaced = |raw: &Raw| value(raw, "head", &other);
    scene.round("another head", replaced, Comes::Refused("line 2 of the trail is not the one"));
    let beyond = format!("\"99999:{}\"", "0".repeat(64));
    let replaced = |raw: &Raw| value(raw, "head", &beyond);
    scene.round("a head beyond", replaced, Comes::Refused("known to have been written"));
    let removed = |raw: &Raw| raw.remove(APPLIANCE, "changes");
    scene.round("no count", removed, Comes::Refused("an older copy was put back"));
    // These say less than the trail does, or more than there is: nothing comes of it.
    scene.round("no head", |raw| raw.remove(APPLIANCE, "head"), Comes::State("ready"));
    scene.round("no seals", |raw| raw.remove(APPLIANCE, "seals"), Comes::State("ready"));
    let more = |raw: &Raw| raw.put(APPLIANCE, "changes", vec![0, 0, 0, 0, 0, 0, 1, 0]);
    scene.round("a higher count", more, Comes::State("ready"));
}

#[test]
fn a_lock_that_is_taken_away_in_the_store_still_holds() {
    let mut scene = Scene::new();
    scene.appliance.start();
    let ciphertext = encrypt(&scene.appliance, "k", "kept");
    scene.appliance.post("/v1/lock", &json!({})).expect_status(200);
    scene.appliance.stop();
    scene.whole = Raw::open(&scene.appliance).picture();
    for _ in 0..2 {
        let removed = |raw: &Raw| raw.remove(APPLIANCE, "locked");
        scene.round("lock removed", removed, Comes::State("locked"));
    }
    let lines = trail_lines(&scene.appliance.trail());
    let told = lines.iter().rfind(|line| line["event"] == "store-edited").expect("told");
    assert_eq!(told["code"], "lock-removed");
    assert!(scene.appliance.log().contains("the trail knows of a lock that the store does not"));
    // An operator unlocks it, and then it is.
    scene.appliance.start();
    scene.appliance.post("/v1/unlock", &json!({})).expect_status(200);
    scene.appliance.restart();
    let body = json!({ "ciphertext": ciphertext });
    scene.appliance.post("/v1/keys/k/decrypt", &body).expect_status(200);
    scene.appliance.stop();
    // A lock that is put there is one.
    let record = json!({ "since": "2026-01-02T03:04:05Z", "by": "unix:7" }).to_string();
    scene.whole = Raw::open(&scene.appliance).picture();
    let put = |raw: &Raw| raw.put(APPLIANCE, "locked", [&[0; 8], record.as_bytes()].concat());
    scene.round("lock put", put, Comes::State("locked"));
    // The trail is told of it, whoever it was: so it is not taken away unnoticed either.
    scene.round("the same taken away", |_| (), Comes::State("locked"));
}

/// The codes of the events that tell of an edit.
pub fn edits(appliance: &Appliance) -> Vec<Value> {
    let lines = trail_lines(&appliance.trail());
    let told = lines.iter().filter(|line| line["event"] == "store-edited");
    // That the store differs from what was last written is told besides.
    let told = told.filter(|line| line["code"] != "state-differs");
    told.map(|line| line["code"].clone()).collect()
}

fn pass(stage: &str, generation: u32) -> Value {
    json!({
        "generation": generation, "purpose": "rotation", "stage": stage,
        "started_at": "2026-01-02T03:04:05Z", "by": "unix:0", "after": null,
        "keys": 1, "keys_done": 0, "rewrapped": 0, "broken": 0, "ended_at": null
    })
}

#[test]
fn nobody_has_a_master_key_made_by_an_edit() {
    let mut scene = Scene::new();
    let masters = |scene: &Scene| {
        let listed = scene.appliance.token().pkcs11_tool(&["--list-objects", "--type", "secrkey"]);
        listed.matches("strongroom master/").count()
    };
    for (round, stage) in ["making", "rewrapping"].into_iter().enumerate() {
        let raw = Raw::open(&scene.appliance);
        raw.restore(&scene.whole);
        raw.put(APPLIANCE, "rotation", [&[0; 8], pass(stage, 2).to_string().as_bytes()].concat());
        drop(raw);
        scene.appliance.start();
        wait_until("the trail to be told", || edits(&scene.appliance).len() == round + 1);
        assert_eq!(edits(&scene.appliance)[round], "rotation");
        expect_plaintext(&reveal(&scene.appliance, "s"), "kept");
        assert_eq!(masters(&scene), 1, "{stage}");
        let lines = trail_lines(&scene.appliance.trail());
        assert!(lines.iter().all(|line| line["event"] != "master-in-use"), "{stage}");
        scene.appliance.stop();
    }
    // What is asked for is done all the same.
    scene.appliance.start();
    scene.appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
    wait_for_rotation(&scene.appliance);
    assert_eq!(masters(&scene), 2);
    scene.appliance.stop();
    // Its own record, damaged or gone, begins nothing either.
    scene.whole = Raw::open(&scene.appliance).picture();
    scene.round("damaged", |raw| raw.damage(APPLIANCE, "rotation"), Comes::State("ready"));
    scene.round("taken away", |raw| raw.remove(APPLIANCE, "rotation"), Comes::State("ready"));
    assert_eq!(masters(&scene), 2);
}

#[test]
fn the_trail_is_told_of_nothing_that_never_was() {
    let mut scene = Scene::new();
    let restored = json!({
        "digest": vec![7; 32], "created_at": "2026-01-02T03:04:05Z",
        "head": format!("1:{}", "0".repeat(64)), "left_behind": null
    });
    let resealed = json!({ "generation": 1, "fingerprint": vec![7; 32], "keys": 1, "left": 0 });
    for (round, (key, record)) in
        [("restored", restored), ("resealed", resealed)].into_iter().enumerate()
    {
        let raw = Raw::open(&scene.appliance);
        raw.restore(&scene.whole);
        raw.put(APPLIANCE, key, [&[0; 8], record.to_string().as_bytes()].concat());
        drop(raw);
        for _ in 0..2 {
            scene.appliance.start();
            scene.appliance.wait_for_state("ready");
            wait_until("the trail to be told", || edits(&scene.appliance).len() == round + 1);
            scene.appliance.stop();
        }
        assert_eq!(edits(&scene.appliance)[round], key);
        let lines = trail_lines(&scene.appliance.trail());
        assert!(lines.iter().all(|line| line["event"] != key), "{key}");
    }
}

#[test]
fn an_edited_clock_or_count_brings_nothing_forward() {
    let mut scene = Scene::new();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("readable");
    let clock = |time: &str| {
        let record = json!({ "boot": boot.trim(), "uptime_ms": 0, "time": time }).to_string();
        [&[0; 8], record.as_bytes()].concat()
    };
    let broken = "appliance/clock was changed outside";
    let garbage = |raw: &Raw| raw.put(APPLIANCE, "clock", [&[0; 8][..], b"nothing"].concat());
    scene.round("clock", garbage, Comes::Refused(broken));
    // Ahead or behind: no destruction is scheduled by it, and it is told.
    for (time, stands) in [("2020-01-01T00:00:00Z", "ahead"), ("9999-12-30T00:00:00Z", "behind")] {
        let raw = Raw::open(&scene.appliance);
        raw.restore(&scene.whole);
        raw.put(APPLIANCE, "clock", clock(time));
        drop(raw);
        scene.appliance.start();
        scene.appliance.wait_for_state("ready");
        let status = scene.appliance.get("/v1/status").json();
        assert_eq!(status["clock"]["state"], stands, "{status}");
        let told = format!("clock-{stands}");
        wait_until("the trail to be told", || {
            trail_lines(&scene.appliance.trail()).iter().any(|line| line["event"] == told)
        });
        scene.appliance.create_key(stands);
        let body = json!({});
        let reply = scene.appliance.delete(&format!("/v1/keys/{stands}"), &body);
        reply.expect_problem(409, "clock-doubted");
        expect_plaintext(&reveal(&scene.appliance, "s"), "kept");
        scene.appliance.stop();
        scene.whole = Raw::open(&scene.appliance).picture();
    }
    let seals = |store_key: u32, seals: u64| {
        let record = json!({ "store_key": store_key, "seals": seals }).to_string();
        [&[0; 8], record.as_bytes()].concat()
    };
    for (what, value) in
        [("none", seals(1, 0)), ("all", seals(1, u64::MAX)), ("other", seals(9, 5))]
    {
        scene.round(what, |raw| raw.put(APPLIANCE, "seals", value), Comes::State("ready"));
        // The next one seals under whichever store key comes of it.
        scene.appliance.start();
        scene.appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
        wait_for_rotation(&scene.appliance);
        put_secret(&scene.appliance, what, "k", "kept").expect_status(201);
        expect_plaintext(&reveal(&scene.appliance, what), "kept");
        scene.appliance.stop();
        scene.whole = Raw::open(&scene.appliance).picture();
    }
}
