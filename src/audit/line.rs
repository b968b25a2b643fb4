//! One line of the trail: what it can say, and its one canonical form.
//!
//! A line is one JSON object without white space, its members in the order of [`Line`]'s fields, those
//! that say nothing left out, then a newline. The trail is a chain:
//!
//! ```text
//! prev(1) = SHA-256("strongroom trail v1\n" ‖ trail ‖ "\n")      trail: 16 hex digits, made at random
//! prev(n) = SHA-256(bytes of line n-1, without its newline)
//! ```
//!
//! A checkpoint line says that the chain was `head` at line `covers` when it was `at`, which `number` it has
//! in the chain of checkpoints and which one was `previous`, and carries an ECDSA P-256 signature (r ‖ s,
//! base64) with SHA-256 over what `custody::checkpoint` says. Those of version 0.1.0 have no number, and
//! their signature is over
//!
//! ```text
//! "strongroom trail checkpoint v1\n" ‖ trail ‖ "\n" ‖ covers ‖ "\n" ‖ head ‖ "\n" ‖ at ‖ "\n"
//! ```
//!
//! Its generation (`signer`) only says which public key to try.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What a line is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Somebody is allowed to do something and it is about to be done.
    Intent,
    /// What became of an intent, or a refusal that never was one.
    Outcome,
    /// Something that happened to the appliance itself.
    #[default]
    Event,
    /// A signature over all lines up to a certain one.
    Checkpoint,
}

/// A line as it is written and read. Every text in it is plain printable ASCII without quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line<'a> {
    /// Counts from 1 without gaps.
    pub seq: u64,
    /// When it was written, RFC 3339 in UTC with microseconds.
    pub time: &'a str,
    /// Hash of the line before, 64 hex digits.
    pub prev: &'a str,
    /// Which trail this is, 16 hex digits.
    pub trail: &'a str,
    pub kind: Kind,
    /// Outcome: the `seq` of its intent; a refusal has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
    /// The request, a UUID, as in the reply and the journal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<&'a str>,
    /// The key that a secret is encrypted for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<&'a str>,
    /// The version of the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// The master key's generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<&'a str>,
    /// The revision of the record in the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    /// How many items a batch had, and how many of them failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_items: Option<u32>,
    /// The versions of the key that a batch's items named (intent) or were worked on with (outcome):
    /// each once, ascending, `1,3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub versions: Option<&'a str>,
    /// Who owns the resource from here on: `unix:1000`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<&'a str>,
    /// Whether a version was used that only a recovery may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<bool>,
    /// Whether an opened key served while the token was away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_token: Option<bool>,
    /// Why, as the caller said it: a word from a fixed set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    /// Outcome: further permissions that the operation needed and had, `key:decrypt,key:encrypt`: on its resource,
    /// or on the key of its secret, which was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub also: Option<&'a str>,
    /// The further permission that was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lacks: Option<&'a str>,
    /// Whether the token's PIN was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with_pin: Option<bool>,
    /// Whether a secret is opened before it is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<bool>,
    /// Intent: days of a waiting period, where the caller said them. Outcome: when the destruction falls due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destroy_at: Option<&'a str>,
    /// For how many seconds of an outage of the token a key may serve from here on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outage_seconds: Option<u32>,
    /// What a key is tagged with: `env=live,team=shop`, percent-encoded; where that is longer than 240 bytes,
    /// `sha256:` and its SHA-256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<&'a str>,
    /// The hash inside MGF1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mgf1_hash: Option<&'a str>,
    /// How many changes of records the store held after the deed: never more than it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<u64>,
    /// The revision of the record of the pass over all keys that the deed began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<&'a str>,
    /// Event: version of the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<&'a str>,
    /// Event: SHA-256 of what was loaded, 64 hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<&'a str>,
    /// Event `segment`: the oldest intent that had no outcome then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_from: Option<u64>,
    /// Event about the trail itself: the line, or the number of bytes, that it concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Event `refusals-left-out`: how many refusals of the caller have no line of their own. Event
    /// `lines-adopted`: how many lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Outcome: `done`, `failed`, `refused` or `interrupted`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<&'a str>,
    /// Why, where the result is not `done`: a word from the fixed set of codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'a str>,
    /// Checkpoint: the line up to which it covers, that line's hash, and when it was signed. Event
    /// `restored`: the moment that the backup shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub covers: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<&'a str>,
    /// Checkpoint: its number, and the one before it as `number:covers:head`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<&'a str>,
    /// Event `restored`: the oldest store key whose seals count from here on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_key: Option<u32>,
    /// Checkpoint: generation of the signing key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signer: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<&'a str>,
}

impl<'a> Line<'a> {
    /// Reads one line, without its newline. `None` where it is not one, or not in its canonical form.
    /// `scratch` only saves an allocation.
    pub fn parse(bytes: &'a [u8], scratch: &mut Vec<u8>) -> Option<Self> {
        let line = Self::read(bytes)?;
        scratch.clear();
        line.encode(scratch);
        (scratch.strip_suffix(b"\n") == Some(bytes)).then_some(line)
    }

    /// Reads one line without a look at its form.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// Appends the canonical form and a newline.
    pub fn encode(&self, out: &mut Vec<u8>) {
        // Writing into memory cannot fail, and every field has a form in JSON.
        let _ = serde_json::to_writer(&mut *out, self);
        out.push(b'\n');
    }
}

