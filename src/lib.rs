//! tiny-probe: a very small HTTP service, instrumented for Prometheus.
//!
//! Data flows one way. A server reads a request from a socket, reads the clock ([`Instant`]), gets the
//! reply from the [app](app::App), and sends it. Then it tells the app that the exchange has ended, and
//! the app records it in the histogram and the counter:
//!
//! ```text
//! socket -> server -> app -> probe      succeed, fail, wait, work
//!                      |  -> faults     the faults that clients cause at run time
//!                      |  -> metrics    the exposition
//! socket <- server <---+
//!             |
//!             +-----> app -> metrics    the request, recorded
//! ```
//!
//! [`app`], [`probe`], [`faults`] and [`metrics`] decide what to respond, and use no socket. The crate
//! [`bounded_http`] decides how to read, schedule and write, and knows no route and no metric. The
//! plain loop on the `tiny_http` crate serves the same app.
//!
//! ```
//! use bounded_http::{Request, Service};
//! use tiny_probe::{app::App, config::Config};
//!
//! let mut app = App::new(&Config::default());
//! let reply = app.answer(&Request::new("GET", "/probe"));
//! assert_eq!(reply.body(), b"I'm ok!");
//!
//! // Neither exchange has ended.
//! let reply = app.answer(&Request::new("GET", "/metrics"));
//! let exposition = String::from_utf8_lossy(reply.body());
//! assert!(exposition.contains("app_requests_in_flight 2\n"));
//! ```
//!
//! [`Instant`]: std::time::Instant

#![warn(clippy::unwrap_used)]

pub mod app;
pub mod config;
pub mod duration;
pub mod fail_with;
pub mod faults;
pub mod healthcheck;
pub mod log;
pub mod metrics;
pub mod page;
mod peer;
mod printable;
pub mod probe;
pub mod shutdown;
pub mod target;
#[cfg(feature = "tiny-http")]
pub mod tiny_http;
pub mod trace_context;
mod wall_clock;
