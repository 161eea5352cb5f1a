#!/usr/bin/env python3
"""What hostile clients do to each of the two request loops. One table, in Markdown, on stdout.

    bench/hostile.py      of target/release/tiny-probe; takes a minute, on 127.0.0.1 alone

Each client meets a service of its own, started at a limit of 1024 descriptors. Afterwards somebody
else asks for /healthz, with a timeout of two seconds. What the table says of memory is the most
that was ever resident.
"""

import re
import resource
import socket
import subprocess
import sys
import time

PROGRAM = "target/release/tiny-probe"
SERVERS = ["event-loop", "tiny-http"]
TIMEOUT = 2
PROBE = b"GET /probe HTTP/1.1\r\nHost: a\r\n\r\n"


class Service:
    def __init__(self, server):
        limit = (1024, 1024)
        self.process = subprocess.Popen(
            [PROGRAM, "--listen", "127.0.0.1:0", "--server", server],
            stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit))
        # A line before it says how many connections the limit leaves room for.
        for line in self.process.stderr:
            found = re.search(r" on http://127\.0\.0\.1:(\d+)", line)
            if found:
                self.port = int(found[1])
                return
        sys.exit(f"hostile: {PROGRAM} does not start; build it with `make build`")

    def connect(self):
        client = socket.create_connection(("127.0.0.1", self.port), TIMEOUT)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def serves(self):
        try:
            with self.connect() as client:
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
                return client.recv(1024).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def state(self):
        """What became of the service, and of its memory."""
        time.sleep(0.2)  # An abort that has begun is to be seen as one.
        if self.process.poll() is not None:
            return f"the process ends ({self.process.returncode})"
        serves = "others are served" if self.serves() else "**nobody else is served**"
        if self.process.poll() is not None:
            return f"the process ends ({self.process.returncode})"
        with open(f"/proc/{self.process.pid}/status") as status:
            peak = int(re.search(r"VmHWM:\s+(\d+)", status.read())[1]) / 1024
        return f"{serves}, {peak:.1f} MB"

    def end(self):
        self.process.kill()
        self.process.wait()


def answer(client):
    try:
        return client.recv(1 << 16)[9:12].decode() or "closed"
    except OSError as error:
        return "reset" if isinstance(error, ConnectionError) else "no answer"


def petabytes(service):
    """announces a body of 10000000000000000 bytes"""
    client = service.connect()
    client.sendall(b"POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000000000000\r\n\r\n")
    return answer(client), client


def unsent_body(service):
    """announces a body of 2000 bytes and does not send it"""
    client = service.connect()
    client.sendall(b"POST /probe HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n")
    return answer(client), client


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
    return f"{sent / 1e6:.0f} MB were taken", client


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
    return answer(client), client


def idle(service):
    """opens 600 connections and says nothing"""
    clients = []
    for _ in range(600):
        try:
            clients.append(service.connect())
        except OSError:
            break
    return f"{len(clients)} are open", clients


def at_once(service):
    """opens 64 connections at once and asks on each"""
    clients = [service.connect() for _ in range(64)]
    for client in clients:
        client.sendall(PROBE)
    end = time.monotonic() + TIMEOUT
    answered = 0
    for client in clients:
        client.settimeout(max(0.001, end - time.monotonic()))
        answered += answer(client) == "200"
    return f"{answered} of 64 are answered", clients


def main():
    print("| a client that | " + " | ".join(SERVERS) + " |")
    print("| --- |" + " --- |" * len(SERVERS), flush=True)
    for client in [petabytes, unsent_body, unread, header, idle, at_once]:
        row = [client.__doc__]
        for server in SERVERS:
            service = Service(server)
            try:
                result, _kept_open = client(service)
                row.append(f"{result}; {service.state()}")
            finally:
                service.end()
        print("| " + " | ".join(row) + " |", flush=True)


main()
