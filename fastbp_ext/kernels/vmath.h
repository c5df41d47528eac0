/* exp, log, tanh and their kin on the vectors of simd.h.

   Written once for both types where the formulas agree (FB_VMATH below), over
   polynomials of their own; no gathers and no branches, so that a lane's result
   depends on nothing but its input.

   The first line of a function states the largest error found on any instruction
   set with flush-to-zero off: in ULP, for float (over every input), then for double
   (over a sample); `python -m bench.ulp` measures them.  With flush-to-zero on,
   results and inputs that are denormal may count as zero, and softplus of double
   below 2^-900 may be one ULP off; nothing else changes. */
#ifndef FASTBP_VMATH_H
#define FASTBP_VMATH_H

#include "simd.h"

/* Is fma_f32/fma_f64 fused?  If not, exact products are made by splitting. */
#if defined(__AVX512F__) || defined(__AVX2__) || defined(__aarch64__)
#define FB_HAS_FMA 1
#else
#define FB_HAS_FMA 0
#endif

/* ---- Small helpers ---- */

#if defined(__AVX512F__)
/* fb_scale(v, n) = v 2^n rounded once, n whole. */
FB_INLINE vec_f32 fb_scale_f32(vec_f32 v, vec_f32 n) { return (vec_f32)_mm512_scalef_ps((__m512)v, (__m512)n); }
FB_INLINE vec_f64 fb_scale_f64(vec_f64 v, vec_f64 n) { return (vec_f64)_mm512_scalef_pd((__m512d)v, (__m512d)n); }
#define fb_scale_normal_f32 fb_scale_f32
#define fb_scale_normal_f64 fb_scale_f64
/* x = 2^k m with m in [0.75, 1.5), for x > 0. */
FB_INLINE vec_f32 fb_split_f32(vec_f32 x, vec_f32 *k) {
    __m512 m = _mm512_getmant_ps((__m512)x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_zero);
    __m512 e = _mm512_getexp_ps((__m512)x), one = _mm512_set1_ps(1);
    *k = (vec_f32)_mm512_mask_add_ps(e, _mm512_cmp_ps_mask(m, one, _CMP_LT_OQ), e, one);
    return (vec_f32)m;
}
FB_INLINE vec_f64 fb_split_f64(vec_f64 x, vec_f64 *k) {
    __m512d m = _mm512_getmant_pd((__m512d)x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_zero);
    __m512d e = _mm512_getexp_pd((__m512d)x), one = _mm512_set1_pd(1);
    *k = (vec_f64)_mm512_mask_add_pd(e, _mm512_cmp_pd_mask(m, one, _CMP_LT_OQ), e, one);
    return (vec_f64)m;
}
/* y = log(x) put right where x is NaN, 0, negative or infinite. */
#define FB_LOG_CLASSES 0x03530422 /* from the top: -x NaN, +inf, -inf NaN, 0 -> -inf, NaN */
FB_INLINE vec_f32 fb_log_edges_f32(vec_f32 x, vec_f32 y) {
    return (vec_f32)_mm512_fixupimm_ps((__m512)y, (__m512)x, _mm512_set1_epi32(FB_LOG_CLASSES), 0);
}
FB_INLINE vec_f64 fb_log_edges_f64(vec_f64 x, vec_f64 y) {
    return (vec_f64)_mm512_fixupimm_pd((__m512d)y, (__m512d)x, _mm512_set1_epi64(FB_LOG_CLASSES), 0);
}
#else
typedef FB_VECTOR(uint32_t) fb_uint_f32;
typedef FB_VECTOR(uint64_t) fb_uint_f64;
/* BITS of the fraction, BIAS of the exponent, TINY the least normal number.  ROUND is
   1.5 2^BITS: a whole number added to it stands in its low bits. */
#define FB_PORTABLE_BITS(S, BITS, BIAS, ROUND, TINY) \
    FB_INLINE vec_##S fb_pow2_##S(vec_##S n) { /* 2^n, a normal number */ \
        return (vec_##S)((int_##S)(n + splat_##S(ROUND + BIAS)) << BITS); \
    } \
    FB_INLINE vec_##S fb_scale_##S(vec_##S v, vec_##S n) { /* in two steps, of which only the last may round */ \
        vec_##S half = (n * splat_##S(0.5) + splat_##S(ROUND)) - splat_##S(ROUND); \
        return v * fb_pow2_##S(half) * fb_pow2_##S(n - half); \
    } \
    FB_INLINE vec_##S fb_scale_normal_##S(vec_##S v, vec_##S n) { /* in one: next to nothing where it is denormal */ \
        return v * fb_pow2_##S(atleast_##S(n, splat_##S(1 - BIAS))); \
    } \
    FB_INLINE vec_##S fb_split_##S(vec_##S x, vec_##S *k) { \
        mask_##S small = lt_##S(x, splat_##S(TINY)); \
        fb_uint_##S one = (fb_uint_##S)splat_##S(1), round = (fb_uint_##S)splat_##S(ROUND); \
        fb_uint_##S bits = (fb_uint_##S)select_##S(small, x * splat_##S(ROUND / 1.5), x); \
        fb_uint_##S e = (bits - (fb_uint_##S)splat_##S(0.75) + one) >> BITS; /* k + BIAS */ \
        *k = (vec_##S)(e + round) - (splat_##S(ROUND + BIAS) + select_##S(small, splat_##S(BITS), splat_##S(0))); \
        return (vec_##S)(bits - ((e << BITS) - one)); \
    } \
    FB_INLINE vec_##S fb_log_edges_##S(vec_##S x, vec_##S y) { \
        y = select_##S(lt_##S(x, splat_##S(INFINITY)), y, x); \
        y = select_##S(lt_##S(x, splat_##S(0)), splat_##S(NAN), y); \
        return select_##S(eq_##S(x, splat_##S(0)), splat_##S(-INFINITY), y); \
    }
FB_PORTABLE_BITS(f32, 23, 127, 0x1.8p23, 0x1p-126)
FB_PORTABLE_BITS(f64, 52, 1023, 0x1.8p52, 0x1p-1022)
#undef FB_PORTABLE_BITS
#endif

/* Polynomial c[0] + c[1] x + ... of n terms as E(x^2) + x O(x^2): two short chains, not one long.
   fb_poly_steady: the first two by Horner's rule, for when E and x O would cancel. */
#define FB_POLYNOMIAL(S, T) \
    FB_INLINE vec_##S fb_poly_##S(vec_##S x, const T *c, int n) { \
        vec_##S x2 = x * x, p = splat_##S(c[n - 1]), q = splat_##S(c[n - 2]); \
        _Pragma("GCC unroll 32") \
        for (int i = n - 3; i > 0; i -= 2) { \
            p = fma_##S(p, x2, splat_##S(c[i])); \
            q = fma_##S(q, x2, splat_##S(c[i - 1])); \
        } \
        if (n % 2 == 0) return fma_##S(p, x, q); /* p holds the odd powers */ \
        return fma_##S(q, x, fma_##S(p, x2, splat_##S(c[0]))); \
    } \
    FB_INLINE vec_##S fb_poly_steady_##S(vec_##S x, const T *c, int n) { \
        vec_##S p = fb_poly_##S(x, c + 2, n - 2); \
        return fma_##S(fma_##S(p, x, splat_##S(c[1])), x, splat_##S(c[0])); \
    }
FB_POLYNOMIAL(f32, float)
FB_POLYNOMIAL(f64, double)
#undef FB_POLYNOMIAL
#define FB_COUNT(table) ((int)(sizeof(table) / sizeof(table[0])))
#define FB_POLY(S, x, table) fb_poly_##S(x, table, FB_COUNT(table))
#define FB_POLY_STEADY(S, x, table) fb_poly_steady_##S(x, table, FB_COUNT(table))

