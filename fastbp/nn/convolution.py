"""Convolution and pooling layers."""
import math

from fastbp.errors import error
from fastbp.nn import functional as F
from fastbp.nn import init
from fastbp.nn.module import Module, Parameter, floating, settings
from fastbp.random import generator
from fastbp_ext.tensor import empty


class _Conv(Module):
    _axes = 2

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True,
                 padding_mode="zeros", dtype=None, rng=None):
        name, kernel = type(self).__name__, self._sizes(kernel_size)
        for what, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups),
                            *(("kernel_size", k) for k in kernel)):
            if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
                raise ValueError(f"{name}: {what} is an int of 1 or more, not {value!r}")
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"{name}: groups divides both channels, not {in_channels} and {out_channels} by {groups}")
        if padding_mode != "zeros":
            raise ValueError(f'{name}: padding_mode is "zeros", not {padding_mode!r}')
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel
        self.stride, self.dilation, self.groups = self._sizes(stride), self._sizes(dilation), groups
        self.padding = padding if isinstance(padding, str) else self._sizes(padding)
        dtype, rng = floating(name, dtype or "float32"), generator(rng)
        shape = (in_channels // groups, *kernel)
        bound = math.prod(shape)**-0.5
        self.weight = Parameter(init.uniform_(empty((out_channels, *shape), dtype), -bound, bound, rng))
        self.bias = Parameter(init.uniform_(empty(out_channels, dtype), -bound, bound, rng)) if bias else None

    def _sizes(self, value):
        return tuple(value) if isinstance(value, (tuple, list)) else (value,) * self._axes

    def extra_repr(self):
        shown = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        shown += [f"padding={self.padding}"] if self.padding != (0,) * self._axes else []
        shown += [f"dilation={self.dilation}"] if self.dilation != (1,) * self._axes else []
        shown += [f"groups={self.groups}"] if self.groups != 1 else []
        return ", ".join(shown + ([] if self.bias is not None else ["bias=False"]))


class Conv2d(_Conv):
    """y[n, o] = bias[o] + the sum over c of the window's product of x[n, c] and weight[o, c]

    x (N, in_channels, H, W) or without N gives (N, out_channels, OH, OW) with
    OH = floor((H + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1. Sizes are an int or
    two; padding may be "same" or "valid". weight (out_channels, in_channels / groups, KH, KW) and bias
    are drawn from U(-1/sqrt(n), 1/sqrt(n)), n the inputs of one output, as in PyTorch. ValueError:
    sizes that are no ints of 1 or more, groups that divide neither channels.
    """

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Conv1d(_Conv):
    """y[n, o] = bias[o] + the sum over c of the window's product of x[n, c] and weight[o, c], along one axis

    x (N, in_channels, L) or without N gives (N, out_channels, OL); `Conv2d` has the rest.
    """
    _axes = 1

    def forward(self, x):
        return F.conv1d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class MaxPool2d(Module):
    """y = the largest element of each window of x (N, C, H, W); stride: kernel_size, unless it is given

    ValueError: return_indices, which PyTorch has and this has not.
    """
    extra_repr = settings

    def __init__(self, kernel_size, stride=None, padding=0, dilation=1, return_indices=False, ceil_mode=False):
        if return_indices:
            raise error(ValueError, "MaxPool2d: return_indices is not supported", got=repr(return_indices),
                        expected="False", fix="leave return_indices out; ceil_mode has a name")
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode

    def forward(self, x):
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class AvgPool2d(Module):
    """y = the mean of each window of x (N, C, H, W); stride: kernel_size, unless it is given"""
    extra_repr = settings

    def __init__(self, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
                 divisor_override=None):
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.ceil_mode = padding, ceil_mode
        self.count_include_pad, self.divisor_override = count_include_pad, divisor_override

    def forward(self, x):
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad,
                            self.divisor_override)


class AdaptiveAvgPool2d(Module):
    """y = the means of output_size parts of x (N, C, H, W), an int or two; None: as many as there are pixels"""
    extra_repr = settings

    def __init__(self, output_size):
        self.output_size = output_size

    def forward(self, x):
        return F.adaptive_avg_pool2d(x, self.output_size)
