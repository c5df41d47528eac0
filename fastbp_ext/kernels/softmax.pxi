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


# --- cross-entropy of few classes: a vector of rows at once, one row a lane; each row's sums are
# those of one block, lane for class, so no bit depends on which form is taken

cdef inline void turn_rows(vec* to, const fb_instruction* i, int operand, Py_ssize_t b, Py_ssize_t rows) noexcept nogil:
    """to[c] = x[b .. b + rows, c], zeros in the lanes behind; n <= 16 columns."""
    cdef Py_ssize_t c = 0, n = i.shape[1]
    while c < n:
        transpose(<real*> (to + c), sizeof(vec), row_of(i, operand, b) + c, i.stride[operand][0], rows,
                  min(n - c, <Py_ssize_t> LANES), LANES)
        c += LANES


cdef inline void turn_back(const fb_instruction* i, int operand, Py_ssize_t b, Py_ssize_t rows,
                           vec* source) noexcept nogil:
    """y[b .. b + rows, c] = source[c]"""
    cdef Py_ssize_t c = 0, n = i.shape[1]
    while c < n:
        transpose(row_of(i, operand, b) + c, i.stride[operand][0], <real*> (source + c), sizeof(vec),
                  min(n - c, <Py_ssize_t> LANES), rows, min(n - c, <Py_ssize_t> LANES))
        c += LANES


cdef inline vec exp_few(vec* x, Py_ssize_t n, vec* most) noexcept nogil:
    """x = e^(x - most), most = the largest of the n of each lane; their sum is returned."""
    cdef vec lane[SUM_LANES]
    cdef Py_ssize_t c
    for c in range(SUM_LANES):
        lane[c] = fold_max(splat(-INFINITY), x[c]) if c < n else splat(-INFINITY)
    most[0] = fold_16(lane, fold_max)
    for c in range(SUM_LANES):
        lane[c] = splat(0)
    for c in range(n):
        x[c] = exp(x[c] - most[0])
        lane[c] = fold_sum(lane[c], x[c])
    return fold_16(lane, fold_sum)


cdef inline void loss_few(const fb_instruction* i, int x, int labels, vec s, vec most, Py_ssize_t b,
                          Py_ssize_t rows) noexcept nogil:
    """y = log s + most - x[label], 0 where the label is c[0]; y is operand 0, x and labels have these numbers."""
    cdef vec y
    cdef real chosen[LANES]
    cdef real kept[LANES]
    cdef Py_ssize_t r
    cdef int64_t ignored = <int64_t> i.c[0], label
    for r in range(LANES):
        label = (<const int64_t*> i.p[labels])[b + r] if r < rows else ignored
        kept[r] = label != ignored
        chosen[r] = row_of(i, x, b + r)[label] if label != ignored else 0
    y = select(eq(load_all(kept), splat(0)), splat(0), log(s) + (most - load_all(chosen)))
    if i.stride[0][0] == sizeof(real):
        store(row_of(i, 0, b), y, rows)
    else:
        store_all(chosen, y)
        for r in range(rows):
            row_of(i, 0, b + r)[0] = chosen[r]


cdef inline void cross_entropy_few(const fb_instruction* i, Py_ssize_t b, Py_ssize_t stop) noexcept nogil:
    cdef vec x[SUM_LANES]
    cdef vec most, s
    cdef Py_ssize_t rows
    while b < stop:
        rows = min(stop - b, <Py_ssize_t> LANES)
        turn_rows(x, i, 1, b, rows)
        s = exp_few(x, i.shape[1], &most)
        loss_few(i, 1, 2, s, most, b, rows)
        b += LANES


cdef inline void scale_few(const fb_instruction* i, int first, vec* x, vec s, Py_ssize_t b,
                           Py_ssize_t rows) noexcept nogil:
    """dx = dy (x / s - I_label), 0 where the label is c[0]; the operands dx, dy, x, labels begin at number `first`."""
    cdef vec dys, labels
    cdef real dy[LANES]
    cdef real label[LANES]
    cdef Py_ssize_t n = i.shape[1], r, c
    for r in range(LANES):
        label[r] = <real> (<const int64_t*> i.p[first + 3])[b + r] if r < rows else 0
        dy[r] = row_of(i, first + 1, b + r)[0] if r < rows else 0
    dys, labels = load_all(dy), load_all(label)
    for c in range(n):
        x[c] = dys * (x[c] / s - select(eq(labels, splat(c)), splat(1), splat(0)))
        x[c] = select(eq(labels, splat(i.c[0])), splat(0), x[c])
    turn_back(i, first, b, rows, x)


