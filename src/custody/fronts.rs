//! The connections that custody serves. All are the front's user's, and nothing says which of them is the
//! front: so none waits for another. A candidate has [`HELLO`] to say hello; up to [`MOST_FRONTS`] are
//! served side by side, one for each process; and where there is no place left, the one that was silent
//! longest makes room.
//!
//! A connection belongs to the process that said hello over it. The kernel names the sender of each packet: one
//! of another process, which was handed the descriptor or is a child, ends the connection, and so does the end
//! of that process, whoever holds the descriptor then.
//!
//! Opened keys stay as long as one of those connections is there that custody was unlocked over.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use nix::sys::time::TimeVal;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::protocol::{Hello, Verb};
use super::wire::{Packet, Sender, WireError};
use crate::identity::UnixPeer;

/// How long a connection may take to say hello.
const HELLO: Duration = Duration::from_secs(2);

/// Connections that may be about to say hello; one more makes the oldest of them go.
const MOST_CANDIDATES: usize = 8;

/// Connections that are served side by side.
const MOST_FRONTS: usize = 4;

/// How long an answer waits for the other end to read; after that the connection ends.
const UNREAD: TimeVal = TimeVal::new(5, 0);

/// How long the end of a connection is waited for.
const LONGEST_END: Duration = Duration::from_secs(2);

/// What a request takes besides its packet, in bytes: the job, its answer's head, allocations.
const BESIDES: usize = 512;

/// A connection that has said hello.
pub struct Front {
    socket: OwnedFd,
    /// The process that said hello.
    sender: Sender,
    /// That process, until its end was seen; none where the kernel or another namespace hides it.
    process: Option<OwnedFd>,
    /// Its end was seen.
    is_over: AtomicBool,
    /// When it last asked for something, in milliseconds of this process.
    heard: AtomicU64,
    /// Whether custody was unlocked over it.
    unlocked: AtomicBool,
    waiting_bytes: AtomicUsize,
    most_bytes: usize,
}

/// Bytes of a request that waits, until this is dropped.
pub struct Waiting {
    front: Arc<Front>,
    bytes: usize,
}

/// All connections that are served.
#[derive(Default)]
pub struct Fronts {
    served: Mutex<Vec<Arc<Front>>>,
    ended: Condvar,
}

impl Front {
    /// Takes over a connection that has said hello.
    fn new(socket: OwnedFd, sender: Sender, most_bytes: usize) -> Result<Self, WireError> {
        setsockopt(&socket, sockopt::SendTimeout, &UNREAD).map_err(WireError::Socket)?;
        let process = Pid::from_raw(sender.pid).and_then(|pid| {
            let opened = pidfd_open(pid, PidfdFlags::empty());
            opened
                .inspect_err(|error| tracing::debug!(%error, "the front's end cannot be watched"))
                .ok()
        });
        Ok(Self {
            socket,
            sender,
            process,
            is_over: AtomicBool::new(false),
            heard: AtomicU64::new(now()),
            unlocked: AtomicBool::new(false),
            waiting_bytes: AtomicUsize::new(0),
            most_bytes,
        })
    }

    /// The process that said hello.
    pub fn pid(&self) -> i32 {
        self.sender.pid
    }

    /// The next request that it sends.
    pub fn receive(&self, input: &mut Packet) -> Result<(u64, Verb), WireError> {
        let (_, id, verb) = input.receive_from(self.socket.as_fd(), Some(self.sender))?;
        Ok((id, verb))
    }

    /// Its process, if its end is to be watched for.
    fn watched(&self) -> Option<BorrowedFd<'_>> {
        let process = self.process.as_ref().filter(|_| !self.is_over.load(Ordering::Relaxed));
        process.map(AsFd::as_fd)
    }

    /// Its process has ended; another one may hold the descriptor.
    fn process_ended(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.end();
    }

    /// It has asked for something.
    pub fn hear(&self) {
        self.heard.store(now(), Ordering::Relaxed);
    }

    /// Makes room for a request of so many bytes that is to wait; `None` where too many wait already.
    pub fn wait(self: &Arc<Self>, packet: usize) -> Option<Waiting> {
        let bytes = packet + BESIDES;
        let before = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let waiting = Waiting { front: Arc::clone(self), bytes };
        (before + bytes <= self.most_bytes).then_some(waiting)
    }

    /// Ends it for both directions: no thread waits for it any more.
    pub fn end(&self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    /// Whether the other end has gone.
    pub fn has_ended(&self) -> bool {
        let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
        let found = poll(&mut polled, PollTimeout::ZERO);
        found.is_ok_and(|found| found > 0)
            && polled[0].revents().is_some_and(|now| now.contains(PollFlags::POLLHUP))
    }
}

