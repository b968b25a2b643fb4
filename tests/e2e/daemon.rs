//! The daemon as a process: reload, stop, a second one, a custody that dies, its socket.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::acts::{base64, decrypt, encrypt, events, expect_plaintext, reveal, trail_lines};
use crate::appliance::{Appliance, wait_until};

/// Custody reads the file whenever it starts anew: one that it cannot start with is named before that.
#[test]
fn a_configuration_that_custody_cannot_start_with_is_named() {
    let appliance = Appliance::new();
    let status = || appliance.get("/v1/status").json();
    assert_eq!(status()["detail"], Value::Null);
    let sound = std::fs::read_to_string(appliance.config_file()).unwrap();
    std::fs::write(appliance.config_file(), format!("nonsense = 1\n{sound}")).unwrap();
    let from = appliance.log().len();
    appliance.signal(Signal::SIGHUP);
    appliance.wait_for_log(from, "nothing is loaded");
    let named = |text: &str| {
        text.contains("custody cannot start anew with it")
            && text.contains("strongroom.toml")
            && text.contains("unknown field `nonsense`")
    };
    let said = status();
    assert!(said["state"] == "ready" && named(said["detail"].as_str().unwrap()), "{said}");
    let doctor = appliance.cli(&["doctor"]);
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.status.code() == Some(1) && named(&text), "{text}");
    kill(Pid::from_raw(appliance.custody_pid() as i32), Signal::SIGKILL).unwrap();
    appliance.wait_for_state("token-unavailable");
    let said = status();
    assert!(named(said["detail"].as_str().unwrap()), "{said}");
    std::fs::write(appliance.config_file(), sound).unwrap();
    appliance.wait_for_state("ready");
    assert_eq!(status()["detail"], Value::Null);
}

#[test]
fn a_reload_takes_over_what_is_sound_and_nothing_else() {
    let appliance = Appliance::new();
    appliance.create_key("k");
    let policy = appliance.path("policy");
    std::fs::create_dir(&policy).unwrap();
    let file = policy.join("all.cedar");
    let reads = "@id(\"reads\") permit (principal in Role::\"operator\", \
                 action in Action::\"read\", resource);";
    std::fs::write(&file, reads).unwrap();
    let sound = appliance.config();
    let with_policy = |mut config: toml::Table| {
        config["policy"]["directory"] = policy.display().to_string().into();
        config
    };
    let reload = |text: &str| {
        let from = appliance.log().len();
        appliance.signal(Signal::SIGHUP);
        appliance.wait_for_log(from, text);
        appliance.log()[from..].to_owned()
    };
    let new_key = || {
        let body = json!({ "name": "n", "algorithm": "RSA-4096", "labels": { "a": "b" } });
        appliance.post("/v1/keys/k/rotate", &body).status
    };
    assert_eq!(new_key(), 400, "permitted, and not understood");

    // A configuration that cannot be read, and one with what no configuration has.
    for bad in ["[listen", "[nonsense]\na = 1\n", "[keys]\ndestroy_wait_days = 0\n"] {
        std::fs::write(appliance.config_file(), bad).unwrap();
        let log = reload("nothing is loaded");
        assert!(log.contains("strongroom.toml"), "it names the file: {log}");
        appliance.get("/v1/keys/k").expect_status(200);
    }
    // A policy that Cedar does not understand.
    std::fs::write(&file, "permit (principal, action == Action::\"key:steal\", resource);")
        .unwrap();
    appliance.write_config(&with_policy(sound.clone()));
    let log = reload("nothing is loaded");
    assert!(log.contains("all.cedar"), "it names the file: {log}");
    appliance.get("/v1/keys/k").expect_status(200);
    appliance.post("/v1/keys/k/suspend", &json!({})).expect_status(200);
    appliance.post("/v1/keys/k/resume", &json!({})).expect_status(200);

    // A sound one is in force at once; waiting periods too.
    std::fs::write(&file, reads).unwrap();
    let mut config = with_policy(sound.clone());
    config.insert("keys".to_owned(), toml::Value::Table(toml::toml! { destroy_wait_days = 7 }));
    config.insert("limits".to_owned(), toml::Value::Table(toml::toml! { connections = 77 }));
    appliance.write_config(&config);
    reload("takes effect at the next start");
    appliance.get("/v1/keys/k").expect_status(200);
    appliance.post("/v1/keys/k/suspend", &json!({})).expect_problem(403, "denied");
    appliance.write_config(&{
        let mut config = sound;
        config.insert("keys".to_owned(), toml::Value::Table(toml::toml! { destroy_wait_days = 7 }));
        config
    });
    reload("loaded anew");
    let view = appliance.delete("/v1/keys/k", &json!({})).expect_status(200).json();
    let at: jiff::Timestamp = view["versions"][0]["destroy_at"].as_str().unwrap().parse().unwrap();
    let days = (at.as_second() - jiff::Timestamp::now().as_second() + 3600) / 86_400;
    assert_eq!(days, 7);
    let told = events(&appliance.trail());
    let count = |event: &str| told.iter().filter(|told| *told == event).count();
    assert_eq!((count("config-refused"), count("policy-refused")), (3, 1), "{told:?}");
    assert_eq!((count("config-loaded"), count("policy-loaded")), (3, 3), "{told:?}");
}

