// Uses Linux in many ways and prints what must be the same in every run.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t done = PTHREAD_COND_INITIALIZER;
static int sum, finished;
static __thread int local;
static volatile sig_atomic_t signals;
static sigjmp_buf jump;

static void *work(void *arg) {
    local = (int)(long)arg;
    for (int i = 0; i < 1000; i++) {
        pthread_mutex_lock(&lock);
        sum += local;
        pthread_mutex_unlock(&lock);
        if (i % 100 == 0) sched_yield();
    }
    pthread_mutex_lock(&lock);
    finished++;
    pthread_cond_signal(&done);
    pthread_mutex_unlock(&lock);
    return arg;
}

static void on_signal(int n) {
    signals++;
    if (getpid() <= 0) abort();
    if (n == SIGSEGV) siglongjmp(jump, 1);
}

int main(int argc, char **argv) {
    pthread_t threads[8];
    for (long i = 0; i < 8; i++) pthread_create(&threads[i], NULL, work, (void *)i);
    pthread_mutex_lock(&lock);
    while (finished < 8) pthread_cond_wait(&done, &lock);
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < 8; i++) pthread_join(threads[i], NULL);
    printf("sum %d argc %d %s\n", sum, argc, argv[1]);

    int fd = open("file", O_CREAT | O_RDWR, 0600);
    struct stat st;
    if (write(fd, "hello\n", 6) != 6 || lseek(fd, 1, SEEK_SET) != 1 || fstat(fd, &st)) return 1;
    char text[16] = {0};
    printf("read %zd %s size %ld\n", read(fd, text, 3), text, (long)st.st_size);
    printf("rename %d missing %d %s\n", rename("file", "other"), open("nowhere", 0), strerror(errno));
    DIR *dir = opendir(".");
    int entries = 0;
    while (readdir(dir)) entries++;
    closedir(dir);
    printf("entries %d unlink %d\n", entries, unlink("other"));

    int pipes[2];
    if (pipe(pipes)) return 1;
    pid_t child = fork();
    if (child == 0) {
        if (write(pipes[1], "child", 5) != 5) _exit(1);
        _exit(42);
    }
    int status;
    waitpid(child, &status, 0);
    printf("pipe %zd %.5s status %d\n", read(pipes[0], text, 5), text, WEXITSTATUS(status));
    char *command[] = {"true", NULL};
    printf("spawn %d\n", posix_spawn(&child, "/bin/true", NULL, NULL, command, NULL));
    waitpid(child, &status, 0);
    printf("status %d system %d\n", WEXITSTATUS(status), WEXITSTATUS(system("exit 3")));

    volatile char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memory[4096] = 7;
    printf("mprotect %d\n", mprotect((void *)memory, 1 << 20, PROT_READ));
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    raise(SIGUSR1);
    kill(getpid(), SIGUSR1);
    if (!sigsetjmp(jump, 1)) memory[4096] = 8;
    printf("signals %d memory %d\n", signals, memory[4096]);
    printf("munmap %d\n", munmap((void *)memory, 1 << 20));
    struct itimerspec every = {{0, 1000000}, {0, 1000000}};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    timer_t timer;
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    timer_settime(timer, 0, &every, NULL);
    while (signals < 20) {
        struct timespec wait = {0, 300000};
        nanosleep(&wait, NULL);
        if (syscall(SYS_gettid) != getpid()) return 1;
    }
    timer_delete(timer);

    int pair[2], epoll = epoll_create1(0);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return 1;
    struct epoll_event ready = {EPOLLIN, {.fd = pair[1]}};
    epoll_ctl(epoll, EPOLL_CTL_ADD, pair[1], &ready);
    send(pair[0], "x", 1, 0);
    struct pollfd poll_fd = {pair[1], POLLIN, 0};
    printf("epoll %d poll %d\n", epoll_wait(epoll, &ready, 1, 1000), poll(&poll_fd, 1, 1000));
    unsigned char random[16] = {0};
    struct timespec now;
    printf("random %zd clock %d raw %d\n", getrandom(random, 16, 0), clock_gettime(CLOCK_REALTIME, &now),
           syscall(SYS_getpid) == getpid());
    FILE *out = popen("cat", "w");
    fprintf(out, "through cat\n");
    pclose(out);
    return 5;
}