impl AsFd for Front {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.front.waiting_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Fronts {
    /// Makes a place for a further connection. Those whose other end has gone end first, with what they
    /// left open: whoever comes next finds it wiped.
    fn admit(&self, front: &Arc<Front>) {
        // A process of another namespace has no number here.
        let is_same = |known: &Front| known.pid() != 0 && known.pid() == front.pid();
        let is_over = |known: &Front| {
            known.is_over.load(Ordering::Relaxed) || known.has_ended() || is_same(known)
        };
        let mut served = self.served();
        for known in served.iter().filter(|known| is_over(known)) {
            known.end();
        }
        if served.iter().filter(|known| !is_over(known)).count() >= MOST_FRONTS
            // Keys are open for a connection that has unlocked custody: it is not given up for one that has not.
            && let Some(silent) = served.iter().min_by_key(|known| {
                (known.unlocked.load(Ordering::Relaxed), known.heard.load(Ordering::Relaxed))
            })
        {
            tracing::warn!(
                pid = silent.pid(),
                "too many connections of the front's user; the most silent one ends"
            );
            silent.end();
        }
        let goes = |known: &Arc<Front>| is_over(known);
        let still =
            |served: &mut Vec<Arc<Front>>| served.iter().any(goes) || served.len() >= MOST_FRONTS;
        let waited = self.ended.wait_timeout_while(served, LONGEST_END, still);
        served = waited.unwrap_or_else(PoisonError::into_inner).0;
        served.push(Arc::clone(front));
    }

    /// Custody is about to be unlocked over this connection: what is open stays open from now on. To be
    /// settled after.
    pub fn unlocking_over(&self, front: &Front) -> bool {
        let _settled = self.served();
        front.unlocked.swap(true, Ordering::Relaxed)
    }

    /// What came of an unlock: whether custody is open for this connection. Where it is not, or the connection
    /// has ended meanwhile, and nobody else uses what is open, `wipe` is done.
    pub fn settle_unlock(&self, front: &Arc<Front>, is_open: bool, wipe: impl FnOnce()) {
        let served = self.served();
        front.unlocked.store(is_open, Ordering::Relaxed);
        if !is_used(&served) {
            wipe();
        }
    }

    /// A connection is no longer served. Where custody was unlocked over it and nobody else uses what is
    /// open, `wipe` is done before anybody else comes.
    pub fn part(&self, front: &Arc<Front>, wipe: impl FnOnce()) {
        let mut served = self.served();
        served.retain(|known| !Arc::ptr_eq(known, front));
        if front.unlocked.load(Ordering::Relaxed) && !is_used(&served) {
            wipe();
        }
        drop(served);
        self.ended.notify_all();
    }

    /// The process of another connection that custody was unlocked over.
    pub fn another_unlocked(&self, front: &Arc<Front>) -> Option<i32> {
        let served = self.served();
        let mut others = served.iter().filter(|other| !Arc::ptr_eq(other, front));
        let is_open = |other: &&Arc<Front>| {
            other.unlocked.load(Ordering::Relaxed)
                && !other.is_over.load(Ordering::Relaxed)
                && !other.has_ended()
        };
        others.find(is_open).map(|other| other.pid())
    }

    /// All connections, to tell them something.
    pub fn all(&self) -> Vec<Arc<Front>> {
        self.served().clone()
    }

