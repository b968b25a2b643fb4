//! The process: a socket, a thread per core that reads, computes and answers, and a few for the token.
//!
//! Every core's thread waits in `recv` on the front's connection; the kernel wakes one of them per
//! packet, so a request with a loaded key costs a single wake-up and no queue. What needs the token
//! goes to threads of its own, so that a slow token holds up nothing else.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use nix::sys::socket::UnixAddr;
use serde::{Deserialize, Serialize};

use super::custodian::{Custodian, Quick};
use super::fair_queue::FairQueue;
use super::fronts::{self, Admission, Front, Waiting};
use super::hang::HangWatch;
use super::housekeeping::{Beat, Watched, spawn_canary, spawn_housekeeping};
use super::protocol::{Answer, Fault, Verb};
use super::state::StateError;
use super::wire::{Packet, WireError};
use super::{cache, needs};
use crate::key::KeyMeta;
use crate::secret::arena;
use crate::turns::{Apart, Seat, Turns};

/// Custody's own settings; the token's are its module's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where the front finds custody; only its owner may connect.
    pub socket: PathBuf,
    /// The user that the front runs as, by name or number; without it, custody's own.
    pub front_user: Option<String>,
    /// The user that custody runs as, by name or number; without it, the front's own.
    pub custody_user: Option<String>,
    /// Who starts custody.
    pub spawn: Spawn,
    /// Milliseconds that a request waits for custody to answer, or to come back.
    pub deadline_ms: u64,
    /// Threads that compute; 0 means one per core.
    pub workers: usize,
    /// Threads that may wait for the token at the same time.
    pub token_threads: usize,
    /// Bytes of requests of one connection that may wait for the token, or for keys that are made; more are
    /// refused as busy.
    pub waiting_bytes: usize,
    /// The most seconds of an outage that an opened key may serve without the token, whatever its record
    /// says. 0: no key does.
    pub max_outage_grace_seconds: u32,
    /// Wrong PINs that may be given since the last right one. Root raises it where they are used up.
    pub max_wrong_pins: u32,
    /// What custody remembers ends with it. Set for the custody of `backup verify` and `backup restore`, which
    /// then tries no PIN where the token says that one was wrong since the last right one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub forgets: bool,
    /// Days that a master key must have been out of use before it is destroyed; 0: none.
    pub master_destroy_wait_days: u32,
    /// Seconds between two trials of the token with a known blob; a lost token that nobody needs is
    /// noticed by the next of them.
    pub canary_seconds: u64,
    /// Seconds after which work with the token is taken to hang, so that custody is started anew. To
    /// open the token, or to make keys in it, may take four times as long.
    pub hang_seconds: u64,
    /// What custody remembers over its end; its user's alone, and never the front's to write.
    pub state_directory: PathBuf,
    /// The recovery key: an RSA-4096 public key, PEM. Its private half lies offline.
    pub recovery_key: Option<PathBuf>,
    /// The locked memory that opened keys live in.
    pub arena: arena::Settings,
    /// How long opened keys are kept.
    pub cache: cache::Settings,
    /// What the token's module needs besides what is known.
    pub sandbox: needs::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/strongroom-custody/custody.sock"),
            front_user: None,
            custody_user: None,
            spawn: Spawn::Auto,
            deadline_ms: 2000,
            workers: 0,
            token_threads: 4,
            waiting_bytes: 8 * 1024 * 1024,
            max_wrong_pins: 2,
            forgets: false,
            master_destroy_wait_days: 30,
            max_outage_grace_seconds: KeyMeta::LONGEST_WITHOUT_TOKEN,
            canary_seconds: 10,
            hang_seconds: 10,
            state_directory: PathBuf::from("/var/lib/strongroom-custody/state"),
            recovery_key: None,
            arena: arena::Settings::default(),
            cache: cache::Settings::default(),
            sandbox: needs::Settings::default(),
        }
    }
}

