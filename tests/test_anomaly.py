"""detect_anomaly: the first stage that gives NaN or infinity, forward or backward."""
import re
import threading

import numpy as np
import pytest
from test_gates import same_bits
from test_staged import net

import fastbp as fb
from fastbp import data, nn, optim


def x_of(*values, name="x"):
    return fb.tensor(list(values), requires_grad=True, name=name)


def here(match):
    """The line of this file that an error names."""
    line = int(re.search(r"where: .*test_anomaly\.py:(\d+)", str(match.value))[1])
    with open(__file__) as file:
        return file.readlines()[line - 1].strip()


@pytest.mark.parametrize("function, says, fix", [
    (lambda x: fb.log(x * 2.0), "log gave infinity: (2) t2 = log(t1), y = ln x", "log_softmax"),
    (lambda x: x / x, "div gave NaN: (1) t1 = div(x, x)", "epsilon to the divisor"),
    (lambda x: 1 / x, "div gave infinity: (1) t1 = div(", "epsilon to the divisor"),
    (lambda x: fb.exp(x * 100), "exp gave infinity: (2) t2 = exp(t1)", "subtract the maximum"),
    (lambda x: fb.sqrt(x - 1), "sqrt gave NaN: (2) t2 = sqrt(t1)", "clip"),
    (lambda x: (x * 1e30) @ (x * 1e30), "matmul gave infinity", "beyond the dtype's range"),
])
def test_a_forward_stage_is_named_with_its_inputs_and_a_fix(function, says, fix):
    x = x_of(0.0, 1.0, 4.0)
    function(x)    # nothing is checked outside
    with fb.detect_anomaly(), pytest.raises(fb.AnomalyError) as match:
        function(x)
    assert str(match.value).startswith(says)
    assert fix in str(match.value)
    assert here(match).startswith("(lambda x")
    assert isinstance(match.value, FloatingPointError)


def test_the_ranges_of_the_inputs():
    x = fb.tensor(np.float32([[0, -2], [3, 5]]), requires_grad=True, name="x")
    with fb.detect_anomaly(), pytest.raises(fb.AnomalyError, match=r"got:      x \(2, 2\) from -2 to 5\n"):
        fb.log(x)
    x = fb.tensor(np.float32([1, np.nan, 2, np.nan, np.inf]), name="data")
    with fb.detect_anomaly(), pytest.raises(fb.AnomalyError) as match:
        fb.tanh(x)
    assert "data (5,) from 1 to 2, 2 NaN, 1 infinite" in str(match.value) and "look at the data" in str(match.value)


def test_a_backward_stage_is_named_with_the_line_that_applied_it():
    x = x_of(0.0, 1.0)
    with fb.detect_anomaly():
        y = fb.sqrt(x)    # this line
        loss = y.sum()
        with pytest.raises(fb.AnomalyError) as match:
            loss.backward()
    assert str(match.value).startswith("backward of (1) t1 = sqrt(x) gave infinity as the gradient for x\n")
    assert here(match) == "y = fb.sqrt(x)    # this line" and "upstream (2,) from 1 to 1" in str(match.value)
    assert x.grad is None
    with fb.detect_anomaly(), pytest.raises(fb.AnomalyError, match="backward of .* = sqrt"):
        fb.grad(lambda x: fb.sqrt(x).sum())(np.zeros(3))


def test_what_a_vjp_leaves_out_is_no_anomaly():
    with fb.detect_anomaly():
        slopes = fb.grad(lambda x: fb.pow(x, 2.0).sum() + fb.pow(x, x_of(2.0, 3.0)).sum())(np.float32([0, 2]))
        assert np.isfinite(slopes.numpy()).all()
        scores = fb.tensor(np.float32([[0, -np.inf], [1, 2]]), requires_grad=True)
        fb.log_softmax(scores).numpy(), fb.where(np.array([True, False]), scores, -float("inf"))
        assert fb.softmax(scores).numpy()[0].tolist() == [1, 0]


def test_a_module_is_named():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    model[0].weight.copy_(np.full((4, 3), 3e38))
    with fb.detect_anomaly(), pytest.raises(fb.AnomalyError, match=r"^matmul gave infinity: .*, in Linear\n"):
        model(np.full((2, 3), 10, np.float32))


def test_gates_of_numpy_functions_and_updates_are_checked():
    half = fb.define_gate("half", forward=lambda x: x / 0, backward=lambda dy, y, x: dy / 2)
    slope = fb.define_gate("slope", forward=lambda x: x, backward=lambda dy, y, x: dy * np.nan)
    with np.errstate(all="ignore"), fb.detect_anomaly():
        with pytest.raises(fb.AnomalyError, match="half gave infinity"):
            half(x_of(1.0))
        with pytest.raises(fb.AnomalyError, match=r"backward of \(\d\) t\d = slope\(x\) gave NaN"):
            slope(x_of(1.0)).sum().backward()
    w = x_of(1.0, name="w")
    opt = optim.SGD([w], lr=1e30)
    w.grad = fb.tensor([1e30])
    with fb.detect_anomaly(), pytest.raises(fb.AnomalyError, match="sgd gave infinity: an update"):
        opt.step()


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_healthy_staged_steps_have_the_same_bits(kind):
    X, y = data.load_digits()
    (a, _, step), (b, _, other) = net(kind), net(kind)
    for n in range(6):
        rows = slice(16 * n, 16 * n + 16)
        expected = step(X[rows], y[rows])
        with fb.detect_anomaly():
            found = other(X[rows], y[rows])
        assert same_bits(expected, found)
        assert all(p.grad is None for p in b.parameters()), "as after a replay"
    with fb.detect_anomaly():
        assert other.repeat(2, X[:9], y[:9]).item() == step.repeat(2, X[:9], y[:9]).item()
        assert other.epoch(X[:50], y[:50], batch_size=20) == step.epoch(X[:50], y[:50], batch_size=20)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert same_bits(p, q)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("late", [False, True])
