/* Vector-quantised matrices (kind VQ). An index of 8 bits names an entry of a codebook: `vector`
   neighbouring weights of a row. The columns of one index are a position. With two stages a second
   index names an entry of a second codebook, which is added to the first.

   How indices lie: (tiles, positions, stages, VQ_ROWS) bytes. A tile is 64 rows, so the indices of
   one position and stage are one cache line, a byte per row:

       tile 0   position 0   stage 0   [64 bytes]
                             stage 1   [64 bytes]     only with a residual codebook
                position 1   stage 0   [64 bytes]
                ...

   Within the line, row 16 k + 4 l + e stands at byte 16 l + 4 k + e (vq_place):

       byte   0  1  2  3    4  5  6  7    8  9 10 11   12 13 14 15   16 17 18 19   20 ...
       row    0  1  2  3   16 17 18 19   32 33 34 35   48 49 50 51    4  5  6  7   20 ...
              k = 0        k = 1         k = 2         k = 3
              '------------- 128-bit lane l = 0 ----------------'    '--- lane l = 1 ...

   Unpacking bytes to words and words to 32 bits works within 128-bit lanes: it leaves the bytes of
   one k, from all four lanes, in one register. In this order that register is the rows 16 k to
   16 k + 15 as they stand in the result, so nothing has to be sorted afterwards.

   Entries and activations become int16; activations have one step per block of positions. Then:

   - Few tokens, where the processor shuffles bytes in registers (tables). For the positions of one
     block, each thread computes a token's products with all 256 entries and keeps the upper 16 bits
     of each, as 256 low bytes and 256 high bytes: 512 bytes per position and stage, at most 16 KiB
     per block, which stay in the first-level cache. A row's product is then a look-up, of 64 rows
     at once, and one addition. Filling a table costs as much as multiplying 256 rows, so it pays
     only where more rows than that share it.
   - Otherwise (weights). The entries that 64 rows name are written out as int16 and multiplied:
     the work of writing them out is shared by all tokens.

   A pair is two neighbouring columns as two int16 in one int32, the first in the low half, because
   one instruction multiplies two pairs and adds both products. Each thread makes the tables or
   weights that it uses; threads share nothing but the activations of several tokens. */

#pragma once
#include "lanes.h"
#include "pool.h"

#define VQ_BLOCK 16         /* most positions that share a step of the activations */
#define VQ_BLOCK_COLUMNS 64 /* most columns of a block, except where one vector is longer */
/* The largest norm of a vector of integers. By Cauchy and Schwarz a sum of products is at most the
   product of two norms, and 46300^2 is below 2^31: 32-bit sums cannot overflow. */
#define VQ_NORM 46300.0f
#define VQ_RUN 32 /* most tiles whose sums are held at once: 8 KiB */

INLINE int vq_pairs(const Matrix *m) { return (m->vector + 1) / 2; }

INLINE int vq_positions(const Matrix *m) { return (m->columns + m->vector - 1) / m->vector; }

INLINE int vq_stages(const Matrix *m) { return m->bits > 8 ? 2 : 1; }

/* Return the positions of a block. */
INLINE int vq_block(const Matrix *m) {
    int fitting = VQ_BLOCK_COLUMNS / m->vector;
    return fitting > VQ_BLOCK ? VQ_BLOCK : fitting > 1 ? fitting : 1;
}

/* Return how many positions block `block` of the matrix has: the last one may be shorter. */
INLINE int vq_count(const Matrix *m, int block) {
    int left = vq_positions(m) - block * vq_block(m);
    return left < vq_block(m) ? left : vq_block(m);
}

/* Return the indices of a tile's block: (positions, stages, VQ_ROWS). */
INLINE const uint8_t *vq_indices(const Matrix *m, int tile, int block) {
    return m->codes
           + ((size_t)tile * vq_positions(m) + (size_t)block * vq_block(m)) * vq_stages(m)
                 * VQ_ROWS;
}

/* Return the byte of row `row` in a line of indices, see above. The mapping is its own inverse. */
INLINE int vq_place(int row) { return row % 16 / 4 * 16 + row / 16 * 4 + row % 4; }

