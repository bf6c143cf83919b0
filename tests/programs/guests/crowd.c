/* Twelve threads at once, three times: each meets the others, and they end one after another. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>

enum { THREADS = 12, ROUNDS = 3 };

static pthread_barrier_t barrier;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int turn;

static void *work(void *number) {
    pthread_barrier_wait(&barrier);
    pthread_mutex_lock(&lock);
    while (turn != (int)(intptr_t)number) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return number;
}

int main(void) {
    for (int round = 0; round < ROUNDS; round++) {
        pthread_t threads[THREADS];
        turn = -1;
        if (pthread_barrier_init(&barrier, NULL, THREADS)) return 2;
        for (intptr_t i = 0; i < THREADS; i++)
            if (pthread_create(&threads[i], NULL, work, (void *)i)) return 3;
        int ended = 0;
        for (intptr_t i = 0; i < THREADS; i++) {
            void *number;
            pthread_mutex_lock(&lock);
            turn = (int)i;
            pthread_cond_broadcast(&changed);
            pthread_mutex_unlock(&lock);
            if (pthread_join(threads[i], &number)) return 4;
            ended += number == (void *)i;
        }
        pthread_barrier_destroy(&barrier);
        printf("%d threads\n", ended);
        fflush(stdout);
    }
    return 0;
}
