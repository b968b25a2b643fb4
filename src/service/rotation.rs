//! Carries a rotation of the master key on, from wherever it stands, until everything lies under the new
//! generation. What it has done lies in the store, so it goes on by itself after any end of the process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Notify, RwLock, RwLockReadGuard};
use tokio::time::timeout;

use super::error::Error;
use super::gate::Appliance;
use super::span::span;
use crate::audit::{Code, Event, EventNote};
use crate::custody::protocol::{Fault, KeyAddress};
use crate::custody::{CustodyError, Fingerprint, NewKey, generation_of};
use crate::key::Name;
use crate::records::{
    At, Line, PassRecord, Purpose, RecordError, RecoveryRecord, Stage, VersionRecord,
};

/// Keys between two notes of how far it is.
const BATCH: usize = 64;

/// Keys that are rewrapped side by side: few, for callers come first.
const ABREAST: usize = 8;

/// Versions between two lines in the trail.
const LINE_EVERY: u32 = 1000;

/// How often a key that others change at the same time is tried.
const TRIES: usize = 100;

/// Until what could not be done is tried again: longer each time, where it was tried and failed.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What a rotation and the other acts have to do with each other.
#[derive(Default)]
pub struct Rotating {
    begun: Notify,
    /// Read by whoever has a new key wrapped and kept; written while the generation in use changes.
    wrapping: RwLock<()>,
    waits_for: Mutex<Option<String>>,
    /// Whether the trail was told of a pass that is none.
    edit_told: AtomicBool,
}

impl Rotating {
    pub(super) fn wake(&self) {
        self.begun.notify_one();
    }

    /// What a rotation waits for.
    pub(super) fn waits_for(&self) -> Option<String> {
        self.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn wait_for(&self, what: Option<String>) {
        let mut known = self.waits_for.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != what {
            if let Some(what) = &what {
                tracing::warn!(what, "the rotation of the master key waits");
            }
            *known = what;
        }
    }
}

impl Appliance {
    /// To be held from before a new key is wrapped until it is kept.
    ///
    /// # Errors
    /// [`Error::Busy`] where the generation in use is being changed, and that takes its time.
    pub(super) async fn same_master(&self) -> Result<RwLockReadGuard<'_, ()>, Error> {
        let changed = timeout(self.custody.deadline(), self.rotating.wrapping.read());
        changed.await.map_err(|_| Error::Busy)
    }

    /// The record of a version that custody has just made, with its recovery wrap where a recovery key
    /// is set: without it no key is kept then.
    pub(super) async fn to_keep(
        &self,
        address: KeyAddress,
        made: NewKey,
    ) -> Result<VersionRecord, Error> {
        // A key that custody wrapped while it had not heard of the generation in use is not kept.
        let in_use = self.records.home().map(|home| home.generation);
        if generation_of(&made.sealed) != in_use {
            return Err(Error::Busy);
        }
        let NewKey { sealed, public, .. } = made;
        let recovery = match self.recovery_key().await? {
            Some(set) => {
                let fingerprint = set.fingerprint;
                self.custody.wrap_key_for_recovery(address, sealed.clone(), fingerprint).await?
            }
            None => Vec::new(),
        };
        Ok(VersionRecord { revision: 0, sealed, recovery, public })
    }

    /// Changes what the recovery key is while nobody has a key wrapped, as with a new generation, and
    /// begins the pass over those that there are. Returns the revisions of both records.
    pub(super) async fn set_recovery(
        &self,
        set: Option<&RecoveryRecord>,
        pass: &PassRecord,
        over: Option<u64>,
    ) -> Result<(u64, u64), Error> {
        let nobody_wraps = timeout(self.custody.deadline(), self.rotating.wrapping.write());
        let _nobody_wraps = nobody_wraps.await.map_err(|_| Error::Busy)?;
        Ok(self.records.set_recovery(set, pass, over).await?)
    }

