/* Packed inference on the CPU: products with coded matrices, and the whole forward pass of a Llama-family model.

   Weights stay as codes. A tile holds ROWS rows; four neighbouring columns of a row share a 32-bit lane, so one
   instruction multiplies four columns of 16 rows with four broadcast activations, and no lane is ever summed across.
   Activations are integers of each token: int8 where the model rounds them itself (the product is then exact), else
   16 bits in two planes of int8, high and low, which keeps the product within 1e-4 of the float one.
   Vector-quantised matrices (kind VQ) sum table entries: the table of a token holds its product with every centroid.

   One source, three builds: AVX-512 (VNNI, VBMI), AVX2, and plain C. Every thread computes whole rows, tokens or
   heads, so the result does not depend on the number of threads. Shapes: T tokens of a call, d hidden width. */

#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define ROWS 16        /* rows of a tile */
#define VQ_ROWS 64     /* rows of a tile of a vector-quantised matrix */
#define CENTROIDS 256  /* entries of a codebook, padded */
#define COLUMNS 16     /* columns of a step; groups are padded to it */
#define CHUNK 32       /* most tokens of one forward call */
#define FULL_TOP 32512 /* largest activation integer where the model does not round: 127 * 256 */
#define SPINS 20000    /* looks at a flag before a waiting thread gives way */
#define INLINE static inline __attribute__((always_inline))

enum { CODES, VQ, FLOATS };
enum { F32, F16, BF16 };

/* Mirrors MatrixStruct in native.py. */
typedef struct {
    int32_t kind, bits, rows, columns, group, padded_group, groups, padded, activation_top, scale_kind, zero, vector;
    const uint8_t *codes;  /* tiles of codes; FLOATS: row-major values of type `bits` (F32, F16, BF16) */
    const void *scales;    /* CODES: (tiles, groups, ROWS); VQ and FLOATS: (rows) float32, or NULL */
    const uint8_t *zeros;  /* CODES: (tiles, groups, ROWS), or NULL: `zero` everywhere */
    const float *bias;     /* (rows), or NULL */
    const float *codebook; /* VQ: (vector, CENTROIDS) */
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

/* A token's activations as integers: value = (256 * high + low) * step, or low * step with one plane. */
typedef struct {
    int8_t *low, *high;           /* (T, padded) */
    int32_t *low_sums, *high_sums; /* (T, groups) */
    float *steps;                 /* (T) */
    const float *source;          /* what it was made from, with the three numbers below: no need to make it twice */
    int32_t group, top, columns;
    size_t size_bytes;
} Input;

typedef struct {
    float *memory;  /* (CHUNK, widest) scratch of one thread */
    float *scores;  /* of one head with the tokens before */
    float *rounded; /* activations rounded by the model, for matrices that multiply floats */
    size_t memory_bytes, scores_bytes, rounded_bytes;
    Input input;
} Worker;

struct Pool;
typedef void (*Job)(struct Pool *pool, int thread, void *data);

typedef struct Pool {
    int threads;
    Worker *workers;
    pthread_t *handles;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    atomic_int round, arrived, phase, stop;
    Job job;
    void *data;
    float *table;     /* VQ: products with centroids, (columns / vector, CENTROIDS) float32, then the byte planes */
    size_t table_bytes;
    float *tops;      /* (threads) largest table entry that each thread made */
    float *memory;    /* activations that all threads share */
    size_t memory_bytes;
} Pool;

/* ---- threads --------------------------------------------------------------------------------------------------- */

INLINE void pause_briefly(int *spins) {
    if (++*spins < SPINS) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    } else {
        sched_yield();
    }
}

/* Wait until every thread of the pool is here. */
static void meet(Pool *pool) {
    if (pool->threads == 1) return;
    int phase = atomic_load_explicit(&pool->phase, memory_order_acquire), spins = 0;
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) == pool->threads - 1) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool->phase, phase + 1, memory_order_release);
        return;
    }
    while (atomic_load_explicit(&pool->phase, memory_order_acquire) == phase) pause_briefly(&spins);
}

typedef struct { Pool *pool; int thread; } Start;

static void *work(void *argument) {
    Start start = *(Start *)argument;
    Pool *pool = start.pool;
    int seen = 0;
    free(argument);
    for (;;) {
        int spins = 0;
        while (atomic_load_explicit(&pool->round, memory_order_acquire) == seen && spins < SPINS) pause_briefly(&spins);
        if (atomic_load(&pool->round) == seen) {
            pthread_mutex_lock(&pool->mutex);
            while (atomic_load(&pool->round) == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
            pthread_mutex_unlock(&pool->mutex);
        }
        seen = atomic_load(&pool->round);
        if (atomic_load(&pool->stop)) return NULL;
        pool->job(pool, start.thread, pool->data);
        meet(pool);
    }
}

static void begin_round(Pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->round, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

static void run(Pool *pool, Job job, void *data) {
    pool->job = job;
    pool->data = data;
    if (pool->threads > 1) begin_round(pool);
    job(pool, 0, data);
    meet(pool);
    pool->data = NULL;
}

void forge_pool_free(Pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, 1);
    if (pool->threads > 1) begin_round(pool);
    for (int i = 1; i < pool->threads; i++) pthread_join(pool->handles[i], NULL);
    for (int i = 0; pool->workers && i < pool->threads; i++) {
        free(pool->workers[i].memory);
        free(pool->workers[i].scores);
        free(pool->workers[i].rounded);
        free(pool->workers[i].input.low);
    }
    free(pool->workers);
    free(pool->handles);
    free(pool->table);
    free(pool->tops);
    free(pool->memory);
    free(pool);
}

Pool *forge_pool_new(int threads) {
    Pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->threads = 1;
    pool->workers = calloc(threads, sizeof *pool->workers);
    pool->handles = calloc(threads, sizeof *pool->handles);
    pool->tops = calloc(threads, sizeof *pool->tops);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    if (!pool->workers || !pool->handles || !pool->tops) {
        forge_pool_free(pool);
        return NULL;
    }
    for (int i = 1; i < threads; i++) {
        Start *start = malloc(sizeof *start);
        if (!start) break;
        *start = (Start){pool, i};
        if (pthread_create(&pool->handles[i], NULL, work, start)) {
            free(start);
            break;
        }
        pool->threads = i + 1;
    }
    return pool;
}

int forge_pool_threads(const Pool *pool) { return pool->threads; }

/* Grow a buffer to `wanted` bytes, aligned to 64; its content is not kept. Returns 0 when there is no memory. */
static int reserve(void **buffer, size_t *size, size_t wanted) {
    if (*size >= wanted && *buffer) return 1;
    free(*buffer);
    *buffer = NULL;
    *size = 0;
    if (posix_memalign(buffer, 64, (wanted + 63) / 64 * 64)) {
        *buffer = NULL;
        return 0;
    }
    *size = wanted;
    return 1;
}

/* Say which part of `count` items is this thread's. */
INLINE void share(int count, int thread, int threads, int *first, int *last) {
    *first = (int)((int64_t)count * thread / threads);
    *last = (int)((int64_t)count * (thread + 1) / threads);
}

/* ---- numbers --------------------------------------------------------------------------------------------------- */

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));

