//! What tells of the appliance itself: health, status, doctor, metrics, the trail, the OpenAPI document.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::appliance::Appliance;
use crate::checks::{b64, expect_headers, expect_json, expect_members, expect_traced, trail};

#[test]
fn the_appliance_tells_how_it_does() {
    let appliance = Appliance::uninitialised();
    let health = appliance.get("/v1/health");
    assert_eq!(health.expect_problem(503, "not-ready").header("retry-after").as_deref(), Some("1"));
    assert_eq!(appliance.get("/v1/status").json()["state"], "not-initialised");
    let keys = json!({"name": "early", "algorithm": "RSA-2048"});
    let early = appliance.post("/v1/keys", &keys);
    early.expect_problem(503, "not-initialised");
    assert_eq!(early.header("retry-after").as_deref(), Some("10"), "an operator has to act");
    for (method, path) in [
        ("GET", "/v1/keys/early"),
        ("POST", "/v1/keys/early/rotate"),
        ("GET", "/v1/secrets/early"),
        ("POST", "/v1/secrets/early/reveal"),
        ("DELETE", "/v1/secrets/early"),
        ("GET", "/v1/audit/public-key"),
    ] {
        appliance.request(method, path, "", b"").expect_problem(503, "not-initialised");
    }

    let made = appliance.post("/v1/init", &json!({}));
    expect_traced(&appliance, &made, "appliance:init", "appliance");
    let made = expect_json(&made, 201);
    expect_members(&made, &["appliance", "generation", "created"], &[]);
    let id = made["appliance"].as_str().expect("an id");
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    for body in [json!({}), json!({"resume": true})] {
        appliance.post("/v1/init", &body).expect_problem(409, "already-initialised");
    }
    let health = expect_json(&appliance.get("/v1/health"), 200);
    assert_eq!(health, json!({ "ready": true }));

    let status = expect_json(&appliance.get("/v1/status"), 200);
    let always = ["version", "state", "uptime_seconds", "appliance", "generation", "token"];
    let more =
        ["locked_memory", "sandbox", "arena_used_bytes", "loaded_keys", "policy", "trail", "clock"];
    let more = [&more[..], &["without_the_token", "store"]].concat();
    expect_members(&status, &[&always[..], &more].concat(), &[]);
    assert_eq!((&status["state"], &status["appliance"]), (&json!("ready"), &made["appliance"]));
    expect_members(&status["token"], &["label", "serial", "manufacturer", "model"], &[]);
    expect_members(&status["policy"], &["policies", "hash"], &[]);
    expect_members(&status["trail"], &["head", "writable", "free_bytes"], &[]);
    expect_members(&status["store"], &["writable", "free_bytes", "reserve_bytes"], &[]);
    expect_members(&status["clock"], &["state", "ahead_seconds"], &[]);
    assert_eq!(status["trail"]["writable"], true);

    let doctor = expect_json(&appliance.get("/v1/doctor"), 200);
    for check in doctor["checks"].as_array().expect("checks") {
        expect_members(check, &["name", "result", "detail", "setting"], &[]);
        assert!(["ok", "warn", "fail"].contains(&check["result"].as_str().expect("a word")));
        assert!(check["result"] == "ok" || check["setting"] != "", "what mends it? {check}");
    }
    let confirmed = appliance.post("/v1/clock/confirm", &json!({}));
    assert_eq!(expect_json(&confirmed, 200)["clock"]["state"], "agrees");
    expect_traced(&appliance, &confirmed, "appliance:confirm-clock", "appliance");
    locking_halts_everything(&appliance);
    metrics_count(&appliance);
}

fn locking_halts_everything(appliance: &Appliance) {
    appliance.create_key("payments");
    appliance.post("/v1/unlock", &json!({})).expect_problem(409, "not-locked");
    let locked = appliance.post("/v1/lock", &json!({"reason": "maintenance"}));
    expect_traced(appliance, &locked, "appliance:lock", "appliance");
    assert_eq!(expect_json(&locked, 200)["state"], "locked");
    appliance.get("/v1/health").expect_problem(503, "not-ready");
    let body = json!({"plaintext": b64("x")});
    for _ in 0..2 {
        appliance
            .post("/v1/keys/payments/decrypt", &json!({"ciphertext": b64([1; 256])}))
            .expect_problem(503, "locked");
    }
    for pin in [String::new(), "1".repeat(256), "1".repeat(200_000)] {
        let refused = appliance.post("/v1/unlock", &json!({"pin": b64(pin)}));
        refused.expect_problem(400, "invalid");
    }
    let unlocked = appliance.post("/v1/unlock", &json!({"pin": b64(crate::token::PIN)}));
    assert_eq!(expect_json(&unlocked, 200)["state"], "ready");
    expect_traced(appliance, &unlocked, "appliance:unlock", "appliance");
    appliance.post("/v1/keys/payments/encrypt", &body).expect_status(200);
}

