//! The answer of the gate: a [`Permit`] that nothing else makes, or [`Denied`].

use std::sync::Arc;

use super::gate::{Policy, Refusal};
use super::{Action, Resource};
use crate::identity::Caller;
use crate::key::ForRecovery;

/// This caller may do this action to this resource: one yes, one deed. Only
/// [`Policy::permit`](super::Policy::permit) makes one, and [`Permit::of_system`] for the appliance itself.
#[derive(Debug)]
#[must_use = "a permit that nobody uses allows nothing"]
pub struct Permit {
    caller: Caller,
    action: Action,
    resource: Resource,
    /// Whether it rests on what owner and labels were: it holds for that record and for no other.
    rests_on_facts: bool,
    /// Which policy granted it; none where it did not come from one.
    policy: Option<u64>,
}

/// The answer was no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not permitted: {action}")]
pub struct Denied {
    action: Action,
    refusal: Arc<Refusal>,
}

impl Permit {
    pub(super) fn granted(
        caller: Caller,
        action: Action,
        resource: Resource,
        rests_on_facts: bool,
        policy: u64,
    ) -> Self {
        Self { caller, action, resource, rests_on_facts, policy: Some(policy) }
    }

    /// The way past policy: for what a part of the appliance does by itself, like a sweep that carries out
    /// what somebody was permitted to schedule.
    pub fn of_system(part: &'static str, action: Action, resource: Resource) -> Self {
        Self { caller: Caller::System(part), action, resource, rests_on_facts: false, policy: None }
    }

    /// Whether the policy in force is the one that granted it, or none had to: under another one, it has to be
    /// asked for again before it is used.
    pub fn is_of(&self, policy: &Policy) -> bool {
        self.policy.is_none_or(|number| number == policy.number())
    }

    /// Whether it rests on what owner and labels were when it was granted, so that the record it is used on
    /// has to be held against policy, too.
    pub fn rests_on_facts(&self) -> bool {
        self.rests_on_facts
    }

    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    pub fn action(&self) -> Action {
        self.action
    }

    pub fn resource(&self) -> &Resource {
        &self.resource
    }

    /// Turns a permit for [`Action::KeyRecover`] into the allowance to use a version of that key for
    /// recovery; `None` for every other permit.
    pub fn for_recovery(self) -> Option<ForRecovery> {
        match (self.action, self.resource) {
            (Action::KeyRecover, Resource::Key(key)) => Some(ForRecovery::granted_by_policy(key)),
            _ => None,
        }
    }
}

impl Denied {
    pub(super) fn new(action: Action, refusal: Arc<Refusal>) -> Self {
        Self { action, refusal }
    }

    pub fn action(&self) -> Action {
        self.action
    }

    /// Why: for trail and journal. A caller is told only that it is not permitted.
    pub fn refusal(&self) -> &Refusal {
        &self.refusal
    }
}
