"""Gate: a kernel, a shape rule and a vjp; and what happens when one is applied to tensors.

The rows themselves stand in fastbp.gates. Here is what all of them share: arguments become
tensors, shapes are broadcast, the output is made, the kernel runs, the stage goes on the tape.
"""
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t

from libc.string cimport memset

from fastbp_ext.abi cimport FB_CONSTANTS, FB_OPERANDS
from fastbp_ext.lower cimport (lower_columns, lower_copy, lower_elementwise, lower_fold, lower_product, lower_reduce,
                               lower_rows, lower_scan, lower_scatter, lower_state, lower_take, lower_windows)
from fastbp_ext.program cimport Executor, now
from fastbp_ext.tensor cimport (BOOL, CHECKS, FLOAT32, FLOAT64, INT8, INT16, INT32, INT64, MAX_DIMS, RUNS, UINT8,
                                UINT16, UINT64, Dtype, Tensor, as_python, blank, blank_like, dtype_name,
                                gate_mode, give_memory, grad_enabled, integer, is_float, item_size, looked_at,
                                made_inside, make_abstract, new_like, new_tensor, new_view, recorder, recording,
                                refuse_leaked, scalar, set_stage, staging_error, watch, wrap_array)

import operator
import types

import numpy as np

from fastbp_ext.cpu import TABLE
from fastbp_ext.tensor import OPERATORS, tensor

cdef object bind_method = types.MethodType
cdef tuple NUMBERS = (float, int, np.floating, np.integer, np.bool_)
cdef dict NOTHING = {}

cdef enum Form:
    ELEMENTWISE
    VIEW
    COPY
    REDUCE_ONE
    REDUCE
    PRODUCT
    ROWS
    TAKE
    SCATTER
    JOIN
    PLACE
    CONVERT
    RANDOM
    MOMENT
    COMBINE
    WINDOWS
    CUSTOM
    SCAN

FORMS = {"elementwise": ELEMENTWISE, "view": VIEW, "copy": COPY, "reduce": REDUCE, "reduce one": REDUCE_ONE,
         "product": PRODUCT, "rows": ROWS, "take": TAKE, "scatter": SCATTER, "join": JOIN, "place": PLACE,
         "convert": CONVERT, "random": RANDOM, "moment": MOMENT, "combine": COMBINE, "windows": WINDOWS,
         "scan": SCAN, "custom": CUSTOM}


cdef _raise(str kind, str what, got, expected, fix):
    # The package's errors know the user's line. They stand above this module.
    from fastbp import errors
    raise errors.error(getattr(errors, kind), what, got=got, expected=expected, fix=fix)


cdef bint is_weak(object x):
    """Python numbers and NumPy scalars take the dtype of the tensor that they meet."""
    return type(x) is float or type(x) is int or isinstance(x, NUMBERS)


cdef Tensor as_tensor(str gate, object x, int kind):
    """An argument of a gate as a tensor; `kind` is the dtype that weak numbers take."""
    if isinstance(x, Tensor):
        return <Tensor> x
    if is_weak(x):
        if kind == INT64:
            if x - x != 0 or int(x) != x:    # NaN, infinities, fractions
                _raise("DtypeError", f"{gate}: integers and {x!r} do not mix", f"int64 and {type(x).__name__}",
                       "one of them", "convert the integers: fb.tensor(y.numpy().astype('float32'))")
            return made_inside(integer(int(x)))
        if kind >= 0 and not is_float(<Dtype> kind):
            return wrap_array(np.asarray(x).astype(dtype_name(<Dtype> kind)))
        return made_inside(scalar(float(x), <Dtype> kind if kind >= 0 else FLOAT32))
    if isinstance(x, np.ndarray):
        return wrap_array(x)
    if isinstance(x, (list, tuple)):
        return tensor(x)
    if hasattr(x, "__array__"):
        return wrap_array(np.asarray(x))
    _raise("DtypeError", f"{gate}: an argument is not a tensor", f"{type(x).__name__}",
           "a Tensor, a NumPy array, a number or a list of numbers", "convert it: fb.tensor(x)")


cdef tuple as_floats(Gate gate, tuple args):
    """Arguments as floating tensors of one dtype."""
    cdef int kind = -1
    cdef bint ready = True, numbers = True
    cdef Tensor x
    for arg in args:
        if isinstance(arg, Tensor):
            x = <Tensor> arg
            if x.weak:
                return weak_floats(gate, args)
            if kind < 0:
                kind = x.kind
            numbers = numbers and <int> x.kind == kind
        else:
            ready = False
            numbers = numbers and (type(arg) is float or type(arg) is int)
    if numbers and kind >= 0 and is_float(<Dtype> kind):
        return args if ready else tuple(
            [arg if isinstance(arg, Tensor) else made_inside(scalar(float(arg), <Dtype> kind)) for arg in args])
    return mixed(gate, args)


