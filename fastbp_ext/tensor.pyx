"""Tensor: a view of memory, and the stage that made it."""
from cpython.buffer cimport (PyBUF_ANY_CONTIGUOUS, PyBUF_C_CONTIGUOUS, PyBUF_F_CONTIGUOUS, PyBUF_FORMAT, PyBUF_ND,
                             PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_IsContiguous)
cimport cython
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdio cimport fprintf, stderr
from libc.stdlib cimport abort
from libc.string cimport memcpy

import functools
import operator
import os
from copy import deepcopy

import numpy as np


cdef extern from "memory.h" nogil:
    enum:
        FB_DEBUG
        FB_CHECKING
    char* fb_allocate(size_t bytes)
    void fb_release(char* data, size_t bytes)
    int fb_guards_whole(const char* data)
    ctypedef struct fb_thread:
        int no_grad
        int as_python
        int differentiating
        void* group
        void* recorder
    fb_thread fb_this_thread

cdef extern from * nogil:
    bint mul_overflows "__builtin_mul_overflow"(Py_ssize_t a, Py_ssize_t b, Py_ssize_t* product)

cdef extern from "Python.h":
    void PyType_Modified(PyTypeObject* type)

DEBUG = bool(FB_DEBUG)

cdef list NAMES = ["float32", "float64", "bool", "int8", "int16", "int32", "int64",
                   "uint8", "uint16", "uint32", "uint64"]
cdef list NUMPY_DTYPES = [np.dtype(name) for name in NAMES]
cdef dict KINDS = {dtype: kind for kind, dtype in enumerate(NUMPY_DTYPES)}
KINDS[np.dtype("longlong")] = INT64
KINDS[np.dtype("ulonglong")] = UINT64
cdef char** FORMATS = [b"f", b"d", b"?", b"b", b"h", b"i", b"q", b"B", b"H", b"I", b"Q"]
cdef int* SIZES = [4, 8, 1, 1, 2, 4, 8, 1, 2, 4, 8]

# Gates stand in another module, which fills this: {"__add__": gate, ...}.
OPERATORS = {}

cdef uint64_t clock = 0
staging = os.environ.get("FASTBP_STAGED") != "0"


cdef int item_size(Dtype kind) noexcept nogil:
    return SIZES[<int> kind]


cdef bint is_float(Dtype kind) noexcept nogil:
    return kind <= FLOAT64


cdef str dtype_name(Dtype kind):
    return NAMES[<int> kind]


cdef uint64_t tick() noexcept nogil:
    """The next number of the one clock that orders stages and changes in place."""
    global clock
    clock += 1
    return clock


cdef bint grad_enabled() noexcept nogil:
    return not fb_this_thread.no_grad


def is_grad_enabled():
    """Whether gates of this thread record."""
    return grad_enabled()


def set_grad_enabled(bint on):
    """Turn recording on or off in this thread; the former state is returned."""
    cdef bint before = not fb_this_thread.no_grad
    fb_this_thread.no_grad = not on
    return before


