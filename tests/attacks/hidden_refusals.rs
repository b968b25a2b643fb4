//! Cheap refusals use up the lines that refusals have in the audit log: what is tried after them must show.

use serde_json::{Value, json};

use crate::acts::trail_lines;
use crate::appliance::{Appliance, wait_until};
use crate::callers::{User, open_to_all};

const STRANGER: User = User::new(60_051);

/// Cheap refusals before the others: more than have a line each in a minute.
const CHEAP: usize = 200;

fn refusals(appliance: &Appliance) -> Vec<Value> {
    let lines = trail_lines(&appliance.trail()).into_iter();
    lines.filter(|line| line["uid"] == STRANGER.uid && line["result"] == "refused").collect()
}

#[test]
fn many_cheap_refusals_hide_no_other() {
    let mut appliance = Appliance::new();
    open_to_all(&appliance);
    appliance.create_key("payments");
    let ask = |method: &str, path: &str, body: Option<Value>| {
        STRANGER.asks(&appliance, method, path, body.as_ref())
    };
    let cheap = || ask("POST", "/v1/keys/none/decrypt", Some(json!({ "ciphertext": "AAAA" })));
    STRANGER.does(|| {
        for _ in 0..CHEAP {
            let body = json!({ "ciphertext": "AAAA" });
            let reply = appliance.post("/v1/keys/none/decrypt", &body);
            assert!([403, 429].contains(&reply.status), "{}", reply.text());
        }
    });
    cheap().expect_problem(429, "too-many-refusals");
    let attempts: [(&str, &str, &str, Option<Value>, &str); 8] = [
        ("key:compromise", "POST", "/v1/keys/payments/compromise", Some(json!({})), "key/payments"),
        ("key:suspend", "POST", "/v1/keys/payments/suspend", Some(json!({})), "key/payments"),
        ("secret:reveal", "POST", "/v1/secrets/stripe/reveal", Some(json!({})), "secret/stripe"),
        ("secret:delete", "DELETE", "/v1/secrets/stripe", None, "secret/stripe"),
        ("audit:read", "GET", "/v1/audit", None, "appliance"),
        ("master:rotate", "POST", "/v1/master/rotate", Some(json!({})), "appliance"),
        ("appliance:unlock", "POST", "/v1/unlock", Some(json!({})), "appliance"),
        ("appliance:lock", "POST", "/v1/lock", Some(json!({})), "appliance"),
    ];
    for (action, method, path, body, resource) in attempts {
        ask(method, path, body).expect_problem(403, "denied");
        let found = refusals(&appliance);
        let found = found.iter().any(|l| l["action"] == action && l["resource"] == resource);
        assert!(found, "{action} left no line");
    }
    // Of each kind the first alone: they do not fill the log in their turn.
    for _ in 0..CHEAP {
        let reply = ask("POST", "/v1/keys/payments/suspend", Some(json!({})));
        reply.expect_problem(429, "too-many-refusals");
    }
    let lines = refusals(&appliance).len();
    assert!(lines <= 120 + 8, "{lines} lines");
    appliance.stop();
    let told = trail_lines(&appliance.trail());
    let counts = told.iter().filter(|line| line["event"] == "refusals-left-out");
    let count: u64 = counts.map(|line| line["count"].as_u64().expect("a number")).sum();
    assert_eq!(count as usize + lines, 2 * CHEAP + 1 + 8, "each has a line or is counted");
}

/// A log that cannot be written keeps no refusal's line: their number comes when it can.
#[test]
fn refusals_while_the_log_cannot_be_written_are_counted() {
    let appliance = Appliance::new();
    open_to_all(&appliance);
    let (trail, away) = (appliance.trail(), appliance.path("away"));
    let ask = || STRANGER.asks(&appliance, "GET", "/v1/audit", None);
    ask().expect_problem(403, "denied");
    std::fs::rename(&trail, &away).expect("moved");
    wait_until("a log that is not there", || ask().status == 503);
    for _ in 0..10 {
        ask().expect_problem(503, "trail-unavailable");
    }
    std::fs::rename(&away, &trail).expect("moved back");
    let told = || {
        let lines = trail_lines(&appliance.trail());
        let counts = lines.iter().filter(|line| line["event"] == "refusals-left-out");
        counts.map(|line| line["count"].as_u64().expect("a number")).sum::<u64>()
    };
    wait_until("their number", || told() >= 11);
}
