//! AES-256-GCM in the process: the only file that calls `aes-gcm`.
//!
//! Every seal draws a fresh random 12-byte IV; nobody outside can choose one. The cipher works in
//! blocks on the stack and leaves them there, with its key schedule: the stack is wiped after it.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};

use super::protocol::Fault;
use super::sealed::Sealed;
use crate::secret::{DataKey, SecretBytes, with_wiped_stack};

/// Length of the authentication tag in bytes.
pub const TAG: usize = 16;

/// A fresh IV from the kernel.
fn fresh_iv() -> Result<[u8; 12], Fault> {
    let mut iv = [0; 12];
    getrandom::fill(&mut iv)
        .map_err(|_| Fault::TokenCall("the kernel gave no random bytes".to_owned()))?;
    Ok(iv)
}

/// Seals `plaintext` under `key`, bound to `aad`. Returns the IV, and ciphertext with tag.
pub fn seal(key: &DataKey, aad: &[u8], plaintext: &[u8]) -> Result<([u8; 12], Vec<u8>), Fault> {
    let iv = fresh_iv()?;
    let mut arena = SecretBytes::copy_from(plaintext).map_err(|_| Fault::ArenaFull)?;
    let sealing =
        || cipher(key).encrypt_inout_detached(&Nonce::from(iv), aad, arena.expose_mut().into());
    let tag = with_wiped_stack(sealing)
        .map_err(|_| Fault::Protocol("too long to be sealed".to_owned()))?;
    let mut ciphertext = Vec::with_capacity(plaintext.len() + TAG);
    ciphertext.extend_from_slice(arena.expose());
    ciphertext.extend_from_slice(&tag);
    Ok((iv, ciphertext))
}

/// Opens what [`seal`] made, into the arena.
///
/// # Errors
/// [`Fault::SealBroken`] where key, AAD, IV, ciphertext or tag is not what it was.
pub fn open(key: &DataKey, aad: &[u8], sealed: Sealed<'_>) -> Result<SecretBytes, Fault> {
    let (ciphertext, tag) = sealed.ciphertext.split_last_chunk::<TAG>().ok_or(Fault::SealBroken)?;
    let mut arena = SecretBytes::copy_from(ciphertext).map_err(|_| Fault::ArenaFull)?;
    let (iv, tag) = (Nonce::from(*sealed.iv), Tag::from(*tag));
    let opening = || cipher(key).decrypt_inout_detached(&iv, aad, arena.expose_mut().into(), &tag);
    with_wiped_stack(opening).map_err(|_| Fault::SealBroken)?;
    Ok(arena)
}

fn cipher(key: &DataKey) -> Aes256Gcm {
    Aes256Gcm::new(key.expose().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const FILE: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/vectors/wycheproof/aes_gcm_test.json");

    fn bytes(hex: &Value) -> Vec<u8> {
        let digits = hex.as_str().expect("hexadecimal digits").as_bytes();
        let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    /// Project Wycheproof's cases of our sizes open or are refused as they should. The others cannot be
    /// put to this code: a data key has 256 bits, an IV 96, and the tag's 128 are split off by type.
    #[test]
    fn every_case_of_wycheproof_comes_out_as_it_should() {
        crate::secret::start(&Default::default(), crate::secret::Use::Custody).expect("an arena");
        let text = std::fs::read(FILE).unwrap_or_else(|error| panic!("{FILE}: {error}"));
        let vectors: Value = serde_json::from_slice(&text).expect("JSON");
        let (mut opened, mut refused, mut foreign) = (0, 0, 0);
        for group in vectors["testGroups"].as_array().expect("groups") {
            assert_eq!(group["tagSize"], 128);
            for case in group["tests"].as_array().expect("cases") {
                let key = SecretBytes::copy_from(&bytes(&case["key"])).expect("room");
                let iv: Result<[u8; 12], _> = bytes(&case["iv"]).try_into();
                let (Some(key), Ok(iv)) = (DataKey::from_bytes(key), iv) else {
                    assert_ne!((&group["keySize"], &group["ivSize"]), (&256.into(), &96.into()));
                    foreign += 1;
                    continue;
                };
                let ciphertext = [bytes(&case["ct"]), bytes(&case["tag"])].concat();
                let sealed = Sealed { iv: &iv, ciphertext: &ciphertext };
                let result = open(&key, &bytes(&case["aad"]), sealed);
                match (case["result"].as_str(), result) {
                    (Some("valid"), Ok(plaintext)) => {
                        assert_eq!(plaintext.expose(), bytes(&case["msg"]), "{}", case["tcId"]);
                        opened += 1;
                    }
                    (Some("invalid"), Err(Fault::SealBroken)) => refused += 1,
                    (expected, result) => {
                        panic!("case {} is {expected:?}: {:?}", case["tcId"], result.err());
                    }
                }
            }
        }
        assert_eq!((opened, refused, foreign), (39, 27, 250), "valid, invalid, of other sizes");
        assert_eq!(vectors["numberOfTests"], opened + refused + foreign);
    }

    #[test]
    fn what_is_shorter_than_a_tag_is_refused() {
        crate::secret::start(&Default::default(), crate::secret::Use::Custody).expect("an arena");
        let key = DataKey::generate().expect("a key");
        for len in 0..TAG {
            let sealed = Sealed { iv: &[0; 12], ciphertext: &[0; TAG][..len] };
            assert_eq!(open(&key, b"", sealed).err(), Some(Fault::SealBroken), "{len}");
        }
    }
}
