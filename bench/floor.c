/* The lower bound that the benchmark compares with: the least that a server with epoll can do. It has one
 * thread and keeps connections open. For each read it sends one constant response, without parsing or
 * recording anything. No real server can use less CPU time. The difference between a server and this one is
 * the cost of the server's own work.
 *
 * cc -O2 -o floor floor.c && ./floor 8080 [SCRAPE]        listens on 127.0.0.1
 *
 * With the name of a file, it sends that file to clients whose request begins with GET /metrics. bench/run.py
 * stores a scrape of tiny-probe in it, with its head. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define HEAD "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n" \
    "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 7\r\n"
#define CLOSE "Connection: close\r\n"
#define SCRAPE "GET /metrics"
static const char KEEP_ALIVE[] = HEAD "\r\nI'm ok!", LAST[] = HEAD CLOSE "\r\nI'm ok!";
static char scrape[64 * 1024];

int main(int count, char **arguments) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
        .sin_port = htons(count > 1 ? atoi(arguments[1]) : 8080)};
    ssize_t scrape_length = count > 2 ? read(open(arguments[2], O_RDONLY), scrape, sizeof scrape) : 0;
    if (scrape_length < 0)
        return 1;
    int on = 1, epoll = epoll_create1(0), listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024))
        return 1;
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &(struct epoll_event){EPOLLIN, {.fd = listener}});
    for (struct epoll_event events[256];;) {
        int ready = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            int client = events[i].data.fd;
            if (client == listener) {
                client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                epoll_ctl(epoll, EPOLL_CTL_ADD, client, &(struct epoll_event){EPOLLIN, {.fd = client}});
                continue;
            }
            char head[4096];
            ssize_t length = read(client, head, sizeof head);
            if (scrape_length && length > 0 && !memcmp(head, SCRAPE, sizeof SCRAPE - 1)) {
                send(client, scrape, scrape_length, MSG_NOSIGNAL);
                continue;
            }
            int last = length <= 0 || memmem(head, length, CLOSE, sizeof CLOSE - 1);
            if (length > 0)
                length = last ? send(client, LAST, sizeof LAST - 1, MSG_NOSIGNAL)
                              : send(client, KEEP_ALIVE, sizeof KEEP_ALIVE - 1, MSG_NOSIGNAL);
            if (last || length < 0)
                close(client);
        }
    }
}
