//! The floors rule: a module names only floors below its own, and modules of one floor do not name each other.
//!
//! It reads the source as tokens, without comments and literals, and follows every `crate::` path (groups
//! too) and every chain of `super::` that climbs to the crate's root.

use std::fmt;
use std::path::{Path, PathBuf};

/// The building, top floor first; a module's floor is `7 - index`.
const FLOORS: [&[&str]; 8] = [
    &["daemon"],
    &["http", "cli"],
    &["service"],
    &["audit", "records", "backup"],
    &["custody"],
    &["token", "store", "policy"],
    &["identity", "key"],
    &["secret", "sandbox", "turns"],
];

#[test]
fn every_module_names_only_floors_below_its_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    assert!(files.len() > 10, "the walk found only {} files in {}", files.len(), root.display());

    let mut findings = Vec::new();
    let mut named = 0;
    for file in &files {
        let source = std::fs::read_to_string(file).unwrap();
        let place = Place::of(file.strip_prefix(&root).unwrap());
        named += names(&source, &place).len();
        findings.extend(check(&source, &place));
    }
    assert!(named > 0, "the checker saw no name at all: it has gone blind");
    let list: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(list.is_empty(), "the floors rule is broken:\n{}", list.join("\n"));
}

/// Where a file stands in the building.
struct Place {
    path: PathBuf,
    /// The module of the crate that the file belongs to; none for `lib.rs` and `main.rs`.
    module: Option<String>,
    /// How many `super::` lead from the file's top to the crate's root.
    depth: usize,
}

impl Place {
    /// `path` is relative to `src/`.
    fn of(path: &Path) -> Self {
        let parts: Vec<String> = path
            .with_extension("")
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .filter(|part| part != "mod")
            .collect();
        let is_root = matches!(parts.as_slice(), [one] if one == "lib" || one == "main");
        let module = if is_root { None } else { parts.first().cloned() };
        let depth = if is_root { 0 } else { parts.len() };
        Self { path: path.to_owned(), module, depth }
    }
}

#[derive(Debug, PartialEq)]
struct Finding {
    path: PathBuf,
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  src/{}:{}: {}", self.path.display(), self.line, self.what)
    }
}

/// Every break of the rule in one file.
fn check(source: &str, place: &Place) -> Vec<Finding> {
    let finding = |line, what| Finding { path: place.path.clone(), line, what };
    let Some(module) = &place.module else {
        return Vec::new(); // the roots declare and start the modules
    };
    let Some(own) = floor(module) else {
        return vec![finding(
            1,
            format!("`{module}` has no floor; give it one in tests/floors.rs"),
        )];
    };
    names(source, place)
        .into_iter()
        .filter(|(name, _)| name != module)
        .filter_map(|(name, line)| match floor(&name) {
            None => Some(finding(line, format!("`crate::{name}` is not a module with a floor"))),
            Some(other) if other < own => None,
            Some(other) => Some(finding(
                line,
                format!("`{module}` is on floor {own} and names `{name}` of floor {other}"),
            )),
        })
        .collect()
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module)).map(|index| FLOORS.len() - 1 - index)
}

/// What a file names directly under the crate's root, with line numbers.
fn names(source: &str, place: &Place) -> Vec<(String, usize)> {
    let tokens = tokens(source);
    let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token.text == text);
    let mut found = Vec::new();
    let mut braces: Vec<bool> = Vec::new(); // open braces; true where one opened an inline module
    let mut at = 0;
    while at < tokens.len() {
        if is(at, "{") {
            braces.push(at >= 2 && is(at - 2, "mod"));
        } else if is(at, "}") {
            braces.pop();
        }
        let path_begins = at == 0 || !is(at - 1, "::") || (at >= 2 && is(at - 2, "self"));
        if is(at, "crate") && is(at + 1, "::") {
            firsts(&tokens, at + 2, &mut found);
        } else if is(at, "super") && path_begins {
            let depth = place.depth + braces.iter().filter(|&&module| module).count();
            let mut climbed = 0;
            while is(at + 2 * climbed, "super") && is(at + 2 * climbed + 1, "::") {
                climbed += 1;
            }
            if climbed > 0 && climbed >= depth {
                // A file named by `#[path]` may lie deeper than it looks: only modules count here.
                let mut reached = Vec::new();
                firsts(&tokens, at + 2 * climbed, &mut reached);
                found.extend(reached.into_iter().filter(|(name, _)| floor(name).is_some()));
            }
        } else if is(at, "use") && is(at + 1, "crate") && !is(at + 2, "::") {
            found.push(("crate".to_owned(), tokens[at].line)); // `use crate as other`
        }
        at += 1;
    }
    found
}

