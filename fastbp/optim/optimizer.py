"""Optimizers, with PyTorch's arguments, update rules and state dicts.

What an update reads and writes stays where it is, so that a compiled program can hold it:
each parameter has a vector h of float64, its hyperparameters as the kernel reads them
(fastbp_ext/kernels/update.pxi), and states laid out as the parameter. Setting `opt.lr` or an
option of a group writes to h; `load_state_dict` writes to h and to the states. For each step a
program does what `step` does with a parameter's `_plan`: the `_clock` kernel on h (Adam counts
the step and corrects the bias; h is all it needs), then the kernel, then the version of the
parameter. A plan changes only where a group's momentum becomes 0 or stops being 0.
"""
import collections
import math
import numbers

import numpy as np

from fastbp.errors import DtypeError, StagingError, error
from fastbp_ext.gate import clone, tick_state, update
from fastbp_ext.tensor import Tensor, empty, get_recorder, touch


def _number(name, value, below=math.inf):
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not 0 <= value < below:
        bound = "finite" if below == math.inf else f"below {below}"
        raise error(ValueError, f"optimizer: {name} can't be this", got=repr(value),
                    expected=f"a number of 0 or more, {bound}", fix=f"choose another {name}")
    return float(value)


def _betas(name, value):
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise error(ValueError, f"optimizer: {name} can't be this", got=repr(value), expected="two numbers",
                    fix="betas=(0.9, 0.999)")
    return tuple(_number(name, beta, below=1) for beta in value)


_CHECKS = {"lr": _number, "momentum": _number, "weight_decay": _number, "eps": _number, "betas": _betas,
           "nesterov": lambda name, value: bool(value)}


class _Group(dict):
    """Options of some parameters: each value is checked where it is set, and written to the vectors."""

    def __init__(self, kind, params, options):
        self.kind = kind        # the optimizer's class
        self.vectors = []
        super().__init__(params=params)
        self.update(options)

    def checked(self, options):
        if "params" in options:
            raise ValueError("optimizer: a group's params can't be set: use add_param_group")
        for name, value in options.items():
            if name in self.kind._fixed and value != self.kind._fixed[name]:
                raise error(ValueError, f"{self.kind.__name__}: {name} is not supported", got=repr(value),
                            expected=repr(self.kind._fixed[name]), fix=f"leave {name} out")
        return {k: _CHECKS[k](k, v) if k in _CHECKS else v for k, v in options.items()}

    def update(self, *args, **kwargs):
        if get_recorder() is not None:
            raise error(StagingError, "optimizer: an option is set inside a staged function, or an optimizer made",
                        got="a change that would happen at recording only", expected="options set between calls",
                        fix="set it, or make the optimizer, outside the staged function")
        super().update(self.checked(dict(*args, **kwargs)))
        touch()
        for h in self.vectors:
            self.kind._fill(h, self)

    def __setitem__(self, name, value):
        self.update({name: value})

    def __ior__(self, options):
        self.update(options)
        return self


