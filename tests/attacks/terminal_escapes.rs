//! Attacker: whoever wrote a file that root looks at, or answers in the daemon's place, and would drive root's
//! terminal by what is printed: titles, colours, answers typed by the terminal itself, text that hides text.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::appliance::Appliance;
use crate::backup::{backup, made, said, text};

/// A title, an erased screen by C1, a deletion, text from right to left, a line that is begun again.
const HOSTILE: &str = "\u{1b}]0;owned\u{7}\u{9b}2J\u{7f}\u{202e}\u{2066}\rGOOD";

/// Nothing on either stream drives a terminal.
#[track_caller]
fn expect_harmless(what: &str, output: &Output) {
    for stream in [&output.stdout, &output.stderr] {
        let shown = String::from_utf8_lossy(stream);
        let drives = |c: &char| {
            (c.is_control() && !matches!(c, '\n' | '\t'))
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        };
        let found: Vec<char> = shown.chars().filter(drives).collect();
        assert!(found.is_empty(), "{what}: {found:?} in {shown:?}");
    }
}

/// A backup with a manifest that somebody changed, whole as an archive.
fn with_manifest(file: &Path, to: &Path, change: impl FnOnce(&mut Value)) {
    let mut parts: Vec<(String, Vec<u8>)> = Vec::new();
    let mut archive = tar::Archive::new(std::fs::File::open(file).expect("there"));
    for entry in archive.entries().expect("entries") {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a path").display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("readable");
        parts.push((name, bytes));
    }
    let manifest = parts.iter_mut().find(|(name, _)| name == "manifest.json").expect("a manifest");
    let mut document: Value = serde_json::from_slice(&manifest.1).expect("JSON");
    change(&mut document);
    manifest.1 = document.to_string().into_bytes();
    let mut builder = tar::Builder::new(std::fs::File::create(to).expect("made"));
    for (name, bytes) in parts {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).expect("a path");
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        builder.append(&header, bytes.as_slice()).expect("appended");
    }
    builder.into_inner().expect("written").sync_all().expect("synced");
}

#[test]
fn a_backups_manifest_is_checked_for_form_and_drives_no_terminal() {
    let appliance = Appliance::new();
    let (file, changed) = (made(&appliance), appliance.path("changed.backup"));
    for member in ["/program", "/appliance", "/trail/id", "/trail/head", "/parts/0/name"] {
        with_manifest(&file, &changed, |manifest| {
            *manifest.pointer_mut(member).expect("a member") = HOSTILE.into();
        });
        for form in
            [&["verify", text(&changed)][..], &["verify", text(&changed), "--output", "json"]]
        {
            let verified = backup(&appliance, form);
            expect_harmless(member, &verified);
            assert_eq!(verified.status.code(), Some(1), "{member}: {}", said(&verified));
            let why = said(&verified);
            assert!(why.contains("was not written by Strongroom"), "{member}: {why}");
        }
    }
}

#[test]
fn names_of_files_and_lines_of_a_trail_drive_no_terminal() {
    let appliance = Appliance::new();
    let public = appliance.path("trail.pem");
    let pem = appliance.get("/v1/audit/public-key").expect_status(200).text();
    std::fs::write(&public, pem).expect("written");
    let from = appliance.trail().join("trail-00000000000000000001.jsonl");
    let lines = std::fs::read_to_string(from).expect("readable");
    let first: Value = serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
    let id = first["trail"].as_str().expect("a text");
    let hostile: PathBuf = appliance.path(&format!("x{HOSTILE}\nsound\n"));
    let id_in_line = serde_json::to_string(&format!("{HOSTILE}\nsound")).expect("JSON");
    let spliced = lines.replace(&format!("\"{id}\""), &id_in_line);
    std::fs::write(&hostile, lines.lines().next().expect("a line").to_owned() + "\n" + &spliced)
        .expect("written");
    let public = public.display().to_string();
    let program = env!("CARGO_BIN_EXE_strongroom");
    for form in ["text", "json"] {
        let mut verify = Command::new(program);
        verify.args(["audit", "verify", "--public-key", &public, "--output", form]).arg(&hostile);
        let verified = verify.output().expect("it starts");
        expect_harmless("a trail", &verified);
        assert_eq!(verified.status.code(), Some(1), "{}", said(&verified));
        let forged = said(&verified).lines().any(|line| line == "sound");
        assert!(!forged, "a verdict of the file's own: {}", said(&verified));
        for command in
            [&["backup", "verify"][..], &["backup", "restore"], &["encrypt", "--public-key"]]
        {
            let mut refused = Command::new(program);
            refused.args(command).arg(&hostile).args(["--output", form]);
            if command[0] == "backup" {
                refused.arg("--config").arg(appliance.config_file());
                refused.arg("--scratch").arg(appliance.path(""));
            }
            let refused = refused.env("STRONGROOM_SOCKET", appliance.socket()).output();
            expect_harmless(command[1], &refused.expect("it starts"));
        }
    }
    let wrong = Command::new(program).arg(format!("--{HOSTILE}")).output().expect("it starts");
    expect_harmless("an argument", &wrong);
}

