//! Names of keys and secrets: `[a-z0-9][a-z0-9._-]{0,62}`, and nothing else is ever stored.

use serde::{Deserialize, Serialize};

/// A name that was checked: only [`Name::parse`] makes one, so what holds it needs no second look.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Not a name. Says the rule, never the text that broke it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a name is 1 to 63 characters of a-z, 0-9, '.', '_' and '-', and starts with a letter or digit"
)]
pub struct NameError;

impl Name {
    /// The longest name, in bytes.
    pub const MAX: usize = 63;

    /// Checks `text`; there is no folding of case and no trimming.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let first = bytes.first().is_some_and(|&byte| plain(byte));
        let rest = bytes.iter().all(|&byte| plain(byte) || b"._-".contains(&byte));
        if first && rest && bytes.len() <= Self::MAX {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError)
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_the_rule_allows_and_nothing_else() {
        let longest = "a".repeat(63);
        for good in ["a", "0", "payments.v2_live-eu", longest.as_str()] {
            assert!(Name::parse(good).is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        let bad = [
            "",
            ".a",
            "-a",
            "_a",
            "A",
            "a/b",
            "a%2fb",
            "..",
            "a b",
            "ä",
            "a\0",
            "a\n",
            long.as_str(),
        ];
        for bad in bad {
            assert!(Name::parse(bad).is_err(), "{bad:?}");
        }
    }
}
