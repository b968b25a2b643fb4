//! `policy explain` says what the gate would say, of all permissions that a request needs, and the API names them.

use serde_json::{Value, json};

use crate::acts::put_secret;
use crate::appliance::Appliance;
use crate::callers::{User, open_to_all};
use crate::checks::{b64, trail};

const SERVICE: User = User::new(60_301);
const OPERATOR: User = User::new(60_302);
const STRANGER: User = User::new(60_303);

/// The service may reveal every secret, and decrypt with no key called `vault`; it and the stranger may ask for
/// explanations, and the stranger sees nothing.
const MORE: &str = r#"
    @id("reveals") permit (principal == User::"unix:60301",
        action in [Action::"policy:explain", Action::"secret:reveal", Action::"secret:put", Action::"key:decrypt", Action::"key:create"], resource);
    @id("not-vault") forbid (principal == User::"unix:60301", action == Action::"key:decrypt",
        resource == Key::"vault");
    @id("stranger") permit (principal == User::"unix:60303", action == Action::"policy:explain", resource);
"#;

fn appliance() -> Appliance {
    let mut appliance = Appliance::configured(|config| {
        let roles = config["policy"]["roles"].as_table_mut().expect("roles");
        for (role, user) in [("operator", OPERATOR), ("service", SERVICE)] {
            let users = roles[role]["users"].as_array_mut().expect("users");
            users.push(i64::from(user.uid).into());
        }
    });
    open_to_all(&appliance);
    let (directory, mut config) = (appliance.path("policy"), appliance.config());
    std::fs::create_dir(&directory).expect("made");
    let shipped = config["policy"]["directory"].as_str().expect("a path").to_owned();
    for entry in std::fs::read_dir(shipped).expect("shipped").flatten() {
        std::fs::copy(entry.path(), directory.join(entry.file_name())).expect("copied");
    }
    std::fs::write(directory.join("more.cedar"), MORE).expect("written");
    config["policy"]["directory"] = directory.display().to_string().into();
    appliance.write_config(&config);
    appliance.restart();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    for key in ["vault", "open"] {
        appliance.create_key(key);
        put_secret(&appliance, &format!("of-{key}"), key, "x").expect_status(201);
    }
    appliance
}

fn explained(appliance: &Appliance, by: User, body: &Value) -> Value {
    by.asks(appliance, "POST", "/v1/policy/explain", Some(body)).expect_status(200).json()
}

#[test]
fn an_explanation_asks_all_that_the_gate_asks() {
    let appliance = appliance();
    let cipher = json!({ "ciphertext": b64([1; 256]) });
    let put = |key: &str| json!({ "key": key, "plaintext": b64("x") });
    let given = json!({ "name": "n", "algorithm": "RSA-2048", "owner": "unix:60399" });
    let own = json!({ "name": "mine", "algorithm": "RSA-2048" });
    // What is asked for, and what is asked about it: resource, key, owner.
    let requests = [
        (
            SERVICE,
            "POST",
            "/v1/secrets/of-open/reveal",
            None,
            "secret:reveal",
            "secret/of-open",
            None,
        ),
        (
            SERVICE,
            "POST",
            "/v1/secrets/of-vault/reveal",
            None,
            "secret:reveal",
            "secret/of-vault",
            None,
        ),
        (
            SERVICE,
            "POST",
            "/v1/keys/vault/decrypt",
            Some(&cipher),
            "key:decrypt",
            "key/vault",
            None,
        ),
        (SERVICE, "POST", "/v1/keys/open/decrypt", Some(&cipher), "key:decrypt", "key/open", None),
        (SERVICE, "PUT", "/v1/secrets/new", Some(&put("open")), "secret:put", "secret/new", None),
        (SERVICE, "POST", "/v1/keys", Some(&own), "key:create", "key/mine", None),
        (SERVICE, "POST", "/v1/keys", Some(&given), "key:create", "key/n", Some("unix:60399")),
        (OPERATOR, "POST", "/v1/keys", Some(&given), "key:create", "key/n", Some("unix:60399")),
        (OPERATOR, "POST", "/v1/backup", None, "backup:create", "appliance", None),
        (OPERATOR, "POST", "/v1/keys/open/decrypt", Some(&cipher), "key:decrypt", "key/open", None),
        (STRANGER, "GET", "/v1/keys", None, "key:list", "appliance", None),
    ];
    let (mut yes, mut no) = (0, 0);
    for (user, method, path, body, action, resource, owner) in requests {
        let mut question = json!({ "action": action, "resource": resource });
        // The service does not see the secrets of others, so it says which key they are encrypted for.
        if let Some(key) =
            resource.strip_prefix("secret/of-").or((action == "secret:put").then_some("open"))
        {
            question["key"] = key.into();
        }
        if let Some(owner) = owner {
            question["owner"] = owner.into();
        }
        let explained = explained(&appliance, user, &question);
        let reply = user.asks(&appliance, method, path, body);
        let denied = reply.json()["code"] == "denied";
        assert_eq!(explained["permitted"] == true, !denied, "{action} {resource}: {explained}");
        if denied { no += 1 } else { yes += 1 }
    }
    assert!(yes >= 5 && no >= 4, "both answers are tried: {yes} {no}");
}

