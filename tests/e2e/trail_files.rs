//! The files of a real daemon's trail: whole, damaged in every way, and after the daemon was killed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::acts::{base64, decrypt, encrypt, events, reveal, trail_lines, trail_texts};
use crate::appliance::{Appliance, wait_until};

/// A trail that was copied from a daemon, and what an auditor has to judge it by.
struct Evidence {
    directory: tempfile::TempDir,
    lines: Vec<String>,
    head: String,
}

impl Evidence {
    /// A trail with a few dozen lines of a daemon that was stopped in order.
    fn collect() -> Self {
        let (mut appliance, head, key) = worked();
        appliance.stop();
        let text = trail_texts(&appliance.trail()).concat();
        let lines = text.lines().map(str::to_owned).collect();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("key.pem"), key).unwrap();
        Self { directory, lines, head }
    }

    /// What `audit verify` says of these lines: exit code, and findings as (kind, line).
    fn judge(&self, lines: &[String], head: Option<&str>) -> (i32, Vec<(String, u64)>) {
        let trail = self.directory.path().join("trail");
        let _ = std::fs::remove_dir_all(&trail);
        std::fs::create_dir(&trail).unwrap();
        let text = lines.join("\n") + "\n";
        std::fs::write(trail.join("trail-00000000000000000001.jsonl"), text).unwrap();
        let output = verify(&trail, &self.directory.path().join("key.pem"), head);
        findings(&output)
    }

    /// Expects verification to fail with this finding among what it names.
    #[track_caller]
    fn expect(&self, lines: &[String], head: Option<&str>, kind: &str, line: usize) {
        let (code, found) = self.judge(lines, head);
        assert!(found.contains(&(kind.to_owned(), line as u64)), "{kind} in {line}: {found:?}");
        assert_eq!(code, 1);
    }
}

/// An appliance that has done things; its trail's head as the status shows it, and the public key.
fn worked() -> (Appliance, String, Vec<u8>) {
    let appliance = Appliance::new();
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    for _ in 0..8 {
        decrypt(&appliance, "k", &ciphertext, None).expect_status(200);
    }
    decrypt(&appliance, "k", &base64([7; 256]), None).expect_status(422);
    crate::acts::put_secret(&appliance, "s", "k", "y").expect_status(201);
    let status = appliance.get("/v1/status").json();
    let head = status["trail"]["head"].as_str().unwrap().to_owned();
    let key = appliance.get("/v1/audit/public-key").expect_status(200).body.clone();
    (appliance, head, key)
}

/// The command, offline: no daemon answers on the socket that it is given.
fn verify(trail: &Path, key: &Path, head: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    command.args(["--socket", "/nowhere", "--output", "json", "audit", "verify", "--dir"]);
    command.arg(trail).arg("--public-key").arg(key);
    if let Some(head) = head {
        command.args(["--head", head]);
    }
    command.output().unwrap()
}

fn findings(output: &Output) -> (i32, Vec<(String, u64)>) {
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let found = report["findings"].as_array().unwrap().iter();
    let found = found
        .map(|one| (one["finding"].as_str().unwrap().to_owned(), one["line"].as_u64().unwrap()));
    (output.status.code().unwrap(), found.collect())
}

