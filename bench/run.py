#!/usr/bin/env python3
"""Compares tiny-probe with other servers in one run, in which the servers take turns.

    make bench                    builds everything, measures for about half an hour, and writes
                                  bench/results.md and docs/bench.svg
    bench/run.py --quick          one short round, to check that it works. This and every other run
                                  with an option write to target/bench instead
    bench/run.py --servers floor,event-loop --rounds 3
    bench/run.py --servers event-loop,static,axum,go --loads metrics
    bench/run.py --loads wait     only the wait of a new client while others pipeline requests

Needs wrk and a built tiny-probe, cc for the clients that pipeline, and oha for the load at a fixed rate.
Servers and loads whose tools are not installed are skipped, and the results list them. The load is generated
on this machine, so run the benchmark on at least two cores and while nothing else runs.
"""

import argparse
import http.client
import json
import os
import platform
import random
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
import tomllib
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
BUILT = ROOT / "target" / "bench"
LUA = BENCH / "report.lua"
IDLE_CONNECTIONS = 1000
# Requests per second of the load at a fixed rate. Every compiled server and the load generator can sustain
# this rate even on a slow machine.
RATE = 5000
SCRAPE_PAUSE = 0.1

# The loads by key: the heading in the tables, the path, the number of connections, a factor for the duration,
# and options for wrk. With 1000 connections the factor is 2, because opening them takes part of the time.
KEEP_ALIVE = {f"c{n}": (f"{n}", "/probe", n, factor, []) for n, factor in
              [(1, 1), (16, 1), (64, 1), (1000, 2)]}
LOADS = KEEP_ALIVE | {
    "pinned": ("64 connections, one core", "/probe", 64, 1, []),
    "quiet": (f"{RATE} requests per second", "/probe", 64, 2, []),
    "busy": ("the same with scrapes and idle connections", "/probe", 64, 2, []),
    "metrics": ("/metrics", "/metrics", 16, 1, []),
    "close": ("new connection each", "/probe", 16, 1, ["-H", "Connection: close"]),
}
AT_A_FIXED_RATE = ("quiet", "busy")
PERCENTILES = [("median", "p50"), ("p99", "p99"), ("p99.9", "p99.9"), ("slowest", "slowest")]
# The requests that other clients pipeline without end while a new client waits. Each loads the servers in a
# different way: many cheap requests, long responses, and expensive requests with short responses.
FLOOD_REQUESTS = {"probe": "GET /probe", "metrics": "GET /metrics", "head": "HEAD /metrics"}
FLOOD_CLIENTS = (1, 100, 1000, 3000)
WAITS = {f"wait-{kind}-{clients}": (f"a new client while {clients} client{'s pipeline' if clients > 1 else ' pipelines'} "
                                    f"{request}", request, clients, 1, [])
         for kind, request in FLOOD_REQUESTS.items() for clients in FLOOD_CLIENTS}
LOADS |= WAITS
# Few rounds, because each takes minutes and the differences between servers are larger than those between
# rounds.
WAIT_ROUNDS = 3
# In seconds. A new client gives up after this time, which then counts as its wait. It is long enough for every
# server to accept its backlog, and short enough for a server that does not respond at all.
WAIT_TIMEOUT = 10
# The minimum number of waits for a meaningful median. The measurement is extended to reach it, but not beyond
# WAIT_TIMEOUT.
MIN_WAITS = 5
QUICK = ("c64", "metrics", "close", "wait-metrics-100")


class Failed(Exception):
    """Something cannot be built, started or measured; the message says why. Servers that cannot be built are
    skipped."""


@dataclass
class Server:
    """A server of the comparison. {port} in its command is replaced with a free port."""

    key: str
    name: str
    command: list
    size: int  # of everything that must be installed, in bytes
    version: str
    note: str = ""  # what must be installed in addition
    metrics: bool = True
    compiled: bool = True
    log: bool = False  # whether its standard output is read
    directory: Path = ROOT
    samples: dict = field(default_factory=dict)  # measured quantity -> a value for each round
    failures: dict = field(default_factory=dict)  # load -> number of failed requests by kind
    remarks: set = field(default_factory=set)
    process: subprocess.Popen = None
    reader: subprocess.Popen = None
    port: int = 0

    def add(self, what, value):
        self.samples.setdefault(what, []).append(value)


# --- building -----------------------------------------------------------------------------------


def run(command, **options):
    result = subprocess.run(command, capture_output=True, text=True, **options)
    if result.returncode != 0:
        last = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:]
        raise Failed(f"`{' '.join(map(str, command))}` failed: {''.join(last)}")
    return result.stdout.strip()


def need(*tools):
    for tool in tools:
        if not shutil.which(tool):
            raise Failed(f"{tool} is not installed")


def floor():
    need("cc")
    binary = BUILT / "floor"
    run(["cc", "-O2", "-o", binary, BENCH / "floor.c"])
    version = run(["cc", "-dumpfullversion"])
    return Server("floor", "C, epoll, a constant response (the floor)", [binary, "{port}"],
                  binary.stat().st_size, f"cc {version}", metrics=False)


def flood_binary():
    need("cc")
    binary = BUILT / "flood"
    run(["cc", "-O2", "-o", binary, BENCH / "flood.c"])
    return binary


