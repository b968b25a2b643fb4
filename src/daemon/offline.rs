//! Who does a daemon's work where there is none. Root that restores, verifies, examines or reseals becomes
//! the users that the daemon's processes run as, each for its own part, before anything of theirs is opened:
//! what they may not do, they cannot have root do for them.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::config::Config;
use super::logging::Target;
use super::needs::needs;
use super::{DaemonError, io};
use crate::custody::{self, Surroundings, softhsm_configuration};
use crate::sandbox::{self, Needs, Sockets, User, trusted};
use crate::secret::Pin;
use crate::token::{self, PinError, read_pin};

/// The two users.
#[derive(Debug, Clone)]
pub struct Users {
    /// Whose store and trail are.
    pub front: User,
    /// Whose token is.
    pub custody: User,
}

impl Users {
    /// As the configuration and the owners of its directories say; this process must be able to become them.
    pub fn of(config: &Config) -> Result<Self, DaemonError> {
        let [front, trail] = [user_of(&config.store.path)?, user_of(&config.audit.directory)?];
        if front.uid != trail.uid {
            return Err(DaemonError::Said {
                what: format!(
                    "{} is uid {}'s, and {} is uid {}'s: one user must own both",
                    config.store.path.display(),
                    front.uid,
                    config.audit.directory.display(),
                    trail.uid
                ),
                next: "give both to the user that the daemon runs as: chown -R USER: DIR",
            });
        }
        let custody = match config.custody.custody_user.as_deref() {
            Some(user) if User::current().uid == 0 => User::of_uid(custody::resolve(Some(user))?),
            _ => front.clone(),
        };
        Ok(Self { front, custody })
    }
}

/// Who works in a directory, where root does it offline.
pub fn user_of(path: &Path) -> Result<User, DaemonError> {
    Ok(trusted::user_of(path)?)
}

/// Root makes and opens nothing in a directory that a lesser user owns: that user is to run the daemon.
pub fn must_be_own(path: &Path) -> Result<(), DaemonError> {
    let user = user_of(path)?;
    match user.is_current() {
        true => Ok(()),
        false => Err(DaemonError::Said {
            what: format!(
                "{} belongs to uid {}, or lies in a directory of theirs: root does not work there",
                path.display(),
                user.uid
            ),
            next: "run the daemon as that user, or give the directories to root",
        }),
    }
}

/// The PIN, where the one who typed the command may read it: a file of root's, in directories of root's.
/// Elsewhere it is custody's user who reads it.
pub fn pin_of_root(config: &Config) -> Result<Option<Pin>, DaemonError> {
    let settings = &config.token;
    if User::current().uid != 0 || settings.pin_credential.is_some() {
        return Ok(None);
    }
    let Some(path) = &settings.pin_file else { return Ok(None) };
    match trusted::check_file(path) {
        Ok(()) => read_pin(settings, None).map(Some).map_err(|error| DaemonError::Said {
            what: error.to_string(),
            next: "put the PIN where [token] pin_file says, or name its file with --pin-file",
        }),
        // It is not root's alone, or not there: whoever opens it says so.
        Err(_) => Ok(None),
    }
}

/// The PIN of a process that has become custody's user.
pub fn pin_of_custody(settings: &token::Settings, given: Option<Pin>) -> Result<Pin, PinError> {
    match given {
        Some(pin) => Ok(pin),
        None => read_pin(settings, around().credentials.as_deref()),
    }
}

/// What custody would be handed.
pub fn around() -> Surroundings {
    let named = |variable| std::env::var_os(variable).map(PathBuf::from);
    Surroundings {
        credentials: named("CREDENTIALS_DIRECTORY"),
        state: None,
        softhsm: softhsm_configuration(),
        accepts_history: false,
        journal: false,
    }
}

