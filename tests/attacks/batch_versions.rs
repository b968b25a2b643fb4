//! A batch opens ciphertexts of versions that the audit log does not name.

use serde_json::json;

use crate::acts::{encrypt, step};
use crate::appliance::Appliance;
use crate::checks::{b64, lines_of};

#[test]
fn the_audit_log_names_every_version_that_a_batch_worked_with() {
    let appliance = Appliance::new();
    appliance.create_key("k");
    let old = encrypt(&appliance, "k", "of version 1");
    for _ in 0..2 {
        step(&appliance, "k", "rotate", json!({})).expect_status(200);
    }
    let new = encrypt(&appliance, "k", "of version 3");
    let kid = appliance.get("/v1/keys/k").json()["versions"][0]["kid"].clone();
    let items = json!({ "items": [
        { "ciphertext": new },
        { "ciphertext": old, "kid": kid },
        { "ciphertext": b64([1; 256]), "version": 2 },
        { "ciphertext": old, "version": 1 },
        { "ciphertext": old, "version": 9 },
    ] });
    let reply = appliance.post("/v1/keys/k/decrypt", &items);
    reply.expect_status(200);
    let lines = lines_of(&appliance, &reply);
    assert_eq!(lines[0]["versions"], "1,2,9", "what was named: {lines:?}");
    assert_eq!(lines[1]["versions"], "1,2,3", "what was worked with: {lines:?}");
    assert_eq!((&lines[1]["items"], &lines[1]["failed_items"]), (&json!(5), &json!(2)));
    let one = appliance.post("/v1/keys/k/decrypt", &json!({ "ciphertext": new }));
    let lines = lines_of(&appliance, &one);
    assert!(lines[1].get("versions").is_none() && lines[1]["version"] == 3, "{lines:?}");
}
