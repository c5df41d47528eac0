"""Batch, layer and RMS normalization: against PyTorch, in replays, in every layout and size."""
import numpy as np
import pytest
from cases import normalized
from test_gates import same_bits
from test_staged import assert_same, training_step

import fastbp as fb
from fastbp import nn, optim
from fastbp.gates.normalization import layer_norm_lanes
from fastbp.nn import functional as F

DTYPES = ["float32", "float64"]


def close(a, b, dtype, scale=1):
    a, b = np.asarray(a), b.detach().numpy() if hasattr(b, "detach") else np.asarray(b)
    limit = (2e-5 if dtype == "float32" else 1e-12) * scale
    np.testing.assert_allclose(a, b, rtol=limit, atol=limit)


def batch_last(a):
    """The same values, the batch inside in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 0, -1)), -1, 0)


# --- against PyTorch

BATCH = [
    ("BatchNorm1d", (7, 5), {}), ("BatchNorm1d", (4, 5, 6), dict(eps=0.1, momentum=0.3)),
    ("BatchNorm2d", (3, 5, 4, 6), {}), ("BatchNorm2d", (3, 5, 4, 6), dict(momentum=None)),
    ("BatchNorm2d", (30, 3, 20, 9), dict(affine=False)), ("BatchNorm2d", (3, 2, 4, 4), dict(bias=False)),
    ("BatchNorm1d", (8, 5), dict(track_running_stats=False))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name, shape, options", BATCH)
def test_batch_norm_is_pytorchs(name, shape, options, dtype):
    """Outputs, gradients and running statistics of some batches, then of eval; state dicts go both ways."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    ours = getattr(nn, name)(shape[1], dtype=dtype, **options)
    theirs = getattr(torch.nn, name)(shape[1], **options).to(getattr(torch, dtype))
    for p in theirs.parameters():
        p.data.copy_(torch.tensor(rng.standard_normal(shape[1])))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    for training in (True, True, True, False):
        ours.train(training), theirs.train(training)
        x, g = (rng.standard_normal(shape).astype(dtype) * 3 + 5 for _ in range(2))
        a, b = fb.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        y, z = ours(a), theirs(b)
        ours.zero_grad(), theirs.zero_grad()
        y.backward(g), z.backward(torch.tensor(g))
        close(y, z, dtype)
        close(a.grad, b.grad, dtype, 10)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            close(p.grad, q.grad, dtype, 100)
        for (key, p), q in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert str(p.dtype) == str(q.dtype).split(".")[1], key
            close(p, q, dtype)
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()})
    close(ours(a), theirs(b), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name, shape, size, options", [
    ("LayerNorm", (4, 5), 5, {}), ("LayerNorm", (2, 3, 4, 6), (4, 6), dict(eps=0.1)),
    ("LayerNorm", (300, 33), (33,), dict(bias=False)), ("LayerNorm", (3, 7), 7, dict(elementwise_affine=False)),
    ("RMSNorm", (4, 5), 5, {}), ("RMSNorm", (270, 3, 7), (3, 7), dict(eps=1e-3)),
    ("RMSNorm", (3, 7), 7, dict(elementwise_affine=False))])
