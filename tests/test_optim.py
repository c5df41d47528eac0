"""Optimizers: trajectories against NumPy in float64, options, state, and what is refused."""
import copy
import math
import pickle

import numpy as np
import pytest

import fastbp as fb
from fastbp import nn, optim
from fastbp_ext.tensor import from_numpy

# --- the oracles: PyTorch's update rules for one array, in float64


def sgd(w, gradients, lr, momentum=0, weight_decay=0, nesterov=False):
    w, b = w.copy(), None
    for g in gradients:
        d = g(w) + weight_decay * w
        if momentum:
            b = d.copy() if b is None else momentum * b + d
            d = d + momentum * b if nesterov else b
        w -= lr * d
        yield w


def adam(w, gradients, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, decoupled=False):
    w, m, v = w.copy(), np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        d = g(w)
        if decoupled:
            w *= 1 - lr * weight_decay
        else:
            d = d + weight_decay * w
        m = betas[0] * m + (1 - betas[0]) * d
        v = betas[1] * v + (1 - betas[1]) * d * d
        w -= lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        yield w


def nadam(w, gradients, lr, betas=(0.9, 0.999), eps=1e-8, momentum_decay=4e-3):
    w, m, v, product = w.copy(), np.zeros_like(w), np.zeros_like(w), 1.0
    for t, g in enumerate(gradients, 1):
        d = g(w)
        mu, ahead = (betas[0] * (1 - 0.5 * 0.96 ** (n * momentum_decay)) for n in (t, t + 1))
        product *= mu
        m = betas[0] * m + (1 - betas[0]) * d
        v = betas[1] * v + (1 - betas[1]) * d * d
        look = ahead * m / (1 - product * ahead) + (1 - mu) * d / (1 - product)
        w -= lr * look / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        yield w


def radam(w, gradients, lr, betas=(0.9, 0.999), eps=1e-8):
    w, m, v, most = w.copy(), np.zeros_like(w), np.zeros_like(w), 2 / (1 - betas[1]) - 1
    for t, g in enumerate(gradients, 1):
        d = g(w)
        m = betas[0] * m + (1 - betas[0]) * d
        v = betas[1] * v + (1 - betas[1]) * d * d
        rho = most - 2 * t * betas[1] ** t / (1 - betas[1] ** t)
        r = 1.0
        if rho > 5:
            r = math.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
            r = r * math.sqrt(1 - betas[1] ** t) / (np.sqrt(v) + eps)
        w -= lr * r * m / (1 - betas[0] ** t)
        yield w


def rmsprop(w, gradients, lr, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False):
    w, s, a, b = w.copy(), np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for g in gradients:
        d = g(w) + weight_decay * w
        s = alpha * s + (1 - alpha) * d * d
        a = alpha * a + (1 - alpha) * d
        d = d / (np.sqrt(s - a * a if centered else s) + eps)
        b = momentum * b + d
        w -= lr * b
        yield w


def adagrad(w, gradients, lr, lr_decay=0, weight_decay=0, initial_accumulator_value=0, eps=1e-10):
    w, s = w.copy(), np.full_like(w, initial_accumulator_value)
    for t, g in enumerate(gradients):
        d = g(w) + weight_decay * w
        s += d * d
        w -= lr / (1 + t * lr_decay) * d / (np.sqrt(s) + eps)
        yield w


RULES = {
    "sgd": (optim.SGD, sgd, dict(lr=0.1)),
    "sgd-decay": (optim.SGD, sgd, dict(lr=0.1, weight_decay=0.05)),
    "momentum": (optim.SGD, sgd, dict(lr=0.05, momentum=0.9)),
    "momentum-decay": (optim.SGD, sgd, dict(lr=0.05, momentum=0.8, weight_decay=0.05)),
    "nesterov": (optim.SGD, sgd, dict(lr=0.05, momentum=0.9, nesterov=True)),
    "nesterov-decay": (optim.SGD, sgd, dict(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.05)),
    "adam": (optim.Adam, adam, dict(lr=0.01)),
    "adam-betas": (optim.Adam, adam, dict(lr=0.02, betas=(0.7, 0.8), eps=1e-3)),
    "adam-decay": (optim.Adam, adam, dict(lr=0.01, weight_decay=0.1)),
    "adamw": (optim.AdamW, lambda *a, **k: adam(*a, decoupled=True, **k), dict(lr=0.01, weight_decay=0.1)),
    "nadam": (optim.NAdam, nadam, dict(lr=0.01)),
    "nadam-options": (optim.NAdam, nadam, dict(lr=0.02, betas=(0.7, 0.8), eps=1e-3, momentum_decay=0.1)),
    "radam": (optim.RAdam, radam, dict(lr=0.01)),
    "radam-options": (optim.RAdam, radam, dict(lr=0.02, betas=(0.7, 0.9), eps=1e-3)),
    "rmsprop": (optim.RMSprop, rmsprop, dict(lr=0.01)),
    "rmsprop-momentum": (optim.RMSprop, rmsprop, dict(lr=0.01, alpha=0.9, eps=1e-3, momentum=0.8, weight_decay=0.1)),
    "rmsprop-centered": (optim.RMSprop, rmsprop, dict(lr=0.01, centered=True)),
    "rmsprop-both": (optim.RMSprop, rmsprop, dict(lr=0.01, centered=True, momentum=0.9)),
    "adagrad": (optim.Adagrad, adagrad, dict(lr=0.1)),
    "adagrad-options": (optim.Adagrad, adagrad, dict(
        lr=0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.5, eps=1e-3)),
}


