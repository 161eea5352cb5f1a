/* Clients that pipeline requests without end and read every response. While they run, bench/run.py and
 * bench/hostile.py measure how long another client waits.
 *
 * cc -O2 -o flood flood.c && ./flood 8080 1000 60 HEAD /metrics
 *
 * This connects 1000 clients to 127.0.0.1:8080, prints "ready" and starts to send. It stops when standard
 * input is closed, or after 60 seconds. Then it prints the number of responses received, the duration in
 * seconds, and the number of connections that the server closed.
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
enum { BLOCK_BYTES = 32 * 1024, READ_BYTES = 256 * 1024 };
static const char STATUS_LINE[] = "HTTP/1.1 200";
enum { CARRIED_BYTES = sizeof STATUS_LINE - 2 };

struct client {
    size_t offset; /* the position in the block where the next send continues */
    char carried[CARRIED_BYTES]; /* the last bytes received, because a status line may arrive in two pieces */
};

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

static int connect_client(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
        .sin_port = htons(port)};
    int client = socket(AF_INET, SOCK_STREAM, 0), size = BLOCK_BYTES;
    if (client < 0)
        fail("socket");
    setsockopt(client, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    if (connect(client, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    if (fcntl(client, F_SETFL, O_NONBLOCK))
        fail("fcntl");
    return client;
}

int main(int count, char **arguments) {
    if (count != 6) {
        fprintf(stderr, "usage: flood PORT CLIENTS SECONDS METHOD PATH\n");
        return 2;
    }
    int port = atoi(arguments[1]), clients = atoi(arguments[2]), seconds = atoi(arguments[3]);
    static char block[BLOCK_BYTES + 512], buffer[CARRIED_BYTES + READ_BYTES], request[512];
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
        connected[i] = connect_client(port);
        if (connected[i] >= highest) {
            errno = EMFILE;
            fail("more descriptors were inherited than expected");
        }
    }
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &(struct epoll_event){EPOLLIN, {.fd = STDIN_FILENO}});
    for (int i = 0; i < clients; i++)
        epoll_ctl(epoll, EPOLL_CTL_ADD, connected[i], &(struct epoll_event){EPOLLIN | EPOLLOUT, {.fd = connected[i]}});
    puts("ready");
    fflush(stdout);

    size_t responses = 0, closed = 0;
    double began = now();
    for (int is_over = 0; !is_over && now() - began < seconds;) {
        struct epoll_event events[256];
        int ready = epoll_wait(epoll, events, 256, 100);
        for (int i = 0; i < ready; i++) {
            int descriptor = events[i].data.fd;
            if (descriptor == STDIN_FILENO) {
                is_over = 1;
                break;
            }
            struct client *client = &by_descriptor[descriptor];
            ssize_t length = 0;
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
                memcpy(buffer, client->carried, CARRIED_BYTES);
                length = recv(descriptor, buffer + CARRIED_BYTES, READ_BYTES, 0);
                if (length > 0) {
                    responses += count_responses(buffer, CARRIED_BYTES + length);
                    memcpy(client->carried, buffer + length, CARRIED_BYTES);
                } else if (length == 0 || errno != EAGAIN) {
                    closed++;
                    close(descriptor);
                    continue;
                }
            }
            if (events[i].events & EPOLLOUT) {
                /* An error is reported as EPOLLHUP or EPOLLERR in the next round. */
                length = send(descriptor, block + client->offset, block_length - client->offset, MSG_NOSIGNAL);
                if (length > 0)
                    client->offset = (client->offset + length) % block_length;
            }
        }
    }
    printf("%zu %f %zu\n", responses, now() - began, closed);
    return 0;
}
