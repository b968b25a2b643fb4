//! One service's permitted requests fill the audit log's disk: what closes something must go on all the same.

use std::io::Write;

use serde_json::{Value, json};

use super::mounts::{Ext4, own_mounts};
use crate::acts::trail_lines;
use crate::appliance::{Appliance, wait_until};
use crate::callers::{User, open_to_all};

const SERVICE: User = User::new(60_041);
const OTHER: User = User::new(60_042);

/// Both services may use keys; whoever runs the test is the operator.
fn appliance(change: impl FnOnce(&mut toml::Table)) -> Appliance {
    let appliance = Appliance::prepared(|config| {
        let users = config["policy"]["roles"]["service"]["users"].as_array_mut().expect("users");
        users.extend([SERVICE, OTHER].map(|user| toml::Value::from(i64::from(user.uid))));
        config["log"]["level"] = "info".into();
        change(config);
    });
    open_to_all(&appliance);
    appliance
}

/// An appliance whose store and audit log lie on a small disk, with two keys.
fn on_small_disk() -> (Appliance, Ext4) {
    own_mounts();
    let mut appliance = appliance(|config| {
        let socket = std::path::PathBuf::from(config["listen"]["socket"].as_str().expect("a path"));
        let at = |name: &str| socket.with_file_name("disk").join(name).display().to_string();
        config["store"]["path"] = at("store").into();
        config["audit"]["directory"] = at("trail").into();
    });
    let image = appliance.path("image");
    std::fs::write(&image, Ext4::image(40, &appliance.path(""))).expect("room for it");
    let disk = Ext4::mount(&image, &appliance.path("disk"));
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    for key in ["payments", "other"] {
        appliance.create_shared_key(key);
    }
    (appliance, disk)
}

fn encrypt(appliance: &Appliance, user: User) -> crate::appliance::Reply {
    let body = json!({ "plaintext": "eA==" });
    user.asks(appliance, "POST", "/v1/keys/payments/encrypt", Some(&body))
}

/// Takes of the disk what leaves so many bytes.
fn leave(appliance: &Appliance, bytes: u64) {
    let found = nix::sys::statvfs::statvfs(&appliance.path("disk")).expect("a file system");
    let free = found.blocks_available() * found.fragment_size();
    let mut filler = std::fs::File::create(appliance.path("disk/filler")).expect("a file");
    filler.write_all(&vec![1; (free - bytes) as usize]).expect("room for it");
    filler.sync_all().expect("written");
}

/// Lines of the audit log about an action, with this result.
fn lines(appliance: &Appliance, action: &str, kind: &str) -> Vec<Value> {
    let lines = trail_lines(&appliance.trail());
    lines.into_iter().filter(|line| line["action"] == action && line["kind"] == kind).collect()
}

#[test]
fn a_service_that_fills_the_log_keeps_no_operator_from_closing_something() {
    let (mut appliance, _disk) = on_small_disk();
    leave(&appliance, 4 << 20);
    let filled =
        (0..200_000).map(|_| encrypt(&appliance, SERVICE)).find(|reply| reply.status != 200);
    let refused = filled.expect("the disk has an end");
    refused.expect_problem(503, "trail-unavailable");
    encrypt(&appliance, OTHER).expect_problem(503, "trail-unavailable");
    // What opens something waits for room; what closes something does not.
    appliance.post("/v1/keys/payments/suspend", &json!({})).expect_status(200);
    appliance.post("/v1/keys/payments/resume", &json!({})).expect_problem(503, "trail-unavailable");
    let body = json!({ "reason": "key-compromise" });
    appliance.post("/v1/keys/other/compromise", &body).expect_status(200);
    encrypt(&appliance, SERVICE).expect_problem(503, "trail-unavailable");
    let locked = appliance.post("/v1/lock", &json!({ "reason": "key-compromise" }));
    assert_eq!(locked.expect_status(200).json()["state"], "locked");
    for (action, outcomes) in [("key:suspend", 1), ("key:compromise", 1), ("appliance:lock", 1)] {
        assert_eq!(lines(&appliance, action, "intent").len(), outcomes, "{action}");
        wait_until("its outcome", || lines(&appliance, action, "outcome").len() == outcomes);
    }
    // With room it goes on by itself, and the log holds together.
    std::fs::remove_file(appliance.path("disk/filler")).expect("removed");
    wait_until("the log to be written again", || {
        appliance.post("/v1/unlock", &json!({})).status == 200
    });
    appliance.post("/v1/keys/payments/resume", &json!({})).expect_status(200);
    encrypt(&appliance, SERVICE).expect_status(200);
    appliance.restart();
    appliance.wait_for_state("ready");
    let (key, trail) = (appliance.path("signer.pem"), appliance.trail().display().to_string());
    std::fs::write(&key, appliance.get("/v1/audit/public-key").expect_status(200).text())
        .expect("written");
    let key = key.display().to_string();
    let verified = appliance.cli(&["audit", "verify", "--dir", &trail, "--public-key", &key]);
    assert!(verified.status.success(), "{verified:?}");
    appliance.kill();
}

