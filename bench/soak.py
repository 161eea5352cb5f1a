#!/usr/bin/env python3
"""Drives good, bad and hostile clients at tiny-probe at the same time, and holds it to account.

    make soak                    ten minutes; make soak SECONDS=120 for two
    bench/soak.py --seconds 30   the same, of a service that is built already

While it runs, every answer has to be the right one, and soon. When the clients have left, memory,
descriptors and threads have to be where they were, and every counter has to be what the clients
counted. A client that reads its answers counts exactly. One that leaves without them cannot know
which requests the service still saw: such clients keep to methods and routes of their own, for
which the counter has to lie between the answers that were read and the requests that were sent.

Exit code 1, and a line for each, if something does not hold.
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
# One /probe in twenty fails and one in twenty is delayed, so that both ways are worn as well.
FLAGS = ["--server", "event-loop", "--fail-rate", "0.05", "--slow-rate", "0.05", "--latency", "1ms",
         "--slow-latency", "200ms"]
# An answer is this late at most, on a machine that has other work as well.
TIMEOUT = 10
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
        self.by_client = Counter()  # what kind of client -> how often it did its worst
        self.wrong = []

    def answer(self, method, endpoint, status):
        with self.lock:
            self.answered[method, endpoint, str(status)] += 1

    def leave(self, method, endpoint, count=1):
        with self.lock:
            self.unread[method, endpoint] += count

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
        """Reads one answer: its status and its body."""
        while b"\r\n\r\n" not in self.received:
            if not self.receive(most):
                raise Wrong(f"the connection ended within an answer: {self.received!r}")
        head, self.received = self.received.split(b"\r\n\r\n", 1)
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

    def takes_more_than(self, limit):
        """Reads until the end, or so much. Gives whether it was that much."""
        self.socket.settimeout(TIMEOUT)
        taken = 0
        try:
            while taken <= limit and (received := self.socket.recv(65536)):
                taken += len(received)
        except ConnectionResetError:
            pass
        return taken > limit

    def reset(self):
        """Leaves without a goodbye."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def request(method, path, *fields, version="1.1"):
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: localhost", *fields, "", ""])


def check_probe(status, body):
    if (status, body) != (200, b"I'm ok!") and not (status == 500 and body.startswith(b"Failed")):
        raise Wrong(f"GET /probe was answered {status} {body!r}")


# --- the clients: each does its worst once, and is called again until the end -------------------

# A good client's request, and what is to come of it: method, path, fields, body, endpoint, status.
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
    (request("GET", "/" + "x" * 10_000), 414),
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