def quartic(i, noise):
    """The gradient of sum (w^4 / 4 - w^2 / 2 + c w), c different at each step."""
    return lambda w: w ** 3 - w + noise[i]


@pytest.mark.parametrize("layout", ["c", "transposed"])
@pytest.mark.parametrize("rule", RULES)
def test_trajectory_equals_oracle(rule, layout):
    kind, oracle, options = RULES[rule]
    rng = np.random.default_rng(1)
    start, noise = rng.normal(size=(5, 7)), rng.normal(size=(100, 5, 7))
    p = fb.tensor(start.T).T.detach() if layout == "transposed" else fb.tensor(start)
    p.requires_grad_()
    opt = kind([p], **options)
    for i, expected in enumerate(oracle(start, [quartic(i, noise) for i in range(100)], **options)):
        opt.zero_grad()
        (p ** 4 / 4 - p ** 2 / 2 + p * noise[i]).sum().backward()
        opt.step()
        np.testing.assert_allclose(p.numpy(), expected, rtol=1e-12, atol=1e-12)
    for state in opt.state[p].values():
        assert state.ndim == 0 or state.strides == p.strides


def test_defaults_are_pytorchs():
    p = [fb.ones(2, requires_grad=True)]
    wanted = {optim.SGD: dict(lr=1e-3, momentum=0, weight_decay=0, nesterov=False, dampening=0),
              optim.Adam: dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False),
              optim.AdamW: dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False),
              optim.NAdam: dict(lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, momentum_decay=4e-3,
                                decoupled_weight_decay=False, maximize=False),
              optim.RAdam: dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, maximize=False),
              optim.RMSprop: dict(lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False),
              optim.Adagrad: dict(lr=1e-2, lr_decay=0, weight_decay=0, initial_accumulator_value=0, eps=1e-10)}
    for kind, options in wanted.items():
        group = kind(p).param_groups[0]
        assert group["params"][0] is p[0]
        assert {name: group[name] for name in options} == options


# --- options


def one(value=1.0, gradient=2.0):
    p = fb.tensor([value], dtype="float64", requires_grad=True)
    p.grad = fb.tensor([gradient], dtype="float64")
    return p


def test_lr_changes_between_steps():
    p = one()
    opt = optim.SGD([p], lr=0.5)
    for change, w in ((lambda: None, 0.0), (lambda: setattr(opt, "lr", 0.25), -0.5),
                      (lambda: opt.param_groups[0].__setitem__("lr", 1.0), -2.5),
                      (lambda: opt.param_groups[0].update(lr=0.5), -3.5),
                      (lambda: opt.param_groups[0].__ior__({"weight_decay": 1.0}), -2.75)):
        change()
        opt.step()
        assert p.item() == w


def test_adam_lr_change_equals_oracle():
    p = one(3.0)
    opt = optim.Adam([p], lr=0.1)
    w, m, v = 3.0, 0.0, 0.0
    for t in range(1, 21):
        opt.lr = 0.1 / t
        opt.step()
        m, v = 0.9 * m + 0.1 * 2, 0.999 * v + 0.001 * 4
        w -= 0.1 / t * (m / (1 - 0.9 ** t)) / (math.sqrt(v / (1 - 0.999 ** t)) + 1e-8)
        assert p.item() == pytest.approx(w, abs=1e-12)


def test_momentum_switched_on_and_off():
    p = one(0.0, 1.0)
    opt = optim.SGD([p], lr=1.0)
    opt.step()
    opt.param_groups[0]["momentum"] = 0.5
    opt.step()      # b = 1
    opt.step()      # b = 1.5
    opt.param_groups[0]["momentum"] = 0
    opt.step()
    assert p.item() == -(1 + 1 + 1.5 + 1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_nesterov_momentum_that_became_0_loads_and_copies(copied):
    p = one(0.0, 1.0)
    opt = optim.SGD([p], lr=1.0, momentum=0.5, nesterov=True)
    opt.step()      # b = 1, d + b / 2 = 1.5
    opt.param_groups[0]["momentum"] = 0
    opt.step()
    assert p.item() == -2.5
    opt.load_state_dict(opt.state_dict())
    assert copied(opt).state_dict()["param_groups"] == opt.state_dict()["param_groups"]


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.RMSprop,
                                  optim.Adagrad])
