//! What every store must do, held against each implementation.

use super::memory::MemoryStore;
use super::sled_store::{Settings, SledStore};
use super::*;

/// A case: gets an empty store.
type Case = fn(&dyn Store, &tokio::runtime::Runtime);

const CASES: [(&str, Case); 10] = [
    ("revisions count changes", revisions_count_changes),
    ("a revision is never used twice", a_revision_is_never_used_twice),
    ("a batch is all or nothing", a_batch_is_all_or_nothing),
    ("expectations", expectations),
    ("another form is no change", another_form_is_no_change),
    ("scans page", scans_page),
    ("watches tell", watches_tell),
    ("sizes are bounded", sizes_are_bounded),
    ("a copy has it all", a_copy_has_it_all),
    ("the state is recorded and checked", the_state_is_recorded_and_checked),
];

#[test]
fn in_memory() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for (name, case) in CASES {
        println!("{name}");
        case(&MemoryStore::new(), &runtime);
    }
}

#[test]
fn sled() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for (name, case) in CASES {
        println!("{name}");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let store = SledStore::open(&Settings { path, ..Settings::default() }).unwrap();
        case(&store, &runtime);
    }
}

fn put(key: &str, expect: Expect, value: &[u8]) -> Batch {
    Batch::new().put(Table::Key, key, expect, value.to_vec())
}

fn revisions_count_changes(store: &dyn Store, runtime: &tokio::runtime::Runtime) {
    assert_eq!(store.get(Table::Key, "a"), Ok(None));
    assert_eq!(store.next_revision(Table::Key, "a"), Ok(1));
    runtime.block_on(store.commit(put("a", Expect::Absent, b""))).unwrap();
    assert_eq!(store.get(Table::Key, "a"), Ok(Some(Stored { revision: 1, value: vec![] })));
    runtime.block_on(store.commit(put("a", Expect::Revision(1), b"two"))).unwrap();
    let stored = store.get(Table::Key, "a").unwrap().unwrap();
    assert_eq!((stored.revision, stored.value.as_slice()), (2, b"two".as_slice()));
    assert_eq!(store.get(Table::Secret, "a"), Ok(None), "tables are apart");
}

fn the_state_is_recorded_and_checked(store: &dyn Store, runtime: &tokio::runtime::Runtime) {
    crate::secret::start(&Default::default(), crate::secret::Use::Front).unwrap();
    let check = |byte: u8, adopt| {
        let key = crate::secret::StateKey::copy_from(&[byte; 32]).unwrap();
        runtime.block_on(store.check_state(key, 4, adopt)).unwrap()
    };
    runtime.block_on(store.commit(put("a", Expect::Absent, b""))).unwrap();
    assert_eq!((store.state_key(), check(7, false)), (Ok(None), StateCheck::Absent));
    assert_eq!(check(7, true), StateCheck::Absent);
    assert_eq!((store.state_key(), check(7, false)), (Ok(Some(4)), StateCheck::Fits));
    // Every later change is counted: new, changed, deleted, and another form.
    let batch = put("a", Expect::Revision(1), b"2").put(Table::Secret, "b", Expect::Any, vec![1]);
    runtime.block_on(store.commit(batch)).unwrap();
    let batch = Batch::new().delete(Table::Secret, "b", Expect::Any);
    runtime.block_on(store.commit(batch)).unwrap();
    let again = Batch::new().put_again(Table::Key, "a", 2, b"again".to_vec());
    runtime.block_on(store.commit(again)).unwrap();
    assert_eq!(check(7, false), StateCheck::Fits);
    // Under another key nothing fits, and no record is changed any more, until what is there is adopted.
    assert_eq!(check(8, false), StateCheck::Differs(Parts::ALL));
    let refused = runtime.block_on(store.commit(put("c", Expect::Absent, b"")));
    assert_eq!(refused, Err(StoreError::Unchecked));
    let open = Batch::new().put(Table::Appliance, "head", Expect::Any, vec![]);
    runtime.block_on(store.commit(open)).unwrap();
    check(8, true);
    runtime.block_on(store.commit(put("c", Expect::Absent, b""))).unwrap();
    assert_eq!(check(8, false), StateCheck::Fits);
}

