//! The master key is rotated: with service on, through any end of the processes, and its old generation
//! is destroyed when nothing needs it any more.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::acts::{
    base64, decrypt, encrypt, events, expect_plaintext, put_secret, reveal, step, trail_lines,
};
use crate::appliance::{Appliance, wait_until};
use crate::raw_store::{APPLIANCE, KEY, Raw};
use crate::rolled_back::accept_records;
use crate::shim::Shim;

/// One private key, to be imported under many names: generating them would take its time.
pub fn private_key(directory: &Path) -> String {
    let file = directory.join("private.pem");
    let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&file).arg("2048").output();
    assert!(made.expect("openssl is installed").status.success());
    std::fs::read_to_string(file).expect("readable")
}

/// Imports keys `k0` to `k<count - 1>`, and returns what one of them opens.
pub fn import_keys(appliance: &Appliance, count: usize) -> String {
    let pem = private_key(&appliance.path(""));
    for number in 0..count {
        let body = json!({ "private_key": pem });
        appliance.post(&format!("/v1/keys/k{number}/import"), &body).expect_status(201);
    }
    encrypt(appliance, "k0", "kept")
}

pub fn master(appliance: &Appliance) -> Value {
    appliance.get("/v1/master?counts=true").expect_status(200).json()
}

pub fn wait_for_rotation(appliance: &Appliance) {
    wait_until("the end of the rotation", || {
        appliance.get("/v1/master").json()["rotation"]["stage"] == "done"
    });
}

/// What lies under a generation: versions of keys and store keys.
pub fn under(view: &Value, generation: u64) -> (u64, u64) {
    let all = view["generations"].as_array().expect("generations");
    let found = all.iter().find(|one| one["generation"] == generation).expect("it is there");
    (found["key_versions"].as_u64().expect("a number"), found["store_keys"].as_u64().expect("one"))
}

/// Stops the daemon and starts it so many days later than now, with a clock that an operator vouches for.
pub fn let_days_pass(appliance: &mut Appliance, days: u32) {
    appliance.stop();
    appliance.move_clock(&format!("+{days}d"));
    appliance.start();
    appliance.wait_for_state("ready");
    appliance.post("/v1/clock/confirm", &json!({})).expect_status(200);
}

/// The state of a generation, and whether the token has its key.
pub fn state_of(appliance: &Appliance, generation: u64) -> (String, String) {
    let view = master(appliance);
    let all = view["generations"].as_array().expect("generations");
    let found = all.iter().find(|one| one["generation"] == generation).expect("it is there");
    let text = |name: &str| found[name].as_str().expect("a text").to_owned();
    (text("state"), text("token"))
}

/// Waits for the end of a master key whose waiting period is over.
pub fn wait_for_retirement(appliance: &Appliance, generation: u64) {
    let retired = ("retired".to_owned(), "missing".to_owned());
    wait_until("the destruction of the master key", || state_of(appliance, generation) == retired);
}

/// How many master keys the token holds.
pub fn masters_in_token(appliance: &Appliance) -> usize {
    let listed = appliance.token().pkcs11_tool(&["--list-objects", "--type", "secrkey"]);
    listed.matches("strongroom master/").count()
}

