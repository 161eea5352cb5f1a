//! Parses request heads and checks them, as RFC 9112 requires of a server that takes no bodies.
//!
//! Ambiguous heads are rejected: if this server saw one request where a proxy in front of it sees two,
//! requests could be smuggled.

use std::mem::MaybeUninit;

use httparse::{Error, Request as Parser};

use crate::http::{Status, after_authority, is_authority_form, is_host, is_token_byte};
use crate::reply::Reply;
use crate::request::Field;

/// The maximum size of a request head. A browser sends the cookies of all ports of localhost, which can
/// take more than 8 KiB.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;
/// The maximum number of fields in a head. If a head arrives line by line, it is parsed again from its
/// start after each line, so this also limits how often.
pub const MAX_FIELDS: usize = 100;
/// The maximum size of a body, which is discarded.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// A complete, valid head.
#[derive(Debug, PartialEq, Eq)]
pub struct RequestHead<'a> {
    /// The method, a token.
    pub method: &'a str,
    /// The request target, in any of its forms.
    pub target: &'a str,
    /// The header fields.
    pub fields: &'a [Field<'a>],
    /// The number of bytes of the head, including its final empty line.
    pub length: usize,
    /// The number of bytes of the body that follows it.
    pub body_length: usize,
    /// The version is HTTP/1.0: a response must say if the connection stays open.
    pub is_http_1_0: bool,
    /// The connection stays open after the response.
    pub is_kept_alive: bool,
    /// The client waits for a response before it sends the body.
    pub expects_continue: bool,
}

/// Memory for the header fields of one head.
pub type FieldSpace<'a> = [MaybeUninit<Field<'a>>; MAX_FIELDS];

/// Creates memory for the header fields of one head. It is not initialized, which saves time.
pub fn field_space<'a>() -> FieldSpace<'a> {
    [const { MaybeUninit::uninit() }; MAX_FIELDS]
}

/// Why a request is rejected. The connection is closed after the response, because it is unknown where
/// the next request starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The status of the response.
    pub status: Status,
    /// The body of the response: a line that says what was wrong.
    pub reason: &'static str,
    /// The method is HEAD, so the response has no body (RFC 9110, section 9.3.2).
    pub is_head: bool,
}

impl Rejection {
    const fn new(status: Status, reason: &'static str) -> Self {
        Self {
            status,
            reason,
            is_head: false,
        }
    }

    const fn bad_request(reason: &'static str) -> Self {
        Self::new(Status::BadRequest, reason)
    }

    /// Sets `is_head` from the received bytes of the head.
    fn of(self, received: &[u8]) -> Self {
        Self {
            is_head: received.starts_with(b"HEAD "),
            ..self
        }
    }

    /// Returns the response to the rejected request.
    pub fn reply(self) -> Reply {
        Reply::text(self.status, self.reason)
    }
}

/// Returns the rejection of a head that was not received in time. `received` is the part that was.
pub fn timed_out(received: &[u8]) -> Rejection {
    Rejection::new(
        Status::RequestTimeout,
        "The request head took longer than 10 seconds.\n",
    )
    .of(received)
}

/// Parses the head that `received` starts with. Returns `None` if it is incomplete. Only whole lines
/// are parsed, so the result does not depend on how the head arrives in pieces.
pub fn parse<'a>(
    received: &'a [u8],
    space: &'a mut FieldSpace<'a>,
) -> Result<Option<RequestHead<'a>>, Rejection> {
    parse_lines(received, space).map_err(|rejection| rejection.of(received))
}

