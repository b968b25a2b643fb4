//! sled's side of the store: what lies where, the schema, the directory, and errors told apart.
//!
//! In one tree: `tag(1) ‖ key` → `revision(8, big endian) ‖ value` for what is there, and
//! `0 ‖ tag(1) ‖ key` → `revision(8)` for what was deleted, so that scans meet no dead addresses.

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use super::batch::{Planned, Slot};
use super::durable::{remove_unfinished_snapshots, sync_data};
use super::sled_store::Settings;
use super::state::{STATE, StateCheck, Step, Tally, is_counted, is_state};
use super::{Change, Copied, StoreError, Stored, Table};
use crate::sandbox::{Open, all_plain, open_plain};

/// An open database.
pub(super) struct Engine {
    // Only to keep it open: `tree` is a part of it.
    _db: sled::Db,
    tree: sled::Tree,
    log: File,
    /// Which file `log` is: device and number.
    identity: (u64, u64),
    /// No sync begins while somebody holds it.
    #[cfg(test)]
    pub(super) syncs: std::sync::Arc<std::sync::Mutex<()>>,
}

/// How many addresses are read at once when the whole store is added up.
const SCANNED: usize = 1024;

/// Brings a database one schema version up.
type Migration = fn(&sled::Db) -> sled::Result<()>;

/// `MIGRATIONS[n]` brings schema `n + 1` to `n + 2`.
const MIGRATIONS: [Migration; 0] = [];

impl Engine {
    pub(super) fn open(settings: &Settings) -> Result<Self, StoreError> {
        let config = sled::Config::new()
            .path(&settings.path)
            .cache_capacity(settings.cache_bytes)
            .flush_every_ms(None);
        remove_unfinished_snapshots(&settings.path)
            .map_err(|error| of_io("removing an unfinished snapshot", &error))?;
        // sled opens by path what lies there: a link would lead it elsewhere.
        all_plain(&settings.path).map_err(|error| of_opening("looking at its files", &error))?;
        // sled panics on some damaged files.
        let db = retrying(|| {
            catch_unwind(AssertUnwindSafe(|| config.open()))
                .map_err(|_| StoreError::Corrupt { what: "sled cannot read its file" })?
                .map_err(of_sled)
        })?;
        migrate(&db, &MIGRATIONS)?;
        let tree = db.open_tree("records").map_err(of_sled)?;
        let log = open_plain(&settings.path.join("db"), Open::Write)
            .map_err(|error| of_opening("opening sled's file", &error))?;
        let found = log.metadata().map_err(|error| of_io("opening sled's file", &error))?;
        let engine = Self {
            _db: db,
            tree,
            log,
            identity: (found.dev(), found.ino()),
            #[cfg(test)]
            syncs: std::sync::Arc::default(),
        };
        engine.make_durable()?;
        sync_directory(&settings.path)?;
        Ok(engine)
    }

    pub(super) fn value(&self, table: Table, key: &str) -> Result<Option<Stored>, StoreError> {
        let address = address(table, key);
        let found = self.tree.get(&address).map_err(of_sled)?;
        found.map(|value| decode(&address, &value)).transpose()
    }

    pub(super) fn page(
        &self,
        table: Table,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Stored)>, StoreError> {
        let prefix = address(table, prefix);
        let mut start = prefix.clone();
        if let Some(after) = after.map(|after| address(table, after)).filter(|a| *a >= prefix) {
            start = after;
            start.push(0); // the least key that comes after it
        }
        let mut page = Vec::new();
        for entry in self.tree.range(start..).take(limit) {
            let (key, value) = entry.map_err(of_sled)?;
            if !key.starts_with(&prefix) {
                break;
            }
            let name = std::str::from_utf8(key.get(1..).unwrap_or_default());
            let name = name.map_err(|_| strange(&key))?.to_owned();
            page.push((name, decode(&key, &value)?));
        }
        Ok(page)
    }

