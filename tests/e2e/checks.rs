//! What several modules check replies and the trail with.

use std::collections::BTreeSet;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::Value;

use crate::appliance::{Appliance, Reply, wait_until};

pub fn b64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// The bytes of a binary member, which goes out in the standard alphabet with padding.
#[track_caller]
pub fn unb64(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap_or_else(|| panic!("not a string: {value}"));
    BASE64_STANDARD.decode(text).unwrap_or_else(|_| panic!("not standard base64: {text}"))
}

/// An object has these members, and no other than these and the optional ones.
#[track_caller]
pub fn expect_members(object: &Value, always: &[&str], sometimes: &[&str]) {
    let found: BTreeSet<&str> =
        object.as_object().expect("an object").keys().map(String::as_str).collect();
    let always: BTreeSet<&str> = always.iter().copied().collect();
    let sometimes: BTreeSet<&str> = sometimes.iter().copied().collect();
    assert!(found.is_superset(&always), "members are missing: {object}");
    let known: BTreeSet<&str> = always.union(&sometimes).copied().collect();
    assert!(found.is_subset(&known), "members that nobody knows: {object}");
}

/// RFC 3339 in UTC.
#[track_caller]
pub fn expect_time(value: &Value) {
    let text = value.as_str().unwrap_or_else(|| panic!("not a time: {value}"));
    assert!(text.parse::<jiff::Timestamp>().is_ok() && text.ends_with('Z'), "{text}");
}

/// What every reply has: a UUID as its number, and `no-store`.
#[track_caller]
pub fn expect_headers(reply: &Reply) -> String {
    assert_eq!(reply.header("cache-control").as_deref(), Some("no-store"), "{}", reply.head);
    let id = reply.header("x-request-id").expect("a request id");
    assert!(uuid::Uuid::parse_str(&id).is_ok(), "{id}");
    id
}

/// A 2xx of JSON, with the headers of every reply.
#[track_caller]
pub fn expect_json(reply: &Reply, status: u16) -> Value {
    reply.expect_status(status);
    expect_headers(reply);
    assert_eq!(reply.header("content-type").as_deref(), Some("application/json"));
    let json = reply.json();
    assert!(json.is_object(), "{}", reply.text());
    json
}

/// Every line of the trail, read from its files.
pub fn trail(appliance: &Appliance) -> Vec<Value> {
    let mut files: Vec<_> = std::fs::read_dir(appliance.trail())
        .expect("a trail")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let text: String = files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The lines of a reply's request, once its outcome is among them.
#[track_caller]
pub fn lines_of(appliance: &Appliance, reply: &Reply) -> Vec<Value> {
    let id = expect_headers(reply);
    let mut lines = Vec::new();
    wait_until("the outcome in the trail", || {
        lines =
            trail(appliance).into_iter().filter(|line| line["request"] == id.as_str()).collect();
        lines.iter().any(|line| line["kind"] == "outcome")
    });
    lines
}

/// The request has an intent and an outcome in the trail, of this action on this resource.
#[track_caller]
pub fn expect_traced(appliance: &Appliance, reply: &Reply, action: &str, resource: &str) {
    let lines = lines_of(appliance, reply);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!((&lines[0]["kind"], &lines[1]["kind"]), (&"intent".into(), &"outcome".into()));
    for line in &lines {
        assert_eq!((&line["action"], &line["resource"]), (&action.into(), &resource.into()));
    }
    let result = if reply.status < 300 { "done" } else { "failed" };
    assert_eq!(lines[1]["result"], result, "{lines:?}");
}

/// What can be seen of keys and secrets: equal before and after something that changed nothing.
pub fn seen(appliance: &Appliance) -> (Value, Value) {
    let keys = appliance.get("/v1/keys?limit=1000").expect_status(200).json();
    let secrets = appliance.get("/v1/secrets?limit=1000").expect_status(200).json();
    (keys, secrets)
}

/// A problem's document without what is different every time.
#[track_caller]
pub fn but_for_its_number(reply: &Reply) -> Vec<u8> {
    let id = expect_headers(reply);
    reply.text().replace(&id, "").into_bytes()
}
