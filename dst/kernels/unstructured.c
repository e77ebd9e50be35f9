// Linear layers and 2-d convolutions with unstructured masks: forward pass, gradients of inputs and of weights.
//
// Activations lie in tiles of 32 samples, the sample innermost: [tile][row][column][channel][32], with a border of zeros
// for padding. So an input of a weight is a base of the output position plus an offset of the weight, whatever the
// kernel, the stride and the padding are, and one weight multiplies 32 samples at once. Weights come sorted by (chunk of
// channels, output), so that what a chunk reads stays in the cache.
//
// Two output positions are computed at a time (a "pair"), a last odd one by itself. Each output, and each gradient of a
// weight, is computed by one thread, in an order that follows from the shapes only: bits do not depend on the number of
// threads. Vectors have the machine's own width; 32 partial sums are added up as a tree, so that bits do not depend on
// that width either, if the machine has fused multiply-add.
#include "vectors.h"
#include <string.h>

#define LINE (32 / LANES) // vectors of the 32 samples of a tile
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

#if LANES == 16
#define LOW(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define STAGES 4
#elif LANES == 8
#define LOW(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#define STAGES 3
#else
#define LOW(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define HIGH(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#define STAGES 2
#endif

// Transpose a square of LANES x LANES in registers: each stage rotates the bits of all indices (row, column) by one.
ALWAYS void transposed(vec *v) {
    vec w[LANES];
    UNROLL for (int stage = 0; stage < STAGES; stage++) {
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            w[2 * i] = LOW(v[i], v[i + LANES / 2]);
            w[2 * i + 1] = HIGH(v[i], v[i + LANES / 2]);
        }
        UNROLL for (int i = 0; i < LANES; i++) v[i] = w[i];
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Tiles

ALWAYS void square(const float *from, int64_t from_step, float *to, int64_t to_step) {
    vec v[LANES];
    UNROLL for (int i = 0; i < LANES; i++) v[i] = LOAD(from + i * from_step);
    transposed(v);
    UNROLL for (int i = 0; i < LANES; i++) STORE(to + i * to_step) = v[i];
}

// From channels-last [samples][height][width][channels] into the inside of tiles [tile][rows][columns][channels][32],
// which begins at (top, left). Samples that are missing in the last tile become zero.
void dst_tile(const float *from, float *to, int64_t samples, int64_t height, int64_t width, int64_t channels,
              int64_t rows, int64_t columns, int64_t top, int64_t left, int threads) {
    int64_t tiles = (samples + 31) / 32, step = height * width * channels;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t q = 0; q < tiles * height * width; q++) {
        int64_t tile = q / (height * width), y = q / width % height, x = q % width;
        const float *s = from + tile * 32 * step + (y * width + x) * channels;
        float *t = to + (((tile * rows + y + top) * columns) + x + left) * channels * 32;
        int64_t here = samples - tile * 32 < 32 ? samples - tile * 32 : 32;
        for (int64_t h = 0; h < 32; h += LANES)
            for (int64_t c = 0; c < channels; c += LANES) {
                if (h + LANES <= here && c + LANES <= channels) square(s + h * step + c, step, t + c * 32 + h, 32);
                else
                    for (int64_t k = c; k < c + LANES && k < channels; k++)
                        for (int64_t i = h; i < h + LANES; i++) t[k * 32 + i] = i < here ? s[i * step + k] : 0;
            }
    }
}

