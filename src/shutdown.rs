//! SIGTERM and SIGINT: the first asks for an orderly end, the second ends the process at once.
//!
//! As PID 1 of a container the process has no default handlers: without these it could only be
//! killed.

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

/// How long answers that wait may go on waiting after the first signal.
pub const GRACE: Duration = Duration::from_secs(5);
/// How long whoever reads the logs may take for the last lines.
pub const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// How the process is told to stop.
pub struct Stop {
    /// Becomes readable on the first signal.
    pub signal: UnixStream,
    /// True from the first signal on.
    pub is_stopping: Arc<AtomicBool>,
}

/// Handles the signals from now on.
pub fn on_signal() -> io::Result<Stop> {
    let (signal_read, write_end) = UnixStream::pair()?;
    let is_stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order, so that it is the second signal that finds the flag set. The exit code is
        // a shell's for a process ended by a signal.
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
    /// Waits, and returns whether the signal has come before the time was over.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    pub fn wait(&self, time: Duration) -> io::Result<bool> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.signal, PollFlags::IN)], Some(&left)) {
                // The signal itself. What it has written is seen on the next look.
                Err(Errno::INTR) => {}
                result => return Ok(result? > 0),
            }
        }
    }

    /// What becomes readable so long after the first signal.
    ///
    /// # Errors
    /// When the thread that waits cannot be started.
    pub fn delayed(self, delay: Duration) -> io::Result<UnixStream> {
        if delay.is_zero() {
            return Ok(self.signal);
        }
        let (delayed, write_end) = UnixStream::pair()?;
        let mut signal = self.signal;
        thread::Builder::new()
            .name("shutdown-delay".into())
            .spawn(move || {
                // An error is impossible, and would be a reason to stop at once.
                if signal.read(&mut [0]).is_ok() {
                    thread::sleep(delay);
                }
                // Its end is closed, and so the other end becomes readable.
                drop(write_end);
            })?;
        Ok(delayed)
    }
}

/// Writes the last lines of both logs, as far as their readers take them in time.
pub fn write_last_lines(access_log: &AccessLog) {
    let deadline = Instant::now() + LAST_LINES_TIMEOUT;
    access_log.flush_until(deadline);
    diagnostics::flush_until(deadline);
}
