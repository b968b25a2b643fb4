//! Puts store and trail back from a backup, into empty directories: built where they belong and verified
//! there. Until that has ended well, each carries a mark that keeps a daemon from starting.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::super::DaemonError;
use super::super::accept::Prepared;
use super::super::config::Config;
use super::super::offline::{Users, absolute, pin_of_root, shut_in};
use super::super::unit::take_over_environment;
use super::examine::{self, Places};
use super::report::{Restored, Told, Undone};
use super::scratch::Scratch;
use super::{
    BackupError, LOST_AND_FOUND, MARK, at, come_up, empty, make_directory, open, speak_up,
    unfinished_restore,
};
use crate::audit;
use crate::backup::Archive;
use crate::cli::{Report, Restore, dry_run_text};
use crate::records::RestoredRecord;

/// Restores a backup.
pub fn restore_backup(arguments: &Restore) -> Result<Report, DaemonError> {
    take_over_environment(&arguments.by.config);
    let mut config = Config::load(&arguments.by.config)?.config;
    config.use_pin_file(arguments.by.pin_file.as_deref());
    let (store, trail) = (absolute(&config.store.path)?, absolute(&config.audit.directory)?);
    let users = Users::of(&config)?;
    let file = open(&arguments.file)?;
    let mut scratch = Scratch::make(&arguments.by.scratch, &config, &users)?;
    come_up(&config)?;
    scratch.give(pin_of_root(&config)?);
    if arguments.dry.dry_run {
        users.front.assume()?;
        let target = Places { store, trail, partial: arguments.by.partial };
        return plan(arguments, &config, &users, (file, scratch), target);
    }
    // What custody is told at the end, which the owner of the directories could not tell it.
    let order = Prepared::at(&config.custody.state_directory, &users);
    // From here on as the owner of the directories, who can do no more with this process than without it.
    users.front.assume()?;
    let mut building = Building::begin(Places { store, trail, partial: arguments.by.partial })?;
    let previous = arguments.previous_trail.iter().cloned().collect();
    let Places { store, trail, .. } = &building.places;
    let write = vec![scratch.work(), store.clone(), trail.clone()];
    shut_in(&config.sandbox, &users.front, write, previous)?;
    let _logs = speak_up()?;
    let (archive, damages) = Archive::of(file, &arguments.file).map_err(BackupError::from)?;
    let left_behind = match &arguments.previous_trail {
        Some(directory) => left_behind(directory, &archive)?,
        None => None,
    };
    let note = RestoredRecord {
        digest: archive.digest(),
        created_at: archive.manifest.created_at,
        head: archive.manifest.trail.head.clone(),
        left_behind: left_behind.as_ref().map(ToString::to_string),
        store_key: None,
    };
    let places = &building.places;
    let examined = examine::examine(&archive, damages, &config, places, &mut scratch, Some(&note))?;
    let mut told = Told::of(&archive, &examined, &arguments.file);
    let mut restored =
        Restored { done: false, why: "", store: building.places.store.clone(), undone: None };
    if !examined.complete || !(examined.is_good() || arguments.accept_broken) {
        restored.why = match examined.complete {
            true => "; --accept-broken restores it as it is",
            false => ": it could not be looked through",
        };
        told.restored = Some(restored);
        return Ok(Report::new(told.text(), &told, false));
    }
    let newest = audit::newest_checkpoint(&building.places.trail)?;
    building.keep()?;
    if let Some((trail, mark)) = newest {
        order.give((&trail, mark), true, "the backup is in its place")?;
    }
    let undone = |head: audit::Head| Undone { from_line: examined.head.seq + 1, to_line: head.seq };
    restored.done = true;
    restored.undone = left_behind.map(undone);
    told.restored = Some(restored);
    Ok(Report::new(told.text(), &told, true))
}

