//! What programs read: with `--output json`, commands that ask no daemon print one document, too, with the
//! exit codes that they have for people; and for people every error has its next step.

use std::process::Output;

use serde_json::Value;

use crate::appliance::Appliance;

/// The one document that was printed, on stdout or else on stderr.
#[track_caller]
fn document(output: &Output) -> Value {
    let said = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
    serde_json::from_slice(said).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn every_command_of_the_house_has_a_form_for_programs() {
    let appliance = Appliance::prepared(|_| {});
    let config = appliance.config_file().display().to_string();
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/config/policy");
    let user = nix::unistd::getuid().to_string();
    let explain = |action| {
        ["policy", "explain", "--config", &config, "--user", &user, "--action", action]
            .map(str::to_owned)
    };
    let (may, wrong) = (explain("key:list"), explain("trail:write"));
    let (may, wrong) = (may.each_ref().map(String::as_str), wrong.each_ref().map(String::as_str));
    let cases: [(&[&str], i32, &str); 7] = [
        (&["policy", "check", "--dir", policy], 0, "/policies"),
        (&may, 0, "/permitted"),
        (&wrong, 2, "/title"),
        (&["doctor", "--pkcs11-return-values"], 0, "/return_values/0/meaning"),
        (&["config", "show", "--config", &config], 0, "/token/module"),
        (&["policy", "check", "--dir", "/nowhere"], 1, "/next"),
        (&["recovery", "drill", "--store", "/nowhere", "--private-key", "-"], 1, "/next"),
    ];
    for (arguments, code, member) in cases {
        let output = appliance.cli(&[arguments, &["--output", "json"]].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        let document = document(&output);
        assert!(document.pointer(member).is_some(), "{arguments:?}: {document}");
    }
}

#[test]
fn wrong_use_is_told_to_programs_and_shows_only_what_was_typed() {
    let appliance = Appliance::prepared(|_| {});
    for json in [&["--output", "json"][..], &["--output=json"]] {
        let output = appliance.cli(&[&["key", "create"], json].concat());
        let document = document(&output);
        assert_eq!((output.status.code(), &document["exit"]), (Some(2), &2.into()), "{document}");
        assert_eq!(document["code"], "wrong-use");
        assert!(document["title"].to_string().contains("<NAME>"), "{document}");
    }
    let output = appliance.cli(&["key", "create"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("Usage: strongroom key create <NAME>"), "{said}");
    assert!(appliance.cli(&["--help"]).status.success());
}

#[test]
fn every_error_has_a_next_step() {
    let appliance = Appliance::prepared(|_| {});
    let broken = appliance.path("broken.toml");
    std::fs::write(&broken, "[listen]\nsockt = 1\n").expect("written");
    let broken = broken.display().to_string();
    let key = appliance.config_file().display().to_string();
    let failing: [&[&str]; 6] = [
        &["serve", "--config", &broken],
        &["serve", "--config", "/nowhere"],
        &["config", "check", "--config", &broken],
        &["policy", "check", "--dir", "/nowhere"],
        &["recovery", "reseal", "--config", &broken, "--private-key", "-"],
        &["recovery", "drill", "--store", "/nowhere", "--private-key", &key],
    ];
    for arguments in failing {
        let output = appliance.cli(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(last.starts_with("  next: ") && last.len() > 20, "{arguments:?}: {said}");
    }
}

/// What the shell's own limits are says nothing of the daemon.
#[test]
fn a_doctor_without_a_daemon_judges_what_the_daemon_will_find() {
    let appliance = Appliance::prepared(|_| {});
    let (name, conf) = appliance.token().environment();
    let doctor = |format: &str| {
        let mut shell = std::process::Command::new("sh");
        let line = r#"ulimit -c unlimited; exec "$0" doctor --config "$1" --output "$2""#;
        shell.args(["-c", line, env!("CARGO_BIN_EXE_strongroom")]);
        shell.arg(appliance.config_file()).arg(format).env(name, &conf);
        shell.output().expect("it starts")
    };
    let document = document(&doctor("json"));
    let checks = document["checks"].as_array().expect("checks");
    let result = |name: &str| {
        let check = checks.iter().find(|check| check["name"] == name);
        check.map(|check| check["result"].as_str().expect("a result").to_owned())
    };
    assert_eq!(result("module").as_deref(), Some("ok"), "{document}");
    assert_eq!(result("core dumps"), None, "{document}");
    let text = String::from_utf8(doctor("text").stdout).expect("text");
    let named = format!("in {}: [store] path", appliance.config_file().display());
    assert!(text.contains("FAIL  store\n      found: ") && text.contains(&named), "{text}");
    // It was never started: its directories are made by its first start.
    assert!(text.contains("store is not there"), "{text}");
}

#[test]
fn a_backup_is_made_verified_and_put_back_by_a_program() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let (file, config) = (appliance.path("a.backup"), appliance.config_file());
    let (file, config) = (file.display().to_string(), config.display().to_string());
    let scratch = appliance.path("").display().to_string();
    let backup = |appliance: &Appliance, arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_strongroom"));
        command
            .env("STRONGROOM_SOCKET", appliance.socket())
            .envs([appliance.token().environment()]);
        command.arg("backup").args(arguments).args(["--config", &config, "--scratch", &scratch]);
        let output = command.args(["--output", "json"]).output().expect("it starts");
        (output.status.code(), document(&output))
    };
    let (code, made) = backup(&appliance, &["create", "--to", &file]);
    assert_eq!((code, &made["verification"]["verdict"]), (Some(0), &"good".into()), "{made}");
    assert!(made["appliance"].is_string() && made["bytes"].as_u64() > Some(0), "{made}");
    let other = appliance.path("b.backup").display().to_string();
    let (code, made) = backup(&appliance, &["create", "--to", &other, "--no-verify"]);
    assert_eq!((code, &made["not_verified"]), (Some(0), &"as asked for".into()), "{made}");
    let (code, verified) = backup(&appliance, &["verify", &file]);
    assert_eq!((code, &verified["verdict"]), (Some(0), &"good".into()), "{verified}");
    assert_eq!((&verified["keys"], &verified["bad"]), (&1.into(), &serde_json::json!([])));
    let (code, refused) = backup(&appliance, &["restore", &file]);
    assert_eq!((code, &refused["exit"]), (Some(1), &1.into()), "{refused}");
    assert!(refused["next"].to_string().contains("systemctl stop"), "{refused}");
    appliance.stop();
    crate::backup::move_away(&appliance);
    let (code, restored) = backup(&appliance, &["restore", &file]);
    assert_eq!((code, &restored["restored"]["done"]), (Some(0), &true.into()), "{restored}");
    assert!(restored["restored"]["store"].is_string(), "{restored}");
}
