//! What systemd is told of this process (sd_notify(3)), by a thread of its own: a service manager that does
//! not read must not block a thread that serves or handles signals.

use std::fmt::Write;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use sd_notify::NotifyState;

/// Messages that may wait; the watchdog's come again.
const CAPACITY: usize = 8;

/// The way to the service manager; without one, messages go nowhere.
#[derive(Clone)]
pub struct Notifier(SyncSender<String>);

/// The service manager's socket, where there is one (`NOTIFY_SOCKET`).
pub struct Manager(Option<UnixDatagram>);

impl Manager {
    /// Connects to it. To be called before the sandbox is entered: inside, nothing is connected to.
    pub fn connect() -> Self {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Self(None) };
        let connected = UnixDatagram::unbound().and_then(|socket| {
            socket.connect(&path)?;
            Ok(socket)
        });
        if let Err(error) = &connected {
            tracing::warn!(%error, "the service manager cannot be notified");
        }
        Self(connected.ok())
    }

    /// Sends a message at once.
    pub fn notify(&self, state: &NotifyState<'_>) {
        self.send(&text_of(state));
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.0 else { return };
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::debug!(%error, "the service manager could not be notified");
        }
    }
}

impl Notifier {
    /// Starts the thread. To be called inside the sandbox, which a thread from before would be outside of.
    pub fn start(manager: Manager) -> Self {
        let (sender, states) = sync_channel::<String>(CAPACITY);
        let send = move || {
            for state in states {
                manager.send(&state);
            }
        };
        let _ = thread::Builder::new().name("notify".to_owned()).spawn(send);
        Self(sender)
    }

    /// Queues a message; one too many is dropped.
    pub fn send(&self, state: NotifyState<'_>) {
        let _ = self.0.try_send(text_of(&state));
    }
}

fn text_of(state: &NotifyState<'_>) -> String {
    let mut message = String::new();
    // Writing to a text does not fail.
    let _ = writeln!(message, "{state}");
    message
}
