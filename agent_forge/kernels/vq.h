/* Vector-quantised matrices (kind VQ): an index names `vector` neighbouring weights of a row, an entry of a codebook; with
   two stages a second index adds an entry of a second codebook.

   Entries become int16, activations too, with a step a block of positions (a position: the columns of one index). Few
   tokens, where bytes are shuffled in registers: each thread makes a table of a token's products with all entries for the
   positions of a block, which stays in its first cache, and looks 64 rows up at once. Otherwise: a block of 64 rows is
   written out as int16 and multiplied. No thread reads what another one made, but the activations of several tokens. */

#pragma once
#include "lanes.h"
#include "pool.h"

#define VQ_BLOCK 16       /* positions that share a step of the activations */
#define VQ_TOP 16383      /* largest integer of a weight */
#define VQ_MOST 131000.0f /* most that sizes of activations may sum to: times VQ_TOP, with rounding, below 2^31 */
#define VQ_RUN 32         /* most tiles whose sums are held at once */

INLINE int vq_pairs(const Matrix *m) { return (m->vector + 1) / 2; }

INLINE int vq_positions(const Matrix *m) { return (m->columns + m->vector - 1) / m->vector; }

INLINE int vq_stages(const Matrix *m) { return m->bits > 8 ? 2 : 1; }

INLINE int vq_count(const Matrix *m, int block) {
    int left = vq_positions(m) - block * VQ_BLOCK;
    return left < VQ_BLOCK ? left : VQ_BLOCK;
}

/* Return the indices of a tile's block: (positions, stages, VQ_ROWS). */
INLINE const uint8_t *vq_indices(const Matrix *m, int tile, int block) {
    return m->codes + ((size_t)tile * vq_positions(m) + (size_t)block * VQ_BLOCK) * vq_stages(m) * VQ_ROWS;
}

/* Return where the byte shuffles leave row 16 k + 4 l + e of a tile: at 16 l + 4 k + e. The mapping is its own inverse. */
INLINE int vq_place(int row) { return row % 16 / 4 * 16 + row / 16 * 4 + row % 4; }

INLINE size_t vq_book(const Matrix *m) { return (size_t)vq_stages(m) * vq_pairs(m) * CENTROIDS; }

/* Return the bytes of a thread's memory: the codebooks as integers, twice, then a block's tables or weights. */
INLINE size_t vq_bytes(const Matrix *m) {
    size_t weights = 4 * (size_t)VQ_BLOCK * vq_pairs(m) * VQ_ROWS, tables = (size_t)VQ_BLOCK * vq_stages(m) * 2 * CENTROIDS;
    return 8 * vq_book(m) + (tables > weights ? tables : weights);
}

/* Round one token x (columns) to int16, laid out (positions, pairs, 2) with zeros beyond a vector, with a step a block.
   position_sums: sums of a position must fit 32 bits, else those of a whole block. */
static void round_vq_token(const Matrix *m, const float *x, Input *input, int token, int position_sums) {
    int32_t *to = (int32_t *)input->low + (size_t)token * (m->padded / 2);
    int vector = m->vector, pairs = vq_pairs(m);
    for (int block = 0; block < m->groups; block++) {
        int first = block * VQ_BLOCK * vector, count = vq_count(m, block);
        int columns = m->columns - first < count * vector ? m->columns - first : count * vector;
        float largest = largest_of(x + first, columns);
        float total = position_sums ? (float)vector * largest : sum_of_sizes(x + first, columns);
        float step = total / (VQ_MOST - (float)(VQ_BLOCK / 2 * vector)), least = largest / 32767.0f;
        step = step > least ? step : least;
        step = step > 1e-35f ? step : 1;
        input->steps[(size_t)token * m->groups + block] = step;
        for (int j = 0; j < count; j++)
            for (int p = 0; p < pairs; p++) {
                int at = j * vector + 2 * p, has_second = 2 * p + 1 < vector && at + 1 < columns;
                int32_t low = at < columns ? (int32_t)rintf(x[first + at] / step) : 0;
                int32_t high = has_second ? (int32_t)rintf(x[first + at + 1] / step) : 0;
                to[(block * VQ_BLOCK + j) * pairs + p] = (int32_t)((uint32_t)high << 16 | (low & 0xffff));
            }
    }
}

