//! What is kept in memory is what is stored, whatever came in between.

use std::time::Duration;

use super::home::put_store_key;
use super::*;
use crate::custody::{LinkSettings, Wanted};
use crate::key::{Algorithm, KeyMeta, Labels, Mgf1Hash};
use crate::store::memory::MemoryStore;

/// Records over a store in memory, of an appliance with one store key; custody never comes.
async fn records(store: &Arc<MemoryStore>) -> (Records, HomeRecord) {
    let settings = LinkSettings {
        socket: "/nonexistent/custody.sock".into(),
        dialer: crate::custody::Dialer::Itself,
        deadline: Duration::from_millis(50),
        custody_uid: 0,
        max_outage_grace_seconds: 0,
    };
    let custody = Client::start(settings, Wanted::Locked);
    let store: Arc<dyn Store> = Arc::<MemoryStore>::clone(store);
    let records = Records::open(store, custody, &Settings::default()).unwrap();
    let home = HomeRecord {
        appliance: "0".repeat(32),
        generation: 1,
        store_keys: vec![store_key(1, 1)],
        signer_point: Vec::new(),
        signer_generation: 1,
        created_at: jiff::Timestamp::UNIX_EPOCH,
        generations: Vec::new(),
        masters_apart: false,
    };
    records.found(home.clone()).await.unwrap();
    (records, home)
}

fn store_key(id: u32, byte: u8) -> StoreKey {
    StoreKey { id, first: 0, wrapped: vec![byte; 8] }
}

#[tokio::test]
async fn a_store_key_that_was_kept_and_not_known_seals_from_then_on() {
    let store = Arc::new(MemoryStore::new());
    let (records, home) = records(&store).await;
    // Its disk failed after it was kept.
    let (kept, next) = (store_key(2, 2), store_key(2, 3));
    store.commit(put_store_key(Batch::new(), &kept).unwrap()).await.unwrap();
    let batch = put_store_key(Batch::new(), &next).unwrap();
    let found = records.keep_store_key(&home, batch, next.clone()).await.unwrap();
    assert_eq!(found.store_keys, [home.store_keys[0].clone(), kept]);
    assert_eq!(records.home(), Some(found));
    // And one that was not kept does not.
    store.fail_commits(Some(StoreError::Full));
    let (home, next) = (records.home().unwrap(), store_key(3, 3));
    let batch = put_store_key(Batch::new(), &next).unwrap();
    let failed = records.keep_store_key(&home, batch, next).await;
    assert!(matches!(failed, Err(RecordError::Store(StoreError::Full))), "{failed:?}");
    assert_eq!(records.home(), Some(home));
}

#[tokio::test]
async fn an_appliance_that_was_kept_and_not_known_is_found_again() {
    let store = Arc::new(MemoryStore::new());
    let (records, home) = records(&store).await;
    *records.home.write().unwrap() = None;
    records.reload_home().await.unwrap();
    assert_eq!(records.home().as_deref(), Some(&home));
}

#[tokio::test]
async fn a_key_that_is_held_back_is_not_kept_by_who_read_it_before() {
    let store = Arc::new(MemoryStore::new());
    let (records, _) = records(&store).await;
    let name = Name::parse("k").unwrap();
    store.commit(Batch::new().put(Table::Key, "k", Expect::Any, vec![1])).await.unwrap();
    let (size, hash) = (Algorithm::Rsa2048, Mgf1Hash::default());
    let (labels, now) = (Labels::default(), jiff::Timestamp::UNIX_EPOCH);
    let meta = KeyMeta::new(name.clone(), size, hash, labels, "kid".to_owned(), now);
    let read = Arc::new(KeyRecord { revision: 1, meta, versions: Vec::new() });
    records.opened.keep_if(&read, || records.is_served_at(&name, 1)).unwrap();
    assert!(records.key(&name).await.unwrap().is_some());
    records.hold_back("key/k");
    let kept = records.opened.keep_if(&read, || records.is_served_at(&name, 1));
    assert!(matches!(kept, Err(RecordError::Broken(_))), "{kept:?}");
    assert!(matches!(records.key(&name).await, Err(RecordError::Broken(_))));
}