/* Error of a product: a b - p exactly, where p is a * b as rounded. */
#define FB_EXACT(S, LOW) \
    FB_INLINE vec_##S fb_mul_error_##S(vec_##S a, vec_##S b, vec_##S p) { \
        if (FB_HAS_FMA) return fma_##S(a, b, -p); \
        vec_##S a1 = (vec_##S)((int_##S)a & ~(int_##S){0} << LOW), a0 = a - a1; \
        vec_##S b1 = (vec_##S)((int_##S)b & ~(int_##S){0} << LOW), b0 = b - b1; \
        return ((a1 * b1 - p) + a1 * b0 + a0 * b1) + a0 * b0; \
    } \
    /* c - a b, the product not rounded (where c is close to it). */ \
    FB_INLINE vec_##S fb_less_##S(vec_##S c, vec_##S a, vec_##S b) { \
        if (FB_HAS_FMA) return fma_##S(-a, b, c); \
        vec_##S p = a * b; \
        return (c - p) - fb_mul_error_##S(a, b, p); \
    } \
    /* x + x p for small x; unfused, x p by itself might be flushed to 0: scaled up. */ \
    FB_INLINE vec_##S fb_add_part_##S(vec_##S x, vec_##S p) { \
        if (FB_HAS_FMA) return fma_##S(x, p, x); \
        vec_##S up = x * splat_##S(0x1p60); \
        return (up * p + up) * splat_##S(0x1p-60); \
    } \
    /* (nh + nl) / (dh + dl) to half an ULP or little more. */ \
    FB_INLINE vec_##S fb_divide_##S(vec_##S nh, vec_##S nl, vec_##S dh, vec_##S dl) { \
        vec_##S inverse = splat_##S(1) / dh, y = nh * inverse; \
        return fma_##S(fb_less_##S(nh, y, dh) + (nl - y * dl), inverse, y); \
    }
FB_EXACT(f32, 12)
FB_EXACT(f64, 27)
#undef FB_EXACT

/* A float vector as two double vectors, and back. */
#if defined(__AVX512F__)
FB_INLINE void fb_widen(vec_f32 x, vec_f64 *low, vec_f64 *high) {
    *low = (vec_f64)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)x));
    *high = (vec_f64)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)x, 1));
}
FB_INLINE vec_f32 fb_narrow(vec_f64 low, vec_f64 high) {
    __m512 x = _mm512_castps256_ps512(_mm512_cvtpd_ps((__m512d)low));
    return (vec_f32)_mm512_insertf32x8(x, _mm512_cvtpd_ps((__m512d)high), 1);
}
#elif defined(__AVX2__)
FB_INLINE void fb_widen(vec_f32 x, vec_f64 *low, vec_f64 *high) {
    *low = (vec_f64)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)x));
    *high = (vec_f64)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)x, 1));
}
FB_INLINE vec_f32 fb_narrow(vec_f64 low, vec_f64 high) {
    return (vec_f32)_mm256_set_m128(_mm256_cvtpd_ps((__m256d)high), _mm256_cvtpd_ps((__m256d)low));
}
#elif defined(__SSE2__)
FB_INLINE void fb_widen(vec_f32 x, vec_f64 *low, vec_f64 *high) {
    *low = (vec_f64)_mm_cvtps_pd((__m128)x);
    *high = (vec_f64)_mm_cvtps_pd(_mm_movehl_ps((__m128)x, (__m128)x));
}
FB_INLINE vec_f32 fb_narrow(vec_f64 low, vec_f64 high) {
    return (vec_f32)_mm_movelh_ps(_mm_cvtpd_ps((__m128d)low), _mm_cvtpd_ps((__m128d)high));
}
#else
typedef float fb_half_f32 __attribute__((vector_size(FB_VECTOR_BYTES / 2)));
FB_INLINE void fb_widen(vec_f32 x, vec_f64 *low, vec_f64 *high) {
    fb_half_f32 half[2];
    memcpy(half, &x, sizeof x);
    *low = __builtin_convertvector(half[0], vec_f64);
    *high = __builtin_convertvector(half[1], vec_f64);
}
FB_INLINE vec_f32 fb_narrow(vec_f64 low, vec_f64 high) {
    fb_half_f32 half[2] = {__builtin_convertvector(low, fb_half_f32), __builtin_convertvector(high, fb_half_f32)};
    vec_f32 x;
    memcpy(&x, half, sizeof x);
    return x;
}
#endif

/* ---- Coefficients: minimax polynomials, by Remez exchange in 40 digits ---- */

