#!/usr/bin/env python3
"""Prints a Markdown table that shows how each of the two request loops copes with hostile clients.

    bench/hostile.py      tests target/release/tiny-probe on 127.0.0.1; takes less than two minutes; needs cc

Each kind of client gets a service of its own. The service has a limit of 1024 descriptors, or 4096 where 1000
clients must not exhaust it. While the hostile client keeps its connections open, up to five new clients
request /healthz, one after the other. The table shows the longest time that one of them waited, up to five
seconds, and the service's peak resident memory.
"""

import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = "target/release/tiny-probe"
FLOOD_SOURCE = Path(__file__).resolve().parent / "flood.c"
SERVERS = ["event-loop", "tiny-http"]
TIMEOUT = 2  # in seconds, for the hostile clients
NEW_CLIENT_TIMEOUT = 5
NEW_CLIENTS = 5
PROBE = b"GET /probe HTTP/1.1\r\nHost: a\r\n\r\n"


class Service:
    def __init__(self, server, flags=(), descriptors=1024):
        limit = (descriptors, descriptors)
        self.helpers = []  # processes that end with the service
        self.process = subprocess.Popen(
            [PROGRAM, "--listen", "127.0.0.1:0", "--server", server, *flags],
            stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit))
        # A message about the descriptor limit may come first.
        for line in self.process.stderr:
            found = re.search(r" on http://127\.0\.0\.1:(\d+)", line)
            if found:
                self.port = int(found[1])
                return
        sys.exit(f"hostile: {PROGRAM} did not start; build it with `make build`")

    def connect(self, receive_buffer=None):
        client = socket.socket()
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(TIMEOUT)
        client.connect(("127.0.0.1", self.port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def wait(self):
        """Returns the seconds until a new client gets its response, or None if it gets none in time."""
        began = time.monotonic()
        try:
            with socket.create_connection(("127.0.0.1", self.port), NEW_CLIENT_TIMEOUT) as client:
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
                if client.recv(1024).startswith(b"HTTP/1.1 200"):
                    return time.monotonic() - began
        except OSError:
            pass
        return None

    def waits(self):
        longest, end = 0, time.monotonic() + 1
        for _ in range(NEW_CLIENTS):
            if time.monotonic() > end:
                break  # the waits are long, so a few of them are enough
            wait = self.wait()
            if wait is None:
                return "**other clients are not served**"
            longest = max(longest, wait)
        return f"other clients wait {longest * 1000:.{0 if longest > 0.01 else 1}f} ms"

    def state(self):
        """Describes how new clients are served and how much memory the service has used."""
        time.sleep(0.2)  # If the process is aborting, let it finish.
        if self.process.poll() is not None:
            return f"the process ends ({self.process.returncode})"
        waits = self.waits()
        if self.process.poll() is not None:
            return f"the process ends ({self.process.returncode})"
        peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        if not peak:  # a process that is just ending has no memory
            return f"the process ends ({self.process.wait(TIMEOUT)})"
        return f"{waits}, {int(peak[1]) / 1024:.1f} MB"

    def kernel_megabytes(self):
        """Returns the megabytes in the send and receive queues of the service's sockets."""
        total = 0
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, _, _, queues, *_ = line.split()
            if int(local.split(":")[1], 16) == self.port:
                total += sum(int(queue, 16) for queue in queues.split(":"))
        return total / 1e6

    def end(self):
        for process in [self.process, *self.helpers]:
            process.kill()
            process.wait()


def response(client):
    try:
        return client.recv(1 << 16)[9:12].decode() or "closed"
    except OSError as error:
        return "reset" if isinstance(error, ConnectionError) else "no response"


def petabytes(service):
    """announces a body of 10000000000000000 bytes"""
    client = service.connect()
    client.sendall(b"POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000000000000\r\n\r\n")
    return response(client), client


def unsent_body(service):
    """announces a body of 2000 bytes and does not send it"""
    client = service.connect()
    client.sendall(b"POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n")
    return response(client), client


def unread(service):
    """pipelines requests for 3 seconds and reads nothing"""
    client = service.connect()
    client.settimeout(0.2)
    sent, end = 0, time.monotonic() + 3
    while time.monotonic() < end:
        try:
            sent += client.send(PROBE * 1000)
        except OSError:
            pass
    return f"{sent / 1e6:.0f} MB were accepted", client


def header(service):
    """sends one header of 400 MB"""
    client = service.connect()
    client.settimeout(20)
    try:
        client.sendall(b"GET /probe HTTP/1.1\r\nHost: a\r\nX: ")
        for _ in range(400):
            client.sendall(b"x" * 1_000_000)
        client.sendall(b"\r\n\r\n")
    except OSError:
        pass
    return response(client), client


def idle(service):
    """opens 600 connections and sends nothing"""
    clients = []
    for _ in range(600):
        try:
            clients.append(service.connect())
        except OSError:
            break
    return f"{len(clients)} are open", clients


def at_once(service):
    """opens 64 connections at once and sends a request on each"""
    clients = [service.connect() for _ in range(64)]
    for client in clients:
        client.sendall(PROBE)
    end = time.monotonic() + TIMEOUT
    responses = 0
    for client in clients:
        client.settimeout(max(0.001, end - time.monotonic()))
        responses += response(client) == "200"
    return f"{responses} of 64 get a response", clients


def steady_reader(service):
    """pipelines GET / for 5 seconds and reads 16 KiB every 0.8 ms"""
    client = service.connect(receive_buffer=16384)
    client.setblocking(False)
    block = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 1000
    sent = taken = 0
    end = time.monotonic() + 5
    try:
        while time.monotonic() < end:
            try:
                sent += client.send(block[sent % len(block):])
            except BlockingIOError:
                pass
            try:
                taken += len(client.recv(16384))
            except BlockingIOError:
                pass
            time.sleep(0.0008)
    except ConnectionError:
        pass  # the process has ended
    return f"{taken / 1e6:.0f} MB were read", client


def flood(service):
    """opens 1000 connections and pipelines HEAD /metrics on each without end"""
    binary = Path(tempfile.gettempdir()) / f"tiny-probe-flood-{service.process.pid}"
    try:
        subprocess.run(["cc", "-O2", "-o", binary, FLOOD_SOURCE], check=True)
        process = subprocess.Popen([binary, str(service.port), "1000", "60", "HEAD", "/metrics"], text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        # The program ends after 65 seconds at most, so this read does not block longer.
        service.helpers.append(process)
        is_ready = process.stdout.readline() == "ready\n"
    finally:
        binary.unlink(missing_ok=True)
    time.sleep(0.5)  # until all clients have sent requests
    return "1000 are open" if is_ready else "some cannot connect", process


flood.descriptors = 4096


def waiting(service):
    """requests /probe?delay=20s on each of 20 connections, with --max-connections 20"""
    clients = [service.connect() for _ in range(20)]
    for client in clients:
        client.sendall(b"GET /probe?delay=20s HTTP/1.1\r\nHost: a\r\n\r\n")
    return "20 are waiting", clients


waiting.flags = ["--max-connections", "20", "--fault-injection"]


def unread_scrapes(service):
    """pipelines GET /metrics on each of 990 connections and reads nothing, with --max-connections 1000"""
    clients = []
    block = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 1000
    for _ in range(990):
        try:
            client = service.connect()
            client.setblocking(False)
            client.send(block)
        except OSError:
            break
        clients.append(client)
    # Send a block on each connection until no connection accepts more, for 5 seconds at most.
    end = time.monotonic() + 5
    while time.monotonic() < end:
        taken = 0
        for client in clients:
            try:
                taken += client.send(block)
            except OSError:
                pass
        if not taken:
            break
    return f"{len(clients)} are open, {service.kernel_megabytes():.0f} MB are in the kernel's queues", clients


unread_scrapes.flags = ["--max-connections", "1000"]


def urgent_data(service):
    """sends one byte in the middle of a head as TCP urgent data"""
    client = service.connect()
    began = time.monotonic()
    client.sendall(PROBE[:10])
    client.send(PROBE[10:11], socket.MSG_OOB)
    client.sendall(PROBE[11:])
    status = response(client)
    return f"{status} after {time.monotonic() - began:.1f} s", client


def upload(service):
    """announces an upload of 10 MB, sends it within 5 seconds, and then reads"""
    client = service.connect()
    client.sendall(b"POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n")
    for number in range(100):
        try:
            client.sendall(b"x" * 100_000)
        except OSError as error:
            return f"{type(error).__name__} after {number / 10:.1f} MB", client
        time.sleep(0.05)
    return response(client), client


CLIENTS = [petabytes, unsent_body, upload, header, urgent_data, unread, steady_reader, unread_scrapes, idle, at_once,
           flood, waiting]


def main():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print("| a client that | " + " | ".join(SERVERS) + " |")
    print("| --- |" + " --- |" * len(SERVERS), flush=True)
    for client in CLIENTS:
        row = [client.__doc__]
        for server in SERVERS:
            service = Service(server, getattr(client, "flags", ()), getattr(client, "descriptors", 1024))
            try:
                result, _kept_open = client(service)
                row.append(f"{result}; {service.state()}")
            finally:
                service.end()
        print("| " + " | ".join(row) + " |", flush=True)


main()
