# Reductions. Every sum has one order, a function of its length alone (the bits rule): element
# j of a block of 1,024 goes to quarter j / 256 and there to lane j % 16, each lane a chain of
# at most 16 terms. Quarters combine as (0 + 1) + (2 + 3), lanes in halves (l with l + 8, then
# l + 4, ...), blocks pairwise, as the carries of a binary counter. An absent quarter or lane
# holds the identity, which changes no bit. So it makes no difference where the elements lie:
# along a row (`reduce_rows`), or one row apart, many sums side by side (`reduce_columns`).
#
# The space of the instruction is (kept dimensions..., reduced dimensions...).
from libc.math cimport INFINITY

cdef enum:
    SUM_LANES = 16
    SUM_VECTORS = 8       # of two lanes, the shortest there are
    SUM_QUARTER = 256
    SUM_BLOCK = 1024
    SUM_LEVELS = 48       # 2^48 blocks
    SUM_ABREAST = 4       # vectors of sums side by side

ctypedef vec (*fold)(vec a, vec x) noexcept nogil

cdef inline vec fold_sum(vec a, vec x) noexcept nogil: return a + x
cdef inline vec fold_prod(vec a, vec x) noexcept nogil: return a * x
# (The test for NaN is one of x, so that a chain does not wait for it.)
cdef inline vec fold_max(vec a, vec x) noexcept nogil: return vmax(x, a)
cdef inline vec fold_min(vec a, vec x) noexcept nogil: return vmin(x, a)


cdef inline void fold_into(real* a, const real* x, Py_ssize_t n, fold f) noexcept nogil:
    """a[i] = f(a[i], x[i])"""
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        store_all(a + i, f(load_all(a + i), load_all(x + i)))
        i += LANES
    if i < n:
        store_part(a + i, f(load_part(a + i, n - i), load_part(x + i, n - i)), n - i)


cdef inline real fold_vector(vec v, fold f) noexcept nogil:
    """The lanes of a vector in one, in halves."""
    if LANES > 8:
        v = f(v, down(v, 8))
    if LANES > 4:
        v = f(v, down(v, 4))
    if LANES > 2:
        v = f(v, down(v, 2))
    return first_lane(f(v, down(v, 1)))


cdef inline real fold_lanes(vec* v, fold f) noexcept nogil:
    """The 16 lanes of a block, in as many vectors as they take, in one; they are overwritten."""
    cdef int n = SUM_LANES // LANES, k
    while n > 1:
        n //= 2
        for k in range(n):
            v[k] = f(v[k], v[k + n])
    return fold_vector(v[0], f)


