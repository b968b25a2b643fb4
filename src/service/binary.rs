//! Binary fields of the wire: base64 in any alphabet and padding in, standard with padding out
//! (RFC 4648 §4, §5).

use base64::alphabet;
use base64::engine::{DecodePaddingMode, Engine, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;
use zeroize::{Zeroize, Zeroizing};

use crate::secret::{ArenaError, Plaintext, SecretBytes};

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// What is said of a text that is not base64.
pub const NOT_BASE64: &str = "must be base64 in one line, without white space";

/// Bytes that are no secret: a ciphertext, a label.
#[derive(Debug, Clone, PartialEq, Eq, Default, ToSchema)]
#[schema(value_type = String, format = Byte)]
pub struct Binary(pub Vec<u8>);

/// A secret on its way in: decoded straight into locked memory, where there is room for it.
#[derive(ToSchema)]
#[schema(value_type = String, format = Byte)]
pub struct SecretBinary(Held);

/// A secret that found room, or why it did not; and its length in bytes either way.
struct Held {
    secret: Result<Plaintext, ArenaError>,
    len: usize,
}

/// The longest base64 text of a secret that is held: far more than any key can hold, and so little
/// that many callers at once do not fill the locked memory.
const LONGEST_HELD: usize = 4 * 1024;

impl SecretBinary {
    /// The secret.
    ///
    /// # Errors
    /// Where there was no locked memory for it; what is far too long for any key is never held.
    pub fn plaintext(&self) -> Result<&Plaintext, ArenaError> {
        self.0.secret.as_ref().map_err(|error| *error)
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }
}

/// A secret on its way out to a caller that may see it: the one place where it is written out.
#[derive(ToSchema)]
#[schema(value_type = String, format = Byte)]
pub struct Disclosed(pub Plaintext);

fn engine_for(text: &str) -> &'static GeneralPurpose {
    if text.bytes().any(|byte| matches!(byte, b'-' | b'_')) { &URL_SAFE } else { &STANDARD }
}

/// Decodes base64 text into locked memory. `None` where it is no base64, or there is no room.
pub(super) fn decode_secret(text: &str) -> Option<SecretBytes> {
    SecretBytes::copy_from(&decode(text)?).ok()
}

/// Decodes base64 text into memory that is wiped.
fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut room = Zeroizing::new(vec![0; text.len() / 4 * 3 + 3]);
    let length = engine_for(text).decode_slice(text, &mut room).ok()?;
    room.truncate(length);
    Some(room)
}

impl<'de> Deserialize<'de> for Binary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Binary;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("base64")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Binary, E> {
                let decoded = engine_for(text).decode(text);
                decoded.map(Binary).map_err(|_| E::custom(NOT_BASE64))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl Serialize for Binary {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for SecretBinary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = SecretBinary;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("base64")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretBinary, E> {
                let bytes = decode(text).ok_or_else(|| E::custom(NOT_BASE64))?;
                let secret = match text.len() {
                    0..=LONGEST_HELD => Plaintext::copy_from(&bytes),
                    _ => Err(ArenaError::Full),
                };
                Ok(SecretBinary(Held { secret, len: bytes.len() }))
            }
            fn visit_string<E: de::Error>(self, mut text: String) -> Result<SecretBinary, E> {
                let taken = self.visit_str(&text);
                text.zeroize();
                taken
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl Serialize for Disclosed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = Zeroizing::new(BASE64_STANDARD.encode(self.0.expose()));
        serializer.serialize_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alphabet_and_padding_comes_in_and_one_goes_out() {
        for text in ["\"+/8=\"", "\"-_8=\"", "\"+/8\"", "\"-_8\""] {
            let binary: Binary = serde_json::from_str(text).unwrap();
            assert_eq!(binary.0, [0xfb, 0xff], "{text}");
            assert_eq!(serde_json::to_string(&binary).unwrap(), "\"+/8=\"");
        }
        for text in ["\"+_8=\"", "\"+/8==\"", "\"a\"", "\"a b\"", "7", "null"] {
            assert!(serde_json::from_str::<Binary>(text).is_err(), "{text}");
        }
    }
}