/// A SHA-256 hash, shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The hash of one line, given without its newline.
    pub fn of_line(line: &[u8]) -> Self {
        Self(Sha256::digest(line).into())
    }

    /// What the first line of a trail names as its predecessor.
    pub fn genesis(trail: &str) -> Self {
        let digest = Sha256::new().chain_update(b"strongroom trail v1\n");
        Self(digest.chain_update(trail).chain_update(b"\n").finalize().into())
    }

    pub fn hex(&self) -> Hex {
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            if let [high, low] = pair {
                *high = hex_digit(byte >> 4);
                *low = hex_digit(byte & 15);
            }
        }
        Hex(text)
    }
}

fn hex_digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}

/// 64 hex digits, on the stack.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hex([u8; 64]);

impl Hex {
    pub fn as_str(&self) -> &str {
        // Hex digits are always UTF-8.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.hex().as_str())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not a hash, or not a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a head is a line number, a colon and 64 hex digits in lower case")]
pub struct HeadError;

impl FromStr for Hash {
    type Err = HeadError;
    fn from_str(text: &str) -> Result<Self, HeadError> {
        let nibble = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(HeadError),
        };
        let digits: [u8; 64] = text.as_bytes().try_into().map_err(|_| HeadError)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            if let [high, low] = pair {
                *byte = nibble(*high)? << 4 | nibble(*low)?;
            }
        }
        Ok(Self(bytes))
    }
}

/// A point in a trail: a line and its hash. Written `seq:hash`. Whoever keeps one elsewhere can tell
/// later whether the trail still holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Head {
    pub seq: u64,
    pub hash: Hash,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl FromStr for Head {
    type Err = HeadError;
    fn from_str(text: &str) -> Result<Self, HeadError> {
        let (seq, hash) = text.split_once(':').ok_or(HeadError)?;
        Ok(Self { seq: seq.parse().map_err(|_| HeadError)?, hash: hash.parse()? })
    }
}

impl TryFrom<String> for Head {
    type Error = HeadError;
    fn try_from(text: String) -> Result<Self, HeadError> {
        text.parse()
    }
}

impl From<Head> for String {
    fn from(head: Head) -> String {
        head.to_string()
    }
}

/// What the signature of a checkpoint of version 0.1.0 is made over.
pub fn checkpoint_message(trail: &str, head: &Head, at: &str) -> Vec<u8> {
    let Head { seq, hash } = head;
    format!("strongroom trail checkpoint v1\n{trail}\n{seq}\n{hash}\n{at}\n").into_bytes()
}

/// The text itself where it can stand in a line as it is, else a word that says that it could not.
pub(super) fn plain(text: &str) -> &str {
    let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    if text.len() <= 256 && text.bytes().all(fits) { text } else { "unprintable" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'a>(prev: &'a str) -> Line<'a> {
        Line {
            seq: 7,
            time: "2026-01-02T03:04:05.000006Z",
            prev,
            trail: "0123456789abcdef",
            kind: Kind::Outcome,
            of: Some(6),
            action: Some("key:decrypt"),
            result: Some("done"),
            ..Line::default()
        }
    }

    #[test]
    fn there_is_one_form() {
        let hex = Hash::of_line(b"x").hex();
        let mut bytes = Vec::new();
        line(hex.as_str()).encode(&mut bytes);
        let text = format!(
            "{{\"seq\":7,\"time\":\"2026-01-02T03:04:05.000006Z\",\"prev\":\"{}\",\
             \"trail\":\"0123456789abcdef\",\"kind\":\"outcome\",\"of\":6,\
             \"action\":\"key:decrypt\",\"result\":\"done\"}}\n",
            hex.as_str()
        );
        assert_eq!(String::from_utf8(bytes).unwrap(), text);
        let bytes = text.trim_end().as_bytes();
        let mut scratch = Vec::new();
        assert_eq!(Line::parse(bytes, &mut scratch), Some(line(hex.as_str())));
        for other in [
            text.trim_end().replace(":7", ": 7"),
            text.trim_end().replace("\"of\":6", "\"of\":6,\"of\":6"),
            text.trim_end().replace("done", "d\\u006fne"),
            text.trim_end().replace("\"of\":6", "\"note\":6"),
            text.trim_end().replace("\"of\":6", "\"of\":null"),
        ] {
            assert_eq!(Line::parse(other.as_bytes(), &mut scratch), None, "{other}");
        }
    }

    #[test]
    fn heads_are_read_as_they_are_written() {
        let head = Head { seq: 12, hash: Hash::genesis("a") };
        assert_eq!(head.to_string().parse(), Ok(head));
        for bad in ["", "12", "12:", "x:00", "12:zz", &head.to_string().to_uppercase()] {
            assert_eq!(bad.parse::<Head>(), Err(HeadError), "{bad}");
        }
    }

    #[test]
    fn texts_that_would_need_escapes_do_not_get_in() {
        for bad in ["a\"b", "a\\b", "a\nb", "a b", "\u{e4}", &"a".repeat(257)] {
            assert_eq!(plain(bad), "unprintable");
        }
        assert_eq!(plain("unix:1000"), "unix:1000");
    }
}
