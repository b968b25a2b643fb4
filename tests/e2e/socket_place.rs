//! The listening socket at its path: the kernel knows it by that name, and one that is removed or replaced
//! under the daemon is noticed, named and made again.

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::appliance::{Appliance, wait_until};

#[test]
fn the_kernel_names_the_socket_by_its_path() {
    let appliance = Appliance::new();
    let sockets = std::fs::read_to_string("/proc/net/unix").expect("readable");
    let path = appliance.socket().display().to_string();
    assert!(sockets.lines().any(|line| line.ends_with(&path)), "a cleaner takes it for dead");
}

fn socket_check(document: &Value) -> &Value {
    let checks = document["checks"].as_array().expect("a list");
    checks.iter().find(|check| check["name"] == "socket").expect("a check of the socket")
}

#[test]
fn a_socket_that_was_removed_is_made_again_and_named() {
    let mut appliance = Appliance::new();
    assert_eq!(socket_check(&appliance.get("/v1/doctor").json())["result"], "ok");
    assert!(appliance.get("/v1/status").json().get("socket").is_none());
    let from = appliance.log().len();
    std::fs::remove_file(appliance.socket()).expect("removed");
    wait_until("the socket again", || UnixStream::connect(appliance.socket()).is_ok());
    let found = std::fs::symlink_metadata(appliance.socket()).expect("it is there");
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o666, "as the configuration has it");
    let status = appliance.get("/v1/status").json();
    assert_eq!(status["socket"]["reachable"], true, "{status}");
    assert!(status["socket"]["detail"].as_str().expect("a text").contains("was removed"));
    let check = appliance.get("/v1/doctor").json();
    let check = socket_check(&check);
    assert_eq!(check["result"], "warn", "{check}");
    appliance.wait_for_log(from, "was removed; it was made again");
    appliance.stop();
}

/// A connection from before, which is all that is left.
struct Kept(UnixStream);

impl Kept {
    fn status(&mut self) -> Value {
        let request = b"GET /v1/status HTTP/1.1\r\nhost: strongroom\r\n\r\n";
        self.0.write_all(request).expect("written");
        let mut reply = Vec::new();
        let mut bytes = [0; 8192];
        loop {
            let length = self.0.read(&mut bytes).expect("read");
            assert!(length > 0, "the connection ended");
            reply.extend_from_slice(&bytes[..length]);
            let text = String::from_utf8_lossy(&reply);
            if let Some((_, body)) = text.split_once("\r\n\r\n")
                && let Ok(value) = serde_json::from_str(body)
            {
                return value;
            }
        }
    }
}

#[test]
fn a_path_that_something_else_took_is_named_until_it_is_free() {
    let mut appliance = Appliance::new();
    let mut kept = Kept(UnixStream::connect(appliance.socket()).expect("connected"));
    kept.status();
    let other = appliance.path("other");
    std::fs::write(&other, "a file").expect("written");
    std::fs::rename(&other, appliance.socket()).expect("replaced");
    wait_until("the status that names it", || {
        let socket = &kept.status()["socket"];
        socket["reachable"] == false
            && socket["detail"].as_str().is_some_and(|what| what.contains("was replaced"))
    });
    assert_eq!(std::fs::read(appliance.socket()).expect("still there"), b"a file");
    std::fs::remove_file(appliance.socket()).expect("removed");
    wait_until("the socket again", || UnixStream::connect(appliance.socket()).is_ok());
    appliance.stop();
}
