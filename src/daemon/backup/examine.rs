//! Unpacks a backup into directories and looks at all that is in it.

use std::io::IsTerminal;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::config::Config;
use super::super::{DaemonError, io};
use super::scratch::Scratch;
use super::{BackupError, at};
use crate::audit::{self, Expectations, Head, Judgement, VerifyKey};
use crate::backup::{Archive, Damage};
use crate::records::{self, Checked, HomeRecord, Records, RestoredRecord};
use crate::store::sled_store::SledStore;
use crate::store::{Filling, Store};

/// Where store and trail are unpacked: directories that are there.
pub struct Places {
    pub store: PathBuf,
    pub trail: PathBuf,
    /// Whether the trail may begin later than with line 1.
    pub partial: bool,
}

/// What was found.
pub struct Examined {
    /// What does not hold, and why: parts of the archive, lines of the trail, addresses of the store.
    pub bad: Vec<(String, String)>,
    pub checked: Checked,
    pub files: u64,
    pub lines: u64,
    pub checkpoints: u64,
    /// What `audit verify` says of the trail; none where it was not verified.
    pub trail: Option<Judgement>,
    /// How long the opening of all records took.
    pub time: Duration,
    /// The backup's last line of the trail.
    pub head: Head,
    /// Whether all was looked at: damage can keep the rest from being opened at all.
    pub complete: bool,
}

impl Examined {
    pub fn is_good(&self) -> bool {
        self.bad.is_empty() && self.trail == Some(Judgement::Sound)
    }

    fn find(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.bad.push((what.into(), why.into()));
    }
}

/// What is said of a trail without its beginning.
const MOVED_AWAY: &str =
    "it begins later than with line 1: if its older files were moved away, say so with --partial";

/// Addresses that are put into the store at once.
const BATCH: usize = 1024;

/// Unpacks it and looks at everything. What does not hold is in the result. A `note` is left in the store.
///
/// # Errors
/// Where nothing can be said about it: no token, no room.
pub fn examine(
    archive: &Archive,
    damages: Vec<(String, Damage)>,
    config: &Config,
    places: &Places,
    scratch: &mut Scratch,
    note: Option<&RestoredRecord>,
) -> Result<Examined, DaemonError> {
    let head = archive.manifest.trail.head.parse();
    let head = head.map_err(|_| BackupError::NoAppliance)?;
    let mut found = Examined {
        bad: Vec::new(),
        checked: Checked::default(),
        files: 0,
        lines: 0,
        checkpoints: 0,
        trail: None,
        time: Duration::ZERO,
        head,
        complete: true,
    };
    for (part, damage) in damages {
        found.find(part, damage.to_string());
    }
    match look_through(archive, config, places, scratch, (&mut found, note)) {
        Err(error) if !found.is_good() => {
            found.find("the rest", format!("it cannot be looked through: {error}"));
            found.complete = false;
        }
        result => result?,
    }
    Ok(found)
}

fn look_through(
    archive: &Archive,
    config: &Config,
    places: &Places,
    scratch: &mut Scratch,
    (found, note): (&mut Examined, Option<&RestoredRecord>),
) -> Result<(), DaemonError> {
    unpack_store(archive, config, &places.store, found)?;
    unpack_trail(archive, &places.trail)?;
    let store: Arc<dyn Store> = Arc::new(SledStore::open(&settings(config, &places.store))?);
    let home = records::read_home(store.as_ref())?.ok_or(BackupError::NoAppliance)?;
    if home.appliance != archive.manifest.appliance {
        found.find("manifest.json", format!("the store is of appliance {}", home.appliance));
    }
    verify_signatures(archive, &home, places, found);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(io("starting the runtime"))?;
    runtime.block_on(open_all(store, &home, config, scratch, (found, note)))
}

/// The settings of a store that lies elsewhere.
pub fn settings(config: &Config, path: &Path) -> crate::store::sled_store::Settings {
    let mut settings = config.store.clone();
    path.clone_into(&mut settings.path);
    settings
}