/// The command asks the daemon where no configuration is named; it needs nothing of root's.
#[test]
fn an_operator_has_a_decision_explained_by_the_daemon() {
    let appliance = appliance();
    let asked = |resource: &str| {
        let output = appliance.cli(&[
            "policy",
            "explain",
            "--user",
            "root",
            "--action",
            "secret:reveal",
            "--resource",
            resource,
        ]);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), text)
    };
    let (code, text) = asked("secret/of-open");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("may secret:reveal on secret/of-open"), "{text}");
    assert!(text.contains("also needs key:decrypt on key/open: permitted by"), "{text}");
    let (code, text) = asked("secret/not-there");
    assert!(code == Some(1) && text.contains("it is not known which key"), "{text}");
    let before = trail(&appliance).len();
    let body = json!({ "action": "key:list" });
    explained(&appliance, OPERATOR, &body);
    let nobody = User::new(60_304);
    nobody
        .asks(&appliance, "POST", "/v1/policy/explain", Some(&body))
        .expect_problem(403, "denied");
    let lines = trail(&appliance);
    let lines: Vec<_> = lines[before..].iter().map(|line| line["action"].clone()).collect();
    assert!(lines.iter().filter(|action| *action == "policy:explain").count() >= 3, "{lines:?}");
    for (member, body) in [
        ("user", json!({ "action": "key:list", "user": "no-such-user" })),
        ("action", json!({ "action": "key:steal" })),
        ("resource", json!({ "action": "key:list", "resource": "keys/a" })),
    ] {
        let reply = OPERATOR.asks(&appliance, "POST", "/v1/policy/explain", Some(&body));
        assert!(reply.expect_problem(400, "invalid").text().contains(member), "{}", reply.text());
    }
}

#[test]
fn the_api_names_every_permission_of_an_operation() {
    let appliance = Appliance::new();
    let document = appliance.get("/v1/openapi.json").expect_status(200).json();
    let of = |path: &str, method: &str| {
        document["paths"][path][method]["x-strongroom-permissions"].clone()
    };
    let reveal = of("/v1/secrets/{name}/reveal", "post");
    assert_eq!(reveal[0]["action"], "secret:reveal");
    assert_eq!(reveal[1], json!({ "action": "key:decrypt", "on": "the key of the secret" }));
    assert!(reveal[2]["action"] == "key:recover" && reveal[2]["when"].is_string(), "{reveal}");
    assert_eq!(of("/v1/backup", "post")[1]["action"], "audit:read");
    assert_eq!(of("/v1/unlock", "post")[1]["action"], "appliance:give-pin");
    let open = ["/v1/health", "/v1/openapi.json"];
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let is_open = open.contains(&path.as_str());
            let named = operation["x-strongroom-permissions"].is_array();
            assert_ne!(named, is_open, "{method} {path}");
        }
    }
}

/// Who may ask for explanations learns of no name that is hidden: it is explained as one that is not there.
#[test]
fn an_explanation_tells_nothing_of_hidden_names() {
    let appliance = appliance();
    let asked = |by: User, action: &str, resource: &str, name: &str| {
        let body = json!({ "user": "root", "action": action, "resource": resource });
        explained(&appliance, by, &body).to_string().replace(name, "NAME")
    };
    let pairs = [("key", "vault", "absent"), ("secret", "of-vault", "not-here")];
    for (kind, there, absent) in pairs {
        for action in ["show", "transfer", "decrypt", "reveal", "put", "delete", "encrypt"] {
            let action = format!("{kind}:{action}");
            if has_action(&appliance, &action) {
                let of = |by, name: &str| asked(by, &action, &format!("{kind}/{name}"), name);
                assert_eq!(of(STRANGER, there), of(STRANGER, absent), "{action}");
            }
        }
    }
    // Who may see them has them explained as they are.
    let of = |name: &str| asked(OPERATOR, "secret:reveal", &format!("secret/{name}"), name);
    assert_ne!(of("of-vault"), of("not-here"));
}

fn has_action(appliance: &Appliance, action: &str) -> bool {
    let body = json!({ "action": action, "resource": "appliance" });
    STRANGER.asks(appliance, "POST", "/v1/policy/explain", Some(&body)).status == 200
}
