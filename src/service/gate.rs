//! The one way in: judge, have the line written, act, write the outcome.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use tracing::field::DisplayValue;
use uuid::Uuid;

use super::clock::Clock;
use super::cursor::Cursors;
use super::error::Error;
use super::next_start::{NextStart, NextStartCheck};
use super::quiet::Quiet;
use super::refusals::{About, Refusals};
use super::retirement::Retiring;
use super::rotation::Rotating;
use super::scheduling::{Bounds, Scheduler};
use super::state::{SecretSettings, Settings, Standing};
use crate::audit::{AuditError, Budgets, Code, Details, EventNote, Intent, Outcome, Trail, Words};
use crate::custody::protocol::Check;
use crate::custody::{Client, LinkState};
use crate::identity::Caller;
use crate::key::{Labels, Owner};
use crate::policy::{Action, Permit, Policy, Resource};
use crate::records::{RecordError, Records};
use crate::store::{Look, Store};

/// When the intent's line has to be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    /// Before the act begins: it changes something.
    Before,
    /// Before the result leaves; the act, which changes nothing, may run meanwhile.
    Beside,
    /// Before the result leaves, if it can be written then. If not, the act is done all the same and its lines
    /// are owed: nothing keeps the appliance from being locked.
    Owed,
    /// Not at all when permitted, so that it works without a disk: only what tells how the appliance
    /// does. A refusal has its line all the same.
    Never,
}

/// Something that can be asked for.
pub trait Request: Send + Sized + 'static {
    const ACTION: Action;
    const TRACE: Trace;
    /// Whether its result tells what is stored. It leaves only once that is durable, so that no crash
    /// takes back what somebody has seen.
    const TELLS_OF_STORE: bool = true;
    type Reply: Traced + Send + 'static;

    /// What it is done to.
    fn resource(&self) -> Resource;

    /// What the trail is told before the act.
    fn details(&self) -> Details {
        Details::default()
    }

    /// The owner and labels that a key is to get, for policies that look at them. Without an owner it
    /// becomes the caller's.
    fn to_be(&self) -> Option<(Option<&Owner>, &Labels)> {
        None
    }

    /// The act. Only the gate has a permit to call it with.
    fn run(
        self,
        permit: Permit,
        appliance: &Appliance,
    ) -> impl Future<Output = Result<Self::Reply, Error>> + Send;
}

/// What the trail is told after the act.
pub trait Traced {
    fn details(&self) -> Details {
        Details::default()
    }
}

/// Who asks, and under which number that will be found again.
#[derive(Debug, Clone)]
pub struct Call {
    pub caller: Caller,
    pub request_id: Uuid,
}

/// How long an answer waits for lines that are owed.
const LONGEST_OWED: Duration = Duration::from_millis(500);

/// Everything that acts are done with.
pub struct Appliance {
    pub(super) policy: RwLock<Arc<Policy>>,
    pub(super) trail: Arc<Trail>,
    pub(super) store: Arc<dyn Store>,
    pub(super) records: Arc<Records>,
    pub(super) custody: Client,
    pub(super) settings: RwLock<Settings>,
    pub(super) secret_settings: RwLock<SecretSettings>,
    pub(super) standing: Standing,
    pub(super) refusals: Refusals,
    /// What each user has stored.
    stored: Budgets,
    pub(super) quiet: Quiet,
    pub(super) clock: Clock,
    pub(super) house: HouseChecks,
    pub(super) config_file: String,
    pub(super) next_start: NextStart,
    /// Held while the appliance is initialised or its masters change: two must not make one.
    pub(super) founding: tokio::sync::Mutex<()>,
    /// Held while the appliance is locked, and while the record of it is taken away; never for long.
    pub(super) locking: tokio::sync::Mutex<()>,
    pub(super) rotating: Rotating,
    pub(super) cursors: Cursors,
    pub(super) retiring: Retiring,
    /// The order of private operations in custody, and of keys that it makes.
    pub(super) operations: Arc<Scheduler>,
    pub(super) generations: Arc<Scheduler>,
}

/// What an appliance is put together from.
pub struct Parts {
    pub policy: Policy,
    pub trail: Trail,
    /// The store that the records lie in, to be asked how it is.
    pub store: Arc<dyn Store>,
    pub records: Arc<Records>,
    pub custody: Client,
    pub settings: Settings,
    pub secret_settings: SecretSettings,
    /// Refused requests of one user that get their own line in the trail, a minute.
    pub refusals_per_minute: u32,
    /// Records that one user may store a day.
    pub records_per_day: u64,
    pub clock: Clock,
    pub house: HouseChecks,
    /// The file that settings stand in, to be named to operators.
    pub config_file: String,
    pub next_start: NextStartCheck,
}

/// Makes those checks of `doctor` that only the floor above can make: directories, clock, limits.
pub type HouseChecks = Box<dyn Fn() -> Vec<Check> + Send + Sync>;

tokio::task_local! {
    /// The request that is performed, for log lines and the outcome of its act.
    static REQUEST: Scope;
}

/// What belongs to the request that is performed.
struct Scope {
    id: Uuid,
    /// Further permissions that it was granted on its way.
    also: Mutex<Vec<Action>>,
}

