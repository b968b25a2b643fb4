//! A user reads names that policy hides from it out of the lists: from their cursors and from what pages lack.

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine};
use serde_json::{Value, json};

use crate::acts::{base64, put_secret};
use crate::appliance::Appliance;
use crate::callers::{User, open_to_all};

const CURIOUS: User = User::new(60_201);
const OTHER: User = User::new(60_202);

/// Two services, and between what the first may see, keys and secrets that it may not.
fn appliance() -> Appliance {
    let appliance = Appliance::configured(|config| {
        let users = config["policy"]["roles"]["service"]["users"].as_array_mut().expect("users");
        users.extend([CURIOUS, OTHER].map(|user| toml::Value::from(i64::from(user.uid))));
    });
    open_to_all(&appliance);
    appliance.post("/v1/init", &json!({})).expect_status(201);
    for name in ["m1", "m2", "m3"] {
        appliance.create_shared_key(name);
    }
    for name in ["hidden-a", "hidden-z", "m2-hidden", "zz-hidden"] {
        appliance.create_key(name);
    }
    for name in ["a-hidden", "hidden-b", "m1-hidden", "m2-hidden", "z-hidden"] {
        put_secret(&appliance, name, "m1", "x").expect_status(201);
    }
    for name in ["m1", "m2", "m3"] {
        let body = json!({ "key": "m1", "plaintext": base64("x") });
        let path = format!("/v1/secrets/{name}");
        CURIOUS.asks(&appliance, "PUT", &path, Some(&body)).expect_status(201);
    }
    appliance
}

fn get(appliance: &Appliance, user: User, path: &str) -> Value {
    user.asks(appliance, "GET", path, None).expect_status(200).json()
}

/// Every page of a list, as this user gets it.
fn pages(appliance: &Appliance, user: User, path: &str, limit: usize) -> Vec<Value> {
    let mut all = vec![get(appliance, user, &format!("{path}?limit={limit}"))];
    while let Some(next) = all.last().and_then(|page| page["next"].as_str()) {
        let next = format!("{path}?limit={limit}&after={next}");
        all.push(get(appliance, user, &next));
        assert!(all.len() < 20, "the list has no end: {all:?}");
    }
    all
}

#[test]
fn no_page_tells_a_name_or_a_number_of_what_is_hidden() {
    let appliance = appliance();
    let lists = [("/v1/keys", "keys", "name"), ("/v1/secrets", "secrets", "name")];
    for (path, member, name) in lists {
        for limit in [1, 2] {
            let pages = pages(&appliance, CURIOUS, path, limit);
            let told = Value::from(pages.clone()).to_string();
            assert!(!told.contains("hidden"), "{told}");
            let names = |page: &Value| -> Vec<String> {
                let entries = page[member].as_array().expect("a list").iter();
                entries.map(|entry| entry[name].as_str().expect("a name").to_owned()).collect()
            };
            // Full pages, and after the last of what may be seen nothing says that there is more.
            let expected: Vec<Vec<String>> =
                ["m1", "m2", "m3"].map(str::to_owned).chunks(limit).map(<[_]>::to_vec).collect();
            assert_eq!(pages.iter().map(names).collect::<Vec<_>>(), expected, "{path}");
            for page in &pages {
                let Some(next) = page["next"].as_str() else { continue };
                let bytes = BASE64_URL_SAFE_NO_PAD.decode(next).expect("base64url");
                let text = String::from_utf8_lossy(&bytes).into_owned();
                assert!(!text.contains("m1") && !text.contains("m2"), "{text}");
            }
        }
    }
    let set = pages(&appliance, CURIOUS, "/v1/jwks.json", 3);
    // Public keys are shown to services, as policy is shipped; the cursor tells no name all the same.
    assert_eq!(set.iter().map(|page| page["keys"].as_array().unwrap().len()).sum::<usize>(), 7);
    let told = Value::from(set).to_string();
    assert!(!told.contains("hidden"), "{told}");
}

#[test]
fn cursors_are_taken_only_as_they_were_given() {
    let mut appliance = appliance();
    let cursor = |user: User, path: &str| -> String {
        let page = get(&appliance, user, path);
        page["next"].as_str().expect("a cursor").to_owned()
    };
    let ask =
        |appliance: &Appliance, user: User, path: &str| user.asks(appliance, "GET", path, None);
    let mine = cursor(CURIOUS, "/v1/secrets?limit=1");
    get(&appliance, CURIOUS, &format!("/v1/secrets?limit=1&after={mine}"));
    let mut forged = BASE64_URL_SAFE_NO_PAD.decode(&mine).expect("base64url");
    forged[20] ^= 1;
    let forged = BASE64_URL_SAFE_NO_PAD.encode(forged);
    let standard = BASE64_STANDARD.encode("m1").replace('=', "");
    let bad = [
        (CURIOUS, format!("/v1/secrets?after={forged}")),
        (CURIOUS, format!("/v1/secrets?after={standard}")),
        (CURIOUS, "/v1/secrets?after=hidden-b".to_owned()),
        (CURIOUS, "/v1/secrets?after=m1".to_owned()),
        (CURIOUS, format!("/v1/secrets?prefix=m&after={mine}")),
        (CURIOUS, format!("/v1/keys?after={mine}")),
        (CURIOUS, format!("/v1/jwks.json?after={mine}")),
        (OTHER, format!("/v1/secrets?after={mine}")),
    ];
    for (user, path) in &bad {
        let refused = ask(&appliance, *user, path);
        refused.expect_problem(400, "invalid-cursor");
        assert!(refused.text().contains("begin the list again"), "{}", refused.text());
    }
    // The place of a cursor needs not be there any more.
    let deleted = CURIOUS.asks(&appliance, "DELETE", "/v1/secrets/m1", None);
    deleted.expect_status(204);
    let rest = get(&appliance, CURIOUS, &format!("/v1/secrets?limit=5&after={mine}"));
    assert_eq!(rest["secrets"].as_array().expect("secrets").len(), 2, "{rest}");
    appliance.restart();
    let old = ask(&appliance, CURIOUS, &format!("/v1/secrets?after={mine}"));
    old.expect_problem(400, "invalid-cursor");
    // The command begins again by itself, and shows all.
    assert!(appliance.cli(&["key", "list"]).status.success());
}
