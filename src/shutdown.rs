//! SIGTERM and SIGINT: the first asks for an orderly end, the second ends the process at once.
//!
//! As PID 1 of a container the process has no default handlers: without these it could only be
//! killed.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, atomic::AtomicBool};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

use crate::log::access::AccessLog;
use crate::log::diagnostics;

/// How long answers that wait may go on waiting after the first signal.
pub const GRACE: Duration = Duration::from_secs(5);
/// How long whoever reads the logs may take for the last lines.
pub const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// Handles the signals from now on. What is given back becomes readable on the first of them.
pub fn on_signal() -> io::Result<UnixStream> {
    let (stop_signal, write_end) = UnixStream::pair()?;
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order, so that it is the second signal that finds the flag set. The exit code is
        // a shell's for a process ended by a signal.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stopping))?;
        flag::register(signal, Arc::clone(&stopping))?;
        pipe::register(signal, write_end.try_clone()?)?;
    }
    Ok(stop_signal)
}

/// Writes the last lines of both logs, as far as their readers take them in time.
pub fn write_last_lines(access_log: &AccessLog) {
    let deadline = Instant::now() + LAST_LINES_TIMEOUT;
    access_log.flush_until(deadline);
    diagnostics::flush_until(deadline);
}
