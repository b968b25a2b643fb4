//! Somebody edits the records of a store while nobody has it open: each is flipped, swapped, rolled back,
//! taken away or put under another name. What was edited is noticed, named and not served; the rest is.

use serde_json::json;

use crate::acts::{
    decrypt, encrypt, events, expect_plaintext, put_secret, reveal, step, trail_lines,
};
use crate::appliance::{Appliance, wait_until};
use crate::raw_store::{KEY, KEY_VERSION, Picture, Raw, SECRET};

/// An appliance that does not run, and what its store has held: once, and at last.
struct Scene {
    appliance: Appliance,
    older: Picture,
    newest: Picture,
    /// For the key `m`, that nobody touches.
    ciphertext: String,
}

/// Secrets of which each is flipped in another place.
const REGIONS: usize = 8;

impl Scene {
    fn new() -> Self {
        let mut appliance = Appliance::new();
        for key in ["k", "l", "m"] {
            appliance.create_key(key);
        }
        for name in ["a", "b", "c", "gone"] {
            put_secret(&appliance, name, "m", "first").expect_status(201);
        }
        for region in 0..REGIONS {
            put_secret(&appliance, &format!("f{region}"), "m", "first").expect_status(201);
        }
        put_secret(&appliance, "rest", "m", "kept").expect_status(201);
        let ciphertext = encrypt(&appliance, "m", "kept");
        appliance.stop();
        let older = Raw::open(&appliance).picture();
        appliance.start();
        for key in ["k", "l"] {
            step(&appliance, key, "rotate", json!({})).expect_status(200);
        }
        step(&appliance, "k", "compromise", json!({ "version": 1 })).expect_status(200);
        for name in ["a", "b"] {
            put_secret(&appliance, name, "m", "second").expect_status(200);
        }
        appliance.request("DELETE", "/v1/secrets/gone", "", b"").expect_status(204);
        appliance.stop();
        let newest = Raw::open(&appliance).picture();
        Self { appliance, older, newest, ciphertext }
    }

    /// Edits the store as it was at last, starts, and holds that all of `broken` is: what is asked for, and
    /// what the journal calls it.
    fn round(&mut self, what: &str, edit: impl FnOnce(&Raw, &Picture), broken: &[(&str, &str)]) {
        let raw = Raw::open(&self.appliance);
        raw.restore(&self.newest);
        edit(&raw, &self.older);
        drop(raw);
        let from = self.appliance.log().len();
        self.appliance.start();
        for (path, named) in broken {
            let reply = self.appliance.get(path);
            assert_eq!(reply.status, 500, "{what}: {path} is served: {}", reply.text());
            reply.expect_problem(500, "record-broken");
            // A record at another revision is noticed before it is opened, by the name that it belongs to.
            let name = named.split('/').take(2).collect::<Vec<_>>().join("/");
            let whole = name.replace("key-version/", "key/");
            let said = [*named, &whole].map(|named| format!("{named} was changed outside"));
            wait_until(what, || {
                said.iter().any(|said| self.appliance.log()[from..].contains(said.as_str()))
            });
        }
        self.the_rest_works(what);
        self.appliance.stop();
    }

    fn the_rest_works(&self, what: &str) {
        let appliance = &self.appliance;
        expect_plaintext(&reveal(appliance, "rest"), "kept");
        expect_plaintext(&decrypt(appliance, "m", &self.ciphertext, None), "kept");
        appliance.get("/v1/keys/m").expect_status(200);
        let keys = appliance.get("/v1/keys").expect_status(200).json();
        let listed = keys["keys"].as_array().expect("a list").iter().any(|key| key["name"] == "m");
        assert!(listed, "{what}: {keys}");
        appliance.get("/v1/health").expect_status(200);
    }
}

