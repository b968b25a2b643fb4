//! A disk that is full, read-only or closed to the daemon: refused by name, nothing lost, and back again
//! by itself.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::appliance::{Appliance, User, wait_until};
use crate::dice::Dice;
use crate::mounts::{Ext4, own_mounts};
use crate::witness::Witness;

/// What a request may be refused with while the disk does not serve.
const REFUSALS: [&str; 6] = [
    "trail-unavailable",
    "store-unavailable",
    "store-full",
    "outcome-unrecorded",
    "outcome-unknown",
    "too-many-connections",
];

/// Has store and trail lie in the directory `disk` of the appliance.
fn on_disk(config: &mut toml::Table) {
    let socket = PathBuf::from(config["listen"]["socket"].as_str().expect("a path"));
    let at = |name: &str| socket.with_file_name("disk").join(name).display().to_string();
    config["store"]["path"] = at("store").into();
    config["audit"]["directory"] = at("trail").into();
    let audit = config["audit"].as_table_mut().expect("a table");
    audit.insert("segment_bytes".to_owned(), 65_536.into());
    audit.insert("checkpoint_lines".to_owned(), 100.into());
    config["log"]["level"] = "info".into();
}

fn disk(appliance: &Appliance, mebibytes: u64) -> Ext4 {
    let image = appliance.path("image");
    std::fs::write(&image, Ext4::image(mebibytes, &appliance.path(""))).expect("room for it");
    Ext4::mount(&image, &appliance.path("disk"))
}

/// An initialised appliance with a disk of its own that is soon full.
fn on_small_disk(place: impl FnOnce(&mut toml::Table)) -> (Appliance, Ext4) {
    own_mounts();
    let mut appliance = Appliance::prepared(place);
    let disk = disk(&appliance, 40);
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    (appliance, disk)
}

/// Waits until what callers ask for is refused, by a name that they know, and health says so, too.
fn wait_for_refusals(appliance: &Appliance, load: &crate::witness::Load) {
    wait_until("the refusals", || appliance.get("/v1/health").status == 503);
    // All of them may be at work that takes a while: making a key.
    wait_until("a caller's refusal", || load.is_refused());
    let refused = appliance.put("/v1/secrets/x", &json!({ "key": "base", "plaintext": "eA==" }));
    assert!(refused.status >= 500, "{}", refused.text());
    let code = refused.json()["code"].clone();
    assert!(REFUSALS.contains(&code.as_str().expect("a code")), "{}", refused.text());
    let state = appliance.get("/v1/status").expect_status(200).json()["state"].clone();
    let known = ["trail-unavailable", "store-unavailable", "changes-refused"];
    assert!(known.iter().any(|known| state == *known), "{state}");
}

/// Waits until it serves again, without a start, and holds what it has against what callers were told;
/// then they work on, and it is held again.
fn wait_for_service(appliance: &Appliance, load: crate::witness::Load, front: u32) {
    wait_until("service again", || appliance.get("/v1/health").status == 200);
    assert_eq!(appliance.front_pid(), front);
    let mut witness = load.end();
    let codes = witness.refusals();
    let known: BTreeSet<String> = REFUSALS.iter().map(|&code| code.to_owned()).collect();
    assert!(codes.is_subset(&known), "{codes:?}");
    assert!(!codes.is_empty(), "no caller was refused");
    let before = witness.check(appliance, 0);
    witness.settle(appliance);
    let load = witness.set_to_work(&appliance.socket());
    wait_until("work that goes on", || appliance.get("/v1/health").status == 200);
    std::thread::sleep(std::time::Duration::from_millis(300));
    let after = load.end().check(appliance, 0);
    assert!(before.changes > 0 && after.results > 0, "{before:?} {after:?}");
    println!("{} changes before and while, {} after, none lost", before.changes, after.changes);
}

fn at_work(appliance: &Appliance, test: &str) -> crate::witness::Load {
    let witness = Witness::of(appliance, &mut Dice::of_run(test), || 0);
    let load = witness.set_to_work(&appliance.socket());
    wait_until("some work", || {
        appliance.get("/v1/secrets").json()["secrets"].as_array().is_some_and(|list| list.len() > 3)
    });
    load
}

/// Takes the last byte of the disk; returns the file that has it.
fn fill(appliance: &Appliance) -> PathBuf {
    let filler = appliance.path("disk/filler");
    let mut file = File::create(&filler).expect("a file");
    while file.write_all(&[1; 65_536]).is_ok() {}
    while file.write_all(&[1; 512]).is_ok() {}
    filler
}

