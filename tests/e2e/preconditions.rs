//! What changes the meaning of a request is done or refused, never passed over: preconditions, ranges,
//! codings, preferences.

use serde_json::{Value, json};

use crate::acts::{put_secret, reveal};
use crate::appliance::{Appliance, JSON, Reply};
use crate::checks::{b64, seen};

const SECRET: &str = "/v1/secrets/stripe";

fn body(value: &str) -> Value {
    json!({"key": "payments", "plaintext": b64(value)})
}

fn ask(appliance: &Appliance, method: &str, path: &str, condition: &str, body: &Value) -> Reply {
    let headers = format!("{JSON}{condition}\r\n");
    appliance.request(method, path, &headers, body.to_string().as_bytes())
}

#[test]
fn a_secret_is_created_only_and_never_overwritten_where_the_request_says_so() {
    let appliance = Appliance::new();
    appliance.create_key("payments");
    let put = |condition: &str, value| ask(&appliance, "PUT", SECRET, condition, &body(value));
    put("if-none-match: *", "one").expect_status(201);
    put("if-none-match: *", "two").expect_problem(412, "precondition-failed");
    put("if-none-match: \"1\"", "two").expect_problem(412, "precondition-failed");
    put("if-none-match: \"3\", \"1\"", "two").expect_problem(412, "precondition-failed");
    put("if-match: \"2\"", "two").expect_problem(412, "revision-mismatch");
    assert_eq!(reveal(&appliance, "stripe").json()["plaintext"], b64("one"));
    put("if-none-match: \"2\"", "two").expect_status(200);
    put("if-match: *", "three").expect_status(200);
    put("if-match: \"1\", \"3\"", "four").expect_status(200);
    for odd in ["W/\"4\"", "4", "\"a\"", "\"4\", x", ""] {
        for name in ["if-match", "if-none-match"] {
            put(&format!("{name}: {odd}"), "five").expect_problem(400, "malformed");
        }
    }
    assert_eq!(reveal(&appliance, "stripe").json()["plaintext"], b64("four"));
    let delete =
        |condition: &str| appliance.request("DELETE", SECRET, &format!("{condition}\r\n"), b"");
    delete("if-none-match: *").expect_problem(412, "precondition-failed");
    delete("if-match: \"4\"").expect_status(204);
    put("if-match: *", "six").expect_problem(412, "revision-mismatch");
    appliance.get(SECRET).expect_problem(404, "not-found");
}

#[test]
fn of_many_that_create_the_same_secret_one_does() {
    let appliance = Appliance::new();
    appliance.create_key("payments");
    let replies: Vec<Reply> = std::thread::scope(|scope| {
        let create = || ask(&appliance, "PUT", SECRET, "if-none-match: *", &body("x"));
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
        threads.into_iter().map(|thread| thread.join().expect("asked")).collect()
    });
    let count = |status| replies.iter().filter(|reply| reply.status == status).count();
    assert_eq!((count(201), count(412)), (1, 7), "{replies:?}");
    assert_eq!(appliance.get(SECRET).json()["revision"], 1);
}

#[test]
fn every_change_of_a_key_heeds_its_entity_tag() {
    let appliance = Appliance::new();
    appliance.create_key("payments");
    let key = "/v1/keys/payments";
    let tag = |reply: &Reply| reply.header("etag").expect("an entity tag");
    let mut now = tag(appliance.get(key).expect_status(200));
    assert_eq!(now, format!("\"{}\"", appliance.get(key).json()["revision"]));
    let update = json!({"serve_without_token_seconds": 5});
    for (method, path, with) in [
        ("POST", "/update", &update),
        ("POST", "/rotate", &json!({})),
        ("POST", "/suspend", &json!({})),
        ("POST", "/resume", &json!({})),
        ("POST", "/deactivate", &json!({"version": 1})),
        ("POST", "/compromise", &json!({"version": 1})),
        ("DELETE", "", &json!({})),
        ("POST", "/restore", &json!({})),
    ] {
        let path = format!("{key}{path}");
        let before = seen(&appliance);
        for (condition, code) in [
            ("if-match: \"999\"".to_owned(), "revision-mismatch"),
            (format!("if-none-match: {now}"), "precondition-failed"),
            ("if-none-match: *".to_owned(), "precondition-failed"),
        ] {
            ask(&appliance, method, &path, &condition, with).expect_problem(412, code);
        }
        assert_eq!(seen(&appliance), before, "{method} {path}");
        let changed = ask(&appliance, method, &path, &format!("if-match: {now}"), with);
        let new = tag(changed.expect_status(200));
        assert_ne!(new, now, "{method} {path}");
        now = new;
    }
}

