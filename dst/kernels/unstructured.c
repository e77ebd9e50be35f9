// Linear layers and 2-d convolutions with unstructured masks: forward pass, gradients of inputs and of weights.
//
// Weights come sorted by (chunk of channels, output), so that what a chunk reads of the tiles (tiles.h) stays in the
// cache.
//
// Four output positions are computed at a time (a "group"), or two, or one. Each output, and each gradient of a weight,
// is computed by one thread, in an order that follows from shapes and masks only: bits do not depend on the number of
// threads. Vectors have the machine's own width; 32 partial sums are added up as a tree, so that bits do not depend on
// that width either, if the machine has fused multiply-add.
#include "tiles.h"
#include <string.h>

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
