//! Initialisation: once, never over anything, and finished after whatever cut it off.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::acts::{accept_rollback, decrypt, encrypt, expect_plaintext};
use crate::appliance::Appliance;
use crate::token::TestToken;

/// The labels of the keys in a token, sorted; pairs count twice.
fn keys_in(token: &TestToken) -> Vec<String> {
    let listed = token.pkcs11_tool(&["--list-objects"]);
    let labels = listed.lines().filter_map(|line| line.trim().strip_prefix("label:"));
    let mut labels: Vec<String> = labels.map(|label| label.trim().to_owned()).collect();
    // What custody remembers there is no key: data objects, whose labels are shown in quotes.
    labels.retain(|label| {
        !["'strongroom checkpoint'", "'strongroom custody'"].contains(&label.as_str())
    });
    labels.sort();
    labels
}

/// One master, and both halves of one signing pair.
const WHOLE: [&str; 3] = ["strongroom audit/1", "strongroom audit/1", "strongroom master/1"];

/// Takes the store away, as if it had never been written; the trail goes with it.
fn lose_store(appliance: &Appliance) {
    std::fs::remove_dir_all(appliance.path("store")).unwrap();
    std::fs::remove_dir_all(appliance.trail()).unwrap();
}

fn init(appliance: &Appliance, resume: bool) -> crate::appliance::Reply {
    appliance.post("/v1/init", &json!({ "resume": resume }))
}

/// Whether a key works from beginning to end.
fn works(appliance: &Appliance, key: &str) {
    appliance.create_key(key);
    let ciphertext = encrypt(appliance, key, "x");
    expect_plaintext(&decrypt(appliance, key, &ciphertext, None), "x");
}