#[test]
fn policy_texts_and_configurations_drive_no_terminal() {
    let appliance = Appliance::prepared(|_| {});
    let policy = appliance.path("policy");
    std::fs::create_dir(&policy).expect("made");
    let program = env!("CARGO_BIN_EXE_strongroom");
    let texts = [
        format!("permit (principal == Role::\"{HOSTILE}\", action, resource); nonsense {HOSTILE}"),
        format!(
            "@id(\"{HOSTILE}\") permit (principal, action, resource) when {{ context.{HOSTILE} }};"
        ),
    ];
    for content in texts {
        std::fs::write(policy.join("a.cedar"), &content).expect("written");
        std::fs::write(policy.join(format!("b{HOSTILE}.cedar")), &content).expect("written");
        for form in ["text", "json"] {
            let mut check = Command::new(program);
            check.args(["policy", "check", "--output", form, "--dir"]).arg(&policy);
            let checked = check.output().expect("it starts");
            expect_harmless("a policy", &checked);
            assert_eq!(checked.status.code(), Some(1), "{}", said(&checked));
        }
    }
    let config = appliance.path("hostile.toml");
    std::fs::write(&config, format!("[token]\nlabel = 3 # {HOSTILE}\n")).expect("written");
    for command in [&["config", "check"][..], &["config", "show"], &["doctor"]] {
        let mut check = Command::new(program);
        let checked = check.args(command).arg("--config").arg(&config).output().expect("it starts");
        expect_harmless("a configuration", &checked);
    }
}

/// Somebody in the daemon's place, who answers every request with this.
fn answering(path: &Path, status: &str, kind: &str, body: String) {
    let listener = UnixListener::bind(path).expect("bound");
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer);
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(body.as_bytes());
        }
    });
}

#[test]
fn what_answers_in_the_daemons_place_drives_no_terminal() {
    let place = tempfile::tempdir().expect("a directory");
    let document = json!({
        "title": HOSTILE, "detail": HOSTILE, "code": HOSTILE, "next": HOSTILE, "request_id": HOSTILE,
        "state": HOSTILE, "checks": [{ "name": HOSTILE, "result": "fail", "detail": HOSTILE }],
        "lines": [{ "seq": 1, "kind": HOSTILE, HOSTILE: HOSTILE }], "keys": [{ HOSTILE: HOSTILE }],
        "broken": [HOSTILE],
    });
    // C1 and the marks of direction may stand in JSON as they are.
    let document = document.to_string();
    assert!(document.contains('\u{9b}') && document.contains('\u{202e}'));
    let answers = [
        ("bad", "400 Bad Request", "application/problem+json", document.clone()),
        ("good", "200 OK", "application/json", document),
        ("raw", "500 Oops", "text/plain", HOSTILE.to_owned()),
        ("pem", "200 OK", "application/x-pem-file", HOSTILE.to_owned()),
    ];
    for (name, status, kind, body) in answers {
        let socket = place.path().join(name);
        answering(&socket, status, kind, body);
        let commands: [&[&str]; 8] = [
            &["status"],
            &["doctor"],
            &["key", "list"],
            &["key", "show", "k"],
            &["secret", "list"],
            &["audit", "public-key"],
            &["lock"],
            &["master", "status"],
        ];
        for command in commands {
            for form in ["text", "json"] {
                let mut asks = Command::new(env!("CARGO_BIN_EXE_strongroom"));
                asks.args(command).args(["--output", form, "--timeout", "5"]);
                let output = asks.env("STRONGROOM_SOCKET", &socket).output().expect("it starts");
                expect_harmless(&format!("{name}: {command:?} {form}"), &output);
            }
        }
    }
}
