//! What the server asks of a service.

use std::borrow::Cow;
use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use crate::http::Status;
use crate::reply::Reply;
use crate::request::Request;

/// Answers requests. The server calls it on one thread, so it needs no locks.
///
/// A closure `FnMut(&Request) -> Reply` is a service, too.
pub trait Service {
    /// What the service remembers of a request from [`answer`](Self::answer) to
    /// [`ended`](Self::ended): labels of a metric, the beginning of a log line. It is moved through the
    /// server, so that each is given back exactly once.
    type Memo;

    /// Answers a request. It must not block: for as long as it takes, everybody waits.
    fn answer(&mut self, request: &Request<'_>) -> Reply<Self::Memo>;

    /// Called exactly once for each request, when its exchange has ended in whichever way.
    fn ended(&mut self, ended: Ended<Self::Memo>) {
        let _ = ended;
    }

    /// Whether a request must be answered even when every connection is taken: those with which an
    /// operator sees that this is so, such as health checks and scrapes.
    fn is_urgent(&self, request: &Request<'_>) -> bool {
        let _ = request;
        false
    }

    /// Called instead of [`answer`](Self::answer) for a request that gets a 503 because every
    /// connection is taken. Returns what the service remembers of it.
    fn refuse(&mut self, request: &Request<'_>) -> Option<Self::Memo> {
        let _ = request;
        None
    }

    /// Called when the number of open connections has changed.
    fn connections_changed(&mut self, open: usize) {
        let _ = open;
    }

    /// Called before the server waits for sockets. Returns after which time to call it again if
    /// nothing happens: when it could not finish what it does there, such as writing log lines.
    fn before_wait(&mut self) -> Option<Duration> {
        None
    }

    /// Takes a message about the server itself: it cannot accept connections, or resets some to
    /// stay within its memory. The server prints nothing.
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

/// How an exchange has ended.
#[derive(Debug)]
pub struct Ended<M> {
    /// What the service remembers of the request. `None` if it was rejected before the service saw
    /// it.
    pub memo: Option<M>,
    /// How it has ended.
    pub outcome: Outcome,
    /// The status of the response, whether or not it was sent.
    pub status: Status,
    /// How many bytes of body the response has; 0 for a HEAD, or if it was not sent.
    pub body_length: usize,
    /// The time from when the request was received to the response, or to the client's leaving.
    pub duration: Duration,
    /// The client's address.
    pub peer: Option<SocketAddr>,
    /// The body of the response, for its memory to be used again.
    pub body: Cow<'static, [u8]>,
}

/// In which way an exchange has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The response was given to the kernel to be sent.
    Responded,
    /// The request was malformed, took too long or was too long; it got the status that says so.
    Rejected,
    /// The client disconnected before its response was sent. nginx logs this as 499.
    Disconnected,
    /// No response was sent, on purpose: see [`Ending`](crate::Ending). nginx logs this as 444.
    Dropped,
}