cdef tuple weak_floats(Gate gate, tuple args):
    """as_floats where one is a recorded Python number: it takes the dtype that it meets.

    Among numbers alone it is float32, as a number that is given to a gate is. But operators of
    numbers are Python's: in float64, and a number is what comes of them.
    """
    cdef list xs = [arg for arg in args if not is_weak(arg) and not (isinstance(arg, Tensor) and (<Tensor> arg).weak)]
    cdef int kind = (<Tensor> as_floats(gate, tuple(xs))[0]).kind if xs else -1
    cdef bint number = kind < 0 and as_python()
    cdef Tensor x
    if kind < 0:
        kind = FLOAT64 if number else FLOAT32
    xs = []
    for arg in args:
        x = as_tensor(gate.name, arg, kind)
        if x.weak:
            x = number_as(x, <Dtype> kind)
            if x.weak and not number:
                x = x.detach()    # what it is among tensors: one of them
        elif not isinstance(arg, Tensor):
            x.weak = number
        xs.append(x)
    return tuple(xs)


cdef Tensor number_as(Tensor x, Dtype kind):
    """A recorded number, float64 or the bool of a comparison, in a floating dtype."""
    if x.kind == BOOL:
        x = CONVERSIONS[1](x)
        x.weak = True
    return CONVERSIONS[0](x) if kind == FLOAT32 else x


cdef tuple mixed(Gate gate, tuple args):
    """as_floats where there is more to convert, or something to refuse."""
    cdef list tensors = []
    cdef Tensor x
    cdef int found = -1
    for arg in args:
        if not is_weak(arg):
            x = as_tensor(gate.name, arg, -1)
            if not is_float(x.kind):
                _raise("DtypeError", f"{gate.name}: not a gate for {dtype_name(x.kind)} tensors",
                       f"dtype {dtype_name(x.kind)}, shape {x.shape}", "float32 or float64",
                       "make numbers of it: fb.where(x, 1.0, 0.0)" if x.kind == BOOL
                       else "convert it: fb.tensor(x.numpy(), dtype='float32')")
            if found >= 0 and found != <int> x.kind:
                _raise("DtypeError", f"{gate.name}: float32 and float64 do not mix",
                       " and ".join([dtype_name((<Tensor> as_tensor(gate.name, a, -1)).kind)
                                     for a in args if not is_weak(a)]),
                       "one floating dtype",
                       "make the inputs of one dtype: fb.tensor(a, dtype='float32'), or model.to('float64')")
            found = x.kind
            tensors.append(x)
        else:
            tensors.append(None)
    for k in range(len(args)):
        if tensors[k] is None:
            tensors[k] = as_tensor(gate.name, args[k], found)
    return tuple(tensors)


cdef tuple as_comparable(Gate gate, tuple args):
    """Arguments of a comparison: floats of one dtype, or integers and bools as int64."""
    cdef Tensor x
    cdef bint whole = True
    for arg in args:
        if not is_weak(arg):
            x = as_tensor(gate.name, arg, -1)
            whole = whole and not is_float(x.kind)
    if not whole:
        return as_floats(gate, args)
    return tuple([to_int64(as_tensor(gate.name, arg, INT64)) for arg in args])


cdef int broadcast(Gate gate, tuple xs, Py_ssize_t* dims) except -1:
    """The shape that all xs broadcast to; its rank is returned."""
    cdef int rank = 0, d, shift
    cdef Tensor x
    for x in xs:
        if x.rank > rank:
            rank = x.rank
    for d in range(rank):
        dims[d] = 1
    for x in xs:
        shift = rank - x.rank
        for d in range(x.rank):
            if dims[shift + d] == 1:
                dims[shift + d] = x.dims[d]
            elif x.dims[d] != 1 and x.dims[d] != dims[shift + d]:
                _raise("ShapeError", f"{gate.name}: the shapes do not broadcast",
                       " and ".join([str(x.shape) for x in xs]),
                       "sizes that are equal or 1, counted from the last dimension",
                       "reshape one of them, for example with expand_dims")
    return rank


cpdef Py_ssize_t one_axis(str gate, object axis, int rank) except -1:
    """An axis as a number from 0, checked."""
    cdef Py_ssize_t at
    try:
        at = operator.index(axis)
    except TypeError:
        raise TypeError(f"{gate}: axis is an integer, not {axis!r}") from None
    if at < -rank or at >= rank:
        _raise("ShapeError", f"{gate}: there is no such axis", f"axis {axis} of {rank} dimensions",
               f"{-rank} to {rank - 1}" if rank else "no axis: the tensor is 0-d",
               "count the axes from 0, or from -1 at the end")
    return at + rank if at < 0 else at


cdef bint walkable(Tensor x) noexcept:
    """Whether the product's kernel can walk x: along rows or columns, element by element."""
    cdef int d
    for d in range(x.rank - 2, x.rank):
        if x.dims[d] == 1 or x.steps[d] == item_size(x.kind):
            return True
    return False


cdef list COPIES = []    # the gate that copies: a row of fastbp.gates, as all are
cdef list CONVERSIONS = []    # the gates that make float32 of float64, and float64 of bool


def set_engine_gates(copy, narrow, count):
    """The rows by which operands are made fit: copied where a kernel can't walk them, recorded numbers converted."""
    COPIES[:] = [copy]
    CONVERSIONS[:] = [narrow, count]


cdef Tensor zero_of(Dtype kind):
    """0 of any dtype, 0-d."""
    cdef Tensor y = new_tensor(0, NULL, kind)
    memset(y.data, 0, item_size(kind))
    return y


cdef Tensor copy_of(Tensor x):
    cdef Tensor y = new_tensor(x.rank, x.dims, x.kind)
    lower_copy(now, y, x)
    return y


