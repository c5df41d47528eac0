"""Gates of a user's own, made of two NumPy functions."""
import threading

import numpy as np

from fastbp.errors import ShapeError, StagingError, error
from fastbp_ext.gate import Gate
from fastbp_ext.tensor import abstract_tensor, get_recorder, with_recorder


def _array(name, value, like, shape=None):
    y = np.array(value, dtype=like.dtype)
    if shape is not None and y.shape != shape:
        raise error(ShapeError, f"{name}: backward returned a gradient of another shape", got=y.shape,
                    expected=f"{shape}, the input's", fix="sum the gradient over the dimensions that were broadcast")
    return y


def _in_order(x):
    # In C order, as in a staged program: NumPy's own sums depend on the layout.
    return np.ascontiguousarray(x.numpy()).reshape(x.shape)


def define_gate(name, forward, backward):
    """A gate of two NumPy functions, `forward(*xs) -> y` and `backward(dy, y, *xs) -> dxs`.

    xs, y and dy are arrays of one floating dtype, in C order, not to be changed; backward returns a tuple
    with one gradient for each input (or the gradient itself where there is one input), None
    for no gradient. The gate can be differentiated once. In a staged program its stage takes
    the interpreter's lock; what shape y has, and which gradients are None, is found at
    recording by a run on arrays of ones.
    """
    def run(*xs):
        return _array(name, with_recorder(None, forward, *map(_in_order, xs)), xs[0])

    def gradients(dy, y, *xs):
        found = with_recorder(None, backward, dy, y, *xs)
        found = found if isinstance(found, (tuple, list)) else (found,)
        if len(found) != len(xs):
            raise error(ShapeError, f"{name}: backward returned too few or too many gradients", got=len(found),
                        expected=f"{len(xs)}, one for each input", fix="return a tuple, None for no gradient")
        return found

    last = threading.local()    # (dy, y, the gradients): the inputs of a stage ask one after the other

    def vjp(dy, y, *xs, which):
        memo = getattr(last, "memo", None)
        if memo is None or memo[0] is not dy or memo[1] is not y:
            found = record_backward(dy, y, *xs) if get_recorder() is not None else gradients(
                *map(_in_order, (dy, y, *xs)))
            last.memo = memo = (dy, y, found)
        gradient = memo[2][which]
        if not any(x.requires_grad for x in xs[which + 1:]):
            last.memo = None
        if gradient is None:
            return None
        # A stage of its own, so that a second gradient is refused rather than silently 0.
        stage = Gate(f"{name}_grad", "dx = backward(dy, y, x)", form="custom", inputs=["dy"], vjp=[_once],
                     rule=lambda *unused: _array(name, gradient, xs[which], xs[which].shape))
        stage.recorded = lambda *unused: gradient
        return stage(dy, y, *xs)

    def _once(*unused, which):
        raise error(RuntimeError, f"{name}: a gate made by define_gate can be differentiated once",
                    got="a gradient of its gradient", expected="one gradient",
                    fix="write the gate as a function of fastbp's gates")

    def on_ones(function, *xs):
        """function(*arrays of ones), outside the recording."""
        def call():
            with np.errstate(all="ignore"):
                return function(*(np.ones(x.shape, x.dtype) for x in xs))
        try:
            return with_recorder(None, call)
        except Exception as problem:
            raise error(StagingError, f"{name}: a staged function has to know the shape of what it gives",
                        got=f"{type(problem).__name__}: {problem}, on arrays of ones", expected="a result",
                        fix="let the gate's functions take any values") from problem

    def record_forward(*xs):
        dtype, shape = xs[0].dtype, np.shape(on_ones(forward, *xs))
        y = abstract_tensor(shape, dtype)
        get_recorder().call(name, lambda *arrays: (_same(name, forward(*arrays), shape, dtype),), (y,), xs)
        return y

    def record_backward(dy, y, *xs):
        found = on_ones(gradients, dy, y, *xs)
        wanted = [k for k, g in enumerate(found) if g is not None and xs[k].requires_grad]
        made = {k: abstract_tensor(xs[k].shape, xs[k].dtype) for k in wanted}

        def at_replay(*arrays):
            now = gradients(*arrays)
            return [_same(f"{name}, backward", 0.0 if now[k] is None else now[k], xs[k].shape, xs[k].dtype)
                    for k in wanted]

        if made:
            get_recorder().call(f"{name}_grad", at_replay, made.values(), (dy, y, *xs))
        return [made.get(k) for k in range(len(xs))]

    made = Gate(name, f"y = {name}(x, ...), defined in NumPy", form="custom", inputs=["x"], vjp=[vjp], rule=run)
    made.recorded = record_forward
    made.__name__, made.__doc__ = name, forward.__doc__ or f"{name}, a gate of two NumPy functions"
    return made


def _same(name, value, shape, dtype):
    y = np.asarray(value, dtype=dtype)
    if y.shape != shape and y.ndim:
        raise error(ShapeError, f"{name}: the shape depends on the values", got=y.shape,
                    expected=f"{shape}, as when it was recorded", fix="call it outside the staged function")
    return y
