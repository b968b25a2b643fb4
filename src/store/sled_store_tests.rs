//! How the store on disk fails, and comes back.

use super::*;
use crate::store::Expect;

fn store(directory: &tempfile::TempDir) -> SledStore {
    let path = directory.path().join("store");
    SledStore::open(&Settings { path, ..Settings::default() }).unwrap()
}

fn put(key: &str) -> Batch {
    Batch::new().put(Table::Key, key, Expect::Any, vec![1])
}

#[test]
fn what_is_seen_before_it_is_durable_leaves_only_when_it_is() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let syncs = match &*store.shared.state.read().unwrap() {
        State::Open(engine) => Arc::clone(&engine.syncs),
        State::Failed { error, .. } => panic!("{error}"),
    };
    let held = syncs.lock().unwrap();
    let (look, commit) = (store.look(), store.commit(put("a")));
    let deadline = Instant::now() + Duration::from_secs(20);
    while store.get(Table::Key, "a").unwrap().is_none() {
        assert!(Instant::now() < deadline, "it is never applied");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!store.is_durable(Table::Key, "a") && store.is_durable(Table::Key, "b"));
    let mut durable = std::pin::pin!(look.durable());
    let early = runtime
        .block_on(async { tokio::time::timeout(Duration::from_millis(50), &mut durable).await });
    assert!(early.is_err(), "{early:?}");
    drop(held);
    assert_eq!(runtime.block_on(durable), Ok(()));
    assert!(store.is_durable(Table::Key, "a"));
    assert_eq!(runtime.block_on(store.look().durable()), Ok(()));
    runtime.block_on(commit).unwrap();
}

#[tokio::test]
async fn after_a_failed_sync_it_stays_closed_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    store.commit(put("a")).await.unwrap();
    assert_eq!(store.health(), Ok(()));
    match &mut *store.shared.state.write().unwrap() {
        State::Open(engine) => engine.break_sync(),
        State::Failed { error, .. } => panic!("{error}"),
    }
    assert_eq!(store.commit(put("b")).await, unsettled(StoreError::NotSynced), "it may be there");
    assert_eq!(store.health(), Err(StoreError::NotSynced));
    assert!(!store.is_durable(Table::Key, "b"));
    store.shared.fail(&StoreError::Full);
    assert_eq!(store.shared.until_retry(), None, "no other failure has it opened again");
    assert_eq!(store.commit(put("c")).await, Err(StoreError::NotSynced), "it is not tried");
    assert_eq!(store.get(Table::Key, "a"), Err(StoreError::NotSynced));
    drop(store);
    assert!(self::store(&directory).get(Table::Key, "a").unwrap().is_some());
}

#[test]
fn after_another_failure_it_works_again_although_nobody_asks_it_to() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let met = store.read(|_| Err::<(), _>(StoreError::Full));
    assert_eq!(met, Err(StoreError::Full));
    assert_eq!(store.health(), Err(StoreError::Full));
    let deadline = Instant::now() + Duration::from_secs(20);
    while store.health().is_err() {
        assert!(Instant::now() < deadline, "it never came back");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(store.get(Table::Key, "a"), Ok(None));
}

#[test]
fn a_reader_does_not_open_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let due = State::Failed { error: StoreError::Full, retry: Some(Instant::now()), spent: None };
    // The committing thread sleeps: nothing was handed in since it looked last.
    *store.shared.state.write().unwrap() = due;
    assert_eq!(store.get(Table::Key, "a"), Err(StoreError::Full));
    assert_eq!(store.health(), Err(StoreError::Full));
}
