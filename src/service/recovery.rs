//! The recovery key is set, taken away and looked at: what opens every key where the token is lost.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::error::Error;
use super::gate::{Appliance, Request, Trace, Traced};
use super::master::RotationView;
use super::precondition::Preconditions;
use crate::audit::{Code, Details, Event, EventNote};
use crate::custody::{Fingerprint, fingerprint_of};
use crate::policy::{Action, Permit, Resource};
use crate::records::{Census, PassRecord, Purpose, RecordError, RecoveryRecord, Stage};

/// How long a look at the state waits for what is not known yet.
const GLANCE: Duration = Duration::from_millis(250);

/// How often a pass that goes on at the same time is replaced anew.
const TRIES: usize = 100;

/// What is said where the recovery key's own record does not open.
const BROKEN: &str = "the record of the recovery key was changed outside Strongroom; `strongroom recovery set` \
                      or `strongroom recovery forget` puts another in its place";

/// Wrap every data key and store key to this recovery key, too, from now on and those that there are.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetRecovery {
    /// The public half, RSA-4096: PEM of an SPKI. It must be the one that custody's configuration names.
    pub public_key: String,
    /// From its headers.
    #[serde(skip)]
    pub conditions: Preconditions,
}

/// Wrap nothing to a recovery key any more, and take away what was.
pub struct ForgetRecovery {
    pub conditions: Preconditions,
}

/// Show whether this appliance can be recovered without its token.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ShowRecovery {
    /// Whether to count what can be recovered, which reads the record of every key.
    pub counts: bool,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RecoveryView {
    /// Whether all that is kept here can be opened without the token, in a sentence.
    pub without_the_token: String,
    /// SHA-256 of the recovery key's SPKI, hex; absent where none is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub set_at: Option<Timestamp>,
    /// Who set it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Grows with every change; what `if-match` is held against.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counted: Option<RecoveryCounts>,
    /// The pass over all keys that is under way, or the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass: Option<RotationView>,
    /// The revisions of the records of the recovery key and of the pass that was begun, for the trail.
    #[serde(skip)]
    pub begun: Option<(u64, u64)>,
}

/// What can be recovered, of how many.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RecoveryCounts {
    pub key_versions: u64,
    pub key_versions_recoverable: u64,
    pub store_keys: u64,
    pub store_keys_recoverable: u64,
    /// Keys whose records do not open: up to 1000 of those that the caller may see.
    pub broken: Vec<String>,
}

impl Request for SetRecovery {
    const ACTION: Action = Action::RecoverySet;
    const TRACE: Trace = Trace::Before;
    type Reply = RecoveryView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    fn details(&self) -> Details {
        let digest = fingerprint_of(self.public_key.as_bytes()).ok();
        Details { digest, ..Details::default() }
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<RecoveryView, Error> {
        let fingerprint = fingerprint_of(self.public_key.as_bytes())
            .map_err(|rule| Error::Invalid { member: "public_key", rule })?;
        let of_custody = appliance.custody.recovery_key().await?;
        if of_custody != Some(fingerprint) {
            let whose = match of_custody {
                Some(other) => format!("names another one, {}", hex(&other)),
                None => "names none".to_owned(),
            };
            return Err(Error::Recovery(format!("[custody] recovery_key {whose}")));
        }
        let (set_at, by) = (appliance.now(), permit.caller().name());
        let record = RecoveryRecord { fingerprint, set_at, by, complete_at: None };
        appliance.begin_recovery_pass(&permit, Some(record), &self.conditions).await
    }
}

impl Request for ForgetRecovery {
    const ACTION: Action = Action::RecoverySet;
    const TRACE: Trace = Trace::Before;
    type Reply = RecoveryView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<RecoveryView, Error> {
        appliance.begin_recovery_pass(&permit, None, &self.conditions).await
    }
}

impl Request for ShowRecovery {
    const ACTION: Action = Action::RecoveryRead;
    const TRACE: Trace = Trace::Beside;
    type Reply = RecoveryView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<RecoveryView, Error> {
        let mut census = None;
        if self.counts {
            let mut counted = appliance.records.census().await?;
            counted.broken = appliance.may_be_named(&permit, &counted.broken);
            census = Some(counted);
        }
        appliance.recovery_view(census).await
    }
}

impl Appliance {
    /// Keeps what the recovery key is, and begins the pass that brings every key to it, in place of one
    /// that is under way for another recovery key: that may never end. A rotation begins its pass anew.
    async fn begin_recovery_pass(
        &self,
        permit: &Permit,
        set: Option<RecoveryRecord>,
        conditions: &Preconditions,
    ) -> Result<RecoveryView, Error> {
        let _one_at_a_time = self.founding.lock().await;
        if !conditions.is_empty() {
            self.recovery_key().await?;
            conditions.check(self.records.recovery_at().await?.map(|at| at.revision))?;
        }
        for _ in 0..TRIES {
            let (pass, over) = self.next_recovery_pass(permit).await?;
            match self.set_recovery(set.as_ref(), &pass, over).await {
                // The one that is under way went on meanwhile.
                Err(Error::Conflict) => {}
                Err(error) => return Err(error),
                Ok(begun) => {
                    self.rotating.wake();
                    let view = self.recovery_view(None).await?;
                    return Ok(RecoveryView { begun: Some(begun), ..view });
                }
            }
        }
        Err(Error::Busy)
    }

