//! Keys over the socket: made, shown, their public halves, used; sizes, versions, batches.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::appliance::{Appliance, openssl_encrypt};
use crate::checks::{
    b64, but_for_its_number, expect_json, expect_members, expect_time, expect_traced, seen, unb64,
};

const KEY: [&str; 10] = [
    "name",
    "algorithm",
    "mgf1_hash",
    "state",
    "labels",
    "owner",
    "serve_without_token_seconds",
    "created_at",
    "versions",
    "revision",
];

#[test]
fn keys_are_made_shown_and_listed() {
    let appliance = Appliance::new();
    let body = json!({
        "name": "payments", "algorithm": "RSA-2048", "labels": {"env": "live", "team": "Zahlung"}
    });
    let made = appliance.post("/v1/keys", &body);
    expect_traced(&appliance, &made, "key:create", "key/payments");
    let key = expect_json(&made, 201);
    expect_members(&key, &KEY, &["current_version", "origin"]);
    assert_eq!(key["origin"], "generated");
    assert_eq!(key["name"], "payments");
    assert_eq!(key["algorithm"], "RSA-2048");
    assert_eq!(key["mgf1_hash"], "SHA-256");
    assert_eq!(key["state"], "active");
    assert_eq!(key["labels"], body["labels"]);
    assert_eq!(key["owner"], "unix:0");
    assert_eq!(key["current_version"], 1);
    expect_time(&key["created_at"]);
    let version = &key["versions"][0];
    expect_members(
        version,
        &["version", "state", "kid", "origin", "created_at", "activated_at"],
        &[],
    );
    assert_eq!((&version["version"], &version["state"]), (&json!(1), &json!("active")));
    expect_time(&version["activated_at"]);

    let shown = appliance.get("/v1/keys/payments");
    assert_eq!(expect_json(&shown, 200), key);
    expect_traced(&appliance, &shown, "key:show", "key/payments");
    appliance.post("/v1/keys", &body).expect_problem(409, "exists");
    let missing = appliance.get("/v1/keys/other");
    missing.expect_problem(404, "not-found");
    expect_traced(&appliance, &missing, "key:show", "key/other");

    for name in ["b", "a-1", "a.1", "a_1", "zz"] {
        appliance.create_key(name);
    }
    pages_hold_everything_once(&appliance);
    jwks_hold_what_protects(&appliance);
}

fn pages_hold_everything_once(appliance: &Appliance) {
    let all = expect_json(&appliance.get("/v1/keys"), 200);
    expect_members(&all, &["keys"], &[]);
    let names = |page: &Value| -> Vec<String> {
        let keys = page["keys"].as_array().expect("keys");
        keys.iter().map(|key| key["name"].as_str().expect("a name").to_owned()).collect()
    };
    let all = names(&all);
    let mut sorted = all.clone();
    sorted.sort();
    assert_eq!((all.len(), &all), (6, &sorted));
    for limit in [1, 2, 4, 6, 7] {
        let (mut walked, mut query) = (Vec::new(), format!("limit={limit}"));
        loop {
            let page = expect_json(&appliance.get(&format!("/v1/keys?{query}")), 200);
            let found = names(&page);
            assert!(found.len() <= limit);
            walked.extend(found);
            let Some(next) = page["next"].as_str() else { break };
            query = format!("after={next}&limit={limit}");
        }
        assert_eq!(walked, all, "limit={limit}");
    }
    let page = appliance.get("/v1/keys?prefix=a").json();
    assert_eq!(names(&page), ["a-1", "a.1", "a_1"]);
}

fn jwks_hold_what_protects(appliance: &Appliance) {
    appliance.post("/v1/keys/b/suspend", &json!({})).expect_status(200);
    let reply = appliance.get("/v1/jwks.json");
    expect_traced(appliance, &reply, "key:public", "appliance");
    let set = expect_json(&reply, 200);
    expect_members(&set, &["keys"], &[]);
    let keys = set["keys"].as_array().expect("keys");
    assert_eq!(keys.len(), 5, "a suspended key protects nothing");
    let mine = appliance.get("/v1/keys/payments/public").json();
    assert!(keys.contains(&mine));
}

