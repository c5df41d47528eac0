/* The register tile of the matrix product (R rows by V vectors of C, in registers
   while one block of k goes by), the tiles of narrow and of short products, the tile
   of one row over a transposed B, and the transposing pack.

   The order of every sum is here: an element of a tile is the chain
   fma(a, b, ... fma(a, b, 0)) over ascending k, whatever R, V and the lane. In a convolution it
   begins with the bias of its row, and k comes in pieces: a row of a window each. */
#ifndef FASTBP_TILE_H
#define FASTBP_TILE_H

#include "simd.h"

/* Steps stay in the order in which they stand here, which the registers just allow; elsewhere
   the compiler moves them (setup.py). */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("no-schedule-insns")
#endif

/* Strides are in bytes. `last` is how many columns the last vector has; `rows` is
   read by the tiles that do not have their height from their name. */
typedef struct {
    const char *a, *b;
    char *c;
    Py_ssize_t a_row, a_k, b_k, b_column, c_row, k, last, rows;
    const char *add;    /* what the sums are added to: C itself, of earlier blocks; a bias; or nothing, NULL */
    Py_ssize_t add_row; /* c_row for C, 0 for a bias */
    /* Of the tiles by V vectors: */
    const Py_ssize_t *jumps; /* from a and b to where each of `pieces` pieces of k begins */
    Py_ssize_t pieces;
    const char *begin;       /* what the first row's chains begin with, a number, and in bytes from row to row */
    Py_ssize_t begin_row;
} fb_tile;

static const Py_ssize_t fb_whole[2] = {0, 0}; /* the jumps of a k of one piece; chains that begin with 0 */

/* How many rows a tile of 1, 2, 3, 4 and 8 vectors can have: accumulators,
   the vectors of B and one element of A fill the registers. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define FB_SHAPES(X, ...) FB_TO_9(X, 1, __VA_ARGS__) FB_TO_12(X, 2, __VA_ARGS__) \
    FB_TO_9(X, 3, __VA_ARGS__) FB_TO_6(X, 4, __VA_ARGS__) FB_TO_1(X, 8, __VA_ARGS__)
enum { FB_ROWS_1 = 9, FB_ROWS_2 = 12, FB_ROWS_3 = 9, FB_ROWS_4 = 6, FB_SHORT = 12 };
#else
#define FB_SHAPES(X, ...) FB_TO_12(X, 1, __VA_ARGS__) FB_TO_6(X, 2, __VA_ARGS__) \
    FB_TO_4(X, 3, __VA_ARGS__) FB_TO_2(X, 4, __VA_ARGS__) FB_TO_1(X, 8, __VA_ARGS__)
enum { FB_ROWS_1 = 12, FB_ROWS_2 = 6, FB_ROWS_3 = 4, FB_ROWS_4 = 2, FB_SHORT = 4 };
#endif
#define FB_TO_1(X, ...) X(1, __VA_ARGS__)
#define FB_TO_2(X, ...) FB_TO_1(X, __VA_ARGS__) X(2, __VA_ARGS__)
#define FB_TO_4(X, ...) FB_TO_2(X, __VA_ARGS__) X(3, __VA_ARGS__) X(4, __VA_ARGS__)
#define FB_TO_6(X, ...) FB_TO_4(X, __VA_ARGS__) X(5, __VA_ARGS__) X(6, __VA_ARGS__)
#define FB_TO_8(X, ...) FB_TO_6(X, __VA_ARGS__) X(7, __VA_ARGS__) X(8, __VA_ARGS__)
#define FB_TO_9(X, ...) FB_TO_8(X, __VA_ARGS__) X(9, __VA_ARGS__)
#define FB_TO_12(X, ...) FB_TO_9(X, __VA_ARGS__) X(10, __VA_ARGS__) X(11, __VA_ARGS__) X(12, __VA_ARGS__)

enum {
    FB_BLOCK = 512,                /* the longest chain; a multiple of 16 */
    FB_PACK_ROWS = 4 * FB_ROWS_2,  /* with as many rows of A a copy of B pays for itself */
    FB_SCRATCH = 96 << 10,         /* bytes of packed B: FB_BLOCK rows of 3 vectors of 64 bytes */
    FB_L1 = 32 << 10,              /* bytes that surely stay in L1 */
    FB_NEAR = 256 << 10,           /* bytes of A that stay in L2 beside a panel of B */
    FB_FAR = 2 << 20,              /* bytes that do not stay in L2 */
    FB_REACH = 8 << 20,            /* bytes of B on as many pages as address caches know of */
    FB_NARROW_ROWS = 8,            /* vectors in a tile of several rows a vector */
    FB_FEW = 32,                   /* multiply-adds that are done before a tile is set up */
};

