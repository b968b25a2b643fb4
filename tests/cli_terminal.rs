//! The real binary on a terminal: secrets are asked for unseen, and what cannot be undone needs a yes.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};

/// A terminal with a command on it; what the command writes there comes through `screen`.
struct Terminal {
    keyboard: File,
    line: OwnedFd,
    screen: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn start(command: &mut Command) -> (Self, Child) {
        let pty = openpty(None, None).unwrap();
        let slave = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = command.stdin(slave()).stderr(slave()).stdout(Stdio::piped()).spawn().unwrap();
        let mut reader = File::from(pty.master.try_clone().unwrap());
        let (sender, screen) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let keyboard = File::from(pty.master);
        (Self { keyboard, line: pty.slave, screen, seen: String::new() }, child)
    }

    fn wait_for(&mut self, text: &str) {
        while !self.seen.contains(text) {
            let more = self.screen.recv_timeout(Duration::from_secs(30)).unwrap();
            self.seen += &String::from_utf8_lossy(&more);
        }
    }

    fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    fn echoes(&self) -> bool {
        tcgetattr(&self.line).unwrap().local_flags.contains(LocalFlags::ECHO | LocalFlags::ISIG)
    }

    /// What was on the screen by the time that the command had ended.
    fn rest(mut self) -> String {
        while let Ok(more) = self.screen.recv_timeout(Duration::from_millis(200)) {
            self.seen += &String::from_utf8_lossy(&more);
        }
        self.seen
    }
}

fn strongroom(socket: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    command.env("STRONGROOM_SOCKET", socket).args(arguments);
    command
}

#[test]
fn a_pin_is_not_shown_and_the_terminal_is_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (mut terminal, child) =
        Terminal::start(&mut strongroom(&socket, &["unlock", "--pin-file", "-"]));
    terminal.wait_for("PIN of the token (not shown): ");
    assert!(!terminal.echoes());
    terminal.type_in("canary-4711\n");

    let (mut peer, _) = listener.accept().unwrap();
    let mut request = [0; 4096];
    let mut length = 0;
    while !String::from_utf8_lossy(&request[..length]).ends_with('}') {
        let more = peer.read(&mut request[length..]).unwrap();
        assert!(more > 0);
        length += more;
    }
    // base64 of what was typed, without its line end
    assert!(String::from_utf8_lossy(&request).contains(r#"{"pin":"Y2FuYXJ5LTQ3MTE="}"#));
    peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();

    assert!(child.wait_with_output().unwrap().status.success());
    assert!(terminal.echoes());
    let seen = terminal.rest();
    assert!(!seen.contains("canary"), "{seen}");
}

#[test]
fn an_interrupted_question_leaves_the_terminal_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let (mut terminal, child) =
        Terminal::start(&mut strongroom(dir.path(), &["unlock", "--pin-file", "-"]));
    terminal.wait_for("(not shown): ");
    terminal.type_in("half\x03");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(1));
    assert!(terminal.echoes());
    let seen = terminal.rest();
    assert!(seen.contains("cancelled") && !seen.contains("half"), "{seen}");
}

#[test]
fn a_destruction_needs_a_yes() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("absent.sock");
    for (answer, code) in [("no\n", 1), ("y\n", 1), ("\n", 1), ("yes\n", 3)] {
        let (mut terminal, child) = Terminal::start(&mut strongroom(
            &socket,
            &["key", "destroy", "payments", "--version", "2", "--after", "7d"],
        ));
        terminal.wait_for("Type yes to go on: ");
        assert!(terminal.seen.contains("destroy version 2 of key payments in 7 days"));
        terminal.type_in(answer);
        assert_eq!(child.wait_with_output().unwrap().status.code(), Some(code), "{answer:?}");
    }
}

#[test]
fn an_error_is_red_on_a_terminal_and_not_where_no_color_says_so() {
    let nowhere = std::path::Path::new("/nonexistent/s.sock");
    for (no_color, is_red) in [("", true), ("1", false)] {
        let mut command = strongroom(nowhere, &["status"]);
        command.env("NO_COLOR", no_color).env("TERM", "xterm");
        let (mut terminal, mut child) = Terminal::start(&mut command);
        terminal.wait_for("there is no socket");
        child.wait().unwrap();
        let seen = terminal.rest();
        assert_eq!(seen.contains("\u{1b}[31mstrongroom:"), is_red, "{seen:?}");
    }
}
