#!/usr/bin/env python3
"""Checks that ordinary clients lose no request at the connection limit and when the service stops.

Usage: scripts/check-clients.py      (PROGRAM is the binary; default: target/release/tiny-probe)

The clients are wrk, Node's http.Agent and fetch, Python's http.client, and requests if it is installed.
In the first checks, each client opens more connections than the service allows. In the others, the service
stops while each client sends requests on 20 connections every few milliseconds. A refused connection does
not count as a lost request. Prints a line per check and exits 1 if one fails.
"""

import collections
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

try:
    import requests
except ImportError:
    requests = None

PROGRAM = os.environ.get("PROGRAM", "target/release/tiny-probe")
# In seconds, for everything that has no time limit of its own.
TIMEOUT = 30
WRK_SECONDS = 3
REQUESTS = 2000
LIMIT = 8
STOPS = 5
STOP_CONNECTIONS = 20
# In seconds, between two requests on a connection while the service is being stopped.
PAUSE = 0.02

# Arguments: the kind of client, the URL, the number of connections, the total number of requests, and the
# pause between requests. With 0 requests it continues until the service stops: a worker ends after a
# failed request, or one request after a response with `Connection: close`.
NODE = r"""
const http = require("node:http");
const [kind, url, connections, total, pause] = process.argv.slice(1);
const agent = new http.Agent({ keepAlive: true, maxSockets: Number(connections) });
const ask = {
    agent: () => new Promise((resolve, reject) => {
        http.get(url, { agent }, (response) => {
            response.on("error", reject);
            response.on("end", () => resolve([response.statusCode, response.headers.connection]));
            response.resume();
        }).on("error", reject);
    }),
    fetch: async () => {
        const response = await fetch(url);
        await response.text();
        return [response.status, response.headers.get("connection")];
    },
}[kind];
const until_stop = Number(total) === 0;
const outcomes = {};
let left = Number(total);
async function work() {
    for (let is_last = false; until_stop || left-- > 0;) {
        let outcome, connection;
        try {
            [outcome, connection] = await ask();
        } catch (error) {
            outcome = error.cause?.code ?? error.code ?? error.message;
        }
        outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
        if (until_stop) {
            if (is_last || outcome !== 200) return;
            is_last = connection === "close";
            await new Promise((resolve) => setTimeout(resolve, 1000 * pause));
        }
    }
}
Promise.all(Array.from({ length: Number(connections) }, work)).then(() => {
    console.log(JSON.stringify(outcomes));
    process.exit(0);
});
"""


class CheckFailed(Exception):
    """A check failed; the message says what was observed."""


class Service:
    """A service that runs with the given flags."""

    def __init__(self, *flags):
        self.log = tempfile.TemporaryFile("w+")
        command = [PROGRAM, "--listen", "127.0.0.1:0", *flags]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=self.log)
        end = time.monotonic() + TIMEOUT
        while not (start_line := re.search(r" on http://(\S+)\n", self.read_log())):
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise CheckFailed(f"{PROGRAM} did not start within {TIMEOUT} seconds: {self.read_log()}")
            time.sleep(0.02)
        self.address = start_line[1]
        self.url = f"http://{self.address}/probe"

    def read_log(self):
        self.log.seek(0)
        return self.log.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)

    def wait_for_exit(self):
        try:
            code = self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise CheckFailed(f"the service did not end within {TIMEOUT} seconds of SIGTERM") from None
        if code != 0:
            raise CheckFailed(f"the service ended with exit code {code}")


def run(command):
    """Runs a client and returns its output."""
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
                              timeout=TIMEOUT).stdout
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"{command[0]} did not end within {TIMEOUT} seconds") from None
    except subprocess.CalledProcessError as error:
        raise CheckFailed(f"{command[0]}: {error.stderr}") from None


