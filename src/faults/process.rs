//! The target `process`: makes the process freeze, exit, or hold memory, series and descriptors.
//!
//! The maximum values keep the machine usable. Unless the process is frozen, /faults can revert all of this.

use std::fmt::Write;
use std::fs::File;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use std::{process, thread};

use rustix::process::{Resource, getrlimit};

use super::change::{
    ACCEPTED_CHANGE_DURATION, Change, FOR, MISSING_END, parse_end, write_time_left,
};
use super::query;
use crate::config::{ACCEPTED_EXIT_AFTER, ACCEPTED_EXIT_CODE, Config, EXIT_AFTER_RANGE, NEVER};
use crate::duration;
use crate::log::diagnostics;

/// The accepted values of `freeze`.
const FREEZE_RANGE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);
/// The maximum of `memory`, which a developer's machine can spare.
const MAX_MEMORY_BYTES: usize = 1024 * MIB;
/// The maximum of `series`. The exposition is then 2.5 MB long.
const MAX_SERIES: u32 = 100_000;
/// The maximum of `open-files`. The descriptor limit is usually lower.
const MAX_OPEN_FILES: usize = 1_000_000;
/// The number of descriptors that stay free for connections and for files that the service opens. The
/// server keeps those of its reserve itself.
const FREE_DESCRIPTORS: usize = 48;

const MIB: usize = 1024 * 1024;
/// The minimum size of an allocation. After blocks have been freed, glibc allocates blocks of up to 32
/// MiB on its heap, and does not always return them to the system. Reserving more costs nothing, because
/// memory that is not touched is not resident.
const MIN_RESERVED_BYTES: usize = 33 * MIB;
/// How much memory is touched, and how many files are opened, in one wake-up. This takes about a
/// millisecond, and clients are served in between.
const MEMORY_BYTES_PER_WAKE_UP: usize = 4 * MIB;
const FILES_PER_WAKE_UP: usize = 1000;

/// A setting that a query can name.
struct Setting {
    name: &'static str,
    /// The accepted values, to complete "expected …".
    accepted: &'static str,
    /// Sets the value, or returns `None` if it is not accepted.
    set: fn(&mut Asked, &str) -> Option<()>,
}

static SETTINGS: [Setting; 6] = [
    Setting {
        name: "freeze",
        accepted: "a duration of at most 10m with its unit, such as 30s",
        set: |asked, value| {
            duration::parse(value, FREEZE_RANGE).map(|time| asked.freeze = Some(time))
        },
    },
    Setting {
        name: EXIT_AFTER,
        accepted: ACCEPTED_EXIT_AFTER,
        set: |asked, value| {
            asked.exits_never = value == NEVER;
            if !asked.exits_never {
                asked.exit_after = Some(duration::parse(value, EXIT_AFTER_RANGE)?);
            }
            Some(())
        },
    },
    Setting {
        name: EXIT_CODE,
        accepted: ACCEPTED_EXIT_CODE,
        set: |asked, value| value.parse().ok().map(|code| asked.exit_code = Some(code)),
    },
    Setting {
        name: "memory",
        accepted: "a size of at most 1GiB with its unit, such as 64MiB",
        set: |asked, value| parse_size(value).map(|size| asked.held.memory = size),
    },
    Setting {
        name: "series",
        accepted: "a whole number of at most 100000",
        set: |asked, value| {
            let count = value.parse().ok().filter(|count| *count <= MAX_SERIES);
            count.map(|count| asked.held.series = count)
        },
    },
    Setting {
        name: "open-files",
        accepted: "a whole number of at most 1000000",
        set: |asked, value| {
            let count = value.parse().ok().filter(|count| *count <= MAX_OPEN_FILES);
            count.map(|count| asked.held.open_files = count)
        },
    },
];
const EXIT_AFTER: &str = "exit-after";
const EXIT_CODE: &str = "exit-code";
/// The exit code unless a change names one.
const DEFAULT_EXIT_CODE: u8 = 1;
/// The names that do not require `for`: a freeze and an exit end by themselves.
const WITHOUT_FOR: [&str; 4] = ["freeze", EXIT_AFTER, EXIT_CODE, FOR];
const ACCEPTED_NAMES: &str = "freeze, exit-after, exit-code, memory, series, open-files, or for";

