//! The two logs: a line per request on standard output, and diagnostics on standard error. Neither blocks
//! a request loop.

pub mod access;
pub mod diagnostics;
pub mod line_writer;