/* Return the pairs of all codebooks. */
INLINE size_t vq_book(const Matrix *m) { return (size_t)vq_stages(m) * vq_pairs(m) * CENTROIDS; }

/* Return the bytes of a thread's memory: the codebooks as pairs, the same as planes of bytes, then
   a block's tables or weights, whichever are larger. */
INLINE size_t vq_bytes(const Matrix *m) {
    size_t weights = 4 * (size_t)vq_block(m) * vq_pairs(m) * VQ_ROWS;
    size_t tables = (size_t)vq_block(m) * vq_stages(m) * 2 * CENTROIDS;
    return 8 * vq_book(m) + (tables > weights ? tables : weights);
}

/* Return the largest norm that integers may have. With tables a sum is over one position: an entry
   times its activations, each of norm VQ_NORM at most. With weights a sum is over a block of b
   positions: the norm of b entries is sqrt(b) times the norm of one, so the fourth root of b is
   taken off the entries and off the block's activations alike. */
INLINE float most_norm(const Matrix *m, int tables) {
    return tables ? VQ_NORM : VQ_NORM / sqrtf(sqrtf((float)vq_block(m)));
}

/* Return the smallest step with which integers have at most the norm `most` and fit int16. norm,
   largest: the norm and the largest size of the floats. */
INLINE float vq_step(float norm, float most, float largest) {
    float step = norm / most > largest / 32767.0f ? norm / most : largest / 32767.0f;
    return step > 1e-35f ? step : 1;
}

/* Return the largest norm among the pieces of `length` values that x (count) is cut into. */
INLINE float largest_norm(const float *x, int count, int length) {
    float top = 0, sum;
    int first = 0;
    for (; first + length <= count; first += length) {
        sum = dot_floats(x + first, x + first, length);
        top = sum > top ? sum : top;
    }
    sum = dot_floats(x + first, x + first, count - first);
    return sqrtf(sum > top ? sum : top);
}

/* Round one token x (columns) to int16, laid out as (positions, pairs, 2), with one step per block.
   A vector of odd length ends with a zero, so that it is whole pairs; for even lengths the layout
   is the order of x, and a block is rounded in one run. */
static void round_vq_token(const Matrix *m, const float *x, Input *input, int token, int tables) {
    int16_t *to = (int16_t *)input->low + (size_t)token * m->padded;
    int vector = m->vector, even = vector % 2 == 0, most = vq_block(m) * vector,
        run = even ? most : vector;
    for (int block = 0; block < m->groups; block++, to += vq_block(m) * 2 * vq_pairs(m)) {
        int first = block * most, columns = m->columns - first < most ? m->columns - first : most;
        int length = tables ? vector : most;
        /* Vectors of 4 are the usual case: the constant lets the compiler unroll the loop. */
        float norm = length == 4 ? largest_norm(x + first, columns, 4)
                                 : largest_norm(x + first, columns, length);
        float step = vq_step(norm, most_norm(m, tables), largest_of(x + first, columns));
        input->steps[(size_t)token * m->groups + block] = step;
        for (int at = 0, place = 0; at < columns; at += run, place += run + !even) {
            int count = columns - at < run ? columns - at : run;
            float factor = 1 / step;
            for (int i = 0; i < count; i++)
                to[place + i] = (int16_t)(int32_t)rintf(x[first + at + i] * factor);
            for (int i = count; i < run + !even; i++) to[place + i] = 0;
        }
    }
}

/* Write the codebooks as pairs of int16, (stages, pairs, CENTROIDS); return the step they share.
   The entries vary fastest, so that a vector register holds 16 entries of one pair. */
