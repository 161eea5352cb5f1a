//! Compares how this server parses bytes with another strict implementation: the core of `http-net`,
//! which shares no code with this one. Request smuggling is possible where two servers disagree about
//! where a request ends or what it asks for.
//!
//! The bytes are the request heads of the tests, the inputs that fuzzing has collected, and variations
//! of both. Each difference is a fault unless [`explanation`] explains it.
//!
//! Needs the feature `internals`.

#![cfg(feature = "internals")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use bounded_http::internals::connection::Connection;
use bounded_http::internals::request_head::{
    MAX_BODY_BYTES, MAX_FIELDS, MAX_HEAD_BYTES, field_space,
};
use bounded_http::{Reply, Status};
use http_net::{BodyFraming, HttpError, Limits, Response, ServerConn, ServerEvent, Version};

#[path = "../../tests/support/request_heads.rs"]
mod request_heads;

use request_heads::REQUEST_HEADS;

/// A request as a server has parsed it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Understood {
    method: String,
    target: String,
    fields: Vec<(String, Vec<u8>)>,
    body_length: usize,
    is_http_1_0: bool,
    is_kept_alive: bool,
    expects_continue: bool,
}

/// What this server parses from some bytes: requests, and the status with which it rejects the next
/// one.
fn ours(bytes: &[u8]) -> (Vec<Understood>, Option<u16>) {
    let now = Instant::now();
    let mut connection = Connection::new(now);
    connection.receive(bytes, now);
    let mut requests = Vec::new();
    while let Some(request) = connection.next_request(&mut field_space()) {
        let head = match request {
            Ok(head) => head,
            Err(rejection) => return (requests, Some(rejection.status.code())),
        };
        let field = |field: &bounded_http::Field<'_>| (field.name.to_owned(), field.value.to_vec());
        requests.push(Understood {
            method: head.method.to_owned(),
            target: head.target.to_owned(),
            fields: head.fields.iter().map(field).collect(),
            body_length: head.body_length,
            is_http_1_0: head.is_http_1_0,
            is_kept_alive: head.is_kept_alive,
            // Without a body, the expectation means nothing (RFC 9110, section 10.1.1).
            expects_continue: head.expects_continue && head.body_length > 0,
        });
        let reply = Reply::text(Status::NotFound, "");
        connection.respond(&reply, "now", false, now);
        connection.mark_sent(connection.unsent().len(), now);
    }
    (requests, None)
}

/// What the other implementation does that this server never does.
#[derive(Clone, Copy, Debug, Default)]
struct Beyond {
    /// The version is higher than 1.1.
    version: bool,
    /// The body is chunked.
    chunked: bool,
}

/// What the other implementation parses from them.
struct Theirs {
    requests: Vec<(Understood, Beyond)>,
    error: Option<HttpError>,
}

fn theirs(mut bytes: &[u8]) -> Theirs {
    let limits = Limits::new()
        .with_max_start_line(MAX_HEAD_BYTES)
        .with_max_header_bytes(MAX_HEAD_BYTES)
        .with_max_field_line(MAX_HEAD_BYTES)
        .with_max_headers(MAX_FIELDS)
        .with_max_body(MAX_BODY_BYTES as u64);
    let mut connection = ServerConn::with_limits(limits);
    let mut requests = Vec::new();
    let mut sent = Vec::new();
    loop {
        let fed = connection.feed(bytes);
        bytes = &bytes[fed..];
        let is_end = match connection.poll() {
            Err(error) => {
                let error = Some(error);
                return Theirs { requests, error };
            }
            Ok(ServerEvent::Request(head)) => {
                let body_length = match head.framing() {
                    BodyFraming::Length(length) => usize::try_from(length).unwrap(),
                    _ => 0,
                };
                let fields = head.headers();
                let request = Understood {
                    method: head.method_str().to_owned(),
                    target: head.target().to_owned(),
                    fields: fields
                        .map(|(name, value)| (name.to_owned(), value.to_vec()))
                        .collect(),
                    body_length,
                    is_http_1_0: head.version() == Version::Http10,
                    is_kept_alive: head.keep_alive(),
                    expects_continue: head.expects_continue(),
                };
                let line = head.raw().start_line().get(head.raw().bytes());
                let beyond = Beyond {
                    version: head.version() == Version::Http11 && !line.ends_with(b"1.1"),
                    chunked: matches!(head.framing(), BodyFraming::Chunked),
                };
                requests.push((request, beyond));
                false
            }
            Ok(ServerEvent::RequestEnd) => true,
            Ok(ServerEvent::NeedInput) if bytes.is_empty() => break,
            Ok(ServerEvent::NeedInput) => {
                assert!(fed > 0, "neither takes bytes nor does anything");
                false
            }
            Ok(ServerEvent::Closed | ServerEvent::Upgraded) => break,
            Ok(_) => false,
        };
        if is_end {
            sent.clear();
            let response = Response::new(404);
            connection.respond(&response, &mut sent).unwrap();
        }
    }
    let error = None;
    Theirs { requests, error }
}

