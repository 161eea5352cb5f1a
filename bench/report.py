#!/usr/bin/env python3
"""Writes the tables of the benchmark from bench/results.json, which bench/run.py has measured.

    bench/report.py             writes bench/results.md, docs/bench.svg, and the tables in the documents
    bench/report.py --check     checks that all of them say what bench/results.json says

A document includes a table between two lines, and the table takes the place of what is there:

    <!-- bench: main -->
    <!-- bench: end -->
"""

import json
import re
import statistics
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
# The documents, and the tables that each must include.
DOCUMENTS = {"README.md": ["summary"], "docs/performance.md": ["main"]}
MARKED = re.compile(r"(?<=^<!-- bench: )((?!end )[a-z]+)( -->\n)(.*?)(?=^<!-- bench: end -->$)", re.M | re.S)
PERCENTILES = [("median", "p50"), ("p99", "p99"), ("p99.9", "p99.9"), ("slowest", "slowest")]


def write_json(file, results):
    """Writes a list on each line, so that a change of a measurement is a change of a line. A run that is
    interrupted leaves the whole file behind."""
    text = json.dumps(results, indent=1)
    text = re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text)
    new = file.with_suffix(".new")
    new.write_text(text + "\n")
    new.replace(file)


# --- formats ------------------------------------------------------------------------------------


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
    return f"{value / 1e6:.2f}" if value < 10e6 else f"{value / 1e6:.1f}" if value < 100e6 else f"{value / 1e6:.0f}"


def percent(value):
    return f"{value:.0%}"


def whole(value):
    return f"{value:.0f}"


def quotient(value):
    return f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"


# --- tables -------------------------------------------------------------------------------------


def median(server, what):
    values = server["samples"].get(what)
    return statistics.median(values) if values else None


def short(server, what, form):
    value = median(server, what)
    return "–" if value is None else form(value)


def long(server, what, form):
    """Formats the median, followed by the minimum and the maximum in parentheses."""
    values = server["samples"].get(what)
    if not values:
        return "–"
    middle, minimum, maximum = (form(f(values)) for f in (statistics.median, min, max))
    return middle if minimum == maximum else f"{middle} ({minimum}–{maximum})"


