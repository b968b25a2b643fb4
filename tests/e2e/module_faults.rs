//! A PKCS#11 module that crashes, hangs, is slow, runs out of sessions, lies, or returns whatever PKCS#11
//! has a name for: once that is over, service goes on without a hand.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::acts::{decrypt, encrypt, expect_plaintext, put_secret, reveal};
use crate::appliance::{Appliance, wait_until};
use crate::outages::{tells_its_state, turns};
use crate::shim::Shim;
use crate::token::write_private;

fn with_a_key(change: impl FnOnce(&mut toml::Table)) -> (Appliance, Shim, String) {
    let (appliance, shim) = Shim::appliance(change);
    appliance.create_key("k");
    put_secret(&appliance, "s", "k", "y").expect_status(201);
    let ciphertext = encrypt(&appliance, "k", "x");
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
    (appliance, shim, ciphertext)
}

fn comes_back(appliance: &Appliance, ciphertext: &str) {
    wait_until("a decryption", || decrypt(appliance, "k", ciphertext, None).status == 200);
    expect_plaintext(&decrypt(appliance, "k", ciphertext, None), "x");
    expect_plaintext(&reveal(appliance, "s"), "y");
    appliance.wait_for_state("ready");
}

/// A request that meets the fault: nothing is given out, and what is said is the appliance's trouble.
fn fails(appliance: &Appliance, ciphertext: &str, what: &str) {
    let reply = decrypt(appliance, "k", ciphertext, None);
    assert!(matches!(reply.status, 500 | 503), "{what}: {} {}", reply.status, reply.text());
}

#[test]
fn a_module_that_crashes_takes_nothing_with_it() {
    let (appliance, shim, ciphertext) = with_a_key(|_| {});
    for (call, how) in [("C_Decrypt", "abort"), ("C_Decrypt", "segv"), ("C_Login", "abort")] {
        let custody = appliance.custody_pid();
        shim.order(&format!("{call} {how}"));
        if call == "C_Login" {
            let pid = nix::unistd::Pid::from_raw(custody as i32);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
        }
        fails(&appliance, &ciphertext, how);
        appliance.wait_for_state("token-unavailable");
        tells_its_state(&appliance, "token-unavailable");
        shim.lift();
        comes_back(&appliance, &ciphertext);
        assert_ne!(appliance.custody_pid(), custody);
    }
}

#[test]
fn a_module_that_hangs_is_left_behind() {
    let (appliance, shim, ciphertext) = with_a_key(|_| {});
    for call in ["C_Decrypt", "C_DecryptInit"] {
        let custody = appliance.custody_pid();
        let before = turns(&appliance).len();
        shim.order(&format!("{call} hang"));
        fails(&appliance, &ciphertext, call);
        tells_its_state(&appliance, "ready");
        // The daemon's other work goes on meanwhile, and what hangs is noticed.
        appliance.get("/v1/keys/k").expect_status(200);
        appliance.wait_for_state("token-unavailable");
        shim.lift();
        comes_back(&appliance, &ciphertext);
        assert_ne!(appliance.custody_pid(), custody);
        wait_until("its end in the trail", || turns(&appliance).len() > before + 1);
        assert!(turns(&appliance).len() <= before + 2, "{:?}", turns(&appliance));
    }
}

/// The values that stand for their kind; all of them are tried at the token's own floor.
const TELLING: [u64; 14] =
    [0x05, 0x06, 0x30, 0x31, 0x32, 0x40, 0x60, 0x70, 0xB0, 0xB1, 0xE0, 0x101, 0x190, 0x8000_0001];

#[test]
fn each_kind_of_return_value_passes() {
    let (appliance, shim, ciphertext) = with_a_key(|config| {
        config["custody"]
            .as_table_mut()
            .expect("a table")
            .insert("deadline_ms".to_owned(), 400.into());
    });
    for code in TELLING {
        shim.order(&format!("C_Decrypt code {code:#x}"));
        fails(&appliance, &ciphertext, &format!("{code:#x}"));
        shim.lift();
        comes_back(&appliance, &ciphertext);
    }
}

#[test]
fn sessions_that_run_out_come_back() {
    let (appliance, shim, ciphertext) = with_a_key(|_| {});
    let custody = appliance.custody_pid();
    // A session that fails is not used again, and there is no other: the canary goes hungry, too.
    shim.order("C_DecryptInit code 0xb3\nC_OpenSession code 0xb1");
    fails(&appliance, &ciphertext, "no session");
    appliance.wait_for_state("token-unavailable");
    shim.lift();
    comes_back(&appliance, &ciphertext);
    assert_ne!(appliance.custody_pid(), custody);
}

