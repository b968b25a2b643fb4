//! An operator shortens the time that destructions wait, so that nobody has the time to cancel them.

use serde_json::{Value, json};

use crate::acts::{decrypt, encrypt, expect_plaintext, trail_lines};
use crate::appliance::{Appliance, Reply, wait_until};
use crate::raw_store::{KEY, Raw};
use crate::rotation::{
    let_days_pass, masters_in_token, state_of, wait_for_retirement, wait_for_rotation,
};

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

/// One whose master key was rotated: nothing lies under the first generation but old backups.
fn rotated() -> Appliance {
    let appliance = Appliance::new();
    appliance.create_key("k");
    appliance.post("/v1/master/rotate", &json!({})).expect_status(200);
    wait_for_rotation(&appliance);
    appliance
}

fn retire(appliance: &Appliance, more: Value) -> Reply {
    let mut body = json!({ "generation": 1 });
    body.as_object_mut().expect("one").extend(more.as_object().expect("one").clone());
    appliance.post("/v1/master/retire", &body)
}

fn cancel(appliance: &Appliance) -> Reply {
    appliance.post("/v1/master/cancel-retirement", &json!({ "generation": 1 }))
}

#[test]
fn no_master_key_is_destroyed_before_the_configured_days_are_over() {
    let mut appliance = rotated();
    let sealed = encrypt(&appliance, "k", "kept");
    for days in [0, 1, 29, 366] {
        retire(&appliance, json!({ "waiting_period_days": days })).expect_problem(400, "invalid");
    }
    cancel(&appliance).expect_problem(409, "master-state");
    let asked = retire(&appliance, json!({})).expect_status(200).json();
    let now = jiff::Timestamp::now();
    let at: jiff::Timestamp =
        asked["generations"][0]["destroy_at"].as_str().expect("a time").parse().expect("a time");
    let hours = at.duration_since(now).as_hours();
    assert!((719..=721).contains(&hours), "{hours} hours are not 30 days");
    // It is shown, and asked for again it says so.
    let status = appliance.get("/v1/status").json();
    assert_eq!(status["masters_to_be_destroyed"][0]["generation"], 1, "{status}");
    let shown = String::from_utf8(appliance.cli(&["master", "status"]).stdout).expect("text");
    assert!(shown.contains("destruction-pending") && shown.contains("DESTROY AT"), "{shown}");
    retire(&appliance, json!({})).expect_problem(409, "master-state");
    // It can be cancelled, and begins to wait from the beginning when it is asked for again.
    let kept = appliance.cli(&["master", "cancel-retirement", "1"]);
    assert!(kept.status.success(), "{kept:?}");
    assert_eq!(state_of(&appliance, 1).0, "old");
    cancel(&appliance).expect_problem(409, "master-state");
    assert!(appliance.get("/v1/status").json().get("masters_to_be_destroyed").is_none());
    retire(&appliance, json!({})).expect_status(200);
    let_days_pass(&mut appliance, 29);
    appliance.create_key("after-the-sweep");
    assert_eq!(state_of(&appliance, 1), ("destruction-pending".to_owned(), "fit".to_owned()));
    let_days_pass(&mut appliance, 31);
    wait_for_retirement(&appliance, 1);
    assert_eq!(masters_in_token(&appliance), 1);
    let lines = trail_lines(&appliance.trail());
    let by_itself: Vec<_> = lines
        .iter()
        .filter(|line| line["action"] == "master:retire" && line["caller"] == "system:sweep")
        .collect();
    assert_eq!(by_itself.len(), 2, "an intent and its outcome: {by_itself:?}");
    assert_eq!((&by_itself[1]["result"], &by_itself[1]["generation"]), (&json!("done"), &json!(1)));
    for refused in [retire(&appliance, json!({})), cancel(&appliance)] {
        refused.expect_problem(409, "master-state");
    }
    expect_plaintext(&decrypt(&appliance, "k", &sealed, None), "kept");
}

#[test]
fn what_is_needed_again_when_its_wait_is_over_is_kept() {
    let mut appliance = rotated();
    appliance.create_key("other");
    retire(&appliance, json!({})).expect_status(200);
    appliance.stop();
    Raw::open(&appliance).damage(KEY, "other");
    appliance.start();
    let_days_pass(&mut appliance, 31);
    let waits_for = || {
        let view = appliance.get("/v1/master").json();
        view["generations"][0]["waits_for"].as_str().map(str::to_owned)
    };
    wait_until("what it waits for", || waits_for().is_some());
    assert!(waits_for().expect("a text").contains("the records of 1 keys do not open"));
    assert_eq!(masters_in_token(&appliance), 2);
    cancel(&appliance).expect_status(200);
    assert_eq!(state_of(&appliance, 1), ("old".to_owned(), "fit".to_owned()));
}

#[test]
fn no_destruction_is_scheduled_by_a_clock_that_is_doubted() {
    let mut appliance = rotated();
    appliance.stop();
    appliance.move_clock("+40d");
    appliance.start();
    appliance.wait_for_state("ready");
    retire(&appliance, json!({})).expect_problem(409, "clock-doubted");
}
