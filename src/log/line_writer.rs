//! Writes whole lines to a standard stream without ever waiting for its reader.
//!
//! Lines that do not fit into the stream wait in a buffer. When the buffer is full, lines are dropped and
//! counted, and the count is written in their place.
//!
//! Other processes may share the stream. Its flags therefore stay unchanged. Each write consists of whole
//! lines and is short enough to be atomic on a pipe, so that lines of other processes can appear between
//! lines but not within them.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use rustix::pipe::PIPE_BUF;

/// The size of the buffer in bytes, about 3500 lines. A pipe holds another 64 KiB.
const MAX_UNWRITTEN_BYTES: usize = 256 * 1024;
/// [`LineWriter::push`] writes the buffer whenever it has grown by this much. Otherwise a burst of lines could
/// fill it before the next flush.
const CHUNK_BYTES: usize = 16 * 1024;
/// How long to wait before writing again to a stream that was full.
pub const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Writes lines to a stream.
pub struct LineWriter<S> {
    stream: S,
    kind: Kind,
    /// The text before and after the number of dropped lines.
    notice: [&'static str; 2],
    /// The buffer: whole lines, except that a part of the first one may already be written.
    unwritten: Vec<u8>,
    /// The number of lines dropped after those in the buffer.
    dropped: u64,
}

/// The kind of a stream, which decides how to write without waiting.
enum Kind {
    /// A regular file, which always has room.
    File,
    /// A pipe or a terminal. It was opened a second time, and the new file description is non-blocking.
    Own(OwnedFd),
    /// Any other stream. `poll` tells whether it has room. The write can still wait if another process
    /// takes that room first, or if a terminal has room for less than a line.
    Shared,
}

impl Kind {
    fn of(stream: &(impl AsFd + ?Sized)) -> Self {
        let stream = stream.as_fd();
        let file_type = fstat(stream).map(|stat| FileType::from_raw_mode(stat.st_mode));
        match file_type {
            Ok(FileType::RegularFile) => return Self::File,
            Ok(FileType::Fifo) => {}
            _ if stream.is_terminal() => {}
            _ => return Self::Shared,
        }
        // On Linux this opens the stream a second time, unless it belongs to another user. Other systems do
        // not support this.
        let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        open(path, flags, Mode::empty()).map_or(Self::Shared, Self::Own)
    }
}

impl<S: AsFd> LineWriter<S> {
    /// Creates a writer for `stream`. Dropped lines are replaced with a line that consists of their number
    /// between the two parts of `notice`.
    pub fn new(stream: S, notice: [&'static str; 2]) -> Self {
        Self {
            kind: Kind::of(&stream),
            stream,
            notice,
            unwritten: Vec::new(),
            dropped: 0,
        }
    }

    /// Adds a line, given without its line break; the next flush writes it. If the buffer is full, the
    /// line is dropped and counted. After that all lines are dropped until the buffer has been written, so
    /// that the dropped lines are consecutive.
    pub fn push(&mut self, line: impl Display) {
        if self.dropped > 0 {
            self.dropped += 1;
            return;
        }
        let before = self.unwritten.len();
        // Writing to a Vec cannot fail, here and below.
        let _ = writeln!(self.unwritten, "{line}");
        if MAX_UNWRITTEN_BYTES < self.unwritten.len() {
            self.unwritten.truncate(before);
            self.dropped = 1;
        } else if self.unwritten.len() / CHUNK_BYTES != before / CHUNK_BYTES {
            self.flush();
        }
    }

    /// Writes as much as the stream has room for, without waiting. Returns whether the stream is full, so
    /// that it is worth trying again after [`RETRY_INTERVAL`]. After any other error the lines are kept for
    /// the next flush: a full disk, for example, can have room again later.
    pub fn flush(&mut self) -> bool {
        let mut written_bytes = 0;
        let is_full = loop {
            let rest = &self.unwritten[written_bytes..];
            if rest.is_empty() && self.dropped == 0 {
                break false;
            }
            if rest.is_empty() {
                self.unwritten.clear();
                written_bytes = 0;
                let [before, after] = self.notice;
                let _ = writeln!(self.unwritten, "{before}{}{after}", self.dropped);
                self.dropped = 0;
                continue;
            }
            match self.write(rest) {
                Ok(count) if count > 0 => written_bytes += count,
                Err(Errno::INTR) => {}
                result => break result == Err(Errno::AGAIN),
            }
        };
        self.unwritten.drain(..written_bytes);
        if self.unwritten.is_empty() {
            // Twice the chunk, because the line that completes a chunk can exceed it.
            self.unwritten.shrink_to(2 * CHUNK_BYTES);
        }
        is_full
    }

    /// Flushes until everything is written, an error occurs, or the deadline has passed.
    pub fn flush_until(&mut self, deadline: Instant) {
        while self.flush() && Instant::now() < deadline {
            thread::sleep(RETRY_INTERVAL);
        }
    }

    /// Makes one attempt to write, and returns how many bytes were written.
    fn write(&self, lines: &[u8]) -> rustix::io::Result<usize> {
        match &self.kind {
            Kind::File => rustix::io::write(&self.stream, lines),
            Kind::Own(stream) => rustix::io::write(stream, atomic_part(lines)),
            Kind::Shared => {
                let mut room = [PollFd::new(&self.stream, PollFlags::OUT)];
                if poll(&mut room, Some(&Timespec::default()))? == 0 {
                    return Err(Errno::AGAIN);
                }
                rustix::io::write(&self.stream, atomic_part(lines))
            }
        }
    }
}

/// Returns as many whole lines as a pipe accepts in an atomic write (`PIPE_BUF` in POSIX). If the first line
/// is longer, returns its beginning.
fn atomic_part(lines: &[u8]) -> &[u8] {
    let part = &lines[..lines.len().min(PIPE_BUF)];
    let end = part.iter().rposition(|byte| *byte == b'\n');
    end.map_or(part, |end| &part[..=end])
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{self, Read, Seek};
    use std::os::unix::net::UnixStream;

    use rustix::fs::fcntl_getfl;

    use super::*;

    const NOTICE: [&str; 2] = ["# lines dropped: ", ""];

    /// A line that starts with its number. The lengths vary.
    fn line(number: usize) -> String {
        format!("{number} {}", "x".repeat(number % 150))
    }

    /// Writes far more lines than there is room for while the reader is stuck, then lets it read. Checks
    /// that the count of dropped lines is right.
    fn check_stuck_reader<S: AsFd>(mut writer: LineWriter<S>, mut reader: impl Read + Send) {
        const LINES: usize = 50_000;
        for number in 0..LINES {
            writer.push(line(number));
        }
        assert!(writer.flush(), "the stream is full");
        assert!(writer.flush(), "the stream is still full");
        writer.flush_until(Instant::now());
        let flags = fcntl_getfl(&writer.stream).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK), "the flags are unchanged");

