//! A copy of a whole store, of one moment, while others go on writing; and a store made of a copy.
//!
//! sled has no snapshots. So the copy reads everything page by page and has noted what is committed
//! meanwhile; what was noted it reads again, until little is left. Then the committing thread pauses
//! between two groups, and the rest is read: the moment of the copy is that pause.

use std::collections::HashSet;
use std::fs::File;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};

use super::batch::Planned;
use super::engine::{Engine, lock, make_directory};
use super::sled_store::{Settings, SledStore};
use super::state::is_state;
use super::{Change, StoreError, Table};

/// One address with all that is kept of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    pub table: Table,
    pub key: String,
    pub revision: u64,
    /// `None` where the value was deleted: what stays is its last revision.
    pub value: Option<Vec<u8>>,
}

/// Takes what is copied; after a `Break` nothing more comes.
pub type Take<'a> = &'a mut dyn FnMut(Vec<Copied>) -> ControlFlow<()>;

/// How many addresses are read at once.
const PAGE: usize = 256;

/// So few addresses may be read while nobody can commit.
const REST: usize = 512;

/// After so many rounds the rest is read, however much it is: others write faster than it is taken.
const ROUNDS: usize = 16;

/// What is committed while copies are made.
#[derive(Default)]
pub(super) struct Notes {
    open: Mutex<Vec<Weak<Mutex<Noted>>>>,
}

/// What one copy still has to look at.
#[derive(Default)]
pub(super) struct Noted {
    changed: HashSet<(Table, String)>,
    failed: Option<StoreError>,
}

impl Notes {
    /// Notes every change from now on, for as long as the result is held.
    pub fn begin(&self) -> Arc<Mutex<Noted>> {
        let noted = Arc::default();
        self.lock().push(Arc::downgrade(&noted));
        noted
    }

    /// Something is durable.
    pub fn tell(&self, change: &Change) {
        self.each(|noted| {
            noted.changed.insert((change.table, change.key.clone()));
        });
    }

    /// The store failed: whether a batch stayed is open, so no copy is of one moment.
    pub fn fail(&self, error: &StoreError) {
        self.each(|noted| noted.failed = Some(error.clone()));
    }

