"""Normalization: over batches, channel by channel, and over the last dimensions of each sample."""
import numpy as np

from fastbp.create import full
from fastbp.errors import ShapeError, error
from fastbp_ext.gate import Joint, tensors_of
from fastbp_ext.tensor import from_numpy, no_grad

from .arithmetic import sqrt, square
from .reduction import LANES, QUARTER, mean, sum
from .row import composite, elementwise, gate
from .shape import broadcast_to, contiguous, expand_dims, memory_order, reshape, size_of, take, transpose

# --- channels: of x (N, C, ...) dimension 1. A sum over one is of sums over each sample, so that it is as fast where
# the batch lies last in memory, as behind a convolution.


def _without_gaps(x):
    """x, or a copy in C order where its memory has gaps or repeats."""
    step = x.dtype.itemsize
    for d in reversed(memory_order(x)):
        if x.shape[d] != 1 and x.strides[d] != step:
            return contiguous(x)
        step *= x.shape[d]
    return x


def _laid_as(z, x):
    """z, or a copy of it that lies as x does."""
    if z.strides == x.strides:
        return z
    order = memory_order(x)
    return transpose(contiguous(transpose(z, order)), [order.index(d) for d in range(x.ndim)])


def _samples(x):
    """x as sums over its samples are taken: (N, C) is one sample of N."""
    return expand_dims(transpose(x), 0) if x.ndim == 2 else x


def _over_samples(parts, x):
    """What was summed in each sample and channel, in one for each channel, shaped to broadcast with x."""
    return reshape(sum(parts, 0), (1, -1, *(1,) * (x.ndim - 2)))


def channel_sum(x):
    """The sum of each channel of x (N, C, ...), shaped (1, C, 1, ...)."""
    parts = _samples(x)
    return _over_samples(sum(parts, tuple(range(2, parts.ndim))), x)


def _channel_squares(x, m):
    """The sum of (x - m)^2 of each channel."""
    return _over_samples(squares_about(_samples(x), _samples(m)), x)


def _channel_products(x, z, m):
    """The sum of (x - m) z of each channel."""
    return _over_samples(products_about(_samples(x), _samples(_laid_as(z, x)), _samples(m)), x)


def _inside(dy, x):
    """dy (N, C), shaped to broadcast with x (N, C, ...)."""
    return reshape(dy, (*dy.shape, *(1,) * (x.ndim - 2)))


@gate("moment", kernel="moment", public=False, vjp=[
    lambda dy, y, x, m, axes: _inside(dy + dy, x) * (x - m),
    lambda dy, y, x, m, axes: -(_inside(dy + dy, x) * (x - m))])
def squares_about(x, m):
    """y = sum (x - m)^2 over all but the first two dimensions"""
    return x.shape[:2], {"axes": tuple(range(2, x.ndim))}


@gate("moment", kernel="moment", public=False, vjp=[
    lambda dy, y, x, z, m, axes: _inside(dy, x) * z,
    lambda dy, y, x, z, m, axes: _inside(dy, x) * (x - m),
    lambda dy, y, x, z, m, axes: -(_inside(dy, x) * z)])
def products_about(x, z, m):
    """y = sum (x - m) z over all but the first two dimensions; z lies as x does"""
    return x.shape[:2], {"axes": tuple(range(2, x.ndim))}


standardize = elementwise(
    "standardize(x, m, r, w, b)", "y = (x - m) (r w) + b", public=False, vjp=[
        lambda dy, y, x, m, r, w, b: dy * (r * w),
        lambda dy, y, x, m, r, w, b: -(channel_sum(dy) * (r * w)),
        lambda dy, y, x, m, r, w, b: _channel_products(x, dy, m) * w,
        lambda dy, y, x, m, r, w, b: _channel_products(x, dy, m) * r,
        lambda dy, y, x, m, r, w, b: channel_sum(dy)])

# The gradient for x goes by way of m and r too, in one step: they get none of their own. (A second gradient does
# go through them: it differentiates that step, of which they are inputs.)
batch_standardize = elementwise(
    "batch_standardize(x, m, r, w, b)", "y = (x - m) (r w) + b; m is x's mean, r = 1 / sqrt(x's variance + eps)",
    kernel="standardize", public=False, vjp=[
        lambda dy, y, x, m, r, w, b: _batch_grad(dy, x, m, r, r * w),
        None,
        None,
        lambda dy, y, x, m, r, w, b: _channel_products(x, dy, m) * r,
        lambda dy, y, x, m, r, w, b: channel_sum(dy)])


