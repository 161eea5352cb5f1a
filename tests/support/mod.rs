//! A running service and its clients, for the tests: a real process, real sockets, real signals.
//!
//! Every wait ends after [`TIMEOUT`] with a panic that says what was waited for.

#![allow(dead_code, reason = "each test crate uses its own part of this module")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub const TIMEOUT: Duration = Duration::from_secs(60);

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_tiny-probe");

/// A command that runs the program, without the environment variables of the person who runs the tests.
pub fn program() -> Command {
    let mut command = ending_with_this_thread(PROGRAM);
    command.env_clear().stdin(Stdio::null());
    command
}

/// A command that runs a program. On Linux, the kernel kills the program when the thread that started it
/// ends. Without this, a test binary that is killed would leave its services running.
fn ending_with_this_thread(program: impl AsRef<OsStr>) -> Command {
    if cfg!(not(target_os = "linux")) {
        return Command::new(program);
    }
    // It executes the program in the same process. It is part of util-linux.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Says why a test, or a part of it, cannot run on this machine. `cargo test` shows the output of tests that
/// pass only if it is written to the stream itself. Fails if the variable `NO_SKIPS` is set, as in `.ci/run`.
pub fn skip(reason: &str) {
    assert!(std::env::var_os("NO_SKIPS").is_none(), "skipped: {reason}");
    let thread = std::thread::current();
    let test = thread.name().unwrap_or_default();
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
}

/// Runs the program until it exits.
pub fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = program();
    command.args(arguments).envs(environment.iter().copied());
    command.output().expect("the program starts")
}

/// A running service. Dropping it kills the process.
pub struct Service {
    child: Child,
    /// Its standard error, unless it was redirected by [`start_into`](Self::start_into).
    stderr: Option<BufReader<std::process::ChildStderr>>,
    pub start_line: String,
    pub address: SocketAddr,
}

impl Service {
    /// Starts the service on a free port of 127.0.0.1.
    pub fn start(server: &str, flags: &[&str]) -> Self {
        Self::start_on("127.0.0.1:0", server, flags)
    }

    pub fn start_on(listen: &str, server: &str, flags: &[&str]) -> Self {
        let arguments = ["--listen", listen, "--server", server];
        Self::spawn(program().args(arguments).args(flags))
    }

