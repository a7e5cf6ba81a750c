/* Sixteen floats at a time (v_…), or sixteen whole numbers (vi_…; vi_dot: fours of unsigned by signed bytes), on
 * whatever the path being compiled has. Included with PATH_* defined. */
#include <math.h>
#include <string.h>

#if defined(PATH_AVX512) || defined(PATH_AVX512BF16)
#include <immintrin.h>
typedef __m512 v16;
#define v_zero() _mm512_setzero_ps()
#define v_set1(x) _mm512_set1_ps(x)
#define v_load(p) _mm512_loadu_ps(p)
#define v_store(p, v) _mm512_storeu_ps(p, v)
#define v_add(a, b) _mm512_add_ps(a, b)
#define v_sub(a, b) _mm512_sub_ps(a, b)
#define v_mul(a, b) _mm512_mul_ps(a, b)
#define v_div(a, b) _mm512_div_ps(a, b)
#define v_max(a, b) _mm512_max_ps(a, b)
#define v_min(a, b) _mm512_min_ps(a, b)
#define v_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define v_round(a) _mm512_roundscale_ps(a, 0)
static inline v16 v_pow2(v16 n) { /* 2^n for whole n in [-126, 127] */
    __m512i e = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
    return _mm512_castsi512_ps(e);
}
static inline v16 v_load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
static inline void v_store_bf16(uint16_t *p, v16 v) { /* nearest, ties to even */
    __m512i u = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    u = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(u, 16)));
}
typedef __m512i v16i;
#define vi_set1(x) _mm512_set1_epi32(x)
#define vi_load(p) _mm512_loadu_si512(p)
#define vi_low(a) _mm512_and_si512(a, _mm512_set1_epi8(15))
#define vi_high(a) _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15))
#define vi_float(a) _mm512_cvtepi32_ps(a)
static inline void v_store_int8(int8_t *p, v16 v) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}
#ifdef PATH_AVX512BF16
#define vi_dot(acc, w, x) _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x))
static inline v16 v_dot(v16 acc, const uint8_t *w, uint32_t x) {
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi32((int)x), (__m512bh)_mm512_loadu_si512(w));
}
#else
static inline v16i vi_dot(v16i acc, v16i w, int32_t x) { /* bytes 0 and 2 of each four, then 1 and 3, as 16 bits */
    __m512i four = _mm512_set1_epi32(x), even = _mm512_srai_epi16(_mm512_slli_epi16(four, 8), 8);
    __m512i low = _mm512_and_si512(w, _mm512_set1_epi16(255)), high = _mm512_srli_epi16(w, 8);
    acc = _mm512_add_epi32(acc, _mm512_madd_epi16(low, even));
    return _mm512_add_epi32(acc, _mm512_madd_epi16(high, _mm512_srai_epi16(four, 8)));
}
static inline v16 v_dot(v16 acc, const uint8_t *w, uint32_t x) {
    __m512i pair = _mm512_loadu_si512(w);
    __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
    __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000u)));
    acc = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32((int)(x << 16))), even, acc);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32((int)(x & 0xffff0000u))), odd, acc);
}
#endif
#define PREFETCH(p) _mm_prefetch((const char *)(p), _MM_HINT_T0)
#define PREFETCH_L2(p) _mm_prefetch((const char *)(p), _MM_HINT_T1)

