//! Tells the outer forms of a private key apart, and checks what is public in it (n and e) so that a
//! refusal can name the rule. Nothing secret is copied, except by `decode_pem`, into the arena.

use super::{KeyError, ffi};
use crate::key::Algorithm;
use crate::secret::{OnLockedStack, SecretBytes};
use der::asn1::{ObjectIdentifier, UintRef};
use der::{Decode, Header, Reader, SliceReader, Tag};

/// The longest input that is looked at, in bytes: a PEM of RSA-4096 has about 3 300.
const MAX_INPUT: usize = 16 * 1024;

const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// A plain private key's outer form.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// PrivateKeyInfo, RFC 5208 §5.
    Pkcs8,
    /// RSAPrivateKey, RFC 8017 §A.1.2.
    Pkcs1,
}

/// Whether this is meant as DER: a private key of any form is a SEQUENCE.
pub(super) fn is_der(input: &[u8]) -> bool {
    input.first() == Some(&0x30)
}

/// The form of one DER value with nothing after it, whose n and e keep the rules.
pub(super) fn of_der(der: &[u8]) -> Result<Form, KeyError> {
    if der.len() > MAX_INPUT {
        return Err(KeyError::Malformed);
    }
    let mut outer = SliceReader::new(der).map_err(malformed)?;
    let body = contents(&mut outer, Tag::Sequence)?;
    if !outer.is_finished() {
        return Err(KeyError::TrailingData);
    }
    let mut body = SliceReader::new(body).map_err(malformed)?;
    if body.peek_tag().map_err(malformed)? == Tag::Sequence {
        return Err(without_version(&mut body));
    }
    contents(&mut body, Tag::Integer)?;
    match body.peek_tag().map_err(malformed)? {
        Tag::Sequence => {
            check_pkcs8(&mut body)?;
            Ok(Form::Pkcs8)
        }
        Tag::Integer => {
            check_public_parts(&mut body)?;
            Ok(Form::Pkcs1)
        }
        // ECPrivateKey (RFC 5915) goes on with its number.
        Tag::OctetString => Err(KeyError::NotRsa),
        _ => Err(KeyError::Malformed),
    }
}

/// What begins with an algorithm: EncryptedPrivateKeyInfo (RFC 5208 §6) or a public key (RFC 5280).
fn without_version(body: &mut SliceReader<'_>) -> KeyError {
    let second = contents(body, Tag::Sequence).and_then(|_| body.peek_tag().map_err(malformed));
    match second {
        Ok(Tag::OctetString) => KeyError::Encrypted,
        Ok(Tag::BitString) => KeyError::Public,
        _ => KeyError::Malformed,
    }
}

/// From the algorithm of a PrivateKeyInfo on.
fn check_pkcs8(body: &mut SliceReader<'_>) -> Result<(), KeyError> {
    let algorithm = contents(body, Tag::Sequence)?;
    let mut algorithm = SliceReader::new(algorithm).map_err(malformed)?;
    if ObjectIdentifier::decode(&mut algorithm).map_err(malformed)? != RSA_ENCRYPTION {
        return Err(KeyError::NotRsa);
    }
    let inner = contents(body, Tag::OctetString)?;
    let mut inner = SliceReader::new(inner).map_err(malformed)?;
    let parts = contents(&mut inner, Tag::Sequence)?;
    if !inner.is_finished() {
        return Err(KeyError::TrailingData);
    }
    let mut parts = SliceReader::new(parts).map_err(malformed)?;
    contents(&mut parts, Tag::Integer)?;
    check_public_parts(&mut parts)
}

