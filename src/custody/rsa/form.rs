//! Tells the outer forms of a private key apart, and checks what is public in it (n and e) so that a
//! refusal can name the rule. Nothing secret is copied, except by `decode_pem`, into the arena.

use super::{KeyError, ffi};
use crate::key::Algorithm;
use crate::key::pem::{self, Block, PemError};
use crate::secret::{OnLockedStack, SecretBytes};
use der::asn1::{ObjectIdentifier, UintRef};
use der::{Decode, Header, Reader, SliceReader, Tag};

/// The longest input that is looked at, in bytes: a PEM of RSA-4096 has about 3 300.
const MAX_INPUT: usize = 16 * 1024;

const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

/// A PFX (RFC 7292 §4) of indefinite length, as some programs write it.
const PFX: &[u8] = &[0x30, 0x80, 2, 1, 3];

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
    if der.starts_with(PFX) {
        return Err(KeyError::Pkcs12);
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
    let version = contents(&mut body, Tag::Integer)?;
    match body.peek_tag().map_err(malformed)? {
        Tag::Sequence if version == [3] => Err(KeyError::Pkcs12),
        Tag::Sequence => {
            check_pkcs8(der.len(), &mut body)?;
            Ok(Form::Pkcs8)
        }
        Tag::Integer => {
            two_primes(version)?;
            check_public_parts(&mut body)?;
            Ok(Form::Pkcs1)
        }
        // ECPrivateKey (RFC 5915) goes on with its number.
        Tag::OctetString => Err(KeyError::NotRsa),
        _ => Err(KeyError::Malformed),
    }
}

/// An RSAPrivateKey of version 0 has two primes, one of version 1 more (RFC 8017 §A.1.2).
fn two_primes(version: &[u8]) -> Result<(), KeyError> {
    if version == [1] { Err(KeyError::MultiPrime) } else { Ok(()) }
}

/// What begins with an algorithm: EncryptedPrivateKeyInfo (RFC 5208 §6) or a public key (RFC 5280); and a
/// certificate, or a request for one, which begins with its content.
fn without_version(body: &mut SliceReader<'_>) -> KeyError {
    let second = contents(body, Tag::Sequence).and_then(|_| body.peek_tag().map_err(malformed));
    match second {
        Ok(Tag::OctetString) => KeyError::Encrypted,
        Ok(Tag::BitString) => KeyError::Public,
        Ok(Tag::Sequence) => KeyError::Certificate,
        _ => KeyError::Malformed,
    }
}

/// From the algorithm of a PrivateKeyInfo of `len` bytes on.
fn check_pkcs8(len: usize, body: &mut SliceReader<'_>) -> Result<(), KeyError> {
    let algorithm = contents(body, Tag::Sequence)?;
    let mut algorithm = SliceReader::new(algorithm).map_err(malformed)?;
    match ObjectIdentifier::decode(&mut algorithm).map_err(malformed)? {
        RSA_ENCRYPTION => {}
        RSASSA_PSS => {
            let left = usize::try_from(body.remaining_len()).unwrap_or_default();
            return Err(KeyError::RsaPss { at: len.saturating_sub(left) });
        }
        _ => return Err(KeyError::NotRsa),
    }
    let inner = contents(body, Tag::OctetString)?;
    let mut inner = SliceReader::new(inner).map_err(malformed)?;
    let parts = contents(&mut inner, Tag::Sequence)?;
    if !inner.is_finished() {
        return Err(KeyError::TrailingData);
    }
    let mut parts = SliceReader::new(parts).map_err(malformed)?;
    two_primes(contents(&mut parts, Tag::Integer)?)?;
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

/// The DER within exactly one PEM block, decoded into the arena. Text may stand before the block, as
/// `openssl pkcs12` writes it; after it, nothing but white space.
pub(super) fn decode_pem(stack: &OnLockedStack, input: &[u8]) -> Result<SecretBytes, KeyError> {
    if input.len() > MAX_INPUT {
        return Err(KeyError::Malformed);
    }
    let block = pem::block(input).map_err(|error| match error {
        PemError::Malformed => KeyError::Malformed,
        PemError::Several => KeyError::SeveralBlocks,
        PemError::Trailing => KeyError::TrailingData,
        PemError::Utf16 => KeyError::Utf16,
    })?;
    check_label(block.label)?;
    if block.is_encrypted() {
        return Err(KeyError::Encrypted); // RFC 1421 headers, as PKCS#1 has them
    }
    decode_body(stack, &block)
}

/// Whether the block says that it holds what is wanted; its DER has the last word.
fn check_label(label: &[u8]) -> Result<(), KeyError> {
    match label {
        b"PRIVATE KEY" | b"RSA PRIVATE KEY" => Ok(()),
        b"ENCRYPTED PRIVATE KEY" => Err(KeyError::Encrypted),
        b"PUBLIC KEY" | b"RSA PUBLIC KEY" => Err(KeyError::Public),
        b"EC PRIVATE KEY" | b"DSA PRIVATE KEY" => Err(KeyError::NotRsa),
        b"OPENSSH PRIVATE KEY" => Err(KeyError::OpenSsh),
        label if label.ends_with(b"CERTIFICATE") || label.ends_with(b"CERTIFICATE REQUEST") => {
            Err(KeyError::Certificate)
        }
        _ => Err(KeyError::Malformed),
    }
}

fn decode_body(stack: &OnLockedStack, block: &Block<'_>) -> Result<SecretBytes, KeyError> {
    let mut text = SecretBytes::zeroed(block.most())?;
    let mut len = 0;
    for (place, byte) in text.expose_mut().iter_mut().zip(block.printed()) {
        *place = byte;
        len += 1;
    }
    text.truncate(len);
    let mut der = SecretBytes::zeroed(len)?;
    let len = ffi::decode_base64(stack, text.expose(), der.expose_mut());
    der.truncate(len.ok_or(KeyError::Malformed)?);
    Ok(der)
}
