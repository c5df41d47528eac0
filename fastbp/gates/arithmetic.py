"""Arithmetic, powers, logarithms, comparisons and choice; element by element, broadcast."""
from fastbp_ext.tensor import Tensor, is_number, tensor

from .row import composite, elementwise

add = elementwise("add(x, y)", "z = x + y", operator="+", vjp=[
    lambda dz, z, x, y: dz,
    lambda dz, z, x, y: dz])

sub = elementwise("sub(x, y)", "z = x - y", operator="-", vjp=[
    lambda dz, z, x, y: dz,
    lambda dz, z, x, y: -dz])

mul = elementwise("mul(x, y)", "z = x y", operator="*", vjp=[
    lambda dz, z, x, y: dz * y,
    lambda dz, z, x, y: dz * x])

div = elementwise("div(x, y)", "z = x / y", operator="/", vjp=[
    lambda dz, z, x, y: dz / y,
    lambda dz, z, x, y: -(dz / y) * z])

neg = elementwise("neg(x)", "y = -x", operator="-x", vjp=[
    lambda dy, y, x: -dy])

reciprocal = elementwise("reciprocal(x)", "y = 1 / x", vjp=[
    lambda dy, y, x: -dy * square(y)])

square = elementwise("square(x)", "y = x^2", vjp=[
    lambda dy, y, x: dy * (x + x)])

sqrt = elementwise("sqrt(x)", "y = x^(1/2)", doc="The gradient at 0 is inf.", vjp=[
    lambda dy, y, x: dy * 0.5 / y])

abs = elementwise("abs(x)", "y = |x|", operator="|x|", doc="The gradient at 0 is 0.", vjp=[
    lambda dy, y, x: dy * sign(x)])

sign = elementwise("sign(x)", "y = -1, 0 or 1", doc="The gradient is 0 everywhere.", vjp=[
    lambda dy, y, x: as_floats(lt(x, x), x)])    # x < x nowhere: zeros

exp = elementwise("exp(x)", "y = e^x", vjp=[
    lambda dy, y, x: dy * y])

expm1 = elementwise("expm1(x)", "y = e^x - 1, exact near 0", vjp=[
    lambda dy, y, x: dy * exp(x)])

log = elementwise("log(x)", "y = ln x", doc="-inf at 0, NaN below; the gradient at 0 is inf.", vjp=[
    lambda dy, y, x: dy / x])

log1p = elementwise("log1p(x)", "y = ln(1 + x), exact near 0", vjp=[
    lambda dy, y, x: dy / (1 + x)])

erf = elementwise("erf(x)", "y = 2 / sqrt(pi) times the integral of e^(-t^2) from 0 to x", vjp=[
    lambda dy, y, x: dy * (1.1283791670955126 * exp(-square(x)))])    # 2 / sqrt(pi)

power = elementwise(
    "pow(x, y)", "z = x^y", operator="**", method=False, public=False,
    vjp=[
        lambda dz, z, x, y: dz * where(eq(abs(x) + abs(y), 0), 0, y * power(x, y - 1)),    # 0^0 stays 1
        # Where x is 0 or less there is no logarithm: the gradient is 0, as x^y stays 0 there.
        lambda dz, z, x, y: dz * where(x > 0, z * log(where(x > 0, x, 1)), 0)])


number_pow = elementwise("number_pow(x, y)", "z = x^y of numbers given to a staged function", public=False,
                         vjp=[None, None])


@composite(operator="**", boxed=False)
def pow(x, y):
    """z = x^y

    x^1, x^2 and x^-1 are exactly x, x x and 1 / x. The gradient for the exponent is 0 where x is
    not positive.
    """
    if is_number(y):
        if is_number(x) and (isinstance(x, Tensor) or isinstance(y, Tensor)):
            return number_pow(x, y)
        if not isinstance(y, Tensor) and y == 2:
            return square(x)
    return power(x, y)


maximum = elementwise(
    "maximum(x, y)", "z = max(x, y)", doc="NaN where either is NaN. A tie gives the gradient to both.", vjp=[
        lambda dz, z, x, y: where(x >= y, dz, 0),
        lambda dz, z, x, y: where(y >= x, dz, 0)])

minimum = elementwise(
    "minimum(x, y)", "z = min(x, y)", doc="NaN where either is NaN. A tie gives the gradient to both.", vjp=[
        lambda dz, z, x, y: where(x <= y, dz, 0),
        lambda dz, z, x, y: where(y <= x, dz, 0)])

between = elementwise(
    "clip(x, low, high)", "y = min(max(x, low), high)", public=False, vjp=[
        lambda dy, y, x, low, high: where(y == x, dy, 0),
        lambda dy, y, x, low, high: where(x < low, dy, 0),
        lambda dy, y, x, low, high: where(x > high, dy, 0)])


@composite(boxed=False)
def clip(x, low=None, high=None, *, min=None, max=None):
    """y = min(max(x, low), high); None is no bound

    The gradient is 1 at the bounds and 0 beyond them. min and max are NumPy's names of the bounds.
    """
    low, high = min if low is None else low, max if high is None else high
    return between(x, -float("inf") if low is None else low, float("inf") if high is None else high)


lt = elementwise("lt(x, y)", "z = x < y", operator="<", result="bool", compares=True, vjp=[None, None])
le = elementwise("le(x, y)", "z = x <= y", operator="<=", result="bool", compares=True, vjp=[None, None])
gt = elementwise("gt(x, y)", "z = x > y", operator=">", result="bool", compares=True, vjp=[None, None])
ge = elementwise("ge(x, y)", "z = x >= y", operator=">=", result="bool", compares=True, vjp=[None, None])
eq = elementwise("eq(x, y)", "z = x == y", operator="==", result="bool", compares=True, vjp=[None, None])
ne = elementwise("ne(x, y)", "z = x != y", operator="!=", result="bool", compares=True, vjp=[None, None])

where = elementwise(
    "where(condition, x, y)", "z = x where the condition holds, else y", method=False, first=1, vjp=[
        None,
        lambda dz, z, condition, x, y: where(condition, dz, 0),
        lambda dz, z, condition, x, y: where(condition, 0, dz)],
    doc="""The condition is bool. A NaN in the gradient of the branch not taken still spreads:
write where(ok, sqrt(where(ok, x, 1)), 0), so that the gate never sees what it can't take.""")

_ZEROS = {name: tensor(0, dtype=name) for name in ("float32", "float64")}


def as_floats(condition, like):
    """1 where the condition holds, else 0, of like's dtype."""
    return where(condition, 1, _ZEROS[like.dtype.name])
