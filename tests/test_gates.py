"""Every gate, read from the table of cases."""
import numpy as np
import pytest
from cases import ALL, CASES, EACH_ELEMENT, tolerance

import fastbp as fb
from fastbp.gates import GATES, INTERNAL
from fastbp.nn import functional as F

DTYPES = [np.float32, np.float64]
each_case = pytest.mark.parametrize("name, k", ALL)
each_elementwise = pytest.mark.parametrize("name, k", EACH_ELEMENT)


def stream(name, k=0):
    return np.random.default_rng([*name.encode(), k])


def tensors(arrays, **options):
    return [fb.tensor(a, **options) for a in arrays]


def direction_check(f, gradient_at, xs, rng, eps=1e-6, tolerance=2e-6):
    """<v, gradient> against the central difference of f along a random direction v."""
    v = [rng.standard_normal(x.shape) for x in xs]
    slope = sum(float(np.sum(g * d)) for g, d in zip(gradient_at(xs), v, strict=True))
    ahead = f([x + eps * d for x, d in zip(xs, v, strict=True)])
    behind = f([x - eps * d for x, d in zip(xs, v, strict=True)])
    difference = (ahead - behind) / (2 * eps)
    assert abs(slope - difference) <= tolerance * (1 + abs(difference)), (slope, difference)


def test_every_gate_has_a_case_and_a_docstring():
    assert set(CASES) == set(GATES) | set(F.__all__)
    for name, gate in {**GATES, **INTERNAL}.items():
        assert gate.__doc__, name
        assert "=" in gate.__doc__.splitlines()[0], f"{name}: the docstring begins with the formula"


@each_case
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward(name, k, dtype):
    case = CASES[name][k]
    xs = case.inputs(stream(name, k), dtype)
    y = case.call(*tensors(xs))
    expected = case.oracle(*[x.astype(np.float64) for x in xs])
    assert y.shape == np.shape(expected)
    if case.gradient:
        assert y.dtype == dtype
        np.testing.assert_allclose(y, expected, **tolerance(dtype))
    else:
        np.testing.assert_array_equal(y, expected)


@each_case
def test_gradient_along_a_direction(name, k):
    case = CASES[name][k]
    rng = stream(name, k)
    xs = case.inputs(rng)
    weights = rng.standard_normal(case.call(*tensors(xs)).shape)

    def f(arrays):
        return float(np.sum(case.call(*tensors(arrays)).numpy() * weights))

    def gradient(arrays):
        ts = tensors(arrays, requires_grad=True)
        y = case.call(*ts)
        if not case.gradient:
            assert not y.requires_grad
            return [np.zeros(t.shape) for t in ts]
        y.backward(weights)
        return [t.grad.numpy() for t in ts]

    if case.gradient:
        direction_check(f, gradient, xs, rng)
    else:
        gradient(xs)


@each_case
def test_second_gradient(name, k):
    case = CASES[name][k]
    if not case.gradient:
        pytest.skip("no gradient")
    rng = stream(name, k)
    xs = case.inputs(rng)
    many = tuple(range(len(xs)))
    w = rng.standard_normal(case.call(*tensors(xs)).shape)
    u = [rng.standard_normal(x.shape) for x in xs]

    def first(*ts):
        gradients = fb.grad(lambda *a: (case.call(*a) * w).sum(), argnums=many)(*ts)
        total = gradients[0].sum() * 0
        for g, d in zip(gradients, u, strict=True):
            total = total + (g * d).sum()
        return total

    direction_check(lambda arrays: first(*tensors(arrays)).item(),
                    lambda arrays: [g.numpy() for g in fb.grad(first, argnums=many)(*arrays)], xs, rng, tolerance=5e-5)


@each_case
def test_gradients_add_at_a_fork(name, k):
    case = CASES[name][k]
    if not case.gradient:
        pytest.skip("no gradient")
    xs = case.inputs(stream(name, k))

    def gradients(f):
        ts = tensors(xs, requires_grad=True)
        f(*ts).backward()
        return [t.grad.numpy() for t in ts]

    once = gradients(lambda *ts: case.call(*ts).sum())
    twice = gradients(lambda *ts: case.call(*ts).sum() + (case.call(*ts) * 2.0).sum())
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_allclose(b, 3 * a, rtol=1e-12, atol=1e-13)


