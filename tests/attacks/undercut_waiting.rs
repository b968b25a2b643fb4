//! An operator shortens the time that destructions wait, so that nobody has the time to cancel them.

use serde_json::json;

use crate::appliance::Appliance;

#[test]
fn no_destruction_of_a_key_waits_for_less_than_the_configured_days() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    for days in [1, 29] {
        let body = json!({ "waiting_period_days": days });
        let refused = appliance.delete("/v1/keys/k", &body);
        refused.expect_problem(400, "invalid");
        assert!(refused.text().contains("at least 30 days"), "{}", refused.text());
    }
    let by_command = appliance.cli(&["key", "destroy", "k", "--after", "1d", "--yes"]);
    assert_eq!(by_command.status.code(), Some(1), "{by_command:?}");
    assert_eq!(appliance.get("/v1/keys/k").json()["state"], "active");
    // What the configuration sets is the least, whatever it is.
    appliance.stop();
    appliance.change_config(|config| {
        config.insert("keys".to_owned(), toml::toml! { destroy_wait_days = 7 }.into());
    });
    appliance.start();
    let destroy =
        |days: u16| appliance.delete("/v1/keys/k", &json!({ "waiting_period_days": days }));
    destroy(6).expect_problem(400, "invalid");
    destroy(7).expect_status(200);
}
