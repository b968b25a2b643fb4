//! What `strongroom backup …` says, for people and for programs.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::examine::Examined;
use crate::audit::Judgement;
use crate::backup::Archive;
use crate::cli::plain;

/// What was found in a backup, and what was done with it.
#[derive(Serialize)]
pub struct Told {
    file: PathBuf,
    appliance: String,
    created_at: jiff::Timestamp,
    /// The version of the program that made it.
    program: String,
    trail: TrailTold,
    store_keys: u64,
    keys: u64,
    versions: u64,
    destroyed: u64,
    secrets: u64,
    /// How long the opening of all records took.
    seconds: f64,
    bad: Vec<Bad>,
    verdict: &'static str,
    /// Only of a restore.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
    /// Only of a dry run of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub would_change: Option<Vec<String>>,
}

#[derive(Serialize)]
struct TrailTold {
    lines: u64,
    files: u64,
    checkpoints: u64,
    /// The verdict of `audit verify`.
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<Judgement>,
}

/// Something that does not hold.
#[derive(Serialize)]
struct Bad {
    what: String,
    why: String,
}

/// What came of a restore.
#[derive(Serialize)]
pub struct Restored {
    pub done: bool,
    /// Why not; empty where it was done.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub why: &'static str,
    pub store: PathBuf,
    /// The lines of the trail that is there no more: what these say was done is undone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undone: Option<Undone>,
}

#[derive(Serialize)]
pub struct Undone {
    pub from_line: u64,
    pub to_line: u64,
}

impl Told {
    pub fn of(archive: &Archive, examined: &Examined, file: &Path) -> Self {
        let (manifest, checked) = (&archive.manifest, &examined.checked);
        let bad = |(what, why): &(String, String)| Bad { what: what.clone(), why: why.clone() };
        Self {
            file: file.to_owned(),
            appliance: manifest.appliance.clone(),
            created_at: manifest.created_at,
            program: manifest.program.clone(),
            trail: TrailTold {
                lines: examined.lines,
                files: examined.files,
                checkpoints: examined.checkpoints,
                verdict: examined.trail,
            },
            store_keys: checked.store_keys,
            keys: checked.keys,
            versions: checked.versions + checked.destroyed,
            destroyed: checked.destroyed,
            secrets: checked.secrets,
            seconds: examined.time.as_secs_f64(),
            bad: examined.bad.iter().map(bad).collect(),
            verdict: if examined.is_good() { "good" } else { "not-good" },
            restored: None,
            would_change: None,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let Self { file, trail, keys, versions, destroyed, secrets, .. } = self;
        let mut text = format!(
            "appliance  {}\nmade       {:.0}, by version {}\ntrail      {} lines in {} files, {} \
             checkpoints\n",
            self.appliance,
            self.created_at,
            self.program,
            trail.lines,
            trail.files,
            trail.checkpoints,
        );
        text.push_str(&format!(
            "opened     {} store keys, {keys} keys with {versions} versions ({destroyed} destroyed), \
             {secrets} secrets, in {:.1} s\n",
            self.store_keys, self.seconds,
        ));
        for Bad { what, why } in &self.bad {
            text.push_str(&format!("BAD        {}: {}\n", plain(what), plain(why)));
        }
        let verdict = match self.bad.len() {
            0 if self.verdict != "good" => "NOT GOOD: the audit log was not verified".to_owned(),
            0 => "GOOD: every key in it was opened".to_owned(),
            count => format!("NOT GOOD: {count} of what is in it do not hold"),
        };
        text.push_str(&format!("{}: {verdict}\n", plain(&file.to_string_lossy())));
        if let Some(restored) = &self.restored {
            text.push_str(&restored.text());
        }
        text
    }
}

impl Restored {
    fn text(&self) -> String {
        if !self.done {
            return format!("nothing was restored{}\n", self.why);
        }
        let mut text = String::new();
        if let Some(Undone { from_line, to_line }) = &self.undone {
            text.push_str(&format!(
                "the trail before this one goes on from line {from_line} to line {to_line}: what these say was done \
                 is undone\n"
            ));
        }
        text + &format!("restored to {}: start Strongroom\n", self.store.display())
    }
}