def static_binary():
    """Returns the newest binary that `make static` has built."""
    folders = [ROOT / "target", ROOT / "target-musl", Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))]
    found = {file for folder in folders for file in folder.glob("*-musl/release/tiny-probe")}
    if not found:
        raise Failed("there is no static binary; build it with `make static`")
    return max(found, key=lambda file: file.stat().st_mtime)


def tiny_probe(binary, loop, key=None, name=None):
    if not binary.exists():
        sys.exit(f"bench: {binary} is missing; build it with `make build`, or choose another with --tiny-probe")
    command = [binary, "--server", loop, "--listen", "127.0.0.1:{port}"]
    # Check that the binary knows the flags: it exits with 2 for an unknown one, and with 1 because the port
    # is in use.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run([part if part != command[-1] else f"127.0.0.1:{port}" for part in command],
                                capture_output=True, text=True, timeout=10)
    if result.returncode == 2:
        raise Failed(result.stderr.strip())
    return Server(key or loop, f"tiny-probe, {name or loop}", command, binary.stat().st_size,
                  run([binary, "--version"]))


def rust_peer(name, crate):
    need("cargo")
    workspace = BENCH / "peers"
    run(["cargo", "build", "--release", "--locked", "--quiet", "--package", f"peer-{name}"], cwd=workspace)
    locked = tomllib.loads((workspace / "Cargo.lock").read_text())["package"]
    version = next(package["version"] for package in locked if package["name"] == crate)
    binary = workspace / "target" / "release" / f"peer-{name}"
    title = {"axum": "axum, one tokio thread", "actix": "actix-web, one worker",
             "hyper": "hyper, one tokio thread"}[name]
    return Server(name, title, [binary, "127.0.0.1:{port}"], binary.stat().st_size, f"{crate} {version}")


def go():
    need("go")
    sources = Path("/usr/share/gocode/src/github.com/prometheus/client_golang")
    if not sources.exists():
        raise Failed("Debian's golang-github-prometheus-client-golang-dev is not installed")
    binary = BUILT / "peer-go"
    # Debian installs the library's sources under /usr/share/gocode, which requires the mode without modules.
    environment = os.environ | {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": ""}
    run(["go", "build", "-ldflags=-s -w", "-o", binary, BENCH / "go" / "main.go"], env=environment)
    library = run(["dpkg-query", "-W", "-f", "${Version}", "golang-github-prometheus-client-golang-dev"])
    return Server("go", "Go net/http, client_golang", [binary, "127.0.0.1:{port}"], binary.stat().st_size,
                  f"{run(['go', 'version']).split()[2]}, client_golang {library}")


def flask(key, name, *command):
    requirements, installed = BENCH / "flask" / "requirements.txt", BUILT / "venv" / "installed"
    python = BUILT / "venv" / "bin" / "python"
    if not installed.exists() or installed.read_text() != requirements.read_text():
        run([sys.executable, "-m", "venv", "--clear", BUILT / "venv"])
        run([python, "-m", "pip", "install", "--quiet", "--requirement", requirements])
        shutil.copy(requirements, installed)
    packages = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]))
    size = sum(file.stat().st_size for package in packages.iterdir()
               if not re.match("pip|setuptools|_distutils|distutils|pkg_resources|__pycache__", package.name)
               for file in [package, *package.rglob("*")] if file.is_file())
    frozen = dict(line.split("==") for line in run([python, "-m", "pip", "freeze"]).splitlines() if "==" in line)
    names = ["Flask", "gunicorn" if key == "gunicorn" else "Werkzeug", "prometheus_client"]
    version = ", ".join([run([python, "--version"]), *(f"{name} {frozen[name]}" for name in names)])
    return Server(key, name, [python, "-m", *command], size, version, note="and Python",
                  compiled=False, directory=BENCH / "flask")


def build(arguments):
    """Builds the servers. Returns them, and the reasons why others are skipped."""
    wanted = {
        "event-loop": lambda: tiny_probe(arguments.tiny_probe, "event-loop"),
        "static": lambda: tiny_probe(static_binary(), "event-loop", "static", "event-loop, static"),
        "tiny-http": lambda: tiny_probe(arguments.tiny_probe, "tiny-http"),
        "hyper": lambda: rust_peer("hyper", "hyper"),
        "axum": lambda: rust_peer("axum", "axum"),
        "actix": lambda: rust_peer("actix", "actix-web"),
        "go": go,
        "gunicorn": lambda: flask("gunicorn", "Flask on gunicorn, one worker",
                                  "gunicorn", "--workers", "1", "--bind", "127.0.0.1:{port}", "app:app"),
        "flask": lambda: flask("flask", "Flask's own server",
                               "flask", "--app", "app", "run", "--port", "{port}"),
        "floor": floor,
    }
    keys = arguments.servers.split(",") if arguments.servers else list(wanted)
    if unknown := [key for key in keys if key not in wanted]:
        sys.exit(f"bench: unknown server {', '.join(unknown)}; choose from {', '.join(wanted)}")
    BUILT.mkdir(parents=True, exist_ok=True)
    servers, skipped = [], {}
    for key in keys:
        progress(f"building {key}")
        try:
            servers.append(wanted[key]())
        except Failed as failure:
            skipped[key] = str(failure)
            progress(f"{key} is skipped: {failure}", stays=True)
    return servers, skipped


