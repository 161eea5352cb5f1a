#!/usr/bin/env python3
"""Connects clients that pipeline GET /metrics and read nothing, then checks that /healthz is served.

Usage: scripts/unread-clients.py BASE_URL [CLIENTS]      (default: 990 clients)

Each client has a small receive buffer, so its responses accumulate in the service. It sends requests until
the kernel has accepted no more bytes from any client for a second. The service may close such clients.
Prints how much the clients sent. Exits 1 if a client cannot connect, or if /healthz is not served within
5 seconds.
"""

import http.client
import resource
import socket
import sys
import time

REQUESTS = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10000
# In bytes. The kernel doubles it.
RECEIVE_BUFFER = 2304
# In seconds, for connecting and for /healthz.
TIMEOUT = 5
# In seconds. The service must have stopped reading from all clients by then.
SEND_TIMEOUT = 60


def connect(address):
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    client.settimeout(TIMEOUT)
    client.connect(address)
    client.setblocking(False)
    return client


def send(client, sent):
    """Sends as much as the kernel accepts. Returns how much of REQUESTS is sent, or None if the connection
    was closed."""
    try:
        return sent + client.send(REQUESTS[sent:])
    except BlockingIOError:
        return sent
    except OSError:
        return None


def main():
    host, port = sys.argv[1].removeprefix("http://").rsplit(":", 1)
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 990
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients = []
    try:
        for _ in range(count):
            clients.append(connect((host, int(port))))
    except OSError as error:
        sys.exit(f"client {len(clients) + 1} of {count} cannot connect: {error}")

    sent = dict.fromkeys(clients, 0)
    taken = 0
    started = progress = time.monotonic()
    while time.monotonic() - progress < 1:
        for client, before in list(sent.items()):
            after = send(client, before)
            if after is None:
                del sent[client]
            elif after > before:
                sent[client] = after
                taken += after - before
                progress = time.monotonic()
        if time.monotonic() - started > SEND_TIMEOUT:
            sys.exit(f"after {SEND_TIMEOUT} seconds the service still reads from clients that do not read")
        time.sleep(0.02)

    try:
        check = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT)
        check.request("GET", "/healthz")
        status = check.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"/healthz is not served: {error or type(error).__name__}")
    if status != 200:
        sys.exit(f"/healthz has status {status}")
    print(f"{count} clients sent {taken} bytes and read nothing; the service closed {count - len(sent)} of them")


main()