    /// The pass for a recovery key, and the revision of the one whose place it takes.
    async fn next_recovery_pass(
        &self,
        permit: &Permit,
    ) -> Result<(PassRecord, Option<u64>), Error> {
        let home = self.records.home().ok_or(Error::NotInitialised)?;
        let running = self.pass_at().await?.filter(|at| !at.record.is_over());
        let over = running.as_ref().map(|at| at.revision);
        let fresh = PassRecord {
            generation: home.generation,
            purpose: Purpose::Recovery,
            stage: Stage::Rewrapping,
            started_at: self.now(),
            by: permit.caller().name(),
            after: None,
            keys: self.records.count_keys()?,
            keys_done: 0,
            rewrapped: 0,
            broken: 0,
            ended_at: None,
            owes: Vec::new(),
            with_recovery: false,
        };
        let pass = match running.map(|at| at.record) {
            // Only the trail is still to be told of it.
            Some(last) if last.stage == Stage::Done => {
                return Err(Error::Rotating(last.generation));
            }
            Some(rotation) if rotation.purpose == Purpose::Rotation => PassRecord {
                after: None,
                keys: fresh.keys,
                keys_done: 0,
                broken: 0,
                with_recovery: true,
                ..rotation
            },
            _ => fresh,
        };
        Ok((pass, over))
    }

    /// The recovery key that is set.
    ///
    /// # Errors
    /// [`Error::Recovery`] where its record is not the one that was kept.
    pub(super) async fn recovery_key(&self) -> Result<Option<RecoveryRecord>, Error> {
        match self.records.recovery().await {
            Err(RecordError::Broken(_)) => Err(Error::Recovery(BROKEN.to_owned())),
            found => Ok(found?),
        }
    }

    async fn recovery_view(&self, census: Option<Census>) -> Result<RecoveryView, Error> {
        let (set, without_the_token) = self.in_a_sentence().await?;
        let pass = self.pass().await?;
        let pass = pass.map(|pass| RotationView::of(pass, self.rotating.waits_for()));
        Ok(RecoveryView {
            without_the_token,
            fingerprint: set.as_ref().map(|set| hex(&set.fingerprint)),
            set_at: set.as_ref().map(|set| set.set_at),
            by: set.as_ref().map(|set| set.by.clone()),
            revision: self.recovery_revision().await,
            counted: census.map(RecoveryCounts::of),
            pass,
            begun: None,
        })
    }

    /// The revision of the recovery key's record, where it opens.
    async fn recovery_revision(&self) -> Option<u64> {
        Some(self.records.recovery_at().await.ok()??.revision)
    }

