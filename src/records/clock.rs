//! What is known of the time: kept now and then, so that a clock that jumps is noticed across starts.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::RecordError;
use super::home::{encode, plain};
use crate::store::{Batch, Expect, Store, Table};

const CLOCK: &str = "clock";

/// A moment whose time is known. It lies open in the store, for it is read before custody is there. Whoever
/// changes it there has destructions wait, which is told as a clock that is ahead or behind; or, together with
/// the clock of the machine, has one come early: to whom the store is open, no record is safe from that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockRecord {
    /// The kernel's number of the boot that `uptime_ms` counts from; empty where it cannot be had.
    pub boot: String,
    /// Milliseconds since that boot, time asleep included.
    pub uptime_ms: i64,
    /// What time it was then.
    pub time: Timestamp,
}

/// What was kept last.
pub fn read_clock(store: &dyn Store) -> Result<Option<ClockRecord>, RecordError> {
    plain(store, CLOCK)
}

/// Keeps it. Returns once it is durable.
pub async fn keep_clock(store: &dyn Store, record: &ClockRecord) -> Result<(), RecordError> {
    let value = encode(CLOCK, record)?;
    Ok(store.commit(Batch::new().put(Table::Appliance, CLOCK, Expect::Any, value)).await?)
}
