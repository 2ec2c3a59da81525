/* Products of activations with one matrix: coded, vector-quantised or floats, shared among threads.

   How codes lie (kind CODES). A tile is 16 rows (ROWS). A block is one cache line of 64 bytes: 4
   bytes for each row of the tile, and in them 4 * parts neighbouring columns of it, parts = 8 /
   bits:

       block b of a tile    row 0           row 1                   row 15
                            [B0 B1 B2 B3]   [B0 B1 B2 B3]    ...    [B0 B1 B2 B3]

   Byte Bi holds the columns i, i + 4, i + 8, ... of the block, the first one in the lowest bits:

       bits of Bi     7 6      5 4      3 2      1 0
       2-bit codes    12 + i   8 + i    4 + i    i         counted from column 16 * b
       4-bit codes    4 + i             i                  counted from column 8 * b
       8-bit codes    i                                    counted from column 4 * b

   So one shift and one mask of the whole line leave, in the 32-bit lane of every row, the codes of
   4 neighbouring columns. One instruction multiplies them with the same 4 activations, broadcast to
   all lanes, and adds up within the lane: a lane is a row, and no sum ever crosses lanes.

   Blocks follow each other along the columns, then the next tile's blocks come. Each group of
   columns is padded to a multiple of 16 (COLUMNS), so no block has columns of two groups. Scales
   and zero points lie as (tiles, groups, ROWS), one lane per row. With activations a = step * (256
   * high + low):

   out[row] = step * sum over groups of scale * (sum of code * a  -  zero * sum of a)

   The zero point is taken off once per group, because the sums of the activations are known. */

#pragma once
#include "mixed.h"
#include "vq.h"

/* ---- integers of activations ----------------------------------------------------------------- */

INLINE int is_coded(const Matrix *m) { return m->kind != FLOATS; }

INLINE int tiles_of(const Matrix *m) {
    int rows = m->kind == VQ ? VQ_ROWS : ROWS;
    return (m->rows + rows - 1) / rows;
}

INLINE int planes_of(const Matrix *m) {
    return m->activation_top > 0 && m->activation_top <= 127 ? 1 : 2;
}

/* Reserve the integers of `tokens` tokens; every part begins at a cache line. Returns 0 when there
   is no memory. */
static int reserve_input(Input *input, int tokens, int padded, int groups) {
    size_t plane = ((size_t)tokens * padded + 63) / 64 * 64,
           sums = ((size_t)tokens * groups * 4 + 63) / 64 * 64;
    size_t wanted = 2 * plane + 2 * sums + 4 * (size_t)tokens * groups;
    if (!reserve((void **)&input->low, &input->size_bytes, wanted)) return 0;
    input->high = input->low + plane;
    input->low_sums = (int32_t *)(input->high + plane);
    input->high_sums = (int32_t *)((char *)input->low_sums + sums);
    input->steps = (float *)((char *)input->high_sums + sums);
    return 1;
}

/* Return the step of a token's integers: its largest size becomes the largest integer. Where the
   model rounds, 1e-5 is the floor that its own rounding has; else the floor only avoids dividing by
   0. */
static float step_of(const Matrix *m, const float *x) {
    float largest = largest_of(x, m->columns);
    if (m->activation_top > 0)
        return (largest < 1e-5f ? 1e-5f : largest) / (float)m->activation_top;
    return largest > 1e-35f ? largest / (float)FULL_TOP : 1;
}

/* Round one token x (columns) to integers, laid out in groups padded with zeros, and sum each
   group. */
