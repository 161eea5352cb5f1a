#!/usr/bin/env python3
"""Compares ways to give an existing program a /metrics endpoint, as a Markdown table.

    bounded-http/compare/compare.py TARGET      such as x86_64-unknown-linux-musl; CARGO names another cargo

Builds three programs for the target: the two in this folder, and bounded-http's example daemon_metrics.
Each hostile client gets a process of its own, on 127.0.0.1. A column says "ok" if new clients are scraped
within three seconds meanwhile, and the process uses less than half a CPU and less than 50 MB.
Takes two minutes after the builds.
"""

import os
import re
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
CARGO = os.environ.get("CARGO", "cargo")
TIMEOUT = 3
MEMORY = 50  # in MB


def cargo(*arguments):
    return subprocess.run([CARGO, *arguments], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout


def crates(manifest, *packages):
    """Returns the number of crates that the packages depend on, without those of this repository."""
    lines = "".join(cargo("tree", "--manifest-path", manifest, "--locked", "--edges", "normal,build",
                          "--target", TARGET, "--prefix", "none", "--package", package) for package in packages)
    names = {" ".join(line.split()[:2]) for line in lines.splitlines() if line and f"({ROOT}" not in line}
    return len(names)


class Program:
    """A program that has been built."""

    def __init__(self, name, binary, own_threads, crate_count):
        self.name, self.binary, self.own_threads, self.crates = name, binary, own_threads, crate_count


class Process:
    def __init__(self, program, descriptors=1024):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = probe.getsockname()
        limit = (descriptors, descriptors)
        self.process = subprocess.Popen(
            [program.binary, f"127.0.0.1:{self.address[1]}"], stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit))
        end = time.monotonic() + 10
        while self.scrape() is None:
            if time.monotonic() > end or self.process.poll() is not None:
                sys.exit(f"compare: {program.binary} does not serve within 10 s")
            time.sleep(0.05)

    def connect(self, timeout=TIMEOUT):
        return socket.create_connection(self.address, timeout)

    def scrape(self):
        """Returns the seconds until a new client has received an exposition, or None if it receives none."""
        began = time.monotonic()
        response = b""
        try:
            with self.connect() as client:
                client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                while b"jobs_total" not in response and time.monotonic() - began < TIMEOUT:
                    received = client.recv(1 << 16)
                    if not received:
                        break
                    response += received
        except OSError:
            return None
        return time.monotonic() - began if response.startswith(b"HTTP/1.1 200") else None

    def figure(self, name):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+)", status)[1])

    def cpu_time(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def verdict(self):
        """Observes the process for two seconds and describes its state."""
        faults = []
        time.sleep(0.3)  # If it is aborting, let it finish.
        if self.process.poll() is None:
            began, used = time.monotonic(), self.cpu_time()
            times = []
            while time.monotonic() - began < 2:
                times.append(self.scrape())
                time.sleep(0.1)
            if self.process.poll() is None:
                load = (self.cpu_time() - used) / (time.monotonic() - began)
                peak = self.figure("VmHWM") / 1000
                faults += [f"{load:.0%} of a CPU"] if load > 0.5 else []
                faults += ["scrapes time out"] if None in times else []
                faults += [f"{peak:.0f} MB"] if peak > MEMORY else []
        if self.process.poll() is not None:
            faults = ["**the process ends**"]
        return ", ".join(faults) or "ok"

    def end(self):
        self.process.kill()
        self.process.wait()


def unsent_body(process):
    """body announced, not sent"""
    client = process.connect()
    client.sendall(b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n")
    return process.verdict()


def petabytes(process):
    """`Content-Length: 10^16`"""
    client = process.connect()
    client.sendall(b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000000000000\r\n\r\n")
    return process.verdict()


def silent(process):
    """400 silent clients, 300 descriptors"""
    clients = []
    for _ in range(400):
        try:
            clients.append(process.connect())
        except OSError:
            break
    verdict = process.verdict()
    for client in clients:
        client.close()
    time.sleep(1)
    return verdict if process.scrape() is not None else f"{verdict}, even after they have disconnected"


silent.descriptors = 300


def unread(process):
    """pipelines, reads nothing"""
    client = process.connect(0.2)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            client.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
        except TimeoutError:
            pass
        except OSError:
            break
    return process.verdict()


def header(process):
    """a header field of 200 MB"""
    client = process.connect(20)
    try:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: ")
        for _ in range(200):
            client.sendall(b"x" * 1_000_000)
    except OSError:
        pass
    return process.verdict()


CLIENTS = [unsent_body, petabytes, silent, unread, header]


def build():
    """Builds the programs. Each has one worker thread."""
    manifest = FOLDER / "Cargo.toml"
    options = ["build", "--quiet", "--release", "--locked", "--target", TARGET]
    cargo(*options, "--manifest-path", manifest)
    # This repository optimizes bounded-http and its parser for speed. A program of one's own has one setting for
    # all crates, as the others have here. Cargo does not apply `strip = true` to a package with its own profile.
    equal = {"bounded-http.opt-level": "s", "bounded-http.strip": "symbols", "httparse.opt-level": "s"}
    for key, value in equal.items():
        options += ["--config", f'profile.release.package.{key}="{value}"']
    cargo(*options, "--package", "bounded-http", "--example", "daemon_metrics")
    folder = Path(TARGET) / "release"
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    others = Path(os.environ.get("CARGO_TARGET_DIR", FOLDER / "target"))
    return [
        # In these programs, the main thread is the worker.
        Program("prometheus_exporter 0.8.5", others / folder / "compare-prometheus_exporter", 1,
                crates(manifest, "compare-prometheus_exporter")),
        Program("metrics-exporter-prometheus 0.18, http-listener only", others / folder / "compare-metrics-exporter",
                1, crates(manifest, "compare-metrics-exporter")),
        # In this program, the worker is a thread of its own, and the main thread waits for SIGTERM.
        Program("bounded-http, prometheus 0.14, signal-hook 0.4", target / folder / "examples/daemon_metrics", 2,
                crates(ROOT / "Cargo.toml", "bounded-http", "prometheus", "signal-hook")),
    ]


def main():
    global TARGET
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    TARGET = sys.argv[1]
    columns = ["", "crates", "binary", "threads"] + [client.__doc__ for client in CLIENTS]
    programs = build()
    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns), flush=True)
    for program in programs:
        row = [program.name, str(program.crates), f"{program.binary.stat().st_size / 1000:.0f} KB"]
        process = Process(program)
        row.append(str(process.figure("Threads") - program.own_threads))
        process.end()
        for client in CLIENTS:
            process = Process(program, getattr(client, "descriptors", 1024))
            try:
                row.append(client(process))
            finally:
                process.end()
        print("| " + " | ".join(row) + " |", flush=True)


main()
