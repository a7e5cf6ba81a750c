/* bf16 with AMX tiles for the base weights; all else as avx512bf16. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,amx-tile,amx-bf16,fma,avx2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,amx-tile,amx-bf16,fma,avx2")
#endif
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t colsb[16];
    uint8_t rows[16];
} TileConfig;

/* Tiles:   C 0 1     A 4     B 6 7      (0 1: rows 0-15, 2 3: rows 16-31; 0 2: strip 0, 1 3: strip 1)
 *            2 3       5                                                                            */
static void configure(int64_t rows) {
    TileConfig c;
    memset(&c, 0, sizeof c);
    c.palette = 1;
    int64_t low = rows < 16 ? rows : 16, high = rows - low;
    const int64_t tile_rows[8] = {low, low, high, high, low, high, 16, 16};
    for (int i = 0; i < 8; i++) {
        c.rows[i] = (uint8_t)tile_rows[i];
        c.colsb[i] = tile_rows[i] ? 64 : 0;
    }
    _tile_loadconfig(&c);
}

/* out[rows ≤ 32][strips] = x W, strips in pairs. A row's sums come from the same tile instructions in the same
 * order whichever rows share its tile. */
static void base_tiles(const uint8_t *x, int64_t xs, const uint8_t *w, int64_t ws, int64_t lanes, int64_t rows,
                       int64_t strips, float *out, int64_t os) {
    configure(rows);
    for (int64_t s = 0; s < strips; s += 2) {
        const uint8_t *b0 = w + s * ws, *b1 = s + 1 < strips ? b0 + ws : b0;
        float *to = out + s * 16;
        _tile_zero(0);
        _tile_zero(1);
        if (rows > 16) {
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t l = 0; l < lanes; l += 16) {
                for (int i = 0; i < 1024; i += 64) {
                    _mm_prefetch((const char *)b0 + l * 64 + 4096 + i, _MM_HINT_T0);
                    _mm_prefetch((const char *)b1 + l * 64 + 4096 + i, _MM_HINT_T0);
                }
                _tile_loadd(6, b0 + l * 64, 64);
                _tile_loadd(4, x + l * 4, xs);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, b1 + l * 64, 64);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, x + 16 * xs + l * 4, xs);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(2, to + 16 * os, os * 4);
            if (s + 1 < strips) _tile_stored(3, to + 16 * os + 16, os * 4);
        } else {
            for (int64_t l = 0; l < lanes; l += 16) {
                for (int i = 0; i < 1024; i += 64) {
                    _mm_prefetch((const char *)b0 + l * 64 + 4096 + i, _MM_HINT_T0);
                    _mm_prefetch((const char *)b1 + l * 64 + 4096 + i, _MM_HINT_T0);
                }
                _tile_loadd(4, x + l * 4, xs);
                _tile_loadd(6, b0 + l * 64, 64);
                _tile_loadd(7, b1 + l * 64, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
            }
        }
        _tile_stored(0, to, os * 4);
        if (s + 1 < strips) _tile_stored(1, to + 16, os * 4);
    }
    _tile_release();
}

#define BASE_TILES_BF16 base_tiles
#define PATH amx
#define PATH_AVX512BF16
#include "path.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int not_on_this_machine;
#endif
