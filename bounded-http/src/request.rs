//! The request that a service answers.

use std::net::SocketAddr;
use std::time::Instant;

use crate::http::{Method, after_authority};

/// A header field: a name and a value, as the client sent them. This is httparse's type.
pub type Field<'a> = httparse::Header<'a>;

/// A valid request. Its body, if it has one, is discarded.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    method: &'a str,
    target: &'a str,
    path: &'a str,
    query: &'a str,
    fields: &'a [Field<'a>],
    peer: Option<SocketAddr>,
    received_at: Instant,
}

impl<'a> Request<'a> {
    /// Creates a request without header fields that was received now. For tests of services, and for
    /// other servers that call a service.
    pub fn new(method: &'a str, target: &'a str) -> Self {
        Self::received(method, target, Instant::now())
    }

    /// Creates a request without header fields that was received at this time.
    pub(crate) fn received(method: &'a str, target: &'a str, received_at: Instant) -> Self {
        let (path, query) = path_and_query(target);
        Self {
            method,
            target,
            path,
            query,
            fields: &[],
            peer: None,
            received_at,
        }
    }

    /// Sets the header fields.
    #[must_use]
    pub fn with_fields(self, fields: &'a [Field<'a>]) -> Self {
        Self { fields, ..self }
    }

    /// Sets the client's address.
    #[must_use]
    pub fn with_peer(self, peer: Option<SocketAddr>) -> Self {
        Self { peer, ..self }
    }

    /// Sets when the request was received.
    #[must_use]
    pub fn with_received_at(self, received_at: Instant) -> Self {
        Self {
            received_at,
            ..self
        }
    }

    /// Returns the method. It is [`Other`](Method::Other) if it is neither one of RFC 9110's nor PATCH.
    pub fn method(&self) -> Method {
        Method::parse(self.method)
    }

    /// Returns the method as the client sent it. It is a token.
    pub fn method_text(&self) -> &'a str {
        self.method
    }

    /// Returns the request target as the client sent it, in any of its forms (RFC 9112, section 3.2).
    pub fn target(&self) -> &'a str {
        self.target
    }

    /// Returns the path of the target, not decoded. It is `/` if the target is an origin without a
    /// path, and the whole target if that is neither in origin-form nor in absolute-form.
    pub fn path(&self) -> &'a str {
        self.path
    }

    /// Returns the part of the target after the first `?`, not decoded; empty if there is none.
    pub fn query(&self) -> &'a str {
        self.query
    }

    /// Returns the value of a header field that was sent exactly once; `None` if it is missing or
    /// repeated. The case of the name does not matter.
    pub fn field(&self, name: &str) -> Option<&'a [u8]> {
        let mut found = None;
        for field in self.fields {
            if field.name.len() == name.len() && field.name.eq_ignore_ascii_case(name) {
                if found.is_some() {
                    return None;
                }
                found = Some(field.value);
            }
        }
        found
    }

    /// Returns all header fields in the order in which they were sent.
    pub fn fields(&self) -> &'a [Field<'a>] {
        self.fields
    }

    /// Returns the client's address, if it is known.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Returns when the server took up the request. [`Ended::duration`](crate::Ended::duration) is measured
    /// from here. Time that the request waited before is not included: in the kernel, for a turn, a slot or
    /// memory, or behind an earlier response.
    pub fn received_at(&self) -> Instant {
        self.received_at
    }
}

fn path_and_query(target: &str) -> (&str, &str) {
    if target.starts_with('/') {
        return split_query(target);
    }
    match after_authority(target).map(split_query) {
        Some(("", query)) => ("/", query),
        Some(path_and_query) => path_and_query,
        None => (target, ""),
    }
}

fn split_query(target: &str) -> (&str, &str) {
    match target.bytes().position(|byte| byte == b'?') {
        Some(mark) => (&target[..mark], &target[mark + 1..]),
        None => (target, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_starts_after_the_authority_and_ends_before_the_query() {
        for (target, path, query) in [
            ("/", "/", ""),
            ("/probe?", "/probe", ""),
            ("/probe?x=1&y=/metrics", "/probe", "x=1&y=/metrics"),
            ("/probe?u=http://a/?", "/probe", "u=http://a/?"),
            ("http://a", "/", ""),
            ("http://a?x", "/", "x"),
            ("HTTP://a:80/probe?x", "/probe", "x"),
            ("*", "*", ""),
            ("a:443", "a:443", ""),
        ] {
            let request = Request::new("GET", target);
            assert_eq!((request.path(), request.query()), (path, query), "{target}");
        }
    }

    #[test]
    fn a_repeated_field_has_no_value() {
        let field = |name, value: &'static str| Field {
            name,
            value: value.as_bytes(),
        };
        let fields = [field("Accept", "a"), field("X", "1"), field("x", "2")];
        let request = Request::new("GET", "/").with_fields(&fields);
        assert_eq!(request.field("accept"), Some(&b"a"[..]));
        assert_eq!(request.field("X"), None);
        assert_eq!(request.field("Host"), None);
        assert_eq!(request.field("Cookie"), None, "as long as another");
        assert_eq!(request.fields().len(), 3);
    }

    #[test]
    fn a_test_of_a_service_can_set_what_a_request_says() {
        let received_at = Instant::now();
        let peer = Some(SocketAddr::from(([192, 0, 2, 1], 1234)));
        let request = Request::new("PURGE", "/")
            .with_received_at(received_at)
            .with_peer(peer);
        assert!(Request::new("GET", "/").received_at() >= received_at);
        assert_eq!(request.received_at(), received_at);
        assert_eq!(request.peer(), peer);
        assert_eq!((request.method_text(), request.target()), ("PURGE", "/"));
    }
}