#elif defined(PATH_AVX2)
#include <immintrin.h>
typedef struct { __m256 a, b; } v16;
#define BOTH(expr_a, expr_b) (v16){expr_a, expr_b}
static inline v16 v_zero(void) { return BOTH(_mm256_setzero_ps(), _mm256_setzero_ps()); }
static inline v16 v_set1(float x) { return BOTH(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
static inline v16 v_load(const float *p) { return BOTH(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
static inline void v_store(float *p, v16 v) { _mm256_storeu_ps(p, v.a); _mm256_storeu_ps(p + 8, v.b); }
static inline v16 v_add(v16 x, v16 y) { return BOTH(_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)); }
static inline v16 v_sub(v16 x, v16 y) { return BOTH(_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)); }
static inline v16 v_mul(v16 x, v16 y) { return BOTH(_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)); }
static inline v16 v_div(v16 x, v16 y) { return BOTH(_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)); }
static inline v16 v_max(v16 x, v16 y) { return BOTH(_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)); }
static inline v16 v_min(v16 x, v16 y) { return BOTH(_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)); }
static inline v16 v_fma(v16 x, v16 y, v16 z) { return BOTH(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)); }
static inline v16 v_round(v16 x) { return BOTH(_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)); }
static inline __m256 half_pow2(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
static inline v16 v_pow2(v16 n) { return BOTH(half_pow2(n.a), half_pow2(n.b)); }
static inline __m256 half_load_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
static inline v16 v_load_bf16(const uint16_t *p) { return BOTH(half_load_bf16(p), half_load_bf16(p + 8)); }
static inline __m256i half_bf16(__m256 v) {
    __m256i u = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
}
static inline void v_store_bf16(uint16_t *p, v16 v) {
    __m256i packed = _mm256_packus_epi32(half_bf16(v.a), half_bf16(v.b));
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(packed, 0xd8));
}
static inline __m256 half_dot(__m256 acc, const uint8_t *w, uint32_t x) {
    __m256i pair = _mm256_loadu_si256((const __m256i *)w);
    __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
    __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32((int)0xffff0000u)));
    acc = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_set1_epi32((int)(x << 16))), even, acc);
    return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_set1_epi32((int)(x & 0xffff0000u))), odd, acc);
}
typedef struct { __m256i a, b; } v16i;
#define BOTH_I(expr_a, expr_b) (v16i){expr_a, expr_b}
static inline v16i vi_set1(int32_t x) { return BOTH_I(_mm256_set1_epi32(x), _mm256_set1_epi32(x)); }
static inline v16i vi_load(const uint8_t *p) {
    return BOTH_I(_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 32)));
}
static inline __m256i half_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
static inline v16i vi_low(v16i v) { return BOTH_I(half_nibbles(v.a), half_nibbles(v.b)); }
static inline v16i vi_high(v16i v) {
    return BOTH_I(half_nibbles(_mm256_srli_epi16(v.a, 4)), half_nibbles(_mm256_srli_epi16(v.b, 4)));
}
static inline v16 vi_float(v16i v) { return BOTH(_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)); }
static inline __m256i half_idot(__m256i acc, __m256i w, __m256i even, __m256i odd) {
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)), even));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_srli_epi16(w, 8), odd));
}
static inline v16i vi_dot(v16i acc, v16i w, int32_t x) { /* bytes 0 and 2 of each four, then 1 and 3, as 16 bits */
    __m256i four = _mm256_set1_epi32(x), even = _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8);
    __m256i odd = _mm256_srai_epi16(four, 8);
    return BOTH_I(half_idot(acc.a, w.a, even, odd), half_idot(acc.b, w.b, even, odd));
}
static inline void v_store_int8(int8_t *p, v16 v) {
    int32_t q[16];
    _mm256_storeu_si256((__m256i *)q, _mm256_cvtps_epi32(v.a));
    _mm256_storeu_si256((__m256i *)(q + 8), _mm256_cvtps_epi32(v.b));
    for (int i = 0; i < 16; i++) p[i] = (int8_t)q[i];
}
static inline v16 v_dot(v16 acc, const uint8_t *w, uint32_t x) { return BOTH(half_dot(acc.a, w, x), half_dot(acc.b, w + 32, x)); }
#define PREFETCH(p) _mm_prefetch((const char *)(p), _MM_HINT_T0)
#define PREFETCH_L2(p) _mm_prefetch((const char *)(p), _MM_HINT_T1)

