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
    int64_t half = d / 2, i = 0;
    float x[MAX_HEAD_DIM];
    for (; i + STRIP <= d; i += STRIP) v_store(x + i, FN(load)(in + i));
    for (; i < d; i++) x[i] = FN(widen)(in[i]);
    if (norm) {
        float factor = FN(inverse_rms)(x, d, eps);
        for (i = 0; i < d; i++) x[i] = x[i] * factor * norm[i];
    }
    for (i = 0; i + STRIP <= half; i += STRIP) {
        v16 a = v_load(x + i), b = v_load(x + half + i), c = v_load(table + i), s = v_load(table + half + i);
        v_store(out + i, v_sub(v_mul(a, c), v_mul(b, s)));
        v_store(out + half + i, v_add(v_mul(b, c), v_mul(a, s)));
    }
    for (; i < half; i++) {
        float c = table[i], s = table[half + i];
        out[i] = x[i] * c - x[half + i] * s;
        out[half + i] = x[half + i] * c + x[i] * s;
    }
}

/* fp32 [D] -> [D], and zeros up to whole lanes. */
static void FN(narrow)(const float *from, int64_t d, int64_t lanes, ELT *to) {
    int64_t i = 0;
    for (; i + STRIP <= d; i += STRIP) FN(store)(to + i, v_load(from + i));
    for (; i < lanes * 4 / (int64_t)sizeof(ELT); i++) to[i] = FN(round)(i < d ? from[i] : 0.0f);
}

static void FN(rope_task)(void *arg, int64_t row) {
    const RopeCall *c = arg;
    const Layout *l = c->layout;
    int64_t d = l->head_dim, heads = c->q_heads, lanes = FN(key_lanes)(l);
    const ELT *in = (const ELT *)c->qkv + row * (heads + 2 * l->kv_heads) * d;
    const float *table = c->rope + c->rows->positions[row] * d;
    int64_t page = c->rows->slots[row] / l->block_size, offset = c->rows->slots[row] % l->block_size;
    float out[MAX_HEAD_DIM];
    uint32_t key[MAX_HEAD_DIM];
    for (int64_t h = 0; h < heads; h++) {
        FN(rotate)(in + h * d, table, c->q_norm, c->eps, d, out);
        FN(narrow)(out, d, lanes, (ELT *)key);
        memcpy((ELT *)c->q_out + (row * heads + h) * d, key, (size_t)d * sizeof(ELT));
    }
    for (int64_t h = 0; h < l->kv_heads; h++) {
        uint8_t *keys = FN(head_page)(c->kv, l, page, c->layer, h);
        FN(rotate)(in + (heads + h) * d, table, c->k_norm, c->eps, d, out);
        FN(narrow)(out, d, lanes, (ELT *)key);
        uint32_t *slot = (uint32_t *)(keys + offset / STRIP * lanes * STRIP_BYTES) + offset % STRIP;
        for (int64_t i = 0; i < lanes; i++) slot[i * STRIP] = key[i];
        ELT *values = (ELT *)(keys + l->block_size * lanes * 4) + offset * FN(value_width)(l);
        memcpy(values, in + (heads + l->kv_heads + h) * d, (size_t)d * sizeof(ELT));
        for (int64_t i = d; i < FN(value_width)(l); i++) values[i] = 0;
    }
}

static void FN(rope_append)(const RopeCall *c) { pool_run(c->rows->n_rows, FN(rope_task), (void *)c); }

/* A query is one head of one row. Queries of a sequence that share a KV head go through its tokens together, four
 * at a time, in groups of 16 tokens. A query's own sums run over its own tokens in order, always from the group of
 * its first visible one: they depend on its position alone. */
typedef struct {
    const uint8_t *keys; /* [lanes][16 tokens] lanes */
    const ELT *values;   /* [16 tokens][width] */
} FN(Tokens);            /* a group */

typedef struct {
    int64_t begin, end;  /* visible tokens */
    const ELT *q;
    ELT *out;
    float *scores;       /* of tokens from the first group on */
    float inverse;
} FN(Query);

