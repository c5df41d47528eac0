"""Layers: what in a recorded function is a layer, and the gates that measure it beside the function's own.

A layer is a call of a module that calls no other module. Outside of such modules, and in one that takes several
steps itself, it is a product, an activation, or a gate that joins a parameter to a value; a bias that is added
to what nothing else reads belongs to the layer before it.
"""
import functools

from fastbp.errors import StagingError, error
from fastbp.gates import GATES
from fastbp.gates.arithmetic import abs, square, sub, where
from fastbp.gates.reduction import max, mean, sum
from fastbp.gates.shape import copy, reshape
from fastbp_ext.tensor import Tensor, get_recorder, no_grad

_ACTIVATIONS = {"relu", "sigmoid", "tanh", "leaky_relu", "elu", "softplus", "silu", "gelu_erf", "gelu_tanh"}

# A unit is saturated where its activation is nearly flat: within 1 % of the end of its range.
_SATURATED = {"tanh": lambda y: abs(y) > 0.99, "sigmoid": lambda y: abs(y - 0.5) > 0.49}


def examined(function):
    """`function`, to be staged: it returns (its result, [numbers], the Layout that says what each of them is)."""
    @functools.wraps(function, updated=())
    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        with no_grad():
            return result, *_Meter(get_recorder()).read()
    return call


class Layout:
    """Where the numbers of each layer stand in the list that `examined` returns: dicts of places, or None.

    A norm has two places, m = max |x| and s = the sum of (x / m)^2: it is m sqrt(s), which neither overflows
    nor is lost where the square of a gradient of 1e-25 would be.
    """

    def __init__(self, inputs, layers):
        self.inputs, self.layers = inputs, layers


class _Meter:
    """Records the gates that measure the layers of a recording."""

    def __init__(self, recording):
        self.recording = recording
        self.gradients = {id(x): total for _, _, _, x, _, total in recording.parts}
        self.numbers = []
        self.before = []    # copies of parameters that are updated

    def read(self):
        """The recorded numbers, and their Layout."""
        stages, layers = self.recording.stages, layers_of(self.recording)
        if not layers:
            raise error(StagingError, "health: there is no layer here", got=f"{len(stages)} stages",
                        expected="a module, a product or an activation in the function",
                        fix="ask for the health of the training step: forward, backward, update")
        entry = next((layer.input for layer in layers if layer.weights and layer.input is not None), None)
        inputs = None if entry is None else {"shape": entry.shape, "norm": self.norm(entry)}
        layout = Layout(inputs, [self.layer(layer) for layer in layers])
        copies = {id(t) for t in self.before}    # they come first, before the updates
        stages[:] = [*self.before, *(t for t in stages if id(t) not in copies)]
        return self.numbers, layout

    def layer(self, layer):
        y, gate = layer.output, layer.gate
        rows = reshape(y, -1, y.shape[-1]) if y.ndim > 1 else None
        flat = _SATURATED.get(gate)
        return {"name": layer.name, "kind": layer.kind, "shape": y.shape, "norm": self.norm(y),
                "gradient": self.norm(self.gradients.get(id(y))), "zeros": self.share(y == 0),
                "dead": self.share(max(rows, 0) == 0) if gate == "relu" and rows is not None else None,
                "saturated": None if flat is None else self.share(flat(y)),
                "weights": [self.weight(name, w) for name, w in layer.weights]}

    def weight(self, name, w):
        now = before = _in_order(w)
        changes = id(w) in self.recording.updated
        if changes:
            before = copy(now)
            self.before.append(before)
        return {"name": name, "shape": w.shape, "norm": self.norm(before),
                "gradient": self.norm(self.gradients.get(id(w))),
                "update": self.norm(sub(now, before)) if changes else None}

    def norm(self, x):
        if x is None or not x.size:
            return None
        x = _in_order(x)
        largest = max(abs(x))
        return self.add(largest), self.add(sum(square(x / largest)))

    def share(self, condition):
        return self.add(mean(where(condition, 1.0, 0.0)))

    def add(self, number):
        self.numbers.append(number)
        return len(self.numbers) - 1


def _in_order(x):
    """x, its dimensions permuted so that it is walked as it lies."""
    order = sorted(range(x.ndim), key=lambda d: -x.strides[d])
    return x if order == list(range(x.ndim)) else x.transpose(order)


# --- which layers there are

