"""Replay: a recorded function ready to run; Caller: what finds the replay for its arguments and runs it.

A replay holds pointers: where each argument, result and gradient goes is known beforehand, so
that a call matches its arguments, sets addresses, runs the program and hands out results.
"""
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from fastbp_ext.abi cimport fb_flush_begin, fb_flush_end
from fastbp_ext.program cimport Program, flush, now_seconds, precision
from fastbp_ext.tensor cimport (FLOAT32, FLOAT64, MAX_DIMS, NOWHERE, Dtype, Memory, Tensor, contiguous_copy, generation,
                                grad_enabled, item_size, memory_of, plain_labels, refuse_leaked, replaying,
                                result_like, seen_at, set_stage, staging, tick, wrap_array)

import os
import threading
from copy import deepcopy

import numpy as np

from fastbp_ext.gate import as_index
from fastbp_ext.tensor import empty, view_of

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() nogil
    Py_ssize_t PyVectorcall_NARGS(size_t count)
    unsigned long Py_TPFLAGS_HAVE_VECTORCALL
    ctypedef object (*vectorcallfunc)(object, PyObject**, size_t, PyObject*)
    ctypedef struct type_fields "PyTypeObject":
        Py_ssize_t tp_vectorcall_offset
        unsigned long tp_flags
    ctypedef struct tuple_fields "PyTupleObject":
        PyObject** ob_item

cdef extern from * nogil:
    """
    /* The first fields of NumPy's PyArrayObject. Each extension that was compiled against
       NumPy has them inlined, so they can't move; `sees_arrays` checks them all the same. */
    typedef struct {
        PyObject_HEAD
        char *data;
        int nd;
        Py_ssize_t *dimensions, *strides;
        PyObject *base, *descr;
        int flags;
    } fb_array;
    enum { FB_ARRAY_READY = 0x0001 | 0x0100 }; /* C-contiguous, aligned */
    """
    ctypedef struct fb_array:
        char* data
        int nd
        Py_ssize_t* dimensions
        PyObject* descr
        int flags
    enum:
        FB_ARRAY_READY

cdef object ndarray = np.ndarray
cdef object floating = np.floating
cdef object integer = np.integer
cdef dict NO_PARAMS = {}
cdef tuple VALUES = (str, bytes, bool, np.bool_, complex, type(None), slice, range, set, frozenset, np.dtype)

cdef enum:
    KEPT = 64           # programs of a function, the last used

cdef double SLICE = 0.05    # seconds without a look at signals, progress and other threads


cdef bint sees_arrays():
    """Whether fb_array shows what NumPy says of an array."""
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    cdef fb_array* seen = <fb_array*> <PyObject*> a
    return (<size_t> seen.data == a.__array_interface__["data"][0] and seen.nd == 2 and seen.dimensions[0] == 2
            and seen.dimensions[1] == 3 and seen.descr == <PyObject*> a.dtype and seen.flags & 0x507 == 0x501)


cdef bint direct_arrays = sees_arrays()


cdef PyObject** items(tuple t):
    return (<tuple_fields*> <PyObject*> t).ob_item


# --- what arguments must be

cdef enum Kind:
    ARRAY       # a tensor or a NumPy array
    NUMBER      # a Python number
    SAME        # anything else: by equality, objects by identity
    SEQUENCE    # a tuple or a list
    MAPPING     # a dict


cdef class Spec:
    """What an argument must be: a leaf, or a nest of them."""
    cdef Kind kind
    cdef readonly object type     # of a nest or of anything else
    cdef readonly object value    # SAME: the object; MAPPING: its keys
    cdef readonly tuple parts
    cdef Dtype dtype
    cdef object descr             # ARRAY: NumPy's dtype object
    cdef int rank
    cdef bint needs_grad
    cdef bint compares            # SAME: by equality
    cdef Py_ssize_t twin          # ARRAY that requires a gradient: the number of an earlier leaf that is it, or -1
    cdef Py_ssize_t dims[MAX_DIMS]

    def __repr__(self):
        if self.kind == ARRAY:
            shape = tuple([self.dims[d] for d in range(self.rank)])
            return f"{self.descr} {shape}" + (", requires_grad" if self.needs_grad else "")
        if self.kind == NUMBER:
            return "number"
        if self.kind == SAME:
            return repr(self.value)[:60]
        if self.kind == MAPPING:
            return "{" + ", ".join([f"{k!r}: {p!r}" for k, p in zip(self.value, self.parts)]) + "}"
        return f"{self.type.__name__}({', '.join(map(repr, self.parts))})"


def is_number(x):
    """Whether x is a Python number or NumPy scalar: an input of its own, not part of what is compared."""
    return type(x) is float or type(x) is int or isinstance(x, (float, int, floating, integer)) and type(x) is not bool


