// Linear layers and 2-d convolutions with blocks of rows that have the same columns: forward pass, both gradients.
//
// Rows (outputs) come in octets, all of one group; the rows of a group have the same columns (input channel, tap). So
// what is read of a column serves eight rows, from registers. Columns are sorted by (block of 16 channels, tap, channel):
// any range of blocks is a range of columns. The rows of an octet may be any rows: each is written to its own place.
//
// Each output and each gradient is computed by one thread, in an order that follows from shapes and masks only: an
// output sums its columns one after the other, a gradient of an input the positions, octets and rows, a gradient of a
// weight the positions for each of 16 lanes, which are added up as a tree for every SPAN positions. So bits depend
// neither on the number of threads nor on the width of vectors, if the machine has fused multiply-add.
#include "tiles.h"
#include <string.h>

#define OCTET 8
#define SPAN 16                // positions that a gradient of a weight sums in registers
#define STRIP 8                // columns whose positions come row by row, so that rows are met again while in the cache
#define CHUNK 192              // columns that all octets of a group meet before the next ones, in the first cache
#define TOGETHER 2             // octets that meet an input before the next one, in gradients of weights
#define VECTORS 2              // of the 32 samples at a time
#define ROWS (LANES == 8 ? 4 : 8) // at a time; with vectors of 8 lanes there are 16 registers only
#define PLACE (BLOCK * 32)     // numbers of a position in a block
#define BROADCAST(number) ((number) - (vec){0})

// A layer: its channels, its images and its outputs (high x wide), the stride (down, right), the padding (top, left) and
// how gradients of outputs lie in tiles, of which the inside begins at (dy_top, dy_left).
typedef struct {
    int64_t channels, outs, height, width, high, wide, kernel_high, kernel_wide, down, right, top, left;
    int64_t dy_rows, dy_columns, dy_top, dy_left;
} layer;

// Where the weights are. Octet o has the rows rows[8 o] ..., is of group[o], and its values begin at at[o]: 8 for each
// column, one column after the other. Columns of group g in block b: bounds[g][b] to bounds[g][b + 1]. Column k lies
// offsets[k] from the base of a position.
typedef struct {
    const int32_t *rows, *group;
    const int64_t *at;
    const int32_t *bounds, *offsets;
    int64_t octets, blocks;
} table;

#define FIRST(t, o, block) ((t)->bounds[(t)->group[o] * ((t)->blocks + 1) + (block)])
#define VALUES(t, values, o, column) ((values) + (t)->at[o] + (int64_t)((column) - FIRST(t, o, 0)) * OCTET)

typedef struct {
    int64_t tile, row, column;
} spot;

// The q-th position of a layer's outputs.
ALWAYS spot spot_of(const layer *l, int64_t q) {
    int64_t image = l->high * l->wide, rest = q % image, first = rest / (STRIP * l->high) * STRIP;
    int64_t width = l->wide - first < STRIP ? l->wide - first : STRIP;
    rest -= first * l->high;
    return (spot){q / image, rest / width, first + rest % width};
}

ALWAYS int64_t input_of(const layer *l, spot s) {
    int64_t rows = l->height + 2 * l->top, columns = l->width + 2 * l->left, blocks = (l->channels + BLOCK - 1) / BLOCK;
    return ((s.tile * blocks * rows + s.row * l->down) * columns + s.column * l->right) * PLACE;
}

ALWAYS int64_t gradient_of(const layer *l, spot s) {
    int64_t blocks = (l->outs + BLOCK - 1) / BLOCK;
    return ((s.tile * blocks * l->dy_rows + l->dy_top + s.row) * l->dy_columns + l->dy_left + s.column) * PLACE;
}

// From the gradients of a position to those of an output.
#define OF_ROW(l, row) ((row) / BLOCK * (l)->dy_rows * (l)->dy_columns * PLACE + (row) % BLOCK * 32)

// The number of octets from ``o`` on that have the same columns.
ALWAYS int64_t alike(const table *t, int64_t o, int64_t end, int64_t most) {
    int64_t n = 1;
    while (n < most && o + n < end && t->group[o + n] == t->group[o]) n++;
    return n;
}

