from fastbp_ext.abi cimport fb_instruction
from fastbp_ext.tensor cimport Tensor


cdef class Executor:
    cdef int put(self, fb_instruction* i, void** operands) except -1

cdef Executor now
