//! `process_*`: metrics about this process, from the kernel.
//!
//! The names and HELP texts are those of the Python client. A metric that cannot be read is left out
//! instead of exposed as 0, which would be wrong. The time that reading takes does not depend on the
//! number of descriptors or connections.
//!
//! Reading takes five system calls, which is a quarter of a scrape's CPU time. So scrapes that are answered
//! between two waits share one reading.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::exposition::{Exposition, Family, family};

/// Reads the metrics of this process.
pub struct Process {
    /// /proc/self/statm. It is kept open so that a scrape needs no free descriptor.
    statm: Option<File>,
    /// /proc/self/task, kept open for the same reason.
    tasks: Option<File>,
    /// /proc/self/fd, kept open for the same reason.
    fds: Option<File>,
    /// When the process started, in seconds since the epoch.
    start_time: Option<f64>,
    /// The last reading, until it is [discarded](Self::discard_reading).
    reading: Cell<Option<Reading>>,
}

/// The values at one time. `None` means that a value could not be read.
#[derive(Clone, Copy)]
struct Reading {
    cpu_time: Duration,
    memory: Option<Memory>,
    threads: Option<u64>,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
}

/// The first two fields of /proc/PID/statm; see proc(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    virtual_pages: u64,
    resident_pages: u64,
}

impl Process {
    /// Opens the files, and reads the values that never change.
    pub fn current() -> Self {
        #[cfg(target_os = "linux")]
        let start_time = start_time();
        // Other systems have no /proc/self/stat.
        #[cfg(not(target_os = "linux"))]
        let start_time = None;
        Self {
            statm: File::open("/proc/self/statm").ok(),
            tasks: File::open("/proc/self/task").ok(),
            fds: File::open(FDS).ok(),
            start_time,
            reading: Cell::default(),
        }
    }

    /// Returns when the process started, in seconds since the epoch.
    pub fn start_time(&self) -> Option<f64> {
        self.start_time
    }

    /// Makes the next exposition read the values again.
    pub fn discard_reading(&self) {
        self.reading.set(None);
    }

    /// Writes the families, ordered by name.
    pub fn write(&self, exposition: &mut Exposition) {
        let reading = self.reading.get().unwrap_or_else(|| self.read());
        self.reading.set(Some(reading));
        let memory = reading.memory;
        let bytes = |pages| pages * rustix::param::page_size() as u64;
        // Unlike as_secs_f64, this divides the nanoseconds. as_secs_f64 adds whole seconds and a fraction,
        // which turns 1.59751103 into 1.5975110300000002.
        let cpu_seconds = reading.cpu_time.div_duration_f64(Duration::from_secs(1));
        exposition.single(&CPU_SECONDS, cpu_seconds);
        for (family, value) in [
            (&MAX_FDS, reading.max_fds),
            (&OPEN_FDS, reading.open_fds),
            (
                &RESIDENT_MEMORY,
                memory.map(|memory| bytes(memory.resident_pages)),
            ),
        ] {
            if let Some(value) = value {
                exposition.single(family, value);
            }
        }
        if let Some(start_time) = self.start_time {
            exposition.single(&START_TIME, start_time);
        }
        if let Some(threads) = reading.threads {
            exposition.single(&THREADS, threads);
        }
        if let Some(memory) = memory {
            exposition.single(&VIRTUAL_MEMORY, bytes(memory.virtual_pages));
        }
    }

    fn read(&self) -> Reading {
        Reading {
            cpu_time: read_clock(ClockId::ProcessCPUTime),
            memory: self.statm.as_ref().and_then(read_memory),
            threads: self.tasks.as_ref().and_then(count_threads),
            open_fds: self.fds.as_ref().and_then(count_fds),
            max_fds: getrlimit(Resource::Nofile).current,
        }
    }
}

