//! A store's disk that takes nothing for a while: what is told meanwhile, and what a kill then leaves.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::appliance::{Appliance, wait_until};
use crate::mounts::{Ext4, own_mounts};

/// An initialised appliance whose store, and nothing else, lies on a file system of its own.
fn on_own_disk() -> (Appliance, Ext4) {
    own_mounts();
    let mut appliance = Appliance::prepared(|config| {
        let socket = PathBuf::from(config["listen"]["socket"].as_str().expect("a path"));
        let store = socket.with_file_name("disk").join("store");
        config["store"]["path"] = store.display().to_string().into();
    });
    let image = appliance.path("image");
    std::fs::write(&image, Ext4::image(40, &appliance.path(""))).expect("room for it");
    let disk = Ext4::mount(&image, &appliance.path("disk"));
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_key("k");
    (appliance, disk)
}

fn trail(appliance: &Appliance) -> String {
    let files = std::fs::read_dir(appliance.trail()).expect("a trail");
    let texts = files.map(|entry| std::fs::read_to_string(entry.expect("an entry").path()));
    texts.map(|text| text.unwrap_or_default()).collect()
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
fn an_unlock_that_was_killed_is_no_lock_that_somebody_took_away() {
    let (mut appliance, disk) = on_own_disk();
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    let frozen = disk.freeze();
    std::thread::scope(|scope| {
        scope.spawn(|| std::panic::catch_unwind(|| appliance.post("/v1/unlock", &json!({}))));
        // The store cannot have been told yet.
        wait_until("the trail's word", || trail(&appliance).contains("\"unlocked\""));
        let front = i32::try_from(appliance.front_pid()).expect("a process");
        kill(Pid::from_raw(front), Signal::SIGKILL).expect("it runs");
        drop(frozen);
    });
    appliance.kill();
    appliance.start();
    let trail = trail(&appliance);
    assert!(!trail.contains("lock-removed"), "{trail}");
    if appliance.get("/v1/status").json()["state"] == "locked" {
        appliance.post("/v1/unlock", &json!({})).expect_status(200);
    }
    appliance.wait_for_state("ready");
    appliance.kill();
}
