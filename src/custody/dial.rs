//! The way to custody's socket, for a front that may connect to nothing.
//!
//! Custody is connected to whenever it starts again, and a process that may connect to one socket may connect
//! to all that its user may. So the front gives up the right, and a process of its own, split off before, does
//! it in its place: asked by one byte, it connects to custody's socket, and to no other, and hands the
//! connection over. Asked by another byte, it makes the front's own socket and hands that over, so that the
//! front needs no right to make, remove or open files to others where its socket lies. It reads nothing else
//! that the front says.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    connect, recvmsg, sendmsg, socket,
};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setpgid};

use super::process::StartError;
use super::wire::WireError;
use crate::sandbox::{self, Needs, Sockets};
use crate::secret::harden_process;

/// How long an answer may take; a connection over a Unix socket is there at once or not at all.
const PATIENCE: Duration = Duration::from_secs(2);

/// The front's own socket, which the process makes that connects.
pub struct OwnSocket {
    /// Where it lies.
    pub directory: PathBuf,
    /// Makes it; the error is a number that the front understands, and is not 0.
    pub make: Box<dyn Fn() -> Result<OwnedFd, i32>>,
}

/// Connects to custody.
#[derive(Debug, Clone)]
pub enum Dialer {
    /// By itself.
    Itself,
    /// By the process that was split off.
    Helper(Arc<Helper>),
}

/// The way to the process that connects.
#[derive(Debug)]
pub struct Helper {
    line: Mutex<Line>,
    process: Pid,
}

#[derive(Debug)]
struct Line {
    stream: UnixStream,
    /// Answers to come to questions that were given up: they are for nobody else.
    late: u32,
}

impl Dialer {
    /// Splits the process off. This one must have one thread, and nothing that is to be kept from it.
    ///
    /// # Errors
    /// Where there can be no further process.
    #[allow(unsafe_code)] // fork(2)
    pub fn split_off(
        custody: &Path,
        own: Option<OwnSocket>,
        sandbox: &sandbox::Settings,
    ) -> Result<Self, StartError> {
        let (ours, theirs) = UnixStream::pair().map_err(StartError::Dialer)?;
        ours.set_read_timeout(Some(PATIENCE)).map_err(StartError::Dialer)?;
        // SAFETY: there is one thread, so the child finds every lock as it should be.
        match unsafe { fork() }.map_err(|errno| StartError::Dialer(errno.into()))? {
            ForkResult::Parent { child } => {
                let line = Mutex::new(Line { stream: ours, late: 0 });
                Ok(Self::Helper(Arc::new(Helper { line, process: child })))
            }
            ForkResult::Child => {
                drop(ours);
                let served = shut_in(sandbox, own.as_ref()).is_ok();
                if served {
                    serve(theirs, custody, own.as_ref());
                }
                // SAFETY: _exit takes no pointers and does not return; what the parent registered to be done
                // at its exit is not this process's to do.
                unsafe { libc::_exit(i32::from(!served)) }
            }
        }
    }

    /// A connection to custody's socket, which does not block.
    pub(super) async fn dial(&self, path: &Path) -> Result<OwnedFd, WireError> {
        match self {
            Self::Itself => connect_to(path, SockType::SeqPacket).map_err(WireError::Socket),
            Self::Helper(helper) => {
                let helper = Arc::clone(helper);
                let asked = tokio::task::spawn_blocking(move || helper.ask(CUSTODY)).await;
                let connected = asked.unwrap_or(Err(WireError::Closed))?;
                connected.map_err(|code| WireError::Socket(Errno::from_raw(code)))
            }
        }
    }

    /// Has the front's own socket made; the error is a number of [`OwnSocket::make`]'s, or EPIPE where the
    /// process does not answer.
    pub fn make_own_socket(&self) -> Result<OwnedFd, i32> {
        match self {
            Self::Itself => Err(Errno::EOPNOTSUPP as i32),
            Self::Helper(helper) => helper.ask(OWN).unwrap_or(Err(Errno::EPIPE as i32)),
        }
    }

