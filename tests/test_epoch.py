"""epoch: batches cut, shuffled and run inside, as a loop over data.batches would."""
import numpy as np
import pytest
from test_gates import same_bits
from test_staged import net

import fastbp as fb
from fastbp import data, optim


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
    (lambda step, X, y: step.epoch(X, y, batch_size=2, progress=True), TypeError),
    (lambda step, X, y: fb.staged(lambda x: x).epoch(X, batch_size=2), fb.StagingError),
])
def test_epochs_and_repeats_that_make_no_sense(call, kind):
    X, y = data.load_digits()
    model, _, step = net("sgd")
    before = [p.numpy().tobytes() for p in model.parameters()]
    with pytest.raises(kind, match="fix: "):
        call(step, X[:10], y[:10])
    assert [p.numpy().tobytes() for p in model.parameters()] == before


def epochs(kind, make_step, arrays, n=2, **options):
    """`n` epochs inside and by a loop over data.batches; parameters and mean losses of both."""
    results = []
    for inside in (True, False):
        model, opt, _ = net(kind)
        step = make_step(model, opt)
        means = []
        for _ in range(n):
            if inside:
                means.append(step.epoch(*arrays, **options))
            else:
                total = 0.0
                for batch in data.batches(*arrays, **options):
                    loss = step.eager(*batch)
                    loss = loss[0] if isinstance(loss, tuple) else loss
                    total += loss.item() * len(batch[0])
                means.append(total / len(arrays[0]))
        results.append(([p.numpy().copy() for p in model.parameters()], means, model, step))
    (inside, means, _, step), (outside, expected, _, _) = results
    for p, q in zip(inside, outside, strict=True):
        assert same_bits(p, q)
    assert means == pytest.approx(expected, rel=1e-12)
    return results


def training(model, opt, ignore=-100):
    @fb.staged
    def step(x, y):
        loss = fb.cross_entropy(model(x), y, ignore_index=ignore)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss, model
    return step


@pytest.mark.parametrize("arrange", [
    lambda X, y: (X, y), lambda X, y: (np.asfortranarray(X), y.astype(np.int32)),
    lambda X, y: (fb.tensor(X), fb.tensor(y)), lambda X, y: (np.repeat(X, 2, 0)[::2], y[::-1][::-1].astype(">i8")),
])
@pytest.mark.parametrize("size, shuffle", [(32, True), (50, False), (203, True), (500, False), (1, False)])
def test_epochs_over_arrays_of_any_layout(arrange, size, shuffle):
    X, y = data.load_digits()
    arrays = arrange(X[:203], y[:203])
    epochs("momentum", training, arrays, batch_size=size, shuffle=shuffle, rng=3)


@pytest.mark.parametrize("ignored", [range(3, 40, 7), range(203), [5]])
@pytest.mark.parametrize("shuffle", [False, True])
def test_labels_that_are_ignored_in_some_batches(ignored, shuffle):
    X, y = data.load_digits()
    X, y = X[:203], y[:203].astype(np.int64)
    y[list(ignored)] = -100
    epochs("adam", training, (X, y), batch_size=20, shuffle=shuffle, rng=1)


def test_an_epoch_that_adds_up_gradients():
    X, y = data.load_digits()
    X, y = X[:100], y[:100]
    grads = []
    for inside in (True, False):
        model, _, _ = net("sgd")

        @fb.staged
        def step(x, labels, model=model):
            loss = fb.cross_entropy(model(x), labels, reduction="sum")
            loss.backward()
            return loss

        if inside:
            step.epoch(X, y, batch_size=30)
        else:
            for xb, yb in data.batches(X, y, batch_size=30):
                step.eager(xb, yb)
        grads.append([p.grad.numpy() for p in model.parameters()])
    for g, h in zip(*grads, strict=True):
        assert same_bits(g, h)


def test_an_epoch_keeps_gradients_where_a_step_would():
    X, y = data.load_digits()
    model, opt, _ = net("sgd")
    other, opt_b, _ = net("sgd")

    def body(model, opt, x, labels):
        loss = fb.cross_entropy(model(x), labels)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    step = fb.staged(lambda x, labels: body(model, opt, x, labels), keep_grads=True)
    step.epoch(X[:100], y[:100], batch_size=30)
    for xb, yb in data.batches(X[:100], y[:100], batch_size=30):
        body(other, opt_b, xb, yb)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert same_bits(p.grad, q.grad) and same_bits(p, q)


