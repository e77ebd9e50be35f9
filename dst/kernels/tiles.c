// From activations that lie channels-last to tiles, and back.
#include "tiles.h"

// For all positions and blocks of activations, what lies channels-last (``lying``) and in tiles of which the inside begins
// at (top, left).
#define EACH_BLOCK(lying, tiles, ACTION)                                                                              \
    int64_t step = height * width * channels, blocks = (channels + BLOCK - 1) / BLOCK;                                  \
    _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)")                                  \
    for (int64_t q = 0; q < (samples + 31) / 32 * height * width; q++) {                                                \
        int64_t t = q / (height * width), y = q / width % height, x = q % width;                                        \
        int64_t here = samples - t * 32 < 32 ? samples - t * 32 : 32;                                                   \
        for (int64_t k = 0; k < blocks; k++) {                                                                          \
            int64_t some = channels - k * BLOCK < BLOCK ? channels - k * BLOCK : BLOCK;                                 \
            ACTION((lying) + t * 32 * step + (y * width + x) * channels + k * BLOCK,                                    \
                   (tiles) + (((t * blocks + k) * rows + y + top) * columns + x + left) * BLOCK * 32, here, step, some); \
        }                                                                                                               \
    }

// From channels-last [samples][height][width][channels] into the inside of tiles [tile][block][rows][columns][16][32],
// which begins at (top, left). Samples that are missing in the last tile become zero.
void dst_tile(const float *from, float *to, int64_t samples, int64_t height, int64_t width, int64_t channels,
              int64_t rows, int64_t columns, int64_t top, int64_t left, int threads) {
    EACH_BLOCK(from, to, tile)
}

// The way back.
void dst_untile(const float *from, float *to, int64_t samples, int64_t height, int64_t width, int64_t channels,
                int64_t rows, int64_t columns, int64_t top, int64_t left, int threads) {
#define BACK(lying, tiles, here, step, channels) untile(tiles, lying, here, step, channels)
    EACH_BLOCK(to, from, BACK)
}