#[test]
fn a_stop_under_load_finishes_what_is_under_way_and_signs_the_end() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    decrypt(&appliance, "k", &ciphertext, None).expect_status(200);
    let (socket, body) = (appliance.socket(), json!({ "ciphertext": ciphertext }).to_string());
    let mut idle = UnixStream::connect(&socket).unwrap();
    let request = format!(
        "POST /v1/keys/k/decrypt HTTP/1.1\r\nhost: s\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let counts: Vec<AtomicUsize> = (0..8).map(|_| AtomicUsize::new(0)).collect();
    let took = std::thread::scope(|scope| {
        let (socket, request) = (&socket, request.as_bytes());
        for count in &counts {
            scope.spawn(move || decrypt_until_stopped(socket, request, count));
        }
        wait_until("a turn for each", || {
            counts.iter().all(|count| count.load(Ordering::Relaxed) > 3)
        });
        appliance.stop()
    });
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(std::io::Read::read(&mut idle, &mut [0; 1]).unwrap_or(0), 0, "it was closed");
    let lines = trail_lines(&appliance.trail());
    let [.., stop, last] = &lines[..] else { panic!("no lines") };
    assert_eq!((&stop["event"], &last["kind"]), (&json!("stop"), &json!("checkpoint")));
    assert_eq!(last["covers"], stop["seq"], "nothing is left unsigned");
    let intents = lines.iter().filter(|line| line["kind"] == "intent").count();
    let outcomes = lines.iter().filter(|line| line["of"].is_u64());
    assert_eq!(intents, outcomes.clone().count());
    assert!(outcomes.clone().all(|line| line["result"] == "done"));
    appliance.start();
}

/// Decrypts on one connection for as long as it is served; every answer that begins must be whole.
fn decrypt_until_stopped(socket: &std::path::Path, request: &[u8], done: &AtomicUsize) {
    use std::io::{BufRead, BufReader, Read, Write};
    let Ok(stream) = UnixStream::connect(socket) else { return };
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    loop {
        if writer.write_all(request).is_err() {
            return;
        }
        let (mut line, mut len) = (String::new(), 0);
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        assert!(line.starts_with("HTTP/1.1 200"), "{line}");
        while line != "\r\n" {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0, "a head was cut off");
            if let Some(value) = line.strip_prefix("content-length: ") {
                len = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; len];
        reader.read_exact(&mut body).expect("a body was cut off");
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["plaintext"], base64("x"));
        done.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_second_daemon_is_refused_and_a_socket_left_behind_is_replaced() {
    let mut appliance = Appliance::configured(|config| {
        config["listen"]["mode"] = "0640".into();
        let listen = config["listen"].as_table_mut().expect("a table");
        listen.insert("group".to_owned(), "nogroup".into());
    });
    let socket = std::fs::symlink_metadata(appliance.socket()).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o640);
    let group = nix::unistd::Group::from_name("nogroup").unwrap().expect("in Debian").gid;
    assert_eq!(socket.gid(), group.as_raw());
    let custody = std::fs::symlink_metadata(appliance.path("custody.sock")).unwrap();
    assert_eq!(custody.permissions().mode() & 0o077, 0, "custody's is its owner's alone");

    let second = |config: &toml::Table| {
        let file = appliance.path("second.toml");
        std::fs::write(&file, config.to_string()).unwrap();
        let (name, conf) = appliance.token().environment();
        let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        command.args(["serve", "--config"]).arg(file).env(name, conf).stdin(Stdio::null());
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    // The same store; and with a store and a trail of its own, the same socket.
    let mut config = appliance.config();
    let told = second(&config);
    assert!(told.contains("[store]") && told.contains("another process"), "{told}");
    for (section, key) in [("store", "path"), ("audit", "directory"), ("custody", "socket")] {
        config[section][key] =
            appliance.path(&format!("second-{section}")).display().to_string().into();
    }
    let told = second(&config);
    assert!(told.contains("another daemon answers on"), "{told}");
    assert_eq!(appliance.get("/v1/status").expect_status(200).json()["state"], "not-initialised");

    // Killed, it leaves its socket; the next one takes its place.
    appliance.kill();
    assert!(appliance.socket().exists());
    appliance.start();
    appliance.stop();
    // What is no socket is not replaced.
    std::fs::remove_file(appliance.socket()).unwrap();
    std::fs::write(appliance.socket(), "not a socket").unwrap();
    appliance.spawn();
    assert!(!appliance.wait_for_end().success());
    assert!(appliance.log().contains("is not a socket"), "{}", appliance.log());
    assert_eq!(std::fs::read(appliance.socket()).unwrap(), b"not a socket");
}

#[test]
fn a_custody_that_dies_comes_back_by_itself() {
    let appliance = Appliance::new();
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    crate::acts::put_secret(&appliance, "s", "k", "y").expect_status(201);
    for _ in 0..3 {
        let custody = appliance.custody_pid();
        kill(Pid::from_raw(custody as i32), Signal::SIGKILL).unwrap();
        // A request that comes meanwhile waits for it.
        wait_until("a decryption", || decrypt(&appliance, "k", &ciphertext, None).status == 200);
        assert_ne!(appliance.custody_pid(), custody);
        expect_plaintext(&reveal(&appliance, "s"), "y");
    }
    wait_until("the trail's account of it", || {
        let told = events(&appliance.trail());
        let count = |event: &str| told.iter().filter(|told| *told == event).count();
        count("token-lost") == 3 && count("token-back") >= 3
    });
    assert_eq!(appliance.get("/v1/status").json()["state"], "ready");
}

#[test]
fn the_front_does_not_outlive_its_order_and_custody_not_its_front() {
    let mut appliance = Appliance::new();
    let custody = appliance.custody_pid();
    appliance.kill();
    wait_until("custody's end", || !std::path::Path::new(&format!("/proc/{custody}")).exists());
    appliance.start();
    let custody = appliance.custody_pid();
    appliance.signal(Signal::SIGINT);
    assert!(appliance.wait_for_end().success());
    wait_until("custody's end", || !std::path::Path::new(&format!("/proc/{custody}")).exists());
}
