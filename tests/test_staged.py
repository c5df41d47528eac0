"""Staged functions: the same bits as gate by gate, and what recording takes for granted."""
import numpy as np
import pytest
from cases import ALL, CASES
from test_gates import same_bits, stream

import fastbp as fb
from fastbp import data, nn, optim


def flat(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [t for branch in tree for t in flat(branch)] if isinstance(tree, (list, tuple)) else [tree]


def assert_same(a, b):
    a, b = flat(a), flat(b)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert same_bits(x, y) and x.dtype == y.dtype


@pytest.mark.parametrize("name, k", ALL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_gate_forward_and_backward(name, k, dtype):
    """A replay gives the bits of gate by gate, also on other values than those recorded."""
    case = CASES[name][k]
    many = tuple(range(len(case.shapes)))

    def f(*xs):
        y = case.call(*xs)
        if not case.gradient:
            return y
        weights = fb.tensor(stream(name).standard_normal(y.shape).astype(dtype))
        total = lambda *ts: (case.call(*ts) * weights).sum()
        return y, fb.value_and_grad(total, argnums=many)(*xs)

    staged = fb.staged(f)
    for trial in range(3):
        xs = [fb.tensor(x) for x in case.inputs(np.random.default_rng(trial), dtype)]
        assert_same(staged(*xs), staged.eager(*xs))
    assert staged.recordings == 1


OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1), "decay": lambda p: optim.SGD(p, lr=0.1, weight_decay=0.01),
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: optim.Adam(p, lr=0.01), "adamw": lambda p: optim.AdamW(p, lr=0.01),
    "nadam": lambda p: optim.NAdam(p, lr=0.01, weight_decay=1e-3), "radam": lambda p: optim.RAdam(p, lr=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.001, momentum=0.9, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05, lr_decay=1e-3),
}


def training_step(model, opt):
    """A staged step of training on cross-entropy."""
    @fb.staged
    def step(x, y):
        loss = fb.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss
    return step


def net(optimizer, dtype="float32", sizes=(64, 30, 20), seed=0):
    rng = np.random.default_rng(seed)
    a, b, c = sizes
    model = nn.Sequential(nn.Linear(a, b, rng=rng, dtype=dtype), nn.Tanh(), nn.Linear(b, c, rng=rng, dtype=dtype),
                          nn.ReLU(), nn.Linear(c, 10, rng=rng, dtype=dtype))
    opt = OPTIMIZERS[optimizer](model.parameters())
    return model, opt, training_step(model, opt)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_hundred_steps_of_training(optimizer, dtype):
    X, y = data.load_digits()
    X = X.astype(dtype)
    (a, opt_a, step), (b, opt_b, other) = net(optimizer, dtype), net(optimizer, dtype)
    for n in range(100):
        rows = slice(7 * n, 7 * n + (16 if n % 10 else 9))
        if n == 60:
            opt_a.lr = opt_b.lr = 0.003
        if n == 80:
            for model in (a, b):
                model.load_state_dict(net("sgd", dtype)[0].state_dict())
        assert_same(step(X[rows], y[rows]), other.eager(X[rows], y[rows]))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert same_bits(p, q)
    assert_same(opt_a.state_dict()["state"], opt_b.state_dict()["state"])
    assert step.recordings == 2      # 16 rows, 9 rows


def test_gradients_after_a_call():
    model, opt, step = net("sgd")
    X, y = data.load_digits()
    step(X[:8], y[:8])
    assert all(p.grad is None for p in model.parameters())

    @fb.staged
    def gradients(x, y):
        loss = fb.cross_entropy(model(x), y)
        loss.backward()
        return loss

    gradients(X[:8], y[:8])
    once = [p.grad.numpy().copy() for p in model.parameters()]
    gradients(X[:8], y[:8])
    for p, g in zip(model.parameters(), once, strict=True):
        assert same_bits(p.grad, g + g)
    for p in model.parameters():
        p.grad = None
    gradients.eager(X[:8], y[:8])
    for p, g in zip(model.parameters(), once, strict=True):
        assert same_bits(p.grad, g)


def test_numbers_never_record_anew():
    f = fb.staged(lambda x, scale: x * scale + scale / 3)
    x = fb.tensor([1.0, 2.0])
    for scale in np.linspace(-1, 1, 50):
        assert_same(f(x, float(scale)), f.eager(x, float(scale)))
    for scale in range(10_000):
        f(x, scale / 7)
    for scale in (3, np.float32(0.1), np.int64(-2), True + 0):
        assert_same(f(x, scale), f.eager(x, scale))
    assert f.recordings == 1
    assert_same(f(fb.ones(2, dtype="float64"), 0.1), f.eager(fb.ones(2, dtype="float64"), 0.1))
    assert f.recordings == 2


