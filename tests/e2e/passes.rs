//! A pass over all keys and who looks on: nobody who asks how far it is changes how it comes out.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::acts::{decrypt, encrypt, events, expect_plaintext, put_secret};
use crate::appliance::{Appliance, wait_until};
use crate::edited_appliance::edits;
use crate::raw_store::{APPLIANCE, Raw, SECRET};
use crate::recovery::{pair, trust};
use crate::reseal::prepared;
use crate::rotation::{import_keys, master, wait_for_rotation};

fn set(public: &std::path::Path) -> Value {
    json!({ "public_key": std::fs::read_to_string(public).expect("readable") })
}

/// Does `work` while others ask at these paths without a pause, and one writes.
fn looked_at(appliance: &Appliance, paths: [&str; 4], work: impl FnOnce()) {
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let over = &over;
        let _over = Over(over);
        for path in paths {
            scope.spawn(move || {
                while !over.load(Ordering::Acquire) {
                    appliance.get(path);
                }
            });
        }
        scope.spawn(move || {
            while !over.load(Ordering::Acquire) {
                put_secret(appliance, "s", "k", "x");
            }
        });
        work();
    });
}

#[test]
fn who_looks_at_a_rotation_undoes_nothing_of_it() {
    let appliance = Appliance::new();
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    looked_at(&appliance, ["/v1/master"; 4], || {
        for generation in 2..22_u64 {
            appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
            wait_until("the rotation that was asked for", || {
                let view = appliance.get("/v1/master").json();
                view["generation"] == generation && view["rotation"]["stage"] == "done"
            });
            let body = json!({ "generation": generation - 1 });
            appliance.post("/v1/master/retire", &body).expect_status(200);
        }
    });
    assert_eq!(master(&appliance)["generation"], 21);
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
}

#[test]
fn who_looks_at_the_recovery_key_undoes_nothing_of_it() {
    let (appliance, _, public) = prepared(None);
    appliance.create_key("k");
    let body = set(&public);
    let view = |appliance: &Appliance| appliance.get("/v1/recovery").expect_status(200).json();
    let is_over = |view: &Value| view["pass"]["stage"] == "done";
    let paths = ["/v1/recovery", "/v1/status", "/v1/recovery", "/v1/status"];
    looked_at(&appliance, paths, || {
        for _ in 0..8 {
            appliance.put("/v1/recovery", &body).expect_status(200);
            wait_until("the pass of the key", || is_over(&view(&appliance)));
            let told = view(&appliance);
            let sentence = told["without_the_token"].as_str().expect("a sentence");
            assert!(sentence.starts_with("every key can be recovered"), "{told}");
            appliance.request("DELETE", "/v1/recovery", "", b"").expect_status(200);
            wait_until("the pass of none", || is_over(&view(&appliance)));
            let told = view(&appliance);
            assert!(told.get("fingerprint").is_none(), "it came back: {told}");
        }
    });
}

fn sentence(appliance: &Appliance) -> String {
    let view = appliance.get("/v1/recovery").expect_status(200).json();
    view["without_the_token"].as_str().expect("a sentence").to_owned()
}

fn wait_for_what(appliance: &Appliance, words: &str) {
    wait_until("what the pass waits for", || {
        let view = appliance.get("/v1/master").json();
        view["rotation"]["waits_for"].as_str().is_some_and(|what| what.contains(words))
    });
}

fn told(appliance: &Appliance, event: &str) -> usize {
    events(&appliance.trail()).iter().filter(|told| *told == event).count()
}

#[test]
fn a_recovery_key_is_corrected_whose_pass_cannot_end() {
    let (mut appliance, _, first) = prepared(None);
    let (_, second) = pair(&appliance.path(""), "second", 4096);
    import_keys(&appliance, 60);
    for round in 1..3 {
        appliance.put("/v1/recovery", &set(&first)).expect_status(200);
        appliance.kill();
        trust(&mut appliance, &second);
        appliance.start();
        appliance.wait_for_state("ready");
        wait_for_what(&appliance, "recovery key");
        let create = json!({ "name": "new", "algorithm": "RSA-2048" });
        appliance.post("/v1/keys", &create).expect_problem(409, "recovery-key");
        let (begins, becomes) = match round {
            1 => {
                let begins = appliance.put("/v1/recovery", &set(&second));
                (begins, "every key can be recovered")
            }
            _ => {
                let begins = appliance.request("DELETE", "/v1/recovery", "", b"");
                (begins, "nothing can be recovered")
            }
        };
        begins.expect_status(200);
        wait_for_rotation(&appliance);
        assert!(sentence(&appliance).starts_with(becomes), "{}", sentence(&appliance));
        assert_eq!(told(&appliance, "recovery-wrapped"), round, "the first never ended");
        appliance.create_key(&format!("new{round}"));
        trust(&mut appliance, &first);
        appliance.restart();
        appliance.wait_for_state("ready");
    }
}

