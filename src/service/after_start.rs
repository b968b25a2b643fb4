//! What is to be done once after a start, as soon as custody can open records.

use std::time::Duration;

use super::error::Error;
use super::gate::Appliance;

/// Until it is tried again.
const PAUSE: Duration = Duration::from_millis(200);

impl Appliance {
    /// Waits until the appliance is ready, and does it. Ends when all is done.
    pub async fn after_start(&self) {
        let mut told = None;
        loop {
            if self.state().0 == "ready" {
                let Err(error) = self.do_after_start().await else { return };
                let why = error.to_string();
                if self.state().0 == "ready" && told.as_ref() != Some(&why) {
                    tracing::warn!(why, "what follows a start waits");
                    told = Some(why);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn do_after_start(&self) -> Result<(), Error> {
        self.check_recovery().await
    }
}
