//! The token goes and comes back, under a running daemon and without a hand: its directory, its keys,
//! another token in its place; and custody itself.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::acts::{decrypt, encrypt, expect_plaintext, put_secret, reveal, trail_lines};
use crate::appliance::{Appliance, wait_until};
use crate::token::PIN;

/// An appliance with a key and a secret that notices soon that its token is away.
pub fn watchful() -> (Appliance, String) {
    let appliance = Appliance::configured(|config| {
        let custody = config["custody"].as_table_mut().expect("a table");
        custody.insert("canary_seconds".to_owned(), 1.into());
    });
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    put_secret(&appliance, "s", "k", "y").expect_status(201);
    (appliance, ciphertext)
}

/// The trail's account of outages: `token-lost` with its reason, `token-back`.
pub fn turns(appliance: &Appliance) -> Vec<String> {
    let lines = trail_lines(&appliance.trail());
    let told = lines.iter().filter_map(|line| {
        let event = line["event"].as_str().filter(|event| event.starts_with("token-"))?;
        Some(match line["code"].as_str() {
            Some(code) => format!("{event} {code}"),
            None => event.to_owned(),
        })
    });
    told.collect()
}

/// What tells how the appliance does answers at once, and says the same.
pub fn tells_its_state(appliance: &Appliance, state: &str) {
    let began = Instant::now();
    let status = appliance.get("/v1/status").expect_status(200).json();
    assert_eq!(status["state"], state, "{status}");
    if state != "ready" {
        assert!(status["detail"].as_str().is_some_and(|why| !why.is_empty()), "{status}");
        appliance.get("/v1/health").expect_status(503);
    }
    let metrics = appliance.get("/metrics").expect_status(200).text();
    assert!(metrics.contains(&format!("state=\"{state}\"}} 1")), "{metrics}");
    // Far below the deadline that requests wait for.
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

fn move_away(appliance: &Appliance) -> std::path::PathBuf {
    let (tokens, away) =
        (appliance.token().tokens(), appliance.token().tokens().with_extension("away"));
    std::fs::rename(tokens, &away).expect("moved");
    away
}

fn move_back(appliance: &Appliance, away: &Path) {
    let tokens = appliance.token().tokens();
    if tokens.exists() {
        std::fs::remove_dir_all(&tokens).expect("removed");
    }
    std::fs::rename(away, tokens).expect("moved back");
}

fn works_again(appliance: &Appliance, ciphertext: &str) {
    appliance.wait_for_state("ready");
    expect_plaintext(&decrypt(appliance, "k", ciphertext, None), "x");
    expect_plaintext(&reveal(appliance, "s"), "y");
    let head = |path: &str| appliance.get(path).json()["trail"]["head"].clone();
    assert_ne!(head("/v1/status"), Value::Null);
}

#[test]
fn a_token_directory_that_goes_and_comes_back_is_one_outage() {
    let (appliance, ciphertext) = watchful();
    let before = turns(&appliance);
    let from = appliance.log().len();
    let away = move_away(&appliance);
    appliance.wait_for_state("token-unavailable");
    let began = Instant::now();
    let refused = decrypt(&appliance, "k", &ciphertext, None);
    refused.expect_problem(503, "token-unavailable");
    assert!(refused.header("retry-after").is_some());
    assert!(began.elapsed() >= Duration::from_millis(1900), "it waited: {:?}", began.elapsed());
    // Custody was started anew many times by now, or asked many times.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        tells_its_state(&appliance, "token-unavailable");
        std::thread::sleep(Duration::from_millis(100));
    }
    let log = appliance.log();
    let told = lines_for_people(&log[from..]);
    assert!(told.len() <= 8, "the journal is not flooded: {told:#?}");
    move_back(&appliance, &away);
    works_again(&appliance, &ciphertext);
    wait_until("the trail's account of it", || turns(&appliance).len() >= before.len() + 2);
    let turns = turns(&appliance);
    let [lost, back] = &turns[before.len()..] else { panic!("{turns:?}") };
    assert_eq!(lost, "token-lost token-absent");
    assert_eq!(back, "token-back");
}

/// Lines of the log at `info` or above.
fn lines_for_people(log: &str) -> Vec<&str> {
    let loud =
        |line: &&str| [" INFO ", " WARN ", "ERROR "].iter().any(|level| line.contains(level));
    log.lines().filter(loud).collect()
}