def test_results_own_their_memory():
    f = fb.staged(lambda x: (x, x[0], x * 2, x.T))
    x = fb.tensor([[1.0, 2.0]])
    first = f(x)
    kept = [t.numpy().copy() for t in first]
    x.copy_(np.array([[5.0, 6.0]]))
    second = f(x)
    for t, k, s in zip(first, kept, second, strict=True):
        assert t.numpy().tolist() == k.tolist() and not np.shares_memory(t.numpy(), s.numpy())
        assert not np.shares_memory(t.numpy(), x.numpy())


def test_captured_state_is_bound_by_reference():
    w, a = fb.ones(2), np.array([1.0, 2.0], np.float32)
    f = fb.staged(lambda x: x * w + a)
    assert f(fb.ones(2)).numpy().tolist() == [2, 3]
    w.copy_(np.array([10.0, 20.0]))
    a[:] = 0
    assert f(fb.ones(2)).numpy().tolist() == [10, 20]
    assert f.recordings == 1


def test_an_input_that_is_state_is_copied_at_entry():
    w = fb.tensor([1.0, 2.0], requires_grad=True)
    opt = optim.SGD([w], lr=1.0)

    @fb.staged
    def step(x):
        opt.zero_grad()
        (w * x).sum().backward()
        opt.step()
        return x * 1.0

    assert step(w.detach()).numpy().tolist() == [1, 2]
    assert w.numpy().tolist() == [0, 0]


@pytest.mark.parametrize("use", [
    lambda x: float(x.sum()), lambda x: bool(x.sum() > 0), lambda x: x.sum().item(), lambda x: np.asarray(x),
    lambda x: x.numpy(), lambda x: int(x.sum()), lambda x: x if (x > 0).sum() else -x, lambda x: [float(v) for v in x]])
def test_values_can_not_be_looked_at(use):
    f = fb.staged(lambda x: use(x))
    with pytest.raises((fb.StagingError, fb.DtypeError)) as refused:
        f(fb.ones(2))
    if refused.type is fb.StagingError:
        assert "fb.where" in str(refused.value) or "gates" in str(refused.value)
    assert fb.ones(2).numpy().tolist() == [1, 1], "the thread records no more"


def state_of(model, opt):
    """Everything that a failed call must not change, as bytes."""
    random = fb.random.generator().bit_generator.state
    return ([p.numpy().tobytes() for p in model.parameters()], [p.grad is None for p in model.parameters()],
            {i: {k: v.numpy().tobytes() for k, v in s.items()} for i, s in opt.state_dict()["state"].items()},
            random["state"])


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("fail", ["raise", "look", "label", "shape", "dtype"])
def test_a_failed_call_changes_nothing(fail, warm):
    """Whether it fails while it is recorded or before a replay: parameters, optimizer state, random state."""
    model, opt, _ = net("adam")
    X, y = data.load_digits()
    X, y = X[:4], y[:4].copy()
    failing = []

    @fb.staged
    def step(x, labels):
        noise = fb.randn(*x.shape)
        loss = fb.cross_entropy(model(x + 0.1 * noise), labels)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if failing == ["raise"]:
            raise KeyError("late")
        if failing == ["look"]:
            loss.item()
        return loss

    if warm:
        step(X, y)
    for p in model.parameters():
        p.grad = fb.zeros(*p.shape)
    before = state_of(model, opt)
    failing.append(fail)
    if fail == "label":
        y[2] = 10
    if fail == "shape":
        X = X[:, :63]
    if fail == "dtype":
        X = X.astype(np.float64)
    if warm and fail in ("raise", "look"):
        step.reset()     # it would not be recorded, and so not fail
    with pytest.raises((KeyError, fb.StagingError, IndexError, fb.ShapeError, fb.DtypeError)):
        step(X, y)
    assert state_of(model, opt) == before


def test_labels_are_checked_before_the_first_stage():
    model, _, step = net("sgd")
    X, y = data.load_digits()
    step(X[:4], y[:4])
    before = [p.numpy().tobytes() for p in model.parameters()]
    for bad in (np.array([0, 1, 10, 3]), np.array([0, -1, 2, 3])):
        with pytest.raises(IndexError, match="at row"):
            step(X[:4], bad)
    assert [p.numpy().tobytes() for p in model.parameters()] == before
    step(X[:4], np.array([0, -100, 2, 3]))     # ignored: another program


