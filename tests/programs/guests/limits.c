/* What there is not, and what there is no more of: each an error, and the program goes on. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { printf("line %d: %s: %s\n", __LINE__, #what, strerror(errno)); exit(1); } } while (0)

/* Descriptors do not leave, not even to the program itself. */
static void ancillary(void) {
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    char byte = 1, control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec v = {&byte, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &pair[0], sizeof(int));
    CHECK(sendmsg(pair[0], &m, 0) == -1);
    printf("SCM_RIGHTS: %s\n", strerror(errno));
    close(pair[0]), close(pair[1]);
}

static void nested(void) {
    int outer = epoll_create1(0), inner = epoll_create1(0);
    struct epoll_event ev = {EPOLLIN, {.u64 = 1}};
    CHECK(epoll_ctl(outer, EPOLL_CTL_ADD, inner, &ev) == -1);
    printf("epoll within epoll: %s\n", strerror(errno));
    close(outer), close(inner);
}

/* Many messages at once. */
static void messages(void) {
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    char in[3][4], out[3][4] = {"one", "two", "six"};
    struct iovec to[3], from[3];
    struct mmsghdr sent[3] = {0}, got[3] = {0};
    for (int i = 0; i < 3; i++) {
        to[i] = (struct iovec){in[i], 4}, from[i] = (struct iovec){out[i], 4};
        sent[i].msg_hdr.msg_iov = &from[i], sent[i].msg_hdr.msg_iovlen = 1;
        got[i].msg_hdr.msg_iov = &to[i], got[i].msg_hdr.msg_iovlen = 1;
    }
    CHECK(sendmmsg(pair[0], sent, 2, 0) == 2 && sent[1].msg_len == 4);
    CHECK(recvmmsg(pair[1], got, 3, MSG_WAITFORONE, NULL) == 2 && got[0].msg_len == 4);
    CHECK(recvmmsg(pair[1], got, 3, MSG_DONTWAIT, NULL) == -1 && errno == EAGAIN);
    printf("messages: %s %s\n", in[0], in[1]);
    close(pair[0]), close(pair[1]);
}

static void descriptors(void) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    int first = eventfd(0, 0), last = first, fd;
    while ((fd = eventfd(0, 0)) >= 0) last = fd;
    printf("descriptors: %s, all %d used\n", strerror(errno), last + 1 == (int)limit.rlim_cur);
    close(first + 1000), close(first + 10);
    CHECK(dup(0) == first + 10 && dup(0) == first + 1000 && dup(0) == -1 && errno == EMFILE);
    CHECK(close_range(first, ~0U, 0) == 0 && dup(0) == first);
    close(first);
}

static void memory(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 8) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &len) == 0);
    CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
    static void *blocks[65536];
    int n = 0;
    for (size_t size = 1 << 20; size >= 4096; size /= 2)
        while (n < 65536) {
            void *block = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (block == MAP_FAILED) break;
            blocks[n++] = block;
            *(size_t *)block = size;
        }
    int a = accept(listener, NULL, NULL), e = errno, s = socket(AF_INET, SOCK_STREAM, 0), f = errno;
    for (int i = 0; i < n; i++) munmap(blocks[i], *(size_t *)blocks[i]);
    printf("no memory: accept %d %s, socket %d %s\n", a, strerror(e), s, strerror(f));
    CHECK((a = accept(listener, NULL, NULL)) >= 0 && write(client, "x", 1) == 1 && read(a, &address, 1) == 1);
    printf("with memory: accepted\n");
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    ancillary();
    nested();
    messages();
    descriptors();
    memory();
    return 0;
}
