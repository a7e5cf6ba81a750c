/* Lays matrices out in strips, and looks for what is not a number. Plain C: memory is what limits both. */
#include <string.h>

#include "stoa_kernels.h"

typedef struct {
    const uint8_t *src;
    uint32_t *dst;
    int64_t rows, row_bytes, lanes, narrow;
} Pack;

/* One strip: 16 rows of the matrix become 16 columns. In blocks of a cache line of each row. */
static void pack_task(void *arg, int64_t strip) {
    const Pack *p = arg;
    int64_t rows = min64(STRIP, p->rows - strip * STRIP), width = p->narrow ? rows : STRIP;
    int64_t whole = p->row_bytes / 4;
    const uint8_t *src = p->src + strip * STRIP * p->row_bytes;
    uint32_t *dst = p->dst + strip * STRIP * p->lanes;
    for (int64_t first = 0; first < whole; first += 16) {
        int64_t last = min64(first + 16, whole);
        for (int64_t row = 0; row < rows; row++) {
            const uint8_t *from = src + row * p->row_bytes;
            for (int64_t lane = first; lane < last; lane++) memcpy(dst + lane * width + row, from + lane * 4, 4);
        }
    }
    int64_t rest = p->row_bytes - whole * 4; /* an odd number of bf16: half a lane */
    for (int64_t row = 0; rest && row < rows; row++)
        memcpy(dst + whole * width + row, src + row * p->row_bytes + whole * 4, (size_t)rest);
}

/* src: [rows][row_bytes], contiguous; dst: strips of `lanes` lanes, zero beforehand. `narrow`: the last strip is
 * only as wide as it has columns. `pooled`: on all threads, while no step runs; else on the caller's. */
void stoa_pack(const void *src, int64_t rows, int64_t row_bytes, void *dst, int64_t lanes, int64_t narrow, int64_t pooled) {
    Pack p = {src, dst, rows, row_bytes, lanes, narrow};
    int64_t strips = ceil_div(rows, STRIP);
    if (pooled) pool_run(strips, pack_task, &p);
    else for (int64_t s = 0; s < strips; s++) pack_task(&p, s);
}

/* Are all values finite? Their exponent bits must not all be ones: `mask` has them, for 2 or 4 bytes a value. */
int stoa_all_finite(const void *data, int64_t count, int64_t bytes, uint32_t mask) {
    uint32_t bad = 0;
    if (bytes == 4) {
        const uint32_t *u = data;
        for (int64_t i = 0; i < count; i++) bad |= (u[i] & mask) == mask;
    } else {
        const uint16_t *u = data;
        uint16_t m = (uint16_t)mask, some = 0;
        for (int64_t i = 0; i < count; i++) some |= (uint16_t)-((u[i] & m) == m);
        bad = some;
    }
    return !bad;
}