static void round_token(const Matrix *m, const float *x, Input *input, int token) {
    int8_t *low = input->low + (size_t)token * m->padded,
           *high = input->high + (size_t)token * m->padded;
    int two = planes_of(m) == 2;
    float step = step_of(m, x);
    input->steps[token] = step;
    for (int g = 0; g < m->groups; g++) {
        int first = g * m->group,
            count = m->columns - first < m->group ? m->columns - first : m->group;
        int width = (count + COLUMNS - 1) / COLUMNS * COLUMNS;
        int32_t low_sum = 0, high_sum = 0;
        int8_t *l = low + (size_t)g * m->padded_group, *h = high + (size_t)g * m->padded_group;
        if (two) {
            for (int c = 0; c < count; c++) {
                int32_t value = (int32_t)rintf(x[first + c] / step), upper = (value + 128) >> 8;
                h[c] = (int8_t)upper;
                l[c] = (int8_t)(value - 256 * upper);
                high_sum += upper;
                low_sum += value - 256 * upper;
            }
            for (int c = count; c < width; c++) h[c] = 0;
        } else {
            for (int c = 0; c < count; c++) {
                int32_t value = (int32_t)rintf(x[first + c] / step);
                l[c] = (int8_t)value;
                low_sum += value;
            }
        }
        for (int c = count; c < width; c++) l[c] = 0;
        input->low_sums[(size_t)token * m->groups + g] = low_sum;
        input->high_sums[(size_t)token * m->groups + g] = high_sum;
    }
}

/* ---- coded matrices -------------------------------------------------------------------------- */

#define SPLIT_MAX 4 /* most independent sums per row, see `split` */

/* Write one tile's products with `count` tokens, scaled by the tokens' steps, into products (count,
   ROWS). bits, planes and count are constants at every call, so the compiler unrolls the loops over
   them. Each line of codes is loaded and unpacked once for all `count` tokens. */
INLINE void tile_product(const Matrix *m, int tile, const Input *in, int token, float *products,
                         int bits, int planes, int count) {
    const int per_step = bits == 2 ? 1 : bits == 4 ? 2 : 4, parts = 8 / bits;
    /* A multiply-add has to wait for the one before it in the same sum. Several tokens are several
       independent sums already; for one token its sum is split up. */
    const int split = count > 1 ? 1 : planes == 1 ? 4 : 2;
    const size_t tile_bytes = (size_t)m->padded * ROWS * bits / 8;
    const int8_t *planes_of_input[2] = {in->low + (size_t)token * m->padded,
                                        in->high + (size_t)token * m->padded};
    const int32_t *sums[2] = {in->low_sums + (size_t)token * m->groups,
                              in->high_sums + (size_t)token * m->groups};
    for (int half = 0; half < ROWS; half += LANES) {
        const uint8_t *codes = m->codes + (size_t)tile * tile_bytes + 4 * half;
        Floats total[WIDE_BATCH];
        for (int t = 0; t < count; t++) total[t] = zero_floats();
        for (int g = 0; g < m->groups; g++) {
            size_t column = (size_t)g * m->padded_group;
            int steps = ((g + 1 < m->groups ? m->padded_group : m->padded - (int)column)) / COLUMNS;
            Ints sum[WIDE_BATCH][2][SPLIT_MAX];
            for (int t = 0; t < count; t++)
                for (int p = 0; p < planes; p++)
                    for (int s = 0; s < split; s++) sum[t][p][s] = zero_ints();
            for (int step = 0; step < steps; step++, column += COLUMNS) {
#pragma GCC unroll 4
                for (int block = 0; block < per_step; block++, codes += 4 * ROWS) {
                    Ints packed = load_codes(codes);
#pragma GCC unroll 4
                    for (int part = 0; part < parts; part++) {
                        Ints values = part_of(packed, part * bits, bits);
                        size_t at = column + 4 * (block * parts + part);
#pragma GCC unroll 8
                        for (int t = 0; t < count; t++)
#pragma GCC unroll 2
                            for (int p = 0; p < planes; p++) {
                                Ints *s = &sum[t][p][(block * parts + part) % split];
                                *s = dot(*s, values,
                                         planes_of_input[p] + (size_t)t * m->padded + at, bits);
                            }
                    }
                }
            }
            size_t place = ((size_t)tile * m->groups + g) * ROWS + half;
            Ints zero = m->zeros ? load_zeros(m->zeros + place) : all(m->zero);
            Floats scale = load_scales(m->scales, place, m->scale_kind);
#pragma GCC unroll 8
            for (int t = 0; t < count; t++) {
                Floats value = zero_floats();
#pragma GCC unroll 2
                /* The high plane comes first: value = 256 * high + low, by Horner's rule. */
                for (int p = planes - 1; p >= 0; p--) {
                    Ints whole = sum[t][p][0];
#pragma GCC unroll 4
                    for (int s = 1; s < split; s++) whole = add(whole, sum[t][p][s]);
                    whole = minus_product(whole, zero, sums[p][(size_t)t * m->groups + g]);
                    value = times_plus(value, all_floats(256), to_floats(whole));
                }
                total[t] = times_plus(value, scale, total[t]);
            }
        }
        for (int t = 0; t < count; t++)
            put(products + (size_t)t * ROWS + half,
                times_plus(total[t], all_floats(in->steps[token + t]), zero_floats()));
    }
}

