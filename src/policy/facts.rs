//! What policies know of a key or secret besides its name, and the sets of policies that answer while that is
//! not known: so that a decision that does not rest on it needs no record, and one that does is never guessed.

use cedar_policy::{Effect, Policy as CedarPolicy, PolicySet};
use serde_json::Value;

use crate::key::{Labels, Owner};

/// What is known of the resource of a question.
#[derive(Debug, Clone, Copy, Default)]
pub enum Facts<'a> {
    /// Nothing: permitted is only what is permitted whatever owner and labels are.
    #[default]
    Unknown,
    /// There is no such key or secret. It is judged as if it was the principal's, as it were if made now.
    Absent,
    /// Its owner, if it has one, and its labels; secrets have none.
    Known { owner: Option<&'a Owner>, labels: Option<&'a Labels> },
}

/// Which of the sets answers a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Mode {
    /// The policies as they are.
    Known,
    /// What could be permitted by some owner and labels.
    Possible,
    /// What is permitted by every owner and all labels.
    Certain,
    /// The principal is the owner, and the labels are not known.
    Absent,
}

/// The policies as they are, and what follows from them where facts are not known.
pub(super) struct Sets {
    known: PolicySet,
    possible: PolicySet,
    certain: PolicySet,
    absent: PolicySet,
    /// Whether a policy looks at owners or labels.
    pub reads_facts: bool,
}

impl Sets {
    /// # Errors
    /// What Cedar finds wrong with a policy that was taken apart and put together again.
    pub fn of(known: PolicySet) -> Result<Self, String> {
        let (mut possible, mut certain, mut absent) =
            (PolicySet::new(), PolicySet::new(), PolicySet::new());
        let mut reads_facts = false;
        for policy in known.policies() {
            let wider = without_facts(policy)?;
            reads_facts |= wider.is_some();
            let permits = policy.effect() == Effect::Permit;
            let wide = || wider.clone().unwrap_or_else(|| policy.clone());
            // A permit that rests on a fact may hold; a forbid that does may not.
            if permits || wider.is_none() {
                add(&mut possible, wide())?;
            }
            // The other way round.
            if !permits || wider.is_none() {
                add(&mut certain, wide())?;
            }
            add(&mut absent, if permits { policy.clone() } else { wide() })?;
        }
        Ok(Self { known, possible, certain, absent, reads_facts })
    }

    pub fn answering(&self, mode: Mode) -> &PolicySet {
        match mode {
            Mode::Known => &self.known,
            Mode::Possible => &self.possible,
            Mode::Certain => &self.certain,
            Mode::Absent => &self.absent,
        }
    }
}

fn add(set: &mut PolicySet, policy: CedarPolicy) -> Result<(), String> {
    set.add(policy).map_err(|error| error.to_string())
}

/// The policy without those of its conditions that look at owner or labels, which thus holds whenever it
/// does; `None` where there are none.
fn without_facts(policy: &CedarPolicy) -> Result<Option<CedarPolicy>, String> {
    let mut json = policy.to_json().map_err(|error| error.to_string())?;
    let Some(Value::Array(conditions)) = json.get_mut("conditions") else { return Ok(None) };
    let before = conditions.len();
    conditions.retain(|condition| !reads_facts(condition));
    if conditions.len() == before {
        return Ok(None);
    }
    let wider = CedarPolicy::from_json(Some(policy.id().clone()), json);
    wider.map(Some).map_err(|error| error.to_string())
}

/// Whether an expression looks at tags or owner.
fn reads_facts(expression: &Value) -> bool {
    match expression {
        Value::Object(members) => members.iter().any(|(name, value)| {
            matches!(name.as_str(), "hasTag" | "getTag")
                || name == "attr" && value == "owner"
                || reads_facts(value)
        }),
        Value::Array(items) => items.iter().any(reads_facts),
        _ => false,
    }
}

/// Whether a policy looks at an attribute of this name.
pub(super) fn reads_attribute(policy: &CedarPolicy, attribute: &str) -> bool {
    fn looks(expression: &Value, attribute: &str) -> bool {
        match expression {
            Value::Object(members) => members.iter().any(|(name, value)| {
                name == "attr" && value == attribute || looks(value, attribute)
            }),
            Value::Array(items) => items.iter().any(|item| looks(item, attribute)),
            _ => false,
        }
    }
    // One whose form cannot be told counts as if it did.
    policy.to_json().map_or(true, |json| looks(&json, attribute))
}