#[test]
fn an_initialised_appliance_is_not_initialised_again() {
    let mut appliance = Appliance::uninitialised();
    let not_yet = json!({ "name": "k", "algorithm": "RSA-2048" });
    appliance.post("/v1/keys", &not_yet).expect_problem(503, "not-initialised");
    assert_eq!(keys_in(appliance.token()), Vec::<String>::new(), "a start generates nothing");
    let made = init(&appliance, false).expect_status(201).json();
    assert_eq!(made["created"].as_array().map(Vec::len), Some(2));
    assert_eq!(keys_in(appliance.token()), WHOLE);
    let status = appliance.get("/v1/status").json();
    for restarted in [false, true] {
        if restarted {
            appliance.restart();
        }
        for resume in [false, true] {
            init(&appliance, resume).expect_problem(409, "already-initialised");
        }
        assert_eq!(keys_in(appliance.token()), WHOLE);
        assert_eq!(appliance.get("/v1/status").json()["appliance"], status["appliance"]);
    }
    works(&appliance, "k");
    let output = appliance.cli(&["init"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn two_that_initialise_at_once_make_one_appliance() {
    let appliance = Appliance::uninitialised();
    let codes: Vec<u16> = std::thread::scope(|scope| {
        let threads: Vec<_> = [false, true, true, false]
            .map(|resume| {
                scope.spawn({
                    let appliance = &appliance;
                    move || init(appliance, resume).status
                })
            })
            .into_iter()
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(codes.iter().filter(|code| **code == 201).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 409).count(), 3, "{codes:?}");
    assert_eq!(keys_in(appliance.token()), WHOLE);
    works(&appliance, "k");
}

#[test]
fn a_token_that_holds_keys_already_is_left_alone_unless_told_to_resume() {
    let mut appliance = Appliance::new();
    appliance.stop();
    lose_store(&appliance);
    appliance.start();
    let refused = init(&appliance, false);
    refused.expect_problem(409, "already-initialised");
    assert!(refused.text().contains("--resume"), "{}", refused.text());
    assert_eq!(appliance.get("/v1/status").json()["state"], "not-initialised");
    assert_eq!(keys_in(appliance.token()), WHOLE);
    // Custody remembers what those keys have signed, and that is gone.
    init(&appliance, true).expect_problem(503, "store-rolled-back");
    accept_rollback(&appliance);
    let resumed = init(&appliance, true).expect_status(201).json();
    assert_eq!(resumed["created"], json!([]), "both keys were there");
    assert_eq!(keys_in(appliance.token()), WHOLE);
    works(&appliance, "k");
    appliance.restart();
    works(&appliance, "l");
}

#[test]
fn what_is_missing_in_the_token_is_made_by_a_resumed_init() {
    // Cut off between the two keys, and in the middle of the second.
    for class in [&["privkey", "pubkey"][..], &["privkey"]] {
        let mut appliance = Appliance::new();
        appliance.stop();
        lose_store(&appliance);
        for class in class {
            let delete = ["--delete-object", "--label", "strongroom audit/1", "--type", class];
            appliance.token().pkcs11_tool(&delete);
        }
        appliance.start();
        init(&appliance, false).expect_problem(409, "already-initialised");
        // Custody remembers what the lost key has signed, and that is gone.
        init(&appliance, true).expect_problem(503, "store-rolled-back");
        accept_rollback(&appliance);
        let resumed = init(&appliance, true).expect_status(201).json();
        assert_eq!(resumed["created"], json!(["trail signing key, generation 1"]));
        assert_eq!(keys_in(appliance.token()), WHOLE);
        works(&appliance, "k");
    }
}

#[test]
fn an_init_that_is_killed_again_and_again_is_finished_by_resume() {
    let mut appliance = Appliance::uninitialised();
    let mut delays = (0..12).map(|round| Duration::from_micros(500 + round * round * 900));
    loop {
        let delay = delays.next();
        let answered = std::thread::scope(|scope| {
            let socket = appliance.socket();
            let asked = scope.spawn(move || ask_for_init(&socket));
            match delay {
                Some(delay) => {
                    std::thread::sleep(delay);
                    None
                }
                None => asked.join().unwrap(),
            }
        });
        if let Some(status) = answered {
            assert_eq!(status, 201);
            break;
        }
        appliance.kill();
        appliance.start();
        if appliance.get("/v1/status").json()["state"] == "ready" {
            init(&appliance, true).expect_problem(409, "already-initialised");
            break;
        }
    }
    assert_eq!(keys_in(appliance.token()), WHOLE);
    works(&appliance, "k");
    appliance.restart();
    works(&appliance, "l");
}

/// The status of a resumed init; `None` where no answer came.
fn ask_for_init(socket: &Path) -> Option<u16> {
    use std::io::{Read, Write};
    let body = r#"{"resume":true}"#;
    let mut stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    let head = "POST /v1/init HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\
                content-type: application/json\r\n";
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    reply.split(' ').nth(1)?.parse().ok()
}

#[test]
fn an_initialised_appliance_on_another_token_says_so_and_generates_nothing() {
    let mut appliance = Appliance::new();
    works(&appliance, "k");
    appliance.token().initialise_another("empty");
    let use_token = |appliance: &mut Appliance, label: &str| {
        appliance.change_config(|config| config["token"]["label"] = label.into());
        appliance.restart();
    };
    use_token(&mut appliance, "empty");
    refuses_to_work(&appliance, "holds no master key");
    for resume in [false, true] {
        init(&appliance, resume).expect_problem(409, "already-initialised");
    }
    let listed = appliance.token().pkcs11_tool_on("empty", &["--list-objects"]);
    assert!(!listed.contains("strongroom"), "{listed}");

    // A token that holds the keys of another appliance is not taken for the right one.
    let store = appliance.path("store");
    let label = appliance.token().label().to_owned();
    appliance.stop();
    std::fs::rename(&store, appliance.path("kept")).unwrap();
    std::fs::rename(appliance.trail(), appliance.path("kept-trail")).unwrap();
    // What custody remembers belongs to them.
    let state = appliance.token().state_directory();
    std::fs::rename(&state, appliance.path("kept-state")).unwrap();
    appliance.start();
    init(&appliance, false).expect_status(201);
    appliance.stop();
    lose_store(&appliance);
    std::fs::rename(appliance.path("kept"), &store).unwrap();
    std::fs::rename(appliance.path("kept-trail"), appliance.trail()).unwrap();
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::rename(appliance.path("kept-state"), &state).unwrap();
    appliance.start();
    refuses_to_work(&appliance, "is not the one that this appliance was initialised with");

    use_token(&mut appliance, &label);
    assert_eq!(appliance.get("/v1/status").json()["state"], "ready");
    works(&appliance, "l");
}

#[test]
fn nothing_is_made_in_the_token_that_the_store_has_no_room_for() {
    let appliance = Appliance::configured(|config| {
        let store = config["store"].as_table_mut().expect("a table");
        store.insert("reserve_bytes".to_owned(), (1i64 << 60).into());
    });
    init(&appliance, false).expect_problem(503, "store-full");
    assert_eq!(keys_in(appliance.token()), Vec::<String>::new());
}

fn refuses_to_work(appliance: &Appliance, why: &str) {
    let status: Value = appliance.get("/v1/status").json();
    assert_eq!(status["state"], "master-unfit");
    assert!(status["detail"].as_str().unwrap().contains(why), "{status}");
    appliance.get("/v1/health").expect_status(503);
    appliance.get("/v1/keys/k").expect_problem(503, "master-key");
    let again = appliance.post("/v1/init", &json!({}));
    again.expect_problem(409, "already-initialised");
    assert!(again.text().contains(why) && again.text().contains("strongroom status"), "{again:?}");
    let create = json!({ "name": "n", "algorithm": "RSA-2048" });
    appliance.post("/v1/keys", &create).expect_problem(503, "master-key");
}
