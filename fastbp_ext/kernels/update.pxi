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
    """m += (1 - b1) (g - m); v = b2 v + (1 - b2) g^2; w -= step m / (sqrt(v) scale + eps).

    Adam adds decay w to g; AdamW (decoupled) takes lr decay w from w first.
    p: w, m, v, g, h; h: lr, decay, b1, b2, eps, decoupled, step, scale with
    step = lr / (1 - b1^t) and scale = 1 / sqrt(1 - b2^t).
    """
    cdef real* w = <real*> p[0]
    cdef real* m = <real*> p[1]
    cdef real* v = <real*> p[2]
    cdef real* g = <real*> p[3]
    cdef double* h = <double*> p[4]
    cdef bint decoupled = h[5] != 0
    cdef vec decay = splat(h[0] * h[1] if decoupled else h[1])
    cdef vec new_m = splat(1 - h[2]), b2 = splat(h[3]), new_v = splat(1 - h[3]), eps = splat(h[4])
    cdef vec step = splat(h[6]), scale = splat(h[7]), x, d, a, s
    cdef Py_ssize_t i = 0
    while i < n:
        x = load(w + i, n - i)
        d = load(g + i, n - i)
        if decoupled:
            x = x - decay * x
        else:
            d = d + decay * x
        a = load(m + i, n - i)
        a = a + new_m * (d - a)
        s = b2 * load(v + i, n - i) + new_v * (d * d)
        store(m + i, a, n - i)
        store(v + i, s, n - i)
        store(w + i, x - step * a / (sqrt(s) * scale + eps), n - i)
        i += LANES


cdef inline dict update_kernels():
    return {"sgd": <size_t> &sgd, "momentum": <size_t> &momentum, "adam": <size_t> &adam}
