#!/usr/bin/env python3
"""Makes system calls of the built binary fail, and checks that it keeps serving.

    make check-syscalls                  takes twenty seconds, uses only 127.0.0.1; needs strace and libfaketime
    scripts/check-syscalls.py panic      only the check of a panic

Each case starts a service under `strace --inject`, which makes every third call fail, fifty times. During
this, clients send requests on new and on kept-alive connections. An error that is not temporary may close
the connection that it occurred on, but no other. Without a descriptor for a new connection, the service uses
one of those that it keeps for its reserve. Afterwards every request must get its response and be
counted, no descriptor may be left open, and SIGTERM must end the service with exit code 0. A case also
fails if its faults were not injected.

Short writes are caused by clients that read slowly. They cannot be injected: with `retval=`, strace skips
the call and reports bytes as sent that were not.

There are three more checks. A panic, which a failing clock causes in a scrape, must close that connection, print
one line and leave the next client served. Without IPv6, `--listen :0` must serve IPv4. With a wall clock before 1970
or after 9999, both request loops must serve, and must send and log the nearest date that the formats can express.

Prints a line per case and exits 1 at the first that fails.
"""

import collections
import glob
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

PROGRAM = os.environ.get("PROGRAM", "target/release/tiny-probe")
FAULTS = 50
# The number of calls after the start that do not fail, so that the bystander can connect.
SPARED = 10
# In seconds, for a response, on a machine that may be busy.
TIMEOUT = 5
# In seconds. By then all faults must have been injected.
LIMIT = 15

# The purpose of a call and its possible names, the preferred one first. The libraries decide which of them
# the binary uses.
CALLS = {
    "accept": ["accept4", "accept"],
    "receive": ["recvfrom", "recvmsg", "read"],
    "send": ["sendto", "sendmsg", "writev", "write"],
    "wait": ["epoll_wait", "epoll_pwait", "epoll_pwait2"],
    "watch": ["epoll_ctl"],
    "read /proc": ["pread64"],
    "count descriptors": ["statx", "fstat", "newfstatat"],
}

