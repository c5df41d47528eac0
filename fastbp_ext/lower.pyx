"""From a gate and its tensors to instructions: one function for each form of loop.

Operands are the tensors themselves, outputs first. Shapes were checked before: nothing here
can fail. Dimensions that lie one behind the other in every operand are joined, so that most
instructions have one dimension, or two.
"""
from fastbp_ext.abi cimport FB_CONSTANTS, FB_FUSED, FB_OPERANDS, FB_TILE, fb_inner, fb_instruction, fb_run
from fastbp_ext.program cimport Executor
from fastbp_ext.tensor cimport MAX_DIMS, Tensor, item_size

from fastbp_ext.cpu import TABLE

cdef enum:
    SHORT_ROW = 16    # many rows of fewer elements are better gathered than taken one by one,
    MANY_ROWS = 16
    COLUMN_ROWS = 256    # SUM_QUARTER of kernels/reduce.pxi: lanes of so many rows are one thread's
    SCAN_ROWS = 4    # of a batch: fewer take as long, as the weights are read at each step
    REPEATED_ROW = 256    # and of fewer than these where one row is read again and again
    SPACE = 8    # sizes of the space of windows that are walked; the others are those of the larger map

cdef fb_run direct = <fb_run> <size_t> TABLE["int64"]["direct"]
cdef fb_run strided = <fb_run> <size_t> TABLE["int64"]["strided"]
cdef fb_run by_rows = <fb_run> <size_t> TABLE["int64"]["rows"]
cdef fb_run take = <fb_run> <size_t> TABLE["int64"]["take"]
cdef void* copies[9]
copies[1] = <void*> <size_t> TABLE["int64"]["copy1"]
copies[2] = <void*> <size_t> TABLE["int64"]["copy2"]
copies[4] = <void*> <size_t> TABLE["int64"]["copy4"]
copies[8] = <void*> <size_t> TABLE["int64"]["copy8"]

cdef fb_run turns[9]
turns[4] = <fb_run> <size_t> TABLE["float32"]["turn_copy"]
turns[8] = <fb_run> <size_t> TABLE["float64"]["turn_copy"]

cdef struct SpreadForm:
    # The form of a kernel for which some operands, bits of `single`, are one value for all elements.
    fb_inner kernel
    int single
    fb_inner form

cdef SpreadForm spread_forms[64]
cdef int spread_count = 0
for kernels in TABLE.values():
    for name in kernels:
        if "." in name:    # "add.1": operand 1
            spread_forms[spread_count].kernel = <fb_inner> <size_t> kernels[name.partition(".")[0]]
            spread_forms[spread_count].single = sum([1 << int(k) for k in name.partition(".")[2]])
            spread_forms[spread_count].form = <fb_inner> <size_t> kernels[name]
            spread_count += 1


cdef void set_operand(fb_instruction* i, int k, Tensor x) noexcept:
    i.plain = 0
    i.p[k] = x.data
    i.itemsize[k] = item_size(x.kind)
    i.tile[k] = 0


cdef void broadcast_strides(Py_ssize_t* to, Tensor x, int ndim, int skip) noexcept:
    """x's strides for a space whose last x.rank - skip dimensions are x's first ones."""
    cdef int d, rank = x.rank - skip
    for d in range(ndim - rank):
        to[d] = 0
    for d in range(rank):
        to[ndim - rank + d] = 0 if x.dims[d] == 1 else x.steps[d]


cdef int join(fb_instruction* i, int first, int last) noexcept:
    """Join dimensions first .. last - 1 of the space where they can be, drop those of size 1.

    How many are left is returned; the dimensions from `last` on are not moved.
    """
    cdef int d, k, to = first
    cdef bint together
    for d in range(first, last):
        if i.shape[d] == 1:
            continue
        together = to > first
        if together:
            for k in range(i.operands):
                if i.stride[k][to - 1] != i.stride[k][d] * i.shape[d]:
                    together = False
                    break
        if together:
            i.shape[to - 1] *= i.shape[d]
            for k in range(i.operands):
                i.stride[k][to - 1] = i.stride[k][d]
        else:
            i.shape[to] = i.shape[d]
            for k in range(i.operands):
                i.stride[k][to] = i.stride[k][d]
            to += 1
    return to - first


