"""Trace: the numbers of one backward pass, stage by stage.

The stages that made a tensor are undone by a backward of the trace's own, which touches no `.grad`:
for each stage its value, the upstream gradient, and for each input the local gradient and the product
of both.
"""
import sys
from typing import NamedTuple

import numpy as np

from fastbp.errors import StagingError, error
from fastbp.gates.arithmetic import add
from fastbp.gates.row import grouped
from fastbp.planner.expression import ATOM, SIGN, expression
from fastbp.tape import ones_like, stages_of, vjp_of
from fastbp_ext.tensor import Tensor, in_group, no_grad


class Part(NamedTuple):
    """What one stage gives to the gradient of one input.

    local: d output / d input, a number, or a function of the upstream gradient where one of the two
    is an array. product: upstream times local. adds: an earlier part is there already.
    """
    input: Tensor
    local: object
    product: Tensor
    adds: bool


class Stage:
    """A gate, or a group of gates shown as one: number, output, inputs, upstream gradient, parts."""

    def __init__(self, number, gates, name, formula, given=()):
        self.number, self.gates, self.name, self.formula = number, gates, name, formula
        self.output = gates[-1]
        inside = {id(t) for t in gates}
        self.inputs = [x for t in gates for x in t._inputs if id(x) not in inside]
        if len(gates) > 1:
            self.inputs = list({id(x): x for x in self.inputs}.values())
        read = {id(x) for x in self.inputs}
        # A call's own tensors, in their order; where it made others of them, what a gradient flows to.
        self.shown = [x for x in given if id(x) in read] or [x for x in self.inputs if x.requires_grad]
        self.upstream, self.parts = None, []

    @property
    def groups(self):
        """The groups around it, the outermost first."""
        found, group = [], self.output._group
        while group is not None:
            found.append(group)
            group = group.parent
        return found[::-1]

    @property
    def gate(self):
        """The gate of the row, or None for a group."""
        return self.output._gate if len(self.gates) == 1 else None

    def text(self, name):
        """What it computes, as Python writes it, by the names that `name` gives its inputs."""
        if self.gate is None:
            return f"{self.name}({', '.join(map(name, self.shown))})"
        parts = [(text, SIGN if text.startswith("-") else ATOM) for text in map(name, self.inputs)]
        return expression(self.gate, self.output._params, parts, self.output)[0]


class Trace:
    """The stages that made `root`, in their order, with the gradient of root for every value.

    gradient: d loss / d root, 1 everywhere where it is None. whole: the calls of composites are one
    stage each, where one value leaves them. names: {id of a tensor: what it is called}.
    """

    def __init__(self, root, gradient=None, whole=False, names=None):
        _refuse_recorded(root)
        self.root = root
        tensors, leaves = stages_of([root])
        self.leaves = leaves[::-1]
        self.given = dict(names or {})
        self.names = dict(self.given)
        gates = tensors[::-1]
        self.stages = [Stage(n, *unit) for n, unit in enumerate(_units(gates, root) if whole else _alone(gates), 1)]
        with no_grad():
            self.gradients = _gradients(tensors, root, ones_like(root) if gradient is None else gradient)
            seen = set()
            for stage in reversed(self.stages):
                stage.upstream = self.gradients.get(id(stage.output))
                if stage.upstream is not None:
                    stage.parts = _parts(stage, stage.upstream, seen)
        self._name_all()

    def gradient(self, t):
        """d root / d t (weighted by the gradient given), or None where none flows to it."""
        return self.gradients.get(id(t))

    @property
    def inputs(self):
        """The tensors that no stage made: leaves with a gradient first, in the order of their use; then constants."""
        made = {id(s.output) for s in self.stages}
        used = {id(x): x for s in self.stages for x in s.inputs if id(x) not in made}
        return sorted(used.values(), key=lambda x: not x.requires_grad)

    def name(self, t):
        """What a tensor is called: its name, its number where it is one, or what the trace calls it."""
        return self.names[id(t)]

    def _name_all(self):
        taken = {t.name for s in self.stages for t in (s.output, *s.inputs)} | set(self.names.values())
        free = {"t": 0, "x": 0}

        def fresh(letter):
            while True:
                free[letter] += 1
                if f"{letter}{free[letter]}" not in taken:
                    return f"{letter}{free[letter]}"

        for stage in self.stages:
            for t in (*stage.inputs, stage.output):
                if id(t) in self.names:
                    continue
                if t.name:
                    self.names[id(t)] = t.name
                elif not t.requires_grad and t.size == 1:
                    self.names[id(t)] = f"{t.item():.6g}"
                else:
                    self.names[id(t)] = fresh("t" if t._gate is not None and t.requires_grad else "x")


