"""The planner: each pass fires on a named program and leaves the bits; the verifier; listings; chunks; the arena."""
from pathlib import Path

import numpy as np
import pytest
from cases import ALL, CASES
from test_gates import same_bits
from test_staged import OPTIMIZERS, assert_same, flat, net

import fastbp as fb
from fastbp import data, nn, optim
from fastbp.nn import functional as F
from fastbp.planner import PASSES
from fastbp.planner.verify import verify

GOLDEN = Path(__file__).parent / "golden"


def golden(name, text):
    path = GOLDEN / name
    assert path.exists() and path.read_text() == text + "\n", f"the listing changed; if it should, write it to {path}"


def plan_of(staged):
    return staged.replays[0].about.plan


# --- the programs that the passes fire on

def unused(x):
    """dead: nobody needs the sum."""
    fb.exp(x).sum()
    return fb.tanh(x)


def constants(x):
    """constant: the seed of the gradient, divided by the number of elements, is known."""
    return fb.value_and_grad(lambda t: fb.square(t).mean())(x)


def repeated(x):
    """same: both gradients of a quotient begin with dz / y, and dz of a sum is 1."""
    y = x + 3.0
    return fb.value_and_grad(lambda t, u: (t * t / (u * u)).sum() + (u + u).sum(), argnums=(0, 1))(x * y, y)


def reshaped(x):
    """fold: a reshape of a transpose copies, and what reads the copy can read the original."""
    y = x.T.reshape(4, 5, 3)[:, 1:] * 2.0
    rows = fb.softmax(fb.broadcast_to(x[0], (6, 20)))
    return y, rows, x.T.reshape(60) @ fb.ones(60)


def overwritten(x):
    """in_place: each value dies where the next is made."""
    h = fb.tanh(x * 2.0)
    return (fb.relu(h + 1.0) * h).sum()


def classified(x):
    """join: cross-entropy and its gradient share what they compute, as the gradient of the mean is known."""
    return fb.value_and_grad(lambda t: fb.cross_entropy(t * 2.0, np.array([3, 1, 19])))(x)


def layered(x):
    """multiply_add: a bias joins its layer's product, and the gradients at a fork add up as they are multiplied."""
    def f(x):
        h = fb.tanh(x @ fb.ones((20, 6)) + x[0, :6])
        return (h * x[:, :6].reshape(3, 6) + fb.exp(h)).sum()
    return fb.value_and_grad(f)(x)


WEIGHTS = fb.zeros((20, 6), requires_grad=True), fb.zeros((6,), requires_grad=True)
DESCENT = optim.SGD(WEIGHTS, lr=0.1)


def pooled(x):
    """pool_relu: the ReLU between a convolution and a max pool is in the pool, and its mask in the pool's gradient."""
    def f(x):
        return F.max_pool2d(fb.relu(F.conv2d(x.reshape(3, 1, 4, 5), fb.ones((2, 1, 1, 2)))), 2).sum()
    return fb.value_and_grad(f)(x)


def updated(x):
    """advance: an update waits for its gradient and for the last reader of the old values, not for the other."""
    a, b = WEIGHTS
    a.copy_(x.T @ x[:, :6])
    b.copy_(x[0, :6])
    DESCENT.zero_grad()
    loss = fb.square(fb.tanh(x @ a) @ b).mean()
    loss.backward()
    DESCENT.step()
    return loss


def total(x):
    """split: a sum over more than a tile comes as its blocks, and their sum."""
    y = fb.broadcast_to(x, (90, 3, 20)) * 2.0
    return y.mean(), (y * y).max()


def between(x):
    """postpone: the sum waits until the elementwise stages around it are together."""
    y = fb.broadcast_to(x, (90, 3, 20)) * 2.0
    total = y.sum()
    return fb.tanh(y) * 3.0, total * 2.0


def chains(x):
    """fuse: a chain of more than a tile, forward and backward; a row and a number are read by all of it."""
    wide = fb.broadcast_to(x.reshape(60), (100, 60)) * 1.0
    return fb.value_and_grad(lambda t: (fb.tanh(t * x[0, 0] + wide[7]) * t).sum())(wide)


PROGRAMS = {"dead": unused, "constant": constants, "same": repeated, "fold": reshaped, "join": classified,
            "multiply_add": layered, "pool_relu": pooled, "advance": updated, "split": total, "postpone": between,
            "in_place": overwritten, "fuse": chains}


