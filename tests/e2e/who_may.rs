//! Who may what: every action for every role, over the socket, as other users of the machine.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::appliance::{Appliance, Reply, openssl_encrypt};
use crate::callers::{User, open_to_all};
use crate::checks::{b64, expect_headers, seen, trail, unb64};

const OPERATOR: User = User::new(60_001);
const SERVICE: User = User::new(60_002);
const AUDITOR: User = User::new(60_003);
const NOBODY: User = User::new(60_004);
/// One that has its role by its first group, and one by another.
const BY_GROUP: User = User { uid: 60_005, gid: 60_105, groups: &[] };
const BY_OTHER_GROUP: User = User { uid: 60_006, gid: 60_106, groups: &[60_107, 60_105] };

/// The roles of all these, besides those of the test's own user.
fn bound(config: &mut toml::Table) {
    let roles = config["policy"]["roles"].as_table_mut().expect("roles");
    for (role, user) in [("operator", OPERATOR), ("service", SERVICE), ("auditor", AUDITOR)] {
        let users = roles[role]["users"].as_array_mut().expect("users");
        users.push(i64::from(user.uid).into());
    }
    let groups = vec![toml::Value::from(i64::from(BY_GROUP.gid))];
    roles["service"].as_table_mut().expect("a role").insert("groups".to_owned(), groups.into());
}

fn appliance_with(change: impl FnOnce(&Appliance, &mut toml::Table)) -> Appliance {
    let mut appliance = Appliance::configured(bound);
    open_to_all(&appliance);
    let mut config = appliance.config();
    change(&appliance, &mut config);
    appliance.write_config(&config);
    appliance.restart();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance
}

/// Who of operator, service and auditor may, as the shipped policies say.
struct Rule {
    action: &'static str,
    may: [bool; 3],
    ask: (&'static str, &'static str, Option<Value>),
}

fn rule(
    action: &'static str,
    may: &str,
    method: &'static str,
    path: &'static str,
    body: impl Into<Option<Value>>,
) -> Rule {
    let may = ["o", "s", "a"].map(|letter| may.contains(letter));
    Rule { action, may, ask: (method, path, body.into()) }
}

/// One request of every action. Those that change something are such as fail once they are allowed, or
/// as can be allowed again and again.
fn rules() -> Vec<Rule> {
    let cipher = || json!({"ciphertext": b64([1; 256])});
    let plain = || json!({"plaintext": b64("x")});
    let to_nobody = || json!({"owner": "unix:60099"});
    vec![
        rule(
            "key:create",
            "o",
            "POST",
            "/v1/keys",
            json!({"name": "there", "algorithm": "RSA-2048"}),
        ),
        rule("key:import", "o", "POST", "/v1/keys/there/import", json!({"private_key": ""})),
        rule("key:list", "osa", "GET", "/v1/keys", None),
        rule("key:show", "osa", "GET", "/v1/keys/there", None),
        rule("key:public", "osa", "GET", "/v1/keys/there/public", None),
        rule("key:public", "osa", "GET", "/v1/jwks.json", None),
        rule("key:encrypt", "s", "POST", "/v1/keys/there/encrypt", plain()),
        rule("key:decrypt", "s", "POST", "/v1/keys/there/decrypt", cipher()),
        rule("key:rotate", "o", "POST", "/v1/keys/absent/rotate", None),
        rule("key:suspend", "o", "POST", "/v1/keys/absent/suspend", None),
        rule("key:resume", "o", "POST", "/v1/keys/absent/resume", None),
        rule("key:deactivate", "o", "POST", "/v1/keys/absent/deactivate", None),
        rule("key:compromise", "o", "POST", "/v1/keys/absent/compromise", None),
        rule("key:destroy", "o", "DELETE", "/v1/keys/absent", None),
        rule("key:restore", "o", "POST", "/v1/keys/absent/restore", None),
        rule(
            "secret:put",
            "s",
            "PUT",
            "/v1/secrets/new",
            json!({"key": "absent", "plaintext": ""}),
        ),
        rule("secret:list", "osa", "GET", "/v1/secrets", None),
        rule("secret:show", "osa", "GET", "/v1/secrets/service.there", None),
        rule("secret:reveal", "s", "POST", "/v1/secrets/service.there/reveal", None),
        rule("secret:delete", "s", "DELETE", "/v1/secrets/absent", None),
        // What is there is another's; what is not would be theirs.
        rule("key:transfer", "", "POST", "/v1/keys/there/transfer", to_nobody()),
        rule("key:transfer", "os", "POST", "/v1/keys/absent/transfer", to_nobody()),
        rule("secret:transfer", "", "POST", "/v1/secrets/service.there/transfer", to_nobody()),
        rule("secret:transfer", "os", "POST", "/v1/secrets/absent/transfer", to_nobody()),
        rule("backup:create", "", "POST", "/v1/backup", None),
        rule("audit:read", "a", "GET", "/v1/audit", None),
        rule("audit:read", "a", "GET", "/v1/audit/public-key", None),
        rule("policy:explain", "oa", "POST", "/v1/policy/explain", json!({"action": "key:list"})),
        rule("appliance:init", "o", "POST", "/v1/init", None),
        rule("appliance:status", "oa", "GET", "/v1/status", None),
        rule("appliance:metrics", "oa", "GET", "/metrics", None),
        rule("appliance:doctor", "o", "GET", "/v1/doctor", None),
        rule("appliance:confirm-clock", "o", "POST", "/v1/clock/confirm", None),
        rule("appliance:unlock", "o", "POST", "/v1/unlock", None),
        rule("appliance:lock", "o", "POST", "/v1/lock", None),
    ]
}

