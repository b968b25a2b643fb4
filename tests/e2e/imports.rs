//! Private keys that were made elsewhere: every form that is taken, and every kind that is not.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::appliance::{Appliance, openssl_encrypt};
use crate::checks::{b64, expect_json, expect_traced, seen, unb64};

/// Runs openssl on `input`; its stdout.
fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl is installed");
    // One that makes something of nothing may not read.
    let _ = child.stdin.take().expect("piped").write_all(input);
    let output = child.wait_with_output().expect("waits");
    assert!(output.status.success(), "openssl {arguments:?}");
    output.stdout
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("PEM")
}

fn rsa(bits: &str) -> Vec<u8> {
    openssl(&["genrsa", bits], b"")
}

fn import(
    appliance: &Appliance,
    name: &str,
    private_key: &str,
    more: Value,
) -> crate::appliance::Reply {
    let mut body = json!({ "private_key": private_key });
    body.as_object_mut().expect("one").extend(more.as_object().expect("one").clone());
    appliance.post(&format!("/v1/keys/{name}/import"), &body)
}

#[test]
fn pkcs1_and_pkcs8_come_in_as_pem_and_as_der() {
    let appliance = Appliance::new();
    let pem = rsa("2048");
    let public = text(openssl(&["pkey", "-pubout"], &pem));
    let ciphertext = b64(openssl_encrypt(&public, b"token", &appliance.path("")));
    let pkcs1_pem = text(openssl(&["rsa", "-traditional"], &pem));
    assert!(pkcs1_pem.starts_with("-----BEGIN RSA PRIVATE KEY"), "{pkcs1_pem}");
    let forms = [
        ("pkcs8-pem", text(openssl(&["pkcs8", "-topk8", "-nocrypt"], &pem))),
        ("pkcs1-pem", pkcs1_pem),
        ("pkcs8-der", b64(openssl(&["pkcs8", "-topk8", "-nocrypt", "-outform", "DER"], &pem))),
        ("pkcs1-der", b64(openssl(&["rsa", "-traditional", "-outform", "DER"], &pem))),
    ];
    let mut kids = Vec::new();
    for (name, form) in &forms {
        let reply = import(&appliance, name, form, json!({"labels": {"from": "elsewhere"}}));
        let key = expect_json(&reply, 201);
        expect_traced(&appliance, &reply, "key:import", &format!("key/{name}"));
        assert_eq!((&key["algorithm"], &key["state"]), (&json!("RSA-2048"), &json!("active")));
        assert_eq!(key["labels"], json!({"from": "elsewhere"}));
        assert_eq!(
            (&key["origin"], &key["versions"][0]["origin"]),
            (&json!("imported"), &json!("imported"))
        );
        let jwk = appliance.get(&format!("/v1/keys/{name}/public")).json();
        assert_eq!(jwk["origin"], "imported");
        kids.push(key["versions"][0]["kid"].clone());
        let body = json!({ "ciphertext": ciphertext });
        let opened = appliance.post(&format!("/v1/keys/{name}/decrypt"), &body);
        assert_eq!(unb64(&expect_json(&opened, 200)["plaintext"]), b"token", "{name}");
        let spki = appliance.get(&format!("/v1/keys/{name}/public?format=spki-pem"));
        assert_eq!(spki.text().trim(), public.trim());
    }
    assert!(kids.windows(2).all(|two| two[0] == two[1]));
    import(&appliance, "pkcs8-pem", &forms[0].1, json!({})).expect_problem(409, "exists");
    let set = appliance.get("/v1/jwks.json").json()["keys"].clone();
    assert!(set.as_array().expect("a list").iter().all(|jwk| jwk["origin"] == "imported"), "{set}");
    // What custody makes after it was never elsewhere.
    let rotated = appliance.post("/v1/keys/pkcs8-pem/rotate", &json!({})).expect_status(200).json();
    let origins = [0, 1].map(|version| rotated["versions"][version]["origin"].clone());
    assert_eq!(origins, ["imported", "generated"]);
    for bits in ["3072", "4096"] {
        let reply = import(&appliance, &format!("k{bits}"), &text(rsa(bits)), json!({}));
        assert_eq!(expect_json(&reply, 201)["algorithm"], format!("RSA-{bits}"));
    }
}

