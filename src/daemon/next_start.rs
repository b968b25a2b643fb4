//! What the next start would refuse, found while this front runs: under its own restrictions, as its user and in
//! its sandbox, by the code that `config check` and the start itself use.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::config::{Config, ConfigError};
use super::config_check::of_front;
use super::{DaemonError, under_systemd};
use crate::custody::Spawn;
use crate::sandbox;
use crate::service::{NextStartCheck, StartRefusal};
use crate::token;

/// Everything is read again after this time, whatever seems unchanged: users and groups of the name service do not
/// show that they changed.
const LONGEST: Duration = Duration::from_secs(60);

/// What a check depends on, as far as files show it: device, inode, size, change time, mode.
type Stamp = Option<(u64, u64, u64, i64, i64, u32)>;

/// The last check.
struct Known {
    at: Instant,
    stamps: Vec<(PathBuf, Stamp)>,
    refusals: Vec<StartRefusal>,
}

/// The check of a front with this configuration file. It reads files: not for threads that serve.
pub fn check(path: &Path, running: &Config) -> NextStartCheck {
    let (path, running) = (path.to_owned(), running.clone());
    let known = Mutex::new(None::<Known>);
    Arc::new(move |is_forced| {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref()
            && !is_forced
            && known.at.elapsed() < LONGEST
            && known.stamps.iter().all(|(path, was)| stamp(path) == *was)
        {
            return known.refusals.clone();
        }
        let stamps = watched(&path).into_iter().map(|path| (stamp(&path), path));
        let stamps = stamps.map(|(stamp, path)| (path, stamp)).collect();
        let (at, refusals) = (Instant::now(), refusals(&path, &running));
        known.insert(Known { at, stamps, refusals }).refusals.clone()
    })
}

/// What keeps the next front from starting, each with what to do.
fn refusals(path: &Path, running: &Config) -> Vec<StartRefusal> {
    let config = match Config::load(path) {
        Ok(loaded) => loaded.config,
        // The next process is shut in with the directory that its file lies in then.
        Err(ConfigError::Unreadable { error, .. })
            if error.kind() == ErrorKind::PermissionDenied && sandbox::hides(path) =>
        {
            return Vec::new();
        }
        Err(error) => return vec![of_configuration(error)],
    };
    let is_of_another =
        config.policy.directory != running.policy.directory || config.sandbox != running.sandbox;
    let (findings, _) = of_front(&config, is_of_another);
    let found = findings.into_iter().filter(super::config_check::Finding::refuses);
    let mut refusals: Vec<StartRefusal> =
        found.map(|finding| StartRefusal { what: finding.what, next: finding.next }).collect();
    let starts_custody = match config.custody.spawn {
        Spawn::Never => false,
        Spawn::Auto => !under_systemd(),
        Spawn::Always => true,
    };
    if starts_custody && let Err(fault) = token::refuse_loose_module(&config.token.module) {
        let error = DaemonError::from(fault);
        refusals.push(StartRefusal { what: error.to_string(), next: error.next() });
    }
    refusals
}

fn of_configuration(error: ConfigError) -> StartRefusal {
    let error = DaemonError::from(error);
    let text = error.to_string();
    let lines = text.lines().filter(|line| !line.contains(" |")).map(str::trim);
    let why = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    let what = format!(
        "the configuration on the disk is refused, and custody cannot start anew with it: {why}; what was in \
         force at the start stays so until then"
    );
    StartRefusal { what, next: error.next() }
}

/// The files and directories whose change is a reason to check again.
fn watched(path: &Path) -> Vec<PathBuf> {
    let mut watched = vec![path.to_owned(), "/etc/passwd".into(), "/etc/group".into()];
    let Ok(loaded) = Config::load(path) else { return watched };
    let config = loaded.config;
    let policies = std::fs::read_dir(&config.policy.directory).into_iter().flatten().flatten();
    watched.extend(policies.map(|entry| entry.path()));
    watched.extend([config.policy.directory, config.store.path, config.audit.directory]);
    watched.push(config.token.module);
    watched
}

fn stamp(path: &Path) -> Stamp {
    let found = path.metadata().ok()?;
    let changed = (found.ctime(), found.ctime_nsec());
    Some((found.dev(), found.ino(), found.size(), changed.0, changed.1, found.mode()))
}