cdef class Gate:
    """One gate: `y = gate(*inputs, **parameters)`, forward and backward.

    name: how listings call it. formula: what it computes, one line. vjp: for each input a
    function `(dy, y, *inputs, **parameters) -> dx` written in gates, or None where there is no
    gradient. Gates are made by the decorators of `fastbp.gates.row`.
    """
    cdef readonly str name
    cdef readonly str formula
    cdef readonly tuple vjp
    cdef readonly tuple inputs
    cdef readonly dict constants     # parameters that the kernel reads, in its order
    cdef readonly str form
    cdef readonly bint differentiable
    cdef object rule
    cdef Form loop
    cdef int result                  # -1: the dtype of the inputs
    cdef bint compares               # integers are welcome too
    cdef int first                   # inputs before this one are not floats of the common dtype
    cdef bint any_dtype
    cdef readonly str kernel         # its name, or None
    cdef readonly bint averages      # a reduction that divides by the number of elements
    cdef bint of_none                # a reduction that has a value for no elements
    cdef readonly bint variadic      # any number of inputs: the vjp is told `which`
    cdef void* kernels[3]            # for float32, float64, int64
    cdef dict __dict__

    def __init__(self, str name, str formula, *, str form, inputs, vjp, kernel=None, rule=None, constants=None,
                 result=None, bint compares=False, int first=0, bint any_dtype=False, bint averages=False,
                 bint of_none=True):
        self.name = name
        self.formula = formula
        self.form = form
        self.loop = FORMS[form]
        self.inputs = tuple(inputs)
        self.vjp = tuple(vjp)
        self.differentiable = any([f is not None for f in self.vjp])
        self.rule = rule
        self.constants = constants or {}
        self.result = {None: -1, "bool": BOOL, "int64": INT64, "float32": FLOAT32, "float64": FLOAT64}[result]
        self.compares = compares
        self.first = first
        self.variadic = self.loop == JOIN or self.loop == CUSTOM
        self.any_dtype = any_dtype
        self.averages = averages
        self.kernel = kernel
        self.of_none = of_none
        self.operator = self.parts = self.template = None    # a row's, where it has them
        for k, dtype in enumerate(("float32", "float64", "int64")):
            self.kernels[k] = <void*> <size_t> TABLE[dtype].get(kernel, 0)
        if kernel is not None and self.kernels[0] == NULL and self.kernels[2] == NULL:
            raise ValueError(f"gate {name}: there is no kernel {kernel!r}")
        if len(self.constants) > FB_CONSTANTS:
            raise ValueError(f"gate {name}: a kernel reads at most {FB_CONSTANTS} constants")

    def __repr__(self):
        return f"<gate {self.name}: {self.formula}>"

    def __reduce__(self):
        return self.name

    def __get__(self, instance, owner):
        return self if instance is None else bind_method(self, instance)

    def __call__(self, *args, **kwargs):
        if self.loop == ELEMENTWISE:
            if kwargs or len(args) != len(self.inputs):
                args, kwargs = self._bind(args, kwargs)
                return self.map(args, kwargs)
            return self.map(args, self.constants)
        if self.loop == REDUCE or self.loop == REDUCE_ONE:
            return self.folded(args, kwargs)
        if self.loop == PRODUCT:
            return self.multiply(args)
        return self.general(args, kwargs)

    cdef Tensor folded(self, tuple args, dict kwargs):
        """The arguments of a reduction: x, axis=None, keepdims=False."""
        cdef Py_ssize_t n = len(args), named = 0
        axis, keepdims = None, False
        if n > 1:
            axis = args[1]
        elif "axis" in kwargs:
            axis = kwargs["axis"]
            named += 1
        if n > 2:
            keepdims = args[2]
        elif "keepdims" in kwargs:
            keepdims = kwargs["keepdims"]
            named += 1
        if not 1 <= n <= 3 or named != len(kwargs):
            try:
                given = self.__signature__.bind(*args, **kwargs).arguments
            except TypeError as problem:
                raise TypeError(f"{self.name}{self.__signature__}: {problem}") from None
            return self.fold(given["x"], given.get("axis"), given.get("keepdims", False))
        return self.fold(args[0], axis, keepdims)

    def _bind(self, args, kwargs):
        """Inputs and parameters apart, however they were given."""
        try:
            bound = self.__signature__.bind(*args, **kwargs)
        except TypeError as problem:
            raise TypeError(f"{self.name}{self.__signature__}: {problem}") from None
        given = bound.arguments
        return (tuple([given[name] for name in self.inputs]),
                {name: float(given.get(name, default)) for name, default in self.constants.items()})

    cdef Tensor map(self, tuple args, dict params):
        """An elementwise gate: the output has the shape that inputs broadcast to, and lies as the first that has it."""
        cdef tuple xs
        cdef Tensor x, y
        cdef Py_ssize_t dims[MAX_DIMS]
        cdef int rank, d, k
        cdef bint same = False
        if self.compares:
            xs = as_comparable(self, args)
        elif self.first:
            xs = (self.condition(args[0]),) + as_floats(self, args[1:])
        else:
            xs = as_floats(self, args)
        rank = broadcast(self, xs, dims)
        for k in range(self.first, len(xs)):
            x = <Tensor> xs[k]
            same = x.rank == rank and (x.contiguous or not x._repeats())
            for d in range(rank if same else 0):
                same = same and x.dims[d] == dims[d]
            if same:
                break
        y = blank_like(x, self.kind_of(x)) if same and not x.contiguous else blank(rank, dims, self.kind_of(x))
        return self.apply(y, xs, params)

    cdef Dtype kind_of(self, Tensor x):
        """The output's dtype."""
        return <Dtype> self.result if self.result >= 0 else x.kind

    cdef Tensor apply(self, Tensor y, tuple xs, dict params):
        """Compute y, which has no memory yet, and put the stage on the tape; or record the stage."""
        cdef Tensor x
        if gate_mode() != RUNS:
            return self.apply_watched(y, xs, params)
        for x in xs:
            if x.abstract:
                refuse_leaked(x)
        give_memory(y)
        self.lower(now, y, xs, params)
        return self.record(y, xs, params)

    cdef Tensor record(self, Tensor y, tuple xs, dict params):
        cdef Tensor x
        if self.differentiable and grad_enabled():
            for x in xs:
                if x.needs_grad:
                    set_stage(y, self, xs, params)
                    break
        return y

    def lower_to(self, Executor to, tuple outputs, tuple inputs, dict params):
        """Hand the instructions of a recorded stage to a program."""
        if self.loop != VIEW:
            self.lower(to, <Tensor> outputs[0], inputs, params)

    cdef int lower(self, Executor to, Tensor y, tuple xs, dict params) except -1:
        """Hand the instructions that compute y = gate(*xs, **params) to an executor."""
        cdef Tensor x = <Tensor> xs[self.first if self.loop == ELEMENTWISE else 0]
        cdef void* kernel = self.kernels[<int> x.kind if x.kind <= FLOAT64 else 2]
        cdef void* operands[FB_OPERANDS]
        cdef double c[FB_CONSTANTS]
        cdef int n = 1, k = 0
        if self.loop == ELEMENTWISE or self.loop == ROWS or self.loop == RANDOM or self.loop == SCAN:
            operands[0] = <void*> y
            for item in xs:
                operands[n] = <void*> item
                n += 1
            for name in self.constants:
                c[k] = params[name]
                k += 1
            for k in range(k, FB_CONSTANTS):
                c[k] = 0
            if self.loop == ROWS:
                return lower_rows(to, kernel, 1, n, operands, c)
            if self.loop == SCAN:
                return lower_scan(to, kernel, n, operands, params["steps"], c)
            if self.loop == RANDOM:    # the last is a stream's key and count
                return lower_elementwise(to, kernel, 1, 1, n, operands, c, True)
            return lower_elementwise(to, kernel, 1, 0, n, operands, c if self.constants else NULL)
        if self.loop == REDUCE or self.loop == REDUCE_ONE:
            return lower_reduce(to, kernel, y, x, params["axes"], self.averages)
        if self.loop == MOMENT:    # of x, m or of x, z, m
            return lower_reduce(to, kernel, y, x, params["axes"], False, <Tensor> xs[len(xs) - 2], <Tensor> xs[-1])
        if self.loop == COMBINE:
            return lower_columns(to, kernel, y, x, 1)
        if self.loop == PRODUCT:
            return lower_product(to, kernel, y, x, <Tensor> xs[1], xs[2] if len(xs) > 2 else None)
        if self.loop == COPY:
            return lower_copy(to, y, x)
        if self.loop == CONVERT:
            operands[0] = <void*> y
            operands[1] = <void*> x
            return lower_elementwise(to, self.kernels[2], 1, 0, 2, operands, NULL)
        if self.loop == TAKE:
            return lower_take(to, y, x, xs[1:], params["axis"])
        if self.loop == SCATTER:
            return lower_scatter(to, kernel, y, x, xs[1:], params["axis"])
        if self.loop == JOIN:
            return self.join(to, y, xs, params["axis"])
        if self.loop == WINDOWS:
            return lower_windows(to, kernel, y, xs, params["window"].space, params["window"].numbers, params["units"])
        return self.place(to, y, x, params)

    cdef Tensor condition(self, object x):
        cdef Tensor t = as_tensor(self.name, np.asarray(x) if is_weak(x) else x, -1)
        if t.kind != BOOL:
            _raise("DtypeError", f"{self.name}: the condition is not bool", f"dtype {dtype_name(t.kind)}", "bool",
                   "compare first: fb.where(x > 0, ...)")
        return t

    cdef Tensor fold(self, object arg, object axis, bint keepdims):
        """A reduction over `axis`: None, a number or, but for REDUCE_ONE, a tuple."""
        cdef tuple xs = as_floats(self, (arg,))
        cdef Tensor x = <Tensor> xs[0]
        cdef Py_ssize_t dims[MAX_DIMS]
        cdef bint reduced[MAX_DIMS]
        cdef int rank = 0, d
        cdef Py_ssize_t n = 1
        cdef list axes = []
        self.mark(axis, x.rank, reduced)
        for d in range(x.rank):
            if reduced[d]:
                axes.append(d)
                n *= x.dims[d]
            if keepdims or not reduced[d]:
                dims[rank] = 1 if reduced[d] else x.dims[d]
                rank += 1
        if n == 0 and not self.of_none:
            _raise("ShapeError", f"{self.name}: nothing to choose from", f"shape {x.shape}, axis {axis}",
                   "at least one element along the axis", "leave empty arrays out")
        return self.apply(blank(rank, dims, self.kind_of(x)), xs, {"axes": tuple(axes), "keepdims": keepdims})

    cdef int mark(self, object axis, int rank, bint* reduced) except -1:
        """Which dimensions `axis` names."""
        cdef int d
        cdef Py_ssize_t at
        for d in range(rank):
            reduced[d] = axis is None
        if axis is None:
            return 0
        if isinstance(axis, (tuple, list)):
            if self.loop == REDUCE_ONE:
                raise TypeError(f"{self.name}: axis is an integer or None, not {axis!r}")
        else:
            axis = (axis,)
        for a in axis:
            at = one_axis(self.name, a, rank)
            if reduced[at]:
                _raise("ShapeError", f"{self.name}: an axis comes twice", f"axis={axis}", "each axis once",
                       "leave one out")
            reduced[at] = True
        return 0

    cdef Tensor multiply(self, tuple args):
        """A matrix product of two tensors of at least two dimensions; the leading ones broadcast."""
        cdef tuple xs = as_floats(self, args)
        cdef Tensor x = <Tensor> xs[0], w = <Tensor> xs[1]
        cdef Py_ssize_t dims[MAX_DIMS]
        cdef Py_ssize_t a, b
        cdef int rank = max(x.rank, w.rank), d
        for d in range(rank - 2):
            a = x.dims[d - rank + x.rank] if d >= rank - x.rank else 1
            b = w.dims[d - rank + w.rank] if d >= rank - w.rank else 1
            if a != b and a != 1 and b != 1:
                _raise("ShapeError", f"{self.name}: the leading dimensions do not broadcast",
                       f"{x.shape} @ {w.shape}", "leading sizes that are equal or 1", "reshape one of them")
            dims[d] = a if b == 1 else b
        dims[rank - 2] = x.dims[x.rank - 2]
        dims[rank - 1] = w.dims[w.rank - 1]
        if not (walkable(x) and walkable(w)):
            xs = (x if walkable(x) else COPIES[0](x), w if walkable(w) else COPIES[0](w))
        return self.apply(blank(rank, dims, x.kind), xs, NOTHING)

    cdef Tensor general(self, tuple args, dict kwargs):
        """A gate with a rule: the rule gives the output's shape and the parameters."""
        cdef tuple xs
        cdef Tensor x, y
        cdef Py_ssize_t dims[MAX_DIMS]
        cdef Py_ssize_t steps[MAX_DIMS]
        cdef int n = len(self.inputs), k, rank
        cdef dict params
        if self.loop == JOIN:
            if not args:
                bound = self.__signature__.bind(*args, **kwargs)
                args, kwargs = bound.args, bound.kwargs
            xs = tuple(args[0])
            args = (None,) + args[1:]
            n = 1
        elif self.loop == TAKE or self.loop == SCATTER or self.loop == CUSTOM:
            n = len(args)
            xs = args
        else:
            if len(args) < n:
                bound = self.__signature__.bind(*args, **kwargs)
                args, kwargs = bound.args, bound.kwargs
            xs = args[:n]
        if self.loop == TAKE:
            xs = self.movable(xs[:1]) + xs[1:]
        elif self.loop == SCATTER:
            xs = as_floats(self, xs[:1]) + xs[1:]
        elif self.any_dtype:
            xs = self.movable(xs)
        elif self.first:
            xs = as_floats(self, xs[:self.first]) + xs[self.first:]
        else:
            xs = as_floats(self, xs)
        for k in range(len(xs)):
            refuse_leaked(<Tensor> xs[k])
        if self.loop == CUSTOM:
            if kwargs or not args:
                raise TypeError(f"{self.name}: a gate of NumPy functions takes its inputs by place, one at least")
            y = self.record(self.recorded(*xs) if recording() else wrap_array(self.rule(*xs)), xs, NOTHING)
            check(self, y, xs)
            return y
        if self.loop == JOIN:
            if not xs:
                raise ValueError(f"{self.name}: no tensors")
            plan = self.rule(xs, *args[n:], **kwargs)
        else:
            plan = self.rule(*xs, *args[n:], **kwargs)
        x = <Tensor> xs[0]
        params = plan[-1]
        rank = 0
        for size in plan[0]:
            if rank == MAX_DIMS:
                _raise("ShapeError", f"{self.name}: too many dimensions", f"shape {plan[0]}",
                       f"at most {MAX_DIMS} dimensions", "use fewer")
            dims[rank] = size
            rank += 1
        if self.loop == VIEW:
            refuse_leaked(x)
            looked_at(x)
            k = rank - 1
            if plan[1] is None:     # in C order, as x is
                if rank:
                    steps[k] = item_size(x.kind)
                while k > 0:
                    steps[k - 1] = steps[k] * dims[k]
                    k -= 1
            else:
                k = 0
                for step in plan[1]:
                    steps[k] = step
                    k += 1
            y = self.record(new_view(x, rank, dims, steps, x.data + <Py_ssize_t> plan[2]), xs, params)
            if y.abstract and y.stage is None:    # listings show views that need no gradient too
                set_stage(y, self, xs, params)
                y.needs_grad = False
            if y.abstract:
                recorder().add(y)
            return y
        if self.loop in (ROWS, SCATTER, RANDOM, WINDOWS, SCAN):
            for item in xs:
                if not (<Tensor> item).contiguous:
                    raise SystemError(f"{self.name}: its kernel walks contiguous memory; the row lacks contiguous()")
        return self.apply(blank(rank, dims, self.kind_of(x)), xs, params)

    cdef tuple movable(self, tuple args):
        """Tensors of any one dtype."""
        if len(args) == 1 and isinstance(args[0], Tensor) and not (<Tensor> args[0]).weak:
            return args
        cdef list xs = []
        cdef Tensor x
        cdef int kind = -1
        args = tuple([number_as(<Tensor> arg, FLOAT32) if isinstance(arg, Tensor) and (<Tensor> arg).weak
                      and self.loop != CONVERT else arg for arg in args])
        for arg in args:
            if not is_weak(arg) and kind < 0:
                kind = as_tensor(self.name, arg, -1).kind
        for arg in args:
            x = as_tensor(self.name, arg, kind)
            if kind >= 0 and <int> x.kind != kind:
                _raise("DtypeError", f"{self.name}: the dtypes differ",
                       " and ".join([dtype_name((<Tensor> as_tensor(self.name, a, kind)).kind) for a in args]),
                       "one dtype", "make the inputs of one dtype: fb.tensor(a, dtype=...)")
            xs.append(x)
        return tuple(xs)

    cdef int join(self, Executor to, Tensor y, tuple xs, int axis) except -1:
        """Each input is copied to its part of y, which has the axis too (concatenate) or gains it (stack)."""
        cdef Tensor x
        cdef char* at = y.data
        cdef Py_ssize_t steps[MAX_DIMS]
        cdef int d, k
        cdef bint new = y.rank > (<Tensor> xs[0]).rank
        k = 0
        for d in range(y.rank):
            if not (new and d == axis):
                steps[k] = y.steps[d]
                k += 1
        for x in xs:
            lower_copy(to, new_view(y, x.rank, x.dims, steps, at), x)
            at += y.steps[axis] * (1 if new else x.dims[axis])
        return 0

    cdef int place(self, Executor to, Tensor y, Tensor x, dict params) except -1:
        """y = 0, then x is copied to the part of y that the parameters name."""
        cdef Py_ssize_t steps[MAX_DIMS]
        cdef int d = 0
        lower_copy(to, y, zero_of(y.kind))
        for step in params["strides"]:
            steps[d] = step
            d += 1
        lower_copy(to, new_view(y, x.rank, x.dims, steps, y.data + <Py_ssize_t> params["offset"]), x)
        return 0

    cdef Tensor apply_watched(self, Tensor y, tuple xs, dict params):
        """`apply` where the stage goes to the recorder, or what it gives is checked."""
        cdef Tensor x
        cdef bint follows = False
        if recording():
            make_abstract(y)
            if self.differentiable and grad_enabled():
                for x in xs:
                    follows = follows or x.needs_grad
            set_stage(y, self, xs, params)
            y.needs_grad = follows
            y.weak = self.loop == ELEMENTWISE and as_python()
            for x in xs:
                y.weak = y.weak and x.weak
            recorder().add(y)
            return y
        for x in xs:
            if x.abstract:
                refuse_leaked(x)
        give_memory(y)
        self.lower(now, y, xs, params)
        self.record(y, xs, params)
        check(self, y, xs)
        return y


