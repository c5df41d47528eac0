"""Random gates: what they draw is a function of a key, so that a gradient and a replay draw the same again."""
import numpy as np

from fastbp.create import full
from fastbp.errors import ShapeError, error
from fastbp.random import counter, stream
from fastbp_ext.gate import draw, tensors_of
from fastbp_ext.tensor import Tensor, abstract_tensor, get_recorder

from .row import composite, gate
from .shape import contiguous


@gate("random", kernel="dropout", name="dropout", public=False, first=1, constants=["p"], vjp=[
    lambda dy, y, x, key, p: dropout_by(contiguous(dy), key, p),
    None])
def dropout_by(x, key, p):
    """y = x m, m = 0 with probability p, else 1 / (1 - p), by a stream's key and count

    Element k of x, in C order, has word k % 64 // 16 of Philox4x32-10 (Salmon et al., 2011) at the counter
    (16 (k // 64) + k % 16, count), and m = 0 where it is less than 2^32 p.
    """
    return x.shape, {"p": p}


def _key(rng):
    """The next key of a stream; ints and numpy Generators begin one at each call."""
    if isinstance(rng, Tensor) and (rng.shape != (2,) or rng.dtype != "int64" or not rng.is_contiguous):
        raise error(TypeError, "dropout: rng is a tensor, but no stream", got=f"{rng.dtype}, shape {rng.shape}",
                    expected="an int, a numpy Generator or a stream: two int64",
                    fix="make one: fastbp.random.stream(0)")
    if rng is None or isinstance(rng, Tensor):
        return draw(counter if rng is None else rng)
    recorder = get_recorder()
    if recorder is None or not isinstance(rng, np.random.Generator):
        return stream(rng)
    key = abstract_tensor((2,), "int64")
    recorder.call("key", lambda: (stream(rng).numpy(),), (key,), (), effects=True)
    return key


def probability(name, p):
    """p as a float; ValueError where it is none between 0 and 1."""
    if isinstance(p, bool) or not isinstance(p, (int, float, np.number)) or not 0 <= p <= 1:
        raise error(ValueError, f"{name}: p can't be this", got=repr(p), expected="a probability, 0 to 1",
                    fix="0.5 drops a half")
    return float(p)


@composite(method=False, boxed=False)
def dropout(x, p=0.5, training=True, rng=None):
    """y = x m, m = 0 with probability p, else 1 / (1 - p) (Srivastava et al., 2014); not training: y = x

    The gradient has the same m. rng: None is the package's stream, of which each call takes the next key; an int or
    a numpy Generator begins another at each call; `fastbp.random.stream(rng)` makes one that goes on. What an element
    gets depends on the key and on its place in C order alone. ValueError: p is not between 0 and 1.
    """
    p = probability("dropout", p)
    (x,) = tensors_of(dropout_by, x)
    return dropout_by(contiguous(x), _key(rng), p) if training and p else x


def channel_dropout(name, ndim, x, p, training, rng):
    """dropout of whole channels: x (N, C, ...) of so many dimensions, and one m for each n and c."""
    p = probability(name, p)
    (x,) = tensors_of(dropout_by, x)
    if x.ndim != ndim:
        raise error(ShapeError, f"{name}: the input has another number of dimensions", got=f"shape {x.shape}",
                    expected=f"{ndim}: (N, C, {'L' if ndim == 3 else 'H, W'})", fix="expand_dims(x, 0) for one sample")
    return x * dropout_by(full((*x.shape[:2], *(1,) * (ndim - 2)), 1, x.dtype), _key(rng), p) if training and p else x
