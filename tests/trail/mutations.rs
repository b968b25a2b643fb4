//! What was done to the files, and what verification calls it.

use std::fs;

use strongroom::audit::{AuditError, Expectations, FindingKind, OnBreak, Settings};

use crate::tools::{Bench, chain_anew, deed, intent, kinds, lines, segments, write_lines};

#[tokio::test]
async fn a_flipped_line_is_named_wherever_it_is() {
    let bench = Bench::with_trail(30).await;
    let whole = lines(&bench);
    for index in 0..whole.len() {
        let mut flipped = whole.clone();
        let line = &mut flipped[index];
        let at = line.find("\"time\":\"2").unwrap() + 8;
        line.replace_range(at..=at, "3");
        write_lines(&bench, &flipped);
        let report = bench.verify(&[bench.head]);
        let line = index as u64 + 1;
        let expected = if line == whole.len() as u64 {
            (line, FindingKind::RolledBack)
        } else {
            (line, FindingKind::Flipped)
        };
        assert_eq!(kinds(&report), [expected], "line {line}");
    }
}

#[tokio::test]
async fn a_flip_in_the_link_itself_or_into_nonsense_is_named() {
    let bench = Bench::with_trail(5).await;
    let whole = lines(&bench);
    for index in 1..whole.len() - 1 {
        let mut flipped = whole.clone();
        let at = flipped[index].find("\"prev\":\"").unwrap() + 8;
        let digit = if &flipped[index][at..=at] == "0" { "1" } else { "0" };
        flipped[index].replace_range(at..=at, digit);
        write_lines(&bench, &flipped);
        let line = index as u64 + 1;
        assert_eq!(kinds(&bench.verify(&[])), [(line, FindingKind::Flipped)]);
    }
    for (from, to) in
        [("\"kind\":\"intent\"", "\"kind\": \"intent\""), ("\"seq\"", "\"seq"), ("{", "")]
    {
        let mut flipped = whole.clone();
        flipped[4] = flipped[4].replacen(from, to, 1);
        if flipped[4] == whole[4] {
            continue;
        }
        write_lines(&bench, &flipped);
        let found = kinds(&bench.verify(&[]));
        assert!(found.contains(&(5, FindingKind::Unreadable)), "{found:?}");
        assert!(found.iter().all(|(line, _)| (4..=6).contains(line)), "{found:?}");
    }
}

#[tokio::test]
async fn a_flip_in_a_checkpoint_is_a_bad_signature() {
    let bench = Bench::with_trail(5).await;
    let mut flipped = lines(&bench);
    let index = flipped.iter().position(|line| line.contains("\"kind\":\"checkpoint\"")).unwrap();
    let at = flipped[index].find("\"at\":\"2").unwrap() + 6;
    flipped[index].replace_range(at..=at, "3");
    write_lines(&bench, &flipped);
    let line = index as u64 + 1;
    let found = kinds(&bench.verify(&[]));
    assert_eq!(found[0], (line, FindingKind::BadSignature));
    let other = Bench::new();
    write_lines(&other, &lines(&Bench::with_trail(5).await));
    assert!(kinds(&other.verify(&[])).iter().all(|(_, kind)| *kind == FindingKind::BadSignature));
}

#[tokio::test]
async fn dropped_and_reordered_and_repeated_lines_are_named() {
    let bench = Bench::with_trail(10).await;
    let whole = lines(&bench);

    let mut dropped = whole.clone();
    dropped.remove(7);
    write_lines(&bench, &dropped);
    let found = kinds(&bench.verify(&[bench.head]));
    assert!(found.contains(&(8, FindingKind::Dropped { to: 8 })), "{found:?}");
    assert!(!found.iter().any(|(_, kind)| *kind == FindingKind::Flipped), "{found:?}");

    let mut dropped = whole.clone();
    dropped.drain(5..9);
    write_lines(&bench, &dropped);
    let found = kinds(&bench.verify(&[bench.head]));
    assert_eq!(found, [(6, FindingKind::Dropped { to: 9 })], "two whole deeds are gone");

    let mut swapped = whole.clone();
    swapped.swap(6, 7);
    write_lines(&bench, &swapped);
    let found = kinds(&bench.verify(&[bench.head]));
    assert!(found.contains(&(7, FindingKind::Reordered)), "{found:?}");
    assert!(!found.iter().any(|(_, kind)| matches!(kind, FindingKind::Dropped { .. })));

    let mut repeated = whole.clone();
    repeated.insert(9, whole[3].clone());
    write_lines(&bench, &repeated);
    assert_eq!(kinds(&bench.verify(&[bench.head])), [(4, FindingKind::Repeated)]);
}

