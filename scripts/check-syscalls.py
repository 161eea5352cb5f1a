#!/usr/bin/env python3
"""Has system calls of the built binary fail or return odd results, and checks that it serves all the same.

    make check-syscalls          takes twenty seconds, on 127.0.0.1 alone; needs strace and libfaketime

Each case starts a service under `strace --inject`, has every third call fail, fifty times, and
asks on new and on kept-alive connections meanwhile. A call that failed for good may take its own
connection with it, and nothing else. Afterwards every request is answered, every request is
counted, no descriptor is left open, and SIGTERM ends the service with 0. A case whose faults did
not happen fails, so that none passes for want of them.

Short writes are made by clients that read slowly: with `retval=`, strace would leave out the call
and say that bytes were sent that never were.

Then there is no IPv6: `--listen :0` makes do with IPv4. And the wall clock stands before 1970, and after 9999: both request loops serve and log with the
nearest date that they can express.

Prints a line per case; exits 1 at the first that fails.
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
# So many calls of the one that will fail are left alone after the start: those for the bystander.
SPARED = 10
# An answer is this late at most, on a machine that has other work as well.
TIMEOUT = 5
# All faults have happened by then, and everything is in order again.
LIMIT = 15

# What a call is for, and its names, the preferred one first: which of them the binary makes is up
# to its libraries.
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
    # Of several clients, the arrival of one would cover up that another was forgotten.
    *(Case("accept", error, clients="one") for error in
      ["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "ECONNABORTED", "EPERM", "EINTR"]),
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


# The offset of the wall clock, as libfaketime takes it, and how it is shown.
CLOCKS = [
    ("-80y", "Thu, 01 Jan 1970 00:00:00 GMT", "1970-01-01T00:00:00.000Z"),
    ("+8000y", "Fri, 31 Dec 9999 23:59:59 GMT", "9999-12-31T23:59:59.999Z"),
]
LIBFAKETIME = "/usr/lib/*/faketime/libfaketime.so.1"


class Wrong(Exception):
    """What was seen and should not have been."""


class Lost(Exception):
    """The connection ended before the answer."""


class Service:
    """The service, a child of this process; strace is a child of its own (-D)."""

    def __init__(self, folder, *options, server="event-loop", listen="127.0.0.1:0"):
        self.log = os.path.join(folder, "strace")
        self.access_log = os.path.join(folder, "stdout")
        self.diagnostics = os.path.join(folder, "stderr")
        command = ["strace", "-D", "-f", "-qq", "-s", "16", "-o", self.log, *options,
                   PROGRAM, "--listen", listen, "--server", server, "--access-log"]
        with open(self.access_log, "wb") as stdout, open(self.diagnostics, "wb") as stderr:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        end = time.monotonic() + TIMEOUT
        while not (address := re.search(r" on http://(?:127\.0\.0\.1|localhost):(\d+).*\n", self.said())):
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise Wrong(f"it does not start: {self.said().strip()}")
            time.sleep(0.01)
        self.port = int(address[1])

    def said(self):
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
            raise Wrong(f"the service has ended, with {self.process.returncode}")

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise Wrong(f"SIGTERM has not ended it within {TIMEOUT} s") from None
        if code != 0:
            raise Wrong(f"SIGTERM has ended it with {code}")


class Connection:
    """A client's end of a connection."""

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
            raise Wrong(f"no answer within {TIMEOUT} s") from None
        if not received:
            raise Lost
        self.received += received

    def answer(self):
        """Reads one answer: its status and its body."""
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


# What one connection asks, one after the other: the request, the status, how the body begins.
KEPT_ALIVE = [
    (request("GET", "/probe"), 200, "I'm ok!"),
    (request("GET", "/metrics"), 200, "# HELP app_"),
    (request("POST", "/probe", "Content-Length: 9", body="some body"), 405, "Method not allowed"),
    (request("GET", "/nope"), 404, "Not found"),
    (request("GET", "/healthz"), 200, "ok\n"),
]
NEW = [(request("GET", "/probe", "Connection: close"), 200, "I'm ok!")]
# Pages of half a megabyte together, which is more than the sockets of both sides hold.
UNREAD = 400


class Tally:
    """What the clients know of their requests."""

    def __init__(self):
        self.lock = threading.Lock()
        self.sent = self.answered = self.lost = 0
        self.slowest = 0.0
        self.wrong = []

    def check(self, answer, status, begin):
        if answer[0] != status or not answer[1].startswith(begin):
            raise Wrong(f"answered {answer[0]} {answer[1][:60]!r}, expected {status} {begin!r}")
        with self.lock:
            self.answered += 1

    def ask(self, connection, text, status, begin):
        with self.lock:
            self.sent += 1
        before = time.monotonic()
        connection.send(text)
        self.check(connection.answer(), status, begin)
        with self.lock:
            self.slowest = max(self.slowest, time.monotonic() - before)

    def visit(self, port, requests):
        """Asks on a connection of its own."""
        with Connection(port) as connection:
            for one in requests:
                self.ask(connection, *one)

    def read_slowly(self, port):
        """Leaves more answers unread than the sockets hold, twice."""
        with Connection(port, receive_buffer=16384) as connection:
            with self.lock:
                self.sent += 2 * UNREAD
            connection.send(request("GET", "/") * 2 * UNREAD)
            for number in range(2 * UNREAD):
                if number % UNREAD == 0:
                    time.sleep(0.05)
                self.check(connection.answer(), 200, "<!doctype html>")

    def repeat(self, stop, visit, *arguments):
        while not stop.is_set() and not self.wrong:
            try:
                visit(*arguments)
            except Lost:
                with self.lock:
                    self.lost += 1
            except (Wrong, OSError) as what:
                self.wrong.append(what)


