//! A request head, read and judged as RFC 9112 has it for a server that takes no bodies.
//!
//! Whatever could be read in two ways is rejected: what this server takes for one request and a
//! proxy in front of it for two is how requests are smuggled.

use std::mem::MaybeUninit;

use httparse::{Error, Header, Request as Parser};

use crate::app::{Reply, Request};
use crate::http::{Status, after_authority, is_authority_form, is_host, is_token_byte};

/// The longest request head, in bytes. A browser sends the cookies of every port of localhost, which
/// can take more than 8 KiB.
pub const MAX_HEAD: usize = 16 * 1024;
/// The most fields in a head. Each complete line of a head that arrives in pieces has it parsed from
/// its start, so that this also limits how often.
pub const MAX_FIELDS: usize = 100;
/// The longest body that is discarded, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// What a complete head says, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
pub struct RequestHead<'a> {
    /// The method, a token.
    pub method: &'a str,
    /// The request target, in any of its forms.
    pub target: &'a str,
    /// `Accept`, if it is there once.
    pub accept: Option<&'a [u8]>,
    /// `traceparent`, if it is there once.
    pub traceparent: Option<&'a [u8]>,
    /// The bytes that the head takes, its final empty line included.
    pub length: usize,
    /// The bytes of body that follow it.
    pub body_length: usize,
    /// HTTP/1.0, where a connection that is kept alive is to be told so.
    pub is_http_1_0: bool,
    /// Whether the connection stays open after the answer.
    pub keep_alive: bool,
    /// Whether the client waits for an answer before it sends the body.
    pub expects_continue: bool,
}

impl<'a> RequestHead<'a> {
    /// The part of the head that the service looks at.
    pub fn request(&self) -> Request<'a> {
        Request {
            method: self.method,
            target: self.target,
            accept: self.accept,
            traceparent: self.traceparent,
        }
    }
}

/// Why a request is rejected. The connection is closed after the answer: where the next request
/// would start is anybody's guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The status of the answer.
    pub status: Status,
    /// What was wrong, for the client to read.
    pub reason: &'static str,
    /// Whether it is a HEAD that is rejected: nothing but a head answers it, whatever the status
    /// (RFC 9110, section 9.3.2).
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

    /// The same, of what was received so far.
    fn of(self, received: &[u8]) -> Self {
        Self {
            is_head: received.starts_with(b"HEAD "),
            ..self
        }
    }

    /// The answer that says so.
    pub fn reply(self) -> Reply {
        Reply {
            is_to_head: self.is_head,
            ..Reply::error(self.status, self.reason)
        }
    }
}

/// Why a head is rejected of which only this much was received in time.
pub fn timed_out(received: &[u8]) -> Rejection {
    Rejection::new(
        Status::RequestTimeout,
        "The request head took longer than 10 seconds.\n",
    )
    .of(received)
}

/// Reads the head that `received` starts with; `None` if more is to come. The result is the same
/// however the bytes arrive: it depends on whole lines only.
pub fn parse(received: &[u8]) -> Result<Option<RequestHead<'_>>, Rejection> {
    parse_lines(received).map_err(|rejection| rejection.of(received))
}

fn parse_lines(received: &[u8]) -> Result<Option<RequestHead<'_>>, Rejection> {
    let within_bound = &received[..received.len().min(MAX_HEAD)];
    let lines = within_bound.iter().rposition(|byte| *byte == b'\n');
    let lines = &within_bound[..lines.map_or(0, |last| last + 1)];

    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut head = Parser::new(&mut []);
    match head.parse_with_uninit_headers(lines, &mut fields) {
        Ok(httparse::Status::Complete(length)) => judge(&head, length).map(Some),
        Ok(httparse::Status::Partial) if received.len() < MAX_HEAD => Ok(None),
        Ok(httparse::Status::Partial) if lines.is_empty() => Err(too_long(within_bound)),
        Ok(httparse::Status::Partial) => Err(Rejection::new(
            Status::RequestHeaderFieldsTooLarge,
            "The request head is longer than 16 KiB.\n",
        )),
        Err(error) => Err(malformed(error, lines)),
    }
}

/// What is too long of a request line that does not end within the bound: the method or the target
/// (RFC 9112, section 3).
fn too_long(request_line: &[u8]) -> Rejection {
    match request_line.iter().position(|byte| !is_token_byte(*byte)) {
        None => Rejection::new(Status::NotImplemented, "No method is 16 KiB long.\n"),
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
            "Only HTTP/1.0 and HTTP/1.1 are spoken here.\n",
        ),
        _ => Rejection::bad_request("The request head is malformed.\n"),
    }
}

/// Whether the request line is well-formed but for a version that is not spoken here (RFC 9112,
/// sections 2.3 and 3).
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

