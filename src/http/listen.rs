//! The Unix socket: its own, or handed in by the supervisor.
//!
//! A socket of its own is bound at its path, which the kernel shows to those who clean up (unix(7)): one that
//! is bound elsewhere and renamed looks dead to them. It is its owner's alone until it has its group and mode.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
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

/// Whether somebody answers on the socket of the settings. This process cannot find out by itself: it connects
/// to nothing.
pub type InUse = Box<dyn Fn() -> bool + Send + Sync>;

/// Who can make the socket again.
enum Origin {
    Bound { mode: u32, group: Option<Gid>, in_use: InUse },
    HandedIn,
}

/// Binds the socket that the settings describe.
pub fn bind(settings: &Settings, in_use: InUse) -> Result<Listener, ListenError> {
    let path = &settings.socket;
    let mode = parse_mode(&settings.mode)?;
    let group = settings.group.as_deref().map(resolve).transpose()?;
    let failed = |cause| ListenError::Io { path: path.clone(), cause };
    make_parent(path).map_err(failed)?;
    let origin = Origin::Bound { mode, group, in_use };
    let mut place = SocketPlace { path: Some(path.clone()), file: None, origin };
    let socket = place.make_again()?;
    Ok(Listener { socket, place })
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

    /// Makes the socket at its path, again.
    ///
    /// # Errors
    /// Something else that is in use lies there now, or the socket was handed in: only who made it can.
    pub(super) fn make_again(&mut self) -> Result<UnixListener, ListenError> {
        let path = self.path.clone().unwrap_or_default();
        match &self.origin {
            Origin::Bound { mode, group, in_use } => {
                refuse_occupied(&path, in_use)?;
                self.bind(&path, *mode, *group)
            }
            Origin::HandedIn => Err(ListenError::HandedIn(path)),
        }
    }

    fn bind(
        &mut self,
        path: &Path,
        mode: u32,
        group: Option<Gid>,
    ) -> Result<UnixListener, ListenError> {
        let refused = Cell::new(false);
        let bound = || -> io::Result<UnixListener> {
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
            // The file takes the mode that the unbound socket has.
            fchmod(&socket, Mode::from_bits_truncate(0o600))?;
            if std::fs::symlink_metadata(path).is_ok() {
                std::fs::remove_file(path)?;
            }
            nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
            if group.is_some() {
                chown(path, None, group)
                    .inspect_err(|errno| refused.set(*errno == Errno::EPERM))?;
            }
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
            listen(&socket, Backlog::MAXCONN)?;
            Ok(UnixListener::from(socket))
        };
        let listener = bound().map_err(|cause| match group.filter(|_| refused.get()) {
            Some(group) => ListenError::GroupRefused { group: name_of(group) },
            None => ListenError::Io { path: path.to_owned(), cause },
        })?;
        self.file = file_at(path);
        Ok(listener)
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

/// A socket that somebody answers on is not ours to replace, and neither is what is no socket.
fn refuse_occupied(path: &Path, in_use: &InUse) -> Result<(), ListenError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            Err(ListenError::NotASocket(path.to_owned()))
        }
        Ok(_) if in_use() => Err(ListenError::InUse(path.to_owned())),
        _ => Ok(()),
    }
}
