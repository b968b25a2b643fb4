//! The appliance itself: init, status, doctor, lock, unlock.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::binary::SecretBinary;
use super::clock::ClockView;
use super::error::Error;
use super::gate::{Appliance, Request, Trace, Traced, request_id};
use super::lifecycle::Reason;
use crate::audit::{Code, Details, Event, EventNote};
use crate::custody::protocol::{Check, Fault, Verdict};
use crate::custody::{CustodyError, LinkState};
use crate::policy::{Action, Permit, Resource};
use crate::records::{HomeRecord, LockRecord};
use crate::sandbox;
use crate::secret::{ArenaError, Pin};

/// Generate master key and trail signing key in the token, and the store key.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Init {
    /// Finish an initialisation that was cut off: keeps what is in the token already.
    pub resume: bool,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InitView {
    /// The appliance's identifier, 32 hex digits.
    pub appliance: String,
    /// Master generation in use.
    pub generation: u32,
    /// What was generated now.
    pub created: Vec<String>,
}

/// How the appliance does.
pub struct Status;

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct StatusView {
    pub version: &'static str,
    /// `ready`, `not-initialised`, `locked`, `pin-refused`, `token-unavailable`, `master-unfit`,
    /// `store-unavailable`, `trail-unavailable` or `brown-out`: the token is away, and keys that may serve
    /// without it do.
    pub state: &'static str,
    /// What an operator should know of that state; empty when ready.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Since when service by the token has stopped, and why; absent while it serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_away: Option<AwayView>,
    pub uptime_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub appliance: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked_memory: Option<String>,
    pub sandbox: SandboxView,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arena_used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loaded_keys: Option<u64>,
    /// Whether all that is kept here can be opened without the token, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_the_token: Option<String>,
    pub policy: PolicyView,
    pub trail: TrailView,
    pub clock: ClockView,
}

/// What each process has shut itself in with.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SandboxView {
    pub front: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custody: Option<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AwayView {
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// The same word as in the trail's event, like `token-absent`.
    pub reason: &'static str,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TokenView {
    pub label: String,
    pub serial: String,
    pub manufacturer: String,
    pub model: String,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PolicyView {
    pub policies: usize,
    /// SHA-256 over schema, roles and files.
    pub hash: String,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TrailView {
    /// The newest durable line: `seq:hash`.
    pub head: String,
    /// Whether lines can be written now.
    pub writable: bool,
}

/// Check everything that the work depends on, from inside.
pub struct Doctor;

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DoctorView {
    pub checks: Vec<CheckView>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CheckView {
    pub name: String,
    /// `ok`, `warn` or `fail`.
    pub result: &'static str,
    pub detail: String,
    /// What mends it; empty where nothing is wrong.
    pub setting: String,
    /// The file that the setting stands in, where it is one of the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// Wipe all keys from memory, forget the PIN, and refuse work until `unlock`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    pub reason: Option<Reason>,
}

/// Work again, with a PIN or with the configured one.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Unlock {
    /// The token's user PIN; base64, like every binary field.
    pub pin: Option<SecretBinary>,
}

impl Request for Init {
    const ACTION: Action = Action::Initialise;
    const TRACE: Trace = Trace::Before;
    type Reply = InitView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, _permit: Permit, appliance: &Appliance) -> Result<InitView, Error> {
        let _one_at_a_time = appliance.founding.lock().await;
        if let Some(home) = appliance.records.home() {
            return Err(Error::AlreadyInitialised(format!("it is appliance {}", home.appliance)));
        }
        let id = fresh_id()?;
        let made = match appliance.custody.init(&id, self.resume).await {
            Err(CustodyError::Fault(Fault::Exists(what))) => {
                return Err(Error::AlreadyInitialised(format!(
                    "{what}; nothing was changed. If an earlier init was cut off, finish it with \
                     --resume; if this token belongs to another appliance, use another one"
                )));
            }
            other => other?,
        };
        // Before the record is kept: a custody that ends meanwhile comes back with the new home, and
        // nothing opens by it until the record is there.
        appliance.custody.keep_home(&made.home);
        let generation = made.home.generation;
        let home = HomeRecord {
            appliance: id.clone(),
            generation,
            store_keys: vec![made.home.store_key],
            signer_point: made.home.signer_point,
            signer_generation: generation,
            created_at: appliance.now(),
            generations: Vec::new(),
        };
        appliance.records.found(home).await?;
        appliance.tell(EventNote::new(Event::Initialised)).await;
        // From the first line on the trail is signed; should it fail now, it is tried again anyway.
        if let Err(error) = appliance.trail.checkpoint().await {
            tracing::warn!(request_id = request_id(), %error, "no checkpoint at init");
        }
        Ok(InitView { appliance: id, generation, created: made.created })
    }
}

/// 16 random bytes as 32 hex digits.
fn fresh_id() -> Result<String, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| Error::Arena(ArenaError::Random))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Request for Status {
    const ACTION: Action = Action::StatusRead;
    const TRACE: Trace = Trace::Never;
    type Reply = StatusView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, _permit: Permit, appliance: &Appliance) -> Result<StatusView, Error> {
        Ok(appliance.status().await)
    }
}

