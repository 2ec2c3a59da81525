/* What Python hands over, which native.py mirrors field by field, and the constants of the layout.
   matrix.py fills it; product.h, mixed.h and vq.h draw how the codes of each kind lie. */

#pragma once
#include <stdint.h>
#include <stddef.h>

#define ROWS 16       /* rows of a tile */
#define VQ_ROWS 64    /* rows of a tile of a vector-quantised matrix */
#define CENTROIDS 256 /* entries of a codebook, padded */
#define COLUMNS 16    /* columns per step; a group is padded to a multiple of it */
#define CHUNK 32      /* most tokens of one forward call */
/* The largest activation integer where the model does not round: 127 * 256, so that the high plane,
   (value + 128) >> 8, still fits int8. */
#define FULL_TOP 32512
#define INLINE static inline __attribute__((always_inline))

enum { CODES, VQ, FLOATS, MIXED };
enum { F32, F16, BF16 };

/* Mirrors MatrixStruct in native.py. */
typedef struct {
    int32_t kind, bits, rows, columns, group, padded_group, groups, padded, activation_top,
        scale_kind, zero, vector;
    /* CODES, MIXED: tiles of codes, of `bits` bits each for CODES. VQ: (tiles, positions, bits / 8,
       VQ_ROWS) indices. FLOATS: row-major values of type `bits` (F32, F16, BF16). */
    const uint8_t *codes;
    /* CODES: (tiles, groups, ROWS) of type scale_kind. MIXED: (tiles, ROWS) float32. VQ, FLOATS:
       (rows) float32; NULL for FLOATS without scales. */
    const void *scales;
    const uint8_t *zeros;       /* CODES: (tiles, groups, ROWS); NULL where all are `zero` */
    const float *bias;          /* (rows), or NULL */
    const float *codebook;      /* VQ: (bits / 8, vector, CENTROIDS) */
    const float *column_scales; /* MIXED: (padded) in layout order, zeros in the padding */
    const int32_t *order;       /* MIXED: (padded) which column stands here; 0 in the padding */
    const uint8_t *widths;      /* MIXED: (tiles, groups) bits per code */
    const uint32_t *starts;     /* MIXED: (tiles) where each tile begins, in cache lines */
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