def test_vectors_see_what_is_set(kind):
    """A compiled program holds a plan's tensors: they stay, and what is set reaches them."""
    p = one()
    opt = kind([p], lr=0.5)
    opt.step()
    _, states, h = opt._plan(p, opt.param_groups[0])
    opt.lr = 0.125
    opt.param_groups[0]["weight_decay"] = 0.25
    assert h.numpy()[:2].tolist() == [0.125, 0.25]
    saved = opt.state_dict()
    opt.lr = 1
    opt.load_state_dict(saved)
    assert h.numpy()[0] == 0.125
    again = opt._plan(p, opt.param_groups[0])
    assert again[2] is h and all(a is b for a, b in zip(again[1], states, strict=True))


def test_groups_have_their_own_options():
    a, b, c = one(), one(), one()
    opt = optim.SGD([{"params": [a]}, {"params": [b], "lr": 1.0}], lr=0.5)
    opt.add_param_group({"params": iter([c]), "lr": 0.25, "name": "head"})
    opt.step()
    assert [x.item() for x in (a, b, c)] == [0.0, -1.0, 0.5]
    assert opt.param_groups[2]["name"] == "head" and len(opt.param_groups) == 3
    assert opt.lr == 0.5
    opt.lr = 0.125
    assert [g["lr"] for g in opt.param_groups] == [0.125] * 3


@pytest.mark.parametrize("kind", [optim.Adam, optim.NAdam, optim.RAdam, optim.RMSprop, optim.Adagrad])
def test_a_group_is_updated_as_by_an_optimizer_of_its_own(kind):
    """Parameters that agree in all options share what a clock computes; these differ in one, or in their steps."""
    changes = [{}, {"lr": 0.5}, {"weight_decay": 0.1}, {"eps": 0.5}] + [
        {name: value} for name, value in (("betas", (0.5, 0.999)), ("betas", (0.9, 0.5)), ("momentum_decay", 0.5),
                                          ("decoupled_weight_decay", True), ("alpha", 0.5), ("lr_decay", 0.5))
        if name in kind([one()]).defaults]
    together, alone = ([one() for _ in (*changes, {})] for _ in range(2))
    opt = kind([{"params": [p], **change} for p, change in zip(together, (*changes, {}), strict=True)], lr=0.1)
    opts = [kind([p], **{"lr": 0.1, **change}) for p, change in zip(alone, (*changes, {}), strict=True)]
    for n in range(12):
        for each in (together, alone):
            each[-1].grad = None if n == 3 else each[0].grad    # a step behind the first group
        opt.step()
        for single in opts:
            single.step()
        assert [p.item() for p in together] == [p.item() for p in alone]
    assert len({p.item() for p in together}) >= len(changes) - 1


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.RMSprop,
                                  optim.Adagrad])
