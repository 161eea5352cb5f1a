//! What must hold for every input; `make fuzz` looks for one for which it does not. The inputs that
//! reached something new are kept in `corpus`, and `tests/connection/corpus.rs` replays them.

#[path = "../../tests/connection/drive.rs"]
mod drive;
#[path = "../../tests/support/request_heads.rs"]
mod request_heads;

mod answers;
pub mod connection;
pub mod faults;
pub mod fields;
pub mod flags;
pub mod schedule;
mod simulated_socket;