cdef check(gate, Tensor y, tuple inputs):
    """What a gate or an update gave is looked at, where `detect_anomaly` asks for it."""
    if gate_mode() == CHECKS:
        OPERATORS["check"](gate, y, inputs)


cdef int64_t read_int(const char* p, Dtype kind) noexcept nogil:
    """An integer or bool of any width."""
    if kind == INT64 or kind == UINT64:
        return (<const int64_t*> p)[0]
    if kind == UINT8 or kind == BOOL:
        return (<const uint8_t*> p)[0]
    if kind == INT32:
        return (<const int32_t*> p)[0]
    if kind == INT8:
        return (<const int8_t*> p)[0]
    if kind == INT16:
        return (<const int16_t*> p)[0]
    if kind == UINT16:
        return (<const uint16_t*> p)[0]
    return (<const uint32_t*> p)[0]


cdef Tensor to_int64(Tensor x):
    """An integer or bool tensor as contiguous int64."""
    cdef Tensor y
    cdef Py_ssize_t n
    if x.abstract:
        if x.kind != INT64:
            raise staging_error(f"a recorded {dtype_name(x.kind)} tensor can't be compared",
                                "give the staged function int64: y.astype('int64')")
        return x
    if recording() and not (x.contiguous and x.kind == INT64):
        watch(x.numpy())
    if x.kind == UINT64 and x.count and x.numpy().max() > 2**63 - 1:
        _raise("DtypeError", "uint64 beyond int64 can't be compared", str(x.numpy().max()), "at most 2**63 - 1",
               "compare in NumPy")
    if not x.contiguous:
        x = copy_of(x)
    if x.kind == INT64:
        return x
    y = new_tensor(x.rank, x.dims, INT64)
    for n in range(x.count):
        (<int64_t*> y.data)[n] = read_int(x.data + n * item_size(x.kind), x.kind)
    return y