    /// Starts the service from a shell, after a shell command such as `ulimit -n 64`.
    pub fn start_after(before: &str, server: &str, flags: &[&str]) -> Self {
        Self::start_with(server, flags, |program| {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("{before} && exec \"$0\" \"$@\""), program]);
            shell
        })
    }

    /// Starts the service through another program, such as a shell.
    pub fn start_with(server: &str, flags: &[&str], through: impl FnOnce(&str) -> Command) -> Self {
        let through = through(PROGRAM);
        let mut command = ending_with_this_thread(through.get_program());
        let arguments = ["--listen", "127.0.0.1:0", "--server", server];
        Self::spawn(command.args(through.get_args()).args(arguments).args(flags))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program, or setpriv, starts");
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut start_line = String::new();
        stderr.read_line(&mut start_line).unwrap();
        // These lines come first, where they apply.
        while start_line.contains("descriptor limit") || start_line.contains("--start-delay") {
            start_line.clear();
            stderr.read_line(&mut start_line).unwrap();
        }
        let (_, address) = start_line
            .trim_end()
            .split_once(" on http://")
            .unwrap_or_else(|| panic!("no start line: {start_line:?}"));
        // A service on every address prints localhost and adds a remark in parentheses.
        let (address, _) = address.split_once(' ').unwrap_or((address, ""));
        let address = address.replace("localhost", "127.0.0.1").parse().unwrap();
        Self {
            child,
            stderr: Some(stderr),
            start_line,
            address,
        }
    }

    /// Starts the service with these streams as its standard output and standard error. Its descriptor limit
    /// is low, so that the event loop prints a message about it.
    pub fn start_into(server: &str, flags: &[&str], stdout: impl AsFd, stderr: impl AsFd) -> Self {
        let stdio = |stream: &dyn AsFd| Stdio::from(stream.as_fd().try_clone_to_owned().unwrap());
        let child = ending_with_this_thread("sh")
            .args(["-c", "ulimit -n 64; exec \"$0\" \"$@\"", PROGRAM])
            .args(["--listen", "127.0.0.1:0", "--server", server])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(stdio(&stdout))
            .stderr(stdio(&stderr))
            .spawn()
            .expect("setpriv starts");
        // The test may not be able to read the start line, so look for the port in /proc.
        let mut port = None;
        wait_until("the service listens", || {
            port = listening_port(child.id());
            port.is_some()
        });
        Self {
            child,
            stderr: None,
            start_line: String::new(),
            address: ([127, 0, 0, 1], port.unwrap()).into(),
        }
    }

    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// Sends a GET request on a new connection.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.connect().ask("GET", path)
    }

    /// Scrapes the service on a new connection.
    #[track_caller]
    pub fn scrape(&self) -> Exposition {
        Exposition::parse(&self.get("/metrics").body)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", self.pid())])
            .status();
        assert!(status.unwrap().success());
    }

    /// Waits for the process to end. Returns its exit code, or `None` if a signal ended it.
    #[track_caller]
    pub fn wait(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(
                started.elapsed() < TIMEOUT,
                "timed out: the service did not end"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns everything it printed on standard output. Call it after the process has ended.
    pub fn stdout(&mut self) -> String {
        let mut text = String::new();
        let stdout = self.child.stdout.as_mut().unwrap();
        stdout.read_to_string(&mut text).unwrap();
        text
    }

    /// Returns everything it printed on standard error after the start line. Call it after the process has
    /// ended.
    pub fn stderr(&mut self) -> String {
        let mut text = String::new();
        let stderr = self.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut text).unwrap();
        text
    }

    /// Waits for the next line on standard error.
    pub fn next_diagnostic(&mut self) -> String {
        let stderr = self.stderr.as_mut().unwrap();
        if stderr.buffer().is_empty() {
            let mut ready = [PollFd::new(stderr.get_ref(), PollFlags::IN)];
            let timeout = Timespec::try_from(TIMEOUT).unwrap();
            let count = poll(&mut ready, Some(&timeout));
            assert_eq!(count, Ok(1), "timed out: no diagnostic");
        }
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "not a whole line: {line:?}");
        line
    }

    /// Returns its standard output, for reading while it runs.
    pub fn take_stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().unwrap()
    }

    /// Returns a number from /proc/PID/status, such as `VmRSS` in kB or `Threads`.
    pub fn status(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Returns the state of the process: `S` while it sleeps, `T` while it is suspended.
    pub fn state(&self) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.chars().next().unwrap()
    }

    /// Asserts that the process sleeps and does not spin. It must be asleep in a sample of moments, and may
    /// wake up no more often than a retry interval of ten milliseconds explains. CPU time would be no
    /// measure: on a busy machine even a spinning process gets little of it.
    #[track_caller]
    pub fn assert_asleep(&self) {
        const SAMPLES: usize = 20;
        let wake_ups_before = self.status("voluntary_ctxt_switches");
        let started = Instant::now();
        let is_asleep = |_: &usize| {
            std::thread::sleep(Duration::from_millis(10));
            self.state() == 'S'
        };
        let asleep = (0..SAMPLES).filter(is_asleep).count();
        assert!(
            asleep > SAMPLES / 4,
            "asleep in {asleep} of {SAMPLES} samples"
        );
        let wake_ups = self.status("voluntary_ctxt_switches") - wake_ups_before;
        let limit = 10 + started.elapsed().as_millis() / 5;
        assert!(u128::from(wake_ups) < limit, "{wake_ups} wake-ups");
    }

    /// Returns the CPU time that it has used, in hundredths of a second, the unit of /proc/PID/stat.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // Field 3 follows the program's name in parentheses. utime and stime are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let fields = fields.split(' ').skip(11).take(2);
        let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(10 * ticks)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the port that a process listens on, from /proc.
fn listening_port(pid: u32) -> Option<u16> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let open: Vec<_> = descriptors
        .flatten()
        .filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok())
        .collect();
    // The fields used are the local address, the state, and the inode; see proc_pid_net(5). Listening
    // sockets come first. Stop after them, because tens of thousands of others may follow.
    let sockets = BufReader::new(File::open("/proc/net/tcp").unwrap());
    for socket in sockets.lines().skip(1) {
        let socket = socket.unwrap();
        let fields: Vec<&str> = socket.split_whitespace().collect();
        if fields[3] != "0A" {
            break;
        }
        let inode = format!("socket:[{}]", fields[9]);
        if open.iter().any(|open| open.as_os_str() == &*inode) {
            let (_, port) = fields[1].split_once(':').unwrap();
            return u16::from_str_radix(port, 16).ok();
        }
    }
    None
}