        let read = thread::scope(|scope| {
            let read = scope.spawn(|| {
                let mut read = Vec::new();
                // Reading from a closed terminal ends with an error.
                let _ = reader.read_to_end(&mut read);
                String::from_utf8(read).unwrap()
            });
            writer.flush_until(Instant::now() + Duration::from_secs(60));
            writer.push("the next");
            writer.flush_until(Instant::now() + Duration::from_secs(60));
            drop(writer);
            read.join().unwrap()
        });
        assert!(read.ends_with('\n'));
        let mut lines = read.lines();
        assert_eq!(lines.next_back(), Some("the next"));
        let dropped = lines.next_back().unwrap().strip_prefix(NOTICE[0]).unwrap();
        let dropped: usize = dropped.parse().unwrap();
        let intact = lines
            .enumerate()
            .filter(|(number, text)| *text == line(*number));
        assert_eq!(intact.count() + dropped, LINES);
        // The stream holds less than 1 MiB. A line has 75 bytes or more on average.
        let max_kept = (256 * 1024 + 1024 * 1024) / 75;
        assert!(LINES - dropped < max_kept, "only {dropped} are dropped");
    }

    #[test]
    fn lines_for_a_full_pipe_are_dropped_and_counted() {
        let (reader, stream) = io::pipe().unwrap();
        let writer = LineWriter::new(stream, NOTICE);
        assert!(matches!(writer.kind, Kind::Own(_)) || cfg!(not(target_os = "linux")));
        check_stuck_reader(writer, reader);
    }

