//! A directory of its own for the time of a verification, and a custody that works for it.
//!
//! Three users share it: whoever made it (root, as a rule), who owns it and removes it; the one whose store
//! and trail are looked at, who works in one directory of it; and custody's, who reads its configuration
//! there and cannot write.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, setsockopt, socket, sockopt,
};

use super::super::DaemonError;
use super::super::child::{CustodyChild, Start};
use super::super::config::Config;
use super::super::logging::{Level, TargetChoice};
use super::super::offline::Users;
use super::{BackupError, at};
use crate::custody::{Client, LinkSettings, LinkState, Spawn, Wanted};
use crate::records::HomeRecord;
use crate::sandbox::{User, trusted};
use crate::secret::Pin;

/// A private directory that goes with this, and who starts a custody for it.
pub struct Scratch {
    directory: PathBuf,
    custody_uid: u32,
    /// The PIN, where custody cannot read it by itself.
    pin: Option<Pin>,
    custody: Option<CustodyChild>,
}

/// How long custody may take to open the token.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long one answer may take: nobody waits for a single key here.
const DEADLINE: Duration = Duration::from_secs(60);

/// What lies in it: where store and trail are unpacked, custody's configuration, socket, and state.
const STATE: &str = "custody-state";
const WORK: &str = "work";
const CONFIG: &str = "custody.toml";
const SOCKET: &str = "custody.sock";

impl Scratch {
    /// Makes one in `parent`. This process must have one thread: who starts custody is split off it.
    pub fn make(parent: &Path, config: &Config, users: &Users) -> Result<Self, DaemonError> {
        let parent = trusted::check_place(parent).map_err(BackupError::Place)?;
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|_| at(&parent)(std::io::Error::other("no random numbers")))?;
        let name = format!("strongroom-{:016x}", u64::from_ne_bytes(random));
        let directory = parent.join(name);
        make_directory(&directory)?;
        let made = Self::fill(&directory, config, users);
        if made.is_err() {
            remove(&directory);
        }
        made
    }

    fn fill(directory: &Path, config: &Config, users: &Users) -> Result<Self, DaemonError> {
        let Users { front, custody } = users;
        let work = directory.join(WORK);
        make_directory(&work)?;
        if !front.is_current() {
            chown(&work, Some(front.uid), Some(front.gid)).map_err(at(&work))?;
        }
        let mut own = config.clone();
        own.custody.socket = directory.join(SOCKET);
        // What the appliance's own custody remembers is not this one's to read or change.
        own.custody.state_directory = directory.join(STATE);
        own.custody.forgets = true;
        make_directory(&own.custody.state_directory)?;
        if !custody.is_current() {
            let state = &own.custody.state_directory;
            chown(state, Some(custody.uid), Some(custody.gid)).map_err(at(state))?;
        }
        own.custody.front_user = Some(front.uid.to_string());
        own.custody.custody_user = Some(custody.uid.to_string());
        own.custody.spawn = Spawn::Never;
        (own.log.target, own.log.level) = (TargetChoice::Stderr, Level::Error);
        let file = directory.join(CONFIG);
        write_private(&file, &own, custody)?;
        let listener = listen_for(&own.custody.socket, front).map_err(at(&own.custody.socket))?;
        if !(front.is_current() && custody.is_current()) {
            // What lies in it is closed by its own modes.
            let reachable = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(directory, reachable).map_err(at(directory))?;
        }
        let user = (!custody.is_current()).then(|| custody.clone());
        let start = Start { config: file, user, listener: Some(listener) };
        let place = directory.to_owned();
        let custody_child = CustodyChild::prepare_with(start, &own.log, move || remove(&place))?;
        let directory = directory.to_owned();
        Ok(Self { directory, custody_uid: custody.uid, pin: None, custody: Some(custody_child) })
    }

    /// Where store and trail may be unpacked.
    pub fn work(&self) -> PathBuf {
        self.directory.join(WORK)
    }

    /// Custody is given this PIN.
    pub fn give(&mut self, pin: Option<Pin>) {
        self.pin = pin;
    }

    /// The socket that custody is reached at.
    pub fn socket(&self) -> PathBuf {
        self.directory.join(SOCKET)
    }

    /// Has custody started and brought to this home; it ends with this.
    pub async fn custody(&mut self, home: &HomeRecord) -> Result<Client, DaemonError> {
        if let Some(custody) = &mut self.custody {
            custody.begin(None)?;
        }
        let link = LinkSettings {
            socket: self.socket(),
            dialer: crate::custody::Dialer::Itself,
            deadline: DEADLINE,
            custody_uid: self.custody_uid,
            max_outage_grace_seconds: 0,
        };
        let client = Client::start(link, Wanted::Unlocked(Some(home.for_custody())));
        self.opened(&client, home).await?;
        Ok(client)
    }

    /// Waits until custody has opened the token and found this appliance's keys in it.
    async fn opened(&mut self, client: &Client, home: &HomeRecord) -> Result<(), DaemonError> {
        let mut states = client.watch();
        let mut last = String::from("custody did not come");
        let settled = async {
            loop {
                let state = states.borrow_and_update().clone();
                match state {
                    LinkState::Unlocked { .. } => return Ok(()),
                    LinkState::PinUnavailable(why) => {
                        let pin = self.pin.take().ok_or(why)?;
                        let home = Some(home.for_custody());
                        let unlocked = client.unlock(client.locks(), home, Some(pin)).await;
                        return unlocked.map_err(|error| error.to_string());
                    }
                    LinkState::PinRefused(why) | LinkState::Unfit(why) => return Err(why),
                    LinkState::Locked => return Err("custody is locked".to_owned()),
                    LinkState::Down(why) | LinkState::BrownOut { outage: why, .. } => {
                        last = why.to_string();
                    }
                }
                if states.changed().await.is_err() {
                    return Err("custody is gone".to_owned());
                }
            }
        };
        let waited = tokio::time::timeout(PATIENCE, settled).await;
        waited.unwrap_or(Err(last)).map_err(|why| BackupError::Token(why).into())
    }
}

