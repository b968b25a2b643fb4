//! The checks of `doctor`: custody's, the front's, and what the state says.

use serde::Serialize;
use utoipa::ToSchema;

use super::cause::Cause;
use super::clock::ClockView;
use super::error::Error;
use super::gate::{Appliance, Request, Trace, Traced};
use super::next_start::StartRefusal;
use super::span::span;
use crate::custody::protocol::{Check, Verdict};
use crate::policy::{Action, Permit, Resource};

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
        appliance.note_custodys_checks(&checks);
        let (state, detail) = appliance.state();
        let (cause, _) = appliance.trouble(&appliance.custody.state());
        if !matches!(state, "ready" | "locked") {
            // Custody only knows that it is not open; the front knows why.
            checks.retain(|check| check.name != "token" || check.verdict == Verdict::Ok);
        }
        checks.extend(check_of_state(state, detail, cause));
        checks.extend(appliance.check_of_next_start().await);
        checks.extend(appliance.check_of_masters().await);
        checks.push(check_of_clock(&appliance.clock_view()));
        checks.push(appliance.socket().check());
        checks.extend((appliance.house)());
        Ok(DoctorView {
            checks: checks.into_iter().map(|check| appliance.view_of(check)).collect(),
        })
    }
}

/// What is wrong with the state, in the words of its cause; nothing when it is ready.
fn check_of_state(state: &str, detail: String, cause: Option<Cause>) -> Option<Check> {
    let (verdict, remedy) = match (state, cause) {
        ("brown-out", _) => (Verdict::Warn, "the token; what may serve without it does"),
        (_, None) => return None,
        (_, Some(cause @ Cause::NotInitialised)) => (Verdict::Warn, cause.row().mends),
        (_, Some(cause)) => (Verdict::Fail, cause.row().mends),
    };
    let found = if detail.is_empty() { state.to_owned() } else { format!("{state}: {detail}") };
    Some(Check { name: "state".to_owned(), verdict, found, remedy: remedy.to_owned() })
}

fn check_of_clock(clock: &ClockView) -> Check {
    let (verdict, found, remedy) = match (clock.state, clock.ahead_seconds) {
        ("agrees", _) => (Verdict::Ok, "as far on as the time that has passed".to_owned(), ""),
        (_, ahead) => {
            let (by, way) = (ahead.unsigned_abs(), clock.state);
            let found = format!("the clock is {} {way} of the time that has passed", span(by));
            (Verdict::Warn, found, "the clock, or `strongroom confirm-clock`")
        }
    };
    Check { name: "time passed".to_owned(), verdict, found, remedy: remedy.to_owned() }
}

impl Appliance {
    /// One line for each thing that keeps the next start.
    async fn check_of_next_start(&self) -> Vec<Check> {
        let refusals = self.check_next_start(true).await;
        let check = |verdict, found: String, remedy| Check {
            name: "next start".to_owned(),
            verdict,
            found,
            remedy,
        };
        if refusals.is_empty() {
            let found = "configuration, policy and directories are as a start needs them";
            return vec![check(Verdict::Ok, found.to_owned(), String::new())];
        }
        let refused = |StartRefusal { what, next }| {
            check(Verdict::Fail, format!("it would be refused: {what}"), next)
        };
        refusals.into_iter().map(refused).collect()
    }

    fn view_of(&self, check: Check) -> CheckView {
        CheckView::of(check, &self.config_file)
    }
}

impl CheckView {
    /// A check of an appliance with this configuration.
    pub fn of(check: Check, config_file: &str) -> Self {
        let result = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        };
        let file = check.remedy.starts_with('[').then(|| config_file.to_owned());
        Self { name: check.name, result, detail: check.found, setting: check.remedy, file }
    }
}

impl Traced for DoctorView {}
