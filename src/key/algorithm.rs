//! The algorithms a key can have, and what each can hold.

use serde::{Deserialize, Serialize};

/// An RSA modulus size; all are used with RSAES-OAEP and SHA-256 (RFC 8017 §7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Algorithm {
    #[serde(rename = "RSA-2048")]
    Rsa2048,
    #[serde(rename = "RSA-3072")]
    Rsa3072,
    #[serde(rename = "RSA-4096")]
    Rsa4096,
}

impl Algorithm {
    /// All of them, smallest first.
    pub const ALL: [Algorithm; 3] = [Algorithm::Rsa2048, Algorithm::Rsa3072, Algorithm::Rsa4096];

    /// The algorithm of a modulus of `bits` bits, if it is one of ours.
    pub fn of_bits(bits: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.bits() == bits)
    }

    /// Size of the modulus in bits.
    pub fn bits(self) -> usize {
        match self {
            Algorithm::Rsa2048 => 2048,
            Algorithm::Rsa3072 => 3072,
            Algorithm::Rsa4096 => 4096,
        }
    }

    /// Length of a ciphertext in bytes.
    pub fn ciphertext_len(self) -> usize {
        self.bits() / 8
    }

    /// The longest plaintext in bytes: k - 2·hLen - 2 (RFC 8017 §7.1.1), 190 for RSA-2048.
    pub fn max_plaintext_len(self) -> usize {
        self.ciphertext_len() - 2 * 32 - 2
    }

    /// The name on the wire: `RSA-2048`.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Rsa2048 => "RSA-2048",
            Algorithm::Rsa3072 => "RSA-3072",
            Algorithm::Rsa4096 => "RSA-4096",
        }
    }
}

/// The hash inside MGF1. SHA-1 is for client libraries that default to it; it is a setting of a key,
/// never tried in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Mgf1Hash {
    #[default]
    #[serde(rename = "SHA-256")]
    Sha256,
    #[serde(rename = "SHA-1")]
    Sha1,
}

impl Mgf1Hash {
    /// The name on the wire: `SHA-256`.
    pub fn as_str(self) -> &'static str {
        match self {
            Mgf1Hash::Sha256 => "SHA-256",
            Mgf1Hash::Sha1 => "SHA-1",
        }
    }
}
