//! The table "The event loop's bounds": what a hostile client gets, what it costs, and that others
//! are served meanwhile. A real process, real sockets, and crowds of them.

mod bounds;
mod delayed_replies;
mod many_connections;
#[path = "../support/request_heads.rs"]
mod request_heads;
#[path = "../support/mod.rs"]
mod support;
mod timeouts;

use support::{Service, others_are_served};

/// The most memory that the process ever had resident, in MiB.
fn peak_resident(service: &Service) -> u64 {
    service.status("VmHWM") / 1024
}
