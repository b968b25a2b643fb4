//! `strongroom serve`: starts the front, follows the signals, and leaves in order.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, waitpid};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::backup::unfinished_restore;
use super::child::{CustodyChild, HangGuard};
use super::config::{Config, Loaded};
use super::failure_note::FailureNote;
use super::footprint::Footprint;
use super::front::{Front, lost, waits};
use super::logging::{self, Logs};
use super::needs::{make_places, needs};
use super::notify::{Manager, Notifier};
use super::offline::must_be_own;
use super::process_state::Leftovers;
use super::reload::{Verdict, reload};
use super::{DaemonError, binary, descriptors, io, process_state, threads, under_systemd};
use crate::cli::Serve;
use crate::custody::{Client, Dialer, LinkState, OwnSocket, Spawn, resolve};
use crate::http::{self, Making, Server};
use crate::secret::{self, Use, arena};
use crate::store::Store;
use crate::store::sled_store::SledStore;
use crate::turns::Turns;
use crate::{sandbox, token};

/// Locked memory of the front: plaintexts and PINs that pass through.
const FRONT_ARENA: usize = 4 * 1024 * 1024;

/// A custody that says nothing for so many seconds is taken to hang.
const HUNG: u32 = 12;

/// How long custody is waited for before systemd is told that the start is done.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// How long requests that are under way may take when it is time to stop, and how long the trail may take
/// to be signed to its end: at once less where custody kept requests waiting. With what custody is given
/// to end, all of it stays well under five seconds.
const PATIENCE: Duration = Duration::from_millis(2000);
const LAST_LINES: Duration = Duration::from_millis(1000);
const LAST_LINES_OF_THE_STUCK: Duration = Duration::from_millis(300);

/// Runs the front until SIGTERM or SIGINT, or until the store fails for good: that only a new process
/// can mend, and it is an error, so that a supervisor starts one.
pub fn serve(arguments: &Serve) -> Result<(), DaemonError> {
    let passed = passed_descriptors();
    let inherited = process_state::reset(&passed)?;
    let note = FailureNote::prepare(&arguments.config, &passed);
    serve_noted(arguments, inherited, &note).inspect_err(|error| note.write(error))
}

fn serve_noted(
    arguments: &Serve,
    inherited: Leftovers,
    note: &FailureNote,
) -> Result<(), DaemonError> {
    threads::check()?;
    let loaded = Config::load(&arguments.config)?;
    // Before anything is made where a restore is to go.
    unfinished_restore(&loaded.config.store.path, &loaded.config.audit.directory)?;
    let Config { store, audit, listen, .. } = &loaded.config;
    for path in [Some(store.path.as_path()), Some(&audit.directory), listen.socket.parent()] {
        path.map_or(Ok(()), must_be_own)?;
    }
    // Without the runtime's environment of systemd, custody is the front's own child. Who starts it is
    // split off while there is one thread and nothing to inherit.
    let mut child = match loaded.config.custody.spawn {
        Spawn::Never => None,
        Spawn::Auto if under_systemd() => None,
        Spawn::Auto | Spawn::Always => {
            // It would be refused there, again and again.
            token::refuse_loose_module(&loaded.config.token.module)?;
            Some(CustodyChild::prepare(&arguments.config, &loaded.config.log)?)
        }
    };
    let Config { custody, listen, sandbox, .. } = &loaded.config;
    let making = match passed_descriptors().is_empty() {
        true => Some(Making::prepare(listen)?),
        false => None,
    };
    let own = making.clone().map(|making| OwnSocket {
        directory: making.directory(),
        make: Box::new(move || making.make()),
    });
    let dialer = Dialer::split_off(&custody.socket, own, sandbox)?;
    let logs = logging::start(&loaded.config.log)?;
    let manager = Manager::connect();
    let arena = arena::Settings { size_bytes: FRONT_ARENA, ..loaded.config.custody.arena.clone() };
    let arena = secret::start(&arena, Use::Front)?;
    secret::harden_process()?;
    descriptors::raise(&loaded.config.limits);
    let footprint = Footprint::of_this_program();
    binary::look();
    make_places(&loaded.config);
    let needs = needs(&arguments.config, &loaded.config, logs.target());
    let sandbox = sandbox::enter(&loaded.config.sandbox, &needs)?;
    logs.write();
    inherited.report();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %arena, %sandbox, "the front starts");
    report_one_user(&loaded.config.custody);
    // Before custody is started: where another daemon has the store, its custody must not be touched.
    let store: Arc<dyn Store> = Arc::new(SledStore::open(&loaded.config.store)?);
    if let Some(child) = &mut child {
        child.begin(dialer.process())?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(front_threads())
        .thread_name("front")
        .on_thread_start(|| {
            Turns::of(TURN);
        })
        .enable_all()
        .build()
        .map_err(io("starting the runtime"))?;
    let started =
        Started { child: child.as_ref(), dialer, making, manager, footprint: &footprint, note };
    let run = run(&arguments.config, &loaded, &logs, store, started);
    let result = runtime.block_on(run);
    // Deeds that still run get no more time: their lines say that they were interrupted.
    runtime.shutdown_timeout(Duration::from_millis(200));
    if let Some(child) = child {
        child.stop();
    }
    result
}

