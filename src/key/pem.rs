//! PEM (RFC 7468) as people have it: in lines of any length or in one, with any line ends or literal `\n` in
//! their place, with a byte order mark, in quotes, with text before the block. Decodes nothing: whoever
//! holds a secret decodes it in memory of its own.

use base64::prelude::{BASE64_STANDARD, Engine};

/// The one block of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block<'a> {
    /// `PUBLIC KEY`, `CERTIFICATE`, …
    pub label: &'a [u8],
    /// What stands between the marks.
    body: &'a [u8],
}

/// Why a text has not exactly one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PemError {
    /// No block, or one without its end.
    Malformed,
    Several,
    /// Something follows the block.
    Trailing,
    /// Text of two bytes for each character, as some shells of Windows write it.
    Utf16,
}

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";
const BYTE_ORDER_MARK: &[u8] = &[0xef, 0xbb, 0xbf];

/// Whether a text is meant as PEM.
pub fn is_pem(text: &[u8]) -> bool {
    split_at(text, BEGIN).is_some()
}

/// The text without a byte order mark, white space and quotes around it.
pub fn bare(text: &[u8]) -> &[u8] {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text).trim_ascii();
    for quote in [b'"', b'\''] {
        if let [first, inner @ .., last] = text
            && (*first, *last) == (quote, quote)
        {
            return inner.trim_ascii();
        }
    }
    text
}

/// The block in a text: exactly one, and nothing after it. A second key would be left unread.
pub fn block(text: &[u8]) -> Result<Block<'_>, PemError> {
    if matches!(text, [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [b'-', 0, ..] | [0, b'-', ..]) {
        return Err(PemError::Utf16);
    }
    let (_, after) = split_at(bare(text), BEGIN).ok_or(PemError::Malformed)?;
    if split_at(after, BEGIN).is_some() {
        return Err(PemError::Several);
    }
    let (label, rest) = split_at(after, DASHES).ok_or(PemError::Malformed)?;
    let (body, rest) = split_at(rest, END).ok_or(PemError::Malformed)?;
    let (end, rest) = split_at(rest, DASHES).ok_or(PemError::Malformed)?;
    if end != label {
        return Err(PemError::Malformed);
    }
    if printed(rest).next().is_some() {
        return Err(PemError::Trailing);
    }
    Ok(Block { label, body })
}

impl<'a> Block<'a> {
    /// The characters of its base64, without what separates its lines.
    pub fn printed(&self) -> impl Iterator<Item = u8> + use<'a> {
        printed(self.body)
    }

    /// How many bytes `printed` has at most.
    pub fn most(&self) -> usize {
        self.body.len()
    }

    /// Whether it says by its headers (RFC 1421) that it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        split_at(self.body, b"ENCRYPTED").is_some()
    }

    /// What it holds; not for secrets.
    pub fn decode(&self) -> Option<Vec<u8>> {
        BASE64_STANDARD.decode(self.printed().collect::<Vec<u8>>()).ok()
    }
}

/// The bytes that are no white space, be it written out as `\n`, `\r` or `\t`.
fn printed(bytes: &[u8]) -> impl Iterator<Item = u8> + use<'_> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        loop {
            match rest {
                [b'\\', b'n' | b'r' | b't', after @ ..] => rest = after,
                [byte, after @ ..] => {
                    rest = after;
                    if !byte.is_ascii_whitespace() {
                        return Some(*byte);
                    }
                }
                [] => return None,
            }
        }
    })
}

/// What stands before and after the first `mark`.
fn split_at<'a>(bytes: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(mark.len()).position(|window| window == mark)?;
    Some((bytes.get(..at)?, bytes.get(at + mark.len()..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_that_people_have_is_the_same_block() {
        let body = BASE64_STANDARD.encode([7u8; 100]);
        let wrapped = |columns: usize, end: &str| {
            let lines: Vec<&str> = body
                .as_bytes()
                .chunks(columns)
                .map(|line| std::str::from_utf8(line).unwrap())
                .collect();
            format!("-----BEGIN X-----{end}{}{end}-----END X-----{end}", lines.join(end))
        };
        let plain = wrapped(64, "\n");
        for text in [
            plain.clone(),
            wrapped(76, "\n"),
            wrapped(64, "\r\n"),
            wrapped(64, "\r"),
            wrapped(64, "\\n"),
            wrapped(64, "\\r\\n"),
            wrapped(64, " "),
            wrapped(1000, ""),
            format!("\u{feff}{plain}"),
            format!("\"{}\"\n", wrapped(64, "\\n")),
            format!("  Bag Attributes\n    localKeyID: 33\n{plain}\n\n"),
        ] {
            let block = block(text.as_bytes()).unwrap_or_else(|error| panic!("{error:?}: {text}"));
            assert_eq!((block.label, block.decode()), (&b"X"[..], Some(vec![7u8; 100])), "{text}");
        }
        let utf16: Vec<u8> = plain.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let marked = [&[0xff, 0xfe][..], &utf16].concat();
        for (text, error) in [
            (&b""[..], PemError::Malformed),
            (b"-----BEGIN X-----\nAAAA\n", PemError::Malformed),
            (b"-----BEGIN X-----\nAAAA\n-----END Y-----", PemError::Malformed),
            (format!("{plain}{plain}").as_bytes(), PemError::Several),
            (format!("{plain}x").as_bytes(), PemError::Trailing),
            (&utf16, PemError::Utf16),
            (&marked, PemError::Utf16),
        ] {
            assert_eq!(block(text), Err(error), "{}", String::from_utf8_lossy(text));
        }
    }
}
