//! The inputs that fuzzing has collected, each checked once more. `make fuzz` looks for others.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/src/answers.rs"]
mod answers;
#[path = "../../fuzz/src/connection.rs"]
mod connection;
#[path = "../../fuzz/src/faults.rs"]
mod faults;
#[path = "../../fuzz/src/fields.rs"]
mod fields;
#[path = "../../fuzz/src/flags.rs"]
mod flags;
#[path = "../../fuzz/src/schedule.rs"]
mod schedule;
#[path = "../../fuzz/src/simulated_socket.rs"]
mod simulated_socket;

fn replay(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let inputs = fs::read_dir(corpus.join(target)).expect("there is a corpus");
    let mut count = 0;
    for input in inputs {
        let path = input.expect("the corpus can be read").path();
        println!("{}", path.display());
        check(&fs::read(&path).expect("the input can be read"));
        count += 1;
    }
    assert!(count > 0, "the corpus is empty");
}

#[test]
fn of_the_connection() {
    replay("connection", connection::check);
}

#[test]
fn of_the_schedule() {
    replay("schedule", |input| {
        schedule::check(input, |leave| {
            leave();
            0
        });
    });
}

#[test]
fn of_the_faults() {
    replay("faults", faults::check);
}

#[test]
fn of_the_fields() {
    replay("fields", fields::check);
}

#[test]
fn of_the_flags() {
    replay("flags", flags::check);
}