# --- a running server ---------------------------------------------------------------------------


def start(server):
    """Starts a server and waits for its first response with status 200. Returns the seconds that this took."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        server.port = free.getsockname()[1]
    command = [str(part).replace("{port}", str(server.port)) for part in server.command]
    stdout = subprocess.DEVNULL
    if server.log:
        server.reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        stdout = server.reader.stdin
    began = time.perf_counter()
    server.process = subprocess.Popen(command, cwd=server.directory, stdin=subprocess.DEVNULL,
                                      stdout=stdout, stderr=subprocess.DEVNULL)
    if server.log:
        stdout.close()
    while not is_serving(server.port):
        if server.process.poll() is not None or time.perf_counter() - began > 20:
            raise Failed(f"{server.name} did not start within 20 s: {' '.join(command)}")
        time.sleep(0.0005)
    return time.perf_counter() - began


def is_serving(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            return get_probe(connection)[0].startswith((b"HTTP/1.1 200 ", b"HTTP/1.0 200 "))
    except OSError:
        return False


def get_probe(connection):
    """Requests /probe. Returns the response and whether the connection stays open."""
    connection.sendall(b"GET /probe HTTP/1.1\r\nHost: localhost\r\n\r\n")
    response = b""
    while not response.endswith(b"I'm ok!"):
        received = connection.recv(4096)
        if not received:
            break
        response += received
    stays = response.startswith(b"HTTP/1.1") and b"connection: close" not in response.lower()
    return response, stays


def stop(server):
    server.process.terminate()
    try:
        server.process.wait(10)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
    if server.log:
        server.reader.wait()


def processes(server):
    """Returns the IDs of the server's process and its children."""
    found = [server.process.pid]
    for pid in found:
        try:
            found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except FileNotFoundError:
            pass  # the process has ended
    return found


def cpu_seconds(server):
    """Returns the user and system time so far. The clock is that of clock_getcpuclockid(3), with a resolution
    of nanoseconds; /proc/PID/stat has only steps of 10 ms."""
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in processes(server))


def from_status(server, name):
    total = 0
    for pid in processes(server):
        try:
            total += int(re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1])
        except (FileNotFoundError, ProcessLookupError, TypeError):
            pass  # the process has ended
    return total


def resident_bytes(server):
    return from_status(server, "VmRSS") * 1024


def settle(server):
    """Waits until a server is idle after a load, for 10 s at most."""
    deadline = time.monotonic() + 10
    before = cpu_seconds(server)
    while time.monotonic() < deadline:
        time.sleep(0.05)
        now = cpu_seconds(server)
        if now - before < 0.0025:
            return
        before = now


@contextmanager
def watch(server):
    """Records the server's peak memory and number of threads, sampled 20 times a second."""
    peak = {"resident": 0, "threads": 0}
    done = threading.Event()

    def sample():
        while not done.wait(0.05):
            peak["resident"] = max(peak["resident"], resident_bytes(server))
            peak["threads"] = max(peak["threads"], from_status(server, "Threads"))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


# --- measuring ----------------------------------------------------------------------------------


def load(server, key, seconds):
    """Runs one load against one server and stores the results. Returns the requests per second."""
    if key in WAITS:
        return wait_beside_flood(server, key, seconds)
    heading, path, connections, factor, options = LOADS[key]
    if key in AT_A_FIXED_RATE:
        return fixed_rate(server, key, connections, seconds * factor)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds * factor}s", "-s", str(LUA), *options,
               f"http://127.0.0.1:{server.port}{path}"]
    cores = os.sched_getaffinity(0)
    if key == "pinned":
        # On one core, neither process waits for the other. On two cores they sometimes do, and the cost of
        # waking up is then counted for the one that waited.
        cores = {min(cores)}
        command = ["taskset", "--cpu-list", str(min(cores)), *command]
    stay_on(server, cores)
    cpu = cpu_seconds(server)
    with watch(server) as peak:
        output = run(command)
        cpu = cpu_seconds(server) - cpu
    result = json.loads(output.splitlines()[-1])
    requests = result["requests"]
    server.add(f"{key} rate", requests / result["seconds"])
    if requests:
        server.add(f"{key} p99", result["p99"])
        server.add(f"{key} p99.9", result["p99.9"])
        server.add(f"{key} cpu", cpu / requests)
    failed = server.failures.setdefault(key, {})
    for kind, count in result["failed"].items():
        if count:
            failed[kind] = failed.get(kind, 0) + count
    if key == "c64":
        server.add("resident 64", peak["resident"])
        server.add("threads", peak["threads"])
    settle(server)
    return requests / result["seconds"]


def stay_on(server, cores):
    for pid in processes(server):
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)


