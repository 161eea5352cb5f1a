#!/usr/bin/env python3
"""Measures tiny-probe against what its user would otherwise have, all in one run and taking turns.

    make bench                    builds everything, measures for about half an hour, and writes
                                  bench/results.md and docs/bench.svg
    bench/run.py --quick          one short round, to check that it works; this and every other
                                  run with an option write into target/bench instead
    bench/run.py --servers floor,event-loop --rounds 3
    bench/run.py --servers event-loop,static,axum,go --loads metrics
    bench/run.py --loads wait     only the wait of a new client while others pipeline requests

Needs wrk and a built tiny-probe, cc for the clients that pipeline, and oha for the load at a fixed rate.
Servers and loads whose tools are not installed are left out, and the results name them. The load comes from
this machine: run it where there is a second core and nothing else runs.
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
# Requests per second at a fixed rate: below what the slowest of the compiled servers holds on any machine
# that this is run on, and its load generator, too.
RATE = 5000
SCRAPE_PAUSE = 0.1

# What stands in the tables: the key, the heading, the path, the connections, and how many times
# as long it runs (opening a thousand connections takes part of the time).
KEEP_ALIVE = {f"c{n}": (f"{n}", "/probe", n, factor, []) for n, factor in
              [(1, 1), (16, 1), (64, 1), (1000, 2)]}
LOADS = KEEP_ALIVE | {
    "pinned": ("64 connections, one core", "/probe", 64, 1, []),
    "quiet": (f"{RATE} requests per second", "/probe", 64, 2, []),
    "busy": ("the same beside scrapes and idle connections", "/probe", 64, 2, []),
    "metrics": ("/metrics", "/metrics", 16, 1, []),
    "close": ("new connection each", "/probe", 16, 1, ["-H", "Connection: close"]),
}
AT_A_FIXED_RATE = ("quiet", "busy")
PERCENTILES = [("median", "p50"), ("p99", "p99"), ("p99.9", "p99.9"), ("slowest", "slowest")]
# How long a new client waits while others pipeline one request without end. Each kind takes the servers'
# time in another way: many cheap requests, long responses, and costly requests with short responses.
FLOOD_REQUESTS = {"probe": "GET /probe", "metrics": "GET /metrics", "head": "HEAD /metrics"}
FLOOD_CLIENTS = (1, 100, 1000, 3000)
WAITS = {f"wait-{kind}-{clients}": (f"a new client beside {clients} that pipeline {request}", request, clients, 1, [])
         for kind, request in FLOOD_REQUESTS.items() for clients in FLOOD_CLIENTS}
LOADS |= WAITS
# The differences between servers are larger than those between rounds, and a round takes minutes.
WAIT_ROUNDS = 3
# A new client gives up after this time, and its wait counts as this long. The servers' backlogs are
# accepted within it, and a measurement of a server that responds to nobody still ends soon.
WAIT_TIMEOUT = 10
# Fewer waits than this say nothing about the median; the measurement is extended until there are as many,
# but for no longer than WAIT_TIMEOUT.
LEAST_WAITS = 5
QUICK = ("c64", "metrics", "close", "wait-metrics-100")


class Failed(Exception):
    """What cannot be built, started or measured here, and why. A server that cannot be built is left out."""


@dataclass
class Server:
    """One server of the comparison; {port} in its command becomes a free one."""

    key: str
    name: str
    command: list
    size: int  # bytes to install
    version: str
    note: str = ""  # what else must be installed
    metrics: bool = True
    compiled: bool = True
    log: bool = False  # its standard output is read
    directory: Path = ROOT
    samples: dict = field(default_factory=dict)  # what was measured -> a value for each round
    failures: dict = field(default_factory=dict)  # load -> failed requests by kind
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
    return Server("floor", "C, epoll, a constant answer (the floor)", [binary, "{port}"],
                  binary.stat().st_size, f"cc {version}", metrics=False)


def flood_binary():
    need("cc")
    binary = BUILT / "flood"
    run(["cc", "-O2", "-o", binary, BENCH / "flood.c"])
    return binary


def static_binary():
    """The newest that `make static` has built."""
    folders = [ROOT / "target", ROOT / "target-musl", Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))]
    found = {file for folder in folders for file in folder.glob("*-musl/release/tiny-probe")}
    if not found:
        raise Failed("there is no static binary; make it with `make static`")
    return max(found, key=lambda file: file.stat().st_mtime)


def tiny_probe(binary, loop, key=None, name=None):
    if not binary.exists():
        sys.exit(f"bench: {binary} is missing; make it with `make build`, or name one with --tiny-probe")
    command = [binary, "--server", loop, "--listen", "127.0.0.1:{port}"]
    # A wrong flag is exit code 2, before anything is bound; an address in use is 1.
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
    # Debian has the library as sources under /usr/share/gocode, which wants the mode before modules.
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
    """Builds the servers. Gives them, and why others are left out."""
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
        sys.exit(f"bench: no server is called {', '.join(unknown)}; there are {', '.join(wanted)}")
    BUILT.mkdir(parents=True, exist_ok=True)
    servers, left_out = [], {}
    for key in keys:
        progress(f"building {key}")
        try:
            servers.append(wanted[key]())
        except Failed as why:
            left_out[key] = str(why)
            progress(f"{key} is left out: {why}", stays=True)
    return servers, left_out


# --- a running server ---------------------------------------------------------------------------


def start(server):
    """Starts a server and waits for its first 200. Gives the seconds that this took."""
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
    while not answers(server.port):
        if server.process.poll() is not None or time.perf_counter() - began > 20:
            raise Failed(f"{server.name} does not come up: {' '.join(command)}")
        time.sleep(0.0005)
    return time.perf_counter() - began


def answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            return ask(connection)[0].startswith((b"HTTP/1.1 200 ", b"HTTP/1.0 200 "))
    except OSError:
        return False


def ask(connection):
    """Asks for /probe; gives the answer and whether the connection stays open."""
    connection.sendall(b"GET /probe HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = b""
    while not answer.endswith(b"I'm ok!"):
        received = connection.recv(4096)
        if not received:
            break
        answer += received
    stays = answer.startswith(b"HTTP/1.1") and b"connection: close" not in answer.lower()
    return answer, stays


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
    """The server's process and those that it started."""
    found = [server.process.pid]
    for pid in found:
        try:
            found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except FileNotFoundError:
            pass  # gone meanwhile
    return found


