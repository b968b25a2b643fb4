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

/// Wipes what was kept too long, tries the token now and then, and tells the supervisor all is well.
pub fn spawn_housekeeping(
    canary_every: Duration,
    custodian: &Arc<Custodian>,
    (hang, limit): &Watched,
    beat: impl Fn() + Send + 'static,
) -> Result<(), StartError> {
    let custodian = Arc::clone(custodian);
    let (hang, limit) = (Arc::clone(hang), *limit);
    let keep_house = move || {
        let mut tried = Instant::now();
        loop {
            thread::sleep(Duration::from_secs(1));
            custodian.expire(Instant::now());
            custodian.tend_brown_out();
            if tried.elapsed() >= canary_every && custodian.brown_out().is_none() {
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
    let builder = thread::Builder::new().name("housekeeping".to_owned());
    builder.spawn(keep_house).map(drop).map_err(StartError::Thread)
}

/// Ends the process when work with the token has taken too long.
pub fn leave_when_hung(hang: Arc<HangWatch>, custodian: &Arc<Custodian>) -> Result<(), StartError> {
    let custodian = Arc::clone(custodian);
    let watch = move || {
        loop {
            thread::sleep(Duration::from_secs(1));
            if hang.is_overdue(Instant::now()) && custodian.brown_out().is_none() {
                let why = "a call into the token's module does not come back";
                let outage = Outage::new(Reason::ModuleHung, why);
                custodian.lose_token(&Fault::TokenUnavailable(outage));
                if custodian.is_past_use() {
                    leave(&custodian, PAST_USE);
                }
            }
        }
    };
    let builder = thread::Builder::new().name("hang-watch".to_owned());
    builder.spawn(watch).map(drop).map_err(StartError::Thread)
}
