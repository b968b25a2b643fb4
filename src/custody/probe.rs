//! A process beside custody that looks, when asked, whether the token is to be found.
//!
//! A module must not be initialised twice in one process, so custody cannot see by itself that a token
//! which went away is back. This process is split off before custody reads a PIN or opens a key and has
//! neither. For every look it makes a child that shuts itself in as custody does, loads the module,
//! looks for the token without a login, and ends.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::process::StartError;
use super::protocol::{Check, Outage, Reason, Verdict};
use crate::sandbox::{self, Needs};
use crate::secret::harden_process;
use crate::token::{self, TokenError, pkcs11};

/// How long a look may take: a module that hangs is as good as none.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer, in bytes.
const LONGEST: usize = 1024;

/// Children that may be left behind, killed and not gone, before nobody looks until one of them has gone:
/// what waits for a device cannot be ended.
const MOST_LEFT: usize = 8;

/// The way to the process that looks.
pub struct Probe(Mutex<Option<UnixStream>>);

/// Why the token was not found.
#[derive(Debug)]
pub enum Unseen {
    /// It is not there, or its module does not do its work.
    Absent(Outage),
    /// The process that looks is gone or stuck: nobody looks any more, as long as this process lives.
    Lost(String),
}

impl Probe {
    /// Splits the process off. This one must have one thread, and nothing that is to be kept from it.
    #[allow(unsafe_code)] // fork(2)
    pub fn split_off(
        token: &token::Settings,
        sandbox: &sandbox::Settings,
        needs: impl Fn() -> Needs,
    ) -> Result<Self, StartError> {
        let (ours, theirs) = UnixStream::pair().map_err(StartError::Probe)?;
        ours.set_read_timeout(Some(PATIENCE * 2)).map_err(StartError::Probe)?;
        let parent = Pid::this();
        // SAFETY: there is one thread, so the child finds every lock as it should be.
        match unsafe { fork() }.map_err(|errno| StartError::Probe(errno.into()))? {
            ForkResult::Parent { .. } => Ok(Self(Mutex::new(Some(ours)))),
            ForkResult::Child => {
                drop(ours);
                let _ = prctl::set_pdeathsig(Signal::SIGKILL);
                let _ = prctl::set_name(c"probe");
                if Pid::parent() == parent && harden_process().is_ok() {
                    serve(theirs, || look(token, sandbox, &needs()));
                }
                leave(0)
            }
        }
    }

    /// Whether the token is to be found now, from a process that has not used it before.
    ///
    /// # Errors
    /// `Unseen`: it is not to be found, or nobody can look.
    pub fn look(&self) -> Result<(), Unseen> {
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lost =
            |why: &str| Unseen::Lost(format!("the process that looks for it is lost: {why}"));
        let Some(stream) = line.as_mut() else { return Err(lost("it was before")) };
        let answer = ask(stream);
        if answer.is_err() {
            // Answers would come too late, to the next who asks.
            *line = None;
        }
        match answer {
            Ok(why) if why.is_empty() => Ok(()),
            Ok(told) => Err(Unseen::Absent(understood(&told))),
            Err(error) => Err(lost(&error.to_string())),
        }
    }
}

impl Probe {
    /// Whether there is a process to be asked. One that is being asked at the moment is taken to be.
    pub fn is_there(&self) -> bool {
        let Ok(line) = self.0.try_lock() else { return true };
        line.as_ref().is_some_and(|line| !has_ended(line))
    }

    /// The check of `doctor`.
    pub fn check(&self) -> Check {
        let (verdict, found, remedy) = match self.is_there() {
            true => (Verdict::Ok, "looks for the token when that is away", ""),
            false => (Verdict::Fail, "it has ended: custody starts anew", "the journal of custody"),
        };
        Check {
            name: "probe".to_owned(),
            verdict,
            found: found.to_owned(),
            remedy: remedy.to_owned(),
        }
    }
}

/// Whether nobody is left at the other end, which says nothing unasked.
fn has_ended(line: &UnixStream) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(line.as_raw_fd(), &mut [0], flags) {
        Ok(0) => true,
        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => false,
        Err(_) => true,
    }
}

/// An outage in an answer: its word, a blank and why.
fn told(reason: Reason, why: &str) -> String {
    format!("{} {why}", reason.as_str())
}

fn understood(told: &str) -> Outage {
    let (word, why) = told.split_once(' ').unwrap_or(("", told));
    let reason = Reason::ALL.into_iter().find(|reason| reason.as_str() == word);
    Outage::new(reason.unwrap_or(Reason::TokenFailed), why)
}

