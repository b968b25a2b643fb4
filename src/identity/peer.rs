//! The other end of a Unix socket, as the kernel tells it (SO_PEERCRED, SO_PEERGROUPS; unix(7)).
//! It tells who connected, or who made the pair: what holds the socket now may be another.
#![allow(unsafe_code)] // SO_PEERGROUPS has no safe binding

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Gid, Uid, User, getgrouplist};

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
            groups: supplementary(peer_groups(fd.as_raw_fd())?, credentials.gid()),
        })
    }
}

impl UnixPeer {
    /// A user of this machine, by name or uid, as the kernel would name one that has just logged in: with its
    /// groups, and no process. `None` where there is no such user.
    ///
    /// # Errors
    /// The name service could not be asked.
    pub fn of_user(user: &str) -> Result<Option<Self>, Errno> {
        let found = match user.parse() {
            Ok(uid) => User::from_uid(Uid::from_raw(uid))?,
            Err(_) => User::from_name(user)?,
        };
        let Some(found) = found else { return Ok(None) };
        let Ok(name) = CString::new(found.name) else { return Ok(None) };
        let groups = getgrouplist(&name, found.gid)?.into_iter().map(Gid::as_raw).collect();
        let (uid, gid) = (found.uid.as_raw(), found.gid.as_raw());
        Ok(Some(Self { uid, gid, pid: 0, groups: supplementary(groups, gid) }))
    }
}

/// The kernel's list holds the primary group too, where the login put it in.
fn supplementary(mut groups: Vec<u32>, gid: u32) -> Vec<u32> {
    groups.retain(|group| *group != gid);
    groups
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
    use std::os::unix::net::{UnixListener, UnixStream};

    /// Runs `deed` on a thread of its own after `change`, a system call that changes the credentials of
    /// that thread alone. Answers what `deed` did and whether the change was allowed (it is to root).
    fn as_somebody_else<T: Send + 'static>(
        change: impl FnOnce() -> libc::c_long + Send + 'static,
        deed: impl FnOnce() -> T + Send + 'static,
    ) -> (T, bool) {
        let thread = std::thread::spawn(move || {
            let changed = change() == 0;
            (deed(), changed)
        });
        thread.join().unwrap()
    }

    #[test]
    fn a_pair_of_sockets_names_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = UnixPeer::of(&one).unwrap();
        assert_eq!(peer.uid, nix::unistd::getuid().as_raw());
        assert_eq!(peer.gid, nix::unistd::getgid().as_raw());
        assert_eq!(peer.pid, std::process::id() as i32);
        assert!(!peer.groups.contains(&peer.gid));
    }

    #[test]
    fn a_listener_names_who_connected() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&path, std::fs::Permissions::clone(&open)).unwrap();
        std::fs::set_permissions(directory.path(), open).unwrap();
        // SAFETY: the raw system call takes plain numbers and changes this thread alone.
        let change = || unsafe { libc::syscall(libc::SYS_setresuid, 4321, 4321, 4321) };
        let (client, changed) = as_somebody_else(change, move || UnixStream::connect(&path));
        let _client = client.unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let uid = UnixPeer::of(&accepted).unwrap().uid;
        assert_eq!(uid, if changed { 4321 } else { nix::unistd::getuid().as_raw() });
    }

    #[test]
    fn all_groups_are_told_however_many() {
        let many: Vec<u32> = (5000..5300).collect();
        let groups = many.clone();
        // SAFETY: the kernel reads `groups.len()` numbers from a live vector; only this thread changes.
        let change =
            move || unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
        let (pair, changed) = as_somebody_else(change, UnixStream::pair);
        let peer = UnixPeer::of(&pair.unwrap().0).unwrap();
        if changed {
            assert_eq!(peer.groups, many);
        } else {
            let own = nix::unistd::getgroups().unwrap();
            let own = own.into_iter().map(nix::unistd::Gid::as_raw).collect();
            assert_eq!(peer.groups, supplementary(own, peer.gid));
        }
    }

    #[test]
    fn the_primary_group_is_not_among_the_supplementary_ones() {
        assert_eq!(supplementary(vec![7, 5, 9], 5), [7, 9]);
    }

    #[test]
    fn what_is_no_unix_socket_names_nobody() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(UnixPeer::of(&client).is_err());
        assert!(UnixPeer::of(&std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
