//! Every value that PKCS#11 names, returned by every call that the work needs: nothing wrong comes of it, no
//! bad moment of the token looks like a bad blob to the canary, and afterwards all is as before.

use std::path::{Path, PathBuf};

use strongroom::{
    secret::DataKey,
    token::{
        Settings, Token, TokenError,
        ckr::{self, Class},
        pkcs11::Pkcs11Token,
        read_pin,
    },
};

use crate::{
    arena,
    support::{Kind, TestToken},
};

/// The module of `tests/shim`, which `cargo test` builds beside this test.
fn module() -> PathBuf {
    let test = std::env::current_exe().expect("this test");
    let built = test.parent().and_then(Path::parent).expect("target/debug");
    let module = built.join("examples/libpkcs11_shim.so");
    assert!(module.exists(), "`cargo build --example pkcs11_shim`");
    module
}

/// A call, and what the module is to do there: a call that ends an operation has ended it in any case.
const CALLS: [(&str, &str); 6] = [
    ("C_DecryptInit", "code"),
    ("C_Decrypt", "lie"),
    ("C_EncryptInit", "code"),
    ("C_Encrypt", "lie"),
    ("C_SignInit", "code"),
    ("C_Sign", "lie"),
];

#[test]
fn every_return_value_of_every_call_passes() {
    let name = "return_values::every_return_value_of_every_call_passes";
    let Some(token) = TestToken::in_own_process(name, Kind::SoftHsm) else { return };
    arena();
    let orders = token.conf().with_file_name("orders");
    // SAFETY: this process runs this test alone, and the module is not loaded yet.
    unsafe { std::env::set_var("PKCS11_SHIM", &orders) };
    let order = |text: &str| std::fs::write(&orders, text).expect("written");
    order("");
    let settings = Settings { module: module(), ..token.settings() };
    let pin = read_pin(&settings, None).expect("a PIN");
    let opened = Pkcs11Token::open(&settings, &pin).expect("opened");
    opened.create_master(1).expect("made");
    opened.create_signer(1).expect("made");
    let key = DataKey::generate().expect("a key");
    let wrapped = opened.wrap(1, b"here", &key).expect("wrapped");
    let works = |what: &str| {
        let back = opened.unwrap(1, b"here", &wrapped).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(back.same_as(&key), "{what}");
        opened.sign(1, &[7; 32]).unwrap_or_else(|error| panic!("{what}: {error}"));
        opened.wrap(1, b"here", &key).unwrap_or_else(|error| panic!("{what}: {error}"));
        opened.canary(1).unwrap_or_else(|error| panic!("{what}: {error}"));
    };
    let mut tried = 0;
    for row in ckr::rows() {
        for (call, how) in CALLS {
            let what = format!("{call} {}", row.name);
            order(&format!("{call} {how} {:#x}", row.code));
            match call {
                "C_DecryptInit" | "C_Decrypt" => {
                    let error = opened.unwrap(1, b"here", &wrapped).err().expect(&what);
                    // Only a module that is precise about it can say that the blob is bad.
                    let is_rejected = matches!(error, TokenError::Rejected);
                    assert_eq!(is_rejected, row.class == Class::Data, "{what}: {error}");
                    let canary = opened.canary(1).expect_err(&what);
                    assert!(!matches!(canary, TokenError::Rejected), "{what}: {canary}");
                    assert!(opened.wrap(1, b"here", &key).is_err(), "{what}: not read back");
                }
                "C_EncryptInit" | "C_Encrypt" => {
                    assert!(opened.wrap(1, b"here", &key).is_err(), "{what}");
                    opened.canary(1).unwrap_or_else(|error| panic!("{what}: {error}"));
                }
                _ => {
                    let error = opened.sign(1, &[7; 32]).expect_err(&what).to_string();
                    let told = error.contains(row.name) || error.contains("PIN");
                    assert!(told, "{what} is not named: {error}");
                    opened.canary(1).unwrap_or_else(|error| panic!("{what}: {error}"));
                }
            }
            order("");
            works(&what);
            tried += 1;
        }
    }
    println!("{tried} faults");
    assert_eq!(tried, ckr::rows().len() * CALLS.len());
}

#[test]
fn thousands_of_forged_blobs_are_rejected_and_the_canary_lives() {
    let name = "return_values::thousands_of_forged_blobs_are_rejected_and_the_canary_lives";
    let Some(token) = TestToken::in_own_process(name, Kind::SoftHsm) else { return };
    let opened = crate::open(&token);
    opened.create_master(1).expect("made");
    let key = DataKey::generate().expect("a key");
    let wrapped = opened.wrap(1, b"here", &key).expect("wrapped");
    for number in 0..4000_usize {
        let mut forged = wrapped.clone();
        forged.ciphertext[number % 48] ^= 1 << (number % 7);
        let error = opened.unwrap(1, b"here", &forged).err().expect("forged");
        assert!(matches!(error, TokenError::Rejected), "{number}: {error}");
    }
    opened.canary(1).expect("alive");
    assert!(opened.unwrap(1, b"here", &wrapped).expect("opened").same_as(&key));
}
