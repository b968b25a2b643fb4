//! Another process of the daemon's user traces one of its processes, to have the next custody from its first
//! instruction on, or the front before it has shut itself.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::ptrace::{Options, seize};
use nix::unistd::Pid;
use serde_json::json;

use crate::appliance::{Appliance, User, wait_until};

/// A user that owns nothing and is in no group.
const STRANGER: u32 = 64_998;

fn children_of(pid: u32) -> Vec<u32> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let children = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<String> = children.collect();
    children.iter().flat_map(|text| text.split_whitespace()).flat_map(str::parse).collect()
}

/// The process and all that come of it, with their names.
fn tree(pid: u32) -> Vec<(u32, String)> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let mut all = vec![(pid, name.trim().to_owned())];
    all.extend(children_of(pid).into_iter().flat_map(tree));
    all
}

/// Whether a process of the stranger's can seize this one.
fn can_seize(pid: u32) -> bool {
    let target = Pid::from_raw(pid as i32);
    let mut attempt = Command::new("true");
    attempt.uid(STRANGER).gid(STRANGER);
    // SAFETY: one system call between fork and exec, and the tracer ends at once.
    unsafe {
        attempt.pre_exec(move || {
            seize(target, Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEEXEC)
                .map_err(Into::into)
        });
    }
    match attempt.output() {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{pid}: {error}");
            false
        }
    }
}

#[test]
fn no_process_of_the_daemon_is_traced_by_others_of_its_user() {
    let mut appliance = Appliance::of_user(User { uid: STRANGER, lockable_bytes: 8 << 20 });
    appliance.start();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    let mut sleeper = Command::new("sleep");
    sleeper.arg("60").uid(STRANGER).gid(STRANGER).stdout(Stdio::null()).stderr(Stdio::null());
    let mut sleeper = sleeper.spawn().expect("sleep");
    let asleep = sleeper.id();
    wait_until("the other program", || {
        std::fs::read_to_string(format!("/proc/{asleep}/comm")).expect("it runs") == "sleep\n"
    });
    assert!(can_seize(asleep), "the attempt itself works");
    let tree = tree(appliance.front_pid());
    for name in ["supervisor", "dialer", "probe"] {
        assert!(tree.iter().any(|(_, known)| known == name), "{name} in {tree:?}");
    }
    assert!(tree.len() >= 5, "{tree:?}");
    for (pid, name) in tree {
        assert!(!can_seize(pid), "{name} ({pid}) can be traced");
        let owner = std::fs::metadata(format!("/proc/{pid}/mem")).expect("it runs").uid();
        assert_eq!(owner, 0, "{name} ({pid}) can be dumped");
    }
    sleeper.kill().expect("killed");
    sleeper.wait().expect("waits");
}

/// As the package has it: the kernel keeps a process shut from execve(2) on whose binary its user cannot read.
#[test]
fn a_binary_that_the_daemons_user_may_read_is_warned_of_and_the_packages_is_not() {
    let mut appliance = Appliance::of_user(User { uid: STRANGER, lockable_bytes: 8 << 20 });
    let verdict = |appliance: &Appliance| {
        let checks = appliance.get("/v1/doctor").json()["checks"].clone();
        let checks = checks.as_array().expect("a list").clone();
        let check = checks.into_iter().find(|check| check["name"] == "binary");
        check.expect("the check")["result"].as_str().expect("a text").to_owned()
    };
    appliance.start();
    assert_eq!(verdict(&appliance), "warn");
    appliance.wait_for_log(0, "may be read by uid");
    appliance.stop();
    let binary = appliance.path("strongroom");
    std::os::unix::fs::chown(&binary, Some(0), Some(0)).expect("chown");
    std::fs::set_permissions(&binary, PermissionsExt::from_mode(0o711)).expect("chmod");
    appliance.start();
    assert_eq!(verdict(&appliance), "ok");
    let package = include_str!("../../Cargo.toml");
    assert!(package.contains("[\"target/package/strongroom\", \"usr/bin/\", \"711\"]"));
}
