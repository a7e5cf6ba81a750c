/* Linear layers with adapters, written once over v16 and compiled per path and dtype. Defines FN(name), ELT,
 * LANE_MAC before.
 *
 * One reduction order per row: an output element is one chain of multiply-adds over the lanes in order (LoRA's A:
 * four interleaved chains, added in a fixed tree), whatever other rows are in the call. */

typedef struct {
    const LinearCall *call;
    const uint8_t *x;     /* rows of `lanes` lanes, zero beyond k */
    int64_t x_stride;     /* bytes */
    const uint8_t *in;    /* what the base product reads: x, or its quantized rows */
    int64_t in_stride, depth; /* bytes; lanes or groups */
    uint8_t *h;           /* [rows][h_stride] lanes of (x Aᵀ) * scale, or NULL */
    int64_t h_stride;     /* bytes */
    int64_t strips_per_task;
    const int32_t *chunks; /* shrink tasks: [n][3] segment, first row, rows */
} FN(Work);

static inline uint32_t FN(lane)(const uint8_t *row, int64_t lane) {
    uint32_t u;
    memcpy(&u, row + 4 * lane, 4);
    return u;
}

/* out[rows][strips] for a few rows and strips: `depth` lanes (or groups) of rows at x, stride xs bytes, and of strips
 * at w, stride ws bytes. Meanwhile `n_ahead` strips from `ahead` on, which come next, are asked into L2, and the
 * lines of `queue`. Blocks that are `near` ask a little ahead in their own strips instead when rows are few. */
typedef void FN(Block)(const uint8_t *x, int64_t xs, const uint8_t *w, int64_t ws, int64_t depth, const uint8_t *ahead,
                       int64_t n_ahead, Queue *queue, float *out, int64_t os);
typedef struct { int64_t wide, near; FN(Block) *b1x1, *b1xN, *b4x1, *b4xN; } FN(Blocks); /* N = wide */

/* out[m][strip] = chains over lanes, for M rows and N strips. */
#undef GEMM_BLOCK
#undef SHRINK_BLOCK
#define GEMM_BLOCK(M, N)                                                                                   \
    static void FN(gemm_##M##x##N)(const uint8_t *x, int64_t xs, const uint8_t *w, int64_t ws, int64_t lanes, \
                                   const uint8_t *ahead, int64_t n_ahead, Queue *queue, float *out, int64_t os) { \
        v16 acc[M][N];                                                                                     \
        for (int m = 0; m < M; m++)                                                                        \
            for (int n = 0; n < N; n++) acc[m][n] = v_zero();                                              \
        for (int64_t l = 0; l < lanes; l++) {                                                              \
            for (int64_t n = 0; n < n_ahead; n++) PREFETCH_L2(ahead + n * ws + l * STRIP_BYTES);           \
            for (int n = 0; M == 1 && n_ahead == 0 && n < N; n++) PREFETCH(w + n * ws + l * STRIP_BYTES + 2048); \
            queue_step(queue);                                                                             \
            for (int m = 0; m < M; m++) {                                                                  \
                uint32_t v = FN(lane)(x + m * xs, l);                                                      \
                for (int n = 0; n < N; n++) acc[m][n] = LANE_MAC(acc[m][n], w + n * ws + l * STRIP_BYTES, v); \
            }                                                                                              \
        }                                                                                                  \
        for (int m = 0; m < M; m++)                                                                        \
            for (int n = 0; n < N; n++) v_store(out + m * os + n * STRIP, acc[m][n]);                      \
    }

#ifndef BASE_TILES
GEMM_BLOCK(1, 1)
GEMM_BLOCK(1, 4)
GEMM_BLOCK(4, 1)
GEMM_BLOCK(4, 4)
static const FN(Blocks) FN(plain) = {4, 1, FN(gemm_1x1), FN(gemm_1x4), FN(gemm_4x1), FN(gemm_4x4)};
#endif
#include "quantized.h"

static const FN(Blocks) *FN(blocks_of)(const Linear *w) {
    if (w->bits == 8) return &FN(int8);
    if (w->bits == 4) return &FN(int4);
#ifdef BASE_TILES
    return NULL;
#else
    return &FN(plain);
#endif
}

