//! Replays the inputs that fuzzing has collected. `make fuzz` searches for more.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/src/connection.rs"]
mod connection;
#[path = "../../fuzz/src/faults.rs"]
mod faults;
#[path = "../../fuzz/src/fields.rs"]
mod fields;
#[path = "../../fuzz/src/flags.rs"]
mod flags;
#[path = "../../fuzz/src/responses.rs"]
mod responses;
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
fn the_collected_inputs_of_connection_pass_its_check() {
    replay("connection", connection::check);
}

#[test]
fn the_collected_inputs_of_schedule_pass_its_check() {
    replay("schedule", |input| {
        schedule::check(input, |leave| {
            leave();
            0
        });
    });
}

#[test]
fn the_collected_inputs_of_faults_pass_its_check() {
    replay("faults", faults::check);
}

#[test]
fn the_collected_inputs_of_fields_pass_its_check() {
    replay("fields", fields::check);
}

#[test]
fn the_collected_inputs_of_flags_pass_its_check() {
    replay("flags", flags::check);
}
