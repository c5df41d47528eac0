"""Health: the numbers of each layer against NumPy, verdicts in words, the log of epochs, `fastbp health`."""
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from test_cli import fastbp, on_a_terminal
from test_gates import same_bits
from test_staged import net

import fastbp as fb
from fastbp import data, nn, optim
from fastbp.show.deep import Net
from fastbp.show.trace import Trace

OPTIMIZERS = {
    "sgd": lambda params: optim.SGD(params, lr=0.1), "adam": lambda params: optim.Adam(params, lr=0.01),
    "momentum": lambda params: optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01),
}


def model_and_step(kind="sgd", seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    model = nn.Sequential(nn.Linear(12, 9, rng=rng, dtype=dtype), nn.ReLU(), nn.Linear(9, 7, rng=rng, dtype=dtype),
                          nn.Tanh(), nn.Linear(7, 6, rng=rng, dtype=dtype), nn.Sigmoid(),
                          nn.Linear(6, 4, rng=rng, dtype=dtype))
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(4 * layer.weight.numpy())    # some units are zero, some saturated
    model[0].bias.copy_(np.float64([-99, -99] + [0] * 7))    # and two are dead
    opt = OPTIMIZERS[kind](model.parameters())

    def body(x, y):
        loss = fb.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    X = rng.standard_normal((16, 12)).astype(dtype)
    return model, opt, fb.staged(body), X, rng.integers(0, 4, 16)


def norm(x):
    return None if x is None else np.sqrt(np.sum(np.asarray(x, np.float64) ** 2))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_numbers_of_modules_are_those_of_numpy(kind, dtype):
    model, _, step, x, y = model_and_step(kind, dtype=dtype)
    other, _, twin, _, _ = model_and_step(kind, dtype=dtype)
    step(x, y), twin(x, y)
    health = step.health(x, y)
    outputs, h = [], fb.tensor(x)
    for layer in other:
        outputs.append(h := layer(h))
    loss = fb.cross_entropy(h, y)
    trace = Trace(loss)
    before = {id(p): p.numpy().copy() for p in other.parameters()}
    grads = {id(p): trace.gradient(p).numpy().copy() for p in other.parameters()}
    twin.eager(x, y)

    close = lambda value: pytest.approx(value, rel=1e-5, abs=1e-12)
    assert [(layer.name, layer.kind) for layer in health.layers] == [
        (str(n), type(m).__name__) for n, m in enumerate(other)]
    for layer, module, out in zip(health.layers, other, outputs, strict=True):
        values = out.numpy()
        assert layer.shape == values.shape
        assert layer.norm == close(norm(values)) and layer.rms == close(np.sqrt(np.mean(values ** 2)))
        assert layer.gradient == close(norm(trace.gradient(out).numpy()))
        assert layer.zeros == close((values == 0).mean())
        assert layer.dead == (close((values == 0).all(0).mean()) if isinstance(module, nn.ReLU) else None)
        flat = {nn.Tanh: np.abs(values) > 0.99, nn.Sigmoid: (values < 0.01) | (values > 0.99)}.get(type(module))
        assert layer.saturated == (None if flat is None else close(flat.mean()))
        assert [w.name for w in layer.weights] == (["weight", "bias"] if layer.kind == "Linear" else [])
        for w, p in zip(layer.weights, module.parameters(), strict=True):
            change = norm(p.numpy().astype(np.float64) - before[id(p)])
            assert w.shape == p.shape and w.norm == close(norm(before[id(p)]))
            assert w.gradient == close(norm(grads[id(p)])) and w.update == pytest.approx(change, rel=1e-4)
            assert w.ratio == pytest.approx(change / norm(before[id(p)]), rel=1e-4)
    relu, tanh, sigmoid = (health.layers[k] for k in (1, 3, 5))
    assert 0.2 < relu.zeros < 0.9 and 0.2 < relu.dead < 0.9 and 0 < tanh.saturated < 1 and 0 < sigmoid.saturated < 1
    assert health.inputs.norm == close(norm(x)) and health.inputs.rms == close(np.sqrt(np.mean(x ** 2)))
    g = [health.layers[k].gradient for k in (0, 2, 4, 6)]
    assert [name for name, _ in health.ratios] == ["0", "2", "4"]
    assert [r for _, r in health.ratios] == close([g[0] / g[1], g[1] / g[2], g[2] / g[3]])
    assert health.factor == close((g[0] / g[3]) ** (1 / 3)) and health.overall == close(g[0] / g[3])
    total = np.sqrt(sum(w.gradient ** 2 for w in health.layers[0].weights))
    assert health.layers[0].weight_gradient == close(total)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert not same_bits(p, q), "the twin took its step, the model did not"


def test_layers_of_a_plain_function():
    rng = np.random.default_rng(0)
    w1, b1, w2 = (fb.tensor(rng.standard_normal(s).astype(np.float32), requires_grad=True, name=n)
                  for s, n in (((5, 8), "w1"), (8, "b1"), ((8, 3), "w2")))
    gain = fb.tensor(np.float32([1, 2, 3]), requires_grad=True, name="gain")
    x, y = rng.standard_normal((10, 5)).astype(np.float32), rng.integers(0, 3, 10)

    @fb.staged
    def step(x, y):
        a = x @ w1 + b1
        h = fb.tanh(a)
        scores = h @ w2 * gain
        loss = fb.cross_entropy(scores, y) + 0.01 * (w1 * w1).sum() + fb.softplus(gain).sum()
        loss.backward()
        return loss

    layers = step.health(x, y).layers
    assert [(layer.name, layer.kind) for layer in layers] == [
        ("a", "matmul"), ("h", "tanh"), ("matmul 3", "matmul"), ("scores", "mul"), ("softplus 5", "softplus")]
    assert [[w.name for w in layer.weights] for layer in layers] == [["w1", "b1"], [], ["w2"], ["gain"], ["gain"]]
    a = x @ w1.numpy() + b1.numpy()
    assert layers[0].norm == pytest.approx(norm(a), rel=1e-5)
    assert layers[1].saturated == pytest.approx((np.abs(np.tanh(a)) > 0.99).mean())
    step.eager(x, y)
    assert layers[0].weights[0].gradient == pytest.approx(norm(w1.grad.numpy()), rel=1e-5)
    assert layers[3].weights[0].gradient == pytest.approx(norm(gain.grad.numpy()), rel=1e-5)
    assert layers[0].weights[0].update is None


def test_a_bias_belongs_to_the_layer_that_it_alone_reads_and_parts_of_losses_to_none():
    w, b = (fb.tensor(np.ones(s, np.float32), requires_grad=True, name=n) for s, n in (((4, 2), "w"), (2, "b")))
    x, target = np.ones((3, 4), np.float32), np.ones((3, 2), np.float32)

    @fb.staged
    def step(x):
        a = x @ w
        c = a + b
        loss = fb.binary_cross_entropy_with_logits(a * c, target)
        loss.backward()
        return loss

    layers = step.health(x).layers
    assert [(layer.name, layer.kind) for layer in layers] == [("a", "matmul"), ("c", "add")]
    assert layers[0].norm == pytest.approx(norm(np.full((3, 2), 4))) and layers[1].norm == pytest.approx(
        norm(np.full((3, 2), 5)))


def test_layers_of_gates_of_numpy_functions_and_groups():
    half = fb.define_gate("half", forward=lambda x: x / 2, backward=lambda dy, y, x: dy / 2)
    scale = fb.define_gate("scale", forward=lambda x, w: x * w, backward=lambda dy, y, x, w: (dy * w, (dy * x).sum(0)))

    class Half(nn.Module):
        def forward(self, x):
            return half(x)

    w = fb.tensor(np.float32([1, 2, 3]), requires_grad=True, name="w")
    model = nn.Sequential(nn.Linear(4, 3, rng=0), Half(), nn.ReLU())
    layer = fb.gate(lambda x: fb.tanh(x), "squash")
    step = fb.staged(lambda x: layer(scale(model(x), w)).sum().backward())
    layers = step.health(fb.randn(5, 4, rng=0)).layers
    assert [(layer.name, layer.kind) for layer in layers] == [
        ("0", "Linear"), ("1", "Half"), ("2", "ReLU"), ("scale 4", "scale"), ("tanh 5", "tanh")]
    assert all(layer.gradient > 0 for layer in layers) and layers[3].weights[0].gradient > 0


def test_layers_of_gradients_as_functions():
    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal((5, 3)).astype(np.float32), "b": np.zeros(3, np.float32)}
    x = rng.standard_normal((10, 5)).astype(np.float32)
    f = fb.staged(fb.value_and_grad(lambda params, x: fb.mean(fb.square(fb.sigmoid(x @ params["w"] + params["b"])))))
    layers = f.health(params, x).layers
    _, grads = f(params, x)
    assert [layer.kind for layer in layers] == ["matmul", "sigmoid"]
    assert [w.gradient for w in layers[0].weights] == pytest.approx(
        [norm(grads["w"].numpy()), norm(grads["b"].numpy())], rel=1e-5)


