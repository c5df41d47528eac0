"""What all optimizers share: groups of parameters with their options, and their state.

What an update reads and writes stays where it is, so that a compiled program can hold it:
each parameter has a vector h of float64, its hyperparameters as the kernel reads them
(fastbp_ext/kernels/update.pxi), and states laid out as the parameter. Setting `opt.lr` or an
option of a group writes to h; `load_state_dict` writes to h and to the states. For each step a
program does what `step` does with a parameter's `_plan`: the `_clock` kernel on h (Adam counts
the step and corrects the bias; h is all it needs), then the kernel, then the version of the
parameter. A plan changes only where an option decides about its kernel or its states, as momentum
does where it becomes 0 or stops being 0.
"""
import collections
import collections.abc
import math
import numbers

import numpy as np

from fastbp.errors import DtypeError, StagingError, error
from fastbp.gates.arithmetic import neg
from fastbp.serialization import as_array
from fastbp_ext.gate import clone, tick_state, update
from fastbp_ext.tensor import Tensor, empty, get_recorder, no_grad, touch


def _number(name, value, below=math.inf):
    real = type(value) is float or isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not 0 <= value < below:
        bound = "finite" if below == math.inf else f"below {below}"
        raise error(ValueError, f"optimizer: {name} can't be this", got=repr(value),
                    expected=f"a number of 0 or more, {bound}", fix=f"choose another {name}")
    return float(value)


def _flag(name, value):
    if not isinstance(value, (bool, int, np.bool_)) or value not in (0, 1):    # a number there is another option's
        raise error(ValueError, f"optimizer: {name} can't be this", got=repr(value), expected="True or False",
                    fix="give options by their names")
    return bool(value)


def _betas(name, value):
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise error(ValueError, f"optimizer: {name} can't be this", got=repr(value), expected="two numbers",
                    fix="betas=(0.9, 0.999)")
    return tuple(_number(name, beta, below=1) for beta in value)


_NUMBERS = ("lr", "momentum", "weight_decay", "eps", "alpha", "lr_decay", "initial_accumulator_value", "momentum_decay")
_FLAGS = ("nesterov", "maximize", "centered", "decoupled_weight_decay")
_CHECKS = {**dict.fromkeys(_NUMBERS, _number), **dict.fromkeys(_FLAGS, _flag), "betas": _betas}


class _Group(dict):
    """Options of some parameters: each value is checked where it is set, and written to the vectors."""

    def __init__(self, kind, params, options):
        self.kind = kind        # the optimizer's class
        self.vectors = []       # h of each parameter, as memoryviews
        _refuse_while_recording()
        super().__init__(params=params, **self.checked(options))

    def checked(self, options):
        if "params" in options:
            raise ValueError("optimizer: a group's params can't be set: use add_param_group")
        for name, value in options.items():
            if name in self.kind._fixed and value != self.kind._fixed[name]:
                raise error(ValueError, f"{self.kind.__name__}: {name} is not supported", got=repr(value),
                            expected=repr(self.kind._fixed[name]), fix=f"leave {name} out")
        return {k: _CHECKS[k](k, v) if k in _CHECKS else v for k, v in options.items()}

    def update(self, *args, **kwargs):
        _refuse_while_recording()
        self.set(self.checked(dict(*args, **kwargs)))

    def set(self, options):
        """Take over options that were checked."""
        before = None if self.kind._decisive.isdisjoint(options) else self.form
        super().update(options)
        self.write(options)
        if before is not None and self.form != before:    # else programs hold: they see what is written
            touch()

    @property
    def form(self):
        """What an update's stages depend on."""
        return self.kind._kernel(self), self.get("maximize")

    def set_lr(self, value):
        """`group["lr"] = value`, with fewer detours: schedules do it step by step."""
        dict.__setitem__(self, "lr", _number("lr", value))
        for h in self.vectors:
            h[0] = value

    def write(self, options):
        """Write options to the vectors."""
        for name, value in options.items():
            places = self.kind._places.get(name, ())
            for place, number in zip(places, value if len(places) > 1 else (value,), strict=False):
                for h in self.vectors:
                    h[place] = number

    def __setitem__(self, name, value):
        self.update({name: value})

    def __ior__(self, options):
        self.update(options)
        return self

    def __reduce__(self):
        """For copy and pickle of a group by itself: a dict, no part of an optimizer."""
        return dict, (dict(self),)


