//! What would keep the next start is reported while the daemon runs: by status, health, doctor, metrics and reload.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::acts::{base64, events};
use crate::appliance::{Appliance, wait_until};

/// An appliance with policy files of its own.
fn with_own_policy() -> Appliance {
    let appliance = Appliance::configured(|config| {
        let shipped = config["policy"]["directory"].as_str().expect("a path").to_owned();
        let socket = config["listen"]["socket"].as_str().expect("a path");
        let policy = Path::new(socket).with_file_name("policy");
        std::fs::create_dir(&policy).expect("made");
        for entry in std::fs::read_dir(shipped).expect("read") {
            let entry = entry.expect("read");
            std::fs::copy(entry.path(), policy.join(entry.file_name())).expect("copied");
        }
        config["policy"]["directory"] = policy.display().to_string().into();
    });
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("changed");
}

fn reload(appliance: &Appliance) -> (Option<i32>, String) {
    let config = appliance.config_file().display().to_string();
    let output = appliance.cli(&["reload", "--config", &config]);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("text"))
}

fn metric(appliance: &Appliance) -> u64 {
    let page = appliance.get("/metrics").text();
    let line = page.lines().find_map(|line| line.strip_prefix("strongroom_next_start_refused "));
    line.expect("the metric is there").parse().expect("a number")
}

/// All who report it name what is wrong, and nobody does once it is mended.
fn is_reported(appliance: &Appliance, what: &str, is_wrong: bool) {
    wait_until(&format!("the status on {what:?} to be {is_wrong}"), || {
        let status = appliance.get("/v1/status").expect_status(200).json();
        assert_eq!(status["state"], "ready", "what is in force goes on: {status}");
        let refused = status["next_start_refused"].to_string();
        let next = status["next"].as_str().is_some_and(|next| !next.is_empty());
        match is_wrong {
            true => refused.contains(what) && next && status["detail"].to_string().contains(what),
            false => refused == "null" && !next,
        }
    });
    let health = appliance.get("/v1/health").expect_status(200).json();
    assert_eq!(health["next_start_refused"] == true, is_wrong, "{health}");
    assert_eq!(health["degraded"] == true, is_wrong, "{health}");
    assert_eq!(metric(appliance) > 0, is_wrong);
    let doctor = appliance.cli(&["doctor"]);
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(text.contains(what), is_wrong, "{text}");
    if is_wrong {
        assert_eq!(doctor.status.code(), Some(1), "{text}");
    }
}

#[test]
fn what_stops_the_next_start_is_reported_now() {
    let mut appliance = with_own_policy();
    assert_eq!(reload(&appliance).0, Some(0));
    let sound = appliance.config();
    let file = appliance.path("policy").join("mine.cedar");
    let store = appliance.path("store");
    type Change<'a> = (&'a str, &'a dyn Fn(&Appliance), &'a dyn Fn(&Appliance));
    let mend_config = |appliance: &Appliance| appliance.write_config(&sound);
    let with = |change: &dyn Fn(&mut toml::Table)| {
        let mut config = sound.clone();
        change(&mut config);
        config
    };
    let changes: [Change<'_>; 6] = [
        (
            "mine.cedar",
            &|_| {
                std::fs::write(&file, "permit (principal, action == Action::\"no\", resource);")
                    .expect("written")
            },
            &|_| std::fs::remove_file(&file).expect("removed"),
        ),
        (
            "no-such-user",
            &|appliance| {
                appliance.write_config(&with(&|config| {
                    config["policy"]["roles"]["auditor"]["users"] =
                        toml::Value::from(vec!["no-such-user"]);
                }));
            },
            &mend_config,
        ),
        (
            "max_bytes",
            &|appliance| {
                appliance.write_config(&with(&|config| {
                    let custody = config["custody"].as_table_mut().expect("a table");
                    let cache = toml::toml! { max_bytes = 99999999 };
                    custody.insert("cache".to_owned(), cache.into());
                }));
            },
            &mend_config,
        ),
        ("has mode 755", &|_| mode(&store, 0o755), &|_| mode(&store, 0o700)),
        (
            "cannot be made",
            &|appliance| {
                appliance.write_config(&with(&|config| {
                    config["audit"]["directory"] = "/no/such/place/trail".into();
                }));
            },
            &mend_config,
        ),
        (
            "has mode 0644",
            &|appliance| {
                mode(&appliance.token().pin_file(), 0o644);
                appliance.cli(&["doctor"]);
            },
            &|appliance| {
                mode(&appliance.token().pin_file(), 0o600);
                appliance.cli(&["doctor"]);
            },
        ),
    ];
    for (what, break_it, mend_it) in changes {
        break_it(&appliance);
        is_reported(&appliance, what, true);
        let (code, said) = reload(&appliance);
        assert!(code == Some(1) && said.contains(what) && said.contains("next:"), "{what}: {said}");
        appliance.get("/v1/keys").expect_status(200);
        mend_it(&appliance);
        let (code, said) = reload(&appliance);
        assert_eq!(code, Some(0), "{what}: {said}");
        is_reported(&appliance, what, false);
    }
    let refused =
        events(&appliance.trail()).iter().filter(|event| *event == "policy-refused").count();
    assert!(refused >= 2, "the audit log tells of refused reloads");
    // Where there is no daemon, nothing is signalled and that is said.
    appliance.stop();
    let (code, said) = reload(&appliance);
    assert!(code == Some(1) && said.contains("is not the daemon"), "{said}");
    appliance.start();
}