def _refuse_recorded(t):
    if t._abstract:
        raise error(StagingError, "a recorded tensor has no values to look at", got="a tensor of a staged function",
                    expected="a result of gates", fix="call the function itself: step.eager(...)")
    if t._gate is None:
        raise error(RuntimeError, "no gate made this tensor, or none that a gradient flows through",
                    got=f"a tensor of shape {t.shape}", expected="a result of gates",
                    fix="give its inputs requires_grad=True before, and look at the result")


def _alone(gates):
    return [((t,), t._gate.name, t._gate.formula) for t in gates]


def _units(gates, root):
    """Gates, and the calls of composites as wholes where nothing but their last value is used outside."""
    readers = {}
    for t in gates:
        for x in t._inputs:
            readers.setdefault(id(x), []).append(t)
    whole = {}
    for t in gates:
        box, group = None, t._group
        while group is not None:
            if group.module is None:
                box = group
            group = group.parent
        whole.setdefault(id(box) if box is not None else id(t), (box, []))[1].append(t)
    units = []
    for box, members in whole.values():
        inside = {id(t) for t in members}
        leaves = [t for t in members if t is root or any(id(r) not in inside for r in readers.get(id(t), ()))]
        if box is None or leaves != members[-1:]:
            units += _alone(members)
        else:
            units.append((tuple(members), box.name, box.formula, box.given))
    return sorted(units, key=lambda unit: unit[0][-1]._serial)


def _gradients(stages, root, seed):
    """The gradient for every tensor, as `walk` finds them; `stages` begin with the last."""
    gradients = {id(root): seed}
    for stage in stages:
        dy = gradients.get(id(stage))
        for which, x in enumerate(stage._inputs if dy is not None else ()):
            dx = vjp_of(stage, which, dy) if x.requires_grad else None
            if dx is not None:
                before = gradients.get(id(x))
                gradients[id(x)] = dx if before is None else add(before, dx)
    return gradients


def _pull(stage, dy):
    """[(input, the gradient through the stage)] for the inputs that have one."""
    if len(stage.gates) == 1:
        found = [(x, vjp_of(stage.output, which, dy)) for which, x in enumerate(stage.inputs) if x.requires_grad]
        return [(x, dx) for x, dx in found if dx is not None]
    gradients = _gradients(stage.gates[::-1], stage.output, dy)
    return [(x, gradients[id(x)]) for x in stage.inputs if x.requires_grad and id(x) in gradients]


def _parts(stage, upstream, seen):
    pulled = _pull(stage, upstream)
    ones = _pull(stage, ones_like(stage.output)) if stage.output.size == 1 else pulled
    parts = []
    for n, ((x, product), (_, slope)) in enumerate(zip(pulled, ones, strict=True)):
        if stage.output.size == 1 and x.size == 1:
            local = slope.item()
        else:
            local = LocalGradient(stage, n, stage.output.shape, x.shape)
        parts.append(Part(x, local, product, id(x) in seen))
        seen.add(id(x))
    return parts


class LocalGradient:
    """d output / d input where one of them is an array: called with an upstream gradient it gives the product.

    shape: the output's shape, then the input's: that of the Jacobian, which is never made.
    """

    def __init__(self, stage, n, output, input):
        self._stage, self._n = stage, n
        self.shape = (*output, *input)

    def __call__(self, upstream):
        """The gradient for the input, from one for the output (an array or tensor of its shape)."""
        like = self._stage.output
        dy = np.broadcast_to(np.asarray(upstream, like.dtype), like.shape)
        seed = ones_like(like)
        seed.numpy()[...] = dy
        with no_grad():
            return _pull(self._stage, seed)[self._n][1]

    def __repr__(self):
        return f"<local gradient, Jacobian of shape {self.shape}>"


