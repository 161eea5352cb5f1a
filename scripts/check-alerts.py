#!/usr/bin/env python3
"""Runs the catalogue in docs/alerts.md: every alert becomes pending, fires and resolves.

Usage: scripts/check-alerts.py [KIND...]     (headings of the catalogue, such as "Retries"; default: all)
       scripts/check-alerts.py --rules       prints the alerts as a rule file for Prometheus
JOBS is how many runs there are at the same time (default 12).

Everything comes from the document: the programs that must run ("Start"), the command ("Fire"), the alerts in
PromQL ("Alert"), and, if they do not resolve by themselves, the command that resolves them ("Resolve"). Each
"Fire" is a run. It has a network of its own, so that all ports are those of the document, and a Prometheus with
deploy/alerts/prometheus.yml and the alerts of this run. The check passes if they are inactive while
all programs run, become pending and fire after the command, and then resolve.

Needs the programs that the document names, Linux, and root or user namespaces. Prints a line per run and exits 1
if one has failed.
"""

import collections
import concurrent.futures
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DOCUMENT = "docs/alerts.md"
CONFIGURATION = "deploy/alerts/prometheus.yml"
CATALOGUE = "\n## The catalogue\n"
KINDS = 40
JOBS = int(os.environ.get("JOBS", "12"))
PROMETHEUS = "http://localhost:9090"
# The time in Prometheus between pending and firing.
FOR = "2s"
# How long the alerts must be inactive before the command, in seconds: every window of the alerts then begins
# with some time without a fault.
CALM = 10
# The longest times that the check waits: for this calm, for all alerts to fire, and for all to resolve, in
# seconds. Most faults end after 30 seconds, and the longest windows are two minutes.
CALM_LIMIT, FIRE_LIMIT, RESOLVE_LIMIT = 120, 60, 180
STOP_LIMIT = 5
RUN_LIMIT = CALM_LIMIT + FIRE_LIMIT + RESOLVE_LIMIT + 60
POLL_INTERVAL = 0.5
REQUEST_TIMEOUT = 10
# The programs that "Start" can name, and the scrape job that is up while they run.
SCRAPE_JOBS = {
    "tiny-probe": "tiny-probe",
    "haproxy": "haproxy",
    "prometheus-blackbox-exporter": "blackbox",
    "prometheus-node-exporter": "node",
    "mtail": "mtail",
}
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

# The `unshare` of each run. Without it, the kernel ends all processes of the run.
running = set()

# A kind with several commands has several runs, each with a name of its own.
Run = collections.namedtuple("Run", ["kind", "name", "start", "fire", "alerts", "resolve"])


class CheckFailed(Exception):
    """A check failed; the message says what was observed or waited for."""


def read_catalogue():
    """Returns the runs that the document describes, in their order."""
    with open(DOCUMENT) as file:
        catalogue = file.read().partition(CATALOGUE)[2]
    introduction, *sections = re.split(r"(?m)^### ", catalogue)
    sections = [section.partition("\n")[::2] for section in sections]
    check_table(introduction, [kind for kind, _ in sections])
    default = [lines for word, lines in blocks(introduction) if word == "Start"][0]
    runs = []
    for kind, text in sections:
        start, of_kind = default, []
        for word, lines in blocks(text):
            if word == "Start":
                start = lines
            elif word == "Fire":
                name = f"{kind}, {len(of_kind) + 1}" if of_kind else kind
                of_kind.append(Run(kind, name, start, "\n".join(lines), [], []))
            elif word == "Alert" and of_kind:
                of_kind[-1].alerts.append("\n".join(lines))
            elif word == "Resolve" and of_kind:
                of_kind[-1].resolve.extend(lines)
            else:
                raise CheckFailed(f"{DOCUMENT}, {kind}: unexpected block after \"{word}\": {lines[0]}")
        if not of_kind or not all(run.alerts for run in of_kind):
            raise CheckFailed(f"{DOCUMENT}, {kind}: expected a command after \"Fire\", then an alert after \"Alert\"")
        runs += of_kind
    return runs


