/* Base products of weight-only int8 and int4: a whole-number product per group of 64 inputs, then one
 * multiply-add in fp32. Groups add up in order, so a row's result is the same in any company.
 *
 * A strip of a quantized weight is one block after the other:
 *
 *     [scales: 16 fp32, one a column][data: 16 lanes of 16 columns x 4 inputs]
 *
 * int8 stores q + 128 (1 .. 255), int4 q + 8 (0 .. 15) with lane 2i in the low halves of the bytes and lane 2i + 1
 * in the high ones. Inputs are rounded to int8 per row and group; what the offset 128 or 8 adds is taken off at the
 * start of a group's sum. */

#define GROUP 64
#define GROUP_LANES 16

typedef struct {
    int32_t q[GROUP_LANES]; /* four int8 each */
    float scale;
    int32_t start;          /* -offset * sum of q */
} FN(Inputs);               /* of one row and group */

static void FN(quantize_task)(void *arg, int64_t row) {
    const FN(Work) *work = arg;
    const Linear *w = work->call->w;
    const ELT *x = (const ELT *)(work->x + row * work->x_stride);
    int64_t have = work->x_stride / (int64_t)sizeof(ELT);
    FN(Inputs) *to = (FN(Inputs) *)(work->in + row * work->in_stride);
    for (int64_t g = 0; g < work->depth; g++, to++) {
        float f[GROUP] = {0};
        v16 top = v_zero();
        int64_t n = min64(GROUP, have - g * GROUP); /* a multiple of 16 */
        for (int64_t i = 0; i < n; i += STRIP) {
            v16 v = FN(load)(x + g * GROUP + i);
            v_store(f + i, v);
            top = v_max(top, v_max(v, v_sub(v_zero(), v)));
        }
        float most = v_top(top), inverse = most > 0 ? 127.0f / most : 0.0f;
        to->scale = most / 127.0f;
        to->start = 0;
        for (int64_t i = 0; i < GROUP; i += STRIP) {
            int8_t q[STRIP];
            v_store_int8(q, v_mul(v_load(f + i), v_set1(inverse)));
            for (int j = 0; j < STRIP; j++) to->start -= q[j];
            memcpy(to->q + i / 4, q, STRIP);
        }
        to->start *= 1 << (w->bits - 1);
    }
}

static void FN(quantize)(FN(Work) *work) {
    const LinearCall *call = work->call;
    work->depth = ceil_div(call->w->k, GROUP);
    work->in_stride = work->depth * (int64_t)sizeof(FN(Inputs));
    work->in = pool_scratch(3, (size_t)(call->rows * work->in_stride));
    pool_run(call->rows, FN(quantize_task), work);
}

/* See FN(Block). */
#undef QUANTIZED_BLOCK
#define QUANTIZED_BLOCK(BITS, M, N)                                                                        \
    static void FN(quantized##BITS##_##M##x##N)(const uint8_t *x, int64_t xs, const uint8_t *w, int64_t ws,   \
                                                int64_t groups, const uint8_t *ahead, int64_t n_ahead,     \
                                                Queue *queue, float *out, int64_t os) {                    \
        const int64_t block = STRIP_BYTES + GROUP * STRIP * BITS / 8;                                      \
        v16 acc[M][N];                                                                                     \
        for (int m = 0; m < M; m++)                                                                        \
            for (int n = 0; n < N; n++) acc[m][n] = v_zero();                                              \
        for (int64_t g = 0; g < groups; g++) {                                                             \
            const uint8_t *at = w + g * block;                                                             \
            const FN(Inputs) *in[M];                                                                       \
            for (int m = 0; m < M; m++) in[m] = (const FN(Inputs) *)(x + m * xs) + g;                      \
            v16i sum[M][N];                                                                                \
            for (int m = 0; m < M; m++)                                                                    \
                for (int n = 0; n < N; n++) sum[m][n] = vi_set1(in[m]->start);                  \
            for (int64_t n = 0; n < n_ahead; n++)                                                          \
                for (int64_t i = 0; i < block; i += STRIP_BYTES) PREFETCH_L2(ahead + n * ws + g * block + i); \
            for (int l = 0; l < GROUP_LANES; l += 8 / BITS) {                                              \
                queue_step(queue);                                                                         \
                for (int n = 0; n < N; n++) {                                                              \
                    v16i data = vi_load(at + n * ws + STRIP_BYTES + l * STRIP_BYTES * BITS / 8);           \
                    for (int m = 0; m < M; m++) {                                                          \
                        const int32_t *q = in[m]->q + l;                                        \
                        if (BITS == 8) {                                                                   \
                            sum[m][n] = vi_dot(sum[m][n], data, q[0]);                                     \
                        } else {                                                                           \
                            sum[m][n] = vi_dot(sum[m][n], vi_low(data), q[0]);                             \
                            sum[m][n] = vi_dot(sum[m][n], vi_high(data), q[1]);                            \
                        }                                                                                  \
                    }                                                                                      \
                }                                                                                          \
            }                                                                                              \
            for (int n = 0; n < N; n++) {                                                                  \
                v16 scale = v_load((const float *)(at + n * ws));                                          \
                for (int m = 0; m < M; m++)                                                                \
                    acc[m][n] = v_fma(v_mul(vi_float(sum[m][n]), v_set1(in[m]->scale)), scale, acc[m][n]); \
            }                                                                                              \
        }                                                                                                  \
        for (int m = 0; m < M; m++)                                                                        \
            for (int n = 0; n < N; n++) v_store(out + m * os + n * STRIP, acc[m][n]);                      \
    }

QUANTIZED_BLOCK(8, 1, 1)
QUANTIZED_BLOCK(8, 1, 2)
QUANTIZED_BLOCK(8, 4, 1)
QUANTIZED_BLOCK(8, 4, 2)
QUANTIZED_BLOCK(4, 1, 1)
QUANTIZED_BLOCK(4, 1, 2)
QUANTIZED_BLOCK(4, 4, 1)
QUANTIZED_BLOCK(4, 4, 2)
static const FN(Blocks) FN(int8) = {2, 0, FN(quantized8_1x1), FN(quantized8_1x2), FN(quantized8_4x1), FN(quantized8_4x2)};
static const FN(Blocks) FN(int4) = {2, 0, FN(quantized4_1x1), FN(quantized4_1x2), FN(quantized4_4x1), FN(quantized4_4x2)};