def test_maximize_goes_up(kind):
    p, q = one(3.0, 2.0), one(3.0, -2.0)
    up, down = kind([p], lr=0.1, weight_decay=0.1, maximize=True), kind([q], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        up.step()
        down.step()
        assert p.item() == q.item()
    assert p.item() > 3 and p.grad.item() == 2


def test_skips_what_has_no_gradient_and_counts_steps_by_parameter():
    a, b = one(), one()
    b.grad = None
    opt = optim.Adam([a, b], lr=0.1)
    opt.step()
    assert b not in opt.state and b.item() == 1
    b.grad = fb.tensor([2.0], dtype="float64")
    opt.step()
    assert opt.state[a]["step"].item() == 2 and opt.state[b]["step"].item() == 1
    assert b.item() == pytest.approx(0.9, abs=1e-8)    # a first step goes by lr


def test_zero_grad_is_none():
    p = one()
    opt = optim.SGD([p])
    opt.zero_grad()
    assert p.grad is None


def test_step_is_seen_by_backward():
    p = one()
    y = (p * p).sum()
    optim.SGD([p]).step()
    with pytest.raises(RuntimeError, match="in place"):
        y.backward()


def test_step_is_in_place_and_not_recorded():
    a = np.ones(3)
    p = fb.from_numpy(a).requires_grad_()
    p.grad = fb.ones(3, dtype="float64")
    optim.SGD([p], lr=0.5).step()
    assert a.tolist() == [0.5] * 3 and p.is_leaf and p.requires_grad


def test_empty_parameter_and_gradient_of_another_layout():
    w = fb.zeros((0, 3), requires_grad=True)
    w.grad = fb.zeros((0, 3))
    for kind, expected in ((optim.SGD, [[0, -2, -4], [-1, -3, -5]]),
                           (optim.Adam, [[0, -1, -1], [-1, -1, -1]])):
        p = fb.tensor(np.zeros((2, 3)), requires_grad=True)
        p.grad = fb.tensor(np.arange(6.0).reshape(3, 2)).T.detach()
        kind([w, p], lr=1.0).step()
        np.testing.assert_allclose(p.numpy(), expected, rtol=1e-7)


# --- in a staged step

STAGED = {
    "sgd": (optim.SGD, dict(lr=0.1)), "momentum": (optim.SGD, dict(lr=0.1, momentum=0.9)),
    "adam": (optim.Adam, dict(lr=0.1)), "adamw": (optim.AdamW, dict(lr=0.1)),
    "nadam": (optim.NAdam, dict(lr=0.1)), "radam": (optim.RAdam, dict(lr=0.1)),
    "rmsprop": (optim.RMSprop, dict(lr=0.1)),
    "rmsprop-both": (optim.RMSprop, dict(lr=0.1, momentum=0.5, centered=True)),
    "adagrad": (optim.Adagrad, dict(lr=0.1, lr_decay=0.1, initial_accumulator_value=0.1)),
    "ascent": (optim.SGD, dict(lr=1e-3, momentum=0.5, weight_decay=0.1, maximize=True)),
}


def training(kind, options, dtype="float32", wide=300):
    """A net with a group for each layer, and a layer that is no group yet: step, optimizer, layer, all parameters."""
    model = nn.Sequential(nn.Linear(wide, wide, rng=0), nn.Tanh(), nn.Linear(wide, 10, rng=1)).to(dtype)
    late = nn.Linear(10, 10, rng=2).to(dtype)
    opt = kind([{"params": model[0].parameters(), "lr": 0.01}, {"params": model[2].parameters()}], **options)

    @fb.staged
    def step(x, y):
        loss = nn.functional.cross_entropy(late(model(x)), y)
        opt.zero_grad()
        late.zero_grad()
        loss.backward()
        opt.step()
        return loss

    return step, opt, late, [*model.parameters(), *late.parameters()]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", STAGED)
def test_groups_in_a_staged_step(name, dtype, threads):
    """Rates by layer that change without a new recording; a group that comes late is recorded."""
    kind, options = STAGED[name]
    before = fb.get_num_threads()
    fb.set_num_threads(threads)
    try:
        (step, a, late_a, ps), (other, b, late_b, qs) = (training(kind, options, dtype) for _ in range(2))
        x, y = np.random.default_rng(0).normal(size=(200, 300)).astype(dtype), np.arange(200) % 10
        for n in range(8):
            for opt, late in ((a, late_a), (b, late_b)):
                for group in opt.param_groups:
                    group["lr"] *= 0.9
                opt.param_groups[0]["weight_decay"] = 0.01 * n
                if n == 5:
                    opt.add_param_group({"params": late.parameters(), "lr": 0.003})
            assert same_bits(step(x, y), other.eager(x, y))
            assert step.recordings == 1 + (n >= 5)
    finally:
        fb.set_num_threads(before)
    for p, q in zip(ps, qs, strict=True):
        assert same_bits(p, q)
    for p, q in zip(a.state_dict()["state"].values(), b.state_dict()["state"].values(), strict=True):
        assert p.keys() == q.keys() and all(same_bits(p[k], q[k]) for k in p)


def same_bits(a, b):
    return a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("wide", [20, 300])
def test_gradients_of_several_batches_add_up(wide, dtype):
    """By steps that go back only and one that updates, within one step, gate by gate; as the whole batch does."""
    x, y = np.random.default_rng(0).normal(size=(200, 64)).astype(dtype), np.arange(200) % 10
    parts = [slice(50 * k, 50 * k + 50) for k in range(4)]

    def made():
        model = nn.Sequential(nn.Linear(64, wide, rng=0), nn.Tanh(), nn.Linear(wide, 10, rng=1)).to(dtype)
        opt = optim.Adam(model.parameters(), lr=0.01, eps=1e-3)

        def back(x, y):
            loss = nn.functional.cross_entropy(model(x), y) / 4
            loss.backward()
            return loss

        def update():
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            opt.step()
            opt.zero_grad()

        def all_parts(x, y):
            opt.zero_grad()
            loss = sum(back(x[part], y[part]) for part in parts)
            update()
            return loss

        def whole(x, y):
            loss = 4 * back(x, y)
            for p in model.parameters():
                p.grad = p.grad * 4
            update()
            return loss

        return model, back, update, all_parts, whole

    (a, back, update, *_), (b, eager_back, eager_update, *_), (c, _, _, all_parts, _), (d, *_, whole) = (
        made() for _ in range(4))
    back, update, all_parts, whole = map(fb.staged, (back, update, all_parts, whole))
    for _ in range(6):
        losses = [(back(x[part], y[part]), eager_back(fb.tensor(x[part]), y[part])) for part in parts]
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert same_bits(p.grad, q.grad)
        update()
        eager_update()
        assert all(same_bits(*pair) for pair in losses)
        assert same_bits(sum(loss for loss, _ in losses), all_parts(x, y))
        whole(x, y)
    assert (back.recordings, update.recordings, all_parts.recordings) == (2, 1, 1)    # the first one finds no gradient
    for p, q, r, s in zip(a.parameters(), b.parameters(), c.parameters(), d.parameters(), strict=True):
        assert same_bits(p, q) and same_bits(p, r) and p.grad is q.grad is None
        np.testing.assert_allclose(p.numpy(), s.numpy(), rtol=0, atol=1e-5 if dtype == "float32" else 1e-13)


def test_a_gradient_that_lies_in_another_order_than_at_the_recording():
    """A program reads a gradient as the first call's lay; another is copied."""
    layer = nn.Linear(40, 30, rng=0)
    opt = optim.SGD(layer.parameters(), lr=1.0)
    update = fb.staged(opt.step)
    w, b = layer.parameters()
    g = np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32)
    b.grad = fb.zeros(30)
    for k in range(3):
        wanted = w.numpy() - g
        w.grad = fb.tensor(g.T.copy()).T.detach() if k != 1 else fb.tensor(g)
        b.grad = fb.zeros(30)
        update()
        assert (w.numpy() == wanted).all()
    assert update.recordings == 1


