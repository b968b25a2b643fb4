//! Points in time as people type them after `--since` and `--until`, as `journalctl` takes them.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

/// What is taken, for whoever typed something else.
const TAKEN: &str = "a time is RFC 3339 (2026-01-02T03:04:05Z), a local one (2026-01-02, '2026-01-02 03:04', 03:04), \
     now, today, yesterday, or how long ago it was (90s, 15min, 2h, 3d, 1w)";

/// Reads a point in time; local ones are in the time zone of this machine.
pub fn when(text: &str) -> Result<Timestamp, String> {
    let now = Timestamp::now().to_zoned(TimeZone::system());
    read(text.trim(), &now).ok_or_else(|| TAKEN.to_owned())
}

fn read(text: &str, now: &Zoned) -> Option<Timestamp> {
    let midnight = |days: i64| {
        let day = now.date().checked_add(days.days()).ok()?;
        at(day.to_datetime(Time::midnight()), now)
    };
    match text {
        "now" => return Some(now.timestamp()),
        "today" => return midnight(0),
        "yesterday" => return midnight(-1),
        "tomorrow" => return midnight(1),
        _ => {}
    }
    if let Some(seconds) = text.strip_prefix('@') {
        return Timestamp::from_second(seconds.parse().ok()?).ok();
    }
    text.parse::<Timestamp>().ok().or_else(|| ago(text, now)).or_else(|| local(text, now))
}

/// A day, a time of today, or both, without a time zone.
fn local(text: &str, now: &Zoned) -> Option<Timestamp> {
    // More than a time alone would be taken for a date that ends in nonsense.
    if let Some(time) = text.parse::<Time>().ok().filter(|_| text.contains(':') && text.len() <= 8)
    {
        return at(now.date().to_datetime(time), now);
    }
    if let Ok(moment) = text.parse::<DateTime>() {
        return at(moment, now);
    }
    at(text.parse::<Date>().ok()?.to_datetime(Time::midnight()), now)
}

fn at(moment: DateTime, now: &Zoned) -> Option<Timestamp> {
    Some(moment.to_zoned(now.time_zone().clone()).ok()?.timestamp())
}

/// `2h`, `-2h`, `1h30min`, `2 hours ago`: so long before now.
fn ago(text: &str, now: &Zoned) -> Option<Timestamp> {
    let text = text.strip_suffix("ago").unwrap_or(text);
    let mut rest = text.strip_prefix('-').unwrap_or(text).trim();
    let mut seconds: i64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(digits);
        let after = after.trim_start();
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let part = number.parse::<i64>().ok()?.checked_mul(seconds_of(unit)?)?;
        seconds = seconds.checked_add(part)?;
        rest = after.trim_start();
    }
    now.timestamp().checked_sub(SignedDuration::from_secs(seconds)).ok()
}

/// A unit of `systemd.time(7)`, in seconds.
fn seconds_of(unit: &str) -> Option<i64> {
    Some(match unit {
        "s" | "sec" | "second" | "seconds" => 1,
        "m" | "min" | "minute" | "minutes" => 60,
        "h" | "hr" | "hour" | "hours" => 3600,
        "d" | "day" | "days" => 86_400,
        "w" | "week" | "weeks" => 604_800,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Option<String> {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let now = "2026-03-01T10:00:00Z".parse::<Timestamp>().unwrap().to_zoned(zone);
        read(text, &now).map(|time| time.to_string())
    }

    #[test]
    fn times_are_taken_as_people_type_them() {
        for (text, expected) in [
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04:05.5+01:00", "2026-01-02T02:04:05.5Z"),
            ("2026-01-02", "2026-01-01T22:00:00Z"),
            ("2026-01-02 03:04", "2026-01-02T01:04:00Z"),
            ("2026-01-02 03:04:05", "2026-01-02T01:04:05Z"),
            ("03:04", "2026-03-01T01:04:00Z"),
            ("now", "2026-03-01T10:00:00Z"),
            ("today", "2026-02-28T22:00:00Z"),
            ("yesterday", "2026-02-27T22:00:00Z"),
            ("2h", "2026-03-01T08:00:00Z"),
            ("-2h", "2026-03-01T08:00:00Z"),
            ("2 hours ago", "2026-03-01T08:00:00Z"),
            ("1h30min", "2026-03-01T08:30:00Z"),
            ("1d", "2026-02-28T10:00:00Z"),
            ("90s", "2026-03-01T09:58:30Z"),
            ("@0", "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(told(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in
            ["", "-", "ago", "2", "2x", "h", "soon", "2026-13-01", "25:00", "9999999999999d"]
        {
            assert_eq!(told(text), None, "{text}");
        }
    }
}
