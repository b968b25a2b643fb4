//! Attacker: the front's user, who owns the directory that store and trail lie in and waits for root to
//! restore a backup. Root was told to carry out a plan that lay there, and renamed what it named.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::PathBuf;
use std::process::Output;

use serde_json::json;

use crate::backup::{backup, is_empty, made, move_away, said, text};
use crate::lesser::{Lesser, lesser};

/// An appliance of a lesser user, stopped, with a backup; root runs the commands.
fn with_backup() -> (Lesser, PathBuf) {
    let mut lesser = lesser();
    lesser.appliance.create_key("k");
    let file = made(&lesser.appliance);
    lesser.appliance.stop();
    (lesser, file)
}

#[test]
fn a_plan_beside_the_store_is_nothing_that_root_carries_out() {
    let (lesser, file) = with_backup();
    let appliance = &lesser.appliance;
    let (roots, mine) = (lesser.roots_file("root's own"), appliance.path("mine"));
    lesser.user.does(|| {
        std::fs::write(&mine, "the attacker's").expect("written");
        let plan = json!({ "aside": [[roots, appliance.path("gone")]], "place": [[mine, roots]] });
        std::fs::write(appliance.path("store.restore-plan"), plan.to_string()).expect("written");
        std::fs::create_dir(appliance.path("store.restoring")).expect("made");
    });
    let tries: [&[&str]; 4] = [
        &["restore", "--finish"],
        &["restore", "--abandon"],
        &["restore", text(&file)],
        &["restore", text(&file), "--replace"],
    ];
    for arguments in tries {
        assert!(!backup(appliance, arguments).status.success(), "{arguments:?}");
        lesser.expect_untouched();
    }
    move_away(appliance);
    assert!(backup(appliance, &["restore", text(&file)]).status.success());
    lesser.expect_untouched();
    lesser.expect_all_theirs(&["store", "trail"]);
}

#[test]
fn root_restores_as_the_owner_of_the_directories_and_through_no_link_of_theirs() {
    let (mut lesser, file) = with_backup();
    let refused = |output: &Output, what: &str| {
        assert!(!output.status.success(), "{what}: {}", said(output));
    };
    for name in ["store", "trail"] {
        move_away(&lesser.appliance);
        let (place, roots) = (lesser.appliance.path(name), lesser.roots_directory());
        lesser.user.does(|| symlink(&roots, &place).expect("linked"));
        refused(
            &backup(&lesser.appliance, &["restore", text(&file)]),
            "a link to root's directory",
        );
        assert!(is_empty(&roots), "root was led into its own directory");
        lesser.expect_untouched();
        for left in ["store", "trail"] {
            let left = lesser.appliance.path(left);
            let _ = std::fs::remove_file(&left).or_else(|_| std::fs::remove_dir_all(&left));
        }
        std::fs::create_dir(lesser.appliance.path("store")).expect("made");
        std::fs::create_dir(lesser.appliance.path("trail")).expect("made");
    }
    for name in ["store", "trail"] {
        let _ = std::fs::remove_dir_all(lesser.appliance.path(name));
    }
    let done = backup(&lesser.appliance, &["restore", text(&file)]);
    assert!(done.status.success(), "{}", said(&done));
    lesser.expect_all_theirs(&["store", "trail"]);
    lesser.appliance.start();
    lesser.appliance.get("/v1/keys/k").expect_status(200);
}

#[test]
fn a_scratch_place_where_others_can_replace_files_is_refused() {
    let (lesser, file) = with_backup();
    let loose = tempfile::tempdir().expect("a directory");
    let scratch = loose.path().join("scratch");
    std::fs::create_dir(&scratch).expect("made");
    std::fs::set_permissions(loose.path(), PermissionsExt::from_mode(0o755)).expect("changed");
    let verify = || {
        let mut command = crate::backup::command(&lesser.appliance, &["verify", text(&file)]);
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let at = arguments.iter().position(|it| it == "--scratch").expect("it is named") + 1;
        let mut changed = std::process::Command::new(command.get_program());
        changed.args(&arguments[..at]).arg(&scratch).args(&arguments[at + 1..]);
        changed.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command = changed;
        command.output().expect("it starts")
    };
    for (mode, owner, fits) in
        [(0o777, 0, false), (0o755, lesser.uid(), false), (0o1777, 0, true), (0o755, 0, true)]
    {
        std::fs::set_permissions(&scratch, PermissionsExt::from_mode(mode)).expect("changed");
        chown(&scratch, Some(owner), None).expect("changed");
        let verified = verify();
        assert_eq!(verified.status.success(), fits, "{mode:o} {owner}: {}", said(&verified));
        assert!(is_empty(&scratch), "something is left behind");
    }
}
