"""Shapes as layers."""
from fastbp.errors import ShapeError, error
from fastbp.gates.shape import flatten, reshape
from fastbp.nn.module import Module, settings
from fastbp_ext.gate import one_axis


class Flatten(Module):
    """y = x with dimensions start_dim to end_dim in one: (N, C, H, W) gives (N, C H W)"""
    extra_repr = settings

    def __init__(self, start_dim=1, end_dim=-1):
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x):
        return flatten(x, self.start_dim, self.end_dim)


class Unflatten(Module):
    """y = x with dimension dim as several, of sizes unflattened_size; one may be -1"""
    extra_repr = settings

    def __init__(self, dim, unflattened_size):
        self.dim, self.unflattened_size = dim, tuple(unflattened_size)

    def forward(self, x):
        dim, sizes = one_axis("Unflatten", self.dim, x.ndim), self.unflattened_size
        try:
            return reshape(x, *x.shape[:dim], *sizes, *x.shape[dim + 1:])
        except ShapeError:
            raise error(ShapeError, "Unflatten: the sizes do not fit the dimension", got=f"{sizes} for {x.shape}",
                        expected=f"a product of {x.shape[dim]}, dimension {dim}",
                        fix="check the sizes; one may be -1") from None
