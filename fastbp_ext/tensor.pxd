# Tensor for other compiled modules: its fields, and the ways to make one.
from libc.stdint cimport int64_t, uint64_t


cdef enum:
    MAX_DIMS = 8
    INLINE_BYTES = 16

cdef enum Dtype:
    FLOAT32
    FLOAT64
    BOOL
    INT8
    INT16
    INT32
    INT64
    UINT8
    UINT16
    UINT32
    UINT64

cdef enum Mode:
    # What becomes of a gate that is applied.
    RUNS        # it is computed
    RECORDS     # it goes to the recorder
    CHECKS      # it is computed, and what it gave is checked

cdef struct Memory:
    # The bytes that a tensor's memory takes.
    char* low
    char* high


cdef class Tensor:
    cdef char* data
    cdef Py_ssize_t dims[MAX_DIMS]        # the shape
    cdef Py_ssize_t steps[MAX_DIMS]       # the strides, in bytes
    cdef Py_ssize_t count                 # the number of elements
    cdef int rank                         # the number of dimensions
    cdef Dtype kind
    cdef bint contiguous                  # C order, no gaps
    cdef bint read_only
    cdef bint owns                        # data is to be released
    cdef bint needs_grad
    cdef bint weak                        # a recorded Python number: it takes the dtype that it meets
    cdef bint abstract                    # recorded: a shape and a dtype without values
    cdef bint consumed                    # a backward went through this stage
    cdef object owner                     # keeps data alive where another has it
    cdef uint64_t version                 # when it was last changed in place
    cdef readonly uint64_t _serial        # when it was made by a gate
    cdef tuple stage                      # what made it, y = gate(*inputs, **params): (gate, inputs, params, group)
    cdef object gradient
    cdef tuple end                        # of the last backward that undid this stage, weakly, and its gradient
    cdef public object name
    cdef object __weakref__
    cdef char inline_data[INLINE_BYTES]

    cdef Tensor root(self)
    cdef bint _repeats(self)


cdef int item_size(Dtype kind) noexcept nogil
cdef bint is_float(Dtype kind) noexcept nogil
cdef str dtype_name(Dtype kind)
cdef Tensor blank(int rank, const Py_ssize_t* dims, Dtype kind)
cdef Tensor blank_like(Tensor x, Dtype kind)
cdef int give_memory(Tensor y) except -1
cdef Tensor make_abstract(Tensor y)
cdef Tensor made_inside(Tensor y)
cdef void looked_at(Tensor x)
cdef int refuse_leaked(Tensor x) except -1
cdef watch(array)
cdef bint as_python() noexcept nogil
cdef Tensor new_tensor(int rank, const Py_ssize_t* dims, Dtype kind)
cdef Tensor new_like(Tensor x, Dtype kind)
cdef Tensor new_view(Tensor x, int rank, const Py_ssize_t* dims, const Py_ssize_t* steps, char* data)
cdef Tensor scalar(double value, Dtype kind)
cdef Tensor integer(long long value)
cdef Tensor wrap_array(object array)
cdef bint grad_enabled() noexcept nogil
cdef uint64_t tick() noexcept nogil
cdef Memory memory_of(Tensor x)
cdef bint guards_whole(Tensor x)
cdef void set_stage(Tensor y, object gate, tuple inputs, dict params)
cdef bint recording() noexcept nogil
cdef Mode gate_mode() noexcept nogil
cdef bint replaying() noexcept nogil
cdef object recorder()
cdef Tensor result_like(Tensor x)
cdef Tensor seen_at(Tensor x, char* data)
cdef Tensor contiguous_copy(Tensor x)
cdef bint plain_labels(const char* data, Dtype kind, Py_ssize_t n, Py_ssize_t size, int64_t* out) noexcept nogil

# Counts the changes of what programs take for granted: see `touch`.
cdef uint64_t generation
# Whether staged functions are replayed at all.
cdef bint staging
cdef object staging_error(str what, str fix)

cdef enum:
    # Where an abstract tensor's memory would begin: what is added to it is an offset.
    NOWHERE = 1 << 30