def test_inlining_and_gradients_of_staged_functions():
    inner = fb.staged(lambda x: fb.tanh(x) * x)
    outer = fb.staged(lambda x: inner(x) + 1.0)
    x = fb.tensor([0.5, 2.0])
    assert_same(outer(x), inner(x) + 1.0)
    assert_same(fb.grad(lambda t: inner(t).sum())(x), fb.grad(lambda t: (fb.tanh(t) * t).sum())(x))
    x.requires_grad_()
    with pytest.raises(fb.StagingError):
        inner(x).sum().backward()


def test_repeat_is_many_calls():
    X, y = data.load_digits()
    (a, _, step), (b, _, other) = net("adam"), net("adam")
    last = step.repeat(25, X[:8], y[:8])
    for _ in range(25):
        loss = other(X[:8], y[:8])
    assert_same(last, loss)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert same_bits(p, q)


# --- what a program takes for granted

def test_the_mode_of_modules_is_part_of_the_signature():
    class Doubler(nn.Module):
        def forward(self, x):
            return x * 2.0 if self.training else x

    model = Doubler()
    f = fb.staged(lambda x: model(x))
    assert f(fb.ones(1)).item() == 2
    model.eval()
    assert f(fb.ones(1)).item() == 1
    model.train()
    assert f(fb.ones(1)).item() == 2 and f.recordings == 2


def test_a_function_may_set_modes():
    def steps(stage):
        model = nn.Sequential(nn.Linear(3, 4, rng=0), nn.BatchNorm1d(4))
        opt = optim.SGD(model.parameters(), 0.1)

        @stage
        def learn(x):
            model.eval()
            with fb.no_grad():
                teacher = model(x)
            model.train()
            loss = fb.mse_loss(model(x), teacher)
            opt.zero_grad()
            loss.backward()
            opt.step()
            return loss

        @stage
        def judge(x):
            model.eval()
            return model(x)

        @stage
        def both(x):
            first = model(x)
            model.train(not model.training)
            second = model(x)
            model.train(not model.training)
            return first, second

        seen = []
        for n in range(4):
            x = fb.tensor(np.random.default_rng(n).standard_normal((5, 3)), dtype="float32")
            for f in (learn, learn, judge, judge, both, learn, both):
                seen.append((f(x), model.training))
        return seen

    for (a, mode), (b, staged_mode) in zip(steps(lambda f: f), steps(fb.staged), strict=True):
        assert mode == staged_mode
        assert_same(a, b)


def test_momentum_that_begins_is_seen():
    (a, opt_a, step), (b, opt_b, other) = net("sgd"), net("sgd")
    X, y = data.load_digits()
    for n in range(6):
        if n == 3:
            opt_a.param_groups[0]["momentum"] = opt_b.param_groups[0]["momentum"] = 0.9
        assert_same(step(X[:8], y[:8]), other.eager(X[:8], y[:8]))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert same_bits(p, q)


def test_parameters_that_move_are_seen():
    X, y = data.load_digits()
    model = nn.Linear(64, 10, rng=0)
    f = fb.staged(lambda x: model(x))
    first = f(X[:2])
    model.to("float64")
    assert f(X[:2].astype("float64")).dtype == np.float64
    model.to("float32")
    assert_same(f(X[:2]), first)


def test_parameters_that_move_are_seen_at_once():
    model = nn.Linear(3, 2, rng=0)
    f = fb.staged(model)
    x = fb.randn(4, 3, rng=0)
    first = f(x)
    model.to("float64").to("float32")
    with fb.no_grad():
        model.weight.copy_(model.weight * 2.0)
    assert_same(f(x), f.eager(x))
    assert not same_bits(f(x), first)


def test_a_replay_changes_versions_as_an_update_does():
    w = fb.ones(2, requires_grad=True)
    opt = optim.SGD([w], lr=0.5)

    @fb.staged
    def step(x):
        opt.zero_grad()
        (w * x).sum().backward()
        opt.step()

    for train in (lambda: step(fb.ones(2)), lambda: step.repeat(2, fb.ones(2)),
                  lambda: fb.staged(lambda: w.copy_(np.zeros(2)))()):
        pending = (w * w).sum()
        train()
        with pytest.raises(RuntimeError, match="changed in place"):
            pending.backward()


def test_a_recording_that_fails_leaves_the_mode_of_the_thread():
    def f(x):
        fb.no_grad().__enter__()
        raise KeyError("inside")

    with pytest.raises(KeyError):
        fb.staged(f)(fb.ones(2))
    assert (fb.ones(2, requires_grad=True) * 2.0).requires_grad


def test_backward_after_the_update_is_refused():
    model, opt, _ = net("sgd")

    @fb.staged
    def step(x, y):
        loss = fb.cross_entropy(model(x), y)
        loss.backward(retain_graph=True)
        opt.step()
        loss.backward()

    X, y = data.load_digits()
    with pytest.raises(RuntimeError, match="changed in place"):
        step(X[:4], y[:4])


