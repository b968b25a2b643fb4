//! Attacker: any user who may write to a configuration, a policy file or the token's module, or to a directory
//! on the way to one of them, and so decides what the daemon, or root, does.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::signal::Signal;

use crate::appliance::Appliance;
use crate::backup::said;

/// Somebody who serves something else on this machine.
const SERVICE: u32 = 47_312;

fn run(appliance: &Appliance, arguments: &[&str]) -> Output {
    let config = appliance.config_file().display().to_string();
    Command::new(env!("CARGO_BIN_EXE_strongroom"))
        .args(arguments)
        .args(["--config", &config])
        .envs([appliance.token().environment()])
        .output()
        .expect("it starts")
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("changed");
}

fn give(path: &Path, owner: u32) {
    chown(path, Some(owner), None).expect("changed");
}

/// An appliance whose configuration, policy and module each lie in a directory of their own.
fn laid_out() -> (Appliance, [PathBuf; 3]) {
    let appliance = Appliance::prepared(|_| {});
    let [policy, library] = ["etc/policy", "lib"].map(|name| appliance.path(name));
    std::fs::create_dir_all(appliance.path("etc")).expect("made");
    std::fs::create_dir(&library).expect("made");
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/config/policy");
    let copied = Command::new("cp").arg("-r").args([Path::new(shipped), &policy]).status();
    assert!(copied.expect("cp").success());
    let module = library.join("module.so");
    std::fs::copy(appliance.token().module(), &module).expect("copied");
    appliance.change_config(|config| {
        config["policy"]["directory"] = policy.display().to_string().into();
        config["token"]["module"] = module.display().to_string().into();
    });
    let config = appliance.config_file();
    (appliance, [config, policy.join("operator.cedar"), module])
}

/// A file, who refuses it, and how it is loosened and mended.
struct Case {
    path: PathBuf,
    loose: (u32, u32),
    tight: (u32, u32),
    found: &'static str,
}

fn cases(files: &[PathBuf; 3], directories: &[PathBuf]) -> Vec<(usize, Case)> {
    let mut cases = Vec::new();
    for (which, path) in files.iter().enumerate() {
        let tight = (0o644, 0);
        for (loose, found) in
            [((0o646, 0), "mode 0646"), ((0o664, 0), ""), ((0o644, SERVICE), "uid 47312")]
        {
            // Root's own group is nobody else.
            if !found.is_empty() {
                cases.push((which, Case { path: path.clone(), loose, tight, found }));
            }
        }
    }
    for (which, path) in directories.iter().enumerate() {
        for (loose, found) in [((0o777, 0), "mode 0777"), ((0o755, SERVICE), "uid 47312")] {
            cases.push((which + 1, Case { path: path.clone(), loose, tight: (0o755, 0), found }));
        }
    }
    cases
}

#[test]
fn what_others_could_change_is_refused_at_the_start_and_by_every_check() {
    let (mut appliance, files) = laid_out();
    let directories = ["etc/policy", "lib"].map(|name| appliance.path(name));
    for (which, case) in cases(&files, &directories) {
        let Case { path, loose, tight, found } = case;
        mode(&path, loose.0);
        give(&path, loose.1);
        let named = format!("{} {found}", path.display());
        let mut checks: Vec<&[&str]> = vec![&["config", "check"], &["doctor"]];
        if which == 1 {
            checks.push(&["policy", "check"]);
        }
        for check in checks {
            let refused = run(&appliance, check);
            let text = said(&refused);
            assert_eq!(refused.status.code(), Some(1), "{check:?} passes {named}: {text}");
            let mends = text.contains("chmod go-w") || text.contains("chown root");
            assert!(text.contains(found) && mends, "{check:?} of {named}: {text}");
            assert!(text.contains(&path.canonicalize().expect("there").display().to_string()));
        }
        appliance.spawn();
        assert!(appliance.settled(), "it starts with {named}");
        mode(&path, tight.0);
        give(&path, tight.1);
    }
    appliance.start();
}

#[test]
fn nothing_that_others_could_change_is_loaded_at_a_reload() {
    let (mut appliance, files) = laid_out();
    appliance.start();
    for (path, event) in files.iter().zip(["config-refused", "policy-refused"]) {
        let before = (appliance.log().len(), crate::acts::events(&appliance.trail()).len());
        mode(path, 0o646);
        appliance.signal(Signal::SIGHUP);
        appliance.wait_for_log(before.0, "nothing is loaded");
        let told = || {
            crate::acts::events(&appliance.trail()).into_iter().skip(before.1).any(|it| it == event)
        };
        crate::appliance::wait_until(event, told);
        mode(path, 0o644);
    }
    let before = appliance.log().len();
    appliance.signal(Signal::SIGHUP);
    appliance.wait_for_log(before, "loaded anew");
}

#[test]
fn a_link_and_every_directory_on_the_way_count_and_a_sticky_one_is_none() {
    let (appliance, [config, ..]) = laid_out();
    let place = appliance.path("place");
    std::fs::create_dir(&place).expect("made");
    let link = place.join("linked.toml");
    std::os::unix::fs::symlink(&config, &link).expect("linked");
    let check = || {
        Command::new(env!("CARGO_BIN_EXE_strongroom"))
            .args(["config", "check", "--config"])
            .arg(&link)
            .output()
            .expect("it starts")
    };
    assert!(check().status.success(), "{}", said(&check()));
    mode(&place, 0o777);
    assert!(!check().status.success(), "anybody could turn the link");
    mode(&place, 0o1777);
    assert!(check().status.success(), "{}", said(&check()));
    std::os::unix::fs::lchown(&link, Some(SERVICE), None).expect("given");
    assert!(!check().status.success(), "the link is another user's");
}

#[test]
fn a_recovery_key_that_others_could_change_is_none() {
    let appliance = Appliance::prepared(|_| {});
    let (_, public) = crate::recovery::pair(&appliance.path(""), "recovery", 4096);
    appliance.change_config(|config| {
        let custody = config["custody"].as_table_mut().expect("a table");
        custody.insert("recovery_key".to_owned(), public.display().to_string().into());
    });
    mode(&public, 0o644);
    assert!(run(&appliance, &["config", "check"]).status.success());
    mode(&public, 0o666);
    let refused = run(&appliance, &["config", "check"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("mode 0666"), "{}", said(&refused));
}