class _Layer:
    """One layer while it is looked for: its output so far, its parameters [(name, tensor)], and what it reads."""

    def __init__(self, name, kind, output, weights=None):
        self.name, self.kind, self.output = name, kind, output
        self.own = weights is not None    # a module's: it says itself which parameters it has
        self.weights = list(weights or ())
        self.input = None    # the first value that it reads

    @property
    def gate(self):
        """The name of the gate that gave the output's values."""
        t = self.output
        while t._gate.form == "view" and t._inputs[0]._gate is not None:
            t = t._inputs[0]
        return t._gate.name

    def reads(self, t, names):
        """Take in what its stage t reads."""
        for x in t._inputs:
            p = _parameter(x)
            if p is None or self.own and not any(p is w for _, w in self.weights):
                if self.input is None and x.dtype.kind == "f" and x.size > 1:
                    self.input = x
            elif not any(p is w for _, w in self.weights):
                self.weights.append((names.get(id(p)) or p.name or ("weight" if p.ndim > 1 else "bias"), p))


def layers_of(recording):
    """The layers of a recorded function, in their order."""
    stages = [_output(s) for s in recording.stages if id(s) not in recording.undoes and _output(s) is not None]
    modules = _modules(recording, stages)
    readers = {}
    for x in [x for t in stages for x in t._inputs]:
        readers[id(x)] = readers.get(id(x), 0) + 1
    found, made = {}, {}    # made: id of an output: the layer outside of modules that gave it
    for t in stages:
        layer = modules.get(id(_module(t._group)))
        if layer is None:
            if not _is_step(t):
                continue
            layer = next((made[id(x)] for x in t._inputs if id(x) in made and readers[id(x)] == 1
                          and t._gate.name == "add"), None) or _Layer(None, t._gate.name.partition("_erf")[0], t)
            layer.output = t
            made[id(t)] = layer
        found[id(layer)] = layer
        layer.reads(t, recording.names)
    found = [layer for layer in found.values() if layer.output.size and layer.output.dtype.kind == "f"]
    for n, layer in enumerate(found, 1):
        layer.name = layer.name or recording.names.get(id(layer.output)) or f"{layer.kind} {n}"
    return found


def _output(stage):
    """What a stage of a gate gives, one of NumPy functions too; None for other stages."""
    if not isinstance(stage, Tensor):
        return next((t for t in stage.outputs if stage.form == "call" and t._gate is not None), None)
    return stage


def _modules(recording, stages):
    """{id of the group of a module's call: its layer} for the calls that are one layer."""
    outer = {id(_module(group.parent)) for group, _ in recording.calls}    # they call modules themselves
    steps = {}    # id of a group: how many steps it takes
    for t in stages:
        if t._gate.form != "view":
            key = id(_module(t._group))
            steps[key] = steps.get(key, 0) + (_is_step(t) and t._gate.name != "add")
    names = _Names(recording.calls)
    layers = {}
    for group, y in recording.calls:
        y = y[0] if isinstance(y, tuple) and y else y    # of a recurrent layer the states behind all steps
        # A scalar is a loss.
        if isinstance(y, Tensor) and y.ndim and steps.get(id(group), 2) <= 1 and id(group) not in outer:
            layers[id(group)] = _Layer(names.of(group), type(group.module).__name__, y,
                                       [(n, p) for n, p in group.module.named_parameters() if p.requires_grad])
    return layers


class _Names:
    """Names of module calls: the path below the outermost module around it; a number where that is taken."""

    def __init__(self, calls):
        self.roots = {id(group): self.root(group).module for group, _ in calls}
        self.paths = {id(m): {id(inner): path for path, inner in m.named_modules()} for m in self.roots.values()}
        self.taken = {}

    @staticmethod
    def root(group):
        while _module(group.parent) is not None:
            group = _module(group.parent)
        return group

    def of(self, group):
        root = self.roots[id(group)]
        name = self.paths[id(root)].get(id(group.module)) or type(group.module).__name__
        if root is not group.module and len(self.paths) > 1:
            name = f"{type(root).__name__}.{name}"
        self.taken[name] = self.taken.get(name, 0) + 1
        return name if self.taken[name] == 1 else f"{name} ({self.taken[name]})"


def _module(group):
    """The innermost group that is a module's call: this one, or one around it; None where there is none."""
    while group is not None and group.module is None:
        group = group.parent
    return group


def _is_step(t):
    """Whether a stage computes what a layer of its own would, or joins a parameter to one."""
    group = t._group
    while group is not None and group.module is None:
        if group.name in GATES:    # a part of a loss, of a standard deviation, ...
            return False
        group = group.parent
    if t._gate.form == "product" or t._gate.name in _ACTIVATIONS:
        return True
    parameters = [_parameter(x) is not None for x in t._inputs]
    values = [x for x, is_one in zip(t._inputs, parameters, strict=True) if not is_one and (x._abstract or x.ndim)]
    return t._gate.form in ("elementwise", "take", "custom") and any(parameters) and bool(values)


def _parameter(x):
    """The leaf that x is or shows, where it requires a gradient; else None."""
    while x._gate is not None and x._gate.form in ("view", "copy") and x.requires_grad:
        x = x._inputs[0]
    return x if x._gate is None and x.requires_grad else None