LAYOUTS = {
    "fortran": lambda a: np.asfortranarray(a),
    "sliced": lambda a: np.repeat(a, 3, axis=-1)[..., ::3],
    "negative": lambda a: a[::-1].copy()[::-1],
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "swapped bytes": lambda a: a.astype(a.dtype.newbyteorder()),
    "misaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
}


@each_case
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_bits(name, k, layout):
    case = CASES[name][k]
    xs = case.inputs(stream(name, k), np.float32)
    plain = tensors(xs, requires_grad=case.gradient)
    laid = [fb.from_numpy(LAYOUTS[layout](x) if x.ndim else x).requires_grad_(case.gradient) for x in xs]
    y, z = case.call(*plain), case.call(*laid)
    assert same_bits(y, z)
    if case.gradient:
        seed = stream(name).standard_normal(y.shape).astype(np.float32)
        y.backward(seed)
        z.backward(seed)
        for a, b in zip(plain, laid, strict=True):
            assert same_bits(a.grad, b.grad)


def same_bits(a, b):
    """Equal to the bit; one NaN is as good as another."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    nan = (a != a) & (b != b)
    return np.where(nan, 0, a).tobytes() == np.where(nan, 0, b).tobytes()


@each_case
def test_broadcast_inputs_give_the_same_bits(name, k):
    """Inputs that repeat one row, with a stride of 0, against the same values written out."""
    case = CASES[name][k]
    xs = [np.broadcast_to(x[:1], x.shape) if x.ndim else x for x in case.inputs(stream(name, k), np.float32)]
    plain = tensors(xs, requires_grad=case.gradient)
    laid = [fb.from_numpy(x).requires_grad_(case.gradient) for x in xs]
    y, z = case.call(*plain), case.call(*laid)
    assert same_bits(y, z)
    if case.gradient:
        seed = stream(name).standard_normal(y.shape).astype(np.float32)
        y.backward(seed)
        z.backward(seed)
        assert all(same_bits(a.grad, b.grad) for a, b in zip(plain, laid, strict=True))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.float32, np.int64])
def test_copies_of_turned_arrays(dtype):
    """Blocks of rows and columns, whole and cut, behind other dimensions too."""
    for shape in ((1, 5), (16, 16), (17, 33), (70, 3), (3, 16, 40), (2, 3, 5, 18), (0, 4)):
        x = (np.arange(np.prod(shape)) % 127).astype(dtype).reshape(shape)
        order = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
        for given in (x, x[..., ::-1, :], x[..., :-1, 1:]):
            turned = fb.from_numpy(given).transpose(order)
            assert same_bits(turned.reshape(-1), given.transpose(order).reshape(-1))


@each_case
def test_read_only_and_shared_inputs(name, k):
    case = CASES[name][k]
    xs = case.inputs(stream(name, k), np.float32)
    expected = case.call(*tensors(xs))
    before = [x.copy() for x in xs]
    for x in xs:
        x.flags.writeable = False
    assert same_bits(case.call(*[fb.from_numpy(x) for x in xs]), expected)
    for x, b in zip(xs, before, strict=True):
        assert same_bits(x, b)


BROADCASTS = {1: [[()], [(0,)], [(2, 0, 3)], [(1,)], [(2, 1, 3, 1)]],
              2: [[(), (2, 3)], [(5,), (3, 5)], [(4, 1), (1, 3)], [(2, 1, 3), (4, 1)], [(0, 3), (1, 3)], [(), ()]]}


SPREAD = {"add": fb.add, "sub": fb.sub, "mul": fb.mul, "div": fb.div,
          **{name: INTERNAL[name] for name in ("relu_grad", "sigmoid_grad", "tanh_grad")}}


@pytest.mark.parametrize("name", SPREAD)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_value_for_all_elements_gives_the_bits_of_many(name, dtype):
    """Gates with a kernel of their own for that; as the first operand and as the second, alone and in a chain."""
    f, rng = SPREAD[name], stream(name)
    for n in (1, 2, 15, 16, 17, 67, 5000):
        x, one = rng.standard_normal(n).astype(dtype), rng.standard_normal(1).astype(dtype)
        x[n // 2] = np.nan
        for value in (one, one * 0, one * np.inf):
            many = np.broadcast_to(value, n).copy()
            for a, b, whole in ((value, x, f(*tensors((many, x)))), (x, value, f(*tensors((x, many))))):
                np.testing.assert_array_equal(f(*tensors((a, b))).numpy(), whole.numpy(), str((n, value)))
                chain = fb.staged(lambda a, b: -f(a, b) * 2)
                for _ in range(2):
                    np.testing.assert_array_equal(chain(*tensors((a, b))).numpy(), -2 * whole.numpy())


@pytest.mark.parametrize("name", SPREAD)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_value_for_each_row_gives_the_bits_of_many(name, dtype):
    """Rows walked one by one with a value each; alone, in a chain, and where dimensions lie in another order."""
    f, rng = SPREAD[name], stream(name)
    for shape, of_rows in (((5, 1), (5, 1)), ((40, 15), (40, 1)), ((40, 17), (40, 1)), ((7, 700), (7, 1)),
                           ((3, 4, 5, 33), (1, 4, 1, 1)), ((2, 30, 10, 20), (2, 1, 10, 1)), ((4, 3, 1), (4, 1, 1))):
        x, one = rng.standard_normal(shape).astype(dtype), rng.standard_normal(of_rows).astype(dtype)
        many = np.broadcast_to(one, shape).copy()
        turned = fb.from_numpy(np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 0, -1)), -1, 0))
        for a, b in ((one, x), (x, one)):
            whole = f(*tensors((many, x) if a is one else (x, many)))
            assert same_bits(f(*tensors((a, b))), whole)
            assert same_bits(f(*[turned if t is x else fb.tensor(t) for t in (a, b)]), whole)
            chain = fb.staged(lambda a, b: -f(a, b) * 2)
            assert same_bits(chain(*tensors((a, b))), -2 * whole.numpy())


@each_elementwise
@pytest.mark.parametrize("dtype", DTYPES)
def test_broadcasting(name, k, dtype):
    case = CASES[name][k]
    for shapes in BROADCASTS[len(case.shapes)]:
        for order in (shapes, shapes[::-1]):
            xs = case.inputs(stream(name, k), dtype, order)
            ts = tensors(xs, requires_grad=case.gradient)
            y = case.call(*ts)
            expected = case.oracle(*[x.astype(np.float64) for x in xs])
            assert y.shape == np.shape(expected)
            np.testing.assert_allclose(y, expected, **tolerance(dtype))
            if case.gradient:
                y.backward(np.ones(y.shape, dtype))
                assert [t.grad.shape for t in ts] == [x.shape for x in xs]


# Sizes around every vector, tile and block edge.
EDGES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 511, 512, 513, 1023, 1024, 1025, 2100]


@each_elementwise
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_element_does_not_depend_on_its_place(name, k, dtype):
    case = CASES[name][k]
    many = case.inputs(stream(name, k), dtype, [(EDGES[-1] + 3,)] * len(case.shapes))
    whole = case.call(*tensors(many)).numpy()
    for n in EDGES:
        for start in (0, 1, 3):
            part = [fb.from_numpy(x[start:start + n]) for x in many]
            assert same_bits(case.call(*part), whole[start:start + n]), (n, start)
    strided = [fb.from_numpy(x[1::7]) for x in many]
    assert same_bits(case.call(*strided), whole[1::7])
    for i in (0, 5, 700):
        assert same_bits(case.call(*[fb.tensor(x[i]) for x in many]), whole[i])


SPECIALS = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, 1e30, -1e30, 88.0, -88.0, 20.0, -20.0])


@each_elementwise
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_and_infinities(name, k, dtype):
    case = CASES[name][k]
    xs = [SPECIALS] if len(case.shapes) == 1 else [SPECIALS[:, None], SPECIALS[None, :]]
    xs = [x.astype(dtype) for x in xs]
    y = case.call(*tensors(xs)).numpy()
    with np.errstate(all="ignore"):
        expected = np.asarray(case.oracle(*[x.astype(np.float64) for x in xs]))
        if case.gradient:
            expected = expected.astype(dtype)
    flushed = np.abs(expected.astype(np.float64)) < np.finfo(dtype).tiny
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected.astype(np.float64)))
    # The float64 oracles of gelu lose some digits in the tail themselves.
    np.testing.assert_allclose(np.where(flushed, 0, y), np.where(flushed, 0, expected),
                               rtol=5e-7 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sum", "mean", "prod", "max", "min"])
def test_one_order_for_every_sum(name, dtype):
    """A reduction's bits depend on the length alone: not on the layout, nor on what lies beside."""
    rng = stream(name)
    for n in [*EDGES[1:], 5000, 70000]:
        x = rng.standard_normal((n, 5)).astype(dtype)
        if name == "prod":
            x = (1 + x / n).astype(dtype)
        columns = getattr(fb.tensor(x), name)(0)
        for j in range(5):
            assert same_bits(getattr(fb.tensor(x[:, j].copy()), name)(), columns.numpy()[j])
        assert same_bits(getattr(fb.from_numpy(x.T), name)(1), columns)
        assert same_bits(getattr(fb.tensor(np.ascontiguousarray(x.T)), name)(-1), columns)
        assert same_bits(getattr(fb.from_numpy(x[:, 2:3]), name)(0), columns.numpy()[2:3])
        if n <= 5000:    # several vectors of sums side by side
            many = fb.from_numpy(np.repeat(x, 31, axis=1)[:, 3:150])
            assert same_bits(getattr(many, name)(0), np.repeat(columns.numpy(), 31)[3:150])
        expected = getattr(np, name)(x.astype(np.float64), 0)
        np.testing.assert_allclose(columns, expected, rtol=2e-5 if dtype == np.float32 else 1e-13,
                                   atol=1e-3 if dtype == np.float32 else 1e-11)


