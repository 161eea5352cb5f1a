//! Methods, status codes, and the syntax of tokens, request targets and hosts.

use std::net::Ipv6Addr;

/// A request method: one of RFC 9110's, PATCH (RFC 5789), or any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are RFC 9110's")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Patch,
    Options,
    Trace,
    Connect,
    Other,
}

impl Method {
    /// The number of methods, [`Other`](Self::Other) included.
    pub const COUNT: usize = Self::Other as usize + 1;

    /// Parses the method of a request line. Methods are case-sensitive (RFC 9110, section 9.1).
    pub fn parse(token: &str) -> Self {
        match token {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            "PATCH" => Self::Patch,
            "OPTIONS" => Self::Options,
            "TRACE" => Self::Trace,
            "CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }

    /// Returns the method as it is sent, or `other`. The number of values is bounded whatever clients
    /// send, as it must be for the label of a metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Patch => "PATCH",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Connect => "CONNECT",
            Self::Other => "other",
        }
    }
}

/// The status of a response. 1xx, 206 and 416 are missing, because the server sends no interim
/// responses and serves no range requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the names are those of RFC 9110, RFC 6585 and RFC 7725"
)]
pub enum Status {
    Ok,
    Created,
    Accepted,
    NoContent,
    MovedPermanently,
    Found,
    SeeOther,
    NotModified,
    TemporaryRedirect,
    PermanentRedirect,
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    NotAcceptable,
    RequestTimeout,
    Conflict,
    Gone,
    LengthRequired,
    PreconditionFailed,
    ContentTooLarge,
    UriTooLong,
    UnsupportedMediaType,
    ExpectationFailed,
    MisdirectedRequest,
    UnprocessableContent,
    TooManyRequests,
    RequestHeaderFieldsTooLarge,
    UnavailableForLegalReasons,
    InternalServerError,
    NotImplemented,
    BadGateway,
    ServiceUnavailable,
    GatewayTimeout,
    HttpVersionNotSupported,
}

impl Status {
    /// Returns the code and the reason phrase, as in the status line: `404 Not Found`.
    // If it were inlined, the binary would contain its table once for each call.
    #[inline(never)]
    pub fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::Created => "201 Created",
            Self::Accepted => "202 Accepted",
            Self::NoContent => "204 No Content",
            Self::MovedPermanently => "301 Moved Permanently",
            Self::Found => "302 Found",
            Self::SeeOther => "303 See Other",
            Self::NotModified => "304 Not Modified",
            Self::TemporaryRedirect => "307 Temporary Redirect",
            Self::PermanentRedirect => "308 Permanent Redirect",
            Self::BadRequest => "400 Bad Request",
            Self::Unauthorized => "401 Unauthorized",
            Self::Forbidden => "403 Forbidden",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::NotAcceptable => "406 Not Acceptable",
            Self::RequestTimeout => "408 Request Timeout",
            Self::Conflict => "409 Conflict",
            Self::Gone => "410 Gone",
            Self::LengthRequired => "411 Length Required",
            Self::PreconditionFailed => "412 Precondition Failed",
            Self::ContentTooLarge => "413 Content Too Large",
            Self::UriTooLong => "414 URI Too Long",
            Self::UnsupportedMediaType => "415 Unsupported Media Type",
            Self::ExpectationFailed => "417 Expectation Failed",
            Self::MisdirectedRequest => "421 Misdirected Request",
            Self::UnprocessableContent => "422 Unprocessable Content",
            Self::TooManyRequests => "429 Too Many Requests",
            Self::RequestHeaderFieldsTooLarge => "431 Request Header Fields Too Large",
            Self::UnavailableForLegalReasons => "451 Unavailable For Legal Reasons",
            Self::InternalServerError => "500 Internal Server Error",
            Self::NotImplemented => "501 Not Implemented",
            Self::BadGateway => "502 Bad Gateway",
            Self::ServiceUnavailable => "503 Service Unavailable",
            Self::GatewayTimeout => "504 Gateway Timeout",
            Self::HttpVersionNotSupported => "505 HTTP Version Not Supported",
        }
    }

    /// Returns the three digits of the code, for the label of a metric.
    pub fn label(self) -> &'static str {
        &self.line()[..3]
    }

    /// Returns the code as a number.
    pub fn code(self) -> u16 {
        self.label()
            .bytes()
            .fold(0, |code, digit| code * 10 + u16::from(digit - b'0'))
    }
}

/// Returns whether a byte can be part of a token, such as a method or the name of a header field (RFC
/// 9110, section 5.6.2).
pub fn is_token_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\''
        | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

/// Returns what follows the authority in a target in absolute-form (RFC 9112, section 3.2.2): a path, a
/// query or nothing. Returns `None` if the target has another form, if the host is missing or
/// malformed, and if there is user information (RFC 9110, sections 4.2.1 and 4.2.4).
pub fn after_authority(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once(':')?;
    let rest = rest.strip_prefix("//")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    (is_host(authority.as_bytes()) && !authority.is_empty() && !authority.starts_with(':'))
        .then_some(rest)
}