static float make_book(const Matrix *m, int32_t *book, int tables) {
    int vector = m->vector, pairs = vq_pairs(m), stages = vq_stages(m);
    float norm = 0, largest = 0;
    for (int stage = 0; stage < stages; stage++) {
        const float *entries = m->codebook + (size_t)stage * vector * CENTROIDS;
        float squares[CENTROIDS] = {0};
        for (int i = 0; i < vector; i++)
            for (int k = 0; k < CENTROIDS; k++)
                squares[k] += entries[i * CENTROIDS + k] * entries[i * CENTROIDS + k];
        float own_norm = sqrtf(largest_of(squares, CENTROIDS));
        float own_largest = largest_of(entries, vector * CENTROIDS);
        /* A table is of one stage alone; a weight is the sum of an entry of each. */
        norm = tables ? (own_norm > norm ? own_norm : norm) : norm + own_norm;
        largest = tables ? (own_largest > largest ? own_largest : largest) : largest + own_largest;
    }
    float step = vq_step(norm, most_norm(m, tables), largest), factor = 1 / step;
    for (int i = 0; i < stages * pairs; i++) {
        int column = i % pairs * 2, has_second = column + 1 < vector;
        const float *low = m->codebook + (size_t)(i / pairs * vector + column) * CENTROIDS;
        const float *high = low + (has_second ? CENTROIDS : 0);
        uint32_t used = has_second ? 0xffff0000u : 0;
        for (int k = 0; k < CENTROIDS; k++)
            book[i * CENTROIDS + k] =
                (int32_t)(((uint32_t)(int32_t)rintf(high[k] * factor) << 16 & used)
                          | ((uint32_t)(int32_t)rintf(low[k] * factor) & 0xffff));
    }
    return step;
}

/* ---- few tokens: tables ---------------------------------------------------------------------- */

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
#define VQ_TABLE_TOKENS 7 /* with more tokens, writing the weights out once costs less */
/* Tiles whose indices are fetched ahead: a block's indices lie one tile apart, a stride that the
   hardware does not guess. */
#define VQ_AHEAD 4

/* Look 64 indices up in a table of 256 bytes. One shuffle chooses among 128 bytes by the lower 7
   bits of an index; `upper`, the highest bit of each, says which half of the table counts. */
INLINE __m512i look_up(const uint8_t *table, __m512i indices, __mmask64 upper) {
    __m512i low = _mm512_permutex2var_epi8(load_codes(table), indices, load_codes(table + 64));
    __m512i high =
        _mm512_permutex2var_epi8(load_codes(table + 128), indices, load_codes(table + 192));
    return _mm512_mask_blend_epi8(upper, low, high);
}

/* Write the upper 16 bits of a position's products with all entries, rounded: a plane of their low
   bytes, then one of their high bytes, since look_up takes bytes. book: (pairs, CENTROIDS); x:
   (pairs). planes: the shuffle that gathers bytes 2 and 3 of 32 integers. */
INLINE void fill_table(const int32_t *book, const int32_t *x, int pairs, __m512i planes,
                       uint8_t *table) {
    for (int k = 0; k < CENTROIDS; k += 64) {
        __m512i sums[4];
        for (int i = 0; i < 4; i++) sums[i] = all(1 << 15); /* half of 2^16: rounds */
        for (int p = 0; p < pairs; p++)
            for (int i = 0; i < 4; i++)
                sums[i] =
                    dot_pairs(sums[i], load_ints(book + p * CENTROIDS + k + 16 * i), all(x[p]));
        __m512i left = _mm512_permutex2var_epi8(sums[0], planes, sums[1]);
        __m512i right = _mm512_permutex2var_epi8(sums[2], planes, sums[3]);
        _mm512_store_si512(table + k, _mm512_inserti64x4(left, _mm512_castsi512_si256(right), 1));
        _mm512_store_si512(table + CENTROIDS + k, _mm512_shuffle_i64x2(left, right, 0xee));
    }
}

/* Add a tile's products with a block, times step, to sums (VQ_ROWS). indices: (count, VQ_ROWS);
   tables: (count, 2, CENTROIDS); later: indices to fetch ahead. Two positions at a time, because
   dot_pairs with ones adds two words into a 32-bit sum. */