/* Where masks are free, tiles read B in place at the right edge; elsewhere the edge is
   packed, padded to a whole vector. */
#if defined(__AVX512F__)
enum { FB_MASKED = 1 };
#else
enum { FB_MASKED = 0 };
#endif
#define FB_EDGE(S, T) \
    FB_INLINE vec_##S load_edge_##S(const T *p, Py_ssize_t m) { return FB_MASKED ? load_part_##S(p, m) : load_##S(p, m); } \
    FB_INLINE void store_edge_##S(T *p, vec_##S v, Py_ssize_t m) { \
        if (FB_MASKED) store_part_##S(p, v, m); else store_##S(p, v, m); \
    }
FB_EDGE(f32, float)
FB_EDGE(f64, double)
#undef FB_EDGE

/* Keeps the compiler from moving loads over it: what is used twice stays in a
   register instead of being loaded twice, often across two cache lines. */
#define FB_FENCE __asm__ volatile("" ::: "memory");

/* A pointer whose steps the compiler does not see: it would keep one for every row of
   A, more than there are registers, instead of one for every fourth. */
#define FB_OPAQUE(p) __asm__("" : "+r"(p));

/* x - 0 is x spread over a vector, for every x (x + 0 would lose the sign of -0). */
#define FB_SPREAD(S, x) ((x) - (vec_##S){0})

#define FB_TILE_BODY(S, T) \
    FB_INLINE void tile_##S(int R, int V, const fb_tile *t) { \
        vec_##S acc[28], row[8]; \
        const Py_ssize_t *jumps = t->jumps, *end = jumps + 2 * t->pieces; \
        Py_ssize_t a_row = t->a_row, a_k = t->a_k, b_k = t->b_k, last = t->last, begin_row = t->begin_row; \
        const char *begin = t->begin; \
        FB_UNROLL for (int r = 0; r < R; r++) { \
            vec_##S x = FB_SPREAD(S, *(const T *)(begin + r * begin_row)); \
            FB_UNROLL for (int v = 0; v < V; v++) acc[r * V + v] = x; \
        } \
        for (; jumps < end; jumps += 2) { \
            const char *a = t->a + jumps[0], *b = t->b + jumps[1]; \
            for (Py_ssize_t k = t->k; k > 0; k--, a += a_k, b += b_k) { \
                FB_UNROLL for (int v = 0; v < V; v++) { \
                    const T *p = (const T *)b + v * LANES_##S; \
                    row[v] = FB_MASKED && v == V - 1 ? load_part_##S(p, last) : load_all_##S(p); \
                } \
                FB_UNROLL for (int r = 0; r < R; r++) { \
                    vec_##S x = FB_SPREAD(S, *(const T *)(a + r * a_row)); \
                    FB_UNROLL for (int v = 0; v < V; v++) acc[r * V + v] = fma_##S(x, row[v], acc[r * V + v]); \
                } \
            } \
        } \
        char *c = t->c; \
        Py_ssize_t c_row = t->c_row, add_row = t->add_row; \
        const char *add = t->add; \
        if (add) \
            FB_UNROLL for (int r = 0; r < R; r++) \
                FB_UNROLL for (int v = 0; v < V; v++) { \
                    const T *p = (const T *)(add + r * add_row) + v * LANES_##S; \
                    acc[r * V + v] += v < V - 1 ? load_all_##S(p) : load_edge_##S(p, last); \
                } \
        FB_UNROLL for (int r = 0; r < R; r++) { \
            T *p = (T *)(c + r * c_row); \
            FB_UNROLL for (int v = 0; v < V - 1; v++) store_all_##S(p + v * LANES_##S, acc[r * V + v]); \
            store_edge_##S(p + (V - 1) * LANES_##S, acc[r * V + V - 1], last); \
        } \
    }
FB_TILE_BODY(f32, float)
FB_TILE_BODY(f64, double)
#undef FB_TILE_BODY

