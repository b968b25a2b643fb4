//! `policy explain --config`: a decision by the files alone, under the restrictions of the front that would make it.

use serde::Serialize;
use serde_json::{Value, json};

use super::DaemonError;
use super::DaemonError::Refused;
use super::config::Config;
use super::offline::as_front;
use crate::cli::{Explain, Report};
use crate::identity::{Caller, UnixPeer};
use crate::key::{Labels, Owner};
use crate::policy::{self, Action, Asked, Facts, Policy, Resource};

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
    let path = asked.config.as_deref().unwrap_or("".as_ref());
    let config = Config::load(path)?.config;
    let caller = Caller::Unix(peer(&asked.user)?);
    let explained = as_front(path, &config, || {
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
    let of_resource =
        (labels("--label", &asked.labels)?, owner("--owner", asked.owner.as_deref())?);
    let of_key = (
        labels("--key-label", &asked.key_labels)?,
        owner("--key-owner", asked.key_owner.as_deref())?,
    );
    let is_key = matches!(asked.resource, Resource::Key(_));
    let facts =
        Facts::Known { owner: of_resource.1.as_ref(), labels: is_key.then_some(&of_resource.0) };
    let key = asked.key.clone().map(Resource::Key);
    let facts_of_key = Facts::Known { owner: of_key.1.as_ref(), labels: Some(&of_key.0) };
    let key = key.as_ref().map(|key| (key, facts_of_key));
    let explanation =
        policy.explain(caller, &Asked { action, resource: &asked.resource, facts, key });
    let says_nothing = of_resource.1.is_none() && asked.labels.is_empty();
    let remark =
        (policy.reads_facts(&asked.resource) && says_nothing).then_some(remark(action, is_key));
    let permitted = explanation.permitted;
    let mut text = format!("{explanation}\n");
    if let Some(remark) = remark {
        text.push_str(&format!("{remark}\n"));
    }
    Ok((text, json!(Explained { explanation: &explanation, remark }), permitted))
}

/// What was taken for granted where nothing was said of the resource.
fn remark(action: Action, is_key: bool) -> &'static str {
    match (action, is_key) {
        (Action::KeyCreate | Action::KeyImport, _) => {
            "for a key without labels that becomes the caller's: --label and --owner say otherwise"
        }
        (_, true) => {
            "for a key without labels that nobody owns: policies look at both, and --label and --owner say \
             what it has"
        }
        (_, false) => {
            "for a secret that nobody owns: policies look at that, and --owner says who does"
        }
    }
}

fn labels(option: &str, given: &[(String, String)]) -> Result<Labels, DaemonError> {
    let mut labels = Labels::default();
    for (name, value) in given {
        labels.insert(name, value).map_err(|error| DaemonError::Said {
            what: format!("{option} {name}={value}: {error}"),
            next: "correct the label",
        })?;
    }
    Ok(labels)
}

/// An owner: a user of this machine, or an id as policy writes it.
fn owner(option: &str, text: Option<&str>) -> Result<Option<Owner>, DaemonError> {
    let Some(text) = text else { return Ok(None) };
    let invalid = |error: crate::key::OwnerError| DaemonError::Said {
        what: format!("{option}: {error}"),
        next: "name a user of this machine, or an id like unix:1000",
    };
    let owner = match text.contains(':') {
        true => Owner::parse(text),
        false => Owner::of_uid(peer(text)?.uid),
    };
    owner.map(Some).map_err(invalid)
}

/// The user as the kernel would name it on the socket, with its groups.
fn peer(user: &str) -> Result<UnixPeer, DaemonError> {
    let failed = |errno: nix::errno::Errno| DaemonError::Io {
        during: "looking up the user",
        cause: errno.into(),
    };
    UnixPeer::of_user(user).map_err(failed)?.ok_or_else(|| DaemonError::Said {
        what: format!("there is no user {user:?}"),
        next: "name a user of this machine: `getent passwd` lists them",
    })
}