/// Has something looked at as another user, in a process of its own that ends with it, and returns what it
/// found; as this user, at once. This process must have one thread.
pub fn in_child<T: Serialize + DeserializeOwned>(
    user: &User,
    look: impl FnOnce() -> T,
) -> Result<T, DaemonError> {
    match user.is_current() {
        true => Ok(look()),
        false => apart(user, || Ok(look())),
    }
}

/// The same under the restrictions of a front with this configuration: as its user, in its sandbox. What is
/// found there is what the front will find, users and groups of the name service included. This process must
/// have one thread.
pub fn as_front<T: Serialize + DeserializeOwned>(
    path: &Path,
    config: &Config,
    look: impl FnOnce() -> T,
) -> Result<T, DaemonError> {
    let named = config.custody.front_user.as_deref().filter(|_| User::current().uid == 0);
    let user = match named.map(|name| custody::resolve(Some(name))) {
        Some(Ok(uid)) => User::of_uid(uid),
        _ => user_of(&config.store.path)?,
    };
    apart(&user, || {
        let needs = needs(path, config, Target::Stderr);
        sandbox::enter(&config.sandbox, &needs).map_err(|error| error.to_string())?;
        Ok(look())
    })
}

/// In a process of its own, which becomes this user first.
#[allow(unsafe_code)] // fork(2)
fn apart<T: Serialize + DeserializeOwned>(
    user: &User,
    look: impl FnOnce() -> Result<T, String>,
) -> Result<T, DaemonError> {
    /// The longest account that is taken, in bytes.
    const LONGEST: u64 = 1 << 20;
    let failed = io("looking under the daemon's restrictions");
    let (mut reader, writer) = std::io::pipe().map_err(&failed)?;
    // SAFETY: there is one thread, so the child finds every lock as it should be.
    match unsafe { fork() }.map_err(|errno| failed(errno.into()))? {
        ForkResult::Parent { child } => {
            drop(writer);
            let mut text = Vec::new();
            let read = (&mut reader).take(LONGEST).read_to_end(&mut text);
            drop(reader);
            let _ = waitpid(child, None);
            read.map_err(&failed)?;
            let found: Result<T, String> = serde_json::from_slice(&text)
                .map_err(|error| failed(std::io::Error::other(error)))?;
            found.map_err(|what| DaemonError::Said {
                what,
                next: "see [sandbox] of the configuration, and run it as root or as the daemon's user",
            })
        }
        ForkResult::Child => {
            drop(reader);
            let found = user.assume().map_err(|error| error.to_string()).and_then(|()| look());
            let told = serde_json::to_vec(&found).map_err(std::io::Error::other);
            let told = told.and_then(|text| (&writer).write_all(&text));
            std::process::exit(i32::from(told.is_err()))
        }
    }
}

/// Becomes the user whose directories these are, for good, and shuts the process in with them. It must have
/// one thread.
pub fn shut_in(
    settings: &sandbox::Settings,
    user: &User,
    write: Vec<PathBuf>,
    read: Vec<PathBuf>,
) -> Result<(), DaemonError> {
    user.assume()?;
    let needs = Needs { read, write, sockets: Sockets::Local, ..Needs::default() };
    sandbox::enter(settings, &needs)?;
    crate::secret::harden_process()?;
    Ok(())
}

/// Becomes custody's user, for good, and is shut in as custody is. It must have one thread; the limit of
/// locked memory, which root does not have, is raised before.
pub fn become_custody(config: &Config, user: &User) -> Result<(), DaemonError> {
    if !user.is_current() {
        // A root that may not leaves the limit as it is.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    }
    user.assume()?;
    let mut needs = custody::needs(&config.custody.sandbox, &config.token, &around());
    // Where a person may have to agree.
    needs.read.push(PathBuf::from("/dev/tty"));
    sandbox::enter(&config.sandbox, &needs)?;
    crate::secret::harden_process()?;
    Ok(())
}

/// A path as the root of the file system sees it.
pub fn absolute(path: &Path) -> Result<PathBuf, DaemonError> {
    std::path::absolute(path).map_err(io("looking up the working directory"))
}