class Residual(nn.Module):
    """A module with gates of its own around modules, a module called twice, and one that takes two steps itself."""

    def __init__(self):
        self.fc = nn.Linear(4, 4, rng=0)
        self.two = TwoSteps()

    def forward(self, x):
        h = fb.relu(self.fc(x))
        return self.two(fb.relu(self.fc(h)) + x)


class TwoSteps(nn.Module):
    def __init__(self):
        self.w = nn.Parameter(np.ones((4, 4), np.float32))
        self.v = nn.Parameter(np.ones((4, 2), np.float32))

    def forward(self, x):
        return fb.tanh(x @ self.w) @ self.v


def test_layers_of_modules_that_do_more():
    model = Residual()
    step = fb.staged(lambda x: fb.mse_loss(model(x), np.zeros((3, 2), np.float32)).backward())
    layers = step.health(fb.randn(3, 4, rng=0)).layers
    assert [(layer.name, layer.kind) for layer in layers] == [
        ("fc", "Linear"), ("relu 2", "relu"), ("fc (2)", "Linear"), ("relu 4", "relu"), ("matmul 5", "matmul"),
        ("tanh 6", "tanh"), ("matmul 7", "matmul")]
    assert [w.name for w in layers[4].weights] == ["two.w"]


def test_health_leaves_everything_as_it_was():
    for kind in OPTIMIZERS:
        model, opt, step, x, y = model_and_step(kind)
        other, _, twin, _, _ = model_and_step(kind)
        step(x, y), twin(x, y)
        before = [p.numpy().tobytes() for p in model.parameters()]
        state = {k: {n: np.array(v) for n, v in s.items()} for k, s in opt.state_dict()["state"].items()}
        grads, first = [p.grad for p in model.parameters()], step.health(x, y)
        versions, second = [p._version for p in model.parameters()], step.health(x, y)    # a recording counts itself
        assert str(first) == str(second) and first.layers == second.layers
        assert [p.numpy().tobytes() for p in model.parameters()] == before
        after = opt.state_dict()["state"]
        assert all(np.array_equal(v, np.array(after[k][n])) for k, s in state.items() for n, v in s.items())
        assert [p.grad for p in model.parameters()] == grads
        assert [p._version for p in model.parameters()] == versions and step.recordings == 1
        assert step(x, y).item() == twin(x, y).item()
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert same_bits(p, q)


