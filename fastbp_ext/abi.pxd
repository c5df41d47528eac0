# The C structures of kernels/abi.h, for the executor and the kernels.
from libc.stdint cimport int32_t, uint8_t


cdef extern from "abi.h" nogil:
    enum:
        FB_OPERANDS
        FB_DIMS
        FB_CONSTANTS
        FB_TILE
        FB_FUSED

    ctypedef struct fb_instruction
    # noexcept nogil function types need their own lines: C sees plain functions.
    ctypedef void (*fb_inner)(char** p, Py_ssize_t n, const double* c) noexcept nogil
    ctypedef void (*fb_run)(const fb_instruction* i, Py_ssize_t start, Py_ssize_t stop) noexcept nogil

    ctypedef struct fb_instruction:
        fb_run run
        fb_inner inner
        Py_ssize_t units
        Py_ssize_t grain
        Py_ssize_t chunk
        Py_ssize_t work
        char* p[10]
        double c[6]
        int32_t plain
        int32_t group
        int32_t span
        int32_t pace
        int32_t operands
        int32_t outputs
        int32_t ndim
        int32_t kept
        int32_t walked
        uint8_t itemsize[10]
        uint8_t tile[10]
        Py_ssize_t shape[12]
        Py_ssize_t stride[10][12]

    unsigned fb_flush_begin(int flush)
    void fb_flush_end(unsigned mode)
