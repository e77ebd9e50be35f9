// Activations in tiles of 32 samples, the sample innermost, and blocks of 16 channels, a last one filled up:
// [tile][block][row][column][16][32], with a border of zeros for padding. So an input of a weight is a base of the output
// position plus an offset of the weight, whatever the kernel, the stride and the padding are, and one weight multiplies
// 32 samples at once. Positions do not lie a power of two apart, so that all of the cache is used.
#pragma once
#include "vectors.h"

#define LINE (32 / LANES) // vectors of the 32 samples of a tile
#define BLOCK 16          // channels of a block

ALWAYS void square(const float *from, int64_t from_step, float *to, int64_t to_step) {
    vec v[LANES];
    UNROLL for (int i = 0; i < LANES; i++) v[i] = LOAD(from + i * from_step);
    transposed(v);
    UNROLL for (int i = 0; i < LANES; i++) STORE(to + i * to_step) = v[i];
}

// From samples, ``step`` apart, into [channels][32]. Those from ``here`` on become zero.
static inline void tile(const float *from, float *to, int64_t here, int64_t step, int64_t channels) {
    for (int64_t h = 0; h < 32; h += LANES)
        for (int64_t c = 0; c < channels; c += LANES) {
            if (h + LANES <= here && c + LANES <= channels) square(from + h * step + c, step, to + c * 32 + h, 32);
            else
                for (int64_t k = c; k < c + LANES && k < channels; k++)
                    for (int64_t i = h; i < h + LANES; i++) to[k * 32 + i] = i < here ? from[i * step + k] : 0;
        }
}

// The way back, of samples before ``here``.
static inline void untile(const float *from, float *to, int64_t here, int64_t step, int64_t channels) {
    for (int64_t h = 0; h < here; h += LANES)
        for (int64_t c = 0; c < channels; c += LANES) {
            if (h + LANES <= here && c + LANES <= channels) square(from + c * 32 + h, 32, to + h * step + c, step);
            else
                for (int64_t k = c; k < c + LANES && k < channels; k++)
                    for (int64_t i = h; i < h + LANES && i < here; i++) to[i * step + k] = from[k * 32 + i];
        }
}