/* Put a tile's products into out (T, stride): the bias is added, and rows of the tile beyond the
   last row of the matrix are dropped. With `add_to` the products are added to what `out` holds. */
INLINE void write_tile(const Matrix *m, int first_row, int tile_rows, const float *products,
                       int count, float *out, size_t stride, int add_to) {
    int rows = m->rows - first_row < tile_rows ? m->rows - first_row : tile_rows;
    for (int t = 0; t < count; t++) {
        float *to = out + (size_t)t * stride + first_row;
        for (int r = 0; r < rows; r++) {
            float value =
                products[(size_t)t * tile_rows + r] + (m->bias ? m->bias[first_row + r] : 0);
            to[r] = add_to ? to[r] + value : value;
        }
    }
}

/* One product: out (tokens, stride) = x (tokens, columns) times the matrix, or added to what `out`
   holds. */
typedef struct {
    const Matrix *matrix;
    const float
        *x; /* shared by all threads; NULL: each thread computes its one token from `source` */
    const void *source;
    int tokens, add_to, size;
    float *out;
    size_t stride;
} Use;

/* One function per number of bits and planes, so that both are constants in tile_product. */
#define TILES(NAME, BITS, PLANES)                                                                 \
    static void NAME(const Use *u, const Input *input, int first, int last) {                     \
        float products[WIDE_BATCH * ROWS];                                                        \
        for (int tile = first; tile < last; tile++) {                                             \
            int token = 0;                                                                        \
            for (; token + WIDE_BATCH <= u->tokens; token += WIDE_BATCH) {                        \
                tile_product(u->matrix, tile, input, token, products, BITS, PLANES, WIDE_BATCH);  \
                write_tile(u->matrix, tile * ROWS, ROWS, products, WIDE_BATCH,                    \
                           u->out + token * u->stride, u->stride, u->add_to);                     \
            }                                                                                     \
            for (; token < u->tokens; token++) {                                                  \
                tile_product(u->matrix, tile, input, token, products, BITS, PLANES, 1);           \
                write_tile(u->matrix, tile * ROWS, ROWS, products, 1, u->out + token * u->stride, \
                           u->stride, u->add_to);                                                 \
            }                                                                                     \
        }                                                                                         \
    }
TILES(tiles_2_1, 2, 1)
TILES(tiles_2_2, 2, 2)
TILES(tiles_4_1, 4, 1)
TILES(tiles_4_2, 4, 2)
TILES(tiles_8_1, 8, 1)
TILES(tiles_8_2, 8, 2)

static void tiles_mixed(const Use *u, const Input *input, int first, int last) {
    float products[WIDE_BATCH * ROWS];
    for (int tile = first; tile < last; tile++) {
        int token = 0;
        for (; token + WIDE_BATCH <= u->tokens; token += WIDE_BATCH) {
            mixed_tile(u->matrix, tile, input, token, products, WIDE_BATCH);
            write_tile(u->matrix, tile * ROWS, ROWS, products, WIDE_BATCH,
                       u->out + token * u->stride, u->stride, u->add_to);
        }
        for (; token < u->tokens; token++) {
            mixed_tile(u->matrix, tile, input, token, products, 1);
            write_tile(u->matrix, tile * ROWS, ROWS, products, 1, u->out + token * u->stride,
                       u->stride, u->add_to);
        }
    }
}

/* Multiply a tile's sums (count, VQ_ROWS) by the scales of its rows, and put them into out from
   `token` on. */