def _batch_grad(dy, x, m, r, a):
    """a (dy - mean dy - x^ mean (dy x^)), x^ = (x - m) r"""
    n = float(x.size // x.shape[1])
    return standardize_grad(_laid_as(dy, x), x, m, a, -(a * square(r) * _channel_products(x, dy, m)) / n,
                            -(a * channel_sum(dy)) / n)


standardize_grad = elementwise(
    "standardize_grad(dy, x, m, a, s, d)", "dx = dy a + (x - m) s + d", public=False, vjp=[
        lambda g, dx, dy, x, m, a, s, d: g * a,
        lambda g, dx, dy, x, m, a, s, d: g * s,
        lambda g, dx, dy, x, m, a, s, d: -(g * s),
        lambda g, dx, dy, x, m, a, s, d: g * dy,
        lambda g, dx, dy, x, m, a, s, d: g * (x - m),
        lambda g, dx, dy, x, m, a, s, d: g])


def _each(name, what, w, size, x, otherwise):
    """Weights of so many channels or features as a row; `otherwise` where there are none."""
    if w is None:
        return full((size,), otherwise, x.dtype)
    _, w = tensors_of(standardize, x, w)
    if w.shape != (size,):
        raise error(ShapeError, f"{name}: {what} does not fit the input", got=f"{what} {w.shape}, input {x.shape}",
                    expected=f"{what} ({size},): one for each channel", fix="make the layer for that many channels")
    return w


@composite(method=False)
def batch_norm(x, running_mean=None, running_var=None, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    """y = (x - mean) / sqrt(var + eps) weight + bias, by channels (Ioffe and Szegedy, 2015)

    x (N, C) or (N, C, ...), all others (C,). training: mean and var (ddof 0) are those of the batch, and where running
    statistics are given they become (1 - momentum) old + momentum new, the variance of ddof 1; else the running
    ones are used. ShapeError: sizes that do not fit. ValueError: one value for each channel is no batch.
    """
    (x,) = tensors_of(standardize, x)
    if x.ndim < 2:
        raise error(ShapeError, "batch_norm: the input has no channels", got=f"shape {x.shape}",
                    expected="(N, C) or (N, C, ...)", fix="expand_dims(x, 0) for one sample")
    x, channels, n = _without_gaps(x), x.shape[1], x.size // (x.shape[1] or 1)
    shape = (1, channels, *(1,) * (x.ndim - 2))
    given = [(what, s) for what, s in (("running_mean", running_mean), ("running_var", running_var)) if s is not None]
    given = [_each("batch_norm", what, s, channels, x, 0) for what, s in given]
    w = reshape(_each("batch_norm", "weight", weight, channels, x, 1), shape)
    b = reshape(_each("batch_norm", "bias", bias, channels, x, 0), shape)
    if not training:
        if len(given) < 2:
            raise ValueError("batch_norm: running_mean and running_var are needed where not training")
        m, v = (reshape(s, shape) for s in given)
        return standardize(x, m, 1 / sqrt(v + eps), w, b)
    if len(given) == 1:
        raise error(ValueError, "batch_norm: one running statistic without the other", got=given[0][0],
                    expected="running_mean and running_var, or neither", fix="give both")
    if n < 2:
        raise error(ValueError, "batch_norm: a batch has more than one value for each channel in training",
                    got=f"shape {x.shape}", expected="2 values or more", fix="a larger batch, or eval()")
    m = channel_sum(x) / float(n)
    v = _channel_squares(x, m) / float(n)
    if given:
        with no_grad():
            for running, now in zip(given, (m, v * (n / (n - 1))), strict=True):
                running.copy_(running * (1 - momentum) + reshape(now, -1) * momentum)
    return batch_standardize(x, m, 1 / sqrt(v + eps), w, b)


# --- rows: the last dimension of a matrix in C order. center 0: m is 0, and the mean square stands for the variance.

@gate("rows", kernel="layer_norm", name="layer_norm", public=False, constants=["eps", "center"], vjp=[
    lambda dy, y, x, w, b, eps, center: layer_norm_grad(contiguous(dy), x, w, eps, center),
    lambda dy, y, x, w, b, eps, center: reshape(
        sum_of_lanes(layer_norm_lanes(contiguous(dy), x, eps, center)), w.shape),
    lambda dy, y, x, w, b, eps, center: dy])
def layer_norm_rows(x, w, b, eps, center):
    """y = x^ w + b, x^ = (x - m) r, r = 1 / sqrt(mean (x - m)^2 + eps), of rows"""
    return x.shape, {"eps": eps, "center": center}


@gate("rows", kernel="layer_norm_grad", public=False, constants=["eps", "center"], vjp=[
    lambda g, dx, dy, x, w, eps, center: layer_norm_grad(contiguous(g), x, _ones(x), eps, center) * w,
    lambda g, dx, dy, x, w, eps, center: _second(g, dx, dy * w, x, eps, center),
    lambda g, dx, dy, x, w, eps, center: layer_norm_grad(contiguous(g), x, _ones(x), eps, center) * dy])
def layer_norm_grad(dy, x, w, eps, center):
    """dx = r (g - mean g - x^ mean (g x^)), g = dy w; center 0: without mean g"""
    return x.shape, {"eps": eps, "center": center}


def _second(u, dx, g, x, eps, center):
    """The gradient for x of sum(u dx), dx = J g: J is symmetric, so it is that of u and of g in turn."""
    hat, ones = layer_norm_rows(x, _ones(x), _ones(x) * 0, eps, center), _ones(x)
    m = mean(x, 1, True) if center else 0
    r = 1 / sqrt(mean(square(x - m), 1, True) + eps)
    of_u, of_g = mean(u * hat, 1, True), mean(g * hat, 1, True)
    return (-r) * (mean(u * dx, 1, True) * hat + of_g * layer_norm_grad(contiguous(u), x, ones, eps, center)
                   + of_u * layer_norm_grad(contiguous(g), x, ones, eps, center))


def _ones(x):
    return full((1, x.shape[1]), 1, x.dtype)


def _rows_of_lanes(u, x):
    """For each row of x that of u (quarters, 16, n) to which it adds."""
    rows = np.arange(x.shape[0])
    return take(reshape(u, -1, x.shape[1]), from_numpy(rows // QUARTER * LANES + rows % LANES), axis=0)


@gate("rows", kernel="layer_norm_lanes", public=False, constants=["eps", "center"], vjp=[
    lambda u, y, dy, x, eps, center: _rows_of_lanes(u, x) * layer_norm_rows(x, _ones(x), _ones(x) * 0, eps, center),
    lambda u, y, dy, x, eps, center: layer_norm_grad(_rows_of_lanes(u, x) * dy, x, _ones(x), eps, center)])
def layer_norm_lanes(dy, x, eps, center):
    """y = sums of rows of dy x^, by QUARTER rows each and there every LANES-th: the first step of a sum over rows"""
    return (-(-x.shape[0] // QUARTER), LANES, x.shape[1]), {"eps": eps, "center": center}


layer_norm_lanes.joint = Joint(layer_norm_grad, "layer_norm_both", lambda dy, x: (dy, x))


@gate("combine", kernel="sum_of_lanes", public=False, vjp=[lambda dy, y, x: broadcast_to(dy, x.shape)])
def sum_of_lanes(x):
    """y = the sum over rows whose first step gave x (quarters, 16, n)"""
    return x.shape[2:], {}


def sizes(shape):
    """A number, NumPy's too, or several as a tuple."""
    return (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(shape)


def _normalized(name, x, normalized_shape, weight, bias, eps, center):
    (x,) = tensors_of(layer_norm_rows, x)
    shape = sizes(normalized_shape)
    if not shape or x.shape[max(x.ndim - len(shape), 0):] != shape:
        raise error(ShapeError, f"{name}: the input does not end in the normalized shape", got=f"shape {x.shape}",
                    expected=f"(..., {', '.join(map(str, shape))})", fix="make the layer for that shape")
    params = []
    for what, p, otherwise in (("weight", weight, 1), ("bias", bias, 0)):
        if p is None:
            params.append(full((1, size_of(shape)), otherwise, x.dtype))
            continue
        _, p = tensors_of(layer_norm_rows, x, p)
        if p.shape != shape:
            raise error(ShapeError, f"{name}: {what} does not fit the normalized shape", got=f"{what} {p.shape}",
                        expected=f"{shape}", fix="one for each element that is normalized")
        params.append(reshape(p, 1, -1))
    y = layer_norm_rows(reshape(x, -1, size_of(shape)), *params, float(eps), center)
    return reshape(y, x.shape)


@composite(method=False)
def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    """y = (x - mean) / sqrt(var + eps) weight + bias, over the last dimensions (Ba, Kiros and Hinton, 2016)

    normalized_shape: a number or a tuple, the sizes of these dimensions, the shape of weight and bias too.
    ShapeError: x does not end in it.
    """
    return _normalized("layer_norm", x, normalized_shape, weight, bias, eps, 1)


@composite(method=False)
def rms_norm(x, normalized_shape, weight=None, eps=None):
    """y = x / sqrt(mean x^2 + eps) weight, over the last dimensions (Zhang and Sennrich, 2019)

    normalized_shape as in layer_norm. eps None: the dtype's epsilon. ShapeError: x does not end in it.
    """
    if eps is None:
        eps = np.finfo(tensors_of(layer_norm_rows, x)[0].dtype).eps
    return _normalized("rms_norm", x, normalized_shape, weight, None, eps, 0)