impl Settings {
    /// Threads that compute.
    fn computing(&self) -> usize {
        match self.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            some => some,
        }
    }

    /// Threads that work with opened keys: those that compute, those that wait for the token, and the one
    /// that generates.
    pub(super) fn with_keys(&self) -> usize {
        self.computing() + self.token_threads.max(1) + 1
    }

    /// How opened keys are kept.
    pub(super) fn cache_settings(&self) -> cache::Settings {
        let longest_grace = Duration::from_secs(u64::from(self.max_outage_grace_seconds));
        cache::Settings { longest_grace, ..self.cache.clone() }
    }

    /// What keeps custody from starting as these settings say, found before it is tried.
    pub fn fault(&self) -> Option<StartError> {
        let path = self.socket.clone();
        UnixAddr::new(&self.socket).is_err().then_some(StartError::LongPath { path })
    }
}

/// Who starts custody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spawn {
    /// The front, as its child, unless the front itself was started by systemd.
    #[default]
    Auto,
    /// The front, always.
    Always,
    /// Somebody else.
    Never,
}

/// Why custody did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("locked memory: {0}")]
    Arena(#[from] crate::secret::ArenaError),
    #[error("the process could not be closed to dumps and debuggers: {0}")]
    Harden(#[from] crate::secret::HardenError),
    #[error("the sandbox: {0}")]
    Sandbox(#[from] crate::sandbox::SandboxError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("packets: {0}")]
    Wire(#[from] WireError),
    #[error("the socket {path} could not be opened: {cause}")]
    Socket { path: PathBuf, cause: io::Error },
    #[error("[custody] socket = {}: a socket's path has at most 107 bytes", path.display())]
    LongPath { path: PathBuf },
    #[error("[custody] front_user or custody_user = {0:?}: no such user")]
    User(String),
    #[error("a thread could not be started: {0}")]
    Thread(io::Error),
    #[error("the process that looks for the token could not be made: {0}")]
    Probe(io::Error),
    #[error("the process that connects to custody could not be made: {0}")]
    Dialer(io::Error),
}

/// A request on its way to another thread, with the connection that its answer goes to.
struct Job {
    front: Arc<Front>,
    id: u64,
    verb: Verb,
    waiting: Waiting,
}

/// What the threads share.
struct Office {
    custodian: Arc<Custodian>,
    token: Arc<Jobs>,
    generation: Arc<Jobs>,
    watched: Watched,
}

type Jobs = FairQueue<Job>;

/// Jobs of one connection that may wait for the token or for a generation; more are refused as busy.
const WAITING: usize = 1024;

/// Serves the front on `listener` until the process is told to end; `beat` is called after every
/// second in which the token was found well, custody was locked, or keys served without the token;
/// `stop` returns when it is time to end.
///
/// # Errors
/// [`StartError`] where a thread or a buffer could not be had. It does not return otherwise: the
/// process ends from within ([`leave`]).
pub fn run(
    settings: &Settings,
    listener: OwnedFd,
    (uid, pid): (u32, Option<i32>),
    custodian: Custodian,
    stop: impl FnOnce() + Send + 'static,
    beat: impl Fn() + Send + Sync + 'static,
) -> Result<(), StartError> {
    let custodian = Arc::new(custodian);
    leave_on(stop, &custodian)?;
    let [token, generation] = [(); 2].map(|()| Arc::new(FairQueue::new(WAITING)));
    let hang = Arc::new(HangWatch::default());
    let limit = Duration::from_secs(settings.hang_seconds.max(1));
    let (watched, beat): (_, Beat) = ((Arc::clone(&hang), limit), Arc::new(beat));
    spawn_pool(settings.token_threads.max(1), "token", &token, &custodian, &watched)?;
    spawn_pool(1, "generation", &generation, &custodian, &watched)?;
    let canary_every = Duration::from_secs(settings.canary_seconds);
    spawn_canary(canary_every, &custodian, &watched, Arc::clone(&beat))?;
    spawn_housekeeping(hang, &custodian, beat)?;
    let office = Arc::new(Office { custodian, token, generation, watched });
    let most_bytes = settings.waiting_bytes;
    accept_fronts(&listener, Admission { uid, pid, most_bytes }, settings.computing(), &office)
}

/// Waits on a thread of its own for `stop` to return, then wipes and ends the process.
fn leave_on(
    stop: impl FnOnce() + Send + 'static,
    custodian: &Arc<Custodian>,
) -> Result<(), StartError> {
    let custodian = Arc::clone(custodian);
    let wait = move || {
        stop();
        tracing::info!("custody wipes its keys and ends");
        leave(&custodian, 0)
    };
    let builder = thread::Builder::new().name("signals".to_owned());
    builder.spawn(wait).map(drop).map_err(StartError::Thread)
}

/// Ends the process at once, past the exit handlers of a PKCS#11 module that other threads may be in.
/// What writes in the token is let finish. The kernel wipes what it takes back; opened keys were wiped
/// before. A token that is past use is left as it is: to close it is a call into a module that may hang.
#[allow(unsafe_code)] // _exit(2) has no safe wrapper
pub fn leave(custodian: &Custodian, code: i32) -> ! {
    custodian.say_why();
    let is_past_use = code == PAST_USE || custodian.brown_out().is_some();
    let wipe = || match custodian.wipe() {
        token if is_past_use => std::mem::forget(token),
        token => drop(token),
    };
    wipe();
    let _nobody_writes_in_the_token = custodian.let_finish();
    wipe();
    (custodian.before_exit)();
    // SAFETY: _exit takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// Exit code of a process that wants a successor (EX_TEMPFAIL of sysexits.h).
pub const PAST_USE: i32 = 75;

/// Serves every connection that comes, each by threads of its own.
fn accept_fronts(
    listener: &OwnedFd,
    admission: Admission,
    workers: usize,
    office: &Arc<Office>,
) -> Result<(), StartError> {
    let fronts = Arc::clone(&office.custodian.notices.fronts);
    let serve = |front: Arc<Front>| {
        let office = Arc::clone(office);
        tracing::debug!(pid = front.pid(), "the front has connected");
        let served = Arc::clone(&front);
        let serving = thread::Builder::new().name("front".to_owned()).spawn(move || {
            if let Err(error) = serve(&front, workers, &office) {
                tracing::error!(%error, "a connection could not be served");
                front.end();
            }
            // What it asked for and nobody waits for any more.
            for jobs in [&office.token, &office.generation] {
                jobs.drop_of(key_of(&front));
            }
            office.custodian.notices.fronts.part(&front, || end_of_service(&office));
            tracing::debug!("the front has disconnected");
        });
        if let Err(error) = serving {
            tracing::error!(%error, "a connection could not be served");
            fronts.part(&served, || {});
        }
    };
    match fronts::accept(listener, admission, &office.custodian.notices.fronts, serve)? {}
}

/// No key stays open with nobody there; the next front unlocks anew.
fn end_of_service(office: &Office) {
    if office.custodian.brown_out().is_some() {
        leave(&office.custodian, PAST_USE);
    }
    let (hang, limit) = &office.watched;
    hang.during(*limit, || drop(office.custodian.wipe()));
}

/// Serves a connection until it ends.
fn serve(front: &Arc<Front>, workers: usize, office: &Arc<Office>) -> Result<(), StartError> {
    let mut threads = Vec::new();
    let apart = Arc::new(Apart::new(workers));
    let mut buffers = Vec::new();
    for _ in 0..workers {
        buffers.push((Packet::new()?, Packet::new()?));
    }
    for (number, packets) in buffers.into_iter().enumerate() {
        let apart = Arc::clone(&apart);
        let (front, office) = (Arc::clone(front), Arc::clone(office));
        let thread = thread::Builder::new()
            .name(format!("compute-{number}"))
            .spawn(move || work(&front, &office, apart.seat(number).as_ref(), packets))
            .map_err(StartError::Thread)?;
        threads.push(thread);
    }
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a computing thread panicked; custody ends, to be started anew");
            leave(&office.custodian, PAST_USE);
        }
    }
    Ok(())
}

/// How long the turns of a computing thread are: about as long as a private operation of RSA-2048.
const TURN: Duration = Duration::from_micros(300);

/// Reads, computes and answers until the front hangs up.
fn work(
    front: &Arc<Front>,
    office: &Office,
    seat: Option<&Seat<'_>>,
    (mut input, mut output): (Packet, Packet),
) {
    let turns = Turns::of(TURN);
    loop {
        let (id, verb) = match front.receive(&mut input) {
            Ok(request) => request,
            Err(WireError::Closed) => return,
            Err(error @ WireError::Passed) => {
                tracing::error!(
                    %error, pid = front.pid(),
                    "the front's connection is in other hands; disconnected"
                );
                front.end();
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "the front sent what is no request; disconnected");
                front.end();
                return;
            }
        };
        front.hear();
        let busy = seat.and_then(Seat::start);
        let lock = matches!(verb, Verb::Lock);
        if lock {
            office.custodian.note_lock();
        }
        let (queue, verb) = match office.custodian.quick(verb) {
            Quick::Answered(answer) => {
                reply(front, &mut output, id, answer);
                if lock {
                    leave(&office.custodian, 0);
                }
                drop(busy);
                // The front may wait for this processor, with a request that has nothing to do with us.
                if let Some(turns) = &turns {
                    turns.give_way();
                }
                continue;
            }
            Quick::Token(verb) => (&office.token, verb),
            Quick::Generation(verb) => (&office.generation, verb),
        };
        let waiting = front.wait(input.len());
        let job = waiting.map(|waiting| Job { front: Arc::clone(front), id, verb, waiting });
        if job.is_none_or(|job| queue.push(key_of(front), job).is_err()) {
            reply(front, &mut output, id, Err(Fault::Busy));
        }
    }
}

/// What a connection's jobs are queued under; no other has it while one of them waits.
fn key_of(front: &Arc<Front>) -> usize {
    Arc::as_ptr(front) as usize
}

/// Answers; who does not read is no longer served, so that nobody else waits behind it.
fn reply(front: &Front, output: &mut Packet, id: u64, answer: Answer) {
    let sent = match output.send(front.as_fd(), id, &answer) {
        Err(WireError::TooLong) => {
            let fault = Fault::Protocol("the answer is longer than a packet".to_owned());
            output.send(front.as_fd(), id, &Answer::Err(fault))
        }
        sent => sent,
    };
    if let Err(WireError::WouldBlock) = sent {
        tracing::warn!(pid = front.pid(), "the front does not read its answers; disconnected");
        front.end();
    }
}

/// Whether a verb makes many calls to the token, or makes keys.
fn is_long(verb: &Verb) -> bool {
    matches!(
        verb,
        Verb::Unlock { .. }
            | Verb::Init { .. }
            | Verb::Doctor
            | Verb::GenerateKey { .. }
            | Verb::ImportKey { .. }
            | Verb::Masters { .. }
            | Verb::MakeMaster { .. }
            | Verb::DestroyMaster { .. }
            | Verb::UseHome { .. }
    )
}

fn spawn_pool(
    threads: usize,
    name: &str,
    jobs: &Arc<Jobs>,
    custodian: &Arc<Custodian>,
    (hang, limit): &Watched,
) -> Result<(), StartError> {
    for number in 0..threads {
        let (jobs, custodian) = (Arc::clone(jobs), Arc::clone(custodian));
        let (hang, limit) = (Arc::clone(hang), *limit);
        let mut output = Packet::new()?;
        thread::Builder::new()
            .name(format!("{name}-{number}"))
            .spawn(move || {
                loop {
                    let Job { front, id, verb, waiting } = jobs.pop();
                    if front.has_ended() {
                        continue;
                    }
                    let limit = if is_long(&verb) { limit * 4 } else { limit };
                    let work = || for_front(&custodian, &front, verb);
                    let answer = hang.during(limit, work);
                    drop(waiting);
                    reply(&front, &mut output, id, answer);
                    if custodian.is_past_use() {
                        leave(&custodian, PAST_USE);
                    }
                }
            })
            .map_err(StartError::Thread)?;
    }
    Ok(())
}

/// Carries out a verb; of an unlock it is noted whom custody is open for. What changes the keys that everybody
/// works with is not done for one while another one works with them.
fn for_front(custodian: &Custodian, front: &Arc<Front>, verb: Verb) -> Answer {
    if matches!(verb, Verb::Init { .. } | Verb::UseHome { .. })
        && let Some(other) = custodian.notices.fronts.another_unlocked(front)
    {
        return Err(Fault::Refused(format!(
            "process {other} of the front's user works with custody, too: no key comes into use meanwhile; end \
             that process"
        )));
    }
    if !matches!(verb, Verb::Unlock { .. }) {
        return custodian.slow(verb);
    }
    let fronts = &custodian.notices.fronts;
    let was_open = fronts.unlocking_over(front);
    let answer = custodian.slow(verb);
    let is_open = matches!(&answer, Ok(_) | Err(Fault::Unlocked));
    fronts.settle_unlock(front, is_open || was_open, || drop(custodian.wipe()));
    answer
}
