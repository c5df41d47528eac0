"""The package's streams of random numbers, and what every `rng=` argument means.

There are two: a NumPy generator for what is drawn in Python, as initial values, and a counter-based one for what
the kernels draw, as the masks of dropout: a tensor of two int64, its key and the count of its draws, which
programs hold by reference and count on.
"""
import operator
from typing import Any

import numpy as np

from fastbp.errors import error
from fastbp_ext.tensor import Tensor, empty

_stream = np.random.default_rng()


def stream(rng: int | np.random.Generator | None = None) -> Tensor:
    """A counter-based stream at its beginning, its key made of an int or drawn by a generator; None: any key.

    TypeError for another type, ValueError for a negative int.
    """
    if isinstance(rng, np.random.Generator):
        key = rng.integers(2**64, dtype=np.uint64)
    else:
        key = _key(None if rng is None else _seed(rng, "rng"))
    made = empty(2, "int64")
    made.numpy()[:] = key.view(np.int64), 0
    made.name = "stream"
    return made


def _key(seed: int | None) -> np.uint64:
    """A key that is none of the words that start a NumPy generator of that seed."""
    return np.random.SeedSequence(seed, spawn_key=(0,)).generate_state(1, np.uint64)[0]


counter = stream()    # the package's own
counter.name = "random"


def manual_seed(n: int) -> None:
    """Start the package's own streams afresh from `n`, an int of 0 or more.

    They stay the same objects, so what holds them (a recorded program) follows.
    TypeError if `n` is no int, ValueError if it is negative.
    """
    seed = _seed(n, "manual_seed: n")
    _stream.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    counter.numpy()[:] = _key(seed).view(np.int64), 0


def get_rng_state() -> dict[str, Any]:
    """All that the package's own random numbers depend on: a nested dict that `fastbp.save` takes."""
    key, count = counter.numpy().tolist()
    return {"generator": _stream.bit_generator.state, "counter": {"key": key, "count": count}}


def set_rng_state(state: dict[str, Any]) -> None:
    """Go on from what `get_rng_state` returned. ValueError for anything else, and nothing is changed."""
    before = _stream.bit_generator.state
    try:
        place = np.array([operator.index(state["counter"][name]) for name in ("key", "count")], np.int64)
        if place[1] < 0:
            raise ValueError(f"a count of {place[1]}")
        _stream.bit_generator.state = state["generator"]
        counter.numpy()[:] = place
    except (KeyError, OverflowError, TypeError, ValueError) as problem:
        _stream.bit_generator.state = before
        raise error(
            ValueError, "set_rng_state: this is no state of the package's random numbers",
            got=f"{type(problem).__name__}: {problem}", expected="what get_rng_state returned",
            fix="save it whole: fb.save(path, {'rng': fb.get_rng_state()})") from problem


def generator(rng: int | np.random.Generator | None = None) -> np.random.Generator:
    """The generator that `rng` stands for; nothing is drawn from it.

    None is the package's own stream, an int (0 or more) a fresh generator at each call,
    a `numpy.random.Generator` itself. TypeError for another type, ValueError for a negative int.
    """
    if rng is None:
        return _stream
    return rng if isinstance(rng, np.random.Generator) else np.random.default_rng(_seed(rng, "rng"))


def _seed(n: int, what: str) -> int:
    try:
        seed = operator.index(n)
    except TypeError:
        seed = None
    if seed is None or isinstance(n, bool):
        raise error(
            TypeError, f"{what} is not a seed", got=f"{n!r} ({type(n).__name__})",
            expected="an int, or for rng= a numpy.random.Generator or None",
            fix="pass an int such as 0, or numpy.random.default_rng(0) as rng",
        )
    if seed < 0:
        raise error(
            ValueError, f"{what} is negative", got=seed, expected="an int of 0 or more",
            fix="pass a seed such as 0",
        )
    return seed