/* Write the codebooks as pairs of int16, (stages, pairs, CENTROIDS); return their step. */
static float make_book(const Matrix *m, int32_t *book) {
    int vector = m->vector, pairs = vq_pairs(m), stages = vq_stages(m);
    float top = 0;
    for (int stage = 0; stage < stages; stage++)
        top += largest_of(m->codebook + (size_t)stage * vector * CENTROIDS, vector * CENTROIDS);
    float step = top > 1e-35f ? top / VQ_TOP : 1, factor = 1 / step;
    for (int i = 0; i < stages * pairs; i++) {
        int column = i % pairs * 2, has_second = column + 1 < vector;
        const float *low = m->codebook + (size_t)(i / pairs * vector + column) * CENTROIDS;
        const float *high = low + (has_second ? CENTROIDS : 0);
        uint32_t used = has_second ? 0xffff0000u : 0;
        for (int k = 0; k < CENTROIDS; k++)
            book[i * CENTROIDS + k] = (int32_t)(((uint32_t)(int32_t)rintf(high[k] * factor) << 16 & used)
                                                | ((uint32_t)(int32_t)rintf(low[k] * factor) & 0xffff));
    }
    return step;
}

/* ---- few tokens: tables ---------------------------------------------------------------------------------------- */

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
#define VQ_TABLE_TOKENS 7 /* most tokens that are looked up one by one */

/* Look 64 indices up in a table of 256 bytes. */
INLINE __m512i look_up(const uint8_t *table, __m512i indices, __mmask64 upper) {
    __m512i low = _mm512_permutex2var_epi8(load_codes(table), indices, load_codes(table + 64));
    __m512i high = _mm512_permutex2var_epi8(load_codes(table + 128), indices, load_codes(table + 192));
    return _mm512_mask_blend_epi8(upper, low, high);
}

/* Write the upper 16 bits of a position's products with all entries: a plane of low bytes, then one of high bytes.
   book, x: (pairs, ...) pairs of int16. */
INLINE void fill_table(const int32_t *book, const int32_t *x, int pairs, __m512i planes, uint8_t *table) {
    for (int k = 0; k < CENTROIDS; k += 64) {
        __m512i sums[4];
        for (int i = 0; i < 4; i++) sums[i] = all(1 << 15); /* rounds */
        for (int p = 0; p < pairs; p++)
            for (int i = 0; i < 4; i++)
                sums[i] = dot_pairs(sums[i], load_ints(book + p * CENTROIDS + k + 16 * i), all(x[p]));
        __m512i left = _mm512_permutex2var_epi8(sums[0], planes, sums[1]);
        __m512i right = _mm512_permutex2var_epi8(sums[2], planes, sums[3]);
        _mm512_store_si512(table + k, _mm512_inserti64x4(left, _mm512_castsi512_si256(right), 1));
        _mm512_store_si512(table + CENTROIDS + k, _mm512_shuffle_i64x2(left, right, 0xee));
    }
}

/* Add a tile's products with a block, times step, to sums (VQ_ROWS). indices: (count, VQ_ROWS); tables: (count, 2, 256). */
INLINE void add_looked_up(const uint8_t *indices, const uint8_t *tables, int count, float step, float *sums) {
    __m512i total[4] = {zero_ints(), zero_ints(), zero_ints(), zero_ints()}, one = _mm512_set1_epi16(1);
    for (int j = 0; j < count; j += 2) {
        __m512i words[2][2] = {{zero_ints(), zero_ints()}, {zero_ints(), zero_ints()}};
#pragma GCC unroll 2
        for (int k = 0; k < 2 && j + k < count; k++) {
            const uint8_t *table = tables + (j + k) * 2 * CENTROIDS;
            __m512i at = load_codes(indices + (j + k) * VQ_ROWS);
            __mmask64 upper = _mm512_movepi8_mask(at);
            __m512i low = look_up(table, at, upper), high = look_up(table + CENTROIDS, at, upper);
            words[k][0] = _mm512_unpacklo_epi8(low, high);
            words[k][1] = _mm512_unpackhi_epi8(low, high);
        }
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            total[2 * k] = _mm512_dpwssd_epi32(total[2 * k], _mm512_unpacklo_epi16(words[0][k], words[1][k]), one);
            total[2 * k + 1] = _mm512_dpwssd_epi32(total[2 * k + 1], _mm512_unpackhi_epi16(words[0][k], words[1][k]), one);
        }
    }
    for (int k = 0; k < 4; k++)
        put(sums + 16 * k, times_plus(to_floats(total[k]), all_floats(step), load_floats(sums + 16 * k)));
}