    /// The recovery key that is set, and what can be recovered with it.
    async fn in_a_sentence(&self) -> Result<(Option<RecoveryRecord>, String), RecordError> {
        let set = match self.records.recovery().await {
            Err(RecordError::Broken(_)) => {
                return Ok((None, format!("it is not known what can be recovered: {BROKEN}")));
            }
            found => found?,
        };
        let unproved = self.records.unproved_store_keys().await?;
        let sentence = in_a_sentence(set.as_ref(), &unproved, self.records.odd_keys());
        Ok((set, sentence))
    }

    /// Whether this appliance can be recovered without its token; `None` while that cannot be read.
    pub(super) async fn recoverable(&self) -> Option<String> {
        self.records.home()?;
        // What tells how the appliance does never waits for custody.
        let read = tokio::time::timeout(GLANCE, self.in_a_sentence());
        Some(read.await.ok()?.ok()?.1)
    }

    /// Holds the recovery key's record and the store keys' recovery wraps against what was kept, at a
    /// start: who edits them would take the recovery away, and nobody would know before the token is lost.
    pub(super) async fn check_recovery(&self) -> Result<(), Error> {
        let set = match self.records.recovery().await {
            Err(RecordError::Broken(_)) => {
                tracing::error!("{BROKEN}");
                self.tell(EventNote::because(Event::StoreEdited, Code("recovery"))).await;
                return Ok(());
            }
            found => found?,
        };
        // Until a pass has ended they may differ.
        let is_settled = match &set {
            Some(set) => set.complete_at.is_some(),
            None => self.pass().await?.is_none_or(|last| last.is_over()),
        };
        let unproved = self.records.unproved_store_keys().await?;
        if !is_settled || unproved.is_empty() || self.records.recovery().await? != set {
            return Ok(());
        }
        let code = if set.is_some() { "recovery-wrap" } else { "recovery" };
        tracing::error!(
            store_keys = ?unproved,
            "the recovery wraps of store keys, or the record of the recovery key, were changed outside \
             Strongroom or taken away: what these sealed cannot be recovered without the token; \
             `strongroom recovery set` wraps them anew"
        );
        self.tell(EventNote::because(Event::StoreEdited, Code(code))).await;
        Ok(())
    }
}

impl RecoveryCounts {
    fn of(census: Census) -> Self {
        Self {
            key_versions: census.under.values().map(|under| under.key_versions).sum(),
            key_versions_recoverable: census.recoverable_versions,
            store_keys: census.under.values().map(|under| under.store_keys).sum(),
            store_keys_recoverable: census.recoverable_store_keys,
            broken: census.broken,
        }
    }
}

fn in_a_sentence(set: Option<&RecoveryRecord>, unproved: &[u32], odd: usize) -> String {
    match set {
        None => "nothing can be recovered: no recovery key is set".to_owned(),
        Some(RecoveryRecord { complete_at: None, fingerprint, .. }) => format!(
            "not everything can be recovered: not every key is wrapped to the recovery key {} yet",
            short(fingerprint)
        ),
        Some(RecoveryRecord { fingerprint, .. }) if !unproved.is_empty() => format!(
            "not everything can be recovered: {} store keys have not the wrap to the recovery key {} that was \
             kept; `strongroom recovery set` wraps them anew",
            unproved.len(),
            short(fingerprint)
        ),
        Some(RecoveryRecord { fingerprint, .. }) if odd > 0 => format!(
            "not everything can be recovered: {odd} keys are not as the last pass over all keys left them, and \
             may have no wrap to the recovery key {}",
            short(fingerprint)
        ),
        Some(RecoveryRecord { fingerprint, .. }) => {
            format!("every key can be recovered with the recovery key {}", short(fingerprint))
        }
    }
}

fn short(fingerprint: &Fingerprint) -> String {
    hex(fingerprint).chars().take(16).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Traced for RecoveryView {
    fn details(&self) -> Details {
        let (revision, pass) = self.begun.unzip();
        Details { revision, pass, ..Details::default() }
    }
}
