# The gradient of indexing, and optimizers' sums over rows that an index names.

cdef inline void scatter(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """y = 0; y[index1[m], index2[m], ..., ...] += dy[m, ...], m ascending.

    p: y, dy (contiguous), then int64 indices as in `take`. Dimension 0 of the space is m, the
    rest those of y that are not indexed; y's strides along the indexed dimensions follow in
    stride[0], after the ndim that belong to the space, and the number of y's elements is c[0].
    y is contiguous. One unit of work: rows may meet in y.
    """
    cdef Py_ssize_t m, j, row = size_of(i, 1, i.ndim)
    cdef Py_ssize_t n = i.shape[0]
    cdef int k, d
    cdef Py_ssize_t at[12]
    cdef char* y
    cdef real* dy
    memset(i.p[0], 0, <Py_ssize_t> i.c[0] * sizeof(real))
    for m in range(n if start < stop and row else 0):
        y = <char*> i.p[0]
        dy = <real*> i.p[1] + m * row
        for k in range(2, i.operands):
            y += (<int64_t*> i.p[k])[m] * i.stride[0][i.ndim + k - 2]
        if i.ndim == 2 and i.stride[0][1] == sizeof(real):
            fold_into(<real*> y, dy, row, fold_sum)
            continue
        for d in range(1, i.ndim):
            at[d] = 0
        for j in range(row):
            (<real*> y)[0] += dy[j]
            d = i.ndim - 1
            while d >= 1:
                at[d] += 1
                y += i.stride[0][d]
                if at[d] < i.shape[d]:
                    break
                y -= at[d] * i.stride[0][d]
                at[d] = 0
                d -= 1


cdef inline dict index_kernels():
    return {"scatter": <size_t> &scatter}