/* (e^r - 1 - r) / r^2 on |r| <= 0.3475; error 2^-28.0 */
static const float FB_EXP_f32[] = {
    0x1.fffffcp-2f, 0x1.55548ap-3f, 0x1.5558a6p-5f, 0x1.123e6ep-7f, 0x1.6a3452p-10f,
};
/* (e^r - 1 - r) / r^2 on |r| <= 0.3475; error 2^-57.9 */
static const double FB_EXP_f64[] = {
    0x1.000000000000ap-1, 0x1.55555555554f7p-3, 0x1.555555555070ap-5, 0x1.111111112868cp-7, 0x1.6c16c18483a64p-10,
    0x1.a01a0127826b8p-13, 0x1.a01999070c12ep-16, 0x1.71df29d0166bbp-19, 0x1.28ae725fd25adp-22, 0x1.ad7b46a7fb161p-26,
};
/* the same, for float results worked out in double; error 2^-28.3 */
static const double FB_EXP_SHORT[] = {
    0x1.fffffb88b35bep-2, 0x1.55548f5066f76p-3, 0x1.5558fb1a5d52ap-5, 0x1.123b68a28f1bdp-7, 0x1.6a219a6afbb22p-10,
};
/* (log(1+f) - f + f^2/2) / f^3 on [-0.25, 0.5]; error 2^-30.0 */
static const float FB_LOG_f32[] = {
    0x1.55555ap-2f, -0x1.00007p-2f, 0x1.999752p-3f, -0x1.55190ep-3f, 0x1.24657ep-3f, -0x1.04bc32p-3f,
    0x1.df0f9p-4f, -0x1.743466p-4f, 0x1.32549ap-5f,
};
/* (log((1+s)/(1-s)) - 2s) / s^3 in s^2, |s| <= 0.2; error 2^-62.7 */
static const double FB_LOG_f64[] = {
    0x1.555555555554fp-1, 0x1.999999999c0f1p-2, 0x1.24924921ec3abp-2, 0x1.c71c7488d416bp-3, 0x1.745c4c74a65efp-3,
    0x1.3b358d4ca859fp-3, 0x1.0dceecca168f8p-3, 0x1.1b6b379bef712p-3,
};
/* (log((1+s)/(1-s)) - 2s) / s^3 in s^2, |s| <= 0.2; error 2^-42.2 */
static const double FB_LOG_SHORT[] = {
    0x1.55555559152f5p-1, 0x1.99998f48653a4p-2, 0x1.2496e2fd612d5p-2, 0x1.c553e02f365b9p-3, 0x1.9c1a86faf6e53p-3,
};
/* (log((1+s)/(1-s)) - 2s - 2s^3/3) / s^5 in s^2, |s| <= 0.2; error 2^-69.0 */
static const double FB_LOG_LONG[] = {
    0x1.9999999999968p-2, 0x1.2492492498d22p-2, 0x1.c71c71bc79df7p-3, 0x1.745d1bc261fecp-3, 0x1.3b1299219794bp-3,
    0x1.113a0458f168ep-3, 0x1.dad2a7a0f4cf2p-4, 0x1.0176e9bf9056p-3,
};
/* log(1+t)/t in t - FB_SOFTPLUS_CENTRE, 0 <= t <= 1; error 2^-27.4 (the centre: where the value is almost a float) */
#define FB_SOFTPLUS_CENTRE 0x1.e15a22p-2
static const float FB_SOFTPLUS_f32[] = {
    0x1.a3adeep-1f, -0x1.2fc542p-2f, 0x1.1c720cp-3f, -0x1.27fep-4f, 0x1.46a1d6p-5f, -0x1.755eb4p-6f, 0x1.aef8f2p-7f,
    -0x1.098fa6p-7f, 0x1.8e9c0ap-8f, -0x1.a827d8p-9f,
};
/* erf(x)/x - 1 in x^2, |x| <= 0.97; error 2^-30.0 */
static const float FB_ERF_f32[] = {
    0x1.06eba8p-3f, -0x1.81274p-2f, 0x1.ce2d64p-4f, -0x1.b80124p-6f, 0x1.544b08p-8f, -0x1.a6180cp-11f,
    0x1.4fa90ap-14f,
};
/* log(erfc(x)) on [0.95, 4], weighted by erfc; error 2^-34.6 */
static const float FB_LOG_ERFC_f32[] = {
    0x1.7ea46ep-13f, -0x1.212a52p+0f, -0x1.443c4cp-1f, -0x1.bbd926p-4f, 0x1.9c69b2p-6f, -0x1.12a612p-8f,
    0x1.cbd282p-12f, -0x1.67c984p-16f,
};
/* erf(x)/x - 1 in x^2, |x| <= 0.97; error 2^-63.8 */
static const double FB_ERF_f64[] = {
    0x1.06eba8214db69p-3, -0x1.812746b0379e6p-2, 0x1.ce2f21a042b7dp-4, -0x1.b82ce312866dcp-6, 0x1.565bcd0dfc7a4p-8,
    -0x1.c02db3e7933ddp-11, 0x1.f9a32368b2644p-14, -0x1.f4d2039839ed8p-17, 0x1.b9e0e0b64e9d8p-20, -0x1.5f2e93e02095ap-23,
    0x1.f8698b7b53da1p-27, -0x1.3aef11d5d608dp-30, 0x1.0ca7376f42c3cp-34,
};
/* (y + 1.125) e^(y^2/2) erfc(y/sqrt2)/2 in t = (y - 4 sqrt2)/(y + 4 sqrt2), 0 <= y <= 38.7; error 2^-56.6 */
static const double FB_TAIL_f64[] = {
    0x1.dbb45a3084287p-2, -0x1.a7ea4744166b8p-4, 0x1.a2ecb6255a237p-5, -0x1.4fb6b5db5c34ep-7, -0x1.a8843e9f36473p-7,
    0x1.46ea9d72341aep-6, -0x1.1513f268ad101p-6, 0x1.56a7b12b7891bp-7, -0x1.3fb5ba130e6fcp-8, 0x1.a699dfa090aebp-10,
    -0x1.1db207726fd16p-12, -0x1.c4846388d27e1p-15, 0x1.972ef60bea00bp-15, -0x1.2ed6c76791db4p-17, -0x1.c214f163be8fcp-19,
    0x1.03d091bc98327p-19, 0x1.94f0bd0338c0bp-25, -0x1.26e7b82fe4bd9p-22, 0x1.dbc750db5bb34p-26, 0x1.3febc7134af73p-25,
    -0x1.de052de67b12bp-29, -0x1.2c6c746cd95dep-28, -0x1.1082b0a61e8f1p-31,
};
/* (y + 3 sqrt2) e^(y^2/2) erfc(y/sqrt2)/2 in t = (y - 3 sqrt2)/(y + 3 sqrt2), 0 <= y <= 14.8; error 2^-28.6 */
static const double FB_TAIL_SHORT[] = {
    0x1.84d50039100d7p-1, -0x1.3fd2ae0a479f6p-1, 0x1.ab5ef4e749faap-2, -0x1.c19a46bf483fcp-3, 0x1.5a31afdb4f6e6p-4,
    -0x1.36f42b946a275p-6, -0x1.c75c3f075d5aap-11, 0x1.1d8e66e7121ccp-9, -0x1.63a6f81826088p-12, -0x1.dfba27646ea2dp-13,
};

/* ln 2 in two parts; a whole number below the largest exponent times the first is exact. */
#define FB_LN2_HIGH_f32 0x1.62e4p-1
#define FB_LN2_LOW_f32 0x1.7f7d1cp-20
#define FB_LN2_HIGH_f64 0x1.62e42fefa38p-1
#define FB_LN2_LOW_f64 0x1.ef35793c7673p-45
#define FB_ROUND_f32 0x1.8p23
#define FB_ROUND_f64 0x1.8p52
#define FB_BITS_f32 23 /* of the fraction */
#define FB_BITS_f64 52
#define FB_LOG2E 0x1.71547652b82fep0
/* e^x is 0 below and infinite above, with room for a factor x. */
#define FB_EXP_LEAST_f32 -120
#define FB_EXP_LEAST_f64 -760
#define FB_EXP_MOST_f32 89
#define FB_EXP_MOST_f64 710
/* Beyond this 1 + e^-x is 1. */
#define FB_FAR_f32 20
#define FB_FAR_f64 42

/* ---- Cores ---- */

/* log(1 + f) for f in [-0.25, 0.5], less f itself. */
FB_INLINE vec_f32 fb_log_rest_f32(vec_f32 f) {
    vec_f32 f2 = f * f;
    return fma_f32(f2 * f, FB_POLY(f32, f, FB_LOG_f32), splat_f32(-0.5) * f2);
}
FB_INLINE vec_f64 fb_log_rest_f64(vec_f64 f) { /* 2s + s^3 p, s = f/(2+f), and 2s = f - f^2/2 + s f^2/2 */
    vec_f64 s = f / (splat_f64(2) + f), z = s * s, half = splat_f64(0.5) * f * f;
    return fma_f64(s, fma_f64(z, FB_POLY(f64, z, FB_LOG_f64), half), -half);
}

