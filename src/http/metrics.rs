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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Away {
    reason: &'static str,
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
    let away = Family::<Away, Gauge>::default();
    if let Some(reason) = view.token_away {
        away.get_or_create(&Away { reason }).set(1);
    }
    registry.register("token_away", "1 at the reason why service by the token has stopped", away);
    let mut gauge = |name, help, value: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    let help = "Seconds since service by the token has stopped; 0 while it serves";
    gauge("token_away_seconds", help, view.token_away_seconds);
    gauge("uptime_seconds", "Seconds since the start", view.uptime_seconds);
    gauge("trail_lines", "Sequence number of the trail's newest line", view.trail_lines);
    let help = "1 while the store refuses changes";
    gauge("changes_refused", help, u64::from(view.changes_refused));
    let free =
        [("store_free_bytes", view.store_free_bytes), ("trail_free_bytes", view.trail_free_bytes)];
    for (name, bytes) in free {
        if let Some(bytes) = bytes {
            gauge(name, "Bytes that are free on its file system", bytes);
        }
    }
    let mut page = String::new();
    // Writing into memory cannot fail.
    let _ = encode(&mut page, &registry);
    page
}
