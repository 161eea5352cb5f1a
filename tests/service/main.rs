//! The service as its clients see it, on every request loop.

#[path = "../support/mod.rs"]
mod support;

/// Makes each of these functions, which take the name of a request loop, a test on each loop.
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

mod answers;
mod command_line;
mod exposition;
mod faults;
// They find the service in /proc, and have /dev/full.
#[cfg(target_os = "linux")]
mod logs;
#[cfg(target_os = "linux")]
mod process;
mod shutdown;
mod targets;