def test_what_decides_about_stages_is_recorded_anew():
    x, y = np.ones((4, 300), np.float32), np.arange(4)
    for kind, options, changes in (
            (optim.SGD, {}, [("momentum", 0.5, 2), ("momentum", 0.9, 2), ("nesterov", True, 2), ("lr", 0.5, 2)]),
            (optim.RMSprop, {}, [("centered", True, 2), ("momentum", 0.5, 3), ("alpha", 0.5, 3)]),
            (optim.Adam, {}, [("betas", (0.5, 0.6), 1), ("decoupled_weight_decay", True, 1), ("maximize", True, 2)])):
        (step, a, _, ps), (other, b, _, qs) = (training(kind, options) for _ in range(2))
        step(x, y)
        other.eager(x, y)
        for name, value, recordings in changes:
            for opt in (a, b):
                for group in opt.param_groups:
                    group[name] = value
            for _ in range(2):
                assert same_bits(step(x, y), other.eager(x, y))
            assert step.recordings == recordings, name
        assert all(same_bits(p, q) for p, q in zip(ps, qs, strict=True))


def test_a_recording_that_fails_leaves_no_state():
    w = fb.ones(3, requires_grad=True)
    opt = optim.NAdam([w])

    @fb.staged
    def step():
        w.sum().backward()
        opt.step()
        bool(w.sum())

    with pytest.raises(fb.StagingError):
        step()
    assert not opt.state.get(w) and opt.state_dict()["state"] == {}


# --- what is refused

BAD_NUMBERS = [float("nan"), -1e-9, -1, float("inf"), "0.1", None, 1j, True, [0.1]]


@pytest.mark.parametrize("bad", BAD_NUMBERS)
@pytest.mark.parametrize("kind, name", [
    (optim.SGD, "lr"), (optim.SGD, "momentum"), (optim.SGD, "weight_decay"), (optim.Adam, "lr"),
    (optim.Adam, "eps"), (optim.Adam, "weight_decay"), (optim.AdamW, "lr"), (optim.AdamW, "weight_decay"),
    (optim.NAdam, "momentum_decay"), (optim.RMSprop, "alpha"), (optim.RMSprop, "momentum"), (optim.Adagrad, "lr_decay"),
    (optim.Adagrad, "initial_accumulator_value")])
def test_bad_numbers_raise_where_they_are_set(kind, name, bad):
    with pytest.raises(ValueError, match=name):
        kind([one()], **{name: bad})
    with pytest.raises(ValueError, match=name):
        kind([{"params": [one()], name: bad}])
    p = one()
    opt = kind([p])
    group = opt.param_groups[0]
    before, h = dict(group), opt._vectors[p][0].numpy().tobytes()
    sets = [lambda: group.__setitem__(name, bad), lambda: group.update({"note": 1, name: bad}),
            lambda: group.__ior__({name: bad}), lambda: opt.add_param_group({"params": [one()], name: bad})]
    if name == "lr":
        sets.append(lambda: setattr(opt, "lr", bad))
    for set_it in sets:
        with pytest.raises(ValueError, match=name):
            set_it()
    assert dict(group) == before and opt._vectors[p][0].numpy().tobytes() == h and len(opt.param_groups) == 1