def cpu_seconds(server):
    """User and system time so far, to the nanosecond: the clock that clock_getcpuclockid(3) gives.
    /proc/PID/stat has it too, in steps of 10 ms."""
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in processes(server))


def from_status(server, name):
    total = 0
    for pid in processes(server):
        try:
            total += int(re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1])
        except (FileNotFoundError, ProcessLookupError, TypeError):
            pass  # gone meanwhile
    return total


def resident_bytes(server):
    return from_status(server, "VmRSS") * 1024


def settle(server):
    """Waits until a server has finished what the load left behind, for 10 s at most."""
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
    """Collects the most memory and threads that a server has meanwhile, looking 20 times a second."""
    most = {"resident": 0, "threads": 0}
    done = threading.Event()

    def look():
        while not done.wait(0.05):
            most["resident"] = max(most["resident"], resident_bytes(server))
            most["threads"] = max(most["threads"], from_status(server, "Threads"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


# --- measuring ----------------------------------------------------------------------------------


def load(server, key, seconds):
    """Puts one load on one server and keeps the results."""
    if key in WAITS:
        return wait_beside_flood(server, key, seconds)
    heading, path, connections, factor, options = LOADS[key]
    if key in AT_A_FIXED_RATE:
        return fixed_rate(server, key, connections, seconds * factor)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds * factor}s", "-s", str(LUA), *options,
               f"http://127.0.0.1:{server.port}{path}"]
    cores = os.sched_getaffinity(0)
    if key == "pinned":
        # On two cores each side waits for the other now and then, and waking up is charged to who waited.
        cores = {min(cores)}
        command = ["taskset", "--cpu-list", str(min(cores)), *command]
    stay_on(server, cores)
    cpu = cpu_seconds(server)
    with watch(server) as most:
        output = run(command)
        cpu = cpu_seconds(server) - cpu
    result = json.loads(output.splitlines()[-1])
    requests = result["requests"]
    server.add(f"{key} rate", requests / result["seconds"])
    if requests:
        server.add(f"{key} p99", result["p99"])
        server.add(f"{key} cpu", cpu / requests)
    failed = server.failures.setdefault(key, {})
    for kind, count in result["failed"].items():
        if count:
            failed[kind] = failed.get(kind, 0) + count
    if key == "c64":
        server.add("resident 64", most["resident"])
        server.add("threads", most["threads"])
    settle(server)
    return requests / result["seconds"]


def stay_on(server, cores):
    for pid in processes(server):
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)


