"""Gradients clipped between `loss.backward()` and `opt.step()`: gate by gate, and inside a staged step.

They are gates: a staged step computes the norm and the clipped gradients at each replay, and looks at no value.
`.grad` becomes a new tensor.
"""
import functools
import math
import numbers
from collections.abc import Iterable

import numpy as np

from fastbp.errors import error
from fastbp.gates.arithmetic import add, clip, maximum, sqrt, square
from fastbp.gates.shape import memory_order
from fastbp_ext.tensor import Tensor, get_recorder, no_grad, tensor

__all__ = ["clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm"]


@no_grad()
def get_total_norm(tensors, norm_type=2.0, error_if_nonfinite=False):
    """y = (sum of |x|^norm_type over all elements of all tensors)^(1 / norm_type), a 0-d tensor; inf: the largest |x|

    ValueError: norm_type is no number above 0. RuntimeError with error_if_nonfinite, in a staged step before it
    changes anything: the norm is NaN or infinite (such a step waits for Python at that stage).
    """
    norm_type = float(norm_type)
    if not norm_type > 0:
        raise error(ValueError, "get_total_norm: norm_type can't be this", got=norm_type,
                    expected="a number above 0, or inf", fix="norm_type=2.0")
    listed = _listed(tensors)
    tensors = [x for x in listed if x.size]
    if not tensors:
        return tensor(0.0, dtype=listed[0].dtype if listed else None)
    if norm_type == math.inf:
        total = functools.reduce(maximum, [abs(x).max() for x in tensors])
    elif norm_type == 2:
        total = sqrt(functools.reduce(add, [square(x).sum() for x in tensors]))
    else:
        total = functools.reduce(add, [(abs(x) ** norm_type).sum() for x in tensors])
        total = total if norm_type == 1 else total ** (1 / norm_type)
    if error_if_nonfinite:
        if get_recorder() is None:
            _check_finite(total.numpy())
        else:
            get_recorder().call("error_if_nonfinite", _check_finite, (), (total,), effects=True)
    return total


@no_grad()
def clip_grads_with_norm_(parameters, max_norm, total_norm):
    """g *= min(1, max_norm / (total_norm + 1e-6)) for the .grad of each parameter, total_norm a 0-d tensor"""
    _clip_with(_with_gradients(parameters), _bound("clip_grads_with_norm_", "max_norm", max_norm), total_norm)


@no_grad()
def clip_grad_norm_(parameters, max_norm, norm_type=2.0, error_if_nonfinite=False):
    """g *= min(1, max_norm / (norm + 1e-6)) for the .grad of each parameter; the norm of all together is returned

    It is that of `get_total_norm`, before clipping (Pascanu, Mikolov and Bengio, 2013). parameters: tensors, or one;
    those without a gradient are left out. ValueError: max_norm or norm_type is negative or NaN.
    """
    max_norm, parameters = _bound("clip_grad_norm_", "max_norm", max_norm), _with_gradients(parameters)
    # As the parameters lie in memory: fast, and in one order, however the gradients lie.
    gradients = [_turned(p.grad, memory_order(p)) for p in parameters]
    total_norm = get_total_norm(gradients, norm_type, error_if_nonfinite)
    _clip_with(parameters, max_norm, total_norm)
    return total_norm


@no_grad()
def clip_grad_value_(parameters, clip_value):
    """g = min(max(g, -clip_value), clip_value) for the .grad of each parameter

    ValueError: clip_value is negative or NaN.
    """
    clip_value = _bound("clip_grad_value_", "clip_value", clip_value)
    _change(_with_gradients(parameters), lambda g: clip(g, -clip_value, clip_value))


def _clip_with(parameters, max_norm, total_norm):
    scale = clip(max_norm / (total_norm + 1e-6), None, 1.0)
    _change(parameters, lambda g: g * scale)


def _change(parameters, f):
    """.grad = f(.grad), element by element, as the parameter lies in memory: its update can run in the same sweep."""
    for p in parameters:
        order = memory_order(p)
        p.grad = _turned(f(_turned(p.grad, order)), [order.index(d) for d in range(p.ndim)])


def _turned(x, order):
    return x if order == sorted(order) else x.transpose(order)


def _listed(tensors):
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _with_gradients(parameters):
    parameters = _listed(parameters) if isinstance(parameters, Iterable) else [parameters]
    for p in parameters:
        if not isinstance(p, Tensor):
            raise error(TypeError, "clipping: a parameter is a Tensor", got=type(p).__name__,
                        expected="tensors, or one", fix="give model.parameters()")
    return [p for p in parameters if p.grad is not None]


def _bound(function, name, value):
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if number and not value >= 0 or not number and not isinstance(value, Tensor):
        raise error(ValueError, f"{function}: {name} can't be this", got=repr(value),
                    expected="a number of 0 or more", fix=f"{name}=1.0")
    return value


def _check_finite(total):
    if not np.isfinite(total):
        raise error(RuntimeError, "clip_grad_norm_: the norm of the gradients is not finite", got=total,
                    expected="a finite norm", fix="fb.detect_anomaly() names the stage; error_if_nonfinite=False "
                    "scales by the norm as it is")
    return ()
