//! Somebody who edits the disk puts single records back, where the audit log says nothing of them any more that is
//! read at a start: its older files are edited or gone, or a line was forged that ends the reading. The store's own
//! record of its state still knows.

use serde_json::json;

use super::forged_history::{lines, patch_kept_head, write};
use super::rolled_back_together::Snapshot;
use crate::acts::{decrypt, encrypt, events, expect_plaintext, put_secret, reveal};
use crate::appliance::Appliance;
use crate::raw_store::{APPLIANCE, KEY, KEY_VERSION, Picture, Raw, SECRET};

/// A key that was compromised, a secret that was deleted, one that was replaced, and how it was before.
struct Scene {
    appliance: Appliance,
    before: Picture,
    sealed: String,
    other: String,
}

type Edit = fn(&Raw, &Picture);

impl Scene {
    /// At its start only this much of the audit log is read back, in bytes.
    fn new(look_back_bytes: i64) -> Self {
        let mut appliance = Appliance::prepared(|config| {
            let audit = config["audit"].as_table_mut().expect("a table");
            audit.insert("look_back_bytes".to_owned(), look_back_bytes.into());
        });
        appliance.start();
        appliance.post("/v1/init", &json!({})).expect_status(201);
        for key in ["k", "other"] {
            appliance.create_key(key);
        }
        let (sealed, other) =
            (encrypt(&appliance, "k", "value"), encrypt(&appliance, "other", "value"));
        for secret in ["gone", "replaced", "kept"] {
            put_secret(&appliance, secret, "other", "first").expect_status(201);
        }
        appliance.stop();
        let before = Raw::open(&appliance).picture();
        appliance.start();
        appliance.post("/v1/keys/k/compromise", &json!({})).expect_status(200);
        appliance.delete("/v1/secrets/gone", &json!({})).expect_status(204);
        put_secret(&appliance, "replaced", "other", "second").expect_status(200);
        Self { appliance, before, sealed, other }
    }

    fn put_back(&self) {
        let raw = Raw::open(&self.appliance);
        raw.put_back(&self.before, KEY, "k");
        raw.put_back(&self.before, KEY_VERSION, "k/0000000001");
        raw.put_back(&self.before, SECRET, "gone");
        raw.put_back(&self.before, SECRET, "replaced");
    }

    /// What was put back is not served, and all else is.
    #[track_caller]
    fn expect_not_served(&self) {
        let appliance = &self.appliance;
        appliance.wait_for_state("ready");
        decrypt(appliance, "k", &self.sealed, None).expect_problem(500, "record-broken");
        for secret in ["gone", "replaced"] {
            reveal(appliance, secret).expect_problem(500, "record-broken");
            put_secret(appliance, secret, "other", "third").expect_problem(500, "record-broken");
        }
        expect_plaintext(&decrypt(appliance, "other", &self.other, None), "value");
        expect_plaintext(&reveal(appliance, "kept"), "first");
        assert!(events(&appliance.trail()).iter().any(|event| event == "store-edited"));
        let why = "the records of the store do not add up";
        assert!(appliance.log().contains(why), "{}", appliance.log());
    }
}

#[test]
fn records_that_were_put_back_further_ago_than_is_read_are_not_served() {
    let mut scene = Scene::new(0);
    scene.appliance.stop();
    scene.put_back();
    // However often it is started, and whatever changes beside them.
    for round in ["one", "two"] {
        scene.appliance.spawn();
        scene.expect_not_served();
        put_secret(&scene.appliance, round, "other", "new").expect_status(201);
        scene.appliance.stop();
    }
}

#[test]
fn a_forged_line_behind_the_newest_signature_does_not_end_the_comparison() {
    let mut scene = Scene::new(1 << 30);
    scene.appliance.stop();
    scene.appliance.start();
    scene.appliance.wait_for_state("ready");
    scene.appliance.kill();
    let mut forged = lines(&scene.appliance);
    let event = forged.iter().rfind(|line| line.contains("\"event\":\"start\"")).cloned();
    let accepts = "\"event\":\"break-recorded\",\"code\":\"records-behind\"";
    forged.push(event.expect("it started").replace("\"event\":\"start\"", accepts));
    let forged = write(&scene.appliance, &forged);
    patch_kept_head(&scene.appliance, &forged);
    scene.put_back();
    scene.appliance.spawn();
    scene.expect_not_served();
}

#[test]
fn a_record_of_the_state_that_is_taken_away_put_back_or_changed_holds_everything() {
    let mut scene = Scene::new(0);
    scene.appliance.stop();
    let token = scene.appliance.token();
    let all = vec![
        scene.appliance.path("store"),
        scene.appliance.trail(),
        token.state_directory(),
        token.tokens(),
    ];
    let whole = Snapshot::of(all);
    let edits: [(&str, Edit); 4] = [
        ("taken away", |raw, _| raw.remove(APPLIANCE, "state")),
        ("do not add up", |raw, before| raw.put_back(before, APPLIANCE, "state")),
        ("do not add up", |raw, _| raw.damage(APPLIANCE, "state")),
        ("do not add up", |raw, before| {
            // All that is older, with what custody and the newest signature ask for.
            let reach = raw.bytes(APPLIANCE, "reach");
            let (changes, head) = (raw.bytes(APPLIANCE, "changes"), raw.bytes(APPLIANCE, "head"));
            for (address, value) in before {
                raw.put_at(address, value);
            }
            raw.put(APPLIANCE, "reach", reach);
            raw.put(APPLIANCE, "changes", changes);
            raw.put(APPLIANCE, "head", head);
        }),
    ];
    for (why, edit) in edits {
        edit(&Raw::open(&scene.appliance), &scene.before);
        scene.put_back();
        scene.appliance.spawn();
        scene.appliance.wait_for_state("store-edited");
        let status = scene.appliance.get("/v1/status").json();
        assert!(status["detail"].as_str().expect("why").contains(why), "{why}: {status}");
        decrypt(&scene.appliance, "k", &scene.sealed, None).expect_problem(503, "store-edited");
        scene.appliance.stop();
        whole.put_back();
    }
    // Nothing of it was edited.
    scene.appliance.start();
    scene.appliance.wait_for_state("ready");
    expect_plaintext(&reveal(&scene.appliance, "replaced"), "second");
}
