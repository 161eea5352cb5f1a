//! Checks that must hold for every input. `make fuzz` searches for an input for which one fails. Inputs
//! that covered new code are kept in `corpus`, and `tests/connection/corpus.rs` replays them.

#[path = "../../tests/connection/drive.rs"]
mod drive;
#[path = "../../tests/support/request_heads.rs"]
mod request_heads;

pub mod connection;
pub mod faults;
pub mod fields;
pub mod flags;
mod responses;
pub mod schedule;
mod simulated_socket;
