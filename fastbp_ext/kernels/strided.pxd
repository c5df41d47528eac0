# Strided memory, for elements of any type: tiles in and out, copies, indexing, integers.
from fastbp_ext.abi cimport FB_DIMS, FB_OPERANDS, FB_TILE, fb_instruction
from libc.math cimport pow, sqrt
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset


cdef inline void move(char* to, Py_ssize_t to_step, const char* source, Py_ssize_t step,
                      Py_ssize_t n, int size) noexcept nogil:
    """n elements of `size` bytes, from one stride to another; a stride of 0 repeats."""
    cdef Py_ssize_t i
    if to_step == size and step == size:
        memcpy(to, source, n * size)
    elif size == 4:
        for i in range(n):
            (<uint32_t*> (to + i * to_step))[0] = (<const uint32_t*> (source + i * step))[0]
    elif size == 8:
        for i in range(n):
            (<uint64_t*> (to + i * to_step))[0] = (<const uint64_t*> (source + i * step))[0]
    elif size == 1:
        for i in range(n):
            to[i * to_step] = source[i * step]
    else:
        for i in range(n):
            (<uint16_t*> (to + i * to_step))[0] = (<const uint16_t*> (source + i * step))[0]


cdef inline void walk_block(char* flat, char* base, const Py_ssize_t* stride, const Py_ssize_t* shape,
                            int ndim, Py_ssize_t start, Py_ssize_t n, int size, bint out) noexcept nogil:
    """Elements start .. start + n, in C order, of a strided block: into `flat`, or `out` of it."""
    cdef Py_ssize_t at[16]
    cdef Py_ssize_t left = start, run
    cdef char* p = base
    cdef int d = ndim - 1
    if ndim == 0:
        move(base if out else flat, size, flat if out else base, size, n, size)
        return
    while d >= 0:
        at[d] = left % shape[d]
        left //= shape[d]
        p += at[d] * stride[d]
        d -= 1
    while True:
        d = ndim - 1
        run = shape[d] - at[d]
        if run > n:
            run = n
        move(p if out else flat, stride[d] if out else size, flat if out else p, size if out else stride[d],
             run, size)
        n -= run
        if n == 0:
            return
        flat += run * size
        p -= at[d] * stride[d]
        at[d] = 0
        d -= 1
        while d >= 0:
            at[d] += 1
            p += stride[d]
            if at[d] < shape[d]:
                break
            p -= at[d] * stride[d]
            at[d] = 0
            d -= 1


ctypedef void (*walking)(char* flat, char* base, const Py_ssize_t* stride, const Py_ssize_t* shape, int ndim,
                         Py_ssize_t start, Py_ssize_t n, int size, bint out) noexcept nogil

cdef extern from "simd.h" nogil:
    walking outlined "FB_OUTLINED"(walking f)

cdef inline void walk(char* flat, char* base, const Py_ssize_t* stride, const Py_ssize_t* shape, int ndim,
                      Py_ssize_t start, Py_ssize_t n, int size, bint out) noexcept nogil:
    outlined(walk_block)(flat, base, stride, shape, ndim, start, n, size, out)