#[test]
fn every_role_may_what_the_shipped_policies_say_and_no_more() {
    let appliance = appliance_with(|_, _| {});
    appliance.create_shared_key("there");
    let body = json!({"key": "there", "plaintext": b64("x")});
    appliance.put("/v1/secrets/service.there", &body).expect_status(201);
    let before = seen(&appliance);
    let callers = [(OPERATOR, Some(0)), (SERVICE, Some(1)), (AUDITOR, Some(2)), (NOBODY, None)];
    let groups = [(BY_GROUP, Some(1)), (BY_OTHER_GROUP, Some(1))];
    let mut denied = Vec::new();
    for rule in rules() {
        for (user, role) in callers.into_iter().chain(groups) {
            let (method, path, body) = &rule.ask;
            let reply = user.asks(&appliance, method, path, body.as_ref());
            if role.is_some_and(|role| rule.may[role]) {
                expect_headers(&reply);
                assert_ne!(reply.json()["code"], "denied", "{user:?}: {}", rule.action);
            } else {
                reply.expect_problem(403, "denied");
                denied.push((expect_headers(&reply), rule.action, user));
            }
            if rule.action == "appliance:lock" && reply.status == 200 {
                appliance.post("/v1/unlock", &json!({})).expect_status(200);
            }
        }
    }
    for user in [OPERATOR, NOBODY] {
        user.asks(&appliance, "GET", "/v1/health", None).expect_status(200);
        user.asks(&appliance, "GET", "/v1/openapi.json", None).expect_status(200);
    }
    assert_eq!(seen(&appliance), before, "a denial changes nothing");
    refusals_are_recorded(&appliance, &denied);
}

fn refusals_are_recorded(appliance: &Appliance, denied: &[(String, &str, User)]) {
    let trail = trail(appliance);
    for (id, action, user) in denied {
        let lines: Vec<_> = trail.iter().filter(|line| line["request"] == id.as_str()).collect();
        assert_eq!(lines.len(), 1, "{action} as {user:?}: {lines:?}");
        let line = lines[0];
        assert_eq!((&line["kind"], &line["result"]), (&json!("outcome"), &json!("refused")));
        assert_eq!((&line["action"], &line["code"]), (&json!(action), &json!("denied")));
        assert_eq!(line["caller"], format!("unix:{}", user.uid));
        assert_eq!((&line["uid"], &line["gid"]), (&json!(user.uid), &json!(user.gid)));
    }
}

