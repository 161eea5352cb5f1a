#!/usr/bin/env python3
"""Sends good, bad and hostile traffic to tiny-probe at the same time, then compares its counters with the clients'.

    make soak                    ten minutes; make soak SECONDS=120 for two
    bench/soak.py --seconds 30   the same, with a binary that is built already

Two services run one after the other: one with room for every client, then, for a fifth of the time, one with
fewer connections than it has clients.

While it runs, every response must be the right one and arrive in time. When the clients have left, memory,
descriptors and threads must be where they were, no request may be in flight, and every counter must be what
the clients counted:

- A client that reads its responses counts exactly.
- A client that leaves without reading them cannot know which requests the service still read: a reset
  discards what has not been read. Such clients use methods and routes of their own, whose counters must
  lie between the responses that were read and the requests that were sent.
- A client that disconnects before its delayed response is recorded with status 499, or, after FIN, with the
  response's status if the kernel still took the response. It requests a status that no other client
  requests, so that the sum of both can be checked (check_departed).

Exits with code 1 and prints a line for each difference.
"""

import argparse
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# One /probe in twenty fails and one in twenty is delayed, so that these paths are used, too. Fault injection
# lets a client choose the delay of its own response.
FLAGS = ["--server", "event-loop", "--fail-rate", "0.05", "--slow-rate", "0.05", "--latency", "1ms",
         "--slow-latency", "200ms", "--fault-injection"]
# No delays here: delayed responses could hold every connection, and a 503 would be right.
MAX_CONNECTIONS = 20
FLAGS_AT_LIMIT = ["--server", "event-loop", "--fail-rate", "0.05", "--max-connections", str(MAX_CONNECTIONS)]
# A response is this late at most, on a machine that has other work as well.
TIMEOUT = 10
# The same for /healthz at the connection limit: 300 ms are promised, and the clients, which are threads of
# this process, wait for one another as well.
HEALTH_TIMEOUT = 1
# A client leaves within LEAVES_WITHIN seconds of a request whose response is due after DELAY seconds. It
# requests one of these statuses, depending on how it leaves.
LEAVES_WITHIN = 0.3
DELAY = 2
STATUS_BEFORE = {"FIN": 504, "RST": 502}
# What the allocator and the kernel may keep between two equal loads. A leak of ten bytes for each
# request is more in two minutes.
MAX_GROWTH = 1024 * 1024
# What all connections together may take at any time: they are about 250, and what the service
# holds of each is bounded by 64 KiB of answers and one of requests.
MAX_RESIDENT = 48 * 1024 * 1024


class Wrong(Exception):
    """What a client saw and should not have seen."""


class Ledger:
    """What the clients know of their requests."""

    def __init__(self):
        self.lock = threading.Lock()
        self.answered = Counter()  # (method, endpoint, status) -> answers that were read
        self.unread = Counter()  # (method, endpoint) -> requests that were left without an answer
        # "FIN" or "RST" -> requests whose client left before the delayed response; "late" -> those of them that
        # left so late, because the machine was busy, that the response may have been sent before.
        self.departed = Counter()
        self.by_client = Counter()  # kind of client -> how often it ran
        self.wrong = []

    def answer(self, method, endpoint, status):
        with self.lock:
            self.answered[method, endpoint, str(status)] += 1

    def leave(self, method, endpoint, count=1):
        with self.lock:
            self.unread[method, endpoint] += count

    def depart(self, how):
        with self.lock:
            self.departed[how] += 1

    def tell(self, what):
        with self.lock:
            if len(self.wrong) < 20:
                self.wrong.append(what)


