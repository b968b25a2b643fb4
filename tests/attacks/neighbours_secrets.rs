//! One service goes for another's secrets: opens, overwrites, deletes and takes them, by name, by races, by way
//! of a key, and with the help of an operator.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::acts::base64;
use crate::appliance::{Appliance, Reply};
use crate::callers::{User, open_to_all};
use crate::checks::{lines_of, unb64};

const SHOP: User = User::new(60_221);
const SECOND_OF_SHOP: User = User::new(60_222);
const THIEF: User = User::new(60_223);
const OPERATOR: User = User::new(60_224);

fn appliance() -> Appliance {
    let appliance = Appliance::configured(|config| {
        let roles = config["policy"]["roles"].as_table_mut().expect("roles");
        roles.insert("shop".to_owned(), toml::toml! { users = [60_221, 60_222] }.into());
        let services = roles["service"]["users"].as_array_mut().expect("users");
        for user in [SHOP, SECOND_OF_SHOP, THIEF] {
            services.push(i64::from(user.uid).into());
        }
        let operators = roles["operator"]["users"].as_array_mut().expect("users");
        operators.push(i64::from(OPERATOR.uid).into());
    });
    open_to_all(&appliance);
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_shared_key("common");
    appliance
}

fn ask(appliance: &Appliance, user: User, what: (&str, &str), body: Value) -> Reply {
    user.asks(appliance, what.0, what.1, Some(&body))
}

fn value(text: &str) -> Value {
    json!({ "key": "common", "plaintext": base64(text) })
}

#[test]
fn a_secret_is_its_owners_and_nobody_elses() {
    let appliance = appliance();
    let put = ("PUT", "/v1/secrets/stripe");
    let made = ask(&appliance, SHOP, put, value("the shop's")).expect_status(201).json();
    assert_eq!(made["owner"], "unix:60221");
    for robber in [THIEF, SECOND_OF_SHOP, OPERATOR] {
        for what in [
            ("POST", "/v1/secrets/stripe/reveal"),
            ("DELETE", "/v1/secrets/stripe"),
            put,
            ("POST", "/v1/secrets/stripe/transfer"),
        ] {
            let body = match what.0 {
                "PUT" => value("the thief's"),
                _ if what.1.ends_with("transfer") => {
                    json!({ "owner": format!("unix:{}", robber.uid) })
                }
                _ => json!({}),
            };
            let refused = ask(&appliance, robber, what, body);
            refused.expect_problem(403, "denied");
            let lines = lines_of(&appliance, &refused);
            assert_eq!((lines.len(), &lines[0]["result"]), (1, &json!("refused")), "{lines:?}");
        }
    }
    THIEF.asks(&appliance, "GET", "/v1/secrets/stripe", None).expect_problem(403, "denied");
    let listed = THIEF.asks(&appliance, "GET", "/v1/secrets", None).expect_status(200).json();
    assert_eq!(listed, json!({ "secrets": [] }));
    // An overwrite by its owner leaves it its owner's.
    ask(&appliance, SHOP, put, value("newer")).expect_status(200);
    let opened = ask(&appliance, SHOP, ("POST", "/v1/secrets/stripe/reveal"), json!({}));
    let opened = opened.expect_status(200).json();
    assert_eq!(
        (unb64(&opened["plaintext"]), &opened["owner"]),
        (b"newer".to_vec(), &made["owner"])
    );
}

#[test]
fn names_of_a_role_are_shared_by_those_who_have_it_and_barred_to_others() {
    let appliance = appliance();
    let (at, reveal) = ("/v1/secrets/shop.stripe", "/v1/secrets/shop.stripe/reveal");
    // Not even before its time: whoever came first would say what the shop reads.
    ask(&appliance, THIEF, ("PUT", at), value("planted")).expect_problem(403, "denied");
    ask(&appliance, SHOP, ("PUT", at), value("one")).expect_status(201);
    ask(&appliance, SECOND_OF_SHOP, ("PUT", at), value("two")).expect_status(200);
    let opened = ask(&appliance, SHOP, ("POST", reveal), json!({})).expect_status(200).json();
    assert_eq!(unb64(&opened["plaintext"]), b"two");
    for what in [("POST", reveal), ("DELETE", at), ("PUT", at)] {
        let body = if what.0 == "PUT" { value("x") } else { json!({}) };
        ask(&appliance, THIEF, what, body).expect_problem(403, "denied");
    }
    // What would be another role's is not, without a dot.
    ask(&appliance, THIEF, ("PUT", "/v1/secrets/shopping"), value("x")).expect_status(201);
}

