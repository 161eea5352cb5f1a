//! tiny-probe: a very small HTTP service, instrumented for Prometheus.
//!
//! Data flows one way. A server reads a request from a socket, takes an [`Instant`], asks the
//! [app](app::App) for the [reply](app::Reply), writes it, and has the request
//! [recorded](app::App::record) in the histogram and the counter:
//!
//! ```text
//! socket -> server -> app -> probe      succeed, fail, take its time, work
//!                      |  -> faults     what it is told to do at run time
//!                      |  -> metrics    the exposition
//! socket <- server <---+
//!             |
//!             +-----> metrics           the request, recorded
//! ```
//!
//! Everything that decides *what* to answer is in [`app`], [`probe`], [`faults`] and [`metrics`],
//! which know no socket. Everything about *how* is in [`server`].
//!
//! ```
//! use tiny_probe::{app::{App, Request}, config::Config};
//! use std::time::Instant;
//!
//! let mut app = App::new(&Config::default());
//! let started = Instant::now();
//! let reply = app.answer(&Request::new("GET", "/probe"), started);
//! app.record(&reply, started.elapsed());
//!
//! assert_eq!(reply.body, "I'm ok!");
//! let page = app.answer(&Request::new("GET", "/metrics"), started).body;
//! assert!(page.contains(
//!     r#"app_request_count_total{endpoint="/probe",http_status="200",method="GET"} 1"#
//! ));
//! ```
//!
//! [`Instant`]: std::time::Instant

#![warn(clippy::unwrap_used)]

pub mod access_log;
pub mod app;
pub mod config;
pub mod diagnostics;
pub mod faults;
pub mod healthcheck;
pub mod http;
pub mod line_writer;
pub mod metrics;
pub mod peer;
pub mod probe;
pub mod server;
pub mod shutdown;
pub mod trace_context;
pub mod wall_clock;