#[test]
fn every_change_to_the_files_is_named_and_an_untouched_trail_is_sound() {
    let evidence = Evidence::collect();
    let whole = &evidence.lines;
    let head = Some(evidence.head.as_str());
    assert!(whole.len() > 25, "{} lines", whole.len());
    assert_eq!(evidence.judge(whole, None), (0, vec![]));
    assert_eq!(evidence.judge(whole, head), (0, vec![]));

    let mut flipped = whole.clone();
    flipped[11] = flipped[11].replace("\"caller\":\"unix:", "\"caller\":\"unix:1");
    assert_ne!(flipped[11], whole[11]);
    evidence.expect(&flipped, None, "flipped", 12);

    let mut dropped = whole.clone();
    dropped.remove(14);
    evidence.expect(&dropped, None, "dropped", 15);

    let mut reordered = whole.clone();
    reordered.swap(14, 15);
    evidence.expect(&reordered, None, "reordered", 15);

    let known: usize = evidence.head.split(':').next().unwrap().parse().unwrap();
    evidence.expect(&whole[..known - 3], head, "truncated", known);

    // An intent whose outcome was taken away from the end.
    let open = whole.iter().rposition(|line| line.contains("\"kind\":\"intent\"")).unwrap();
    evidence.expect(&whole[..=open], None, "intent-without-outcome", open + 1);

    // A line of another appliance's trail, put in and put in the place of one.
    let other = Evidence::collect();
    let mut spliced = whole.clone();
    spliced.insert(12, other.lines[12].clone());
    evidence.expect(&spliced, None, "spliced", 13);
    let mut spliced = whole.clone();
    spliced[12] = other.lines[12].clone();
    evidence.expect(&spliced, None, "spliced", 13);
    // A whole trail of another appliance: its checkpoints are signed by another key.
    let last = other.lines.iter().rposition(|line| line.contains("\"kind\":\"checkpoint\""));
    evidence.expect(&other.lines, None, "bad-signature", last.unwrap() + 1);
}

