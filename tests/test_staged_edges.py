"""Staged functions at their edges: what leaks, overlaps, comes twice, hides or changes at a bad time."""
import cProfile
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from test_gates import same_bits
from test_staged import assert_same

import fastbp as fb
from fastbp import data, nn, optim

ROW = fb.randn(5, rng=0)


@pytest.mark.parametrize("f", [
    lambda x, a: x * (a > 0), lambda x, a: (a > 0) * a * x, lambda x, a: x * (-(a > 0) - 1),
    lambda x, a: x * ((a > 0) + (a > 1)),
    lambda x, a: fb.where(a > 0, x, 2 * x), lambda x, a: x * fb.square(a), lambda x, a: x * fb.add(a, 0.1),
    lambda x, a: x * fb.mul(a, a), lambda x, a: fb.exp(a), lambda x, a: fb.where(x > 0, a, 1 - a) * x,
    lambda x, a: x * fb.sum(a), lambda x, a: x * fb.stack([a, a]).sum(), lambda x, a: x * fb.expand_dims(a, 0),
    lambda x, a: x * np.float64(0.9)**a, lambda x, a: x * abs(a)**np.float64(1.7),
    lambda x, a: fb.maximum(x, a) - a / 3])
def test_numbers_in_gates_and_operators(f):
    """A number given to a gate is float32, as outside; operators of numbers are Python's, comparisons too."""
    staged = fb.staged(f)
    for a in (0.7, -1.3, 3):
        assert_same(staged(ROW, a), staged.eager(ROW, a))
    assert staged.recordings == 1


@pytest.mark.parametrize("use", [
    lambda t: t * 2.0, lambda t: t.sum(), lambda t: fb.exp(t), lambda t: fb.staged(lambda x: x * 1.0)(t),
    lambda t: t[0],
    lambda t: fb.grad(lambda x: x.sum())(t), lambda t: t.reshape(5, 1), lambda t: t.T, lambda t: t.sum().backward(),
    lambda t: fb.staged(lambda x: x * t)(ROW), lambda t: t.item(), lambda t: fb.concatenate([t, t]), lambda t: t @ t,
    lambda t: fb.cross_entropy(t, np.array(1)), lambda t: t > 0])
def test_recorded_tensors_that_leak_out_are_refused(use):
    leaked = []
    fb.staged(lambda x: (leaked.append(x * 1.0), x * 2.0)[1])(ROW)
    with pytest.raises(fb.StagingError):
        use(leaked[0])


@pytest.mark.parametrize("wrap", [lambda t: SimpleNamespace(a=t), lambda t: {t}, lambda t: (v for v in [t])])
def test_results_that_hide_tensors_are_refused(wrap):
    model = nn.Linear(5, 2, rng=0)
    opt = optim.Adam(model.parameters())

    @fb.staged
    def step(x):
        model(x).sum().backward()
        opt.step()
        return wrap(x * 1.0)

    with pytest.raises(fb.StagingError, match="inside something else"):
        step(fb.ones(3, 5))
    assert opt.state_dict()["state"] == {}, "what recording made is taken back"


def test_a_weight_that_is_unfrozen_trains_again():
    model = nn.Linear(2, 1, rng=0)
    opt = optim.SGD(model.parameters(), lr=0.1)

    @fb.staged
    def step(x):
        loss = fb.square(model(x)).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()

    model.weight.requires_grad_(False)
    step(fb.ones(3, 2))
    model.weight.requires_grad_(True)
    before = model.weight.numpy().copy()
    step(fb.ones(3, 2))
    assert not same_bits(before, model.weight)


def test_weights_without_bias_and_buffers_that_move_are_seen():
    class Scale(nn.Module):
        def __init__(self):
            self.register_buffer("k", fb.tensor([2.0, 3.0]))

        def forward(self, x):
            return x * self.k

    model, scale = nn.Linear(4, 2, bias=False, rng=0), Scale()
    f = fb.staged(lambda x: scale(model(x)))
    x = fb.randn(2, 4, rng=1)
    f(x)
    for module in (model, scale):
        module.to("float64").to("float32")
    model.load_state_dict({"weight": np.ones((2, 4), np.float32)})
    scale.load_state_dict({"k": np.array([5.0, 6.0], np.float32)})
    assert_same(f(x), f.eager(x))


def test_constants_keep_their_layout():
    f = fb.staged(lambda x: x + fb.exp(fb.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).T * 0.1))
    assert_same(f(fb.ones(3, 2)), f.eager(fb.ones(3, 2)))


@pytest.mark.parametrize("turn", [lambda t: t[::-1], lambda t: t.T, lambda t: t.T.reshape(100, 100) * 1.0])
def test_copies_from_overlapping_views(turn):
    t = fb.tensor(np.arange(10_000, dtype=np.float32).reshape(100, 100))
    expected = turn(t).numpy().copy()
    fb.staged(lambda: (t.copy_(turn(t)), 0)[1])()
    assert same_bits(t, expected)


