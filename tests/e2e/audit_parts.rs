//! The audit log as an operator looks things up in it: by user and time, one row per operation.

use std::process::Output;

use crate::appliance::Appliance;

fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{out}{err}")
}

fn own_name() -> (u32, String) {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("looked up");
    let user = user.expect("this user has a name");
    (user.uid.as_raw(), user.name)
}

fn shown(appliance: &Appliance, arguments: &[&str]) -> String {
    let output = appliance.cli(&[&["audit", "show"], arguments].concat());
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn an_operation_is_one_row_with_the_users_name() {
    let appliance = Appliance::new();
    let created = appliance.cli(&["key", "create", "k"]);
    assert!(created.status.success(), "{}", said(&created));
    let text = shown(&appliance, &["--resource", "key/k", "--action", "key:create"]);
    let rows: Vec<&str> = text.lines().skip(1).collect();
    let (uid, name) = own_name();
    assert_eq!(rows.len(), 1, "{text}");
    for part in ["done", "key:create", "key/k", &format!("unix:{uid} ({name})")] {
        assert!(rows[0].contains(part), "{part}: {text}");
    }
    let numbers: Vec<u64> =
        rows[0].split(' ').next().unwrap().split(',').map(|n| n.parse().unwrap()).collect();
    assert!(numbers.len() == 2 && numbers[0] < numbers[1], "{text}");
    let all = shown(&appliance, &["--all"]);
    let intents = all.lines().filter(|line| line.contains("  intent  ")).count();
    assert_eq!(intents, 0, "{all}");
    let limited = shown(&appliance, &["--after", "0", "--limit", "3"]);
    assert_eq!(limited.lines().count(), 4, "three rows under their headings: {limited}");
}

#[test]
fn users_and_times_are_selected() {
    let appliance = Appliance::new();
    assert!(appliance.cli(&["key", "create", "k"]).status.success());
    let (uid, name) = own_name();
    for user in [name.as_str(), &uid.to_string()] {
        assert!(shown(&appliance, &["--user", user, "--since", "10min"]).contains("key/k"));
    }
    assert!(!shown(&appliance, &["--user", "4242"]).contains("key/k"));
    assert!(!shown(&appliance, &["--until", "yesterday"]).contains("key/k"));
    assert!(!shown(&appliance, &["--since", "2100-01-01"]).contains("key/k"));
    for (query, status) in [("since=2026-01-02T03:04:05Z", 200), ("since=2h", 400), ("until=", 400)]
    {
        appliance.get(&format!("/v1/audit?{query}")).expect_status(status);
    }
    let unknown = appliance.cli(&["audit", "show", "--user", "no-such-user-here"]);
    assert!(
        unknown.status.code() == Some(2) && said(&unknown).contains("uid"),
        "{}",
        said(&unknown)
    );
}

#[test]
fn the_export_of_a_time_is_a_part_that_can_be_verified() {
    let appliance = Appliance::configured(|config| {
        let audit = config["audit"].as_table_mut().expect("a table");
        audit.insert("checkpoint_lines".to_owned(), 20.into());
    });
    appliance.post("/v1/init", &serde_json::json!({})).expect_status(201);
    for number in 0..15 {
        assert!(appliance.cli(&["key", "create", &format!("k{number}")]).status.success());
    }
    let whole = shown(&appliance, &["--all", "--output", "json"]);
    let lines: Vec<serde_json::Value> =
        whole.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let time = |name: &str| {
        let is_it = |line: &&serde_json::Value| line["resource"] == *name;
        let line = lines.iter().find(is_it).expect("it is there");
        line["time"].as_str().expect("a time").to_owned()
    };
    let (file, key) = (appliance.path("part.jsonl"), appliance.path("trail.pem"));
    let [file, key] = [&file, &key].map(|path| path.to_str().expect("text"));
    let (since, until) = (time("key/k5"), time("key/k8"));
    let exported = appliance.cli(&[
        "audit",
        "export",
        "--to",
        file,
        "--public-key",
        key,
        "--since",
        &since,
        "--until",
        &until,
    ]);
    assert!(exported.status.success(), "{}", said(&exported));
    let part = std::fs::read_to_string(file).expect("the part");
    assert!(
        part.contains("key/k5") && part.contains("key/k8") && !part.contains("key/k4"),
        "{part}"
    );
    assert!(part.lines().count() < lines.len() / 2 + 20, "{}", part.lines().count());
    let verified =
        appliance.cli(&["audit", "verify", file, "--public-key", key, "--partial", "--in-use"]);
    assert!(verified.status.success(), "{}", said(&verified));
    let users = appliance.path("users.jsonl");
    let users = users.to_str().expect("text");
    let of_user = appliance.cli(&["audit", "export", "--to", users, "--user", "4242"]);
    assert!(of_user.status.success(), "{}", said(&of_user));
    assert_eq!(std::fs::read_to_string(users).expect("a file"), "");
}
