//! How a restore is put in its place: a few renames that a crash may cut off anywhere.
//!
//! What is to be renamed is written down first, durably, beside the store. While that plan is there no
//! appliance starts; carrying it out again finishes what was cut off.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::{Deserialize, Serialize};

use super::{BackupError, at};

/// What moves where, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What was there goes to names that were free.
    pub aside: Vec<(PathBuf, PathBuf)>,
    /// What was restored goes to where it belongs.
    pub place: Vec<(PathBuf, PathBuf)>,
}

/// Where the plan for this store lies.
pub fn path(store: &Path) -> PathBuf {
    beside(store, ".restore-plan")
}

/// A path with something added to its last name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

impl Plan {
    /// The one that lies beside this store.
    pub fn pending(store: &Path) -> Result<Option<Self>, BackupError> {
        let path = path(store);
        match std::fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map(Some).map_err(|_| BackupError::Plan(path))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(&path)(error)),
        }
    }

    /// Writes it down: from here on the restore is finished, whatever comes between.
    pub fn write(&self, store: &Path) -> Result<(), BackupError> {
        let path = path(store);
        let new = beside(&path, ".new");
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&new);
        file.and_then(|mut file| {
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()
        })
        .map_err(at(&new))?;
        std::fs::rename(&new, &path).map_err(at(&path))?;
        sync_parent(&path)
    }

    /// Undoes what was done, and takes the plan away. What was restored is where it was built then; cut
    /// off, it can be undone again, or finished.
    pub fn abandon(&self, store: &Path) -> Result<(), BackupError> {
        for (from, to) in self.place.iter().rev() {
            let mut asides = self.aside.iter().filter(|(was, _)| was == to);
            let is_in_place = !from.exists() && asides.all(|(_, aside)| aside.exists());
            if is_in_place && to.exists() {
                settle(to, from, std::fs::rename(to, from))?;
            }
        }
        for (was, aside) in self.aside.iter().rev() {
            if aside.exists() {
                settle(aside, was, std::fs::rename(aside, was))?;
            }
        }
        self.take_away(store)
    }

    /// Does what is not done yet, and takes the plan away.
    pub fn carry_out(&self, store: &Path) -> Result<(), BackupError> {
        for (from, to) in &self.aside {
            if !to.exists() && from.exists() {
                let flags = RenameFlags::RENAME_NOREPLACE;
                let renamed = renameat2(AT_FDCWD, from, AT_FDCWD, to, flags);
                settle(from, to, renamed.map_err(Into::into))?;
            }
        }
        for (from, to) in &self.place {
            if from.exists() {
                // An empty directory that somebody made there meanwhile is no obstacle.
                settle(from, to, std::fs::rename(from, to))?;
            }
        }
        self.take_away(store)
    }

    fn take_away(&self, store: &Path) -> Result<(), BackupError> {
        let path = path(store);
        std::fs::remove_file(&path).map_err(at(&path))?;
        sync_parent(&path)
    }
}

/// Has a rename on disk, or says why it was not done.
fn settle(from: &Path, to: &Path, renamed: std::io::Result<()>) -> Result<(), BackupError> {
    use std::io::ErrorKind::{AlreadyExists, DirectoryNotEmpty};
    match renamed {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), AlreadyExists | DirectoryNotEmpty) => {
            return Err(BackupError::Both { from: from.to_owned(), to: to.to_owned() });
        }
        Err(error) => return Err(at(from)(error)),
    }
    sync_parent(from)?;
    sync_parent(to)
}

pub fn sync_parent(path: &Path) -> Result<(), BackupError> {
    let parent = path.parent().filter(|path| !path.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(at(parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(path: &Path, what: &str) {
        std::fs::create_dir(path).unwrap();
        std::fs::write(path.join("what"), what).unwrap();
    }

    fn what(path: &Path) -> String {
        std::fs::read_to_string(path.join("what")).unwrap()
    }

    /// A restore that was cut off after some of its four renames.
    fn cut_off(directory: &tempfile::TempDir, done: usize) -> Plan {
        let at = |name: &str| directory.path().join(name);
        for name in ["store", "trail"] {
            make(&at(name), "old");
            make(&at(&format!("{name}.restoring")), "new");
        }
        let moves = |from: &str, to: &str| {
            ["trail", "store"].map(|n| (at(&format!("{n}{from}")), at(&format!("{n}{to}"))))
        };
        let plan =
            Plan { aside: moves("", ".before").into(), place: moves(".restoring", "").into() };
        plan.write(&at("store")).unwrap();
        for (from, to) in plan.aside.iter().chain(&plan.place).take(done) {
            std::fs::rename(from, to).unwrap();
        }
        plan
    }

    /// Also where the undoing is cut off: after any of its renames it goes on, either way.
    #[test]
    fn wherever_it_is_cut_off_it_can_be_undone() {
        for done in 0..=4 {
            for undone in 0..=done {
                let directory = tempfile::tempdir().unwrap();
                let at = |name: &str| directory.path().join(name);
                let plan = cut_off(&directory, done);
                let renames: Vec<_> = plan.aside.iter().chain(&plan.place).take(done).collect();
                for (from, to) in renames.into_iter().rev().take(undone) {
                    std::fs::rename(to, from).unwrap();
                }
                let store = at("store");
                Plan::pending(&store).unwrap().unwrap().abandon(&store).unwrap();
                for name in ["store", "trail"] {
                    assert_eq!(what(&at(name)), "old", "{name} after {done} and {undone}");
                    assert_eq!(what(&at(&format!("{name}.restoring"))), "new");
                }
                assert_eq!(Plan::pending(&store).unwrap(), None);
            }
        }
    }

    /// A crash after each of the four renames, and before the first: the next try finishes it.
    #[test]
    fn wherever_it_is_cut_off_it_can_be_finished() {
        for done in 0..=4 {
            let directory = tempfile::tempdir().unwrap();
            let at = |name: &str| directory.path().join(name);
            let store = at("store");
            let plan = cut_off(&directory, done);
            let pending = Plan::pending(&store).unwrap().unwrap();
            assert_eq!(pending, plan);
            pending.carry_out(&store).unwrap();
            for name in ["store", "trail"] {
                assert_eq!(what(&at(name)), "new", "{name} after {done}");
                assert_eq!(what(&at(&format!("{name}.before"))), "old");
            }
            assert_eq!(Plan::pending(&store).unwrap(), None);
        }
    }

    #[test]
    fn nothing_is_ever_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        make(&at("store.restoring"), "new");
        make(&at("store"), "somebody else's");
        let plan = Plan { aside: Vec::new(), place: vec![(at("store.restoring"), at("store"))] };
        plan.write(&at("store")).unwrap();
        assert!(matches!(plan.carry_out(&at("store")), Err(BackupError::Both { .. })));
        assert_eq!(what(&at("store")), "somebody else's");
        assert!(Plan::pending(&at("store")).unwrap().is_some());
    }
}
