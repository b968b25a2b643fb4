//! Logs for people: to the journal with their fields, to stderr as lines where there is no journal.
//!
//! They follow what happens and are never the audit log: a line that cannot be written is lost, nothing waits
//! for it and nothing fails by it (`queue`).

mod queue;

use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::stat::fstat;
use queue::{LateThread, Queue, WhenLogged};
use serde::{Deserialize, Serialize};
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;

/// Before every field of ours in the journal, so that none can pass for one of its own:
/// `journalctl STRONGROOM_REQUEST_ID=…`.
const FIELD_PREFIX: &str = "STRONGROOM";

/// Where logs go and how much of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `auto` takes the journal where stderr is connected to it (as under systemd), else stderr.
    pub target: TargetChoice,
    /// The least weight that is written: `error`, `warn`, `info`, `debug` or `trace`. What libraries
    /// say is written from `warn` on.
    pub level: Level,
}

/// The place a configuration asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetChoice {
    #[default]
    Auto,
    Journal,
    Stderr,
}

/// The weight of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// Where logs go in fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Journal,
    Stderr,
}

/// Why logs could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The configuration insists on a journal that is not there.
    #[error("log.target is \"journal\", but the journal cannot be reached: {0}")]
    NoJournal(io::Error),
    /// A process has one place for its logs.
    #[error("logs were started already in this process")]
    AlreadyStarted,
}

/// The logs of this process, once started. What is queued is written before they are dropped.
pub struct Logs {
    target: Target,
    filter: reload::Handle<Targets, Registry>,
}

/// What every thread of the process logs to, and what writes it.
struct Running {
    queue: Queue,
    thread: LateThread,
}

static RUNNING: OnceLock<Running> = OnceLock::new();

/// How long the end of a process waits for its log to be read.
const LAST_LINES: Duration = Duration::from_millis(200);

/// Waits until what was logged has been written, for 200 ms at most: before a process ends.
pub fn flush() {
    if let Some(running) = RUNNING.get() {
        running.thread.start();
        running.queue.flush(LAST_LINES);
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        flush();
    }
}

impl Logs {
    /// Starts the thread that writes. Until then lines wait: a thread that were started before the process
    /// enters its sandbox would stay outside.
    pub fn write(&self) {
        if let Some(running) = RUNNING.get() {
            running.thread.start();
        }
    }

    /// Where the lines go.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Changes the level from now on; the target stays until the next start.
    pub fn change_level(&self, level: Level) {
        if self.filter.reload(filter(level)).is_err() {
            tracing::error!("the log level cannot be changed any more: restart the daemon");
        }
    }
}

/// Starts the logs of this process; before it, lines go nowhere. They are queued, and written once
/// [`Logs::write`] is called.
pub fn start(settings: &Settings) -> Result<Logs, LoggingError> {
    let (filter, handle) = reload::Layer::new(filter(settings.level));
    let (target, journal) = match settings.target {
        TargetChoice::Stderr => (Target::Stderr, None),
        TargetChoice::Journal => {
            let journal = tracing_journald::layer().map_err(LoggingError::NoJournal)?;
            (Target::Journal, Some(journal))
        }
        TargetChoice::Auto if stderr_is_the_journal() => match tracing_journald::layer() {
            Ok(journal) => (Target::Journal, Some(journal)),
            Err(_) => (Target::Stderr, None), // systemd still carries stderr into the journal
        },
        TargetChoice::Auto => (Target::Stderr, None),
    };
    let is_for_journal = journal.is_some();
    let sink: queue::Sink = match journal {
        Some(journal) => Box::new(
            tracing_subscriber::registry()
                .with(journal.with_field_prefix(Some(FIELD_PREFIX.to_owned()))),
        ),
        None => Box::new(tracing_subscriber::registry().with(lines(io::stderr))),
    };
    let (queue, writing) = queue::queue(sink, is_for_journal);
    let base = tracing_subscriber::registry().with(filter).with(queue.clone());
    tracing::subscriber::set_global_default(base).map_err(|_| LoggingError::AlreadyStarted)?;
    let running = Running { queue, thread: LateThread::new(writing) };
    RUNNING.set(running).map_err(|_| LoggingError::AlreadyStarted)?;
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        tracing::error!(thread, %panic, "a thread panicked: please report it");
    }));
    Ok(Logs { target, filter: handle })
}

