"""Activations: the nonlinear gates between layers."""
from .arithmetic import erf as _erf
from .arithmetic import exp, log, minimum, square, where
from .row import composite, elementwise

sigmoid = elementwise("sigmoid(x)", "y = 1 / (1 + e^-x)", parts=lambda x: 1 / (1 + exp(-x)), vjp=[
    lambda dy, y, x: sigmoid_grad(dy, y)])

sigmoid_grad = elementwise(
    "sigmoid_grad(dy, y)", "dx = dy y (1 - y)", template="(1 - {y}) * {y} * {dy}", public=False, vjp=[
        lambda g, dx, dy, y: sigmoid_grad(g, y),
        lambda g, dx, dy, y: g * dy * (1 - (y + y))])

tanh = elementwise("tanh(x)", "y = (e^x - e^-x) / (e^x + e^-x)", parts=lambda x: _tanh_parts(exp(x), exp(-x)), vjp=[
    lambda dy, y, x: tanh_grad(dy, y)])


def _tanh_parts(e, r):
    return (e - r) / (e + r)



tanh_grad = elementwise(
    "tanh_grad(dy, y)", "dx = dy (1 - y) (1 + y)", template="(1 - {y}) * (1 + {y}) * {dy}", public=False, vjp=[
        lambda g, dx, dy, y: tanh_grad(g, y),
        lambda g, dx, dy, y: g * dy * (-2 * y)])

relu = elementwise(
    "relu(x)", "y = max(0, x)", doc="The gradient at 0 is 0; NaN gives NaN and passes its gradient on.", vjp=[
        lambda dy, y, x: relu_grad(dy, y)])

relu_grad = elementwise(
    "relu_grad(dy, y)", "dx = 0 where y <= 0, else dy", template="({y} > 0) * {dy}", public=False, vjp=[
        lambda g, dx, dy, y: relu_grad(g, y),
        None])

leaky_relu = elementwise(
    "leaky_relu(x, negative_slope=0.01)", "y = x where x > 0, else negative_slope x", vjp=[
        lambda dy, y, x, negative_slope: where(x > 0, dy, dy * negative_slope)])

elu = elementwise("elu(x, alpha=1.0)", "y = x where x > 0, else alpha (e^x - 1)", vjp=[
    lambda dy, y, x, alpha: where(x > 0, dy, dy * (alpha * exp(minimum(x, 0))))])

softplus = elementwise(
    "softplus(x)", "y = ln(1 + e^x)", doc="No threshold: exact everywhere.", parts=lambda x: log(1 + exp(x)), vjp=[
        lambda dy, y, x: dy * sigmoid(x)])

silu = elementwise("silu(x)", "y = x sigmoid(x)", doc="0 at -inf, its limit.", parts=lambda x: x * sigmoid(x), vjp=[
    lambda dy, y, x: dy * _silu_slope(x, sigmoid(x))])


def _silu_slope(x, s):
    return s * (1 + x * (1 - s))


gelu_erf = elementwise(
    "gelu_erf(x)", "y = x Phi(x), Phi the normal distribution", kernel="gelu", public=False,
    parts=lambda x: x * (0.5 * (1 + _erf(x * 0.7071067811865476))), vjp=[
        # Phi(x) + x phi(x); Phi through erf, phi(x) = e^(-x^2 / 2) / sqrt(2 pi)
        lambda dy, y, x: dy * (0.5 * (1 + _erf(x * 0.7071067811865476))
                               + x * (0.3989422804014327 * exp(-0.5 * square(x))))])

gelu_tanh = elementwise(
    "gelu_tanh(x)", "y = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))", public=False,
    parts=lambda x: 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * (x * square(x))))), vjp=[
        lambda dy, y, x: dy * _gelu_tanh_slope(x)])


def _gelu_tanh_slope(x):
    k = 0.7978845608028654    # sqrt(2 / pi)
    x2 = square(x)
    t = tanh(k * (x + 0.044715 * (x * x2)))
    return 0.5 * (1 + t) + 0.5 * x * ((1 - t) * (1 + t)) * (k * (1 + 0.134145 * x2))


@composite(boxed=False)
def gelu(x, approximate="none"):
    """y = x Phi(x), Phi the normal distribution; approximate="tanh": x / 2 (1 + tanh(...))

    The tanh form is sqrt(2 / pi) (x + 0.044715 x^3) inside (Hendrycks and Gimpel, 2016).
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f'gelu: approximate is "none" or "tanh", not {approximate!r}')
    return gelu_tanh(x) if approximate == "tanh" else gelu_erf(x)
