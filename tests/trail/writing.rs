//! Lines, files, checkpoints and reading back.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use strongroom::audit::{
    AuditError, Code, Event, EventNote, Filter, FindingKind, Head, Kind, Outcome, Settings,
    SignError,
};

use crate::tools::{Bench, Sign, deed, intent, kinds, lines, segments};

#[tokio::test]
async fn a_trail_that_nobody_touched_is_sound() {
    let bench = Bench::new();
    let trail = bench.open(None).unwrap();
    trail.event(EventNote::of(Event::Start, [7; 32])).await.unwrap();
    for index in 0..20 {
        deed(&trail, index).await;
    }
    trail.refuse(intent(99), Code("forbidden")).await.unwrap();
    trail.stop().await.unwrap();
    let head = trail.head();
    drop(trail);
    let report = bench.verify(&[head]);
    assert_eq!(kinds(&report), []);
    assert_eq!(report.lines, 1 + 1 + 40 + 1 + 1 + 1, "segment, start, deeds, refusal, stop, sign");
    assert_eq!((report.checkpoints, report.covered), (1, report.lines - 1));
    assert_eq!(report.uncovered, 1, "only the checkpoint itself");
    assert_eq!(report.last, Some(head));
    assert!(report.to_string().ends_with("sound\n"));
    assert!(serde_json::to_string(&report).unwrap().contains("\"findings\":[]"));
}

#[tokio::test]
async fn files_follow_each_other_and_a_missing_one_is_named() {
    let bench = Bench::new();
    let settings = Settings { segment_bytes: 4000, ..bench.settings() };
    let trail = bench.open_with(&settings, None).unwrap();
    let held = trail.begin(intent(0)).durable().await.unwrap();
    for index in 1..40 {
        deed(&trail, index).await;
    }
    drop(trail.close(held, Outcome::done()));
    trail.stop().await.unwrap();
    let head = trail.head();
    drop(trail);
    let files = segments(&bench);
    assert!(files.len() > 4, "{files:?}");
    assert_eq!(kinds(&bench.verify(&[head])), []);
    fs::remove_file(&files[2]).unwrap();
    let found = kinds(&bench.verify(&[head]));
    assert!(found.iter().any(|(_, kind)| matches!(kind, FindingKind::MissingFile { .. })));
    assert!(!found.iter().any(|(_, kind)| matches!(kind, FindingKind::Dropped { .. })));
}

#[tokio::test]
async fn many_tasks_share_their_syncs_and_each_has_its_two_lines() {
    let bench = Bench::new();
    let trail = Arc::new(bench.open(None).unwrap());
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let trail = Arc::clone(&trail);
            tokio::spawn(async move {
                for index in 0..10 {
                    deed(&trail, task * 10 + index).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    trail.stop().await.unwrap();
    let head = trail.head();
    drop(trail);
    let report = bench.verify(&[head]);
    assert_eq!(kinds(&report), []);
    assert_eq!(report.lines, 1 + 64 * 10 * 2 + 2);
}

#[tokio::test]
async fn what_is_read_back_is_what_was_written_page_by_page() {
    let bench = Bench::new();
    let settings = Settings { segment_bytes: 100_000, ..bench.settings() };
    let trail = bench.open_with(&settings, None).unwrap();
    for index in 0..400 {
        deed(&trail, index).await;
    }
    trail.checkpoint().await.unwrap();
    let (mut seen, mut after) = (Vec::new(), 0);
    loop {
        let page = trail.read(&Filter::default(), after, 70).unwrap();
        assert!(page.lines.len() <= 70);
        seen.extend(page.lines.iter().map(|line| line.get().to_owned()));
        let Some(next) = page.next else { break };
        after = next;
    }
    assert_eq!(seen, lines(&bench));
    let filter = Filter { kind: Some(Kind::Checkpoint), ..Filter::default() };
    assert_eq!(trail.read(&filter, 0, 10).unwrap().lines.len(), 1);
    let filter = Filter { action: Some("key:encrypt".into()), ..Filter::default() };
    assert_eq!(trail.read(&filter, 0, 10).unwrap().lines.len(), 0);
    let late = trail.read(&Filter::default(), 700, 5).unwrap();
    assert!(late.lines[0].get().starts_with("{\"seq\":701,"));
    assert_eq!(trail.read(&Filter::default(), u64::MAX, 5).unwrap().lines.len(), 0);
}

#[tokio::test]
async fn checkpoints_come_by_themselves_and_heads_are_kept() {
    let bench = Bench::new();
    let settings = Settings { checkpoint_lines: 10, head_seconds: 0, ..bench.settings() };
    let trail = Arc::new(bench.open_with(&settings, None).unwrap());
    let tended = Arc::clone(&trail);
    let tending = tokio::spawn(async move { tended.tend().await });
    *bench.sign.lock().unwrap() = Sign::NotReady;
    for index in 0..10 {
        deed(&trail, index).await;
    }
    assert_eq!(trail.checkpoint().await, Err(AuditError::NotSigned(SignError::NotReady)));
    *bench.sign.lock().unwrap() = Sign::Works;
    let signed = || bench.kept.lock().unwrap().iter().rfind(|(_, signed)| *signed).copied();
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while signed().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap();
    tending.abort();
    assert_eq!(signed().map(|(head, _)| head), trail.status().checkpoint);
    drop(trail);
}

#[tokio::test]
async fn a_known_head_is_found_in_the_middle() {
    let bench = Bench::new();
    let trail = bench.open(None).unwrap();
    deed(&trail, 1).await;
    let head = trail.head();
    for index in 0..500 {
        deed(&trail, index).await;
    }
    drop(trail);
    drop(bench.open(Some(head)).unwrap());
    let other = Head { hash: bench.head.hash, ..head };
    assert_eq!(bench.open(Some(other)).err(), Some(AuditError::RolledBack { seq: head.seq }));
}