def test_layer_and_rms_norm_are_pytorchs(name, shape, size, options, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    ours, theirs = getattr(nn, name)(size, dtype=dtype, **options), getattr(torch.nn, name)(size, **options)
    theirs = theirs.to(getattr(torch, dtype))
    for p in theirs.parameters():
        p.data.copy_(torch.tensor(rng.standard_normal(p.shape)))
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    x, g = (rng.standard_normal(shape).astype(dtype) + 1 for _ in range(2))
    a, b = fb.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(a), theirs(b)
    y.backward(g), z.backward(torch.tensor(g))
    close(y, z, dtype)
    close(a.grad, b.grad, dtype)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(p.grad, q.grad, dtype, 10)


# --- replays

def conv_like(dtype):
    """A net with a statistic of each kind; its images lie batch first."""
    init = np.random.default_rng(0)

    class Net(nn.Module):
        def __init__(self):
            self.images, self.fc = nn.BatchNorm2d(4, dtype=dtype), nn.Linear(64, 30, rng=init, dtype=dtype)
            self.batch = nn.BatchNorm1d(30, momentum=None, dtype=dtype)
            self.layer, self.rms = nn.LayerNorm(30, dtype=dtype), nn.RMSNorm(30, dtype=dtype)
            self.last = nn.Linear(30, 10, rng=init, dtype=dtype)

        def forward(self, x):
            x = self.images(x.reshape(-1, 4, 4, 4)).relu().reshape(-1, 64)
            x = self.layer(self.batch(self.fc(x)).tanh())
            return self.last(self.rms(x))
    return Net()


def training(dtype, eager):
    X, y = fb.data.load_digits()
    X, y = X[:130].astype(dtype), y[:130]
    model = conv_like(dtype)
    step = training_step(model, optim.Adam(model.parameters(), lr=0.01))

    call = step.eager if eager else step
    losses = [call(X[:50], y[:50]).item() for _ in range(3)]
    if eager:
        losses += [[call(X[:50], y[:50]).item() for _ in range(4)][-1]]
        parts = [(call(X[k:k + 50], y[k:k + 50]).item(), len(X[k:k + 50])) for k in (0, 50, 100)]
        losses += [sum(loss * n for loss, n in parts) / 130]
    else:
        losses += [step.repeat(4, X[:50], y[:50]).item(), step.epoch(X, y, batch_size=50)]
    model.eval()
    predict = fb.staged(lambda x: model(x))
    return losses, [predict(X), predict.eager(X)], model


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_is_that_of_gate_by_gate(dtype):
    """Calls, repeats and an epoch with a short last batch; running statistics advance in each."""
    (losses, (y, z), model), (others, (u, v), other) = (training(dtype, eager) for eager in (False, True))
    assert losses == others
    assert_same(list(model.state_dict().values()), list(other.state_dict().values()))
    assert same_bits(y, z) and same_bits(y, u) and same_bits(u, v)
    assert model.images.num_batches_tracked.item() == model.batch.num_batches_tracked.item() == 10


def test_threads_give_the_same_bits():
    before = fb.get_num_threads()
    try:
        found = []
        for number in (1, 2, 3, 4):
            fb.set_num_threads(number)
            losses, _, model = training("float32", False)
            found.append((losses, [t.numpy().tobytes() for t in model.state_dict().values()]))
        assert all(other == found[0] for other in found)
    finally:
        fb.set_num_threads(before)


def loss_of(call):
    """value and gradients of a call's output with weights, to be staged"""
    def f(x, *params):
        y = call(x, *params)
        g = np.random.default_rng(1).standard_normal(y.shape).astype(x.dtype)
        return y, fb.grad(lambda *a: (call(*a) * g).sum(), argnums=tuple(range(1 + len(params))))(x, *params)
    return f


LARGE = [
    (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (40, 9, 15, 14), (9,)),
    (lambda x, w, b: F.batch_norm(batch_first(x), None, None, w, b, True).relu(), (9, 15, 14, 40), (9,)),
    (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (600, 70), (70,)),
    (lambda x, w, b: F.layer_norm(x, w.shape, w, b), (700, 130), (130,)),
    (lambda x, w, b: F.layer_norm(x, w.shape, w, b), (20, 2500), (2500,)),
    (lambda x, w, b: F.rms_norm(x, w.shape, w) + b, (300, 40), (40,))]


def batch_first(x):
    return x.transpose(3, 0, 1, 2)


@pytest.mark.parametrize("k", range(len(LARGE)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_ones_in_threads_and_chunks(k, dtype, monkeypatch):
    """Shares of any threads, chunks in any order, with passes and without: the bits of gate by gate."""
    call, shape, size = LARGE[k]
    rng = np.random.default_rng(k)
    xs = [fb.tensor(rng.standard_normal(s).astype(dtype)) for s in (shape, size, size)]
    f = fb.staged(loss_of(call))
    whole = f.eager(*xs)
    assert_same(f(*xs), whole)
    made = f(*xs)
    for number in (2, 3, 4):
        for t in (made[0], *made[1]):
            t.numpy()[...] = 0
        assert f.replays[0].program.run_in_threads(number)
        assert_same(made, whole)
    for order in (1, -1):
        for t in (made[0], *made[1]):
            t.numpy()[...] = 0
        f.replays[0].program.run_in_chunks(order)
        assert_same(made, whole)
    monkeypatch.setenv("FASTBP_PASSES_OFF", "same,fold,join,advance,postpone,in_place,fuse")
    assert_same(fb.staged(loss_of(call))(*xs), whole)


def test_the_gradients_of_a_layer_norm_come_in_one_sweep():
    x, w = fb.randn(50, 30, rng=0), fb.randn(30, rng=1)
    f = fb.staged(lambda x, w: fb.grad(lambda x, w: (F.layer_norm(x, 30, w) ** 3).sum(), argnums=(0, 1))(x, w))
    f(x, w)
    names = [stage.name for stage in f.replays[0].about.plan.stages]
    assert names.count("layer_norm_both") == 1 and "layer_norm_grad" not in names and "layer_norm_lanes" not in names


def test_a_moment_that_two_gradients_want_is_computed_once():
    x, w = fb.randn(50, 30, rng=0), fb.randn(30, rng=1)
    norm = lambda x, w: F.batch_norm(x, weight=w, training=True)
    f = fb.staged(lambda x, w: fb.grad(lambda x, w: (norm(x, w) ** 3).sum(), argnums=(0, 1))(x, w))
    f(x, w)
    assert [stage.name for stage in f.replays[0].about.plan.stages].count("products_about") == 1


def test_images_whose_batch_lies_last_run_in_groups():
    """Normalization and what follows it, tile by tile, though the shapes are not in C order."""
    x = fb.tensor(np.random.default_rng(0).standard_normal((6, 20, 10, 16)).astype("f"))
    f = fb.staged(lambda x: F.batch_norm(batch_first(x), training=True).tanh().sigmoid().transpose(1, 2, 3, 0))
    assert_same(f(x), f.eager(x))
    assert str(f.stages()).count("fused A") == 3
    g = fb.staged(lambda x: batch_first(x).tanh().reshape(16, -1) * 2)
    assert_same(g(x), g.eager(x))


# --- layouts, sizes, accuracy

@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 3, 2, 2), (64, 3, 7, 9), (17, 2, 33, 33), (1100, 2, 3, 1), (1, 4, 40, 40),
                                   (40, 3, 50)])