#define FB_VMATH(S) \
    /* e^(x + tail) = 2^n (1 + q + low): the tail is small, n whole, |q| < 0.42. */ \
    FB_INLINE vec_##S fb_exp_parts_##S(vec_##S x, vec_##S tail, vec_##S *q, vec_##S *low) { \
        vec_##S n = fma_##S(x, splat_##S(FB_LOG2E), splat_##S(FB_ROUND_##S)) - splat_##S(FB_ROUND_##S); \
        vec_##S a = fma_##S(n, splat_##S(-FB_LN2_HIGH_##S), x); /* exact */ \
        vec_##S b = fma_##S(n, splat_##S(FB_LN2_LOW_##S), -tail); \
        vec_##S r = a - b; \
        vec_##S c = fma_##S(r * r, FB_POLY(S, r, FB_EXP_##S), (a - r) - b); \
        *q = r + c; \
        *low = c - (*q - r); \
        return n; \
    } \
    /* The same, plainly: e^x = 2^n (1 + q). */ \
    FB_INLINE vec_##S fb_exp_q_##S(vec_##S x, vec_##S *q) { \
        vec_##S n = fma_##S(x, splat_##S(FB_LOG2E), splat_##S(FB_ROUND_##S)) - splat_##S(FB_ROUND_##S); \
        vec_##S r = fma_##S(n, splat_##S(-FB_LN2_HIGH_##S), x); \
        r = fma_##S(n, splat_##S(-FB_LN2_LOW_##S), r); \
        *q = fma_##S(r * r, FB_POLY(S, r, FB_EXP_##S), r); \
        return n; \
    } \
    /* -|x|, and no further than where e^x is 0 */ \
    FB_INLINE vec_##S fb_minus_abs_##S(vec_##S x) { \
        return atleast_##S((vec_##S)((int_##S)x | (int_##S)splat_##S(-0.0)), splat_##S(FB_EXP_LEAST_##S)); \
    } \
    /* exp(x); 1.07 ULP, 1.07 ULP */ \
    FB_INLINE vec_##S exp_##S(vec_##S x) { \
        x = atmost_##S(atleast_##S(x, splat_##S(FB_EXP_LEAST_##S)), splat_##S(FB_EXP_MOST_##S)); \
        vec_##S q, n = fb_exp_q_##S(x, &q); \
        return fb_scale_##S(splat_##S(1) + q, n); \
    } \
    /* exp(x) - 1 = 2^n (q + (1 - 2^-n)); 1.26, 1.23 */ \
    FB_INLINE vec_##S expm1_##S(vec_##S x) { \
        vec_##S q, low, one = splat_##S(1); \
        vec_##S c = atmost_##S(atleast_##S(x, splat_##S(-FB_FAR_##S)), splat_##S(FB_EXP_MOST_##S)); \
        vec_##S n = fb_exp_parts_##S(c, splat_##S(0), &q, &low); \
        vec_##S b = one - fb_scale_##S(one, -n), y = b + q; \
        return copysign_##S(fb_scale_##S(y + ((q - (y - b)) + low), n), x); \
    } \
    /* k ln 2 + log(1 + f), low added: the low part of k ln 2 and what f lacks */ \
    FB_INLINE vec_##S fb_log_sum_##S(vec_##S k, vec_##S f, vec_##S low) { \
        vec_##S big = k * splat_##S(FB_LN2_HIGH_##S), y = big + f; /* the product is exact */ \
        return y + ((f - (y - big)) + (fb_log_rest_##S(f) + low)); \
    } \
    /* log(x); 0.92, 0.98 */ \
    FB_INLINE vec_##S log_##S(vec_##S x) { \
        vec_##S k, m = fb_split_##S(x, &k); \
        return fb_log_edges_##S(x, fb_log_sum_##S(k, m - splat_##S(1), k * splat_##S(FB_LN2_LOW_##S))); \
    } \
    /* log(1 + x): 1 + x = 2^k (1 + f), f = 2^-k x + (2^-k - 1); 0.92, 0.93 */ \
    FB_INLINE vec_##S log1p_##S(vec_##S x) { \
        vec_##S k, u = splat_##S(1) + x; \
        fb_split_##S(u, &k); \
        vec_##S a = fb_scale_##S(x, -k), b = fb_scale_##S(splat_##S(1), -k) - splat_##S(1); \
        vec_##S f = b + a, tail = a - (f - b); \
        vec_##S y = fb_log_sum_##S(k, f, fma_##S(k, splat_##S(FB_LN2_LOW_##S), tail - tail * f)); \
        return copysign_##S(fb_log_edges_##S(u, y), x); \
    } \
    /* 1/(1 + e) for 0 <= e <= 1: 1 + e is rounded, the remainder 1 - r - r e is not. */ \
    FB_INLINE vec_##S fb_one_of_##S(vec_##S e) { \
        vec_##S one = splat_##S(1), r = one / (one + e); \
        return fma_##S(r, fb_less_##S(one - r, r, e), r); \
    } \
    /* 1/(1 + e^-x) = s/(s + 1 + q), e^-x = (1 + q)/s, s = 2^k; s + 1 is exact, or s is so small that \
       it goes to q, or so large that the result is 1; 1.69, 1.48 (unfused 0.54, 1.48) */ \
    FB_INLINE vec_##S fb_sigmoid_##S(vec_##S x) { \
        x = atmost_##S(atleast_##S(x, splat_##S(FB_EXP_LEAST_##S)), splat_##S(FB_FAR_##S)); \
        vec_##S q, n = fb_exp_q_##S(-x, &q), one = splat_##S(1), s = fb_scale_##S(one, -n); \
        return s / ((one + s) + select_##S(lt_##S(splat_##S(FB_BITS_##S), n), q + s, q)); \
    } \
    /* x/(1 + e^-u), from e^-|u| = 2^n (w + low); x e^u/(1 + e^u) where u is negative. */ \
    FB_INLINE vec_##S fb_gate_##S(vec_##S x, mask_##S negative, vec_##S n, vec_##S w, vec_##S low) { \
        vec_##S r = fb_one_of_##S(fb_scale_normal_##S(w, n)), y = x * r, y0 = fb_mul_error_##S(x, r, y); \
        return select_##S(negative, fb_scale_##S(fma_##S(y, w, fma_##S(y, low, y0 * w)), n), y); \
    } \
    /* x/(1 + e^-x), -0 at -inf; 1.87, 1.66 (unfused 0.55, 1.88) */ \
    FB_INLINE vec_##S fb_silu_##S(vec_##S x) { \
        vec_##S q, one = splat_##S(1), n = fb_exp_q_##S(fb_minus_abs_##S(x), &q), w = one + q; \
        x = atleast_##S(x, splat_##S(FB_EXP_LEAST_##S)); \
        return fb_gate_##S(x, lt_##S(x, splat_##S(0)), n, w, q - (w - one)); \
    } \
    /* tanh(x) = -m/(2 + m), m = e^(-2|x|) - 1; 1.01, 1.02 */ \
    FB_INLINE vec_##S fb_tanh_##S(vec_##S x) { \
        vec_##S q, low, one = splat_##S(1), two = splat_##S(2); \
        vec_##S c = atleast_##S(-two * abs_##S(x), splat_##S(-FB_FAR_##S)); \
        vec_##S n = fb_exp_parts_##S(c, splat_##S(0), &q, &low); \
        vec_##S s = fb_scale_##S(one, n), a = s * q, b = s - one; \
        vec_##S m = b + a, tail = (a - (m - b)) + fma_##S(s, low, s - (b + one)); \
        vec_##S d = two + m; \
        return copysign_##S(fb_divide_##S(-m, -tail, d, (m - (d - two)) + tail), x); \
    }
FB_VMATH(f32)
FB_VMATH(f64)
#undef FB_VMATH

/* log(1 + e^x) = max(x, 0) + log(1 + t), t = e^-|x|; 1 + t is halved where it is large; 1.16 */
FB_INLINE vec_f64 softplus_f64(vec_f64 x) {
    vec_f64 q, low, one = splat_f64(1), zero = splat_f64(0), half = splat_f64(0.5);
    vec_f64 n = fb_exp_parts_f64(fb_minus_abs_f64(x), zero, &q, &low);
    vec_f64 w = one + q, t = fb_scale_f64(w, n), tail = fb_scale_f64((q - (w - one)) + low, n);
    mask_f64 big = lt_f64(half, t);
    vec_f64 f = select_f64(big, half * t - half, t); /* exact */
    tail = select_f64(big, fma_f64(half, tail, splat_f64(FB_LN2_LOW_f64)), tail);
    vec_f64 y = select_f64(big, splat_f64(FB_LN2_HIGH_f64), zero) + (f + (fb_log_rest_f64(f) + tail));
    return atleast_f64(x, zero) + y;
}

