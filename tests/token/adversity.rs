//! Tokens that go away, logins that end, callers that come all at once.

use std::{fs, sync::Barrier, thread};

use strongroom::{
    secret::DataKey,
    token::{
        Settings, Token, TokenError,
        fault::{FaultToken, Mishap, Times, Verb},
        pkcs11::Pkcs11Token,
        read_pin,
    },
};

use crate::{
    arena, open, stranger,
    support::{Kind, TestToken},
};

#[test]
fn a_lost_login_is_never_read_as_a_lost_key_on_softhsm() {
    let name = "adversity::a_lost_login_is_never_read_as_a_lost_key_on_softhsm";
    let Some(token) = TestToken::in_own_process(name, Kind::SoftHsm) else { return };
    a_lost_login_is_never_read_as_a_lost_key(&token);
}

#[test]
fn a_lost_login_is_never_read_as_a_lost_key_on_kryoptic() {
    let name = "adversity::a_lost_login_is_never_read_as_a_lost_key_on_kryoptic";
    let Some(token) = TestToken::in_own_process(name, Kind::Kryoptic) else { return };
    a_lost_login_is_never_read_as_a_lost_key(&token);
}

fn a_lost_login_is_never_read_as_a_lost_key(token: &TestToken) {
    let opened = open(token);
    opened.create_master(1).expect("made");
    opened.create_signer(1).expect("made");
    let key = DataKey::generate().expect("a key");
    let wrapped = opened.wrap(1, b"here", &key).expect("wrapped");
    stranger(token).logout().expect("logged out");
    let all = [
        opened.master(1).err(),
        opened.master(7).err(),
        opened.create_master(1).err(),
        opened.create_master(7).err(),
        opened.unwrap(1, b"here", &wrapped).err(),
        opened.wrap(1, b"here", &key).err(),
        opened.canary(1).err(),
        opened.signer(1).err(),
        opened.create_signer(1).err(),
        opened.sign(1, &[7; 32]).err(),
    ];
    for (at, error) in all.into_iter().enumerate() {
        assert!(matches!(error, Some(TokenError::Fatal(_))), "{at}: {error:?}");
    }
    drop(opened);
    let opened = open(token);
    assert!(opened.unwrap(1, b"here", &wrapped).expect("opened").same_as(&key));
    assert_eq!(opened.master(7).expect("asked"), None);
}

#[test]
fn a_token_directory_that_is_gone_is_no_forgery() {
    let name = "adversity::a_token_directory_that_is_gone_is_no_forgery";
    let Some(token) = TestToken::in_own_process(name, Kind::SoftHsm) else { return };
    let opened = open(&token);
    opened.create_master(1).expect("made");
    let key = DataKey::generate().expect("a key");
    let wrapped = opened.wrap(1, b"here", &key).expect("wrapped");
    let mut forged = wrapped.clone();
    forged.ciphertext[0] ^= 1;
    let away = token.tokens().with_extension("away");
    fs::rename(token.tokens(), &away).expect("moved");
    let never_empty_and_never_forged = || {
        let all = [
            opened.unwrap(1, b"here", &wrapped).err(),
            opened.unwrap(1, b"here", &forged).err(),
            opened.wrap(1, b"here", &key).err(),
            opened.master(1).err(),
            opened.create_master(1).err(),
            opened.canary(1).err(),
        ];
        for (at, error) in all.into_iter().enumerate() {
            assert!(
                matches!(error, Some(TokenError::Fatal(_) | TokenError::Unavailable(_))),
                "{at}: {error:?}"
            );
        }
    };
    never_empty_and_never_forged();
    let unknown = opened.master(7);
    assert!(matches!(unknown, Err(TokenError::Unavailable(_))), "{unknown:?}");
    fs::rename(&away, token.tokens()).expect("moved back");
    never_empty_and_never_forged();
}

#[test]
fn one_of_many_makes_the_master() {
    let name = "adversity::one_of_many_makes_the_master";
    let Some(token) = TestToken::in_own_process(name, Kind::SoftHsm) else { return };
    let (opened, start) = (open(&token), Barrier::new(8));
    let made: Vec<bool> = thread::scope(|scope| {
        let create = || {
            start.wait();
            match opened.create_master(1) {
                Ok(_) => true,
                Err(TokenError::KeyExists { .. }) => false,
                Err(error) => panic!("{error}"),
            }
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
        threads.into_iter().map(|thread| thread.join().expect("done")).collect()
    });
    assert_eq!(made.iter().filter(|made| **made).count(), 1);
    assert!(opened.master(1).expect("asked").is_some());
}

#[test]
fn a_full_pool_is_busy_and_recovers() {
    let name = "adversity::a_full_pool_is_busy_and_recovers";
    let Some(token) = TestToken::in_own_process(name, Kind::SoftHsm) else { return };
    arena();
    let settings = Settings { pool_size: 1, wait_ms: 0, ..token.settings() };
    let pin = read_pin(&settings, None).expect("a PIN");
    let opened = Pkcs11Token::open(&settings, &pin).expect("opened");
    opened.create_signer(1).expect("made");
    let busy = thread::scope(|scope| {
        let sign = || {
            let busy = |error| match error {
                TokenError::Busy { waited_ms: 0, .. } => true,
                error => panic!("{error}"),
            };
            (0..500).filter(|_| opened.sign(1, &[7; 32]).is_err_and(busy)).count()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(sign)).collect();
        threads.into_iter().map(|thread| thread.join().expect("done")).sum::<usize>()
    });
    assert!(busy > 0, "4000 signatures of 8 threads never met");
    opened.sign(1, &[7; 32]).expect("signed");
}

#[test]
fn planned_mishaps_happen_as_often_as_planned() {
    arena();
    let token = FaultToken::new();
    token.create_master(1).expect("made");
    let key = DataKey::generate().expect("a key");
    let wrapped = token.wrap(1, b"here", &key).expect("wrapped");
    token.plan(Verb::Unwrap, Mishap::Unavailable, Times::Next(2));
    for _ in 0..2 {
        assert!(matches!(token.unwrap(1, b"here", &wrapped), Err(TokenError::Unavailable(_))));
    }
    token.unwrap(1, b"here", &wrapped).expect("opened");
    assert_eq!(token.calls(Verb::Unwrap), 3);
    token.plan(Verb::Unwrap, Mishap::Fatal, Times::Always);
    for _ in 0..5 {
        assert!(matches!(token.unwrap(1, b"here", &wrapped), Err(TokenError::Fatal(_))));
    }
    token.canary(1).expect("other verbs are well");
    token.heal();
    token.unwrap(1, b"here", &wrapped).expect("opened");
    token.lose_master(1);
    assert_eq!(token.master(1).expect("asked"), None);
}