#define FB_ONE(R, V, S) static void tile_##S##_##R##x##V(const fb_tile *t) { tile_##S(R, V, t); }
#define FB_ENTRY(R, V, S) [V][R] = tile_##S##_##R##x##V,
typedef void (*fb_tile_run)(const fb_tile *);
FB_SHAPES(FB_ONE, f32)
FB_SHAPES(FB_ONE, f64)
static const fb_tile_run fb_tiles_f32[9][13] = {FB_SHAPES(FB_ENTRY, f32)};
static const fb_tile_run fb_tiles_f64[9][13] = {FB_SHAPES(FB_ENTRY, f64)};
#undef FB_ONE
#undef FB_ENTRY

FB_INLINE fb_tile_run tile_of_f32(const float *type, Py_ssize_t rows, Py_ssize_t vectors) {
    return (void)type, fb_tiles_f32[vectors][rows];
}
FB_INLINE fb_tile_run tile_of_f64(const double *type, Py_ssize_t rows, Py_ssize_t vectors) {
    return (void)type, fb_tiles_f64[vectors][rows];
}
#define v_tile_of(type, rows, vectors) FB_PICK_POINTER(tile_of, type)(type, rows, vectors)

/* 16 bytes of a row, in every 128 bits of a vector; one of their elements spread over
   its 128 bits, which costs less than a load of its own. */