INLINE void write_vq_tile(const Use *u, int tile, float *sums, int token, int count) {
    const Matrix *m = u->matrix;
    int first = tile * VQ_ROWS, rows = m->rows - first < VQ_ROWS ? m->rows - first : VQ_ROWS;
    const float *scales = (const float *)m->scales + first;
    for (int t = 0; t < count; t++)
        for (int r = 0; r < rows; r++) sums[t * VQ_ROWS + r] *= scales[r];
    write_tile(m, first, VQ_ROWS, sums, count, u->out + (size_t)token * u->stride, u->stride,
               u->add_to);
}

/* Multiply tiles first to last of a vector-quantised matrix; `memory` has vq_bytes(m) bytes. Few
   tokens go through tables: VQ_RUN tiles share the tables of a block, which cost as much as some
   tiles. */
static void tiles_vq(const Use *u, const Input *input, void *memory, int first, int last) {
    const Matrix *m = u->matrix;
    int32_t *book = memory, *block = book + 2 * vq_book(m);
    float book_step = make_book(m, book, uses_tables(u->tokens)), sums[VQ_RUN * VQ_ROWS];
    const Entry *entries = (const Entry *)book;
#if VQ_TABLE_TOKENS
    if (uses_tables(u->tokens)) {
        for (int tile = first; tile < last; tile += VQ_RUN) {
            int tiles = last - tile < VQ_RUN ? last - tile : VQ_RUN;
            for (int token = 0; token < u->tokens; token++) {
                sum_tables(m, input, token, book, book_step, (uint8_t *)block, tile, tiles, sums);
                for (int t = 0; t < tiles; t++)
                    write_vq_tile(u, tile + t, sums + t * VQ_ROWS, token, 1);
            }
        }
        return;
    }
    split_book(book, vq_book(m), (uint8_t *)(book + vq_book(m)));
    entries = (const Entry *)(book + vq_book(m));
#endif
    for (int tile = first; tile < last; tile++) {
        sum_weights(m, input, u->tokens, entries, book_step, block, tile, sums);
        write_vq_tile(u, tile, sums, 0, u->tokens);
    }
}

/* Copy row `row` of a matrix, as float32, to out (columns). */
static void take_row(const Matrix *m, int row, float *out) {
    if (m->kind == MIXED) {
        take_mixed_row(m, row, out);
        return;
    }
    if (m->kind == FLOATS) {
        float scale = m->scales ? ((const float *)m->scales)[row] : 1;
        for (int c = 0; c < m->columns; c++)
            out[c] = scale * one_as_float(m->codes, (size_t)row * m->columns + c, m->bits);
        return;
    }
    if (m->kind == VQ) {
        take_vq_row(m, row, out);
        return;
    }
    int tile = row / ROWS, lane = row % ROWS, parts = 8 / m->bits, mask = (1 << m->bits) - 1;
    const uint8_t *codes = m->codes + (size_t)tile * m->padded * ROWS * m->bits / 8 + 4 * lane;
    for (int c = 0; c < m->columns; c++) {
        int g = c / m->group, at = g * m->padded_group + c % m->group;
        size_t place = ((size_t)tile * m->groups + g) * ROWS + lane;
        int zero = m->zeros ? m->zeros[place] : m->zero, block = at / (4 * parts),
            part = at / 4 % parts;
        int code = codes[(size_t)block * 4 * ROWS + at % 4] >> (part * m->bits) & mask;
        out[c] = one_as_float(m->scales, place, m->scale_kind) * (float)(code - zero);
    }
}

/* ---- float matrices -------------------------------------------------------------------------- */

/* Rows times tokens of a block: 4 * 4 sums, 4 weights and an activation fit AVX-512's 32 registers.
   */
#define FLOAT_ROWS 4
#define FLOAT_TOKENS 4

/* Multiply `rows` rows from `row` on with `count` tokens; both are constants at every call. The sum
   of a row and a token has the same order for every block size, hence the same bits. */