def test_every_pass_has_a_program():
    assert list(PROGRAMS) == list(PASSES)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_pass_fires_and_its_program_is_golden(name, monkeypatch):
    x = fb.randn(3, 20, rng=0)
    with_it, without = fb.staged(PROGRAMS[name]), fb.staged(PROGRAMS[name])
    assert_same(with_it(x), with_it.eager(x))
    monkeypatch.setenv("FASTBP_PASSES_OFF", name)
    assert_same(without(x), with_it(x))
    listing = str(with_it.stages())
    assert listing != str(without.stages())
    golden(f"{name}.txt", listing)
    if name == "split":
        assert {"blocks", "combine"} <= {s.form for s in plan_of(with_it).stages}
    elif name == "in_place":
        assert plan_of(with_it).shares and not plan_of(without).shares
    elif name == "fuse":
        assert plan_of(with_it).tiled and not plan_of(without).tiled
        assert plan_of(with_it).arena_size < plan_of(without).arena_size
    elif name == "advance":
        names = [s.name for s in plan_of(with_it).stages]
        assert names.index("sgd") < len(names) - 1 and [s.name for s in plan_of(without).stages][-2:] == ["sgd", "sgd"]
    elif name == "same":
        assert [[s.name for s in plan_of(f).stages].count("div") for f in (with_it, without)] == [2, 3]
    elif name == "postpone":
        assert len({s.group for s in plan_of(with_it).stages}) < len({s.group for s in plan_of(without).stages}) + 1
    else:
        assert len(plan_of(with_it).stages) < len(plan_of(without).stages)


