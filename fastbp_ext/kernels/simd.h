/* Vectors of float and double, as wide as the instruction set that this file is
   compiled for, on GCC and Clang vector extensions; intrinsics stand only where
   the extensions have no word for a thing (masks, square root, fused
   multiply-add).  Arithmetic is written with + - * / on the vector types.

   Every primitive has a name for each type, f32 and f64, and one generic name
   that kernels use.  A lane's result never depends on its neighbours. */
#ifndef FASTBP_SIMD_H
#define FASTBP_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <Python.h> /* Py_ssize_t */
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define FB_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define FB_VECTOR_BYTES 32
#else
#define FB_VECTOR_BYTES 16
#endif
enum { LANES_f32 = FB_VECTOR_BYTES / 4, LANES_f64 = FB_VECTOR_BYTES / 8 };
/* So many vectors go through a long function side by side: while one waits, others go on. */
#if defined(__AVX2__) || defined(__aarch64__)
enum { FB_ABREAST = 4 };
#else
enum { FB_ABREAST = 2 };
#endif

#if defined(__clang__)
#define FB_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FB_UNROLL _Pragma("GCC unroll 32")
#endif

/* f, to be called and not inlined: compiled once, whoever uses it. */
#define FB_OUTLINED(f) ({ __typeof__(&(f)) fb_called = (f); __asm__("" : "+r"(fb_called)); fb_called; })

#define FB_INLINE static inline __attribute__((always_inline, unused))
#define FB_VECTOR(T) T __attribute__((vector_size(FB_VECTOR_BYTES), aligned(sizeof(T)), may_alias))
typedef FB_VECTOR(float) vec_f32;
typedef FB_VECTOR(double) vec_f64;
typedef FB_VECTOR(int32_t) int_f32;
typedef FB_VECTOR(int64_t) int_f64;

