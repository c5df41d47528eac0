"""The fully connected layer."""
import math

from fastbp.nn import functional as F
from fastbp.nn import init
from fastbp.nn.module import Module, Parameter, floating
from fastbp.random import generator
from fastbp_ext.tensor import empty


class Linear(Module):
    """y = x weight^T + bias

    x (..., in_features) gives y (..., out_features). weight (out, in) and bias (out,) are drawn
    from U(-1/sqrt(in), 1/sqrt(in)), PyTorch's default: weight first, then bias, from one rng.
    ShapeError: another last dimension. DtypeError: x has another dtype than the weight.
    """

    def __init__(self, in_features, out_features, bias=True, dtype=None, rng=None):
        dtype = floating("Linear", dtype or "float32")
        rng = generator(rng)
        self.in_features = in_features
        self.out_features = out_features
        bound = 1 / math.sqrt(max(in_features, 1))
        # Shown (out, in), the weight lies (in, out): x @ weight.T walks it row by row, unpacked.
        weight = empty((in_features, out_features), dtype).T
        self.weight = Parameter(init.uniform_(weight, -bound, bound, rng))
        self.bias = Parameter(init.uniform_(empty(out_features, dtype), -bound, bound, rng)) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self):
        return (f"in_features={self.in_features}, out_features={self.out_features}, "
                f"bias={self.bias is not None}")
