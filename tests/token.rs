//! The token floor on real modules, each test on a token of its own; and the token in memory beside.

#[path = "token/adversity.rs"]
mod adversity;
#[path = "token/conformance.rs"]
mod conformance;
#[path = "token/memory.rs"]
mod memory;
#[path = "token/opening.rs"]
mod opening;
#[path = "token/return_values.rs"]
mod return_values;
#[path = "support/token.rs"]
mod support;
#[path = "token/unfit.rs"]
mod unfit;

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    session::{Session, UserType},
    types::AuthPin,
};
use strongroom::{
    secret::{self, DataKey, Use},
    token::{Token, fault::FaultToken, pkcs11::Pkcs11Token, read_pin},
};
use support::{Kind, TestToken};

/// The locked memory that PINs and keys lie in, as custody has it.
fn arena() {
    secret::start(&secret::Settings::default(), Use::Custody).expect("an arena");
}

/// Opens a token as Strongroom does.
fn open(token: &TestToken) -> Pkcs11Token {
    arena();
    let settings = token.settings();
    let pin = read_pin(&settings, None).expect("a PIN");
    Pkcs11Token::open(&settings, &pin).expect("opened")
}

/// A session of somebody else in the same process, logged in, that may write.
fn stranger(token: &TestToken) -> Session {
    let module = Pkcs11::new(token.module()).expect("loaded");
    // It is initialised already where Strongroom came first.
    let _ = module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    let slot = module
        .get_slots_with_initialized_token()
        .expect("slots")
        .into_iter()
        .find(|slot| module.get_token_info(*slot).expect("a token").label() == token.label())
        .expect("the token");
    let session = module.open_rw_session(slot).expect("a session");
    let pin = AuthPin::new(support::PIN.to_owned().into());
    match session.login(UserType::User, Some(&pin)) {
        Ok(()) => {}
        Err(cryptoki::error::Error::Pkcs11(cryptoki::error::RvError::UserAlreadyLoggedIn, _)) => {}
        Err(error) => panic!("{error}"),
    }
    session
}

#[test]
fn the_token_in_memory_conforms() {
    arena();
    conformance::run(&FaultToken::new());
}

#[test]
fn softhsm_conforms() {
    let Some(token) = TestToken::in_own_process("softhsm_conforms", Kind::SoftHsm) else { return };
    conformance::run(&open(&token));
}

#[test]
fn kryoptic_conforms() {
    let Some(token) = TestToken::in_own_process("kryoptic_conforms", Kind::Kryoptic) else {
        return;
    };
    conformance::run(&open(&token));
}

#[test]
fn keys_survive_closing_on_softhsm() {
    let name = "keys_survive_closing_on_softhsm";
    let Some(token) = TestToken::in_own_process(name, Kind::SoftHsm) else { return };
    keys_survive_closing(&token);
}

#[test]
fn keys_survive_closing_on_kryoptic() {
    let name = "keys_survive_closing_on_kryoptic";
    let Some(token) = TestToken::in_own_process(name, Kind::Kryoptic) else { return };
    keys_survive_closing(&token);
}

fn keys_survive_closing(token: &TestToken) {
    let opened = open(token);
    let (master, signer) =
        (opened.create_master(1).expect("made"), opened.create_signer(1).expect("made"));
    let key = DataKey::generate().expect("a key");
    let wrapped = opened.wrap(1, b"here", &key).expect("wrapped");
    drop(opened);
    let opened = open(token);
    assert_eq!(opened.master(1).expect("asked"), Some(master));
    assert_eq!(opened.signer(1).expect("asked"), Some(signer));
    assert!(opened.unwrap(1, b"here", &wrapped).expect("opened").same_as(&key));
}