fn metrics_count(appliance: &Appliance) {
    appliance.get("/v1/keys/nobody").expect_problem(404, "not-found");
    let reply = appliance.get("/metrics");
    expect_headers(reply.expect_status(200));
    let kind = reply.header("content-type").expect("a type");
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let page = reply.text();
    assert!(page.ends_with("# EOF\n"), "{page}");
    for line in [
        "strongroom_requests_total{action=\"key:create\",result=\"done\"} 1",
        "strongroom_requests_total{action=\"key:show\",result=\"not-found\"} 1",
        "strongroom_requests_total{action=\"appliance:lock\",result=\"done\"} 1",
        "strongroom_state{state=\"ready\"} 1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
    assert!(!page.contains("payments") && !page.contains("nobody"), "no names of anybody");
}

#[test]
fn the_trail_is_read_in_pages_and_through_filters() {
    let appliance = Appliance::new();
    appliance.create_key("payments");
    appliance.create_key("other");
    appliance.get("/v1/keys/payments").expect_status(200);
    let read = |query: &str| -> Value {
        let page = expect_json(&appliance.get(&format!("/v1/audit?{query}")), 200);
        expect_members(&page, &["lines"], &["next"]);
        page["lines"].clone()
    };
    crate::appliance::wait_until("the outcome of the last show", || {
        let lines = read("action=key:show&resource=key/payments&limit=1000");
        lines.as_array().is_some_and(|lines| lines.len() == 2)
    });
    let all = |lines: &Value, member: &str, value: &str| {
        let lines = lines.as_array().expect("lines");
        assert!(!lines.is_empty() && lines.iter().all(|line| line[member] == value), "{lines:?}");
    };
    all(&read("action=key:create"), "action", "key:create");
    all(&read("resource=key/payments"), "resource", "key/payments");
    let me = format!("unix:{}", nix::unistd::getuid());
    all(&read(&format!("caller={me}")), "caller", &me);
    let both = read(&format!("action=key:create&resource=key/other&caller={me}"));
    assert_eq!(both.as_array().map(Vec::len), Some(2));
    for none in ["action=key:fly", "caller=unix:4711", "resource=key/nobody", "after=999999"] {
        assert_eq!(read(none), json!([]), "{none}");
    }
    let (mut walked, mut after) = (Vec::new(), 0);
    while after < 12 {
        let page = expect_json(&appliance.get(&format!("/v1/audit?limit=5&after={after}")), 200);
        let lines = page["lines"].as_array().expect("lines");
        assert!(lines.len() <= 5);
        walked.extend(lines.iter().map(|line| line["seq"].as_u64().expect("a number")));
        after = page["next"].as_u64().expect("each reading adds lines, so there is more");
    }
    assert_eq!(walked, (1..=walked.len() as u64).collect::<Vec<_>>());
    let first = &appliance.get("/v1/audit?limit=1").json()["lines"][0];
    assert_eq!(first, &trail(&appliance)[0]);
    for bad in ["after=-1", "after=x", "limit=x", "limit=-1", "kind=intent", "after=1&after=2"] {
        appliance.get(&format!("/v1/audit?{bad}")).expect_problem(400, "malformed");
    }
    let pem = appliance.get("/v1/audit/public-key");
    assert_eq!(
        pem.expect_status(200).header("content-type").as_deref(),
        Some("application/x-pem-file")
    );
    assert!(pem.text().starts_with("-----BEGIN PUBLIC KEY-----\n"));
}

/// Every route, with the status of its success.
const ROUTES: &[(&str, &str, &[&str])] = &[
    ("post", "/v1/keys", &["201"]),
    ("get", "/v1/keys", &["200"]),
    ("get", "/v1/keys/{key}", &["200"]),
    ("delete", "/v1/keys/{key}", &["200"]),
    ("post", "/v1/keys/{key}/import", &["201"]),
    ("get", "/v1/keys/{key}/public", &["200"]),
    ("post", "/v1/keys/{key}/encrypt", &["200"]),
    ("post", "/v1/keys/{key}/decrypt", &["200"]),
    ("post", "/v1/keys/{key}/update", &["200"]),
    ("post", "/v1/keys/{key}/rotate", &["200"]),
    ("post", "/v1/keys/{key}/suspend", &["200"]),
    ("post", "/v1/keys/{key}/update", &["200"]),
    ("post", "/v1/keys/{key}/resume", &["200"]),
    ("post", "/v1/keys/{key}/deactivate", &["200"]),
    ("post", "/v1/keys/{key}/compromise", &["200"]),
    ("post", "/v1/keys/{key}/restore", &["200"]),
    ("post", "/v1/keys/{key}/transfer", &["200"]),
    ("get", "/v1/jwks.json", &["200"]),
    ("put", "/v1/secrets/{name}", &["200", "201"]),
    ("get", "/v1/secrets/{name}", &["200"]),
    ("delete", "/v1/secrets/{name}", &["204"]),
    ("get", "/v1/secrets", &["200"]),
    ("post", "/v1/secrets/{name}/reveal", &["200"]),
    ("post", "/v1/secrets/{name}/transfer", &["200"]),
    ("get", "/v1/audit", &["200"]),
    ("get", "/v1/audit/public-key", &["200"]),
    ("get", "/v1/health", &["200"]),
    ("get", "/v1/status", &["200"]),
    ("get", "/v1/doctor", &["200"]),
    ("post", "/v1/backup", &["200"]),
    ("post", "/v1/init", &["201"]),
    ("get", "/v1/master", &["200"]),
    ("post", "/v1/master/rotate", &["200"]),
    ("post", "/v1/master/retire", &["200"]),
    ("post", "/v1/master/cancel-retirement", &["200"]),
    ("get", "/v1/recovery", &["200"]),
    ("put", "/v1/recovery", &["200"]),
    ("delete", "/v1/recovery", &["200"]),
    ("post", "/v1/lock", &["200"]),
    ("post", "/v1/unlock", &["200"]),
    ("post", "/v1/clock/confirm", &["200"]),
    ("post", "/v1/policy/explain", &["200"]),
    ("get", "/v1/openapi.json", &["200"]),
    ("get", "/metrics", &["200"]),
];

#[test]
fn the_openapi_document_is_whole_and_sound() {
    let appliance = Appliance::uninitialised();
    let document = expect_json(&appliance.get("/v1/openapi.json"), 200);
    assert!(document["openapi"].as_str().expect("a version").starts_with("3.1."));
    expect_members(&document["info"], &["title", "version", "description"], &["license"]);
    let mut found = BTreeSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            found.insert((method.as_str(), path.as_str()));
            sound_operation(&document, path, operation);
        }
    }
    let expected: BTreeSet<_> = ROUTES.iter().map(|(method, path, _)| (*method, *path)).collect();
    assert_eq!(found, expected);
    for (method, path, statuses) in ROUTES.iter() {
        let responses = &document["paths"][path][method]["responses"];
        let good: Vec<&str> = responses
            .as_object()
            .expect("responses")
            .keys()
            .map(String::as_str)
            .filter(|status| status.starts_with('2'))
            .collect();
        assert_eq!(&good, statuses, "{method} {path}");
    }
    let mut seen = BTreeSet::new();
    references_resolve(&document, &document, &mut seen);
    assert!(seen.len() > 10, "{seen:?}");
    let put = &document["paths"]["/v1/secrets/{name}"]["put"];
    let parameters = put["parameters"].as_array().expect("parameters");
    assert!(parameters.iter().any(|p| p["name"] == "if-match" && p["in"] == "header"));
}

