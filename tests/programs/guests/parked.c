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
        what += 1000;
        memcpy((void *)in.reply, &what, sizeof what);
    }
    return 5;
}
