//! Commands over the daemon's own files, without a daemon: configuration, policy, doctor.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::unistd::{User, getgrouplist};

use super::config::Config;
use super::{DaemonError, house, needs};
use crate::cli::{Explain, PolicyFrom};
use crate::custody::protocol::{Check, Verdict};
use crate::identity::{Caller, UnixPeer};
use crate::key::Labels;
use crate::policy::{self, Context, Policy, Resource};

/// Reads and checks a configuration with its policy.
pub fn check_config(path: &Path) -> Result<String, DaemonError> {
    let config = Config::load(path)?.config;
    let policy = Policy::load(&config.policy)?;
    let mut text = format!("{}: sound, with {} policies\n", path.display(), policy.count());
    if let Some(warning) = needs::in_the_way(path, &config) {
        text.push_str(&format!("warning: {warning}\n"));
    }
    Ok(text)
}

/// Every setting with the value in force, as TOML.
pub fn show_config(path: Option<&Path>) -> Result<String, DaemonError> {
    let config = match path {
        Some(path) => Config::load(path)?.config,
        None => Config::default(),
    };
    toml::to_string_pretty(&config).map_err(|error| DaemonError::Io {
        during: "writing the configuration",
        cause: std::io::Error::other(error),
    })
}

/// Reads and checks policy files.
pub fn check_policy(from: &PolicyFrom) -> Result<String, DaemonError> {
    let settings = match (&from.config, &from.dir) {
        (Some(config), _) => Config::load(config)?.config.policy,
        (None, Some(directory)) => {
            policy::Settings { directory: directory.clone(), ..policy::Settings::default() }
        }
        (None, None) => policy::Settings::default(),
    };
    let policy = Policy::load(&settings)?;
    let mut text =
        format!("{}: {} policies, sound\n", settings.directory.display(), policy.count());
    for warning in policy.warnings() {
        text.push_str(&format!("warning: {warning}\n"));
    }
    Ok(text)
}

/// Would this user be permitted, and by what? The exit code says it, too.
pub fn explain(asked: &Explain) -> Result<(String, bool), DaemonError> {
    let config = Config::load(&asked.config)?.config;
    let policy = Policy::load(&config.policy)?;
    let caller = Caller::Unix(peer(&asked.user)?);
    let Some(action) = asked.action() else { return Ok((String::new(), false)) };
    let mut labels = Labels::default();
    for (name, value) in &asked.labels {
        let failed = |error| super::io("reading --label")(std::io::Error::other(error));
        labels.insert(name, value).map_err(failed)?;
    }
    let is_key = matches!(asked.resource, Resource::Key(_));
    let context = Context { labels: is_key.then_some(&labels) };
    let explanation = policy.explain(&caller, action, &asked.resource, context);
    let remark = match is_key && policy.reads_labels() && asked.labels.is_empty() {
        true => "for a key without labels: policies look at them, and --label says which it has\n",
        false => "",
    };
    Ok((format!("{explanation}\n{remark}"), explanation.permitted))
}

/// The user as the kernel would name it on the socket, with its groups.
fn peer(user: &str) -> Result<UnixPeer, DaemonError> {
    let failed = |cause: std::io::Error| DaemonError::Io { during: "looking up the user", cause };
    let unknown = || failed(std::io::Error::other(format!("there is no user {user:?}")));
    let found = match user.parse() {
        Ok(uid) => User::from_uid(nix::unistd::Uid::from_raw(uid)),
        Err(_) => User::from_name(user),
    };
    let found = found.map_err(|errno| failed(errno.into()))?.ok_or_else(unknown)?;
    let name = std::ffi::CString::new(found.name).map_err(|_| unknown())?;
    let groups = getgrouplist(&name, found.gid).map_err(|errno| failed(errno.into()))?;
    Ok(UnixPeer {
        uid: found.uid.as_raw(),
        gid: found.gid.as_raw(),
        pid: 0,
        groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
    })
}

/// The checks that can be made without a daemon, in this process and as this user: what keeps a daemon
/// from starting. The text, and whether all is well.
pub fn doctor(path: &Path) -> Result<(String, bool), DaemonError> {
    use crate::custody::examine_locked;
    use crate::secret::{self, Use};
    let config = Config::load(path)?.config;
    let arena = secret::start(&config.custody.arena, Use::Custody)?;
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let mut checks = examine_locked(&config.token, credentials.as_deref(), arena);
    checks.extend(house::checks(path, &config)());
    if let Err(error) = Policy::load(&config.policy) {
        let remedy = "[policy] directory; `strongroom policy check`".to_owned();
        let (name, found) = ("policy".to_owned(), error.to_string());
        checks.push(Check { name, verdict: Verdict::Fail, found, remedy });
    }
    let well = checks.iter().all(|check| check.verdict != Verdict::Fail);
    let lines = checks.iter().map(|check| {
        let mark = match check.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let mends = match check.remedy.as_str() {
            "" => String::new(),
            setting if setting.starts_with('[') => format!("  → {setting} in {}", path.display()),
            other => format!("  → {other}"),
        };
        format!("{mark}  {:<20}  {}{mends}\n", check.name, check.found)
    });
    Ok((lines.collect(), well))
}

/// What a command ends with: its text on stdout, or its error on stderr.
pub fn told(result: Result<(String, bool), DaemonError>) -> ExitCode {
    match result {
        Ok((text, well)) => {
            print!("{text}");
            ExitCode::from(u8::from(!well))
        }
        Err(error) => {
            eprintln!("strongroom: {error}");
            ExitCode::FAILURE
        }
    }
}
