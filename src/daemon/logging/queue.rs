//! A bounded queue between the threads that log and the one thread that writes log lines.
//!
//! Whoever reads the log may be slow, stopped or gone: a pipe that is full, a journal that is halted. No
//! thread that serves, signs or handles signals waits for it. A full queue drops the line and counts it; the
//! count is logged once there is room.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::field::{Field, Value, Visit, display};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::{Context, Layer};

/// Lines that may wait to be written.
const CAPACITY: usize = 1024;

/// The longest value of a field, in bytes; what is longer is cut.
const LONGEST_VALUE: usize = 8 * 1024;

/// The most fields of a line: as many as `tracing` takes.
const MOST_FIELDS: usize = 32;

/// Where the lines go in the end.
pub(super) type Sink = Box<dyn Subscriber + Send + Sync>;

enum Message {
    Line(Line),
    /// Everything queued before this has been written.
    Flush(Sender<()>),
}

/// An event with its values, to be written by another thread.
struct Line {
    at: Timestamp,
    metadata: &'static Metadata<'static>,
    values: Vec<(Field, Owned)>,
}

enum Owned {
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    /// The text of a value that has no quotes around it.
    Shown(String),
}

/// The end of the queue that threads log to.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    lines: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

/// The end of the queue that is written from.
pub(super) struct Writing {
    lines: Receiver<Message>,
    dropped: Arc<AtomicU64>,
    sink: Sink,
    is_for_journal: bool,
}

/// A queue of [`CAPACITY`] lines to this sink, which may be the journal's; nothing is written before [`Writing::run`].
pub(super) fn queue(sink: Sink, is_for_journal: bool) -> (Queue, Writing) {
    let (sender, lines) = sync_channel(CAPACITY);
    let dropped = Arc::new(AtomicU64::new(0));
    let queue = Queue { lines: sender, dropped: Arc::clone(&dropped) };
    (queue, Writing { lines, dropped, sink, is_for_journal })
}

