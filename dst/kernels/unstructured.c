// Linear layers and 2-d convolutions with unstructured masks: forward pass, gradients of inputs and of weights.
//
// Activations lie in tiles of 32 samples, the sample innermost, and blocks of 16 channels, a last one filled up:
// [tile][block][row][column][16][32], with a border of zeros for padding. So an input of a weight is a base of the output
// position plus an offset of the weight, whatever the kernel, the stride and the padding are, and one weight multiplies
// 32 samples at once. Weights come sorted by (chunk of channels, output), so that what a chunk reads stays in the cache;
// blocks let it use all of the cache, since positions do not lie a power of two apart.
//
// Four output positions are computed at a time (a "group"), or two, or one. Each output, and each gradient of a weight,
// is computed by one thread, in an order that follows from shapes and masks only: bits do not depend on the number of
// threads. Vectors have the machine's own width; 32 partial sums are added up as a tree, so that bits do not depend on
// that width either, if the machine has fused multiply-add.
#include "vectors.h"
#include <string.h>

#define LINE (32 / LANES) // vectors of the 32 samples of a tile
#define BLOCK 16          // channels of a block
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

// From samples, ``step`` apart, into [channels][32]. Those from ``here`` on become zero.
static void tile(const float *from, float *to, int64_t here, int64_t step, int64_t channels) {
    for (int64_t h = 0; h < 32; h += LANES)
        for (int64_t c = 0; c < channels; c += LANES) {
            if (h + LANES <= here && c + LANES <= channels) square(from + h * step + c, step, to + c * 32 + h, 32);
            else
                for (int64_t k = c; k < c + LANES && k < channels; k++)
                    for (int64_t i = h; i < h + LANES; i++) to[k * 32 + i] = i < here ? from[i * step + k] : 0;
        }
}

// The way back, of samples before ``here``.
static void untile(const float *from, float *to, int64_t here, int64_t step, int64_t channels) {
    for (int64_t h = 0; h < here; h += LANES)
        for (int64_t c = 0; c < channels; c += LANES) {
            if (h + LANES <= here && c + LANES <= channels) square(from + c * 32 + h, 32, to + h * step + c, step);
            else
                for (int64_t k = c; k < c + LANES && k < channels; k++)
                    for (int64_t i = h; i < h + LANES && i < here; i++) to[i * step + k] = from[k * 32 + i];
        }
}

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

// ---------------------------------------------------------------------------------------------------------------------
// Products
//
// Weights: values[n]; offsets[n] of their inputs; starts[chunk][outs + 1]: where those of an output begin in a chunk.
// Positions: in[b], out[b]: bases of a group; in_steps, out_steps: from its first to its others (SPOT).
// Work is cut into (positions) x (ranges of outputs, cuts[range] to cuts[range + 1]).

#define SPOT(m, steps) ((m) % 2 * (steps)[0] + (m) / 2 * (steps)[1])
// Keeps an address in a register; compilers would compute it anew for every weight.
#define FIXED(to, address) to = address; __asm__("" : "+r"(to))

// The outputs of a group, as tiles: y[member][output - first][32]. ``bias``: of each output, or NULL.
ALWAYS void outputs(const int group, const float *x, const int64_t *in_steps, float *y, const float *bias,
                    const float *values, const int32_t *offsets, const int32_t *starts, int chunks, int outs, int first,
                    int last) {
    int64_t step = (int64_t)(last - first) * 32;
    const float *from[4];
    UNROLL for (int m = 0; m < group; m++) { FIXED(from[m], x + SPOT(m, in_steps)); }
    for (int chunk = 0; chunk < chunks; chunk++) {
        const int32_t *start = starts + (int64_t)chunk * (outs + 1);
        for (int o = first; o < last; o++) {
            int i = start[o], end = start[o + 1];
            float *to = y + (int64_t)(o - first) * 32;
            if (i == end && chunk) continue;
            vec sum[4][LINE], begin = (bias ? bias[o] : 0) - (vec){0};
            UNROLL for (int m = 0; m < group; m++)
                UNROLL for (int v = 0; v < LINE; v++)
                    sum[m][v] = chunk ? LOAD(to + m * step + v * LANES) : begin;
            for (; i < end; i++) {
                int64_t at = offsets[i];
                vec w = values[i] - (vec){0};
                UNROLL for (int m = 0; m < group; m++)
                    UNROLL for (int v = 0; v < LINE; v++) sum[m][v] += w * LOAD(from[m] + at + v * LANES);
            }
            UNROLL for (int m = 0; m < group; m++)
                UNROLL for (int v = 0; v < LINE; v++) STORE(to + m * step + v * LANES) = sum[m][v];
        }
    }
}

