//! Public keys: read from and written to the usual forms, named by thumbprint, and encrypting.
//!
//! The `rsa` crate may work here because no private exponent is involved.

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use rsa::pkcs1::{DecodeRsaPublicKey, EncodeRsaPublicKey};
use rsa::pkcs8::{DecodePublicKey, EncodePublicKey, LineEnding};
use rsa::traits::PublicKeyParts;
use rsa::{BigUint, Oaep, RsaPublicKey};
use sha2::{Digest, Sha256};

use super::jwk::{self, Jwk, JwkError};
use super::pem::{self, PemError};
use super::{Algorithm, Mgf1Hash};

/// An RSA public key of one of our sizes with a sound exponent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: RsaPublicKey,
    algorithm: Algorithm,
}

/// Not a public key that can be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    #[error("the public key is not in a known form (SPKI or PKCS#1 in PEM, SPKI in DER, or JWK)")]
    UnknownForm,
    #[error("this is a private key; give the public one, and keep this out of sight")]
    Private,
    #[error(
        "this is a certificate; give its public key alone: `openssl x509 -in FILE -pubkey -noout`"
    )]
    Certificate,
    #[error("this is a public key of OpenSSH; convert it: `ssh-keygen -e -m PKCS8 -f FILE`")]
    OpenSsh,
    #[error("there is more than one PEM block; give the public key alone")]
    SeveralBlocks,
    #[error("something follows the end of the public key")]
    TrailingData,
    #[error("this is UTF-16 text; write it as plain text: `iconv -f UTF-16 -t UTF-8 FILE`")]
    Utf16,
    #[error("the public key is not well-formed {0}")]
    Malformed(&'static str),
    #[error("the modulus has {0} bits; it must have 2048, 3072 or 4096")]
    Size(usize),
    #[error("the modulus is even")]
    EvenModulus,
    #[error("the public exponent must be odd and from 65537 to 2^33 - 1")]
    Exponent,
    #[error(transparent)]
    Jwk(#[from] JwkError),
}

/// Nothing was encrypted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncryptError {
    /// Lengths in bytes.
    #[error(
        "the plaintext has {len} bytes; {} with OAEP and SHA-256 holds at most {limit}",
        algorithm.as_str()
    )]
    TooLong { len: usize, limit: usize, algorithm: Algorithm },
    #[error("the public key could not be applied")]
    Failed,
}

impl PublicKey {
    /// Reads any of the known forms: JWK, PEM, or SPKI in DER.
    pub fn from_any(bytes: &[u8]) -> Result<Self, PublicKeyError> {
        let bare = pem::bare(bytes);
        match std::str::from_utf8(bare) {
            Ok(text) if text.starts_with('{') => Self::from_jwk(text),
            Ok(text) if text.starts_with("ssh-rsa ") => Err(PublicKeyError::OpenSsh),
            _ if pem::is_pem(bytes) => Self::of_block(bytes),
            _ if bytes.first() == Some(&0x30) => Self::from_spki_der(bytes),
            _ if pem::block(bytes) == Err(PemError::Utf16) => Err(PublicKeyError::Utf16),
            _ => Err(PublicKeyError::UnknownForm),
        }
    }

    /// SubjectPublicKeyInfo with rsaEncryption in DER (RFC 5280 §4.1, RFC 8017 §A.1).
    pub fn from_spki_der(der: &[u8]) -> Result<Self, PublicKeyError> {
        let key = RsaPublicKey::from_public_key_der(der);
        Self::checked(key.map_err(|_| PublicKeyError::Malformed("SPKI of an RSA key"))?)
    }

    /// PEM of an SPKI (`PUBLIC KEY`) or of a PKCS#1 key (`RSA PUBLIC KEY`), as its label says.
    pub fn from_pem(pem: &str) -> Result<Self, PublicKeyError> {
        Self::of_block(pem.as_bytes())
    }

