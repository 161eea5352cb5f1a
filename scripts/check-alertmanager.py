#!/usr/bin/env python3
"""Checks that alerts reach a webhook by way of Prometheus and Alertmanager, and so do their resolutions.

Usage: FAULT_INJECTION=all scripts/with-service.sh scripts/check-alertmanager.py

Runs Prometheus with deploy/prometheus and Alertmanager with deploy/alertmanager. /probe and /healthz fail for
half a minute, and /probe is slow. The page must be one message about both endpoints, and the ticket one about
/probe. After that, both must be resolved by messages of their own. In between, a firing critical alert must
suppress the warning of the same name.
Two things differ from deploy/alertmanager: the addresses of the receivers, and the times, so that a message
follows its alert within seconds.
Needs Prometheus and Alertmanager on the PATH. Takes two minutes. Prints a line per check and exits 1 at the first
that fails.
"""

import contextlib
import http.server
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

BASE_URL = os.environ["BASE_URL"]
DEPLOY = pathlib.Path("deploy/alertmanager")
# In seconds.
FAULT = 30
TIMEOUT = 10
# A rate falls to 0 a minute after the fault has ended; the rest is for a busy machine.
FIRES_WITHIN = 90
RESOLVES_WITHIN = FAULT + 60 + 60


class CheckFailed(Exception):
    """A check failed; the message says what was expected and what was found."""


class Webhook(http.server.ThreadingHTTPServer):
    """Keeps the notifications that Alertmanager posts, in their order."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Notification)
        self.changed = threading.Condition()
        self.received = []

    def wait_for(self, what, within, receiver, name, holds):
        """Waits until the messages for this receiver about this alert are as expected, and returns them; fails
        when the time is over."""
        def chosen():
            return [one for one in self.received if one["receiver"] == receiver and names(one) == [name]]

        with self.changed:
            if not self.changed.wait_for(lambda: holds(chosen()), within):
                heard = [(one["receiver"], one["status"], names(one), endpoints(one)) for one in self.received]
                raise CheckFailed(f"{what}: not within {within} s; received: {heard}")
            print(f"ok      {what}", flush=True)
            return chosen()


class Notification(http.server.BaseHTTPRequestHandler):
    """A POST of Alertmanager."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        message = json.loads(body) | {"path": self.path, "body": body}
        self.send_response(200)
        self.end_headers()
        with self.server.changed:
            self.server.received.append(message)
            self.server.changed.notify_all()

    def log_message(self, *_):
        """Prints nothing: BaseHTTPRequestHandler would print each request."""


def names(message):
    return sorted({alert["labels"]["alertname"] for alert in message["alerts"]})


def endpoints(message, status=None):
    """The endpoints of its alerts, or of those that have this status."""
    return {alert["labels"].get("endpoint") for alert in message["alerts"] if status in (None, alert["status"])}


