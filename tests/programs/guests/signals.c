/* Signals between threads, and what waits for them: prints the same inside and outside. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <netinet/in.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { printf("line %d: %s: %s\n", __LINE__, #what, strerror(errno)); exit(1); } } while (0)

static volatile sig_atomic_t count, last_signal, last_code;
static volatile uintptr_t handler_stack;

static void counted(int signal, siginfo_t *info, void *context) {
    char here;
    (void)context;
    count++;
    last_signal = signal;
    last_code = info->si_code;
    handler_stack = (uintptr_t)&here;
}

static void handle(int signal, void (*f)(int, siginfo_t *, void *), int flags) {
    struct sigaction a = {.sa_sigaction = f, .sa_flags = SA_SIGINFO | flags};
    sigemptyset(&a.sa_mask);
    CHECK(sigaction(signal, &a, NULL) == 0);
}

static void block(int how, int signal, sigset_t *before) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    CHECK(pthread_sigmask(how, &set, before) == 0);
}

/* Registers and vector registers survive a handler that uses them. */
static void clobbers(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info, (void)context;
    count++;
    __asm__ volatile("pcmpeqd %%xmm0, %%xmm0\n pcmpeqd %%xmm7, %%xmm7\n pcmpeqd %%xmm15, %%xmm15\n"
                     "xor %%r8d, %%r8d\n xor %%r9d, %%r9d\n xor %%r10d, %%r10d\n cld"
                     ::: "xmm0", "xmm7", "xmm15", "r8", "r9", "r10", "cc");
}

static void registers(void) {
    handle(SIGUSR2, clobbers, 0);
    uint64_t rbx = 3, x = 0;
    double a = 1.5, b = 2.5;
    long result, me = syscall(SYS_gettid), process = getpid();
    unsigned char carry;
    count = 0;
    register uint64_t in8 __asm__("r8") = 8;
    register uint64_t in10 __asm__("r10") = 10;
    __asm__ volatile("movsd %[a], %%xmm7\n movsd %[b], %%xmm15\n stc\n syscall\n"
                     "setc %[c]\n movq %%xmm7, %[x]\n addsd %%xmm15, %%xmm7\n movsd %%xmm7, %[a]"
                     : "=a"(result), [a] "+m"(a), [x] "=r"(x), [c] "=q"(carry), "+r"(in8), "+r"(in10)
                     : "0"(SYS_tgkill), "D"(process), "S"(me), "d"(SIGUSR2), "b"(rbx), [b] "m"(b)
                     : "rcx", "r11", "memory", "xmm7", "xmm15");
    uint64_t out8 = in8, out10 = in10;
    printf("registers: result %ld handlers %d %.1f %d, r8 %d r10 %d carry %d\n", result, (int)count, a, x == 0x3ff8000000000000,
           (int)out8, (int)out10, carry);
}

static void basics(void) {
    struct sigaction old;
    handle(SIGUSR1, counted, 0);
    CHECK(sigaction(SIGUSR1, NULL, &old) == 0 && old.sa_sigaction == counted && (old.sa_flags & SA_SIGINFO));
    CHECK(raise(SIGUSR1) == 0);
    printf("raise: %d %s\n", (int)count, last_code == SI_TKILL ? "by a thread" : "otherwise");
    CHECK(kill(getpid(), SIGUSR1) == 0);
    printf("kill: %d %s\n", (int)count, last_code == SI_USER ? "by a process" : "otherwise");
    sigset_t before, waiting;
    block(SIG_BLOCK, SIGUSR1, &before);
    raise(SIGUSR1);
    raise(SIGUSR1);
    CHECK(sigpending(&waiting) == 0);
    printf("blocked: %d, pending %d\n", (int)count, sigismember(&waiting, SIGUSR1));
    block(SIG_UNBLOCK, SIGUSR1, NULL);
    printf("unblocked: %d\n", (int)count);
    signal(SIGPIPE, SIG_IGN);
    raise(SIGPIPE);
    raise(SIGCHLD);
    CHECK(signal(SIGPIPE, SIG_DFL) == SIG_IGN);
    CHECK(kill(getpid(), 0) == 0 && kill(getpid(), 65) == -1);
    printf("no such signal: %s\n", strerror(errno));
    CHECK(sigaction(SIGKILL, &old, NULL) == -1);
    printf("SIGKILL: %s\n", strerror(errno));
    handle(SIGUSR1, counted, SA_RESETHAND);
    raise(SIGUSR1);
    CHECK(sigaction(SIGUSR1, NULL, &old) == 0 && old.sa_handler == SIG_DFL);
    handle(SIGUSR1, counted, 0);
    static char stack[65536];
    stack_t s = {.ss_sp = stack, .ss_size = sizeof stack}, was;
    CHECK(sigaltstack(&s, &was) == 0);
    handle(SIGUSR2, counted, SA_ONSTACK);
    raise(SIGUSR2);
    printf("alternative stack: %d\n", handler_stack - (uintptr_t)stack < sizeof stack);
    raise(SIGUSR1);
    printf("ordinary stack: %d\n", !(handler_stack - (uintptr_t)stack < sizeof stack));
    s.ss_flags = SS_DISABLE;
    CHECK(sigaltstack(&s, &was) == 0 && was.ss_sp == stack && was.ss_flags == 0);
}

