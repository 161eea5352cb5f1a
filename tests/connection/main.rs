//! Tests of a connection without a socket: any bytes, split in any way, at any time.

mod corpus;
mod deadlines;
mod drive;
mod fragmentation;
#[path = "../support/request_heads.rs"]
mod request_heads;
mod requests;
