//! Loads the policy directory: every file checked against the schema, every finding with file and line.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cedar_policy::{
    EntityId, EntityTypeName, EntityUid, PolicyId, PolicySet, Schema, ValidationMode, Validator,
};
use miette::Diagnostic;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::facts::reads_attribute;
use super::roles::{RoleBindings, RoleError, Roles};
use super::wide;
use crate::sandbox::{Untrusted, trusted};

/// The words that policies are written in.
pub const SCHEMA: &str = include_str!("schema.cedarschema");

/// Where the policies are and who has which role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Directory of the policy files (`*.cedar`). With no file in it nothing is permitted.
    pub directory: PathBuf,
    /// Role → Unix users and groups that have it.
    pub roles: RoleBindings,
}

impl Default for Settings {
    fn default() -> Self {
        Self { directory: PathBuf::from("/etc/strongroom/policy"), roles: RoleBindings::new() }
    }
}

/// The policies cannot be used; whoever reloads keeps the ones it has.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("the policy directory {} cannot be read: {error}", path.display())]
    Directory { path: PathBuf, error: io::Error },
    #[error("the policy file {} cannot be read: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("policies decide who may do what, so nobody else may be able to change them: {0}")]
    Untrusted(Untrusted),
    #[error("{}", Findings(.0))]
    Invalid(Vec<Finding>),
    #[error(transparent)]
    Role(#[from] RoleError),
    #[error("the built-in schema does not parse: {0}")]
    Schema(String),
}

/// Something wrong, or worth a look, at one place of the policy files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The file's name within the directory.
    pub file: String,
    /// Counted from 1.
    pub line: Option<usize>,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.what),
            None => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

struct Findings<'a>(&'a [Finding]);

impl fmt::Display for Findings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Finding::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Everything that was read, checked.
pub(super) struct Loaded {
    pub schema: Schema,
    pub policies: PolicySet,
    /// Policy id → the file it stands in.
    pub files: BTreeMap<String, String>,
    pub roles: Roles,
    /// Valid, but perhaps not what was meant.
    pub warnings: Vec<Finding>,
    /// SHA-256 in lower-case hex.
    pub hash: String,
}

pub(super) fn load(settings: &Settings) -> Result<Loaded, PolicyError> {
    let roles = Roles::resolve(&settings.roles)?;
    check(read(&settings.directory)?, roles)
}

/// Checks the texts of all files, by their names.
pub(super) fn check(texts: BTreeMap<String, String>, roles: Roles) -> Result<Loaded, PolicyError> {
    let schema = SCHEMA.parse::<Schema>().map_err(|error| PolicyError::Schema(chain(&error)))?;
    let hash = hash(&texts, &roles);
    let mut set = Collected::default();
    for (file, text) in &texts {
        set.add(file, text);
    }
    let Collected { policies, files, mut findings } = set;
    let result = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
    let place = |id: &PolicyId, diagnostic: &dyn Diagnostic| {
        let id: &str = id.as_ref();
        let file = files.get(id).cloned().unwrap_or_default();
        let text = texts.get(&file).map_or("", String::as_str);
        Finding { line: line_of(diagnostic, text), what: says(diagnostic), file }
    };
    findings.extend(result.validation_errors().map(|error| place(error.policy_id(), error)));
    if !findings.is_empty() {
        return Err(PolicyError::Invalid(one_per_line(findings)));
    }
    let mut warnings: Vec<Finding> =
        result.validation_warnings().map(|warning| place(warning.policy_id(), warning)).collect();
    warnings.extend(unused_roles(&policies, &roles));
    warnings.extend(too_wide(&schema, &policies, &roles).into_iter().map(|(id, what)| {
        let file = files.get(id.as_ref() as &str).cloned().unwrap_or_default();
        Finding { file, line: None, what: format!("{id}: {what}") }
    }));
    Ok(Loaded { schema, policies, files, roles, warnings, hash })
}

/// In order. Cedar tells the same thing once for every action and type that it holds for: the first
/// of them stands for the others of its line.
fn one_per_line(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by(|a, b| (&a.file, a.line, &a.what).cmp(&(&b.file, b.line, &b.what)));
    let same_line =
        |a: &Finding, b: &Finding| a.line.is_some() && (&a.file, a.line) == (&b.file, b.line);
    let told = findings.chunk_by(same_line).filter_map(|alike| {
        let first = alike.first()?.clone();
        let what = match alike.len() - 1 {
            0 => first.what,
            more => format!("{} (and {more} more like it here)", first.what),
        };
        Some(Finding { what, ..first })
    });
    told.collect()
}