/// The faults of the process, and what it holds.
pub struct Process {
    /// The server calls [`act`](Self::act) often enough. With `--server tiny-http` it does not.
    is_supported: bool,
    /// The exit that the flags ask for.
    exit_at_start: Option<Exit>,
    /// The exit that a client has asked for, which replaces the one above.
    exit: Option<Exit>,
    /// How long to freeze, once the response to the change is sent. Set by a change, cleared by `act`.
    freeze: Option<Duration>,
    held: Change<Held>,
    /// Allocated by a change, with room for everything that should be held. Its length is the part touched
    /// so far.
    memory: Vec<u8>,
    files: Vec<File>,
}

/// When and how the process exits by itself.
#[derive(Clone, Copy)]
struct Exit {
    at: Instant,
    code: u8,
}

/// What the process should hold.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    memory: usize,
    series: u32,
    open_files: usize,
}

/// What a query asks for.
#[derive(Default)]
struct Asked {
    freeze: Option<Duration>,
    exit_after: Option<Duration>,
    /// Whether an exit that a client asked for is reverted.
    exits_never: bool,
    exit_code: Option<u8>,
    held: Held,
}

impl Process {
    /// Creates the state at the start. The time until a configured exit counts from now.
    pub fn new(config: &Config) -> Self {
        let now = Instant::now();
        Self {
            is_supported: config.server.supports_all_faults(),
            exit_at_start: config.exit_after.map(|after| Exit {
                at: now + after,
                code: config.exit_code,
            }),
            exit: None,
            freeze: None,
            held: Change::new(Held::default()),
            memory: Vec::new(),
            files: Vec::new(),
        }
    }

    /// Returns whether a change is in force at `now`.
    pub fn is_active(&self, now: Instant) -> bool {
        self.exit(now).is_some() || self.held.is_active(now)
    }

    /// Returns the exit that a client asked for, unless its change ended by `now` and before the exit.
    fn exit(&self, now: Instant) -> Option<Exit> {
        let ended_at = self.held.until.filter(|until| *until <= now);
        self.exit
            .filter(|exit| ended_at.is_none_or(|ended_at| exit.at <= ended_at))
    }

    /// Returns how many extra series are exposed at `now`.
    pub fn extra_series(&self, now: Instant) -> u32 {
        self.held.settings(now).series
    }

    /// Changes the settings that a query names. If any of them is invalid, nothing changes. Returns
    /// whether anything has changed.
    ///
    /// # Errors
    /// A line that tells the client what is accepted.
    pub fn change(&mut self, query: &str, now: Instant) -> Result<bool, String> {
        if !self.is_supported {
            return Err(
                "process cannot be changed with --server tiny-http: start tiny-probe with \
                 --server event-loop\n"
                    .to_owned(),
            );
        }
        let mut until = self.held.end(now);
        let mut asked = Asked {
            held: *self.held.settings(now),
            ..Asked::default()
        };
        let setting = |name: &str| SETTINGS.iter().find(|setting| setting.name == name);
        let accepted = |name: &str| match setting(name) {
            Some(setting) => Some((setting.name, setting.accepted)),
            None => (name == FOR).then_some((FOR, ACCEPTED_CHANGE_DURATION)),
        };
        let set = &mut |name: &'static str, value: &str| match setting(name) {
            Some(setting) => (setting.set)(&mut asked, value),
            None => parse_end(value, now).map(|end| until = Some(end)),
        };
        let named = query::parse(query, Some(ACCEPTED_NAMES), &accepted, set)?;
        if asked.exit_code.is_some() && asked.exit_after.is_none() && !asked.exits_never {
            return Err("exit-code: expected exit-after as well\n".to_owned());
        }
        let is_held = named.iter().any(|name| !WITHOUT_FOR.contains(name));
        if is_held && !named.contains(&FOR) {
            return Err(MISSING_END.to_owned());
        }
        if asked.held.memory != self.held.settings(now).memory {
            self.memory = reserve(asked.held.memory)?;
        }

