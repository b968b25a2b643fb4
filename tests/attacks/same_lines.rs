//! What differs in what it does looks the same in the audit log.

use serde_json::{Value, json};

use crate::acts::base64;
use crate::appliance::{Appliance, Reply};
use crate::checks::lines_of;
use crate::token::PIN;

/// The lines of an operation, without what differs between any two.
fn lines(appliance: &Appliance, reply: &Reply) -> Vec<Value> {
    let mut lines = lines_of(appliance, reply);
    for line in &mut lines {
        let line = line.as_object_mut().expect("an object");
        for member in ["seq", "time", "prev", "of", "request", "pid", "changes", "revision"] {
            line.remove(member);
        }
        for member in ["resource", "generation"] {
            line.remove(member);
        }
    }
    lines
}

/// Both are done, and their lines differ. Returns those of the second.
#[track_caller]
fn differ(appliance: &Appliance, one: &Reply, other: &Reply) -> Vec<Value> {
    assert!(one.status < 300 && other.status < 300, "{}{}", one.text(), other.text());
    let (one, other) = (lines(appliance, one), lines(appliance, other));
    assert_eq!((one.len(), other.len()), (2, 2), "{one:?} {other:?}");
    assert_ne!(one, other);
    other
}

#[test]
fn what_was_done_is_told_apart() {
    let appliance = Appliance::new();
    let post = |path: &str, body: Value| appliance.post(path, &body);
    let make = |name: &str, more: Value| {
        let mut body = json!({ "name": name, "algorithm": "RSA-2048" });
        body.as_object_mut().expect("one").extend(more.as_object().expect("one").clone());
        post("/v1/keys", body)
    };
    let first = make("one", json!({}));
    let second = make("two", json!({ "labels": { "shared": "services", "by": "M\u{fc}ller, x" } }));
    let of = differ(&appliance, &first, &second);
    assert_eq!(of[0]["labels"], "by=M%C3%BCller%2C%20x,shared=services");
    let third = make("three", json!({ "serve_without_token_seconds": 60 }));
    differ(&appliance, &first, &third);
    differ(&appliance, &first, &make("four", json!({ "mgf1_hash": "SHA-1" })));

    let update = |seconds: u32| {
        post("/v1/keys/one/update", json!({ "serve_without_token_seconds": seconds }))
    };
    let of = differ(&appliance, &update(5), &update(7200));
    assert_eq!(of[0]["outage_seconds"], 7200);
    let destroy = |key: &str, days: u16| {
        appliance.delete(&format!("/v1/keys/{key}"), &json!({ "waiting_period_days": days }))
    };
    let of = differ(&appliance, &destroy("three", 30), &destroy("four", 60));
    assert_eq!(of[0]["days"], 60);
    assert!(of[1]["destroy_at"].is_string(), "{of:?}");

    let sealed = post("/v1/keys/two/encrypt", json!({ "plaintext": base64("x") })).json();
    let put = |name: &str, verify: bool| {
        let body = json!({ "key": "two", "ciphertext": sealed["ciphertext"], "verify": verify });
        appliance.put(&format!("/v1/secrets/{name}"), &body)
    };
    let of = differ(&appliance, &put("a", false), &put("b", true));
    assert_eq!(
        (&of[0]["verify"], &of[1]["also"]),
        (&json!(true), &json!("key:decrypt,key:encrypt"))
    );
    let revealed = post("/v1/secrets/a/reveal", json!({}));
    assert_eq!(lines(&appliance, &revealed)[1]["also"], "key:decrypt");

    for _ in 0..2 {
        assert!(appliance.cli(&["master", "rotate", "--force"]).status.success());
    }
    let retire = |body: Value| post("/v1/master/retire", body);
    let scheduled = retire(json!({ "generation": 1 }));
    let at_once = retire(json!({ "generation": 2, "pin": base64(PIN) }));
    let of = differ(&appliance, &scheduled, &at_once);
    assert_eq!((&of[0]["with_pin"], &of[1]["also"]), (&json!(true), &json!("appliance:give-pin")));
    assert!(of[1].get("destroy_at").is_none(), "{of:?}");

    let unlock = |body: Value| {
        post("/v1/lock", json!({})).expect_status(200);
        post("/v1/unlock", body)
    };
    let of = differ(&appliance, &unlock(json!({})), &unlock(json!({ "pin": base64(PIN) })));
    assert_eq!(of[0]["with_pin"], true);
}

#[test]
fn a_further_permission_that_is_refused_is_named() {
    let appliance = Appliance::new();
    appliance.create_key("kept");
    let owner = json!({ "owner": "unix:60999" });
    appliance.post("/v1/keys/kept/transfer", &owner).expect_status(200);
    let body = json!({ "key": "kept", "plaintext": base64("x") });
    appliance.put("/v1/secrets/s", &body).expect_status(201);
    let refused = appliance.post("/v1/secrets/s/reveal", &json!({}));
    refused.expect_problem(403, "denied");
    let lines = lines_of(&appliance, &refused);
    assert_eq!(lines.last().expect("a line")["lacks"], "key:decrypt", "{lines:?}");
}
