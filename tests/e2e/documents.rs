//! README and `docs/` are true: links, paths, commands, settings, codes, metrics, actions, routes and tests that they
//! name exist. That their commands work is tried by `scripts/systemd-test`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::appliance::Appliance;

/// Words with a hyphen that are no word of Strongroom's, each with what it is.
const FOREIGN: [(&str, &str); 3] =
    [("aws-lc", "a library"), ("x86-64", "processors"), ("keep-alive", "a header")];

/// Words with an underscore that are neither setting nor member of the interface.
const OTHER_NAMES: [(&str, &str); 2] =
    [("memfd_secret", "a system call"), ("deny_unknown_fields", "an attribute of serde")];

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

struct Document {
    path: PathBuf,
    text: String,
}

/// Everything outside fenced blocks, and the blocks with their languages.
struct Parts<'a> {
    prose: String,
    blocks: Vec<(&'a str, Vec<&'a str>)>,
}

impl Document {
    fn all() -> Vec<Self> {
        let mut found = Vec::new();
        for directory in [top().to_owned(), top().join("docs")] {
            for entry in std::fs::read_dir(directory).expect("readable") {
                let path = entry.expect("an entry").path();
                if path.extension().is_some_and(|end| end == "md") {
                    let text = std::fs::read_to_string(&path).expect("readable");
                    found.push(Self { path, text });
                }
            }
        }
        assert!(found.len() >= 10, "only {} documents", found.len());
        found
    }

    fn name(&self) -> String {
        self.path.strip_prefix(top()).expect("below the top").display().to_string()
    }

    fn parts(&self) -> Parts<'_> {
        let (mut prose, mut blocks, mut open) = (String::new(), Vec::new(), false);
        for line in self.text.lines() {
            match line.strip_prefix("```") {
                Some(_) if open => open = false,
                Some(language) => {
                    open = true;
                    blocks.push((language, Vec::new()));
                }
                None if open => blocks.last_mut().expect("one").1.push(line),
                None => prose = prose + line + "\n",
            }
        }
        assert!(!open, "{}: a block without an end", self.name());
        Parts { prose, blocks }
    }

    /// What stands between backticks; a span may go over a line's end.
    fn spans(&self) -> Vec<String> {
        let prose = self.parts().prose;
        let words = |span: &str| span.split_whitespace().collect::<Vec<_>>().join(" ");
        prose.split('`').skip(1).step_by(2).map(words).filter(|span| !span.is_empty()).collect()
    }

    /// The anchors of its headings, as GitHub makes them.
    fn anchors(&self) -> BTreeSet<String> {
        let anchor = |title: &str| -> String {
            let kept = title.trim().to_lowercase();
            let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        };
        let prose = self.parts().prose;
        let titles = prose.lines().filter(|line| line.starts_with('#'));
        titles.map(|line| anchor(line.trim_start_matches('#'))).collect()
    }
}

/// Fails with all findings at once.
#[track_caller]
fn none(findings: &[String]) {
    assert!(findings.is_empty(), "not true, or not there:\n{}", findings.join("\n"));
}

/// All that `strongroom` can be told: the help of each command, by its words.
fn helps() -> BTreeMap<String, String> {
    let (mut left, mut helps) = (vec![String::new()], BTreeMap::new());
    while let Some(path) = left.pop() {
        let output = Command::new(env!("CARGO_BIN_EXE_strongroom"))
            .args(path.split_whitespace())
            .arg("--help")
            .output()
            .expect("it runs");
        assert!(output.status.success(), "{path}: {output:?}");
        let help = String::from_utf8(output.stdout).expect("UTF-8");
        for name in subcommands(&help).filter(|name| *name != "help") {
            left.push(format!("{path} {name}").trim().to_owned());
        }
        helps.insert(path, help);
    }
    assert!(helps.len() > 40, "only {} commands", helps.len());
    helps
}

fn subcommands(help: &str) -> impl Iterator<Item = &str> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    let lines = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    lines.filter_map(|line| line.split_whitespace().next())
}

