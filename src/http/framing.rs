//! How a request says where it ends and whom it is for, where a proxy in front of us might read that
//! otherwise than we do.
//!
//! Of a length beside a coding the parser keeps the coding alone (RFC 9112 §6.3) and does not tell: so no
//! other request is taken from a connection after a coding (§6.1), and what follows is thrown away.

use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request, Version};

use super::problem::Problem;

/// Whether the request's end is told by its coding.
pub fn is_coded(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING)
}

/// Whether the client closes the connection after it (RFC 9112 §9.6), or speaks HTTP/1.0.
pub fn ends_connection<B>(request: &Request<B>) -> bool {
    let closes = |value: &HeaderValue| {
        let options = value.to_str().unwrap_or_default().split(',');
        options.map(str::trim).any(|option| option.eq_ignore_ascii_case("close"))
    };
    request.version() != Version::HTTP_11
        || request.headers().get_all(CONNECTION).iter().any(closes)
}

/// What is wrong with it: a coding besides chunked (RFC 9112 §6.1), or a host missing or named twice
/// (§3.2); only HTTP/1.0 needs none.
pub fn fault<B>(request: &Request<B>) -> Option<Problem> {
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    let is_chunked = codings.next().is_none_or(|coding| {
        coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") && codings.next().is_none()
    });
    if !is_chunked {
        return Some(Problem::misframed("the one transfer coding that is taken is chunked"));
    }
    match (request.headers().get_all(HOST).iter().count(), request.version()) {
        (1, _) | (0, Version::HTTP_10 | Version::HTTP_09) => None,
        _ => Some(Problem::misframed("a request of HTTP/1.1 has the header host, once")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_and_at_most_chunked() {
        let is_fit = |version, headers: &[(&str, &str)]| {
            let mut request = Request::builder().version(version);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            fault(&request.body(()).unwrap()).is_none()
        };
        let (old, new) = (Version::HTTP_10, Version::HTTP_11);
        let (host, coding) = (("host", "a"), |coding| ("transfer-encoding", coding));
        for fit in [&[host][..], &[host, coding("chunked")], &[host, coding(" Chunked ")]] {
            assert!(is_fit(new, fit), "{fit:?}");
        }
        assert!(is_fit(old, &[]) && is_fit(old, &[host]) && !is_fit(old, &[host, host]));
        for unfit in [
            &[][..],
            &[host, host],
            &[host, coding("gzip, chunked")],
            &[host, coding("chunked, chunked")],
            &[host, coding("chunked"), coding("chunked")],
            &[host, coding("")],
        ] {
            assert!(!is_fit(new, unfit), "{unfit:?}");
        }
    }
}
