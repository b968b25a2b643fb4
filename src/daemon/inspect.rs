//! Commands over the daemon's own files, without a daemon: configuration, policy, doctor.

use std::path::Path;

use serde::Serialize;

use super::DaemonError::Refused;
use super::config::Config;
use super::offline::{Users, around, as_front, become_custody, in_child, pin_of_root};
use super::unit::take_over_environment;
use super::{DaemonError, house};
use crate::cli::{self, Doctor, PolicyFrom, Report};
use crate::custody::examine_locked;
use crate::custody::protocol::{Check, Verdict};
use crate::policy::{self, Policy};
use crate::secret::{self, Use};
use crate::service::{CheckView, DoctorView};
use crate::token::ckr;

/// Every setting with the value in force, as TOML.
pub fn show_config(path: Option<&Path>) -> Result<Report, DaemonError> {
    let config = match path {
        Some(path) => Config::load(path)?.config,
        None => Config::default(),
    };
    let text = toml::to_string_pretty(&config).map_err(|error| DaemonError::Io {
        during: "writing the configuration",
        cause: std::io::Error::other(error),
    })?;
    Ok(Report::new(text, &config, true))
}

/// Policy files that are sound; those that are not are an error.
#[derive(Serialize)]
struct PolicyChecked<'a> {
    directory: &'a Path,
    verdict: &'static str,
    policies: usize,
    warnings: &'a [policy::Finding],
}

/// Reads and checks policy files.
pub fn check_policy(from: &PolicyFrom) -> Result<Report, DaemonError> {
    let (directory, policies, warnings) = match &from.config {
        Some(path) => {
            let config = Config::load(path)?.config;
            let settings = &config.policy;
            let found = as_front(path, &config, || sound(settings))?;
            let (policies, warnings) = found.map_err(|(what, next)| Refused { what, next })?;
            (config.policy.directory, policies, warnings)
        }
        None => {
            let directory = from.dir.clone();
            let directory = directory.unwrap_or_else(|| policy::Settings::default().directory);
            let settings =
                policy::Settings { directory: directory.clone(), ..policy::Settings::default() };
            let policy = Policy::load(&settings)?;
            (directory, policy.count(), policy.warnings().to_vec())
        }
    };
    let (directory, warnings) = (directory.as_path(), warnings.as_slice());
    let mut text = format!("{}: {policies} policies, sound\n", directory.display());
    for warning in warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    let checked = PolicyChecked { directory, verdict: "sound", policies, warnings };
    Ok(Report::new(text, &checked, true))
}

/// How many policies there are and what they warn of; else what is wrong and what to do.
fn sound(settings: &policy::Settings) -> Result<(usize, Vec<policy::Finding>), (String, String)> {
    match Policy::load(settings) {
        Ok(policy) => Ok((policy.count(), policy.warnings().to_vec())),
        Err(error) => {
            let error = DaemonError::from(error);
            Err((error.to_string(), error.next()))
        }
    }
}

/// The checks that can be made without a daemon, in this process and as this user: what keeps a daemon
/// from starting.
pub fn doctor(asked: &Doctor) -> Result<Report, DaemonError> {
    let path = asked.config.as_deref().unwrap_or(Path::new(""));
    take_over_environment(path);
    let mut config = Config::load(path)?.config;
    config.use_pin_file(asked.pin_file.as_deref());
    let users = Users::of(&config)?;
    // As the owner of the directories: in a process of its own, for this one becomes custody's user.
    let of_house = in_child(&users.front, house::checks(path, &config))?;
    let policy = as_front(path, &config, || sound(&config.policy))?;
    let arena = secret::start(&config.custody.arena, Use::Custody)?;
    let pin = if users.custody.is_current() { None } else { pin_of_root(&config)? };
    become_custody(&config, &users.custody)?;
    let credentials = around().credentials;
    let mut checks =
        examine_locked(&config.token, credentials.as_deref(), arena, asked.login, pin.as_ref());
    checks.extend(of_house);
    if let Err((found, _)) = policy {
        let remedy = "[policy] directory; `strongroom policy check`".to_owned();
        let name = "policy".to_owned();
        checks.push(Check { name, verdict: Verdict::Fail, found, remedy });
    }
    let well = checks.iter().all(|check| check.verdict != Verdict::Fail);
    let file = path.display().to_string();
    let views = checks.into_iter().map(|check| CheckView::of(check, &file)).collect();
    let view = DoctorView { checks: views };
    Ok(Report::new(cli::doctors_lines(&view.checks), &view, well))
}

/// A return value of PKCS#11, for programs.
#[derive(Serialize)]
struct ReturnValue {
    code: u64,
    name: &'static str,
    kind: &'static str,
    restart: bool,
    meaning: &'static str,
    next: &'static str,
}

#[derive(Serialize)]
struct ReturnValues {
    return_values: Vec<ReturnValue>,
}

/// Every return value of PKCS#11 with what it means.
pub fn return_values() -> Report {
    let value = |row: &ckr::Ckr| ReturnValue {
        code: row.code,
        name: row.name,
        kind: row.class.as_str(),
        restart: row.restart,
        meaning: row.meaning,
        next: row.next,
    };
    let return_values = ckr::rows().iter().map(value).collect();
    Report::new(ckr::in_words(), &ReturnValues { return_values }, true)
}
