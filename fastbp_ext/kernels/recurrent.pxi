# The cells of recurrent layers, for `scan` (scan.pxd): all rows of a step. The product, h w + b, is that of
# matmul.pxi, whose sums have one order whatever the number of rows.
ctypedef void (*scanning)(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop, int size, int states, int gates,
                          int width, cell f, multiplication multiply) noexcept nogil
ctypedef void (*activation)(char** p, Py_ssize_t n, const double* c) noexcept nogil

cdef extern from "simd.h" nogil:
    scanning outlined_scan "FB_OUTLINED"(scanning f)
    multiplication outlined_product "FB_OUTLINED"(multiplication f)
    activation outlined_activation "FB_OUTLINED"(activation f)


cdef inline void activate(activation f, real* y, real* x, Py_ssize_t n) noexcept nogil:
    """y = f(x), by the kernel of a gate; y may be x."""
    cdef char* p[2]
    p[0], p[1] = <char*> y, <char*> x
    f(p, n, NULL)


# One row of a gradient: the fields of cell_rows that all cells read, as numbers.
cdef struct gradient_row:
    Py_ssize_t n
    const real* k
    const real* h
    const real* y
    const real* dy
    real* dk
    real* dh
    real* more
    real* sums
    Py_ssize_t part


cdef inline gradient_row gradient_of_row(const cell_rows* all, Py_ssize_t r, int width) noexcept nogil:
    """Row r of a step."""
    cdef gradient_row p
    p.n, p.part = all.n, all.part // <Py_ssize_t> sizeof(real)
    p.k, p.dk = <real*> all.k + r * width * p.n, <real*> all.dk + r * width * p.n
    p.h, p.y, p.dy = <real*> all.h + r * p.n, <real*> all.y + r * p.n, <const real*> all.dy + r * p.n
    p.dh, p.more = <real*> all.dh + r * p.n, <real*> all.more + r * p.n
    p.sums = <real*> all.sums + r // all.grain * all.grain * p.n
    return p


cdef inline void give(const gradient_row* p, int width, int turn, Py_ssize_t j, const vec* d) noexcept nogil:
    """Elements j .. of all parts of dk; they are added to the sums. In dk the first three are turned."""
    cdef Py_ssize_t m = p.n - j
    cdef vec sums[4]
    cdef int k
    for k in range(width):
        sums[k] = load(p.sums + k * p.part + j, m) + d[k]
    for k in range(width):
        store(p.dk + ((k + turn) % 3 if k < 3 else k) * p.n + j, d[k], m)
        store(p.sums + k * p.part + j, sums[k], m)


# --- y = tanh(x + (h w + b)), or relu

cdef inline void rnn_rows(const cell_rows* all) noexcept nogil:
    cdef Py_ssize_t n = all.rows * all.n
    fold_into(<real*> all.k, <const real*> all.x, n, fold_sum)
    if all.relu:
        activate(outlined_activation(relu), <real*> all.y, <real*> all.k, n)
    else:
        activate(outlined_activation(tanh_), <real*> all.y, <real*> all.k, n)


cdef inline void rnn_back(const cell_rows* all) noexcept nogil:
    cdef gradient_row p
    cdef Py_ssize_t r, j, m
    cdef vec d[1]
    cdef vec y
    for r in range(all.rows):
        p = gradient_of_row(all, r, 1)
        j = 0
        while j < p.n:
            m = p.n - j
            d[0] = load(p.dy + j, m) + load(p.dh + j, m)
            y = load(p.y + j, m)
            d[0] = v_relu_grad(d[0], y, NULL) if all.relu else v_tanh_grad(d[0], y, NULL)
            give(&p, 1, 0, j, d)
            j += LANES


# --- r, z = sigmoid(x + (h w + b)), q = h w + b, a = tanh((x + b) + r q), y = a + z (h - a)

cdef inline void gru_rows(const cell_rows* all) noexcept nogil:
    """k becomes r, z, q, a."""
    cdef real* k = <real*> all.k
    cdef const real* x = <const real*> all.x
    cdef const real* h = <const real*> all.h
    cdef const real* b = <const real*> all.b
    cdef real* y = <real*> all.y
    cdef Py_ssize_t n = all.n, r, j, m
    cdef vec a
    for r in range(all.rows):
        fold_into(k, x, 2 * n, fold_sum)
        activate(outlined_activation(sigmoid_), k, k, 2 * n)
        j = 0
        while j < n:
            m = n - j
            a = load(x + 2 * n + j, m) + load(b + 3 * n + j, m)
            store(k + 3 * n + j, a + load(k + j, m) * load(k + 2 * n + j, m), m)
            j += LANES
        activate(outlined_activation(tanh_), k + 3 * n, k + 3 * n, n)
        j = 0
        while j < n:
            m = n - j
            a = load(k + 3 * n + j, m)
            store(y + j, a + load(k + n + j, m) * (load(h + j, m) - a), m)
            j += LANES
        k += 4 * n
        x += 3 * n
        h += n
        y += n