#if defined(__AVX512F__)
typedef __mmask16 mask_f32;
typedef __mmask8 mask_f64;
#define FB_FIRST(T, m) ((mask_##T)((1u << (m)) - 1u))
FB_INLINE vec_f32 load_part_f32(const float *p, Py_ssize_t m) { return (vec_f32)_mm512_maskz_loadu_ps(FB_FIRST(f32, m), p); }
FB_INLINE vec_f64 load_part_f64(const double *p, Py_ssize_t m) { return (vec_f64)_mm512_maskz_loadu_pd(FB_FIRST(f64, m), p); }
FB_INLINE void store_part_f32(float *p, vec_f32 v, Py_ssize_t m) { _mm512_mask_storeu_ps(p, FB_FIRST(f32, m), (__m512)v); }
FB_INLINE void store_part_f64(double *p, vec_f64 v, Py_ssize_t m) { _mm512_mask_storeu_pd(p, FB_FIRST(f64, m), (__m512d)v); }
FB_INLINE vec_f32 select_f32(mask_f32 m, vec_f32 a, vec_f32 b) { return (vec_f32)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
FB_INLINE vec_f64 select_f64(mask_f64 m, vec_f64 a, vec_f64 b) { return (vec_f64)_mm512_mask_blend_pd(m, (__m512d)b, (__m512d)a); }
FB_INLINE vec_f32 sqrt_f32(vec_f32 x) { return (vec_f32)_mm512_sqrt_ps((__m512)x); }
FB_INLINE vec_f64 sqrt_f64(vec_f64 x) { return (vec_f64)_mm512_sqrt_pd((__m512d)x); }
FB_INLINE vec_f32 fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return (vec_f32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
FB_INLINE vec_f64 fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return (vec_f64)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
#define FB_COMPARE(name, code) \
    FB_INLINE mask_f32 name##_f32(vec_f32 a, vec_f32 b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, code); } \
    FB_INLINE mask_f64 name##_f64(vec_f64 a, vec_f64 b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, code); }
FB_COMPARE(lt, _CMP_LT_OQ) FB_COMPARE(le, _CMP_LE_OQ) FB_COMPARE(eq, _CMP_EQ_OQ) FB_COMPARE(ne, _CMP_NEQ_UQ)
#undef FB_COMPARE
FB_INLINE int any_f32(mask_f32 m) { return m != 0; }
FB_INLINE int any_f64(mask_f64 m) { return m != 0; }
FB_INLINE mask_f32 load_mask_f32(const uint8_t *p, Py_ssize_t m) {
    return _mm_test_epi8_mask(_mm_maskz_loadu_epi8(FB_FIRST(f32, m), p), _mm_set1_epi8(-1));
}
FB_INLINE mask_f64 load_mask_f64(const uint8_t *p, Py_ssize_t m) {
    return (mask_f64)_mm_test_epi8_mask(_mm_maskz_loadu_epi8(FB_FIRST(f64, m), p), _mm_set1_epi8(-1));
}
FB_INLINE mask_f32 load_mask_all_f32(const uint8_t *p) {
    return _mm_test_epi8_mask(_mm_loadu_si128((const __m128i *)p), _mm_set1_epi8(-1));
}
FB_INLINE mask_f64 load_mask_all_f64(const uint8_t *p) { return load_mask_f64(p, 8); }
FB_INLINE void store_mask_all_f32(uint8_t *p, mask_f32 v) { _mm_storeu_si128((__m128i *)p, _mm_maskz_set1_epi8(v, 1)); }
FB_INLINE void store_mask_all_f64(uint8_t *p, mask_f64 v) { _mm_storel_epi64((__m128i *)p, _mm_maskz_set1_epi8(v, 1)); }
FB_INLINE void store_mask_f32(uint8_t *p, mask_f32 v, Py_ssize_t m) {
    _mm_mask_storeu_epi8(p, FB_FIRST(f32, m), _mm_maskz_set1_epi8(v, 1));
}
FB_INLINE void store_mask_f64(uint8_t *p, mask_f64 v, Py_ssize_t m) {
    _mm_mask_storeu_epi8(p, FB_FIRST(f64, m), _mm_maskz_set1_epi8(v, 1));
}
#else
typedef int_f32 mask_f32;
typedef int_f64 mask_f64;
#if defined(__AVX2__)
FB_INLINE __m256i fb_first_f32(Py_ssize_t m) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)m), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FB_INLINE __m256i fb_first_f64(Py_ssize_t m) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(m), _mm256_setr_epi64x(0, 1, 2, 3));
}
FB_INLINE vec_f32 load_part_f32(const float *p, Py_ssize_t m) { return (vec_f32)_mm256_maskload_ps(p, fb_first_f32(m)); }
FB_INLINE vec_f64 load_part_f64(const double *p, Py_ssize_t m) { return (vec_f64)_mm256_maskload_pd(p, fb_first_f64(m)); }
FB_INLINE void store_part_f32(float *p, vec_f32 v, Py_ssize_t m) { _mm256_maskstore_ps(p, fb_first_f32(m), (__m256)v); }
FB_INLINE void store_part_f64(double *p, vec_f64 v, Py_ssize_t m) { _mm256_maskstore_pd(p, fb_first_f64(m), (__m256d)v); }
FB_INLINE vec_f32 select_f32(mask_f32 m, vec_f32 a, vec_f32 b) { return (vec_f32)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)m); }
FB_INLINE vec_f64 select_f64(mask_f64 m, vec_f64 a, vec_f64 b) { return (vec_f64)_mm256_blendv_pd((__m256d)b, (__m256d)a, (__m256d)m); }
FB_INLINE vec_f32 sqrt_f32(vec_f32 x) { return (vec_f32)_mm256_sqrt_ps((__m256)x); }
FB_INLINE vec_f64 sqrt_f64(vec_f64 x) { return (vec_f64)_mm256_sqrt_pd((__m256d)x); }
FB_INLINE vec_f32 fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return (vec_f32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
FB_INLINE vec_f64 fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return (vec_f64)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
FB_INLINE int any_f32(mask_f32 m) { return _mm256_movemask_ps((__m256)m) != 0; }
FB_INLINE int any_f64(mask_f64 m) { return _mm256_movemask_pd((__m256d)m) != 0; }
#else
/* Portable: the compiler lowers these to SSE2, NEON or plain code. */
#define FB_PORTABLE(S, T, SQRT) \
    FB_INLINE vec_##S load_part_##S(const T *p, Py_ssize_t m) { \
        vec_##S v = {0}; \
        for (Py_ssize_t i = 0; i < m; i++) v[i] = p[i]; \
        return v; \
    } \
    FB_INLINE void store_part_##S(T *p, vec_##S v, Py_ssize_t m) { \
        for (Py_ssize_t i = 0; i < m; i++) p[i] = v[i]; \
    } \
    FB_INLINE vec_##S select_##S(mask_##S m, vec_##S a, vec_##S b) { \
        return (vec_##S)(((int_##S)a & m) | ((int_##S)b & ~m)); \
    } \
    FB_INLINE vec_##S sqrt_##S(vec_##S x) { \
        for (int i = 0; i < LANES_##S; i++) x[i] = SQRT(x[i]); \
        return x; \
    } \
    FB_INLINE int any_##S(mask_##S m) { \
        int some = 0; \
        for (int i = 0; i < LANES_##S; i++) some |= m[i] != 0; \
        return some; \
    }
