/* A C program with threads, math, varargs, sorting and setjmp. Prints the same inside and outside. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static __thread int local = 3;
static int turns;

static void *worker(void *arg) {
    int me = (int)(intptr_t)arg;
    local += me;
    for (int i = 0; i < 100; i++) {
        pthread_mutex_lock(&lock);
        while (turns % 3 != me) pthread_cond_wait(&changed, &lock);
        turns++;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
    }
    return (void *)(intptr_t)local;
}

static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

int main(void) {
    pthread_t t[3];
    for (intptr_t i = 0; i < 3; i++) pthread_create(&t[i], NULL, worker, (void *)i);
    for (int i = 0; i < 3; i++) {
        void *result;
        pthread_join(t[i], &result);
        printf("thread %d returned %d\n", i, (int)(intptr_t)result);
    }
    printf("turns %d local %d\n", turns, local);
    int numbers[1000];
    unsigned state = 12345;
    for (int i = 0; i < 1000; i++) numbers[i] = (state = state * 1103515245 + 12345) >> 8;
    qsort(numbers, 1000, sizeof *numbers, compare);
    printf("sorted %d %d %d\n", numbers[0], numbers[499], numbers[999]);
    printf("math %.12f %.12f %.12f\n", sin(1.0), pow(2.0, 0.5), (double)expl(1.0L));
    jmp_buf env;
    volatile int jumps = 0;
    if (setjmp(env) < 5) { jumps++; longjmp(env, jumps); }
    printf("jumps %d\n", jumps);
    char *text = NULL;
    size_t size = 0;
    FILE *stream = open_memstream(&text, &size);
    for (int i = 0; i < 1000; i++) fprintf(stream, "%d,", i * i);
    fclose(stream);
    printf("stream %zu %.20s\n", size, text);
    char *grown = malloc(10);
    for (size_t n = 10; n < (4u << 20); n *= 2) { grown = realloc(grown, n); memset(grown, 7, n); }
    printf("grown %d\n", grown[1 << 20]);
    struct timespec ts;
    printf("clock %d\n", clock_gettime(CLOCK_MONOTONIC, &ts));
    fflush(stdout);
    return 17;
}