fn ask(stream: &mut UnixStream) -> io::Result<String> {
    use std::io::Write;
    stream.write_all(b"?")?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut text = vec![0; usize::from(u16::from_le_bytes(length)).min(LONGEST)];
    stream.read_exact(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Answers until nobody asks any more.
fn serve(mut line: UnixStream, look: impl Fn() -> String) {
    let mut question = [0];
    let mut left = 0;
    while line.read_exact(&mut question).is_ok() {
        left = still_left(left);
        let answer = match left < MOST_LEFT {
            true => in_a_child(&look, &mut left),
            false => told(Reason::ModuleHung, "whoever looks for the token hangs"),
        };
        if tell(&mut line, &answer).is_err() {
            return;
        }
    }
}

/// How many of the children that were left behind are there still.
fn still_left(mut left: usize) -> usize {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return left,
            Ok(_) => left = left.saturating_sub(1),
            Err(_) => return 0,
        }
    }
}

/// An empty text where the token is there, else why it is not.
fn look(token: &token::Settings, sandbox: &sandbox::Settings, needs: &Needs) -> String {
    if let Err(error) = sandbox::enter(sandbox, needs) {
        return told(Reason::TokenFailed, &error.to_string());
    }
    let Err(error) = pkcs11::look(token) else { return String::new() };
    let why = error.to_string();
    // SoftHSM does not even initialise itself where the directory of its tokens is not there.
    let is_found = |fault: &token::Fault| fault.call == "C_OpenSession";
    let reason = match &error {
        TokenError::Module { .. } => Reason::ModuleFailed,
        TokenError::Unavailable(fault)
        | TokenError::Fatal(fault)
        | TokenError::Operator(fault)
        | TokenError::Unsupported(fault)
            if is_found(fault) =>
        {
            Reason::TokenFailed
        }
        _ => Reason::TokenAbsent,
    };
    told(reason, &why)
}

fn tell(line: &mut UnixStream, text: &str) -> io::Result<()> {
    use std::io::Write;
    let text = text.as_bytes().get(..LONGEST).unwrap_or(text.as_bytes());
    let length = u16::try_from(text.len()).unwrap_or(0);
    line.write_all(&[&length.to_le_bytes()[..], text].concat())
}

/// Does it in a child, which may crash or hang. One that does not even end when it is killed is counted as
/// left behind.
#[allow(unsafe_code)] // fork(2)
fn in_a_child(look: &impl Fn() -> String, left: &mut usize) -> String {
    let Ok((mut ours, mut theirs)) = UnixStream::pair() else {
        return told(Reason::TokenFailed, "no process could be made to look for it");
    };
    // SAFETY: this process has one thread.
    match unsafe { fork() } {
        Err(errno) => {
            let why = format!("no process could be made to look for it: {errno}");
            told(Reason::TokenFailed, &why)
        }
        Ok(ForkResult::Child) => {
            let _ = prctl::set_pdeathsig(Signal::SIGKILL);
            let sent = tell(&mut theirs, &look());
            leave(i32::from(sent.is_err()))
        }
        Ok(ForkResult::Parent { child }) => {
            drop(theirs);
            let Some(status) = reap(child) else {
                *left += 1;
                return told(Reason::ModuleHung, "the module hung when the token was looked for");
            };
            // Whatever it said is here by now; nobody waits for what somebody else may still hold open.
            let mut answer = Vec::new();
            let _ = ours.set_nonblocking(true).and_then(|()| ours.read_to_end(&mut answer));
            match (status, answer.get(2..)) {
                (WaitStatus::Exited(_, 0), Some(text)) => {
                    String::from_utf8_lossy(text).into_owned()
                }
                _ => told(Reason::ModuleFailed, "the module crashed when the token was looked for"),
            }
        }
    }
}

/// Waits for the child's end; kills one that takes too long, and does not wait for that.
fn reap(child: Pid) -> Option<WaitStatus> {
    let until = Instant::now() + PATIENCE;
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) if Instant::now() >= until => {
                let _ = kill(child, Signal::SIGKILL);
                return None;
            }
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(1)),
            Ok(status) => return Some(status),
            Err(_) => return None,
        }
    }
}

/// Ends this process and runs nothing of what the parent had prepared for its own end.
#[allow(unsafe_code)] // _exit(2) has no safe wrapper
fn leave(code: i32) -> ! {
    // SAFETY: _exit takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}