/// Waits until a condition holds. `what` describes it in the panic after [`TIMEOUT`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < TIMEOUT, "timed out, not true: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The number of requests that [`assert_others_are_served`] sends.
pub const OTHERS_REQUESTS: usize = 21;

/// Asserts that another client is served. The median time of several requests must be below 100 ms: a busy
/// machine can delay a few of them, but a blocked event loop delays them all.
#[track_caller]
pub fn assert_others_are_served(service: &Service) {
    let mut other = service.connect();
    let mut times: Vec<Duration> = (0..OTHERS_REQUESTS)
        .map(|_| {
            let started = Instant::now();
            let response = other.ask("GET", "/healthz");
            assert_eq!(response.status, 200);
            let took = started.elapsed();
            if response.field("Connection") == Some("close") {
                other = service.connect();
            }
            took
        })
        .collect();
    times.sort();
    let median = times[OTHERS_REQUESTS / 2];
    assert!(median < Duration::from_millis(100), "{times:?}");
}

/// Returns the head of a request without a body.
pub fn request(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: test\r\n\r\n")
}

/// A client with one connection to the service.
pub struct Client {
    pub stream: TcpStream,
    /// Bytes received after the last response that was returned.
    pub received: Vec<u8>,
}

/// A response as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    /// Returns the value of a field, or `None` if the field is missing. Panics if it is repeated.
    #[track_caller]
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.head.lines().skip(1).filter_map(|line| {
            let (field, value) = line.split_once(':').expect("a colon in every field");
            field.eq_ignore_ascii_case(name).then_some(value.trim())
        });
        let value = values.next();
        assert_eq!(values.next(), None, "{name} is repeated");
        value
    }
}

impl From<TcpStream> for Client {
    fn from(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Self {
            stream,
            received: Vec::new(),
        }
    }
}

impl Client {
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        Self::from(TcpStream::connect(address).expect("the service accepts"))
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = self.stream.write_all(bytes.as_ref());
        sent.expect("the service accepts the bytes");
    }

    #[track_caller]
    pub fn send_request(&mut self, method: &str, path: &str) {
        self.send(request(method, path));
    }

    /// Sends a GET request whose response is delayed, and returns when the event loop has received it. To
    /// know this, it sends another request in the same packet and waits for the response to that one.
    #[track_caller]
    pub fn send_delayed(&mut self, path: &str) {
        self.send(request("GET", "/healthz") + &request("GET", path));
        assert_eq!(self.read_response().body, "ok\n");
    }

    /// Sends a request and waits for its response. The connection stays open.
    #[track_caller]
    pub fn ask(&mut self, method: &str, path: &str) -> Response {
        self.send_request(method, path);
        if method == "HEAD" {
            self.read_response_to_head()
        } else {
            self.read_response()
        }
    }

    /// Scrapes the service on this connection.
    #[track_caller]
    pub fn scrape(&mut self) -> Exposition {
        Exposition::parse(&self.ask("GET", "/metrics").body)
    }

    /// Requests /metrics with additional header fields.
    #[track_caller]
    pub fn request_metrics(&mut self, fields: &str) -> Response {
        self.send(format!(
            "GET /metrics HTTP/1.1\r\nHost: test\r\n{fields}\r\n"
        ));
        self.read_response()
    }

    /// Waits for a response.
    #[track_caller]
    pub fn read_response(&mut self) -> Response {
        let mut response = self.read_response_to_head();
        if response.status == 204 {
            return response;
        }
        let length = response.field("Content-Length").expect("Content-Length");
        let length = length.parse().unwrap();
        while self.received.len() < length {
            assert!(
                self.receive(),
                "closed in the middle of a body: {response:?}"
            );
        }
        response.body = String::from_utf8(self.received.drain(..length).collect()).unwrap();
        response
    }

    /// Waits for the response to a HEAD request, which has no body although it has a length.
    #[track_caller]
    pub fn read_response_to_head(&mut self) -> Response {
        let end = loop {
            let end = self.received.windows(4).position(|w| w == b"\r\n\r\n");
            if let Some(end) = end {
                break end;
            }
            assert!(self.receive(), "closed without a response");
        };
        let head = String::from_utf8(self.received.drain(..end + 4).collect()).unwrap();
        assert!(head.starts_with("HTTP/1."), "no status line: {head}");
        Response {
            status: head[9..12].parse().unwrap(),
            head: head.trim_end().to_owned(),
            body: String::new(),
        }
    }

    /// Receives more bytes. Returns `false` if the service has closed the connection with a FIN.
    #[track_caller]
    pub fn receive(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(read) => {
                    self.received.extend_from_slice(&buffer[..read]);
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("the connection failed: {error}"),
            }
        }
    }

    /// Asserts that the service closes the connection with a FIN and sends nothing more.
    #[track_caller]
    pub fn expect_close(&mut self) {
        assert!(self.received.is_empty() && !self.receive(), "{:?}", {
            String::from_utf8_lossy(&self.received)
        });
    }
}