@pytest.mark.parametrize("off", [*PASSES, ",".join(PASSES)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_without_a_pass_has_the_same_bits(off, optimizer, monkeypatch):
    X, y = data.load_digits()
    (a, opt_a, step), (b, opt_b, other) = net(optimizer), net(optimizer)
    monkeypatch.setenv("FASTBP_PASSES_OFF", off)
    for n in range(100):
        rows = slice(7 * n, 7 * n + (16 if n % 10 else 9))
        if n == 60:
            opt_a.lr = opt_b.lr = 0.003
        if n == 80:
            for model in (a, b):
                model.load_state_dict(net("sgd")[0].state_dict())
        assert_same(step(X[rows], y[rows]), other.eager(X[rows], y[rows]))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert same_bits(p, q)


@pytest.mark.parametrize("name, k", ALL)
def test_every_gate_without_passes(name, k, monkeypatch):
    """Each pass off, and all of them, on a small input and, element by element, on one of several tiles."""
    case = CASES[name][k]
    many = tuple(range(len(case.shapes)))
    f = fb.staged(fb.value_and_grad(lambda *xs: fb.tanh(case.call(*xs)).sum(), argnums=many) if case.gradient
                  else case.call)
    for shapes in (None, [(90, 50)] * len(many)) if case.elementwise else (None,):
        xs = [fb.tensor(x) for x in case.inputs(np.random.default_rng(0), np.float32, shapes)]
        expected = f.eager(*xs)
        for off in ("", *PASSES, ",".join(PASSES)):
            f.reset()
            monkeypatch.setenv("FASTBP_PASSES_OFF", off)
            assert_same(f(*xs), expected)


# --- updates that move up, and stages that run on strips of a product

def descent(optimizer, inputs, dtype="float32"):
    """A layer, its optimizer, and a step."""
    fb.manual_seed(0)
    layer = nn.Linear(inputs, 300).to(dtype)
    opt = OPTIMIZERS[optimizer](layer.parameters())

    @fb.staged
    def step(x, y):
        opt.zero_grad()
        h = fb.relu(layer(x))
        loss = fb.mse_loss(h, y)
        loss.backward()
        opt.step()
        return loss, h

    return layer, step


def strip_groups(staged):
    """For each product that others run with, the names of these."""
    groups = {s.group: None for s in plan_of(staged).stages if s.group is not None and s.form == "product"}
    return [[s.name for s in group.stages if s.form != "view"] for group in groups]


@pytest.mark.parametrize("inputs", [60, 300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bias_and_activation_or_the_update_run_on_strips_of_a_product(optimizer, dtype, inputs, monkeypatch):
    """The result is large, has rows enough, and the other matrix is small."""
    layers, steps = zip(*[descent(optimizer, inputs, dtype) for _ in range(3)], strict=True)
    rows = 240 if inputs == 60 else 200
    x, y = fb.randn(rows, inputs, dtype=dtype, rng=1), fb.randn(rows, 300, dtype=dtype, rng=2)
    for _ in range(4):
        found = steps[0](x, y)
        assert_same(found, steps[1].eager(x, y))
        monkeypatch.setenv("FASTBP_PASSES_OFF", "fuse,advance")
        assert_same(found, steps[2](x, y))
        monkeypatch.delenv("FASTBP_PASSES_OFF")
    kernel = {"decay": "sgd", "nesterov": "momentum", "adamw": "adam"}.get(optimizer, optimizer)
    forward, backward = ["matmul_add", "relu", "sub", "square"], ["matmul", kernel]
    assert strip_groups(steps[0]) == ([forward] if inputs == 60 else [backward]) and not strip_groups(steps[2])
    for p, q, r in zip(*[layer.parameters() for layer in layers], strict=True):
        assert same_bits(p, q) and same_bits(p, r)
    plan = plan_of(steps[0])
    if inputs == 300:
        gradient = [s for s in plan.stages if s.form == "product"][-1].outputs[0]
        assert id(plan.owner(gradient)) in plan.tiled    # it is never whole


def test_the_listing_of_strips_is_golden():
    for inputs in (60, 300):
        _, step = descent("sgd", inputs)
        rows = 240 if inputs == 60 else 200
        step(fb.ones(rows, inputs), fb.ones(rows, 300))
        golden(f"strips-{inputs}.txt", str(step.stages()))


@pytest.mark.parametrize("columns", [291, 300, 321, 336])
@pytest.mark.parametrize("k", [2, 5, 70, 600])
@pytest.mark.parametrize("rows", [230, 291, 1000])
def test_strips_of_any_shape_have_the_same_bits(rows, columns, k, monkeypatch):
    x, w, b = fb.randn(rows, k, rng=0), fb.randn(k, columns, rng=1), fb.randn(columns, rng=2)
    f = fb.staged(lambda x, w, b: (fb.tanh(x @ w + b), fb.exp(0.01 * (x[::-1] @ w)), (x.T.reshape(rows, k) @ w) * b[:1],
                                   fb.relu(x @ w.T.reshape(columns, k).T)))
    made = f(x, w, b)
    assert_same(made, f.eager(x, w, b))
    assert len(strip_groups(f)) == (4 if k < 600 else 0)
    whole = [t.numpy().copy() for t in made]
    for order in (1, -1):
        for t in made:
            t.numpy()[...] = 0
        f.replays[0].program.run_in_chunks(order)
        for t, expected in zip(made, whole, strict=True):
            assert same_bits(t, expected)


def hidden_layer_gradients(x, w, dy):
    """Two sums over the rows of a product's masked result, one of them read behind."""
    h = fb.relu(x)
    dh = fb.where(h > 0, dy @ w, 0.0)
    total = dh.sum(axis=0)
    return total, (dh * h).mean(axis=0, keepdims=True), dh - total


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("columns", [33, 64])
@pytest.mark.parametrize("rows", [3072, 3073, 3300, 3328, 3329, 4096, 4097, 5000])
def test_sums_of_columns_run_on_strips_of_a_product(rows, columns, dtype, monkeypatch):
    x, w = fb.randn(rows, columns, rng=0, dtype=dtype), fb.randn(7, columns, rng=1, dtype=dtype)
    dy = fb.randn(rows, 7, rng=2, dtype=dtype)
    f = fb.staged(hidden_layer_gradients)
    made = f(x, w, dy)
    expected = f.eager(x, w, dy)
    assert_same(made, expected)
    assert sum(name.endswith("_columns") for names in strip_groups(f) for name in names) == 2
    for order in (1, -1):
        for t in made:
            t.numpy()[...] = 0
        f.replays[0].program.run_in_chunks(order)
        assert_same(made, expected)
    assert any(n > 1 for n in f.replays[0].program.chunks)
    f.reset()
    monkeypatch.setenv("FASTBP_PASSES_OFF", "split")
    assert_same(f(x, w, dy), expected)


def test_the_bias_gradient_of_a_hidden_layer_runs_on_strips():
    fb.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 100), nn.ReLU(), nn.Linear(100, 10))
    opt = optim.SGD(model.parameters(), lr=0.1)

    @fb.staged
    def step(x, y):
        opt.zero_grad()
        loss = fb.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        return loss

    step(fb.ones(3072, 60), np.zeros(3072, int))
    assert strip_groups(step) == [["matmul_add", "relu"], ["matmul", "relu_grad", "sum_columns"]]
    golden("strips-bias.txt", str(step.stages()))


def trained(step_of, tensors, args, calls=3):
    """`calls` calls of a step staged and, on copies of the tensors, eager: the same results and tensors; its plan."""
    copies = [fb.tensor(t.numpy().copy(), requires_grad=t.requires_grad) for t in tensors]
    staged, other = fb.staged(step_of(*tensors)), step_of(*copies)
    for _ in range(calls):
        assert_same(staged(*args), other(*args))
        for t, u in zip(tensors, copies, strict=True):
            assert same_bits(t, u)
    return staged


def leaf(*shape, rng):
    return fb.tensor(0.1 * fb.randn(*shape, rng=rng).numpy(), requires_grad=True)


def names(staged):
    return [s.name for s in plan_of(staged).stages if s.form != "view"]


def test_an_update_waits_for_those_who_read_the_old_values():
    def tied(w):
        opt = optim.SGD([w], lr=0.01)

        def step(x):
            loss = (fb.tanh(x @ w) @ w.T).sum()    # the gradient of one use needs w after that of the other
            opt.zero_grad()
            loss.backward()
            opt.step()
            return loss
        return step

    trained(tied, [leaf(200, 200, rng=0)], [fb.randn(150, 200, rng=1)])

    def kept_before(w):
        opt = optim.SGD([w], lr=0.01)

        def step(x):
            loss = fb.tanh(x @ w).sum()
            opt.zero_grad()
            loss.backward()
            old = w * 1.5
            opt.step()
            return loss, old, w + 0.0
        return step

    trained(kept_before, [leaf(200, 200, rng=0)], [fb.randn(150, 200, rng=1)])


def test_an_update_waits_for_those_who_read_the_old_values_by_another_name():
    """Two tensors over one array, and an array of which they show parts."""
    array = fb.randn(4, 30, rng=0).numpy()
    one, two = array[1], array[2:]

    def step_of(*tensors):
        base, w, v = map(fb.from_numpy, (array, one, two))
        w.requires_grad = v.requires_grad = True
        opt = optim.SGD([v, w], lr=0.5)

        def step(x):
            opt.zero_grad()
            (fb.tanh(x * w).sum() + fb.square(v * x).sum()).backward()
            early = base * 2.0 + x
            opt.step()
            return early, base + x
        return step

    x = fb.randn(30, rng=1)
    before = array.copy()
    expected = fb.staged(step_of())(x), array.copy()
    array[...] = before
    assert_same(expected[0], step_of()(x))
    assert np.array_equal(expected[1], array)


def test_an_update_of_a_gradient_waits_for_its_readers():
    def step_of(w, v):
        first, second = optim.SGD([w], lr=0.5), optim.SGD([v], lr=0.5)

        def step(x):
            w.grad, v.grad = v, x
            z = fb.tanh(x) * v
            first.step()
            second.step()
            return z
        return step

    trained(step_of, [leaf(40, rng=0), leaf(40, rng=1)], [fb.randn(40, rng=2)])


def graded(gradient_of, shape=(260, 260)):
    """How a step runs that gives w the gradient `gradient_of(w, x)` of two tensors: the groups of products."""
    def step_of(w):
        opt = optim.SGD([w], lr=0.01)
        given = gradient_of(w)

        def step(x):
            w.grad = given(x)
            opt.step()
            return x.sum()
        return step

    return strip_groups(trained(step_of, [leaf(*shape, rng=0)], [fb.randn(260, 260, rng=1)]))


def test_an_update_runs_with_the_product_that_is_its_gradient():
    a, g = fb.randn(260, 260, rng=2), fb.randn(260, 260, rng=3)
    assert graded(lambda w: lambda x: a @ x) == [["matmul", "sgd"]]
    # Each strip needs rows of w, and the first are changed with the first strip.
    assert graded(lambda w: lambda x: w @ x) == []
    assert graded(lambda w: (lambda shown: lambda x: shown @ x)(fb.from_numpy(w.numpy()[::-1]))) == []
    # C in another order than w; in the same order, under another shape; a product that is not the gradient.
    assert graded(lambda w: lambda x: (a @ x).T) == []
    assert graded(lambda w: lambda x: (a @ x).reshape(520, 130), (520, 130)) == [["matmul", "sgd"]]
    assert graded(lambda w: lambda x: g * (a @ x).sum()) == []
    assert graded(lambda w: lambda x: (a @ x)[:250], (250, 260)) == []    # a part of the product
    f = fb.staged(lambda x: (a @ x, fb.tanh(g)))
    assert_same(f(x := fb.randn(260, 260, rng=4)), f.eager(x))
    assert not strip_groups(f)


def as_eager(make, array):
    """Whether a step has the bits of its eager form: its result, and what it makes of `array`."""
    found = []
    before = array.copy()
    for eager in (False, True):
        array[...] = before
        step, args = make()
        result = step(*args) if eager else fb.staged(step)(*args)
        found.append((result.numpy().copy(), array.copy()))
    return all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("view", [
    lambda a: a[::-1], lambda a: a[::-1, ::-1], lambda a: a[:, ::-1], lambda a: a.T[::-1]])
@pytest.mark.parametrize("product", [False, True])
def test_an_update_of_a_reversed_parameter_has_the_same_bits(view, product):
    array, y = np.zeros((300, 300), np.float32), fb.randn(300, 300, rng=1)

    def make():
        p = fb.from_numpy(view(array))
        p.requires_grad = True
        opt = optim.SGD([p], lr=1.0)

        def step(x):
            g = x @ y if product else x * 2.0 + 1.0
            p.grad = (g.T if view(array).strides[0] in (4, -4) else g)[tuple(
                slice(None, None, -1 if s < 0 else 1) for s in view(array).strides)]
            opt.step()
            return x.sum()
        return step, [fb.randn(300, 300, rng=0)]

    assert as_eager(make, array)


@pytest.mark.parametrize("first, second", [((0, -1), (1, None)), ((1, None), (0, -1))])
@pytest.mark.parametrize("last", [False, True])
def test_an_update_does_not_run_with_what_reads_its_memory_one_element_further(first, second, last):
    array = np.arange(8193, dtype=np.float32)

    def make():
        q, p = fb.from_numpy(array[slice(*first)]), fb.from_numpy(array[slice(*second)])
        p.requires_grad = True
        opt = optim.SGD([p], lr=1.0)

        def step(x):
            p.grad = x * 2.0
            if last:
                opt.step()
            y = q * x
            if not last:
                opt.step()
            return y
        return step, [fb.ones(8192)]

    assert as_eager(make, array)


def test_a_gradient_that_shares_memory_with_what_the_step_changes_is_refused():
    w, v = leaf(3, rng=0), leaf(3, rng=1)
    opt = optim.SGD([v], lr=1.0)
    w.grad = v.detach()

    @fb.staged
    def step(x):
        v.grad = x
        opt.step()
        return fb.exp(w.grad)

    before = v.numpy().copy()
    with pytest.raises(fb.StagingError, match="shares memory"):
        step(fb.ones(3))
    assert np.array_equal(before, v.numpy())
    w.grad = fb.tensor(v.numpy())
    step(fb.ones(3))
    assert not np.array_equal(before, v.numpy())


def test_the_verifier_sees_a_product_that_reads_what_its_strips_change():
    w = leaf(260, 260, rng=0)
    opt, a = optim.SGD([w], lr=0.01), fb.randn(260, 260, rng=1)

    def step(x):
        w.grad = a @ x
        opt.step()

    f = fb.staged(step)
    f(fb.randn(260, 260, rng=2))
    plan = plan_of(f)
    product = next(s for s in plan.stages if s.form == "product")
    verify(plan)
    product.inputs = (w, product.inputs[1])
    with pytest.raises(RuntimeError, match="other places"):
        verify(plan)


def test_a_gradient_that_is_returned_or_clipped_is_whole():
    def step_of(w):
        opt = optim.SGD([w], lr=0.01)

        def step(x):
            loss = fb.square(x @ w).mean()
            opt.zero_grad()
            loss.backward()
            g = w.grad
            w.grad = g * fb.minimum(1.0 / fb.sqrt((g * g).sum()), 1.0)
            opt.step()
            return loss, g
        return step

    trained(step_of, [leaf(200, 200, rng=0)], [fb.randn(150, 200, rng=1)])


def test_no_update_passes_a_stage_of_python():
    """A gate that fails in the middle of the backward pass leaves every weight as it was."""
    fail = []

    def back(dy, y, x):
        if fail:
            raise ArithmeticError("no gradient today")
        return dy

    gate = fb.define_gate("gate", lambda x: x * 1, back)
    a, b = leaf(20, 30, rng=0), leaf(30, 5, rng=1)
    opt = optim.Adam([a, b], lr=0.01)

    @fb.staged
    def step(x):
        loss = fb.square(gate(x @ a) @ b).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    x = fb.randn(4, 20, rng=2)
    step(x)
    assert names(step).index("gate_grad") < names(step).index("adam_clock") < names(step).index("adam")
    before = [t.numpy().copy() for t in (a, b)], opt.state[a]["step"].item()
    fail.append(1)
    with pytest.raises(ArithmeticError):
        step(x)
    assert all(np.array_equal(t.numpy(), old) for t, old in zip((a, b), before[0], strict=True))
    assert opt.state[a]["step"].item() == before[1]


# --- stages that have the values of others

def kept(f, *args):
    """The names of the stages that are left, in their order; the call has the bits of the eager form."""
    staged = fb.staged(f)
    assert_same(staged(*args), staged.eager(*args))
    return [s.name for s in plan_of(staged).stages if s.form != "view"]


def test_equal_stages_are_one():
    x = fb.randn(3, 4, rng=0)
    assert kept(lambda x: fb.tanh(x) * fb.tanh(x)[::-1], x) == ["tanh", "mul"]
    assert kept(lambda x: fb.exp(fb.tanh(x) + fb.tanh(x)), x) == ["tanh", "add", "exp"]
    assert kept(lambda x: (x.sum(0) - x.sum(0)[::-1]) * (x @ x.T).sum() * (x @ x.T).sum(), x).count("matmul") == 1
    assert kept(lambda x: fb.softmax(x) * fb.softmax(x).T[0, 0], x).count("softmax") == 1


def test_what_undoes_a_stage_that_is_left_out_undoes_the_one_that_stands_for_it():
    f = fb.staged(fb.value_and_grad(lambda x: (fb.tanh(x) * fb.tanh(x)[::-1]).sum()))
    assert_same(f(fb.randn(5, rng=0)), f.eager(fb.randn(5, rng=0)))
    assert "tanh" in str(f.stages()) and "?" not in str(f.stages())


def test_stages_that_differ_in_anything_are_not_one():
    x = fb.randn(4, 4, rng=0)
    assert kept(lambda x: fb.tanh(x) * fb.tanh(x.T), x).count("tanh") == 2
    assert kept(lambda x: x.sum(0) * x.sum(1), x).count("sum") == 2
    assert kept(lambda x: fb.leaky_relu(x) * fb.leaky_relu(x, 0.2), x).count("leaky_relu") == 2
    assert kept(lambda x: fb.tanh(x[:2]) * fb.tanh(x[2:]), x).count("tanh") == 2
    assert kept(lambda x: (x - 1.0) * (1.0 - x), x).count("sub") == 2


def test_each_result_has_memory_of_its_own():
    f = fb.staged(lambda x: (fb.tanh(x), fb.tanh(x)))
    a, b = f(fb.randn(3))
    a.numpy()[...] = 7
    assert (b.numpy() != 7).all()
    assert plan_of(f).stages[0].name == plan_of(f).stages[1].name == "tanh"


def test_what_changes_between_two_equal_stages_is_read_twice():
    w, other = fb.tensor([1.0, 2.0]), fb.tensor([1.0, 2.0])

    def step(w, x):
        first = fb.tanh(w)
        w.copy_(x)
        return first + fb.tanh(w)

    f, x = fb.staged(lambda x: step(w, x)), fb.tensor([3.0, 4.0])
    assert_same(f(x), step(other, x))


def twice_by_one(x):
    one, y = fb.ones(()), x + x
    return fb.exp(y * one) - fb.tanh(y * one)


@pytest.mark.parametrize("flush", [True, False])
def test_times_one_is_left_out_where_it_changes_no_bit(flush):
    x = fb.tensor([1.0, -0.0, 1e-41, -1e-41, np.inf, np.nan, 3e38])
    fb.set_flush_denormal(flush)
    try:
        assert kept(lambda x: fb.exp((x + x) * fb.ones(7)), x) == ["add", "exp"]
        assert kept(lambda x: fb.exp(fb.ones(()) * (x + x)), x) == ["add", "exp"]
        assert kept(lambda x: (x + x) * 1.0 + 0.5, x) == ["add", "add"]
        # What was not computed may hold denormals, and a product with a larger one is larger.
        assert "mul" in kept(lambda x: fb.abs(-x * 1.0) + 0.0, x)
        assert "mul" in kept(lambda x: (x + x) * fb.ones((2, 7)) + 1.0, x)
        assert "mul" in kept(lambda x: (x + x) * 1.0000001 + 1.0, x)
        assert "mul" in kept(lambda x: (x[None] + x[None]) * fb.ones((2, 7)) + 1.0, x)
        one = fb.ones(())
        assert "mul" not in kept(lambda x: fb.exp((x + x) * fb.ones(())) - fb.tanh((x + x) * fb.ones(())), x)
        assert kept(lambda x: fb.exp((x + x) * one), x) == ["add", "mul", "exp"]    # it may change
        assert kept(twice_by_one, x) == ["add", "exp", "tanh", "sub"]
        assert kept(lambda x: (x + x) * 1.0, x) == ["add", "mul"]    # a result
    finally:
        fb.set_flush_denormal(True)


# --- folding

@pytest.mark.parametrize("view", [
    lambda x: x.T.reshape(20, 3), lambda x: x.T.reshape(60), lambda x: x.T.reshape(4, 15)[1:, ::2],
    lambda x: x.T.reshape(2, 10, 3).transpose(2, 0, 1), lambda x: x[:, ::2].reshape(30),
    lambda x: x[::-1].reshape(5, 12), lambda x: fb.broadcast_to(x[:1], (4, 20)).reshape(80),
    lambda x: x.T.reshape(60)[3:50], lambda x: x[:, None, ::-1].T,
    lambda x: fb.broadcast_to(x[0, 3], (2, 3)).reshape(3, 2), lambda x: x.T.reshape(4, 5, 3)[:, :, 1],
])
@pytest.mark.parametrize("use", [
    lambda v: v * 2.0, lambda v: v.sum(), lambda v: v.sum(0), fb.softmax, lambda v: v @ (v.T if v.ndim < 3 else v[0].T),
    lambda v: v.reshape(-1)[np.array([2, 0])], lambda v: fb.concatenate([v, v]), lambda v: (v + 1.0, v),
    lambda v: fb.maximum(v.T, 0.1),
])
def test_what_is_folded_shows_the_same(view, use):
    f = fb.staged(lambda x: use(view(x)))
    g = fb.staged(fb.grad(lambda x: sum((fb.tanh(y) ** 2).sum() for y in flat(use(view(x))))))
    for seed in range(2):
        x = fb.randn(3, 20, rng=seed)
        assert_same(f(x), f.eager(x))
        assert_same(g(x), g.eager(x))


def test_a_copy_is_kept_where_the_original_changes_before_it_is_read():
    w = fb.randn(3, 4, rng=0)

    @fb.staged
    def f(x):
        old = w.T.reshape(3, 4)
        w.copy_(x)
        return old * 1.0

    before = w.numpy().T.reshape(3, 4).copy()
    assert same_bits(f(fb.zeros(3, 4)), before)


# --- the verifier

def test_the_verifier_refuses_wrong_plans():
    f = fb.staged(lambda x: fb.exp(fb.tanh(x) * 2.0))
    x = fb.ones(3)

    def fresh():
        f.reset()
        f(x)
        verify(plan_of(f))
        return plan_of(f)

    plan = fresh()
    plan.stages = plan.stages[1:]
    with pytest.raises(RuntimeError, match="not there"):
        verify(plan)
    plan = fresh()
    plan.shares[id(plan.stages[0].outputs[0])] = plan.inputs[0]
    with pytest.raises(RuntimeError, match="input"):
        verify(plan)
    plan = fresh()
    plan.results = plan.results[:0] + [plan.stages[0].outputs[0]]
    plan.stages = plan.stages[1:]
    with pytest.raises(RuntimeError, match="not there"):
        verify(plan)


def test_the_verifier_refuses_groups_that_read_what_they_write_elsewhere():
    f = fb.staged(lambda x: fb.tanh(x * 2.0) * 3.0)
    f(fb.ones(150, 40))
    plan = plan_of(f)
    (group,) = {s.group for s in plan.stages if s.group is not None}
    other = fb.staged(lambda x: fb.tanh((x * 2.0).T))
    other(fb.ones(150, 40))
    for stage in plan_of(other).stages:
        stage.group = group
    group.stages = plan_of(other).stages
    with pytest.raises(RuntimeError, match="other places"):
        verify(plan_of(other))


@pytest.mark.parametrize("f", [
    lambda x, w: fb.tanh(x + w) * x[0], lambda x, w: (x * 2.0)[::-1] + x, lambda x, w: fb.relu((x * 2.0).T) + w.T,
    lambda x, w: (x * w).reshape(-1) * 2.0, lambda x, w: fb.where(x > w, x * 2.0, w[:1]),
    lambda x, w: (x * w)[0] + x * w,
    lambda x, w: (fb.exp(x) + x.sum(0)) * fb.exp(x).mean(1, keepdims=True),
    lambda x, w: fb.concatenate([x * 2.0, fb.tanh(w)]) * 0.5,
    lambda x, w: fb.cross_entropy(fb.relu(x * w + 1.0), np.arange(150) % 40),
])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_fused_has_the_same_bits(f, dtype, monkeypatch):
    """Broadcasts, views and reads of other places stay apart from what a group writes."""
    x, w = fb.randn(150, 40, dtype=dtype, rng=0), fb.randn(150, 40, dtype=dtype, rng=1)
    total = fb.value_and_grad(lambda *xs: fb.tanh(f(*xs)).sum(), argnums=(0, 1))
    staged = fb.staged(lambda x, w: (f(x, w), total(x, w)))
    assert_same(staged(x, w), staged.eager(x, w))
    program, made = staged.replays[0].program, flat(staged(x, w))
    whole = [t.numpy().copy() for t in made]
    for order in (1, -1):
        for t in made:
            t.numpy()[...] = 0
        program.run_in_chunks(order)
        for t, expected in zip(made, whole, strict=True):
            assert same_bits(t, expected)


def test_the_verifier_sees_buffers_that_overlap():
    f = fb.staged(lambda x: (fb.tanh(x) * fb.exp(x)).sum())
    f(fb.ones(100))
    plan = plan_of(f)
    assert len(set(plan.offsets.values())) > 1
    for key in plan.offsets:
        plan.offsets[key] = 0
    with pytest.raises(RuntimeError, match="overlap"):
        verify(plan)
    plan.offsets[key] = 64 * (plan.arena_size // 64)
    with pytest.raises(RuntimeError, match="arena"):
        verify(plan)


# --- memory

def deep(layers, width, batch, activation=nn.Tanh):
    rng = np.random.default_rng(0)
    model = nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(width, width, rng=rng), activation())])
    opt = optim.SGD(model.parameters(), lr=0.1)

    @fb.staged
    def step(x):
        loss = fb.square(model(x)).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    step(fb.ones(batch, width))
    return step


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_the_arena_is_smaller_than_its_buffers(activation):
    step = deep(10, 256, 64, activation)
    assert step.memory.share <= 0.45, step.memory
    assert f"{step.memory.arena:,} bytes" in str(step.memory) and step.memory.arena < step.memory.buffers


