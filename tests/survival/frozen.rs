//! A store's disk that takes nothing for a while: what is told meanwhile, and what a kill then leaves.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::appliance::{Appliance, wait_until};
use crate::mounts::{Ext4, own_mounts};
use crate::witness::{lines, verify};

/// An initialised appliance whose store, and nothing else, lies on a file system of its own, all of which
/// it may fill.
fn on_own_disk() -> (Appliance, Ext4) {
    own_mounts();
    let mut appliance = Appliance::prepared(|config| {
        let socket = PathBuf::from(config["listen"]["socket"].as_str().expect("a path"));
        let store = socket.with_file_name("disk").join("store");
        config["store"]["path"] = store.display().to_string().into();
        config["store"].as_table_mut().expect("a table").insert("reserve_bytes".into(), 0.into());
    });
    let image = appliance.path("image");
    std::fs::write(&image, Ext4::image(40, &appliance.path(""))).expect("room for it");
    let disk = Ext4::mount(&image, &appliance.path("disk"));
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_key("k");
    (appliance, disk)
}

#[test]
fn a_change_is_shown_to_nobody_before_it_is_on_disk() {
    let (mut appliance, disk) = on_own_disk();
    let put = || appliance.put("/v1/secrets/s", &json!({ "key": "k", "plaintext": "eA==" }));
    put().expect_status(201);
    let sealed = appliance.post("/v1/keys/k/encrypt", &json!({ "plaintext": "eA==" })).json();
    let open = json!({ "ciphertext": sealed["ciphertext"] });
    appliance.post("/v1/keys/k/decrypt", &open).expect_status(200);
    let reveal = || appliance.post("/v1/secrets/s/reveal", &json!({})).expect_status(200).json();
    std::thread::scope(|scope| {
        let frozen = disk.freeze();
        let changing = scope.spawn(put);
        let reading = scope.spawn(|| {
            while reveal()["revision"] != 2 {}
            Instant::now()
        });
        // An open key does not wait for a disk that it needs nothing of.
        let until = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < until {
            appliance.post("/v1/keys/k/decrypt", &open).expect_status(200);
        }
        let thawed = Instant::now();
        drop(frozen);
        assert!(reading.join().expect("no panic") >= thawed, "it was shown before it was on disk");
        changing.join().expect("no panic").expect_status(200);
    });
    appliance.kill();
}

#[test]
fn a_change_that_the_disk_failed_in_is_not_said_to_be_undone() {
    let (mut appliance, _disk) = on_own_disk();
    let filler = appliance.path("disk/filler");
    let mut file = File::create(&filler).expect("a file");
    while file.write_all(&[1; 65_536]).is_ok() {}
    while file.write_all(&[1; 512]).is_ok() {}
    drop(file);
    let secret = json!({ "key": "k", "plaintext": "eA==" });
    let (mut tried, mut unknown) = (0, None);
    wait_until("a change that is open", || {
        tried += 1;
        let reply = appliance.put(&format!("/v1/secrets/s{tried}"), &secret);
        match reply.json()["code"].as_str() {
            Some("outcome-unknown") => unknown = Some((reply.expect_status(500).text(), tried)),
            Some(code) => assert!(code.starts_with("store-"), "{}", reply.text()),
            None => drop(reply.expect_status(201)),
        }
        unknown.is_some()
    });
    let (text, number) = unknown.expect("it came");
    assert!(text.contains("it is done, or it is not"), "{text}");
    std::fs::remove_file(filler).expect("removed");
    wait_until("service again", || appliance.put("/v1/secrets/last", &secret).status < 300);
    let shown = appliance.get(&format!("/v1/secrets/s{number}"));
    assert!([200, 404].contains(&shown.status), "{}", shown.text());
    let lines = lines(&appliance.trail());
    let of_it = |line: &&Value| line["resource"] == format!("secret/s{number}");
    let outcome = |line: &&Value| line["action"] == "secret:put" && line["kind"] == "outcome";
    let told = lines.iter().filter(of_it).find(outcome).expect("an outcome");
    assert_eq!(
        (&told["result"], &told["code"]),
        (&"interrupted".into(), &"outcome-unknown".into())
    );
    assert!(!lines.iter().any(|line| line["event"] == "store-edited"), "{lines:#?}");
    verify(&appliance);
    appliance.kill();
}

#[test]
fn an_unlock_that_was_killed_is_no_lock_that_somebody_took_away() {
    let (mut appliance, disk) = on_own_disk();
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    let frozen = disk.freeze();
    std::thread::scope(|scope| {
        scope.spawn(|| std::panic::catch_unwind(|| appliance.post("/v1/unlock", &json!({}))));
        // The store cannot have been told yet.
        let is_told = |line: &Value| line["event"] == "unlocked";
        wait_until("the trail's word", || lines(&appliance.trail()).iter().any(is_told));
        let front = i32::try_from(appliance.front_pid()).expect("a process");
        kill(Pid::from_raw(front), Signal::SIGKILL).expect("it runs");
        drop(frozen);
    });
    appliance.kill();
    appliance.start();
    let lines = lines(&appliance.trail());
    assert!(!lines.iter().any(|line| line["event"] == "store-edited"), "{lines:#?}");
    if appliance.get("/v1/status").json()["state"] == "locked" {
        appliance.post("/v1/unlock", &json!({})).expect_status(200);
    }
    appliance.wait_for_state("ready");
    appliance.kill();
}
