/* What Python calls: choose a path once, then one entry per operation. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "stoa_kernels.h"

extern const Ops ops_f32_portable, ops_bf16_portable;
#if defined(__x86_64__)
#include <cpuid.h>
extern const Ops ops_f32_avx2, ops_bf16_avx2, ops_f32_avx512, ops_bf16_avx512, ops_f32_avx512bf16, ops_bf16_avx512bf16,
    ops_bf16_amx;

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

static int has_amx(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return 0;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static int has_avx512bf16(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1) && __builtin_cpu_supports("avx512vnni");
}
#endif

/* 0 portable, 1 avx2, 2 avx512, 3 avx512bf16, 4 amx: the best this machine and system allow. */
int stoa_best_isa(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return 1;
    if (!has_avx512bf16()) return 2;
    return has_amx() ? 4 : 3;
#else
    return 0;
#endif
}

const Ops *stoa_ops(int isa, int bf16) {
#if defined(__x86_64__)
    const Ops *f32[] = {&ops_f32_portable, &ops_f32_avx2, &ops_f32_avx512, &ops_f32_avx512bf16, &ops_f32_avx512bf16};
    const Ops *b16[] = {&ops_bf16_portable, &ops_bf16_avx2, &ops_bf16_avx512, &ops_bf16_avx512bf16, &ops_bf16_amx};
    return bf16 ? b16[isa] : f32[isa];
#else
    (void)isa;
    return bf16 ? &ops_bf16_portable : &ops_f32_portable;
#endif
}

/* The pool serves one call at a time; engines in one process take turns. */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
#define IN_TURN(call) do { pthread_mutex_lock(&turn); call; pthread_mutex_unlock(&turn); } while (0)

void stoa_start(int threads) { IN_TURN(pool_start(threads)); }

void stoa_linear(const Ops *ops, const void *x, void *out, const Linear *w, const Segments *lora, int64_t rows,
                 int64_t index, int64_t out_fp32, int64_t accumulate) {
    LinearCall c = {x, out, w, lora, rows, index, out_fp32, accumulate};
    IN_TURN(ops->linear(&c));
}

void stoa_rms_norm(const Ops *ops, const float *x, const float *w, double eps, void *out, int64_t rows, int64_t h) {
    IN_TURN(ops->rms_norm(x, w, eps, out, rows, h));
}

void stoa_silu_mul(const Ops *ops, const void *gate_up, void *out, int64_t rows, int64_t inner) {
    IN_TURN(ops->silu_mul(gate_up, out, rows, inner));
}

void stoa_rope_append(const Ops *ops, const void *qkv, void *q_out, const float *rope, uint8_t *kv, const Layout *layout,
                      const Rows *rows, const float *q_norm, const float *k_norm, int64_t layer, int64_t q_heads, double eps) {
    RopeCall c = {qkv, q_out, rope, kv, layout, rows, q_norm, k_norm, layer, q_heads, eps};
    IN_TURN(ops->rope_append(&c));
}

void stoa_attention(const Ops *ops, const void *q, void *out, const uint8_t *kv, const Layout *layout, const Rows *rows,
                    int64_t layer, int64_t q_heads, int64_t window, double scale) {
    AttentionCall c = {q, out, kv, layout, rows, layer, q_heads, window, scale};
    IN_TURN(ops->attention(&c));
}

void stoa_play(const Ops *ops, const Call *calls, int64_t count, int64_t rows, const Segments *lora, const Rows *r) {
    IN_TURN(play(ops, calls, count, rows, lora, r));
}

void stoa_draw(const Ops *ops, const float *logits, const Drawing *rows, int64_t n, int64_t v, int64_t *out) {
    DrawCall c = {logits, rows, out, n, v};
    IN_TURN(ops->draw(&c));
}

/* ---------------------------------------------------------------- read bandwidth */

typedef struct { const uint64_t *data; int64_t words, parts; uint64_t *sums; } Read;

static void read_task(void *arg, int64_t part) {
    const Read *r = arg;
    int64_t each = r->words / r->parts;
    const uint64_t *p = r->data + part * each;
    uint64_t sum[8] = {0};
    for (int64_t i = 0; i + 8 <= each; i += 8) {
        __builtin_prefetch(p + i + 128);
        for (int j = 0; j < 8; j++) sum[j] += p[i + j];
    }
    for (int j = 0; j < 8; j++) r->sums[part] += sum[j];
}

/* Reads `bytes` (huge pages where allowed) once; the caller takes the time. */
void *stoa_read_buffer(int64_t bytes) {
    void *p = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    madvise(p, (size_t)bytes, MADV_HUGEPAGE);
    memset(p, 1, (size_t)bytes);
    return p;
}

uint64_t stoa_read_all(const void *buffer, int64_t bytes) {
    uint64_t sums[64] = {0};
    Read r = {buffer, bytes / 8, 4 * pool_threads() < 64 ? 4 * pool_threads() : 64, sums};
    IN_TURN(pool_run(r.parts, read_task, &r));
    uint64_t total = 0;
    for (int i = 0; i < 64; i++) total += sums[i];
    return total;
}

void stoa_free_buffer(void *buffer, int64_t bytes) { munmap(buffer, (size_t)bytes); }
