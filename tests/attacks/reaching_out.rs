//! Code inside the front, or inside custody, that looks for another process to hand its bytes to: daemons of
//! this machine that are open to all, by every kind of Unix socket, and the kernel's own sockets.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};

use crate::sandbox::{Scene, expect_done, expect_refused};

/// Daemons of somebody else, each with a socket that every user may write to.
struct Daemons {
    directory: tempfile::TempDir,
    name: String,
    stream: UnixListener,
    abstracted: UnixListener,
    packets: OwnedFd,
    datagrams: UnixDatagram,
}

impl Daemons {
    fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("strongroom-attacked-{}-{number}", std::process::id());
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let open = |path: PathBuf| {
            let mode = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(path, mode).expect("root may");
        };
        open(directory.path().to_owned());
        let stream = UnixListener::bind(at("stream")).expect("bound");
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let abstracted = UnixListener::bind_addr(&address).expect("bound");
        let packets =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_NONBLOCK, None);
        let packets = packets.expect("a socket");
        let address = UnixAddr::new(&at("packets")).expect("an address");
        bind(packets.as_raw_fd(), &address).expect("bound");
        listen(&packets, Backlog::new(4).expect("few")).expect("listens");
        let datagrams = UnixDatagram::bind(at("datagrams")).expect("bound");
        ["stream", "packets", "datagrams"].into_iter().for_each(|name| open(at(name)));
        stream.set_nonblocking(true).expect("set");
        abstracted.set_nonblocking(true).expect("set");
        datagrams.set_nonblocking(true).expect("set");
        Self { directory, name, stream, abstracted, packets, datagrams }
    }

    /// Every way to one of them.
    fn ways(&self) -> Vec<String> {
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        vec![
            format!("connect {}", at("stream")),
            format!("connect-packets {}", at("packets")),
            format!("connect-datagrams {}", at("datagrams")),
            format!("connect-abstract {}", self.name),
            format!("datagram {}", at("datagrams")),
            format!("message {}", at("datagrams")),
        ]
    }

    /// Whether anybody has come, or anything.
    fn were_reached(&self) -> bool {
        let packets = nix::sys::socket::accept4(self.packets.as_raw_fd(), SockFlag::SOCK_NONBLOCK);
        self.stream.accept().is_ok()
            || self.abstracted.accept().is_ok()
            || packets.is_ok()
            || self.datagrams.recv(&mut [0; 16]).is_ok()
    }
}

/// Sockets of the kernel: netlink, packets, keys, the host of a virtual machine, Bluetooth, XDP.
fn of_the_kernel() -> Vec<String> {
    let mut all = vec!["netlink".to_owned()];
    all.extend([2, 10, 15, 16, 17, 31, 38, 40, 44].map(|family| format!("family {family}")));
    all
}

#[test]
fn the_front_hands_nothing_to_another_daemon() {
    let daemons = Daemons::new();
    let scene = Scene::new("require", false);
    let mut attempts = daemons.ways();
    attempts.extend(of_the_kernel());
    for own in ["s.sock", "custody.sock"] {
        let own = scene.appliance.path(own).display().to_string();
        attempts.extend([format!("connect {own}"), format!("connect-packets {own}")]);
    }
    let report = scene.in_the_front(&attempts);
    expect_refused(&report, &attempts);
    assert!(!daemons.were_reached());
    // A custody that starts again is found again all the same.
    scene.appliance.create_key("before");
    let custody = nix::unistd::Pid::from_raw(scene.appliance.custody_pid() as i32);
    nix::sys::signal::kill(custody, nix::sys::signal::Signal::SIGKILL).expect("killed");
    scene.appliance.create_key("after");
}

#[test]
fn custody_hands_nothing_to_another_daemon() {
    let daemons = Daemons::new();
    let scene = Scene::new("require", true);
    let mut attempts = daemons.ways();
    attempts.extend(of_the_kernel());
    let front = scene.appliance.path("s.sock").display().to_string();
    attempts.push(format!("connect {front}"));
    let report = scene.in_custody(&attempts);
    expect_refused(&report, &attempts);
    assert!(!daemons.were_reached());
    scene.appliance.create_key("it-works-on");
}

#[test]
fn without_the_sandbox_each_of_these_is_reached() {
    let daemons = Daemons::new();
    let ways = daemons.ways();
    let scene = Scene::new("off", false);
    expect_done(&scene.in_the_front(&ways), &ways);
    assert!(daemons.were_reached());
    let scene = Scene::new("off", true);
    expect_done(&scene.in_custody(&ways), &ways);
}

/// The process that connects for the front: without it the front does not go on as if it had one.
#[test]
fn a_front_whose_connecting_process_is_gone_ends() {
    let mut appliance = crate::appliance::Appliance::new();
    let front = appliance.front_pid();
    let children = std::fs::read_dir(format!("/proc/{front}/task")).expect("it runs").flatten();
    let children =
        children.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<i32> = children
        .flat_map(|line| {
            line.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect::<Vec<_>>()
        })
        .collect();
    let is_dialer = |pid: &&i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "dialer\n")
    };
    let dialer = *children.iter().find(is_dialer).expect("the process that connects");
    let dialer = nix::unistd::Pid::from_raw(dialer);
    nix::sys::signal::kill(dialer, nix::sys::signal::Signal::SIGKILL).expect("killed");
    assert!(!appliance.wait_for_end().success());
}
