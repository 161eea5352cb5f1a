//! SIGTERM and SIGINT: the first signal starts an orderly shutdown, the second ends the process at once.
//!
//! PID 1 of a container has no default signal handlers. Without these handlers, only SIGKILL would end the
//! process there.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, atomic::AtomicBool};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

use crate::log::access::AccessLog;
use crate::log::diagnostics;

/// How long delayed responses may keep waiting after the first signal.
pub const GRACE: Duration = Duration::from_secs(5);
/// How long the process waits for readers of its logs to take the last lines.
pub const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// Installs the handlers. The returned stream becomes readable on the first signal.
pub fn on_signal() -> io::Result<UnixStream> {
    let (stop_signal, write_end) = UnixStream::pair()?;
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // The order matters: the first signal finds the flag unset, then sets it. The exit code is the one
        // that a shell reports for a process ended by this signal.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stopping))?;
        flag::register(signal, Arc::clone(&stopping))?;
        pipe::register(signal, write_end.try_clone()?)?;
    }
    Ok(stop_signal)
}

/// Writes the last lines of both logs. Lines that their readers do not take within
/// [`LAST_LINES_TIMEOUT`] are lost.
pub fn write_last_lines(access_log: &AccessLog) {
    let deadline = Instant::now() + LAST_LINES_TIMEOUT;
    access_log.flush_until(deadline);
    diagnostics::flush_until(deadline);
}
