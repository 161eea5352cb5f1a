//! Drives a connection as the event loop does, without a socket. The fuzz target does it this way,
//! too.

use std::time::Instant;

use bounded_http::connection::{Buffers, Connection, MAX_UNSENT};
use bounded_http::request_head::{Rejection, RequestHead, field_space};
use bounded_http::{Request, Service};
use tiny_probe::app::App;

pub const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// What came of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Method and target of each request, and the status it was answered. What is rejected has no
    /// target, and no method but HEAD.
    pub requests: Vec<(String, String, u16)>,
    /// What the client receives.
    pub answers: String,
    /// Whether the connection is still open for requests.
    pub is_open: bool,
}

/// Delivers these pieces, one read each, and takes every answer at once.
pub fn drive<'a>(app: &mut App, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let now = Instant::now();
    let mut connection = Connection::new(now);
    let mut spare = Buffers::default();
    let mut outcome = Outcome {
        requests: Vec::new(),
        answers: String::new(),
        is_open: true,
    };
    for piece in pieces {
        connection.take_spare(&mut spare);
        connection.receive(piece, now);
        loop {
            answer_received(app, &mut connection, &mut outcome, now);
            // The largest page is far below the bound: one answer more may pass it, no more.
            assert!(connection.unsent().len() < 2 * MAX_UNSENT);
            outcome.answers += str::from_utf8(connection.unsent()).expect("answers are text");
            connection.sent(connection.unsent().len(), now);
            if !connection.can_answer() {
                break;
            }
        }
        if connection.wants_half_close() {
            connection.linger(now);
        }
        outcome.is_open = connection.is_idle();
        assert!(
            connection.deadline().is_some(),
            "nothing is waited for forever"
        );
        connection.put_back(&mut spare);
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
        connection.answer(&reply, DATE, false, now);
    }
}

/// The request with a head that was received at `now`.
pub fn request<'a>(head: &RequestHead<'a>, now: Instant) -> Request<'a> {
    Request::new(head.method, head.target)
        .with_fields(head.fields)
        .with_received_at(now)
}

/// The method of what is rejected, as far as it matters to who reads the answer.
pub fn rejected_method(rejection: Rejection) -> String {
    if rejection.is_head { "HEAD" } else { "" }.to_owned()
}
