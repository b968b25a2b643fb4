//! Somebody puts single records back from an older copy of the store, or damages them: what that
//! reaches, and what goes on beside it.

use serde_json::{Value, json};

use crate::acts::{base64, decrypt, encrypt, expect_plaintext, put_secret, step, trail_lines};
use crate::appliance::Appliance;
use crate::raw_store::{KEY, KEY_VERSION, Raw, SECRET};

#[test]
fn one_record_of_a_key_from_an_older_copy_is_not_served() {
    let mut appliance = Appliance::new();
    for key in ["k", "l", "m"] {
        appliance.create_key(key);
    }
    let of_k = encrypt(&appliance, "k", "x");
    let of_m = encrypt(&appliance, "m", "of m");
    appliance.stop();
    let raw = Raw::open(&appliance);
    let older_version = raw.bytes(KEY_VERSION, "k/0000000001");
    let older_key = raw.bytes(KEY, "l");
    drop(raw);
    appliance.start();
    for key in ["k", "l"] {
        step(&appliance, key, "compromise", json!({})).expect_status(200);
    }
    appliance.stop();
    let raw = Raw::open(&appliance);
    raw.put(KEY_VERSION, "k/0000000001", older_version);
    raw.put(KEY, "l", older_key);
    drop(raw);
    appliance.start();
    // The audit log knows that a whole key has changed since; of one version the store's own state does.
    for (key, named) in [("k", "key/k"), ("l", "key/l")] {
        let from = appliance.log().len();
        appliance.get(&format!("/v1/keys/{key}")).expect_problem(500, "record-broken");
        let body = json!({ "plaintext": base64("x") });
        let refused = appliance.post(&format!("/v1/keys/{key}/encrypt"), &body);
        refused.expect_problem(500, "record-broken");
        appliance.wait_for_log(from, &format!("{named} was changed outside"));
    }
    decrypt(&appliance, "k", &of_k, None).expect_problem(500, "record-broken");
    expect_plaintext(&decrypt(&appliance, "m", &of_m, None), "of m");
}

/// The names in a list of a page.
fn names(list: &Value) -> Vec<&str> {
    let entries = list.as_array().expect("a list");
    entries.iter().map(|entry| entry["name"].as_str().expect("a name")).collect()
}

#[test]
fn lists_go_on_beside_a_broken_record_and_name_it() {
    let mut appliance = Appliance::new();
    for key in ["a", "b", "c", "d"] {
        appliance.create_key(key);
        put_secret(&appliance, key, "a", "x").expect_status(201);
    }
    assert!(appliance.get("/v1/keys").json().get("broken").is_none());
    assert_eq!(appliance.get("/v1/jwks.json").json()["keys"].as_array().unwrap().len(), 4);
    appliance.stop();
    let raw = Raw::open(&appliance);
    raw.damage(KEY_VERSION, "b/0000000001");
    raw.damage(KEY, "d");
    raw.damage(SECRET, "c");
    // Nothing of Strongroom's has such a name.
    raw.put(KEY, "B/ad", raw.bytes(KEY, "a"));
    drop(raw);
    appliance.start();
    let page = appliance.get("/v1/keys").expect_status(200).json();
    assert_eq!((names(&page["keys"]), &page["broken"]), (vec!["a", "c"], &json!(["b", "d"])));
    let page = appliance.get("/v1/keys?limit=2").expect_status(200).json();
    assert_eq!((names(&page["keys"]), &page["broken"]), (vec!["a"], &json!(["b"])));
    let next = page["next"].as_str().expect("a cursor");
    let rest = appliance.get(&format!("/v1/keys?limit=2&after={next}")).json();
    assert_eq!((names(&rest["keys"]), &rest["broken"]), (vec!["c"], &json!(["d"])));
    let set = appliance.get("/v1/jwks.json").expect_status(200).json();
    assert_eq!(set["keys"].as_array().expect("keys").len(), 2);
    let page = appliance.get("/v1/secrets").expect_status(200).json();
    assert_eq!((names(&page["secrets"]), &page["broken"]), (vec!["a", "b", "d"], &json!(["c"])));
    appliance.wait_for_log(0, "key-version/b/0000000001 was changed outside");
    let listed = appliance.cli(&["key", "list"]);
    assert!(listed.status.success());
    let (told, listed) = (listed.stderr, String::from_utf8(listed.stdout).expect("text"));
    assert!(listed.contains("\nc ") && !listed.contains("\nb "), "{listed}");
    assert!(String::from_utf8(told).expect("text").contains("b, d"), "they are named");
}

#[test]
fn the_trail_tells_at_which_revision_a_key_was_left() {
    let appliance = Appliance::new();
    appliance.create_key("k");
    step(&appliance, "k", "rotate", json!({})).expect_status(200);
    step(&appliance, "k", "compromise", json!({})).expect_status(200);
    let lines = trail_lines(&appliance.trail());
    let outcomes = lines.iter().filter(|l| l["resource"] == "key/k" && l["result"] == "done");
    let changes = outcomes.filter(|line| line["changes"].is_u64());
    let told: Vec<_> = changes.map(|line| line["revision"].as_u64()).collect();
    assert_eq!(told, [Some(1), Some(2), Some(3)]);
}