def test_a_staged_step_that_raises_leaves_everything_as_it_was(kind, late):
    X, y = data.load_digits()
    model, opt, _ = net(kind)
    kept = x_of(1.0, 2.0, name="kept")
    kept.grad = fb.tensor([3.0, 4.0])

    @fb.staged
    def step(x, labels, low):
        scores = model(x)
        loss = fb.cross_entropy(scores, labels) + (kept * 2.0).sum() + fb.randn(3).sum() * 0.0
        if not late:
            loss = loss + fb.log(low)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss + fb.log(low)    # the stage

    step(X[:8], y[:8], fb.tensor(1.0))
    grad = kept.grad
    before = [p.numpy().tobytes() for p in model.parameters()]
    state = {k: {n: np.array(v) for n, v in s.items()} for k, s in opt.state_dict()["state"].items()}
    grads = [p.grad for p in model.parameters()]
    fb.manual_seed(3)
    with fb.detect_anomaly(), pytest.raises(fb.AnomalyError, match="log gave infinity") as match:
        step(X[:8], y[:8], fb.tensor(0.0))
    assert here(match).endswith("# the stage") == late
    assert [p.numpy().tobytes() for p in model.parameters()] == before
    assert [p.grad for p in model.parameters()] == grads
    assert kept.grad is grad
    after = opt.state_dict()["state"]
    assert all(np.array_equal(v, np.array(after[k][n])) for k, s in state.items() for n, v in s.items())
    drawn = fb.randn(2).numpy().copy()
    fb.manual_seed(3)
    assert np.array_equal(drawn, fb.randn(2).numpy())


def test_staged_functions_inside_a_staged_function_are_inlined():
    w = x_of(2.0, 3.0, name="w")
    inner = fb.staged(lambda x: fb.log(x * w))

    @fb.staged
    def outer(x):
        loss = inner(x).sum()
        loss.backward()
        return loss

    with fb.detect_anomaly():
        outer(np.float32([1, 2]))
        assert w.grad.numpy().tolist() == pytest.approx([0.5, 1 / 3])
        with pytest.raises(fb.AnomalyError, match="log gave infinity"):
            outer(np.float32([0, 2]))
    assert w.grad.numpy().tolist() == pytest.approx([0.5, 1 / 3])


def test_nested_contexts_decorators_and_errors():
    zero = x_of(0.0)
    with fb.detect_anomaly():
        with fb.detect_anomaly():
            pass
        with pytest.raises(fb.AnomalyError):
            fb.log(zero)
        with pytest.raises(KeyError), fb.detect_anomaly():
            raise KeyError
        with pytest.raises(fb.AnomalyError):
            fb.log(zero)
    fb.log(zero)

    @fb.detect_anomaly()
    def function(x):
        """Its text."""
        return fb.log(x)

    for _ in range(2):
        with pytest.raises(fb.AnomalyError):
            function(zero)
        fb.log(zero)
    assert function.__name__ == "function" and function.__doc__ == "Its text."
    assert function(x_of(1.0)).item() == 0


def test_other_threads_are_not_checked():
    zero, found = x_of(0.0), {}
    inside, leave = threading.Event(), threading.Event()

    @fb.detect_anomaly()
    def checked():
        inside.set()
        leave.wait(10)
        try:
            fb.log(zero)
        except fb.AnomalyError as problem:
            found["checked"] = str(problem)

    thread = threading.Thread(target=checked)
    thread.start()
    assert inside.wait(10)
    fb.log(zero)
    step = fb.staged(lambda x: fb.log(x))
    assert step(np.zeros(1, np.float32)).item() == -np.inf and step.recordings == 1
    leave.set()
    thread.join()
    assert found["checked"].startswith("log gave infinity: (1)")


def test_threads_share_a_decorated_function():
    zero, turns = x_of(0.0), [threading.Event() for _ in range(3)]
    checked = []

    @fb.detect_anomaly()
    def function(mine, other):
        turns[mine].set()
        assert turns[other].wait(10)

    def nested():
        with fb.detect_anomaly():
            function(0, 1)
            try:
                fb.log(zero)
            except fb.AnomalyError:
                checked.append(True)
        turns[2].set()

    thread = threading.Thread(target=nested)
    thread.start()
    assert turns[0].wait(10)    # nested is inside; this thread enters after it, and leaves after it
    function(1, 2)
    thread.join()
    fb.log(zero)
    assert checked == [True]


def test_no_replay_and_no_measurement_inside():
    step = fb.staged(lambda x: fb.tanh(x))
    x = np.ones(3, np.float32)
    with fb.detect_anomaly():
        for call in (step.profile, step.health):
            with pytest.raises(fb.StagingError, match="detect_anomaly"):
                call(x)
    assert "matmul" not in str(step.profile(x, seconds=0.01))


def test_results_own_their_memory_as_those_of_a_replay():
    w = fb.tensor(np.ones(3), requires_grad=True)
    opt = optim.SGD([w], lr=0.1)

    @fb.staged
    def step(x):
        loss = (w * x).sum()
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss, w, x

    x = np.ones(3)
    replayed = step(x)
    with fb.detect_anomaly():
        checked = step(x)
    assert [t.requires_grad for t in checked] == [t.requires_grad for t in replayed]
    before = checked[1].numpy().copy()
    step(x)
    assert np.array_equal(checked[1].numpy(), before)
    checked[2].numpy()[0] = 99
    assert x[0] == 1
    with pytest.raises(fb.StagingError, match="no graph"):
        checked[0].backward()
