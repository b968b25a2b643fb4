//! What every [`Token`] must do, whatever stands behind it. Starts with a token without keys.

use std::{collections::HashSet, thread};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use sha2::{Digest, Sha256};
use strongroom::{
    secret::DataKey,
    token::{KeyName, Token, TokenError, WrappedKey},
};

/// Runs all of it.
pub fn run(token: &dyn Token) {
    nothing_is_there_and_nothing_appears(token);
    a_master_is_made_once(token);
    wrapped_keys_open_only_where_they_belong(token);
    every_flipped_bit_is_noticed(token);
    other_lengths_are_refused(token);
    ivs_differ(token);
    generations_are_apart(token);
    a_signer_is_made_once_and_signs(token);
    a_destroyed_master_is_gone_and_no_other(token);
    many_threads_get_their_own_answers(token);
    token.info().expect("the token says who it is");
}

fn nothing_is_there_and_nothing_appears(token: &dyn Token) {
    let key = DataKey::generate().expect("a key");
    for _ in 0..2 {
        assert_eq!(token.master(1).expect("asked"), None);
        assert_eq!(token.signer(1).expect("asked"), None);
        let missing =
            |error| matches!(error, TokenError::KeyMissing { key: KeyName::Master(1), .. });
        assert!(token.wrap(1, b"here", &key).is_err_and(missing));
        let wrapped = WrappedKey { generation: 1, iv: [1; 12], ciphertext: vec![0; 48] };
        assert!(token.unwrap(1, b"here", &wrapped).is_err_and(missing));
        assert!(token.canary(1).is_err_and(missing));
        assert!(token.sign(1, &[7; 32]).is_err_and(|error| {
            matches!(error, TokenError::KeyMissing { key: KeyName::Signer(1), .. })
        }));
    }
}

fn a_master_is_made_once(token: &dyn Token) {
    let made = token.create_master(1).expect("made");
    assert_eq!(made.generation, 1);
    assert_eq!(token.master(1).expect("asked"), Some(made));
    for _ in 0..2 {
        let again = token.create_master(1);
        assert!(matches!(again, Err(TokenError::KeyExists { key: KeyName::Master(1), .. })));
        assert_eq!(token.master(1).expect("asked"), Some(made));
    }
    token.canary(1).expect("the canary opens");
}

fn wrapped_keys_open_only_where_they_belong(token: &dyn Token) {
    let key = DataKey::generate().expect("a key");
    let wrapped = token.wrap(1, b"key/alpha/1", &key).expect("wrapped");
    assert_eq!(wrapped.generation, 1);
    assert_eq!(wrapped.ciphertext.len(), WrappedKey::CIPHERTEXT_LEN);
    assert!(token.unwrap(1, b"key/alpha/1", &wrapped).expect("opened").same_as(&key));
    for aad in [&b"key/alpha/2"[..], b"key/alpha/", b"key/alpha/11", b"K"] {
        assert!(matches!(token.unwrap(1, aad, &wrapped), Err(TokenError::Rejected)));
    }
    assert!(matches!(token.wrap(1, b"", &key), Err(TokenError::EmptyAad)));
    assert!(matches!(token.unwrap(1, b"", &wrapped), Err(TokenError::EmptyAad)));
    let other = WrappedKey { generation: 2, ..wrapped.clone() };
    assert!(matches!(token.unwrap(1, b"key/alpha/1", &other), Err(TokenError::Rejected)));
    // Neither the refusals nor the repetition changed anything.
    assert!(token.unwrap(1, b"key/alpha/1", &wrapped).expect("opened").same_as(&key));
}

fn every_flipped_bit_is_noticed(token: &dyn Token) {
    let key = DataKey::generate().expect("a key");
    let wrapped = token.wrap(1, b"here", &key).expect("wrapped");
    for bit in 0..(12 + WrappedKey::CIPHERTEXT_LEN) * 8 {
        let mut forged = wrapped.clone();
        match forged.iv.get_mut(bit / 8) {
            Some(byte) => *byte ^= 1 << (bit % 8),
            None => forged.ciphertext[bit / 8 - 12] ^= 1 << (bit % 8),
        }
        let opened = token.unwrap(1, b"here", &forged);
        assert!(matches!(opened, Err(TokenError::Rejected)), "bit {bit}: {:?}", opened.err());
    }
}