#[test]
fn a_rotation_rewraps_everything_and_the_old_key_is_retired() {
    let mut appliance = Appliance::new();
    let ciphertext = import_keys(&appliance, 20);
    step(&appliance, "k1", "rotate", json!({})).expect_status(200);
    put_secret(&appliance, "s", "k1", "secret").expect_status(201);
    let before = master(&appliance);
    assert_eq!((before["generation"].clone(), under(&before, 1)), (json!(1), (21, 1)));
    let in_use = appliance.post("/v1/master/retire", &json!({ "generation": 1 }));
    in_use.expect_problem(409, "master-needed");
    appliance
        .post("/v1/master/retire", &json!({ "generation": 7 }))
        .expect_problem(404, "not-found");

    let rotated = appliance.cli(&["master", "rotate"]);
    let text = String::from_utf8_lossy(&rotated.stdout).into_owned();
    assert!(rotated.status.success() && text.contains("done"), "{rotated:?}");
    let after = master(&appliance);
    assert_eq!(after["generation"], 2);
    assert_eq!((under(&after, 1), under(&after, 2)), ((0, 0), (21, 1)), "{after}");
    assert_eq!(after["rotation"]["rewrapped"], 21, "{after}");
    // Once more right away is a mistake, unless somebody insists.
    let again = appliance.post("/v1/master/rotate", &json!({}));
    again.expect_problem(409, "rotated-recently");
    let ended = after["rotation"]["ended_at"].as_str().expect("a time");
    assert!(again.text().contains(&ended[..16]), "{ended} {}", again.text());
    assert_eq!(appliance.cli(&["master", "rotate"]).status.code(), Some(1));
    assert_eq!(masters_in_token(&appliance), 2);
    // The opened key is the same, so it stayed open, and one that is opened anew opens, too.
    expect_plaintext(&decrypt(&appliance, "k0", &ciphertext, None), "kept");
    expect_plaintext(&decrypt(&appliance, "k19", &ciphertext, None), "kept");
    appliance.create_key("new");
    assert_eq!(under(&master(&appliance), 2), (22, 1));

    let retired = appliance.cli(&["master", "retire", "1", "--yes"]);
    assert!(retired.status.success(), "{retired:?}");
    assert_eq!(masters_in_token(&appliance), 2, "it waits");
    let_days_pass(&mut appliance, 31);
    wait_for_retirement(&appliance, 1);
    assert_eq!(masters_in_token(&appliance), 1);
    // Each outcome names the generation that it was about.
    let lines = trail_lines(&appliance.trail());
    let outcomes = lines.iter().filter(|line| line["result"] == "done");
    let about = outcomes.filter_map(|line| match line["action"].as_str() {
        Some(action @ ("master:rotate" | "master:retire")) => Some((action, &line["generation"])),
        _ => None,
    });
    assert_eq!(
        about.collect::<Vec<_>>(),
        // The request, and its end a month later.
        [("master:rotate", &json!(2)), ("master:retire", &json!(1)), ("master:retire", &json!(1))]
    );
    let view = master(&appliance);
    assert_eq!(view["generations"][0]["state"], "retired");
    assert_eq!(view["generations"][0]["token"], "missing");
    appliance.restart();
    assert_eq!(appliance.get("/v1/status").json()["generation"], 2);
    expect_plaintext(&decrypt(&appliance, "k7", &ciphertext, None), "kept");
    assert_eq!(reveal(&appliance, "s").expect_status(200).json()["plaintext"], base64("secret"));
    // The trail goes on under the signing key that it had.
    let told = events(&appliance.trail());
    let told: Vec<_> =
        told.iter().filter(|event| event.contains("ma") || event.contains("ro")).collect();
    assert_eq!(told, ["master-in-use", "rotation-done"]);
    let doctor = appliance.get("/v1/doctor").json();
    assert!(!doctor.to_string().contains("\"fail\""), "{doctor}");
    appliance.stop();
    let offline = Command::new(env!("CARGO_BIN_EXE_strongroom"))
        .args(["doctor", "--login", "--config"])
        .arg(appliance.config_file())
        .envs([appliance.token().environment()])
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&offline.stdout).into_owned();
    assert!(text.contains("generation 2"), "{text}");
}

#[test]
fn service_goes_on_while_a_rotation_runs() {
    let appliance = Appliance::new();
    let ciphertext = import_keys(&appliance, 60);
    appliance.create_key("new0");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (appliance, ciphertext, done) = (&appliance, &ciphertext, &done);
            scope.spawn(move || {
                let mut number = 0;
                while !done.load(Ordering::Acquire) {
                    // No two threads change the same key.
                    let key = format!("k{}", (number * 14) % 58 + thread);
                    match number % 5 {
                        0 => {
                            step(appliance, &key, "suspend", json!({})).expect_status(200);
                            step(appliance, &key, "resume", json!({})).expect_status(200);
                        }
                        1 => {
                            let name = format!("s{thread}-{number}");
                            put_secret(appliance, &name, "new0", "x").expect_status(201);
                            reveal(appliance, &name).expect_status(200);
                        }
                        _ => {
                            let reply = decrypt(appliance, "k59", ciphertext, None);
                            expect_plaintext(&reply, "kept");
                        }
                    }
                    number += 1;
                }
                assert!(number > 0);
            });
        }
        for generation in 2..5 {
            appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
            appliance.create_key(&format!("new{generation}"));
            wait_for_rotation(&appliance);
        }
        done.store(true, Ordering::Release);
    });
    let view = master(&appliance);
    assert_eq!((view["generation"].clone(), under(&view, 4)), (json!(4), (64, 1)), "{view}");
    for generation in 1..4 {
        assert_eq!(under(&view, generation), (0, 0));
        let body = json!({ "generation": generation });
        appliance.post("/v1/master/retire", &body).expect_status(200);
    }
    expect_plaintext(&decrypt(&appliance, "k3", &ciphertext, None), "kept");
}

