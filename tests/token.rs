//! The token floor on real modules, each test on a token of its own; and the token in memory beside.

#[path = "token/conformance.rs"]
mod conformance;
#[path = "support/token.rs"]
mod support;

use strongroom::token::{fault::FaultToken, pkcs11::Pkcs11Token, read_pin};
use support::{Kind, TestToken};

fn open(token: &TestToken) -> Pkcs11Token {
    let settings = token.settings();
    let pin = read_pin(&settings, None).expect("a PIN");
    Pkcs11Token::open(&settings, &pin).expect("opened")
}

#[test]
fn the_token_in_memory_conforms() {
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