const K: (&str, &str) = ("/v1/keys/k", "key/k");
const L: (&str, &str) = ("/v1/keys/l", "key/l");
const K_1: (&str, &str) = ("/v1/keys/k", "key-version/k/0000000001");
const L_1: (&str, &str) = ("/v1/keys/l", "key-version/l/0000000001");
const L_2: (&str, &str) = ("/v1/keys/l", "key-version/l/0000000002");
const A: (&str, &str) = ("/v1/secrets/a", "secret/a");
const B: (&str, &str) = ("/v1/secrets/b", "secret/b");
const C: (&str, &str) = ("/v1/secrets/c", "secret/c");

#[test]
fn a_flipped_or_moved_record_is_named_and_not_served() {
    let mut scene = Scene::new();
    // Revision, form, algorithm, store key, IV, ciphertext, tag: in a secret each, and then in keys.
    let region = |bytes: &[u8], region: usize| -> usize {
        [7, 8, 9, 13, 20, 26, bytes.len() / 2, bytes.len() - 1][region]
    };
    let secrets: Vec<_> = (0..REGIONS)
        .map(|region| (format!("/v1/secrets/f{region}"), format!("secret/f{region}")))
        .collect();
    let mut broken: Vec<_> =
        secrets.iter().map(|(path, named)| (path.as_str(), named.as_str())).collect();
    // A store key of another number is not looked for in the record.
    broken[3].1 = "the record sealed under store key 0";
    let flip_secrets = |raw: &Raw, _: &Picture| {
        for number in 0..REGIONS {
            let name = format!("f{number}");
            raw.flip(SECRET, &name, region(&raw.bytes(SECRET, &name), number));
        }
    };
    scene.round("flipped secrets", flip_secrets, &broken);
    for number in [0, 2, 4, 6, 7] {
        let flip = |raw: &Raw, _: &Picture| {
            raw.flip(KEY, "k", region(&raw.bytes(KEY, "k"), number));
            let version = "l/0000000002";
            raw.flip(KEY_VERSION, version, region(&raw.bytes(KEY_VERSION, version), number));
        };
        scene.round("flipped keys", flip, &[K, L_2]);
    }
    let swap = |raw: &Raw, _: &Picture| {
        raw.swap((KEY, "k"), (KEY, "l"));
        raw.swap((SECRET, "a"), (SECRET, "b"));
    };
    scene.round("swapped with another", swap, &[K, L, A, B]);
    let swap = |raw: &Raw, _: &Picture| {
        raw.swap((KEY_VERSION, "k/0000000001"), (KEY_VERSION, "k/0000000002"));
        raw.swap((KEY_VERSION, "l/0000000001"), (SECRET, "a"));
        raw.swap((SECRET, "b"), (SECRET, "c"));
    };
    scene.round("swapped versions and tables", swap, &[K_1, L_1, A, B, C]);
    let swap = |raw: &Raw, _: &Picture| {
        raw.swap((KEY, "k"), (SECRET, "a"));
        raw.swap((KEY, "l"), (KEY_VERSION, "l/0000000001"));
    };
    scene.round("swapped with another table", swap, &[K, L, A]);
    let duplicate = |raw: &Raw, _: &Picture| {
        raw.put(SECRET, "z", raw.bytes(SECRET, "a"));
        raw.put(KEY, "z", raw.bytes(KEY, "k"));
        raw.put(KEY_VERSION, "z/0000000001", raw.bytes(KEY_VERSION, "k/0000000001"));
        raw.put(KEY_VERSION, "l/0000000003", raw.bytes(KEY_VERSION, "k/0000000002"));
    };
    let copies = [("/v1/secrets/z", "secret/z"), ("/v1/keys/z", "key/z")];
    scene.round("under another name", duplicate, &copies);
}