/// Reads a clock. A negative time reads as 0; none of the clocks used here has one.
fn read_clock(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

/// Reads /proc/self/statm, which the kernel writes in a fraction of the time that /proc/self/stat takes.
fn read_memory(statm: &File) -> Option<Memory> {
    let mut buffer = [0; 256];
    let length = statm.read_at(&mut buffer, 0).ok()?;
    Some(Memory {
        virtual_pages: number(&buffer[..length], 0)?,
        resident_pages: number(&buffer[..length], 1)?,
    })
}

/// Parses the number at this index of a text in which spaces separate the fields.
fn number(text: &[u8], index: usize) -> Option<u64> {
    let field = text.split(|byte| *byte == b' ').nth(index)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Counts the threads: each is a subdirectory of /proc/self/task, and like every directory it has two more
/// links.
fn count_threads(tasks: &File) -> Option<u64> {
    tasks.metadata().ok()?.nlink().checked_sub(2)
}

/// Returns field 22 of /proc/PID/stat: the time when the process was started, in clock ticks since the machine
/// booted.
#[cfg(target_os = "linux")]
fn start_ticks(stat: &[u8]) -> Option<u64> {
    // The process name, the second field, can contain any character, including spaces and parentheses. The
    // third field follows the last parenthesis.
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    number(&stat[name_end..], 22 - 2)
}

/// Returns the time when the process was started, in seconds since the epoch, with the precision of a
/// clock tick (10 ms). It is computed from two clocks because the boot time in /proc/stat has only whole
/// seconds.
#[cfg(target_os = "linux")]
fn start_time() -> Option<f64> {
    let ticks = start_ticks(&fs::read("/proc/self/stat").ok()?)?;
    let booted = read_clock(ClockId::Realtime).checked_sub(read_clock(ClockId::Boottime))?;
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    let after_boot = Duration::from_millis(ticks.checked_mul(1000)? / ticks_per_second);
    let milliseconds = (booted + after_boot).as_millis();
    Some(Duration::from_millis(u64::try_from(milliseconds).ok()?).as_secs_f64())
}

/// Counts the open descriptors. In Linux 6.2 and later, the size of the directory is their number. In
/// earlier versions the size is 0, and the directory must be read.
fn count_fds(directory: &File) -> Option<u64> {
    match directory.metadata().ok()?.len() {
        // Reading the directory opens one descriptor more.
        0 => Some((fs::read_dir(FDS).ok()?.count() as u64).saturating_sub(1)),
        count => Some(count),
    }
}

const FDS: &str = "/proc/self/fd";

const CPU_SECONDS: Family =
    family!(counter "process_cpu_seconds" "Total user and system CPU time spent in seconds.");
const MAX_FDS: Family = family!(gauge "process_max_fds" "Maximum number of open file descriptors.");
const OPEN_FDS: Family = family!(gauge "process_open_fds" "Number of open file descriptors.");
const RESIDENT_MEMORY: Family =
    family!(gauge "process_resident_memory_bytes" "Resident memory size in bytes.");
const START_TIME: Family = family!(gauge "process_start_time_seconds"
    "Start time of the process since unix epoch in seconds.");
const THREADS: Family = family!(gauge "process_threads" "Number of OS threads in the process.");
const VIRTUAL_MEMORY: Family =
    family!(gauge "process_virtual_memory_bytes" "Virtual memory size in bytes.");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Format;

    fn exposition(process: &Process) -> String {
        let mut exposition = Exposition::new(Format::Text, String::new());
        process.write(&mut exposition);
        exposition.finish()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_start_time_is_found_after_any_process_name() {
        let fields = "S 1 2 3 0 -1 4194560 0 0 0 0 11 12 0 0 20 0 7 0 4711 115613696 8169 1844";
        for name in ["tiny-probe", "", "a b", ") R 1", "\u{e9}((\n"] {
            let stat = format!("42 ({name}) {fields} 0\n");
            assert_eq!(start_ticks(stat.as_bytes()), Some(4711), "{name}");
        }
        for stat in ["", "42", "42 (a) S 1", "42 (a) "] {
            assert_eq!(start_ticks(stat.as_bytes()), None, "{stat}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn threads_and_memory_are_those_that_the_kernel_reports() {
        let reading = Process::current().read();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let field = |name: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        // Other tests start and end threads, and allocate memory, at the same time.
        let threads = reading.threads.unwrap();
        assert!(
            threads.abs_diff(field("Threads:")) < 64,
            "{threads}, {status}"
        );
        let memory = reading.memory.unwrap();
        let page_size = rustix::param::page_size() as u64;
        for (pages, name) in [
            (memory.virtual_pages, "VmSize:"),
            (memory.resident_pages, "VmRSS:"),
        ] {
            let (bytes, expected) = (pages * page_size, field(name) * 1024);
            assert!(
                bytes / 2 < expected && expected < bytes * 2,
                "{bytes}, {status}"
            );
        }
    }

    #[test]
    fn expositions_have_the_same_values_until_the_reading_is_discarded() {
        let process = Process::current();
        let first = exposition(&process);
        assert_eq!(exposition(&process), first);
        process.discard_reading();
        // The CPU time is in nanoseconds, and has grown.
        assert_ne!(exposition(&process), first);
    }

    #[test]
    fn values_that_cannot_be_read_are_left_out() {
        let process = Process {
            statm: File::open("/dev/null").ok(),
            tasks: None,
            fds: None,
            start_time: None,
            reading: Cell::default(),
        };
        let exposition = exposition(&process);
        for absent in ["start_time", "resident", "virtual", "threads", "open_fds"] {
            assert!(!exposition.contains(absent), "{exposition}");
        }
        assert!(
            exposition.contains("\nprocess_cpu_seconds_total "),
            "{exposition}"
        );
    }
}
