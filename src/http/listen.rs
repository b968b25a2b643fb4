//! The Unix socket: its own, or handed in by the supervisor.
//!
//! A socket of its own is bound at its path, which the kernel shows to those who clean up (unix(7)): one that
//! is bound elsewhere and renamed looks dead to them. It is its owner's alone until it has its group and mode.
//! The front may neither make nor remove anything where its socket lies, and changes no modes: a process that was
//! split off before the sandbox makes the socket, and makes it again where it was removed.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Group, chown};
use serde::{Deserialize, Serialize};

/// The `[listen]` part of the configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where local services find Strongroom.
    pub socket: PathBuf,
    /// Who may connect, as an octal mode; policy decides what they may do.
    pub mode: String,
    /// The group of the socket, by name or number; without it, the daemon's own.
    pub group: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/strongroom/strongroom.sock"),
            mode: "0660".to_owned(),
            group: None,
        }
    }
}

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("[listen] mode = {0:?} is not an octal mode like \"0660\"")]
    Mode(String),
    #[error("[listen] group = {0:?}: no such group")]
    Group(String),
    #[error("another daemon answers on {0}; stop it first")]
    InUse(PathBuf),
    #[error("{0} is there and is not a socket; remove it or set [listen] socket")]
    NotASocket(PathBuf),
    #[error("[listen] socket = {}: a socket's path has at most 107 bytes", .0.display())]
    TooLong(PathBuf),
    #[error(
        "{} was made by the service manager, and only it can make it again: `systemctl restart \
         strongroom.socket`",
        .0.display()
    )]
    HandedIn(PathBuf),
    /// The kernel lets a process give its files to groups that it is in, and to no other.
    #[error(
        "[listen] group = {group:?}: the socket cannot be given to this group, which this process is not in"
    )]
    GroupRefused { group: String },
    #[error("[listen] socket = {path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
}

impl Settings {
    /// What keeps a socket from being bound as these settings say, found before it is tried.
    pub fn fault(&self) -> Option<ListenError> {
        let group = self.group.as_deref().map(resolve).transpose();
        let fits = UnixAddr::new(&self.socket).is_ok();
        let path = (!fits).then(|| ListenError::TooLong(self.socket.clone()));
        parse_mode(&self.mode).err().or(group.err()).or(path)
    }
}

/// A listening socket, and the place where callers look for it.
pub struct Listener {
    pub(super) socket: UnixListener,
    pub(super) place: SocketPlace,
}

/// Where callers look for a socket, and which file it is.
pub struct SocketPlace {
    /// None where a socket that was handed in has no path.
    path: Option<PathBuf>,
    file: Option<(u64, u64)>,
    origin: Origin,
}

/// Has the socket made, by a process that may; the error is a code of [`Making::make`]'s.
pub type Make = Box<dyn Fn() -> Result<OwnedFd, i32> + Send + Sync>;

/// How the socket is made that the settings describe.
#[derive(Debug, Clone)]
pub struct Making {
    path: PathBuf,
    mode: u32,
    group: Option<Gid>,
}

/// Who can make the socket again.
enum Origin {
    Made { making: Making, make: Make },
    HandedIn,
}

/// Code of [`ListenError::GroupRefused`]; no number of an error.
const GROUP_REFUSED: i32 = 10_000;

/// Has the socket made for the first time.
pub fn bind(making: Making, make: Make) -> Result<Listener, ListenError> {
    let path = Some(making.path.clone());
    let mut place = SocketPlace { path, file: None, origin: Origin::Made { making, make } };
    let socket = place.make_again()?;
    Ok(Listener { socket, place })
}

impl Making {
    /// What the settings describe, with the directory of the socket made where it is not there.
    pub fn prepare(settings: &Settings) -> Result<Self, ListenError> {
        let path = settings.socket.clone();
        let mode = parse_mode(&settings.mode)?;
        let group = settings.group.as_deref().map(resolve).transpose()?;
        make_parent(&path).map_err(|cause| ListenError::Io { path: path.clone(), cause })?;
        Ok(Self { path, mode, group })
    }