/// A policy directory of the test's own: the shipped files, and one more.
fn policies(appliance: &Appliance, config: &mut toml::Table, more: &str) {
    let directory = appliance.path("policy");
    std::fs::create_dir(&directory).expect("made");
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/config/policy");
    for entry in std::fs::read_dir(shipped).expect("shipped").flatten() {
        std::fs::copy(entry.path(), directory.join(entry.file_name())).expect("copied");
    }
    std::fs::write(directory.join("more.cedar"), more).expect("written");
    config["policy"]["directory"] = directory.display().to_string().into();
}

#[test]
fn nobody_gets_round_a_keys_policy_by_way_of_a_secret() {
    // The service user may everything that services may, but not open anything of `vault`, nor encrypt
    // for `sealed`.
    let more = r#"
        @id("no-decrypt")
        forbid (principal == User::"unix:60002", action == Action::"key:decrypt",
                resource == Key::"vault");
        @id("no-encrypt")
        forbid (principal == User::"unix:60002", action == Action::"key:encrypt",
                resource == Key::"sealed");
    "#;
    let appliance = appliance_with(|appliance, config| policies(appliance, config, more));
    let public = appliance.create_shared_key("vault");
    appliance.create_shared_key("sealed");
    let ciphertext = b64(openssl_encrypt(&public, b"stolen", &appliance.path("")));
    let ask =
        |method: &str, path: &str, body: Value| SERVICE.asks(&appliance, method, path, Some(&body));
    let item = json!({"ciphertext": ciphertext});
    ask("POST", "/v1/keys/vault/decrypt", item.clone()).expect_problem(403, "denied");
    ask("POST", "/v1/keys/vault/decrypt", json!({"items": [item]})).expect_problem(403, "denied");

    let body = json!({"key": "vault", "ciphertext": ciphertext});
    ask("PUT", "/v1/secrets/service.mine", body).expect_status(201);
    let revealed = ask("POST", "/v1/secrets/service.mine/reveal", json!({}));
    denied_on_the_way(&appliance, &revealed, "secret:reveal");
    let body = json!({"key": "vault", "ciphertext": ciphertext, "verify": true});
    let before = seen(&appliance);
    denied_on_the_way(&appliance, &ask("PUT", "/v1/secrets/service.mine", body), "secret:put");
    for key in ["sealed", "absent"] {
        // Whoever stores for a key encrypts with it; whether it is there is nothing to learn either.
        let body = json!({"key": key, "plaintext": b64("x")});
        let put = ask("PUT", "/v1/secrets/new", body);
        if key == "sealed" {
            denied_on_the_way(&appliance, &put, "secret:put");
        } else {
            put.expect_problem(404, "not-found");
        }
    }
    assert_eq!(seen(&appliance), before);
    // What somebody else stored for that key stays closed as well, and opens for who may.
    let opened = appliance.post("/v1/secrets/service.mine/reveal", &json!({}));
    assert_eq!(unb64(&opened.expect_status(200).json()["plaintext"]), b"stolen");
}

