//! Custody's durable state of its own: what it has to remember over its end, where the front cannot write.
//!
//! One directory, `[custody] state_directory`, mode 0700, owned by custody's user. One file for each
//! [`Section`], in one strict form:
//!
//! ```text
//! {"version":1,"section":"checkpoints","sha256":"<64 hex digits>","value":{...}}
//! ```
//!
//! `sha256` is over the bytes of `value`, so that a damaged disk is noticed. A change is written to a new
//! file, synced, renamed over the old one, and the directory is synced: after a kill or a power cut either
//! the old value is there or the new one, and on a full disk the old one stays. What cannot be read is an
//! error and never "nothing": custody does not start then.
//!
//! The process holds a lock on the directory for as long as it lives, so what is in memory is what is on
//! disk. Nothing here is secret.

mod directory;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use directory::Directory;
pub use directory::{StateError, check_directory, leave_order, prepare_order};

/// A part of the state with a file of its own.
///
/// To add one: a struct with `deny_unknown_fields` that implements this, and a [`Kept`] of it.
pub trait Section: Serialize + DeserializeOwned + Clone + Default {
    /// The name of the file, without `.json`.
    const NAME: &'static str;
}

/// The directory, open and locked.
#[derive(Clone)]
pub struct State(Arc<Directory>);

/// The version of the form.
const VERSION: u32 = 1;

/// No section is longer than this, in bytes.
const MAX_BYTES: u64 = 256 * 1024;

/// What a file holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form<'a> {
    version: u32,
    section: &'a str,
    sha256: String,
    #[serde(borrow)]
    value: &'a RawValue,
}

impl State {
    /// Makes the directory if it is not there, and takes its lock.
    ///
    /// # Errors
    /// [`StateError`] where it, or what it lies in, could be changed by another user, or another custody
    /// has it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        Ok(Self(Arc::new(Directory::open(path)?)))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Reads a section; one that was never written has its default value.
    ///
    /// # Errors
    /// [`StateError::Damaged`] where the file is not what custody has written.
    pub fn load<S: Section>(&self) -> Result<Kept<S>, StateError> {
        let found = self.0.read(S::NAME, MAX_BYTES)?;
        let was_there = found.is_some();
        self.0.note_found(was_there);
        let value = match found {
            Some(bytes) => parse(&bytes).ok_or_else(|| self.0.damaged(S::NAME))?,
            None => S::default(),
        };
        let directory = Arc::clone(&self.0);
        let (value, changing) = (Mutex::new(value), Mutex::new(()));
        Ok(Kept { directory, was_there, value, changing })
    }

    /// Whether any section that was loaded so far was there.
    pub fn has_sections(&self) -> bool {
        self.0.has_found()
    }

    /// Reads a file that root or custody's user has put beside the sections. `None` where there is none.
    ///
    /// # Errors
    /// [`StateError`] where it belongs to somebody else: then it does not count.
    pub fn read_order(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        self.0.read(name, MAX_BYTES)
    }

    /// Removes such a file, durably. Does nothing where there is none.
    ///
    /// # Errors
    /// [`StateError`] where it stays.
    pub fn remove_order(&self, name: &str) -> Result<(), StateError> {
        self.0.remove(name)
    }

    /// Reads such a file and removes it: it counts once.
    ///
    /// # Errors
    /// [`StateError`] where it belongs to somebody else, or cannot be removed: then it does not count.
    pub fn take_order(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let found = self.read_order(name)?;
        self.remove_order(name)?;
        Ok(found)
    }

    /// Why the directory could not be written the last time that it was tried, if it could not.
    pub fn trouble(&self) -> Option<String> {
        self.0.first_trouble()
    }
}

/// A section in memory, as it is on disk.
pub struct Kept<S> {
    directory: Arc<Directory>,
    was_there: bool,
    /// Held only to read or replace it, so that a slow change holds up nobody who reads.
    value: Mutex<S>,
    /// Held for the time of a change.
    changing: Mutex<()>,
}

impl<S: Section> Kept<S> {
    /// What is remembered.
    pub fn get(&self) -> S {
        self.value.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this was written before the process started.
    pub fn was_there(&self) -> bool {
        self.was_there
    }

    /// Where its file lies.
    pub fn path(&self) -> PathBuf {
        self.directory.file(S::NAME)
    }

    /// Whether it could be changed, as far as that is seen without waiting for the disk.
    ///
    /// # Errors
    /// [`StateError`] where it could not.
    pub fn try_out(&self) -> Result<(), StateError> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.directory.probe(S::NAME)
    }

