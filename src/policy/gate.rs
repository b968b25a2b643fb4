//! The gate: a loaded policy judges who may do what, and a yes is a [`Permit`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cedar_policy::{
    Authorizer, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid, PolicyId, Request,
    Response, RestrictedExpression,
};

use super::decisions::{Decisions, Question, Verdict};
use super::explain::Deciding;
use super::facts::{Facts, Mode, Sets};
use super::load::{self, Finding, Loaded, PolicyError, Settings};
use super::permit::{Denied, Permit};
use super::roles::{RoleSet, Roles};
use super::{Action, Resource};
use crate::identity::{Caller, UnixPeer};
use crate::key::{Labels, Name};

/// Why the answer is no. For the trail and for `policy explain`, never for the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no policy permits it")]
    Nothing,
    #[error("forbidden by {}", .0.join(", "))]
    Forbidden(Vec<String>),
    #[error("a policy looks at owner or labels, and they are not known")]
    FactsUnknown,
    #[error("a part of the appliance does not ask policy")]
    NotACaller,
    #[error("the permission is not one of those that the request declares")]
    Undeclared,
    #[error("the question does not fit the schema: {0}")]
    Unfit(String),
    #[error("policies failed and count as no: {}", .0.join(", "))]
    Failed(Vec<String>),
}

/// The loaded policies. Never changes: a reload makes a new one.
pub struct Policy {
    loaded: Loaded,
    authorizer: Authorizer,
    /// The actions and their groups, which every question needs.
    actions: Entities,
    sets: Sets,
    decisions: Decisions,
    /// No two that this process loads have the same.
    number: u64,
}

static LOADED: AtomicU64 = AtomicU64::new(0);

impl Policy {
    /// Reads and checks every policy file and resolves every role.
    pub fn load(settings: &Settings) -> Result<Self, PolicyError> {
        Self::of(load::load(settings)?)
    }

    /// From what was read and checked.
    pub(super) fn of(loaded: Loaded) -> Result<Self, PolicyError> {
        let actions = loaded.schema.action_entities();
        let sets = Sets::of(loaded.policies.clone()).map_err(PolicyError::Schema)?;
        Ok(Self {
            authorizer: Authorizer::new(),
            actions: actions.map_err(|error| PolicyError::Schema(error.to_string()))?,
            sets,
            decisions: Decisions::new(),
            number: LOADED.fetch_add(1, Ordering::Relaxed),
            loaded,
        })
    }

    /// SHA-256 in lower-case hex over schema, roles, and the policy files with their names.
    pub fn hash(&self) -> &str {
        &self.loaded.hash
    }

    /// Tells it from every other policy that this process has loaded.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether a name belongs to a role that the caller has.
    pub fn shares_name(&self, caller: &Caller, name: &Name) -> bool {
        let roles = &self.loaded.roles;
        namespace(name, roles)
            .is_some_and(|role| roles.names_in(roles.of(caller)).any(|own| own == role))
    }

    /// How many policies there are.
    pub fn count(&self) -> usize {
        self.loaded.policies.num_of_policies()
    }

    /// What is valid but perhaps not meant.
    pub fn warnings(&self) -> &[Finding] {
        &self.loaded.warnings
    }

    /// Whether the answer about this may rest on its owner or labels, so that [`Facts`] matter.
    pub fn reads_facts(&self, resource: &Resource) -> bool {
        self.sets.reads_facts && !matches!(resource, Resource::Appliance)
    }

    /// Whether a yes is possible at all, whatever owner and labels are.
    ///
    /// # Errors
    /// [`Denied`] where it is not: no record has to be read to say so.
    pub fn may_permit(
        &self,
        caller: &Caller,
        action: Action,
        resource: &Resource,
    ) -> Result<(), Denied> {
        let verdict = self.verdict(caller, action, resource, (Mode::Possible, Facts::Unknown));
        verdict.map_err(|refusal| Denied::new(action, refusal))
    }

    /// May `caller` do `action` to `resource`? What no policy permits is refused, and a `forbid` wins.
    pub fn permit(
        &self,
        caller: &Caller,
        action: Action,
        resource: &Resource,
        facts: Facts<'_>,
    ) -> Result<Permit, Denied> {
        let mode = self.mode(resource, facts);
        let mut verdict = self.verdict(caller, action, resource, (mode, facts));
        if mode == Mode::Certain && verdict.is_err() {
            let possible = self.verdict(caller, action, resource, (Mode::Possible, facts));
            verdict = Err(possible.err().unwrap_or_else(|| Arc::new(Refusal::FactsUnknown)));
        }
        let rests_on_facts = mode != Mode::Certain && self.reads_facts(resource);
        match verdict {
            Ok(()) => {
                let (caller, resource) = (caller.clone(), resource.clone());
                Ok(Permit::granted(caller, action, resource, rests_on_facts, self.number))
            }
            Err(refusal) => Err(Denied::new(action, refusal)),
        }
    }

    fn mode(&self, resource: &Resource, facts: Facts<'_>) -> Mode {
        match facts {
            _ if !self.reads_facts(resource) => Mode::Known,
            Facts::Known { .. } => Mode::Known,
            Facts::Absent => Mode::Absent,
            Facts::Unknown => Mode::Certain,
        }
    }