#[test]
fn a_copy_of_a_trail_in_use_verifies_and_so_does_an_export() {
    let (appliance, head, key) = worked();
    let pem = appliance.path("key.pem");
    std::fs::write(&pem, key).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    command.args(["audit", "verify", "--in-use", "--head", &head, "--public-key"]);
    let output = command.arg(&pem).arg("--dir").arg(appliance.trail()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let (to, exported) = (appliance.path("export.jsonl"), appliance.path("exported.pem"));
    let (to, exported) = (to.to_str().unwrap(), exported.to_str().unwrap());
    let output = appliance.cli(&["audit", "export", "--to", to, "--public-key", exported]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read(exported).unwrap(), std::fs::read(&pem).unwrap());
    let again = [appliance.path("again.jsonl"), appliance.path("again.pem")];
    let [file, key] = again.each_ref().map(|path| path.to_str().unwrap());
    let json = ["audit", "export", "--output", "json", "--to", file, "--public-key", key];
    let document = appliance.cli(&json).stdout;
    let document: serde_json::Value = serde_json::from_slice(&document).expect("one document");
    assert_eq!((&document["file"], &document["public_key"]), (&file.into(), &key.into()));
    let lines = std::fs::read_to_string(file).unwrap().lines().count();
    assert_eq!(document["lines"], lines, "{document}");
    let output = appliance.cli(&["audit", "verify", to, "--public-key", exported, "--head", &head]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// The one file of a short trail.
fn only_file(appliance: &Appliance) -> PathBuf {
    appliance.trail().join("trail-00000000000000000001.jsonl")
}

#[test]
fn a_daemon_does_not_start_over_a_cut_or_rolled_back_trail_unless_it_is_told_to() {
    let (mut appliance, _, key) = worked();
    let old = std::fs::read_to_string(only_file(&appliance)).unwrap();
    decrypt(&appliance, "k", &base64([9; 256]), None).expect_status(422);
    appliance.stop();
    let whole = std::fs::read_to_string(only_file(&appliance)).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let cut = lines[..lines.len() - 4].join("\n") + "\n";
    let mut damaged = lines.clone();
    damaged.remove(lines.len() - 3);
    let damaged = damaged.join("\n") + "\n";
    for (text, why) in [(&cut, "ends at line"), (&old, "ends at line"), (&damaged, "damaged")] {
        std::fs::write(only_file(&appliance), text).unwrap();
        let from = appliance.log().len();
        appliance.spawn();
        let status = appliance.wait_for_end();
        let log = appliance.log()[from..].to_owned();
        assert!(!status.success() && log.contains(why), "{status} {log}");
        assert!(log.contains("on_break"), "it says what can be done: {log}");
        assert_eq!(&std::fs::read_to_string(only_file(&appliance)).unwrap(), text);
    }
    appliance.change_config(|config| {
        let audit = config["audit"].as_table_mut().expect("a table");
        audit.insert("on_break".to_owned(), "record".into());
    });
    std::fs::write(only_file(&appliance), &cut).unwrap();
    appliance.start();
    decrypt(&appliance, "k", &base64([9; 256]), None).expect_status(422);
    appliance.stop();
    let told = events(&appliance.trail());
    assert!(told.iter().any(|event| event == "break-recorded"), "{told:?}");
    // Recorded is not forgotten: what is known of it elsewhere shows the break for ever.
    let last = lines.iter().rev().find(|line| line.contains("\"kind\":\"checkpoint\"")).unwrap();
    let checkpoint: Value = serde_json::from_str(last).unwrap();
    let head = format!("{}:{}", checkpoint["covers"], checkpoint["head"].as_str().unwrap());
    let pem = appliance.path("key.pem");
    std::fs::write(&pem, key).unwrap();
    let (code, found) = findings(&verify(&appliance.trail(), &pem, Some(&head)));
    assert_eq!(code, 1);
    assert!(found.iter().any(|(kind, _)| kind == "rolled-back"), "{found:?}");
    appliance.start();
}

/// What a client was told by a daemon that was then killed.
#[derive(Default)]
struct Told {
    /// Names of secrets whose storing was acknowledged.
    stored: Vec<String>,
    /// Request ids of all results that came.
    requests: Vec<String>,
}

/// Stores and opens secrets, one after the other, until the daemon is gone.
fn work_until_killed(socket: &Path, round: usize, worker: usize, done: &AtomicUsize) -> Told {
    let mut told = Told::default();
    for number in 0.. {
        let name = format!("r{round}-w{worker}-{number}");
        let body = json!({ "key": "k", "plaintext": base64(&name) }).to_string();
        let Some((201, id)) = ask(socket, "PUT", &format!("/v1/secrets/{name}"), &body) else {
            return told;
        };
        done.fetch_add(1, Ordering::Relaxed);
        told.stored.push(name.clone());
        told.requests.push(id);
        let Some((200, id)) = ask(socket, "POST", &format!("/v1/secrets/{name}/reveal"), "{}")
        else {
            return told;
        };
        told.requests.push(id);
    }
    told
}

/// Status and request id of a reply; `None` where none came.
fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    let status = reply.split(' ').nth(1)?.parse().ok()?;
    let id = reply.lines().find_map(|line| line.strip_prefix("x-request-id: "))?;
    Some((status, id.trim().to_owned()))
}

#[test]
fn a_killed_daemon_loses_nothing_that_was_acknowledged_and_no_line() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let pem = appliance.path("key.pem");
    std::fs::write(&pem, &appliance.get("/v1/audit/public-key").body).unwrap();
    let mut told = Told::default();
    for (round, delay) in [300, 0, 2100, 900].into_iter().enumerate() {
        let (socket, done) = (appliance.socket(), AtomicUsize::new(0));
        let all: Vec<Told> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|worker| {
                    scope.spawn({
                        let (socket, done) = (&socket, &done);
                        move || work_until_killed(socket, round, worker, done)
                    })
                })
                .collect();
            wait_until("some secrets", || done.load(Ordering::Relaxed) >= 8);
            std::thread::sleep(std::time::Duration::from_micros(delay));
            appliance.kill();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        for one in all {
            told.stored.extend(one.stored);
            told.requests.extend(one.requests);
        }
        // As the kill left it, every result that came has its line on disk already.
        let lines = trail_lines(&appliance.trail());
        let written: std::collections::HashSet<&str> = lines
            .iter()
            .filter(|line| line["kind"] == "intent")
            .filter_map(|line| line["request"].as_str())
            .collect();
        for request in &told.requests {
            assert!(written.contains(request.as_str()), "no line for {request}");
        }
        appliance.start();
        assert_eq!(appliance.get("/v1/status").json()["state"], "ready");
    }
    for name in &told.stored {
        let opened = reveal(&appliance, name);
        assert_eq!(opened.expect_status(200).json()["plaintext"], base64(name));
    }
    appliance.stop();
    assert_eq!(findings(&verify(&appliance.trail(), &pem, None)), (0, vec![]));
}