def test_where_the_batch_lies_makes_no_difference(shape, dtype):
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    found = []
    for lay_x in (np.ascontiguousarray, batch_last, lambda a: np.repeat(a, 2, -1)[..., ::2]):
        for lay_g in (np.ascontiguousarray, batch_last):
            layer = getattr(nn, f"BatchNorm{len(shape) - 2}d")(shape[1], dtype=dtype)
            layer.weight.copy_(np.linspace(1, 2, shape[1]))
            a = fb.from_numpy(lay_x(x)).requires_grad_()
            y = layer(a)
            y.backward(fb.from_numpy(lay_g(g)))
            found.append([y, a.grad, *(p.grad for p in layer.parameters()), *layer.state_dict().values()])
    for other in found:
        assert_same(other, found[0])
    close(found[0][0], normalized(x.astype("d"), (0, *range(2, x.ndim)), 1e-5)
          * np.linspace(1, 2, shape[1]).reshape(1, -1, *(1,) * (x.ndim - 2)), dtype, 3)


EDGES = [1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 129, 255, 257, 1023, 1024, 1025, 2049, 5000]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_others(dtype):
    rng = np.random.default_rng(0)
    for n in EDGES:
        x, g, w = rng.standard_normal((9, n)), rng.standard_normal((9, n)), rng.standard_normal(n)
        for call, center in ((lambda x, w: F.layer_norm(x, w.shape, w), True),
                             (lambda x, w: F.rms_norm(x, w.shape, w, 1e-5), False)):
            whole, weight = fb.tensor(x.astype(dtype), requires_grad=True), fb.tensor(w.astype(dtype))
            y = call(whole, weight)
            y.backward(g.astype(dtype))
            close(y, normalized(x.astype(dtype).astype("d"), 1, 1e-5, center) * weight.numpy(), dtype, 5)
            for rows in (slice(2, 3), slice(4, 9)):
                part = fb.tensor(x[rows].astype(dtype), requires_grad=True)
                z = call(part, weight)
                z.backward(g[rows].astype(dtype))
                assert same_bits(z, y.numpy()[rows]) and same_bits(part.grad, whole.grad.numpy()[rows])