cdef inline void fold_quarter(const real* x, Py_ssize_t j, Py_ssize_t n, real identity, fold f,
                              vec* sum) noexcept nogil:
    """Elements j .. n of a quarter; j is a multiple of 16, n is 256 at most."""
    cdef vec lanes[SUM_VECTORS]
    cdef int v
    for v in range(SUM_LANES // LANES):
        lanes[v] = sum[v]
    while j + SUM_LANES <= n:
        for v in range(SUM_LANES // LANES):
            lanes[v] = f(lanes[v], load_all(x + j + v * LANES))
        j += SUM_LANES
    for v in range(SUM_LANES // LANES):
        sum[v] = f(lanes[v], load_or(x + j + v * LANES, n - j - v * LANES, splat(identity))) if j < n else lanes[v]


cdef inline real fold_quarters(vec (*sum)[SUM_VECTORS], Py_ssize_t n, fold f) noexcept nogil:
    """The quarters of a block of n elements in one; they are overwritten."""
    cdef int v
    if n > SUM_QUARTER:
        for v in range(SUM_LANES // LANES):
            sum[0][v] = f(f(sum[0][v], sum[1][v]), f(sum[2][v], sum[3][v]))
    return fold_lanes(sum[0], f)


cdef inline real fold_block(const real* x, Py_ssize_t n, real identity, fold f) noexcept nogil:
    """One contiguous block of n <= SUM_BLOCK elements."""
    cdef vec sum[4][SUM_VECTORS]      # for each quarter as many vectors as 16 lanes take
    cdef Py_ssize_t j = 0
    cdef int v, q
    for q in range(4):
        for v in range(SUM_LANES // LANES):
            sum[q][v] = splat(identity)
    while j + SUM_LANES <= n - 3 * SUM_QUARTER:    # four chains at once
        for q in range(4):
            for v in range(SUM_LANES // LANES):
                sum[q][v] = f(sum[q][v], load_all(x + q * SUM_QUARTER + j + v * LANES))
        j += SUM_LANES
    q = 0
    while q * SUM_QUARTER < n and j < SUM_QUARTER:
        fold_quarter(x + q * SUM_QUARTER, j, min(n - q * SUM_QUARTER, <Py_ssize_t> SUM_QUARTER), identity, f, sum[q])
        q += 1
    return fold_quarters(sum, n, f)


cdef inline real fold_pairs(const real* x, Py_ssize_t n, fold f) noexcept nogil:
    """The results of n <= SUM_BLOCK blocks in one, level by level: the order of `carry`."""
    cdef real level[SUM_BLOCK]
    cdef Py_ssize_t j
    while n > 1:
        for j in range(n // 2):
            level[j] = first_lane(f(splat(x[2 * j]), splat(x[2 * j + 1])))
        if n & 1:
            level[n // 2] = x[n - 1]
        n = (n + 1) // 2
        x = level
    return x[0]


# --- a fold: its loops over elements are compiled for each, all around them once

ctypedef real (*block_loop)(const real* x, Py_ssize_t n) noexcept nogil
ctypedef void (*columns_loop)(const char* x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t width, vec* lane) noexcept nogil
ctypedef vec (*lanes_loop)(vec* lane) noexcept nogil

cdef struct folding:
    bint adds
    real identity
    fold f
    block_loop block          # fold_block
    block_loop pairs          # fold_pairs
    columns_loop columns      # fold_columns
    lanes_loop lanes          # fold_16

ctypedef void (*reduction)(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop,
                           const folding* how) noexcept nogil

cdef extern from "simd.h" nogil:
    reduction outlined_reduction "FB_OUTLINED"(reduction f)

cdef inline real block_sum(const real* x, Py_ssize_t n) noexcept nogil: return fold_block(x, n, 0, fold_sum)
cdef inline real pairs_sum(const real* x, Py_ssize_t n) noexcept nogil: return fold_pairs(x, n, fold_sum)
cdef inline real block_prod(const real* x, Py_ssize_t n) noexcept nogil: return fold_block(x, n, 1, fold_prod)
cdef inline real pairs_prod(const real* x, Py_ssize_t n) noexcept nogil: return fold_pairs(x, n, fold_prod)
cdef inline real block_max(const real* x, Py_ssize_t n) noexcept nogil: return fold_block(x, n, -INFINITY, fold_max)
cdef inline real pairs_max(const real* x, Py_ssize_t n) noexcept nogil: return fold_pairs(x, n, fold_max)
cdef inline real block_min(const real* x, Py_ssize_t n) noexcept nogil: return fold_block(x, n, INFINITY, fold_min)
cdef inline real pairs_min(const real* x, Py_ssize_t n) noexcept nogil: return fold_pairs(x, n, fold_min)
cdef inline void columns_sum(const char* x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t width, vec* lane) noexcept nogil:
    fold_columns(x, step, n, width, splat(0), fold_sum, lane)
cdef inline void columns_prod(const char* x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t width, vec* lane) noexcept nogil:
    fold_columns(x, step, n, width, splat(1), fold_prod, lane)
cdef inline void columns_max(const char* x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t width, vec* lane) noexcept nogil:
    fold_columns(x, step, n, width, splat(-INFINITY), fold_max, lane)
cdef inline void columns_min(const char* x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t width, vec* lane) noexcept nogil:
    fold_columns(x, step, n, width, splat(INFINITY), fold_min, lane)
cdef inline vec lanes_sum(vec* lane) noexcept nogil: return fold_16(lane, fold_sum)
cdef inline vec lanes_prod(vec* lane) noexcept nogil: return fold_16(lane, fold_prod)
cdef inline vec lanes_max(vec* lane) noexcept nogil: return fold_16(lane, fold_max)
cdef inline vec lanes_min(vec* lane) noexcept nogil: return fold_16(lane, fold_min)
cdef inline folding folding_of(real identity, fold f, block_loop block, block_loop pairs, columns_loop columns,
                               lanes_loop lanes) noexcept nogil:
    cdef folding how
    how.adds = f == fold_sum
    how.identity = identity
    how.f = f
    how.block = block
    how.pairs = pairs
    how.columns = columns
    how.lanes = lanes
    return how

cdef inline folding sums() noexcept nogil:
    return folding_of(0, fold_sum, block_sum, pairs_sum, columns_sum, lanes_sum)
cdef inline folding prods() noexcept nogil:
    return folding_of(1, fold_prod, block_prod, pairs_prod, columns_prod, lanes_prod)
cdef inline folding maxima() noexcept nogil:
    return folding_of(-INFINITY, fold_max, block_max, pairs_max, columns_max, lanes_max)
cdef inline folding minima() noexcept nogil:
    return folding_of(INFINITY, fold_min, block_min, pairs_min, columns_min, lanes_min)


cdef inline int carry(real* level, Py_ssize_t width, Py_ssize_t blocks, Py_ssize_t n, fold f) noexcept nogil:
    """Add a block's result, at the top of the stack `level`, to the binary counter of blocks.

    `level` holds rows of `width` results; `blocks` is how many blocks came before. The
    number of rows in use is returned.
    """
    cdef int top = 0
    cdef Py_ssize_t bits = blocks
    while bits:
        top += bits & 1
        bits >>= 1
    while blocks & 1:
        fold_into(level + (top - 1) * width, level + top * width, n, f)
        top -= 1
        blocks >>= 1
    return top + 1


cdef inline real fold_level(real* level, int top, fold f) noexcept nogil:
    """The rows that are left on the stack, in one."""
    while top > 1:
        fold_into(level + top - 2, level + top - 1, 1, f)
        top -= 1
    return level[0]


cdef inline const real* elements_of(const fb_instruction* i, const char* base, Py_ssize_t j, Py_ssize_t n,
                                    real* buffer) noexcept nogil:
    """Elements j .. j + n of the reduced dimensions that begin at base: where they lie, or in the buffer."""
    cdef int ndim = i.ndim - i.kept
    if ndim == 0 or (ndim == 1 and i.stride[1][i.kept] == sizeof(real)):
        return <const real*> base + j
    walk(<char*> buffer, <char*> base, &i.stride[1][i.kept], &i.shape[i.kept], ndim, j, n, sizeof(real), False)
    return buffer


cdef inline const real* products_of(real* to, const real* x, const real* z, Py_ssize_t n, real m,
                                    real k) noexcept nogil:
    """to[j] = (x[j] - m) (z[j] - k); to may be x."""
    cdef Py_ssize_t j = 0
    while j < n:
        store(to + j, (load(x + j, n - j) - splat(m)) * (load(z + j, n - j) - splat(k)), n - j)
        j += LANES
    return to


cdef inline const real* values_of(const fb_instruction* i, Py_ssize_t unit, Py_ssize_t j, Py_ssize_t n,
                                  real* buffer) noexcept nogil:
    """Elements j .. j + n of those that sum number `unit` folds; where there is a z, products of a moment."""
    cdef real other[SUM_BLOCK]
    cdef const char* base = place(i, 1, 0, i.kept, unit)
    cdef const real* x = elements_of(i, base, j, n, buffer)
    cdef real m
    if i.operands == 2:
        return x
    m = (<real*> place(i, 3, 0, i.kept, unit))[0]
    return products_of(buffer, x, elements_of(i, base + (i.p[2] - i.p[1]), j, n, other), n, m, m if i.c[2] else 0)


cdef inline real fold_row(const fb_instruction* i, Py_ssize_t unit, Py_ssize_t n, const folding* how) noexcept nogil:
    """The n elements that sum number `unit` folds, in their order."""
    cdef real level[SUM_LEVELS]
    cdef real buffer[SUM_BLOCK]
    cdef int top = 0
    cdef Py_ssize_t j = 0, m
    level[0] = how.identity
    while j < n:
        m = min(n - j, <Py_ssize_t> SUM_BLOCK)
        level[top] = how.block(values_of(i, unit, j, m, buffer), m)
        if n <= SUM_BLOCK:
            break
        top = carry(level, 1, j // SUM_BLOCK, 1, how.f)
        j += m
    return fold_level(level, top, how.f)


cdef inline Py_ssize_t size_of(const fb_instruction* i, int first, int last) noexcept nogil:
    cdef Py_ssize_t n = 1
    cdef int d
    for d in range(first, last):
        n *= i.shape[d]
    return n


cdef inline char* place(const fb_instruction* i, int operand, int first, int last, Py_ssize_t at) noexcept nogil:
    """Where an operand's element `at`, in C order of dimensions first .. last, lies."""
    cdef char* p = <char*> i.p[operand]
    cdef int d = last - 1
    while d > first:
        p += at % i.shape[d] * i.stride[operand][d]
        at //= i.shape[d]
        d -= 1
    if first < last:
        p += at * i.stride[operand][first]
    return p


cdef inline void reduce_rows(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop,
                             const folding* how) noexcept nogil:
    cdef Py_ssize_t n = size_of(i, i.kept, i.ndim), m
    for m in range(start, stop):
        (<real*> place(i, 0, 0, i.kept, m))[0] = fold_row(i, m, n, how) / <real> i.c[0]


cdef inline void fold_far_rows(const fb_instruction* i, const char** x, Py_ssize_t* at, Py_ssize_t n, Py_ssize_t width,
                               const folding* how, vec* lane) noexcept nogil:
    """fold_columns where rows are not evenly apart: x is the next one, at the place `at`; both move on."""
    cdef Py_ssize_t r
    cdef int d
    for r in range(SUM_LANES):
        lane[r] = splat(how.identity)
    for r in range(n):
        lane[r % SUM_LANES] = how.f(lane[r % SUM_LANES], load(<const real*> x[0], width))
        d = i.ndim - 1
        while d >= i.kept:
            at[d] += 1
            x[0] += i.stride[1][d]
            if at[d] < i.shape[d]:
                break
            x[0] -= at[d] * i.stride[1][d]
            at[d] = 0
            d -= 1


cdef inline void fold_each(vec* a, const vec* b, Py_ssize_t n, fold f) noexcept nogil:
    """a[r] = f(a[r], b[r])"""
    cdef Py_ssize_t r
    for r in range(n):
        a[r] = f(a[r], b[r])


cdef inline vec of_columns(const fb_instruction* i, int operand, Py_ssize_t m, Py_ssize_t width) noexcept nogil:
    """The values of an operand that belong to sums m .. m + width, side by side."""
    cdef const real* p = <const real*> place(i, operand, 0, i.kept, m)
    return load(p, width) if i.stride[operand][i.kept - 1] else splat(p[0])


cdef inline void sum_rows(const fb_instruction* i, const char* x, Py_ssize_t n, int vectors,
                          vec (*lane)[SUM_LANES]) noexcept nogil:
    """Lanes of the sums of n <= SUM_QUARTER rows, some whole vectors of each: memory is read as it lies."""
    cdef Py_ssize_t r
    cdef int v
    memset(lane, 0, vectors * SUM_LANES * sizeof(vec))
    for r in range(n):
        for v in range(vectors):
            lane[v][r % SUM_LANES] = lane[v][r % SUM_LANES] + load_all(<const real*> x + v * LANES)
        x += i.stride[1][i.kept]


cdef inline void sum_products(const fb_instruction* i, const char* x, Py_ssize_t n, Py_ssize_t width, const vec* m,
                              vec (*lane)[SUM_LANES]) noexcept nogil:
    """The same of the products of a moment, `width` elements of each row; m is of each column."""
    cdef const real* z = <const real*> (x + (i.p[2] - i.p[1]))
    cdef Py_ssize_t r, rest
    cdef int vectors = <int> ((width + LANES - 1) // LANES), v
    cdef vec product
    memset(lane, 0, vectors * SUM_LANES * sizeof(vec))
    for r in range(n):
        for v in range(vectors):
            rest = width - v * LANES
            product = (load(<const real*> x + v * LANES, rest) - m[v]) * (
                load(z + v * LANES, rest) - (m[v] if i.c[2] else splat(0)))
            lane[v][r % SUM_LANES] = lane[v][r % SUM_LANES] + product
        x += i.stride[1][i.kept]
        z = <const real*> (<const char*> z + i.stride[1][i.kept])


cdef inline void reduce_columns(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop,
                                const folding* how) noexcept nogil:
    """The last kept dimension is contiguous: some vectors of sums side by side, row after row."""
    cdef vec lane[4][SUM_ABREAST][SUM_LANES]
    cdef real level[SUM_LEVELS][SUM_ABREAST * LANES]
    cdef vec total[SUM_ABREAST]
    cdef vec about[SUM_ABREAST]
    cdef Py_ssize_t n = size_of(i, i.kept, i.ndim)
    cdef Py_ssize_t quarter = SUM_LANES if i.c[1] else SUM_QUARTER, block = 4 * quarter
    cdef Py_ssize_t last = i.shape[i.kept - 1], step = i.stride[1][i.kept] if i.ndim > i.kept else 0
    cdef Py_ssize_t m = start, width, j, k, blocks, in_block, rows, r
    cdef int top, d, q, v, quarters, vectors
    cdef bint even = i.ndim == i.kept + 1, wide = even and how.adds and not i.c[1]
    cdef Py_ssize_t at[12]
    cdef const char* x
    cdef char* y
    cdef fold f = how.f
    while m < stop:
        width = min(last - m % last, stop - m)
        vectors = <int> min(width // LANES, <Py_ssize_t> SUM_ABREAST) if wide else 1
        width = min(width, max(vectors, 1) * LANES)
        vectors = max(vectors, 1)
        x = place(i, 1, 0, i.kept, m)
        for d in range(i.kept, i.ndim):
            at[d] = 0
        for v in range(vectors if i.operands > 2 else 0):
            about[v] = of_columns(i, 3, m + v * LANES, width - v * LANES)
        blocks = top = 0
        for v in range(vectors):
            total[v] = splat(how.identity)
        j = 0
        while j < n:
            in_block = min(n - j, block)
            quarters = (in_block + quarter - 1) // quarter
            for q in range(quarters):
                rows = min(in_block - q * quarter, quarter)
                if i.c[1]:    # x holds the lanes that sum_columns made
                    for r in range(SUM_LANES):
                        lane[q][0][r] = load(<const real*> (x + r * step), width)
                    x += SUM_LANES * step
                elif not even:
                    fold_far_rows(i, &x, at, rows, width, how, lane[q][0])
                else:
                    if i.operands > 2:
                        sum_products(i, x, rows, width, about, lane[q])
                    elif vectors > 1:
                        sum_rows(i, x, rows, vectors, lane[q])
                    else:
                        how.columns(x, step, rows, width, lane[q][0])
                    x += rows * step
            if quarters > 3:
                fold_each(lane[2][0], lane[3][0], vectors * SUM_LANES, f)
            if quarters > 1:
                fold_each(lane[0][0], lane[1][0], vectors * SUM_LANES, f)
            if quarters > 2:
                fold_each(lane[0][0], lane[2][0], vectors * SUM_LANES, f)
            for v in range(vectors):
                total[v] = how.lanes(lane[0][v])
                store_all(level[top] + v * LANES, total[v])
            if n > block:
                top = carry(level[0], SUM_ABREAST * LANES, blocks, width, f)
            blocks += 1
            j += in_block
        while top > 1:
            fold_into(level[top - 2], level[top - 1], width, f)
            top -= 1
        for v in range(vectors):
            y = place(i, 0, 0, i.kept, m)
            if n > block:
                total[v] = load_all(level[0] + v * LANES)
            if i.c[0] != 1:
                total[v] = total[v] / splat(i.c[0])
            if i.stride[0][i.kept - 1] == sizeof(real):
                store(<real*> y, total[v], width)
            else:
                store_all(level[0], total[v])
                for k in range(min(width, <Py_ssize_t> LANES)):
                    (<real*> (y + k * i.stride[0][i.kept - 1]))[0] = level[0][k]
            m += min(width, <Py_ssize_t> LANES)
            width -= LANES


cdef inline bint are_few(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Whether there are at most 16 elements for each sum, and the sums are one or lie side by side."""
    return (i.kept <= 1 and i.ndim <= i.kept + 1 and (i.ndim == i.kept or i.shape[i.kept] <= SUM_LANES)
            and (stop - start == 1 or i.stride[0][0] == sizeof(real) and i.stride[1][0] == sizeof(real)))


cdef inline vec fold_few(const char* x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t width, vec identity,
                         fold f) noexcept nogil:
    """A vector of sums of n <= 4 rows; no row takes the way through memory."""
    cdef vec a = f(identity, load(<const real*> x, width)), b
    if n == 1:
        return a
    b = f(identity, load(<const real*> (x + step), width))
    if n > 2:
        a = f(a, f(identity, load(<const real*> (x + 2 * step), width)))
    if n > 3:
        b = f(b, f(identity, load(<const real*> (x + 3 * step), width)))
    return f(a, b)


cdef inline void reduce_few(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop, real identity,
                            fold f) noexcept nogil:
    """A vector of sums at a time; the lanes of each stay in registers."""
    cdef Py_ssize_t n = i.shape[i.kept] if i.ndim > i.kept else 1, width, used, r
    cdef Py_ssize_t step = i.stride[1][i.kept] if i.ndim > i.kept else 0
    cdef const char* x = i.p[1]
    cdef char* y = i.p[0]
    cdef vec lane[SUM_LANES]
    if i.kept:
        x += start * i.stride[1][0]
        y += start * i.stride[0][0]
    lane[0] = splat(identity)
    while start < stop:
        width = stop - start
        if 0 < n <= 4:
            lane[0] = fold_few(x, step, n, width, splat(identity), f)
        else:
            for used in range(n):
                lane[used] = f(splat(identity), load(<const real*> (x + used * step), width))
            used = n
            r = SUM_LANES // 2
            while r:
                while used > r:
                    used -= 1
                    lane[used - r] = f(lane[used - r], lane[used])
                r //= 2
        store(<real*> y, lane[0] / splat(i.c[0]) if i.c[0] != 1 else lane[0], width)
        start += LANES
        x += LANES * sizeof(real)
        y += LANES * sizeof(real)


cdef inline void reduce_many(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop,
                             const folding* how) noexcept nogil:
    cdef bint columns = (i.kept > 0 and i.stride[1][i.kept - 1] == sizeof(real) and i.shape[i.kept - 1] > 1
                         and not (i.ndim > i.kept and i.stride[1][i.ndim - 1] == sizeof(real))
                         and (i.operands == 2 or i.ndim == i.kept + 1))
    if columns:
        outlined_reduction(reduce_columns)(i, start, stop, how)
    else:
        reduce_rows(i, start, stop, how)


cdef inline void reduce(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop, fold f,
                        folding how) noexcept nogil:
    """y = fold of x over the reduced dimensions, divided by c[0]."""
    if are_few(i, start, stop):
        reduce_few(i, start, stop, how.identity, f)
    else:
        outlined_reduction(reduce_many)(i, start, stop, &how)


# --- all elements in two steps: the blocks, which may go to any thread or run tile by tile with
# what made the elements, and then the results of the blocks

cdef inline void blocks(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop,
                        const folding* how) noexcept nogil:
    """y[b] = fold of block b of x, for elements start .. stop; start is a multiple of SUM_BLOCK."""
    cdef real* y = <real*> i.p[0] + start // SUM_BLOCK
    cdef const real* x = <const real*> i.p[1] + (0 if i.tile[1] else start)
    while start < stop:
        y[0] = how.block(x, min(stop - start, <Py_ssize_t> SUM_BLOCK))
        y += 1
        x += SUM_BLOCK
        start += SUM_BLOCK


cdef inline void combine(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop,
                         const folding* how) noexcept nogil:
    """y = the blocks' results x, in the order of every sum, divided by c[0]."""
    cdef real level[SUM_LEVELS]
    cdef const real* x = <const real*> i.p[1]
    cdef Py_ssize_t b = 0
    cdef int top = 0
    while b < i.shape[0]:
        level[top] = how.pairs(x + b, min(i.shape[0] - b, <Py_ssize_t> SUM_BLOCK))
        top = carry(level, 1, b // SUM_BLOCK, 1, how.f)
        b += SUM_BLOCK
    (<real*> i.p[0])[0] = fold_level(level, top, how.f) / <real> i.c[0]


cdef inline void sum_columns(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """y[q, l] = the sum of the rows of x that are lane l of quarter q, of rows start .. stop.

    The rows of a quarter come in their order, in one call or several.
    """
    cdef Py_ssize_t n = i.shape[1], r, j
    cdef const real* x = <const real*> i.p[1] + (0 if i.tile[1] else start * n)
    cdef real* y
    for r in range(start, stop):
        y = <real*> i.p[0] + r // SUM_QUARTER * SUM_LANES * n
        if r % SUM_QUARTER == 0:
            for j in range(SUM_LANES * n):
                y[j] = 0
        fold_into(y + r % SUM_LANES * n, x, n, fold_sum)
        x += n


cdef inline void sum_of_lanes(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef folding how = sums()
    outlined_reduction(reduce_columns)(i, start, stop, &how)


cdef inline void sum_blocks(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef folding how = sums()
    outlined_reduction(blocks)(i, start, stop, &how)

cdef inline void prod_blocks(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef folding how = prods()
    outlined_reduction(blocks)(i, start, stop, &how)

cdef inline void max_blocks(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef folding how = maxima()
    outlined_reduction(blocks)(i, start, stop, &how)

cdef inline void min_blocks(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef folding how = minima()
    outlined_reduction(blocks)(i, start, stop, &how)

cdef inline void sum_combine(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef folding how = sums()
    outlined_reduction(combine)(i, start, stop, &how)

cdef inline void prod_combine(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef folding how = prods()
    outlined_reduction(combine)(i, start, stop, &how)

cdef inline void max_combine(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef folding how = maxima()
    outlined_reduction(combine)(i, start, stop, &how)

cdef inline void min_combine(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef folding how = minima()
    outlined_reduction(combine)(i, start, stop, &how)


cdef inline void reduce_sum(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    reduce(i, start, stop, fold_sum, sums())

cdef inline void moment(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """y = the sum of (x - m)(z - k), k = m where c[2] says so, else 0; p: y, x, z (laid out as x), m (as y)."""
    cdef folding how = sums()
    outlined_reduction(reduce_many)(i, start, stop, &how)

cdef inline void reduce_prod(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    reduce(i, start, stop, fold_prod, prods())

cdef inline void reduce_max(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    reduce(i, start, stop, fold_max, maxima())

cdef inline void reduce_min(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    reduce(i, start, stop, fold_min, minima())


cdef inline Py_ssize_t first_of(const real* x, Py_ssize_t n, real value) noexcept nogil:
    """The first place of a value, or of NaN, that is among the n."""
    cdef Py_ssize_t j = 0
    cdef vec v = splat(value), a
    while j + LANES <= n:
        a = load_all(x + j)
        if any_of(eq(a, v)) or any_of(ne(a, a)):
            break
        j += LANES
    while j < n and x[j] != value and x[j] == x[j]:
        j += 1
    return j


cdef inline void find(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop,
                      const folding* how) noexcept nogil:
    """y = the first place of the extreme value of each row, or of its first NaN."""
    cdef Py_ssize_t n = size_of(i, i.kept, i.ndim), m, j, at, width
    cdef real buffer[SUM_BLOCK]
    cdef real best, extreme
    cdef const char* base
    for m in range(start, stop):
        base = place(i, 1, 0, i.kept, m)
        best = how.identity
        j = at = 0
        while j < n and best == best:
            width = min(n - j, <Py_ssize_t> SUM_BLOCK)
            extreme = how.block(elements_of(i, base, j, width, buffer), width)
            if extreme != extreme or (extreme > best if how.identity < 0 else extreme < best):
                best = extreme
                at = j
            j += width
        (<int64_t*> place(i, 0, 0, i.kept, m))[0] = at + first_of(
            elements_of(i, base, at, min(n - at, <Py_ssize_t> SUM_BLOCK), buffer),
            min(n - at, <Py_ssize_t> SUM_BLOCK), best)

cdef inline void argmax(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef folding how = maxima()
    outlined_reduction(find)(i, start, stop, &how)

cdef inline void argmin(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef folding how = minima()
    outlined_reduction(find)(i, start, stop, &how)


cdef inline dict reduce_kernels():
    return {
        "sum": <size_t> &reduce_sum, "prod": <size_t> &reduce_prod, "max": <size_t> &reduce_max,
        "min": <size_t> &reduce_min, "argmax": <size_t> &argmax, "argmin": <size_t> &argmin,
        "moment": <size_t> &moment,
        "sum_columns": <size_t> &sum_columns, "sum_of_lanes": <size_t> &sum_of_lanes,
        "sum_blocks": <size_t> &sum_blocks, "prod_blocks": <size_t> &prod_blocks,
        "max_blocks": <size_t> &max_blocks, "min_blocks": <size_t> &min_blocks,
        "sum_combine": <size_t> &sum_combine, "prod_combine": <size_t> &prod_combine,
        "max_combine": <size_t> &max_combine, "min_combine": <size_t> &min_combine,
    }
