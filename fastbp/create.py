"""Tensors of given values: zeros, ones, full, arange, randn."""
import numpy as np

from fastbp.random import generator
from fastbp_ext.tensor import abstract_tensor, empty, get_recorder, tensor


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
    """Draws of the standard normal distribution: randn(2, 3). rng: an int or numpy Generator.

    In a staged function each replay draws anew, from the same stream.
    """
    shape = _sizes(shape)
    stream = generator(rng)
    recorder = get_recorder()
    if recorder is None:
        return tensor(stream.standard_normal(shape), dtype=dtype, requires_grad=requires_grad, name=name)
    y = abstract_tensor((shape,) if isinstance(shape, int) else shape, dtype, requires_grad=requires_grad, name=name)
    recorder.call("randn", lambda: (generator(rng).standard_normal(shape),), (y,), (), effects=True)
    return y


def _sizes(shape):
    return shape[0] if len(shape) == 1 and not hasattr(shape[0], "__index__") else shape
