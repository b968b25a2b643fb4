//! Commands over the daemon's own files, without a daemon: configuration, policy, doctor.

use std::path::Path;

use nix::unistd::{User, getgrouplist};
use serde::Serialize;
use serde_json::{Value, json};

use super::DaemonError::Refused;
use super::config::Config;
use super::offline::{Users, around, as_front, become_custody, in_child, pin_of_root};
use super::{DaemonError, house};
use crate::cli::{self, Doctor, Explain, PolicyFrom, Report};
use crate::custody::examine_locked;
use crate::custody::protocol::{Check, Verdict};
use crate::identity::{Caller, UnixPeer};
use crate::key::{Labels, Owner};
use crate::policy::{self, Facts, Policy, Resource};
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

/// An answer, and what has to be known to read it.
#[derive(Serialize)]
struct Explained<'a> {
    #[serde(flatten)]
    explanation: &'a policy::Explanation,
    #[serde(skip_serializing_if = "Option::is_none")]
    remark: Option<&'static str>,
}

/// Would this user be permitted, and by what? The exit code says it, too.
pub fn explain(asked: &Explain) -> Result<Report, DaemonError> {
    let config = Config::load(&asked.config)?.config;
    let caller = Caller::Unix(peer(&asked.user)?);
    let explained = as_front(&asked.config, &config, || {
        let explained = Policy::load(&config.policy)
            .map_err(DaemonError::from)
            .and_then(|policy| explained(asked, &policy, &caller));
        explained.map_err(|error| (error.to_string(), error.next()))
    })?;
    let (text, document, permitted) = explained.map_err(|(what, next)| Refused { what, next })?;
    Ok(Report::new(text, &document, permitted))
}

/// The answer in words and for programs, and whether it is yes.
fn explained(
    asked: &Explain,
    policy: &Policy,
    caller: &Caller,
) -> Result<(String, Value, bool), DaemonError> {
    let said = |what, next| DaemonError::Said { what, next };
    let unknown = || said(format!("there is no action {}", asked.action), "--help lists them");
    let action = asked.action().ok_or_else(unknown)?;
    let mut labels = Labels::default();
    for (name, value) in &asked.labels {
        let failed = |error| said(format!("--label {name}={value}: {error}"), "correct the label");
        labels.insert(name, value).map_err(failed)?;
    }
    let is_key = matches!(asked.resource, Resource::Key(_));
    let owner = asked.owner.as_deref().map(owner).transpose()?;
    let facts = Facts::Known { owner: owner.as_ref(), labels: is_key.then_some(&labels) };
    let explanation = policy.explain(caller, action, &asked.resource, facts);
    let says_nothing = owner.is_none() && asked.labels.is_empty();
    let remark = (policy.reads_facts(&asked.resource) && says_nothing).then_some(match is_key {
        true => {
            "for a key without labels that nobody owns: policies look at both, and --label and --owner say \
             what it has"
        }
        false => "for a secret that nobody owns: policies look at that, and --owner says who does",
    });
    let permitted = explanation.permitted;
    let mut text = format!("{explanation}\n");
    if let Some(remark) = remark {
        text.push_str(&format!("{remark}\n"));
    }
    Ok((text, json!(Explained { explanation: &explanation, remark }), permitted))
}

/// An owner: a user of this machine, or an id as policy writes it.
fn owner(text: &str) -> Result<Owner, DaemonError> {
    let invalid = |error: crate::key::OwnerError| DaemonError::Said {
        what: format!("--owner: {error}"),
        next: "name a user of this machine, or an id like unix:1000",
    };
    match text.contains(':') {
        true => Owner::parse(text).map_err(invalid),
        false => Owner::of_uid(peer(text)?.uid).map_err(invalid),
    }
}

/// The user as the kernel would name it on the socket, with its groups.
fn peer(user: &str) -> Result<UnixPeer, DaemonError> {
    let failed = |cause: std::io::Error| DaemonError::Io { during: "looking up the user", cause };
    let unknown = || DaemonError::Said {
        what: format!("there is no user {user:?}"),
        next: "name a user of this machine: `getent passwd` lists them",
    };
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
/// from starting.
pub fn doctor(asked: &Doctor) -> Result<Report, DaemonError> {
    let path = asked.config.as_deref().unwrap_or(Path::new(""));
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
