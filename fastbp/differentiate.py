"""Gradients as functions, JAX's way: grad, value_and_grad; and the check of a gradient."""
import functools
import numbers

import numpy as np

from fastbp.errors import GradcheckError, ShapeError, error
from fastbp.gates.shape import narrow, transpose
from fastbp.tape import ones_like, stages_of, walk
from fastbp_ext.gate import clone
from fastbp_ext.tensor import Tensor, differentiate_inside, empty, is_grad_enabled, no_grad, tensor


def tree_map(function, tree):
    """`function` of every leaf of nested lists, tuples and dicts, in the same nest."""
    if isinstance(tree, dict):
        return {key: tree_map(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(function, value) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(tree_map(function, value) for value in tree)
    return function(tree)


def _argument(x):
    """A leaf of an argument as a tensor of this call's own, on which the gradient ends."""
    if not isinstance(x, Tensor):
        if not isinstance(x, (numbers.Real, np.ndarray, np.generic)):
            raise TypeError(f"grad: an argument is {type(x).__name__}: give tensors, arrays, numbers, or nested "
                            "lists, tuples and dicts of them; name the others out of argnums")
        x = tensor(x)
    if x._weak:
        x = narrow(x)    # a recorded Python number: as fb.tensor(number)
    if x.dtype.kind != "f":
        raise TypeError(f"grad: an argument of dtype {x.dtype} has no gradient: leave it out of argnums")
    if x.requires_grad:
        return differentiate_inside(transpose, x, tuple(range(x.ndim)))    # its past belongs to an outer gradient
    return x.detach().requires_grad_()


def value_and_grad(fn, argnums=0, has_aux=False):
    """A function `(*args) -> (fn(*args), gradient)`.

    fn returns a 0-d tensor (with has_aux, that and anything else: the value is then the pair).
    argnums: which arguments to differentiate by; a number gives one gradient, a tuple a tuple.
    Arguments are tensors, arrays, numbers and nested lists, tuples and dicts of them; gradients
    are Tensors in the same nest. No `.grad` is touched. Arguments that fn does not use have
    zeros. ShapeError: fn's result is not 0-d.
    """
    many = isinstance(argnums, (tuple, list))

    @functools.wraps(fn)
    def call(*args, **kwargs):
        wanted = [_position(a, len(args)) for a in (argnums if many else (argnums,))]
        leaves = []

        def own(x):
            leaves.append(_argument(x))
            return leaves[-1]

        args = [tree_map(own, a) if i in wanted else a for i, a in enumerate(args)]
        result = differentiate_inside(fn, *args, **kwargs)
        y, aux = result if has_aux else (result, None)
        gradients, outer = _gradients(y, leaves)
        if not outer and isinstance(y, Tensor):
            y = y.detach()
        taken = {id(x._root) for x in leaves}

        def of(x):
            g = gradients.get(id(x))
            if g is None:
                return _zeros(x)
            if not outer and (not g._is_whole or id(g._root) in taken):    # the result is the caller's own
                g = clone(g)
            taken.add(id(g._root))
            return g

        found = tuple(tree_map(of, args[i]) for i in wanted)
        return (y, aux) if has_aux else y, found if many else found[0]
    return call


def _position(argnum, count):
    if not isinstance(argnum, numbers.Integral) or not -count <= argnum < count:
        raise error(TypeError, "grad: argnums names no argument", got=f"{argnum!r} of {count} arguments given by place",
                    expected=f"{-count} to {count - 1}" if count else "an argument given by place",
                    fix="count from 0, and give that argument by place")
    return argnum % count


def _zeros(x):
    y = empty(x.shape, x.dtype)
    y.numpy()[...] = 0
    return y


def _gradients(y, leaves):
    """d y / d leaf by id(leaf), and whether an outer gradient may follow."""
    if not isinstance(y, Tensor):
        if not isinstance(y, numbers.Real):
            raise TypeError(f"grad: the function returned {type(y).__name__}, not a 0-d tensor")
        return {}, False
    if y.ndim != 0:
        raise error(ShapeError, "grad: the function's result is no scalar", got=f"shape {y.shape}", expected="shape ()",
                    fix="reduce it: return y.sum()")
    if not y.requires_grad:
        return {}, False
    own = {id(x) for x in leaves}
    stages, ends = stages_of([y])
    outer = is_grad_enabled() and (any(id(x) not in own for x in ends) or any(not x.is_leaf for x in leaves))
    follow = set(own)
    for stage in reversed(stages):
        if any(id(x) in follow for x in stage._inputs):
            follow.add(id(stage))
    gradients = {id(y): ones_like(y)}
    # The arguments themselves are where this gradient ends, whatever they were made of.
    stages = [s for s in stages if id(s) in follow and id(s) not in own]
    if outer:
        walk(stages, gradients, follow)
    else:
        with no_grad():
            walk(stages, gradients, follow)
    return gradients, outer


def grad(fn, argnums=0, has_aux=False):
    """A function `(*args) -> gradient` of fn, which returns a 0-d tensor; see `value_and_grad`.

    With has_aux, `(gradient, aux)`. Gradients of gradients work: `fb.grad(fb.grad(f))(2.0)`.
    """
    both = value_and_grad(fn, argnums, has_aux)

    @functools.wraps(fn)
    def call(*args, **kwargs):
        value, gradient = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient
    return call


def gradcheck(fn, inputs, eps=1e-6, atol=1e-6, rtol=1e-4):
    """True where fn's gradients agree with central differences, in float64.

    inputs: a tensor, array or number, or a sequence of them; integer ones are passed on. Where
    fn's result is no scalar, its elements are summed with fixed random weights. For each entry:
    |gradient - difference| <= atol + rtol |difference|. GradcheckError names the input, the
    entry and both numbers.
    """
    inputs = list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]
    arrays = [np.array(x, dtype=None if np.asarray(x).dtype.kind in "iub" and not isinstance(x, numbers.Real)
                       else np.float64) for x in inputs]
    weights = None

    def scalar(*xs):
        nonlocal weights
        y = fn(*xs)
        if not isinstance(y, Tensor):
            raise TypeError(f"gradcheck: the function returned {type(y).__name__}, not a Tensor")
        if weights is None:
            weights = np.random.default_rng(0).uniform(0.5, 1.5, y.shape)
        return (y * weights).sum()

    floats = tuple(i for i, a in enumerate(arrays) if a.dtype == np.float64)
    gradients = grad(scalar, argnums=floats)(*arrays)

    def at(i, place, value):
        moved = [a.copy() if j == i else a for j, a in enumerate(arrays)]
        moved[i][place] = value
        return scalar(*(tensor(a) for a in moved)).item()

    for i, gradient in zip(floats, gradients, strict=True):
        for place in np.ndindex(arrays[i].shape):
            x = arrays[i][place]
            difference = (at(i, place, x + eps) - at(i, place, x - eps)) / (2 * eps)
            got = gradient.numpy()[place]
            if not abs(got - difference) <= atol + rtol * abs(difference):
                raise GradcheckError(
                    f"gradcheck: input {i}, entry {tuple(int(p) for p in place)}: the gradient is {got:.10g}, "
                    f"the central difference {difference:.10g} (atol {atol:g}, rtol {rtol:g})")
    return True