#[tokio::test]
async fn a_cut_tail_is_named_against_a_known_head() {
    let bench = Bench::with_trail(10).await;
    let whole = lines(&bench);
    let last = whole.len() as u64 - 4;
    write_lines(&bench, &whole[..last as usize]);
    assert!(kinds(&bench.verify(&[])).len() <= 1, "without a known head it cannot be seen");
    let found = kinds(&bench.verify(&[bench.head]));
    assert!(found.contains(&(bench.head.seq, FindingKind::Truncated { last })), "{found:?}");

    let path = segments(&bench).pop().unwrap();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, &text[..text.len() - 10]).unwrap();
    let found = kinds(&bench.verify(&[bench.head]));
    assert!(found.contains(&(last, FindingKind::Torn)), "{found:?}");

    let error = bench.open(Some(bench.head)).err().unwrap();
    assert_eq!(error, AuditError::CutTail { last: last - 1, known: bench.head.seq });
}

#[tokio::test]
async fn a_roll_back_is_refused_and_named_even_after_it_went_on() {
    let bench = Bench::new();
    let trail = bench.open(None).unwrap();
    deed(&trail, 1).await;
    trail.checkpoint().await.unwrap();
    drop(trail);
    let old = lines(&bench);
    let trail = bench.open(None).unwrap();
    for index in 0..5 {
        deed(&trail, index).await;
    }
    trail.stop().await.unwrap();
    let known = trail.head();
    drop(trail);

    write_lines(&bench, &old);
    let refused = bench.open(Some(known)).err().unwrap();
    assert_eq!(refused, AuditError::CutTail { last: old.len() as u64, known: known.seq });
    let settings = Settings { on_break: OnBreak::Record, ..bench.settings() };
    let trail = bench.open_with(&settings, Some(known)).unwrap();
    for index in 0..20 {
        deed(&trail, index).await;
    }
    trail.stop().await.unwrap();
    drop(trail);
    assert_eq!(kinds(&bench.verify(&[])), [], "it chains; only what is known elsewhere tells");
    assert_eq!(kinds(&bench.verify(&[known])), [(known.seq, FindingKind::RolledBack)]);
    assert!(lines(&bench).iter().any(|line| line.contains("break-recorded")));
    let refused = bench.open(Some(known)).err();
    assert_eq!(refused, Some(AuditError::RolledBack { seq: known.seq }));
}

#[tokio::test]
async fn spliced_lines_and_files_are_named() {
    let bench = Bench::with_trail(10).await;
    let whole = lines(&bench);
    let other = Bench::with_trail(10).await;
    let foreign = lines(&other);
    let trail = bench.verify(&[]).trail.unwrap();
    let foreign_trail = other.verify(&[]).trail.unwrap();
    assert_ne!(trail, foreign_trail);

    let mut spliced = whole.clone();
    spliced[8] = foreign[8].clone();
    write_lines(&bench, &spliced);
    let found = kinds(&bench.verify(&[bench.head]));
    assert!(found.contains(&(9, FindingKind::Spliced { trail: foreign_trail.clone() })));

    let mut inserted = whole.clone();
    inserted.insert(8, foreign[8].clone());
    write_lines(&bench, &inserted);
    let found = kinds(&bench.verify(&[bench.head]));
    assert_eq!(found, [(9, FindingKind::Spliced { trail: foreign_trail.clone() })]);

    // Made to look like one of its own, it is a change like any other.
    let mut spliced = whole.clone();
    spliced[8] = foreign[8].replace(&foreign_trail, &trail);
    write_lines(&bench, &spliced);
    let found = kinds(&bench.verify(&[bench.head]));
    assert_eq!(found, [(9, FindingKind::Flipped)]);
}

