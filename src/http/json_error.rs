//! What is wrong with a body of JSON: the member as a JSON pointer (RFC 6901), and what it may be.
//!
//! Of serde's messages only what our own types say is used, never what was sent: it may be a secret. A
//! pointer goes only through members of ours and places in arrays, not through names that a caller chose.

use serde_path_to_error::{Error, Path, Segment};

use crate::key::{LabelsError, NameError};
use crate::service::{NO_PRIVATE_KEY, NOT_BASE64};

/// The place in the body, empty for the whole; and what is wrong there.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    pub pointer: String,
    pub what: String,
}

/// A member whose own members have names that a caller chooses.
const NAMED_BY_CALLER: &str = "labels";

/// What an error of the parser comes to. `is_json` says whether the body is JSON at all: of a value that cannot
/// be one of an enumeration, serde says the same as of a syntax error.
pub fn fault(error: &Error<serde_json::Error>, is_json: bool) -> Fault {
    let inner = error.inner();
    let place = format!(" at line {} column {}", inner.line(), inner.column());
    if !inner.is_data() && is_json {
        let what = "must be a string".to_owned();
        return Fault { pointer: pointer(error.path(), false), what };
    }
    if !inner.is_data() {
        return Fault { pointer: String::new(), what: format!("it is not JSON,{place}") };
    }
    let text = inner.to_string();
    let text = text.strip_suffix(&place).unwrap_or(&text);
    let mut pointer = pointer(error.path(), text.starts_with("unknown field `"));
    let named = text.split('`').nth(1).unwrap_or_default();
    let what = if text.starts_with("missing field `") {
        pointer += &format!("/{named}");
        "is missing".to_owned()
    } else if text.starts_with("duplicate field `") {
        pointer += &format!("/{named}");
        "is given twice".to_owned()
    } else if text.starts_with("unknown field `") {
        let taken = choices(text).map(|taken| format!("; it may have {taken}")).unwrap_or_default();
        format!("has a member that is not taken here{taken}")
    } else if let Some(rule) = rule_of_ours(text) {
        rule
    } else {
        let may_be = if text.starts_with("unknown variant `") {
            choices(text).map(|choices| format!("one of {choices}"))
        } else {
            type_of(text)
        };
        let may_be = may_be.unwrap_or_else(|| "of another type or value".to_owned());
        format!("must be {may_be}")
    };
    Fault { pointer, what }
}

/// The pointer to where the parser was. At a member that is not known, the object that has it.
fn pointer(path: &Path, is_unknown: bool) -> String {
    let segments: Vec<&Segment> = path.iter().collect();
    let known = match segments.as_slice() {
        [known @ .., Segment::Map { .. }] if is_unknown => known,
        all => all,
    };
    let mut pointer = String::new();
    for segment in known {
        match segment {
            Segment::Seq { index } => pointer += &format!("/{index}"),
            Segment::Map { key } => pointer += &format!("/{key}"),
            Segment::Enum { .. } | Segment::Unknown => break,
        }
        if matches!(segment, Segment::Map { key } if key == NAMED_BY_CALLER) {
            break;
        }
    }
    pointer
}

/// What our type expects: the last part of a message, behind whatever was sent.
fn expected(text: &str) -> Option<&str> {
    // A type without members or variants lists none, so that the last part is not ours.
    if text.ends_with("there are no fields") || text.ends_with("there are no variants") {
        return None;
    }
    text.rsplit_once(", expected ").map(|(_, expected)| expected)
}

/// The names in `one of `a`, `b``, `` `a` or `b` `` and `` `a` ``.
fn choices(text: &str) -> Option<String> {
    let expected = expected(text)?;
    let names: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    let is_name = |name: &&str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    (!names.is_empty() && names.iter().all(is_name)).then(|| names.join(", "))
}

