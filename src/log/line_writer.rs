//! Whole lines to a standard stream, without ever waiting for whoever reads it.
//!
//! What finds no room in the stream waits in a buffer. What finds no room there is left out and
//! counted, and the number is written where the lines would be.
//!
//! The stream may be shared with other processes, so that its flags are not ours to change, and lines
//! of theirs come between two writes of ours: each write is of whole lines, and no longer than what a
//! pipe takes in one piece.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use rustix::pipe::PIPE_BUF;

/// What may wait, in bytes: some 3500 lines. A pipe holds another 64 KiB.
const MAX_UNWRITTEN: usize = 256 * 1024;
/// Beyond this many bytes lines do not wait for the flush: there may be more of them before it comes
/// than may wait.
const CHUNK: usize = 16 * 1024;
/// The pause before a stream that was full is tried again.
pub const PAUSE: Duration = Duration::from_millis(10);

/// Writes lines to a stream.
pub struct LineWriter<S> {
    stream: S,
    kind: Kind,
    /// What stands before and behind the number of lines left out.
    notice: [&'static str; 2],
    /// Whole lines, but for the first of them if a part of it is written.
    unwritten: Vec<u8>,
    /// How many lines are left out behind these.
    left_out: u64,
}

/// How to write without waiting.
enum Kind {
    /// A regular file always has room.
    File,
    /// A pipe or a terminal, with a file description of our own, which is non-blocking.
    Own(OwnedFd),
    /// Anything else: `poll` says whether there is room. If another process is faster to take it, or
    /// a terminal has less than a line, the write waits.
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
        // Linux opens anew what is open, unless it belongs to another user. Others do not.
        let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        open(path, flags, Mode::empty()).map_or(Self::Shared, Self::Own)
    }
}

impl<S: AsFd> LineWriter<S> {
    /// Writes to `stream`. The number of lines left out is a line of its own, between the two parts of
    /// `notice`.
    pub fn new(stream: S, notice: [&'static str; 2]) -> Self {
        Self {
            kind: Kind::of(&stream),
            stream,
            notice,
            unwritten: Vec::new(),
            left_out: 0,
        }
    }

    /// Takes a line, without its end, to be written by the next flush; or counts it, if there is no
    /// room for it. Once one is left out all are, until the reader has caught up: what is missing
    /// is missing in one place.
    pub fn push(&mut self, line: impl Display) {
        if self.left_out > 0 {
            self.left_out += 1;
            return;
        }
        let before = self.unwritten.len();
        // A Vec takes every write, here and below.
        let _ = writeln!(self.unwritten, "{line}");
        if MAX_UNWRITTEN < self.unwritten.len() {
            self.unwritten.truncate(before);
            self.left_out = 1;
        } else if self.unwritten.len() / CHUNK != before / CHUNK {
            self.flush();
        }
    }

    /// Writes as much as there is room for, and never waits. Gives whether the rest is worth another
    /// try soon: the reader is slow. What fails in another way is kept, too, until the next flush: a
    /// disk may have room again.
    pub fn flush(&mut self) -> bool {
        let mut written = 0;
        let is_full = loop {
            let unwritten = &self.unwritten[written..];
            if unwritten.is_empty() && self.left_out == 0 {
                break false;
            }
            if unwritten.is_empty() {
                self.unwritten.clear();
                written = 0;
                let [before, behind] = self.notice;
                let _ = writeln!(self.unwritten, "{before}{}{behind}", self.left_out);
                self.left_out = 0;
                continue;
            }
            match self.write(unwritten) {
                Ok(count) if count > 0 => written += count,
                Err(Errno::INTR) => {}
                result => break result == Err(Errno::AGAIN),
            }
        };
        self.unwritten.drain(..written);
        if self.unwritten.is_empty() {
            // A chunk may end within a line.
            self.unwritten.shrink_to(2 * CHUNK);
        }
        is_full
    }

    /// Flushes as far as the reader takes it until then.
    pub fn flush_until(&mut self, deadline: Instant) {
        while self.flush() && Instant::now() < deadline {
            thread::sleep(PAUSE);
        }
    }

    /// Writes once.
    fn write(&self, lines: &[u8]) -> rustix::io::Result<usize> {
        match &self.kind {
            Kind::File => rustix::io::write(&self.stream, lines),
            Kind::Own(stream) => rustix::io::write(stream, piece(lines)),
            Kind::Shared => {
                let mut room = [PollFd::new(&self.stream, PollFlags::OUT)];
                if poll(&mut room, Some(&Timespec::default()))? == 0 {
                    return Err(Errno::AGAIN);
                }
                rustix::io::write(&self.stream, piece(lines))
            }
        }
    }
}

/// As many lines as a pipe takes in one piece (POSIX, write), or a piece of a line that is longer.
fn piece(lines: &[u8]) -> &[u8] {
    let piece = &lines[..lines.len().min(PIPE_BUF)];
    let end = piece.iter().rposition(|byte| *byte == b'\n');
    end.map_or(piece, |end| &piece[..=end])
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{self, Read, Seek};
    use std::os::unix::net::UnixStream;

    use rustix::fs::fcntl_getfl;

    use super::*;

    const NOTICE: [&str; 2] = ["# lines left out: ", ""];

    /// What is pushed: the number and enough to make many of them.
    fn line(number: usize) -> String {
        format!("{number} {}", "x".repeat(number % 150))
    }

    /// Lines for a reader that is stuck, far more than there is room for; then it reads on.
    fn a_stuck_reader<S: AsFd>(mut writer: LineWriter<S>, mut reader: impl Read + Send) {
        const LINES: usize = 50_000;
        for number in 0..LINES {
            writer.push(line(number));
        }
        assert!(writer.flush(), "worth another try");
        assert!(writer.flush(), "again and again");
        writer.flush_until(Instant::now());
        let flags = fcntl_getfl(&writer.stream).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK), "the stream is as it was");

