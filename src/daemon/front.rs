//! The front, put together: store, custody's link, trail, records, policy, and the service over them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::config::{Config, Loaded};
use super::store_check::StoreCheck;
use super::token_watch::watch_token;
use super::trail_keeping::{CustodySigner, InStore};
use super::{DaemonError, house, next_start};
use crate::audit::{AuditError, Code, Event, EventNote, OnBreak, Trail};
use crate::custody::{self, Client, Dialer, LinkSettings, Wanted};
use crate::policy::Policy;
use crate::records::{self, Records};
use crate::service::{Appliance, Clock, Parts, Seen};
use crate::store::{Store, StoreError};

/// The parts that the start, the reload and the stop have to reach.
pub struct Front {
    pub appliance: Arc<Appliance>,
    pub store: Arc<dyn Store>,
    pub custody: Client,
}

impl Front {
    /// Opens everything else that lies on disk and begins to look for custody. Needs a runtime around it.
    ///
    /// # Errors
    /// Whatever would have it serve without trail, store or policy: it does not start then.
    pub async fn open(
        path: &Path,
        loaded: &Loaded,
        store: Arc<dyn Store>,
        dialer: Dialer,
    ) -> Result<Self, DaemonError> {
        let config = &loaded.config;
        let policy = Policy::load(&config.policy)?;
        let mut check = StoreCheck::begin(&config.audit)?;
        let mut wanted = wanted(store.as_ref())?;
        if check.lock_was_removed(&wanted) {
            wanted = Wanted::Locked;
        }
        let custody = Client::start(link(config, dialer)?, wanted);
        let known = records::read_head(store.as_ref())?;
        let known = known
            .map(|head| head.parse())
            .transpose()
            .map_err(|_| records::RecordError::Broken("appliance/head".to_owned()))?;
        let records = Records::open(Arc::clone(&store), custody.clone(), &config.records)?;
        let records = Arc::new(records);
        let signer = Arc::new(CustodySigner(custody.clone()));
        let keeper = InStore { records: Arc::clone(&records), custody: custody.clone() };
        let trail = Trail::open_held(&config.audit, known, signer, Arc::new(keeper))?;
        check_store(&records, &trail, config.audit.on_break).await?;
        let clock = Clock::open(store.as_ref(), config.keys.clock_doubt_hours)?;
        let digest = policy_digest(&policy);
        for note in [
            EventNote::new(Event::Start),
            EventNote::of(Event::ConfigLoaded, loaded.digest),
            EventNote::of(Event::PolicyLoaded, digest),
        ] {
            waits(trail.event(note).await)?;
        }
        let appliance = Arc::new(Appliance::new(Parts {
            policy,
            trail,
            store: Arc::clone(&store),
            records,
            custody: custody.clone(),
            settings: config.keys.clone(),
            secret_settings: config.secrets,
            refusals_per_minute: config.limits.refusals_per_minute_per_uid,
            records_per_day: config.limits.records_per_day_per_uid,
            clock,
            house: house::checks(path, config),
            config_file: path.display().to_string(),
            next_start: next_start::check(path, config),
        }));
        check.newest(&appliance).await?;
        tokio::spawn(check.rest(Arc::clone(&appliance)));
        Ok(Self { appliance, store, custody })
    }

    /// Starts what goes on beside the requests: the trail's checkpoints, the sweep, the watch over the
    /// token.
    pub fn tend(&self, config: &Config) {
        let appliance = Arc::clone(&self.appliance);
        tokio::spawn(async move { appliance.trail().tend().await });
        tokio::spawn(tell_numbers(Arc::clone(&self.appliance)));
        tokio::spawn(tend_clock(Arc::clone(&self.appliance)));
        tokio::spawn(sweep(Arc::clone(&self.appliance), config.keys.sweep_seconds));
        let appliance = Arc::clone(&self.appliance);
        tokio::spawn(async move { appliance.keep_rotating().await });
        let appliance = Arc::clone(&self.appliance);
        tokio::spawn(async move { appliance.keep_owed_lock().await });
        let appliance = Arc::clone(&self.appliance);
        tokio::spawn(async move { appliance.keep_history().await });
        let appliance = Arc::clone(&self.appliance);
        tokio::spawn(async move { appliance.keep_checking_next_start().await });
        let appliance = Arc::clone(&self.appliance);
        tokio::spawn(async move { appliance.after_start().await });
        tokio::spawn(watch_token(Arc::clone(&self.appliance), self.custody.clone()));
    }
}