def spec_of(tree, list leaves, list given):
    """The Spec of a nest of arguments; its leaves, as tensors in C order and floats, and as given, are appended."""
    cdef Spec s = Spec.__new__(Spec)
    cdef Tensor t
    cdef int d
    s.type = type(tree)
    if isinstance(tree, (Tensor, np.ndarray)):
        if isinstance(tree, Tensor):
            refuse_leaked(<Tensor> tree)
        t = as_input(tree)
        s.kind = ARRAY
        s.dtype, s.rank = t.kind, t.rank
        s.descr = t.dtype
        s.needs_grad = isinstance(tree, Tensor) and (<Tensor> tree).needs_grad
        s.twin = next((k for k, other in enumerate(given) if other is tree), -1) if s.needs_grad else -1
        for d in range(t.rank):
            s.dims[d] = t.dims[d]
        leaves.append(t)
        given.append(tree)
    elif is_number(tree):
        s.kind = NUMBER
        leaves.append(float(tree))
        given.append(tree)
    elif isinstance(tree, dict):
        s.kind = MAPPING
        s.value = tuple(tree)
        s.parts = tuple([spec_of(x, leaves, given) for x in tree.values()])
    elif isinstance(tree, (list, tuple)):
        s.kind = SEQUENCE
        s.parts = tuple([spec_of(x, leaves, given) for x in tree])
    else:
        s.kind = SAME
        s.value = set(tree) if type(tree) is set else tree
        s.compares = isinstance(tree, VALUES)
    return s


def as_input(x):
    """A tensor or an array as a tensor in C order, without its past."""
    cdef Tensor t = <Tensor> x if isinstance(x, Tensor) else wrap_array(x)
    return t if t.contiguous else contiguous_copy(t)


# --- results

cdef enum Shape:
    RESULT
    CONSTANT
    TUPLE
    LIST
    DICT


cdef class Nest:
    """What a function returns: a nest of results, by their numbers, and constants."""
    cdef Shape shape
    cdef Py_ssize_t number
    cdef object value      # CONSTANT: itself; DICT: its keys; TUPLE: the class of a named one, or None
    cdef tuple parts

    cdef object build(self, tuple made):
        cdef Py_ssize_t k, n
        cdef tuple built
        if self.shape == RESULT:
            return <object> PyTuple_GET_ITEM(made, self.number)
        if self.shape == CONSTANT:
            return self.value
        n = PyTuple_GET_SIZE(self.parts)
        built = PyTuple_New(n)
        for k in range(n):
            part = (<Nest> PyTuple_GET_ITEM(self.parts, k)).build(made)
            Py_INCREF(part)
            PyTuple_SET_ITEM(built, k, part)
        if self.shape == TUPLE:
            return built if self.value is None else self.value(*built)
        return list(built) if self.shape == LIST else dict(zip(self.value, built))


def nest_of(tree, dict numbers):
    """The Nest of a result; `numbers` says which result a tensor is, by its id."""
    cdef Nest n = Nest.__new__(Nest)
    if isinstance(tree, Tensor):
        n.shape, n.number = RESULT, numbers[id(tree)]
    elif isinstance(tree, dict):
        n.shape, n.value = DICT, tuple(tree)
        n.parts = tuple([nest_of(x, numbers) for x in tree.values()])
    elif isinstance(tree, (list, tuple)):
        n.shape = LIST if isinstance(tree, list) else TUPLE
        n.value = type(tree) if hasattr(tree, "_fields") else None
        n.parts = tuple([nest_of(x, numbers) for x in tree])
    else:
        n.shape, n.value = CONSTANT, tree
    return n


# --- memory, and whose turn it is

cdef class Arena:
    """The memory that all programs of one function share; it grows and never shrinks."""
    cdef readonly Tensor memory

    def __cinit__(self):
        self.memory = empty(0, "uint8")

    cdef char* of(self, Py_ssize_t size) except? NULL:
        if self.memory.count < size:
            self.memory = empty(size, "uint8")
        return self.memory.data


cdef object RETRY = object()    # instead of a result: another replay was in the way, and is done
cdef Replay running = None     # the first of those that gave up the interpreter's lock: others may see them at work
cdef list waiting = []     # locks of threads that wait for one of them, or for a function's turn
cdef int forks = 0


def _after_fork():
    # In a child the other threads are gone, and what they were doing with them.
    global forks, running
    forks += 1
    running = None
    waiting.clear()


os.register_at_fork(after_in_child=_after_fork)


cdef refusal(what, got, expected, fix):
    # The package's errors know the user's line. They stand above this module.
    from fastbp import errors
    return errors.error(errors.StagingError, what, got=got, expected=expected, fix=fix)


cdef object sign_up():
    """A lock for `wait_at`; the caller then looks again whether it has to wait."""
    lock = threading.Lock()
    lock.acquire()
    waiting.append(lock)
    return lock


cdef wake():
    while waiting:
        waiting.pop().release()


cdef refuse_to_wait():
    """A stage of Python that waits for another function's replay could wait for itself."""
    cdef Replay other = running
    while other is not None:
        if other.thread == PyThread_get_thread_ident():
            raise refusal(
                "a staged function is busy", "a call from inside a replay",
                "calls from outside, or of functions that share no state with those at work",
                "call it before or after, or use its eager form")
        other = other.beside


cdef bint overlap(list some, list others):
    """Whether memory of one tensor is memory of another too."""
    cdef Memory a, b
    for x in some:
        a = memory_of(<Tensor> x)
        for y in others:
            b = memory_of(<Tensor> y)
            if a.low < b.high and b.low < a.high:
                return True
    return False


# --- a replay

cdef struct Given:
    # An argument of this call.
    char* data
    PyObject* object    # the argument itself: it may be given a gradient
    Py_ssize_t bytes
    double number       # a Python number's value, where `data` points then
    int slot


