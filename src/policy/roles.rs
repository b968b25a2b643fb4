//! Roles: who of the machine's users and groups has which, as the configuration says.

use std::collections::BTreeMap;

use nix::errno::Errno;
use nix::unistd::{Group, User};
use serde::{Deserialize, Serialize};

use crate::identity::Caller;
use crate::key::{Name, NameError};

/// Role → who has it. The shipped policies know `operator`, `auditor` and `service`.
pub type RoleBindings = BTreeMap<String, Binding>;

/// The users and groups that have a role.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Binding {
    /// Users by name, or by uid as a number.
    pub users: Vec<NameOrId>,
    /// Groups by name, or by gid as a number; being in one as a supplementary group counts.
    pub groups: Vec<NameOrId>,
}

/// `"postgres"` or `1000`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NameOrId {
    Id(u32),
    Name(String),
}

/// A binding that means nobody on this machine.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    #[error("roles.{role}: {error}")]
    Name { role: String, error: NameError },
    #[error(
        "roles.{role}.users: there is no user {user:?} (a uid is written as a number, without quotes)"
    )]
    NoUser { role: String, user: String },
    #[error(
        "roles.{role}.groups: there is no group {group:?} (a gid is written as a number, without quotes)"
    )]
    NoGroup { role: String, group: String },
    #[error("roles.{role}: looking up {name:?} failed: {error}")]
    Lookup { role: String, name: String, error: Errno },
    #[error("roles.{role}: {OVERFLOW} is nobody's own; the kernel gives it to whom it cannot name")]
    Nobody { role: String },
    #[error("there are more than {} roles", Roles::MAX)]
    TooMany,
}

/// The uid and gid that stand for users of another user namespace (user_namespaces(7)).
const OVERFLOW: u32 = 65_534;

/// The bindings with every name resolved, as they were when they were loaded.
#[derive(Debug, Default)]
pub(super) struct Roles(Vec<Role>);

#[derive(Debug, Serialize)]
struct Role {
    name: String,
    uids: Vec<u32>,
    gids: Vec<u32>,
}

/// The roles of one caller: bit n is the n-th of [`Roles`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RoleSet(u64);

impl Roles {
    const MAX: usize = u64::BITS as usize;

    /// Asks the machine (getpwnam, getgrnam) who is meant.
    pub(super) fn resolve(bindings: &RoleBindings) -> Result<Self, RoleError> {
        if bindings.len() > Self::MAX {
            return Err(RoleError::TooMany);
        }
        bindings
            .iter()
            .map(|(name, binding)| Role::resolve(name, binding))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn of(&self, caller: &Caller) -> RoleSet {
        let Caller::Unix(peer) = caller else { return RoleSet(0) };
        let mut set = 0;
        for (bit, role) in self.0.iter().enumerate() {
            let in_group = |gid| role.gids.binary_search(gid).is_ok();
            if role.uids.binary_search(&peer.uid).is_ok()
                || in_group(&peer.gid)
                || peer.groups.iter().any(in_group)
            {
                set |= 1 << bit;
            }
        }
        RoleSet(set)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|role| role.name.as_str())
    }

    pub(super) fn names_in(&self, set: RoleSet) -> impl Iterator<Item = &str> {
        self.names().enumerate().filter(move |(bit, _)| set.0 >> bit & 1 == 1).map(|(_, name)| name)
    }

    /// The same bytes for the same bindings: ordered by role, ids ascending.
    pub(super) fn canonical(&self) -> String {
        serde_json::to_string(&self.0).expect("names and numbers have a JSON form")
    }
}

impl Role {
    fn resolve(name: &str, binding: &Binding) -> Result<Self, RoleError> {
        if let Err(error) = Name::parse(name) {
            return Err(RoleError::Name { role: name.to_owned(), error });
        }
        let user = |user: &NameOrId| uid(name, user);
        let group = |group: &NameOrId| gid(name, group);
        let sorted = |mut ids: Vec<u32>| {
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        let uids = sorted(binding.users.iter().map(user).collect::<Result<_, _>>()?);
        let gids = sorted(binding.groups.iter().map(group).collect::<Result<_, _>>()?);
        if uids.contains(&OVERFLOW) || gids.contains(&OVERFLOW) {
            return Err(RoleError::Nobody { role: name.to_owned() });
        }
        Ok(Self { name: name.to_owned(), uids, gids })
    }
}

fn uid(role: &str, user: &NameOrId) -> Result<u32, RoleError> {
    let role = role.to_owned();
    match user {
        NameOrId::Id(uid) => Ok(*uid),
        NameOrId::Name(name) => match User::from_name(name) {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            Ok(None) => Err(RoleError::NoUser { role, user: name.clone() }),
            Err(error) => Err(RoleError::Lookup { role, name: name.clone(), error }),
        },
    }
}

fn gid(role: &str, group: &NameOrId) -> Result<u32, RoleError> {
    let role = role.to_owned();
    match group {
        NameOrId::Id(gid) => Ok(*gid),
        NameOrId::Name(name) => match Group::from_name(name) {
            Ok(Some(group)) => Ok(group.gid.as_raw()),
            Ok(None) => Err(RoleError::NoGroup { role, group: name.clone() }),
            Err(error) => Err(RoleError::Lookup { role, name: name.clone(), error }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::UnixPeer;

    fn caller(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        Caller::Unix(UnixPeer { uid, gid, pid: 1, groups: groups.to_vec() })
    }

    fn roles(toml: &str) -> Result<Roles, RoleError> {
        Roles::resolve(&toml::from_str(toml).unwrap())
    }

    #[test]
    fn users_groups_and_supplementary_groups_count() {
        let roles = roles(
            "[operator]\nusers = ['root']\n[service]\nusers = [1001]\ngroups = [50, 'root']\n",
        )
        .unwrap();
        let of = |caller: Caller| roles.names_in(roles.of(&caller)).collect::<Vec<_>>();
        assert_eq!(of(caller(0, 7, &[])), ["operator"]);
        assert_eq!(of(caller(1001, 7, &[])), ["service"]);
        assert_eq!(of(caller(1002, 50, &[])), ["service"]);
        assert_eq!(of(caller(1002, 7, &[9, 50])), ["service"]);
        assert_eq!(of(caller(0, 0, &[])), ["operator", "service"]);
        assert!(of(caller(1002, 7, &[9])).is_empty());
        assert!(of(Caller::System("sweep")).is_empty());
    }

    #[test]
    fn names_that_mean_nobody_are_errors_that_name_them() {
        let error = roles("[operator]\nusers = ['nobody-of-this-name']").unwrap_err();
        let says = error.to_string();
        assert!(says.starts_with("roles.operator.users: there is no user"), "{says}");
        assert!(says.contains("nobody-of-this-name"), "{says}");
        let error = roles("[service]\ngroups = ['no-such-group']").unwrap_err();
        assert!(matches!(error, RoleError::NoGroup { .. }), "{error}");
        for nobody in ["[service]\nusers = ['nobody']", "[service]\ngroups = [65534]"] {
            assert!(matches!(roles(nobody).unwrap_err(), RoleError::Nobody { .. }), "{nobody}");
        }
        assert!(matches!(roles("[Operator]").unwrap_err(), RoleError::Name { .. }));
        let many: String = (0..65).map(|n| format!("[r{n}]\n")).collect();
        assert!(matches!(roles(&many).unwrap_err(), RoleError::TooMany));
        assert!(toml::from_str::<RoleBindings>("[operator]\nuser = ['root']").is_err());
    }
}