/* scores of M queries with G groups of tokens from `g` on. `ahead` bytes from them lie those of the next head,
 * which are asked into L2; so are its values, below. */
#undef SCORE_BLOCK
#define SCORE_BLOCK(M, G)                                                                                  \
    static void FN(score_##M##x##G)(FN(Query) *query, const FN(Tokens) *tokens, int64_t g, int64_t lanes, int64_t ahead, \
                                    const uint32_t (*q)[MAX_HEAD_DIM], float scale) {                      \
        v16 acc[M][G];                                                                                     \
        const uint8_t *keys[G];                                                                            \
        for (int j = 0; j < G; j++) {                                                                      \
            keys[j] = tokens[g + j].keys;                                                                  \
            for (int m = 0; m < M; m++) acc[m][j] = v_zero();                                              \
        }                                                                                                  \
        for (int64_t i = 0; i < lanes; i++)                                                                \
            for (int j = 0; j < G; j++) {                                                                  \
                PREFETCH_L2(keys[j] + ahead + i * STRIP_BYTES);                                            \
                for (int m = 0; m < M; m++) acc[m][j] = LANE_MAC(acc[m][j], keys[j] + i * STRIP_BYTES, q[m][i]); \
            }                                                                                              \
        for (int m = 0; m < M; m++)                                                                        \
            for (int j = 0; j < G; j++) v_store(query[m].scores + (g + j) * STRIP, v_mul(acc[m][j], v_set1(scale))); \
    }
SCORE_BLOCK(1, 1)
SCORE_BLOCK(1, 4)
SCORE_BLOCK(4, 1)
SCORE_BLOCK(4, 2)

/* Scores to probabilities; what is not visible gets none, whatever an unfilled slot holds. */
static void FN(softmax)(FN(Query) *query, int64_t first) {
    int64_t begin = query->begin - first, end = query->end - first, whole = (end + 15) & ~(int64_t)15;
    float *s = query->scores;
    for (int64_t t = 0; t < begin; t++) s[t] = -INFINITY;
    for (int64_t t = end; t < whole; t++) s[t] = -INFINITY;
    int64_t from = begin & ~(int64_t)15;
    v16 top = v_set1(-INFINITY), sum = v_zero();
    for (int64_t t = from; t < whole; t += STRIP) top = v_max(top, v_load(s + t));
    top = v_set1(v_top(top));
    for (int64_t t = from; t < whole; t += STRIP) {
        v_store(s + t, v_exp(v_sub(v_load(s + t), top)));
        for (int64_t i = t; i < begin; i++) s[i] = 0;
        for (int64_t i = max64(t, end); i < t + STRIP; i++) s[i] = 0;
        sum = v_add(sum, v_load(s + t));
    }
    query->inverse = 1.0f / v_sum(sum);
}