        self.freeze = asked.freeze.or(self.freeze);
        // An exit whose change has ended must not come back with the new `for`.
        let exit_before = self.exit(now);
        self.exit = exit_before.filter(|_| !asked.exits_never);
        if let Some(after) = asked.exit_after {
            self.exit = Some(Exit {
                at: now + after,
                code: asked.exit_code.unwrap_or(DEFAULT_EXIT_CODE),
            });
        }
        let is_other = self.held.put(asked.held, until, now);
        let is_taken_back = exit_before.is_some() && asked.exits_never;
        Ok(is_other || is_taken_back || asked.freeze.is_some() || asked.exit_after.is_some())
    }

    /// Reverts everything that has not happened yet. Returns whether there was anything.
    pub fn revert(&mut self, now: Instant) -> bool {
        let is_change = self.is_active(now) || self.freeze.is_some();
        self.freeze = None;
        self.exit = None;
        self.held.revert(now) || is_change
    }

    /// Writes what is in force at `now`, one setting per line, in the syntax of a query.
    pub fn write(&self, to: &mut String, now: Instant) {
        let held = self.held.settings(now);
        let memory = write_size(held.memory);
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(to, "memory={memory}");
        let _ = writeln!(to, "series={}", held.series);
        let _ = writeln!(to, "open-files={}", held.open_files);
        let freeze = duration::write(self.freeze.unwrap_or_default());
        let _ = writeln!(to, "freeze={freeze}");
        let exit = self.exit(now).or(self.exit_at_start);
        let after = exit.map_or_else(|| NEVER.to_owned(), |exit| write_time_left(exit.at, now));
        let code = exit.map_or(DEFAULT_EXIT_CODE, |exit| exit.code);
        let _ = writeln!(to, "exit-after={after}\nexit-code={code}");
        self.held.write_end(to, now);
    }

    /// Carries out what is due. Returns the time after which to call it again.
    pub fn act(&mut self) -> Option<Duration> {
        let has_nothing_due = self.exit.is_none()
            && self.exit_at_start.is_none()
            && self.freeze.is_none()
            && self.held.until.is_none();
        if has_nothing_due {
            return None;
        }
        let mut now = Instant::now();
        self.exit_if_due(now);
        if let Some(time) = self.freeze.take() {
            thread::sleep(time);
            now = Instant::now();
            self.exit_if_due(now);
        }
        if !self.hold(now) {
            return Some(Duration::ZERO);
        }
        let end = self.held.end(now);
        if end.is_none() {
            // The change has ended, and everything is released.
            self.exit = self.exit(now);
            self.held.until = None;
            self.held.changed = self.held.at_start;
        }
        let exit = self.exit.or(self.exit_at_start);
        let next = exit.map(|exit| exit.at).into_iter().chain(end).min();
        next.map(|next| next.saturating_duration_since(now))
    }

    fn exit_if_due(&self, now: Instant) {
        if let Some(exit) = self.exit(now).or(self.exit_at_start)
            && exit.at <= now
        {
            let code = exit.code;
            diagnostics::print(format_args!("exiting with code {code} (exit-after)"));
            process::exit(code.into());
        }
    }

    /// Allocates or releases what should be held, or a part of it. Returns whether that is complete.
    fn hold(&mut self, now: Instant) -> bool {
        let held = *self.held.settings(now);
        if held.memory == 0 {
            self.memory = Vec::new();
        } else {
            let length = self.memory.len().saturating_add(MEMORY_BYTES_PER_WAKE_UP);
            self.memory.resize(length.min(held.memory), 1);
        }
        self.files.truncate(held.open_files);
        let has_opened = self.open_files(held.open_files);
        self.files.shrink_to_fit();
        self.memory.len() == held.memory && has_opened
    }

    /// Opens files until `count` are open, or a part of them. Returns whether that is complete.
    fn open_files(&mut self, count: usize) -> bool {
        let limit = getrlimit(Resource::Nofile).current;
        let limit = limit.map_or(usize::MAX, |limit| limit as usize);
        for _ in 0..FILES_PER_WAKE_UP {
            if self.files.len() == count {
                return true;
            }
            let file = match self.files.first() {
                Some(file) => file.try_clone(),
                None => File::open("/dev/null"),
            };
            // The kernel chooses the lowest free number, so all higher numbers are free.
            let file = file.ok().filter(|file| {
                let number = usize::try_from(file.as_raw_fd()).unwrap_or_default();
                number + FREE_DESCRIPTORS < limit
            });
            let Some(file) = file else {
                diagnostics::report(format_args!(
                    "{} of {count} extra descriptors are open: the limit, {limit}, allows no more",
                    self.files.len()
                ));
                // Otherwise every wake-up would try again.
                self.held.changed.open_files = self.files.len();
                return true;
            };
            self.files.push(file);
        }
        self.files.len() == count
    }
}

