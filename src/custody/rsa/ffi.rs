//! Owners for aws-lc's objects: each frees its own, and no error is left in the library's queue.
//!
//! The library copies primes into its frames: whatever reads, makes or uses private numbers asks for the
//! proof that it runs on a locked stack.
#![allow(unsafe_code)] // calls into C

use super::KeyError;
use crate::key::Mgf1Hash;
use crate::secret::{ArenaError, OnLockedStack, take_refusal};
use aws_lc_sys as lc;
use std::mem::MaybeUninit;
use std::ptr::{NonNull, null_mut};

/// Minds the library's queue of errors and the arena's refusals on this thread while calls are made.
pub(super) struct ErrorQueue(());

impl ErrorQueue {
    /// Forgets what lies there from before.
    pub(super) fn watch() -> Self {
        take_refusal();
        // SAFETY: no preconditions.
        unsafe { lc::ERR_clear_error() };
        Self(())
    }

    /// Whether the arena had no room for something since.
    pub(super) fn arena_refused(&self) -> bool {
        take_refusal()
    }

    /// What a failed call amounts to: no room, parts that do not fit, or `otherwise`.
    fn explain(&self, otherwise: KeyError) -> KeyError {
        if self.arena_refused() {
            return ArenaError::Full.into();
        }
        // SAFETY: reads and removes the oldest entry; 0 when there is none.
        let entries = std::iter::from_fn(|| match unsafe { lc::ERR_get_error() } {
            0 => None,
            packed => Some(((packed >> 24) & 0xff, packed & 0xfff)),
        });
        let (library, bad_parts) = (lc::ERR_LIB_RSA as u32, lc::RSA_R_BAD_RSA_PARAMETERS as u32);
        if entries.into_iter().any(|entry| entry == (library, bad_parts)) {
            KeyError::Inconsistent
        } else {
            otherwise
        }
    }
}

impl Drop for ErrorQueue {
    fn drop(&mut self) {
        // SAFETY: no preconditions.
        unsafe { lc::ERR_clear_error() };
    }
}

/// Owns an `EVP_PKEY` that holds an RSA private key.
pub(super) struct Key(NonNull<lc::EVP_PKEY>);

// SAFETY: aws-lc counts references to an EVP_PKEY atomically and locks what an RSA object changes on
// use (its Montgomery forms and blindings); nothing here changes a key after it was made.
unsafe impl Send for Key {}
// SAFETY: as above.
unsafe impl Sync for Key {}

impl Key {
    pub(super) fn generate(_: &OnLockedStack, bits: usize) -> Result<Self, KeyError> {
        let errors = ErrorQueue::watch();
        let bits = i32::try_from(bits).map_err(|_| KeyError::Library)?;
        let rsa = Rsa::new().ok_or_else(|| errors.explain(KeyError::Library))?;
        // SAFETY: an empty RSA object, and no callback.
        match unsafe { lc::RSA_generate_key_fips(rsa.0.as_ptr(), bits, null_mut()) } {
            1 => rsa.into_key().ok_or_else(|| errors.explain(KeyError::Library)),
            _ => Err(errors.explain(KeyError::Library)),
        }
    }

    /// Reads all of `der` as PKCS#8; the library checks the parts against each other.
    pub(super) fn parse_pkcs8(_: &OnLockedStack, der: &[u8]) -> Result<Self, KeyError> {
        let errors = ErrorQueue::watch();
        let mut input = bytes_to_read(der);
        // SAFETY: `input` reads from `der`, which outlives the call.
        let key = NonNull::new(unsafe { lc::EVP_parse_private_key(&mut input) }).map(Self);
        let key = key.ok_or_else(|| errors.explain(KeyError::Malformed))?;
        if input.len != 0 {
            return Err(KeyError::TrailingData);
        }
        // SAFETY: the key is alive.
        match unsafe { lc::EVP_PKEY_id(key.as_ptr()) } {
            lc::EVP_PKEY_RSA => Ok(key),
            _ => Err(KeyError::NotRsa),
        }
    }

    /// Reads all of `der` as an RSAPrivateKey (RFC 8017 §A.1.2), checked in the same way.
    pub(super) fn parse_pkcs1(_: &OnLockedStack, der: &[u8]) -> Result<Self, KeyError> {
        let errors = ErrorQueue::watch();
        let mut input = bytes_to_read(der);
        // SAFETY: as in `parse_pkcs8`.
        let rsa = NonNull::new(unsafe { lc::RSA_parse_private_key(&mut input) }).map(Rsa);
        let rsa = rsa.ok_or_else(|| errors.explain(KeyError::Malformed))?;
        if input.len != 0 {
            return Err(KeyError::TrailingData);
        }
        rsa.into_key().ok_or_else(|| errors.explain(KeyError::Library))
    }

