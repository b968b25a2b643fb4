//! Bad input at every route: the OpenAPI document says which there are, so none is forgotten.
//!
//! Each request has to end in a clear 4xx, change nothing, panic nowhere, and leave nothing of what it
//! carried: a canary planted wherever there is room must not show in trail, log or answer.

use serde_json::{Map, Value, json};

use crate::appliance::{Appliance, JSON, Reply};
use crate::checks::{b64, expect_headers, expect_json, seen};

const CANARY: &str = "CANARY-wBq7-do-not-repeat";

/// One operation of the document.
struct Route {
    method: String,
    /// With a name that is there in the place of its parameter.
    path: String,
    /// The members of its body and their schemas; `None` where it takes none.
    body: Option<Map<String, Value>>,
    query: Vec<(String, Value)>,
}

impl Route {
    fn label(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    fn named(&self) -> bool {
        self.path.contains("/there")
    }
}

fn routes(document: &Value) -> Vec<Route> {
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let body = operation.pointer("/requestBody/content/application~1json/schema/$ref");
            let body = body.and_then(Value::as_str).map(|reference| {
                let schema = document.pointer(reference.trim_start_matches('#')).expect("there");
                schema["properties"].as_object().cloned().unwrap_or_default()
            });
            let none = Vec::new();
            let parameters = operation["parameters"].as_array().unwrap_or(&none);
            let query = parameters.iter().filter(|parameter| parameter["in"] == "query");
            routes.push(Route {
                method: method.to_uppercase(),
                path: path.replace("{key}", "there").replace("{name}", "there"),
                body,
                query: query
                    .map(|p| (p["name"].as_str().expect("a name").to_owned(), p["schema"].clone()))
                    .collect(),
            });
        }
    }
    assert!(routes.len() >= 30, "the document has lost routes");
    routes
}

fn furnished() -> (Appliance, Vec<Route>) {
    let appliance = Appliance::new();
    appliance.create_key("there");
    let body = json!({"key": "there", "plaintext": b64("x")});
    appliance.put("/v1/secrets/there", &body).expect_status(201);
    let document = expect_json(&appliance.get("/v1/openapi.json"), 200);
    (appliance, routes(&document))
}

/// A clear 4xx that repeats nothing.
#[track_caller]
fn refused(what: &str, reply: &Reply, statuses: &[u16]) {
    assert!(statuses.contains(&reply.status), "{what}: {}\n{}", reply.head, reply.text());
    expect_headers(reply);
    let document = reply.json();
    assert_eq!(reply.header("content-type").as_deref(), Some("application/problem+json"), "{what}");
    assert!(document["code"].as_str().is_some_and(|code| !code.is_empty()), "{what}: {document}");
    assert!(document["detail"].as_str().is_some_and(|text| text.len() > 8), "{what}: {document}");
    assert!(document["next"].as_str().is_some_and(|text| !text.is_empty()), "{what}: {document}");
    let whole = format!("{}{}", reply.head, reply.text());
    assert!(!whole.contains("CANARY") && !whole.contains(&b64(CANARY)), "{what}: {whole}");
}

/// A line of the audit log but for the labels of a key: policy goes by them, so they stand there.
fn without_labels(line: &str) -> String {
    let Ok(mut line) = serde_json::from_str::<Value>(line) else { return line.to_owned() };
    if let Some(members) = line.as_object_mut() {
        members.remove("labels");
    }
    line.to_string()
}

/// Nothing of what was sent is left, in any form, and nothing panicked.
fn nothing_is_left(appliance: &Appliance) {
    let log = appliance.log();
    assert!(!log.contains("panicked"), "{log}");
    let mut all = vec![("the log".to_owned(), log.into_bytes())];
    for entry in std::fs::read_dir(appliance.trail()).expect("a trail").flatten() {
        let text = std::fs::read(entry.path()).unwrap_or_default();
        let lines = String::from_utf8_lossy(&text).lines().map(without_labels).collect::<Vec<_>>();
        all.push((entry.path().display().to_string(), lines.join("\n").into_bytes()));
    }
    let holds =
        |text: &str| all.iter().any(|(_, bytes)| String::from_utf8_lossy(bytes).contains(text));
    assert!(holds("key/there") && holds("callers are served"), "this looks at the wrong files");
    let forms = [CANARY.to_owned(), CANARY.to_lowercase(), b64(CANARY), "CANARY".to_owned()];
    for (place, bytes) in &all {
        let text = String::from_utf8_lossy(bytes);
        for form in &forms {
            let form = form.trim_end_matches('=');
            assert!(!text.contains(form), "{form} stands in {place}");
        }
    }
}