#[test]
fn somebody_who_logs_out_is_an_outage_of_a_moment() {
    let (appliance, shim, ciphertext) = with_a_key(|_| {});
    let before = turns(&appliance).len();
    shim.order("C_DecryptInit logout");
    fails(&appliance, &ciphertext, "logged out");
    shim.lift();
    comes_back(&appliance, &ciphertext);
    wait_until("its end in the trail", || turns(&appliance).len() >= before + 2);
    assert_eq!(turns(&appliance)[before], "token-lost login-lost");
}

#[test]
fn one_bad_call_with_a_sound_token_is_no_outage() {
    let (appliance, shim, ciphertext) = with_a_key(|_| {});
    appliance.create_key("other");
    let (custody, before) = (appliance.custody_pid(), turns(&appliance).len());
    for code in ["0x05", "0x30", "0x21", "0x54"] {
        shim.order(&format!("C_Sign code {code}"));
        for _ in 0..3 {
            expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
            // Another line for the trail to sign.
            appliance.post("/v1/keys/other/rotate", &json!({})).expect_status(200);
        }
    }
    shim.lift();
    assert_eq!(appliance.custody_pid(), custody);
    assert_eq!(turns(&appliance).len(), before, "{:?}", turns(&appliance));
}

#[test]
fn forged_ciphertexts_in_any_number_are_no_outage() {
    let (appliance, _shim, ciphertext) = with_a_key(|_| {});
    let (custody, before) = (appliance.custody_pid(), turns(&appliance).len());
    let forged = crate::acts::base64([7; 256]);
    let items: Vec<_> = (0..256).map(|_| json!({ "ciphertext": forged })).collect();
    let body = json!({ "items": items });
    for _ in 0..8 {
        let reply = appliance.post("/v1/keys/k/decrypt", &body).expect_status(200).json();
        let items = reply["items"].as_array().expect("items");
        assert!(items.iter().all(|item| item["error"]["code"] == "decryption-failed"), "{reply}");
    }
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
    assert_eq!(appliance.custody_pid(), custody);
    assert_eq!(turns(&appliance).len(), before, "{:?}", turns(&appliance));
}

#[test]
fn a_wrong_pin_is_tried_once_however_often_custody_is_started() {
    let (appliance, shim, ciphertext) = with_a_key(|_| {});
    let tries = shim.calls("C_Login");
    write_private(&appliance.token().pin_file(), "90909090\n");
    for _ in 0..3 {
        let pid = nix::unistd::Pid::from_raw(appliance.custody_pid() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
        appliance.wait_for_state("pin-refused");
        fails(&appliance, &ciphertext, "wrong PIN");
    }
    assert_eq!(shim.calls("C_Login"), tries + 1);
    write_private(&appliance.token().pin_file(), &format!("{}\n", crate::token::PIN));
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        tells_its_state(&appliance, "pin-refused");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(shim.calls("C_Login"), tries + 1, "it waits for an operator");
    appliance.post("/v1/unlock", &json!({})).expect_status(200);
    assert_eq!(shim.calls("C_Login"), tries + 2);
    comes_back(&appliance, &ciphertext);
}

#[test]
fn a_slow_module_makes_service_slower_and_not_wrong() {
    let (mut appliance, shim, ciphertext) = with_a_key(|config| {
        config["custody"]
            .as_table_mut()
            .expect("a table")
            .insert("hang_seconds".to_owned(), 10.into());
    });
    for milliseconds in [5, 200] {
        shim.order(&format!("* delay {milliseconds}\n* count"));
        let began = Instant::now();
        expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
        expect_plaintext(&reveal(&appliance, "s"), "y");
        println!("{milliseconds} ms a call: two requests took {:?}", began.elapsed());
        tells_its_state(&appliance, "ready");
    }
    let (before, began) = (shim.calls("C_FindObjects"), Instant::now());
    appliance.restart();
    println!(
        "start took {:?}, C_FindObjects {}",
        began.elapsed(),
        shim.calls("C_FindObjects") - before
    );
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
    shim.lift();
    let turns = turns(&appliance);
    assert!(turns.iter().all(|turn| turn == "token-back"), "{turns:?}");
}
