//! One type per role of a secret, so that a data key is never taken for a PIN.

use super::{ArenaError, SecretBytes};

/// A secret of any length in one role: made from arena memory, shown only by `expose`.
macro_rules! role {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name(SecretBytes);

        impl $name {
            /// Takes over bytes that already lie in the arena.
            pub fn new(bytes: SecretBytes) -> Self {
                Self(bytes)
            }

            /// Copies `bytes` into the arena; wiping the source is the caller's duty.
            pub fn copy_from(bytes: &[u8]) -> Result<Self, ArenaError> {
                Ok(Self(SecretBytes::copy_from(bytes)?))
            }

            /// The bytes themselves: every call is a place to look at in a review.
            pub fn expose(&self) -> &[u8] {
                self.0.expose()
            }
        }
    };
}

role! {
    /// What a client wants kept: the cleartext of an encryption or the result of a decryption.
    Plaintext
}
role! {
    /// A private key in PKCS#8 DER (RFC 5208), or what a client sent to be imported as one.
    Pkcs8Der
}
role! {
    /// The user PIN of the token (PKCS#11 `CKU_USER`).
    Pin
}
role! {
    /// The key of the digest over the store's records (HMAC-SHA-256, 32 bytes): it opens nothing.
    StateKey
}

/// A 256-bit AES key that lives outside the token: a data key or the store key.
pub struct DataKey(SecretBytes);

impl DataKey {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// A fresh key from the kernel's random number generator.
    pub fn generate() -> Result<Self, ArenaError> {
        let mut bytes = SecretBytes::zeroed(Self::LEN)?;
        getrandom::fill(bytes.expose_mut()).map_err(|_| ArenaError::Random)?;
        Ok(Self(bytes))
    }

    /// Takes over bytes in the arena; `None` unless they are exactly [`DataKey::LEN`] long.
    pub fn from_bytes(bytes: SecretBytes) -> Option<Self> {
        (bytes.expose().len() == Self::LEN).then_some(Self(bytes))
    }

    /// The key's bytes.
    pub fn expose(&self) -> &[u8; Self::LEN] {
        self.0.expose().try_into().expect("a data key is made with 32 bytes")
    }

    /// Compares in constant time.
    pub fn same_as(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(self.expose(), other.expose()).is_ok()
    }
}