cdef inline void cross_entropy_grad_few(const fb_instruction* i, Py_ssize_t b, Py_ssize_t stop) noexcept nogil:
    cdef vec x[SUM_LANES]
    cdef vec most, s
    cdef Py_ssize_t rows
    while b < stop:
        rows = min(stop - b, <Py_ssize_t> LANES)
        turn_rows(x, i, 2, b, rows)
        s = exp_few(x, i.shape[1], &most)
        scale_few(i, 0, x, s, b, rows)
        b += LANES


# --- cross-entropy of any number of classes

cdef inline void cross_entropy(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """y[b] = log sum e^x[b] - x[b, label[b]], 0 where the label is c[0]; p: y, x, labels."""
    cdef Py_ssize_t b, n = i.shape[1]
    cdef int64_t ignored = <int64_t> i.c[0], label
    cdef real* x
    cdef real m
    if n <= SUM_LANES:
        cross_entropy_few(i, start, stop)
        return
    for b in range(start, stop):
        label = (<const int64_t*> i.p[2])[b]
        if label == ignored:
            row_of(i, 0, b)[0] = 0
            continue
        x = row_of(i, 1, b)
        m = row_max(x, n)
        row_of(i, 0, b)[0] = log_one(sum_exp(x, n, m)) + (m - x[label])


cdef inline void scale_row(real* dx, Py_ssize_t n, real s, real dy, int64_t label) noexcept nogil:
    """dx = dy (dx / s - I_label)"""
    cdef Py_ssize_t j = 0
    cdef real chosen = dy * (dx[label] / s - 1)
    while j < n:
        store(dx + j, splat(dy) * (load(dx + j, n - j) / splat(s)), n - j)
        j += LANES
    dx[label] = chosen


cdef inline void cross_entropy_grad(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """dx[b] = dy[b] (S - I_label), 0 where the label is c[0]; p: dx, dy, x, labels."""
    cdef Py_ssize_t b, n = i.shape[1]
    cdef int64_t ignored = <int64_t> i.c[0], label
    cdef real* x
    cdef real* dx
    cdef real dy, s
    if n <= SUM_LANES:
        cross_entropy_grad_few(i, start, stop)
        return
    for b in range(start, stop):
        dx = row_of(i, 0, b)
        label = (<const int64_t*> i.p[3])[b]
        if label == ignored:
            memset(dx, 0, n * sizeof(real))
            continue
        dy = row_of(i, 1, b)[0]
        x = row_of(i, 2, b)
        s = exp_row(dx, x, n, row_max(x, n))
        scale_row(dx, n, s, dy, label)


cdef inline void cross_entropy_both(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """cross_entropy and cross_entropy_grad in one sweep; p: y, dx, dy, x, labels."""
    cdef Py_ssize_t b = start, n = i.shape[1], rows
    cdef int64_t ignored = <int64_t> i.c[0], label
    cdef vec columns[SUM_LANES]
    cdef vec most, sums
    cdef real* x
    cdef real* dx
    cdef real m, s
    while n <= SUM_LANES and b < stop:
        rows = min(stop - b, <Py_ssize_t> LANES)
        turn_rows(columns, i, 3, b, rows)
        sums = exp_few(columns, n, &most)
        loss_few(i, 3, 4, sums, most, b, rows)
        scale_few(i, 1, columns, sums, b, rows)
        b += LANES
    while b < stop:
        dx = row_of(i, 1, b)
        label = (<const int64_t*> i.p[4])[b]
        if label == ignored:
            row_of(i, 0, b)[0] = 0
            memset(dx, 0, n * sizeof(real))
        else:
            x = row_of(i, 3, b)
            m = row_max(x, n)
            s = exp_row(dx, x, n, m)
            row_of(i, 0, b)[0] = log_one(s) + (m - x[label])
            scale_row(dx, n, s, row_of(i, 2, b)[0], label)
        b += 1


cdef inline dict softmax_kernels():
    return {
        "softmax": <size_t> &softmax, "log_softmax": <size_t> &log_softmax,
        "logsumexp": <size_t> &logsumexp, "cross_entropy": <size_t> &cross_entropy,
        "cross_entropy_grad": <size_t> &cross_entropy_grad, "cross_entropy_both": <size_t> &cross_entropy_both,
    }
