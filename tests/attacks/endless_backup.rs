//! A daemon that was taken over answers root's `backup create` without an end: what root writes leaves its disk room.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use super::mounts::{mount, own_mounts};

/// Answers the first request with chunks for as long as somebody takes them.
fn answer(listener: &UnixListener) {
    let (mut stream, _) = listener.accept().expect("a caller");
    let mut request = [0; 4096];
    assert!(stream.read(&mut request).expect("a request") > 0);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = [b"10000\r\n".as_slice(), &[7; 0x10000], b"\r\n"].concat();
    let mut sent = stream.write_all(head.as_bytes());
    while sent.is_ok() {
        sent = stream.write_all(&chunk);
    }
}

#[test]
fn root_does_not_write_its_disk_full_for_it() {
    own_mounts();
    let place = tempfile::tempdir().expect("a directory");
    let disk = place.path().join("disk");
    std::fs::create_dir(&disk).expect("made");
    mount("none", Path::new(&disk), "tmpfs", "size=64m");
    let socket = place.path().join("s.sock");
    let listener = UnixListener::bind(&socket).expect("bound");
    let answering = std::thread::spawn(move || answer(&listener));
    let output = Command::new(env!("CARGO_BIN_EXE_strongroom"))
        .args(["backup", "create", "--no-verify", "--to"])
        .arg(disk.join("endless.backup"))
        .env("STRONGROOM_SOCKET", &socket)
        .output()
        .expect("it runs");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("would leave the disk less than"), "{said}");
    assert_eq!(std::fs::read_dir(&disk).expect("readable").count(), 0, "nothing of it is left");
    answering.join().expect("it ends");
}
