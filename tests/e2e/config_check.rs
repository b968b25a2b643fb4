//! `config check`: what no daemon could work with is named, with its setting and the next step.

use std::process::Command;

use serde_json::Value;

use crate::appliance::Appliance;

/// What it says for programs, with the settings changed: its exit code and its document.
fn checked(appliance: &Appliance, change: &str) -> (Option<i32>, Value) {
    let mut config = appliance.config();
    for (section, settings) in change.parse::<toml::Table>().expect("TOML") {
        let section = config.entry(section).or_insert_with(|| toml::Table::new().into());
        section.as_table_mut().expect("a table").extend(settings.as_table().expect("one").clone());
    }
    let file = appliance.path("changed.toml");
    std::fs::write(&file, config.to_string()).expect("written");
    check(appliance, &file.display().to_string())
}

fn check(appliance: &Appliance, file: &str) -> (Option<i32>, Value) {
    let output = appliance.cli(&["config", "check", "--output", "json", "--config", file]);
    let said = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
    (output.status.code(), serde_json::from_slice(said).expect("one document"))
}

/// The one finding about a setting.
#[track_caller]
fn finding<'a>(document: &'a Value, setting: &str) -> &'a Value {
    let findings = document["findings"].as_array().expect("findings");
    let found: Vec<&Value> = findings.iter().filter(|found| found["setting"] == setting).collect();
    assert_eq!(found.len(), 1, "{setting}: {document}");
    found[0]
}

#[test]
fn what_no_daemon_could_work_with_is_an_error() {
    let appliance = Appliance::prepared(|_| {});
    let text = appliance.path("text.so");
    std::fs::write(&text, "C_GetFunctionList").expect("written");
    let at = |name: &str| appliance.path(name).display().to_string();
    let small = rsa_public(&appliance, 2048);
    let cases = [
        (format!("token.module = '{}'", at("none.so")), "[token] module", "No such file"),
        (format!("token.module = '{}'", at("text.so")), "[token] module", "no shared object"),
        (format!("store.path = '{}'", at("none/store")), "[store] path", "cannot be made"),
        (format!("audit.directory = '{}'", at("none/t")), "[audit] directory", "cannot be made"),
        (format!("store.path = '{}'", at("text.so")), "[store] path", "is no directory"),
        ("token.pin_file = '/nowhere/pin'".into(), "[token] pin_file", "is not there"),
        (format!("custody.recovery_key = '{small}'"), "[custody] recovery_key", "has 2048"),
        (format!("custody.recovery_key = '{}'", at("none")), "[custody] recovery_key", "No such"),
        ("custody.front_user = 'nobody-at-all'".into(), "[custody] front_user", "no such user"),
        (format!("policy.directory = '{}'", at("none")), "[policy]", "cannot be read"),
    ];
    for (change, setting, why) in cases {
        let (code, document) = checked(&appliance, &change);
        assert_eq!((code, &document["verdict"]), (Some(1), &"not-sound".into()), "{document}");
        let found = finding(&document, setting);
        assert_eq!(found["level"], "error", "{document}");
        assert!(found["what"].as_str().is_some_and(|what| what.contains(why)), "{found}");
        assert!(found["next"].as_str().is_some_and(|next| !next.is_empty()), "{found}");
    }
    let (_, document) = checked(&appliance, &format!("custody.recovery_key = '{small}'"));
    let next = finding(&document, "[custody] recovery_key")["next"].to_string();
    assert!(next.contains("openssl genpkey") && next.contains("4096"), "{next}");
}

#[test]
fn a_token_must_be_named_and_paths_should_be_whole() {
    let appliance = Appliance::prepared(|config| {
        config["token"].as_table_mut().expect("a table").remove("label");
    });
    let (code, document) = checked(&appliance, "");
    assert_eq!(code, Some(1), "{document}");
    assert_eq!(finding(&document, "[token] label")["level"], "error");

    let warned = "policy.roles = {}\naudit.directory = 'trail'\ntoken.label = 'x'";
    let (code, document) = checked(&appliance, warned);
    assert_eq!((code, &document["verdict"]), (Some(0), &"sound".into()), "{document}");
    for setting in ["[policy.roles]", "[audit] directory"] {
        assert_eq!(finding(&document, setting)["level"], "warning", "{document}");
    }
}

/// What `serve` refuses as it reads it, by the same words.
#[test]
fn a_path_that_no_socket_can_have_is_refused_by_both() {
    for section in ["listen", "custody"] {
        let appliance = Appliance::prepared(|config| {
            config[section]["socket"] = format!("/run/{}", "s".repeat(103)).into();
        });
        let file = appliance.config_file().display().to_string();
        let (code, document) = check(&appliance, &file);
        let (what, next) = (document["title"].to_string(), document["next"].to_string());
        assert!(code == Some(1) && what.contains(&format!("[{section}] socket")), "{document}");
        assert!(what.contains("at most 107 bytes") && !next.is_empty(), "{document}");
        let mut serve = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        let served = serve.args(["serve", "--config", &file]).output().expect("it starts");
        let said = String::from_utf8_lossy(&served.stderr).into_owned();
        assert!(!served.status.success() && said.contains("107 bytes"), "{said}");
        assert!(said.contains("\n  next: "), "{said}");
    }
}

/// Two sockets that are one, store and trail within each other: neither starts, and both say so.
#[test]
fn places_that_must_be_two_are_refused_by_both() {
    let appliance = Appliance::prepared(|_| {});
    let at = |name: &str| appliance.path(name).display().to_string();
    std::fs::create_dir(at("place")).expect("made");
    std::os::unix::fs::symlink(at("place"), at("link")).expect("made");
    let cases = [
        (
            format!("listen.socket = '{}'\ncustody.socket = '{}'", at("place/s"), at("link/s")),
            "[custody] socket",
        ),
        (format!("audit.directory = '{}'", at("store/trail")), "[audit] directory"),
        (
            format!("store.path = '{}'\naudit.directory = '{}'", at("link/s"), at("place")),
            "[store] path",
        ),
    ];
    for (change, setting) in cases {
        let (code, document) = checked(&appliance, &change);
        let what = document["title"].to_string();
        assert!(code == Some(1) && what.contains(setting), "{document}");
        let mut serve = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        let serve = serve.args(["serve", "--config", &at("changed.toml")]);
        let served = serve.output().expect("it starts");
        let said = String::from_utf8_lossy(&served.stderr).into_owned();
        assert!(!served.status.success() && said.contains(setting), "{said}");
    }
}

/// The public half of a new RSA key, in a file.
fn rsa_public(appliance: &Appliance, bits: usize) -> String {
    let (private, public) = (appliance.path("rsa.key"), appliance.path("rsa.pem"));
    let openssl = |arguments: &[&str]| {
        let done = Command::new("openssl").args(arguments).output().expect("openssl is installed");
        assert!(done.status.success(), "{done:?}");
    };
    let (private, public) = (private.display().to_string(), public.display().to_string());
    let size = format!("rsa_keygen_bits:{bits}");
    openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", &size, "-out", &private]);
    openssl(&["pkey", "-in", &private, "-pubout", "-out", &public]);
    public
}