pub type Labels = BTreeMap<String, String>;

/// A series: the metric's name and its labels.
pub type Series = (String, Labels);

/// A parsed exposition, in text format 0.0.4 or in `OpenMetrics`. Exemplars are ignored.
#[derive(Debug)]
pub struct Exposition {
    pub samples: BTreeMap<Series, f64>,
    pub help: BTreeMap<String, String>,
    pub kind: BTreeMap<String, String>,
}

impl Exposition {
    pub fn parse(text: &str) -> Self {
        let mut exposition = Self {
            samples: BTreeMap::new(),
            help: BTreeMap::new(),
            kind: BTreeMap::new(),
        };
        let text = text.strip_suffix("# EOF\n").unwrap_or(text);
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let mut word = || words.next().expect("three words").to_owned();
                let (keyword, name, rest) = (word(), word(), word());
                let map = match &*keyword {
                    "HELP" => &mut exposition.help,
                    "TYPE" => &mut exposition.kind,
                    other => panic!("{other}"),
                };
                assert!(map.insert(name, rest).is_none(), "repeated: {line}");
            } else {
                let (sample, _exemplar) = line.split_once(" # ").unwrap_or((line, ""));
                let (series, value) = sample.rsplit_once(' ').expect("a value");
                let value = value.parse().expect("a number");
                let previous = exposition.samples.insert(parse_series(series), value);
                assert!(previous.is_none(), "repeated: {line}");
            }
        }
        exposition
    }

    /// Returns the value of a series, given in PromQL syntax, or 0 if it does not exist.
    pub fn value(&self, series: &str) -> f64 {
        let value = self.samples.get(&parse_series(series));
        value.copied().unwrap_or_default()
    }

    /// Returns the value of a series as a whole number.
    pub fn count(&self, series: &str) -> u64 {
        whole(self.value(series))
    }

    /// Returns the number of requests that were counted with these labels.
    pub fn requests(&self, method: &str, endpoint: &str, status: u16) -> u64 {
        let labels = format!(r#"method="{method}",endpoint="{endpoint}",http_status="{status}""#);
        self.count(&format!("app_request_count_total{{{labels}}}"))
    }

    /// Returns the number of GET requests to an endpoint that were recorded with any status.
    pub fn recorded(&self, endpoint: &str) -> u64 {
        self.count(&latency_series("count", endpoint))
    }

    /// Returns the sum of their latencies in seconds.
    pub fn total_latency(&self, endpoint: &str) -> f64 {
        self.value(&latency_series("sum", endpoint))
    }

    /// Returns the sum of all series of a counter that have this label value.
    pub fn sum(&self, metric: &str, label: &str, value: &str) -> u64 {
        let matching = self.samples.iter().filter(|((name, labels), _)| {
            name == metric && labels.get(label).is_some_and(|found| found == value)
        });
        matching.map(|(_, value)| whole(*value)).sum()
    }
}

fn latency_series(suffix: &str, endpoint: &str) -> String {
    format!(r#"app_request_latency_seconds_{suffix}{{method="GET",endpoint="{endpoint}"}}"#)
}

fn whole(count: f64) -> u64 {
    format!("{count}")
        .parse()
        .expect("a count is a whole number")
}

/// Splits a series into its name and its labels. It does not support quotes and commas in label values; the
/// tests use none.
fn parse_series(series: &str) -> Series {
    let Some((name, labels)) = series.split_once('{') else {
        return (series.to_owned(), Labels::new());
    };
    let labels = labels.strip_suffix('}').expect("a closing brace");
    let labels = labels.split(',').map(|label| {
        let (label, value) = label.split_once('=').expect("an equals sign");
        (label.to_owned(), value.trim_matches('"').to_owned())
    });
    (name.to_owned(), labels.collect())
}
