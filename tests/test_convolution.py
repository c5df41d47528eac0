"""Convolution and pooling: bits, memory, PyTorch's numbers, errors. The gates' own cases stand in cases.py."""
import numpy as np
import pytest
from cases import pair, windows
from test_gates import direction_check, same_bits, tensors
from test_staged import flat
from test_threads import in_threads

import fastbp as fb
from fastbp import nn, optim
from fastbp.gates import INTERNAL
from fastbp.gates.convolution import _pool, _slide
from fastbp.nn import functional as F

DTYPES = [np.float32, np.float64]


def lenet(seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, dtype=dtype, rng=rng), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5, dtype=dtype, rng=rng),
        nn.ReLU(), nn.MaxPool2d(2)), nn.Linear(256, 10, dtype=dtype, rng=rng)


def images(n, *shape, dtype=np.float32, seed=0):
    return np.random.default_rng([n, seed]).standard_normal((n, *shape)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"padding": 2}, {"stride": 2, "padding": 1}, {"groups": 3}, {"dilation": 2}])
def test_an_image_does_not_depend_on_its_batch(dtype, options):
    x = images(67, 3, 9, 8, dtype=dtype)
    w = images(6, 3 // options.get("groups", 1), 3, 3, dtype=dtype, seed=1)
    dy = images(67, *F.conv2d(x[:1], w, **options).shape[1:], dtype=dtype)

    def both(rows):
        t = fb.tensor(x[rows], requires_grad=True)
        y = F.conv2d(t, w, **options)
        y.backward(dy[rows])
        return y.numpy(), t.grad.numpy()

    whole = both(slice(None))
    for rows in (slice(3, 4), slice(0, 2), slice(5, 21), slice(1, 66)):
        assert all(same_bits(a, b[rows]) for a, b in zip(both(rows), whole, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_of_one_and_a_pixel_have_the_sums_of_a_product(dtype):
    """A window of one pixel is a layer for each pixel: the same chains of multiply-adds."""
    for n, channels in ((1, 5), (3, 130), (17, 600)):
        x, w = images(n, channels, 2, 3, dtype=dtype), images(4, channels, 1, 1, dtype=dtype, seed=1)
        y = F.conv2d(x, w).numpy()
        rows = F.linear(fb.from_numpy(x.transpose(0, 2, 3, 1)), fb.from_numpy(w[:, :, 0, 0])).numpy()
        if channels <= 512:
            assert same_bits(y, rows.transpose(0, 3, 1, 2))
        np.testing.assert_allclose(y, rows.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-4)


def test_between_layers_nothing_is_copied():
    features, head = lenet()

    @fb.staged
    def step(x, labels):
        z = features(x)
        loss = fb.cross_entropy(head(z.reshape(z.shape[0], -1)), labels)
        loss.backward()
        return loss

    step(images(20, 1, 28, 28), np.zeros(20, int))
    copies = [stage for stage in step.replays[0].about.plan.stages if stage.form == "copy"]
    # The images; what the fully connected layer gets, and gives back.
    assert [stage.outputs[0].shape for stage in copies] == [(1, 28, 28, 20), (20, 16, 4, 4), (16, 4, 4, 20)]
    y = features(fb.from_numpy(images(20, 1, 28, 28)))
    assert y.shape == (20, 16, 4, 4) and y.strides == (4, 4 * 4 * 20 * 4, 4 * 20 * 4, 20 * 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [3, 32])
def test_a_step_of_lenet_on_threads_and_gate_by_gate(dtype, n):
    features, head = lenet(dtype=np.dtype(dtype).name)
    x, labels = fb.tensor(images(n, 1, 28, 28, dtype=dtype)), np.arange(n) % 10

    parameters = [fb.tensor(p.numpy()) for p in (*features.parameters(), *head.parameters())]

    def gradients(x, *parameters):
        def loss(*ps):
            z = F.max_pool2d(fb.relu(F.conv2d(x, ps[0], ps[1])), 2)
            z = F.max_pool2d(fb.relu(F.conv2d(z, ps[2], ps[3], padding=1)), 2, padding=1)
            return fb.cross_entropy(F.linear(z.reshape(n, -1)[:, :256], ps[4], ps[5]), labels)
        return fb.value_and_grad(loss, argnums=tuple(range(6)))(*parameters)

    for threads in (2, 3, 4):
        in_threads(fb.staged(gradients), [x, *parameters], threads)


def test_training_staged_is_training_gate_by_gate():
    x, labels = images(32, 1, 28, 28), np.arange(32) % 10
    reached = []
    for staged in (True, False):
        features, head = lenet()
        opt = optim.Adam([*features.parameters(), *head.parameters()], lr=1e-3)

        def step(x, labels, features=features, head=head, opt=opt):
            z = features(x)
            loss = fb.cross_entropy(head(z.reshape(z.shape[0], -1)), labels)
            opt.zero_grad()
            loss.backward()
            opt.step()
            return loss

        run = fb.staged(step)
        losses = [(run if staged else run.eager)(x, labels).item() for _ in range(5)]
        reached.append((losses, [p.numpy().tobytes() for p in features.parameters()]))
    assert reached[0] == reached[1]
    assert losses[-1] < losses[0]


# --- the gates that gradients are made of

def windows_of(rng):
    kernel, stride, dilation = ([int(v) for v in rng.integers(1, high, 2)] for high in (4, 4, 3))
    groups = int(rng.integers(1, 3))
    x = rng.standard_normal((int(rng.choice([1, 3, 17])), groups * int(rng.integers(1, 4)), 7, 8))
    return x, _slide("", x, groups, int(rng.integers(1, 4)), kernel, stride, rng.integers(0, 3, 2).tolist(), dilation)


@pytest.mark.parametrize("seed", range(12))
def test_gradients_of_the_gradients_gates(seed):
    rng = np.random.default_rng(seed)
    _, window = windows_of(rng)
    gates = {"convolve": (window.source, window.weight), "convolve_input": (window.map, window.weight),
             "convolve_weight": (window.map, window.source)}
    for name, shapes in gates.items():
        xs = [rng.standard_normal(shape) for shape in shapes]
        weights = rng.standard_normal(INTERNAL[name](*tensors(xs), window).shape)

        def f(*ts, name=name, weights=weights):
            return (INTERNAL[name](*ts, window) * weights).sum()

        direction_check(lambda arrays, f=f: f(*tensors(arrays)).item(),
                        lambda arrays, f=f: [g.numpy() for g in fb.grad(f, argnums=(0, 1))(*arrays)], xs, rng)


def test_the_gradient_of_a_pools_gradient():
    rng = np.random.default_rng(0)
    x = rng.permutation(2 * 3 * 49).reshape(2, 3, 7, 7) * 0.1
    images, _, window = _pool("", fb.tensor(x), INTERNAL["max_pool"], 3, 2, 1, 1, False)
    last = fb.tensor(np.ascontiguousarray(images.numpy().transpose(1, 2, 3, 0)))
    y = INTERNAL["max_pool"](last, window)
    xs, weights = [rng.standard_normal(y.shape)], rng.standard_normal(last.shape)

    def f(dy):
        dx = INTERNAL["max_pool_input"](dy, last, y, window)
        return (fb.tanh(dx) * weights).sum()

    direction_check(lambda arrays: f(*tensors(arrays)).item(),
                    lambda arrays: [fb.grad(f)(*arrays).numpy()], xs, rng)


def test_of_several_largest_the_first_is_picked():
    rng = np.random.default_rng(1)
    _, _, window = _pool("", fb.ones(2, 3, 7, 7), INTERNAL["max_pool"], 3, 2, 1, 1, False)
    x, y = fb.ones(window.source), fb.ones(window.map)
    dy, g = rng.standard_normal(window.map), rng.standard_normal(window.source)
    x, y, dy, g = tensors([a.astype(np.float32) for a in (x.numpy(), y.numpy(), dy, g)])
    picked = INTERNAL["max_pool_pick"](g, x, y, window)
    np.testing.assert_array_equal(picked.numpy()[:, 1:, 1:], g.numpy()[:, 1::2, 1::2][:, :3, :3])
    # The two are each other's transpose: <dy, pick(g)> = <input(dy), g>.
    dx = INTERNAL["max_pool_input"](dy, x, y, window)
    assert (dy * picked).sum().item() == pytest.approx((dx * g).sum().item(), rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, options", [((70, 40, 5, 40), {}), ((70, 40, 5, 40), {"padding": 1}),
                                            ((1, 2, 3, 20000), {}), ((1, 90, 6, 800), {"stride": (2, 1)})])
def test_the_gradient_of_the_weights_goes_block_by_block_of_rows(dtype, shape, options):
    """So many numbers in a row that few rows are added up at once; a block sums what is inside the map."""
    x, w = images(*shape, dtype=dtype), fb.tensor(images(2, shape[1], 3, 3, dtype=dtype, seed=1), requires_grad=True)
    y = F.conv2d(x, w, **options)
    dy = images(*y.shape, dtype=dtype, seed=2)
    y.backward(dy)
    stride, padding = pair(options.get("stride", 1)), pair(options.get("padding", 0))
    seen = windows(x.astype(float), (3, 3), stride, padding, (1, 1), 0.0, y.shape[2:])
    expected = np.einsum("nohw,nchwkl->ockl", dy.astype(float), seen, optimize=True)
    np.testing.assert_allclose(w.grad.numpy(), expected, rtol=0,
                               atol=(1e-6 if dtype == np.float32 else 1e-14) * dy[:, 0].size**0.5 * 3)


# --- edges

def test_max_pool_nan_ties_and_infinities():
    nan, inf = np.nan, np.inf
    x = np.array([[1, 1, nan, 5, -inf, -inf], [1, 0, 7, nan, -inf, -inf]], np.float32)[None, None]
    t = fb.tensor(x, requires_grad=True)
    y = F.max_pool2d(t, 2)
    np.testing.assert_array_equal(y.numpy()[0, 0], [[1, nan, -inf]])
    y.backward(np.array([[[[1, 2, 3]]]], np.float32))
    np.testing.assert_array_equal(t.grad.numpy()[0, 0], [[1, 0, 2, 0, 3, 0], [0] * 6])    # the first takes all


def test_a_window_that_sees_only_padding():
    y = F.max_pool2d(x := fb.ones(1, 1, 1, 5, requires_grad=True), 2, stride=3, padding=1, dilation=2)
    assert (y.numpy() == -np.inf).all()
    y.sum().backward()
    f = fb.staged(lambda x: F.max_pool2d(fb.relu(x * 2.0), 2, stride=3, padding=1, dilation=2))
    assert (f(x).numpy() == -np.inf).all() and "in (" in str(f.stages())


EDGES = [-np.inf, -1, -0.0, 0, 0, 1, 1, 2, np.inf, np.nan]


@pytest.mark.parametrize("options", [{}, {"stride": 1}, {"stride": 1, "padding": 1}, {"dilation": 3, "padding": 1},
                                     {"stride": 3}, {"stride": 2, "ceil_mode": True}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_relu_in_a_max_pool_has_the_bits_of_both(dtype, options, monkeypatch):
    """Ties, zeros of both signs, NaN and infinities in the windows and in the gradients; windows that overlap."""
    rng = np.random.default_rng(len(options))
    x = rng.choice(EDGES[:9], (3, 7, 6, 5), p=[0.2, 0.2, 0.2, *[0.4 / 6] * 6]).astype(dtype)    # batch last
    x[:, 3, 3, 0] = np.nan
    dy = rng.choice(EDGES, F.max_pool2d(x.transpose(3, 0, 1, 2), 2, **options).shape).astype(dtype)

    def both(x):
        y = F.max_pool2d(fb.relu(x.transpose(3, 0, 1, 2) * 2.0), 2, **options)
        return (y * dy).sum(), y

    f, plain = [fb.staged(fb.value_and_grad(both, has_aux=True)) for _ in range(2)]
    (_, y), dx = f(x)
    assert all(same_bits(a, b) for a, b in zip((y, dx), (f.eager(x)[0][1], f.eager(x)[1]), strict=True))
    monkeypatch.setenv("FASTBP_PASSES_OFF", "pool_relu")
    assert same_bits(plain(x)[0][1], y) and same_bits(plain(x)[1], dx)
    for staged, inside in ((f, True), (plain, False)):
        assert ["in (" in line for line in str(staged.stages()).splitlines() if "relu(" in line] == [inside]
    assert all(found.any() for found in (y.numpy() == 0, y.numpy() == np.inf, np.isnan(y.numpy())))


KEPT = fb.from_numpy(images(2, 6, 7, 4, seed=3))


def halved(x):
    """The ReLU's input changes before the pool."""
    y = fb.relu(KEPT.transpose(3, 0, 1, 2))
    KEPT.copy_(KEPT * 0.5)
    return F.max_pool2d(y, 2), x.mean()


def spread(x):
    """The ReLU's input repeats its elements, its result does not."""
    y = fb.relu(fb.broadcast_to(x.transpose(1, 2, 3, 0)[..., :1], (2, 6, 7, 5)))
    return (F.max_pool2d(y.transpose(3, 0, 1, 2), 2),)


@pytest.mark.parametrize("f", [
    lambda x: (F.max_pool2d(y := fb.relu(x * 2.0), 2), y), lambda x: (F.max_pool2d(fb.relu(x), 2),), halved, spread,
    lambda x: (F.max_pool2d(y := fb.relu(x * 2.0), 2), y.mean()),
    lambda x: (F.max_pool2d(y := fb.relu(x * 2.0), 2), F.max_pool2d(y, 3)),
    lambda x: (F.max_pool2d(fb.transpose(fb.relu(x * 2.0), (0, 1, 3, 2)), 2),)])
def test_a_relu_that_others_need_has_the_bits_of_both(f):
    """Also where what it is of is seen outside; maps lie batch last, as a convolution's do."""
    def loss(x):
        results = f(x.transpose(3, 0, 1, 2))
        return sum(y.sum() for y in results), results

    x, kept = images(2, 6, 7, 4), KEPT.numpy().copy()
    for g in (fb.value_and_grad(loss, has_aux=True), lambda x: loss(x)[1]):
        staged, found = fb.staged(g), []
        for run in (staged, staged.eager):
            KEPT.copy_(kept)
            found.append(run(x))
        assert all(same_bits(y, z) for y, z in zip(*map(flat, found), strict=True))


@pytest.mark.parametrize("size, options, over", [
    (6, {}, True), (7, {}, False), (6, {"stride": 1}, False), (6, {"padding": 1}, False), (6, {"dilation": 2}, False)])
def test_the_gradient_of_a_pool_lies_over_its_input(size, options, over):
    """Where each pixel is in one window."""
    x, w = images(4, 1, size, size), fb.tensor(images(3, 1, 1, 1, seed=1), requires_grad=True)
    f = fb.staged(fb.value_and_grad(lambda w: F.max_pool2d(fb.relu(F.conv2d(x, w)), 2, **options).sum()))
    assert all(same_bits(a, b) for a, b in zip(f(w), f.eager(w), strict=True))
    plan = f.replays[0].about.plan
    (stage,) = [s for s in plan.stages if s.name == "max_pool_input"]
    assert (plan.owner(stage.outputs[0]) is plan.owner(stage.inputs[1])) == over


def test_nan_stays_in_its_windows():
    x = images(2, 1, 6, 6)
    x[1, 0, 3, 3] = np.nan
    y = F.conv2d(x, np.ones((1, 1, 3, 3), np.float32)).numpy()
    assert not np.isnan(y[0]).any() and np.isnan(y[1, 0, 1:4, 1:4]).all() and np.isnan(y).sum() == 9
    y = F.adaptive_avg_pool2d(x, (2, 3)).numpy()
    assert np.isnan(y[1, 0, 1, 1]) and np.isnan(y).sum() == 1


def bad(call, kind, *words):
    return call, kind, words


X = fb.ones(2, 3, 5, 6)
BAD = {
    "kernel larger than its image": bad(lambda: F.conv2d(X, fb.ones(4, 3, 6, 3)), fb.ShapeError,
                                        "larger than the image", "images 5 x 6", "rows of at least 6"),
    "dilated beyond its image": bad(lambda: F.conv2d(X, fb.ones(4, 3, 3, 3), dilation=3), fb.ShapeError, "dilation 3",
                                    "at least 7"),
    "pool larger than its image": bad(lambda: F.max_pool2d(X, 7), fb.ShapeError, "max_pool2d", "7 x 7"),
    "channels": bad(lambda: F.conv2d(X, fb.ones(4, 2, 3, 3)), fb.ShapeError, "weight (4, 2, 3, 3), groups 1"),
    "groups": bad(lambda: F.conv2d(X, fb.ones(4, 1, 3, 3), groups=3), fb.ShapeError, "groups 3"),
    "bias": bad(lambda: F.conv2d(X, fb.ones(4, 3, 3, 3), fb.ones(3)), fb.ShapeError, "bias (3,)"),
    "rank": bad(lambda: F.conv2d(fb.ones(2, 784), fb.ones(4, 3, 3, 3)), fb.ShapeError, "(2, 784)", "reshape"),
    "an empty batch": bad(lambda: F.conv2d(X[:0], fb.ones(4, 3, 3, 3)), fb.ShapeError, "empty"),
    "stride": bad(lambda: F.conv2d(X, fb.ones(4, 3, 3, 3), stride=0), ValueError, "stride", "1 or more"),
    "padding": bad(lambda: F.conv2d(X, fb.ones(4, 3, 3, 3), padding=(1, 2, 3)), ValueError, "(1, 2, 3)"),
    "a word": bad(lambda: F.conv2d(X, fb.ones(4, 3, 3, 3), padding="full"), ValueError, "'full'"),
    "same with a stride": bad(lambda: F.conv2d(X, fb.ones(4, 3, 3, 3), padding="same", stride=2), ValueError, "same"),
    "much padding": bad(lambda: F.max_pool2d(X, 2, padding=2), ValueError, "half"),
    "dtypes": bad(lambda: F.conv2d(X, np.ones((4, 3, 3, 3))), fb.DtypeError, "float32 and float64"),
    "1-d rank": bad(lambda: F.conv1d(X, fb.ones(4, 3, 2)), fb.ShapeError, "(N, C, L)"),
    "output size": bad(lambda: F.adaptive_avg_pool2d(X, 0), ValueError, "output_size"),
    "no channels": bad(lambda: nn.Conv2d(0, 3, 3), ValueError, "in_channels"),
    "1-d stride": bad(lambda: F.conv1d(X[0], fb.ones(4, 5, 3), stride=0), ValueError, "got:      0\n", "1 or more\n"),
    "1-d padding": bad(lambda: F.conv1d(X[0], fb.ones(4, 5, 3), padding=(1, 2)), ValueError, "got:      (1, 2)\n"),
    "two groups": bad(lambda: F.conv2d(X, fb.ones(4, 3, 3, 3), groups=(1, 2)), ValueError, "groups", "(1, 2)"),
    "three output sizes": bad(lambda: F.adaptive_avg_pool2d(X, (2, 3, 4)), ValueError, "output_size", "(2, 3, 4)"),
    "divisor 0": bad(lambda: F.avg_pool2d(X, 2, divisor_override=0), ValueError, "divisor_override", "other than 0"),
    "a broken divisor": bad(lambda: F.avg_pool2d(X, 2, divisor_override=2.5), ValueError, "divisor_override", "2.5"),
    "channels by groups": bad(lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "3 and 4 by 2"),
    "padding mode": bad(lambda: nn.Conv2d(3, 4, 3, padding_mode="reflect"), ValueError, "reflect"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    call, kind, words = BAD[what]
    with pytest.raises(kind) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value


def test_an_error_names_the_layer():
    with pytest.raises(fb.ShapeError, match=r"layer: +1 \(Conv2d\(6, 16, kernel_size=\(5, 5\), stride=\(1, 1\)\)\)"):
        nn.Sequential(nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5))(fb.ones(1, 1, 7, 9))


# --- layers, against PyTorch

LAYERS = [
    ("Conv2d", (3, 4, 3), {}, (5, 3, 7, 6)), ("Conv2d", (4, 6, (3, 2)), {"stride": 2, "padding": 1, "groups": 2},
                                             (17, 4, 8, 9)),
    ("Conv2d", (3, 6, 3), {"padding": "same", "dilation": 2, "bias": False, "groups": 3}, (2, 3, 6, 7)),
    ("Conv1d", (3, 4, 5), {"padding": 2, "stride": 3}, (4, 3, 20)), ("Conv1d", (2, 4, 3), {"padding": "same"}, (2, 9)),
    ("MaxPool2d", (2,), {}, (3, 2, 7, 8)), ("MaxPool2d", (3, 2, 1, 2), {"ceil_mode": True}, (3, 2, 9, 10)),
    ("AvgPool2d", (3, 2, 1), {"ceil_mode": True}, (3, 2, 8, 10)),
    ("AvgPool2d", ((2, 3),), {"count_include_pad": False, "padding": 1}, (2, 7, 9)),
    ("AdaptiveAvgPool2d", ((3, None),), {}, (2, 3, 7, 5)), ("AdaptiveAvgPool2d", (4,), {}, (2, 3, 3, 9)),
]


@pytest.mark.parametrize("name, args, options, shape", LAYERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_against_pytorch(name, args, options, shape, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = getattr(torch.nn, name)(*args, **options).to(getattr(torch, np.dtype(dtype).name))
    ours = getattr(nn, name)(*args, **options, **({"dtype": dtype} if "Conv" in name else {}))
    assert {n: tuple(p.shape) for n, p in theirs.named_parameters()} == {n: p.shape for n, p in ours.named_parameters()}
    ours.load_state_dict(theirs.state_dict())
    x = images(*shape, dtype=dtype)
    a, b = torch.tensor(x, requires_grad=True), fb.tensor(x, requires_grad=True)
    expected, y = theirs(a), ours(b)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-11, "atol": 1e-12}
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), **tolerance)
    dy = images(*y.shape, dtype=dtype, seed=2)
    expected.backward(torch.tensor(dy))
    y.backward(dy)
    for t, p in [(a, b), *zip(theirs.parameters(), ours.parameters(), strict=True)]:
        np.testing.assert_allclose(p.grad.numpy(), t.grad.numpy(), **tolerance)
    if name == "Conv2d":
        assert repr(ours) == repr(theirs)


def test_initial_values():
    layer = nn.Conv2d(8, 200, 3, groups=2, rng=0)
    bound = (4 * 9)**-0.5
    for p in (layer.weight, layer.bias):
        assert bound * 0.9 < np.abs(p.numpy()).max() <= bound and abs(p.numpy().mean()) < bound / 5
    assert same_bits(nn.Conv2d(8, 200, 3, groups=2, rng=0).weight, layer.weight)
