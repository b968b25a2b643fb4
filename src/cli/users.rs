//! Names of users beside their numbers, for people.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use nix::unistd::{Uid, User};

/// What is known of the users of this machine.
struct Known {
    names: Option<HashMap<u32, Option<String>>>,
    /// Nothing is looked up any more.
    closed: bool,
}

static KNOWN: Mutex<Known> = Mutex::new(Known { names: None, closed: false });

/// Reads the users of `/etc/passwd`, for a process that looks nothing up later.
pub fn remember() {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let names = known.names.get_or_insert_default();
    for line in text.lines() {
        let mut parts = line.split(':');
        if let (Some(name), Some(uid)) =
            (parts.next(), parts.nth(1).and_then(|uid| uid.parse().ok()))
        {
            names.entry(uid).or_insert_with(|| Some(name.to_owned()));
        }
    }
    known.closed = true;
}

fn name(uid: u32) -> Option<String> {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let closed = known.closed;
    let names = known.names.get_or_insert_default();
    if closed {
        return names.get(&uid).cloned().flatten();
    }
    let looked_up = || User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
    names.entry(uid).or_insert_with(looked_up).clone()
}

/// `unix:1000` as `unix:1000 (alice)`, where this machine knows the user; `None` of anything else.
pub fn with_name(id: &str) -> Option<String> {
    let uid = id.strip_prefix("unix:")?.parse().ok()?;
    name(uid).map(|name| format!("{id} ({name})"))
}

/// Who was typed, as the audit log names a user: by name or number.
pub fn user(text: &str) -> Result<String, String> {
    if let Ok(uid) = text.strip_prefix("unix:").unwrap_or(text).parse::<u32>() {
        return Ok(format!("unix:{uid}"));
    }
    match User::from_name(text) {
        Ok(Some(user)) => Ok(format!("unix:{}", user.uid)),
        Ok(None) => Err("there is no user of this name on this machine; give the uid".to_owned()),
        Err(error) => Err(format!("the user cannot be looked up: {}", error.desc())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_their_names_beside_them() {
        assert_eq!(with_name("unix:0").as_deref(), Some("unix:0 (root)"));
        for other in ["unix:4242424242", "unix:x", "system:sweep", ""] {
            assert_eq!(with_name(other), None, "{other}");
        }
        for root in ["root", "0", "unix:0"] {
            assert_eq!(user(root).as_deref(), Ok("unix:0"));
        }
        assert!(user("no-such-user-here").is_err());
    }
}
