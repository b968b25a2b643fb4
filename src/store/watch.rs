//! Tells those who wait of changes, after they are durable.

use tokio::sync::broadcast::{self, error::RecvError};

use super::Table;

/// How many changes a watcher may be behind before it is told that it missed some.
const BEHIND: usize = 256;

/// One address that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub table: Table,
    pub key: String,
    pub revision: u64,
    pub deleted: bool,
}

/// What a watcher hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    Changed(Change),
    /// It was too slow and missed changes: read again what matters.
    Missed,
}

/// Changes of one table under one prefix.
pub struct Watch {
    table: Table,
    prefix: String,
    receiver: broadcast::Receiver<Change>,
}

impl Watch {
    /// Waits for the next change; `None` once the store is closed.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            match self.receiver.recv().await {
                Ok(change) if self.concerns(&change) => return Some(WatchEvent::Changed(change)),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => return Some(WatchEvent::Missed),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn concerns(&self, change: &Change) -> bool {
        change.table == self.table && change.key.starts_with(&self.prefix)
    }
}

/// The speaking side, held by a store.
pub(super) struct Watchers {
    sender: broadcast::Sender<Change>,
}

impl Watchers {
    pub fn new() -> Self {
        Self { sender: broadcast::Sender::new(BEHIND) }
    }

    pub fn watch(&self, table: Table, prefix: &str) -> Watch {
        Watch { table, prefix: prefix.to_owned(), receiver: self.sender.subscribe() }
    }

    pub fn tell(&self, change: Change) {
        // An error only says that nobody watches.
        let _ = self.sender.send(change);
    }
}
