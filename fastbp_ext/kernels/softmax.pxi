# Softmax and its family, over the rows of a contiguous (B, C) matrix; the sums are those of
# reduce.pxi. S is the softmax of a row x: e^(x - max) / sum, so nothing overflows.
#
# Space: (B, C). Operands are contiguous; where one has a value for each row, its stride along C
# is 0.

cdef inline real* row_of(const fb_instruction* i, int operand, Py_ssize_t b) noexcept nogil:
    return <real*> (<char*> i.p[operand] + b * i.stride[operand][0])


cdef inline real max_of_row(const real* x, Py_ssize_t n) noexcept nogil:
    cdef real most = -INFINITY, m
    cdef Py_ssize_t j = 0
    while j < n:
        m = block_max(x + j, min(n - j, <Py_ssize_t> SUM_BLOCK))
        if m > most or m != m:
            most = m
        j += SUM_BLOCK
    return most


cdef inline real exp_block(real* y, const real* x, Py_ssize_t n, real shift, Py_ssize_t row) noexcept nogil:
    """exp_of_row for n <= SUM_BLOCK; the next row, which begins `row` elements on, is fetched meanwhile."""
    cdef vec sum[4][SUM_VECTORS]
    cdef vec lanes[SUM_VECTORS]
    cdef vec e
    cdef Py_ssize_t j = 0, m
    cdef int v, q
    for q in range(4):
        for v in range(SUM_LANES // LANES):
            lanes[v] = splat(0)
        while j < n and j < (q + 1) * SUM_QUARTER:
            for v in range(SUM_LANES // LANES):
                m = n - j - v * LANES
                prefetch(x + row + j + v * LANES)
                e = exp(load_or(x + j + v * LANES, m, splat(-INFINITY)) - splat(shift))    # 0 behind the end
                lanes[v] = lanes[v] + e
                if y != NULL and m > 0:
                    store(y + j + v * LANES, e, m)
            j += SUM_LANES
        for v in range(SUM_LANES // LANES):
            sum[q][v] = lanes[v]
    return fold_quarters(sum, n, fold_sum)


cdef inline real exp_of_row(real* y, const real* x, Py_ssize_t n, real shift) noexcept nogil:
    """y = e^(x - shift), not written where y is NULL; their sum, in the order of every sum, is returned."""
    cdef real level[SUM_LEVELS]
    cdef Py_ssize_t j = 0, m
    cdef int top = 0
    level[0] = 0
    while j < n:
        m = min(n - j, <Py_ssize_t> SUM_BLOCK)
        level[top] = exp_block(y + j if y != NULL else NULL, x + j, m, shift, n)
        top = carry(level, 1, j // SUM_BLOCK, 1, fold_sum)
        j += m
    return fold_level(level, top, fold_sum)


ctypedef real (*row_maximum)(const real* x, Py_ssize_t n) noexcept nogil
ctypedef real (*row_exp)(real* y, const real* x, Py_ssize_t n, real shift) noexcept nogil
ctypedef void (*crossing)(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop, int y, int dx,
                          int x) noexcept nogil

cdef extern from "simd.h" nogil:
    row_maximum outlined_max "FB_OUTLINED"(row_maximum f)
    row_exp outlined_exp "FB_OUTLINED"(row_exp f)
    crossing outlined_crossing "FB_OUTLINED"(crossing f)

cdef inline real row_max(const real* x, Py_ssize_t n) noexcept nogil:
    return outlined_max(max_of_row)(x, n)

cdef inline real exp_row(real* y, const real* x, Py_ssize_t n, real shift) noexcept nogil:
    return outlined_exp(exp_of_row)(y, x, n, shift)


cdef inline real log_one(real x) noexcept nogil:
    return first_lane(log(splat(x)))


cdef inline void softmax(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """S; where c[0] is 1, a row of all -inf gives 0, else NaN."""
    cdef Py_ssize_t b, j, n = i.shape[1]
    cdef real* x
    cdef real* y
    cdef real m, s
    for b in range(start, stop):
        y = row_of(i, 0, b)
        x = row_of(i, 1, b)
        m = row_max(x, n)
        if i.c[0] and m == -INFINITY:
            memset(y, 0, n * sizeof(real))
            continue
        s = exp_row(y, x, n, m)
        j = 0
        while j < n:
            store(y + j, load(y + j, n - j) / splat(s), n - j)
            j += LANES


cdef inline void softmax_grad(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """dx = y (dy - sum dy y); p: dx, dy, y"""
    cdef Py_ssize_t b, j, n = i.shape[1]
    cdef const real* dy
    cdef const real* y
    cdef real* dx
    cdef real sums[2]
    for b in range(start, stop):
        dx = row_of(i, 0, b)
        dy = row_of(i, 1, b)
        y = row_of(i, 2, b)
        outlined_sums(grad_of_row)(sums, y, dy, y, n, 0)
        j = 0
        while j < n:
            store(dx + j, load(y + j, n - j) * (load(dy + j, n - j) - splat(sums[0])), n - j)
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
        s = log_one(exp_row(NULL, x, n, m))
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
            m += log_one(exp_row(NULL, x, n, m))
        row_of(i, 0, b)[0] = m


# --- cross-entropy of few classes: a vector of rows at once, one row a lane; each row's sums are
# those of one quarter of a block, so no bit depends on which form is taken

cdef enum:
    FEW_CLASSES = 128    # SUM_QUARTER at most

cdef inline void turn_rows(vec* to, const fb_instruction* i, int operand, Py_ssize_t b, Py_ssize_t rows) noexcept nogil:
    """to[c] = x[b .. b + rows, c], zeros in the lanes behind."""
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


cdef inline vec fold_classes(vec* x, Py_ssize_t n, real identity, fold f) noexcept nogil:
    """Each lane's n elements in one, element c in chain c % 16."""
    cdef vec lane[SUM_LANES]
    cdef Py_ssize_t c
    for c in range(SUM_LANES):
        lane[c] = x[c] if c < n else splat(identity)
    for c in range(SUM_LANES, n):
        lane[c % SUM_LANES] = f(lane[c % SUM_LANES], x[c])
    return fold_16(lane, f)


cdef inline vec exp_few(vec* x, Py_ssize_t n, vec labels, vec* most, vec* chosen) noexcept nogil:
    """x = e^(x - most), most = the largest of the n of each lane; their sum is returned, and chosen = x[label]."""
    cdef Py_ssize_t c
    most[0] = fold_classes(x, n, -INFINITY, fold_max)
    chosen[0] = splat(0)
    for c in range(n):
        chosen[0] = select(eq(labels, splat(c)), x[c], chosen[0])
        x[c] = exp(x[c] - most[0])
    return fold_classes(x, n, 0, fold_sum)


cdef inline vec column(const fb_instruction* i, int operand, Py_ssize_t b, Py_ssize_t rows) noexcept nogil:
    """The values of rows b .. b + rows, one for each."""
    cdef real each[LANES]
    cdef Py_ssize_t r
    if i.stride[operand][0] == 0:
        return splat(row_of(i, operand, b)[0])
    if i.stride[operand][0] == sizeof(real):
        return load(row_of(i, operand, b), rows)
    store_all(each, splat(0))
    for r in range(rows):
        each[r] = row_of(i, operand, b + r)[0]
    return load_all(each)


cdef inline vec labels_of(const fb_instruction* i, int operand, Py_ssize_t b, Py_ssize_t rows) noexcept nogil:
    """The labels of rows b .. b + rows as floats, 0 in the lanes behind."""
    cdef const int64_t* label = <const int64_t*> i.p[operand] + b
    cdef real each[LANES]
    cdef Py_ssize_t r
    if rows == LANES:
        for r in range(LANES):
            each[r] = <real> label[r]
    else:
        for r in range(LANES):
            each[r] = <real> label[r] if r < rows else 0
    return load_all(each)


cdef inline void scale_few(const fb_instruction* i, int dx, vec labels, vec* e, vec s, Py_ssize_t b,
                           Py_ssize_t rows) noexcept nogil:
    """dx = dy (e / s - I_label), 0 where the label is c[0]; e is overwritten."""
    cdef vec dy = column(i, dx + 1, b, rows), share = splat(1) / s
    cdef mask ignored = eq(labels, splat(i.c[0]))
    cdef Py_ssize_t n = i.shape[1], c
    for c in range(n):
        e[c] = select(ignored, splat(0), dy * (e[c] * share - select(eq(labels, splat(c)), splat(1), splat(0))))
    turn_back(i, dx, b, rows, e)


# --- cross-entropy of any number of classes: a vector's worth of rows at a time

cdef inline void scale_row(real* dx, Py_ssize_t n, real s, real dy, int64_t label) noexcept nogil:
    """dx = dy (dx / s - I_label)"""
    cdef Py_ssize_t j = 0
    cdef real share = 1 / s
    cdef real chosen = dy * (dx[label] * share - 1)
    while j < n:
        store(dx + j, splat(dy) * (load(dx + j, n - j) * splat(share)), n - j)
        j += LANES
    dx[label] = chosen


cdef inline void exp_and_scale(const fb_instruction* i, int dx, int x, Py_ssize_t b, Py_ssize_t rows, vec* s,
                               vec* most, vec* chosen) noexcept nogil:
    """Rows b .. b + rows: their sums of e^(x - most), their largest elements and those of the labels; the gradients."""
    cdef Py_ssize_t r, n = i.shape[1]
    cdef int64_t label
    cdef real each[3][LANES]
    store_all(each[0], splat(1))
    store_all(each[1], splat(1))
    store_all(each[2], splat(0))
    for r in range(rows):
        label = (<const int64_t*> i.p[x + 1])[b + r]
        if label == <int64_t> i.c[0]:
            if dx >= 0:
                memset(row_of(i, dx, b + r), 0, n * sizeof(real))
            continue
        each[2][r] = row_of(i, x, b + r)[label]
        each[1][r] = row_max(row_of(i, x, b + r), n)
        each[0][r] = exp_row(row_of(i, dx, b + r) if dx >= 0 else NULL, row_of(i, x, b + r), n, each[1][r])
        if dx >= 0:
            scale_row(row_of(i, dx, b + r), n, each[0][r], row_of(i, dx + 1, b + r)[0], label)
    s[0] = load_all(each[0])
    most[0] = load_all(each[1])
    chosen[0] = load_all(each[2])


cdef inline void cross(const fb_instruction* i, Py_ssize_t b, Py_ssize_t stop, int y, int dx, int x) noexcept nogil:
    """y[b] = log sum e^x[b] - x[b, label[b]] and dx[b] = dy[b] (S - I_label), 0 where the label is c[0].

    y, dx and x are the numbers of these operands, -1 where one is not wanted; dy follows dx,
    the labels follow x.
    """
    cdef Py_ssize_t n = i.shape[1], rows, r
    cdef vec columns[FEW_CLASSES]
    cdef vec most, s, labels, chosen, loss
    cdef real each[LANES]
    while b < stop:
        rows = min(stop - b, <Py_ssize_t> LANES)
        labels = labels_of(i, x + 1, b, rows)
        if n <= SUM_LANES or n <= FEW_CLASSES and 2 * rows > LANES:    # else row by row, to the same bits
            turn_rows(columns, i, x, b, rows)
            s = exp_few(columns, n, labels, &most, &chosen)
            if dx >= 0:
                scale_few(i, dx, labels, columns, s, b, rows)
        else:
            exp_and_scale(i, dx, x, b, rows, &s, &most, &chosen)
        if y >= 0:
            loss = select(eq(labels, splat(i.c[0])), splat(0), log(s) + (most - chosen))
            if i.stride[y][0] == sizeof(real):
                store(row_of(i, y, b), loss, rows)
            else:
                store_all(each, loss)
                for r in range(rows):
                    row_of(i, y, b + r)[0] = each[r]
        b += LANES


cdef inline void cross_entropy(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """p: y, x, labels"""
    outlined_crossing(cross)(i, start, stop, 0, -1, 1)

cdef inline void cross_entropy_grad(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """p: dx, dy, x, labels"""
    outlined_crossing(cross)(i, start, stop, -1, 0, 2)

cdef inline void cross_entropy_both(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Both in one sweep; p: y, dx, dy, x, labels."""
    outlined_crossing(cross)(i, start, stop, 0, 1, 3)


cdef inline dict softmax_kernels():
    return {
        "softmax": <size_t> &softmax, "softmax_grad": <size_t> &softmax_grad, "log_softmax": <size_t> &log_softmax,
        "logsumexp": <size_t> &logsumexp, "cross_entropy": <size_t> &cross_entropy,
        "cross_entropy_grad": <size_t> &cross_entropy_grad, "cross_entropy_both": <size_t> &cross_entropy_both,
    }
