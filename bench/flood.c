/* Clients that pipeline requests without end and read every response. While they run, bench/run.py and
 * bench/hostile.py measure how long another client waits.
 *
 * cc -O2 -o flood flood.c && ./flood 8080 1000 60 HEAD /metrics
 *
 * This connects 1000 clients to 127.0.0.1:8080, prints "ready" and starts to send. It stops when standard
 * input is closed, or after 60 seconds. Then it prints the number of responses received, the duration in
 * seconds, and the number of connections that the server closed.
 *
 * ./flood 8080 100 60 GET /metrics 1024
 *
 * With a number of bytes, the clients read slowly and steadily: each at most 1024 bytes every 10 ms.
 *
 * Requests are sent in blocks of several hundred, and responses are counted but not parsed, so that the
 * server is busy all the time. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* For each client, two blocks are in its send buffer and as many bytes in the server's receive buffer. With
 * 3000 clients the kernel uses about 600 MB for these buffers. Larger ones would only use more memory. */
enum { BLOCK_BYTES = 32 * 1024, READ_BYTES = 256 * 1024, PAUSE_MS = 10 };
static const char STATUS_LINE[] = "HTTP/1.1 200";
enum { CARRIED_BYTES = sizeof STATUS_LINE - 2 };

struct client {
    size_t offset; /* the position in the block where the next send continues */
    char carried[CARRIED_BYTES]; /* the last bytes received, because a status line may arrive in two pieces */
    int is_closed;
};

static size_t responses, closed;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void fail(const char *what) {
    fprintf(stderr, "flood: %s: %s\n", what, strerror(errno));
    exit(1);
}

static size_t count_responses(const char *bytes, size_t length) {
    size_t count = 0;
    for (const char *at = bytes; (at = memmem(at, bytes + length - at, STATUS_LINE, sizeof STATUS_LINE - 1));) {
        count++;
        at += sizeof STATUS_LINE - 1;
    }
    return count;
}

static int connect_client(int port, int is_slow) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
        .sin_port = htons(port)};
    int client = socket(AF_INET, SOCK_STREAM, 0), size = BLOCK_BYTES;
    if (client < 0)
        fail("socket");
    setsockopt(client, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    /* Without this, the kernel would receive megabytes on behalf of a client that reads little. */
    if (is_slow)
        setsockopt(client, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (connect(client, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    if (fcntl(client, F_SETFL, O_NONBLOCK))
        fail("fcntl");
    return client;
}

/* Reads at most `limit` bytes, and closes the connection if the server has closed it. */
static void receive(int descriptor, struct client *client, size_t limit) {
    static char buffer[CARRIED_BYTES + READ_BYTES];
    memcpy(buffer, client->carried, CARRIED_BYTES);
    ssize_t length = recv(descriptor, buffer + CARRIED_BYTES, limit, 0);
    if (length > 0) {
        responses += count_responses(buffer, CARRIED_BYTES + length);
        memcpy(client->carried, buffer + length, CARRIED_BYTES);
    } else if (length == 0 || errno != EAGAIN) {
        closed++;
        client->is_closed = 1;
        close(descriptor);
    }
}

int main(int count, char **arguments) {
    if (count != 6 && count != 7) {
        fprintf(stderr, "usage: flood PORT CLIENTS SECONDS METHOD PATH [BYTES]\n");
        return 2;
    }
    int port = atoi(arguments[1]), clients = atoi(arguments[2]), seconds = atoi(arguments[3]);
    int is_slow = count == 7, slow_bytes = is_slow ? atoi(arguments[6]) : 0;
    if (is_slow && (slow_bytes < 1 || slow_bytes > READ_BYTES)) {
        fprintf(stderr, "flood: %s: expected 1 to %d bytes\n", arguments[6], READ_BYTES);
        return 2;
    }
    static char block[BLOCK_BYTES + 512], request[512];
    size_t request_length = snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: a\r\n\r\n", arguments[4],
        arguments[5]);
    size_t block_length = 0;
    for (; block_length < BLOCK_BYTES; block_length += request_length)
        memcpy(block + block_length, request, request_length);

    /* Ends the process if connecting blocks. The loop below has a time limit of its own. */
    alarm(seconds + 5);
    /* The server uses the other core. On this one, the client that is being measured has priority. */
    setpriority(PRIO_PROCESS, 0, 10);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    int epoll = epoll_create1(0), highest = clients + 64;
    struct client *by_descriptor = calloc(highest, sizeof *by_descriptor);
    int *connected = calloc(clients, sizeof *connected);
    if (epoll < 0 || !by_descriptor || !connected)
        fail("start");
    for (int i = 0; i < clients; i++) {
        connected[i] = connect_client(port, is_slow);
        if (connected[i] >= highest) {
            errno = EMFILE;
            fail("more descriptors were inherited than expected");
        }
    }
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &(struct epoll_event){EPOLLIN, {.fd = STDIN_FILENO}});
    /* Slow clients read when it is time to, not when there is something to read. */
    unsigned interest = is_slow ? EPOLLOUT : EPOLLIN | EPOLLOUT;
    for (int i = 0; i < clients; i++)
        epoll_ctl(epoll, EPOLL_CTL_ADD, connected[i], &(struct epoll_event){interest, {.fd = connected[i]}});
    puts("ready");
    fflush(stdout);

    double began = now(), next_read = began;
    for (int is_over = 0; !is_over && now() - began < seconds;) {
        struct epoll_event events[256];
        int ready = epoll_wait(epoll, events, 256, is_slow ? PAUSE_MS / 2 : 100);
        for (int i = 0; i < ready; i++) {
            int descriptor = events[i].data.fd;
            if (descriptor == STDIN_FILENO) {
                is_over = 1;
                break;
            }
            struct client *client = &by_descriptor[descriptor];
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                receive(descriptor, client, READ_BYTES);
            if (!client->is_closed && events[i].events & EPOLLOUT) {
                /* An error is reported as EPOLLHUP or EPOLLERR in the next round. */
                ssize_t length = send(descriptor, block + client->offset, block_length - client->offset, MSG_NOSIGNAL);
                if (length > 0)
                    client->offset = (client->offset + length) % block_length;
            }
        }
        if (is_slow && now() >= next_read) {
            next_read = now() + PAUSE_MS / 1e3;
            for (int i = 0; i < clients; i++)
                if (!by_descriptor[connected[i]].is_closed)
                    receive(connected[i], &by_descriptor[connected[i]], slow_bytes);
        }
    }
    printf("%zu %f %zu\n", responses, now() - began, closed);
    return 0;
}
