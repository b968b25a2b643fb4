//! What a parent leaves to the daemon: ignored and blocked signals, timers, limits, a umask, descriptors.
//! None of it changes what the daemon does.
#![allow(unsafe_code)] // what runs between fork and exec

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;
use serde_json::json;

use crate::appliance::{Appliance, wait_until};

/// Ends custody, and waits until another one serves.
fn kill_custody(appliance: &Appliance) {
    let custody = appliance.custody_pid();
    kill(Pid::from_raw(custody as i32), Signal::SIGKILL).expect("killed");
    wait_until("another custody", || {
        appliance.custody_pid() != custody && appliance.get("/v1/health").status == 200
    });
}

#[test]
fn a_parent_that_ignores_the_end_of_its_children() {
    let mut appliance = Appliance::prepared(|_| {});
    appliance.before_exec(|| {
        // SAFETY: ignoring runs no code.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
        Ok(())
    });
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    for _ in 0..3 {
        kill_custody(&appliance);
    }
    appliance.stop();
}

/// Every kind of state that a process inherits, set as badly as a parent may.
fn bad_parent() -> std::io::Result<()> {
    for ignored in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        // SAFETY: ignoring runs no code.
        unsafe { signal(ignored, SigHandler::SigIgn) }?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    umask(Mode::from_bits_truncate(0o777));
    for (resource, soft) in [(Resource::RLIMIT_FSIZE, 4096), (Resource::RLIMIT_CPU, 1)] {
        let (_, hard) = getrlimit(resource)?;
        setrlimit(resource, soft, hard)?;
    }
    // SAFETY: no memory is handed over but a value that is read; the descriptors are this process's own.
    unsafe {
        let mut timer: libc::itimerval = std::mem::zeroed();
        timer.it_value.tv_sec = 1;
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
        libc::setpriority(libc::PRIO_PROCESS, 0, 10);
        for number in 100..110 {
            libc::dup2(2, number);
        }
    }
    Ok(())
}

#[test]
fn a_parent_that_leaves_everything_in_disorder() {
    let mut appliance = Appliance::prepared(|_| {});
    appliance.before_exec(bad_parent);
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    for number in 0..3 {
        appliance.create_key(&format!("k{number}"));
    }
    std::thread::sleep(Duration::from_millis(1200)); // the parent's timer has run out by now
    kill_custody(&appliance);
    for pid in [appliance.front_pid(), appliance.custody_pid(), appliance.probe_pid().expect("one")]
    {
        let at = |name: &str| format!("/proc/{pid}/{name}");
        for number in 100..110 {
            let left = std::fs::symlink_metadata(at(&format!("fd/{number}"))).is_ok();
            assert!(!left, "process {pid} still has descriptor {number}");
        }
        // Front and probe have a child or none; of custody's threads one takes the signals.
        let status = std::fs::read_to_string(at("status")).expect("readable");
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t"));
        let ignored = u64::from_str_radix(ignored.expect("a mask"), 16).expect("hexadecimal");
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
            assert_eq!(ignored & (1 << (signal as u32 - 1)), 0, "process {pid} ignores {signal}");
        }
        let stat = std::fs::read_to_string(at("stat")).expect("readable");
        let nice = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(16));
        assert_eq!(nice, Some("0"), "nice of process {pid}");
    }
    let mode = |name: &str| {
        let found = std::fs::metadata(appliance.path(name)).expect("it is there");
        found.permissions().mode() & 0o777
    };
    assert_eq!((mode("store"), mode("trail")), (0o700, 0o700));
    assert_eq!(mode("s.sock"), 0o666, "as the configuration has it");
    appliance.signal(Signal::SIGHUP); // a reload, not its end
    appliance.get("/v1/status").expect_status(200);
    appliance.stop();
}

/// The daemon as process 1 of a PID namespace, as in a container.
struct Container(Child);

impl Container {
    fn start(appliance: &Appliance) -> Self {
        let (name, conf) = appliance.token().environment();
        let child = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(env!("CARGO_BIN_EXE_strongroom"))
            .args(["serve", "--config"])
            .arg(appliance.config_file())
            .env(name, conf)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("unshare starts: it needs root"))
    }

    /// Process 1, as seen from outside.
    fn front(&self) -> Option<i32> {
        children(self.0.id() as i32).first().map(|(pid, _)| *pid)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The children of a process, and the state of each.
fn children(parent: i32) -> Vec<(i32, char)> {
    let stats = std::fs::read_dir("/proc").expect("readable").filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut rest = stat.rsplit(')').next()?.split_whitespace();
        let (state, ppid) = (rest.next()?.chars().next()?, rest.next()?.parse::<i32>().ok()?);
        (ppid == parent).then_some((pid, state))
    });
    stats.collect()
}

#[test]
fn as_the_first_process_of_a_container_it_leaves_no_zombies() {
    let appliance = Appliance::prepared(|_| {});
    let container = Container::start(&appliance);
    appliance.wait_for_state("not-initialised");
    appliance.post("/v1/init", &json!({})).expect_status(201);
    let front = container.front().expect("process 1");
    let custody = || {
        let supervisor = children(front).into_iter().find(|(_, state)| *state != 'Z')?.0;
        children(supervisor).into_iter().find(|(_, state)| *state != 'Z').map(|(pid, _)| pid)
    };
    for _ in 0..3 {
        let old = custody().expect("custody runs");
        kill(Pid::from_raw(old), Signal::SIGKILL).expect("killed");
        wait_until("another custody", || {
            custody().is_some_and(|pid| pid != old) && appliance.get("/v1/health").status == 200
        });
    }
    wait_until("no zombies", || children(front).iter().all(|(_, state)| *state != 'Z'));
}