INLINE f32x16 load16(const float *p) {
    f32x16 v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store16(float *p, f32x16 v) { memcpy(p, &v, sizeof v); }

INLINE float sum16(f32x16 v) {
    float total = 0;
    for (int i = 0; i < 8; i++) total += v[i] + v[i + 8];
    return total;
}

INLINE float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023, bits;
    float value;
    if (exponent == 0) {
        value = (float)fraction * 0x1p-24f;
        memcpy(&bits, &value, 4);
        bits |= sign;
    } else {
        bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    }
    memcpy(&value, &bits, 4);
    return value;
}

/* Return 16 values of a float format as float32. */
INLINE f32x16 load_as_float(const void *base, size_t index, int format) {
    if (format == F32) return load16((const float *)base + index);
    const uint16_t *p = (const uint16_t *)base + index;
#if defined(__AVX512F__) && defined(__F16C__)
    __m256i raw = _mm256_loadu_si256((const void *)p);
    if (format == F16) return (f32x16)_mm512_cvtph_ps(raw);
    return (f32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16);
#elif defined(__AVX2__) && defined(__F16C__)
    f32x16 v;
    for (int half = 0; half < 2; half++) {
        __m128i raw = _mm_loadu_si128((const void *)(p + 8 * half));
        __m256 part = format == F16 ? _mm256_cvtph_ps(raw)
                                    : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
        memcpy((char *)&v + 32 * half, &part, 32);
    }
    return v;
#else
    f32x16 v;
    for (int i = 0; i < 16; i++) {
        if (format == F16) {
            v[i] = half_to_float(p[i]);
        } else {
            uint32_t bits = (uint32_t)p[i] << 16;
            memcpy((char *)&v + 4 * i, &bits, 4);
        }
    }
    return v;
#endif
}

