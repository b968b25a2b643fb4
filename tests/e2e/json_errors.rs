//! What an error of a body says: which member, and what it may be; never what was sent.

use std::process::Command;

use serde_json::json;

use crate::acts::put_secret;
use crate::appliance::{Appliance, JSON, Reply, openssl_encrypt};
use crate::checks::{b64, but_for_its_number, unb64};

const CANARY: &str = "CANARY do not repeat";

/// The detail and the pointer of a refusal.
#[track_caller]
fn named(reply: &Reply) -> (String, String) {
    reply.expect_status(400);
    let text = reply.text();
    assert!(!text.contains("CANARY") && !text.contains(&b64(CANARY)), "{text}");
    let document = reply.json();
    let member = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
    (member("detail"), member("pointer"))
}

#[test]
fn the_member_is_named_as_a_pointer_and_what_it_may_be() {
    let appliance = Appliance::new();
    appliance.create_key("k");
    put_secret(&appliance, "s", "k", "x").expect_status(201);
    let wrapped = b64([7; 256])
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect::<Vec<_>>()
        .join("\n");
    for (method, path, body, pointer, says) in [
        (
            "POST",
            "/v1/keys/k/suspend",
            json!({"reason": CANARY}),
            "/reason",
            "must be one of unspecified, key-compromise, suspected-compromise, superseded",
        ),
        ("POST", "/v1/keys/k/suspend", json!({"reason": 7}), "/reason", "must be a string"),
        (
            "POST",
            "/v1/keys/k/suspend",
            json!({"version": CANARY}),
            "/version",
            "must be an integer from 0 to 4294967295",
        ),
        (
            "POST",
            "/v1/keys",
            json!({"name": "x", "algorithm": CANARY}),
            "/algorithm",
            "must be one of RSA-2048, RSA-3072, RSA-4096",
        ),
        (
            "POST",
            "/v1/keys",
            json!({"name": CANARY, "algorithm": "RSA-2048"}),
            "/name",
            "1 to 63 characters",
        ),
        ("POST", "/v1/keys", json!({"algorithm": "RSA-2048"}), "/name", "is missing"),
        (
            "POST",
            "/v1/keys",
            json!({"name": "x", "algorithm": "RSA-2048", "labels": {"a": {"CANARY": 1}}}),
            "/labels",
            "must be",
        ),
        (
            "POST",
            "/v1/keys",
            json!({"name": "x", "algorithm": "RSA-2048", "CANARY": 1}),
            "",
            "it may have name, algorithm, mgf1_hash",
        ),
        (
            "DELETE",
            "/v1/keys/k",
            json!({"waiting_period_days": 70_000}),
            "/waiting_period_days",
            "must be an integer from 0 to 65535",
        ),
        (
            "POST",
            "/v1/keys/k/decrypt",
            json!({"ciphertext": wrapped}),
            "/ciphertext",
            "base64 in one line",
        ),
        (
            "POST",
            "/v1/keys/k/decrypt",
            json!({"items": [{"ciphertext": ""}, {"ciphertext": CANARY}]}),
            "/items/1/ciphertext",
            "base64 in one line",
        ),
        (
            "POST",
            "/v1/keys/k/decrypt",
            json!({"items": [{"ciphertext": "", "CANARY": 1}]}),
            "/items/0",
            "it may have ciphertext, version, kid, label",
        ),
        (
            "POST",
            "/v1/keys/k/decrypt",
            json!({"items": [[CANARY]]}),
            "/items/0",
            "must be an object",
        ),
        ("POST", "/v1/keys/k/decrypt", json!({"items": []}), "/items", "1 to 256"),
        ("POST", "/v1/keys/k/encrypt", json!({"plaintext": 7}), "/plaintext", "base64 in one line"),
        (
            "PUT",
            "/v1/secrets/s",
            json!({"key": "k", "plaintext": "", "verify": CANARY}),
            "/verify",
            "must be true or false",
        ),
        ("PUT", "/v1/secrets/s", json!({"key": "k"}), "/ciphertext", "give either"),
        (
            "POST",
            "/v1/keys/n/import",
            json!({"private_key": CANARY}),
            "/private_key",
            "a private key as PEM text",
        ),
        (
            "POST",
            "/v1/keys/n/import",
            json!({"private_key": 7}),
            "/private_key",
            "a private key as PEM text",
        ),
    ] {
        let reply = appliance.request(method, path, JSON, body.to_string().as_bytes());
        let (detail, found) = named(&reply);
        assert_eq!(found, pointer, "{path} {body}: {detail}");
        assert!(detail.contains(says), "{path} {body}: {detail}");
        let begins = if pointer.is_empty() { "the body: " } else { pointer };
        assert!(detail.starts_with(begins), "{path} {body}: {detail}");
    }
    for (body, says) in [
        (&b"\xef\xbb\xbf{}"[..], "byte order mark"),
        (b"\xff\xfe{\0}\0", "UTF-16"),
        (b"{\"reason\": CANARY}", "it is not JSON, at line 1 column"),
        (b"{} CANARY", "something follows"),
        (b"[]", "has to be a JSON object"),
    ] {
        let (detail, pointer) = named(&appliance.request("POST", "/v1/keys/k/suspend", JSON, body));
        assert!(detail.contains(says) && pointer.is_empty(), "{detail}");
    }
}