def test_an_epoch_of_a_method_and_of_arrays_that_are_state():
    class Shift:
        def __init__(self):
            self.w = fb.zeros(3, requires_grad=True)
            self.opt = optim.SGD([self.w], lr=0.5)

        @fb.staged
        def step(self, x):
            self.opt.zero_grad()
            loss = (self.w * x).sum()
            loss.backward()
            self.opt.step()
            return loss

    one, two = Shift(), Shift()
    rows = fb.randn(7, 3, rng=0)
    mean = one.step.epoch(rows, batch_size=2)
    losses = [two.step.eager(xb).item() * len(xb) for xb in data.batches(rows, batch_size=2)]
    assert mean == pytest.approx(sum(losses) / 7) and same_bits(one.w, two.w)
    one.step.epoch(one.w.detach().reshape(1, 3), batch_size=1)
    two.step.eager(two.w.detach().reshape(1, 3).numpy().copy())
    assert same_bits(one.w, two.w)


def test_an_epoch_of_rows_that_are_labels_of_several_dimensions():
    rng = np.random.default_rng(0)
    X, places = rng.standard_normal((30, 4)).astype(np.float32), rng.integers(0, 4, (30, 2, 3))
    w = fb.ones(4, requires_grad=True)
    seen = []

    @fb.staged
    def step(x, index):
        rows = np.arange(len(x))[:, None, None]
        return (x * w)[rows, index].sum() + (x * w)[np.arange(len(x)), index[:, 1, 2]].sum()

    mean = step.epoch(X, places, batch_size=8, shuffle=True, rng=4)
    for xb, ib in data.batches(X, places, batch_size=8, shuffle=True, rng=4):
        seen.append(step.eager(xb, ib).item() * len(xb))
    assert mean == pytest.approx(sum(seen) / 30, rel=1e-6)
    places[29, 1, 2] = 4
    with pytest.raises(IndexError, match="4 at place"):
        step.epoch(X, places, batch_size=8)


def with_error(optimizer="sgd", dtype="float32"):
    """A net, and a step that returns the loss, the share of errors, and the scores."""
    model, opt, _ = net(optimizer, dtype)

    @fb.staged
    def step(x, y):
        scores = model(x)
        loss = fb.cross_entropy(scores, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss, fb.where(scores.argmax(1) == y, 0.0, 1.0).mean(), scores
    return model, step


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("health", [None, 3])
def test_means_of_all_scalars_that_the_tuple_begins_with(dtype, health):
    X, y = data.load_digits()
    X, y = X[:203].astype(dtype), y[:203].astype(np.int64)
    (_, step), (_, other), (_, checked) = with_error(dtype=dtype), with_error(dtype=dtype), with_error(dtype=dtype)
    totals = np.zeros(2)
    for xb, yb in data.batches(X, y, batch_size=32, shuffle=True, rng=5):
        totals += len(xb) * np.array([t.item() for t in other.eager(xb, yb)[:2]])
    options = {"batch_size": 32, "shuffle": True, "rng": 5}
    seen = []
    means = step.epoch(X, y, **options, means=True, health=health, progress=lambda *args: seen.append(args))
    assert means == (totals / 203).tolist() and 0 < means[1] < 1
    assert seen[-1] == (203, 203, means)
    with fb.detect_anomaly():    # by calls, gate by gate
        assert checked.epoch(X, y, **options, means=True) == means
    assert type(step.epoch(X, y, **options)) is float


def test_means_end_where_the_scalars_end():
    x = np.arange(6, dtype=np.float32)
    forms = {
        (2.5,): lambda x: x.mean(), (2.5, 15.0): lambda x: (x.mean(), x.sum(), x, x.sum()),
        (2.5, 2.5, 2.5): lambda x: (x.mean(),) * 3, (2.5, 5.0): lambda x: (x.mean(), x.max(), 3, x.mean()),
    }
    for means, f in forms.items():
        assert fb.staged(f).epoch(x, batch_size=6, means=True) == [*means]
        with fb.detect_anomaly():
            assert fb.staged(f).epoch(x, batch_size=6, means=True) == [*means]
    mixed = fb.staged(lambda x: (x.mean(), fb.tensor(np.array(4.0)) * 2))    # float32 and float64
    assert mixed.epoch(x, batch_size=4, means=True) == [2.5, 8.0]
