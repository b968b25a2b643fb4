//! `strongroom backup verify` and `restore`: a backup is opened in a scratch place of its own, with a
//! custody of its own, and put in its place.

mod examine;
mod mounts;
mod plan;
mod report;
mod restore;
mod scratch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use restore::restore_backup;

use super::DaemonError;
use super::config::Config;
use super::logging::Logs;
use crate::backup::{Archive, ArchiveError};
use crate::cli::{self, CreateBackup, Created, Global, Made, Report, Verify};
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
    #[error("Strongroom is running here ({} is locked)", .0.display())]
    Running(PathBuf),
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    #[error(
        "another appliance lies here ({there}; the backup is of {backup}): is it the right place?"
    )]
    Other { there: String, backup: String },
    #[error(
        "a restore was cut off while it was put in its place ({})", .0.display()
    )]
    CutOff(PathBuf),
    #[error(
        "a restore was begun and never put in its place: {} is there", .0.display()
    )]
    Begun(PathBuf),
    #[error("{} is a mount point, which cannot be moved aside", .0.display())]
    MountPoint(PathBuf),
    #[error("there is no restore to finish, nor to abandon")]
    NothingToFinish,
    #[error("{} and {} are both there", from.display(), to.display())]
    Both { from: PathBuf, to: PathBuf },
    #[error("the plan {} cannot be read", .0.display())]
    Plan(PathBuf),
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
}

/// Names the path of an I/O error.
fn at(path: &Path) -> impl Fn(std::io::Error) -> BackupError + '_ {
    move |error| BackupError::Io { path: path.to_owned(), error }
}

/// Whether a restore stands half-done beside this store: no appliance is to be started then.
pub fn unfinished_restore(store: &Path) -> Result<(), BackupError> {
    let plan = plan::path(store);
    if plan.exists() {
        return Err(BackupError::CutOff(plan));
    }
    let begun = restore::sibling(store);
    if begun.exists() { Err(BackupError::Begun(begun)) } else { Ok(()) }
}

/// Verifies a backup.
pub fn verify_backup(arguments: &Verify) -> Result<Report, DaemonError> {
    let mut config = Config::load(&arguments.by.config)?.config;
    config.use_pin_file(arguments.by.pin_file.as_deref());
    let mut scratch = Scratch::make(&arguments.by.scratch, &config)?;
    let _logs = come_up(&config)?;
    let (archive, damages) = Archive::open(&arguments.file).map_err(BackupError::from)?;
    let places = Places { store: scratch.path("store"), trail: scratch.path("trail") };
    let examined = examine::examine(&archive, damages, &config, &places, &mut scratch, None)?;
    let told = Told::of(&archive, &examined, &arguments.file);
    Ok(Report::new(told.text(), &told, examined.is_good()))
}

/// The second half of `strongroom backup create`: verifies what was made, where this user may.
pub fn verify_created(global: &Global, create: &CreateBackup, made: Made) -> ExitCode {
    let (mut created, wants_json) = (Created::of(made), global.output == cli::Format::Json);
    let obstacle = if create.verify { None } else { obstacle(create) };
    let verified = match obstacle {
        Some(why) => {
            let (file, config) = (create.to.display(), create.by.config.display());
            if !wants_json {
                eprintln!(
                    "not verified ({why}): it is good once this says so:\n  strongroom backup verify \
                     {file} --config {config}{}",
                    pin_option(create)
                );
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

/// Makes the process fit to work with custody, as the front is. Its logs are written until they are dropped.
fn come_up(config: &Config) -> Result<Logs, DaemonError> {
    let quiet = super::logging::Settings {
        target: super::logging::TargetChoice::Stderr,
        level: super::logging::Level::Error,
    };
    let logs = super::logging::start(&quiet)?;
    logs.write();
    let arena = arena::Settings { size_bytes: 1024 * 1024, ..config.custody.arena.clone() };
    secret::start(&arena, Use::Front)?;
    secret::harden_process()?;
    Ok(logs)
}