FB_INLINE vec_f64 tanh_f64(vec_f64 x) { return fb_tanh_f64(x); }
FB_INLINE vec_f64 sigmoid_f64(vec_f64 x) { return fb_sigmoid_f64(x); }
FB_INLINE vec_f64 silu_f64(vec_f64 x) { return fb_silu_f64(x); }
#if defined(__AVX512F__)
/* |x| is cut into two intervals an octave from 1/16 on (below is one), each with a
   centre, whose tanh is almost a float, and a polynomial of degree 7 about it, error
   below 2^-26.9: 1.00 ULP.  The columns stand where the low four bits of |x| >> 22 find them. */
static const float FB_TANH_f32[9][16] = {
    {0x1.3ff6bcp+1f, 0x1.c01338p+1f, 0x1.3ffc3cp+2f, 0x1.bfe89p+2f, 0x1.154246p+3f, 0x1.8p+3f,
     0, 0x1.bff782p-4f, 0x1.3febc8p-3f, 0x1.bffda6p-3f, 0x1.400624p-2f, 0x1.c0023cp-2f,
     0x1.400dfap-1f, 0x1.c0129cp-1f, 0x1.3fed1ep+0f, 0x1.bff09ap+0f},
    {0x1.f92486p-1f, 0x1.ff1174p-1f, 0x1.fff418p-1f, 0x1.ffffc8p-1f, 0x1.fffffep-1f, 1,
     0, 0x1.be3074p-4f, 0x1.3d580cp-3f, 0x1.b8fac6p-3f, 0x1.35ff1ep-2f, 0x1.a5747ap-2f,
     0x1.1bfe2cp-1f, 0x1.686fb4p-1f, 0x1.b247a4p-1f, 0x1.e1f878p-1f},
    {0x1.b3ee28p-6f, 0x1.dca8dap-9f, 0x1.7cf82ap-13f, 0x1.bfb1f2p-19f, 0x1.0003b6p-23f, 0,
     1, 0x1.f9eca6p-1f, 0x1.f3b4e6p-1f, 0x1.e84308p-1f, 0x1.d113c4p-1f, 0x1.a944f6p-1f,
     0x1.627a08p-1f, 0x1.0242d2p-1f, 0x1.1f4904p-2f, 0x1.d2617p-4f},
    {-0x1.ae16e8p-6f, -0x1.dbcba8p-9f, -0x1.7d3036p-13f, -0x1.bf1b32p-19f, -0x1.ffd79ap-24f, 0,
     -0x1.7e4ebep-35f, -0x1.b8e4e4p-4f, -0x1.35b952p-3f, -0x1.a488bep-3f, -0x1.199626p-2f, -0x1.5e0ff2p-2f,
     -0x1.893cdcp-2f, -0x1.6b9ea8p-2f, -0x1.e75a36p-3f, -0x1.b706d2p-4f},
    {0x1.17042p-6f, 0x1.3c0a8p-9f, 0x1.fc2fd8p-14f, 0x1.2d3992p-19f, 0x1.54dbdcp-24f, 0,
     -0x1.555554p-2f, -0x1.44fe1p-2f, -0x1.34fa14p-2f, -0x1.1837f6p-2f, -0x1.c18ed6p-3f, -0x1.16d7cp-3f,
     -0x1.236652p-6f, 0x1.4f4182p-4f, 0x1.bbb304p-4f, 0x1.01d0f2p-4f},
    {-0x1.07f1cp-7f, -0x1.39919cp-10f, -0x1.f5e22ap-15f, -0x1.2996dcp-20f, -0x1.570016p-25f, 0,
     -0x1.839p-20f, 0x1.19acd6p-4f, 0x1.8b2f2p-4f, 0x1.04b966p-3f, 0x1.43b84ap-3f, 0x1.5c1e58p-3f,
     0x1.1a5f86p-3f, 0x1.f1ab38p-5f, -0x1.9b693cp-7f, -0x1.817abcp-6f},
    {0x1.773be8p-9f, 0x1.ee7724p-12f, 0x1.914976p-16f, 0x1.9b2be4p-22f, 0x1.197814p-26f, 0,
     0x1.11262ap-3f, -0x1.18b14p+1f, -0x1.d463ap-3f, 0x1.ca5374p-5f, 0x1.01d04ap-5f, -0x1.ad7d3p-7f,
     -0x1.b62af4p-5f, -0x1.ea2de2p-5f, -0x1.3ade6cp-6f, 0x1.e52dfap-9f},
    {-0x1.6e6544p-11f, -0x1.490d4ap-13f, -0x1.352d2ep-17f, -0x1.64668p-23f, -0x1.667bdcp-28f, 0,
     -0x1.05ec48p-11f, 0x1.3f3c28p+2f, 0x1.d3c712p-2f, -0x1.03fd02p-6f, -0x1.fca9a8p-5f, -0x1.e23fecp-5f,
     -0x1.91f906p-6f, 0x1.ae528cp-7f, 0x1.ee373cp-7f, 0x1.11d02p-9f},
    {0x1.eca4dp-15f, 0x1.5e111cp-15f, 0x1.5ef74ap-19f, 0x1.7690cap-24f, 0x1.ed7022p-31f, 0,
     -0x1.a6166ep-5f, 0x1.560bfap+12f, 0x1.8d7e62p+7f, 0x1.13a622p+4f, 0x1.0955ep+1f, 0x1.0bddfcp+0f,
     -0x1.05698ep-5f, 0x1.85bd2ap-5f, -0x1.2a79c2p-8f, -0x1.0a9d1p-9f},
};
FB_INLINE vec_f32 tanh_f32(vec_f32 x) {
    vec_f32 a = atmost_f32(abs_f32(x), splat_f32(10)), y; /* 1 from 9.02 on */
    __m512i interval = _mm512_srli_epi32((__m512i)atleast_f32(a, splat_f32(0.0625)), 22);
#define FB_COLUMN(row) ((vec_f32)_mm512_permutexvar_ps(interval, _mm512_loadu_ps(FB_TANH_f32[row])))
    vec_f32 t = a - FB_COLUMN(0);
    y = fma_f32(FB_COLUMN(8), t, FB_COLUMN(7));
    y = fma_f32(y, t, FB_COLUMN(6));
    y = fma_f32(y, t, FB_COLUMN(5));
    y = fma_f32(y, t, FB_COLUMN(4));
    y = fma_f32(y, t, FB_COLUMN(3));
    y = fma_f32(y, t, FB_COLUMN(2));
    y = fma_f32(y, t, FB_COLUMN(1));
#undef FB_COLUMN
    return copysign_f32(y, x);
}
#else
FB_INLINE vec_f32 tanh_f32(vec_f32 x) { return fb_tanh_f32(x); }
#endif

/* softplus(x), as above, with t log(1 + t)/t, the second factor a polynomial; 1.77 (unfused 1.98) */
FB_INLINE vec_f32 softplus_f32(vec_f32 x) {
    vec_f32 one = splat_f32(1), q, n = fb_exp_q_f32(fb_minus_abs_f32(x), &q), w = one + q, low = q - (w - one);
    vec_f32 t = fb_scale_normal_f32(w, n);
    vec_f32 h = FB_POLY_STEADY(f32, t - splat_f32(FB_SOFTPLUS_CENTRE), FB_SOFTPLUS_f32);
    return atleast_f32(x, splat_f32(0)) + fb_scale_f32(fma_f32(w, h, low * h), n);
}

/* ---- Double vectors that serve float results (error below 2^-28) ---- */

#define FB_THROUGH_DOUBLE(name, inner) \
    FB_INLINE vec_f32 name##_f32(vec_f32 x) { \
        vec_f64 low, high; \
        fb_widen(x, &low, &high); \
        return fb_narrow(inner(low), inner(high)); \
    }

