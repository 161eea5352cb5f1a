#!/usr/bin/env python3
"""Checks that ordinary clients lose no request, at the connection limit and when the service stops.

Usage: scripts/check-clients.py      (PROGRAM is another binary than target/release/tiny-probe)

The clients are wrk, Node's http.Agent and fetch, Python's http.client, and requests where it is installed.
At the limit each of them has more connections than the service allows. At a stop each keeps 20
connections and has a request on its way every few milliseconds; only a refused connection is no loss.
Prints a line per check; exits 1 if one fails.
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
# The most that anything here is waited for, in seconds, unless a call says otherwise.
TIMEOUT = 30
WRK_SECONDS = 3
REQUESTS = 2000
LIMIT = 8
STOPS = 5
STOP_CONNECTIONS = 20
# Between two requests on a connection that a stop interrupts, in seconds.
PAUSE = 0.02

# Arguments: the kind of client, the URL, how many connections, how many requests in all; 0 is until the
# service stops. It has stopped for a worker that was told `Connection: close` and sent one request more.
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


class Wrong(Exception):
    """What was seen and should not have been."""


class Service:
    """A running service with these flags."""

    def __init__(self, *flags):
        self.log = tempfile.TemporaryFile("w+")
        command = [PROGRAM, "--listen", "127.0.0.1:0", *flags]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=self.log)
        end = time.monotonic() + TIMEOUT
        while not (said := re.search(r" on http://(\S+)\n", self.read_log())):
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise Wrong(f"{PROGRAM} does not start within {TIMEOUT} seconds: {self.read_log()}")
            time.sleep(0.02)
        self.address = said[1]
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

    def ended(self):
        try:
            code = self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise Wrong(f"the service does not end within {TIMEOUT} seconds of SIGTERM") from None
        if code != 0:
            raise Wrong(f"the service ended with exit code {code}")


def run(command):
    """Runs a client, and returns what it prints."""
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
                              timeout=TIMEOUT).stdout
    except subprocess.TimeoutExpired:
        raise Wrong(f"{command[0]} is not done within {TIMEOUT} seconds") from None
    except subprocess.CalledProcessError as error:
        raise Wrong(f"{command[0]}: {error.stderr}") from None


class HealthChecks(threading.Thread):
    """Asks /healthz again and again, over a new connection each time."""

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
            raise Wrong(f"{len(self.failures)} of {len(times)} requests to /healthz failed: {self.failures[0]}")
        # The machine may be busy with something else for a moment.
        usual = times[len(times) * 9 // 10]
        if usual > 0.3:
            raise Wrong(f"/healthz: 9 of 10 requests took up to {usual:.3f} s, 0.3 s allowed; the slowest "
                        f"{times[-1]:.3f} s")
        return f"{len(times)} requests to /healthz, the slowest took {1000 * times[-1]:.0f} ms"


def wrk(service, connections):
    """Returns requests per second, and what went wrong."""
    printed = run(["wrk", "--threads", "2", "--connections", str(connections), "--duration", f"{WRK_SECONDS}s",
                   service.url])
    troubles = re.findall(r"Socket errors: .*|Non-2xx .*", printed)
    return float(re.search(r"Requests/sec: +(\S+)", printed)[1]), troubles


def check_wrk():
    with Service("--max-connections", "200") as service:
        at_limit, troubles = wrk(service, 200)
        if troubles:
            raise Wrong(f"wrk with 200 connections: {'; '.join(troubles)}")
        checks = HealthChecks(service.address)
        checks.start()
        try:
            above, troubles = wrk(service, 400)
        finally:
            checks.is_over.set()
        summary = (f"wrk, 200 connections allowed: {at_limit:.0f} requests per second with 200 connections, "
                   f"{above:.0f} with 400")
        if troubles:
            raise Wrong(f"{summary}; {'; '.join(troubles)}")
        if above < at_limit * 2 / 3:
            raise Wrong(f"{summary}: less than two thirds")
        ok(f"{summary}, no error")
        ok(f"meanwhile {checks.result()}")


def node(kind):
    def drive(service, connections, total):
        printed = run(["node", "-e", NODE, kind, service.url, str(connections), str(total), str(PAUSE)])
        if not printed:
            raise Wrong(f"Node ({kind}) ended with requests that neither succeeded nor failed")
        return collections.Counter(json.loads(printed))

    return drive


def in_threads(connect):
    """Drives a client with a thread for each connection. `connect` returns a function that sends a request
    and returns the status and the Connection field."""

    def drive(service, connections, total):
        outcomes, lock = collections.Counter(), threading.Lock()
        asks = connect(service, connections)

        def work(ask):
            is_last = False
            for _ in iter(int, 1) if total == 0 else range(total // connections):
                connection = None
                try:
                    status, connection = ask()
                    outcome = str(status)
                except Exception as error:  # each library has its own
                    outcome = "ECONNREFUSED" if "refused" in str(error) else type(error).__name__
                with lock:
                    outcomes[outcome] += 1
                if total == 0:
                    if is_last or outcome != "200":
                        return
                    is_last = connection == "close"
                    time.sleep(PAUSE)

        threads = [threading.Thread(target=work, args=[ask], daemon=True) for ask in asks]
        for thread in threads:
            thread.start()
        end = time.monotonic() + TIMEOUT
        for thread in threads:
            thread.join(max(0, end - time.monotonic()))
            if thread.is_alive():
                raise Wrong(f"not done within {TIMEOUT} seconds, after {dict(outcomes)}")
        return outcomes

    return drive


def connect_http_client(service, connections):
    def ask(client):
        try:
            client.request("GET", "/probe")
            response = client.getresponse()
            response.read()
            return response.status, response.getheader("Connection")
        except Exception:
            client.close()
            raise

    clients = [http.client.HTTPConnection(service.address, timeout=TIMEOUT) for _ in range(connections)]
    return [lambda client=client: ask(client) for client in clients]


def connect_requests(service, connections):
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=connections))

    def ask():
        response = session.get(service.url, timeout=TIMEOUT)
        return response.status_code, response.headers.get("Connection")

    return [ask] * connections


def check_limit(name, drive, connections):
    """More connections than the service allows."""
    with Service("--max-connections", str(LIMIT)) as service:
        started = time.monotonic()
        outcomes = drive(service, connections, REQUESTS)
        took = time.monotonic() - started
    what = f"{name}, {connections} connections, {LIMIT} allowed"
    if outcomes["200"] != REQUESTS:
        raise Wrong(f"{what}: {REQUESTS} requests ended as {dict(outcomes)}")
    ok(f"{what}: {REQUESTS} responses in {took:.1f} s")


def check_stop(name, drive):
    """A stop while requests are on their way."""
    total = collections.Counter()
    for number in range(STOPS):
        with Service() as service:
            # Past the start of the client, at different moments of its pauses.
            timer = threading.Timer(1 + 0.003 * number, service.stop)
            timer.start()
            try:
                total += drive(service, STOP_CONNECTIONS, 0)
            finally:
                timer.cancel()
            service.ended()
    answered, refused = total.pop("200", 0), total.pop("ECONNREFUSED", 0)
    what = f"{name}, {STOPS} stops with {STOP_CONNECTIONS} connections: {answered} responses, {refused} refused"
    if total:
        raise Wrong(f"{what}, {total.total()} requests lost: {dict(total)}")
    ok(f"{what}, none lost")


def ok(what):
    print(f"ok      {what}", flush=True)


def main():
    clients = [
        ("Node's http.Agent", node("agent"), 50),
        ("Node's fetch", node("fetch"), 50),
        # Python's threads take turns, and one that waits for its turn for too long counts as idle.
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
        except (Wrong, OSError) as what:
            has_failed = True
            print(f"FAILED  {what or type(what).__name__}", file=sys.stderr, flush=True)
    if not requests:
        print("skipped Python's requests: not installed")
    sys.exit(has_failed)


main()
