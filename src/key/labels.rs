//! Labels: a few words that people put on a key, for their own order and for policy.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Name, NameError};

/// At most [`Labels::MAX`] pairs of a [`Name`] and a line of printable text. Checked when it is made,
/// so what holds one needs no second look.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Labels(BTreeMap<Name, String>);

/// Not labels. Says the rule, never the text that broke it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LabelsError {
    #[error("a key has at most {} labels", Labels::MAX)]
    TooMany,
    #[error("the same label is given twice")]
    Twice,
    #[error("the name of a label is not allowed: {0}")]
    Name(#[from] NameError),
    #[error("a label's value is at most {} characters long", Labels::MAX_VALUE)]
    TooLong,
    #[error("a label's value is one line of printable text")]
    NotPrintable,
}

impl Labels {
    /// The most labels of one key.
    pub const MAX: usize = 16;
    /// The longest value, in characters.
    pub const MAX_VALUE: usize = 128;

    /// Adds one label.
    pub fn insert(&mut self, name: &str, value: &str) -> Result<(), LabelsError> {
        let name = Name::parse(name)?;
        check_value(value)?;
        if self.0.contains_key(&name) {
            return Err(LabelsError::Twice);
        }
        if self.0.len() == Self::MAX {
            return Err(LabelsError::TooMany);
        }
        self.0.insert(name, value.to_owned());
        Ok(())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key.as_str() == name).map(|(_, value)| value.as_str())
    }

    /// All of them, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &str)> {
        self.0.iter().map(|(name, value)| (name, value.as_str()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn check_value(value: &str) -> Result<(), LabelsError> {
    if value.chars().count() > Labels::MAX_VALUE {
        return Err(LabelsError::TooLong);
    }
    if value.chars().any(is_hidden) {
        return Err(LabelsError::NotPrintable);
    }
    Ok(())
}

/// Controls, line and paragraph separators, and what hides or reorders the text around it.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of labels")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Labels, A::Error> {
                let mut labels = Labels::default();
                while let Some((name, value)) = pairs.next_entry::<String, String>()? {
                    labels.insert(&name, &value).map_err(A::Error::custom)?;
                }
                Ok(labels)
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Labels, String> {
        serde_json::from_str::<Labels>(json).map_err(|error| error.to_string())
    }

    #[test]
    fn takes_names_with_printable_text_and_keeps_their_order() {
        let labels = parse(r#"{"team":"Zahlung & Abrechnung","env":"live","empty":""}"#).unwrap();
        assert_eq!(labels.get("env"), Some("live"));
        assert_eq!(labels.get("none"), None);
        let json = serde_json::to_string(&labels).unwrap();
        assert_eq!(json, r#"{"empty":"","env":"live","team":"Zahlung & Abrechnung"}"#);
        assert_eq!(parse(&json).unwrap(), labels);
    }

    #[test]
    fn refuses_what_breaks_a_rule_without_repeating_it() {
        let long = format!(r#"{{"a":"{}"}}"#, "ä".repeat(129));
        let many: Vec<String> = (0..17).map(|n| format!(r#""l{n}":"x""#)).collect();
        let many = format!("{{{}}}", many.join(","));
        let bad = [
            (r#"{"a":"1","a":"2"}"#, "twice"),
            (r#"{"Env":"x"}"#, "name of a label"),
            (r#"{"":"x"}"#, "name of a label"),
            (r#"{"a":"line\nline"}"#, "printable"),
            (r#"{"a":"\u0000"}"#, "printable"),
            (r#"{"a":"\u202egnp.exe"}"#, "printable"),
            (r#"{"a":"\u200b"}"#, "printable"),
            (long.as_str(), "128"),
            (many.as_str(), "at most 16"),
            (r#"{"a":1}"#, "string"),
            (r#"["a"]"#, "object of labels"),
        ];
        for (json, says) in bad {
            let error = parse(json).unwrap_err();
            assert!(error.contains(says), "{json}: {error}");
        }
        assert!(parse(&format!(r#"{{"a":"{}"}}"#, "ä".repeat(128))).is_ok());
    }
}