/// kill -9 of both processes at once.
fn kill_both(appliance: &mut Appliance) {
    let custody = Pid::from_raw(appliance.custody_pid() as i32);
    let _ = kill(custody, Signal::SIGKILL);
    appliance.kill();
}

#[test]
fn a_rotation_goes_on_after_kill_9_at_any_point() {
    let mut appliance = Appliance::new();
    let ciphertext = import_keys(&appliance, 40);
    for round in 0..12_u32 {
        let generation = u64::from(round) + 2;
        let started = Instant::now();
        appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
        appliance.post("/v1/master/rotate", &json!({})).expect_status(409);
        // From right after the request to well into the rewrapping.
        let moment = Duration::from_millis(u64::from(round) * 9);
        while started.elapsed() < moment {
            std::thread::yield_now();
        }
        match round % 3 {
            0 => appliance.kill(),
            1 => kill_both(&mut appliance),
            _ => {
                let custody = Pid::from_raw(appliance.custody_pid() as i32);
                kill(custody, Signal::SIGKILL).expect("killed");
                wait_for_rotation(&appliance);
                appliance.stop();
            }
        }
        appliance.start();
        appliance.wait_for_state("ready");
        wait_for_rotation(&appliance);
        let view = master(&appliance);
        assert_eq!((&view["generation"], under(&view, generation)), (&json!(generation), (40, 1)));
        assert_eq!(masters_in_token(&appliance) as u64, generation, "none was made twice");
        for key in ["k0", "k20", "k39"] {
            expect_plaintext(&decrypt(&appliance, key, &ciphertext, None), "kept");
        }
    }
}

/// A file for each object that SoftHSM keeps.
fn objects(appliance: &Appliance) -> usize {
    let tokens = std::fs::read_dir(appliance.token().tokens()).expect("a directory").flatten();
    let files = tokens.flat_map(|token| std::fs::read_dir(token.path()).expect("a token"));
    files.flatten().filter(|file| file.path().extension().is_some_and(|e| e == "object")).count()
}

/// The generation in use, by the store of an appliance that does not run.
fn stored_generation(appliance: &Appliance) -> Value {
    let db = sled::open(appliance.path("store")).expect("a store");
    let tree = db.open_tree("records").expect("its tree");
    let found = tree.get(b"\x01home").expect("readable").expect("it is there");
    let home: Value = serde_json::from_slice(&found[8..]).expect("JSON");
    home["generation"].clone()
}

#[test]
fn a_master_that_was_made_and_not_put_in_use_is_taken_by_its_own_rotation() {
    // Many store keys, so that putting the new master in use takes a while.
    let mut appliance = Appliance::configured(|config| {
        let records = toml::toml! { seals_per_store_key = 5 };
        config.insert("records".to_owned(), records.into());
    });
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_key("payments");
    for _ in 0..600 {
        let stored = put_secret(&appliance, "s", "payments", "value");
        assert!(stored.status == 201 || stored.status == 200);
    }
    let mut hit = false;
    for round in 0..10_u64 {
        let before = objects(&appliance);
        appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
        let until = Instant::now() + Duration::from_secs(20);
        while objects(&appliance) == before && Instant::now() < until {}
        kill_both(&mut appliance);
        hit |= stored_generation(&appliance) == round + 1 && objects(&appliance) > before;
        appliance.start();
        appliance.wait_for_state("ready");
        wait_for_rotation(&appliance);
        let view = master(&appliance);
        assert_eq!(view["generation"], round + 2);
        assert_eq!(masters_in_token(&appliance) as u64, round + 2, "it was taken, not made again");
        assert_eq!(reveal(&appliance, "s").expect_status(200).json()["plaintext"], base64("value"));
        if hit {
            return;
        }
    }
    panic!("it never ended between the token's key and the store's record");
}