def test_health_adds_to_no_gradient():
    w = fb.tensor(np.ones((3, 2), np.float32), requires_grad=True)
    w.grad = fb.ones(3, 2)
    grad = w.grad
    step = fb.staged(lambda x: (x @ w).sum().backward())
    health = step.health(np.ones((4, 3), np.float32))
    assert w.grad is grad and grad.numpy().tolist() == [[1, 1]] * 3
    assert health.layers[0].weights[0].gradient == pytest.approx(norm(np.full((3, 2), 4)))


# --- epochs

@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_with_health_has_the_same_bits(kind, shuffle, threads):
    X, y = data.load_digits()
    X, y = X[:203], y[:203]
    before = fb.get_num_threads()
    fb.set_num_threads(threads)
    try:
        (a, _, step), (b, _, other) = net(kind, sizes=(64, 256, 200)), net(kind, sizes=(64, 256, 200))
        for seed in (1, 2):
            options = {"batch_size": 20, "shuffle": shuffle, "rng": seed}
            assert step.epoch(X, y, health=3, **options) == other.epoch(X, y, **options)
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert same_bits(p, q)
    finally:
        fb.set_num_threads(before)
    assert [n for n, _ in step.health_log] == [3, 6, 9, 12, 15, 18, 21]    # 11 batches an epoch, the last of 3 rows
    assert other.health_log == []