class Optimizer:
    """What all optimizers share: groups of parameters with their options, and their state.

    params: tensors that are leaves and require a gradient, or dicts {"params": tensors, option:
    value, ...}, one for each group. ValueError: no parameters, one that comes twice, is no leaf,
    requires no gradient or can't be written; an option that is NaN, negative or no number,
    wherever it is set. TypeError: something else than tensors.
    """
    _fixed = {}      # PyTorch's options that have one value here
    _length = 0      # of h
    _count = None    # where h counts the steps
    _clock = None    # the kernel that counts them, and computes what depends on the count
    _states = ()     # PyTorch's names of the states that are laid out as the parameter

    def __init__(self, params, defaults):
        self.defaults = {**defaults, **self._fixed}
        self.param_groups = []
        self.state = collections.defaultdict(dict)    # parameter: {name: tensor}, made when first needed
        self._vectors = {}    # parameter: (h, h as a memoryview)
        params = _listed(params)
        for group in params if params and isinstance(params[0], dict) else [{"params": params}]:
            self.add_param_group(group)

    def add_param_group(self, group):
        """Add {"params": tensors, option: value, ...}; options left out are the optimizer's own."""
        if not isinstance(group, dict) or "params" not in group:
            raise TypeError('optimizer: a group is a dict with "params"')
        options = {**self.defaults, **group}
        params = _listed(options.pop("params"))
        made = _Group(type(self), params, options)
        self._check(made)
        if not params:
            raise ValueError("optimizer: there are no parameters to update")
        seen = set(self._vectors)
        for p in params:
            _check_parameter(p, seen)
            seen.add(p)
        for p in params:
            h = empty(self._length, "float64")
            h.numpy()[...] = 0
            self._vectors[p] = h, memoryview(h)
            made.vectors.append(self._vectors[p][1])
        made.update()
        self.param_groups.append(made)

    def _check(self, options):
        """Raise where options do not go together."""

    @staticmethod
    def _fill(h, group):
        """Write the group's options to h."""

    def _kernel(self, group):
        """The update kernel, and the names of the states that it takes behind the parameter.

        It depends on the group's options alone: staged steps ask again only when one is set.
        """
        raise NotImplementedError(f"{type(self).__name__} defines step() or _kernel()")

    def _plan(self, p, group):
        """(kernel, states, h) of p's update; states that it lacks are made, 0."""
        kernel, names = self._kernel(group)
        h = self._vectors[p][0]
        state = self._state_of(p, names) if names else {}
        for name in names:
            if state[name].dtype != p.dtype:
                raise error(DtypeError, f"{type(self).__name__}: a parameter's dtype was changed",
                            got=f"{p.dtype}, its {name} {state[name].dtype}", expected="one dtype",
                            fix="make the optimizer after model.to(dtype)")
        return kernel, (p, *(state[name] for name in names)), h

    def _state_of(self, p, names):
        """p's state; what it lacks is made: the count of steps, a part of h, and zeros laid out as p."""
        if p not in self.state and get_recorder() is not None:
            get_recorder().undo.append(lambda: self.state.pop(p, None))    # if the recording fails
        state = self.state[p]
        if self._count is not None and "step" not in state:
            state["step"] = self._vectors[p][0][self._count]
        for name in names:
            if name not in state:
                state[name] = clone(p)
                state[name].name = name
                state[name].numpy()[...] = 0
        return state

    def step(self):
        """Update, in place, each parameter that has a gradient."""
        recorder = get_recorder()
        if recorder is not None:
            recorder.guard(f"the groups of {type(self).__name__}",
                           lambda: [(self._kernel(group), len(group["params"])) for group in self.param_groups])
        work = [(self._plan(p, group), p.grad) for group in self.param_groups for p in group["params"]
                if p.grad is not None]
        if self._clock is not None:
            tick_state(self._clock, [h for (_, _, h), _ in work])
        for (kernel, states, h), gradient in work:
            update(kernel, states, gradient, h)

    def zero_grad(self):
        """Set .grad of all parameters to None."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @property
    def lr(self):
        """The first group's learning rate; setting it sets all groups'."""
        return self.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value):
        for group in self.param_groups:
            group["lr"] = value

    def _params(self):
        return [p for group in self.param_groups for p in group["params"]]

    def state_dict(self):
        """{"state": {i: {name: copy}}, "param_groups": [{option: value, "params": [i, ...]}]}

        PyTorch's layout: i counts the parameters through all groups; what was never updated has
        no state.
        """
        numbers = {p: i for i, p in enumerate(self._params())}
        return {
            "state": {i: {name: _contiguous(x) for name, x in self.state[p].items()}
                      for p, i in numbers.items() if self.state.get(p)},
            "param_groups": [{**group, "params": [numbers[p] for p in group["params"]]}
                             for group in self.param_groups],
        }

    def load_state_dict(self, state_dict):
        """Take over what `state_dict` (or PyTorch's) gave: options, and states, copied in place.

        All is checked first: ValueError, and nothing changed, where groups, options, names or
        shapes do not fit.
        """
        saved = state_dict["param_groups"]
        sizes = [len(g["params"]) for g in saved], [len(g["params"]) for g in self.param_groups]
        if sizes[0] != sizes[1]:
            raise self._misfit(f"groups of {sizes[0]} parameters", f"groups of {sizes[1]}")
        options = [{k: v for k, v in g.items() if k != "params"} for g in saved]
        for group, new in zip(self.param_groups, options, strict=True):
            if lacking := self.defaults.keys() - new.keys():
                raise self._misfit(f"a group without {sorted(lacking)}", f"options {[*self.defaults]}")
            self._check({**group, **group.checked(new)})
        by_number = dict(zip((i for g in saved for i in g["params"]), self._params(), strict=True))
        values = {}
        for i, entries in state_dict["state"].items():
            entries = {name: np.asarray(x) for name, x in entries.items() if x is not None}
            if i not in by_number:
                raise self._misfit(f"state of a parameter {i}", f"parameters {[*by_number]}")
            self._check_state(i, by_number[i], entries)
            values[by_number[i]] = entries
        for group, new in zip(self.param_groups, options, strict=True):
            group.update(new)
            for p in group["params"]:
                self._set_state(p, values.get(p, {}))

    def _check_state(self, i, p, entries):
        wanted = {name: p.shape for name in self._states}
        if self._count is not None:
            wanted["step"] = ()
        if entries and {name: x.shape for name, x in entries.items()} != wanted:
            raise self._misfit(f"state of parameter {i}: {({name: x.shape for name, x in entries.items()})}",
                               str(wanted))
        for name, x in entries.items():
            if x.dtype.kind not in "fiu" or name == "step" and not 0 <= x < math.inf:
                raise self._misfit(f"state of parameter {i}: {name} of {x.dtype}", "numbers, step >= 0")

    def _set_state(self, p, entries):
        """Copy to p's state; what it has and entries lack becomes 0, as it was at the first step."""
        state = self._state_of(p, self._states) if entries else self.state.get(p, {})
        for name, x in state.items():
            x.copy_(entries.get(name, 0.0))

    def _misfit(self, got, expected):
        return error(ValueError, f"load_state_dict: the state does not fit this {type(self).__name__}",
                     got=got, expected=expected, fix="make the optimizer as it was when the state was saved")

    def __repr__(self):
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {name}: {value}" for name, value in sorted(group.items()) if name != "params"]
        return "\n".join([*lines, ")"])


def _listed(params):
    if isinstance(params, Tensor) or not hasattr(params, "__iter__") or isinstance(params, dict):
        raise TypeError("optimizer: params is an iterable of Tensors or of groups, "
                        f"not {type(params).__name__}: give model.parameters()")
    return list(params)


def _check_parameter(p, seen):
    if not isinstance(p, Tensor):
        raise TypeError(f"optimizer: a parameter is a Tensor, not {type(p).__name__}: "
                        "give model.parameters()")
    problem = ("it comes twice" if p in seen else "it is no leaf: a gate made it" if not p.is_leaf
               else "it does not require a gradient" if not p.requires_grad
               else "its memory can't be written" if not p.numpy().flags.writeable else None)
    if problem:
        raise error(ValueError, f"optimizer: a parameter can't be updated: {problem}",
                    got=f"shape {p.shape}" + (f", name {p.name!r}" if p.name else ""),
                    expected="leaves that require a gradient, each once",
                    fix="leave it out: [p for p in model.parameters() if p.requires_grad]")


def _contiguous(x):
    return clone(x) if x.is_contiguous else empty(x.shape, x.dtype).copy_(x)
