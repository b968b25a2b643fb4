//! A PKCS#11 module that forwards to SoftHSM and goes wrong on demand: for tests of what a module may do.
//!
//! It finds its orders in the file that `PKCS11_SHIM` names, read anew at every call; one order a line,
//! all that fit a call are followed in their order:
//!
//! ```text
//! C_Decrypt code 0x30      returns this value and does nothing
//! C_Decrypt lie 0x30       does it, and returns this value
//! C_Login abort            ends the process; so does `segv`
//! C_Sign hang              never comes back
//! * delay 5                comes back 5 ms later
//! C_Decrypt logout         somebody logs out before it
//! C_Decrypt count          adds a line with its name to the file with `.calls` behind its name
//! ```
//!
//! Calls of `C_Login` are always counted.

#![allow(non_snake_case)] // the names are PKCS#11's

use std::ffi::c_void;
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use cryptoki_sys::*;

const SOFTHSM: &std::ffi::CStr = c"/usr/lib/softhsm/libsofthsm2.so";

struct Module {
    real: CK_FUNCTION_LIST,
    list: CK_FUNCTION_LIST,
}

// SAFETY: the lists hold a version and function pointers, and are never written once they stand.
unsafe impl Send for Module {}
// SAFETY: see above.
unsafe impl Sync for Module {}

static MODULE: OnceLock<Option<Module>> = OnceLock::new();

/// The one symbol that a module has to have.
///
/// # Safety
/// `list` is a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    let Some(module) = MODULE.get_or_init(load) else { return CKR_LIBRARY_LOAD_FAILED };
    // SAFETY: the caller's promise; PKCS#11 hands out the list to be read.
    unsafe { *list = (&raw const module.list).cast_mut() };
    follow("C_GetFunctionList", || CKR_OK)
}

fn load() -> Option<Module> {
    // SAFETY: a library that is loaded runs its initialisers; SoftHSM is made for that.
    let library = unsafe { libc::dlopen(SOFTHSM.as_ptr(), libc::RTLD_NOW) };
    if library.is_null() {
        return None;
    }
    // SAFETY: the library stays loaded, the name ends in a zero byte.
    let symbol = unsafe { libc::dlsym(library, c"C_GetFunctionList".as_ptr()) };
    // SAFETY: PKCS#11 says what this symbol is; null becomes None.
    let list_of: CK_C_GetFunctionList = unsafe { std::mem::transmute(symbol) };
    let mut list: *mut CK_FUNCTION_LIST = std::ptr::null_mut();
    // SAFETY: `list` is a place for a pointer.
    let code = unsafe { list_of?(&mut list) };
    if code != CKR_OK || list.is_null() {
        return None;
    }
    // SAFETY: the module says that its list is here, for good.
    let real = unsafe { *list };
    let mut list = real;
    replace(&mut list);
    list.C_DecryptInit = Some(decrypt_init);
    Some(Module { real, list })
}

/// Follows the orders for a call, with `call` itself at its place among them.
fn follow(name: &str, call: impl FnOnce() -> CK_RV) -> CK_RV {
    let Some(file) = std::env::var_os("PKCS11_SHIM").map(PathBuf::from) else { return call() };
    let orders = std::fs::read_to_string(&file).unwrap_or_default();
    let mut lie = None;
    let mut is_counted = name == "C_Login";
    for order in orders.lines() {
        let mut words = order.split_whitespace();
        let (Some(at), Some(what)) = (words.next(), words.next()) else { continue };
        if at != name && at != "*" {
            continue;
        }
        let word = words.next().unwrap_or("0");
        let number = match word.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => word.parse(),
        };
        let number = number.unwrap_or(0);
        match what {
            "code" => {
                count(&file, name, is_counted);
                return number as CK_RV;
            }
            "lie" => lie = Some(number as CK_RV),
            "abort" => std::process::abort(),
            // SAFETY: not at all; that it ends the process is what it is for.
            "segv" => unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) },
            "hang" => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            "delay" => std::thread::sleep(Duration::from_millis(number)),
            "count" => is_counted = true,
            _ => {}
        }
    }
    count(&file, name, is_counted);
    let code = call();
    lie.unwrap_or(code)
}

