//! A connection without its socket: whatever the bytes, however they arrive, however long they take.

mod corpus;
mod deadlines;
mod drive;
#[path = "../support/heads.rs"]
mod heads;
mod requests;
mod splits;
