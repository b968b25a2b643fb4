//! Secrets over the socket: stored, shown, revealed, deleted; revisions and who comes first.

use serde_json::{Value, json};

use crate::acts::{put_secret, reveal, step};
use crate::appliance::{Appliance, JSON, Reply, openssl_encrypt};
use crate::checks::{
    b64, but_for_its_number, expect_headers, expect_json, expect_members, expect_time,
    expect_traced, lines_of, seen, unb64,
};

const SECRET: [&str; 9] = [
    "name",
    "key",
    "version",
    "kid",
    "revision",
    "created_at",
    "updated_at",
    "updated_by",
    "owner",
];

/// A put under an entity tag.
fn put_if(appliance: &Appliance, tag: &str, body: &Value) -> Reply {
    let headers = format!("{JSON}if-match: {tag}\r\n");
    appliance.request("PUT", "/v1/secrets/stripe", &headers, body.to_string().as_bytes())
}

#[test]
fn secrets_are_stored_shown_revealed_and_deleted() {
    let appliance = Appliance::new();
    let public = appliance.create_key("payments");
    let kid = appliance.get("/v1/keys/payments/public").json()["kid"].clone();
    let ciphertext = b64(openssl_encrypt(&public, b"one", &appliance.path("")));
    let body = json!({"key": "payments", "ciphertext": ciphertext, "verify": true});
    let stored = appliance.put("/v1/secrets/stripe", &body);
    let secret = expect_json(&stored, 201);
    expect_members(&secret, &SECRET, &[]);
    assert_eq!((&secret["name"], &secret["key"]), (&json!("stripe"), &json!("payments")));
    assert_eq!((&secret["version"], &secret["kid"]), (&json!(1), &kid));
    let me = json!(format!("unix:{}", nix::unistd::getuid()));
    assert_eq!((&secret["revision"], &secret["updated_by"]), (&json!(1), &me));
    assert_eq!(stored.header("etag").as_deref(), Some("\"1\""));
    expect_time(&secret["created_at"]);
    assert_eq!(secret["created_at"], secret["updated_at"]);
    expect_traced(&appliance, &stored, "secret:put", "secret/stripe");
    assert_eq!(lines_of(&appliance, &stored)[1]["revision"], 1);

    let shown = appliance.get("/v1/secrets/stripe");
    assert_eq!(expect_json(&shown, 200), secret);
    assert_eq!(shown.header("etag").as_deref(), Some("\"1\""));
    let again =
        appliance.put("/v1/secrets/stripe", &json!({"key": "payments", "plaintext": b64("two")}));
    let second = expect_json(&again, 200);
    assert_eq!(second["revision"], 2);
    assert_eq!(second["created_at"], secret["created_at"]);
    expect_time(&second["updated_at"]);
    assert_eq!(again.header("etag").as_deref(), Some("\"2\""));

    let revealed = appliance.post("/v1/secrets/stripe/reveal", &json!({}));
    let opened = expect_json(&revealed, 200);
    expect_members(&opened, &[&SECRET[..], &["plaintext"]].concat(), &[]);
    assert_eq!(unb64(&opened["plaintext"]), b"two");
    assert_eq!(revealed.header("etag").as_deref(), Some("\"2\""));
    expect_traced(&appliance, &revealed, "secret:reveal", "secret/stripe");

    let deleted = appliance.request("DELETE", "/v1/secrets/stripe", "", b"");
    deleted.expect_status(204);
    assert!(deleted.body.is_empty());
    expect_headers(&deleted);
    expect_traced(&appliance, &deleted, "secret:delete", "secret/stripe");
    for (method, path) in [
        ("GET", "/v1/secrets/stripe"),
        ("DELETE", "/v1/secrets/stripe"),
        ("POST", "/v1/secrets/stripe/reveal"),
    ] {
        appliance.request(method, path, "", b"").expect_problem(404, "not-found");
    }
    let back =
        appliance.put("/v1/secrets/stripe", &json!({"key": "payments", "plaintext": b64("x")}));
    let revision = expect_json(&back, 201)["revision"].as_u64().expect("a number");
    assert!(revision > 2, "a tag of the deleted one must never match the new: {revision}");
}