def test_sums_are_accurate():
    for x in (np.full(3_000_001, 0.1, np.float32), np.random.default_rng(0).random(1_000_003, np.float32)):
        exact = x.astype(np.float64).sum()
        assert abs(fb.tensor(x).sum().item() / exact - 1) < 3e-7
        assert abs(fb.tensor(x).mean().item() / (exact / x.size) - 1) < 3e-7


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_order_for_every_product(dtype):
    """A row of a matrix product does not depend on how many rows or columns there are, nor on layout."""
    rng = np.random.default_rng(0)
    for k in (1, 2, 7, 16, 64, 100, 513, 1030):
        x = rng.standard_normal((37, k)).astype(dtype)
        w = rng.standard_normal((k, 41)).astype(dtype)
        y = (fb.tensor(x) @ fb.tensor(w)).numpy()
        np.testing.assert_allclose(y, x.astype(np.float64) @ w.astype(np.float64),
                                   rtol=0, atol=2e-5 * k**0.5 if dtype == np.float32 else 1e-12)
        for a in (fb.tensor(x), fb.from_numpy(np.asfortranarray(x))):
            for b in (fb.tensor(w), fb.from_numpy(np.asfortranarray(w))):
                assert same_bits(a @ b, y)
                assert same_bits((b.T @ a.T).T, y)
                for i in (0, 5, 36):
                    assert same_bits(a[i] @ b, y[i])
                    assert same_bits(a[i:i + 1] @ b, y[i:i + 1])
                    assert same_bits(a @ b[:, i], y[:, i])
                    assert same_bits(a[i] @ b[:, i], y[i, i])
                assert same_bits(a[3:30] @ b[:, 7:29], y[3:30, 7:29])
        batch = fb.stack([fb.tensor(x[:9]), fb.tensor(x[9:18])])
        assert same_bits(batch @ fb.tensor(w), y[:18].reshape(2, 9, 41))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 3, 10, 16, 17, 40, 128, 129, 300, 1025])
def test_a_row_of_cross_entropy_does_not_depend_on_the_others(classes, dtype):
    rng = np.random.default_rng(classes)
    x, labels = rng.standard_normal((37, classes)).astype(dtype), rng.integers(0, classes, 37)
    whole = fb.tensor(x, requires_grad=True)
    losses = fb.cross_entropy(whole, labels, reduction="none")
    losses.backward(np.ones(37, dtype))
    for rows in (slice(5, 6), slice(0, 7), slice(3, 36)):
        part = fb.tensor(x[rows], requires_grad=True)
        y = fb.cross_entropy(part, labels[rows], reduction="none")
        y.backward(np.ones(y.shape, dtype))
        assert same_bits(y, losses.numpy()[rows])
        assert same_bits(part.grad, whole.grad.numpy()[rows])