// Places that are needed soon, [block][row][column]: of each block ``high`` rows of ``wide`` places. They are fetched
// into the second cache a share at a time, since what lies 2 kB apart is not foreseen by the machine, and all of them at
// once would wait for each other.
typedef struct {
    const float *from;
    int64_t plane, line, high, wide, left, share;
} ahead;

ALWAYS ahead ahead_of(const float *from, int64_t plane, int64_t line, int64_t blocks, int64_t high, int64_t wide,
                      int64_t shares) {
    int64_t all = blocks * high * wide;
    return (ahead){from, plane, line, high, wide, all, (all + shares - 1) / shares};
}

ALWAYS void fetch(ahead *a) {
    for (int64_t n = 0; n < a->share && a->left > 0; n++) {
        int64_t i = --a->left;
        int64_t row = i / a->wide % a->high * a->line + i % a->wide * PLACE;
        const float *at = a->from + i / a->wide / a->high * a->plane + row;
        for (int j = 0; j < PLACE; j += 16) __builtin_prefetch(at + j, 0, 2);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Outputs

// y[row] += the columns from ``k`` to ``end`` of an octet's rows; y[row] = bias + them if they are the first.
ALWAYS void outputs(const float *x, float *y, const int32_t *rows, const float *bias, int is_first, const float *values,
                    const int32_t *offsets, int64_t n) {
    for (int v = 0; v < LINE; v += VECTORS)
        for (int r = 0; r < OCTET; r += ROWS) {
            vec sum[ROWS][VECTORS];
            UNROLL for (int i = 0; i < ROWS; i++) {
                int64_t row = rows[r + i];
                vec begin = BROADCAST(bias ? bias[row] : 0);
                UNROLL for (int j = 0; j < VECTORS; j++)
                    sum[i][j] = is_first ? begin : LOAD(y + row * 32 + (v + j) * LANES);
            }
            const float *w = values + r, *from = x + v * LANES;
            for (int64_t k = 0; k < n; k++, w += OCTET) {
                const float *at = from + offsets[k];
                vec some[VECTORS];
                UNROLL for (int j = 0; j < VECTORS; j++) some[j] = LOAD(at + j * LANES);
                UNROLL for (int i = 0; i < ROWS; i++)
                    UNROLL for (int j = 0; j < VECTORS; j++) sum[i][j] += BROADCAST(w[i]) * some[j];
            }
            UNROLL for (int i = 0; i < ROWS; i++)
                UNROLL for (int j = 0; j < VECTORS; j++)
                    STORE(y + (int64_t)rows[r + i] * 32 + (v + j) * LANES) = sum[i][j];
        }
}

// The outputs of some octets at a position, as a tile [outs][32].
static void outputs_of(const table *t, const float *x, float *y, const float *bias, const float *values, int64_t first,
                       int64_t last, ahead *next) {
    for (int64_t o = first, n; o < last; o += n) {
        int64_t begin = FIRST(t, o, 0), end = FIRST(t, o, t->blocks), k = begin;
        n = alike(t, o, last, last);
        do {
            int64_t some = end - k < CHUNK ? end - k : CHUNK;
            for (int64_t i = o; i < o + n; i++) {
                if (k == begin) fetch(next);
                outputs(x, y, t->rows + OCTET * i, bias, k == begin, VALUES(t, values, i, k), t->offsets + k, some);
            }
            k += some;
        } while (k < end);
    }
}

// The inputs of the position after ``s`` that ``s`` does not meet, for so many octets to fetch.
ALWAYS ahead inputs_after(const layer *l, spot s, int64_t q, const float *x, int64_t blocks, int64_t octets) {
    spot next = spot_of(l, q + 1);
    int64_t line = (l->width + 2 * l->left) * PLACE, plane = (l->height + 2 * l->top) * line;
    int64_t met = next.tile == s.tile && next.row == s.row && l->kernel_wide > l->right ? l->kernel_wide - l->right : 0;
    const float *from = x + input_of(l, next) + met * PLACE;
    return ahead_of(from, plane, line, blocks, l->kernel_high, l->kernel_wide - met, octets);
}

static void lay(const layer *l, const float *tile, float *y, spot s, int64_t samples) {
    int64_t image = l->high * l->wide, here = samples - s.tile * 32;
    float *to = y + (s.tile * 32 * image + s.row * l->wide + s.column) * l->outs;
    untile(tile, to, here < 32 ? here : 32, image * l->outs, l->outs);
}

// y (channels-last) = bias + weights x inputs (in tiles). Work is cut into positions x ranges of octets, cuts[range] to
// cuts[range + 1]. ``scratch``: a tile of outputs for each thread; if there are more ranges than one, for each position.
void dst_blocks_forward(const layer *l, const table *t, const float *x, float *y, int64_t samples, const float *bias,
                        const float *values, const int32_t *cuts, int64_t ranges, float *scratch, int threads) {
    int64_t positions = (samples + 31) / 32 * l->high * l->wide, room = l->outs * 32;
    if (ranges == 1) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int i = 0; i < threads; i++)
            for (int64_t q = positions * i / threads; q < positions * (i + 1) / threads; q++) {
                spot s = spot_of(l, q);
                ahead next = {0};
                if (q + 1 < positions) next = inputs_after(l, s, q, x, t->blocks, t->octets);
                outputs_of(t, x + input_of(l, s), scratch + i * room, bias, values, 0, t->octets, &next);
                lay(l, scratch + i * room, y, s, samples);
            }
        return;
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < positions * ranges; i++) {
        int64_t q = i % positions, r = i / positions;
        ahead none = {0};
        outputs_of(t, x + input_of(l, spot_of(l, q)), scratch + q * room, bias, values, cuts[r], cuts[r + 1], &none);
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t q = 0; q < positions; q++) lay(l, scratch + q * room, y, spot_of(l, q), samples);
}