    /// Waits for rotations and carries them out; never ends.
    pub async fn keep_rotating(&self) {
        let mut pause = PAUSE;
        loop {
            let result = match self.pass_at().await {
                Ok(Some(at)) if at.record.stage != Stage::Done => self.rotate_on(at).await,
                // Whether there is one is seen when custody can open it.
                Err(_) if self.state().0 != "ready" => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(error) => Err(error),
                Ok(last) => match self.see_to_the_last(last).await {
                    Ok(()) => {
                        self.rotating.wait_for(None);
                        self.rotating.begun.notified().await;
                        continue;
                    }
                    failed => failed,
                },
            };
            let Err(error) = result else {
                pause = PAUSE;
                continue;
            };
            self.rotating.wait_for(Some(self.why_not(&error, pause)));
            let _ = timeout(pause, self.rotating.begun.notified()).await;
            let passes = matches!(error, Error::Busy | Error::Conflict | Error::Locked);
            let is_ready = self.state().0 == "ready";
            pause = if passes || !is_ready { PAUSE } else { LONGEST_PAUSE.min(pause * 2) };
        }
    }

    /// What a rotation waits for, in words.
    fn why_not(&self, error: &Error, pause: Duration) -> String {
        match self.state() {
            ("ready", _) if pause > PAUSE => {
                format!("{error}; it is tried again every {}", span(pause.as_secs()))
            }
            ("ready", _) => error.to_string(),
            (state, detail) if detail.is_empty() => state.to_owned(),
            (_, detail) => detail,
        }
    }

    /// The pass that is under way, or the last one. One that somebody put there, or put back, is none.
    pub(super) async fn pass(&self) -> Result<Option<PassRecord>, Error> {
        Ok(self.pass_at().await?.map(|at| at.record))
    }

    /// The same, with the revision that it was kept at.
    pub(super) async fn pass_at(&self) -> Result<Option<At<PassRecord>>, Error> {
        match self.records.rotation().await {
            Err(error @ RecordError::Broken(_)) => {
                if self.rotating.edit_told.fetch_or(true, Ordering::Relaxed) {
                    return Ok(None);
                }
                tracing::error!(%error, "no rotation goes on by it; `strongroom master rotate` begins one");
                self.tell(EventNote::because(Event::StoreEdited, Code("rotation"))).await;
                Ok(None)
            }
            found => Ok(found?),
        }
    }

    /// Carries a rotation to its end, unless another one takes its place meanwhile.
    async fn rotate_on(&self, mut at: At<PassRecord>) -> Result<(), Error> {
        self.must_be_ready()?;
        if at.record.stage == Stage::Making {
            self.custody.make_master(at.record.generation).await?;
            self.change_over(&mut at).await?;
        } else {
            self.follow_home(at.record.generation).await?;
        }
        self.rotating.wait_for(None);
        self.tell_owed(&mut at).await?;
        let set = self.recovery_key().await?;
        let fingerprint = set.as_ref().map(|set| set.fingerprint);
        self.records.wrap_store_keys(fingerprint).await?;
        self.rewrap_all(&mut at, fingerprint).await?;
        // Before the pass counts as done: should it end here, it comes by here again.
        if let Some(set) = set.filter(|_| at.record.broken == 0) {
            self.records.complete_recovery(&set, self.now()).await?;
        }
        self.gather_store_keys().await?;
        at.record.stage = Stage::Done;
        at.record.ended_at = Some(self.now());
        at.record.owes.extend(at.record.with_recovery.then_some(Line::Wrapped));
        at.record.owes.push(Line::End);
        self.records.keep_rotation(&mut at).await?;
        self.tell_owed(&mut at).await
    }

    /// What an end of the process may have left behind where no pass is under way.
    async fn see_to_the_last(&self, last: Option<At<PassRecord>>) -> Result<(), Error> {
        self.gather_store_keys().await?;
        match last {
            Some(mut at) => self.tell_owed(&mut at).await,
            None => Ok(()),
        }
    }

    /// Nothing is rewrapped while the trail cannot be written or an operator has locked.
    fn must_be_ready(&self) -> Result<(), Error> {
        match self.state() {
            ("ready", _) => Ok(()),
            ("locked", _) => Err(Error::Locked),
            _ => Err(Error::Busy),
        }
    }

    /// Puts the new generation in use. Nobody has a key wrapped meanwhile, so that all that lie under
    /// another one are in the store when it is over, where the pass over it finds them.
    async fn change_over(&self, at: &mut At<PassRecord>) -> Result<(), Error> {
        let nobody_wraps = self.rotating.wrapping.write().await;
        at.record.stage = Stage::Rewrapping;
        at.record.owes.push(Line::InUse);
        self.records.put_in_use(at, self.now()).await?;
        drop(nobody_wraps);
        let generation = at.record.generation;
        tracing::info!(generation, "a new master key is in use; all keys are rewrapped under it");
        Ok(())
    }