#[test]
fn bodies_of_every_kind_of_wrong_are_refused_at_every_route() {
    let (appliance, routes) = furnished();
    let before = seen(&appliance);
    let request = |route: &Route, headers: &str, body: &[u8]| {
        appliance.request(&route.method, &route.path, headers, body)
    };
    for route in &routes {
        let label = route.label();
        let deep = format!("{{\"{CANARY}\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
        let malformed = [
            format!("{{\"{CANARY}\":"),
            format!("{{\"{CANARY}\": 1}}"),
            format!("[\"{CANARY}\"]"),
            format!("\"{CANARY}\""),
            format!("{{}} {CANARY}"),
            format!("{{\"\\ud800{CANARY}\": 1}}"),
            "null".to_owned(),
            "[]".to_owned(),
            "[null, null, null]".to_owned(),
            "7".to_owned(),
            "{\"a\":1,\"a\":2}".to_owned(),
            "}{".to_owned(),
            "\u{feff}{}".to_owned(),
            "<?xml version=\"1.0\"?>".to_owned(),
            deep,
        ];
        for body in &malformed {
            refused(&format!("{label} {body:.60}"), &request(route, JSON, body.as_bytes()), &[400]);
        }
        let broken_utf8 = [b"{\"", &b"\xff\xfe"[..], b"\":1}"].concat();
        refused(&label, &request(route, JSON, &broken_utf8), &[400]);
        let huge = format!("{{\"x\":\"{}\"}}", CANARY.repeat(50_000));
        refused(&label, &request(route, JSON, huge.as_bytes()), &[413]);
        for kind in [
            "",
            "content-type: text/plain\r\n",
            "content-type: application/jsonx\r\n",
            "content-type: application/x-www-form-urlencoded\r\n",
            "content-type: application/json\r\ncontent-type: text/plain\r\n",
            "content-type: \u{ff}\r\n",
        ] {
            refused(&format!("{label} {kind}"), &request(route, kind, b"{}"), &[415]);
        }
        if let Some(members) = &route.body {
            members_are_held_to_their_types(&appliance, route, members);
        }
    }
    assert_eq!(seen(&appliance), before);
    nothing_is_left(&appliance);
}

/// Each member alone, with every JSON type that its schema does not name; then given twice.
fn members_are_held_to_their_types(
    appliance: &Appliance,
    route: &Route,
    members: &Map<String, Value>,
) {
    let values = [
        ("string", json!(CANARY)),
        ("number", json!(1.5)),
        ("integer", json!(-1)),
        ("boolean", json!(true)),
        ("object", json!({ CANARY: CANARY })),
        ("array", json!([CANARY])),
    ];
    for (name, schema) in members {
        let types = schema["type"].to_string();
        for (kind, value) in &values {
            // Those of the others that have the right type break another rule.
            if *kind == "boolean" && types.contains("boolean") {
                continue;
            }
            let label = format!("{} with {name}: {value}", route.label());
            let body = json!({ name: value }).to_string();
            let reply = appliance.request(&route.method, &route.path, JSON, body.as_bytes());
            refused(&label, &reply, &[400, 422]);
        }
        let body = format!("{{\"{name}\": null, \"{name}\": null, \"{CANARY}\": 1}}");
        let reply = appliance.request(&route.method, &route.path, JSON, body.as_bytes());
        refused(&format!("{} with {name} twice", route.label()), &reply, &[400]);
    }
}

#[test]
fn queries_names_and_methods_are_held_to_the_document() {
    let (appliance, routes) = furnished();
    let before = seen(&appliance);
    for route in &routes {
        let ask = |path: &str| appliance.request(&route.method, path, "", b"");
        let at = |query: &str| ask(&format!("{}?{query}", route.path));
        for query in [
            format!("{CANARY}=1"),
            CANARY.to_owned(),
            format!("version={CANARY}"),
            "limit=1&limit=1".to_owned(),
            "after=a&after=a".to_owned(),
            "format=spki-pem&format=jwk".to_owned(),
            "limit[]=1".to_owned(),
            "=".to_owned(),
        ] {
            refused(&format!("{} ?{query}", route.label()), &at(&query), &[400]);
        }
        for (name, schema) in &route.query {
            refused(&route.label(), &at(&format!("{name}=1&{name}=1")), &[400]);
            if schema["type"].to_string().contains("integer") {
                for value in ["x", "-1", "1.5", "99999999999999999999", "", "%31%00"] {
                    refused(&route.label(), &at(&format!("{name}={value}")), &[400]);
                }
            }
        }
        if route.named() {
            names_are_held_to_their_rule(&route.path, &ask);
        }
        for method in ["PATCH", "TRACE", "OPTIONS", "PUT", "POST", "DELETE", "GET", "BREW"] {
            let known = |r: &Route| r.path == route.path && r.method == method;
            if !routes.iter().any(known) {
                let reply = appliance.request(method, &route.path, "", b"");
                refused(&format!("{method} {}", route.path), &reply, &[405]);
                assert!(reply.header("allow").is_some(), "{method} {}: {}", route.path, reply.head);
            }
        }
    }
    for path in [
        format!("/{CANARY}"),
        format!("/v1/{CANARY}/there"),
        "/".to_owned(),
        "/v1".to_owned(),
        "/v2/keys".to_owned(),
        "/V1/keys".to_owned(),
        "/v1/keys/".to_owned(),
        "//v1/keys".to_owned(),
        "/v1//keys".to_owned(),
        "/v1/keys/there/".to_owned(),
        "/v1/keys//there".to_owned(),
        "/v1/./keys".to_owned(),
        "/v1/secrets/../keys".to_owned(),
        "/v1/keys/there/../../secrets/there".to_owned(),
        "/v1/keys/there/fly".to_owned(),
        "/v1/keys;x=1".to_owned(),
        "/metrics/".to_owned(),
    ] {
        refused(&path, &appliance.get(&path), &[404]);
    }
    assert_eq!(seen(&appliance), before);
    nothing_is_left(&appliance);
}

fn names_are_held_to_their_rule(path: &str, ask: &dyn Fn(&str) -> Reply) {
    let long = "a".repeat(64);
    let very_long = CANARY.repeat(200);
    for name in [
        CANARY,
        &long,
        &very_long,
        "There",
        "%74here",
        "%2e%2e",
        "..%2fthere",
        "there%00",
        "%00",
        "..",
        ".",
        ".there",
        "-there",
        "_there",
        "th*re",
        "there,there",
        "there;x",
        "there:1",
        "th\"ere",
        "th{ere}",
        "th|ere",
        "th\\ere",
        "~there",
        "there@",
        "$there",
        "(there)",
        "th+ere",
        "th=ere",
        "täglich",
        "\u{202e}ereht",
        "there\u{200b}",
        "%c3%a4",
        "%",
        "%zz",
        "%u0041",
    ] {
        let path = path.replace("there", name);
        let reply = ask(&path);
        let status = [400, if path.starts_with("/v1/keys/../") { 404 } else { 400 }];
        refused(&path, &reply, &status);
    }
}

#[test]
fn values_that_break_a_rule_leave_nothing_behind() {
    let (appliance, _) = furnished();
    let before = seen(&appliance);
    let post = |path: &str, body: Value| appliance.post(path, &body);
    let key = |name: &str, more: Value| {
        let mut body = json!({"name": name, "algorithm": "RSA-2048"});
        body.as_object_mut().expect("one").extend(more.as_object().expect("one").clone());
        post("/v1/keys", body)
    };
    let long = "a".repeat(64);
    for name in ["", CANARY, "..", "a/b", "a%2fb", "a\u{0}", "a b", "ä", "-a", long.as_str()] {
        let reply = key(name, json!({}));
        refused(name, &reply, &[400]);
        let detail = reply.json()["detail"].to_string();
        assert!(detail.contains("1 to 63 characters"), "which rule? {detail}");
        let body = json!({"key": name, "plaintext": ""});
        refused(name, &appliance.put("/v1/secrets/new", &body), &[400]);
    }
    let many: Map<String, Value> = (0..17).map(|at| (format!("l{at}"), json!("x"))).collect();
    for (labels, says) in [
        (json!({ CANARY: "x" }), "name of a label"),
        (json!({"a": CANARY.repeat(6)}), "128 characters"),
        (json!({"a": format!("{CANARY}\n")}), "printable"),
        (json!({"a": format!("\u{202e}{CANARY}")}), "printable"),
        (json!(many), "at most 16"),
        (json!({"a": 1}), "/labels: must be a string"),
        (json!([[CANARY, CANARY]]), "/labels: must be an object"),
    ] {
        let reply = key("new", json!({ "labels": labels }));
        refused(says, &reply, &[400]);
        let detail = reply.json()["detail"].to_string();
        assert!(detail.contains(says), "{says}: {detail}");
    }
    for (member, value) in [
        ("algorithm", "RSA-1024"),
        ("algorithm", CANARY),
        ("mgf1_hash", "SHA-512"),
        ("mgf1_hash", CANARY),
    ] {
        refused(value, &key("new", json!({ member: value })), &[400]);
    }
    for bad in ["*", "a", "ab=c", "+_8=", "YQ===", "YQ= =", "Y Q=", "YQ==\n", "\u{ff21}", CANARY] {
        for (path, member) in [
            ("/v1/keys/there/encrypt", "plaintext"),
            ("/v1/keys/there/decrypt", "ciphertext"),
            ("/v1/unlock", "pin"),
        ] {
            refused(bad, &post(path, json!({ member: bad })), &[400]);
        }
        let body = json!({"plaintext": "", "label": bad});
        refused(bad, &post("/v1/keys/there/encrypt", body), &[400]);
        let body = json!({"items": [{ "ciphertext": bad }]});
        refused(bad, &post("/v1/keys/there/decrypt", body), &[400]);
    }
    for (verb, reason) in [("rotate", CANARY), ("suspend", "Maintenance"), ("compromise", "")] {
        refused(
            verb,
            &post(&format!("/v1/keys/there/{verb}"), json!({ "reason": reason })),
            &[400],
        );
    }
    for days in [json!(0), json!(366), json!(65_536), json!(-1), json!("7"), json!(1.5)] {
        let body = json!({ "waiting_period_days": days });
        refused("days", &appliance.delete("/v1/keys/there", &body), &[400]);
    }
    refused("rotate", &post("/v1/keys/there/rotate", json!({"version": 1})), &[400]);
    assert_eq!(seen(&appliance), before);
    nothing_is_left(&appliance);
}

#[test]
fn what_is_accepted_leaves_nothing_of_its_values_behind() {
    let (appliance, _) = furnished();
    let secret = b64(CANARY);
    let agent =
        format!("user-agent: {CANARY}\r\nx-{CANARY}: {CANARY}\r\nx-request-id: {CANARY}\r\n");
    let ask = |method: &str, path: &str, body: Value| {
        let headers = format!("{JSON}{agent}cookie: {CANARY}\r\n");
        appliance.request(method, path, &headers, body.to_string().as_bytes())
    };
    // Credentials are not read here, and whoever sends some is told so.
    for header in ["authorization: Bearer", "proxy-authorization: Basic", "x-api-key:"] {
        let reply = appliance.request("GET", "/v1/keys", &format!("{header} {CANARY}\r\n"), b"");
        reply.expect_problem(400, "unsupported-header");
        let name = header.split(':').next().expect("a name");
        assert!(reply.json()["detail"].as_str().expect("a text").starts_with(name));
    }
    let body = json!({"name": "labelled", "algorithm": "RSA-2048", "labels": {"note": CANARY}});
    ask("POST", "/v1/keys", body).expect_status(201);
    let body = json!({"plaintext": secret, "label": secret});
    let made = ask("POST", "/v1/keys/labelled/encrypt", body).expect_status(200).json();
    let body = json!({"ciphertext": made["ciphertext"], "label": secret});
    let opened = ask("POST", "/v1/keys/labelled/decrypt", body);
    assert_eq!(opened.expect_status(200).json()["plaintext"], secret);
    let body = json!({"ciphertext": made["ciphertext"], "kid": CANARY});
    refused("kid", &ask("POST", "/v1/keys/labelled/decrypt", body), &[404]);
    let body = json!({"key": "labelled", "plaintext": secret});
    ask("PUT", "/v1/secrets/new", body).expect_status(201);
    let revealed = ask("POST", "/v1/secrets/new/reveal", json!({}));
    assert_eq!(revealed.expect_status(200).json()["plaintext"], secret);
    let query = format!("action={CANARY}&caller={CANARY}&resource={CANARY}");
    let page = appliance.request("GET", &format!("/v1/audit?{query}"), &agent, b"");
    assert_eq!(expect_json(&page, 200)["lines"], json!([]));
    let body = json!({ "private_key": b64(CANARY) });
    refused("key", &ask("POST", "/v1/keys/new/import", body), &[422]);
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n");
    refused("key", &ask("POST", "/v1/keys/new/import", json!({ "private_key": pem })), &[422]);
    // A ciphertext is no secret, but nobody's business either.
    let stored = made["ciphertext"].as_str().expect("base64");
    assert!(!appliance.log().contains(stored), "a ciphertext stands in the log");
    nothing_is_left(&appliance);
}