cdef struct Result:
    int slot
    bint follows        # it required a gradient: a backward that reaches it is refused


cdef struct Leaf:
    PyObject* tensor
    Py_ssize_t number   # of the result that is its gradient, or -1


cdef struct Written:
    PyObject* root      # counts the versions
    Memory memory


cdef class Replay:
    """A recorded function, ready to run; made by fastbp.staged from a recording and its plan.

    args, kwargs: what is to be matched. inputs: for each leaf its slot. places: (slot, offset in
    the arena). results: (recorded tensor, slot, whether a gradient would follow); nest: what is
    returned. indices: (recorded tensor, number of the input that it is a view of or -1, int64
    tensor for the checked values, its slot, the check, whether some are ignored). leaf_grads:
    (leaf, number of the result or -1); argument_grads: (number of the input, number of the
    result or -1, whether it is added to what is there). entry_grads: (leaf, slot of its
    gradient before, the order of its dimensions in memory). grad_guards: (leaf, whether it had a
    gradient). guards: (what, call, what it returned). watched: (array, a copy of it). captured:
    tensors of others; written: those that stages change.
    """
    cdef readonly Program program
    cdef readonly tuple args
    cdef readonly Spec kwargs
    cdef readonly list captured
    cdef readonly list written
    cdef readonly list guards
    cdef readonly list grad_guards
    cdef readonly list watched
    cdef readonly bint repeats    # run again it does the same: no gradient is added to what a run left
    cdef public object about      # (recording, plan) for those who look
    cdef Arena arena
    cdef char* arena_now
    cdef Py_ssize_t arena_size
    cdef readonly list addresses, needs    # of what is captured: where it lies, whether it requires a gradient
    cdef list places, recorded, argument_grads, entry_grads, indices, leaves, roots
    cdef Nest nest
    cdef object add
    cdef set leaf_ids             # of captured tensors
    cdef tuple end
    cdef Given* given
    cdef Result* results
    cdef Leaf* leaf_grads
    cdef Py_ssize_t leaf_count
    cdef Written* writes
    cdef Py_ssize_t write_count
    cdef readonly Py_ssize_t inputs
    cdef Py_ssize_t at            # while arguments are matched
    cdef list borrowed            # copies of arguments, for one call
    cdef uint64_t held            # the generation in which the guards held
    cdef bint seen                # it gives up the interpreter's lock: others may come while it runs
    cdef bint grad_mode, flushing
    cdef int precision
    cdef unsigned long thread
    cdef Replay beside            # while it runs: the next one that does
    cdef bint listed              # it runs, and is among those beside each other
    cdef bint apart               # an argument of this call was copied: the next run needs another copy

    def __cinit__(self):
        self.borrowed = []

    def __dealloc__(self):
        free(self.given)
        free(self.results)
        free(self.leaf_grads)
        free(self.writes)

    def __init__(self, Program program, Arena arena, Py_ssize_t arena_size, *, args, kwargs, inputs, places, results,
                 nest, indices, leaf_grads, argument_grads, entry_grads, grad_guards, guards, watched, captured,
                 written, end, add):
        cdef Py_ssize_t k
        cdef Spec s
        cdef list leaves = []
        self.program, self.arena, self.arena_size = program, arena, arena_size
        self.args, self.kwargs = args, kwargs
        self.places, self.nest, self.indices = places, nest, indices
        self.argument_grads, self.entry_grads = argument_grads, entry_grads
        self.grad_guards, self.guards, self.watched = grad_guards, guards, watched
        self.captured, self.written = captured, written
        self.addresses = [t._address for t in captured]
        self.needs = [t.requires_grad for t in captured]
        self.leaves = [leaf for leaf, *_ in (*leaf_grads, *entry_grads)]
        self.leaf_ids = {id(t) for t in (*captured, *written, *self.leaves)}
        self.grad_mode, self.precision, self.flushing = grad_enabled(), precision, flush
        self.seen = program.long_run or program.calls
        self.end, self.add = end, add
        self.repeats = not argument_grads and not any([had or number >= 0 for leaf, had in grad_guards
                                                       for other, number in leaf_grads if other is leaf])
        for s in (*args, kwargs):
            leaves_of(s, leaves)
        self.inputs = len(inputs)
        self.given = <Given*> calloc(self.inputs + 1, sizeof(Given))
        self.results = <Result*> calloc(len(results) + 1, sizeof(Result))
        self.leaf_grads = <Leaf*> calloc(len(leaf_grads) + 1, sizeof(Leaf))
        self.writes = <Written*> calloc(len(written) + 1, sizeof(Written))
        if self.given == NULL or self.results == NULL or self.leaf_grads == NULL or self.writes == NULL:
            raise MemoryError("no memory for a program")
        for leaf, number in leaf_grads:
            self.leaf_grads[self.leaf_count] = Leaf(<PyObject*> leaf, number)
            self.leaf_count += 1
        self.roots = [(<Tensor> t).root() for t in written]
        for t, root in zip(written, self.roots):
            self.writes[self.write_count] = Written(<PyObject*> root, memory_of(<Tensor> t))
            self.write_count += 1
        for k, s in enumerate(leaves):
            self.given[k].slot = inputs[k]
            self.given[k].bytes = item_size(s.dtype)
            for d in range(s.rank):
                self.given[k].bytes *= s.dims[d]
            if s.kind == NUMBER:
                program.place(self.given[k].slot, <char*> &self.given[k].number)
                self.given[k].slot = -1
        self.recorded = []
        for k, (t, slot, follows) in enumerate(results):
            self.recorded.append(t)
            self.results[k].slot, self.results[k].follows = slot, follows

    # --- does it fit?

    cdef bint match(self, Spec s, object arg) except -1:
        """Whether an argument is as s says; its leaves go to `given` from `at` on."""
        cdef Tensor t
        cdef fb_array* a
        cdef Given* given
        cdef int d
        cdef Py_ssize_t k
        if s.kind == ARRAY:
            given = &self.given[self.at]
            self.at += 1
            if isinstance(arg, Tensor):
                t = <Tensor> arg
                refuse_leaked(t)
            elif type(arg) is ndarray:
                a = <fb_array*> <PyObject*> arg
                if (direct_arrays and a.flags & FB_ARRAY_READY == FB_ARRAY_READY
                        and a.descr == <PyObject*> s.descr):
                    if a.nd != s.rank or s.needs_grad:
                        return False
                    for d in range(s.rank):
                        if a.dimensions[d] != s.dims[d]:
                            return False
                    given.data = a.data
                    given.object = <PyObject*> arg
                    return True
                t = wrap_array(arg)
                self.borrowed.append(t)
            elif isinstance(arg, ndarray):
                t = wrap_array(arg)
                self.borrowed.append(t)
            else:
                return False
            if t.rank != s.rank or t.kind != s.dtype or t.needs_grad != s.needs_grad:
                return False
            for d in range(s.rank):
                if t.dims[d] != s.dims[d]:
                    return False
            given.object = <PyObject*> arg
            if t.needs_grad and not self.is_own_leaf(s, arg):
                return False
            if not t.contiguous:
                t = contiguous_copy(t)
                self.borrowed.append(t)
            given.data = t.data
            return True
        if s.kind == NUMBER:
            given = &self.given[self.at]
            self.at += 1
            given.object = NULL
            if type(arg) is float or is_number(arg):
                given.number = arg
                return True
            return False
        if s.kind == SAME:
            return arg is s.value or type(arg) is s.type and s.compares and bool(arg == s.value)
        if type(arg) is not s.type or len(arg) != len(s.parts):
            return False
        if s.kind == MAPPING:
            if tuple(arg) != s.value:
                return False
            arg = arg.values()
        k = 0
        for part in arg:
            if not self.match(<Spec> s.parts[k], part):
                return False
            k += 1
        return True

    cdef bint is_own_leaf(self, Spec s, arg) except -1:
        """Whether an argument that requires a gradient is the same as an earlier one just where it was recorded so."""
        cdef Py_ssize_t k, twin = -1
        for k in range(self.at - 1):
            if self.given[k].object == <PyObject*> arg:
                twin = k
                break
        if id(arg) in self.leaf_ids:
            raise refusal(
                "a tensor is given to a staged function that also uses it as its own", f"{arg.shape}, requires_grad",
                "an argument, or a captured parameter", "give another tensor, or leave the argument out")
        return twin == s.twin

    cdef bint takes(self, PyObject** args, Py_ssize_t n, dict kwargs) except -1:
        """Whether this replay is the one for these n arguments, as all is now; then labels are checked."""
        cdef Py_ssize_t k
        if (PyTuple_GET_SIZE(self.args) != n or self.grad_mode != grad_enabled() or self.precision != precision
                or self.flushing != flush):
            return False
        self.at = 0
        if self.borrowed:
            self.borrowed.clear()
        for k in range(n):
            if not self.match(<Spec> PyTuple_GET_ITEM(self.args, k), <object> args[k]):
                return False
        if (kwargs is not None and kwargs or self.kwargs.parts) and not self.match(self.kwargs, kwargs or {}):
            return False
        return self.holds() and (not self.indices or self.labels_fit())

    cdef bint holds(self) except -1:
        """Whether what the recording took for granted is still so."""
        cdef Tensor t
        cdef uint64_t now = generation
        for leaf, had in self.grad_guards:
            if ((<Tensor> leaf).gradient is not None) != <bint> had:
                return False
        for array, before in self.watched:
            if array.tobytes() != before.tobytes():
                return False
        if self.held != now:
            for t, address, needs in zip(self.captured, self.addresses, self.needs):
                if <size_t> t.data != <size_t> address or t.needs_grad != <bint> needs:
                    return False
            for _, call, before in self.guards:
                if call() != before:
                    return False
            self.held = now
        return True

    cdef bint labels_fit(self) except -1:
        """Check labels and indices, and convert them; False where ignored ones came or went."""
        cdef Tensor x, out
        cdef char* data
        cdef Py_ssize_t size
        for x, number, out, _, check, ignored in self.indices:
            size = check[0]
            if x.contiguous and (check[4] is None or not 0 <= check[4] < size):
                data = x.data
                if number >= 0:
                    data = self.given[<Py_ssize_t> number].data + (x.data - <char*> <size_t> NOWHERE)
                if plain_labels(data, x.kind, x.count, size, <int64_t*> out.data):
                    if ignored:
                        return False
                    continue
            if convert(x if number < 0 else seen_at(x, self.given[<Py_ssize_t> number].data), check, out)[1] != ignored:
                return False
        return True

    # --- a run

    cdef tuple begin(self):
        """Memory for this run: the arena, and results of their own, which are returned."""
        cdef char* memory = self.arena.of(self.arena_size)
        cdef Py_ssize_t k, n = PyList_GET_SIZE(self.recorded)
        cdef tuple made = PyTuple_New(n)    # small tuples come from a free list, items and all
        cdef Tensor t, y
        cdef Result* result = self.results
        if memory != self.arena_now:
            self.arena_now = memory
            for slot, offset in self.places:
                self.program.place(slot, memory + <Py_ssize_t> offset)
        for k in range(n):
            t = <Tensor> PyList_GET_ITEM(self.recorded, k)
            y = result_like(t)
            self.program.place(result.slot, y.data)
            if result.follows:
                set_stage(y, self.end[0], self.end[1], NO_PARAMS)
            Py_INCREF(y)
            PyTuple_SET_ITEM(made, k, y)
            result += 1
        return made

    cdef int bind(self) except -1:
        """Where the arguments, gradients so far and labels of this call lie."""
        cdef Py_ssize_t _n
        cdef Given* given = self.given
        cdef Tensor g
        if self.write_count:
            self.set_apart()
        for k, _, _ in self.argument_grads:
            if (<Tensor> <object> self.given[<Py_ssize_t> k].object).stage is not None:
                raise refusal(
                    "backward in a staged function would have to go on through what made an argument",
                    "an argument that a gate made", "leaves",
                    "give x.detach().requires_grad_(), or use fb.grad of the staged function")
        for _n in range(self.inputs):
            if given.slot >= 0:
                self.program.place(given.slot, given.data)
            given += 1
        for leaf, slot, order in self.entry_grads:
            g = as_input(turned((<Tensor> leaf).gradient, order))
            for _n in range(self.write_count):
                if g.data < self.writes[_n].memory.high and self.writes[_n].memory.low < memory_of(g).high:
                    raise refusal(
                        "a gradient shares memory with what a staged function changes", f"{g.shape}",
                        "memory of its own", "give p.grad a copy: fb.tensor(g.numpy())")
            self.borrowed.append(g)
            self.program.place(slot, g.data)
        for _, _, out, slot, _, _ in self.indices:
            self.program.place(slot, (<Tensor> out).data)
        return 0

    cdef int set_apart(self) except -1:
        """Arguments that overlap what the program writes are copied."""
        cdef Py_ssize_t k, n
        cdef Memory* memory
        cdef Given* given
        cdef Tensor copy
        self.apart = False
        for n in range(self.write_count):
            memory = &self.writes[n].memory
            for k in range(self.inputs):
                given = &self.given[k]
                if given.slot >= 0 and given.data < memory.high and memory.low < given.data + given.bytes:
                    copy = empty(given.bytes, "uint8")
                    memcpy(copy.data, given.data, given.bytes)
                    given.data = copy.data
                    self.borrowed.append(copy)
                    self.apart = True
        return 0

    cdef bint must_wait(self) except -1:
        """Whether a replay at work shares memory that either of them changes."""
        cdef Replay other = running
        while other is not None:
            if (overlap(self.written, other.written) or overlap(self.written, other.captured)
                    or overlap(other.written, self.captured) or overlap(self.leaves, other.leaves)):
                return True
            other = other.beside
        return False

    cdef int finish(self, tuple made) except -1:
        """After a run: versions, and gradients where they belong."""
        cdef Py_ssize_t _n
        cdef Leaf* leaf = self.leaf_grads
        self.changed()
        for _n in range(self.leaf_count):
            (<Tensor> leaf.tensor).gradient = <object> PyTuple_GET_ITEM(made, leaf.number) if leaf.number >= 0 else None
            leaf += 1
        for k, number, accumulates in self.argument_grads:
            self.give_gradient(<object> self.given[<Py_ssize_t> k].object,
                               made[<Py_ssize_t> number] if number >= 0 else None, accumulates)
        if self.borrowed:
            self.borrowed.clear()
        return 0

    cdef give_gradient(self, argument, g, bint accumulates):
        cdef Tensor leaf = <Tensor> argument
        while True:
            before = leaf.gradient
            new = g
            if accumulates and before is not None:
                new = before if g is None else self.add(before, g)
            if leaf.gradient is before:    # no other thread came in between
                leaf.gradient = new
                return

    cdef void changed(self) noexcept:
        cdef uint64_t now
        cdef Py_ssize_t n
        if self.write_count:
            now = tick()
            for n in range(self.write_count):
                (<Tensor> self.writes[n].root).version = now

    cdef object call(self):
        """One run on the arguments that `takes` took; RETRY where another replay had to be waited for."""
        cdef tuple made = self.begin()
        self.bind()
        if not self.enter(self.seen):
            return RETRY
        if self.seen:
            self.run_seen()
        else:
            self.program.run_short()
        self.finish(made)
        return self.nest.build(made)

    cdef int run_seen(self) except -1:
        """One run while other threads may look."""
        try:
            return self.program.run_once()
        except BaseException:
            self.changed()
            raise
        finally:
            self.leave()

    cdef bint enter(self, bint seen) except -1:
        """True, and others can see that it runs if they may come; False after waiting for one that is in the way."""
        global running
        if running is not None and self.must_wait():
            refuse_to_wait()
            lock = sign_up()
            if self.must_wait():
                lock.acquire()
            return False
        self.listed = seen
        if seen:
            self.thread = PyThread_get_thread_ident()
            self.beside = running
            running = self
        return True

    cdef void leave(self):
        global running
        cdef Replay other = running
        if not self.listed:
            return
        if other is self:
            running = self.beside
        else:
            while other is not None and other.beside is not self:
                other = other.beside
            if other is not None:    # else a fork came between
                other.beside = self.beside
        self.beside = None
        if waiting:
            wake()

    # --- many runs

    cdef object call_often(self, Py_ssize_t times, Py_ssize_t* done):
        """Runs on the same arguments for a while, at most `times`; what the last returns, or RETRY."""
        cdef tuple made
        cdef Py_ssize_t _n, n = 0, block = 1
        cdef double begin, now
        cdef unsigned mode
        made = self.begin() if self.repeats and not self.program.calls else None
        if made is not None:
            self.bind()
        if made is None or self.apart:
            result = self.call()
            done[0] += result is not RETRY
            return result
        if not self.enter(True):
            return RETRY
        with nogil:
            mode = fb_flush_begin(flush)
            begin = now_seconds()
            while True:
                block = min(block, times - n)
                for _n in range(block):
                    self.program.run(0, self.program.count)
                n += block
                now = now_seconds()
                if n == times or now - begin > SLICE:
                    break
                # A look at the clock takes as long as a small program.
                block = <Py_ssize_t> (SLICE / 32 * n / (now - begin + 1e-9)) + 1
            fb_flush_end(mode)
        self.leave()
        done[0] += n
        self.finish(made)
        return self.nest.build(made)

    cdef object rehearse(self, list state, double seconds):
        """What a call on the arguments that `takes` took returns, or RETRY; the tensors `state` are put back.

        Gradients stay where they are. seconds > 0: runs for about so long, and what `Program.measure` returns.
        """
        cdef tuple made = self.begin()
        cdef list before
        self.bind()
        if not self.enter(True):
            return RETRY
        try:
            before = [x.numpy().copy() for x in state]
            try:
                if seconds > 0:
                    return self.program.measure(seconds)
                self.program.run_once()
                return self.nest.build(made)
            finally:
                for x, values in zip(state, before):
                    np.copyto(x.numpy(), values)
        finally:
            self.leave()

    cdef int run_rows(self, Feed feed, Py_ssize_t stop, Py_ssize_t size, Tensor place) except -1:
        """Batches of `size` rows, for a while. place: float64, moved on with each, whatever comes between:

        the row where the next begins; sums of the scalars of each batch, the first results, times its rows.
        """
        cdef tuple made = self.begin()
        cdef PyObject** scalars = items(made)
        cdef double* total = <double*> place.data
        cdef Py_ssize_t at = <Py_ssize_t> total[0]
        cdef double until
        cdef unsigned mode
        cdef Py_ssize_t k
        self.bind()
        if not self.enter(True):
            return 0
        with nogil:
            mode = fb_flush_begin(flush)
            until = now_seconds() + SLICE
            while at + size <= stop:
                for k in range(feed.count):
                    self.program.place(feed.columns[k].slot, feed.rows(k, at, size))
                self.program.run(0, self.program.count)
                for k in range(1, place.count):
                    total[k] += size * number_of(scalars[k - 1])
                at += size
                total[0] = at
                if now_seconds() > until:
                    break
            fb_flush_end(mode)
        self.leave()
        self.finish(made)
        return 0

    def columns(self, Py_ssize_t first, list arrays):
        """What changes from batch to batch: (slot, values for all rows, where labels are ignored or None, whether
        the program expects some in each batch).

        `arrays` are the inputs from number `first` on. Their labels and indices are checked here,
        all rows. None: some do not belong to rows one by one.
        """
        cdef list found = [(self.given[first + k].slot, a, None, False) for k, a in enumerate(arrays)
                           if self.given[first + <Py_ssize_t> k].slot >= 0]
        cdef Tensor x, root
        for x, number, _, slot, check, expected in self.indices:
            if number >= first:
                root = x.root()
                if x.rank == 0 or x.dims[0] != root.dims[0] or x.steps[0] != root.steps[0]:
                    return None
                x = rows_of(x, <Tensor> arrays[<Py_ssize_t> number - first])
                found.append((slot, convert(x, check, None)[0], None if check[4] is None else x.numpy() == check[4],
                              expected))
        return found

    @property
    def alone(self):
        """Whether a run is nothing but its instructions, however often: no gradient is added to what one left."""
        return self.repeats and not self.program.calls

    @property
    def scalars(self):
        """How many scalars of floats the tuple that is returned begins with; 1 for a scalar alone."""
        cdef Nest nest
        cdef Tensor t
        cdef Py_ssize_t n = 0
        for nest in self.nest.parts if self.nest.shape == TUPLE else (self.nest,):
            if nest.shape != RESULT:
                break
            t = <Tensor> self.recorded[nest.number]
            if t.rank or t.kind != FLOAT32 and t.kind != FLOAT64:
                break
            n += 1
        return n