def as_index(Tensor x, Py_ssize_t size, str gate, str what, bint wrap=True, ignored=None, fill=None,
             Tensor out=None):
    """Labels or indices as contiguous int64 in [0, size), checked; negative ones count from the end.

    With wrap=False negative ones are errors, but for `ignored`, which become `fill`, or -1.
    Returned are the indices (in `out` if it is given), and whether one of them is ignored.
    IndexError names the place and the value; DtypeError: x is not an integer tensor.
    """
    cdef Py_ssize_t n, step = item_size(x.kind)
    cdef int64_t value, ignore = -1 if ignored is None else ignored, instead = -1 if fill is None else fill
    cdef bint may_ignore = ignored is not None, found = False
    if is_float(x.kind) or x.kind == BOOL:
        _raise("DtypeError", f"{gate}: {what} are integers", f"dtype {dtype_name(x.kind)}, shape {x.shape}",
               "an integer dtype", "convert them: np.asarray(y).astype('int64')")
    refuse_leaked(x)
    if recording():
        return recorder().index(x, (size, gate, what, wrap, ignored, fill))
    if not x.contiguous:
        x = copy_of(x)
    if out is None:
        out = new_tensor(x.rank, x.dims, INT64)
    for n in range(x.count):
        value = read_int(x.data + n * step, x.kind)
        if may_ignore and value == ignore and not (x.kind == UINT64 and value < 0):
            found = True
            value = instead
        else:
            # uint64 beyond int64 becomes negative, and is refused as that.
            if wrap and value < 0 and x.kind != UINT64:
                value += size
            if value < 0 or value >= size:
                _out_of_range(x, n, read_int(x.data + n * step, x.kind), size, gate, what, wrap)
        (<int64_t*> out.data)[n] = value
    return out, found