def fixed_rate(server, key, connections, seconds):
    """Sends requests at a fixed rate, whether or not the responses arrive. A latency counts from the time when
    the request was due, so a stall delays all requests that were due during it."""
    command = ["oha", "-q", str(RATE), "-z", f"{seconds}s", "-c", str(connections), "--latency-correction", "--no-tui",
               "--output-format", "json", f"http://127.0.0.1:{server.port}/probe"]
    with scraped_beside_idle(server) if key == "busy" else nullcontext():
        result = json.loads(run(command))
    if result["summary"]["successRate"] < 1:
        failed = server.failures.setdefault(key, {})
        for kind, count in result["errorDistribution"].items():
            failed[kind] = failed.get(kind, 0) + count
    for what in ("p50", "p99", "p99.9"):
        server.add(f"{key} {what}", result["latencyPercentiles"][what])
    server.add(f"{key} slowest", result["summary"]["slowest"])
    settle(server)
    return result["summary"]["requestsPerSec"]


@contextmanager
def scraped_beside_idle(server):
    """Keeps idle connections open and scrapes ten times a second."""
    connections = []
    done = threading.Event()

    def scrape():
        scraper = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        while not done.wait(SCRAPE_PAUSE):
            try:
                scraper.request("GET", "/metrics")
                scraper.getresponse().read()
            except (OSError, http.client.HTTPException) as error:
                server.remarks.add(f"a scrape failed: {error!r}")
                scraper.close()
        scraper.close()

    thread = threading.Thread(target=scrape)
    try:
        for _ in range(IDLE_CONNECTIONS):
            connections.append(socket.create_connection(("127.0.0.1", server.port), timeout=2))
        thread.start()
        yield
    finally:
        done.set()
        if thread.ident:
            thread.join()
        for connection in connections:
            connection.close()


@contextmanager
def flood(server, request, clients, max_seconds):
    """Runs clients that pipeline one request until the block ends, for at most `max_seconds`. Yields a dictionary.
    After the block it contains the responses per second and the number of closed connections."""
    process = subprocess.Popen([BUILT / "flood", str(server.port), str(clients), str(max_seconds), *request.split()],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    result = {}
    try:
        # This read cannot block for long: the program has a time limit, and its output is closed when it ends.
        if process.stdout.readline() != "ready\n":
            raise Failed(f"{clients} clients cannot connect to {server.name}: {process.stderr.read().strip()}")
        yield result
        output, _ = process.communicate(timeout=10)  # closes standard input, which ends the flood
        responses, duration, closed = output.split()
        result |= {"rate": int(responses) / float(duration), "closed": int(closed)}
    except subprocess.TimeoutExpired:
        raise Failed(f"{BUILT / 'flood'} did not stop within 10 s of the end of its input") from None
    finally:
        process.kill()
        process.wait()


def wait_of_new_client(server):
    """Connects and requests /healthz. Returns the seconds until the response begins, or None if there is none."""
    began = time.perf_counter()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_TIMEOUT) as connection:
            connection.settimeout(max(0.001, began + WAIT_TIMEOUT - time.perf_counter()))
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            # The other servers have no /healthz. Their 404 takes just as long.
            if connection.recv(4096).startswith(b"HTTP/1.1 "):
                return time.perf_counter() - began
    except OSError:
        pass
    return None


def status_of(server, request):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_TIMEOUT)
    try:
        connection.request(*request.split())
        return connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        connection.close()


def wait_beside_flood(server, key, seconds):
    """Measures how long new clients, one after the other, wait while others pipeline. Returns the responses per
    second that the others received."""
    _, request, clients, _, _ = WAITS[key]
    waits, failed = [], 0
    if (status := status_of(server, request)) != 200:
        server.remarks.add(f"does not support {request} (status {status}), so its waits were not measured")
        return 0
    try:
        with flood(server, request, clients, seconds + 3 * WAIT_TIMEOUT) as result:
            began, cpu = time.monotonic(), cpu_seconds(server)
            while ((elapsed := time.monotonic() - began) < seconds
                   or len(waits) < MIN_WAITS and elapsed < WAIT_TIMEOUT):
                wait = wait_of_new_client(server)
                waits.append(WAIT_TIMEOUT if wait is None else wait)
                failed += wait is None
                # A random pause, so that clients do not always arrive at the same point of the server's loop.
                time.sleep(random.uniform(0, 0.005))
            cpu, elapsed = cpu_seconds(server) - cpu, time.monotonic() - began
    except Failed as failure:
        server.remarks.add(str(failure))
        return 0
    finally:
        if server.process.poll() is not None:
            server.remarks.add(f"the process ended during the load “{LOADS[key][0]}”")
        # Some servers keep processing received requests for many seconds, which would disturb the next server.
        server.process.kill()
        server.process.wait()
    server.add(f"{key} median", statistics.median(waits))
    server.add(f"{key} worst", max(waits))
    server.add(f"{key} rate", result["rate"])
    server.add(f"{key} busy", cpu / elapsed)
    failures = server.failures.setdefault(key, {})
    for kind, number in [(f"no response within {WAIT_TIMEOUT} s", failed),
                         ("pipelining connections closed by the server", result["closed"])]:
        if number:
            failures[kind] = failures.get(kind, 0) + number
    return result["rate"]


