/* Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011): random
   words as a function of a counter of 128 bits and a key of 64.  Integers alone: the same words on every
   machine.  A vector holds one word of several counters, each in 64 bits of which the upper half is no matter. */
#ifndef FASTBP_PHILOX_H
#define FASTBP_PHILOX_H

#include "simd.h"

enum { FB_PHILOX_BLOCKS = 16, FB_PHILOX_WORDS = 64, FB_PHILOX_LANES = FB_VECTOR_BYTES / 8, FB_PHILOX_ABREAST = 2 };
typedef uint64_t fb_words __attribute__((vector_size(FB_VECTOR_BYTES), aligned(8), may_alias));

/* The products of the lower halves, whole. */
FB_INLINE fb_words fb_mul_wide(fb_words a, uint32_t factor) {
#if defined(__AVX512F__)
    return (fb_words)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(factor));
#elif defined(__AVX2__)
    return (fb_words)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(factor));
#elif defined(__SSE2__)
    return (fb_words)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(factor));
#else
    return (a & UINT32_MAX) * factor;
#endif
}

/* words[16 w + b] = word w of the counter (16 line + b, count), in the lower half. */
static __attribute__((noinline, unused)) void fb_philox(uint64_t *words, uint64_t line, uint64_t key, uint64_t count) {
    enum { N = FB_PHILOX_ABREAST };
    for (int first = 0; first < FB_PHILOX_BLOCKS; first += N * FB_PHILOX_LANES) {
        fb_words x[N][4];
        fb_words key0 = (fb_words){0} + (key & UINT32_MAX), key1 = (fb_words){0} + (key >> 32);
        FB_UNROLL for (int i = 0; i < N; i++) {
            x[i][0] = (fb_words)fb_lane_f64 + (line * FB_PHILOX_BLOCKS + first + i * FB_PHILOX_LANES);
            x[i][1] = x[i][0] >> 32;
            x[i][2] = (fb_words){0} + count;
            x[i][3] = x[i][2] >> 32;
        }
        for (int round = 0; round < 10; round++) {
            FB_UNROLL for (int i = 0; i < N; i++) {
                fb_words m = fb_mul_wide(x[i][0], 0xD2511F53u), n = fb_mul_wide(x[i][2], 0xCD9E8D57u);
                x[i][0] = (n >> 32) ^ x[i][1] ^ key0;
                x[i][2] = (m >> 32) ^ x[i][3] ^ key1;
                x[i][1] = n;
                x[i][3] = m;
            }
            key0 += 0x9E3779B9u;
            key1 += 0xBB67AE85u;
        }
        FB_UNROLL for (int i = 0; i < N; i++)
            FB_UNROLL for (int w = 0; w < 4; w++)
                *(fb_words *)(words + FB_PHILOX_BLOCKS * w + first + i * FB_PHILOX_LANES) = x[i][w];
    }
}

typedef int64_t fb_counts __attribute__((vector_size(FB_VECTOR_BYTES), aligned(8), may_alias));

/* to[k] = scale where the lower half of words[k] is `least` or more, else 0. */
#define FB_FACTORS(S, T, I) \
    typedef I fb_part_##S __attribute__((vector_size(FB_PHILOX_LANES * sizeof(T)), aligned(sizeof(T)), may_alias)); \
    FB_INLINE void fb_factors_##S(T *to, const uint64_t *words, int64_t least, T scale) { \
        I bits; \
        memcpy(&bits, &scale, sizeof bits); \
        for (int k = 0; k < FB_PHILOX_WORDS; k += FB_PHILOX_LANES) { \
            fb_counts kept = (fb_counts)(*(const fb_words *)(words + k) & UINT32_MAX) >= least; \
            *(fb_part_##S *)(to + k) = __builtin_convertvector(kept, fb_part_##S) & bits; \
        } \
    }
FB_FACTORS(f32, float, int32_t)
FB_FACTORS(f64, double, int64_t)
#undef FB_FACTORS
#define fb_factors(to, words, least, scale) FB_PICK_POINTER(fb_factors, to)(to, words, least, scale)

#endif
