# Normalization: by statistics that are given, and of rows by their own. The sums are those of reduce.pxi.

# --- by a mean and a scale for each element, or (the forms for single values) for a whole row

cdef inline void standardize(char** p, Py_ssize_t n, const double* c) noexcept nogil:
    """y = (x - m) (r w) + b; p: y, x, m, r, w, b"""
    cdef Py_ssize_t i = 0, rest
    while i < n:
        rest = n - i
        store(<real*> p[0] + i, (load(<real*> p[1] + i, rest) - load(<real*> p[2] + i, rest))
              * (load(<real*> p[3] + i, rest) * load(<real*> p[4] + i, rest)) + load(<real*> p[5] + i, rest), rest)
        i += LANES


cdef inline void standardize_row(char** p, Py_ssize_t n, const double* c) noexcept nogil:
    cdef vec m = splat((<real*> p[2])[0]), b = splat((<real*> p[5])[0])
    cdef vec a = splat((<real*> p[3])[0] * (<real*> p[4])[0])
    cdef Py_ssize_t i = 0
    while i < n:
        store(<real*> p[0] + i, (load(<real*> p[1] + i, n - i) - m) * a + b, n - i)
        i += LANES


cdef inline void standardize_grad(char** p, Py_ssize_t n, const double* c) noexcept nogil:
    """dx = dy a + (x - m) s + d; p: dx, dy, x, m, a, s, d"""
    cdef Py_ssize_t i = 0, rest
    while i < n:
        rest = n - i
        store(<real*> p[0] + i, load(<real*> p[1] + i, rest) * load(<real*> p[4] + i, rest)
              + (load(<real*> p[2] + i, rest) - load(<real*> p[3] + i, rest)) * load(<real*> p[5] + i, rest)
              + load(<real*> p[6] + i, rest), rest)
        i += LANES


cdef inline void standardize_grad_row(char** p, Py_ssize_t n, const double* c) noexcept nogil:
    cdef vec m = splat((<real*> p[3])[0]), a = splat((<real*> p[4])[0])
    cdef vec s = splat((<real*> p[5])[0]), d = splat((<real*> p[6])[0])
    cdef Py_ssize_t i = 0
    while i < n:
        store(<real*> p[0] + i, load(<real*> p[1] + i, n - i) * a + (load(<real*> p[2] + i, n - i) - m) * s + d, n - i)
        i += LANES


# --- rows of a contiguous matrix: x^ = (x - m) r, m their mean (0 where c[1] is 0), r = 1 / sqrt(mean (x - m)^2 + c[0])
#
# In a block of 1,024 element j goes to chain j % 64, of double j % 32, so that a short row has some vectors of chains
# at once; the chains combine in halves, blocks pairwise.

cdef enum:
    CHAINS = 64           # of floats
    CHAIN_VECTORS = 16    # of 16 bytes