#define FB_4(at, e) at + e, at + e, at + e, at + e
#define FB_2(at, e) at + e, at + e
#if FB_VECTOR_BYTES == 64
#define FB_ELEMENT_f32(x, e) __builtin_shufflevector(x, x, FB_4(0, e), FB_4(4, e), FB_4(8, e), FB_4(12, e))
#define FB_ELEMENT_f64(x, e) __builtin_shufflevector(x, x, FB_2(0, e), FB_2(2, e), FB_2(4, e), FB_2(6, e))
FB_INLINE vec_f32 load_part_of_row_f32(const float *p) { return (vec_f32)_mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
FB_INLINE vec_f64 load_part_of_row_f64(const double *p) { return (vec_f64)_mm512_broadcast_f64x2(_mm_loadu_pd(p)); }
#elif FB_VECTOR_BYTES == 32
#define FB_ELEMENT_f32(x, e) __builtin_shufflevector(x, x, FB_4(0, e), FB_4(4, e))
#define FB_ELEMENT_f64(x, e) __builtin_shufflevector(x, x, FB_2(0, e), FB_2(2, e))
FB_INLINE vec_f32 load_part_of_row_f32(const float *p) { return (vec_f32)_mm256_broadcast_ps((const __m128 *)p); }
FB_INLINE vec_f64 load_part_of_row_f64(const double *p) { return (vec_f64)_mm256_broadcast_pd((const __m128d *)p); }
#else
#define FB_ELEMENT_f32(x, e) __builtin_shufflevector(x, x, FB_4(0, e))
#define FB_ELEMENT_f64(x, e) __builtin_shufflevector(x, x, FB_2(0, e))
FB_INLINE vec_f32 load_part_of_row_f32(const float *p) { return load_all_f32(p); }
FB_INLINE vec_f64 load_part_of_row_f64(const double *p) { return load_all_f64(p); }
#endif

/* The first n elements of p in each of G groups of lanes; the lanes from l on. */
#if defined(__AVX512F__)
#define FB_LANES_FROM(S, l) ((mask_##S)(~0u << (l)))
FB_INLINE vec_f32 load_groups_f32(int G, const float *p, Py_ssize_t n) {
    if (G == 4) return (vec_f32)_mm512_broadcast_f32x4(_mm_maskz_loadu_ps((__mmask8)FB_FIRST(f32, n), p));
    return (vec_f32)_mm512_broadcast_f32x8(_mm256_maskz_loadu_ps((__mmask8)FB_FIRST(f32, n), p));
}
FB_INLINE vec_f64 load_groups_f64(int G, const double *p, Py_ssize_t n) {
    if (G == 4) return (vec_f64)_mm512_broadcast_f64x2(_mm_maskz_loadu_pd(FB_FIRST(f64, n), p));
    return (vec_f64)_mm512_broadcast_f64x4(_mm256_maskz_loadu_pd(FB_FIRST(f64, n), p));
}
#else
#define FB_LANES_FROM(S, l) (fb_lane_##S >= (l))
FB_INLINE vec_f32 load_groups_f32(int G, const float *p, Py_ssize_t n) {
    return (void)G, (void)n, load_part_of_row_f32(p);
}
FB_INLINE vec_f64 load_groups_f64(int G, const double *p, Py_ssize_t n) {
    return (void)G, (void)n, load_part_of_row_f64(p);
}
#endif

/* narrow: R vectors of C, of one panel of LANES / G columns at most; each vector is G
   rows side by side. A has unit stride along k, so its elements come 16 bytes at a time.

   short: any number of rows by V vectors, for K steps of k. The rows of B stay in registers. */
#define FB_NARROW(S, T) \
    FB_INLINE vec_##S rows_##S(int G, const char *const *four, Py_ssize_t a_row, int r, vec_##S (*load)(const T *)) { \
        vec_##S x = load((const T *)(four[r / 4] + r % 4 * a_row)); \
        FB_UNROLL for (int g = 1; g < G; g++) \
            x = select_##S(FB_LANES_FROM(S, g * (LANES_##S / G)), \
                           load((const T *)(four[(r + g) / 4] + (r + g) % 4 * a_row)), x); \
        return x; \
    } \
    FB_INLINE vec_##S spread_##S(const T *p) { return FB_SPREAD(S, *p); } \
    FB_INLINE void narrow_##S(int G, int R, const fb_tile *t) { \
        enum { L = LANES_##S, Q = 16 / sizeof(T) }; \
        vec_##S acc[FB_NARROW_ROWS], x[FB_NARROW_ROWS], y[Q]; \
        const char *four[FB_NARROW_ROWS], *b = t->b; /* every fourth row of A */ \
        Py_ssize_t last = t->last, a_row = t->a_row, b_k = t->b_k, k = t->k; \
        FB_UNROLL for (int i = 0; i < G * R; i += 4) four[i / 4] = t->a + i * a_row; \
        FB_UNROLL for (int r = 0; r < R; r++) acc[r] = (vec_##S){0}; \
        for (; k >= Q; k -= Q) { \
            FB_UNROLL for (int q = 0; q < Q; q++, b += b_k) y[q] = load_groups_##S(G, (const T *)b, last); \
            FB_UNROLL for (int r = 0; r < R; r++) x[r] = rows_##S(G, four, a_row, r * G, load_part_of_row_##S); \
            FB_FENCE \
            FB_STEPS_##S \
            FB_UNROLL for (int i = 0; i < G * R; i += 4) { four[i / 4] += 16; FB_OPAQUE(four[i / 4]) } \
        } \
        for (; k > 0; k--, b += b_k) { \
            y[0] = load_groups_##S(G, (const T *)b, last); \
            FB_UNROLL for (int r = 0; r < R; r++) \
                acc[r] = fma_##S(rows_##S(G, four, a_row, r * G, spread_##S), y[0], acc[r]); \
            FB_UNROLL for (int i = 0; i < G * R; i += 4) { four[i / 4] += sizeof(T); FB_OPAQUE(four[i / 4]) } \
        } \
        char *c = t->c; \
        const char *add = t->add; \
        if (add && t->add_row == 0) { \
            FB_UNROLL for (int r = 0; r < R; r++) acc[r] += load_groups_##S(G, (const T *)add, last); \
            add = NULL; \
        } \
        if (last * G == L && t->c_row == L / G * sizeof(T) && !add) { \
            FB_UNROLL for (int r = 0; r < R; r++) store_all_##S((T *)c + r * L, acc[r]); \
        } else { \
            T part[FB_NARROW_ROWS * L]; \
            FB_UNROLL for (int r = 0; r < R; r++) store_all_##S(part + r * L, acc[r]); \
            for (const T *from = part; from < part + R * L; from += L / G, c += t->c_row) { \
                vec_##S v = load_groups_##S(G, from, last); \
                if (add) v += load_edge_##S((const T *)c, last); \
                store_edge_##S((T *)c, v, last); \
            } \
        } \
    } \
    FB_INLINE void short_##S(int K, int V, const fb_tile *t) { \
        enum { L = LANES_##S }; \
        vec_##S y[2 * FB_SHORT], bias[2] = {{0}, {0}}; \
        const char *a = t->a; \
        char *c = t->c; \
        Py_ssize_t last = t->last; \
        FB_UNROLL for (int i = 0; i < K * V; i++) { \
            const T *b = (const T *)(t->b + i / V * t->b_k) + i % V * L; \
            y[i] = FB_MASKED && i % V == V - 1 ? load_part_##S(b, last) : load_all_##S(b); \
        } \
        const T *add = (const T *)t->add; \
        if (add) \
            FB_UNROLL for (int v = 0; v < V; v++) \
                bias[v] = v < V - 1 ? load_all_##S(add + v * L) : load_edge_##S(add + v * L, last); \
        for (Py_ssize_t r = t->rows; r > 0; r--, a += t->a_row, c += t->c_row) { \
            vec_##S acc[2] = {{0}, {0}}; \
            FB_UNROLL for (int k = 0; k < K; k++) { \
                vec_##S x = FB_SPREAD(S, *(const T *)(a + k * t->a_k)); \
                FB_UNROLL for (int v = 0; v < V; v++) acc[v] = fma_##S(x, y[k * V + v], acc[v]); \
            } \
            if (add) \
                FB_UNROLL for (int v = 0; v < V; v++) acc[v] += bias[v]; \
            FB_UNROLL for (int v = 0; v < V - 1; v++) store_all_##S((T *)c + v * L, acc[v]); \
            store_edge_##S((T *)c + (V - 1) * L, acc[V - 1], last); \
        } \
    }
#define FB_STEP_OF(S, q) FB_UNROLL for (int r = 0; r < R; r++) acc[r] = fma_##S(FB_ELEMENT_##S(x[r], q), y[q], acc[r]);
#define FB_STEPS_f32 FB_STEP_OF(f32, 0) FB_STEP_OF(f32, 1) FB_STEP_OF(f32, 2) FB_STEP_OF(f32, 3)
#define FB_STEPS_f64 FB_STEP_OF(f64, 0) FB_STEP_OF(f64, 1)
FB_NARROW(f32, float)
FB_NARROW(f64, double)
#undef FB_NARROW

#if FB_VECTOR_BYTES == 64
#define FB_GROUPS(X, S) FB_TO_8(X, 2, S) FB_TO_8(X, 4, S)
#elif FB_VECTOR_BYTES == 32
#define FB_GROUPS(X, S) FB_TO_8(X, 2, S)
#else
#define FB_GROUPS(X, S)
#endif
#define FB_ONE(R, G, S) static void narrow_##S##_##R##x##G(const fb_tile *t) { narrow_##S(G, R, t); }
#define FB_ENTRY(R, G, S) [G][R] = narrow_##S##_##R##x##G,
FB_GROUPS(FB_ONE, f32)
FB_GROUPS(FB_ONE, f64)
static const fb_tile_run fb_narrow_f32[5][FB_NARROW_ROWS + 1] = {FB_GROUPS(FB_ENTRY, f32)};
static const fb_tile_run fb_narrow_f64[5][FB_NARROW_ROWS + 1] = {FB_GROUPS(FB_ENTRY, f64)};
#undef FB_ONE
#undef FB_ENTRY
#if FB_VECTOR_BYTES == 64
#define FB_SHORTS(X, S) FB_TO_12(X, 1, S) FB_TO_12(X, 2, S)
#else
#define FB_SHORTS(X, S) FB_TO_4(X, 1, S) FB_TO_4(X, 2, S)
#endif
#define FB_ONE(K, V, S) static void short_##S##_##K##x##V(const fb_tile *t) { short_##S(K, V, t); }
#define FB_ENTRY(K, V, S) [V][K] = short_##S##_##K##x##V,
FB_SHORTS(FB_ONE, f32)
FB_SHORTS(FB_ONE, f64)
static const fb_tile_run fb_short_f32[3][FB_SHORT + 1] = {FB_SHORTS(FB_ENTRY, f32)};
static const fb_tile_run fb_short_f64[3][FB_SHORT + 1] = {FB_SHORTS(FB_ENTRY, f64)};
#undef FB_ONE
#undef FB_ENTRY
FB_INLINE fb_tile_run narrow_of_f32(const float *type, Py_ssize_t rows, Py_ssize_t groups) {
    return (void)type, fb_narrow_f32[groups][rows];
}
FB_INLINE fb_tile_run narrow_of_f64(const double *type, Py_ssize_t rows, Py_ssize_t groups) {
    return (void)type, fb_narrow_f64[groups][rows];
}
FB_INLINE fb_tile_run short_of_f32(const float *type, Py_ssize_t k, Py_ssize_t vectors) {
    return (void)type, fb_short_f32[vectors][k];
}
FB_INLINE fb_tile_run short_of_f64(const double *type, Py_ssize_t k, Py_ssize_t vectors) {
    return (void)type, fb_short_f64[vectors][k];
}
#define v_narrow_of(type, rows, groups) FB_PICK_POINTER(narrow_of, type)(type, rows, groups)
#define v_short_of(type, k, vectors) FB_PICK_POINTER(short_of, type)(type, k, vectors)

/* Transpose: LANES vectors t, in place, in as many steps as LANES has bits. A
   step of width w turns the vectors i and i + w into two others: in the steps
   that stay within 128 bits one interleaves their lower halves and one their
   upper halves, in the later steps one takes the even 128-bit parts of both,
   one the odd. */
#define FB_STEP(L, w, first, second) \
    FB_UNROLL for (int i = 0; i < L; i++) if (!(i & w)) { \
        __typeof__(t[0]) x = t[i], y = t[i + w]; \
        t[i] = __builtin_shufflevector(x, y, FB_LIST first); \
        t[i + w] = __builtin_shufflevector(x, y, FB_LIST second); \
    }
#define FB_LIST(...) __VA_ARGS__
#if FB_VECTOR_BYTES == 64
#define FB_WITHIN_f32(w) FB_STEP(16, w, (0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29), \
                                        (2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31))
