//! The sealed forms, byte by byte, and the formula of their AAD.
//!
//! All integers are big-endian; all sealing is AES-256-GCM (NIST SP 800-38D) with a 12-byte IV and a
//! 16-byte tag behind the ciphertext. Byte 0 is the form's version, byte 1 its algorithm.
//!
//! ```text
//! wrapped store key   1 | 1 | generation u32 | iv 12 | AES-GCM(master, store key 32) 48
//! sealed key          1 | 1 | generation u32 | iv 12 | AES-GCM(master, data key 32) 48
//!                           | iv 12 | AES-GCM(data key, PKCS#8 DER)
//! sealed record       1 | 1 | store key id u32 | iv 12 | AES-GCM(store key, value)
//!
//! recovery wrap       1 | 2 | fingerprint 32 | RSAES-OAEP(recovery key, data key or store key 32) 512
//!                     with SHA-256 and MGF1-SHA-256 (RFC 8017 §7.1), and an AAD as its label
//!
//! AAD = "strongroom/v1" 0 field 0 field 0 …   with the fields
//!   wrap of a store key   "store-key" · appliance · generation · id [ · first, unless it is 0 ]
//!   wrap of a data key    "data-key"  · appliance · generation · name · version
//!   seal of a PKCS#8      "pkcs8"     · appliance · name · version
//!   seal of a record      "record"    · appliance · id · table · key · revision
//!   recovery wrap         "recovery-data-key"  · appliance · name · version
//!                         "recovery-store-key" · appliance · id [ · first, unless it is 0 ]
//! ```
//!
//! Numbers in an AAD are decimal, no field can hold a zero byte. The generation is bound by the wrap
//! alone, so that a data key is rewrapped without opening the private key under it; the recovery wrap of
//! a key knows no generation and outlives them. The fingerprint is SHA-256 of the recovery key's SPKI.

use super::protocol::{Fault, KeyAddress, RecordAddress};
use crate::token::WrappedKey;

const FORM: u8 = 1;
const AES_256_GCM: u8 = 1;
const RSA_OAEP_SHA256: u8 = 2;
const HEAD: usize = 2 + 4;
const IV: usize = 12;
const TAG: usize = 16;
const WRAPPED: usize = 32 + TAG;

/// Joins fields to an AAD; see the formula above.
fn aad(fields: &[&str]) -> Vec<u8> {
    let mut aad = b"strongroom/v1\0".to_vec();
    for field in fields {
        aad.extend_from_slice(field.as_bytes());
        aad.push(0);
    }
    aad
}

pub fn store_key_aad(appliance: &str, generation: u32, (id, first): (u32, u32)) -> Vec<u8> {
    let mut aad = aad(&["store-key", appliance, &generation.to_string(), &id.to_string()]);
    add_first(&mut aad, first);
    aad
}

/// Store keys from before the first restore do not name one.
fn add_first(aad: &mut Vec<u8>, first: u32) {
    if first != 0 {
        aad.extend_from_slice(first.to_string().as_bytes());
        aad.push(0);
    }
}

pub fn data_key_aad(appliance: &str, generation: u32, address: &KeyAddress) -> Vec<u8> {
    let (generation, version) = (generation.to_string(), address.version.to_string());
    aad(&["data-key", appliance, &generation, &address.name, &version])
}

pub fn pkcs8_aad(appliance: &str, address: &KeyAddress) -> Vec<u8> {
    aad(&["pkcs8", appliance, &address.name, &address.version.to_string()])
}

pub fn record_aad(appliance: &str, store_key_id: u32, address: &RecordAddress) -> Vec<u8> {
    let (id, revision) = (store_key_id.to_string(), address.revision.to_string());
    aad(&["record", appliance, &id, &address.table, &address.key, &revision])
}

/// What the key of the store's state is bound to.
pub fn store_state_info(appliance: &str, store_key_id: u32) -> Vec<u8> {
    aad(&["store-state", appliance, &store_key_id.to_string()])
}

/// The label of a data key's recovery wrap.
pub fn recovery_key_label(appliance: &str, address: &KeyAddress) -> Vec<u8> {
    aad(&["recovery-data-key", appliance, &address.name, &address.version.to_string()])
}

/// The label of a store key's recovery wrap.
pub fn recovery_store_key_label(appliance: &str, (id, first): (u32, u32)) -> Vec<u8> {
    let mut label = aad(&["recovery-store-key", appliance, &id.to_string()]);
    add_first(&mut label, first);
    label
}

/// Something sealed in the process: its IV, and ciphertext with tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed<'a> {
    pub iv: &'a [u8; IV],
    pub ciphertext: &'a [u8],
}

/// Writes a wrapped store key.
pub fn write_wrapped(wrapped: &WrappedKey) -> Vec<u8> {
    let mut bytes = head(wrapped.generation);
    bytes.extend_from_slice(&wrapped.iv);
    bytes.extend_from_slice(&wrapped.ciphertext);
    bytes
}

/// Reads a wrapped store key; nothing may follow it.
pub fn read_wrapped(bytes: &[u8]) -> Result<WrappedKey, Fault> {
    let (wrapped, rest) = split_wrapped(bytes).ok_or(Fault::SealBroken)?;
    if rest.is_empty() { Ok(wrapped) } else { Err(Fault::SealBroken) }
}

/// Writes a sealed key.
pub fn write_key(wrapped: &WrappedKey, iv: &[u8; IV], ciphertext: &[u8]) -> Vec<u8> {
    let mut bytes = write_wrapped(wrapped);
    bytes.extend_from_slice(iv);
    bytes.extend_from_slice(ciphertext);
    bytes
}