/// Parameters of the path are there, each response is described, and every error is.
fn sound_operation(document: &Value, path: &str, operation: &Value) {
    let text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    assert!(text(&operation["summary"]) && text(&operation["description"]), "{path}");
    let none = Vec::new();
    let parameters = operation["parameters"].as_array().unwrap_or(&none);
    let mut names = BTreeSet::new();
    for parameter in parameters {
        let place = parameter["in"].as_str().expect("a place");
        assert!(["path", "query", "header"].contains(&place), "{path}: {parameter}");
        assert!(parameter["schema"].is_object(), "{path}: {parameter}");
        assert!(place != "path" || parameter["required"] == true, "{path}: {parameter}");
        assert!(names.insert((place, parameter["name"].as_str().expect("a name"))));
    }
    let in_path: BTreeSet<&str> = path.split(['{', '}']).skip(1).step_by(2).collect();
    let told: BTreeSet<&str> =
        names.iter().filter(|(place, _)| *place == "path").map(|(_, name)| *name).collect();
    assert_eq!(in_path, told, "{path}");
    let responses = operation["responses"].as_object().expect("responses");
    for status in ["400", "403", "404", "405", "408", "409", "413", "415", "422", "500", "503"] {
        let content = &responses[status]["content"]["application/problem+json"];
        assert!(content["schema"]["$ref"] == "#/components/schemas/Problem", "{path}: {status}");
    }
    for (status, response) in responses {
        assert!(text(&response["description"]), "{path}: {status}");
        assert_eq!(status == "204", response.get("content").is_none(), "{path}: {status}");
    }
    if let Some(body) = operation.get("requestBody") {
        let name = body["content"]["application/json"]["schema"]["$ref"].as_str().expect("a ref");
        let schema = document.pointer(name.trim_start_matches('#')).expect("it is there");
        let needed = schema["required"].as_array().is_some_and(|required| !required.is_empty());
        assert_eq!(body["required"].as_bool().unwrap_or(false), needed, "{path}");
    }
}

fn references_resolve(document: &Value, at: &Value, seen: &mut BTreeSet<String>) {
    match at {
        Value::Object(members) => {
            if let Some(reference) = members.get("$ref").and_then(Value::as_str) {
                let pointer = reference.strip_prefix('#').expect("within the document");
                assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
                seen.insert(reference.to_owned());
            }
            members.values().for_each(|value| references_resolve(document, value, seen));
        }
        Value::Array(items) => {
            items.iter().for_each(|value| references_resolve(document, value, seen));
        }
        _ => {}
    }
}