INLINE float one_as_float(const void *base, size_t index, int format) {
    if (format == F32) return ((const float *)base)[index];
    uint16_t raw = ((const uint16_t *)base)[index];
    if (format == F16) return half_to_float(raw);
    uint32_t bits = (uint32_t)raw << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* e^x to 2e-7 of itself, without a branch, so that loops over it become vector code. Cephes' expf polynomial. */
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504088896341f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

/* ---- integers of activations ----------------------------------------------------------------------------------- */

INLINE int planes_of(const Matrix *m) { return m->activation_top > 0 && m->activation_top <= 127 ? 1 : 2; }

static int reserve_input(Input *input, int tokens, int padded, int groups) {
    size_t plane = ((size_t)tokens * padded + 63) / 64 * 64, sums = ((size_t)tokens * groups * 4 + 63) / 64 * 64;
    size_t wanted = 2 * plane + 2 * sums + 4 * (size_t)tokens;
    input->source = NULL;
    if (!reserve((void **)&input->low, &input->size_bytes, wanted)) return 0;
    input->high = input->low + plane;
    input->low_sums = (int32_t *)(input->high + plane);
    input->high_sums = (int32_t *)((char *)input->low_sums + sums);
    input->steps = (float *)((char *)input->high_sums + sums);
    return 1;
}

/* Return the step of a token's integers. */
static float step_of(const Matrix *m, const float *x) {
    float largest = 0;
    for (int c = 0; c < m->columns; c++) {
        float size = fabsf(x[c]);
        largest = size > largest ? size : largest;
    }
    if (m->activation_top > 0) return (largest < 1e-5f ? 1e-5f : largest) / (float)m->activation_top;
    return largest > 1e-35f ? largest / (float)FULL_TOP : 1;
}

/* Round one token x (columns) to integers, laid out in groups padded with zeros, and sum each group. */
static void round_token(const Matrix *m, const float *x, Input *input, int token) {
    int8_t *low = input->low + (size_t)token * m->padded, *high = input->high + (size_t)token * m->padded;
    int two = planes_of(m) == 2;
    float step = step_of(m, x);
    input->steps[token] = step;
    for (int g = 0; g < m->groups; g++) {
        int first = g * m->group, count = m->columns - first < m->group ? m->columns - first : m->group;
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

/* ---- the vector unit: LANES rows at once ----------------------------------------------------------------------- */

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define LANES 16
#define WIDE_BATCH 8
typedef __m512i Ints;
typedef __m512 Floats;
INLINE Ints zero_ints(void) { return _mm512_setzero_si512(); }
INLINE Floats zero_floats(void) { return _mm512_setzero_ps(); }
INLINE Ints load_codes(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE Ints part_of(Ints v, int shift, int bits) {
    return bits == 8 ? v : _mm512_and_si512(_mm512_srli_epi16(v, shift), _mm512_set1_epi8((char)((1 << bits) - 1)));
}
INLINE Ints dot(Ints total, Ints codes, const int8_t *a, int bits) {
    (void)bits;
    int32_t four;
    memcpy(&four, a, 4);
    return _mm512_dpbusd_epi32(total, codes, _mm512_set1_epi32(four));
}
INLINE Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
INLINE Ints all(int32_t v) { return _mm512_set1_epi32(v); }
INLINE Ints load_zeros(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p)); }
INLINE Ints minus_product(Ints total, Ints zero, int32_t sum) {
    return _mm512_sub_epi32(total, _mm512_mullo_epi32(zero, _mm512_set1_epi32(sum)));
}
INLINE Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
INLINE Floats all_floats(float v) { return _mm512_set1_ps(v); }
INLINE Floats times_plus(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Floats load_scales(const void *p, size_t i, int format) { return (Floats)load_as_float(p, i, format); }
INLINE void put(float *out, Floats v) { _mm512_storeu_ps(out, v); }
#elif defined(__AVX2__)
#define LANES 8
#define WIDE_BATCH 4
typedef __m256i Ints;
typedef __m256 Floats;
INLINE Ints zero_ints(void) { return _mm256_setzero_si256(); }
INLINE Floats zero_floats(void) { return _mm256_setzero_ps(); }
INLINE Ints load_codes(const uint8_t *p) { return _mm256_loadu_si256((const void *)p); }
INLINE Ints part_of(Ints v, int shift, int bits) {
    return bits == 8 ? v : _mm256_and_si256(_mm256_srli_epi16(v, shift), _mm256_set1_epi8((char)((1 << bits) - 1)));
}
/* Codes below 16 times int8 fit a pair in int16; bytes do not, so they are widened first. */
INLINE Ints dot(Ints total, Ints codes, const int8_t *a, int bits) {
    int32_t four;
    memcpy(&four, a, 4);
    Ints x = _mm256_set1_epi32(four);
    if (bits < 8)
        return _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
    Ints even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)),
                                  _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
    Ints odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(x, 8));
    return _mm256_add_epi32(total, _mm256_add_epi32(even, odd));
}
INLINE Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
INLINE Ints all(int32_t v) { return _mm256_set1_epi32(v); }
INLINE Ints load_zeros(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p)); }
INLINE Ints minus_product(Ints total, Ints zero, int32_t sum) {
    return _mm256_sub_epi32(total, _mm256_mullo_epi32(zero, _mm256_set1_epi32(sum)));
}
INLINE Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
INLINE Floats all_floats(float v) { return _mm256_set1_ps(v); }
INLINE Floats times_plus(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Floats load_scales(const void *p, size_t i, int format) {
    if (format == F32) return _mm256_loadu_ps((const float *)p + i);
    __m128i raw = _mm_loadu_si128((const void *)((const uint16_t *)p + i));
    if (format == F16) return _mm256_cvtph_ps(raw);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
INLINE void put(float *out, Floats v) { _mm256_storeu_ps(out, v); }
#else
#define LANES 4
#define WIDE_BATCH 4
typedef int32_t Ints __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));
INLINE Ints zero_ints(void) { return (Ints){0, 0, 0, 0}; }
INLINE Floats zero_floats(void) { return (Floats){0, 0, 0, 0}; }
INLINE Ints load_codes(const uint8_t *p) {
    Ints v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE Ints part_of(Ints v, int shift, int bits) {
    int32_t one = (1 << bits) - 1;
    return bits == 8 ? v : v >> shift & (one | one << 8 | one << 16 | one << 24);
}
INLINE Ints dot(Ints total, Ints codes, const int8_t *a, int bits) {
    (void)bits;
    return total + (codes & 255) * a[0] + (codes >> 8 & 255) * a[1] + (codes >> 16 & 255) * a[2] + (codes >> 24 & 255) * a[3];
}
INLINE Ints add(Ints a, Ints b) { return a + b; }
INLINE Ints all(int32_t v) { return (Ints){v, v, v, v}; }
INLINE Ints load_zeros(const uint8_t *p) { return (Ints){p[0], p[1], p[2], p[3]}; }
INLINE Ints minus_product(Ints total, Ints zero, int32_t sum) { return total - zero * sum; }
INLINE Floats to_floats(Ints v) { return (Floats){(float)v[0], (float)v[1], (float)v[2], (float)v[3]}; }
INLINE Floats all_floats(float v) { return (Floats){v, v, v, v}; }
INLINE Floats times_plus(Floats a, Floats b, Floats c) { return a * b + c; }
INLINE Floats load_scales(const void *p, size_t i, int format) {
    Floats v;
    for (int k = 0; k < 4; k++) v[k] = one_as_float(p, i + k, format);
    return v;
}
INLINE void put(float *out, Floats v) { memcpy(out, &v, sizeof v); }
#endif

/* ---- coded matrices -------------------------------------------------------------------------------------------- */

#define SPLIT_MAX 4

/* Write one tile's products with `count` tokens, scaled by the tokens' steps, into products (count, ROWS).
   bits, planes and count are constants at every call: the loops over them vanish. */
INLINE void tile_product(const Matrix *m, int tile, const Input *in, int token, float *products, int bits, int planes,
                         int count) {
    const int per_step = bits == 2 ? 1 : bits == 4 ? 2 : 4, parts = 8 / bits;
    /* One token: independent sums hide the latency of the multiply-add. */
    const int split = count > 1 ? 1 : planes == 1 ? 4 : 2;
    const size_t tile_bytes = (size_t)m->padded * ROWS * bits / 8;
    const int8_t *planes_of_input[2] = {in->low + (size_t)token * m->padded, in->high + (size_t)token * m->padded};
    const int32_t *sums[2] = {in->low_sums + (size_t)token * m->groups, in->high_sums + (size_t)token * m->groups};
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
                                *s = dot(*s, values, planes_of_input[p] + (size_t)t * m->padded + at, bits);
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
            put(products + (size_t)t * ROWS + half, times_plus(total[t], all_floats(in->steps[token + t]), zero_floats()));
    }
}