    fn of_block(text: &[u8]) -> Result<Self, PublicKeyError> {
        let block = pem::block(text).map_err(|error| match error {
            PemError::Malformed => PublicKeyError::Malformed("PEM"),
            PemError::Several => PublicKeyError::SeveralBlocks,
            PemError::Trailing => PublicKeyError::TrailingData,
            PemError::Utf16 => PublicKeyError::Utf16,
        })?;
        match block.label {
            b"PUBLIC KEY" => {
                let der = block.decode().ok_or(PublicKeyError::Malformed("PEM"))?;
                Self::from_spki_der(&der)
            }
            b"RSA PUBLIC KEY" => {
                let der = block.decode().ok_or(PublicKeyError::Malformed("PEM"))?;
                let key = RsaPublicKey::from_pkcs1_der(&der);
                Self::checked(key.map_err(|_| PublicKeyError::Malformed("PKCS#1 PEM"))?)
            }
            b"CERTIFICATE" | b"TRUSTED CERTIFICATE" | b"X509 CERTIFICATE" => {
                Err(PublicKeyError::Certificate)
            }
            label if label.ends_with(b"PRIVATE KEY") => Err(PublicKeyError::Private),
            _ => Err(PublicKeyError::UnknownForm),
        }
    }

    /// A JSON Web Key for encryption with RSA-OAEP-256 (RFC 7517, RFC 7518 §6.3). Members that are not
    /// known are passed over, as RFC 7517 §4 asks; private ones, doubled ones and contradicting ones refused.
    pub fn from_jwk(json: &str) -> Result<Self, PublicKeyError> {
        let (n, e) = jwk::parse(json)?;
        Self::from_parts(&n, &e)
    }

    /// From the modulus and the public exponent, big-endian.
    pub fn from_parts(n: &[u8], e: &[u8]) -> Result<Self, PublicKeyError> {
        let (n, e) = (BigUint::from_bytes_be(n), BigUint::from_bytes_be(e));
        Self::checked(RsaPublicKey::new_unchecked(n, e))
    }

    /// Size: one of ours. Exponent: odd and above 2^16 (FIPS 186-5 §A.1.1), within what the arithmetic takes.
    fn checked(key: RsaPublicKey) -> Result<Self, PublicKeyError> {
        let bits = key.n().bits();
        let algorithm = Algorithm::of_bits(bits).ok_or(PublicKeyError::Size(bits))?;
        let is_odd =
            |number: &BigUint| number.to_bytes_le().first().is_some_and(|low| low & 1 == 1);
        if !is_odd(key.n()) {
            return Err(PublicKeyError::EvenModulus);
        }
        let least = BigUint::from(65_537u32);
        let most = BigUint::from(RsaPublicKey::MAX_PUB_EXPONENT);
        if !is_odd(key.e()) || *key.e() < least || *key.e() > most {
            return Err(PublicKeyError::Exponent);
        }
        Ok(Self { key, algorithm })
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The modulus, big-endian, without leading zeros.
    pub fn modulus(&self) -> Vec<u8> {
        self.key.n().to_bytes_be()
    }

    /// The public exponent, big-endian, without leading zeros.
    pub fn exponent(&self) -> Vec<u8> {
        self.key.e().to_bytes_be()
    }

    /// SubjectPublicKeyInfo in DER.
    pub fn spki_der(&self) -> Vec<u8> {
        self.key.to_public_key_der().expect(ENCODES).into_vec()
    }

    /// SubjectPublicKeyInfo in PEM: `PUBLIC KEY`.
    pub fn spki_pem(&self) -> String {
        self.key.to_public_key_pem(LineEnding::LF).expect(ENCODES)
    }

    /// PKCS#1 in PEM: `RSA PUBLIC KEY`.
    pub fn pkcs1_pem(&self) -> String {
        self.key.to_pkcs1_pem(LineEnding::LF).expect(ENCODES)
    }

    /// A JSON Web Key for encryption. `alg` stands there only where RFC 7518 §4.1 has a name for what the
    /// key does: OAEP with SHA-256 and MGF1-SHA-1 has none.
    pub fn jwk(&self, mgf1_hash: Mgf1Hash) -> Jwk {
        Jwk {
            kty: "RSA",
            public_key_use: "enc",
            alg: match mgf1_hash {
                Mgf1Hash::Sha256 => Some(jwk::RSA_OAEP_256),
                Mgf1Hash::Sha1 => None,
            },
            kid: self.kid(),
            n: BASE64_URL_SAFE_NO_PAD.encode(self.modulus()),
            e: BASE64_URL_SAFE_NO_PAD.encode(self.exponent()),
            origin: None,
        }
    }

    /// The RFC 7638 thumbprint, base64url: SHA-256 over `{"e":"…","kty":"RSA","n":"…"}`.
    pub fn kid(&self) -> String {
        let n = BASE64_URL_SAFE_NO_PAD.encode(self.modulus());
        let e = BASE64_URL_SAFE_NO_PAD.encode(self.exponent());
        let canonical = format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#);
        BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(canonical))
    }