// The way back.
void dst_untile(const float *from, float *to, int64_t samples, int64_t height, int64_t width, int64_t channels,
                int64_t rows, int64_t columns, int64_t top, int64_t left, int threads) {
    int64_t tiles = (samples + 31) / 32, step = height * width * channels;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t q = 0; q < tiles * height * width; q++) {
        int64_t tile = q / (height * width), y = q / width % height, x = q % width;
        float *t = to + tile * 32 * step + (y * width + x) * channels;
        const float *s = from + (((tile * rows + y + top) * columns) + x + left) * channels * 32;
        int64_t here = samples - tile * 32 < 32 ? samples - tile * 32 : 32;
        for (int64_t h = 0; h < here; h += LANES)
            for (int64_t c = 0; c < channels; c += LANES) {
                if (h + LANES <= here && c + LANES <= channels) square(s + c * 32 + h, 32, t + h * step + c, step);
                else
                    for (int64_t k = c; k < c + LANES && k < channels; k++)
                        for (int64_t i = h; i < h + LANES && i < here; i++) t[i * step + k] = s[k * 32 + i];
            }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Products
//
// Weights: values[n]; offsets[n] of their inputs; starts[chunk][outs + 1]: where those of an output begin in a chunk.
// Positions: in[b], out[b]: bases of a pair; in_step, out_step: from its first to its second position.
// Work is cut into (positions) x (ranges of outputs, cuts[range] to cuts[range + 1]).

ALWAYS void outputs(const int pair, const float *x, int64_t in_step, float *y, int64_t out_step, const float *values,
                    const int32_t *offsets, const int32_t *starts, int chunks, int outs, int first, int last) {
    for (int chunk = 0; chunk < chunks; chunk++) {
        const int32_t *start = starts + (int64_t)chunk * (outs + 1);
        for (int o = first; o < last; o++) {
            int i = start[o], end = start[o + 1];
            float *to = y + (int64_t)o * 32;
            if (i == end && chunk) continue;
            vec sum[2][LINE];
            UNROLL for (int m = 0; m < pair; m++)
                UNROLL for (int v = 0; v < LINE; v++)
                    sum[m][v] = chunk ? LOAD(to + m * out_step + v * LANES) : (vec){0};
            for (; i < end; i++) {
                const float *from = x + offsets[i];
                vec w = values[i] - (vec){0};
                UNROLL for (int m = 0; m < pair; m++)
                    UNROLL for (int v = 0; v < LINE; v++) sum[m][v] += w * LOAD(from + m * in_step + v * LANES);
            }
            UNROLL for (int m = 0; m < pair; m++)
                UNROLL for (int v = 0; v < LINE; v++) STORE(to + m * out_step + v * LANES) = sum[m][v];
        }
    }
}

// outputs = weights x inputs at some positions. ``pair``: 2, or 1 for positions by themselves.
void dst_multiply(int pair, const float *x, const int64_t *in, int64_t in_step, float *y, const int64_t *out,
                  int64_t out_step, int64_t positions, const float *values, const int32_t *offsets,
                  const int32_t *starts, int chunks, int outs, const int32_t *cuts, int ranges, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t q = 0; q < positions * ranges; q++) {
        int64_t b = q / ranges, r = q % ranges;
        if (pair == 2)
            outputs(2, x + in[b], in_step, y + out[b], out_step, values, offsets, starts, chunks, outs, cuts[r], cuts[r + 1]);
        else
            outputs(1, x + in[b], in_step, y + out[b], out_step, values, offsets, starts, chunks, outs, cuts[r], cuts[r + 1]);
    }
}

// The sums over all lanes of LANES weights, in their order: each stage adds the upper half of lanes to the lower one.
ALWAYS vec totals(vec *v) {
    UNROLL for (int n = LANES / 2; n > 0; n /= 2)
        UNROLL for (int i = 0; i < n; i++) v[i] = LOW(v[i], v[i + n]) + HIGH(v[i], v[i + n]);
    return v[0];
}

// The sum of a line of 32 lanes, as far as lanes of the machine's vectors: first 16 and 16, then 8 and 8, ...
ALWAYS vec folded(vec *line) {
    UNROLL for (int n = LINE / 2; n > 0; n /= 2)
        UNROLL for (int v = 0; v < n; v++) line[v] += line[v + n];
    return line[0];
}