def check_table(introduction, sections):
    """Checks that the table has all kinds, and that those with a link are the sections."""
    rows = re.findall(r"(?m)^\| *(\d+) \| (?:\[([^]]*)\]\((#[^)]*)\))?", introduction)
    if [int(number) for number, _, _ in rows] != list(range(1, KINDS + 1)):
        raise CheckFailed(f"{DOCUMENT}: the table has {len(rows)} numbered rows, expected 1 to {KINDS}")
    expected = [(kind, "#" + re.sub(r"[^a-z0-9 -]", "", kind.lower()).replace(" ", "-")) for kind in sections]
    linked = [(kind, anchor) for _, kind, anchor in rows if kind]
    if linked != expected:
        difference = set(linked) ^ set(expected)
        raise CheckFailed(f"{DOCUMENT}: the links of the table and the sections are not the same: {difference}")


def blocks(text):
    """Yields each indented block of a text, with the first word of the paragraph before it."""
    word = ""
    for paragraph in re.split(r"\n{2,}", text.strip("\n")):
        lines = paragraph.split("\n")
        if all(line.startswith("    ") for line in lines):
            yield word, [line[4:] for line in lines]
        else:
            word = re.match(r"\w*", paragraph)[0]
            if paragraph.startswith("Start nothing"):
                yield word, []


def alert_names(run):
    name = "".join(word.capitalize() for word in re.findall(r"\w+", run.name))
    return [f"{name}{letter}" for letter in "ABCDEF"[:len(run.alerts)]] if len(run.alerts) > 1 else [name]


def rules(runs):
    """The alerts as a rule file. JSON is YAML."""
    alerts = [{"alert": name, "expr": expression, "for": FOR}
              for run in runs for name, expression in zip(alert_names(run), run.alerts)]
    return json.dumps({"groups": [{"name": "catalogue", "rules": alerts}]}, indent=2)


