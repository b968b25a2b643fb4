//! The gate: a loaded policy judges who may do what, and a yes is a [`Permit`].

use std::fmt;
use std::sync::Arc;

use cedar_policy::{
    Authorizer, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid,
    Policy as CedarPolicy, PolicyId, Request, Response, RestrictedExpression,
};
use serde::Serialize;

use super::decisions::{Decisions, Question, Verdict};
use super::load::{self, Finding, Loaded, PolicyError, Settings};
use super::permit::{Denied, Permit};
use super::roles::{RoleSet, Roles};
use super::{Action, Resource};
use crate::identity::{Caller, UnixPeer};
use crate::key::Labels;

/// What is known about a request besides who asks, for what, and on what.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// The labels of the key that is asked about: those it has, or is to have when it is created.
    /// Without them nothing is permitted on a key where a policy looks at labels.
    pub labels: Option<&'a Labels>,
}

/// Why the answer is no. For the trail and for `policy explain`, never for the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no policy permits it")]
    Nothing,
    #[error("forbidden by {}", .0.join(", "))]
    Forbidden(Vec<String>),
    #[error("a policy looks at the key's labels, and they are not known")]
    LabelsUnknown,
    #[error("a part of the appliance does not ask policy")]
    NotACaller,
    #[error("the question does not fit the schema: {0}")]
    Unfit(String),
    #[error("policies failed and count as no: {}", .0.join(", "))]
    Failed(Vec<String>),
}

/// What the gate would answer, and by what.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    pub permitted: bool,
    pub caller: String,
    pub action: &'static str,
    pub resource: String,
    /// The caller's roles.
    pub roles: Vec<String>,
    /// The policies that decided, with the files they stand in.
    pub policies: Vec<Deciding>,
    /// Why not; empty where it is permitted.
    pub because: String,
}

/// A policy that decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deciding {
    pub id: String,
    pub file: String,
}

/// The loaded policies. Never changes: a reload makes a new one.
pub struct Policy {
    loaded: Loaded,
    authorizer: Authorizer,
    /// The actions and their groups, which every question needs.
    actions: Entities,
    reads_labels: bool,
    decisions: Decisions,
}

impl Policy {
    /// Reads and checks every policy file and resolves every role.
    pub fn load(settings: &Settings) -> Result<Self, PolicyError> {
        Self::of(load::load(settings)?)
    }

    /// From what was read and checked.
    pub(super) fn of(loaded: Loaded) -> Result<Self, PolicyError> {
        let actions = loaded.schema.action_entities();
        let reads_labels = loaded.policies.policies().any(reads_tags);
        Ok(Self {
            authorizer: Authorizer::new(),
            actions: actions.map_err(|error| PolicyError::Schema(error.to_string()))?,
            reads_labels,
            decisions: Decisions::new(),
            loaded,
        })
    }

    /// SHA-256 in lower-case hex over schema, roles, and the policy files with their names.
    pub fn hash(&self) -> &str {
        &self.loaded.hash
    }

    /// How many policies there are.
    pub fn count(&self) -> usize {
        self.loaded.policies.num_of_policies()
    }

    /// What is valid but perhaps not meant.
    pub fn warnings(&self) -> &[Finding] {
        &self.loaded.warnings
    }

    /// Whether a policy looks at the labels of keys, so that [`Context::labels`] matters.
    pub fn reads_labels(&self) -> bool {
        self.reads_labels
    }

    /// May `caller` do `action` to `resource`? What no policy permits is refused, and a `forbid` wins.
    pub fn permit(
        &self,
        caller: &Caller,
        action: Action,
        resource: &Resource,
        context: Context<'_>,
    ) -> Result<Permit, Denied> {
        let verdict = match caller {
            Caller::Unix(peer) => {
                let question = self.question(caller, peer, action, resource, context);
                self.decisions.answer(question, || self.judge(question).verdict)
            }
            Caller::System(_) => Err(Arc::new(Refusal::NotACaller)),
        };
        match verdict {
            Ok(()) => Ok(Permit::granted(caller.clone(), action, resource.clone())),
            Err(refusal) => Err(Denied::new(action, refusal)),
        }
    }

    /// The same judgement, with what led to it.
    pub fn explain(
        &self,
        caller: &Caller,
        action: Action,
        resource: &Resource,
        context: Context<'_>,
    ) -> Explanation {
        let roles = &self.loaded.roles;
        let judgement = match caller {
            Caller::Unix(peer) => {
                self.judge(self.question(caller, peer, action, resource, context))
            }
            Caller::System(_) => Judgement::refused(Refusal::NotACaller),
        };
        Explanation {
            permitted: judgement.verdict.is_ok(),
            caller: caller.name(),
            action: action.as_str(),
            resource: resource.path(),
            roles: roles.names_in(roles.of(caller)).map(str::to_owned).collect(),
            policies: judgement.policies.into_iter().map(|id| self.deciding(id)).collect(),
            because: judgement.verdict.err().map(|why| why.to_string()).unwrap_or_default(),
        }
    }