/// sled writes a snapshot whenever it opens: one that a full disk or a crash cut off must not be read as one.
#[test]
fn a_start_that_finds_no_room_or_is_cut_off_stops_no_later_one() {
    let (mut appliance, _disk) = on_small_disk(on_disk);
    appliance.create_key("k");
    let reveal = |appliance: &Appliance, name: &str| {
        let body = json!({});
        appliance.post(&format!("/v1/secrets/{name}/reveal"), &body).expect_status(200);
    };
    for round in 0..6_usize {
        let secret = json!({ "key": "k", "plaintext": "eA==" });
        for at in 0..=(round * 7) {
            appliance.put(&format!("/v1/secrets/s{round}-{at}"), &secret).expect_status(201);
        }
        appliance.kill();
        let filler = fill(&appliance);
        appliance.spawn();
        if !appliance.settled() {
            appliance.kill();
        }
        assert!(!appliance.log().contains("damaged"), "{}", appliance.log());
        std::fs::remove_file(filler).expect("removed");
        // And as a crash between its creation and its first byte leaves it.
        let store = appliance.path("disk/store");
        std::fs::write(store.join("snap.7FFFFFFFFFFFFFFF.generating"), "").expect("room for it");
        appliance.start();
        reveal(&appliance, &format!("s{round}-0"));
    }
}

/// What must not wait is taken from the reserve, and refused where that is gone as well; what is there opens.
#[test]
fn without_a_byte_for_the_store_what_is_there_opens_and_stays_open() {
    let (appliance, _disk) = on_small_disk(|config| {
        let trail = config["audit"]["directory"].clone();
        on_disk(config);
        config["audit"]["directory"] = trail;
    });
    appliance.create_key("k");
    appliance.create_key("other");
    let secret = json!({ "key": "k", "plaintext": "eA==" });
    appliance.put("/v1/secrets/s", &secret).expect_status(201);
    let filler = fill(&appliance);
    for _ in 0..3 {
        let refused = appliance.post("/v1/keys/other/suspend", &json!({}));
        refused.expect_problem(503, "store-full");
        appliance.post("/v1/secrets/s/reveal", &json!({})).expect_status(200);
    }
    std::fs::remove_file(filler).expect("removed");
    wait_until("room", || appliance.get("/v1/status").json()["state"] == "ready");
    appliance.post("/v1/keys/other/suspend", &json!({})).expect_status(200);
}

#[test]
fn a_full_disk_is_refused_and_with_room_it_goes_on() {
    let (mut appliance, _disk) = on_small_disk(on_disk);
    let (load, front) = (at_work(&appliance, "a full disk"), appliance.front_pid());
    for _ in 0..2 {
        let filler = fill(&appliance);
        wait_for_refusals(&appliance, &load);
        // The last blocks go, too: also for the trail there is no room.
        wait_until("the trail's refusal", || {
            let body = json!({ "ciphertext": "AAAA" });
            let reply = appliance.post("/v1/keys/base/decrypt", &body);
            reply.json()["code"] == "trail-unavailable"
        });
        std::fs::remove_file(filler).expect("removed");
        wait_until("service again", || appliance.get("/v1/health").status == 200);
    }
    wait_for_service(&appliance, load, front);
    appliance.kill();
}

#[test]
fn below_the_store_s_reserve_it_opens_what_is_there_and_says_that_nothing_changes() {
    let (mut appliance, _disk) = on_small_disk(on_disk);
    appliance.create_key("k");
    let value = json!({ "key": "k", "plaintext": "eA==" });
    appliance.put("/v1/secrets/s", &value).expect_status(201);
    let store = appliance.get("/v1/status").json()["store"].clone();
    assert_eq!(store["writable"], true, "{store}");
    let free = store["free_bytes"].as_u64().expect("a number");
    let filler = appliance.path("disk/filler");
    std::fs::write(&filler, vec![1; free as usize - (5 << 20)]).expect("room for it");

    appliance.wait_for_state("changes-refused");
    let status = appliance.get("/v1/status").json();
    assert_eq!(status["store"]["writable"], false, "{status}");
    assert!(status["detail"].as_str().unwrap().contains("changes are refused"), "{status}");
    let health = appliance.get("/v1/health").expect_status(200).json();
    assert_eq!(health, json!({ "ready": true, "degraded": true, "changes_refused": true }));
    let metrics = appliance.get("/metrics").text();
    let line = |name: &str| metrics.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    assert_eq!(line("strongroom_changes_refused"), "strongroom_changes_refused 1");
    let free: u64 = line("strongroom_store_free_bytes ")[28..].parse().expect("a number");
    assert!(free < 8 << 20 && line("strongroom_trail_free_bytes").ends_with(&free.to_string()));
    let refused = appliance.put("/v1/secrets/t", &value);
    refused.expect_problem(503, "store-full");
    let text = refused.text();
    assert!(
        text.contains("less than 8388608 bytes are free") && text.contains("free some"),
        "{text}"
    );
    appliance.post("/v1/secrets/s/reveal", &json!({})).expect_status(200);
    // What closes something does not wait for a disk.
    appliance.post("/v1/keys/k/suspend", &json!({})).expect_status(200);
    appliance.post("/v1/keys/k/resume", &json!({})).expect_problem(503, "store-full");
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    let doctor = appliance.cli(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(1), "{}", String::from_utf8_lossy(&doctor.stdout));

    std::fs::remove_file(filler).expect("removed");
    appliance.post("/v1/keys/k/resume", &json!({})).expect_status(200);
    appliance.put("/v1/secrets/t", &value).expect_status(201);
    assert_eq!(appliance.get("/v1/health").json(), json!({ "ready": true }));
    appliance.kill();
}