def test_many_batch_sizes_keep_to_64_programs_and_one_arena():
    f = fb.staged(lambda x: (fb.exp(x) * x).sum())
    for n in range(1, 201):
        f(fb.ones(n))
    assert len(f.replays) == 64 and f.recordings == 200
    largest = max(r.about.plan.arena_size for r in f.replays)
    assert f.arena.memory.size == largest
    f(fb.ones(200))
    assert f.recordings == 200, "the last used are kept"
    f(fb.ones(1))
    assert f.recordings == 201 and f.arena.memory.size == largest
    f.reset()
    assert len(f.replays) == 0 and f(fb.ones(3)).item() == pytest.approx(3 * np.e, rel=1e-6)


# --- chunks

@pytest.mark.parametrize("name, k", ALL)
@pytest.mark.parametrize("order", [1, -1])
def test_chunks_may_run_in_any_order(name, k, order):
    """Every gate at a size that splits: chunk by chunk, from either end, the same bits."""
    case = CASES[name][k]
    if not case.gradient:
        f = fb.staged(case.call)
    else:
        f = fb.staged(fb.value_and_grad(lambda *xs: fb.tanh(case.call(*xs)).sum(),
                                        argnums=tuple(range(len(case.shapes)))))
    shapes = [(400, 300)] * len(case.shapes) if case.elementwise else case.shapes
    xs = [fb.tensor(x) for x in case.inputs(np.random.default_rng(0), np.float32, shapes)]
    whole = [t.numpy().copy() for t in flat(f(*xs))]
    made = flat(f(*xs))     # what run_in_chunks writes to: the last results
    for t in made:
        t.numpy()[...] = 0
    program = f.replays[0].program
    program.run_in_chunks(order)
    for t, expected in zip(made, whole, strict=True):
        assert same_bits(t, expected)
    if case.elementwise:
        assert max(program.chunks) > 1


