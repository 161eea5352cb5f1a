//! Which web pages may change settings: only those of this service.
//!
//! A page of another origin can send neither PUT nor DELETE without a preflight, which is never
//! granted. But the owner of a page's host name can make it resolve to this machine (DNS rebinding).
//! Then the page has the same origin, and the browser sends no preflight. So the host must be one that
//! cannot be rebound.

use std::net::{Ipv4Addr, Ipv6Addr};

use bounded_http::Request;

use crate::printable::push_printable;

/// Checks the `Origin` of a change. Clients other than browsers send none.
///
/// # Errors
/// A line that tells the client what is accepted.
pub fn check(request: &Request<'_>, allowed_host: Option<&str>) -> Result<(), String> {
    let mut origins = request.fields().iter();
    let is_origin = |name: &str| name.eq_ignore_ascii_case("Origin");
    let Some(origin) = origins.find(|field| is_origin(field.name)) else {
        return Ok(());
    };
    // `field` returns `None` for a repeated field.
    let origin_host = request.field("Origin").and_then(host_of_origin);
    let host = request.field("Host").map(host_of);
    let is_same = origin_host.is_some() && origin_host == host;
    if is_same && host.is_some_and(|host| is_safe(host, allowed_host)) {
        return Ok(());
    }
    let mut line = String::from("Origin: ");
    push_printable(&mut line, &String::from_utf8_lossy(origin.value));
    Err(line
        + ": expected the host of the Host field, which must be an IP address, localhost or the name that \
           tiny-probe was started with as --allowed-host\n")
}

/// Returns the host of an origin, `scheme://host:port` (RFC 6454, section 6.2). Some pages send `null`.
fn host_of_origin(origin: &[u8]) -> Option<&[u8]> {
    let authority = origin.strip_prefix(b"http://");
    let authority = authority.or(origin.strip_prefix(b"https://"))?;
    Some(host_of(authority))
}

/// Returns the host without the port, because proxies omit or change the port.
fn host_of(authority: &[u8]) -> &[u8] {
    let end = match authority.first() {
        Some(b'[') => authority.iter().position(|byte| *byte == b']'),
        _ => authority.iter().position(|byte| *byte == b':'),
    };
    match end {
        Some(end) if authority[end] == b']' => &authority[..=end],
        Some(end) => &authority[..end],
        None => authority,
    }
}

/// Returns whether a host cannot be rebound.
fn is_safe(host: &[u8], allowed_host: Option<&str>) -> bool {
    let Ok(host) = std::str::from_utf8(host) else {
        return false;
    };
    let ipv6 = host.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
    host.parse::<Ipv4Addr>().is_ok()
        || ipv6.is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok())
        || host.eq_ignore_ascii_case("localhost")
        || allowed_host.is_some_and(|allowed| host.eq_ignore_ascii_case(allowed))
}

#[cfg(test)]
mod tests {
    use bounded_http::Field;

    use super::*;

    fn is_allowed(fields: &[(&'static str, &str)]) -> bool {
        let fields: Vec<Field<'_>> = fields
            .iter()
            .map(|(name, value)| Field {
                name,
                value: value.as_bytes(),
            })
            .collect();
        let request = Request::new("PUT", "/faults").with_fields(&fields);
        let checked = check(&request, Some("Probe.Example.com"));
        if let Err(line) = &checked {
            assert!(
                line.starts_with("Origin: ") && line.ends_with('\n'),
                "{line}"
            );
            assert!(
                line.trim_end()
                    .bytes()
                    .all(|byte| (b' '..=b'~').contains(&byte))
            );
        }
        checked.is_ok()
    }

    #[test]
    fn clients_other_than_browsers_may_change_settings() {
        assert!(is_allowed(&[("Host", "whatever.example")]));
        assert!(is_allowed(&[]));
    }

    #[test]
    fn pages_of_this_service_may_change_settings() {
        for (origin, host) in [
            ("http://localhost:8080", "localhost:8080"),
            ("http://LOCALHOST:8080", "LOCALHOST:8080"),
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://192.0.2.1", "192.0.2.1"),
            ("http://[::1]:8080", "[::1]:8080"),
            ("https://[2001:db8::1]", "[2001:db8::1]"),
            ("https://probe.example.com", "probe.example.com"),
            ("https://probe.example.com", "probe.example.com:443"),
            ("http://localhost:8080", "localhost"),
        ] {
            assert!(
                is_allowed(&[("Host", host), ("origin", origin)]),
                "{origin}"
            );
        }
    }

    #[test]
    fn other_pages_may_not_change_settings() {
        for (origin, host) in [
            // A name that may have been rebound.
            ("http://evil.example:8080", "evil.example:8080"),
            ("http://evil.example", "localhost"),
            ("http://localhost.evil.example", "localhost.evil.example"),
            ("http://127.0.0.1.evil.example", "127.0.0.1.evil.example"),
            ("http://2130706433", "2130706433"),
            ("http://[::1", "[::1"),
            ("http://[evil]", "[evil]"),
            ("http://a.probe.example.com", "a.probe.example.com"),
            ("http://127.0.0.1", "127.0.0.2"),
            ("null", "localhost"),
            ("", "localhost"),
            ("http://", ""),
            ("localhost", "localhost"),
            ("ftp://localhost", "localhost"),
            ("http://\u{e9}\r\n\u{1b}", "\u{e9}"),
        ] {
            assert!(
                !is_allowed(&[("Host", host), ("Origin", origin)]),
                "{origin}"
            );
        }
        let origin = ("Origin", "http://localhost");
        assert!(!is_allowed(&[("Host", "localhost"), origin, origin]));
        assert!(!is_allowed(&[origin]));
        assert!(!is_allowed(&[
            ("Host", "localhost"),
            ("Host", "localhost"),
            origin
        ]));
    }
}
