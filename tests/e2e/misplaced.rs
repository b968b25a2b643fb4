//! Directories that are removed, moved or replaced under a running daemon: nothing is done that nobody
//! would find again, and it goes on by itself when they are back.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use crate::acts::{decrypt, encrypt, expect_plaintext, put_secret, reveal, trail_lines};
use crate::appliance::{Appliance, wait_until};

fn furnished() -> (Appliance, String) {
    let appliance = Appliance::new();
    appliance.create_key("k");
    put_secret(&appliance, "s", "k", "value").expect_status(201);
    let ciphertext = encrypt(&appliance, "k", "x");
    (appliance, ciphertext)
}

fn empty_one(path: &Path) {
    std::fs::create_dir(path).expect("made");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).expect("closed");
}

fn move_there(from: &Path, to: &Path) {
    std::fs::rename(from, to).expect("moved");
}

#[test]
fn nothing_is_done_while_the_trail_is_elsewhere() {
    let (mut appliance, ciphertext) = furnished();
    let (trail, aside) = (appliance.trail(), appliance.path("aside"));
    let refused = || {
        decrypt(&appliance, "k", &ciphertext, None).expect_problem(503, "trail-unavailable");
        reveal(&appliance, "s").expect_problem(503, "trail-unavailable");
        put_secret(&appliance, "t", "k", "y").expect_problem(503, "trail-unavailable");
    };
    move_there(&trail, &aside);
    let lines = trail_lines(&aside).len();
    refused();
    // Another one in its place, and a copy of it, are not it either.
    empty_one(&trail);
    refused();
    let copied = std::process::Command::new("cp").arg("-aT").args([&aside, &trail]).status();
    assert!(copied.expect("cp runs").success());
    refused();
    let status = appliance.get("/v1/status").json();
    assert_eq!(status["state"], "trail-unavailable", "{status}");
    let detail = status["detail"].as_str().expect("a text");
    assert!(
        detail.contains(trail.to_str().expect("a path")) && detail.contains("moving"),
        "{detail}"
    );
    std::fs::remove_dir_all(&trail).expect("removed");
    move_there(&aside, &trail);
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
    assert!(trail_lines(&trail).len() > lines);
    appliance.restart();
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
    assert!(!appliance.log().contains("panicked"));
}

/// The newest file of an audit log.
fn newest_file(directory: &Path) -> std::path::PathBuf {
    let files =
        std::fs::read_dir(directory).expect("readable").map(|entry| entry.expect("one").path());
    files.filter(|path| path.extension().is_some_and(|end| end == "jsonl")).max().expect("a file")
}

#[test]
fn a_file_that_is_truncated_in_its_place_is_noticed_and_goes_on_with_its_content() {
    let (mut appliance, ciphertext) = furnished();
    let file = newest_file(&appliance.trail());
    // As logrotate does it: a copy, then the same file is emptied.
    let copy = std::fs::read(&file).expect("readable");
    std::fs::OpenOptions::new().write(true).truncate(true).open(&file).expect("truncated");
    decrypt(&appliance, "k", &ciphertext, None).expect_problem(503, "trail-unavailable");
    assert_eq!(std::fs::metadata(&file).expect("there").len(), 0, "nothing was written behind it");
    let status = appliance.get("/v1/status").json();
    assert_eq!(status["state"], "trail-unavailable", "{status}");
    assert!(status["detail"].as_str().expect("a text").contains("copytruncate"), "{status}");
    // Something else appended to it is no better.
    std::fs::write(&file, [&copy[..], b"{}\n"].concat()).expect("written");
    decrypt(&appliance, "k", &ciphertext, None).expect_problem(503, "trail-unavailable");
    std::fs::write(&file, &copy).expect("written");
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
    appliance.restart();
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
}

