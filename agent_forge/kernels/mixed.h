/* Matrices of mixed widths (kind MIXED), which mixed.py lays out.

   A block is 16 rows (ROWS) and 64 columns (MIXED_GROUP) of width w, 0 to 8 bits: as many as its
   largest code needs. It is two steps of 32 columns, each of w cache lines (the last group may be
   one step). A code, plus 2^(w-1), is split into planes of 4, 2 and 1 bits, those that w is the sum
   of: 7 = 4 + 2 + 1. A plane of p bits takes p lines of the step; in a line every row has 4 bytes,
   as for kind CODES:

       w = 5, one step   line 0   4-bit plane   columns  0 -  3 and  4 -  7, in the low and high
                         line 1                 columns  8 - 11 and 12 - 15   halves of a byte
                         line 2                 columns 16 - 19 and 20 - 23
                         line 3                 columns 24 - 27 and 28 - 31
                         line 4   1-bit plane   columns  0 -  3 in bit 0, 4 - 7 in bit 1, ...

   The first plane holds the lowest bits of a code. Bytes of width 8 are stored whole. A shift and a
   mask per plane put the codes of 4 neighbouring columns into the lane of each row.

   out[row] = scale[row] * sum over groups of step_g * (sum of code * a)

   A column's own scale is multiplied into its activation before that is rounded, to 16 bits in two
   planes of int8, with one step per group. Columns are ordered by scale, so the columns of a group
   have scales of like size, and a group of small ones loses nothing to the others. */

#pragma once
#include "lanes.h"
#include "pool.h"

#define MIXED_GROUP 64
#define MIXED_STEP 32 /* columns per step: 4 bytes of single bits per row are one line */
#define LINE 64

INLINE int mixed_width(const Matrix *m, int group) {
    int left = m->padded - group * MIXED_GROUP;
    return left < MIXED_GROUP ? left : MIXED_GROUP;
}

/* Put one token x (columns) in the order of the layout, multiply it by the columns' scales, and
   round it to integers with one step per group. */
static void round_mixed_token(const Matrix *m, const float *x, Input *input, int token) {
    int8_t *low = input->low + (size_t)token * m->padded,
           *high = input->high + (size_t)token * m->padded;
    for (int g = 0; g < m->groups; g++) {
        int first = g * MIXED_GROUP, width = mixed_width(m, g);
        float scaled[MIXED_GROUP], largest = 0;
        int32_t sum = 0;
        for (int c = 0; c < width; c++)
            scaled[c] = x[m->order[first + c]] * m->column_scales[first + c];
        for (int c = 0; c < width; c++) {
            float size = fabsf(scaled[c]);
            largest = size > largest ? size : largest;
        }
        float step = largest > 1e-35f ? largest / (float)FULL_TOP : 1, factor = 1 / step;
        for (int c = 0; c < width; c++) {
            int32_t value = (int32_t)rintf(scaled[c] * factor), upper = (value + 128) >> 8;
            high[first + c] = (int8_t)upper;
            low[first + c] = (int8_t)(value - 256 * upper);
            sum += value;
        }
        input->low_sums[(size_t)token * m->groups + g] = sum;
        input->steps[(size_t)token * m->groups + g] = step;
    }
}

/* Take the digit of `bits` bits that begins at bit `from` of every byte of a line, and put it at
   bit `to` of the bytes of `digits`. */
INLINE Ints put_digits(Ints digits, Ints line, int from, int to, int bits) {
    return merge(digits, to > from ? shift_left(line, to - from) : shift_right(line, from - to),
                 ((1 << bits) - 1) << to);
}

/* Multiply a block's LANES rows with `count` tokens: totals[t] += step * products. bits and count
   are constants at every call. codes: the block, already at the rows of this half. The sums begin
   with what 2^(bits-1), added to every code, adds to the product, taken off. */
