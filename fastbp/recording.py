"""Recording: what a function did on tensors without values.

Gates, optimizers and modules tell the recorder of their thread what they would do. Nothing is
computed, and what recording has to make (an optimizer's state) can be taken back.
"""
import numpy as np

from fastbp.errors import DtypeError, ShapeError, StagingError, error
from fastbp.gates.shape import copy, memory_order, narrow, widen
from fastbp_ext.gate import Assign, Call, as_index
from fastbp_ext.tensor import (
    OPERATORS,
    Tensor,
    abstract_tensor,
    from_numpy,
    get_recorder,
    tensor,
    view_of,
    with_recorder,
)


def _parts(module):
    """ids of a module's parameters and of those of all modules within, and of these."""
    return [id(x) for m in module.modules() for x in (m, *m.parameters(recurse=False))]


class Recording:
    """The stages of one run of a function, and what they need and leave behind."""

    def __init__(self):
        self.stages = []          # tensors that gates would make; Update, Assign, Call
        self.inputs = []          # recorded tensors whose memory each call gives
        self.results = []         # recorded tensors whose memory each call makes
        self.indices = []         # (source, recorded int64 tensor, how to check, whether some are ignored)
        self.first = {}           # id of an input: the first call's tensor, while the function is recorded
        self.looked = {}          # id: a tensor of others of which the function makes a view
        self.made = {}            # id: a tensor that the function makes anew at each call
        self.grads = {}           # id of a leaf: (leaf, its gradient now)
        self.entry_grads = []     # (leaf, the recorded tensor that stands for its gradient at entry)
        self.grad_guards = []     # (leaf, whether it had a gradient at entry)
        self.accumulates = set()  # ids of arguments whose gradient is added to
        self.guards = []          # (what, a call, what it returned): a program holds while it returns the same
        self.switched = {}        # id: a module whose mode the function sets
        self.parts_known = set()  # ids of modules whose layers and parameters are guarded
        self.watched = []         # (array, a copy): what was read at recording, and has to be the same at each call
        self.undo = []            # calls that take back what recording made
        self.updated = {}         # id: a parameter or state that an optimizer changes
        self.written = {}         # id: a tensor whose memory a stage changes
        self.undoing = None       # the forward stage whose vjp is being recorded
        self.undoes = {}          # id of a backward stage: the forward stage that it undoes
        self.parts = []           # (place, stage undone, dy, its input, the gradient through it, that input's so far)
        self.names = {}           # id: the name of the function's variable
        self.shown = {}           # id of memory's owner: the parameter that the user sees of it
        self.calls = []           # (group, what it returned) for each call of a module

    def add(self, stage):
        """A stage of a gate (its output), an Update, an Assign or a Call."""
        self.stages.append(stage)
        if self.undoing is not None:
            self.undoes[id(stage)] = self.undoing
        form = getattr(stage, "form", None)
        if form == "update":
            for t in stage.outputs:
                if t._abstract:
                    raise error(StagingError, "an optimizer can't update a recorded tensor", got="a result of gates",
                                expected="parameters made before", fix="make parameters outside the staged function")
                self.updated[id(t)] = t
            if any(id(h) in self.made for h in stage.hyper):
                raise error(StagingError, "an optimizer is made inside a staged function", got="one for each call",
                            expected="one that keeps its state from call to call",
                            fix="make the optimizer outside the staged function")
        if form == "draw" and id(stage.inputs[0]._root) in self.made:
            raise error(StagingError, "a stream of random numbers is made inside a staged function",
                        got="one for each call", expected="one that goes on from call to call",
                        fix="make the layer, or the stream, outside the staged function")
        if form in ("update", "assign", "draw"):
            self.written.update((id(t), t) for t in stage.outputs if not t._abstract)

    def part(self, stage, dy, x, dx, total):
        """A part of a gradient: what `stage` gives from dy to the gradient for x, which is `total` then."""
        self.parts.append((len(self.stages), stage, dy, x, dx, total))

    def guard(self, what, call):
        """The recording holds while `call()` returns what it returns now; whoever changes that calls `touch`."""
        self.guards.append((what, call, call()))

    def guard_mode(self, module):
        """The recording holds for the present mode of a module that is met, or left in it: a replay sets none."""
        self.guard(f"training of {type(module).__name__}", lambda: module.training)

    def watch(self, array):
        """The recording holds while the array's values are what they are now."""
        self.watched.append((array, array.copy()))

    def met(self, module):
        """A module was called: the recording holds for its mode and its parts, and its parameters have names."""
        for name, p in (*module.named_parameters(), *module.named_buffers()):
            self.names.setdefault(id(p), name)
            self.names.setdefault(id(p._root), name)
            self.shown.setdefault(id(p._root), p)
        if id(module) not in self.switched:
            self.guard_mode(module)
        if id(module) not in self.parts_known:
            self.parts_known.update(map(id, module.modules()))
            self.guard(f"layers and parameters of {type(module).__name__}", lambda: _parts(module))
        if module._buffers:
            self.guard(f"buffers of {type(module).__name__}", lambda: [id(b) for _, b in module._own_buffers()])

    def new_input(self, given, **options):
        """A recorded tensor for an argument; `given` is the first call's."""
        t = abstract_tensor(given.shape, given.dtype, **options)
        self.inputs.append(t)
        self.first[id(t)] = given
        return t

    def index(self, x, check):
        """`as_index` while recording: the check is made at each call, before the first stage."""
        given = x
        if not x._abstract and any(np.may_share_memory(x.numpy(), t.numpy()) for t in self.written.values()):
            raise error(StagingError, "labels and indices are checked before the first stage",
                        got="indices that the function changes before it uses them", expected="indices that stay",
                        fix="give the new ones as an argument")
        if x._abstract:
            if id(x._root) not in self.first:
                raise error(StagingError, "labels and indices are checked before the first stage",
                            got="integers that the function computes", expected="an argument or a captured array",
                            fix="compute them outside the staged function, and give them as an argument")
            given = view_of(self.first[id(x._root)], x.shape, x.strides, x._offset)
        size, gate, what, wrap, ignored, fill = check
        found = with_recorder(None, as_index, given, size, gate, what, wrap, ignored, fill)[1]
        y = abstract_tensor(x.shape, "int64")
        self.inputs.append(y)
        self.indices.append((x, y, check, found))
        return y, found

    def call(self, name, function, outputs, inputs, effects=False):
        """Record a stage of Python; see `Call`."""
        self.add(Call(name, function, outputs, inputs, effects))

    def copied(self, data, dtype, name):
        """`fb.tensor` of a captured array or tensor is a stage, so that changes in place are seen; None: a constant."""
        x = data if isinstance(data, Tensor) else from_numpy(data)
        if x._abstract or id(x._root) in self.made or x.dtype.kind != "f" or dtype not in (None, x.dtype, x.dtype.name):
            return None
        y = copy(x)
        y.name = name
        return y

    def misplaced(self):
        """A tensor that a stage uses and that no stage of this recording made, nor an argument: it leaked in."""
        known = {id(t) for t in self.inputs}
        for stage in self.stages:
            inputs = stage._inputs if isinstance(stage, Tensor) else stage.inputs
            for t in inputs:
                if t._abstract and id(t._root) not in known:
                    return t
            known.update(id(t) for t in ((stage,) if isinstance(stage, Tensor) else stage.outputs))
        return None

    # --- gradients

    def grad_of(self, leaf, actual):
        """leaf.grad as it is at this point of the function; `actual` is the one outside."""
        if id(leaf) not in self.grads:
            if leaf._abstract:      # an argument: what it has at each call is added to afterwards
                self.accumulates.add(id(leaf))
                actual = None
            elif id(leaf) in self.made:
                actual = None
            else:
                self.grad_guards.append((leaf, actual is not None))
                if actual is not None:
                    actual = self._entry_grad(actual)
                    self.entry_grads.append((leaf, actual))
            self.grads[id(leaf)] = leaf, actual
        return self.grads[id(leaf)][1]

    def _entry_grad(self, given):
        """A recorded tensor for a gradient that is there at each call; it lies as the first call's does."""
        order = memory_order(given)
        t = self.new_input(view_of(given, [given.shape[d] for d in order], [given.strides[d] for d in order],
                                   given._offset))
        strides = [t.strides[order.index(d)] for d in range(given.ndim)]
        return view_of(t, given.shape, strides, 0)

    def set_grad(self, leaf, value):
        """leaf.grad = value"""
        self.grads[id(leaf)] = leaf, value