#[test]
fn lists_are_paged_and_hold_no_value() {
    let appliance = Appliance::new();
    appliance.create_key("payments");
    let names: Vec<String> = (0..7).map(|at| format!("s{at}")).collect();
    for name in &names {
        let body = json!({"key": "payments", "plaintext": b64("the-value")});
        appliance.put(&format!("/v1/secrets/{name}"), &body).expect_status(201);
    }
    let whole = appliance.get("/v1/secrets");
    let all = expect_json(&whole, 200);
    expect_members(&all, &["secrets"], &[]);
    all["secrets"]
        .as_array()
        .expect("secrets")
        .iter()
        .for_each(|s| expect_members(s, &SECRET, &[]));
    assert!(!whole.text().contains("ciphertext") && !whole.text().contains(&b64("the-value")));
    for limit in [1, 3, 7, 8] {
        let (mut walked, mut query) = (Vec::new(), format!("limit={limit}"));
        loop {
            let page = expect_json(&appliance.get(&format!("/v1/secrets?{query}")), 200);
            let found = page["secrets"].as_array().expect("secrets");
            assert!(found.len() <= limit);
            walked.extend(found.iter().map(|s| s["name"].as_str().expect("a name").to_owned()));
            let Some(next) = page["next"].as_str() else { break };
            query = format!("limit={limit}&after={next}");
        }
        assert_eq!(walked, names, "limit={limit}");
    }
}

#[test]
fn versions_are_kept_and_wrong_ones_fail_at_reveal_like_everything() {
    let appliance = Appliance::new();
    let old = appliance.create_key("payments");
    appliance.create_key("other");
    let kid = appliance.get("/v1/keys/payments/public").json()["kid"].clone();
    let for_old = b64(openssl_encrypt(&old, b"old", &appliance.path("")));
    appliance.post("/v1/keys/payments/rotate", &json!({})).expect_status(200);
    let put = |name: &str, body: Value| appliance.put(&format!("/v1/secrets/{name}"), &body);
    let reveal = |name: &str| appliance.post(&format!("/v1/secrets/{name}/reveal"), &json!({}));
    for (name, which) in [("v", json!({"version": 1})), ("k", json!({"kid": kid}))] {
        let mut body = json!({"key": "payments", "ciphertext": for_old, "verify": true});
        body.as_object_mut().expect("an object").extend(which.as_object().expect("one").clone());
        assert_eq!(expect_json(&put(name, body), 201)["version"], 1);
        assert_eq!(unb64(&reveal(name).expect_status(200).json()["plaintext"]), b"old");
    }
    put("new", json!({"key": "payments", "plaintext": b64("new")})).expect_status(201);
    assert_eq!(reveal("new").json()["version"], 2);

    let before = seen(&appliance);
    let verified = put("w", json!({"key": "payments", "ciphertext": for_old, "verify": true}));
    verified.expect_problem(422, "decryption-failed");
    let short = json!({"key": "payments", "ciphertext": b64([0; 255])});
    put("w", short).expect_problem(400, "invalid");
    put("w", json!({"key": "payments", "plaintext": b64([0; 191])}))
        .expect_problem(422, "plaintext-too-long");
    put("w", json!({"key": "nobody", "plaintext": b64("x")})).expect_problem(404, "not-found");
    put("w", json!({"key": "payments", "ciphertext": for_old, "version": 3}))
        .expect_problem(404, "no-such-version");
    for body in [
        json!({"key": "payments"}),
        json!({"key": "payments", "plaintext": "", "ciphertext": for_old}),
        json!({"key": "payments", "plaintext": "", "version": 1}),
        json!({"key": "payments", "plaintext": "", "verify": true}),
        json!({"key": "payments", "ciphertext": for_old, "version": 1, "kid": kid}),
    ] {
        put("w", body).expect_problem(400, "invalid");
    }
    assert_eq!(seen(&appliance), before);

    let wrong = put("w", json!({"key": "payments", "ciphertext": for_old}));
    wrong.expect_status(201);
    put("x", json!({"key": "other", "ciphertext": b64([9; 256])})).expect_status(201);
    let (one, two) = (reveal("w"), reveal("x"));
    one.expect_problem(422, "decryption-failed");
    assert_eq!(but_for_its_number(&one), but_for_its_number(&two));
    assert_eq!(but_for_its_number(&one), but_for_its_number(&verified));
    expect_traced(&appliance, &one, "secret:reveal", "secret/w");
}

