/* Memory that grows and shrinks, protections, threads one after another and many at once. Prints the same inside and
   outside. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int all(const unsigned char *at, unsigned char value, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (at[i] != value) return 0;
    return 1;
}

static unsigned char *map(size_t n, int protection, int flags) {
    void *at = mmap(NULL, n, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static pthread_barrier_t barrier;

static int deep(int n) {
    volatile char frame[4096];
    frame[0] = (char)n;
    return n == 0 ? 0 : deep(n - 1) + (frame[0] == (char)n);
}

static void *worker(void *arg) {
    pthread_barrier_wait(&barrier);
    return (void *)(intptr_t)deep((int)(intptr_t)arg);
}

int main(void) {
    const size_t MIB = 1 << 20, PAGE = 4096;
    for (int round = 0; round < 3; round++) {
        unsigned char *a = map(4 * MIB, PROT_READ | PROT_WRITE, 0);
        printf("fresh %d\n", all(a, 0, 4 * MIB));
        memset(a, 7, 4 * MIB);
        munmap(a + MIB, 2 * MIB);
        printf("rest %d %d\n", all(a, 7, MIB), all(a + 3 * MIB, 7, MIB));
        unsigned char *b = mmap(a + MIB, 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        printf("again %d %d\n", b == a + MIB, all(b, 0, 2 * MIB));
        memset(a, 9, 4 * MIB);
        printf("advised %d %d\n", madvise(a, 4 * MIB, MADV_DONTNEED), all(a, 0, 4 * MIB));
        memset(a, 5, 4 * MIB);
        printf("advised %d", madvise(a + PAGE, 3 * PAGE, MADV_DONTNEED));
        printf(" %d %d %d\n", all(a, 5, PAGE), all(a + PAGE, 0, 3 * PAGE), all(a + 4 * PAGE, 5, PAGE));
        a = mremap(a, 4 * MIB, 6 * MIB, MREMAP_MAYMOVE);
        printf("moved %d %d\n", all(a + 4 * PAGE, 5, 4 * MIB - 4 * PAGE), all(a + 4 * MIB, 0, 2 * MIB));
        munmap(a, 6 * MIB);
    }
    /* Addresses that cost nothing, made memory piece by piece. */
    unsigned char *wide = map(16 * MIB, PROT_NONE, MAP_NORESERVE);
    printf("reserved %d\n", wide != NULL);
    for (size_t i = 0; i < 16; i += 4) {
        int done = mprotect(wide + i * MIB, MIB, PROT_READ | PROT_WRITE);
        printf("opened %d %d\n", done, all(wide + i * MIB, 0, MIB));
        memset(wide + i * MIB, (int)i + 1, MIB);
    }
    printf("closed %d\n", mprotect(wide, MIB, PROT_READ));
    printf("readable %d\n", all(wide, 1, MIB));
    printf("opened %d\n", mprotect(wide, MIB, PROT_NONE));
    printf("opened %d\n", mprotect(wide, MIB, PROT_READ | PROT_WRITE));
    wide[0] = 3;
    printf("kept %d %d\n", all(wide, 3, 1), all(wide + 1, 1, MIB - 1));
    munmap(wide, 16 * MIB);
    /* Promised, touched here and there. */
    unsigned char *sparse = map(16 * MIB, PROT_READ | PROT_WRITE, MAP_NORESERVE);
    for (size_t i = 0; i < 16 * MIB; i += MIB + PAGE) sparse[i] = 1;
    size_t sum = 0;
    for (size_t i = 0; i < 16 * MIB; i += PAGE) sum += sparse[i];
    printf("sparse %zu\n", sum);
    munmap(sparse, 16 * MIB);
    /* brk */
    char *old = sbrk(0);
    printf("brk %d", sbrk(3 * MIB) == old);
    printf(" %d", all((unsigned char *)old, 0, 3 * MIB));
    memset(old, 1, 3 * MIB);
    printf(" %d", sbrk(-3 * (intptr_t)MIB) == old + 3 * MIB);
    printf(" %d", sbrk(2 * MIB) == old);
    printf(" %d\n", all((unsigned char *)old, 0, 2 * MIB));
    /* Threads, several times. */
    for (int round = 0; round < 3; round++) {
        pthread_t t[6];
        int n = 2 + 2 * round;
        pthread_attr_t attr;
        pthread_attr_init(&attr);
        pthread_attr_setstacksize(&attr, 2 * MIB);
        pthread_barrier_init(&barrier, NULL, n);
        for (intptr_t i = 0; i < n; i++)
            printf("create %d\n", pthread_create(&t[i], &attr, worker, (void *)(10 * i + 100)));
        for (int i = 0; i < n; i++) {
            void *result;
            pthread_join(t[i], &result);
            printf("thread %d\n", (int)(intptr_t)result);
        }
        pthread_barrier_destroy(&barrier);
    }
    fflush(stdout);
    return 3;
}
