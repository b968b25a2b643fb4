//! Locked and unlocked again; and a PIN that is wrong, or lies open.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::acts::{
    base64, decrypt, encrypt, events, expect_plaintext, one_try_was_wrong, pin_tries, put_secret,
    reveal,
};
use crate::appliance::{Appliance, wait_until};
use crate::shim::Shim;
use crate::token::{PIN, write_private};

const WRONG: &str = "90909090";

#[test]
fn a_locked_appliance_uses_no_key_and_says_how_it_is() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    put_secret(&appliance, "s", "k", "y").expect_status(201);
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
    let custody = appliance.custody_pid();
    let locked = appliance.post("/v1/lock", &json!({ "reason": "maintenance" }));
    assert_eq!(locked.expect_status(200).json()["state"], "locked");
    wait_until("the end of the custody that held keys", || {
        !std::path::Path::new(&format!("/proc/{custody}")).exists()
    });
    for restarted in [false, true] {
        if restarted {
            appliance.restart();
        }
        decrypt(&appliance, "k", &ciphertext, None).expect_problem(503, "locked");
        reveal(&appliance, "s").expect_problem(503, "locked");
        put_secret(&appliance, "t", "k", "z").expect_problem(503, "locked");
        let create = json!({ "name": "n", "algorithm": "RSA-2048" });
        appliance.post("/v1/keys", &create).expect_problem(503, "locked");
        assert_eq!(appliance.get("/v1/status").expect_status(200).json()["state"], "locked");
        appliance.get("/v1/health").expect_status(503);
        let metrics = appliance.get("/metrics").expect_status(200).text();
        assert!(metrics.contains("state=\"locked\""), "{metrics}");
        appliance.get("/v1/audit?limit=5").expect_status(200);
        appliance.post("/v1/lock", &json!({})).expect_status(200);
    }
    let output = appliance.cli(&["unlock"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
    appliance.post("/v1/unlock", &json!({})).expect_problem(409, "not-locked");
    expect_plaintext(&reveal(&appliance, "s"), "y");
    let told = events(&appliance.trail());
    assert!(told.iter().any(|event| event == "locked"), "{told:?}");
    assert!(told.iter().any(|event| event == "unlocked"), "{told:?}");
    appliance.restart();
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
}

#[test]
fn a_lock_counts_that_comes_while_an_unlock_takes_its_time() {
    let (mut appliance, shim) = Shim::appliance(|_| {});
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    let logins = shim.calls("C_Login");
    shim.order("C_FindObjectsInit delay 1200");
    std::thread::scope(|scope| {
        let unlocking = scope.spawn(|| appliance.post("/v1/unlock", &json!({})));
        wait_until("the login", || shim.calls("C_Login") > logins);
        let began = Instant::now();
        appliance.post("/v1/lock", &json!({})).expect_status(200);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        unlocking.join().expect("no panic").expect_problem(503, "locked");
    });
    shim.lift();
    assert_eq!(appliance.get("/v1/status").json()["state"], "locked");
    decrypt(&appliance, "k", &ciphertext, None).expect_problem(503, "locked");
    appliance.restart();
    appliance.wait_for_state("locked");
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
}

#[test]
fn an_operators_pin_unlocks_and_a_wrong_one_does_not() {
    let appliance = Appliance::new();
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    // The configured PIN is out of the game.
    std::fs::remove_file(appliance.token().pin_file()).unwrap();
    let missing = appliance.post("/v1/unlock", &json!({}));
    missing.expect_problem(503, "pin-unavailable");
    assert!(missing.text().contains("No such file"), "{}", missing.text());
    let tries = pin_tries(&appliance);
    let output = appliance.cli_with(&["unlock", "--pin-file", "-"], WRONG.as_bytes());
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(pin_tries(&appliance) > tries, "the token was asked");
    assert!(one_try_was_wrong(&appliance));
    assert_eq!(appliance.get("/v1/status").json()["state"], "locked");
    decrypt(&appliance, "k", &ciphertext, None).expect_problem(503, "locked");
    let typed = format!("{PIN}\n");
    // Between two PINs lies a pause, and whoever asks is told until when.
    let output = appliance.cli_with(&["unlock", "--pin-file", "-"], typed.as_bytes());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("the next is tried from"), "{told}");
    std::thread::sleep(Duration::from_secs(6));
    let output = appliance.cli_with(&["unlock", "--pin-file", "-"], typed.as_bytes());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!one_try_was_wrong(&appliance));
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
    no_pin_was_told(&appliance);
}

