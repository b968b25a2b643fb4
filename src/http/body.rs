//! Bodies: bounded in size, time and depth before a parser sees them, wiped after.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::BodyExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::json_error;
use super::problem::Problem;

/// What a body may be.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub bytes: usize,
    pub time: Duration,
    pub depth: usize,
}

/// How long a body may become, up to `most`.
pub fn length(body: &Body, most: usize) -> usize {
    let length = hyper::body::Body::size_hint(body).upper();
    length.and_then(|length| usize::try_from(length).ok()).unwrap_or(most).min(most)
}

/// Reads a body whole into memory that is wiped.
pub async fn read(
    headers: &HeaderMap,
    body: Body,
    bounds: Bounds,
) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let announced =
        headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > bounds.bytes) {
        return Err(Problem::too_large(bounds.bytes));
    }
    // Room for all of it at once, so that growing leaves no copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(announced.unwrap_or(4096)));
    let collected = collect(body, &mut bytes, bounds.bytes);
    let in_time = tokio::time::timeout(bounds.time, collected).await;
    in_time.map_err(|_| Problem::too_slow())??;
    if !bytes.is_empty() && !is_json(headers) {
        return Err(Problem::not_json());
    }
    Ok(bytes)
}

async fn collect(
    mut body: Body,
    bytes: &mut Zeroizing<Vec<u8>>,
    most: usize,
) -> Result<(), Problem> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::malformed("the body broke off"))?;
        let Some(data) = frame.data_ref() else { continue };
        let needed = bytes.len() + data.len();
        if needed > most {
            return Err(Problem::too_large(most));
        }
        if needed > bytes.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity((needed * 2).min(most)));
            larger.extend_from_slice(bytes);
            *bytes = larger;
        }
        bytes.extend_from_slice(data);
    }
    Ok(())
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut given = headers.get_all(CONTENT_TYPE).iter();
    let (Some(only), None) = (given.next(), given.next()) else { return false };
    let Ok(text) = only.to_str() else { return false };
    let essence = text.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

/// Parses a body; an empty one stands for an empty object. What is wrong is told by place and by our
/// own words: nothing of the body is repeated, it may hold a secret.
pub fn parse<T: DeserializeOwned>(bytes: &[u8], depth: usize) -> Result<T, Problem> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    if let Some(what) = other_text(bytes) {
        return Err(Problem::member("", what));
    }
    if is_deeper(bytes, depth) {
        return Err(Problem::member("", &format!("it is nested deeper than {depth}")));
    }
    // serde takes an array for a struct, its members by their order; nobody promised that to anybody.
    if bytes.trim_ascii_start().first().is_some_and(|&first| first != b'{') {
        return Err(Problem::member("", "it has to be a JSON object"));
    }
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut parser).map_err(|error| {
        let json_error::Fault { pointer, what } = {
            let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok();
            json_error::fault(&error, is_json)
        };
        Problem::member(&pointer, &what)
    })?;
    parser
        .end()
        .map_err(|_| Problem::member("", "something follows the end of the JSON object"))?;
    Ok(parsed)
}

/// What is no UTF-8 without a byte order mark, as JSON has to be (RFC 8259 §8.1).
fn other_text(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xef, 0xbb, 0xbf, ..] => {
            Some("it begins with a byte order mark (EF BB BF); send it without one")
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [b'{', 0, ..] | [0, b'{', ..] => {
            Some("it is UTF-16 text; JSON is sent as UTF-8")
        }
        _ => None,
    }
}

/// Whether arrays and objects are nested deeper than `most`. Looks at brackets outside of strings
/// alone, which is enough to refuse before parsing.
pub(super) fn is_deeper(bytes: &[u8], most: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in bytes {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => in_string = false,
            (true, _) => {}
            (false, b'"') => in_string = true,
            (false, b'{' | b'[') => depth += 1,
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            (false, _) => {}
        }
        if depth > most {
            return true;
        }
    }
    false
}

/// Writes a reply's JSON into memory that is wiped once it was sent.
pub fn write(value: &impl Serialize) -> Result<Bytes, serde_json::Error> {
    struct Wiped(Zeroizing<Vec<u8>>);
    impl AsRef<[u8]> for Wiped {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    // The first pass only measures, so that the second never grows and leaves no copies behind.
    let mut length = Length(0);
    serde_json::to_writer(&mut length, value)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *bytes, value)?;
    Ok(Bytes::from_owner(Wiped(bytes)))
}

struct Length(usize);

impl std::io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_of_strings() {
        assert!(!is_deeper(br#"{"a":[1,{"b":"[[[[[["}]}"#, 3));
        assert!(is_deeper(br#"{"a":[1,{"b":2}]}"#, 2));
        assert!(!is_deeper(br#"{"a":"\"[[[["}"#, 1));
    }

    #[test]
    fn errors_repeat_nothing_of_the_body() {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code)] // only parsed
        struct Form {
            name: String,
            count: u8,
        }
        for body in [
            r#"{"CANARY": 1}"#,
            r#"{"name": "x", "count": "CANARY"}"#,
            r#"{"name": "x", "name": "CANARY"}"#,
            r#"{"name": "CANARY"#,
            r#"["CANARY"]"#,
            r#"["CANARY", 1]"#,
            r#"{"missing field `CANARY`": 1}"#,
            r#"{"name": "x", "count": "duplicate field `CANARY`"}"#,
            r#"{"name": "CANARY"}"#,
        ] {
            let problem = parse::<Form>(body.as_bytes(), 8).err();
            let text = format!("{problem:?}");
            assert!(problem.is_some() && !text.contains("CANARY"), "{text}");
        }
    }
}
