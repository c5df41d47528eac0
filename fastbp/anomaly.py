"""detect_anomaly: the first stage, forward or backward, that gives NaN or infinity is named."""
import collections
import contextlib
import itertools
import threading

import numpy as np

from fastbp import random
from fastbp.errors import AnomalyError, error, user_frame
from fastbp_ext.gate import Update
from fastbp_ext.tensor import OPERATORS, set_checking

_REMEMBERED = 100_000    # stages whose lines are known, the last

_FIXES = {
    "log": "log of 0 is -inf, of less NaN: use log_softmax, softplus or cross_entropy, or log(x + 1e-8)",
    "log1p": "log1p is defined above -1: clip x first",
    "div": "division by 0: add an epsilon to the divisor, or choose with fb.where before dividing",
    "reciprocal": "division by 0: add an epsilon",
    "exp": "e^x overflows above 88 in float32, 709 in float64: subtract the maximum first, or use softmax, logsumexp",
    "expm1": "e^x overflows above 88 in float32, 709 in float64: scale or clip x",
    "sqrt": "sqrt is NaN below 0, its slope infinite at 0: clip x, or add an epsilon under the root",
    "pow": "a power of 0 or less, or one that overflows: clip the base, or add an epsilon",
    "softmax": "a row of -inf alone has no softmax: leave one score finite",
    "log_softmax": "a row of -inf alone has no softmax: leave one score finite",
    "sgd": "a lower rate, or gradients that are clipped",
}
_FIXES |= {"std": _FIXES["sqrt"]} | dict.fromkeys(
    ("momentum", "adam", "nadam", "radam", "rmsprop", "adagrad"), _FIXES["sgd"])


class _Thread(threading.local):
    """What a thread knows of the stages that it ran within detect_anomaly."""

    def __init__(self):
        self.forget()

    def forget(self):
        self.count = itertools.count(1)
        self.stages = collections.OrderedDict()    # serial of a stage's output: (its number, (file, line))


_known = _Thread()


class detect_anomaly(contextlib.ContextDecorator):
    """A context (or decorator) in which the first stage that gives NaN or infinity raises `fb.AnomalyError`.

    Forward or backward: the message names the stage, your line where it was applied, the shapes and ranges of its
    inputs, and a fix. Infinity that an input already had, as that of a mask, may pass; NaN may not. Staged functions
    called inside run gate by gate, with the same bits; where one raises, parameters, the optimizer's state,
    gradients and the package's random stream are as before the call. It holds for the thread that enters it.

    >>> with fb.detect_anomaly():
    ...     step(x, y)
    """

    def __init__(self):
        self._before = []    # for each time that it was entered and not yet left

    def __enter__(self):
        before = set_checking(True)
        self._before.append(before)
        if not before:
            _known.forget()
        return self

    def __exit__(self, *exc_info):
        set_checking(self._before.pop())

    def _recreate_cm(self):
        return type(self)()    # as a decorator: threads do not share one


def check(gate, y, inputs):
    """Raise where y, what a gate (or an Update) gave of its inputs, has NaN, or infinity that they had not."""
    number = None
    if not isinstance(gate, Update):
        number = next(_known.count)
        if y.requires_grad and y._gate is not None:
            _known.stages[y._serial] = number, user_frame()
            if len(_known.stages) > _REMEMBERED:
                _known.stages.popitem(last=False)
    what = _fault(y, inputs)
    if what is None:
        return
    stage = f"({number}) {_call(f't{number}', gate, inputs)}, {gate.formula}{_within(y)}" if number else "an update"
    raise error(AnomalyError, f"{gate.name} gave {what}: {stage}", got=_ranges(_names(gate, inputs), inputs),
                expected="finite values of finite inputs", fix=_fix(gate.name, inputs))


def check_gradient(stage, which, dy, dx):
    """Raise where dx, the gradient that undoing a stage gave its input `which`, has NaN, or infinity that dy had not.

    The values that the stage computed with are looked at too.
    """
    what = _fault(dx, (dy,))
    if what is None:
        return
    number, line = _known.stages.get(stage._serial, (None, None))
    gate, inputs = stage._gate, stage._inputs
    label = f"({number}) {_call(f't{number}', gate, inputs)}" if number else gate.name
    names = _names(gate, inputs)
    raise error(AnomalyError, f"backward of {label}{_within(stage)} gave {what} as the gradient for {names[which]}",
                where=line,
                got=_ranges(("upstream", *names), (dy, *inputs)), expected="a finite gradient",
                fix=_fix(gate.name, inputs))


def _fault(y, inputs):
    """"NaN" or "infinity" where y has some that is not to be, else None."""
    if y.dtype.kind != "f":
        return None
    values = y.numpy()
    if np.isfinite(values).all():
        return None
    if np.isnan(values).any():
        return "NaN"
    given = any(x.dtype.kind == "f" and np.isinf(x.numpy()).any() for x in inputs)
    return None if given else "infinity"


def _call(y, gate, inputs):
    return f"{y} = {gate.name}({', '.join(_names(gate, inputs))})"


def _within(y):
    """The module or composite that the stage belongs to, where there is one."""
    return f", in {y._group.name}" if y._gate is not None and y._group is not None else ""


def _names(gate, inputs):
    """What the inputs of a stage are called: their own names, t and the number of their stage, or the gate's names."""
    named = gate.inputs if not isinstance(gate, Update) and len(gate.inputs) == len(inputs) else None
    names = []
    for k, x in enumerate(inputs):
        number, _ = _known.stages.get(x._serial, (None, None)) if x._gate is not None else (None, None)
        other = "the gradient" if isinstance(gate, Update) else named[k] if named else f"x{k + 1}"
        names.append(x.name or (f"t{number}" if number else other))
    return names


def _ranges(names, inputs):
    return "; ".join(f"{name} {_range(x.numpy())}" for name, x in zip(names, inputs, strict=True))


def _range(x):
    """(3, 4) from -1 to 2, 5 NaN, 1 infinite"""
    if not x.ndim:
        return f"{x.item():.6g}"
    finite = x[np.isfinite(x)]
    said = f"{x.shape} from {finite.min():.6g} to {finite.max():.6g}" if finite.size else f"{x.shape}"
    for count, what in ((np.isnan(x).sum(), "NaN"), (np.isinf(x).sum(), "infinite")):
        said += f", {count} {what}" if count else ""
    return said


def _fix(name, inputs):
    if any(x.dtype.kind == "f" and np.isnan(x.numpy()).any() for x in inputs):
        return "an input has NaN already: look at the data, and at what made it"
    return _FIXES.get(name, "numbers beyond the dtype's range: smaller inputs, weights or rate, or clipped gradients")


def restoring(state, leaves, function, *args, **kwargs):
    """function(*args, **kwargs); where it raises, `state` and the gradients of `leaves` are as they were before."""
    before = [(x, x.numpy().copy()) for x in state]
    grads = [(leaf, leaf.grad) for leaf in leaves]
    stream = random._stream.bit_generator.state
    try:
        return function(*args, **kwargs)
    except BaseException:
        for x, values in before:
            np.copyto(x.numpy(), values)
        for leaf, grad in grads:
            leaf.grad = grad
        random._stream.bit_generator.state = stream
        raise


OPERATORS["check"] = check