    /// Changes it: durable when this returns, and unchanged in memory and on disk after any error. Changes
    /// wait for each other.
    ///
    /// # Errors
    /// Whatever `change` says, or [`StateError`] where it could not be written.
    pub fn change<R, E: From<StateError>>(
        &self,
        change: impl FnOnce(&mut S) -> Result<R, E>,
    ) -> Result<R, E> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = self.get();
        let result = change(&mut next)?;
        let bytes = form(&next).ok_or_else(|| self.directory.damaged(S::NAME))?;
        // What could not be read again would keep custody from starting.
        if bytes.len() as u64 > MAX_BYTES {
            return Err(StateError::TooLong(self.path()).into());
        }
        self.directory.write(S::NAME, &bytes)?;
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(result)
    }
}

fn form<S: Section>(value: &S) -> Option<Vec<u8>> {
    let value = serde_json::value::to_raw_value(value).ok()?;
    let sha256 = hex(&Sha256::digest(value.get()));
    serde_json::to_vec(&Form { version: VERSION, section: S::NAME, sha256, value: &value }).ok()
}

fn parse<S: Section>(bytes: &[u8]) -> Option<S> {
    let form: Form<'_> = serde_json::from_slice(bytes).ok()?;
    let whole = form.sha256 == hex(&Sha256::digest(form.value.get()));
    let ours = form.version == VERSION && form.section == S::NAME && whole;
    ours.then(|| serde_json::from_str(form.value.get()).ok()).flatten()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Count {
        number: u64,
    }

    impl Section for Count {
        const NAME: &'static str = "count";
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        (directory, path)
    }

    fn set(kept: &Kept<Count>, number: u64) -> Result<(), StateError> {
        kept.change(|count| {
            count.number = number;
            Ok(())
        })
    }

    #[test]
    fn what_was_written_is_there_again() {
        let (_place, path) = place();
        let state = State::open(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let kept = state.load::<Count>().unwrap();
        assert!(!kept.was_there() && kept.get() == Count::default());
        set(&kept, 7).unwrap();
        assert_eq!(kept.path().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        drop((kept, state));
        let kept = State::open(&path).unwrap().load::<Count>().unwrap();
        assert!(kept.was_there() && kept.get().number == 7);
    }

    #[test]
    fn a_change_that_is_refused_changes_nothing() {
        let (_place, path) = place();
        let state = State::open(&path).unwrap();
        let kept = state.load::<Count>().unwrap();
        set(&kept, 1).unwrap();
        let refused: Result<(), StateError> = kept.change(|count| {
            count.number = 2;
            Err(StateError::InUse(path.clone()))
        });
        assert!(refused.is_err() && kept.get().number == 1);
        // What cannot be written: a directory lies where the new file goes.
        std::fs::create_dir(path.join("count.new")).unwrap();
        assert!(set(&kept, 3).is_err() && kept.get().number == 1);
        std::fs::remove_dir(path.join("count.new")).unwrap();
        set(&kept, 4).unwrap();
        assert_eq!(state.load::<Count>().unwrap().get().number, 4);
    }

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Text {
        text: String,
    }

    impl Section for Text {
        const NAME: &'static str = "text";
    }

    #[test]
    fn what_could_not_be_read_again_is_not_written() {
        let (_place, path) = place();
        let state = State::open(&path).unwrap();
        let kept = state.load::<Text>().unwrap();
        let set = |length: u64| {
            kept.change(|text| {
                text.text = "x".repeat(usize::try_from(length).unwrap());
                Ok::<_, StateError>(())
            })
        };
        let longest = (1..200).rev().find(|less| set(MAX_BYTES - less).is_err()).unwrap();
        assert!(matches!(set(MAX_BYTES - longest), Err(StateError::TooLong(_))));
        set(MAX_BYTES - longest - 1).unwrap();
        assert_eq!(state.load::<Text>().unwrap().get(), kept.get());
    }

    #[test]
    fn half_a_new_file_is_no_state() {
        let (_place, path) = place();
        let state = State::open(&path).unwrap();
        let kept = state.load::<Count>().unwrap();
        set(&kept, 1).unwrap();
        std::fs::write(path.join("count.new"), "{\"vers").unwrap();
        assert_eq!(state.load::<Count>().unwrap().get().number, 1);
        set(&kept, 2).unwrap();
        assert_eq!(state.load::<Count>().unwrap().get().number, 2);
    }

    #[test]
    fn what_is_not_in_its_form_is_damage_and_never_nothing() {
        let (_place, path) = place();
        let state = State::open(&path).unwrap();
        let kept = state.load::<Count>().unwrap();
        set(&kept, 7).unwrap();
        let good = std::fs::read_to_string(kept.path()).unwrap();
        for bad in [
            String::new(),
            good.replace(":7}", ":8}"),
            good.replace("\"version\":1", "\"version\":2"),
            good.replace("\"count\"", "\"other\""),
            good.replace("{\"number\"", "{\"more\":1,\"number\""),
            good.replace("{\"version\"", "{\"more\":1,\"version\""),
            good[..good.len() - 1].to_owned(),
            "x".repeat(MAX_BYTES as usize + 1),
        ] {
            std::fs::write(kept.path(), &bad).unwrap();
            assert!(matches!(state.load::<Count>(), Err(StateError::Damaged(_))), "{bad:.80}");
        }
        std::fs::write(kept.path(), good).unwrap();
        assert_eq!(state.load::<Count>().unwrap().get().number, 7);
    }

    #[test]
    fn only_one_custody_has_it() {
        let (_place, path) = place();
        let first = State::open(&path).unwrap();
        assert!(matches!(State::open(&path), Err(StateError::InUse(_))));
        drop(first);
        State::open(&path).unwrap();
    }

    #[test]
    fn what_others_could_change_is_refused() {
        let (place, path) = place();
        drop(State::open(&path).unwrap());
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(&path, 0o750);
        assert!(matches!(State::open(&path), Err(StateError::Unsafe { .. })));
        mode(&path, 0o700);
        mode(place.path(), 0o777);
        assert!(matches!(State::open(&path), Err(StateError::Unsafe { .. })), "its parent");
        mode(place.path(), 0o700);
        let link = place.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(State::open(&link).is_err(), "a link");
        let state = State::open(&path).unwrap();
        let kept = state.load::<Count>().unwrap();
        set(&kept, 1).unwrap();
        mode(&kept.path(), 0o644);
        assert!(matches!(state.load::<Count>(), Err(StateError::Unsafe { .. })));
        std::fs::rename(kept.path(), place.path().join("moved")).unwrap();
        symlink(place.path().join("moved"), kept.path()).unwrap();
        assert!(state.load::<Count>().is_err(), "a link to a file");
        if nix::unistd::geteuid().is_root() {
            drop((kept, state));
            nix::unistd::chown(&path, Some(65_534.into()), None).unwrap();
            assert!(matches!(State::open(&path), Err(StateError::Unsafe { .. })), "its owner");
        }
    }

    #[test]
    fn an_order_is_there_until_it_is_removed() {
        let (_place, path) = place();
        let state = State::open(&path).unwrap();
        assert_eq!(state.read_order("accept").unwrap(), None);
        state.remove_order("accept").unwrap();
        directory::leave_order(&path, "accept", b"this").unwrap();
        for _ in 0..2 {
            assert_eq!(state.read_order("accept").unwrap(), Some(b"this".to_vec()));
        }
        state.remove_order("accept").unwrap();
        assert_eq!(state.read_order("accept").unwrap(), None);
    }

    #[test]
    fn a_slow_change_holds_up_nobody_who_reads() {
        let (_place, path) = place();
        let kept = State::open(&path).unwrap().load::<Count>().unwrap();
        set(&kept, 1).unwrap();
        let (begun, go_on) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let changed: Result<(), StateError> = kept.change(|count| {
                    begun.wait();
                    go_on.wait();
                    count.number = 2;
                    Ok(())
                });
                changed.unwrap();
            });
            begun.wait();
            assert_eq!(kept.get().number, 1);
            go_on.wait();
        });
        assert_eq!(kept.get().number, 2);
    }

    #[test]
    fn that_it_cannot_be_written_is_known_until_it_can() {
        let (_place, path) = place();
        let state = State::open(&path).unwrap();
        let kept = state.load::<Count>().unwrap();
        std::fs::create_dir(path.join("count.new")).unwrap();
        assert!(set(&kept, 1).is_err() && state.trouble().unwrap().contains("count"));
        std::fs::remove_dir(path.join("count.new")).unwrap();
        set(&kept, 1).unwrap();
        assert_eq!(state.trouble(), None);
    }
}
