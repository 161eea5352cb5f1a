//! `process_*`: metrics about this process, from the kernel.
//!
//! The names and HELP texts are those of the Python client. A metric that cannot be read is left out
//! instead of exposed as 0, which would be wrong. The time that reading takes does not depend on the
//! number of descriptors or connections.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::exposition::{Family, Page, family};

/// Reads the metrics of this process.
pub struct Process {
    /// /proc/self/stat. It is kept open so that a scrape needs no free descriptor.
    stat: Option<File>,
    /// /proc/self/fd, kept open for the same reason.
    fds: Option<File>,
    /// In seconds since the epoch.
    start_time: Option<f64>,
}

/// The values for one page. `None` means that a value could not be read.
struct Reading {
    cpu_time: Duration,
    stat: Option<Stat>,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
}

/// The fields of /proc/PID/stat that are exposed; see proc(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    threads: u64,
    /// In clock ticks since the machine booted.
    start_time: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Process {
    /// Opens the files, and reads the values that never change.
    pub fn current() -> Self {
        let stat = File::open("/proc/self/stat").ok();
        let fds = File::open(FDS).ok();
        #[cfg(target_os = "linux")]
        let start_time = stat.as_ref().and_then(read_stat).and_then(start_time);
        // Other systems have no /proc/self/stat.
        #[cfg(not(target_os = "linux"))]
        let start_time = None;
        Self {
            stat,
            fds,
            start_time,
        }
    }

    /// When it started, in seconds since the epoch.
    pub fn start_time(&self) -> Option<f64> {
        self.start_time
    }

    /// Writes the families, ordered by name.
    pub fn write(&self, page: &mut Page) {
        let reading = self.read();
        let stat = reading.stat.as_ref();
        let resident = stat.map(|stat| stat.resident_pages * rustix::param::page_size() as u64);
        // Unlike as_secs_f64, this divides the nanoseconds. as_secs_f64 adds whole seconds and a fraction,
        // which turns 1.59751103 into 1.5975110300000002.
        let cpu_seconds = reading.cpu_time.div_duration_f64(Duration::from_secs(1));
        page.single(&CPU_SECONDS, cpu_seconds);
        for (family, value) in [
            (&MAX_FDS, reading.max_fds),
            (&OPEN_FDS, reading.open_fds),
            (&RESIDENT_MEMORY, resident),
        ] {
            if let Some(value) = value {
                page.single(family, value);
            }
        }
        if let Some(start_time) = self.start_time {
            page.single(&START_TIME, start_time);
        }
        if let Some(stat) = stat {
            page.single(&THREADS, stat.threads);
            page.single(&VIRTUAL_MEMORY, stat.virtual_bytes);
        }
    }

    fn read(&self) -> Reading {
        Reading {
            cpu_time: read_clock(ClockId::ProcessCPUTime),
            stat: self.stat.as_ref().and_then(read_stat),
            open_fds: self.fds.as_ref().and_then(count_fds),
            max_fds: getrlimit(Resource::Nofile).current,
        }
    }
}

/// Reads a clock. A negative time reads as 0; none of the clocks used here has one.
fn read_clock(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

fn read_stat(file: &File) -> Option<Stat> {
    // Long enough for the name and the fields up to `resident_pages`.
    let mut buffer = [0; 1024];
    let length = file.read_at(&mut buffer, 0).ok()?;
    parse_stat(&buffer[..length])
}

fn parse_stat(stat: &[u8]) -> Option<Stat> {
    // The process name, the second field, can contain any character, including spaces and parentheses. The
    // third field follows the last parenthesis.
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = stat[name_end..].split(|byte| *byte == b' ').skip(1);
    let mut skip_to = |count| -> Option<u64> {
        let field = str::from_utf8(fields.nth(count)?).ok()?;
        field.parse().ok()
    };
    Some(Stat {
        threads: skip_to(20 - 3)?,
        start_time: skip_to(22 - 20 - 1)?,
        virtual_bytes: skip_to(0)?,
        resident_pages: skip_to(0)?,
    })
}

/// Returns the time when the process was started, in seconds since the epoch, with the precision of a
/// clock tick (10 ms). It is computed from two clocks because the boot time in /proc/stat has only whole
/// seconds.
#[cfg(target_os = "linux")]
fn start_time(stat: Stat) -> Option<f64> {
    let booted = read_clock(ClockId::Realtime).checked_sub(read_clock(ClockId::Boottime))?;
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    let after_boot = Duration::from_millis(stat.start_time.checked_mul(1000)? / ticks_per_second);
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

    #[test]
    fn stat_is_parsed_for_any_process_name() {
        let fields = "S 1 2 3 0 -1 4194560 0 0 0 0 11 12 0 0 20 0 7 0 4711 115613696 8169 1844";
        let expected = Stat {
            threads: 7,
            start_time: 4711,
            virtual_bytes: 115_613_696,
            resident_pages: 8169,
        };
        for name in ["tiny-probe", "", "a b", ") R 1", "\u{e9}((\n"] {
            let stat = format!("42 ({name}) {fields} 0\n");
            assert_eq!(parse_stat(stat.as_bytes()), Some(expected), "{name}");
        }
        for stat in ["", "42", "42 (a) S 1", "42 (a) "] {
            assert_eq!(parse_stat(stat.as_bytes()), None, "{stat}");
        }
    }

    #[test]
    fn values_that_cannot_be_read_are_left_out() {
        let process = Process {
            stat: File::open("/dev/null").ok(),
            fds: None,
            start_time: None,
        };
        let mut page = Page::new(Format::Text, String::new());
        process.write(&mut page);
        let page = page.finish();
        for absent in ["start_time", "resident", "virtual", "threads", "open_fds"] {
            assert!(!page.contains(absent), "{page}");
        }
        assert!(page.contains("\nprocess_cpu_seconds_total "), "{page}");
    }
}
