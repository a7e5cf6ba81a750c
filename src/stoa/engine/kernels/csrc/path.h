/* Compiles the operations for one instruction set: both dtypes, and the table of operations. PATH names the path. */
#include <math.h>
#include "stoa_kernels.h"
#include "simd.h"
#include "queue.h"

/* About four tasks a thread, such that threads end together: the size that leaves least to wait for. */
static inline int64_t strips_per_task(int64_t strips) {
    int64_t threads = pool_threads(), best = STRIPS_TOGETHER, least = INT64_MAX;
    for (int64_t size = STRIPS_TOGETHER; size <= max64(STRIPS_TOGETHER, ceil_div(strips, 4 * threads)); size += STRIPS_TOGETHER) {
        int64_t waste = ceil_div(ceil_div(strips, size), threads) * size * threads - strips;
        if (waste <= least) { least = waste; best = size; }
    }
    return best;
}

#define GLUE3(a, b, c) a##_##b##_##c
#define GLUE(a, b, c) GLUE3(a, b, c)

#define ELT float
#define FN(name) GLUE(name, f32, PATH)
#define LANE_MAC v_mac_f32
static inline float FN(widen)(float f) { return f; }
static inline float FN(round)(float f) { return f; }
static inline v16 FN(load)(const float *p) { return v_load(p); }
static inline void FN(store)(float *p, v16 v) { v_store(p, v); }
#ifdef BASE_TILES_BF16
#define SKIP_F32
#endif
#ifndef SKIP_F32
#include "linear.h"
#include "elementwise.h"
#include "attention.h"
#include "sampling.h"
const Ops GLUE(ops, f32, PATH) = {FN(linear), FN(rms_norm), FN(silu_mul), FN(rope_append), FN(attention), FN(draw)};
#endif
#undef ELT
#undef FN
#undef LANE_MAC

#define ELT uint16_t
#define FN(name) GLUE(name, bf16, PATH)
#define LANE_MAC v_dot
static inline float FN(widen)(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline uint16_t FN(round)(float f) { /* nearest, ties to even */
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static inline v16 FN(load)(const uint16_t *p) { return v_load_bf16(p); }
static inline void FN(store)(uint16_t *p, v16 v) { v_store_bf16(p, v); }
#ifdef BASE_TILES_BF16
#define BASE_TILES BASE_TILES_BF16
#endif
#include "linear.h"
#include "elementwise.h"
#include "attention.h"
#include "sampling.h"
const Ops GLUE(ops, bf16, PATH) = {FN(linear), FN(rms_norm), FN(silu_mul), FN(rope_append), FN(attention), FN(draw)};