class HealthChecks(threading.Thread):
    """Requests /healthz repeatedly, on a new connection each time."""

    def __init__(self, address):
        super().__init__()
        self.address = address
        self.is_over = threading.Event()
        self.times = []
        self.failures = []

    def run(self):
        while not self.is_over.wait(0.02):
            started = time.monotonic()
            client = http.client.HTTPConnection(self.address, timeout=TIMEOUT)
            try:
                client.request("GET", "/healthz")
                status = client.getresponse().status
                if status != 200:
                    self.failures.append(f"status {status}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(type(error).__name__)
            finally:
                client.close()
            self.times.append(time.monotonic() - started)

    def result(self):
        self.is_over.set()
        self.join(2 * TIMEOUT)
        times = sorted(self.times)
        if self.failures:
            raise CheckFailed(f"{len(self.failures)} of {len(times)} requests to /healthz failed: {self.failures[0]}")
        # Not the slowest one: other processes can keep the machine busy for a moment.
        p90 = times[len(times) * 9 // 10]
        if p90 > 0.3:
            raise CheckFailed(f"the 90th percentile of /healthz was {p90:.3f} s, expected at most 0.3 s; the "
                              f"slowest request took {times[-1]:.3f} s")
        return f"{len(times)} requests to /healthz, the slowest took {1000 * times[-1]:.0f} ms"


def wrk(service, connections):
    """Returns the requests per second and the errors that wrk reports."""
    output = run(["wrk", "--threads", "2", "--connections", str(connections), "--duration", f"{WRK_SECONDS}s",
                   service.url])
    errors = re.findall(r"Socket errors: .*|Non-2xx .*", output)
    return float(re.search(r"Requests/sec: +(\S+)", output)[1]), errors


def check_wrk():
    with Service("--max-connections", "200") as service:
        at_limit, errors = wrk(service, 200)
        if errors:
            raise CheckFailed(f"wrk with 200 connections: {'; '.join(errors)}")
        checks = HealthChecks(service.address)
        checks.start()
        try:
            above, errors = wrk(service, 400)
        finally:
            checks.is_over.set()
        summary = (f"wrk, limit 200: {at_limit:.0f} requests per second with 200 connections, "
                   f"{above:.0f} with 400")
        if errors:
            raise CheckFailed(f"{summary}; {'; '.join(errors)}")
        if above < at_limit * 2 / 3:
            raise CheckFailed(f"{summary}, which is less than two thirds")
        ok(f"{summary}, no errors")
        ok(f"during this, {checks.result()}")


def node(kind):
    def drive(service, connections, total):
        output = run(["node", "-e", NODE, kind, service.url, str(connections), str(total), str(PAUSE)])
        if not output:
            raise CheckFailed(f"Node ({kind}) ended while requests were pending")
        return collections.Counter(json.loads(output))

    return drive


def in_threads(connect):
    """Drives a client with one thread per connection. `connect` returns a function for each connection that
    sends a request and returns the status and the Connection field of the response."""

    def drive(service, connections, total):
        outcomes, lock = collections.Counter(), threading.Lock()
        senders = connect(service, connections)

        def work(send):
            is_last = False
            for _ in iter(int, 1) if total == 0 else range(total // connections):
                connection = None
                try:
                    status, connection = send()
                    outcome = str(status)
                except Exception as error:  # Each library has exceptions of its own.
                    outcome = "ECONNREFUSED" if "refused" in str(error) else type(error).__name__
                with lock:
                    outcomes[outcome] += 1
                if total == 0:
                    if is_last or outcome != "200":
                        return
                    is_last = connection == "close"
                    time.sleep(PAUSE)

        threads = [threading.Thread(target=work, args=[send], daemon=True) for send in senders]
        for thread in threads:
            thread.start()
        end = time.monotonic() + TIMEOUT
        for thread in threads:
            thread.join(max(0, end - time.monotonic()))
            if thread.is_alive():
                raise CheckFailed(f"the client did not end within {TIMEOUT} seconds; so far: {dict(outcomes)}")
        return outcomes

    return drive


def connect_http_client(service, connections):
    def send(client):
        try:
            client.request("GET", "/probe")
            response = client.getresponse()
            response.read()
            return response.status, response.getheader("Connection")
        except Exception:
            client.close()
            raise

    clients = [http.client.HTTPConnection(service.address, timeout=TIMEOUT) for _ in range(connections)]
    return [lambda client=client: send(client) for client in clients]


def connect_requests(service, connections):
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=connections))

    def send():
        response = session.get(service.url, timeout=TIMEOUT)
        return response.status_code, response.headers.get("Connection")

    return [send] * connections


def check_limit(name, drive, connections):
    """Opens more connections than the service allows."""
    with Service("--max-connections", str(LIMIT)) as service:
        started = time.monotonic()
        outcomes = drive(service, connections, REQUESTS)
        took = time.monotonic() - started
    what = f"{name}, {connections} connections, limit {LIMIT}"
    if outcomes["200"] != REQUESTS:
        raise CheckFailed(f"{what}: not all of {REQUESTS} requests got status 200: {dict(outcomes)}")
    ok(f"{what}: {REQUESTS} responses in {took:.1f} s")


def check_stop(name, drive):
    """Stops the service while requests are on their way."""
    total = collections.Counter()
    for number in range(STOPS):
        with Service() as service:
            # Late enough for the client to have started, each time at a different moment of its pauses.
            timer = threading.Timer(1 + 0.003 * number, service.stop)
            timer.start()
            try:
                total += drive(service, STOP_CONNECTIONS, 0)
            finally:
                timer.cancel()
            service.wait_for_exit()
    responses, refused = total.pop("200", 0), total.pop("ECONNREFUSED", 0)
    what = (f"{name}, {STOPS} stops with {STOP_CONNECTIONS} connections: {responses} responses, "
            f"{refused} refused connections")
    if total:
        raise CheckFailed(f"{what}, {total.total()} lost requests: {dict(total)}")
    ok(f"{what}, no lost requests")


def ok(what):
    print(f"ok      {what}", flush=True)


def main():
    clients = [
        ("Node's http.Agent", node("agent"), 50),
        ("Node's fetch", node("fetch"), 50),
        # Only 20: Python runs one thread at a time, and the service closes the connection of a thread that
        # waits too long as idle.
        ("Python's http.client", in_threads(connect_http_client), 20),
    ]
    if requests:
        clients.append(("Python's requests", in_threads(connect_requests), 20))
    checks = [check_wrk]
    checks += [lambda client=client: check_limit(*client) for client in clients]
    checks += [lambda client=client: check_stop(*client[:2]) for client in clients]
    has_failed = False
    for check in checks:
        try:
            check()
        except (CheckFailed, OSError) as what:
            has_failed = True
            print(f"FAILED  {what or type(what).__name__}", file=sys.stderr, flush=True)
    if not requests:
        print("skipped Python's requests: it is not installed")
    sys.exit(has_failed)


main()
