"""The tape, the backward walk, gradients as functions: the numbers of the text, and what can go wrong."""
import gc
import re
import weakref

import numpy as np
import pytest

import fastbp as fb


def f64(value, **options):
    return fb.tensor(np.float64(value), **options)


# --- the numbers of the text (CS231n)

def test_a_compound_expression():
    x, y, z = (f64(v, requires_grad=True) for v in (-2, 5, -4))
    q = x + y
    f = q * z
    f.backward()
    assert f.item() == -12
    assert (x.grad.item(), y.grad.item(), z.grad.item()) == (-4, -4, 3)


@pytest.mark.parametrize("grouped", [True, False])
def test_the_sigmoid_neuron(grouped):
    w = fb.tensor(np.array([2.0, -3.0, -3.0]), requires_grad=True)
    x = fb.tensor(np.array([-1.0, -2.0]), requires_grad=True)
    dot = w[0] * x[0] + w[1] * x[1] + w[2]
    f = fb.sigmoid(dot) if grouped else fb.reciprocal(1 + fb.exp(-dot))
    f.backward()
    assert abs(f.item() - 0.7310586) < 1e-7
    np.testing.assert_allclose(x.grad, [0.3932239, -0.5898358], atol=1e-7)
    np.testing.assert_allclose(w.grad, [-0.1966119, -0.3932239, 0.1966119], atol=1e-7)


def test_staged_computation():
    def f(x, y):
        return (x + fb.sigmoid(y)) / (fb.sigmoid(x) + (x + y)**2)

    value, (dx, dy) = fb.value_and_grad(f, argnums=(0, 1))(f64(3), f64(-4))
    assert abs(value.item() - 1.5456448841) < 1e-10
    assert abs(dx.item() - 2.0595697956) < 1e-10
    assert abs(dy.item() - 1.5922327515) < 1e-10


def test_matrix_gradients():
    rng = np.random.default_rng(0)
    w, x, d = rng.standard_normal((5, 10)), rng.standard_normal((10, 3)), rng.standard_normal((5, 3))
    W, X = fb.tensor(w, requires_grad=True), fb.tensor(x, requires_grad=True)
    (W @ X).backward(d)
    np.testing.assert_allclose(W.grad, d @ x.T, rtol=1e-13)
    np.testing.assert_allclose(X.grad, w.T @ d, rtol=1e-13)


def test_patterns_add_distributes_max_routes_mul_swaps():
    x, y = f64(3, requires_grad=True), f64(-4, requires_grad=True)
    ((x + y) * 2).backward()
    assert (x.grad.item(), y.grad.item()) == (2, 2)
    x.grad = y.grad = None
    (fb.maximum(x, y) * 2).backward()
    assert (x.grad.item(), y.grad.item()) == (2, 0)
    x.grad = y.grad = None
    (x * y * 2).backward()
    assert (x.grad.item(), y.grad.item()) == (-8, 6)


# --- the tape

def test_std_of_equal_elements_has_gradient_0():
    """A layer norm written by hand, (x - mean) / (std + eps), meets rows of padding."""
    x = np.array([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0], [1.0, np.nan, 1.0]])
    for ddof in (0, 1):
        y, dx = fb.value_and_grad(lambda x, ddof=ddof: x.std(1, ddof=ddof).sum())(x[:2])
        assert y.item() == np.sqrt(x[1].var(ddof=ddof)) and not dx.numpy()[0].any()
        np.testing.assert_allclose(dx.numpy()[1], [-1 / y.item() / (3 - ddof), 0, 1 / y.item() / (3 - ddof)])
    assert np.isnan(fb.grad(lambda x: x.std(1).sum())(x[2:]).numpy()).all()


def test_gradients_accumulate_over_backwards_and_forks():
    x = f64(3, requires_grad=True)
    (x * x).backward()
    (x * x * x).backward()
    assert x.grad.item() == 6 + 27
    x.grad = None
    y = x
    for _ in range(10):
        y = y + y
    y.backward()
    assert x.grad.item() == 1024


