//! SIGTERM and SIGINT: the first signal starts an orderly shutdown, the second ends the process at once.
//!
//! PID 1 of a container has no default signal handlers. Without these handlers, only SIGKILL would end the
//! process there.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, atomic::AtomicBool};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

use crate::log::access::AccessLog;
use crate::log::diagnostics;

/// How long delayed responses may keep waiting once the server stops, which is `--shutdown-delay` after the
/// first signal.
pub const GRACE_PERIOD: Duration = Duration::from_secs(5);
/// How long the process waits for readers of its logs to take the last lines.
pub const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// What the first signal changes.
pub struct Stop {
    /// Becomes readable on the first signal.
    pub signal: UnixStream,
    /// True from the first signal on.
    pub is_stopping: Arc<AtomicBool>,
}

/// Installs the handlers of both signals.
pub fn install_signal_handlers() -> io::Result<Stop> {
    let (signal_read, write_end) = UnixStream::pair()?;
    let is_stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // The order matters: the first signal finds the flag unset, then sets it. The exit code is the one
        // that a shell reports for a process ended by this signal.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&is_stopping))?;
        flag::register(signal, Arc::clone(&is_stopping))?;
        pipe::register(signal, write_end.try_clone()?)?;
    }
    Ok(Stop {
        signal: signal_read,
        is_stopping,
    })
}

impl Stop {
    /// Waits for the first signal, for at most this time. Returns whether it arrived.
    ///
    /// # Errors
    /// If the kernel cannot wait.
    pub fn wait(&self, time: Duration) -> io::Result<bool> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.signal, PollFlags::IN)], Some(&left)) {
                // A handler interrupted the wait. The next poll finds what it wrote.
                Err(Errno::INTR) => {}
                result => return Ok(result? > 0),
            }
        }
    }

    /// Returns a stream that becomes readable when `delay` has passed after the first signal.
    ///
    /// # Errors
    /// If the thread that waits cannot be started.
    pub fn delayed(self, delay: Duration) -> io::Result<UnixStream> {
        if delay.is_zero() {
            return Ok(self.signal);
        }
        let (delayed, write_end) = UnixStream::pair()?;
        let stop = move || {
            thread::sleep(delay);
            // Closing this end makes the other one readable.
            drop(write_end);
        };
        when_readable(self.signal, Box::new(stop))?;
        Ok(delayed)
    }
}

/// Calls `stop` on a thread of its own when `signal` becomes readable.
///
/// # Errors
/// If the thread cannot be started.
pub fn when_readable(mut signal: UnixStream, stop: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    let wait = move || {
        // The read cannot fail.
        if signal.read(&mut [0]).is_ok() {
            stop();
        }
    };
    spawn("stop", Box::new(wait))
}

/// Starts a thread. With a type of its own for each closure, the code of `thread::spawn` would be in the
/// binary once per caller, at a kilobyte each.
pub fn spawn(name: &str, run: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(run)?;
    Ok(())
}

/// Writes the last lines of both logs. Lines that their readers do not take within
/// [`LAST_LINES_TIMEOUT`] are lost.
pub fn write_last_lines(access_log: &AccessLog) {
    let deadline = Instant::now() + LAST_LINES_TIMEOUT;
    access_log.flush_until(deadline);
    diagnostics::flush_until(deadline);
}