fn count(orders: &std::path::Path, name: &str, is_counted: bool) {
    if !is_counted {
        return;
    }
    let calls = orders.with_extension("calls");
    if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(calls) {
        let _ = file.write_all(format!("{name}\n").as_bytes());
    }
}

/// Whether somebody is to log out before this call.
fn is_logged_out(name: &str) -> bool {
    let file = std::env::var_os("PKCS11_SHIM").map(PathBuf::from);
    let orders = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    orders.lines().any(|order| order.split_whitespace().eq([name, "logout"]))
}

/// Wraps functions: each forwards its arguments to the real one, where `follow` lets it.
macro_rules! wrapped {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {
        fn replace(list: &mut CK_FUNCTION_LIST) {
            $(
                unsafe extern "C" fn $name($($argument: $type),*) -> CK_RV {
                    follow(stringify!($name), || {
                        let Some(Some(module)) = MODULE.get() else { return CKR_GENERAL_ERROR };
                        let Some(real) = module.real.$name else {
                            return CKR_FUNCTION_NOT_SUPPORTED;
                        };
                        // SAFETY: the arguments are the caller's, for the very same function.
                        unsafe { real($($argument),*) }
                    })
                }
                list.$name = Some($name);
            )*
        }
    };
}

/// `C_DecryptInit` with a stranger who logs out before it.
unsafe extern "C" fn decrypt_init(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    let Some(Some(module)) = MODULE.get() else { return CKR_GENERAL_ERROR };
    if let (true, Some(logout)) = (is_logged_out("C_DecryptInit"), module.real.C_Logout) {
        // SAFETY: the session is the caller's.
        unsafe { logout(session) };
    }
    let Some(real) = module.real.C_DecryptInit else { return CKR_FUNCTION_NOT_SUPPORTED };
    // SAFETY: the arguments are the caller's, for the very same function.
    follow("C_DecryptInit", || unsafe { real(session, mechanism, key) })
}

wrapped! {
    C_Initialize(arguments: *mut c_void);
    C_GetInfo(info: *mut CK_INFO);
    C_GetSlotList(present: CK_BBOOL, slots: *mut CK_SLOT_ID, count: *mut CK_ULONG);
    C_GetSlotInfo(slot: CK_SLOT_ID, info: *mut CK_SLOT_INFO);
    C_GetTokenInfo(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO);
    C_OpenSession(
        slot: CK_SLOT_ID, flags: CK_FLAGS, application: *mut c_void, notify: CK_NOTIFY,
        session: *mut CK_SESSION_HANDLE
    );
    C_CloseSession(session: CK_SESSION_HANDLE);
    C_GetSessionInfo(session: CK_SESSION_HANDLE, info: *mut CK_SESSION_INFO);
    C_Login(session: CK_SESSION_HANDLE, user: CK_USER_TYPE, pin: *mut CK_BYTE, length: CK_ULONG);
    C_FindObjectsInit(session: CK_SESSION_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG);
    C_FindObjects(
        session: CK_SESSION_HANDLE, objects: *mut CK_OBJECT_HANDLE, most: CK_ULONG,
        count: *mut CK_ULONG
    );
    C_FindObjectsFinal(session: CK_SESSION_HANDLE);
    C_GetAttributeValue(
        session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE,
        count: CK_ULONG
    );
    C_EncryptInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE);
    C_Encrypt(
        session: CK_SESSION_HANDLE, data: *mut CK_BYTE, length: CK_ULONG, out: *mut CK_BYTE,
        out_length: *mut CK_ULONG
    );
    C_Decrypt(
        session: CK_SESSION_HANDLE, data: *mut CK_BYTE, length: CK_ULONG, out: *mut CK_BYTE,
        out_length: *mut CK_ULONG
    );
    C_SignInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE);
    C_Sign(
        session: CK_SESSION_HANDLE, data: *mut CK_BYTE, length: CK_ULONG, out: *mut CK_BYTE,
        out_length: *mut CK_ULONG
    );
    C_GenerateKey(
        session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, template: *mut CK_ATTRIBUTE,
        count: CK_ULONG, key: *mut CK_OBJECT_HANDLE
    );
    C_GenerateRandom(session: CK_SESSION_HANDLE, bytes: *mut CK_BYTE, length: CK_ULONG);
    C_DestroyObject(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE);
}
