//! Explains a decision of policy to whoever may ask for that, with no look at files.
//!
//! The answer goes by the record of a key or secret only where the one who asks for the explanation may see that
//! record. One that is hidden is explained as one that does not exist, so that no name can be guessed this way.

use std::str::FromStr;

use serde::Deserialize;
use utoipa::ToSchema;

use super::authorize::facts_of_key;
use super::error::Error;
use super::gate::{Appliance, Request, Trace, Traced};
use crate::identity::{Caller, UnixPeer};
use crate::key::{Labels, Name, Owner};
use crate::policy::{Action, Asked, Explanation, Facts, Permit, Resource};
use crate::records::RecordError;

/// Say whether somebody may do something, and which policies say so.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainPolicy {
    /// The Unix user who would ask, by name or by uid as a text; the caller itself, where it is not given.
    #[serde(default)]
    pub user: Option<String>,
    /// What would be asked for, like `key:decrypt`.
    pub action: String,
    /// On what: `appliance`, `key/NAME` or `secret/NAME`; the appliance, where it is not given.
    #[serde(default)]
    pub resource: Option<String>,
    /// The key that a secret is or would be encrypted for. Where it is not given it is the stored secret's, if the
    /// caller may see that.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub key: Option<Name>,
    /// Who owns the resource or would own it, like `unix:1000`. Where neither this nor `labels` is given they are
    /// those of the stored key or secret, if the caller may see that.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub owner: Option<Owner>,
    /// The labels that the key has or would have.
    #[serde(default)]
    #[schema(value_type = Option<std::collections::BTreeMap<String, String>>)]
    pub labels: Option<Labels>,
}

/// What is known of a resource: what a body says, or its record.
enum Known {
    Absent,
    Is { owner: Option<Owner>, labels: Option<Labels> },
}

impl Known {
    fn facts(&self) -> Facts<'_> {
        match self {
            Known::Absent => Facts::Absent,
            Known::Is { owner, labels } => {
                Facts::Known { owner: owner.as_ref(), labels: labels.as_ref() }
            }
        }
    }
}

impl Request for ExplainPolicy {
    const ACTION: Action = Action::PolicyExplain;
    const TRACE: Trace = Trace::Beside;
    type Reply = Explanation;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<Explanation, Error> {
        let action = Action::from_str(&self.action)
            .map_err(|error| Error::Invalid { member: "action", rule: error.to_string() })?;
        let resource = match &self.resource {
            Some(text) => Resource::from_str(text)
                .map_err(|error| Error::Invalid { member: "resource", rule: error.to_string() })?,
            None => Resource::Appliance,
        };
        let caller = match self.user {
            Some(user) => Caller::Unix(peer_of(user).await?),
            None => permit.caller().clone(),
        };
        let (known, key) = appliance.known_of(&permit, &resource).await?;
        let makes = matches!(action, Action::KeyCreate | Action::KeyImport);
        let known = match (self.owner, self.labels) {
            (None, None) if makes => Known::Is { owner: None, labels: Some(Labels::default()) },
            (None, None) => known,
            (owner, labels) => {
                let is_key = matches!(resource, Resource::Key(_));
                let labels = labels.or_else(|| is_key.then(Labels::default));
                Known::Is { owner, labels }
            }
        };
        let key = self.key.or(key).map(Resource::Key);
        let known_of_key = match &key {
            Some(key) => appliance.known_of(&permit, key).await?.0,
            None => Known::Absent,
        };
        let key = key.as_ref().map(|key| (key, known_of_key.facts()));
        let asked = Asked { action, resource: &resource, facts: known.facts(), key };
        Ok(appliance.policy().explain(&caller, &asked))
    }
}

impl Appliance {
    /// What the caller of `permit` may know of a key or secret; of a secret, the key that it is encrypted for, too.
    async fn known_of(
        &self,
        permit: &Permit,
        resource: &Resource,
    ) -> Result<(Known, Option<Name>), Error> {
        match resource {
            Resource::Appliance => Ok((Known::Absent, None)),
            Resource::Key(name) => {
                let Some(key) = hold(self.records.key(name).await)? else {
                    return Ok((Known::Absent, None));
                };
                let facts = facts_of_key(&key.meta);
                if !self.may_see(permit, Action::KeyShow, resource, facts) {
                    return Ok((Known::Absent, None));
                }
                let owner = key.meta.owner().cloned();
                Ok((Known::Is { owner, labels: Some(key.meta.labels().clone()) }, None))
            }
            Resource::Secret(name) => {
                let Some(at) = hold(self.records.secret(name).await)? else {
                    return Ok((Known::Absent, None));
                };
                let facts = Facts::Known { owner: at.record.owner.as_ref(), labels: None };
                if !self.may_see(permit, Action::SecretShow, resource, facts) {
                    return Ok((Known::Absent, None));
                }
                let owner = at.record.owner.clone();
                Ok((Known::Is { owner, labels: None }, Some(at.record.key.clone())))
            }
        }
    }
}

/// A record that does not open is not seen by anybody, and says nothing of whether it is there.
fn hold<T>(found: Result<Option<T>, RecordError>) -> Result<Option<T>, Error> {
    match found {
        Err(RecordError::Broken(_)) => Ok(None),
        found => Ok(found?),
    }
}

/// A user as the name service knows it, which may take its time.
async fn peer_of(user: String) -> Result<UnixPeer, Error> {
    let unknown = || Error::Invalid {
        member: "user",
        rule: "a Unix user of this machine, by name or by uid as a text like \"1000\"".to_owned(),
    };
    let found = tokio::task::spawn_blocking(move || UnixPeer::of_user(&user)).await;
    found.ok().and_then(Result::ok).flatten().ok_or_else(unknown)
}

impl Traced for Explanation {}