def test_the_log_has_the_healths_of_its_steps():
    X, y = data.load_digits()
    X, y = X[:50], y[:50]
    (_, _, step), (_, _, other) = net("adam"), net("adam")
    step.epoch(X, y, batch_size=20, health=1)
    for (n, health), start in zip(step.health_log, (0, 20, 40), strict=True):
        expected = other.health(X[start:start + 20], y[start:start + 20])
        assert n == 1 + start // 20 and health.layers == expected.layers and health.inputs == expected.inputs
        other(X[start:start + 20], y[start:start + 20])
    step.reset()
    assert step.health_log == []
    step.epoch(X, y, batch_size=20)
    step.epoch(X, y, batch_size=20, health=2)
    assert [n for n, _ in step.health_log] == [4, 6]


def test_the_log_keeps_the_newest(monkeypatch):
    monkeypatch.setattr(sys.modules["fastbp.staged"], "HEALTHS", 4)
    _, _, step = net("sgd")
    X, y = data.load_digits()
    step.epoch(X[:10], y[:10], batch_size=1, health=1)
    assert [n for n, _ in step.health_log] == [7, 8, 9, 10]


def test_an_epoch_with_health_and_labels_that_are_ignored():
    X, y = data.load_digits()
    X, y = X[:60], y[:60].astype(np.int64)
    y[5] = -100
    (a, _, step), (b, _, other) = net("sgd"), net("sgd")
    assert step.epoch(X, y, batch_size=20, health=2) == pytest.approx(other.epoch(X, y, batch_size=20), rel=1e-12)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert same_bits(p, q)
    assert [n for n, _ in step.health_log] == [2]


def test_an_epoch_of_a_method_with_health():
    class Net:
        def __init__(self):
            self.w = fb.tensor(np.ones((3, 1), np.float32), requires_grad=True)
            self.opt = optim.SGD([self.w], lr=0.1)

        @fb.staged
        def step(self, x):
            self.opt.zero_grad()
            loss = fb.square(x @ self.w).mean()
            loss.backward()
            self.opt.step()
            return loss

    one = Net()
    one.step.epoch(fb.randn(8, 3, rng=0), batch_size=2, health=2)
    assert [n for n, _ in one.step.health_log] == [2, 4]
    assert one.step.health(fb.randn(8, 3, rng=0)).layers[0].weights[0].update > 0


@pytest.mark.parametrize("k", [0, -1, 1.5, "2", True, float("nan")])
def test_epochs_refuse_a_health_that_is_no_number_of_steps(k):
    X, y = data.load_digits()
    model, _, step = net("sgd")
    before = [p.numpy().tobytes() for p in model.parameters()]
    with pytest.raises(ValueError, match="health can't be this"):
        step.epoch(X, y, batch_size=10, health=k)
    assert [p.numpy().tobytes() for p in model.parameters()] == before


def test_where_nothing_is_replayed(monkeypatch):
    step = fb.staged(lambda x: fb.tanh(x).sum())
    with pytest.raises(fb.StagingError, match="health"):
        fb.staged(lambda x: (step.health(x), x * 1.0)[1])(np.ones(3, np.float32))
    code = ("import numpy as np, fastbp as fb\nstep = fb.staged(lambda x: fb.tanh(x).sum())\nx = np.ones((4, 3))\n"
            "for call in (lambda: step.health(x), lambda: step.epoch(x, batch_size=2, health=1)):\n"
            "    try: call()\n    except fb.StagingError as e: print('FASTBP_STAGED=0' in str(e))\n")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                         env={**os.environ, "FASTBP_STAGED": "0"})
    assert out.stdout.split() == ["True", "True"], out.stderr
    with pytest.raises(fb.StagingError, match="no layer here"):
        fb.staged(lambda x: x + 1).health(np.ones(3, np.float32))


# --- verdicts

def verdict(activation, init, depth=20, width=16, seed=0, scale=1.0):
    return Net(depth, width, activation, init, 64, seed, scale).health.verdict