#[test]
fn a_wrong_configured_pin_is_tried_once_and_then_waits_for_an_operator() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    appliance.stop();
    write_private(&appliance.token().pin_file(), WRONG);
    appliance.start();
    appliance.wait_for_state("pin-refused");
    assert!(one_try_was_wrong(&appliance));
    let tried = pin_tries(&appliance);
    decrypt(&appliance, "k", &ciphertext, None).expect_problem(503, "pin-refused");
    appliance.get("/v1/health").expect_status(503);
    // Neither requests nor a new custody try it again.
    let custody = appliance.custody_pid();
    kill(custody);
    wait_until("a new custody", || appliance.custody_pid() != custody);
    let from = appliance.log().len();
    kill(appliance.custody_pid());
    appliance.wait_for_log(from, "the front has connected");
    decrypt(&appliance, "k", &ciphertext, None).expect_problem(503, "pin-refused");
    assert_eq!(pin_tries(&appliance), tried, "the token was not asked again");
    let doctor = appliance.cli(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(1));
    assert_eq!(pin_tries(&appliance), tried, "not by the doctor either");

    let typed = format!("{PIN}\n");
    let output = appliance.cli_with(&["unlock", "--pin-file", "-"], typed.as_bytes());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
    no_pin_was_told(&appliance);
}

#[test]
fn a_pin_that_lies_open_is_not_used() {
    let mut appliance = Appliance::new();
    appliance.stop();
    let file = appliance.token().pin_file();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let before = pin_tries(&appliance);
    appliance.start();
    appliance.wait_for_state("pin-unavailable");
    let away = appliance.get("/v1/status").json()["token_away"]["reason"].clone();
    assert_eq!(away, "pin-unavailable");
    let detail = appliance.get("/v1/status").json()["detail"].to_string();
    assert!(detail.contains("has mode 0644: chmod 0600 it"), "{detail}");
    assert!(detail.contains(&file.display().to_string()), "{detail}");
    assert_eq!(pin_tries(&appliance), before, "the token was not asked");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    assert_eq!(appliance.get("/v1/status").json()["state"], "ready");
}

#[test]
fn the_pin_may_come_as_a_credential() {
    let mut appliance = Appliance::new();
    appliance.stop();
    let directory = appliance.path("credentials");
    std::fs::create_dir(&directory).unwrap();
    write_private(&directory.join("token-pin"), PIN);
    std::fs::remove_file(appliance.token().pin_file()).unwrap();
    appliance.change_config(|config| {
        let token = config["token"].as_table_mut().expect("a table");
        token.insert("pin_credential".to_owned(), "token-pin".into());
    });
    appliance.set_environment("CREDENTIALS_DIRECTORY", &directory.display().to_string());
    appliance.start();
    assert_eq!(appliance.get("/v1/status").json()["state"], "ready");
    let doctor = appliance.get("/v1/doctor").text();
    assert!(doctor.contains("token-pin") && !doctor.contains("custody alone"), "{doctor}");
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
}

