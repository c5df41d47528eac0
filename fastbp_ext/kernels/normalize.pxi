# Normalization: by statistics that are given, and of rows by their own.

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
    cdef real* y = <real*> p[0]
    cdef real* x = <real*> p[1]
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        store_all(y + i, (load_all(x + i) - m) * a + b)
        i += LANES
    if i < n:
        store_part(y + i, (load_part(x + i, n - i) - m) * a + b, n - i)


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
    cdef real* dx = <real*> p[0]
    cdef real* dy = <real*> p[1]
    cdef real* x = <real*> p[2]
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        store_all(dx + i, load_all(dy + i) * a + (load_all(x + i) - m) * s + d)
        i += LANES
    if i < n:
        store_part(dx + i, load_part(dy + i, n - i) * a + (load_part(x + i, n - i) - m) * s + d, n - i)


# --- rows of a contiguous matrix: x^ = (x - m) r, m their mean (0 where c[1] is 0), r = 1 / sqrt(mean (x - m)^2 + c[0])
#
# Blocks of 1,024 are summed in four vectors of chains, so that a short row has several at once, and combine pairwise.

cdef enum:
    CHAINS = 4

cdef inline vec term(vec x, vec m, bint squares) noexcept nogil:
    return (x - m) * (x - m) if squares else x


cdef inline real row_block(const real* x, Py_ssize_t n, vec m, bint squares) noexcept nogil:
    """The sum of n <= SUM_BLOCK elements x, or of (x - m)^2."""
    cdef vec a0 = splat(0), a1 = splat(0), a2 = splat(0), a3 = splat(0)
    cdef Py_ssize_t j = 0
    while j + CHAINS * LANES <= n:
        a0 = a0 + term(load_all(x + j), m, squares)
        a1 = a1 + term(load_all(x + j + LANES), m, squares)
        a2 = a2 + term(load_all(x + j + 2 * LANES), m, squares)
        a3 = a3 + term(load_all(x + j + 3 * LANES), m, squares)
        j += CHAINS * LANES
    while j < n:
        a0 = a0 + term(load_or(x + j, n - j, m if squares else splat(0)), m, squares)
        j += LANES
    return fold_vector((a0 + a1) + (a2 + a3), fold_sum)