#[test]
fn a_request_that_comes_while_the_token_is_away_is_done_when_it_is_back_in_time() {
    let (appliance, ciphertext) = watchful();
    let away = move_away(&appliance);
    appliance.wait_for_state("token-unavailable");
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| decrypt(&appliance, "k", &ciphertext, None));
        std::thread::sleep(Duration::from_millis(200));
        move_back(&appliance, &away);
        expect_plaintext(&asked.join().expect("answered"), "x");
    });
}

#[test]
fn the_token_is_found_again_though_the_process_that_looks_for_it_was_lost() {
    let (appliance, ciphertext) = watchful();
    let before = turns(&appliance).len();
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        let custody = appliance.custody_pid();
        let away = move_away(&appliance);
        appliance.wait_for_state("token-unavailable");
        wait_until("another custody, and its probe", || {
            appliance.custody_pid() != custody && appliance.probe_pid().is_some()
        });
        let probe = appliance.probe_pid().expect("a probe");
        kill(Pid::from_raw(probe as i32), signal).expect("it runs");
        move_back(&appliance, &away);
        works_again(&appliance, &ciphertext);
    }
    assert_eq!(turns(&appliance).len(), before + 4, "{:?}", turns(&appliance));
}

#[test]
fn no_request_fails_because_custody_is_killed() {
    let (appliance, ciphertext) = watchful();
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
                    expect_plaintext(&reveal(&appliance, "s"), "y");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..5 {
            let before = done.load(Ordering::Relaxed);
            wait_until("some decryptions", || done.load(Ordering::Relaxed) > before + 12);
            kill(Pid::from_raw(appliance.custody_pid() as i32), Signal::SIGKILL).expect("killed");
        }
        let before = done.load(Ordering::Relaxed);
        wait_until("some decryptions", || done.load(Ordering::Relaxed) > before + 12);
        stop.store(true, Ordering::Relaxed);
    });
    let turns = turns(&appliance);
    let lost = turns.iter().filter(|turn| *turn == "token-lost custody-gone").count();
    let back = turns.iter().filter(|turn| *turn == "token-back").count();
    assert!(lost >= 1 && back == lost + 1, "{turns:?}");
}

#[test]
fn another_token_in_its_place_is_recognised_and_never_used() {
    let (appliance, ciphertext) = watchful();
    let away = move_away(&appliance);
    std::fs::create_dir(appliance.token().tokens()).expect("made");
    appliance.token().initialise_another(appliance.token().label());
    appliance.wait_for_state("master-unfit");
    tells_its_state(&appliance, "master-unfit");
    agree(&appliance, "master-unfit");
    decrypt(&appliance, "k", &ciphertext, None).expect_problem(503, "master-key");
    // The same with keys of the right names in it.
    let keys =
        format!("{:02x?}", "strongroom master/1".as_bytes()).replace(['[', ']', ',', ' '], "");
    let master =
        ["--keygen", "--key-type", "AES:32", "--label", "strongroom master/1", "--id", &keys];
    appliance.token().pkcs11_tool(&master);
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        tells_its_state(&appliance, "master-unfit");
        std::thread::sleep(Duration::from_millis(100));
    }
    reveal(&appliance, "s").expect_problem(503, "master-key");
    move_back(&appliance, &away);
    works_again(&appliance, &ciphertext);
}

/// State, reason, metrics and the trail's newest word of an outage that waits for an operator agree.
fn agree(appliance: &Appliance, word: &str) {
    wait_until("the trail's word", || {
        turns(appliance).last().is_some_and(|turn| *turn == format!("token-lost {word}"))
    });
    let status = appliance.get("/v1/status").json();
    assert_eq!((&status["state"], &status["token_away"]["reason"]), (&json!(word), &json!(word)));
    assert!(
        status["next"].as_str().is_some_and(|next| next.starts_with("an operator")),
        "{status}"
    );
    let metrics = appliance.get("/metrics").text();
    assert!(
        metrics.contains(&format!("strongroom_token_away{{reason=\"{word}\"}} 1")),
        "{metrics}"
    );
}

