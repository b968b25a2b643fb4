//! The main job: initialise, create a key, encrypt as a stranger would, store, reveal, verify.

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::json;

use crate::appliance::{Appliance, openssl_encrypt};

#[test]
fn a_token_goes_in_encrypted_by_openssl_and_comes_out() {
    let appliance = Appliance::new();
    let public = appliance.create_key("payments");
    let ciphertext = openssl_encrypt(&public, b"sk_live_4711", appliance.path("").as_path());
    let body = json!({ "key": "payments", "ciphertext": BASE64_STANDARD.encode(ciphertext) });
    let stored = appliance.put("/v1/secrets/stripe", &body);
    assert_eq!(stored.expect_status(201).json()["revision"], 1);
    let revealed = appliance.post("/v1/secrets/stripe/reveal", &json!({}));
    let text = revealed.expect_status(200).json()["plaintext"].as_str().unwrap().to_owned();
    assert_eq!(BASE64_STANDARD.decode(text).unwrap(), b"sk_live_4711");
}

#[test]
fn what_was_stored_is_there_after_a_restart() {
    let mut appliance = Appliance::new();
    appliance.create_key("payments");
    let body = json!({ "key": "payments", "plaintext": BASE64_STANDARD.encode("kept") });
    appliance.put("/v1/secrets/stripe", &body).expect_status(201);
    appliance.restart();
    let revealed = appliance.post("/v1/secrets/stripe/reveal", &json!({}));
    assert_eq!(revealed.expect_status(200).json()["plaintext"], BASE64_STANDARD.encode("kept"));
}