fn parse_lines<'a>(
    received: &'a [u8],
    space: &'a mut FieldSpace<'a>,
) -> Result<Option<RequestHead<'a>>, Rejection> {
    let within_bound = &received[..received.len().min(MAX_HEAD_BYTES)];
    let lines = within_bound.iter().rposition(|byte| *byte == b'\n');
    let lines = &within_bound[..lines.map_or(0, |last| last + 1)];

    let mut head = Parser::new(&mut []);
    match head.parse_with_uninit_headers(lines, space) {
        Ok(httparse::Status::Complete(length)) => {
            // A complete head has both.
            let (method, target) = (head.method, head.path);
            let request_line = (method.unwrap_or_default(), target.unwrap_or_default());
            check(request_line, head.version == Some(0), head.headers, length).map(Some)
        }
        Ok(httparse::Status::Partial) if received.len() < MAX_HEAD_BYTES => Ok(None),
        Ok(httparse::Status::Partial) if lines.is_empty() => Err(too_long(within_bound)),
        Ok(httparse::Status::Partial) => Err(Rejection::new(
            Status::RequestHeaderFieldsTooLarge,
            "The request head is longer than 16 KiB.\n",
        )),
        Err(error) => Err(malformed(error, lines)),
    }
}

/// Returns the rejection of a request line that is longer than the limit. The status depends on whether
/// the method or the target is too long (RFC 9112, section 3).
fn too_long(request_line: &[u8]) -> Rejection {
    match request_line.iter().position(|byte| !is_token_byte(*byte)) {
        None => Rejection::new(
            Status::NotImplemented,
            "The method is longer than 16 KiB.\n",
        ),
        Some(end) if end > 0 && request_line[end] == b' ' => Rejection::new(
            Status::UriTooLong,
            "The request line is longer than 16 KiB.\n",
        ),
        Some(_) => Rejection::bad_request("The request head is malformed.\n"),
    }
}

fn malformed(error: Error, lines: &[u8]) -> Rejection {
    match error {
        Error::TooManyHeaders => Rejection::new(
            Status::RequestHeaderFieldsTooLarge,
            "The request head has more than 100 fields.\n",
        ),
        Error::Version if names_another_version(lines) => Rejection::new(
            Status::HttpVersionNotSupported,
            "The HTTP version is not supported: expected HTTP/1.0 or HTTP/1.1.\n",
        ),
        _ => Rejection::bad_request("The request head is malformed.\n"),
    }
}

/// Returns whether the request line is well-formed, but has an HTTP version that this server does not
/// support (RFC 9112, sections 2.3 and 3).
fn names_another_version(lines: &[u8]) -> bool {
    let request_line = lines.split(|byte| *byte == b'\n').next().unwrap_or(lines);
    let request_line = request_line.strip_suffix(b"\r").unwrap_or(request_line);
    let mut words = request_line.split(|byte| *byte == b' ').skip(2);
    let version = words.next().unwrap_or_default();
    let is_version = matches!(
        version,
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']
    );
    is_version && words.next().is_none()
}

/// Checks a complete head.
fn check<'a>(
    (method, target): (&'a str, &'a str),
    is_http_1_0: bool,
    fields: &'a [Field<'a>],
    length: usize,
) -> Result<RequestHead<'a>, Rejection> {
    let framing = Framing::parse(fields)?;
    if !is_target(method, target) {
        return Err(Rejection::bad_request("The request target is malformed.\n"));
    }
    // RFC 9112, section 3.2.
    if framing.hosts > 1 || (framing.hosts == 0 && !is_http_1_0) {
        return Err(Rejection::bad_request("Expected exactly one Host field.\n"));
    }
    Ok(RequestHead {
        method,
        target,
        fields,
        length,
        body_length: framing.body_length(is_http_1_0)?,
        is_http_1_0,
        is_kept_alive: !framing.asks_for_close && (framing.asks_for_keep_alive || !is_http_1_0),
        expects_continue: framing.expects_continue && !is_http_1_0,
    })
}

/// What the header fields say about the body and the connection.
#[derive(Default)]
struct Framing {
    hosts: u32,
    content_length: Option<usize>,
    transfer_encoding: Option<TransferEncoding>,
    asks_for_close: bool,
    asks_for_keep_alive: bool,
    expects_continue: bool,
}