Case = collections.namedtuple("Case", "call error may_lose clients", defaults=(False, "several"))
CASES = [
    # Only one client: with several, the arrival of one could hide that another was forgotten.
    *(Case("accept", error, clients="one")
      for error in ["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "ECONNABORTED", "EPERM", "EINTR"]),
    Case("receive", "EINTR"),
    Case("receive", "ECONNRESET", may_lose=True),
    Case("receive", "ETIMEDOUT", may_lose=True),
    Case("send", "EINTR"),
    Case("send", "EINTR", clients="slow readers"),
    Case("send", "EPIPE", may_lose=True),
    Case("send", "ENOBUFS", may_lose=True),
    Case("wait", "EINTR"),
    Case("watch", "ENOMEM", may_lose=True),
    Case("watch", "ENOSPC", may_lose=True),
    *(Case("read /proc", error) for error in ["EINTR", "ENOMEM", "ESRCH"]),
    *(Case("count descriptors", error) for error in ["EACCES", "ENOMEM"]),
]


# The offset of the wall clock in libfaketime's syntax, and the date and timestamp that are expected.
CLOCKS = [
    ("-80y", "Thu, 01 Jan 1970 00:00:00 GMT", "1970-01-01T00:00:00.000Z"),
    ("+8000y", "Fri, 31 Dec 9999 23:59:59 GMT", "9999-12-31T23:59:59.999Z"),
]
LIBFAKETIME = "/usr/lib/*/faketime/libfaketime.so.1"


class CheckFailed(Exception):
    """A check failed; the message says what was observed."""


class Lost(Exception):
    """The connection ended before the response."""


class Service:
    """The service, a child of this process. With -D, strace runs as a grandchild."""

    def __init__(self, folder, *options, server="event-loop", listen="127.0.0.1:0"):
        self.log = os.path.join(folder, "strace")
        self.access_log = os.path.join(folder, "stdout")
        self.diagnostics = os.path.join(folder, "stderr")
        command = ["strace", "-D", "-f", "-qq", "-s", "16", "-o", self.log, *options,
                   PROGRAM, "--listen", listen, "--server", server, "--access-log"]
        with open(self.access_log, "wb") as stdout, open(self.diagnostics, "wb") as stderr:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        end = time.monotonic() + TIMEOUT
        while not (address := re.search(r" on http://(?:127\.0\.0\.1|localhost):(\d+).*\n", self.messages())):
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise CheckFailed(f"the service did not start: {self.messages().strip()}")
            time.sleep(0.01)
        self.port = int(address[1])

    def messages(self):
        with open(self.diagnostics) as file:
            return file.read()

    def traced(self):
        with open(self.log) as file:
            return file.read().splitlines()

    def faults(self):
        return [line for line in self.traced() if line.endswith("(INJECTED)")]

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def check_alive(self):
        if self.process.poll() is not None:
            raise CheckFailed(f"the service ended with exit code {self.process.returncode}")

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise CheckFailed(f"the service did not end within {TIMEOUT} s of SIGTERM") from None
        if code != 0:
            raise CheckFailed(f"after SIGTERM the service ended with exit code {code}, expected 0")


class Connection:
    """A client's connection to the service."""

    def __init__(self, port, receive_buffer=None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(("127.0.0.1", port))
        self.received = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, text):
        try:
            self.socket.sendall(text.encode())
        except ConnectionError:
            raise Lost from None

    def receive(self):
        try:
            received = self.socket.recv(65536)
        except ConnectionError:
            raise Lost from None
        except TimeoutError:
            raise CheckFailed(f"no response within {TIMEOUT} s") from None
        if not received:
            raise Lost
        self.received += received

    def check_closed(self):
        """Checks that the service has closed the connection, without a reset."""
        try:
            received = self.socket.recv(1)
        except (ConnectionError, TimeoutError) as error:
            raise CheckFailed(f"expected that the connection was closed in an orderly way, found: {error}") from None
        if received:
            raise CheckFailed("the connection received something before it was closed")

    def response(self):
        """Reads one response and returns its status and its body."""
        while b"\r\n\r\n" not in self.received:
            self.receive()
        head, self.received = self.received.split(b"\r\n\r\n", 1)
        self.head = head.decode()
        length = int(re.search(rb"\r\nContent-Length: (\d+)", head)[1])
        while len(self.received) < length:
            self.receive()
        body, self.received = self.received[:length], self.received[length:]
        return int(head[9:12]), body.decode()


def request(method, path, *fields, body=""):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *fields, "", body])


# The requests that a kept-alive connection sends, one after the other: the request, the expected status,
# and how the body begins.
KEPT_ALIVE = [
    (request("GET", "/probe"), 200, "I'm ok!"),
    (request("GET", "/metrics"), 200, "# HELP app_"),
    (request("POST", "/probe", "Content-Length: 9", body="some body"), 405, "Method not allowed"),
    (request("GET", "/nope"), 404, "Not found"),
    (request("GET", "/healthz"), 200, "ok\n"),
]
NEW = [(request("GET", "/probe", "Connection: close"), 200, "I'm ok!")]
# So many expositions are half a megabyte, which is more than the buffers of both sockets hold.
UNREAD = 400


class Tally:
    """What the clients sent and received."""

    def __init__(self):
        self.lock = threading.Lock()
        self.sent = self.received = self.lost = 0
        self.slowest = 0.0
        self.failures = []

    def check(self, response, status, begin):
        if response[0] != status or not response[1].startswith(begin):
            raise CheckFailed(f"expected status {status} and {begin!r}, found {response[0]} and {response[1][:60]!r}")
        with self.lock:
            self.received += 1

    def send(self, connection, text, status, begin):
        with self.lock:
            self.sent += 1
        before = time.monotonic()
        connection.send(text)
        self.check(connection.response(), status, begin)
        with self.lock:
            self.slowest = max(self.slowest, time.monotonic() - before)

    def visit(self, port, requests):
        """Sends requests on a new connection."""
        with Connection(port) as connection:
            for one in requests:
                self.send(connection, *one)

    def read_slowly(self, port):
        """Leaves more responses unread than the buffers of the sockets hold, twice."""
        with Connection(port, receive_buffer=16384) as connection:
            with self.lock:
                self.sent += 2 * UNREAD
            connection.send(request("GET", "/") * 2 * UNREAD)
            for number in range(2 * UNREAD):
                if number % UNREAD == 0:
                    time.sleep(0.05)
                self.check(connection.response(), 200, "<!doctype html>")

    def repeat(self, stop, visit, *arguments):
        while not stop.is_set() and not self.failures:
            try:
                visit(*arguments)
            except Lost:
                with self.lock:
                    self.lost += 1
            except (CheckFailed, OSError) as failure:
                self.failures.append(failure)