cdef inline double number_of(PyObject* scalar) noexcept nogil:
    """The value of a Tensor of one float."""
    cdef char* data = (<Tensor> scalar).data
    return (<float*> data)[0] if (<Tensor> scalar).kind == FLOAT32 else (<double*> data)[0]


cdef convert(Tensor x, tuple check, out):
    size, gate, what, wrap, ignored, fill = check
    return as_index(x, size, gate, what, wrap, ignored, fill, out)


cdef Tensor turned(Tensor x, list order):
    """x with its dimensions in an order."""
    if order == sorted(order):
        return x
    shape, strides = x.shape, x.strides
    return view_of(x, [shape[d] for d in order], [strides[d] for d in order], x._offset)


cdef Tensor rows_of(Tensor x, Tensor source):
    """x, a view of an input of some rows, as the view of `source`, which has more of them."""
    return view_of(source, (source.dims[0], *x.shape[1:]), x.strides, x._offset)


cdef void leaves_of(Spec s, list leaves):
    if s.kind == ARRAY or s.kind == NUMBER:
        leaves.append(s)
    elif s.parts is not None:
        for part in s.parts:
            leaves_of(<Spec> part, leaves)


# --- rows of arrays, batch by batch

cdef struct Column:
    char* data
    char* gathered      # a batch of rows in the order that was asked for, or NULL
    Py_ssize_t row      # bytes
    int slot


