//! The calls that carry secrets, made directly so that PIN and keys go from arena to module and back.
//!
//! cryptoki takes a PIN and gives a plaintext as ordinary heap memory, and its function list is
//! private; so the same library is opened a second time here. The loader hands out the one that is
//! there already, with its state, and handles of cryptoki's sessions and objects are valid for it.
//!
//! What the module copies on its own side is out of reach: SoftHSM keeps secrets in locked memory
//! that it wipes; others may not. It runs on the thread's ordinary stack, since it may rely on that being
//! the thread's own; what it leaves there is wiped after each of these calls. And a module that hands our buffers to the kernel as they are
//! (`write(2)` to a network HSM) fails with EFAULT where the arena is secret memory: such a module
//! needs the arena's kind `mlock`.
#![allow(unsafe_code)] // PKCS#11 is a C interface; every call here passes slices that outlive it

use std::{ffi::c_void, mem::ManuallyDrop, path::Path, ptr};

use cryptoki::{object::ObjectHandle, session::Session};
use cryptoki_sys::{
    CK_C_Decrypt, CK_C_DecryptInit, CK_C_Encrypt, CK_C_EncryptInit, CK_C_Login, CK_FUNCTION_LIST,
    CK_GCM_PARAMS, CK_MECHANISM, CK_RV, CK_ULONG, CKM_AES_GCM, CKR_OK, CKU_USER,
};

use super::failure::Failure;
use crate::secret::{Pin, with_wiped_stack};

/// Length of the tag in bits; never less.
const TAG_BITS: CK_ULONG = 128;

/// What a call returns where the module has no such function.
const ABSENT: CK_RV = cryptoki_sys::CKR_FUNCTION_NOT_SUPPORTED;

/// Five functions of a module.
pub(super) struct Calls {
    login: CK_C_Login,
    encrypt_init: CK_C_EncryptInit,
    encrypt: CK_C_Encrypt,
    decrypt_init: CK_C_DecryptInit,
    decrypt: CK_C_Decrypt,
    // Never unloaded: the pointers above lie in it.
    _module: ManuallyDrop<cryptoki_sys::Pkcs11>,
}

impl Calls {
    /// Finds the functions of the library at `path`, which must be loaded and initialised already.
    pub(super) fn of(path: &Path) -> Result<Self, Failure> {
        // SAFETY: loading a library runs its initialisers; this one is in the process already.
        let module = unsafe { cryptoki_sys::Pkcs11::new(path) }
            .map_err(|error| Failure::answer("dlopen", error.to_string()))?;
        let list_of = *module
            .C_GetFunctionList
            .as_ref()
            .map_err(|error| Failure::answer("C_GetFunctionList", error.to_string()))?;
        let mut list: *mut CK_FUNCTION_LIST = ptr::null_mut();
        // SAFETY: `list` is a valid place for the pointer that the function gives.
        checked("C_GetFunctionList", unsafe { list_of(&mut list) })?;
        if list.is_null() {
            return Err(Failure::answer("C_GetFunctionList", "the function list is missing"));
        }
        // SAFETY: the module says that a function list is here, and it stays loaded.
        let list = unsafe { &*list };
        Ok(Self {
            login: list.C_Login,
            encrypt_init: list.C_EncryptInit,
            encrypt: list.C_Encrypt,
            decrypt_init: list.C_DecryptInit,
            decrypt: list.C_Decrypt,
            _module: ManuallyDrop::new(module),
        })
    }

    /// Logs the user in, once.
    pub(super) fn login(&self, session: &Session, pin: &Pin) -> Result<(), Failure> {
        let login = self.login.ok_or_else(|| Failure::call("C_Login", ABSENT))?;
        let pin = pin.expose();
        // SAFETY: the PIN's pointer and length belong together; the module only reads it.
        let code = with_wiped_stack(|| unsafe {
            login(session.handle(), CKU_USER, pin.as_ptr().cast_mut(), length(pin.len()))
        });
        checked("C_Login", code)
    }