class Connection:
    """A client's end of a connection."""

    def __init__(self, port, receive_buffer=None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(("127.0.0.1", port))
        self.received = b""
        self.is_last = False  # the last response said `Connection: close`

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, text):
        self.socket.sendall(text if isinstance(text, bytes) else text.encode())

    def receive(self, most=65536):
        try:
            received = self.socket.recv(most)
        except TimeoutError:
            raise Wrong(f"nothing came for {TIMEOUT} s") from None
        self.received += received
        return bool(received)

    def answer(self, has_body=True, most=65536):
        """Reads one response: its status and its body."""
        while b"\r\n\r\n" not in self.received:
            if not self.receive(most):
                raise Wrong(f"the connection ended within an answer: {self.received!r}")
        head, self.received = self.received.split(b"\r\n\r\n", 1)
        self.is_last = b"\r\nconnection: close" in head.lower()
        length = int(re.search(rb"\r\nContent-Length: (\d+)", head)[1]) if has_body else 0
        while len(self.received) < length:
            if not self.receive(most):
                raise Wrong(f"the connection ended within a body: {head!r}")
        body, self.received = self.received[:length], self.received[length:]
        return int(head[9:12]), body

    def expect_end(self):
        while not self.received and self.receive():
            pass
        if self.received:
            raise Wrong(f"bytes after the last answer: {self.received[:200]!r}")

    def pipeline_without_end(self, text, seconds, pace, stop):
        """Sends a request again and again and reads `pace()`, which is at most so many bytes and then a pause in
        seconds. When the time is over or the soak stops, completes the last request, closes the sending side and
        reads what is left. Returns the requests sent and the responses received until the service closed."""
        status_line = b"HTTP/1.1 200 "
        block = text.encode() * 200
        # Otherwise the kernel takes megabytes of requests, and reading all responses to them takes minutes.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        self.socket.setblocking(False)
        sent, responses, carried = 0, 0, b""
        end = time.monotonic() + seconds
        last_progress = time.monotonic()
        is_ending = is_shut = False
        while True:
            is_ending = is_ending or stop.is_set() or time.monotonic() > end
            size, pause = (262144, 0) if is_ending else pace()
            wants_to_send = not is_ending or sent % len(text)
            if not wants_to_send and not is_shut:
                self.socket.shutdown(socket.SHUT_WR)
                is_shut = True
            may_read, may_send, _ = select.select([self.socket], [self.socket] if wants_to_send else [], [], 0.5)
            if may_send:
                upto = len(block) if not is_ending else sent % len(block) + -sent % len(text)
                sent += self.socket.send(block[sent % len(block):upto])
            if may_read:
                received = self.socket.recv(size)
                if not received:
                    return sent // len(text), responses
                # A status line may arrive in two pieces.
                carried += received
                responses += carried.count(status_line)
                carried = carried[1 - len(status_line):]
            if may_read or may_send:
                last_progress = time.monotonic()
            elif time.monotonic() - last_progress > TIMEOUT:
                raise Wrong(f"a pipeline made no progress for {TIMEOUT} s after {responses} responses")
            if pause:
                stop.wait(pause)

    def takes_more_than(self, limit):
        """Reads until the end, or more than `limit` bytes. Returns whether there were more."""
        self.socket.settimeout(TIMEOUT)
        taken = 0
        try:
            while taken <= limit and (received := self.socket.recv(65536)):
                taken += len(received)
        except ConnectionResetError:
            pass
        return taken > limit

    def reset(self):
        """Disconnects with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def request(method, path, *fields, version="1.1"):
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: localhost", *fields, "", ""])


def check_probe(status, body):
    if (status, body) != (200, b"I'm ok!") and not (status == 500 and body.startswith(b"Failed")):
        raise Wrong(f"GET /probe was answered {status} {body!r}")


# --- the clients: each function runs once and is called again until the end ----------------------

# A good client's request and the expected result: method, path, fields, body, endpoint, status.
GOOD = [
    ("GET", "/healthz", [], "", "/healthz", 200),
    ("HEAD", "/healthz", [], "", "/healthz", 200),
    ("GET", "/healthz?verbose", ["User-Agent: soak", "Accept: */*"], "", "/healthz", 200),
    ("GET", "/nope", [], "", "other", 404),
    ("BREW", "/pot", [], "", "other", 404),
    ("POST", "/probe", ["Content-Length: 9"], "some body", "/probe", 405),
    ("DELETE", "/metrics", [], "", "/metrics", 405),
]


def keep_alive(service, ledger, stop):
    with Connection(service.port) as connection:
        for _ in range(100):
            if random.random() < 0.7:
                trace = f"{random.getrandbits(128):032x}"
                connection.send(request("GET", "/probe", f"traceparent: 00-{trace}-b7ad6b7169203331-01"))
                status, body = connection.answer()
                check_probe(status, body)
                ledger.answer("GET", "/probe", status)
            else:
                method, path, fields, body, endpoint, expected = random.choice(GOOD)
                connection.send(request(method, path, *fields) + body)
                status, _ = connection.answer(has_body=method != "HEAD")
                if status != expected:
                    raise Wrong(f"{method} {path} was answered {status}")
                ledger.answer(method if method != "BREW" else "other", endpoint, status)
            if stop.is_set():
                return


def new_connection_each(service, ledger, stop):
    version, *fields = random.choice([("1.1", "Connection: close"), ("1.0",)])
    with Connection(service.port) as connection:
        connection.send(request("GET", "/probe", *fields, version=version))
        status, body = connection.answer()
        check_probe(status, body)
        ledger.answer("GET", "/probe", status)
        connection.expect_end()


def pipeline(service, ledger, stop):
    with Connection(service.port) as connection:
        paths = random.choices(["/probe", "/healthz", "/nope"], [1, 40, 9], k=500)
        connection.send("".join(request("GET", path) for path in paths))
        for path in paths:
            status, body = connection.answer()
            if path == "/probe":
                check_probe(status, body)
            elif (path, status) not in [("/healthz", 200), ("/nope", 404)]:
                raise Wrong(f"{path} was answered {status} in a pipeline")
            ledger.answer("GET", path if path != "/nope" else "other", status)


def slow_reader(service, ledger, stop):
    with Connection(service.port, receive_buffer=2048) as connection:
        connection.send(request("GET", "/metrics"))
        while len(connection.received) < 3000:
            connection.receive(100)
            stop.wait(0.01)
        status, _ = connection.answer()
        if status != 200:
            raise Wrong(f"GET /metrics was answered {status}")
        ledger.answer("GET", "/metrics", status)


BAD = [
    ("nonsense\r\n\r\n", 400),
    ("GET /probe HTTP/1.1\r\n\r\n", 400),
    ("GET /probe HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    (request("GET", "probe"), 400),
    (request("GET", "/probe", "Bad Field: 1"), 400),
    (request("POST", "/probe", "Content-Length: 3", "Content-Length: 3") + "abc", 400),
    (request("POST", "/probe", "Content-Length: -1"), 400),
    (request("POST", "/probe", "Content-Length: 5", "Transfer-Encoding: chunked") + "0\r\n\r\n", 400),
    (request("POST", "/probe", "Transfer-Encoding: chunked") + "0\r\n\r\n", 411),
    (request("POST", "/probe", "Transfer-Encoding: gzip"), 501),
    (request("GET", "http:///probe"), 400),
    (request("GET", "/probe", version="2.0"), 505),
    (request("POST", "/probe", "Content-Length: 10000000000000000"), 413),
    (request("POST", "/probe", "Content-Length: 100000") + "x" * 100_000, 413),
    (request("GET", "/" + "x" * 20_000), 414),
    (request("GET", "/probe", "X-Long: " + "x" * 50_000), 431),
    (request("GET", "/probe", *(f"X-{number}: 1" for number in range(100))), 431),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client\r\n\r\n", 400),
]


def malformed(service, ledger, stop):
    text, expected = random.choice(BAD)
    with Connection(service.port) as connection:
        connection.send(text)
        status, _ = connection.answer()
        if status != expected:
            raise Wrong(f"{text[:60]!r}… was answered {status}, not {expected}")
        ledger.answer("other", "other", status)
        connection.expect_end()
    stop.wait(0.005)


def body_never_sent(service, ledger, stop):
    with Connection(service.port) as connection:
        connection.send(request("PUT", "/probe", "Content-Length: 60000") + "a beginning")
        status, _ = connection.answer()
        ledger.answer("PUT", "/probe", status)
        began = time.monotonic()
        while not stop.is_set() and not select.select([connection.socket], [], [], 0.5)[0]:
            if time.monotonic() - began > 10 + TIMEOUT:
                raise Wrong("a body that never came was awaited for more than 20 s")


def slow_head(service, ledger, stop):
    """A byte a second, until it is told that this takes too long."""
    with Connection(service.port) as connection:
        began = time.monotonic()
        for byte in request("GET", "/probe", "X-Slow: " + "x" * 1000).encode():
            if stop.is_set():
                # Said in time, so that a 408 under way is read, and counted, all the same.
                connection.socket.shutdown(socket.SHUT_WR)
                break
            connection.send(bytes([byte]))
            if select.select([connection.socket], [], [], 1)[0]:
                break
            if time.monotonic() - began > 10 + TIMEOUT:
                raise Wrong("a head was awaited for more than 20 s")
        if connection.receive():
            status, _ = connection.answer()
            if status != 408:
                raise Wrong(f"a slow head was answered {status}")
            ledger.answer("other", "other", status)
            connection.expect_end()


def silent(service, ledger, stop):
    """Many connections that say nothing."""
    connections = [Connection(service.port) for _ in range(100)]
    stop.wait(random.uniform(1, 5))
    for connection in connections:
        connection.socket.close()


def idle(service, ledger, stop):
    """A connection that is kept and not used, until the service closes it without a word."""
    with Connection(service.port) as connection:
        connection.send(request("GET", "/healthz"))
        status, _ = connection.answer()
        ledger.answer("GET", "/healthz", status)
        began = time.monotonic()
        while not select.select([connection.socket], [], [], 0.5)[0]:
            if stop.is_set():
                return
            if time.monotonic() - began > 75 + TIMEOUT:
                raise Wrong("an idle connection was kept for more than 85 s")
        connection.expect_end()
        if (took := time.monotonic() - began) < 74.9:
            raise Wrong(f"an idle connection was closed after {took:.1f} s")


def connect_and_vanish(service, ledger, stop):
    connection = Connection(service.port)
    random.choice([connection.reset, connection.socket.close])()
    stop.wait(0.002)


def vanish_within_head(service, ledger, stop):
    connection = Connection(service.port)
    head = request("GET", "/probe", "X-Some: thing")
    connection.send(head[:random.randrange(1, len(head) - 2)])
    stop.wait(random.uniform(0, 0.05))
    random.choice([connection.reset, connection.socket.close])()


def vanish_after_request(service, ledger, stop):
    connection = Connection(service.port)
    count = random.choice([1, 1, 50])
    ledger.leave("OPTIONS", "/probe", count)
    connection.send(request("OPTIONS", "/probe") * count)
    stop.wait(random.choice([0, 0.001]))
    connection.reset()
    stop.wait(0.002)


def vanish_while_late(service, ledger, stop):
    connection = Connection(service.port)
    ledger.leave("HEAD", "/probe", 200)
    connection.send(request("HEAD", "/probe") * 200)
    stop.wait(random.uniform(0, 0.3))
    connection.reset()


def never_read(service, ledger, stop):
    """A pipeline without end and nobody who reads, until the service has had enough."""
    with Connection(service.port, receive_buffer=4096) as connection:
        text = request("GET", "/").encode() * 100
        connection.socket.setblocking(False)
        sent, last_progress = 0, time.monotonic()
        while not stop.is_set():
            _, may_send, _ = select.select([], [connection.socket], [], 0.5)
            if may_send:
                try:
                    sent += connection.socket.send(text[sent % len(text):])
                    last_progress = time.monotonic()
                except BlockingIOError:
                    pass
                except (ConnectionResetError, BrokenPipeError):
                    break
            elif time.monotonic() - last_progress > 10 + TIMEOUT:
                # A reset that finds no room in the receiver's window is dropped (RFC 9293, section
                # 3.10.7.4). Making room has it sent again, if the service has closed.
                if connection.takes_more_than(1024 * 1024):
                    ledger.tell("never_read: a client that reads nothing was kept for more than 20 s")
                break
        ledger.leave("GET", "/", sent * 100 // len(text))


def pipeline_without_end(service, ledger, stop):
    """As many requests as the service takes, for a few seconds, and every response is read at once."""
    with Connection(service.port) as connection:
        method, path = random.choice([("HEAD", "/metrics"), ("GET", "/healthz"), ("HEAD", "/healthz")])
        sent, read = connection.pipeline_without_end(request(method, path), random.uniform(0.5, 3),
                                                     lambda: (262144, 0), stop)
        if sent != read:
            raise Wrong(f"{sent} requests {method} {path} without end got {read} responses")
        for _ in range(read):
            ledger.answer(method, path, 200)
    stop.wait(random.uniform(1, 5))  # the other clients need some of the service's time


def paces():
    """The paces at which read_at_a_pace reads. Each leaves room in the receive buffer more often than every ten
    seconds, after which the service would close."""
    size, pause = random.choice([(4096, 0.0002), (16384, 0.002), (16384, 0.02), (1024, 0.01)])
    yield lambda: (16384, 0.0008)
    yield lambda: (size, pause)
    yield lambda: (random.randrange(1, 65536), random.choice([0, 0, 0.001, 0.05, 0.5]))


def read_at_a_pace(service, ledger, stop):
    """Pipelines without end and reads steadily, but more slowly than the service writes: some bytes are unsent
    all the time, and what is unsent changes all the time."""
    with Connection(service.port, receive_buffer=16384) as connection:
        sent, read = connection.pipeline_without_end(request("GET", "/metrics"), random.uniform(2, 15),
                                                     random.choice(list(paces())), stop)
        if sent != read:
            raise Wrong(f"{sent} requests GET /metrics got {read} responses, read at a pace")
        for _ in range(read):
            ledger.answer("GET", "/metrics", 200)


def read_hardly(service, ledger, stop):
    """Pipelines and reads 2 KiB every 4 s. The service may close when 10 s pass without progress: whether
    they do depends on when the kernel announces room. So the number of requests has bounds only."""
    with Connection(service.port, receive_buffer=4096) as connection:
        text = request("GET", "/").encode()
        count = 1000
        # Counted before it is sent: what the service reads is a part of it.
        ledger.leave("GET", "/", count)
        try:
            connection.socket.setblocking(False)
            connection.socket.send(text * count)
            connection.socket.setblocking(True)
            for _ in range(random.randrange(1, 10)):
                if stop.wait(4) or not connection.socket.recv(2048):
                    break
        except ConnectionError:
            pass


def leave_before_delayed_response(service, ledger, stop):
    how = random.choice(["FIN", "RST"])
    connection = Connection(service.port)
    ledger.depart(how)
    began = time.monotonic()
    connection.send(request("GET", f"/probe?delay={DELAY}s&status={STATUS_BEFORE[how]}"))
    stop.wait(random.uniform(0, LEAVES_WITHIN))
    connection.reset() if how == "RST" else connection.socket.close()
    if time.monotonic() - began > 0.9 * DELAY:
        ledger.depart("late")


def urgent_data(service, ledger, stop):
    """Sends TCP urgent data in the middle of a head. It is not part of the stream, but a read ends before it."""
    with Connection(service.port) as connection:
        head = request("GET", "/healthz", "User-Agent: soak")
        middle = random.randrange(1, len(head) - 1)
        began = time.monotonic()
        connection.send(head[:middle])
        connection.socket.send(b"!", socket.MSG_OOB)
        connection.send(head[middle:])
        status, _ = connection.answer()
        took = time.monotonic() - began
        ledger.answer(*(("GET", "/healthz") if status == 200 else ("other", "other")), status)
        if status != 200 or took > TIMEOUT / 2:
            raise Wrong(f"a request with urgent data got {status} after {took:.1f} s")
    stop.wait(0.1)


def upload(service, ledger, stop):
    """Uploads 10 MB, which takes a few seconds, and reads the response only then, as many clients do."""
    with Connection(service.port) as connection:
        piece, pieces = b"x" * 100_000, 100
        connection.send(request("POST", "/probe", f"Content-Length: {len(piece) * pieces}"))
        pause = random.choice([0, 0.01, 0.05])
        for _ in range(pieces):
            connection.send(piece)
            time.sleep(pause)
        status, _ = connection.answer()
        if status != 413:
            raise Wrong(f"an upload of 10 MB got {status}, not 413")
        ledger.answer("other", "other", status)
        connection.expect_end()
    stop.wait(0.5)


def keep_alive_at_limit(service, ledger, stop):
    """Uses a connection until the service announces its end, with short pauses. A connection that is reused may
    be closed between two requests, as HTTP allows; then the request has not been read, and is sent again."""
    with Connection(service.port) as connection:
        for number in range(100):
            try:
                connection.send(request("GET", "/probe"))
                if not connection.received and not connection.receive():
                    raise ConnectionResetError("closed without a response")
            except ConnectionError:
                if number == 0:
                    raise
                return
            status, body = connection.answer()
            check_probe(status, body)
            ledger.answer("GET", "/probe", status)
            if connection.is_last:
                connection.expect_end()
                return
            stop.wait(0.01)
            if stop.is_set():
                return


def connect_then_ask(service, ledger, stop):
    """Pauses between connecting and sending: a connection that has not sent anything yet is not idle."""
    with Connection(service.port) as connection:
        stop.wait(0.01)
        connection.send(request("GET", "/probe", "Connection: close"))
        status, body = connection.answer()
        check_probe(status, body)
        ledger.answer("GET", "/probe", status)
        connection.expect_end()


def check_health(service, ledger, stop):
    began = time.monotonic()
    with Connection(service.port) as connection:
        connection.send(request("GET", "/healthz", "Connection: close"))
        status, _ = connection.answer()
        ledger.answer("GET", "/healthz", status)
        if status != 200 or time.monotonic() - began > HEALTH_TIMEOUT:
            raise Wrong(f"GET /healthz on a new connection got {status} after {time.monotonic() - began:.1f} s")
    stop.wait(0.1)


CLIENTS = {
    keep_alive: 8, new_connection_each: 4, pipeline: 2, slow_reader: 2,
    malformed: 2, body_never_sent: 4, slow_head: 8, silent: 1, idle: 4, connect_and_vanish: 2,
    vanish_within_head: 2, vanish_after_request: 2, vanish_while_late: 2, never_read: 4,
    pipeline_without_end: 2, read_at_a_pace: 3, read_hardly: 4, leave_before_delayed_response: 4,
    urgent_data: 1, upload: 1,
}
CLIENTS_AT_LIMIT = {new_connection_each: MAX_CONNECTIONS, keep_alive_at_limit: MAX_CONNECTIONS,
                    connect_then_ask: MAX_CONNECTIONS, connect_and_vanish: 1, check_health: 1}


def repeat(client, service, ledger, stop):
    while not stop.is_set():
        try:
            client(service, ledger, stop)
        except (Wrong, OSError) as what:
            ledger.tell(f"{client.__name__}: {what or type(what).__name__}")
            stop.wait(1)
        with ledger.lock:
            ledger.by_client[client.__name__] += 1


# --- the service --------------------------------------------------------------------------------


class Service:
    def __init__(self, binary, flags):
        self.process = subprocess.Popen([binary, "--listen", "127.0.0.1:0", *flags],
                                        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        line = self.process.stderr.readline()
        if not (address := re.search(r"on http://[\d.]+:(\d+)$", line.strip())):
            sys.exit(f"soak: {binary} does not serve: {line.strip()}")
        self.port = int(address[1])
        self.diagnostics = []
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        self.diagnostics.extend(line.strip() for line in self.process.stderr)

    def use(self):
        """What the process uses now: resident bytes, descriptors, threads."""
        directory = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (directory / "status").read_text().splitlines())
        return {"memory": int(status["VmRSS"].split()[0]) * 1024,
                "descriptors": len(list((directory / "fd").iterdir())),
                "threads": int(status["Threads"])}

    def most_memory(self):
        """The most resident bytes that it ever had."""
        return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1]) * 1024

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return f"none within {TIMEOUT} s"


class Scraper:
    """Scrapes as Prometheus does: on one connection, until the service closes it."""

    def __init__(self, service, ledger):
        self.port = service.port
        self.connection = None
        self.ledger = ledger
        self.last = {}

    def scrape(self):
        """Returns every series and its value. Counters must never fall."""
        status, body = self.request_page()
        if status != 200 or not body.endswith(b"\n# EOF\n"):
            raise Wrong(f"a scrape was answered {status}, and ends with {body[-100:]!r}")
        page = {}
        for line in body.decode().splitlines():
            if not line.startswith("#"):
                sample, _, _exemplar = line.partition(" # ")
                series, value = sample.rsplit(" ", 1)
                page[series] = float(value)
        for series, value in self.last.items():
            is_counter = series.startswith("app_request_")
            if series not in page or (is_counter and page[series] < value):
                raise Wrong(f"{series} went from {value} to {page.get(series)}")
        self.last = page
        # A scrape includes every request completed before it, so it is counted afterwards.
        self.ledger.answer("GET", "/metrics", status)
        return page

    def request_page(self):
        text = request("GET", "/metrics", "Accept: application/openmetrics-text;version=1.0.0,*/*;q=0.1")
        is_reused = self.connection is not None
        if not is_reused:
            self.connection = Connection(self.port)
        try:
            self.connection.send(text)
            if not self.connection.receive():
                raise ConnectionResetError("closed without a response")
        except ConnectionError:
            self.close()
            if not is_reused:
                raise
            return self.request_page()
        result = self.connection.answer()
        if self.connection.is_last:
            self.close()
        return result

    def close(self):
        self.connection.socket.close()
        self.connection = None


def run(service, clients, ledger, scraper, seconds, began, peak):
    """Sends traffic for so many seconds, then none. Returns what the service uses when all clients have left."""
    stop = threading.Event()
    threads = [threading.Thread(target=repeat, args=(client, service, ledger, stop))
               for client, number in clients.items() for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        end = time.monotonic() + seconds
        next_line = 0
        while (now := time.monotonic()) < end and service.process.poll() is None and not ledger.wrong:
            page = scraper.scrape()
            use = service.use()
            for what, value in use.items():
                peak[what] = max(peak[what], value)
            if now >= next_line:
                total = sum(value for series, value in page.items() if series.startswith("app_request_count"))
                print(f"{now - began:5.0f} s  {total:10.0f} requests  {page['app_connections_open']:4.0f} connections  "
                      f"{use['memory'] / 1e6:5.2f} MB  {use['descriptors']:4} descriptors  {use['threads']} threads",
                      flush=True)
                next_line = now + 10
            time.sleep(min(1, max(0, end - time.monotonic())))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    deadline = time.monotonic() + TIMEOUT
    while scraper.scrape()["app_connections_open"] != 1:
        if time.monotonic() > deadline:
            raise Wrong(f"{scraper.last['app_connections_open'] - 1:.0f} connections are still open "
                        f"{TIMEOUT} s after their clients have left")
        time.sleep(0.05)
    # The scrape itself may be in flight.
    if (in_flight := scraper.last.get("app_requests_in_flight")) not in (0, 1):
        ledger.tell(f"app_requests_in_flight is {in_flight} after all clients have left, not 0 or 1")
    return service.use()


# --- comparing ----------------------------------------------------------------------------------


def labels(series):
    return dict(re.findall(r'(\w+)="([^"]*)"', series))


def check_counters(page, ledger):
    """Compares the counters with what the clients counted. Returns the number of series compared."""
    counted, observed = {}, {}
    for series, value in page.items():
        label = labels(series)
        if series.startswith("app_request_count_total{"):
            counted[label["method"], label["endpoint"], label["http_status"]] = int(value)
        elif series.startswith("app_request_latency_seconds_count{"):
            observed[label["method"], label["endpoint"]] = int(value)
    # The last scrape's own page does not include it.
    answered = ledger.answered - Counter({("GET", "/metrics", "200"): 1})

    departed = {("GET", "/probe", str(status)) for status in (499, *STATUS_BEFORE.values())}
    check_departed(counted, ledger)
    for key in sorted((counted.keys() | answered.keys()) - departed):
        service, clients = counted.get(key, 0), answered[key]
        if service != clients and key[:2] not in ledger.unread:
            ledger.tell(f"{' '.join(key)}: the service counted {service}, its clients {clients}")
        elif service < clients:
            ledger.tell(f"{' '.join(key)}: the service counted {service}, and its clients read {clients} answers")
    sums = Counter()
    for (method, endpoint, _), value in counted.items():
        sums[method, endpoint] += value
    for key, sent in ledger.unread.items():
        if sums[key] > sent:
            ledger.tell(f"{' '.join(key)}: the service counted {sums[key]}, and its clients sent only {sent}")
    for key, value in sums.items():
        if observed.get(key) != value:
            ledger.tell(f"{' '.join(key)}: the histogram has {observed.get(key)}, the counter {value}")
    return len(counted)


def check_departed(counted, ledger):
    """Compares the requests whose clients left before the delayed response.

    After FIN the service still reads the request, so each is counted exactly once: with 499, or with the status
    of the response if the kernel took it, since nobody can know then that the client will not. A reset may
    overtake the request, which is then never read, so there is only an upper bound; but a response to such a
    client cannot be written, so its status is never counted."""
    left, fin, rst = (counted.get(("GET", "/probe", str(status)), 0)
                      for status in (499, STATUS_BEFORE["FIN"], STATUS_BEFORE["RST"]))
    sent = ledger.departed
    if rst > sent["late"]:
        ledger.tell(f"GET /probe: {rst} of {sent['RST']} clients that left with RST before their response "
                    f"are counted with its status, {STATUS_BEFORE['RST']}, not with 499")
    if not sent["FIN"] <= left + fin + rst <= sent["FIN"] + sent["RST"]:
        ledger.tell(f"GET /probe: {sent['FIN']} clients left with FIN and {sent['RST']} with RST before their response; "
                    f"the service counted {left} with 499, {fin} with {STATUS_BEFORE['FIN']} and "
                    f"{rst} with {STATUS_BEFORE['RST']}")


def check_use(before, warm, after, ledger):
    for what in ("descriptors", "threads"):
        if after[what] != before[what]:
            ledger.tell(f"{what}: {before[what]} before, {after[what]} after")
    if after["memory"] > warm["memory"] + MAX_GROWTH:
        ledger.tell(f"memory: {warm['memory'] / 1e6:.2f} MB after the warm-up, {after['memory'] / 1e6:.2f} MB after")


def soak(binary, flags, clients, seconds):
    """Runs one service and its clients, and prints the result. Returns what was wrong."""
    service, ledger = Service(binary, flags), Ledger()
    peak = Counter()
    before = warm = after = None
    compared = 0
    try:
        began = time.monotonic()
        scraper = Scraper(service, ledger)
        scraper.scrape()
        before = service.use()
        # Memory is compared between the end of a warm-up and the end: what the allocator keeps after each
        # kind of client has run once is not a leak.
        warm_up = min(30, seconds / 4)
        warm = run(service, clients, ledger, scraper, warm_up, began, peak)
        after = run(service, clients, ledger, scraper, seconds - warm_up, began, peak)
        peak["memory"] = service.most_memory()
        compared = check_counters(scraper.last, ledger)
        check_use(before, warm, after, ledger)
        if peak["memory"] > MAX_RESIDENT:
            ledger.tell(f"memory: {peak['memory'] / 1e6:.2f} MB under load, {MAX_RESIDENT / 1e6:.0f} allowed")
    except (Wrong, OSError) as what:
        ledger.tell(f"the scraper: {what or type(what).__name__}")
    finally:
        exit_code = service.end()
    if exit_code != 0:
        ledger.tell(f"the service ended with exit code {exit_code}")
    for line in service.diagnostics:
        ledger.tell(f"the service reported: {line}")

    print("\nhow often each client ran:")
    for client in clients:
        print(f"  {ledger.by_client[client.__name__]:8} × {client.__name__.replace('_', ' ')}")
    if after:
        print("\n               before   after the warm-up   at most   after")
        for what, unit in [("memory", 1e6), ("descriptors", 1), ("threads", 1)]:
            digits = 2 if unit > 1 else 0
            row = [f"{use[what] / unit:.{digits}f}" for use in (before, warm, peak, after)]
            print(f"  {what + (' (MB)' if unit > 1 else ''):11}{row[0]:>8}{row[1]:>20}{row[2]:>10}{row[3]:>8}")
        read, unread = sum(ledger.answered.values()), sum(ledger.unread.values())
        print(f"\n{read} responses read; {unread} requests by clients that left without reading all responses; "
              f"{ledger.departed['FIN'] + ledger.departed['RST']} clients that left before a delayed one; {compared} series compared")
    return ledger.wrong


def main():
    parser = argparse.ArgumentParser(description="Sends good, bad and hostile traffic, then compares the counters.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--tiny-probe", metavar="BINARY", type=Path, default=ROOT / "target" / "release" / "tiny-probe")
    arguments = parser.parse_args()
    if not arguments.tiny_probe.exists():
        sys.exit(f"soak: {arguments.tiny_probe} is missing; build it with `make build`, or name one with --tiny-probe")

    wrong = soak(arguments.tiny_probe, FLAGS, CLIENTS, arguments.seconds * 0.8)
    print(f"\nat the limit of {MAX_CONNECTIONS} connections, with {sum(CLIENTS_AT_LIMIT.values())} clients:")
    wrong += soak(arguments.tiny_probe, FLAGS_AT_LIMIT, CLIENTS_AT_LIMIT, arguments.seconds * 0.2)
    if wrong:
        for what in wrong:
            print(f"soak: WRONG: {what}", file=sys.stderr)
        sys.exit(1)
    print("soak: everything is as it should be")


if __name__ == "__main__":
    main()
