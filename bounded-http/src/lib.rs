//! An HTTP/1.1 server on one thread, in which everything that a client can take is bounded.
//!
//! It is for services that respond from memory, at once or after a delay, take no request bodies, and
//! must not be held up: metrics endpoints, health checks, probes, small APIs.
//!
//! ```no_run
//! use bounded_http::{Reply, Request, Server, Status};
//!
//! # fn main() -> std::io::Result<()> {
//! Server::bind("127.0.0.1:8080")?.run(|request: &Request<'_>| match request.path() {
//!     "/" => Reply::text(Status::Ok, "Hello.\n"),
//!     _ => Reply::text(Status::NotFound, "Try /.\n"),
//! })
//! # }
//! ```
//!
//! [`Server::spawn`] serves on its own thread, beside the rest of a program. A service that counts or
//! logs its requests, or that has [urgent](Service::is_urgent) ones, implements [`Service`]. A
//! [`Reply`] can be delayed, can take CPU time, and can end in a fault on purpose. The README has
//! complete programs.
//!
//! # Four rules
//!
//! 1. **Turns are bounded in time.** A client's turn starts no further request after 50 µs. If the client has used
//!    little time lately and other such clients wait, the limit is 10 µs. A fair queue serves these clients first.
//!    After a millisecond of turns, the server polls the sockets and the listener again. So a new client waits a few
//!    milliseconds, even if thousands of others pipeline requests without end.
//! 2. **Received means that the kernel has it.** A request that reached the kernel before a timeout, a
//!    stop or a close is read before the server decides anything. While bytes may be unread, a connection
//!    lingers before it is closed. Otherwise it would be reset, and sent responses could be lost.
//! 3. **Waiting clients do not displace active ones.** At the connection limit, responses say `Connection: close`, and
//!    connections that have been idle for 100 ms are closed. A reserve of sixteen connections above the limit serves
//!    [urgent](Service::is_urgent) requests. Other requests on it wait for a slot, and get a 503 if none becomes free.
//! 4. **Memory is bounded in total**, the kernel's socket buffers included. The bounds of all parts add up to
//!    23 KiB per connection. They are not reached together: with a thousand connections, no attack in the tests takes
//!    more than 16 MiB. All buffers together may hold 4 KiB per connection that the limit allows. From three quarters
//!    of that on, connections without progress for half a second are reset, those first that have held the most for
//!    the longest time. Above it, connections with progress are reset, too.
//!
//! # Limits
//!
//! | what a client can do | limit | then |
//! | --- | --- | --- |
//! | a request head | 16 KiB, 100 fields | 431 (414 for the request line), close |
//! | take long to send a head | 10 s | 408, close |
//! | take long to send a body | 10 s | close; the response has been sent already |
//! | be silent between requests | 75 s | close |
//! | not read its responses | no more is read while 64 KiB wait unsent; 10 s without progress | close |
//! | send a body | up to 64 KiB is discarded | beyond: 413, close; the client may keep sending for 30 s |
//! | a `Transfer-Encoding`; `Content-Length` twice or unreadable; `Host` missing, twice or malformed; an invalid target or head | – | 400 (411 for `chunked` alone, 501 for another coding), close |
//! | `Expect: 100-continue` | – | the final response at once, close unless the whole body has been received |
//! | an HTTP version other than 1.0 and 1.1 | – | 505, close |
//! | pipeline requests | the time of a turn | responses in order; other clients get a turn |
//! | hold memory together with others | 4 KiB per connection that [`Limits::connections`] allows, at least 1 MiB | rule 4 |
//! | open connections | [`Limits::connections`] | rule 3 |
//! | cause a panic in the service | only its connection is affected | close; the [outcome](Outcome) says so |
//!
//! # What it does not do
//!
//! TLS, HTTP/2, request bodies, compression, authentication. It sets no panic hook, no resource limit
//! and no signal handler, and prints nothing. [`raise_descriptor_limit`] is there for programs that
//! serve more than a thousand connections. It runs on Linux and macOS.
//!
//! # Features
//!
//! `internals` makes parts of private modules public for the tests of this repository. They may change
//! in any release.

#![warn(clippy::unwrap_used)]

mod client;
mod connection;
mod date;
mod descriptors;
mod event_loop;
mod eviction;
mod fair_queue;
mod http;
mod limits;
mod listener;
mod reply;
mod request;
mod request_head;
mod server;
mod service;
mod socket;
mod timer_queue;
mod work;

pub use self::descriptors::raise_descriptor_limit;
pub use self::http::{Method, Status, is_token_byte};
pub use self::limits::Limits;
pub use self::reply::{Ending, Reply};
pub use self::request::{Field, Request};
pub use self::server::{Handle, Server};
pub use self::service::{Ended, Outcome, Service};
pub use self::work::work;

/// The parts that tests, fuzz targets and benchmarks of this repository use without a socket.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    pub mod client {
        pub use crate::client::*;
    }
    pub mod connection {
        pub use crate::connection::*;
    }
    pub mod date {
        pub use crate::date::*;
    }
    pub mod eviction {
        pub use crate::eviction::*;
    }
    pub mod fair_queue {
        pub use crate::fair_queue::*;
    }
    pub mod listener {
        pub use crate::listener::*;
    }
    pub mod request_head {
        pub use crate::request_head::*;
    }
    pub mod socket {
        pub use crate::socket::*;
    }
    pub mod timer_queue {
        pub use crate::timer_queue::*;
    }
}

/// Tests the code in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