/// Our own lines from `level` on, those of libraries from `warn` on.
fn filter(level: Level) -> Targets {
    let level = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("strongroom", level)
}

/// One compact line per event, without colours; a writer that fails loses the line and no more.
fn lines<S, W>(writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    tracing_subscriber::fmt::layer()
        .compact()
        .with_ansi(false)
        .with_target(false)
        .with_timer(WhenLogged)
        .log_internal_errors(false) // it would print to stderr, and panic where that is closed
        .with_writer(writer)
}

/// Whether stderr is what systemd connected to the journal (systemd.exec(5), `JOURNAL_STREAM`); a stderr
/// that was redirected since is not.
fn stderr_is_the_journal() -> bool {
    std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stream(&stream, io::stderr()))
}

/// Whether `stream`, "device:inode" in decimal, is the open file `fd`.
fn is_stream(stream: &str, fd: impl AsFd) -> bool {
    let Some((device, inode)) = stream.split_once(':') else { return false };
    let (Ok(device), Ok(inode)) = (device.parse(), inode.parse()) else { return false };
    fstat(fd).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Page {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn fields_stand_in_the_line() {
        let page = Page::default();
        let writer = page.clone();
        let subscriber = tracing_subscriber::registry().with(lines(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(request_id = "0197", uid = 1000, "served");
        });
        let text = page.text();
        assert!(text.contains("INFO") && text.contains("served"), "{text}");
        assert!(text.contains("request_id=\"0197\"") && text.contains("uid=1000"), "{text}");
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'), "no colours: {text}");
    }

    #[test]
    fn libraries_are_heard_from_warn_on() {
        let page = Page::default();
        let writer = page.clone();
        let subscriber = tracing_subscriber::registry()
            .with(filter(Level::Debug))
            .with(lines(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("ours in detail");
            tracing::trace!("ours in too much detail");
            tracing::info!(target: "library", "chatter");
            tracing::warn!(target: "library", "trouble");
        });
        let text = page.text();
        assert!(text.contains("ours in detail") && text.contains("trouble"), "{text}");
        assert!(!text.contains("chatter") && !text.contains("too much"), "{text}");
    }

    #[test]
    fn a_level_below_warn_quietens_libraries_too() {
        assert_eq!(filter(Level::Error).default_level(), Some(LevelFilter::ERROR));
        assert_eq!(filter(Level::Trace).default_level(), Some(LevelFilter::WARN));
    }

    #[test]
    fn a_level_changes_while_running() {
        let page = Page::default();
        let writer = page.clone();
        let (filter, handle) = reload::Layer::new(filter(Level::Info));
        let subscriber =
            tracing_subscriber::registry().with(filter).with(lines(move || writer.clone()));
        let logs = Logs { target: Target::Stderr, filter: handle };
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("before");
            logs.change_level(Level::Debug);
            tracing::debug!("after");
        });
        let text = page.text();
        assert!(!text.contains("before") && text.contains("after"), "{text}");
    }

    #[test]
    fn only_the_very_stream_is_the_journal() {
        let file = tempfile::tempfile().unwrap();
        let stat = fstat(&file).unwrap();
        assert!(is_stream(&format!("{}:{}", stat.st_dev, stat.st_ino), &file));
        assert!(!is_stream(&format!("{}:{}", stat.st_dev, stat.st_ino + 1), &file));
        for malformed in ["", ":", "1", "a:b", "1:2:3", "-1:1"] {
            assert!(!is_stream(malformed, &file), "{malformed}");
        }
    }

    #[test]
    fn settings_are_strict() {
        let settings: Settings = toml::from_str("target = \"journal\"\nlevel = \"debug\"").unwrap();
        assert_eq!((settings.target, settings.level), (TargetChoice::Journal, Level::Debug));
        assert_eq!(toml::from_str::<Settings>("").unwrap(), Settings::default());
        assert!(toml::from_str::<Settings>("levle = \"info\"").is_err());
        assert!(toml::from_str::<Settings>("level = \"loud\"").is_err());
    }
}
