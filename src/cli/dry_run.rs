//! `--dry-run`: what a command that changes more than one thing would change, from what can be read. Nothing is
//! changed for it.

use clap::Args;
use serde_json::{Value, json};

use super::Session;
use super::output::cell;
use super::problem::Failure;

/// The option of those commands.
#[derive(Args, Clone, Copy, Default)]
pub struct DryRun {
    /// Print what would be changed, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// The most names that one line lists.
const LISTED: usize = 20;

/// Prints a plan.
pub fn print(session: &Session, changes: &[String]) -> Result<(), Failure> {
    if session.out.is_json() {
        return session.out.document(&json!({ "dry_run": true, "would_change": changes }));
    }
    session.out.text(&text(changes))
}

/// A plan for people.
pub fn text(changes: &[String]) -> String {
    let mut text = "Dry run, nothing was changed. It would:\n".to_owned();
    for change in changes {
        text += &format!("- {change}\n");
    }
    text
}

/// `3 secrets (a, b, c)`.
pub fn counted(names: &[String], one: &str) -> String {
    let plural = if names.len() == 1 { "" } else { "s" };
    let listed: Vec<&str> = names.iter().take(LISTED).map(String::as_str).collect();
    let more = match names.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    match names.len() {
        0 => format!("no {one}s"),
        count => format!("{count} {one}{plural} ({}{more})", listed.join(", ")),
    }
}

impl Session {
    /// The document at a path.
    pub(super) fn document_at(&self, path: &str) -> Result<Value, Failure> {
        self.client.get(path)?.value()
    }

    /// The names of the secrets under a key, or under one version of it, as far as this user may see them.
    pub(super) fn secrets_under(
        &self,
        key: &str,
        version: Option<u32>,
    ) -> Result<Vec<String>, Failure> {
        let secrets = self.pages("/v1/secrets", "secrets")?;
        let is_under = |secret: &&Value| {
            let of = |name: &str| secret.get(name);
            of("key").and_then(Value::as_str) == Some(key)
                && version.is_none_or(|version| of("version") == Some(&json!(version)))
        };
        Ok(names(secrets.iter().filter(is_under)))
    }
}

/// The names of documents.
pub fn names<'a>(documents: impl Iterator<Item = &'a Value>) -> Vec<String> {
    let name = |document: &Value| document.get("name").map(|name| cell("name", name));
    documents.filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut() {
        let names = |count: usize| (0..count).map(|n| format!("s{n}")).collect::<Vec<_>>();
        assert_eq!(counted(&names(0), "secret"), "no secrets");
        assert_eq!(counted(&names(1), "secret"), "1 secret (s0)");
        assert_eq!(counted(&names(2), "secret"), "2 secrets (s0, s1)");
        assert!(counted(&names(25), "secret").ends_with("s19 and 5 more)"));
    }
}