CLIENTS = {
    keep_alive: 8, new_connection_each: 4, pipeline: 2, slow_reader: 2,
    malformed: 2, body_never_sent: 4, slow_head: 8, silent: 1, idle: 4, connect_and_vanish: 2,
    vanish_within_head: 2, vanish_after_request: 2, vanish_while_late: 2, never_read: 4,
}


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
    def __init__(self, binary):
        self.process = subprocess.Popen([binary, "--listen", "127.0.0.1:0", *FLAGS],
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
        """What it takes of the machine now: resident bytes, descriptors, threads."""
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
    """Scrapes as Prometheus does: on one connection that it keeps."""

    def __init__(self, service, ledger):
        self.connection = Connection(service.port)
        self.ledger = ledger
        self.last = {}

    def scrape(self):
        """Gives every series and its value. What counts must never fall."""
        self.connection.send(request("GET", "/metrics", "Accept: application/openmetrics-text;version=1.0.0,*/*;q=0.1"))
        status, body = self.connection.answer()
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
        # A scrape shows the requests before itself, so it is counted afterwards.
        self.ledger.answer("GET", "/metrics", status)
        return page


def run(service, ledger, scraper, seconds, began, peak):
    """Traffic for so many seconds, then none. Gives what the service takes when all have left."""
    stop = threading.Event()
    threads = [threading.Thread(target=repeat, args=(client, service, ledger, stop))
               for client, number in CLIENTS.items() for _ in range(number)]
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
    return service.use()


# --- the account --------------------------------------------------------------------------------


def labels(series):
    return dict(re.findall(r'(\w+)="([^"]*)"', series))


def check_counters(page, ledger):
    """Holds the counters against what the clients counted. Gives how many series were compared."""
    counted, observed = {}, {}
    for series, value in page.items():
        label = labels(series)
        if series.startswith("app_request_count_total{"):
            counted[label["method"], label["endpoint"], label["http_status"]] = int(value)
        elif series.startswith("app_request_latency_seconds_count{"):
            observed[label["method"], label["endpoint"]] = int(value)
    # The last scrape is answered, and no page has shown it yet.
    answered = ledger.answered - Counter({("GET", "/metrics", "200"): 1})

    for key in sorted(counted.keys() | answered.keys()):
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


def check_use(before, warm, after, ledger):
    for what in ("descriptors", "threads"):
        if after[what] != before[what]:
            ledger.tell(f"{what}: {before[what]} before, {after[what]} after")
    if after["memory"] > warm["memory"] + MAX_GROWTH:
        ledger.tell(f"memory: {warm['memory'] / 1e6:.2f} MB after the warm-up, {after['memory'] / 1e6:.2f} MB after")


def main():
    parser = argparse.ArgumentParser(description="Good, bad and hostile clients, and the account afterwards.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--tiny-probe", metavar="BINARY", type=Path, default=ROOT / "target" / "release" / "tiny-probe")
    arguments = parser.parse_args()
    if not arguments.tiny_probe.exists():
        sys.exit(f"soak: {arguments.tiny_probe} is missing; make it with `make build`, or name one with --tiny-probe")

    service, ledger = Service(arguments.tiny_probe), Ledger()
    peak = Counter()
    before = warm = after = None
    compared = 0
    try:
        began = time.monotonic()
        scraper = Scraper(service, ledger)
        scraper.scrape()
        before = service.use()
        # Memory is compared between the end of a warm-up and the end: what the allocator keeps
        # after the first of everything is no leak.
        warm_up = min(30, arguments.seconds / 4)
        warm = run(service, ledger, scraper, warm_up, began, peak)
        after = run(service, ledger, scraper, arguments.seconds - warm_up, began, peak)
        peak["memory"] = service.most_memory()
        compared = check_counters(scraper.last, ledger)
        check_use(before, warm, after, ledger)
        if peak["memory"] > MAX_RESIDENT:
            ledger.tell(f"memory: {peak['memory'] / 1e6:.2f} MB under attack, {MAX_RESIDENT / 1e6:.0f} allowed")
    except (Wrong, OSError) as what:
        ledger.tell(f"the scraper: {what or type(what).__name__}")
    finally:
        exit_code = service.end()
    if exit_code != 0:
        ledger.tell(f"the service ended with exit code {exit_code}")
    for line in service.diagnostics:
        ledger.tell(f"the service reported: {line}")

    print("\nwhat the clients did:")
    for client in CLIENTS:
        print(f"  {ledger.by_client[client.__name__]:8} × {client.__name__.replace('_', ' ')}")
    if after:
        print("\n               before   after the warm-up   at most   after")
        for what, unit in [("memory", 1e6), ("descriptors", 1), ("threads", 1)]:
            digits = 2 if unit > 1 else 0
            row = [f"{use[what] / unit:.{digits}f}" for use in (before, warm, peak, after)]
            print(f"  {what + (' (MB)' if unit > 1 else ''):11}{row[0]:>8}{row[1]:>20}{row[2]:>10}{row[3]:>8}")
        read, unread = sum(ledger.answered.values()), sum(ledger.unread.values())
        print(f"\n{read} answers read; {unread} requests left without reading the answer; {compared} series compared")
    if ledger.wrong:
        for what in ledger.wrong:
            print(f"soak: WRONG: {what}", file=sys.stderr)
        sys.exit(1)
    print("soak: everything holds")


if __name__ == "__main__":
    main()
