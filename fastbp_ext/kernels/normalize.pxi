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
# In a block of 1,024 element j goes to chain j % 64, which leaves a short row four chains at once; the chains
# combine as quarters and lanes do, blocks pairwise.

cdef enum:
    CHAINS = 64
    CHAIN_VECTORS = 32    # of two lanes

cdef inline real fold_chains(vec* a) noexcept nogil:
    cdef int v, n = SUM_LANES // LANES
    for v in range(n):
        a[v] = (a[v] + a[n + v]) + (a[2 * n + v] + a[3 * n + v])
    return fold_lanes(a, fold_sum)


cdef inline real row_block(const real* x, Py_ssize_t n, real m, bint squares) noexcept nogil:
    """The sum of n <= SUM_BLOCK elements x, or of (x - m)^2."""
    cdef vec a[CHAIN_VECTORS]
    cdef vec d
    cdef Py_ssize_t j = 0
    cdef int u
    for u in range(CHAINS // LANES):
        a[u] = splat(0)
    while j + CHAINS <= n:
        for u in range(CHAINS // LANES):
            d = load_all(x + j + u * LANES)
            if squares:
                d = d - splat(m)
                d = d * d
            a[u] = a[u] + d
        j += CHAINS
    for u in range(CHAINS // LANES if j < n else 0):
        d = load_or(x + j + u * LANES, n - j - u * LANES, splat(m))
        if squares:
            d = d - splat(m)
            d = d * d
        a[u] = a[u] + d
    return fold_chains(a)


cdef inline void grad_block(real* sums, const real* x, const real* dy, const real* w, Py_ssize_t n,
                            real m) noexcept nogil:
    """The sums of n <= SUM_BLOCK elements g = dy w, and of (x - m) g."""
    cdef vec a[CHAIN_VECTORS]
    cdef vec b[CHAIN_VECTORS]
    cdef vec g
    cdef Py_ssize_t j = 0, rest
    cdef int u
    for u in range(CHAINS // LANES):
        a[u] = b[u] = splat(0)
    while j + CHAINS <= n:
        for u in range(CHAINS // LANES):
            g = load_all(dy + j + u * LANES) * load_all(w + j + u * LANES)
            a[u] = a[u] + g
            b[u] = b[u] + (load_all(x + j + u * LANES) - splat(m)) * g
        j += CHAINS
    for u in range(CHAINS // LANES if j < n else 0):
        rest = n - j - u * LANES
        g = load_or(dy + j + u * LANES, rest, splat(0)) * load_or(w + j + u * LANES, rest, splat(0))
        a[u] = a[u] + g
        b[u] = b[u] + (load_or(x + j + u * LANES, rest, splat(m)) - splat(m)) * g
    sums[0] = fold_chains(a)
    sums[1] = fold_chains(b)


cdef inline real sum_of_row(const real* x, Py_ssize_t n, real m, bint squares) noexcept nogil:
    """Those of `row_block` for any n."""
    cdef real level[SUM_LEVELS]
    cdef Py_ssize_t j = 0
    cdef int top = 0
    if n <= SUM_BLOCK:
        return row_block(x, n, m, squares)
    while j < n:
        level[top] = row_block(x + j, min(n - j, <Py_ssize_t> SUM_BLOCK), m, squares)
        top = carry(level, 1, j // SUM_BLOCK, 1, fold_sum)
        j += SUM_BLOCK
    return fold_level(level, top, fold_sum)


cdef inline void grad_of_row(real* sums, const real* x, const real* dy, const real* w, Py_ssize_t n,
                             real m) noexcept nogil:
    """Those of `grad_block` for any n."""
    cdef real level[SUM_LEVELS][2]
    cdef Py_ssize_t j = 0
    cdef int top = 0
    if n <= SUM_BLOCK:
        grad_block(sums, x, dy, w, n, m)
        return
    while j < n:
        grad_block(level[top], x + j, dy + j, w + j, min(n - j, <Py_ssize_t> SUM_BLOCK), m)
        top = carry(level[0], 2, j // SUM_BLOCK, 2, fold_sum)
        j += SUM_BLOCK
    while top > 1:
        fold_into(level[top - 2], level[top - 1], 2, fold_sum)
        top -= 1
    sums[0] = level[0][0]
    sums[1] = level[0][1]


cdef inline real statistics_of(const real* x, Py_ssize_t n, const double* c, real* r) noexcept nogil:
    """m of a row; and r."""
    cdef real m = sum_of_row(x, n, 0, False) / <real> n if c[1] else 0
    r[0] = 1 / first_lane(sqrt(splat(sum_of_row(x, n, m, True) / <real> n + <real> c[0])))
    return m


ctypedef real (*row_statistics)(const real* x, Py_ssize_t n, const double* c, real* r) noexcept nogil

cdef extern from "simd.h" nogil:
    row_statistics outlined_statistics "FB_OUTLINED"(row_statistics f)

cdef inline real statistics(const real* x, Py_ssize_t n, const double* c, real* r) noexcept nogil:
    return outlined_statistics(statistics_of)(x, n, c, r)


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
            grad_of_row(sums, at, up, weight, n, m)
            mean = sums[0] / <real> n if i.c[1] else 0
            share = sums[1] / <real> n * r * r
        if lanes >= 0:
            lane = <real*> i.p[lanes] + (row // SUM_QUARTER * SUM_LANES + row % SUM_LANES) * n
            if row % SUM_QUARTER == 0:
                memset(lane, 0, SUM_LANES * n * sizeof(real))
        j = 0
        while j < n:
            g = load(up + j, n - j)
            d = load(at + j, n - j) - splat(m)
            if dx >= 0:
                store(to + j, (g * load(weight + j, n - j) - splat(mean) - d * splat(share)) * splat(r), n - j)
            if lanes >= 0:
                store(lane + j, load(lane + j, n - j) + g * (d * splat(r)), n - j)
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
