//! How the appliance does: its state in a word, and the rest that an operator asks after.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::cause::Cause;
use super::clock::ClockView;
use super::error::Error;
use super::gate::{Appliance, Request, Trace, Traced};
use super::next_start::StartRefusal;
use super::socket::{SocketState, SocketView};
use crate::custody::LinkState;
use crate::policy::{Action, Permit, Resource};
use crate::records::{HomeRecord, MasterRecord, RecordError};
use crate::sandbox;
use crate::store::{Room, StoreError};

/// How the appliance does.
pub struct Status;

/// What is said of a lock that the store does not know of yet.
const LOCK_OWED: &str = "an operator locked it, and the store could not be told: it is closed now, and may not \
                         stay so over a restart. The store is told as soon as it is back: put it back, and leave \
                         the daemon running until this is gone";

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct StatusView {
    pub version: &'static str,
    /// `ready`, `not-initialised`, `locked`, `pin-refused`, `pin-unavailable`, `token-unavailable`,
    /// `master-unfit`, `custody-state-unavailable`, `store-edited` (older than the trail knows it), `store-rolled-back` (store and
    /// trail do not end as custody remembers), `store-unavailable`,
    /// `trail-unavailable`, `brown-out` (the token is away, and keys that may serve without it do) or `changes-refused` (the store has too little room; keys and secrets open as ever).
    pub state: &'static str,
    /// What an operator should know of that state; empty when ready.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// What to do about it; absent when ready.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    pub next: String,
    /// What keeps the next start, or custody's: it goes on as it is until then. Absent where nothing does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub next_start_refused: Vec<StartRefusal>,
    /// Since when service by the token has stopped, and why; absent while it serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_away: Option<AwayView>,
    pub uptime_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub appliance: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// Master keys that wait for their destruction; absent where none does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub masters_to_be_destroyed: Vec<RetiringView>,
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
    pub store: StoreView,
    pub trail: TrailView,
    pub clock: ClockView,
    /// What happened to the listening socket since the start; absent where nothing did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<SocketView>,
}

/// A master key that waits for its destruction, and with it all backups from before it went out of use.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RetiringView {
    pub generation: u32,
    #[schema(value_type = String, format = DateTime)]
    pub destroy_at: Timestamp,
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
    /// The word of the trail's event, like `token-absent`; the newest, where more than one was told.
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
    /// Free on the file system of the trail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct StoreView {
    /// Whether changes are taken now; the `detail` says why not.
    pub writable: bool,
    /// Free on the file system of the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Changes are refused while less than this is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve_bytes: Option<u64>,
}