class GateView:
    """A gate as it was applied: what `tensor.gate` shows.

    name, formula; inputs: the tensors it was applied to; local_gradients: for each input d output /
    d input, a number for scalars, else a `LocalGradient`, None where no gradient flows; upstream: the
    gradient for its output, of the tensor on which `backward` was called.
    """

    def __init__(self, t):
        _refuse_recorded(t)
        self._output = t
        self.name, self.formula, self.inputs = t._gate.name, t._gate.formula, t._inputs

    @property
    def local_gradients(self):
        stage = Stage(1, (self._output,), self.name, self.formula)
        with no_grad():
            parts = iter(_parts(stage, ones_like(self._output), set()))
            has = {id(x) for x, _ in _pull(stage, ones_like(self._output))}
        return tuple([next(parts).local if id(x) in has else None for x in self.inputs])

    @property
    def upstream(self):
        root, gradient = self._output._undone or (None, None)
        if root is None:
            raise error(RuntimeError, "no backward that went through this gate is known, or its end is gone",
                        got=f"{self.name} of shape {self._output.shape}", expected="a backward before",
                        fix="call backward on the circuit's output, and keep the output")
        return Trace(root, gradient).gradient(self._output)

    def __repr__(self):
        names = ", ".join(x.name or str(x.shape) for x in self.inputs)
        return f"<gate {self.name}({names}): {self.formula}>"


def expanded(root):
    """The same circuit with every gate that has parts taken apart, each in a group of its name.

    ValueError: a gate behind such parts is neither elementwise nor a reduction.
    """
    new = {}
    for t in stages_of([root])[0][::-1]:
        inputs = [new.get(id(x), x) for x in t._inputs]
        if t._gate.parts is None and all(a is b for a, b in zip(inputs, t._inputs, strict=True)):
            continue
        new[id(t)] = y = _rebuilt(t, inputs)
        y.name = t.name
    return new.get(id(root), root)


def _rebuilt(t, inputs):
    """Stage t on other inputs, in its groups; in its parts where it has some, and these in theirs."""
    gate, params = t._gate, t._params
    if gate.parts is not None:
        return _inside(t._group, lambda: _apart(gate, inputs))
    if gate.form == "reduce":
        params = {"axis": params["axes"], "keepdims": params["keepdims"]}
    elif gate.form != "elementwise":
        raise ValueError(f"{gate.name} can't be applied to the parts of what it was applied to")
    return _inside(t._group, lambda: gate(*inputs, **params))


def _apart(gate, inputs):
    """The parts of a gate on these inputs, in a group; parts that have parts are taken apart too."""
    ends = {id(x) for x in inputs}

    def parts(*xs):
        return rebuild(gate.parts(*xs))

    def rebuild(t):
        if id(t) in ends or t._gate is None:
            return t
        xs = [rebuild(x) for x in t._inputs]
        if t._gate.parts is not None:
            return _apart(t._gate, xs)
        same = all(a is b for a, b in zip(xs, t._inputs, strict=True))
        return t if same else t._gate(*xs, **t._params)

    return grouped(parts, gate.name)(*inputs)


def _inside(group, call):
    """call() with its stages in a group and those around it."""
    return call() if group is None else _inside(group.parent, lambda: in_group(group, call, (), {}))


def names_of_caller():
    """{id of a tensor: the name of a variable} in the frame that called fastbp."""
    frame = sys._getframe(1)
    between = ("fastbp", "IPython", "decorator", "traitlets")    # a notebook calls by way of them
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in between:
        frame = frame.f_back
    if frame is None:
        return {}
    found = {}
    for scope in (frame.f_locals, frame.f_globals):
        for name, value in list(scope.items()):
            if isinstance(value, Tensor) and not name.startswith("_"):
                found.setdefault(id(value), name)
    return found