#[test]
fn lists_show_only_what_policy_lets_each_caller_see() {
    let more = r#"
        @id("no-public")
        forbid (principal == User::"unix:60002", action == Action::"key:public",
                resource == Key::"vault");
        @id("no-show")
        forbid (principal == User::"unix:60002", action == Action::"key:show", resource)
        when { resource.hasTag("class") && resource.getTag("class") == "hidden" };
        @id("no-secret")
        forbid (principal == User::"unix:60002", action == Action::"secret:show",
                resource == Secret::"service.quiet");
    "#;
    let appliance = appliance_with(|appliance, config| policies(appliance, config, more));
    for (name, class) in [("open", "open"), ("tagged", "hidden"), ("vault", "open")] {
        let labels = json!({ "class": class, "shared": "services" });
        let body = json!({ "name": name, "algorithm": "RSA-2048", "labels": labels });
        appliance.post("/v1/keys", &body).expect_status(201);
    }
    for name in ["service.loud", "service.quiet"] {
        let body = json!({"key": "open", "plaintext": b64("x")});
        appliance.put(&format!("/v1/secrets/{name}"), &body).expect_status(201);
    }
    let seen = |user: User, path: &str, list: &str, member: &str| -> Vec<String> {
        let page = user.asks(&appliance, "GET", path, None).expect_status(200).json();
        let entries = page[list].as_array().expect("a list").iter();
        entries.map(|entry| entry[member].as_str().expect("a text").to_owned()).collect()
    };
    let kid = |name: &str| -> String {
        let view = appliance.get(&format!("/v1/keys/{name}")).expect_status(200).json();
        view["versions"][0]["kid"].as_str().expect("a text").to_owned()
    };
    assert_eq!(seen(SERVICE, "/v1/keys", "keys", "name"), ["open", "vault"]);
    let first = SERVICE.asks(&appliance, "GET", "/v1/keys?limit=1", None).json();
    let next = first["next"].as_str().expect("a cursor");
    let second = format!("/v1/keys?limit=1&after={next}");
    assert_eq!(seen(SERVICE, &second, "keys", "name"), ["vault"]);
    assert_eq!(seen(SERVICE, "/v1/jwks.json", "keys", "kid"), [kid("open"), kid("tagged")]);
    assert_eq!(seen(SERVICE, "/v1/secrets", "secrets", "name"), ["service.loud"]);
    assert_eq!(seen(AUDITOR, "/v1/keys", "keys", "name"), ["open", "tagged", "vault"]);
    assert_eq!(seen(AUDITOR, "/v1/jwks.json", "keys", "kid").len(), 3);
    assert_eq!(seen(AUDITOR, "/v1/secrets", "secrets", "name"), ["service.loud", "service.quiet"]);
}