FB_PORTABLE(f32, float, sqrtf)
FB_PORTABLE(f64, double, sqrt)
#undef FB_PORTABLE
#if defined(__aarch64__)
#include <arm_neon.h>
FB_INLINE vec_f32 fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return (vec_f32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
FB_INLINE vec_f64 fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return (vec_f64)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
#else
/* No fused multiply-add in the instruction set: the product is rounded. */
FB_INLINE vec_f32 fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return a * b + c; }
FB_INLINE vec_f64 fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return a * b + c; }
#endif
#endif
#define FB_COMPARE(name, op) \
    FB_INLINE mask_f32 name##_f32(vec_f32 a, vec_f32 b) { return a op b; } \
    FB_INLINE mask_f64 name##_f64(vec_f64 a, vec_f64 b) { return a op b; }
FB_COMPARE(lt, <) FB_COMPARE(le, <=) FB_COMPARE(eq, ==) FB_COMPARE(ne, !=)
#undef FB_COMPARE
#if defined(__AVX2__)
FB_INLINE mask_f32 fb_from_bytes_f32(__m128i x) { return (mask_f32)_mm256_cvtepi8_epi32(x) != 0; }
FB_INLINE mask_f64 fb_from_bytes_f64(__m128i x) { return (mask_f64)_mm256_cvtepi8_epi64(x) != 0; }
/* Packing with saturation keeps 0 and -1; a lane of 64 bits is two of 32. */
FB_INLINE __m128i fb_pack(__m256i v) { return _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)); }
FB_INLINE __m128i fb_bytes_f32(mask_f32 v) { __m128i x = fb_pack((__m256i)v); return _mm_packs_epi16(x, x); }
FB_INLINE __m128i fb_bytes_f64(mask_f64 v) {
    __m128i x = fb_pack((__m256i)v);
    x = _mm_packs_epi32(x, x);
    return _mm_packs_epi16(x, x);
}
#define FB_MASK_ALL(S) \
    FB_INLINE mask_##S load_mask_all_##S(const uint8_t *p) { \
        __m128i v = _mm_setzero_si128(); \
        memcpy(&v, p, LANES_##S); \
        return fb_from_bytes_##S(v); \
    } \
    FB_INLINE void store_mask_all_##S(uint8_t *p, mask_##S v) { \
        __m128i one = _mm_and_si128(fb_bytes_##S(v), _mm_set1_epi8(1)); \
        memcpy(p, &one, LANES_##S); \
    }
#else
#define FB_MASK_ALL(S) \
    typedef int8_t bytes_##S __attribute__((vector_size(LANES_##S))); \
    FB_INLINE mask_##S load_mask_all_##S(const uint8_t *p) { \
        bytes_##S v; \
        memcpy(&v, p, sizeof v); \
        return __builtin_convertvector(v, int_##S) != 0; \
    } \
    FB_INLINE void store_mask_all_##S(uint8_t *p, mask_##S v) { \
        bytes_##S one = __builtin_convertvector((int_##S)v, bytes_##S) & 1; \
        memcpy(p, &one, sizeof one); \
    }