/// Returns whether a text is `uri-host [ ":" port ]`, like the value of `Host` (RFC 9110, section 7.2;
/// the grammar is that of RFC 3986, sections 3.2.2 and 3.2.3). It may be empty.
pub fn is_host(text: &[u8]) -> bool {
    let (host, port) = split_port(text);
    let is_host = match host {
        [b'[', literal @ .., b']'] => is_ip_literal(literal),
        name => is_name(name),
    };
    is_host && port.unwrap_or_default().iter().all(u8::is_ascii_digit)
}

/// Returns whether a text is `uri-host ":" port`, the target of CONNECT (RFC 9112, section 3.2.3).
pub fn is_authority_form(text: &[u8]) -> bool {
    let (host, port) = split_port(text);
    is_host(text) && !host.is_empty() && port.is_some_and(|port| !port.is_empty())
}

/// Splits at the colon before the port, if there is one. An address in brackets contains other colons.
fn split_port(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    let host = match text.first() {
        Some(b'[') => text.iter().position(|byte| *byte == b']').unwrap_or(0),
        _ => 0,
    };
    match text[host..].iter().position(|byte| *byte == b':') {
        Some(colon) => (&text[..host + colon], Some(&text[host + colon + 1..])),
        None => (text, None),
    }
}

/// Returns whether a text can be in brackets: an IPv6 address, or one of a future version.
fn is_ip_literal(literal: &[u8]) -> bool {
    if let [b'v' | b'V', future @ ..] = literal {
        let mut parts = future.splitn(2, |byte| *byte == b'.');
        let (version, address) = (parts.next().unwrap_or_default(), parts.next());
        return !version.is_empty()
            && version.iter().all(u8::is_ascii_hexdigit)
            && address.is_some_and(|address| {
                let is_address = |byte: &u8| is_name_byte(*byte) || *byte == b':';
                !address.is_empty() && address.iter().all(is_address)
            });
    }
    std::str::from_utf8(literal).is_ok_and(|literal| literal.parse::<Ipv6Addr>().is_ok())
}

/// Returns whether a text consists of characters and percent-escapes that a registered name may
/// contain.
fn is_name(mut text: &[u8]) -> bool {
    loop {
        text = match text {
            [] => return true,
            [byte, rest @ ..] if is_name_byte(*byte) => rest,
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                rest
            }
            _ => return false,
        };
    }
}

/// Returns whether a byte is unreserved or one of the sub-delims (RFC 3986, sections 2.2 and 2.3).
fn is_name_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'!' | b'$'
        | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_method_is_its_own_label_and_any_other_has_the_label_other() {
        for method in [
            "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT",
        ] {
            assert_eq!(Method::parse(method).label(), method);
        }
        for method in ["get", "BREW", "", "GETS"] {
            assert_eq!(Method::parse(method).label(), "other");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_an_optional_port() {
        for host in [
            "",
            "a",
            "a:",
            "a:80",
            ":80",
            "127.0.0.1:8080",
            "[::1]",
            "[::1]:8080",
            "[::]:",
            "[::ffff:127.0.0.1]",
            "[v1.a:b]",
            "[vF.~]:1",
            "a-b.c_d~e",
            "a%2Fb",
            "x!$&'()*+,;=",
            "a:99999",
        ] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in [
            "a:b",
            "a:b:c",
            "a:80:80",
            "[::1",
            "::1]",
            "::1",
            "[::1]x",
            "[::1]80",
            "x[::1]",
            "[]",
            "[a]",
            "[127.0.0.1]",
            "[::1%25eth0]",
            "[v1]",
            "[v1.]",
            "[v.a]",
            "[vg.a]",
            "[v1.%41]",
            "[v1.a/]",
            "a%2",
            "a%",
            "a%gg",
            "a%2g",
            "a/b",
            "a@b",
            "a b",
            "a?",
            "a#",
            "a\\b",
            "é",
            "\"",
            "a:+1",
            "[[::1]]",
        ] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn authority_form_is_a_host_and_a_port() {
        for target in ["a:443", "[::1]:443", "127.0.0.1:1"] {
            assert!(is_authority_form(target.as_bytes()), "{target}");
        }
        for target in [
            "",
            "a",
            "a:",
            ":443",
            "/probe",
            "http://a:443",
            "a:443/",
            "[::1]",
            "a@b:1",
        ] {
            assert!(!is_authority_form(target.as_bytes()), "{target}");
        }
    }

    #[test]
    fn absolute_form_is_http_or_https_a_host_and_a_path() {
        for (target, rest) in [
            ("http://a", ""),
            ("HTTPS://a:80/probe?x", "/probe?x"),
            ("http://[::1]:80?x", "?x"),
            ("http://a/http://b", "/http://b"),
        ] {
            assert_eq!(after_authority(target), Some(rest), "{target}");
        }
        for target in [
            "http:///probe",
            "http://:80/probe",
            "://a/probe",
            "ftp://a/probe",
            "probe?u=http://a/",
            "http:/a",
            "http://a:b/",
            "http://user@a/",
            "http://",
            "/probe",
            "*",
            "",
        ] {
            assert_eq!(after_authority(target), None, "{target}");
        }
    }
}