#[test]
fn a_read_is_held_against_its_conditions() {
    let appliance = Appliance::new();
    appliance.create_key("payments");
    put_secret(&appliance, "stripe", "payments", "x").expect_status(201);
    for path in ["/v1/keys/payments", SECRET] {
        let get =
            |condition: &str| appliance.request("GET", path, &format!("{condition}\r\n"), b"");
        let tag = get("").header("etag").expect("an entity tag");
        let known = get(&format!("if-none-match: {tag}"));
        assert!(known.expect_status(304).body.is_empty());
        assert_eq!(known.header("etag"), Some(tag.clone()));
        get("if-none-match: \"999\"").expect_status(200);
        get(&format!("if-match: {tag}")).expect_status(200);
        get("if-match: \"999\"").expect_problem(412, "revision-mismatch");
        get("if-none-match: x").expect_problem(400, "malformed");
    }
}

#[test]
fn a_header_that_asks_for_what_is_not_done_is_refused_at_every_route() {
    let appliance = Appliance::new();
    appliance.create_key("there");
    put_secret(&appliance, "there", "there", "x").expect_status(201);
    let before = seen(&appliance);
    let document = appliance.get("/v1/openapi.json").json();
    let mut asked = 0;
    for (path, item) in document["paths"].as_object().expect("paths") {
        let path = path.replace("{key}", "there").replace("{name}", "there");
        for (method, operation) in item.as_object().expect("operations") {
            let takes = |name: &str| {
                let parameters = operation["parameters"].as_array();
                parameters.is_some_and(|all| all.iter().any(|each| each["name"] == name))
            };
            let refused = |header: &str, status: u16, code: &str| {
                let headers = format!("{JSON}{header}\r\n");
                let reply = appliance.request(&method.to_uppercase(), &path, &headers, b"{}");
                reply.expect_problem(status, code);
                let name = header.split(':').next().expect("a name");
                let text = reply.json()["detail"].as_str().expect("a text").to_owned();
                assert!(text.starts_with(name), "{method} {path}: {text}");
                reply
            };
            for header in [
                "range: bytes=0-1",
                "if-range: \"1\"",
                "content-range: bytes 0-1/9",
                "prefer: respond-async",
                "idempotency-key: \"8e03978e\"",
                "if-unmodified-since: Sat, 29 Oct 1994 19:43:31 GMT",
                "x-http-method-override: DELETE",
            ] {
                refused(header, 400, "unsupported-header");
            }
            let coded = refused("content-encoding: gzip", 415, "content-encoding");
            assert_eq!(coded.header("accept-encoding").as_deref(), Some("identity"));
            if !takes("if-match") {
                refused("if-match: \"1\"", 400, "unsupported-header");
                refused("if-none-match: *", 400, "unsupported-header");
            }
            asked += 1;
        }
    }
    assert!(asked >= 30, "the document has lost routes");
    assert_eq!(seen(&appliance), before);
}

#[test]
fn where_it_is_configured_an_overwrite_without_a_condition_is_refused() {
    let mut appliance = Appliance::new();
    appliance.create_key("payments");
    appliance.change_config(|config| {
        config.insert("secrets".into(), toml::toml! { require_precondition = true }.into());
    });
    appliance.restart();
    appliance.put(SECRET, &body("one")).expect_status(201);
    let refused = appliance.put(SECRET, &body("two"));
    refused.expect_problem(428, "precondition-required");
    assert!(refused.json()["next"].as_str().expect("a step").contains("if-match"));
    ask(&appliance, "PUT", SECRET, "if-match: \"1\"", &body("two")).expect_status(200);
    assert_eq!(reveal(&appliance, "stripe").json()["plaintext"], b64("two"));
    let cli = |more: &[&str]| {
        let put = ["secret", "put", "stripe", "--key", "payments"];
        let output = appliance.cli_with(&[&put, more].concat(), b"three");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (done, said) = cli(&[]);
    assert!(!done && said.contains("--if-match"), "{said}");
    assert!(!cli(&["--create-only"]).0 && cli(&["--if-match", "2"]).0);
    // Taken over by a reload, too.
    appliance.change_config(|config| drop(config.remove("secrets")));
    let from = appliance.log().len();
    appliance.signal(nix::sys::signal::Signal::SIGHUP);
    appliance.wait_for_log(from, "loaded anew");
    appliance.put(SECRET, &body("four")).expect_status(200);
}
