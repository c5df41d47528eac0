"""Convolution and pooling, over maps that lie batch last: x (C, H, W, N) of images (N, C, H, W).

A layer's result has the shape (N, C, H, W) over memory that lies batch last, so the next layer, and
what is elementwise between them, copies nothing; fastbp_ext/kernels/convolution.pxi says why.
"""
import operator
from typing import NamedTuple

import numpy as np

from fastbp.create import ones
from fastbp.errors import ShapeError, error
from fastbp_ext.gate import tensors_of
from fastbp_ext.tensor import tensor

from .reduction import mean, sum
from .row import gate, grouped
from .shape import contiguous, expand_dims, squeeze, transpose


class Window(NamedTuple):
    """How a window slides.

    space: OH, OW, N, groups, outputs and inputs of a group, KH, KW, H, W. geometry: stride, padding
    before, dilation, each for rows and columns. relu: whether a max pool is of max(0, x).
    """
    space: tuple
    geometry: tuple
    relu: bool = False    # by the planner

    @property
    def cuts(self):
        """Whether each pixel of the larger map is in one window, and in one only."""
        oh, ow, *_, kh, kw, h, w = self.space
        return self.geometry == (kh, kw, 0, 0, 1, 1) and (oh * kh, ow * kw) == (h, w)

    @property
    def numbers(self):
        """The geometry as the kernels read it."""
        return *self.geometry, self.relu, self.cuts

    @property
    def map(self):
        """The shape of the smaller map, y."""
        oh, ow, n, groups, outs = self.space[:5]
        return groups * outs, oh, ow, n

    @property
    def source(self):
        """The shape of the larger map, x."""
        n, groups, _, ins, _, _, h, w = self.space[2:]
        return groups * ins, h, w, n

    @property
    def weight(self):
        """The shape of the weights."""
        _, _, _, groups, outs, ins, kh, kw = self.space[:8]
        return groups * outs, ins, kh, kw


def _convolved(window):
    return window.map, {"window": window, "units": window.space[3] * window.space[0]}


_CONVOLVE = [
    lambda dy, y, x, w, *bias, window, units: convolve_input(contiguous(dy), w, window),
    lambda dy, y, x, w, *bias, window, units: convolve_weight(contiguous(dy), x, window)]


@gate("windows", kernel="convolve", public=False, vjp=_CONVOLVE)
def convolve(x, w, window):
    """y[o, h, w, n] = the sum over c, k, j of x[c, s h - p + d k, s w - p + d j, n] w[o, c, k, j]"""
    return _convolved(window)


@gate("windows", kernel="convolve", public=False, vjp=[
    *_CONVOLVE, lambda dy, y, x, w, b, window, units: sum(dy, (1, 2, 3))])
def convolve_bias(x, w, b, window):
    """y = convolve(x, w) + b[o]"""
    return _convolved(window)


@gate("windows", kernel="convolve_input", public=False, vjp=[
    lambda g, dx, dy, w, window, units: convolve(contiguous(g), w, window),
    lambda g, dx, dy, w, window, units: convolve_weight(dy, contiguous(g), window)])
def convolve_input(dy, w, window):
    """dx[c, ...] = the sum over o, k, j of dy[o, ...] w[o, c, k, j], where y read x"""
    return window.source, {"window": window, "units": window.space[3] * window.space[8]}


@gate("windows", kernel="convolve_weight", public=False, vjp=[
    lambda g, dw, dy, x, window, units: convolve(x, contiguous(g), window),
    lambda g, dw, dy, x, window, units: convolve_input(dy, contiguous(g), window)])
