// Batch norm in training, what may be added to it, and ReLU, in two passes each way. Channels last: [rows][channels].
//
// Sums are taken of blocks of rows, less a guess of the mean, and blocks are added up in double precision in their order:
// bits do not depend on the number of threads, and sums are as exact as those of a float can be. The second pass goes
// through the rows from their end, which is still in the cache.
#include "vectors.h"
#include <math.h>
#include <stdlib.h>

enum { BLOCK = 16, GROUP = 32, ROWS = 4, SPAN = 1024, AHEAD = 1024, SOME = 16 };
// Rows of a block; blocks of a group, whose sums one thread adds up, ROWS rows and at most SPAN columns at a time. How far ahead
// activations are asked for. Rows of the guess.

// How the backward pass knows what ReLU let pass: all, as there was none; by the input anew, as nothing was added; by
// the outcome.
enum { ALL, BY_INPUT, BY_OUTCOME };

typedef struct {
    const float *x, *added, *y, *dy;  // [rows][channels]
    const float *mean, *scale, *shift; // [channels]; norm(x) = x * scale + shift
    float *out, *dz;
    int64_t rows, channels;
    int threads;
} Norm;

// Columns of a row, as a vector; n < LANES at the end of a row only.
ALWAYS vec some(const float *p, int64_t n) {
    vec v = {0};
    if (n >= LANES) return LOAD(p);
    for (int64_t i = 0; i < n; i++) v[i] = p[i];
    return v;
}
// Columns of a row of activations; what will be read soon is asked for: it is on another page, of one stream of many.
ALWAYS vec next(const float *p, int64_t n, int way) {
    __builtin_prefetch(p + way * AHEAD);
    return some(p, n);
}
ALWAYS void put(float *p, vec v, int64_t n) {
    if (n >= LANES) STORE(p) = v;
    else
        for (int64_t i = 0; i < n; i++) p[i] = v[i];
}
ALWAYS vec passed(vec v, vec z) { return (vec)((ivec)v & ~(ivec)(z <= 0)); } // also what is not a number
ALWAYS vec normed(vec x, vec scale, vec shift) { return x * scale + shift; }

// The gradient before ReLU at some columns of a row; `way`: to the next ones, 1 or -1.
ALWAYS vec gradient(const Norm *t, int relu, int64_t at, vec x, vec scale, vec shift, int64_t n, int way) {
    vec d = next(t->dy + at, n, way);
    if (relu == BY_INPUT) d = passed(d, normed(x, scale, shift));
    if (relu == BY_OUTCOME) d = passed(d, next(t->y + at, n, way));
    return d;
}

// Add some rows to the sums at a vector of columns: x - mean and its square if not backward, else dz and
// dz * (x - mean). Keeps dz if that is asked for.
ALWAYS void add(const Norm *t, int backward, int relu, int64_t row, int rows, int64_t c, int64_t n, float *sum,
                float *other) {
    vec s = {0}, u = {0}, m = some(t->mean + c, n), scale = {0}, shift = {0};
    if (relu == BY_INPUT) scale = some(t->scale + c, n), shift = some(t->shift + c, n);
    UNROLL for (int k = 0; k < rows; k++) {
        int64_t at = (row + k) * t->channels + c;
        vec x = next(t->x + at, n, 1), d = x - m;
        if (backward) {
            vec dz = gradient(t, relu, at, x, scale, shift, n, 1);
            if (t->dz) put(t->dz + at, dz, n);
            s += dz, u += dz * d;
        } else s += d, u += d * d;
    }
    STORE(sum) += s, STORE(other) += u; // a few rows at once, so that few roundings follow each other
}
ALWAYS void add_rows(const Norm *t, int backward, int relu, int64_t row, int rows, int64_t from, int64_t to, float *sum,
                     float *other) {
    int64_t c = from;
    for (; c + LANES <= to; c += LANES) add(t, backward, relu, row, rows, c, LANES, sum + c - from, other + c - from);
    if (c < to) add(t, backward, relu, row, rows, c, to - c, sum + c - from, other + c - from);
}

