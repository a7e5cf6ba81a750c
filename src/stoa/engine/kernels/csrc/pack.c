/* Lays matrices out in strips, and looks for what is not a number. Plain C: memory is what limits both. */
#include <stdatomic.h>
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

/* Quantizes one strip: blocks as quantized.h draws them, numbers as quantize.py has them. */
typedef struct {
    const uint8_t *src;
    uint8_t *dst;
    int64_t rows, k, bits, wide;
} Quantize;

enum { GROUP = 64, GROUP_LANES = 16 };

/* The group's values as fp32, zeros beyond the matrix. */
static void group_values(const Quantize *w, int64_t row, int64_t first, float *f) {
    int64_t n = row < w->rows ? min64(GROUP, w->k - first) : 0;
    for (int64_t i = n; i < GROUP; i++) f[i] = 0;
    if (n <= 0) return;
    const uint8_t *from = w->src + (row * w->k + first) * (w->wide ? 4 : 2);
    if (w->wide) { memcpy(f, from, (size_t)n * 4); return; }
    uint32_t bits[GROUP];
    uint16_t half[GROUP];
    memcpy(half, from, (size_t)n * 2);
    for (int64_t i = 0; i < n; i++) bits[i] = (uint32_t)half[i] << 16;
    memcpy(f, bits, (size_t)n * 4);
}

static float group_scale(const float *f, int64_t bits) {
    float most = 0, at = f[0];
    for (int i = 0; i < GROUP; i++) {
        float size = f[i] < 0 ? -f[i] : f[i];
        if (size > most) { most = size; at = f[i]; }
    }
    return bits == 8 ? most / 127.0f : at / -8.0f;
}

static void quantize_strip(void *arg, int64_t strip) {
    const Quantize *w = arg;
    int64_t groups = ceil_div(w->k, GROUP), bytes = STRIP * (4 + GROUP * w->bits / 8);
    float low = w->bits == 8 ? -127.0f : -8.0f, high = w->bits == 8 ? 127.0f : 7.0f;
    uint8_t *block = w->dst + strip * groups * bytes;
    for (int64_t g = 0; g < groups; g++, block += bytes) {
        for (int64_t column = 0; column < STRIP; column++) {
            float f[GROUP], scale, divisor;
            uint8_t q[GROUP];
            group_values(w, strip * STRIP + column, g * GROUP, f);
            scale = group_scale(f, w->bits);
            divisor = scale == 0 ? 1.0f : scale;
            for (int i = 0; i < GROUP; i++) {
                float r = (f[i] / divisor + 12582912.0f) - 12582912.0f; /* to the nearest whole number, ties to even */
                r = r < low ? low : r > high ? high : r;
                q[i] = (uint8_t)((int)r + (w->bits == 8 ? 128 : 8));
            }
            memcpy(block + column * 4, &scale, 4);
            uint8_t *to = block + STRIP * 4 + column * 4;
            for (int lane = 0; lane < GROUP_LANES; lane++) {
                if (w->bits == 8) memcpy(to + lane * STRIP * 4, q + lane * 4, 4);
                else if (lane % 2 == 0)
                    for (int i = 0; i < 4; i++)
                        to[lane / 2 * STRIP * 4 + i] = (uint8_t)(q[lane * 4 + i] | q[lane * 4 + 4 + i] << 4);
            }
        }
    }
}

/* src: [rows][k] of fp32 (`wide`) or bf16, contiguous and finite; dst: strips. On all threads, while no step runs. */
void stoa_quantize(const void *src, int64_t rows, int64_t k, int64_t wide, int64_t bits, void *dst) {
    Quantize w = {src, dst, rows, k, bits, wide};
    pool_run(ceil_div(rows, STRIP), quantize_strip, &w);
}

typedef struct {
    const uint8_t *data;
    int64_t count, bytes;
    uint32_t mask;
    _Atomic int *bad;
} Look;

enum { LOOK = 1 << 20 }; /* values in a task */

static void look_task(void *arg, int64_t task) {
    const Look *look = arg;
    int64_t first = task * LOOK, n = min64(LOOK, look->count - first);
    uint32_t bad = 0;
    if (look->bytes == 4) {
        const uint32_t *u = (const uint32_t *)look->data + first;
        for (int64_t i = 0; i < n; i++) bad |= (u[i] & look->mask) == look->mask;
    } else {
        const uint16_t *u = (const uint16_t *)look->data + first;
        uint16_t m = (uint16_t)look->mask, some = 0;
        for (int64_t i = 0; i < n; i++) some |= (uint16_t)-((u[i] & m) == m);
        bad = some;
    }
    if (bad) atomic_store_explicit(look->bad, 1, memory_order_relaxed);
}

/* Are all values finite? Their exponent bits must not all be ones: `mask` has them, for 2 or 4 bytes a value.
 * `pooled`: as in stoa_pack. */
int stoa_all_finite(const void *data, int64_t count, int64_t bytes, uint32_t mask, int64_t pooled) {
    _Atomic int bad = 0;
    Look look = {data, count, bytes, mask, &bad};
    int64_t tasks = ceil_div(count, LOOK);
    if (pooled && tasks) pool_run(tasks, look_task, &look);
    else for (int64_t t = 0; t < tasks; t++) look_task(&look, t);
    return !bad;
}