/// The master generation that a sealed key, or a wrapped store key, lies under; `None` where it is none.
pub fn generation_of(bytes: &[u8]) -> Option<u32> {
    split_wrapped(bytes).map(|(wrapped, _)| wrapped.generation)
}

/// Puts another wrap of the same data key in the place of a sealed key's own.
pub fn with_wrap(bytes: &[u8], wrapped: &WrappedKey) -> Result<Vec<u8>, Fault> {
    let (_, rest) = split_wrapped(bytes).ok_or(Fault::SealBroken)?;
    Ok([write_wrapped(wrapped).as_slice(), rest].concat())
}

/// Reads a sealed key: the wrapped data key, and the PKCS#8 sealed under it.
pub fn read_key(bytes: &[u8]) -> Result<(WrappedKey, Sealed<'_>), Fault> {
    let (wrapped, rest) = split_wrapped(bytes).ok_or(Fault::SealBroken)?;
    Ok((wrapped, split_sealed(rest).ok_or(Fault::SealBroken)?))
}

/// Writes a recovery wrap.
pub fn write_recovery(fingerprint: &[u8; 32], ciphertext: &[u8]) -> Vec<u8> {
    [&[FORM, RSA_OAEP_SHA256], fingerprint.as_slice(), ciphertext].concat()
}

/// Reads a recovery wrap: the fingerprint of the key that it is for, and the ciphertext.
pub fn read_recovery(bytes: &[u8]) -> Result<([u8; 32], &[u8]), Fault> {
    let Some((&[FORM, RSA_OAEP_SHA256], rest)) = bytes.split_first_chunk::<2>() else {
        return Err(Fault::SealBroken);
    };
    let (fingerprint, ciphertext) = rest.split_first_chunk::<32>().ok_or(Fault::SealBroken)?;
    Ok((*fingerprint, ciphertext))
}

/// Which recovery key a wrap is for; `None` where it is no wrap.
pub fn recovery_of(bytes: &[u8]) -> Option<[u8; 32]> {
    read_recovery(bytes).ok().map(|(fingerprint, _)| fingerprint)
}

/// Writes a sealed record.
pub fn write_record(store_key_id: u32, iv: &[u8; IV], ciphertext: &[u8]) -> Vec<u8> {
    let mut bytes = head(store_key_id);
    bytes.extend_from_slice(iv);
    bytes.extend_from_slice(ciphertext);
    bytes
}

/// The id of the store key that a sealed record names; `None` where it is no sealed record.
pub fn store_key_of(bytes: &[u8]) -> Option<u32> {
    split_head(bytes).map(|(id, _)| id)
}

/// Reads a sealed record: the id of its store key, and what is sealed.
pub fn read_record(bytes: &[u8]) -> Result<(u32, Sealed<'_>), Fault> {
    let (id, rest) = split_head(bytes).ok_or(Fault::SealBroken)?;
    Ok((id, split_sealed(rest).ok_or(Fault::SealBroken)?))
}

fn head(number: u32) -> Vec<u8> {
    let mut bytes = vec![FORM, AES_256_GCM];
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes
}

fn split_head(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
    let [FORM, AES_256_GCM, a, b, c, d] = *head else { return None };
    Some((u32::from_be_bytes([a, b, c, d]), rest))
}

fn split_wrapped(bytes: &[u8]) -> Option<(WrappedKey, &[u8])> {
    let (generation, rest) = split_head(bytes)?;
    let (iv, rest) = rest.split_first_chunk::<IV>()?;
    let (ciphertext, rest) = rest.split_first_chunk::<WRAPPED>()?;
    Some((WrappedKey { generation, iv: *iv, ciphertext: ciphertext.to_vec() }, rest))
}

fn split_sealed(bytes: &[u8]) -> Option<Sealed<'_>> {
    let (iv, ciphertext) = bytes.split_first_chunk::<IV>()?;
    (ciphertext.len() >= TAG).then_some(Sealed { iv, ciphertext })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_as_they_were_written_and_not_when_cut() {
        let wrapped = WrappedKey { generation: 7, iv: [1; 12], ciphertext: vec![2; 48] };
        let bytes = write_key(&wrapped, &[3; 12], &[4; 40]);
        let (back, sealed) = read_key(&bytes).unwrap();
        assert_eq!(back, wrapped);
        assert_eq!(sealed, Sealed { iv: &[3; 12], ciphertext: &[4; 40] });
        for cut in 0..(HEAD + IV + WRAPPED + IV + TAG) {
            assert!(read_key(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(read_wrapped(&bytes).is_err(), "a sealed key is no store key");
    }

    #[test]
    fn no_two_addresses_share_an_aad() {
        let at = |name: &str, version| KeyAddress { name: name.to_owned(), version };
        let all = [
            data_key_aad("a", 1, &at("k", 11)),
            data_key_aad("a", 11, &at("k", 1)),
            data_key_aad("a", 1, &at("k1", 1)),
            data_key_aad("b", 1, &at("k", 11)),
            pkcs8_aad("a", &at("k", 11)),
            store_key_aad("a", 1, (11, 0)),
            store_key_aad("a", 1, (11, 1)),
            store_key_aad("a", 1, (1, 11)),
            store_key_aad("a", 1, (1, 1)),
            store_key_aad("a", 1, (1, 0)),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(all.iter().skip(i + 1).all(|other| other != one), "{i}");
        }
    }
}
