//! Holds the store against the trail at a start: who edits the store cannot edit what the trail tells of it.
//!
//! The newest part is read before anybody is served; the rest beside the first requests, and no further
//! back than the settings say.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use super::DaemonError;
use super::front::waits;
use crate::audit::{self, AuditError, Code, Event, EventNote, LookBack, OnBreak, Told};
use crate::custody::Wanted;
use crate::records::{RECOVERY, ROTATION};
use crate::service::Appliance;

/// How many bytes of the trail's end are read before anybody is served.
const NEWEST: u64 = 4 * 1024 * 1024;

/// Between two blocks of what is read beside the requests.
const PAUSE: Duration = Duration::from_millis(5);

/// What is known of the trail so far, and the way further back.
pub struct StoreCheck {
    back: Option<LookBack>,
    /// Bytes that may still be read.
    left: u64,
    accepts: bool,
    /// The newest event of its kind: its line, and whether the appliance was locked.
    locked: Option<(u64, bool)>,
    lock_removed: Option<u64>,
    /// The store knows of a lock that the trail does not: a lock or an unlock was cut short.
    lock_untold: bool,
    /// The highest generation of the master key and the line that tells it.
    generation: Option<(u32, u64)>,
    /// The highest store key that a restore began with, and the line that tells it.
    first_store_key: Option<(u32, u64)>,
    /// The appliance's own records of which the newest line was found. They may begin anew after an older
    /// one was put back, so older lines tell nothing of them.
    newest: HashSet<&'static str>,
    /// By resource, the highest revision and the line that tells it.
    told: HashMap<String, (u64, u64)>,
}

impl StoreCheck {
    /// Reads the newest part of the trail.
    pub fn begin(settings: &audit::Settings) -> Result<Self, AuditError> {
        let mut check = Self {
            back: Some(LookBack::from_end(&settings.directory)?),
            left: settings.look_back_bytes,
            accepts: settings.on_break == OnBreak::Record,
            locked: None,
            lock_removed: None,
            lock_untold: false,
            generation: None,
            first_store_key: None,
            newest: HashSet::new(),
            told: HashMap::new(),
        };
        let until = check.left.saturating_sub(NEWEST);
        while check.left > until && check.step()? {}
        Ok(check)
    }

    /// Reads one block further back; false where that was the last.
    fn step(&mut self) -> Result<bool, AuditError> {
        let Some(back) = self.back.as_mut().filter(|_| self.left > 0) else { return Ok(false) };
        let (told, locked, generation) = (&mut self.told, &mut self.locked, &mut self.generation);
        let first = &mut self.first_store_key;
        let newest = &mut self.newest;
        let mut accepted = false;
        let mut show = |line: u64, what: Told<'_>| {
            match what {
                Told::Revision { resource, revision } => {
                    let known = told.get(resource).map_or(0, |(revision, _)| *revision);
                    if revision > known {
                        told.insert(resource.to_owned(), (revision, line));
                    }
                }
                Told::Locked(is_locked) => _ = locked.get_or_insert((line, is_locked)),
                Told::Begun { pass, recovery } => {
                    for (resource, revision) in [(ROTATION, Some(pass)), (RECOVERY, recovery)] {
                        if let Some(revision) = revision
                            && newest.insert(resource)
                        {
                            told.insert(resource.to_owned(), (revision, line));
                        }
                    }
                }
                Told::Generation(in_use) => *generation = (*generation).max(Some((in_use, line))),
                Told::FirstStoreKey(id) => *first = (*first).max(Some((id, line))),
                Told::Accepted => {
                    accepted = true;
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        };
        let read = back.step(&mut show)?;
        self.left = if accepted { 0 } else { self.left.saturating_sub(read) };
        Ok(read > 0 && self.left > 0)
    }

    /// Whether the trail knows of a lock that the store does not: somebody took it away.
    pub fn lock_was_removed(&mut self, wanted: &Wanted) -> bool {
        let unlocked = matches!(wanted, Wanted::Unlocked(Some(_)));
        self.lock_removed = match self.locked {
            Some((line, true)) if unlocked => Some(line),
            _ => None,
        };
        let locked = matches!(wanted, Wanted::Locked);
        self.lock_untold = locked && matches!(self.locked, Some((_, false)));
        if let Some(line) = self.lock_removed {
            let accepted = self.accepts;
            tracing::error!(line, accepted, "the trail knows of a lock that the store does not");
        }
        self.lock_removed.is_some() && !self.accepts
    }

    /// Holds the store against what was read so far.
    pub async fn newest(&mut self, appliance: &Appliance) -> Result<(), DaemonError> {
        if let Some(line) = self.lock_removed.filter(|_| !self.accepts) {
            appliance.tell_edited("lock-removed", line).await;
        }
        if self.lock_untold {
            let note = EventNote::because(Event::Locked, Code("at-start"));
            // A line that cannot be written now is owed.
            drop(appliance.trail().event(note).await);
        }
        self.hold_against(appliance).await
    }

    async fn hold_against(&mut self, appliance: &Appliance) -> Result<(), DaemonError> {
        let mut behind = self.lock_removed.take().is_some();
        if let Some((generation, line)) = self.generation {
            behind |= appliance.hold_home_against(line, generation, self.accepts).await;
        }
        if let Some((id, line)) = self.first_store_key {
            behind |= appliance.hold_store_keys_against(line, id, self.accepts).await;
        }
        for (resource, (revision, line)) in self.told.drain() {
            behind |= appliance.hold_against(line, &resource, revision, self.accepts).await?;
        }
        if behind && self.accepts {
            let note = EventNote::because(Event::BreakRecorded, Code("records-behind"));
            waits(appliance.trail().event(note).await)?;
            // What lies before this line counts no more.
            self.left = 0;
        }
        Ok(())
    }

    /// Reads on, and holds the store against that.
    pub async fn rest(mut self, appliance: Arc<Appliance>) {
        loop {
            let stepped = tokio::task::spawn_blocking(move || {
                let more = self.step();
                (self, more)
            });
            let Ok((check, more)) = stepped.await else { return };
            self = check;
            match (more, self.hold_against(&appliance).await) {
                (Ok(true), Ok(())) => tokio::time::sleep(PAUSE).await,
                (Ok(false), Ok(())) => return,
                (more, held) => {
                    let error = more.err().map(DaemonError::from).or(held.err());
                    let error = error.map(|error| error.to_string());
                    tracing::warn!(error, "the store is not held against the rest of the trail");
                    return;
                }
            }
        }
    }
}
