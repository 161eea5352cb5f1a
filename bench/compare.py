#!/usr/bin/env python3
"""Compares the speed of two or more builds of tiny-probe, in turns, on one machine.

    bench/compare.py BEFORE AFTER                   two binaries
    bench/compare.py --rounds 20 BEFORE AFTER       more rounds; the default is 10

Times of different days cannot be compared, so a change is measured next to the state before it. Each round
gives every binary the same two loads, for 2 s each: GET /probe on 64 connections, and scrapes on one. The CPU
time per request is that of the process, with the kernel's part. It is steadier than the rate and the latency,
which depend on wrk as well. The ratio is to the first binary in the same round. Needs wrk.
"""

import argparse
import json
import os
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
QUANTITIES = ["CPU, µs", "requests/s", "p99.9, ms"]
SECONDS = 2
LUA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report.lua")


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
    """Returns a value for each quantity."""
    *options, path = options
    command = ["wrk", "--threads", "1", "--duration", f"{SECONDS}s", "--script", LUA, *options,
               f"http://127.0.0.1:{port}{path}"]
    before = cpu_seconds(process)
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS + 30).stdout
    used = cpu_seconds(process) - before
    result = json.loads(output.splitlines()[-1])
    if any(result["failed"].values()):
        sys.exit(f"compare: not every request succeeded: {result['failed']}")
    requests = result["requests"]
    return [used / requests * 1e6, requests / result["seconds"], result["p99.9"] * 1e3]


def summary(values, digits):
    low, middle, high = (f"{value:.{digits}f}" for value in [min(values), statistics.median(values), max(values)])
    return f"{middle} ({low} to {high})"


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
    print(f"median (minimum to maximum) of {arguments.rounds} rounds")
    for load in LOADS:
        for number, quantity in enumerate(QUANTITIES):
            values = [[value[number] for value in times[load, index]] for index in range(len(started))]
            for binary, own in zip(arguments.binaries, values):
                ratios = [value / first for value, first in zip(own, values[0])]
                digits = 0 if number == 1 else 2
                print(f"{load:<11} {quantity:<11} {summary(own, digits):<30} ratio {summary(ratios, 3)}  {binary}")


if __name__ == "__main__":
    main()
