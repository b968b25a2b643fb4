//! Colours on a terminal, for the words that a reader looks for. What is coloured was made harmless before.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU8, Ordering};

use clap::ValueEnum;

/// When there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// Takes over what was typed.
pub fn choose(color: Color) {
    CHOSEN.store(color as u8, Ordering::Relaxed);
}

/// Whether a stream gets colours (no-color.org).
pub fn is_wanted(stream: &impl IsTerminal) -> bool {
    const ALWAYS: u8 = Color::Always as u8;
    const NEVER: u8 = Color::Never as u8;
    match CHOSEN.load(Ordering::Relaxed) {
        ALWAYS => true,
        NEVER => false,
        _ => {
            let is_refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
            stream.is_terminal() && !is_refused && !is_dumb
        }
    }
}

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const BOLD: &str = "\x1b[1m";
const END: &str = "\x1b[0m";

/// What a line may begin with.
const BEGINNINGS: [(&str, &str); 12] = [
    ("ok ", GREEN),
    ("warn ", YELLOW),
    ("FAIL ", RED),
    ("FOUND ", RED),
    ("BAD ", RED),
    ("LOST: ", RED),
    ("NOT recovered", RED),
    ("CANNOT be recovered", RED),
    ("NOT SOUND", RED),
    ("UNSIGNED TAIL", YELLOW),
    ("sound", GREEN),
    ("Strongroom is ready", GREEN),
];

/// Words in a column of their own.
const WORDS: [(&str, &str); 6] = [
    ("  failed  ", RED),
    ("  refused  ", RED),
    ("  interrupted  ", RED),
    ("  no outcome  ", YELLOW),
    ("  compromised  ", RED),
    ("  suspended  ", YELLOW),
];

/// The same text with colours.
pub fn painted(text: &str) -> String {
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// One line, such as the first one of an error.
pub fn red(text: &str) -> String {
    format!("{RED}{text}{END}")
}

fn line(line: &str) -> String {
    for (beginning, color) in BEGINNINGS {
        if let Some(rest) = line.strip_prefix(beginning) {
            return format!("{color}{beginning}{END}{rest}");
        }
    }
    if let Some(rest) = line.strip_prefix("Strongroom is ") {
        return format!("{YELLOW}Strongroom is {rest}{END}");
    }
    if is_heading(line) {
        return format!("{BOLD}{line}{END}");
    }
    for (word, color) in WORDS {
        if let Some((before, after)) = line.split_once(word) {
            return format!("{before}  {color}{}{END}  {after}", word.trim());
        }
    }
    line.to_owned()
}

/// The line above a table.
fn is_heading(line: &str) -> bool {
    let is_upper = |c: char| c.is_ascii_uppercase() || c == ' ';
    line.contains("  ") && line.trim().len() > 3 && line.chars().all(is_upper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_that_count_are_coloured_and_nothing_else_changes() {
        let text = "NAME  STATE\na     active\nFAIL  clock\nFOUND       line 7 was changed\n";
        let shown = painted(text);
        assert_eq!(
            shown,
            "\x1b[1mNAME  STATE\x1b[0m\na     active\n\x1b[31mFAIL \x1b[0m clock\n\
             \x1b[31mFOUND \x1b[0m      line 7 was changed\n"
        );
        let bare = shown.replace("\x1b[1m", "").replace("\x1b[31m", "").replace("\x1b[0m", "");
        assert_eq!(bare, text);
    }
}
