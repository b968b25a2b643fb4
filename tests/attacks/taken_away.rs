//! A permission is taken away while what it was given for is under way.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::acts::base64;
use crate::appliance::{Appliance, Reply, wait_until};

/// Sends a request and does not wait for its reply.
fn send(appliance: &Appliance, path: &str, body: &str) -> UnixStream {
    let mut stream = UnixStream::connect(appliance.socket()).expect("connects");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: strongroom\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("sent");
    stream.write_all(body.as_bytes()).expect("sent");
    stream
}

fn reply(mut stream: UnixStream) -> Reply {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("a reply");
    Reply::parse(&bytes)
}

/// Takes the role that uses keys away from every user, and waits until that is in force.
fn take_role_away(appliance: &Appliance, role: &str) {
    appliance.change_config(|config| {
        config["policy"]["roles"][role]["users"] = toml::Value::Array(Vec::new());
    });
    let from = appliance.log().len();
    appliance.signal(Signal::SIGHUP);
    wait_until("the other policy", || {
        let log = std::fs::read_to_string(appliance.path("log")).expect("a log");
        log.get(from..).is_some_and(|log| log.contains("are loaded anew"))
    });
}

#[test]
fn no_batch_opens_anything_once_its_callers_role_is_taken_away() {
    let appliance = Appliance::new();
    let labels = json!({ "shared": "services" });
    let big = json!({ "name": "big", "algorithm": "RSA-4096", "labels": labels });
    appliance.post("/v1/keys", &big).expect_status(201);
    let encrypted = appliance.post("/v1/keys/big/encrypt", &json!({ "plaintext": base64("m") }));
    let item = json!({ "ciphertext": encrypted.expect_status(200).json()["ciphertext"] });
    let body = json!({ "items": vec![item; 256] }).to_string();
    let batches: Vec<UnixStream> =
        (0..12).map(|_| send(&appliance, "/v1/keys/big/decrypt", &body)).collect();
    std::thread::sleep(std::time::Duration::from_millis(200));
    take_role_away(&appliance, "service");
    let again = appliance.post("/v1/keys/big/encrypt", &json!({ "plaintext": base64("m") }));
    again.expect_problem(403, "denied");
    let mut refused = 0;
    for mut batch in batches {
        // What was answered before the role was taken away lies in the socket already; so may a refusal.
        let mut peek = Vec::new();
        batch.set_nonblocking(true).expect("set");
        let was_answered = batch.read_to_end(&mut peek).is_ok() || !peek.is_empty();
        batch.set_nonblocking(false).expect("set");
        batch.read_to_end(&mut peek).expect("a reply");
        let reply = Reply::parse(&peek);
        if was_answered && reply.status == 200 {
            continue;
        }
        reply.expect_problem(403, "denied");
        refused += 1;
    }
    assert!(refused > 0, "every batch was answered before: more of them are needed here");
}

/// Has policy permit everything but what is about keys of others.
fn permit_all_but_others_keys(appliance: &Appliance) {
    let directory = appliance.path("own");
    std::fs::create_dir(&directory).expect("made");
    let text = "permit (principal == User::\"unix:0\", action, resource)
                unless { resource is Key && resource has owner && resource.owner != principal };";
    std::fs::write(directory.join("own.cedar"), text).expect("written");
    appliance.change_config(|config| {
        config["policy"]["directory"] = directory.display().to_string().into();
    });
    let from = appliance.log().len();
    appliance.signal(Signal::SIGHUP);
    appliance.wait_for_log(from, "are loaded anew");
}

#[test]
fn a_key_that_was_given_away_while_its_rotation_waited_is_not_rotated() {
    let appliance = Appliance::new();
    permit_all_but_others_keys(&appliance);
    let slow = |name: &str| {
        let body = json!({ "name": name, "algorithm": "RSA-4096" }).to_string();
        send(&appliance, "/v1/keys", &body)
    };
    let wait = || std::thread::sleep(std::time::Duration::from_millis(50));
    let stopped = (0..5).any(|round| {
        let mine = format!("mine{round}");
        appliance.create_key(&mine);
        let before = ["a", "b", "c"].map(|name| slow(&format!("{name}{round}")));
        wait();
        let rotation = send(&appliance, &format!("/v1/keys/{mine}/rotate"), "{}");
        wait();
        let to = json!({ "owner": "unix:60999" });
        appliance.post(&format!("/v1/keys/{mine}/transfer"), &to).expect_status(200);
        let rotated = reply(rotation);
        for made in before {
            reply(made).expect_status(201);
        }
        // Where the first key was made very fast, the rotation came before the transfer.
        rotated.status == 403
    });
    assert!(stopped, "each was rotated after it was given away");
}

/// Whoever asks for a name that is another's learns that it may not have it, and nothing of the key.
#[test]
fn nothing_is_told_of_a_hidden_key_by_making_or_importing_one_in_its_place() {
    let appliance = Appliance::new();
    permit_all_but_others_keys(&appliance);
    appliance.create_key("hidden");
    let to = json!({ "owner": "unix:60999" });
    appliance.post("/v1/keys/hidden/transfer", &to).expect_status(200);
    appliance.get("/v1/keys/hidden").expect_problem(403, "denied");
    let made = json!({ "name": "hidden", "algorithm": "RSA-2048" });
    appliance.post("/v1/keys", &made).expect_problem(403, "denied");
    let key = base64(crate::promises::imported_key(&appliance.path("")));
    let body = json!({ "private_key": key }).to_string();
    for condition in ["", "if-match: \"99\"\r\n", "if-none-match: *\r\n"] {
        let headers = format!("content-type: application/json\r\n{condition}");
        let path = "/v1/keys/hidden/import";
        let refused = appliance.request("POST", path, &headers, body.as_bytes());
        refused.expect_problem(403, "denied");
        assert!(!refused.text().contains("revision"), "{}", refused.text());
    }
    // Of one's own the revision is told.
    appliance.create_key("mine");
    let headers = "content-type: application/json\r\nif-match: \"99\"\r\n";
    let mine = appliance.request("POST", "/v1/keys/mine/import", headers, body.as_bytes());
    mine.expect_problem(412, "revision-mismatch");
}