cdef class no_grad:
    """A context (or decorator) in which gates record nothing.

    >>> with fb.no_grad():
    ...     error = fb.mse_loss(model(x), y)
    """
    # Compiled, so that no signal comes between the mode's change and its record.
    cdef list before    # for each time that it was entered and not yet left

    def __cinit__(self):
        self.before = []

    def __enter__(self):
        self.before.append(set_grad_enabled(False))

    def __exit__(self, *exc_info):
        set_grad_enabled(self.before.pop())

    def __call__(self, function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            return without_grad(function, args, kwargs)
        return call


cdef without_grad(function, args, kwargs):
    cdef bint before = set_grad_enabled(False)
    try:
        return function(*args, **kwargs)
    finally:
        set_grad_enabled(before)


def in_group(group, function, args, kwargs):
    """function(*args, **kwargs) with its stages in `group`, which knows the one around it as its parent."""
    cdef void* before = fb_this_thread.group
    group.parent = <object> <PyObject*> before if before != NULL else None
    fb_this_thread.group = <void*> group
    try:
        return function(*args, **kwargs)
    finally:
        fb_this_thread.group = before


cdef bint recording() noexcept nogil:
    """Whether gates of this thread are recorded and not run."""
    return fb_this_thread.recorder != NULL


cdef Mode gate_mode() noexcept nogil:
    """What becomes of a gate that this thread applies."""
    if fb_this_thread.recorder != NULL:
        return RECORDS
    return CHECKS if fb_this_thread.differentiating & FB_CHECKING else RUNS


cdef object recorder():
    return <object> <PyObject*> fb_this_thread.recorder


cdef bint replaying() noexcept nogil:
    """Whether a staged function is replayed where it is called: it is recorded or differentiated otherwise."""
    return staging and fb_this_thread.recorder == NULL and fb_this_thread.differentiating == 0


def is_checked():
    """Whether a staged function that is called here runs gate by gate, each result checked (`detect_anomaly`)."""
    return staging and fb_this_thread.recorder == NULL and fb_this_thread.differentiating == FB_CHECKING


def set_checking(bint on):
    """Check what gates of this thread give, or not; whether it was so before is returned."""
    cdef bint before = fb_this_thread.differentiating & FB_CHECKING
    fb_this_thread.differentiating = fb_this_thread.differentiating & ~FB_CHECKING | (FB_CHECKING if on else 0)
    return before


def is_replayed():
    """Whether a staged function that is called here is replayed; never with FASTBP_STAGED=0 or detect_anomaly."""
    return replaying()


def with_recorder(new, function, *args):
    """function(*args) while gates of this thread go to `new` and compute nothing; None: they run.

    Nothing is differentiated inside: staged functions are replayed where gates run. Whatever
    happens, the state of the thread is as before in the end: a signal finds no gap.
    """
    cdef fb_thread before = fb_this_thread
    fb_this_thread.recorder = <void*> new if new is not None else NULL
    fb_this_thread.differentiating = 0
    try:
        return function(*args)
    finally:
        fb_this_thread.no_grad, fb_this_thread.differentiating = before.no_grad, before.differentiating
        fb_this_thread.group, fb_this_thread.recorder = before.group, before.recorder


cdef bint as_python() noexcept nogil:
    """Whether the gate that is called computes what Python would compute of numbers."""
    return fb_this_thread.as_python != 0


cpdef bint is_number(object x):
    """Whether x is a Python number or a NumPy scalar, or the recorded tensor that stands for one."""
    return type(x) is float or type(x) is int or isinstance(x, Tensor) and (<Tensor> x).weak or isinstance(
        x, (bool, np.floating, np.integer))


cdef operate(str name, x, y):
    """An operator of two operands; of two numbers, one of them recorded, it is Python's: float64."""
    cdef int before = fb_this_thread.as_python
    if not recording() or not (is_number(x) and is_number(y)):
        return OPERATORS[name](x, y)
    fb_this_thread.as_python = 1
    try:
        return OPERATORS[name](x, y)
    finally:
        fb_this_thread.as_python = before


cdef rebound(Tensor x, str sign):
    """x += y gives x another tensor, x + y. That is not what one means who updates a parameter without gradients."""
    if x.needs_grad and x.stage is None and fb_this_thread.no_grad:
        from fastbp import errors
        raise errors.error(TypeError, f"x {sign}= y changes no parameter: it gives x another tensor",
                           got=f"a leaf, shape {x.shape}", expected="copy_ for a parameter, a new name for a value",
                           fix=f"p.copy_(p {sign} y), or z = x {sign} y")
    return NotImplemented


cdef operate_alone(str name, Tensor x):
    """An operator of one operand."""
    cdef int before = fb_this_thread.as_python
    fb_this_thread.as_python = x.weak
    try:
        return OPERATORS[name](x)
    finally:
        fb_this_thread.as_python = before


def get_recorder():
    """The recorder of this thread, or None."""
    return recorder() if recording() else None


def differentiate_inside(function, *args, **kwargs):
    """function(*args, **kwargs) with gates on the tape whatever the mode, and staged functions inlined."""
    cdef fb_thread before = fb_this_thread
    fb_this_thread.no_grad = 0
    fb_this_thread.differentiating += 1
    try:
        return function(*args, **kwargs)
    finally:
        fb_this_thread.no_grad = before.no_grad
        fb_this_thread.differentiating = before.differentiating


generation = 1


def touch():
    """Something changed that programs take for granted: a mode, an optimizer's kind, a parameter's memory.

    Each program asks its guards again at its next call, and only then.
    """
    global generation
    generation += 1


cdef object staging_error(str what, str fix):
    from fastbp import errors
    return errors.error(errors.StagingError, what, got="a tensor of a function that is being recorded",
                        expected="no use of its values: they are not there yet", fix=fix)


cdef _raise(str kind, what, got, expected, fix):
    # The package's errors know the user's line. They stand above this module.
    from fastbp import errors
    raise errors.error(getattr(errors, kind), what, got=got, expected=expected, fix=fix)


cdef Tensor blank(int rank, const Py_ssize_t* dims, Dtype kind):
    """A tensor in C order with no memory yet."""
    cdef Tensor y = Tensor.__new__(Tensor)
    cdef Py_ssize_t step = item_size(kind)
    cdef int d = rank - 1
    y.rank = rank
    y.kind = kind
    y.count = 1
    y.contiguous = True
    while d >= 0:
        y.dims[d] = dims[d]
        y.steps[d] = step
        if dims[d] < 0:
            _raise("ShapeError", "a size is negative", got=tuple([dims[d] for d in range(rank)]),
                   expected="sizes of 0 or more", fix="give the size itself")
        if mul_overflows(step, dims[d], &step):
            raise MemoryError("a tensor of this shape does not fit the address space")
        y.count *= dims[d]
        d -= 1
    return y


cdef int give_memory(Tensor y) except -1:
    """Memory of y's own, its values not set."""
    cdef Py_ssize_t size = item_size(y.kind)
    if y.count * size <= INLINE_BYTES and not FB_DEBUG:
        y.data = y.inline_data
        return 0
    y.data = fb_allocate(y.count * size)
    if y.data == NULL:
        raise MemoryError(f"no memory for a tensor of shape {y.shape} ({y.count * size} bytes)")
    y.owns = True
    return 0


cdef Tensor new_tensor(int rank, const Py_ssize_t* dims, Dtype kind):
    """A tensor in C order whose values are not set."""
    cdef Tensor y = blank(rank, dims, kind)
    give_memory(y)
    return y


cdef Tensor blank_like(Tensor x, Dtype kind):
    """A tensor of x's shape, laid out as x is where x has no gaps, else in C order; no memory yet."""
    cdef Tensor y = blank(x.rank, x.dims, kind)
    cdef Py_ssize_t step = item_size(kind), size = item_size(x.kind)
    cdef Py_ssize_t steps[MAX_DIMS]
    cdef bint done[MAX_DIMS]
    cdef int d, found, left = x.rank
    if not x.contiguous:
        for d in range(x.rank):
            done[d] = x.dims[d] == 1
            steps[d] = step
            left -= done[d]
        while left:
            found = -1
            for d in range(x.rank):
                if not done[d] and x.steps[d] * item_size(kind) == step * size:
                    found = d
                    break
            if found < 0:
                break
            done[found] = True
            steps[found] = step
            step *= x.dims[found]
            left -= 1
        if left == 0:
            for d in range(x.rank):
                y.steps[d] = steps[d]
            y.contiguous = False
    return y


cdef Tensor new_like(Tensor x, Dtype kind):
    """blank_like with memory."""
    cdef Tensor y = blank_like(x, kind)
    give_memory(y)
    return y


cdef bint _in_c_order(Tensor x) noexcept:
    cdef Py_ssize_t step = item_size(x.kind)
    cdef int d = x.rank - 1
    if x.count == 0:
        return True
    while d >= 0:
        if x.dims[d] != 1 and x.steps[d] != step:
            return False
        step *= x.dims[d]
        d -= 1
    return True


cdef Tensor new_view(Tensor x, int rank, const Py_ssize_t* dims, const Py_ssize_t* steps, char* data):
    """A tensor over x's memory."""
    cdef Tensor y = blank(rank, dims, x.kind)
    cdef int d
    for d in range(rank):
        y.steps[d] = steps[d]
    y.contiguous = _in_c_order(y)
    y.data = data
    y.owner = x.root()
    y.read_only = x.read_only
    y.abstract = x.abstract
    return y


def abstract_tensor(shape, dtype, bint requires_grad=False, bint weak=False, name=None):
    """A tensor in C order without values: an input of a function that is being recorded.

    weak: it stands for a Python number.
    """
    cdef Tensor y
    cdef Py_ssize_t dims[MAX_DIMS]
    cdef int rank = 0
    for size in shape:
        dims[rank] = size
        rank += 1
    y = make_abstract(blank(rank, dims, _dtype_kind(dtype)))
    y.needs_grad = requires_grad
    y.weak = weak
    y.name = name
    return y


def seen_in(Tensor x, Tensor memory):
    """The recorded tensor x where the memory that it is a view of is `memory`'s."""
    return new_view(memory, x.rank, x.dims, x.steps, memory.data + (x.data - <char*> <size_t> NOWHERE))


cdef Tensor seen_at(Tensor x, char* data):
    """The recorded tensor x where its memory begins at `data`, which the caller keeps alive."""
    cdef Tensor y = blank(x.rank, x.dims, x.kind)
    cdef int d
    for d in range(x.rank):
        y.steps[d] = x.steps[d]
    y.contiguous = x.contiguous
    y.data = data + (x.data - <char*> <size_t> NOWHERE)
    return y


cdef Tensor result_like(Tensor x):
    """A tensor with memory of its own, laid out as the recorded x is, which shows all of its memory."""
    cdef Tensor y = Tensor.__new__(Tensor)
    cdef int d
    y.rank = x.rank
    y.kind = x.kind
    y.count = x.count
    y.contiguous = x.contiguous
    for d in range(x.rank):
        y.dims[d] = x.dims[d]
        y.steps[d] = x.steps[d]
    give_memory(y)
    return y


ctypedef fused label_type:
    uint8_t
    int32_t
    int64_t


cdef bint widen_labels(const label_type* x, Py_ssize_t n, Py_ssize_t size, int64_t* out) noexcept nogil:
    cdef bint fit = True
    cdef Py_ssize_t k
    for k in range(n):
        out[k] = x[k]
        fit &= <uint64_t> <int64_t> x[k] < <uint64_t> size
    return fit


cdef bint plain_labels(const char* data, Dtype kind, Py_ssize_t n, Py_ssize_t size, int64_t* out) noexcept nogil:
    """Copy n labels of the usual dtypes; whether they are, and lie in [0, size)."""
    if kind == INT64:
        return widen_labels(<const int64_t*> data, n, size, out)
    if kind == INT32:
        return widen_labels(<const int32_t*> data, n, size, out)
    return kind == UINT8 and widen_labels(<const uint8_t*> data, n, size, out)


cdef Tensor contiguous_copy(Tensor x):
    """x's values in C order, in memory of their own."""
    return wrap_array(np.array(x.numpy(), order="C"))


def view_of(Tensor x, shape, strides, Py_ssize_t offset):
    """A tensor over x's memory: its strides and offset from x's first element in bytes."""
    cdef Py_ssize_t dims[MAX_DIMS]
    cdef Py_ssize_t steps[MAX_DIMS]
    cdef int rank = 0
    for size, step in zip(shape, strides, strict=True):
        dims[rank] = size
        steps[rank] = step
        rank += 1
    return new_view(x, rank, dims, steps, x.data + offset)


cdef Tensor make_abstract(Tensor y):
    y.abstract = True
    y.data = <char*> <size_t> NOWHERE
    return y


cdef Tensor scalar(double value, Dtype kind):
    """A 0-d tensor of a floating dtype."""
    cdef Tensor y = new_tensor(0, NULL, kind)
    if kind == FLOAT32:
        (<float*> y.data)[0] = <float> value
    else:
        (<double*> y.data)[0] = value
    return y


cdef Tensor integer(long long value):
    cdef Tensor y = new_tensor(0, NULL, INT64)
    (<int64_t*> y.data)[0] = value
    return y


cdef Tensor wrap_array(object array):
    """A tensor over a NumPy array's memory, or over a copy where kernels can't read it."""
    cdef Tensor y
    cdef Py_ssize_t dims[MAX_DIMS]
    cdef int d
    dtype = array.dtype
    if dtype not in KINDS:
        native = dtype.newbyteorder("=")
        if native not in KINDS:
            _raise("DtypeError", "a tensor can't hold these elements", got=f"dtype {dtype}",
                   expected="float32, float64, bool or an integer dtype",
                   fix="convert it first: a.astype('float32')")
        watch(array)
        array = array.astype(native)
        dtype = native
    if array.ndim > MAX_DIMS:
        _raise("ShapeError", "a tensor has too many dimensions", got=f"{array.ndim} dimensions",
               expected=f"at most {MAX_DIMS}", fix="reshape it")
    if not array.flags.aligned:
        watch(array)
        array = array.copy()
    for d in range(array.ndim):
        dims[d] = array.shape[d]
    y = blank(array.ndim, dims, KINDS[dtype])
    for d in range(y.rank):
        y.steps[d] = array.strides[d]
    y.contiguous = _in_c_order(y)
    y.read_only = not array.flags.writeable
    y.data = <char*> <size_t> array.__array_interface__["data"][0]
    y.owner = array
    return y


cdef Memory memory_of(Tensor x):
    """The bytes that may be read through x: those of the tensor or array that owns them."""
    cdef Memory memory
    cdef Tensor root = x.root()
    cdef int d
    cdef Py_ssize_t reach
    memory.low = root.data
    memory.high = root.data
    if root.count:
        memory.high += item_size(root.kind)
        for d in range(root.rank):
            reach = (root.dims[d] - 1) * root.steps[d]
            if reach > 0:
                memory.high += reach
            else:
                memory.low += reach
    return memory


cdef bint guards_whole(Tensor x):
    """Debug build: nothing was written past the ends of x's memory."""
    cdef Tensor root = x.root()
    return not root.owns or fb_guards_whole(root.data)


cdef void set_stage(Tensor y, object gate, tuple inputs, dict params):
    """y = gate(*inputs, **params) goes on the tape."""
    y.needs_grad = True
    y._serial = tick()
    y.stage = (gate, inputs, params,
               None if fb_this_thread.group == NULL else <object> <PyObject*> fb_this_thread.group)


cdef tuple as_tuple(const Py_ssize_t* numbers, int n):
    # The common ranks without a list in between.
    if n == 2:
        return (numbers[0], numbers[1])
    if n == 1:
        return (numbers[0],)
    if n == 0:
        return ()
    return tuple([numbers[d] for d in range(n)])


@cython.freelist(64)
cdef class Tensor:
    """An array of float32 or float64 (or integers, bools: labels, indices, conditions).

    Make one with `fastbp.tensor`, `fastbp.from_numpy`, `fastbp.zeros` and so on. A gate
    applied to tensors gives a tensor that remembers the gate and its inputs wherever one of
    them requires a gradient; `backward` walks these stages in reverse.
    """
    __array_ufunc__ = None    # NumPy leaves `array * tensor` to the tensor

    def __init__(self, *args, **kwargs):
        if type(self) is Tensor:
            raise TypeError("a Tensor is made by fb.tensor(data), fb.from_numpy(array), fb.zeros(...) and so on")

    def __cinit__(self):
        # A 0-d zero until it is given more: Tensor() and Tensor.__new__(cls) are safe to use.
        self.data = self.inline_data
        self.count = 1
        self.contiguous = True

    def __dealloc__(self):
        if self.owns:
            if FB_DEBUG and not fb_guards_whole(self.data):
                # A destructor can't raise, and memory that was overrun can't be trusted.
                fprintf(stderr, b"fastbp debug build: memory past a tensor's end was written\n")
                abort()
            fb_release(self.data, self.count * item_size(self.kind))

    cdef Tensor root(self):
        """The tensor whose memory this is a view of."""
        return <Tensor> self.owner if isinstance(self.owner, Tensor) else self

    # --- what it is

    @property
    def shape(self):
        """The sizes of the dimensions, a tuple."""
        return as_tuple(self.dims, self.rank)

    @property
    def strides(self):
        """Bytes from one element to the next along each dimension, a tuple."""
        return as_tuple(self.steps, self.rank)

    @property
    def dtype(self):
        """The NumPy dtype of the elements."""
        return NUMPY_DTYPES[<int> self.kind]

    @property
    def ndim(self):
        """The number of dimensions."""
        return self.rank

    @property
    def size(self):
        """The number of elements."""
        return self.count

    @property
    def T(self):
        """The dimensions in reverse order; a view."""
        return OPERATORS["transpose"](self)

    @property
    def is_contiguous(self):
        """Whether the elements lie in C order without gaps."""
        return self.contiguous

    @property
    def is_leaf(self):
        """Whether no gate on the tape made it."""
        return self.stage is None or not self.needs_grad

    @property
    def requires_grad(self):
        """Whether `backward` computes a gradient for it."""
        return self.needs_grad

    @requires_grad.setter
    def requires_grad(self, bint on):
        if not on and self.stage is not None:
            raise RuntimeError("requires_grad can be taken back on leaves only: use detach()")
        if on and not is_float(self.kind):
            raise TypeError(f"only floating tensors have gradients, not {self.dtype}")
        self.needs_grad = on
        touch()

    def requires_grad_(self, bint requires_grad=True):
        """Set `requires_grad`, and return the tensor itself."""
        self.requires_grad = requires_grad
        return self

    @property
    def grad(self):
        """The gradient that `backward` accumulated: a Tensor of the same shape, or None."""
        if recording():
            return recorder().grad_of(self, self.gradient)
        return self.gradient

    @grad.setter
    def grad(self, value):
        cdef Tensor g
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(f"grad is a Tensor or None, not {type(value).__name__}")
            g = <Tensor> value
            if g.shape != self.shape:
                _raise("ShapeError", "a gradient has the shape of its tensor", got=g.shape,
                       expected=self.shape, fix="assign a gradient of that shape")
            if g.kind != self.kind:
                _raise("DtypeError", "a gradient has the dtype of its tensor", got=g.dtype,
                       expected=self.dtype, fix="assign a gradient of that dtype")
        if recording():
            recorder().set_grad(self, value)
        else:
            self.gradient = value

    @property
    def _version(self):
        """When the memory was last changed in place, on the clock of `_serial`."""
        return self.root().version

    @property
    def _abstract(self):
        """Whether it is recorded: a shape and a dtype without values."""
        return self.abstract

    @property
    def _weak(self):
        """Whether it stands for a Python number while a function is recorded."""
        return self.weak

    @property
    def _address(self):
        """Where the first element lies."""
        return <size_t> self.data

    @property
    def _offset(self):
        """Bytes from the first element of the memory's owner to this one's."""
        return self.data - self.root().data

    @property
    def _gate(self):
        """The gate that made it, or None; likewise its inputs, its parameters, and the group it was called in."""
        return None if self.stage is None else self.stage[0]

    @property
    def _inputs(self):
        return None if self.stage is None else self.stage[1]

    @property
    def _params(self):
        return None if self.stage is None else self.stage[2]

    @property
    def _group(self):
        return None if self.stage is None else self.stage[3]

    @property
    def _stale(self):
        """Whether a value of this stage, its output or an input, was changed after it ran."""
        cdef Tensor x
        if self.root().version > self._serial:
            return True
        for x in <tuple> self.stage[1]:
            if x.root().version > self._serial:
                return True
        return False

    @property
    def _root(self):
        """The tensor whose memory this is a view of, or itself."""
        return self.root()

    @property
    def _is_whole(self):
        """Whether the engine made the memory and this tensor shows all of it, each element once."""
        cdef Tensor root = self.root()
        return root.owner is None and root.count == self.count and not self._repeats()

    cdef bint _repeats(self):
        cdef int d
        for d in range(self.rank):
            if self.steps[d] == 0 and self.dims[d] > 1 and self.count:
                return True
        return False

    @property
    def _repeating(self):
        """Whether it shows an element in several places."""
        return self._repeats()

    @property
    def _consumed(self):
        return self.consumed

    @_consumed.setter
    def _consumed(self, bint value):
        self.consumed = value

    @property
    def _undone(self):
        """(the tensor whose backward undid this stage last, while it lives, the gradient given, or None); or None."""
        if self.end is None or self.end[0]() is None:
            return None
        return self.end[0](), self.end[1]

    @_undone.setter
    def _undone(self, tuple end):
        self.end = end

    def _changed(self):
        """The memory was changed in place: a `backward` that needs the old values will say so."""
        self.root().version = tick()

    # --- its values

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if self.abstract:
            raise BufferError("a recorded tensor has no values")
        if flags & PyBUF_WRITABLE and self.read_only:
            raise BufferError("the tensor shares a read-only array")
        cdef Tensor lent = self
        if (flags & PyBUF_STRIDES) != PyBUF_STRIDES and not self.contiguous:
            raise BufferError("the tensor is not C-contiguous")
        buffer.buf = self.data
        buffer.len = self.count * item_size(self.kind)
        buffer.readonly = self.read_only
        buffer.itemsize = item_size(self.kind)
        buffer.format = FORMATS[<int> self.kind] if flags & PyBUF_FORMAT else NULL
        buffer.ndim = self.rank
        buffer.shape = self.dims
        buffer.strides = self.steps
        buffer.suboffsets = NULL
        for wanted, order in ((PyBUF_C_CONTIGUOUS, b'C'), (PyBUF_F_CONTIGUOUS, b'F'), (PyBUF_ANY_CONTIGUOUS, b'A')):
            if (flags & wanted) == wanted and not PyBuffer_IsContiguous(buffer, <char> (<bytes> order)[0]):
                raise BufferError("the tensor does not lie in the order that is asked for")
        # A tensor of a subclass may adopt other memory, of another shape: what is lent stays as it is.
        if type(self) is not Tensor:
            lent = new_view(self, self.rank, self.dims, self.steps, self.data)
            buffer.shape = lent.dims
            buffer.strides = lent.steps
        if (flags & PyBUF_STRIDES) != PyBUF_STRIDES:
            buffer.strides = NULL
        if not flags & PyBUF_ND:
            buffer.shape = NULL
        buffer.internal = NULL
        buffer.obj = lent

    def numpy(self):
        """A NumPy array over the same memory. Writing through it is seen by no version check."""
        if self.abstract:
            raise staging_error("numpy(): a recorded tensor has no values",
                                "use fastbp's gates inside a staged function, and NumPy outside")
        return np.asarray(memoryview(self))

    def __array__(self, dtype=None, copy=None):
        array = self.numpy()
        if dtype is not None and dtype != array.dtype:
            if copy is False:
                raise ValueError(f"a copy is needed to give {array.dtype} as {dtype}")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack__(self, **options):
        """The DLPack capsule of `numpy()`."""
        return self.numpy().__dlpack__(**options)

    def __dlpack_device__(self):
        return self.numpy().__dlpack_device__()

    def item(self):
        """The one element, as a Python number."""
        if self.abstract and self.weak:
            raise staging_error("a number that is given to a staged function has no value while it is recorded",
                                "close over it, then it is a constant; or write the formula with operators")
        if self.abstract:
            raise staging_error("a recorded tensor has no value to branch on or to convert",
                                "choose with fb.where(condition, x, y), or return the tensor and look at it outside")
        if self.count != 1:
            raise RuntimeError(f"item() takes a tensor of one element, this has shape {self.shape}")
        if self.kind == FLOAT32:
            return (<float*> self.data)[0]
        if self.kind == FLOAT64:
            return (<double*> self.data)[0]
        return self.numpy().item()

    def __float__(self):
        return float(self.item())

    def __int__(self):
        return int(self.item())

    def __index__(self):
        if self.weak and self.abstract:
            raise staging_error("a number that is given to a staged function can't be an index, an axis or a size: "
                                "its value may change from call to call",
                                "close over it, or give it in a form that is compared: a string, or a NumPy array")
        if is_float(self.kind):
            raise TypeError(f"only integer tensors can be an index, not {self.dtype}")
        return int(self.item())

    def __bool__(self):
        return bool(self.item())

    def __len__(self):
        if self.rank == 0:
            raise TypeError("len() of a 0-d tensor")
        return self.dims[0]

    def __iter__(self):
        if self.rank == 0:
            raise TypeError("iteration over a 0-d tensor")
        return (self[i] for i in range(self.dims[0]))

    def __hash__(self):
        return <Py_ssize_t> <void*> self >> 4

    def __repr__(self):
        if self.abstract:
            return f"tensor(recorded, shape={self.shape}, dtype={self.dtype})"
        text = np.array2string(self.numpy(), separator=", ", prefix="tensor(")
        notes = "" if self.kind == FLOAT32 and self.count else f", dtype={self.dtype}"
        if self.name is not None:
            notes += f", name={self.name!r}"
        if self.stage is not None:
            notes += f", gate={self.stage[0].name}"
        elif self.needs_grad:
            notes += ", requires_grad=True"
        return f"tensor({text}{notes})"

    def __format__(self, spec):
        return format(self.item(), spec) if self.count == 1 and spec else format(str(self), spec)

    def __reduce__(self):
        # A copy is a leaf without a gradient, as PyTorch's is. Its layout is kept: NumPy keeps no other than C and F.
        array = self.numpy().copy(order="K")
        order = sorted(range(self.rank), key=lambda d: -array.strides[d])
        return (_rebuild, (type(self), array.transpose(order), order, self.needs_grad, self.name),
                getattr(self, "__dict__", None) or None)

    def __deepcopy__(self, dict memo):
        if not self.is_leaf:
            raise RuntimeError("copy.deepcopy: a gate made this tensor, and a past can't be copied: copy x.detach()")
        make, args, attributes = self.__reduce__()
        y = memo[id(self)] = make(*args)
        if attributes:
            y.__dict__.update(deepcopy(attributes, memo))
        return y

    def detach(self):
        """The same memory, without a past: no gradient flows through it."""
        looked_at(self)
        return new_view(self, self.rank, self.dims, self.steps, self.data)

    def copy_(self, source):
        """Overwrite the values with those of an array or tensor, broadcast; returns itself.

        ValueError: the shape does not fit, the memory is read-only or repeats elements. RuntimeError:
        a gate made the tensor.
        """
        if self.read_only:
            raise ValueError("copy_: the tensor shares a read-only array; copy it first: fb.tensor(a)")
        if self.stage is not None:
            raise RuntimeError("copy_: a gate made this tensor, and its gradient would flow to the old values: "
                               "use detach() or a new tensor")
        if self._repeats():
            raise ValueError("copy_: the tensor shows one element in several places: copy to what it is a view of")
        if recording():
            return OPERATORS["copy_"](self, source)
        array = np.asarray(source)
        try:
            fits = np.broadcast_shapes(array.shape, self.shape) == self.shape
        except ValueError:
            fits = False
        if not fits:
            _raise("ShapeError", "copy_: the source does not fit", got=array.shape,
                   expected=f"{self.shape}, or a shape that broadcasts to it",
                   fix="reshape the source")
        np.copyto(self.numpy(), array, casting="same_kind")
        self._changed()
        return self

    def backward(self, gradient=None, bint retain_graph=False):
        """Accumulate d self / d leaf into `.grad` of every leaf that requires one.

        `gradient` is d loss / d self (1 where self has one element). The stages are undone
        in the reverse of the order in which they ran; at a fork the gradients add.
        RuntimeError: self has several elements and no gradient is given, nothing requires a
        gradient, the tape was used before without `retain_graph`, or a value that a stage
        needs was changed in place.
        """
        OPERATORS["backward"](self, gradient, retain_graph)

    # --- looking at it

    @property
    def gate(self):
        """The gate that made it, to ask: inputs, local gradients, the upstream gradient, the formula. Or None."""
        return None if self.stage is None else OPERATORS["gate"](self)

    def draw(self, path=None):
        """The circuit that made it as an SVG picture: written to `path`, or returned as text, which notebooks show.

        From left to right: each wire with its value above in green and the gradient of this
        tensor for it below in red, numbers for scalars, shape, norm and histogram for arrays;
        gates round with their sign; groups of gates and layers as boxes. The gradients are those
        of a backward of the drawing's own, from 1: no `.grad` changes. Names are those of the
        tensors, the modules' parameters, and the caller's variables.
        RuntimeError: no gate made it, or a value that a gradient needs was changed in place.
        StagingError: it is recorded, without values. OSError: the file can't be written.
        """
        return OPERATORS["draw"](self, path)

    def _repr_svg_(self):
        """What a notebook shows: the picture, or None without gates, or with too many to read."""
        return None if self.stage is None else OPERATORS["notebook"](self)

    # --- its gates: each is a row in fastbp.gates

    def __add__(self, other): return operate("__add__", self, other)
    def __radd__(self, other): return operate("__add__", other, self)
    def __sub__(self, other): return operate("__sub__", self, other)
    def __rsub__(self, other): return operate("__sub__", other, self)
    def __mul__(self, other): return operate("__mul__", self, other)
    def __rmul__(self, other): return operate("__mul__", other, self)
    def __truediv__(self, other): return operate("__truediv__", self, other)
    def __rtruediv__(self, other): return operate("__truediv__", other, self)
    def __pow__(self, other, modulus): return operate("__pow__", self, other)
    def __rpow__(self, other, modulus): return operate("__pow__", other, self)
    def __matmul__(self, other): return OPERATORS["__matmul__"](self, other)
    def __rmatmul__(self, other): return OPERATORS["__matmul__"](other, self)
    def __iadd__(self, other): return rebound(self, "+")
    def __isub__(self, other): return rebound(self, "-")
    def __imul__(self, other): return rebound(self, "*")
    def __itruediv__(self, other): return rebound(self, "/")
    def __neg__(self): return operate_alone("__neg__", self)
    def __pos__(self): return self
    def __abs__(self): return operate_alone("__abs__", self)
    def __lt__(self, other): return operate("__lt__", self, other)
    def __le__(self, other): return operate("__le__", self, other)
    def __gt__(self, other): return operate("__gt__", self, other)
    def __ge__(self, other): return operate("__ge__", self, other)
    def __eq__(self, other): return operate("__eq__", self, other)
    def __ne__(self, other): return operate("__ne__", self, other)
    def __getitem__(self, index): return OPERATORS["__getitem__"](self, index)

    def __setitem__(self, index, value):
        # Without it Python would ask a mask for its `__index__`.
        raise TypeError("x[index] = y: a Tensor's items are not assigned to: write fb.where(mask, y, x), "
                        "or, of a slice, x.detach()[a:b].copy_(y)")


def _rebuild(kind, array, list order, bint requires_grad, name):
    """A tensor of class `kind` over an array, its dimensions put back from `order`: what pickle and copy call."""
    array = np.require(array, requirements="W")    # pickle's buffers out of band may be read only
    cdef Tensor shared = wrap_array(array.transpose(np.argsort(order)))
    cdef Tensor y = Tensor.__new__(kind)
    alias(y, shared)
    y.needs_grad = requires_grad
    y.name = name
    return y


cdef Tensor alias(Tensor y, Tensor x):
    """The blank tensor y becomes a view of x's memory, and is returned."""
    cdef int d
    y.rank, y.kind, y.count = x.rank, x.kind, x.count
    for d in range(x.rank):
        y.dims[d] = x.dims[d]
        y.steps[d] = x.steps[d]
    y.contiguous, y.read_only = x.contiguous, x.read_only
    y.data = x.data
    y.owner = x.root()
    return y


def adopt(Tensor y, Tensor x):
    """y, of a subclass of Tensor, becomes a view of x's memory and returns itself.

    It is how such tensors are made (`Tensor.__new__(cls)` has no memory) and how they change
    their dtype in place. TypeError: y is a plain Tensor. ValueError: x can be read only.
    """
    if type(y) is Tensor:
        raise TypeError("adopt is for subclasses of Tensor: a Tensor's memory never changes")
    if x.read_only:
        raise ValueError("a parameter can't share a read-only array; copy it first: fb.tensor(a)")
    touch()
    return alias(y, x)


def add_method(str name, method):
    """Give Tensor a method. Gates are rows; their methods are made from the rows at import.

    An extension type takes no attributes from Python; its dict may be filled before the
    type is used, if the interpreter is told.
    """
    (<dict> (<PyTypeObject*> Tensor).tp_dict)[name] = method
    PyType_Modified(<PyTypeObject*> Tensor)


def _dtype_kind(dtype):
    if dtype is None:
        return FLOAT32
    kind = KINDS.get(np.dtype(dtype), -1)
    if kind < 0:
        _raise("DtypeError", "a tensor can't hold these elements", got=f"dtype {dtype}",
               expected="float32, float64, bool or an integer dtype", fix="choose one of these")
    return kind


def tensor(data, dtype=None, bint requires_grad=False, name=None):
    """A tensor with a copy of `data`.

    Python numbers, and lists of numbers (of ints too), become float32; NumPy arrays and
    tensors keep their dtype; `dtype` overrides both. DtypeError: complex, object and text
    elements. TypeError: integers with requires_grad. ValueError: lists of uneven lengths.
    """
    plain = not isinstance(data, (Tensor, np.ndarray, np.generic))
    if recording() and not requires_grad and isinstance(data, (Tensor, np.ndarray)):
        copied = recorder().copied(data, dtype, name)
        if copied is not None:
            return copied
        watch(np.asarray(data))
    if plain:
        _reject_mixture(data)
    array = np.array(data, order="C")
    if dtype is not None:
        if array.dtype.kind not in "biuf":
            wrap_array(array)    # raises, and names the dtype
        wanted = NUMPY_DTYPES[_dtype_kind(dtype)]
        array = np.array(data, dtype=wanted, order="C") if plain else array.astype(wanted, copy=False)
    elif plain and array.dtype.kind in "biuf" and not (array.dtype.kind == "b" and array.size):
        array = array.astype(np.float32)
    cdef Tensor shared = wrap_array(array)
    cdef Tensor y = new_tensor(shared.rank, shared.dims, shared.kind)
    if y.count:
        memcpy(y.data, shared.data, y.count * item_size(y.kind))
    y.name = name
    if requires_grad:
        y.requires_grad = True
    return made_inside(y)


cdef void looked_at(Tensor x):
    """A recorded function makes a view of x: where x's memory is has to stay, and whether it requires a gradient."""
    if recording() and not x.abstract:
        recorder().looked[id(x)] = x


cdef watch(array):
    """A recorded function reads an array's values now: the recording holds while they are the same."""
    if recording():
        recorder().watch(array)


cdef int refuse_leaked(Tensor x) except -1:
    """A recorded tensor outside the function that it belongs to has no memory."""
    if x.abstract and not recording():
        raise staging_error("a recorded tensor is used outside its staged function",
                            "return it, and use what the call returns; keep no tensor of a staged function elsewhere")
    return 0


cdef Tensor made_inside(Tensor y):
    """y, which a recorded function makes itself, is known as such: each call would make it anew."""
    if recording():
        recorder().made[id(y)] = y
    return y


cdef _reject_mixture(data):
    """A list of tensors would lose its graph on its way through NumPy."""
    if isinstance(data, (list, tuple)):
        for entry in data:
            if isinstance(entry, Tensor) and (<Tensor> entry).needs_grad:
                raise TypeError("tensor() of a list of tensors would lose their gradients: use fb.stack")
            _reject_mixture(entry)


def from_numpy(array):
    """A tensor that shares a NumPy array's memory.

    Arrays of the other byte order or off their alignment can't be shared: they are copied.
    A read-only array gives a tensor that can be read only.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy takes a NumPy array, not {type(array).__name__}: use fb.tensor")
    return wrap_array(array)


def empty(shape, dtype=None):
    """A tensor in C order whose values are not set."""
    cdef Py_ssize_t dims[MAX_DIMS]
    cdef int rank = 0
    try:
        shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        shape = tuple([operator.index(size) for size in shape])
    except TypeError:
        from fastbp import errors
        raise errors.error(TypeError, "a size is no integer", got=shape, expected="an int, or a tuple of ints",
                           fix="divide with //, or round: int(n)") from None
    if len(shape) > MAX_DIMS:
        _raise("ShapeError", "a tensor has too many dimensions", got=f"{len(shape)} dimensions",
               expected=f"at most {MAX_DIMS}", fix="use fewer")
    for size in shape:
        if size < 0:
            _raise("ShapeError", "a size is negative", got=shape, expected="sizes of 0 or more",
                   fix="give the size itself")
        dims[rank] = size
        rank += 1
    return made_inside(new_tensor(rank, dims, _dtype_kind(dtype)))
