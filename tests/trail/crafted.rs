//! Lines that nobody would write but to break the reading: numbers at their ends, in any order.

use std::fs;

use strongroom::audit::{
    Event, EventNote, Expectations, Kind, Line, OnBreak, Settings, verify_files,
};

use crate::tools::{Bench, deed, kinds, lines, segments, write_lines};

const NUMBERS: [u64; 8] = [0, 1, 2, 3, 9, u64::MAX / 2, u64::MAX - 1, u64::MAX];

/// The same numbers every time (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }

    fn number(&mut self) -> u64 {
        NUMBERS[self.roll(NUMBERS.len())]
    }

    fn line(&mut self) -> Vec<u8> {
        let prev = "0".repeat(64);
        let kinds = [Kind::Intent, Kind::Outcome, Kind::Event, Kind::Checkpoint];
        let line = Line {
            seq: self.number(),
            time: ["2026-01-02T03:04:05.000006Z", "yesterday", ""][self.roll(3)],
            prev: [prev.as_str(), "", "zz"][self.roll(3)],
            trail: ["0123456789abcdef", "fedcba9876543210", ""][self.roll(3)],
            kind: kinds[self.roll(4)],
            of: Some(self.number()),
            covers: Some(self.number()),
            head: Some(&prev),
            open_from: Some(self.number()),
            ..Line::default()
        };
        let mut bytes = Vec::new();
        match self.roll(6) {
            0 => bytes.extend_from_slice(b"not a line\n"),
            _ => line.encode(&mut bytes),
        }
        bytes
    }
}

#[test]
fn no_number_in_a_line_upsets_the_verification() {
    let bench = Bench::new();
    let mut dice = Dice(1);
    for round in 0..1000 {
        let mut bytes: Vec<u8> = (0..1 + dice.roll(6)).flat_map(|_| dice.line()).collect();
        bytes.truncate(bytes.len() - dice.roll(2));
        let path = bench.directory.path().join("crafted.jsonl");
        fs::write(&path, &bytes).unwrap();
        let expectations = Expectations {
            in_use: round % 2 == 0,
            partial: round % 3 == 0,
            known: vec![strongroom::audit::Head { seq: dice.number(), ..bench.head }],
            ..Expectations::default()
        };
        let report = verify_files(&[path], &[], &expectations).unwrap();
        assert_eq!(report.lines, bytes.iter().filter(|&&byte| byte == b'\n').count() as u64);
    }
}

#[test]
fn a_line_with_the_last_number_there_is_is_none() {
    let bench = Bench::new();
    let mut bytes = Vec::new();
    let line = Line { seq: u64::MAX, trail: "0123456789abcdef", ..Line::default() };
    line.encode(&mut bytes);
    bytes.extend_from_slice(b"not a line\nnot a line\n");
    let path = bench.directory.path().join("crafted.jsonl");
    fs::write(&path, bytes).unwrap();
    let report = verify_files(&[path], &[], &Expectations::default()).unwrap();
    let unreadable = strongroom::audit::FindingKind::Unreadable;
    assert_eq!(kinds(&report), [1, 2, 3].map(|line| (line, unreadable.clone())));
}

#[tokio::test]
async fn no_number_in_a_line_upsets_the_opening() {
    let mut dice = Dice(2);
    for _ in 0..20 {
        let bench = Bench::with_trail(2).await;
        let mut all = lines(&bench);
        let keep = dice.roll(all.len());
        all.truncate(keep);
        for _ in 0..1 + dice.roll(3) {
            let line = String::from_utf8(dice.line()).unwrap();
            let name = example(&all).unwrap_or("0123456789abcdef");
            let line = line.trim_end().replace("0123456789abcdef", name);
            all.push(line);
        }
        write_lines(&bench, &all);
        if dice.roll(3) == 0 {
            let path = segments(&bench).pop().unwrap();
            fs::rename(&path, path.with_file_name("trail-18446744073709551615.jsonl")).unwrap();
        }
        let settings = Settings { on_break: OnBreak::Record, ..bench.settings() };
        let trail = bench.open_with(&settings, None).unwrap();
        deed(&trail, 1).await;
        trail.event(EventNote::new(Event::Locked)).await.unwrap();
        drop(trail);
    }
}

/// The name of the trail that these lines are of.
fn example(lines: &[String]) -> Option<&str> {
    let (_, rest) = lines.first()?.split_once("\"trail\":\"")?;
    rest.get(..16)
}