@pytest.mark.parametrize("seed", range(5))
def test_verdicts_of_deep_nets(seed):
    vanishing = Net(20, 16, "sigmoid", "normal", 64, seed, 1.0).health
    assert vanishing.verdict[0] == "vanishing" and 0.4 < vanishing.factor < 0.7
    assert f"factor of {vanishing.factor:.3g} a layer" in vanishing.advice[0]
    assert verdict("sigmoid", "xavier", 12, 100, seed) == ("vanishing",)
    for depth, width in ((20, 16), (20, 100), (6, 30)):
        assert verdict("relu", "he", depth, width, seed) == ("healthy",)
        assert verdict("tanh", "xavier", depth, width, seed) == ("healthy",)
    exploding = Net(20, 100, "relu", "normal", 64, seed, 1.0).health
    assert exploding.verdict == ("exploding",) and exploding.factor == pytest.approx(np.sqrt(50), rel=0.1)
    assert any("clipping" in sentence for sentence in exploding.advice)
    assert "saturated" in verdict("tanh", "normal", 20, 100, seed)
    scaled = Net(6, 30, "relu", "he", 64, seed, 1000.0).health
    assert scaled.verdict == ("scale of the inputs",) and "1,000 times larger" in scaled.advice[0]
    assert verdict("relu", "he", 6, 30, seed, scale=0.001) == ("scale of the inputs",)


def test_dead_units_are_found_and_no_vanishing_beside_them():
    model = nn.Sequential(*[layer for _ in range(5) for layer in (nn.Linear(8, 8, rng=0), nn.ReLU())])
    model[4].bias.copy_(np.full(8, -10))
    step = fb.staged(lambda x: fb.square(model(x)).sum().backward())
    health = step.health(fb.randn(20, 8, rng=0))
    assert health.verdict == ("dead",) and health.layers[5].dead == 1 and health.layers[5].zeros == 1
    assert health.overall == 0 or np.isnan(health.overall)
    assert "Layer 5: 100% of its units" in health.advice[0] and "leaky ReLU" in health.advice[0]


def test_gradients_whose_squares_are_lost_are_measured():
    health = Net(40, 100, "sigmoid", "xavier", 64, 0, 1.0).health
    assert 0 < health.layers[0].gradient < 1e-22 and health.verdict == ("vanishing",)


def test_nan_and_infinity_are_named():
    model = nn.Sequential(nn.Linear(3, 3, rng=0), nn.ReLU(), nn.Linear(3, 2, rng=0))
    step = fb.staged(lambda x: model(x).sum().backward())
    x = np.ones((2, 3), np.float32)
    x[1, 1] = np.inf
    health = step.health(x)
    assert health.verdict[0] == "not finite" and "detect_anomaly" in health.advice[0]
    json.loads(json.dumps(health.as_dict(), allow_nan=False))
    str(health)


def test_a_forward_pass_alone_has_no_gradients():
    model = nn.Sequential(nn.Linear(3, 3, rng=0), nn.ReLU(), nn.Linear(3, 2, rng=0))
    with fb.no_grad():
        health = fb.staged(model).health(np.ones((2, 3), np.float32))
    assert health.verdict == ("healthy",) and health.factor is None and health.ratios == []
    assert all(layer.gradient is None for layer in health.layers) and "no gradients" in health.advice[-1]


def test_steps_that_are_too_large_are_said():
    model, opt, step, x, y = model_and_step("sgd")
    assert not any("A step changes" in sentence for sentence in step.health(x, y).advice)
    opt.lr = 100
    assert any("A step changes the weights by" in sentence for sentence in step.health(x, y).advice)


# --- what a person sees

def test_a_table_of_80_columns():
    _, _, step, x, y = model_and_step("adam")
    lines = str(step.health(x, y)).splitlines()
    assert lines[0].split() == ["layer", "norm", "RMS", "gradient", "dw", "update/w", "zero", "dead", "flat"]
    assert lines[2].split()[:2] == ["0", "Linear"] and "verdict: " in str(step.health(x, y))
    assert max(map(len, lines)) <= 80
    one = step.health(x, y).as_dict()
    assert json.loads(json.dumps(one, allow_nan=False))["layers"][1]["kind"] == "ReLU"


