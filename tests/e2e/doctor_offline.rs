//! `strongroom doctor --config`: what it examines without a daemon, and when it tries the PIN.

use std::process::Command;

use crate::acts::{one_try_was_wrong, pin_tries};
use crate::appliance::Appliance;
use crate::token::{PIN, write_private};

/// Runs it; its exit code and lines.
fn doctor(appliance: &Appliance, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    command.args(["doctor", "--config"]).arg(appliance.config_file()).args(arguments);
    let output = command.envs([appliance.token().environment()]).output().expect("it starts");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_pin_is_tried_where_it_is_asked_for_and_no_wrong_one_came_before() {
    let mut appliance = Appliance::new();
    appliance.stop();
    let (code, text) = doctor(&appliance, &["--login"]);
    assert!(code == Some(0) && text.contains("template as required"), "{text}");
    let right = appliance.path("right");
    write_private(&right, PIN);
    write_private(&appliance.token().pin_file(), "90909090");
    let before = pin_tries(&appliance);
    let (code, text) = doctor(&appliance, &[]);
    assert!(code == Some(0) && text.contains("needs the PIN (--login)"), "{text}");
    assert_eq!(pin_tries(&appliance), before, "the token was not asked");
    let (code, text) = doctor(&appliance, &["--login"]);
    assert!(code == Some(1) && one_try_was_wrong(&appliance), "{text}");
    let tried = pin_tries(&appliance);
    let right = right.display().to_string();
    for arguments in [&["--login"][..], &["--login", "--pin-file", &right]] {
        let (code, text) = doctor(&appliance, arguments);
        assert!(code == Some(1) && text.contains("a wrong PIN was tried since"), "{text}");
        assert_eq!(pin_tries(&appliance), tried, "the token was not asked again");
    }
}

#[test]
fn a_credential_is_not_examined_by_hand_and_its_file_may_be_named() {
    let mut appliance = Appliance::new();
    appliance.stop();
    appliance.change_config(|config| {
        let token = config["token"].as_table_mut().expect("a table");
        token.insert("pin_credential".to_owned(), "pin".into());
    });
    let (code, text) = doctor(&appliance, &[]);
    assert!(code == Some(0) && text.contains("not examined: it is a credential"), "{text}");
    assert!(!text.contains("FAIL"), "{text}");
    let pin = appliance.token().pin_file().display().to_string();
    let (code, text) = doctor(&appliance, &["--login", "--pin-file", &pin]);
    assert!(code == Some(0) && text.contains("template as required"), "{text}");
}
