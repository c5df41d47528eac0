"""Shapes: views, copies, joining, indexing. No arithmetic; integers and bools are welcome."""
import operator

import numpy as np

from fastbp.errors import DtypeError, ShapeError, error
from fastbp_ext.gate import as_index, one_axis, set_engine_gates
from fastbp_ext.tensor import Tensor, from_numpy, get_recorder, tensor

from .row import composite, gate


def size_of(shape):
    n = 1
    for size in shape:
        n *= size
    return n


def all_axes(name, axis, ndim):
    """axis=None, a number or a tuple of numbers as an ascending tuple."""
    if axis is None:
        return tuple(range(ndim))
    axes = sorted(one_axis(name, a, ndim) for a in (axis if isinstance(axis, (tuple, list)) else (axis,)))
    if len(set(axes)) < len(axes):
        raise error(ShapeError, f"{name}: an axis comes twice", got=f"axis={axis}", expected="each axis once",
                    fix="leave one out")
    return tuple(axes)


def _sizes(shape):
    """reshape(x, 2, 3), reshape(x, (2, 3)) and reshape(x, 6)."""
    if len(shape) > 1 and type(shape[0]) is int and type(shape[-1]) is int:
        return shape
    if len(shape) == 1 and not hasattr(shape[0], "__index__"):
        shape = shape[0]
    return tuple([operator.index(size) for size in shape])


def _dense(shape, itemsize):
    strides, step = [], itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


@gate("copy", name="copy", public=False, any_dtype=True, vjp=[lambda dy, y, x: dy])
def copy(x):
    """y = x, in C order"""
    return x.shape, {}


@gate("convert", kernel="narrow", result="float32", public=False, any_dtype=True, vjp=[None])
def narrow(x):
    """y = x, float64, rounded to float32"""
    return x.shape, {}


@gate("convert", kernel="widen", result="float64", public=False, any_dtype=True, vjp=[None])
def widen(x):
    """y = x, float32, as float64"""
    return x.shape, {}


@gate("convert", kernel="count", result="float64", public=False, any_dtype=True, vjp=[None])
def count(x):
    """y = 1 where the bool x holds, else 0; float64"""
    return x.shape, {}


@gate("convert", kernel="real", result="float64", public=False, any_dtype=True, vjp=[None])
def real(x):
    """y = x, int64, as float64"""
    return x.shape, {}


set_engine_gates(copy, narrow, count)


def contiguous(x):
    """x itself where it lies in C order, else a copy that does."""
    return x if x.is_contiguous else copy(x)


@gate("view", name="reshape", public=False, any_dtype=True, vjp=[lambda dy, y, x: reshape(dy, x.shape)])
def flat_reshape(x, shape):
    """y = x with another shape; x lies in C order"""
    return shape, None, 0, {}