def convolve_weight(dy, x, window):
    """dw[o, c, k, j] = the sum over pixels and the batch of dy[o, h, w, n] x[c, s h - p + d k, s w - p + d j, n]"""
    _, _, _, groups, outs, _, kernel_h = window.space[:7]
    return window.weight, {"window": window, "units": groups * -(-outs // 4) * kernel_h}


@gate("windows", kernel="max_pool", public=False, vjp=[
    lambda dy, y, x, window, units: max_pool_input(contiguous(dy), x, y, window)])
def max_pool(x, window):
    """y = the largest element of each window; NaN where one is. The first of several largest takes the gradient."""
    return window.map, {"window": window, "units": window.space[3] * window.space[0]}


@gate("windows", kernel="max_pool_input", public=False, vjp=[
    lambda g, dx, dy, x, y, window, units: max_pool_pick(contiguous(g), x, y, window), None, None])
def max_pool_input(dy, x, y, window):
    """dx = dy at the first largest element of each window, else 0"""
    return window.source, {"window": window, "units": window.space[3]}


@gate("windows", kernel="max_pool_pick", public=False, vjp=[
    lambda g, z, dx, x, y, window, units: max_pool_input(contiguous(g), x, y, window), None, None])
def max_pool_pick(dx, x, y, window):
    """z = dx at the first largest element of each window of x"""
    return window.map, {"window": window, "units": window.space[3] * window.space[0]}


# --- what nn.functional has: images (N, C, H, W), PyTorch's arguments

def _batch_last(x):
    return contiguous(transpose(x, (1, 2, 3, 0)))


def _batch_first(y):
    return transpose(y, (3, 0, 1, 2))


def _pair(name, what, value, least, count=2):
    """An int or two as a pair, or of `count`."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value,) * count
    try:
        pair = tuple([operator.index(v) for v in pair])
        fits = len(pair) == count and min(pair) >= least and not any(isinstance(v, bool) for v in pair)
    except TypeError:
        fits = False
    if not fits:
        raise error(ValueError, f"{name}: {what} can't be this", got=repr(value), expected=f"an int of {least} or more"
                    + (", or two of them (rows, columns)" if count == 2 else ""), fix=f"{what}={least or 1}")
    return pair


def _images(name, x, like):
    """x as a floating tensor (N, C, H, W), and whether it came without N."""
    x = tensors_of(like, x)[0]
    if x.ndim not in (3, 4):
        raise error(ShapeError, f"{name}: the input is no batch of images", got=f"shape {x.shape}",
                    expected="(N, C, H, W), or (C, H, W)", fix="reshape it: x.reshape(-1, 1, 28, 28) for MNIST's rows")
    if not x.size:
        raise error(ShapeError, f"{name}: the batch is empty", got=f"shape {x.shape}", expected="at least one image",
                    fix="leave empty batches out")
    return (expand_dims(x, 0), True) if x.ndim == 3 else (x, False)


def _slide(name, x, groups, outs, kernel, stride, padding, dilation, ceil=False):
    """The Window of images x; padding may be "same"."""
    n, channels, *sizes = x.shape
    before, out = [], []
    for axis, (size, k, s, d) in enumerate(zip(sizes, kernel, stride, dilation, strict=True)):
        reach = d * (k - 1) + 1
        p, whole = ((reach - 1) // 2, reach - 1) if padding == "same" else (padding[axis], 2 * padding[axis])
        if size + whole < reach:
            raise error(ShapeError, f"{name}: the window is larger than the image",
                        got=f"images {sizes[0]} x {sizes[1]}, padding {p}, window {kernel[0]} x {kernel[1]}"
                            + (f", dilation {d}" if d > 1 else ""),
                        expected=f"{'columns' if axis else 'rows'} of at least {reach}",
                        fix="choose a smaller kernel_size, more padding, or larger images")
        count = (size + whole - reach + (s - 1 if ceil else 0)) // s + 1
        if ceil and (count - 1) * s >= size + p:    # a window that begins in the padding behind does not count
            count -= 1
        before.append(p)
        out.append(count)
    return Window((*out, n, groups, outs, channels // groups, *kernel, *sizes), (*stride, *before, *dilation))


@grouped
def conv2d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    """y[n, o] = b[o] + the sum over c of the window's product of x[n, c] and w[o, c]

    x (N, C, H, W) or (C, H, W), w (O, C / groups, KH, KW), b (O,) or None give y (N, O, OH, OW), with
    OH = floor((H + 2 padding - dilation (KH - 1) - 1) / stride) + 1. stride, padding, dilation: an int
    or two; padding may be "valid" (0) or "same" (OH = H, for a stride of 1). It is a
    cross-correlation, as in PyTorch: the window is not turned. y lies batch last in memory.
    ShapeError: sizes that do not fit, a window larger than its image.
    """
    return _conv("conv2d", x, w, b, stride, padding, dilation, groups)


def _conv(name, x, w, b, stride, padding, dilation, groups):
    x, single = _images(name, x, convolve)
    x, w, *bias = tensors_of(convolve, x, w, *([] if b is None else [b]))
    stride, dilation = _pair(name, "stride", stride, 1), _pair(name, "dilation", dilation, 1)
    if padding == "same" and stride != (1, 1):
        raise error(ValueError, f'{name}: padding="same" goes with a stride of 1', got=f"stride {stride}",
                    expected="stride 1", fix="give the padding as a number")
    if padding != "same":
        padding = _pair(name, "padding", 0 if padding == "valid" else padding, 0)
    (groups,) = _pair(name, "groups", groups, 1, 1)
    if w.ndim != 4 or w.shape[0] % groups or x.shape[1] != groups * w.shape[1] or not w.size:
        raise error(ShapeError, f"{name}: the images do not fit the weight",
                    got=f"images {x.shape}, weight {w.shape}, groups {groups}",
                    expected="images (N, C, H, W), weight (O, C / groups, KH, KW), O a multiple of groups",
                    fix="make the layer for as many input channels as the images have")
    if bias and bias[0].shape != w.shape[:1]:
        raise error(ShapeError, f"{name}: the bias does not fit the weight",
                    got=f"bias {bias[0].shape}, weight {w.shape}", expected=f"bias {w.shape[:1]}",
                    fix="give one bias for each output channel")
    window = _slide(name, x, groups, w.shape[0] // groups, w.shape[2:], stride, padding, dilation)
    like = convolve_bias if bias else convolve
    y = _batch_first(like(_batch_last(x), contiguous(w), *map(contiguous, bias), window))
    return squeeze(y, 0) if single else y


@grouped
def conv1d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    """y[n, o] = b[o] + the sum over c of the window's product of x[n, c] and w[o, c], along one axis

    x (N, C, L) or (C, L), w (O, C / groups, K), b (O,) or None give y (N, O, OL); `conv2d` with one row.
    """
    x, w = tensors_of(convolve, x, w)
    if x.ndim not in (2, 3) or w.ndim != 3:
        raise error(ShapeError, "conv1d: the input is no batch of rows", got=f"input {x.shape}, weight {w.shape}",
                    expected="input (N, C, L) or (C, L), weight (O, C / groups, K)", fix="reshape them")

    def wide(what, value, least):    # for the one row, which the least suits, and the columns
        return least, *_pair("conv1d", what, value, least, 1)

    y = _conv("conv1d", expand_dims(x, -2), expand_dims(w, 2), b, wide("stride", stride, 1),
              padding if padding in ("same", "valid") else wide("padding", padding, 0), wide("dilation", dilation, 1),
              groups)
    return squeeze(y, -2)


def _pool(name, x, like, kernel_size, stride, padding, dilation, ceil_mode):
    """Images, whether they came without N, and the Window of a pool."""
    x, single = _images(name, x, like)
    kernel = _pair(name, "kernel_size", kernel_size, 1)
    stride = kernel if stride is None else _pair(name, "stride", stride, 1)
    padding = _pair(name, "padding", padding, 0)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise error(ValueError, f"{name}: the padding is more than half of the window",
                    got=f"padding {padding}, kernel_size {kernel}", expected="at most half of kernel_size",
                    fix="choose less padding")
    dilation = _pair(name, "dilation", dilation, 1)
    return x, single, _slide(name, x, x.shape[1], 1, kernel, stride, padding, dilation, ceil_mode)


@grouped
def max_pool2d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """y = the largest element of each window of x (N, C, H, W) or (C, H, W)

    stride: kernel_size, unless it is given. What lies outside counts as -inf. NaN where an element is;
    the first of several largest takes the gradient. ShapeError: a window larger than its image.
    """
    x, single, window = _pool("max_pool2d", x, max_pool, kernel_size, stride, padding, dilation, ceil_mode)
    y = _batch_first(max_pool(_batch_last(x), window))
    return squeeze(y, 0) if single else y


@grouped
def avg_pool2d(x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
    """y = the mean of each window of x (N, C, H, W) or (C, H, W)

    stride: kernel_size, unless it is given. Zeros of the padding count as elements, unless
    count_include_pad is False; divisor_override: what sums are divided by instead.
    ShapeError: a window larger than its image.
    """
    x, single, window = _pool("avg_pool2d", x, convolve, kernel_size, stride, padding, 1, ceil_mode)
    if divisor_override is None:
        count = _inside(window, x.dtype, count_include_pad)
    elif hasattr(divisor_override, "__index__") and divisor_override != 0:
        count = operator.index(divisor_override)
    else:
        raise error(ValueError, "avg_pool2d: divisor_override can't be this", got=repr(divisor_override),
                    expected="an int other than 0", fix="divisor_override=1 gives sums")
    total = convolve(_batch_last(x), ones(window.weight, dtype=x.dtype), window)
    y = _batch_first(total / count)
    return squeeze(y, 0) if single else y


def _inside(window, dtype, padded):
    """How many elements each window has: a number, or where they differ a tensor (OH, OW, 1)."""
    sides = []
    for axis in range(2):
        size, k, s, p = window.space[8 + axis], window.space[6 + axis], window.geometry[axis], window.geometry[2 + axis]
        low, high = (-p, size + p) if padded else (0, size)
        begin = np.arange(window.space[axis]) * s - p
        sides.append(np.minimum(begin + k, high) - np.maximum(begin, low))
    count = sides[0][:, None, None] * sides[1][:, None]
    return float(count.flat[0]) if (count == count.flat[0]).all() else tensor(count.astype(dtype))


@grouped
def adaptive_avg_pool2d(x, output_size):
    """y = the means of output_size parts of x (N, C, H, W) or (C, H, W)

    output_size: an int or two, None for the size that there is. Part i of m of a side of n pixels
    goes from floor(i n / m) to ceil((i + 1) n / m); parts share pixels where m does not divide n,
    and there a NaN or infinity of a row or column is in all its parts.
    """
    x, single = _images("adaptive_avg_pool2d", x, mean)
    wanted = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    if len(wanted) == 2:
        wanted = [size if o is None else o for o, size in zip(wanted, x.shape[2:], strict=True)]
    sizes = _pair("adaptive_avg_pool2d", "output_size", wanted, 1)
    if sizes == (1, 1):
        y = mean(x, (2, 3), keepdims=True)
    elif not any(size % o for size, o in zip(x.shape[2:], sizes, strict=True)):
        y = avg_pool2d(x, [size // o for size, o in zip(x.shape[2:], sizes, strict=True)])
    else:
        rows, columns = [tensor(_parts(size, o), dtype=x.dtype) for size, o in zip(x.shape[2:], sizes, strict=True)]
        y = transpose(rows, (1, 0)) @ (x @ columns)
    return squeeze(y, 0) if single else y


def _parts(size, count):
    """(size, count): each column weighs the elements of one part."""
    at, part = np.arange(size)[:, None], np.arange(count)
    inside = (at >= part * size // count) & (at < -(-(part + 1) * size // count))
    return inside / inside.sum(0)
