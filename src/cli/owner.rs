//! Owners of keys and secrets: who one is, and giving one to another.

use clap::{Args, ValueHint};
use clap_complete::ArgValueCompleter;
use nix::unistd::User;
use serde_json::json;

use super::Session;
use super::names;
use super::output::facts;
use super::problem::Failure;
use crate::key::{Name, Owner};

/// A transfer of a key or a secret.
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom key transfer payments --to deploy
  strongroom secret transfer stripe --to unix:1000
As policy is shipped, an owner gives away what is its own, and an operator what nobody owns, such as what was
made before there were owners.")]
pub struct Transfer {
    /// What is transferred
    #[arg(add = ArgValueCompleter::new(names::keys_and_secrets))]
    name: Name,
    /// Whom it belongs to from now on: a user by name or number, or an id like unix:1000
    #[arg(long, value_name = "OWNER", value_parser = owner, value_hint = ValueHint::Username)]
    to: Owner,
}

impl Transfer {
    /// `kind` is its word in the path: `keys` or `secrets`.
    pub(super) fn run(self, session: &Session, kind: &str) -> Result<(), Failure> {
        let path = format!("/v1/{kind}/{}/transfer", self.name);
        session.out.reply(&session.client.post(&path, &json!({ "owner": self.to }))?, facts)
    }
}

/// A user of this machine by name, a uid, or an id as policy writes it.
pub(super) fn owner(text: &str) -> Result<Owner, String> {
    let said = |error: crate::key::OwnerError| error.to_string();
    if text.contains(':') {
        return Owner::parse(text).map_err(said);
    }
    if let Ok(uid) = text.parse() {
        return Owner::of_uid(uid).map_err(said);
    }
    match User::from_name(text) {
        Ok(Some(user)) => Owner::of_uid(user.uid.as_raw()).map_err(said),
        Ok(None) => Err("there is no user of this name on this machine".to_owned()),
        Err(error) => Err(format!("the user cannot be looked up: {}", error.desc())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_named_in_three_ways() {
        for root in ["root", "0", "unix:0"] {
            assert_eq!(owner(root).unwrap().as_str(), "unix:0");
        }
        for nobody in ["", "no-such-user-here", "65534", "nobody", "4294967295", "-1"] {
            assert!(owner(nobody).is_err(), "{nobody}");
        }
    }
}