@pytest.mark.parametrize("classes", [1, 2, 7, 16, 17, 40, 1500])
@pytest.mark.parametrize("rows", [1, 5, 16, 33])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cross_entropy_and_its_gradient_in_one_sweep(classes, rows, dtype):
    """The bits of the two apart; ignored labels, NaN and infinities too; one of many rows is as one alone."""
    x = fb.randn(rows, classes, dtype=dtype, rng=classes)
    labels = np.arange(rows) % classes
    for reduction in ("mean", "sum"):
        f = fb.staged(fb.value_and_grad(lambda t, y, how=reduction: fb.cross_entropy(t, y, reduction=how)))
        assert_same(f(x, labels), f.eager(x, labels))
        assert [s.name for s in plan_of(f).stages].count("cross_entropy_both") == 1
        odd = x.numpy().copy()
        odd[rows // 2, classes // 2] = np.nan
        odd[-1, 0] = np.inf
        assert_same(f(odd, labels), f.eager(odd, labels))
        some = np.where(np.arange(rows) % 3 == 1, -100, labels)
        g = fb.staged(fb.value_and_grad(lambda t, y: fb.cross_entropy(t, y, reduction="sum")))
        assert_same(g(x, some), g.eager(x, some))
    whole = fb.grad(lambda t: fb.cross_entropy(t, labels, reduction="sum"))(x)
    one = fb.grad(lambda t: fb.cross_entropy(t, labels[-1:], reduction="sum"))(x[rows - 1:])
    assert same_bits(whole[rows - 1:], one)
    values = fb.cross_entropy(x, labels, reduction="none").numpy()
    powers = np.exp(x.numpy().astype(np.float64))
    expected = -np.log(powers / powers.sum(1, keepdims=True))
    np.testing.assert_allclose(values, expected[np.arange(rows), labels], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1025, 2048, 5000, 70_001])
