//! Tells trail and journal when service by the token stops and when it is back, once each; and the
//! journal, rarely, that it is still away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::front::waits;
use crate::audit::{Code, Event, EventNote};
use crate::custody::{Client, Turn};
use crate::service::Appliance;

/// Between two lines that say that the token is still away.
const REMINDER: Duration = Duration::from_secs(600);

/// Follows the turns, for the life of the front.
pub async fn watch_token(appliance: Arc<Appliance>, custody: Client) {
    let Some(mut turns) = custody.turns() else { return };
    let mut away: Option<Instant> = None;
    loop {
        let turn = match away {
            None => turns.recv().await,
            Some(since) => match tokio::time::timeout(REMINDER, turns.recv()).await {
                Ok(turn) => turn,
                Err(_) => {
                    let (state, why) = appliance.state();
                    let seconds = since.elapsed().as_secs();
                    tracing::warn!(state, why, seconds, "the token is still away");
                    continue;
                }
            },
        };
        let note = match turn {
            None => return,
            Some(Turn::Lost(outage)) => {
                let reason = outage.reason.as_str();
                tracing::error!(
                    reason,
                    why = outage.why,
                    "the token is away: requests wait, then get 503; it is looked for until it is back"
                );
                away = Some(Instant::now());
                EventNote::because(Event::TokenLost, Code(reason))
            }
            Some(Turn::Turned(outage)) => {
                let reason = outage.reason.as_str();
                tracing::error!(
                    reason,
                    why = outage.why,
                    "the token is away until an operator acts"
                );
                EventNote::because(Event::TokenLost, Code(reason))
            }
            Some(Turn::Back(token)) => {
                let seconds = away.map(|since| since.elapsed().as_secs());
                tracing::info!(
                    token = token.label,
                    serial = token.serial,
                    away_seconds = seconds,
                    "the token is there"
                );
                away = None;
                EventNote::new(Event::TokenBack)
            }
        };
        if let Err(error) = waits(appliance.trail().event(note).await) {
            tracing::warn!(%error, "the trail could not be told of the token yet");
        }
    }
}
