//! A connection without its socket: whatever the bytes, however they arrive, however long they take.

mod corpus;
mod deadlines;
mod drive;
mod fragmentation;
#[path = "../support/request_heads.rs"]
mod request_heads;
mod requests;