def assign(y, source):
    """Tensor.copy_ while a function is recorded: the values change at each replay."""
    recorder = get_recorder()
    if y._abstract or id(y) in recorder.made or id(y._root) in recorder.made:
        raise error(StagingError, "copy_: only what outlives a staged function can be changed in it",
                    got="a recorded tensor" if y._abstract else "a tensor that the function makes itself",
                    expected="a tensor made before", fix="use the new value itself, or make the tensor outside")
    x = source if isinstance(source, Tensor) else (
        from_numpy(source) if isinstance(source, np.ndarray) else tensor(source, dtype=y.dtype))
    try:
        fits = np.broadcast_shapes(x.shape, y.shape) == y.shape
    except ValueError:
        fits = False
    if not fits:
        raise error(ShapeError, "copy_: the source does not fit", got=x.shape,
                    expected=f"{y.shape}, or a shape that broadcasts to it", fix="reshape the source")
    if x.dtype != y.dtype:
        if x.dtype.kind != "f" or y.dtype.kind != "f":
            raise error(DtypeError, "copy_: a staged function can't convert these", got=f"{x.dtype} to {y.dtype}",
                        expected="one dtype, or float32 and float64", fix="convert the source outside")
        x = narrow(x) if y.dtype == np.float32 else widen(x)
    if not x._abstract and np.may_share_memory(x.numpy(), y.numpy()):
        x = copy(x)
    recorder.add(Assign(y, x))
    y._changed()
    return y


OPERATORS["copy_"] = assign
