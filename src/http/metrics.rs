//! `/metrics` in OpenMetrics, or in the text format 0.0.4 of Prometheus: what is counted and how the appliance stands, no names of anybody.

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
    let help = "How many things would keep the daemon's next start, or custody's; see `status`";
    let refused = u64::try_from(view.next_start_refused).unwrap_or(u64::MAX);
    gauge("next_start_refused", help, refused);
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

/// The formats that there are, by media type.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The format that an `accept` header prefers (RFC 9110 §12.5.1); `None` where it takes neither.
pub fn format(accept: Option<&str>) -> Option<&'static str> {
    let Some(accept) = accept else { return Some(OPENMETRICS) };
    let quality = |format: &str| {
        let (kind, _) = format.split_once('/').unwrap_or_default();
        let essence = format.split(';').next().unwrap_or_default();
        let version = format.split(';').map(str::trim).find(|part| part.starts_with("version="));
        // The most exact range that fits decides.
        let fits = accept.split(',').filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            let rank = match name.as_str() {
                "*/*" => 0,
                name if name.strip_suffix("/*") == Some(kind) => 1,
                name if name == essence => 2,
                _ => return None,
            };
            let mut quality = 1000_u16;
            for part in parts {
                let (member, value) = part.split_once('=')?;
                match member.to_ascii_lowercase().as_str() {
                    "q" => quality = (value.parse::<f32>().ok()?.clamp(0.0, 1.0) * 1000.0) as u16,
                    "version" if version != Some(&format!("version={value}")) => return None,
                    _ => {}
                }
            }
            Some((rank, quality))
        });
        fits.max().map_or(0, |(_, quality)| quality)
    };
    match (quality(OPENMETRICS), quality(TEXT)) {
        (0, 0) => None,
        (open, text) if open >= text => Some(OPENMETRICS),
        _ => Some(TEXT),
    }
}

/// A page of OpenMetrics in the text format 0.0.4: a counter is named as its samples are, and there are no
/// units and no end.
pub fn as_text(page: &str) -> String {
    let counters: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut text = String::with_capacity(page.len() + 64);
    for line in page.lines().filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(about), Some(name), Some(rest)) if counters.contains(&name) => {
                text += &format!("# {about} {name}_total {rest}\n");
            }
            _ => {
                text += line;
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_is_preferred() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, format) in [
            (None, Some(OPENMETRICS)),
            (Some("*/*"), Some(OPENMETRICS)),
            (Some(prometheus), Some(OPENMETRICS)),
            (Some("text/plain"), Some(TEXT)),
            (Some("text/plain;version=0.0.4;q=0.5, */*;q=0.1"), Some(TEXT)),
            (Some("text/*"), Some(TEXT)),
            (Some("Text/Plain; Version=0.0.4"), Some(TEXT)),
            (Some("application/openmetrics-text;q=0, */*"), Some(TEXT)),
            (Some("application/openmetrics-text; version=2.0.0, text/plain;q=0.1"), Some(TEXT)),
            (Some("application/json"), None),
            (Some("*/*;q=0"), None),
        ] {
            assert_eq!(super::format(accept), format, "{accept:?}");
        }
    }

    #[test]
    fn a_counter_is_named_as_its_samples_in_the_older_format() {
        let page = "# HELP a_requests Requests so far.\n# TYPE a_requests counter\n\
            a_requests_total{x=\"y\"} 1\n# HELP a_up Up.\n# TYPE a_up gauge\n# UNIT a_up seconds\na_up 1\n# EOF\n";
        assert_eq!(
            as_text(page),
            "# HELP a_requests_total Requests so far.\n# TYPE a_requests_total counter\n\
             a_requests_total{x=\"y\"} 1\n# HELP a_up Up.\n# TYPE a_up gauge\na_up 1\n"
        );
    }
}
