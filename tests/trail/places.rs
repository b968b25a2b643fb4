//! Where verification says that damage is: the file and the row that the damaged line stands in.

use std::fs;

use strongroom::audit::{Expectations, FindingKind, Report, verify_files};

use crate::tools::{Bench, lines, segments, write_lines};

/// The first finding of a kind, as line, file and row.
fn place(report: &Report, wanted: &FindingKind) -> (u64, String, u64) {
    let found = report.findings.iter().find(|finding| finding.kind == *wanted);
    let found = found.unwrap_or_else(|| panic!("{wanted:?}: {:?}", report.findings));
    let place = found.place.clone().expect("it stands somewhere");
    (found.line, place.file, place.row)
}

const FILE: &str = "trail-00000000000000000001.jsonl";

fn spot(line: u64, row: u64) -> (u64, String, u64) {
    (line, FILE.to_owned(), row)
}

/// Changes one digit behind `before`.
fn flip(line: &mut String, before: &str) {
    let at = line.find(before).expect("it has that member") + before.len();
    let other = if &line[at..=at] == "1" { "2" } else { "1" };
    line.replace_range(at..=at, other);
}

#[tokio::test]
async fn a_changed_line_is_named_with_its_own_row() {
    let bench = Bench::with_trail(10).await;
    let whole = lines(&bench);
    for index in 0..whole.len() - 1 {
        let mut changed = whole.clone();
        changed[index] = changed[index].replacen("\"time\":\"2", "\"time\":\"3", 1);
        write_lines(&bench, &changed);
        let line = index as u64 + 1;
        let report = bench.verify(&[bench.head]);
        assert_eq!(place(&report, &FindingKind::Flipped), spot(line, line));
    }
}

#[tokio::test]
async fn a_changed_line_at_the_end_of_a_file_is_named_in_that_file() {
    let bench = Bench::with_trail(10).await;
    let whole = lines(&bench);
    let (first, second) = whole.split_at(7);
    write_lines(&bench, first);
    let directory = bench.settings().directory;
    let next = directory.join("trail-00000000000000000008.jsonl");
    fs::write(&next, second.join("\n") + "\n").unwrap();
    assert_eq!(bench.verify(&[bench.head]).findings, []);
    let mut changed = first.to_vec();
    changed[6] = changed[6].replacen("\"time\":\"2", "\"time\":\"3", 1);
    fs::write(directory.join(FILE), changed.join("\n") + "\n").unwrap();
    let report = bench.verify(&[bench.head]);
    assert_eq!(place(&report, &FindingKind::Flipped), spot(7, 7));
}

#[tokio::test]
async fn a_line_whose_number_was_changed_is_one_finding() {
    let bench = Bench::with_trail(10).await;
    let whole = lines(&bench);
    for (index, number) in [(0, 3), (4, 2), (4, 9), (4, 107), (6, 1)] {
        let mut changed = whole.clone();
        let line = index as u64 + 1;
        let (was, is) = (format!("\"seq\":{line},"), format!("\"seq\":{number},"));
        changed[index] = changed[index].replacen(&was, &is, 1);
        write_lines(&bench, &changed);
        let report = bench.verify(&[bench.head]);
        assert_eq!(place(&report, &FindingKind::Flipped), spot(line, line));
        let others: Vec<_> = report
            .findings
            .iter()
            .filter(|finding| finding.place.as_ref().is_none_or(|place| place.row != line))
            .collect();
        assert!(others.len() <= 1, "{index} to {number}: {others:?}");
    }
}

#[tokio::test]
async fn a_first_line_whose_trail_was_changed_is_the_one_that_is_named() {
    let bench = Bench::with_trail(10).await;
    let mut changed = lines(&bench);
    flip(&mut changed[0], "\"trail\":\"");
    write_lines(&bench, &changed);
    let report = bench.verify(&[bench.head]);
    assert!(report.findings.iter().all(|finding| finding.line == 1), "{:?}", report.findings);
    assert_eq!(report.findings[0].place.as_ref().unwrap().row, 1);
}

