// Batch norm in training, what may be added to it, and ReLU, in two passes each way. Channels last: [rows][channels].
//
// Sums are taken of blocks of rows, less a pivot, and blocks are added up in double precision in their order: bits do
// not depend on the number of threads, and sums are as exact as those of a float can be.
#include "vectors.h"
#include <math.h>
#include <stdlib.h>

enum { BLOCK = 64, GROUP = 64 }; // rows of a block; blocks of a group, whose sums one thread adds up

typedef struct {
    double *first, *second; // [channels]
} Sums;

// Columns c to c + n of a row, as a vector; n < LANES at the end of a row only.
ALWAYS vec some(const float *p, int64_t n) {
    vec v = {0};
    if (n >= LANES) return LOAD(p);
    for (int64_t i = 0; i < n; i++) v[i] = p[i];
    return v;
}
ALWAYS void put(float *p, vec v, int64_t n) {
    if (n >= LANES) STORE(p) = v;
    else
        for (int64_t i = 0; i < n; i++) p[i] = v[i];
}
ALWAYS vec positive(vec v, vec y) { return (vec)((ivec)v & (y > 0)); }

// Forward: sums of x - pivot and of its square. Backward: sums of dz and of dz * xhat, dz being dy where y > 0.
static int sums(const float *x, const float *dy, const float *y, int64_t rows, int64_t channels, const float *mean,
                const float *inverse, Sums to, int threads) {
    int64_t groups = (rows + BLOCK * GROUP - 1) / (BLOCK * GROUP);
    double *parts = calloc(2 * groups * channels, sizeof(double));
    if (!parts) return 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t g = 0; g < groups; g++) {
        double *first = parts + 2 * g * channels, *second = first + channels;
        int64_t end = (g + 1) * BLOCK * GROUP < rows ? (g + 1) * BLOCK * GROUP : rows;
        for (int64_t r = g * BLOCK * GROUP; r < end; r += BLOCK) {
            int64_t last = r + BLOCK < end ? r + BLOCK : end;
            for (int64_t c = 0; c < channels; c += LANES) {
                int64_t n = channels - c;
                vec s = {0}, t = {0};
                if (!dy) {
                    vec pivot = some(x + c, n);
                    for (int64_t q = r; q < last; q++) {
                        vec d = some(x + q * channels + c, n) - pivot;
                        s += d, t += d * d;
                    }
                } else {
                    vec m = some(mean + c, n), i = some(inverse + c, n);
                    for (int64_t q = r; q < last; q++) {
                        int64_t at = q * channels + c;
                        vec d = some(dy + at, n);
                        if (y) d = positive(d, some(y + at, n));
                        s += d, t += d * ((some(x + at, n) - m) * i);
                    }
                }
                for (int64_t j = 0; j < LANES && j < n; j++) first[c + j] += s[j], second[c + j] += t[j];
            }
        }
    }
    for (int64_t c = 0; c < channels; c++) to.first[c] = to.second[c] = 0;
    for (int64_t g = 0; g < groups; g++)
        for (int64_t c = 0; c < channels; c++) {
            to.first[c] += parts[2 * g * channels + c];
            to.second[c] += parts[(2 * g + 1) * channels + c];
        }
    free(parts);
    return 0;
}

// y = relu(norm(x) + added); added: NULL for nothing. Writes the statistics of the batch: mean, 1 / sqrt(variance + eps)
// and the variance (biased). Returns 1 if there is no memory.
int dst_norm_forward(const float *x, const float *added, float *y, int64_t rows, int64_t channels, const float *weight,
                     const float *bias, float *mean, float *inverse, float *variance, double eps, int rectifies,
                     int threads) {
    double *memory = malloc(2 * channels * sizeof(double) + 2 * channels * sizeof(float));
    if (!memory) return 1;
    Sums found = {memory, memory + channels};
    float *scale = (float *)(memory + 2 * channels), *shift = scale + channels;
    if (sums(x, 0, 0, rows, channels, 0, 0, found, threads)) return free(memory), 1;
    for (int64_t c = 0; c < channels; c++) {
        double away = found.first[c] / rows, spread = found.second[c] / rows - away * away;
        double centre = x[c] + away, factor = 1 / sqrt((spread > 0 ? spread : 0) + eps);
        mean[c] = centre, variance[c] = spread > 0 ? spread : 0, inverse[c] = factor;
        scale[c] = weight[c] * factor, shift[c] = bias[c] - centre * weight[c] * factor;
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < channels; c += LANES) {
            int64_t n = channels - c, at = r * channels + c;
            vec v = some(x + at, n) * some(scale + c, n) + some(shift + c, n);
            if (added) v += some(added + at, n);
            put(y + at, rectifies ? positive(v, v) : v, n);
        }
    free(memory);
    return 0;
}

// The gradients of x, of what was added (NULL if not wanted), of weight and of bias. y: NULL where nothing was rectified.
int dst_norm_backward(const float *x, const float *y, const float *dy, float *dx, float *dadded, int64_t rows,
                      int64_t channels, const float *weight, const float *mean, const float *inverse, float *dweight,
                      float *dbias, int threads) {
    double *memory = malloc(2 * channels * sizeof(double) + 3 * channels * sizeof(float));
    if (!memory) return 1;
    Sums found = {memory, memory + channels};
    float *of_dz = (float *)(memory + 2 * channels), *of_x = of_dz + channels, *rest = of_x + channels;
    if (sums(x, dy, y, rows, channels, mean, inverse, found, threads)) return free(memory), 1;
    for (int64_t c = 0; c < channels; c++) {
        double factor = (double)weight[c] * inverse[c];
        dbias[c] = found.first[c], dweight[c] = found.second[c];
        double slope = -factor * inverse[c] * found.second[c] / rows;
        of_dz[c] = factor, of_x[c] = slope, rest[c] = -factor * found.first[c] / rows - slope * mean[c];
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < channels; c += LANES) {
            int64_t n = channels - c, at = r * channels + c;
            vec d = some(dy + at, n);
            if (y) d = positive(d, some(y + at, n));
            if (dadded) put(dadded + at, d, n);
            put(dx + at, some(of_dz + c, n) * d + some(of_x + c, n) * some(x + at, n) + some(rest + c, n), n);
        }
    free(memory);
    return 0;
}

// Dropout: to[i] = from[i] / (1 - p) where a hash of i and the seed is at least p, else 0. Also its own backward pass.
void dst_dropout(const float *from, float *to, int64_t n, uint32_t seed, double p, int threads) {
    typedef uint32_t uvec __attribute__((vector_size(BYTES)));
    uint32_t least = p * 4294967296.0;
    float scale = 1 / (1 - p);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < n; i += LANES) {
        uvec h;
        for (int j = 0; j < LANES; j++) h[j] = j;
        h = (h + (uint32_t)i) * 0x9E3779B1u ^ (seed + (uint32_t)(i >> 32) * 0x85EBCA6Bu);
        h ^= h >> 16, h *= 0x85EBCA6Bu, h ^= h >> 13, h *= 0xC2B2AE35u, h ^= h >> 16;
        put(to + i, (vec)((ivec)(some(from + i, n - i) * scale) & (ivec)(h >= least)), n - i);
    }
}