static void FN(base)(const FN(Work) *work, int64_t row, int64_t rows, int64_t strip, int64_t strips, Queue *queue,
                     float *out) {
    const Linear *w = work->call->w;
    const FN(Blocks) *run = FN(blocks_of)(w);
    int64_t ws = w->strip_bytes, xs = work->in_stride, os = strips * STRIP, blocks = rows / 4 + rows % 4;
#ifdef BASE_TILES
    if (!run) {
        BASE_TILES(work->in + row * xs, xs, w->data + strip * ws, ws, w->lanes, rows, strips, out, os);
        return;
    }
#endif
    for (int64_t s = 0; s < strips;) {
        int64_t n = strips - s >= run->wide ? run->wide : 1, each = ceil_div(n, blocks);
        int64_t next = strip + s + n, stop = min64(next + n, w->n_strips);
        for (int64_t m = 0; m < rows;) {
            int64_t step = rows - m >= 4 ? 4 : 1, n_ahead = run->near && rows < 4 ? 0 : max64(0, min64(each, stop - next));
            FN(Block) *block = n == 1 ? (step == 4 ? run->b4x1 : run->b1x1) : (step == 4 ? run->b4xN : run->b1xN);
            block(work->in + (row + m) * xs, xs, w->data + (strip + s) * ws, ws, work->depth, w->data + next * ws, n_ahead,
                  queue, out + m * os + s * STRIP, os);
            m += step;
            next += n_ahead;
        }
        s += n;
    }
}

/* h for one strip of A: four chains over lanes 0,4,8… 1,5,9… 2,6,10… 3,7,11…, for M rows. Loads read 64 bytes
 * where the strip may be narrower: the columns beyond it are never looked at. */
#define SHRINK_BLOCK(M)                                                                                    \
    static void FN(shrink_##M)(const uint8_t *x, int64_t xs, const uint8_t *a, int64_t width, int64_t lanes, \
                               float *out) {                                                               \
        v16 acc[M][4];                                                                                     \
        for (int m = 0; m < M; m++)                                                                        \
            for (int u = 0; u < 4; u++) acc[m][u] = v_zero();                                              \
        int64_t l = 0;                                                                                     \
        for (; l + 4 <= lanes; l += 4) {                                                                   \
            PREFETCH(a + l * 4 * width + 1024);                                                            \
            PREFETCH(a + l * 4 * width + 1088);                                                            \
            PREFETCH(a + l * 4 * width + 1152);                                                            \
            PREFETCH(a + l * 4 * width + 1216);                                                            \
            for (int u = 0; u < 4; u++)                                                                    \
                for (int m = 0; m < M; m++)                                                                \
                    acc[m][u] = LANE_MAC(acc[m][u], a + (l + u) * 4 * width, FN(lane)(x + m * xs, l + u)); \
        }                                                                                                  \
        for (; l < lanes; l++)                                                                             \
            for (int m = 0; m < M; m++)                                                                    \
                acc[m][l & 3] = LANE_MAC(acc[m][l & 3], a + l * 4 * width, FN(lane)(x + m * xs, l));       \
        for (int m = 0; m < M; m++)                                                                        \
            v_store(out + m * STRIP, v_add(v_add(acc[m][0], acc[m][1]), v_add(acc[m][2], acc[m][3])));     \
    }

SHRINK_BLOCK(1)
SHRINK_BLOCK(4)

/* Stores columns [first, first + width) of h, scaled by their parts' scale and rounded once. */
static void FN(store_h)(const Lora *lora, const float *values, int64_t first, int64_t width, uint8_t *h) {
    int64_t column = first, part = 0, per_lane = 4 / (int64_t)sizeof(ELT);
    for (int64_t i = 0; i < width; i++, column++) {
        while (column >= (lora->part[part].h_lane + lora->part[part].lanes) * per_lane) part++;
        ((ELT *)h)[column] = FN(round)(values[i] * (float)lora->part[part].scale);
    }
}

static void FN(shrink_task)(void *arg, int64_t task) {
    const FN(Work) *work = arg;
    const LinearCall *call = work->call;
    const int32_t *chunk = work->chunks + 3 * task;
    const Lora *lora = &call->lora->adapters[chunk[0]][call->index];
    int64_t lanes = call->w->lanes;
    const uint8_t *a = lora->a;
    float values[4 * STRIP];
    for (int64_t first = 0; first < lora->columns; first += STRIP) {
        int64_t width = min64(STRIP, lora->columns - first);
        for (int64_t m = 0; m < chunk[2];) {
            int64_t step = chunk[2] - m >= 4 ? 4 : 1, row = chunk[1] + m;
            const uint8_t *x = work->x + row * work->x_stride;
            if (step == 4) FN(shrink_4)(x, work->x_stride, a, width, lanes, values);
            else FN(shrink_1)(x, work->x_stride, a, width, lanes, values);
            for (int64_t i = 0; i < step; i++)
                FN(store_h)(lora, values + i * STRIP, first, width, work->h + (row + i) * work->h_stride);
            m += step;
        }
        a += lanes * 4 * width;
    }
}

