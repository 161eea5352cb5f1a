#!/usr/bin/env python3
"""Sends valid, invalid and hostile requests to tiny-probe at the same time, then compares its counters with what
the clients counted.

    make soak                    takes ten minutes; make soak SECONDS=120 takes two
    bench/soak.py --seconds 30   uses a binary that is already built

Two services run one after the other. The first has room for every client. The second, which runs for a fifth
of the time, allows fewer connections than it has clients.

During the run, every response must be correct and arrive in time. After all clients have disconnected, memory,
descriptors and threads must return to their initial values, no request may be in flight, and every counter
must agree with the clients:

- Clients that read all their responses know the exact numbers.
- Clients that disconnect without reading do not know which of their requests the service has read, because a
  reset discards unread bytes. They use methods and routes of their own. These counters must be between the
  number of responses read and the number of requests sent.
- A client that disconnects before its delayed response is recorded with status 499. After a FIN it can also be
  recorded with the status of its response, if the kernel still accepted the response. Such clients request a
  status that no other client requests, so that the sum of both can be checked (see check_departed).

Prints a line for each difference and exits 1 if there is one.
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
# One /probe request in twenty fails and one in twenty is slow, so that failures and delays are tested as well.
# Fault injection lets a client choose the delay of its own response.
FLAGS = ["--server", "event-loop", "--fail-rate", "0.05", "--slow-rate", "0.05", "--latency", "1ms",
         "--slow-latency", "200ms", "--fault-injection"]
# Without delays, because delayed responses could occupy every connection, and then a 503 would be correct.
MAX_CONNECTIONS = 20
FLAGS_AT_LIMIT = ["--server", "event-loop", "--fail-rate", "0.05", "--max-connections", str(MAX_CONNECTIONS)]
# In seconds, for a response, on a machine that may be busy.
TIMEOUT = 10
# In seconds, for /healthz at the connection limit. The service promises 300 ms, but the clients are threads of
# this process and also wait for each other.
HEALTH_TIMEOUT = 1
# A client disconnects within DISCONNECTS_WITHIN seconds of a request whose response is due after DELAY seconds.
# It requests one of these statuses, depending on how it disconnects.
DISCONNECTS_WITHIN = 0.3
DELAY = 2
STATUS_BEFORE = {"FIN": 504, "RST": 502}
# In bytes: how much memory may grow between two equal loads. A leak of ten bytes per request would exceed this
# within two minutes.
MAX_GROWTH = 1024 * 1024
# In bytes: the limit on resident memory at any time. There are about 250 connections, and for each the service
# holds at most 64 KiB of responses and 64 KiB of requests.
MAX_RESIDENT = 48 * 1024 * 1024


class CheckFailed(Exception):
    """A check failed; the message says what was observed."""


class Ledger:
    """What the clients have sent and received, and the failures."""

    def __init__(self):
        self.lock = threading.Lock()
        self.responses = Counter()  # (method, endpoint, status) -> responses read
        self.unread = Counter()  # (method, endpoint) -> requests whose responses were not read
        # "FIN" or "RST" -> requests whose client disconnected before the delayed response. "late" -> those that
        # disconnected so late, because the machine was busy, that the response may have been sent before.
        self.departed = Counter()
        self.by_client = Counter()  # kind of client -> how often it ran
        self.failures = []

    def count_response(self, method, endpoint, status):
        with self.lock:
            self.responses[method, endpoint, str(status)] += 1

    def count_unread(self, method, endpoint, count=1):
        with self.lock:
            self.unread[method, endpoint] += count

    def count_departed(self, how):
        with self.lock:
            self.departed[how] += 1

    def report(self, failure):
        with self.lock:
            if len(self.failures) < 20:
                self.failures.append(failure)


class Connection:
    """A client's connection to the service."""

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

    def receive(self, size=65536):
        try:
            received = self.socket.recv(size)
        except TimeoutError:
            raise CheckFailed(f"timed out: received nothing for {TIMEOUT} s") from None
        self.received += received
        return bool(received)

    def response(self, has_body=True, size=65536):
        """Reads one response and returns its status and its body."""
        while b"\r\n\r\n" not in self.received:
            if not self.receive(size):
                raise CheckFailed(f"the connection ended in the middle of a response: {self.received!r}")
        head, self.received = self.received.split(b"\r\n\r\n", 1)
        self.is_last = b"\r\nconnection: close" in head.lower()
        length = int(re.search(rb"\r\nContent-Length: (\d+)", head)[1]) if has_body else 0
        while len(self.received) < length:
            if not self.receive(size):
                raise CheckFailed(f"the connection ended in the middle of a body: {head!r}")
        body, self.received = self.received[:length], self.received[length:]
        return int(head[9:12]), body

    def expect_end(self):
        while not self.received and self.receive():
            pass
        if self.received:
            raise CheckFailed(f"bytes after the last response: {self.received[:200]!r}")

    def pipeline_without_end(self, text, seconds, pace, stop):
        """Sends a request repeatedly and reads responses. Before each read it calls `pace()`, which returns the
        maximum number of bytes to read and the seconds to pause afterward. When the time is over or the soak
        stops, it completes the last request, closes the sending side and reads the rest. Returns the number of
        requests sent and the number of responses received until the service closed the connection."""
        status_line = b"HTTP/1.1 200 "
        block = text.encode() * 200
        # With a larger buffer, the kernel accepts megabytes of requests, whose responses take minutes to read.
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
                # A status line can arrive in two pieces.
                carried += received
                responses += carried.count(status_line)
                carried = carried[1 - len(status_line):]
            if may_read or may_send:
                last_progress = time.monotonic()
            elif time.monotonic() - last_progress > TIMEOUT:
                raise CheckFailed(f"a pipeline made no progress for {TIMEOUT} s after {responses} responses")
            if pause:
                stop.wait(pause)

    def receives_more_than(self, limit):
        """Reads until the end of the connection, but stops after more than `limit` bytes. Returns whether there
        were more."""
        self.socket.settimeout(TIMEOUT)
        total = 0
        try:
            while total <= limit and (received := self.socket.recv(65536)):
                total += len(received)
        except ConnectionResetError:
            pass
        return total > limit

    def reset(self):
        """Disconnects with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def request(method, path, *fields, version="1.1"):
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: localhost", *fields, "", ""])


def check_probe(status, body):
    if (status, body) != (200, b"I'm ok!") and not (status == 500 and body.startswith(b"Failed")):
        raise CheckFailed(f"GET /probe got {status} {body!r}")


# --- the clients: each function is called repeatedly until the end -------------------------------

# Valid requests: method, path, fields, body, and the expected endpoint and status.
VALID = [
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
                status, body = connection.response()
                check_probe(status, body)
                ledger.count_response("GET", "/probe", status)
            else:
                method, path, fields, body, endpoint, expected = random.choice(VALID)
                connection.send(request(method, path, *fields) + body)
                status, _ = connection.response(has_body=method != "HEAD")
                if status != expected:
                    raise CheckFailed(f"{method} {path} got {status}, expected {expected}")
                ledger.count_response(method if method != "BREW" else "other", endpoint, status)
            if stop.is_set():
                return


def new_connection_each(service, ledger, stop):
    version, *fields = random.choice([("1.1", "Connection: close"), ("1.0",)])
    with Connection(service.port) as connection:
        connection.send(request("GET", "/probe", *fields, version=version))
        status, body = connection.response()
        check_probe(status, body)
        ledger.count_response("GET", "/probe", status)
        connection.expect_end()


def pipeline(service, ledger, stop):
    with Connection(service.port) as connection:
        paths = random.choices(["/probe", "/healthz", "/nope"], [1, 40, 9], k=500)
        connection.send("".join(request("GET", path) for path in paths))
        for path in paths:
            status, body = connection.response()
            if path == "/probe":
                check_probe(status, body)
            elif (path, status) not in [("/healthz", 200), ("/nope", 404)]:
                raise CheckFailed(f"{path} got {status} in a pipeline")
            ledger.count_response("GET", path if path != "/nope" else "other", status)


def slow_reader(service, ledger, stop):
    with Connection(service.port, receive_buffer=2048) as connection:
        connection.send(request("GET", "/metrics"))
        while len(connection.received) < 3000:
            connection.receive(100)
            stop.wait(0.01)
        status, _ = connection.response()
        if status != 200:
            raise CheckFailed(f"GET /metrics got {status}, expected 200")
        ledger.count_response("GET", "/metrics", status)


# Invalid requests and the expected status.
INVALID = [
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
    text, expected = random.choice(INVALID)
    with Connection(service.port) as connection:
        connection.send(text)
        status, _ = connection.response()
        if status != expected:
            raise CheckFailed(f"{text[:60]!r}… got {status}, expected {expected}")
        ledger.count_response("other", "other", status)
        connection.expect_end()
    stop.wait(0.005)


def body_never_sent(service, ledger, stop):
    with Connection(service.port) as connection:
        connection.send(request("PUT", "/probe", "Content-Length: 60000") + "a beginning")
        status, _ = connection.response()
        ledger.count_response("PUT", "/probe", status)
        began = time.monotonic()
        while not stop.is_set() and not select.select([connection.socket], [], [], 0.5)[0]:
            if time.monotonic() - began > 10 + TIMEOUT:
                raise CheckFailed("a connection whose body never arrived was kept for more than 20 s")


def slow_head(service, ledger, stop):
    """Sends a head at one byte per second until the service responds that this takes too long."""
    with Connection(service.port) as connection:
        began = time.monotonic()
        for byte in request("GET", "/probe", "X-Slow: " + "x" * 1000).encode():
            if stop.is_set():
                # Only half-close, so that a 408 that is already on its way is still read and counted.
                connection.socket.shutdown(socket.SHUT_WR)
                break
            connection.send(bytes([byte]))
            if select.select([connection.socket], [], [], 1)[0]:
                break
            if time.monotonic() - began > 10 + TIMEOUT:
                raise CheckFailed("the service waited for a head for more than 20 s")
        if connection.receive():
            status, _ = connection.response()
            if status != 408:
                raise CheckFailed(f"a slow head got {status}, expected 408")
            ledger.count_response("other", "other", status)
            connection.expect_end()


def silent(service, ledger, stop):
    """Opens many connections and sends nothing."""
    connections = [Connection(service.port) for _ in range(100)]
    stop.wait(random.uniform(1, 5))
    for connection in connections:
        connection.socket.close()


def idle(service, ledger, stop):
    """Keeps a connection idle until the service closes it, which must not send a response then."""
    with Connection(service.port) as connection:
        connection.send(request("GET", "/healthz"))
        status, _ = connection.response()
        ledger.count_response("GET", "/healthz", status)
        began = time.monotonic()
        while not select.select([connection.socket], [], [], 0.5)[0]:
            if stop.is_set():
                return
            if time.monotonic() - began > 75 + TIMEOUT:
                raise CheckFailed("an idle connection was kept for more than 85 s")
        connection.expect_end()
        if (took := time.monotonic() - began) < 74.9:
            raise CheckFailed(f"an idle connection was closed after {took:.1f} s")


def disconnect_after_connecting(service, ledger, stop):
    connection = Connection(service.port)
    random.choice([connection.reset, connection.socket.close])()
    stop.wait(0.002)


def disconnect_within_head(service, ledger, stop):
    connection = Connection(service.port)
    head = request("GET", "/probe", "X-Some: thing")
    connection.send(head[:random.randrange(1, len(head) - 2)])
    stop.wait(random.uniform(0, 0.05))
    random.choice([connection.reset, connection.socket.close])()


def disconnect_after_requests(service, ledger, stop):
    connection = Connection(service.port)
    count = random.choice([1, 1, 50])
    ledger.count_unread("OPTIONS", "/probe", count)
    connection.send(request("OPTIONS", "/probe") * count)
    stop.wait(random.choice([0, 0.001]))
    connection.reset()
    stop.wait(0.002)


def disconnect_before_delayed_responses(service, ledger, stop):
    connection = Connection(service.port)
    ledger.count_unread("HEAD", "/probe", 200)
    connection.send(request("HEAD", "/probe") * 200)
    stop.wait(random.uniform(0, 0.3))
    connection.reset()


def never_read(service, ledger, stop):
    """Pipelines without end and reads nothing until the service closes the connection."""
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
                # The receiver drops a reset for which its window has no room (RFC 9293, section 3.10.7.4). If
                # the service has closed the connection, reading makes room and triggers another reset.
                if connection.receives_more_than(1024 * 1024):
                    ledger.report("never_read: a client that reads nothing was kept for more than 20 s")
                break
        ledger.count_unread("GET", "/", sent * 100 // len(text))


def pipeline_without_end(service, ledger, stop):
    """Sends as many requests as the service accepts for a few seconds, and reads every response at once."""
    with Connection(service.port) as connection:
        method, path = random.choice([("HEAD", "/metrics"), ("GET", "/healthz"), ("HEAD", "/healthz")])
        sent, read = connection.pipeline_without_end(request(method, path), random.uniform(0.5, 3),
                                                     lambda: (262144, 0), stop)
        if sent != read:
            raise CheckFailed(f"{sent} pipelined requests {method} {path} got {read} responses")
        for _ in range(read):
            ledger.count_response(method, path, 200)
    stop.wait(random.uniform(1, 5))  # leave the other clients some of the service's time


def paces():
    """The paces for read_steadily. Each makes room in the receive buffer at least every ten seconds; otherwise the
    service would close the connection."""
    size, pause = random.choice([(4096, 0.0002), (16384, 0.002), (16384, 0.02), (1024, 0.01)])
    yield lambda: (16384, 0.0008)
    yield lambda: (size, pause)
    yield lambda: (random.randrange(1, 65536), random.choice([0, 0, 0.001, 0.05, 0.5]))


def read_steadily(service, ledger, stop):
    """Pipelines without end and reads steadily, but more slowly than the service writes. The service always has
    unsent bytes, and they keep changing."""
    with Connection(service.port, receive_buffer=16384) as connection:
        sent, read = connection.pipeline_without_end(request("GET", "/metrics"), random.uniform(2, 15),
                                                     random.choice(list(paces())), stop)
        if sent != read:
            raise CheckFailed(f"{sent} requests GET /metrics, read slowly, got {read} responses")
        for _ in range(read):
            ledger.count_response("GET", "/metrics", 200)


def read_very_slowly(service, ledger, stop):
    """Pipelines and reads 2 KiB every 4 s. The service closes the connection after 10 s without progress. Whether
    that happens depends on when the kernel announces room, so only bounds for the number of requests are known."""
    with Connection(service.port, receive_buffer=4096) as connection:
        text = request("GET", "/").encode()
        count = 1000
        # Counted before sending, because the service may read any part of it.
        ledger.count_unread("GET", "/", count)
        try:
            connection.socket.setblocking(False)
            connection.socket.send(text * count)
            connection.socket.setblocking(True)
            for _ in range(random.randrange(1, 10)):
                if stop.wait(4) or not connection.socket.recv(2048):
                    break
        except ConnectionError:
            pass


def disconnect_before_a_delayed_response(service, ledger, stop):
    how = random.choice(["FIN", "RST"])
    connection = Connection(service.port)
    ledger.count_departed(how)
    began = time.monotonic()
    connection.send(request("GET", f"/probe?delay={DELAY}s&status={STATUS_BEFORE[how]}"))
    stop.wait(random.uniform(0, DISCONNECTS_WITHIN))
    connection.reset() if how == "RST" else connection.socket.close()
    if time.monotonic() - began > 0.9 * DELAY:
        ledger.count_departed("late")


def urgent_data(service, ledger, stop):
    """Sends one byte of a head as TCP urgent data. The service receives it in line, but a read ends before it."""
    with Connection(service.port) as connection:
        head = request("GET", "/healthz", "User-Agent: soak")
        middle = random.randrange(1, len(head) - 1)
        began = time.monotonic()
        connection.send(head[:middle])
        connection.socket.send(head[middle:middle + 1].encode(), socket.MSG_OOB)
        connection.send(head[middle + 1:])
        status, _ = connection.response()
        took = time.monotonic() - began
        ledger.count_response(*(("GET", "/healthz") if status == 200 else ("other", "other")), status)
        if status != 200 or took > TIMEOUT / 2:
            raise CheckFailed(f"a request with urgent data got {status} after {took:.1f} s")
    stop.wait(0.1)


def upload(service, ledger, stop):
    """Uploads 10 MB, which takes a few seconds, and reads the response only afterward, as many clients do."""
    with Connection(service.port) as connection:
        piece, pieces = b"x" * 100_000, 100
        connection.send(request("POST", "/probe", f"Content-Length: {len(piece) * pieces}"))
        pause = random.choice([0, 0.01, 0.05])
        for _ in range(pieces):
            connection.send(piece)
            time.sleep(pause)
        status, _ = connection.response()
        if status != 413:
            raise CheckFailed(f"an upload of 10 MB got {status}, expected 413")
        ledger.count_response("other", "other", status)
        connection.expect_end()
    stop.wait(0.5)


def keep_alive_at_limit(service, ledger, stop):
    """Reuses a connection, with short pauses, until the service announces that it closes it. HTTP also allows the
    service to close a connection between two requests. In that case the client reconnects."""
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
            status, body = connection.response()
            check_probe(status, body)
            ledger.count_response("GET", "/probe", status)
            if connection.is_last:
                connection.expect_end()
                return
            stop.wait(0.01)
            if stop.is_set():
                return


def pause_after_connecting(service, ledger, stop):
    """Pauses between connecting and sending. A connection that has not sent anything yet does not count as idle."""
    with Connection(service.port) as connection:
        stop.wait(0.01)
        connection.send(request("GET", "/probe", "Connection: close"))
        status, body = connection.response()
        check_probe(status, body)
        ledger.count_response("GET", "/probe", status)
        connection.expect_end()


def check_health(service, ledger, stop):
    began = time.monotonic()
    with Connection(service.port) as connection:
        connection.send(request("GET", "/healthz", "Connection: close"))
        status, _ = connection.response()
        ledger.count_response("GET", "/healthz", status)
        if status != 200 or time.monotonic() - began > HEALTH_TIMEOUT:
            raise CheckFailed(f"GET /healthz on a new connection got {status} after {time.monotonic() - began:.1f} s")
    stop.wait(0.1)


CLIENTS = {
    keep_alive: 8, new_connection_each: 4, pipeline: 2, slow_reader: 2,
    malformed: 2, body_never_sent: 4, slow_head: 8, silent: 1, idle: 4, disconnect_after_connecting: 2,
    disconnect_within_head: 2, disconnect_after_requests: 2, disconnect_before_delayed_responses: 2, never_read: 4,
    pipeline_without_end: 2, read_steadily: 3, read_very_slowly: 4, disconnect_before_a_delayed_response: 4,
    urgent_data: 1, upload: 1,
}
CLIENTS_AT_LIMIT = {new_connection_each: MAX_CONNECTIONS, keep_alive_at_limit: MAX_CONNECTIONS,
                    pause_after_connecting: MAX_CONNECTIONS, disconnect_after_connecting: 1, check_health: 1}


def repeat(client, service, ledger, stop):
    while not stop.is_set():
        try:
            client(service, ledger, stop)
        except (CheckFailed, OSError) as failure:
            ledger.report(f"{client.__name__}: {failure or type(failure).__name__}")
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
            sys.exit(f"soak: {binary} did not start: {line.strip()}")
        self.port = int(address[1])
        self.diagnostics = []
        threading.Thread(target=self.read_diagnostics, daemon=True).start()

    def read_diagnostics(self):
        self.diagnostics.extend(line.strip() for line in self.process.stderr)

    def usage(self):
        """Returns what the process uses now: resident bytes, descriptors and threads."""
        directory = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (directory / "status").read_text().splitlines())
        return {"memory": int(status["VmRSS"].split()[0]) * 1024,
                "descriptors": len(list((directory / "fd").iterdir())),
                "threads": int(status["Threads"])}

    def peak_memory(self):
        """Returns the peak of resident bytes."""
        return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1]) * 1024

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return f"none (it did not end within {TIMEOUT} s of SIGTERM)"


class Scraper:
    """Scrapes like Prometheus: on one connection, until the service closes it."""

    def __init__(self, service, ledger):
        self.port = service.port
        self.connection = None
        self.ledger = ledger
        self.last = {}

    def scrape(self):
        """Returns every series with its value. Checks that no series disappears and that no counter decreases."""
        status, body = self.request_exposition()
        if status != 200 or not body.endswith(b"\n# EOF\n"):
            raise CheckFailed(f"a scrape got {status}, and its body ends with {body[-100:]!r}")
        exposition = {}
        for line in body.decode().splitlines():
            if not line.startswith("#"):
                sample, _, _exemplar = line.partition(" # ")
                series, value = sample.rsplit(" ", 1)
                exposition[series] = float(value)
        for series, value in self.last.items():
            is_counter = series.startswith("app_request_")
            if series not in exposition or (is_counter and exposition[series] < value):
                raise CheckFailed(f"{series} went from {value} to {exposition.get(series)}")
        self.last = exposition
        # A scrape includes every request completed before it, so it is counted afterward.
        self.ledger.count_response("GET", "/metrics", status)
        return exposition

    def request_exposition(self):
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
            return self.request_exposition()
        result = self.connection.response()
        if self.connection.is_last:
            self.close()
        return result

    def close(self):
        self.connection.socket.close()
        self.connection = None


def run(service, clients, ledger, scraper, seconds, began, peak):
    """Runs the clients for a number of seconds. Returns what the service uses after all of them have disconnected."""
    stop = threading.Event()
    threads = [threading.Thread(target=repeat, args=(client, service, ledger, stop))
               for client, number in clients.items() for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        end = time.monotonic() + seconds
        next_line = 0
        while (now := time.monotonic()) < end and service.process.poll() is None and not ledger.failures:
            exposition = scraper.scrape()
            usage = service.usage()
            for what, value in usage.items():
                peak[what] = max(peak[what], value)
            if now >= next_line:
                total = sum(value for series, value in exposition.items() if series.startswith("app_request_count"))
                connections = exposition["app_connections_open"]
                print(f"{now - began:5.0f} s  {total:10.0f} requests  {connections:4.0f} connections  "
                      f"{usage['memory'] / 1e6:5.2f} MB  {usage['descriptors']:4} descriptors  "
                      f"{usage['threads']} threads",
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
            raise CheckFailed(f"{scraper.last['app_connections_open'] - 1:.0f} connections are still open "
                              f"{TIMEOUT} s after their clients disconnected")
        time.sleep(0.05)
    # The scrape itself may be counted as in flight.
    if (in_flight := scraper.last.get("app_requests_in_flight")) not in (0, 1):
        ledger.report(f"app_requests_in_flight is {in_flight} after all clients disconnected, expected 0 or 1")
    return service.usage()


# --- comparing ----------------------------------------------------------------------------------


def labels(series):
    return dict(re.findall(r'(\w+)="([^"]*)"', series))


def check_counters(exposition, ledger):
    """Compares the counters with what the clients counted. Returns the number of series compared."""
    counted, observed = {}, {}
    for series, value in exposition.items():
        label = labels(series)
        if series.startswith("app_request_count_total{"):
            counted[label["method"], label["endpoint"], label["http_status"]] = int(value)
        elif series.startswith("app_request_latency_seconds_count{"):
            observed[label["method"], label["endpoint"]] = int(value)
    # The exposition does not include its own scrape.
    responses = ledger.responses - Counter({("GET", "/metrics", "200"): 1})

    departed = {("GET", "/probe", str(status)) for status in (499, *STATUS_BEFORE.values())}
    check_departed(counted, ledger)
    for key in sorted((counted.keys() | responses.keys()) - departed):
        service, clients = counted.get(key, 0), responses[key]
        if service != clients and key[:2] not in ledger.unread:
            ledger.report(f"{' '.join(key)}: the service counted {service}, its clients {clients}")
        elif service < clients:
            ledger.report(f"{' '.join(key)}: the service counted {service}, but its clients read {clients} responses")
    sums = Counter()
    for (method, endpoint, _), value in counted.items():
        sums[method, endpoint] += value
    for key, sent in ledger.unread.items():
        if sums[key] > sent:
            ledger.report(f"{' '.join(key)}: the service counted {sums[key]}, but its clients sent only {sent}")
    for key, value in sums.items():
        if observed.get(key) != value:
            ledger.report(f"{' '.join(key)}: the histogram has {observed.get(key)}, the counter {value}")
    return len(counted)


def check_departed(counted, ledger):
    """Compares the requests whose clients disconnected before the delayed response.

    After a FIN the service still reads the request, so each is counted exactly once. It is counted with 499, or
    with the status of the response if the kernel accepted the response, because the service cannot know that
    the client does not read it. A reset can discard the request before the service reads it, so there is only
    an upper bound. A response to such a client cannot be written, so its status must never be counted."""
    disconnected, fin, rst = (counted.get(("GET", "/probe", str(status)), 0)
                      for status in (499, STATUS_BEFORE["FIN"], STATUS_BEFORE["RST"]))
    sent = ledger.departed
    if rst > sent["late"]:
        ledger.report(f"GET /probe: of {sent['RST']} clients that disconnected with RST before their response, {rst} "
                      f"are counted with its status, {STATUS_BEFORE['RST']}, instead of 499")
    if not sent["FIN"] <= disconnected + fin + rst <= sent["FIN"] + sent["RST"]:
        ledger.report(f"GET /probe: {sent['FIN']} clients disconnected with FIN and {sent['RST']} with RST before their "
                      f"response, but the service counted {disconnected} with 499, {fin} with {STATUS_BEFORE['FIN']} and "
                      f"{rst} with {STATUS_BEFORE['RST']}")


def check_usage(before, warm, after, ledger):
    for what in ("descriptors", "threads"):
        if after[what] != before[what]:
            ledger.report(f"{what}: {before[what]} at the start, {after[what]} at the end")
    if after["memory"] > warm["memory"] + MAX_GROWTH:
        ledger.report(f"memory: {warm['memory'] / 1e6:.2f} MB after the warm-up, "
                      f"{after['memory'] / 1e6:.2f} MB at the end")


def soak(binary, flags, clients, seconds):
    """Runs one service and its clients, and prints the result. Returns the failures."""
    service, ledger = Service(binary, flags), Ledger()
    peak = Counter()
    before = warm = after = None
    compared = 0
    try:
        began = time.monotonic()
        scraper = Scraper(service, ledger)
        scraper.scrape()
        before = service.usage()
        # Memory at the end is compared with memory after a warm-up, because memory that the allocator keeps after
        # each kind of client has run once is not a leak.
        warm_up = min(30, seconds / 4)
        warm = run(service, clients, ledger, scraper, warm_up, began, peak)
        after = run(service, clients, ledger, scraper, seconds - warm_up, began, peak)
        peak["memory"] = service.peak_memory()
        compared = check_counters(scraper.last, ledger)
        check_usage(before, warm, after, ledger)
        if peak["memory"] > MAX_RESIDENT:
            ledger.report(f"memory: {peak['memory'] / 1e6:.2f} MB under load, expected at most {MAX_RESIDENT / 1e6:.0f}")
    except (CheckFailed, OSError) as failure:
        ledger.report(f"the scraper: {failure or type(failure).__name__}")
    finally:
        exit_code = service.end()
    if exit_code != 0:
        ledger.report(f"the service ended with exit code {exit_code}, expected 0")
    for line in service.diagnostics:
        ledger.report(f"the service reported: {line}")

    print("\nruns of each client:")
    for client in clients:
        print(f"  {ledger.by_client[client.__name__]:8} × {client.__name__.replace('_', ' ')}")
    if after:
        print("\n                start   after the warm-up      peak     end")
        for what, unit in [("memory", 1e6), ("descriptors", 1), ("threads", 1)]:
            digits = 2 if unit > 1 else 0
            row = [f"{usage[what] / unit:.{digits}f}" for usage in (before, warm, peak, after)]
            print(f"  {what + (' (MB)' if unit > 1 else ''):11}{row[0]:>8}{row[1]:>20}{row[2]:>10}{row[3]:>8}")
        read, unread = sum(ledger.responses.values()), sum(ledger.unread.values())
        print(f"\n{read} responses read; {unread} requests by clients that did not read all responses; "
              f"{ledger.departed['FIN'] + ledger.departed['RST']} clients that disconnected before a delayed response; "
              f"{compared} series compared")
    return ledger.failures


def main():
    parser = argparse.ArgumentParser(
        description="Sends valid, invalid and hostile requests, then compares the counters with the clients.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--tiny-probe", metavar="BINARY", type=Path, default=ROOT / "target" / "release" / "tiny-probe")
    arguments = parser.parse_args()
    if not arguments.tiny_probe.exists():
        sys.exit(f"soak: {arguments.tiny_probe} is missing; build it with `make build`, or choose another with "
                 "--tiny-probe")

    failures = soak(arguments.tiny_probe, FLAGS, CLIENTS, arguments.seconds * 0.8)
    print(f"\nwith a limit of {MAX_CONNECTIONS} connections and {sum(CLIENTS_AT_LIMIT.values())} clients:")
    failures += soak(arguments.tiny_probe, FLAGS_AT_LIMIT, CLIENTS_AT_LIMIT, arguments.seconds * 0.2)
    if failures:
        for failure in failures:
            print(f"soak: FAILED: {failure}", file=sys.stderr)
        sys.exit(1)
    print("soak: all checks passed")


if __name__ == "__main__":
    main()