cdef void sort_dimensions(fb_instruction* i, int operand, int count) noexcept:
    """The first dimensions, so many, in the order in which they lie in an operand."""
    cdef int d, e, k
    cdef Py_ssize_t held
    for d in range(1, count):
        e = d
        while e > 0 and abs(i.stride[operand][e - 1]) < abs(i.stride[operand][e]):
            i.shape[e - 1], i.shape[e] = i.shape[e], i.shape[e - 1]
            for k in range(i.operands):
                held = i.stride[k][e]
                i.stride[k][e] = i.stride[k][e - 1]
                i.stride[k][e - 1] = held
            e -= 1


cdef bint are_short(fb_instruction* i, Py_ssize_t rows) noexcept:
    """Whether rows are so many and short that they are better copied than walked one by one."""
    return rows > SHORT_ROW and i.shape[i.ndim - 1] < (REPEATED_ROW if i.ndim == 2 and repeats(i) else SHORT_ROW)


cdef bint repeats(fb_instruction* i) noexcept:
    """Whether every operand of a space of rows is contiguous as a whole, or one row that is read again and again."""
    cdef int k
    for k in range(i.operands):
        if i.itemsize[k] and i.stride[k][0] != i.shape[1] * i.itemsize[k] and (k < i.outputs or i.stride[k][0]):
            return False
    return True


cdef bint take_row_form(fb_instruction* i) noexcept:
    """Whether the kernel walks whole rows: along them operands are contiguous, or single values that it has a form for.

    Then that form is taken.
    """
    cdef int k, n, single = 0
    for k in range(i.operands):
        if i.itemsize[k] and i.stride[k][i.ndim - 1] != i.itemsize[k]:
            if k < i.outputs or i.stride[k][i.ndim - 1]:
                return False
            single |= 1 << k
    if single == 0:
        return True
    for n in range(spread_count):
        if spread_forms[n].kernel == i.inner and spread_forms[n].single == single:
            i.inner = spread_forms[n].form
            return True
    return False


