//! Puts store and trail back from a backup: verified beside its place, then moved into it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::super::DaemonError;
use super::super::config::Config;
use super::super::hand_over::hand_over;
use super::examine::{self, Places};
use super::mounts::is_mount_point;
use super::plan::{Plan, beside, sync_parent};
use super::report::{Restored, Told, Undone};
use super::scratch::Scratch;
use super::{BackupError, at, come_up};
use crate::audit::{self, AuditError};
use crate::backup::Archive;
use crate::cli::{Report, Restore};
use crate::records::{self, RestoredRecord};
use crate::store::StoreError;
use crate::store::sled_store::{self, SledStore};

/// A restore that had been cut off, for programs.
#[derive(Serialize)]
struct Finished {
    finished: bool,
    store: PathBuf,
}

/// A restore that was given up, for programs.
#[derive(Serialize)]
struct Abandoned {
    abandoned: bool,
    store: PathBuf,
}

/// Restores a backup, or finishes a restore, or gives one up.
pub fn restore_backup(arguments: &Restore) -> Result<Report, DaemonError> {
    let mut config = Config::load(&arguments.by.config)?.config;
    config.use_pin_file(arguments.by.pin_file.as_deref());
    let store = std::path::absolute(&config.store.path).map_err(at(&config.store.path))?;
    let pending = Plan::pending(&store)?;
    if arguments.abandon {
        return abandon(&config, store, pending);
    }
    match (&arguments.file, pending) {
        (None, Some(plan)) => {
            plan.carry_out(&store)?;
            let text = "the restore that was cut off is finished\n";
            Ok(Report::new(text, &Finished { finished: true, store }, true))
        }
        (None, None) => Err(BackupError::NothingToFinish.into()),
        (Some(_), Some(_)) => Err(BackupError::CutOff(super::plan::path(&store)).into()),
        (Some(file), None) => restore(arguments, file, config),
    }
}

/// Goes back to what was there before a restore that was cut off.
fn abandon(config: &Config, store: PathBuf, plan: Option<Plan>) -> Result<Report, DaemonError> {
    let directory = &config.audit.directory;
    let trail = std::path::absolute(directory).map_err(at(directory))?;
    // The store's is the sign of a restore that is not finished, and goes last.
    let built = [sibling(&trail), sibling(&store)];
    if plan.is_none() && !built.iter().any(|path| path.exists()) {
        return Err(BackupError::NothingToFinish.into());
    }
    let [_, of_store] = &built;
    // Nobody takes it from under a restore that is still at it.
    let _claim = match of_store.exists().then(|| sled_store::claim(of_store)).transpose() {
        Err(StoreError::InUse) => return Err(BackupError::Running(of_store.clone()).into()),
        claim => claim?,
    };
    if let Some(plan) = plan {
        plan.abandon(&store)?;
    }
    for path in built.iter().filter(|path| path.exists()) {
        std::fs::remove_dir_all(path).map_err(at(path))?;
        sync_parent(path)?;
    }
    let text = "the restore is given up: what was there before it is there again\n";
    Ok(Report::new(text, &Abandoned { abandoned: true, store }, true))
}

/// Where a directory is built before it goes to its place.
pub fn sibling(path: &Path) -> PathBuf {
    beside(path, ".restoring")
}

fn restore(arguments: &Restore, file: &Path, config: Config) -> Result<Report, DaemonError> {
    let mut scratch = Scratch::make(&arguments.by.scratch, &config)?;
    let _logs = come_up(&config)?;
    let (archive, damages) = Archive::open(file).map_err(BackupError::from)?;
    let target = Target::claim(&config, &archive, arguments)?;
    let building = Building::begin(&target)?;
    let left_behind = target.left_behind(&archive)?;
    let places = &building.places;
    let note = RestoredRecord {
        digest: archive.digest(),
        created_at: archive.manifest.created_at,
        head: archive.manifest.trail.head.clone(),
        left_behind: left_behind.as_ref().map(ToString::to_string),
        store_key: None,
    };
    let examined = examine::examine(&archive, damages, &config, places, &mut scratch, Some(&note))?;
    let mut told = Told::of(&archive, &examined, file);
    let mut restored = Restored {
        done: false,
        why: "",
        store: target.store.clone(),
        moved_aside: Vec::new(),
        undone: None,
    };
    if !examined.complete || !(examined.is_good() || arguments.accept_broken) {
        restored.why = match examined.complete {
            true => "; --accept-broken restores it as it is",
            false => ": it could not be looked through",
        };
        told.restored = Some(restored);
        return Ok(Report::new(told.text(), &told, false));
    }
    for place in [&building.places.store, &building.places.trail] {
        hand_over(place, target.owner).map_err(at(place))?;
        sync_parent(place)?;
    }
    let plan = target.plan(&building)?;
    plan.write(&target.store)?;
    building.keep();
    plan.carry_out(&target.store)?;
    let undone = |head: audit::Head| Undone { from_line: examined.head.seq + 1, to_line: head.seq };
    restored.done = true;
    restored.moved_aside = plan.aside.iter().map(|(_, aside)| aside.clone()).collect();
    restored.undone = left_behind.map(undone);
    told.restored = Some(restored);
    Ok(Report::new(told.text(), &told, true))
}