#[test]
fn one_operator_alone_does_not_use_up_what_is_kept_for_closing() {
    let (mut appliance, _disk) = on_small_disk();
    leave(&appliance, 3 << 20);
    wait_until("a full log", || encrypt(&appliance, SERVICE).status == 503);
    appliance.change_config(|config| {
        let users = config["policy"]["roles"]["operator"]["users"].as_array_mut().expect("users");
        users.push(i64::from(OTHER.uid).into());
    });
    appliance.signal(nix::sys::signal::Signal::SIGHUP);
    wait_until("the second operator's right", || {
        let asked = OTHER.asks(&appliance, "GET", "/v1/keys/other", None);
        asked.status != 403 && appliance.log().contains("loaded anew")
    });
    let suspend = json!({});
    let refused = (0..20_000)
        .map(|_| appliance.post("/v1/keys/payments/suspend", &suspend))
        .find(|reply| reply.status == 503);
    refused.expect("its part has an end").expect_problem(503, "trail-unavailable");
    let reply = OTHER.asks(&appliance, "POST", "/v1/keys/other/suspend", Some(&suspend));
    reply.expect_status(200);
    appliance.kill();
}

#[test]
fn a_lock_comes_before_its_entry_where_nothing_can_be_written() {
    let (appliance, _disk) = {
        let mut appliance = appliance(|_| {});
        appliance.start();
        appliance.post("/v1/init", &json!({})).expect_status(201);
        appliance.create_shared_key("payments");
        (appliance, ())
    };
    let (trail, away) = (appliance.trail(), appliance.path("away"));
    std::fs::rename(&trail, &away).expect("moved");
    wait_until("a log that is not there", || encrypt(&appliance, SERVICE).status == 503);
    let locked = appliance.post("/v1/lock", &json!({ "reason": "key-compromise" }));
    assert_eq!(locked.expect_status(200).json()["state"], "locked");
    let custody = appliance.get("/v1/status").expect_status(200).json();
    assert_eq!(custody["state"], "locked");
    std::fs::rename(&away, &trail).expect("moved back");
    wait_until("the entries that were owed", || {
        lines(&appliance, "appliance:lock", "outcome").len() == 1
    });
    let intent = &lines(&appliance, "appliance:lock", "intent")[0];
    let outcome = &lines(&appliance, "appliance:lock", "outcome")[0];
    assert_eq!(outcome["of"], intent["seq"]);
    assert_eq!((&outcome["result"], &intent["reason"]), (&json!("done"), &json!("key-compromise")));
}

/// The store's disk has one principal's part as well.
#[test]
fn one_principal_stores_so_many_records_a_day_and_the_others_as_many() {
    let mut appliance = appliance(|config| {
        let limits: toml::Table = "records_per_day_per_uid = 20".parse().expect("TOML");
        config.insert("limits".to_owned(), limits.into());
    });
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_shared_key("payments");
    let put = |user: User, name: &str| {
        let body = json!({ "key": "payments", "plaintext": "eA==" });
        user.asks(&appliance, "PUT", &format!("/v1/secrets/{name}"), Some(&body))
    };
    let stored = (0..100).map(|at| put(SERVICE, &format!("s{at}"))).take_while(|r| r.status == 201);
    assert_eq!(stored.count(), 20);
    // In the place of one is no way round it.
    let refused = put(SERVICE, "s0");
    refused.expect_problem(429, "record-budget");
    assert!(refused.header("retry-after").is_some());
    put(OTHER, "mine").expect_status(201);
    SERVICE.asks(&appliance, "POST", "/v1/secrets/s0/reveal", Some(&json!({}))).expect_status(200);
}

#[test]
fn one_principal_s_part_of_the_log_has_an_end_and_the_others_have_theirs() {
    let mut appliance = appliance(|config| {
        let audit = config["audit"].as_table_mut().expect("a table");
        audit.insert("bytes_per_day_per_principal".to_owned(), 100_000.into());
    });
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_shared_key("payments");
    let used = (0..1000).map(|_| encrypt(&appliance, SERVICE)).find(|reply| reply.status != 200);
    let refused = used.expect("100 kB are few");
    refused.expect_problem(429, "audit-budget");
    let wait: u32 = refused.header("retry-after").expect("a time").parse().expect("seconds");
    assert!((1..=86_400).contains(&wait), "{wait}");
    encrypt(&appliance, OTHER).expect_status(200);
    let of_it = |line: &&Value| line["uid"] == SERVICE.uid;
    let all = trail_lines(&appliance.trail());
    let bytes: usize = all.iter().filter(of_it).map(|line| line.to_string().len()).sum();
    assert!((80_000..120_000).contains(&bytes), "{bytes}");
    assert!(all.iter().filter(of_it).any(|line| line["code"] == "audit-budget"));
    // Whoever closes something is not held back by it.
    while appliance.get("/v1/keys/payments").status == 200 {}
    appliance.get("/v1/keys/payments").expect_problem(429, "audit-budget");
    appliance.post("/v1/keys/payments/suspend", &json!({})).expect_status(200);
    appliance.post("/v1/lock", &json!({})).expect_status(200);
}
