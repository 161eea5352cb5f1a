//! Drives a connection as the event loop does, but without a socket. The fuzz targets use this as well.

use std::time::Instant;

use bounded_http::internals::connection::{Buffers, Connection, MAX_UNSENT_BYTES};
use bounded_http::internals::request_head::{Rejection, RequestHead, field_space};
use bounded_http::{Request, Service};
use tiny_probe::app::App;

pub const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// The result of delivering some bytes to a connection.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The method and target of each request, and the status of its response. A rejected request has an
    /// empty target, and its method is HEAD or empty.
    pub requests: Vec<(String, String, u16)>,
    /// All bytes that the client receives.
    pub responses: String,
    /// Whether the connection is still open for requests.
    pub is_open: bool,
}

/// Delivers each piece as one read, and takes every response at once.
pub fn drive<'a>(app: &mut App, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let now = Instant::now();
    let mut connection = Connection::new(now);
    let mut spare = Buffers::default();
    let mut outcome = Outcome {
        requests: Vec::new(),
        responses: String::new(),
        is_open: true,
    };
    for piece in pieces {
        connection.borrow_buffers(&mut spare);
        connection.receive(piece, now);
        loop {
            answer_received(app, &mut connection, &mut outcome, now);
            // One response may exceed the limit, and even the largest exposition is far smaller than the limit.
            assert!(connection.unsent().len() < 2 * MAX_UNSENT_BYTES);
            outcome.responses += str::from_utf8(connection.unsent()).expect("responses are text");
            connection.mark_sent(connection.unsent().len(), now);
            if !connection.may_answer() {
                break;
            }
        }
        if connection.wants_to_close_sending_side() {
            connection.linger(now);
        }
        outcome.is_open = connection.has_answered_everything();
        assert!(
            connection.deadline().is_some(),
            "a connection without a deadline"
        );
        connection.return_buffers(&mut spare);
    }
    outcome
}

fn answer_received(
    app: &mut App,
    connection: &mut Connection,
    outcome: &mut Outcome,
    now: Instant,
) {
    while let Some(head) = connection.next_request(&mut field_space()) {
        let (method, target, reply) = match head {
            Ok(head) => {
                let reply = app.answer(&request(&head, now)).split().0;
                (head.method.to_owned(), head.target.to_owned(), reply)
            }
            Err(rejection) => (rejected_method(rejection), String::new(), rejection.reply()),
        };
        outcome
            .requests
            .push((method, target, reply.status().code()));
        connection.respond(&reply, DATE, false, now);
    }
}

/// Returns the request with this head, received at `now`.
pub fn request<'a>(head: &RequestHead<'a>, now: Instant) -> Request<'a> {
    Request::new(head.method, head.target)
        .with_fields(head.fields)
        .with_received_at(now)
}

/// Returns the method of a rejected request, as far as the reader of the response needs it: HEAD or not.
pub fn rejected_method(rejection: Rejection) -> String {
    if rejection.is_head { "HEAD" } else { "" }.to_owned()
}
