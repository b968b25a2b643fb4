//! RSA private keys: made, read, written and used on aws-lc, whose memory is the locked arena.
//!
//! A key's numbers exist only inside the library's own objects, and those lie where
//! `secret::hook` puts them; the copies that it makes in its frames lie on a stack in locked memory, on
//! which every function here that touches private numbers does its work. Decryption is RSAES-OAEP with
//! SHA-256 (RFC 8017 §7.1).

mod code_path;
mod ffi;
mod form;
mod jwk;
#[cfg(test)]
mod tests;

use crate::key::{Algorithm, Mgf1Hash};
use crate::secret::{ArenaError, OnLockedStack, Pkcs8Der, Plaintext, SecretBytes, on_locked_stack};
pub use code_path::code_path;
use ffi::{Builder, Context, ErrorQueue, Key};
use form::Form;

/// Why there is no private key to work with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("not a private key in PKCS#8 or PKCS#1, as DER or as one PEM block, and no JWK")]
    Malformed,
    #[error(
        "more than one PEM block: give the private key alone: `openssl pkey -in FILE -out key.pem`"
    )]
    SeveralBlocks,
    #[error("something follows the end of the private key")]
    TrailingData,
    #[error("the private key is encrypted: decrypt it first: `openssl pkey -in FILE -out key.pem`")]
    Encrypted,
    #[error("a public key, not a private one: give the private key that belongs to it")]
    Public,
    #[error("a certificate, which holds no private key: give the private key that belongs to it")]
    Certificate,
    #[error(
        "a private key of OpenSSH: convert a copy of it, which this overwrites: `ssh-keygen -p -N '' -m PKCS8 -f FILE`"
    )]
    OpenSsh,
    #[error(
        "a PKCS#12 archive (.p12, .pfx): take the key out of it: `openssl pkcs12 -in FILE -nocerts -nodes \
         -out key.pem`"
    )]
    Pkcs12,
    /// `at` is where its RSAPrivateKey lies.
    #[error(
        "an RSA-PSS key, which is for signatures alone; where it is to decrypt all the same, take it as a \
         plain RSA key: `openssl asn1parse -in FILE -strparse {at} -noout -out key.der` (with -inform DER, \
         where FILE is DER)"
    )]
    RsaPss { at: usize },
    #[error(
        "a multi-prime RSA key, which no command converts: make another with two primes: `openssl genpkey \
         -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out key.pem`"
    )]
    MultiPrime,
    #[error("UTF-16 text: write it as plain text: `iconv -f UTF-16 -t UTF-8 FILE`")]
    Utf16,
    #[error(
        "not a JWK of an RSA private key (RFC 7518 §6.3): its numbers must be base64url without padding and \
         leading zeros"
    )]
    JwkMalformed,
    #[error("the JWK lacks n, e, p, q, dp, dq or qi: export it with all of them")]
    JwkPrimes,
    #[error("the JWK is for another use: its use must be enc, its alg RSA-OAEP-256, or absent")]
    JwkUse,
    #[error("not an RSA key (rsaEncryption, 1.2.840.113549.1.1.1)")]
    NotRsa,
    #[error("the modulus has {0} bits: it must have 2048, 3072 or 4096")]
    ModulusSize(usize),
    #[error("the public exponent must be odd, at least 65537 and below 2^32")]
    PublicExponent,
    #[error("the parts of the private key do not belong together, or some are missing")]
    Inconsistent,
    #[error("the cryptographic library failed")]
    Library,
    #[error(transparent)]
    Arena(#[from] ArenaError),
}

/// Why nothing came out of a decryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecryptError {
    /// Says nothing about what was wrong with the ciphertext: the difference is an oracle.
    #[error("decryption failed")]
    Failed,
    /// The ciphertext was not judged at all.
    #[error(transparent)]
    Arena(#[from] ArenaError),
}

/// An RSA private key, open in the arena. Many threads may use one at once.
pub struct PrivateKey {
    key: Key,
    algorithm: Algorithm,
    /// n, big-endian, as long as a ciphertext.
    modulus: Box<[u8]>,
}

impl PrivateKey {
    /// A new key with e = 65537 (FIPS 186-5 §5.1, with its pairwise test).
    pub fn generate(algorithm: Algorithm) -> Result<Self, KeyError> {
        /// The search for primes gives up about once in a million keys; three in a row means
        /// something else is wrong.
        const ATTEMPTS: usize = 3;
        let mut last = KeyError::Library;
        for _ in 0..ATTEMPTS {
            match on_locked_stack(|stack| Key::generate(stack, algorithm.bits()))? {
                Ok(key) => return Self::checked(key),
                Err(KeyError::Library) => last = KeyError::Library,
                Err(other) => return Err(other),
            }
        }
        Err(last)
    }

