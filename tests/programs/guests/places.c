/* Four threads that end, and four at once while the host still takes the place of one of them apart. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { THREADS = 4 };

static pthread_barrier_t barrier;
static pthread_t first[THREADS];

/* Ends after the ones before it. */
static void *one_after_another(void *number) {
    pthread_barrier_wait(&barrier);
    int i = (int)(long)number;
    if (i) pthread_join(first[i - 1], NULL);
    /* What was joined has its work done, and a moment later its place is free. */
    nanosleep(&(struct timespec){0, 10000000}, NULL);
    return NULL;
}

static void *at_once(void *unused) {
    pthread_barrier_wait(&barrier);
    return unused;
}

int main(void) {
    pthread_t threads[THREADS];
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (long i = 0; i < THREADS; i++)
        if (pthread_create(&first[i], NULL, one_after_another, (void *)i)) return 2;
    /* Where that is done by now, the rest is easy. */
    nanosleep(&(struct timespec){0, 200000000}, NULL);
    pthread_barrier_destroy(&barrier);
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (int i = 0; i < THREADS; i++) {
        int error = pthread_create(&threads[i], NULL, at_once, NULL);
        if (error) {
            printf("thread %d: %s\n", i, strerror(error));
            return 3;
        }
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    pthread_join(first[THREADS - 1], NULL);
    printf("%d at once\n", THREADS);
    return 0;
}