def test_the_order_of_adding_is_the_reverse_of_recording():
    """With rounding, ((c + b) + a) differs from ((a + b) + c): the last use comes first."""
    x = fb.tensor(np.float32(1), requires_grad=True)
    a, b, c = (fb.tensor(np.float32(v)) for v in (1e8, 1.0, -1e8))
    (x * a + x * b + x * c).backward()
    assert x.grad.item() == np.float32(np.float32(-1e8 + np.float32(1)) + np.float32(1e8))


def test_a_gradient_is_the_leafs_own_memory():
    x, y = fb.ones(3, requires_grad=True), fb.ones(3, requires_grad=True)
    seed = fb.tensor([1.0, 2.0, 3.0])
    (x + y).backward(seed)
    x.grad.numpy()[0] = 100
    assert y.grad.numpy()[0] == 1 and seed.numpy()[0] == 1
    w = fb.ones(2, 3, requires_grad=True)
    w.T.sum().backward()
    w.grad.numpy()[...] = 5    # writable, no broadcast view
    assert w.grad.numpy().sum() == 30


def test_second_backward_through_one_tape():
    x = f64(2, requires_grad=True)
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 8
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        (y + 1).backward()
    assert x.grad.item() == 8


def test_backward_needs_a_scalar_or_a_gradient():
    x = fb.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="several elements"):
        (x * 2).backward()
    with pytest.raises(fb.ShapeError):
        (x * 2).backward(np.ones(2))
    assert x.grad is None
    with pytest.raises(RuntimeError, match="nothing here requires a gradient"):
        fb.ones(1).backward()


def test_a_changed_saved_value_is_caught_and_an_unneeded_one_is_not():
    x, w = fb.ones(3, requires_grad=True), fb.ones(3, requires_grad=True)
    y = (x * w).sum()
    w.copy_(np.zeros(3))
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()
    assert x.grad is None
    z = (x + w).sum()
    w.copy_(np.ones(3))
    z.backward()                      # add needs no values
    assert x.grad.numpy().tolist() == [1, 1, 1]
    y = fb.exp(x)
    s = y.sum()
    y.detach().copy_(np.zeros(3))     # through a view of the saved output
    with pytest.raises(RuntimeError, match="changed in place"):
        s.backward()


def test_no_grad_and_detach():
    x = f64(2, requires_grad=True)
    with fb.no_grad():
        y = x * x
        with fb.no_grad():
            pass
        assert not (x * x).requires_grad
    assert not y.requires_grad and (x * x).requires_grad

    @fb.no_grad()
    def f():
        return x * x
    assert not f().requires_grad
    (x * (x * x).detach()).backward()
    assert x.grad.item() == 4


def test_leaves_and_requires_grad():
    x = fb.ones(2)
    assert x.is_leaf and not x.requires_grad
    assert x.requires_grad_() is x and x.requires_grad
    y = x * 2
    assert not y.is_leaf
    with pytest.raises(RuntimeError, match="leaves"):
        y.requires_grad = False
    with pytest.raises(TypeError):
        fb.tensor(np.array([1, 2]), requires_grad=True)


def test_a_deep_tape_neither_recurses_nor_leaks():
    x = f64(1, requires_grad=True)
    y = x
    for _ in range(50_000):
        y = y + 1.0
    y.backward()
    assert x.grad.item() == 1
    last = weakref.ref(y)
    del y
    gc.collect()
    assert last() is None


# --- gradients as functions

def test_grad_over_nests_numbers_and_arrays():
    params = {"w": np.ones((2, 3)), "b": [fb.zeros(3, dtype="float64"), np.float64(2)], "c": (1.5,)}

    def f(p, x):
        return ((x @ p["w"] + p["b"][0]) * p["b"][1]).sum()

    g = fb.grad(f)(params, np.ones((4, 2)))
    assert g["w"].shape == (2, 3) and (g["w"].numpy() == 8).all()
    assert (g["b"][0].numpy() == 8).all() and g["b"][1].item() == 24
    assert isinstance(g["c"], tuple) and g["c"][0].item() == 0       # not used
    assert all(isinstance(t, fb.Tensor) for t in (g["w"], *g["b"], *g["c"]))


