//! Project Wycheproof's RSA-OAEP cases, through import and decrypt over the socket.

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};

use crate::appliance::Appliance;

const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../shared/vectors/wycheproof/rsa_oaep_2048_sha256_mgf1sha256_test.json"
);

#[test]
fn every_oaep_case_comes_out_as_it_should() {
    let text = std::fs::read(FILE).unwrap_or_else(|error| panic!("{FILE}: {error}"));
    let vectors: Value = serde_json::from_slice(&text).expect("JSON");
    let appliance = Appliance::new();
    let (mut opened, mut refused) = (0, 0);
    for (at, group) in vectors["testGroups"].as_array().expect("groups").iter().enumerate() {
        let said = [&group["sha"], &group["mgf"], &group["mgfSha"]];
        assert_eq!(said, ["SHA-256", "MGF1", "SHA-256"], "what this file is about");
        let key = format!("wycheproof-{at}");
        import(&appliance, &key, group);
        for case in group["tests"].as_array().expect("cases") {
            let id = &case["tcId"];
            let reply = decrypt(&appliance, &key, case);
            // The file has no "acceptable" case; one that came with an update has to be thought of.
            match case["result"].as_str() {
                Some("valid") => {
                    let plaintext = reply.expect_status(200).json()["plaintext"].clone();
                    assert_eq!(plaintext, base64_of(&case["msg"]), "case {id}");
                    opened += 1;
                }
                Some("invalid") => {
                    reply.expect_problem(422, "decryption-failed");
                    refused += 1;
                }
                other => panic!("case {id} is {other:?}"),
            }
        }
    }
    assert_eq!((opened, refused), (18, 19), "valid and invalid cases of the file");
    assert_eq!(vectors["numberOfTests"], opened + refused);
}

/// Every form of the group's key is taken; decryptions use the last.
fn import(appliance: &Appliance, name: &str, group: &Value) {
    let pkcs8 = base64_of(&group["privateKeyPkcs8"]);
    for (form, text) in [("der", &pkcs8), ("pem", &group["privateKeyPem"])] {
        let body = json!({ "private_key": text });
        let reply = appliance.post(&format!("/v1/keys/{name}-{form}/import"), &body);
        assert_eq!(reply.expect_status(201).json()["algorithm"], "RSA-2048");
    }
    let kids = ["der", "pem"]
        .map(|form| appliance.get(&format!("/v1/keys/{name}-{form}/public")).json()["kid"].clone());
    assert!(kids[0].is_string() && kids[0] == kids[1], "{kids:?}");
}

fn decrypt(appliance: &Appliance, name: &str, case: &Value) -> crate::appliance::Reply {
    let body = json!({ "ciphertext": base64_of(&case["ct"]), "label": base64_of(&case["label"]) });
    appliance.post(&format!("/v1/keys/{name}-pem/decrypt"), &body)
}

/// Hexadecimal digits, as base64.
fn base64_of(hex: &Value) -> Value {
    let digits = hex.as_str().expect("hexadecimal digits").as_bytes();
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).expect("ASCII");
        u8::from_str_radix(pair, 16).expect("two digits")
    };
    BASE64_STANDARD.encode(digits.chunks(2).map(byte).collect::<Vec<_>>()).into()
}
