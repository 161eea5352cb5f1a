//! Tests of the limits of the event loop with hostile clients: what each client gets, what it costs,
//! and that other clients are served meanwhile. They use a real process and up to thousands of real
//! sockets.
//!
//! Many of these tests run only on Linux. They read costs from /proc, or need more than macOS allows by
//! default: 256 descriptors per process, and 128 connections in a listener's backlog.

mod bounds;
mod clients;
#[cfg(target_os = "linux")]
mod connection_limit;
mod delayed_replies;
#[cfg(target_os = "linux")]
mod disconnects;
// A client on Linux reads what arrived before a reset.
#[cfg(target_os = "linux")]
mod endings;
#[cfg(target_os = "linux")]
mod faults;
#[cfg(target_os = "linux")]
mod lingering;
#[cfg(target_os = "linux")]
mod many_connections;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod received;
#[path = "../support/request_heads.rs"]
mod request_heads;
#[cfg(target_os = "linux")]
mod reserve;
#[cfg(target_os = "linux")]
mod reusing_client;
mod scenario;
#[cfg(target_os = "linux")]
mod shutdown_race;
#[path = "../support/mod.rs"]
mod support;
mod timeouts;
#[cfg(target_os = "linux")]
mod turns;
#[cfg(target_os = "linux")]
mod work;

use support::Service;

/// Asserts that the process never had more than 16 MiB of resident memory. Checked only on Linux.
fn assert_little_memory_was_taken(service: &Service) {
    if cfg!(target_os = "linux") {
        let peak = service.status("VmHWM") / 1024;
        assert!(peak < 16, "{peak} MiB");
    }
}