#[test]
fn a_directory_without_permission_is_refused_and_with_it_it_goes_on() {
    assert!(nix::unistd::geteuid().is_root(), "only root can become somebody else");
    let user = User { uid: 47_114, lockable_bytes: 8 * 1024 * 1024 };
    let mut appliance = Appliance::of_user(user);
    appliance.change_config(on_disk);
    let place = appliance.path("disk");
    let mode =
        |mode| std::fs::set_permissions(appliance.path("disk"), Permissions::from_mode(mode));
    std::fs::create_dir(&place).expect("a directory");
    chown(&place, Some(user.uid), Some(user.uid)).expect("root may");
    mode(0o700).expect("root may");
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    let (load, front) = (at_work(&appliance, "without permission"), appliance.front_pid());
    let mode =
        |mode| std::fs::set_permissions(appliance.path("disk"), Permissions::from_mode(mode));
    mode(0).expect("root may");
    wait_for_refusals(&appliance, &load);
    mode(0o700).expect("root may");
    wait_for_service(&appliance, load, front);

    // A start without permission is one that names what it may not, and the next one needs no hand.
    appliance.stop();
    chown(&place, Some(0), Some(0)).expect("root may");
    let from = appliance.log().len();
    appliance.spawn();
    assert!(!appliance.wait_for_end().success());
    let log = appliance.log()[from..].to_owned();
    assert!(log.contains("not permitted") && log.contains("[store]"), "{log}");
    chown(&place, Some(user.uid), Some(user.uid)).expect("root may");
    appliance.start();
    appliance.wait_for_state("ready");
}

#[test]
fn a_start_on_a_read_only_disk_is_refused_by_name() {
    let (mut appliance, _disk) = on_small_disk(on_disk);
    let load = at_work(&appliance, "a read-only start");
    let witness = load.end();
    appliance.kill();
    remount(&appliance.path("disk"), "ro");
    let from = appliance.log().len();
    appliance.spawn();
    assert!(!appliance.wait_for_end().success());
    let log = appliance.log()[from..].to_owned();
    assert!(log.contains("read-only") && log.contains("[store]"), "{log}");
    remount(&appliance.path("disk"), "rw");
    appliance.start();
    witness.check(&appliance, 0);
    appliance.kill();
}

/// A kernel that finds its file system damaged makes it read-only under all who write. It stays so until
/// it is mounted anew, for which the daemon has to let go of it.
#[test]
fn a_disk_that_turns_read_only_costs_no_more_than_a_start() {
    own_mounts();
    let mut appliance = Appliance::prepared(on_disk);
    let mounted = disk(&appliance, 40);
    remount(&appliance.path("disk"), "errors=remount-ro");
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    let load = at_work(&appliance, "a disk that turns read-only");
    let error = mounted.sysfs().join("trigger_fs_error");
    std::fs::write(&error, "1").expect("a kernel that lets root do this");
    // Either it refuses what it is asked, or it has ended, for a supervisor to start it anew.
    wait_until("the refusals", || {
        health(&appliance).is_none_or(|reply| reply.starts_with("HTTP/1.1 503"))
    });
    let witness = load.end();
    let codes = witness.refusals();
    let stable = |code: &String| REFUSALS.contains(&code.as_str());
    assert!(codes.iter().all(stable), "{codes:?}");
    appliance.kill();
    mounted.unmount();
    let mounted = Ext4::mount(&appliance.path("image"), &appliance.path("disk"));
    appliance.start();
    let counts = witness.check(&appliance, 0);
    assert!(counts.changes > 0, "{counts:?}");
    appliance.kill();
    mounted.unmount();
}

/// What a daemon that may end at any moment answers; `None` where nobody does.
fn health(appliance: &Appliance) -> Option<String> {
    let mut stream = UnixStream::connect(appliance.socket()).ok()?;
    let request = b"GET /v1/health HTTP/1.1\r\nhost: strongroom\r\nconnection: close\r\n\r\n";
    stream.write_all(request).ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    (!reply.is_empty()).then_some(reply)
}

fn remount(at: &Path, how: &str) {
    let output = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(at).output();
    let output = output.expect("mount");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
