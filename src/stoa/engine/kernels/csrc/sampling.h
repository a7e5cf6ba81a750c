/* One token a row: the largest logit, or a draw by inverse CDF from what temperature, min-p, top-k and top-p leave,
 * in that order. Probabilities are fp32, their sums fp64 in the order of token ids. */

/* The largest of `n` values has rank 1; quickselect over a copy that it reorders. */
static float FN(kth_largest)(float *x, int64_t n, int64_t k) {
    int64_t low = 0, high = n - 1, want = k - 1;
    while (low < high) {
        float pivot = x[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i <= j) { float swap = x[i]; x[i++] = x[j]; x[j--] = swap; }
        }
        if (want <= j) high = j;
        else if (want >= i) low = i;
        else break;
    }
    return x[want];
}

static double FN(mass_from)(const float *p, int64_t n, float least) {
    double total = 0;
    for (int64_t i = 0; i < n; i++) total += p[i] >= least ? p[i] : 0.0f;
    return total;
}

/* The largest value such that what is at least as large makes up `share` of all: by bisection over the bits of
 * floats, which for positive ones are ordered as the floats are. */
static float FN(nucleus)(const float *p, int64_t n, double share) {
    double wanted = share * FN(mass_from)(p, n, 0.0f);
    uint32_t low = 0, high = 0x3f800000; /* 1.0: the largest there is */
    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        float least;
        memcpy(&least, &middle, 4);
        if (FN(mass_from)(p, n, least) >= wanted) low = middle;
        else high = middle - 1;
    }
    float found;
    memcpy(&found, &low, 4);
    return found;
}

static int64_t FN(largest)(const float *x, int64_t n, float *value) {
    v16 top = v_set1(-INFINITY);
    int64_t i = 0;
    for (; i + STRIP <= n; i += STRIP) top = v_max(top, v_load(x + i));
    float most = v_top(top);
    for (; i < n; i++) most = x[i] > most ? x[i] : most;
    for (i = 0; i < n - 1 && x[i] != most; i++) {}
    *value = most;
    return i;
}

static void FN(draw_task)(void *arg, int64_t row) {
    const DrawCall *c = arg;
    const Drawing *d = c->rows + row;
    const float *x = c->logits + row * c->v;
    int64_t n = c->v;
    float most;
    int64_t best = FN(largest)(x, n, &most);
    c->out[row] = best;
    if (d->temperature <= 0) return;
    float *p = pool_local((size_t)(2 * n + STRIP) * sizeof(float)), *copy = p + n;
    v16 top = v_set1(most), heat = v_set1(1.0f / (float)d->temperature);
    int64_t i = 0;
    for (; i + STRIP <= n; i += STRIP) v_store(p + i, v_exp(v_mul(v_sub(v_load(x + i), top), heat)));
    for (; i < n; i++) {
        float one[STRIP] = {(x[i] - most) / (float)d->temperature};
        v_store(one, v_exp(v_load(one)));
        p[i] = one[0];
    }
    for (i = 0; i < n; i++) /* what is masked has no probability, however little is left to others */
        if (x[i] == -INFINITY) p[i] = 0;
    float least = (float)d->min_p;
    if (d->top_k > 0 && d->top_k < n) {
        memcpy(copy, p, (size_t)n * sizeof(float));
        for (i = 0; i < n; i++) copy[i] = copy[i] < least ? 0 : copy[i];
        float kth = FN(kth_largest)(copy, n, d->top_k);
        least = kth > least ? kth : least;
    }
    for (i = 0; i < n; i++) p[i] = p[i] < least ? 0 : p[i];
    if (d->top_p < 1) {
        least = FN(nucleus)(p, n, d->top_p);
        for (i = 0; i < n; i++) p[i] = p[i] < least ? 0 : p[i];
    }
    double goal = d->uniform * FN(mass_from)(p, n, 0.0f), sum = 0;
    int64_t chosen = best;
    for (i = 0; i < n; i++) {
        if (p[i] == 0) continue;
        chosen = i;
        sum += p[i];
        if (sum > goal) break;
    }
    c->out[row] = chosen;
}

static void FN(draw)(const DrawCall *c) {
    pool_run(c->n, FN(draw_task), (void *)c);
}
