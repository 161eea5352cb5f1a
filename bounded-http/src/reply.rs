//! The response that a service returns.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use crate::http::{Status, is_token_byte};
use crate::limits::MAX_WAIT;

const TEXT: &str = "text/plain; charset=utf-8";

/// A response, and how to send it.
///
/// The server adds `Date`, `Content-Length` and, where it is needed, `Connection`. It omits the body
/// when it responds to a HEAD request.
///
/// `M` is what the service remembers about the request until its exchange has
/// [ended](crate::Service::ended). Most services remember nothing.
///
/// ```
/// use std::time::Duration;
/// use bounded_http::{Reply, Status};
///
/// let reply = Reply::new(Status::Ok, "application/json", &b"{}"[..])
///     .field("Cache-Control", "no-store")
///     .after(Duration::from_millis(50));
/// assert_eq!(reply.body(), b"{}");
/// assert_eq!(reply.fields().next(), Some(("Cache-Control", "no-store")));
/// ```
#[derive(Debug)]
pub struct Reply<M = ()> {
    pub(crate) response: Response,
    pub(crate) sending: Sending,
    pub(crate) memo: M,
}

/// What a reply sends.
#[derive(Debug)]
pub(crate) struct Response {
    pub status: Status,
    pub content_type: &'static str,
    /// The added header fields, each with a line break before it.
    pub fields: String,
    pub body: Cow<'static, [u8]>,
}

/// When and how a response is sent. By default: at once and whole.
#[derive(Debug, Default)]
pub(crate) struct Sending {
    pub delay: Duration,
    /// The CPU time that the server's thread uses after the delay.
    pub work: Duration,
    pub ending: Ending,
}

/// How a response ends. All except the first are faults, to test how clients handle them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// The whole response is sent.
    #[default]
    Whole,
    /// No byte is sent. The connection is reset.
    Reset,
    /// No byte is sent. The connection is closed in an orderly way.
    Close,
    /// The head and half of the body are sent. Then the connection is closed.
    Cut,
    /// The head and half of the body are sent. The connection stays open for 60 seconds, or until the
    /// client disconnects.
    Stall,
    /// No byte is sent. The connection stays open for 60 seconds, or until the client disconnects.
    Hang,
}

impl Ending {
    /// Returns whether no byte of the response is sent.
    pub fn is_silent(self) -> bool {
        matches!(self, Self::Reset | Self::Close | Self::Hang)
    }

    /// Returns whether the connection stays open although no more bytes are sent.
    pub(crate) fn stays_open(self) -> bool {
        matches!(self, Self::Stall | Self::Hang)
    }
}

impl Response {
    fn new(status: Status, content_type: &'static str, body: Cow<'static, [u8]>) -> Self {
        let mut response = Self {
            status,
            content_type,
            fields: String::new(),
            body,
        };
        if response.content_type().is_none() {
            response.body = Cow::default();
        }
        response
    }

    fn add_field(&mut self, name: &str, value: &str) {
        assert!(
            !name.is_empty() && name.bytes().all(is_token_byte),
            "{name:?} is not the name of a header field"
        );
        assert!(
            !value.contains(['\r', '\n', '\0']),
            "{value:?} is not the value of a header field"
        );
        for part in ["\r\n", name, ": ", value] {
            self.fields.push_str(part);
        }
    }

    pub fn content_type(&self) -> Option<&'static str> {
        let has_body = !matches!(self.status, Status::NoContent | Status::NotModified);
        has_body.then_some(self.content_type)
    }
}

impl Reply {
    /// Creates a response with a body of this media type. A 204 or 304 has none (RFC 9110, section 6.4.1), so its
    /// body is dropped: the client would take it for the next response.
    pub fn new(
        status: Status,
        content_type: &'static str,
        body: impl Into<Cow<'static, [u8]>>,
    ) -> Self {
        let body = body.into();
        Self {
            response: Response::new(status, content_type, body),
            sending: Sending::default(),
            memo: (),
        }
    }

    /// Creates a response with a body of plain text.
    pub fn text(status: Status, text: impl Into<Cow<'static, str>>) -> Self {
        let body = match text.into() {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        Self::new(status, TEXT, body)
    }

    /// Creates a 405 that names the allowed methods, such as `"GET, HEAD"`, in its body and in `Allow`.
    pub fn method_not_allowed(methods: &str) -> Self {
        let text = format!("Method not allowed. Allowed here: {methods}.\n");
        Self::text(Status::MethodNotAllowed, text).field("Allow", methods)
    }

    /// Creates the response to OPTIONS: a 204 that names the allowed methods in `Allow`.
    pub fn options(methods: &str) -> Self {
        Self::text(Status::NoContent, "").field("Allow", methods)
    }
}

impl<M> Reply<M> {
    /// Adds a header field.
    ///
    /// # Panics
    /// If the name is not a token, or if the value contains CR, LF or NUL, which could end the line
    /// (RFC 9110, section 5.5). Check values that come from a client first.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.response.add_field(name, value);
        self
    }

