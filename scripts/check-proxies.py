#!/usr/bin/env python3
"""Puts nginx and HAProxy in front of a running service, and checks that neither finds fault with it.

Usage: scripts/with-service.sh scripts/check-proxies.py
       MAX_CONNECTIONS=8 scripts/with-service.sh scripts/check-proxies.py crowded

Each proxy keeps its connections to the service, as its manual advises, and gets ten thousand requests
on eight connections, among them a POST of 5 MB on each, which the service refuses before it is there.
Every answer has to be the service's, which has to have counted each request once; nothing may stand in
the proxy's log; and HAProxy's health check, a plain `option httpchk`, has to find the server up all the
time.

With `crowded` each proxy gets two thousand requests on 50 connections, three times, and would like more connections to
the service than it allows. Every response has to be the service's, with status 200.

The proxies listen on Unix sockets in a folder of their own: no port to choose, nothing left behind.
Prints a line per check; exits 1 at the first that fails.
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

SERVER = os.environ["BASE_URL"].removeprefix("http://")
GROUP = pwd.getpwnam("nobody").pw_gid
REQUESTS = 10000
CONNECTIONS = 8
CROWD_REQUESTS = 2000
CROWD_CONNECTIONS = 50
# One after the other: not every crowd has requests in the wrong moments.
CROWDS = 3
TIMEOUT = 10
# For all requests of a crowd, in seconds.
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
    # The large body reaches the service, and is not a warning in the log.
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

# Of the requests, only those are logged that went wrong.
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
frontend all
    bind {folder}/haproxy.sock
    default_backend tiny-probe
backend tiny-probe
    option httpchk
    http-reuse {reuse}
    server one {server} check {check}
"""


class Wrong(Exception):
    """What was seen and should not have been."""


def request(method, path, body=b""):
    fields = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode() + body


# How often, the request, its method, endpoint and status, and how the body of the answer begins.
MIX = [
    (60, request("GET", "/probe"), ("GET", "/probe", 200), b"I'm ok!"),
    (10, request("HEAD", "/probe"), ("HEAD", "/probe", 200), b""),
    (5, request("HEAD", "/metrics"), ("HEAD", "/metrics", 200), b""),
    (5, request("GET", "/metrics"), ("GET", "/metrics", 200), b"# HELP app_"),
    (10, request("GET", "/nope"), ("GET", "other", 404), b"Not found."),
    (5, request("POST", "/probe", b"x" * 50_000), ("POST", "/probe", 405), b"Method not allowed."),
    (5, request("POST", "/probe", b"x" * 1000), ("POST", "/probe", 405), b"Method not allowed."),
]
# More than the service discards: it is answered when its head is read, and not as a POST.
LARGE = request("POST", "/probe", b"x" * 5_000_000), ("other", "other", 413), b"The body is longer"


class Client:
    """A connection to a proxy, made anew when the proxy has closed it."""

    def __init__(self, path):
        self.path = path
        self.socket = None

    def ask(self, text, expected, begin):
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
            raise Wrong(f"{text[:60]!r} was answered {head!r} {body[:100]!r}")
        if re.search(rb"(?i)\r\nconnection: close", head):
            self.socket.close()
            self.socket = None

    def receive(self, so_far):
        try:
            if received := self.socket.recv(65536):
                return received
        except TimeoutError:
            raise Wrong(f"waited in vain for {TIMEOUT} s: the rest of a response, {so_far!r}") from None
        raise Wrong(f"the connection ended within an answer: {so_far!r}")