ALWAYS void group(const Norm *t, int backward, int relu, int64_t first, int64_t end, int64_t from, int64_t to,
                  double *sums, double *others) {
    float sum[SPAN + LANES], other[SPAN + LANES];
    for (int64_t r = first; r < end; r += BLOCK) {
        int64_t last = r + BLOCK < end ? r + BLOCK : end, row = r;
        for (int64_t c = 0; c < to - from + LANES; c++) sum[c] = other[c] = 0;
        for (; row + ROWS <= last; row += ROWS) add_rows(t, backward, relu, row, ROWS, from, to, sum, other);
        for (; row < last; row++) add_rows(t, backward, relu, row, 1, from, to, sum, other);
        for (int64_t c = 0; c < to - from; c++) sums[from + c] += sum[c], others[from + c] += other[c];
    }
}

// Write both sums over all rows, [2][channels]. Returns 1 if there is no memory.
static int sums(const Norm *t, int backward, int relu, double *to) {
    int64_t groups = (t->rows + BLOCK * GROUP - 1) / (BLOCK * GROUP), spans = (t->channels + SPAN - 1) / SPAN;
    double *parts = calloc(2 * groups * t->channels, sizeof(double));
    if (!parts) return 1;
#pragma omp parallel for schedule(static) num_threads(t->threads) if (t->threads > 1)
    for (int64_t q = 0; q < groups * spans; q++) {
        int64_t g = q / spans, first = g * BLOCK * GROUP, end = first + BLOCK * GROUP, from = q % spans * SPAN;
        int64_t until = from + SPAN < t->channels ? from + SPAN : t->channels;
        double *one = parts + 2 * g * t->channels, *other = one + t->channels;
        if (end > t->rows) end = t->rows;
        if (!backward) group(t, 0, ALL, first, end, from, until, one, other);
        else if (relu == ALL) group(t, 1, ALL, first, end, from, until, one, other);
        else if (relu == BY_INPUT) group(t, 1, BY_INPUT, first, end, from, until, one, other);
        else group(t, 1, BY_OUTCOME, first, end, from, until, one, other);
    }
    for (int64_t c = 0; c < 2 * t->channels; c++) to[c] = 0;
    for (int64_t g = 0; g < groups; g++)
        for (int64_t c = 0; c < 2 * t->channels; c++) to[c] += parts[2 * g * t->channels + c];
    free(parts);
    return 0;
}

ALWAYS void forward_at(const Norm *t, int adds, int rectifies, int64_t at, int64_t c, int64_t n) {
    vec v = normed(next(t->x + at, n, -1), some(t->scale + c, n), some(t->shift + c, n));
    if (adds) v += next(t->added + at, n, -1);
    put(t->out + at, rectifies ? passed(v, v) : v, n);
}
ALWAYS void forward_rows(const Norm *t, int adds, int rectifies, int64_t first, int64_t end) {
    for (int64_t r = end; r-- > first;) {
        int64_t c = 0, at = r * t->channels;
        for (; c + LANES <= t->channels; c += LANES) forward_at(t, adds, rectifies, at + c, c, LANES);
        if (c < t->channels) forward_at(t, adds, rectifies, at + c, c, t->channels - c);
    }
}

// The mean of some rows: near that of all, so that sums of what is less it, and of its square, lose little.
static void guess(const Norm *t, float *mean) {
    int64_t some = t->rows < SOME ? t->rows : SOME;
    for (int64_t c = 0; c < t->channels; c++) mean[c] = 0;
    for (int64_t k = 0; k < some; k++)
        for (int64_t c = 0; c < t->channels; c++) mean[c] += t->x[k * t->rows / some * t->channels + c] / some;
}