cdef inline void elementwise_direct(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Every operand is contiguous: the inner kernel does all of it."""
    cdef char* p[FB_OPERANDS]
    cdef int k
    if start == 0:
        i.inner(<char**> i.p, stop, i.c)
        return
    for k in range(i.operands):
        p[k] = <char*> i.p[k] + (0 if i.tile[k] else start * i.itemsize[k])
    i.inner(p, stop - start, i.c)


cdef inline void elementwise_rows(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Along the last dimension each operand is contiguous, or one value for the kernel: elements start .. stop."""
    cdef char* p[FB_OPERANDS]
    cdef Py_ssize_t place[FB_DIMS]
    cdef int last = i.ndim - 1, d = last - 1, k
    cdef Py_ssize_t at = start, width = i.shape[last], left = start // width, column = start % width, n
    while d >= 0:
        place[d] = left % i.shape[d]
        left //= i.shape[d]
        d -= 1
    while at < stop:
        n = min(width - column, stop - at)
        for k in range(i.operands):
            p[k] = <char*> i.p[k] + ((at - start) * i.itemsize[k] if i.tile[k] else column * i.stride[k][last])
            for d in range(0 if i.tile[k] else last):
                p[k] += place[d] * i.stride[k][d]
        i.inner(p, n, i.c)
        at += n
        column = 0
        d = last - 1
        while d >= 0:
            place[d] += 1
            if place[d] < i.shape[d]:
                break
            place[d] = 0
            d -= 1


cdef enum Access:
    POINTER     # handed to the inner kernel as it is
    DENSE       # contiguous: no copy
    SPREAD      # one value for the whole block: spread over a buffer once
    REPEAT      # the same short row for every row: in a buffer once, as often as it fits a tile
    GATHER      # copied tile by tile


cdef inline Access access_of(const fb_instruction* i, int k) noexcept nogil:
    cdef Py_ssize_t step = i.itemsize[k]
    cdef bint dense = True, same = k >= i.outputs
    cdef int d = i.ndim - 1
    if step == 0:
        return POINTER
    while d >= 0:
        dense = dense and i.stride[k][d] == step
        same = same and i.stride[k][d] == 0
        step *= i.shape[d]
        d -= 1
    if dense or same:
        return DENSE if dense else SPREAD
    if (k >= i.outputs and i.ndim == 2 and i.stride[k][0] == 0 and i.stride[k][1] == i.itemsize[k]
            and i.shape[1] <= FB_TILE):
        return REPEAT
    return GATHER


cdef inline void repeat(char* to, const char* row, Py_ssize_t size, Py_ssize_t first, Py_ssize_t n) noexcept nogil:
    """n bytes of a row of `size` bytes again and again, from its byte `first` on."""
    cdef Py_ssize_t done = min(size - first, n), some
    memcpy(to, row + first, done)
    if done < n:
        some = min(first, n - done)
        memcpy(to + done, row, some)
        done += some
    while done < n:    # what is there is whole rows
        some = min(done, n - done)
        memcpy(to + done, to, some)
        done += some


cdef inline void elementwise_strided(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Tiles of operands that are not contiguous are copied into, and out of, small buffers."""
    cdef double buffer[FB_OPERANDS][FB_TILE]    # for each operand one tile of the largest elements
    cdef char* p[FB_OPERANDS]
    cdef Access access[FB_OPERANDS]
    cdef Py_ssize_t at = start, tile = FB_TILE, n
    cdef int k
    for k in range(i.operands):
        access[k] = access_of(i, k)
        p[k] = <char*> i.p[k] if access[k] == POINTER else <char*> buffer[k]
        if access[k] == REPEAT:
            tile = FB_TILE // i.shape[1] * i.shape[1]    # so that every tile begins at the same place of the row
    n = stop - start if stop - start < tile else tile
    for k in range(i.operands):
        if access[k] == SPREAD:
            move(p[k], i.itemsize[k], i.p[k], 0, n, i.itemsize[k])
        elif access[k] == REPEAT:
            repeat(p[k], <char*> i.p[k], i.shape[1] * i.itemsize[k], start % i.shape[1] * i.itemsize[k],
                   n * i.itemsize[k])
    while at < stop:
        n = stop - at if stop - at < tile else tile
        for k in range(i.operands):
            if access[k] == DENSE:
                p[k] = <char*> i.p[k] + (at - start if i.tile[k] else at) * i.itemsize[k]
            elif access[k] == GATHER:    # outputs too: an update reads what it writes
                walk(p[k], <char*> i.p[k], i.stride[k], i.shape, i.ndim, at, n, i.itemsize[k], False)
        i.inner(p, n, i.c)
        for k in range(i.outputs):
            if access[k] == GATHER:
                walk(p[k], <char*> i.p[k], i.stride[k], i.shape, i.ndim, at, n, i.itemsize[k], True)
        at += n


# --- copies: the inner kernels of an elementwise instruction

cdef inline void copy1(char** p, Py_ssize_t n, const double* c) noexcept nogil: memcpy(p[0], p[1], n)
cdef inline void copy2(char** p, Py_ssize_t n, const double* c) noexcept nogil: memcpy(p[0], p[1], 2 * n)
cdef inline void copy4(char** p, Py_ssize_t n, const double* c) noexcept nogil: memcpy(p[0], p[1], 4 * n)
cdef inline void copy8(char** p, Py_ssize_t n, const double* c) noexcept nogil: memcpy(p[0], p[1], 8 * n)


cdef inline void narrow(char** p, Py_ssize_t n, const double* c) noexcept nogil:
    """y = x, float from double."""
    cdef Py_ssize_t i
    for i in range(n):
        (<float*> p[0])[i] = <float> (<double*> p[1])[i]


cdef inline void widen(char** p, Py_ssize_t n, const double* c) noexcept nogil:
    """y = x, double from float."""
    cdef Py_ssize_t i
    for i in range(n):
        (<double*> p[0])[i] = (<float*> p[1])[i]


cdef inline void count(char** p, Py_ssize_t n, const double* c) noexcept nogil:
    """y = 1 where x holds, else 0; double from bool."""
    cdef Py_ssize_t i
    for i in range(n):
        (<double*> p[0])[i] = (<uint8_t*> p[1])[i] != 0


cdef inline void real(char** p, Py_ssize_t n, const double* c) noexcept nogil:
    """y = x, double from int64."""
    cdef Py_ssize_t i
    for i in range(n):
        (<double*> p[0])[i] = <double> (<int64_t*> p[1])[i]


# --- comparisons of int64

ctypedef bint (*int_comparison)(int64_t x, int64_t y) noexcept nogil

cdef inline bint i_lt(int64_t x, int64_t y) noexcept nogil: return x < y
cdef inline bint i_le(int64_t x, int64_t y) noexcept nogil: return x <= y
cdef inline bint i_gt(int64_t x, int64_t y) noexcept nogil: return x > y
cdef inline bint i_ge(int64_t x, int64_t y) noexcept nogil: return x >= y
cdef inline bint i_eq(int64_t x, int64_t y) noexcept nogil: return x == y
cdef inline bint i_ne(int64_t x, int64_t y) noexcept nogil: return x != y

cdef inline void compare_int(char** p, Py_ssize_t n, int_comparison f) noexcept nogil:
    cdef uint8_t* z = <uint8_t*> p[0]
    cdef int64_t* x = <int64_t*> p[1]
    cdef int64_t* y = <int64_t*> p[2]
    cdef Py_ssize_t i
    for i in range(n):
        z[i] = f(x[i], y[i])

cdef inline void lt_int(char** p, Py_ssize_t n, const double* c) noexcept nogil: compare_int(p, n, i_lt)
cdef inline void le_int(char** p, Py_ssize_t n, const double* c) noexcept nogil: compare_int(p, n, i_le)
cdef inline void gt_int(char** p, Py_ssize_t n, const double* c) noexcept nogil: compare_int(p, n, i_gt)
cdef inline void ge_int(char** p, Py_ssize_t n, const double* c) noexcept nogil: compare_int(p, n, i_ge)
cdef inline void eq_int(char** p, Py_ssize_t n, const double* c) noexcept nogil: compare_int(p, n, i_eq)
cdef inline void ne_int(char** p, Py_ssize_t n, const double* c) noexcept nogil: compare_int(p, n, i_ne)


# --- indexing

cdef inline void take(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """y[m, ...] = x[index1[m], index2[m], ..., ...].

    p: y, x, then int64 indices, contiguous, inside the bounds and not negative. Dimension 0 of
    the space is m, the rest are those of x that are not indexed; x's strides along the
    indexed dimensions follow in stride[1], after the ndim that belong to the space. y is
    contiguous.
    """
    cdef int size = i.itemsize[0]
    cdef Py_ssize_t m, row = 1
    cdef int d, k
    cdef char* x
    for d in range(1, i.ndim):
        row *= i.shape[d]
    if row == 0:
        return
    for m in range(start, stop):
        x = <char*> i.p[1]
        for k in range(2, i.operands):
            x += (<int64_t*> i.p[k])[m] * i.stride[1][i.ndim + k - 2]
        walk(<char*> i.p[0] + m * row * size, x, &i.stride[1][1], &i.shape[1], i.ndim - 1, 0, row, size, False)


# --- a counter-based stream of random numbers

cdef inline void draw(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """key = stream = (key, count), and stream's count goes on by 1; p: key, stream, two int64 each."""
    memcpy(i.p[0], i.p[1], 16)
    (<int64_t*> i.p[1])[1] += 1


cdef inline void one_more(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """n += 1; p: some n, int64."""
    cdef int k
    for k in range(i.operands):
        (<int64_t*> i.p[k])[0] += 1


# --- what an optimizer does once a step, on its hyperparameters in float64

cdef enum:
    COUNT = 8     # where h has the steps
    GIVEN = 9     # numbers from which the rest of h follows

ctypedef void (*derivation)(double* h) noexcept nogil
ctypedef void (*ticking)(const fb_instruction* i, derivation derive) noexcept nogil

cdef extern from "simd.h" nogil:
    ticking outlined_tick "FB_OUTLINED"(ticking f)

cdef inline void tick(const fb_instruction* i, derivation derive) noexcept nogil:
    """t += 1, then what follows from it; p: some h, of one length, laid out as kernels/update.pxi reads them."""
    cdef double given[GIVEN]
    cdef double* before = NULL
    cdef double* h
    cdef int k
    for k in range(i.operands):
        h = <double*> i.p[k]
        h[COUNT] += 1
        if before != NULL and memcmp(h, given, sizeof(given)) == 0:
            memcpy(h, before, i.shape[0] * sizeof(double))    # parameters of one group keep time
        else:
            memcpy(given, h, sizeof(given))
            derive(h)
            before = h


cdef inline void adam_derive(double* h) noexcept nogil:
    """step = lr / (1 - b1^t); scale = 1 / sqrt(1 - b2^t); shift = eps; decay w added or lr decay w taken."""
    h[9] = h[0] / (1 - pow(h[2], h[8]))
    h[10] = 1 / sqrt(1 - pow(h[3], h[8]))
    h[11] = h[4]
    h[13] = 0 if h[5] != 0 else h[1]
    h[14] = h[0] * h[1] if h[5] != 0 else 0


cdef inline void nadam_derive(double* h) noexcept nogil:
    """Adam, but step = lr mu' / (1 - P mu') and direct = lr (1 - mu) / (1 - P), P at 7 the product of all mu until now.

    mu = b1 (1 - 0.96^(t psi) / 2), mu' that of t + 1, psi at 6.
    """
    cdef double mu = h[2] * (1 - 0.5 * pow(0.96, h[8] * h[6]))
    cdef double ahead = h[2] * (1 - 0.5 * pow(0.96, (h[8] + 1) * h[6]))
    adam_derive(h)
    h[7] *= mu
    h[9] = h[0] * ahead / (1 - h[7] * ahead)
    h[12] = h[0] * (1 - mu) / (1 - h[7])


cdef inline void radam_derive(double* h) noexcept nogil:
    """Adam, but step times r sqrt(1 - b2^t), and no scale; while rho <= 5, step alone, and no denominator."""
    cdef double power = pow(h[3], h[8]), most = 2 / (1 - h[3]) - 1, rho = most - 2 * h[8] * power / (1 - power)
    adam_derive(h)
    h[10] = rho > 5
    if rho > 5:
        h[9] *= sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho)) * sqrt(1 - power)
    else:
        h[11] = 1


cdef inline void rmsprop_derive(double* h) noexcept nogil:
    """new = 1 - alpha; rate = lr."""
    h[3] = 1 - h[2]
    h[9] = h[0]


cdef inline void adagrad_derive(double* h) noexcept nogil:
    """keep = new = 1; rate = lr / (1 + (t - 1) lr_decay)."""
    h[2] = h[3] = 1
    h[9] = h[0] / (1 + (h[8] - 1) * h[6])


cdef inline void adam_clock(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    outlined_tick(tick)(i, adam_derive)
cdef inline void nadam_clock(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    outlined_tick(tick)(i, nadam_derive)
cdef inline void radam_clock(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    outlined_tick(tick)(i, radam_derive)
cdef inline void rmsprop_clock(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    outlined_tick(tick)(i, rmsprop_derive)
cdef inline void adagrad_clock(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    outlined_tick(tick)(i, adagrad_derive)


cdef inline void average_clock(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """The weight of the next of n in their average, then n += 1; p: n (int64), decay, weight, n as it was.

    The first has weight 1, any other 1 - decay, or with decay -1 (all alike) 1 / (n + 1).
    """
    cdef int64_t* n = <int64_t*> i.p[0]
    cdef double decay = (<double*> i.p[1])[0]
    (<double*> i.p[2])[0] = 1 if n[0] == 0 else 1.0 / (n[0] + 1) if decay < 0 else 1 - decay
    (<double*> i.p[3])[0] = n[0]
    n[0] += 1


cdef inline dict strided_kernels():
    """Loop forms and kernels that do not depend on the floating type."""
    return {
        "direct": <size_t> &elementwise_direct, "strided": <size_t> &elementwise_strided,
        "rows": <size_t> &elementwise_rows,
        "copy1": <size_t> &copy1, "copy2": <size_t> &copy2,
        "narrow": <size_t> &narrow, "widen": <size_t> &widen, "count": <size_t> &count, "real": <size_t> &real,
        "copy4": <size_t> &copy4, "copy8": <size_t> &copy8, "take": <size_t> &take,
        "adam_clock": <size_t> &adam_clock, "nadam_clock": <size_t> &nadam_clock,
        "radam_clock": <size_t> &radam_clock, "rmsprop_clock": <size_t> &rmsprop_clock,
        "adagrad_clock": <size_t> &adagrad_clock, "average_clock": <size_t> &average_clock,
        "draw": <size_t> &draw, "one_more": <size_t> &one_more,
        "lt": <size_t> &lt_int, "le": <size_t> &le_int, "gt": <size_t> &gt_int,
        "ge": <size_t> &ge_int, "eq": <size_t> &eq_int, "ne": <size_t> &ne_int,
    }
