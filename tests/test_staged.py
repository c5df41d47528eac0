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


# --- whole epochs

@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_takes_the_batches_of_data_batches(shuffle):
    X, y = data.load_digits()
    X, y = X[:203], y[:203]
    (a, _, step), (b, _, other) = net("adam"), net("adam")
    for seed in (1, 2):
        mean = step.epoch(X, y, batch_size=32, shuffle=shuffle, rng=seed)
        losses = [(other.eager(xb, yb).item(), len(xb))
                  for xb, yb in data.batches(X, y, batch_size=32, shuffle=shuffle, rng=seed)]
        assert mean == pytest.approx(sum(loss * n for loss, n in losses) / 203, rel=1e-12)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert same_bits(p, q)
    assert step.recordings == 2, "batches of 32, and the last short one"


def test_an_epoch_shows_progress_and_may_replay_inside():
    X, y = data.load_digits()
    _, _, step = net("sgd")
    _, _, other = net("sgd")
    seen = []

    def progress(done, total):
        seen.append((done, total))
        other(X[:4], y[:4])

    step.epoch(X, y, batch_size=100, progress=progress)
    assert seen[-1] == (1797, 1797)


def test_an_epoch_checks_all_labels_before_the_first_batch():
    X, y = data.load_digits()
    model, _, step = net("sgd")
    y = y.copy()
    y[150] = 17
    before = [p.numpy().tobytes() for p in model.parameters()]
    with pytest.raises(IndexError, match="17 at row 150"):
        step.epoch(X[:200], y[:200], batch_size=20)
    assert [p.numpy().tobytes() for p in model.parameters()] == before


@pytest.mark.parametrize("call, kind", [
    (lambda step, X, y: step.epoch(X, y[:5], batch_size=2), ValueError),
    (lambda step, X, y: step.epoch(X, y, batch_size=0), ValueError),
    (lambda step, X, y: step.epoch(X[:0], y[:0], batch_size=2), ValueError),
    (lambda step, X, y: step.repeat(0, X, y), ValueError),
    (lambda step, X, y: fb.staged(lambda x: x).epoch(X, batch_size=2), fb.StagingError),
])
def test_epochs_and_repeats_that_make_no_sense(call, kind):
    X, y = data.load_digits()
    _, _, step = net("sgd")
    with pytest.raises(kind):
        call(step, X[:10], y[:10])


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