impl Queue {
    /// Waits until what is queued has been written, at most for `within`.
    pub fn flush(&self, within: Duration) {
        let until = Instant::now() + within;
        let (done, written) = channel();
        let mut message = Message::Flush(done);
        while let Err(error) = self.lines.try_send(message) {
            let std::sync::mpsc::TrySendError::Full(back) = error else { return };
            if Instant::now() >= until {
                return;
            }
            message = back;
            thread::sleep(Duration::from_millis(1));
        }
        let left = until.saturating_duration_since(Instant::now());
        match written.recv_timeout(left) {
            Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
}

impl<S: Subscriber> Layer<S> for Queue {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line =
            Line { at: Timestamp::now(), metadata: event.metadata(), values: Vec::new() };
        event.record(&mut line);
        if self.lines.try_send(Message::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Writing {
    /// Writes lines as they come, until the last [`Queue`] is gone.
    pub fn run(self) {
        for message in &self.lines {
            match message {
                Message::Line(line) => line.write(self.sink.as_ref(), self.is_for_journal),
                Message::Flush(done) => drop(done.send(())),
            }
            let dropped = self.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                tracing::warn!(dropped, "log lines were dropped: the log was not read fast enough");
            }
        }
    }
}

impl Line {
    fn write(&self, sink: &(dyn Subscriber + Send + Sync), is_for_journal: bool) {
        let Some((some_field, _)) = self.values.first() else { return };
        let message = is_for_journal.then(|| Owned::Shown(self.whole_message()));
        let shown = self.values.iter().map(|(field, value)| match (&message, field.name()) {
            (Some(message), "message") => message.shown(),
            _ => value.shown(),
        });
        let shown: Vec<_> = shown.collect();
        let mut values: [(&Field, Option<&dyn Value>); MOST_FIELDS] =
            [(some_field, None); MOST_FIELDS];
        let filled = self.values.iter().zip(&shown).take(MOST_FIELDS);
        for (slot, ((field, _), value)) in values.iter_mut().zip(filled) {
            *slot = (field, Some(value.as_ref()));
        }
        AT.set(Some(self.at));
        sink.event(&Event::new(self.metadata, &self.metadata.fields().value_set(&values)));
        AT.set(None);
    }

    /// The message with all that the line says besides: the journal shows nothing else of a line unless it is asked.
    fn whole_message(&self) -> String {
        let texts: Vec<(&str, String)> =
            self.values.iter().map(|(field, value)| (field.name(), value.text())).collect();
        whole_message(&texts)
    }
}

/// Fields that say why: they follow the message itself.
const REASONS: [&str; 11] = [
    "error", "why", "reason", "code", "behind", "broken", "panic", "status", "state", "found",
    "what",
];

/// The message, the reasons, the other facts, the next step.
fn whole_message(values: &[(&str, String)]) -> String {
    let text = |wanted: &str| {
        values.iter().find(|(name, _)| *name == wanted).map(|(_, text)| text.as_str())
    };
    let mut message = text("message").unwrap_or_default().to_owned();
    let mut facts = Vec::new();
    for (name, value) in values {
        match *name {
            // The request is found by its own field; a count of nothing says nothing.
            "message" | "next" | "request_id" => {}
            "left_out" | "dropped" if value == "0" => {}
            name if REASONS.contains(&name) => {
                if !message.contains(value.as_str()) {
                    message = format!("{message}: {value}");
                }
            }
            name => facts.push(format!("{} {value}", name.replace('_', " "))),
        }
    }
    if !facts.is_empty() {
        message = format!("{message} ({})", facts.join(", "));
    }
    match text("next") {
        Some(next) if !next.is_empty() => format!("{message}; next: {next}"),
        _ => message,
    }
}

impl Owned {
    fn text(&self) -> String {
        match self {
            Owned::Bool(value) => value.to_string(),
            Owned::Signed(value) => value.to_string(),
            Owned::Unsigned(value) => value.to_string(),
            Owned::Float(value) => value.to_string(),
            Owned::Text(text) | Owned::Shown(text) => text.clone(),
        }
    }

    fn shown(&self) -> Box<dyn Value + '_> {
        match self {
            Owned::Bool(value) => Box::new(*value),
            Owned::Signed(value) => Box::new(*value),
            Owned::Unsigned(value) => Box::new(*value),
            Owned::Float(value) => Box::new(*value),
            Owned::Text(text) => Box::new(text.as_str()),
            Owned::Shown(text) => Box::new(display(text)),
        }
    }
}

impl Visit for Line {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.values.push((field.clone(), Owned::Bool(value)));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.values.push((field.clone(), Owned::Signed(value)));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.values.push((field.clone(), Owned::Unsigned(value)));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.values.push((field.clone(), Owned::Float(value)));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.values.push((field.clone(), Owned::Text(shortened(value.to_owned()))));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.values.push((field.clone(), Owned::Shown(shortened(format!("{value:?}")))));
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > LONGEST_VALUE {
        let end = (0..=LONGEST_VALUE).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    text
}

thread_local! {
    /// When the line that is being written was logged.
    static AT: Cell<Option<Timestamp>> = const { Cell::new(None) };
}

/// The time at which a line was logged, not the one at which it is written.
pub(super) struct WhenLogged;

impl FormatTime for WhenLogged {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{:.6}", AT.get().unwrap_or_else(Timestamp::now))
    }
}

/// The writer's thread, which is started once and late: it must lie inside the sandbox.
pub(super) struct LateThread(Mutex<Option<Writing>>);

impl LateThread {
    pub fn new(writing: Writing) -> Self {
        Self(Mutex::new(Some(writing)))
    }

    /// Starts the thread; later calls do nothing.
    pub fn start(&self) {
        let Some(writing) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        // Without a thread lines are dropped and counted, as with a reader that hangs.
        let _ = thread::Builder::new().name("log".to_owned()).spawn(|| writing.run());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_line_stands_in_its_message() {
        let whole = |values: &[(&str, &str)]| {
            let values: Vec<(&str, String)> =
                values.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            whole_message(&values)
        };
        assert_eq!(
            whole(&[("message", "the trail could not be written"), ("error", "no space left")]),
            "the trail could not be written: no space left"
        );
        assert_eq!(
            whole(&[
                ("message", "not taken: a typo"),
                ("key", "payments"),
                ("request_id", "0197"),
                ("left_out", "0"),
                ("why", "a typo"),
                ("next", "correct it"),
            ]),
            "not taken: a typo (key payments); next: correct it"
        );
        assert_eq!(whole(&[("message", "ready")]), "ready");
    }

    /// What the sink of the journal is given as its message, for a line as it is logged anywhere.
    #[test]
    fn the_journals_message_is_the_whole_of_a_line() {
        #[derive(Clone, Default)]
        struct Seen(Arc<Mutex<Vec<String>>>);

        impl<S: Subscriber> Layer<S> for Seen {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                let mut line =
                    Line { at: Timestamp::now(), metadata: event.metadata(), values: Vec::new() };
                event.record(&mut line);
                let message = line.values.iter().find(|(field, _)| field.name() == "message");
                let message = message.map(|(_, value)| value.text()).unwrap_or_default();
                self.0.lock().unwrap().push(message);
            }
        }

        use tracing_subscriber::layer::SubscriberExt;
        for (is_for_journal, expected) in
            [(true, "the store failed: no space left (path /store)"), (false, "the store failed")]
        {
            let seen = Seen::default();
            let sink = tracing_subscriber::registry().with(seen.clone());
            let (queue, writing) = queue(Box::new(sink), is_for_journal);
            let subscriber = tracing_subscriber::registry().with(queue);
            tracing::subscriber::with_default(subscriber, || {
                let error = std::io::Error::other("no space left");
                tracing::error!(%error, path = "/store", "the store failed");
            });
            writing.run();
            assert_eq!(*seen.0.lock().unwrap(), [expected]);
        }
    }
}