#[test]
fn a_master_that_no_rotation_wanted_is_passed_over() {
    let mut appliance = Appliance::prepared(|config| {
        let audit = config["audit"].as_table_mut().expect("a table");
        audit.insert("on_break".to_owned(), "record".into());
    });
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    let ciphertext = import_keys(&appliance, 2);
    appliance.stop();
    let (store, copy) = (appliance.path("store"), appliance.path("copy"));
    let copied = Command::new("cp").arg("-a").args([&store, &copy]).status();
    assert!(copied.expect("cp").success());
    appliance.start();
    appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
    wait_for_rotation(&appliance);
    appliance.stop();
    // An older state of the store comes back; the token knows more than it.
    std::fs::remove_dir_all(&store).expect("removed");
    std::fs::rename(&copy, &store).expect("renamed");
    appliance.start();
    assert_eq!(master(&appliance)["generation"], 1);
    expect_plaintext(&decrypt(&appliance, "k0", &ciphertext, None), "kept");
    appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
    wait_for_rotation(&appliance);
    let view = master(&appliance);
    assert_eq!((&view["generation"], under(&view, 3)), (&json!(3), (2, 1)));
    expect_plaintext(&decrypt(&appliance, "k1", &ciphertext, None), "kept");
}

/// Says that it is over when it goes, however that comes.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Writes secrets, each of which takes a seal, until the end.
fn write_on(appliance: &Appliance, name: &str, done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        let reply = put_secret(appliance, name, "k", "x");
        // One that comes while the generation changes may be told to come again.
        assert!(matches!(reply.status, 200 | 201 | 503), "{} {}", reply.status, reply.text());
    }
}

#[test]
fn a_store_key_that_is_made_during_the_change_lies_under_the_new_master() {
    let mut appliance = Appliance::configured(|config| {
        let records = toml::toml! { seals_per_store_key = 5 };
        config.insert("records".to_owned(), records.into());
    });
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_key("k");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (appliance, done) = (&appliance, &done);
        let _over = Over(done);
        for name in ["s0", "s1", "s2", "s3"] {
            scope.spawn(move || write_on(appliance, name, done));
        }
        for generation in 2..8_u64 {
            appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
            wait_for_rotation(appliance);
            let view = master(appliance);
            let (_, made) = under(&view, generation);
            for older in 1..generation {
                assert_eq!(under(&view, older), (0, 0), "{view}");
            }
            assert!(made > 0, "{view}");
        }
    });
    appliance.restart();
    for name in ["s0", "s1", "s2", "s3"] {
        expect_plaintext(&reveal(&appliance, name), "x");
    }
}

#[test]
fn a_store_key_that_was_left_under_an_old_master_is_rewrapped() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    put_secret(&appliance, "s", "k", "kept").expect_status(201);
    appliance.stop();
    let before = Raw::open(&appliance).picture();
    appliance.start();
    appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
    wait_for_rotation(&appliance);
    appliance.stop();
    Raw::open(&appliance).put_back(&before, APPLIANCE, "store-key/0000000001");
    appliance.start();
    appliance.wait_for_state("store-edited");
    accept_records(&mut appliance);
    wait_until("the rewrap", || under(&master(&appliance), 2) == (1, 1));
    expect_plaintext(&reveal(&appliance, "s"), "kept");
    appliance.post("/v1/master/retire", &json!({ "generation": 1 })).expect_status(200);
    let_days_pass(&mut appliance, 31);
    wait_for_retirement(&appliance, 1);
    appliance.restart();
    expect_plaintext(&reveal(&appliance, "s"), "kept");
}