    /// Signs and verifies once, and looks at n (`RSA_check_fips`).
    pub(super) fn check_pairwise(&self, _: &OnLockedStack) -> Result<(), KeyError> {
        let errors = ErrorQueue::watch();
        // SAFETY: the key is alive and holds an RSA object.
        match unsafe { lc::RSA_check_fips(self.rsa()) } {
            1 => Ok(()),
            _ => Err(errors.explain(KeyError::Inconsistent)),
        }
    }

    /// Size of the modulus in bits.
    pub(super) fn bits(&self) -> usize {
        // SAFETY: the key is alive.
        usize::try_from(unsafe { lc::EVP_PKEY_bits(self.as_ptr()) }).unwrap_or(0)
    }

    /// n, big-endian, in `len` bytes.
    pub(super) fn modulus(&self, len: usize) -> Result<Box<[u8]>, KeyError> {
        let mut out = vec![0; len].into_boxed_slice();
        // SAFETY: an RSA object that was parsed or generated has n; `out` is `len` bytes long.
        let written =
            unsafe { lc::BN_bn2bin_padded(out.as_mut_ptr(), len, lc::RSA_get0_n(self.rsa())) };
        if written == 1 { Ok(out) } else { Err(KeyError::Library) }
    }

    fn as_ptr(&self) -> *mut lc::EVP_PKEY {
        self.0.as_ptr()
    }

    fn rsa(&self) -> *mut lc::RSA {
        // SAFETY: the key is alive; every way to make one leaves an RSA object in it.
        unsafe { lc::EVP_PKEY_get0_RSA(self.as_ptr()) }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // SAFETY: ours, and freed once.
        unsafe { lc::EVP_PKEY_free(self.as_ptr()) };
    }
}

/// Owns an `RSA` object until it goes into a [`Key`].
struct Rsa(NonNull<lc::RSA>);

impl Rsa {
    fn new() -> Option<Self> {
        // SAFETY: no preconditions.
        NonNull::new(unsafe { lc::RSA_new() }).map(Self)
    }

    fn into_key(self) -> Option<Key> {
        // SAFETY: no preconditions.
        let key = Key(NonNull::new(unsafe { lc::EVP_PKEY_new() })?);
        // SAFETY: both are alive; the key takes a reference of its own.
        match unsafe { lc::EVP_PKEY_set1_RSA(key.as_ptr(), self.0.as_ptr()) } {
            1 => Some(key),
            _ => None,
        }
    }
}

impl Drop for Rsa {
    fn drop(&mut self) {
        // SAFETY: our own reference, given up once.
        unsafe { lc::RSA_free(self.0.as_ptr()) };
    }
}

/// One operation's context, so that threads share nothing but the key.
pub(super) struct Context(NonNull<lc::EVP_PKEY_CTX>);

impl Context {
    /// Ready to decrypt with OAEP, SHA-256 and the given MGF1 hash and label.
    pub(super) fn for_oaep(key: &Key, mgf1: Mgf1Hash, label: &[u8]) -> Option<Self> {
        // SAFETY: the key is alive; the context takes a reference of its own.
        let context = unsafe { lc::EVP_PKEY_CTX_new(key.as_ptr(), null_mut()) };
        let context = Self(NonNull::new(context)?);
        let raw = context.0.as_ptr();
        // SAFETY: the context is alive; digests are static objects of the library.
        let ready = unsafe {
            let mgf1 = match mgf1 {
                Mgf1Hash::Sha256 => lc::EVP_sha256(),
                Mgf1Hash::Sha1 => lc::EVP_sha1(),
            };
            lc::EVP_PKEY_decrypt_init(raw) == 1
                && lc::EVP_PKEY_CTX_set_rsa_padding(raw, lc::RSA_PKCS1_OAEP_PADDING) == 1
                && lc::EVP_PKEY_CTX_set_rsa_oaep_md(raw, lc::EVP_sha256()) == 1
                && lc::EVP_PKEY_CTX_set_rsa_mgf1_md(raw, mgf1) == 1
        };
        (ready && context.set_label(label)).then_some(context)
    }