// outputs = bias + weights x inputs at some positions, ``group`` of them at a time (4, 2 or 1), laid channels-last. ``sample``:
// from a sample to the next one; ``scratch``: of each thread, ``room`` numbers, for a range of outputs of a group.
void dst_multiply(int group, const float *x, const int64_t *in, const int64_t *in_steps, float *y, const int64_t *out,
                  const int64_t *out_steps, int64_t positions, int64_t samples, int64_t sample, const float *bias,
                  const float *values, const int32_t *offsets, const int32_t *starts, int chunks, int outs, const int32_t *cuts, int ranges,
                  float *scratch, int64_t room, int threads) {
    int64_t items = positions * ranges;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int t = 0; t < threads; t++) {
        float *own = scratch + t * room;
        for (int64_t q = items * t / threads; q < items * (t + 1) / threads; q++) {
            int64_t b = q / ranges, r = q % ranges;
            int first = cuts[r], last = cuts[r + 1];
            int64_t step = (int64_t)(last - first) * 32;
            const float *from = x + in[b];
#define OUTPUTS(group, from, to) \
    outputs(group, from, in_steps, to, bias, values, offsets, starts, chunks, outs, first, last)
            if (group == 4 && LINE <= 2) OUTPUTS(4, from, own);
            else if (group == 4) {
                OUTPUTS(2, from, own);
                OUTPUTS(2, from + in_steps[1], own + 2 * step);
            } else if (group == 2) OUTPUTS(2, from, own);
            else OUTPUTS(1, from, own);
            for (int m = 0; m < group; m++) {
                int64_t at = out[b] + SPOT(m, out_steps), here = samples - at / (32 * sample) * 32;
                untile(own + m * step, y + at + first, here < 32 ? here : 32, sample, last - first);
            }
        }
    }
}

// The lower and upper parts of all lanes, as far as two vectors have them: halves, quarters, ... of 16 lanes.
#if LANES == 16
#define LOW8(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define HIGH8(a, b) SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#define LOW4(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define HIGH4(a, b) SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
#define LOW2(a, b) SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HIGH2(a, b) SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define EVEN(a, b) SHUFFLE(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30)
#define ODD(a, b) SHUFFLE(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31)
#elif LANES == 8
#define LOW4(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define HIGH4(a, b) SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#define LOW2(a, b) SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define HIGH2(a, b) SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#define EVEN(a, b) SHUFFLE(a, b, 0, 2, 8, 10, 4, 6, 12, 14)
#define ODD(a, b) SHUFFLE(a, b, 1, 3, 9, 11, 5, 7, 13, 15)
#else
#define LOW2(a, b) SHUFFLE(a, b, 0, 1, 4, 5)
#define HIGH2(a, b) SHUFFLE(a, b, 2, 3, 6, 7)
#define EVEN(a, b) SHUFFLE(a, b, 0, 2, 4, 6)
#define ODD(a, b) SHUFFLE(a, b, 1, 3, 5, 7)
#endif

// The sums over all lanes of LANES weights, in their order: lanes 8 apart are added first, then 4, 2 and 1 apart.
ALWAYS vec totals(const vec *v) {
    vec w[4];
    UNROLL for (int k = 0; k < 4; k++) {
#if LANES == 16
        vec a = LOW8(v[k], v[4 + k]) + HIGH8(v[k], v[4 + k]), b = LOW8(v[8 + k], v[12 + k]) + HIGH8(v[8 + k], v[12 + k]);
        w[k] = LOW4(a, b) + HIGH4(a, b);
#elif LANES == 8
        w[k] = LOW4(v[k], v[4 + k]) + HIGH4(v[k], v[4 + k]);
#else
        w[k] = v[k];
#endif
    }
    vec a = LOW2(w[0], w[1]) + HIGH2(w[0], w[1]), b = LOW2(w[2], w[3]) + HIGH2(w[2], w[3]);
    return EVEN(a, b) + ODD(a, b);
}