cdef inline Py_ssize_t chains() noexcept nogil: return CHAINS * sizeof(float) // sizeof(real)
cdef inline int abreast() noexcept nogil: return <int> (CHAINS * sizeof(float) // sizeof(vec))


cdef inline real fold_chains(vec* a) noexcept nogil:
    cdef int v, n = abreast()
    while n > SUM_LANES // LANES:
        n //= 2
        for v in range(n):
            a[v] = a[v] + a[n + v]
    return fold_lanes(a, fold_sum)


cdef inline const real* rest_of(const real* x, Py_ssize_t n, real* rest, real fill) noexcept nogil:
    """The last elements of a row, n, fewer than there are chains, with `fill` behind their end."""
    cdef int u
    for u in range(abreast()):
        store_all(rest + u * LANES, splat(fill))
    memcpy(rest, x, n * sizeof(real))
    return rest


ctypedef const real* (*resting)(const real* x, Py_ssize_t n, real* rest, real fill) noexcept nogil
ctypedef real (*row_sum)(const real* x, Py_ssize_t n, real m, bint squares) noexcept nogil
ctypedef void (*row_sums)(real* sums, const real* x, const real* dy, const real* w, Py_ssize_t n, real m) noexcept nogil

cdef extern from "simd.h" nogil:
    resting outlined_rest "FB_OUTLINED"(resting f)
    row_sum outlined_sum "FB_OUTLINED"(row_sum f)
    row_sums outlined_sums "FB_OUTLINED"(row_sums f)

cdef inline const real* chained(const real* x, Py_ssize_t n, real* rest, real fill) noexcept nogil:
    """The next elements of a row, one for each chain, where n are left: where they lie, or in `rest`."""
    return x if n >= chains() else outlined_rest(rest_of)(x, n, rest, fill)


cdef inline real row_block(const real* x, Py_ssize_t n, real m, bint squares) noexcept nogil:
    """The sum of n <= SUM_BLOCK elements x, or of (x - m)^2."""
    cdef vec a[CHAIN_VECTORS]
    cdef real rest[CHAINS]
    cdef const real* p
    cdef vec d
    cdef Py_ssize_t j = 0
    cdef int u
    for u in range(abreast()):
        a[u] = splat(0)
    while j < n:
        p = chained(x + j, n - j, rest, m)
        for u in range(abreast()):
            d = load_all(p + u * LANES)
            if squares:
                d = d - splat(m)
                d = d * d
            a[u] = a[u] + d
        j += chains()
    return fold_chains(a)


cdef inline real sum_of_row(const real* x, Py_ssize_t n, real m, bint squares) noexcept nogil:
    """Those of `row_block` for any n."""
    cdef real level[SUM_LEVELS]
    cdef Py_ssize_t j = 0
    cdef int top = 0
    while True:
        level[top] = row_block(x + j, min(n - j, <Py_ssize_t> SUM_BLOCK), m, squares)
        if n <= SUM_BLOCK:
            return level[0]
        top = carry(level, 1, j // SUM_BLOCK, 1, fold_sum)
        j += SUM_BLOCK
        if j >= n:
            return fold_level(level, top, fold_sum)


cdef inline void grad_block(real* sums, const real* x, const real* dy, const real* w, Py_ssize_t n,
                            real m) noexcept nogil:
    """The sums of n <= SUM_BLOCK elements g = dy w, and of (x - m) g."""
    cdef vec a[CHAIN_VECTORS]
    cdef vec b[CHAIN_VECTORS]
    cdef real rest[3][CHAINS]
    cdef const real* p
    cdef const real* up
    cdef const real* weight
    cdef vec g
    cdef Py_ssize_t j = 0
    cdef int u
    for u in range(abreast()):
        a[u] = b[u] = splat(0)
    while j < n:
        p = chained(x + j, n - j, rest[0], m)
        up = chained(dy + j, n - j, rest[1], 0)
        weight = chained(w + j, n - j, rest[2], 0)
        for u in range(abreast()):
            g = load_all(up + u * LANES) * load_all(weight + u * LANES)
            a[u] = a[u] + g
            b[u] = b[u] + (load_all(p + u * LANES) - splat(m)) * g
        j += chains()
    sums[0] = fold_chains(a)
    sums[1] = fold_chains(b)


cdef inline void grad_of_row(real* sums, const real* x, const real* dy, const real* w, Py_ssize_t n,
                             real m) noexcept nogil:
    """Those of `grad_block` for any n."""
    cdef real level[SUM_LEVELS][2]
    cdef Py_ssize_t j = 0
    cdef int top = 0
    while True:
        grad_block(level[top], x + j, dy + j, w + j, min(n - j, <Py_ssize_t> SUM_BLOCK), m)
        j += SUM_BLOCK
        top = carry(level[0], 2, j // SUM_BLOCK - 1, 2, fold_sum)
        if j >= n:
            break
    while top > 1:
        fold_into(level[top - 2], level[top - 1], 2, fold_sum)
        top -= 1
    sums[0] = level[0][0]
    sums[1] = level[0][1]


cdef inline real statistics(const real* x, Py_ssize_t n, const double* c, real* r) noexcept nogil:
    """m of a row; and r."""
    cdef real m = outlined_sum(sum_of_row)(x, n, 0, False) / <real> n if c[1] else 0
    r[0] = 1 / first_lane(sqrt(splat(outlined_sum(sum_of_row)(x, n, m, True) / <real> n + <real> c[0])))
    return m


cdef inline void layer_norm(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """y = x^ w + b; p: y, x, w, b; space: (rows, columns)"""
    cdef Py_ssize_t row, j, n = i.shape[1]
    cdef const real* x
    cdef const real* w = <const real*> i.p[2]
    cdef const real* b = <const real*> i.p[3]
    cdef real* y
    cdef real m, r
    for row in range(start, stop):
        y = row_of(i, 0, row)
        x = row_of(i, 1, row)
        m = statistics(x, n, i.c, &r)
        j = 0
        while j < n:
            store(y + j, (load(x + j, n - j) - splat(m)) * splat(r) * load(w + j, n - j) + load(b + j, n - j), n - j)
            j += LANES


cdef inline void rows_back(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop, int dx, int lanes, int dy, int x,
                           int w) noexcept nogil:
    """dx = r (g - mean g - x^ mean (g x^)), g = dy w, without mean g where c[1] is 0; and lanes of the sums of dy x^.

    These are the numbers of the operands, -1 where a result is not wanted. lanes[q, l] is the sum of those rows that
    are lane l of quarter q, as in sum_columns.
    """
    cdef Py_ssize_t row, j, n = i.shape[1]
    cdef const real* up
    cdef const real* at
    cdef const real* weight = NULL
    cdef real* to = NULL
    cdef real* lane = NULL
    cdef real m, r, mean = 0, share = 0
    cdef real sums[2]
    cdef vec g, d
    for row in range(start, stop):
        up = row_of(i, dy, row)
        at = row_of(i, x, row)
        m = statistics(at, n, i.c, &r)
        if dx >= 0:
            to = row_of(i, dx, row)
            weight = row_of(i, w, row)
            outlined_sums(grad_of_row)(sums, at, up, weight, n, m)
            mean = sums[0] / <real> n if i.c[1] else 0
            share = sums[1] / <real> n * r * r
        if lanes >= 0:
            lane = <real*> i.p[lanes] + (row // SUM_QUARTER * SUM_LANES + row % SUM_LANES) * n
            if row % SUM_QUARTER == 0:
                memset(lane, 0, SUM_LANES * n * sizeof(real))
        j = 0
        while j < n and dx >= 0:
            g = load(up + j, n - j) * load(weight + j, n - j)
            store(to + j, (g - splat(mean) - (load(at + j, n - j) - splat(m)) * splat(share)) * splat(r), n - j)
            j += LANES
        j = 0
        while j < n and lanes >= 0:
            d = (load(at + j, n - j) - splat(m)) * splat(r)
            store(lane + j, load(lane + j, n - j) + load(up + j, n - j) * d, n - j)
            j += LANES


ctypedef void (*going_back)(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop, int dx, int lanes, int dy,
                            int x, int w) noexcept nogil

cdef extern from "simd.h" nogil:
    going_back outlined_back "FB_OUTLINED"(going_back f)

cdef inline void layer_norm_grad(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """p: dx, dy, x, w"""
    outlined_back(rows_back)(i, start, stop, 0, -1, 1, 2, 3)

cdef inline void layer_norm_lanes(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """p: lanes, dy, x"""
    outlined_back(rows_back)(i, start, stop, -1, 0, 1, 2, -1)

cdef inline void layer_norm_both(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Both in one sweep; p: dx, lanes, dy, x, w."""
    outlined_back(rows_back)(i, start, stop, 0, 1, 2, 3, 4)


cdef inline dict normalize_kernels():
    return {
        "standardize": <size_t> &standardize, "standardize.2345": <size_t> &standardize_row,
        "standardize_grad": <size_t> &standardize_grad, "standardize_grad.3456": <size_t> &standardize_grad_row,
        "layer_norm": <size_t> &layer_norm, "layer_norm_grad": <size_t> &layer_norm_grad,
        "layer_norm_lanes": <size_t> &layer_norm_lanes, "layer_norm_both": <size_t> &layer_norm_both,
    }