def drive(path):
    """Sends the requests through a proxy, and gives how many of what was answered."""
    sent, wrong, lock = collections.Counter(), [], threading.Lock()
    weights = [entry[0] for entry in MIX]

    def run():
        client = Client(path)
        requests = [entry[1:] for entry in random.choices(MIX, weights, k=REQUESTS // CONNECTIONS)]
        requests.insert(random.randrange(len(requests)), LARGE)
        for one in requests:
            if wrong:
                return
            try:
                client.ask(*one)
            except (Wrong, OSError) as what:
                wrong.append(what)
                return
            with lock:
                sent[one[1]] += 1

    threads = [threading.Thread(target=run) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise Wrong(wrong[0])
    return sent


def drive_crowd(path):
    """Has curl send GET /probe on many connections to a proxy, and returns how many got which status."""
    curl = ["curl", "--no-progress-meter", "--unix-socket", path, "--parallel", "--parallel-immediate",
            "--parallel-max", str(CROWD_CONNECTIONS), "--max-time", str(TIMEOUT), "--output", "/dev/null",
            "--write-out", "%{http_code} ", f"http://localhost/probe?[1-{CROWD_REQUESTS}]"]
    try:
        printed = subprocess.run(curl, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                 timeout=CROWD_TIMEOUT).stdout
    except subprocess.TimeoutExpired:
        raise Wrong(f"curl is not done with {CROWD_REQUESTS} requests within {CROWD_TIMEOUT} seconds") from None
    return collections.Counter(printed.split())


def scrape():
    """How many requests the service has counted, by method, endpoint and status."""
    client = http.client.HTTPConnection(SERVER, timeout=TIMEOUT)
    client.request("GET", "/metrics")
    page = client.getresponse().read().decode()
    client.close()
    counter = r'^app_request_count_total\{endpoint="(.*)",http_status="(.*)",method="(.*)"\} (\d+)$'
    return collections.Counter({(method, endpoint, int(status)): int(count)
                                for endpoint, status, method, count in re.findall(counter, page, re.MULTILINE)})


def start(command, path, log):
    # Neither needs a privilege: where this is root, they are nobody.
    nobody = {"user": "nobody", "group": GROUP, "extra_groups": []} if os.getuid() == 0 else {}
    # HAProxy leaves its socket behind.
    if os.path.exists(path):
        os.remove(path)
    proxy = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **nobody)
    end = time.monotonic() + TIMEOUT
    while not os.path.exists(path):
        if proxy.poll() is not None or time.monotonic() > end:
            proxy.kill()
            raise Wrong(f"waited in vain: {command[0]} listens within {TIMEOUT} s")
        time.sleep(0.02)
    return proxy


def check(folder, name, command, inspect):
    """Runs a proxy and drives it; its log belongs to what is wrong."""
    with open(f"{folder}/{name}.log", "w+") as log:
        try:
            proxy = start(command, f"{folder}/{name}.sock", log)
            try:
                before = scrape()
                sent = drive(f"{folder}/{name}.sock")
                ok(f"{name}: {sum(sent.values())} requests answered as they should be")
                counted = scrape() - before
                inspect(folder, counted)
            finally:
                proxy.terminate()
                try:
                    proxy.wait(TIMEOUT)
                except subprocess.TimeoutExpired:
                    proxy.kill()
                    raise Wrong(f"waited in vain: it ends within {TIMEOUT} s of SIGTERM") from None
            # The first scrape is counted as well, the second is not yet. Health checks are no client's.
            sent["GET", "/metrics", 200] += 1
            counted = {what: count for what, count in counted.items() if what[0] != "OPTIONS"}
            if counted != sent:
                raise Wrong(f"the service has counted {counted}, sent were {dict(sent)}")
            ok(f"{name}: the service has counted each of them once")
            log.seek(0)
            if log.read():
                raise Wrong("its log is not empty")
            ok(f"{name}: nothing in its log")
        except Wrong as what:
            log.seek(0)
            raise Wrong(f"{name}: {what}\n{log.read()}".rstrip()) from None


def check_crowd(folder, name, command, setting):
    """Runs a proxy that would like more connections than the service allows."""
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
                raise Wrong(f"{summary} ended as {dict(outcomes)}")
            ok(f"{name}, {setting}: {summary}, each with status 200, in {took:.1f} s")
        except Wrong as what:
            log.seek(0)
            raise Wrong("\n".join([f"{name}, {setting}: {what}", *log.read().splitlines()[:10]])) from None


def inspect_haproxy(folder, counted):
    """Asks HAProxy what it thinks of the service."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(f"{folder}/stats.sock")
        client.sendall(b"show stat\n")
        text = client.makefile().read()
    stats = {line["svname"]: line for line in csv.DictReader(text.lstrip("# ").splitlines())}
    server = stats["one"]
    names = ["chkfail", "chkdown", "downtime", "econ", "eresp", "wretr", "wredis"]
    troubles = {name: server[name] for name in names if server[name] != "0"}
    if server["status"] != "UP" or troubles:
        raise Wrong(f"the server is {server['status']}, and had {troubles}")
    if stats["FRONTEND"]["hrsp_5xx"] != "0":
        raise Wrong(f"{stats['FRONTEND']['hrsp_5xx']} answers were 5xx")
    health_checks = sum(count for what, count in counted.items() if what[0] == "OPTIONS")
    if health_checks == 0 or server["reuse"] == "0":
        raise Wrong(f"{health_checks} health checks, {server['reuse']} connections used again")
    ok(f"haproxy: the server was up all the time, by {health_checks} health checks")


def ok(what):
    print(f"ok      {what}", flush=True)


def main():
    # Where Debian has both, and not everybody looks.
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
                # By default a health check may take as long as the interval, and one that waits for room
                # takes longer than 100 ms.
                for keepalive, reuse in [("keepalive 4", "always"), ("", "never")]:
                    configure(keepalive and f"{keepalive};", reuse, "inter 1s")
                    check_crowd(folder, "nginx", nginx, keepalive or "no keepalive")
                    check_crowd(folder, "haproxy", haproxy, f"http-reuse {reuse}")
                return
            configure("keepalive 16;", "always", "inter 100ms fall 1 rise 1")
            check(folder, "nginx", nginx, lambda *_: None)
            check(folder, "haproxy", haproxy, inspect_haproxy)
        except (Wrong, OSError) as what:
            print(f"FAILED  {str(what) or type(what).__name__}", file=sys.stderr)
            sys.exit(1)


main()