    fn verdict(
        &self,
        caller: &Caller,
        action: Action,
        resource: &Resource,
        known: (Mode, Facts<'_>),
    ) -> Verdict {
        let Caller::Unix(peer) = caller else { return Err(Arc::new(Refusal::NotACaller)) };
        let question = self.question(caller, peer, action, resource, known);
        self.decisions.answer(question, || self.judge(question).verdict)
    }

    /// The same judgement, with the policies that led to it, each with its file.
    pub(super) fn judgement(
        &self,
        caller: &Caller,
        action: Action,
        resource: &Resource,
        facts: Facts<'_>,
    ) -> (Verdict, Vec<Deciding>) {
        let known = (self.mode(resource, facts), facts);
        let judgement = match caller {
            Caller::Unix(peer) => self.judge(self.question(caller, peer, action, resource, known)),
            Caller::System(_) => Judgement::refused(Refusal::NotACaller),
        };
        let deciding = judgement.policies.into_iter().map(|id| self.deciding(id)).collect();
        (judgement.verdict, deciding)
    }

    /// The roles of a caller.
    pub(super) fn roles_of(&self, caller: &Caller) -> Vec<String> {
        let roles = &self.loaded.roles;
        roles.names_in(roles.of(caller)).map(str::to_owned).collect()
    }

    /// Refuses a further question on the way of a permitted request that its action does not declare
    /// ([`Action::also`]): `policy explain` would not know of it.
    pub fn must_be_declared(&self, permit: &Permit, also: Action) -> Result<(), Denied> {
        match permit.action().also().iter().any(|declared| declared.action == also) {
            true => Ok(()),
            false => Err(Denied::new(also, Arc::new(Refusal::Undeclared))),
        }
    }

    fn question<'a>(
        &self,
        caller: &Caller,
        peer: &UnixPeer,
        action: Action,
        resource: &'a Resource,
        (mode, facts): (Mode, Facts<'a>),
    ) -> Question<'a> {
        let (owner, labels) = match facts {
            Facts::Known { owner, labels } if self.reads_facts(resource) => (owner, labels),
            _ => (None, None),
        };
        Question {
            uid: peer.uid,
            gid: peer.gid,
            roles: self.loaded.roles.of(caller),
            action,
            resource,
            mode,
            owner,
            labels,
        }
    }

    fn deciding(&self, id: String) -> Deciding {
        let file = self.loaded.files.get(&id).cloned().unwrap_or_default();
        Deciding { id, file }
    }

    fn judge(&self, question: Question<'_>) -> Judgement {
        match asked(question, &self.loaded, &self.actions) {
            Ok((request, entities)) => {
                let policies = self.sets.answering(question.mode);
                let answer = self.authorizer.is_authorized(&request, policies, &entities);
                // A condition that would have kept a policy from failing may be gone here.
                if question.mode == Mode::Possible && answer.diagnostics().errors().next().is_some()
                {
                    return Judgement { verdict: Ok(()), policies: Vec::new() };
                }
                Judgement::of(&answer)
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
    let resource = resource_entity(&question, &user, &loaded.roles)?;
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

fn resource_entity(
    question: &Question<'_>,
    principal: &EntityUid,
    roles: &Roles,
) -> Result<Entity, String> {
    let string = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let (uid_of, name) = match question.resource {
        Resource::Appliance => (uid("Appliance", "strongroom")?, None),
        Resource::Key(name) => (uid("Key", name.as_str())?, Some(name)),
        Resource::Secret(name) => (uid("Secret", name.as_str())?, Some(name)),
    };
    let mut attributes = Vec::new();
    if let Some(name) = name {
        attributes.push(("name".to_owned(), string(name.as_str())));
        if let Some(role) = namespace(name, roles) {
            let role = RestrictedExpression::new_entity_uid(uid("Role", role)?);
            attributes.push(("namespace".to_owned(), role));
        }
        let owner = match (question.mode, question.owner) {
            (Mode::Absent, _) => Some(principal.clone()),
            (_, Some(owner)) => Some(uid("User", owner.as_str())?),
            (_, None) => None,
        };
        attributes
            .extend(owner.map(|it| ("owner".to_owned(), RestrictedExpression::new_entity_uid(it))));
    }
    let is_key = matches!(question.resource, Resource::Key(_));
    let tags = question.labels.filter(|_| is_key).into_iter().flat_map(Labels::iter);
    let tags = tags.map(|(name, value)| (name.to_string(), string(value)));
    Entity::new_with_tags(uid_of, attributes, [], tags).map_err(|error| error.to_string())
}

/// The role that shares a name: the one of the configuration that is called what stands before the name's
/// first dot.
fn namespace<'a>(name: &'a Name, roles: &Roles) -> Option<&'a str> {
    let (first, _) = name.as_str().split_once('.')?;
    roles.names().any(|role| role == first).then_some(first)
}

fn uid(entity_type: &str, id: &str) -> Result<EntityUid, String> {
    let name: EntityTypeName = entity_type.parse().map_err(|error| format!("{error}"))?;
    Ok(EntityUid::from_type_name_and_id(name, EntityId::new(id)))
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("hash", &self.loaded.hash).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