#endif
FB_MASK_ALL(f32) FB_MASK_ALL(f64)
#undef FB_MASK_ALL
#define FB_MASK(S) \
    FB_INLINE mask_##S load_mask_##S(const uint8_t *p, Py_ssize_t m) { \
        mask_##S v = {0}; \
        for (int i = 0; i < LANES_##S; i++) v[i] = -(i < m && p[i] != 0); \
        return v; \
    } \
    FB_INLINE void store_mask_##S(uint8_t *p, mask_##S v, Py_ssize_t m) { \
        for (int i = 0; i < LANES_##S; i++) if (i < m) p[i] = v[i] != 0; \
    }
FB_MASK(f32) FB_MASK(f64)
#undef FB_MASK
#endif

/* atmost, atleast: the smaller, the larger of x and c, x where either is NaN or both are 0. */
#if defined(__AVX512F__)
#define FB_BOUND(name, op, low, high) \
    FB_INLINE vec_f32 name##_f32(vec_f32 x, vec_f32 c) { return (vec_f32)_mm512_##op##_ps((__m512)c, (__m512)x); } \
    FB_INLINE vec_f64 name##_f64(vec_f64 x, vec_f64 c) { return (vec_f64)_mm512_##op##_pd((__m512d)c, (__m512d)x); }
#elif defined(__AVX2__)
#define FB_BOUND(name, op, low, high) \
    FB_INLINE vec_f32 name##_f32(vec_f32 x, vec_f32 c) { return (vec_f32)_mm256_##op##_ps((__m256)c, (__m256)x); } \
    FB_INLINE vec_f64 name##_f64(vec_f64 x, vec_f64 c) { return (vec_f64)_mm256_##op##_pd((__m256d)c, (__m256d)x); }
#elif defined(__SSE2__)
#define FB_BOUND(name, op, low, high) \
    FB_INLINE vec_f32 name##_f32(vec_f32 x, vec_f32 c) { return (vec_f32)_mm_##op##_ps((__m128)c, (__m128)x); } \
    FB_INLINE vec_f64 name##_f64(vec_f64 x, vec_f64 c) { return (vec_f64)_mm_##op##_pd((__m128d)c, (__m128d)x); }
#else
#define FB_BOUND(name, op, low, high) \
    FB_INLINE vec_f32 name##_f32(vec_f32 x, vec_f32 c) { return select_f32(lt_f32(low, high), c, x); } \
    FB_INLINE vec_f64 name##_f64(vec_f64 x, vec_f64 c) { return select_f64(lt_f64(low, high), c, x); }
#endif
FB_BOUND(atmost, min, c, x)
FB_BOUND(atleast, max, x, c)
#undef FB_BOUND

