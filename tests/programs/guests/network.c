/* Sockets, and waiting for them and for pipes, counters and timers: prints the same inside and outside. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { printf("line %d: %s: %s\n", __LINE__, #what, strerror(errno)); exit(1); } } while (0)

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return a;
}

static int bound(int kind, struct sockaddr_in *address) {
    int s = socket(AF_INET, kind, 0);
    CHECK(s >= 0);
    int one = 1;
    CHECK(setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
    *address = loopback(0);
    CHECK(bind(s, (struct sockaddr *)address, sizeof *address) == 0);
    socklen_t len = sizeof *address;
    CHECK(getsockname(s, (struct sockaddr *)address, &len) == 0 && len == sizeof *address && address->sin_port);
    return s;
}

static void *echo(void *arg) {
    int s = (int)(long)arg, c = accept(s, NULL, NULL);
    CHECK(c >= 0);
    char buffer[100000];
    ssize_t n;
    while ((n = read(c, buffer, sizeof buffer)) > 0) {
        ssize_t done = 0;
        while (done < n) {
            ssize_t w = write(c, buffer + done, n - done);
            CHECK(w > 0);
            done += w;
        }
    }
    close(c);
    return NULL;
}

static void tcp(void) {
    struct sockaddr_in address, peer;
    int s = bound(SOCK_STREAM, &address);
    CHECK(listen(s, 8) == 0);
    pthread_t t;
    pthread_create(&t, NULL, echo, (void *)(long)s);
    int c = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(c, (struct sockaddr *)&address, sizeof address) == 0);
    socklen_t len = sizeof peer;
    CHECK(getpeername(c, (struct sockaddr *)&peer, &len) == 0 && peer.sin_port == address.sin_port);
    int one = 1, type = 0, error = 1;
    CHECK(setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0);
    len = sizeof type;
    CHECK(getsockopt(c, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_STREAM);
    CHECK(getsockopt(c, SOL_SOCKET, SO_ERROR, &error, &len) == 0 && error == 0);
    static char out[200000], in[200000];
    for (int i = 0; i < (int)sizeof out; i++) out[i] = (char)(i * 7 + i / 256);
    size_t sent = 0, received = 0;
    while (received < sizeof in) {
        if (sent < sizeof out) {
            size_t part = sizeof out - sent < 50000 ? sizeof out - sent : 50000;
            struct iovec v[2] = {{out + sent, part / 3}, {out + sent + part / 3, part - part / 3}};
            ssize_t w = writev(c, v, 2);
            CHECK(w > 0);
            sent += w;
        }
        ssize_t r = recv(c, in + received, sent - received, MSG_WAITALL);
        CHECK(r > 0);
        received += r;
    }
    printf("tcp: %zu bytes back, %s\n", received, memcmp(in, out, sizeof in) ? "others" : "the same");
    CHECK(shutdown(c, SHUT_WR) == 0);
    CHECK(read(c, in, 1) == 0);
    pthread_join(t, NULL);
    CHECK(close(c) == 0 && close(s) == 0);
    CHECK(close(c) == -1 && errno == EBADF);
    c = socket(AF_INET, SOCK_STREAM, 0);
    int refused = connect(c, (struct sockaddr *)&address, sizeof address);
    printf("refused: %d %s\n", refused, strerror(errno));
    close(c);
}

static void udp(void) {
    struct sockaddr_in a, b, from;
    int x = bound(SOCK_DGRAM, &a), y = bound(SOCK_DGRAM, &b);
    CHECK(sendto(x, "one", 3, 0, (struct sockaddr *)&b, sizeof b) == 3);
    CHECK(sendto(x, "twotwo", 6, 0, (struct sockaddr *)&b, sizeof b) == 6);
    char buffer[16];
    int available = 0;
    CHECK(ioctl(y, FIONREAD, &available) == 0 && available == 3);
    socklen_t len = sizeof from;
    CHECK(recvfrom(y, buffer, sizeof buffer, MSG_PEEK, (struct sockaddr *)&from, &len) == 3);
    CHECK(from.sin_port == a.sin_port && len == sizeof from);
    CHECK(recv(y, buffer, sizeof buffer, 0) == 3);
    struct iovec v = {buffer, 2};
    struct msghdr m = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &v, .msg_iovlen = 1};
    CHECK(recvmsg(y, &m, 0) == 2 && (m.msg_flags & MSG_TRUNC));
    CHECK(recv(y, buffer, sizeof buffer, MSG_DONTWAIT) == -1);
    printf("udp: %s\n", strerror(errno));
    struct timeval limit = {0, 20000};
    CHECK(setsockopt(y, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    CHECK(recv(y, buffer, sizeof buffer, 0) == -1 && errno == EAGAIN);
    close(x), close(y);
}

static void *later(void *arg) {
    usleep(20000);
    uint64_t one = 1;
    CHECK(write((int)(long)arg, &one, 8) == 8);
    return NULL;
}

static void inside(void) {
    int p[2], q[2], n;
    char buffer[16];
    CHECK(pipe2(p, O_NONBLOCK | O_CLOEXEC) == 0);
    CHECK(read(p[0], buffer, 1) == -1);
    printf("empty pipe: %s\n", strerror(errno));
    CHECK(write(p[1], "hello", 5) == 5);
    CHECK(ioctl(p[0], FIONREAD, &n) == 0 && n == 5);
    int d = dup(p[1]);
    close(p[1]);
    CHECK(read(p[0], buffer, 16) == 5 && read(p[0], buffer, 1) == -1);
    close(d);
    CHECK(read(p[0], buffer, 1) == 0);
    CHECK(fcntl(p[0], F_GETFD) == FD_CLOEXEC && (fcntl(p[0], F_GETFL) & O_NONBLOCK));
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, q) == 0);
    CHECK(send(q[0], "ping", 4, MSG_NOSIGNAL) == 4 && recv(q[1], buffer, 16, 0) == 4);
    close(q[0]);
    CHECK(send(q[1], "x", 1, MSG_NOSIGNAL) == -1);
    printf("closed pair: %s\n", strerror(errno));
    CHECK(recv(q[1], buffer, 16, 0) == 0);
    close(q[1]);
    CHECK(write(p[0], "x", 1) == -1);
    printf("reading end: %s\n", strerror(errno));
    close(p[0]);
}

static void waiting(void) {
    struct sockaddr_in address;
    int e = epoll_create1(EPOLL_CLOEXEC), counter = eventfd(0, EFD_NONBLOCK), timer = timerfd_create(CLOCK_MONOTONIC, 0);
    int s = bound(SOCK_STREAM, &address);
    CHECK(e >= 0 && counter >= 0 && timer >= 0 && listen(s, 8) == 0);
    struct epoll_event ev = {EPOLLIN | EPOLLET, {.u64 = 0x1111222233334444}}, got[8];
    CHECK(epoll_ctl(e, EPOLL_CTL_ADD, counter, &ev) == 0);
    CHECK(epoll_ctl(e, EPOLL_CTL_ADD, counter, &ev) == -1 && errno == EEXIST);
    ev.data.u64 = 2;
    CHECK(epoll_ctl(e, EPOLL_CTL_ADD, timer, &ev) == 0);
    ev.events = EPOLLIN, ev.data.u64 = 3;
    CHECK(epoll_ctl(e, EPOLL_CTL_ADD, s, &ev) == 0);
    CHECK(epoll_wait(e, got, 8, 0) == 0);
    pthread_t t;
    pthread_create(&t, NULL, later, (void *)(long)counter);
    CHECK(epoll_wait(e, got, 8, -1) == 1);
    printf("epoll: data %llx events %x\n", (unsigned long long)got[0].data.u64, got[0].events);
    pthread_join(t, NULL);
    CHECK(epoll_wait(e, got, 8, 5) == 0); /* edge: no more until it is written again */
    uint64_t v = 41;
    CHECK(write(counter, &v, 8) == 8 && epoll_wait(e, got, 8, -1) == 1);
    CHECK(read(counter, &v, 8) == 8);
    printf("counter: %llu\n", (unsigned long long)v);
    CHECK(read(counter, &v, 8) == -1 && errno == EAGAIN);
    struct itimerspec when = {{0, 10000000}, {0, 10000000}};
    CHECK(timerfd_settime(timer, 0, &when, NULL) == 0);
    CHECK(epoll_wait(e, got, 8, -1) == 1 && got[0].data.u64 == 2);
    CHECK(epoll_wait(e, got, 8, 30) == 0); /* no edge until it is read */
    CHECK(read(timer, &v, 8) == 8 && v >= 2);
    CHECK(epoll_wait(e, got, 8, -1) == 1 && got[0].data.u64 == 2);
    when.it_interval.tv_nsec = when.it_value.tv_nsec = 0;
    CHECK(timerfd_settime(timer, 0, &when, NULL) == 0);
    CHECK(epoll_wait(e, got, 8, 0) == 0);
    int c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int r = connect(c, (struct sockaddr *)&address, sizeof address);
    CHECK(r == 0 || errno == EINPROGRESS);
    CHECK(epoll_wait(e, got, 8, -1) == 1 && got[0].data.u64 == 3);
    CHECK(epoll_wait(e, got, 8, -1) == 1); /* level: still there */
    int a = accept4(s, NULL, NULL, SOCK_NONBLOCK);
    CHECK(a >= 0 && epoll_wait(e, got, 8, 0) == 0);
    ev.events = EPOLLIN | EPOLLONESHOT | EPOLLRDHUP, ev.data.u64 = 4;
    CHECK(epoll_ctl(e, EPOLL_CTL_ADD, a, &ev) == 0);
    CHECK(write(c, "x", 1) == 1 && epoll_wait(e, got, 8, -1) == 1 && got[0].data.u64 == 4);
    CHECK(epoll_wait(e, got, 8, 5) == 0);
    CHECK(epoll_ctl(e, EPOLL_CTL_MOD, a, &ev) == 0 && epoll_wait(e, got, 8, -1) == 1);
    CHECK(epoll_ctl(e, EPOLL_CTL_DEL, a, NULL) == 0 && epoll_ctl(e, EPOLL_CTL_DEL, a, NULL) == -1);
    printf("deleted: %s\n", strerror(errno));
    struct pollfd p[4] = {{a, POLLIN, 0}, {counter, POLLIN | POLLOUT, 0}, {-1, POLLIN, 7}, {9999, POLLIN, 0}};
    CHECK(poll(p, 4, -1) == 3);
    printf("poll: %x %x %x %x\n", p[0].revents, p[1].revents, p[2].revents, p[3].revents);
    char buffer[8];
    CHECK(read(a, buffer, 8) == 1 && poll(p, 1, 5) == 0);
    pthread_create(&t, NULL, later, (void *)(long)counter);
    p[1].events = POLLIN;
    CHECK(poll(p, 2, -1) == 1 && p[1].revents == POLLIN); /* a socket and a counter at once */
    pthread_join(t, NULL);
    fd_set in, out;
    FD_ZERO(&in);
    FD_ZERO(&out);
    FD_SET(a, &in);
    FD_SET(counter, &in);
    FD_SET(c, &out);
    struct timeval limit = {1, 0};
    int n = select(c > a ? c + 1 : a + 1, &in, &out, NULL, &limit);
    printf("select: %d, %d %d %d\n", n, FD_ISSET(a, &in) != 0, FD_ISSET(counter, &in) != 0, FD_ISSET(c, &out) != 0);
    CHECK(read(counter, &v, 8) == 8 && v == 1);
    close(c);
    ev.events = EPOLLIN | EPOLLRDHUP, ev.data.u64 = 5;
    CHECK(epoll_ctl(e, EPOLL_CTL_ADD, a, &ev) == 0 && epoll_wait(e, got, 8, -1) == 1);
    printf("hang-up: %x\n", got[0].events);
    close(a), close(s), close(e), close(counter), close(timer);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    tcp();
    udp();
    inside();
    waiting();
    return 0;
}
