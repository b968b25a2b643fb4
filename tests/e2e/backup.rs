//! Backups: made under load, verified, put back; and everything that keeps a bad one from passing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::acts::{
    base64, decrypt, encrypt, events, expect_plaintext, put_secret, reveal, step, trail_lines,
};
use crate::appliance::{Appliance, wait_until};
use crate::raw_store::{KEY_VERSION, Raw, SECRET};

/// The real command, with this appliance's configuration and token.
pub fn command(appliance: &Appliance, arguments: &[&str]) -> Command {
    let (name, conf) = appliance.token().environment();
    let mut command = Command::new(appliance.program());
    command
        .arg("backup")
        .args(arguments)
        .arg("--config")
        .arg(appliance.config_file())
        .arg("--scratch")
        .arg(appliance.config_file().parent().expect("a directory"))
        .env("STRONGROOM_SOCKET", appliance.socket())
        .env(name, conf)
        .stdin(Stdio::null());
    command
}

pub fn backup(appliance: &Appliance, arguments: &[&str]) -> Output {
    command(appliance, arguments).output().expect("it starts")
}

pub fn said(output: &Output) -> String {
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{stdout}{stderr}")
}

#[track_caller]
pub fn expect_done(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    said(output)
}

#[track_caller]
pub fn expect_refused(output: &Output, why: &str) {
    assert_eq!(output.status.code(), Some(1), "{}", said(output));
    assert!(said(output).contains(why), "{why}: {}", said(output));
}

/// Makes one and has it verified; its path.
pub fn made(appliance: &Appliance) -> PathBuf {
    let path = appliance.path("made.backup");
    let path_text = path.display().to_string();
    let output = backup(appliance, &["create", "--to", &path_text, "--verify"]);
    assert!(expect_done(&output).contains("GOOD"));
    path
}

/// What an operator does before a restore: moves away what lies there.
pub fn move_away(appliance: &Appliance) {
    for name in ["store", "trail"] {
        let free = (1..).map(|number| appliance.path(&format!("{name}.old-{number}")));
        let free = free.into_iter().find(|path| !path.exists()).expect("a free name");
        std::fs::rename(appliance.path(name), free).expect("moved");
    }
}

/// Moves away what lies there, and restores.
pub fn restored_over(appliance: &Appliance, file: &Path) -> Output {
    move_away(appliance);
    backup(appliance, &["restore", text(file)])
}

/// Whether nothing is in a directory, or there is none.
pub fn is_empty(path: &Path) -> bool {
    std::fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none())
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// An appliance that was never started, beside a copy of this one's token.
fn clone_of(appliance: &Appliance) -> Appliance {
    let clone = Appliance::prepared(|_| {});
    std::fs::remove_dir_all(clone.token().tokens()).expect("removed");
    let copy = Command::new("cp")
        .arg("-r")
        .arg(appliance.token().tokens())
        .arg(clone.token().tokens())
        .status();
    assert!(copy.expect("cp runs").success());
    clone
}

#[track_caller]
fn expect_sound_trail(appliance: &Appliance, public_key: &Path) {
    let verified = Command::new(env!("CARGO_BIN_EXE_strongroom"))
        .args(["audit", "verify", "--dir"])
        .arg(appliance.trail())
        .arg("--public-key")
        .arg(public_key)
        .output()
        .expect("it starts");
    expect_done(&verified);
}

/// Writes the trail's public key where it outlives the daemon.
fn public_key(appliance: &Appliance) -> PathBuf {
    let path = appliance.path("trail.pem");
    let pem = appliance.get("/v1/audit/public-key").expect_status(200).text();
    std::fs::write(&path, pem).expect("written");
    path
}