cdef class Feed:
    """The rows of contiguous arrays in batches of `size`, in the order `order` (int64) or their own.

    slots: where a program reads them.
    """
    cdef Column* columns
    cdef Py_ssize_t count
    cdef int64_t* order
    cdef list kept

    def __cinit__(self, list slots, list arrays, order, Py_ssize_t size):
        cdef Tensor t
        cdef Py_ssize_t k
        self.count = len(arrays)
        self.columns = <Column*> calloc(self.count + 1, sizeof(Column))
        if self.columns == NULL:
            raise MemoryError("no memory for an epoch")
        self.kept = [*arrays, order]
        if order is not None:
            self.order = <int64_t*> (<Tensor> order).data
        for k in range(self.count):
            t = <Tensor> arrays[k]
            self.columns[k].slot = slots[k]
            self.columns[k].data = t.data
            self.columns[k].row = t.count // t.dims[0] * item_size(t.kind)
            if order is not None:
                self.kept.append(empty(size * self.columns[k].row, "uint8"))
                self.columns[k].gathered = (<Tensor> self.kept[-1]).data

    def __dealloc__(self):
        free(self.columns)

    cdef char* rows(self, Py_ssize_t k, Py_ssize_t at, Py_ssize_t size) noexcept nogil:
        """Where rows at .. at + size of array k lie one after the other."""
        cdef Column* c = &self.columns[k]
        cdef Py_ssize_t i
        if self.order == NULL:
            return c.data + at * c.row
        for i in range(size):
            memcpy(c.gathered + i * c.row, c.data + self.order[at + i] * c.row, c.row)
        return c.gathered