    /// Reads a PKCS#8 DER (RFC 5208), nothing before or after it. Size, exponent and the relations
    /// between the parts are checked.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        on_locked_stack(|stack| match form::of_der(der)? {
            Form::Pkcs8 => Self::checked(Key::parse_pkcs8(stack, der)?),
            Form::Pkcs1 => Err(KeyError::Malformed),
        })?
    }

    /// Reads a key that a caller brings: PKCS#8 or PKCS#1, DER or exactly one PEM block, or a JWK. Beyond what
    /// [`PrivateKey::from_pkcs8`] checks, it must sign and verify and n must be no prime power
    /// (SP 800-89 §5.3.3), which unmasks parts that merely look consistent.
    pub fn import(input: &[u8]) -> Result<Self, KeyError> {
        on_locked_stack(|stack| Self::import_on(stack, input))?
    }

    fn import_on(stack: &OnLockedStack, input: &[u8]) -> Result<Self, KeyError> {
        let decoded;
        let der = if form::is_der(input) {
            input
        } else if jwk::is_json(input) {
            decoded = jwk::to_pkcs1(stack, input)?;
            decoded.expose()
        } else {
            decoded = form::decode_pem(stack, input)?;
            decoded.expose()
        };
        let key = match form::of_der(der)? {
            Form::Pkcs8 => Key::parse_pkcs8(stack, der)?,
            Form::Pkcs1 => Key::parse_pkcs1(stack, der)?,
        };
        key.check_pairwise(stack)?;
        Self::checked(key)
    }

    /// The key as PKCS#8 DER, written in the arena.
    pub fn to_pkcs8(&self) -> Result<Pkcs8Der, KeyError> {
        on_locked_stack(|stack| {
            let mut der = Builder::new()?;
            der.private_key(stack, &self.key)?;
            der.finish(|bytes| Ok(Pkcs8Der::new(SecretBytes::copy_from(bytes)?)))
        })?
    }

    /// The public key as SubjectPublicKeyInfo DER (RFC 5280 §4.1).
    pub fn public(&self) -> Result<Vec<u8>, KeyError> {
        let mut der = Builder::new()?;
        der.public_key(&self.key)?;
        der.finish(|bytes| Ok(bytes.to_vec()))
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// What the key takes of the arena at most, in bytes, once up to `threads` threads have used it at
    /// the same time: its numbers and their Montgomery forms, and a blinding for each thread.
    /// (Measured for aws-lc 0.47: 5 888 bytes for RSA-2048 and 9 472 for RSA-4096 with one thread.)
    pub fn arena_bytes(&self, threads: usize) -> usize {
        let k = self.modulus.len();
        14 * k + 2304 + threads.saturating_sub(1) * (2 * k + 512)
    }

    /// RSAES-OAEP-DECRYPT with SHA-256 (RFC 8017 §7.1.2); `label` is L, empty if none was given.
    ///
    /// Whatever is wrong with the ciphertext, the error is the same and one private operation was
    /// done: a ciphertext that the library would answer without an operation (of the wrong length, 0,
    /// 1, n - 1, or a number not below n) is replaced by one that fits and the result thrown away.
    pub fn decrypt_oaep(
        &self,
        mgf1: Mgf1Hash,
        ciphertext: &[u8],
        label: &[u8],
    ) -> Result<Plaintext, DecryptError> {
        let fits = ciphertext.len() == self.modulus.len()
            && is_between_one_and_the_last(ciphertext, &self.modulus);
        let mut room = [0; 512];
        let stand_in = self.stand_in(&mut room);
        let input = if fits { ciphertext } else { stand_in };
        let errors = ErrorQueue::watch();
        let mut out = SecretBytes::zeroed(self.modulus.len())?;
        let len = on_locked_stack(|stack| {
            Context::for_oaep(&self.key, mgf1, label)
                .and_then(|context| context.decrypt(stack, input, out.expose_mut()))
        })?;
        match len {
            Some(len) if fits => {
                out.truncate(len);
                Ok(Plaintext::new(out))
            }
            _ if errors.arena_refused() => Err(ArenaError::Full.into()),
            _ => Err(DecryptError::Failed),
        }
    }

    /// The ciphertext that is worked on in place of one that cannot be one: n without its first bit, a
    /// number as long as any.
    fn stand_in<'a>(&self, room: &'a mut [u8; 512]) -> &'a [u8] {
        let len = self.modulus.len().min(room.len());
        let number = &mut room[..len];
        number.copy_from_slice(&self.modulus[..len]);
        if let Some(first) = number.first_mut() {
            *first &= 0x7f;
        }
        number
    }

    fn checked(key: Key) -> Result<Self, KeyError> {
        let bits = key.bits();
        let algorithm = Algorithm::of_bits(bits).ok_or(KeyError::ModulusSize(bits))?;
        let modulus = key.modulus(algorithm.ciphertext_len())?;
        Ok(Self { key, algorithm, modulus })
    }
}

/// Whether 1 < number < n - 1, for an odd n of the same length, both big-endian. Always reads all of both.
/// (The three others below n that can be named, 0, 1 and n - 1, are their own results in RSA.)
fn is_between_one_and_the_last(number: &[u8], modulus: &[u8]) -> bool {
    let is_last = |at: usize| at + 1 == number.len();
    let bytes = || number.iter().zip(modulus).enumerate();
    // n - 1 differs from n in its last bit alone.
    let from_last =
        bytes().fold(0, |all, (at, (byte, n))| all | (byte ^ n ^ u8::from(is_last(at))));
    let from_one = bytes().fold(0, |all, (at, (byte, _))| all | (byte ^ u8::from(is_last(at))));
    let from_zero = number.iter().fold(0, |all, byte| all | byte);
    let is_below = is_below(number, modulus);
    is_below & (from_last != 0) & (from_one != 0) & (from_zero != 0)
}

/// Whether a big-endian number is below another of the same length. Always looks at all of both.
fn is_below(number: &[u8], other: &[u8]) -> bool {
    let word = |bytes: &[u8]| bytes.iter().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
    let words = number.rchunks(8).map(word).zip(other.rchunks(8).map(word));
    words.fold(false, |borrow, (a, b)| {
        let (difference, first) = a.overflowing_sub(b);
        let (_, second) = difference.overflowing_sub(u64::from(borrow));
        first | second
    })
}
