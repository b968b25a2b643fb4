//! What people are told by the commands that ask the daemon: little where all is well, and the command that
//! helps where it is not.

use std::process::{Command, Output};

use nix::sys::signal::Signal;

use crate::appliance::Appliance;

fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{out}{err}")
}

#[test]
fn changes_of_the_whole_are_told_in_a_line_or_two() {
    let appliance = Appliance::new();
    for (command, word) in [("lock", "strongroom unlock"), ("unlock", "state ready")] {
        let output = appliance.cli(&[command]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains(word), "{}", said(&output));
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    let confirmed = appliance.cli(&["confirm-clock"]);
    assert!(said(&confirmed).lines().count() <= 2, "{}", said(&confirmed));
    let programs = appliance.cli(&["lock", "--output", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&programs.stdout).expect("JSON");
    assert!(status["state"] == "locked" && status["version"].is_string(), "{status}");
}

#[test]
fn the_trail_is_shown_by_its_end() {
    let appliance = Appliance::new();
    for _ in 0..30 {
        appliance.get("/v1/keys").expect_status(200);
        appliance.get("/v1/audit?limit=1").expect_status(200);
    }
    let lines = |arguments: &[&str]| {
        let output = appliance.cli(&[&["audit", "show", "--output", "json"], arguments].concat());
        assert!(output.status.success(), "{}", said(&output));
        let lines = String::from_utf8(output.stdout).expect("text");
        let first: serde_json::Value =
            serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
        (lines.lines().count(), first["seq"].as_u64().expect("a number"))
    };
    let (shown, first) = lines(&[]);
    assert!((1..=50).contains(&shown) && first > 1, "{shown} from {first}");
    for arguments in [&["--all"][..], &["--action", "audit:read"], &["--after", "0"]] {
        let (all, first) = lines(arguments);
        assert!(all > 50 && (first == 1 || arguments[0] == "--action"), "{arguments:?}: {all}");
    }
    let people = appliance.cli(&["audit", "show"]);
    assert!(String::from_utf8_lossy(&people.stderr).contains("--all"), "{}", said(&people));
}

#[test]
fn a_status_begins_with_a_sentence_and_has_measures_for_people() {
    let appliance = Appliance::new();
    let text =
        |arguments: &[&str]| String::from_utf8(appliance.cli(arguments).stdout).expect("text");
    let status = text(&["status"]);
    let lines: Vec<&str> = status.lines().collect();
    assert_eq!(lines[0], "Strongroom is ready: keys and secrets are served.", "{status}");
    assert_eq!(lines[1], "  next: nothing", "{status}");
    assert!(!status.contains("seconds  ") && !status.contains("bytes  "), "{status}");
    assert!(status.lines().any(|line| line.starts_with("uptime ")), "{status}");
    assert!(status.contains("GiB") || status.contains("MiB"), "{status}");
    assert!(appliance.cli(&["lock"]).status.success());
    let locked = text(&["status"]);
    assert!(
        locked.starts_with("Strongroom is locked: an operator locked it.\n  next: "),
        "{locked}"
    );
    assert!(locked.lines().nth(1).is_some_and(|line| line.contains("unlock")), "{locked}");
}

#[test]
fn a_new_key_is_one_line() {
    let appliance = Appliance::new();
    let created = appliance.cli(&["key", "create", "k", "--label", "team=a"]);
    let text = String::from_utf8(created.stdout).expect("text");
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in ["created key k: RSA-2048", "owner unix:", "team=a"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// What `systemctl status` shows.
#[test]
fn systemd_is_told_the_state_in_a_sentence() {
    let mut appliance = Appliance::prepared(|_| {});
    let path = appliance.path("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).expect("bound");
    manager.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("set");
    appliance.set_environment("NOTIFY_SOCKET", path.to_str().expect("text"));
    let wait_for = |wanted: &str| {
        let mut buffer = [0; 4096];
        loop {
            let length =
                manager.recv(&mut buffer).unwrap_or_else(|error| panic!("{wanted}: {error}"));
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.contains(wanted) {
                return;
            }
        }
    };
    appliance.start();
    wait_for("STATUS=not-initialised");
    appliance.post("/v1/init", &serde_json::json!({})).expect_status(201);
    wait_for("STATUS=ready: keys and secrets are served");
    assert!(appliance.cli(&["lock"]).status.success());
    wait_for("STATUS=locked: an operator locked it");
    appliance.stop();
    appliance.change_config(|config| {
        config["policy"]["directory"] = "/nonexistent/policy".into();
    });
    appliance.spawn();
    wait_for("STATUS=failed: ");
    appliance.wait_for_end();
}

#[test]
fn errors_name_the_command_that_helps() {
    let appliance = Appliance::new();
    let put = appliance.cli_with(&["secret", "put", "s", "--key", "absent"], b"value");
    assert!(said(&put).contains("strongroom key create absent"), "{}", said(&put));
    let small = Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"])
        .output()
        .expect("openssl is installed");
    let import = appliance.cli_with(&["key", "import", "small"], &small.stdout);
    let told = said(&import);
    assert_eq!(import.status.code(), Some(1), "{told}");
    for part in ["1024", "2048, 3072 or 4096", "openssl genpkey"] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

/// A file that takes the place of another is another one, and one that hides a PIN beside it cannot be
/// granted as a whole.
#[test]
fn a_reload_that_the_sandbox_hinders_says_how_it_goes() {
    let mut appliance = Appliance::prepared(|_| {});
    let pin = appliance.path("pin");
    std::fs::copy(appliance.token().pin_file(), &pin).expect("copied");
    appliance.change_config(|config| {
        config["token"]["pin_file"] = pin.display().to_string().into();
    });
    appliance.start();
    let (config, new) = (appliance.config_file(), appliance.path("new.toml"));
    std::fs::copy(&config, &new).expect("copied");
    std::fs::rename(&new, &config).expect("replaced");
    let from = appliance.log().len();
    appliance.signal(Signal::SIGHUP);
    appliance.wait_for_log(from, "replaced by another file");
    appliance.wait_for_log(from, "systemctl restart strongroom");
}