#[test]
fn every_kind_of_bad_key_is_named_and_leaves_nothing() {
    let appliance = Appliance::new();
    appliance.create_key("there");
    let before = seen(&appliance);
    let pem = rsa("2048");
    let good = text(pem.clone());
    let der = openssl(&["pkcs8", "-topk8", "-nocrypt", "-outform", "DER"], &pem);
    let mut flipped = der.clone();
    *flipped.last_mut().expect("bytes") ^= 1;
    let bad = [
        ("encrypted", text(openssl(&["pkcs8", "-topk8", "-passout", "pass:x"], &pem))),
        (
            "encrypted",
            text(openssl(&["rsa", "-traditional", "-aes128", "-passout", "pass:x"], &pem)),
        ),
        ("public", text(openssl(&["pkey", "-pubout"], &pem))),
        (
            "not an RSA",
            text(openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout"], b"")),
        ),
        ("not an RSA", text(openssl(&["genpkey", "-algorithm", "ed25519"], b""))),
        ("an RSA-PSS key", text(openssl(&["genpkey", "-algorithm", "RSA-PSS"], b""))),
        ("1024 bits", text(rsa("1024"))),
        ("2056 bits", text(rsa("2056"))),
        ("exponent", text(openssl(&["genrsa", "-3", "2048"], b""))),
        ("belong together", b64(&flipped)),
        ("follows the end", b64([&der[..], b"x"].concat())),
        ("follows the end", format!("{good}more")),
        ("more than one", format!("{good}{good}")),
        ("not a private key", b64(&der[..der.len() / 2])),
        ("not a private key", b64("nonsense")),
        ("not a private key", String::new()),
        (
            "not a private key",
            "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n".to_owned(),
        ),
        ("longer than any", b64(vec![0x30; 600_000])),
    ];
    for (says, key) in &bad {
        let reply = import(&appliance, "bad", key, json!({}));
        let detail = reply.expect_problem(422, "bad-key").json()["detail"].to_string();
        assert!(detail.contains(says), "{says}: {detail}");
    }
    import(&appliance, "bad", "not base64!", json!({})).expect_problem(400, "malformed");
    import(&appliance, "bad", &good, json!({"mgf1_hash": "MD5"})).expect_problem(400, "malformed");
    import(&appliance, "Bad", &good, json!({})).expect_problem(400, "invalid-name");
    assert_eq!(seen(&appliance), before);
    import(&appliance, "bad", &good, json!({})).expect_status(201);
}

#[test]
fn keys_set_to_mgf1_sha1_open_what_such_clients_make() {
    let appliance = Appliance::new();
    let body = json!({"name": "java", "algorithm": "RSA-2048", "mgf1_hash": "SHA-1"});
    let key = expect_json(&appliance.post("/v1/keys", &body), 201);
    assert_eq!(key["mgf1_hash"], "SHA-1");
    let jwk = appliance.get("/v1/keys/java/public").json();
    assert!(jwk.get("alg").is_none(), "RSA-OAEP-256 would promise MGF1-SHA-256: {jwk}");
    let spki = appliance.get("/v1/keys/java/public?format=spki-pem").text();
    let file = appliance.path("java.pem");
    std::fs::write(&file, &spki).expect("written");
    let file = file.display().to_string();
    let mut arguments = vec!["pkeyutl", "-encrypt", "-pubin", "-inkey", &file];
    for option in ["rsa_padding_mode:oaep", "rsa_oaep_md:sha256", "rsa_mgf1_md:sha1"] {
        arguments.extend(["-pkeyopt", option]);
    }
    let made = b64(openssl(&arguments, b"token"));
    let opened = appliance.post("/v1/keys/java/decrypt", &json!({"ciphertext": made}));
    assert_eq!(unb64(&expect_json(&opened, 200)["plaintext"]), b"token");
    let other = b64(openssl_encrypt(&spki, b"token", &appliance.path("")));
    let refused = appliance.post("/v1/keys/java/decrypt", &json!({"ciphertext": other}));
    refused.expect_problem(422, "decryption-failed");
    let body = json!({"key": "java", "ciphertext": made, "verify": true});
    appliance.put("/v1/secrets/s", &body).expect_status(201);
    let revealed = appliance.post("/v1/secrets/s/reveal", &json!({}));
    assert_eq!(unb64(&revealed.expect_status(200).json()["plaintext"]), b"token");
    let made = appliance.post("/v1/keys/java/encrypt", &json!({"plaintext": b64("own")})).json();
    let opened =
        appliance.post("/v1/keys/java/decrypt", &json!({"ciphertext": made["ciphertext"]}));
    assert_eq!(unb64(&opened.json()["plaintext"]), b"own");
    let rotated = appliance.post("/v1/keys/java/rotate", &json!({}));
    assert_eq!(expect_json(&rotated, 200)["mgf1_hash"], "SHA-1");
}
