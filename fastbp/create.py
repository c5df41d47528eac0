"""Tensors of given values: zeros, ones, full, arange, randn."""
import numpy as np

from fastbp.errors import StagingError, error
from fastbp.random import generator
from fastbp_ext.tensor import empty, get_recorder, tensor


def full(shape, value, dtype=None, requires_grad=False, name=None):
    """A tensor of `shape` with `value` everywhere; float32 unless dtype says otherwise."""
    y = empty(shape, dtype)
    y.numpy()[...] = value
    y.name = name
    if requires_grad:
        y.requires_grad_()
    return y


def zeros(*shape, dtype=None, requires_grad=False, name=None):
    """A tensor of zeros: zeros(2, 3) or zeros((2, 3))."""
    return full(_sizes(shape), 0, dtype, requires_grad, name)


def ones(*shape, dtype=None, requires_grad=False, name=None):
    """A tensor of ones: ones(2, 3) or ones((2, 3))."""
    return full(_sizes(shape), 1, dtype, requires_grad, name)


def arange(*limits, dtype="float32", requires_grad=False, name=None):
    """start, start + step, ... below stop: arange(stop), arange(start, stop, step=1)."""
    return tensor(np.arange(*limits), dtype=dtype, requires_grad=requires_grad, name=name)


def randn(*shape, dtype="float32", requires_grad=False, name=None, rng=None):
    """Draws of the standard normal distribution: randn(2, 3). rng: an int or numpy Generator."""
    if get_recorder() is not None:
        raise error(StagingError, "randn: a staged function can't draw yet", got="randn while a function is recorded",
                    expected="numbers drawn outside", fix="draw before, and give the tensor as an argument")
    values = generator(rng).standard_normal(_sizes(shape))
    return tensor(values, dtype=dtype, requires_grad=requires_grad, name=name)


def _sizes(shape):
    return shape[0] if len(shape) == 1 and not hasattr(shape[0], "__index__") else shape