/* load and store m elements, or a whole vector where m is larger. */
#define FB_BOTH(S, T, B) \
    /* c - 0 is c, -0 as well, and compiles to a plain broadcast; 0 + c is neither. */ \
    FB_INLINE vec_##S splat_##S(double c) { return (T)c - (vec_##S){0}; } \
    FB_INLINE vec_##S load_all_##S(const T *p) { return *(const vec_##S *)p; } \
    FB_INLINE void store_all_##S(T *p, vec_##S v) { *(vec_##S *)p = v; } \
    FB_INLINE vec_##S load_##S(const T *p, Py_ssize_t m) { \
        return m >= LANES_##S ? load_all_##S(p) : load_part_##S(p, m); \
    } \
    FB_INLINE void store_##S(T *p, vec_##S v, Py_ssize_t m) { \
        if (m >= LANES_##S) store_all_##S(p, v); else store_part_##S(p, v, m); \
    } \
    /* A part of one element without a mask: what a masked store wrote, a masked load waits for. */ \
    FB_INLINE vec_##S load_rest_##S(const T *p, Py_ssize_t m) { return m == 1 ? splat_##S(*p) : load_part_##S(p, m); } \
    FB_INLINE void store_rest_##S(T *p, vec_##S v, Py_ssize_t m) { \
        if (m == 1) *p = v[0]; else store_part_##S(p, v, m); \
    } \
    FB_INLINE vec_##S abs_##S(vec_##S x) { return (vec_##S)((int_##S)x & B); } \
    FB_INLINE vec_##S copysign_##S(vec_##S x, vec_##S s) { \
        return (vec_##S)(((int_##S)x & B) | ((int_##S)s & ~(int_##S){0} & ~B)); \
    } \
    /* The larger, the smaller; NaN where either is NaN. */ \
    FB_INLINE vec_##S max_##S(vec_##S x, vec_##S y) { return select_##S(ne_##S(x, x), x, atleast_##S(y, x)); } \
    FB_INLINE vec_##S min_##S(vec_##S x, vec_##S y) { return select_##S(ne_##S(x, x), x, atmost_##S(y, x)); }
FB_BOTH(f32, float, INT32_MAX)
FB_BOTH(f64, double, INT64_MAX)
#undef FB_BOTH

