//! A reload and its verdict: the front reads its files again on SIGHUP, and leaves beside its records what came of it;
//! `strongroom reload` sends the signal, waits for that and reports it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::config::{Config, Loaded};
use super::front::{Front, policy_digest};
use super::logging::Logs;
use super::offline::{in_child, user_of};
use super::{DaemonError, io};
use crate::audit::{Event, EventNote};
use crate::cli::{Reload, Report};
use crate::policy::Policy;
use crate::sandbox::{Open, open_plain};
use crate::service::StartRefusal;

/// The verdict's file, in the directory of the store.
const FILE: &str = "reload.json";

/// The longest verdict, in bytes.
const LONGEST: u64 = 1 << 20;

/// How long a reload may take: users and groups may come from a slow name service.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came of the newest reload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    /// The front, and when it was started (proc(5), in ticks since the machine's start).
    pid: i32,
    started: u64,
    /// When this reload began (CLOCK_MONOTONIC, in nanoseconds); 0 where there was none.
    begun: u64,
    /// Whether configuration and policy were taken over.
    loaded: bool,
    /// Why not; or what would keep the next start all the same.
    refusals: Vec<StartRefusal>,
}

impl Verdict {
    /// Before the first reload.
    pub fn of_start() -> Self {
        Self::since(0)
    }

    fn since(begun: u64) -> Self {
        let pid = Pid::this().as_raw();
        let started = started(pid).unwrap_or(0);
        Self { pid, started, begun, loaded: true, refusals: Vec::new() }
    }

    /// Leaves it where the command finds it. One that cannot be written has the command time out.
    pub fn leave(&self, store: &Path) {
        if let Err(error) = self.write(store) {
            tracing::warn!(%error, "the verdict of a reload could not be left for `strongroom reload`");
        }
    }

    /// Whether the front that left it runs. Where /proc hides it (ProtectProc= of the unit, as nobody may trace it),
    /// that is taken from whoever `named` it, as systemd does, as long as it can be sent a signal.
    fn runs(&self, named: bool) -> bool {
        match started(self.pid) {
            Some(started) => started == self.started,
            None => named && kill(Pid::from_raw(self.pid), None).is_ok(),
        }
    }

    fn write(&self, store: &Path) -> std::io::Result<()> {
        let text = serde_json::to_vec(self)?;
        let new = store.join("reload.new");
        let mut file = open_plain(&new, Open::Make)?;
        file.set_len(0)?;
        file.write_all(&text)?;
        std::fs::rename(&new, store.join(FILE))
    }

