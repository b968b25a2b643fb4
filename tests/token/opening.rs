//! Which token is taken, and with which PIN; and that a PIN is never tried twice.

use std::path::PathBuf;

use strongroom::{
    secret::Pin,
    token::{Settings, TokenError, pkcs11::Pkcs11Token},
};

use crate::support::{Kind, PIN, TestToken};

fn open(settings: &Settings, pin: &str) -> Result<Pkcs11Token, TokenError> {
    crate::arena();
    Pkcs11Token::open(settings, &Pin::copy_from(pin.as_bytes()).expect("a PIN"))
}

fn words(settings: &Settings) -> String {
    match open(settings, PIN) {
        Err(TokenError::Slot(error)) => error.to_string(),
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn a_token_is_taken_by_label_or_serial_and_the_rest_is_listed() {
    let name = "opening::a_token_is_taken_by_label_or_serial_and_the_rest_is_listed";
    let Some(token) = TestToken::in_own_process(name, Kind::SoftHsm) else { return };
    token.initialise_another("second");
    token.initialise_another("twin");
    token.initialise_another("twin");
    let settings = Settings { label: None, serial: None, ..token.settings() };

    let unnamed = words(&settings);
    assert!(
        unnamed.contains("token.label or token.serial") && unnamed.contains("\"second\" (slot ")
    );
    let none = words(&Settings { label: Some("seconds".into()), ..settings.clone() });
    assert!(none.contains("no token with label \"seconds\"") && none.contains("\"second\""));
    let several = words(&Settings { label: Some("twin".into()), ..settings.clone() });
    assert!(several.contains("2 tokens with label \"twin\"") && several.contains("token.serial"));

    let second = open(&Settings { label: Some("second".into()), ..settings.clone() }, PIN);
    let info = strongroom::token::Token::info(&second.expect("opened")).expect("asked");
    assert_eq!(info.label, "second");
    let by_serial = Settings { serial: Some(info.serial.clone()), ..settings.clone() };
    open(&by_serial, PIN).expect("opened");
    open(&Settings { label: Some("second".into()), ..by_serial.clone() }, PIN).expect("opened");
    let both = words(&Settings { label: Some("twin".into()), ..by_serial });
    assert!(both.contains("label \"twin\" and serial"));
}

#[test]
fn what_is_no_module_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = directory.path().join("text.so");
    std::fs::write(&text, "no library").expect("written");
    for module in [PathBuf::from("/nowhere/module.so"), text, "libc.so.6".into()] {
        let settings = Settings { module: module.clone(), ..Settings::default() };
        match open(&settings, PIN) {
            Err(error @ TokenError::Module { .. }) => {
                assert!(error.to_string().contains(&module.display().to_string()));
            }
            other => panic!("{:?}", other.err()),
        }
    }
}

#[test]
fn a_wrong_pin_is_said_to_be_wrong_on_softhsm() {
    let name = "opening::a_wrong_pin_is_said_to_be_wrong_on_softhsm";
    let Some(token) = TestToken::in_own_process(name, Kind::SoftHsm) else { return };
    for wrong in ["471148", "4711471", "471"] {
        let error = open(&token.settings(), wrong).err().expect("refused");
        assert!(matches!(error, TokenError::PinIncorrect(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(token.label()) && !text.contains(wrong), "{text}");
    }
    open(&token.settings(), PIN).expect("opened");
}

#[test]
fn the_last_try_of_a_pin_is_never_taken() {
    let name = "opening::the_last_try_of_a_pin_is_never_taken";
    let Some(token) = TestToken::in_own_process(name, Kind::Kryoptic) else { return };
    let mut wrong = 0;
    let refusal = loop {
        match open(&token.settings(), "999999") {
            Err(TokenError::PinIncorrect(_)) if wrong < 20 => wrong += 1,
            other => break other.err(),
        }
    };
    assert!(matches!(refusal, Some(TokenError::PinFinalTry(_))), "after {wrong}: {refusal:?}");
    assert!(wrong > 1);
    // Not even the right one: which it is, is not known before.
    let again = open(&token.settings(), PIN).err();
    assert!(matches!(again, Some(TokenError::PinFinalTry(_))), "{again:?}");
    // Somebody logs in by hand, which resets the count, and all is well. (In this process: kryoptic
    // reads the count when it is loaded.)
    drop(crate::stranger(&token));
    open(&token.settings(), PIN).expect("opened");
}

#[test]
fn a_locked_pin_is_not_tried() {
    let name = "opening::a_locked_pin_is_not_tried";
    let Some(token) = TestToken::in_own_process(name, Kind::Kryoptic) else { return };
    let stranger = crate::stranger(&token);
    stranger.logout().expect("logged out");
    let wrong = cryptoki::types::AuthPin::new("999999".to_owned().into());
    let login = || stranger.login(cryptoki::session::UserType::User, Some(&wrong));
    for _ in 0..20 {
        assert!(login().is_err());
    }
    let refusal = open(&token.settings(), PIN).err();
    assert!(matches!(refusal, Some(TokenError::PinLocked(_))), "{refusal:?}");
}