    /// The process that connects.
    pub fn process(&self) -> Option<Pid> {
        match self {
            Self::Itself => None,
            Self::Helper(helper) => Some(helper.process),
        }
    }

    /// Whether the process that connects has ended, which it does not by itself.
    pub fn has_ended(&self) -> bool {
        match self {
            Self::Itself => false,
            Self::Helper(helper) => {
                let ended = waitpid(helper.process, Some(WaitPidFlag::WNOHANG));
                !matches!(ended, Ok(WaitStatus::StillAlive))
            }
        }
    }
}

impl Helper {
    /// The answer: a socket, or the number of an error.
    fn ask(&self, question: u8) -> Result<Result<OwnedFd, i32>, WireError> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let Line { stream, late } = &mut *line;
        while *late > 0 {
            if let Err(WireError::Closed) = answer_on(stream) {
                return Err(WireError::Closed);
            }
            *late -= 1;
        }
        stream.write_all(&[question]).map_err(|_| WireError::Closed)?;
        answer_on(stream)
            .inspect_err(|error| *late += u32::from(matches!(error, WireError::Closed)))
    }
}

/// The next answer; `Closed` where there is none in time.
fn answer_on(stream: &UnixStream) -> Result<Result<OwnedFd, i32>, WireError> {
    let mut answer = [0; 4];
    let mut parts = [IoSliceMut::new(&mut answer)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_WAITALL;
    let received = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags);
    let received = received.map_err(|_| WireError::Closed)?;
    let complete = received.bytes == 4;
    let passed = received.cmsgs().ok().and_then(|mut all| all.find_map(first_descriptor));
    // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
    #[allow(unsafe_code)] // a number becomes an owner
    let passed = passed.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    match i32::from_le_bytes(answer) {
        _ if !complete => Err(WireError::Closed),
        0 => passed.map(Ok).ok_or(WireError::Closed),
        code => Ok(Err(code)),
    }
}

fn first_descriptor(message: ControlMessageOwned) -> Option<RawFd> {
    match message {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    }
}

/// What the process gives up: it connects to Unix sockets, makes the front's, and opens no file.
#[allow(unsafe_code)] // signal(2)
fn shut_in(settings: &sandbox::Settings, own: Option<&OwnSocket>) -> Result<(), StartError> {
    let _ = prctl::set_name(c"dialer");
    // It ends with the front, not before it: a front that is told to end still writes its last lines.
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    for each in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: no handler is installed.
        let _ = unsafe { signal(each, SigHandler::SigIgn) };
    }
    harden_process()?;
    let needs = Needs {
        sockets: Sockets::Local,
        socket_in: own.iter().map(|own| own.directory.clone()).collect(),
        modes: own.is_some(),
        alone: true,
        ..Needs::default()
    };
    sandbox::enter(settings, &needs)?;
    Ok(())
}

/// What is asked for: a connection to custody, and the front's own socket.
const CUSTODY: u8 = b'c';
const OWN: u8 = b'o';

/// Connects as often as it is asked to, until the front is no more.
fn serve(mut line: UnixStream, custody: &Path, own: Option<&OwnSocket>) {
    let mut question = [0];
    while line.read_exact(&mut question).is_ok() {
        let made = match (question, own) {
            ([CUSTODY], _) => {
                connect_to(custody, SockType::SeqPacket).map_err(|errno| errno as i32)
            }
            ([OWN], Some(own)) => (own.make)(),
            ([OWN], None) => Err(Errno::EOPNOTSUPP as i32),
            _ => return,
        };
        let code = made.as_ref().err().copied().unwrap_or(0).to_le_bytes();
        let passed: Vec<RawFd> = made.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&passed)];
        let rights = if passed.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        if sendmsg::<()>(line.as_raw_fd(), &[IoSlice::new(&code)], rights, flags, None).is_err() {
            return;
        }
    }
}

fn connect_to(path: &Path, kind: SockType) -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, kind, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}