#define FB_ACROSS_f32(w) FB_STEP(16, w, (0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27), \
                                        (4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31))
#define FB_WITHIN_f64(w) FB_STEP(8, w, (0, 8, 2, 10, 4, 12, 6, 14), (1, 9, 3, 11, 5, 13, 7, 15))
#define FB_ACROSS_f64(w) FB_STEP(8, w, (0, 1, 4, 5, 8, 9, 12, 13), (2, 3, 6, 7, 10, 11, 14, 15))
#define FB_TURN_f32 FB_WITHIN_f32(2) FB_WITHIN_f32(1) FB_ACROSS_f32(4) FB_ACROSS_f32(8)
#define FB_TURN_f64 FB_WITHIN_f64(1) FB_ACROSS_f64(2) FB_ACROSS_f64(4)
#elif FB_VECTOR_BYTES == 32
#define FB_WITHIN_f32(w) FB_STEP(8, w, (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15))
#define FB_TURN_f32 FB_WITHIN_f32(2) FB_WITHIN_f32(1) \
    FB_STEP(8, 4, (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))
#define FB_TURN_f64 FB_STEP(4, 1, (0, 4, 2, 6), (1, 5, 3, 7)) FB_STEP(4, 2, (0, 1, 4, 5), (2, 3, 6, 7))
#else
#define FB_WITHIN_f32(w) FB_STEP(4, w, (0, 4, 1, 5), (2, 6, 3, 7))
#define FB_TURN_f32 FB_WITHIN_f32(2) FB_WITHIN_f32(1)
#define FB_TURN_f64 FB_STEP(2, 1, (0, 2), (1, 3))
#endif

