//! What goes on beside the verbs: keys that were kept too long are wiped, the token is tried now and then,
//! and a module that hangs is noticed.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::custodian::Custodian;
use super::hang::HangWatch;
use super::process::{PAST_USE, StartError, leave};
use super::protocol::{Fault, Outage, Reason};

/// Where work with the token is noted, and how long it may take.
pub type Watched = (Arc<HangWatch>, Duration);

/// Tells the supervisor that all is well.
pub type Beat = Arc<dyn Fn() + Send + Sync>;

const PERIOD: Duration = Duration::from_secs(1);

/// Tries the token now and then. A module that hangs holds up this thread and no other, and with it the
/// beat.
pub fn spawn_canary(
    every: Duration,
    custodian: &Arc<Custodian>,
    (hang, limit): &Watched,
    beat: Beat,
) -> Result<(), StartError> {
    let custodian = Arc::clone(custodian);
    let (hang, limit) = (Arc::clone(hang), *limit);
    let try_now_and_then = move || {
        let mut tried = Instant::now();
        loop {
            thread::sleep(PERIOD);
            if custodian.brown_out().is_some() {
                continue;
            }
            if tried.elapsed() >= every {
                tried = Instant::now();
                if let Err(fault) = hang.during(limit, || custodian.try_canary()) {
                    custodian.lose_token(&fault);
                }
            }
            if custodian.is_past_use() {
                leave(&custodian, PAST_USE);
            }
            beat();
        }
    };
    let builder = thread::Builder::new().name("canary".to_owned());
    builder.spawn(try_now_and_then).map(drop).map_err(StartError::Thread)
}

/// Wipes what was kept too long, notices work with the token that does not come to an end and a probe that
/// has ended, and ends a brown-out and a process that is past use. It never touches the module itself.
pub fn spawn_housekeeping(
    hang: Arc<HangWatch>,
    custodian: &Arc<Custodian>,
    beat: Beat,
) -> Result<(), StartError> {
    let custodian = Arc::clone(custodian);
    let keep_house = move || {
        loop {
            thread::sleep(PERIOD);
            custodian.expire(Instant::now());
            custodian.tend_probe();
            if custodian.brown_out().is_some() {
                // Nobody tries the token meanwhile.
                beat();
                custodian.tend_brown_out();
            } else if hang.is_overdue(Instant::now()) {
                let why = "a call into the token's module does not come back";
                let outage = Outage::new(Reason::ModuleHung, why);
                custodian.lose_token(&Fault::TokenUnavailable(outage));
            }
            if custodian.is_past_use() {
                leave(&custodian, PAST_USE);
            }
        }
    };
    let builder = thread::Builder::new().name("housekeeping".to_owned());
    builder.spawn(keep_house).map(drop).map_err(StartError::Thread)
}