/* Put a tile's products into out (T, stride): bias added, rows beyond the matrix dropped; `add_to` keeps what is there. */
INLINE void write_tile(const Matrix *m, int first_row, int tile_rows, const float *products, int count, float *out,
                       size_t stride, int add_to) {
    int rows = m->rows - first_row < tile_rows ? m->rows - first_row : tile_rows;
    for (int t = 0; t < count; t++) {
        float *to = out + (size_t)t * stride + first_row;
        for (int r = 0; r < rows; r++) {
            float value = products[(size_t)t * tile_rows + r] + (m->bias ? m->bias[first_row + r] : 0);
            to[r] = add_to ? to[r] + value : value;
        }
    }
}

typedef struct {
    const Matrix *matrix;
    const Input *input;
    int tokens, add_to, first, last; /* tiles */
    float *out;
    size_t stride;
} Product;

#define TILES(NAME, BITS, PLANES)                                                                                     \
    static void NAME(const Product *p) {                                                                              \
        float products[WIDE_BATCH * ROWS];                                                                            \
        for (int tile = p->first; tile < p->last; tile++) {                                                           \
            int token = 0;                                                                                            \
            for (; token + WIDE_BATCH <= p->tokens; token += WIDE_BATCH) {                                            \
                tile_product(p->matrix, tile, p->input, token, products, BITS, PLANES, WIDE_BATCH);                   \
                write_tile(p->matrix, tile * ROWS, ROWS, products, WIDE_BATCH, p->out + token * p->stride, p->stride, \
                           p->add_to);                                                                                \
            }                                                                                                         \
            for (; token < p->tokens; token++) {                                                                      \
                tile_product(p->matrix, tile, p->input, token, products, BITS, PLANES, 1);                            \
                write_tile(p->matrix, tile * ROWS, ROWS, products, 1, p->out + token * p->stride, p->stride,          \
                           p->add_to);                                                                                \
            }                                                                                                         \
        }                                                                                                             \
    }
TILES(tiles_2_1, 2, 1)
TILES(tiles_2_2, 2, 2)
TILES(tiles_4_1, 4, 1)
TILES(tiles_4_2, 4, 2)
TILES(tiles_8_1, 8, 1)
TILES(tiles_8_2, 8, 2)

static void codes_product(const Product *p) {
    int two = planes_of(p->matrix) == 2;
    switch (p->matrix->bits) {
    case 2: two ? tiles_2_2(p) : tiles_2_1(p); break;
    case 4: two ? tiles_4_2(p) : tiles_4_1(p); break;
    default: two ? tiles_8_2(p) : tiles_8_1(p);
    }
}

/* Copy row `row` of a matrix, as float32, to out (columns). */
static void take_row(const Matrix *m, int row, float *out) {
    if (m->kind == FLOATS) {
        float scale = m->scales ? ((const float *)m->scales)[row] : 1;
        for (int c = 0; c < m->columns; c++)
            out[c] = scale * one_as_float(m->codes, (size_t)row * m->columns + c, m->bits);
        return;
    }
    if (m->kind == VQ) {
        int r = row % VQ_ROWS, positions = m->padded / m->vector;
        int place = r % 16 / 4 * 16 + r / 16 * 4 + r % 4;
        const uint8_t *indices = m->codes + (size_t)(row / VQ_ROWS) * positions * VQ_ROWS + place;
        for (int c = 0; c < m->columns; c++)
            out[c] = ((const float *)m->scales)[row]
                     * m->codebook[(size_t)(c % m->vector) * CENTROIDS + indices[(size_t)(c / m->vector) * VQ_ROWS]];
        return;
    }
    int tile = row / ROWS, lane = row % ROWS, parts = 8 / m->bits, mask = (1 << m->bits) - 1;
    const uint8_t *codes = m->codes + (size_t)tile * m->padded * ROWS * m->bits / 8 + 4 * lane;
    for (int c = 0; c < m->columns; c++) {
        int g = c / m->group, at = g * m->padded_group + c % m->group;
        size_t place = ((size_t)tile * m->groups + g) * ROWS + lane;
        int zero = m->zeros ? m->zeros[place] : m->zero, block = at / (4 * parts), part = at / 4 % parts;
        int code = codes[(size_t)block * 4 * ROWS + at % 4] >> (part * m->bits) & mask;
        out[c] = one_as_float(m->scales, place, m->scale_kind) * (float)(code - zero);
    }
}

/* ---- float matrices -------------------------------------------------------------------------------------------- */

INLINE void float_rows(const Matrix *m, const float *x, int first, int last, int tokens, float *out, size_t stride,
                       int add_to, int format) {
    for (int row = first; row < last; row++) {
        size_t base = (size_t)row * m->columns;
        float scale = m->scales ? ((const float *)m->scales)[row] : 1, bias = m->bias ? m->bias[row] : 0;
        for (int t = 0; t < tokens; t += 4) {
            int count = tokens - t < 4 ? tokens - t : 4, c = 0;
            f32x16 sums[4] = {{0}, {0}, {0}, {0}};
            for (; c + 16 <= m->columns; c += 16) {
                f32x16 w = load_as_float(m->codes, base + c, format);
                for (int k = 0; k < count; k++) sums[k] += w * load16(x + (size_t)(t + k) * m->columns + c);
            }
            for (int k = 0; k < count; k++) {
                float total = sum16(sums[k]);
                for (int rest = c; rest < m->columns; rest++)
                    total += one_as_float(m->codes, base + rest, format) * x[(size_t)(t + k) * m->columns + rest];
                float *to = out + (size_t)(t + k) * stride + row;
                *to = (add_to ? *to : 0) + total * scale + bias;
            }
        }
    }
}