class Bench:
    """The programs of one run, in a network of their own."""

    def __init__(self, folder, run):
        self.folder = folder
        self.run = run
        self.processes = []

    def start(self, command):
        """Runs a command of the document in a shell, as it is written."""
        path = f"{self.folder}/{len(self.processes)}.log"
        with open(path, "wb") as log:
            process = subprocess.Popen(["bash", "-c", command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append((command, process, path))

    def start_prometheus(self):
        with open(f"{self.folder}/rules.yml", "w") as file:
            file.write(rules([self.run]))
        with open(CONFIGURATION) as file:
            configuration, replaced = re.subn(r"(?m)^  - .*/rules.yml$", f"  - {self.folder}/rules.yml", file.read())
        if replaced != 1:
            raise CheckFailed(f"{CONFIGURATION} does not name rules.yml")
        with open(f"{self.folder}/prometheus.yml", "w") as file:
            file.write(configuration)
        self.start(f"exec prometheus --config.file={self.folder}/prometheus.yml "
                   f"--storage.tsdb.path={self.folder}/data")

    def states(self):
        """Returns the state of each alert of the run; None before its first evaluation."""
        groups = get("/api/v1/rules")["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        for rule in found:
            if rule["health"] == "err":
                raise CheckFailed(f"Prometheus cannot evaluate {rule['name']}: {rule['lastError']}")
        return [rule["state"] if rule["health"] == "ok" else None for rule in found] or [None]

    def down(self):
        """Returns the scrape jobs that are not up, of those that the programs of the run have."""
        jobs = set()
        for command in self.run.start:
            if ":8081" in command:
                jobs.add("second")
            else:
                jobs |= {job for program, job in SCRAPE_JOBS.items() if re.search(rf"(^|[/ ]){program}( |$)", command)}
        up = {sample["metric"]["job"] for sample in query("min by (job) (up) == 1")}
        return jobs - up

    def wait(self, limit, what, condition):
        """Waits until the condition, a function that says what is missing, returns nothing."""
        end = time.monotonic() + limit
        while True:
            try:
                missing = condition()
            except (OSError, KeyError, ValueError) as error:
                missing = f"Prometheus does not respond: {error}"
            if not missing:
                return
            if time.monotonic() > end:
                raise CheckFailed(f"waited {limit} s for {what}: {missing}")
            time.sleep(POLL_INTERVAL)

    def calm(self):
        inactive_since = None

        def condition():
            nonlocal inactive_since
            for command, process, _ in self.processes:
                if process.poll():
                    raise CheckFailed(f"\"{command}\" ended with exit code {process.returncode}")
            states, down, now = self.states(), self.down(), time.monotonic()
            if down or set(states) != {"inactive"}:
                inactive_since = None
                return f"the alerts are {states}" + (f", these targets are not up: {down}" if down else "")
            inactive_since = inactive_since or now
            return "" if now >= inactive_since + CALM else f"only since {now - inactive_since:.0f} s"

        self.wait(CALM_LIMIT, f"the alerts to be inactive for {CALM} s", condition)

    def until(self, limit, what, done):
        def condition():
            states = self.states()
            return "" if all(map(done, states)) else f"the alerts are {states}"

        before = time.monotonic()
        self.wait(limit, what, condition)
        return time.monotonic() - before

    def check(self):
        self.start_prometheus()
        for command in self.run.start:
            self.start(command)
        self.calm()
        self.start(self.run.fire)
        fired = set()

        def condition():
            fired.update(number for number, state in enumerate(self.states()) if state == "firing")
            missing = [name for number, name in enumerate(alert_names(self.run)) if number not in fired]
            return f"{missing} did not, and now the alerts are {self.states()}" if missing else ""

        before = time.monotonic()
        self.wait(FIRE_LIMIT, "all alerts to fire", condition)
        to_fire = time.monotonic() - before
        for command in self.run.resolve:
            self.start(command)
        to_resolve = self.until(RESOLVE_LIMIT, "all alerts to resolve", lambda state: state == "inactive")
        for name in alert_names(self.run):
            if not query(f'present_over_time(ALERTS{{alertname="{name}", alertstate="pending"}}[10m])'):
                raise CheckFailed(f"{name} was never pending")
        return f"fired after {to_fire:.0f} s, resolved {to_resolve:.0f} s later"

    def stop(self):
        """Lets the programs clean up. Those that still run after STOP_LIMIT are killed with the namespace."""
        for _, process, _ in self.processes:
            process.terminate()
        end = time.monotonic() + STOP_LIMIT
        while time.monotonic() < end and any(process.poll() is None for _, process, _ in self.processes):
            time.sleep(0.1)

    def report(self):
        """Returns the state and the last lines of each program, to be printed with a failure."""
        lines = []
        try:
            up = {sample["metric"]["job"]: sample["value"][1] for sample in query("min by (job) (up)")}
            lines.append(f"        up: {up}")
        except (OSError, KeyError, ValueError) as error:
            lines.append(f"        Prometheus does not respond: {error}")
        for command, process, path in self.processes:
            code = process.poll()
            state = "runs" if code is None else f"ended with exit code {code}"
            lines.append(f"        {command}: {state}")
            with open(path, errors="replace") as log:
                last = [line.rstrip()[:200] for line in log if line.strip()][-4:]
            lines += [f"            {line}" for line in last]
        return "\n".join(lines)


def get(path, **parameters):
    url = f"{PROMETHEUS}{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=REQUEST_TIMEOUT) as response:
        return json.load(response)["data"]


def query(expression):
    return get("/api/v1/query", query=expression)["result"]


def set_up_loopback():
    with socket.socket() as any_socket:
        name = b"lo".ljust(16, b"\0")
        request = fcntl.ioctl(any_socket, SIOCGIFFLAGS, name + bytes(24))
        flags = struct.unpack_from("H", request, 16)[0] | IFF_UP
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, name + struct.pack("H", flags) + bytes(22))


def inside(folder, run):
    """Does a run in the namespaces that `start_run` has made. When it ends, the kernel ends all its processes."""
    set_up_loopback()
    bench = Bench(folder, run)
    try:
        print(f"ok      {run.name}: {bench.check()}", flush=True)
    except CheckFailed as failure:
        print(f"FAILED  {run.name}: {failure}\n{bench.report()}", flush=True)
        sys.exit(1)
    finally:
        bench.stop()


def do_run(number, run, folder):
    """Does a run in namespaces of its own. Returns whether it passed, or None if it cannot be done here."""
    if os.getuid() != 0 and any("MEMORY=" in command for command in run.start):
        print(f"skipped {run.name}: needs root, for a cgroup", flush=True)
        return None
    os.mkdir(folder)
    # Root keeps its rights, which a limit on memory needs.
    user = [] if os.getuid() == 0 else ["--map-root-user"]
    command = ["unshare", *user, "--net", "--pid", "--fork", "--kill-child",
               sys.executable, __file__, "--inside", str(number), folder]
    # Ctrl-C reaches only this process, which then ends the runs.
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, start_new_session=True)
    running.add(process)
    try:
        output, _ = process.communicate(timeout=RUN_LIMIT)
    except subprocess.TimeoutExpired:
        output = f"FAILED  {run.name}: it did not end within {RUN_LIMIT} s\n"
    finally:
        process.kill()
        process.wait()
        running.remove(process)
        shutil.rmtree(folder, ignore_errors=True)
    print(output or f"FAILED  {run.name}: no output, exit code {process.returncode}\n", end="", flush=True)
    return process.returncode == 0


def main():
    os.chdir(ROOT)
    # Debian installs haproxy there, and it is not in every user's PATH.
    os.environ["PATH"] += ":/usr/sbin"
    runs = read_catalogue()
    arguments = sys.argv[1:]
    if arguments == ["--rules"]:
        print(rules(runs))
        return
    if arguments[:1] == ["--inside"]:
        inside(arguments[2], runs[int(arguments[1])])
        return
    unknown = set(arguments) - {run.kind for run in runs}
    if unknown:
        raise CheckFailed(f"{DOCUMENT} has no kind {unknown}")
    chosen = [(number, run) for number, run in enumerate(runs) if not arguments or run.kind in arguments]
    programs = {"prometheus", "unshare", "curl"}
    programs |= {program for program in SCRAPE_JOBS for _, run in chosen for command in run.start
                 if re.search(rf"(^| ){program} ", command)}
    missing = sorted(program for program in programs if not shutil.which(program))
    if missing:
        raise CheckFailed(f"these programs are missing: {', '.join(missing)}; on Debian, install the packages "
                          "curl, haproxy, mtail, prometheus, prometheus-blackbox-exporter, prometheus-node-exporter")
    before = time.monotonic()
    for stop in [signal.SIGINT, signal.SIGTERM]:
        signal.signal(stop, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(JOBS) as executor:
        try:
            passed = list(executor.map(lambda each: do_run(*each, f"{folder}/{each[0]}"), chosen))
        finally:
            # After Ctrl-C or SIGTERM.
            executor.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.kill()
    kinds = {run.kind for _, run in chosen}
    incomplete = {run.kind for (_, run), has_passed in zip(chosen, passed) if not has_passed}
    print(f"{len(kinds - incomplete)} of {len(kinds)} kinds fired and resolved, in {time.monotonic() - before:.0f} s")
    sys.exit(False in passed)


if __name__ == "__main__":
    try:
        main()
    except CheckFailed as failure:
        sys.exit(f"FAILED  {failure}")