/// Says what it costs where both processes are one user's.
fn report_one_user(settings: &crate::custody::Settings) {
    let own = nix::unistd::geteuid().as_raw();
    if resolve(settings.custody_user.as_deref()).is_ok_and(|custody| custody == own) {
        tracing::warn!(
            uid = own,
            "front and custody are one user: only the sandbox keeps code in the front from the token's files, \
             the PIN and custody's state; set [custody] front_user and custody_user for more than a trial"
        );
    }
}

/// The front's threads do little at a time, and somebody waits for it: shorter turns than those of threads
/// that compute.
const TURN: Duration = Duration::from_micros(100);

/// Half as many as there are cores, which custody computes on: a request costs the front about a tenth
/// of what it costs custody, and threads that wake each other cost more than they carry.
fn front_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, 4))
}

/// What was begun while there was one thread.
struct Started<'a> {
    child: Option<&'a CustodyChild>,
    dialer: Dialer,
    /// How its socket is made, where none was handed in.
    making: Option<Making>,
    manager: Manager,
    footprint: &'a Footprint,
    note: &'a FailureNote,
}

async fn run(
    path: &Path,
    loaded: &Loaded,
    logs: &Logs,
    store: Arc<dyn Store>,
    Started { child, dialer, making, manager, footprint, note }: Started<'_>,
) -> Result<(), DaemonError> {
    let config = &loaded.config;
    let mut terminate = signal(SignalKind::terminate()).map_err(io("following signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io("following signals"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(io("following signals"))?;
    let mut children = signal(SignalKind::child()).map_err(io("following signals"))?;
    if dialer.has_ended() {
        return Err(DaemonError::Unconnected);
    }
    let front = Front::open(path, loaded, store, dialer.clone()).await?;
    front.tend(config);
    Verdict::of_start().leave(&config.store.path);
    if let Some(child) = child {
        tokio::spawn(end_hung(child.hang_guard()?, front.custody.clone()));
    }
    let listener = match (making, passed_socket()) {
        (Some(making), _) => {
            let dialer = dialer.clone();
            http::bind(making, Box::new(move || dialer.make_own_socket()))?
        }
        (None, Some(socket)) => http::Listener::handed_in(socket),
        (None, None) => return Err(DaemonError::Closed),
    };
    let appliance = Arc::clone(&front.appliance);
    let limits = descriptors::fit(&config.limits);
    let (stop, stopped) = watch::channel(false);
    let server = Server::new(listener, appliance, limits, stopped);
    let (server, mut closed) = server.map_err(io("taking over the socket"))?;
    let accepting = server.accepting();
    let serving = tokio::spawn(server.run());
    tracing::info!(socket = %config.listen.socket.display(), "callers are served");
    let notifier = Notifier::start(manager);
    let ready = tokio::spawn(say_ready(front.custody.clone(), notifier.clone()));
    footprint.let_go();
    note.clear();
    let mut shown = tokio::time::interval(Duration::from_secs(1));
    let mut status = String::new();
    let mut beat = tokio::time::interval(watchdog_period());
    let end = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = children.recv() => if let Some(missing) = reap(child, &dialer) {
                break Err(missing);
            },
            _ = &mut closed => break Err(DaemonError::Closed),
            error = lost(front.store.as_ref()) => break Err(DaemonError::StoreLost(error)),
            _ = hangup.recv() => {
                notifier.send(NotifyState::Reloading);
                reload(path, config, &front, logs).await;
                notifier.send(NotifyState::Ready);
            }
            _ = shown.tick() => show_status(&front, &notifier, &mut status),
            _ = beat.tick() => if accepting.goes_on() {
                notifier.send(NotifyState::Watchdog);
            },
        }
    };
    if let Err(error) = &end {
        tracing::error!(%error, "the front has to end");
    }
    tracing::info!("what is under way is finished, then the front ends");
    ready.abort();
    notifier.send(NotifyState::Stopping);
    stop.send_replace(true);
    let stuck = tokio::time::timeout(PATIENCE, serving).await.is_err();
    if stuck {
        tracing::warn!("some requests took too long to end; they are given up");
    }
    front.appliance.tell_refusals(true).await;
    let last = if stuck { LAST_LINES_OF_THE_STUCK } else { LAST_LINES };
    let stopped = front.appliance.trail().stop_within(last).await;
    end.and(waits(stopped).map_err(DaemonError::from))
}