def survey(folder):
    """Returns which call the service makes for each purpose, and how often it does so before it serves."""
    service = Service(folder)
    try:
        Tally().visit(service.port, KEPT_ALIVE)
        service.end()
    finally:
        service.process.kill()
    names = [match[1] for line in service.traced() if (match := re.match(r"\d+ +(\w+)\(", line))]
    start = next(index for index, name in enumerate(names) if name in CALLS["wait"])
    calls = {}
    for purpose, known in CALLS.items():
        name = next((name for name in known if name in names[start:]), None)
        if not name:
            raise CheckFailed(f"the service makes none of these calls: {', '.join(known)}")
        calls[purpose] = name, names[:start].count(name)
    return calls


def is_short_write(line):
    match = re.search(r", (\d+), MSG_\w+, NULL, 0\) = (\d+)$", line)
    return match and int(match[2]) < int(match[1])


def within(seconds, condition):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def run(case, call, service, tally):
    bystander = Connection(service.port)
    tally.send(bystander, *KEPT_ALIVE[-1])
    before = service.descriptors()

    stop = threading.Event()
    kept_alive, new = (tally.visit, service.port, KEPT_ALIVE), (tally.visit, service.port, NEW)
    visits = {"one": [new], "several": [kept_alive, kept_alive, new],
              "slow readers": [(tally.read_slowly, service.port)] * 3}[case.clients]
    clients = [threading.Thread(target=tally.repeat, args=(stop, *visit)) for visit in visits]
    for client in clients:
        client.start()
    try:
        def is_over():
            return len(service.faults()) == FAULTS or tally.failures or service.process.poll() is not None
        within(LIMIT, is_over)
    finally:
        stop.set()
        for client in clients:
            client.join()
    service.check_alive()
    if tally.failures:
        raise CheckFailed(tally.failures[0])
    faults = service.faults()
    if len(faults) != FAULTS or not all(f" {call}(" in fault for fault in faults):
        raise CheckFailed(f"{len(faults)} faults of {call} were injected, expected {FAULTS}")
    allowed = FAULTS if case.may_lose else 0
    if tally.lost > allowed:
        raise CheckFailed(f"{tally.lost} connections were lost, expected at most {allowed}")

    # Now no call fails any more.
    try:
        tally.send(bystander, *KEPT_ALIVE[-1])
        for requests in [KEPT_ALIVE, NEW] * 3:
            tally.visit(service.port, requests)
        if not within(TIMEOUT, lambda: service.descriptors() == before):
            raise CheckFailed(f"{service.descriptors()} descriptors are open, expected {before}")
        bystander.send(request("GET", "/metrics"))
        status, exposition = bystander.response()
    except Lost:
        raise CheckFailed("a connection was lost although no call failed any more") from None
    counted = sum(int(count) for count in re.findall(r"(?m)^app_request_count_total\{.*\} (\d+)$", exposition))
    if status != 200 or not tally.received <= counted <= tally.sent:
        raise CheckFailed(f"the service counted {counted} requests, but the clients sent {tally.sent} and received "
                          f"{tally.received} responses")
    for series in ["app_connections_open 1\n", "\nprocess_resident_memory_bytes ", "\nprocess_open_fds "]:
        if series not in exposition:
            raise CheckFailed(f"{series.strip()} is missing from the exposition")
    service.end()


def check_without_ipv6(folder, call, error):
    """Checks that the service listens on every IPv4 address if IPv6 fails."""
    service = Service(folder, "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when=1", listen=":0")
    try:
        Tally().visit(service.port, KEPT_ALIVE)
        if len(service.faults()) != 1 or " (every IPv4 address)\n" not in service.messages():
            raise CheckFailed(f"the start line does not say that only IPv4 is served: {service.messages().strip()}")
        service.end()
    finally:
        service.process.kill()