def test_a_method_is_staged_with_its_instance():
    class Scale:
        def __init__(self, k):
            self.k = fb.full((), k)

        @fb.staged
        def times(self, x):
            return x * self.k

    two, three = Scale(2.0), Scale(3.0)
    for _ in range(2):
        assert two.times(fb.ones(1)).item() == 2 and three.times(fb.ones(1)).item() == 3
    assert two.times.eager(fb.ones(1)).item() == 2 and Scale.times.recordings == 2
    assert two.times.repeat(3, fb.ones(1)).item() == 2


# --- more programs

def test_keep_grads():
    model, opt, _ = net("sgd")
    other, opt_b, _ = net("sgd")
    X, y = data.load_digits()

    def body(model, opt, x, labels):
        loss = fb.cross_entropy(model(x), labels)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    step = fb.staged(lambda x, labels: body(model, opt, x, labels), keep_grads=True)
    for _ in range(2):
        step(X[:8], y[:8])
        body(other, opt_b, X[:8], y[:8])
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert same_bits(p.grad, q.grad) and same_bits(p, q)
        p.grad.numpy()[...] = 0      # its own memory: the next call does not mind
    step(X[:8], y[:8])


def test_several_backwards_and_two_updates_in_one_step():
    def make():
        rng = np.random.default_rng(0)
        a, b = nn.Linear(64, 20, rng=rng), nn.Linear(20, 10, rng=rng)
        opt_a, opt_b = optim.Adam(a.parameters(), lr=0.01), optim.SGD(b.parameters(), lr=0.1, momentum=0.5)

        @fb.staged
        def step(x, y):
            first = fb.cross_entropy(b(fb.tanh(a(x))), y)
            opt_a.zero_grad()
            opt_b.zero_grad()
            first.backward()
            opt_b.step()
            second = fb.cross_entropy(b(fb.relu(a(x))), y)
            second.backward()
            opt_a.step()
            return first, {"second": second}
        return [*a.parameters(), *b.parameters()], step

    X, y = data.load_digits()
    (p, step), (q, other) = make(), make()
    for n in range(5):
        rows = slice(8 * n, 8 * n + 8)
        for t in q:
            t.grad = None
        assert_same(list(step(X[rows], y[rows])), list(other.eager(X[rows], y[rows])))
    for s, t in zip(p, q, strict=True):
        assert same_bits(s, t)


def test_arguments_that_require_gradients():
    @fb.staged
    def f(x, w):
        y = (x * w).sum()
        y.backward()
        return y

    x, w = fb.tensor([1.0, 2.0], requires_grad=True), fb.tensor([3.0, 4.0])
    f(x, w)
    assert x.grad.numpy().tolist() == [3, 4] and w.grad is None
    f(x, w)
    assert x.grad.numpy().tolist() == [6, 8], "accumulated, as gate by gate"
    other = fb.tensor([5.0, 6.0], requires_grad=True)
    f(other, w)
    assert other.grad.numpy().tolist() == [3, 4] and x.grad.numpy().tolist() == [6, 8]


def test_models_and_partials_can_be_staged():
    import functools
    model = nn.Sequential(nn.Linear(3, 2, rng=0), nn.Tanh())
    x = fb.randn(4, 3, rng=0)
    predict = fb.staged(model)
    with fb.no_grad():
        assert_same(predict(x), model(x))
    assert predict.explain().startswith("Sequential: recorded 1 times") and not hasattr(predict, "0")
    scaled = fb.staged(functools.partial(lambda k, x: x * k, 2.0))
    assert_same(scaled(x), x * 2.0)
    assert "x * k" not in scaled.explain() and "partial" in scaled.explain()


def test_structures_of_arguments_and_results():
    f = fb.staged(lambda p, flag, *, scale=1.0: {"y": [p["w"] * scale, (p["b"][0] if flag else p["b"][1],)], "n": 3})
    p = {"w": fb.ones(2), "b": (fb.zeros(1), np.ones(1, np.float32))}
    for flag in (True, False):
        for scale in (1.0, 2.5):
            got, want = f(p, flag, scale=scale), f.eager(p, flag, scale=scale)
            assert got["n"] == 3 and isinstance(got["y"][1], tuple)
            assert_same(got["y"], want["y"])
    assert f.recordings == 2


def test_arguments_are_not_kept():
    import gc
    import weakref
    f = fb.staged(lambda x: x * 2.0)
    x = fb.ones(1000)
    seen = weakref.ref(x)
    f(x)
    del x
    gc.collect()
    assert seen() is None


