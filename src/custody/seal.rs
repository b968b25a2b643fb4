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
        .map_err(|_| Fault::TokenUnavailable("the kernel gave no random bytes".to_owned()))?;
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
