//! What a command says that works without a daemon: text for people, or one document for programs.

use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::Value;

use super::escape::plain_lines;
use super::output::Output;
use super::problem::Failure;
use super::{Global, finish};

/// What came of a command, in both forms.
pub struct Report {
    text: String,
    document: Value,
    well: bool,
}

impl Report {
    /// `document` says the same as `text`; where the result is not `well`, the exit code is 1.
    pub fn new(text: impl Into<String>, document: &impl Serialize, well: bool) -> Self {
        Self { text: text.into(), document: serde_json::json!(document), well }
    }

    pub fn is_well(&self) -> bool {
        self.well
    }

    /// What programs are told.
    pub fn into_document(self) -> Value {
        self.document
    }

    fn tell(&self, out: &Output) -> Result<(), Failure> {
        if out.is_json() { out.document(&self.document) } else { out.text(&self.text) }?;
        if self.well { Ok(()) } else { Err(Failure::Told) }
    }
}

/// A remark for people, on stderr.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", plain_lines(text));
}

/// Tells what came of a command in the chosen format, and turns it into its exit code.
pub fn told(global: &Global, result: Result<Report, Failure>) -> ExitCode {
    finish(global, result.and_then(|report| report.tell(&Output::new(global.output))))
}