#[tokio::test]
async fn a_past_that_was_written_anew_shows_at_the_next_checkpoint() {
    let bench = Bench::with_trail(10).await;
    let mut forged = lines(&bench);
    forged[5] = forged[5].replace("key/payments", "key/harmless");
    chain_anew(&mut forged, 6);
    write_lines(&bench, &forged);
    let found = kinds(&bench.verify(&[]));
    let rewritten = |line| (line, FindingKind::Rewritten { covers: line - 1 });
    assert_eq!(found, [rewritten(14), rewritten(23)], "both checkpoints say so");
}

#[tokio::test]
async fn an_end_that_was_written_anew_is_said_to_be_uncovered_and_shows_against_a_known_head() {
    let bench = Bench::with_trail(10).await;
    let mut forged = lines(&bench);
    let index = forged.len() - 2;
    forged[index] = forged[index].replace("key/payments", "key/harmless");
    let from = index + 1;
    chain_anew(&mut forged, from);
    write_lines(&bench, &forged);
    let report = bench.verify(&[]);
    assert_eq!(kinds(&report), []);
    assert_eq!((report.covered, report.uncovered), (22, 3));
    assert_eq!(kinds(&bench.verify(&[bench.head])), [(bench.head.seq, FindingKind::RolledBack)]);
}

#[tokio::test]
async fn an_intent_without_an_outcome_and_an_outcome_without_an_intent_are_named() {
    let bench = Bench::new();
    let trail = bench.open(None).unwrap();
    deed(&trail, 1).await;
    let entry = trail.begin(intent(2)).durable().await.unwrap();
    let seq = entry.seq();
    let head = trail.head();
    // The process ends here, without a word.
    std::mem::forget(entry);
    drop(trail);
    let report = bench.verify(&[head]);
    assert_eq!(kinds(&report), [(seq, FindingKind::IntentWithoutOutcome)]);

    let mut forged = lines(&bench);
    forged.pop();
    let outcome = forged.pop().unwrap();
    let index = forged.len();
    forged.push(outcome.replacen("\"of\":2", "\"of\":1", 1));
    write_lines(&bench, &forged);
    let found = kinds(&bench.verify(&[]));
    let line = index as u64 + 1;
    assert!(found.contains(&(line, FindingKind::OutcomeWithoutIntent { of: 1 })), "{found:?}");
}

#[tokio::test]
async fn in_a_trail_in_use_only_a_recent_intent_may_be_open() {
    let bench = Bench::new();
    let trail = bench.open(None).unwrap();
    let (old, young) = (trail.begin(intent(1)), trail.begin(intent(2)));
    let (old, young) = (old.durable().await.unwrap(), young.durable().await.unwrap());
    deed(&trail, 3).await;
    let numbers = [old.seq(), young.seq()];
    std::mem::forget((old, young));
    drop(trail);
    let in_use = Expectations { in_use: true, ..Expectations::default() };
    assert_eq!(bench.verify_with(&in_use).under_way, 2);
    let mut lines = lines(&bench);
    for (line, time) in lines.iter_mut().zip(["00:00:00", "00:00:01", "00:04:00", "00:05:00"]) {
        let at = line.find("\"time\":\"").unwrap() + 8;
        line.replace_range(at..at + 27, &format!("2026-01-02T{time}.000000Z"));
    }
    let last = lines.last_mut().unwrap();
    let at = last.find("\"time\":\"").unwrap() + 8;
    last.replace_range(at..at + 27, "2026-01-02T00:05:01.000001Z");
    chain_anew(&mut lines, 1);
    write_lines(&bench, &lines);
    let report = bench.verify_with(&in_use);
    assert_eq!(kinds(&report), [(numbers[0], FindingKind::IntentWithoutOutcome)]);
    assert_eq!(report.under_way, 1);
}