    #[test]
    fn lines_for_a_full_pipe_that_cannot_be_reopened_are_dropped_and_counted() {
        let (reader, stream) = io::pipe().unwrap();
        let mut writer = LineWriter::new(stream, NOTICE);
        writer.kind = Kind::Shared;
        check_stuck_reader(writer, reader);
    }

    #[test]
    fn lines_for_a_full_socket_are_dropped_and_counted() {
        let (reader, stream) = UnixStream::pair().unwrap();
        let writer = LineWriter::new(stream, NOTICE);
        assert!(matches!(writer.kind, Kind::Shared));
        check_stuck_reader(writer, reader);
    }

    /// On other systems the write waits if the terminal has room for less than a line.
    #[cfg(target_os = "linux")]
    #[test]
    fn lines_for_a_full_terminal_are_dropped_and_counted() {
        use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};

        let reader = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        unlockpt(&reader).unwrap();
        let name = ptsname(&reader, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let stream = open(name, flags, Mode::empty()).unwrap();
        let writer = LineWriter::new(stream, NOTICE);
        assert!(matches!(writer.kind, Kind::Own(_)));
        check_stuck_reader(writer, File::from(reader));
    }

    #[test]
    fn a_reader_that_keeps_up_gets_every_line() {
        let (mut reader, stream) = io::pipe().unwrap();
        let mut writer = LineWriter::new(stream, NOTICE);
        let mut expected = String::new();
        for number in 0..2000 {
            writer.push(line(number));
            expected += &(line(number) + "\n");
        }
        let mut read = vec![0; expected.len()];
        let mut count = 0;
        while count < read.len() {
            writer.flush();
            let mut ready = [PollFd::new(&reader, PollFlags::IN)];
            assert_eq!(poll(&mut ready, Some(&Timespec::default())), Ok(1));
            count += reader.read(&mut read[count..]).unwrap();
        }
        assert_eq!(String::from_utf8(read).unwrap(), expected);
        assert!(!writer.flush());
    }

    #[test]
    fn a_file_gets_every_line() {
        let path = std::env::temp_dir().join(format!("tiny-probe-{}", std::process::id()));
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(path).unwrap();
        let mut writer = LineWriter::new(&file, NOTICE);
        assert!(matches!(writer.kind, Kind::File));
        for number in 0..10_000 {
            writer.push(line(number));
        }
        assert!(!writer.flush());
        drop(writer);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        let intact = text
            .lines()
            .enumerate()
            .filter(|(number, text)| *text == line(*number));
        assert_eq!(intact.count(), 10_000);
    }

    #[test]
    fn a_write_consists_of_whole_lines_unless_the_first_one_is_too_long() {
        assert_eq!(atomic_part(b"one\ntwo\n"), b"one\ntwo\n");
        let long = [b"one\ntwo\n", &[b'x'; PIPE_BUF][..]].concat();
        assert_eq!(atomic_part(&long), b"one\ntwo\n");
        assert_eq!(atomic_part(&long[8..]), &[b'x'; PIPE_BUF]);
    }

    #[test]
    fn a_stream_with_an_error_is_not_waited_for() {
        let (_, broken) = io::pipe().unwrap();
        let mut streams = vec![OwnedFd::from(broken)];
        // macOS does not have this device.
        if let Ok(full) = File::options().write(true).open("/dev/full") {
            streams.push(full.into());
        }
        for stream in streams {
            let mut writer = LineWriter::new(stream, NOTICE);
            for number in 0..50_000 {
                writer.push(line(number));
            }
            assert!(!writer.flush());
            // Every line is shorter than the tolerance.
            let free = (256 * 1024_usize).checked_sub(writer.unwritten.len());
            assert!(
                free.is_some_and(|free| free < 200),
                "{free:?} bytes are free"
            );
            let started = Instant::now();
            writer.flush_until(started + Duration::from_secs(600));
            assert!(started.elapsed() < Duration::from_secs(60));
        }
    }

    #[test]
    fn a_line_that_is_too_long_for_an_atomic_write_is_written_completely() {
        let (mut reader, stream) = io::pipe().unwrap();
        let mut writer = LineWriter::new(stream, NOTICE);
        let long = "x".repeat(3 * PIPE_BUF);
        writer.push(&long);
        writer.push("the next");
        assert!(!writer.flush());
        drop(writer);
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, long + "\nthe next\n");
    }
}
