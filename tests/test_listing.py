"""step.stages(): the text's programs as the book writes them; every stage of a plan stands in one line."""
import numpy as np
import pytest
from cases import ALL, CASES
from test_planner import PROGRAMS, circuit_of_the_text, golden

import fastbp as fb
from fastbp import nn, optim


def leaf(value, name, dtype=np.float64):
    return fb.tensor(np.asarray(value, dtype), requires_grad=True, name=name)


def listing_of(f, *args):
    f(*args)
    return f.stages()


# --- the text's programs

def simple(x, y, z):
    """The first compound expression."""
    q = x + y
    f = q * z
    f.backward()
    return f


def neuron(w0, x0, w1, x1, w2):
    """The sigmoid neuron, gate by gate."""
    dot = w0 * x0 + w1 * x1 + w2
    f = 1 / (1 + fb.exp(-dot))
    f.backward()
    return f


def fork(x, y):
    """Gradients add at forks."""
    s = x * y
    f = s * x + fb.maximum(s, y)
    f.backward()
    return f


def matrices(W, X):
    """dW has the shape of W, dX that of X: only one way to multiply fits."""
    D = W @ X
    loss = (D * D).sum()
    loss.backward()
    return loss


def dosages():
    """The 1-2-1 softplus net on three dosages, a step of gradient descent on the sum of squared residuals."""
    dosage, effect = np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 0.0])
    w1, b1, w2, b2, w3, w4, b3 = parameters = [
        leaf(v, n) for v, n in zip((3.34, -1.43, -3.53, 0.57, -1.22, -2.30, 0.0),
                                   ("w1", "b1", "w2", "b2", "w3", "w4", "b3"), strict=True)]
    descent = optim.SGD(parameters, lr=0.1)

    @fb.staged
    def step():
        top = fb.softplus(dosage * w1 + b1)
        bottom = fb.softplus(dosage * w2 + b2)
        predicted = top * w3 + bottom * w4 + b3
        ssr = fb.mse_loss(predicted, effect, reduction="sum")
        descent.zero_grad()
        ssr.backward()
        descent.step()
        return ssr
    return step, ()


def network(*sizes):
    """A ReLU net with softmax loss, S - I_y, and a step of SGD, all matrices by name; the general L-layer pass."""
    weights = [leaf(np.full((i, o), 0.1), f"W{n}", np.float32) for n, (i, o) in
               enumerate(zip(sizes, sizes[1:], strict=False), 1)]
    descent = optim.SGD(weights, lr=0.1)

    @fb.staged
    def step(X, y):
        Z = X
        for W in weights[:-1]:
            Z = fb.relu(Z @ W)
        loss = fb.cross_entropy(Z @ weights[-1], y)
        descent.zero_grad()
        loss.backward()
        descent.step()
        return loss
    return step, (np.ones((32, sizes[0]), np.float32), np.zeros(32, int))


def numbers(function, **values):
    return lambda: (fb.staged(function), [leaf(v, n) for n, v in values.items()])


TEXT = {
    "simple": numbers(simple, x=-2, y=5, z=-4),
    "neuron": numbers(neuron, w0=2, x0=-1, w1=-3, x1=-2, w2=-3),
    "fork": numbers(fork, x=3, y=-4),
    "matrices": numbers(matrices, W=np.ones((5, 10)), X=np.ones((10, 3))),
    "dosages": dosages,
    "two-layers": lambda: network(20, 50, 10),
    "layers": lambda: network(20, 30, 40, 50, 10),
    "circuit": lambda: (circuit_of_the_text(), [leaf(3, "x"), leaf(-4, "y")]),
}


@pytest.mark.parametrize("name", TEXT)
def test_the_texts_programs_read_as_in_the_book(name):
    step, args = TEXT[name]()
    golden(f"{name}.txt", str(listing_of(step, *args)))