#[tokio::test]
async fn a_last_line_whose_link_was_changed_is_not_blamed_on_the_one_before() {
    let bench = Bench::with_trail(10).await;
    let mut whole = lines(&bench);
    // A daemon that stopped in order: its last line is a checkpoint.
    let last = whole.iter().rposition(|line| line.contains("\"kind\":\"checkpoint\"")).unwrap();
    whole.truncate(last + 1);
    let mut changed = whole.clone();
    flip(&mut changed[last], "\"prev\":\"");
    write_lines(&bench, &changed);
    let line = last as u64 + 1;
    assert_eq!(place(&bench.verify(&[]), &FindingKind::Flipped), spot(line, line));

    // Any other: nothing says which of the two it was.
    let mut changed = lines(&Bench::with_trail(10).await);
    changed.truncate(12);
    flip(changed.last_mut().unwrap(), "\"prev\":\"");
    write_lines(&bench, &changed);
    let found = bench.verify(&[]).findings;
    let finding = found.iter().find(|finding| finding.kind == FindingKind::Unlinked).unwrap();
    assert_eq!(finding.line, 12);
    assert!(finding.to_string().contains("line 11 or line 12 was changed"), "{finding}");
}

#[tokio::test]
async fn a_line_that_is_too_long_is_one_row() {
    let bench = Bench::with_trail(10).await;
    let mut changed = lines(&bench);
    changed[3] = "x".repeat(200_000);
    changed[12] = "y".to_owned();
    write_lines(&bench, &changed);
    let report = bench.verify(&[bench.head]);
    let unreadable: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.kind == FindingKind::Unreadable)
        .map(|finding| (finding.line, finding.place.as_ref().unwrap().row))
        .collect();
    assert_eq!(unreadable, [(4, 4), (13, 13)]);
    assert_eq!(report.lines, changed.len() as u64);
}

#[tokio::test]
async fn what_is_missing_is_said_to_be_missing_before_a_row() {
    let bench = Bench::with_trail(10).await;
    let mut dropped = lines(&bench);
    dropped.drain(5..9);
    write_lines(&bench, &dropped);
    let found = bench.verify(&[bench.head]).findings;
    let text = found[0].to_string();
    assert!(
        text.starts_with("lines 6 to 9 are missing") && text.contains("before row 6"),
        "{text}"
    );
}

/// Cut at the end of an older file, it is not a file that is missing.
#[tokio::test]
async fn an_older_file_without_its_end_is_named() {
    let bench = Bench::with_trail(10).await;
    let whole = lines(&bench);
    let (first, second) = whole.split_at(7);
    write_lines(&bench, first);
    let directory = bench.settings().directory;
    let next = directory.join("trail-00000000000000000008.jsonl");
    fs::write(&next, second.join("\n") + "\n").unwrap();
    let path = directory.join(FILE);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, &text[..text.len() - 10]).unwrap();
    let report = bench.verify(&[bench.head]);
    assert_eq!(place(&report, &FindingKind::Torn), spot(7, 7));
    let missing = |kind: &FindingKind| matches!(kind, FindingKind::MissingFile { .. });
    assert!(!report.findings.iter().any(|found| missing(&found.kind)), "{:?}", report.findings);

    fs::write(&path, first[..5].join("\n") + "\n").unwrap();
    let report = bench.verify(&[bench.head]);
    let found = report.findings.iter().find(|found| missing(&found.kind)).unwrap();
    let text = found.to_string();
    assert!(text.contains("6 to 7") && text.contains(FILE), "{text}");
}

#[tokio::test]
async fn a_line_that_is_not_the_known_one_has_a_row() {
    let bench = Bench::with_trail(10).await;
    let mut changed = lines(&bench);
    let last = changed.len() - 1;
    changed[last] = changed[last].replacen("\"time\":\"2", "\"time\":\"3", 1);
    write_lines(&bench, &changed);
    let line = changed.len() as u64;
    assert_eq!(place(&bench.verify(&[bench.head]), &FindingKind::RolledBack), spot(line, line));
}

/// An export of a part whose first line was changed.
#[tokio::test]
async fn in_a_part_the_changed_line_is_named_too() {
    let bench = Bench::with_trail(10).await;
    let whole = lines(&bench);
    let path = bench.directory.path().join("part.jsonl");
    let partial = Expectations { partial: true, ..Expectations::default() };
    let mut changed = whole[5..].to_vec();
    flip(&mut changed[0], "\"trail\":\"");
    fs::write(&path, changed.join("\n") + "\n").unwrap();
    let report = verify_files(&[path], &[], &partial).unwrap();
    let spliced = |kind: &FindingKind| matches!(kind, FindingKind::Spliced { .. });
    let found: Vec<_> = report.findings.iter().filter(|found| spliced(&found.kind)).collect();
    assert_eq!(found.len(), 1, "{:?}", report.findings);
    assert_eq!(found[0].place.as_ref().unwrap().row, 1);
    assert_eq!(segments(&bench).len(), 1);
}
