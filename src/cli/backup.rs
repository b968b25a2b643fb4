//! `strongroom backup …`: what can be typed; and making one, which asks the daemon.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueHint};
use serde::Serialize;
use serde_json::Value;

use super::Session;
use super::dry_run::DryRun;
use super::problem::Failure;
use crate::backup::Archive;

/// Where the configuration lies unless it is said.
pub const DEFAULT_CONFIG: &str = "/etc/strongroom/strongroom.toml";

/// Make backups of store and trail, verify them, and put them back
///
/// A backup holds nothing that opens without the token: keep the token's own backup, or its clone,
/// somewhere else. A backup is good once it was verified.
#[derive(Subcommand)]
pub enum Backup {
    Create(Create),
    Verify(Verify),
    Restore(Restore),
}

/// Have the daemon make a backup, of one moment, while it goes on serving
///
/// Afterwards the backup is verified where this user may: with the configuration and the PIN that it
/// names. Until then it is not called good.
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom backup create --to strongroom-$(date +%F).backup
  strongroom backup create --to /mnt/safe/today.backup --verify")]
pub struct Create {
    /// The file to write; nothing is overwritten
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub to: PathBuf,
    /// Fail where it cannot be verified right away
    #[arg(long)]
    pub verify: bool,
    /// Leave the verification for later
    #[arg(long, conflicts_with = "verify")]
    pub no_verify: bool,
    #[command(flatten)]
    pub by: By,
}

/// Restore a backup into a scratch place and open every key in it; exits with 1 unless all is well
///
/// Asks the token, not the daemon, which may be running or not. Every file of the archive is held against
/// its digest, the manifest against its signature, the trail is verified, and every wrapped key and sealed
/// record is opened. What does not hold is named.
#[derive(Args)]
#[command(after_help = "Examples:
  strongroom backup verify today.backup
  strongroom backup verify today.backup --config strongroom.toml --pin-file /root/pin")]
pub struct Verify {
    /// The backup
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    #[command(flatten)]
    pub by: By,
}

/// Put store and trail back from a backup, into empty directories, for a daemon that does not run
///
/// What lies there is moved away first, by hand, and stays yours to keep or to put back. The backup is
/// verified where it is unpacked; where it is not good, the directories are empty again. At its next start
/// the daemon writes into the trail what happened. As root it becomes the owner of the directories, or of
/// the one that they are to lie in. One that is cut off is deleted and done again.
///
/// What was done after the backup is undone by it: keys that were destroyed since are there again.
#[derive(Args)]
#[command(after_help = "Example:
  systemctl stop strongroom.socket strongroom-custody.socket strongroom strongroom-custody
  cd /var/lib/strongroom && mv store store.old && mv trail trail.old
  strongroom backup restore today.backup --previous-trail /var/lib/strongroom/trail.old
  systemctl start strongroom")]
pub struct Restore {
    /// The backup
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The trail that was moved away: its last line is named in the new one, and what it tells is undone
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub previous_trail: Option<PathBuf>,
    /// Put it back although some of it is broken; what is broken stays so
    #[arg(long)]
    pub accept_broken: bool,
    #[command(flatten)]
    pub dry: DryRun,
    #[command(flatten)]
    pub by: By,
}

/// A backup that was made.
#[derive(Serialize)]
pub struct Made {
    file: PathBuf,
    appliance: String,
    created_at: jiff::Timestamp,
    addresses: u64,
    /// The last line of the trail in it, and its hash.
    trail_head: String,
    bytes: u64,
}

/// The same with what became of its verification, for programs.
#[derive(Serialize)]
pub struct Created {
    #[serde(flatten)]
    made: Made,
    /// What `backup verify` says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<Value>,
    /// Why it was not verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_verified: Option<String>,
}

impl Created {
    /// Nothing is known of it yet.
    pub fn of(made: Made) -> Self {
        Self { made, verification: None, not_verified: None }
    }
}

/// How the token is reached, and where there is room.
#[derive(Args, Clone)]
pub struct By {
    /// The configuration that names token, store and trail
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG, value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// Where to read the token's PIN from, in place of what the configuration says
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub pin_file: Option<PathBuf>,
    /// Where to make the scratch place: with room for the store and the trail
    #[arg(long, value_name = "DIR", default_value = "/var/tmp", value_hint = ValueHint::DirPath)]
    pub scratch: PathBuf,
    /// The audit log need not begin with line 1: older files were moved away, as for `audit verify --partial`
    #[arg(long)]
    pub partial: bool,
}