def test_repeat_accumulates_where_calls_would():
    x, w = fb.tensor([1.0, 2.0]), fb.tensor([3.0, 4.0], requires_grad=True)

    @fb.staged
    def f(x):
        (x * w).sum().backward()

    f.repeat(5, x)
    assert w.grad.numpy().tolist() == [5, 10]
    v = fb.tensor([1.0, 1.0], requires_grad=True)
    g = fb.staged(lambda v: (v * v).sum().backward())
    g.repeat(3, v)
    assert v.grad.numpy().tolist() == [6, 6]


def test_a_result_may_be_a_constant_of_another_gradient():
    x = fb.tensor([1.0, 2.0], requires_grad=True)
    y = fb.staged(lambda x: x * 2.0)(x)
    assert fb.grad(lambda z: (z * y).sum())(fb.ones(2)).numpy().tolist() == [2, 4]
    with pytest.raises(fb.StagingError):
        (y * 3.0).sum().backward()
    assert x.grad is None


# --- numbers

@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exponents_that_are_arguments(dtype):
    """Known to a recording or not, an exponent gives the same bits: x^2 is x x either way."""
    power = fb.staged(lambda x, n: x**n)
    slope = fb.staged(lambda x, n: fb.grad(lambda t: (t**n).sum())(x))
    x = fb.randn(50, dtype=dtype, rng=0)
    for n in (2, -1, 1, 0, 3, 0.5, -2, 2.0, -1.0):
        assert_same(power(x, n), power.eager(x, n))
        assert_same(slope(x, n), slope.eager(x, n))
    assert power.recordings == slope.recordings == 1
    assert_same(x**2, x * x)
    assert_same(x**-1, 1 / x)


def test_arithmetic_among_numbers_is_pythons():
    f = fb.staged(lambda x, a, b: x * (a**b) + (2**b) * x - a**2 * x + (a - b / 3 + 1) * x - abs(-a) * x)
    x = fb.randn(9, rng=0)
    for a, b in ((0.9, 7), (3, 2), (10, -1), (1.1, 2.5), (0.1, 0.2), (7, 3)):
        assert_same(f(x, a, b), f.eager(x, a, b))
    assert f.recordings == 1


@pytest.mark.parametrize("use", [lambda x, n: x[n], lambda x, n: x[:n], lambda x, n: x.sum(axis=n),
                                 lambda x, n: x.reshape(n, -1), lambda x, n: [x for _ in range(n)]])
def test_a_number_is_no_index(use):
    with pytest.raises(fb.StagingError, match="index, an axis or a size"):
        fb.staged(use)(fb.ones(3, 3), 1)


# --- arguments of all kinds

def test_arrays_of_any_layout_share_a_program():
    f = fb.staged(lambda x: x * 2.0)
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    odd = np.zeros(49, np.uint8)[1:].view(np.float32).reshape(3, 4)
    odd[...] = a
    read_only = a.copy()
    read_only.flags.writeable = False
    for x in (a, np.asfortranarray(a), np.repeat(a, 2, 1)[:, ::2], a[::-1][::-1], a.astype(">f4"), odd, read_only,
              fb.tensor(a), fb.tensor(a.T.copy()).T, nn.Parameter(a, requires_grad=False)):
        assert f(x).numpy().tolist() == (a * 2).tolist()
    assert f.recordings == 1
    f(fb.tensor(a, requires_grad=True))
    assert f.recordings == 2, "requires_grad is part of the signature"


def test_the_same_array_twice_and_arguments_that_overlap():
    f = fb.staged(lambda x, y: (x + y, x * y))
    a = np.arange(8, dtype=np.float32)
    assert_same(f(a[:4], a[4:]), f.eager(a[:4], a[4:]))
    assert_same(f(a[:4], a[:4]), f.eager(a[:4], a[:4]))
    assert_same(f(a[1:5], a[2:6]), f.eager(a[1:5], a[2:6]))
    assert f.recordings == 1


def test_other_values_are_compared():
    class Mode:
        pass

    def apply(x, mode, flag=False, name="tanh", *, options=None):
        y = getattr(fb, name)(x)
        return y * 2.0 if flag else y * (3.0 if mode is one else 1.0) + (options or {}).get("shift", 0.0)

    one, two = Mode(), Mode()
    f = fb.staged(apply)
    x = fb.randn(3, rng=0)
    calls = [((x, one), {}), ((x, two), {}), ((x, one, True), {}), ((x, one, False, "exp"), {}),
             ((x, one), {"options": {"shift": 1.0}}), ((x, one), {"options": {"shift": 2.5}}),
             ((x, [1, "a"]), {}), ((x, {1}), {}), ((x, None, np.bool_(True)), {})]
    for args, kwargs in calls * 2:
        assert_same(f(*args, **kwargs), f.eager(*args, **kwargs))
    assert f.recordings == 8, "numbers within a dict are inputs"