// ---------------------------------------------------------------------------------------------------------------------
// Gradients of inputs

// dx[column] += what the rows of an octet have of it.
ALWAYS void scattered(const layer *l, float *dx, const float *dy, const int32_t *rows, const float *values,
                      const int32_t *offsets, int64_t n) {
    for (int v = 0; v < LINE; v += VECTORS)
        for (int r = 0; r < OCTET; r += ROWS) {
            vec d[ROWS][VECTORS];
            UNROLL for (int i = 0; i < ROWS; i++)
                UNROLL for (int j = 0; j < VECTORS; j++)
                    d[i][j] = LOAD(dy + OF_ROW(l, rows[r + i]) + (v + j) * LANES);
            const float *w = values + r;
            float *to = dx + v * LANES;
            for (int64_t k = 0; k < n; k++, w += OCTET) {
                float *at = to + offsets[k];
                vec sum[VECTORS];
                UNROLL for (int j = 0; j < VECTORS; j++) sum[j] = LOAD(at + j * LANES);
                UNROLL for (int i = 0; i < ROWS; i++)
                    UNROLL for (int j = 0; j < VECTORS; j++) sum[j] += BROADCAST(w[i]) * d[i][j];
                UNROLL for (int j = 0; j < VECTORS; j++) STORE(at + j * LANES) = sum[j];
            }
        }
}