        let read = thread::scope(|scope| {
            let read = scope.spawn(|| {
                let mut read = Vec::new();
                // A terminal that is closed ends with an error.
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
        let left_out = lines.next_back().unwrap().strip_prefix(NOTICE[0]).unwrap();
        let left_out: usize = left_out.parse().unwrap();
        let whole = lines.enumerate().filter(|(at, got)| *got == line(*at));
        assert_eq!(whole.count() + left_out, LINES);
        let at_most = (MAX_UNWRITTEN + 1024 * 1024) / 75;
        assert!(LINES - left_out < at_most, "{left_out} are left out");
    }

    #[test]
    fn a_pipe_that_is_full_costs_lines_and_they_are_counted() {
        let (reader, stream) = io::pipe().unwrap();
        let writer = LineWriter::new(stream, NOTICE);
        assert!(matches!(writer.kind, Kind::Own(_)) || cfg!(not(target_os = "linux")));
        a_stuck_reader(writer, reader);
    }

    #[test]
    fn so_does_a_pipe_that_cannot_be_opened_anew() {
        let (reader, stream) = io::pipe().unwrap();
        let mut writer = LineWriter::new(stream, NOTICE);
        writer.kind = Kind::Shared;
        a_stuck_reader(writer, reader);
    }

    #[test]
    fn so_does_a_socket() {
        let (reader, stream) = UnixStream::pair().unwrap();
        let writer = LineWriter::new(stream, NOTICE);
        assert!(matches!(writer.kind, Kind::Shared));
        a_stuck_reader(writer, reader);
    }

    /// Elsewhere the write waits if the terminal has less than a line.
    #[cfg(target_os = "linux")]
    #[test]
    fn so_does_a_terminal() {
        use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};

        let reader = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        unlockpt(&reader).unwrap();
        let name = ptsname(&reader, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let stream = open(name, flags, Mode::empty()).unwrap();
        let writer = LineWriter::new(stream, NOTICE);
        assert!(matches!(writer.kind, Kind::Own(_)));
        a_stuck_reader(writer, File::from(reader));
    }

    #[test]
    fn a_reader_that_keeps_up_misses_none() {
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
    fn a_file_takes_everything_at_once() {
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
        let mut written = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut written).unwrap();
        let whole = written.lines().enumerate();
        assert_eq!(whole.filter(|(at, got)| *got == line(*at)).count(), 10_000);
    }

    #[test]
    fn a_piece_is_of_whole_lines_unless_one_is_too_long() {
        assert_eq!(piece(b"one\ntwo\n"), b"one\ntwo\n");
        let long = [b"one\ntwo\n", &[b'x'; PIPE_BUF][..]].concat();
        assert_eq!(piece(&long), b"one\ntwo\n");
        assert_eq!(piece(&long[8..]), &[b'x'; PIPE_BUF]);
    }

    #[test]
    fn what_cannot_be_written_is_not_waited_for() {
        let (_, broken) = io::pipe().unwrap();
        let mut streams = vec![OwnedFd::from(broken)];
        // macOS has no such device.
        if let Ok(full) = File::options().write(true).open("/dev/full") {
            streams.push(full.into());
        }
        for stream in streams {
            let mut writer = LineWriter::new(stream, NOTICE);
            for number in 0..50_000 {
                writer.push(line(number));
            }
            assert!(!writer.flush());
            assert!(writer.unwritten.len() <= MAX_UNWRITTEN);
            let started = Instant::now();
            writer.flush_until(started + Duration::from_secs(600));
            assert!(started.elapsed() < Duration::from_secs(60));
        }
    }

    #[test]
    fn a_line_longer_than_a_pipe_takes_in_one_piece_comes_whole() {
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