    fn each(&self, mut tell: impl FnMut(&mut Noted)) {
        let mut open = self.lock();
        if !open.is_empty() {
            open.retain(|copy| match copy.upgrade() {
                Some(noted) => {
                    tell(&mut noted.lock().unwrap_or_else(PoisonError::into_inner));
                    true
                }
                None => false,
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Mutex<Noted>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was noted until now; the next is noted anew.
fn drain(noted: &Mutex<Noted>) -> Result<Vec<(Table, String)>, StoreError> {
    let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
    match &noted.failed {
        Some(error) => Err(error.clone()),
        None => Ok(std::mem::take(&mut noted.changed).into_iter().collect()),
    }
}

/// Copies a store on sled; see [`super::Store::copy`].
pub(super) fn copy_sled(
    store: &SledStore,
    notes: &Notes,
    cut: &mut dyn FnMut(),
    take: Take<'_>,
) -> Result<(), StoreError> {
    let noted = notes.begin();
    let mut after = None;
    loop {
        let (page, last) = store.read(|engine| engine.raw_page(after.as_deref(), PAGE))?;
        let Some(last) = last else { break };
        after = Some(last);
        if take(page).is_break() {
            return Ok(());
        }
    }
    let mut rest = drain(&noted)?;
    for _ in 0..ROUNDS {
        if rest.len() <= REST {
            break;
        }
        for some in rest.chunks(PAGE) {
            if take(again(store, some)?).is_break() {
                return Ok(());
            }
        }
        rest = drain(&noted)?;
    }
    let held = store.pause()?;
    cut();
    rest.extend(drain(&noted)?);
    let rest = again(store, &rest)?;
    drop(held);
    // Whether it wants more makes no difference: there is none.
    let _ = take(rest);
    Ok(())
}

/// What is at these addresses now.
fn again(store: &SledStore, changed: &[(Table, String)]) -> Result<Vec<Copied>, StoreError> {
    let one =
        |(table, key): &(Table, String)| store.read(|engine| engine.raw(*table, key)).transpose();
    let changed = changed.iter().filter(|(table, key)| !is_state(*table, key));
    changed.filter_map(one).collect()
}

/// The committing thread's side of a pause between two groups.
pub(super) struct Pause {
    reached: mpsc::SyncSender<()>,
    released: mpsc::Receiver<()>,
}

/// The other side: the pause lasts until this is dropped.
pub(super) struct Held {
    reached: mpsc::Receiver<()>,
    _release: mpsc::SyncSender<()>,
}

impl Pause {
    pub fn new() -> (Self, Held) {
        let (tell, reached) = mpsc::sync_channel(1);
        let (release, released) = mpsc::sync_channel(0);
        (Self { reached: tell, released }, Held { reached, _release: release })
    }

    /// Returns when the other side has let go.
    pub fn hold(self) {
        if self.reached.send(()).is_ok() {
            // It is never sent anything: its end is the sign.
            let _ = self.released.recv();
        }
    }
}

impl Held {
    /// Waits until nothing is committed any more.
    pub fn reached(self) -> Result<Self, StoreError> {
        self.reached.recv().map_err(|_| StoreError::Closed)?;
        Ok(self)
    }
}

/// A new store that is filled with a copy. What is there before [`Filling::finish`] is no store yet.
pub struct Filling {
    engine: Engine,
    _lock: File,
}

impl Filling {
    /// Makes the store; its directory must not be there, or be empty.
    pub fn begin(settings: &Settings) -> Result<Self, StoreError> {
        make_directory(&settings.path)?;
        let lock = lock(&settings.path)?;
        Ok(Self { engine: Engine::open(settings)?, _lock: lock })
    }

    /// Adds a page; of an address that comes twice the last counts.
    pub fn put(&self, page: Vec<Copied>) -> Result<(), StoreError> {
        // One batch must not name an address twice.
        let mut seen = HashSet::with_capacity(page.len());
        let mut last: Vec<Planned> = Vec::with_capacity(page.len());
        for Copied { table, key, revision, value } in page.into_iter().rev() {
            if !is_state(table, &key) && seen.insert((table, key.clone())) {
                last.push(Planned { table, key, revision, value });
            }
        }
        self.engine.apply(last).map(drop)
    }

    /// Has all of it on disk.
    pub fn finish(self) -> Result<(), StoreError> {
        self.engine.make_durable()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::*;
    use crate::store::{Batch, Expect, Store};

    /// Two addresses are always written together: a copy in which they differ is of no one moment.
    #[test]
    fn a_copy_under_load_is_of_one_moment_and_makes_the_same_store() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| Settings { path: directory.path().join(name), ..Settings::default() };
        let store = SledStore::open(&at("store")).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let pair = |n: u64| {
            let (first, last) = (format!("a{:04}", n % 2000), format!("z{:04}", n % 2000));
            let batch = Batch::new().put(Table::Key, "count", Expect::Any, vec![]);
            let value = n.to_be_bytes().to_vec();
            let batch = match n % 5 {
                0 => batch.delete(Table::Key, &first, Expect::Any),
                _ => batch.put(Table::Key, &first, Expect::Any, value.clone()),
            };
            batch.put(Table::Secret, &last, Expect::Any, value)
        };
        let (stop, done, cut_at) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let pages = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut n = 0;
                while !stop.load(Ordering::Acquire) || n < 4000 {
                    let commits: Vec<_> = (n..n + 50).map(|n| store.commit(pair(n))).collect();
                    commits.into_iter().for_each(|commit| runtime.block_on(commit).unwrap());
                    n += 50;
                    done.store(n, Ordering::Release);
                }
            });
            while done.load(Ordering::Acquire) < 3000 {
                std::thread::yield_now();
            }
            let before = done.load(Ordering::Acquire);
            let mut pages = Vec::new();
            let mut cut = || cut_at.store(done.load(Ordering::Acquire), Ordering::Release);
            let mut take = |page| {
                pages.push(page);
                ControlFlow::Continue(())
            };
            store.copy(&mut cut, &mut take).unwrap();
            stop.store(true, Ordering::Release);
            writer.join().unwrap();
            assert!(before <= cut_at.load(Ordering::Acquire));
            pages
        });
        let filling = Filling::begin(&at("copy")).unwrap();
        pages.into_iter().for_each(|page| filling.put(page).unwrap());
        filling.finish().unwrap();
        let copy = SledStore::open(&at("copy")).unwrap();
        let count = copy.get(Table::Key, "count").unwrap().unwrap().revision;
        assert!(count >= cut_at.load(Ordering::Acquire), "what was acknowledged is there");
        // After `count` batches, whatever they left has to be there, and nothing of a later one.
        for slot in 0..2000 {
            let writes = (0..count).filter(|n| n % 2000 == slot);
            let (last, times) = (writes.clone().max().unwrap(), writes.count() as u64);
            let kept = copy.get(Table::Secret, &format!("z{slot:04}")).unwrap().unwrap();
            assert_eq!((kept.revision, kept.value), (times, last.to_be_bytes().to_vec()));
            let other = copy.get(Table::Key, &format!("a{slot:04}")).unwrap();
            assert_eq!(other.is_some(), last % 5 != 0, "{slot}");
        }
    }

    #[test]
    fn a_deleted_address_goes_on_counting_in_a_store_made_of_a_copy() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { path: directory.path().join("store"), ..Settings::default() };
        let filling = Filling::begin(&settings).unwrap();
        let at = |revision, value: Option<&[u8]>| Copied {
            table: Table::Secret,
            key: "s".to_owned(),
            revision,
            value: value.map(<[u8]>::to_vec),
        };
        filling.put(vec![at(3, None), at(4, Some(b"x")), at(5, None)]).unwrap();
        filling.finish().unwrap();
        let store = SledStore::open(&settings).unwrap();
        assert_eq!(store.get(Table::Secret, "s"), Ok(None));
        assert_eq!(store.next_revision(Table::Secret, "s"), Ok(6));
    }

    #[test]
    fn a_store_that_failed_meanwhile_gives_no_copy() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { path: directory.path().join("store"), ..Settings::default() };
        let store = SledStore::open(&settings).unwrap();
        let mut pages = 0;
        let mut take = |_| {
            pages += 1;
            let failed = store.read(|_| Err::<(), _>(StoreError::Full));
            assert!(failed.is_err());
            ControlFlow::Continue(())
        };
        let put = Batch::new().put(Table::Key, "a", Expect::Any, vec![]);
        tokio::runtime::Runtime::new().unwrap().block_on(store.commit(put)).unwrap();
        assert_eq!(store.copy(&mut || (), &mut take), Err(StoreError::Full));
        assert_eq!(pages, 1);
    }
}