// Channels-last dx from dy in tiles. Work is cut into tiles x ranges of blocks of channels. The rows of an image that a
// row of outputs reaches lie in a ring of ``ring`` rows, [block][ring][column][16][32]; it begins at any of them, so
// offsets[row that is first][column]. A row that is complete is laid out and becomes zero again, still in the cache.
void dst_blocks_inputs(const layer *l, const table *t, const float *dy, float *dx, int64_t samples, const float *values,
                       const int32_t *offsets, int64_t columns, int64_t ring, int64_t ranges, float *scratch,
                       int64_t room, int threads) {
    int64_t tiles = (samples + 31) / 32, width = l->width + 2 * l->left, line = width * PLACE, plane = ring * line;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        float *own = scratch + part * room;
        for (int64_t item = tiles * ranges * part / threads; item < tiles * ranges * (part + 1) / threads; item++) {
            int64_t tile = item / ranges, r = item % ranges, here = samples - tile * 32 < 32 ? samples - tile * 32 : 32;
            int64_t first = t->blocks * r / ranges, last = t->blocks * (r + 1) / ranges, done = 0;
            memset(own, 0, 4 * (last - first) * plane);
            for (int64_t y = 0; y < l->high; y++) {
                const int32_t *at = offsets + y * l->down % ring * columns;
                for (int64_t x = 0; x < l->wide; x++) {
                    const float *from = dy + gradient_of(l, (spot){tile, y, x});
                    float *to = own + x * l->right * PLACE - first * plane;
                    const float *then = x + 1 < l->wide ? from + PLACE : dy + gradient_of(l, (spot){tile, y + 1, 0});
                    int64_t dy_plane = l->dy_rows * l->dy_columns * PLACE, dy_blocks = (l->outs + BLOCK - 1) / BLOCK;
                    ahead next = ahead_of(then, dy_plane, 0, dy_blocks, 1, 1, t->octets);
                    for (int64_t o = 0, n; o < t->octets; o += n) {
                        int64_t k = FIRST(t, o, first), end = FIRST(t, o, last);
                        n = alike(t, o, t->octets, t->octets);
                        while (k < end) {
                            int64_t some = end - k < CHUNK ? end - k : CHUNK;
                            for (int64_t i = o; i < o + n; i++) {
                                fetch(&next);
                                scattered(l, to, from, t->rows + OCTET * i, VALUES(t, values, i, k), at + k, some);
                            }
                            k += some;
                        }
                    }
                }
                int64_t until = y + 1 < l->high ? (y + 1) * l->down : l->height + 2 * l->top;
                for (; done < until; done++) {
                    int64_t row = done - l->top;
                    for (int64_t b = first; b < last; b++) {
                        float *of = own + (b - first) * plane + done % ring * line;
                        int64_t channels = l->channels - b * BLOCK < BLOCK ? l->channels - b * BLOCK : BLOCK;
                        int64_t image = l->height * l->width * l->channels;
                        float *to = dx + tile * 32 * image + row * l->width * l->channels + b * BLOCK;
                        if (row >= 0 && row < l->height)
                            for (int64_t x = 0; x < l->width; x++)
                                untile(of + (x + l->left) * PLACE, to + x * l->channels, here, image, channels);
                        memset(of, 0, 4 * line);
                    }
                }
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Gradients of weights

#define HALF (16 / LANES) // vectors of 16 lanes
#define PAIR 2            // columns that meet a gradient of an output while it is in a register

// Keeps a vector in a register; compilers would load it anew for each column.
#if defined(__x86_64__)
#define HELD(v) __asm__("" : "+v"(v))
#elif defined(__aarch64__)
#define HELD(v) __asm__("" : "+w"(v))
#else
#define HELD(v)
#endif

// dw[column][row] of an octet, for PAIR columns, over some positions: 16 lanes each, which samples 16 apart share.
// ``dy``: [position][8][32]. ``fetches``: the PAIR columns that follow, meanwhile.
ALWAYS void products(const float *const *x, const float *dy, const int32_t *offsets, int is_pair, const int fetches,
                     int64_t positions, vec *sums) {
    int64_t one = offsets[0], two = is_pair ? offsets[1] : one;
    for (int r = 0; r < OCTET; r += ROWS) {
        vec sum[HALF][PAIR * ROWS];
        for (int h = 0; h < HALF; h++) {
            vec own[PAIR * ROWS];
            UNROLL for (int i = 0; i < PAIR * ROWS; i++) own[i] = (vec){0};
            const float *d = dy + r * 32 + h * LANES;
            for (int64_t p = 0; p < positions; p++, d += OCTET * 32) {
                const float *from = x[p] + h * LANES;
                for (int j = PAIR; fetches && j < 2 * PAIR; j++) {
                    __builtin_prefetch(x[p] + offsets[j]);
                    __builtin_prefetch(x[p] + offsets[j] + 16);
                }
                UNROLL for (int s = 0; s < 32; s += 16) {
                    vec a = LOAD(from + one + s), b = LOAD(from + two + s);
                    UNROLL for (int i = 0; i < ROWS; i++) {
                        vec of = LOAD(d + i * 32 + s);
                        HELD(of);
                        own[i] += of * a;
                        own[ROWS + i] += of * b;
                    }
                }
            }
            UNROLL for (int i = 0; i < PAIR * ROWS; i++) sum[h][i] = own[i];
        }
        UNROLL for (int i = 0; i < PAIR * ROWS; i++) {
            UNROLL for (int n = HALF / 2; n > 0; n /= 2)
                UNROLL for (int h = 0; h < n; h++) sum[h][i] += sum[h + n][i];
            sums[i / ROWS * OCTET + r + i % ROWS] = sum[0][i];
        }
    }
}

// Gradients of all values, from x and dy in tiles. Work is cut into sets of blocks of channels x ranges of octets.
// ``scratch``: SPAN x TOGETHER x 8 x 32 numbers of each thread.
void dst_blocks_weights(const layer *l, const table *t, const float *x, const float *dy, int64_t samples, float *dw,
                        int64_t sets, const int32_t *cuts, int64_t ranges, float *scratch, int threads) {
    int64_t positions = (samples + 31) / 32 * l->high * l->wide, items = sets * ranges;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        float *own = scratch + (int64_t)part * SPAN * TOGETHER * OCTET * 32;
        for (int64_t item = items * part / threads; item < items * (part + 1) / threads; item++) {
            int64_t first = t->blocks * (item / ranges) / sets, last = t->blocks * (item / ranges + 1) / sets;
            for (int64_t q = 0; q < positions; q += SPAN) {
                int64_t span = positions - q < SPAN ? positions - q : SPAN;
                const float *from[SPAN], *of[SPAN];
                for (int64_t p = 0; p < span; p++) {
                    spot s = spot_of(l, q + p);
                    from[p] = x + input_of(l, s), of[p] = dy + gradient_of(l, s);
                }
                int64_t end = cuts[item % ranges + 1];
                for (int64_t o = cuts[item % ranges], n; o < end; o += n) {
                    int64_t k = FIRST(t, o, first), stop = FIRST(t, o, last);
                    n = alike(t, o, end, TOGETHER);
                    if (k == stop) continue;
                    for (int64_t i = 0; i < n * OCTET; i++) {
                        float *to = own + (i / OCTET * SPAN * OCTET + i % OCTET) * 32;
                        int64_t row = OF_ROW(l, t->rows[o * OCTET + i]);
                        for (int64_t p = 0; p < span; p++)
                            UNROLL for (int v = 0; v < LINE; v++)
                                STORE(to + p * OCTET * 32 + v * LANES) = LOAD(of[p] + row + v * LANES);
                    }
                    int64_t coming = o + n < end ? alike(t, o + n, end, TOGETHER) * OCTET * span : 0;
                    int64_t share = coming * PAIR / (stop - k) + 1;
                    for (; k < stop; k += PAIR) {
                        for (int64_t j = 0; j < share && coming > 0; j++) { // gradients that the next octets copy
                            coming--;
                            const float *at = of[coming % span] + OF_ROW(l, t->rows[(o + n) * OCTET + coming / span]);
                            __builtin_prefetch(at, 0, 2);
                            __builtin_prefetch(at + 16, 0, 2);
                        }
                        for (int64_t i = 0; i < n; i++) {
                            vec sums[PAIR * OCTET];
                            int is_pair = k + PAIR <= stop;
                            const float *d = own + i * SPAN * OCTET * 32;
                            if (!i && k + 2 * PAIR <= stop) products(from, d, t->offsets + k, 1, 1, span, sums);
                            else products(from, d, t->offsets + k, is_pair, 0, span, sums);
                            float *to = VALUES(t, dw, o + i, k);
                            UNROLL for (int j = 0; j < PAIR * OCTET; j += LANES) {
                                vec found = totals(sums + j);
                                if (is_pair || j + LANES <= OCTET) STORE(to + j) = q ? LOAD(to + j) + found : found;
                                else
                                    for (int e = 0; j + e < OCTET; e++) to[e] = q ? to[e] + found[e] : found[e];
                            }
                        }
                    }
                }
            }
        }
    }
}
