//! The other end of a Unix socket, as the kernel tells it (SO_PEERCRED, SO_PEERGROUPS; unix(7)).

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// The user, group and process that connected, and the groups it was in when it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixPeer {
    pub uid: u32,
    pub gid: u32,
    pub pid: i32,
    /// Supplementary groups, without `gid`.
    pub groups: Vec<u32>,
}

/// The kernel did not say who the peer is; nobody may be served then.
#[derive(Debug, thiserror::Error)]
#[error("the kernel did not tell the peer's credentials: {0}")]
pub struct PeerError(#[from] Errno);

impl UnixPeer {
    /// Asks the kernel who holds the other end of `socket`.
    pub fn of(socket: &impl AsFd) -> Result<Self, PeerError> {
        let fd = socket.as_fd();
        let credentials = getsockopt(&fd, PeerCredentials)?;
        Ok(Self {
            uid: credentials.uid(),
            gid: credentials.gid(),
            pid: credentials.pid(),
            groups: peer_groups(fd.as_raw_fd())?,
        })
    }
}

/// SO_PEERGROUPS answers ERANGE with the needed size where the buffer is too small.
fn peer_groups(fd: i32) -> Result<Vec<u32>, Errno> {
    let mut groups = vec![0u32; 32];
    loop {
        let mut bytes = (groups.len() * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: the buffer is writable for `bytes` bytes and outlives the call.
        let result = unsafe {
            libc::getsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut bytes,
            )
        };
        let count = bytes as usize / size_of::<u32>();
        match Errno::result(result) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            Err(Errno::ERANGE) if count > groups.len() => groups.resize(count, 0),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_pair_of_sockets_names_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = UnixPeer::of(&one).unwrap();
        assert_eq!(peer.uid, nix::unistd::getuid().as_raw());
        assert_eq!(peer.pid, std::process::id() as i32);
    }
}