fn retiring(home: &HomeRecord) -> Vec<RetiringView> {
    let waiting = |known: MasterRecord| {
        let destroy_at = known.waits()?.destroy_at;
        Some(RetiringView { generation: known.generation, destroy_at })
    };
    home.masters().into_iter().filter_map(waiting).collect()
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

    /// Whether callers find the listening socket.
    pub fn socket(&self) -> &SocketState {
        &self.standing.socket
    }

    /// The state in a word, and what an operator should know of it.
    pub fn state(&self) -> (&'static str, String) {
        self.state_at(&self.custody.state())
    }

    fn state_at(&self, link: &LinkState) -> (&'static str, String) {
        let word = |cause: Option<Cause>| cause.map_or("ready", |cause| cause.row().state);
        match (link, self.trouble(link)) {
            (LinkState::BrownOut { outage, .. }, (None | Some(Cause::Room), _)) => {
                ("brown-out", outage.why.clone())
            }
            (_, (cause, detail)) => (word(cause), detail),
        }
    }

    /// What keeps it from all of its work, worst first, and why. In a brown-out the token does not count.
    pub(super) fn trouble(&self, link: &LinkState) -> (Option<Cause>, String) {
        match (self.history_trouble(), link.outage()) {
            (Some(Err(why)), _) => return (Some(Cause::RolledBack), why),
            (Some(Ok(not_asked)), None) => {
                let asks_token = matches!(link, LinkState::Locked) && !self.trail.is_held();
                if !asks_token {
                    return (Some(Cause::Token(not_asked.reason)), not_asked.why);
                }
            }
            _ => {}
        }
        if matches!(link, LinkState::Locked) {
            let locked = "an operator locked it";
            let detail = match (self.standing.owed_lock(), self.standing.failed_unlock()) {
                (Some(_), _) => LOCK_OWED.to_owned(),
                (_, Some((_, why))) => format!("{locked}, and the newest unlock failed: {why}"),
                _ => locked.to_owned(),
            };
            return (Some(Cause::Locked), detail);
        }
        if let Some(outage) = link.outage().filter(|_| !matches!(link, LinkState::BrownOut { .. }))
        {
            return (Some(Cause::Token(outage.reason)), outage.why);
        }
        if let Some(why) = self.standing.home_behind.get() {
            return (Some(Cause::Edited), why.clone());
        }
        if let Err(error) = self.store.health() {
            return (Some(Cause::Store), error.to_string());
        }
        if self.records.home().is_none() {
            let why = "there is no master key yet";
            return (Some(Cause::NotInitialised), why.to_owned());
        }
        if let Some(error) = self.trail.status().failure {
            return (Some(Cause::Trail), error.to_string());
        }
        match self.store.room().filter(Room::is_scarce) {
            Some(room) => (Some(Cause::Room), room.to_string()),
            None => (None, String::new()),
        }
    }

    /// Whether keys and secrets open, if not all of them and nothing changes. A store that was misplaced is
    /// still open here, and all that is in it can be read.
    pub fn opens(&self) -> bool {
        match self.state().0 {
            "ready" | "brown-out" | "changes-refused" => true,
            "store-unavailable" => {
                matches!(self.store.health(), Err(StoreError::Misplaced { .. }))
                    && self.records.home().is_some()
                    && self.trail.status().failure.is_none()
            }
            _ => false,
        }
    }

    /// Whether the store takes changes: the rest of the appliance may work without.
    pub fn takes_changes(&self) -> bool {
        self.must_take_changes().is_ok()
    }

    /// Refuses where the store would refuse, as far as that can be known before.
    pub(super) fn must_take_changes(&self) -> Result<(), RecordError> {
        self.store.health()?;
        match self.store.room().filter(Room::is_scarce) {
            Some(room) => Err(RecordError::Store(StoreError::Scarce(room))),
            None => Ok(()),
        }
    }

    /// In the trail's word: what turned out after that is in the state's detail.
    fn token_away_at(&self, link: &LinkState) -> Option<AwayView> {
        let (since, known) = self.custody.token_away()?;
        let reason = link.outage().map(|outage| outage.reason);
        let reason = reason.filter(|reason| reason.needs_operator()).unwrap_or(known).as_str();
        Some(AwayView { since, reason })
    }

    /// Why service by the token has stopped, if it has.
    pub(super) fn reason_away(&self) -> Option<&'static str> {
        self.token_away_at(&self.custody.state()).map(|away| away.reason)
    }

    fn store_view(&self) -> StoreView {
        let room = self.store.room();
        StoreView {
            writable: self.takes_changes(),
            free_bytes: room.map(|room| room.free_bytes),
            reserve_bytes: room.map(|room| room.reserve_bytes),
        }
    }

    pub(super) async fn status(&self) -> StatusView {
        let link = self.custody.state();
        let (state, mut detail) = self.state_at(&link);
        let next_start_refused = self.check_next_start(false).await;
        for refusal in &next_start_refused {
            let why = format!("the next start would be refused: {}", refusal.what);
            detail = if detail.is_empty() { why } else { format!("{detail}; {why}") };
        }
        let away = || link.outage().map(|outage| Cause::Token(outage.reason));
        let cause = match self.trouble(&link).0 {
            // What keeps it from being unlocked is to be mended first.
            Some(Cause::Locked) => {
                self.standing.failed_unlock().map(|(cause, _)| cause).or(Some(Cause::Locked))
            }
            cause => cause.or_else(away),
        };
        let next = match (cause, next_start_refused.first()) {
            (Some(cause), _) => cause.row().next.to_owned(),
            (None, Some(refusal)) => refusal.next.clone(),
            (None, None) => String::new(),
        };
        let token_away = self.token_away_at(&link);
        let custody = match link {
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
            next,
            next_start_refused,
            token_away,
            uptime_seconds: self.standing.uptime_seconds(),
            appliance: home.as_ref().map(|home| home.appliance.clone()),
            generation: home.as_ref().map(|home| home.generation),
            masters_to_be_destroyed: home.as_ref().map(|home| retiring(home)).unwrap_or_default(),
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
            store: self.store_view(),
            trail: TrailView {
                head: self.trail.head().to_string(),
                writable: self.trail.status().failure.is_none(),
                free_bytes: self.trail.free_bytes(),
            },
            clock: self.clock_view(),
            socket: self.socket().view(),
        }
    }
}

impl Traced for StatusView {}