/// What a restore would do: the backup is opened in the scratch place, and the directories are looked at.
fn plan(
    arguments: &Restore,
    config: &Config,
    users: &Users,
    (file, mut scratch): (File, Scratch),
    target: Places,
) -> Result<Report, DaemonError> {
    unfinished_restore(&target.store, &target.trail)?;
    for directory in [&target.store, &target.trail] {
        match must_be_empty(directory) {
            Err(BackupError::Io { error, .. }) if error.kind() == ErrorKind::NotFound => {}
            checked => checked?,
        }
    }
    let work = scratch.work();
    let places =
        Places { store: work.join("store"), trail: work.join("trail"), partial: target.partial };
    for place in [&places.store, &places.trail] {
        make_directory(place)?;
    }
    let previous = arguments.previous_trail.iter().cloned().collect();
    shut_in(&config.sandbox, &users.front, vec![work], previous)?;
    let _logs = speak_up()?;
    let (archive, damages) = Archive::of(file, &arguments.file).map_err(BackupError::from)?;
    let left_behind = match &arguments.previous_trail {
        Some(directory) => left_behind(directory, &archive)?,
        None => None,
    };
    let examined = examine::examine(&archive, damages, config, &places, &mut scratch, None)?;
    let may_be = examined.complete && (examined.is_good() || arguments.accept_broken);
    let mut changes = vec![
        format!("put {} addresses into {}", archive.manifest.addresses, target.store.display()),
        format!("put {} lines of the audit log into {}", examined.lines, target.trail.display()),
        "have custody take that audit log for the newest at the next start".to_owned(),
    ];
    if let Some(head) = left_behind {
        changes.push(format!(
            "undo what lines {} to {} say was done",
            examined.head.seq + 1,
            head.seq
        ));
    }
    if !may_be {
        changes = vec!["be refused: the backup is not good".to_owned()];
    }
    let mut told = Told::of(&archive, &examined, &arguments.file);
    told.would_change = Some(changes.clone());
    Ok(Report::new(told.text() + &dry_run_text(&changes), &told, may_be))
}

/// The last line of the trail that was there before, where it goes on behind the backup's.
fn left_behind(directory: &Path, archive: &Archive) -> Result<Option<audit::Head>, DaemonError> {
    let head: audit::Head =
        archive.manifest.trail.head.parse().map_err(|_| BackupError::NoAppliance)?;
    let there = audit::last_head(directory).map_err(at(directory))?;
    let there = there.filter(|(id, _)| *id == archive.manifest.trail.id);
    Ok(there.map(|(_, there)| there).filter(|there| there.seq > head.seq))
}

/// The two directories while they are filled; what was put there goes where it is not kept.
struct Building {
    places: Places,
    kept: bool,
}

impl Building {
    /// Makes the directories or takes those that are there and empty, and marks them: the store's first.
    fn begin(places: Places) -> Result<Self, BackupError> {
        unfinished_restore(&places.store, &places.trail)?;
        for directory in [&places.store, &places.trail] {
            match make_directory(directory) {
                Err(BackupError::Io { error, .. }) if error.kind() == ErrorKind::AlreadyExists => {
                    must_be_empty(directory)?;
                }
                made => {
                    made?;
                    sync(directory.parent().unwrap_or(directory))?;
                }
            }
        }
        let building = Self { places, kept: false };
        for directory in [&building.places.store, &building.places.trail] {
            mark(directory)?;
        }
        Ok(building)
    }

    /// Takes the marks away, the store's last: an appliance can be started from them then.
    fn keep(&mut self) -> Result<(), BackupError> {
        for directory in [&self.places.trail, &self.places.store] {
            sync(directory)?;
            let mark = directory.join(MARK);
            std::fs::remove_file(&mark).map_err(at(&mark))?;
            sync(directory)?;
        }
        self.kept = true;
        Ok(())
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for directory in [&self.places.trail, &self.places.store] {
            if let Err(error) = empty(directory) {
                tracing::error!(path = %directory.display(), %error, "it could not be emptied");
            }
        }
    }
}

/// Nothing in it, but for what a file system has in its own root.
fn must_be_empty(directory: &Path) -> Result<(), BackupError> {
    for entry in std::fs::read_dir(directory).map_err(at(directory))? {
        if entry.map_err(at(directory))?.file_name() != LOST_AND_FOUND {
            return Err(BackupError::NotEmpty(directory.to_owned()));
        }
    }
    Ok(())
}

fn mark(directory: &Path) -> Result<(), BackupError> {
    let path = directory.join(MARK);
    let mut options = File::options();
    let file = options.write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|mut file| {
        file.write_all(
            b"A restore goes on here, or was cut off: then delete all of it and restore again.\n",
        )?;
        file.sync_all()
    })
    .map_err(at(&path))?;
    sync(directory)
}

fn sync(directory: &Path) -> Result<(), BackupError> {
    File::open(directory).and_then(|opened| opened.sync_all()).map_err(at(directory))
}
