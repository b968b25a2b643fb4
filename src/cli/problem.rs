//! What goes wrong with a command, its exit code, and how a person or a program is told.

use std::io::Write;

use serde::Deserialize;

use super::escape::{plain, plain_json};
use super::output::Format;
use super::paint;
use crate::secret::ArenaError;

/// What the text of an error begins with.
const PROGRAM: &str = "strongroom:";

/// Why a command ended otherwise than "done".
pub enum Failure {
    /// The daemon answered with a problem document (RFC 9457).
    Refused(Box<Problem>),
    /// It failed here.
    Failed(Message),
    /// It was typed wrongly in a way that clap cannot see.
    WrongUse(Message),
    /// No daemon, or no answer.
    Unreachable(Message),
    /// What was asked for was done and told; the exit code alone says that the result is a bad one.
    Told,
    /// The same, where the result is good as far as it goes.
    ToldInPart,
    /// stdout does not take more; a closed pipe is nobody's fault and stays unsaid.
    Output(std::io::Error),
}

/// What happened, and what to do next.
pub struct Message {
    pub what: String,
    pub next: String,
}

/// The daemon's problem document. `body` is the document as it came.
#[derive(Deserialize)]
pub struct Problem {
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    next: Option<String>,
    #[serde(default)]
    pub(super) request_id: String,
    #[serde(skip)]
    pub(super) status: u16,
    #[serde(skip)]
    pub(super) body: String,
}

impl Failure {
    pub fn failed(what: impl Into<String>, next: impl Into<String>) -> Self {
        Failure::Failed(Message { what: what.into(), next: next.into() })
    }

    pub fn wrong_use(what: impl Into<String>, next: impl Into<String>) -> Self {
        Failure::WrongUse(Message { what: what.into(), next: next.into() })
    }

    pub fn unreachable(what: impl Into<String>, next: impl Into<String>) -> Self {
        Failure::Unreachable(Message { what: what.into(), next: next.into() })
    }

    /// Whether the daemon refused it with this code.
    pub fn is(&self, code: &str) -> bool {
        matches!(self, Failure::Refused(problem) if problem.code == code)
    }

    /// The same with a next step that says more than the daemon can know.
    pub fn advised(self, next: String) -> Self {
        match self {
            Failure::Refused(problem) => {
                Failure::Refused(Box::new(Problem { next: Some(next), ..*problem }))
            }
            other => other,
        }
    }

    /// Whether the daemon may do it a little later.
    pub fn passes(&self) -> bool {
        matches!(self, Failure::Refused(problem) if problem.status == 503)
    }

    /// Whether it may pass without anybody's doing: no answer, or not now.
    pub fn may_pass(&self) -> bool {
        self.passes() || matches!(self, Failure::Unreachable(_))
    }

    /// The documented exit code.
    pub fn code(&self) -> u8 {
        match self {
            Failure::Refused(_) | Failure::Failed(_) | Failure::Told | Failure::Output(_) => 1,
            Failure::WrongUse(_) => 2,
            Failure::Unreachable(_) => 3,
            Failure::ToldInPart => 4,
        }
    }

    /// Writes it to stderr. There is nowhere to tell that stderr is closed.
    pub fn tell(&self, format: Format) {
        let text = match format {
            Format::Text => self.text(),
            Format::Json => self.json(),
        };
        let mut stderr = std::io::stderr();
        let text = match text.strip_prefix(PROGRAM) {
            Some(rest) if format == Format::Text && paint::is_wanted(&stderr) => {
                format!("{}{rest}", paint::red(PROGRAM))
            }
            _ => text,
        };
        let _ = stderr.write_all(text.as_bytes());
    }

    fn text(&self) -> String {
        match self {
            Failure::Refused(problem) => problem.text(),
            Failure::Failed(said) | Failure::WrongUse(said) | Failure::Unreachable(said) => {
                format!("strongroom: {}\n  next: {}\n", lines(&said.what), lines(&said.next))
            }
            Failure::Told | Failure::ToldInPart => String::new(),
            Failure::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                String::new()
            }
            Failure::Output(error) => {
                format!("strongroom: the output could not be written: {error}\n")
            }
        }
    }

    fn json(&self) -> String {
        let document = |code: &str, said: &Message| {
            let document = serde_json::json!({
                "title": said.what, "next": said.next, "code": code, "exit": self.code(),
            });
            format!("{}\n", plain_json(&document.to_string()))
        };
        match self {
            Failure::Refused(problem) => format!("{}\n", plain_json(&problem.body)),
            Failure::Failed(said) => document("failed", said),
            Failure::WrongUse(said) => document("wrong-use", said),
            Failure::Unreachable(said) => document("unreachable", said),
            Failure::Told | Failure::ToldInPart | Failure::Output(_) => self.text(),
        }
    }
}

