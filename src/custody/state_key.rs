//! The key of the digest over the store's records, derived from a store key: the store's process adds up with it, and
//! never has the store key itself.
//!
//! ```text
//! state key = KDF in counter mode (NIST SP 800-108r1, 4.1), PRF HMAC-SHA-256, K_IN = store key,
//!             FixedInfo = "store-state" ‖ appliance ‖ id of the store key, 256 bits
//! ```

use aws_lc_rs::kdf::{KbkdfCtrHmacAlgorithmId, get_kbkdf_ctr_hmac_algorithm, kbkdf_ctr_hmac};

use super::protocol::Fault;
use super::sealed;
use crate::secret::{DataKey, OnLockedStack, SecretBytes, StateKey, on_locked_stack};

/// Derives the key; `id` is the store key's.
///
/// # Errors
/// [`Fault::ArenaFull`] where locked memory has no room for it.
pub(super) fn state_key(appliance: &str, id: u32, store_key: &DataKey) -> Result<StateKey, Fault> {
    let failed = || Fault::Protocol("the key of the store's state cannot be derived".to_owned());
    let algorithm = get_kbkdf_ctr_hmac_algorithm(KbkdfCtrHmacAlgorithmId::Sha256);
    let algorithm = algorithm.ok_or_else(failed)?;
    let info = sealed::store_state_info(appliance, id);
    let mut derived = SecretBytes::zeroed(DataKey::LEN).map_err(|_| Fault::ArenaFull)?;
    let derive = |_: &OnLockedStack| {
        kbkdf_ctr_hmac(algorithm, store_key.expose(), &info, derived.expose_mut())
    };
    let done = on_locked_stack(derive).map_err(|_| Fault::ArenaFull)?;
    done.map_err(|_| failed())?;
    Ok(StateKey::new(derived))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{Settings, Use, start};

    #[test]
    fn it_depends_on_the_store_key_the_appliance_and_the_number() {
        start(&Settings::default(), Use::Custody).unwrap();
        let key =
            |byte: u8| DataKey::from_bytes(SecretBytes::copy_from(&[byte; 32]).unwrap()).unwrap();
        let derived = |appliance, id, byte| {
            state_key(appliance, id, &key(byte)).ok().unwrap().expose().to_vec()
        };
        let one = derived("a", 1, 7);
        assert_eq!((one.len(), &one), (32, &derived("a", 1, 7)));
        for other in [derived("b", 1, 7), derived("a", 2, 7), derived("a", 1, 8)] {
            assert_ne!(one, other);
        }
        assert_ne!(one, [7; 32]);
    }
}