#[test]
fn a_trail_that_goes_is_noticed_without_a_request_and_so_is_its_return() {
    let (appliance, _) = furnished();
    let (trail, aside) = (appliance.trail(), appliance.path("aside"));
    let ready = || appliance.get("/v1/health").status == 200;
    assert!(ready());
    move_there(&trail, &aside);
    wait_until("a health that tells", || !ready());
    appliance.wait_for_log(0, "the trail cannot be written; every deed is refused");
    move_there(&aside, &trail);
    wait_until("a health that tells", ready);
}

#[test]
fn a_trail_that_was_removed_is_not_begun_anew() {
    let (mut appliance, ciphertext) = furnished();
    std::fs::remove_dir_all(appliance.trail()).expect("removed");
    decrypt(&appliance, "k", &ciphertext, None).expect_problem(503, "trail-unavailable");
    appliance.kill();
    appliance.spawn();
    assert!(appliance.settled(), "it serves without the trail that it knows of");
    assert!(appliance.log().contains("is known to have been written"), "{}", appliance.log());
}

#[test]
fn nothing_is_changed_while_the_store_is_elsewhere() {
    let (mut appliance, ciphertext) = furnished();
    let (store, aside) = (appliance.path("store"), appliance.path("aside"));
    let refused = || {
        put_secret(&appliance, "t", "k", "y").expect_problem(503, "store-unavailable");
        let body = json!({ "name": "new", "algorithm": "RSA-2048" });
        appliance.post("/v1/keys", &body).expect_problem(503, "store-unavailable");
        let status = appliance.get("/v1/status").json();
        assert_eq!(status["state"], "store-unavailable", "{status}");
        let detail = status["detail"].as_str().expect("a text");
        assert!(detail.contains(store.to_str().expect("a path")), "{detail}");
    };
    move_there(&store, &aside);
    refused();
    empty_one(&store);
    refused();
    // What is known is still served: it lies in what is open, and whoever sends callers elsewhere is told.
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
    let health = appliance.get("/v1/health").expect_status(200).json();
    assert_eq!(health, json!({ "ready": true, "degraded": true, "changes_refused": true }));
    std::fs::remove_dir_all(&store).expect("removed");
    move_there(&aside, &store);
    put_secret(&appliance, "t", "k", "y").expect_status(201);
    appliance.wait_for_state("ready");
    appliance.restart();
    expect_plaintext(&reveal(&appliance, "t"), "y");
}

#[test]
fn a_lock_holds_without_the_store_which_is_told_when_it_is_back() {
    let (mut appliance, ciphertext) = furnished();
    let (store, aside) = (appliance.path("store"), appliance.path("aside"));
    move_there(&store, &aside);
    let stopped = appliance.post("/v1/keys/k/compromise", &json!({}));
    stopped.expect_problem(503, "store-unavailable");
    assert!(stopped.text().contains("`strongroom lock`"), "{}", stopped.text());
    let locked = appliance.post("/v1/lock", &json!({})).expect_status(200).json();
    assert_eq!(locked["state"], "locked", "{locked}");
    let owed = |status: &serde_json::Value| {
        status["detail"].as_str().is_some_and(|detail| detail.contains("could not be told"))
    };
    assert!(owed(&locked), "{locked}");
    decrypt(&appliance, "k", &ciphertext, None).expect_problem(503, "locked");
    reveal(&appliance, "s").expect_problem(503, "locked");
    appliance.post("/v1/unlock", &json!({})).expect_problem(503, "store-unavailable");
    assert_eq!(appliance.get("/v1/status").json()["state"], "locked");
    let told = trail_lines(&appliance.trail());
    let told = told.iter().find(|line| line["event"] == "locked").expect("a line");
    assert_eq!(told["code"], "store-unavailable");
    move_there(&aside, &store);
    wait_until("the record of the lock", || !owed(&appliance.get("/v1/status").json()));
    appliance.restart();
    appliance.wait_for_state("locked");
    let edited = |line: &serde_json::Value| line["event"] == "store-edited";
    assert!(!trail_lines(&appliance.trail()).iter().any(edited), "the store knew of it");
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    expect_plaintext(&reveal(&appliance, "s"), "value");
}