    /// RSAES-OAEP with SHA-256 (RFC 8017 §7.1.1); `label` may be any bytes and is mostly empty. The answer
    /// is as long as the modulus.
    pub fn encrypt(
        &self,
        mgf1_hash: Mgf1Hash,
        plaintext: &[u8],
        label: &[u8],
    ) -> Result<Vec<u8>, EncryptError> {
        let limit = self.algorithm.max_plaintext_len();
        if plaintext.len() > limit {
            let (len, algorithm) = (plaintext.len(), self.algorithm);
            return Err(EncryptError::TooLong { len, limit, algorithm });
        }
        match mgf1_hash {
            Mgf1Hash::Sha256 => self.encrypt_mgf1_sha256(plaintext, label),
            Mgf1Hash::Sha1 => self.encrypt_mgf1_sha1(plaintext, label),
        }
    }

    /// On aws-lc: some forty times faster than `rsa`, and what it allocates is wiped.
    fn encrypt_mgf1_sha256(&self, plaintext: &[u8], label: &[u8]) -> Result<Vec<u8>, EncryptError> {
        let failed = |_: Unspecified| EncryptError::Failed;
        let key = PublicEncryptingKey::from_der(&self.spki_der());
        let key = key.map_err(|_| EncryptError::Failed)?;
        let key = OaepPublicEncryptingKey::new(key).map_err(failed)?;
        let mut ciphertext = vec![0; key.ciphertext_size()];
        let written = key
            .encrypt(&OAEP_SHA256_MGF1SHA256, plaintext, &mut ciphertext, Some(label))
            .map_err(failed)?
            .len();
        ciphertext.truncate(written);
        Ok(ciphertext)
    }

    /// On `rsa`: aws-lc-rs does not offer two hashes in one OAEP.
    fn encrypt_mgf1_sha1(&self, plaintext: &[u8], label: &[u8]) -> Result<Vec<u8>, EncryptError> {
        let padding = Oaep {
            // The crate's own label is text. OAEP only uses the label's hash, so a digest that has taken
            // in the label and is then given an empty one yields the same for any bytes.
            digest: Box::new(Sha256::new_with_prefix(label)),
            mgf_digest: Box::new(sha1::Sha1::new()),
            label: None,
        };
        self.key.encrypt(&mut KernelRandom, padding, plaintext).map_err(|_| EncryptError::Failed)
    }
}

const ENCODES: &str = "two integers of bounded size have an encoding";

/// The kernel's random numbers in the shape that `rsa` asks for.
struct KernelRandom;

impl rsa::rand_core::CryptoRng for KernelRandom {}

impl rsa::rand_core::RngCore for KernelRandom {
    fn next_u32(&mut self) -> u32 {
        rsa::rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rsa::rand_core::impls::next_u64_via_fill(self)
    }

    /// getrandom(2) does not fail once the kernel is seeded; without randomness nothing may go on.
    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the kernel has random numbers");
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rsa::rand_core::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

#[cfg(test)]
#[path = "public_tests.rs"]
mod tests;
