//! Finds what somebody edited in the store: it is named in journal and trail, and not served.

use std::sync::atomic::Ordering;

use super::gate::Appliance;
use crate::audit::{Code, Event, EventNote};
use crate::records::RecordError;

/// Findings that get a line of their own in the trail; all are named in the journal.
const MOST_TOLD: u64 = 16;

impl Appliance {
    /// Holds the record of a resource against the revision that a line of the trail tells. What is behind
    /// it, or gone, is served no more, unless it is to be `accepted`. Returns whether it is behind.
    ///
    /// # Errors
    /// What the store said.
    pub async fn hold_against(
        &self,
        line: u64,
        resource: &str,
        revision: u64,
        accepted: bool,
    ) -> Result<bool, RecordError> {
        let Some(reached) = self.records.reached(resource)?.filter(|reached| *reached < revision)
        else {
            return Ok(false);
        };
        if accepted {
            tracing::warn!(
                resource,
                reached,
                revision,
                line,
                "older than the trail knows; accepted"
            );
            return Ok(true);
        }
        self.records.hold_back(resource);
        tracing::error!(
            resource,
            reached,
            revision,
            line,
            "the store has an older record than the trail knows of, or none: it was put back or taken away. \
             It is not served. Put the right store at [store] path, or accept it as it is with [audit] \
             on_break = \"record\""
        );
        self.tell_edited("record-behind", line).await;
        Ok(true)
    }

    /// Holds what the appliance is against a generation of the master key that a line of the trail tells
    /// to be in use. No older one is ever put in use again, so a home record that names one was put back,
    /// and nothing is done by it, unless it is to be `accepted`. Returns whether it is behind.
    pub async fn hold_home_against(&self, line: u64, generation: u32, accepted: bool) -> bool {
        let Some(home) = self.records.home().filter(|home| home.generation < generation) else {
            return false;
        };
        let found = home.generation;
        if accepted {
            let what = "an older master key is in use than the trail knows";
            tracing::warn!(found, generation, line, "{what}; accepted");
            return true;
        }
        let why = format!(
            "master generation {generation} is in use since line {line} of the trail or earlier, and the store says \
             {found}: an older record was put back"
        );
        self.hold_all_back("home-behind", Some(line), why).await;
        true
    }

    /// The same for the store key that a restore began with, as a line of the trail tells: a store in which
    /// older ones count is of the time that the restore ended.
    pub async fn hold_store_keys_against(&self, line: u64, first: u32, accepted: bool) -> bool {
        let Some(home) = self.records.home().filter(|home| home.first_store_key() < first) else {
            return false;
        };
        let found = home.first_store_key();
        if accepted {
            let what = "the store is of the time before a restore";
            tracing::warn!(found, first, line, "{what}; accepted");
            return true;
        }
        let why = format!(
            "line {line} of the trail tells of a restore, and the store is one from before it: it was put back"
        );
        self.hold_all_back("home-behind", Some(line), why).await;
        true
    }

    /// Nothing is done any more but to tell why.
    pub(super) async fn hold_all_back(&self, code: &'static str, line: Option<u64>, why: String) {
        if self.standing.home_behind.set(why.clone()).is_ok() {
            tracing::error!(
                why,
                "nothing is served. Put the right store at [store] path, or accept it as it is with [audit] \
                 on_break = \"record\""
            );
            match line {
                Some(line) => self.tell_edited(code, line).await,
                None => self.tell(EventNote::because(Event::StoreEdited, Code(code))).await,
            }
        }
    }

    /// Tells journal and trail of keys that were put back from before a pass over all keys.
    pub async fn tell_odd_keys(&self) {
        for key in self.records.newly_odd_keys() {
            tracing::error!(
                %key,
                "it lies under another master key, or has another recovery wrap, than the last pass over all \
                 keys left it with: it was put back from before. It is not served. Put the right store at \
                 [store] path; or, if this key is to be believed, `strongroom recovery set` or `strongroom \
                 master rotate` wraps it anew"
            );
            if self.standing.edits_told.fetch_add(1, Ordering::Relaxed) < MOST_TOLD {
                let note = EventNote::because(Event::StoreEdited, Code("key-before-pass"));
                self.tell(note.with_key(key)).await;
            }
        }
    }

    /// Tells the trail that the store does not hold what this line tells.
    pub async fn tell_edited(&self, code: &'static str, line: u64) {
        if self.standing.edits_told.fetch_add(1, Ordering::Relaxed) < MOST_TOLD {
            self.tell(EventNote::because(Event::StoreEdited, Code(code)).about_line(line)).await;
        }
    }
}
