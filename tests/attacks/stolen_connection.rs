//! The front's connection to custody in other hands: a child of the front, a caller that the front has handed
//! the descriptor to, either of them after the front's end.
#![allow(unsafe_code)] // fork(2): the connection in another process

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, send};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use strongroom::custody::protocol::{Hello, Reply, Verb};

use super::mounts::{mount, own_mounts};
use crate::appliance::wait_until;
use crate::custody_verbs::Conquered;
use crate::intruder::Intruder;
use crate::sandbox::{Scene, expect_done, expect_refused};

/// Has another process send packets over a connection, as another user perhaps, and end when `until` is closed.
fn sends_as(intruder: &Intruder, uid: Option<u32>, packets: &[Vec<u8>]) -> Pid {
    let (descriptor, packets) = (intruder.descriptor(), packets.to_vec());
    // SAFETY: the child makes system calls alone, with what was made before.
    match unsafe { fork() }.expect("forked") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => unsafe {
            if let Some(uid) = uid {
                libc::syscall(libc::SYS_setresgid, uid, uid, uid);
                libc::syscall(libc::SYS_setresuid, uid, uid, uid);
            }
            for packet in &packets {
                let _ = send(descriptor, packet, MsgFlags::MSG_NOSIGNAL);
            }
            libc::_exit(0)
        },
    }
}

fn packet<T: serde::Serialize>(id: u64, message: &T) -> Vec<u8> {
    let message = postcard::to_allocvec(message).expect("writable");
    [id.to_le_bytes().as_slice(), &message].concat()
}

fn is_unlocked(conquered: &Conquered) -> bool {
    let Reply::Status(status) = conquered.connect().done(&Verb::Status) else {
        panic!("another reply")
    };
    status.unlocked
}

#[test]
fn another_process_does_not_use_the_fronts_connection() {
    let conquered = Conquered::new();
    for uid in [None, Some(51_003)] {
        let mut intruder = conquered.connect();
        conquered.unlock(&mut intruder);
        let child = sends_as(&intruder, uid, &[packet(1 << 40, &Verb::Status)]);
        waitpid(child, None).expect("it ends");
        assert!(intruder.has_ended_within(5_000), "custody serves another process as the front");
        wait_until("the keys to be wiped", || !is_unlocked(&conquered));
    }
}

#[test]
fn a_connection_ends_with_the_process_that_said_hello() {
    let conquered = Conquered::new();
    let mut held = Intruder::dial(&conquered.appliance.path("custody.sock")).expect("connected");
    let appliance = Some(conquered.home.clone());
    let unlock = Verb::Unlock { appliance, pin: None, by_operator: false, look_first: false };
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let (hello, unlock) = (packet(0, &Hello::OURS), packet(1, &unlock));
    let descriptor = held.descriptor();
    // SAFETY: the child makes system calls alone, with what was made before.
    let front = match unsafe { fork() }.expect("forked") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => unsafe {
            libc::close(writer.as_raw_fd());
            for packet in [&hello, &unlock] {
                let _ = send(descriptor, packet, MsgFlags::MSG_NOSIGNAL);
            }
            let _ = reader.read(&mut [0]);
            libc::_exit(0)
        },
    };
    held.receive().expect("its hello");
    held.receive().expect("custody is unlocked");
    assert!(!held.has_ended_within(500), "while that process lives, it goes on");
    assert!(is_unlocked(&conquered));
    drop(writer);
    waitpid(front, None).expect("it ends");
    assert!(held.has_ended_within(5_000), "it is served on, for whoever holds it");
    wait_until("the keys to be wiped", || !is_unlocked(&conquered));
}

#[test]
fn the_front_leaves_no_process_and_passes_no_descriptor_on() {
    let attempts = ["fork".to_owned(), "pass-descriptor".to_owned()];
    let scene = Scene::new("require", false);
    expect_refused(&scene.in_the_front(&attempts), &attempts);
    let scene = Scene::new("off", false);
    expect_done(&scene.in_the_front(&attempts), &attempts);
}

#[test]
fn nor_where_its_log_goes_to_the_journal() {
    own_mounts();
    mount("none", Path::new("/run"), "tmpfs", "mode=0755");
    std::fs::create_dir_all("/run/systemd/journal").expect("made");
    let journal = UnixDatagram::bind("/run/systemd/journal/socket").expect("bound");
    journal.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    let scene = Scene::changed("require", false, |appliance| {
        appliance.change_config(|config| config["log"]["target"] = "journal".into());
    });
    // The first one is empty: it shows that the journal is there.
    let mut lines = [0; 1 << 16];
    while journal.recv(&mut lines).expect("lines for the journal") == 0 {}
    journal.set_nonblocking(true).expect("set");
    let attempts = ["fork".to_owned(), "pass-descriptor".to_owned()];
    expect_refused(&scene.in_the_front(&attempts), &attempts);
}