# --- the callable


cdef class Caller:
    """Calls the replay that fits the arguments, and asks `_record` for one where none does; see `_unreplayed`.

    One call at a time: programs of one function share an arena.
    """
    cdef readonly object function
    cdef readonly list replays      # the last used first
    cdef readonly Arena arena
    cdef vectorcallfunc vectorcall
    cdef bint busy
    cdef unsigned long owner
    cdef int born                   # how many forks there had been when it became busy

    def __init__(self, function):
        self.function = function
        self.replays = []
        self.arena = Arena()

    def __cinit__(self):
        self.vectorcall = call_quickly

    def __call__(self, *args, **kwargs):
        if not replaying():
            return self._unreplayed(args, kwargs, staging)
        return self.run(args, kwargs, 1)

    cdef object run(self, tuple args, dict kwargs, Py_ssize_t times):
        """What the last of `times` calls returns."""
        cdef Replay replay = None
        cdef Py_ssize_t done = 0
        cdef int recorded = 0
        while True:
            self.take_turn()
            try:
                replay = self.find(items(args), PyTuple_GET_SIZE(args), kwargs)
                if replay is None:
                    result = RETRY
                elif times == 1:
                    result = replay.call()
                    done = result is not RETRY
                else:
                    result = replay.call_often(times - done, &done)
            finally:
                self.give_turn(replay)
            if replay is None:
                recorded += 1
                self._record(args, kwargs, recorded)
            if times > 1:
                PyErr_CheckSignals()
            if done >= times:
                return result

    cdef Replay find(self, PyObject** args, Py_ssize_t n, dict kwargs):
        """The replay for these arguments; its turn has come."""
        cdef list replays = self.replays    # never changed, only replaced: Python runs in between
        cdef Replay replay = None
        cdef Py_ssize_t k
        for k in range(PyList_GET_SIZE(replays)):
            replay = <Replay> PyList_GET_ITEM(replays, k)
            if replay.takes(args, n, kwargs):
                if k and self.replays is replays:
                    self.replays = [replay, *replays[:k], *replays[k + 1:]]
                return replay
        return None

    def keep(self, Replay replay):
        """A new program, the last used; the one that was not used for longest makes room."""
        self.replays = [replay, *self.replays[:KEPT - 1]]

    def forget(self):
        """Forget all programs and their memory."""
        self.replays = []
        self.arena = Arena()

    def replay_for(self, args, kwargs):
        """The replay for these arguments, recorded if need be; nothing runs."""
        cdef Replay replay = None
        cdef int recorded = 0
        while replay is None:
            self.take_turn()
            try:
                replay = self.find(items(args), PyTuple_GET_SIZE(args), kwargs)
            finally:
                self.give_turn(replay)
            if replay is None:
                recorded += 1
                self._record(args, kwargs, recorded)
        return replay

    def run_often(self, Py_ssize_t times, tuple args, dict kwargs):
        """What the last of `times` calls returns; signals are looked for in between."""
        return self.run(args, kwargs, times)

    def run_rows(self, tuple args, Replay replay, Feed feed, Py_ssize_t stop, Py_ssize_t size, Tensor place):
        """Batches up to row `stop`, for a while, from `place` on, which moves on: the row, and sums of the scalars.

        args are those of any batch; the feed's rows take their places. False: the replay does not
        fit any more, as what it took for granted changed.
        """
        self.take_turn()
        try:
            if not replay.takes(items(args), PyTuple_GET_SIZE(args), None):
                return False
            replay.run_rows(feed, stop, size, place)
            return True
        finally:
            self.give_turn(replay)

    def rehearse(self, tuple args, dict kwargs, Replay replay, list state, double seconds=0):
        """(what a call on these arguments returns,); () where the replay does not fit them any more.

        state: the tensors that it changes, which are put back. seconds > 0: what `Program.measure` returns.
        """
        result = RETRY
        while result is RETRY:
            self.take_turn()
            try:
                if not replay.takes(items(args), len(args), kwargs):
                    return ()
                result = replay.rehearse(state, seconds)
            finally:
                self.give_turn(replay)
        return (result,)

    cdef int take_turn(self) except -1:
        while self.busy and self.born == forks:
            if self.owner == PyThread_get_thread_ident():
                raise refusal("a staged function is called inside its own replay", "a call from a stage of Python",
                              "calls from outside", "use its eager form there")
            refuse_to_wait()
            lock = sign_up()
            if self.busy and self.born == forks:
                lock.acquire()
        self.busy = True
        self.born = forks
        self.owner = PyThread_get_thread_ident()
        return 0

    cdef void give_turn(self, Replay replay):
        if replay is not None and replay.borrowed:
            replay.borrowed.clear()
        self.busy = False
        if waiting:
            wake()