    fn question<'a>(
        &self,
        caller: &Caller,
        peer: &UnixPeer,
        action: Action,
        resource: &'a Resource,
        context: Context<'a>,
    ) -> Question<'a> {
        Question {
            uid: peer.uid,
            gid: peer.gid,
            roles: self.loaded.roles.of(caller),
            action,
            resource,
            labels: context.labels.filter(|_| self.reads_labels),
        }
    }

    fn deciding(&self, id: String) -> Deciding {
        let file = self.loaded.files.get(&id).cloned().unwrap_or_default();
        Deciding { id, file }
    }

    fn judge(&self, question: Question<'_>) -> Judgement {
        let labels_matter = self.reads_labels && matches!(question.resource, Resource::Key(_));
        if labels_matter && question.labels.is_none() {
            return Judgement::refused(Refusal::LabelsUnknown);
        }
        match asked(question, &self.loaded, &self.actions) {
            Ok((request, entities)) => {
                let policies = &self.loaded.policies;
                Judgement::of(&self.authorizer.is_authorized(&request, policies, &entities))
            }
            Err(why) => Judgement::refused(Refusal::Unfit(why)),
        }
    }
}

/// A verdict and the policies that led to it.
struct Judgement {
    verdict: Verdict,
    policies: Vec<String>,
}

impl Judgement {
    fn refused(refusal: Refusal) -> Self {
        Self { verdict: Err(Arc::new(refusal)), policies: Vec::new() }
    }

    /// Cedar passes over a policy that fails, which would open the gate if it was a `forbid`: here it is a no.
    fn of(response: &Response) -> Self {
        let diagnostics = response.diagnostics();
        let mut policies: Vec<String> = diagnostics.reason().map(PolicyId::to_string).collect();
        policies.sort();
        let failed: Vec<String> = diagnostics.errors().map(|error| error.to_string()).collect();
        let verdict = match (failed.is_empty(), response.decision(), policies.is_empty()) {
            (false, ..) => Err(Arc::new(Refusal::Failed(failed))),
            (true, Decision::Allow, _) => Ok(()),
            (true, Decision::Deny, true) => Err(Arc::new(Refusal::Nothing)),
            (true, Decision::Deny, false) => Err(Arc::new(Refusal::Forbidden(policies.clone()))),
        };
        Self { verdict, policies }
    }
}

/// The question in Cedar's terms.
fn asked(
    question: Question<'_>,
    loaded: &Loaded,
    actions: &Entities,
) -> Result<(Request, Entities), String> {
    let user = uid("User", &format!("unix:{}", question.uid))?;
    let action = uid("Action", question.action.as_str())?;
    let resource = resource_entity(question.resource, question.labels)?;
    let context = cedar_policy::Context::from_pairs([
        ("transport".to_owned(), RestrictedExpression::new_string("unix".to_owned())),
        ("uid".to_owned(), RestrictedExpression::new_long(question.uid.into())),
        ("gid".to_owned(), RestrictedExpression::new_long(question.gid.into())),
    ])
    .map_err(|error| error.to_string())?;
    let request = Request::new(user.clone(), action, resource.uid(), context, Some(&loaded.schema))
        .map_err(|error| error.to_string())?;
    let mut entities = vec![user_entity(user, question.roles, &loaded.roles)?, resource];
    for role in loaded.roles.names_in(question.roles) {
        entities.push(Entity::with_uid(uid("Role", role)?));
    }
    let entities =
        actions.clone().add_entities(entities, None).map_err(|error| error.to_string())?;
    Ok((request, entities))
}

fn user_entity(user: EntityUid, set: RoleSet, roles: &Roles) -> Result<Entity, String> {
    let parents = roles.names_in(set).map(|role| uid("Role", role)).collect::<Result<_, _>>()?;
    Ok(Entity::new_no_attrs(user, parents))
}

fn resource_entity(resource: &Resource, labels: Option<&Labels>) -> Result<Entity, String> {
    let string = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let (uid, attributes) = match resource {
        Resource::Appliance => (uid("Appliance", "strongroom")?, None),
        Resource::Key(name) => (uid("Key", name.as_str())?, Some(name)),
        Resource::Secret(name) => (uid("Secret", name.as_str())?, Some(name)),
    };
    let attributes = attributes.map(|name| ("name".to_owned(), string(name.as_str())));
    let tags =
        labels.filter(|_| matches!(resource, Resource::Key(_))).into_iter().flat_map(Labels::iter);
    let tags = tags.map(|(name, value)| (name.to_string(), string(value)));
    Entity::new_with_tags(uid, attributes, [], tags).map_err(|error| error.to_string())
}

fn uid(entity_type: &str, id: &str) -> Result<EntityUid, String> {
    let name: EntityTypeName = entity_type.parse().map_err(|error| format!("{error}"))?;
    Ok(EntityUid::from_type_name_and_id(name, EntityId::new(id)))
}

/// Whether the policy asks for tags; one whose form cannot be told counts as if it did.
fn reads_tags(policy: &CedarPolicy) -> bool {
    fn asks(json: &serde_json::Value) -> bool {
        match json {
            serde_json::Value::Object(members) => members
                .iter()
                .any(|(name, value)| matches!(name.as_str(), "hasTag" | "getTag") || asks(value)),
            serde_json::Value::Array(items) => items.iter().any(asks),
            _ => false,
        }
    }
    policy.to_json().map_or(true, |json| asks(&json))
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("hash", &self.loaded.hash).finish_non_exhaustive()
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { caller, action, resource, .. } = self;
        let answer = if self.permitted { "may" } else { "may not" };
        writeln!(f, "{caller} {answer} {action} on {resource}")?;
        match self.roles.as_slice() {
            [] => writeln!(f, "roles: none")?,
            roles => writeln!(f, "roles: {}", roles.join(", "))?,
        }
        let word = if self.permitted { "permitted" } else { "forbidden" };
        for Deciding { id, file } in &self.policies {
            writeln!(f, "{word} by {id} ({file})")?;
        }
        if self.policies.is_empty() && !self.because.is_empty() {
            writeln!(f, "because {}", self.because)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
