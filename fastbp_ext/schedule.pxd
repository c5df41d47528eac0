"""Who runs what: the shares that the threads of a job have in a program, and where they meet."""
from fastbp_ext.abi cimport FB_OPERANDS, fb_instruction


# The memory of an operand's tensor, in bytes from where the operand begins.
cdef struct Reach:
    Py_ssize_t low
    Py_ssize_t high


# An instruction, or a group of them.
cdef struct Item:
    Py_ssize_t first
    Py_ssize_t count
    bint meets             # all threads meet before it
    Py_ssize_t copies      # which of a worker's instructions it runs, or -1: the program's own


cdef enum:
    LINE = 64    # bytes, of a cache


cdef struct Schedule:
    int threads
    bint worth             # it takes less time than one thread
    double alone           # seconds that one thread takes
    Py_ssize_t count
    Item* items
    Py_ssize_t* ran        # how many items each thread has run a share of, a line apart
    Py_ssize_t* bounds     # for each item threads + 1: thread t runs units bounds[t] .. bounds[t + 1]
    # A worker has memory of its own for the values of a tile, and instructions that know it.
    Py_ssize_t copied
    fb_instruction* copies
    Py_ssize_t* places     # of each operand in that memory, or -1
    char* scratch
    Py_ssize_t room        # bytes, of each worker


# For a program's instructions, the memory of their operands and the seconds that each takes;
# `always`: whatever they take. NULL: there is no memory for it.
cdef Schedule* schedule_of(fb_instruction* code, const Reach* reach, Py_ssize_t count, const double* seconds,
                           int threads, bint always) noexcept nogil
cdef void free_schedule(Schedule* s) noexcept nogil