    fn read(store: &Path) -> std::io::Result<Self> {
        let file = open_plain(&store.join(FILE), Open::Read)?;
        let mut text = Vec::new();
        file.take(LONGEST).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// Takes over what can be changed while running; a file that is not sound changes nothing. What would keep the next
/// start is reported, too.
pub async fn reload(path: &Path, running: &Config, front: &Front, logs: &Logs) {
    let mut verdict = Verdict::since(monotonic());
    let file = path.to_owned();
    // Users and groups may come from a slow name service, and others are served meanwhile.
    let loaded = tokio::task::spawn_blocking(move || {
        let loaded = Config::load(&file).map_err(DaemonError::from)?;
        let policy = Policy::load(&loaded.config.policy)?;
        Ok::<_, DaemonError>((loaded, policy))
    });
    let loaded = loaded.await.unwrap_or_else(|error| Err(io("reloading")(error.into())));
    let events = match loaded {
        Ok((Loaded { config, digest }, policy)) => {
            let events = [
                EventNote::of(Event::ConfigLoaded, digest),
                EventNote::of(Event::PolicyLoaded, policy_digest(&policy)),
            ];
            tracing::info!(policies = policy.count(), "configuration and policy are loaded anew");
            front.appliance.replace_policy(policy);
            front.appliance.replace_settings(config.keys.clone(), config.secrets);
            logs.change_level(config.log.level);
            report_what_waits(running, &config);
            front.appliance.check_custodys_next_start().await;
            events.to_vec()
        }
        Err(error) => {
            let next = error.next_of_reload();
            let what = error.to_string();
            tracing::error!(
                next,
                "nothing is loaded, and what was in force stays in force: {what}"
            );
            verdict.loaded = false;
            verdict.refusals.push(StartRefusal { what, next });
            vec![EventNote::new(match error {
                DaemonError::Policy(_) => Event::PolicyRefused,
                _ => Event::ConfigRefused,
            })]
        }
    };
    for event in events {
        if let Err(error) = front.appliance.trail().event(event).await {
            tracing::warn!(%error, "the trail could not be told of the reload");
        }
    }
    let next_start = front.appliance.check_next_start(true).await;
    if verdict.loaded {
        verdict.refusals = next_start;
    }
    verdict.leave(&running.store.path);
}

/// Names the sections that changed and take effect only at the next start.
fn report_what_waits(running: &Config, new: &Config) {
    let (Ok(running), Ok(new)) = (toml::Table::try_from(running), toml::Table::try_from(new))
    else {
        return;
    };
    for (section, value) in &new {
        let live = matches!(section.as_str(), "policy" | "keys" | "secrets" | "log");
        if !live && running.get(section) != Some(value) {
            tracing::warn!(section, "changed, and takes effect at the next start");
        }
    }
}

/// What the command reports, for programs.
#[derive(Serialize)]
struct Reloaded<'a> {
    loaded: bool,
    next_start_refused: &'a [StartRefusal],
}

/// `strongroom reload`.
pub fn reload_daemon(arguments: &Reload) -> Result<Report, DaemonError> {
    let config = match Config::load(&arguments.config) {
        Ok(loaded) => loaded.config,
        Err(error) => {
            // The daemon refuses it, too, and its audit log tells of that.
            if let Some(pid) = arguments.pid {
                let _ = kill(Pid::from_raw(pid), Signal::SIGHUP);
            }
            return Err(error.into());
        }
    };
    let store = config.store.path;
    let user = user_of(&store)?;
    let verdict = in_child(&user, || ask(&store, arguments.pid))?;
    let verdict = verdict.map_err(|what| DaemonError::Refused {
        what,
        next: "see that the daemon of this configuration runs: systemctl status strongroom; or restart it".to_owned(),
    })?;
    match (verdict.loaded, verdict.refusals.as_slice()) {
        (true, []) => {
            let reloaded = Reloaded { loaded: true, next_start_refused: &[] };
            Ok(Report::new("configuration and policy are loaded\n", &reloaded, true))
        }
        (loaded, refusals) => Err(refused(loaded, refusals)),
    }
}

fn refused(loaded: bool, refusals: &[StartRefusal]) -> DaemonError {
    let all: Vec<&str> = refusals.iter().map(|refusal| refusal.what.as_str()).collect();
    let all = all.join("; ");
    let what = match loaded {
        true => format!(
            "configuration and policy are loaded, but the next start would be refused: {all}"
        ),
        false => format!("nothing is loaded, and what was in force stays in force: {all}"),
    };
    let next = refusals.first().map_or(String::new(), |refusal| refusal.next.clone());
    DaemonError::Refused { what, next }
}

/// As the front's user: only what that may send a signal to is sent one.
fn ask(store: &Path, pid: Option<i32>) -> Result<Verdict, String> {
    let file = store.join(FILE);
    let before = Verdict::read(store).map_err(|error| {
        format!("no running daemon has left word in {}: {error}", file.display())
    })?;
    if pid.is_some_and(|pid| pid != before.pid) || !before.runs(pid.is_some()) {
        let asked = pid.unwrap_or(before.pid);
        return Err(format!("process {asked} is not the daemon that has {} open", store.display()));
    }
    let asked = monotonic();
    kill(Pid::from_raw(before.pid), Signal::SIGHUP).map_err(|errno| match errno {
        Errno::ESRCH => "the daemon has ended".to_owned(),
        errno => format!("the daemon cannot be sent a signal: {errno}"),
    })?;
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        match Verdict::read(store) {
            Ok(verdict) if verdict.begun >= asked && verdict.pid == before.pid => {
                return Ok(verdict);
            }
            _ if !before.runs(true) => {
                return Err("the daemon has ended".to_owned());
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    let seconds = PATIENCE.as_secs();
    Err(format!("the daemon has not said within {seconds} s what came of it; its log says why"))
}

fn monotonic() -> u64 {
    let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// When a process was started: the 22nd field of its stat, behind its name, which may hold anything.
fn started(pid: i32) -> Option<u64> {
    let stat = PathBuf::from("/proc").join(pid.to_string()).join("stat");
    let text = std::fs::read_to_string(stat).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}