def idle(server):
    """Opens connections that send one request and then stay idle, and stores the server's memory."""
    connections = []
    try:
        for _ in range(IDLE_CONNECTIONS):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=2)
            connections.append(connection)
            _, stays = get_probe(connection)
            if not stays:
                server.remarks.add("closes the connection after each response, so it has no idle connections")
                return
        server.add("resident idle connections", resident_bytes(server))
    except OSError as error:
        server.remarks.add(f"of {IDLE_CONNECTIONS} connections opened one after the other, "
                           f"{len(connections) - 1} got a response; then: {error}")
    finally:
        for connection in connections:
            connection.close()
        settle(server)


def measure(servers, loads, rounds, seconds):
    """Runs all rounds. The load with new connections comes after the rounds with kept-alive ones, because it
    leaves tens of thousands of sockets in TIME_WAIT for a minute. Pipelined requests come last, because some
    servers keep hundreds of megabytes afterward."""
    staying = [key for key in loads if key != "close" and key not in WAITS]
    for number in range(rounds if staying else 0):
        take_turns(servers, staying, f"round {number + 1} of {rounds}", number, seconds, idle)
    for number in range(rounds if "close" in loads else 0):
        take_turns(servers, ["close"], f"new connections, round {number + 1} of {rounds}", number, seconds)
    waits = [key for key in loads if key in WAITS]
    pipelining = [server for server in servers if can_pipeline(server)]
    for number in range(min(rounds, WAIT_ROUNDS) if waits and pipelining else 0):
        take_turns(pipelining, waits, f"waits, round {number + 1} of {min(rounds, WAIT_ROUNDS)}", number, seconds)


def can_pipeline(server):
    """Returns whether pipelining can be measured. Flask's servers close each connection after one response. The
    floor sends one response per read, however many requests the read contains."""
    return server.compiled and server.key != "floor"


def measure_log(servers, rounds, seconds):
    """Measures the cost of the access log for the event loop while the log is being read. Returns the server
    without and with the log."""
    event_loop = next((server for server in servers if server.key == "event-loop"), None)
    if not event_loop:
        return []
    off = replace(event_loop, key="log-off", samples={})
    on = replace(event_loop, key="log-on", samples={}, name=f"{event_loop.name}, access log on", log=True,
                 command=[*event_loop.command, "--access-log"])
    for number in range(rounds):
        take_turns([off, on], ["c64"], f"access log, round {number + 1} of {rounds}", number, seconds)
    return [off, on]


def take_turns(servers, loads, title, first, seconds, at_the_end=None):
    """Starts all servers, and runs each load against one server after the other. In this way, a disturbance of the
    machine affects all servers alike."""
    # Another server is first in each round.
    first %= len(servers)
    servers = servers[first:] + servers[:first]
    try:
        for server in servers:
            progress(f"{title}: starting {server.name}")
            server.add("start", start(server))
            settle(server)
            server.add("resident", resident_bytes(server))
        for key in loads:
            for server in servers:
                if (key == "metrics" and not server.metrics
                        or key in (*AT_A_FIXED_RATE, "pinned") and not server.compiled):
                    continue
                if server.process.poll() is not None:
                    if key not in WAITS:  # the benchmark kills the server after each of these
                        server.remarks.add(f"the process ended before the load “{LOADS[key][0]}”")
                    start(server)
                rate = load(server, key, seconds)
                progress(f"{title}: {LOADS[key][0]}: {server.name}: {rate:.0f}/s")
        if at_the_end:
            for server in servers:
                progress(f"{title}: {IDLE_CONNECTIONS} idle connections: {server.name}")
                at_the_end(server)
    finally:
        for server in servers:
            if server.process:
                stop(server)
                server.process = None


def progress(line, stays=False):
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{line}" + ("\n" if stays else ""))
    else:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()


# --- results ------------------------------------------------------------------------------------


def count(value):
    """Formats 23456 as 23.5 k."""
    if value < 1000:
        return f"{value:.0f}"
    return f"{value / 1000:.1f} k" if value < 99_950 else f"{value / 1000:.0f} k"


def milliseconds(value):
    value *= 1000
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def microseconds(value):
    value *= 1e6
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def megabytes(value):
    return f"{value / 1e6:.2f}" if value < 10e6 else f"{value / 1e6:.1f}"


def whole(value):
    return f"{value:.0f}"


def cell(server, what, form):
    """Formats the median, followed by the minimum and the maximum in parentheses."""
    values = server.samples.get(what)
    if not values:
        return "–"
    median, minimum, maximum = (form(f(values)) for f in (statistics.median, min, max))
    return median if minimum == maximum else f"{median} ({minimum}–{maximum})"


def median(server, what):
    values = server.samples.get(what)
    return statistics.median(values) if values else None


def table(servers, columns):
    lines = ["| | " + " | ".join(heading for heading, _, _ in columns) + " |",
             "| --- |" + " ---: |" * len(columns)]
    for server in servers:
        cells = [cell(server, what, form) for _, what, form in columns]
        lines.append(f"| {server.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine():
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.M)
    return f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"