def fixed_rate(server, key, connections, seconds):
    """Asks at a fixed rate, whether or not the answers come, and counts a latency from when its request
    was due: a server that stalls has made all of them late that were due meanwhile."""
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
    """Has connections that say nothing, and a scrape ten times a second."""
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
def flood(server, request, clients, at_most):
    """Has clients pipeline one request until the block ends, for `at_most` seconds. Yields a dictionary, which
    has the responses per second and the number of closed connections afterwards."""
    process = subprocess.Popen([BUILT / "flood", str(server.port), str(clients), str(at_most), *request.split()],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    result = {}
    try:
        # Ends by itself: the program stops in time whatever the server does, and its output is closed then.
        if process.stdout.readline() != "ready\n":
            raise Failed(f"{clients} clients do not connect to {server.name}: {process.stderr.read().strip()}")
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
    """Connects and requests /healthz; returns the seconds until the response begins, or None without one."""
    began = time.perf_counter()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_TIMEOUT) as connection:
            connection.settimeout(max(0.001, began + WAIT_TIMEOUT - time.perf_counter()))
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            # The peers have no /healthz: their 404 comes from the same queue.
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
    """Measures how long one new client after the other waits while others pipeline. Returns the median."""
    _, request, clients, _, _ = WAITS[key]
    waits, failed = [], 0
    if (status := status_of(server, request)) != 200:
        server.remarks.add(f"has no {request} ({status}), so that nobody can pipeline it")
        return 0
    try:
        with flood(server, request, clients, seconds + 3 * WAIT_TIMEOUT) as result:
            began, cpu = time.monotonic(), cpu_seconds(server)
            while ((elapsed := time.monotonic() - began) < seconds
                   or len(waits) < LEAST_WAITS and elapsed < WAIT_TIMEOUT):
                wait = wait_of_new_client(server)
                waits.append(WAIT_TIMEOUT if wait is None else wait)
                failed += wait is None
                # At random, so that the next client does not always arrive at the same point of a server's round.
                time.sleep(random.uniform(0, 0.005))
            cpu, elapsed = cpu_seconds(server) - cpu, time.monotonic() - began
    except Failed as why:
        server.remarks.add(str(why))
        return 0
    finally:
        if server.process.poll() is not None:
            server.remarks.add(f"ended by itself during the load “{LOADS[key][0]}”")
        # Some servers work for many seconds on what they have received, which would disturb the next one.
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
    """Opens connections that ask once and then stay; keeps the memory that the server has then."""
    connections = []
    try:
        for _ in range(IDLE_CONNECTIONS):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=2)
            connections.append(connection)
            _, stays = ask(connection)
            if not stays:
                server.remarks.add("closes the connection after each answer, so that there is no keep-alive")
                return
        server.add("resident idle connections", resident_bytes(server))
    except OSError as error:
        server.remarks.add(f"answered {len(connections) - 1} of {IDLE_CONNECTIONS} connections "
                           f"that were opened one after the other, then: {error}")
    finally:
        for connection in connections:
            connection.close()
        settle(server)


def measure(servers, loads, rounds, seconds):
    """New connections come after all other rounds: they leave tens of thousands of TIME_WAITs for a
    minute, and tiny-http's /metrics reads the kernel's table of connections. Pipelined requests come last:
    some servers keep hundreds of megabytes afterwards."""
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
    """Flask's servers close each connection after one response. The floor sends one response for each read,
    however many requests that read contains."""
    return server.compiled and server.key != "floor"


def measure_log(servers, rounds, seconds):
    """Measures what the access log costs the event loop when it is read. Returns it without and with the log."""
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
    """All servers run, but only one has something to do at any time. They take turns at each load,
    so that what disturbs the machine for a while disturbs all."""
    # Nobody is always first.
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
                    if key not in WAITS:  # each of these ends with the server being killed
                        server.remarks.add(f"ended by itself before the load “{LOADS[key][0]}”")
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


# --- what comes of it ---------------------------------------------------------------------------


