"""Activations as modules.

`inplace` is PyTorch's: the result is the same, and no input is ever written over; a staged function's
planner decides what shares memory.
"""
from fastbp.nn import functional as F
from fastbp.nn.module import Module, settings


class Identity(Module):
    """y = x; arguments are taken and ignored"""

    def __init__(self, *args, **kwargs):
        pass

    def forward(self, x):
        return x


class ReLU(Module):
    """y = max(0, x)"""

    def __init__(self, inplace=False):
        pass

    def forward(self, x):
        return F.relu(x)


class Sigmoid(Module):
    """y = 1 / (1 + e^-x)"""

    def forward(self, x):
        return F.sigmoid(x)


class Tanh(Module):
    """y = (e^x - e^-x) / (e^x + e^-x)"""

    def forward(self, x):
        return F.tanh(x)


class SiLU(Module):
    """y = x sigmoid(x)"""

    def __init__(self, inplace=False):
        pass

    def forward(self, x):
        return F.silu(x)


class LeakyReLU(Module):
    """y = x where x > 0, else negative_slope x"""
    extra_repr = settings

    def __init__(self, negative_slope=0.01, inplace=False):
        self.negative_slope = negative_slope

    def forward(self, x):
        return F.leaky_relu(x, self.negative_slope)


class ELU(Module):
    """y = x where x > 0, else alpha (e^x - 1)"""
    extra_repr = settings

    def __init__(self, alpha=1.0, inplace=False):
        self.alpha = alpha

    def forward(self, x):
        return F.elu(x, self.alpha)


class Softplus(Module):
    """y = ln(1 + e^(beta x)) / beta; exact, so without PyTorch's threshold"""
    extra_repr = settings

    def __init__(self, beta=1.0):
        self.beta = beta

    def forward(self, x):
        return F.softplus(x, self.beta)


class GELU(Module):
    """y = x Phi(x), Phi the normal distribution; approximate="tanh": its tanh form"""
    extra_repr = settings

    def __init__(self, approximate="none"):
        self.approximate = approximate

    def forward(self, x):
        return F.gelu(x, self.approximate)


class Softmax(Module):
    """y = e^x / sum e^x over `dim`"""
    extra_repr = settings

    def __init__(self, dim=-1):
        self.dim = dim

    def forward(self, x):
        return F.softmax(x, self.dim)


class LogSoftmax(Module):
    """y = x - ln sum e^x over `dim`"""
    extra_repr = settings

    def __init__(self, dim=-1):
        self.dim = dim

    def forward(self, x):
        return F.log_softmax(x, self.dim)