_negative = no_grad()(neg)


def _refuse_while_recording():
    if get_recorder() is not None:
        raise error(StagingError, "optimizer: an option is set inside a staged function, or an optimizer made",
                    got="a change that would happen at recording only", expected="options set between calls",
                    fix="set it, or make the optimizer, outside the staged function")


class Optimizer:
    """What all optimizers share: groups of parameters with their options, and their state.

    params: tensors that are leaves and require a gradient, or dicts {"params": tensors, option:
    value, ...}, one for each group. Gradients of several backwards add up until `zero_grad()`: in
    one staged step, or in steps that end with `backward`, before one that updates.

    ValueError: no parameters, one that comes twice, is no leaf, requires no gradient or can't be
    written; an option that is NaN, negative or no number, wherever it is set. TypeError: something
    else than tensors.
    """
    _fixed = {}      # PyTorch's options that have one value here
    _length = 0      # of h
    _places = {"lr": (0,)}    # option: where h has it; the places of its numbers, where it has several
    _decisive = {"maximize"}    # options on which it depends what stages an update has
    _counts = {}     # PyTorch's names of the states that are a number: where h has it
    _clock = None    # the kernel that counts the steps, and computes what depends on the count
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
        if not params:
            raise error(ValueError, "optimizer: there are no parameters to update", got="none",
                        expected="tensors that require gradients, as model.parameters()",
                        fix="make layers attributes of their Module, a list of them an nn.ModuleList; use a generator "
                        "of parameters once")
        seen = set(self._vectors)
        for p in params:
            _check_parameter(p, seen)
            seen.add(p)
        for p in params:
            h = empty(self._length, "float64")
            h.numpy()[...] = 0
            self._vectors[p] = h, memoryview(h)
            if self._length:
                made.vectors.append(self._vectors[p][1])
        made.write(made)
        self.param_groups.append(made)
        touch()

    @classmethod
    def _kernel(cls, group):
        """The update kernel, and the names of the states that it takes behind the parameter, by the group's options.

        None: there is no kernel, and the class defines step().
        """
        return None, ()

    def _begin(self, name, group):
        """What a state is before the first step."""
        return 0

    def _plan(self, p, group):
        """(kernel, states, h) of p's update; states that it lacks are made."""
        kernel, names = self._kernel(group)
        h = self._vectors[p][0]
        if not names:
            return kernel, (p,), h
        state = self._state_of(p, group, names)
        for name in names:
            if state[name].dtype != p.dtype:
                raise error(DtypeError, f"{type(self).__name__}: a parameter's dtype was changed",
                            got=f"{p.dtype}, its {name} {state[name].dtype}", expected="one dtype",
                            fix="make the optimizer after model.to(dtype)")
        return kernel, (p, *(state[name] for name in names)), h

    def _state_of(self, p, group, names):
        """p's state; what it lacks is made: numbers, parts of h, and tensors laid out as p."""
        state = self.state[p]
        for name in names if state else (*self._counts, *names):
            if name in state:
                continue
            if get_recorder() is not None:    # if the recording fails
                get_recorder().undo.append(lambda name=name: state.pop(name, None))
            state[name] = self._vectors[p][0][self._counts[name]] if name in self._counts else clone(p)
            state[name].name = name
            state[name].numpy()[...] = self._begin(name, group)
        return state

    def step(self):
        """Update, in place, each parameter that has a gradient."""
        if self._kernel(self.param_groups[0])[0] is None:
            raise NotImplementedError(f"{type(self).__name__} defines step() or _kernel()")
        recorder = get_recorder()
        if recorder is not None:
            recorder.guard(f"the groups of {type(self).__name__}",
                           lambda: [(group.form, len(group["params"])) for group in self.param_groups])
        work = [(self._plan(p, group), p.grad, group.get("maximize")) for group in self.param_groups
                for p in group["params"] if p.grad is not None]
        if self._clock is not None:
            tick_state(self._clock, [h for (_, _, h), _, _ in work])
        for (kernel, states, h), gradient, ascends in work:
            update(kernel, states, _negative(gradient) if ascends else gradient, h)

    def zero_grad(self, set_to_none=True):
        """Set .grad of all parameters to None. ValueError: set_to_none, PyTorch's, is False."""
        if not set_to_none:
            raise error(ValueError, "zero_grad: gradients are set to None", got=f"set_to_none={set_to_none!r}",
                        expected="True", fix="zero_grad()")
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
        if not isinstance(state_dict, collections.abc.Mapping):
            raise error(TypeError, "load_state_dict: this is no state", got=type(state_dict).__name__,
                        expected="a dict", fix="give what state_dict() returned")
        if not {"state", "param_groups"} <= set(state_dict):
            names = ", ".join([str(name) for name in state_dict][:5])
            raise self._misfit(f"a dict of {names or 'nothing'}", "state, param_groups")
        saved = state_dict["param_groups"]
        sizes = [len(g["params"]) for g in saved], [len(g["params"]) for g in self.param_groups]
        if sizes[0] != sizes[1]:
            raise self._misfit(f"groups of {sizes[0]} parameters", f"groups of {sizes[1]}")
        options = [{k: v for k, v in g.items() if k != "params"} for g in saved]
        for group, new in zip(self.param_groups, options, strict=True):
            if lacking := self.defaults.keys() - new.keys():
                raise self._misfit(f"a group without {sorted(lacking)}", f"options {[*self.defaults]}")
            group.checked(new)
        numbers = [i for g in saved for i in g["params"]]
        by_number = dict(zip(numbers, self._params(), strict=True))
        option = {i: {**group, **new} for g, group, new in zip(saved, self.param_groups, options, strict=True)
                  for i in g["params"]}
        values = {}
        for i, entries in state_dict["state"].items():
            entries = {name: as_array(x) for name, x in entries.items() if x is not None}
            if i not in by_number:
                raise self._misfit(f"state of a parameter {i}", f"parameters {[*by_number]}")
            self._check_state(i, by_number[i], option[i], entries)
            values[by_number[i]] = entries
        for group, new in zip(self.param_groups, options, strict=True):
            group.update(new)
            for p in group["params"]:
                self._set_state(p, group, values.get(p, {}))

    def _check_state(self, i, p, options, entries):
        """Raise where entries are no state of parameter i; what another kernel left may be there too."""
        wanted = {**dict.fromkeys(self._states, p.shape), **dict.fromkeys(self._counts, ())}
        shapes = {name: x.shape for name, x in entries.items()}
        needed = {*self._counts, *self._kernel(options)[1]}
        if entries and not (needed <= shapes.keys() and shapes.items() <= wanted.items()):
            raise self._misfit(f"state of parameter {i}: {shapes}", str(wanted))
        for name, x in entries.items():
            if x.dtype.kind not in "fiu" or name in self._counts and not 0 <= x < math.inf:
                raise self._misfit(f"state of parameter {i}: {name} of {x.dtype}", "numbers, step >= 0")

    def _set_state(self, p, group, entries):
        """Copy to p's state; what it has and entries lack becomes what it was before the first step."""
        state = self._state_of(p, group, [name for name in self._states if name in entries]) if entries else (
            self.state.get(p, {}))
        for name, x in state.items():
            x.copy_(entries.get(name, self._begin(name, group)))

    def __getstate__(self):
        """For copy and pickle: the groups with their parameters, and the state by number; the vectors are made anew."""
        saved = {name: value for name, value in vars(self).items() if name != "_vectors"}
        return saved | {"param_groups": [dict(group) for group in self.param_groups],
                        "state": self.state_dict()["state"]}

    def __setstate__(self, saved):
        vars(self).update(saved, param_groups=[], state=collections.defaultdict(dict), _vectors={})
        for group in saved["param_groups"]:
            self.add_param_group(group)
        self.load_state_dict(self.state_dict() | {"state": saved["state"]})

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
    # A set has another order in each process: states would go to other parameters.
    if isinstance(params, (Tensor, dict, set, frozenset)) or not hasattr(params, "__iter__"):
        raise TypeError("optimizer: params is an iterable, in a fixed order, of Tensors or of groups, "
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