#[test]
fn public_halves_come_in_three_forms_that_agree() {
    let appliance = Appliance::new();
    appliance.create_key("payments");
    let old = expect_json(&appliance.get("/v1/keys/payments/public"), 200);
    expect_members(&old, &["kty", "use", "alg", "kid", "n", "e", "origin"], &[]);
    assert_eq!((&old["kty"], &old["use"]), (&json!("RSA"), &json!("enc")));
    assert_eq!((&old["alg"], &old["e"]), (&json!("RSA-OAEP-256"), &json!("AQAB")));
    // RFC 7638 §3.1: the required members, in the order of their names, without white space.
    let n = old["n"].as_str().expect("n");
    let digest = Sha256::digest(format!(r#"{{"e":"AQAB","kty":"RSA","n":"{n}"}}"#));
    use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
    assert_eq!(old["kid"], BASE64_URL_SAFE_NO_PAD.encode(digest));
    let shown = appliance.get("/v1/keys/payments").json();
    assert_eq!(shown["versions"][0]["kid"], old["kid"]);

    use rsa::pkcs1::DecodeRsaPublicKey;
    use rsa::pkcs8::DecodePublicKey;
    use rsa::traits::PublicKeyParts;
    let spki = appliance.get("/v1/keys/payments/public?format=spki-pem");
    let pkcs1 = appliance.get("/v1/keys/payments/public?format=pkcs1-pem&version=1");
    for pem in [&spki, &pkcs1] {
        let kind = pem.expect_status(200).header("content-type");
        assert_eq!(kind.as_deref(), Some("application/x-pem-file"));
    }
    let spki = rsa::RsaPublicKey::from_public_key_pem(&spki.text()).expect("SPKI");
    let pkcs1 = rsa::RsaPublicKey::from_pkcs1_pem(&pkcs1.text()).expect("PKCS#1");
    assert_eq!(spki, pkcs1);
    assert_eq!(BASE64_URL_SAFE_NO_PAD.encode(spki.n().to_bytes_be()), n);

    appliance.post("/v1/keys/payments/rotate", &json!({})).expect_status(200);
    let new = appliance.get("/v1/keys/payments/public").json();
    assert_ne!(new["kid"], old["kid"]);
    assert_eq!(appliance.get("/v1/keys/payments/public?version=1").json(), old);
    assert_eq!(appliance.get("/v1/keys/payments/public?version=2&format=jwk").json(), new);
    for version in ["0", "3", "4294967295"] {
        let reply = appliance.get(&format!("/v1/keys/payments/public?version={version}"));
        reply.expect_problem(404, "no-such-version");
    }
    for query in ["format=der", "format=JWK", "version=-1", "version=4294967296", "version="] {
        let reply = appliance.get(&format!("/v1/keys/payments/public?{query}"));
        reply.expect_problem(400, "malformed");
    }
}

#[test]
fn each_size_holds_what_it_can_and_not_a_byte_more() {
    let appliance = Appliance::new();
    for (bits, most) in [(2048, 190), (3072, 318), (4096, 446)] {
        let algorithm = format!("RSA-{bits}");
        let name = format!("k{bits}");
        let body = json!({ "name": name, "algorithm": algorithm });
        appliance.post("/v1/keys", &body).expect_status(201);
        let at = |verb: &str| format!("/v1/keys/{name}/{verb}");
        for size in [0, 1, most] {
            let plaintext = vec![0xa5; size];
            let body = json!({ "plaintext": b64(&plaintext), "label": b64("context") });
            let encrypted = appliance.post(&at("encrypt"), &body);
            let made = expect_json(&encrypted, 200);
            expect_members(&made, &["ciphertext", "version", "kid"], &[]);
            assert_eq!(unb64(&made["ciphertext"]).len(), bits / 8);
            let body = json!({ "ciphertext": made["ciphertext"], "label": b64("context") });
            let opened = expect_json(&appliance.post(&at("decrypt"), &body), 200);
            expect_members(&opened, &["plaintext", "version", "kid"], &[]);
            assert_eq!(unb64(&opened["plaintext"]), plaintext);
            assert_eq!(opened["kid"], made["kid"]);
        }
        let body = json!({ "plaintext": b64(vec![0; most + 1]) });
        let refused = appliance.post(&at("encrypt"), &body);
        let told = refused.expect_problem(422, "plaintext-too-long").json();
        let detail = told["detail"].as_str().expect("a detail");
        assert!(detail.contains(&most.to_string()) && detail.contains(&algorithm), "{detail}");
        assert!(!told["next"].as_str().expect("what to do").is_empty());
    }
    let base64url = json!({ "plaintext": "-_8" });
    let made = appliance.post("/v1/keys/k2048/encrypt", &base64url).expect_status(200).json();
    let opened =
        appliance.post("/v1/keys/k2048/decrypt", &json!({"ciphertext": made["ciphertext"]}));
    assert_eq!(opened.json()["plaintext"], "+/8=", "any alphabet in, standard out");
}

#[test]
fn failures_to_decrypt_are_the_same_bytes() {
    let appliance = Appliance::new();
    let old = appliance.create_key("payments");
    appliance.create_key("other");
    let directory = appliance.path("");
    let ciphertext = openssl_encrypt(&old, b"token", &directory);
    let old_kid = appliance.get("/v1/keys/payments/public").json()["kid"].clone();
    appliance.post("/v1/keys/payments/rotate", &json!({})).expect_status(200);
    let new_kid = appliance.get("/v1/keys/payments/public").json()["kid"].clone();
    let good = b64(&ciphertext);
    let decrypt =
        |key: &str, body: Value| appliance.post(&format!("/v1/keys/{key}/decrypt"), &body);
    for which in [json!({"version": 1}), json!({"kid": old_kid})] {
        let mut body = which.clone();
        body["ciphertext"] = json!(good);
        let opened = expect_json(&decrypt("payments", body), 200);
        assert_eq!(unb64(&opened["plaintext"]), b"token", "{which}");
        assert_eq!((&opened["version"], &opened["kid"]), (&json!(1), &old_kid));
    }
    let mut flipped = ciphertext.clone();
    flipped[100] ^= 1;
    let failures = [
        ("payments", json!({"ciphertext": good})),
        ("payments", json!({"ciphertext": good, "version": 2})),
        ("payments", json!({"ciphertext": good, "kid": new_kid})),
        ("other", json!({"ciphertext": good})),
        ("payments", json!({"ciphertext": good, "version": 1, "label": b64("x")})),
        ("payments", json!({"ciphertext": b64(&flipped), "version": 1})),
        ("payments", json!({"ciphertext": b64(&ciphertext[1..]), "version": 1})),
        ("payments", json!({"ciphertext": b64([&ciphertext[..], b"x"].concat()), "version": 1})),
        ("payments", json!({"ciphertext": b64([0; 256]), "version": 1})),
        ("payments", json!({"ciphertext": b64([0xff; 256]), "version": 1})),
        ("payments", json!({"ciphertext": "", "version": 1})),
        ("payments", json!({"ciphertext": b64(vec![7; 100_000]), "version": 1})),
    ];
    let mut told: Option<Vec<u8>> = None;
    for (key, body) in failures {
        let reply = decrypt(key, body);
        reply.expect_problem(422, "decryption-failed");
        expect_traced(&appliance, &reply, "key:decrypt", &format!("key/{key}"));
        let bytes = but_for_its_number(&reply);
        assert_eq!(told.get_or_insert(bytes.clone()), &bytes);
    }
    decrypt("payments", json!({"ciphertext": good, "version": 9}))
        .expect_problem(404, "no-such-version");
    decrypt("payments", json!({"ciphertext": good, "kid": "nobody"}))
        .expect_problem(404, "no-such-version");
    decrypt("payments", json!({"ciphertext": good, "version": 1, "kid": old_kid}))
        .expect_problem(400, "invalid");
    labels_have_a_longest_one(&appliance);
}

fn labels_have_a_longest_one(appliance: &Appliance) {
    let longest = b64(vec![1; 4096]);
    let body = json!({"plaintext": b64("token"), "label": longest});
    let made = appliance.post("/v1/keys/payments/encrypt", &body).expect_status(200).json();
    let body = json!({"ciphertext": made["ciphertext"], "label": longest});
    appliance.post("/v1/keys/payments/decrypt", &body).expect_status(200);
    for longer in [b64(vec![1; 4097]), b64(vec![1; 700_000])] {
        let body = json!({"plaintext": b64("token"), "label": longer});
        appliance.post("/v1/keys/payments/encrypt", &body).expect_problem(400, "invalid");
        let body = json!({"ciphertext": made["ciphertext"], "label": longer});
        appliance.post("/v1/keys/payments/decrypt", &body).expect_problem(400, "invalid");
    }
}

#[test]
fn batches_answer_for_each_item() {
    let appliance = Appliance::new();
    let public = appliance.create_key("payments");
    let good = b64(openssl_encrypt(&public, b"token", &appliance.path("")));
    let decrypt =
        |items: Value| appliance.post("/v1/keys/payments/decrypt", &json!({"items": items}));
    let full = vec![json!({"ciphertext": good}); 256];
    let reply = decrypt(json!(full));
    let items = expect_json(&reply, 200)["items"].as_array().expect("items").clone();
    assert_eq!(items.len(), 256);
    assert!(items.iter().all(|item| unb64(&item["plaintext"]) == b"token"));
    decrypt(json!(vec![json!({"ciphertext": good}); 257])).expect_problem(400, "invalid");
    decrypt(json!([])).expect_problem(400, "invalid");
    decrypt(json!([[good]])).expect_problem(400, "malformed");

    let reply = decrypt(json!([
        {"ciphertext": good},
        {"ciphertext": b64([1; 256])},
        {"ciphertext": good, "label": b64("x")},
        {"ciphertext": good, "version": 7},
        {"ciphertext": good, "version": 1, "kid": "x"},
        {"ciphertext": good, "version": 1},
    ]));
    let items = expect_json(&reply, 200)["items"].clone();
    let codes: Vec<&str> =
        (0..6).map(|at| items[at]["error"]["code"].as_str().unwrap_or("done")).collect();
    assert_eq!(codes[..3], ["done", "decryption-failed", "decryption-failed"]);
    assert_eq!(codes[3..], ["no-such-version", "invalid", "done"]);
    assert_eq!(items[1], items[2], "failures to decrypt are all the same");
    let lines = crate::checks::lines_of(&appliance, &reply);
    assert_eq!((&lines[0]["items"], &lines[1]["failed_items"]), (&json!(6), &json!(4)));

    let before = seen(&appliance);
    for body in [
        json!({}),
        json!({"ciphertext": good, "items": [{"ciphertext": good}]}),
        json!({"items": [{"ciphertext": good}], "version": 1}),
        json!({"items": [{"ciphertext": good}], "label": ""}),
    ] {
        appliance.post("/v1/keys/payments/decrypt", &body).expect_problem(400, "invalid");
    }
    assert_eq!(seen(&appliance), before);
}

#[test]
fn rotations_at_the_same_time_lose_nothing() {
    let appliance = Appliance::new();
    appliance.create_key("payments");
    let rotate = || appliance.post("/v1/keys/payments/rotate", &json!({}));
    let replies: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(rotate)).collect();
        threads.into_iter().map(|thread| thread.join().expect("asked")).collect()
    });
    let mut made = Vec::new();
    for reply in &replies {
        match reply.status {
            200 => made.push(reply.json()["current_version"].as_u64().expect("a version")),
            _ => {
                reply.expect_problem(409, "conflict");
            }
        }
    }
    made.sort_unstable();
    let expected: Vec<u64> = (2..).take(made.len()).collect();
    assert!(!made.is_empty() && made == expected, "{made:?}");
    let key = appliance.get("/v1/keys/payments").json();
    assert_eq!(key["versions"].as_array().expect("versions").len(), made.len() + 1);
    let made = appliance.post("/v1/keys/payments/encrypt", &json!({"plaintext": b64("x")})).json();
    let body = json!({"ciphertext": made["ciphertext"], "version": made["version"]});
    let opened = appliance.post("/v1/keys/payments/decrypt", &body);
    assert_eq!(unb64(&opened.expect_status(200).json()["plaintext"]), b"x");

    let create = || appliance.post("/v1/keys", &json!({"name": "one", "algorithm": "RSA-2048"}));
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(create)).collect();
        threads.into_iter().map(|thread| thread.join().expect("asked").status).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| [201, 409].contains(status)), "{statuses:?}");
}
