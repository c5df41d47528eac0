from fastbp_ext.abi cimport fb_instruction
from fastbp_ext.schedule cimport Reach, Schedule
from fastbp_ext.tensor cimport Tensor


cdef class Executor:
    cdef int put(self, fb_instruction* i, void** operands) except -1


cdef struct Patch:
    # An operand whose address is set when its slot is placed.
    char** operand
    Py_ssize_t offset


cdef class Program(Executor):
    cdef fb_instruction* code
    cdef Py_ssize_t count
    cdef Py_ssize_t room
    cdef Reach* reach            # of each operand of each instruction
    cdef double* seconds         # that each instruction takes, the least of so many runs:
    cdef int trials
    cdef Schedule* schedule      # for the threads of the last run, or NULL
    cdef double alone            # seconds that a run takes now, by one thread
    cdef double together         # and by all
    cdef double rest             # seconds for which one thread runs it, where all took longer,
    cdef double resumes          # and when they try again
    cdef Patch* patches          # those of one slot lie together
    cdef Py_ssize_t* first       # for each slot the first of its patches
    cdef char** addresses        # for each slot where its memory lies now
    cdef bint long_run           # worth giving up the interpreter's lock
    cdef dict slots              # id of a recorded tensor that owns memory: its slot
    cdef list operands           # until it is sealed: (instruction, operand, slot, offset)
    cdef list calls              # stages of Python: (instruction before which, function, outputs, inputs)
    cdef list kept
    cdef object tiled            # while a group is put: ids of the tensors that have the memory of a tile
    cdef Py_ssize_t group_start
    cdef Py_ssize_t span
    cdef Py_ssize_t group_grain
    cdef void place(self, int slot, char* address) noexcept nogil
    cdef void execute(self, Py_ssize_t start, Py_ssize_t stop) noexcept nogil
    cdef list measure(self, double seconds)
    cdef int run_timed(self, double* spent) except -1
    cdef void execute_timed(self, Py_ssize_t start, Py_ssize_t stop, double* spent) noexcept nogil
    cdef void run(self, Py_ssize_t start, Py_ssize_t stop) noexcept nogil
    cdef bint run_together(self, Py_ssize_t start, Py_ssize_t stop) noexcept nogil
    cdef void run_watched(self) noexcept nogil
    cdef void try_out(self, Py_ssize_t start, Py_ssize_t stop) noexcept nogil
    cdef bint divide(self, int threads, bint always) noexcept nogil
    cdef void run_short(self) noexcept nogil
    cdef int run_once(self) except -1
    cdef slot(self, Tensor root)
    cdef run_call(self, function, tuple outputs, tuple inputs)
    cdef Tensor operand_now(self, Tensor x)


cdef Executor now
cdef double now_seconds() noexcept nogil
cdef bint flush
cdef int precision
