//! The Unix socket: its own, or handed in by the supervisor.
//!
//! A socket of its own is bound under a name that nobody knows, gets its group and mode there, and is
//! renamed into place: there is no moment in which it is open to others than it should be.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::UnixAddr;
use nix::sys::stat::{Mode, umask};
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
    #[error(
        "[listen] socket = {}: a socket's path has at most 107 bytes, and its directory at most 98",
        .0.display()
    )]
    TooLong(PathBuf),
    #[error("[listen] socket = {path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
}

impl Settings {
    /// What keeps a socket from being bound as these settings say, found before it is tried.
    pub fn fault(&self) -> Option<ListenError> {
        let group = self.group.as_deref().map(resolve).transpose();
        let longest = unfinished(&self.socket, LONGEST_PID);
        let fits = [&self.socket, &longest].into_iter().all(|path| UnixAddr::new(path).is_ok());
        let path = (!fits).then(|| ListenError::TooLong(self.socket.clone()));
        parse_mode(&self.mode).err().or(group.err()).or(path)
    }
}

/// The highest process id that Linux knows (proc(5), pid_max).
const LONGEST_PID: u32 = 4_194_304;

/// Where the socket of a process is bound before it is renamed into place.
fn unfinished(socket: &Path, pid: u32) -> PathBuf {
    socket.with_file_name(format!(".{pid}"))
}

/// Binds the socket that the settings describe.
pub fn bind(settings: &Settings) -> Result<UnixListener, ListenError> {
    let path = &settings.socket;
    let mode = parse_mode(&settings.mode)?;
    let group = settings.group.as_deref().map(resolve).transpose()?;
    let failed = |cause| ListenError::Io { path: path.clone(), cause };
    make_parent(path).map_err(failed)?;
    refuse_occupied(path)?;
    let unfinished = unfinished(path, std::process::id());
    let _ = std::fs::remove_file(&unfinished);
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(&unfinished);
    umask(before);
    let listener = bound.map_err(failed)?;
    let finish = || {
        if let Some(gid) = group {
            chown(&unfinished, None, Some(gid))?;
        }
        std::fs::set_permissions(&unfinished, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&unfinished, path)
    };
    finish().map_err(|cause| {
        let _ = std::fs::remove_file(&unfinished);
        failed(cause)
    })?;
    Ok(listener)
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

fn make_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)
        }
        _ => Ok(()),
    }
}

/// A socket that somebody answers on is not ours to replace, and neither is what is no socket.
fn refuse_occupied(path: &Path) -> Result<(), ListenError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            Err(ListenError::NotASocket(path.to_owned()))
        }
        Ok(_) if UnixStream::connect(path).is_ok() => Err(ListenError::InUse(path.to_owned())),
        _ => Ok(()),
    }
}