#[test]
fn a_key_decrypts_for_its_owner_and_for_those_it_is_shared_with() {
    let appliance = appliance();
    let create = |user: User, name: &str, more: Value| {
        let mut body = json!({ "name": name, "algorithm": "RSA-2048" });
        body.as_object_mut().expect("one").extend(more.as_object().expect("one").clone());
        ask(&appliance, user, ("POST", "/v1/keys"), body)
    };
    let made = create(OPERATOR, "payments", json!({ "owner": "unix:60221" }));
    assert_eq!(made.expect_status(201).json()["owner"], "unix:60221");
    let lines = lines_of(&appliance, &made);
    assert_eq!(lines[0]["owner"], "unix:60221", "{lines:?}");
    create(OPERATOR, "shop.main", json!({})).expect_status(201);
    create(OPERATOR, "kept", json!({})).expect_status(201);
    let sealed = |key: &str| {
        let body = json!({ "plaintext": base64("x") });
        let at = format!("/v1/keys/{key}/encrypt");
        let reply = ask(&appliance, THIEF, ("POST", &at), body);
        json!({ "ciphertext": reply.expect_status(200).json()["ciphertext"] })
    };
    let decrypts = |user: User, key: &str| {
        let at = format!("/v1/keys/{key}/decrypt");
        ask(&appliance, user, ("POST", &at), sealed(key)).status == 200
    };
    let may = |key: &str| [SHOP, SECOND_OF_SHOP, THIEF, OPERATOR].map(|user| decrypts(user, key));
    assert_eq!(may("payments"), [true, false, false, false]);
    assert_eq!(may("shop.main"), [true, true, false, false]);
    assert_eq!(may("common"), [true, true, true, false]);
    assert_eq!(may("kept"), [false; 4], "an operator does not use what it makes");
    // Nobody gets round it by a secret of one's own under another's key.
    let put = json!({ "key": "payments", "ciphertext": sealed("payments")["ciphertext"] });
    ask(&appliance, THIEF, ("PUT", "/v1/secrets/mine"), put).expect_status(201);
    let reveal = ("POST", "/v1/secrets/mine/reveal");
    ask(&appliance, THIEF, reveal, json!({})).expect_problem(403, "denied");
    let transfer = |user: User, key: &str, owner: &str| {
        let at = format!("/v1/keys/{key}/transfer");
        ask(&appliance, user, ("POST", &at), json!({ "owner": owner }))
    };
    transfer(THIEF, "payments", "unix:60223").expect_problem(403, "denied");
    transfer(OPERATOR, "payments", "unix:60223").expect_problem(403, "denied");
    transfer(OPERATOR, "kept", "unix:60221").expect_status(200);
    assert_eq!(may("kept"), [true, false, false, false]);
    transfer(OPERATOR, "kept", "unix:60224").expect_problem(403, "denied");
    for nobody in ["unix:65534", "unix:4294967295", "unix:01", "system:sweep", "shop", ""] {
        let refused = transfer(SHOP, "kept", nobody);
        assert_eq!(refused.status, 400, "{nobody}: {}", refused.text());
    }
    // Nor does an operator make a key in another's name without the permission to give it away.
    create(THIEF, "x", json!({ "owner": "unix:60221" })).expect_problem(403, "denied");
}

#[test]
fn a_transferred_secret_goes_over_whole_and_leaves_its_line() {
    let appliance = appliance();
    ask(&appliance, SHOP, ("PUT", "/v1/secrets/s"), value("kept")).expect_status(201);
    let to = json!({ "owner": "unix:60223" });
    let given = ask(&appliance, SHOP, ("POST", "/v1/secrets/s/transfer"), to);
    assert_eq!(given.expect_status(200).json()["owner"], "unix:60223");
    let lines = lines_of(&appliance, &given);
    assert_eq!(
        (&lines[0]["action"], &lines[0]["owner"]),
        (&json!("secret:transfer"), &json!("unix:60223"))
    );
    assert_eq!(lines[1]["revision"], 2, "{lines:?}");
    let reveal = ("POST", "/v1/secrets/s/reveal");
    ask(&appliance, SHOP, reveal, json!({})).expect_problem(403, "denied");
    let opened = ask(&appliance, THIEF, reveal, json!({})).expect_status(200).json();
    assert_eq!(unb64(&opened["plaintext"]), b"kept");
    // By the command, with a user's name or number.
    let moved = appliance.cli(&["key", "transfer", "common", "--to", "60221"]);
    assert!(moved.status.success(), "{moved:?}");
    assert_eq!(appliance.get("/v1/keys/common").json()["owner"], "unix:60221");
    let unknown = appliance.cli(&["secret", "transfer", "s", "--to", "no-such-user-here"]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
}

/// What was free when policy was asked may be another's when it is used: the thief asks for a name over and over
/// while its owner makes and deletes it.
#[test]
fn a_name_that_is_made_meanwhile_is_not_taken_for_a_free_one() {
    let appliance = appliance();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for what in [("POST", "/v1/secrets/race/reveal"), ("PUT", "/v1/secrets/race")] {
            let (appliance, done) = (&appliance, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    let body = if what.0 == "PUT" { value("the thief's") } else { json!({}) };
                    let reply = ask(appliance, THIEF, what, body);
                    assert!(!reply.text().contains(&base64("the shop's")), "{}", reply.text());
                    let overwrites = what.0 == "PUT" && reply.status == 200;
                    assert!(!overwrites, "{}", reply.text());
                    if reply.status == 201 {
                        let gone = ask(appliance, THIEF, ("DELETE", "/v1/secrets/race"), json!({}));
                        gone.expect_status(204);
                    }
                }
            });
        }
        let mut made = 0;
        for _ in 0..2000 {
            if ask(&appliance, SHOP, ("PUT", "/v1/secrets/race"), value("the shop's")).status != 201
            {
                continue;
            }
            made += 1;
            let opened = ask(&appliance, SHOP, ("POST", "/v1/secrets/race/reveal"), json!({}));
            let opened = opened.expect_status(200).json();
            assert_eq!(unb64(&opened["plaintext"]), b"the shop's");
            ask(&appliance, SHOP, ("DELETE", "/v1/secrets/race"), json!({})).expect_status(204);
            if made == 100 {
                break;
            }
        }
        done.store(true, Ordering::Release);
        assert!(made >= 20, "only {made} rounds");
    });
}

