//! The daemon does not start, again and again, while somebody else holds its socket: whoever asks is told so at
//! once, and why.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::appliance::{Appliance, wait_until};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The daemon with a socket handed in, as systemd starts it.
fn start_with(appliance: &Appliance, listener: &UnixListener) -> Child {
    let (name, conf) = appliance.token().environment();
    let number = listener.as_raw_fd();
    nix::fcntl::fcntl(listener, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))
        .expect("it is inherited");
    let script =
        format!("exec env LISTEN_PID=$$ LISTEN_FDS=1 \"$0\" serve --config \"$1\" 3<&{number}");
    Command::new("sh")
        .args(["-c", &script])
        .arg(appliance.program())
        .arg(appliance.config_file())
        .env(name, conf)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts")
}

/// Breaks the policy that the next start reads, and returns what mends it.
fn broken_policy(appliance: &Appliance) -> toml::Value {
    let good = appliance.config()["policy"]["directory"].clone();
    let directory = appliance.path("policy-with-a-typo");
    std::fs::create_dir(&directory).expect("made");
    std::fs::write(directory.join("typo.cedar"), "permit (principal, action").expect("written");
    appliance.change_config(|config| {
        config["policy"]["directory"] = directory.display().to_string().into();
    });
    good
}

#[test]
fn a_socket_that_is_held_while_the_daemon_fails_is_no_long_wait() {
    let appliance = Appliance::prepared(|_| {});
    let good = broken_policy(&appliance);
    let listener = UnixListener::bind(appliance.socket()).expect("bound");
    let file = appliance.socket().with_extension("sock.failed");
    let has_reason =
        || std::fs::read_to_string(&file).is_ok_and(|text| text.contains("typo.cedar"));
    for round in 0.. {
        let ended = start_with(&appliance, &listener).wait().expect("it ends");
        assert!(!ended.success() && round < 6, "{}", appliance.log());
        if round > 0 && has_reason() {
            break;
        }
    }
    let begin = Instant::now();
    let output = appliance.cli(&["key", "list"]);
    let waited = begin.elapsed();
    assert!(
        waited < Duration::from_secs(3),
        "{waited:?}: {} {:?}",
        said(&output),
        std::fs::read_to_string(&file)
    );
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    for part in ["the daemon does not start", "typo.cedar", "next: "] {
        assert!(said(&output).contains(part), "{part}: {}", said(&output));
    }
    let programs = appliance.cli(&["status", "--output", "json"]);
    let document: serde_json::Value = serde_json::from_slice(&programs.stderr).expect("JSON");
    assert_eq!(document["code"], "unreachable", "{document}");

    // Mended, it serves, and nothing of the failure is left.
    appliance.change_config(|config| config["policy"]["directory"] = good);
    let mut daemon = start_with(&appliance, &listener);
    wait_until("it serves", || appliance.cli(&["status"]).status.success());
    let mut note = appliance.socket().into_os_string();
    note.push(".failed");
    wait_until("the reason is taken back", || {
        std::fs::read_to_string(&note).unwrap_or_default().is_empty()
    });
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(daemon.id().cast_signed()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .expect("it is there");
    daemon.wait().expect("it ends");
}

#[test]
fn where_nobody_listens_the_last_reason_is_said_too() {
    let mut appliance = Appliance::prepared(|_| {});
    broken_policy(&appliance);
    appliance.spawn();
    assert!(!appliance.wait_for_end().success());
    let output = appliance.cli(&["status"]);
    assert_eq!(output.status.code(), Some(3));
    for part in ["the daemon does not start", "typo.cedar"] {
        assert!(said(&output).contains(part), "{part}: {}", said(&output));
    }
}

#[test]
fn a_second_daemon_that_is_refused_does_not_make_the_first_look_failed() {
    let appliance = Appliance::new();
    let (name, conf) = appliance.token().environment();
    let second = Command::new(appliance.program())
        .args(["serve", "--config"])
        .arg(appliance.config_file())
        .env(name, conf)
        .output()
        .expect("it starts");
    assert!(!second.status.success());
    let output = appliance.cli(&["status"]);
    assert!(output.status.success(), "{}", said(&output));
    let mut note = appliance.socket().into_os_string();
    note.push(".failed");
    let text = std::fs::read_to_string(&note).unwrap_or_default();
    assert_eq!(text, "");
}