/// The files by name. What does not end in `.cedar` is passed over.
fn read(directory: &Path) -> Result<BTreeMap<String, String>, PolicyError> {
    let unreadable = |error| PolicyError::Directory { path: directory.to_owned(), error };
    trusted::check_directory(directory).map_err(|error| match error {
        Untrusted::Unreadable { error, .. } => unreadable(error),
        error => PolicyError::Untrusted(error),
    })?;
    let mut texts = BTreeMap::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_none_or(|extension| extension != "cedar") {
            continue;
        }
        let text = trusted::read_to_string(&path).map_err(|error| match error {
            Untrusted::Unreadable { error, .. } => PolicyError::File { path: path.clone(), error },
            error => PolicyError::Untrusted(error),
        })?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        texts.insert(name.unwrap_or_default(), text);
    }
    Ok(texts)
}

/// Length before content, so that no two sets of files run into the same bytes.
fn hash(texts: &BTreeMap<String, String>, roles: &Roles) -> String {
    let mut hasher = Sha256::new();
    let mut take = |part: &str| {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    };
    take(SCHEMA);
    take(&roles.canonical());
    for (file, text) in texts {
        take(file);
        take(text);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The policies of all files in one set, each under its `@id` or, without one, `file:policyN`.
#[derive(Default)]
struct Collected {
    policies: PolicySet,
    files: BTreeMap<String, String>,
    findings: Vec<Finding>,
}

impl Collected {
    fn add(&mut self, file: &str, text: &str) {
        let set = match PolicySet::from_str(text) {
            Ok(set) => set,
            Err(errors) => {
                self.findings.extend(errors.iter().map(|error| Finding {
                    file: file.to_owned(),
                    line: line_of(error, text),
                    what: says(error),
                }));
                return;
            }
        };
        for template in set.templates() {
            let what =
                format!("{} has a slot (?principal or ?resource); name it instead", template.id());
            self.findings.push(Finding { file: file.to_owned(), line: None, what });
        }
        for policy in set.policies() {
            let id = match policy.annotation("id") {
                Some(id) => id.to_owned(),
                None => format!("{file}:{}", policy.id()),
            };
            if let Some(other) = self.files.insert(id.clone(), file.to_owned()) {
                let what = format!("@id(\"{id}\") stands twice, also in {other}");
                self.findings.push(Finding { file: file.to_owned(), line: None, what });
                continue;
            }
            if let Err(error) = self.policies.add(policy.new_id(PolicyId::new(&id))) {
                let what = chain(&error);
                self.findings.push(Finding { file: file.to_owned(), line: None, what });
            }
        }
    }
}

/// Permits by which one set of principals may use everything; whoever has any of the roles is tried.
fn too_wide(schema: &Schema, policies: &PolicySet, roles: &Roles) -> Vec<(PolicyId, String)> {
    let literals = policies.policies().flat_map(cedar_policy::Policy::entity_literals);
    let mut all: Vec<EntityUid> =
        literals.filter(|literal| literal.type_name().basename() == "Role").collect();
    let kind = EntityTypeName::from_str("Role").ok();
    let uid = |name| Some(EntityUid::from_type_name_and_id(kind.clone()?, EntityId::new(name)));
    all.extend(roles.names().filter_map(uid));
    all.sort();
    all.dedup();
    wide::permits(schema, policies, &all)
}

/// A role that somebody has and no policy names is mostly a slip of the pen. Where names stand for roles
/// (`shop.…` for the role `shop`) it is one where it is spelled almost like a role that a policy names.
fn unused_roles(policies: &PolicySet, roles: &Roles) -> Vec<Finding> {
    let by_name = policies.policies().any(|policy| reads_attribute(policy, "namespace"));
    let named: Vec<String> = policies
        .policies()
        .flat_map(cedar_policy::Policy::entity_literals)
        .filter(|literal| literal.type_name().basename() == "Role")
        .map(|literal| literal.id().unescaped().to_owned())
        .collect();
    roles
        .names()
        .filter(|role| !named.iter().any(|name| name == role))
        .map(|role| (role, named.iter().find(|name| is_almost(role, name))))
        .filter(|(_, meant)| !by_name || meant.is_some())
        .map(|(role, meant)| {
            let mut what =
                format!("the role {role:?} is given to somebody, but no policy names it");
            if let Some(meant) = meant {
                what += &format!("; is {meant:?} meant?");
            }
            Finding { file: "roles".to_owned(), line: None, what }
        })
        .collect()
}

/// Whether one is the other but for a slip or two.
fn is_almost(one: &str, other: &str) -> bool {
    let slips = strsim::damerau_levenshtein(one, other);
    slips <= 2 && slips * 3 <= other.len()
}

/// The line of the first place that Cedar points at.
fn line_of(diagnostic: &dyn Diagnostic, text: &str) -> Option<usize> {
    let offset = diagnostic.labels()?.next()?.offset();
    Some(text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count() + 1)
}

/// What Cedar says, with its causes and its advice, in one line.
fn says(diagnostic: &dyn Diagnostic) -> String {
    let mut text = diagnostic.to_string();
    let mut source = diagnostic.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    if let Some(label) =
        diagnostic.labels().and_then(|mut labels| labels.next()?.label().map(str::to_owned))
    {
        text = format!("{text}: {label}");
    }
    match diagnostic.help() {
        Some(help) => format!("{text} ({help})"),
        None => text,
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
