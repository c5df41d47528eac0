"""The package's stream of random numbers, and what every `rng=` argument means."""
import operator
from typing import Any

import numpy as np

from fastbp.errors import error

_stream = np.random.default_rng()


def manual_seed(n: int) -> None:
    """Start the package's own stream afresh from `n`, an int of 0 or more.

    The stream stays the same object, so what holds it (a recorded program) follows.
    TypeError if `n` is no int, ValueError if it is negative.
    """
    _stream.bit_generator.state = _seeded(n, "manual_seed: n").bit_generator.state


def get_rng_state() -> dict[str, Any]:
    """All that the package's own random numbers depend on: a nested dict that `fastbp.save` takes."""
    return {"generator": _stream.bit_generator.state}


def set_rng_state(state: dict[str, Any]) -> None:
    """Go on from what `get_rng_state` returned. ValueError for anything else, and nothing is changed."""
    before = _stream.bit_generator.state
    try:
        _stream.bit_generator.state = state["generator"]
    except (KeyError, TypeError, ValueError) as problem:
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
    return rng if isinstance(rng, np.random.Generator) else _seeded(rng, "rng")


def _seeded(n: int, what: str) -> np.random.Generator:
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
    return np.random.default_rng(seed)