    /// Up to `limit` addresses after this one, deleted ones too, as they lie on disk: those of deleted
    /// values come first. The last one's place is where to go on.
    pub(super) fn raw_page(
        &self,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<(Vec<Copied>, Option<Vec<u8>>), StoreError> {
        let from = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let (mut page, mut last) = (Vec::new(), None);
        for entry in self.tree.range::<&[u8], _>(from).take(limit) {
            let (place, bytes) = entry.map_err(of_sled)?;
            let one = copied(&place, &bytes)?;
            // The state of this store is no other one's.
            if !is_state(one.table, &one.key) {
                page.push(one);
            }
            last = Some(place.to_vec());
        }
        Ok((page, last))
    }

    /// One address with all that is kept of it; `None` where nothing ever was.
    pub(super) fn raw(&self, table: Table, key: &str) -> Result<Option<Copied>, StoreError> {
        let address = address(table, key);
        let mark = mark(&address);
        for place in [address, mark] {
            if let Some(bytes) = self.tree.get(&place).map_err(of_sled)? {
                return copied(&place, &bytes).map(Some);
            }
        }
        Ok(None)
    }

    /// The value at an address and the mark of a deleted one: both where somebody put a value back by other means.
    fn all_of(&self, table: Table, key: &str) -> Result<Vec<Copied>, StoreError> {
        let address = address(table, key);
        let mut found = Vec::with_capacity(1);
        for place in [mark(&address), address] {
            if let Some(bytes) = self.tree.get(&place).map_err(of_sled)? {
                found.push(copied(&place, &bytes)?);
            }
        }
        Ok(found)
    }

    pub(super) fn slot(&self, table: Table, key: &str) -> Result<Slot, StoreError> {
        let address = address(table, key);
        if let Some(value) = self.tree.get(&address).map_err(of_sled)? {
            return Ok(Slot { last: decode(&address, &value)?.revision, live: true });
        }
        match self.tree.get(mark(&address)).map_err(of_sled)? {
            Some(value) => Ok(Slot { last: decode(&address, &value)?.revision, live: false }),
            None => Ok(Slot { last: 0, live: false }),
        }
    }

    /// Writes what was planned, and with it the sum of the store's state where that is counted.
    pub(super) fn apply_counted(
        &self,
        mut planned: Vec<Planned>,
        tally: Option<&mut Tally>,
    ) -> Result<Vec<Change>, StoreError> {
        let Some(tally) = tally else {
            let counts = planned.iter().any(|one| is_counted(one.table, &one.key));
            if counts && self.value(Table::Appliance, STATE)?.is_some() {
                return Err(StoreError::Unchecked);
            }
            return self.apply(planned);
        };
        let before = |table, key: &str| self.all_of(table, key);
        let Some(step) = tally.step(&planned, before)? else { return self.apply(planned) };
        planned.push(self.state_record(tally, Some(&step))?);
        let changes = self.apply(planned)?;
        tally.take(&step);
        Ok(changes)
    }

    fn state_record(&self, tally: &Tally, step: Option<&Step>) -> Result<Planned, StoreError> {
        let revision = self.slot(Table::Appliance, STATE)?.last + 1;
        let value = Some(tally.record(revision, step));
        Ok(Planned { table: Table::Appliance, key: STATE.to_owned(), revision, value })
    }

    /// Adds up what the store has and compares it with the record; with `adopt`, the record is made to fit.
    pub(super) fn check_state(
        &self,
        tally: &mut Tally,
        adopt: bool,
    ) -> Result<StateCheck, StoreError> {
        let mut entries = self.tree.iter();
        let mut page = || {
            let mut page = Vec::with_capacity(SCANNED);
            for entry in entries.by_ref().take(SCANNED) {
                let (place, bytes) = entry.map_err(of_sled)?;
                // What was never written here is part of no sum; what it took the place of is missing in it.
                page.extend(copied(&place, &bytes));
            }
            Ok::<_, StoreError>((!page.is_empty()).then_some(page))
        };
        tally.scan(&mut page)?;
        let recorded = self.value(Table::Appliance, STATE)?;
        let found = tally.compare(recorded.as_ref().map(|it| (it.revision, it.value.as_slice())));
        if adopt && found != StateCheck::Fits {
            tally.adopt();
            self.apply(vec![self.state_record(tally, None)?])?;
            self.make_durable()?;
        }
        Ok(found)
    }

    pub(super) fn apply(&self, planned: Vec<Planned>) -> Result<Vec<Change>, StoreError> {
        let mut batch = sled::Batch::default();
        let mut changes = Vec::with_capacity(planned.len());
        for Planned { table, key, revision, value } in planned {
            let address = address(table, &key);
            let deleted = value.is_none();
            match value {
                Some(value) => {
                    let mut bytes = Vec::with_capacity(8 + value.len());
                    bytes.extend_from_slice(&revision.to_be_bytes());
                    bytes.extend_from_slice(&value);
                    batch.remove(mark(&address));
                    batch.insert(address, bytes);
                }
                None => {
                    batch.insert(mark(&address), &revision.to_be_bytes());
                    batch.remove(address);
                }
            }
            changes.push(Change { table, key, revision, deleted });
        }
        self.tree.apply_batch(batch).map_err(of_sled)?;
        Ok(changes)
    }

    /// Whether what lies at `path` is still this database.
    pub(super) fn in_place(&self, path: &Path) -> Result<(), StoreError> {
        match path.join("db").metadata() {
            Ok(found) if (found.dev(), found.ino()) == self.identity => Ok(()),
            _ => Err(StoreError::Misplaced { path: path.to_owned() }),
        }
    }

    pub(super) fn make_durable(&self) -> Result<(), StoreError> {
        #[cfg(test)]
        drop(self.syncs.lock());
        self.tree.flush().map_err(of_sled)?;
        sync_data(&self.log).map_err(|error| match of_io("syncing", &error) {
            StoreError::Full => StoreError::Full,
            // Written data may be lost although the kernel still shows them.
            _ => StoreError::NotSynced,
        })
    }

    /// From now on every sync fails: what it goes to is a pipe.
    #[cfg(test)]
    pub(super) fn break_sync(&mut self) {
        let (reader, _) = std::io::pipe().unwrap();
        self.log = File::from(std::os::fd::OwnedFd::from(reader));
    }
}

/// Reads the schema version and applies what is missing; a new database gets the newest.
fn migrate(db: &sled::Db, migrations: &[Migration]) -> Result<(), StoreError> {
    let supported = 1 + migrations.len() as u32;
    let about = db.open_tree("about").map_err(of_sled)?;
    let found = match about.get("schema").map_err(of_sled)? {
        Some(bytes) => bytes
            .as_ref()
            .try_into()
            .map(u32::from_be_bytes)
            .map_err(|_| StoreError::Corrupt { what: "the schema version is not a number" })?,
        None => supported,
    };
    if found > supported {
        return Err(StoreError::Newer { found, supported });
    }
    for migration in migrations.iter().skip(found.saturating_sub(1) as usize) {
        migration(db).map_err(of_sled)?;
    }
    about.insert("schema", &supported.to_be_bytes()).map_err(of_sled)?;
    Ok(())
}

fn address(table: Table, key: &str) -> Vec<u8> {
    let mut address = Vec::with_capacity(1 + key.len());
    address.push(table.tag());
    address.extend_from_slice(key.as_bytes());
    address
}

/// Where the last revision of a deleted address is kept.
fn mark(address: &[u8]) -> Vec<u8> {
    [&[0], address].concat()
}

/// What lies at a place of the tree.
fn copied(place: &[u8], bytes: &[u8]) -> Result<Copied, StoreError> {
    let (deleted, address) = match place {
        [0, address @ ..] => (true, address),
        address => (false, address),
    };
    let (&tag, key) = address.split_first().ok_or_else(|| strange(place))?;
    let table = Table::of_tag(tag).ok_or_else(|| strange(place))?;
    let key = std::str::from_utf8(key).map_err(|_| strange(place))?.to_owned();
    let Stored { revision, value } = decode(place, bytes)?;
    Ok(Copied { table, key, revision, value: (!deleted).then_some(value) })
}

fn decode(place: &[u8], bytes: &[u8]) -> Result<Stored, StoreError> {
    let (revision, value) = bytes.split_first_chunk::<8>().ok_or_else(|| strange(place))?;
    Ok(Stored { revision: u64::from_be_bytes(*revision), value: value.to_vec() })
}

/// Nothing that was written here lies at this place: it is named as well as it can be.
fn strange(place: &[u8]) -> StoreError {
    let address = place.strip_prefix(&[0]).unwrap_or(place);
    let (table, key) = match address.split_first() {
        Some((&tag, key)) => (Table::of_tag(tag), key),
        None => (None, address),
    };
    let name = table.map_or_else(|| "a record of no table".to_owned(), |t| t.as_str().to_owned());
    StoreError::Strange { place: format!("{name}/{}", key.escape_ascii()) }
}

pub(super) fn make_directory(path: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {
            // The umask may have taken more away than is good.
            std::fs::set_permissions(path, Permissions::from_mode(0o700))
                .map_err(|error| of_io("making the directory", &error))?;
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                sync_directory(parent)?;
            }
            return Ok(());
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(of_io("making the directory", &error)),
    }
    let metadata = path.metadata().map_err(|error| of_io("looking at the directory", &error))?;
    let (mode, owner) = (metadata.mode() & 0o777, metadata.uid());
    if mode & 0o077 != 0 {
        return Err(StoreError::Mode { mode });
    }
    let own = rustix::process::geteuid().as_raw();
    match owner == own {
        true => Ok(()),
        false => Err(StoreError::Owner { path: path.to_owned(), owner, own }),
    }
}

