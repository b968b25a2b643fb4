//! `strongroom backup verify` and `restore`: a backup is opened in a scratch place of its own, with a
//! custody of its own, and put in its place.

mod examine;
mod plan;
mod restore;
mod scratch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use restore::restore_backup;

use super::DaemonError;
use super::config::Config;
use crate::backup::{Archive, ArchiveError};
use crate::cli::{CreateBackup, Verify};
use crate::secret::{self, Use, arena};
use examine::{Examined, Places};
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
    #[error("Strongroom is running here ({} is locked): stop it first", .0.display())]
    Running(PathBuf),
    #[error(
        "{} is not empty: --replace moves what is there aside, under a dated name", .0.display()
    )]
    NotEmpty(PathBuf),
    #[error(
        "another appliance lies here ({there}; the backup is of {backup}): is it the right place? \
         --replace --other-appliance moves it aside"
    )]
    Other { there: String, backup: String },
    #[error(
        "a restore was cut off while it was put in its place: finish it with \
         `strongroom backup restore --finish` ({})", .0.display()
    )]
    CutOff(PathBuf),
    #[error(
        "a restore was begun and never put in its place: restore again, or remove {} to go on without it",
        .0.display()
    )]
    Begun(PathBuf),
    #[error("there is no restore to finish; restore again with the backup's name")]
    NothingToFinish,
    #[error("{} and {} are both there: one of them has to be moved away by hand", from.display(), to.display())]
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

/// Verifies a backup; the text for people, and whether it is good.
pub fn verify_backup(arguments: &Verify) -> Result<(String, bool), DaemonError> {
    let mut config = Config::load(&arguments.by.config)?.config;
    config.use_pin_file(arguments.by.pin_file.as_deref());
    let mut scratch = Scratch::make(&arguments.by.scratch, &config)?;
    come_up(&config)?;
    let (archive, damages) = Archive::open(&arguments.file).map_err(BackupError::from)?;
    let places = Places { store: scratch.path("store"), trail: scratch.path("trail") };
    let examined = examine::examine(&archive, damages, &config, &places, &mut scratch, None)?;
    Ok((told(&archive, &examined, &arguments.file), examined.is_good()))
}

/// The second half of `strongroom backup create`: verifies what was made, where this user may.
pub fn verify_created(create: &CreateBackup) -> ExitCode {
    let (file, by) = (create.to.display(), &create.by);
    if let (false, Some(why)) = (create.verify, obstacle(create)) {
        eprintln!(
            "not verified ({why}): it is good once this says so:\n  strongroom backup verify {file} \
             --config {}",
            by.config.display()
        );
        return ExitCode::SUCCESS;
    }
    let by = crate::cli::By {
        config: by.config.clone(),
        pin_file: by.pin_file.clone(),
        scratch: by.scratch.clone(),
    };
    super::told(verify_backup(&Verify { file: create.to.clone(), by }))
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
    match &config.token.pin_file {
        Some(path) => std::fs::File::open(path)
            .err()
            .map(|error| format!("the PIN file {}: {error}", path.display())),
        None => Some("the PIN is a credential of custody's; see --pin-file".to_owned()),
    }
}

/// Makes the process fit to work with custody, as the front is.
fn come_up(config: &Config) -> Result<(), DaemonError> {
    let quiet = super::logging::Settings {
        target: super::logging::TargetChoice::Stderr,
        level: super::logging::Level::Error,
    };
    super::logging::start(&quiet)?;
    let arena = arena::Settings { size_bytes: 1024 * 1024, ..config.custody.arena.clone() };
    secret::start(&arena, Use::Front)?;
    Ok(secret::harden_process()?)
}

/// What was found, for people.
fn told(archive: &Archive, examined: &Examined, file: &Path) -> String {
    let (manifest, checked) = (&archive.manifest, &examined.checked);
    let mut text = format!(
        "appliance  {}\nmade       {:.0}, by version {}\ntrail      {} lines in {} files, {} checkpoints\n",
        manifest.appliance,
        manifest.created_at,
        manifest.program,
        examined.lines,
        examined.files,
        examined.checkpoints,
    );
    text.push_str(&format!(
        "opened     {} store keys, {} keys with {} versions ({} destroyed), {} secrets, in {:.1} s\n",
        checked.store_keys,
        checked.keys,
        checked.versions + checked.destroyed,
        checked.destroyed,
        checked.secrets,
        examined.time.as_secs_f64(),
    ));
    for (what, why) in &examined.bad {
        text.push_str(&format!("BAD        {what}: {why}\n"));
    }
    let verdict = match examined.bad.len() {
        0 => "GOOD: every key in it was opened".to_owned(),
        count => format!("NOT GOOD: {count} of what is in it do not hold"),
    };
    text.push_str(&format!("{}: {verdict}\n", file.display()));
    text
}
