//! Somebody edits what lies open in the store: what the appliance is, that it is locked, how far the trail
//! and the records have come. None of it lets anything be opened that would not be.

use serde_json::{Value, json};

use crate::acts::{encrypt, expect_plaintext, put_secret, reveal, trail_lines};
use crate::appliance::Appliance;
use crate::raw_store::{APPLIANCE, Picture, Raw};

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
}