pub(super) fn lock(path: &Path) -> Result<File, StoreError> {
    let file = open_plain(&path.join("lock"), Open::Make)
        .map_err(|error| of_opening("opening the lock", &error))?;
    retrying(|| match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse),
        Err(TryLockError::Error(error)) => Err(of_io("locking", &error)),
    })?;
    Ok(file)
}

/// Tries for up to a second while somebody else holds a lock: a process that was just forked keeps
/// those of its parent until it runs its own program, and one that ends takes a moment.
fn retrying<T>(attempt: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    for _ in 0..20 {
        match attempt() {
            Err(StoreError::InUse) => std::thread::sleep(Duration::from_millis(50)),
            result => return result,
        }
    }
    attempt()
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| of_io("syncing the directory", &error))
}

/// The same of a file that was to be opened: what lies there may be no file of the store's.
fn of_opening(during: &'static str, error: &io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::InvalidInput => StoreError::Odd { why: error.to_string() },
        _ => of_io(during, error),
    }
}

pub(super) fn of_io(during: &'static str, error: &io::Error) -> StoreError {
    use io::ErrorKind::{
        FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    match error.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => StoreError::Full,
        ReadOnlyFilesystem | PermissionDenied => StoreError::ReadOnly,
        kind => StoreError::Io { during, kind },
    }
}

