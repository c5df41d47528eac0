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


class DataLoader:
    """Batches as `batches` gives them, epoch after epoch, with a place that can be saved and gone on from.

    `for xb, yb in loader` is an epoch, with `shuffle` in an order of its own; `step.epoch(loader)`
    runs it inside. `len(loader)` is the number of batches, `loader.epoch` how many epochs came to
    their end. rng: an int seeds a generator of the loader's own.

    >>> for epoch in range(loader.epoch, 10):
    ...     for xb, yb in loader:
    ...         step(xb, yb)
    ...         fb.save(path, {"loader": loader.state_dict(), ...})

    After `load_state_dict(fb.load(path)["loader"])`, in another process, the same loop goes on
    behind the last batch that was given out. Without it each loop begins an epoch.
    The errors are those of `batches`.
    """

    def __init__(self, *arrays: Any, batch_size: int, shuffle: bool = False,
                 rng: int | np.random.Generator | None = None) -> None:
        self.rows, self.arrays = rows(arrays), arrays
        self.batch_size, self.shuffle = checked_batch_size(batch_size), shuffle
        self.rng = None if rng is None else generator(rng)
        self.epoch = 0
        self.place = np.zeros(1)    # rows of this epoch that were given out; sums of the step's results, by rows
        self._order: np.ndarray | None = None
        self._loaded = False    # what comes next is the rest of an epoch

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        chosen, place = self.begin(), self.keep(0)
        while place[0] < self.rows:
            at = int(place[0])
            batch = _batch(self.arrays, at, self.batch_size, chosen)
            place[0] = min(at + self.batch_size, self.rows)
            yield batch
        self.end()

    def begin(self, sums: bool = False) -> np.ndarray | None:
        """The `order` of an epoch; its place is the beginning or what was loaded. sums: that has to have some."""
        if not self._loaded:
            self._order, self.place = order(self.rows, self.shuffle, self.rng), np.zeros(1)
        elif sums and self.place[0] and len(self.place) == 1:
            raise error(
                ValueError, "epoch: the losses of its first batches are not known", got="an epoch that a loop began",
                expected="one that step.epoch began", fix="end it with a loop: for batch in loader",
            )
        self._loaded = False
        return self._order

    def keep(self, sums: int) -> np.ndarray:
        """The place with so many sums, or as many as there are: who runs the epoch moves it on."""
        self.place = self.place[:1 + sums] if self.place[0] else np.zeros(1 + sums)
        return self.place

    def end(self) -> None:
        """The epoch came to its end."""
        nowhere = np.zeros(1)
        self.epoch, self._order, self.place = self.epoch + 1, None, nowhere    # no signal comes in between

    def state_dict(self) -> dict[str, Any]:
        """Where it is, for `fb.save`: epochs ended, rows of this one given out, their order, the state of `rng`.

        Without `rng` the orders come from the package's stream, which `fb.get_rng_state` saves.
        """
        return {
            "epoch": self.epoch, "row": int(self.place[0]), "sums": self.place[1:].tolist(),
            "order": None if self._order is None else self._order.copy(),
            "rows": self.rows, "batch_size": self.batch_size,
            "generator": None if self.rng is None else self.rng.bit_generator.state,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken. ValueError, and nothing changed, where it does not fit this loader.

        Between two epochs any number of rows and any batch_size fit.
        """
        before = None if self.rng is None else self.rng.bit_generator.state
        try:
            epoch, row, chosen = operator.index(state_dict["epoch"]), state_dict["row"], state_dict["order"]
            size, state = (state_dict["rows"], state_dict["batch_size"]), state_dict["generator"]
            place = np.array([row, *state_dict["sums"]], np.float64)
            begun = row != 0 or chosen is not None
            if begun and size != (self.rows, self.batch_size):
                raise ValueError("an epoch of {} rows by {}".format(*size))
            if not 0 <= row <= self.rows:
                raise ValueError(f"row {row}")
            if chosen is not None and not np.array_equal(np.sort(chosen), np.arange(self.rows)):
                raise ValueError("an order that is no permutation of the rows")
            if (state is None) != (self.rng is None):
                raise ValueError(f"{'no' if state is None else 'a'} state of rng")
            if state is not None:
                self.rng.bit_generator.state = state
        except (LookupError, TypeError, ValueError) as problem:
            if self.rng is not None:
                self.rng.bit_generator.state = before
            raise error(
                ValueError, "load_state_dict: the state does not fit this DataLoader",
                got=f"{type(problem).__name__}: {problem}",
                expected=f"the state_dict() of one like it, {self.rows} rows by {self.batch_size}",
                fix="make the loader as it was when the state was saved",
            ) from problem
        self.epoch, self.place, self._loaded = epoch, place, begun
        self._order = None if chosen is None else np.array(chosen, np.int64)


def _cut(arrays: tuple[Any, ...], n: int, size: int, chosen: np.ndarray | None) -> Iterator[Any]:
    for start in range(0, n, size):
        yield _batch(arrays, start, size, chosen)


def _batch(arrays: tuple[Any, ...], start: int, size: int, chosen: np.ndarray | None) -> Any:
    part = slice(start, start + size) if chosen is None else chosen[start:start + size]
    batch = tuple(array[part] for array in arrays)
    return batch if len(batch) > 1 else batch[0]