def test_named_tuples_and_dicts_come_back_as_they_are():
    import collections
    Pair = collections.namedtuple("Pair", "a b")
    f = fb.staged(lambda p: (Pair(p.b, p.a * 2.0), {"z": p.a, "a": [p.b, "text", None, (p.a,)]}))
    for n in range(2):
        got = f(Pair(fb.full((2,), float(n)), np.ones(1, np.float32)))
        assert type(got[0]) is Pair and list(got[1]) == ["z", "a"] and got[1]["a"][1:3] == ["text", None]
        assert got[0].b.numpy().tolist() == [2 * n, 2 * n] and got[1]["a"][3][0].numpy().tolist() == [n, n]


def test_values_of_a_parameter_given_as_an_argument_stand_still_in_repeat():
    """Each of the calls that repeat stands for copies an argument that is state as it then is."""
    def make():
        w = fb.tensor([1.0, 2.0], requires_grad=True)
        opt = optim.SGD([w], lr=0.1)

        @fb.staged
        def step(x):
            opt.zero_grad()
            (w * x).sum().backward()
            opt.step()
            return w * 1.0
        return w, step

    (w, step), (v, other) = make(), make()
    last = step.repeat(5, w.detach())
    for _ in range(5):
        expected = other.eager(v.detach().numpy().copy())
    assert_same([last, w], [expected, v])


# --- state

def test_copy_changes_what_outlives_the_function():
    """A running mean: read, replaced and read again, as gate by gate."""
    def make():
        mean, count = fb.zeros(3, dtype="float64"), fb.tensor(np.array([0.0]))

        @fb.staged
        def track(x):
            old = mean * 1.0
            count.copy_(count + 1.0)
            mean.copy_(old + (x.mean(0) - old) / count)
            return old, mean * 2.0
        return mean, count, track

    (mean, count, track), (other, other_count, reference) = make(), make()
    for n in range(4):
        x = fb.randn(5, 3, dtype="float64", rng=n)
        assert_same(track(x), reference.eager(x))
    assert_same([mean, count], [other, other_count])
    assert track.recordings == 1 and count.item() == 4
    assert "copy_" in str(track.stages())


def test_copy_broadcasts_and_converts():
    single, double, whole = fb.zeros(2, 3), fb.zeros(2, 3, dtype="float64"), fb.tensor(np.zeros(3, np.int64))
    source = np.arange(3, dtype=np.float32)

    @fb.staged
    def f(x):
        single.copy_(x)
        double.copy_(single[0] / 3)
        single.copy_(double * 2)
        single[0].copy_(source)
        whole.copy_(np.array([4, 5, 6]))
        single.T[0].copy_(0.25)

    f(fb.full((3,), 0.1))
    expected = [t.numpy().copy() for t in (single, double, whole)]
    f.eager(fb.full((3,), 0.1))
    assert_same([single, double, whole], expected)
    source[:] = 7
    f(fb.full((3,), 0.1))
    assert single.numpy().tolist() == [[0.25, 7, 7], expected[0][1].tolist()]
    moving = fb.arange(1000)
    g = fb.staged(lambda: moving[1:].copy_(moving[:-1]))
    g()
    assert moving.numpy().tolist() == [0, *range(999)], "a source that overlaps is copied first"


@pytest.mark.parametrize("bad, kind", [
    (lambda x: x.copy_(np.ones(2)), fb.StagingError), (lambda x: (x * 2.0).detach().copy_(np.ones(2)), fb.StagingError),
    (lambda x: fb.zeros(2).copy_(x), fb.StagingError), (lambda x: STATE.copy_(fb.ones(3)), fb.ShapeError),
    (lambda x: STATE.copy_(np.array([1, 2])), fb.DtypeError)])
def test_copies_that_can_not_be_replayed(bad, kind):
    with pytest.raises(kind, match="copy_"):
        fb.staged(bad)(fb.ones(2))
    assert STATE.numpy().tolist() == [0, 0]


STATE = fb.zeros(2)


def test_backward_after_a_copy_is_refused_as_gate_by_gate():
    w = fb.ones(2)

    def f(x):
        y = (x * w).sum()
        w.copy_(w * 2.0)
        y.backward()

    for call in (fb.staged(f), f):
        with pytest.raises(RuntimeError, match="changed in place"):
            call(fb.ones(2, requires_grad=True))