fn another_form_is_no_change(store: &dyn Store, runtime: &tokio::runtime::Runtime) {
    let again = |revision| Batch::new().put_again(Table::Key, "a", revision, b"again".to_vec());
    assert!(runtime.block_on(store.commit(again(0))).is_err(), "there is nothing");
    for _ in 0..2 {
        runtime.block_on(store.commit(put("a", Expect::Any, b"one"))).unwrap();
    }
    assert!(runtime.block_on(store.commit(again(1))).is_err(), "it is another one");
    runtime.block_on(store.commit(again(2))).unwrap();
    let value = b"again".to_vec();
    assert_eq!(store.get(Table::Key, "a"), Ok(Some(Stored { revision: 2, value })));
    assert_eq!(store.next_revision(Table::Key, "a"), Ok(3));
}

fn a_revision_is_never_used_twice(store: &dyn Store, runtime: &tokio::runtime::Runtime) {
    runtime.block_on(store.commit(put("a", Expect::AbsentAt(1), b"one"))).unwrap();
    let delete = Batch::new().delete(Table::Key, "a", Expect::Revision(1));
    runtime.block_on(store.commit(delete)).unwrap();
    assert_eq!(store.get(Table::Key, "a"), Ok(None));
    assert_eq!(store.scan(Table::Key, "", None, 10), Ok(vec![]));
    assert_eq!(store.next_revision(Table::Key, "a"), Ok(3), "the delete was revision 2");
    let old = runtime.block_on(store.commit(put("a", Expect::AbsentAt(1), b"one")));
    assert!(matches!(old, Err(StoreError::Conflict { .. })));
    runtime.block_on(store.commit(put("a", Expect::AbsentAt(3), b"three"))).unwrap();
    assert_eq!(store.get(Table::Key, "a").unwrap().unwrap().revision, 3);
    assert_eq!(store.next_revision(Table::Key, "a"), Ok(4));
    let again = Batch::new().delete(Table::Key, "b", Expect::Any);
    runtime.block_on(store.commit(again)).unwrap();
    assert_eq!(store.next_revision(Table::Key, "b"), Ok(1), "deleting nothing changes nothing");
}

fn a_batch_is_all_or_nothing(store: &dyn Store, runtime: &tokio::runtime::Runtime) {
    runtime.block_on(store.commit(put("a", Expect::Absent, b"1"))).unwrap();
    let batch = put("b", Expect::Absent, b"2").put(Table::Key, "a", Expect::Absent, vec![3]);
    let conflict = StoreError::Conflict { table: Table::Key, key: "a".into() };
    assert_eq!(runtime.block_on(store.commit(batch)), Err(conflict));
    assert_eq!(store.get(Table::Key, "b"), Ok(None));
    let twice = put("c", Expect::Any, b"1").delete(Table::Key, "c", Expect::Any);
    let error = StoreError::Twice { table: Table::Key, key: "c".into() };
    assert_eq!(runtime.block_on(store.commit(twice)), Err(error));
    let across = put("b", Expect::Absent, b"2")
        .put(Table::Secret, "b", Expect::Absent, vec![9])
        .delete(Table::Key, "a", Expect::Revision(1))
        .check(Table::Appliance, "x", Expect::Absent);
    runtime.block_on(store.commit(across)).unwrap();
    assert_eq!(store.get(Table::Secret, "b").unwrap().unwrap().value, [9]);
    assert_eq!(store.get(Table::Key, "a"), Ok(None));
}

fn expectations(store: &dyn Store, runtime: &tokio::runtime::Runtime) {
    runtime.block_on(store.commit(put("a", Expect::Any, b"1"))).unwrap();
    for bad in [Expect::Absent, Expect::AbsentAt(1), Expect::AbsentAt(2), Expect::Revision(2)] {
        let result = runtime.block_on(store.commit(put("a", bad, b"x")));
        assert!(matches!(result, Err(StoreError::Conflict { .. })), "{bad:?}");
        let checked = put("other", Expect::Absent, b"x").check(Table::Key, "a", bad);
        assert!(runtime.block_on(store.commit(checked)).is_err(), "{bad:?}");
    }
    assert_eq!(store.get(Table::Key, "other"), Ok(None));
    for bad in [Expect::Revision(0), Expect::Revision(1), Expect::AbsentAt(0), Expect::AbsentAt(2)]
    {
        let result = runtime.block_on(store.commit(put("none", bad, b"x")));
        assert!(matches!(result, Err(StoreError::Conflict { .. })), "{bad:?}");
    }
}