/// Text of several lines, each made harmless, all but the first moved in.
fn lines(text: &str) -> String {
    let lines: Vec<String> = text.trim_end().lines().map(plain).collect();
    lines.join("\n  ")
}

impl From<ArenaError> for Failure {
    fn from(error: ArenaError) -> Self {
        Failure::failed(
            format!("no locked memory for the secret: {error}"),
            "see what `ulimit -l` says; a command needs 256 KiB",
        )
    }
}

impl Problem {
    fn text(&self) -> String {
        let what = match (self.title.as_str(), self.detail.as_str()) {
            ("", "") => format!("the daemon refused with status {}", self.status),
            (title, "") => title.to_owned(),
            ("", detail) => detail.to_owned(),
            (title, detail) => format!("{title}: {detail}"),
        };
        let next = self.next.clone().unwrap_or_else(|| self.hint());
        let mut text = format!("strongroom: {}\n  next: {}\n", plain(&what), plain(&next));
        if !self.request_id.is_empty() {
            text += &format!("  request {} ({})\n", plain(&self.request_id), plain(&self.code));
        }
        text
    }

    /// A next step where the daemon names none.
    fn hint(&self) -> String {
        let journal = format!(
            "look the request up: journalctl -u strongroom --grep {}",
            if self.request_id.is_empty() { "error" } else { &self.request_id }
        );
        let hint = match (self.code.as_str(), self.status) {
            ("not-initialised", _) => "make the master key once: strongroom init",
            ("locked", _) => "open the appliance: strongroom unlock",
            (_, 401 | 403) => {
                "ask an operator; `strongroom policy explain` shows which rule decides it"
            }
            (_, 404) => "see what is there: strongroom key list, strongroom secret list",
            (_, 409 | 412) => "look at what is there now (`show`) and decide again",
            (_, 429) => "wait a moment and try again",
            (_, 503) => "try again shortly; `strongroom doctor` says what is wrong if it stays",
            (_, 500..=599) => return journal,
            _ => "mend what it names and try again; --help shows how the command is used",
        };
        hint.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(body: &str, status: u16) -> Problem {
        let problem: Problem = serde_json::from_str(body).unwrap();
        Problem { status, body: body.to_owned(), ..problem }
    }

    #[test]
    fn says_what_happened_what_next_and_which_request() {
        let body = r#"{"type":"about:blank","title":"Not initialised","status":503,
            "detail":"there is no master key","code":"not-initialised","request_id":"0192-ab"}"#;
        let text = problem(body, 503).text();
        assert_eq!(
            text,
            "strongroom: Not initialised: there is no master key\n  \
             next: make the master key once: strongroom init\n  request 0192-ab (not-initialised)\n"
        );
    }

    #[test]
    fn the_daemons_own_next_step_comes_first() {
        let text = problem(r#"{"title":"No","next":"do this"}"#, 403).text();
        assert_eq!(text, "strongroom: No\n  next: do this\n");
    }

    #[test]
    fn a_terminal_is_not_driven_by_what_the_daemon_says() {
        let text = problem(r#"{"title":"a\u001b[2Jb\nc","code":"x"}"#, 400).text();
        assert!(!text.contains('\u{1b}') && text.contains("a\\u{1b}[2Jb\\nc"), "{text}");
    }

    #[test]
    fn json_is_the_document_itself() {
        let body = r#"{"title":"No","more":[1]}"#;
        let failure = Failure::Refused(Box::new(problem(body, 403)));
        assert_eq!(failure.json(), format!("{body}\n"));
        assert_eq!(failure.code(), 1);
        let failure = Failure::unreachable("gone", "start it");
        let json: serde_json::Value = serde_json::from_str(&failure.json()).unwrap();
        assert_eq!((json["code"].as_str(), json["exit"].as_u64()), (Some("unreachable"), Some(3)));
    }
}