def test_the_book_in_short():
    """The lines of the text, in its own form, whatever else the golden files hold."""
    def lines(name):
        step, args = TEXT[name]()
        return [line.text.strip() for line in listing_of(step, *args).lines]

    circuit = lines("circuit")
    for line in ("(3) sigx = sigmoid(x)", "dx += (1 - sigx) * sigx * dsigx   # (3)", "dnum = df / den   # (7)",
                 "dxpy = dxpysqr * (xpy + xpy)   # (5)", "dy = dxpy   # (4)"):
        assert line in circuit
    assert "dW = dD @ X.T   # (1)" in lines("matrices") and "dX = W.T @ dD   # (1)" in lines("matrices")
    two = lines("two-layers")
    assert "dt2 = (softmax(t2) - I[y]) * dt3   # (4)" in two and "dW2 = Z.T @ dt2   # (3)" in two
    assert "dt1 = (Z > 0) * dZ   # (2)" in two and "dW1 = X.T @ dt1   # (1)" in two
    assert "dq = df * z   # (2)" in lines("simple")


# --- any program

def check(staged):
    listing = staged.stages()
    plan = staged.replays[0].about.plan
    found = [s for line in listing.lines for s in line.stages]
    assert len(found) == len(set(found)) and set(found) == set(plan.stages)
    assert "?" not in str(listing) and len(str(listing).splitlines()) == len(listing) + 1
    texts = [line.text for line in listing.lines]
    assert len(set(texts)) == len(texts) or len({t for t in texts if "+=" not in t}) == len(
        [t for t in texts if "+=" not in t])
    return listing


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_stage_of_the_planner_s_programs_stands_in_one_line(name):
    f = fb.staged(PROGRAMS[name])
    f(fb.randn(3, 20, rng=0))
    check(f)


@pytest.mark.parametrize("name, k", ALL)
def test_every_gate_has_lines_forward_and_backward(name, k):
    case = CASES[name][k]
    many = tuple(range(len(case.shapes)))
    f = fb.staged(fb.value_and_grad(lambda *xs: fb.tanh(case.call(*xs)).sum(), argnums=many) if case.gradient
                  else case.call)
    f(*[fb.tensor(x) for x in case.inputs(np.random.default_rng(0), np.float64)])
    listing = check(f)
    if case.gradient and case.shapes:
        assert any("# (" in text for text in listing.texts)


def test_a_gradient_of_a_gradient_says_what_it_undoes():
    f = fb.staged(fb.grad(fb.grad(lambda x: fb.tanh(x) * x)))
    f(fb.tensor(np.float64(0.3)))
    assert "')" in str(check(f)) and "# (1)" in str(f.stages())


def test_a_long_gradient_comes_in_lines():
    f = fb.staged(fb.grad(lambda x: fb.gelu(fb.silu(x), approximate="tanh").sum()))
    f(fb.randn(4, rng=0))
    assert max(map(len, check(f).texts)) < 120


def test_a_gate_of_numpy_functions_stands_in_a_line_of_its_own():
    cube = fb.define_gate("cube", lambda x: x**3, lambda dy, y, x: 3 * x**2 * dy)
    f = fb.staged(fb.value_and_grad(lambda x: cube(x).sum()))
    f(fb.ones(3))
    text = str(check(f))
    assert "= cube(x)" in text and "cube_grad(" in text
    assert "(view)" not in text and "dx = " in text


def test_tied_weights_and_accumulated_gradients():
    tied = nn.Linear(3, 3, rng=0)

    @fb.staged
    def f(x):
        loss = tied(fb.tanh(tied(x))).sum()
        loss.backward()
        return loss

    for _ in range(2):    # the second call adds to the gradients that are there
        f(fb.ones(2, 3))
        assert "dweight += " in str(check(f)) and "dbias += " in str(f.stages())


def texts(staged, *args):
    staged(*args)
    return [line.text.strip() for line in check(staged).lines]


def test_a_view_of_a_weight_that_is_used_twice_has_both_parts():
    A = leaf(np.ones((3, 3)), "A")

    @fb.staged
    def f(x):
        V = A.T
        h = fb.tanh(x @ V)
        loss = (h @ V).sum()
        loss.backward()
        return loss
    found = texts(f, np.ones((4, 3)))
    assert "(1) t1 = x @ A.T" in found and "dA.T = h.T @ dt2   # (3)" in found and "dA.T += x.T @ dt1   # (1)" in found


