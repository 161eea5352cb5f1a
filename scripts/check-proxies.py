#!/usr/bin/env python3
"""Runs nginx and HAProxy in front of a running service, and checks that neither reports an error.

Usage: scripts/with-service.sh scripts/check-proxies.py
       MAX_CONNECTIONS=8 scripts/with-service.sh scripts/check-proxies.py crowded

Each proxy keeps its connections to the service open, as its manual recommends. It receives ten thousand
requests on eight connections. On each connection, one of them is a POST of 5 MB, which the service rejects
before it has received the body. The check passes if every response comes from the service, the service has
counted each request once, the proxy's log is empty, and neither of HAProxy's health checks has ever failed:
`option httpchk` without further settings, and the lines of docs/limits.md.

With `crowded`, each proxy receives two thousand requests on 50 connections, three times, and needs more
connections to the service than it allows. Every response must come from the service and have status 200.

The proxies listen on Unix sockets in a temporary folder, so they need no ports and leave no files behind.
Prints a line per check and exits 1 at the first that fails.
"""

import collections
import csv
import http.client
import os
import pwd
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SERVER = os.environ["BASE_URL"].removeprefix("http://")
GROUP = pwd.getpwnam("nobody").pw_gid
REQUESTS = 10000
CONNECTIONS = 8
CROWD_REQUESTS = 2000
CROWD_CONNECTIONS = 50
# Several times, because a race between the service and the proxy does not happen every time.
CROWDS = 3
# In seconds.
TIMEOUT = 10
# In seconds, for all requests of a crowd.
CROWD_TIMEOUT = 60

NGINX = """\
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    # nginx must pass the large body on, and must not log a warning about it.
    client_max_body_size 6m;
    client_body_buffer_size 6m;
    upstream tiny-probe {{
        server {server};
        {keepalive}
    }}
    server {{
        listen unix:{folder}/nginx.sock;
        location / {{
            proxy_pass http://tiny-probe;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""

# HAProxy logs only requests that failed.
HAPROXY = """\
global
    log stdout format raw local0 notice
    stats socket {folder}/stats.sock
defaults
    mode http
    log global
    option httplog
    option log-separate-errors
    timeout connect 5s
    timeout client 10s
    timeout server 10s
    # Otherwise a health check would have only its interval.
    timeout check 10s
frontend all
    bind {folder}/haproxy.sock
    default_backend tiny-probe
backend tiny-probe
    option httpchk
    http-reuse {reuse}
    server one {server} check {check}
