//! What a scraper is told: counts and states, no names of anybody.

use std::collections::BTreeMap;

use super::error::Error;
use super::gate::{Appliance, Request, Trace, Traced};
use crate::policy::{Action, Permit, Resource};

/// Read what is counted and how the appliance stands.
pub struct ReadMetrics;

pub struct MetricsView {
    /// Requests since the start, by action and result (`done` or the code of the error).
    pub requests: BTreeMap<(&'static str, &'static str), u64>,
    /// The same word as in the status.
    pub state: &'static str,
    /// Why service by the token has stopped: the same word as in the status.
    pub token_away: Option<&'static str>,
    /// Seconds since when service by the token has stopped; 0 while it serves.
    pub token_away_seconds: u64,
    pub uptime_seconds: u64,
    /// Sequence number of the trail's newest durable line.
    pub trail_lines: u64,
    /// Free on the file systems of store and trail, where these say.
    pub store_free_bytes: Option<u64>,
    pub trail_free_bytes: Option<u64>,
    /// Whether the store refuses changes.
    pub changes_refused: bool,
    /// How many things keep the next start.
    pub next_start_refused: usize,
}

impl Request for ReadMetrics {
    const ACTION: Action = Action::MetricsRead;
    const TRACE: Trace = Trace::Never;
    type Reply = MetricsView;

    fn resource(&self) -> Resource {
        Resource::Appliance
    }

    async fn run(self, _permit: Permit, appliance: &Appliance) -> Result<MetricsView, Error> {
        Ok(MetricsView {
            requests: appliance.standing.counts(),
            state: appliance.state().0,
            token_away: appliance.reason_away(),
            token_away_seconds: appliance.custody.token_away().map_or(0, |(since, _)| {
                let seconds = appliance.now().as_second() - since.as_second();
                u64::try_from(seconds).unwrap_or(0).max(1)
            }),
            uptime_seconds: appliance.standing.uptime_seconds(),
            trail_lines: appliance.trail.head().seq,
            store_free_bytes: appliance.store.room().map(|room| room.free_bytes),
            trail_free_bytes: appliance.trail.free_bytes(),
            changes_refused: !appliance.takes_changes(),
            next_start_refused: appliance.next_start_refused().len(),
        })
    }
}

impl Traced for MetricsView {}
