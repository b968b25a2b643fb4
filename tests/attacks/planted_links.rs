//! Attacker: the front's user, who plants links, pipes and second names in the store's and the trail's
//! directory, for a daemon or for root who comes to look after the appliance.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::acts::{decrypt, encrypt, expect_plaintext};
use crate::appliance::Appliance;
use crate::backup::{backup, made, move_away, said, text};
use crate::lesser::{Lesser, lesser};
use crate::recovery::{offline, pair};
use crate::reseal::set_recovery;
use crate::token::TestToken;

/// What a daemon opens in its two directories, by name.
const OPENED: [&str; 6] = [
    "store/db",
    "store/lock",
    "store/conf",
    "trail/lock",
    "trail/trail-00000000000000000001.jsonl",
    "trail/trail-00000000000000000002.jsonl",
];

/// Runs a command that must not hang.
fn soon(command: &mut Command) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let until = Instant::now() + Duration::from_secs(60);
    while child.try_wait().expect("waits").is_none() {
        if Instant::now() > until {
            let _ = child.kill();
            panic!("it hangs");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().expect("waits")
}

fn strongroom(appliance: &Appliance, arguments: &[&str]) -> Output {
    let mut command = Command::new(appliance.program());
    soon(command.args(arguments).envs([appliance.token().environment()]))
}

#[test]
fn a_daemon_writes_through_no_link_and_into_no_second_name() {
    let mut appliance = Appliance::new();
    appliance.create_key("k");
    appliance.stop();
    let outside = tempfile::tempdir().expect("a directory");
    let (victim, none) = (outside.path().join("victim"), outside.path().join("none"));
    for name in OPENED {
        let (place, aside) = (appliance.path(name), appliance.path("aside"));
        let had = place.exists();
        if had {
            std::fs::rename(&place, &aside).expect("moved");
        }
        let plants: [(&str, &dyn Fn()); 4] = [
            ("a link", &|| symlink(&victim, &place).expect("planted")),
            ("a link to nothing", &|| symlink(&none, &place).expect("planted")),
            ("a second name", &|| std::fs::hard_link(&victim, &place).expect("planted")),
            ("a pipe", &|| {
                nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRWXU).expect("planted");
            }),
        ];
        for (what, plant) in plants {
            let content =
                if had { std::fs::read(&aside).expect("readable") } else { b"x".to_vec() };
            std::fs::write(&victim, &content).expect("written");
            plant();
            appliance.spawn();
            let refused = appliance.settled();
            if !refused {
                appliance.kill();
            }
            let after = std::fs::read(&victim).expect("readable");
            assert!(after == content, "{what} at {name} was written through");
            assert!(!none.exists(), "{what} at {name}: a file was made elsewhere");
            assert!(refused, "it serves over {what} at {name}");
            std::fs::remove_file(&place).expect("removed");
        }
        if had {
            std::fs::rename(&aside, &place).expect("moved back");
        }
    }
    appliance.start();
    appliance.get("/v1/keys/k").expect_status(200);
}

#[test]
fn root_does_not_serve_from_a_lesser_users_directories() {
    let mut lesser = lesser();
    lesser.appliance.stop();
    let config = lesser.appliance.config_file().display().to_string();
    let served = strongroom(&lesser.appliance, &["serve", "--config", &config]);
    assert_eq!(served.status.code(), Some(1), "{}", said(&served));
    assert!(said(&served).contains("root does not work there"), "{}", said(&served));
    lesser.expect_all_theirs(&["store", "trail"]);
}

/// A recovery key is set; the token is lost, and there is a new one of the same user.
fn token_lost() -> (Lesser, PathBuf, String, TestToken) {
    let mut lesser = lesser();
    let roots = lesser.appliance.config_file().parent().expect("a directory").to_owned();
    let (private, public) = pair(&roots, "recovery", 4096);
    std::fs::set_permissions(&public, PermissionsExt::from_mode(0o644)).expect("changed");
    crate::recovery::trust(&mut lesser.appliance, &public);
    lesser.appliance.restart();
    lesser.appliance.wait_for_state("ready");
    lesser.appliance.create_key("k");
    let sealed = encrypt(&lesser.appliance, "k", "kept");
    set_recovery(&lesser.appliance, &public);
    lesser.appliance.stop();
    let token = TestToken::new();
    let home = token.conf().parent().expect("a directory").to_owned();
    for path in all_beneath(&home) {
        chown(&path, Some(lesser.uid()), Some(lesser.uid())).expect("given");
    }
    lesser.appliance.change_config(|config| {
        let settings = config["token"].as_table_mut().expect("a table");
        settings.insert("label".to_owned(), token.label().into());
        settings.insert("pin_file".to_owned(), token.pin_file().display().to_string().into());
    });
    (lesser, private, sealed, token)
}