@pytest.mark.parametrize("bad", [(0.9,), 0.9, (0.9, 1.0), (-0.1, 0.9), (float("nan"), 0.9), ("a", "b"), None])
def test_bad_betas(bad):
    with pytest.raises(ValueError, match="betas"):
        optim.Adam([one()], betas=bad)
    opt = optim.AdamW([one()])
    with pytest.raises(ValueError, match="betas"):
        opt.param_groups[0]["betas"] = bad
    assert opt.param_groups[0]["betas"] == (0.9, 0.999)


def test_zero_and_numpy_numbers_are_good():
    opt = optim.SGD([one()], lr=np.float32(0.5), momentum=np.int64(0))
    opt.lr = 0
    assert opt.lr == 0


def test_unsupported_options_of_pytorch():
    with pytest.raises(ValueError, match="nesterov"):
        optim.SGD([one()], nesterov=True)
    with pytest.raises(ValueError, match="nesterov can't be this[^@]*0.0001[^@]*by their names"):
        optim.SGD([one()], 0.1, 0.9, 0, 1e-4)    # PyTorch's order, which has dampening
    with pytest.raises(ValueError, match="nesterov"):
        optim.SGD([{"params": [one()]}, {"params": [one()], "momentum": 0}], momentum=0.9, nesterov=True)
    with pytest.raises(ValueError, match="dampening"):
        optim.SGD([{"params": [one()], "dampening": 0.1}], momentum=0.9)
    with pytest.raises(ValueError, match="amsgrad"):
        optim.Adam([one()]).param_groups[0]["amsgrad"] = True
    with pytest.raises(ValueError, match="add_param_group"):
        optim.Adam([one()]).param_groups[0]["params"] = []


def read_only():
    a = np.ones(2)
    a.flags.writeable = False
    return from_numpy(a).requires_grad_()


shared = fb.ones(2, requires_grad=True)
BAD_PARAMETERS = {
    "empty": ([], ValueError, "no parameters"),
    "empty group": ([{"params": []}], ValueError, "no parameters"),
    "a tensor": (shared, TypeError, "iterable"),
    "a module": (nn.ReLU(), TypeError, "model.parameters"),
    "modules": (nn.Sequential(nn.ReLU()), TypeError, "model.parameters"),
    "an array": ([np.ones(2)], TypeError, "ndarray"),
    "a dict": ({"params": [shared]}, TypeError, "iterable"),
    "a set": ({shared}, TypeError, "a fixed order.* not set"),
    "a set in a group": ([{"params": {shared}}], TypeError, "set"),
    "no params": ([{"lr": 1.0}], TypeError, "params"),
    "no leaf": ([shared * 2], ValueError, "no leaf"),
    "no gradient": ([fb.ones(2)], ValueError, "require a gradient"),
    "twice": ([shared, shared], ValueError, "twice"),
    "twice in groups": ([{"params": [shared]}, {"params": [shared]}], ValueError, "twice"),
    "read-only": ([read_only()], ValueError, "written"),
}


@pytest.mark.parametrize("case", BAD_PARAMETERS)
def test_bad_parameters(case):
    params, kind, message = BAD_PARAMETERS[case]
    with pytest.raises(kind, match=message):
        optim.SGD(params)


def test_refused_group_is_not_added():
    p = one()
    opt = optim.SGD([p])
    for group in ({"params": [one(), p]}, {"params": [one(), fb.ones(1)]}, [p]):
        with pytest.raises((ValueError, TypeError)):
            opt.add_param_group(group)
    assert len(opt.param_groups) == 1 and list(opt._vectors) == [p]


def test_changed_dtype_is_refused_before_any_update():
    first, layer = one(), nn.Linear(2, 2)
    opt = optim.Adam([first, *layer.parameters()])
    layer(fb.ones(1, 2)).sum().backward()
    opt.step()
    layer.to("float64")
    before = first.numpy().tobytes(), layer.weight.numpy().tobytes(), opt._vectors[first][0].numpy().tobytes()
    with pytest.raises(fb.DtypeError, match="after model.to"):
        opt.step()
    assert before == (first.numpy().tobytes(), layer.weight.numpy().tobytes(),
                      opt._vectors[first][0].numpy().tobytes())


# --- state dicts

KINDS = {"sgd": lambda p: optim.SGD(p, lr=0.1), "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
         "adam": lambda p: optim.Adam(p, lr=0.1), "adamw": lambda p: optim.AdamW(p, lr=0.1),
         "nadam": lambda p: optim.NAdam(p, lr=0.1), "radam": lambda p: optim.RAdam(p, lr=0.1),
         "rmsprop": lambda p: optim.RMSprop(p, lr=0.1),
         "rmsprop-both": lambda p: optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
         "adagrad": lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.1),
         "ascent": lambda p: optim.Adam(p, lr=0.1, maximize=True, decoupled_weight_decay=True, weight_decay=0.1)}