/// A type, in words that need no Rust.
fn type_of(text: &str) -> Option<String> {
    let number = |most: u64| format!("an integer from 0 to {most}");
    Some(match expected(text)? {
        "u16" => number(u16::MAX.into()),
        "u32" => number(u32::MAX.into()),
        "u64" | "usize" => "an integer, 0 or more".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "an array".to_owned(),
        "a map" | "an object" | "an object of labels" => "an object".to_owned(),
        "base64" => NOT_BASE64.trim_start_matches("must be ").to_owned(),
        "a string" | "string or map" | "variant identifier" => "a string".to_owned(),
        other if other.starts_with("struct ") => "an object".to_owned(),
        other if other.starts_with("enum ") => "a string".to_owned(),
        other if NO_PRIVATE_KEY.ends_with(other) => other.to_owned(),
        _ => return None,
    })
}

/// The rule that a value breaks, where `text` begins with one: constants, all of them.
fn rule_of_ours(text: &str) -> Option<String> {
    let rules = [
        NOT_BASE64.to_owned(),
        NO_PRIVATE_KEY.to_owned(),
        NameError.to_string(),
        LabelsError::TooMany.to_string(),
        LabelsError::Twice.to_string(),
        LabelsError::Name(NameError).to_string(),
        LabelsError::TooLong.to_string(),
        LabelsError::NotPrintable.to_string(),
    ];
    rules.into_iter().find(|rule| text.starts_with(rule))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Colour {
        DarkRed,
        Blue,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    #[allow(dead_code)] // only parsed
    struct Form {
        count: u16,
        colour: Option<Colour>,
        items: Vec<Form>,
        labels: BTreeMap<String, u32>,
        flag: bool,
        nothing: Option<Nothing>,
    }

    fn wrong(body: &str) -> (String, String) {
        let mut parser = serde_json::Deserializer::from_str(body);
        let error = serde_path_to_error::deserialize::<_, Form>(&mut parser).unwrap_err();
        let Fault { pointer, what } =
            fault(&error, serde_json::from_str::<serde::de::IgnoredAny>(body).is_ok());
        assert!(!format!("{pointer} {what}").contains("CANARY"), "{pointer} {what}");
        (pointer, what)
    }

    #[test]
    fn the_member_is_named_and_what_it_may_be_and_nothing_of_what_was_sent() {
        for (body, pointer, what) in [
            (r#"{"colour": "CANARY"}"#, "/colour", "must be one of dark-red, blue"),
            (r#"{"colour": "x, expected `CANARY`"}"#, "/colour", "one of dark-red, blue"),
            (r#"{"colour": 7}"#, "/colour", "must be a string"),
            (r#"{"count": 70000}"#, "/count", "must be an integer from 0 to 65535"),
            (r#"{"count": "CANARY, expected CANARY"}"#, "/count", "an integer from 0 to 65535"),
            (r#"{"items": [{}, {"flag": "CANARY"}]}"#, "/items/1/flag", "must be true or false"),
            (r#"{"items": "CANARY"}"#, "/items", "must be an array"),
            (
                r#"{"items": [{"CANARY": 1}]}"#,
                "/items/0",
                "has a member that is not taken here; it may",
            ),
            (r#"{"CANARY, expected `CANARY`": 1}"#, "", "it may have count, colour, items"),
            (r#"{"nothing": {"a, expected one of `CANARY`": 1}}"#, "/nothing", "not taken here"),
            (
                r#"{"labels": {"CANARY": "CANARY"}}"#,
                "/labels",
                "must be an integer from 0 to 4294967295",
            ),
            (r#"{"flag": true, "flag": true}"#, "/flag", "is given twice"),
            (r#"{"flag": CANARY}"#, "", "it is not JSON, at line 1 column 10"),
            (r#"{"flag": "missing field `CANARY`"}"#, "/flag", "must be true or false"),
        ] {
            let found = wrong(body);
            assert_eq!(found.0, pointer, "{body}: {found:?}");
            assert!(found.1.contains(what), "{body}: {found:?}");
        }
    }
}
