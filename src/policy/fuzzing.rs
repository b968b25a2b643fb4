//! What must hold for any policy file and any role binding: taken or refused by name, and nothing is
//! permitted that no `permit` stands for.

use std::collections::BTreeMap;

use super::load;
use super::roles::Roles;
use super::{Action, Asked, Facts, Policy, Resource, RoleBindings};
use crate::identity::{Caller, UnixPeer};
use crate::key::{Labels, Name};

/// A policy file, and behind a zero byte the labels of a key that is asked about, in JSON.
pub fn policy(data: &[u8]) {
    let mut parts = data.splitn(2, |&byte| byte == 0);
    let Ok(text) = std::str::from_utf8(parts.next().unwrap_or_default()) else { return };
    let labels = parts.next().and_then(|json| serde_json::from_slice::<Labels>(json).ok());
    let texts = BTreeMap::from([("one.cedar".to_owned(), text.to_owned())]);
    let bindings: RoleBindings =
        toml::from_str("[operator]\nusers = [7]\n[service]\ngroups = [9]").expect("bindings");
    let roles = Roles::resolve(&bindings).expect("numbers need no look-up");
    let Ok(policy) = load::check(texts, roles).and_then(Policy::of) else { return };
    let name = Name::parse("payments").expect("a name");
    for (uid, groups) in [(7, vec![]), (8, vec![9]), (65_534, vec![])] {
        let caller = Caller::Unix(UnixPeer { uid, gid: uid, pid: 1, groups });
        for (action, resource) in [
            (Action::KeyDecrypt, Resource::Key(name.clone())),
            (Action::SecretReveal, Resource::Secret(name.clone())),
            (Action::Lock, Resource::Appliance),
        ] {
            let context = Facts::Known { owner: None, labels: labels.as_ref() };
            let key = Resource::Key(name.clone());
            let mut permitted = policy.permit(&caller, action, &resource, context).is_ok();
            if action == Action::SecretReveal {
                permitted &= policy.permit(&caller, Action::KeyDecrypt, &key, context).is_ok();
            }
            let asked =
                Asked { action, resource: &resource, facts: context, key: Some((&key, context)) };
            let explained = policy.explain(&caller, &asked);
            assert_eq!(permitted, explained.permitted, "two opinions");
            assert!(!permitted || text.contains("permit"), "permitted by nothing");
            assert!(!permitted || !explained.policies.is_empty(), "permitted by nobody");
        }
    }
}

/// Role bindings in TOML: resolved or refused, and the same bindings have the same bytes.
pub fn roles(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(bindings) = toml::from_str::<RoleBindings>(text) else { return };
    let Ok(roles) = Roles::resolve(&bindings) else { return };
    let written = toml::to_string(&bindings).expect("bindings have a form");
    let again: RoleBindings = toml::from_str(&written).expect("its own form");
    assert_eq!(again, bindings);
    assert_eq!(Roles::resolve(&again).expect("as before").canonical(), roles.canonical());
}