def run(layer, opt, steps):
    x = fb.tensor(np.linspace(-1, 1, 12).reshape(4, 3))
    for _ in range(steps):
        opt.zero_grad()
        nn.functional.mse_loss(layer(x), fb.ones(4, 2, dtype="float64")).backward()
        opt.step()


@pytest.mark.parametrize("kind", KINDS)
def test_a_copied_run_goes_on_with_the_same_bits(kind):
    """By deepcopy and by pickle; the copy's parameters are those of the copied layer."""
    layer = nn.Linear(3, 2, rng=0).to("float64")
    opt = KINDS[kind]([{"params": [layer.weight], "lr": 0.05, "note": "w"}, {"params": [layer.bias]}])
    run(layer, opt, 5)
    copies = [copy.deepcopy((layer, opt)), pickle.loads(pickle.dumps((layer, opt)))]
    run(layer, opt, 5)
    for other, new in copies:
        assert new.param_groups[0]["params"][0] is other.weight and new.param_groups[0]["note"] == "w"
        run(other, new, 5)
        for p, q in zip(layer.parameters(), other.parameters(), strict=True):
            assert p.numpy().tobytes() == q.numpy().tobytes()
        assert repr(new) == repr(opt)


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_run_goes_on_with_the_same_bits(kind, tmp_path):
    layer = nn.Linear(3, 2, dtype="float64", rng=0)
    opt = KINDS[kind](layer.parameters())
    run(layer, opt, 5)
    fb.save(tmp_path / "run", [layer.state_dict(), opt.state_dict()])
    saved = fb.load(tmp_path / "run")
    run(layer, opt, 5)
    other = nn.Linear(3, 2, dtype="float64", rng=1)
    new = KINDS[kind](other.parameters())
    run(other, new, 2)      # what it has is overwritten
    other.load_state_dict(saved[0])
    new.load_state_dict(saved[1])
    run(other, new, 5)
    for p, q in zip(layer.parameters(), other.parameters(), strict=True):
        assert p.numpy().tobytes() == q.numpy().tobytes()


def test_state_dict_layout():
    layer = nn.Linear(3, 2, rng=0)
    opt = optim.Adam([{"params": [layer.bias], "lr": 0.5}, {"params": [layer.weight]}])
    assert opt.state_dict()["state"] == {}
    layer(fb.ones(1, 3)).sum().backward()
    opt.step()
    saved = opt.state_dict()
    assert [g["params"] for g in saved["param_groups"]] == [[0], [1]]
    assert [g["lr"] for g in saved["param_groups"]] == [0.5, 1e-3]
    assert all(type(g) is dict for g in saved["param_groups"])
    assert list(saved["state"]) == [0, 1] and list(saved["state"][1]) == ["step", "exp_avg", "exp_avg_sq"]
    assert saved["state"][1]["exp_avg"].shape == (2, 3) and saved["state"][1]["exp_avg"].is_contiguous
    assert saved["state"][0]["step"].item() == 1
    opt.step()
    assert saved["state"][0]["step"].item() == 1      # copies


@pytest.mark.parametrize("kind", KINDS)
def test_loading_a_fresh_state_starts_afresh(kind):
    layer, other = (nn.Linear(3, 2, rng=0).to("float64") for _ in range(2))
    opt, fresh = KINDS[kind](layer.parameters()), KINDS[kind](other.parameters())
    start = layer.state_dict(), opt.state_dict()
    assert start[1]["state"] == {}
    run(layer, opt, 3)
    layer.load_state_dict(start[0])
    opt.load_state_dict(start[1])
    run(layer, opt, 3)
    run(other, fresh, 3)
    for p, q in zip(layer.parameters(), other.parameters(), strict=True):
        assert same_bits(p, q)


def refusals(saved):
    def changed(**options):
        return {**saved, "param_groups": [{**saved["param_groups"][0], **options}]}

    def state(**entries):
        return {**saved, "state": {**saved["state"], 1: {**saved["state"][1], **entries}}}

    lacking = {k: v for k, v in saved["param_groups"][0].items() if k != "eps"}
    return {"groups": {**saved, "param_groups": saved["param_groups"] * 2}, "sizes": changed(params=[0]),
            "lr": changed(lr=float("nan")), "amsgrad": changed(amsgrad=True),
            "lacking": {**saved, "param_groups": [lacking]}, "shape": state(exp_avg=np.zeros((3, 2))),
            "name": state(momentum_buffer=np.zeros(2)),
            "step": state(step=-1), "NaN step": state(step=math.nan),
            "text": state(exp_avg=np.full(2, "a")), "state without": {**saved, "state": {1: {"step": 1}}},
            "number": {**saved, "state": {7: saved["state"][1]}}}


