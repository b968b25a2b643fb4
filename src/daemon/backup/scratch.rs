//! A directory of its own for the time of a verification, and a custody that works for it.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::DaemonError;
use super::super::child::CustodyChild;
use super::super::config::Config;
use super::super::logging::{Level, TargetChoice};
use super::{BackupError, at};
use crate::custody::{Client, LinkSettings, LinkState, Spawn, Wanted};
use crate::records::HomeRecord;

/// A private directory that goes with this, and who starts a custody for it.
pub struct Scratch {
    directory: PathBuf,
    custody: Option<CustodyChild>,
}

/// How long custody may take to open the token.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long one answer may take: nobody waits for a single key here.
const DEADLINE: Duration = Duration::from_secs(60);

impl Scratch {
    /// Makes one in `parent`. This process must have one thread: who starts custody is split off it.
    pub fn make(parent: &Path, config: &Config) -> Result<Self, DaemonError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|_| at(parent)(std::io::Error::other("no random numbers")))?;
        let name = format!("strongroom-{:016x}", u64::from_ne_bytes(random));
        let directory = parent.join(name);
        let made = std::fs::DirBuilder::new().mode(0o700).create(&directory);
        made.map_err(at(&directory))?;
        let mut scratch = Self { directory, custody: None };
        let file = scratch.path("custody.toml");
        let mut own = config.clone();
        own.custody.socket = scratch.path("custody.sock");
        // What the appliance's own custody remembers is not this one's to read or change.
        own.custody.state_directory = scratch.path("custody-state");
        (own.custody.front_user, own.custody.custody_user) = (None, None);
        own.custody.spawn = Spawn::Never;
        (own.log.target, own.log.level) = (TargetChoice::Stderr, Level::Error);
        write_private(&file, &own)?;
        scratch.custody = Some(CustodyChild::prepare(&file, &own.log)?);
        Ok(scratch)
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Has custody started and brought to this home; it ends with this.
    pub async fn custody(&mut self, home: &HomeRecord) -> Result<Client, DaemonError> {
        if let Some(custody) = &mut self.custody {
            custody.begin()?;
        }
        let link = LinkSettings {
            socket: self.path("custody.sock"),
            deadline: DEADLINE,
            custody_uid: nix::unistd::geteuid().as_raw(),
            max_outage_grace_seconds: 0,
        };
        let client = Client::start(link, Wanted::Unlocked(Some(home.for_custody())));
        opened(&client).await?;
        Ok(client)
    }

    /// Ends custody.
    pub fn end_custody(&mut self) {
        self.custody = None;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.end_custody();
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::error!(path = %self.directory.display(), %error, "it could not be removed");
        }
    }
}

/// Waits until custody has opened the token and found this appliance's keys in it.
async fn opened(client: &Client) -> Result<(), DaemonError> {
    let mut states = client.watch();
    let mut last = String::from("custody did not come");
    let settled = async {
        loop {
            match &*states.borrow_and_update() {
                LinkState::Unlocked { .. } => return Ok(()),
                LinkState::PinRefused(why)
                | LinkState::PinUnavailable(why)
                | LinkState::Unfit(why) => return Err(why.clone()),
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

fn write_private(path: &Path, config: &Config) -> Result<(), DaemonError> {
    let text = toml::to_string(config).map_err(|error| at(path)(std::io::Error::other(error)))?;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(at(path))?;
    Ok(())
}
