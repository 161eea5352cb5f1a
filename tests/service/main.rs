//! Tests of the service as its clients see it, with each request loop.

#[path = "../support/mod.rs"]
mod support;

/// Declares tests from functions that take the name of a request loop: one test per function and loop.
macro_rules! on_every_server {
    ($($test:ident),+ $(,)?) => {
        mod event_loop {
            $(#[test] fn $test() { super::$test("event-loop"); })+
        }
        #[cfg(feature = "tiny-http")]
        mod tiny_http {
            $(#[test] fn $test() { super::$test("tiny-http"); })+
        }
    };
}

mod command_line;
mod exposition;
mod faults;
mod framing;
mod responses;
// These tests need /proc and /dev/full.
#[cfg(target_os = "linux")]
mod logs;
#[cfg(target_os = "linux")]
mod process;
mod shutdown;
mod targets;
