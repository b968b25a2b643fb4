//! Old master keys are destroyed, after a wait: backups that were made under one open only with it, so the
//! destruction of all of them at once must not be faster than that of one key.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::binary::SecretBinary;
use super::error::Error;
use super::gate::{Appliance, Call, Request, Trace, outcome, request_id, told};
use super::master::MasterView;
use super::sweep::PART;
use crate::audit::{Details, Intent};
use crate::identity::Caller;
use crate::key::{Name, WaitingPeriod};
use crate::policy::{Action, Facts, Permit, Resource};
use crate::records::{Census, MasterRecord, Retirement, Stage};

/// Have the master key of a generation that nothing lies under any more destroyed, after the waiting period.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetireMaster {
    pub generation: u32,
    /// The names of all keys whose records do not open, which may be lost with it. Nothing else can be.
    #[serde(default)]
    #[schema(max_items = 200)]
    pub leave: Vec<String>,
    /// Days to wait, up to 365; the configured ones (`destroy_wait_days`) are the fewest, and wait
    /// unless said.
    #[serde(default)]
    #[schema(value_type = Option<u16>)]
    pub waiting_period_days: Option<u16>,
    /// The token's user PIN, base64: with it the key is destroyed as soon as custody does, which has a waiting
    /// period of its own that only root ends earlier.
    pub pin: Option<SecretBinary>,
}

/// Keep a master key that waits for its destruction.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelRetirement {
    pub generation: u32,
}

/// Destroy the master key of a generation whose waiting period is over.
struct DestroyMaster {
    generation: u32,
}

/// What keeps master keys from being destroyed that are due, and until when nobody looks again.
#[derive(Default)]
pub(super) struct Retiring(Mutex<HashMap<u32, (Instant, String)>>);

/// Names that a record of a retirement has room for.
const MOST_LEFT: usize = 200;

/// Between two tries of a destruction that something keeps: each reads the record of every key.
const PAUSE: Duration = Duration::from_secs(3600);

impl Retiring {
    /// What the destruction of this generation waits for, although it is due.
    pub fn waits_for(&self, generation: u32) -> Option<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&generation).map(|(_, why)| why.clone())
    }

    fn may_try(&self, generation: u32) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&generation).is_none_or(|(tried, _)| tried.elapsed() >= PAUSE)
    }

    fn note(&self, generation: u32, why: Option<String>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => drop(known.insert(generation, (Instant::now(), why))),
            None => drop(known.remove(&generation)),
        }
    }
}