/* Write one token's products with tiles first to first + tiles, before their row scales: sums (tiles, VQ_ROWS). */
static void sum_tables(const Matrix *m, const Input *in, int token, const int32_t *book, float book_step, uint8_t *tables,
                       int first, int tiles, float *sums) {
    int pairs = vq_pairs(m), stages = vq_stages(m);
    const int32_t *x = (const int32_t *)in->low + (size_t)token * (m->padded / 2);
    uint8_t planes[64];
    for (int i = 0; i < 64; i++) planes[i] = (uint8_t)(i % 32 * 4 + 2 + i / 32);
    memset(sums, 0, sizeof *sums * (size_t)tiles * VQ_ROWS);
    for (int block = 0; block < m->groups; block++) {
        int count = vq_count(m, block) * stages;
        float step = in->steps[(size_t)token * m->groups + block] * book_step * 65536.0f;
        for (int j = 0; j < count; j++)
            fill_table(book + j % stages * pairs * CENTROIDS, x + (block * VQ_BLOCK + j / stages) * pairs, pairs,
                       load_codes(planes), tables + j * 2 * CENTROIDS);
        for (int t = 0; t < tiles; t++)
            add_looked_up(vq_indices(m, first + t, block), tables, count, step, sums + t * VQ_ROWS);
    }
}
#else
#define VQ_TABLE_TOKENS 0
#endif

/* ---- more tokens: weights -------------------------------------------------------------------------------------- */

#if VQ_TABLE_TOKENS
/* Write the bytes of each pair of the codebooks as planes: (pairs, 4, CENTROIDS). */
static void split_book(const int32_t *book, size_t entries, uint8_t *planes) {
    for (size_t i = 0; i < entries; i += CENTROIDS)
        for (int byte = 0; byte < 4; byte++)
            for (int k = 0; k < CENTROIDS; k++) planes[4 * i + byte * CENTROIDS + k] = (uint8_t)(book[i + k] >> 8 * byte);
}

/* Write the pairs that the indices of 64 rows name. */
INLINE void look_pairs_up(const uint8_t *planes, const uint8_t *indices, __m512i *pairs) {
    __m512i at = load_codes(indices), bytes[4];
    __mmask64 upper = _mm512_movepi8_mask(at);
    for (int i = 0; i < 4; i++) bytes[i] = look_up(planes + i * CENTROIDS, at, upper);
    __m512i first = _mm512_unpacklo_epi8(bytes[0], bytes[1]), second = _mm512_unpacklo_epi8(bytes[2], bytes[3]);
    pairs[0] = _mm512_unpacklo_epi16(first, second);
    pairs[1] = _mm512_unpackhi_epi16(first, second);
    first = _mm512_unpackhi_epi8(bytes[0], bytes[1]);
    second = _mm512_unpackhi_epi8(bytes[2], bytes[3]);
    pairs[2] = _mm512_unpacklo_epi16(first, second);
    pairs[3] = _mm512_unpackhi_epi16(first, second);
}

typedef uint8_t Entry;
#define ENTRIES (4 * CENTROIDS) /* of a pair */
INLINE void expand_pair(const uint8_t *planes, const uint8_t *indices, int32_t *weights, int add_to) {
    __m512i pairs[4];
    look_pairs_up(planes, indices, pairs);
    for (int k = 0; k < 4; k++)
        _mm512_storeu_si512(weights + 16 * k, add_to ? _mm512_add_epi16(pairs[k], load_ints(weights + 16 * k)) : pairs[k]);
}
#else
typedef int32_t Entry;
#define ENTRIES CENTROIDS
/* Write the pairs that the indices of 64 rows name, or add them to what is there. */
INLINE void expand_pair(const int32_t *book, const uint8_t *indices, int32_t *weights, int add_to) {
#pragma GCC unroll 16
    for (int row = 0; row < VQ_ROWS; row += 4) {
        uint32_t four;
        memcpy(&four, indices + vq_place(row), 4);
        for (int e = 0; e < 4; e++, four >>= 8) {
            uint32_t a = (uint32_t)book[four & 255], b = add_to ? (uint32_t)weights[row + e] : 0;
            weights[row + e] = (int32_t)((((a & 0xffff0000u) + (b & 0xffff0000u))) | ((a + b) & 0xffff));
        }
    }
}
#endif