def count(value):
    """23 456 as 23.5 k."""
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
    """The median, and in brackets the least and the most."""
    values = server.samples.get(what)
    if not values:
        return "–"
    median, least, most = (form(f(values)) for f in (statistics.median, min, max))
    return median if least == most else f"{median} ({least}–{most})"


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
    """Those that the project set itself."""
    by_key = {server.key: server for server in servers}
    lines = []
    for text, ours, theirs, what, bound in [
        ("CPU time per `GET /probe` on 64 keep-alive connections, event-loop to the floor",
         "event-loop", "floor", "c64 cpu", 1.25),
        ("the same, event-loop to axum on one tokio thread", "event-loop", "axum", "c64 cpu", 0.8),
        ("CPU time per `GET /metrics`, event-loop to axum with the library's encoder and collector",
         "event-loop", "axum", "metrics cpu", 0.35),
        ("the same, event-loop to Go's promhttp", "event-loop", "go", "metrics cpu", 0.1),
        ("the same, the static event-loop to the one with glibc", "static", "event-loop", "metrics cpu", 1.2),
        ("CPU time per `GET /probe`, event-loop with its access log on and read by `cat`, to the same without",
         "log-on", "log-off", "c64 cpu", 1.25),
    ]:
        if ours in by_key and theirs in by_key:
            # Round by round, as both had their turn within seconds of each other.
            ratios = [a / b for a, b in zip(by_key[ours].samples.get(what, []), by_key[theirs].samples.get(what, []))]
            if ratios:
                lines.append(f"- {text}: **{statistics.median(ratios):.2f}** "
                             f"({min(ratios):.2f}–{max(ratios):.2f}); the goal is {bound} at most.")
    lines += [*above_the_floor(by_key), *tail_latency(by_key), *longest_wait(by_key)]
    return "\n".join(lines)


def above_the_floor(by_key):
    """What parsing, routing and recording cost, in shares of what they cost axum."""
    samples = [by_key[key].samples.get("pinned cpu") for key in ("event-loop", "axum", "floor") if key in by_key]
    if len(samples) == 3 and all(samples):
        shares = [(ours - floor) / (axum - floor) for ours, axum, floor in zip(*samples)]
        yield ("- CPU time per `GET /probe` on one core with wrk, what the event-loop adds to the floor to what axum "
               f"adds: **{statistics.median(shares):.2f}** ({min(shares):.2f}–{max(shares):.2f}); the goal is 0.4 at most.")


def tail_latency(by_key):
    """Against the best of the peers, by medians over the rounds: single rounds differ by chance."""
    for key, beside in [("quiet", ""), ("busy", " beside scrapes and idle connections")]:
        tails = {name: median(server, f"{key} p99.9") for name, server in by_key.items() if name not in
                 ("floor", "static", "tiny-http")}
        tails = {name: tail for name, tail in tails.items() if tail}
        ours = tails.pop("event-loop", None)
        if ours and tails:
            best = min(tails, key=tails.get)
            yield (f"- p99.9 at {RATE} requests per second{beside}, event-loop to the best of its peers, {best}: "
                   f"**{ours / tails[best]:.2f}**; the goal is 1 at most.")


def longest_wait(by_key):
    """The longest median and the longest wait of all floods."""
    if "event-loop" in by_key:
        samples = by_key["event-loop"].samples
        for what, bound in [("median", 5), ("worst", 50)]:
            measured = {key: samples[f"{key} {what}"] for key in WAITS if f"{key} {what}" in samples}
            if measured:
                key = max(measured, key=lambda key: max(measured[key]))
                yield (f"- The wait of {LOADS[key][0]} (the longest of {len(measured)} floods), {what}: "
                       f"**{milliseconds(max(measured[key]))} ms**; the goal is {bound} ms at most.")