cdef _out_of_range(Tensor x, Py_ssize_t n, int64_t value, Py_ssize_t size, str gate, str what, bint wrap):
    from fastbp import errors
    place = np.unravel_index(n, x.shape) if x.rank else ()
    where = f"row {place[0]}" if len(place) == 1 else f"place {tuple(int(p) for p in place)}"
    low = -size if wrap else 0
    raise errors.error(
        IndexError, f"{gate}: one of the {what} is out of range", got=f"{value} at {where}",
        expected=f"{low} to {size - 1}",
        fix="check them: they count from 0" if not wrap else "check the index against the size of that axis")


cdef class Update:
    """A stage that changes memory in place: kernel(outputs..., inputs..., hyperparameters).

    The outputs are read too; the kernel's constant says how many there are. `hyper` holds float64
    hyperparameters, handed over as they are: one vector; or, where a clock changes the
    hyperparameters themselves and nothing else, many.
    """
    cdef readonly str name      # the kernel's
    cdef readonly tuple outputs
    cdef readonly tuple inputs
    cdef readonly tuple hyper
    form = "update"

    def __init__(self, str name, tuple outputs, tuple inputs, tuple hyper):
        self.name = name
        self.outputs = outputs
        self.inputs = inputs
        self.hyper = hyper

    def __repr__(self):
        return f"<{self.name} of {', '.join([str(x.shape) for x in self.outputs]) or 'its clock'}>"

    def lower_to(self, Executor to, tuple outputs, tuple inputs, params=None):
        """Hand the instruction to an executor."""
        cdef void* operands[FB_OPERANDS]
        cdef double c[FB_CONSTANTS]
        cdef int n = 0
        cdef Tensor w
        if not outputs:
            lower_state(to, <void*> <size_t> TABLE["int64"][self.name], self.hyper)
            return
        for item in (*outputs, *inputs, *self.hyper):
            operands[n] = <void*> item
            n += 1
        w = <Tensor> outputs[0]
        memset(c, 0, sizeof(c))
        c[0] = len(outputs)
        lower_elementwise(to, <void*> <size_t> TABLE[dtype_name(w.kind)][self.name], len(outputs), 1, n,
                          operands, c)

    cdef run(self):
        """Now; or, where a function is recorded, at each replay."""
        cdef Tensor x
        if recording():
            recorder().add(self)
        else:
            self.lower_to(now, self.outputs, self.inputs)
        for x in self.outputs:
            x._changed()    # while recording too: a backward after it is refused as it is gate by gate