impl Request for RetireMaster {
    const ACTION: Action = Action::MasterRetire;
    const TRACE: Trace = Trace::Before;
    type Reply = MasterView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    fn details(&self) -> Details {
        let items = (!self.leave.is_empty()).then_some(self.leave.len() as u32);
        let (generation, days) = (Some(self.generation), self.waiting_period_days);
        let with_pin = self.pin.is_some().then_some(true);
        Details { generation, items, days, with_pin, ..Details::default() }
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<MasterView, Error> {
        let pin = appliance.given_pin(&permit, self.pin.as_ref()).await?;
        let _one_at_a_time = appliance.founding.lock().await;
        appliance.must_cover(&permit, Facts::Unknown)?;
        let generation = self.generation;
        let period = appliance.waiting_period(self.waiting_period_days)?;
        let leave = parsed(&self.leave)?;
        let known = appliance.master_to_retire(generation)?;
        if pin.is_none() {
            if let Some(waits) = known.waits() {
                return Err(Error::Retiring { generation, at: waits.destroy_at });
            }
            appliance.must_believe_clock()?;
        }
        let census = appliance.must_not_be_needed(&permit, generation, &leave).await?;
        let is_broken = |name: &Name| census.broken.iter().any(|broken| is_of(broken, name));
        if let Some(sound) = leave.iter().find(|name| !is_broken(name)) {
            let rule =
                format!("{sound} opens, or is not there: only what does not open can be left");
            return Err(Error::Invalid { member: "leave", rule });
        }
        if pin.is_some() {
            appliance.destroy_master(&permit, generation, &leave, pin).await?;
            return appliance.view_of_master(&permit, generation, Some(census)).await;
        }
        let destroy_at = after(period, appliance.waiting_begins());
        let retirement = Retirement { destroy_at, leave };
        appliance.records.note_retirement(generation, Some(retirement)).await?;
        appliance.retiring.note(generation, None);
        let (request_id, at) = (request_id(), tracing::field::display(destroy_at));
        tracing::warn!(request_id, generation, at, "a master key is to be destroyed");
        appliance.view_of_master(&permit, generation, Some(census)).await
    }
}

impl Request for CancelRetirement {
    const ACTION: Action = Action::MasterCancelRetirement;
    const TRACE: Trace = Trace::Before;
    type Reply = MasterView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    fn details(&self) -> Details {
        Details { generation: Some(self.generation), ..Details::default() }
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<MasterView, Error> {
        let _one_at_a_time = appliance.founding.lock().await;
        appliance.must_cover(&permit, Facts::Unknown)?;
        let generation = self.generation;
        let known = appliance.master_to_retire(generation)?;
        if known.waits().is_none() && known.is_destroying().is_none() {
            return Err(Error::NotRetiring(generation));
        }
        appliance.must_not_be_destroyed(&known).await?;
        appliance.records.note_retirement(generation, None).await?;
        appliance.retiring.note(generation, None);
        appliance.view_of_master(&permit, generation, None).await
    }
}

impl Request for DestroyMaster {
    const ACTION: Action = Action::MasterRetire;
    const TRACE: Trace = Trace::Before;
    type Reply = MasterView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    fn details(&self) -> Details {
        Details { generation: Some(self.generation), ..Details::default() }
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<MasterView, Error> {
        let _one_at_a_time = appliance.founding.lock().await;
        appliance.must_cover(&permit, Facts::Unknown)?;
        let generation = self.generation;
        // It may have been cancelled since, or be needed again: by what a restore brought back, perhaps.
        let retirement = appliance.due_retirement(generation)?;
        let leave = retirement.ok_or(Error::NotRetiring(generation))?.leave;
        let census = appliance.must_not_be_needed(&permit, generation, &leave).await?;
        appliance.destroy_master(&permit, generation, &leave, None).await?;
        appliance.view_of_master(&permit, generation, Some(census)).await
    }
}

impl Appliance {
    /// Destroys the master keys whose waiting period is over. What keeps one from it is said where the
    /// generations are shown, and it is tried again later.
    pub(super) async fn destroy_due_masters(&self) {
        let masters = self.records.home().map(|home| home.masters()).unwrap_or_default();
        for MasterRecord { generation, .. } in masters {
            if !matches!(self.due_retirement(generation), Ok(Some(_)))
                || !self.retiring.may_try(generation)
            {
                continue;
            }
            match self.destroy_due_master(generation).await {
                Ok(()) => self.retiring.note(generation, None),
                // The next sweep is soon enough.
                Err(error) if error.cause().is_some() || matches!(error, Error::Busy) => {
                    tracing::info!(generation, %error, "a master key is not destroyed yet");
                }
                Err(error) => {
                    tracing::warn!(generation, %error, "a master key that is due is not destroyed");
                    self.retiring.note(generation, Some(error.to_string()));
                }
            }
        }
    }

    /// The same way as every request, but for the judging: it was permitted when it was scheduled.
    async fn destroy_due_master(&self, generation: u32) -> Result<(), Error> {
        let request = DestroyMaster { generation };
        let call = Call { caller: Caller::System(PART), request_id: Uuid::now_v7() };
        let resource = request.resource();
        let intent = Intent::new(call.request_id, &call.caller, Action::MasterRetire, &resource)
            .with(request.details());
        let entry = self.trail.begin(intent).durable().await?;
        let permit = Permit::of_system(PART, Action::MasterRetire, resource);
        let result = request.run(permit, self).await;
        let outcome = outcome(&result);
        let details = Details { changes: Some(self.records.changes()), ..outcome.details.clone() };
        let written = self.trail.close(entry, outcome.with(details)).durable().await;
        told(result, written).map(drop)
    }

    /// The retirement of a generation, if its waiting period is over.
    fn due_retirement(&self, generation: u32) -> Result<Option<Retirement>, Error> {
        let known = self.master_to_retire(generation)?;
        Ok(known.waits().filter(|waits| waits.destroy_at <= self.due_now()).cloned())
    }