static void floats_product(const Matrix *m, const float *x, int first, int last, int tokens, float *out, size_t stride,
                           int add_to) {
    if (m->bits == F32) float_rows(m, x, first, last, tokens, out, stride, add_to, F32);
    else if (m->bits == F16) float_rows(m, x, first, last, tokens, out, stride, add_to, F16);
    else float_rows(m, x, first, last, tokens, out, stride, add_to, BF16);
}

/* ---- vector-quantised matrices --------------------------------------------------------------------------------- */

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
#define BYTE_TABLES 1
/* Look 64 indices up in a table of 256 bytes. */
INLINE __m512i look_up(const __m512i *table, __m512i indices, __mmask64 upper) {
    __m512i low = _mm512_permutex2var_epi8(table[0], indices, table[1]);
    __m512i high = _mm512_permutex2var_epi8(table[2], indices, table[3]);
    return _mm512_mask_blend_epi8(upper, low, high);
}

/* Add up the table entries of 64 rows: sums[k][i] is row 16 k + i. table: (positions, high and low, 256) bytes. */
static void vq_tile(const uint8_t *indices, const uint8_t *table, int positions, int32_t *sums) {
    __m512i total[4] = {zero_ints(), zero_ints(), zero_ints(), zero_ints()}, one = _mm512_set1_epi16(1);
    __m512i words[2][2] = {{zero_ints(), zero_ints()}, {zero_ints(), zero_ints()}};
    for (int j = 0; j < positions; j += 2) {
        for (int k = 0; k < 2; k++) {
            if (j + k >= positions) {
                words[k][0] = words[k][1] = zero_ints();
                continue;
            }
            const __m512i *high = (const __m512i *)(table + (size_t)(j + k) * 2 * CENTROIDS), *low = high + 4;
            __m512i at = load_codes(indices + (size_t)(j + k) * VQ_ROWS);
            __mmask64 upper = _mm512_movepi8_mask(at);
            __m512i h = look_up(high, at, upper), l = look_up(low, at, upper);
            words[k][0] = _mm512_unpacklo_epi8(l, h);
            words[k][1] = _mm512_unpackhi_epi8(l, h);
        }
        for (int k = 0; k < 2; k++) {
            __m512i a = _mm512_unpacklo_epi16(words[0][k], words[1][k]);
            __m512i b = _mm512_unpackhi_epi16(words[0][k], words[1][k]);
            total[2 * k] = _mm512_dpwssd_epi32(total[2 * k], a, one);
            total[2 * k + 1] = _mm512_dpwssd_epi32(total[2 * k + 1], b, one);
        }
    }
    for (int k = 0; k < 4; k++) _mm512_storeu_si512(sums + 16 * k, total[k]);
}
#else
#define BYTE_TABLES 0
#endif

/* Fill this thread's positions of the table with products of x and all centroids; return the largest of them. */
static float fill_table(const Matrix *m, const float *x, int first, int last, float *table) {
    float top = 0;
    for (int j = first; j < last; j++) {
        float *entries = table + (size_t)j * CENTROIDS;
        for (int k = 0; k < CENTROIDS; k++) entries[k] = 0;
        for (int i = 0; i < m->vector && j * m->vector + i < m->columns; i++) {
            float value = x[j * m->vector + i];
            const float *centres = m->codebook + (size_t)i * CENTROIDS;
            for (int k = 0; k < CENTROIDS; k++) entries[k] += value * centres[k];
        }
        for (int k = 0; k < CENTROIDS; k++) top = fabsf(entries[k]) > top ? fabsf(entries[k]) : top;
    }
    return top;
}

static void round_table(const float *table, int first, int last, float step, uint8_t *bytes) {
    for (int j = first; j < last; j++)
        for (int k = 0; k < CENTROIDS; k++) {
            int32_t value = (int32_t)rintf(table[(size_t)j * CENTROIDS + k] / step);
            bytes[(size_t)j * 2 * CENTROIDS + k] = (uint8_t)(value >> 8);
            bytes[(size_t)j * 2 * CENTROIDS + CENTROIDS + k] = (uint8_t)value;
        }
}

static void vq_rows(const Matrix *m, int tile, const float *table, const uint8_t *bytes, float step, float *products) {
    int positions = m->padded / m->vector, rows = m->rows - tile * VQ_ROWS < VQ_ROWS ? m->rows - tile * VQ_ROWS : VQ_ROWS;
    const uint8_t *indices = m->codes + (size_t)tile * positions * VQ_ROWS;
    const float *scales = (const float *)m->scales + (size_t)tile * VQ_ROWS;
#if BYTE_TABLES
    int32_t sums[VQ_ROWS];
    (void)table;
    vq_tile(indices, bytes, positions, sums);
    for (int r = 0; r < rows; r++) products[r] = scales[r] * step * (float)sums[r];
#else
    float sums[VQ_ROWS] = {0};
    (void)bytes;
    (void)step;
    for (int j = 0; j < positions; j++)
        for (int place = 0; place < VQ_ROWS; place++)
            sums[place] += table[(size_t)j * CENTROIDS + indices[(size_t)j * VQ_ROWS + place]];
    for (int r = 0; r < rows; r++) products[r] = scales[r] * sums[r % 16 / 4 * 16 + r / 16 * 4 + r % 4];
#endif
}

