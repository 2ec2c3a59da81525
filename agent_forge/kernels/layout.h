/* What Python hands over (mirrored in native.py), and the constants of the layout. */

#pragma once
#include <stdint.h>
#include <stddef.h>

#define ROWS 16        /* rows of a tile */
#define VQ_ROWS 64     /* rows of a tile of a vector-quantised matrix */
#define CENTROIDS 256  /* entries of a codebook, padded */
#define COLUMNS 16     /* columns of a step; groups are padded to it */
#define CHUNK 32       /* most tokens of one forward call */
#define FULL_TOP 32512 /* largest activation integer where the model does not round: 127 * 256 */
#define INLINE static inline __attribute__((always_inline))

enum { CODES, VQ, FLOATS, MIXED };
enum { F32, F16, BF16 };

/* Mirrors MatrixStruct in native.py. */
typedef struct {
    int32_t kind, bits, rows, columns, group, padded_group, groups, padded, activation_top, scale_kind, zero, vector;
    const uint8_t *codes;  /* tiles of codes, of `bits` bits; FLOATS: row-major values of type `bits` (F32, F16, BF16);
                              VQ: (tiles, positions, bits / 8, VQ_ROWS) indices */
    const void *scales;    /* CODES: (tiles, groups, ROWS); MIXED: (tiles, ROWS) float32; VQ, FLOATS: (rows) float32 or NULL */
    const uint8_t *zeros;  /* CODES: (tiles, groups, ROWS), or NULL: `zero` everywhere */
    const float *bias;     /* (rows), or NULL */
    const float *codebook; /* VQ: (bits / 8, vector, CENTROIDS) */
    const float *column_scales; /* MIXED: (padded) of the columns in layout order, zeros in the padding */
    const int32_t *order;       /* MIXED: (padded) the column that stands there; padding: 0 */
    const uint8_t *widths;      /* MIXED: (tiles, groups) bits of a code */
    const uint32_t *starts;     /* MIXED: (tiles) where a tile begins, in cache lines */
} Matrix;

typedef struct {
    Matrix q, k, v, o, gate, up, down;
    const float *norm_before, *norm_after, *q_norm, *k_norm;
} Layer;

typedef struct {
    int32_t hidden, layers, heads, kv_heads, head_size, inner, vocabulary, unused;
    float epsilon, unused_float;
    Matrix embedding, head;
    const float *final_norm, *frequencies;
    const Layer *layer;
} Model;
