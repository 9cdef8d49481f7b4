//! When to try again: pauses that double, and what a registry asks for (RFC 9110, 10.2.3).

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

/// The first pause.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause that is waited for.
pub(crate) const MAX_PAUSE: Duration = Duration::from_secs(60);

/// What `Retry-After` asks for, in either of its forms.
pub(crate) fn after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(
        date.duration_since(SystemTime::now())
            .unwrap_or(Duration::ZERO),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, value.parse().unwrap());
        after(&headers)
    }

    #[test]
    fn both_forms() {
        assert_eq!(parse("7"), Some(Duration::from_secs(7)));
        assert_eq!(parse(" 0 "), Some(Duration::ZERO));
        assert_eq!(parse("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        let wait = parse(&soon).unwrap();
        assert!((98..=100).contains(&wait.as_secs()), "{wait:?}");
        for bad in ["", "-1", "soon", "1.5"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(after(&HeaderMap::new()), None);
    }
}