/// From the modulus of an RSAPrivateKey on.
fn check_public_parts(parts: &mut SliceReader<'_>) -> Result<(), KeyError> {
    let modulus = UintRef::decode(parts).map_err(malformed)?;
    let exponent = UintRef::decode(parts).map_err(malformed)?;
    let bits = bit_length(modulus.as_bytes());
    Algorithm::of_bits(bits).ok_or(KeyError::ModulusSize(bits))?;
    let exponent = match exponent.as_bytes() {
        bytes if bytes.len() <= 4 => {
            bytes.iter().fold(0_u32, |number, &byte| number << 8 | u32::from(byte))
        }
        _ => return Err(KeyError::PublicExponent),
    };
    if exponent % 2 == 1 && exponent >= 65537 { Ok(()) } else { Err(KeyError::PublicExponent) }
}

/// The bits of a big-endian number without leading zero bytes.
fn bit_length(bytes: &[u8]) -> usize {
    bytes.first().map_or(0, |&first| bytes.len() * 8 - first.leading_zeros() as usize)
}

/// The contents of the next value, which must have this tag.
fn contents<'a>(reader: &mut SliceReader<'a>, tag: Tag) -> Result<&'a [u8], KeyError> {
    let header = Header::decode(reader).map_err(malformed)?;
    if header.tag != tag {
        return Err(KeyError::Malformed);
    }
    reader.read_slice(header.length).map_err(malformed)
}

fn malformed(_: der::Error) -> KeyError {
    KeyError::Malformed
}

/// The DER within exactly one PEM block (RFC 7468), decoded into the arena. Text may stand before the
/// block, as `openssl pkcs12` writes it; after it, nothing but white space.
pub(super) fn decode_pem(stack: &OnLockedStack, input: &[u8]) -> Result<SecretBytes, KeyError> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    const DASHES: &[u8] = b"-----";
    if input.len() > MAX_INPUT {
        return Err(KeyError::Malformed);
    }
    let (_, block) = split_at(input, BEGIN).ok_or(KeyError::Malformed)?;
    if split_at(block, BEGIN).is_some() {
        return Err(KeyError::SeveralBlocks);
    }
    let (label, rest) = split_at(block, DASHES).ok_or(KeyError::Malformed)?;
    let (body, rest) = split_at(rest, b"-----END ").ok_or(KeyError::Malformed)?;
    let (end_label, rest) = split_at(rest, DASHES).ok_or(KeyError::Malformed)?;
    if end_label != label {
        return Err(KeyError::Malformed);
    }
    if !rest.iter().all(u8::is_ascii_whitespace) {
        return Err(KeyError::TrailingData);
    }
    check_label(label)?;
    if split_at(body, b"ENCRYPTED").is_some() {
        return Err(KeyError::Encrypted); // RFC 1421 headers, as PKCS#1 has them
    }
    decode_body(stack, body)
}

/// Whether the block says that it holds what is wanted; its DER has the last word.
fn check_label(label: &[u8]) -> Result<(), KeyError> {
    match label {
        b"PRIVATE KEY" | b"RSA PRIVATE KEY" => Ok(()),
        b"ENCRYPTED PRIVATE KEY" => Err(KeyError::Encrypted),
        b"PUBLIC KEY" | b"RSA PUBLIC KEY" => Err(KeyError::Public),
        b"EC PRIVATE KEY" | b"DSA PRIVATE KEY" => Err(KeyError::NotRsa),
        _ => Err(KeyError::Malformed),
    }
}

fn decode_body(stack: &OnLockedStack, body: &[u8]) -> Result<SecretBytes, KeyError> {
    let mut text = SecretBytes::zeroed(body.len())?;
    let mut len = 0;
    let printed = body.iter().filter(|byte| !byte.is_ascii_whitespace());
    for (place, &byte) in text.expose_mut().iter_mut().zip(printed) {
        *place = byte;
        len += 1;
    }
    text.truncate(len);
    let mut der = SecretBytes::zeroed(len)?;
    let len = ffi::decode_base64(stack, text.expose(), der.expose_mut());
    let len = len.ok_or(KeyError::Malformed)?;
    der.truncate(len);
    Ok(der)
}

/// What stands before and after the first `mark`.
fn split_at<'a>(bytes: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(mark.len()).position(|window| window == mark)?;
    Some((bytes.get(..at)?, bytes.get(at + mark.len()..)?))
}