ALWAYS void gradients(const int pair, const float *x, const int64_t *in, int64_t in_step, const float *dy,
                      const int64_t *out, int64_t out_step, int64_t positions, float *dw, const int32_t *offsets,
                      const int32_t *start, int first, int last) {
    for (int64_t b = 0; b < positions; b++) {
        const float *from = x + in[b], *to = dy + out[b];
        float *d = dw + start[first];
        vec sums[LANES];
        int filled = 0;
        for (int o = first; o < last; o++) {
            int i = start[o], end = start[o + 1];
            if (i == end) continue;
            vec g[2][LINE];
            UNROLL for (int m = 0; m < pair; m++)
                UNROLL for (int v = 0; v < LINE; v++) g[m][v] = LOAD(to + (int64_t)o * 32 + m * out_step + v * LANES);
            for (; i < end; i++) {
                const float *p = from + offsets[i];
                vec sum[LINE];
                UNROLL for (int v = 0; v < LINE; v++) sum[v] = g[0][v] * LOAD(p + v * LANES);
                UNROLL for (int m = 1; m < pair; m++)
                    UNROLL for (int v = 0; v < LINE; v++) sum[v] += g[m][v] * LOAD(p + m * in_step + v * LANES);
                sums[filled] = folded(sum);
                if (++filled == LANES) {
                    STORE(d) = LOAD(d) + totals(sums);
                    d += LANES, filled = 0;
                }
            }
        }
        if (filled) {
            for (int j = filled; j < LANES; j++) sums[j] = (vec){0};
            vec rest = totals(sums);
            for (int j = 0; j < filled; j++) d[j] += rest[j];
        }
    }
}

// Gradients of all weights, over some positions: added to ``dw`` if ``adds``. Work is cut into (chunks) x (ranges).
void dst_gradients(int pair, int adds, const float *x, const int64_t *in, int64_t in_step, const float *dy,
                   const int64_t *out, int64_t out_step, int64_t positions, float *dw, const int32_t *offsets,
                   const int32_t *starts, int chunks, int outs, const int32_t *cuts, int ranges, int threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int q = 0; q < chunks * ranges; q++) {
        const int32_t *start = starts + (int64_t)(q / ranges) * (outs + 1);
        int first = cuts[q % ranges], last = cuts[q % ranges + 1];
        if (!adds) memset(dw + start[first], 0, 4l * (start[last] - start[first]));
        if (pair == 2)
            gradients(2, x, in, in_step, dy, out, out_step, positions, dw, offsets, start, first, last);
        else
            gradients(1, x, in, in_step, dy, out, out_step, positions, dw, offsets, start, first, last);
    }
}

// to[i] = from[order[i]]
void dst_permute(const float *from, float *to, const int32_t *order, int64_t n, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < n; i++) to[i] = from[order[i]];
}

// to[order[i]] = from[i]
void dst_spread(const float *from, float *to, const int32_t *order, int64_t n, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < n; i++) to[order[i]] = from[i];
}

// ---------------------------------------------------------------------------------------------------------------------
// Tables

// Sort weights, given by (output, input), stably by (chunk of inputs, output): order, offsets and starts as above.
// A weight of input k has the offset offset[k]. ``size``: inputs of a chunk.
void dst_sort(const int32_t *output, const int32_t *input, const int32_t *chunk_of, const int32_t *offset_of, int64_t n,
              int chunks, int outs, int32_t *order, int32_t *offsets, int32_t *starts) {
    memset(starts, 0, 4l * chunks * (outs + 1));
    for (int64_t i = 0; i < n; i++) starts[(int64_t)chunk_of[input[i]] * (outs + 1) + output[i] + 1]++;
    int32_t sum = 0;
    for (int64_t c = 0; c < chunks; c++) {
        int32_t *s = starts + c * (outs + 1);
        s[0] = sum;
        for (int64_t o = 0; o < outs; o++) s[o + 1] = sum += s[o + 1];
    }
    for (int64_t i = 0; i < n; i++) {
        int32_t at = starts[(int64_t)chunk_of[input[i]] * (outs + 1) + output[i]]++;
        order[at] = (int32_t)i;
        offsets[at] = offset_of[input[i]];
    }
    for (int64_t c = 0; c < chunks; c++) { // by now each start is the next one's
        int32_t *s = starts + c * (outs + 1);
        for (int64_t o = outs; o > 0; o--) s[o] = s[o - 1];
        s[0] = c ? s[-1] : 0;
    }
}
