"""Sums, products, extremes and what is made of them, over one axis, several or all."""
from fastbp_ext.gate import tensors_of
from fastbp_ext.tensor import Tensor

from .arithmetic import as_floats, eq, exp, sqrt, square, where
from .row import composite, gate, reduction
from .shape import all_axes, broadcast_to, contiguous, expand_dims, one_axis, reshape, size_of, transpose

QUARTER, LANES = 256, 16    # a sum over rows adds up so many, in so many sums (fastbp_ext/kernels/reduce.pxi)


def _restored(dy, axes, keepdims):
    """dy with the reduced dimensions back, of size 1."""
    return dy if keepdims or not axes else expand_dims(dy, axes)


def _spread(dy, x, axes, keepdims):
    return broadcast_to(_restored(dy, axes, keepdims), x.shape)


def _count(x, axes):
    return size_of(x.shape[a] for a in axes)


sum = reduction("sum", "y = the sum over `axis`", vjp=[
    lambda dy, y, x, axes, keepdims: _spread(dy, x, axes, keepdims)])

mean = reduction(
    "mean", "y = the sum over `axis` divided by the number of its elements", kernel="sum", averages=True,
    doc="NaN of no elements.", vjp=[
        lambda dy, y, x, axes, keepdims: _spread(dy / float(_count(x, axes)), x, axes, keepdims)])


def _prod_vjp(dy, y, x, axes, keepdims):
    # The product of all other factors: y / x, but for factors of 0.
    zero = eq(x, 0)
    zeros = sum(as_floats(zero, x), axes, True)
    factors = where(zero, 1, x)
    others = prod(factors, axes, True) / factors
    return _restored(dy, axes, keepdims) * where(
        eq(zeros, 0), others, where(zero, where(eq(zeros, 1), others, 0), 0))


prod = reduction(
    "prod", "y = the product over `axis`", vjp=[_prod_vjp],
    doc="The gradient is exact where factors are 0 too; its own gradient only where none is.")


def _extreme_vjp(dy, y, x, axes, keepdims):
    tied = as_floats(eq(x, _restored(y, axes, keepdims)), x)
    return _restored(dy, axes, keepdims) * (tied / sum(tied, axes, True))


_TIES = "NaN if any is NaN. Ties share the gradient evenly. ShapeError: there are no elements."
max = reduction("max", "y = the largest element over `axis`", of_none=False, doc=_TIES, vjp=[_extreme_vjp])
min = reduction("min", "y = the smallest element over `axis`", of_none=False, doc=_TIES, vjp=[_extreme_vjp])

_PLACE = "int64; axis None: in all of x, in C order. The first NaN wins. ShapeError: there are no elements."
argmax = reduction("argmax", "y = the place of the first largest element along `axis`", one_axis=True,
                   result="int64", of_none=False, doc=_PLACE, vjp=[None])
argmin = reduction("argmin", "y = the place of the first smallest element along `axis`", one_axis=True,
                   result="int64", of_none=False, doc=_PLACE, vjp=[None])


@composite
def var(x, axis=None, ddof=0, keepdims=False):
    """y = sum((x - mean)^2) / (n - ddof) over `axis`"""
    (x,) = tensors_of(mean, x)
    axes = all_axes("var", axis, x.ndim)
    squares = sum(square(x - mean(x, axes, True)), axes, keepdims)
    free = _count(x, axes) - ddof
    return squares / float(free if free > 0 else 0)


@composite
def std(x, axis=None, ddof=0, keepdims=False):
    """y = sqrt(var); the gradient is 0 where all elements are equal, as PyTorch's is"""
    v = var(x, axis, ddof, keepdims)
    constant = eq(v, 0)
    return where(constant, v, sqrt(where(constant, 1, v)))    # sqrt's own gradient at 0 times 0 would be NaN


# --- over rows: the last dimension, in C order

def _lse_vjp(dy, y, x):
    # Where all of a row is -inf there is nothing to follow: 0, not NaN.
    shift = where(eq(y, -float("inf")), 0, y)
    return expand_dims(dy, -1) * exp(x - expand_dims(shift, -1))


@gate("rows", kernel="logsumexp", name="logsumexp", public=False, vjp=[_lse_vjp])
def logsumexp_rows(x):
    """y = ln sum e^x over the last dimension"""
    return x.shape[:-1], {}


@gate("rows", kernel="softmax_grad", public=False, vjp=[
    lambda g, dx, dy, y: softmax_grad(contiguous(g), y),
    lambda g, dx, dy, y: g * (dy - sum(dy * y, -1, True)) - dy * sum(g * y, -1, True)])
def softmax_grad(dy, y):
    """dx = y (dy - sum dy y), the sum over the last dimension"""
    return y.shape, {}


@gate("rows", kernel="softmax", name="softmax", public=False, vjp=[
    lambda dy, y, x: softmax_grad(contiguous(dy), y)])
def softmax_rows(x):
    """y = e^x / sum e^x over the last dimension"""
    return x.shape, {}


@gate("rows", kernel="log_softmax", name="log_softmax", public=False, vjp=[
    lambda dy, y, x: dy - exp(y) * sum(dy, -1, True)])
def log_softmax_rows(x):
    """y = x - ln sum e^x over the last dimension"""
    return x.shape, {}


def _along(rows, name, x, axis):
    """rows(x) along another axis than the last."""
    if axis == -1 and isinstance(x, Tensor) and x.is_contiguous and x.ndim:
        return rows(x)
    (x,) = tensors_of(rows, x)
    axis = one_axis(name, axis, x.ndim)
    if axis == x.ndim - 1:
        return rows(contiguous(x))
    order = (*(d for d in range(x.ndim) if d != axis), axis)
    y = rows(contiguous(transpose(x, order)))
    return transpose(y, tuple(order.index(d) for d in range(x.ndim)))


@composite(boxed=False)
def logsumexp(x, axis=None, keepdims=False):
    """y = ln sum e^x over `axis`; -inf, with gradient 0, where all of x is -inf"""
    (x,) = tensors_of(logsumexp_rows, x)
    if not keepdims and (axis == -1 and x.ndim or axis is None and x.ndim == 1):
        return logsumexp_rows(contiguous(x))
    axes = all_axes("logsumexp", axis, x.ndim)
    shape = tuple(1 if d in axes else size for d, size in enumerate(x.shape) if keepdims or d not in axes)
    kept = [d for d in range(x.ndim) if d not in axes]
    sizes = [x.shape[d] for d in kept]
    moved = x if kept + list(axes) == list(range(x.ndim)) else transpose(x, (*kept, *axes))
    return reshape(logsumexp_rows(reshape(moved, *sizes, _count(x, axes))), shape)


@composite(boxed=False)
def softmax(x, axis=-1):
    """y = e^x / sum e^x over `axis`; a row of all -inf gives NaN"""
    return _along(softmax_rows, "softmax", x, axis)


@composite(boxed=False)
def log_softmax(x, axis=-1):
    """y = x - ln sum e^x over `axis`"""
    return _along(log_softmax_rows, "log_softmax", x, axis)