static void vq_product(Pool *pool, int thread, const Matrix *m, const float *x, int tokens, float *out, size_t stride,
                       int add_to) {
    int positions = m->padded / m->vector, tiles = (m->rows + VQ_ROWS - 1) / VQ_ROWS, first, last, from, to;
    float *table = pool->table, products[VQ_ROWS];
    uint8_t *bytes = (uint8_t *)(table + (size_t)positions * CENTROIDS);
    share(positions, thread, pool->threads, &first, &last);
    share(tiles, thread, pool->threads, &from, &to);
    for (int t = 0; t < tokens; t++) {
        meet(pool); /* the table is no longer read */
        pool->tops[thread] = fill_table(m, x + (size_t)t * m->columns, first, last, table);
        meet(pool);
        float top = 0, step;
        for (int i = 0; i < pool->threads; i++) top = pool->tops[i] > top ? pool->tops[i] : top;
        step = top > 0 ? top / 32767.0f : 1;
        if (BYTE_TABLES) {
            round_table(table, first, last, step, bytes);
            meet(pool);
        }
        for (int tile = from; tile < to; tile++) {
            vq_rows(m, tile, table, bytes, step, products);
            write_tile(m, tile * VQ_ROWS, VQ_ROWS, products, 1, out + (size_t)t * stride, stride, add_to);
        }
    }
}

/* ---- any matrix ------------------------------------------------------------------------------------------------ */

/* Return the activations as the model rounds them, in floats. */
static const float *rounded(Pool *pool, int thread, const Matrix *m, const float *x, int tokens) {
    float *out = pool->workers[tokens == 1 ? thread : 0].rounded;
    int first = 0, last = 1;
    if (tokens > 1) {
        meet(pool); /* the last ones are no longer read */
        share(tokens, thread, pool->threads, &first, &last);
    }
    for (int t = first; t < last; t++) {
        const float *from = x + (size_t)t * m->columns;
        float *to = out + (size_t)t * m->columns, step = step_of(m, from);
        for (int c = 0; c < m->columns; c++) to[c] = rintf(from[c] / step) * step;
    }
    if (tokens > 1) meet(pool);
    return out;
}

/* Multiply x (T, columns) by a matrix into out (T, stride). Called by all threads; they must meet before out is read.
   With one token every thread holds its own copy of x and of its integers; with more they share those of thread 0. */
static void product(Pool *pool, int thread, const Matrix *m, const float *x, int tokens, float *out, size_t stride,
                    int add_to) {
    int first, last;
    if (m->kind != CODES && m->activation_top > 0) x = rounded(pool, thread, m, x, tokens);
    if (m->kind == VQ) {
        vq_product(pool, thread, m, x, tokens, out, stride, add_to);
        return;
    }
    if (m->kind == FLOATS) {
        share(m->rows, thread, pool->threads, &first, &last);
        floats_product(m, x, first, last, tokens, out, stride, add_to);
        return;
    }
    Input *input = &pool->workers[tokens == 1 ? thread : 0].input, *mine = &pool->workers[thread].input;
    if (mine->source != x || mine->group != m->group || mine->top != m->activation_top || mine->columns != m->columns) {
        if (tokens > 1) {
            meet(pool);
            share(tokens, thread, pool->threads, &first, &last);
        } else {
            first = 0, last = 1;
        }
        for (int t = first; t < last; t++) round_token(m, x + (size_t)t * m->columns, input, t);
        if (tokens > 1) meet(pool);
        mine->source = x, mine->group = m->group, mine->top = m->activation_top, mine->columns = m->columns;
    }
    share((m->rows + ROWS - 1) / ROWS, thread, pool->threads, &first, &last);
    Product p = {m, input, tokens, add_to, first, last, out, stride};
    codes_product(&p);
}

/* Forget which activations are held as integers: their memory is about to be written. */
INLINE void forget(Pool *pool, int thread) { pool->workers[thread].input.source = NULL; }

/* Reserve what a product with `tokens` tokens needs. Returns 0 when there is no memory. */
static int reserve_for(Pool *pool, const Matrix *m, int tokens) {
    if (m->kind == VQ) {
        size_t entries = (size_t)(m->padded / m->vector) * CENTROIDS;
        if (!reserve((void **)&pool->table, &pool->table_bytes, 6 * entries)) return 0;
    }
    for (int i = 0; i < pool->threads; i++) {
        Worker *w = pool->workers + i;
        if (m->kind == CODES && !reserve_input(&w->input, tokens, m->padded, m->groups)) return 0;
        if (m->kind != CODES && m->activation_top > 0
            && !reserve((void **)&w->rounded, &w->rounded_bytes, 4 * (size_t)tokens * m->columns))
            return 0;
    }
    return 1;
}

typedef struct { const Matrix *matrix; const float *x; int tokens; float *out; } Single;

static void single_job(Pool *pool, int thread, void *data) {
    Single *s = data;
    const Matrix *m = s->matrix;
    for (int t = 0; t < s->tokens; t += CHUNK) {
        int count = s->tokens - t < CHUNK ? s->tokens - t : CHUNK;
        forget(pool, thread);
        product(pool, thread, m, s->x + (size_t)t * m->columns, count, s->out + (size_t)t * m->rows, m->rows, 0);
        meet(pool);
    }
}

/* out (tokens, rows) = x (tokens, columns) times the matrix. Returns 0, or -1 when there is no memory. */
int forge_matmul(Pool *pool, const Matrix *m, const float *x, int tokens, float *out) {
    if (!reserve_for(pool, m, tokens < CHUNK ? tokens : CHUNK)) return -1;
    Single single = {m, x, tokens, out};
    run(pool, single_job, &single);
    return 0;
}

/* out (count, columns) = the rows named. */
void forge_rows(const Matrix *m, const int32_t *rows, int count, float *out) {
    for (int i = 0; i < count; i++) take_row(m, rows[i], out + (size_t)i * m->columns);
}

/* ---- a Llama-family model -------------------------------------------------------------------------------------- */

typedef struct {
    const Model *model;
    int tokens, wanted;
    const int32_t *ids, *positions, *sequences, *capacities, *wanted_tokens;
    float **keys, **values; /* a sequence's cache: (layers, kv_heads, capacity, head_size) */
    float *logits;          /* (wanted, vocabulary) */
    float *stream, *q, *k, *v, *mixed, *gate, *up, *turns; /* (T, ...) shared */
} Call;