    /// AES-GCM: `data` encrypted into `out`, with the tag after it; returns how many bytes that are.
    /// Whatever IV the token used is in `iv` afterwards: some put one of their own there.
    pub(super) fn gcm_encrypt(
        &self,
        session: &Session,
        key: ObjectHandle,
        iv: &mut [u8],
        aad: &[u8],
        data: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Failure> {
        let init = self.encrypt_init.ok_or_else(|| Failure::call("C_EncryptInit", ABSENT))?;
        let encrypt = self.encrypt.ok_or_else(|| Failure::call("C_Encrypt", ABSENT))?;
        // Both live until the last call is over: a token may write its IV as late as that.
        let mut parameter = gcm_parameter(iv, aad);
        let mut mechanism = gcm_mechanism(&mut parameter);
        // SAFETY: mechanism, parameter, IV and AAD are valid and outlive both calls.
        checked("C_EncryptInit", unsafe { init(session.handle(), &mut mechanism, key.handle()) })?;
        let mut len = length(out.len());
        // SAFETY: `data` is only read; `out` is writable for `len` bytes.
        let code = with_wiped_stack(|| unsafe {
            encrypt(
                session.handle(),
                data.as_ptr().cast_mut(),
                length(data.len()),
                out.as_mut_ptr(),
                &mut len,
            )
        });
        checked("C_Encrypt", code)?;
        if parameter.ulIvLen != length(iv.len()) {
            return Err(Failure::answer("C_Encrypt", "the token used an IV of another length"));
        }
        within("C_Encrypt", len, out)
    }

    /// AES-GCM: `data` (ciphertext and tag) decrypted into `out`. `out` must be as long as `data`:
    /// SoftHSM insists on room for the tag too.
    pub(super) fn gcm_decrypt(
        &self,
        session: &Session,
        key: ObjectHandle,
        iv: &[u8; 12],
        aad: &[u8],
        data: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Failure> {
        let init = self.decrypt_init.ok_or_else(|| Failure::call("C_DecryptInit", ABSENT))?;
        let decrypt = self.decrypt.ok_or_else(|| Failure::call("C_Decrypt", ABSENT))?;
        let mut iv = *iv;
        let mut parameter = gcm_parameter(&mut iv, aad);
        let mut mechanism = gcm_mechanism(&mut parameter);
        // SAFETY: mechanism, parameter, IV and AAD are valid and outlive both calls.
        checked("C_DecryptInit", unsafe { init(session.handle(), &mut mechanism, key.handle()) })?;
        let mut len = length(out.len());
        // SAFETY: `data` is only read; `out` is writable for `len` bytes.
        let code = with_wiped_stack(|| unsafe {
            decrypt(
                session.handle(),
                data.as_ptr().cast_mut(),
                length(data.len()),
                out.as_mut_ptr(),
                &mut len,
            )
        });
        checked("C_Decrypt", code)?;
        within("C_Decrypt", len, out)
    }
}

/// Some tokens read the IV's length in bits, some in bytes: both are set, and agree.
fn gcm_parameter(iv: &mut [u8], aad: &[u8]) -> CK_GCM_PARAMS {
    CK_GCM_PARAMS {
        pIv: iv.as_mut_ptr(),
        ulIvLen: length(iv.len()),
        ulIvBits: length(iv.len()) * 8,
        pAAD: aad.as_ptr().cast_mut(),
        ulAADLen: length(aad.len()),
        ulTagBits: TAG_BITS,
    }
}

fn gcm_mechanism(parameter: &mut CK_GCM_PARAMS) -> CK_MECHANISM {
    CK_MECHANISM {
        mechanism: CKM_AES_GCM,
        pParameter: ptr::from_mut(parameter).cast::<c_void>(),
        ulParameterLen: length(size_of::<CK_GCM_PARAMS>()),
    }
}

fn length(len: usize) -> CK_ULONG {
    len as CK_ULONG
}

fn checked(call: &str, code: CK_RV) -> Result<(), Failure> {
    if code == CKR_OK { Ok(()) } else { Err(Failure::call(call, code)) }
}

fn within(call: &str, len: CK_ULONG, out: &[u8]) -> Result<usize, Failure> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len <= out.len() {
        Ok(len)
    } else {
        Err(Failure::answer(call, format!("{len} bytes do not fit into {}", out.len())))
    }
}