    fn set_label(&self, label: &[u8]) -> bool {
        if label.is_empty() {
            return true;
        }
        // SAFETY: the copy is the context's once it took it, and ours to free otherwise.
        unsafe {
            let copy = lc::OPENSSL_memdup(label.as_ptr().cast(), label.len());
            if copy.is_null() {
                return false;
            }
            let set =
                lc::EVP_PKEY_CTX_set0_rsa_oaep_label(self.0.as_ptr(), copy.cast(), label.len());
            if set != 1 {
                lc::OPENSSL_free(copy);
            }
            set == 1
        }
    }

    /// Decrypts into `out`, which is as long as the modulus; the plaintext's length, or `None`.
    pub(super) fn decrypt(
        self,
        _: &OnLockedStack,
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Option<usize> {
        let mut len = out.len();
        // SAFETY: both slices live through the call, and `len` says how long `out` is.
        let done = unsafe {
            lc::EVP_PKEY_decrypt(
                self.0.as_ptr(),
                out.as_mut_ptr(),
                &mut len,
                ciphertext.as_ptr(),
                ciphertext.len(),
            )
        };
        (done == 1 && len <= out.len()).then_some(len)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: ours, and freed once.
        unsafe { lc::EVP_PKEY_CTX_free(self.0.as_ptr()) };
    }
}

/// A growing buffer of the library (`CBB`), which is arena memory in custody.
pub(super) struct Builder {
    cbb: lc::CBB,
    errors: ErrorQueue,
}

impl Builder {
    pub(super) fn new() -> Result<Self, KeyError> {
        /// A PKCS#8 of RSA-4096 has about 2 370 bytes.
        const CAPACITY: usize = 2560;
        let errors = ErrorQueue::watch();
        let mut cbb = MaybeUninit::<lc::CBB>::zeroed();
        // SAFETY: CBB_init writes all of it, and a zeroed one is valid too (`CBB_zero`).
        let (made, cbb) = unsafe {
            let made = lc::CBB_init(cbb.as_mut_ptr(), CAPACITY);
            (made, cbb.assume_init())
        };
        let builder = Self { cbb, errors };
        if made == 1 { Ok(builder) } else { Err(builder.errors.explain(KeyError::Library)) }
    }

    /// Writes all of a private key.
    pub(super) fn private_key(&mut self, _: &OnLockedStack, key: &Key) -> Result<(), KeyError> {
        // SAFETY: the buffer is initialised and the key is alive.
        self.write(|cbb| unsafe { lc::EVP_marshal_private_key(cbb, key.as_ptr()) })
    }

    /// Writes the public part of a key.
    pub(super) fn public_key(&mut self, key: &Key) -> Result<(), KeyError> {
        // SAFETY: as above.
        self.write(|cbb| unsafe { lc::EVP_marshal_public_key(cbb, key.as_ptr()) })
    }

    /// Runs one writing call, which returns 1 when it succeeded.
    fn write(&mut self, call: impl FnOnce(*mut lc::CBB) -> i32) -> Result<(), KeyError> {
        match call(&mut self.cbb) {
            1 => Ok(()),
            _ => Err(self.errors.explain(KeyError::Library)),
        }
    }

    /// Shows what was written, and frees it (wiped).
    pub(super) fn finish<T>(
        mut self,
        show: impl FnOnce(&[u8]) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let (mut data, mut len) = (null_mut(), 0);
        // SAFETY: the buffer is initialised; what it gives is ours to free.
        if unsafe { lc::CBB_finish(&mut self.cbb, &mut data, &mut len) } != 1 || data.is_null() {
            return Err(self.errors.explain(KeyError::Library));
        }
        // SAFETY: `len` bytes at `data` were written, and freed only below.
        let shown = show(unsafe { std::slice::from_raw_parts(data, len) });
        // SAFETY: allocated by the library, freed once.
        unsafe { lc::OPENSSL_free(data.cast()) };
        shown
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        // SAFETY: initialised, and harmless after CBB_finish.
        unsafe { lc::CBB_cleanup(&mut self.cbb) };
    }
}

fn bytes_to_read(bytes: &[u8]) -> lc::CBS {
    lc::CBS { data: bytes.as_ptr(), len: bytes.len() }
}

/// Decodes canonical base64 without white space into `out`; the length, or `None` if it is none.
pub(super) fn decode_base64(_: &OnLockedStack, text: &[u8], out: &mut [u8]) -> Option<usize> {
    let _errors = ErrorQueue::watch();
    let mut len = 0;
    // SAFETY: both slices live through the call; at most `out.len()` bytes are written.
    let done = unsafe {
        lc::EVP_DecodeBase64(out.as_mut_ptr(), &mut len, out.len(), text.as_ptr(), text.len())
    };
    (done == 1 && len <= out.len()).then_some(len)
}
