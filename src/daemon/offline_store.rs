//! The store of an offline command: opened by a process of its own that is the owner of its directory, and
//! shut in with that. Whoever has the private key, or the token, asks it.

use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

use super::backup::unfinished_restore;
use super::offline::{absolute, shut_in, user_of};
use super::{DaemonError, io};
use crate::sandbox::{self, User, trusted};
use crate::secret;
use crate::store::sled_store::{Settings, SledStore};
use crate::store::{Served, Store, StoreError, serve};

/// The process that has the store open; it ends when nobody asks any more.
pub struct StoreProcess(Pid);

impl StoreProcess {
    /// Waits for its end, after which the store is closed. To be called once nobody holds the store.
    pub fn wait(self) {
        let _ = waitpid(self.0, None);
    }
}

/// Splits the process off. This one must have one thread, and nothing that is to be kept from it.
///
/// # Errors
/// Why the store could not be opened.
#[allow(unsafe_code)] // fork(2)
pub fn open_apart(
    settings: &Settings,
    sandbox: &sandbox::Settings,
) -> Result<(Arc<dyn Store>, StoreProcess), DaemonError> {
    let mut settings = settings.clone();
    settings.path = absolute(&settings.path)?;
    let user = user_of(&settings.path)?;
    user.check()?;
    let (ours, theirs) = UnixStream::pair().map_err(io("splitting off the store"))?;
    let failed = |errno: nix::errno::Errno| io("splitting off the store")(errno.into());
    // SAFETY: there is one thread, so the child finds every lock as it should be.
    match unsafe { fork() }.map_err(failed)? {
        ForkResult::Parent { child } => {
            drop(theirs);
            let opened = Served::over(ours);
            if opened.is_err() {
                let _ = waitpid(child, None);
            }
            Ok((Arc::new(opened?), StoreProcess(child)))
        }
        ForkResult::Child => {
            drop(ours);
            let served = keep(&settings, sandbox, &user, theirs);
            std::process::exit(i32::from(served.is_err()))
        }
    }
}

/// The child's part.
fn keep(
    settings: &Settings,
    sandbox: &sandbox::Settings,
    user: &User,
    stream: UnixStream,
) -> std::io::Result<()> {
    let _ = prctl::set_name(c"store");
    let opened = open(settings, sandbox, user);
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    match opened {
        Ok(store) => serve(Ok(&store), stream),
        Err(error) => serve(Err(in_words(error)), stream),
    }
}

fn in_words(error: DaemonError) -> StoreError {
    match error {
        DaemonError::Store(error) => error,
        other => StoreError::Served { what: other.to_string() },
    }
}

fn open(
    settings: &Settings,
    sandbox: &sandbox::Settings,
    user: &User,
) -> Result<SledStore, DaemonError> {
    // It adds the store up with a key.
    secret::start(&secret::Settings::default(), secret::Use::Front)?;
    let mut settings = settings.clone();
    let shown = settings.path.display().to_string();
    enter(&settings.path, user)?;
    settings.path = PathBuf::from(".");
    let none = || StoreError::Served { what: format!("{shown} holds no store") };
    // A mistyped path must not make a new, empty store.
    let found = settings.path.join("db").symlink_metadata().map_err(|_| none())?;
    if !found.is_file() {
        return Err(none().into());
    }
    if unfinished_restore(&settings.path, &settings.path).is_err() {
        let what = format!("a restore into {shown} was cut off, or goes on");
        return Err(StoreError::Served { what }.into());
    }
    shut_in(sandbox, user, vec![settings.path.clone()], Vec::new())?;
    Ok(SledStore::open(&settings)?)
}

/// Goes into the directory, as its owner. A copy may lie where its owner cannot go, such as root's own
/// directory: root opens it there, where all on the way is root's.
fn enter(path: &Path, user: &User) -> Result<(), DaemonError> {
    let failed = io("opening the store's directory");
    let parent = path.parent().unwrap_or(path);
    let is_roots = !user.is_current() && trusted::check_directory(parent).is_ok();
    let directory = match is_roots {
        true => Some(directory(path).map_err(&failed)?),
        false => None,
    };
    user.assume()?;
    let directory = match directory {
        Some(directory) => directory,
        None => directory_of(path).map_err(&failed)?,
    };
    nix::unistd::fchdir(&directory).map_err(|errno| failed(errno.into()))
}

fn directory_of(path: &Path) -> std::io::Result<OwnedFd> {
    // A link in its place is whoever's process this is now: it leads nowhere that its owner may not go.
    Ok(std::fs::File::options().read(true).custom_flags(libc::O_DIRECTORY).open(path)?.into())
}

fn directory(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    Ok(std::fs::File::options().read(true).custom_flags(flags).open(path)?.into())
}