INLINE void float_block(const Matrix *m, const float *x, int row, int rows, int count, float *out,
                        size_t stride, int add_to, int format) {
    f32x16 sums[FLOAT_ROWS][FLOAT_TOKENS];
    int columns = m->columns, c = 0;
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < count; k++) sums[r][k] = (f32x16){0};
    for (; c + 16 <= columns; c += 16) {
        f32x16 w[FLOAT_ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            w[r] = load_as_float(m->codes, (size_t)(row + r) * columns + c, format);
#pragma GCC unroll 4
        for (int k = 0; k < count; k++) {
            f32x16 activation = load16(x + (size_t)k * columns + c);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) sums[r][k] += w[r] * activation;
        }
    }
    for (int r = 0; r < rows; r++) {
        float scale = m->scales ? ((const float *)m->scales)[row + r] : 1,
              bias = m->bias ? m->bias[row + r] : 0;
        for (int k = 0; k < count; k++) {
            float total = sum16(sums[r][k]), *to = out + (size_t)k * stride + row + r;
            for (int rest = c; rest < columns; rest++)
                total += one_as_float(m->codes, (size_t)(row + r) * columns + rest, format)
                         * x[(size_t)k * columns + rest];
            *to = (add_to ? *to : 0) + total * scale + bias;
        }
    }
}

INLINE void float_rows(const Matrix *m, const float *x, int first, int last, int tokens, float *out,
                       size_t stride, int add_to, int format) {
    int token = 0;
    for (; token + FLOAT_TOKENS <= tokens; token += FLOAT_TOKENS) {
        const float *from = x + (size_t)token * m->columns;
        float *to = out + (size_t)token * stride;
        int row = first;
        for (; row + FLOAT_ROWS <= last; row += FLOAT_ROWS)
            float_block(m, from, row, FLOAT_ROWS, FLOAT_TOKENS, to, stride, add_to, format);
        for (; row < last; row++)
            float_block(m, from, row, 1, FLOAT_TOKENS, to, stride, add_to, format);
    }
    for (; token < tokens; token++)
        for (int row = first; row < last; row++)
            float_block(m, x + (size_t)token * m->columns, row, 1, 1, out + (size_t)token * stride,
                        stride, add_to, format);
}

static void floats_product(const Matrix *m, const float *x, int first, int last, int tokens,
                           float *out, size_t stride, int add_to) {
    if (m->bits == F32) float_rows(m, x, first, last, tokens, out, stride, add_to, F32);
    else if (m->bits == F16) float_rows(m, x, first, last, tokens, out, stride, add_to, F16);
    else float_rows(m, x, first, last, tokens, out, stride, add_to, BF16);
}

/* ---- any matrix ------------------------------------------------------------------------------ */

/* Return one token's activations, which this thread computes into its own memory unless they are
   there already. Defined in engine.c, where sources are. */
static const float *own_source(Team *team, const void *source);

INLINE const float *activations(Team *team, const Use *u) {
    return u->x ? u->x : own_source(team, u->source);
}

INLINE int same_key(const Key *a, const Key *b) {
    return a->stamp == b->stamp && a->column_scales == b->column_scales && a->group == b->group
           && a->top == b->top && a->columns == b->columns && a->vector == b->vector;
}

/* What every source begins with: its number, by which results computed from it are recognised. */
typedef struct {
    uint64_t stamp;
} Stamped;

INLINE Key key_of(const Use *u) {
    const Matrix *m = u->matrix;
    return (Key){((const Stamped *)u->source)->stamp,
                 m->column_scales,
                 m->group,
                 m->activation_top,
                 m->columns,
                 m->kind == VQ ? m->vector : 0};
}

/* Round a token's floats to the integers that the matrix multiplies. */
INLINE void round_input(const Use *u, const float *x, Input *input, int token) {
    const Matrix *m = u->matrix;
    if (m->kind == CODES) round_token(m, x, input, token);
    else if (m->kind == MIXED) round_mixed_token(m, x, input, token);
    else round_vq_token(m, x, input, token, uses_tables(u->tokens));
}

/* Round a token as the model does, but leave it in floats: for kinds whose own rounding is finer.
   */
static void round_floats(const Matrix *m, const float *from, float *to) {
    float step = step_of(m, from);
    for (int c = 0; c < m->columns; c++) to[c] = rintf(from[c] / step) * step;
}

static void round_piece(Team *team, const void *data, int first, int last) {
    const Use *u = data;
    const Matrix *m = u->matrix;
    for (int t = first; t < last; t++) {
        const float *x = u->x + (size_t)t * m->columns;
        if (m->kind != CODES && m->activation_top > 0) {
            float *rounded = team->shared->rounded + (size_t)t * m->columns;
            round_floats(m, x, rounded);
            x = rounded;
        }
        if (is_coded(m)) round_input(u, x, &team->shared->input, t);
    }
}

