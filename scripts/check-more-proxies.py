#!/usr/bin/env python3
"""Runs Envoy, Caddy, Traefik, Apache, Varnish and Squid in front of the service, with each request loop.

    scripts/check-more-proxies.py [PROXY...]

Each proxy keeps its connections to the service open. Checked for each:
- requests of several kinds get the service's responses, on eight connections with the event loop and on one with
  tiny-http, and the service has counted each once;
- a chunked body and a body of 10 MB get a response, and the requests after them get theirs;
- after the service has been restarted, requests get a response again;
- with the event loop and a limit of 8 connections, 50 clients get their responses, except for a few races.
PROGRAM names another binary. Needs apache2, varnish and squid from Debian and the other three from PyPI, all on the
PATH. Prints a line per check and exits 1 at the first that fails.
"""

import collections
import contextlib
import http.client
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

PROGRAM = os.environ.get("PROGRAM", "target/release/tiny-probe")
# In seconds.
TIMEOUT = 20
# tiny_http can lose one of several simultaneous connections.
CONNECTIONS = {"event-loop": 8, "tiny-http": 1}
ROUNDS = 25
CROWD = 50
# Of 1000 requests. 0.2.0 lost hundreds.
MAX_RACES = 3

CADDY = """\
{{
	admin off
	auto_https off
	persist_config off
}}
http://127.0.0.1:{port} {{
	reverse_proxy 127.0.0.1:{service}
}}
"""
ENVOY = """\
static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: all
          route_config:
            virtual_hosts:
            - {{ name: all, domains: ["*"], routes: [ {{ match: {{ prefix: "/" }}, route: {{ cluster: service, timeout: 15s }} }} ] }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: service
    connect_timeout: 5s
    load_assignment:
      cluster_name: service
      endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {service} }} }} }} }} ] }} ]
"""
TRAEFIK = """\
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`)", service: one }} }}
  services: {{ one: {{ loadBalancer: {{ servers: [ {{ url: "http://127.0.0.1:{service}" }} ] }} }} }}
"""
APACHE = """\
ServerRoot {folder}
ServerName localhost
PidFile {folder}/apache.pid
ErrorLog {folder}/apache.log
Listen 127.0.0.1:{port}
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
User nobody
Group nogroup
ProxyPass / http://127.0.0.1:{service}/ retry=0
"""
VARNISH = """\
vcl 4.1;
backend default {{ .host = "127.0.0.1"; .port = "{service}"; }}
sub vcl_recv {{ return (pass); }}
"""
SQUID = """\
http_port 127.0.0.1:{port} accel defaultsite=localhost no-vhost
cache_peer 127.0.0.1 parent {service} 0 no-query originserver no-digest name=one
acl all_of_them src 127.0.0.1
http_access allow all_of_them
cache deny all
cache_log {folder}/squid.log
access_log none
pid_filename none
coredump_dir {folder}
shutdown_lifetime 0 seconds
"""
# The configuration, its name, and the command.
PROXIES = {
    "envoy": (ENVOY, "envoy.yaml", "envoy --config-path {file} --log-level error --disable-hot-restart --concurrency 2"),
    "caddy": (CADDY, "Caddyfile", "caddy run --config {file} --adapter caddyfile"),
    "traefik": (TRAEFIK, "traefik.yaml", "traefik --providers.file.filename={file} --entrypoints.web.address=127.0.0.1:{port} "
                "--log.level=ERROR --global.checknewversion=false --global.sendanonymoususage=false"),
    "apache2": (APACHE, "apache.conf", "apache2 -X -f {file}"),
    "varnishd": (VARNISH, "varnish.vcl", "varnishd -F -n {folder}/varnish -f {file} -a 127.0.0.1:{port} -s malloc,32m -T none"),
    "squid": (SQUID, "squid.conf", "squid -N -f {file}"),
}
# What is sent, what may come back, and how it is counted.
KINDS = [
    ("GET", "/probe", 0, 200, ("GET", "/probe", "200")),
    ("HEAD", "/probe", 0, 200, ("HEAD", "/probe", "200")),
    ("GET", "/nope", 0, 404, ("GET", "other", "404")),
    ("GET", "/metrics", 0, 200, ("GET", "/metrics", "200")),
    ("POST", "/probe", 1000, 405, ("POST", "/probe", "405")),
    ("POST", "/probe", 50_000, 405, ("POST", "/probe", "405")),
]


class CheckFailed(Exception):
    """A check failed; the message says what was observed."""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_for(port, process, what):
    end = time.monotonic() + TIMEOUT
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), TIMEOUT).close()
            return
        if process.poll() is not None:
            raise CheckFailed(f"{what} ended with exit code {process.returncode} before it listened")
        if time.monotonic() > end:
            raise CheckFailed(f"timed out: {what} did not listen within {TIMEOUT} s")
        time.sleep(0.05)


@contextlib.contextmanager
def running(command, port, what, log, **settings):
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | settings)
    try:
        wait_for(port, process, what)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(TIMEOUT)


def service(port, log, **settings):
    return running([PROGRAM], port, "the service", log, LISTEN=f"127.0.0.1:{port}", **settings)


