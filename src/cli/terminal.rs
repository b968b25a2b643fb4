//! Talks to the person at the terminal: asks for secrets unseen, and for a yes.

use std::io::{BufRead, IsTerminal, Read, Write};

use nix::sys::termios::{
    LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr,
};
use zeroize::Zeroizing;

use super::escape::plain_lines;
use super::input;
use super::problem::Failure;
use crate::secret::SecretBytes;

/// What ctrl-C sends; it ends the line here, because the signal would leave the terminal silent.
const INTERRUPT: u8 = 3;

/// A canonical terminal line has at most 4096 bytes (termios(3)).
const MAX_LINE: usize = 4096;

/// Asks on stderr and reads one line from stdin without echo; its line end does not count.
pub fn ask_unseen(prompt: &str) -> Result<SecretBytes, Failure> {
    let _silence = Silence::begin()?;
    let _ = write!(std::io::stderr(), "{prompt} (not shown): ");
    let mut line = Zeroizing::new([0u8; MAX_LINE]);
    let mut filled = 0;
    let mut ended = None;
    // Byte by byte: the standard reader keeps what it read in a buffer of its own.
    let mut stdin = unbuffered_stdin()?;
    while let Some(slot) = line.get_mut(filled..=filled) {
        match stdin.read(slot) {
            Ok(1) => match slot.first() {
                Some(&end @ (b'\n' | INTERRUPT)) => {
                    ended = Some(end);
                    break;
                }
                _ => filled += 1,
            },
            Ok(_) => break,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(&error.to_string())),
        }
    }
    let _ = writeln!(std::io::stderr());
    if ended == Some(INTERRUPT) {
        return Err(Failure::failed("cancelled", "nothing was done"));
    }
    input::locked(line.get(..filled).unwrap_or_default())
}

/// Why nobody agreed, and what to do next.
pub struct Refusal {
    pub what: String,
    pub next: &'static str,
    /// Whether nobody was there to be asked.
    pub is_wrong_use: bool,
}

/// Asks for a plain yes at the terminal, also where stdin is something else.
pub fn confirm_at_terminal(question: &str) -> Result<(), Refusal> {
    let terminal = match std::io::stderr().is_terminal() {
        true => std::fs::File::open("/dev/tty").ok(),
        false => None,
    };
    let Some(terminal) = terminal else {
        return Err(Refusal { what: unconfirmed(question), next: ADD_YES, is_wrong_use: true });
    };
    let what = match answered(question, terminal) {
        Ok(true) => return Ok(()),
        Ok(false) => "not confirmed".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Refusal { what, next: NOT_DONE, is_wrong_use: false })
}

/// Goes on where `--yes` was given, or the person at the terminal types it.
///
/// # Errors
/// There is no terminal to ask at, or the answer was another one; nothing is to be done then.
pub fn agree(yes: bool, question: &str) -> Result<(), Failure> {
    match yes {
        true => Ok(()),
        false if attended() => confirm(question),
        false => Err(Failure::wrong_use(unconfirmed(question), ADD_YES)),
    }
}

/// The same where stdin may be something else, such as the value to store.
pub fn agree_beside_stdin(yes: bool, question: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    confirm_at_terminal(question).map_err(|refusal| match refusal.is_wrong_use {
        true => Failure::wrong_use(refusal.what, refusal.next),
        false => Failure::failed(refusal.what, refusal.next),
    })
}

const ADD_YES: &str = "add --yes where nobody can be asked";

fn unconfirmed(question: &str) -> String {
    format!("{question} That needs a confirmation")
}

/// Asks for a plain yes. Only when stdin and stderr are terminals is there anybody to ask.
fn confirm(question: &str) -> Result<(), Failure> {
    let answer = answered(question, std::io::stdin().lock());
    match answer.map_err(|error| unreadable(&error.to_string()))? {
        true => Ok(()),
        false => Err(Failure::failed("not confirmed", NOT_DONE)),
    }
}

const NOT_DONE: &str = "nothing was done; --yes goes on without asking";

/// Whether the answer is a plain yes.
fn answered(question: &str, from: impl Read) -> std::io::Result<bool> {
    let _ = write!(std::io::stderr(), "{} Type yes to go on: ", plain_lines(question));
    let mut answer = String::new();
    let mut reader = std::io::BufReader::new(from.take(16));
    reader.read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

/// Whether somebody is there to be asked.
fn attended() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

fn unbuffered_stdin() -> Result<std::fs::File, Failure> {
    use std::os::fd::AsFd;
    let descriptor = std::io::stdin().as_fd().try_clone_to_owned();
    descriptor.map(std::fs::File::from).map_err(|error| unreadable(&error.to_string()))
}

fn unreadable(why: &str) -> Failure {
    Failure::failed(format!("the terminal cannot be read: {why}"), "redirect stdin or name a file")
}

/// The terminal without echo; dropped, it is as it was.
struct Silence(Termios);

impl Silence {
    fn begin() -> Result<Self, Failure> {
        let before = tcgetattr(std::io::stdin()).map_err(|error| unreadable(error.desc()))?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ISIG);
        if let Some(end) = silent.control_chars.get_mut(SpecialCharacterIndices::VEOL as usize) {
            *end = INTERRUPT;
        }
        tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &silent)
            .map_err(|error| unreadable(error.desc()))?;
        Ok(Self(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
    }
}