class Joint:
    """Two gates of rows in one sweep; it is an attribute of the second one's row.

    first_inputs(*those of the second): what the first one's inputs begin with. Outputs are the first one's and the
    second one's, inputs those of which there are more.
    """
    form = "joint"

    def __init__(self, Gate first, str kernel, first_inputs):
        self.first, self.kernel, self.name, self.first_inputs = first, kernel, kernel, first_inputs

    def lower_to(self, Executor to, tuple outputs, tuple inputs, params):
        """Hand the instruction to a program."""
        cdef void* operands[FB_OPERANDS]
        cdef double c[FB_CONSTANTS]
        cdef int n = 0, k = 0
        for item in (*outputs, *inputs):
            operands[n] = <void*> item
            n += 1
        for name in (<Gate> self.first).constants:
            c[k] = params[name]
            k += 1
        for k in range(k, FB_CONSTANTS):
            c[k] = 0
        lower_rows(to, <void*> <size_t> TABLE[dtype_name((<Tensor> outputs[0]).kind)][self.kernel], len(outputs), n,
                   operands, c)


class Blocks:
    """The first step of a reduction over all of x: partial[b] = the fold of block b of x, 1,024 elements each."""
    form = "blocks"

    def __init__(self, Gate gate):
        self.gate, self.name = gate, f"{gate.name}_blocks"

    def lower_to(self, Executor to, tuple outputs, tuple inputs, params):
        """Hand the instruction to a program."""
        cdef Tensor x = <Tensor> inputs[0]
        lower_fold(to, <void*> <size_t> TABLE[dtype_name(x.kind)][self.gate.kernel + "_blocks"],
                   <Tensor> outputs[0], x, True, 1)