    /// Delays the response, by a year at most. Meanwhile, other clients are served, and later requests on
    /// the same connection wait.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.sending.delay = delay.min(MAX_WAIT);
        self
    }

    /// Makes the server's thread use this much CPU time after the delay, before it sends the response.
    /// Meanwhile, other clients wait. Between two such responses they are served.
    #[must_use]
    pub fn work(mut self, work: Duration) -> Self {
        self.sending.work = work;
        self
    }

    /// Sets how the response ends.
    #[must_use]
    pub fn end_with(mut self, ending: Ending) -> Self {
        self.sending.ending = ending;
        self
    }

    /// Adds what the service remembers about the request.
    pub fn remember<N>(self, memo: N) -> Reply<N> {
        Reply {
            response: self.response,
            sending: self.sending,
            memo,
        }
    }

    /// Separates the response from what the service remembers.
    pub fn split(self) -> (Reply, M) {
        let Self {
            response,
            sending,
            memo,
        } = self;
        let reply = Reply {
            response,
            sending,
            memo: (),
        };
        (reply, memo)
    }

    /// Returns the status.
    pub fn status(&self) -> Status {
        self.response.status
    }

    /// Returns the media type of the body, or `None` if the response has no body: a 204 or 304 (RFC
    /// 9110, section 6.4.1).
    pub fn content_type(&self) -> Option<&'static str> {
        self.response.content_type()
    }

    /// Returns the names and values of the [added](Self::field) header fields.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.response.fields.lines().filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name, value.strip_prefix(' ')?))
        })
    }

    /// Returns the body.
    pub fn body(&self) -> &[u8] {
        &self.response.body
    }

    /// Returns how long the response is delayed.
    pub fn delay(&self) -> Duration {
        self.sending.delay
    }

    /// Returns the CPU time that the server's thread uses for the response.
    pub fn work_time(&self) -> Duration {
        self.sending.work
    }

    /// Returns how the response ends.
    pub fn ending(&self) -> Ending {
        self.sending.ending
    }

    /// Returns the body, so that its memory can be reused.
    pub fn into_body(self) -> Cow<'static, [u8]> {
        self.response.body
    }

    /// Returns the bytes of memory that the body holds.
    pub(crate) fn held_bytes(&self) -> usize {
        match &self.response.body {
            Cow::Borrowed(_) => 0,
            Cow::Owned(body) => body.capacity(),
        }
    }

    /// Replaces this response with a 503 for the same request.
    pub(crate) fn replaced(self, text: &'static str) -> Self {
        unavailable(text).remember(self.memo)
    }
}

/// Creates a 503 that asks the client to try again.
pub(crate) fn unavailable(text: &'static str) -> Reply {
    Reply::text(Status::ServiceUnavailable, text).field("Retry-After", "1")
}

impl<M> fmt::Display for Reply<M> {
    /// Writes the status and the body, for the messages of failed tests.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.response.body);
        write!(f, "{} {body}", self.response.status.line())
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn a_field_that_could_end_its_line_is_rejected() {
        for (name, value) in [
            ("X", "1\r\nY: 2"),
            ("X", "1\n"),
            ("X", "\0"),
            ("X: 1\r\nY", "2"),
            ("", "1"),
            ("X ", "1"),
        ] {
            let result = catch_unwind(|| Reply::text(Status::Ok, "").field(name, value));
            assert!(result.is_err(), "{name:?}: {value:?}");
        }
        let reply = Reply::text(Status::Ok, "")
            .field("X", "a: b, é")
            .field("Y", "");
        let fields: Vec<_> = reply.fields().collect();
        assert_eq!(fields, [("X", "a: b, é"), ("Y", "")]);
    }

    #[test]
    fn a_reply_holds_the_memory_of_an_owned_body() {
        let mut body = String::with_capacity(100);
        body.push_str("I'm ok!");
        let reply = Reply::text(Status::Ok, body);
        assert_eq!(reply.held_bytes(), 100);
        assert_eq!(Reply::text(Status::Ok, "I'm ok!").held_bytes(), 0);
    }

    #[test]
    fn a_test_of_a_service_can_read_what_a_reply_says() {
        let reply = Reply::new(Status::NotFound, "text/html", &b"x"[..])
            .after(Duration::from_secs(1))
            .work(Duration::from_secs(2))
            .end_with(Ending::Cut);
        assert_eq!(reply.to_string(), "404 Not Found x");
        assert_eq!(reply.status(), Status::NotFound);
        assert_eq!(reply.content_type(), Some("text/html"));
        assert_eq!(reply.delay(), Duration::from_secs(1));
        assert_eq!(reply.work_time(), Duration::from_secs(2));
        assert_eq!(reply.ending(), Ending::Cut);
        assert_eq!(&*reply.into_body(), b"x");
    }

    #[test]
    fn a_response_without_content_has_no_body() {
        for status in [Status::NoContent, Status::NotModified] {
            let reply = Reply::text(status, "x");
            assert_eq!((reply.content_type(), reply.body()), (None, &b""[..]));
        }
        assert_eq!(Reply::options("GET").content_type(), None);
    }
}