/* e^x for |x| < 700.  A NaN that came from a float has low bits 0 and stays one. */
FB_INLINE vec_f64 fb_exp_short(vec_f64 x) {
    vec_f64 z = fma_f64(x, splat_f64(FB_LOG2E), splat_f64(FB_ROUND_f64)), n = z - splat_f64(FB_ROUND_f64);
    vec_f64 r = fma_f64(n, splat_f64(-0x1.62e42fefa39efp-1), x);
    vec_f64 y = splat_f64(1) + fma_f64(r * r, FB_POLY(f64, r, FB_EXP_SHORT), r);
    return (vec_f64)((int_f64)y + ((int_f64)z << 52));
}

/* Without a fused multiply-add double is the cheaper way to keep the digits; 0.55 */
#if FB_HAS_FMA
FB_INLINE vec_f32 sigmoid_f32(vec_f32 x) { return fb_sigmoid_f32(x); }
FB_INLINE vec_f32 silu_f32(vec_f32 x) { return fb_silu_f32(x); }
#else
FB_INLINE vec_f64 fb_one_and_exp(vec_f64 x) { /* 1 + e^-x */
    return splat_f64(1) + fb_exp_short(-atmost_f64(atleast_f64(x, splat_f64(-200)), splat_f64(200)));
}
FB_INLINE vec_f64 fb_sigmoid_short(vec_f64 x) { return splat_f64(1) / fb_one_and_exp(x); }
FB_INLINE vec_f64 fb_silu_short(vec_f64 x) { return atleast_f64(x, splat_f64(-200)) / fb_one_and_exp(x); }
FB_THROUGH_DOUBLE(sigmoid, fb_sigmoid_short)
FB_THROUGH_DOUBLE(silu, fb_silu_short)
#endif

#define FB_TAIL_SCALE_SHORT 0x1.0f876ccdf6cd9p+2 /* 3 sqrt 2 */
#define FB_TAIL_SCALE_f64 0x1.6a09e667f3bcdp+2   /* 4 sqrt 2 */
/* gelu(x) = x P(N < x) = max(x, 0) - |x| T(|x|), T(y) = erfc(y/sqrt 2)/2, -0 at -inf; 0.60 (AVX-512 1.84) */
#if defined(__AVX512F__)
/* T(y) = e^(-y^2/2) g(y); g as tanh above, over four intervals an octave of y + 1, centres where g
   is almost a float, degree 6, error below 2^-27.4. */
static const float FB_GELU_f32[8][16] = {
    {0x1.3d7dbcp+0f, 0x1.c20e5ap+0f, 0x1.213d16p+1f, 0x1.5f8d9ap+1f, 0x1.bf897cp+1f, 0x1.1fd912p+2f,
     0x1.5f79eap+2f, 0x1.9f4d9ep+2f, 0x1.fd9b32p+2f, 0x1.4146eep+3f, 0x1.7ec3cep+3f, 0x1.c0dc4ap+3f,
     0x1.fa0f12p-4f, 0x1.8312c8p-2f, 0x1.3e79cap-1f, 0x1.be86e2p-1f},
    {0x1.dad2eep-3f, 0x1.7a20bep-3f, 0x1.39a0aap-3f, 0x1.0c01bp-3f, 0x1.b3fc74p-4f, 0x1.5b85fep-4f,
     0x1.208746p-4f, 0x1.ec702ap-5f, 0x1.943f32p-5f, 0x1.426074p-5f, 0x1.0f5a3cp-5f, 0x1.cfa5f6p-6f,
     0x1.d13168p-2f, 0x1.83ed7ap-2f, 0x1.4bb7bcp-2f, 0x1.1ef098p-2f},
    {-0x1.c85082p-4f, -0x1.308bccp-4f, -0x1.b158e8p-5f, -0x1.43ce26p-5f, -0x1.b6c59ap-6f, -0x1.1c26e8p-6f,
     -0x1.8c2e54p-7f, -0x1.22984cp-7f, -0x1.8a3de2p-8f, -0x1.f807dcp-9f, -0x1.6610dp-9f, -0x1.05cfd6p-9f,
     -0x1.5f0ae2p-2f, -0x1.05e136p-2f, -0x1.945c9cp-3f, -0x1.3c8a4ep-3f},
    {0x1.7fba0ap-5f, 0x1.b9b55ep-6f, 0x1.13491ep-6f, 0x1.6d6254p-7f, 0x1.a3a90cp-8f, 0x1.c056f4p-9f,
     0x1.08f2e2p-9f, 0x1.5032cp-10f, 0x1.7b264cp-11f, 0x1.866d2cp-12f, 0x1.d560f4p-13f, 0x1.263da4p-13f,
     0x1.a5d264p-3f, 0x1.20efcep-3f, 0x1.9be9e6p-4f, 0x1.29d152p-4f},
    {-0x1.232444p-6f, -0x1.266ca6p-7f, -0x1.462fbcp-8f, -0x1.84ec1ap-9f, -0x1.7faf92p-10f, -0x1.56527ap-11f,
     -0x1.59c88cp-12f, -0x1.7dac8p-13f, -0x1.67b77p-14f, -0x1.2bb866p-15f, -0x1.31a664p-16f, -0x1.4915d4p-17f,
     -0x1.b1520cp-4f, -0x1.145becp-4f, -0x1.705302p-5f, -0x1.f1cecap-6f},
    {0x1.96617ep-8f, 0x1.6dc4f2p-9f, 0x1.6c08acp-10f, 0x1.89b124p-11f, 0x1.50fe02p-12f, 0x1.fb51dap-14f,
     0x1.b90fbep-15f, 0x1.a9a2c6p-16f, 0x1.5114fep-17f, 0x1.c8192p-19f, 0x1.8b95c2p-20f, 0x1.6e5644p-21f,
     0x1.8b13bap-5f, 0x1.d96eb2p-6f, 0x1.2908dep-6f, 0x1.7a95bap-7f},
    {-0x1.0b1206p-9f, -0x1.af2e8cp-11f, -0x1.82ccdcp-12f, -0x1.7cae72p-13f, -0x1.22625cp-14f, -0x1.71fe98p-16f,
     -0x1.165e66p-17f, -0x1.d679f4p-19f, -0x1.3eb4e6p-20f, -0x1.5d5694p-22f, -0x1.01366ap-23f,
     -0x1.9b365ep-25f, -0x1.4653d8p-6f, -0x1.74021ep-7f, -0x1.bf3b36p-8f, -0x1.083b4ap-8f},
    {0x1.43acdcp-11f, 0x1.e28b0ep-13f, 0x1.90ad52p-14f, 0x1.2f7bbcp-15f, 0x1.d7fd0cp-17f, 0x1.02922ap-18f,
     0x1.5387c8p-20f, 0x1.f57b2p-22f, 0x1.1b8d16p-23f, 0x1.0bea84p-25f, 0x1.44fa56p-27f, 0x1.c3e57ap-29f,
     0x1.e9976cp-8f, 0x1.098e7ep-8f, 0x1.9b9e64p-9f, 0x1.50b0d4p-10f},
};
FB_INLINE vec_f32 gelu_f32(vec_f32 x) {
    vec_f32 y = atmost_f32(abs_f32(x), splat_f32(14.8)), one = splat_f32(1), square = y * y, g; /* beyond: 0 or x */
    __m512i interval = _mm512_srli_epi32((__m512i)(y + one), 21);
#define FB_COLUMN(row) ((vec_f32)_mm512_permutexvar_ps(interval, _mm512_loadu_ps(FB_GELU_f32[row])))
    vec_f32 t = y - FB_COLUMN(0);
    g = fma_f32(FB_COLUMN(7), t, FB_COLUMN(6));
    g = fma_f32(g, t, FB_COLUMN(5));
    g = fma_f32(g, t, FB_COLUMN(4));
    g = fma_f32(g, t, FB_COLUMN(3));
    g = fma_f32(g, t, FB_COLUMN(2));
    g = fma_f32(g, t, FB_COLUMN(1));
#undef FB_COLUMN
    /* e^(-y^2/2) = 2^n (w + low), y^2 in two parts */
    vec_f32 half = splat_f32(-0.5), rest = fma_f32(y, y, -square);
    vec_f32 n = fma_f32(square, splat_f32(-0.5 * FB_LOG2E), splat_f32(FB_ROUND_f32)) - splat_f32(FB_ROUND_f32);
    vec_f32 r = fma_f32(n, splat_f32(-FB_LN2_HIGH_f32), half * square);
    r = r + fma_f32(half, rest, n * splat_f32(-FB_LN2_LOW_f32));
    vec_f32 q = fma_f32(r * r, FB_POLY(f32, r, FB_EXP_f32), r), w = one + q, low = q - (w - one);
    vec_f32 p = y * g, p0 = fma_f32(y, g, -p);
    vec_f32 tail = fb_scale_f32(fma_f32(p, w, fma_f32(p, low, p0 * w)), n);
    return copysign_f32(atleast_f32(x, splat_f32(0)) - tail, x);
}
#else
FB_INLINE vec_f64 fb_gelu_short(vec_f64 x) {
    vec_f64 y = atmost_f64(abs_f64(x), splat_f64(20)); /* beyond 14.5 the result is 0 or x */
    vec_f64 u = splat_f64(1) / (y + splat_f64(FB_TAIL_SCALE_SHORT));
    vec_f64 t = fma_f64(u, splat_f64(-2 * FB_TAIL_SCALE_SHORT), splat_f64(1));
    vec_f64 tail = fb_exp_short(splat_f64(-0.5) * y * y) * (u * FB_POLY(f64, t, FB_TAIL_SHORT));
    return fma_f64(-y, tail, atleast_f64(x, splat_f64(0)));
}
FB_THROUGH_DOUBLE(gelu, fb_gelu_short)
#endif

