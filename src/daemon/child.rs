//! Custody as the front's child, where systemd does not run it: started, and started anew when it ends.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{DaemonError, io};

/// Custody's supervisor; custody ends when it is dropped or stopped.
pub struct CustodyChild {
    watch: Arc<Watch>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Watch {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stopping: bool,
    pid: Option<Pid>,
}

/// How long an ended custody stays down, at first and at most.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A custody that lived this long starts over without the pauses that failures before it had added up.
const STEADY: Duration = Duration::from_secs(5);

/// How long custody may take to end when asked to, before it is killed.
const PATIENCE: Duration = Duration::from_millis(700);

impl CustodyChild {
    /// Starts custody with the same configuration, and a thread that starts it again.
    pub fn start(config: &Path) -> Result<Self, DaemonError> {
        let program = std::env::current_exe().map_err(io("finding this program"))?;
        let (config, watch) = (config.to_owned(), Arc::new(Watch::default()));
        let thread = thread::Builder::new()
            .name("supervisor".to_owned())
            .spawn({
                let watch = Arc::clone(&watch);
                move || supervise(&program, &config, &watch)
            })
            .map_err(io("starting a thread"))?;
        Ok(Self { watch, thread: Some(thread) })
    }

    /// A handle to end a custody that hangs; it is then started anew.
    pub fn hang_guard(&self) -> HangGuard {
        HangGuard(Arc::clone(&self.watch))
    }

    /// Ends custody and waits for its end.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.watch.state().stopping = true;
        self.watch.changed.notify_all();
        self.watch.signal(Signal::SIGTERM);
        let asked = Instant::now();
        while !thread.is_finished() && asked.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(5));
        }
        self.watch.signal(Signal::SIGKILL);
        let _ = thread.join();
    }
}

/// Ends custody from outside, see [`CustodyChild::hang_guard`].
pub struct HangGuard(Arc<Watch>);

impl HangGuard {
    /// Asks custody to end, and kills the one that does not within [`PATIENCE`].
    pub async fn end_custody(&self) {
        let pid = self.0.state().pid;
        self.0.signal(Signal::SIGTERM);
        tokio::time::sleep(PATIENCE).await;
        if self.0.state().pid == pid {
            self.0.signal(Signal::SIGKILL);
        }
    }
}

impl Drop for CustodyChild {
    fn drop(&mut self) {
        self.end();
    }
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

fn supervise(program: &PathBuf, config: &Path, watch: &Watch) {
    let mut pause = PAUSE;
    loop {
        let started = Instant::now();
        match spawn(program, config, watch) {
            Ok(Some(child)) => wait(child, watch),
            Ok(None) => return,
            Err(error) => tracing::error!(%error, "custody could not be started"),
        }
        pause = if started.elapsed() > STEADY { PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        if watch.pause(pause) {
            return;
        }
    }
}

/// Starts custody; `None` where it is time to stop.
#[allow(unsafe_code)] // pre_exec: one system call between fork and exec
fn spawn(program: &PathBuf, config: &Path, watch: &Watch) -> std::io::Result<Option<Child>> {
    let mut command = Command::new(program);
    command.arg("custody").arg("--config").arg(config).stdin(Stdio::null());
    // What systemd tells the front is not meant for custody. Ctrl-C goes to the front, which ends
    // custody after its last checkpoint.
    command.env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
    command.env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID").process_group(0);
    // A front that was killed takes custody with it, in order: no login is cut off in its middle.
    // SAFETY: prctl is safe to call between fork and exec, and allocates nothing.
    unsafe {
        command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGTERM).map_err(Into::into));
    }
    let mut state = watch.state();
    if state.stopping {
        return Ok(None);
    }
    let child = command.spawn()?;
    state.pid = i32::try_from(child.id()).ok().map(Pid::from_raw);
    Ok(Some(child))
}

fn wait(mut child: Child, watch: &Watch) {
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
        Ok(status) if !stopping => tracing::warn!(%status, "custody ended; it is started anew"),
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "custody's end could not be learned"),
    }
}
