//! The store on a real disk: who may open it, what survives, and a disk without room.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use strongroom::store::sled_store::{Settings, SledStore};
use strongroom::store::{Batch, Expect, Store, StoreError, Table};

fn settings(directory: &Path) -> Settings {
    Settings { path: directory.join("store"), ..Settings::default() }
}

fn put(key: &str, value: Vec<u8>) -> Batch {
    Batch::new().put(Table::Secret, key, Expect::Any, value)
}

#[tokio::test]
async fn what_was_acknowledged_is_there_when_it_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let store = SledStore::open(&settings).unwrap();
    let mode = fs::metadata(&settings.path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700);
    store.commit(put("a", b"one".to_vec())).await.unwrap();
    store.commit(put("b", b"two".to_vec())).await.unwrap();
    store.commit(Batch::new().delete(Table::Secret, "b", Expect::Any)).await.unwrap();
    drop(store);
    let store = SledStore::open(&settings).unwrap();
    assert_eq!(store.get(Table::Secret, "a").unwrap().unwrap().value, b"one");
    assert_eq!(store.get(Table::Secret, "b"), Ok(None));
    assert_eq!(store.next_revision(Table::Secret, "b"), Ok(3));
}

#[tokio::test]
async fn many_waiters_are_all_answered_and_conflicts_found_within_a_group() {
    let directory = tempfile::tempdir().unwrap();
    let store = SledStore::open(&settings(directory.path())).unwrap();
    let batch = || Batch::new().put(Table::Key, "one", Expect::Absent, vec![1]);
    let answers: Vec<_> = (0..64).map(|_| store.commit(batch())).collect();
    let mut done = 0;
    for answer in answers {
        match answer.await {
            Ok(()) => done += 1,
            Err(error) => assert!(matches!(error, StoreError::Conflict { .. })),
        }
    }
    assert_eq!(done, 1);
    assert_eq!(store.get(Table::Key, "one").unwrap().unwrap().revision, 1);
}

#[test]
fn a_second_opener_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let _store = SledStore::open(&settings).unwrap();
    assert_eq!(SledStore::open(&settings).err(), Some(StoreError::InUse));
}

#[test]
fn an_open_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    fs::create_dir(&settings.path).unwrap();
    fs::set_permissions(&settings.path, fs::Permissions::from_mode(0o750)).unwrap();
    assert_eq!(SledStore::open(&settings).err(), Some(StoreError::Mode { mode: 0o750 }));
}

#[tokio::test]
async fn a_disk_below_its_reserve_is_full_for_writing_and_fine_for_reading() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    SledStore::open(&settings).unwrap().commit(put("a", vec![1])).await.unwrap();
    let settings = Settings { reserve_bytes: u64::MAX, ..settings };
    let store = SledStore::open(&settings).unwrap();
    let refused = store.commit(put("a", vec![2])).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Scarce(room) if room.reserve_bytes == u64::MAX));
    assert!(refused.to_string().contains("[store] reserve_bytes"), "{refused}");
    assert!(store.room().unwrap().is_scarce() && store.health().is_ok());
    assert_eq!(store.get(Table::Secret, "a").unwrap().unwrap().value, [1]);
    store.commit(put("a", vec![3]).from_reserve()).await.unwrap();
    assert_eq!(store.get(Table::Secret, "a").unwrap().unwrap().value, [3]);
}

/// The limit on the size of files is one of the whole process, so the test runs itself once more:
/// under a shell that lets writes beyond the limit fail instead of ending the process.
#[test]
fn a_write_that_fails_within_sled_is_reported_and_service_comes_back() {
    if std::env::var_os("STORE_TEST_LIMITED").is_some() {
        return fill_until_it_fails_then_make_room();
    }
    let test = "a_write_that_fails_within_sled_is_reported_and_service_comes_back";
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("STORE_TEST_LIMITED", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("came back"), "{text}");
}

fn fill_until_it_fails_then_make_room() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let store = SledStore::open(&settings(directory.path())).unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, 3 << 20, hard).unwrap();
    let mut acknowledged = Vec::new();
    let error = loop {
        let key = format!("k{:05}", acknowledged.len());
        match runtime.block_on(store.commit(put(&key, vec![7; 4000]))) {
            Ok(()) => acknowledged.push(key),
            Err(error) => break error,
        }
        assert!(acknowledged.len() < 10_000, "the limit was never met");
    };
    assert_eq!(error, StoreError::Unsettled(Box::new(StoreError::Full)));
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while runtime.block_on(store.commit(put("after", vec![1]))).is_err() {
        assert!(Instant::now() < deadline, "it never came back");
        std::thread::sleep(Duration::from_millis(50));
    }
    for key in &acknowledged {
        assert!(store.get(Table::Secret, key).unwrap().is_some(), "{key} is lost");
    }
    println!("came back after {} commits", acknowledged.len());
}