impl Appliance {
    /// Resolves once requests do no more than wait for custody or its token to come.
    pub async fn custody_is_away(&self) {
        let mut states = self.custody.watch();
        let is_away = |state: &LinkState| matches!(state, LinkState::Down(_));
        let _ = states.wait_for(is_away).await;
    }

    /// The state in a word, and what an operator should know of it.
    pub fn state(&self) -> (&'static str, String) {
        match self.custody.state() {
            LinkState::Down(outage) => ("token-unavailable", outage.why),
            LinkState::Locked => {
                ("locked", "an operator locked it: `strongroom unlock`".to_owned())
            }
            LinkState::PinRefused(why) => ("pin-refused", why),
            LinkState::Unfit(why) => ("master-unfit", why),
            LinkState::Unlocked { .. } => self.state_of_disks(),
            LinkState::BrownOut { outage, .. } => match self.state_of_disks() {
                ("ready", _) => ("brown-out", outage.why),
                worse => worse,
            },
        }
    }

    fn state_of_disks(&self) -> (&'static str, String) {
        if let Err(error) = self.store.health() {
            return ("store-unavailable", error.to_string());
        }
        if self.records.home().is_none() {
            let next = "generate the master key: `strongroom init`";
            return ("not-initialised", next.to_owned());
        }
        match self.trail.status().failure {
            Some(error) => ("trail-unavailable", error.to_string()),
            None => ("ready", String::new()),
        }
    }

    pub(super) async fn status(&self) -> StatusView {
        let (state, detail) = self.state();
        let custody = match self.custody.state() {
            LinkState::Unlocked { .. } | LinkState::BrownOut { .. } => self.custody.glance().await,
            _ => None,
        };
        let (home, policy) = (self.records.home(), self.policy());
        let without_the_token = match custody {
            Some(_) => self.recoverable().await,
            None => None,
        };
        StatusView {
            version: env!("CARGO_PKG_VERSION"),
            state,
            detail,
            token_away: self.custody.token_away().map(|(since, reason)| AwayView { since, reason }),
            uptime_seconds: self.standing.uptime_seconds(),
            appliance: home.as_ref().map(|home| home.appliance.clone()),
            generation: home.as_ref().map(|home| home.generation),
            locked_memory: custody.as_ref().map(|custody| custody.arena.clone()),
            sandbox: SandboxView {
                front: sandbox::entered().map(ToString::to_string).unwrap_or_default(),
                custody: custody.as_ref().map(|custody| custody.sandbox.clone()),
            },
            arena_used_bytes: custody.as_ref().map(|custody| custody.arena_used_bytes),
            loaded_keys: custody.as_ref().map(|custody| custody.loaded_keys),
            without_the_token,
            token: custody.and_then(|custody| custody.token).map(|token| TokenView {
                label: token.label,
                serial: token.serial,
                manufacturer: token.manufacturer,
                model: token.model,
            }),
            policy: PolicyView { policies: policy.count(), hash: policy.hash().to_owned() },
            trail: TrailView {
                head: self.trail.head().to_string(),
                writable: self.trail.status().failure.is_none(),
            },
            clock: self.clock_view(),
        }
    }
}

impl Request for Doctor {
    const ACTION: Action = Action::Doctor;
    const TRACE: Trace = Trace::Never;
    type Reply = DoctorView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, _permit: Permit, appliance: &Appliance) -> Result<DoctorView, Error> {
        let mut checks = match appliance.custody.checks().await {
            Ok(checks) => checks,
            Err(error) => vec![Check {
                name: "custody".to_owned(),
                verdict: Verdict::Fail,
                found: error.to_string(),
                remedy: "[custody] socket; `systemctl status strongroom-custody`".to_owned(),
            }],
        };
        let (state, detail) = appliance.state();
        if !matches!(state, "ready" | "locked") {
            // Custody only knows that it is not open; the front knows why.
            checks.retain(|check| check.name != "token" || check.verdict == Verdict::Ok);
        }
        checks.extend(check_of_state(state, detail));
        checks.push(check_of_clock(&appliance.clock_view()));
        checks.extend((appliance.house)());
        Ok(DoctorView {
            checks: checks.into_iter().map(|check| appliance.view_of(check)).collect(),
        })
    }
}

