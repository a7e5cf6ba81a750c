/* Rotary embedding, the write to KV pages, and attention over them.
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