const BARE_LF: &str = "RFC 9112, 2.2: a recipient MAY recognize a single LF as a line terminator";

/// Returns the section that allows this server to accept what the other one rejects.
fn why_accepted(request: &Understood, error: HttpError) -> Option<&'static str> {
    match error {
        HttpError::BareLf => Some(BARE_LF),
        HttpError::InvalidTarget if !is_uri(&request.target) => {
            Some("RFC 9112, 3.2: an invalid target SHOULD get a 400; browsers send such queries")
        }
        HttpError::InvalidHost if host(request).is_some_and(|host| host.starts_with(b":")) => {
            Some("RFC 9110, 7.2, and RFC 3986, 3.2.2: the host before the port may be empty")
        }
        _ => None,
    }
}

/// Returns the section that allows this server to reject what the other one accepts.
fn why_rejected(status: u16, request: &Understood, beyond: Beyond) -> Option<&'static str> {
    let scheme = request.target.split_once("://").map(|(scheme, _)| scheme);
    let is_http = |scheme: &str| ["http", "https"].contains(&&*scheme.to_ascii_lowercase());
    match status {
        411 if beyond.chunked => {
            Some("RFC 9112, 6.3: a server MAY reject a request with a body but no Content-Length")
        }
        505 if beyond.version => Some(
            "RFC 9110, 2.5: a later minor version SHOULD be read as 1.1; this server sends a 505",
        ),
        400 if scheme.is_some_and(|scheme| !is_http(scheme)) => {
            Some("RFC 9110, 7.4: the origin is not this server's, whose URIs are http and https")
        }
        400 if has_malformed_ip_literal(request) => {
            Some("RFC 3986, 3.2.2: brackets hold an IPv6 address, or one of a later version")
        }
        _ => None,
    }
}

/// Explains how the two differ. Returns `Ok(None)` if they do not.
fn explanation(bytes: &[u8]) -> Result<Option<&'static str>, String> {
    let (ours, status) = ours(bytes);
    let theirs = theirs(bytes);
    let describe = || {
        let bytes = bytes.escape_ascii();
        let (requests, error) = (&theirs.requests, theirs.error);
        format!("{bytes}\nours: {ours:?}, {status:?}\ntheirs: {requests:?}, {error:?}")
    };
    for (request, (other, beyond)) in ours.iter().zip(&theirs.requests) {
        if request != other {
            return Err(describe());
        }
        if beyond.version || beyond.chunked {
            return Err(describe());
        }
    }
    let agreed = ours.len().min(theirs.requests.len());
    match (ours.get(agreed), theirs.requests.get(agreed)) {
        (Some(request), None) => {
            let why = theirs.error.and_then(|error| why_accepted(request, error));
            why.map(Some).ok_or_else(describe)
        }
        (None, Some((other, beyond))) => {
            let why = status.and_then(|status| why_rejected(status, other, *beyond));
            why.map(Some).ok_or_else(describe)
        }
        // The difference is in an empty line, a line of an incomplete head, or after a body that ends
        // in CR.
        (None, None) if status.is_none() && theirs.error == Some(HttpError::BareLf) => {
            Ok(Some(BARE_LF))
        }
        // A server may report any of several faults.
        _ if status.is_some() == theirs.error.is_some() => Ok(None),
        _ => Err(describe()),
    }
}

/// Returns whether the path and query of a target contain only what a URI may contain (RFC 3986,
/// appendix A).
fn is_uri(target: &str) -> bool {
    let path = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => {
            &rest[rest.find(['/', '?']).unwrap_or(rest.len())..]
        }
        _ => target,
    };
    let is_allowed =
        |char: char| char.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/?%".contains(char);
    let is_escape = |rest: &str| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    path.chars().all(is_allowed) && path.split('%').skip(1).all(is_escape)
}

/// Returns whether `Host` or the target has brackets without an IPv6 address in them. No input has an
/// address of a later version.
fn has_malformed_ip_literal(request: &Understood) -> bool {
    let host = host(request).unwrap_or_default();
    let host = str::from_utf8(host).unwrap_or_default();
    let literals = [host, &request.target].into_iter().filter_map(|text| {
        let (_, rest) = text.split_once('[')?;
        Some(rest.split(']').next().unwrap_or(rest))
    });
    { literals }.any(|literal| literal.parse::<std::net::Ipv6Addr>().is_err())
}

