//! A master key is destroyed in the token. That it begins is on record before the token is asked; what came of
//! it, where no answer and no record says so, is asked of the token: at once, and with every sweep.

use jiff::SignedDuration;

use super::error::Error;
use super::gate::{Appliance, request_id};
use crate::audit::{Event, EventNote};
use crate::custody::CustodyError;
use crate::custody::protocol::{Check, Fault, MasterFound, Verdict};
use crate::key::Name;
use crate::policy::Permit;
use crate::records::{Destroying, MasterRecord};
use crate::secret::Pin;

/// After this time no request to the token that was given up is still under way.
const LONGEST_DESTRUCTION: SignedDuration = SignedDuration::from_secs(90);

/// Master keys that are not retired: so many at most, and from so many on it is warned of.
pub(super) const MOST_UNRETIRED: usize = 64;
const MANY_UNRETIRED: usize = 48;

impl Appliance {
    /// Has the token destroy a master key that nothing is known to need; to be called with `founding` held.
    pub(super) async fn destroy_master(
        &self,
        permit: &Permit,
        generation: u32,
        leave: &[Name],
        pin: Option<Pin>,
    ) -> Result<(), Error> {
        for name in leave {
            let line = EventNote::about(Event::KeyLeft, generation).with_key(name.clone());
            self.trail.event(line).await?;
        }
        let (since, by, with_pin) = (self.now(), permit.caller().name(), pin.is_some());
        let destroying = Destroying { since, by, with_pin };
        self.records.note_destroying(generation, Some(destroying)).await?;
        match self.custody.destroy_master(generation, pin).await {
            Ok(()) => {
                self.note_destroyed(generation).await;
                let request_id = request_id();
                tracing::warn!(request_id, generation, "a master key was destroyed");
                Ok(())
            }
            Err(error) if has_changed_nothing(&error) => {
                self.note_not_destroyed(generation).await;
                Err(super::lock::told(error.into()))
            }
            Err(error) => self.ask_token_about(generation, error).await,
        }
    }

    /// After an error that does not say whether the key was destroyed.
    async fn ask_token_about(&self, generation: u32, error: CustodyError) -> Result<(), Error> {
        tracing::warn!(request_id = request_id(), generation, %error,
            "the token has not said whether the master key was destroyed");
        match self.found_in_token(generation).await {
            Ok(MasterFound::Missing) => {
                self.note_destroyed(generation).await;
                Ok(())
            }
            // It may still be under way.
            Ok(_) | Err(_) => Err(Error::Destroying(generation)),
        }
    }

    async fn found_in_token(&self, generation: u32) -> Result<MasterFound, Error> {
        let facts = self.custody.masters(vec![generation]).await?;
        let facts = facts.into_iter().find(|facts| facts.generation == generation);
        facts.map(|facts| facts.found).ok_or(Error::Custody(CustodyError::Confused))
    }

    /// What was done stays done, whether it can be noted now or not: the sweep asks the token later.
    async fn note_destroyed(&self, generation: u32) {
        if let Err(error) = self.records.note_retired(generation, self.now()).await {
            tracing::error!(request_id = request_id(), generation, %error,
                "a master key was destroyed, and the store has no record of it yet; it is noted with a later sweep");
        }
    }

    async fn note_not_destroyed(&self, generation: u32) {
        if let Err(error) = self.records.note_destroying(generation, None).await {
            tracing::warn!(request_id = request_id(), generation, %error,
                "the store still has it that a master key is being destroyed; the sweep asks the token");
        }
    }

    /// Refuses to keep a master key that the token no longer holds, or may be destroying; to be called with
    /// `founding` held.
    pub(super) async fn must_not_be_destroyed(&self, known: &MasterRecord) -> Result<(), Error> {
        let generation = known.generation;
        match self.found_in_token(generation).await? {
            MasterFound::Missing => {
                self.note_destroyed(generation).await;
                Err(Error::Retired(generation))
            }
            _ if self.may_be_under_way(known) => Err(Error::Destroying(generation)),
            _ => Ok(()),
        }
    }

    fn may_be_under_way(&self, known: &MasterRecord) -> bool {
        known.is_destroying().is_some_and(|destroying| {
            self.now().duration_since(destroying.since).abs() < LONGEST_DESTRUCTION
        })
    }

    /// Asks the token what came of the destructions that were begun and of whose end there is no record.
    pub(super) async fn settle_destructions(&self) {
        let begun = || {
            let masters = self.records.home().map(|home| home.masters()).unwrap_or_default();
            masters.into_iter().filter(|known| known.is_destroying().is_some())
        };
        if begun().next().is_none() {
            return;
        }
        let _one_at_a_time = self.founding.lock().await;
        for known in begun() {
            if let Err(error) = self.settle_destruction(&known).await {
                let generation = known.generation;
                tracing::info!(generation, %error, "whether a master key was destroyed is found out later");
            }
        }
    }

    async fn settle_destruction(&self, known: &MasterRecord) -> Result<(), Error> {
        let generation = known.generation;
        match self.found_in_token(generation).await? {
            MasterFound::Missing => {
                // Its entry first: where the process ends in between, it is there twice rather than never.
                self.trail.event(EventNote::about(Event::MasterDestroyed, generation)).await?;
                tracing::warn!(generation, "a master key whose destruction was begun is destroyed");
                self.note_destroyed(generation).await;
            }
            _ if self.may_be_under_way(known) => {}
            _ => {
                let what = "a master key whose destruction was begun is still there";
                tracing::warn!(generation, "{what}");
                self.note_not_destroyed(generation).await;
            }
        }
        Ok(())
    }

    /// How the master keys that are not retired stand in the token.
    pub(super) async fn check_of_masters(&self) -> Option<Check> {
        let masters = self.records.home()?.masters();
        let kept = masters.iter().filter(|known| known.retired_at.is_none());
        let kept: Vec<u32> = kept.map(|known| known.generation).collect();
        let (count, name) = (kept.len(), "master keys".to_owned());
        let facts = self.custody.masters(kept).await.ok()?;
        let missing = facts.iter().filter(|facts| facts.found == MasterFound::Missing);
        let missing: Vec<String> = missing.map(|facts| facts.generation.to_string()).collect();
        Some(if !missing.is_empty() {
            let found = format!(
                "the token does not hold the master key of generation {}, and there is no record that it was \
                 destroyed: what lies under it, and backups of its time, do not open",
                missing.join(", ")
            );
            let remedy = "the token's backup; where nothing needs it: `strongroom master retire \
                          GENERATION`"
                .to_owned();
            Check { name, verdict: Verdict::Fail, found, remedy }
        } else if count >= MANY_UNRETIRED {
            let found =
                format!("{count} are not retired; from {MOST_UNRETIRED} on no other is made");
            let remedy = "`strongroom master retire GENERATION`, for those that nothing needs";
            Check { name, verdict: Verdict::Warn, found, remedy: remedy.to_owned() }
        } else {
            let found = format!("the token holds all {count} that are not retired");
            Check { name, verdict: Verdict::Ok, found, remedy: String::new() }
        })
    }
}

/// Whether custody refused before the token was asked to destroy anything.
fn has_changed_nothing(error: &CustodyError) -> bool {
    match error {
        CustodyError::Fault(fault) => {
            !matches!(fault, Fault::TokenUnavailable(_) | Fault::TokenCall(_))
        }
        CustodyError::TooLong => true,
        CustodyError::Away(_) | CustodyError::Gone | CustodyError::Confused => false,
    }
}
