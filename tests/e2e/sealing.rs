//! The store key is replaced long before it has sealed too often, and the old ones go on opening.

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::json;

use crate::appliance::Appliance;

#[test]
fn a_store_key_that_has_sealed_enough_is_followed_by_another() {
    let mut appliance = Appliance::configured(|config| {
        let records = toml::toml! { seals_per_store_key = 5 };
        config.insert("records".to_owned(), records.into());
    });
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_key("payments");
    for number in 0..12 {
        let value = BASE64_STANDARD.encode(format!("value {number}"));
        let body = json!({ "key": "payments", "plaintext": value });
        appliance.put(&format!("/v1/secrets/s{number}"), &body).expect_status(201);
    }
    // A key's two records and twelve secrets: three keys of five seals each.
    assert!(appliance.log().contains("a new store key seals records from now on id=3"));
    assert!(!appliance.log().contains("from now on id=4"));
    appliance.restart();
    for number in 0..12 {
        let opened = appliance.post(&format!("/v1/secrets/s{number}/reveal"), &json!({}));
        let value = BASE64_STANDARD.encode(format!("value {number}"));
        assert_eq!(opened.expect_status(200).json()["plaintext"], value);
    }
    // What was reserved and not used counts as used: the next seal is under a fresh key.
    let body = json!({ "key": "payments", "plaintext": BASE64_STANDARD.encode("more") });
    appliance.put("/v1/secrets/more", &body).expect_status(201);
    assert!(appliance.log().contains("from now on id=4"));
}

#[test]
fn there_may_be_more_store_keys_than_one_record_could_hold() {
    let mut appliance = Appliance::configured(|config| {
        let records = toml::toml! { seals_per_store_key = 5 };
        config.insert("records".to_owned(), records.into());
    });
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_key("payments");
    let value = BASE64_STANDARD.encode("value");
    let body = json!({ "key": "payments", "plaintext": value });
    appliance.put("/v1/secrets/first", &body).expect_status(201);
    appliance.put("/v1/secrets/s", &body).expect_status(201);
    for _ in 0..600 {
        appliance.put("/v1/secrets/s", &body).expect_status(200);
    }
    assert!(appliance.log().contains("from now on id=120"));
    appliance.restart();
    for name in ["first", "s"] {
        let opened = appliance.post(&format!("/v1/secrets/{name}/reveal"), &json!({}));
        assert_eq!(opened.expect_status(200).json()["plaintext"], value);
    }
}