cdef object call_quickly(object self, PyObject** args, size_t count, PyObject* names):
    """Caller.__call__ by Python's vectorcall protocol (PEP 590): no tuple and no dict of arguments is made."""
    cdef Caller caller = <Caller> self
    cdef Py_ssize_t n = PyVectorcall_NARGS(count)
    cdef Replay replay = None
    result = RETRY
    if names == NULL and replaying():
        caller.take_turn()
        try:
            replay = caller.find(args, n, None)
            if replay is not None:
                result = replay.call()
        finally:
            caller.give_turn(replay)
        if result is not RETRY:
            return result
    given = [<object> args[k] for k in range(n)]
    if names == NULL:
        return Caller.__call__(caller, *given)
    return Caller.__call__(caller, *given, **{name: <object> args[n + k] for k, name in enumerate(<tuple> names)})


def called_quickly(cls):
    """Decorates Caller and subclasses: `call_quickly` calls their instances. Before Python 3.12 none inherits it."""
    (<type_fields*> <PyObject*> cls).tp_vectorcall_offset = vectorcall_offset
    (<type_fields*> <PyObject*> cls).tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL
    return cls


cdef Py_ssize_t offset_in(Caller caller):
    return <char*> &caller.vectorcall - <char*> <PyObject*> caller


cdef Py_ssize_t vectorcall_offset = offset_in(Caller.__new__(Caller))
called_quickly(Caller)