fn unpack_store(
    archive: &Archive,
    config: &Config,
    to: &Path,
    found: &mut Examined,
) -> Result<(), DaemonError> {
    let filling = Filling::begin(&settings(config, to))?;
    let mut addresses = 0;
    for part in archive.store_parts() {
        match archive.addresses(part).map_err(BackupError::from)? {
            Ok(mut all) => {
                addresses += all.len() as u64;
                while !all.is_empty() {
                    let rest = all.split_off(all.len().min(BATCH));
                    filling.put(std::mem::replace(&mut all, rest))?;
                }
            }
            Err(error) => found.find(&part.name, error.to_string()),
        }
    }
    if addresses != archive.manifest.addresses {
        let named = archive.manifest.addresses;
        let why = format!("{addresses} addresses of the store are there, {named} are named");
        found.find("manifest.json", why);
    }
    Ok(filling.finish()?)
}

fn unpack_trail(archive: &Archive, to: &Path) -> Result<(), DaemonError> {
    for (name, mut contents) in archive.trail_files() {
        let path = to.join(name);
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| {
            std::io::copy(&mut contents, &mut file)?;
            file.sync_all()
        })
        .map_err(at(&path))?;
    }
    Ok(())
}

/// The manifest's signature, and the trail by its own: with the verdict that `audit verify` has for these files.
fn verify_signatures(archive: &Archive, home: &HomeRecord, places: &Places, found: &mut Examined) {
    let Ok(key) = VerifyKey::from_point(&home.signer_point) else {
        return found.find("appliance/home", "it names no public key for signatures");
    };
    if !key.verifies(&archive.message(), &archive.signature) {
        found.find("manifest.json", "it is not signed by the audit key of its appliance");
    }
    let expectations = Expectations {
        known: vec![found.head],
        in_use: true,
        partial: places.partial,
        ..Expectations::default()
    };
    match audit::verify(&places.trail, &[key], &expectations) {
        Ok(report) => {
            (found.files, found.lines) = (report.files, report.lines);
            found.checkpoints = report.checkpoints;
            let judgement = report.judgement();
            found.trail = Some(judgement);
            for finding in &report.findings {
                found.find("trail", finding.to_string());
            }
            match (judgement, report.further_findings) {
                (_, more @ 1..) => found.find("trail", format!("{more} more findings")),
                (Judgement::UnsignedTail, _) => {
                    found.find("trail", format!("lines after {} may be forged", report.proven));
                }
                _ => {}
            }
            if !places.partial && report.first.is_some_and(|first| first > 1) {
                found.find("trail", MOVED_AWAY);
            }
            if report.last != Some(found.head) {
                found.find("trail", "it does not end where the manifest says");
            }
        }
        Err(error) => found.find("trail", error.to_string()),
    }
}

/// Opens every record and every key with a custody of its own.
async fn open_all(
    store: Arc<dyn Store>,
    home: &HomeRecord,
    config: &Config,
    scratch: &mut Scratch,
    (found, note): (&mut Examined, Option<&RestoredRecord>),
) -> Result<(), DaemonError> {
    let client = scratch.custody(home).await?;
    let opened = Records::open(store, client, &config.records)?;
    let started = Instant::now();
    let mut shown = Shown::new();
    let checked = opened.check_all(|checked| shown.progress(checked)).await;
    found.time = started.elapsed();
    // Where this is to be restored: while there is a custody, and in this order.
    if let (Ok(_), Some(note)) = (&checked, note) {
        let store_key = Some(opened.begin_anew().await?);
        opened.leave_note(&RestoredRecord { store_key, ..note.clone() }).await?;
        opened.check_state(true).await?;
    }
    shown.end();
    let checked = checked.map_err(|error| BackupError::Token(error.to_string()))?;
    for address in &checked.broken {
        found.find(address, "it does not open, or does not hold what belongs there");
    }
    found.checked = checked;
    Ok(())
}

/// What people see meanwhile: one line on a terminal, one now and then elsewhere.
struct Shown {
    terminal: bool,
    last: Instant,
}

impl Shown {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), last: Instant::now() }
    }

    fn progress(&mut self, checked: &Checked) {
        let pause = Duration::from_millis(if self.terminal { 100 } else { 10_000 });
        if self.last.elapsed() < pause {
            return;
        }
        self.last = Instant::now();
        let Checked { keys, versions, secrets, broken, .. } = checked;
        let end = if self.terminal { "\r" } else { "\n" };
        eprint!(
            "{keys} keys, {versions} versions opened, {secrets} secrets, {} broken{end}",
            broken.len()
        );
    }

    fn end(&self) {
        if self.terminal {
            eprint!("\x1b[2K");
        }
    }
}