/// The number of the request whose act this is said in.
pub(super) fn request_id() -> Option<DisplayValue<Uuid>> {
    REQUEST.try_with(|scope| tracing::field::display(scope.id)).ok()
}

/// Has the outcome of the request that is performed say that it needed and had this permission, too.
pub(super) fn needed_also(action: Action) {
    // Outside a request, as in a sweep, nothing further is asked for.
    let _ = REQUEST.try_with(|scope| {
        let mut also = scope.also.lock().unwrap_or_else(PoisonError::into_inner);
        if !also.contains(&action) {
            also.push(action);
        }
    });
}

impl Appliance {
    pub fn new(parts: Parts) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            policy: RwLock::new(Arc::new(parts.policy)),
            trail: Arc::new(parts.trail),
            store: parts.store,
            records: parts.records,
            custody: parts.custody,
            settings: RwLock::new(parts.settings),
            secret_settings: RwLock::new(parts.secret_settings),
            standing: Standing::new(),
            refusals: Refusals::new(parts.refusals_per_minute),
            stored: Budgets::new(parts.records_per_day),
            quiet: Quiet::default(),
            clock: parts.clock,
            house: parts.house,
            config_file: parts.config_file,
            next_start: NextStart::new(parts.next_start),
            founding: tokio::sync::Mutex::default(),
            locking: tokio::sync::Mutex::default(),
            rotating: Rotating::default(),
            cursors: Cursors::new(),
            retiring: Retiring::default(),
            operations: Scheduler::new(Bounds::for_processors(processors)),
            generations: Scheduler::new(Bounds::ONE_BY_ONE),
        }
    }

    /// Judges, records, acts, records: the way of every request.
    ///
    /// # Errors
    /// [`Error::Denied`] where policy does not permit it, [`Error::Audit`] where its line cannot be
    /// written, [`Error::OutcomeOwed`] where it was done and its outcome's line cannot be, else what the
    /// act came to.
    pub async fn perform<R: Request>(&self, call: Call, request: R) -> Result<R::Reply, Error> {
        let scope = Scope { id: call.request_id, also: Mutex::default() };
        let result = REQUEST.scope(scope, self.judge_and_run(&call, request)).await;
        if let Err(Error::Denied(denied)) = &result
            && let Some(left_out) = self.quiet.denied.now()
        {
            tracing::info!(request_id = %call.request_id, caller = call.caller.name(), left_out,
                why = %denied.refusal(), "{denied}");
        }
        self.standing.count(R::ACTION, result.as_ref().map_or_else(Error::code, |_| "done"));
        result
    }

    async fn judge_and_run<R: Request>(&self, call: &Call, request: R) -> Result<R::Reply, Error> {
        let resource = request.resource();
        let intent = Intent::new(call.request_id, &call.caller, R::ACTION, &resource)
            .with(request.details());
        let judged = self.permit_all::<R>(&call.caller, &resource, request.to_be()).await;
        let opened = match judged {
            Ok(permit) => self.open_for(permit).await,
            Err(error) => Err(error),
        };
        let permit = match opened.and_then(|permit| self.within_budget::<R>(permit)) {
            Ok(permit) => permit,
            Err(error) => {
                // Nothing is added to an audit log that may have been put back.
                if let Some(held) = self.held_back() {
                    return Err(held);
                }
                let about = (R::ACTION, std::mem::discriminant(&resource));
                return Err(self.refuse(call, intent, about, error).await);
            }
        };
        match R::TRACE {
            Trace::Never => request.run(permit, self).await,
            Trace::Owed => {
                let entry = self.trail.begin_owed(intent);
                let result = request.run(permit, self).await;
                let outcome = outcome(&result);
                let details =
                    Details { changes: Some(self.records.changes()), ..outcome.details.clone() };
                entry.close_within(outcome.with(details), LONGEST_OWED).await;
                result
            }
            // What it has read is durable with what it commits after.
            Trace::Before => {
                let entry = self.trail.begin(intent).durable().await?;
                let result = request.run(permit, self).await;
                if R::ACTION.stores() && result.is_ok() {
                    self.stored.spend(&call.caller.name(), 1);
                }
                let changes = Some(self.records.changes());
                let outcome = outcome(&result);
                let details = Details { changes, ..outcome.details.clone() };
                let written = self.trail.close(entry, outcome.with(details)).durable().await;
                told(result, written)
            }
            Trace::Beside => {
                let pending = self.trail.begin(intent);
                let look = R::TELLS_OF_STORE.then(|| self.store.look());
                let result = seen(request.run(permit, self).await, look).await;
                let entry = pending.durable().await?;
                drop(self.trail.close(entry, outcome(&result)));
                result
            }
        }
    }

    /// Records a refusal, one by one or in their number, and says what the caller is told.
    async fn refuse(&self, call: &Call, intent: Intent, about: About, error: Error) -> Error {
        match (self.refusals.take(&call.caller, about, error.code()), error) {
            (Ok(()), error) => match self.trail.refuse(intent, Code(error.code())).await {
                Ok(()) => error,
                Err(unwritten) => {
                    self.refusals.leave_out(&call.caller);
                    unwritten.into()
                }
            },
            (Err(seconds), Error::Denied(_)) => Error::TooManyRefusals { seconds },
            (Err(_), error) => error,
        }
    }

    /// What leaves lines in the trail has to be within its principal's budget of them; what closes something
    /// goes ahead of that.
    fn within_budget<R: Request>(&self, permit: Permit) -> Result<Permit, Error> {
        if R::TRACE == Trace::Never || R::ACTION.restricts() {
            return Ok(permit);
        }
        let caller = permit.caller();
        self.trail.check_budget(caller).map_err(|seconds| Error::AuditBudget { seconds })?;
        if R::ACTION.stores() && matches!(caller, Caller::Unix(_)) {
            let left = self.stored.check(&caller.name());
            left.map_err(|seconds| Error::RecordBudget { seconds })?;
        }
        Ok(permit)
    }

    /// While it is locked, or its store is an older one, an appliance tells how it does and lets itself be
    /// unlocked, and no more.
    async fn open_for(&self, permit: Permit) -> Result<Permit, Error> {
        let tells =
            matches!(permit.action(), Action::StatusRead | Action::MetricsRead | Action::Doctor);
        // A lock acts first, whatever is known of the history; its entries wait until they may be written.
        if !tells && permit.action() != Action::Lock {
            self.history_must_fit().await?;
        }
        let works_locked = matches!(
            permit.action(),
            Action::StatusRead
                | Action::MetricsRead
                | Action::Doctor
                | Action::ConfirmClock
                | Action::AuditRead
                | Action::PolicyExplain
                | Action::Lock
                | Action::Unlock
        );
        match self.custody.state() {
            LinkState::Locked if !works_locked => Err(Error::Locked),
            _ if !works_locked && self.standing.home_behind.get().is_some() => Err(Error::Edited),
            _ => Ok(permit),
        }
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another policy in force; what is under way was judged by the old one.
    pub fn replace_policy(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// Takes over settings that were loaded anew.
    pub fn replace_settings(&self, settings: Settings, secrets: SecretSettings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
        *self.secret_settings.write().unwrap_or_else(PoisonError::into_inner) = secrets;
    }

    pub(super) fn settings(&self) -> Settings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn secret_settings(&self) -> SecretSettings {
        *self.secret_settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the trail of something that has happened. Where it cannot be written now, the line is owed
    /// and written later: what has happened does not fail for it.
    pub(super) async fn tell(&self, note: EventNote) {
        // What waits for custody at a start is written as soon as it has answered.
        if let Err(error) = self.trail.event(note).await
            && error != AuditError::Held
        {
            tracing::warn!(%error, "the trail could not be told of an event yet");
        }
    }

    /// Log lines that anybody can provoke go through here.
    pub fn quiet(&self) -> &Quiet {
        &self.quiet
    }

    /// The trail, for what the daemon itself has to tell it.
    pub fn trail(&self) -> &Trail {
        &self.trail
    }

    /// The time that states and records are dated with.
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

pub(super) fn outcome<T: Traced>(result: &Result<T, Error>) -> Outcome {
    let also = REQUEST.try_with(|scope| {
        Words::of_actions(scope.also.lock().unwrap_or_else(PoisonError::into_inner).iter().copied())
    });
    let outcome = match result {
        Ok(reply) => Outcome::done().with(reply.details()),
        Err(error) if error.is_refusal() => Outcome::refused(Code(error.code())),
        Err(error) if error.is_open() => Outcome::interrupted(Code(error.code())),
        Err(error) => Outcome::failed(Code(error.code())),
    };
    let lacks = match result {
        Err(Error::Denied(denied)) => Some(denied.action()),
        _ => None,
    };
    let details = Details { also: also.unwrap_or_default(), lacks, ..outcome.details.clone() };
    outcome.with(details)
}

/// A result, once all that it may tell of the store is durable.
async fn seen<T>(result: Result<T, Error>, look: Option<Look>) -> Result<T, Error> {
    if let Some(look) = look {
        look.durable().await.map_err(RecordError::from)?;
    }
    result
}

/// What a caller is told of an act whose intent had its line: an act that was done stays done, whether
/// its outcome has a line or not.
pub(super) fn told<T>(
    result: Result<T, Error>,
    written: Result<(), AuditError>,
) -> Result<T, Error> {
    match (result, written) {
        (Ok(_), Err(error)) => Err(Error::OutcomeOwed(error)),
        (result, _) => result,
    }
}

impl Traced for () {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_is_never_said_to_be_undone() {
        assert!(matches!(told(Ok(7), Ok(())), Ok(7)));
        let owed = told(Ok(7), Err(AuditError::Full));
        assert!(matches!(owed, Err(Error::OutcomeOwed(AuditError::Full))));
        let failed = told::<()>(Err(Error::Conflict), Err(AuditError::Full));
        assert!(matches!(failed, Err(Error::Conflict)), "the act's own error says more");
        let text = Error::OutcomeOwed(AuditError::Full).public_text();
        assert!(text.starts_with("it is done"), "{text}");
    }
}
