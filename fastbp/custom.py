"""Gates of a user's own, made of two NumPy functions."""
import threading

import numpy as np

from fastbp.errors import ShapeError, error
from fastbp_ext.gate import Gate


def _array(name, value, like, shape=None):
    y = np.array(value, dtype=like.dtype)
    if shape is not None and y.shape != shape:
        raise error(ShapeError, f"{name}: backward returned a gradient of another shape", got=y.shape,
                    expected=f"{shape}, the input's", fix="sum the gradient over the dimensions that were broadcast")
    return y


def define_gate(name, forward, backward):
    """A gate of two NumPy functions, `forward(*xs) -> y` and `backward(dy, y, *xs) -> dxs`.

    xs, y and dy are arrays of one floating dtype, not to be changed; backward returns a tuple
    with one gradient for each input (or the gradient itself where there is one input), None
    for no gradient. The gate can be differentiated once. In a staged program its stage takes
    the interpreter's lock.
    """
    def run(*xs):
        return _array(name, forward(*(x.numpy() for x in xs)), xs[0])

    def run_backward(dy, y, *xs):
        found = backward(dy.numpy(), y.numpy(), *(x.numpy() for x in xs))
        found = found if isinstance(found, (tuple, list)) else (found,)
        if len(found) != len(xs):
            raise error(ShapeError, f"{name}: backward returned too few or too many gradients", got=len(found),
                        expected=f"{len(xs)}, one for each input", fix="return a tuple, None for no gradient")
        return found

    last = threading.local()    # (dy, y, the gradients): the inputs of a stage ask one after the other

    def vjp(dy, y, *xs, which):
        memo = getattr(last, "memo", None)
        if memo is None or memo[0] is not dy or memo[1] is not y:
            last.memo = memo = (dy, y, run_backward(dy, y, *xs))
        gradient = memo[2][which]
        if not any(x.requires_grad for x in xs[which + 1:]):
            last.memo = None
        if gradient is None:
            return None
        made = _array(name, gradient, xs[which], xs[which].shape)
        # A stage of its own, so that a second gradient is refused rather than silently 0.
        return Gate(f"{name}_grad", "dx = backward(dy, y, x)", form="custom", inputs=["dy"], vjp=[_once],
                    rule=lambda *unused: made)(dy, y, *xs)

    def _once(*unused, which):
        raise error(RuntimeError, f"{name}: a gate made by define_gate can be differentiated once",
                    got="a gradient of its gradient", expected="one gradient",
                    fix="write the gate as a function of fastbp's gates")

    made = Gate(name, f"y = {name}(x, ...), defined in NumPy", form="custom", inputs=["x"], vjp=[vjp], rule=run)
    made.__name__, made.__doc__ = name, forward.__doc__ or f"{name}, a gate of two NumPy functions"
    return made
