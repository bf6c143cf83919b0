/* Integer, floating-point and vector work whose results any disturbed register would change. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static void *work(void *arg) {
    uint64_t x = (uint64_t)(uintptr_t)arg + 1;
    double sum = 0;
    float lanes[16] = {0};
    long double precise = 1;
    for (uint64_t i = 1; i < 30000000; i++) {
        x ^= x << 13; x ^= x >> 7; x ^= x << 17;
        sum += (double)(x & 1023) / (double)i;
        for (int k = 0; k < 16; k++) lanes[k] = lanes[k] * 0.5f + (float)(x >> (k * 3) & 7);
        if ((i & 1023) == 0) precise += 1.0L / (long double)i;
    }
    static __thread char text[128];
    float all = 0;
    for (int k = 0; k < 16; k++) all += lanes[k];
    snprintf(text, sizeof text, "%016llx %.9f %.6f %.12Lf", (unsigned long long)x, sum, all, precise);
    return strdup(text);
}

int main(void) {
    pthread_t t[3];
    for (uintptr_t i = 0; i < 3; i++) pthread_create(&t[i], NULL, work, (void *)i);
    for (int i = 0; i < 3; i++) {
        void *text;
        pthread_join(t[i], &text);
        printf("%s\n", (char *)text);
    }
    fflush(stdout);
    return 0;
}