#[test]
fn a_broken_key_keeps_no_master_key_for_ever() {
    let mut appliance = Appliance::new();
    for key in ["good", "bad"] {
        appliance.create_key(key);
    }
    appliance.stop();
    Raw::open(&appliance).damage(KEY, "bad");
    appliance.start();
    appliance.post("/v1/master/rotate", &json!({})).expect_status(200);
    wait_for_rotation(&appliance);
    let retire = |leave: &[&str]| {
        appliance.post("/v1/master/retire", &json!({ "generation": 1, "leave": leave }))
    };
    let refused = retire(&[]);
    refused.expect_problem(409, "master-needed");
    assert!(refused.text().contains("key/bad; put them back"), "{}", refused.text());
    // Not for another one's name, nor together with one that opens.
    retire(&["good"]).expect_problem(409, "master-needed");
    retire(&["good", "bad"]).expect_problem(400, "invalid");
    let left = appliance.cli(&["master", "retire", "1", "--leave", "bad", "--yes"]);
    assert!(left.status.success(), "{left:?}");
    let_days_pass(&mut appliance, 31);
    wait_for_retirement(&appliance, 1);
    let lines = trail_lines(&appliance.trail());
    let told = lines.iter().find(|line| line["event"] == "key-left").expect("it is told");
    assert_eq!((&told["key"], &told["generation"]), (&json!("bad"), &json!(1)));
    let sealed = encrypt(&appliance, "good", "x");
    expect_plaintext(&decrypt(&appliance, "good", &sealed, None), "x");
}

#[test]
fn nobody_waits_long_for_a_change_of_the_master_that_takes_its_time() {
    let (appliance, shim) = Shim::appliance(|config| {
        let custody = config["custody"].as_table_mut().expect("a table");
        custody.insert("deadline_ms".to_owned(), 400.into());
        let records = toml::toml! { seals_per_store_key = 5 };
        config.insert("records".to_owned(), records.into());
    });
    appliance.create_key("k");
    for _ in 0..60 {
        assert!(matches!(put_secret(&appliance, "s", "k", "x").status, 200 | 201));
    }
    // Each of the store keys is wrapped anew, one after another.
    shim.order("C_Encrypt delay 400\nC_EncryptInit delay 100");
    appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
    let (mut busy, mut number) = ([0; 2], 0);
    while appliance.get("/v1/master").json()["rotation"]["stage"] == "making" {
        let began = Instant::now();
        let put = put_secret(&appliance, "s", "k", "x");
        number += 1;
        let create = json!({ "name": format!("n{number}"), "algorithm": "RSA-2048" });
        let created = appliance.post("/v1/keys", &create);
        for (count, reply) in busy.iter_mut().zip([put, created]) {
            *count += usize::from(reply.status == 503 && reply.text().contains("busy"));
        }
        assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
    }
    assert!(busy.iter().all(|count| *count > 0), "{busy:?}");
    shim.lift();
    wait_for_rotation(&appliance);
    assert!(matches!(put_secret(&appliance, "s", "k", "x").status, 200));
}

#[test]
fn what_the_trail_was_not_told_before_an_end_it_is_told_after() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let told = |appliance: &Appliance, event: &str| {
        let all = events(&appliance.trail());
        all.iter().filter(|told| *told == event).count()
    };
    // Killed right after the change, and right after the last key: before its line or after it.
    let ends = ["a new master key is in use", "all keys are done"];
    for (round, words) in (1..).zip(ends.into_iter().cycle().take(8)) {
        let from = appliance.log().len();
        appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
        while !appliance.log()[from..].contains(words) {
            std::thread::yield_now();
        }
        appliance.kill();
        appliance.start();
        appliance.wait_for_state("ready");
        wait_for_rotation(&appliance);
        for event in ["master-in-use", "rotation-done"] {
            assert!(told(&appliance, event) >= round, "{event} in round {round}: {words}");
        }
    }
}

#[test]
fn a_token_that_makes_no_master_key_is_asked_ever_less_often() {
    let (appliance, shim) = Shim::appliance(|_| {});
    appliance.create_key("k");
    appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
    wait_for_rotation(&appliance);
    shim.order("C_GenerateKey count\nC_GenerateKey code 0x31");
    appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
    let waits_for = || {
        let view = appliance.get("/v1/master").json();
        view["rotation"]["waits_for"].as_str().unwrap_or_default().to_owned()
    };
    wait_until("what it waits for", || waits_for().contains("tried again every 2 s"));
    // Half a second, one, and two that it has just begun to wait.
    assert!(shim.calls("C_GenerateKey") <= 3, "{}", shim.calls("C_GenerateKey"));
    appliance.get("/v1/keys/k").expect_status(200);
    // An old one may make room for it, once its wait is over.
    appliance.post("/v1/master/retire", &json!({ "generation": 1 })).expect_status(200);
    shim.lift();
    wait_for_rotation(&appliance);
    assert_eq!(under(&master(&appliance), 3), (1, 1));
}