/// The place that a backup goes to, closed to daemons for as long as this lives.
struct Target {
    store: PathBuf,
    trail: PathBuf,
    /// Who owns it, or will.
    owner: (u32, u32),
    /// Which of the two hold something.
    occupied: Vec<PathBuf>,
    _trail: Option<audit::Claim>,
    _store: Option<File>,
}

impl Target {
    /// Looks at what is there: it must not run, and be told of before it is moved away.
    fn claim(config: &Config, archive: &Archive, may: &Restore) -> Result<Self, DaemonError> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(at(path));
        let store = absolute(&config.store.path)?;
        let trail = absolute(&config.audit.directory)?;
        let owner = owner_of(&store)?;
        let mut occupied = Vec::new();
        for path in [&trail, &store] {
            if is_mount_point(path).map_err(at(path))? {
                return Err(BackupError::MountPoint(path.clone()).into());
            }
            if has_something(path)? {
                occupied.push(path.clone());
            }
        }
        let claim_trail = || {
            audit::claim(&trail).map_err(|error| match error {
                AuditError::InUse => DaemonError::from(BackupError::Running(trail.clone())),
                other => other.into(),
            })
        };
        let of_trail = occupied.contains(&trail).then(claim_trail).transpose()?;
        let (mut there, mut of_store) = (None, None);
        if occupied.contains(&store) {
            there = appliance_at(config)?;
            of_store = Some(sled_store::claim(&store)?);
        }
        let backup = archive.manifest.appliance.clone();
        if let Some(there) = there.filter(|there| *there != backup && !may.other_appliance) {
            return Err(BackupError::Other { there, backup }.into());
        }
        match occupied.first().filter(|_| !may.replace) {
            Some(path) => Err(BackupError::NotEmpty(path.clone()).into()),
            None => Ok(Self { store, trail, owner, occupied, _trail: of_trail, _store: of_store }),
        }
    }

    /// The last line of the trail that is there, where it goes on behind the backup's.
    fn left_behind(&self, archive: &Archive) -> Result<Option<audit::Head>, BackupError> {
        let head: audit::Head =
            archive.manifest.trail.head.parse().map_err(|_| BackupError::NoAppliance)?;
        let there = audit::last_head(&self.trail).ok().flatten();
        let there = there.filter(|(id, _)| *id == archive.manifest.trail.id);
        Ok(there.map(|(_, there)| there).filter(|there| there.seq > head.seq))
    }

    fn plan(&self, building: &Building) -> Result<Plan, BackupError> {
        let date = free_date([&self.trail, &self.store]);
        let mut aside = Vec::new();
        for path in [&self.trail, &self.store] {
            if self.occupied.contains(path) {
                aside.push((path.clone(), aside_at(path, &date)));
            } else if path.exists() {
                // It is empty, and would be in the way.
                std::fs::remove_dir(path).map_err(at(path))?;
            }
        }
        let Places { store, trail } = &building.places;
        let place = vec![(trail.clone(), self.trail.clone()), (store.clone(), self.store.clone())];
        Ok(Plan { aside, place })
    }
}

/// The time, with a number where another restore of this second has used it.
fn free_date(paths: [&PathBuf; 2]) -> String {
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let numbered = (2..).map(|number: u32| format!("{now}-{number}"));
    let is_free = |date: &String| paths.iter().all(|path| !aside_at(path, date).exists());
    std::iter::once(now.clone()).chain(numbered).find(is_free).unwrap_or(now)
}

fn aside_at(path: &Path, date: &str) -> PathBuf {
    beside(path, &format!(".before-restore-{date}"))
}

/// The directories beside the place; they go where they are not kept.
struct Building {
    places: Places,
    kept: bool,
}

impl Building {
    fn begin(target: &Target) -> Result<Self, BackupError> {
        let places = Places { store: sibling(&target.store), trail: sibling(&target.trail) };
        // The store's is the sign of a restore that is not finished: it comes first and goes last.
        for path in [&places.trail, &places.store] {
            if path.exists() {
                std::fs::remove_dir_all(path).map_err(at(path))?;
            }
        }
        Ok(Self { places, kept: false })
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if !self.kept {
            for path in [&self.places.trail, &self.places.store] {
                let removed = std::fs::remove_dir_all(path);
                if let Err(error) = removed
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::error!(path = %path.display(), %error, "it could not be removed");
                }
            }
        }
    }
}

/// The appliance whose store is there; `None` where it was not initialised, or cannot be opened.
fn appliance_at(config: &Config) -> Result<Option<String>, DaemonError> {
    let opened = SledStore::open(&config.store);
    match opened {
        Ok(store) => Ok(records::read_home(&store).ok().flatten().map(|home| home.appliance)),
        Err(StoreError::InUse) => Err(BackupError::Running(config.store.path.clone()).into()),
        Err(error) => {
            tracing::error!(%error, "the store that is there cannot be opened");
            Ok(None)
        }
    }
}

fn has_something(path: &Path) -> Result<bool, BackupError> {
    match std::fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(at(path)(error)),
    }
}

/// The owner of the store's directory, or else of the one that it will lie in.
fn owner_of(store: &Path) -> Result<(u32, u32), BackupError> {
    let parent = store.parent().unwrap_or(Path::new("/"));
    let found = store.metadata().or_else(|_| parent.metadata()).map_err(at(parent))?;
    Ok((found.uid(), found.gid()))
}
