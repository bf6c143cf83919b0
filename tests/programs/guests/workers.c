// Threads that hand work to each other, files and malloc: what it prints does not depend on when anything happens.
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { WORKERS = 3, ITEMS = 300 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int queued, done, closed;
static unsigned long long sum;

static void *work(void *unused) {
    pthread_mutex_lock(&lock);
    for (;;) {
        while (queued == 0 && !closed) pthread_cond_wait(&changed, &lock);
        if (queued == 0) break;
        int item = queued--;
        pthread_mutex_unlock(&lock);
        // Sizes from a byte to a mebibyte, so that malloc goes both ways.
        size_t size = (size_t)1 << item % 21;
        unsigned char *memory = malloc(size);
        if (!memory) abort();
        memset(memory, item, size);
        unsigned long long part = memory[0] + memory[size - 1];
        free(memory);
        pthread_mutex_lock(&lock);
        sum += part;
        done++;
        pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&lock);
    return unused;
}

static long long now(void) {
    struct timespec t;
    if (clock_gettime(CLOCK_MONOTONIC, &t)) return -1;
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int count, char **unused) {
    (void)unused;
    pthread_t threads[WORKERS];
    int started = 0;
    for (int i = 0; i < WORKERS; i++) started += pthread_create(&threads[started], NULL, work, NULL) == 0;
    if (started == 0) {
        puts("no threads");
        return 3;
    }
    for (int i = 0; i < ITEMS; i++) {
        pthread_mutex_lock(&lock);
        queued++;
        pthread_cond_signal(&changed);
        pthread_mutex_unlock(&lock);
    }
    pthread_mutex_lock(&lock);
    while (done < ITEMS) pthread_cond_wait(&changed, &lock);
    closed = 1;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
    printf("%d items\n", done);

    char text[64] = "", name[] = "/tmp/workers-XXXXXX";
    int fd = mkstemp(name);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w+");
    if (!file) {
        printf("no file: %s\n", strerror(errno));
        return 4;
    }
    for (int i = 0; i < 1000; i++) fprintf(file, "line %d\n", i);
    long size = ftell(file);
    rewind(file);
    int lines = 0;
    while (fgets(text, sizeof text, file)) lines++;
    fclose(file);
    unlink(name);
    printf("%ld bytes, %d lines, the last: %s", size, lines, text);

    if (count < 2) return 0;
    // Past the second after which the runtime asks the host for the time again.
    long long last = now(), backwards = 0;
    for (int i = 0; i < 12; i++) {
        struct timespec tenth = {0, 100000000};
        nanosleep(&tenth, NULL);
        for (int j = 0; j < 20; j++) {
            long long t = now();
            if (t < last) backwards++;
            last = t;
        }
    }
    printf("%lld times backwards\n", backwards);
    return 0;
}