/// What is wrong with the state, in the words of its cause; nothing when it is ready.
fn check_of_state(state: &str, detail: String) -> Option<Check> {
    let (verdict, remedy) = match state {
        "ready" => return None,
        "not-initialised" => (Verdict::Warn, "`strongroom init`"),
        "locked" => (Verdict::Fail, "`strongroom unlock`"),
        "pin-refused" => {
            (Verdict::Fail, "[token] pin_file or pin_credential, then `strongroom unlock`")
        }
        "brown-out" => (Verdict::Warn, "the token; what may serve without it does"),
        "token-unavailable" | "master-unfit" => {
            (Verdict::Fail, "[token] module, label or serial, and the module's own environment")
        }
        _ => (Verdict::Fail, "the disk; see the journal"),
    };
    let found = if detail.is_empty() { state.to_owned() } else { format!("{state}: {detail}") };
    Some(Check { name: "state".to_owned(), verdict, found, remedy: remedy.to_owned() })
}

fn check_of_clock(clock: &ClockView) -> Check {
    let (verdict, found, remedy) = match (clock.state, clock.ahead_seconds) {
        ("agrees", _) => (Verdict::Ok, "as far on as the time that has passed".to_owned(), ""),
        (_, ahead) => {
            let (by, way) = (ahead.unsigned_abs(), clock.state);
            let found = format!("the clock is {by} s {way} of the time that has passed");
            (Verdict::Warn, found, "the clock, or `strongroom confirm-clock`")
        }
    };
    Check { name: "time passed".to_owned(), verdict, found, remedy: remedy.to_owned() }
}

impl Appliance {
    fn view_of(&self, check: Check) -> CheckView {
        let result = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        };
        let file = check.remedy.starts_with('[').then(|| self.config_file.clone());
        CheckView { name: check.name, result, detail: check.found, setting: check.remedy, file }
    }
}

impl Request for Lock {
    const ACTION: Action = Action::Lock;
    const TRACE: Trace = Trace::Before;
    type Reply = StatusView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    fn details(&self) -> Details {
        Details { reason: self.reason.map(|reason| Code(reason.as_str())), ..Details::default() }
    }

    async fn run(self, permit: Permit, appliance: &Appliance) -> Result<StatusView, Error> {
        let by = permit.caller().name();
        let since = appliance.now();
        let _no_unlock_ends = appliance.locking.lock().await;
        appliance.records.set_locked(Some(LockRecord { since, by })).await?;
        // The last chance to have the trail signed. A token that is away must not keep it open.
        let signed = tokio::time::timeout(LAST_CHECKPOINT, appliance.trail.checkpoint()).await;
        if !matches!(signed, Ok(Ok(_))) {
            tracing::warn!(request_id = request_id(), "no checkpoint before the lock");
        }
        appliance.custody.lock().await?;
        appliance.tell(EventNote::new(Event::Locked)).await;
        Ok(appliance.status().await)
    }
}

/// How long a lock waits for the trail to be signed.
const LAST_CHECKPOINT: Duration = Duration::from_secs(1);

/// The longest PIN, in bytes.
const LONGEST_PIN: usize = 255;

impl Request for Unlock {
    const ACTION: Action = Action::Unlock;
    const TRACE: Trace = Trace::Before;
    type Reply = StatusView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, _permit: Permit, appliance: &Appliance) -> Result<StatusView, Error> {
        // An unlock may take long, and a lock waits for none: the one that comes later counts.
        let locks = {
            let _behind_a_lock = appliance.locking.lock().await;
            appliance.custody.locks()
        };
        let state = appliance.custody.state();
        if matches!(state, LinkState::Unlocked { .. } | LinkState::BrownOut { .. }) {
            return Err(Error::NotLocked);
        }
        let pin = match &self.pin {
            // No token has such a PIN, and each wrong one brings it nearer to its lock.
            Some(given) if !(1..=LONGEST_PIN).contains(&given.len()) => {
                let rule = format!("1 to {LONGEST_PIN} bytes");
                return Err(Error::Invalid { member: "pin", rule });
            }
            Some(given) => Some(Pin::copy_from(given.plaintext()?.expose())?),
            None => None,
        };
        let home = appliance.records.home().map(|home| home.for_custody());
        appliance.custody.unlock(locks, home, pin).await?;
        let _no_lock_begins = appliance.locking.lock().await;
        if appliance.custody.locks() != locks {
            return Err(Error::Locked);
        }
        appliance.records.set_locked(None).await?;
        appliance.tell(EventNote::new(Event::Unlocked)).await;
        Ok(appliance.status().await)
    }
}

impl Traced for InitView {}
impl Traced for StatusView {}
impl Traced for DoctorView {}