cdef inline void gru_back(const cell_rows* all) noexcept nogil:
    """dk: those of q, and of what enters r, z and a; the sums are in the order of b: r, z, q, a."""
    cdef gradient_row p
    cdef Py_ssize_t row, j, m
    cdef vec d[4]
    cdef vec dy, r, z, a
    for row in range(all.rows):
        p = gradient_of_row(all, row, 4)
        j = 0
        while j < p.n:
            m = p.n - j
            dy = load(p.dy + j, m) + (load(p.dh + j, m) + load(p.more + j, m))
            r = load(p.k + j, m)
            z = load(p.k + p.n + j, m)
            a = load(p.k + 3 * p.n + j, m)
            d[3] = v_tanh_grad(dy * (splat(1) - z), a, NULL)
            d[0] = v_sigmoid_grad(d[3] * load(p.k + 2 * p.n + j, m), r, NULL)
            d[1] = v_sigmoid_grad(dy * (load(p.h + j, m) - a), z, NULL)
            d[2] = d[3] * r
            store(p.more + j, dy * z, m)
            give(&p, 4, 1, j, d)
            j += LANES


# --- i, f, g, o = sigmoid, sigmoid, tanh, sigmoid(x + (h w + b)), c' = f c + i g, y = o tanh(c')

cdef inline void lstm_rows(const cell_rows* all) noexcept nogil:
    """k becomes i, f, g, o."""
    cdef real* k = <real*> all.k
    cdef const real* x = <const real*> all.x
    cdef const real* c = <const real*> (all.h + all.c)
    cdef real* y_c = <real*> (all.y + all.c)
    cdef real* y = <real*> all.y
    cdef Py_ssize_t n = all.n, r, j, m
    cdef vec kept
    for r in range(all.rows):
        fold_into(k, x, 4 * n, fold_sum)
        activate(outlined_activation(sigmoid_), k, k, 2 * n)
        activate(outlined_activation(tanh_), k + 2 * n, k + 2 * n, n)
        activate(outlined_activation(sigmoid_), k + 3 * n, k + 3 * n, n)
        j = 0
        while j < n:
            m = n - j
            kept = load(k + n + j, m) * load(c + j, m)
            store(y_c + j, kept + load(k + j, m) * load(k + 2 * n + j, m), m)
            j += LANES
        activate(outlined_activation(tanh_), y, y_c, n)
        j = 0
        while j < n:
            m = n - j
            store(y + j, load(k + 3 * n + j, m) * load(y + j, m), m)
            j += LANES
        k += 4 * n
        x += 4 * n
        c += n
        y_c += n
        y += n


cdef inline void lstm_back(const cell_rows* all) noexcept nogil:
    """dk: those of what enters i, f, g, o. more: that of c."""
    cdef gradient_row p
    cdef Py_ssize_t c = all.c // <Py_ssize_t> sizeof(real), dy_c = all.dc // <Py_ssize_t> sizeof(real), row, j, m
    cdef vec d[4]
    cdef vec dy, dc, i, f, g, o, a
    for row in range(all.rows):
        p = gradient_of_row(all, row, 4)
        j = 0
        while j < p.n:
            m = p.n - j
            dy = load(p.dy + j, m) + load(p.dh + j, m)
            i = load(p.k + j, m)
            f = load(p.k + p.n + j, m)
            g = load(p.k + 2 * p.n + j, m)
            o = load(p.k + 3 * p.n + j, m)
            a = tanh(load(p.y + c + j, m))
            dc = (load(p.dy + dy_c + j, m) + load(p.more + j, m)) + v_tanh_grad(dy * o, a, NULL)
            d[0] = v_sigmoid_grad(dc * g, i, NULL)
            d[1] = v_sigmoid_grad(dc * load(p.h + c + j, m), f, NULL)
            d[2] = v_tanh_grad(dc * i, g, NULL)
            d[3] = v_sigmoid_grad(dy * a, o, NULL)
            store(p.more + j, dc * f, m)
            give(&p, 4, 0, j, d)
            j += LANES


cdef inline void rnn(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    outlined_scan(scan)(i, start, stop, sizeof(real), 1, 1, 1, rnn_rows, outlined_product(matmul))

cdef inline void rnn_grad(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    outlined_scan(scan_back)(i, start, stop, sizeof(real), 1, 1, 1, rnn_back, outlined_product(matmul))

cdef inline void gru(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    outlined_scan(scan)(i, start, stop, sizeof(real), 1, 3, 4, gru_rows, outlined_product(matmul))

cdef inline void gru_grad(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    outlined_scan(scan_back)(i, start, stop, sizeof(real), 1, 3, 4, gru_back, outlined_product(matmul))

cdef inline void lstm(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    outlined_scan(scan)(i, start, stop, sizeof(real), 2, 4, 4, lstm_rows, outlined_product(matmul))

cdef inline void lstm_grad(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    outlined_scan(scan_back)(i, start, stop, sizeof(real), 2, 4, 4, lstm_back, outlined_product(matmul))


cdef inline dict recurrent_kernels():
    return {"rnn": <size_t> &rnn, "rnn_grad": <size_t> &rnn_grad, "gru": <size_t> &gru,
            "gru_grad": <size_t> &gru_grad, "lstm": <size_t> &lstm, "lstm_grad": <size_t> &lstm_grad}
