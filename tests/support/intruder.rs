//! Somebody who has the front's place: speaks custody's protocol itself, and keeps all that comes back.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use strongroom::custody::protocol::{Answer, Fault, Hello, MAX_PACKET, Reply, Verb};

/// A connection to custody that says what it likes.
pub struct Intruder {
    socket: OwnedFd,
    next: u64,
    /// Every byte that custody has sent.
    pub seen: Vec<u8>,
}

impl Intruder {
    /// Connects and says hello; custody serves it once the front before it has gone.
    pub fn connect(path: &Path) -> Self {
        let mut intruder = Self::dial(path).expect("custody lets this user in");
        intruder.send(0, &postcard::to_allocvec(&Hello::OURS).expect("writable"));
        let (_, theirs) = intruder.receive().expect("custody says hello");
        let theirs: Hello = postcard::from_bytes(&theirs).expect("its hello");
        assert_eq!(theirs, Hello::OURS);
        intruder
    }

    /// Connects and says nothing yet.
    pub fn dial(path: &Path) -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(30))?;
        Ok(Self { socket, next: 1, seen: Vec::new() })
    }

    /// The connection, for others to use.
    pub fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, verb: &Verb) -> Answer {
        let (id, message) = (self.next, postcard::to_allocvec(verb).expect("writable"));
        self.next += 1;
        self.send(id, &message);
        let (answered, answer) = self.receive().expect("custody answers");
        assert_eq!(answered, id);
        postcard::from_bytes(&answer).expect("an answer")
    }

    /// Asks for what has to be refused, and returns why it was.
    #[track_caller]
    pub fn refused(&mut self, what: &str, verb: &Verb) -> Fault {
        match self.ask(verb) {
            Err(fault) => fault,
            Ok(_) => panic!("{what} was done"),
        }
    }

    /// Asks for what has to be done.
    #[track_caller]
    pub fn done(&mut self, verb: &Verb) -> Reply {
        self.ask(verb).unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// Asks, and waits for no answer.
    pub fn ask_only(&mut self, verb: &Verb) {
        let (id, message) = (self.next, postcard::to_allocvec(verb).expect("writable"));
        self.next += 1;
        self.send(id, &message);
    }

    /// The answers that are there by now.
    pub fn answers(&mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        let mut packet = vec![0; MAX_PACKET.get()];
        while let Ok(length @ 1..) =
            recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT)
        {
            answers.push(postcard::from_bytes(&packet[8..length]).expect("an answer"));
        }
        answers
    }

    /// Whether custody has ended this connection within so many milliseconds.
    pub fn has_ended_within(&self, milliseconds: u64) -> bool {
        let until = std::time::Instant::now() + std::time::Duration::from_millis(milliseconds);
        let mut packet = vec![0; MAX_PACKET.get()];
        loop {
            match recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(Errno::ECONNRESET) => return true,
                Err(Errno::EAGAIN) if std::time::Instant::now() >= until => return false,
                Err(Errno::EAGAIN) => std::thread::sleep(std::time::Duration::from_millis(10)),
                _ => {}
            }
        }
    }

    /// One packet, whatever is in it. Custody may have hung up already.
    pub fn send(&self, id: u64, message: &[u8]) {
        self.send_raw(&[id.to_le_bytes().as_slice(), message].concat());
    }

    pub fn send_raw(&self, packet: &[u8]) {
        let _ = send(self.socket.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL);
    }

    /// The next packet's id and message; `None` where custody has hung up.
    pub fn receive(&mut self) -> Option<(u64, Vec<u8>)> {
        let mut packet = vec![0; MAX_PACKET.get()];
        let length = match recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::ECONNRESET) => 0,
            Err(error) => panic!("custody neither answers nor hangs up: {error}"),
        };
        packet.truncate(length);
        self.seen.extend_from_slice(&packet);
        let (id, message) = packet.split_first_chunk::<8>()?;
        Some((u64::from_le_bytes(*id), message.to_vec()))
    }
}
