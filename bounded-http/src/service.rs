//! What the server asks of a service.

use std::borrow::Cow;
use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use crate::http::Status;
use crate::reply::Reply;
use crate::request::Request;

/// Answers requests. The server calls all methods on one thread, so a service needs no locks.
///
/// A closure `FnMut(&Request<'_>) -> Reply` is a service, too.
///
/// For each request, the server calls [`answer`](Self::answer) or [`refuse`](Self::refuse), then
/// [`ended`](Self::ended). When connections or memory are scarce, it calls
/// [`is_urgent`](Self::is_urgent) before that, perhaps more than once. For an invalid request, which the
/// server rejects itself, it calls only `ended`.
///
/// ```
/// use bounded_http::{Ended, Reply, Request, Service, Status};
///
/// /// Counts the bytes that it has sent for each path.
/// struct Counted {
///     sent: std::collections::HashMap<String, usize>,
/// }
///
/// impl Service for Counted {
///     type Memo = String;
///
///     fn answer(&mut self, request: &Request<'_>) -> Reply<String> {
///         let reply = Reply::text(Status::Ok, "Hello.\n");
///         reply.remember(request.path().to_owned())
///     }
///
///     fn ended(&mut self, ended: Ended<String>) {
///         if let Some(path) = ended.memo {
///             *self.sent.entry(path).or_default() += ended.body_length;
///         }
///     }
/// }
/// ```
///
/// # Panics
///
/// A panic in `answer`, `refuse` or `ended` closes the connection that it concerns and affects no
/// other. A panic in any other method can end the server.
pub trait Service {
    /// What the service remembers about a request between [`answer`](Self::answer) and
    /// [`ended`](Self::ended), such as the labels of a metric or the beginning of a log line. The
    /// server moves it from one to the other, so each memo comes back exactly once. Use `()` if there
    /// is nothing to remember.
    type Memo;

    /// Answers a request. It must not block: every client waits until it returns. A response that
    /// takes time is returned at once and sent [later](Reply::after).
    fn answer(&mut self, request: &Request<'_>) -> Reply<Self::Memo>;

    /// Called exactly once for each request, when its exchange has ended, with any [outcome](Outcome).
    fn ended(&mut self, ended: Ended<Self::Memo>) {
        let _ = ended;
    }

    /// Returns whether a request must be answered even when every connection is taken, or when the
    /// connections hold as much memory as they may. Health checks and scrapes are such requests. By
    /// default, none is urgent.
    fn is_urgent(&self, request: &Request<'_>) -> bool {
        let _ = request;
        false
    }

    /// Called instead of [`answer`](Self::answer) for a request that gets a 503 because every
    /// connection is taken. Returns what the service remembers about it.
    fn refuse(&mut self, request: &Request<'_>) -> Option<Self::Memo> {
        let _ = request;
        None
    }

    /// Called when a connection has been opened or closed, with the number of open connections.
    fn connections_changed(&mut self, open: usize) {
        let _ = open;
    }

    /// Called each time before the server waits for its sockets, for work that is done in batches, such
    /// as writing log lines. If it returns a duration, the server calls it again within that time, and
    /// within a year.
    fn before_wait(&mut self) -> Option<Duration> {
        None
    }

    /// Called with a message about the server itself: that accepting a connection failed, or that it has
    /// reset some to limit its memory. The server itself prints nothing.
    fn report(&mut self, message: &dyn Display) {
        let _ = message;
    }
}

impl<F> Service for F
where
    F: FnMut(&Request<'_>) -> Reply,
{
    type Memo = ();

    fn answer(&mut self, request: &Request<'_>) -> Reply {
        self(request)
    }
}

/// An exchange that has ended.
#[derive(Debug)]
pub struct Ended<M> {
    /// What the service remembers about the request. `None` if the server rejected the request, if
    /// [`Service::refuse`] returned `None`, and after a panic.
    pub memo: Option<M>,
    /// How it ended.
    pub outcome: Outcome,
    /// The status of the response, whether or not it was sent.
    pub status: Status,
    /// The number of body bytes that were sent or are being sent. 0 for HEAD.
    pub body_length: usize,
    /// The time from when the server [took up](Request::received_at) the request until the response was ready,
    /// or until the client disconnected. For [`Ending::Stall`](crate::Ending::Stall) and [`Ending::Hang`](crate::Ending::Hang),
    /// until the connection ended.
    pub duration: Duration,
    /// The client's address.
    pub peer: Option<SocketAddr>,
    /// The body of the response. A service that builds large bodies can reuse its memory. Empty if the
    /// exchange outlasted its response, so that the memory is freed meanwhile.
    pub body: Cow<'static, [u8]>,
}

impl<M> Ended<M> {
    /// Creates the end of an exchange with this reply, in which the whole body was sent at once. A test
    /// of a service, or another server, sets the duration and the client's address itself.
    pub fn of(reply: Reply<M>, outcome: Outcome) -> Self {
        let (reply, memo) = reply.split();
        Self {
            memo: Some(memo),
            outcome,
            status: reply.status(),
            body_length: reply.body().len(),
            duration: Duration::ZERO,
            peer: None,
            body: reply.into_body(),
        }
    }
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The response is on its way to the client: all of it, or the part that its
    /// [`Ending`](crate::Ending) allows.
    Responded,
    /// The request was malformed, too long or too slow. The server sent the corresponding status.
    Rejected,
    /// The client disconnected before the response was sent. nginx logs this as 499.
    Disconnected,
    /// No response was sent, on purpose: see [`Ending::is_silent`](crate::Ending::is_silent). nginx
    /// logs this as 444.
    Dropped,
    /// The service panicked, and the connection was closed without a response. The status is 500.
    Panicked,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_a_closure_no_request_is_urgent_and_nothing_is_called_before_the_server_waits() {
        let mut service = |_: &Request<'_>| Reply::text(Status::Ok, "");
        let request = Request::new("GET", "/");
        assert!(!service.is_urgent(&request));
        assert_eq!(service.refuse(&request), None);
        assert_eq!(service.before_wait(), None);
    }
}
