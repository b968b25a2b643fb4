//! Somebody who edits the store puts a public key of their own in the place of the audit log's, for whoever fetches
//! it while the token is not open, and then verifies a log of the attacker's with it.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use crate::appliance::Appliance;
use crate::raw_store::{APPLIANCE, Raw};

/// Writes another signing key into the record of what the appliance is.
fn patch_signer(appliance: &Appliance) {
    let random = SystemRandom::new();
    let key =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.as_ref());
    let raw = Raw::open(appliance);
    let bytes = raw.bytes(APPLIANCE, "home");
    let mut home: Value = serde_json::from_slice(&bytes[8..]).expect("an open record");
    home["signer_point"] = json!(key.expect("a key").public_key().as_ref());
    raw.put(APPLIANCE, "home", [&bytes[..8], home.to_string().as_bytes()].concat());
}

#[test]
fn another_public_key_is_not_given_out_while_the_token_is_closed() {
    let mut appliance = Appliance::new();
    let key = |appliance: &Appliance| appliance.get("/v1/audit/public-key");
    let honest = key(&appliance).expect_status(200).text();
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    assert_eq!(key(&appliance).expect_status(200).text(), honest, "as custody remembers it");
    appliance.stop();
    let raw = Raw::open(&appliance);
    let home = raw.bytes(APPLIANCE, "home");
    drop(raw);
    patch_signer(&appliance);
    appliance.spawn();
    appliance.wait_for_state("locked");
    let refused = key(&appliance);
    assert!(refused.status >= 500, "{}", refused.text());
    appliance.post("/v1/unlock", &json!({})).expect_problem(503, "master-key");
    assert!(key(&appliance).status >= 500);
    appliance.stop();
    Raw::open(&appliance).put(APPLIANCE, "home", home);
    appliance.start();
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    assert_eq!(key(&appliance).expect_status(200).text(), honest);
    appliance.stop();
    patch_signer(&appliance);
    appliance.spawn();
    appliance.wait_for_state("master-unfit");
    assert!(key(&appliance).status >= 500);
}
