"""Averages of weights: against NumPy and PyTorch, inside a staged step and beside it, states, and what is refused."""
import copy

import numpy as np
import pytest
from test_gates import same_bits

import fastbp as fb
from fastbp import nn, optim
from fastbp.optim.swa_utils import (
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_avg_fn,
    get_swa_multi_avg_fn,
)


class Net(nn.Module):
    """Two layers; a buffer of floats that moves with each call, and one of integers."""

    def __init__(self, wide=20, dtype="float32"):
        self.hidden = nn.Linear(64, wide, rng=0, dtype=dtype)
        self.out = nn.Linear(wide, 10, rng=1, dtype=dtype)
        self.register_buffer("seen", fb.zeros(3, dtype=dtype))
        self.register_buffer("kind", fb.tensor(np.array(7)))
        self.index = nn.Parameter(fb.tensor(np.arange(3)), requires_grad=False)

    def forward(self, x):
        self.seen.copy_(self.seen * 0.5 + 1.0)
        return self.out(fb.tanh(self.hidden(x)))


def in_place(averaged, current, num_averaged):
    for a, p in zip(averaged, current, strict=True):
        a.copy_(a + (p - a) / (num_averaged + 2))


AVERAGES = {
    "swa": lambda: {}, "swa-avg": lambda: dict(avg_fn=get_swa_avg_fn()),
    "swa-multi": lambda: dict(multi_avg_fn=get_swa_multi_avg_fn()),
    "ema": lambda: dict(multi_avg_fn=get_ema_multi_avg_fn(0.9)), "ema-avg": lambda: dict(avg_fn=get_ema_avg_fn(0.9)),
    "ema-buffers": lambda: dict(multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True),
    "own": lambda: dict(avg_fn=lambda a, p, n: a + (p - a) / (n + 2)),
    "own-in-place": lambda: dict(multi_avg_fn=in_place, use_buffers=True),
}


def training(average, wide=20, dtype="float32", inside=True):
    """(model, its average, a step, which averages if `inside`)"""
    model = Net(wide, dtype)
    opt = optim.Adam([*model.hidden.parameters(), *model.out.parameters()], lr=0.05)
    averaged = AveragedModel(model, **AVERAGES[average]())

    @fb.staged
    def step(x, y):
        loss = nn.functional.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if inside:
            averaged.update_parameters(model)
        return loss

    return model, averaged, step


def batch(dtype="float32"):
    return np.random.default_rng(0).normal(size=(200, 64)).astype(dtype), np.arange(200) % 10


# Of the next, behind n; others 1 / (n + 1).
WEIGHTS = {"ema": lambda n: 0.1, "ema-avg": lambda n: 0.1, "ema-buffers": lambda n: 0.25,
           "own": lambda n: 1 / (n + 2), "own-in-place": lambda n: 1 / (n + 2)}


@pytest.mark.parametrize("average", AVERAGES)
def test_the_average_is_that_of_the_formula(average):
    model, averaged, step = training(average, dtype="float64", inside=False)
    wanted = {}
    for n in range(20):
        step.eager(*batch("float64"))
        averaged.update_parameters(model)
        weight = WEIGHTS.get(average, lambda n: 1 / (n + 1))(n) if n else 1
        for name, p in (*model.named_parameters(), ("seen", model.seen)):
            copied = name == "seen" and not averaged.use_buffers
            wanted[name] = p.numpy() if copied else wanted.get(name, 0) + weight * (p.numpy() - wanted.get(name, 0))
            np.testing.assert_allclose(averaged.state_dict()[f"module.{name}"].numpy(), wanted[name], rtol=1e-12)
        assert averaged.n_averaged.item() == n + 1


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("wide", [20, 300])
@pytest.mark.parametrize("average", AVERAGES)
def test_inside_a_staged_step_gate_by_gate_and_beside_it(average, wide, dtype, threads):
    before = fb.get_num_threads()
    fb.set_num_threads(threads)
    try:
        (_, a, step), (_, b, other), (model, c, plain) = (
            training(average, wide, dtype, inside) for inside in (True, True, False))
        for _ in range(5):
            step(*batch(dtype))
            other.eager(*batch(dtype))
            plain(*batch(dtype))
            c.update_parameters(model)
    finally:
        fb.set_num_threads(before)
    assert step.recordings == 1
    states = a.state_dict(), b.state_dict(), c.state_dict()
    for name, x in states[0].items():
        assert all(same_bits(x, state[name]) for state in states[1:]), name
    assert states[0]["n_averaged"].item() == 5 and states[0]["n_averaged"].dtype == np.int64
    assert states[0]["module.kind"].item() == 7
    assert a.module.hidden.weight.strides == model.hidden.weight.strides


def test_the_functions_themselves():
    a, p = (fb.tensor(np.arange(3.0) + k) for k in (1, 5))
    mean = a.numpy() * 0.75 + p.numpy() * 0.25
    for make, given in ((get_ema_avg_fn, (0.75,)), (get_swa_avg_fn, ())):
        np.testing.assert_allclose(make(*given)(a, p, 3).numpy(), mean, rtol=1e-15)
    for make, given in ((get_ema_multi_avg_fn, (0.75,)), (get_swa_multi_avg_fn, ())):
        changed = fb.tensor(a.numpy())
        assert make(*given)([changed], [p], 3) is None
        np.testing.assert_allclose(changed.numpy(), mean, rtol=1e-15)


