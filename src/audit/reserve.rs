//! What may be written when the disk of the audit log has no more than its reserve left.

use std::collections::HashMap;

use super::Event;
use super::writer::Job;

/// The room that is kept, and what was used of it since there is no other.
pub(super) struct Reserve {
    pub bytes: u64,
    used: HashMap<String, u64>,
}

/// One principal may use one part of so many.
const PARTS: u64 = 8;

impl Reserve {
    pub fn new(bytes: u64) -> Self {
        Self { bytes, used: HashMap::new() }
    }

    /// Whether this may be written in it: what has happened already, and what closes something. The numbers of
    /// refusals wait for room, for anybody can cause them.
    pub fn is_for(&self, job: &Job) -> bool {
        match job {
            Job::Begin { intent, .. } => {
                let used = self.used.get(&intent.subject.caller).copied().unwrap_or(0);
                intent.restricts && used < self.bytes / PARTS
            }
            Job::Refuse { .. } => false,
            Job::Event { note, .. } => note.event != Event::RefusalsLeftOut,
            Job::Close { .. } | Job::Checkpoint { .. } | Job::Seal { .. } | Job::Stop => true,
        }
    }

    /// Notes what was written in it.
    pub fn use_up(&mut self, job: &Job, bytes: usize) {
        if let Some(principal) = job.principal() {
            let used = self.used.entry(principal.to_owned()).or_default();
            *used = used.saturating_add(bytes as u64);
        }
    }

    /// There is other room again.
    pub fn refill(&mut self) {
        self.used.clear();
    }
}