    fn served(&self) -> MutexGuard<'_, Vec<Arc<Front>>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_used(served: &[Arc<Front>]) -> bool {
    served.iter().any(|front| front.unlocked.load(Ordering::Relaxed))
}

/// Milliseconds since this process first asked.
fn now() -> u64 {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(FIRST.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Somebody who has connected and not said hello yet.
struct Candidate {
    socket: OwnedFd,
    pid: i32,
    until: Instant,
}

/// Who may connect.
#[derive(Debug, Clone, Copy)]
pub struct Admission {
    pub uid: u32,
    /// The front's own process, where it is known.
    pub pid: Option<i32>,
    /// Bytes of requests of one connection that may wait.
    pub most_bytes: usize,
}

/// Takes connections on `listener`, which is told who sends ([`tell_senders`](super::wire::tell_senders)), as they come, and hands each to `serve` once it has said hello. Does not
/// return unless a packet cannot be had.
pub fn accept(
    listener: &OwnedFd,
    admission: Admission,
    fronts: &Fronts,
    mut serve: impl FnMut(Arc<Front>),
) -> Result<std::convert::Infallible, WireError> {
    let mut packet = Packet::new()?;
    let mut candidates: Vec<Candidate> = Vec::new();
    loop {
        let served = fronts.all();
        let ready = ready(listener, &candidates, &served);
        for ended in &ready.ended {
            ended.process_ended();
        }
        let (is_called, mut spoken) = (ready.listener, Vec::new());
        for at in ready.candidates.iter().rev() {
            spoken.push(candidates.remove(*at));
        }
        for candidate in spoken.into_iter().rev() {
            match greet(candidate, &mut packet, admission) {
                Ok(front) => {
                    let front = Arc::new(front);
                    fronts.admit(&front);
                    serve(front);
                }
                Err(error) => tracing::warn!(%error, "a connection without a hello is ended"),
            }
        }
        candidates.retain(|candidate| {
            let in_time = Instant::now() < candidate.until;
            if !in_time {
                tracing::warn!(pid = candidate.pid, "a connection that says no hello is ended");
            }
            in_time
        });
        if is_called && let Some(candidate) = take(listener, admission) {
            if candidates.len() >= MOST_CANDIDATES {
                candidates.remove(0);
            }
            candidates.push(candidate);
        }
    }
}

#[derive(Default)]
struct Ready {
    listener: bool,
    candidates: Vec<usize>,
    /// Connections whose process has ended.
    ended: Vec<Arc<Front>>,
}

/// Waits until somebody connects, says hello, is late or ends.
fn ready(listener: &OwnedFd, candidates: &[Candidate], served: &[Arc<Front>]) -> Ready {
    let first = candidates.iter().map(|candidate| candidate.until).min();
    let timeout = first.map_or(PollTimeout::NONE, |until| {
        let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    let mut polled = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    polled.extend(
        candidates.iter().map(|candidate| PollFd::new(candidate.socket.as_fd(), PollFlags::POLLIN)),
    );
    let watched: Vec<_> =
        served.iter().filter_map(|front| Some((front, front.watched()?))).collect();
    polled.extend(watched.iter().map(|(_, process)| PollFd::new(*process, PollFlags::POLLIN)));
    if poll(&mut polled, timeout).is_err() {
        return Ready::default();
    }
    let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
    let (spoken, ended) = polled[1..].split_at(candidates.len());
    let spoken = spoken.iter().enumerate().filter(|(_, fd)| is_ready(fd)).map(|(at, _)| at);
    let ended = watched.iter().zip(ended).filter(|(_, fd)| is_ready(fd));
    let ended = ended.map(|((front, _), _)| Arc::clone(front));
    Ready { candidates: spoken.collect(), ended: ended.collect(), listener: is_ready(&polled[0]) }
}

/// The next connection, if it is the front's user's, and the front's own where that is known.
#[allow(unsafe_code)] // a number becomes an owner
fn take(listener: &OwnedFd, admission: Admission) -> Option<Candidate> {
    use std::os::fd::FromRawFd;
    let flags = nix::sys::socket::SockFlag::SOCK_CLOEXEC;
    let socket = match nix::sys::socket::accept4(listener.as_raw_fd(), flags) {
        // SAFETY: accept4 returned a descriptor that nobody else owns.
        Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
        Err(nix::errno::Errno::EAGAIN) => return None,
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            std::thread::sleep(Duration::from_millis(50));
            return None;
        }
    };
    let Ok(UnixPeer { uid, pid, .. }) = UnixPeer::of(&socket) else { return None };
    if uid != admission.uid {
        tracing::warn!(
            uid,
            front_uid = admission.uid,
            "a connection from another user was refused"
        );
        return None;
    }
    if admission.pid.is_some_and(|front| front != pid) {
        tracing::warn!(pid, "a connection from another process than the front was refused");
        return None;
    }
    Some(Candidate { socket, pid, until: Instant::now() + HELLO })
}

/// Exchanges [`Hello`]s with one who has said something.
fn greet(
    candidate: Candidate,
    packet: &mut Packet,
    admission: Admission,
) -> Result<Front, WireError> {
    let Candidate { socket, .. } = candidate;
    let (sender, _, theirs): (_, u64, Hello) = packet.receive_from(socket.as_fd(), None)?;
    if sender.uid != admission.uid {
        return Err(WireError::Passed);
    }
    packet.send_at_once(socket.as_fd(), 0, &Hello::OURS)?;
    if theirs != Hello::OURS {
        return Err(WireError::Malformed);
    }
    Front::new(socket, sender, admission.most_bytes)
}
