/* The operations, written once over v16 and compiled per path and dtype. Defines FN(name), ELT, LANE_MAC before.
 *
 * One reduction order per row, everywhere: an output element is one chain of multiply-adds over the lanes in
 * order (LoRA's A: four interleaved chains, added in a fixed tree), whatever other rows are in the call. */

/* ---------------------------------------------------------------- linear */

typedef struct {
    const LinearCall *call;
    const uint8_t *x;     /* rows of `lanes` lanes, zero beyond k */
    int64_t x_stride;     /* bytes */
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

/* scratch[m][strip] = chains over lanes, for M rows and N strips starting at `w`. */
#undef GEMM_BLOCK
#undef SHRINK_BLOCK
#define GEMM_BLOCK(M, N)                                                                                   \
    static void FN(gemm_##M##x##N)(const uint8_t *x, int64_t xs, const uint8_t *w, int64_t ws, int64_t lanes, \
                                   float *out, int64_t os) {                                               \
        v16 acc[M][N];                                                                                     \
        for (int m = 0; m < M; m++)                                                                        \
            for (int n = 0; n < N; n++) acc[m][n] = v_zero();                                              \
        for (int64_t l = 0; l < lanes; l++) {                                                              \
            for (int n = 0; n < N; n++) PREFETCH(w + n * ws + l * STRIP_BYTES + 1024);                     \
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
#endif

static void FN(base)(const FN(Work) *work, int64_t row, int64_t rows, int64_t strip, int64_t strips, float *out) {
    const Linear *w = work->call->w;
    int64_t ws = w->lanes * STRIP_BYTES, xs = work->x_stride, os = strips * STRIP;
#ifdef BASE_TILES
    BASE_TILES(work->x + row * xs, xs, w->data + strip * ws, ws, w->lanes, rows, strips, out, os);
#else
    for (int64_t s = 0; s < strips;) {
        int64_t n = strips - s >= 4 ? 4 : 1;
        for (int64_t m = 0; m < rows;) {
            const uint8_t *x = work->x + (row + m) * xs, *at = w->data + (strip + s) * ws;
            float *to = out + m * os + s * STRIP;
            int64_t step = rows - m >= 4 ? 4 : 1;
            if (step == 4 && n == 4) FN(gemm_4x4)(x, xs, at, ws, w->lanes, to, os);
            else if (step == 4) FN(gemm_4x1)(x, xs, at, ws, w->lanes, to, os);
            else if (n == 4) FN(gemm_1x4)(x, xs, at, ws, w->lanes, to, os);
            else FN(gemm_1x1)(x, xs, at, ws, w->lanes, to, os);
            m += step;
        }
        s += n;
    }
#endif
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
                PREFETCH(b + l * STRIP_BYTES + 2048);
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

#undef ROW_BLOCK
#define ROW_BLOCK 32
static void FN(column_task)(void *arg, int64_t task) {
    const FN(Work) *work = arg;
    const LinearCall *call = work->call;
    int64_t strip = task * work->strips_per_task;
    int64_t strips = min64(work->strips_per_task, call->w->n_strips - strip);
    float *scratch = pool_local((size_t)(ROW_BLOCK * strips * STRIP) * sizeof(float));
    for (int64_t row = 0; row < call->rows; row += ROW_BLOCK) {
        int64_t rows = min64(ROW_BLOCK, call->rows - row);
        FN(base)(work, row, rows, strip, strips, scratch);
        if (work->h) FN(expand_rows)(work, row, rows, strip, strips, scratch);
        FN(emit)(call, row, rows, strip, strips, scratch);
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
    work.x = FN(padded)(call, &work.x_stride);
    if (call->lora && !FN(shrink)(&work)) work.h = NULL;
    /* A task's strips stay in L2 for all rows; enough tasks that threads end together. */
    int64_t strips = call->w->n_strips, bytes = call->w->lanes * STRIP_BYTES;
    int64_t fit = max64(2, (512 << 10) / bytes), share = ceil_div(strips, 4 * (int64_t)pool_threads());
    work.strips_per_task = max64(2, (min64(fit, share) + 1) & ~1);
    pool_run(ceil_div(strips, work.strips_per_task), FN(column_task), &work);
}

/* ---------------------------------------------------------------- elementwise */

/* 1 / sqrt(mean(x²) + eps): sixteen chains, folded in one order; the tail after them. */
static float FN(inverse_rms)(const float *x, int64_t h, double eps) {
    v16 acc = v_zero();
    int64_t i = 0;
    for (; i + STRIP <= h; i += STRIP) {
        v16 v = v_load(x + i);
        acc = v_fma(v, v, acc);
    }
    float total = v_sum(acc);
    for (; i < h; i++) total += x[i] * x[i];
    return 1.0f / sqrtf(total / (float)h + (float)eps);
}

typedef struct { const float *x, *w; void *out; double eps; int64_t rows, h, per_task; } FN(Norm);

static void FN(norm_task)(void *arg, int64_t task) {
    const FN(Norm) *n = arg;
    int64_t last = min64(n->rows, (task + 1) * n->per_task);
    for (int64_t row = task * n->per_task; row < last; row++) {
        const float *x = n->x + row * n->h;
        ELT *out = (ELT *)n->out + row * n->h;
        float factor = FN(inverse_rms)(x, n->h, n->eps);
        int64_t i = 0;
        for (; i + STRIP <= n->h; i += STRIP)
            FN(store)(out + i, v_mul(v_mul(v_load(x + i), v_set1(factor)), v_load(n->w + i)));
        for (; i < n->h; i++) out[i] = FN(round)(x[i] * factor * n->w[i]);
    }
}

static void FN(rms_norm)(const float *x, const float *w, double eps, void *out, int64_t rows, int64_t h) {
    FN(Norm) n = {x, w, out, eps, rows, h, max64(1, ceil_div(16384, h))};
    pool_run(ceil_div(rows, n.per_task), FN(norm_task), &n);
}

typedef struct { const ELT *in; ELT *out; int64_t rows, inner, per_task; } FN(Gate);

static v16 FN(silu)(v16 gate, v16 up) {
    v16 e = v_exp(v_sub(v_zero(), gate));
    return v_mul(v_div(gate, v_add(v_set1(1), e)), up);
}

static void FN(gate_task)(void *arg, int64_t task) {
    const FN(Gate) *g = arg;
    int64_t last = min64(g->rows, (task + 1) * g->per_task);
    for (int64_t row = task * g->per_task; row < last; row++) {
        const ELT *gate = g->in + row * 2 * g->inner, *up = gate + g->inner;
        ELT *out = g->out + row * g->inner;
        int64_t i = 0;
        for (; i + STRIP <= g->inner; i += STRIP) FN(store)(out + i, FN(silu)(FN(load)(gate + i), FN(load)(up + i)));
        if (i < g->inner) { /* the tail goes through the same arithmetic */
            float a[STRIP] = {0}, b[STRIP] = {0};
            for (int64_t j = i; j < g->inner; j++) { a[j - i] = FN(widen)(gate[j]); b[j - i] = FN(widen)(up[j]); }
            v_store(a, FN(silu)(v_load(a), v_load(b)));
            for (int64_t j = i; j < g->inner; j++) out[j] = FN(round)(a[j - i]);
        }
    }
}

static void FN(silu_mul)(const void *gate_up, void *out, int64_t rows, int64_t inner) {
    FN(Gate) g = {gate_up, out, rows, inner, max64(1, ceil_div(8192, inner))};
    pool_run(ceil_div(rows, g.per_task), FN(gate_task), &g);
}

/* ---------------------------------------------------------------- attention
 *
 * A page holds, for each layer and KV head,
 *
 *     keys:   [block_size / 16 groups][lanes of head_dim][16 tokens] lanes     scores of 16 tokens in one vector
 *     values: [block_size tokens][head_dim rounded up to 16] elements
 */

static inline int64_t FN(key_lanes)(const Layout *l) { return ceil_div(l->head_dim * (int64_t)sizeof(ELT), 4); }
static inline int64_t FN(value_width)(const Layout *l) { return (l->head_dim + 15) & ~15; }
static inline int64_t FN(head_bytes)(const Layout *l) {
    return l->block_size * (FN(key_lanes)(l) * 4 + FN(value_width)(l) * (int64_t)sizeof(ELT));
}
static inline uint8_t *FN(head_page)(const uint8_t *kv, const Layout *l, int64_t page, int64_t layer, int64_t head) {
    return (uint8_t *)kv + page * l->page_bytes + (layer * l->kv_heads + head) * FN(head_bytes)(l);
}

/* Rotates (and for Qwen3 normalises) one head: in [D] -> out [D] fp32. */
static void FN(rotate)(const ELT *in, const float *table, const float *norm, double eps, int64_t d, float *out) {
    int64_t half = d / 2;
    float x[1024];
    for (int64_t i = 0; i < d; i++) x[i] = FN(widen)(in[i]);
    if (norm) {
        float factor = FN(inverse_rms)(x, d, eps);
        for (int64_t i = 0; i < d; i++) x[i] = x[i] * factor * norm[i];
    }
    for (int64_t i = 0; i < half; i++) {
        float c = table[i], s = table[half + i];
        out[i] = x[i] * c - x[half + i] * s;
        out[half + i] = x[half + i] * c + x[i] * s;
    }
}

static void FN(append_key)(uint8_t *keys, const float *k, int64_t d, int64_t offset, int64_t lanes) {
    int64_t per_lane = 4 / (int64_t)sizeof(ELT);
    ELT *group = (ELT *)(keys + (offset / STRIP) * lanes * STRIP_BYTES);
    for (int64_t i = 0; i < lanes * per_lane; i++)
        group[(i / per_lane) * STRIP * per_lane + (offset % STRIP) * per_lane + i % per_lane] = FN(round)(i < d ? k[i] : 0.0f);
}

static void FN(rope_task)(void *arg, int64_t row) {
    const RopeCall *c = arg;
    const Layout *l = c->layout;
    int64_t d = l->head_dim, heads = c->q_heads, lanes = FN(key_lanes)(l);
    const ELT *in = (const ELT *)c->qkv + row * (heads + 2 * l->kv_heads) * d;
    const float *table = c->rope + c->rows->positions[row] * d;
    int64_t page = c->rows->slots[row] / l->block_size, offset = c->rows->slots[row] % l->block_size;
    float out[1024];
    for (int64_t h = 0; h < heads; h++) {
        FN(rotate)(in + h * d, table, c->q_norm, c->eps, d, out);
        for (int64_t i = 0; i < d; i++) ((ELT *)c->q_out)[(row * heads + h) * d + i] = FN(round)(out[i]);
    }
    for (int64_t h = 0; h < l->kv_heads; h++) {
        uint8_t *keys = FN(head_page)(c->kv, l, page, c->layer, h);
        FN(rotate)(in + (heads + h) * d, table, c->k_norm, c->eps, d, out);
        FN(append_key)(keys, out, d, offset, lanes);
        ELT *values = (ELT *)(keys + l->block_size * lanes * 4) + offset * FN(value_width)(l);
        memcpy(values, in + (heads + l->kv_heads + h) * d, (size_t)d * sizeof(ELT));
        for (int64_t i = d; i < FN(value_width)(l); i++) values[i] = 0;
    }
}

static void FN(rope_append)(const RopeCall *c) { pool_run(c->rows->n_rows, FN(rope_task), (void *)c); }

#undef HEADS_AT_ONCE
#define HEADS_AT_ONCE 4

/* Attention of `heads` query heads of one row that share a KV head. Two passes over the visible tokens in groups
 * of 16, always from the group of the first visible one: the order depends on the row's position alone. */
static void FN(attend)(const AttentionCall *c, int64_t seq, int64_t row, int64_t kv_head, int64_t head, int heads,
                       float *scores, int64_t stride) {
    const Layout *l = c->layout;
    int64_t d = l->head_dim, lanes = FN(key_lanes)(l), width = FN(value_width)(l), bs = l->block_size;
    int64_t end = c->rows->positions[row] + 1, begin = c->window && end > c->window ? end - c->window : 0;
    const int32_t *table = c->rows->block_table + seq * c->rows->max_blocks;
    uint32_t q[HEADS_AT_ONCE][512];
    float inverse[HEADS_AT_ONCE];
    for (int h = 0; h < heads; h++) {
        q[h][lanes - 1] = 0; /* an odd head_dim leaves half a lane */
        memcpy(q[h], (const ELT *)c->q + (row * c->q_heads + head + h) * d, (size_t)d * sizeof(ELT));
    }
    int64_t first = begin & ~(int64_t)15;
    v16 top[HEADS_AT_ONCE];
    for (int h = 0; h < heads; h++) top[h] = v_set1(-INFINITY);
    for (int64_t t = first; t < end; t += STRIP) {
        const uint8_t *keys = FN(head_page)(c->kv, l, table[t / bs], c->layer, kv_head) + (t % bs) / STRIP * lanes * STRIP_BYTES;
        v16 acc[HEADS_AT_ONCE];
        for (int h = 0; h < HEADS_AT_ONCE; h++) acc[h] = v_zero();
        for (int64_t i = 0; i < lanes; i++)
            for (int h = 0; h < heads; h++) acc[h] = LANE_MAC(acc[h], keys + i * STRIP_BYTES, q[h][i]);
        for (int h = 0; h < heads; h++) {
            float *to = scores + h * stride + (t - first);
            v_store(to, v_mul(acc[h], v_set1((float)c->scale)));
            for (int64_t j = 0; j < STRIP; j++) /* also hides what an unfilled slot holds */
                if (t + j < begin || t + j >= end) to[j] = -INFINITY;
            top[h] = v_max(top[h], v_load(to));
        }
    }
    for (int h = 0; h < heads; h++) {
        v16 m = v_set1(v_top(top[h])), sum = v_zero();
        for (int64_t t = first; t < end; t += STRIP) {
            float *at = scores + h * stride + (t - first);
            v16 e = v_exp(v_sub(v_load(at), m));
            v_store(at, e);
            for (int64_t j = 0; j < STRIP; j++)
                if (t + j < begin || t + j >= end) at[j] = 0;
            sum = v_add(sum, v_load(at));
        }
        inverse[h] = 1.0f / v_sum(sum);
    }
    for (int64_t column = 0; column < width; column += STRIP) {
        v16 acc[HEADS_AT_ONCE];
        for (int h = 0; h < HEADS_AT_ONCE; h++) acc[h] = v_zero();
        for (int64_t t = begin; t < end;) {
            const uint8_t *page = FN(head_page)(c->kv, l, table[t / bs], c->layer, kv_head);
            const ELT *values = (const ELT *)(page + bs * lanes * 4) + column;
            int64_t stop = min64(end, (t / bs + 1) * bs);
            for (; t < stop; t++) {
                v16 v = FN(load)(values + (t % bs) * width);
                for (int h = 0; h < heads; h++) acc[h] = v_fma(v_set1(scores[h * stride + t - first]), v, acc[h]);
            }
        }
        for (int h = 0; h < heads; h++) {
            float f[STRIP];
            v_store(f, v_mul(acc[h], v_set1(inverse[h])));
            ELT *out = (ELT *)c->out + (row * c->q_heads + head + h) * d;
            for (int64_t i = 0; i < STRIP && column + i < d; i++) out[column + i] = FN(round)(f[i]);
        }
    }
}

/* A task is one KV head of a few rows of one sequence. */
typedef struct { const AttentionCall *call; const int32_t *chunks; } FN(Attend);

static void FN(attend_task)(void *arg, int64_t task) {
    const FN(Attend) *a = arg;
    const AttentionCall *c = a->call;
    int64_t kv_heads = c->layout->kv_heads, kv_head = task % kv_heads, group = c->q_heads / kv_heads;
    const int32_t *chunk = a->chunks + 3 * (task / kv_heads);
    int64_t stride = ((int64_t)c->rows->context_len[chunk[0]] + 31) & ~15;
    float *scores = pool_local((size_t)(HEADS_AT_ONCE * stride) * sizeof(float));
    for (int64_t row = chunk[1]; row < chunk[1] + chunk[2]; row++)
        for (int64_t h = 0; h < group; h += HEADS_AT_ONCE)
            FN(attend)(c, chunk[0], row, kv_head, kv_head * group + h, (int)min64(HEADS_AT_ONCE, group - h), scores, stride);
}

static void FN(attention)(const AttentionCall *c) {
    const Rows *r = c->rows;
    int64_t per_chunk = 8, n = 0;
    int32_t *chunks = pool_scratch(1, (size_t)(r->n_rows / per_chunk + r->n_seqs) * 3 * sizeof(int32_t));
    for (int64_t s = 0; s < r->n_seqs; s++)
        for (int64_t row = r->query_start[s]; row < r->query_start[s + 1]; row += per_chunk, n++) {
            chunks[3 * n] = (int32_t)s;
            chunks[3 * n + 1] = (int32_t)row;
            chunks[3 * n + 2] = (int32_t)min64(per_chunk, r->query_start[s + 1] - row);
        }
    FN(Attend) a = {c, chunks};
    pool_run(n * c->layout->kv_heads, FN(attend_task), &a);
}