    /// A master key that is neither in use nor destroyed.
    pub(super) fn master_to_retire(&self, generation: u32) -> Result<MasterRecord, Error> {
        let home = self.records.home().ok_or(Error::NotInitialised)?;
        let masters = home.masters();
        let known = masters.into_iter().find(|known| known.generation == generation);
        let known = known.ok_or(Error::NoGeneration(generation))?;
        if home.generation == generation {
            let what = "it is in use: new keys are wrapped under it".to_owned();
            return Err(Error::StillNeeded { generation, what });
        }
        match known.retired_at {
            Some(_) => Err(Error::Retired(generation)),
            None => Ok(known),
        }
    }

    /// Counts what lies under each generation, of which this one has to have nothing.
    async fn must_not_be_needed(
        &self,
        permit: &Permit,
        generation: u32,
        leave: &[Name],
    ) -> Result<Census, Error> {
        self.must_not_rewrap().await?;
        let census = self.records.census().await?;
        let shown = |names: &[String]| self.may_be_named(permit, names);
        match needs(&census, generation, leave, shown) {
            Some(what) => Err(Error::StillNeeded { generation, what }),
            None => Ok(census),
        }
    }

    /// What nothing lies under is not needed either while a new master key is still to be made: it may take
    /// the old one's place in a token that is full.
    async fn must_not_rewrap(&self) -> Result<(), Error> {
        match self.pass().await? {
            Some(running) if running.stage == Stage::Making => Ok(()),
            _ => self.must_not_rotate().await,
        }
    }

    async fn view_of_master(
        &self,
        permit: &Permit,
        generation: u32,
        census: Option<Census>,
    ) -> Result<MasterView, Error> {
        let home = self.records.home().ok_or(Error::NotInitialised)?;
        let view = self.master_view(permit, &home, census).await?;
        Ok(MasterView { about: generation, ..view })
    }
}

/// When a period that begins then is over.
fn after(period: WaitingPeriod, begins: Timestamp) -> Timestamp {
    let wait = SignedDuration::from_hours(24 * i64::from(period.days()));
    begins.checked_add(wait).unwrap_or(Timestamp::MAX)
}
/// What keeps a generation from being retired, in words; nothing where nothing does.
fn needs(
    census: &Census,
    generation: u32,
    leave: &[Name],
    shown: impl Fn(&[String]) -> Vec<String>,
) -> Option<String> {
    if let Some(found) = census.under.get(&generation) {
        let (versions, store_keys) = (found.key_versions, found.store_keys);
        let first = shown(&found.first);
        let more = (versions + store_keys).saturating_sub(first.len() as u64);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let first =
            if first.is_empty() { String::new() } else { format!(": {}{more}", first.join(", ")) };
        return Some(format!(
            "{versions} versions of keys and {store_keys} store keys lie under it{first}"
        ));
    }
    let is_left = |broken: &&String| leave.iter().any(|name| is_of(broken, name));
    let broken: Vec<String> =
        census.broken.iter().filter(|broken| !is_left(broken)).cloned().collect();
    if broken.is_empty() {
        return None;
    }
    let (count, mut first) = (broken.len(), shown(&broken));
    first.truncate(5);
    let first = if first.is_empty() { String::new() } else { format!(": {}", first.join(", ")) };
    Some(format!(
        "the records of {count} keys do not open, so what they lie under is not known{first}; put them back \
         from a backup, or name every one of them to be left and lost (`strongroom master retire {generation} \
         --leave NAME`)"
    ))
}

/// Whether an entry of the census is about this key.
fn is_of(broken: &str, name: &Name) -> bool {
    broken.strip_prefix("key/").is_some_and(|of| of == name.as_str())
}

fn parsed(names: &[String]) -> Result<Vec<Name>, Error> {
    let invalid = |rule: String| Error::Invalid { member: "leave", rule };
    if names.len() > MOST_LEFT {
        return Err(invalid(format!("at most {MOST_LEFT} names")));
    }
    let parse = |name: &String| Name::parse(name).map_err(|error| invalid(error.to_string()));
    names.iter().map(parse).collect()
}