def test_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    _, _, step, x, y = model_and_step()
    step.health(x, y).plot(tmp_path / "h.png")
    assert (tmp_path / "h.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_command_shows_bars_a_verdict_and_what_helps():
    result = fastbp("health", "--depth", 20, "--activation", "sigmoid", "--init", "normal")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    lines = result.stdout.splitlines()
    bars = [line for line in lines if re.match(r" +\d+ +\S+  ", line)]
    assert len(bars) == 21 and max(map(len, lines)) <= 80 and "\x1b" not in result.stdout
    widths = [len(line) for line in bars]
    assert widths == sorted(widths) and widths[-1] > widths[0] + 30
    assert "verdict: vanishing" in lines and "What usually helps" in result.stdout
    factor = float(re.search(r"by a factor of ([\d.]+) a\s+layer", result.stdout)[1])
    norms = [float(line.split()[1]) for line in bars]
    assert factor == pytest.approx((norms[0] / norms[-1]) ** (1 / 20), rel=0.01)
    healthy = fastbp("health").stdout
    assert "20 relu layers of 16 units, He weights" in healthy and "verdict: healthy" in healthy


def test_the_command_writes_plain_characters_where_others_do_not_fit():
    plain = subprocess.run([sys.executable, "-m", "fastbp", "health", "--depth", "3"], capture_output=True,
                           env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert plain.returncode == 0 and b"####" in plain.stdout and plain.stdout.isascii()
    fine = subprocess.run([sys.executable, "-m", "fastbp", "health", "--depth", "3"], capture_output=True,
                          env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert "█" in fine.stdout.decode()


@pytest.mark.parametrize("extra, colored", [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colour_on_a_terminal_alone(extra, colored):
    seen = on_a_terminal("-m", "fastbp", "health", "--depth", "2", **extra)
    assert b"healthy" in seen and (b"\x1b[" in seen) == colored


def test_activations_side_by_side(tmp_path):
    result = fastbp("health", "--compare", "--depth", 12, "--json", tmp_path / "all.json")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["sigmoid,", "xavier", "tanh,", "xavier", "relu,", "he"] and max(map(len, lines)) <= 80
    assert [line.split()[2] for line in lines[-3:]] == ["vanishing", "healthy", "healthy"]
    assert all(re.search(r"factor [\d.]+ a layer", line) for line in lines[-3:])
    found = json.loads((tmp_path / "all.json").read_text())
    assert list(found) == ["sigmoid", "tanh", "relu"] and found["relu"]["init"] == "he"
    assert found["sigmoid"]["verdict"] == ["vanishing"] and len(found["tanh"]["layers"]) == 25


def test_the_seed_sets_every_number():
    def out(seed):
        return fastbp("health", "--depth", 3, "--seed", seed).stdout
    assert out(1) == out(1) != out(2)


def test_the_command_draws_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    for name, args in (("one", ()), ("all", ("--compare",))):
        result = fastbp("health", "--depth", 4, "--plot", tmp_path / f"{name}.png", *args)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    bad = fastbp("health", "--depth", 4, "--plot", tmp_path / "x.nothing")
    assert bad.returncode == 2 and len(bad.stderr.splitlines()) == 1 and "Traceback" not in bad.stderr


def test_a_plot_without_matplotlib_is_one_line(tmp_path):
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise ImportError('none here')\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = fastbp("health", "--plot", tmp_path / "h.png", env={**os.environ, "PYTHONPATH": path})
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "fastbp health: plots need matplotlib: pip install 'fastbp[plot]'\n"


@pytest.mark.parametrize("args, says", [
    (["--depth", "0"], "--depth"), (["--depth", "many"], "'many' is no depth"), (["--depth", "1001"], "--depth"),
    (["--width", "-1"], "--width"), (["--width", "5000"], "--width"), (["--activation", "cos"], "cos"),
    (["--init", "big"], "big"), (["--batch", "0"], "--batch"), (["--seed", "-1"], "--seed"),
    (["--scale", "nan"], "--scale"), (["--scale", "inf"], "--scale"), (["--json"], "--json"),
    (["--json", "no/such/folder/x.json"], "no/such/folder"),
])
def test_a_wrong_argument_gets_one_line_and_exit_code_2(args, says):
    result = fastbp("health", *args)
    assert result.returncode == 2 and says in result.stderr and len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert result.stderr.startswith("fastbp health: ")


def test_help_names_the_measure():
    result = fastbp("health", "--help")
    assert result.returncode == 0 and "usage: fastbp health" in result.stdout and "--compare" in result.stdout