#[test]
fn a_broken_record_of_the_recovery_key_is_told_and_replaced() {
    let (mut appliance, _, public) = prepared(None);
    import_keys(&appliance, 3);
    let is_set = |appliance: &Appliance| {
        appliance.put("/v1/recovery", &set(&public)).expect_status(200);
        wait_for_rotation(appliance);
        assert!(sentence(appliance).starts_with("every key can be"), "{}", sentence(appliance));
        appliance.create_key(&format!("new{}", edits(appliance).len()));
    };
    let edited = |appliance: &mut Appliance, code: &str, edit: fn(&Raw)| {
        let told = edits(appliance).len();
        appliance.stop();
        edit(&Raw::open(appliance));
        appliance.start();
        // Where both who look find it, both say so.
        let tells = || edits(appliance).iter().skip(told).any(|found| *found == code);
        wait_until("the trail to be told", tells);
    };
    is_set(&appliance);
    edited(&mut appliance, "recovery", |raw| raw.damage(APPLIANCE, "recovery"));
    assert!(sentence(&appliance).starts_with("it is not known"), "{}", sentence(&appliance));
    let status = appliance.get("/v1/status").json();
    assert_eq!(status["without_the_token"], sentence(&appliance));
    appliance.get("/v1/recovery?counts=true").expect_status(200);
    assert_eq!(master(&appliance)["generation"], 1);
    let create = json!({ "name": "not", "algorithm": "RSA-2048" });
    appliance.post("/v1/keys", &create).expect_problem(409, "recovery-key");
    // A rotation that was begun waits for it, and ends with it.
    appliance.post("/v1/master/rotate", &json!({})).expect_status(200);
    wait_for_what(&appliance, "was changed outside");
    is_set(&appliance);
    assert_eq!(master(&appliance)["generation"], 2);
    let ends = ["rotation-done", "recovery-wrapped"].map(|event| told(&appliance, event));
    assert_eq!(ends, [1, 2]);
    // Lost, it is told by the revision that the trail knows of.
    edited(&mut appliance, "record-behind", |raw| raw.remove(APPLIANCE, "recovery"));
    is_set(&appliance);
    edited(&mut appliance, "recovery", |raw| raw.damage(APPLIANCE, "recovery"));
    appliance.request("DELETE", "/v1/recovery", "", b"").expect_status(200);
    wait_for_rotation(&appliance);
    assert!(sentence(&appliance).starts_with("nothing can be"), "{}", sentence(&appliance));
    appliance.create_key("after");
    appliance.restart();
    appliance.wait_for_state("ready");
    is_set(&appliance);
}

#[test]
fn a_backup_names_the_master_that_came_while_it_was_made() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    appliance.stop();
    // More than lies on the way to a caller who does not read on.
    let raw = Raw::open(&appliance);
    for number in 0..400 {
        raw.put(SECRET, &format!("s{number}"), vec![7; 32_768]);
    }
    drop(raw);
    appliance.start();
    let mut caller = UnixStream::connect(appliance.socket()).expect("connects");
    let request = "POST /v1/backup HTTP/1.1\r\nhost: strongroom\r\nconnection: close\r\n\
                   content-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    caller.write_all(request.as_bytes()).expect("written");
    let mut backup = vec![0; 4096];
    caller.read_exact(&mut backup).expect("it begins");
    appliance.post("/v1/master/rotate", &json!({})).expect_status(200);
    wait_for_rotation(&appliance);
    caller.read_to_end(&mut backup).expect("all of it");
    let backup = String::from_utf8_lossy(&backup);
    let generations = backup.rsplit("\"generations\":").next().expect("a manifest");
    let named: String = generations.split(']').take(1).flat_map(str::split_whitespace).collect();
    assert_eq!(named, "[1,2");
}