@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "prod"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reductions_of_any_size_in_two_steps(name, size, dtype):
    x = fb.tensor(np.random.default_rng(size).uniform(0.99, 1.01, size).astype(dtype))
    f = fb.staged(lambda x: (getattr(fb, name)(x), getattr(fb.tanh(x), name)(keepdims=True)))
    assert_same(f(x), f.eager(x))
    assert {"blocks", "combine"} <= {s.form for s in plan_of(f).stages}
    x.numpy()[size // 2] = np.nan
    assert_same(f(x), f.eager(x))


def test_large_products_reductions_and_rows_come_in_chunks():
    x, w = fb.randn(300, 400, rng=0), fb.randn(400, 200, rng=1)
    labels = np.arange(300) % 200

    def f(x, w):
        y = x @ w
        return fb.cross_entropy(y, labels), fb.softmax(y), y.sum(0), y.max(1), y + w[0, :200]

    staged = fb.staged(f)
    staged(x, w)
    made = staged(x, w)
    whole = [t.numpy().copy() for t in made]
    for order in (1, -1):
        for t in made:
            t.numpy()[...] = 0
        staged.replays[0].program.run_in_chunks(order)
        for t, expected in zip(made, whole, strict=True):
            assert same_bits(t, expected)
    assert sum(n > 1 for n in staged.replays[0].program.chunks) >= 5


# --- listings

def circuit_of_the_text():
    @fb.staged
    def circuit(x, y):
        sigy = fb.sigmoid(y)
        num = x + sigy
        sigx = fb.sigmoid(x)
        xpy = x + y
        xpysqr = xpy**2
        den = sigx + xpysqr
        f = num / den
        f.backward()
        return f
    return circuit


def test_the_listing_of_the_texts_circuit():
    circuit = circuit_of_the_text()
    x, y = (fb.tensor(np.float64(v), requires_grad=True, name=n) for v, n in ((3, "x"), (-4, "y")))
    assert abs(circuit(x, y).item() - 1.5456448841) < 1e-10
    assert abs(x.grad.item() - 2.0595697956) < 1e-10 and abs(y.grad.item() - 1.5922327515) < 1e-10
    golden("circuit.txt", str(circuit.stages()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_listing_of_a_training_step_names_parameters_and_what_is_undone(optimizer):
    X, y = data.load_digits()
    _, _, step = net(optimizer)
    step(X[:4], y[:4])
    listing = str(step.stages())
    if optimizer == "adam":
        golden("training.txt", listing)
    for name in ("0.weight", "0.bias", "2.weight", "4.bias"):
        assert name in listing
    assert "(?)" not in listing and listing.count("in place") >= 6
