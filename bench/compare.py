#!/usr/bin/env python3
"""Compares the CPU time per request of two or more builds of tiny-probe, in turns, on one machine.

    bench/compare.py BEFORE AFTER                   two binaries
    bench/compare.py --rounds 20 BEFORE AFTER       more rounds; the default is 10

Times of different days cannot be compared, so a change is measured next to the state before it. Each round
gives every binary the same two loads, for 2 s each: GET /probe on 64 connections, and scrapes on one. The CPU
time is that of the process, with the kernel's part. The ratio is to the first binary in the same round. Needs
wrk.
"""

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import time

ACCEPT = ("application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
          "text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
LOADS = {
    "GET /probe": ["--connections", "64", "/probe"],
    "scrape": ["--connections", "1", "--header", f"Accept: {ACCEPT}", "/metrics"],
}
SECONDS = 2


def start(binary):
    """Starts a binary on a free port and waits until it accepts connections. Returns the process and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([binary, "--listen", f"127.0.0.1:{port}"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return process, port
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                sys.exit(f"compare: {binary} did not listen within 10 s")
            time.sleep(0.01)


def cpu_seconds(process):
    """Returns the user and system time so far, by the clock of clock_getcpuclockid(3)."""
    return time.clock_gettime(~process.pid << 3 | 2)


def measure(process, port, options):
    """Returns the CPU time per request in microseconds."""
    *options, path = options
    command = ["wrk", "--threads", "1", "--duration", f"{SECONDS}s", *options, f"http://127.0.0.1:{port}{path}"]
    before = cpu_seconds(process)
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS + 30).stdout
    used = cpu_seconds(process) - before
    if "Non-2xx" in output or "Socket errors" in output:
        sys.exit(f"compare: not every request succeeded:\n{output}")
    return used / int(re.search(r"(\d+) requests in", output)[1]) * 1e6


def summary(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("binaries", nargs="+", type=os.path.abspath, metavar="BINARY")
    arguments = parser.parse_args()
    times = {(load, index): [] for load in LOADS for index in range(len(arguments.binaries))}
    started = []
    try:
        for binary in arguments.binaries:
            started.append(start(binary))
        for done in range(arguments.rounds):
            # Every other round in reverse, so that no binary always has the earlier turn.
            order = list(enumerate(started))[::-1 if done % 2 else 1]
            for load, options in LOADS.items():
                for index, (process, port) in order:
                    times[load, index].append(measure(process, port, options))
    finally:
        for process, _ in started:
            process.terminate()
            process.wait()
    print(f"CPU time per request in µs: median (minimum to maximum) of {arguments.rounds} rounds")
    for load in LOADS:
        for index, binary in enumerate(arguments.binaries):
            own = times[load, index]
            ratios = [time / first for time, first in zip(own, times[load, 0])]
            print(f"{load:<11} {summary(own, 2):<26} ratio {summary(ratios, 3)}  {binary}")


if __name__ == "__main__":
    main()