static sigjmp_buf back;

static void jumps(int signal, siginfo_t *info, void *context) {
    (void)info, (void)context;
    siglongjmp(back, signal);
}

static void nested(int signal, siginfo_t *info, void *context) {
    (void)info, (void)context;
    printf("into %s\n", signal == SIGUSR1 ? "one" : "two");
    if (signal == SIGUSR1) {
        raise(SIGUSR1); /* blocked until the handler is done */
        raise(SIGUSR2);
        signal = 0;
        handle(SIGUSR1, counted, 0);
    }
    printf("out\n");
}

static void handlers(void) {
    handle(SIGUSR1, jumps, 0);
    int jumped = sigsetjmp(back, 1);
    if (!jumped) raise(SIGUSR1);
    printf("jumped: %d\n", jumped);
    count = 0;
    handle(SIGUSR1, nested, 0);
    handle(SIGUSR2, nested, 0);
    raise(SIGUSR1);
    printf("after: %d\n", (int)count);
}

struct waiter {
    pthread_t thread;
    int what, fd, fd2, done;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;

static void *waits(void *arg) {
    struct waiter *w = arg;
    struct pollfd p[2] = {{w->fd, POLLIN, 0}, {w->fd2, POLLIN, 0}};
    struct epoll_event e[4];
    struct timespec long_time = {60, 0}, left;
    char buffer[8];
    long r;
    errno = 0;
    switch (w->what) {
        case 0: r = pause(); break;
        case 1: r = nanosleep(&long_time, &left); CHECK(left.tv_sec > 10); break;
        case 2: r = poll(p, 2, -1); break;
        case 3: r = read(w->fd, buffer, 8); break;
        case 4: r = epoll_wait(w->fd, e, 4, -1); break;
        case 5: r = accept(w->fd, NULL, NULL); break;
        case 6: r = poll(p, 1, 60000); break;
        default: r = select(0, NULL, NULL, NULL, NULL); break;
    }
    r = r == -1 ? errno : 0;
    __atomic_store_n(&w->done, 1, __ATOMIC_SEQ_CST);
    return (void *)r;
}

/* Signals until the thread has noticed: the first may come before it waits. */
static void until_done(pthread_t thread, int *done, int signal) {
    while (!__atomic_load_n(done, __ATOMIC_SEQ_CST)) {
        pthread_kill(thread, signal);
        usleep(2000);
    }
}

static long interrupted(int what, int fd, int fd2, int signal) {
    struct waiter w = {.what = what, .fd = fd, .fd2 = fd2};
    void *result;
    CHECK(pthread_create(&w.thread, NULL, waits, &w) == 0);
    if (what == 3 && signal == SIGUSR2) {
        /* SA_RESTART: it waits on until there is something. */
        uint64_t one = 1;
        usleep(20000);
        CHECK(pthread_kill(w.thread, signal) == 0);
        usleep(10000);
        CHECK(write(fd, &one, 8) == 8);
    } else {
        until_done(w.thread, &w.done, signal);
    }
    CHECK(pthread_join(w.thread, &result) == 0);
    return (long)result;
}

static void waits_end(void) {
    handle(SIGUSR1, counted, 0);
    handle(SIGUSR2, counted, SA_RESTART);
    int e = epoll_create1(0), counter = eventfd(0, 0), s = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(bind(s, (struct sockaddr *)&address, sizeof address) == 0 && listen(s, 1) == 0);
    struct epoll_event ev = {EPOLLIN, {.u64 = 1}};
    CHECK(epoll_ctl(e, EPOLL_CTL_ADD, s, &ev) == 0);
    static const char *names[] = {"pause", "nanosleep", "poll", "read", "epoll_wait", "accept", "poll with a limit", "select"};
    int fds[][2] = {{-1, -1}, {-1, -1}, {s, counter}, {counter, -1}, {e, -1}, {s, -1}, {counter, -1}, {-1, -1}};
    for (int i = 0; i < 8; i++) {
        count = 0;
        long r = interrupted(i, fds[i][0], fds[i][1], SIGUSR1);
        printf("%s: %s, handlers %d\n", names[i], strerror(r), count > 0);
    }
    count = 0;
    long r = interrupted(3, counter, -1, SIGUSR2);
    printf("read, restarted: %s, handlers %d\n", strerror(r), (int)count);
    r = interrupted(4, e, -1, SIGUSR2);
    printf("epoll_wait is not restarted: %s\n", strerror(r));
    close(e), close(s), close(counter);
}

/* Several threads wait in one epoll instance: the signal finds the one it is for. */
static void one_of_several(void) {
    struct waiter w[3];
    void *result;
    int e = epoll_create1(0);
    for (int i = 0; i < 3; i++) {
        w[i] = (struct waiter){.what = 4, .fd = e};
        CHECK(pthread_create(&w[i].thread, NULL, waits, &w[i]) == 0);
    }
    usleep(20000);
    for (int i = 2; i >= 0; i--) {
        until_done(w[i].thread, &w[i].done, SIGUSR1);
        for (int j = 0; j < i; j++) CHECK(!w[j].done);
        CHECK(pthread_join(w[i].thread, &result) == 0);
        printf("one of several in epoll_wait: %s\n", strerror((long)result));
    }
    close(e);
}

static void *waits_for_signals(void *arg) {
    (void)arg;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    siginfo_t info;
    int got = sigwaitinfo(&set, &info);
    return (void *)(long)(got == SIGTERM && info.si_signo == SIGTERM ? got : -1);
}

static void taken(void) {
    sigset_t before, set;
    block(SIG_BLOCK, SIGTERM, &before);
    pthread_t t;
    void *result;
    CHECK(pthread_create(&t, NULL, waits_for_signals, NULL) == 0);
    usleep(10000);
    CHECK(kill(getpid(), SIGTERM) == 0 && pthread_join(t, &result) == 0);
    printf("sigwaitinfo: %ld\n", (long)result);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    struct timespec limit = {0, 5000000};
    CHECK(sigtimedwait(&set, NULL, &limit) == -1);
    printf("sigtimedwait: %s\n", strerror(errno));
    /* The idiom without a race: blocked but while waiting. */
    handle(SIGTERM, counted, 0);
    count = 0;
    raise(SIGTERM);
    sigset_t none;
    sigemptyset(&none);
    CHECK(ppoll(NULL, 0, NULL, &none) == -1 && errno == EINTR && count == 1);
    raise(SIGTERM);
    CHECK(sigsuspend(&none) == -1 && errno == EINTR && count == 2);
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &set) == 0 && sigismember(&set, SIGTERM));
    printf("masks while waiting: %d\n", (int)count);
    CHECK(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0);
}

