/* Float formats, the exponential, and the vector unit: LANES rows at once, in AVX-512, AVX2 or
   plain C.

   The rest of the engine is written once, in terms of Ints and Floats: one 32-bit number per row.
   */

#pragma once
#include "layout.h"

#include <math.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));

INLINE f32x16 load16(const float *p) {
    f32x16 v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Return the sum of 16 lanes, added in one order on every processor. */
INLINE float sum16(f32x16 v) {
    float total = 0;
    for (int i = 0; i < 8; i++) total += v[i] + v[i + 8];
    return total;
}

/* Return the largest size among x (count). Without their sign, floats are ordered as their bit
   patterns are, so integer instructions do, which compare without branches. */
INLINE float largest_of(const float *x, int count) {
    i32x16 tops = {0};
    float sizes[16], top = 0;
    int c = 0;
    for (; c + 16 <= count; c += 16) {
        i32x16 size = (i32x16)load16(x + c) & 0x7fffffff, larger = size > tops;
        tops = (size & larger) | (tops & ~larger);
    }
    memcpy(sizes, &tops, sizeof sizes);
    for (int i = 0; i < 16; i++) top = sizes[i] > top ? sizes[i] : top;
    for (; c < count; c++) top = fabsf(x[c]) > top ? fabsf(x[c]) : top;
    return top;
}

/* Return the inner product of two vectors. One accumulator of 16 lanes fixes the order of the sum,
   which a compiler may not change without being told to. */
INLINE float dot_floats(const float *a, const float *b, int width) {
    f32x16 sum = {0};
    float total = 0;
    int i = 0;
    for (; i + 16 <= width; i += 16) sum += load16(a + i) * load16(b + i);
    for (; i < width; i++) total += a[i] * b[i];
    return total + sum16(sum);
}

INLINE float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023,
             bits;
    float value;
    if (exponent == 0) { /* zero or a subnormal number: a multiple of 2^-24 */
        value = (float)fraction * 0x1p-24f;
        memcpy(&bits, &value, 4);
        bits |= sign;
    } else {
        /* The biases are 127 and 15, which differ by 112; 31 stands for infinity and NaN. */
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
    /* A bfloat16 number is the upper half of a float32 one. */
    return (f32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16);
#elif defined(__AVX2__) && defined(__F16C__)
    f32x16 v;
    for (int half = 0; half < 2; half++) {
        __m128i raw = _mm_loadu_si128((const void *)(p + 8 * half));
        __m256 part = format == F16
                          ? _mm256_cvtph_ps(raw)
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

/* Return e^x to 2e-7 of itself: 2^n by its exponent bits, times a polynomial (the one of Cephes'
   expf) of what is left. There is no branch, so the compiler can turn loops over it into vector
   code. ln 2 is taken off in two parts, the first short enough that n times it is exact. */
INLINE float exponential(float x) {
    /* Beyond these limits 2^n leaves the exponent's 8 bits. */
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

/* ---- the vector unit: LANES rows at once ----------------------------------------------------- */

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define LANES 16
#define WIDE_BATCH 8
typedef __m512i Ints;
typedef __m512 Floats;
INLINE Ints zero_ints(void) { return _mm512_setzero_si512(); }
INLINE Floats zero_floats(void) { return _mm512_setzero_ps(); }
INLINE Ints load_codes(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE Ints part_of(Ints v, int shift, int bits) {
    return bits == 8 ? v
                     : _mm512_and_si512(_mm512_srli_epi16(v, shift),
                                        _mm512_set1_epi8((char)((1 << bits) - 1)));
}
INLINE Ints dot(Ints total, Ints codes, const int8_t *a, int bits) {
    (void)bits;
    int32_t four;
    memcpy(&four, a, 4);
    return _mm512_dpbusd_epi32(total, codes, _mm512_set1_epi32(four));
}
INLINE Ints load_ints(const int32_t *p) { return _mm512_loadu_si512(p); }
INLINE Floats load_floats(const float *p) { return _mm512_loadu_ps(p); }
/* Add the products of pairs of int16. */
INLINE Ints dot_pairs(Ints total, Ints a, Ints b) { return _mm512_dpwssd_epi32(total, a, b); }
INLINE Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
INLINE Ints shift_left_ints(Ints v, int bits) { return _mm512_slli_epi32(v, bits); }
/* There is no shift of bytes, so words are shifted; `merge` masks the bits that cross over. */
INLINE Ints shift_left(Ints v, int bits) { return _mm512_slli_epi16(v, bits); }
INLINE Ints shift_right(Ints v, int bits) { return bits ? _mm512_srli_epi16(v, bits) : v; }
/* Return a | (v & mask), the mask being the same for every byte. */
INLINE Ints merge(Ints a, Ints v, int mask) {
    return _mm512_ternarylogic_epi64(a, v, _mm512_set1_epi8((char)mask), 0xf8);
}
INLINE Ints all(int32_t v) { return _mm512_set1_epi32(v); }
INLINE Ints load_zeros(const uint8_t *p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p));
}
INLINE Ints minus_product(Ints total, Ints zero, int32_t sum) {
    return _mm512_sub_epi32(total, _mm512_mullo_epi32(zero, _mm512_set1_epi32(sum)));
}
INLINE Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
INLINE Floats all_floats(float v) { return _mm512_set1_ps(v); }
INLINE Floats times_plus(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Floats load_scales(const void *p, size_t i, int format) {
    return (Floats)load_as_float(p, i, format);
}
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
    return bits == 8 ? v
                     : _mm256_and_si256(_mm256_srli_epi16(v, shift),
                                        _mm256_set1_epi8((char)((1 << bits) - 1)));
}
/* maddubs adds two products of byte and int8 in int16, with saturation. Codes below 16 cannot reach
   it (2 * 15 * 128 < 2^15); whole bytes can, so they are widened to int16 first. */
INLINE Ints dot(Ints total, Ints codes, const int8_t *a, int bits) {
    int32_t four;
    memcpy(&four, a, 4);
    Ints x = _mm256_set1_epi32(four);
    if (bits < 8)
        return _mm256_add_epi32(
            total, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
    Ints even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)),
                                  _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
    Ints odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(x, 8));
    return _mm256_add_epi32(total, _mm256_add_epi32(even, odd));
}
INLINE Ints load_ints(const int32_t *p) { return _mm256_loadu_si256((const void *)p); }
INLINE Floats load_floats(const float *p) { return _mm256_loadu_ps(p); }
INLINE Ints dot_pairs(Ints total, Ints a, Ints b) {
    return _mm256_add_epi32(total, _mm256_madd_epi16(a, b));
}
INLINE Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
INLINE Ints shift_left_ints(Ints v, int bits) { return _mm256_slli_epi32(v, bits); }
INLINE Ints shift_left(Ints v, int bits) { return _mm256_slli_epi16(v, bits); }
INLINE Ints shift_right(Ints v, int bits) { return bits ? _mm256_srli_epi16(v, bits) : v; }
INLINE Ints merge(Ints a, Ints v, int mask) {
    return _mm256_or_si256(a, _mm256_and_si256(v, _mm256_set1_epi8((char)mask)));
}
INLINE Ints all(int32_t v) { return _mm256_set1_epi32(v); }
INLINE Ints load_zeros(const uint8_t *p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p));
}
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
    return total + (codes & 255) * a[0] + (codes >> 8 & 255) * a[1] + (codes >> 16 & 255) * a[2]
           + (codes >> 24 & 255) * a[3];
}
INLINE Ints load_ints(const int32_t *p) { return load_codes((const uint8_t *)p); }
INLINE Floats load_floats(const float *p) {
    Floats v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE Ints dot_pairs(Ints total, Ints a, Ints b) {
#if defined(__SSE2__)
    return total + (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return total + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}
INLINE Ints add(Ints a, Ints b) { return a + b; }
INLINE Ints shift_left_ints(Ints v, int bits) { return v << bits; }
INLINE Ints shift_left(Ints v, int bits) { return v << bits; }
INLINE Ints shift_right(Ints v, int bits) { return v >> bits; }
INLINE Ints merge(Ints a, Ints v, int mask) {
    return a | (v & (mask | mask << 8 | mask << 16 | mask << 24));
}
INLINE Ints all(int32_t v) { return (Ints){v, v, v, v}; }
INLINE Ints load_zeros(const uint8_t *p) { return (Ints){p[0], p[1], p[2], p[3]}; }
INLINE Ints minus_product(Ints total, Ints zero, int32_t sum) { return total - zero * sum; }
INLINE Floats to_floats(Ints v) {
    return (Floats){(float)v[0], (float)v[1], (float)v[2], (float)v[3]};
}
INLINE Floats all_floats(float v) { return (Floats){v, v, v, v}; }
INLINE Floats times_plus(Floats a, Floats b, Floats c) { return a * b + c; }
INLINE Floats load_scales(const void *p, size_t i, int format) {
    Floats v;
    for (int k = 0; k < 4; k++) v[k] = one_as_float(p, i + k, format);
    return v;
}
INLINE void put(float *out, Floats v) { memcpy(out, &v, sizeof v); }
#endif