INLINE void add_looked_up(const uint8_t *indices, const uint8_t *later, const uint8_t *tables,
                          int count, float step, float *sums) {
    __m512i total[4] = {zero_ints(), zero_ints(), zero_ints(), zero_ints()},
            one = _mm512_set1_epi16(1);
    for (int j = 0; j < count; j += 2) {
        __m512i words[2][2] = {{zero_ints(), zero_ints()}, {zero_ints(), zero_ints()}};
#pragma GCC unroll 2
        for (int k = 0; k < 2 && j + k < count; k++) {
            const uint8_t *table = tables + (j + k) * 2 * CENTROIDS;
            __m512i at = load_codes(indices + (j + k) * VQ_ROWS);
            __mmask64 upper = _mm512_movepi8_mask(at);
            __builtin_prefetch(later + (j + k) * VQ_ROWS, 0, 2);
            __m512i low = look_up(table, at, upper), high = look_up(table + CENTROIDS, at, upper);
            words[k][0] = _mm512_unpacklo_epi8(low, high);
            words[k][1] = _mm512_unpackhi_epi8(low, high);
        }
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            total[2 * k] =
                dot_pairs(total[2 * k], _mm512_unpacklo_epi16(words[0][k], words[1][k]), one);
            total[2 * k + 1] =
                dot_pairs(total[2 * k + 1], _mm512_unpackhi_epi16(words[0][k], words[1][k]), one);
        }
    }
    for (int k = 0; k < 4; k++)
        put(sums + 16 * k,
            times_plus(to_floats(total[k]), all_floats(step), load_floats(sums + 16 * k)));
}

/* Write one token's products with tiles first to first + tiles, before the scales of their rows:
   sums (tiles, VQ_ROWS). Tables are filled once per block and serve all these tiles. */
static void sum_tables(const Matrix *m, const Input *in, int token, const int32_t *book,
                       float book_step, uint8_t *tables, int first, int tiles, float *sums) {
    int pairs = vq_pairs(m), stages = vq_stages(m);
    const int32_t *x = (const int32_t *)in->low + (size_t)token * (m->padded / 2);
    uint8_t planes[64];
    for (int i = 0; i < 64; i++) planes[i] = (uint8_t)(i % 32 * 4 + 2 + i / 32);
    memset(sums, 0, sizeof *sums * (size_t)tiles * VQ_ROWS);
    for (int block = 0; block < m->groups; block++) {
        int count = vq_count(m, block) * stages;
        /* Tables hold products / 2^16. */
        float step = in->steps[(size_t)token * m->groups + block] * book_step * 65536.0f;
        for (int j = 0; j < count; j++)
            fill_table(book + j % stages * pairs * CENTROIDS,
                       x + (block * vq_block(m) + j / stages) * pairs, pairs, load_codes(planes),
                       tables + j * 2 * CENTROIDS);
        for (int t = 0, later = VQ_AHEAD; t < tiles; t++, later++)
            add_looked_up(vq_indices(m, first + t, block),
                          vq_indices(m, first + later % tiles, block + later / tiles), tables,
                          count, step, sums + t * VQ_ROWS);
    }
}
#else
#define VQ_TABLE_TOKENS 0
#endif

INLINE int uses_tables(int tokens) { return tokens <= VQ_TABLE_TOKENS; }

/* ---- more tokens: weights -------------------------------------------------------------------- */

#if VQ_TABLE_TOKENS
/* Write each byte of the codebooks' pairs as a plane of its own, (pairs, 4, CENTROIDS): expand_pair
   looks bytes up. */
static void split_book(const int32_t *book, size_t entries, uint8_t *planes) {
    for (size_t i = 0; i < entries; i += CENTROIDS)
        for (int byte = 0; byte < 4; byte++)
            for (int k = 0; k < CENTROIDS; k++)
                planes[4 * i + byte * CENTROIDS + k] = (uint8_t)(book[i + k] >> 8 * byte);
}

typedef uint8_t Entry;
#define ENTRIES (4 * CENTROIDS) /* bytes per pair */
/* Write the pairs that the indices of 64 rows name, or add them to what is there. The unpacking
   puts bytes 0 to 3 of a pair side by side again, and the rows in order. */
