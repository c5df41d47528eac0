"""Batches of arrays that go together, and the order in which they come."""
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastbp.errors import ShapeError, error
from fastbp.random import generator


def batches(
    *arrays: Any, batch_size: int, shuffle: bool = False,
    rng: int | np.random.Generator | None = None,
) -> Iterator[Any]:
    """Batch i holds rows i * batch_size to (i + 1) * batch_size of each array, in `order`.

    `for xb, yb in batches(X, Y, batch_size=100)`: a tuple for each batch; with one array the
    batch itself, `for xb in batches(X, batch_size=100)`. The last batch may be shorter.
    `arrays` are NumPy arrays, Tensors or anything with `len` and their indexing, of any dtype
    and one length. Batches are views, `array[i:j]`; with `shuffle` copies, `array[rows]`,
    by one permutation, drawn from `rng` at the call: an int starts afresh, a
    `numpy.random.Generator` is drawn from, None draws from the package's stream
    (`manual_seed`).

    Checked at the call. ShapeError: no rows, lengths that differ, a 0-d array. ValueError: no
    arrays, `batch_size` or seed too small. TypeError: not an array, `batch_size` or `rng` of
    another type.
    """
    n, size = rows(arrays), checked_batch_size(batch_size)
    chosen = order(n, shuffle, rng)
    return _cut(arrays, n, size, chosen)


def order(n: int, shuffle: bool, rng: int | np.random.Generator | None) -> np.ndarray | None:
    """The rows in their order: None for 0 ... n - 1, else `generator(rng).permutation(n)`.

    int64 (n,). `rng` is checked either way, and drawn from, once, only with `shuffle`.
    """
    stream = generator(rng)
    return stream.permutation(n) if shuffle else None


def rows(arrays: tuple[Any, ...]) -> int:
    """The one length of `arrays`, 1 or more; the errors are those of `batches`."""
    for i, array in enumerate(arrays):
        if not hasattr(array, "__len__") or isinstance(array, (list, tuple, dict, str, bytes)):
            raise error(
                TypeError, f"batches: array {i} is not an array", got=type(array).__name__,
                expected="a NumPy array or a Tensor", fix="wrap it: numpy.array(...)",
            )
        if getattr(array, "ndim", 1) == 0:
            raise error(
                ShapeError, f"batches: array {i} has no rows to cut", got="a 0-d array",
                expected="at least one dimension", fix="pass array.reshape(1)",
            )
    lengths = [len(array) for array in arrays]
    if not lengths:
        raise error(
            ValueError, "batches: nothing to cut", got="no arrays", expected="one array or more",
            fix="batches(X, y, batch_size=100)",
        )
    if len(set(lengths)) > 1:
        raise error(
            ShapeError, "batches: the arrays' lengths differ",
            got=", ".join(map(str, lengths)) + " rows", expected="the same number of rows",
            fix="cut the longer ones: array[:n]",
        )
    if lengths[0] == 0:
        raise error(
            ShapeError, "batches: the arrays are empty", got="0 rows", expected="1 row or more",
            fix="look at where the data is loaded or filtered",
        )
    return lengths[0]


def checked_batch_size(batch_size: int) -> int:
    """`batch_size` as an int of 1 or more; the errors are those of `batches`."""
    try:
        size = operator.index(batch_size)
    except TypeError:
        size = None
    if size is None or isinstance(batch_size, bool):
        raise error(
            TypeError, "batches: batch_size is not an int",
            got=f"{batch_size!r} ({type(batch_size).__name__})", expected="an int of 1 or more",
            fix="batch_size=100",
        )
    if size < 1:
        raise error(
            ValueError, "batches: batch_size is too small", got=size,
            expected="an int of 1 or more", fix="batch_size=len(X) for one batch of everything",
        )
    return size


def _cut(arrays: tuple[Any, ...], n: int, size: int, chosen: np.ndarray | None) -> Iterator[Any]:
    for start in range(0, n, size):
        part = slice(start, start + size) if chosen is None else chosen[start:start + size]
        batch = tuple(array[part] for array in arrays)
        yield batch if len(batch) > 1 else batch[0]