#[test]
fn a_query_parameter_is_named_and_what_it_may_be() {
    let appliance = Appliance::new();
    for (query, says) in [
        ("limit=CANARY", "limit is not what it may be: At most this many"),
        ("limit=1&limit=2", "limit is given twice"),
        ("CANARY=1", "a parameter that is not taken here; it may have"),
        ("limit=1&CANARY", "a parameter that is not taken here; it may have"),
    ] {
        let (detail, _) = named(&appliance.get(&format!("/v1/keys?{query}")));
        assert!(detail.contains(says), "{query}: {detail}");
    }
}

#[test]
fn a_failed_decryption_names_the_hashes_and_is_the_same_for_every_failure() {
    let appliance = Appliance::new();
    let public = appliance.create_key("k");
    appliance.create_key("other");
    let java = json!({"name": "java", "algorithm": "RSA-2048", "mgf1_hash": "SHA-1"});
    appliance.post("/v1/keys", &java).expect_status(201);
    let decrypt = |key: &str, ciphertext: String| {
        let body = json!({"ciphertext": ciphertext});
        let reply = appliance.post(&format!("/v1/keys/{key}/decrypt"), &body);
        reply.expect_problem(422, "decryption-failed");
        (reply.json()["detail"].as_str().expect("text").to_owned(), but_for_its_number(&reply))
    };
    let (says, first) = decrypt("k", b64([7; 256]));
    assert!(says.contains("RSA-2048") && says.contains("SHA-256 and MGF1 with SHA-256"), "{says}");
    // Whatever is wrong: another key, Java's hashes, PKCS#1 padding, a length that no key has.
    let file = appliance.path("k.pem");
    std::fs::write(&file, &public).expect("written");
    let made = |padding: &[&str]| {
        let text = appliance.path("text");
        std::fs::write(&text, "token").expect("written");
        let mut openssl = Command::new("openssl");
        openssl.args(["pkeyutl", "-encrypt", "-pubin", "-inkey"]).arg(&file).arg("-in").arg(&text);
        let output = openssl.args(padding).output().expect("openssl is installed");
        assert!(output.status.success(), "{padding:?}");
        b64(output.stdout)
    };
    let oaep = ["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256"];
    let java = [&oaep[..], &["-pkeyopt", "rsa_mgf1_md:sha1"]].concat();
    let of_other = appliance.get("/v1/keys/other/public?format=spki-pem").text();
    for ciphertext in [
        made(&java),
        made(&["-pkeyopt", "rsa_padding_mode:pkcs1"]),
        made(&["-pkeyopt", "rsa_padding_mode:oaep"]),
        b64(openssl_encrypt(&of_other, b"x", &appliance.path(""))),
        b64([1; 255]),
        b64([1; 512]),
        b64([1; 700]),
        b64([255; 256]),
        String::new(),
    ] {
        assert_eq!(decrypt("k", ciphertext).1, first);
    }
    let (says, _) = decrypt("java", b64([7; 256]));
    assert!(says.contains("SHA-256 and MGF1 with SHA-1"), "{says}");
    // What Java makes by default is opened by a key that is made for it.
    let public = appliance.get("/v1/keys/java/public?format=spki-pem").text();
    std::fs::write(&file, public).expect("written");
    let opened = appliance.post("/v1/keys/java/decrypt", &json!({"ciphertext": made(&java)}));
    assert_eq!(unb64(&opened.expect_status(200).json()["plaintext"]), b"token");
}