impl Framing {
    fn parse(fields: &[Field<'_>]) -> Result<Self, Rejection> {
        let mut framing = Self::default();
        for Field { name, value } in fields {
            if name.eq_ignore_ascii_case("Host") {
                framing.hosts += 1;
                if !is_host(value) {
                    return Err(Rejection::bad_request("Host is malformed.\n"));
                }
            } else if name.eq_ignore_ascii_case("Content-Length") {
                let number = parse_length(value)
                    .ok_or(Rejection::bad_request("Content-Length is not a number.\n"))?;
                if framing.content_length.replace(number).is_some() {
                    return Err(Rejection::bad_request(
                        "Content-Length was sent more than once.\n",
                    ));
                }
            } else if name.eq_ignore_ascii_case("Transfer-Encoding") {
                let codings = &mut framing.transfer_encoding;
                codings.get_or_insert_default().add(value);
            } else if name.eq_ignore_ascii_case("Connection") {
                framing.asks_for_close |= lists(value, b"close");
                framing.asks_for_keep_alive |= lists(value, b"keep-alive");
            } else if name.eq_ignore_ascii_case("Expect") {
                framing.expects_continue |= lists(value, b"100-continue");
            }
        }
        Ok(framing)
    }

    /// Returns the length of the body that must be discarded (RFC 9112, sections 6.1 to 6.3).
    fn body_length(&self, is_http_1_0: bool) -> Result<usize, Rejection> {
        if let Some(transfer_encoding) = &self.transfer_encoding {
            if self.content_length.is_some() || is_http_1_0 {
                return Err(Rejection::bad_request(
                    "Transfer-Encoding cannot be used with Content-Length or HTTP/1.0.\n",
                ));
            }
            return Err(transfer_encoding.rejection());
        }
        match self.content_length.unwrap_or(0) {
            length if length > MAX_BODY_BYTES => Err(Rejection::new(
                Status::ContentTooLarge,
                "The body is longer than 64 KiB.\n",
            )),
            length => Ok(length),
        }
    }
}

/// Returns whether a target has a form that its method allows (RFC 9112, section 3.2). Some characters
/// that a URI must not contain, such as `|`, are accepted because browsers send them. Fragments and
/// bytes beyond ASCII are not.
fn is_target(method: &str, target: &str) -> bool {
    if !target.bytes().all(|byte| byte.is_ascii() && byte != b'#') {
        return false;
    }
    match method {
        "CONNECT" => is_authority_form(target.as_bytes()),
        "OPTIONS" if target == "*" => true,
        _ => target.starts_with('/') || after_authority(target).is_some(),
    }
}

/// The numbers of codings in all Transfer-Encoding fields of a request.
#[derive(Default)]
struct TransferEncoding {
    chunked: u32,
    others: u32,
}

impl TransferEncoding {
    fn add(&mut self, value: &[u8]) {
        for coding in elements(value) {
            if coding.eq_ignore_ascii_case(b"chunked") {
                self.chunked += 1;
            } else {
                self.others += 1;
            }
        }
    }

    /// Returns why a request with these codings is rejected (RFC 9112, sections 6.1 and 6.3).
    fn rejection(&self) -> Rejection {
        match (self.chunked, self.others) {
            // The coding is supported, but a length is required.
            (1, 0) => Rejection::new(
                Status::LengthRequired,
                "Chunked bodies are not accepted: expected Content-Length.\n",
            ),
            (_, 0) => Rejection::bad_request("Transfer-Encoding is malformed.\n"),
            _ => Rejection::new(
                Status::NotImplemented,
                "The transfer coding is not supported.\n",
            ),
        }
    }
}

/// Parses a number that consists of digits only, without a sign. A number that is too large for the
/// type becomes the largest one.
fn parse_length(value: &[u8]) -> Option<usize> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_usize, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| usize::from(byte - b'0'))?;
        Some(number.saturating_mul(10).saturating_add(digit))
    })
}

/// Returns whether a comma-separated list contains an option. Case does not matter.
fn lists(value: &[u8], option: &[u8]) -> bool {
    elements(value).any(|element| element.eq_ignore_ascii_case(option))
}

/// Returns the elements of a comma-separated list, without empty ones (RFC 9110, section 5.6.1).
fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}