INLINE void mixed_block(const Matrix *m, const uint8_t *codes, const Input *in, int token,
                        int group, Floats *totals, int bits, int count) {
    const int fours = bits == 8 ? 0 : bits & 4, twos = bits == 8 ? 0 : bits & 2,
              ones = bits == 8 ? 0 : bits & 1;
    const int split = count > 1 ? 1 : 2;
    size_t first = (size_t)token * m->padded + (size_t)group * MIXED_GROUP,
           sums = (size_t)token * m->groups + group;
    const int8_t *low = in->low + first, *high = in->high + first;
    Ints sum[WIDE_BATCH][2][2];
    for (int t = 0; t < count; t++) {
        sum[t][0][0] = all(-(1 << (bits - 1)) * in->low_sums[sums + (size_t)t * m->groups]);
        sum[t][0][1] = sum[t][1][0] = sum[t][1][1] = zero_ints();
    }
    for (int steps = mixed_width(m, group) / MIXED_STEP; steps > 0;
         steps--, low += MIXED_STEP, high += MIXED_STEP) {
#pragma GCC unroll 8
        for (int block = 0; block < 8; block++) {
            Ints values = zero_ints();
            if (bits == 8) values = load_codes(codes + block * LINE);
            if (fours)
                values =
                    put_digits(values, load_codes(codes + block / 2 * LINE), block % 2 * 4, 0, 4);
            if (twos)
                values = put_digits(values, load_codes(codes + (fours + block / 4) * LINE),
                                    block % 4 * 2, fours, 2);
            if (ones)
                values = put_digits(values, load_codes(codes + (fours + twos) * LINE), block,
                                    fours + twos, 1);
#pragma GCC unroll 8
            for (int t = 0; t < count; t++) {
                size_t at = (size_t)t * m->padded + 4 * block;
                sum[t][0][block % split] = dot(sum[t][0][block % split], values, low + at, bits);
                sum[t][1][block % split] = dot(sum[t][1][block % split], values, high + at, bits);
            }
        }
        codes += bits * LINE;
    }
#pragma GCC unroll 8
    for (int t = 0; t < count; t++) {
        Ints whole =
            add(shift_left_ints(split > 1 ? add(sum[t][1][0], sum[t][1][1]) : sum[t][1][0], 8),
                split > 1 ? add(sum[t][0][0], sum[t][0][1]) : sum[t][0][0]);
        totals[t] = times_plus(to_floats(whole),
                               all_floats(in->steps[sums + (size_t)t * m->groups]), totals[t]);
    }
}

/* Write one tile's products with `count` tokens into products (count, ROWS). */
INLINE void mixed_tile(const Matrix *m, int tile, const Input *in, int token, float *products,
                       int count) {
    const uint8_t *widths = m->widths + (size_t)tile * m->groups;
    for (int half = 0; half < ROWS; half += LANES) {
        const uint8_t *codes = m->codes + (size_t)m->starts[tile] * LINE + 4 * half;
        Floats totals[WIDE_BATCH];
        for (int t = 0; t < count; t++) totals[t] = zero_floats();
        for (int g = 0; g < m->groups; g++) {
            switch (widths[g]) {
            case 0: break;
            case 1: mixed_block(m, codes, in, token, g, totals, 1, count); break;
            case 2: mixed_block(m, codes, in, token, g, totals, 2, count); break;
            case 3: mixed_block(m, codes, in, token, g, totals, 3, count); break;
            case 4: mixed_block(m, codes, in, token, g, totals, 4, count); break;
            case 5: mixed_block(m, codes, in, token, g, totals, 5, count); break;
            case 6: mixed_block(m, codes, in, token, g, totals, 6, count); break;
            case 7: mixed_block(m, codes, in, token, g, totals, 7, count); break;
            default: mixed_block(m, codes, in, token, g, totals, 8, count);
            }
            codes += (size_t)widths[g] * (mixed_width(m, g) / MIXED_STEP) * LINE;
        }
        Floats scale = load_scales(m->scales, (size_t)tile * ROWS + half, F32);
        for (int t = 0; t < count; t++)
            put(products + (size_t)t * ROWS + half, times_plus(totals[t], scale, zero_floats()));
    }
}

/* Copy row `row` of a matrix, as float32, to out (columns). */
static void take_mixed_row(const Matrix *m, int row, float *out) {
    int tile = row / ROWS, lane = row % ROWS;
    const uint8_t *codes = m->codes + (size_t)m->starts[tile] * LINE + 4 * lane;
    for (int c = 0; c < m->columns; c++) {
        int group = c / MIXED_GROUP, bits = m->widths[(size_t)tile * m->groups + group],
            block = c % MIXED_STEP / 4;
        const uint8_t *step = codes + (size_t)(c % MIXED_GROUP / MIXED_STEP) * bits * LINE + c % 4;
        int code = bits == 8 ? step[block * LINE] : 0, below = 0;
        for (int plane = 4; plane && bits < 8; plane /= 2) {
            if (!(bits & plane)) continue;
            int parts = 8 / plane;
            code |=
                (step[(below + block / parts) * LINE] >> block % parts * plane & ((1 << plane) - 1))
                << below;
            below += plane;
        }
        float value = bits ? (float)(code - (1 << (bits - 1))) : 0;
        out[m->order[c]] = ((const float *)m->scales)[row] * (m->column_scales[c] * value);
        if (c % MIXED_GROUP == MIXED_GROUP - 1)
            codes += (size_t)bits * (MIXED_GROUP / MIXED_STEP) * LINE;
    }
}