/* transpose: to[j, i] = from[i, j] for i < rows and j < columns, LANES at most of
   either; of each row of `to` `width` elements are written, zeros for i >= rows.

   column: a row of `last` columns, 4 vectors at most, where B has unit stride along k:
   blocks of LANES columns by LANES k are transposed in registers and used at once. Four
   chains run at a time. Strides are in bytes. */
#define FB_COLUMNS(S, T) \
    static __attribute__((noinline)) void transpose_##S(T *to, Py_ssize_t to_row, const T *source, Py_ssize_t from_row, \
                              Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t width) { \
        const char *from = (const char *)source; \
        T part[LANES_##S * LANES_##S]; \
        vec_##S t[LANES_##S]; \
        if (rows < LANES_##S || columns < LANES_##S) { \
            for (Py_ssize_t i = 0; i < LANES_##S; i++) { \
                t[0] = i < rows ? load_##S((const T *)(from + i * from_row), columns) : (vec_##S){0}; \
                store_all_##S(part + i * LANES_##S, t[0]); \
            } \
            from = (const char *)part; \
            from_row = sizeof(vec_##S); \
        } \
        FB_UNROLL for (int i = 0; i < LANES_##S; i++) t[i] = load_all_##S((const T *)(from + i * from_row)); \
        FB_FENCE FB_TURN_##S \
        if (columns >= LANES_##S && width >= LANES_##S) { \
            FB_UNROLL for (int i = 0; i < LANES_##S; i++) store_all_##S((T *)((char *)to + i * to_row), t[i]); \
        } else { \
            FB_UNROLL for (int i = 0; i < LANES_##S; i++) \
                if (i < columns) store_##S((T *)((char *)to + i * to_row), t[i], width); \
        } \
    } \
    static void column_##S(const fb_tile *p) { \
        enum { L = LANES_##S }; \
        T part[L * L]; \
        vec_##S acc[4] = {{0}, {0}, {0}, {0}}; \
        Py_ssize_t a_k = p->a_k, k = p->k, column = p->b_column; \
        const char *a = p->a, *b = p->b; \
        for (; k > 0; k -= L, a += L * a_k, b += sizeof(vec_##S)) \
            for (Py_ssize_t v = 0; v * L < p->last; v++) { \
                Py_ssize_t width = p->last - v * L; \
                const char *from = b + v * L * column; \
                if (k >= L && width >= L) { \
                    vec_##S t[L]; \
                    FB_UNROLL for (int i = 0; i < L; i++) t[i] = load_all_##S((const T *)(from + i * column)); \
                    FB_FENCE FB_TURN_##S \
                    FB_UNROLL for (int i = 0; i < L; i++) \
                        acc[v] = fma_##S(FB_SPREAD(S, *(const T *)(a + i * a_k)), t[i], acc[v]); \
                } else { \
                    transpose_##S(part, sizeof(vec_##S), (const T *)from, column, width < L ? width : L, k < L ? k : L, L); \
                    for (Py_ssize_t i = 0; i < (k < L ? k : L); i++) \
                        acc[v] = fma_##S(FB_SPREAD(S, *(const T *)(a + i * a_k)), load_all_##S(part + i * L), acc[v]); \
                } \
            } \
        for (Py_ssize_t v = 0; v * L < p->last; v++) { \
            T *c = (T *)p->c + v * L; \
            Py_ssize_t m = p->last - v * L; \
            if (p->add) acc[v] += load_##S((const T *)p->add + v * L, m); \
            store_##S(c, acc[v], m); \
        } \
    } \
    FB_INLINE fb_tile_run column_of_##S(const T *type) { return (void)type, column_##S; }
FB_COLUMNS(f32, float)
FB_COLUMNS(f64, double)
#undef FB_COLUMNS
#define v_transpose(to, to_row, from, from_row, rows, columns, width) \
    FB_PICK_POINTER(transpose, to)(to, to_row, from, from_row, rows, columns, width)
#define v_column_of(type) FB_PICK_POINTER(column_of, type)(type)

/* dots: R rows of A times P rows of B, one sum each, as in the gradient of a convolution's
   weights: a sum runs over `high` times `wide` stretches of n elements, in as many chains as a
   vector has lanes, which are added up at the end. to[p * R + r] is the sum of row r of A and row p of B. */
typedef struct {
    const char *a;
    const char *const *b; /* where each row of B begins */
    Py_ssize_t a_row, high, wide, n, a_high, a_wide, b_high, b_wide;
} fb_dots;

/* Rows are 4 at most where there are 32 registers, else 2; columns 5 or 3 or 1. */
#define FB_DOT_PAIRS(X, P, S) X(1, P, S) X(2, P, S)
#if defined(__AVX512F__) || defined(__aarch64__)
enum { FB_DOT_ROWS = 4, FB_DOT_COLUMNS = 5 };
#define FB_DOT_SHAPES(X, S) FB_DOT_PAIRS(X, 1, S) FB_DOT_PAIRS(X, 3, S) FB_DOT_PAIRS(X, 5, S) \
    X(4, 1, S) X(4, 3, S) X(4, 5, S)
#else
enum { FB_DOT_ROWS = 2, FB_DOT_COLUMNS = 5 };
#define FB_DOT_SHAPES(X, S) FB_DOT_PAIRS(X, 1, S) FB_DOT_PAIRS(X, 3, S) FB_DOT_PAIRS(X, 5, S)
#endif
#define FB_DOT_STEP(S, T, load) \
    FB_UNROLL for (int r = 0; r < R; r++) row[r] = load((const T *)(a + r * a_row + at)); \
    FB_UNROLL for (int p = 0; p < P; p++) { \
        vec_##S x = load((const T *)(b[p] + at)); \
        FB_UNROLL for (int r = 0; r < R; r++) acc[p * R + r] = fma_##S(row[r], x, acc[p * R + r]); \
    }
#define FB_LOAD_REST_f32(p) load_part_f32(p, n)
#define FB_LOAD_REST_f64(p) load_part_f64(p, n)

#define FB_DOTS(S, T) \
    /* to[v] = the sum of the lanes of acc[v], for a vector of them: halves are added up, then quarters, ... */ \
    static __attribute__((noinline)) void add_lanes_##S(T *to, const vec_##S *acc) { \
        enum { L = LANES_##S }; \
        vec_##S t[L]; \
        FB_UNROLL for (int i = 0; i < L; i++) t[i] = acc[i]; \
        FB_FENCE FB_TURN_##S \
        FB_UNROLL for (int w = L / 2; w > 0; w /= 2) \
            FB_UNROLL for (int i = 0; i < w; i++) t[i] += t[i + w]; \
        store_all_##S(to, t[0]); \
    } \
    FB_INLINE void dots_##S(int R, int P, const fb_dots *d, T *to) { \
        enum { L = LANES_##S }; \
        vec_##S acc[FB_DOT_ROWS * FB_DOT_COLUMNS], part[FB_DOT_ROWS * FB_DOT_COLUMNS + L], row[FB_DOT_ROWS]; \
        FB_UNROLL for (int i = 0; i < R * P; i++) acc[i] = (vec_##S){0}; \
        for (Py_ssize_t h = 0; h < d->high; h++) \
            for (Py_ssize_t w = 0; w < d->wide; w++) { \
                const char *a = d->a + h * d->a_high + w * d->a_wide, *b[FB_DOT_COLUMNS]; \
                FB_UNROLL for (int p = 0; p < P; p++) b[p] = d->b[p] + h * d->b_high + w * d->b_wide; \
                Py_ssize_t at = 0, a_row = d->a_row, n = d->n; \
                for (; n >= L; n -= L, at += sizeof(vec_##S)) { FB_DOT_STEP(S, T, load_all_##S) } \
                if (n > 0) { FB_DOT_STEP(S, T, FB_LOAD_REST_##S) } \
            } \
        FB_UNROLL for (int i = 0; i < R * P; i++) part[i] = acc[i]; \
        for (int i = 0; i < R * P; i += L) add_lanes_##S(to + i, part + i); \
    }
FB_DOTS(f32, float)
FB_DOTS(f64, double)
#undef FB_DOTS
#define FB_ONE(R, P, S) static void dots_##S##_##R##x##P(const fb_dots *d, void *to) { dots_##S(R, P, d, to); }
#define FB_ENTRY(R, P, S) [P][R] = dots_##S##_##R##x##P,
typedef void (*fb_dots_run)(const fb_dots *, void *);
FB_DOT_SHAPES(FB_ONE, f32)
FB_DOT_SHAPES(FB_ONE, f64)
static const fb_dots_run fb_all_dots_f32[FB_DOT_COLUMNS + 1][FB_DOT_ROWS + 1] = {FB_DOT_SHAPES(FB_ENTRY, f32)};
static const fb_dots_run fb_all_dots_f64[FB_DOT_COLUMNS + 1][FB_DOT_ROWS + 1] = {FB_DOT_SHAPES(FB_ENTRY, f64)};
#undef FB_ONE
#undef FB_ENTRY
FB_INLINE fb_dots_run dots_of_f32(const float *type, Py_ssize_t rows, Py_ssize_t columns) {
    return (void)type, fb_all_dots_f32[columns][rows];
}
FB_INLINE fb_dots_run dots_of_f64(const double *type, Py_ssize_t rows, Py_ssize_t columns) {
    return (void)type, fb_all_dots_f64[columns][rows];
}
#define v_dots_of(type, rows, columns) FB_PICK_POINTER(dots_of, type)(type, rows, columns)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
#endif