/* Return the activations in floats, rounded where the model rounds them. */
static const float *plain_or_rounded(Team *team, const Use *u) {
    if (u->matrix->activation_top <= 0) return activations(team, u);
    if (u->tokens > 1) return team->shared->rounded;
    Key key = key_of(u);
    if (!same_key(&team->own->rounded_key, &key)) {
        round_floats(u->matrix, activations(team, u), team->own->rounded);
        team->own->rounded_key = key;
    }
    return team->own->rounded;
}

/* Return the integers of the activations. One token is rounded by every thread that works with it,
   for itself: that takes less time than waiting for another thread to do it. */
static const Input *integers(Team *team, const Use *u) {
    if (u->tokens > 1) return &team->shared->input;
    Key key = key_of(u);
    if (!same_key(&team->own->key, &key)) {
        const float *x =
            u->matrix->kind == CODES ? activations(team, u) : plain_or_rounded(team, u);
        round_input(u, x, &team->own->input, 0);
        team->own->key = key;
    }
    return &team->own->input;
}

static void codes_piece(Team *team, const void *data, int first, int last) {
    const Use *u = data;
    const Input *input = integers(team, u);
    int two = planes_of(u->matrix) == 2;
    if (u->matrix->kind != CODES) {
        if (u->matrix->kind == MIXED) tiles_mixed(u, input, first, last);
        else tiles_vq(u, input, team->own->vq, first, last);
        return;
    }
    switch (u->matrix->bits) {
    case 2: two ? tiles_2_2(u, input, first, last) : tiles_2_1(u, input, first, last); break;
    case 4: two ? tiles_4_2(u, input, first, last) : tiles_4_1(u, input, first, last); break;
    default: two ? tiles_8_2(u, input, first, last) : tiles_8_1(u, input, first, last);
    }
}

static void floats_piece(Team *team, const void *data, int first, int last) {
    const Use *u = data;
    floats_product(u->matrix, plain_or_rounded(team, u), first, last, u->tokens, u->out, u->stride,
                   u->add_to);
}

/* Return the number of tiles per piece of work. A piece that looks up in tables has to fill them
   first, so there is one piece per thread; other pieces are small, to even out the threads. */
INLINE int tiles_in_piece(const Team *team, const Use *u, int tiles) {
    if (u->matrix->kind != VQ || !uses_tables(u->tokens)) return piece_of(team, tiles, 64);
    return (tiles + team->pool->threads - 1) / team->pool->threads;
}

/* Multiply, and return 1 when all of `out` is there; 0 when the round is over. All threads call it.
   */
static int product(Team *team, const Use *use) {
    const Matrix *m = use->matrix;
    if (use->tokens > 1 && (is_coded(m) || m->activation_top > 0)) {
        Key key = key_of(use), *held = is_coded(m) ? &team->key : &team->rounded_key;
        if (!same_key(held, &key) && !together(team, use->tokens, 1, round_piece, use)) return 0;
        *held = key;
    }
    if (m->kind == FLOATS)
        return together(team, m->rows, piece_of(team, m->rows, 512), floats_piece, use);
    return together(team, tiles_of(m), tiles_in_piece(team, use, tiles_of(m)), codes_piece, use);
}

#define PHASES 2 /* most phases of a product: rounding, then multiplying */

/* Reserve what a product with `tokens` tokens needs. Returns 0 when there is no memory. */
static int reserve_for(Pool *pool, const Matrix *m, int tokens) {
    for (int i = 0; i <= pool->threads; i++) {
        Worker *w = pool->workers + i;
        int own = i < pool->threads ? 1 : tokens;
        if (is_coded(m) && !reserve_input(&w->input, own, m->padded, m->groups)) return 0;
        if (m->kind == VQ && !reserve(&w->vq, &w->vq_bytes, vq_bytes(m))) return 0;
        if (m->kind != CODES && m->activation_top > 0
            && !reserve((void **)&w->rounded, &w->rounded_bytes, 4 * (size_t)own * m->columns))
            return 0;
    }
    return 1;
}
