//! Code in the front opens files to other users, leaves a program that runs as the front's user outside its
//! sandbox, and removes what lies beside its socket, where one user's processes have all their files together.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::appliance::Appliance;
use crate::sandbox::{Scene, expect_done, expect_refused};

/// A layout as of one user on a machine without systemd: all of it lies beneath the socket's directory.
fn together(appliance: &Appliance) {
    let pin = appliance.path("pin");
    std::fs::copy(appliance.token().pin_file(), &pin).expect("copied");
    let state = appliance.path("custody-state");
    appliance.change_config(|config| {
        config["token"]["pin_file"] = pin.display().to_string().into();
        config["custody"]["state_directory"] = state.display().to_string().into();
    });
}

fn newest_segment(appliance: &Appliance) -> String {
    let files = std::fs::read_dir(appliance.trail()).expect("readable").flatten();
    let segment = files.map(|file| file.path()).find(|path| path.extension().is_some());
    segment.expect("a segment").display().to_string()
}

fn mode(path: impl AsRef<Path>) -> u32 {
    std::fs::metadata(path).expect("there").permissions().mode() & 0o7777
}

/// What opens a file or directory to others.
fn openings(scene: &Scene) -> Vec<String> {
    let paths = [
        scene.at("store"),
        scene.at("trail"),
        newest_segment(&scene.appliance),
        scene.at("store/db"),
        scene.at("pin"),
        scene.token_object(),
    ];
    let mut attempts = vec![format!("suid-program {}", scene.at("store/escape"))];
    attempts.extend(paths.iter().map(|path| format!("world-readable {path}")));
    attempts.extend(paths.iter().map(|path| format!("world-readable-at {path}")));
    attempts
}

#[test]
fn the_front_opens_no_file_to_another_user() {
    let scene = Scene::changed("require", false, together);
    let attempts = openings(&scene);
    let report = scene.in_the_front(&attempts);
    expect_refused(&report, &attempts);
    for path in ["store", "trail", "store/db", "store/escape", "pin"] {
        assert_eq!(mode(scene.at(path)) & 0o6077, 0, "{path}");
    }
    scene.appliance.create_key("it-works-on");
}

#[test]
fn the_front_removes_nothing_beside_its_socket() {
    let scene = Scene::changed("require", false, together);
    let names =
        ["pin", "strongroom.toml", "s.sock", "custody.sock", "custody-state/checkpoints.json"];
    let mut attempts: Vec<_> =
        names.iter().map(|name| format!("remove {}", scene.at(name))).collect();
    attempts.push(format!("remove {}", scene.token_object()));
    attempts.push(format!("rename {}", scene.at("custody-state")));
    let report = scene.in_the_front(&attempts);
    expect_refused(&report, &attempts);
    assert!(names.iter().all(|name| scene.appliance.path(name).exists()));
    // The socket is made again all the same, where another one removes it.
    std::fs::remove_file(scene.appliance.socket()).expect("removed");
    crate::appliance::wait_until("the socket again", || scene.appliance.socket().exists());
    assert_eq!(mode(scene.appliance.socket()), 0o666);
}

#[test]
fn without_the_sandbox_each_of_these_is_done() {
    let scene = Scene::changed("off", false, together);
    let mut attempts = openings(&scene);
    attempts.push(format!("remove {}", scene.at("custody-state/checkpoints.json")));
    attempts.push(format!("rename {}", scene.at("pin")));
    expect_done(&scene.in_the_front(&attempts), &attempts);
}

/// The limits and the priority of custody, which is the same user's here.
#[test]
fn the_front_does_not_hold_custody_back() {
    let scene = Scene::new("require", false);
    let custody = scene.appliance.custody_pid();
    let attempts: Vec<_> = ["limit", "priority", "processors", "schedule"]
        .map(|verb| format!("{verb} {custody}"))
        .into_iter()
        .chain(["priority-of-user 0".to_owned()])
        .collect();
    let report = scene.in_the_front(&attempts);
    expect_refused(&report, &attempts);
    let scene = Scene::new("off", false);
    let attempts = attempts.iter().map(|attempt| {
        attempt.replace(&custody.to_string(), &scene.appliance.custody_pid().to_string())
    });
    let attempts: Vec<_> = attempts.collect();
    expect_done(&scene.in_the_front(&attempts), &attempts);
}
