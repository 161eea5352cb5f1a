//! A request head, read and judged as RFC 9112 has it for a server that takes no bodies.
//!
//! Whatever could be read in two ways is rejected: what this server takes for one request and a
//! proxy in front of it for two is how requests are smuggled.

use std::mem::MaybeUninit;

use httparse::{Error, Header, Request as Parser};

use crate::app::Reply;
use crate::http::Status;

/// The longest request head, in bytes.
pub const MAX_HEAD: usize = 8 * 1024;
/// The most fields in a head.
pub const MAX_FIELDS: usize = 64;
/// The longest body that is discarded, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// What a complete head says, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
pub struct RequestHead<'a> {
    /// The method, a token.
    pub method: &'a str,
    /// The request target, in any of its forms.
    pub target: &'a str,
    /// The bytes that the head takes, its final empty line included.
    pub length: usize,
    /// The bytes of body that follow it.
    pub body_length: usize,
    /// HTTP/1.0, where a connection that is kept alive is to be told so.
    pub is_http_1_0: bool,
    /// Whether the connection stays open after the answer.
    pub keep_alive: bool,
    /// Whether the client waits for a 100 before it sends the body.
    pub expects_continue: bool,
}

/// Why a request is rejected. The connection is closed after the answer: where the next request
/// would start is anybody's guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The status of the answer.
    pub status: Status,
    /// What was wrong, for the client to read.
    pub reason: &'static str,
}

impl Rejection {
    const fn new(status: Status, reason: &'static str) -> Self {
        Self { status, reason }
    }

    const fn bad_request(reason: &'static str) -> Self {
        Self::new(Status::BadRequest, reason)
    }

    /// The answer that says so.
    pub fn reply(self) -> Reply {
        Reply::error(self.status, self.reason)
    }
}

/// Reads the head that `received` starts with; `None` if more is to come. The result is the same
/// however the bytes arrive: it depends on whole lines only.
pub fn parse(received: &[u8]) -> Result<Option<RequestHead<'_>>, Rejection> {
    let within_bound = &received[..received.len().min(MAX_HEAD)];
    let lines = within_bound.iter().rposition(|byte| *byte == b'\n');
    let lines = &within_bound[..lines.map_or(0, |last| last + 1)];

    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut head = Parser::new(&mut []);
    match head.parse_with_uninit_headers(lines, &mut fields) {
        Ok(httparse::Status::Complete(length)) => judge(&head, length).map(Some),
        Ok(httparse::Status::Partial) if received.len() < MAX_HEAD => Ok(None),
        Ok(httparse::Status::Partial) if lines.is_empty() => Err(Rejection::new(
            Status::UriTooLong,
            "The request line is longer than 8 KiB.\n",
        )),
        Ok(httparse::Status::Partial) => Err(Rejection::new(
            Status::RequestHeaderFieldsTooLarge,
            "The request head is longer than 8 KiB.\n",
        )),
        Err(error) => Err(malformed(error, lines)),
    }
}

fn malformed(error: Error, lines: &[u8]) -> Rejection {
    match error {
        Error::TooManyHeaders => Rejection::new(
            Status::RequestHeaderFieldsTooLarge,
            "The request head has more than 64 fields.\n",
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

/// Reads the fields that matter. All others are ignored.
fn judge<'a>(head: &Parser<'_, 'a>, length: usize) -> Result<RequestHead<'a>, Rejection> {
    // Both are there when the head is complete.
    let (method, target) = (
        head.method.unwrap_or_default(),
        head.path.unwrap_or_default(),
    );
    let is_http_1_0 = head.version == Some(0);
    let mut hosts = 0;
    let mut content_length = None;
    let mut transfer_encoding = false;
    let (mut close, mut keep_alive) = (false, false);
    let mut expects_continue = false;
    for Header { name, value } in head.headers.iter() {
        if name.eq_ignore_ascii_case("Host") {
            hosts += 1;
            if !is_authority(value) {
                return Err(Rejection::bad_request("Host is malformed.\n"));
            }
        } else if name.eq_ignore_ascii_case("Content-Length") {
            let number = read_length(value)
                .ok_or(Rejection::bad_request("Content-Length is no number.\n"))?;
            if content_length.replace(number).is_some() {
                return Err(Rejection::bad_request("Content-Length is there twice.\n"));
            }
        } else if name.eq_ignore_ascii_case("Transfer-Encoding") {
            transfer_encoding = true;
        } else if name.eq_ignore_ascii_case("Connection") {
            close |= lists(value, b"close");
            keep_alive |= lists(value, b"keep-alive");
        } else if name.eq_ignore_ascii_case("Expect") {
            expects_continue |= value.eq_ignore_ascii_case(b"100-continue");
        }
    }

    if !is_target(method, target) {
        return Err(Rejection::bad_request("The request target is malformed.\n"));
    }
    // RFC 9112, section 3.2.
    if hosts > 1 || (hosts == 0 && !is_http_1_0) {
        return Err(Rejection::bad_request(
            "A request needs one Host, and one only.\n",
        ));
    }
    // RFC 9112, section 6.1.
    if transfer_encoding && (content_length.is_some() || is_http_1_0) {
        return Err(Rejection::bad_request(
            "Transfer-Encoding goes neither with Content-Length nor with HTTP/1.0.\n",
        ));
    }
    if transfer_encoding {
        return Err(Rejection::new(
            Status::NotImplemented,
            "No transfer coding is understood here.\n",
        ));
    }
    let body_length = content_length.unwrap_or(0);
    if body_length > MAX_BODY {
        return Err(Rejection::new(
            Status::ContentTooLarge,
            "The body is longer than 64 KiB.\n",
        ));
    }
    Ok(RequestHead {
        method,
        target,
        length,
        body_length,
        is_http_1_0,
        keep_alive: !close && (keep_alive || !is_http_1_0),
        expects_continue: expects_continue && !is_http_1_0,
    })
}

/// Whether a target has the shape of origin-form, absolute-form, authority-form (for CONNECT only)
/// or asterisk-form (RFC 9112, section 3.2). What it names is for the app to say.
fn is_target(method: &str, target: &str) -> bool {
    target.starts_with('/') || target.contains("://") || target == "*" || method == "CONNECT"
}

/// Whether every byte may stand in a host and port (RFC 3986, sections 3.2.2 and 3.2.3).
fn is_authority(value: &[u8]) -> bool {
    let may_stand =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%:[]!$&'()*+,;=".contains(byte);
    value.iter().all(may_stand)
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
    value
        .split(|byte| *byte == b',')
        .any(|element| element.trim_ascii().eq_ignore_ascii_case(option))
}