"""

# A backend without requests, with the health check of docs/limits.md.
HAPROXY_DOCUMENTED = """\
backend documented
{lines}    server two {server} check {check}
"""


class CheckFailed(Exception):
    """A check failed; the message says what was observed."""


def request(method, path, body=b""):
    fields = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode() + body


# The weight, the request, the labels that it is recorded with, and how the body of its response begins.
MIX = [
    (60, request("GET", "/probe"), ("GET", "/probe", 200), b"I'm ok!"),
    (10, request("HEAD", "/probe"), ("HEAD", "/probe", 200), b""),
    (5, request("HEAD", "/metrics"), ("HEAD", "/metrics", 200), b""),
    (5, request("GET", "/metrics"), ("GET", "/metrics", 200), b"# HELP app_"),
    (10, request("GET", "/nope"), ("GET", "other", 404), b"Not found."),
    (5, request("POST", "/probe", b"x" * 50_000), ("POST", "/probe", 405), b"Method not allowed."),
    (5, request("POST", "/probe", b"x" * 1000), ("POST", "/probe", 405), b"Method not allowed."),
]
# The body is larger than the service discards. It sends a 413 as soon as it has read the head, and records
# the request as invalid, with `other` for both labels.
LARGE = request("POST", "/probe", b"x" * 5_000_000), ("other", "other", 413), b"The body is longer"


class Client:
    """A client of a proxy. It reconnects after the proxy has closed its connection."""

    def __init__(self, path):
        self.path = path
        self.socket = None

    def send(self, text, expected, begin):
        if not self.socket:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(TIMEOUT)
            self.socket.connect(self.path)
        self.socket.sendall(text)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self.receive(received)
        head, body = received.split(b"\r\n\r\n", 1)
        length = int(re.search(rb"(?i)\r\ncontent-length: (\d+)", head)[1]) if expected[0] != "HEAD" else 0
        while len(body) < length:
            body += self.receive(head)
        if int(head[9:12]) != expected[2] or not body.startswith(begin):
            raise CheckFailed(f"unexpected response to {text[:60]!r}: {head!r} {body[:100]!r}")
        if re.search(rb"(?i)\r\nconnection: close", head):
            self.socket.close()
            self.socket = None

    def receive(self, so_far):
        try:
            if received := self.socket.recv(65536):
                return received
        except TimeoutError:
            raise CheckFailed(f"timed out: the rest of a response did not arrive within {TIMEOUT} s: "
                              f"{so_far!r}") from None
        raise CheckFailed(f"the connection ended in the middle of a response: {so_far!r}")


def drive(path):
    """Sends the requests through a proxy and returns how many were sent of each kind."""
    sent, failures, lock = collections.Counter(), [], threading.Lock()
    weights = [entry[0] for entry in MIX]

    def run():
        client = Client(path)
        requests = [entry[1:] for entry in random.choices(MIX, weights, k=REQUESTS // CONNECTIONS)]
        requests.insert(random.randrange(len(requests)), LARGE)
        for one in requests:
            if failures:
                return
            try:
                client.send(*one)
            except (CheckFailed, OSError) as failure:
                failures.append(failure)
                return
            with lock:
                sent[one[1]] += 1

    threads = [threading.Thread(target=run) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise CheckFailed(failures[0])
    return sent


def drive_crowd(path):
    """Sends GET /probe to a proxy with curl on many connections, and returns the number of responses by
    status."""
    curl = ["curl", "--no-progress-meter", "--unix-socket", path, "--parallel", "--parallel-immediate",
            "--parallel-max", str(CROWD_CONNECTIONS), "--max-time", str(TIMEOUT), "--output", "/dev/null",
            "--write-out", "%{http_code} ", f"http://localhost/probe?[1-{CROWD_REQUESTS}]"]
    try:
        output = subprocess.run(curl, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                 timeout=CROWD_TIMEOUT).stdout
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"timed out: curl did not finish {CROWD_REQUESTS} requests within {CROWD_TIMEOUT} "
                          "seconds") from None
    return collections.Counter(output.split())


def scrape():
    """Returns how many requests the service has counted, by method, endpoint and status."""
    client = http.client.HTTPConnection(SERVER, timeout=TIMEOUT)
    client.request("GET", "/metrics")
    exposition = client.getresponse().read().decode()
    client.close()
    counter = r'^app_request_count_total\{endpoint="(.*)",http_status="(.*)",method="(.*)"\} (\d+)$'
    return collections.Counter({(method, endpoint, int(status)): int(count)
                                for endpoint, status, method, count in re.findall(counter, exposition, re.MULTILINE)})


def start(command, path, log):
    # The proxies need no privileges, so they run as nobody if this script runs as root.
    nobody = {"user": "nobody", "group": GROUP, "extra_groups": []} if os.getuid() == 0 else {}
    # HAProxy does not remove its socket when it ends.
    if os.path.exists(path):
        os.remove(path)
    proxy = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **nobody)
    end = time.monotonic() + TIMEOUT
    while not os.path.exists(path):
        if proxy.poll() is not None or time.monotonic() > end:
            proxy.kill()
            raise CheckFailed(f"timed out: {command[0]} did not listen within {TIMEOUT} s")
        time.sleep(0.02)
    return proxy


def check(folder, name, command, inspect):
    """Runs a proxy and sends requests through it. A failure includes the proxy's log."""
    with open(f"{folder}/{name}.log", "w+") as log:
        try:
            proxy = start(command, f"{folder}/{name}.sock", log)
            try:
                before = scrape()
                sent = drive(f"{folder}/{name}.sock")
                ok(f"{name}: {sum(sent.values())} requests got the expected responses")
                counted = scrape() - before
                inspect(folder, counted)
            finally:
                proxy.terminate()
                try:
                    proxy.wait(TIMEOUT)
                except subprocess.TimeoutExpired:
                    proxy.kill()
                    raise CheckFailed(f"timed out: the proxy did not end within {TIMEOUT} s of SIGTERM") from None
            # The counter includes the first scrape but not yet the second, and the proxy's health checks.
            sent["GET", "/metrics", 200] += 1
            counted = {labels: count for labels, count in counted.items()
                       if labels[0] != "OPTIONS" and labels[1] != "/healthz"}
            if counted != sent:
                raise CheckFailed(f"the service counted {counted}, but {dict(sent)} were sent")
            ok(f"{name}: the service counted each request once")
            log.seek(0)
            if log.read():
                raise CheckFailed("its log is not empty")
            ok(f"{name}: its log is empty")
        except CheckFailed as failure:
            log.seek(0)
            raise CheckFailed(f"{name}: {failure}\n{log.read()}".rstrip()) from None


