/* RMSNorm and SwiGLU. */

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