// The sum of a line of 32 lanes, as far as lanes of the machine's vectors: first 16 and 16, then 8 and 8, ...
ALWAYS vec folded(vec *line) {
    UNROLL for (int n = LINE / 2; n > 0; n /= 2)
        UNROLL for (int v = 0; v < n; v++) line[v] += line[v + n];
    return line[0];
}

// ``plane``: from a block of gradients of outputs to the next one.
ALWAYS void gradients(const int group, const float *x, const int64_t *in, const int64_t *in_steps, const float *dy,
                      int64_t plane, const int64_t *out, const int64_t *out_steps, int64_t positions, float *dw,
                      const int32_t *offsets, const int32_t *start, int first, int last) {
    for (int64_t b = 0; b < positions; b++) {
        const float *from[4], *to = dy + out[b];
        UNROLL for (int m = 0; m < group; m++) { FIXED(from[m], x + in[b] + SPOT(m, in_steps)); }
        float *d = dw + start[first];
        vec sums[LANES];
        int filled = 0;
        for (int o = first; o < last; o++) {
            int i = start[o], end = start[o + 1];
            if (i == end) continue;
            const float *line = to + o / BLOCK * plane + o % BLOCK * 32;
            vec g[4][LINE];
            UNROLL for (int m = 0; m < group; m++)
                UNROLL for (int v = 0; v < LINE; v++) g[m][v] = LOAD(line + SPOT(m, out_steps) + v * LANES);
            for (; i < end; i++) {
                int64_t at = offsets[i];
                vec sum[LINE];
                UNROLL for (int v = 0; v < LINE; v++) sum[v] = g[0][v] * LOAD(from[0] + at + v * LANES);
                UNROLL for (int m = 1; m < group; m++)
                    UNROLL for (int v = 0; v < LINE; v++) sum[v] += g[m][v] * LOAD(from[m] + at + v * LANES);
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

// Gradients of all weights, over some positions: added to ``dw`` if ``adds``. Work is cut into (sets of chunks) x
// (ranges). ``span``: groups of positions that all chunks meet before the next ones, since what they read is at hand.
void dst_gradients(int group, int adds, const float *x, const int64_t *in, const int64_t *in_steps, const float *dy,
                   int64_t plane, const int64_t *out, const int64_t *out_steps, int64_t positions, int64_t span,
                   float *dw, const int32_t *offsets, const int32_t *starts, int chunks, int outs, int sets,
                   const int32_t *cuts, int ranges, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int q = 0; q < sets * ranges; q++) {
        int set = q / ranges, first = cuts[q % ranges], last = cuts[q % ranges + 1];
        for (int64_t b = 0; b < positions; b += span)
            for (int c = chunks * set / sets; c < chunks * (set + 1) / sets; c++) {
                const int32_t *start = starts + (int64_t)c * (outs + 1);
                int64_t some = positions - b < span ? positions - b : span;
                if (!adds && !b) memset(dw + start[first], 0, 4l * (start[last] - start[first]));
#define GRADIENTS(group) \
    gradients(group, x, in + b, in_steps, dy, plane, out + b, out_steps, some, dw, offsets, start, first, last)
                if (group == 4) GRADIENTS(4);
                else if (group == 2) GRADIENTS(2);
                else GRADIENTS(1);
            }
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

// List the weights of a mask (a byte each, 0 or 1), row by row: output and column.
void dst_list(const uint8_t *mask, int64_t outs, int64_t inputs, int32_t *output, int32_t *column) {
    int64_t n = 0;
    for (int64_t o = 0; o < outs; o++) {
        const uint8_t *row = mask + o * inputs;
        for (int64_t c = 0; c < inputs;) {
            uint64_t eight = 0;
            memcpy(&eight, row + c, inputs - c < 8 ? inputs - c : 8);
            for (; eight; eight &= eight - 1) {
                output[n] = (int32_t)o;
                column[n++] = (int32_t)(c + __builtin_ctzll(eight) / 8);
            }
            c += 8;
        }
    }
}

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
