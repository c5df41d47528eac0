"""The executor: it runs instructions, and knows no gate."""
from fastbp_ext.abi cimport fb_flush_begin, fb_flush_end, fb_instruction
from fastbp_ext.tensor cimport Memory, Tensor, guards_whole, memory_of

from fastbp_ext.tensor import DEBUG

cdef bint debug = DEBUG
cdef bint flush = True

# Below this many units an instruction takes less time than giving up the interpreter's lock.
cdef enum:
    RELEASE_UNITS = 1 << 15


def set_flush_denormal(bint on):
    """Whether kernels take denormal numbers for zero; the process's own mode is never changed.

    Returns True, as PyTorch does where the machine can.
    """
    global flush
    flush = on
    return True


def get_flush_denormal():
    """Whether kernels take denormal numbers for zero."""
    return flush


cdef int check_ranges(fb_instruction* i, void** operands) except -1:
    """Debug build: an instruction reaches only its operands' own memory."""
    cdef int k, d
    cdef Memory memory
    cdef char* low
    cdef char* high
    cdef Py_ssize_t reach, n = 1
    for d in range(i.ndim):
        n *= i.shape[d]
    for k in range(i.operands):
        if i.itemsize[k] == 0 or n == 0:
            continue
        memory = memory_of(<Tensor> operands[k])
        low = i.p[k]
        high = low + i.itemsize[k]
        for d in range(i.ndim):
            reach = (i.shape[d] - 1) * i.stride[k][d]
            if reach > 0:
                high += reach
            else:
                low += reach
        if low < memory.low or high > memory.high:
            raise SystemError(
                f"fastbp debug build: operand {k} of a kernel reaches from {low - memory.low} to "
                f"{high - memory.low} of {memory.high - memory.low} bytes")
    return 0


cdef int check_guards(fb_instruction* i, void** operands) except -1:
    cdef int k
    for k in range(i.operands):
        if i.itemsize[k] and not guards_whole(<Tensor> operands[k]):
            raise SystemError(f"fastbp debug build: a kernel wrote past the memory of operand {k}")
    return 0


cdef class Executor:
    """Takes instructions. This one runs each at once: gate by gate."""

    cdef int put(self, fb_instruction* i, void** operands) except -1:
        cdef unsigned mode
        if debug:
            check_ranges(i, operands)
        if i.units > RELEASE_UNITS:
            with nogil:
                mode = fb_flush_begin(flush)
                i.run(i, 0, i.units)
                fb_flush_end(flush, mode)
        else:
            mode = fb_flush_begin(flush)
            i.run(i, 0, i.units)
            fb_flush_end(flush, mode)
        if debug:
            check_guards(i, operands)
        return 0


cdef Executor now = Executor()
