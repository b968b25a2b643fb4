//! The master key's generations are looked at and rotated.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::error::Error;
use super::gate::{Appliance, Request, Trace, Traced};
use super::master_destruction::MOST_UNRETIRED;
use crate::audit::{Details, Words};
use crate::custody::protocol::MasterFound;
use crate::policy::{Action, Facts, Permit, Resource};
use crate::records::{Census, HomeRecord, MasterRecord, PassRecord, Purpose, Stage};

/// Begin to rotate the master key: a new generation in the token, under which every data key and store
/// key is rewrapped while service goes on.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RotateMaster {
    /// Also where the last rotation made its master key less than an hour ago.
    pub force: bool,
}

/// Show the generations, what lies under each, and how far a rotation is.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ShowMaster {
    /// Whether to count what lies under each generation, which reads the record of every key.
    pub counts: bool,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MasterView {
    /// The generation that the request was about, for the trail.
    #[serde(skip)]
    pub about: u32,
    /// The generation that new keys are wrapped under.
    pub generation: u32,
    pub generations: Vec<GenerationView>,
    /// What could not be counted, because its record does not open: up to 1000 of those that the caller may
    /// see. Absent where nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub broken: Vec<String>,
    /// The rotation that is under way, or the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationView>,
    /// The revision of the record of a rotation that was begun, for the trail.
    #[serde(skip)]
    pub pass: Option<u64>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct GenerationView {
    pub generation: u32,
    /// `in-use`, `old`, `destruction-pending`, `destroying` (it was begun, and its end is not on record yet) or
    /// `retired`.
    pub state: &'static str,
    /// When it is to be destroyed; `POST /v1/master/cancel-retirement` keeps it until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub destroy_at: Option<Timestamp>,
    /// What keeps it from being destroyed although that is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// How it stands in the token: `fit`, `missing`, `unknown` while it is away, or what is wrong.
    pub token: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub retired_at: Option<Timestamp>,
    /// Versions of keys, and store keys, that are wrapped under it; where they were to be counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_versions: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_keys: Option<u64>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RotationView {
    pub generation: u32,
    /// `rotation`, or `recovery` where it is for the recovery key.
    pub purpose: &'static str,
    /// `making`, `rewrapping` or `done`.
    pub stage: &'static str,
    /// Who asked for it.
    pub by: String,
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// Keys there were when it began, and how many of them it is past.
    pub keys: u64,
    pub keys_done: u64,
    /// Versions of keys that were rewrapped.
    pub rewrapped: u64,
    /// Keys that could not be, because their records do not open.
    pub broken: u64,
    /// What keeps it waiting at the moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

/// So long after a master key was made no other is, unless it is forced.
const ROTATED_RECENTLY: SignedDuration = SignedDuration::from_hours(1);

/// Master keys that custody is asked about in one request.
const ASKED_AT_ONCE: usize = 512;

/// Rotations that are begun within a day, forced ones among them.
const MOST_A_DAY: usize = 24;
const DAY: SignedDuration = SignedDuration::from_hours(24);

impl Request for RotateMaster {
    const ACTION: Action = Action::MasterRotate;
    const TRACE: Trace = Trace::Before;
    type Reply = MasterView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<MasterView, Error> {
        let _one_at_a_time = appliance.founding.lock().await;
        appliance.must_cover(&permit, Facts::Unknown)?;
        let home = appliance.records.home().ok_or(Error::NotInitialised)?;
        appliance.must_not_rotate().await?;
        if !self.force {
            appliance.must_not_have_rotated(&home).await?;
        }
        appliance.must_not_be_many(&home)?;
        let record = PassRecord {
            generation: appliance.free_generation(&home).await?,
            purpose: Purpose::Rotation,
            stage: Stage::Making,
            started_at: appliance.now(),
            by: permit.caller().name(),
            after: None,
            keys: appliance.records.count_keys()?,
            keys_done: 0,
            rewrapped: 0,
            broken: 0,
            ended_at: None,
            owes: Vec::new(),
            with_recovery: false,
        };
        // On record before the token is asked: only a key that was wanted is ever taken for ours.
        let pass = appliance.records.begin_rotation(&record).await?;
        appliance.rotating.wake();
        let (pass, about) = (Some(pass), record.generation);
        Ok(MasterView { pass, about, ..appliance.master_view(&permit, &home, None).await? })
    }
}

impl Request for ShowMaster {
    const ACTION: Action = Action::MasterRead;
    const TRACE: Trace = Trace::Beside;
    type Reply = MasterView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<MasterView, Error> {
        let home = appliance.records.home().ok_or(Error::NotInitialised)?;
        let census = if self.counts { Some(appliance.records.census().await?) } else { None };
        appliance.master_view(&permit, &home, census).await
    }
}

impl Appliance {
    pub(super) async fn must_not_rotate(&self) -> Result<(), Error> {
        match self.pass().await? {
            Some(running) if !running.is_over() => Err(Error::Rotating(running.generation)),
            _ => Ok(()),
        }
    }

    /// Two rotations in a row are a mistake rather than a wish: each makes a key in the token. One that left
    /// broken keys behind is repeated.
    async fn must_not_have_rotated(&self, home: &HomeRecord) -> Result<(), Error> {
        let masters = home.masters();
        let (Some(newest), true) = (masters.last(), masters.len() > 1) else { return Ok(()) };
        let last = self.pass().await?.filter(|last| last.purpose == Purpose::Rotation);
        if last.as_ref().is_some_and(|last| last.broken > 0)
            || self.now().duration_since(newest.created_at) >= ROTATED_RECENTLY
        {
            return Ok(());
        }
        let at = last.and_then(|last| last.ended_at).unwrap_or(newest.created_at);
        Err(Error::RotatedRecently { generation: newest.generation, at })
    }

    /// Each rotation, forced or not, makes a key in the token, which has no room for any number of them.
    fn must_not_be_many(&self, home: &HomeRecord) -> Result<(), Error> {
        let masters = home.masters();
        let count = masters.iter().filter(|known| known.retired_at.is_none()).count();
        if count >= MOST_UNRETIRED {
            return Err(Error::TooManyMasters { count, most: MOST_UNRETIRED });
        }
        let since = self.now().checked_sub(DAY).unwrap_or(Timestamp::MIN);
        let of_today: Vec<Timestamp> =
            masters.iter().map(|known| known.created_at).filter(|at| *at > since).collect();
        let count = of_today.len();
        let Some(next) = of_today.first().filter(|_| count > MOST_A_DAY) else { return Ok(()) };
        let seconds = next.duration_since(since).as_secs();
        Err(Error::RotatedOften { count, seconds: u32::try_from(seconds).unwrap_or(u32::MAX) })
    }

    /// The next generation whose place in the token is free. A key that this appliance has not on record
    /// (one of a later state of a store that was restored, perhaps) is passed over, never taken.
    async fn free_generation(&self, home: &HomeRecord) -> Result<u32, Error> {
        /// Keys of others that are passed over, at most.
        const MOST: u32 = 64;
        let newest = home.masters().iter().map(|known| known.generation).max().unwrap_or(0);
        let newest = newest.max(home.generation);
        let places: Vec<u32> = (newest + 1..=newest + MOST).collect();
        let found = self.custody.masters(places).await?;
        let free = found.iter().find(|facts| facts.found == MasterFound::Missing);
        let free = free.ok_or_else(|| {
            let (first, last) = (newest + 1, newest + MOST);
            Error::Master(format!("the token holds keys of generations {first} to {last}"))
        })?;
        if free.generation > newest + 1 {
            let passed = free.generation - newest - 1;
            tracing::warn!(passed, "the token holds later master keys that are not this store's");
        }
        Ok(free.generation)
    }

    pub(super) async fn master_view(
        &self,
        permit: &Permit,
        home: &HomeRecord,
        census: Option<Census>,
    ) -> Result<MasterView, Error> {
        let masters = home.masters();
        let wanted: Vec<u32> = masters.iter().map(|known| known.generation).collect();
        let mut facts = Vec::new();
        for some in wanted.chunks(ASKED_AT_ONCE) {
            // How far a rotation is, is told without the token, too.
            let Ok(found) = self.custody.masters(some.to_vec()).await else { break };
            facts.extend(found);
        }
        let view = |known: &MasterRecord| {
            let found = facts.iter().find(|facts| facts.generation == known.generation);
            let waits_for = self.retiring.waits_for(known.generation);
            let found = found.map(|facts| &facts.found);
            let view = GenerationView::of(known, home.generation, found, &census);
            GenerationView { waits_for, ..view }
        };
        let generations = masters.iter().map(view).collect();
        let rotation = self.pass().await.unwrap_or_default();
        let rotation = rotation.map(|record| RotationView::of(record, self.rotating.waits_for()));
        let broken = census.map(|census| self.may_be_named(permit, &census.broken));
        let broken = broken.unwrap_or_default();
        let generation = home.generation;
        let (about, pass) = (generation, None);
        Ok(MasterView { generation, generations, broken, rotation, about, pass })
    }
}

impl GenerationView {
    fn of(
        known: &MasterRecord,
        in_use: u32,
        found: Option<&MasterFound>,
        census: &Option<Census>,
    ) -> Self {
        let generation = known.generation;
        let under = census.as_ref().map(|census| census.under.get(&generation));
        Self {
            generation,
            state: match known.retired_at {
                Some(_) => "retired",
                None if generation == in_use => "in-use",
                None if known.is_destroying().is_some() => "destroying",
                None if known.waits().is_some() => "destruction-pending",
                None => "old",
            },
            token: match found {
                Some(MasterFound::Fit) => "fit".to_owned(),
                Some(MasterFound::Unfit(why)) => why.clone(),
                Some(MasterFound::Missing) => "missing".to_owned(),
                None => "unknown".to_owned(),
            },
            created_at: known.created_at,
            destroy_at: known.waits().map(|waits| waits.destroy_at),
            waits_for: None,
            retired_at: known.retired_at,
            key_versions: under.map(|under| under.map_or(0, |under| under.key_versions)),
            store_keys: under.map(|under| under.map_or(0, |under| under.store_keys)),
        }
    }
}

impl RotationView {
    pub(super) fn of(record: PassRecord, waits_for: Option<String>) -> Self {
        let is_over = record.is_over();
        let stage = match record.stage {
            Stage::Making => "making",
            Stage::Done if record.is_over() => "done",
            Stage::Rewrapping | Stage::Done => "rewrapping",
        };
        let PassRecord { generation, by, started_at, ended_at, .. } = record;
        let PassRecord { keys, keys_done, rewrapped, broken, .. } = record;
        let purpose = match record.purpose {
            Purpose::Rotation => "rotation",
            Purpose::Recovery => "recovery",
        };
        let waits_for = waits_for.filter(|_| !is_over);
        Self {
            generation,
            purpose,
            stage,
            by,
            started_at,
            ended_at,
            keys,
            keys_done,
            rewrapped,
            broken,
            waits_for,
        }
    }
}

impl Traced for MasterView {
    fn details(&self) -> Details {
        let about = self.generations.iter().find(|view| view.generation == self.about);
        let destroy_at = about.and_then(|view| view.destroy_at).map(Words::of_time);
        Details { generation: Some(self.about), pass: self.pass, destroy_at, ..Details::default() }
    }
}
