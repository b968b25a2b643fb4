//! A backup of an audit log that does not hold: `backup verify` has the verdict of `audit verify`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::appliance::Appliance;
use crate::backup::{backup, said};

/// One with a log of several files.
fn worked() -> (Appliance, PathBuf) {
    let appliance = Appliance::configured(|config| {
        let audit = config["audit"].as_table_mut().expect("a table");
        audit.insert("segment_bytes".to_owned(), 4096.into());
        audit.insert("checkpoint_lines".to_owned(), 10.into());
    });
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_key("k");
    for _ in 0..30 {
        appliance.get("/v1/audit?limit=1").expect_status(200);
    }
    let key = appliance.path("audit.pub");
    let reply = appliance.get("/v1/audit/public-key");
    std::fs::write(&key, &reply.expect_status(200).body).expect("written");
    (appliance, key)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("it is there");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("read").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    files
}

fn audit_verify(directory: &Path, key: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    command.args(["audit", "verify", "--in-use", "--output", "json", "--dir"]).arg(directory);
    command.arg("--public-key").arg(key).args(more).output().expect("it starts")
}

fn verdict(output: &Output, of: &str) -> String {
    let document: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(output)));
    document.pointer(of).and_then(Value::as_str).expect("a verdict").to_owned()
}

fn change(path: &Path, change: impl FnOnce(String) -> String) {
    let text = std::fs::read_to_string(path).expect("read");
    std::fs::write(path, change(text)).expect("written");
}

#[test]
fn a_backup_is_not_good_where_its_audit_log_is_not_sound() {
    type Damage = fn(&[PathBuf]);
    let damages: [(&str, Damage); 6] = [
        ("none", |_| {}),
        ("the oldest file is gone", |files| std::fs::remove_file(&files[0]).expect("gone")),
        ("one in the middle is gone", |files| std::fs::remove_file(&files[1]).expect("gone")),
        ("a line was changed", |files| {
            change(&files[0], |text| text.replacen("unix:", "unix:1", 1));
        }),
        ("a line is gone", |files| {
            change(&files[1], |text| {
                let mut lines: Vec<&str> = text.lines().collect();
                lines.remove(3);
                lines.join("\n") + "\n"
            });
        }),
        ("an older file was emptied", |files| change(&files[0], |_| String::new())),
    ];
    let (appliance, key) = worked();
    let trail = appliance.trail();
    let pristine = appliance.path("pristine");
    let older = files(&trail);
    assert!(older.len() > 3, "{} files", older.len());
    std::fs::create_dir(&pristine).expect("made");
    let (_, older) = older.split_last().expect("some");
    for file in older {
        std::fs::copy(file, pristine.join(file.file_name().expect("a name"))).expect("copied");
    }
    for (number, (what, damage)) in damages.into_iter().enumerate() {
        damage(older);
        let file = appliance.path(&format!("{number}.backup"));
        let file = file.to_str().expect("text");
        let made = backup(&appliance, &["create", "--to", file, "--no-verify"]);
        if made.status.success() {
            let by_backup = backup(&appliance, &["verify", file, "--output", "json"]);
            let by_audit = audit_verify(&trail, &key, &[]);
            let is_sound = verdict(&by_audit, "/verdict") == "sound";
            assert_eq!(is_sound, number == 0, "{what}: {}", said(&by_audit));
            assert_eq!(
                verdict(&by_backup, "/verdict") == "good",
                is_sound,
                "{what}: {}",
                said(&by_backup)
            );
            assert_eq!(by_backup.status.success(), is_sound, "{what}: {}", said(&by_backup));
            assert_eq!(
                verdict(&by_backup, "/trail/verdict"),
                verdict(&by_audit, "/verdict"),
                "{what}"
            );
        } else {
            assert_ne!(number, 0, "{}", said(&made));
        }
        for file in older {
            let name = file.file_name().expect("a name");
            std::fs::copy(pristine.join(name), file).expect("put back");
        }
    }
}

/// What an operator moved away is said to be, and then it is no damage: for both commands alike.
#[test]
fn files_that_were_moved_away_are_no_damage_where_that_is_said() {
    let (appliance, key) = worked();
    let older = files(&appliance.trail());
    let archive = appliance.path("archive");
    std::fs::create_dir(&archive).expect("made");
    for file in &older[..2] {
        std::fs::rename(file, archive.join(file.file_name().expect("a name"))).expect("moved");
    }
    let file = appliance.path("partial.backup");
    let file = file.to_str().expect("text");
    let made = backup(&appliance, &["create", "--to", file, "--verify"]);
    assert!(!made.status.success() && said(&made).contains("--partial"), "{}", said(&made));
    let verified = backup(&appliance, &["verify", file, "--partial"]);
    assert!(verified.status.success() && said(&verified).contains("GOOD"), "{}", said(&verified));
    assert_eq!(audit_verify(&appliance.trail(), &key, &[]).status.code(), Some(1));
    assert!(audit_verify(&appliance.trail(), &key, &["--partial"]).status.success());
    // The archive and what is left, put together.
    let mut all = files(&archive);
    all.extend(files(&appliance.trail()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    command.args(["audit", "verify", "--in-use"]).args(&all).arg("--public-key").arg(&key);
    let together = command.output().expect("it starts");
    assert!(together.status.success(), "{}", said(&together));
}