static volatile int cleaned;

static void cleanup(void *arg) {
    cleaned += (int)(long)arg;
}

static void *cancelled(void *arg) {
    pthread_cleanup_push(cleanup, (void *)1);
    if (arg) for (;;) pause();
    pthread_mutex_lock(&mutex);
    pthread_cleanup_push((void (*)(void *))pthread_mutex_unlock, &mutex);
    for (;;) pthread_cond_wait(&condition, &mutex);
    pthread_cleanup_pop(1);
    pthread_cleanup_pop(1);
    return NULL;
}

static void cancelling(void) {
    for (long i = 0; i < 2; i++) {
        pthread_t t;
        void *result;
        CHECK(pthread_create(&t, NULL, cancelled, (void *)i) == 0);
        usleep(10000);
        CHECK(pthread_cancel(t) == 0 && pthread_join(t, &result) == 0);
        printf("cancelled: %d, cleaned up %d\n", result == PTHREAD_CANCELED, cleaned);
    }
    CHECK(pthread_mutex_trylock(&mutex) == 0);
}

static void *storm(void *arg) {
    for (int i = 0; i < 2000; i++) pthread_kill(*(pthread_t *)arg, i % 2 ? SIGUSR1 : SIGUSR2);
    return NULL;
}

static void storms(void) {
    handle(SIGUSR1, counted, SA_RESTART);
    handle(SIGUSR2, clobbers, SA_RESTART);
    int p[2];
    CHECK(pipe(p) == 0);
    pthread_t me = pthread_self(), t;
    CHECK(pthread_create(&t, NULL, storm, &me) == 0);
    uint64_t sum = 0, expected = 0;
    double x = 0;
    for (uint64_t i = 0; i < 20000; i++) {
        uint64_t v = 0;
        x += 0.5;
        CHECK(write(p[1], &i, 8) == 8 && read(p[0], &v, 8) == 8);
        sum += v * 3;
        expected += i * 3;
    }
    pthread_join(t, NULL);
    printf("storm: %d %.0f\n", sum == expected, x);
}

/* Waits to be told to stop from outside. */
static int server(void) {
    handle(SIGTERM, counted, 0);
    handle(SIGUSR1, counted, 0);
    int e = epoll_create1(0), s = socket(AF_INET, SOCK_STREAM, 0);
    struct epoll_event ev = {EPOLLIN, {.u64 = 1}};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(bind(s, (struct sockaddr *)&address, sizeof address) == 0 && listen(s, 1) == 0);
    CHECK(epoll_ctl(e, EPOLL_CTL_ADD, s, &ev) == 0);
    printf("ready\n");
    while (last_signal != SIGTERM) {
        struct epoll_event got[2];
        epoll_wait(e, got, 1, -1);
    }
    printf("stopped by %d, %s\n", last_signal, last_code == SI_USER ? "a process" : "another");
    return 0;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 2 && !strcmp(argv[1], "server")) return server();
    basics();
    registers();
    handlers();
    waits_end();
    one_of_several();
    taken();
    cancelling();
    storms();
    signal(SIGALRM, SIG_IGN);
    return 0;
}
