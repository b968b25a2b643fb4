//! The owner of a key or secret: the principal that made it, or that it was transferred to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A principal's id, as policy and audit log write it: a scheme, a colon, and what names it there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Owner(String);

/// Not an owner. Says the rule, never the text that broke it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OwnerError {
    #[error("an owner is written like unix:1000, with at most {} characters", Owner::MAX)]
    Malformed,
    #[error("an owner is a Unix user: unix: and a uid that is neither 65534 nor 4294967295")]
    NotAUser,
}

impl Owner {
    /// The longest id, in characters.
    pub const MAX: usize = 200;

    /// Any id that a stored record may hold.
    pub fn parse(text: &str) -> Result<Self, OwnerError> {
        let fits = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
        match text.split_once(':') {
            Some((scheme, rest))
                if !scheme.is_empty()
                    && scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
                    && !rest.is_empty()
                    && text.len() <= Self::MAX
                    && rest.bytes().all(fits) =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(OwnerError::Malformed),
        }
    }

    /// The Unix user of this uid.
    ///
    /// # Errors
    /// [`OwnerError::NotAUser`] for the two numbers that stand for nobody in particular.
    pub fn of_uid(uid: u32) -> Result<Self, OwnerError> {
        /// The uid of users that the kernel cannot name (user_namespaces(7)).
        const OVERFLOW: u32 = 65_534;
        if matches!(uid, OVERFLOW | u32::MAX) {
            return Err(OwnerError::NotAUser);
        }
        Ok(Self(format!("unix:{uid}")))
    }

    /// Whether a principal of this id can exist: a Unix user, by a uid in its one form.
    ///
    /// # Errors
    /// [`OwnerError::NotAUser`] where not: a record that nobody could own would be out of reach.
    pub fn must_exist(&self) -> Result<(), OwnerError> {
        let uid = self.0.strip_prefix("unix:").and_then(|uid| uid.parse().ok());
        let known = uid.ok_or(OwnerError::NotAUser).and_then(Self::of_uid)?;
        if known == *self { Ok(()) } else { Err(OwnerError::NotAUser) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Owner {
    type Err = OwnerError;

    fn from_str(text: &str) -> Result<Self, OwnerError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Owner {
    type Error = OwnerError;

    fn try_from(text: String) -> Result<Self, OwnerError> {
        Self::parse(&text)
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> Self {
        owner.0
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_a_scheme_and_no_spaces() {
        for good in ["unix:0", "unix:1000", "api-key:ak_1", "spiffe://a/b"] {
            assert_eq!(Owner::parse(good).unwrap().as_str(), good);
        }
        let long = format!("unix:{}", "1".repeat(Owner::MAX));
        for bad in
            ["", "unix", "unix:", ":1", "Unix:1", "unix:1 2", "unix:\"", "unix:\u{e4}", &long]
        {
            assert_eq!(Owner::parse(bad), Err(OwnerError::Malformed), "{bad}");
        }
    }

    #[test]
    fn only_users_that_can_be_own() {
        assert_eq!(Owner::parse("unix:1000").unwrap().must_exist(), Ok(()));
        for nobody in
            ["unix:65534", "unix:4294967295", "unix:01", "unix:+1", "unix:x", "system:sweep"]
        {
            assert!(Owner::parse(nobody).unwrap().must_exist().is_err(), "{nobody}");
        }
    }
}
