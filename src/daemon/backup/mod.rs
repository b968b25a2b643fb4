//! `strongroom backup verify` and `restore`: a backup is opened in a scratch place of its own, with a
//! custody of its own, and put in its place.

mod examine;
mod report;
mod restore;
mod scratch;

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use restore::restore_backup;

use super::DaemonError;
use super::config::Config;
use super::logging::Logs;
use super::offline::{Users, pin_of_root, shut_in};
use super::unit::take_over_environment;
use crate::backup::{Archive, ArchiveError};
use crate::cli::{self, CreateBackup, Created, Global, Made, Report, Verify};
use crate::sandbox::Untrusted;
use crate::secret::{self, Use, arena};
use examine::Places;
use report::Told;
use scratch::Scratch;

/// Why a backup was not verified or put back.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("the backup holds no appliance that was initialised")]
    NoAppliance,
    #[error("the token cannot open this backup: {0}")]
    Token(String),
    #[error("{} is not empty; a restore goes into empty directories alone", .0.display())]
    NotEmpty(PathBuf),
    #[error("a restore into {} was cut off, or goes on", store.display())]
    CutOff { store: PathBuf, trail: PathBuf },
    #[error("the scratch place must be one where nobody can replace what lies in it: {0}")]
    Place(Untrusted),
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
}

/// Names the path of an I/O error.
fn at(path: &Path) -> impl Fn(std::io::Error) -> BackupError + '_ {
    move |error| BackupError::Io { path: path.to_owned(), error }
}

/// The file that marks a directory as one that is being restored: it is made first and goes last.
const MARK: &str = "unfinished-restore";

/// What a file system has in its own root, where a directory is one.
const LOST_AND_FOUND: &str = "lost+found";

/// Whether a restore was cut off in these directories: no appliance is to be started from them then.
pub fn unfinished_restore(store: &Path, trail: &Path) -> Result<(), BackupError> {
    let is_marked = |directory: &Path| directory.join(MARK).symlink_metadata().is_ok();
    match is_marked(store) || is_marked(trail) {
        true => Err(BackupError::CutOff { store: store.to_owned(), trail: trail.to_owned() }),
        false => Ok(()),
    }
}

/// Verifies a backup.
pub fn verify_backup(arguments: &Verify) -> Result<Report, DaemonError> {
    take_over_environment(&arguments.by.config);
    let mut config = Config::load(&arguments.by.config)?.config;
    config.use_pin_file(arguments.by.pin_file.as_deref());
    let users = Users::of(&config)?;
    let file = open(&arguments.file)?;
    let mut scratch = Scratch::make(&arguments.by.scratch, &config, &users)?;
    come_up(&config)?;
    scratch.give(pin_of_root(&config)?);
    users.front.assume()?;
    let places = Places {
        store: scratch.work().join("store"),
        trail: scratch.work().join("trail"),
        partial: arguments.by.partial,
    };
    for place in [&places.store, &places.trail] {
        make_directory(place)?;
    }
    shut_in(&config.sandbox, &users.front, vec![scratch.work()], Vec::new())?;
    let _logs = speak_up()?;
    let (archive, damages) = Archive::of(file, &arguments.file).map_err(BackupError::from)?;
    let examined = examine::examine(&archive, damages, &config, &places, &mut scratch, None)?;
    let told = Told::of(&archive, &examined, &arguments.file);
    Ok(Report::new(told.text(), &told, examined.is_good()))
}

/// Opens the backup, while this process may: nothing but a file is read.
fn open(path: &Path) -> Result<File, BackupError> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(at(path))?;
    match file.metadata().map_err(at(path))?.is_file() {
        true => Ok(file),
        false => Err(at(path)(std::io::Error::other("it is not a file"))),
    }
}

fn make_directory(path: &Path) -> Result<(), BackupError> {
    std::fs::DirBuilder::new().mode(0o700).create(path).map_err(at(path))
}

/// Removes all that lies in a directory, by descriptors and without following a link; the directory stays.
fn empty(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == LOST_AND_FOUND {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(entry.path())?,
            false => std::fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// The second half of `strongroom backup create`: verifies what was made, where this user may.
pub fn verify_created(global: &Global, create: &CreateBackup, made: Made) -> ExitCode {
    let (mut created, wants_json) = (Created::of(made), global.output == cli::Format::Json);
    let obstacle = if create.verify { None } else { obstacle(create) };
    let verified = match obstacle {
        Some(why) => {
            let (file, config) = (create.to.display(), create.by.config.display());
            if !wants_json {
                cli::note(&format!(
                    "not verified ({why}): it is good once this says so:\n  strongroom backup verify \
                     {file} --config {config}{}",
                    pin_option(create)
                ));
            }
            created.not_verified = Some(why);
            Ok(Report::new("", &created, true))
        }
        None => verify_backup(&create.verification()),
    };
    match verified {
        Ok(report) if created.not_verified.is_none() && wants_json => {
            let well = report.is_well();
            created.verification = Some(report.into_document());
            super::told(global, Ok(Report::new("", &created, well)))
        }
        Err(error) if wants_json => {
            created.not_verified = Some(error.to_string());
            let made = super::told(global, Ok(Report::new("", &created, true)));
            if made == ExitCode::SUCCESS { super::told(global, Err(error)) } else { made }
        }
        verified => super::told(global, verified),
    }
}

/// What keeps this user from verifying.
fn obstacle(create: &CreateBackup) -> Option<String> {
    if create.no_verify {
        return Some("as asked for".to_owned());
    }
    let mut config = match Config::load(&create.by.config) {
        Ok(loaded) => loaded.config,
        Err(error) => return Some(error.to_string()),
    };
    config.use_pin_file(create.by.pin_file.as_deref());
    match config.token.pin_file.as_ref().filter(|_| config.token.pin_credential.is_none()) {
        Some(path) => std::fs::File::open(path)
            .err()
            .map(|error| format!("the PIN file {}: {error}", path.display())),
        None => Some("the PIN is a credential of custody's; see --pin-file".to_owned()),
    }
}

/// How the PIN is named to `verify`, where the configuration does not say it to whoever types that.
fn pin_option(create: &CreateBackup) -> String {
    match (&create.by.pin_file, Config::load(&create.by.config)) {
        (Some(path), _) => format!(" --pin-file {}", path.display()),
        (None, Ok(loaded)) if loaded.config.token.pin_credential.is_none() => String::new(),
        (None, Ok(_)) => " --pin-file FILE".to_owned(),
        (None, Err(_)) => " [--pin-file FILE, where the PIN is a credential]".to_owned(),
    }
}

/// Makes the process fit to work with custody, as the front is.
fn come_up(config: &Config) -> Result<(), DaemonError> {
    let arena = arena::Settings { size_bytes: 1024 * 1024, ..config.custody.arena.clone() };
    secret::start(&arena, Use::Front)?;
    Ok(secret::harden_process()?)
}

/// Errors alone are logged, once the process is shut in, and until the result is dropped.
fn speak_up() -> Result<Logs, DaemonError> {
    let quiet = super::logging::Settings {
        target: super::logging::TargetChoice::Stderr,
        level: super::logging::Level::Error,
    };
    let logs = super::logging::start(&quiet)?;
    logs.write();
    Ok(logs)
}