def table(servers, columns, cell=long):
    """Leaves out the servers and the columns that have no values."""
    columns = [column for column in columns if any(server["samples"].get(column[1]) for server in servers)]
    if not columns:
        return "Not measured."
    servers = [server for server in servers if any(server["samples"].get(what) for _, what, _ in columns)]
    lines = ["| | " + " | ".join(heading for heading, _, _ in columns) + " |",
             "| --- |" + " ---: |" * len(columns)]
    for server in servers:
        cells = [cell(server, what, form) + (f" {server['note']}" if what == "size" and server["note"] else "")
                 for _, what, form in columns]
        lines.append(f"| {server['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main_table(servers, about):
    """The table in docs/performance.md: medians only."""
    return table(servers, [
        ("CPU µs per request", "c64 cpu", microseconds),
        ("CPU µs per scrape", "metrics cpu", microseconds),
        (f"p99.9 in ms at {about['rate']}/s", "quiet p99.9", milliseconds),
        ("ms that a new client waits while 1000 others pipeline scrapes", "wait-metrics-1000 median", milliseconds),
        ("ms from start to the first 200", "start", milliseconds),
        ("MB idle", "idle memory", megabytes),
        ("MB with 1000 connections", "1000 memory", megabytes),
        ("MB with 10,000 connections", "10000 memory", megabytes),
        ("MB to install", "size", megabytes),
    ], short)


def summary(by_key):
    """The sentences in the README."""
    request, scrape, wait = ([short(by_key[key], what, form) if key in by_key else "–" for key in ("event-loop", "axum")]
                             for what, form in (("c64 cpu", microseconds), ("metrics cpu", microseconds),
                                                ("wait-metrics-1000 median", milliseconds)))
    return (f"A request to /probe takes {request[0]} µs of CPU time (with axum {request[1]} µs). If scrapes arrive together, "
            f"each takes\n{scrape[0]} µs (axum: {scrape[1]} µs). While 1000 clients pipeline scrapes without end, a new "
            f"client waits {wait[0]} ms (axum: {wait[1]} ms).")


def measured(about):
    """The sentences that say when, where and with what."""
    return (f"Measured by `make bench` on {about['date']} at commit {about['commit']}, in {about.get('minutes', 0):.0f} minutes,\n"
            f"on {about['machine']}, with {about['rustc']}, {about['wrk']} and {about['oha']}.")


def paired(by_key, ours, theirs, what):
    """Returns both values of each round, because within a round both ran within seconds of each other."""
    if ours not in by_key or theirs not in by_key:
        return []
    return list(zip(by_key[ours]["samples"].get(what, []), by_key[theirs]["samples"].get(what, [])))


def goals(by_key, about):
    """The goals of the project, for the dynamic and for the static build, and whether they are met."""
    lines = ["| goal | at most | tiny-probe | | static | |", "| --- | ---: | ---: | --- | ---: | --- |"]

    def add(text, bound, cells, unit=""):
        if any(cells):
            shown = " | ".join(f"{text} | {'met' if value <= bound else '**missed**'}" if value is not None else "– |"
                               for value, text in (found or (None, None) for found in cells))
            lines.append(f"| {text} | {bound}{unit} | {shown} |")

    def ratio(pairs):
        ratios = [a / b for a, b in pairs]
        return (statistics.median(ratios), f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
                ) if ratios else None

    for text, peer, what, bound in [
        ("CPU time per request, divided by that of the floor", "floor", "c64 cpu", 1.25),
        ("the same, for a head with `Host` alone", "floor", "bare cpu", 1.25),
        ("CPU time per request, divided by that of axum with the same libc", "axum", "c64 cpu", 0.8),
        ("the same, for a head with `Host` alone", "axum", "bare cpu", 0.8),
        ("CPU time per scrape, divided by that of the floor, which sends the same bytes", "floor", "metrics cpu", 1.6),
        ("CPU time per scrape, divided by that of axum with the same libc", "axum", "metrics cpu", 0.35),
        ("CPU time per scrape, divided by that of Go's promhttp", "go", "metrics cpu", 0.1),
    ]:
        musl = f"{peer}-static" if f"{peer}-static" in by_key else peer
        add(text, bound, [ratio(paired(by_key, "event-loop", peer, what)), ratio(paired(by_key, "static", musl, what))])
    add("CPU time per scrape, static divided by dynamic", 1.2, [None, ratio(paired(by_key, "static", "event-loop", "metrics cpu"))])
    add("CPU time per request with the access log on, divided by that with the log off", 1.25,
        [ratio(list(zip(by_key[key]["samples"].get("log on cpu", []), by_key[key]["samples"].get("log off cpu", []))))
         if key in by_key else None for key in ("event-loop", "static")])
    for key, condition in [("quiet", ""), ("busy", ", with scrapes and idle connections"), ("slow", ", with slow readers")]:
        # The medians of all rounds, because single rounds vary a lot.
        tails = {name: median(server, f"{key} p99.9") for name, server in by_key.items()}
        others = [tail for name, tail in tails.items() if name not in ("event-loop", "static", "tiny-http", "floor") and tail]
        if others:
            add(f"p99.9 at {about['rate']} requests per second{condition}, divided by that of the best of the others", 1,
                [(tails[name] / min(others), quotient(tails[name] / min(others))) if tails.get(name) else None
                 for name in ("event-loop", "static")])
    for what, bound in [("median", 5), ("worst", 50)]:
        def longest(name):
            waits = [max(by_key[name]["samples"][f"{key} {what}"]) for key, *_ in about["floods"]
                     if name in by_key and f"{key} {what}" in by_key[name]["samples"]]
            return (max(waits) * 1000, f"{milliseconds(max(waits))} ms") if waits else None
        add(f"{what} wait of a new client while others pipeline, the longest of all such loads and rounds", bound,
            [longest("event-loop"), longest("static")], " ms")
    return "\n".join(lines)


def above_the_floor(by_key):
    """What the servers add to the floor on one core. The differences are small, so the spread is given."""
    lines = []
    for key, server in by_key.items():
        added = [(ours - floor) * 1e6 for ours, floor in paired(by_key, key, "floor", "pinned cpu")]
        if added and key != "floor":
            lines.append(f"| {server['name']} | {statistics.median(added):.1f} ({min(added):.1f} to {max(added):.1f}) |")
    return "\n".join(["| | µs above the floor |", "| --- | ---: |", *lines]) if lines else "Not measured."


def limits_table(servers, about):
    def seconds(server, what):
        value = server["limits"].get(what, "")
        return "–" if value == "" else f"not within {about['limit_timeout']} s" if value is None else f"{value:.0f} s"

    def size(server, what, most, form):
        value = server["limits"].get(what, "")
        return "–" if value == "" else f"more than {form(most)}" if value is None else form(value)

    def kilobytes(value):
        return f"{value / 1024:.0f} KiB"

    lines = ["| | closes after an unfinished request head | closes an idle connection | longest field | fields |",
             "| --- | ---: | ---: | ---: | ---: |"]
    for server in servers:
        # The same server in another build has the same limits.
        if server["limits"] and not server["key"].endswith("-static") and server["key"] not in ("static", "go-1"):
            lines.append(f"| {server['name']} | {seconds(server, 'unfinished head')} | {seconds(server, 'idle')} | "
                         f"{size(server, 'field bytes', about['field_bytes'], kilobytes)} | "
                         f"{size(server, 'fields', about['fields'], str)} |")
    return "\n".join(lines)


def waits_tables(servers, about):
    tables = []
    for request in dict.fromkeys(request for _, request, _ in about["floods"]):
        columns = [(f"{clients} clients: {heading}", f"{key} {what}", form) for key, its_request, clients in about["floods"]
                   if its_request == request
                   for heading, what, form in [("median", "median", milliseconds), ("worst", "worst", milliseconds),
                                               ("responses/s", "rate", count)]]
        if any(column[1] in server["samples"] for column in columns for server in servers):
            tables += [f"Others pipeline {request}:", table(servers, columns)]
    return tables or ["Not measured."]


def blocks(results):
    """The tables that documents include, by name."""
    about, servers = results["about"], results["servers"]
    by_key = {server["key"]: server for server in servers}
    return {"main": main_table(servers, about), "summary": summary(by_key), "measured": measured(about),
            "goals": goals(by_key, about), "limits": limits_table(servers, about),
            "waits": "\n\n".join(waits_tables(servers, about))}


def markdown(results):
    """bench/results.md: everything, with the spread."""
    about, servers = results["about"], results["servers"]
    by_key = {server["key"]: server for server in servers}
    text = blocks(results)
    compiled = [server for server in servers if server["compiled"]]
    rounds = about["rounds"]
    loads = [("1 connection", "c1"), ("64 connections", "c64"), ("1000 connections", "c1000"), ("a new connection each", "close")]
    parts = [
        "# Benchmark results",
        f"{text['measured']} All of it runs on this one machine, with one thread of wrk. Each value is the median of "
        f"{rounds} round{'s' * (rounds > 1)}, followed by the minimum and the maximum in parentheses. In each round, each "
        f"load runs for {about['seconds']:g} s ({2 * about['seconds']:g} s with 1000 connections and at a fixed rate) "
        "against one server after the other. bench/results.json has all values. Requests have the 20 header fields that "
        "a browser sends through an ingress controller, and scrapes have those of Prometheus, without "
        "`Accept-Encoding`.",
        "## CPU time (user and system) per request in microseconds",
        table(servers, [("64 connections", "c64 cpu", microseconds),
                        ("the same, a head with `Host` alone", "bare cpu", microseconds),
                        ("64 connections, on one core with wrk", "pinned cpu", microseconds),
                        ("a new connection each", "close cpu", microseconds),
                        ("GET /metrics, 16 connections", "metrics cpu", microseconds)]),
        "The floor parses nothing and sends constant bytes: for /probe a short response, and for /metrics a scrape of "
        "tiny-probe. On one core, neither process waits for the other, so the difference to the floor is what a server "
        "adds. It is a difference between nearly equal numbers:",
        above_the_floor(by_key),
        "## Goals",
        text["goals"],
        f"## Latency at {about['rate']} requests per second in milliseconds, GET /probe",
        f"Measured with {about['oha']} on 64 connections. Requests are due at fixed times, whether or not earlier ones "
        "have their responses, and a latency counts from the time when the request was due.",
        table(compiled, [(name, f"quiet {what}", milliseconds) for name, what in PERCENTILES]),
        f"The same with a scrape every {about['scrape_pause'] * 1000:.0f} ms and {about['idle']} idle connections:",
        table(compiled, [(name, f"busy {what}", milliseconds) for name, what in PERCENTILES]),
        f"The same with {about['slow_clients']} clients that pipeline GET /metrics and read steadily, each "
        f"{about['slow_bytes']} bytes in 10 ms. The memory is the peak, with the kernel's part; “scrapes/s” is what these "
        "clients received:",
        table(compiled, [*((name, f"slow {what}", milliseconds) for name, what in PERCENTILES),
                         ("MB", "slow peak memory", megabytes), ("scrapes/s", "slow scrapes", count)]),
        "## Wait of a new client in milliseconds, while others pipeline requests without end",
        "A wait lasts from the start of connecting until the response to GET /healthz begins (servers other than "
        "tiny-probe respond with 404). The others send the named request in blocks of several hundred and read every "
        f"response (bench/flood.c). New clients arrive one after the other for {about['seconds']:g} s, and for longer if there "
        f"were fewer than {about['min_waits']}. Number of rounds: {about['wait_rounds']}. A client gives up after "
        f"{about['wait_timeout']} s, which counts as its wait. The column “responses/s” is what the others received. The "
        "loop of tiny-http serves no other client meanwhile, so it is not measured.",
        text["waits"],
        "## Memory, threads, size, start",
        "“With the kernel” adds what the kernel uses for the server's side: sockets and their buffers, descriptors, epoll, "
        "stacks and page tables, from the cgroup of the server. Idle connections have sent one request each, to a server "
        f"that has just started. Number of rounds: {about['memory_rounds']}.",
        table(servers, [("MB resident after start", "idle resident", megabytes),
                        ("with the kernel", "idle memory", megabytes),
                        ("MB resident, 1000 connections", "1000 resident", megabytes),
                        ("with the kernel", "1000 memory", megabytes),
                        ("MB resident, 10,000 connections", "10000 resident", megabytes),
                        ("with the kernel", "10000 memory", megabytes)]),
        table(servers, [("peak MB resident under 64 connections", "peak resident", megabytes),
                        ("threads", "threads", whole),
                        ("MB to install", "size", megabytes),
                        ("ms to the first 200", "start", milliseconds)]),
        "## Limits with default settings",
        "How long a server waits for a client that has sent part of a request head, or a whole request and then nothing; "
        "the longest header field and the most header fields that it accepts.",
        text["limits"],
        "## Requests per second, and 99th percentile of latency in milliseconds, GET /probe",
        "These measure wrk as much as the server: it sends a request only when it has received the response to the "
        "previous one, and it needs about as much CPU time as the fastest servers. “Busy” is the server's CPU time as a "
        "fraction of one core; below 100%, the server was not what limited the rate. Compare p99 only between servers "
        "with similar rates.",
        table(servers, [(f"{heading}{part}", f"{key} {what}", form) for heading, key in loads
                        for part, what, form in [("", "rate", count), (", busy", "busy", percent)]], short),
        table(servers, [(heading, f"{key} p99", milliseconds) for heading, key in loads]),
    ]
    notes = [f"- {server['name']}: {remark}." for server in servers for remark in server["remarks"]]
    notes += [f"- {server['name']}, {load}: " + ", ".join(f"{n} × {kind}" for kind, n in failed.items()) + "."
              for server in servers for load, failed in server["failures"].items()]
    notes += [f"- {server['name']}, a new client while {clients} clients pipeline {request}: it used only {busy:.0%} of a "
              "CPU. Either the clients did not keep it busy or another process was running."
              for server in servers for key, request, clients in about["floods"]
              if (busy := median(server, f"{key} busy")) is not None and busy < 0.8]
    notes += [f"- {key} was skipped: {reason}." for key, reason in results["skipped"].items()]
    if notes:
        parts += ["## Remarks, failures and skipped measurements", "\n".join(notes)]
    parts += ["## Versions", "\n".join(f"- {server['name']}: {server['version']}" + (f", {server['libc']}" if server["libc"] else "")
                                       for server in servers)]
    return "\n\n".join(part for part in parts if part) + "\n"


# --- the picture --------------------------------------------------------------------------------


def svg(servers):
    """Draws three bar charts, one above the other, so that they are legible on a phone. The gray is legible on
    light and dark backgrounds; the image has no background of its own."""
    charts = [("CPU µs per request", "GET /probe, 64 keep-alive connections", "c64 cpu", microseconds),
              ("CPU µs per scrape", "GET /metrics", "metrics cpu", microseconds),
              ("MB of memory", "with 1000 idle connections, the kernel's part included", "1000 memory", megabytes)]
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
    key = server["key"]
    is_ours = key in ("event-loop", "static", "tiny-http")
    name = {"event-loop": "tiny-probe", "tiny-http": "--server tiny-http", "floor": "C, the floor",
            "go-1": "Go, GOMAXPROCS=1"}.get(key, server["name"].split(",")[0])
    name += ", static" if key.endswith("static") else ""
    weight = ' font-weight="600"' if is_ours else ""
    yield f'<text x="{left - 8}" y="{y + row - 5}" text-anchor="end" font-size="12"{weight}>{name}</text>'
    color = "#f0a070" if key == "tiny-http" else "#e8590c" if is_ours else "#76808a"
    opacity = ' fill-opacity="0.45"' if key == "floor" else ""
    length = max(1.5, bar * min(1, share))
    end = length - 22 if share > 1 else length
    yield f'<rect x="{left}" y="{y + 4}" width="{end:.1f}" height="{row - 8}" rx="2" fill="{color}"{opacity}/>'
    if share > 1:  # two separate pieces at the end of the bar show the cut
        for start in (length - 17, length - 6):
            yield f'<rect x="{left + start:.1f}" y="{y + 4}" width="6" height="{row - 8}" fill="{color}"/>'
    yield f'<text x="{left + length + 6:.1f}" y="{y + row - 5}" font-size="12">{label}</text>'


# --- files --------------------------------------------------------------------------------------


def files(folder, root):
    """Returns what each file should contain, and complaints. Without a root, only results.md."""
    results = json.loads((folder / "results.json").read_text())
    expected, complaints = {folder / "results.md": markdown(results)}, []
    if root is None:
        return expected, complaints
    expected[root / "docs" / "bench.svg"] = svg(results["servers"])
    tables = blocks(results)
    for name, needed in DOCUMENTS.items():
        document = root / name
        text = document.read_text() if document.exists() else ""
        found = [match[1] for match in MARKED.finditer(text)]
        complaints += [f"{name}: expected a line `<!-- bench: {table} -->`, and `<!-- bench: end -->` after it"
                       for table in needed if table not in found]
        complaints += [f"{name}: there is no table {table!r}; choose from {', '.join(tables)}"
                       for table in found if table not in tables]
        if text:
            expected[document] = MARKED.sub(lambda match: f"{match[1]}{match[2]}{tables[match[1]]}\n"
                                            if match[1] in tables else match[0], text)
    return expected, complaints


def write(folder, root):
    """Writes the tables. Returns the files that it has written."""
    expected, complaints = files(folder, root)
    for complaint in complaints:
        print(f"report: {complaint}", file=sys.stderr)
    for file, text in expected.items():
        file.write_text(text)
    return list(expected)


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(__doc__)
    if not (BENCH / "results.json").exists():
        sys.exit("report: bench/results.json is missing; `make bench` measures it")
    if not sys.argv[1:]:
        write(BENCH, ROOT)
        return
    expected, complaints = files(BENCH, ROOT)
    complaints += [f"{file.relative_to(ROOT)} differs from bench/results.json; run bench/report.py"
                   for file, text in expected.items() if not file.exists() or file.read_text() != text]
    if complaints:
        sys.exit("\n".join(f"report: {complaint}" for complaint in complaints))


if __name__ == "__main__":
    main()