@pytest.mark.parametrize("rng", [None, 3, "generator"])
def test_draws_come_from_the_same_stream(rng):
    def make():
        stream = np.random.default_rng(5) if rng == "generator" else rng

        @fb.staged
        def noisy(x):
            unused = fb.randn(2, rng=stream)      # noqa: F841  drawn all the same
            return x + fb.randn(3, 2, rng=stream), fb.randn(4, dtype="float64", rng=stream)
        return noisy

    noisy, reference = make(), make()
    for seed in (0, 0, 1):
        results = []
        for call in (noisy, reference.eager):
            fb.manual_seed(seed)
            results.append([call(fb.ones(3, 2)), call(fb.ones(3, 2)), fb.randn(2)])
        assert_same(*results)
    assert noisy.recordings == 1
    assert "stages of Python" in noisy.explain() and "randn" in noisy.explain()


def test_an_optimizer_made_inside_is_refused():
    w = fb.ones(2, requires_grad=True)

    @fb.staged
    def step(x):
        opt = optim.Adam([w])
        (w * x).sum().backward()
        opt.step()

    with pytest.raises(fb.StagingError, match="outside"):
        step(fb.ones(2))
    assert w.numpy().tolist() == [1, 1] and w.grad is None


def test_leaves_made_inside_are_made_anew():
    @fb.staged
    def f(x):
        v = fb.ones(3, requires_grad=True)
        (v * v * x).sum().backward()
        return v.grad

    for n in range(3):
        assert_same(f(fb.full((3,), float(n))), f.eager(fb.full((3,), float(n))))
    assert f.recordings == 1


def test_frozen_parameters_and_new_groups_are_seen():
    def make():
        a, b = nn.Linear(4, 3, rng=0), nn.Linear(3, 2, rng=1)
        opt = optim.SGD(a.parameters(), lr=0.1)

        @fb.staged
        def step(x):
            loss = fb.square(b(fb.tanh(a(x)))).sum()
            opt.zero_grad()
            loss.backward()
            opt.step()
            return loss
        return a, b, opt, step

    (a, b, opt, step), (c, d, other_opt, other) = make(), make()
    x = fb.randn(5, 4, rng=0)

    def both():
        for t in (*b.parameters(), *d.parameters()):
            t.grad = None
        assert_same(step(x), other.eager(x))
        assert_same([*a.parameters(), *b.parameters()], [*c.parameters(), *d.parameters()])

    both()
    a.bias.requires_grad = c.bias.requires_grad = False
    both()
    opt.add_param_group({"params": b.parameters(), "lr": 0.5})
    other_opt.add_param_group({"params": d.parameters(), "lr": 0.5})
    both()
    both()
    assert "requires_grad of a parameter changed" in step.explain() and "groups of SGD changed" in step.explain()


def test_the_precision_and_the_denormal_mode_are_part_of_the_signature():
    f = fb.staged(lambda x: x @ x)
    x = fb.randn(3, 3, rng=0)
    f(x)
    fb.set_float32_matmul_precision("high")
    try:
        assert_same(f(x), f.eager(x))
        assert f.recordings == 2
    finally:
        fb.set_float32_matmul_precision("highest")
    fb.set_flush_denormal(False)
    try:
        small = fb.full((3, 3), 1e-30)
        assert_same(f(small * 1e-10), f.eager(small * 1e-10))
    finally:
        fb.set_flush_denormal(True)
    f(x)
    assert f.recordings == 3
    with pytest.raises(ValueError, match="highest"):
        fb.set_float32_matmul_precision("low")
    assert fb.get_float32_matmul_precision() == "highest"


# --- gates of NumPy functions

def test_gates_of_numpy_functions():
    weighted = fb.define_gate(
        "weighted", lambda x, w: (x * w).sum(0), lambda dy, y, x, w: (dy * w, None))
    cube = fb.define_gate("cube", lambda x: x**3, lambda dy, y, x: 3 * x**2 * dy)

    def f(x, w):
        y = weighted(cube(x), w)
        return (y * y).sum()

    staged = fb.staged(fb.value_and_grad(f))
    for seed in range(3):
        x, w = fb.randn(4, 3, rng=seed), fb.randn(4, 3, rng=seed + 10)
        assert_same(staged(x, w), staged.eager(x, w))
    assert staged.recordings == 1
    text = staged.explain()
    assert "stages of Python, which take the interpreter's lock" in text and "cube_grad" in text
    with pytest.raises(RuntimeError, match="differentiated once"):
        fb.staged(fb.grad(lambda x: fb.grad(lambda t: cube(t).sum())(x).sum()))(fb.ones(2))