fn all_beneath(path: &Path) -> Vec<PathBuf> {
    let (mut all, mut waiting) = (Vec::new(), vec![path.to_owned()]);
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            let inside = std::fs::read_dir(&path).expect("readable").flatten();
            waiting.extend(inside.map(|entry| entry.path()));
        }
        all.push(path);
    }
    all
}

#[test]
fn root_reseals_and_drills_as_the_owners_of_store_and_token() {
    let (mut lesser, private, sealed, token) = token_lost();
    let config = lesser.appliance.config_file().display().to_string();
    let (key, store) = (private.display().to_string(), lesser.appliance.path("store"));
    let reseal = ["recovery", "reseal", "--config", &config, "--private-key", &key, "--yes"];
    let drill = ["recovery", "drill", "--store", text(&store), "--private-key", &key];
    for name in ["store/lock", "store/db", "store/conf", "store/snap.00000000000000ff"] {
        let (place, aside) = (lesser.appliance.path(name), lesser.appliance.path("aside"));
        let had = place.exists();
        let roots = lesser.roots_file("");
        lesser.user.does(|| {
            if had {
                std::fs::rename(&place, &aside).expect("moved");
            }
            symlink(&roots, &place).expect("planted");
        });
        for arguments in [&reseal[..], &drill[..]] {
            let output = offline(&lesser.appliance, &token, arguments);
            assert!(!output.status.success(), "{name}: {}", said(&output));
            lesser.expect_untouched();
        }
        std::fs::remove_file(&place).expect("removed");
        if had {
            std::fs::rename(&aside, &place).expect("moved back");
        }
    }
    // A copy of theirs in a directory where they cannot go.
    let roots_own = tempfile::tempdir().expect("a directory");
    let copied =
        Command::new("cp").arg("-a").args([&store, &roots_own.path().join("copy")]).status();
    assert!(copied.expect("cp").success());
    let copy = roots_own.path().join("copy").display().to_string();
    let drill = ["recovery", "drill", "--store", &copy, "--private-key", &key];
    let drilled = offline(&lesser.appliance, &token, &drill);
    assert!(drilled.status.success(), "{}", said(&drilled));
    for path in all_beneath(Path::new(&copy)) {
        assert_eq!(path.symlink_metadata().expect("there").uid(), lesser.uid(), "{path:?}");
    }
    let resealed = offline(&lesser.appliance, &token, &reseal);
    assert!(resealed.status.success(), "{}", said(&resealed));
    lesser.expect_all_theirs(&["store", "trail"]);
    for path in all_beneath(&token.tokens()) {
        assert_eq!(path.symlink_metadata().expect("there").uid(), lesser.uid(), "{path:?}");
    }
    let (name, conf) = token.environment();
    lesser.appliance.set_environment(name, conf.to_str().expect("text"));
    lesser.appliance.start();
    lesser.appliance.wait_for_state("ready");
    expect_plaintext(&decrypt(&lesser.appliance, "k", &sealed, None), "kept");
}