def test_a_tensor_that_is_captured_too_is_no_argument():
    w = fb.tensor([1.0, 2.0], requires_grad=True)
    opt = optim.SGD([w], lr=0.1)

    @fb.staged
    def step(v, x):
        opt.zero_grad()
        (v * x * w).sum().backward()
        opt.step()

    step(fb.ones(2, requires_grad=True), fb.ones(2))
    before = w.numpy().copy()
    with pytest.raises(fb.StagingError, match="as its own"):
        step(w, fb.ones(2))
    assert same_bits(before, w)


def test_the_same_leaf_twice_is_one():
    @fb.staged
    def f(x, y):
        x.grad = y.grad = None
        (x * 2.0 + y * 3.0).sum().backward()

    v, u = fb.ones(2, requires_grad=True), fb.ones(2, requires_grad=True)
    f(v, v)
    assert v.grad.numpy().tolist() == [5, 5]
    f(v, u)
    assert v.grad.numpy().tolist() == [2, 2] and u.grad.numpy().tolist() == [3, 3]
    f(u, u)
    assert u.grad.numpy().tolist() == [5, 5] and f.recordings == 2


def test_an_argument_with_a_past_is_refused_where_its_gradient_would_go_on():
    w = fb.ones(2, requires_grad=True)
    f = fb.staged(lambda h: (h * 3.0).sum().backward())
    with pytest.raises(fb.StagingError, match="go on through"):
        f(w * 2.0)
    assert fb.staged(lambda h: h * 3.0)(w * 2.0).numpy().tolist() == [6, 6], "without backward it is welcome"


def test_indices_that_the_function_changes_are_refused():
    index = fb.tensor(np.array([0, 1]))
    f = fb.staged(lambda x, new: (index.copy_(new), x[index])[1])
    with pytest.raises(fb.StagingError, match="before the first stage"):
        f(ROW, np.array([1, 2]))


def test_a_captured_array_that_is_copied_inside_is_seen_as_it_is():
    a = np.ones(5, np.float32)
    f = fb.staged(lambda x: x * fb.tensor(a))
    f(ROW)
    a[:] = 5
    assert_same(f(ROW), f.eager(ROW))


@pytest.mark.parametrize("array, use", [
    (np.array([1, 2, 3], np.int32), lambda x, a: x * fb.where(fb.from_numpy(a) > 1, 2.0, 3.0)),
    (np.array([1, 2, 3], ">f4"), lambda x, a: x * a),
    (np.array([1, 2, 3]), lambda x, a: x * fb.tensor(a, dtype="float32")),
    (np.array([True, False, True]), lambda x, a: x[a] * 2.0)])
def test_captured_arrays_that_are_read_at_recording_are_seen_when_they_change(array, use):
    a = array.copy()
    f = fb.staged(lambda x: use(x, a))
    x = fb.randn(3, rng=0)
    for _ in range(2):
        assert_same(f(x), f.eager(x))
    assert f.recordings == 1
    a[:] = np.roll(a, 1)
    assert_same(f(x), f.eager(x))
    assert f.recordings == 2 and "read at recording changed" in f.explain()


def test_gates_of_numpy_functions_see_one_layout():
    total = fb.define_gate("total", lambda x: x.sum(), lambda dy, y, x: np.full_like(x, dy))
    f = fb.staged(lambda x: total(x.T.reshape(100, 20, 50)))
    x = fb.randn(1000, 100, rng=0)
    assert_same(f(x), f.eager(x))
    g = fb.staged(lambda x: total(x))
    assert_same(g(np.asfortranarray(x.numpy())), g.eager(np.asfortranarray(x.numpy())))


def test_gates_of_numpy_functions_may_give_no_gradient():
    g = fb.define_gate("g", lambda x, w: x * w, lambda dy, y, x, w: (dy * w, None))
    for call in (lambda f: f(), lambda f: fb.staged(f)()):
        a, b = fb.ones(2, requires_grad=True), fb.ones(2, requires_grad=True)
        call(lambda a=a, b=b: g(a, b).sum().backward())
        assert a.grad.numpy().tolist() == [1, 1] and b.grad is None


def test_eager_gives_arrays_as_tensors_too():
    f = fb.staged(lambda x: (x.sum(), x**3, x.mean(0).detach()))
    x = np.random.default_rng(0).standard_normal((30, 20)).astype(np.float32)
    assert_same(f(x), f.eager(x))


def test_objects_that_are_equal_are_not_the_same():
    class Net:
        def __init__(self, w):
            self.w = fb.full((), w)

        def __eq__(self, other):
            return True

        def __hash__(self):
            return 0

        @fb.staged
        def f(self, x):
            return x * self.w

    assert Net(1.0).f(fb.ones(1)).item() == 1 and Net(5.0).f(fb.ones(1)).item() == 5