def goals(servers):
    """Compares the results with the goals of the project."""
    by_key = {server.key: server for server in servers}
    lines = []
    for text, ours, theirs, what, bound in [
        ("CPU time per `GET /probe` on 64 keep-alive connections, event-loop divided by the floor",
         "event-loop", "floor", "c64 cpu", 1.25),
        ("The same, event-loop divided by axum on one tokio thread", "event-loop", "axum", "c64 cpu", 0.8),
        ("CPU time per `GET /metrics`, event-loop divided by axum with the library's encoder and collector",
         "event-loop", "axum", "metrics cpu", 0.35),
        ("The same, event-loop divided by Go's promhttp", "event-loop", "go", "metrics cpu", 0.1),
        ("The same, the static binary divided by the one with glibc", "static", "event-loop", "metrics cpu", 1.2),
        ("CPU time per `GET /probe`, event-loop with its access log on and read by `cat`, divided by the same with "
         "the log off", "log-on", "log-off", "c64 cpu", 1.25),
    ]:
        if ours in by_key and theirs in by_key:
            # Compare round by round, because within a round both ran within seconds of each other.
            ratios = [a / b for a, b in zip(by_key[ours].samples.get(what, []), by_key[theirs].samples.get(what, []))]
            if ratios:
                lines.append(f"- {text}: **{statistics.median(ratios):.2f}** "
                             f"({min(ratios):.2f}–{max(ratios):.2f}); the goal is at most {bound}.")
    lines += [*above_the_floor(by_key), *tail_latency(by_key), *longest_wait(by_key)]
    return "\n".join(lines)


def above_the_floor(by_key):
    """The cost of parsing, routing and recording, as a fraction of what they cost with axum."""
    samples = [by_key[key].samples.get("pinned cpu") for key in ("event-loop", "axum", "floor") if key in by_key]
    if len(samples) == 3 and all(samples):
        shares = [(ours - floor) / (axum - floor) for ours, axum, floor in zip(*samples)]
        yield ("- CPU time per `GET /probe` on one core with wrk, above the floor, event-loop divided by axum: "
               f"**{statistics.median(shares):.2f}** ({min(shares):.2f}–{max(shares):.2f}); the goal is at most 0.4.")


def tail_latency(by_key):
    """Compares with the best of the other servers. Uses the medians of all rounds, because single rounds vary a
    lot."""
    for key, condition in [("quiet", ""), ("busy", " with scrapes and idle connections")]:
        tails = {name: median(server, f"{key} p99.9") for name, server in by_key.items() if name not in
                 ("floor", "static", "tiny-http")}
        tails = {name: tail for name, tail in tails.items() if tail}
        ours = tails.pop("event-loop", None)
        if ours and tails:
            best = min(tails, key=tails.get)
            yield (f"- p99.9 at {RATE} requests per second{condition}, event-loop divided by the best of the others, "
                   f"{best}: **{ours / tails[best]:.2f}**; the goal is at most 1.")


def longest_wait(by_key):
    """The longest median and the longest wait of all floods."""
    if "event-loop" in by_key:
        samples = by_key["event-loop"].samples
        for what, bound in [("median", 5), ("worst", 50)]:
            measured = {key: samples[f"{key} {what}"] for key in WAITS if f"{key} {what}" in samples}
            if measured:
                key = max(measured, key=lambda key: max(measured[key]))
                yield (f"- The wait of {LOADS[key][0]} (the longest of {len(measured)} floods), {what}: "
                       f"**{milliseconds(max(measured[key]))} ms**; the goal is at most {bound} ms.")