/// Holds the store against what the trail knows of it: a change that was acknowledged must be there.
async fn check_store(
    records: &Records,
    trail: &Trail,
    on_break: OnBreak,
) -> Result<(), DaemonError> {
    let (found, known) = (records.changes(), trail.known_changes().unwrap_or(0));
    if found >= known {
        return Ok(());
    }
    let behind = DaemonError::StoreBehind { found, known };
    if on_break == OnBreak::Refuse {
        return Err(behind);
    }
    tracing::error!(%behind, "going on, as the settings say");
    let note = EventNote::because(Event::BreakRecorded, Code("store-behind"));
    Ok(waits(trail.event(note).await)?)
}

/// An event is written as soon as custody has said that this is the trail.
pub fn waits(told: Result<(), AuditError>) -> Result<(), AuditError> {
    match told {
        Err(AuditError::Held) => Ok(()),
        told => told,
    }
}

/// The hash of a policy as the trail takes it.
pub fn policy_digest(policy: &Policy) -> [u8; 32] {
    policy.hash().parse().map_or([0; 32], |crate::audit::Hash(digest)| digest)
}

fn link(config: &Config, dialer: Dialer) -> Result<LinkSettings, DaemonError> {
    Ok(LinkSettings {
        socket: config.custody.socket.clone(),
        dialer,
        deadline: Duration::from_millis(config.custody.deadline_ms),
        custody_uid: custody::resolve(config.custody.custody_user.as_deref())?,
        max_outage_grace_seconds: config.custody.max_outage_grace_seconds,
    })
}

/// What custody has to be brought to: what an operator locked stays locked.
fn wanted(store: &dyn Store) -> Result<Wanted, DaemonError> {
    if records::read_locked(store)?.is_some() {
        return Ok(Wanted::Locked);
    }
    let home = records::read_home(store)?;
    Ok(Wanted::Unlocked(home.map(|home| home.for_custody())))
}

/// Resolves when the store has failed for good, with what it failed with.
pub async fn lost(store: &dyn Store) -> StoreError {
    loop {
        if let Err(error @ StoreError::NotSynced) = store.health() {
            return error;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Tells trail and journal of what was counted and not told one by one.
async fn tell_numbers(appliance: Arc<Appliance>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        appliance.quiet().tell();
        appliance.tell_refusals(false).await;
        appliance.tell_odd_keys().await;
    }
}

/// Carries out destructions as they fall due, from the start on.
async fn sweep(appliance: Arc<Appliance>, seconds: u64) {
    let mut seen = Seen::UpTo(None);
    loop {
        if appliance.state().0 == "ready"
            && let Err(error) = appliance.sweep(&mut seen).await
        {
            tracing::warn!(%error, "the sweep for due destructions ended early; it is repeated");
        }
        let pause = if appliance.state().0 == "ready" { seconds.max(1) } else { 1 };
        let _ = tokio::time::timeout(Duration::from_secs(pause), appliance.clock_believed()).await;
    }
}

/// Holds the clock against the time that has passed.
async fn tend_clock(appliance: Arc<Appliance>) {
    loop {
        appliance.tend_clock().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn only_a_store_that_failed_for_good_ends_the_front() {
        let store = MemoryStore::new();
        store.fail_commits(Some(StoreError::Full));
        let patience = Duration::from_millis(20);
        assert!(tokio::time::timeout(patience, lost(&store)).await.is_err());
        store.fail_commits(Some(StoreError::NotSynced));
        assert_eq!(lost(&store).await, StoreError::NotSynced);
    }
}