def ask(url, method="GET", body=None):
    request = urllib.request.Request(url, method=method, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        return response.read()


def stop(process, what):
    process.terminate()
    try:
        process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        print(f"timed out: {what} did not end within {TIMEOUT} s of SIGTERM and was killed", file=sys.stderr)


@contextlib.contextmanager
def alertmanager(folder, webhook):
    """Runs Alertmanager; its value is the address."""
    config = (DEPLOY / "alertmanager.yml").read_text()
    config = config.replace("//webhook:9095/", f"//127.0.0.1:{webhook.server_port}/")
    config = re.sub("group_wait: .*", "group_wait: 3s", config)
    config = re.sub("group_interval: .*", "group_interval: 5s", config)
    (folder / "alertmanager.yml").write_text(config)
    log = folder / "alertmanager.log"
    # Debian's name of the program is the second.
    program = shutil.which("alertmanager") or "prometheus-alertmanager"
    with log.open("w") as output:
        process = subprocess.Popen(
            [program, f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/data",
             "--web.listen-address=127.0.0.1:0", "--cluster.listen-address="], stderr=output)
    try:
        deadline = time.monotonic() + FIRES_WITHIN
        while not (address := re.search('"Listening on" address=([0-9.:]+)', log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise CheckFailed(f"Alertmanager does not listen within {FIRES_WITHIN} s:\n{log.read_text()}")
            time.sleep(0.1)
        yield address[1]
        if errors := re.findall(".*level=ERROR.*", log.read_text()):
            raise CheckFailed("Alertmanager logged errors:\n" + "\n".join(errors))
    finally:
        stop(process, "Alertmanager")


@contextlib.contextmanager
def prometheus(address):
    """Runs Prometheus, which sends its alerts to this address. It ends with the end of its input."""
    process = subprocess.Popen(
        ["scripts/with-prometheus.sh", "sh", "-c", 'echo "$PROMETHEUS_URL"; cat'], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"ALERTMANAGER": address})
    try:
        # The script waits for Prometheus for a minute at most, and then ends.
        if not (url := process.stdout.readline().strip()):
            raise CheckFailed("scripts/with-prometheus.sh did not start Prometheus")
        yield url
    finally:
        process.stdin.close()
        try:
            process.wait(3 * TIMEOUT)
        except subprocess.TimeoutExpired:
            stop(process, "scripts/with-prometheus.sh")


@contextlib.contextmanager
def load(path):
    """Sends ten requests per second for this path."""
    process = subprocess.Popen(
        ["scripts/load.sh", BASE_URL, path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"RATE": "10", "DURATION": str(FIRES_WITHIN + RESOLVES_WITHIN)})
    try:
        yield
    finally:
        stop(process, "scripts/load.sh")


def check_suppressed(address):
    """A critical alert suppresses the warning of the same name and job, and not that of another job."""
    labels = {"alertname": "TinyProbeErrorBudgetBurn", "severity": "critical", "job": "one"}
    warnings = [labels | {"severity": "warning"}, labels | {"severity": "warning", "job": "another"}]
    url = f"http://{address}/api/v2/alerts"
    ask(url, "POST", json.dumps([{"labels": one} for one in [labels, *warnings]]).encode())
    what = "a page suppresses the ticket of the same name and job"
    expected = {("one", "critical"): "active", ("one", "warning"): "suppressed", ("another", "warning"): "active"}
    deadline = time.monotonic() + TIMEOUT
    while True:
        states = {(one["labels"]["job"], one["labels"]["severity"]): one["status"]["state"]
                  for one in json.loads(ask(url)) if one["labels"]["job"] in ("one", "another")}
        if states == expected:
            print(f"ok      {what}", flush=True)
            return
        if time.monotonic() > deadline:
            raise CheckFailed(f"{what}: not within {TIMEOUT} s: {states}")
        time.sleep(0.2)


def check_print(message):
    """The script of the demo's container `webhook` prints the notification."""
    environment = os.environ | {"CONTENT_LENGTH": str(len(message["body"])), "PATH_INFO": "/page"}
    result = subprocess.run(["sh", DEPLOY / "webhook/cgi-bin/notify"], input=message["body"], env=environment,
                            capture_output=True, timeout=TIMEOUT, check=True)
    is_line = message["body"].endswith(b"\n") and result.stderr == b"page " + message["body"]
    if message["path"] != "/cgi-bin/notify/page" or not is_line:
        raise CheckFailed(f"the demo's webhook prints each message: {message['path']}, {result.stderr}")
    print("ok      the demo's webhook prints each message", flush=True)


def check(webhook, address):
    ask(f"{BASE_URL}/faults/probe?fail-rate=0.5&latency=2s&for={FAULT}s", "PUT")
    ask(f"{BASE_URL}/faults/healthz?fail-rate=0.5&for={FAULT}s", "PUT")

    def fire(paths):
        return lambda messages: any(endpoints(one, "firing") == paths for one in messages)

    def resolve(paths):
        # Not necessarily all in one message: a rate can fall a second earlier than the other.
        return lambda messages: (messages[-1]["status"] == "resolved" and
                                 set().union(*(endpoints(one, "resolved") for one in messages)) == paths)

    page = ("page", "TinyProbeErrors")
    ticket = ("ticket", "TinyProbeSlow")
    both = {"/healthz", "/probe"}
    fired = webhook.wait_for("one page says that /probe and /healthz fail", FIRES_WITHIN, *page, fire(both))[-1]
    if any(not alert["annotations"]["runbook_url"].endswith("#tinyprobeerrors") for alert in fired["alerts"]):
        raise CheckFailed(f"the runbook_url of each alert leads to its section: {fired['alerts']}")
    webhook.wait_for("a ticket says that /probe is slow", FIRES_WITHIN, *ticket, fire({"/probe"}))
    check_suppressed(address)
    webhook.wait_for("the page is resolved", RESOLVES_WITHIN, *page, resolve(both))
    webhook.wait_for("the ticket is resolved", RESOLVES_WITHIN, *ticket, resolve({"/probe"}))
    check_print(fired)


def main():
    with tempfile.TemporaryDirectory() as folder, Webhook() as webhook:
        threading.Thread(target=webhook.serve_forever, daemon=True).start()
        try:
            with alertmanager(pathlib.Path(folder), webhook) as address, prometheus(address), \
                    load("/probe"), load("/healthz"):
                check(webhook, address)
        except (CheckFailed, OSError, subprocess.SubprocessError) as failure:
            print(f"FAILED  {str(failure) or type(failure).__name__}", file=sys.stderr)
            sys.exit(1)
        finally:
            webhook.shutdown()


main()