def test_grad_touches_no_grad_and_nests():
    w = f64(3, requires_grad=True)
    g = fb.grad(lambda x: x * x * w)(f64(2))
    assert g.item() == 12 and w.grad is None
    g.backward()                        # d (2 x w) / d w
    assert w.grad.item() == 4
    cube = lambda x: x**3.0
    assert fb.grad(fb.grad(cube))(2.0).item() == pytest.approx(12)
    assert fb.grad(fb.grad(fb.grad(cube)))(2.0).item() == pytest.approx(6)
    inner = lambda x: fb.grad(lambda y: x * y * y)(3.0) * x          # 6 x^2
    assert fb.grad(inner)(2.0).item() == 24


def test_grad_of_a_constant_and_of_an_unused_argument():
    assert fb.grad(lambda x: 3.0)(2.0).item() == 0
    assert fb.grad(lambda x: fb.tensor(1.0))(np.ones(3)).numpy().tolist() == [0, 0, 0]
    dx, dy = fb.grad(lambda x, y: x.sum(), argnums=(0, 1))(np.ones(2), np.ones(3))
    assert dx.numpy().tolist() == [1, 1] and dy.numpy().tolist() == [0, 0, 0]
    assert fb.grad(lambda x: x)(2.0).item() == 1


def test_grad_argnums_aux_and_errors():
    (value, aux), g = fb.value_and_grad(lambda x: (x * x, "aux"), has_aux=True)(3.0)
    assert (value.item(), aux, g.item()) == (9, "aux", 6)
    g, aux = fb.grad(lambda a, x: (x * x, 1), argnums=-1, has_aux=True)("text", 3.0)
    assert (g.item(), aux) == (6, 1)
    with pytest.raises(fb.ShapeError, match="scalar"):
        fb.grad(lambda x: x)(np.ones(2))
    with pytest.raises(TypeError):
        fb.grad(lambda x: x)("text")
    with pytest.raises(TypeError):
        fb.grad(lambda x: x.sum())(np.arange(3))
    with fb.no_grad():
        assert fb.grad(lambda x: x * x)(3.0).item() == 6
    same = np.ones(2)
    a, b = fb.grad(lambda x, y: (x * y * y).sum(), argnums=(0, 1))(same, same)
    assert a.numpy().tolist() == [1, 1] and b.numpy().tolist() == [2, 2]


# --- the checker is checked

def lying(factor=1.0, power_=2):
    """A square whose gradient is wrong."""
    return fb.define_gate("lying", lambda x: x * x, lambda dy, y, x: dy * x**(power_ - 1) * 2 * factor)


def test_gradcheck_accepts_what_is_right():
    assert fb.gradcheck(lambda x: fb.sigmoid(x).sum(), np.linspace(-2, 2, 7))
    assert fb.gradcheck(lambda x, w: fb.tanh(x @ w), [np.eye(3), np.ones((3, 2))])
    assert fb.gradcheck(lying(), np.linspace(0.5, 2, 5))
    assert fb.gradcheck(lambda x, y: fb.cross_entropy(x, y), [np.eye(3), np.array([0, 2, 1])])


@pytest.mark.parametrize("wrong", [
    lying(factor=1.001), lying(factor=-1), lying(factor=0), lying(power_=1),
    fb.define_gate("missing", lambda x: x * x + 0.1 * x, lambda dy, y, x: dy * 2 * x)])
def test_gradcheck_refuses_what_is_wrong(wrong):
    with pytest.raises(fb.GradcheckError, match=r"input 0, entry \(\d,\): the gradient is .* difference"):
        fb.gradcheck(wrong, np.linspace(0.5, 2, 5))


