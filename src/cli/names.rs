//! Completion of the names of keys and secrets at a shell: asked of the daemon, and silent where it does not
//! answer.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::CompletionCandidate;
use serde_json::Value;

use super::DEFAULT_SOCKET;
use super::client::{Client, query};

/// How long a shell waits for it at most.
const PATIENCE: Duration = Duration::from_millis(700);

/// How many names are offered at most.
const MOST: usize = 1000;

pub fn keys(begun: &OsStr) -> Vec<CompletionCandidate> {
    names("keys", begun)
}

pub fn secrets(begun: &OsStr) -> Vec<CompletionCandidate> {
    names("secrets", begun)
}

/// Of either kind: where the same argument takes both.
pub fn keys_and_secrets(begun: &OsStr) -> Vec<CompletionCandidate> {
    let both = std::env::args_os().any(|argument| argument == "secret");
    if both { secrets(begun) } else { keys(begun) }
}

fn names(kind: &str, begun: &OsStr) -> Vec<CompletionCandidate> {
    let begun = begun.to_string_lossy();
    let client = Client::new(socket(), PATIENCE);
    let mut found = Vec::new();
    let mut after: Option<String> = None;
    let begins = std::time::Instant::now();
    while found.len() < MOST && begins.elapsed() < PATIENCE {
        let from = after.as_ref().map_or(String::new(), |after| format!("&after={}", query(after)));
        let page = client.get(&format!("/v1/{kind}?limit=200{from}"));
        let Some(page) = page.ok().and_then(|reply| reply.value().ok()) else { break };
        let rows = page.get(kind).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let names = rows.iter().filter_map(|row| row.get("name")?.as_str());
        // Nothing but names: a shell takes what it is given for words.
        let is_name = |name: &&str| crate::key::Name::parse(name).is_ok();
        found.extend(
            names
                .filter(is_name)
                .filter(|name| name.starts_with(begun.as_ref()))
                .map(CompletionCandidate::new),
        );
        match page.get("next").and_then(Value::as_str) {
            Some(next) if Some(next) != after.as_deref() => after = Some(next.to_owned()),
            _ => break,
        }
    }
    found
}

/// The socket that the line names so far, else as ever.
fn socket() -> PathBuf {
    let mut arguments = std::env::args_os();
    let mut typed = None;
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        match text.strip_prefix("--socket") {
            Some("") => typed = arguments.next(),
            Some(rest) => typed = rest.strip_prefix('=').map(Into::into).or(typed),
            None => {}
        }
    }
    typed
        .or_else(|| std::env::var_os("STRONGROOM_SOCKET"))
        .map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from)
}