def test_an_epoch_with_captured_labels_beside_its_own():
    labels, scores = np.zeros(4, np.int64), fb.zeros(4, 3)
    f = fb.staged(lambda x, y: fb.cross_entropy(x, y) + fb.cross_entropy(scores, labels))
    assert f.epoch(np.zeros((8, 3), np.float32), np.zeros(8, int), batch_size=4) == pytest.approx(2 * np.log(3))


def test_an_epoch_that_is_refused_draws_nothing():
    stream = np.random.default_rng(0)
    before = stream.bit_generator.state
    f = fb.staged(lambda x, y: fb.cross_entropy(x, y))
    with pytest.raises(IndexError):
        f.epoch(np.zeros((8, 3), np.float32), np.full(8, 7), batch_size=4, shuffle=True, rng=stream)
    assert stream.bit_generator.state == before


def test_an_epochs_loss_does_not_depend_on_time():
    """However the epoch falls into slices, losses are added one after the other."""
    X, y = data.load_digits()
    X = np.repeat(X, 40, 0).astype(np.float64)
    w = fb.randn(64, 10, dtype="float64", rng=0)
    f = fb.staged(lambda x, labels: fb.cross_entropy(x @ w, labels))
    seen = {f.epoch(X, np.repeat(y, 40), batch_size=10) for _ in range(4)}
    assert len(seen) == 1


def test_empty_views_can_be_staged():
    f = fb.staged(lambda x: x[:0, ::2] @ fb.ones(2, 3))
    assert_same(f(fb.ones(3, 4)), f.eager(fb.ones(3, 4)))


def test_a_profiler_may_be_at_work():
    profile = cProfile.Profile()
    profile.enable()
    try:
        assert fb.staged(lambda x: x * 2.0)(fb.ones(1)).item() == 2
    finally:
        profile.disable()


def test_what_a_recording_would_do_for_good_is_refused():
    w = fb.ones(2, requires_grad=True)
    opt = optim.SGD([w], lr=0.1)

    def set_rate(x):
        opt.lr = 0.5
        return x * 1.0

    with pytest.raises(fb.StagingError, match="inside a staged function"):
        fb.staged(set_rate)(ROW)
    assert opt.lr == 0.1
    with pytest.raises(fb.StagingError, match="number that is given"):
        fb.staged(lambda x, a: fb.leaky_relu(x, a))(ROW, 0.1)


def test_programs_are_forgotten_while_others_look():
    f = fb.staged(lambda x: x * 2.0)
    stop = threading.Event()

    def forget():
        while not stop.is_set():
            f.reset()

    thread = threading.Thread(target=forget)
    thread.start()
    try:
        for n in range(1, 300):
            assert f(fb.ones(n % 7 + 1)).numpy().tolist() == [2.0] * (n % 7 + 1)
    finally:
        stop.set()
        thread.join()


def test_small_programs_in_repeat_lose_no_update():
    w = fb.zeros(1, requires_grad=True, dtype="float64")
    opt = optim.SGD([w], lr=1.0)

    def body():
        opt.zero_grad()
        (w * -1.0).sum().backward()
        opt.step()

    steps = [fb.staged(lambda: body()) for _ in range(2)]
    threads = [threading.Thread(target=lambda s=s: s.repeat(400_000)) for s in steps]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert w.item() == 800_000


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64"])
def test_labels_of_every_width_are_checked_at_each_call(dtype):
    x = fb.randn(6, 5, rng=0)
    f = fb.staged(lambda x, y: fb.cross_entropy(x, y))
    zero = fb.staged(lambda x, y: fb.cross_entropy(x, y, ignore_index=0))
    expected = fb.cross_entropy(x, np.array([0, 1, 2, 3, 4, 0])).item()
    for y in ([0, 1, 2, 3, 4, 0], [4, 4, 4, 4, 4, 4]):
        y = np.array(y, dtype)
        assert f(x, y).item() == fb.cross_entropy(x, y).item()
        assert zero(x, y).item() == fb.cross_entropy(x, y, ignore_index=0).item()
    for bad in (5, 100, *([-1, -7] if np.iinfo(dtype).min < 0 else [])):
        y = np.array([0, 1, 2, 3, bad, 0], dtype)
        with pytest.raises(IndexError, match=f"{bad} at row 4"):
            f(x, y)
        with pytest.raises(IndexError, match="row 4"):
            zero(x, y)
    assert f(x, np.array([0, 1, 2, 3, 4, 0], dtype)[::1]).item() == expected
    assert f(x, np.array([0, 9, 1, 9, 2, 9, 3, 9, 4, 9, 0, 9], dtype)[::2]).item() == expected
    assert f.recordings == 1
