//! What many tests do with an appliance: encrypt, decrypt, store, look into the trail's files.

use std::path::Path;
use std::time::SystemTime;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};

use crate::appliance::{Appliance, Reply};

/// Standard base64 with padding.
pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// Encrypts with the current version of a key and returns the ciphertext in base64.
pub fn encrypt(appliance: &Appliance, key: &str, plaintext: &str) -> String {
    let body = json!({ "plaintext": base64(plaintext) });
    let reply = appliance.post(&format!("/v1/keys/{key}/encrypt"), &body);
    reply.expect_status(200).json()["ciphertext"].as_str().expect("a text").to_owned()
}

/// Decrypts, by a version or by the current one.
pub fn decrypt(appliance: &Appliance, key: &str, ciphertext: &str, version: Option<u32>) -> Reply {
    let mut body = json!({ "ciphertext": ciphertext });
    if let Some(version) = version {
        body["version"] = version.into();
    }
    appliance.post(&format!("/v1/keys/{key}/decrypt"), &body)
}

/// Expects a decryption's reply to hold this plaintext.
#[track_caller]
pub fn expect_plaintext(reply: &Reply, plaintext: &str) {
    assert_eq!(reply.expect_status(200).json()["plaintext"], base64(plaintext));
}

/// Stores a secret that the daemon encrypts.
pub fn put_secret(appliance: &Appliance, name: &str, key: &str, value: &str) -> Reply {
    let body = json!({ "key": key, "plaintext": base64(value) });
    appliance.put(&format!("/v1/secrets/{name}"), &body)
}

/// Opens a secret.
pub fn reveal(appliance: &Appliance, name: &str) -> Reply {
    appliance.post(&format!("/v1/secrets/{name}/reveal"), &json!({}))
}

/// Has root accept that store and audit log do not end as custody remembers: the command that the status
/// writes out.
pub fn accept_rollback(appliance: &Appliance) {
    appliance.wait_for_state("store-rolled-back");
    let status = appliance.get("/v1/status").json();
    let detail = status["detail"].as_str().expect("why").to_owned();
    let argument = detail.split_whitespace().last().expect("a word");
    let config = appliance.config_file().display().to_string();
    let said = appliance.cli(&["accept-rollback", "--config", &config, argument]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    crate::appliance::wait_until("service", || {
        appliance.get("/v1/status").json()["state"] != "store-rolled-back"
    });
}

/// Takes a step with a key: `suspend`, `rotate` and so on.
pub fn step(appliance: &Appliance, key: &str, verb: &str, body: Value) -> Reply {
    appliance.post(&format!("/v1/keys/{key}/{verb}"), &body)
}

/// All lines of a trail in its order, from its files.
pub fn trail_lines(directory: &Path) -> Vec<Value> {
    let text = trail_texts(directory).concat();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The texts of a trail's files, in their order.
pub fn trail_texts(directory: &Path) -> Vec<String> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .expect("a trail")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    files.sort();
    files.iter().map(|path| std::fs::read_to_string(path).expect("readable")).collect()
}

/// The events of a trail, by name, in their order.
pub fn events(directory: &Path) -> Vec<String> {
    let lines = trail_lines(directory);
    lines.iter().filter_map(|line| Some(line["event"].as_str()?.to_owned())).collect()
}

/// When the token last wrote about itself: SoftHSM does at every wrong PIN, and at a right one after it.
pub fn pin_tries(appliance: &Appliance) -> SystemTime {
    let tokens = std::fs::read_dir(appliance.token().tokens()).unwrap().flatten();
    let written = tokens.map(|token| token.path().join("token.object").metadata().unwrap());
    written.map(|file| file.modified().unwrap()).max().unwrap()
}

/// Whether the token says that a PIN was wrong since the last right one (`CKF_USER_PIN_COUNT_LOW`).
pub fn one_try_was_wrong(appliance: &Appliance) -> bool {
    appliance.token().pkcs11_tool_bare(&["--list-slots"]).contains("user PIN count low")
}
