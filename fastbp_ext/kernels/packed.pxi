# A product in strips of rows, for stages that run on each strip while it is in the cache: B is
# copied first, as a whole, into panels of two vectors of columns, one panel after the other, and
# stays in L2. The chains are those of `matmul`.

cdef inline void pack(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Columns start .. stop of B, panel by panel; p: packed, B; the space is (columns, k)."""
    cdef Py_ssize_t n = i.shape[0], k = i.shape[1], at = start, vectors, last
    cdef const char* b
    while at < stop:
        vectors = 2 if n - at > LANES else 1
        last = min(n - at, 2 * <Py_ssize_t> LANES) - (vectors - 1) * LANES
        b = i.p[1] + at * i.stride[1][0]
        if i.stride[1][0] == sizeof(real):
            pack_rows(<real*> i.p[0] + at * k, b, i.stride[1][1], k, vectors, last)
        else:
            pack_columns(<real*> i.p[0] + at * k, b, i.stride[1][0], k, vectors, last)
        at += 2 * LANES


cdef inline void matmul_packed(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Rows start .. stop of C = A B; p: C, A, packed B; the space is (rows, columns, k)."""
    cdef Py_ssize_t n = i.shape[1], k = i.shape[2], block = block_of(k), at = 0, vectors
    cdef char* c = i.p[0] + (0 if i.tile[0] else start * i.stride[0][0])
    cdef fb_tile t
    t.a_row = i.stride[1][0]
    t.a_k = i.stride[1][2]
    t.c_row = i.stride[0][0]
    while at < n:
        vectors = 2 if n - at > LANES else 1
        t.last = min(n - at, 2 * <Py_ssize_t> LANES) - (vectors - 1) * LANES
        t.b_k = vectors * LANES * <Py_ssize_t> sizeof(real)
        t.a = i.p[1] + start * t.a_row
        t.b = i.p[2] + at * k * <Py_ssize_t> sizeof(real)
        t.c = c + at * <Py_ssize_t> sizeof(real)
        run_rows(&t, stop - start, vectors, k, block, False)
        at += 2 * LANES


cdef inline dict packed_kernels():
    return {"pack": <size_t>&pack, "matmul_packed": <size_t>&matmul_packed}
