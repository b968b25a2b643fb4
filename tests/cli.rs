//! The real binary, for all that needs no daemon: help, exit codes, completions, man pages.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn strongroom() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    command.env_remove("STRONGROOM_SOCKET").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    strongroom().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The names of the subcommands that a help text lists.
fn commands(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_command_has_a_help() {
    let mut left = vec![Vec::<String>::new()];
    let mut seen = 0;
    while let Some(path) = left.pop() {
        let output = strongroom().args(&path).arg("--help").output().unwrap();
        let help = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{path:?}");
        let about = help.lines().next().unwrap_or_default();
        assert!(about.len() > 10 && !about.starts_with("Usage"), "{path:?} says what it is for");
        assert!(help.contains("--socket") && help.contains("STRONGROOM_SOCKET"), "{path:?}");
        for name in commands(&help) {
            left.push(path.iter().cloned().chain([name]).collect());
        }
        seen += 1;
    }
    assert!(seen >= 40, "only {seen} commands were found");
    let help = text(&run(&["--help"]).stdout);
    for said in ["Exit codes:", "cannot be reached", "stdin", "key create payments"] {
        assert!(help.contains(said), "{said}");
    }
}

#[test]
fn the_version_is_told() {
    let output = run(&["--version"]);
    assert_eq!(text(&output.stdout), format!("strongroom {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_use_is_two() {
    let wrong: [&[&str]; 6] = [
        &[],
        &["key", "create", "NOT-A-NAME"],
        &["serve"],
        &["status", "--socket"],
        &["secret", "put", "a", "--key", "k", "--version", "1"],
        &["key", "destroy", "payments"], // nobody there to be asked
    ];
    for arguments in wrong {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn no_daemon_is_three_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent.sock");
    let dead = dir.path().join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    for socket in [&absent, &dead] {
        let output = strongroom().arg("--socket").arg(socket).arg("status").output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        let said = text(&output.stderr);
        assert!(said.contains(&*socket.to_string_lossy()), "{said}");
        assert!(said.contains("next: is it running? systemctl status strongroom"), "{said}");
        assert_eq!(said.lines().count(), 2, "{said}");
    }
    let output = strongroom()
        .env("STRONGROOM_SOCKET", &absent)
        .args(["doctor", "--output", "json"])
        .output();
    let output = output.unwrap();
    let problem: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(problem["code"], "unreachable");
}

#[test]
fn a_daemon_that_never_answers_is_three() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("mute.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let output =
        strongroom().arg("--socket").arg(&socket).args(["status", "--timeout", "1"]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("no answer within 1 s"));
}

#[test]
fn something_else_on_the_socket_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("other.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        use std::io::Read;
        let (mut peer, _) = listener.accept().unwrap();
        let _ = peer.read(&mut [0; 4096]).unwrap();
        peer.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nhello").unwrap();
    });
    let output = strongroom().arg("--socket").arg(&socket).arg("status").output().unwrap();
    server.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("does not answer like Strongroom"));
}

#[test]
fn completions_for_three_shells() {
    let marks = [
        ("bash", "-F _clap_complete_strongroom strongroom"),
        ("zsh", "#compdef strongroom"),
        ("fish", "--command strongroom"),
    ];
    for (shell, mark) in marks {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        let script = text(&output.stdout);
        assert!(script.contains(mark), "{shell}: {script}");
        // The script asks the program: by this.
        let mut asked = strongroom();
        asked.env("STRONGROOM_COMPLETE", shell).env("_CLAP_COMPLETE_INDEX", "2");
        let offered = asked.args(["--", "strongroom", "key", "dea"]).output().unwrap();
        assert!(
            offered.status.success() && text(&offered.stdout).starts_with("deactivate"),
            "{shell}"
        );
    }
    assert_eq!(run(&["completions", "cmd"]).status.code(), Some(2));
}

#[test]
fn man_pages_to_stdout_and_into_a_directory() {
    let output = run(&["man"]);
    let page = text(&output.stdout);
    assert!(page.contains(".TH strongroom 1") && page.contains("strongroom\\-key(1)"), "{page}");

    let dir = tempfile::tempdir().unwrap();
    let man = dir.path().join("man1");
    let output = strongroom().arg("man").arg("--dir").arg(&man).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    for page in ["strongroom.1", "strongroom-key-create.1", "strongroom-secret-reveal.1"] {
        let written = std::fs::read_to_string(man.join(page)).unwrap();
        assert!(written.contains(".SH SYNOPSIS"), "{page}");
    }
    assert!(Path::new(&man).read_dir().unwrap().count() >= 40);
    assert!(output.stdout.is_empty());
    let output = strongroom().args(["man", "--output", "json", "--dir"]).arg(&man).output();
    let document: serde_json::Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    assert_eq!(document["directory"], man.to_str().unwrap());
}

/// A daemon with too many callers answers before it was asked, and closes.
#[test]
fn an_answer_that_comes_before_the_question_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("crowded.sock");
    let long = dir.path().join("long.pem");
    std::fs::write(&long, vec![b'a'; 16_000]).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let rounds = 24;
    let server = std::thread::spawn(move || {
        let problem = r#"{"title":"Too many connections","code":"too-many-connections"}"#;
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n{problem}",
            problem.len()
        );
        for _ in 0..rounds {
            listener.accept().unwrap().0.write_all(answer.as_bytes()).unwrap();
        }
    });
    for round in 0..rounds {
        let mut command = strongroom();
        command.arg("--socket").arg(&socket);
        match round % 2 {
            0 => command.arg("status"),
            _ => command.args(["recovery", "set"]).arg(&long),
        };
        let output = command.output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("Too many connections"), "{said}");
    }
    server.join().unwrap();
}
