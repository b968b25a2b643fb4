//! The real binary as an auditor uses it: a real trail, its public key, and no daemon.

#[path = "trail/tools.rs"]
#[allow(dead_code)] // its other users mutate more
mod tools;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use aws_lc_rs::signature::KeyPair;
use strongroom::audit::VerifyKey;

use tools::{Bench, lines, write_lines};

fn verify(arguments: &[&str], paths: &[&Path]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    command.args(["audit", "verify"]).args(arguments).args(paths).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A trail, its directory, and its public key in a file.
async fn trail() -> (Bench, String, String) {
    let bench = Bench::with_trail(12).await;
    let key = bench.directory.path().join("trail.pem");
    let pem = VerifyKey::pem_of_point(bench.key.public_key().as_ref()).unwrap();
    fs::write(&key, pem).unwrap();
    let directory = bench.settings().directory.to_str().unwrap().to_owned();
    (bench, directory, key.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_sound_trail_is_sound_as_a_directory_and_as_one_file() {
    let (bench, directory, key) = trail().await;
    let head = bench.head.to_string();
    let output = verify(&["--public-key", &key, "--head", &head, "--dir", &directory], &[]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", text(&output.stderr));
    assert!(said.contains(&format!("head        {head}")) && said.ends_with("sound\n"), "{said}");

    let export = bench.directory.path().join("export.jsonl");
    fs::write(&export, lines(&bench).join("\n") + "\n").unwrap();
    let output = verify(&["--public-key", &key, "--output", "json"], &[&export]);
    assert_eq!(output.status.code(), Some(0));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verdict"], "sound");
    assert_eq!(
        (report["lines"].as_u64(), report["findings"].as_array().unwrap().len()),
        (Some(bench.head.seq), 0)
    );
}

#[tokio::test]
async fn what_is_wrong_is_named_and_the_code_is_one() {
    let (bench, directory, key) = trail().await;
    let head = bench.head.to_string();
    let whole = lines(&bench);

    let mut flipped = whole.clone();
    flipped[6] = flipped[6].replacen("\"time\":\"2", "\"time\":\"3", 1);
    write_lines(&bench, &flipped);
    let output = verify(&["--public-key", &key, "--dir", &directory], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("line 7 was changed"), "{}", text(&output.stdout));
    assert!(output.stderr.is_empty());

    write_lines(&bench, &whole[..whole.len() - 2]);
    let without = verify(&["--public-key", &key, "--dir", &directory], &[]);
    assert_eq!(without.status.code(), Some(0), "a clean cut shows against a head alone");
    let with = verify(&["--public-key", &key, "--dir", &directory, "--head", &head], &[]);
    assert_eq!(with.status.code(), Some(1));
    assert!(text(&with.stdout).contains("its end was cut off"));

    write_lines(&bench, &whole[..whole.len() - 1]);
    let open = verify(&["--public-key", &key, "--dir", &directory], &[]);
    assert_eq!(open.status.code(), Some(1));
    assert!(text(&open.stdout).contains("has no outcome"));
    assert!(text(&open.stderr).contains("--in-use"));
    let in_use = verify(&["--public-key", &key, "--dir", &directory, "--in-use"], &[]);
    assert_eq!(in_use.status.code(), Some(0));

    write_lines(&bench, &whole);
    let (_other, _, foreign) = trail().await;
    let output = verify(&["--public-key", &foreign, "--dir", &directory], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("signature"));
}

#[tokio::test]
async fn a_trail_without_lines_names_what_was_found() {
    let (bench, _, key) = trail().await;
    let file = bench.directory.path().join("emptied.jsonl");
    let head = bench.head.to_string();
    let cases: [(&str, &[&str], &str); 2] =
        [("", &["--head", &head], "its end was cut off"), ("rubbish\n", &[], "is not a line")];
    for (content, more, expected) in cases {
        fs::write(&file, content).unwrap();
        let output = verify(&[&["--public-key", &key][..], more].concat(), &[&file]);
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{said}{}", text(&output.stderr));
        assert!(said.starts_with("no lines\nFOUND "), "{said}");
        assert!(said.contains(expected) && said.ends_with("NOT SOUND\n"), "{said}");
    }
}

#[tokio::test]
async fn what_cannot_be_verified_is_told_apart_from_wrong_use() {
    let (bench, directory, key) = trail().await;
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().to_str().unwrap();
    let not_a_key = bench.settings().directory.join("trail-00000000000000000001.jsonl");
    let not_a_key = not_a_key.to_str().unwrap();
    let cases: [(&[&str], i32); 6] = [
        (&["--public-key", &key], 2),
        (&["--dir", &directory], 2),
        (&["--public-key", &key, "--dir", &directory, "--head", "12:zz"], 2),
        (&["--public-key", &key, "--dir", &directory, "also.jsonl"], 2),
        (&["--public-key", &key, "--dir", empty], 1),
        (&["--public-key", not_a_key, "--dir", &directory], 1),
    ];
    for (arguments, code) in cases {
        let output = verify(arguments, &[]);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}

/// Segments that somebody archived with a compressor.
#[tokio::test]
async fn a_compressed_file_is_refused_with_the_command_that_helps() {
    let (bench, directory, key) = trail().await;
    let plain = bench.settings().directory.join("trail-00000000000000000001.jsonl");
    let gzip = |arguments: &[&str]| {
        let done = Command::new("gzip").args(arguments).arg(&plain).status().unwrap();
        assert!(done.success());
    };
    let refused = |output: Output, name: &str| {
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(output.stdout.is_empty() && said.lines().count() == 2, "{said}");
        let first = said.lines().next().unwrap();
        assert!(first.contains("gunzip") && first.contains(name), "{said}");
    };
    let by_directory = || verify(&["--public-key", &key, "--dir", &directory], &[]);
    gzip(&["-k"]);
    assert_eq!(by_directory().status.code(), Some(0), "the plain one is there, too");
    let compressed = plain.with_extension("jsonl.gz");
    refused(verify(&["--public-key", &key], &[&compressed]), "trail-00000000000000000001.jsonl.gz");
    let renamed = bench.directory.path().join("export.jsonl");
    fs::copy(&compressed, &renamed).unwrap();
    refused(verify(&["--public-key", &key], &[&renamed]), "export.jsonl");
    fs::remove_file(&compressed).unwrap();
    gzip(&[]);
    refused(by_directory(), "trail-00000000000000000001.jsonl.gz");
}

/// What one user did, from the files alone, and verified.
#[tokio::test]
async fn the_operations_of_a_user_and_a_time_are_shown_beside_the_verdict() {
    let (bench, directory, key) = trail().await;
    let show = |arguments: &[&str]| {
        let fixed = ["--public-key", &key, "--dir", &directory];
        let output = verify(&[&fixed[..], arguments].concat(), &[]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let said = show(&["--user", "1000"]);
    let rows: Vec<&str> = said.lines().filter(|line| line.contains("key:decrypt")).collect();
    assert_eq!(rows.len(), 13, "one row per operation: {said}");
    assert!(rows.iter().all(|row| row.contains("done") && row.contains("unix:1000")), "{said}");
    assert!(said.contains("sound"), "{said}");
    assert!(!show(&["--user", "root"]).contains("key:decrypt"));
    assert!(!show(&["--until", "2020-01-01T00:00:00Z"]).contains("key:decrypt"));
    assert!(show(&["--since", "1h", "--until", "now"]).contains("key:decrypt"));
    let document: serde_json::Value =
        serde_json::from_str(&show(&["--user", "unix:1000", "--output", "json"])).unwrap();
    assert_eq!(document["verdict"], "sound");
    assert_eq!(document["selected"].as_array().unwrap().len(), 26);
    let wrong = verify(&["--public-key", &key, "--dir", &directory, "--since", "soon"], &[]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("yesterday"), "{}", text(&wrong.stderr));
    drop(bench);
}
