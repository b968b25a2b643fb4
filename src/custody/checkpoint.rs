//! What custody signs, and nothing else: checkpoints of an audit log and manifests of backups, in their one
//! form.
//!
//! Checkpoints are a numbered chain: each signs the number and head of the one before it, so none can be
//! taken out, put back or signed twice without the next one saying so.
//!
//! ```text
//! "strongroom trail checkpoint v2\n" ‖ trail ‖ "\n" ‖ number ‖ "\n" ‖ covers ‖ "\n" ‖ head ‖ "\n"
//!     ‖ number of the one before ‖ "\n" ‖ its covers ‖ "\n" ‖ its head ‖ "\n" ‖ at ‖ "\n"
//! "strongroom backup v1\n" ‖ SHA-256 of the manifest ‖ "\n"
//! ```
//!
//! Number 1 names as the one before it number 0: the newest checkpoint that an older version signed without
//! a number, else line 0 of the log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What every message begins with that custody signs: for a backup …
pub const BACKUP_TAG: &[u8] = b"strongroom backup v1\n";

/// … and for a checkpoint.
pub const CHECKPOINT_TAG: &[u8] = b"strongroom trail checkpoint v2\n";

/// A place in the chain of checkpoints: a number, the line up to which it covers, and that line's hash.
/// Written `number:covers:hash`.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mark {
    pub number: u64,
    pub covers: u64,
    pub head: [u8; 32],
}

/// A checkpoint with its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Which audit log it is of: 16 hex digits.
    pub trail: String,
    pub mark: Mark,
    /// The one before it.
    pub before: Mark,
    /// When custody signed it, by custody's clock: RFC 3339 in UTC with microseconds.
    pub at: String,
    /// Which generation of the key signed it.
    pub generation: u32,
    /// ECDSA over P-256, r ‖ s, as 128 hex digits.
    pub signature: String,
}

/// Not a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a place in the chain of checkpoints is a number, a line number and 64 hex digits, with colons"
)]
pub struct MarkError;

impl Checkpoint {
    /// The signature's bytes; `None` where it has no 64.
    pub fn signature_bytes(&self) -> Option<[u8; 64]> {
        unhex(&self.signature)?.try_into().ok()
    }
}

/// What a checkpoint's signature is made over.
pub fn message(trail: &str, mark: &Mark, before: &Mark, at: &str) -> Vec<u8> {
    let of = |mark: &Mark| format!("{}\n{}\n{}\n", mark.number, mark.covers, hex(&mark.head));
    let tag = String::from_utf8_lossy(CHECKPOINT_TAG);
    format!("{tag}{trail}\n{}{}{at}\n", of(mark), of(before)).into_bytes()
}

/// Whether a text names an audit log: 16 hex digits.
pub fn is_trail(text: &str) -> bool {
    is_hex(text, 16)
}

/// Whether a message names a backup: a hash of 64 hex digits that ends its line, and nothing else.
pub fn is_backup(message: &[u8]) -> bool {
    let text = message.strip_prefix(BACKUP_TAG).and_then(|rest| std::str::from_utf8(rest).ok());
    text.and_then(|text| text.strip_suffix('\n')).is_some_and(|digest| is_hex(digest, 64))
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.number, self.covers, hex(&self.head))
    }
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mark {
    type Err = MarkError;
    fn from_str(text: &str) -> Result<Self, MarkError> {
        let mut parts = text.split(':');
        let mut next = || parts.next().ok_or(MarkError);
        let (number, covers, head) = (next()?, next()?, next()?);
        let bytes = unhex(head).and_then(|bytes| bytes.try_into().ok()).ok_or(MarkError)?;
        let whole = |text: &str| text.parse().map_err(|_| MarkError);
        let mark = Self { number: whole(number)?, covers: whole(covers)?, head: bytes };
        // One text for each, as it goes into what is hashed.
        if mark.to_string() == text { Ok(mark) } else { Err(MarkError) }
    }
}

impl TryFrom<String> for Mark {
    type Error = MarkError;
    fn try_from(text: String) -> Result<Self, MarkError> {
        text.parse()
    }
}

impl From<Mark> for String {
    fn from(mark: Mark) -> String {
        mark.to_string()
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !is_hex(text, text.len()) || !text.len().is_multiple_of(2) {
        return None;
    }
    let pair = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_has_one_form() {
        let good = format!("{}\n", "a".repeat(64));
        let tagged = |text: &str| [BACKUP_TAG, text.as_bytes()].concat();
        assert!(is_backup(&tagged(&good)));
        assert!(!is_backup(good.as_bytes()));
        for bad in ["\n", good.trim_end(), &good.to_uppercase(), &good[1..], &good.repeat(2)] {
            assert!(!is_backup(&tagged(bad)), "{bad:?}");
        }
        let mark = Mark { number: 1, covers: 2, head: [3; 32] };
        assert!(!is_backup(&message("0123456789abcdef", &mark, &mark, "now")));
    }

    #[test]
    fn a_mark_has_one_form() {
        let mark = Mark { number: 7, covers: 4711, head: [0xab; 32] };
        let text = mark.to_string();
        assert_eq!(text, format!("7:4711:{}", "ab".repeat(32)));
        assert_eq!(text.parse(), Ok(mark));
        for bad in [
            String::new(),
            text.replace("7:4", "07:4"),
            text.replace("7:4", "+7:4"),
            text.to_uppercase(),
            text[..text.len() - 1].to_owned(),
            format!("{text}:"),
            format!("{text}0"),
        ] {
            assert_eq!(bad.parse::<Mark>(), Err(MarkError), "{bad}");
        }
    }

    #[test]
    fn every_part_of_a_checkpoint_is_signed() {
        let mark = |number| Mark { number, covers: 12, head: [7; 32] };
        let text = String::from_utf8(message("0123456789abcdef", &mark(3), &mark(2), "T")).unwrap();
        let hash = "07".repeat(32);
        let form = format!("0123456789abcdef\n3\n12\n{hash}\n2\n12\n{hash}\nT\n");
        assert_eq!(text, format!("strongroom trail checkpoint v2\n{form}"));
    }
}
