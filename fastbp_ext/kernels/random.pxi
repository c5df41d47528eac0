# Random numbers by a counter: what an element gets is a function of the stream's key and count and of the
# element's place in C order, whoever computes it and beside what.
from libc.stdint cimport uint64_t

cdef extern from "philox.h" nogil:
    enum:
        WORDS "FB_PHILOX_WORDS"
    void philox "fb_philox"(uint64_t* words, uint64_t line, uint64_t key, uint64_t count)
    void factors "fb_factors"(real* to, const uint64_t* words, int64_t least, real scale)


cdef inline void dropout(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """y = x / (1 - p) where the element's word is 2^32 p or more, else 0 x; p: y, x, (key, count); c: p."""
    cdef const uint64_t* state = <const uint64_t*> i.p[2]
    cdef real* y = <real*> i.p[0] + (0 if i.tile[0] else start)
    cdef const real* x = <const real*> i.p[1] + (0 if i.tile[1] else start)
    cdef int64_t least = <int64_t> (i.c[0] * 4294967296.0 + 0.5)
    cdef real scale = 1 / (1 - i.c[0]) if i.c[0] < 1 else 0
    cdef uint64_t words[WORDS]
    cdef real factor[WORDS]
    cdef Py_ssize_t first, n, j
    while start < stop:
        philox(words, start // WORDS, state[0], state[1])
        factors(factor, words, least, scale)
        first = start % WORDS
        n = min(WORDS - first, stop - start)
        j = 0
        while j < n:
            store(y + j, load(x + j, n - j) * load(factor + first + j, n - j), n - j)
            j += LANES
        start += n
        y += n
        x += n


cdef inline dict random_kernels():
    return {"dropout": <size_t> &dropout}
