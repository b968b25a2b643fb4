//! Binary fields of the wire: base64 in any alphabet and padding in, standard with padding out
//! (RFC 4648 §4, §5).

use base64::alphabet;
use base64::engine::{DecodePaddingMode, Engine, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;
use zeroize::{Zeroize, Zeroizing};

use crate::secret::{Plaintext, SecretBytes};

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Bytes that are no secret: a ciphertext, a label.
#[derive(Debug, Clone, PartialEq, Eq, Default, ToSchema)]
#[schema(value_type = String, format = Byte)]
pub struct Binary(pub Vec<u8>);

/// A secret on its way in: decoded straight into locked memory.
#[derive(ToSchema)]
#[schema(value_type = String, format = Byte)]
pub struct SecretBinary(pub Plaintext);

/// A secret on its way out to a caller that may see it: the one place where it is written out.
#[derive(ToSchema)]
#[schema(value_type = String, format = Byte)]
pub struct Disclosed(pub Plaintext);

fn engine_for(text: &str) -> &'static GeneralPurpose {
    if text.bytes().any(|byte| matches!(byte, b'-' | b'_')) { &URL_SAFE } else { &STANDARD }
}

/// Decodes base64 text into locked memory. `None` where it is no base64, or there is no room.
pub(super) fn decode_secret(text: &str) -> Option<SecretBytes> {
    let engine = engine_for(text);
    let mut room = Zeroizing::new(vec![0; text.len() / 4 * 3 + 3]);
    let length = engine.decode_slice(text, &mut room).ok()?;
    SecretBytes::copy_from(room.get(..length)?).ok()
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
                decoded.map(Binary).map_err(|_| E::custom("not base64"))
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
                let bytes = decode_secret(text).ok_or_else(|| E::custom("not base64"))?;
                Ok(SecretBinary(Plaintext::new(bytes)))
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
