//! Ciphertexts that the library answers without a private operation: 0, 1, n - 1, numbers not below n, and
//! other lengths. A caller who measures must not tell them from any other that does not decrypt.

use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine};
use rsa::pkcs8::DecodePublicKey;
use rsa::traits::PublicKeyParts;
use rsa::{BigUint, RsaPublicKey};
use serde_json::json;

use crate::appliance::Appliance;

/// Length of an RSA-4096 ciphertext, whose private operation takes longest: a refusal without one shows.
const LENGTH: usize = 512;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn every_refused_ciphertext_costs_a_private_operation() {
    let appliance = Appliance::new();
    let key = json!({ "name": "k", "algorithm": "RSA-4096" });
    appliance.post("/v1/keys", &key).expect_status(201);
    let pem = appliance.get("/v1/keys/k/public?format=spki-pem").expect_status(200).text();
    let modulus = RsaPublicKey::from_public_key_pem(&pem).expect("a public key").n().clone();
    let number = |number: &BigUint| {
        let bytes = number.to_bytes_be();
        [vec![0; LENGTH - bytes.len()], bytes].concat()
    };
    let kinds = [
        ("a number like any other", number(&(&modulus / 3_u8))),
        ("0", vec![0; LENGTH]),
        ("1", number(&BigUint::from(1_u8))),
        ("n - 1", number(&(&modulus - 1_u8))),
        ("n", number(&modulus)),
        ("n + 1", number(&(&modulus + 1_u8))),
        ("too short", vec![7; LENGTH - 1]),
        ("of RSA-2048", vec![7; 256]),
        ("nothing", Vec::new()),
    ];
    let bodies = kinds.map(|(name, bytes)| {
        let body = json!({ "ciphertext": BASE64_STANDARD.encode(bytes) });
        (name, body)
    });
    let mut times = vec![Vec::new(); bodies.len()];
    let mut texts = std::collections::BTreeSet::new();
    for _ in 0..15 {
        for ((_, body), times) in bodies.iter().zip(&mut times) {
            let begin = Instant::now();
            let reply = appliance.post("/v1/keys/k/decrypt", body);
            times.push(begin.elapsed());
            reply.expect_problem(422, "decryption-failed");
            let mut problem = reply.json();
            problem.as_object_mut().expect("an object").remove("request_id");
            texts.insert(problem.to_string());
        }
    }
    assert_eq!(texts.len(), 1, "all are refused alike: {texts:?}");
    let medians: Vec<Duration> = times.into_iter().map(median).collect();
    for ((name, _), took) in bodies.iter().zip(&medians) {
        println!("odd ciphertexts: {name:<24} {took:?}");
        assert!(*took > medians[0] / 2, "{name}: {took:?}, any other {:?}", medians[0]);
    }
}