#[test]
fn a_refused_pin_is_not_tried_again_by_an_unlock_until_it_is_another() {
    for of_systemd in [true, false] {
        let mut appliance = Appliance::new();
        appliance.stop();
        let mut source = appliance.token().pin_file();
        if of_systemd {
            let directory = appliance.path("credentials");
            std::fs::create_dir(&directory).unwrap();
            source = directory.join("pin");
            appliance.change_config(|config| {
                let token = config["token"].as_table_mut().expect("a table");
                token.insert("pin_credential".to_owned(), "pin".into());
            });
            appliance.set_environment("CREDENTIALS_DIRECTORY", &directory.display().to_string());
        }
        write_private(&source, WRONG);
        appliance.start();
        appliance.wait_for_state("pin-refused");
        let tried = pin_tries(&appliance);
        for _ in 0..3 {
            let refused = appliance.post("/v1/unlock", &json!({}));
            refused.expect_problem(503, "pin-refused");
            let text = refused.text();
            assert!(text.contains("was not tried again"), "{text}");
            let named = if of_systemd { "the credential" } else { "the PIN is in /" };
            assert!(text.contains(named), "{text}");
            assert!(text.contains("systemctl restart strongroom-custody"), "{text}");
        }
        assert_eq!(pin_tries(&appliance), tried, "the token was not asked");
        write_private(&source, PIN);
        appliance.post("/v1/unlock", &json!({})).expect_status(200);
        assert_eq!(appliance.get("/v1/status").json()["state"], "ready");
    }
}

#[test]
fn a_refused_pin_stays_known_while_it_is_locked() {
    let appliance = Appliance::new();
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    let status = || appliance.get("/v1/status").json();
    assert_eq!(status()["detail"], "an operator locked it");
    let output = appliance.cli_with(&["unlock", "--pin-file", "-"], WRONG.as_bytes());
    assert_eq!(output.status.code(), Some(1));
    let said = status();
    assert_eq!(said["state"], "locked");
    assert!(said["detail"].to_string().contains("refused the PIN"), "{said}");
    assert!(said["next"].to_string().contains("may lock the token"), "{said}");
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    assert_eq!(status()["state"], "ready");
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    assert_eq!(status()["detail"], "an operator locked it");
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
}

fn no_pin_was_told(appliance: &Appliance) {
    let trail = crate::acts::trail_texts(&appliance.trail()).concat();
    for told in [appliance.log(), trail] {
        for pin in [PIN, WRONG] {
            assert!(!told.contains(pin) && !told.contains(&base64(pin)));
        }
    }
}

#[test]
fn a_pin_file_that_was_put_in_another_s_place_is_seen_by_the_first_unlock() {
    let mut appliance = Appliance::new();
    let file = appliance.token().pin_file();
    let replace = |pin: &str| {
        let new = file.with_extension("new");
        write_private(&new, pin);
        std::fs::rename(new, &file).expect("renamed");
    };
    appliance.stop();
    replace(WRONG);
    appliance.start();
    appliance.wait_for_state("pin-refused");
    replace(PIN);
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    // The same where there was none, and with one that is wrong: that is tried once, and once only.
    appliance.stop();
    std::fs::remove_file(&file).expect("removed");
    appliance.start();
    appliance.post("/v1/unlock", &json!({}));
    replace(WRONG);
    let before = pin_tries(&appliance);
    appliance.post("/v1/unlock", &json!({})).expect_problem(503, "pin-refused");
    assert!(pin_tries(&appliance) > before && one_try_was_wrong(&appliance));
    let before = pin_tries(&appliance);
    replace(PIN);
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    assert!(pin_tries(&appliance) > before && !one_try_was_wrong(&appliance));
}

#[test]
fn a_lock_holds_where_the_token_was_away_since_the_start() {
    let mut appliance = Appliance::new();
    appliance.stop();
    let away = appliance.token().tokens().with_extension("away");
    std::fs::rename(appliance.token().tokens(), &away).expect("moved");
    appliance.spawn();
    appliance.wait_for_state("token-unavailable");
    appliance.post("/v1/lock", &json!({})).expect_status(200);
    std::fs::rename(away, appliance.token().tokens()).expect("moved back");
    appliance.wait_for_state("locked");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(appliance.get("/v1/status").json()["state"], "locked");
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    appliance.wait_for_state("ready");
    appliance.restart();
    let told = events(&appliance.trail());
    assert!(told.iter().any(|event| event == "locked"), "{told:?}");
}