/// Judges a complete head.
fn judge<'a>(head: &Parser<'_, 'a>, length: usize) -> Result<RequestHead<'a>, Rejection> {
    // Both are there when the head is complete.
    let (method, target) = (
        head.method.unwrap_or_default(),
        head.path.unwrap_or_default(),
    );
    let is_http_1_0 = head.version == Some(0);
    let fields = Fields::read(head.headers)?;
    if !is_target(method, target) {
        return Err(Rejection::bad_request("The request target is malformed.\n"));
    }
    // RFC 9112, section 3.2.
    if fields.hosts > 1 || (fields.hosts == 0 && !is_http_1_0) {
        return Err(Rejection::bad_request(
            "A request needs one Host, and one only.\n",
        ));
    }
    Ok(RequestHead {
        method,
        target,
        accept: fields.accept.value(),
        traceparent: fields.traceparent.value(),
        length,
        body_length: fields.body_length(is_http_1_0)?,
        is_http_1_0,
        keep_alive: !fields.close && (fields.keep_alive || !is_http_1_0),
        expects_continue: fields.expects_continue && !is_http_1_0,
    })
}

/// The fields that matter. All others are ignored.
#[derive(Default)]
struct Fields<'a> {
    hosts: u32,
    content_length: Option<usize>,
    transfer_encoding: Option<TransferEncoding>,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    accept: Once<'a>,
    traceparent: Once<'a>,
}

/// A field whose value counts if it is there once.
#[derive(Default)]
struct Once<'a> {
    last: Option<&'a [u8]>,
    is_repeated: bool,
}

impl<'a> Once<'a> {
    fn note(&mut self, value: &'a [u8]) {
        self.is_repeated |= self.last.replace(value).is_some();
    }

    fn value(&self) -> Option<&'a [u8]> {
        self.last.filter(|_| !self.is_repeated)
    }
}

impl<'a> Fields<'a> {
    fn read(headers: &[Header<'a>]) -> Result<Self, Rejection> {
        let mut fields = Self::default();
        for Header { name, value } in headers {
            if name.eq_ignore_ascii_case("Host") {
                fields.hosts += 1;
                if !is_host(value) {
                    return Err(Rejection::bad_request("Host is malformed.\n"));
                }
            } else if name.eq_ignore_ascii_case("Content-Length") {
                let number = read_length(value)
                    .ok_or(Rejection::bad_request("Content-Length is no number.\n"))?;
                if fields.content_length.replace(number).is_some() {
                    return Err(Rejection::bad_request("Content-Length is there twice.\n"));
                }
            } else if name.eq_ignore_ascii_case("Transfer-Encoding") {
                let codings = &mut fields.transfer_encoding;
                codings.get_or_insert_default().add(value);
            } else if name.eq_ignore_ascii_case("Connection") {
                fields.close |= lists(value, b"close");
                fields.keep_alive |= lists(value, b"keep-alive");
            } else if name.eq_ignore_ascii_case("Expect") {
                fields.expects_continue |= lists(value, b"100-continue");
            } else if name.eq_ignore_ascii_case("Accept") {
                fields.accept.note(value);
            } else if name.eq_ignore_ascii_case("traceparent") {
                fields.traceparent.note(value);
            }
        }
        Ok(fields)
    }

    /// How long the body is that is to be discarded (RFC 9112, sections 6.1 to 6.3).
    fn body_length(&self, is_http_1_0: bool) -> Result<usize, Rejection> {
        if let Some(transfer_encoding) = &self.transfer_encoding {
            if self.content_length.is_some() || is_http_1_0 {
                return Err(Rejection::bad_request(
                    "Transfer-Encoding goes neither with Content-Length nor with HTTP/1.0.\n",
                ));
            }
            return Err(transfer_encoding.rejection());
        }
        match self.content_length.unwrap_or(0) {
            length if length > MAX_BODY => Err(Rejection::new(
                Status::ContentTooLarge,
                "The body is longer than 64 KiB.\n",
            )),
            length => Ok(length),
        }
    }
}

/// Whether a target has the form that goes with its method (RFC 9112, section 3.2). What it names is
/// for the app to say. Some of what a URI may not hold, a `|` say, is let through, because browsers
/// send it; a fragment and bytes beyond ASCII are not.
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

/// The codings of a request, over all its Transfer-Encoding fields.
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

    /// Why a request with these is rejected (RFC 9112, sections 6.1 and 6.3).
    fn rejection(&self) -> Rejection {
        match (self.chunked, self.others) {
            // It is understood, and not wanted.
            (1, 0) => Rejection::new(
                Status::LengthRequired,
                "A body needs a Content-Length here.\n",
            ),
            (_, 0) => Rejection::bad_request("Transfer-Encoding is malformed.\n"),
            _ => Rejection::new(
                Status::NotImplemented,
                "No transfer coding but chunked is understood here.\n",
            ),
        }
    }
}

/// Digits and nothing else: no sign, no list. More than fits is as good as the largest that does.
fn read_length(value: &[u8]) -> Option<usize> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_usize, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| usize::from(byte - b'0'))?;
        Some(number.saturating_mul(10).saturating_add(digit))
    })
}

/// Whether a comma-separated list names an option, in any case.
fn lists(value: &[u8], option: &[u8]) -> bool {
    elements(value).any(|element| element.eq_ignore_ascii_case(option))
}

/// The elements of a comma-separated list; empty ones do not count (RFC 9110, section 5.6.1).
fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}