def ask(connection, method, path, body=None, chunked=False):
    connection.request(method, path, body=body, encode_chunked=chunked, headers={"Transfer-Encoding": "chunked"} if chunked else {})
    response = connection.getresponse()
    response.read()
    return response.status


def once(port, *request, **options):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        return ask(connection, *request, **options)
    finally:
        connection.close()


def wait_until_served(port, name):
    """Returns how many requests it took."""
    end = time.monotonic() + TIMEOUT
    tries = 1
    while (status := once(port, "GET", "/healthz")) != 200:
        tries += 1
        if time.monotonic() > end:
            raise CheckFailed(f"timed out: {name} did not reach the service within {TIMEOUT} s: status {status}")
        time.sleep(0.2)
    return tries


def scrape(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    connection.request("GET", "/metrics")
    exposition = connection.getresponse().read().decode()
    connection.close()
    counter = r'^app_request_count_total\{endpoint="(.*)",http_status="(.*)",method="(.*)"\} (\d+)$'
    found = re.findall(counter, exposition, re.MULTILINE)
    return collections.Counter({(method, endpoint, status): int(count) for endpoint, status, method, count in found})


def in_parallel(count, run):
    failures = []

    def guarded():
        try:
            run()
        except (CheckFailed, OSError, http.client.HTTPException) as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise CheckFailed(f"{len(failures)} of {count} clients failed: {failures[0]!r}")


def mixed(port, kinds):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    for _ in range(ROUNDS):
        for method, path, length, expected, _ in kinds:
            status = ask(connection, method, path, b"x" * length if length else None)
            if status != expected:
                raise CheckFailed(f"{method} {path} with {length} bytes: status {status}, expected {expected}")
    connection.close()


def check(name, server, folder, log):
    text, file, command = PROXIES[name]
    port, behind = free_port(), free_port()
    places = {"folder": folder, "port": port, "service": behind, "file": f"{folder}/{file}"}
    pathlib.Path(places["file"]).write_text(text.format(**places))
    command = command.format(**places).split()
    said = f"{name}, {server}"
    # Squid closes the connection of a client whose response comes before its whole body.
    kinds = [kind for kind in KINDS if name != "squid" or kind[0] != "POST"]
    with running(command, port, name, log):
        with service(behind, log, SERVER=server):
            wait_until_served(port, name)
            before = scrape(behind)
            in_parallel(CONNECTIONS[server], lambda: mixed(port, kinds))
            counted = scrape(behind) - before
            expected = collections.Counter({("GET", "/metrics", "200"): 1})
            for *_, labels in kinds:
                expected[labels] += CONNECTIONS[server] * ROUNDS
            if counted != expected:
                raise CheckFailed(f"the service counted {dict(counted)}, but {dict(expected)} were sent")
            ok(f"{said}: {CONNECTIONS[server] * ROUNDS * len(kinds)} requests got their responses, and each was counted once")
            for what, body, chunked in [("a chunked body", [b"x" * 100, b"y" * 3000], True), ("a body of 10 MB", b"x" * 10_000_000, False)]:
                statuses = collections.Counter()
                for _ in range(10):
                    try:
                        statuses[once(port, "POST", "/probe", body, chunked=chunked)] += 1
                    except OSError as error:
                        # The proxy passes on that the service closes the connection before it has read all.
                        statuses[type(error).__name__] += 1
                    status = once(port, "GET", "/probe")
                    if status != 200:
                        raise CheckFailed(f"after {what}, GET /probe got {status}")
                ok(f"{said}: {what}: {dict(statuses)}, and each GET after it 200")
        with service(behind, log, SERVER=server):
            tries = wait_until_served(port, name)
            ok(f"{said}: served again after a restart, at request {tries}")
        if server == "event-loop":
            with service(behind, log, SERVER=server, MAX_CONNECTIONS="8"):
                wait_until_served(port, name)
                statuses = collections.Counter()

                def crowd():
                    for _ in range(20):
                        statuses[once(port, "GET", "/probe")] += 1

                in_parallel(CROWD, crowd)
                # The service may close a connection that has been idle for 100 ms just when the proxy uses it. Some
                # proxies do not send the request again.
                if statuses[200] < CROWD * 20 - MAX_RACES:
                    raise CheckFailed(f"{CROWD} clients got {dict(statuses)} through 8 connections")
                ok(f"{said}: {CROWD} clients got {dict(statuses)} through 8 connections")


def ok(what):
    print(f"ok      {what}", flush=True)


def main():
    os.environ["PATH"] += ":/usr/sbin"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for name in sys.argv[1:] or PROXIES:
        for server in ["event-loop", "tiny-http"]:
            with tempfile.TemporaryDirectory() as folder, open(f"{folder}/log", "w+") as log:
                os.chmod(folder, 0o777)
                try:
                    check(name, server, folder, log)
                except (CheckFailed, OSError, http.client.HTTPException) as failure:
                    log.seek(0)
                    tail = "".join(log.readlines()[-10:])
                    sys.exit(f"FAILED  {name}, {server}: {str(failure) or type(failure).__name__}\n{tail}".rstrip())


if __name__ == "__main__":
    main()