def test_the_first_update_copies():
    model, averaged, step = training("ema", inside=False)
    step(*batch())
    assert not same_bits(averaged.module.hidden.weight, model.hidden.weight)
    averaged.update_parameters(model)
    for a, p in zip(averaged.module.parameters(), model.parameters(), strict=True):
        assert same_bits(a, p)
    step(*batch())
    averaged.update_parameters(model)
    assert not same_bits(averaged.module.hidden.weight, model.hidden.weight)


def test_the_average_runs_in_the_sweep_of_the_update():
    layer = nn.Linear(300, 300)
    opt, averaged = optim.Adam(layer.parameters()), AveragedModel(layer)

    @fb.staged
    def step(x):
        opt.zero_grad()
        layer(x).square().mean().backward()
        opt.step()
        averaged.update_parameters(layer)

    step(fb.ones(200, 300))
    plan = step.replays[0].about.plan
    groups = [[s.name for s in group.stages if s.form != "view"]
              for group in dict.fromkeys(s.group for s in plan.stages if s.group is not None)]
    assert ["matmul", "adam", "average"] in groups


def test_whole_epochs_and_new_recordings():
    X, y = batch()
    _, averaged, step = training("swa")
    _, expected, other = training("swa")
    for _ in range(3):
        step.epoch(X, y, batch_size=50)
    for _ in range(3):
        for start in range(0, 200, 50):
            other.eager(X[start:start + 50], y[start:start + 50])
    assert averaged.n_averaged.item() == 12 and step.recordings == 1
    for a, b in zip(averaged.parameters(), expected.parameters(), strict=True):
        assert same_bits(a, b)
    step.health(X[:50], y[:50])    # puts back what it changed
    assert averaged.n_averaged.item() == 12
    averaged.n_averaged = fb.tensor(np.array(0))    # another buffer: the next update copies
    step(X[:50], y[:50])
    assert averaged.n_averaged.item() == 1 and step.recordings == 2


def test_a_restored_average_goes_on_with_the_same_bits(tmp_path):
    for average in ("swa", "ema-buffers", "own"):
        model, averaged, step = training(average, inside=False)
        for _ in range(4):
            step(*batch())
            averaged.update_parameters(model)
        fb.save(tmp_path / "average", averaged.state_dict())
        other = AveragedModel(Net(), **AVERAGES[average]())
        other.update_parameters(Net())
        other.load_state_dict(fb.load(tmp_path / "average"))
        again = copy.deepcopy(averaged)
        step(*batch())
        for one in (averaged, other, again):
            one.update_parameters(model)
        for a, b, c in zip(averaged.state_dict().values(), other.state_dict().values(), again.state_dict().values(),
                           strict=True):
            assert same_bits(a, b) and same_bits(a, c)


def test_it_predicts_as_its_module():
    model, averaged, step = training("swa")
    step(*batch())
    with fb.no_grad():
        x = fb.tensor(batch()[0][:3])
        assert same_bits(averaged(x), averaged.module(x))
    assert not any(p is q for p in averaged.parameters() for q in model.parameters())


def test_refused():
    model = Net()
    with pytest.raises(ValueError, match="two functions"):
        AveragedModel(model, avg_fn=get_swa_avg_fn(), multi_avg_fn=get_swa_multi_avg_fn())
    for decay in (-0.1, 1.1, float("nan")):
        for make in (get_ema_avg_fn, get_ema_multi_avg_fn):
            with pytest.raises(ValueError, match="decay"):
                make(decay)
    averaged = AveragedModel(model)
    for other in (Net(30), nn.Linear(3, 2), Net(dtype="float64")):
        with pytest.raises(ValueError, match="another model"):
            averaged.update_parameters(other)
    assert averaged.n_averaged.item() == 0


@pytest.mark.parametrize("average", ["swa", "swa-avg", "ema", "ema-avg", "ema-buffers"])
def test_against_pytorch(average):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs_of = torch.optim.swa_utils
    kw = {"swa": {}, "swa-avg": dict(avg_fn=theirs_of.get_swa_avg_fn()),
          "ema": dict(multi_avg_fn=theirs_of.get_ema_multi_avg_fn(0.9)),
          "ema-avg": dict(avg_fn=theirs_of.get_ema_avg_fn(0.9)),
          "ema-buffers": dict(multi_avg_fn=theirs_of.get_ema_multi_avg_fn(0.75), use_buffers=True)}[average]

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = torch.nn.Linear(64, 20).double(), torch.nn.Linear(20, 10).double()
            self.register_buffer("seen", torch.zeros(3).double())
            self.register_buffer("kind", torch.tensor(7))
            self.index = torch.nn.Parameter(torch.arange(3), requires_grad=False)

    model, averaged, step = training(average, dtype="float64")
    twin = Theirs()
    theirs = theirs_of.AveragedModel(twin, **kw)
    for n in range(60):
        if n == 30:    # each goes on from the other's state
            ours = averaged.state_dict()
            assert set(ours) == set(theirs.state_dict())
            averaged.load_state_dict(theirs.state_dict())
            theirs.load_state_dict({name: torch.from_numpy(x.numpy()) for name, x in ours.items()})
        step(*batch("float64"))
        twin.load_state_dict({name: torch.from_numpy(x.numpy()) for name, x in model.state_dict().items()})
        theirs.update_parameters(twin)
        for name, x in theirs.state_dict().items():
            np.testing.assert_allclose(averaged.state_dict()[name].numpy(), x.numpy(), rtol=1e-12, atol=1e-14)