static void rms_norm(const float *x, const float *weight, int width, float epsilon, float *out) {
    f32x16 squares = {0};
    float total = 0;
    int c = 0;
    for (; c + 16 <= width; c += 16) squares += load16(x + c) * load16(x + c);
    for (; c < width; c++) total += x[c] * x[c];
    float factor = 1.0f / sqrtf((total + sum16(squares)) / (float)width + epsilon);
    for (c = 0; c < width; c++) out[c] = x[c] * factor * weight[c];
}

/* Turn one head by its position: cosines (half), then sines (half). */
static void rotate(float *head, const float *turn, int half) {
    for (int i = 0; i < half; i++) {
        float left = head[i], right = head[i + half];
        head[i] = left * turn[i] - right * turn[half + i];
        head[i + half] = right * turn[i] + left * turn[half + i];
    }
}

static size_t cache_place(const Model *m, int layer, int head, int capacity) {
    return ((size_t)layer * m->kv_heads + head) * capacity * m->head_size;
}

/* Turn queries and keys, and store keys and values in the caches. Items: (token, query heads then key heads). */
static void place_in_cache(const Call *call, const Layer *layer, int index, int thread, int threads) {
    const Model *m = call->model;
    int heads = m->heads + m->kv_heads, size = m->head_size, first, last;
    share(call->tokens * heads, thread, threads, &first, &last);
    for (int item = first; item < last; item++) {
        int t = item / heads, head = item % heads, sequence = call->sequences[t], capacity = call->capacities[sequence];
        const float *turn = call->turns + (size_t)t * size;
        if (head < m->heads) {
            float *q = call->q + ((size_t)t * m->heads + head) * size;
            if (layer->q_norm) rms_norm(q, layer->q_norm, size, m->epsilon, q);
            rotate(q, turn, size / 2);
            continue;
        }
        head -= m->heads;
        float *k = call->k + ((size_t)t * m->kv_heads + head) * size;
        if (layer->k_norm) rms_norm(k, layer->k_norm, size, m->epsilon, k);
        rotate(k, turn, size / 2);
        size_t place = cache_place(m, index, head, capacity) + (size_t)call->positions[t] * size;
        memcpy(call->keys[sequence] + place, k, 4 * (size_t)size);
        memcpy(call->values[sequence] + place, call->v + ((size_t)t * m->kv_heads + head) * size, 4 * (size_t)size);
    }
}

INLINE float dot_floats(const float *a, const float *b, int width) {
    f32x16 sum = {0};
    float total = 0;
    int i = 0;
    for (; i + 16 <= width; i += 16) sum += load16(a + i) * load16(b + i);
    for (; i < width; i++) total += a[i] * b[i];
    return total + sum16(sum);
}

static void attend(const float *q, const float *keys, const float *values, int count, int size, float *scores, float *out) {
    float factor = 1.0f / sqrtf((float)size), top = -INFINITY, total = 0;
    for (int i = 0; i < count; i++) {
        scores[i] = factor * dot_floats(q, keys + (size_t)i * size, size);
        top = scores[i] > top ? scores[i] : top;
    }
    for (int i = 0; i < count; i++) scores[i] = exponential(scores[i] - top);
    for (int i = 0; i < count; i++) total += scores[i];
    for (int i = 0; i < size; i++) out[i] = 0;
    for (int i = 0; i < count; i++) {
        float weight = scores[i] / total;
        const float *value = values + (size_t)i * size;
        for (int c = 0; c < size; c++) out[c] += weight * value[c];
    }
}

static void attention(const Call *call, int index, float *scores, int thread, int threads) {
    const Model *m = call->model;
    int size = m->head_size, first, last;
    share(call->tokens * m->heads, thread, threads, &first, &last);
    for (int item = first; item < last; item++) {
        /* Heads vary slowest, so that a thread's tokens share the keys of its heads. */
        int head = item / call->tokens, t = item % call->tokens, sequence = call->sequences[t];
        size_t place = cache_place(m, index, head * m->kv_heads / m->heads, call->capacities[sequence]);
        size_t mine = ((size_t)t * m->heads + head) * size;
        attend(call->q + mine, call->keys[sequence] + place, call->values[sequence] + place, call->positions[t] + 1, size,
               scores, call->mixed + mine);
    }
}

/* Apply the norm to the stream of the tokens: into this thread's memory for one token, else into that of thread 0. */
static const float *normed(Pool *pool, int thread, const Call *call, const float *weight, const int32_t *picked, int count) {
    const Model *m = call->model;
    float *out = pool->workers[count == 1 ? thread : 0].memory;
    int first = 0, last = 1;
    forget(pool, thread);
    if (count > 1) share(count, thread, pool->threads, &first, &last);
    for (int t = first; t < last; t++)
        rms_norm(call->stream + (size_t)(picked ? picked[t] : t) * m->hidden, weight, m->hidden, m->epsilon,
                 out + (size_t)t * m->hidden);
    if (count > 1) meet(pool);
    return out;
}

/* silu(gate) * up, in the same memory as `normed`. */
static const float *gated(Pool *pool, int thread, const Call *call) {
    int width = call->model->inner, tokens = call->tokens, first = 0, last = 1;
    float *out = pool->workers[tokens == 1 ? thread : 0].memory;
    forget(pool, thread);
    if (tokens > 1) share(tokens, thread, pool->threads, &first, &last);
    for (int t = first; t < last; t++) {
        const float *gate = call->gate + (size_t)t * width, *up = call->up + (size_t)t * width;
        float *to = out + (size_t)t * width;
        for (int c = 0; c < width; c++) to[c] = gate[c] / (1.0f + exponential(-gate[c])) * up[c];
    }
    if (tokens > 1) meet(pool);
    return out;
}

