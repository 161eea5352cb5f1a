//! The request loops. Each takes a listener, serves until it is told to stop, and returns.

mod tcp_table;
pub mod tiny_http;
