from fastbp_ext.abi cimport fb_instruction
from fastbp_ext.tensor cimport Tensor


cdef class Executor:
    cdef int put(self, fb_instruction* i, void** operands) except -1


cdef struct Patch:
    # An operand whose address is set when its slot is bound.
    Py_ssize_t instruction
    Py_ssize_t offset
    int operand
    int slot


cdef class Program(Executor):
    cdef fb_instruction* code
    cdef Patch* patches
    cdef Py_ssize_t count
    cdef Py_ssize_t room
    cdef Py_ssize_t patch_count
    cdef Py_ssize_t patch_room
    cdef bint long_run
    cdef dict slots          # id of a recorded tensor that owns memory: its slot
    cdef list first          # for each slot the first of its patches
    cdef list kept
    cpdef bind(self, int slot, Tensor memory)
    cdef place(self, int slot, char* address)
    cdef void execute(self) noexcept nogil


cdef Executor now