    /// Sees to it that front and custody both work with the generation that is on record: the change-over
    /// may have ended between its parts.
    async fn follow_home(&self, generation: u32) -> Result<(), Error> {
        let known = self.records.home().ok_or(Error::NotInitialised)?;
        if known.generation != generation {
            self.records.reload_home().await?;
        }
        let home = self.records.home().ok_or(Error::NotInitialised)?;
        Ok(self.custody.use_home(home.for_custody()).await?)
    }

    /// Has every store key lie under the generation in use.
    async fn gather_store_keys(&self) -> Result<(), Error> {
        let store_keys = self.records.gather_store_keys().await?;
        if store_keys > 0 {
            tracing::warn!(store_keys, "lay under an old master key; they were rewrapped");
        }
        Ok(())
    }

    async fn rewrap_all(
        &self,
        at: &mut At<PassRecord>,
        recovery: Option<Fingerprint>,
    ) -> Result<(), Error> {
        let mut told = at.record.rewrapped;
        loop {
            let names = self.records.key_names(at.record.after.as_deref(), BATCH)?;
            self.rewrap_batch(&names, &mut at.record, recovery).await?;
            let is_last = names.len() < BATCH;
            if let Some(last) = names.last() {
                at.record.after = Some(last.clone());
            }
            self.records.keep_rotation(at).await?;
            let since = u32::try_from(at.record.rewrapped - told).unwrap_or(u32::MAX);
            if since >= LINE_EVERY && !is_last {
                told = at.record.rewrapped;
                let line = EventNote::about(Event::Rewrapped, at.record.generation);
                self.tell(line.counting(since, 0)).await;
            }
            if is_last {
                return Ok(());
            }
            self.must_be_ready()?;
        }
    }

    async fn rewrap_batch(
        &self,
        names: &[String],
        record: &mut PassRecord,
        recovery: Option<Fingerprint>,
    ) -> Result<(), Error> {
        for few in names.chunks(ABREAST) {
            let rewraps = few.iter().map(|name| self.rewrap_key(name, record.generation, recovery));
            for (name, rewrapped) in few.iter().zip(join_all(rewraps).await) {
                match rewrapped {
                    Ok(versions) => record.rewrapped += versions,
                    Err(error) if is_broken(&error) => {
                        tracing::error!(key = name, %error, "the rotation passes this key over");
                        record.broken += 1;
                    }
                    Err(error) => return Err(error.into()),
                }
                record.keys_done += 1;
            }
        }
        Ok(())
    }

    async fn rewrap_key(
        &self,
        name: &str,
        generation: u32,
        recovery: Option<Fingerprint>,
    ) -> Result<u64, RecordError> {
        let name = Name::parse(name).map_err(|_| RecordError::Broken(format!("key/{name:?}")))?;
        for _ in 0..TRIES {
            match self.records.rewrap(&name, generation, recovery).await {
                // A caller changed it meanwhile: look again.
                Err(RecordError::Conflict) => {}
                other => return other,
            }
        }
        Err(RecordError::Conflict)
    }

    /// Tells the trail what it is still to be told. Where the process ends in between, the line is there
    /// twice rather than never.
    async fn tell_owed(&self, at: &mut At<PassRecord>) -> Result<(), Error> {
        while let Some(line) = at.record.owes.first() {
            self.must_be_ready()?;
            let note = match line {
                Line::InUse => EventNote::about(Event::MasterInUse, at.record.generation),
                Line::Wrapped => end_of(&at.record, Purpose::Recovery),
                Line::End => end_of(&at.record, at.record.purpose),
            };
            self.trail.event(note).await?;
            at.record.owes.remove(0);
            self.records.keep_rotation(at).await?;
        }
        Ok(())
    }
}

fn end_of(record: &PassRecord, purpose: Purpose) -> EventNote {
    let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let (generation, rewrapped, broken) = (record.generation, record.rewrapped, record.broken);
    let event = match purpose {
        Purpose::Rotation => Event::RotationDone,
        Purpose::Recovery => Event::RecoveryWrapped,
    };
    tracing::info!(generation, rewrapped, broken, what = event.as_str(), "all keys are done");
    EventNote::about(event, generation).counting(count(rewrapped), count(broken))
}

/// Whether it is this key's own record: all others can be rewrapped all the same.
fn is_broken(error: &RecordError) -> bool {
    matches!(
        error,
        RecordError::Broken(_) | RecordError::Custody(CustodyError::Fault(Fault::SealBroken))
    )
}