def report(servers, logs, skipped, rounds, seconds):
    keep_alive = [f"{heading} connection{'s' * (heading != '1')}" for heading, *_ in KEEP_ALIVE.values()]
    keys = [*KEEP_ALIVE, "close"]
    headings = [*keep_alive, "a new connection each"]
    compiled = [server for server in servers if server.compiled]
    longest = max(factor for _, _, _, factor, _ in LOADS.values())
    parts = [
        "# Benchmark results",
        f"Measured by `make bench` on {time.strftime('%Y-%m-%d', time.gmtime())}, on {machine()}. The load comes "
        f"from {run_version('wrk')} with one thread on the same machine. "
        f"Each value is the median of {rounds} round{'s' * (rounds > 1)}, followed by the minimum and the maximum "
        f"in parentheses. In each round, each load runs for {seconds} s ({seconds * longest} s with 1000 "
        "connections) against one server after the other. wrk sends a request only when it has received the "
        "response to the previous one, so a server that stalls gets fewer requests. Compare p99 only between "
        "servers with similar rates.",
        "## Requests per second, GET /probe",
        table(servers, [(heading, f"{key} rate", count) for heading, key in zip(headings, keys)]),
        "## 99th percentile of latency in milliseconds, GET /probe",
        table(servers, [(heading, f"{key} p99", milliseconds) for heading, key in zip(headings, keys)]),
        f"## Latency at {RATE} requests per second in milliseconds, GET /probe",
        f"Measured with {run_version('oha', '--version')} on 64 connections. Requests are due at fixed times, "
        "whether or not earlier ones have their responses, and a latency counts from the time when the request "
        "was due.",
        table(compiled, [(name, f"quiet {what}", milliseconds) for name, what in PERCENTILES]),
        f"The same with a scrape every {SCRAPE_PAUSE * 1000:.0f} ms and {IDLE_CONNECTIONS} idle connections:",
        table(compiled, [(name, f"busy {what}", milliseconds) for name, what in PERCENTILES]),
        "## CPU time (user and system) per request in microseconds",
        table(servers, [("64 connections", "c64 cpu", microseconds),
                        ("on one core with wrk", "pinned cpu", microseconds),
                        ("a new connection each", "close cpu", microseconds),
                        ("GET /metrics, 16 connections", "metrics cpu", microseconds),
                        ("GET /metrics per second", "metrics rate", count)]),
    ]
    if any(f"{key} median" in server.samples for server in servers for key in WAITS):
        parts += waits_report([server for server in servers if can_pipeline(server)],
                              min(rounds, WAIT_ROUNDS), seconds)
    if text := goals([*servers, *logs]):
        parts.append(text)
    footprint = [("resident MB after start", "resident", megabytes),
                 ("under 64 connections", "resident 64", megabytes),
                 (f"{IDLE_CONNECTIONS} idle connections, after the loads", "resident idle connections", megabytes),
                 ("threads", "threads", whole),
                 ("MB to install", "size", megabytes),
                 ("ms to the first 200", "start", milliseconds)]
    for server in servers:
        server.samples["size"] = [server.size]
    rows = table(servers, footprint)
    for server in servers:
        if server.note:
            rows = re.sub(rf"(?m)^(\| {re.escape(server.name)} \|(?:[^|]*\|){{4}} [^|]*?) \|", rf"\1 {server.note} |", rows)
    parts += ["## Memory, threads, size, start", rows]
    notes = [f"- {server.name}: {remark}." for server in servers for remark in sorted(server.remarks)]
    notes += [f"- {server.name}, {LOADS[key][0]}: " + ", ".join(f"{n} × {kind}" for kind, n in failed.items()) + "."
              for server in servers for key, failed in server.failures.items() if failed]
    notes += [f"- {server.name}, {heading}: it used only {busy:.0%} of a CPU. Either the clients did not keep it busy "
              "or another process was running."
              for server in servers for key, (heading, *_) in WAITS.items()
              if (busy := median(server, f"{key} busy")) is not None and busy < 0.8]
    notes += [f"- {key} was skipped: {reason}." for key, reason in skipped.items()]
    if notes:
        parts += ["## Remarks, failures and skipped measurements", "\n".join(notes)]
    parts += ["## Versions", "\n".join(f"- {server.name}: {server.version}" for server in servers)]
    return "\n\n".join(parts) + "\n"


def waits_report(servers, rounds, seconds):
    parts = [
        "## Wait of a new client in milliseconds, while others pipeline requests without end",
        "A wait lasts from the start of connecting until the response to GET /healthz begins (servers other than "
        "tiny-probe respond with 404). The others send the named request in blocks of several hundred and read every "
        f"response (bench/flood.c). New clients arrive one after the other for {seconds} s, and for longer if there "
        f"were fewer than {MIN_WAITS}. Each value is the median of {rounds} round{'s' * (rounds > 1)}, followed by the minimum and the "
        f"maximum in parentheses. A client gives up after {WAIT_TIMEOUT} s, which counts as its wait. The column "
        "“responses/s” is what the others received.",
    ]
    for kind, request in FLOOD_REQUESTS.items():
        columns = [(f"{clients} client{'s' * (clients > 1)}: {heading}", f"wait-{kind}-{clients} {what}", form)
                   for clients in FLOOD_CLIENTS
                   for heading, what, form in [("median", "median", milliseconds), ("worst", "worst", milliseconds),
                                               ("responses/s", "rate", count)]]
        columns = [column for column in columns if any(column[1] in server.samples for server in servers)]
        if columns:
            parts += [f"Others pipeline {request}:", table(servers, columns)]
    return parts


def readme_table(servers):
    """The table in the README, with medians only."""
    columns = [("CPU µs per request", "c64 cpu", microseconds), ("CPU µs per scrape", "metrics cpu", microseconds),
               ("requests/s", "c64 rate", count), ("p99.9 ms at 5000/s", "quiet p99.9", milliseconds),
               ("ms until a new client is served while 1000 others pipeline scrapes: median",
                "wait-metrics-1000 median", milliseconds),
               ("worst", "wait-metrics-1000 worst", milliseconds),
               ("MB under load", "resident 64", megabytes), ("MB, 1000 idle", "resident idle connections", megabytes),
               ("MB to install", "size", megabytes)]
    lines = ["| | " + " | ".join(heading for heading, _, _ in columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for server in servers:
        values = [(median(server, what), form) for _, what, form in columns]
        cells = ["–" if value is None else form(value) for value, form in values]
        lines.append(f"| {server.name} | " + " | ".join(cells) + (f" {server.note}" if server.note else "") + " |")
    return "\n".join(lines) + "\n"


def run_version(tool, option="-v"):
    if not shutil.which(tool):
        return f"{tool} (not installed)"
    result = subprocess.run([tool, option], capture_output=True, text=True)
    return " ".join((result.stdout + result.stderr).split()[:2])


def svg(servers):
    """Draws three bar charts, one above the other, so that they are legible on a phone. The gray is legible on
    light and dark backgrounds; the image has no background of its own."""
    charts = [("CPU µs per request", "GET /probe, 64 keep-alive connections", "c64 cpu", microseconds),
              ("CPU µs per scrape", "GET /metrics", "metrics cpu", microseconds),
              ("resident MB", f"with {IDLE_CONNECTIONS} idle connections", "resident idle connections", megabytes)]
    left, bar, right, row, head = 150, 210, 60, 20, 46
    width, y = left + bar + right, 0
    text = []
    for heading, remark, what, form in charts:
        values = [(server, median(server, what)) for server in servers]
        values = [(server, value) for server, value in values if value]
        if not values:
            continue
        text.append(f'<text x="0" y="{y + 18}" font-weight="600">{heading}</text>')
        text.append(f'<text x="0" y="{y + 36}" font-size="12">{remark}; less is better</text>')
        y += head
        # A bar that is far longer than most others is cut, so that differences between the rest are visible.
        full = 3 * statistics.median(value for _, value in values)
        for server, value in values:
            text += bar_of(server, value / full, form(value), left, y, bar, row)
            y += row
        y += 16
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}" '
        'font-family="system-ui, sans-serif" font-size="14" fill="#76808a" role="img">',
        "<title>tiny-probe and other servers: CPU time per request and per scrape, memory</title>", *text, "</svg>", ""])