/// Why no such command can be typed, if so. `typed` begins behind `strongroom`.
fn fault_of(typed: &str, helps: &BTreeMap<String, String>) -> Option<String> {
    let mut path = String::new();
    let end = |word: &&str| !matches!(*word, "|" | ">" | "<" | "&&" | "||" | ";" | "#");
    let words: Vec<&str> = typed.split_whitespace().take_while(end).collect();
    let mut rest = words.as_slice();
    while let [word, after @ ..] = rest {
        let longer = format!("{path} {word}").trim().to_owned();
        if !helps.contains_key(&longer) {
            break;
        }
        (path, rest) = (longer, after);
    }
    let help = &helps[&path];
    let takes_command = subcommands(help).next().is_some();
    if takes_command && rest.first().is_some_and(|word| !word.starts_with('-')) {
        return Some(format!("`{path}` has no command {}", rest[0]));
    }
    let options = rest.iter().filter_map(|word| word.strip_prefix("--"));
    for option in options.filter(|option| !option.is_empty()) {
        let name: String =
            option.chars().take_while(|c| c.is_alphanumeric() || *c == '-').collect();
        let known = help.lines().any(|line| {
            let mut words = line.split(|c: char| c.is_whitespace() || c == ',' || c == '=');
            words.any(|word| word.strip_prefix("--") == Some(name.as_str()))
        });
        let everywhere = ["help", "version"].contains(&name.as_str());
        if !known && !everywhere {
            return Some(format!("`{path}` does not take --{name}"));
        }
    }
    None
}

/// Sections and keys of the configuration as it is shipped, with those that are commented out.
fn settings() -> BTreeSet<(String, String)> {
    let shipped = std::fs::read_to_string(top().join("config/strongroom.toml")).expect("readable");
    let (mut section, mut found) = (String::new(), BTreeSet::new());
    for line in shipped.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
            found.insert((section.clone(), String::new()));
        }
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some((key, _)) = line.split_once(" = ")
            && is_word(key, '_')
        {
            found.insert((section.clone(), key.to_owned()));
        }
    }
    found
}

/// Lower-case words joined by that character.
fn is_word(text: &str, joint: char) -> bool {
    let letters = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    text.starts_with(|c: char| c.is_ascii_lowercase()) && text.split(joint).all(letters)
}

fn files(directory: &Path, end: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("readable") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, end, found);
        } else if path.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
}