/* gelu_tanh(x) = x/2 (1 + tanh(v)) = x/(1 + e^-2v), v = sqrt(2/pi) (x + 0.044715 x^3),
   -0 at -inf; 0.56 */
#define FB_GELU_LINEAR 0x1.9884533d43651p+0 /* 2 sqrt(2/pi) */
#define FB_GELU_LINEAR_LOW -0x1.cbc0d30ebfd15p-54
#define FB_GELU_CUBIC 0x1.2444f2a4d8b4bp-4 /* the same times 0.044715 */
#define FB_GELU_CUBIC_LOW -0x1.6c843a29d1c70p-61
FB_INLINE vec_f64 fb_gelu_tanh_short(vec_f64 x) {
    x = atleast_f64(x, splat_f64(-20)); /* beyond 20 on both sides the result is 0 or x */
    vec_f64 c = atmost_f64(x, splat_f64(20));
    vec_f64 v = c * fma_f64(c * c, splat_f64(-FB_GELU_CUBIC), splat_f64(-FB_GELU_LINEAR));
    return x / (splat_f64(1) + fb_exp_short(v));
}
FB_THROUGH_DOUBLE(gelu_tanh, fb_gelu_tanh_short)

/* erf(x): odd polynomial to 0.96, then 1 - e^p(x); 1.18 (unfused 1.33) */
FB_INLINE vec_f32 erf_f32(vec_f32 x) {
    vec_f32 a = atmost_f32(abs_f32(x), splat_f32(4)); /* 1 from 3.92 on */
    vec_f32 near = fb_add_part_f32(x, FB_POLY(f32, x * x, FB_ERF_f32));
    vec_f32 q, n = fb_exp_q_f32(FB_POLY(f32, a, FB_LOG_ERFC_f32), &q);
    vec_f32 tail = fb_scale_f32(splat_f32(1) + q, n);
    return select_f32(lt_f32(a, splat_f32(0.96)), near, copysign_f32(splat_f32(1) - tail, x));
}

/* ---- Double ---- */

/* T(y) = erfc(y/sqrt 2)/2 = 2^n times the result, for y >= 0 and y^2 = high + low. */
FB_INLINE vec_f64 fb_tail_f64(vec_f64 y, vec_f64 high, vec_f64 low, vec_f64 *n) {
    /* e^(-y^2/2) g(t) v, v = 1/(y + 1.125), t = 1 - 8 sqrt2 u, u = 1/(y + 4 sqrt2): g is nearly constant */
    vec_f64 one = splat_f64(1), shift = splat_f64(1.125), d = y + shift, of_y = d - shift;
    vec_f64 d0 = (shift - (d - of_y)) + (y - of_y), far = y + splat_f64(FB_TAIL_SCALE_f64);
    vec_f64 u = one / far, v = one / d;
    vec_f64 t = fma_f64(u, splat_f64(-2 * FB_TAIL_SCALE_f64), one), g = v * FB_POLY_STEADY(f64, t, FB_TAIL_f64);
    vec_f64 q, rest;
    *n = fb_exp_parts_f64(splat_f64(-0.5) * high, splat_f64(-0.5) * low, &q, &rest);
    return fma_f64(g, q + (rest + fma_f64(-v, d0, fb_less_f64(one, v, d))), g); /* v's rounding made good */
}

/* gelu(x), as for float; 3.46 (unfused 3.63) */
FB_INLINE vec_f64 gelu_f64(vec_f64 x) {
    vec_f64 n, y = atmost_f64(abs_f64(x), splat_f64(40)), high = y * y; /* beyond 38.6: 0 or x */
    vec_f64 tail = fb_tail_f64(y, high, fb_mul_error_f64(y, y, high), &n);
    vec_f64 above = fma_f64(-y, fb_scale_f64(tail, n), x);
    if (!FB_HAS_FMA) /* the product by itself might be flushed to 0 */
        above = select_f64(lt_f64(x, splat_f64(0x1p-900)), splat_f64(0.5) * x, above);
    return select_f64(lt_f64(x, splat_f64(0)), fb_scale_f64(-y * tail, n), above);
}

/* gelu_tanh(x), as for float, with 2v in two parts; 1.63 (unfused 1.84) */
FB_INLINE vec_f64 gelu_tanh_f64(vec_f64 x) {
    vec_f64 c = atleast_f64(atmost_f64(x, splat_f64(22)), splat_f64(-22)), cubic = splat_f64(FB_GELU_CUBIC);
    vec_f64 z = c * c, z0 = fb_mul_error_f64(c, c, z);
    vec_f64 p = z * cubic, p0 = fb_mul_error_f64(z, cubic, p) + (z0 * cubic + z * splat_f64(FB_GELU_CUBIC_LOW));
    vec_f64 s = splat_f64(FB_GELU_LINEAR) + p; /* which of the two is larger depends on x */
    vec_f64 of_p = s - splat_f64(FB_GELU_LINEAR);
    vec_f64 s0 = (splat_f64(FB_GELU_LINEAR) - (s - of_p)) + (p - of_p) + (p0 + splat_f64(FB_GELU_LINEAR_LOW));
    vec_f64 u = c * s, u0 = fb_mul_error_f64(c, s, u) + c * s0;
    mask_f64 negative = lt_f64(u, splat_f64(0));
    vec_f64 q, rest, n = fb_exp_parts_f64(fb_minus_abs_f64(u), select_f64(negative, u0, -u0), &q, &rest);
    vec_f64 one = splat_f64(1), w = one + q;
    return fb_gate_f64(atleast_f64(x, splat_f64(-22)), negative, n, w, (q - (w - one)) + rest);
}