def bar_of(server, share, label, left, y, bar, row):
    is_ours = server.key in ("event-loop", "static", "tiny-http")
    name = {"event-loop": "tiny-probe", "static": "the static binary", "tiny-http": "--server tiny-http",
            "floor": "C, the floor"}.get(server.key, server.name.split(",")[0])
    weight = ' font-weight="600"' if is_ours else ""
    yield f'<text x="{left - 8}" y="{y + row - 5}" text-anchor="end" font-size="12"{weight}>{name}</text>'
    color = "#f0a070" if server.key == "tiny-http" else "#e8590c" if is_ours else "#76808a"
    opacity = ' fill-opacity="0.45"' if server.key == "floor" else ""
    length = max(1.5, bar * min(1, share))
    end = length - 22 if share > 1 else length
    yield f'<rect x="{left}" y="{y + 4}" width="{end:.1f}" height="{row - 8}" rx="2" fill="{color}"{opacity}/>'
    if share > 1:  # two separate pieces at the end of the bar show the cut
        for start in (length - 17, length - 6):
            yield f'<rect x="{left + start:.1f}" y="{y + 4}" width="6" height="{row - 8}" fill="{color}"/>'
    yield f'<text x="{left + length + 6:.1f}" y="{y + row - 5}" font-size="12">{label}</text>'


def main():
    parser = argparse.ArgumentParser(description="Compares the speed and memory of tiny-probe with other servers.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=1, help="duration of each load in each round")
    parser.add_argument("--servers", metavar="A,B", help="measure only these servers")
    parser.add_argument("--loads", metavar="A,B",
                        help=f"run only these of {', '.join(LOADS)}; `wait` means all that start with it")
    parser.add_argument("--quick", action="store_true", help="run one round of the main loads")
    parser.add_argument("--tiny-probe", type=Path, metavar="BINARY",
                        default=ROOT / "target" / "release" / "tiny-probe")
    arguments = parser.parse_args()
    arguments.tiny_probe = arguments.tiny_probe.resolve()
    is_full = len(sys.argv) == 1
    if arguments.quick:
        arguments.rounds = 1
    loads = arguments.loads.split(",") if arguments.loads else QUICK if arguments.quick else LOADS
    loads = [load for name in loads for load in (WAITS if name == "wait" else [name])]
    if unknown := [load for load in loads if load not in LOADS]:
        sys.exit(f"bench: unknown load {', '.join(unknown)}; choose from wait, {', '.join(LOADS)}")
    if any(load not in WAITS and load not in AT_A_FIXED_RATE for load in loads) and not shutil.which("wrk"):
        sys.exit("bench: wrk is not installed; on Debian: apt-get install wrk")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        sys.exit(f"bench: needs 4096 descriptors, and the limit is {hard}; raise it with ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    servers, skipped = build(arguments)
    if not shutil.which("oha"):
        skipped["the load at a fixed rate"] = "oha is not installed; install it with `cargo install --locked oha`"
        loads = [load for load in loads if load not in AT_A_FIXED_RATE]
    try:
        flood_binary()
    except Failed as failure:
        skipped["the wait of a new client"] = str(failure)
        loads = [load for load in loads if load not in WAITS]
    began = time.monotonic()
    measure(servers, loads, arguments.rounds, arguments.seconds)
    logs = measure_log(servers, arguments.rounds, arguments.seconds) if "c64" in loads else []
    progress(f"measured in {time.monotonic() - began:.0f} s", stays=True)

    text = report(servers, logs, skipped, arguments.rounds, arguments.seconds)
    results, picture = ((BENCH / "results.md", ROOT / "docs" / "bench.svg") if is_full
                        else (BUILT / "results.md", BUILT / "bench.svg"))
    picture.parent.mkdir(exist_ok=True)
    results.write_text(text)
    picture.write_text(svg(servers))
    (BUILT / "readme-table.md").write_text(readme_table(servers))
    print(text)
    progress(f"written: {results.relative_to(ROOT)}, {picture.relative_to(ROOT)} and, for the README, "
             f"{(BUILT / 'readme-table.md').relative_to(ROOT)}", stays=True)


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(f"bench: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
