//! A master key is destroyed in the token, while reply, log and store say that it was not.

use serde_json::{Value, json};

use crate::acts::base64;
use crate::appliance::{Appliance, wait_until};
use crate::token::PIN;

/// An appliance with generations 1 and 2, the latter in use.
fn rotated() -> Appliance {
    let appliance = Appliance::new();
    appliance.create_key("k");
    assert!(appliance.cli(&["master", "rotate"]).status.success());
    appliance
}

fn first(appliance: &Appliance) -> (String, String) {
    let view = appliance.get("/v1/master").json();
    let text = |member: &str| view["generations"][0][member].as_str().expect("a text").to_owned();
    (text("state"), text("token"))
}

fn outcomes(appliance: &Appliance, action: &str) -> Vec<Value> {
    let lines = crate::acts::trail_lines(&appliance.trail());
    lines.into_iter().filter(|it| it["kind"] == "outcome" && it["action"] == action).collect()
}

#[test]
fn a_full_store_keeps_a_master_key_from_being_destroyed() {
    let mut appliance = rotated();
    let room = |appliance: &mut Appliance, reserve: i64| {
        appliance.change_config(|config| {
            let store = config["store"].as_table_mut().expect("a table");
            store.insert("reserve_bytes".to_owned(), reserve.into());
        });
        appliance.stop();
        appliance.spawn();
        wait_until("an answer", || {
            std::os::unix::net::UnixStream::connect(appliance.socket()).is_ok()
                && ["ready", "changes-refused"]
                    .contains(&appliance.get("/v1/status").json()["state"].as_str().unwrap_or(""))
        });
    };
    appliance.post("/v1/master/retire", &json!({ "generation": 1 })).expect_status(200);
    room(&mut appliance, 1_000_000_000_000_000);
    let now = json!({ "generation": 1, "pin": base64(PIN) });
    appliance.post("/v1/master/retire", &now).expect_status(503);
    assert_eq!(first(&appliance), ("destruction-pending".to_owned(), "fit".to_owned()));
    let last = outcomes(&appliance, "master:retire").pop().expect("an outcome");
    assert_eq!(last["result"], "failed", "{last}");
    room(&mut appliance, 1 << 20);
    appliance.post("/v1/master/cancel-retirement", &json!({ "generation": 1 })).expect_status(200);
    assert_eq!(first(&appliance), ("old".to_owned(), "fit".to_owned()));
}

#[test]
fn a_master_key_that_the_token_no_longer_holds_is_not_said_to_be_kept() {
    let appliance = rotated();
    appliance.post("/v1/master/retire", &json!({ "generation": 1 })).expect_status(200);
    let doctor = || {
        let checks = appliance.get("/v1/doctor").json()["checks"].clone();
        let checks = checks.as_array().expect("a list").clone();
        let check = checks.into_iter().find(|check| check["name"] == "master keys");
        check.expect("the check")["result"].as_str().expect("a text").to_owned()
    };
    assert_eq!(doctor(), "ok");
    let listed = appliance.token().pkcs11_tool(&["--list-objects", "--type", "secrkey"]);
    let label = listed.lines().find(|line| line.contains("/1")).expect("generation 1");
    let label = label.split_once("label:").expect("a label").1.trim();
    appliance.token().pkcs11_tool(&["--delete-object", "--type", "secrkey", "--label", label]);
    wait_until("a token without it", || first(&appliance).1 == "missing");
    assert_eq!(doctor(), "fail");
    let keep = json!({ "generation": 1 });
    appliance.post("/v1/master/cancel-retirement", &keep).expect_problem(409, "master-state");
    assert_eq!(first(&appliance), ("retired".to_owned(), "missing".to_owned()));
    assert_eq!(doctor(), "ok");
}

/// The front ends between its request to the token and its note of it.
#[test]
fn what_the_token_did_for_a_front_that_ended_is_found_out() {
    let mut appliance = rotated();
    appliance.post("/v1/master/retire", &json!({ "generation": 1 })).expect_status(200);
    let custody = nix::unistd::Pid::from_raw(appliance.custody_pid() as i32);
    let signal = |signal| nix::sys::signal::kill(custody, signal).expect("signalled");
    signal(nix::sys::signal::Signal::SIGSTOP);
    let body = json!({ "generation": 1, "pin": base64(PIN) }).to_string();
    let socket = appliance.socket();
    let asking = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("connects");
        let head = format!(
            "POST /v1/master/retire HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("sent");
        let _ = stream.read(&mut [0; 1024]);
    });
    std::thread::sleep(std::time::Duration::from_millis(500));
    signal(nix::sys::signal::Signal::SIGCONT);
    appliance.kill();
    asking.join().expect("ended");
    appliance.start();
    appliance.wait_for_state("ready");
    // Destroyed and retired, or there and not: never one without the other.
    wait_until("an end of it", || match first(&appliance) {
        (state, token) if token == "missing" => state == "retired",
        (state, token) => token == "fit" && state != "retired",
    });
}