cdef inline real sum_of_row(const real* x, Py_ssize_t n, real m, bint squares) noexcept nogil:
    """Those of `row_block` for any n."""
    cdef real level[SUM_LEVELS]
    cdef Py_ssize_t j = 0
    cdef int top = 0
    while True:
        level[top] = row_block(x + j, min(n - j, <Py_ssize_t> SUM_BLOCK), splat(m), squares)
        if n <= SUM_BLOCK:
            return level[0]
        top = carry(level, 1, j // SUM_BLOCK, 1, fold_sum)
        j += SUM_BLOCK
        if j >= n:
            return fold_level(level, top, fold_sum)


cdef inline void grad_block(real* sums, const real* x, const real* dy, const real* w, Py_ssize_t n,
                            vec m) noexcept nogil:
    """The sums of n <= SUM_BLOCK elements g = dy w, and of (x - m) g."""
    cdef vec a0 = splat(0), a1 = splat(0), a2 = splat(0), a3 = splat(0), b0 = splat(0), b1 = splat(0), b2 = splat(0)
    cdef vec b3 = splat(0), g0, g1, g2, g3
    cdef Py_ssize_t j = 0
    while j + CHAINS * LANES <= n:
        g0 = load_all(dy + j) * load_all(w + j)
        g1 = load_all(dy + j + LANES) * load_all(w + j + LANES)
        g2 = load_all(dy + j + 2 * LANES) * load_all(w + j + 2 * LANES)
        g3 = load_all(dy + j + 3 * LANES) * load_all(w + j + 3 * LANES)
        a0 = a0 + g0
        a1 = a1 + g1
        a2 = a2 + g2
        a3 = a3 + g3
        b0 = b0 + (load_all(x + j) - m) * g0
        b1 = b1 + (load_all(x + j + LANES) - m) * g1
        b2 = b2 + (load_all(x + j + 2 * LANES) - m) * g2
        b3 = b3 + (load_all(x + j + 3 * LANES) - m) * g3
        j += CHAINS * LANES
    while j < n:
        g0 = load_or(dy + j, n - j, splat(0)) * load_or(w + j, n - j, splat(0))
        a0 = a0 + g0
        b0 = b0 + (load_or(x + j, n - j, m) - m) * g0
        j += LANES
    sums[0] = fold_vector((a0 + a1) + (a2 + a3), fold_sum)
    sums[1] = fold_vector((b0 + b1) + (b2 + b3), fold_sum)


cdef inline void grad_of_row(real* sums, const real* x, const real* dy, const real* w, Py_ssize_t n,
                             real m) noexcept nogil:
    """Those of `grad_block` for any n."""
    cdef real level[SUM_LEVELS][2]
    cdef Py_ssize_t j = 0
    cdef int top = 0
    while True:
        grad_block(level[top], x + j, dy + j, w + j, min(n - j, <Py_ssize_t> SUM_BLOCK), splat(m))
        j += SUM_BLOCK
        top = carry(level[0], 2, j // SUM_BLOCK - 1, 2, fold_sum)
        if j >= n:
            break
    while top > 1:
        fold_into(level[top - 2], level[top - 1], 2, fold_sum)
        top -= 1
    sums[0] = level[0][0]
    sums[1] = level[0][1]


ctypedef real (*row_sum)(const real* x, Py_ssize_t n, real m) noexcept nogil
ctypedef void (*row_sums)(real* sums, const real* x, const real* dy, const real* w, Py_ssize_t n, real m) noexcept nogil

cdef extern from "simd.h" nogil:
    row_sum outlined_sum "FB_OUTLINED"(row_sum f)
    row_sums outlined_sums "FB_OUTLINED"(row_sums f)

cdef inline real total_of_row(const real* x, Py_ssize_t n, real m) noexcept nogil: return sum_of_row(x, n, 0, False)
cdef inline real squares_of_row(const real* x, Py_ssize_t n, real m) noexcept nogil: return sum_of_row(x, n, m, True)


cdef inline real statistics(const real* x, Py_ssize_t n, const double* c, real* r) noexcept nogil:
    """m of a row; and r."""
    cdef real m = outlined_sum(total_of_row)(x, n, 0) / <real> n if c[1] else 0
    r[0] = 1 / first_lane(sqrt(splat(outlined_sum(squares_of_row)(x, n, m) / <real> n + <real> c[0])))
    return m


cdef inline void layer_norm(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """y = x^ w + b; p: y, x, w, b; space: (rows, columns)"""
    cdef Py_ssize_t row, j, n = i.shape[1]
    cdef const real* x
    cdef const real* w = <const real*> i.p[2]
    cdef const real* b = <const real*> i.p[3]
    cdef real* y
    cdef real r
    cdef vec m
    for row in range(start, stop):
        y = row_of(i, 0, row)
        x = row_of(i, 1, row)
        m = splat(statistics(x, n, i.c, &r))
        j = 0
        while j < n:
            store(y + j, (load(x + j, n - j) - m) * splat(r) * load(w + j, n - j) + load(b + j, n - j), n - j)
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
    cdef const real* weight
    cdef real* to
    cdef real* lane
    cdef real m, r
    cdef real sums[2]
    cdef vec mean, share, g
    for row in range(start, stop):
        up = row_of(i, dy, row)
        at = row_of(i, x, row)
        m = statistics(at, n, i.c, &r)
        if dx >= 0:
            to = row_of(i, dx, row)
            weight = row_of(i, w, row)
            outlined_sums(grad_of_row)(sums, at, up, weight, n, m)
            mean = splat(sums[0] / <real> n if i.c[1] else 0)
            share = splat(sums[1] / <real> n * r * r)
            j = 0
            while j < n:
                g = load(up + j, n - j) * load(weight + j, n - j)
                store(to + j, (g - mean - (load(at + j, n - j) - splat(m)) * share) * splat(r), n - j)
                j += LANES
        if lanes >= 0:
            lane = <real*> i.p[lanes] + (row // SUM_QUARTER * SUM_LANES + row % SUM_LANES) * n
            if row % SUM_QUARTER == 0:
                memset(lane, 0, SUM_LANES * n * sizeof(real))
            j = 0
            while j < n:
                g = load(up + j, n - j) * ((load(at + j, n - j) - splat(m)) * splat(r))
                store(lane + j, load(lane + j, n - j) + g, n - j)
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