#else /* PATH_PORTABLE: plain C */
typedef struct { float f[16]; } v16;
#define EACH for (int i_ = 0; i_ < 16; i_++)
static inline v16 v_set1(float x) { v16 r; EACH r.f[i_] = x; return r; }
static inline v16 v_zero(void) { return v_set1(0); }
static inline v16 v_load(const float *p) { v16 r; memcpy(&r, p, 64); return r; }
static inline void v_store(float *p, v16 v) { memcpy(p, &v, 64); }
static inline v16 v_add(v16 x, v16 y) { EACH x.f[i_] += y.f[i_]; return x; }
static inline v16 v_sub(v16 x, v16 y) { EACH x.f[i_] -= y.f[i_]; return x; }
static inline v16 v_mul(v16 x, v16 y) { EACH x.f[i_] *= y.f[i_]; return x; }
static inline v16 v_div(v16 x, v16 y) { EACH x.f[i_] /= y.f[i_]; return x; }
static inline v16 v_max(v16 x, v16 y) { EACH x.f[i_] = x.f[i_] > y.f[i_] ? x.f[i_] : y.f[i_]; return x; }
static inline v16 v_min(v16 x, v16 y) { EACH x.f[i_] = x.f[i_] < y.f[i_] ? x.f[i_] : y.f[i_]; return x; }
static inline v16 v_fma(v16 x, v16 y, v16 z) { EACH z.f[i_] += x.f[i_] * y.f[i_]; return z; }
static inline v16 v_round(v16 x) { EACH x.f[i_] = nearbyintf(x.f[i_]); return x; }
static inline float bits_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline v16 v_pow2(v16 n) { EACH n.f[i_] = bits_float((uint32_t)((int)n.f[i_] + 127) << 23); return n; }
static inline v16 v_load_bf16(const uint16_t *p) { v16 r; EACH r.f[i_] = bits_float((uint32_t)p[i_] << 16); return r; }
static inline void v_store_bf16(uint16_t *p, v16 v) {
    EACH { uint32_t u; memcpy(&u, &v.f[i_], 4); p[i_] = (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16); }
}
static inline v16 v_dot(v16 acc, const uint8_t *w, uint32_t x) {
    float even = bits_float(x << 16), odd = bits_float(x & 0xffff0000u);
    const uint32_t *pair = (const uint32_t *)w;
    EACH acc.f[i_] += even * bits_float(pair[i_] << 16);
    EACH acc.f[i_] += odd * bits_float(pair[i_] & 0xffff0000u);
    return acc;
}
typedef struct { int32_t i[16]; } v16i; /* 16 whole numbers, or 64 bytes */
static inline v16i vi_set1(int32_t x) { v16i r; EACH r.i[i_] = x; return r; }
static inline v16i vi_load(const uint8_t *p) { v16i r; memcpy(&r, p, 64); return r; }
static inline v16i vi_low(v16i v) { EACH v.i[i_] &= 0x0f0f0f0f; return v; }
static inline v16i vi_high(v16i v) { EACH v.i[i_] = (v.i[i_] >> 4) & 0x0f0f0f0f; return v; }
static inline v16 vi_float(v16i v) { v16 r; EACH r.f[i_] = (float)v.i[i_]; return r; }
static inline v16i vi_dot(v16i acc, v16i w, int32_t x) {
    for (int j = 0; j < 32; j += 8) {
        int32_t b = (int8_t)(x >> j);
        EACH acc.i[i_] += (w.i[i_] >> j & 255) * b;
    }
    return acc;
}
static inline void v_store_int8(int8_t *p, v16 v) { EACH p[i_] = (int8_t)nearbyintf(v.f[i_]); }
#define PREFETCH(p) ((void)0)
#define PREFETCH_L2(p) ((void)0)
#endif

static inline v16 v_mac_f32(v16 acc, const uint8_t *w, uint32_t x) {
    float f;
    memcpy(&f, &x, 4);
    return v_fma(v_set1(f), v_load((const float *)w), acc);
}

/* One fixed order: halves are folded onto each other. */
static inline float v_sum(v16 v) {
    float f[16];
    v_store(f, v);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) f[i] += f[i + width];
    return f[0];
}
static inline float v_top(v16 v) {
    float f[16], m;
    v_store(f, v);
    m = f[0];
    for (int i = 1; i < 16; i++) m = f[i] > m ? f[i] : m;
    return m;
}

/* e^x to about 1 ulp for x in [-87, 88]; clamped outside. Cody-Waite reduction, Taylor to degree 7. */
static inline v16 v_exp(v16 x) {
    x = v_min(v_max(x, v_set1(-87.0f)), v_set1(88.0f));
    v16 n = v_round(v_mul(x, v_set1(1.44269504f)));
    v16 r = v_fma(n, v_set1(-0.693359375f), x);
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    v16 p = v_set1(1.0f / 5040);
    p = v_fma(p, r, v_set1(1.0f / 720));
    p = v_fma(p, r, v_set1(1.0f / 120));
    p = v_fma(p, r, v_set1(1.0f / 24));
    p = v_fma(p, r, v_set1(1.0f / 6));
    p = v_fma(p, r, v_set1(0.5f));
    p = v_fma(p, r, v_set1(1.0f));
    p = v_fma(p, r, v_set1(1.0f));
    return v_mul(p, v_pow2(n));
}