/* acc[M][C] += probabilities x values of tokens [t, end), columns from `column` on. */
#undef VALUE_BLOCK
#define VALUE_BLOCK(M, C)                                                                                  \
    static inline void FN(values_##M##x##C)(v16 acc[M][C], const FN(Query) *query, const FN(Tokens) *tokens, int64_t first, \
                                            int64_t t, int64_t end, int64_t width, int64_t column, int64_t ahead) { \
        for (; t < end; t++) {                                                                             \
            const ELT *from = tokens[(t - first) / STRIP].values + (t % STRIP) * width + column;           \
            v16 v[C];                                                                                      \
            for (int c = 0; c < C; c += 64 / STRIP / (int)sizeof(ELT)) PREFETCH_L2((const uint8_t *)(from + c * STRIP) + ahead); \
            for (int c = 0; c < C; c++) v[c] = FN(load)(from + c * STRIP);                                 \
            for (int m = 0; m < M; m++) {                                                                  \
                v16 p = v_set1(query[m].scores[t - first]);                                                \
                for (int c = 0; c < C; c++) acc[m][c] = v_fma(p, v[c], acc[m][c]);                         \
            }                                                                                              \
        }                                                                                                  \
    }                                                                                                      \
    static void FN(mix_##M##x##C)(FN(Query) *query, const FN(Tokens) *tokens, int64_t first, int64_t width, int64_t column, \
                                  int64_t d, int64_t ahead) {                                              \
        v16 acc[M][C];                                                                                     \
        int64_t begin = query[0].begin, end = query[0].end;                                                \
        for (int m = 0; m < M; m++) {                                                                      \
            begin = max64(begin, query[m].begin);                                                          \
            end = min64(end, query[m].end);                                                                \
            for (int c = 0; c < C; c++) acc[m][c] = v_zero();                                              \
        }                                                                                                  \
        for (int m = 0; M > 1 && m < M; m++)                                                               \
            FN(values_1x##C)(&acc[m], query + m, tokens, first, query[m].begin, begin, width, column, ahead); \
        FN(values_##M##x##C)(acc, query, tokens, first, begin, end, width, column, ahead);                 \
        for (int m = 0; M > 1 && m < M; m++)                                                               \
            FN(values_1x##C)(&acc[m], query + m, tokens, first, max64(begin, end), query[m].end, width, column, ahead); \
        for (int m = 0; m < M; m++)                                                                        \
            for (int c = 0; c < C; c++) {                                                                  \
                v16 v = v_mul(acc[m][c], v_set1(query[m].inverse));                                        \
                ELT *out = query[m].out + column + c * STRIP;                                              \
                if (column + (c + 1) * STRIP <= d) { FN(store)(out, v); continue; }                        \
                float f[STRIP];                                                                            \
                v_store(f, v);                                                                             \
                for (int64_t i = 0; column + c * STRIP + i < d; i++) out[i] = FN(round)(f[i]);             \
            }                                                                                              \
    }
VALUE_BLOCK(1, 1)
VALUE_BLOCK(1, 4)
VALUE_BLOCK(4, 1)
VALUE_BLOCK(4, 4)

/* `n` (1 or 4) queries: scores of all groups, probabilities, weighted values. `tokens[0]` holds token `first`. */
static void FN(attend)(FN(Query) *query, int n, const FN(Tokens) *tokens, int64_t first, const Layout *l, float scale) {
    int64_t lanes = FN(key_lanes)(l), width = FN(value_width)(l), d = l->head_dim, begin = query[0].begin, end = 0;
    uint32_t q[4][MAX_HEAD_DIM];
    for (int m = 0; m < n; m++) {
        q[m][lanes - 1] = 0; /* an odd head_dim leaves half a lane */
        memcpy(q[m], query[m].q, (size_t)d * sizeof(ELT));
        begin = min64(begin, query[m].begin);
        end = max64(end, query[m].end);
    }
    int64_t n_groups = ceil_div(end - first, STRIP), ahead = FN(head_bytes)(l);
    for (int64_t g = (begin - first) / STRIP; g < n_groups;) {
        int64_t wide = n == 1 ? 4 : 2, step = n_groups - g >= wide ? wide : 1;
        if (n == 1 && step == 4) FN(score_1x4)(query, tokens, g, lanes, ahead, q, scale);
        else if (n == 1) FN(score_1x1)(query, tokens, g, lanes, ahead, q, scale);
        else if (step == 2) FN(score_4x2)(query, tokens, g, lanes, ahead, q, scale);
        else FN(score_4x1)(query, tokens, g, lanes, ahead, q, scale);
        g += step;
    }
    for (int m = 0; m < n; m++) FN(softmax)(query + m, first);
    for (int64_t column = 0; column < width;) {
        int64_t step = width - column >= 4 * STRIP ? 4 : 1;
        if (n == 1 && step == 4) FN(mix_1x4)(query, tokens, first, width, column, d, ahead);
        else if (n == 1) FN(mix_1x1)(query, tokens, first, width, column, d, ahead);
        else if (step == 4) FN(mix_4x4)(query, tokens, first, width, column, d, ahead);
        else FN(mix_4x1)(query, tokens, first, width, column, d, ahead);
        column += step * STRIP;
    }
}

/* A task is some KV heads of a few rows of one sequence. */
typedef struct { const AttentionCall *call; const int32_t *chunks; int64_t heads; } FN(Attend);

static void FN(attend_head)(const AttentionCall *c, const int32_t *chunk, int64_t kv_head, const FN(Tokens) *tokens,
                            int64_t first, float *scores, int64_t stride) {
    int64_t group = c->q_heads / c->layout->kv_heads, d = c->layout->head_dim;
    FN(Query) query[4];
    for (int64_t i = 0, n = chunk[2] * group; i < n;) {
        int m = n - i >= 4 ? 4 : 1;
        for (int j = 0; j < m; j++) {
            int64_t row = chunk[1] + (i + j) / group, at = (row * c->q_heads + kv_head * group + (i + j) % group) * d;
            int64_t end = c->rows->positions[row] + 1;
            query[j] = (FN(Query)){c->window && end > c->window ? end - c->window : 0, end, (const ELT *)c->q + at,
                                   (ELT *)c->out + at, scores + j * stride, 0};
        }
        FN(attend)(query, m, tokens, first, c->layout, (float)c->scale);
        i += m;
    }
}

static void FN(attend_task)(void *arg, int64_t task) {
    const FN(Attend) *a = arg;
    const AttentionCall *c = a->call;
    const Layout *l = c->layout;
    int64_t parts = ceil_div(l->kv_heads, a->heads), head = task % parts * a->heads, bs = l->block_size;
    const int32_t *chunk = a->chunks + 3 * (task / parts);
    int64_t end = c->rows->positions[chunk[1] + chunk[2] - 1] + 1, earliest = c->rows->positions[chunk[1]] + 1;
    int64_t first = (c->window && earliest > c->window ? earliest - c->window : 0) & ~(int64_t)15;
    int64_t n_groups = ceil_div(end - first, STRIP), stride = n_groups * STRIP;
    float *scores = pool_local((size_t)n_groups * sizeof(FN(Tokens)) + 4 * (size_t)stride * sizeof(float));
    FN(Tokens) *tokens = (FN(Tokens) *)(scores + 4 * stride);
    const int32_t *table = c->rows->block_table + chunk[0] * c->rows->max_blocks;
    for (int64_t last = min64(head + a->heads, l->kv_heads); head < last; head++) {
        for (int64_t g = 0, t = first; g < n_groups; g++, t += STRIP) {
            const uint8_t *page = FN(head_page)(c->kv, l, table[t / bs], c->layer, head);
            tokens[g].keys = page + (t % bs) / STRIP * FN(key_lanes)(l) * STRIP_BYTES;
            tokens[g].values = (const ELT *)(page + bs * FN(key_lanes)(l) * 4) + (t % bs) * FN(value_width)(l);
        }
        FN(attend_head)(c, chunk, head, tokens, first, scores, stride);
    }
}

static void FN(attention)(const AttentionCall *c) {
    const Rows *r = c->rows;
    int64_t per_chunk = 8, n = 0, heads = c->layout->kv_heads;
    int32_t *chunks = pool_scratch(1, (size_t)(r->n_rows / per_chunk + r->n_seqs) * 3 * sizeof(int32_t));
    for (int64_t s = 0; s < r->n_seqs; s++)
        for (int64_t row = r->query_start[s]; row < r->query_start[s + 1]; row += per_chunk, n++) {
            chunks[3 * n] = (int32_t)s;
            chunks[3 * n + 1] = (int32_t)row;
            chunks[3 * n + 2] = (int32_t)min64(per_chunk, r->query_start[s + 1] - row);
        }
    /* Heads of a sequence lie side by side: one thread takes them in turn, if there is work enough for all. */
    FN(Attend) a = {c, chunks, n >= 4 * pool_threads() ? heads : ceil_div(heads, 4 * (int64_t)pool_threads())};
    pool_run(n * ceil_div(heads, a.heads), FN(attend_task), &a);
}