def test_a_gradient_that_has_a_name_is_made_under_it():
    A = leaf(np.ones((3, 3)), "A")

    @fb.staged
    def f(x):
        g = fb.grad(lambda t: (t @ A).sum())(x)
        return (g * g).sum()
    found = texts(f, np.ones((4, 3)))
    assert "g = dt1 @ A.T   # (1)" in found and "(3) t3 = g * g" in found


def test_every_name_is_of_one_thing():
    """Two models with the same parameters' names, a variable called like a gradient, a tensor called like a stage."""
    one, two = (nn.Sequential(nn.Linear(3, 3, rng=n)) for n in range(2))
    scale = fb.tensor(2.0, requires_grad=True, name="t1")

    @fb.staged
    def f(x):
        dx = x * 2.0
        loss = (two(one(dx * x)) * scale).sum()
        loss.backward()
        return loss
    found = texts(f, fb.ones((4, 3), requires_grad=True))
    for line in ("(1) dx = x * 2", "(3) t3 = t2 @ 0.weight.T", "(5) t5 = t4 @ 0.weight_2.T", "(7) t7 = t6 * t1",
                 "d_x += ddx * 2   # (1)"):
        assert line in found
    assert len([t for t in found if t.startswith("d0.weight")]) == 2


def test_gradients_of_several_backwards_have_names_of_their_own():
    @fb.staged
    def f(x):
        first, second = (x * x).sum(), fb.exp(x).sum()
        return fb.grad(lambda t: (t * t).sum())(x), fb.grad(lambda t: fb.exp(t).sum())(x), first, second
    names = [t.split()[0] for t in texts(f, leaf(np.ones(3), "x")) if "#" in t and " = " in t]
    assert len(set(names)) == len(names)


def test_accumulated_gradients_are_named():
    w = leaf([1.0, 2.0], "w")

    @fb.staged
    def f():
        loss = (w * w).sum()
        loss.backward()
        return loss
    f()
    assert any("w.grad + dw" in t for t in texts(f))


def test_only_a_transpose_is_written_as_one():
    found = texts(fb.staged(lambda x: (x.transpose(0, 1) * 2, x.transpose(1, 0) * 3, x.T.T * 4)), np.ones((2, 3)))
    assert found[0] == "(1) t1 = x" and "(3) t3 = x.T" in found


def test_names_that_the_function_has_are_not_given_again():
    @fb.staged
    def f(x):
        t1 = fb.exp(x)
        return fb.tanh(t1 * 2) + t1
    f(fb.ones(3))
    assert [line.text for line in f.stages().lines] == [
        "(1) t1 = exp(x)", "(2) t2 = t1 * 2", "(3) t3 = tanh(t2)", "(4) t4 = t3 + t1"]


@pytest.mark.parametrize("text, call", [
    ("-(x - y) * (x - -2)", lambda x, y: -(x - y) * (x - (-2.0))),
    ("(x + y)**2 / -x", lambda x, y: (x + y)**2 / -x),
    ("x - (y - x)", lambda x, y: x - (y - x)),
    ("x / (y * x)", lambda x, y: x / (y * x)),
    ("x**(y + x)", lambda x, y: x**(y + x)),
    ("(x**y)**x", lambda x, y: (x**y)**x),
    ("x**y**x", lambda x, y: x**y**x),
    ("(-x)**2", lambda x, y: (-x)**2)])
def test_expressions_have_the_brackets_they_need(text, call):
    from fastbp.planner.expression import ATOM, expression, number
    x, y = leaf(2.0, "x"), leaf(3.0, "y")

    def part(t):
        if t._gate is None:
            return (t.name, ATOM) if t.name else number(t.item())
        return expression(t._gate, t._params, [part(u) for u in t._inputs], t)

    made = part(call(x, y))[0]
    assert made == text
    assert eval(made, {"x": 2.0, "y": 3.0}) == call(x, y).item()