impl Create {
    /// The verification that follows.
    pub fn verification(&self) -> Verify {
        Verify { file: self.to.clone(), by: self.by.clone() }
    }

    pub(super) fn run(&self, session: &Session) -> Result<Made, Failure> {
        if self.to.exists() {
            return Err(is_there(&self.to));
        }
        let part = Unfinished::create(&self.to)?;
        let mut file = BufWriter::with_capacity(1 << 20, &part.file);
        let unwritable = |error: std::io::Error| unwritable(&self.to, &error);
        let (mut written, mut looked_at) = (0, 0);
        session.client.download("/v1/backup", |piece| {
            written += piece.len();
            if written >= looked_at + LOOK_EVERY {
                looked_at = written;
                must_leave_room(&part.file).map_err(|why| no_room(&self.to, &why))?;
            }
            file.write_all(piece).map_err(unwritable)
        })?;
        file.flush().and_then(|()| part.file.sync_all()).map_err(unwritable)?;
        drop(file);
        let (archive, damages) = Archive::open(&part.path)
            .map_err(|error| Failure::failed(error.to_string(), "make another one"))?;
        if let Some((name, damage)) = damages.first() {
            return Err(Failure::failed(format!("{name}: {damage}"), "make another one"));
        }
        part.keep(&self.to).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => is_there(&self.to),
            _ => unwritable(error),
        })?;
        let manifest = &archive.manifest;
        let made = Made {
            file: self.to.clone(),
            appliance: manifest.appliance.clone(),
            created_at: manifest.created_at,
            addresses: manifest.addresses,
            trail_head: manifest.trail.head.clone(),
            bytes: archive.bytes,
        };
        if !session.out.is_json() {
            session.out.text(&made.text())?;
        }
        Ok(made)
    }
}

impl Made {
    fn text(&self) -> String {
        format!(
            "{}: appliance {}, {:.0}, {} addresses, trail up to line {}, {} KiB\n",
            self.file.display(),
            self.appliance,
            self.created_at,
            self.addresses,
            self.trail_head.split(':').next().unwrap_or_default(),
            self.bytes.div_ceil(1024),
        )
    }
}

/// Bytes of an answer between two looks at the room that is left for it.
const LOOK_EVERY: usize = 1 << 20;

/// Bytes that the disk keeps free whatever the daemon answers; of a small disk, a twentieth.
const KEPT_FREE: u64 = 256 << 20;

/// An answer has no length that is known before. One without an end must not fill a disk that others write to.
fn must_leave_room(file: &File) -> Result<(), String> {
    let Ok(disk) = nix::sys::statvfs::fstatvfs(file) else { return Ok(()) };
    let unit = disk.fragment_size();
    let kept = KEPT_FREE.min(disk.blocks().saturating_mul(unit) / 20);
    match disk.blocks_available().saturating_mul(unit) > kept {
        true => Ok(()),
        false => Err(format!("it would leave the disk less than {} MiB free", kept >> 20)),
    }
}

fn no_room(path: &Path, why: &str) -> Failure {
    Failure::failed(
        format!("the backup was given up: {why} ({})", path.display()),
        "name a file on a disk with room for store and audit log; if there is more than that, the daemon is not to \
         be trusted",
    )
}

/// A file that is still written, under a name of its own; it goes if it is not kept.
struct Unfinished {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Unfinished {
    fn create(to: &Path) -> Result<Self, Failure> {
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(format!(".part-{}", std::process::id()));
        let path = to.with_file_name(name);
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|error| unwritable(&path, &error))?;
        Ok(Self { path, file, kept: false })
    }

    /// Gives it its name, durably. Another one that got that name meanwhile stays what it is.
    fn keep(mut self, to: &Path) -> std::io::Result<()> {
        match std::fs::hard_link(&self.path, to) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Err(error),
            // A file system without links.
            Err(_) if !to.exists() => {
                std::fs::rename(&self.path, to)?;
                self.kept = true;
            }
            Err(error) => return Err(error),
        }
        let directory = to.parent().filter(|path| !path.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed is named for what it is.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn is_there(path: &Path) -> Failure {
    let what = format!("{} is there already", path.display());
    Failure::failed(what, "nothing is overwritten: give another name")
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    let what = format!("{} cannot be written: {error}", path.display());
    Failure::failed(what, "choose a place that can be written and has room")
}
