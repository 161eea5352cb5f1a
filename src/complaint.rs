//! What goes wrong while serving, on standard error: one line each, and at most one a second,
//! whatever clients do.

use std::fmt::Display;
use std::io::{self, Write};
use std::panic;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_secs(1);

struct Log {
    last: Option<Instant>,
    left_out: u64,
}

static LOG: Mutex<Log> = Mutex::new(Log {
    last: None,
    left_out: 0,
});

/// Prints one line, unless another was printed less than a second ago: then it is counted, and the
/// number stands in the next line.
pub fn complain(message: impl Display) {
    let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    if log.last.is_some_and(|last| last.elapsed() < PAUSE) {
        log.left_out += 1;
        return;
    }
    log.last = Some(Instant::now());
    let left_out = std::mem::take(&mut log.left_out);
    let message = message.to_string().replace(char::is_control, " ");
    // With standard error closed there is nobody to tell.
    let _ = match left_out {
        0 => writeln!(io::stderr(), "tiny-probe: {message}"),
        _ => writeln!(
            io::stderr(),
            "tiny-probe: {message} ({left_out} more were left out)"
        ),
    };
}

/// Has a panic complain in one line, too.
pub fn complain_of_panics() {
    panic::set_hook(Box::new(|panic| complain(format_args!("fault: {panic}"))));
}
