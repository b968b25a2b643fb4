//! Why the daemon ended, where those who wait for it find it: in the status that systemd shows, and in a file
//! beside the socket, which is empty or gone while callers are served.

use std::fs::{File, Permissions};
use std::io::{Seek, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sd_notify::NotifyState;

use super::DaemonError;
use super::notify::Manager;
use super::offline::user_of;
use crate::audit::AuditError;
use crate::cli::{LONGEST_FAILURE, failure_file};
use crate::http::ListenSettings;
use crate::sandbox::{Open, open_plain};
use crate::store::StoreError;

/// The places where a failure is left, open before the sandbox is entered.
pub struct FailureNote {
    manager: Manager,
    file: Option<(PathBuf, File)>,
}

impl FailureNote {
    /// Opens them. A configuration that is not sound may still name the socket.
    pub fn prepare(config: &Path, passed: &[RawFd]) -> Self {
        let socket = passed.first().and_then(|&socket| bound_at(socket));
        let path = failure_file(&socket.unwrap_or_else(|| named_in(config)));
        // Root makes no file in the directory of another user.
        let is_own = path.parent().is_some_and(|directory| {
            directory.is_dir() && user_of(directory).is_ok_and(|user| user.is_current())
        });
        let file = match is_own {
            true => open_plain(&path, Open::Make).ok(),
            false => None,
        };
        let file = file.filter(|file| {
            // Whoever may use the socket may know why nobody answers.
            file.set_permissions(Permissions::from_mode(0o644)).is_ok()
        });
        Self { manager: Manager::connect(), file: file.map(|file| (path, file)) }
    }

    /// Callers are served.
    pub fn clear(&self) {
        if let Some((path, file)) = &self.file {
            let _ = file.set_len(0);
            // Inside the sandbox no name is removed: it stays, empty, and means the same.
            let _ = std::fs::remove_file(path);
        }
    }

    /// The daemon ends with this error.
    pub fn write(&self, error: &DaemonError) {
        let (what, next) = (first_line(&error.to_string()), first_line(&error.next()));
        self.manager.notify(&NotifyState::Status(&format!("failed: {what}")));
        if is_in_use(error) {
            // Another one serves, or starts.
            return;
        }
        if let Some((_, file)) = &self.file {
            let mut file = file;
            let text = format!("{what}\n{next}\n");
            let _ = file.set_len(0).and_then(|()| file.rewind());
            let _ = file.write_all(text.as_bytes());
        }
    }
}

fn is_in_use(error: &DaemonError) -> bool {
    matches!(error, DaemonError::Store(StoreError::InUse) | DaemonError::Trail(AuditError::InUse))
}

/// An error of several lines, such as that of a policy, begins with what it is about.
fn first_line(text: &str) -> String {
    let line: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut line = line.join("; ");
    let end = (0..=LONGEST_FAILURE / 2 - 1).rev().find(|&end| line.is_char_boundary(end));
    line.truncate(end.unwrap_or(0));
    line
}

/// Where a socket that was handed in is bound.
fn bound_at(socket: RawFd) -> Option<PathBuf> {
    nix::sys::socket::getsockname::<nix::sys::socket::UnixAddr>(socket)
        .ok()?
        .path()
        .map(Path::to_owned)
}

/// The socket as far as the configuration can be read.
fn named_in(config: &Path) -> PathBuf {
    let text = std::fs::read_to_string(config).unwrap_or_default();
    let table = text.parse::<toml::Table>().unwrap_or_default();
    let named = table.get("listen").and_then(|listen| listen.get("socket")?.as_str());
    named.map_or_else(|| ListenSettings::default().socket, PathBuf::from)
}
