//! What the front still needs once it has started, for its sandbox: its own directories and what it reads
//! again at a reload. Neither the token nor its PIN, wherever they lie.

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::config::Config;
use super::logging::Target;
use crate::custody::{self, Surroundings, softhsm_configuration};
use crate::sandbox::{Mode, Needs, Sockets};

/// Where modules of the name service (nsswitch.conf) read users and groups besides `/etc`; policy names some.
const USERS: [&str; 6] = [
    "/run/systemd/userdb",
    "/run/userdb",
    "/run/host/userdb",
    "/var/lib/sss",
    "/var/lib/extrausers",
    "/var/lib/misc",
];

/// Makes what is to be written in: only what is there can be granted. Where this fails, whoever opens it says
/// why.
pub fn make_places(config: &Config) {
    let _ = make_private(&config.store.path);
    let _ = make_private(&config.audit.directory);
}

/// Puts it together.
pub fn needs(path: &Path, config: &Config, target: Target) -> Needs {
    let (store, trail) = (&config.store.path, &config.audit.directory);
    Needs {
        read: read_again(path, config),
        write: vec![store.clone(), trail.clone()],
        // Its socket is made by the process that connects for it.
        socket_in: Vec::new(),
        never: hidden(config),
        // Custody is connected to by a process of its own.
        sockets: match config.sandbox.directory_services {
            true => Sockets::Local,
            false => Sockets::None,
        },
        listens: false,
        journal: target == Target::Journal,
        ipc: false,
        modes: false,
        alone: true,
    }
}

/// The whole directories: a file that is replaced is another file. And /etc, for its users.
fn read_again(path: &Path, config: &Config) -> Vec<PathBuf> {
    let mut read = vec![PathBuf::from("/etc"), config.policy.directory.clone()];
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    read.extend(path.parent().map(Path::to_owned));
    read.extend(USERS.map(PathBuf::from));
    read.extend(config.sandbox.read.clone());
    read
}

fn hidden(config: &Config) -> Vec<PathBuf> {
    let around = Surroundings { softhsm: softhsm_configuration(), ..Surroundings::default() };
    custody::private_files(&config.custody, &config.token, &around)
}

/// What is hidden from the front and lies beneath a directory that it reads again: of that it then sees
/// only the files that were there at its start, and none that was put in the place of one.
pub fn in_the_way(path: &Path, config: &Config) -> Option<String> {
    if config.sandbox.mode == Mode::Off {
        return None;
    }
    let real = |path: PathBuf| path.canonicalize().unwrap_or(path);
    let read: Vec<PathBuf> = read_again(path, config).into_iter().map(real).collect();
    let found = hidden(config).into_iter().map(real).find_map(|hidden| {
        let around = read.iter().find(|read| hidden.starts_with(read))?;
        Some((hidden.display().to_string(), around.display().to_string()))
    });
    found.map(|(hidden, around)| {
        format!(
            "{hidden} lies beneath {around}, and is hidden from the front: users, policy or \
             configuration that are replaced there are read only at the next start"
        )
    })
}

/// Makes a directory that is its owner's alone, if it is not there, and sees it safely on disk.
fn make_private(directory: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(directory)?;
    // The umask may have taken more away than is good. A unit's filter may refuse to change any mode.
    if directory.metadata()?.permissions().mode() & 0o777 != 0o700 {
        std::fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    }
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}