/// Takes note of children that have ended; which of those that the front needs is among them. As process 1 of a
/// container this one is the parent of every process whose own has ended, such as custody's probe.
fn reap(child: Option<&CustodyChild>, dialer: &Dialer) -> Option<DaemonError> {
    while let Ok(ended) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        match ended.pid() {
            None => return None,
            pid if child.is_some_and(|child| pid == Some(child.pid())) => {
                return Some(DaemonError::Unsupervised);
            }
            pid if pid == dialer.process() => return Some(DaemonError::Unconnected),
            Some(_) => {}
        }
    }
    None
}

/// Has `systemctl status` show the state, whenever it is another one.
fn show_status(front: &Front, notifier: &Notifier, shown: &mut String) {
    let (state, detail) = front.appliance.state();
    let text = match state {
        "ready" => "ready: keys and secrets are served".to_owned(),
        _ => format!("{state}: {}", detail.replace('\n', "; ")),
    };
    if text != *shown {
        notifier.send(NotifyState::Status(&text));
        *shown = text;
    }
}

/// Says that it is ready once custody is there, or after a moment all the same: whoever comes right after a
/// start is told of no outage that is none. Callers are served meanwhile.
async fn say_ready(custody: Client, notifier: Notifier) {
    let mut state = custody.watch();
    let word = state.wait_for(|state| !matches!(state, LinkState::Down(_)));
    drop(tokio::time::timeout(FIRST_WORD, word).await);
    notifier.send(NotifyState::Ready);
}

/// Ends a custody of ours that has not said a word for so long that it must hang. One whose token is
/// away answers all the same. Looks are counted, not time: a front that was halted itself is no proof.
async fn end_hung(mut guard: HangGuard, custody: Client) {
    let (mut last, mut silent) = (custody.last_heard(), 0);
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let heard = custody.last_heard();
        silent = if heard == last { silent + 1 } else { 0 };
        last = heard;
        if silent > HUNG && guard.end_custody().await {
            tracing::error!("custody has not answered {HUNG} times; it is ended and started anew");
            silent = 0;
        }
    }
}

/// Twice as often as systemd asks for, or rarely where it does not ask.
fn watchdog_period() -> Duration {
    let wanted = sd_notify::watchdog_enabled().map(|period| period / 2);
    wanted.unwrap_or(Duration::from_secs(3600)).max(Duration::from_millis(10))
}

/// The descriptors that systemd handed in.
pub(super) fn passed_descriptors() -> Vec<RawFd> {
    sd_notify::listen_fds().map(Iterator::collect).unwrap_or_default()
}

/// The listening socket that systemd handed in, if it did.
#[allow(unsafe_code)] // a number becomes an owner
fn passed_socket() -> Option<UnixListener> {
    let number = sd_notify::listen_fds().ok()?.next()?;
    // SAFETY: systemd handed the descriptor to this process, and nothing else in it uses that number.
    Some(UnixListener::from(unsafe { OwnedFd::from_raw_fd(number) }))
}
