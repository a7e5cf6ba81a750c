/* Shared by all instruction-set paths: the structures that cross from Python, and the table of operations.
 *
 * Everything is counted in "lanes" of 4 bytes: one fp32, or a pair of bf16 that belong to adjacent k. A packed
 * weight is a row of strips, a strip 16 output columns wide:
 *
 *     strip s:  [lane 0: 16 columns x 4 B][lane 1: 16 columns x 4 B] … [lane L-1]          64 bytes a lane
 *
 * For bf16 that is the layout AMX wants for its B tile and VDPBF16PS for its memory operand.
 */
#ifndef STOA_KERNELS_H
#define STOA_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define STRIP 16        /* output columns in a strip */
#define STRIP_BYTES 64  /* bytes of one lane of a strip */
#define MAX_HEAD_DIM 1024

typedef struct {
    int64_t k;          /* inputs */
    int64_t lanes;      /* of a strip; inputs beyond k are zero in the weight */
    int64_t n_strips;
    int64_t bits;       /* 32 and 16: as drawn above; 8 and 4: see quantized.h */
    int64_t strip_bytes;
    const uint8_t *data;
    const int32_t *strips; /* [n_strips][2]: first output column, width (a part's last strip may be narrow) */
    const float *bias;     /* [n_strips][16] or NULL */
    int64_t out_stride;    /* columns of the output */
} Linear;

/* One adapter on one linear. Parts are the projections that share the input (q/k/v); absent ones are left out.
 * A of all parts is stacked: column j of A belongs to the part whose h_lane covers it. A's strips are
 * min(16, columns left) wide and not padded. Ranks are even in bf16 (a zero column is added to odd ones). */
typedef struct {
    int64_t h_lane;     /* first lane of this part's h */
    int64_t lanes;      /* lanes of h: rank, or rank / 2 in bf16 */
    int64_t strip;      /* first strip of the part in the linear */
    int64_t n_strips;
    const uint8_t *b;   /* [n_strips][lanes][16] lanes */
    double scale;
} LoraPart;

#define MAX_PARTS 3
typedef struct {
    const uint8_t *a;   /* strips of [lanes of the linear][width] lanes; NULL: the adapter leaves this linear alone */
    int64_t a_bytes;
    int64_t columns;    /* of A: the sum of ranks */
    int64_t n_parts;
    LoraPart part[MAX_PARTS];
} Lora;

typedef struct {
    int64_t n;
    const int32_t *starts;      /* [n + 1] rows */
    const Lora *const *adapters; /* [n] table over the model's linears, or NULL */
    int64_t n_linears;          /* entries of such a table */
} Segments;

typedef struct {
    int64_t layers, kv_heads, head_dim, block_size, page_bytes;
} Layout;

/* See AttentionRows in interface.py. */
typedef struct {
    int64_t n_seqs, n_rows, max_blocks;
    const int32_t *query_start, *context_len, *block_table, *positions;
    const int64_t *slots;
} Rows;

typedef struct {
    const void *x; void *out;
    const Linear *w; const Segments *lora;
    int64_t rows, index, out_fp32, accumulate;
} LinearCall;

typedef struct {
    const void *qkv; void *q_out; const float *rope; uint8_t *kv;
    const Layout *layout; const Rows *rows;
    const float *q_norm, *k_norm;
    int64_t layer, q_heads; double eps;
} RopeCall;

typedef struct {
    const void *q; void *out; const uint8_t *kv;
    const Layout *layout; const Rows *rows;
    int64_t layer, q_heads, window; double scale;
} AttentionCall;

/* How a row's token is chosen; see DrawRow in interface.py. */
typedef struct { double temperature, min_p, top_p, uniform; int64_t top_k; } Drawing;
typedef struct { const float *logits; const Drawing *rows; int64_t *out; int64_t n, v; } DrawCall;

typedef struct {
    void (*linear)(const LinearCall *);
    void (*rms_norm)(const float *x, const float *w, double eps, void *out, int64_t rows, int64_t h);
    void (*silu_mul)(const void *gate_up, void *out, int64_t rows, int64_t inner);
    void (*rope_append)(const RopeCall *);
    void (*attention)(const AttentionCall *);
    void (*draw)(const DrawCall *);
} Ops;

/* program.c: one recorded call; what p, n and d mean depends on op. */
typedef struct { int64_t op; void *p[7]; int64_t n[3]; double d; } Call;
void play(const Ops *ops, const Call *calls, int64_t count, int64_t rows, const Segments *lora, const Rows *r);

/* pool.c */
typedef void (*Task)(void *arg, int64_t task);
void pool_start(int threads);
int pool_threads(void);
void pool_run(int64_t n, Task fn, void *arg);
/* Memory that stays between calls, 64-byte aligned; `slot` names the use. Only for the calling thread. */
void *pool_scratch(int slot, size_t bytes);
/* Scratch of the thread a task runs on. */
void *pool_local(size_t bytes);

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

#endif
