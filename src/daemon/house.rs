//! The checks of `doctor` that are the front's: directories, clock, limits.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;

use super::config::Config;
use super::{binary, descriptors, needs};
use crate::custody::protocol::{Check, Verdict};
use crate::service::HouseChecks;
use crate::{custody, sandbox};

/// Less room than this on the trail's or the store's disk is worth a warning, in bytes.
const LOW: u64 = 256 * 1024 * 1024;

/// All of them, over what the configuration says.
pub fn checks(path: &Path, config: &Config) -> HouseChecks {
    let (config, in_the_way) = (config.clone(), needs::in_the_way(path, config));
    Box::new(move || {
        let mut checks = vec![
            directory("store", &config.store.path, "[store] path"),
            directory("trail", &config.audit.directory, "[audit] directory"),
            room_for("store", &config.store.path, "[store] path", config.store.reserve_bytes),
            room_for("trail", &config.audit.directory, "[audit] directory", 0),
            clock(),
            open_files(config.limits.connections),
        ];
        checks.push(roles(&config));
        checks.push(binary::check());
        checks.extend(in_the_way.clone().map(|found| {
            let remedy = "[token] pin_file, or the token: to a directory of custody's own";
            check("hidden files", Verdict::Warn, found, remedy)
        }));
        checks.extend(
            sandbox::entered().map(|entered| custody::sandboxed("sandbox of the front", entered)),
        );
        checks
    })
}

pub(super) fn directory(name: &str, path: &Path, setting: &str) -> Check {
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(found) if !found.is_dir() => {
            check(name, Verdict::Fail, format!("{shown} is no directory"), setting)
        }
        Ok(found) if found.permissions().mode() & 0o077 != 0 => {
            let mode = found.permissions().mode() & 0o777;
            check(name, Verdict::Fail, format!("{shown} has mode {mode:03o}"), "chmod 700")
        }
        Ok(_) => check(name, Verdict::Ok, format!("{shown}, its owner's alone"), ""),
        Err(error) if error.kind() == ErrorKind::NotFound => not_there(name, path, setting),
        Err(error) => check(name, Verdict::Fail, format!("{shown}: {error}"), setting),
    }
}

/// Names the first directory on the way that is missing: only the last one is made by the daemon.
fn not_there(name: &str, path: &Path, setting: &str) -> Check {
    let mut missing = path;
    while let Some(parent) = missing.parent().filter(|parent| !parent.as_os_str().is_empty())
        && !parent.exists()
    {
        missing = parent;
    }
    let found = format!("{} is not there", missing.display());
    let remedy = if missing == path {
        format!("{setting}: put it back; where it never was, the daemon's start makes it")
    } else {
        let parent = path.parent().unwrap_or(path).display();
        format!("{setting}: mkdir -p {parent}, and give it to the daemon's user")
    };
    check(name, Verdict::Fail, found, &remedy)
}

/// `reserve` is what changes are refused below.
fn room_for(what: &str, path: &Path, setting: &str, reserve: u64) -> Check {
    let name = format!("room for the {what}");
    match statvfs(path) {
        Ok(disk) => {
            let free = disk.blocks_available() * disk.fragment_size();
            let (verdict, found) = judge_room(free, reserve);
            check(&name, verdict, found, &format!("free room on the disk of {setting}"))
        }
        Err(Errno::ENOENT) => not_there(&name, path, setting),
        Err(error) => {
            let found = format!("{}: {}", path.display(), error.desc());
            check(&name, Verdict::Fail, found, setting)
        }
    }
}

fn judge_room(free: u64, reserve: u64) -> (Verdict, String) {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let low = LOW.max(reserve.saturating_mul(2));
    let (free_text, low_text) = (mib(free), mib(low));
    if free < reserve {
        let least = mib(reserve);
        let found =
            format!("{free_text} free: below {least} ([store] reserve_bytes) changes are refused");
        (Verdict::Fail, found)
    } else if free < low {
        let then = match reserve {
            0 => String::new(),
            _ => format!("; below {} ([store] reserve_bytes) changes are refused", mib(reserve)),
        };
        (Verdict::Warn, format!("{free_text} free, less than {low_text}{then}"))
    } else {
        (Verdict::Ok, format!("{free_text} free"))
    }
}

/// A clock that stands before this program was made is wrong.
fn clock() -> Check {
    /// 2025-01-01T00:00:00Z.
    const EARLIEST: Duration = Duration::from_secs(1_735_689_600);
    let now = jiff::Timestamp::now();
    match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) if since >= EARLIEST => check("clock", Verdict::Ok, format!("{now:.0}"), ""),
        _ => check("clock", Verdict::Fail, format!("{now:.0}"), "the system's time service"),
    }
}

fn open_files(connections: usize) -> Check {
    let needed = connections as u64 + descriptors::OWN;
    match getrlimit(Resource::RLIMIT_NOFILE) {
        // The front raises what it has to what it may have.
        Ok((_, may)) if may >= needed => {
            check("open files", Verdict::Ok, format!("{may} allowed"), "")
        }
        Ok((_, may)) => check(
            "open files",
            Verdict::Warn,
            format!("{may} allowed, {needed} needed for {connections} connections"),
            "LimitNOFILE= of the unit, or [limits] connections",
        ),
        Err(error) => check("open files", Verdict::Fail, error.to_string(), "LimitNOFILE="),
    }
}

pub(super) fn roles(config: &Config) -> Check {
    let bound = config.policy.roles.iter();
    let bound = bound.filter(|(_, who)| !(who.users.is_empty() && who.groups.is_empty()));
    let names: Vec<&str> = bound.map(|(name, _)| name.as_str()).collect();
    if names.is_empty() {
        check("roles", Verdict::Warn, "nobody has a role".to_owned(), "[policy.roles]")
    } else {
        check("roles", Verdict::Ok, names.join(", "), "")
    }
}

fn check(name: &str, verdict: Verdict, found: String, remedy: &str) -> Check {
    let remedy = if verdict == Verdict::Ok { "" } else { remedy };
    Check { name: name.to_owned(), verdict, found, remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_judged_by_what_is_refused_on_it() {
        const MIB: u64 = 1 << 20;
        let (verdict, found) = judge_room(7 * MIB, 8 * MIB);
        assert_eq!(verdict, Verdict::Fail);
        assert_eq!(
            found,
            "7.0 MiB free: below 8.0 MiB ([store] reserve_bytes) changes are refused"
        );
        let (verdict, found) = judge_room(8 * MIB, 8 * MIB);
        assert!(verdict == Verdict::Warn && found.starts_with("8.0 MiB free, less than 256.0"));
        assert_eq!(judge_room(300 * MIB, 200 * MIB).0, Verdict::Warn, "near what is refused");
        assert_eq!(judge_room(300 * MIB, 8 * MIB).0, Verdict::Ok);
        assert_eq!(judge_room(0, 0).0, Verdict::Warn);
    }
}