/// The texts in quotes of the program's source.
fn literals() -> BTreeSet<String> {
    let mut sources = Vec::new();
    files(&top().join("src"), ".rs", &mut sources);
    let mut found = BTreeSet::new();
    for source in sources {
        let text = std::fs::read_to_string(source).expect("readable");
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            found.extend(line.split('"').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
}

#[test]
fn links_and_paths_lead_somewhere() {
    let documents = Document::all();
    let mut findings = Vec::new();
    for document in &documents {
        let prose = document.parts().prose;
        let home = document.path.parent().expect("a directory");
        for link in prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')) {
            let (target, anchor) = link.0.split_once('#').unwrap_or((link.0, ""));
            if target.starts_with("https://") {
                continue;
            }
            let path = match target {
                "" => document.path.clone(),
                _ => home.join(target).canonicalize().unwrap_or_default(),
            };
            let aimed = documents.iter().find(|other| other.path == path);
            let there = anchor.is_empty()
                || aimed.is_some_and(|document| document.anchors().contains(anchor));
            if !path.exists() || !there {
                findings.push(format!("{}: the link {}", document.name(), link.0));
            }
        }
        for span in document.spans() {
            let word = span.split_whitespace().next().unwrap_or_default();
            let word = word.trim_start_matches("./").split('*').next().unwrap_or_default();
            let ours = ["src", "tests", "scripts", "config", "docs", "systemd", "fuzz", "benches"];
            let made = ["fuzz/corpus", "fuzz/artifacts"];
            let first = word.split_once('/').map(|(first, _)| first);
            let ours = first.is_some_and(|first| ours.contains(&first));
            if ours && !made.iter().any(|path| word.starts_with(path)) && !top().join(word).exists()
            {
                findings.push(format!("{}: the path {word}", document.name()));
            }
        }
    }
    none(&findings);
}

#[test]
fn commands_can_be_typed() {
    let helps = helps();
    let (mut findings, mut seen) = (Vec::new(), 0);
    for document in Document::all() {
        let mut typed: Vec<String> = Vec::new();
        for span in document.spans() {
            let mut words = span.split_whitespace();
            // Also without the program's name: `key rotate NAME`.
            let of_group =
                |word: &str| helps.get(word).is_some_and(|help| help.contains("Commands:"));
            match (words.next(), words.next()) {
                (Some("strongroom"), Some(_)) => typed.push(span["strongroom".len()..].to_owned()),
                (Some(group), Some(_)) if of_group(group) => typed.push(span.clone()),
                _ => {}
            }
        }
        for (_, lines) in document.parts().blocks {
            let joined = lines.join("\n").replace("\\\n", " ");
            for line in joined.lines() {
                for part in line.split(['|', ';', '&', '(']) {
                    typed.extend(part.trim().strip_prefix("strongroom ").map(str::to_owned));
                }
            }
        }
        seen += typed.len();
        let wrong = typed.iter().filter_map(|typed| Some((typed, fault_of(typed, &helps)?)));
        findings.extend(wrong.map(|(typed, why)| format!("{}: {typed}: {why}", document.name())));
    }
    assert!(seen > 100, "only {seen} commands were found");
    none(&findings);
    assert!(fault_of("key rotate NAME --nothing", &helps).is_some());
    assert!(fault_of("key forge NAME", &helps).is_some());
}

#[test]
fn settings_exist() {
    let settings = settings();
    let sections: BTreeSet<&str> = settings.iter().map(|(section, _)| section.as_str()).collect();
    let (mut findings, mut seen) = (Vec::new(), 0);
    for document in Document::all() {
        for span in document.spans() {
            let Some((section, key)) = span.strip_prefix('[').and_then(|rest| rest.split_once(']'))
            else {
                continue;
            };
            let key = key.trim().split_once(" = ").map_or(key.trim(), |(key, _)| key);
            let role = section.starts_with("policy.roles") && key.is_empty();
            if !is_word(&section.replace('.', "_"), '_') || !(key.is_empty() || is_word(key, '_')) {
                continue;
            }
            seen += 1;
            let known = match key {
                "" => sections.contains(section) || role,
                _ => settings.contains(&(section.to_owned(), key.to_owned())),
            };
            if !known {
                findings.push(format!("{}: the setting {span}", document.name()));
            }
        }
    }
    assert!(seen > 30, "only {seen} settings were found");
    none(&findings);
}

/// All of it at once, as it takes an appliance: codes, words, routes, metrics and actions.
#[test]
fn what_is_named_of_the_interface_exists() {
    let appliance = Appliance::new();
    let openapi = appliance.get("/v1/openapi.json").json();
    let metrics = appliance.get("/metrics").text();
    let (literals, settings, helps) = (literals(), settings(), helps());
    let members: BTreeSet<String> = members(&openapi).into_iter().chain(line_members()).collect();
    let options: String = helps.values().map(String::as_str).collect();
    let is_option = |word: &str| options.contains(word);
    let (mut findings, mut seen) = (Vec::new(), 0);
    for document in Document::all() {
        let mut say = |what: String| findings.push(format!("{}: {what}", document.name()));
        for span in document.spans() {
            let word = span.split('{').next().unwrap_or_default();
            if let Some(name) = word.strip_prefix("strongroom_") {
                let name = name.trim_end_matches("_total");
                if !metrics.contains(&format!("# TYPE strongroom_{name} ")) {
                    say(format!("the metric {word}"));
                }
            } else if let Some(path) = route(&span) {
                let known = openapi["paths"].as_object().expect("paths");
                if !known.keys().any(|template| fits(template, path)) {
                    say(format!("the route {path}"));
                }
            } else if word.contains('-') && is_word(word, '-') {
                let foreign = FOREIGN.iter().any(|(known, _)| *known == word);
                let unit = word.starts_with("strongroom-");
                if !foreign && !unit && !literals.contains(word) && !is_option(word) {
                    say(format!("the word {word}"));
                }
            } else if word.contains('_') && is_word(word, '_') {
                let other = OTHER_NAMES.iter().any(|(known, _)| *known == word);
                let setting = settings.iter().any(|(_, key)| key == word);
                if !other && !setting && !members.contains(word) && !literals.contains(word) {
                    say(format!("the name {word}"));
                }
            } else if let Some((kind, _)) = word.split_once(':')
                && ["key", "secret", "audit", "appliance", "master", "recovery", "backup"]
                    .contains(&kind)
                && !word.contains(' ')
                && !word.contains("::")
                && !is_option(word)
            {
                say(format!("the action {word}"));
            }
            seen += 1;
        }
        for (status, code) in codes(&document.parts().prose) {
            let described = &openapi["paths"]["/v1/keys"]["post"]["responses"][status];
            let listed = described["description"].as_str().unwrap_or_default();
            if !listed.split([',', ' ', ';']).any(|word| word == code) {
                say(format!("{status} `{code}`"));
            }
        }
    }
    assert!(seen > 500, "only {seen} words were found");
    none(&findings);
}

/// `409` and `key-state` of "409 `key-state`".
fn codes(prose: &str) -> Vec<(&str, &str)> {
    let pieces: Vec<&str> = prose.split('`').collect();
    let coded = pieces.windows(2).step_by(2).filter_map(|pair| {
        let before = pair[0].strip_suffix(' ')?;
        let status = before.get(before.len().checked_sub(3)?..)?;
        let is_status = status.chars().all(|c| c.is_ascii_digit());
        (is_status && is_word(pair[1], '-')).then_some((status, pair[1]))
    });
    coded.collect()
}

fn route(span: &str) -> Option<&str> {
    let path = span.split_whitespace().find(|word| word.starts_with('/'))?;
    let method = span.split_whitespace().next()?;
    let ours = path.starts_with("/v1/") || path == "/metrics";
    let whole =
        method.starts_with('/') || ["GET", "POST", "PUT", "DELETE", "PATCH"].contains(&method);
    (ours && whole && !path.contains('…')).then_some(path)
}

fn fits(template: &str, path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    let (template, path): (Vec<_>, Vec<_>) =
        (template.split('/').collect(), path.split('/').collect());
    template.len() == path.len()
        && template.iter().zip(&path).all(|(a, b)| a == b || a.starts_with('{'))
}

/// Members of the audit log's lines: the fields of their type.
fn line_members() -> Vec<String> {
    let text = std::fs::read_to_string(top().join("src/audit/line.rs")).expect("readable");
    let (_, rest) = text.split_once("pub struct Line<'a> {").expect("the type");
    let (fields, _) = rest.split_once("\n}").expect("its end");
    let fields =
        fields.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':'));
    fields.map(|(name, _)| name.to_owned()).collect()
}

