//! Why a request is not taken: the daemon does not start, and somebody else holds its socket meanwhile.
//!
//! The daemon leaves its last error in a file beside the socket, and in the status that systemd shows.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::DEFAULT_SOCKET;
use super::problem::Message;
use crate::sandbox::{Open, open_plain};

/// The longest error that is read, in bytes.
pub const LONGEST: usize = 2048;

/// How long systemd is asked.
const PATIENCE: Duration = Duration::from_millis(700);

/// The file with the last error of a daemon with this socket; it is empty or gone while the daemon serves.
pub fn file_of(socket: &Path) -> PathBuf {
    let mut name = OsString::from(socket);
    name.push(".failed");
    PathBuf::from(name)
}

/// What is known of a daemon that does not start.
pub fn reason(socket: &Path) -> Option<Message> {
    left(socket).or_else(|| (socket == Path::new(DEFAULT_SOCKET)).then(of_systemd).flatten())
}

fn left(socket: &Path) -> Option<Message> {
    let mut text = String::new();
    let file = open_plain(&file_of(socket), Open::Read).ok()?;
    file.take(LONGEST as u64).read_to_string(&mut text).ok()?;
    let (what, next) = text.split_once('\n')?;
    (!what.is_empty()).then(|| Message {
        what: format!("the daemon does not start: {what}"),
        next: next.trim_end().to_owned(),
    })
}

/// What systemd says of the unit.
fn of_systemd() -> Option<Message> {
    if !Path::new("/run/systemd/system").is_dir() {
        return None;
    }
    let asked = ["ActiveState", "SubState", "NRestarts", "StatusText"].join(",");
    let mut command = Command::new("systemctl");
    command.args(["show", "strongroom.service", "--property", &asked]);
    of_unit(&answer(command)?)
}

/// What a command prints, where it ends in time.
fn answer(mut command: Command) -> Option<String> {
    let mut child = command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let begin = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if begin.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
    let mut text = String::new();
    child.stdout.take()?.take(64 * 1024).read_to_string(&mut text).ok()?;
    Some(text)
}

fn of_unit(properties: &str) -> Option<Message> {
    let value = |name: &str| {
        let line = properties.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_default()
    };
    let restarts: u64 = value("NRestarts").parse().unwrap_or(0);
    let is_failing = match (value("ActiveState"), value("SubState")) {
        ("failed", _) | (_, "auto-restart" | "auto-restart-queued") => true,
        ("activating", _) => restarts > 0,
        _ => false,
    };
    is_failing.then(|| {
        let why = match value("StatusText") {
            "" => String::new(),
            text => format!(": {text}"),
        };
        Message {
            what: format!(
                "strongroom.service is failing ({}, started again {restarts} times){why}",
                value("SubState")
            ),
            next: "journalctl -u strongroom -n 20 says why; as root, strongroom doctor --config \
                   /etc/strongroom/strongroom.toml examines it"
                .to_owned(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_that_is_started_again_and_again_is_failing() {
        let said = |text: &str| of_unit(text).map(|message| message.what);
        let failing = "ActiveState=activating\nSubState=auto-restart\nNRestarts=7\nStatusText=failed: no policy\n";
        let what = said(failing).unwrap();
        for part in ["auto-restart", "7 times", "failed: no policy"] {
            assert!(what.contains(part), "{what}");
        }
        assert!(said("ActiveState=failed\nSubState=failed\nNRestarts=0\n").is_some());
        assert!(said("ActiveState=activating\nSubState=start\nNRestarts=3\n").is_some());
        for well in [
            "ActiveState=active\nSubState=running\nNRestarts=3\n",
            "ActiveState=activating\nSubState=start\nNRestarts=0\n",
            "ActiveState=inactive\nSubState=dead\nNRestarts=0\n",
            "",
        ] {
            assert_eq!(said(well), None, "{well}");
        }
    }
}