class Columns:
    """The first step of a sum over the rows of x: lanes (quarters, 16, n), by 256 rows each."""
    form = "columns"

    def __init__(self, Gate gate):
        self.gate, self.name = gate, f"{gate.name}_columns"

    def lower_to(self, Executor to, tuple outputs, tuple inputs, params):
        """Hand the instruction to a program."""
        cdef Tensor x = <Tensor> inputs[0]
        lower_columns(to, <void*> <size_t> TABLE[dtype_name(x.kind)]["sum_columns"], <Tensor> outputs[0], x, 0)


class Combine:
    """The second step: y = the fold of the blocks' results, or of lanes of columns, divided by `count`."""
    form = "combine"

    def __init__(self, Gate gate, count):
        self.gate, self.name, self.count = gate, gate.name, count

    def lower_to(self, Executor to, tuple outputs, tuple inputs, params):
        """Hand the instruction to a program."""
        cdef Tensor x = <Tensor> inputs[0]
        kernels = TABLE[dtype_name(x.kind)]
        if x.rank == 3:
            lower_columns(to, <void*> <size_t> kernels["sum_of_lanes"], <Tensor> outputs[0], x, self.count)
        else:
            lower_fold(to, <void*> <size_t> kernels[self.gate.kernel + "_combine"], <Tensor> outputs[0], x, False,
                       self.count)


class Assign:
    """A recorded stage y = x, broadcast, where y is memory that outlives the function."""
    form = "assign"
    name = "copy_"

    def __init__(self, y, x):
        self.outputs, self.inputs = (y,), (x,)

    def lower_to(self, Executor to, tuple outputs, tuple inputs, params):
        """Hand the instruction to a program."""
        lower_copy(to, <Tensor> outputs[0], <Tensor> inputs[0])


class Draw:
    """A stage that takes the next key of a counter-based stream: key = (the stream's own, its count), which goes on."""
    form = "draw"
    name = "draw"

    def __init__(self, Tensor key, Tensor stream):
        self.outputs, self.inputs = (key, stream), (stream,)

    def lower_to(self, Executor to, tuple outputs, tuple inputs, params):
        """Hand the instruction to an executor."""
        lower_state(to, <void*> <size_t> TABLE["int64"]["draw"], outputs)


class Call:
    """A recorded stage of Python: the arrays that function(*input arrays) returns become the outputs.

    effects: it runs though nobody needs the outputs, as a draw of random numbers does.
    """
    form = "call"

    def __init__(self, name, function, outputs, inputs, effects=False):
        self.name, self.function, self.effects = name, function, effects
        self.outputs, self.inputs = tuple(outputs), tuple(inputs)

    def lower_to(self, to, tuple outputs, tuple inputs, params):
        """Put the call at its place in a program."""
        to.call(self.function, outputs, inputs)


def update(str kernel, tuple states, Tensor gradient, Tensor hyper):
    """An optimizer's update of `states`, in place; `hyper` holds float64 hyperparameters."""
    cdef Tensor w = <Tensor> states[0]
    cdef Tensor x
    for x in (*states, gradient):
        if x.kind != w.kind or x.shape != w.shape or x is not gradient and (x.read_only or x._repeats()):
            raise ValueError(f"{kernel}: {dtype_name(x.kind)} {x.shape} can't be part of an update of "
                             f"{dtype_name(w.kind)} {w.shape}, or can't be written")
    done = Update(kernel, states, (gradient,), (hyper,))
    done.run()
    check(done, w, done.inputs)


def tick_state(str kernel, list hypers):
    """What an optimizer does once a step to the hyperparameters of its parameters, by a kernel of its own."""
    for k in range(0, len(hypers), FB_OPERANDS):
        Update(kernel, (), (), tuple(hypers[k:k + FB_OPERANDS])).run()


def draw(Tensor stream):
    """The next key of a counter-based stream, two int64: its own key and its count, which goes on."""
    cdef Tensor key = blank(1, stream.dims, INT64)
    if recording():
        make_abstract(key)
        recorder().add(Draw(key, stream))
    else:
        give_memory(key)
        Draw(key, stream).lower_to(now, (key, stream), (stream,), None)
    stream._changed()
    return key


def clone(Tensor x):
    """A copy with a memory of its own, laid out as x is; no stage. A recorded tensor is its own copy."""
    cdef Tensor y
    if x.abstract:
        return x
    y = new_like(x, x.kind)
    lower_copy(now, y, x)
    return y


def tensors_of(Gate gate, *args):
    """Arguments as floating tensors of one dtype, with the gate's errors."""
    return as_floats(gate, args)