cdef int lower_elementwise(Executor to, void* kernel, int outputs, int pointers, int n, void** operands,
                           const double* c, bint placed=False) except -1:
    """kernel(outputs..., inputs...) for every element, inputs broadcast to the first output.

    The last `pointers` operands are handed to the kernel as they are. placed: the kernel is a run of its own,
    which is told where the elements stand, in contiguous operands.
    """
    cdef fb_instruction i
    cdef Tensor y = <Tensor> operands[0]
    cdef Tensor x
    cdef int k, d
    cdef bint plain = y.contiguous
    i.operands = n
    i.outputs = outputs
    i.kept = 0
    i.inner = <fb_inner> kernel
    i.units = i.work = y.count
    i.grain = 2 * FB_TILE
    for k in range(FB_CONSTANTS):
        i.c[k] = c[k] if c != NULL else 0
    for k in range(n):
        x = <Tensor> operands[k]
        set_operand(&i, k, x)
        if k >= n - pointers:
            i.itemsize[k] = 0
        else:
            plain = plain and x.contiguous and x.count == y.count
    if y.count == 0:
        return 0
    i.ndim = 1
    i.shape[0] = y.count
    i.plain = plain and not placed
    if y.rank > 1 and y.dims[0] >= MANY_ROWS:
        i.grain = y.count // y.dims[0]    # shares of whole rows, as those of products
    if plain:
        for k in range(n):
            i.stride[k][0] = i.itemsize[k]
        i.run = <fb_run> kernel if placed else direct
    else:
        i.ndim = y.rank
        for d in range(y.rank):
            i.shape[d] = y.dims[d]
        for k in range(n):
            if i.itemsize[k]:
                broadcast_strides(i.stride[k], <Tensor> operands[k], y.rank, 0)
            else:
                for d in range(y.rank):
                    i.stride[k][d] = 0
        if not y.contiguous:
            sort_dimensions(&i, 0, i.ndim)
            if y.rank > 1 and i.shape[0] >= MANY_ROWS:
                i.grain = y.count // i.shape[0]
        i.ndim = join(&i, 0, i.ndim)
        d = i.ndim - 1
        if d >= 0 and (d > 0 and are_short(&i, y.count // i.shape[d]) or not take_row_form(&i)):
            i.run = strided
        elif d > 0:
            i.run = by_rows
        else:
            i.run = direct
            for k in range(n):
                if d == 0 and i.stride[k][0] == 0:
                    i.itemsize[k] = 0    # one value for all: handed over as it is
            i.plain = 1
    i.walked = i.ndim
    if i.run == strided and turns_copy(&i):
        i.run = turns[i.itemsize[0]]
        i.walked = i.ndim - 1
        i.units = y.count // i.shape[i.walked]
        i.grain = SHORT_ROW
    return to.put(&i, operands)


cdef bint turns_copy(fb_instruction* i) noexcept:
    """Whether it is a copy whose last dimension lies densely in y, and the one before it in x."""
    cdef int size = i.itemsize[0], d = i.ndim - 1
    return (i.inner == <fb_inner> copies[size] and size >= 4 and d > 0
            and i.stride[0][d] == i.stride[1][d - 1] == size)


cdef int lower_copy(Executor to, Tensor y, Tensor x) except -1:
    """y = x, broadcast; any dtype."""
    cdef void* operands[2]
    operands[0] = <void*> y
    operands[1] = <void*> x
    return lower_elementwise(to, copies[item_size(y.kind)], 1, 0, 2, operands, NULL)


cdef int lower_reduce(Executor to, void* kernel, Tensor y, Tensor x, object axes, bint average, Tensor z=None,
                      Tensor m=None) except -1:
    """y = x folded over `axes` (ascending); divided by the number of elements for an average. y is in C order.

    For a moment, (x - m)(z - m) is folded, or (x - m) z where z is not x; z lies as x does, and m is of the
    same shape but for sizes of 1 along `axes`.
    """
    cdef fb_instruction i
    cdef bint reduced[MAX_DIMS]
    cdef int d, at = 0
    cdef Py_ssize_t step = item_size(y.kind)
    cdef void* operands[4]
    operands[0] = <void*> y
    operands[1] = <void*> x
    operands[2] = <void*> z
    operands[3] = <void*> m
    for d in range(x.rank):
        reduced[d] = False
    for axis in axes:
        reduced[<int> axis] = True
    i.operands = 2 if z is None else 4
    i.outputs = 1
    i.run = <fb_run> kernel
    i.units = y.count
    i.grain = 16    # sums side by side
    i.work = x.count
    i.c[0] = 1
    i.c[1] = 0
    set_operand(&i, 0, y)
    set_operand(&i, 1, x)
    if z is not None:
        set_operand(&i, 2, z)
        set_operand(&i, 3, m)
        i.c[2] = z is x
    for d in range(x.rank):
        if not reduced[d]:
            i.shape[at] = x.dims[d]
            i.stride[1][at] = i.stride[2][at] = x.steps[d]
            i.stride[3][at] = 0 if m is None or m.dims[d] == 1 else m.steps[d]
            at += 1
    d = at - 1
    while d >= 0:
        i.stride[0][d] = step
        step *= i.shape[d]
        d -= 1
    sort_dimensions(&i, 1, at)    # the sums of what lies side by side are taken side by side
    i.kept = join(&i, 0, at)
    at = i.kept
    for d in range(x.rank):
        if reduced[d]:
            i.shape[at] = x.dims[d]
            i.stride[0][at] = i.stride[3][at] = 0
            i.stride[1][at] = i.stride[2][at] = x.steps[d]
            at += 1
            if average:
                i.c[0] *= x.dims[d]
    i.ndim = i.kept + join(&i, i.kept, at)
    i.walked = i.kept
    return to.put(&i, operands)


cdef int lower_fold(Executor to, void* kernel, Tensor y, Tensor x, bint blocks, double count) except -1:
    """y[b] = fold of block b of x, in C order; or, from such, y = the fold of all of them divided by count."""
    cdef fb_instruction i
    cdef void* operands[2]
    operands[0] = <void*> y
    operands[1] = <void*> x
    i.operands = 2
    i.outputs = 1
    i.kept = i.walked = 0
    i.ndim = 1
    i.run = <fb_run> kernel
    i.work = i.shape[0] = x.count
    i.units = x.count if blocks else 1
    i.grain = FB_FUSED if blocks else 1
    i.c[0] = count
    set_operand(&i, 0, y)
    set_operand(&i, 1, x)
    i.stride[0][0] = 0
    i.stride[1][0] = i.itemsize[1]
    return to.put(&i, operands)


cdef int lower_columns(Executor to, void* kernel, Tensor y, Tensor x, double count) except -1:
    """For count 0, y (quarters, 16, n) = the lanes of the sums of x's columns; from such lanes x, the sums / count."""
    cdef fb_instruction i
    cdef void* operands[2]
    cdef Py_ssize_t n = x.dims[x.rank - 1], step = item_size(x.kind)
    cdef bint lanes = count == 0
    cdef int row = 0 if lanes else 1    # the dimension of rows
    operands[0] = <void*> y
    operands[1] = <void*> x
    i.operands = i.ndim = 2
    i.outputs = 1
    i.run = <fb_run> kernel
    i.c[0] = count
    i.c[1] = 1
    set_operand(&i, 0, y)
    set_operand(&i, 1, x)
    i.kept = i.walked = row
    i.work = x.count
    i.shape[row] = x.count // n
    i.shape[1 - row] = n
    i.stride[0][row] = 0
    i.stride[1][row] = n * step
    i.stride[0][1 - row] = i.stride[1][1 - row] = step
    i.units = i.shape[0]
    i.grain = COLUMN_ROWS if lanes else 16
    return to.put(&i, operands)


cdef int lower_product(Executor to, void* kernel, Tensor y, Tensor x, Tensor w, Tensor b) except -1:
    """y (..., m, n) = x (..., m, k) @ w (..., k, n), leading dimensions broadcast; + b (n), unless that is None."""
    cdef fb_instruction i
    cdef int batch = y.rank - 2, d
    cdef void* operands[4]
    operands[0] = <void*> y
    operands[1] = <void*> x
    operands[2] = <void*> w
    operands[3] = <void*> b
    i.operands = 3 if b is None else 4
    i.outputs = 1
    i.kept = 0
    i.run = <fb_run> kernel
    set_operand(&i, 0, y)
    set_operand(&i, 1, x)
    set_operand(&i, 2, w)
    for d in range(batch):
        i.shape[d] = y.dims[d]
    broadcast_strides(i.stride[0], y, batch, 2)
    broadcast_strides(i.stride[1], x, batch, 2)
    broadcast_strides(i.stride[2], w, batch, 2)
    d = join(&i, 0, batch)
    i.ndim = d + 3
    i.walked = d + 1
    i.shape[d] = y.dims[batch]
    i.shape[d + 1] = y.dims[batch + 1]
    i.shape[d + 2] = x.dims[x.rank - 1]
    i.stride[0][d] = y.steps[batch]
    i.stride[0][d + 1] = y.steps[batch + 1]
    i.stride[0][d + 2] = 0
    i.stride[1][d] = x.steps[x.rank - 2]
    i.stride[1][d + 1] = 0
    i.stride[1][d + 2] = x.steps[x.rank - 1]
    i.stride[2][d] = 0
    i.stride[2][d + 1] = w.steps[w.rank - 1]
    i.stride[2][d + 2] = w.steps[w.rank - 2]
    if b is not None:
        set_operand(&i, 3, b)
        broadcast_strides(i.stride[3], b, d + 2, 0)
        i.stride[3][d + 2] = 0
    i.units = y.count // y.dims[batch + 1] if y.dims[batch + 1] else 0
    i.work = y.count * i.shape[d + 2]
    i.grain = 1
    return to.put(&i, operands)


cdef Py_ssize_t row_step(Tensor x, int dimensions) noexcept:
    """Bytes from one of the rows that the first dimensions count to the next: the step of the last that moves."""
    cdef int d = dimensions - 1
    while d >= 0:
        if x.dims[d] != 1:
            return x.steps[d]
        d -= 1
    return 0


cdef int lower_rows(Executor to, void* kernel, int outputs, int n, void** operands, const double* c) except -1:
    """Operands are matrices of the last dimension's rows, each contiguous, or one value for each row.

    The largest input says which: the space is (rows, its last dimension). Rows, and values
    for rows, lie one step apart (fastbp.planner.fold knows the rule too). An output of more dimensions has the
    lanes of sums over rows: whole quarters of rows are one thread's.
    """
    cdef fb_instruction i
    cdef Tensor x = <Tensor> operands[outputs]
    cdef bint lanes = False
    cdef int k
    for k in range(outputs + 1, n):
        if (<Tensor> operands[k]).rank > x.rank:
            x = <Tensor> operands[k]
    for k in range(outputs):
        lanes = lanes or (<Tensor> operands[k]).rank > x.rank
    cdef Py_ssize_t columns = x.dims[x.rank - 1]
    cdef Py_ssize_t rows = 1
    for k in range(x.rank - 1):
        rows *= x.dims[k]
    i.operands = n
    i.outputs = outputs
    i.kept = 0
    i.walked = 0 if lanes else 1
    i.ndim = 2
    i.run = <fb_run> kernel
    i.shape[0] = rows
    i.shape[1] = columns
    i.units = rows
    i.grain = COLUMN_ROWS if lanes else 1
    i.work = rows * columns
    for k in range(FB_CONSTANTS):
        i.c[k] = c[k]
    for k in range(n):
        set_operand(&i, k, <Tensor> operands[k])
        i.stride[k][1] = i.itemsize[k] if (<Tensor> operands[k]).rank >= x.rank else 0
        i.stride[k][0] = row_step(<Tensor> operands[k], x.rank - 1) if (<Tensor> operands[k]).rank <= x.rank else 0
    return to.put(&i, operands)


cdef int index_space(fb_instruction* i, Tensor rows, Tensor block, int moved, tuple indices, int axis) except -1:
    """The space of take and scatter: `rows` is operand 1 - moved, `block` operand moved.

    Dimensions axis .. axis + len(indices) - 1 of the block are indexed; dimension 0 of the
    space runs over the index, the others over the rest of the block.
    """
    cdef int d, k, at = 1, count = len(indices)
    cdef Tensor index = <Tensor> indices[0]
    cdef Py_ssize_t step = item_size(rows.kind)
    i.operands = 2 + count
    i.outputs = 1
    i.kept = i.walked = 0
    i.shape[0] = index.count
    set_operand(i, moved, block)
    set_operand(i, 1 - moved, rows)
    for d in range(block.rank):
        if not axis <= d < axis + count:
            i.shape[at] = block.dims[d]
            i.stride[moved][at] = block.steps[d]
            at += 1
    d = at - 1
    while d >= 0:
        i.stride[1 - moved][d] = step
        step *= i.shape[d]
        d -= 1
    i.stride[moved][0] = 0
    for k in range(count):
        set_operand(i, 2 + k, <Tensor> indices[k])
        for d in range(at):
            i.stride[2 + k][d] = 0
        i.stride[2 + k][0] = 8
    i.ndim = 1 + join(i, 1, at)
    for k in range(count):
        i.stride[moved][i.ndim + k] = block.steps[axis + k]
    return 0


cdef int lower_take(Executor to, Tensor y, Tensor x, tuple indices, int axis) except -1:
    """y[m, ...] = x[indices at axis ..., ...]: the index's dimension comes first."""
    cdef fb_instruction i
    cdef void* operands[FB_OPERANDS]
    cdef int k
    operands[0] = <void*> y
    operands[1] = <void*> x
    for k in range(len(indices)):
        operands[2 + k] = <void*> indices[k]
    if y.count == 0:
        return 0
    index_space(&i, y, x, 1, indices, axis)
    i.run = take
    i.grain = 1
    i.units = i.shape[0]
    i.work = y.count
    return to.put(&i, operands)


cdef int lower_scatter(Executor to, void* kernel, Tensor y, Tensor dy, tuple indices, int axis) except -1:
    """y = 0, then y[indices at axis ..., ...] += dy[m, ...]."""
    cdef fb_instruction i
    cdef void* operands[FB_OPERANDS]
    cdef int k
    operands[0] = <void*> y
    operands[1] = <void*> dy
    for k in range(len(indices)):
        operands[2 + k] = <void*> indices[k]
    index_space(&i, dy, y, 0, indices, axis)
    i.run = <fb_run> kernel
    i.units = i.grain = 1
    i.work = y.count + dy.count
    i.c[0] = y.count
    return to.put(&i, operands)


cdef int lower_scan(Executor to, void* kernel, int n, void** operands, Py_ssize_t steps, const double* c) except -1:
    """All steps of a recurrent layer, each row of the batch for itself: the space is (batch, steps, hidden).

    All operands are contiguous; the output's last dimensions are (batch, hidden).
    """
    cdef fb_instruction i
    cdef Tensor y = <Tensor> operands[0]
    cdef int k, d
    i.operands = n
    i.outputs = 1
    i.kept = i.walked = 0
    i.ndim = 3
    i.run = <fb_run> kernel
    i.shape[0] = i.units = y.dims[y.rank - 2]
    i.shape[1] = steps
    i.shape[2] = y.dims[y.rank - 1]
    i.grain = SCAN_ROWS
    i.work = y.count * i.shape[2]
    for k in range(FB_CONSTANTS):
        i.c[k] = c[k]
    for k in range(n):
        set_operand(&i, k, <Tensor> operands[k])
        for d in range(3):
            i.stride[k][d] = 0
    return to.put(&i, operands)


cdef int lower_windows(Executor to, void* kernel, Tensor y, tuple xs, tuple space, tuple geometry,
                       Py_ssize_t units) except -1:
    """kernel(y, xs...) on windows: the space and the geometry of kernels/convolution.pxi; all contiguous."""
    cdef fb_instruction i
    cdef void* operands[FB_OPERANDS]
    cdef int k = 1
    operands[0] = <void*> y
    for x in xs:
        operands[k] = <void*> x
        k += 1
    i.operands = k
    i.outputs = 1
    i.kept = i.walked = i.ndim = 0
    i.run = <fb_run> kernel
    i.units = units
    i.grain = 1
    i.work = 1
    for k in range(i.operands):
        set_operand(&i, k, <Tensor> operands[k])
    for k in range(len(space)):
        i.shape[k] = space[k]
        i.work *= i.shape[k] if k < SPACE else 1
    for k in range(len(geometry)):
        i.stride[FB_OPERANDS - 1][k] = geometry[k]
    return to.put(&i, operands)


cdef int lower_state(Executor to, void* kernel, tuple states) except -1:
    """kernel(states...), once: small vectors of one length, of an optimizer's state or a stream's."""
    cdef fb_instruction i
    cdef void* operands[FB_OPERANDS]
    cdef int k = 0
    for h in states:
        operands[k] = <void*> h
        set_operand(&i, k, <Tensor> h)
        i.stride[k][0] = i.itemsize[k]
        k += 1
    i.operands = i.outputs = k
    i.kept = i.walked = 0
    i.ndim = 1
    i.shape[0] = (<Tensor> states[0]).count
    i.run = <fb_run> kernel
    i.units = i.grain = 1
    i.work = 1
    return to.put(&i, operands)
