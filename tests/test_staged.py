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
}


def net(optimizer, dtype="float32"):
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(64, 30, rng=rng, dtype=dtype), nn.Tanh(), nn.Linear(30, 20, rng=rng, dtype=dtype),
                          nn.ReLU(), nn.Linear(20, 10, rng=rng, dtype=dtype))
    opt = OPTIMIZERS[optimizer](model.parameters())

    @fb.staged
    def step(x, y):
        loss = fb.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    return model, opt, step


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
    f(x, 3)
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


@pytest.mark.parametrize("use", [lambda x: float(x.sum()), lambda x: bool(x.sum() > 0), lambda x: x.sum().item(),
                                 lambda x: np.asarray(x), lambda x: x.numpy(), lambda x: int(x.sum())])
def test_values_can_not_be_looked_at(use):
    f = fb.staged(lambda x: use(x))
    with pytest.raises(fb.StagingError):
        f(fb.ones(2))
    assert fb.ones(2).numpy().tolist() == [1, 1], "the thread records no more"


def test_a_failed_recording_changes_nothing():
    model, opt, _ = net("adam")
    X, y = data.load_digits()
    before = {k: v.numpy().tobytes() for k, v in model.state_dict().items()}

    @fb.staged
    def step(x, y):
        loss = fb.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        raise KeyError("late")

    for p in model.parameters():
        p.grad = fb.zeros(*p.shape)
    with pytest.raises(KeyError):
        step(X[:4], y[:4])
    assert {k: v.numpy().tobytes() for k, v in model.state_dict().items()} == before
    assert opt.state_dict()["state"] == {}
    assert all(p.grad is not None for p in model.parameters())


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


def test_the_arena_is_smaller_than_its_buffers():
    rng = np.random.default_rng(0)
    layers = [m for _ in range(10) for m in (nn.Linear(256, 256, rng=rng), nn.Tanh())]
    model = nn.Sequential(*layers)
    opt = optim.SGD(model.parameters(), lr=0.1)

    @fb.staged
    def step(x):
        loss = (model(x) * model(x)).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    step(fb.ones(64, 256))
    assert step.memory.share <= 0.45, step.memory


def test_recording_copies_nothing():
    state = fb.zeros(2)
    f = fb.staged(lambda x: state.copy_(np.ones(2)) + x)
    with pytest.raises(fb.StagingError, match="copy_"):
        f(fb.ones(2))
    assert state.numpy().tolist() == [0, 0]
