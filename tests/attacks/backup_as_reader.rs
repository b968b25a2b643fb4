//! An operator, whom the audit log is denied, reads it out of a backup.

use serde_json::json;

use crate::appliance::Appliance;
use crate::callers::{User, open_to_all};

const OPERATOR: User = User::new(60_211);
const BACKUP: User = User::new(60_212);
const BOTH: User = User::new(60_213);
const BY_POLICY: User = User::new(60_214);

#[test]
fn who_may_not_read_the_audit_log_gets_none_in_a_backup() {
    let mut appliance = Appliance::configured(|config| {
        let roles = config["policy"]["roles"].as_table_mut().expect("roles");
        roles.insert("backup".to_owned(), toml::toml! { users = [] }.into());
        let bound =
            [("operator", OPERATOR), ("operator", BOTH), ("auditor", BOTH), ("backup", BACKUP)];
        for (role, user) in bound {
            let users = roles[role]["users"].as_array_mut().expect("users");
            users.push(i64::from(user.uid).into());
        }
    });
    open_to_all(&appliance);
    // Policies of before, and such as people write: backups for a user, and no word of the audit log.
    let directory = appliance.path("policy");
    std::fs::create_dir(&directory).expect("made");
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/config/policy");
    for entry in std::fs::read_dir(shipped).expect("shipped").flatten() {
        std::fs::copy(entry.path(), directory.join(entry.file_name())).expect("copied");
    }
    let more = format!(
        "permit (principal == User::\"unix:{}\", action == Action::\"backup:create\", resource);",
        BY_POLICY.uid
    );
    std::fs::write(directory.join("more.cedar"), more).expect("written");
    appliance.change_config(|config| {
        config["policy"]["directory"] = directory.display().to_string().into();
    });
    appliance.restart();
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_key("a-name-in-the-log");
    for denied in [OPERATOR, BY_POLICY] {
        denied.asks(&appliance, "GET", "/v1/audit", None).expect_problem(403, "denied");
        let refused = denied.asks(&appliance, "POST", "/v1/backup", None);
        refused.expect_problem(403, "denied");
        assert!(!refused.text().contains("a-name-in-the-log"));
        let lines = crate::checks::lines_of(&appliance, &refused);
        assert_eq!((lines.len(), &lines[0]["action"]), (1, &json!("backup:create")));
    }
    for may in [BACKUP, BOTH] {
        let backup = may.asks(&appliance, "POST", "/v1/backup", None);
        assert!(backup.expect_status(200).text().contains("a-name-in-the-log"));
    }
    for path in ["/v1/keys", "/v1/status", "/v1/master"] {
        BACKUP.asks(&appliance, "GET", path, None).expect_problem(403, "denied");
    }
    let document = appliance.get("/v1/openapi.json").json();
    let needs = document["paths"]["/v1/backup"]["post"]["description"].as_str().expect("a text");
    assert!(needs.contains("`backup:create`") && needs.contains("`audit:read`"), "{needs}");
}