#[test]
fn a_backup_under_load_has_all_that_was_acknowledged_before_and_comes_back_elsewhere() {
    let mut appliance = Appliance::new();
    for key in ["k", "old", "gone"] {
        appliance.create_key(key);
    }
    let of_first = encrypt(&appliance, "k", "of version 1");
    step(&appliance, "k", "rotate", json!({})).expect_status(200);
    step(&appliance, "old", "compromise", json!({})).expect_status(200);
    put_secret(&appliance, "deleted", "k", "x").expect_status(201);
    appliance.delete("/v1/secrets/deleted", &json!({})).expect_status(204);
    let public_key = public_key(&appliance);
    let file = appliance.path("made.backup");

    // Writers go on all the time; what each was told is noted after it was told.
    let (stop, told) = (AtomicBool::new(false), Mutex::new(BTreeMap::<String, usize>::new()));
    let writes = AtomicUsize::new(0);
    let (before, output) = std::thread::scope(|scope| {
        for writer in 0..3 {
            let (appliance, stop, told, writes) = (&appliance, &stop, &told, &writes);
            scope.spawn(move || {
                let mut round = 1;
                while !stop.load(Ordering::Acquire) {
                    let name = format!("s{writer}-{}", round % 20);
                    let value = format!("{name} {round}");
                    let put = put_secret(appliance, &name, "k", &value);
                    assert!(matches!(put.status, 200 | 201));
                    told.lock().expect("held").insert(name, round);
                    writes.fetch_add(1, Ordering::AcqRel);
                    round += 1;
                }
            });
        }
        wait_until("some writes", || writes.load(Ordering::Acquire) > 100);
        // A new master key comes in the middle of it, too.
        appliance.post("/v1/master/rotate", &json!({ "force": true })).expect_status(200);
        let before = told.lock().expect("held").clone();
        let output = backup(&appliance, &["create", "--to", text(&file)]);
        stop.store(true, Ordering::Release);
        (before, output)
    });
    let said = expect_done(&output);
    assert!(said.contains("GOOD: every key in it was opened"), "{said}");
    assert_eq!(std::fs::metadata(&file).expect("there").permissions_mode() & 0o777, 0o600);
    // It can be listed with what every system has.
    let listed = Command::new("tar").arg("-tf").arg(&file).output().expect("tar runs");
    let listed = String::from_utf8(listed.stdout).expect("text");
    for part in ["store/000001\n", "trail/trail-00000000000000000001.jsonl\n", "manifest.json\n"] {
        assert!(listed.contains(part), "{listed}");
    }
    appliance.stop();

    let mut restored = clone_of(&appliance);
    expect_done(&backup(&restored, &["restore", text(&file)]));
    restored.start();
    assert_eq!(restored.get("/v1/status").json()["state"], "ready");
    wait_until("the trail to be told", || {
        events(&restored.trail()).iter().any(|event| event == "restored")
    });
    expect_plaintext(&decrypt(&restored, "k", &of_first, Some(1)), "of version 1");
    assert_eq!(restored.get("/v1/keys/old").json()["state"], "compromised");
    restored.get("/v1/secrets/deleted").expect_problem(404, "not-found");
    for (name, round) in &before {
        let reply = reveal(&restored, name).expect_status(200).json();
        let plaintext = reply["plaintext"].as_str().expect("text").to_owned();
        let rounds = (*round..).step_by(20).take(10_000);
        let found = rounds.map(|round| base64(format!("{name} {round}"))).any(|p| p == plaintext);
        assert!(found, "{name} is as acknowledged or newer");
    }
    // A deleted secret goes on counting where it was.
    let put = put_secret(&restored, "deleted", "k", "again").expect_status(201).json();
    assert_eq!(put["revision"], 3);
    appliance_goes_on(&mut restored);
    restored.stop();
    expect_sound_trail(&restored, &public_key);
    let lines = trail_lines(&restored.trail());
    let of_restore = lines.iter().find(|line| line["event"] == "restored").expect("it is told");
    let head = of_restore["line"].as_u64().expect("a line");
    let interrupted = |line: &&serde_json::Value| line["result"] == "interrupted";
    let between = lines.iter().skip(head as usize).take_while(|line| line["event"] != "restored");
    // A rotation that was under way goes on as soon as custody is there, which the note is opened with.
    let of_the_start = [
        ["segment", "start", "config-loaded", "policy-loaded"],
        ["token-lost", "token-back", "master-in-use", "rotation-done"],
        ["lines-adopted", "rollback-accepted", "checkpoint-adopted", "custody-state-lost"],
    ]
    .concat();
    for line in between {
        let of_the_start = of_the_start.iter().any(|event| line["event"] == *event);
        assert!(interrupted(&line) || of_the_start, "{line}");
    }
    assert_eq!(events(&restored.trail()).iter().filter(|event| *event == "restored").count(), 1);
}

/// Whatever an appliance does, this one does, and still after a restart.
fn appliance_goes_on(appliance: &mut Appliance) {
    step(appliance, "k", "rotate", json!({})).expect_status(200);
    let sealed = encrypt(appliance, "k", "new");
    appliance.create_key("after");
    appliance.restart();
    expect_plaintext(&decrypt(appliance, "k", &sealed, None), "new");
}

trait Mode {
    fn permissions_mode(&self) -> u32;
}

impl Mode for std::fs::Metadata {
    fn permissions_mode(&self) -> u32 {
        std::os::unix::fs::PermissionsExt::mode(&self.permissions())
    }
}

/// Where the contents of a part begin in the archive.
fn offset_of(archive: &[u8], name: &str) -> usize {
    let block = archive.chunks(512).position(|block| block.starts_with(name.as_bytes()));
    (block.unwrap_or_else(|| panic!("no {name}")) + 1) * 512
}