def survey(folder):
    """What the service calls for each purpose, and how often before it serves."""
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
            raise Wrong(f"the service makes none of {', '.join(known)}")
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
    tally.ask(bystander, *KEPT_ALIVE[-1])
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
            return len(service.faults()) == FAULTS or tally.wrong or service.process.poll() is not None
        within(LIMIT, is_over)
    finally:
        stop.set()
        for client in clients:
            client.join()
    service.check_alive()
    if tally.wrong:
        raise Wrong(tally.wrong[0])
    faults = service.faults()
    if len(faults) != FAULTS or not all(f" {call}(" in fault for fault in faults):
        raise Wrong(f"{len(faults)} faults of {call}, {FAULTS} expected")
    if tally.lost > (FAULTS if case.may_lose else 0):
        raise Wrong(f"{tally.lost} connections were lost")

    # Once more, when no call fails.
    try:
        tally.ask(bystander, *KEPT_ALIVE[-1])
        for requests in [KEPT_ALIVE, NEW] * 3:
            tally.visit(service.port, requests)
        if not within(TIMEOUT, lambda: service.descriptors() == before):
            raise Wrong(f"{service.descriptors()} descriptors are open, {before} expected")
        bystander.send(request("GET", "/metrics"))
        status, page = bystander.answer()
    except Lost:
        raise Wrong("a connection was lost when no call failed any more") from None
    counted = sum(int(count) for count in re.findall(r"(?m)^app_request_count_total\{.*\} (\d+)$", page))
    if status != 200 or not tally.answered <= counted <= tally.sent:
        raise Wrong(f"{counted} requests were counted, {tally.answered} answered, {tally.sent} sent")
    for series in ["app_connections_open 1\n", "\nprocess_resident_memory_bytes ", "\nprocess_open_fds "]:
        if series not in page:
            raise Wrong(f"{series.strip()} is missing from the page")
    service.end()


def check_without_ipv6(folder, call, error):
    """Listens on every address although IPv6 fails."""
    service = Service(folder, "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when=1", listen=":0")
    try:
        Tally().visit(service.port, KEPT_ALIVE)
        if len(service.faults()) != 1 or " (every IPv4 address)\n" not in service.said():
            raise Wrong(f"it does not say that it has IPv4 alone: {service.said().strip()}")
        service.end()
    finally:
        service.process.kill()


def check_clock(folder, server, offset, date, timestamp):
    """Serves with another wall clock: the nearest date that can be expressed is sent and logged."""
    library = glob.glob(LIBFAKETIME)
    if not library:
        raise Wrong(f"{LIBFAKETIME} is missing: install Debian's package faketime")
    service = Service(folder, "-e", "trace=none", "-E", f"LD_PRELOAD={library[0]}", "-E", f"FAKETIME={offset}",
                      "-E", "FAKETIME_DONT_FAKE_MONOTONIC=1", server=server)
    try:
        with Connection(service.port) as connection:
            # A sampled trace leaves an exemplar, which has a time, too.
            trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            for path in ["/probe", "/metrics"]:
                connection.send(request("GET", path, trace))
                status, _ = connection.answer()
                if status != 200 or f"\r\nDate: {date}\r\n" not in connection.head + "\r\n":
                    raise Wrong(f"expected 200 and the date {date}, found {connection.head!r}")
        service.end()
        with open(service.access_log) as file:
            lines = file.read().splitlines()
        if len(lines) != 2 or not all(line.startswith(timestamp + " ") for line in lines):
            raise Wrong(f"expected two lines of {timestamp} in the access log, found {lines}")
    finally:
        service.process.kill()


def main():
    with tempfile.TemporaryDirectory() as folder:
        service = None
        what = "a service without faults"
        try:
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
                        raise Wrong("there were none")
                finally:
                    service.process.kill()
                print(f"ok      {what}: {tally.answered} requests answered, {tally.lost} connections lost, "
                      f"the slowest took {tally.slowest * 1000:.0f} ms", flush=True)
            for call, error in [("socket", "EAFNOSUPPORT"), ("bind", "EADDRNOTAVAIL")]:
                service = None
                what = f"{call} {error} for IPv6"
                check_without_ipv6(folder, call, error)
                print(f"ok      {what}: it serves IPv4", flush=True)
            for offset, date, timestamp in CLOCKS:
                for server in ["event-loop", "tiny-http"]:
                    service = None
                    what = f"{server}, with the wall clock at {offset}"
                    check_clock(folder, server, offset, date, timestamp)
                    print(f"ok      {what}: {date}", flush=True)
        except (Wrong, Lost, OSError) as error:
            print(f"FAILED  {what}: {str(error) or type(error).__name__}", file=sys.stderr)
            if service:
                print(service.said(), end="", file=sys.stderr)
            sys.exit(1)


main()