/// All member names of the interface.
fn members(openapi: &Value) -> BTreeSet<String> {
    let (mut left, mut found) = (vec![openapi], BTreeSet::new());
    while let Some(value) = left.pop() {
        match value {
            Value::Object(map) => {
                found.extend(map.keys().cloned());
                found.extend(map.get("name").and_then(Value::as_str).map(str::to_owned));
                left.extend(map.values());
            }
            Value::Array(list) => left.extend(list),
            _ => {}
        }
    }
    found
}

/// The test of a promise that is named is there.
#[test]
fn tests_that_are_named_exist() {
    let (mut findings, mut seen) = (Vec::new(), 0);
    let mut sources = Vec::new();
    files(&top().join("tests"), ".rs", &mut sources);
    let all: String =
        sources.iter().map(|path| std::fs::read_to_string(path).expect("readable")).collect();
    for document in Document::all() {
        for span in document.spans() {
            let Some((module, rest)) = span.split_once("::") else { continue };
            let words: Vec<&str> = rest.split("::").filter(|word| !word.is_empty()).collect();
            let (folder, file, test) = match (module, words.as_slice()) {
                ("attacks" | "e2e" | "survival", [file, test @ ..]) => {
                    (module, *file, test.first())
                }
                (file, test) if top().join(format!("tests/e2e/{file}.rs")).exists() => {
                    ("e2e", file, test.first())
                }
                _ => continue,
            };
            seen += 1;
            let exists = top().join(format!("tests/{folder}/{file}.rs")).exists();
            let test = test.map(|test| test.trim_end_matches('*'));
            if !exists || test.is_some_and(|test| !all.contains(&format!("fn {test}"))) {
                findings.push(format!("{}: the test {span}", document.name()));
            }
        }
    }
    assert!(seen > 15, "only {seen} tests were found");
    none(&findings);
}

#[test]
fn blocks_say_who_types_them_and_readme_is_short() {
    for document in Document::all() {
        for (language, lines) in document.parts().blocks {
            let shell = ["sh", "bash", "shell", "console"].contains(&language);
            let first = lines.first().copied().unwrap_or_default();
            assert!(!shell || first.starts_with("# as "), "{}: {first}", document.name());
            assert!(shell || !lines.iter().any(|line| line.starts_with("strongroom ")), "{first}");
        }
    }
    let readme = std::fs::read_to_string(top().join("README.md")).expect("readable");
    assert!(readme.lines().count() <= 200, "README has {} lines", readme.lines().count());
}
