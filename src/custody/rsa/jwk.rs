//! A private key as a JWK (RFC 7518 §6.3), put together as an RSAPrivateKey (RFC 8017 §A.1.2) in the arena.

use super::{KeyError, ffi};
use crate::key::pem;
use crate::secret::{OnLockedStack, SecretBytes};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// The members that matter, read in place: nothing secret is copied.
#[derive(Deserialize)]
struct Members<'a> {
    kty: &'a str,
    n: Option<&'a str>,
    e: Option<&'a str>,
    d: Option<&'a str>,
    p: Option<&'a str>,
    q: Option<&'a str>,
    dp: Option<&'a str>,
    dq: Option<&'a str>,
    qi: Option<&'a str>,
    oth: Option<IgnoredAny>,
    #[serde(rename = "use")]
    key_use: Option<&'a str>,
    alg: Option<&'a str>,
}

/// Whether this is meant as one.
pub(super) fn is_json(input: &[u8]) -> bool {
    pem::bare(input).first() == Some(&b'{')
}

/// The DER of its RSAPrivateKey.
pub(super) fn to_pkcs1(stack: &OnLockedStack, input: &[u8]) -> Result<SecretBytes, KeyError> {
    let members: Members<'_> =
        serde_json::from_slice(pem::bare(input)).map_err(|_| KeyError::JwkMalformed)?;
    if members.kty != "RSA" {
        return Err(KeyError::NotRsa);
    }
    if members.oth.is_some() {
        return Err(KeyError::MultiPrime);
    }
    let other_use = members.key_use.is_some_and(|key_use| key_use != "enc");
    if other_use || members.alg.is_some_and(|alg| alg != "RSA-OAEP-256") {
        return Err(KeyError::JwkUse);
    }
    if members.d.is_none() {
        return Err(KeyError::Public);
    }
    let Members { n, e, d, p, q, dp, dq, qi, .. } = members;
    let mut numbers = Vec::with_capacity(8);
    for text in [n, e, d, p, q, dp, dq, qi] {
        numbers.push(number(stack, text.ok_or(KeyError::JwkPrimes)?)?);
    }
    write(&numbers)
}

/// One number, base64url without padding, big-endian; decoded in the arena.
fn number(stack: &OnLockedStack, text: &str) -> Result<SecretBytes, KeyError> {
    if text.contains('=') {
        return Err(KeyError::JwkMalformed);
    }
    let padded = text.len().next_multiple_of(4);
    let mut standard = SecretBytes::zeroed(padded)?;
    let characters = text.bytes().chain(std::iter::repeat(b'='));
    for (place, byte) in standard.expose_mut().iter_mut().zip(characters) {
        *place = match byte {
            b'-' => b'+',
            b'_' => b'/',
            b'+' | b'/' => return Err(KeyError::JwkMalformed),
            other => other,
        };
    }
    let mut number = SecretBytes::zeroed(padded)?;
    let len = ffi::decode_base64(stack, standard.expose(), number.expose_mut());
    number.truncate(len.ok_or(KeyError::JwkMalformed)?);
    match number.expose().first() {
        Some(0) | None => Err(KeyError::JwkMalformed),
        Some(_) => Ok(number),
    }
}

/// SEQUENCE { version 0, the numbers }.
fn write(numbers: &[SecretBytes]) -> Result<SecretBytes, KeyError> {
    let content = |number: &SecretBytes| number.len() + usize::from(has_high_bit(number));
    let sizes = numbers.iter().map(|number| header_len(content(number)) + content(number));
    let inner = 3 + sizes.sum::<usize>();
    let mut der = SecretBytes::zeroed(header_len(inner) + inner)?;
    let mut rest = der.expose_mut();
    put_header(&mut rest, 0x30, inner);
    put(&mut rest, &[2, 1, 0]);
    for number in numbers {
        put_header(&mut rest, 2, content(number));
        if has_high_bit(number) {
            put(&mut rest, &[0]);
        }
        put(&mut rest, number.expose());
    }
    Ok(der)
}

fn has_high_bit(number: &SecretBytes) -> bool {
    number.expose().first().is_some_and(|first| first & 0x80 != 0)
}

/// The bytes of tag and length (X.690 §8.1.3) of a value of up to 64 KiB.
fn header_len(len: usize) -> usize {
    match len {
        0..=0x7f => 2,
        0x80..=0xff => 3,
        _ => 4,
    }
}

fn put_header(rest: &mut &mut [u8], tag: u8, len: usize) {
    let [.., high, low] = len.to_be_bytes();
    match header_len(len) {
        2 => put(rest, &[tag, low]),
        3 => put(rest, &[tag, 0x81, low]),
        _ => put(rest, &[tag, 0x82, high, low]),
    }
}

/// Writes at the front of what is left of the room, whose size was reckoned before.
fn put(rest: &mut &mut [u8], bytes: &[u8]) {
    let (here, after) = std::mem::take(rest).split_at_mut(bytes.len());
    here.copy_from_slice(bytes);
    *rest = after;
}