def test_the_suites_own_checker_refuses_what_is_wrong():
    from test_gates import direction_check
    rng = np.random.default_rng(0)
    x = [rng.standard_normal(6)]
    right = lambda xs: [2 * xs[0]]
    f = lambda xs: float((xs[0]**2).sum())
    direction_check(f, right, x, rng)
    for wrong in (lambda xs: [2.002 * xs[0]], lambda xs: [-2 * xs[0]], lambda xs: [0 * xs[0]],
                  lambda xs: [2 * xs[0] * (np.arange(6) > 0)]):
        with pytest.raises(AssertionError):
            direction_check(f, wrong, x, rng)


# --- a user's own gates

def test_define_gate():
    calls = []

    def backward(dy, y, x, w):
        calls.append(1)
        return dy * w, dy * x

    gate = fb.define_gate("product", lambda x, w: x * w, backward)
    x, w = fb.tensor([2.0, 3.0], requires_grad=True), fb.tensor([5.0, 7.0], requires_grad=True)
    y = gate(x, w)
    assert y.dtype == np.float32 and y.numpy().tolist() == [10, 21]
    y.sum().backward()
    assert x.grad.numpy().tolist() == [5, 7] and w.grad.numpy().tolist() == [2, 3]
    assert len(calls) == 1, "one call of backward for both inputs"
    with pytest.raises(RuntimeError, match="once"):
        fb.grad(fb.grad(lambda x: gate(x, f64(2)).sum()))(f64(3))
    wrong = fb.define_gate("wrong", lambda x: x, lambda dy, y, x: dy.sum())
    with pytest.raises(fb.ShapeError, match="wrong"):
        wrong(x).sum().backward()


def test_gate_groups_a_function():
    @fb.gate
    def neuron(x, w):
        """y = sigmoid(x w)"""
        return fb.sigmoid(x * w)

    x = f64(1, requires_grad=True)
    y = neuron(x, f64(2))
    z = y * 3
    assert y._group.name == "neuron" and y._inputs[0]._group is y._group and z._group is None
    z.backward()
    assert abs(x.grad.item() - 6 * 0.10499358540350662) < 1e-12
    assert re.match("y = sigmoid", neuron.__doc__)


def test_define_gate_at_a_fork_and_over_its_own_input():
    g = fb.define_gate("g", lambda x, w: x * x * w, lambda dy, y, x, w: (dy * 2 * x * w, dy * x * x))
    w = fb.tensor([3.0], requires_grad=True)
    assert fb.grad(lambda x: (g(x, w) + g(5 * x, w)).sum())(fb.tensor([1.0])).item() == 156
    same = fb.define_gate("same", lambda x: x, lambda dy, y, x: dy)
    x = fb.tensor([1.0, 2.0], requires_grad=True)
    y = same(x)
    assert not np.shares_memory(y.numpy(), x.numpy())


def test_no_grad_can_be_entered_again():
    off = fb.no_grad()
    with off, off:
        pass
    assert (f64(1, requires_grad=True) * 2).requires_grad


def test_gradients_of_grad_are_their_own_memory():
    x, y = fb.ones(3), fb.ones(3)
    gx, gy = fb.grad(lambda a, b: (a + b).sum(), argnums=(0, 1))(x, y)
    gx.copy_([1.0, 2.0, 3.0])
    assert gy.numpy().tolist() == [1, 1, 1] and gx.numpy().tolist() == [1, 2, 3]
    value, g = fb.value_and_grad(lambda a: (a * a).sum())(x)
    assert not value.requires_grad and not g.requires_grad


def test_groups_nest():
    inner = fb.gate(lambda x: x * 2.0)

    @fb.gate
    def outer(x):
        a = inner(x)
        return a, x * 3.0

    a, b = outer(f64(1, requires_grad=True))
    assert a._group.parent is b._group and b._group.name == "outer" and b._group.parent is None
    assert (f64(1, requires_grad=True) * 2)._group is None


def test_argnums_that_name_no_argument():
    for bad in (1, -2, "x", 0.5):
        with pytest.raises(TypeError, match="argnums"):
            fb.grad(lambda x: x, argnums=bad)(1.0)