@composite(boxed=False)
def reshape(x, *shape):
    """y = x with another shape, in C order; one size may be -1

    A view where x lies in C order, else a view of a copy.
    """
    x = x if isinstance(x, Tensor) else tensor(x)
    sizes = _sizes(shape)
    known, negative = 1, 0
    for size in sizes:
        if size < 0:
            negative += 1
        else:
            known *= size
    if negative == 1 and -1 in sizes and known and x.size % known == 0:
        sizes = [x.size // known if s == -1 else s for s in sizes]
    elif negative or known != x.size:
        raise error(ShapeError, "reshape: the number of elements differs",
                    got=f"{x.shape}, {x.size} elements, to {_sizes(shape)}",
                    expected="as many elements, with at most one -1", fix="check the sizes")
    return flat_reshape(contiguous(x), sizes)


@composite(boxed=False)
def flatten(x, start_dim=0, end_dim=-1):
    """y = x with dimensions start_dim to end_dim in one, in C order; a 0-d x becomes one element"""
    x = x if isinstance(x, Tensor) else tensor(x)
    if x.ndim == 0:
        return reshape(x, 1)
    start, end = one_axis("flatten", start_dim, x.ndim), one_axis("flatten", end_dim, x.ndim)
    if start > end:
        raise error(ShapeError, "flatten: start_dim comes after end_dim", got=f"{start_dim} and {end_dim} of {x.shape}",
                    expected="start_dim <= end_dim", fix="exchange them")
    return reshape(x, (*x.shape[:start], size_of(x.shape[start:end + 1]), *x.shape[end + 1:]))


def memory_order(x):
    """The dimensions of x in the order in which they lie, the longest step first."""
    return sorted(range(x.ndim), key=lambda d: -abs(x.strides[d]))


_REVERSED = [tuple(reversed(range(n))) for n in range(16)]


@gate("view", any_dtype=True, vjp=[
    lambda dy, y, x, axes: transpose(dy) if axes is _REVERSED[len(axes)] else transpose(
        dy, tuple(axes.index(d) for d in range(len(axes))))])
def transpose(x, *order, axes=None):
    """y = x with its dimensions permuted (reversed where no axes are given); a view"""
    if order:
        axes = order if len(order) > 1 or isinstance(order[0], int) else order[0]
    if not axes:
        axes = _REVERSED[x.ndim]
        return x.shape[::-1], x.strides[::-1], 0, {"axes": axes}
    axes = tuple([one_axis("transpose", a, x.ndim) for a in axes])
    if len(axes) != x.ndim or len(set(axes)) != x.ndim:
        raise error(ShapeError, "transpose: the axes are no permutation", got=axes,
                    expected=f"each of 0 to {x.ndim - 1} once", fix="to exchange two axes, list all of them")
    shape, strides = x.shape, x.strides
    return [shape[a] for a in axes], [strides[a] for a in axes], 0, {"axes": axes}


def swap(x):
    """The last two dimensions exchanged."""
    return transpose(x) if x.ndim == 2 else transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


@gate("view", any_dtype=True, vjp=[lambda dy, y, x: reshape(dy, x.shape)])
def expand_dims(x, axis):
    """y = x with new dimensions of size 1 at `axis`, a number or a tuple; a view"""
    if isinstance(axis, (tuple, list)):
        axes = all_axes("expand_dims", axis, x.ndim + len(axis))
    else:
        axes = (one_axis("expand_dims", axis, x.ndim + 1),)
    shape, strides = list(x.shape), list(x.strides)
    for a in axes:
        shape.insert(a, 1)
        strides.insert(a, x.dtype.itemsize)
    return tuple(shape), tuple(strides), 0, {}


@gate("view", any_dtype=True, vjp=[lambda dy, y, x: reshape(dy, x.shape)])
def squeeze(x, axis=None):
    """y = x without dimensions of size 1: all of them, or those at `axis`; a view"""
    shape = x.shape
    if type(axis) is int:
        axes = (one_axis("squeeze", axis, x.ndim),)
    else:
        axes = [a for a in all_axes("squeeze", axis, x.ndim) if axis is not None or shape[a] == 1]
    if [1 for a in axes if shape[a] != 1]:
        raise error(ShapeError, "squeeze: the size is not 1", got=f"shape {shape}, axis {axis}",
                    expected="axes of size 1", fix="leave the axis out, or use reshape")
    strides = x.strides
    kept = [d for d in range(len(shape)) if d not in axes]
    return [shape[d] for d in kept], [strides[d] for d in kept], 0, {}


@gate("view", any_dtype=True, vjp=[lambda dy, y, x: sum_to(dy, x.shape)])
def broadcast_to(x, shape):
    """y = x repeated along new dimensions and those of size 1; a view"""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    new = len(shape) - x.ndim
    strides = [0] * new
    fits = new >= 0
    if fits:
        for size, wanted, step in zip(x.shape, shape[new:], x.strides, strict=True):
            fits = fits and (size == wanted or size == 1)
            strides.append(0 if size == 1 else step)
    if not fits:
        raise error(ShapeError, "broadcast_to: the shape does not fit", got=f"{x.shape} to {shape}",
                    expected="sizes that are equal or 1, counted from the last dimension", fix="reshape first")
    return shape, strides, 0, {}


def sum_to(dy, shape):
    """The gradient of broadcasting: the sum over the dimensions that were repeated."""
    if dy.shape == shape:
        return dy
    from .reduction import sum
    new = dy.ndim - len(shape)
    axes = tuple(range(new)) + tuple(
        new + d for d, size in enumerate(shape) if size == 1 and dy.shape[new + d] != 1)
    summed = sum(dy, axes)
    return summed if summed.shape == shape else reshape(summed, shape)


# --- joining

def _part(dy, y, *xs, which, axis):
    start = 0
    for x in xs[:which]:
        start += x.shape[axis]
    return getitem(dy, (slice(None),) * axis + (slice(start, start + xs[which].shape[axis]),))


@gate("join", method=False, any_dtype=True, vjp=[_part])
def concatenate(tensors, axis=0):
    """y = the tensors one after the other along an existing axis"""
    first = tensors[0]
    if first.ndim == 0:
        raise error(ShapeError, "concatenate: 0-d tensors have no axis", got="shape ()",
                    expected="one dimension or more", fix="use stack")
    axis = one_axis("concatenate", axis, first.ndim)
    length, shape = 0, list(first.shape)
    fits = True
    for x in tensors:
        other = list(x.shape)
        fits = fits and len(other) == len(shape)
        if fits:
            length += other[axis]
            other[axis] = shape[axis]
            fits = other == shape
    if not fits:
        raise error(ShapeError, "concatenate: the shapes do not fit", got=", ".join(str(x.shape) for x in tensors),
                    expected=f"equal sizes but along axis {axis}", fix="reshape, or choose another axis")
    shape[axis] = length
    return shape, {"axis": axis}


@gate("join", method=False, any_dtype=True, vjp=[
    lambda dy, y, *xs, which, axis: getitem(dy, (slice(None),) * axis + (which,))])
def stack(tensors, axis=0):
    """y = the tensors, of one shape, along a new axis"""
    shape = tensors[0].shape
    if any(x.shape != shape for x in tensors):
        raise error(ShapeError, "stack: the shapes differ", got=", ".join(str(x.shape) for x in tensors),
                    expected="one shape", fix="reshape, or use concatenate")
    axis = one_axis("stack", axis, len(shape) + 1)
    return shape[:axis] + (len(tensors),) + shape[axis:], {"axis": axis}


# --- indexing

def _look(parts, shape, strides):
    """Shape, strides and offset of the view that normalized parts of an index make."""
    new_shape, new_strides, offset, d = [], [], 0, 0
    for part in parts:
        if part is None:
            new_shape.append(1)
            new_strides.append(0)
            continue
        if isinstance(part, int):
            offset += part * strides[d]
        else:
            start, step, length = part
            offset += start * strides[d] if length else 0
            new_shape.append(length)
            new_strides.append(step * strides[d])
        d += 1
    return tuple(new_shape), tuple(new_strides), offset


@gate("view", name="getitem", public=False, any_dtype=True, vjp=[
    lambda dy, y, x, parts: place(dy, x.shape, parts)])
def window(x, parts):
    """y = x[slices and numbers]; a view"""
    return *_look(parts, x.shape, x.strides), {"parts": parts}


@gate("place", public=False, any_dtype=True, vjp=[lambda dy, y, x, parts, strides, offset: window(dy, parts)])
def place(x, shape, parts):
    """y = 0, but x at y[slices and numbers]"""
    _, strides, offset = _look(parts, shape, _dense(shape, x.dtype.itemsize))
    return shape, {"parts": parts, "strides": strides, "offset": offset}


@gate("take", public=False, any_dtype=True, vjp=[
    lambda dy, y, x, *indices, axis: scatter(contiguous(dy), *indices, axis=axis, shape=x.shape)])
def take(x, *indices, axis):
    """y[m, ...] = x[..., indices[m], ...]: the indexed dimensions, from `axis` on, become the first"""
    rest = x.shape[:axis] + x.shape[axis + len(indices):]
    return (indices[0].size, *rest), {"axis": axis}


@gate("scatter", kernel="scatter", public=False, vjp=[
    lambda g, y, dy, *indices, axis, shape: take(g, *indices, axis=axis)])
def scatter(dy, *indices, axis, shape):
    """y = 0; y[..., indices[m], ...] += dy[m, ...], in the order of m"""
    return shape, {"axis": axis, "shape": shape}


def _is_array(part):
    return isinstance(part, (np.ndarray, list, range)) or isinstance(part, Tensor) and part.ndim > 0


def _is_number_or_array(part):
    return part is not None and not isinstance(part, slice)


def _bad_index(part):
    return error(DtypeError, "indexing: this is no index", got=f"{type(part).__name__} {part!r}"[:200],
                 expected="integers, slices, None, ... and integer arrays", fix="convert it to integers")


def _expand(x, index):
    """An index as a list with one part for each dimension, and None for new ones."""
    parts = list(index) if isinstance(index, tuple) else [index]
    for k, part in enumerate(parts):
        if isinstance(part, (bool, np.bool_)) or getattr(part, "shape", 0) == () and part.dtype == bool:
            raise _bad_index(part)
        if isinstance(part, (list, range)):
            parts[k] = np.asarray(part) if part else np.zeros(0, np.int64)
        elif isinstance(part, Tensor) and part.dtype == bool:
            parts[k] = part.numpy()
    used = 0
    for part in parts:
        used += part.ndim if _is_mask(part) else part is not None and part is not Ellipsis
    dots = [k for k, p in enumerate(parts) if p is Ellipsis]
    if len(dots) > 1 or used > x.ndim:
        raise error(IndexError, "indexing: too many indices", got=f"{used} for shape {x.shape}",
                    expected=f"at most {x.ndim}, and one ...", fix="leave some out")
    at = dots[0] if dots else len(parts)
    # Dots between index arrays keep them apart, also where they stand for no dimension.
    apart = any(map(_is_number_or_array, parts[:at])) and any(map(_is_number_or_array, parts[at + 1:]))
    parts[at:at + 1] = [slice(None)] * (x.ndim - used)
    expanded = []
    for part in parts:
        if _is_mask(part):
            if get_recorder() is not None:
                get_recorder().watch(part)    # what it chooses is chosen now
            d = len([p for p in expanded if p is not None])
            if part.shape != x.shape[d:d + part.ndim]:
                raise error(IndexError, "indexing: a mask has another shape than what it chooses from",
                            got=f"mask {part.shape} at dimension {d} of shape {x.shape}",
                            expected=f"{x.shape[d:d + part.ndim]}", fix="make the mask of that shape")
            expanded.extend(np.nonzero(part))
        else:
            expanded.append(part)
    return expanded, apart


def _is_mask(part):
    return isinstance(part, np.ndarray) and part.dtype == bool


@composite(method=False, boxed=False)
def getitem(x, index):
    """y = x[index]: integers, slices, None, ... and integer (or bool) arrays, with NumPy's meaning

    Written x[index]. Slices and integers alone give a view; arrays give a copy. IndexError:
    an index is out of range.
    """
    if type(index) is int and x.ndim and -x.shape[0] <= index < x.shape[0]:    # the most common, and quick
        shape = x.shape
        return window(x, (index % shape[0], *[(0, 1, size) for size in shape[1:]]))
    parts, apart = _expand(x, index)
    arrays = any(_is_array(p) for p in parts)
    view, advanced, d = [], [], 0
    for part in parts:
        if part is None:
            view.append(None)
            continue
        size = x.shape[d]
        if isinstance(part, slice):
            start, stop, step = part.indices(size)
            view.append((start, step, len(range(start, stop, step))))
        elif arrays:
            if not _is_array(part) and not isinstance(part, (int, np.integer, Tensor)):
                raise _bad_index(part)
            given = part if isinstance(part, Tensor) else from_numpy(np.asarray(part))
            advanced.append((len(view), as_index(given, size, "indexing", "indices")[0]))
            view.append((0, 1, size))
        else:
            try:
                at = operator.index(part)
            except TypeError:
                raise _bad_index(part) from None
            if not -size <= at < size:
                raise error(IndexError, "indexing: the index is out of range", got=f"{at} at dimension {d}",
                            expected=f"{-size} to {size - 1}", fix="check it against the tensor's shape")
            view.append(at % size)
        d += 1
    if view != [(0, 1, size) for size in x.shape]:
        x = window(x, tuple(view))
    if not advanced:
        return x
    return _take_arrays(x, [a for a, _ in advanced], [i for _, i in advanced], apart)


def _take_arrays(x, axes, indices, apart):
    """NumPy's advanced indexing along `axes`, the other dimensions being whole."""
    if len(indices) == 1:
        shape = indices[0].shape
        y = take(x, contiguous_row(indices[0]), axis=axes[0])
        return _index_dims_at(y, x, shape, axes[0], 1)
    try:
        shape = np.broadcast_shapes(*(i.shape for i in indices))
    except ValueError:
        raise error(ShapeError, "indexing: the index arrays do not broadcast",
                    got=", ".join(str(i.shape) for i in indices), expected="shapes that broadcast",
                    fix="reshape one of them") from None
    axis = axes[0]
    if apart or axes != list(range(axis, axis + len(axes))):
        # Arrays apart from each other: their dimensions come first.
        x = transpose(x, (*axes, *(d for d in range(x.ndim) if d not in axes)))
        axis = 0
    indices = [contiguous_row(broadcast_to(i, shape)) for i in indices]
    return _index_dims_at(take(x, *indices, axis=axis), x, shape, axis, len(axes))


def contiguous_row(x):
    return x if x.ndim == 1 and x.is_contiguous else reshape(x, x.size)


def _index_dims_at(y, x, shape, axis, count):
    """What `take` gave, its first dimension shaped as the index and moved to `axis`."""
    n = len(shape)
    if n != 1:
        y = reshape(y, shape + x.shape[:axis] + x.shape[axis + count:])
    return y if axis == 0 else transpose(y, (*range(n, n + axis), *range(n), *range(n + axis, y.ndim)))
