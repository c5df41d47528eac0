"""Initial values, drawn into a tensor in place, by PyTorch's formulas.

rng: an int, a numpy Generator, or None for the package's own stream. Values are drawn in
float64 in C order whatever the layout, so the same rng gives the same bits.
"""
import math

from fastbp.errors import ShapeError, error
from fastbp.random import generator


def uniform_(tensor, a=0.0, b=1.0, rng=None):
    """U(a, b). ValueError: a or b is not finite, or b < a."""
    if not -math.inf < a <= b < math.inf:
        raise ValueError(f"uniform_: a and b are finite and a <= b, not {a!r} and {b!r}")
    return tensor.copy_(generator(rng).uniform(a, b, tensor.shape))


def normal_(tensor, mean=0.0, std=1.0, rng=None):
    """N(mean, std^2). ValueError: std is negative or NaN."""
    if not std >= 0:
        raise ValueError(f"normal_: std is 0 or more, not {std!r}")
    return tensor.copy_(generator(rng).normal(mean, std, tensor.shape))


def constant_(tensor, val, rng=None):
    """val everywhere; nothing is drawn from rng."""
    return tensor.copy_(val)


def zeros_(tensor, rng=None):
    """0 everywhere; nothing is drawn from rng."""
    return constant_(tensor, 0.0)


def ones_(tensor, rng=None):
    """1 everywhere; nothing is drawn from rng."""
    return constant_(tensor, 1.0)


def calculate_gain(nonlinearity, param=None):
    """The factor by which `nonlinearity` wants its weights' deviation larger (He et al., 2015).

    1 for linear and sigmoid, 5/3 for tanh, sqrt(2) for relu, sqrt(2 / (1 + param^2)) for
    leaky_relu with slope param (0.01), 3/4 for selu. ValueError: another name.
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    gains = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4}
    if nonlinearity not in gains:
        raise ValueError(f"calculate_gain: {nonlinearity!r} is none of {', '.join([*gains, 'leaky_relu'])}")
    return gains[nonlinearity]


def _fans(name, tensor):
    """How many inputs reach an output, and outputs an input; a weight is (out, in, ...)."""
    if tensor.ndim < 2:
        raise error(ShapeError, f"{name}: there are no fans to count", got=f"shape {tensor.shape}",
                    expected="(out, in), or more dimensions", fix="use uniform_ or normal_ for a bias")
    rest = math.prod(tensor.shape[2:])
    return tensor.shape[1] * rest, tensor.shape[0] * rest


def _xavier(name, tensor, gain):
    return gain * math.sqrt(2 / max(sum(_fans(name, tensor)), 1))


def xavier_uniform_(tensor, gain=1.0, rng=None):
    """U(-a, a), a = gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    a = math.sqrt(3) * _xavier("xavier_uniform_", tensor, gain)
    return uniform_(tensor, -a, a, rng)


def xavier_normal_(tensor, gain=1.0, rng=None):
    """N(0, gain^2 2 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    return normal_(tensor, 0.0, _xavier("xavier_normal_", tensor, gain), rng)


def _kaiming(name, tensor, a, mode, nonlinearity):
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f'{name}: mode is "fan_in" or "fan_out", not {mode!r}')
    fan = _fans(name, tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(fan, 1))


def kaiming_uniform_(tensor, a=0, mode="fan_in", nonlinearity="leaky_relu", rng=None):
    """U(-b, b), b = gain sqrt(3 / fan); `a` is leaky_relu's slope (He et al., 2015)."""
    bound = math.sqrt(3) * _kaiming("kaiming_uniform_", tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, rng)


def kaiming_normal_(tensor, a=0, mode="fan_in", nonlinearity="leaky_relu", rng=None):
    """N(0, gain^2 / fan); `a` is leaky_relu's slope (He et al., 2015)."""
    return normal_(tensor, 0.0, _kaiming("kaiming_normal_", tensor, a, mode, nonlinearity), rng)