@pytest.mark.parametrize("rows", [1, 15, 17, 255, 256, 257, 1024, 1025, 3000])
def test_sums_over_rows_have_the_order_of_every_sum(rows):
    """The gradients for weight and bias, of single columns and of many, are the sums of those rows."""
    rng = np.random.default_rng(rows)
    x, g = (fb.tensor(rng.standard_normal((rows, 37)).astype("f")) for _ in range(2))
    w, b = fb.ones(37, requires_grad=True), fb.zeros(37, requires_grad=True)
    F.layer_norm(x, 37, w, b).backward(g)
    assert same_bits(b.grad, g.sum(0))
    assert same_bits(w.grad, (g * F.layer_norm(x, 37)).sum(0))


def test_statistics_are_accurate_far_from_zero():
    """Two passes: what one pass over x and x^2 has in float32 would be noise alone. The mean itself is rounded."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((64, 3, 30, 20)) + 4000).astype("f")
    exact = x.astype("d")
    for y, axes in ((F.batch_norm(fb.tensor(x), training=True), (0, 2, 3)),
                    (F.layer_norm(fb.tensor(x), (30, 20)), (2, 3)),
                    (F.batch_norm(fb.tensor(x[:, :, 0, 0]), training=True), (0,))):
        values = exact if y.ndim == 4 else exact[:, :, 0, 0]
        assert np.abs(y.numpy() - normalized(values, axes, 1e-5)).max() < 4 * np.spacing(np.float32(4000))


@pytest.mark.parametrize("call, shapes", [
    (lambda x, w, b: F.layer_norm(x, (5,), w, b), [(3, 5), (5,), (5,)]),
    (lambda x, w: F.rms_norm(x, (5,), w, 0.1), [(3, 5), (5,)]),
    (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), [(4, 2, 3), (2,), (2,)])])
def test_gradients_of_gradients_of_gradients(call, shapes):
    rng = np.random.default_rng(0)
    xs = [rng.standard_normal(s) for s in shapes]
    u = [rng.standard_normal(s) for s in shapes]
    many = tuple(range(len(xs)))

    def along(f):
        return lambda *a: sum((g * d).sum() for g, d in zip(fb.grad(f, argnums=many)(*a), u, strict=True))
    assert fb.gradcheck(along(along(lambda *a: (call(*a) ** 2 * call(*a)).sum())), xs, atol=1e-4, rtol=1e-3)


def test_a_sum_over_rows_is_differentiated_again():
    """The second gradient by way of the lanes of the sum, of more rows than one quarter has."""
    x, w = np.random.default_rng(0).standard_normal((270, 3)), np.array([1.0, -0.5, 2.0])
    f = lambda x, w: (fb.grad(lambda w: (F.layer_norm(x, 3, w) ** 3).sum())(w) ** 2).sum() * 1e-4
    got = fb.grad(f)(x, w).numpy()
    for place in ((0, 1), (17, 0), (255, 2), (256, 0), (269, 1)):
        ahead, behind = x.copy(), x.copy()
        ahead[place] += 1e-6
        behind[place] -= 1e-6
        assert abs((f(ahead, w).item() - f(behind, w).item()) / 2e-6 - got[place]) < 1e-5 * (1 + abs(got[place]))


def test_the_lanes_of_a_sum_over_rows_are_differentiated_each_for_itself():
    rng = np.random.default_rng(0)
    dy, x = rng.standard_normal((2, 270, 3))
    u = rng.standard_normal((2, 16, 3))
    f = lambda dy, x: (layer_norm_lanes(dy, x, 1e-5, 1) * u).sum()
    of_dy, of_x = (g.numpy() for g in fb.grad(f, argnums=(0, 1))(dy, x))
    lane = u[np.arange(270) // 256, np.arange(270) % 16]
    np.testing.assert_allclose(of_dy, lane * normalized(x, 1, 1e-5), rtol=1e-11, atol=1e-11)
    v = rng.standard_normal(x.shape)
    slope = (f(dy, fb.tensor(x + 1e-6 * v)).item() - f(dy, fb.tensor(x - 1e-6 * v)).item()) / 2e-6
    assert abs((of_x * v).sum() - slope) < 1e-6 * (1 + abs(slope))


# --- what is refused

def test_errors_change_nothing():
    layer = nn.BatchNorm2d(3)
    before = {k: v.numpy().tobytes() for k, v in layer.state_dict().items()}
    for shape, kind, words in (((2, 3), fb.ShapeError, r"\(N, 3, H, W\)"),
                               ((2, 4, 5, 5), fb.ShapeError, "layer: +Batch"),
                               ((1, 3, 1, 1), ValueError, "more than one value")):
        for call in (layer, fb.staged(layer)):
            with pytest.raises(kind, match=words):
                call(fb.ones(shape))
    with pytest.raises(fb.DtypeError):
        layer(fb.ones(2, 3, 4, 4, dtype="float64"))
    assert before == {k: v.numpy().tobytes() for k, v in layer.state_dict().items()}
    layer.eval()
    assert layer(fb.ones(1, 3, 1, 1)).shape == (1, 3, 1, 1)
    with pytest.raises(fb.ShapeError, match=r"\(N, 3\) or \(N, 3, L\)"):
        nn.BatchNorm1d(3)(fb.ones(3))
    with pytest.raises(ValueError, match="running_mean and running_var"):
        F.batch_norm(fb.ones(2, 3))
    for name in ("running_mean", "running_var"):
        statistic = fb.zeros(3)
        with pytest.raises(ValueError, match="one running statistic without the other"):
            F.batch_norm(fb.ones(2, 3), **{name: statistic}, training=True)
        assert not statistic.numpy().any()
    with pytest.raises(fb.ShapeError, match="weight does not fit"):
        F.batch_norm(fb.ones(2, 3), weight=fb.ones(2), training=True)
    with pytest.raises(fb.ShapeError, match=r"\(\.\.\., 4, 5\)"):
        nn.LayerNorm((4, 5))(fb.ones(2, 5))
    with pytest.raises(fb.ShapeError, match="layer: +RMSNorm"):
        nn.RMSNorm(4)(fb.ones(2, 5))
    with pytest.raises(fb.ShapeError, match="bias does not fit"):
        F.layer_norm(fb.ones(2, 5), 5, bias=fb.ones(4))
    for made in (nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm):
        with pytest.raises(fb.DtypeError, match=made.__name__):
            made(3, dtype="int32")


def test_a_count_of_batches_of_another_kind():
    """The kernel writes eight bytes: another tensor in its place is refused, and its neighbours stay."""
    memory = np.zeros(4, np.float32)
    for wrong in (fb.tensor(0), fb.from_numpy(memory[:1].reshape(())), fb.zeros(1, dtype="int64")):
        for momentum in (0.1, None):
            layer = nn.BatchNorm1d(3, momentum=momentum)
            layer.num_batches_tracked = wrong
            with pytest.raises(fb.DtypeError, match="num_batches_tracked is no count"):
                layer(fb.ones(2, 3))
            assert not layer.running_mean.numpy().any() and layer.eval()(fb.ones(2, 3)).shape == (2, 3)
    assert not memory.any()


def test_other_dtypes_and_a_batch_that_is_measured():
    """`to` converts statistics; profiles put them back."""
    layer = nn.BatchNorm1d(4).to("float64")
    assert layer.running_mean.dtype == np.float64 and layer.num_batches_tracked.dtype == np.int64
    step = fb.staged(lambda x: layer(x))
    x = np.random.default_rng(0).standard_normal((8, 4))
    step(x)
    before = [b.numpy().copy() for b in layer.buffers()]
    step.profile(x, seconds=0.01)
    assert_same([fb.tensor(b) for b in before], list(layer.buffers()))
    step(x)
    assert layer.num_batches_tracked.item() == 2 and not same_bits(layer.running_var, before[1])
    assert repr(layer) == ("BatchNorm1d(4, eps=1e-05, momentum=0.1, affine=True, bias=True, "
                           "track_running_stats=True)")
    assert "running_mean.copy_(" in str(step.stages()) and "batch_standardize(x" in str(step.stages())
