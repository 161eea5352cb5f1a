//! Rejects requests that are malformed or whose end is unclear.
//!
//! If a proxy and this loop disagreed about where a request ends, a client could hide a request in the
//! body of another. `tiny_http` 0.12 invites this. It decodes a body as chunked whatever its transfer
//! coding is (CVE-2026-66752), uses the first of several lengths, treats a request whose length is not a
//! number as one without a body, and accepts line breaks in header fields (CVE-2026-66753). It also drops what
//! follows the version in the request line, and the space before a folded line. This module cannot detect either.

use std::borrow::Cow;
use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bounded_http::{Ended, Outcome, Reply, Status, is_token_byte};

use super::response::{connection_has, respond};
use crate::app::Exchange;
use crate::shutdown::spawn;

/// The clients that had a request rejected, each with the time.
///
/// `tiny_http` offers no way to close a connection. It may take what the client sent after a rejected
/// request for further requests, and they must not be served. The response has `Connection: close`, so
/// a client that follows HTTP sends no other request on the connection.
#[derive(Default)]
pub struct Rejections(Vec<(Option<SocketAddr>, Instant)>);

impl Rejections {
    /// How long a client's address is kept. Linux does not reuse the ports of a closed connection for as long
    /// as this, so a new connection is not mistaken for the old one. After a reset, or on the loopback interface
    /// (`tcp_tw_reuse`), it can be: a client that reuses the port then gets no response.
    const KEPT_TIME: Duration = Duration::from_secs(60);

    /// Checks a request. If it must not be served, responds to it or drops it.
    pub fn check(&mut self, received: tiny_http::Request) -> Checked {
        let peer = received.remote_addr().copied();
        self.0.retain(|(_, at)| at.elapsed() < Self::KEPT_TIME);
        if self.0.iter().any(|(rejected, _)| *rejected == peer) {
            // This drops the request without a response.
            received.into_writer();
            return Checked::Dropped;
        }
        let Some(reply) = rejection(&received) else {
            return Checked::Clear(received);
        };
        self.0.push((peer, Instant::now()));
        Checked::Rejected(reject(received, reply))
    }
}

/// The result of a check.
pub enum Checked {
    /// The request can be served.
    Clear(tiny_http::Request),
    /// It was rejected. The value is what to record.
    Rejected(Ended<Exchange>),
    /// It arrived after one that was rejected, and was dropped.
    Dropped,
}

/// Responds to a request that is rejected, on a thread of its own, which may wait for the body. Returns what
/// to record.
fn reject(mut received: tiny_http::Request, reply: Reply) -> Ended<Exchange> {
    let is_head = *received.method() == tiny_http::Method::Head;
    let ended = Ended {
        memo: None,
        outcome: Outcome::Rejected,
        status: reply.status(),
        body_length: if is_head { 0 } else { reply.body().len() },
        duration: Duration::ZERO,
        peer: received.remote_addr().copied(),
        body: Cow::Borrowed(b""),
    };
    let respond_late = move || {
        // Read the body first, because a client that is still sending might not see the response. But a
        // client with `Expect` waits for the response before it sends, and an upgraded connection has no end.
        let mut headers = received.headers().iter();
        let expects = headers.any(|header| header.field.equiv("Expect"));
        if !expects && !connection_has(&received, "upgrade") {
            discard(received.as_reader());
        }
        // Ignore write errors: the client may have disconnected.
        let _ = respond(received, &reply, true);
    };
    // Without a thread, the client gets no response.
    let _ = spawn("reject", Box::new(respond_late));
    ended
}

/// Discards the beginning of a body, up to 64 KiB.
fn discard(body: &mut dyn Read) {
    let mut left = 64 * 1024_usize;
    while left > 0 {
        match body.read(&mut [0; 1024]) {
            Ok(count) if count > 0 => left = left.saturating_sub(count),
            _ => return,
        }
    }
}

/// Returns the response to a request that must not be served.
fn rejection(received: &tiny_http::Request) -> Option<Reply> {
    let (mut chunked, mut other_codings, mut lengths) = (0, 0, 0);
    let mut is_well_formed = is_text(received.url());
    // The number may be too large. With a coding, it is ignored.
    let mut is_number = received.body_length().is_some();
    for header in received.headers() {
        let (name, value) = (header.field.as_str().as_str(), header.value.as_str());
        is_well_formed &= name.bytes().all(is_token_byte) && is_text(value);
        if header.field.equiv("Content-Length") {
            lengths += 1;
            is_number &= value.bytes().all(|byte| byte.is_ascii_digit());
        } else if header.field.equiv("Transfer-Encoding") {
            if value.eq_ignore_ascii_case("chunked") {
                chunked += 1;
            } else {
                other_codings += 1;
            }
        }
    }
    let (status, reason) = match (chunked, other_codings, lengths) {
        _ if !is_well_formed => (Status::BadRequest, "The request head is malformed.\n"),
        (0, 0, 0) => return None,
        (0, 0, 1) if is_number => return None,
        (1, 0, 0) => (
            Status::LengthRequired,
            "Chunked bodies are not accepted: expected Content-Length.\n",
        ),
        (_, 1.., 0) => (
            Status::NotImplemented,
            "The transfer coding is not supported.\n",
        ),
        _ => (
            Status::BadRequest,
            "Expected one Content-Length and no Transfer-Encoding.\n",
        ),
    };
    Some(Reply::text(status, reason))
}

/// Returns whether a text has no character that another parser may take for the end of a line.
fn is_text(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte == b'\t' || !byte.is_ascii_control())
}