/* erf(x): odd polynomial to 0.96, then 1 - 2 T(sqrt 2 x); 1.27 (unfused 1.52) */
FB_INLINE vec_f64 erf_f64(vec_f64 x) {
    vec_f64 n, a = atmost_f64(abs_f64(x), splat_f64(6)), high = a * a; /* 1 from 5.92 on */
    vec_f64 near = fb_add_part_f64(x, FB_POLY(f64, x * x, FB_ERF_f64));
    vec_f64 two = splat_f64(2), low = fb_mul_error_f64(a, a, high);
    vec_f64 tail = fb_tail_f64(a * splat_f64(0x1.6a09e667f3bcdp+0), two * high, two * low, &n);
    vec_f64 far = copysign_f64(splat_f64(1) - fb_scale_f64(two * tail, n), x);
    return select_f64(lt_f64(a, splat_f64(0.96)), near, far);
}

/* ---- pow ---- */

/* r = |x|^y given the signs and special cases of C's pow.  Adding BIG = 2^(bits of the
   fraction) to |v| rounds it to a whole number.  The powers 1, 2 and -1 are exactly x, x x
   and 1 / x: whether an exponent is known or an input changes no bit. */
#define FB_POW_EDGES(S, BIG) \
    FB_INLINE mask_##S fb_whole_##S(vec_##S v) { \
        vec_##S a = abs_##S(v), big = splat_##S(BIG); \
        return eq_##S((a + big) - big, a) | le_##S(big, a); \
    } \
    FB_INLINE vec_##S fb_pow_edges_##S(vec_##S x, vec_##S y, vec_##S r) { \
        vec_##S zero = splat_##S(0), one = splat_##S(1), infinity = splat_##S(INFINITY); \
        mask_##S special = eq_##S(x, one) | eq_##S(y, zero) | eq_##S(abs_##S(y), one) | eq_##S(y, splat_##S(2)); \
        if (!any_##S(special | ~lt_##S(zero, x))) return r; /* no lane has anything to put right */ \
        mask_##S whole = fb_whole_##S(y), odd = whole & ~fb_whole_##S(y * splat_##S(0.5)); \
        r = select_##S(odd, copysign_##S(r, x), r); \
        r = select_##S(lt_##S(x, zero) & lt_##S(-infinity, x) & ~whole, splat_##S(NAN), r); \
        mask_##S unit = eq_##S(x, one) | eq_##S(y, zero) | (eq_##S(x, -one) & eq_##S(abs_##S(y), infinity)); \
        r = select_##S(eq_##S(y, one), x, select_##S(eq_##S(y, splat_##S(2)), x * x, r)); \
        return select_##S(unit, one, select_##S(eq_##S(y, -one), one / x, r)); \
    }
FB_POW_EDGES(f32, 0x1p23)
FB_POW_EDGES(f64, 0x1p52)
#undef FB_POW_EDGES

/* a^y = e^(y log a) for a >= 0, the logarithm to 2^-40 */
FB_INLINE vec_f64 fb_pow_short(vec_f64 a, vec_f64 y) {
    vec_f64 k, f = fb_split_f64(a, &k) - splat_f64(1);
    vec_f64 s = f / (splat_f64(2) + f), z = s * s;
    vec_f64 log = fma_f64(k, splat_f64(0x1.62e42fefa39efp-1), fma_f64(s * z, FB_POLY(f64, z, FB_LOG_SHORT), s + s));
    vec_f64 e = y * fb_log_edges_f64(a, log);
    /* past both ends of float */
    return fb_exp_short(atleast_f64(atmost_f64(e, splat_f64(200)), splat_f64(-200)));
}
/* x^y; 0.55 (12 million pairs) */
FB_INLINE vec_f32 pow_f32(vec_f32 x, vec_f32 y) {
    vec_f64 x0, x1, y0, y1;
    fb_widen(abs_f32(x), &x0, &x1);
    fb_widen(y, &y0, &y1);
    return fb_pow_edges_f32(x, y, fb_narrow(fb_pow_short(x0, y0), fb_pow_short(x1, y1)));
}

/* log|x| in two parts, to 2^-68: 2s + s^3 (2/3 + s^2 q), s = f/(2+f), each step in two parts. */
FB_INLINE vec_f64 fb_log_long(vec_f64 a, vec_f64 *low) {
    vec_f64 k, f = fb_split_f64(a, &k) - splat_f64(1), two = splat_f64(2), third = splat_f64(0x1.5555555555555p-1);
    vec_f64 d = two + f, d0 = f - (d - two), inverse = splat_f64(1) / d;
    vec_f64 s = f * inverse, sd = s * d, s0 = ((f - sd) - fb_mul_error_f64(s, d, sd) - s * d0) * inverse;
    vec_f64 z = s * s, z0 = fb_mul_error_f64(s, s, z) + two * s * s0;
    vec_f64 q = z * FB_POLY(f64, z, FB_LOG_LONG);
    vec_f64 p = third + q, p0 = (q - (p - third)) + splat_f64(0x1.5555555555555p-55);
    vec_f64 c = s * z, c0 = fb_mul_error_f64(s, z, c) + (s * z0 + s0 * z);
    vec_f64 u = c * p, u0 = fb_mul_error_f64(c, p, u) + (c * p0 + c0 * p);
    vec_f64 big = k * splat_f64(FB_LN2_HIGH_f64); /* exact */
    vec_f64 y1 = big + two * s, e1 = two * s - (y1 - big);
    vec_f64 y2 = y1 + u, e2 = u - (y2 - y1);
    *low = (e1 + e2) + (two * s0 + u0) + k * splat_f64(FB_LN2_LOW_f64);
    return fb_log_edges_f64(a, y2);
}

/* x^y = e^(y log|x|); 1.77 */
FB_INLINE vec_f64 pow_f64(vec_f64 x, vec_f64 y) {
    vec_f64 low, log = fb_log_long(abs_f64(x), &low), q, l, e = y * log;
    vec_f64 tail = fb_mul_error_f64(y, log, e) + y * low;
    tail = select_f64(lt_f64(abs_f64(e), splat_f64(800)), tail, splat_f64(0)); /* else 0, infinity, NaN */
    e = atleast_f64(atmost_f64(e, splat_f64(FB_EXP_MOST_f64)), splat_f64(FB_EXP_LEAST_f64));
    vec_f64 n = fb_exp_parts_f64(e, tail, &q, &l);
    return fb_pow_edges_f64(x, y, fb_scale_f64(splat_f64(1) + q, n));
}

#define v_exp(x) FB_PICK(exp, x)(x)
#define v_expm1(x) FB_PICK(expm1, x)(x)
#define v_log(x) FB_PICK(log, x)(x)
#define v_log1p(x) FB_PICK(log1p, x)(x)
#define v_tanh(x) FB_PICK(tanh, x)(x)
#define v_sigmoid(x) FB_PICK(sigmoid, x)(x)
#define v_softplus(x) FB_PICK(softplus, x)(x)
#define v_silu(x) FB_PICK(silu, x)(x)
#define v_gelu(x) FB_PICK(gelu, x)(x)
#define v_gelu_tanh(x) FB_PICK(gelu_tanh, x)(x)
#define v_erf(x) FB_PICK(erf, x)(x)
#define v_pow(x, y) FB_PICK(pow, x)(x, y)

#endif
