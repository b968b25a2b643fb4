//! What a process inherits from whoever started it, set to what Strongroom needs: signals, umask, limits,
//! timers, priority and descriptors.
//!
//! A parent may ignore SIGCHLD (then the end of a child is never learned), block SIGTERM, leave a timer
//! running or a thousand descriptors open. All of that survives execve(2); none of it is to be relied on.

#![allow(unsafe_code)] // dispositions, timers and descriptors are set by number

use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};

use super::{DaemonError, io};

/// The first descriptor that is not stdin, stdout or stderr.
const FIRST: RawFd = 3;

/// Timer slack of an ordinary process, in nanoseconds (prctl(2), PR_SET_TIMERSLACK).
const TIMER_SLACK: u64 = 50_000;

/// The stack that the main thread may grow to, in bytes.
const STACK: u64 = 8 * 1024 * 1024;

/// Limits that are raised to what this process may have at most.
const RAISED: [Resource; 6] = [
    Resource::RLIMIT_FSIZE,
    Resource::RLIMIT_CPU,
    Resource::RLIMIT_AS,
    Resource::RLIMIT_DATA,
    Resource::RLIMIT_NPROC,
    Resource::RLIMIT_MEMLOCK,
];

/// What could not be set right: for the log, once there is one.
#[must_use]
pub struct Leftovers(Vec<String>);

impl Leftovers {
    /// Logs what the operator has to know.
    pub fn report(self) {
        for what in self.0 {
            tracing::warn!("inherited from the parent process: {what}");
        }
    }
}

/// Sets the state of this process. Descriptors from 3 on are closed, but for those in `keep`. The process
/// must have one thread.
///
/// # Errors
/// Descriptors could not be closed, or signals not be set: the process must not start then.
pub fn reset(keep: &[RawFd]) -> Result<Leftovers, DaemonError> {
    let failed = |errno: Errno| DaemonError::Io {
        during: "setting the state of the process",
        cause: errno.into(),
    };
    reset_signals().map_err(failed)?;
    stop_timers();
    umask(Mode::from_bits_truncate(0o077));
    close_all_but(keep).map_err(io("closing inherited descriptors"))?;
    let _ = prctl::set_timerslack(TIMER_SLACK);
    let mut left = Leftovers(Vec::new());
    raise_limits(&mut left);
    reset_priority(&mut left);
    Ok(left)
}

/// What is ignored is set to its default, and nothing is blocked. SIGPIPE stays ignored, as every Rust
/// program expects; so is SIGXFSZ, for a file that is too large must fail a write and not end the process.
fn reset_signals() -> Result<(), Errno> {
    for signal in Signal::iterator() {
        if signal != Signal::SIGPIPE && is_ignored(signal)? {
            set_disposition(signal, SigHandler::SigDfl)?;
        }
    }
    set_disposition(Signal::SIGXFSZ, SigHandler::SigIgn)?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

fn is_ignored(signal: Signal) -> Result<bool, Errno> {
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no new action is given; the old one is written where there is room for it.
    let done = unsafe { libc::sigaction(signal as i32, std::ptr::null(), now.as_mut_ptr()) };
    Errno::result(done)?;
    // SAFETY: the call succeeded, so it is filled.
    Ok(unsafe { now.assume_init() }.sa_sigaction == libc::SIG_IGN)
}

fn set_disposition(signal: Signal, handler: SigHandler) -> Result<(), Errno> {
    // SIGKILL and SIGSTOP are nobody's to set, and never ignored.
    // SAFETY: default and ignore run no code of ours.
    unsafe { nix::sys::signal::signal(signal, handler) }.map(drop)
}

/// A timer that a parent left running would end the process by its signal.
fn stop_timers() {
    // SAFETY: all zero is a timer that does not run.
    let none: libc::itimerval = unsafe { std::mem::zeroed() };
    for timer in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
        // SAFETY: the value is read, and no old one is asked for.
        unsafe { libc::setitimer(timer, &raw const none, std::ptr::null_mut()) };
    }
}

fn close_all_but(keep: &[RawFd]) -> std::io::Result<()> {
    // Collected first: the directory itself is a descriptor, gone by the time it would be closed.
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd >= FIRST && !keep.contains(fd)) {
        // SAFETY: the process has just begun: nothing in it owns a descriptor but stdin, stdout, stderr
        // and what it keeps.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

fn raise_limits(left: &mut Leftovers) {
    for resource in RAISED {
        let Ok((has, may)) = getrlimit(resource) else { continue };
        if has < may {
            let _ = setrlimit(resource, may, may);
        }
        let stops = matches!(resource, Resource::RLIMIT_FSIZE | Resource::RLIMIT_CPU);
        if stops && may != libc::RLIM_INFINITY {
            left.0.push(format!(
                "{resource:?} is {may} and cannot be raised: service will stop there; raise the hard limit \
                 where the daemon is started (`ulimit -H`)"
            ));
        }
    }
    if let Ok((has, may)) = getrlimit(Resource::RLIMIT_STACK)
        && has < STACK
    {
        let _ = setrlimit(Resource::RLIMIT_STACK, STACK.min(may), may);
    }
}

/// A unit's Nice= is meant; a shell's is not.
fn reset_priority(left: &mut Leftovers) {
    if std::env::var_os("INVOCATION_ID").is_some() {
        return;
    }
    // SAFETY: an empty parameter is what SCHED_OTHER takes; no pointer is kept.
    unsafe {
        let ordinary = libc::sched_param { sched_priority: 0 };
        if libc::sched_getscheduler(0) != libc::SCHED_OTHER {
            libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const ordinary);
        }
        let nice = libc::getpriority(libc::PRIO_PROCESS, 0);
        if nice > 0 && libc::setpriority(libc::PRIO_PROCESS, 0, 0) != 0 {
            left.0.push(format!(
                "the process runs at nice {nice}, and may not change that: callers wait longer; start it \
                 without `nice`"
            ));
        }
    }
}
