/* The decoder of a range coder with 32-bit words and 64-bit state, as constriction writes it.

   The coder's interval is `range` wide; `offset` is how far the stream's point lies above its lower
   end. A symbol takes the part of the interval that its share of 2^24 is, so a symbol's part begins
   at range / 2^24 times the cumulative share. When the interval falls below 2^32, both move up by one
   word, and the next word of the stream fills the point; after the last word, zeros.

   Which symbol comes next cannot be predicted, so the loops have no branch that depends on it. */

#include <stdint.h>

#define PRECISION 24
#define BUCKET_BITS 12 /* of a quantile: which symbol a bucket begins with is looked up */
#define BUCKETS (1 << BUCKET_BITS)
#define FEW 6 /* symbols that are found by comparing with every border, without a division */

typedef struct {
    uint64_t range, offset;
    const uint32_t *next, *end; /* *end may be read: a zero stands there */
} Decoder;

static inline void move_up(Decoder *d) {
    uint64_t low = !(d->range >> 32), shift = low << 5;
    d->range <<= shift;
    d->offset = (d->offset << shift) | (*d->next & -low);
    d->next += low & (d->next < d->end);
}

/* symbols: a constant where this is called, so that the inner loop is unrolled.
   The interval of every symbol is computed before it is known which one it is: one symbol then waits
   for the one before it by a product and a few selections, not by a chain of comparisons. */
static inline int decode_few(
    Decoder *state, const uint32_t *borders, int symbols, uint8_t *out, int64_t count) {
    Decoder d = *state;
    uint64_t wrong = 0, shares[FEW];
    for (int s = 0; s < symbols; s++) shares[s] = borders[s + 1] - borders[s];
    for (int64_t i = 0; i < count; i++) {
        uint64_t scale = d.range >> PRECISION, offset = d.offset;
        uint64_t symbol = 0, begin = 0, range = scale * shares[0];
        wrong |= offset >= scale << PRECISION;
        for (int s = 1; s < symbols; s++) {
            uint64_t above = -(uint64_t)(offset >= scale * borders[s]); /* all ones, or 0 */
            symbol -= above;
            begin += above & scale * shares[s - 1];
            range += above & scale * (shares[s] - shares[s - 1]);
        }
        d.range = range;
        d.offset = offset - begin;
        if (!(range >> 32)) move_up(&d); /* once in many symbols */
        out[i] = (uint8_t)symbol;
    }
    *state = d;
    return wrong != 0;
}

static int decode_many(
    Decoder *state, const uint32_t *borders, uint8_t *out, int64_t count) {
    uint16_t first[BUCKETS]; /* the symbol in whose part a bucket begins */
    for (int bucket = 0, symbol = 0; bucket < BUCKETS; bucket++) {
        uint32_t quantile = (uint32_t)bucket << (PRECISION - BUCKET_BITS);
        while (borders[symbol + 1] <= quantile) symbol++;
        first[bucket] = (uint16_t)symbol;
    }
    Decoder d = *state;
    int wrong = 0;
    for (int64_t i = 0; i < count; i++) {
        uint64_t scale = d.range >> PRECISION, quantile = d.offset / scale;
        if (quantile >> PRECISION) {
            wrong = 1;
            quantile = (1u << PRECISION) - 1;
        }
        int symbol = first[quantile >> (PRECISION - BUCKET_BITS)];
        while (borders[symbol + 1] <= quantile) symbol++;
        d.offset -= scale * borders[symbol];
        d.range = scale * (borders[symbol + 1] - borders[symbol]);
        move_up(&d);
        out[i] = (uint8_t)symbol;
    }
    *state = d;
    return wrong;
}

/* Decode `count` symbols. borders (symbols + 1): cumulative shares, from 0 to 2^24, rising.
   Returns 1 when the stream cannot be one of these shares, else 0; `out` is filled in both cases. */
int forge_range_decode(
    Decoder *state, const uint32_t *borders, int symbols, uint8_t *out, int64_t count) {
    switch (symbols <= FEW ? symbols : 0) {
    case 2: return decode_few(state, borders, 2, out, count);
    case 3: return decode_few(state, borders, 3, out, count);
    case 4: return decode_few(state, borders, 4, out, count);
    case 5: return decode_few(state, borders, 5, out, count);
    case 6: return decode_few(state, borders, 6, out, count);
    default: return decode_many(state, borders, out, count);
    }
}
