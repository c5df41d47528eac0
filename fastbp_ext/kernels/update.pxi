# Optimizer updates: elementwise kernels whose outputs are read as well. h holds the
# hyperparameters as doubles, handed over as a pointer: a program sees a changed rate.

cdef inline void sgd(char** p, Py_ssize_t n, const double* c) noexcept nogil:
    """w -= lr (g + decay w); p: w, g, h; h: lr, decay."""
    cdef real* w = <real*> p[0]
    cdef real* g = <real*> p[1]
    cdef double* h = <double*> p[2]
    cdef vec lr = splat(h[0]), decay = splat(h[1]), x
    cdef Py_ssize_t i = 0
    while i < n:
        x = load(w + i, n - i)
        store(w + i, x - lr * (load(g + i, n - i) + decay * x), n - i)
        i += LANES


cdef inline void momentum(char** p, Py_ssize_t n, const double* c) noexcept nogil:
    """d = g + decay w; b = mu b + d; w -= lr b, or lr (d + mu b) with nesterov.

    p: w, b, g, h; h: lr, decay, mu, nesterov.
    """
    cdef real* w = <real*> p[0]
    cdef real* b = <real*> p[1]
    cdef real* g = <real*> p[2]
    cdef double* h = <double*> p[3]
    cdef vec lr = splat(h[0]), decay = splat(h[1]), mu = splat(h[2]), x, d, v
    cdef bint nesterov = h[3] != 0
    cdef Py_ssize_t i = 0
    while i < n:
        x = load(w + i, n - i)
        d = load(g + i, n - i) + decay * x
        v = mu * load(b + i, n - i) + d
        store(b + i, v, n - i)
        if nesterov:
            v = d + mu * v
        store(w + i, x - lr * v, n - i)
        i += LANES


cdef inline void adam(char** p, Py_ssize_t n, const double* c) noexcept nogil:
    """d = g + added w; m += (1 - b1) (d - m); v = b2 v + (1 - b2) d^2; w -= taken w; then
    w -= (step m + direct d) / (sqrt(v) scale + shift).

    p: w, m, v, g, h; h: ..., b1, b2 at 2, and from 9 on what a clock computes: step, scale, shift, direct,
    added, taken. Terms of 0 take no time beside the root and the quotient.
    """
    cdef real* w = <real*> p[0]
    cdef real* m = <real*> p[1]
    cdef real* v = <real*> p[2]
    cdef real* g = <real*> p[3]
    cdef double* h = <double*> p[4]
    cdef vec new_m = splat(1 - h[2]), b2 = splat(h[3]), new_v = splat(1 - h[3]), step = splat(h[9])
    cdef vec scale = splat(h[10]), shift = splat(h[11]), direct = splat(h[12]), added = splat(h[13])
    cdef vec taken = splat(h[14]), x, d, a, s
    cdef Py_ssize_t i = 0
    while i < n:
        x = load(w + i, n - i)
        d = load(g + i, n - i) + added * x
        x = x - taken * x
        a = load(m + i, n - i)
        a = a + new_m * (d - a)
        s = b2 * load(v + i, n - i) + new_v * (d * d)
        store(m + i, a, n - i)
        store(v + i, s, n - i)
        store(w + i, x - (step * a + direct * d) / (sqrt(s) * scale + shift), n - i)
        i += LANES


cdef inline void rmsprop(char** p, Py_ssize_t n, const double* c) noexcept nogil:
    """d = g + decay w; s = keep s + new d^2; d = d / (sqrt(s) + eps); w -= rate d.

    centered: a += new (d - a), and s - a^2 stands under the root. With b: b = mu b + d, w -= rate b.
    p: w, s, b and a or one of them or none, g, h; h: lr, decay, keep, new, eps, centered, ..., mu at 7, rate at 9;
    c: the number of outputs.
    """
    cdef int outputs = <int> c[0]
    cdef double* h = <double*> p[outputs + 1]
    cdef bint centered = h[5] != 0
    cdef bint moves = outputs > 2 + centered
    cdef real* w = <real*> p[0]
    cdef real* s = <real*> p[1]
    cdef real* b = <real*> p[2]
    cdef real* a = <real*> p[outputs - 1]
    cdef real* g = <real*> p[outputs]
    cdef vec decay = splat(h[1]), keep = splat(h[2]), new = splat(h[3]), eps = splat(h[4]), mu = splat(h[7])
    cdef vec rate = splat(h[9]), x, d, q, v
    cdef Py_ssize_t i = 0
    while i < n:
        x = load(w + i, n - i)
        d = load(g + i, n - i) + decay * x
        q = keep * load(s + i, n - i) + new * (d * d)
        store(s + i, q, n - i)
        if centered:
            v = load(a + i, n - i)
            v = v + new * (d - v)
            store(a + i, v, n - i)
            q = q - v * v
        d = d / (sqrt(q) + eps)
        if moves:
            d = mu * load(b + i, n - i) + d
            store(b + i, d, n - i)
        store(w + i, x - rate * d, n - i)
        i += LANES


cdef inline void average(char** p, Py_ssize_t n, const double* c) noexcept nogil:
    """a = (1 - weight) a + weight w; p: a, w, h; h: weight. A weight of 1 copies finite values."""
    cdef real* a = <real*> p[0]
    cdef real* w = <real*> p[1]
    cdef double* h = <double*> p[2]
    cdef vec keep = splat(1 - h[0]), new = splat(h[0])
    cdef Py_ssize_t i = 0
    while i < n:
        store(a + i, keep * load(a + i, n - i) + new * load(w + i, n - i), n - i)
        i += LANES


cdef inline dict update_kernels():
    """By the names of the optimizers; what differs is in h."""
    return {"sgd": <size_t> &sgd, "momentum": <size_t> &momentum,
            "adam": <size_t> &adam, "nadam": <size_t> &adam, "radam": <size_t> &adam,
            "rmsprop": <size_t> &rmsprop, "adagrad": <size_t> &rmsprop, "average": <size_t> &average}