fn of_sled(error: sled::Error) -> StoreError {
    match error {
        // sled keeps the kind and loses the number; its lock has no kind of its own.
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
            StoreError::InUse
        }
        sled::Error::Io(error) => of_io("working on sled's file", &error),
        sled::Error::Corruption { .. } => StoreError::Corrupt { what: "sled found a bad checksum" },
        sled::Error::ReportableBug(_) => StoreError::Corrupt { what: "sled is inconsistent" },
        sled::Error::CollectionNotFound(_) => StoreError::Corrupt { what: "a table is gone" },
        sled::Error::Unsupported(_) => {
            StoreError::Corrupt { what: "sled's file has another format" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(directory: &tempfile::TempDir) -> Settings {
        Settings { path: directory.path().join("store"), ..Settings::default() }
    }

    #[test]
    fn a_newer_schema_is_refused_and_an_older_one_brought_up() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(&directory);
        make_directory(&settings.path).unwrap();
        let engine = Engine::open(&settings).unwrap();
        let two: [Migration; 1] = [|db| db.insert("migrated", "yes").map(|_| ())];
        migrate(&engine._db, &two).unwrap();
        assert_eq!(engine._db.get("migrated").unwrap().unwrap(), "yes");
        engine._db.remove("migrated").unwrap();
        migrate(&engine._db, &two).unwrap();
        assert_eq!(engine._db.get("migrated").unwrap(), None, "a migration is done once");
        engine.make_durable().unwrap();
        drop(engine);
        let newer = StoreError::Newer { found: 2, supported: 1 };
        assert_eq!(Engine::open(&settings).err(), Some(newer));
    }

    #[test]
    fn a_stray_record_is_named_and_takes_no_other_with_it() {
        use crate::store::sled_store::SledStore;
        use crate::store::{Batch, Expect, Store};

        let directory = tempfile::tempdir().unwrap();
        let settings = settings(&directory);
        make_directory(&settings.path).unwrap();
        let engine = Engine::open(&settings).unwrap();
        engine.tree.insert([9, b'x', 0xff], &[0; 8]).unwrap();
        engine.tree.insert(address(Table::Secret, "short"), "7").unwrap();
        engine.make_durable().unwrap();
        drop(engine);
        let store = SledStore::open(&settings).unwrap();
        let put = Batch::new().put(Table::Key, "a", Expect::Any, vec![1]);
        tokio::runtime::Runtime::new().unwrap().block_on(store.commit(put)).unwrap();
        let strange = |place: &str| StoreError::Strange { place: place.to_owned() };
        let copied = store.copy(&mut || (), &mut |_| std::ops::ControlFlow::Continue(()));
        assert_eq!(copied, Err(strange("secret/short")));
        assert_eq!(store.get(Table::Secret, "short"), Err(strange("secret/short")));
        assert_eq!(
            super::copied(&[9, b'x', 0xff], &[0; 8]),
            Err(strange("a record of no table/x\\xff"))
        );
        assert_eq!(store.health(), Ok(()), "the store is as good as before");
        assert_eq!(store.get(Table::Key, "a").unwrap().unwrap().value, [1]);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(&directory);
        make_directory(&settings.path).unwrap();
        drop(Engine::open(&settings).unwrap());
        std::fs::write(settings.path.join("conf"), b"segment_size: 17\nversion: 9.9\n1234")
            .unwrap();
        assert!(matches!(Engine::open(&settings).err(), Some(StoreError::Corrupt { .. })));
    }
}
