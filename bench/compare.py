#!/usr/bin/env python3
"""Compares the speed of two or more builds of tiny-probe, in turns, on one machine.

    bench/compare.py BEFORE AFTER                   two binaries
    bench/compare.py --rounds 20 BEFORE AFTER       more rounds; the default is 10

Times of different days cannot be compared, so a change is measured next to the state before it. Each round
gives every binary the same three loads, for 2 s each: GET /probe on 64 connections as fast as possible, scrapes
on one, and GET /probe at a fixed rate. The CPU time per request is that of the process, with the kernel's part.
It is steadier than the rate and the latency, which depend on the client as well. The ratio is to the first binary
in the same round. Needs wrk and oha.
"""

import argparse
import statistics
import sys
from pathlib import Path

from run import LOADS, PROMETHEUS, RATE, Failed, fixed_rate, load, need, start, stop, tiny_probe

# One connection, as Prometheus has. The load of bench/run.py has sixteen.
LOADS["scrape"] = ("scrape", "/metrics", 1, 1, PROMETHEUS)
# The loads of each round by key, and the quantities by key: the heading, a factor for the unit, and the digits.
COMPARED = {"c64": "GET /probe", "scrape": "scrape", "quiet": f"{RATE}/s"}
QUANTITIES = {"cpu": ("CPU, µs", 1e6, 2), "rate": ("requests/s", 1, 0), "p50": ("p50, ms", 1e3, 2),
              "p99": ("p99, ms", 1e3, 2), "p99.9": ("p99.9, ms", 1e3, 2)}
SECONDS = 2


def summary(values, digits):
    low, middle, high = (f"{value:.{digits}f}" for value in [min(values), statistics.median(values), max(values)])
    return f"{middle} ({low} to {high})"


def compare(servers, rounds):
    started = []
    try:
        for server in servers:
            start(server)
            started.append(server)
        for done in range(rounds):
            # Every other round in reverse, so that no binary always has the earlier turn.
            for key in COMPARED:
                for server in servers[::-1 if done % 2 else 1]:
                    if key == "quiet":
                        fixed_rate(server, key, 64, SECONDS, LOADS[key][4])
                    else:
                        load(server, key, SECONDS)
                    if server.failures.get(key):
                        raise Failed(f"{server.name}: not every request succeeded: {server.failures[key]}")
    finally:
        for server in started:
            stop(server)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("binaries", nargs="+", type=Path, metavar="BINARY")
    arguments = parser.parse_args()
    for binary in arguments.binaries:
        if not binary.exists():
            parser.error(f"{binary} does not exist: expected the path of a built tiny-probe")
    try:
        need("wrk", "oha")
        servers = [tiny_probe(binary.resolve(), "event-loop", name=str(binary)) for binary in arguments.binaries]
        compare(servers, arguments.rounds)
    except Failed as failure:
        sys.exit(f"compare: {failure}")
    print(f"median (minimum to maximum) of {arguments.rounds} rounds")
    for key, heading in COMPARED.items():
        for quantity, (name, factor, digits) in QUANTITIES.items():
            first = servers[0].samples.get(f"{key} {quantity}")
            if not first:
                continue
            for binary, server in zip(arguments.binaries, servers):
                values = server.samples[f"{key} {quantity}"]
                ratios = summary([value / other for value, other in zip(values, first)], 3)
                own = summary([value * factor for value in values], digits)
                print(f"{heading:<11} {name:<11} {own:<30} ratio {ratios}  {binary}")


if __name__ == "__main__":
    main()