impl Drop for Scratch {
    /// Who works in it empties it; the rest goes with custody's supervisor.
    fn drop(&mut self) {
        let work = self.work();
        if let Err(error) = super::empty(&work) {
            tracing::error!(path = %work.display(), %error, "it could not be emptied");
        }
        self.custody = None;
    }
}

/// Removes what its maker put there, and custody's state, by descriptors; what others left in the directory of
/// theirs stays with it.
fn remove(directory: &Path) {
    for file in [CONFIG, SOCKET] {
        let _ = std::fs::remove_file(directory.join(file));
    }
    let _ = std::fs::remove_dir_all(directory.join(STATE));
    let removed =
        std::fs::remove_dir(directory.join(WORK)).and_then(|()| std::fs::remove_dir(directory));
    if let Err(error) = removed {
        tracing::error!(path = %directory.display(), %error, "it could not be removed");
    }
}

fn make_directory(path: &Path) -> Result<(), BackupError> {
    std::fs::DirBuilder::new().mode(0o700).create(path).map_err(at(path))
}

/// A socket that only this user may connect to, listening; custody takes it over.
fn listen_for(path: &Path, front: &User) -> std::io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    if !front.is_current() {
        chown(path, Some(front.uid), Some(front.gid))?;
    }
    // From the first connection on, custody is told who sends.
    setsockopt(&fd, sockopt::PassCred, &true)?;
    listen(&fd, Backlog::new(8)?)?;
    Ok(fd)
}

/// For custody to read, and for nobody to change.
fn write_private(path: &Path, config: &Config, custody: &User) -> Result<(), DaemonError> {
    let text = toml::to_string(config).map_err(|error| at(path)(std::io::Error::other(error)))?;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| {
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        if custody.is_current() {
            return Ok(());
        }
        chown(path, None, Some(custody.gid))?;
        file.set_permissions(std::fs::Permissions::from_mode(0o640))
    })
    .map_err(at(path))?;
    Ok(())
}
