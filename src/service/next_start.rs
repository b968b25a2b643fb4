//! What the next start would refuse: found while the appliance runs, so that no restart brings it to light.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::gate::Appliance;
use crate::custody::protocol::{Check, Verdict};

/// Something that keeps the next process from starting, or from its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StartRefusal {
    pub what: String,
    /// What to do about it.
    pub next: String,
}

/// Makes the check that only the layer above can make: over files of configuration, policy and the directories.
/// With `true`, also where nothing seems to have changed since the last one.
pub type NextStartCheck = Arc<dyn Fn(bool) -> Vec<StartRefusal> + Send + Sync>;

/// How often it is checked whether files changed, and how often custody is asked, too.
const PERIOD: Duration = Duration::from_secs(5);
const OF_CUSTODY: u32 = 12;

/// How long a request waits for a fresh result; the name service may be slow.
const PATIENCE: Duration = Duration::from_secs(2);

/// Those of custody's checks that its next start goes by.
const CUSTODYS: [&str; 3] = ["module", "pin", "state directory"];

/// What is known of the next start.
pub(super) struct NextStart {
    check: NextStartCheck,
    of_front: Mutex<Vec<StartRefusal>>,
    of_custody: Mutex<Vec<StartRefusal>>,
}

impl NextStart {
    pub(super) fn new(check: NextStartCheck) -> Self {
        Self { check, of_front: Mutex::default(), of_custody: Mutex::default() }
    }
}

impl Appliance {
    /// What the next start would refuse, as far as it is known.
    pub fn next_start_refused(&self) -> Vec<StartRefusal> {
        let known = |of: &Mutex<Vec<StartRefusal>>| {
            of.lock().unwrap_or_else(PoisonError::into_inner).clone()
        };
        let mut refusals = known(&self.next_start.of_front);
        refusals.extend(known(&self.next_start.of_custody));
        refusals
    }

    /// The same, checked now; what is known where that takes too long.
    pub async fn check_next_start(&self, is_forced: bool) -> Vec<StartRefusal> {
        let check = Arc::clone(&self.next_start.check);
        let checked = tokio::task::spawn_blocking(move || check(is_forced));
        if let Ok(Ok(found)) = tokio::time::timeout(PATIENCE, checked).await {
            let mut known = self.next_start.of_front.lock().unwrap_or_else(PoisonError::into_inner);
            for refusal in found.iter().filter(|refusal| !known.contains(refusal)) {
                tracing::error!(
                    next = refusal.next,
                    "the next start would be refused: {}",
                    refusal.what
                );
            }
            if found.is_empty() && !known.is_empty() {
                tracing::info!("nothing keeps the next start any more");
            }
            *known = found;
        }
        self.next_start_refused()
    }

    /// Asks custody for its part.
    pub async fn check_custodys_next_start(&self) {
        if let Ok(checks) = self.custody.checks().await {
            self.note_custodys_checks(&checks);
        }
    }

    /// Takes note of what custody found.
    pub(super) fn note_custodys_checks(&self, checks: &[Check]) {
        let refuses = |check: &&Check| {
            check.verdict == Verdict::Fail && CUSTODYS.contains(&check.name.as_str())
        };
        let found = checks.iter().filter(refuses).map(|check| StartRefusal {
            what: format!("{}: {}", check.name, check.found),
            next: check.remedy.clone(),
        });
        let found: Vec<StartRefusal> = found.collect();
        let mut known = self.next_start.of_custody.lock().unwrap_or_else(PoisonError::into_inner);
        for refusal in found.iter().filter(|refusal| !known.contains(refusal)) {
            tracing::error!(
                next = refusal.next,
                "custody's next start would fail: {}",
                refusal.what
            );
        }
        *known = found;
    }

    /// Checks for as long as the appliance runs.
    pub async fn keep_checking_next_start(&self) {
        let mut rounds = 0_u32;
        loop {
            self.check_next_start(false).await;
            if rounds.is_multiple_of(OF_CUSTODY) {
                self.check_custodys_next_start().await;
            }
            rounds = rounds.wrapping_add(1);
            tokio::time::sleep(PERIOD).await;
        }
    }
}
