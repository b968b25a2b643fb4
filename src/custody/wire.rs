//! Packets over a `SOCK_SEQPACKET` Unix socket, through buffers that are locked and wiped.
//!
//! The kernel refuses I/O from secret memory, so results are copied from the arena into these
//! buffers on purpose: locked against swap, and wiped after every packet.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixCredentials, recv, recvmsg, send, setsockopt, sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::MAX_PACKET;
use crate::secret::{self, IoBuffer};

/// Length of the request id before a message, in bytes.
const ID: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the other end has gone")]
    Closed,
    #[error("nothing to read, or no room to write")]
    WouldBlock,
    #[error("another user than custody's listens there: see [custody] custody_user")]
    Stranger,
    #[error("custody did not answer in time")]
    Silent,
    #[error("custody answers others, and so many ask that this did not get to it in time")]
    Crowded,
    #[error(
        "a packet whose sender the kernel does not tell, or is not the process that said hello"
    )]
    Passed,
    #[error("a packet that does not hold a message")]
    Malformed,
    #[error("a message longer than a packet may be")]
    TooLong,
    #[error("the socket failed: {0}")]
    Socket(Errno),
    #[error("no memory could be locked for packets (raise LimitMEMLOCK / RLIMIT_MEMLOCK): {0}")]
    Lock(Errno),
}

/// The process that sent a packet, and its user, as the kernel tells it at the moment that it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    pub pid: i32,
    pub uid: u32,
}

/// Has the kernel tell the sender of every packet, of connections that are made from now on.
pub fn tell_senders(socket: &impl AsFd) -> Result<(), Errno> {
    setsockopt(socket, sockopt::PassCred, &true)
}

/// A locked buffer for one packet; what it held is wiped before it is used again and when it goes.
pub struct Packet {
    bytes: IoBuffer,
    used: usize,
}

impl Packet {
    /// Reserves and locks [`MAX_PACKET`] bytes.
    pub fn new() -> Result<Self, WireError> {
        Ok(Self { bytes: IoBuffer::new(MAX_PACKET).map_err(WireError::Lock)?, used: 0 })
    }

    /// Length of what was read last, in bytes.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Reads the next packet of `socket` and returns its request id and message.
    ///
    /// # Errors
    /// [`WireError::Closed`] at the end, [`WireError::WouldBlock`] on a socket that does not block.
    pub fn receive<T: DeserializeOwned>(
        &mut self,
        socket: BorrowedFd<'_>,
    ) -> Result<(u64, T), WireError> {
        self.wipe();
        let flags = MsgFlags::MSG_TRUNC;
        let length = loop {
            match recv(socket.as_raw_fd(), &mut self.bytes, flags) {
                Err(Errno::EINTR) => {}
                other => break other.map_err(socket_error)?,
            }
        };
        self.parsed(length)
    }

    /// The same, with its sender; of a socket that is told of them ([`tell_senders`]).
    ///
    /// # Errors
    /// [`WireError::Passed`] where `expected` is another one.
    pub fn receive_from<T: DeserializeOwned>(
        &mut self,
        socket: BorrowedFd<'_>,
        expected: Option<Sender>,
    ) -> Result<(Sender, u64, T), WireError> {
        self.wipe();
        let (length, sender) = loop {
            // There is no room for descriptors: one that is passed here goes nowhere.
            let mut space = nix::cmsg_space!(UnixCredentials);
            let mut parts = [IoSliceMut::new(&mut self.bytes)];
            let (socket, flags) = (socket.as_raw_fd(), MsgFlags::MSG_TRUNC);
            match recvmsg::<()>(socket, &mut parts, Some(&mut space), flags) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(socket_error(errno)),
                Ok(found) => {
                    let mut passed = found.cmsgs().into_iter().flatten();
                    break (found.bytes, passed.find_map(sender_in));
                }
            }
        };
        self.used = length.min(self.bytes.len());
        if length == 0 {
            return Err(WireError::Closed);
        }
        let sender = sender.ok_or(WireError::Passed)?;
        if expected.is_some_and(|expected| expected != sender) {
            return Err(WireError::Passed);
        }
        let (id, message) = self.parsed(length)?;
        Ok((sender, id, message))
    }

    fn parsed<T: DeserializeOwned>(&mut self, length: usize) -> Result<(u64, T), WireError> {
        self.used = length.min(self.bytes.len());
        if length == 0 {
            return Err(WireError::Closed);
        }
        let packet = self.bytes.get(..length).ok_or(WireError::TooLong)?;
        let (id, message) = packet.split_first_chunk::<ID>().ok_or(WireError::Malformed)?;
        Ok((u64::from_le_bytes(*id), parse(message)?))
    }

    /// Writes `message` as one packet; what was written is wiped at once.
    pub fn send<T: Serialize>(
        &mut self,
        socket: BorrowedFd<'_>,
        id: u64,
        message: &T,
    ) -> Result<(), WireError> {
        self.send_with(socket, id, message, MsgFlags::empty())
    }

    /// The same, or [`WireError::WouldBlock`] where the other end does not read.
    pub fn send_at_once<T: Serialize>(
        &mut self,
        socket: BorrowedFd<'_>,
        id: u64,
        message: &T,
    ) -> Result<(), WireError> {
        self.send_with(socket, id, message, MsgFlags::MSG_DONTWAIT)
    }

    fn send_with<T: Serialize>(
        &mut self,
        socket: BorrowedFd<'_>,
        id: u64,
        message: &T,
        flags: MsgFlags,
    ) -> Result<(), WireError> {
        let length = self.write(id, message)?;
        let flags = flags | MsgFlags::MSG_NOSIGNAL;
        let result = loop {
            match send(socket.as_raw_fd(), &self.bytes[..length], flags) {
                Err(Errno::EINTR) => {}
                other => break other,
            }
        };
        self.wipe();
        result.map(drop).map_err(socket_error)
    }

    fn write<T: Serialize>(&mut self, id: u64, message: &T) -> Result<usize, WireError> {
        self.used = self.bytes.len();
        let (head, body) = self.bytes.split_at_mut(ID);
        head.copy_from_slice(&id.to_le_bytes());
        let written = postcard::to_slice(message, body).map_err(|_| WireError::TooLong)?.len();
        self.used = ID + written;
        Ok(self.used)
    }

    fn wipe(&mut self) {
        self.bytes.wipe(self.used);
        self.used = 0;
        secret::clear_registers(); // the copies into and out of the buffer went through them
    }
}

fn sender_in(message: ControlMessageOwned) -> Option<Sender> {
    match message {
        ControlMessageOwned::ScmCredentials(it) => Some(Sender { pid: it.pid(), uid: it.uid() }),
        _ => None,
    }
}

/// Reads a message that takes up all of `bytes`.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(WireError::Malformed),
    }
}

fn socket_error(errno: Errno) -> WireError {
    match errno {
        Errno::EAGAIN => WireError::WouldBlock,
        Errno::ECONNRESET | Errno::EPIPE | Errno::ENOTCONN => WireError::Closed,
        Errno::EMSGSIZE => WireError::TooLong,
        other => WireError::Socket(other),
    }
}

/// Whether the process at the other end of `socket` runs as `uid`.
pub fn peer_is(socket: impl AsFd, uid: u32) -> bool {
    crate::identity::UnixPeer::of(&socket).is_ok_and(|peer| peer.uid == uid)
}
