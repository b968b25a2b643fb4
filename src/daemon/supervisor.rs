//! The supervisor, where systemd is none: a process of its own that starts custody, and starts it anew
//! when it ends. The front that it serves executes nothing, and tells it what to do by single bytes.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;

use super::child::{Order, Start};

#[derive(Default)]
struct Watch {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stopping: bool,
    pid: Option<Pid>,
    /// Who connects to custody: the front, or the process that does it for the front.
    connects: Option<Pid>,
}

/// How long an ended custody stays down, at first and at most.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A custody that lived this long starts over without the pauses that failures before it had added up.
const STEADY: Duration = Duration::from_secs(5);

/// How long custody may take to end when asked to, before it is killed.
const PATIENCE: Duration = Duration::from_millis(700);

/// Does what it is told on `orders` until it is told to stop, or the front is no more; then custody has
/// ended, too.
pub fn follow(mut orders: UnixStream, program: &Path, start: Start) -> std::io::Result<()> {
    outlive_signals()?;
    let (watch, start) = (Arc::new(Watch::default()), Arc::new(start));
    let mut supervising = None;
    let mut order = [0];
    while orders.read_exact(&mut order).is_ok() {
        if order == [Order::Begin as u8] && supervising.is_none() {
            let mut dialer = [0; 4];
            orders.read_exact(&mut dialer)?;
            let dialer = Some(i32::from_le_bytes(dialer)).filter(|pid| *pid > 0).map(Pid::from_raw);
            watch.state().connects = Some(dialer.unwrap_or_else(nix::unistd::getppid));
            let (program, start, watch) =
                (program.to_owned(), Arc::clone(&start), Arc::clone(&watch));
            let builder = thread::Builder::new().name("supervisor".to_owned());
            supervising = Some(builder.spawn(move || supervise(&program, &start, &watch))?);
        } else if order == [Order::EndCustody as u8] {
            let ran = end_hung(&watch);
            orders.write_all(&[u8::from(ran)])?;
        } else {
            break;
        }
    }
    let Some(thread) = supervising else { return Ok(()) };
    watch.state().stopping = true;
    watch.changed.notify_all();
    watch.signal(Signal::SIGTERM);
    let asked = Instant::now();
    while !thread.is_finished() && asked.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(5));
    }
    watch.signal(Signal::SIGKILL);
    let _ = thread.join();
    Ok(())
}

/// Whoever ends the front by a signal to its whole group means the front: it ends custody in order.
/// Signals are caught rather than ignored, for custody would inherit that.
#[allow(unsafe_code)] // sigaction: a handler runs at any moment
fn outlive_signals() -> std::io::Result<()> {
    extern "C" fn nothing(_: i32) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: the handler does nothing.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Asks custody to end, and kills the one that does not within [`PATIENCE`]; false where none runs.
fn end_hung(watch: &Watch) -> bool {
    let pid = watch.state().pid;
    watch.signal(Signal::SIGTERM);
    let asked = Instant::now();
    while watch.state().pid == pid && pid.is_some() && asked.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(5));
    }
    if watch.state().pid == pid {
        watch.signal(Signal::SIGKILL);
    }
    pid.is_some()
}

impl Watch {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: Signal) {
        // The pid is taken away under the same lock before the child is reaped: it cannot be another's.
        if let Some(pid) = self.state().pid {
            let _ = kill(pid, signal);
        }
    }

    /// Waits before the next start; true when it is time to stop instead.
    fn pause(&self, pause: Duration) -> bool {
        let stopping = |state: &mut State| !state.stopping;
        let waited = self.changed.wait_timeout_while(self.state(), pause, stopping);
        waited.unwrap_or_else(PoisonError::into_inner).0.stopping
    }
}

fn supervise(program: &PathBuf, start: &Start, watch: &Watch) {
    let (mut pause, mut is_first) = (PAUSE, true);
    loop {
        let started = Instant::now();
        let ended = match spawn(program, start, watch) {
            Ok(Some(child)) => wait(child, watch),
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "custody could not be started");
                None
            }
        };
        let was_steady = started.elapsed() > STEADY;
        match ended {
            // One that ends as soon as it was started anew, again and again, is told of once.
            Some(status) if was_steady || is_first => {
                tracing::warn!(%status, "custody ended; it is started anew");
            }
            Some(status) => tracing::debug!(%status, "custody ended again; it is started anew"),
            None => {}
        }
        is_first = false;
        pause = if was_steady { PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        if watch.pause(pause) {
            return;
        }
    }
}

/// Starts custody; `None` where it is time to stop.
#[allow(unsafe_code)] // pre_exec: a few system calls between fork and exec
fn spawn(program: &PathBuf, start: &Start, watch: &Watch) -> std::io::Result<Option<Child>> {
    let mut command = Command::new(program);
    command.arg("custody").arg("--config").arg(&start.config).stdin(Stdio::null());
    // Nobody else may connect but the front, which split this process off and ends with it, or the process that
    // does so for the front, which ends with it, too.
    let connects = watch.state().connects;
    command.args(connects.iter().flat_map(|pid| ["--front-pid".to_owned(), pid.to_string()]));
    // What systemd tells the front is not meant for custody. Ctrl-C goes to the front, which ends
    // custody after its last checkpoint.
    command.env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
    command.env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID").process_group(0);
    // A front that was killed takes custody with it, in order: no login is cut off in its middle.
    let (user, listener) = (start.user.clone(), start.listener.as_ref().map(AsRawFd::as_raw_fd));
    if let Some(listener) = listener {
        command.arg("--listen-fd").arg(listener.to_string());
    }
    if user.is_some() {
        command.env_remove("HOME").current_dir("/");
    }
    // SAFETY: system calls, and the list of groups is allocated: the C library keeps its allocator usable in
    // the child of a process with threads (malloc(3), fork handlers).
    unsafe {
        command.pre_exec(move || {
            if let Some(user) = &user {
                // Locked memory is limited for others than root. A root that may not raise the limit leaves it.
                let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
                user.assume().map_err(std::io::Error::other)?;
            }
            if let Some(listener) = listener {
                fcntl(BorrowedFd::borrow_raw(listener), FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            prctl::set_pdeathsig(Signal::SIGTERM).map_err(Into::into)
        });
    }
    let mut state = watch.state();
    if state.stopping {
        return Ok(None);
    }
    let child = command.spawn()?;
    state.pid = i32::try_from(child.id()).ok().map(Pid::from_raw);
    Ok(Some(child))
}

fn wait(mut child: Child, watch: &Watch) -> Option<ExitStatus> {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    // Waits without reaping, so that the pid stays the child's until nobody can signal it any more.
    if let Ok(pid) = i32::try_from(child.id()) {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(Pid::from_raw(pid)), flags) == Err(nix::errno::Errno::EINTR) {}
    }
    let mut state = watch.state();
    state.pid = None;
    let stopping = state.stopping;
    drop(state);
    match child.wait() {
        Ok(status) => (!stopping).then_some(status),
        Err(error) => {
            tracing::error!(%error, "custody's end could not be learned");
            None
        }
    }
}
