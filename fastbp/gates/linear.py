"""The matrix product, for one, two or more dimensions."""
from fastbp.errors import ShapeError, error
from fastbp_ext.gate import tensors_of

from .row import composite, product
from .shape import expand_dims, reshape, size_of, squeeze, swap

matrices = product(
    "matmul(x, w)", "y[..., m, n] = sum over k of x[..., m, k] w[..., k, n]", vjp=[
        lambda dy, y, x, w: matrices(dy, swap(w)),
        lambda dy, y, x, w: matrices(swap(x), dy)])


@composite(operator="@", boxed=False)
def matmul(x, w):
    """y[..., m, n] = sum over k of x[..., m, k] w[..., k, n]; written x @ w

    A 1-D x is a row, a 1-D w a column, and their dimension goes away; leading dimensions
    broadcast. The sum over k has one order for all layouts and sizes.
    """
    x, w = tensors_of(matrices, x, w)
    if x.ndim == w.ndim == 2 and x.shape[1] == w.shape[0]:
        return matrices(x, w)
    if x.ndim == 0 or w.ndim == 0 or x.shape[-1] != w.shape[-2 if w.ndim > 1 else 0]:
        fix = "transpose one of them" if (
            x.ndim > 1 and w.ndim > 1 and (x.shape[-1] == w.shape[-1] or x.shape[-2] == w.shape[-2])
        ) else "check which dimension is summed over"
        raise error(ShapeError, "matmul: the inner sizes differ", got=f"{x.shape} @ {w.shape}",
                    expected="x.shape[-1] == w.shape[-2]", fix=fix)
    if w.ndim == 1:
        return squeeze(matmul(x, expand_dims(w, 1)), -1)
    if x.ndim == 1:
        return squeeze(matmul(expand_dims(x, 0), w), -2)
    if w.ndim == 2 and x.ndim > 2:
        # One product of many rows instead of many products.
        return reshape(matrices(reshape(x, size_of(x.shape[:-1]), x.shape[-1]), w), *x.shape[:-1], w.shape[-1])
    return matrices(x, w)