/* One lane's fused multiply-add: the bits of `fma` in a vector. */
#if defined(__FMA__) || defined(__aarch64__)
FB_INLINE float fma_one_f32(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
FB_INLINE double fma_one_f64(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
FB_INLINE float fma_one_f32(float a, float b, float c) { return a * b + c; }
FB_INLINE double fma_one_f64(double a, double b, double c) { return a * b + c; }
#endif

/* Lanes by number. */
#if FB_VECTOR_BYTES == 64
static const int_f32 fb_lane_f32 = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const int_f64 fb_lane_f64 = {0, 1, 2, 3, 4, 5, 6, 7};
#elif FB_VECTOR_BYTES == 32
static const int_f32 fb_lane_f32 = {0, 1, 2, 3, 4, 5, 6, 7};
static const int_f64 fb_lane_f64 = {0, 1, 2, 3};
#else
static const int_f32 fb_lane_f32 = {0, 1, 2, 3};
static const int_f64 fb_lane_f64 = {0, 1};
#endif
#if defined(__clang__)
#define FB_SHUFFLE(S, v, places) \
    vec_##S moved; \
    for (int l = 0; l < LANES_##S; l++) moved[l] = v[places[l]]; \
    return moved
#else
#define FB_SHUFFLE(S, v, places) return __builtin_shuffle(v, places)
#endif
#define FB_LANES(S, T) \
    /* m elements, and `fill` in the lanes behind them. */ \
    FB_INLINE vec_##S load_or_##S(const T *p, Py_ssize_t m, vec_##S fill) { \
        if (m >= LANES_##S) return load_all_##S(p); \
        if (m <= 0) return fill; \
        return select_##S(lt_##S(__builtin_convertvector(fb_lane_##S, vec_##S), splat_##S(m)), load_part_##S(p, m), fill); \
    } \
    /* Lane l + k in lane l, counted around. */ \
    FB_INLINE vec_##S down_##S(vec_##S v, int k) { \
        int_##S places = (fb_lane_##S + k) & (LANES_##S - 1); \
        FB_SHUFFLE(S, v, places); \
    }
FB_LANES(f32, float)
FB_LANES(f64, double)
#undef FB_LANES

/* n rows, `step` bytes apart, of at most one vector of columns: lane[r % 16] = f(..., row r),
   from `first` on. The 16 chains stay in registers. */
#define FB_COLUMNS(S, T) \
    FB_INLINE void fold_columns_##S(const char *x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t width, vec_##S first, \
                                    vec_##S (*f)(vec_##S, vec_##S), vec_##S *lane) { \
        vec_##S sum[16]; \
        FB_UNROLL for (int l = 0; l < 16; l++) sum[l] = first; \
        if (width >= LANES_##S) { \
            for (; n >= 16; n -= 16, x += 16 * step) \
                FB_UNROLL for (int l = 0; l < 16; l++) sum[l] = f(sum[l], load_all_##S((const T *)(x + l * step))); \
        } else { \
            for (; n >= 16; n -= 16, x += 16 * step) \
                FB_UNROLL for (int l = 0; l < 16; l++) sum[l] = f(sum[l], load_part_##S((const T *)(x + l * step), width)); \
        } \
        FB_UNROLL for (int l = 0; l < 16; l++) lane[l] = sum[l]; \
        for (Py_ssize_t r = 0; r < n; r++) lane[r] = f(lane[r], load_##S((const T *)(x + r * step), width)); \
    } \
    /* The 16 lanes in one: l with l + 8, then l + 4, l + 2, l + 1. */ \
    FB_INLINE vec_##S fold_16_##S(vec_##S *lane, vec_##S (*f)(vec_##S, vec_##S)) { \
        vec_##S v[8]; \
        FB_UNROLL for (int l = 0; l < 8; l++) v[l] = f(lane[l], lane[l + 8]); \
        FB_UNROLL for (int l = 0; l < 4; l++) v[l] = f(v[l], v[l + 4]); \
        return f(f(v[0], v[2]), f(v[1], v[3])); \
    }
FB_COLUMNS(f32, float)
FB_COLUMNS(f64, double)
#undef FB_COLUMNS
#undef FB_SHUFFLE

#define FB_PICK(name, x) _Generic((x), vec_f32: name##_f32, vec_f64: name##_f64)
#define FB_PICK_POINTER(name, p) _Generic((p), \
    float *: name##_f32, const float *: name##_f32, double *: name##_f64, const double *: name##_f64)
#define v_load(p, m) FB_PICK_POINTER(load, p)(p, m)
#define v_load_all(p) FB_PICK_POINTER(load_all, p)(p)
#define v_load_part(p, m) FB_PICK_POINTER(load_part, p)(p, m)
#define v_load_rest(p, m) FB_PICK_POINTER(load_rest, p)(p, m)
#define v_store_rest(p, v, m) FB_PICK_POINTER(store_rest, p)(p, v, m)
#define v_load_or(p, m, fill) FB_PICK_POINTER(load_or, p)(p, m, fill)
#define v_down(v, k) FB_PICK(down, v)(v, k)
#define v_first(v) ((v)[0])
#define v_fold_columns(x, step, n, width, first, f, lane) FB_PICK(fold_columns, first)(x, step, n, width, first, f, lane)
#define v_fold_16(lane, f) FB_PICK(fold_16, (lane)[0])(lane, f)
#define v_store(p, v, m) FB_PICK_POINTER(store, p)(p, v, m)
#define v_store_all(p, v) FB_PICK_POINTER(store_all, p)(p, v)
#define v_store_part(p, v, m) FB_PICK_POINTER(store_part, p)(p, v, m)
#define v_select(m, a, b) FB_PICK(select, a)(m, a, b)
#define v_lt(a, b) FB_PICK(lt, a)(a, b)
#define v_le(a, b) FB_PICK(le, a)(a, b)
#define v_eq(a, b) FB_PICK(eq, a)(a, b)
#define v_ne(a, b) FB_PICK(ne, a)(a, b)
#define v_max(a, b) FB_PICK(max, a)(a, b)
#define v_min(a, b) FB_PICK(min, a)(a, b)
#define v_atleast(x, c) FB_PICK(atleast, x)(x, c)
#define v_abs(x) FB_PICK(abs, x)(x)
#define v_copysign(x, s) FB_PICK(copysign, x)(x, s)
#define v_sqrt(x) FB_PICK(sqrt, x)(x)
#define v_fma_one(a, b, c) _Generic((a), float: fma_one_f32, double: fma_one_f64)(a, b, c)
#define v_fma(a, b, c) FB_PICK(fma, a)(a, b, c)

#endif
