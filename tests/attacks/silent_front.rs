//! Another process of the front's user keeps custody's socket busy: connections that say nothing, that say
//! hello and nothing more, that read no answers, and requests that fill memory. The real front gets in.
#![allow(unsafe_code)] // fork(2): connections of several processes

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket,
};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pause};
use serde_json::json;
use strongroom::custody::protocol::{Fault, Hello, RecordAddress, StoreKey, Verb};
use strongroom::records::read_home;
use strongroom::store::sled_store::{Settings, SledStore};

use crate::acts::{decrypt, encrypt, expect_plaintext};
use crate::apart::{Custody, apart};
use crate::appliance::wait_until;
use crate::custody_verbs::Conquered;
use crate::intruder::Intruder;
use crate::shim::Shim;

#[test]
fn connections_that_say_nothing_do_not_shut_the_front_out() {
    let (mut appliance, _custody) = apart();
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    appliance.kill();
    let path = appliance.path("custody.sock");
    let silent: Vec<_> = (0..6).map(|_| Intruder::dial(&path).expect("connected")).collect();
    std::thread::sleep(Duration::from_millis(200));
    appliance.spawn();
    appliance.wait_for_state("ready");
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
    assert!(silent.iter().all(|one| one.has_ended_within(5_000)), "a silent one is kept for ever");
}

/// A process that connects, says hello and nothing more.
struct Idler(Pid);

impl Idler {
    fn start(path: &Path) -> Self {
        let address = UnixAddr::new(path).expect("a path");
        let hello = postcard::to_allocvec(&Hello::OURS).expect("writable");
        let hello = [0_u64.to_le_bytes().as_slice(), &hello].concat();
        // SAFETY: the child makes system calls alone, with what was made before.
        match unsafe { fork() }.expect("forked") {
            ForkResult::Parent { child } => Self(child),
            ForkResult::Child => {
                let flags = SockFlag::SOCK_CLOEXEC;
                let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None);
                if let Ok(socket) = &socket
                    && connect(socket.as_raw_fd(), &address).is_ok()
                {
                    let _ = send(socket.as_raw_fd(), &hello, MsgFlags::MSG_NOSIGNAL);
                }
                loop {
                    pause();
                }
            }
        }
    }
}

impl Drop for Idler {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

#[test]
fn connections_that_only_say_hello_do_not_shut_the_front_out() {
    let (mut appliance, _custody) = apart();
    appliance.create_key("k");
    let ciphertext = encrypt(&appliance, "k", "x");
    appliance.kill();
    let path = appliance.path("custody.sock");
    let idlers: Vec<_> = (0..8).map(|_| Idler::start(&path)).collect();
    std::thread::sleep(Duration::from_millis(500));
    appliance.spawn();
    appliance.wait_for_state("ready");
    let more: Vec<_> = (0..8).map(|_| Idler::start(&path)).collect();
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(200));
        expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
    }
    drop((idlers, more));
    expect_plaintext(&decrypt(&appliance, "k", &ciphertext, None), "x");
}

#[test]
fn one_who_reads_no_answers_holds_up_itself_alone() {
    let conquered = Conquered::new();
    let mut appliance = conquered.appliance;
    let mut intruder = Intruder::connect(&appliance.path("custody.sock"));
    // More answers than the socket holds.
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| {
            for _ in 0..3_000 {
                intruder.ask_only(&Verb::Doctor);
            }
        });
        std::thread::sleep(Duration::from_millis(500));
        appliance.spawn();
        appliance.wait_for_state("ready");
        appliance
            .post("/v1/keys", &json!({ "name": "n", "algorithm": "RSA-2048" }))
            .expect_status(201);
        asks.join().expect("custody hung up, or took them");
    });
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    line.split_whitespace().nth(1).expect("a number").parse::<usize>().expect("kB") * 1024
}

#[test]
fn requests_under_way_are_bounded_in_bytes() {
    let (mut appliance, shim) = Shim::prepared(|config| {
        let custody = config["custody"].as_table_mut().expect("a table");
        custody.insert("spawn".to_owned(), "never".into());
        custody.insert("hang_seconds".to_owned(), 60.into());
    });
    let custody = Custody::start(&appliance);
    appliance.spawn();
    appliance.wait_for_state("not-initialised");
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.kill();
    let path = appliance.path("store");
    let store = SledStore::open(&Settings { path, ..Settings::default() }).expect("a store");
    let home = read_home(&store).expect("readable").expect("founded").for_custody();
    drop(store);
    // One that the token has to look at, and refuses.
    let mut wrapped = home.store_key.wrapped.clone();
    *wrapped.last_mut().expect("a wrap") ^= 1;
    let mut intruder = Intruder::connect(&appliance.path("custody.sock"));
    let appliance_now = Some(home);
    let unlock =
        Verb::Unlock { appliance: appliance_now, pin: None, by_operator: false, look_first: false };
    intruder.done(&unlock);
    let before = resident(custody.pid());
    shim.order("C_DecryptInit delay 2000");
    let (mut most, mut answers) = (0, Vec::new());
    for _ in 0..1_100 {
        intruder.ask_only(&Verb::SealRecord {
            store_key: StoreKey { id: 1, first: 0, wrapped: wrapped.clone() },
            address: RecordAddress { table: "t".to_owned(), key: "k".to_owned(), revision: 1 },
            value: vec![7; 90_000],
        });
        answers.extend(intruder.answers());
        most = most.max(resident(custody.pid()));
    }
    let grown = most.saturating_sub(before);
    assert!(grown < 32 << 20, "{} MiB for requests that wait", grown >> 20);
    wait_until("refusals", || {
        answers.extend(intruder.answers());
        answers.iter().any(|answer| matches!(answer, Err(Fault::Busy)))
    });
    shim.lift();
    drop(intruder);
    appliance.spawn();
    appliance.wait_for_state("ready");
}
