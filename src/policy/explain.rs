//! Explains a decision: every permission that a request needs, as the gate asks for them, with what decides each.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::action::{On, When};
use super::{Action, Facts, Policy, Resource};
use crate::identity::Caller;
use crate::key::Owner;

/// A request that somebody would make.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub action: Action,
    pub resource: &'a Resource,
    /// What is known of the resource; its owner only where one is named or there is a record.
    pub facts: Facts<'a>,
    /// The key that a secret is encrypted for, where it is known.
    pub key: Option<(&'a Resource, Facts<'a>)>,
}

/// What the gate would answer, and by what.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// Whether the request is permitted: its action, and all that it needs in any case besides.
    pub permitted: bool,
    /// Who would ask, like `unix:1000`.
    pub caller: String,
    pub action: String,
    pub resource: String,
    /// The caller's roles.
    pub roles: Vec<String>,
    /// The policies that decided on the action, with the files they stand in.
    pub policies: Vec<Deciding>,
    /// Why not; empty where it is permitted.
    pub because: String,
    /// The further permissions that such a request needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub also: Vec<Further>,
}

/// A further permission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Further {
    pub action: String,
    /// Absent where it is not known which key it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// When it is needed; empty where it always is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    pub when: String,
    pub permitted: bool,
    pub policies: Vec<Deciding>,
    pub because: String,
}

/// A policy that decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Deciding {
    pub id: String,
    pub file: String,
}

/// Said where the key of a secret is not known.
const WHICH_KEY: &str = "it is not known which key the secret is encrypted for: name it";

impl Policy {
    /// Asks all that the gate would ask of this request.
    pub fn explain(&self, caller: &Caller, asked: &Asked<'_>) -> Explanation {
        let own = match caller {
            Caller::Unix(peer) => Owner::of_uid(peer.uid).ok(),
            Caller::System(_) => None,
        };
        let facts = to_be(asked, own.as_ref());
        let (verdict, policies) = self.judgement(caller, asked.action, asked.resource, facts);
        let also: Vec<Further> = asked
            .action
            .also()
            .iter()
            .filter_map(|also| {
                let facts = match also.when {
                    When::OwnerNamed => owned_by(facts, own.as_ref())?,
                    _ => facts,
                };
                let when = match also.when {
                    When::OwnerNamed => When::Always,
                    when => when,
                };
                let on = match also.on {
                    On::Same => Some((asked.resource, facts)),
                    On::TheKey => asked.key,
                };
                Some(self.further(caller, also.action, on, when))
            })
            .collect();
        let missing = also.iter().find(|further| further.when.is_empty() && !further.permitted);
        let because = match (verdict, missing) {
            (Err(why), _) => why.to_string(),
            (Ok(()), Some(further)) => {
                format!("it needs {}, too: {}", further.name(), further.because)
            }
            (Ok(()), None) => String::new(),
        };
        Explanation {
            permitted: because.is_empty(),
            caller: caller.name(),
            action: asked.action.to_string(),
            resource: asked.resource.path(),
            roles: self.roles_of(caller),
            policies,
            because,
            also,
        }
    }

    fn further(
        &self,
        caller: &Caller,
        action: Action,
        on: Option<(&Resource, Facts<'_>)>,
        when: When,
    ) -> Further {
        let (permitted, policies, because) = match on {
            None => (false, Vec::new(), WHICH_KEY.to_owned()),
            Some((resource, facts)) => {
                let (verdict, policies) = self.judgement(caller, action, resource, facts);
                let why = verdict.err().map(|why| why.to_string());
                (why.is_none(), policies, why.unwrap_or_default())
            }
        };
        let resource = on.map(|(resource, _)| resource.path());
        let (action, when) = (action.to_string(), when.as_str().to_owned());
        Further { action, resource, when, permitted, policies, because }
    }
}

/// What is made becomes its caller's, unless another owner is named.
fn to_be<'a>(asked: &Asked<'a>, own: Option<&'a Owner>) -> Facts<'a> {
    match (asked.action, asked.facts) {
        (Action::KeyCreate | Action::KeyImport, Facts::Known { owner, labels }) => {
            Facts::Known { owner: owner.or(own), labels }
        }
        (_, facts) => facts,
    }
}

/// Before something is given away it is its maker's; nothing where it is not given away.
fn owned_by<'a>(facts: Facts<'a>, own: Option<&'a Owner>) -> Option<Facts<'a>> {
    match facts {
        Facts::Known { owner, labels } if owner.is_some() && owner != own => {
            Some(Facts::Known { owner: own, labels })
        }
        _ => None,
    }
}

impl Further {
    /// The permission and what it is needed on.
    fn name(&self) -> String {
        match &self.resource {
            Some(resource) => format!("{} on {resource}", self.action),
            None => format!("{} on the secret's key", self.action),
        }
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
        let missing = self.also.iter().any(|also| also.when.is_empty() && !also.permitted);
        let word = if self.permitted || missing { "permitted" } else { "forbidden" };
        for Deciding { id, file } in &self.policies {
            writeln!(f, "{word} by {id} ({file})")?;
        }
        if !self.because.is_empty() && (self.policies.is_empty() || missing) {
            writeln!(f, "because {}", self.because)?;
        }
        for also in &self.also {
            let answer = if also.permitted { "permitted" } else { "not permitted" };
            let when = match also.when.as_str() {
                "" => String::new(),
                when => format!(" where {when}"),
            };
            write!(f, "also needs {}{when}: {answer}", also.name())?;
            match also.policies.as_slice() {
                [] => writeln!(f, ", {}", also.because)?,
                by => {
                    let by: Vec<String> =
                        by.iter().map(|Deciding { id, file }| format!("{id} ({file})")).collect();
                    writeln!(f, " by {}", by.join(", "))?;
                }
            }
        }
        Ok(())
    }
}