#[test]
fn a_record_put_back_or_taken_away_is_named_and_not_served() {
    let mut scene = Scene::new();
    let older = |raw: &Raw, older: &Picture| {
        raw.put_back(older, KEY_VERSION, "k/0000000001");
        raw.put_back(older, SECRET, "a");
    };
    scene.round("an older record", older, &[K_1, A]);
    // With everything that names it: only the trail knows better.
    let together = |raw: &Raw, older: &Picture| {
        raw.put_back(older, KEY, "k");
        raw.put_back(older, KEY_VERSION, "k/0000000001");
        raw.remove(KEY_VERSION, "k/0000000002");
        raw.put_back(older, KEY, "l");
        raw.put_back(older, SECRET, "a");
        raw.put_back(older, SECRET, "gone");
    };
    let gone = ("/v1/secrets/gone", "secret/gone");
    scene.round("older records that agree", together, &[K, L, A, gone]);
    let taken = |raw: &Raw, _: &Picture| {
        raw.remove(KEY, "k");
        raw.remove(KEY_VERSION, "l/0000000001");
        raw.remove(SECRET, "a");
        raw.remove(SECRET, "c");
    };
    scene.round("taken away", taken, &[K, ("/v1/keys/l", "key/l"), A, C]);
    let unmarked = |raw: &Raw, older: &Picture| {
        raw.remove_mark(SECRET, "gone");
        raw.put_back(older, SECRET, "gone");
    };
    scene.round("a deleted one, as if for the first time", unmarked, &[gone]);
    // Nothing new takes the place of what was taken away, and the trail tells.
    let raw = Raw::open(&scene.appliance);
    raw.restore(&scene.newest);
    raw.remove(SECRET, "a");
    raw.remove(KEY, "k");
    drop(raw);
    let told = |scene: &Scene| {
        let events = events(&scene.appliance.trail());
        events.iter().filter(|event| *event == "store-edited").count()
    };
    let before = told(&scene);
    scene.appliance.start();
    let appliance = &scene.appliance;
    put_secret(appliance, "a", "m", "third").expect_problem(500, "record-broken");
    let create = json!({ "name": "k", "algorithm": "RSA-2048" });
    appliance.post("/v1/keys", &create).expect_problem(500, "record-broken");
    put_secret(appliance, "new", "m", "new").expect_status(201);
    expect_plaintext(&reveal(appliance, "new"), "new");
    // Each of them, and that the store differs.
    assert_eq!(told(&scene), before + 3);
    let lines = trail_lines(&scene.appliance.trail());
    let edited = lines.iter().rev().filter(|line| line["event"] == "store-edited");
    let edited = edited.filter(|line| line["code"] != "state-differs");
    for line in edited.take(2) {
        let about = line["line"].as_u64().expect("a line") as usize;
        let resource = lines[about - 1]["resource"].as_str().expect("a resource");
        assert!(["secret/a", "key/k"].contains(&resource), "{resource}");
    }
}

#[test]
fn an_operator_may_accept_older_records_and_they_are_served_from_then_on() {
    let mut scene = Scene::new();
    let raw = Raw::open(&scene.appliance);
    raw.put_back(&scene.older, SECRET, "a");
    raw.remove(SECRET, "b");
    drop(raw);
    scene.appliance.start();
    scene.appliance.get("/v1/secrets/a").expect_problem(500, "record-broken");
    scene.appliance.stop();
    let on_break = |scene: &Scene, word: &str| {
        scene.appliance.change_config(|config| {
            let audit = config["audit"].as_table_mut().expect("a table");
            audit.insert("on_break".to_owned(), word.into());
        });
    };
    on_break(&scene, "record");
    scene.appliance.start();
    expect_plaintext(&reveal(&scene.appliance, "a"), "first");
    scene.appliance.get("/v1/secrets/b").expect_problem(404, "not-found");
    let lines = trail_lines(&scene.appliance.trail());
    let told = lines.iter().rfind(|line| line["event"] == "break-recorded").expect("told");
    assert_eq!(told["code"], "records-behind");
    scene.appliance.stop();
    // What was accepted once is not held against it again.
    on_break(&scene, "refuse");
    scene.appliance.start();
    expect_plaintext(&reveal(&scene.appliance, "a"), "first");
    put_secret(&scene.appliance, "b", "m", "anew").expect_status(201);
    scene.the_rest_works("accepted");
}