@pytest.mark.parametrize("case", refusals({"state": {1: {}}, "param_groups": [{}]}))
def test_refused_state_changes_nothing(case):
    layer = nn.Linear(3, 2, dtype="float64", rng=0)
    opt = optim.Adam(layer.parameters())
    run(layer, opt, 3)
    other = nn.Linear(3, 2, dtype="float64", rng=1)
    new = optim.Adam(other.parameters(), lr=0.5)
    run(other, new, 1)

    def snapshot():
        return [(n, x.numpy().tobytes()) for s in new.state.values() for n, x in s.items()] + [
            h.numpy().tobytes() for h, _ in new._vectors.values()] + [
            [(k, v) for k, v in g.items() if k != "params"] for g in new.param_groups]
    before = snapshot()
    with pytest.raises(ValueError, match="does not fit this Adam|lr can't|amsgrad is not"):
        new.load_state_dict(refusals(opt.state_dict())[case])
    assert snapshot() == before


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_groups_alone_are_dicts(copied):
    opt = optim.Adam([one()], lr=0.5)
    (group,) = copied(list(map(copied, opt.param_groups)))
    assert type(group) is dict and {**group, "params": 0} == {**opt.param_groups[0], "params": 0}
    group["lr"] = -1
    assert opt.lr == 0.5


def test_repr():
    lines = repr(optim.SGD([one()], lr=0.5)).splitlines()
    assert lines[:3] == ["SGD (", "Parameter Group 0", "    dampening: 0"] and "    lr: 0.5" in lines


def test_no_leak_of_a_dropped_optimizer():
    import gc
    import weakref
    gc.disable()
    try:
        p = one()
        opt = optim.Adam([p])
        opt.step()
        gone = weakref.ref(opt)
        del opt
        assert gone() is None
    finally:
        gc.enable()


# --- with PyTorch beside it


BESIDE = {
    "SGD": [dict(momentum=0.9, nesterov=True), dict(maximize=True), dict(momentum=0.9, maximize=True)],
    "Adam": [{}, dict(maximize=True), dict(decoupled_weight_decay=True)],
    "AdamW": [{}, dict(maximize=True)],
    "NAdam": [{}, dict(momentum_decay=0.1, betas=(0.7, 0.8), eps=1e-3), dict(decoupled_weight_decay=True),
              dict(maximize=True)],
    "RAdam": [{}, dict(betas=(0.7, 0.9), eps=1e-3), dict(decoupled_weight_decay=True), dict(maximize=True)],
    "RMSprop": [{}, dict(alpha=0.9, eps=1e-3), dict(momentum=0.9), dict(centered=True),
                dict(momentum=0.8, centered=True), dict(maximize=True)],
    "Adagrad": [{}, dict(lr_decay=0.1, eps=1e-3), dict(initial_accumulator_value=0.5), dict(maximize=True)],
}


@pytest.fixture
def torch():
    """PyTorch with float64 as the default: so it counts, and keeps NAdam's product, in float64."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    before = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield torch
    torch.set_default_dtype(before[0])
    torch.set_num_threads(before[1])


@pytest.mark.parametrize("kind, options", [(kind, options) for kind, many in BESIDE.items() for options in many])
def test_against_pytorch(kind, options, torch):
    options = dict(lr=0.05, weight_decay=0.1) | options
    ours = nn.Sequential(nn.Linear(3, 4, rng=0), nn.Tanh(), nn.Linear(4, 2, rng=1)).to("float64")
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({k: torch.from_numpy(v.numpy()) for k, v in ours.state_dict().items()})
    x, y = np.random.default_rng(0).normal(size=(10, 3)), np.arange(10) % 2
    our_kind, their_kind = getattr(optim, kind), getattr(torch.optim, kind)
    a, b = our_kind(ours.parameters(), **options), their_kind(theirs.parameters(), **options)
    sign = -1 if options.get("maximize") else 1

    def steps(a, b, n):
        for _ in range(n):
            for opt in (a, b):
                opt.zero_grad()
            (sign * nn.functional.cross_entropy(ours(fb.tensor(x)), y)).backward()
            their_y = theirs(torch.from_numpy(x))
            (sign * torch.nn.functional.cross_entropy(their_y, torch.from_numpy(y))).backward()
            a.step()
            b.step()
            for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
                np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=1e-9, atol=1e-11)
    steps(a, b, 60)
    ours.load_state_dict(theirs.state_dict())
    # Each goes on from the other's state.
    saved, their_state = a.state_dict(), b.state_dict()
    assert {i: [*s] for i, s in saved["state"].items()} == {
        i: [name for name, x in s.items() if x is not None] for i, s in their_state["state"].items()}
    a, b = our_kind(ours.parameters()), their_kind(theirs.parameters())
    a.load_state_dict(their_state)
    b.load_state_dict({"param_groups": saved["param_groups"], "state": {
        i: {n: torch.from_numpy(v.numpy()) for n, v in s.items()} for i, s in saved["state"].items()}})
    steps(a, b, 20)