#[test]
fn root_looks_at_a_trail_and_a_configuration_as_the_owner_and_never_hangs() {
    let mut lesser = lesser();
    let roots = lesser.appliance.config_file().parent().expect("a directory").to_owned();
    let public = roots.join("trail.pem");
    let pem = lesser.appliance.get("/v1/audit/public-key").expect_status(200).text();
    std::fs::write(&public, pem).expect("written");
    lesser.appliance.stop();
    let trail = lesser.appliance.trail();
    let verify = ["audit", "verify", "--dir", text(&trail), "--public-key", text(&public)];
    let verified = strongroom(&lesser.appliance, &verify);
    assert!(verified.status.success(), "{}", said(&verified));
    // What root alone may read is not read for them.
    let secret = roots.join("secret");
    std::fs::copy(trail.join("trail-00000000000000000001.jsonl"), &secret).expect("copied");
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("changed");
    let planted = trail.join("trail-00000000000000009999.jsonl");
    let by_name = ["audit", "verify", text(&planted), "--public-key", text(&public), "--partial"];
    lesser.user.does(|| symlink(&secret, &planted).expect("planted"));
    for arguments in [&verify[..], &by_name[..]] {
        let verified = strongroom(&lesser.appliance, arguments);
        assert!(said(&verified).contains("cannot be read"), "{}", said(&verified));
    }
    lesser.user.does(|| {
        std::fs::remove_file(&planted).expect("removed");
        nix::unistd::mkfifo(&planted, nix::sys::stat::Mode::S_IRWXU).expect("planted");
    });
    let verified = strongroom(&lesser.appliance, &verify);
    assert!(said(&verified).contains("cannot be read"), "{}", said(&verified));
    std::fs::remove_file(&planted).expect("removed");
    let config = lesser.appliance.config_file().display().to_string();
    for arguments in
        [&["doctor", "--login", "--config", &config][..], &["config", "check", "--config", &config]]
    {
        let looked = strongroom(&lesser.appliance, arguments);
        assert!(looked.status.success(), "{arguments:?}: {}", said(&looked));
    }
    for path in all_beneath(&lesser.appliance.token().tokens()) {
        assert_eq!(path.symlink_metadata().expect("there").uid(), lesser.uid(), "{path:?}");
    }
    lesser.expect_all_theirs(&["store", "trail"]);
}

#[test]
fn a_backup_is_verified_and_restored_with_the_token_as_custodys_user_alone() {
    let mut lesser = lesser();
    lesser.appliance.create_key("k");
    let file = made(&lesser.appliance);
    lesser.appliance.stop();
    // The PIN is root's own file, as it is where systemd hands it on.
    let pin = lesser.appliance.config_file().with_file_name("pin");
    std::fs::copy(lesser.appliance.token().pin_file(), &pin).expect("copied");
    std::fs::set_permissions(&pin, PermissionsExt::from_mode(0o600)).expect("changed");
    assert_eq!(pin.metadata().expect("there").uid(), 0);
    for verb in ["verify", "restore"] {
        if verb == "restore" {
            move_away(&lesser.appliance);
        }
        let done = backup(&lesser.appliance, &[verb, text(&file), "--pin-file", text(&pin)]);
        assert!(done.status.success(), "{}", said(&done));
    }
    lesser.expect_all_theirs(&["store", "trail"]);
    for path in all_beneath(&lesser.appliance.token().tokens()) {
        assert_eq!(path.symlink_metadata().expect("there").uid(), lesser.uid(), "{path:?}");
    }
    let wrong = lesser.appliance.config_file().with_file_name("wrong");
    crate::token::write_private(&wrong, "90909090");
    let refused = backup(&lesser.appliance, &["verify", text(&file), "--pin-file", text(&wrong)]);
    assert!(
        !refused.status.success() && !said(&refused).contains("90909090"),
        "{}",
        said(&refused)
    );
    lesser.appliance.start();
}

#[test]
fn root_leaves_no_order_for_custody_where_a_link_leads() {
    let appliance = Appliance::prepared(|_| {});
    let directory = tempfile::tempdir().expect("a directory");
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open).expect("opened");
    let (theirs, roots) = (directory.path().join("theirs"), directory.path().join("roots"));
    std::fs::create_dir(&theirs).expect("made");
    chown(&theirs, Some(65_533), Some(65_533)).expect("given away");
    std::fs::create_dir(&roots).expect("made");
    symlink(&roots, theirs.join("custody")).expect("planted");
    appliance.change_config(|config| {
        let custody = config["custody"].as_table_mut().expect("a table");
        let state = theirs.join("custody/state").display().to_string();
        custody.insert("state_directory".to_owned(), state.into());
    });
    let config = appliance.config_file().display().to_string();
    let junk = directory.path().join("junk.backup");
    std::fs::write(&junk, "no backup").expect("written");
    let restore = ["backup", "restore", &junk.display().to_string(), "--config", &config];
    assert!(!strongroom(&appliance, &restore).status.success());
    assert_eq!(std::fs::read_dir(&roots).expect("readable").count(), 0, "nothing was made there");
    let state = roots.join("state");
    std::fs::create_dir(&state).expect("made");
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700)).expect("closed");
    let log = format!("0123456789abcdef:1:1:{}", "a".repeat(64));
    let accept = ["accept-rollback", "--config", &config, &log];
    let output = strongroom(&appliance, &accept);
    assert!(!output.status.success(), "{}", said(&output));
    assert_eq!(std::fs::read_dir(&state).expect("readable").count(), 0, "nothing was left there");
}