INLINE void expand_pair(const uint8_t *planes, const uint8_t *indices, int32_t *weights,
                        int add_to) {
    __m512i at = load_codes(indices), bytes[4], pairs[4];
    __mmask64 upper = _mm512_movepi8_mask(at);
    for (int i = 0; i < 4; i++) bytes[i] = look_up(planes + i * CENTROIDS, at, upper);
    __m512i first = _mm512_unpacklo_epi8(bytes[0], bytes[1]),
            second = _mm512_unpacklo_epi8(bytes[2], bytes[3]);
    pairs[0] = _mm512_unpacklo_epi16(first, second);
    pairs[1] = _mm512_unpackhi_epi16(first, second);
    first = _mm512_unpackhi_epi8(bytes[0], bytes[1]);
    second = _mm512_unpackhi_epi8(bytes[2], bytes[3]);
    pairs[2] = _mm512_unpacklo_epi16(first, second);
    pairs[3] = _mm512_unpackhi_epi16(first, second);
    for (int k = 0; k < 4; k++) {
        if (add_to) pairs[k] = _mm512_add_epi16(pairs[k], load_ints(weights + 16 * k));
        _mm512_storeu_si512(weights + 16 * k, pairs[k]);
    }
}
#else
typedef int32_t Entry;
#define ENTRIES CENTROIDS
/* Write the pairs that the indices of 64 rows name, or add them to what is there. The halves are
   added apart, so that no carry goes from the low one to the high one. */
INLINE void expand_pair(const int32_t *book, const uint8_t *indices, int32_t *weights, int add_to) {
#pragma GCC unroll 16
    for (int row = 0; row < VQ_ROWS; row += 4) {
        uint32_t four;
        memcpy(&four, indices + vq_place(row), 4);
        for (int e = 0; e < 4; e++, four >>= 8) {
            uint32_t a = (uint32_t)book[four & 255], b = add_to ? (uint32_t)weights[row + e] : 0;
            weights[row + e] =
                (int32_t)(((a & 0xffff0000u) + (b & 0xffff0000u)) | ((a + b) & 0xffff));
        }
    }
}
#endif

/* Write a tile's block as pairs of int16: (positions, pairs, VQ_ROWS), rows fastest, one per lane.
   */
INLINE void expand_block(const Matrix *m, const uint8_t *indices, const Entry *book, int count,
                         int32_t *weights) {
    int pairs = vq_pairs(m), stages = vq_stages(m);
    for (int j = 0; j < count; j++)
        for (int p = 0; p < pairs; p++, weights += VQ_ROWS)
            for (int stage = 0; stage < stages; stage++)
                expand_pair(book + (stage * pairs + p) * ENTRIES,
                            indices + (j * stages + stage) * VQ_ROWS, weights, stage > 0);
}

/* Add the products of a block's weights (pairs, VQ_ROWS) with `count` tokens to sums (count,
   VQ_ROWS). x: pairs of each token, `stride` apart; steps: `groups` apart. count is a constant at
   every call. Two registers of rows at a time: each broadcast activation is used twice. */
INLINE void multiply_block(const int32_t *weights, const int32_t *x, size_t stride, int pairs,
                           const float *steps, size_t groups, float book_step, float *sums,
                           int count) {
    for (int row = 0; row < VQ_ROWS; row += 2 * LANES) {
        Ints total[WIDE_BATCH][2];
        for (int t = 0; t < count; t++) total[t][0] = total[t][1] = zero_ints();
        for (int p = 0; p < pairs; p++) {
            Ints left = load_ints(weights + p * VQ_ROWS + row),
                 right = load_ints(weights + p * VQ_ROWS + row + LANES);
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

/* Write a tile's products with `tokens` (at most CHUNK) tokens, before the scales of its rows: sums
   (tokens, VQ_ROWS). */
static void sum_weights(const Matrix *m, const Input *in, int tokens, const Entry *book,
                        float book_step, int32_t *weights, int tile, float *sums) {
    size_t stride = (size_t)m->padded / 2, groups = (size_t)m->groups;
    memset(sums, 0, sizeof *sums * (size_t)tokens * VQ_ROWS);
    for (int block = 0; block < m->groups; block++) {
        int count = vq_count(m, block), pairs = count * vq_pairs(m), t = 0;
        const int32_t *x = (const int32_t *)in->low + block * vq_block(m) * vq_pairs(m);
        expand_block(m, vq_indices(m, tile, block), book, count, weights);
        for (; t + WIDE_BATCH <= tokens; t += WIDE_BATCH)
            multiply_block(weights, x + t * stride, stride, pairs, in->steps + t * groups + block,
                           groups, book_step, sums + t * VQ_ROWS, WIDE_BATCH);
        for (; t < tokens; t++)
            multiply_block(weights, x + t * stride, stride, pairs, in->steps + t * groups + block,
                           groups, book_step, sums + t * VQ_ROWS, 1);
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
