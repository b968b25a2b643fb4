//! The audit log for people: one row per operation, made of its intent and its outcome.

use std::collections::{HashMap, VecDeque};

use serde_json::{Map, Value};

use super::output::{cell, plain, table};

/// As wide as what mostly stands below them, so that the pages of a long log line up.
const HEADINGS: [&str; 7] = [
    "SEQ       ",
    "TIME                ",
    "WHAT       ",
    "CALLER          ",
    "ACTION          ",
    "RESOURCE                ",
    "MORE",
];

/// How many rows wait for an outcome at most: an older one is shown without.
const MOST: usize = 5000;

/// Columns as wide as the headings; the headings themselves only where they are asked for.
pub fn text(rows: &[Vec<String>], headings: bool) -> String {
    let text = table(&HEADINGS, rows);
    match text.split_once('\n') {
        Some((_, without)) if !headings => without.to_owned(),
        _ => text,
    }
}

/// Rows in the order of their first lines.
#[derive(Default)]
pub struct Rows {
    waiting: VecDeque<Row>,
    /// Which row waits for the outcome of this intent: its number since the beginning.
    open: HashMap<u64, usize>,
    gone: usize,
}

struct Row {
    line: Map<String, Value>,
    /// The number of the outcome's line, once it is there.
    outcome: Option<u64>,
    is_open: bool,
}

impl Rows {
    /// The next line of the log.
    pub fn take(&mut self, line: Value) {
        let Value::Object(line) = line else { return };
        let number = |name: &str| line.get(name).and_then(Value::as_u64);
        let kind = line.get("kind").and_then(Value::as_str);
        if let (Some("outcome"), Some(of), Some(seq)) = (kind, number("of"), number("seq"))
            && let Some(index) = self.open.remove(&of)
            && let Some(row) = self.waiting.get_mut(index.wrapping_sub(self.gone))
        {
            row.close(seq, line);
            return;
        }
        let intent = number("seq").filter(|_| kind == Some("intent"));
        if let Some(seq) = intent {
            self.open.insert(seq, self.gone + self.waiting.len());
        }
        self.waiting.push_back(Row { line, outcome: None, is_open: intent.is_some() });
    }

    /// The rows that can be shown by now.
    pub fn ready(&mut self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        while self.waiting.front().is_some_and(|row| !row.is_open) || self.waiting.len() > MOST {
            rows.extend(self.next());
        }
        rows
    }

    /// All others: what still has no outcome is shown so.
    pub fn rest(&mut self) -> Vec<Vec<String>> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn next(&mut self) -> Option<Vec<String>> {
        let row = self.waiting.pop_front()?;
        self.gone += 1;
        if let Some(seq) = row.line.get("seq").and_then(Value::as_u64) {
            self.open.remove(&seq);
        }
        Some(row.cells())
    }
}

impl Row {
    fn close(&mut self, seq: u64, outcome: Map<String, Value>) {
        (self.outcome, self.is_open) = (Some(seq), false);
        let own = ["seq", "time", "kind", "of"];
        let more = outcome.into_iter().filter(|(name, _)| !own.contains(&name.as_str()));
        self.line.extend(more);
    }

    /// In columns; what has no column of its own stands in the last one.
    fn cells(&self) -> Vec<String> {
        // Of use to a verifier or said in another column.
        const LEFT_OUT: [&str; 17] = [
            "seq",
            "time",
            "kind",
            "caller",
            "action",
            "resource",
            "result",
            "event",
            "prev",
            "trail",
            "request",
            "uid",
            "gid",
            "head",
            "at",
            "signer",
            "signature",
        ];
        let member = |name: &str| self.line.get(name).map(|value| cell(name, value));
        let what = member("result")
            .or_else(|| member("event"))
            .or_else(|| if self.is_open { Some("no outcome".to_owned()) } else { member("kind") });
        let seq = member("seq").map(|seq| match self.outcome {
            Some(outcome) => format!("{seq},{outcome}"),
            None => seq,
        });
        let more: Vec<String> = self
            .line
            .iter()
            .filter(|(name, value)| !LEFT_OUT.contains(&name.as_str()) && !value.is_null())
            .map(|(name, value)| format!("{}={}", plain(name), cell(name, value)))
            .collect();
        let columns = [
            seq,
            member("time"),
            what,
            member("caller"),
            member("action"),
            member("resource"),
            Some(more.join(" ")),
        ];
        columns.into_iter().map(Option::unwrap_or_default).collect()
    }
}

/// One line as a row of its own.
pub fn single(line: Value) -> Vec<Vec<String>> {
    let Value::Object(line) = line else { return Vec::new() };
    vec![Row { line, outcome: None, is_open: false }.cells()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_says_what_became_of_it() {
        let outcome = json!({"seq": 7, "time": "2026-01-02T03:04:05.000006Z", "prev": "00",
            "kind": "outcome", "of": 6, "caller": "unix:0", "action": "key:decrypt",
            "resource": "key/k", "result": "failed", "code": "decryption-failed"});
        let expected = [
            "7",
            "2026-01-02 03:04:05Z",
            "failed",
            "unix:0 (root)",
            "key:decrypt",
            "key/k",
            "of=6 code=decryption-failed",
        ];
        assert_eq!(single(outcome), [expected]);
        let what = |line: Value| single(line)[0][2].clone();
        assert_eq!(what(json!({"kind": "event", "event": "start"})), "start");
        assert_eq!(what(json!({"kind": "intent"})), "intent");
    }

    #[test]
    fn an_operation_is_one_row_wherever_its_outcome_stands() {
        let mut rows = Rows::default();
        let intent =
            |seq: u64| json!({"seq": seq, "kind": "intent", "action": "a", "version": seq});
        let outcome = |seq: u64, of: u64| json!({"seq": seq, "kind": "outcome", "of": of, "result": "done", "n": seq});
        for line in [intent(1), intent(2), outcome(3, 2)] {
            rows.take(line);
        }
        assert!(rows.ready().is_empty(), "the first one waits for its outcome");
        rows.take(outcome(4, 1));
        let seen: Vec<(String, String)> =
            rows.ready().into_iter().map(|row| (row[0].clone(), row[6].clone())).collect();
        let expected =
            [("1,4", "version=1 n=4"), ("2,3", "version=2 n=3")].map(|(a, b)| (a.into(), b.into()));
        assert_eq!(seen, expected);
        rows.take(intent(5));
        rows.take(json!({"seq": 6, "kind": "event", "event": "locked"}));
        assert!(rows.ready().is_empty());
        let rest = rows.rest();
        assert_eq!((rest[0][2].as_str(), rest[1][2].as_str()), ("no outcome", "locked"));
    }
}
