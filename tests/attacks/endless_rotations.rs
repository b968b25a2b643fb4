//! An operator makes master keys until the token or the records have no room for the next.

use serde_json::json;

use crate::appliance::{Appliance, wait_until};

#[test]
fn no_more_than_so_many_master_keys_are_made_in_a_day() {
    let mut appliance = Appliance::new();
    let rotate =
        |appliance: &Appliance| appliance.post("/v1/master/rotate", &json!({ "force": true }));
    let in_use = |appliance: &Appliance| {
        wait_until("the end of the rotation", || {
            appliance.get("/v1/master").json()["rotation"]["stage"] == "done"
        });
        appliance.get("/v1/master").json()["generation"].as_u64().expect("a number")
    };
    for generation in 2..=25 {
        rotate(&appliance).expect_status(200);
        assert_eq!(in_use(&appliance), generation);
    }
    let refused = rotate(&appliance);
    assert!(refused.header("retry-after").is_some());
    refused.expect_problem(429, "rotated-often");
    assert_eq!(in_use(&appliance), 25, "no key was made");
    appliance.restart();
    rotate(&appliance).expect_problem(429, "rotated-often");
}