#[test]
fn a_policy_by_which_everybody_may_use_everything_is_warned_of() {
    let appliance = Appliance::prepared(|_| {});
    let directory = appliance.path("policy");
    std::fs::create_dir(&directory).expect("made");
    let check = |text: &str| {
        std::fs::write(directory.join("one.cedar"), text).expect("written");
        let output = appliance.cli(&["policy", "check", "--dir", &directory.display().to_string()]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    // The service role of 0.1.0.
    let old = check(
        "@id(\"service-uses\") permit (principal in Role::\"service\", action in Action::\"use\", resource);",
    );
    assert!(old.contains("warning: one.cedar: service-uses: its principals may"), "{old}");
    for action in ["key:decrypt", "secret:put", "secret:reveal", "secret:delete"] {
        assert!(old.contains(action), "{old}");
    }
    let new = check(
        "permit (principal in Role::\"service\", action in Action::\"use\", resource)
         when { resource has owner && resource.owner == principal };",
    );
    assert!(!new.contains("warning"), "{new}");
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/config/policy");
    let output = appliance.cli(&["policy", "check", "--dir", shipped]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success() && !text.contains("warning"), "{text}");
}

/// Who left a role, or was given a name of it by one who is in it, has what others put there later.
#[test]
fn what_is_put_under_a_roles_name_is_not_the_first_putters() {
    let appliance = appliance();
    let (at, reveal) = ("/v1/secrets/shop.db", "/v1/secrets/shop.db/reveal");
    ask(&appliance, SHOP, ("PUT", at), value("one")).expect_status(201);
    let to = json!({ "owner": "unix:60223" });
    let give = ("POST", "/v1/secrets/shop.db/transfer");
    ask(&appliance, SHOP, give, to).expect_problem(403, "denied");
    let put = ask(&appliance, SECOND_OF_SHOP, ("PUT", at), value("two")).expect_status(200).json();
    assert_eq!(put["owner"], "unix:60222");
    ask(&appliance, THIEF, ("POST", reveal), json!({})).expect_problem(403, "denied");
    ask(&appliance, SHOP, ("PUT", "/v1/secrets/shop.kept"), value("his")).expect_status(201);
    appliance.change_config(|config| {
        config["policy"]["roles"]["shop"]["users"] = vec![toml::Value::from(60_222)].into();
    });
    let from = appliance.log().len();
    appliance.signal(nix::sys::signal::Signal::SIGHUP);
    appliance.wait_for_log(from, "are loaded anew");
    ask(&appliance, SECOND_OF_SHOP, ("PUT", at), value("three")).expect_status(200);
    for what in [
        ("POST", reveal),
        ("DELETE", at),
        ("PUT", at),
        ("POST", "/v1/secrets/shop.kept/reveal"),
        ("DELETE", "/v1/secrets/shop.kept"),
    ] {
        let body = if what.0 == "PUT" { value("x") } else { json!({}) };
        ask(&appliance, SHOP, what, body).expect_problem(403, "denied");
    }
    let opened = ask(&appliance, SECOND_OF_SHOP, ("POST", reveal), json!({}));
    assert_eq!(unb64(&opened.expect_status(200).json()["plaintext"]), b"three");
}
