//! Finds permits by which one set of principals may use what belongs to everybody: valid, and rarely meant.
//!
//! Each is tried, not read: would it let somebody open, overwrite, delete or take over a key or secret of
//! somebody else, under a name that no policy knows, without a label? A condition that holds for every
//! resource is found like one that is missing.

use cedar_policy::{
    ActionConstraint, Authorizer, Context, Decision, Effect, Entities, Entity, EntityUid,
    Policy as CedarPolicy, PolicyId, PolicySet, PrincipalConstraint, Request, RestrictedExpression,
    Schema,
};

use super::Action;

/// What is to be had by it: reading, replacing and taking what others keep.
const USES: [Action; 7] = [
    Action::KeyDecrypt,
    Action::KeyTransfer,
    Action::SecretPut,
    Action::SecretReveal,
    Action::SecretDelete,
    Action::SecretTransfer,
    Action::KeyRecover,
];

/// A name that no policy was written for.
const NAME: &str = "zz-a-name-that-no-policy-knows";

/// Uids that nobody has: who asks, and who owns.
const ASKS: &str = "unix:4294967293";
const OWNS: &str = "unix:4294967292";

/// For each permit that lets its principals use everything: its id, and what about it.
pub(super) fn permits(
    schema: &Schema,
    policies: &PolicySet,
    roles: &[EntityUid],
) -> Vec<(PolicyId, String)> {
    let Ok(actions) = schema.action_entities() else { return Vec::new() };
    let wide = policies.policies().filter(|policy| policy.effect() == Effect::Permit);
    wide.filter_map(|policy| {
        let all = uses_of(policy, policies, &actions, roles);
        (!all.is_empty()).then(|| {
            let all: Vec<&str> = all.iter().map(|action| action.as_str()).collect();
            let what = format!(
                "its principals may {} on everything, whoever owns it: a condition on resource.owner, \
                 resource.namespace, resource.name or a label keeps them apart",
                all.join(", ")
            );
            (policy.id().clone(), what)
        })
    })
    .collect()
}

/// The actions of [`USES`] that this permit allows on a stranger's key or secret, as far as no forbid of the
/// others keeps it from that.
fn uses_of(
    policy: &CedarPolicy,
    all: &PolicySet,
    actions: &Entities,
    roles: &[EntityUid],
) -> Vec<Action> {
    let mut set = PolicySet::new();
    let forbids = all.policies().filter(|other| other.effect() == Effect::Forbid);
    for one in forbids.chain([policy]) {
        if set.add(one.clone()).is_err() {
            return Vec::new();
        }
    }
    let principal = match policy.principal_constraint() {
        PrincipalConstraint::Eq(user) => user,
        _ => match uid("User", ASKS) {
            Some(user) => user,
            None => return Vec::new(),
        },
    };
    let is_meant = |action: &Action| names(policy, action, actions);
    let may = |action: &Action| is_permitted(&set, actions, &principal, roles, *action);
    USES.into_iter().filter(|action| is_meant(action) && may(action) == Some(true)).collect()
}

/// Whether the policy's scope takes this action.
fn names(policy: &CedarPolicy, action: &Action, actions: &Entities) -> bool {
    let Some(action) = uid("Action", action.as_str()) else { return false };
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(one) => one == action,
        ActionConstraint::In(groups) => {
            groups.iter().any(|group| *group == action || actions.is_ancestor_of(group, &action))
        }
    }
}

/// `None` where the question cannot be put.
fn is_permitted(
    set: &PolicySet,
    actions: &Entities,
    principal: &EntityUid,
    roles: &[EntityUid],
    action: Action,
) -> Option<bool> {
    let of_key = action.as_str().starts_with("key:");
    let resource = uid(if of_key { "Key" } else { "Secret" }, NAME)?;
    let attributes = [
        ("name".to_owned(), RestrictedExpression::new_string(NAME.to_owned())),
        ("owner".to_owned(), RestrictedExpression::new_entity_uid(uid("User", OWNS)?)),
    ];
    let entities = [
        Entity::new_with_tags(resource.clone(), attributes, [], []).ok()?,
        Entity::new_no_attrs(principal.clone(), roles.iter().cloned().collect()),
    ];
    let number = |number| RestrictedExpression::new_long(number);
    let uid_of = principal.id().unescaped().strip_prefix("unix:")?.parse().ok()?;
    let context = Context::from_pairs([
        ("transport".to_owned(), RestrictedExpression::new_string("unix".to_owned())),
        ("uid".to_owned(), number(uid_of)),
        ("gid".to_owned(), number(uid_of)),
    ]);
    let action = uid("Action", action.as_str())?;
    let request = Request::new(principal.clone(), action, resource, context.ok()?, None).ok()?;
    let roles = roles.iter().cloned().map(Entity::with_uid);
    let entities = actions.clone().add_entities(entities.into_iter().chain(roles), None).ok()?;
    let answer = Authorizer::new().is_authorized(&request, set, &entities);
    Some(answer.decision() == Decision::Allow)
}

fn uid(kind: &str, id: &str) -> Option<EntityUid> {
    let kind = kind.parse().ok()?;
    Some(EntityUid::from_type_name_and_id(kind, cedar_policy::EntityId::new(id)))
}