// y = relu(norm(x) + added); added: NULL for nothing. Writes the statistics of the batch: mean, 1 / sqrt(variance + eps)
// and the variance (biased); and the scale and the shift that make the norm. Returns 1 if there is no memory.
int dst_norm_forward(const float *x, const float *added, float *y, int64_t rows, int64_t channels, const float *weight,
                     const float *bias, float *mean, float *inverse, float *variance, float *scale, float *shift,
                     double eps, int rectifies, int threads) {
    Norm t = {.x = x, .added = added, .mean = mean, .scale = scale, .shift = shift, .out = y, .rows = rows, .channels = channels,
              .threads = threads};
    double *found = malloc(2 * channels * sizeof(double));
    if (!found) return 1;
    guess(&t, mean);
    if (sums(&t, 0, ALL, found)) return free(found), 1;
    for (int64_t c = 0; c < channels; c++) {
        double away = found[c] / rows, spread = found[channels + c] / rows - away * away, centre = mean[c] + away;
        if (spread < 0) spread = 0;
        double factor = 1 / sqrt(spread + eps);
        mean[c] = centre, variance[c] = spread, inverse[c] = factor;
        scale[c] = weight[c] * factor, shift[c] = bias[c] - centre * scale[c]; // rounded alike: they cancel
    }
    free(found);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        int64_t first = rows * part / threads, end = rows * (part + 1) / threads;
        if (added && rectifies) forward_rows(&t, 1, 1, first, end);
        else if (added) forward_rows(&t, 1, 0, first, end);
        else if (rectifies) forward_rows(&t, 0, 1, first, end);
        else forward_rows(&t, 0, 0, first, end);
    }
    return 0;
}

typedef struct {
    const float *of_dz, *of_x, *rest;
} Slopes;

ALWAYS void backward_at(const Norm *t, Slopes s, int relu, int64_t at, int64_t c, int64_t n) {
    vec x = next(t->x + at, n, -1), scale = {0}, shift = {0};
    if (relu == BY_INPUT) scale = some(t->scale + c, n), shift = some(t->shift + c, n);
    vec d = gradient(t, relu, at, x, scale, shift, n, -1);
    put(t->out + at, some(s.of_dz + c, n) * d + some(s.of_x + c, n) * x + some(s.rest + c, n), n);
}
ALWAYS void backward_rows(const Norm *t, Slopes s, int relu, int64_t first, int64_t end) {
    for (int64_t r = end; r-- > first;) {
        int64_t c = 0, at = r * t->channels;
        for (; c + LANES <= t->channels; c += LANES) backward_at(t, s, relu, at + c, c, LANES);
        if (c < t->channels) backward_at(t, s, relu, at + c, c, t->channels - c);
    }
}

// The gradients of x, of what was added (NULL if not wanted), of weight and of bias. rectified: there was a ReLU; y: the
// outcome, NULL where nothing was added. Returns 1 if there is no memory.
int dst_norm_backward(const float *x, const float *y, const float *dy, float *dx, float *dadded, int64_t rows,
                      int64_t channels, const float *weight, const float *mean, const float *inverse,
                      const float *scale, const float *shift, float *dweight, float *dbias, int rectified,
                      int threads) {
    int relu = !rectified ? ALL : y ? BY_OUTCOME : BY_INPUT;
    Norm t = {.x = x, .y = y, .dy = dy, .mean = mean, .scale = scale, .shift = shift, .out = dx, .dz = dadded,
              .rows = rows, .channels = channels, .threads = threads};
    double *found = malloc(2 * channels * sizeof(double) + 3 * channels * sizeof(float));
    if (!found) return 1;
    float *of_dz = (float *)(found + 2 * channels), *of_x = of_dz + channels, *rest = of_x + channels;
    if (sums(&t, 1, relu, found)) return free(found), 1;
    for (int64_t c = 0; c < channels; c++) {
        double factor = (double)weight[c] * inverse[c], of_norm = found[channels + c] * inverse[c];
        double slope = -factor * inverse[c] * of_norm / rows;
        dbias[c] = found[c], dweight[c] = of_norm;
        of_dz[c] = factor, of_x[c] = slope, rest[c] = -factor * found[c] / rows - (double)of_x[c] * mean[c];
    }
    Slopes s = {of_dz, of_x, rest};
    if (dadded) t.dy = dadded, relu = ALL; // it is dz by now
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        int64_t first = rows * part / threads, end = rows * (part + 1) / threads;
        if (relu == ALL) backward_rows(&t, s, ALL, first, end);
        else if (relu == BY_INPUT) backward_rows(&t, s, BY_INPUT, first, end);
        else backward_rows(&t, s, BY_OUTCOME, first, end);
    }
    free(found);
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