    /// The directory that the socket lies in.
    pub fn directory(&self) -> PathBuf {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        }
    }

    /// Makes the socket at its path, in the place of one that nobody answers on.
    ///
    /// # Errors
    /// The number of the error; `GROUP_REFUSED` where the group is not to be had, EADDRINUSE where a daemon
    /// answers there, ENOTSOCK where something else lies there.
    pub fn make(&self) -> Result<OwnedFd, i32> {
        match std::fs::symlink_metadata(&self.path) {
            Ok(found) if !found.file_type().is_socket() => return Err(Errno::ENOTSOCK as i32),
            Ok(_) if is_in_use(&self.path) => return Err(Errno::EADDRINUSE as i32),
            Ok(_) => std::fs::remove_file(&self.path).map_err(code)?,
            Err(_) => {}
        }
        let bound = || -> Result<OwnedFd, Errno> {
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
            // The file takes the mode that the unbound socket has.
            fchmod(&socket, Mode::from_bits_truncate(0o600))?;
            nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(&self.path)?)?;
            Ok(socket)
        };
        let socket = bound().map_err(|errno| errno as i32)?;
        if self.group.is_some() {
            chown(&self.path, None, self.group).map_err(|errno| match errno {
                Errno::EPERM => GROUP_REFUSED,
                other => other as i32,
            })?;
        }
        let mode = std::fs::Permissions::from_mode(self.mode);
        std::fs::set_permissions(&self.path, mode).map_err(code)?;
        listen(&socket, Backlog::MAXCONN).map_err(|errno| errno as i32)?;
        Ok(socket)
    }

    /// The error that a code stands for.
    fn error(&self, code: i32) -> ListenError {
        let path = self.path.clone();
        match code {
            GROUP_REFUSED => {
                ListenError::GroupRefused { group: self.group.map(name_of).unwrap_or_default() }
            }
            _ if code == Errno::EADDRINUSE as i32 => ListenError::InUse(path),
            _ if code == Errno::ENOTSOCK as i32 => ListenError::NotASocket(path),
            _ => ListenError::Io { path, cause: io::Error::from_raw_os_error(code) },
        }
    }
}

fn code(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(Errno::EIO as i32)
}

/// Whether a daemon answers on a socket, or would if it had not so many to answer.
fn is_in_use(path: &Path) -> bool {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let connected = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .and_then(|socket| nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?));
    matches!(connected, Ok(()) | Err(Errno::EAGAIN))
}

impl Listener {
    /// A socket that the supervisor listens on already.
    pub fn handed_in(socket: UnixListener) -> Self {
        let address = socket.local_addr().ok();
        let path = address.and_then(|address| address.as_pathname().map(Path::to_owned));
        let file = path.as_deref().and_then(file_at);
        Self { socket, place: SocketPlace { path, file, origin: Origin::HandedIn } }
    }
}

impl SocketPlace {
    /// What is wrong with the place: nothing, where the very socket lies there.
    pub(super) fn fault(&self) -> Option<String> {
        let path = self.path.as_deref()?;
        match file_at(path) {
            found if found == self.file => None,
            None => Some(format!("the socket {} was removed", path.display())),
            Some(_) => Some(format!("the socket {} was replaced", path.display())),
        }
    }

    /// Has the socket made at its path, again.
    ///
    /// # Errors
    /// Something else that is in use lies there now, or the socket was handed in: only who made it can.
    pub(super) fn make_again(&mut self) -> Result<UnixListener, ListenError> {
        let path = self.path.clone().unwrap_or_default();
        match &self.origin {
            Origin::Made { making, make } => {
                let socket = make().map_err(|code| making.error(code))?;
                self.file = file_at(&path);
                Ok(UnixListener::from(socket))
            }
            Origin::HandedIn => Err(ListenError::HandedIn(path)),
        }
    }
}

/// A group's name, or its number where it has none.
fn name_of(group: Gid) -> String {
    let named = Group::from_gid(group).ok().flatten();
    named.map_or_else(|| group.to_string(), |group| group.name)
}

/// Device and inode of what lies at a path.
fn file_at(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

fn parse_mode(text: &str) -> Result<u32, ListenError> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(ListenError::Mode(text.to_owned())),
    }
}

fn resolve(name: &str) -> Result<Gid, ListenError> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    let unknown = || ListenError::Group(name.to_owned());
    let group = Group::from_name(name).map_err(|_| unknown())?;
    Ok(group.ok_or_else(unknown)?.gid)
}

/// Makes the directory of the socket, open to those who look for it whatever the umask says.
fn make_parent(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
        return Ok(());
    };
    if parent.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(parent)?;
    std::fs::set_permissions(parent, std::fs::Permissions::from_mode(0o755))
}