static void layer_pass(Pool *pool, int thread, const Call *call, int index) {
    const Model *m = call->model;
    const Layer *layer = m->layer + index;
    int tokens = call->tokens;
    const float *x = normed(pool, thread, call, layer->norm_before, NULL, tokens);
    product(pool, thread, &layer->q, x, tokens, call->q, layer->q.rows, 0);
    product(pool, thread, &layer->k, x, tokens, call->k, layer->k.rows, 0);
    product(pool, thread, &layer->v, x, tokens, call->v, layer->v.rows, 0);
    meet(pool);
    place_in_cache(call, layer, index, thread, pool->threads);
    meet(pool);
    attention(call, index, pool->workers[thread].scores, thread, pool->threads);
    meet(pool);
    forget(pool, thread);
    product(pool, thread, &layer->o, call->mixed, tokens, call->stream, m->hidden, 1);
    meet(pool);
    x = normed(pool, thread, call, layer->norm_after, NULL, tokens);
    product(pool, thread, &layer->gate, x, tokens, call->gate, m->inner, 0);
    product(pool, thread, &layer->up, x, tokens, call->up, m->inner, 0);
    meet(pool);
    product(pool, thread, &layer->down, gated(pool, thread, call), tokens, call->stream, m->hidden, 1);
    meet(pool);
}

static void forward_job(Pool *pool, int thread, void *data) {
    const Call *call = data;
    const Model *m = call->model;
    int first, last, half = m->head_size / 2;
    share(call->tokens, thread, pool->threads, &first, &last);
    for (int t = first; t < last; t++) {
        float *turn = call->turns + (size_t)t * m->head_size;
        take_row(&m->embedding, call->ids[t], call->stream + (size_t)t * m->hidden);
        for (int i = 0; i < half; i++) {
            float angle = (float)call->positions[t] * m->frequencies[i];
            turn[i] = cosf(angle);
            turn[half + i] = sinf(angle);
        }
    }
    meet(pool);
    for (int index = 0; index < m->layers; index++) layer_pass(pool, thread, call, index);
    if (call->wanted) {
        const float *x = normed(pool, thread, call, m->final_norm, call->wanted_tokens, call->wanted);
        product(pool, thread, &m->head, x, call->wanted, call->logits, m->vocabulary, 0);
    }
}

/* Reserve what a call of `tokens` tokens needs, and point the call into it. Returns 0 when there is no memory. */
static int reserve_call(Pool *pool, Call *call, int longest) {
    const Model *m = call->model;
    size_t tokens = call->tokens, size = m->head_size, floats, widest = m->hidden > m->inner ? m->hidden : m->inner;
    const size_t widths[8] = {m->hidden, m->heads * size, m->kv_heads * size, m->kv_heads * size, m->heads * size,
                              m->inner, m->inner, size};
    float **places[8] = {&call->stream, &call->q, &call->k, &call->v, &call->mixed, &call->gate, &call->up, &call->turns};
    floats = 0;
    for (int i = 0; i < 8; i++) floats += (tokens * widths[i] + 15) / 16 * 16;
    if (!reserve((void **)&pool->memory, &pool->memory_bytes, 4 * floats)) return 0;
    float *next = pool->memory;
    for (int i = 0; i < 8; i++) {
        *places[i] = next;
        next += (tokens * widths[i] + 15) / 16 * 16;
    }
    for (int i = 0; i < pool->threads; i++) {
        Worker *w = pool->workers + i;
        if (!reserve((void **)&w->memory, &w->memory_bytes, 4 * tokens * widest)) return 0;
        if (!reserve((void **)&w->scores, &w->scores_bytes, 4 * (size_t)((longest + 255) / 256 * 256)))
            return 0;
    }
    return 1;
}

static int reserve_model(Pool *pool, const Model *m, int tokens) {
    int padded = 0, groups = 0;
    for (int i = 0; i <= m->layers; i++) {
        const Matrix *matrices = i < m->layers ? &m->layer[i].q : &m->head;
        for (int k = 0; k < (i < m->layers ? 7 : 1); k++) {
            const Matrix *one = matrices + k;
            if (one->kind != CODES && !reserve_for(pool, one, tokens)) return 0;
            if (one->kind == CODES) {
                padded = one->padded > padded ? one->padded : padded;
                groups = one->groups > groups ? one->groups : groups;
            }
        }
    }
    for (int i = 0; padded && i < pool->threads; i++)
        if (!reserve_input(&pool->workers[i].input, tokens, padded, groups)) return 0;
    return 1;
}

/* Run `tokens` (at most CHUNK) tokens through the model; logits (wanted, vocabulary) of the tokens named.
   Tokens of one sequence stand in order of their positions. Returns 0, -1 without memory, -2 on a wrong argument. */
int forge_forward(Pool *pool, const Model *model, int tokens, const int32_t *ids, const int32_t *positions,
                  const int32_t *sequences, float **keys, float **values, const int32_t *capacities,
                  const int32_t *wanted_tokens, int wanted, float *logits) {
    int longest = 0;
    if (tokens < 1 || tokens > CHUNK || wanted > tokens) return -2;
    for (int t = 0; t < tokens; t++) {
        if (ids[t] < 0 || ids[t] >= model->vocabulary || positions[t] < 0 || positions[t] >= capacities[sequences[t]])
            return -2;
        longest = positions[t] + 1 > longest ? positions[t] + 1 : longest;
    }
    Call call = {.model = model, .tokens = tokens, .wanted = wanted, .ids = ids, .positions = positions,
                 .sequences = sequences, .capacities = capacities, .wanted_tokens = wanted_tokens, .keys = keys,
                 .values = values, .logits = logits};
    if (!reserve_call(pool, &call, longest) || !reserve_model(pool, model, tokens)) return -1;
    run(pool, forward_job, &call);
    return 0;
}