/* Write a tile's block as pairs of int16: (positions, pairs, VQ_ROWS). */
INLINE void expand_block(const Matrix *m, const uint8_t *indices, const Entry *book, int count, int32_t *weights) {
    int pairs = vq_pairs(m), stages = vq_stages(m);
    for (int j = 0; j < count; j++)
        for (int p = 0; p < pairs; p++, weights += VQ_ROWS)
            for (int stage = 0; stage < stages; stage++)
                expand_pair(book + (stage * pairs + p) * ENTRIES, indices + (j * stages + stage) * VQ_ROWS, weights, stage);
}

/* Add the products of a block's weights (pairs, VQ_ROWS) with `count` tokens to sums (count, VQ_ROWS).
   x: (count, ...) pairs, `stride` apart; steps: `groups` apart. count is a constant at every call. */
INLINE void multiply_block(const int32_t *weights, const int32_t *x, size_t stride, int pairs, const float *steps,
                           size_t groups, float book_step, float *sums, int count) {
    for (int row = 0; row < VQ_ROWS; row += 2 * LANES) {
        Ints total[WIDE_BATCH][2];
        for (int t = 0; t < count; t++) total[t][0] = total[t][1] = zero_ints();
        for (int p = 0; p < pairs; p++) {
            Ints left = load_ints(weights + p * VQ_ROWS + row), right = load_ints(weights + p * VQ_ROWS + row + LANES);
#pragma GCC unroll 8
            for (int t = 0; t < count; t++) {
                Ints pair = all(x[t * stride + p]);
                total[t][0] = dot_pairs(total[t][0], left, pair);
                total[t][1] = dot_pairs(total[t][1], right, pair);
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < count; t++) {
            Floats step = all_floats(steps[t * groups] * book_step);
            float *to = sums + t * VQ_ROWS + row;
            put(to, times_plus(to_floats(total[t][0]), step, load_floats(to)));
            put(to + LANES, times_plus(to_floats(total[t][1]), step, load_floats(to + LANES)));
        }
    }
}

/* Write a tile's products with `tokens` (at most CHUNK) tokens, before its row scales: sums (tokens, VQ_ROWS). */
static void sum_weights(const Matrix *m, const Input *in, int tokens, const Entry *book, float book_step,
                        int32_t *weights, int tile, float *sums) {
    size_t stride = (size_t)m->padded / 2, groups = (size_t)m->groups;
    memset(sums, 0, sizeof *sums * (size_t)tokens * VQ_ROWS);
    for (int block = 0; block < m->groups; block++) {
        int count = vq_count(m, block), pairs = count * vq_pairs(m), t = 0;
        const int32_t *x = (const int32_t *)in->low + block * VQ_BLOCK * vq_pairs(m);
        expand_block(m, vq_indices(m, tile, block), book, count, weights);
        for (; t + WIDE_BATCH <= tokens; t += WIDE_BATCH)
            multiply_block(weights, x + t * stride, stride, pairs, in->steps + t * groups + block, groups, book_step,
                           sums + t * VQ_ROWS, WIDE_BATCH);
        for (; t < tokens; t++)
            multiply_block(weights, x + t * stride, stride, pairs, in->steps + t * groups + block, groups, book_step,
                           sums + t * VQ_ROWS, 1);
    }
}

/* Copy row `row` of a matrix, as float32, to out (columns). */
static void take_vq_row(const Matrix *m, int row, float *out) {
    int stages = vq_stages(m);
    const uint8_t *indices = vq_indices(m, row / VQ_ROWS, 0) + vq_place(row % VQ_ROWS);
    for (int c = 0; c < m->columns; c++) {
        float value = 0;
        for (int stage = 0; stage < stages; stage++)
            value += m->codebook[(size_t)(stage * m->vector + c % m->vector) * CENTROIDS
                                 + indices[((size_t)(c / m->vector) * stages + stage) * VQ_ROWS]];
        out[c] = ((const float *)m->scales)[row] * value;
    }
}
