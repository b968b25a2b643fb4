//! What systemd is told of this process (sd_notify(3)), by a thread of its own: a service manager that does
//! not read must not block a thread that serves or handles signals.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use sd_notify::NotifyState;

/// Messages that may wait; the watchdog's come again.
const CAPACITY: usize = 8;

/// The way to the service manager; without one, messages go nowhere.
#[derive(Clone)]
pub struct Notifier(SyncSender<NotifyState<'static>>);

impl Notifier {
    /// Starts the thread. To be called inside the sandbox, which a thread from before would be outside of.
    pub fn start() -> Self {
        let (sender, states) = sync_channel(CAPACITY);
        let send = move || {
            for state in states {
                if let Err(error) = sd_notify::notify(&[state]) {
                    tracing::debug!(%error, "the service manager could not be notified");
                }
            }
        };
        let _ = thread::Builder::new().name("notify".to_owned()).spawn(send);
        Self(sender)
    }

    /// Queues a message; one too many is dropped.
    pub fn send(&self, state: NotifyState<'static>) {
        let _ = self.0.try_send(state);
    }
}