#[test]
fn one_flipped_byte_makes_it_bad_and_is_named_and_so_is_a_cut_end() {
    let appliance = Appliance::new();
    appliance.create_key("k");
    put_secret(&appliance, "s", "k", "x").expect_status(201);
    let file = made(&appliance);
    let whole = std::fs::read(&file).expect("readable");
    let bent = appliance.path("bent.backup");
    let verify_with = |bytes: &[u8]| {
        std::fs::write(&bent, bytes).expect("written");
        backup(&appliance, &["verify", text(&bent)])
    };
    let in_store = offset_of(&whole, "store/000001") + 200;
    let in_trail = offset_of(&whole, "trail/") + 300;
    let manifest = offset_of(&whole, "manifest.json");
    let id = whole[manifest..].windows(9).position(|window| window == b"appliance").expect("id");
    for (at, named) in [
        (in_store, "store/000001"),
        (in_trail, "trail/trail-00000000000000000001.jsonl"),
        (manifest + id + 14, "manifest.json"),
        (offset_of(&whole, "manifest.sig") + 5, "manifest.json"),
        (manifest - 512 + 3, "damaged at byte"),
        (whole.len() - 3, "damaged at byte"),
    ] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        expect_refused(&verify_with(&bytes), named);
    }
    for cut in [whole.len() - 1, whole.len() - 1024, in_trail, 700] {
        expect_refused(&verify_with(&whole[..cut]), "cut off");
    }
    expect_refused(&verify_with(b""), "no backup");
    expect_refused(&verify_with(&[7; 2000]), "no backup");
    expect_done(&verify_with(&whole));
}

#[test]
fn what_does_not_open_is_named_by_its_address_and_all_of_it_is() {
    let mut appliance = Appliance::new();
    for key in ["a", "b", "c"] {
        appliance.create_key(key);
    }
    step(&appliance, "b", "rotate", json!({})).expect_status(200);
    put_secret(&appliance, "s", "a", "x").expect_status(201);
    put_secret(&appliance, "t", "a", "kept").expect_status(201);
    appliance.stop();
    let raw = Raw::open(&appliance);
    raw.damage(KEY_VERSION, "b/0000000002");
    raw.damage(KEY_VERSION, "c/0000000001");
    raw.damage(SECRET, "s");
    drop(raw);
    appliance.start();
    let file = appliance.path("made.backup");
    let created = backup(&appliance, &["create", "--to", text(&file)]);
    expect_refused(&created, "NOT GOOD: 3");
    for address in ["key-version/b/0000000002", "key-version/c/0000000001", "secret/s"] {
        assert!(said(&created).contains(&format!("BAD        {address}")), "{}", said(&created));
    }
    appliance.stop();
    let mut restored = clone_of(&appliance);
    expect_refused(&backup(&restored, &["restore", text(&file)]), "nothing was restored");
    assert!(is_empty(&restored.path("store")) && is_empty(&restored.path("trail")));
    expect_done(&backup(&restored, &["restore", text(&file), "--accept-broken"]));
    restored.start();
    assert_eq!(reveal(&restored, "t").json()["plaintext"], base64("kept"));
    reveal(&restored, "s").expect_problem(500, "record-broken");
}

#[test]
fn another_token_cannot_open_it_and_another_appliance_is_not_overwritten() {
    let appliance = Appliance::new();
    appliance.create_key("k");
    let file = made(&appliance);
    // An empty place with a token that holds nothing.
    let empty = Appliance::prepared(|_| {});
    for verb in ["verify", "restore"] {
        expect_refused(&backup(&empty, &[verb, text(&file)]), "is it the right token?");
    }
    assert!(is_empty(&empty.path("store")) && is_empty(&empty.path("trail")), "nothing is left");
    // One whose token and store are another appliance's.
    let mut other = Appliance::new();
    expect_refused(&backup(&other, &["verify", text(&file)]), "is it the right token?");
    other.stop();
    expect_refused(&backup(&other, &["restore", text(&file)]), "is not empty");
    other.start();
    assert_eq!(other.get("/v1/status").json()["state"], "ready");
}

