//! One cheap request has the front build a reply without an end.

use serde_json::{Value, json};

use crate::appliance::Appliance;
use crate::rotation::private_key;

/// More keys than one reply has room for.
const MANY: usize = 1_010;

#[test]
fn the_set_of_public_keys_is_bounded_and_never_a_part_that_looks_like_the_whole() {
    let appliance = Appliance::new();
    let pem = private_key(&appliance.path(""));
    let import = |name: &str| {
        let body = json!({ "private_key": pem });
        appliance.post(&format!("/v1/keys/{name}/import"), &body).expect_status(201);
    };
    import("single");
    let few = appliance.get("/v1/jwks.json").expect_status(200).json();
    assert_eq!(few["keys"].as_array().expect("keys").len(), 1);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let import = &import;
            scope.spawn(move || {
                (thread..MANY).step_by(4).for_each(|number| import(&format!("k{number:04}")));
            });
        }
    });
    let refused = appliance.get("/v1/jwks.json");
    refused.expect_problem(400, "invalid");
    assert!(refused.text().contains("limit") && refused.text().contains("prefix"));
    let some = appliance.get("/v1/jwks.json?prefix=k000").expect_status(200).json();
    assert_eq!(some["keys"].as_array().expect("keys").len(), 10);
    assert!(some.get("next").is_none(), "{some}");
    let (mut found, mut after) = (0, String::new());
    loop {
        let page = appliance.get(&format!("/v1/jwks.json?limit=600{after}"));
        assert!(page.expect_status(200).body.len() < 1 << 20);
        let page: Value = page.json();
        found += page["keys"].as_array().expect("keys").len();
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(found, MANY + 1);
}