def report(servers, logs, left_out, rounds, seconds):
    keep_alive = [f"{heading} connection{'s' * (heading != '1')}" for heading, *_ in KEEP_ALIVE.values()]
    keys = [*KEEP_ALIVE, "close"]
    headings = [*keep_alive, "a new connection each"]
    compiled = [server for server in servers if server.compiled]
    longest = max(factor for _, _, _, factor, _ in LOADS.values())
    parts = [
        "# Measured",
        f"By `make bench` on {time.strftime('%Y-%m-%d', time.gmtime())}, on {machine()}, "
        f"with {run_version('wrk')} (one thread) on the same machine. "
        f"Medians of {rounds} round{'s' * (rounds > 1)}, in brackets the least and the most. "
        f"Each load runs for {seconds} s in each round ({seconds * longest} s with 1000 connections); the "
        "servers take turns at each. wrk sends its next request when it has the answer to the last, so that a "
        "server that stalls is asked less: p99 is to be compared at similar rates only.",
        "## Requests per second, GET /probe",
        table(servers, [(heading, f"{key} rate", count) for heading, key in zip(headings, keys)]),
        "## 99th percentile of latency in milliseconds, GET /probe",
        table(servers, [(heading, f"{key} p99", milliseconds) for heading, key in zip(headings, keys)]),
        f"## Latency at {RATE} requests per second in milliseconds, GET /probe",
        f"By {run_version('oha', '--version')}, on 64 connections: a request is due whether or not the last was "
        "answered, and its latency counts from then.",
        table(compiled, [(name, f"quiet {what}", milliseconds) for name, what in PERCENTILES]),
        f"The same with a scrape every {SCRAPE_PAUSE * 1000:.0f} ms and {IDLE_CONNECTIONS} idle connections beside it:",
        table(compiled, [(name, f"busy {what}", milliseconds) for name, what in PERCENTILES]),
        "## CPU time per request in microseconds, user and system",
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
    notes += [f"- {server.name}, {heading}: used only {busy:.0%} of a CPU: the clients did not keep it busy, "
              "or something else was running."
              for server in servers for key, (heading, *_) in WAITS.items()
              if (busy := median(server, f"{key} busy")) is not None and busy < 0.8]
    notes += [f"- {key} is left out: {why}." for key, why in left_out.items()]
    if notes:
        parts += ["## Left out, failed, or otherwise", "\n".join(notes)]
    parts += ["## Versions", "\n".join(f"- {server.name}: {server.version}" for server in servers)]
    return "\n\n".join(parts) + "\n"


def waits_report(servers, rounds, seconds):
    parts = [
        "## Wait of a new client in milliseconds, while others pipeline requests without end",
        "From before it connects until its response to GET /healthz begins (the peers respond with 404). The others "
        "send the named request in blocks of several hundred and read every response (bench/flood.c). New clients "
        f"come one after the other, for {seconds} s and until there were {LEAST_WAITS}; medians of {rounds} "
        f"round{'s' * (rounds > 1)}, in brackets the least and the most. A client gives up after {WAIT_TIMEOUT} s, which "
        "counts as its wait. Beside it the responses per second that the others received.",
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
    """The table that the README shows: medians only."""
    columns = [("CPU µs per request", "c64 cpu", microseconds), ("CPU µs per scrape", "metrics cpu", microseconds),
               ("requests/s", "c64 rate", count), ("p99.9 ms at 5000/s", "quiet p99.9", milliseconds),
               ("ms until a new client is served beside 1000 that pipeline scrapes: median",
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
    """Three bar charts, one above the other: legible on a telephone, too. One grey that reads on light and
    on dark ground, no ground of its own."""
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
        # A bar far beyond most others is cut short, so that the rest can be told apart.
        full = 3 * statistics.median(value for _, value in values)
        for server, value in values:
            text += bar_of(server, value / full, form(value), left, y, bar, row)
            y += row
        y += 16
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}" '
        'font-family="system-ui, sans-serif" font-size="14" fill="#76808a" role="img">',
        "<title>tiny-probe and its peers: CPU time per request and per scrape, memory</title>", *text, "</svg>", ""])


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
    if share > 1:  # the cut: the bar ends in two pieces
        for start in (length - 17, length - 6):
            yield f'<rect x="{left + start:.1f}" y="{y + 4}" width="6" height="{row - 8}" fill="{color}"/>'
    yield f'<text x="{left + length + 6:.1f}" y="{y + row - 5}" font-size="12">{label}</text>'


def main():
    parser = argparse.ArgumentParser(description="Measures tiny-probe against its peers.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=1, help="of each load in each round")
    parser.add_argument("--servers", metavar="A,B", help="only these")
    parser.add_argument("--loads", metavar="A,B",
                        help=f"only these of {', '.join(LOADS)}; `wait` means all that begin with it")
    parser.add_argument("--quick", action="store_true", help="one round of the main loads")
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
        sys.exit(f"bench: no load is called {', '.join(unknown)}; there are wait, {', '.join(LOADS)}")
    if any(load not in WAITS and load not in AT_A_FIXED_RATE for load in loads) and not shutil.which("wrk"):
        sys.exit("bench: wrk is not installed; on Debian: apt-get install wrk")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        sys.exit(f"bench: needs 4096 descriptors, and the limit is {hard}; raise it with ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    servers, left_out = build(arguments)
    if not shutil.which("oha"):
        left_out["the load at a fixed rate"] = "oha is not installed; cargo install --locked oha"
        loads = [load for load in loads if load not in AT_A_FIXED_RATE]
    try:
        flood_binary()
    except Failed as why:
        left_out["the wait of a new client"] = str(why)
        loads = [load for load in loads if load not in WAITS]
    began = time.monotonic()
    measure(servers, loads, arguments.rounds, arguments.seconds)
    logs = measure_log(servers, arguments.rounds, arguments.seconds) if "c64" in loads else []
    progress(f"measured in {time.monotonic() - began:.0f} s", stays=True)

    text = report(servers, logs, left_out, arguments.rounds, arguments.seconds)
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
    except Failed as why:
        sys.exit(f"bench: {why}")
    except KeyboardInterrupt:
        sys.exit(130)