#[test]
fn what_runs_or_lies_there_is_kept_and_what_was_done_since_is_told() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let public_key = public_key(&appliance);
    let file = made(&appliance);
    appliance.create_key("later");
    let refused = backup(&appliance, &["restore", text(&file)]);
    expect_refused(&refused, "is not empty");
    assert!(said(&refused).contains("systemctl stop"), "{}", said(&refused));
    appliance.stop();
    let last = trail_lines(&appliance.trail()).last().expect("lines")["seq"].as_u64();
    for kept in ["store", "trail"] {
        let (place, aside) = (appliance.path(kept), appliance.path("aside"));
        std::fs::rename(&place, &aside).expect("moved");
        expect_refused(&backup(&appliance, &["restore", text(&file)]), "is not empty");
        assert!(is_empty(&place), "nothing was begun");
        let _ = std::fs::remove_dir(&place);
        std::fs::rename(&aside, &place).expect("moved back");
    }
    move_away(&appliance);
    let previous = appliance.path("trail.old-1");
    let restore = ["restore", text(&file), "--previous-trail", text(&previous)];
    let done = expect_done(&backup(&appliance, &restore));
    assert!(done.contains(&format!("to line {}", last.expect("a number"))), "{done}");
    appliance.start();
    appliance.get("/v1/keys/later").expect_problem(404, "not-found");
    appliance.get("/v1/keys/k").expect_status(200);
    wait_until("the trail to be told", || {
        events(&appliance.trail()).iter().any(|event| event == "left-behind")
    });
    appliance.stop();
    expect_sound_trail(&appliance, &public_key);
    let lines = trail_lines(&appliance.trail());
    let left = lines.iter().find(|line| line["event"] == "left-behind").expect("it is told");
    assert_eq!(left["line"].as_u64(), last);
    expect_done(&restored_over(&appliance, &file));
    appliance.start();
    appliance.get("/v1/keys/k").expect_status(200);
}

#[test]
fn two_backups_of_one_name_leave_one_and_no_pieces() {
    let appliance = Appliance::new();
    appliance.create_key("k");
    let file = appliance.path("same.backup");
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        let make = || backup(&appliance, &["create", "--to", text(&file)]);
        let both: Vec<_> = (0..2).map(|_| scope.spawn(make)).collect();
        both.into_iter().map(|one| one.join().expect("it ends")).collect()
    });
    let refused: Vec<&Output> = outputs.iter().filter(|output| !output.status.success()).collect();
    assert_eq!(refused.len(), 1, "{outputs:?}");
    for words in ["is there already", "next: nothing is overwritten: give another name"] {
        assert!(said(refused[0]).contains(words), "{words}: {}", said(refused[0]));
    }
    expect_done(&backup(&appliance, &["verify", text(&file)]));
    let names = std::fs::read_dir(appliance.path("")).expect("readable").flatten();
    assert!(!names.into_iter().any(|it| it.file_name().to_string_lossy().contains(".part-")));
}

#[test]
fn a_restore_that_is_killed_anywhere_is_seen_and_can_be_done_again() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let sealed = encrypt(&appliance, "k", "x");
    let file = made(&appliance);
    appliance.create_key("later");
    appliance.stop();
    move_away(&appliance);
    let places = ["store", "trail"].map(|name| appliance.path(name));
    let mark = places[0].join("unfinished-restore");
    let restore = ["restore", text(&file)];
    let mut begun = 0;
    for round in 0..8 {
        let mut child = command(&appliance, &restore)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        wait_until("its beginning", || mark.exists() || child.try_wait().expect("waits").is_some());
        // Which moment it hits is chance; every one has to be right.
        std::thread::sleep(Duration::from_millis(50 * round));
        child.kill().expect("killed");
        let ended = child.wait().expect("waits");
        let half_done = places.iter().any(|place| place.join("unfinished-restore").exists());
        assert!(!(ended.success() && half_done));
        if half_done {
            begun += 1;
            appliance.spawn();
            assert!(appliance.settled(), "no appliance is started from what is half-done");
            let again = backup(&appliance, &restore);
            expect_refused(&again, "was cut off");
            assert!(said(&again).contains("rm -rf"), "{}", said(&again));
        }
        for place in &places {
            let _ = std::fs::remove_dir_all(place);
        }
    }
    assert!(begun > 0, "not one was hit in its middle");
    expect_done(&backup(&appliance, &restore));
    appliance.start();
    expect_plaintext(&decrypt(&appliance, "k", &sealed, None), "x");
    appliance.get("/v1/keys/later").expect_problem(404, "not-found");
}

#[test]
fn who_may_not_and_what_cannot_be_signed_gets_no_backup() {
    let appliance = Appliance::configured(|config| {
        config["policy"]["roles"].as_table_mut().expect("roles").remove("operator");
    });
    appliance.post("/v1/backup", &json!({})).expect_problem(403, "denied");
    let appliance = Appliance::uninitialised();
    appliance.post("/v1/backup", &json!({})).expect_problem(503, "not-initialised");
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.post("/v1/backup", &json!({ "x": 1 })).expect_problem(400, "malformed");
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    appliance.post("/v1/backup", &json!({})).expect_problem(503, "locked");
    let path = appliance.path("none.backup");
    expect_refused(&backup(&appliance, &["create", "--to", text(&path)]), "locked");
    let left = std::fs::read_dir(appliance.path("")).expect("readable").flatten();
    let left = left.filter(|entry| entry.file_name().to_string_lossy().contains("backup"));
    assert_eq!(left.count(), 0, "nothing half-written is left");
}