fn host(request: &Understood) -> Option<&[u8]> {
    let mut fields = request.fields.iter();
    let host = fields.find(|(name, _)| name.eq_ignore_ascii_case("Host"));
    host.map(|(_, value)| &**value)
}

/// Returns the inputs that fuzzing has collected. The first eight bytes of each define how the rest is
/// split.
fn corpus() -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/connection");
    let inputs = std::fs::read_dir(corpus).expect("there is a corpus");
    let mut inputs: Vec<Vec<u8>> = inputs
        .map(|input| std::fs::read(input.unwrap().path()).unwrap())
        .filter_map(|input| input.get(8..).map(<[u8]>::to_vec))
        .collect();
    inputs.sort();
    inputs
}

/// Pseudorandom numbers that are the same in every run (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(number).unwrap() % end
    }

    fn choose<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

/// The bytes that variations insert. Each has a meaning somewhere in a request.
const PARTS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\0",
    b"\t",
    b"\x0b",
    b"\x7f",
    b"\x80",
    b" ",
    b"  ",
    b":",
    b",",
    b";",
    b"/",
    b"?",
    b"#",
    b"%",
    b"%2",
    b"%41",
    b"[",
    b"]",
    b"@",
    b"*",
    b"|",
    b"\"",
    b"\\",
    b"0",
    b"1",
    b"9",
    b"-",
    b"+",
    b"http://a",
    b"https://",
    b"ftp://a/",
    b"a:443",
    b"[::1]",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"HTTP/1.2",
    b"HTTP/2.0",
    b"GET",
    b"HEAD",
    b"OPTIONS",
    b"CONNECT",
    b"Host: a\r\n",
    b"Host:\r\n",
    b"Host: :80\r\n",
    b"Content-Length: 3\r\n",
    b"Content-Length: 03\r\n",
    b"Content-Length: 65536\r\n",
    b"Content-Length: 65537\r\n",
    b"Content-Length: 18446744073709551616\r\n",
    b"content-length:0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding:\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Connection: x, CLOSE\r\n",
    b"Expect: 100-continue\r\n",
    b" folded\r\n",
    b"abc",
    b"X: y\r\n",
];

const HOST_WITHOUT_NAME: &[u8] = b"GET /probe HTTP/1.1\r\nHost: :80\r\n\r\n";

/// Makes one to four changes to a request, and may append another request.
fn variation(numbers: &mut Numbers, seeds: &[&[u8]]) -> Vec<u8> {
    let mut bytes = numbers.choose(seeds).to_vec();
    if numbers.below(3) == 0 {
        bytes.extend_from_slice(numbers.choose(seeds));
    }
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(bytes.len() + 1);
        let replaced = numbers.below(3).min(bytes.len() - at);
        let part = match numbers.below(8) {
            0 => &[][..],
            _ => numbers.choose(PARTS),
        };
        bytes.splice(at..at + replaced, part.iter().copied());
    }
    // A server may reject an incomplete head early or late, so the head is completed.
    bytes.extend_from_slice(b"\r\n\r\n");
    bytes
}

#[test]
fn every_difference_from_another_strict_server_is_explained() {
    let corpus = corpus();
    let heads = REQUEST_HEADS.iter().map(|(_, head, _)| head.as_bytes());
    let heads = heads.chain([HOST_WITHOUT_NAME]);
    let seeds: Vec<&[u8]> = heads.chain(corpus.iter().map(|input| &**input)).collect();
    let mut numbers = Numbers(19);
    let variations = (0..40_000).map(|_| variation(&mut numbers, &seeds));
    let inputs = seeds.iter().map(|seed| [*seed, b"\r\n\r\n"].concat());

    let mut explanations: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut faults, mut requests) = (Vec::new(), 0);
    for bytes in inputs.chain(variations) {
        // The two have different limits on the parts of a head.
        if bytes.len() > MAX_HEAD_BYTES {
            continue;
        }
        match explanation(&bytes) {
            Ok(None) => requests += ours(&bytes).0.len(),
            Ok(Some(why)) => *explanations.entry(why).or_default() += 1,
            Err(fault) => faults.push(fault),
        }
    }
    println!("{requests} requests are understood alike; {explanations:#?}");
    let count = faults.len();
    faults.sort_by_key(String::len);
    faults.truncate(10);
    assert!(
        count == 0,
        "{count} faults, such as\n{}",
        faults.join("\n\n")
    );
    assert!(requests > 5000, "too few requests are well-formed");
    assert_eq!(explanations.len(), 7, "an explanation is not needed");
}