fn other_lengths_are_refused(token: &dyn Token) {
    let key = DataKey::generate().expect("a key");
    let wrapped = token.wrap(1, b"here", &key).expect("wrapped");
    for len in [0, 1, 16, 32, 36, 44, 47, 49, 64, 1 << 20] {
        let mut forged = wrapped.clone();
        forged.ciphertext.resize(len, 0);
        assert!(matches!(token.unwrap(1, b"here", &forged), Err(TokenError::Rejected)), "{len}");
    }
}

fn ivs_differ(token: &dyn Token) {
    let key = DataKey::generate().expect("a key");
    let wrap = |_| token.wrap(1, b"here", &key).expect("wrapped");
    let all: Vec<WrappedKey> = (0..200).map(wrap).collect();
    let ivs: HashSet<[u8; 12]> = all.iter().map(|wrapped| wrapped.iv).collect();
    assert_eq!(ivs.len(), all.len());
    assert!(ivs.iter().all(|iv| iv.iter().any(|byte| *byte != 0)));
}

fn generations_are_apart(token: &dyn Token) {
    let key = DataKey::generate().expect("a key");
    let first = token.wrap(1, b"here", &key).expect("wrapped");
    let second_master = token.create_master(2).expect("made");
    assert_ne!(
        Some(second_master.check_value),
        token.master(1).expect("asked").map(|m| m.check_value)
    );
    assert!(token.unwrap(1, b"here", &first).expect("opened").same_as(&key));
    let moved = WrappedKey { generation: 2, ..first };
    assert!(matches!(token.unwrap(2, b"here", &moved), Err(TokenError::Rejected)));
    let second = token.wrap(2, b"here", &key).expect("wrapped");
    assert!(token.unwrap(2, b"here", &second).expect("opened").same_as(&key));
    token.canary(2).expect("the canary opens");
}

fn a_signer_is_made_once_and_signs(token: &dyn Token) {
    let made = token.create_signer(1).expect("made");
    assert_eq!(token.signer(1).expect("asked"), Some(made));
    let again = token.create_signer(1);
    assert!(matches!(again, Err(TokenError::KeyExists { key: KeyName::Signer(1), .. })));
    assert_eq!(token.signer(1).expect("asked"), Some(made));
    let message = b"origin, sequence, head, time";
    let signature = token.sign(1, &Sha256::digest(message).into()).expect("signed");
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &made.public_point);
    public.verify(message, &signature).expect("verified");
    assert!(public.verify(b"something else", &signature).is_err());
    assert_eq!(token.signer(2).expect("asked"), None);
}

fn a_destroyed_master_is_gone_and_no_other(token: &dyn Token) {
    let key = DataKey::generate().expect("a key");
    token.create_master(3).expect("made");
    let old = token.wrap(3, b"here", &key).expect("wrapped");
    let other = token.wrap(2, b"here", &key).expect("wrapped");
    token.destroy_master(3).expect("destroyed");
    let missing = |error: &TokenError| {
        matches!(error, TokenError::KeyMissing { key: KeyName::Master(3), .. })
    };
    for _ in 0..2 {
        assert_eq!(token.master(3).expect("asked"), None);
        assert!(token.unwrap(3, b"here", &old).is_err_and(|error| missing(&error)));
        assert!(token.destroy_master(3).is_err_and(|error| missing(&error)));
    }
    assert!(token.unwrap(2, b"here", &other).expect("opened").same_as(&key));
    // The place is free again, and what lay under the old key does not open under the new one.
    token.create_master(3).expect("made");
    assert!(matches!(token.unwrap(3, b"here", &old), Err(TokenError::Rejected)));
}

fn many_threads_get_their_own_answers(token: &dyn Token) {
    thread::scope(|scope| {
        for thread in 0..16u8 {
            scope.spawn(move || {
                for round in 0..10u8 {
                    let aad = [thread, round];
                    let key = DataKey::generate().expect("a key");
                    let mut wrapped = token.wrap(1, &aad, &key).expect("wrapped");
                    assert!(token.unwrap(1, &aad, &wrapped).expect("opened").same_as(&key));
                    wrapped.ciphertext[usize::from(round)] ^= 1;
                    assert!(matches!(token.unwrap(1, &aad, &wrapped), Err(TokenError::Rejected)));
                }
            });
        }
    });
}
