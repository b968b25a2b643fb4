//! How the process comes up: closed to other eyes, its arena locked, its socket bound, then serving.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{User, geteuid};

use super::custodian::{Custodian, Examiner, Opener};
use super::doctor;
use super::generations::Generations;
use super::history::History;
use super::lock_memory::LockMemory;
use super::needs::{Granted, Surroundings, needs};
use super::pin_budget::PinBudget;
use super::pins::Pins;
use super::probe::Probe;
use super::process::{self, Settings, StartError};
use super::protocol::{Fault, Outage, Reason};
use super::recovery::RecoveryKey;
use super::state::State;
use super::wire::tell_senders;
use crate::sandbox;
use crate::secret::{self, ArenaReport, Use};
use crate::token::{self, read_pin};

/// Custody ready to serve: the arena stands, nobody can look in, the socket is bound.
pub struct Ready {
    settings: Settings,
    listener: OwnedFd,
    front: (u32, Option<i32>),
    custodian: Custodian,
    arena: &'static ArenaReport,
}

impl Ready {
    /// Comes up to where the front can connect, and shuts itself in: from here on it opens the module,
    /// the PIN and the token's files, and nothing else. `passed` is a listening socket from the
    /// supervisor; `front` is the front's process, where that is known. The process must have one thread.
    ///
    /// # Errors
    /// Whatever keeps custody from being safe: it does not start then.
    pub fn start(
        settings: Settings,
        token: token::Settings,
        sandbox: &sandbox::Settings,
        around: &Surroundings,
        (passed, front): (Option<OwnedFd>, Option<i32>),
        probe: Probe,
    ) -> Result<Self, StartError> {
        let arena = secret::start(&settings.arena, Use::Custody)?;
        secret::hook_self_test()?;
        secret::reserve_stacks(settings.with_keys())?;
        secret::harden_process()?;
        let front_uid = resolve(settings.front_user.as_deref())?;
        let listener = match passed {
            Some(listener) => listen_as_ourselves(listener)
                .map_err(|cause| StartError::Socket { path: settings.socket.clone(), cause })?,
            None => bind_private(&settings.socket, front_uid)
                .map_err(|cause| StartError::Socket { path: settings.socket.clone(), cause })?,
        };
        let recovery = settings.recovery_key.as_deref().map(RecoveryKey::read).transpose();
        if let Err(why) = &recovery {
            tracing::error!(why, "no recovery key; no key can be made while one is set");
        }
        let pin = Granted::pin(&token);
        let state = State::open(&settings.state_directory)?;
        let mut needs = needs(&settings.sandbox, &token, around);
        needs.write.push(settings.state_directory.clone());
        sandbox::enter(sandbox, &needs)?;
        let places = (around.credentials.clone(), settings.state_directory.clone());
        let examiner = examiner(token.clone(), places, arena);
        let tries = PinBudget::new(state.load()?, settings.max_wrong_pins).brief(settings.forgets);
        let generations = Generations::open(&state, settings.master_destroy_wait_days)?;
        let lock = LockMemory::new(state.load()?, around.accepts_history);
        let has_past = state.has_sections();
        let history = History::open(state, around.accepts_history)?.brief(settings.forgets);
        let budget = tries.begin(has_past);
        let opener = opener(token, around.credentials.clone(), pin, budget);
        let (cache, arena_in_words) = (settings.cache_settings(), arena.to_string());
        let custodian = Custodian::new(
            opener,
            examiner,
            probe,
            cache,
            arena_in_words,
            recovery,
            (history, generations, lock),
        );
        let front = (front_uid, front);
        Ok(Self { settings, listener, front, custodian, arena })
    }

    /// The locked memory, in words.
    pub fn arena(&self) -> &'static ArenaReport {
        self.arena
    }

    /// Serves until the process is told to end; see `process::run`. `before_exit` is called last, when
    /// keys have been wiped.
    pub fn serve(
        mut self,
        stop: impl FnOnce() + Send + 'static,
        beat: impl Fn() + Send + Sync + 'static,
        before_exit: fn(),
    ) -> Result<(), StartError> {
        self.custodian.before_exit = before_exit;
        process::run(&self.settings, self.listener, self.front, self.custodian, stop, beat)
    }
}

/// The uid of a user by name or number; without one, this process's own.
pub fn resolve(user: Option<&str>) -> Result<u32, StartError> {
    let Some(name) = user else { return Ok(geteuid().as_raw()) };
    let unknown = || StartError::User(name.to_owned());
    if let Ok(uid) = name.parse() {
        return Ok(uid);
    }
    let found = User::from_name(name).map_err(|_| unknown())?.ok_or_else(unknown)?;
    Ok(found.uid.as_raw())
}

fn opener(
    settings: token::Settings,
    credentials: Option<PathBuf>,
    file: Granted,
    budget: PinBudget,
) -> Opener {
    let (pins, place) = (Arc::new(Pins::of(&settings, budget)), settings.clone());
    let configured = move || {
        read_pin(&place, credentials.as_deref()).map_err(|error| {
            match sandbox::entered().is_some() && file.is_replaced() {
                // The next process can open it.
                true => Fault::TokenUnavailable(Outage::new(
                    Reason::PinUnavailable,
                    format!("{error}; custody starts anew for it"),
                )),
                false => Fault::PinUnavailable(error.to_string()),
            }
        })
    };
    let prover = Arc::clone(&pins);
    Opener {
        open: Box::new(move |given| pins.open(&settings, given, &configured)),
        prove: Box::new(move |given| prover.prove(given)),
    }
}

fn examiner(
    settings: token::Settings,
    (credentials, state): (Option<PathBuf>, PathBuf),
    arena: &'static ArenaReport,
) -> Examiner {
    Box::new(move |token| doctor::examine(&settings, credentials.as_deref(), &state, arena, token))
}

/// Takes over a socket that the supervisor listens on. Whoever connects is told the credentials of the
/// process that called listen(2) last (unix(7), SO_PEERCRED): without this, the front would see root.
fn listen_as_ourselves(listener: OwnedFd) -> Result<OwnedFd, io::Error> {
    tell_senders(&listener)?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

/// Connections that may wait to be accepted; there is one front.
const BACKLOG: i32 = 8;

/// Binds a socket that only its owner, the front's user, may connect to; there is no moment in which
/// it has other permissions. A socket left behind by an earlier process is replaced.
fn bind_private(path: &Path, front_uid: u32) -> Result<OwnedFd, io::Error> {
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixAddr::new(path).and_then(|address| bind(fd.as_raw_fd(), &address));
    umask(before);
    bound?;
    if front_uid != geteuid().as_raw() {
        std::os::unix::fs::chown(path, Some(front_uid), None)?;
    }
    tell_senders(&fd)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(fd)
}