fn scans_page(store: &dyn Store, runtime: &tokio::runtime::Runtime) {
    let mut batch = Batch::new();
    for index in 0..100 {
        batch = batch.put(Table::Key, &format!("k{index:03}"), Expect::Absent, vec![index]);
    }
    batch = batch.put(Table::Key, "l", Expect::Absent, vec![]);
    batch = batch.put(Table::KeyVersion, "k", Expect::Absent, vec![]);
    runtime.block_on(store.commit(batch)).unwrap();
    runtime.block_on(store.commit(Batch::new().delete(Table::Key, "k050", Expect::Any))).unwrap();
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = store.scan(Table::Key, "k", after.as_deref(), 7).unwrap();
        assert!(page.len() <= 7);
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        seen.extend(page.into_iter().map(|(key, _)| key));
    }
    let all: Vec<_> = (0..100).filter(|i| *i != 50).map(|i| format!("k{i:03}")).collect();
    assert_eq!(seen, all);
    assert_eq!(store.scan(Table::Key, "k09", Some("a"), 2).unwrap()[0].0, "k090");
    assert_eq!(store.scan(Table::Key, "k09", Some("k099"), 2), Ok(vec![]));
    assert_eq!(store.scan(Table::Key, "", Some("k099"), 9).unwrap().len(), 1);
    assert_eq!(store.scan(Table::Key, "", None, 0), Ok(vec![]));
}

fn watches_tell(store: &dyn Store, runtime: &tokio::runtime::Runtime) {
    let mut watch = store.watch(Table::Key, "a");
    runtime.block_on(store.commit(put("b", Expect::Any, b"1"))).unwrap();
    runtime.block_on(store.commit(put("ab", Expect::Any, b"1"))).unwrap();
    runtime.block_on(store.commit(Batch::new().delete(Table::Key, "ab", Expect::Any))).unwrap();
    let change = |revision, deleted| {
        let change = Change { table: Table::Key, key: "ab".into(), revision, deleted };
        Some(WatchEvent::Changed(change))
    };
    assert_eq!(runtime.block_on(watch.next()), change(1, false));
    assert_eq!(runtime.block_on(watch.next()), change(2, true));
    for _ in 0..600 {
        drop(store.commit(put("ab", Expect::Any, b"1")));
    }
    runtime.block_on(store.commit(put("b", Expect::Any, b"1"))).unwrap();
    assert_eq!(runtime.block_on(watch.next()), Some(WatchEvent::Missed));
}

fn sizes_are_bounded(store: &dyn Store, runtime: &tokio::runtime::Runtime) {
    let long = "k".repeat(MAX_KEY + 1);
    for (key, len) in [("", 0), (long.as_str(), 0), ("a", MAX_VALUE + 1)] {
        let result = runtime.block_on(store.commit(put(key, Expect::Any, &vec![0; len])));
        assert_eq!(result, Err(StoreError::Size));
    }
    let longest = "k".repeat(MAX_KEY);
    runtime.block_on(store.commit(put(&longest, Expect::Any, &vec![7; MAX_VALUE]))).unwrap();
    assert_eq!(store.get(Table::Key, &longest).unwrap().unwrap().value.len(), MAX_VALUE);
    assert_eq!(store.get(Table::Key, ""), Err(StoreError::Size));
}

fn a_copy_has_it_all(store: &dyn Store, runtime: &tokio::runtime::Runtime) {
    runtime.block_on(store.commit(put("a", Expect::Absent, b"one"))).unwrap();
    runtime.block_on(store.commit(put("b", Expect::Absent, b"two"))).unwrap();
    runtime.block_on(store.commit(put("b", Expect::Any, b"three"))).unwrap();
    let delete = Batch::new().delete(Table::Key, "a", Expect::Any);
    runtime.block_on(store.commit(delete)).unwrap();
    let (mut cuts, mut all) = (0, std::collections::BTreeMap::new());
    let mut take = |page: Vec<Copied>| {
        all.extend(page.into_iter().map(|one| ((one.table, one.key), (one.revision, one.value))));
        std::ops::ControlFlow::Continue(())
    };
    store.copy(&mut || cuts += 1, &mut take).unwrap();
    assert_eq!(cuts, 1);
    let expected = [("a", (2, None)), ("b", (2, Some(b"three".to_vec())))];
    let expected = expected.map(|(key, kept)| ((Table::Key, key.to_owned()), kept));
    assert_eq!(all, expected.into());
}