/* out[rows][strips] += h Bᵀ for the strips of one part that lie in [strip, strip + strips). */
static void FN(expand)(const LoraPart *part, const uint8_t *h, int64_t hs, int64_t rows, int64_t strip,
                       int64_t strips, float *out, int64_t os) {
    int64_t first = max64(strip, part->strip), last = min64(strip + strips, part->strip + part->n_strips);
    h += 4 * part->h_lane;
    for (int64_t s = first; s < last; s++) {
        const uint8_t *b = part->b + (s - part->strip) * part->lanes * STRIP_BYTES;
        float *to = out + (s - strip) * STRIP;
        int64_t m = 0;
        for (; m + 4 <= rows; m += 4) {
            v16 acc[4];
            for (int i = 0; i < 4; i++) acc[i] = v_load(to + (m + i) * os);
            for (int64_t l = 0; l < part->lanes; l++)
                for (int i = 0; i < 4; i++)
                    acc[i] = LANE_MAC(acc[i], b + l * STRIP_BYTES, FN(lane)(h + (m + i) * hs, l));
            for (int i = 0; i < 4; i++) v_store(to + (m + i) * os, acc[i]);
        }
        for (; m < rows; m++) {
            v16 acc = v_load(to + m * os);
            for (int64_t l = 0; l < part->lanes; l++) {
#ifdef BASE_TILES /* elsewhere it was asked for during the base product */
                PREFETCH(b + l * STRIP_BYTES + 2048);
#endif
                acc = LANE_MAC(acc, b + l * STRIP_BYTES, FN(lane)(h + m * hs, l));
            }
            v_store(to + m * os, acc);
        }
    }
}

static void FN(expand_rows)(const FN(Work) *work, int64_t row, int64_t rows, int64_t strip, int64_t strips, float *out) {
    const LinearCall *call = work->call;
    const Segments *lora = call->lora;
    for (int64_t g = 0; g < lora->n; g++) {
        int64_t first = max64(lora->starts[g], row), last = min64(lora->starts[g + 1], row + rows);
        if (first >= last || !lora->adapters[g]) continue;
        const Lora *mine = &lora->adapters[g][call->index];
        for (int64_t p = 0; mine->a && p < mine->n_parts; p++)
            FN(expand)(&mine->part[p], work->h + first * work->h_stride, work->h_stride, last - first, strip, strips,
                       out + (first - row) * strips * STRIP, strips * STRIP);
    }
}

static void FN(emit)(const LinearCall *call, int64_t row, int64_t rows, int64_t strip, int64_t strips, const float *from) {
    const Linear *w = call->w;
    for (int64_t m = 0; m < rows; m++) {
        int64_t base = (row + m) * w->out_stride;
        for (int64_t s = 0; s < strips; s++) {
            int64_t column = w->strips[2 * (strip + s)], width = w->strips[2 * (strip + s) + 1];
            v16 v = v_load(from + (m * strips + s) * STRIP);
            if (w->bias) v = v_add(v, v_load(w->bias + (strip + s) * STRIP));
            if (width < STRIP) {
                float f[STRIP];
                v_store(f, v);
                for (int64_t i = 0; i < width; i++) {
                    if (!call->out_fp32) ((ELT *)call->out)[base + column + i] = FN(round)(f[i]);
                    else if (call->accumulate) ((float *)call->out)[base + column + i] += f[i];
                    else ((float *)call->out)[base + column + i] = f[i];
                }
            } else if (!call->out_fp32) {
                FN(store)((ELT *)call->out + base + column, v);
            } else {
                float *to = (float *)call->out + base + column;
                v_store(to, call->accumulate ? v_add(v_load(to), v) : v);
            }
        }
    }
}