def check_panic(folder):
    """The library panics if this clock, which only scrapes read, fails."""
    service = Service(folder, "-e", "trace=clock_gettime", "-e", "inject=clock_gettime:error=EPERM:when=1")
    try:
        with Connection(service.port) as connection:
            connection.send(request("GET", "/metrics"))
            connection.check_closed()
        if len(service.faults()) != 1:
            raise CheckFailed("the clock did not fail")
        with Connection(service.port) as connection:
            connection.send(request("GET", "/metrics"))
            status, _ = connection.response()
            if status != 200:
                raise CheckFailed(f"expected status 200 after the panic, found {status}")
        service.end()
        lines = service.messages().splitlines()[1:]
        if len(lines) != 1 or not lines[0].startswith("tiny-probe: panic: panicked at "):
            raise CheckFailed(f"expected one line about the panic, found {lines}")
    finally:
        service.process.kill()


def check_clock(folder, server, offset, date, timestamp):
    """Checks that the service sends and logs the nearest date that the formats can express."""
    library = glob.glob(LIBFAKETIME)
    if not library:
        raise CheckFailed(f"{LIBFAKETIME} is missing; on Debian, install the package faketime")
    service = Service(folder, "-e", "trace=none", "-E", f"LD_PRELOAD={library[0]}", "-E", f"FAKETIME={offset}",
                      "-E", "FAKETIME_DONT_FAKE_MONOTONIC=1", server=server)
    try:
        with Connection(service.port) as connection:
            # With a sampled trace, because its exemplar has a timestamp as well.
            trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            for path in ["/probe", "/metrics"]:
                connection.send(request("GET", path, trace))
                status, _ = connection.response()
                if status != 200 or f"\r\nDate: {date}\r\n" not in connection.head + "\r\n":
                    raise CheckFailed(f"expected status 200 and the date {date}, found {connection.head!r}")
        service.end()
        with open(service.access_log) as file:
            lines = file.read().splitlines()
        if len(lines) != 2 or not all(line.startswith(timestamp + " ") for line in lines):
            raise CheckFailed(f"expected two lines with the time {timestamp} in the access log, found {lines}")
    finally:
        service.process.kill()


def main():
    with tempfile.TemporaryDirectory() as folder:
        service = None
        try:
            what = "a panic in a scrape"
            check_panic(folder)
            print(f"ok      {what}: one line, and the next scrape is served", flush=True)
            if sys.argv[1:] == ["panic"]:
                return
            what = "a service without faults"
            calls = survey(folder)
            for case in CASES:
                call, calls_before = calls[case.call]
                what = f"{call} {case.error}" + (", short writes" if case.clients == "slow readers" else "")
                first = calls_before + SPARED + 1
                last = first + 3 * (FAULTS - 1)
                tally = Tally()
                service = Service(folder, "-e", f"trace={call}",
                                  "-e", f"inject={call}:error={case.error}:when={first}..{last}+3")
                try:
                    run(case, call, service, tally)
                    if case.clients == "slow readers" and not any(map(is_short_write, service.traced())):
                        raise CheckFailed("no short write happened")
                finally:
                    service.process.kill()
                print(f"ok      {what}: {tally.received} responses, {tally.lost} lost connections, "
                      f"the slowest response took {tally.slowest * 1000:.0f} ms", flush=True)
            for call, error in [("socket", "EAFNOSUPPORT"), ("bind", "EADDRNOTAVAIL")]:
                service = None
                what = f"{call} {error} for IPv6"
                check_without_ipv6(folder, call, error)
                print(f"ok      {what}: the service listens on IPv4", flush=True)
            for offset, date, timestamp in CLOCKS:
                for server in ["event-loop", "tiny-http"]:
                    service = None
                    what = f"{server}, with the wall clock at {offset}"
                    check_clock(folder, server, offset, date, timestamp)
                    print(f"ok      {what}: {date}", flush=True)
        except (CheckFailed, Lost, OSError) as error:
            print(f"FAILED  {what}: {str(error) or type(error).__name__}", file=sys.stderr)
            if service:
                print(service.messages(), end="", file=sys.stderr)
            sys.exit(1)


main()