def test_a_gate_that_raises_in_a_replay_stops_it_before_the_update():
    stop = []

    def forward(x):
        if stop:
            raise ArithmeticError(stop.pop())
        return x * 2

    double = fb.define_gate("double", forward, lambda dy, y, x: 2 * dy)
    w = fb.ones(2, requires_grad=True)
    opt = optim.SGD([w], lr=0.5)

    @fb.staged
    def step(x):
        opt.zero_grad()
        double(w * x).sum().backward()
        opt.step()

    step(fb.ones(2))
    stop.append("now")
    with pytest.raises(ArithmeticError, match="now"):
        step(fb.ones(2))
    assert w.numpy().tolist() == [0, 0]
    step.repeat(2, fb.ones(2))
    assert w.numpy().tolist() == [-2, -2] and step.recordings == 1


def test_a_gate_whose_shape_is_not_to_be_found():
    def picky(x):
        if x[0] == 1:
            raise ValueError("ones")
        return x

    gate = fb.define_gate("picky", picky, lambda dy, y, x: dy)
    with pytest.raises(fb.StagingError, match="ones"):
        fb.staged(lambda x: gate(x))(fb.zeros(2))
    by_value = fb.define_gate("by_value", lambda x: x[x > 0], lambda dy, y, x: dy)
    f = fb.staged(lambda x: by_value(x) * 1.0)
    assert f(fb.ones(3)).shape == (3,)
    with pytest.raises(fb.ShapeError, match="depends on the values"):
        f(fb.tensor([1.0, -1.0, 1.0]))


@pytest.mark.parametrize("variable", ["0", "1"])
def test_the_environment_turns_replays_off(variable):
    import os
    import subprocess
    import sys
    code = """
import fastbp as fb
calls = []
f = fb.staged(lambda x: (calls.append(1), x.sum())[1])
for _ in range(3):
    f(fb.ones(2))
f.repeat(3, fb.ones(2))
f.epoch(fb.ones(4, 2), batch_size=2)
print(len(calls), f.recordings)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                             env={**os.environ, "FASTBP_STAGED": variable}).stdout
    assert printed.split() == (["8", "0"] if variable == "0" else ["2", "2"])


def test_explain_says_what_was_recorded_and_why():
    model = nn.Linear(3, 2, rng=0)
    k = fb.full((), 2.0)
    f = fb.staged(lambda x, scale: model(x) * k * 0.5 * scale)
    assert "recorded 0 times" in f.explain()
    with pytest.raises(fb.StagingError, match="call the staged function once"):
        f.stages()
    f(fb.ones(4, 3), 1.0)
    f(fb.ones(5, 3), 2.0)
    model.eval()
    f(fb.ones(5, 3), 2.0)
    with fb.no_grad():
        f(fb.ones(5, 3), 2.0)
    lines = f.explain().splitlines()
    assert "recorded 4 times, 4 programs kept" in lines[0]
    for line, why in zip(lines[1:5], ("the first call: x float32 (4, 3), scale number", "new x: x float32 (5, 3)",
                                      "training of Linear changed", "mode of gradients"), strict=True):
        assert why in line and " ms, " in line
    text = "\n".join(lines)
    for part in ("0.5 in mul", "weight.T float32 (3, 2)", "k float32 ()", "bias float32 (2,)"):
        assert part in text


def _replace_weight(net):
    net.head.weight = nn.Parameter(fb.ones(2, 4))


def _drop_bias(net):
    net.head.bias = None


def _take_out(net):
    del net.blocks.last


@pytest.mark.parametrize("change", [
    lambda net: setattr(net, "head", nn.Linear(4, 2, rng=5)), _replace_weight, _drop_bias, _take_out,
    lambda net: net.blocks.layers.append(nn.Linear(4, 4, rng=6)),
    lambda net: net.blocks.layers.__setitem__(0, nn.Tanh())])
def test_a_layer_or_parameter_that_is_replaced_is_recorded_anew(change):
    class Blocks(nn.Module):
        def __init__(self):
            self.layers, self.last = nn.ModuleList([nn.Linear(4, 4, rng=1), nn.ReLU()]), nn.Sigmoid()

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.last(x) if hasattr(self, "last") else x

    class Net(nn.Module):
        def __init__(self):
            self.blocks, self.head = Blocks(), nn.Linear(4, 2, rng=2)

        def forward(self, x):
            return self.head(self.blocks(x))

    net, x = Net(), fb.randn(3, 4, rng=3)
    step = fb.staged(lambda x: net(x))
    before = step(x).numpy()
    change(net)
    assert_same(step(x), net(x))
    assert not np.array_equal(step(x).numpy(), before) and step.recordings == 2
    assert "layers and parameters of Net changed" in step.explain()