#[test]
fn a_deleted_master_key_is_missed_and_welcomed_back() {
    let (appliance, ciphertext) = watchful();
    let copy = appliance.token().tokens().with_extension("copy");
    copy_tree(&appliance.token().tokens(), &copy);
    appliance.token().pkcs11_tool(&[
        "--delete-object",
        "--type",
        "secrkey",
        "--label",
        "strongroom master/1",
    ]);
    appliance.wait_for_state("master-unfit");
    agree(&appliance, "master-unfit");
    let refused = decrypt(&appliance, "k", &ciphertext, None);
    refused.expect_problem(503, "master-key");
    assert!(!refused.text().contains("try again"), "{}", refused.text());
    assert_ne!(refused.header("retry-after").as_deref(), Some("1"));
    let status = appliance.get("/v1/status").json();
    assert!(status["detail"].as_str().unwrap().contains("never makes a new one"), "{status}");
    move_back(&appliance, &copy);
    works_again(&appliance, &ciphertext);
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("made");
    for entry in std::fs::read_dir(from).expect("read").map(|entry| entry.expect("an entry")) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_tree(&from, &to);
        } else {
            std::fs::copy(from, to).expect("copied");
        }
    }
}

#[test]
fn a_pin_that_became_wrong_waits_for_an_operator_and_no_longer() {
    let (appliance, ciphertext) = watchful();
    let changed = "59595959";
    appliance.token().pkcs11_tool(&["--change-pin", "--new-pin", changed]);
    kill(Pid::from_raw(appliance.custody_pid() as i32), Signal::SIGKILL).expect("killed");
    appliance.wait_for_state("pin-refused");
    tells_its_state(&appliance, "pin-refused");
    agree(&appliance, "pin-refused");
    let refused = decrypt(&appliance, "k", &ciphertext, None);
    refused.expect_problem(503, "pin-refused");
    assert!(turns(&appliance).last().is_some_and(|turn| turn.starts_with("token-lost")));
    let output = appliance.cli_with(&["unlock", "--pin-file", "-"], changed.as_bytes());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    works_again(&appliance, &ciphertext);
    assert_ne!(PIN, changed);
}

#[test]
fn a_stop_with_a_custody_that_hangs_is_over_in_time() {
    let (mut appliance, ciphertext) = watchful();
    let custody = Pid::from_raw(appliance.custody_pid() as i32);
    kill(custody, Signal::SIGSTOP).expect("stopped");
    let socket = appliance.socket();
    let body = json!({ "ciphertext": ciphertext }).to_string();
    let request = format!(
        "POST /v1/keys/k/decrypt HTTP/1.1\r\nhost: s\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let took = std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                use std::io::{Read, Write};
                let mut stream =
                    std::os::unix::net::UnixStream::connect(&socket).expect("connects");
                let _ = stream.write_all(request.as_bytes());
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
        std::thread::sleep(Duration::from_millis(300));
        appliance.stop()
    });
    println!("it took {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    wait_until("custody's end", || !Path::new(&format!("/proc/{custody}")).exists());
}

#[test]
fn a_custody_that_hangs_is_ended_and_started_anew() {
    let (appliance, ciphertext) = watchful();
    let custody = appliance.custody_pid();
    kill(Pid::from_raw(custody as i32), Signal::SIGSTOP).expect("stopped");
    appliance.wait_for_state("token-unavailable");
    tells_its_state(&appliance, "token-unavailable");
    works_again(&appliance, &ciphertext);
    assert_ne!(appliance.custody_pid(), custody);
    assert!(turns(&appliance).contains(&"token-lost custody-silent".to_owned()));
}

/// Custody has more to do than it gets done within the deadline: that is slow, and no outage.
#[test]
fn a_crowd_is_told_that_it_is_one_and_loses_nobody_the_token() {
    let appliance = Appliance::configured(|config| {
        let custody = config["custody"].as_table_mut().expect("a table");
        custody.insert("deadline_ms".to_owned(), 300.into());
    });
    appliance.post("/v1/init", &json!({})).expect_status(201);
    let large = json!({ "name": "large", "algorithm": "RSA-4096" });
    appliance.post("/v1/keys", &large).expect_status(201);
    let ciphertext = encrypt(&appliance, "large", "x");
    expect_plaintext(&decrypt(&appliance, "large", &ciphertext, None), "x");
    let items = json!({ "items": vec![json!({ "ciphertext": ciphertext }); 256] });
    let until = Instant::now() + Duration::from_secs(4);
    std::thread::scope(|scope| {
        for _ in 0..48 {
            scope.spawn(|| {
                while Instant::now() < until {
                    let reply = appliance.post("/v1/keys/large/decrypt", &items);
                    assert!([200, 429, 503].contains(&reply.status), "{}", reply.text());
                }
            });
        }
    });
    assert_eq!(turns(&appliance), ["token-back"], "{}", appliance.log());
    expect_plaintext(&decrypt(&appliance, "large", &ciphertext, None), "x");
}