/// Allocates memory without touching it.
fn reserve(size: usize) -> Result<Vec<u8>, String> {
    let mut memory = Vec::new();
    if size == 0 {
        return Ok(memory);
    }
    let reserved = memory.try_reserve_exact(size.max(MIN_RESERVED_BYTES));
    reserved.map_err(|_| {
        let size = write_size(size);
        format!("memory={size}: expected less, because the system cannot allocate that much\n")
    })?;
    Ok(memory)
}

/// The units of sizes.
static UNITS: [(&str, usize); 4] = [("GiB", 1024 * MIB), ("MiB", MIB), ("KiB", 1024), ("B", 1)];

/// Parses a size with its unit.
fn parse_size(value: &str) -> Option<usize> {
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| Some((value.strip_suffix(name)?, unit)))?;
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
    let number = number.parse::<usize>().ok().filter(|_| is_number)?;
    let size = number.checked_mul(*unit)?;
    (size <= MAX_MEMORY_BYTES).then_some(size)
}

/// Writes a size as a whole number of the largest possible unit. [`parse_size`] parses it.
fn write_size(size: usize) -> String {
    let mut units = UNITS.iter();
    let largest = units.find(|(_, unit)| size >= *unit && size.is_multiple_of(*unit));
    let (name, unit) = largest.unwrap_or(&("B", 1));
    format!("{}{name}", size / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> (Process, Instant) {
        (Process::new(&Config::default()), Instant::now())
    }

    #[test]
    fn sizes_are_parsed_as_they_are_written() {
        for (text, size) in [
            ("0B", 0),
            ("1B", 1),
            ("1000B", 1000),
            ("1KiB", 1024),
            ("64MiB", 64 * MIB),
            ("1025MiB", 1025 * MIB),
            ("1GiB", 1024 * MIB),
        ] {
            assert_eq!(write_size(size), text);
            let accepted = (size <= MAX_MEMORY_BYTES).then_some(size);
            assert_eq!(parse_size(text), accepted, "{text}");
        }
        assert_eq!(parse_size("1024MiB"), Some(MAX_MEMORY_BYTES));
        for rejected in [
            "",
            "B",
            "0",
            "64",
            "64MB",
            "64 MiB",
            "+1B",
            "-1B",
            "1.5GiB",
            "1073741825B",
            "99999999999999999999B",
            "18014398509481984KiB",
        ] {
            assert_eq!(parse_size(rejected), None, "{rejected}");
        }
    }

    #[test]
    fn every_range_ends_where_the_documents_say() {
        for (accepted, rejected) in [
            ("freeze=10m", "freeze=600001ms"),
            ("memory=1GiB", "memory=1073741825B"),
            ("series=100000", "series=100001"),
            ("open-files=1000000", "open-files=1000001"),
            ("exit-after=24h", "exit-after=86400001ms"),
            ("exit-after=1h&exit-code=255", "exit-after=1h&exit-code=256"),
        ] {
            let (mut process, now) = process();
            let mut change = |query| process.change(&format!("{query}&for=1h"), now);
            assert!(change(rejected).is_err(), "{rejected}");
            assert_eq!(change(accepted), Ok(true), "{accepted}");
        }
    }

    #[test]
    fn memory_is_touched_in_parts_and_released_at_the_end() {
        let (mut process, now) = process();
        assert_eq!(process.act(), None);
        assert_eq!(process.change("memory=9MiB&for=1h", now), Ok(true));
        assert_eq!(process.change("memory=9MiB&for=1h", now), Ok(false));
        for held in [4, 8] {
            assert_eq!(process.act(), Some(Duration::ZERO));
            assert_eq!(process.memory.len(), held * MIB);
            assert!(
                process.memory.capacity() >= MIN_RESERVED_BYTES,
                "all at once"
            );
        }
        let left = process.act().unwrap();
        assert_eq!(process.memory.len(), 9 * MIB);
        assert!(left <= Duration::from_secs(3600) && !left.is_zero());
        assert!(
            process.memory.iter().all(|byte| *byte == 1),
            "it is touched"
        );
        assert!(process.is_active(now));
        assert!(process.revert(now));
        assert!(!process.revert(now));
        assert_eq!(process.act(), None);
        assert_eq!(process.memory.capacity(), 0);
    }

    #[test]
    fn less_memory_is_held_if_less_is_asked_for() {
        let (mut process, now) = process();
        process.change("memory=8MiB&for=1m", now).unwrap();
        while process.act() == Some(Duration::ZERO) {}
        process.change("memory=1MiB&for=1m", now).unwrap();
        while process.act() == Some(Duration::ZERO) {}
        assert_eq!(process.memory.len(), MIB);
        // A change that does not name memory keeps it.
        process.change("series=3&for=1m", now).unwrap();
        assert_eq!(process.memory.len(), MIB);
        assert_eq!(process.extra_series(now), 3);
        assert_eq!(process.extra_series(now + Duration::from_secs(60)), 0);
    }

    #[test]
    fn descriptors_are_opened_and_closed() {
        let (mut process, now) = process();
        process.change("open-files=100&for=1m", now).unwrap();
        while process.act() == Some(Duration::ZERO) {}
        assert_eq!(process.files.len(), 100);
        process.change("open-files=10&for=1m", now).unwrap();
        process.act();
        assert_eq!(process.files.len(), 10);
        process.revert(now);
        process.act();
        assert_eq!(process.files.len(), 0);
    }

    #[test]
    fn an_exit_that_replaces_the_configured_one_can_be_reverted() {
        let config = Config {
            exit_after: Some(Duration::from_secs(3600)),
            exit_code: 7,
            ..Config::default()
        };
        let (mut process, now) = (Process::new(&config), Instant::now());
        let settings = |process: &Process| {
            let mut text = String::new();
            process.write(&mut text, now);
            text
        };
        let at_start =
            "memory=0B\nseries=0\nopen-files=0\nfreeze=0s\nexit-after=3600s\nexit-code=7\n";
        assert_eq!(settings(&process), at_start);
        assert!(!process.is_active(now), "no client has asked for it");
        assert!(process.act().is_some(), "it is waited for");
        assert_eq!(process.change("exit-after=20s", now), Ok(true));
        assert!(settings(&process).ends_with("exit-after=20s\nexit-code=1\n"));
        assert!(process.is_active(now));
        assert!(process.revert(now));
        assert_eq!(settings(&process), at_start);
        process.change("exit-after=20s", now).unwrap();
        assert_eq!(process.change("exit-after=never", now), Ok(true));
        assert_eq!(process.change("exit-after=never", now), Ok(false));
        assert_eq!(settings(&process), at_start, "the configured one stays");
    }

    #[test]
    fn the_end_of_a_change_cancels_a_later_exit() {
        let (mut process, now) = process();
        let after = |seconds| now + Duration::from_secs(seconds);
        process.change("exit-after=20s&for=20s", now).unwrap();
        assert!(process.is_active(after(20)), "both are due");
        process.change("exit-after=1h&for=2s", now).unwrap();
        assert!(process.is_active(after(1)));
        assert!(!process.is_active(after(2)));
        // The process has not acted in between.
        process.change("series=1&for=1m", after(3)).unwrap();
        assert!(!process.is_active(after(63)), "it does not come back");
        process.change("exit-after=1h", after(70)).unwrap();
        assert!(process.is_active(after(80)), "it needs no end");
    }

    #[test]
    fn a_freeze_that_has_not_begun_can_be_reverted() {
        let (mut process, now) = process();
        process.change("freeze=10m", now).unwrap();
        assert!(process.revert(now));
        assert!(!process.revert(now));
        assert_eq!(process.act(), None);
    }

    #[test]
    fn the_process_freezes_once_for_the_given_time() {
        let (mut process, now) = process();
        assert_eq!(process.change("freeze=20ms", now), Ok(true));
        let started = Instant::now();
        assert_eq!(process.act(), None);
        assert!(started.elapsed() >= Duration::from_millis(20));
        assert_eq!(process.freeze, None);
    }
}
