//! The table "The event loop's bounds": what a hostile client gets, what it costs, and that others
//! are served meanwhile. A real process, real sockets, and thousands of them.
//!
//! What a client costs is read in /proc; macOS gives a process 256 descriptors unless it asks for more,
//! and completes no more than 128 connections that are not accepted. What needs more is for Linux.

mod bounds;
#[cfg(target_os = "linux")]
mod clients;
#[cfg(target_os = "linux")]
mod connection_limit;
#[cfg(target_os = "linux")]
mod crowd;
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
mod shutdown_race;
#[path = "../support/mod.rs"]
mod support;
mod timeouts;
#[cfg(target_os = "linux")]
mod turns;
#[cfg(target_os = "linux")]
mod work;

use support::{Service, others_are_served};

/// Asserts that the process never had more than 16 MiB resident, where it can be asked.
fn little_memory_was_taken(service: &Service) {
    if cfg!(target_os = "linux") {
        let peak = service.status("VmHWM") / 1024;
        assert!(peak < 16, "{peak} MiB");
    }
}
