# Recurrent layers: one instruction walks all steps of time, for some rows of the batch, of any floating type.
#
# A row never meets another, so threads share the batch. The space is (batch B, steps T, hidden H);
# operands are contiguous, a step behind the other. What a scan writes are parts of B H elements:
#   T + 1     h before the first step, and behind each; backward in time (`reverse`) the first lies last
#   T + 1     c likewise (LSTM)
#   2 + W     zeros
#   W T       what the gates gave, (B, W H) for a step
# and without `keep`, behind the states, only W parts for what the gates give, used again at each step.
# The gradient has the same states, and may lie in the same memory; in the place of what the gates
# gave it has the gradients for what enters them, and before these
#   2         what comes to h before the first step through the product, and what passes it by
#   W         the sums of the gates' gradients over all steps: one of each `grain` rows, at the first of them
from fastbp_ext.abi cimport fb_instruction
from libc.string cimport memcpy, memset


# What a cell reads and writes at one step, from its first row on; steps are in bytes.
cdef struct cell_rows:
    Py_ssize_t rows
    Py_ssize_t n        # H
    char* k             # what the gates give: first h w + b
    const char* x       # what enters the gates from outside
    const char* b
    char* h             # the states before the step and
    char* y             # behind it; from there to c:
    Py_ssize_t c
    bint relu
    const char* dy      # the gradient: what is given for h; from there to c:
    Py_ssize_t dc
    char* dk            # those of what enters the gates
    char* dh            # what came through the product behind the step
    char* more          # what passes it by, for the step before
    char* sums          # of dk over all steps; from part to part:
    Py_ssize_t part
    Py_ssize_t grain    # so many rows have one sum

ctypedef void (*cell)(const cell_rows* all) noexcept nogil
ctypedef void (*multiplication)(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil


cdef inline void set_product(fb_instruction* step, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, char* w, char* b,
                             Py_ssize_t y_row, Py_ssize_t x_row, int size) noexcept nogil:
    """step: y (m, n) = x (m, k) @ w (k, n), + b unless that is NULL; rows are y_row and x_row bytes apart."""
    step.operands = 3 if b == NULL else 4
    step.ndim = 3
    step.tile[0] = 0
    step.p[2], step.p[3] = w, b
    step.shape[0], step.shape[1], step.shape[2] = m, n, k
    step.stride[0][0], step.stride[1][0], step.stride[2][2] = y_row, x_row, n * size
    step.stride[1][2] = step.stride[2][1] = size


cdef inline void scan(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop, int size, int states, int gates,
                      int width, cell f, multiplication multiply) noexcept nogil:
    """All steps of a cell with so many states, and gates that read h; `width` is W.

    p: what is written, x (T B, gates H), h, w (H, gates H), b (W H), the first c. c: keep, reverse, relu.
    """
    cdef:
        Py_ssize_t steps = i.shape[1], s, t
        Py_ssize_t row = i.shape[2] * size, part = i.shape[0] * row, first = start * row, some = (stop - start) * row
        bint keep = i.c[0] != 0, reverse = i.c[1] != 0
        char* h = i.p[0] + first
        char* k = i.p[0] + states * (steps + 1) * part + width * first
        cell_rows p
        fb_instruction step
    p.rows, p.n, p.b, p.c, p.relu = stop - start, i.shape[2], i.p[4], (steps + 1) * part, i.c[2] != 0
    for s in range(states):
        memcpy(h + s * p.c + (steps * part if reverse else 0), i.p[5 if s else 2] + first, some)
    if keep:
        for s in range(2 + width):
            memset(h + states * p.c + s * part, 0, some)
        k += (2 + width) * part
    set_product(&step, p.rows, gates * p.n, p.n, i.p[3], i.p[4], width * row, row, size)
    for s in range(steps):
        t = steps - 1 - s if reverse else s
        p.x = i.p[1] + gates * (t * part + first)
        p.h = h + (t + reverse) * part
        p.y = h + (t + 1 - reverse) * part
        p.k = k + keep * width * t * part
        step.p[0], step.p[1] = p.k, p.h
        multiply(&step, 0, p.rows)
        f(&p)


cdef inline void scan_back(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop, int size, int states, int gates,
                           int width, cell f, multiplication multiply) noexcept nogil:
    """The gradient of `scan`, from the last step to the first.

    p: what is written, dy (states, T, B, H), what `scan` wrote, w (gates H, H) with its rows in the order of the
    gradients. c: reverse, relu.
    """
    cdef:
        Py_ssize_t steps = i.shape[1], s, t, k
        Py_ssize_t row = i.shape[2] * size, part = i.shape[0] * row, first = start * row, some = (stop - start) * row
        bint reverse = i.c[0] != 0
        char* h = i.p[2] + first
        cell_rows p
        fb_instruction step
    p.rows, p.n, p.c, p.dc, p.relu = stop - start, i.shape[2], (steps + 1) * part, steps * part, i.c[1] != 0
    p.dh = i.p[0] + states * p.c + first
    p.more, p.sums, p.part, p.grain = p.dh + part, p.dh + 2 * part, part, i.grain
    if i.p[0] != i.p[2]:
        for s in range(states * (steps + 1)):
            memcpy(i.p[0] + first + s * part, h + s * part, some)
    for s in range(2 + width):
        memset(p.dh + s * part, 0, some)
    set_product(&step, p.rows, p.n, gates * p.n, i.p[3], NULL, row, width * row, size)
    for s in range(steps - 1, -1, -1):
        t = steps - 1 - s if reverse else s
        k = states * p.c + (2 + width + width * t) * part + width * first
        p.h = h + (t + reverse) * part
        p.y = h + (t + 1 - reverse) * part
        p.dy = i.p[1] + t * part + first
        p.k = i.p[2] + k
        p.dk = i.p[0] + k
        f(&p)
        step.p[0], step.p[1] = p.dh, p.dk
        multiply(&step, 0, p.rows)