cdef class Bound:
    """A staged method of one instance: the instance is the first argument."""
    cdef readonly object staged
    cdef readonly object instance

    def __init__(self, staged, instance):
        self.staged, self.instance = staged, instance

    def __reduce__(self):
        return Bound, (self.staged, self.instance)

    def __deepcopy__(self, memo):
        return Bound(deepcopy(self.staged, memo), deepcopy(self.instance, memo))

    def __call__(self, *args, **kwargs):
        return self.staged(self.instance, *args, **kwargs)

    def eager(self, *args, **kwargs):
        """The method gate by gate, every value at hand."""
        return self.staged.eager(self.instance, *args, **kwargs)

    def repeat(self, times, *args, **kwargs):
        """See `fastbp.staged.Staged.repeat`."""
        return self.staged.repeat(times, self.instance, *args, **kwargs)

    def profile(self, *args, **kwargs):
        """See `fastbp.staged.Staged.profile`."""
        return self.staged.profile(self.instance, *args, **kwargs)

    def health(self, *args, **kwargs):
        """See `fastbp.staged.Staged.health`."""
        return self.staged.health(self.instance, *args, **kwargs)

    def epoch(self, *arrays, **options):
        """See `fastbp.staged.Staged.epoch`."""
        return self.staged.epoch(*arrays, _before=(self.instance,), **options)

    def __getattr__(self, name):
        return getattr(self.staged, name)
