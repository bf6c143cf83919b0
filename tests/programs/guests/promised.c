/* Touches memory that it was promised (MAP_NORESERVE), and takes a part away again. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

int main(void) {
    size_t n = 8 << 20;
    char *at = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return 1;
    printf("promised\n");
    fflush(stdout);
    memset(at, 1, n);
    printf("closed %d\n", mprotect(at, n / 2, PROT_READ));
    printf("read %d\n", at[5] + at[n - 1]);
    fflush(stdout);
    return 0;
}
