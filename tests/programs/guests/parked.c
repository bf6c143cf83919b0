/* Parks its first thread in next_call by way of the runtime's table, as a library in any language would. A request of
   eight bytes says what to do. */
#include <stdint.h>
#include <string.h>
#include <sys/auxv.h>

struct incoming { uint64_t request, request_len, reply, reply_capacity; };
struct table {
    uint32_t version, size;
    int64_t (*next_call)(uint64_t status, uint64_t reply_len, struct incoming *out);
    int64_t (*host_call)(uint64_t number, uint64_t a, uint64_t b, uint64_t c);
};

/* All of ZMM0 to ZMM31 and of K0 to K7. Compiled code does not use what is not declared here. */
static void fill_avx512(void) {
    __asm__ volatile("vpternlogd $255, %%zmm0, %%zmm0, %%zmm0\n"
                     ".irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
                     "vmovdqa64 %%zmm0, %%zmm\\n\n .endr\n"
                     ".irp n, 0,1,2,3,4,5,6,7\n kxnorq %%k\\n, %%k\\n, %%k\\n\n .endr"
                     ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                         "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

int main(void) {
    const struct table *table = (const struct table *)getauxval(0x454e434c);
    if (!table) return 99;
    struct incoming in;
    uint64_t status = 0, len = 0;
    while (table->next_call(status, len, &in) == 0) {
        uint64_t what;
        if (in.request_len != sizeof what || in.reply_capacity < sizeof what) { status = 3; len = 0; continue; }
        memcpy(&what, (const void *)in.request, sizeof what);
        status = 0;
        len = sizeof what;
        if (what == 1) what = (uint64_t)table->host_call(0, 0, 0, 0); /* NOP */
        if (what == 2) *(volatile int *)16 = 1;
        int fill = what == 4 && __builtin_cpu_supports("avx512bw");
        what += 1000 + (fill ? 1000 : 0);
        memcpy((void *)in.reply, &what, sizeof what);
        if (fill) fill_avx512();
    }
    return 5;
}