#[test]
fn a_decision_that_rests_on_labels_is_explained_with_them() {
    let more = r#"
        @id("billing")
        permit (principal == User::"unix:65534", action == Action::"key:decrypt", resource)
        when { resource.hasTag("team") && resource.getTag("team") == "billing" };
    "#;
    let appliance = Appliance::prepared(bound);
    let mut config = appliance.config();
    policies(&appliance, &mut config, more);
    appliance.write_config(&config);
    let file = appliance.config_file().display().to_string();
    let explain = |more: &[&str]| {
        let mut asked = vec!["policy", "explain", "--config", &file, "--user", "nobody"];
        asked.extend(["--action", "key:decrypt", "--resource", "key/k"]);
        asked.extend(more);
        let output = appliance.cli(&asked);
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let (code, text) = explain(&["--label", "team=billing"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("permitted by billing"), "{text}");
    assert_eq!(explain(&["--label", "team=shop", "--label", "a=b"]).0, Some(1));
    let (code, text) = explain(&[]);
    assert!(code == Some(1) && text.contains("for a key without labels"), "{text}");
    assert_eq!(explain(&["--label", "team"]).0, Some(2));
}

#[test]
fn recovery_needs_a_permission_of_its_own() {
    let more = r#"
        @id("recover")
        permit (principal == User::"unix:60004",
                action in [Action::"key:decrypt", Action::"key:recover", Action::"secret:reveal"],
                resource);
    "#;
    let appliance = appliance_with(|appliance, config| policies(appliance, config, more));
    appliance.create_shared_key("there");
    let body = json!({"plaintext": b64("x")});
    let made = appliance.post("/v1/keys/there/encrypt", &body).expect_status(200).json();
    let body = json!({"key": "there", "plaintext": b64("x")});
    appliance.put("/v1/secrets/service.there", &body).expect_status(201);
    appliance.post("/v1/keys/there/compromise", &json!({})).expect_status(200);
    let item = json!({"ciphertext": made["ciphertext"], "version": 1});
    for (path, body) in
        [("/v1/keys/there/decrypt", &item), ("/v1/secrets/service.there/reveal", &json!({}))]
    {
        SERVICE.asks(&appliance, "POST", path, Some(body)).expect_problem(409, "key-state");
        let opened = NOBODY.asks(&appliance, "POST", path, Some(body));
        assert_eq!(unb64(&opened.expect_status(200).json()["plaintext"]), b"x", "{path}");
        let lines = crate::checks::lines_of(&appliance, &opened);
        assert_eq!(lines.last().expect("an outcome")["recovery"], true, "{path}");
    }
    let batch = json!({ "items": [item] });
    let opened = NOBODY.asks(&appliance, "POST", "/v1/keys/there/decrypt", Some(&batch));
    let lines = crate::checks::lines_of(&appliance, &opened);
    assert_eq!(lines.last().expect("an outcome")["recovery"], true);
}

/// A request that was begun and refused by the second question: both lines, and nothing told.
fn denied_on_the_way(appliance: &Appliance, reply: &Reply, action: &str) {
    reply.expect_problem(403, "denied");
    let lines = crate::checks::lines_of(appliance, reply);
    let outcome = lines.last().expect("an outcome");
    assert_eq!((&outcome["action"], &outcome["result"]), (&json!(action), &json!("refused")));
    assert_eq!(outcome["code"], "denied");
}

#[test]
fn the_example_in_the_shipped_file_works_as_it_stands() {
    let shipped = include_str!("../../config/policy/service.cedar");
    let at = shipped.find("// @id(\"shop\")").expect("the example");
    let example = shipped[at..].replace("// ", "").replace("//\n", "\n").replace("1001", "60004");
    let appliance = appliance_with(|appliance, config| policies(appliance, config, &example));
    appliance.create_key("shop");
    appliance.create_key("other");
    let ask = |method: &str, path: &str, body: Option<Value>| {
        NOBODY.asks(&appliance, method, path, body.as_ref())
    };
    ask("GET", "/v1/keys/shop/public", None).expect_status(200);
    let body = json!({"key": "shop", "plaintext": b64("x")});
    ask("PUT", "/v1/secrets/shop.token", Some(body.clone())).expect_status(201);
    let revealed = ask("POST", "/v1/secrets/shop.token/reveal", None);
    assert_eq!(unb64(&revealed.expect_status(200).json()["plaintext"]), b"x");
    ask("PUT", "/v1/secrets/token", Some(body)).expect_problem(403, "denied");
    let body = json!({"key": "other", "plaintext": b64("x")});
    ask("PUT", "/v1/secrets/shop.other", Some(body)).expect_problem(403, "denied");
    ask("GET", "/v1/keys/other/public", None).expect_problem(403, "denied");
    ask("GET", "/v1/keys", None).expect_problem(403, "denied");
    ask("DELETE", "/v1/secrets/shop.token", None).expect_problem(403, "denied");
}

#[test]
fn another_users_process_is_that_user() {
    let appliance = appliance_with(|_, _| {});
    appliance.create_shared_key("there");
    let as_user = |user: User, path: &str| {
        let output = Command::new("curl")
            .args(["-s", "-w", "\n%{http_code}", "--unix-socket"])
            .arg(appliance.socket())
            .arg(format!("http://strongroom{path}"))
            .uid(user.uid)
            .gid(user.gid)
            .current_dir("/")
            .stderr(Stdio::null())
            .output()
            .expect("curl is installed");
        String::from_utf8(output.stdout).expect("text")
    };
    assert!(as_user(AUDITOR, "/v1/keys/there").ends_with("\n200"));
    assert!(as_user(BY_GROUP, "/v1/keys/there").ends_with("\n200"));
    let refused = as_user(NOBODY, "/v1/keys/there");
    assert!(refused.ends_with("\n403") && refused.contains("\"denied\""), "{refused}");
}