/* What the expand of these strips will read, then their share of what the next linear's shrink will. */
static void FN(queue_adapters)(const LinearCall *call, int64_t strip, int64_t strips, Queue *queue) {
    const Segments *lora = call->lora;
    for (int64_t g = 0; g < lora->n; g++) {
        const Lora *mine = lora->adapters[g] ? &lora->adapters[g][call->index] : NULL;
        for (int64_t p = 0; mine && mine->a && p < mine->n_parts; p++) {
            const LoraPart *part = &mine->part[p];
            int64_t first = max64(strip, part->strip), last = min64(strip + strips, part->strip + part->n_strips);
            int64_t bytes = part->lanes * STRIP_BYTES;
            if (first < last) queue_add(queue, part->b + (first - part->strip) * bytes, (last - first) * bytes);
        }
    }
    if (call->index + 1 == lora->n_linears) return;
    for (int64_t g = 0; g < lora->n; g++) {
        const Lora *next = lora->adapters[g] ? &lora->adapters[g][call->index + 1] : NULL;
        if (!next || !next->a) continue;
        int64_t lines = next->a_bytes / 64, n = call->w->n_strips;
        int64_t from = lines * strip / n, to = lines * (strip + strips) / n;
        if (from < to) queue_add(queue, next->a + from * 64, (to - from) * 64);
    }
}

/* Base product, adapters and output of a few strips at a time, for all rows: what was asked for ahead is used before
 * the weights that stream by push it out of L2. */
static void FN(column_task)(void *arg, int64_t task) {
    const FN(Work) *work = arg;
    const LinearCall *call = work->call;
    int64_t first = task * work->strips_per_task, end = min64(first + work->strips_per_task, call->w->n_strips);
    int64_t together = FN(blocks_of)(call->w) ? STRIPS_TOGETHER : end - first; /* tiles: see path_amx.c */
    float *scratch = pool_local((size_t)(ROW_BLOCK * together * STRIP) * sizeof(float));
    for (int64_t strip = first; strip < end; strip += together) {
        int64_t strips = min64(together, end - strip);
        Queue queue;
        queue_start(&queue);
        if (call->lora && call->rows <= ROW_BLOCK) FN(queue_adapters)(call, strip, strips, &queue);
        for (int64_t row = 0; row < call->rows; row += ROW_BLOCK) {
            int64_t rows = min64(ROW_BLOCK, call->rows - row);
            FN(base)(work, row, rows, strip, strips, &queue, scratch);
            if (work->h) FN(expand_rows)(work, row, rows, strip, strips, scratch);
            FN(emit)(call, row, rows, strip, strips, scratch);
        }
    }
}

/* Rows of x with their lanes filled up with zeros, if k does not fill them. */
static const uint8_t *FN(padded)(const LinearCall *call, int64_t *stride) {
    int64_t have = call->w->k * (int64_t)sizeof(ELT), want = call->w->lanes * 4;
    *stride = have;
    if (have == want) return call->x;
    uint8_t *copy = pool_scratch(0, (size_t)(call->rows * want));
    for (int64_t m = 0; m < call->rows; m++) {
        memcpy(copy + m * want, (const uint8_t *)call->x + m * have, (size_t)have);
        memset(copy + m * want + have, 0, (size_t)(want - have));
    }
    *stride = want;
    return copy;
}

/* h of all rows whose adapter touches this linear. Returns 0 if there are none. */
static int FN(shrink)(FN(Work) *work) {
    const LinearCall *call = work->call;
    const Segments *lora = call->lora;
    int64_t chunk_rows = 16, most = call->rows / chunk_rows + lora->n, n = 0, columns = 0;
    int32_t *chunks = pool_scratch(1, (size_t)most * 3 * sizeof(int32_t));
    for (int64_t g = 0; g < lora->n; g++) {
        const Lora *mine = lora->adapters[g] ? &lora->adapters[g][call->index] : NULL;
        if (!mine || !mine->a) continue;
        columns = max64(columns, mine->columns);
        for (int64_t row = lora->starts[g]; row < lora->starts[g + 1]; row += chunk_rows, n++) {
            chunks[3 * n] = (int32_t)g;
            chunks[3 * n + 1] = (int32_t)row;
            chunks[3 * n + 2] = (int32_t)min64(chunk_rows, lora->starts[g + 1] - row);
        }
    }
    if (!n) return 0;
    work->chunks = chunks;
    work->h_stride = (columns * (int64_t)sizeof(ELT) + 63) & ~63;
    work->h = pool_scratch(2, (size_t)(call->rows * work->h_stride));
    pool_run(n, FN(shrink_task), work);
    return 1;
}

static void FN(linear)(const LinearCall *call) {
    FN(Work) work = {.call = call};
    work.x = work.in = FN(padded)(call, &work.x_stride);
    work.in_stride = work.x_stride;
    work.depth = call->w->lanes;
    if (call->w->bits < 16) FN(quantize)(&work);
    if (call->lora && !FN(shrink)(&work)) work.h = NULL;
    work.strips_per_task = strips_per_task(call->w->n_strips);
    pool_run(ceil_div(call->w->n_strips, work.strips_per_task), FN(column_task), &work);
}