/// The first segments of the use-tree that begins at `at`: one, or each of a group.
fn firsts(tokens: &[Token], at: usize, found: &mut Vec<(String, usize)>) {
    let Some(first) = tokens.get(at) else { return };
    if first.text != "{" {
        found.push((first.text.clone(), first.line));
        return;
    }
    let mut depth = 1;
    let mut expects_first = true;
    for token in &tokens[at + 1..] {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 1 => expects_first = true,
            text if depth == 1 && expects_first => {
                found.push((text.to_owned(), token.line));
                expects_first = false;
            }
            _ => {}
        }
        if depth == 0 {
            return;
        }
    }
}

struct Token {
    text: String,
    line: usize,
}

/// Identifiers, `::` and single marks; comments are left out, a literal becomes `""`.
fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let starts = |at: usize, text: &str| {
        text.chars().enumerate().all(|(offset, c)| chars.get(at + offset) == Some(&c))
    };
    let mut out = Vec::new();
    let mut line = 1;
    let mut at = 0;
    while at < chars.len() {
        let begin = at;
        let c = chars[at];
        let text = if starts(at, "//") {
            at = (at..chars.len()).find(|&i| chars[i] == '\n').unwrap_or(chars.len());
            None
        } else if starts(at, "/*") {
            at = block_comment_end(&chars, at);
            None
        } else if let Some(end) = literal_end(&chars, at) {
            at = end;
            Some("\"\"".to_owned())
        } else if is_word(c) {
            at = (at..chars.len()).find(|&i| !is_word(chars[i])).unwrap_or(chars.len());
            Some(chars[begin..at].iter().collect())
        } else if starts(at, "::") {
            at += 2;
            Some("::".to_owned())
        } else {
            at += 1;
            (!c.is_whitespace()).then(|| c.to_string())
        };
        if let Some(text) = text {
            out.push(Token { text, line });
        }
        line += chars[begin..at].iter().filter(|&&c| c == '\n').count();
    }
    out
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Block comments nest.
fn block_comment_end(chars: &[char], begin: usize) -> usize {
    let mut depth = 0;
    let mut at = begin;
    while at < chars.len() {
        match chars.get(at..at + 2) {
            Some(['/', '*']) => (depth, at) = (depth + 1, at + 2),
            Some(['*', '/']) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

/// Where the string, raw string or character literal at `at` ends, if there is one.
fn literal_end(chars: &[char], at: usize) -> Option<usize> {
    let mut open = at;
    while open < at + 2 && matches!(chars.get(open), Some('b' | 'c' | 'r')) {
        open += 1;
    }
    let is_raw = open > at && chars[open - 1] == 'r';
    let hashes = chars[open..].iter().take_while(|&&c| is_raw && c == '#').count();
    match chars.get(open + hashes)? {
        '"' if is_raw => {
            let end: Vec<char> =
                std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            let body = open + hashes + 1;
            let found = chars[body..].windows(end.len()).position(|window| window == end)?;
            Some(body + found + end.len())
        }
        '"' => quoted_end(chars, open, '"'),
        // A lifetime is a quote and a word with no quote right after one character.
        '\'' if chars.get(open + 1) == Some(&'\\') || chars.get(open + 2) == Some(&'\'') => {
            quoted_end(chars, open, '\'')
        }
        _ => None,
    }
}

fn quoted_end(chars: &[char], open: usize, quote: char) -> Option<usize> {
    let mut at = open + 1;
    while *chars.get(at)? != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    Some(at + 1)
}

fn rust_files(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

mod the_checker {
    use super::*;

    fn findings(path: &str, source: &str) -> Vec<String> {
        check(source, &Place::of(Path::new(path))).into_iter().map(|f| f.what).collect()
    }

    #[test]
    fn sees_a_floor_above() {
        let found = findings("key/state.rs", "//! Doc.\nuse crate::service::Appliance;\n");
        assert_eq!(found, ["`key` is on floor 1 and names `service` of floor 5"]);
        let place = Place::of(Path::new("key/state.rs"));
        assert_eq!(check("\n\nuse crate::audit::Trail;", &place)[0].line, 3);
    }

    #[test]
    fn sees_a_neighbour() {
        assert_eq!(findings("token/mod.rs", "fn f(s: &crate::store::Stored) {}").len(), 1);
        assert_eq!(findings("http/problem.rs", "use crate::cli::Failure;").len(), 1);
        assert_eq!(findings("http/mod.rs", "use crate::daemon::serve;").len(), 1);
    }

    #[test]
    fn sees_into_groups() {
        let source = "use crate::{key::{Name, State}, secret, custody::{Client, wire::{A, B}}};";
        let found = findings("policy/mod.rs", source);
        assert_eq!(found, ["`policy` is on floor 2 and names `custody` of floor 3"]);
        assert_eq!(
            findings("secret/mod.rs", "use crate::{\n  identity,\n  key as k,\n};").len(),
            2
        );
    }

    #[test]
    fn sees_through_super() {
        assert_eq!(findings("key/mod.rs", "use super::records::Record;").len(), 1);
        assert_eq!(findings("key/state.rs", "use super::super::records::Record;").len(), 1);
        let nested = "mod tests { fn f() { super::super::super::audit::verify() } }";
        assert_eq!(findings("key/state.rs", nested).len(), 1);
        let inside = "mod tests { use super::*; use super::super::Name; }\nuse super::records;";
        assert_eq!(findings("key/state.rs", inside), Vec::<String>::new());
        let deeper = "use super::super::{Name, State};";
        assert_eq!(findings("key/state_tests.rs", deeper), Vec::<String>::new());
    }

    #[test]
    fn sees_what_has_no_floor() {
        assert_eq!(findings("utils.rs", "").len(), 1);
        assert_eq!(findings("key/mod.rs", "use crate::utils::x;").len(), 1);
        assert_eq!(findings("key/mod.rs", "use crate::*;").len(), 1);
        assert_eq!(findings("key/mod.rs", "use crate as everything;").len(), 1);
    }

    #[test]
    fn lets_pass_what_is_below() {
        let source = "use crate::{audit, custody::Client, key::Name, secret::SecretBytes};\n\
                      use crate::service::Appliance; pub(crate) fn f() {}";
        assert_eq!(findings("service/keys.rs", source), Vec::<String>::new());
        assert_eq!(findings("main.rs", "use strongroom::daemon;"), Vec::<String>::new());
    }

    #[test]
    fn ignores_comments_and_literals() {
        let source = r####"
            // use crate::service::A;
            /* crate::service /* crate::http */ crate::cli */
            //! [`crate::daemon`]
            const A: &str = "crate::service \" crate::http";
            const B: &str = r#"crate::service " crate::http"#;
            const C: (char, u8) = ('"', b'\'');
            fn f<'a>(a: &'a str) -> &'a str { a }
        "####;
        assert_eq!(findings("key/mod.rs", source), Vec::<String>::new());
        let after = format!("{source}\nuse crate::service::A;");
        assert_eq!(findings("key/mod.rs", &after).len(), 1, "the code after them is still seen");
    }
}
