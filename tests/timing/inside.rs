//! Inside custody: its own function, its own arena, a key that is loaded.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rsa::pkcs8::DecodePublicKey;
use strongroom::custody::rsa::PrivateKey;
use strongroom::key::{Algorithm, Mgf1Hash};
use strongroom::secret::{self, Use};

use crate::kinds::{KINDS, ciphertexts};
use crate::welch::Dice;
use crate::{Effort, burn, judge};

#[test]
fn inside_custody_all_failures_take_the_same_time() {
    secret::start(&secret::Settings::default(), Use::Custody).expect("an arena");
    let effort = Effort::of_this_run();
    let (leak, pool) = if effort.strict {
        (Duration::from_micros(2), 256)
    } else {
        (Duration::from_micros(100), 16)
    };
    let key = PrivateKey::generate(Algorithm::Rsa2048).expect("a key");
    let public = rsa::RsaPublicKey::from_public_key_der(&key.public().expect("encodes"));
    let public = public.expect("an SPKI");
    let mut pools: Vec<_> =
        KINDS.iter().map(|(kind, _)| ciphertexts(*kind, &public, pool)).collect();
    let mut names: Vec<_> = KINDS.iter().map(|(_, name)| *name).collect();
    // The planted leak: the same kind once more, and a decryption that goes on for longer with it.
    pools.push(ciphertexts(KINDS[1].0, &public, pool));
    names.push("PLANTED");
    let (planted, mut dice) = (names.len() - 1, Dice::new());
    // All are worked on in one place, so that none lies better than another.
    let mut buffer = [0; 256];
    judge("inside", &names, leak, |kind| {
        buffer.copy_from_slice(&pools[kind][dice.below(pool)]);
        let begun = Instant::now();
        let opened = key.decrypt_oaep(Mgf1Hash::Sha256, black_box(&buffer), b"");
        if kind == planted {
            burn(leak);
        }
        let elapsed = begun.elapsed();
        assert!(black_box(opened).is_err());
        elapsed.as_nanos() as f64
    });
}