#[test]
fn if_match_is_honoured() {
    let appliance = Appliance::new();
    appliance.create_key("payments");
    let body = json!({"key": "payments", "plaintext": b64("x")});
    put_if(&appliance, "\"1\"", &body).expect_problem(412, "revision-mismatch");
    appliance.get("/v1/secrets/stripe").expect_problem(404, "not-found");
    appliance.put("/v1/secrets/stripe", &body).expect_status(201);
    put_if(&appliance, "\"1\"", &body).expect_status(200);
    for stale in ["\"1\"", "\"3\"", "\"0\"", "\"18446744073709551615\""] {
        put_if(&appliance, stale, &body).expect_problem(412, "revision-mismatch");
        let headers = format!("if-match: {stale}\r\n");
        let deleted = appliance.request("DELETE", "/v1/secrets/stripe", &headers, b"");
        deleted.expect_problem(412, "revision-mismatch");
    }
    for bad in ["2", "W/\"2\"", "\"2\" \"3\"", "*, \"2\"", "\"+2\"", "\"-1\"", "\"\"", "\"a\""] {
        put_if(&appliance, bad, &body).expect_problem(400, "malformed");
    }
    put_if(&appliance, "\"2\"\r\nif-match: \"1\"", &body).expect_problem(400, "malformed");
    assert_eq!(appliance.get("/v1/secrets/stripe").json()["revision"], 2);
    let headers = "if-match: \"2\"\r\n";
    appliance.request("DELETE", "/v1/secrets/stripe", headers, b"").expect_status(204);
}

#[test]
fn puts_at_the_same_time_lose_no_update() {
    let appliance = Appliance::new();
    appliance.create_key("payments");
    let body = json!({"key": "payments", "plaintext": b64("first")});
    appliance.put("/v1/secrets/stripe", &body).expect_status(201);
    // Each is a read and a write under what was read, repeated until it went through.
    let add_one = |writer: usize| {
        for round in 0..5 {
            loop {
                let revision = appliance.get("/v1/secrets/stripe").json()["revision"].to_string();
                let value = b64(format!("{writer}-{round}"));
                let body = json!({"key": "payments", "plaintext": value});
                match put_if(&appliance, &format!("\"{revision}\""), &body) {
                    reply if reply.status == 200 => break,
                    reply => assert_eq!(reply.status, 412, "{}", reply.text()),
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for writer in 0..4 {
            scope.spawn(move || add_one(writer));
        }
    });
    assert_eq!(appliance.get("/v1/secrets/stripe").json()["revision"], 21);

    let put = || appliance.put("/v1/secrets/new", &body);
    let replies: Vec<Reply> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(put)).collect();
        threads.into_iter().map(|thread| thread.join().expect("asked")).collect()
    });
    let count = |status| replies.iter().filter(|reply| reply.status == status).count();
    assert_eq!((count(201), count(201) + count(200) + count(409)), (1, 8));
    let revision = appliance.get("/v1/secrets/new").json()["revision"].as_u64();
    assert_eq!(revision, Some((count(201) + count(200)) as u64), "each success is one revision");
}

#[test]
fn what_an_act_logs_names_its_request() {
    let appliance = Appliance::new();
    appliance.create_key("k");
    put_secret(&appliance, "s", "k", "x").expect_status(201);
    step(&appliance, "k", "suspend", json!({})).expect_status(200);
    let refused = reveal(&appliance, "s");
    refused.expect_problem(409, "key-state");
    let id = refused.header("x-request-id").expect("a number");
    appliance.wait_for_log(0, "not opened");
    let log = appliance.log();
    let line = log.lines().find(|line| line.contains("not opened")).expect("a line");
    assert!(line.contains(&id), "{id}: {line}");
}
