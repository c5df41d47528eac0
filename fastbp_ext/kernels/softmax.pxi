# Softmax and its family, over the rows of a contiguous (B, C) matrix; the sums are those of
# reduce.pxi. S is the softmax of a row x: e^(x - max) / sum, so nothing overflows.
#
# Space: (B, C). Operands are contiguous; where one has a value for each row, its stride along C
# is 0.

cdef inline real* row_of(const fb_instruction* i, int operand, Py_ssize_t b) noexcept nogil:
    return <real*> (<char*> i.p[operand] + b * i.stride[operand][0])


cdef inline real fold_dense(const real* x, Py_ssize_t n, real identity, fold f) noexcept nogil:
    """fold_row for a contiguous row."""
    cdef real level[SUM_LEVELS]
    cdef Py_ssize_t j = 0, blocks = 0
    cdef int top = 0
    if n == 0:
        return identity
    while j < n:
        level[top] = fold_block(x + j, n - j if n - j < SUM_BLOCK else SUM_BLOCK, identity, f)
        top = carry(level, 1, blocks, 1, f)
        blocks += 1
        j += SUM_BLOCK
    while top > 1:
        fold_into(level + top - 2, level + top - 1, 1, f)
        top -= 1
    return level[0]


cdef inline real exp_row(real* y, const real* x, Py_ssize_t n, real shift) noexcept nogil:
    """y = e^(x - shift), and their sum is returned."""
    cdef Py_ssize_t j = 0
    while j < n:
        store(y + j, exp(load(x + j, n - j) - splat(shift)), n - j)
        j += LANES
    return fold_dense(y, n, 0, fold_sum)


cdef inline real sum_exp(const real* x, Py_ssize_t n, real shift) noexcept nogil:
    """The sum of e^(x - shift), in the order of every sum."""
    cdef real block[SUM_BLOCK]
    cdef real level[SUM_LEVELS]
    cdef Py_ssize_t j = 0, blocks = 0, m
    cdef int top = 0
    level[0] = 0
    while j < n:
        m = n - j if n - j < SUM_BLOCK else SUM_BLOCK
        level[top] = exp_row(block, x + j, m, shift)
        top = carry(level, 1, blocks, 1, fold_sum)
        blocks += 1
        j += m
    while top > 1:
        fold_into(level + top - 2, level + top - 1, 1, fold_sum)
        top -= 1
    return level[0]


cdef inline real log_one(real x) noexcept nogil:
    cdef real y = x
    store_part(&y, log(load_part(&y, 1)), 1)
    return y


cdef inline real row_max(const real* x, Py_ssize_t n) noexcept nogil:
    return fold_dense(x, n, -INFINITY, fold_max)


cdef inline void softmax(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t b, j, n = i.shape[1]
    cdef real* x
    cdef real* y
    cdef real s
    for b in range(start, stop):
        y = row_of(i, 0, b)
        x = row_of(i, 1, b)
        s = exp_row(y, x, n, row_max(x, n))
        j = 0
        while j < n:
            store(y + j, load(y + j, n - j) / splat(s), n - j)
            j += LANES


cdef inline void log_softmax(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """y = (x - max) - log sum e^(x - max)"""
    cdef Py_ssize_t b, j, n = i.shape[1]
    cdef real* x
    cdef real* y
    cdef real m, s
    for b in range(start, stop):
        y = row_of(i, 0, b)
        x = row_of(i, 1, b)
        m = row_max(x, n)
        s = log_one(sum_exp(x, n, m))
        j = 0
        while j < n:
            store(y + j, (load(x + j, n - j) - splat(m)) - splat(s), n - j)
            j += LANES


cdef inline void logsumexp(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """y = max + log sum e^(x - max); an infinite max is the answer itself."""
    cdef Py_ssize_t b, n = i.shape[1]
    cdef real* x
    cdef real m
    for b in range(start, stop):
        x = row_of(i, 1, b)
        m = row_max(x, n)
        if m - m == 0:
            m += log_one(sum_exp(x, n, m))
        row_of(i, 0, b)[0] = m


cdef inline void cross_entropy(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """y[b] = log sum e^x[b] - x[b, label[b]], 0 where the label is c[0]; p: y, x, labels."""
    cdef Py_ssize_t b, n = i.shape[1]
    cdef int64_t ignored = <int64_t> i.c[0], label
    cdef real* x
    cdef real m
    for b in range(start, stop):
        label = (<const int64_t*> i.p[2])[b]
        if label == ignored:
            row_of(i, 0, b)[0] = 0
            continue
        x = row_of(i, 1, b)
        m = row_max(x, n)
        row_of(i, 0, b)[0] = log_one(sum_exp(x, n, m)) + (m - x[label])


cdef inline void cross_entropy_grad(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """dx[b] = dy[b] (S - I_label), 0 where the label is c[0]; p: dx, dy, x, labels."""
    cdef Py_ssize_t b, j, n = i.shape[1]
    cdef int64_t ignored = <int64_t> i.c[0], label
    cdef real* x
    cdef real* dx
    cdef real dy, s
    for b in range(start, stop):
        dx = row_of(i, 0, b)
        label = (<const int64_t*> i.p[3])[b]
        if label == ignored:
            memset(dx, 0, n * sizeof(real))
            continue
        dy = row_of(i, 1, b)[0]
        x = row_of(i, 2, b)
        s = exp_row(dx, x, n, row_max(x, n))
        j = 0
        while j < n:
            store(dx + j, load(dx + j, n - j) / splat(s), n - j)
            j += LANES
        dx[label] = dx[label] - 1
        j = 0
        while j < n:
            store(dx + j, splat(dy) * load(dx + j, n - j), n - j)
            j += LANES


cdef inline dict softmax_kernels():
    return {
        "softmax": <size_t> &softmax, "log_softmax": <size_t> &log_softmax,
        "logsumexp": <size_t> &logsumexp, "cross_entropy": <size_t> &cross_entropy,
        "cross_entropy_grad": <size_t> &cross_entropy_grad,
    }
