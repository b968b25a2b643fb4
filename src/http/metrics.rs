//! `/metrics` in OpenMetrics text: what is counted and how the appliance stands, no names of anybody.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::service::MetricsView;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Requests {
    action: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// The whole page; made anew at every scrape, from counts that are kept anyway.
pub fn render(view: &MetricsView) -> String {
    let mut registry = Registry::with_prefix("strongroom");
    let requests = Family::<Requests, Counter>::default();
    for (&(action, result), &count) in &view.requests {
        requests.get_or_create(&Requests { action, result }).inc_by(count);
    }
    registry.register("requests", "Requests by action and result since the start", requests);
    let state = Family::<State, Gauge>::default();
    state.get_or_create(&State { state: view.state }).set(1);
    registry.register("state", "1 at the state that the appliance is in", state);
    let away = Gauge::<i64>::default();
    away.set(i64::try_from(view.token_away_seconds).unwrap_or(i64::MAX));
    let help = "Seconds since service by the token has stopped; 0 while it serves";
    registry.register("token_away_seconds", help, away);
    let uptime = Gauge::<i64>::default();
    uptime.set(i64::try_from(view.uptime_seconds).unwrap_or(i64::MAX));
    registry.register("uptime_seconds", "Seconds since the start", uptime);
    let lines = Gauge::<i64>::default();
    lines.set(i64::try_from(view.trail_lines).unwrap_or(i64::MAX));
    registry.register("trail_lines", "Sequence number of the trail's newest line", lines);
    let mut page = String::new();
    // Writing into memory cannot fail.
    let _ = encode(&mut page, &registry);
    page
}