def check_crowd(folder, name, command, setting):
    """Runs a proxy that needs more connections than the service allows."""
    with open(f"{folder}/{name}.log", "w+") as log:
        try:
            proxy = start(command, f"{folder}/{name}.sock", log)
            try:
                started = time.monotonic()
                outcomes = sum((drive_crowd(f"{folder}/{name}.sock") for _ in range(CROWDS)), collections.Counter())
                took = time.monotonic() - started
            finally:
                proxy.terminate()
                proxy.wait(TIMEOUT)
            requests = CROWDS * CROWD_REQUESTS
            summary = f"{requests} requests on {CROWD_CONNECTIONS} connections"
            if outcomes != {"200": requests}:
                raise CheckFailed(f"not all of {summary} got status 200: {dict(outcomes)}")
            ok(f"{name}, {setting}: {summary}, all with status 200, in {took:.1f} s")
        except CheckFailed as failure:
            log.seek(0)
            lines = [f"{name}, {setting}: {failure}", *log.read().splitlines()[:10]]
            raise CheckFailed("\n".join(lines)) from None


def inspect_haproxy(folder, counted):
    """Checks HAProxy's own statistics about the service."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(f"{folder}/stats.sock")
        client.sendall(b"show stat\n")
        text = client.makefile().read()
    stats = {line["svname"]: line for line in csv.DictReader(text.lstrip("# ").splitlines())}
    names = ["chkfail", "chkdown", "downtime", "econ", "eresp", "wretr", "wredis"]
    for server in [stats["one"], stats["two"]]:
        errors = {name: server[name] for name in names if server[name] != "0"}
        if server["status"] != "UP" or errors:
            raise CheckFailed(f"the server {server['svname']} is {server['status']}, with these errors: {errors}")
    if stats["FRONTEND"]["hrsp_5xx"] != "0":
        raise CheckFailed(f"{stats['FRONTEND']['hrsp_5xx']} responses had a 5xx status")
    plain = sum(count for labels, count in counted.items() if labels[0] == "OPTIONS")
    documented = counted["GET", "/healthz", 200]
    reused = stats["one"]["reuse"]
    if plain == 0 or documented == 0 or reused == "0":
        raise CheckFailed(f"{plain} and {documented} health checks and {reused} reused connections, expected all "
                          "to be more than 0")
    ok(f"haproxy: all {plain} health checks with `option httpchk` and {documented} as in docs/limits.md found the server up")


def documented_health_check():
    """Returns the lines that docs/limits.md recommends for HAProxy's health check."""
    with open(f"{ROOT}/docs/limits.md") as file:
        block = re.search(r"^```haproxy\n(.*?)^```$", file.read(), re.MULTILINE | re.DOTALL)
    if not block:
        raise CheckFailed("docs/limits.md has no block of HAProxy's configuration")
    return "".join(f"    {line}\n" for line in block[1].splitlines())


def ok(what):
    print(f"ok      {what}", flush=True)


def main():
    # Debian installs both there, and it is not in every user's PATH.
    os.environ["PATH"] += ":/usr/sbin"
    with tempfile.TemporaryDirectory() as folder:
        if os.getuid() == 0:
            shutil.chown(folder, "nobody", GROUP)
        nginx = ["nginx", "-e", "stderr", "-c", f"{folder}/nginx.conf"]
        haproxy = ["haproxy", "-db", "-f", f"{folder}/haproxy.conf"]

        def configure(keepalive, reuse, check):
            for name, text in [("nginx", NGINX), ("haproxy", HAPROXY)]:
                with open(f"{folder}/{name}.conf", "w") as file:
                    file.write(text.format(folder=folder, server=SERVER, keepalive=keepalive, reuse=reuse,
                                           check=check))

        try:
            if sys.argv[1:] == ["crowded"]:
                # The default timeout of a health check is its interval. At the connection limit a health
                # check can take longer than 100 ms.
                for keepalive, reuse in [("keepalive 4", "always"), ("", "never")]:
                    configure(keepalive and f"{keepalive};", reuse, "inter 1s")
                    check_crowd(folder, "nginx", nginx, keepalive or "no keepalive")
                    check_crowd(folder, "haproxy", haproxy, f"http-reuse {reuse}")
                return
            configure("keepalive 16;", "always", "inter 100ms fall 1 rise 1")
            with open(f"{folder}/haproxy.conf", "a") as file:
                file.write(HAPROXY_DOCUMENTED.format(lines=documented_health_check(), server=SERVER,
                                                     check="inter 100ms fall 1 rise 1"))
            check(folder, "nginx", nginx, lambda *_: None)
            check(folder, "haproxy", haproxy, inspect_haproxy)
        except (CheckFailed, OSError) as failure:
            print(f"FAILED  {str(failure) or type(failure).__name__}", file=sys.stderr)
            sys.exit(1)


main()