/// What `config check`, `policy check` and `doctor --config` find sound, the daemon can read, and the other way
/// round: they look under its restrictions.
#[test]
fn checks_run_under_the_restrictions_of_the_daemon() {
    let elsewhere = tempfile::tempdir().expect("a directory");
    let target = elsewhere.path().join("other.cedar");
    std::fs::write(
        &target,
        "@id(\"o\") permit (principal, action == Action::\"key:list\", resource);",
    )
    .expect("written");
    let mut appliance = with_own_policy();
    appliance.stop();
    let link = appliance.path("policy").join("other.cedar");
    // Anybody may read it, and the daemon's sandbox knows only the directory of policies.
    symlink(&target, &link).expect("linked");
    let config = appliance.config_file().display().to_string();
    for check in [["config", "check"], ["policy", "check"]] {
        let output = appliance.cli(&[check[0], check[1], "--config", &config]);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(
            output.status.code() == Some(1) && text.contains("other.cedar"),
            "{check:?}: {text}"
        );
    }
    let doctor = appliance.cli(&["doctor", "--config", &config]);
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.status.code() == Some(1) && text.contains("other.cedar"), "{text}");
    let asked =
        ["policy", "explain", "--config", &config, "--user", "root", "--action", "key:list"];
    assert_eq!(appliance.cli(&asked).status.code(), Some(1));
    appliance.spawn();
    assert!(appliance.settled(), "the daemon finds what the checks find");
    assert!(appliance.log().contains("other.cedar"));
    // Where the front may read that, too, all of them agree again.
    appliance.change_config(|config| {
        let read = vec![elsewhere.path().display().to_string()];
        let sandbox = toml::Table::from_iter([("read".to_owned(), toml::Value::from(read))]);
        config.insert("sandbox".to_owned(), sandbox.into());
    });
    assert_eq!(appliance.cli(&["config", "check", "--config", &config]).status.code(), Some(0));
    appliance.start();
}

/// Users that another module of the name service knows: here those of systemd, from files outside of /etc.
#[test]
fn users_of_another_name_service_have_their_roles_in_the_sandbox_too() {
    let records = Path::new("/run/userdb");
    let is_new = !records.exists();
    std::fs::create_dir_all(records).expect("made: this test needs root");
    let (user, uid) = ("strongroom-test-user", 61_234);
    let paths = [records.join(format!("{user}.user")), records.join(format!("{uid}.user"))];
    let record = json!({ "userName": user, "uid": uid, "gid": uid }).to_string();
    std::fs::write(&paths[0], record).expect("written");
    std::fs::write(&paths[1], std::fs::read(&paths[0]).expect("read")).expect("written");
    let found = Command::new("getent").args(["passwd", user]).output().expect("runs");
    assert!(found.status.success(), "the machine knows the user: nsswitch.conf names systemd");
    let mut appliance = Appliance::prepared(|config| {
        config["policy"]["roles"]["operator"]["users"]
            .as_array_mut()
            .expect("users")
            .push(user.into());
    });
    let config = appliance.config_file().display().to_string();
    let checked = appliance.cli(&["config", "check", "--config", &config]);
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stdout));
    appliance.start();
    let explained = appliance
        .cli(&["policy", "explain", "--config", &config, "--user", user, "--action", "key:list"]);
    assert_eq!(explained.status.code(), Some(0));
    assert_eq!(reload(&appliance).0, Some(0));
    for path in &paths {
        std::fs::remove_file(path).expect("removed");
    }
    if is_new {
        let _ = std::fs::remove_dir(records);
    }
    let (code, said) = reload(&appliance);
    assert!(code == Some(1) && said.contains(user), "{said}");
    let config = appliance.cli(&["config", "check", "--config", &config]);
    assert_eq!(config.status.code(), Some(1));
}

/// SoftHSM takes its configuration from its user's home, and then the daemon does, too.
#[test]
fn the_daemon_finds_softhsms_configuration_where_the_module_does() {
    let appliance = Appliance::prepared(|_| {});
    let home = appliance.path("home");
    let place = home.join(".config/softhsm2");
    std::fs::create_dir_all(&place).expect("made");
    std::fs::copy(appliance.token().conf(), place.join("softhsm2.conf")).expect("copied");
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_strongroom"))
        .args(["serve", "--config"])
        .arg(appliance.config_file())
        .env_remove("SOFTHSM2_CONF")
        .env("HOME", &home)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the daemon starts");
    wait_until("the socket", || {
        std::os::unix::net::UnixStream::connect(appliance.socket()).is_ok()
    });
    wait_until("the token to be found", || {
        appliance.get("/v1/status").json()["state"] == "not-initialised"
    });
    appliance.post("/v1/init", &json!({})).expect_status(201);
    let body = json!({ "name": "k", "algorithm": "RSA-2048" });
    appliance.post("/v1/keys", &body).expect_status(201);
    let encrypted: Value =
        appliance.post("/v1/keys/k/encrypt", &json!({ "plaintext": base64("x") })).json();
    assert!(encrypted["ciphertext"].is_string());
    let pid = nix::unistd::Pid::from_raw(daemon.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("told");
    assert!(daemon.wait().expect("ends").success());
}
